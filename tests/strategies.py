"""Hypothesis strategies for tables, records, parts and arrays, and the bulk behind them.

Structure is drawn by hypothesis, so that it shrinks; numbers come from a seeded generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st

from tqcodec.arrays import numpy_dtype
from tqcodec.format import native, native_decoder
from tqcodec.format.dtypes import DTYPES, DType
from tqcodec.format.planes import Part
from tqcodec.format.reconstruct import sum_bound
from tqcodec.format.records import Basis, CodedTensor, axis_lengths, tiles
from tqcodec.format.registry import (
    MAX_DCT_DIMENSIONS,
    SUM_BITS,
    TABLE_SUM,
    Axis,
    BasisKind,
    PayloadKind,
    Quantizer,
)
from tqcodec.format.tables import Table, Tables
from tqcodec.format.vectors import Vector

FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_float]
MOST_ELEMENTS = 150  # of a record: the reference is slow
# H.266's trellis of 8 states, written down again: next state by (state, parity of the index)
NEXT_STATE = [(0, 2), (5, 7), (1, 3), (4, 6), (2, 0), (7, 5), (3, 1), (6, 4)]

Rng = np.random.Generator
Array = np.ndarray[Any, Any]

rngs = st.integers(0, (1 << 32) - 1).map(np.random.default_rng)
coders = pytest.mark.parametrize("coder", ["native", "portable"])


def examples(count: int) -> settings:
    """So many examples of a test; fewer where a profile of hypothesis asks for fewer than 100."""
    return settings(max_examples=max(1, count * settings().max_examples // 100))


@contextmanager
def using(coder: str) -> Iterator[None]:
    """Code streams natively or portably, without the decoder in C."""
    if coder == "native" and not native.AVAILABLE:
        pytest.skip("the native loops are not built")
    loops = mock.patch.object(native, "AVAILABLE", coder == "native")
    with loops, mock.patch.object(native_decoder, "_library", None):
        yield


def _weights(rng: Rng, count: int, total: int) -> tuple[int, ...]:
    """`count` positive integers of a given sum."""
    cuts = np.sort(rng.choice(np.arange(1, total), count - 1, replace=False))
    return tuple(np.diff([0, *cuts, total]).tolist())


def _mirrored(rng: Rng, count: int, total: int) -> tuple[int, ...]:
    half = _weights(rng, count // 2 + 1, total // 2)[1:]
    return (*half[::-1], total - 2 * sum(half), *half)


@st.composite
def table_pairs(draw: st.DrawFn, escape: bool | None = None) -> list[Table]:
    """Two tables that code the same values: what a trellis needs."""
    rng = draw(rngs)
    size = draw(st.sampled_from([1, 2, 3, 7, 16]))
    low_bits = draw(st.sampled_from([0, 0, 1, 5]))
    weight = draw(st.sampled_from([1, 40])) if escape or draw(st.booleans()) else 0
    if draw(st.booleans()) and size % 2:
        low, make = -(size // 2), _mirrored
    else:
        low, make = draw(st.integers(-9, 3)), _weights
    return [Table(low, make(rng, size, TABLE_SUM - weight), weight, low_bits) for _ in range(2)]


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    """Pairs of tables; those of the first pair have an escape."""
    rest = draw(st.lists(table_pairs(), max_size=2))
    return Tables([table for pair in [draw(table_pairs(escape=True)), *rest] for table in pair])


def codable(rng: Rng, table: Table, count: int, reach: int) -> Array:
    """Values that a table can code, some of them by its escape."""
    symbols = rng.integers(table.low, table.low + len(table.weights), count)
    if table.escape:
        wild = rng.integers(-reach, reach + 1, count) >> table.low_bits
        symbols = np.where(rng.random(count) < 0.2, wild, symbols)
    return (symbols << table.low_bits) + rng.integers(0, 1 << table.low_bits, count)


def trellis_path(indices: Array, steps: int) -> Array:
    """Coefficients of the indices of one tile, one by one."""
    out = np.zeros_like(indices)
    for column in range(indices.shape[1]):
        state = 0
        for row in range(indices.shape[0]):
            state = state if row % steps else 0
            index = int(indices[row, column])
            sign = (index > 0) - (index < 0)
            out[row, column] = 2 * index - (sign if state & 1 else 0)
            state = NEXT_STATE[state][index & 1]
    return out


@dataclass(frozen=True)
class Case:
    """A record, and the tensor and tables it belongs to."""

    record: CodedTensor
    shape: tuple[int, ...]
    dtype: DType
    tables: Tables


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[Axis, ...]]:
    """Dimensions and their roles, in any order."""
    shape: list[int] = []
    roles = draw(st.lists(st.sampled_from(Axis), max_size=5))
    for _ in roles:
        n = draw(st.sampled_from([1, 2, 3, 4, 5, 6]))
        shape.append(n if math.prod(shape) * n <= MOST_ELEMENTS else 1)
    return tuple(shape), tuple(roles)


def _vector(draw: st.DrawFn, rng: Rng, length: int, most: int) -> Vector:
    kind = draw(st.sampled_from(["constant", "packed", "coded"]))
    if kind == "constant":
        return Vector.constant(draw(st.integers(0, most)), length)
    values = rng.integers(0, most + 1, length).astype(np.uint8)
    return Vector(values, 0 if kind == "coded" else None)


def _basis(draw: st.DrawFn, rng: Rng, known: Tables, axis: Axis, taps: list[int], n: int) -> Basis:
    kinds = [BasisKind.NONE, BasisKind.EXPLICIT]
    if axis == Axis.TAPS and len(taps) <= MAX_DCT_DIMENSIONS:
        kinds.append(BasisKind.DCT)
    kind = draw(st.sampled_from(kinds))
    if kind != BasisKind.EXPLICIT:
        return Basis(kind)
    rows = draw(st.integers(0, n))
    ids = rng.integers(0, len(known), rows).astype(np.uint8)
    entries = np.array([codable(rng, known[i], n, 200) for i in ids], np.int32).reshape(rows, n)
    return Basis(kind, entries, _vector(draw, rng, rows, 3), Vector(ids))


def _bits(indices: Array) -> Array:
    """Bits of the signed range of each column."""
    most, least = indices.max(axis=0, initial=0), indices.min(axis=0, initial=0)
    pairs = zip(most.tolist(), least.tolist(), strict=True)
    return np.array([max(a, -1 - b, 0).bit_length() + 1 for a, b in pairs], np.uint8)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Records with every feature of the format."""
    shape, roles = draw(shapes())
    rng, known = draw(rngs), draw(tables())
    lengths = axis_lengths(shape, roles)
    taps = [n for n, role in zip(shape, roles, strict=True) if role == Axis.TAPS]
    bases = [_basis(draw, rng, known, axis, taps, lengths[axis]) for axis in Axis]
    channels = [
        len(basis.entries) if basis.entries is not None else length
        for basis, length in zip(bases, lengths, strict=True)
    ]
    columns = channels[1] * channels[2]
    present = rng.random(columns) < draw(st.sampled_from([1.0, 0.7, 0.0]))
    size = (channels[0], int(present.sum()))
    fixed = draw(st.booleans())
    steps = draw(st.integers(0, 5))
    reach = draw(st.sampled_from([3, 300, 1 << 20]))
    tile = (draw(st.integers(1, size[0] + 1)), draw(st.integers(1, size[1] + 1)))
    if fixed:
        table_map: tuple[int, ...] = (0,)
        levels = [Vector.constant(0, n) for n in channels]
        indices = rng.integers(-reach, reach + 1, size)
    else:
        step = 2 if steps else 1
        starts = range(0, len(known), step)
        table_map = tuple(draw(st.lists(st.sampled_from(starts), min_size=1, max_size=4)))
        levels = [_vector(draw, rng, n, 3) for n in channels]
        inner = levels[1].values[:, None].astype(int) + levels[2].values
        classes = levels[0].values[:, None].astype(int) + inner.ravel()[present]
        ids = np.array(table_map)[np.minimum(classes, len(table_map) - 1)]
        indices = np.zeros(size, np.int64)
        for i in range(len(known)):
            indices[ids == i] = codable(rng, known[i], int((ids == i).sum()), reach)
    depths = np.zeros(columns, np.uint8)
    depths[present] = _bits(indices) + rng.integers(0, 3, size[1])
    coefficients = indices.astype(np.int32)
    for rows, part in tiles(*size, tile) if steps else []:
        coefficients[rows, part] = trellis_path(coefficients[rows, part], steps)
    record = CodedTensor(
        roles=roles,
        scale=(draw(st.integers(1, 1 << 24)), draw(st.integers(-60, 10))),
        quantizer=Quantizer.TRELLIS if steps else Quantizer.UNIFORM,
        steps=steps,
        payload_kind=PayloadKind.FIXED if fixed else PayloadKind.RANGE,
        tile=tile,
        bases=(bases[0], bases[1], bases[2]),
        depths=Vector(depths, draw(st.sampled_from([None, 1]))),
        levels=(levels[0], levels[1], levels[2]),
        table_map=table_map,
        row_scales=_vector(draw, rng, lengths[0], 255),
        multipliers=_vector(draw, rng, columns, 40),
        coefficients=coefficients,
    )
    assume(sum_bound(record, shape) < 1 << SUM_BITS)
    return Case(record, shape, draw(st.sampled_from(FLOATS)), known)


