"""Reconstruction against a slow one in Python's integers, one weight at a time."""

from __future__ import annotations

import itertools
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Case, cases, coders, examples, using
from test_dtypes import round_reference
from test_records import open_bytes, small

from tqcodec.errors import InternalError
from tqcodec.format.dct import dct
from tqcodec.format.dtypes import DTYPES, to_float
from tqcodec.format.reconstruct import expand, reconstruct, sum_bound
from tqcodec.format.records import Basis, axis_lengths
from tqcodec.format.registry import MAX_DCT, MAX_SCALE_EXPONENT, Axis, BasisKind, Quantizer
from tqcodec.format.tables import Table, Tables
from tqcodec.format.vectors import Vector
from tqcodec.format.writer import Record, write

Rows = list[list[int]]


def plain_expand(code: int, mantissa: int) -> int:
    exponent, fraction = divmod(code, 1 << mantissa)
    return fraction if exponent == 0 else (fraction + (1 << mantissa)) << exponent - 1


def plain_dct(length: int) -> Rows:
    rows = [[724] * length]
    for k in range(1, length):
        angles = [math.pi * k * (2 * n + 1) / (2 * length) for n in range(length)]
        rows.append([round(1024 * math.cos(a)) for a in angles])
    return rows


def plain_rows(basis: Basis, length: int, taps: list[int]) -> Rows:
    """Synthesis rows; the identity without a basis."""
    if basis.kind == BasisKind.NONE:
        return [[int(i == j) for j in range(length)] for i in range(length)]
    if basis.kind == BasisKind.DCT:
        tables = [plain_dct(n) for n in taps]
        places = list(itertools.product(*[range(n) for n in taps]))
        return [
            [math.prod(t[k][n] for t, k, n in zip(tables, ks, ns, strict=True)) for ns in places]
            for ks in places
        ]
    assert basis.entries is not None and basis.shifts is not None
    pairs = zip(basis.entries.tolist(), basis.shifts.values.tolist(), strict=True)
    return [[entry << shift for entry in row] for row, shift in pairs]


def reference(case: Case) -> tuple[list[int], int]:
    """Bit patterns of the weights, and the bound of their sums."""
    r = case.record
    lengths = axis_lengths(case.shape, r.roles)
    taps = [n for n, role in zip(case.shape, r.roles, strict=True) if role == Axis.TAPS]
    bases = [plain_rows(b, n, taps) for b, n in zip(r.bases, lengths, strict=True)]
    sums = dict.fromkeys(itertools.product(*map(range, lengths)), 0)
    multipliers = [plain_expand(m, 3) for m in r.multipliers.values.tolist()]
    kept = [i for i, depth in enumerate(r.depths.values.tolist()) if depth]
    inner_taps = len(bases[Axis.TAPS])
    for row, line in enumerate(r.coefficients.tolist()):
        for column, q in zip(kept, line, strict=True):
            i, t = divmod(column, inner_taps)
            term = q * multipliers[column]
            for place in sums if term else ():
                factors = (bases[a][k][place[a]] for a, k in enumerate((row, i, t)))
                sums[place] += term * math.prod(factors)
    depth = max([0, *r.depths.values.tolist()])
    largest = 2 ** (depth if r.quantizer == Quantizer.TRELLIS else depth - 1)
    bound = int(max(1, largest)) * max([1, *multipliers])
    for basis in bases:
        columns = zip(*basis, strict=True)
        bound *= max([1, *(sum(map(abs, column)) for column in columns)])
    scale = math.ldexp(*r.scale)
    scales = [scale * plain_expand(s, 5) for s in r.row_scales.values.tolist()]
    top = round_reference(math.inf, case.dtype) - 1  # pattern of the largest finite number
    most = float(to_float(np.array([top], case.dtype.pattern), case.dtype)[0])
    values = {p: float(s) * scales[p[0]] for p, s in sums.items()}
    weights = {p: round_reference(min(max(v, -most), most), case.dtype) for p, v in values.items()}
    return [weights[place_of(index, case)] for index in np.ndindex(case.shape)], bound


