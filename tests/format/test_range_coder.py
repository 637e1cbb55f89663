"""The range coder and streams of integers against an implementation in plain integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import NEXT_STATE, Array, codable, coders, rngs, tables, trellis_path, using

from tqcodec.errors import DecodeError, MalformedError
from tqcodec.format import native, portable
from tqcodec.format import reader as io
from tqcodec.format.reader import Reader
from tqcodec.format.registry import MAX_ALPHABET, MAX_TABLES
from tqcodec.format.stream import read_stream, write_stream
from tqcodec.format.tables import ESCAPE, SYMMETRIC, Table, Tables, read_tables, write_tables

U32, U64 = (1 << 32) - 1, (1 << 64) - 1


@dataclass
class PlainEncoder:
    """The encoder of the specification, one symbol at a time."""

    lower: int = 0
    range: int = U64
    held: int = 0
    first: int = 0
    words: list[int] = field(default_factory=list)

    def resolve(self, carry: bool) -> None:
        if self.held:
            self.words += [self.first + carry] + [0 if carry else U32] * (self.held - 1)
        self.held = 0

    def put(self, start: int, frequency: int) -> None:
        scale = self.range >> 24
        self.range, fresh = scale * frequency, self.lower + scale * start & U64
        if self.held and fresh + self.range & U64 > fresh:
            self.resolve(fresh < self.lower)
        self.lower = fresh
        if self.range > U32:
            return
        top, self.lower, self.range = self.lower >> 32, self.lower << 32 & U64, self.range << 32
        if self.held:
            self.held += 1
        elif self.lower + self.range & U64 > self.lower:
            self.words.append(top)
        else:
            self.held, self.first = 1, top

    def seal(self) -> bytes:
        if self.range != U64:
            point = self.lower + U32 & U64
            self.resolve(point < self.lower)
            self.words.append(point >> 32)
            if (self.lower + self.range & U64) >> 32 == point >> 32:
                self.words.append(0)
        return np.array(self.words, "<u4").tobytes()


def plain_words(indices: Array, ids: Array, known: Tables, steps: int) -> tuple[bytes, list[int]]:
    """Words and escapes of a tile, in the order that the specification gives."""
    rows, columns = indices.shape
    state = np.zeros(indices.shape, int)  # before each position
    for r in range(rows if steps else 0):
        for c in range(columns):
            if r % steps:
                state[r, c] = NEXT_STATE[state[r - 1, c]][indices[r - 1, c] & 1]
    coder, escapes = PlainEncoder(), []
    step = np.arange(rows) % steps if steps else np.zeros(rows, int)
    owners = ids.astype(int) + (state & 1)
    every = [(step[r], owners[r, c], r, c) for r in range(rows) for c in range(columns)]
    for _, owner, r, c in sorted(every):
        table, symbol = known[int(owner)], int(indices[r, c]) >> known[int(owner)].low_bits
        number = symbol - table.low
        if not 0 <= number < len(table.weights):
            escapes.append(symbol)
            number = len(table.weights)
        weights = table.all_weights
        if len(weights) > 1:
            coder.put(sum(weights[:number]) << 12, weights[number] << 12)
    return coder.seal(), escapes


@dataclass(frozen=True)
class Stream:
    indices: Array
    ids: Array
    tables: Tables
    steps: int


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    known, rng = draw(tables()), draw(rngs)
    steps = draw(st.integers(0, 4))
    shape = (draw(st.integers(0, 9)), draw(st.integers(0, 9)))
    ids = rng.integers(0, len(known) // 2, shape).astype(np.uint8) * 2
    indices = np.zeros(shape, np.int32)
    for i in range(0, len(known), 2):
        indices[ids == i] = codable(rng, known[i], int((ids == i).sum()), 1 << 20)
    return Stream(indices, ids, known, steps)


@coders
@given(stream=streams())
def test_words_are_those_of_the_plain_encoder(coder: str, stream: Stream) -> None:
    words, escapes = plain_words(stream.indices, stream.ids, stream.tables, stream.steps)
    with using(coder):
        module = native if coder == "native" else portable
        found = module.encode(stream.indices, stream.ids, stream.tables, stream.steps)
    assert found[0] == words
    assert found[1].tolist() == escapes


@coders
@given(stream=streams(), rest=st.binary(max_size=2))
def test_reading_a_stream_gives_what_was_written(coder: str, stream: Stream, rest: bytes) -> None:
    with using(coder):
        data = write_stream(stream.indices, stream.ids, stream.tables, stream.steps)
        reader = Reader(data + rest)
        coefficients, indices = read_stream(reader, stream.ids, stream.tables, stream.steps)
    expected = trellis_path(stream.indices, stream.steps) if stream.steps else stream.indices
    assert np.array_equal(indices, stream.indices)
    assert np.array_equal(coefficients, expected)
    assert reader.remaining == len(rest)


def decoded(coder: str, data: bytes, stream: Stream) -> list[int] | None:
    """Indices, or None where the stream is refused."""
    with using(coder):
        try:
            return read_stream(Reader(data), stream.ids, stream.tables, stream.steps)[1].tolist()
        except DecodeError:
            return None


@given(streams(), st.data())
def test_both_coders_refuse_and_read_the_same_mutants(stream: Stream, data: st.DataObject) -> None:
    good = bytearray(write_stream(stream.indices, stream.ids, stream.tables, stream.steps))
    for _ in range(data.draw(st.integers(1, 2))):
        good[data.draw(st.integers(0, len(good) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert decoded("native", bytes(good), stream) == decoded("portable", bytes(good), stream)


def with_words(data: bytes, words: bytes) -> bytes:
    """A stream without escapes and low bits, its words replaced."""
    return io.uv(len(words) // 4) + data[1 : len(data) - 4 * data[0]] + words


@coders
@given(rng=rngs, count=st.integers(0, 60), bias=st.sampled_from([1, 2000, 4095]))
def test_the_end_of_the_words_is_canonical(
    coder: str, rng: np.random.Generator, count: int, bias: int
) -> None:
    known = Tables([Table(0, (bias, 4096 - bias))])
    values = rng.integers(0, 2, (1, count)).astype(np.int32)
    stream = Stream(values, np.zeros(values.shape, np.uint8), known, 0)
    data = write_stream(values, stream.ids, known)
    words = data[2:]
    assert decoded(coder, with_words(data, words), stream) == values.tolist()
    assert decoded(coder, with_words(data, words + bytes(4)), stream) is None
    assume(count)
    assert decoded(coder, with_words(data, words[:-4]), stream) is None


@coders
def test_a_value_outside_a_table_without_escape_cannot_be_written(coder: str) -> None:
    known = Tables([Table(0, (4000, 96))])
    with using(coder), pytest.raises(ValueError, match="without an escape"):
        write_stream(np.array([[2]], np.int32), np.zeros((1, 1), np.uint8), known)


ESCAPING = Tables([Table(0, (4095,), escape=1)])


@coders
@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("stream.escape_size", lambda head, words, escapes: head + b"\x03" + words + escapes * 3),
        ("stream.escapes", lambda head, words, escapes: b"\x01\x00" + words),
        ("stream.escapes", lambda head, words, escapes: b"\x01\x02\x01" + words + escapes * 2),
        ("stream.escape", lambda head, words, escapes: head + b"\x01" + words + b"\x00"),
        ("segment.short", lambda head, words, escapes: head + b"\x02" + words + escapes),
        ("integer.range", lambda head, words, escapes: b"\x01\x03\x01" + words + escapes * 3),
    ],
)
def test_faulty_escapes(
    coder: str, rule: str, change: Callable[[bytes, bytes, bytes], bytes]
) -> None:
    ids = np.zeros((1, 2), np.uint8)
    good = write_stream(np.array([[0, 9]], np.int32), ids, ESCAPING)
    head, words, escapes = good[:2], good[3:7], good[7:]
    assert good[2:3] == b"\x01" and escapes == b"\x09"
    with using(coder), pytest.raises(MalformedError) as caught:
        read_stream(Reader(change(head, words, escapes)), ids, ESCAPING)
    assert caught.value.rule == rule


@given(tables())
def test_tables_come_back(known: Tables) -> None:
    reader = Reader(write_tables(known))
    assert list(read_tables(reader)) == list(known)
    assert reader.remaining == 0


def table_bytes(flags: int, low_bits: int, *numbers: bytes) -> bytes:
    return io.uv(1) + bytes([flags, low_bits]) + b"".join(numbers)


@pytest.mark.parametrize(
    ("rule", "data"),
    [
        ("table.count", io.uv(MAX_TABLES + 1)),
        ("table.flags", table_bytes(4, 0, io.sv(0), io.uv(1), io.uv(4096))),
        ("table.low_bits", table_bytes(0, 25, io.sv(0), io.uv(1), io.uv(4096))),
        ("table.size", table_bytes(0, 0, io.sv(0), io.uv(0))),
        ("table.size", table_bytes(0, 0, io.sv(0), io.uv(MAX_ALPHABET))),
        ("table.size", table_bytes(SYMMETRIC, 0, io.uv(MAX_ALPHABET // 2))),
        ("integer.range", table_bytes(0, 0, io.sv(0), io.uv(1 << 60))),
        ("integer.range", table_bytes(0, 0, io.sv(1 << 60), io.uv(1))),
        ("table.range", table_bytes(0, 24, io.sv(1 << 10), io.uv(1), io.uv(4096))),
        ("table.range", table_bytes(0, 24, io.sv(-1 << 10), io.uv(1), io.uv(4096))),
        ("table.weight", table_bytes(0, 0, io.sv(0), io.uv(2), io.uv(4096), io.uv(0))),
        ("table.weight", table_bytes(ESCAPE, 0, io.sv(0), io.uv(1), io.uv(4096), io.uv(0))),
        ("table.sum", table_bytes(0, 0, io.sv(0), io.uv(2), io.uv(4095), io.uv(2))),
        ("table.sum", table_bytes(0, 0, io.sv(0), io.uv(2), io.uv(4000), io.uv(95))),
        ("table.sum", table_bytes(SYMMETRIC, 0, io.uv(1), io.uv(4000), io.uv(96))),
        ("table.sum", table_bytes(0, 0, io.sv(0), io.uv(1), io.uv((1 << 64) - 1))),
        ("segment.short", table_bytes(0, 0, io.sv(0), io.uv(3), io.uv(4094), io.uv(1))),
        ("integer.shortest", table_bytes(0, 0, io.sv(0), b"\x81\x00")),
    ],
)
def test_hostile_tables_are_refused(rule: str, data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        read_tables(Reader(data))
    assert caught.value.rule == rule
