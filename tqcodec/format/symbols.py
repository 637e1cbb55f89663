"""Streams of coded integers: words, escapes and low bits (chapter 5).

A stream is coded in steps; within a step values are ordered by table, then by position, so that
each table is one run of the range coder. Imports numpy only, besides the layers below.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tqcodec.format import bits
from tqcodec.format import reader as io
from tqcodec.format.entropy import RangeReader, RangeWriter
from tqcodec.format.reader import Reader
from tqcodec.format.registry import MAX_VALUE
from tqcodec.format.tables import Table

ESCAPE_SIZES = (1, 2, 4)  # bytes of an escaped symbol


def low_widths(ids: NDArray[np.uint8], tables: Sequence[Table]) -> NDArray[np.uint8]:
    """Number of low bits of each value whose table is ``ids[i]``."""
    return np.array([table.low_bits for table in tables] or [0], np.uint8)[ids]


class _Alphabets:
    """What the steps need to know of all tables, as arrays."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self.low = np.array([t.low for t in tables] or [0], np.int32)
        self.size = np.array([len(t.weights) for t in tables] or [0], np.int32)
        self.escapes = np.array([t.escape > 0 for t in tables] or [False])


def _runs(ids: NDArray[np.uint8]) -> tuple[NDArray[np.int64], list[tuple[int, int, int]]]:
    """Order by table, then position; and (table, start, stop) of each run in that order."""
    order = np.argsort(ids, kind="stable")
    stops = np.cumsum(np.bincount(ids)).tolist()
    starts = [0, *stops[:-1]]
    runs = [(i, a, b) for i, (a, b) in enumerate(zip(starts, stops, strict=True)) if b > a]
    return order, runs


class SymbolWriter:
    """Collects a stream, step by step."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._alphabets = _Alphabets(tables)
        self._coder = RangeWriter()
        self._escapes: list[NDArray[np.int32]] = []

    def step(self, symbols: NDArray[np.int32], ids: NDArray[np.uint8]) -> None:
        """Append one step: symbols (values without their low bits) and their tables, 1-D."""
        order, runs = _runs(ids)
        known, ordered, tables = self._alphabets, symbols[order], ids[order]
        indices, sizes = ordered - known.low[tables], known.size[tables]
        outside = (indices < 0) | (indices >= sizes)
        if outside.any():
            if not known.escapes[tables[outside]].all():
                raise ValueError("a symbol outside a table without an escape")
            self._escapes.append(ordered[outside])
            indices[outside] = sizes[outside]
        for table_id, start, stop in runs:
            table = known.tables[table_id]
            if not table.codes_nothing:
                self._coder.put(indices[start:stop], table.model)

    def end(self, low: NDArray[np.uint32], widths: NDArray[np.uint8]) -> bytes:
        """The element `stream`. `low` and `widths` are the low bits of all values, by position."""
        words = self._coder.words()
        escapes = np.concatenate(self._escapes) if self._escapes else np.zeros(0, np.int32)
        out = io.uv(len(words) // 4) + io.uv(len(escapes))
        if len(escapes):
            most = max(int(escapes.max()), -1 - int(escapes.min()))
            size = next(s for s in ESCAPE_SIZES if most < 1 << (8 * s - 1))
            out += bytes([size]) + words + escapes.astype(f"<i{size}").tobytes()
        else:
            out += words
        return out + bits.pack(low, widths)


class SymbolReader:
    """Reads a stream step by step.

    Args:
        reader: cursor at the element `stream`, left behind it.
        tables: the tables of the file.
        widths: number of low bits of all values, by position.
    """

    def __init__(self, reader: Reader, tables: Sequence[Table], widths: NDArray[np.uint8]) -> None:
        self._alphabets = _Alphabets(tables)
        self._reader = reader
        words, escapes = reader.uv(), reader.uv(len(widths))
        size = 0
        if escapes:
            size = reader.u8()
            reader.check(size in ESCAPE_SIZES, "stream.escape_size", f"escapes of {size} bytes")
        self._coder = RangeReader(reader.take(4 * words), reader)
        raw = reader.take(escapes * size)
        self._escapes = np.frombuffer(raw, f"<i{size}" if size else "u1").astype(np.int32)
        self._next_escape = 0
        self.low = bits.unpack(reader, widths)

    def step(self, ids: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The symbols of the next step, by position."""
        order, runs = _runs(ids)
        known = self._alphabets
        indices = np.zeros(len(ids), np.int32)
        for table_id, start, stop in runs:
            table = known.tables[table_id]
            if not table.codes_nothing:
                indices[start:stop] = self._coder.take(stop - start, table.model)
        tables = ids[order]
        symbols = indices + known.low[tables]
        outside = np.flatnonzero((indices == known.size[tables]) & known.escapes[tables])
        if len(outside):
            symbols[outside] = self._take_escapes(tables[outside])
        out = np.empty(len(ids), np.int32)
        out[order] = symbols
        return out

    def _take_escapes(self, tables: NDArray[np.uint8]) -> NDArray[np.int32]:
        start, self._next_escape = self._next_escape, self._next_escape + len(tables)
        values = self._escapes[start : self._next_escape]
        enough = len(values) == len(tables)
        self._reader.check(enough, "stream.escapes", "fewer escapes than coded")
        index = values.astype(np.int64) - self._alphabets.low[tables]
        inside = (index >= 0) & (index < self._alphabets.size[tables])
        self._reader.check(not inside.any(), "stream.escape", "an escape that needs none")
        return values

    def end(self) -> None:
        """Check that the words end as they must and that no escape is left."""
        self._coder.end()
        left = len(self._escapes) - self._next_escape
        self._reader.check(left == 0, "stream.escapes", f"{left} escapes left over")


def write_static(
    values: NDArray[np.int32], ids: NDArray[np.uint8], tables: Sequence[Table]
) -> bytes:
    """A stream of one step: the table of each value is known beforehand."""
    widths = low_widths(ids, tables)
    writer = SymbolWriter(tables)
    writer.step(values >> widths, ids)
    return writer.end((values & ((1 << widths.astype(np.int32)) - 1)).astype(np.uint32), widths)


def read_static(
    reader: Reader, ids: NDArray[np.uint8], tables: Sequence[Table]
) -> NDArray[np.int32]:
    """Inverse of `write_static`."""
    widths = low_widths(ids, tables)
    source = SymbolReader(reader, tables, widths)
    symbols = source.step(ids)
    source.end()
    return join(symbols, source.low, widths, reader)


def join(
    symbols: NDArray[np.int32],
    low: NDArray[np.uint64],
    widths: NDArray[np.uint8],
    reader: Reader,
) -> NDArray[np.int32]:
    """Values from symbols and low bits: ``symbol << width | low``."""
    if not widths.any():
        values = symbols
    else:
        wide = (symbols.astype(np.int64) << widths.astype(np.int64)) | low.astype(np.int64)
        values = np.clip(wide, -MAX_VALUE - 1, MAX_VALUE + 1).astype(np.int32)
    if len(values):
        most = max(int(values.max()), -int(values.min()))
        reader.check(most <= MAX_VALUE, "stream.range", "a value above 2 ** 30")
    return values
