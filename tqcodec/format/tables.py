"""Frequency tables, shared by the whole file (chapter 5).

Imports numpy only, besides the layers below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from tqcodec.format import reader as io
from tqcodec.format.range_coder import Model
from tqcodec.format.reader import Reader
from tqcodec.format.registry import (
    MAX_ALPHABET,
    MAX_LOW_BITS,
    MAX_TABLE_LOW,
    MAX_TABLES,
    MAX_VALUE,
    MAX_WEIGHTS,
    TABLE_SUM,
)

SYMMETRIC, ESCAPE = 1, 2


@dataclass(frozen=True)
class Table:
    """Weights of the values ``low .. low + len(weights) - 1`` and of the escape.

    A value v is coded as the symbol ``v >> low_bits`` by the weights, then its `low_bits` low bits
    as they are. A symbol outside the alphabet is coded as the escape.

    Attributes:
        low: smallest symbol of the alphabet.
        weights: 12-bit weights, each at least 1.
        escape: weight of the escape, 0 if there is none. ``sum(weights) + escape == 4096``.
        low_bits: bits of each value that are not entropy coded.
    """

    low: int
    weights: tuple[int, ...]
    escape: int = 0
    low_bits: int = 0

    @cached_property
    def all_weights(self) -> tuple[int, ...]:
        """Weights in the order of the coder's alphabet: the escape is the last."""
        return (*self.weights, self.escape) if self.escape else self.weights

    @property
    def codes_nothing(self) -> bool:
        """True for a table of one symbol, for which the coder is not called."""
        return len(self.all_weights) == 1

    @cached_property
    def model(self) -> Model:
        """The coder's form of the table, made once."""
        return Model(self.all_weights)

    def is_symmetric(self) -> bool:
        """True where the alphabet is -h .. h and the weights of s and -s agree."""
        return 2 * self.low == 1 - len(self.weights) and self.weights == self.weights[::-1]


class Tables(Sequence[Table]):
    """The tables of a file, also as arrays with one entry for each table.

    Attributes:
        low: smallest symbols, int32.
        size: symbols without the escape, int32.
        escapes: True where there is an escape.
        low_bits: bits not entropy coded, uint8.
    """

    def __init__(self, tables: Iterable[Table]) -> None:
        self._tables = tuple(tables)

    # The arrays are made when they are wanted: a table that breaks a rule may not fit them.

    @cached_property
    def low(self) -> NDArray[np.int32]:
        return np.array([t.low for t in self._known], np.int32)

    @cached_property
    def size(self) -> NDArray[np.int32]:
        return np.array([len(t.weights) for t in self._known], np.int32)

    @cached_property
    def escapes(self) -> NDArray[np.bool_]:
        return np.array([t.escape > 0 for t in self._known])

    @cached_property
    def low_bits(self) -> NDArray[np.uint8]:
        return np.array([t.low_bits for t in self._known], np.uint8)

    @property
    def _known(self) -> tuple[Table, ...]:
        """One table at least, so that the arrays can be indexed by an empty array of ids."""
        return self._tables or (Table(0, (TABLE_SUM,)),)

    @cached_property
    def packed(self) -> PackedTables:
        """The tables in the layout of the native loops, made once."""
        return PackedTables(self)

    def check_index(self, index: int, check: io.Check) -> None:
        """Check that there is a table of this number."""
        check(0 <= index < len(self), "table.index", f"no table {index}")

    @overload
    def __getitem__(self, index: int) -> Table: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Table, ...]: ...

    def __getitem__(self, index: int | slice) -> Table | tuple[Table, ...]:
        return self._tables[index]

    def __len__(self) -> int:
        return len(self._tables)


class PackedTables:
    """All tables in a few arrays.

    Attributes:
        numbers: int32 (5, tables): first weight, low, size, has an escape, low bits.
        weights: uint16, of the symbols of all tables, escapes included.
        starts: uint16, sums of the weights before each symbol in its table.
    """

    def __init__(self, tables: Tables) -> None:
        weights = [np.array(t.all_weights, np.int64) for t in tables]
        weights = weights or [np.array([TABLE_SUM])]
        lengths = np.array([len(w) for w in weights])
        columns = (np.cumsum(lengths) - lengths, tables.low, tables.size, tables.escapes)
        self.numbers = np.stack([*columns, tables.low_bits]).astype(np.int32)
        self.weights = np.concatenate(weights).astype(np.uint16)
        self.starts = np.concatenate([np.cumsum(w) - w for w in weights]).astype(np.uint16)


def write_tables(tables: Sequence[Table]) -> bytes:
    """The element `tables`."""
    out = bytearray(io.uv(len(tables)))
    for table in tables:
        symmetric = table.is_symmetric()
        out.append((SYMMETRIC if symmetric else 0) | (ESCAPE if table.escape else 0))
        out += io.u8(table.low_bits)
        out += io.uv(-table.low) if symmetric else io.sv(table.low) + io.uv(len(table.weights))
        stored = table.weights[-table.low :] if symmetric else table.weights
        for weight in (*stored, table.escape) if table.escape else stored:
            out += io.uv(weight)
    return bytes(out)


def read_tables(reader: Reader) -> Tables:
    """Inverse of `write_tables`; checks sums, order and ranges."""
    count = reader.uv()
    reader.check(count <= MAX_TABLES, "table.count", f"{count} tables, at most {MAX_TABLES}")
    tables, total = [], 0
    for _ in range(count):
        tables.append(_read_table(reader, MAX_WEIGHTS - total))
        total += len(tables[-1].weights)
    return Tables(tables)


def _read_table(reader: Reader, most: int) -> Table:
    flags, low_bits = reader.u8(), reader.u8()
    reader.check(flags <= SYMMETRIC | ESCAPE, "table.flags", f"unknown flags {flags}")
    reader.check(low_bits <= MAX_LOW_BITS, "table.low_bits", f"{low_bits} low bits")
    if flags & SYMMETRIC:
        half = reader.uv(MAX_ALPHABET)
        low, size = -half, 2 * half + 1
    else:
        low, size = reader.sv(MAX_TABLE_LOW), reader.uv(MAX_ALPHABET)
    reader.check(1 <= size < MAX_ALPHABET, "table.size", f"alphabet of {size} symbols")
    reader.check(size <= most, "table.total", f"more than {MAX_WEIGHTS} weights")
    extent = max(-low, low + size) << low_bits
    reader.check(extent <= MAX_VALUE, "table.range", "values above 31 bits")
    stored = [reader.uv() for _ in range(-low + 1 if flags & SYMMETRIC else size)]
    weights = (*stored[:0:-1], *stored) if flags & SYMMETRIC else tuple(stored)
    escape = reader.uv() if flags & ESCAPE else 0
    least = min(weights) if not flags & ESCAPE else min(*weights, escape)
    reader.check(least >= 1, "table.weight", "a weight of 0")
    total = sum(weights) + escape
    reader.check(total == TABLE_SUM, "table.sum", f"weights sum to {total}, not {TABLE_SUM}")
    return Table(low, weights, escape, low_bits)