def place_of(index: tuple[int, ...], case: Case) -> tuple[int, ...]:
    """(out, in, tap) of an element: the dimensions of each role, in their order."""
    where = [0, 0, 0]
    for i, n, role in zip(index, case.shape, case.record.roles, strict=True):
        where[role] = where[role] * n + i
    return tuple(where)


@coders
@examples(300)
@given(case=cases())
def test_weights_are_those_of_the_plain_reconstruction(coder: str, case: Case) -> None:
    expected, bound = reference(case)
    assume(bound < 1 << 53)
    patterns = np.array(expected, case.dtype.pattern)
    check = zlib.crc32(patterns.tobytes())
    with using(coder):
        data = write([Record("t", case.dtype, case.shape, check, case.record)], case.tables, {})
        container = open_bytes(data)
        found = container.decode(container.directory.entries[0])
    assert found.shape == case.shape
    assert found.dtype == case.dtype.pattern
    assert found.ravel().tolist() == expected


@given(cases())
def test_sums_that_may_not_be_exact_are_refused(case: Case) -> None:
    expected, bound = reference(case)
    assert sum_bound(case.record, case.shape) == bound
    check = zlib.crc32(np.array(expected, case.dtype.pattern).tobytes())
    item = Record("t", case.dtype, case.shape, check, case.record)
    if bound < 1 << 53:
        container = open_bytes(write([item], case.tables, {}))
        container.decode(container.directory.entries[0])
    else:
        with pytest.raises(InternalError, match=r"reconstruct\.bound"):
            write([item], case.tables, {})


def test_a_bound_above_64_bits_does_not_wrap() -> None:
    rows = 1024
    shifts = Vector.constant(24, rows)
    basis = Basis(
        BasisKind.EXPLICIT,
        np.full((rows, rows), 1 << 30, np.int32),
        shifts,
        Vector.constant(0, rows),
    )
    record = small(
        bases=(Basis(), basis, Basis()),
        coefficients=np.ones((2, rows), np.int16),
        depths=Vector.constant(4, rows),
        multipliers=Vector.constant(1, rows),
        levels=(Vector.constant(0, 2), Vector.constant(0, rows), Vector.constant(0, 1)),
    )
    assert sum_bound(record, (2, rows)) == 8 * rows << 54


@pytest.mark.parametrize("exponent", [-MAX_SCALE_EXPONENT - 1, MAX_SCALE_EXPONENT])
@pytest.mark.parametrize("name", ["F64", "F32", "BF16", "F8_E4M3"])
def test_extreme_scales_end_in_weights(exponent: int, name: str) -> None:
    record = small(
        scale=((1 << 24) - 1, exponent),
        row_scales=Vector(np.array([255, 1], np.uint8)),
        coefficients=np.array([[7, -7], [1, 0]], np.int16),
    )
    dtype, known = DTYPES[name], Tables([Table(0, (2048,), 2048)])
    container = open_bytes(write([Record("t", dtype, (2, 2), 0, record)], known, {}))
    found = container.record(container.directory.entries[0])
    assert reconstruct(found, (2, 2), dtype).shape == (2, 2)


@pytest.mark.parametrize("length", range(1, MAX_DCT + 1))
def test_integers_of_the_dct(length: int) -> None:
    assert dct(length).tolist() == plain_dct(length)


@pytest.mark.parametrize("mantissa", [3, 5])
def test_expansion_of_all_codes(mantissa: int) -> None:
    codes = np.arange(256).astype(np.uint8)
    assert expand(codes, mantissa).tolist() == [plain_expand(c, mantissa) for c in range(256)]


@given(cases(), st.permutations(range(3)))
def test_transposing_a_tensor_transposes_its_weights(case: Case, order: list[int]) -> None:
    """Roles may stand in any order: only the order of the dimensions within one role matters."""
    _, bound = reference(case)
    assume(bound < 1 << 53)
    by_role = sorted(range(len(case.shape)), key=lambda d: order[case.record.roles[d]])
    shape = tuple(case.shape[d] for d in by_role)
    roles = tuple(case.record.roles[d] for d in by_role)
    straight = reconstruct(case.record, case.shape, case.dtype)
    turned = reconstruct(replace(case.record, roles=roles), shape, case.dtype)
    assert np.array_equal(turned, straight.transpose(by_role))
