"""Descriptions of `describe` as lines of text for a terminal.

Names from a file are shown without their control characters. Imports `describe` only for its type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tqcodec.cli.describe import Data

LONGEST_LIST = 16  # numbers that `dump` shows in full
MOST_DTYPES = 3  # named in a line of `info` for several tensors


def printable(text: str) -> str:
    """`text`, its control characters and line breaks as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def summary_line(data: Data) -> str:
    """One line on a whole file, from `describe.summary`."""
    tensors = sum(data["counts"].values())
    codings = ", ".join(f"{count} {coding}" for coding, count in sorted(data["counts"].items()))
    line = counted(tensors, "tensor") + (f" ({codings})" if codings else "")
    line += f", {data['bytes']} of {data['decoded_bytes']} bytes (ratio {data['ratio']:.2f})"
    if data["bits_per_weight"] is not None:
        weights = counted(data["weights"], "weight")
        line += f", {data['bits_per_weight']:.3f} bits per weight ({weights})"
    return line


COLUMNS: dict[str, Callable[[Data], str]] = {
    "name": lambda t: printable(t["name"]),
    "shape": lambda t: "x".join(map(str, t["shape"])) or "scalar",
    "dtype": lambda t: t["dtype"],
    "coding": lambda t: _coding(t),
    "kind": lambda t: _optional(t["kind"], str),
    "transform": lambda t: _transform(t),
    "kept/all": lambda t: _optional(t["kept"], lambda kept: f"{kept}/{t['channels']}"),
    "depth": lambda t: _optional(t["depths"], lambda _: _depths(t)),
    "bits": lambda t: _optional(t["bits_per_weight"], "{:.2f}".format),
    "snr dB": lambda t: _optional(t["snr"], "{:.2f}".format),
    "bytes": lambda t: _optional(t["bytes"], str),
}
AXES = ("out", "in", "taps")
LEFT = 6  # columns of text; the others hold numbers and are aligned to the right


def info_lines(data: Data, whole: bool = False) -> Iterator[str]:
    """A table of the tensors and the shared parts, then the summary.

    Args:
        data: from `describe.info`.
        whole: a line for each tensor, in the order of the file. Otherwise weight matrices come
            first, those of most bytes above; then what else has bytes of its own; then one line for
            all small tensors of a kind, which share bundles.
    """
    tensors = data["tensors"]
    chosen = tensors if whole else _ranked(tensors)
    lines = [_row(tensor) for tensor in chosen]
    shown = {tensor["name"] for tensor in chosen}
    lines += _sums([tensor for tensor in tensors if tensor["name"] not in shown])
    for i, bundle in enumerate(data["bundles"]):
        lines.append(_shared(f"[bundle {i} of {bundle['tensors']} tensors]", bundle["bytes"]))
    if data["tables_bytes"]:
        lines.append(_shared("[tables]", data["tables_bytes"]))
    lines.append(_shared("[header and directory]", data["directory_bytes"]))
    yield from aligned([list(COLUMNS), *lines])
    if data["encoder"] is not None:
        yield f"made by {printable(data['encoder'])}"
    counts = (f"{n} {kind}" for kind, n in data["kinds"].items())
    if data["kinds"]:
        yield f"kinds: {'; '.join(counts)}"
    yield summary_line(data)
    yield from _gain_lines(tensors)
    if "operations" in data:
        yield from _operation_lines(data["operations"])


def _operation_lines(data: Data) -> Iterator[str]:
    """A table of `describe.operations`, a line for each layer."""
    rows = [["name", "shape", "way", "kept/all", "dense", "transform", "rebuilding"]]
    for layer in data["layers"]:
        name, shape = printable(layer["name"]), "x".join(map(str, layer["shape"]))
        kept = f"{layer['kept']}/{layer['columns']}" if layer["columns"] else "-"
        numbers = (layer["dense"], layer["transform"], layer["rebuilding"] or None)
        rows.append([name, shape, layer["way"], kept, *[_optional(n, str) for n in numbers]])
    yield "multiplications for each position of the output, and to rebuild weights once a pass"
    yield from aligned(rows, left=3)
    dense, least = data["dense"], data["least"]
    share = f" ({least / dense:.2f})" if dense else ""
    yield f"all layers: {dense} dense, {least} each by its way{share}"


def _ranked(tensors: Sequence[Data]) -> list[Data]:
    """Tensors with bytes of their own and those tied to them: matrices first, large ones above."""
    by_name = {tensor["name"]: tensor for tensor in tensors}

    def rank(tensor: Data) -> tuple[bool, int, bool]:
        twin = by_name[tensor["same_as"] or tensor["name"]]
        return twin["weight"], twin["bytes"] or 0, twin is tensor

    return sorted((t for t in tensors if rank(t)[1]), key=rank, reverse=True)


def _row(tensor: Data) -> list[str]:
    return [show(tensor) for show in COLUMNS.values()]


