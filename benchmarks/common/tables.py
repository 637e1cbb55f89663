"""Tables of text."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan


def cell(value: float, form: str) -> str:
    """A number in the form of `str.format`; nothing where it is not one."""
    return "" if isnan(value) else form.format(value)


def print_aligned(lines: Sequence[Sequence[str]], left: int = 2) -> None:
    """Print cells in columns: the first `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, strict=True)
        aligned = [f"{c:<{w}}" if i < left else f"{c:>{w}}" for i, (c, w) in enumerate(cells)]
        print("  ".join(aligned).rstrip())
