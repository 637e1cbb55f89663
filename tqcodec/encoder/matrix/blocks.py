"""Blocks: work on large matrices a few rows at a time, to bound memory."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK = 1 << 17  # elements of a block, about


def row_blocks(rows: int, columns: int, unit: int = 1, block: int = BLOCK) -> Iterator[slice]:
    """Slices of rows that make up about `block` elements each, whole multiples of `unit` rows."""
    height = max(1, block // max(1, columns) // unit) * unit
    return (slice(top, min(top + height, rows)) for top in range(0, rows, height))
