"""The record of every measurement, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

from benchmarks.common.tables import cell, print_aligned

SECTIONS = {
    "size": "File bytes at equal relative weight MSE",
    "rounding": "File bytes at the error of rounding by the largest magnitude of a channel",
    "speed": "Speed with one worker and peak memory, at equal relative weight MSE",
    "lossless": "Lossless",
}


@dataclass(frozen=True)
class Row:
    """One measurement; what was not measured, or does not apply, is not a number."""

    section: str
    network: str
    codec: str
    bytes: int
    bits_per_parameter: float
    """Of the whole file, over the elements of all floating-point tensors."""
    mse: float = nan
    """Relative squared error of the weight matrices."""
    to_nncodec: float = nan
    """Bytes over those of NNCodec at the same error, its better setting."""
    vector_mse: float = nan
    """Relative squared error of the side tensors."""
    encode_speed: float = nan
    """Million weights in a second of CPU time."""
    decode_speed: float = nan
    encode_memory: float = nan
    """Growth of the peak resident memory over the float32 size of the network."""
    decode_memory: float = nan


_FORMATS = {
    "mse": ("MSE", "{:.3g}"),
    "bytes": ("bytes", "{:,d}"),
    "bits_per_parameter": ("bits/param", "{:.3f}"),
    "to_nncodec": ("to NNCodec", "{:.3f}"),
    "vector_mse": ("side MSE", "{:.1e}"),
    "encode_speed": ("enc Mw/s", "{:.2f}"),
    "decode_speed": ("dec Mw/s", "{:.2f}"),
    "encode_memory": ("enc mem", "{:.2f} x"),
    "decode_memory": ("dec mem", "{:.2f} x"),
}


def print_tables(rows: Sequence[Row]) -> None:
    """Print one aligned table for every section that has rows."""
    for section, title in SECTIONS.items():
        chosen = [row for row in rows if row.section == section]
        if chosen:
            print(f"\n{title}\n")
            print_aligned(_cells(chosen))


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    shown = [name for name in _FORMATS if not all(isnan(getattr(row, name)) for row in rows)]
    head = ["network", "codec", *(_FORMATS[name][0] for name in shown)]
    return [head] + [
        [row.network, row.codec, *(cell(getattr(row, n), _FORMATS[n][1]) for n in shown)]
        for row in rows
    ]
