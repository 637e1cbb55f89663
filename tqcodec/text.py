"""Descriptions of `describe` as lines of text for a terminal.

Names from a file are shown without their control characters. Imports `describe` only for its type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tqcodec.describe import Data

LONGEST_LIST = 16  # numbers that `dump` shows in full


def printable(text: str) -> str:
    """`text`, its control characters and line breaks as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def summary_line(data: Data) -> str:
    """One line on a whole file, from `describe.summary`."""
    tensors = sum(data["counts"].values())
    counts = ", ".join(f"{count} {coding}" for coding, count in sorted(data["counts"].items()))
    line = (
        f"{tensors} tensors ({counts or 'none'}), {data['bytes']} of {data['decoded_bytes']} bytes"
    )
    line += f" (ratio {data['ratio']:.2f})"
    if data["bits_per_weight"] is not None:
        line += f", {data['bits_per_weight']:.3f} bits per weight ({data['weights']} weights)"
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


def info_lines(data: Data) -> Iterator[str]:
    """A line for each tensor and each shared part, then the summary, from `describe.info`."""
    rows = [[show(tensor) for show in COLUMNS.values()] for tensor in data["tensors"]]
    for i, bundle in enumerate(data["bundles"]):
        rows.append(_shared(f"[bundle {i} of {bundle['tensors']} tensors]", bundle["bytes"]))
    if data["tables_bytes"]:
        rows.append(_shared("[tables]", data["tables_bytes"]))
    rows.append(_shared("[header and directory]", data["directory_bytes"]))
    yield from aligned([list(COLUMNS), *rows])
    if data["encoder"] is not None:
        yield f"made by {printable(data['encoder'])}"
    counts = (f"{n} {kind}" for kind, n in data["kinds"].items())
    if data["kinds"]:
        yield f"kinds: {'; '.join(counts)}"
    yield summary_line(data)
    yield from _gain_lines(data["tensors"])


def lines_without(reasons: Mapping[str, str]) -> Iterator[str]:
    """Why weights have no statistics, a line for each."""
    for name, why in reasons.items():
        yield f"{printable(name)}: without statistics: {why}"


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