def _sums(tensors: Sequence[Data]) -> Iterator[list[str]]:
    """A row for all tensors of a kind, weights first; a single one as itself."""
    kinds: dict[str, list[Data]] = {}
    for tensor in sorted(tensors, key=lambda t: not t["weight"]):
        tied = "tied" if tensor["same_as"] is not None else tensor["coding"]
        kinds.setdefault(tensor["kind"] or tied, []).append(tensor)
    for kind, members in kinds.items():
        if len(members) == 1:
            yield _row(members[0])
            continue
        elements = sum(math.prod(tensor["shape"]) for tensor in members)
        dtypes = sorted({tensor["dtype"] for tensor in members})
        cells = {
            "name": f"[{counted(len(members), 'tensor')}]",
            "shape": counted(elements, "element"),
            "dtype": ",".join(dtypes) if len(dtypes) <= MOST_DTYPES else f"{len(dtypes)} types",
            "coding": "in bundles" if any(t["bundle"] is not None for t in members) else "",
            "kind": kind,
        }
        yield [cells.get(column, "") for column in COLUMNS]


def counted(number: int, thing: str) -> str:
    """`number` things in words, such as "2 warnings"."""
    return f"{number or 'no'} {thing}{'' if number == 1 else 's'}"


def lines_without(reasons: Mapping[str, str]) -> Iterator[str]:
    """Why weights have no statistics, a line for each."""
    for name, why in reasons.items():
        yield f"{printable(name)}: not calibrated, encoded as without data: {why}"


def _gain_lines(tensors: Sequence[Data]) -> Iterator[str]:
    """A table of `gains.add_gains`, a line for each matrix that has any."""
    found = [tensor for tensor in tensors if tensor.get("gains")]
    rows = [[printable(t["name"]), *[_gain(t["gains"].get(a)) for a in AXES]] for t in found]
    if rows:
        yield "transform coding gains in dB: by weights + by gradients = total"
        yield from aligned([["name", *AXES], *rows], left=1)


def _gain(gain: Data | None) -> str:
    if gain is None:
        return "-"
    names = ("weight", "gradient", "total")
    weight, gradient, total = (_optional(gain[n], "{:.2f}".format, "inf") for n in names)
    return f"{weight} + {gradient} = {total}"


def aligned(rows: Sequence[Sequence[str]], left: int = LEFT) -> Iterator[str]:
    """Rows of cells as lines with columns of equal width, the first `left` of them of text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _shared(name: str, size: int) -> list[str]:
    return [name, *[""] * (len(COLUMNS) - 2), str(size)]


def _coding(tensor: Data) -> str:
    if tensor["same_as"] is not None:
        return f"tied to {printable(tensor['same_as'])}"
    bundle = tensor["bundle"]
    return str(tensor["coding"]) if bundle is None else f"{tensor['coding']} in bundle {bundle}"


def _transform(tensor: Data) -> str:
    if tensor["transform"] is None:
        return "-"
    return " ".join(f"{axis}:{kind}" for axis, kind in tensor["transform"].items()) or "none"


def _depths(tensor: Data) -> str:
    """Least and most bits of the columns that are there."""
    counts = list(tensor["depths"])
    counts[0] -= tensor["channels"] - tensor["kept"]
    there = [bits for bits, count in enumerate(counts) if count]
    return f"{there[0]}..{there[-1]}" if there else "-"


def _optional(value: Any, show: Callable[[Any], str], otherwise: str = "-") -> str:
    return otherwise if value is None else show(value)


def dump_lines(data: Any, indent: str = "") -> Iterator[str]:
    """Nested dicts and lists, innermost ones on one line; long lists of numbers are cut short."""
    pairs: Iterable[tuple[Any, Any]] = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in pairs:
        name = printable(key) if isinstance(key, str) else f"[{key}]"
        if _is_line(value):
            yield f"{indent}{name}: {_field(value)}"
        else:
            yield f"{indent}{name}"
            yield from dump_lines(value, indent + "  ")


def _is_line(value: Any) -> bool:
    """True unless it holds what holds something itself, other than lists of plain values."""
    if isinstance(value, dict):
        return all(_is_plain(inner) or _is_list(inner) for inner in value.values())
    return _is_plain(value) or _is_list(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_plain, value))


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list | tuple)


def _field(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{printable(key)}={_field(inner)}" for key, inner in value.items()) or "-"
    if isinstance(value, list | tuple):
        return _numbers(value)
    return "-" if value is None else printable(str(value))


def _numbers(values: Sequence[Any]) -> str:
    if len(values) <= LONGEST_LIST:
        return "[" + " ".join(map(str, values)) + "]"
    least, most = min(values), max(values)
    if least == most:
        return f"[{least} ...] ({len(values)} values, all {least})"
    head = " ".join(map(str, values[: LONGEST_LIST // 2]))
    return f"[{head} ...] ({len(values)} values, {least} to {most})"