SPECIAL = {
    dtype.name: np.array(
        [
            0,
            1,  # smallest subnormal
            (1 << dtype.mantissa_bits) - 1,  # largest subnormal
            1 << dtype.mantissa_bits,
            ((1 << dtype.exponent_bits) - 1 << dtype.mantissa_bits) - 1,  # largest number
            (1 << dtype.exponent_bits) - 1 << dtype.mantissa_bits,  # infinity
            ((1 << dtype.exponent_bits) - 1 << dtype.mantissa_bits) + 1,  # signalling NaN
            (1 << dtype.exponent_bits + dtype.mantissa_bits) - 1,  # NaN, all bits set
            1 << 8 * dtype.size - 1,  # -0.0
            (1 << 8 * dtype.size) - 1,
        ],
        np.uint64,
    ).astype(dtype.pattern)
    for dtype in FLOATS
}


def some_patterns(rng: Rng, dtype: DType, count: int, kind: str) -> Array:
    """Bit patterns of one type: any, special ones, or like weights."""
    if dtype.name == "BOOL":
        return rng.integers(0, 2, count).astype(np.uint8)
    if kind == "any" or not dtype.is_float:
        top = 8 * dtype.size if kind == "any" else 8 * dtype.size // 2
        return rng.integers(0, 1 << top, count, np.uint64).astype(dtype.pattern)
    if kind == "special":
        return rng.choice(SPECIAL[dtype.name], count)
    return rng.normal(0, 0.05, count).astype(numpy_dtype(dtype)).view(dtype.pattern)


