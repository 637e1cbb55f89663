"""Blocks of numbers: every type bit for bit, shortened mantissas within their bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, SPECIAL, Array, coders, kinds, parts, rngs, some_patterns, using
from test_records import open_bytes

import tqcodec
from tqcodec.encoder.side import make_part
from tqcodec.errors import MalformedError
from tqcodec.format.dtypes import DTYPES, DType, to_float
from tqcodec.format.entries import crc
from tqcodec.format.planes import CODED, UNSIGNED, Part, read_block, write_block
from tqcodec.format.reader import Reader, uv
from tqcodec.format.registry import MAX_SYMBOLS, PlaneKind
from tqcodec.format.tables import Table, Tables
from tqcodec.format.writer import Bundled, Record, Tied, write

KNOWN = Tables([Table(-1, (1000, 2000, 1000), 96)])


def read_again(block_parts: list[Part], known: Tables = KNOWN) -> list[Part]:
    reader = Reader(write_block(block_parts, known))
    return read_block(reader, [(p.dtype, len(p.patterns)) for p in block_parts], known)


@coders
@given(block_parts=st.lists(parts(), max_size=5))
def test_blocks_come_back(coder: str, block_parts: list[Part]) -> None:
    with using(coder):
        found = read_again(block_parts)
    for a, b in zip(found, block_parts, strict=True):
        assert np.array_equal(a.patterns, b.patterns)
        assert (a.dtype, a.kept, a.unsigned, a.table) == (b.dtype, b.kept, b.unsigned, b.table)
        assert a.offset == b.offset


@given(st.sampled_from(list(DTYPES.values())), rngs, st.integers(0, 60), kinds)
def test_exact_parts_are_exact(
    dtype: DType, rng: np.random.Generator, count: int, kind: str
) -> None:
    patterns = some_patterns(rng, dtype, count, kind)
    before = patterns.copy()
    (found,) = read_again([make_part(patterns, dtype, None)])
    assert np.array_equal(found.patterns, before)
    assert np.array_equal(patterns, before)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_special_numbers_are_exact(dtype: DType) -> None:
    (found,) = read_again([make_part(SPECIAL[dtype.name], dtype, None)])
    assert np.array_equal(found.patterns, SPECIAL[dtype.name])


def finite(dtype: DType, patterns: Array) -> Array:
    values = to_float(patterns, dtype)
    return patterns[np.isfinite(values)]


@given(st.sampled_from(FLOATS), rngs, st.integers(0, 60), kinds, st.integers(0, 52))
def test_shortened_mantissas_obey_their_bound(
    dtype: DType, rng: np.random.Generator, count: int, kind: str, kept: int
) -> None:
    patterns = finite(dtype, some_patterns(rng, dtype, count, kind))
    (found,) = read_again([make_part(patterns, dtype, kept)])
    old, new = to_float(patterns, dtype), to_float(found.patterns, dtype)
    kept = min(kept, dtype.mantissa_bits)
    bias = (1 << dtype.exponent_bits - 1) - 1
    # Subnormal numbers have the precision of the smallest normal one.
    size = np.maximum(np.abs(old), 2.0 ** (1 - bias))
    assert np.isfinite(new).all()
    assert (np.abs(new - old) / size <= 2.0 ** -(kept + 1)).all()
    assert np.array_equal(np.signbit(new), np.signbit(old))
    if kept == dtype.mantissa_bits:
        assert np.array_equal(found.patterns, patterns)


def test_shortening_the_largest_numbers_gives_no_infinity() -> None:
    for dtype in FLOATS:
        every = SPECIAL[dtype.name][4:5] - np.arange(8).astype(dtype.pattern)
        for kept in range(dtype.mantissa_bits):
            (found,) = read_again([make_part(every, dtype, kept)])
            assert np.isfinite(to_float(found.patterns, dtype)).all(), (dtype.name, kept)


@given(parts(st.integers(1, 40)), st.data())
def test_a_damaged_block_gives_numbers_or_an_error(part: Part, data: st.DataObject) -> None:
    block = bytearray(write_block([part], KNOWN))
    for _ in range(data.draw(st.integers(1, 3))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    try:
        (found,) = read_block(Reader(bytes(block)), [(part.dtype, len(part.patterns))], KNOWN)
    except MalformedError:
        return
    assert found.patterns.shape == part.patterns.shape


def block_with_head(head: bytes, rest: bytes = b"") -> Reader:
    return Reader(uv(len(head)) + bytes([PlaneKind.PACKED]) + head + rest)


@pytest.mark.parametrize(
    ("rule", "dtype", "reader"),
    [
        ("block.kept", "F32", block_with_head(b"\x18\x00\x00")),
        ("block.kept", "U8", block_with_head(b"\x09\x00")),
        ("block.flags", "F32", block_with_head(b"\x00\x04\x00")),
        ("block.flags", "U8", block_with_head(bytes([0, UNSIGNED]))),
        ("table.index", "F32", block_with_head(bytes([0, CODED, 1, 0]))),
        ("block.exponent", "F32", block_with_head(b"\x00\x01\x80\x04")),
        ("block.exponent", "F32", block_with_head(b"\x00\x01\x01")),
        ("integer.range", "F32", Reader(uv(17))),
        ("plane.kind", "F32", Reader(b"\x03\x02abc")),
        ("segment.surplus", "U8", block_with_head(b"\x00\x00\x00")),
        ("segment.surplus", "U8", block_with_head(b"\x00\x00", b"\x00")),
        ("segment.short", "U8", block_with_head(b"\x08\x00", b"\x00\x00")),
        ("bits.spare", "U8", block_with_head(b"\x01\x00", b"\x00\x04")),
        ("deflate.stream", "U8", block_with_head(b"\x08\x00", b"\x01\x01\xff")),
        ("deflate.size", "U8", block_with_head(b"\x08\x00", b"\x01\x02\x03\x00")),
        ("plane.range", "U8", block_with_head(b"\x01\x00", b"\x01\x04\x63\x62\x02\x00")),
    ],
)
def test_hostile_blocks_are_refused(rule: str, dtype: str, reader: Reader) -> None:
    with pytest.raises(MalformedError) as caught:
        read_block(reader, [(DTYPES[dtype], 2)], KNOWN)
    assert caught.value.rule == rule


def test_a_long_tensor_has_several_blocks() -> None:
    patterns = np.arange(MAX_SYMBOLS + 5).astype("<u4")
    part = make_part(patterns, DTYPES["U32"], None)
    data = write([Record("t", DTYPES["U32"], (len(patterns),), crc(patterns), part)], KNOWN, {})
    container = open_bytes(data)
    (entry,) = container.directory.entries
    assert len(entry.segments) == 2
    assert np.array_equal(container.decode(entry), patterns)


def test_bundles_and_ties_come_back() -> None:
    values = {"a": np.arange(5).astype("<f4").view("<u4"), "b": np.zeros(0, "<u4")}
    f32 = DTYPES["F32"]
    items = [
        Record(n, f32, v.shape, crc(v), Bundled(0, make_part(v, f32, None)))
        for n, v in values.items()
    ]
    items.append(Record("c", f32, (5,), crc(values["a"]), Tied("a")))
    container = open_bytes(write(items, KNOWN, {"key": "value"}))
    found = [container.decode(entry).tolist() for entry in container.directory.entries]
    assert found == [values["a"].tolist(), [], values["a"].tolist()]
    assert [e.same_as for e in container.directory.entries] == [None, None, 0]
    assert container.directory.metadata == {"key": "value"}


def test_exact_tensors_of_zeros_and_few_others_are_small() -> None:
    """Zeros are 127 exponents away from ones: they must not be the ones to escape."""
    array = np.zeros(100_000, np.float32)
    array[::1000] = 1
    assert len(tqcodec.encode({"mask": array})) < 700
