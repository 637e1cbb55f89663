"""Tables, the range encoder and streams (chapter 5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from layout.elements import pack, sv, u32, uv

TABLE_SUM = 4096
SYMMETRIC, ESCAPE = 1, 2
# Next state of the trellis by state and parity of the index (7.2).
NEXT_STATE = ((0, 2), (5, 7), (1, 3), (4, 6), (2, 0), (7, 5), (3, 1), (6, 4))


@dataclass(frozen=True)
class Table:
    """A table: weights of the symbols from `low` on, and of the escape if there is one."""

    low: int
    weights: tuple[int, ...]
    escape: int = 0
    low_bits: int = 0
    symmetric: bool = False

    def number(self, symbol: int) -> int:
        """Number of the member that stands for a symbol."""
        inside = self.low <= symbol < self.low + len(self.weights)
        if not inside and not self.escape:
            raise ValueError(f"no escape for {symbol}")
        return symbol - self.low if inside else len(self.weights)

    @property
    def members(self) -> tuple[int, ...]:
        """Weights of all members."""
        return (*self.weights, self.escape) if self.escape else self.weights

    def build(self) -> bytes:
        """The element `table`."""
        flags = (SYMMETRIC if self.symmetric else 0) | (ESCAPE if self.escape else 0)
        out = bytes([flags, self.low_bits])
        stored = self.weights
        if self.symmetric:
            out += uv(-self.low)
            stored = self.weights[-self.low :]
        else:
            out += sv(self.low) + uv(len(self.weights))
        out += b"".join(map(uv, stored))
        return out + uv(self.escape) if self.escape else out


def even(low: int, size: int, escape: int = 0, low_bits: int = 0) -> Table:
    """A table of about equal weights."""
    share, more = divmod(TABLE_SUM - escape, size)
    return Table(low, (share + more, *[share] * (size - 1)), escape, low_bits)


def tables(items: Sequence[Table]) -> bytes:
    """The element `tables`."""
    return uv(len(items)) + b"".join(item.build() for item in items)


class RangeEncoder:
    """The encoder of 5.3, which also tells what happened.

    Attributes:
        events: "held" for each word held back, "carry" and "fill" for how held words were resolved,
            "seal carry" and "seal fill" if only the end did, "zero" for a last word of 0.
    """

    def __init__(self) -> None:
        self.words: list[int] = []
        self.lower, self.range = 0, 2**64 - 1
        self.held = self.first = 0
        self.used = False
        self.events: list[str] = []

    def _release(self, carry: bool, event: str) -> None:
        self.events.append(event + ("carry" if carry else "fill"))
        fill = 0 if carry else 2**32 - 1
        self.words += [(self.first + carry) % 2**32] + [fill] * (self.held - 1)
        self.held = 0

    def encode(self, start: int, weight: int) -> None:
        """Code one member of an alphabet."""
        self.used = True
        scale = (self.range >> 24) << 12
        self.range = scale * weight
        new = (self.lower + scale * start) % 2**64
        if self.held and (new + self.range) % 2**64 > new:
            self._release(new < self.lower, "")
        self.lower = new
        if self.range < 2**32:
            top = self.lower >> 32
            self.range <<= 32
            self.lower = (self.lower << 32) % 2**64
            if self.held:
                self.held += 1
                self.events.append("held")
            elif (self.lower + self.range) % 2**64 > self.lower:
                self.words.append(top)
            else:
                self.held, self.first = 1, top
                self.events.append("held")

    def finish(self) -> list[int]:
        """All words."""
        if not self.used:
            return []
        point = (self.lower + 2**32 - 1) % 2**64
        if self.held:
            self._release(point < self.lower, "seal ")
        self.words.append(point >> 32)
        if (self.lower + self.range) % 2**64 >> 32 == point >> 32:
            self.words.append(0)
            self.events.append("zero")
        return self.words


def encode(numbers: Iterable[tuple[Table, int]]) -> RangeEncoder:
    """The encoder after members of tables, by their numbers."""
    coder = RangeEncoder()
    for table, number in numbers:
        members = table.members
        if len(members) > 1:
            coder.encode(sum(members[:number]), members[number])
    return coder


@dataclass(frozen=True)
class Parts:
    """The elements of a stream, to be changed one at a time."""

    words: tuple[int, ...] = ()
    escapes: tuple[int, ...] = ()
    escape_size: int = 1
    low: bytes = b""

    def build(self) -> bytes:
        """The element `stream`."""
        out = uv(len(self.words)) + uv(len(self.escapes))
        if self.escapes:
            out += bytes([self.escape_size])
        out += b"".join(map(u32, self.words))
        size = self.escape_size
        out += b"".join(e.to_bytes(size, "little", signed=True) for e in self.escapes)
        return out + self.low


def stream_parts(
    values: Sequence[int],
    ids: Sequence[int],
    known: Sequence[Table],
    columns: int = 0,
    steps: int = 0,
) -> Parts:
    """The stream of a matrix.

    Args:
        values: integers by position.
        ids: table of each; with a trellis that of quantizer 0.
        known: the tables of the file.
        columns: of the matrix; needed with a trellis only.
        steps: rows of a segment of the trellis, 0 without a trellis.
    """
    states: dict[tuple[int, int], int] = {}
    rows = len(values) // columns if columns else 1
    numbers: list[tuple[Table, int]] = []
    escapes: list[int] = []
    for step in range(min(steps, rows) if steps else 1):
        chosen: list[tuple[int, int]] = []
        for position in range(len(values)):
            key = (0, 0)
            if steps:
                row, column = divmod(position, columns)
                if row % steps != step:
                    continue
                key = (row // steps, column)
            state = states.get(key, 0)
            chosen.append((ids[position] + (state & 1), position))
            states[key] = NEXT_STATE[state][values[position] & 1] if steps else 0
        for table_id, position in sorted(chosen):
            table = known[table_id]
            symbol = values[position] >> table.low_bits
            numbers.append((table, table.number(symbol)))
            if not table.low <= symbol < table.low + len(table.weights):
                escapes.append(symbol)
    size = next(
        s for s in (1, 2, 4) if all(-(1 << 8 * s - 1) <= e < 1 << 8 * s - 1 for e in escapes)
    )
    low = pack(values, [known[i].low_bits for i in ids])
    return Parts(tuple(encode(numbers).finish()), tuple(escapes), size, low)


def stream(
    values: Sequence[int],
    ids: Sequence[int],
    known: Sequence[Table],
    columns: int = 0,
    steps: int = 0,
) -> bytes:
    """The element `stream` of a matrix."""
    return stream_parts(values, ids, known, columns, steps).build()


def trellis(indices: Sequence[Sequence[int]], steps: int) -> list[list[int]]:
    """Coefficients of the indices of one tile."""
    out = [list(row) for row in indices]
    for column in range(len(out[0]) if out else 0):
        state = 0
        for row in range(len(out)):
            state = state if row % steps else 0
            index = out[row][column]
            sign = (index > 0) - (index < 0)
            out[row][column] = 2 * index - (sign if state & 1 else 0)
            state = NEXT_STATE[state][index & 1]
    return out