kinds = st.sampled_from(["any", "special", "weights"])


@st.composite
def parts(draw: st.DrawFn, count: st.SearchStrategy[int] = st.integers(0, 40)) -> Part:  # noqa: B008
    """Parts of a block; table 0 must code anything."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    patterns = some_patterns(draw(rngs), dtype, draw(count), draw(kinds))
    if not dtype.is_float:
        return Part(dtype, patterns, int(patterns.max(initial=0)).bit_length())
    kept = draw(st.integers(0, dtype.mantissa_bits))
    drop = dtype.mantissa_bits - kept
    patterns >>= drop
    patterns <<= drop
    unsigned = not (patterns >> (8 * dtype.size - 1)).any()
    exponents = patterns >> dtype.mantissa_bits & ((1 << dtype.exponent_bits) - 1)
    if len(patterns) and draw(st.booleans()):
        patterns = patterns[exponents == exponents[0]]
        return Part(dtype, patterns, kept, unsigned, None, int(exponents[0]))
    return Part(dtype, patterns, kept, unsigned, 0, draw(st.integers(-50, 1100)))


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Arrays of every type of the library and shapes of 0 to 5 dimensions."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = tuple(draw(st.lists(st.sampled_from([1, 3, 8, 16, 0]), max_size=5)))
    while np.prod(shape) > 5000:
        shape = shape[1:]
    count = int(np.prod(shape))
    patterns = some_patterns(draw(rngs), dtype, count, draw(kinds))
    return patterns.reshape(shape).view(numpy_dtype(dtype))
