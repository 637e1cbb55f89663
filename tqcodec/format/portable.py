"""Coding of a stream's symbols with numpy and constriction (chapter 5).

Imports numpy only, besides the layers below.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tqcodec.format.range_coder import RangeReader, RangeWriter
from tqcodec.format.reader import Reader
from tqcodec.format.registry import MAX_VALUE
from tqcodec.format.tables import Tables
from tqcodec.format.trellis import Walk, coefficients_of


def _runs(ids: NDArray[np.uint8]) -> tuple[NDArray[np.int64], list[tuple[int, int, int]]]:
    """Order by table, then position; and (table, start, stop) of each run in that order."""
    order = np.argsort(ids, kind="stable")
    counts = np.bincount(ids)
    stops = np.cumsum(counts)
    runs = [(int(i), int(stops[i] - counts[i]), int(stops[i])) for i in np.flatnonzero(counts)]
    return order, runs


def encode(
    indices: NDArray[np.int32], ids: NDArray[np.uint8], tables: Tables, steps: int
) -> tuple[bytes, NDArray[np.int32]]:
    """Words and escapes of a tile; see `stream.write_stream`."""
    coder = RangeWriter()
    escapes = [np.zeros(0, np.int32)]
    symbols = indices >> tables.low_bits[ids]
    walk = Walk(ids.shape, steps)
    for rows in walk.rows():
        part, step_ids = symbols[rows].ravel(), ids[rows].ravel()
        if steps:
            step_ids = step_ids + walk.quantizer(len(part))
            walk.advance(indices[rows].ravel())
        order, runs = _runs(step_ids)
        ordered, owners = part[order], step_ids[order]
        numbers, sizes = ordered - tables.low[owners], tables.size[owners]
        outside = (numbers < 0) | (numbers >= sizes)
        if outside.any():
            if not tables.escapes[owners[outside]].all():
                raise ValueError("a symbol outside a table without an escape")
            escapes.append(ordered[outside])
            numbers[outside] = sizes[outside]
        for table, start, stop in runs:
            if not tables[table].codes_nothing:
                coder.put(numbers[start:stop], tables[table].model)
    return coder.words(), np.concatenate(escapes)


def decode(
    reader: Reader,
    words: memoryview,
    escapes: NDArray[np.int32],
    low: NDArray[np.uint32],
    ids: NDArray[np.uint8],
    tables: Tables,
    steps: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Coefficients and indices of a tile; see `stream.read_stream`."""
    coder = RangeReader(words, reader)
    indices, coefficients = np.empty(ids.shape, np.int32), np.empty(ids.shape, np.int32)
    low = low.reshape(ids.shape) if low.size else np.zeros(ids.shape, np.uint32)
    walk, used = Walk(ids.shape, steps), 0
    for rows in walk.rows():
        step_ids = ids[rows].ravel()
        quantizer = walk.quantizer(len(step_ids)) if steps else None
        if quantizer is not None:
            step_ids = step_ids + quantizer
        symbols, taken = _read_step(coder, step_ids, escapes[used:], tables, reader)
        used += taken
        values = _join(symbols, low[rows].ravel(), tables.low_bits[step_ids], reader)
        indices[rows] = values.reshape(indices[rows].shape)
        if quantizer is not None:
            walk.advance(values)
            values = coefficients_of(values, quantizer)
        coefficients[rows] = values.reshape(indices[rows].shape)
    coder.end()
    left = len(escapes) - used
    reader.check(left == 0, "stream.escapes", f"{left} escapes left over")
    return coefficients, indices


def _read_step(
    coder: RangeReader,
    ids: NDArray[np.uint8],
    escapes: NDArray[np.int32],
    tables: Tables,
    reader: Reader,
) -> tuple[NDArray[np.int32], int]:
    """Symbols of one step, by position, and the number of escapes among them."""
    order, runs = _runs(ids)
    numbers = np.zeros(len(ids), np.int32)
    for table, start, stop in runs:
        if not tables[table].codes_nothing:
            numbers[start:stop] = coder.take(stop - start, tables[table].model)
    owners = ids[order]
    symbols = numbers + tables.low[owners]
    outside = np.flatnonzero((numbers == tables.size[owners]) & tables.escapes[owners])
    if len(outside):
        values, owners = escapes[: len(outside)], owners[outside]
        enough = len(values) == len(outside)
        reader.check(enough, "stream.escapes", "fewer escapes than coded")
        number = values.astype(np.int64) - tables.low[owners]
        inside = (number >= 0) & (number < tables.size[owners])
        reader.check(not inside.any(), "stream.escape", "an escape that needs none")
        symbols[outside] = values
    out = np.empty(len(ids), np.int32)
    out[order] = symbols
    return out, len(outside)


def _join(
    symbols: NDArray[np.int32],
    low: NDArray[np.uint32],
    widths: NDArray[np.uint8],
    reader: Reader,
) -> NDArray[np.int32]:
    """Values from symbols and low bits: ``symbol << width | low``."""
    values = (symbols.astype(np.int64) << widths.astype(np.int64)) + low
    if len(values):
        most = max(int(values.max()), -int(values.min()))
        reader.check(most <= MAX_VALUE, "stream.range", "a value above 2 ** 30")
    return values.astype(np.int32)
