"""Vectors of small integers, and the stream they share in the head of a tensor (chapter 6).

Imports numpy only, besides the layers below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tqcodec.format import packing, stream
from tqcodec.format import reader as io
from tqcodec.format.reader import Reader
from tqcodec.format.registry import MAX_HEAD, MAX_VECTOR, VectorKind
from tqcodec.format.tables import Tables

CHUNK: Final = 1 << 16  # packed values taken at a time: whole bytes at every width


@dataclass(frozen=True, eq=False)
class Vector:
    """Small integers, one for each row, channel or class of something.

    Attributes:
        values: 0 to 255, uint8, 1-D.
        table: index of the table that codes them; None to lay them down without one.
    """

    values: NDArray[np.uint8]
    table: int | None = None

    @staticmethod
    def constant(value: int, length: int) -> Vector:
        """The same value `length` times, without allocating it."""
        return Vector(np.broadcast_to(np.uint8(value), (length,)))


def check_range(values: NDArray[np.integer], most: int, check: io.Check) -> None:
    """Check that the integers of a vector are in 0 .. `most`."""
    inside = not len(values) or 0 <= values.min() <= values.max() <= most
    check(bool(inside), "vector.range", f"a value above {most} or below 0")


class HeadWriter:
    """Writes the elements of a head; coded ones go to one stream at its end."""

    def __init__(self, tables: Tables) -> None:
        self.out = bytearray()
        self._tables = tables
        self._values: list[NDArray[np.signedinteger]] = []
        self._ids: list[NDArray[np.uint8]] = []

    def table(self, index: int) -> None:
        """The element `table`: an index into the tables of the file."""
        self._tables.check_index(index, io.check)
        self.out += io.u8(index)

    def rows(self, values: NDArray[np.signedinteger], ids: Sequence[int], length: int) -> None:
        """Rows of `length` integers for the stream, row k by table ``ids[k]``."""
        self._code(values.ravel(), np.repeat(np.array(ids, np.uint8), length))

    def _code(self, values: NDArray[np.signedinteger], ids: NDArray[np.uint8]) -> None:
        self._values.append(values)
        self._ids.append(ids)

    def vector(self, vector: Vector, length: int, most: int = MAX_VECTOR) -> None:
        """The element `vector` of `length` values, at most `most`."""
        values = vector.values
        io.check_length(len(values), length, "values of a vector")
        check_range(values, most, io.check)
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        if low == high:
            self.out += bytes([VectorKind.CONSTANT]) + io.uv(low)
        elif vector.table is None:
            width = high.bit_length()
            self.out += bytes([VectorKind.PACKED, width])
            self.out += packing.pack(values, np.full(len(values), width, np.uint8))
        else:
            self.out += bytes([VectorKind.CODED])
            self.table(vector.table)
            self._code(values.astype(np.int32), np.full(len(values), vector.table, np.uint8))

    def end(self) -> bytes:
        """The head: all elements, then the stream, if anything is coded."""
        if self._values:
            ids, values = np.concatenate(self._ids), np.concatenate(self._values)
            self.out += stream.write_stream(values[None], ids[None], self._tables)
        return bytes(self.out)


class HeadReader:
    """Reads the elements of a head. Coded ones are known after `end`."""

    def __init__(self, reader: Reader, tables: Tables, most: int = MAX_HEAD) -> None:
        self.reader = reader
        self.tables = tables
        self._ids: list[NDArray[np.uint8]] = []
        self._waiting: list[NDArray[np.int32]] = []
        self._total = 0
        self._most = most

    def table(self) -> int:
        """The element `table`: an index into the tables of the file."""
        index = self.reader.u8()
        self.tables.check_index(index, self.reader.check)
        return index

    def rows(self, ids: NDArray[np.uint8], length: int) -> NDArray[np.int32]:
        """Room for rows of `length` coded integers, row k by table ``ids[k]``, filled by `end`."""
        self._reserve(len(ids) * length)
        return self._code(np.repeat(ids, length)).reshape(len(ids), length)

    def _reserve(self, count: int) -> None:
        self._total += count
        fits = self._total <= self._most
        self.reader.check(fits, "head.size", f"{self._total} coded values in one head")

    def _code(self, ids: NDArray[np.uint8]) -> NDArray[np.int32]:
        self._ids.append(ids)
        self._waiting.append(np.zeros(len(ids), np.int32))
        return self._waiting[-1]

    def vector(self, length: int, most: int = MAX_VECTOR) -> PendingVector:
        """The element `vector` of `length` values, at most `most`."""
        kind = self.reader.u8()
        self.reader.check(kind in list(VectorKind), "vector.kind", f"unknown kind {kind}")
        if kind == VectorKind.CONSTANT:
            value = self.reader.uv(MAX_VECTOR)
            return PendingVector(most, self.reader, np.broadcast_to(np.int32(value), (length,)))
        if kind == VectorKind.PACKED:
            width = self.reader.u8()
            self.reader.check(1 <= width <= 8, "vector.width", f"width of {width} bits")
            self.reader.check(
                length * width <= 8 * self.reader.remaining, "segment.short", "vector cut off"
            )
            values = np.empty(length, np.int32)
            for start in range(0, length, CHUNK):
                part = values[start : start + CHUNK]
                part[:] = packing.unpack(self.reader, np.full(len(part), width, np.uint8))
            return PendingVector(most, self.reader, values)
        table = self.table()
        self._reserve(length)
        values = self._code(np.full(length, table, np.uint8))
        return PendingVector(most, self.reader, values, table)

    def end(self) -> None:
        """Read the stream, if anything is coded."""
        if not self._ids:
            return
        ids = np.concatenate(self._ids)
        values = stream.read_stream(self.reader, ids[None], self.tables)[1][0]
        start = 0
        for room in self._waiting:
            room[:] = values[start : start + len(room)]
            start += len(room)


@dataclass(frozen=True, eq=False)
class PendingVector:
    """A vector that may wait for the stream of its head."""

    most: int
    reader: Reader
    values: NDArray[np.int32]
    table: int | None = None

    def get(self) -> Vector:
        """The vector, once the head has been read to its end."""
        check_range(self.values, self.most, self.reader.check)
        if self.table is None and self.values.strides == (0,):
            return Vector.constant(int(self.values[0]) if len(self.values) else 0, len(self.values))
        return Vector(self.values.astype(np.uint8), self.table)
