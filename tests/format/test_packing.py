"""Fixed-length packing against one long integer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Array

from tqcodec.errors import MalformedError
from tqcodec.format import packing
from tqcodec.format.reader import Reader

fields = st.lists(
    st.integers(0, packing.MAX_WIDTH).flatmap(
        lambda w: st.tuples(st.integers(0, (1 << w) - 1), st.just(w))
    )
)


def split(pairs: list[tuple[int, int]]) -> tuple[Array, Array]:
    values = np.array([v for v, _ in pairs], np.uint64)
    return values, np.array([w for _, w in pairs], np.uint8)


@given(fields)
def test_packed_bytes_are_one_little_endian_integer(pairs: list[tuple[int, int]]) -> None:
    values, widths = split(pairs)
    total, position = 0, 0
    for value, width in pairs:
        total |= value << position
        position += width
    packed = packing.pack(values, widths)
    assert packed == total.to_bytes((position + 7) // 8, "little")
    assert len(packed) == packing.packed_size(widths)


@given(fields, st.binary(max_size=3))
def test_unpack_is_the_inverse_and_stops_where_it_should(
    pairs: list[tuple[int, int]], rest: bytes
) -> None:
    values, widths = split(pairs)
    reader = Reader(packing.pack(values, widths) + rest)
    assert packing.unpack(reader, widths).tolist() == values.tolist()
    assert reader.remaining == len(rest)


def test_spare_bits_must_be_zero() -> None:
    with pytest.raises(MalformedError, match=r"bits\.spare"):
        packing.unpack(Reader(b"\x0d"), np.array([1, 2], np.uint8))


def test_too_few_bytes() -> None:
    with pytest.raises(MalformedError, match=r"segment\.short"):
        packing.unpack(Reader(b"\x01"), np.array([8, 1], np.uint8))
