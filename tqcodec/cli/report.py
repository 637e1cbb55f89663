"""A drawing of where a file's bytes go and of the depths of its layers, with matplotlib."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tqcodec.cli.describe import Data
from tqcodec.cli.text import COLUMNS, printable, summary_line
from tqcodec.errors import EncodeError

KINDS = (".html", ".png")
MOST_BARS = 40  # tensors drawn one by one; of what is in the file, the rest is one bar
LONGEST_LABEL = 48

STYLE = """body{font:14px system-ui,sans-serif;margin:2em}table{border-collapse:collapse}
td,th{padding:.15em .8em;text-align:right;border-bottom:1px solid #ddd}
td:nth-child(-n+6),th:nth-child(-n+6){text-align:left}img{max-width:100%}"""


def kind_of(output: str) -> str:
    """The kind of report that a file name asks for; HTML on standard output.

    Raises:
        EncodeError: a suffix that is not one of `KINDS`.
    """
    suffix = Path(output).suffix if output != "-" else ".html"
    if suffix not in KINDS:
        raise EncodeError(f"{output}: a report is {' or '.join(KINDS)}")
    return suffix


def draw(data: Data, title: str, kind: str) -> bytes:
    """The report on a file.

    Args:
        data: what `describe.info` says of it.
        title: heading.
        kind: ``.png`` for the drawing alone; ``.html`` for a page that holds it and the table,
            and needs nothing else.
    """
    picture = _picture(data, printable(title))
    return picture if kind == ".png" else _page(data, printable(title), picture)


def _page(data: Data, title: str, picture: bytes) -> bytes:
    rows = [[show(tensor) for show in COLUMNS.values()] for tensor in data["tensors"]]
    table = _row("th", list(COLUMNS)) + "".join(_row("td", row) for row in rows)
    encoded = base64.b64encode(picture).decode()
    heading = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{heading}</title>'
        f"<style>{STYLE}</style><h1>{heading}</h1><p>{html.escape(summary_line(data))}</p>"
        f'<img alt="bytes and depths" src="data:image/png;base64,{encoded}">'
        f"<table>{table}</table></html>\n"
    ).encode()


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>\n"


def _picture(data: Data, title: str) -> bytes:
    """The drawing as PNG."""
    parts, layers = _parts(data), _layers(data)
    height = 2 + 0.22 * max(len(parts), len(layers))
    out = io.BytesIO()
    # Names are text, not formulas, and may hold letters that the font lacks.
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure = Figure(figsize=(15, min(height, 200)), layout="constrained")
        figure.suptitle(title)
        left, right = figure.subplots(1, 2)
        _draw_parts(left, parts)
        _draw_depths(right, layers)
        figure.savefig(out, format="png", dpi=100)
    return out.getvalue()


def _parts(data: Data) -> list[tuple[str, int]]:
    """What the file consists of and its bytes: all of them, the largest tensors by name."""
    own = [(t["name"], t["bytes"]) for t in data["tensors"] if t["bytes"]]
    own.sort(key=lambda part: -part[1])
    rest = own[MOST_BARS:]
    parts = own[:MOST_BARS]
    if rest:
        parts.append((f"[{len(rest)} other tensors]", sum(size for _, size in rest)))
    bundled = sum(bundle["tensors"] for bundle in data["bundles"])
    shared = [
        (f"[{bundled} small tensors in bundles]", sum(b["bytes"] for b in data["bundles"])),
        ("[tables]", data["tables_bytes"]),
        ("[header and directory]", data["directory_bytes"]),
    ]
    return parts + [part for part in shared if part[1]]


def _layers(data: Data) -> list[Data]:
    """The layers that are drawn, in the order of the file: the largest ones where they are many."""
    layers = [t for t in data["tensors"] if t["depths"] is not None]
    largest = sorted(range(len(layers)), key=lambda i: -layers[i]["bytes"])[:MOST_BARS]
    return [layers[i] for i in sorted(largest)]


def _label(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LONGEST_LABEL else f"…{name[1 - LONGEST_LABEL :]}"


def _draw_parts(axes: Axes, parts: Sequence[tuple[str, int]]) -> None:
    total = sum(size for _, size in parts)
    positions = range(len(parts))
    bars = axes.barh(positions, [size for _, size in parts], color="tab:blue")
    axes.bar_label(bars, [f"{100 * size / total:.1f} %" for _, size in parts], fontsize=7)
    axes.set_yticks(positions, [_label(name) for name, _ in parts], fontsize=7)
    axes.set(title=f"where {total} bytes go", xlabel="bytes")
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.01)


def _draw_depths(axes: Axes, layers: Sequence[Data]) -> None:
    """For each layer the share of its channels that need so many bits."""
    which = "each layer" if len(layers) < MOST_BARS else f"the {MOST_BARS} largest layers"
    axes.set(title=f"bits that the channels of {which} need", xlabel="share of channels")
    axes.set_xlim(0, 1)
    if not layers:
        axes.set_yticks([])
        return
    deepest = max(len(layer["depths"]) for layer in layers)
    colours = mpl.colormaps["viridis"]
    start = [0.0] * len(layers)
    for bits in range(deepest):
        counts = [layer["depths"][bits] if bits < len(layer["depths"]) else 0 for layer in layers]
        if not any(counts):
            continue
        widths = [n / max(1, layer["channels"]) for n, layer in zip(counts, layers, strict=True)]
        colour = "lightgrey" if bits == 0 else colours(bits / deepest)
        label = f"{bits} bits" if bits else "absent"
        axes.barh(range(len(layers)), widths, left=start, color=colour, label=label)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    axes.set_yticks(range(len(layers)), [_label(layer["name"]) for layer in layers], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
