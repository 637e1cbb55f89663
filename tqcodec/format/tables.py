"""Frequency tables, shared by the whole file (chapter 5).

Imports numpy only, besides the layers below.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tqcodec.format import reader as io
from tqcodec.format.entropy import Model
from tqcodec.format.reader import Reader
from tqcodec.format.registry import MAX_ALPHABET, MAX_LOW_BITS, MAX_TABLES, MAX_VALUE, TABLE_SUM

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


def write_tables(tables: tuple[Table, ...]) -> bytes:
    """The element `tables`."""
    out = bytearray(io.uv(len(tables)))
    for table in tables:
        symmetric = table.is_symmetric()
        out.append((SYMMETRIC if symmetric else 0) | (ESCAPE if table.escape else 0))
        out.append(table.low_bits)
        out += io.uv(-table.low) if symmetric else io.sv(table.low) + io.uv(len(table.weights))
        stored = table.weights[-table.low :] if symmetric else table.weights
        for weight in (*stored, table.escape) if table.escape else stored:
            out += io.uv(weight)
    return bytes(out)


def read_tables(reader: Reader) -> tuple[Table, ...]:
    """Inverse of `write_tables`; checks sums, order and ranges."""
    count = reader.uv()
    reader.check(count <= MAX_TABLES, "table.count", f"{count} tables, at most {MAX_TABLES}")
    return tuple(_read_table(reader) for _ in range(count))


def _read_table(reader: Reader) -> Table:
    flags, low_bits = reader.u8(), reader.u8()
    reader.check(flags <= SYMMETRIC | ESCAPE, "table.flags", f"unknown flags {flags}")
    reader.check(low_bits <= MAX_LOW_BITS, "table.low_bits", f"{low_bits} low bits")
    if flags & SYMMETRIC:
        half = reader.uv(MAX_ALPHABET)
        low, size = -half, 2 * half + 1
    else:
        low, size = reader.sv(1 << 24), reader.uv(MAX_ALPHABET)
    reader.check(1 <= size < MAX_ALPHABET, "table.size", f"alphabet of {size} symbols")
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
