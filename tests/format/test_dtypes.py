"""Element types: all 8- and 16-bit patterns against ml_dtypes and numpy, rounding at all edges."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, SPECIAL

from tqcodec.arrays import numpy_dtype
from tqcodec.format.dtypes import DTYPES, DType, round_to, to_float

SHORT = [dtype for dtype in FLOATS if dtype.size <= 2]


def every_pattern(dtype: DType) -> np.ndarray:
    return np.arange(1 << 8 * dtype.size).astype(dtype.pattern)


def round_reference(value: float, dtype: DType) -> int:
    """Bit pattern nearest to a number, half to even, in exact arithmetic."""
    bias = (1 << dtype.exponent_bits - 1) - 1
    sign = (1 << 8 * dtype.size - 1) if math.copysign(1, value) < 0 else 0
    top = (1 << dtype.exponent_bits) - 1 << dtype.mantissa_bits
    overflow = top if dtype.infinities else (1 << 8 * dtype.size - 1) - 1
    if value == 0 or math.isinf(value):
        return sign | (0 if value == 0 else overflow)
    exponent = max(math.frexp(value)[1] - 1, 1 - bias)
    steps = round(Fraction(abs(value)) / Fraction(2) ** (exponent - dtype.mantissa_bits))
    pattern = steps + (exponent + bias - 1 << dtype.mantissa_bits)
    return sign | min(pattern, overflow)


@pytest.mark.parametrize("dtype", SHORT, ids=lambda d: d.name)
def test_values_of_all_patterns(dtype: DType) -> None:
    patterns = every_pattern(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        expected = patterns.view(numpy_dtype(dtype)).astype(np.float64)
    np.testing.assert_array_equal(to_float(patterns, dtype), expected)
    numbers = ~np.isnan(expected)
    assert np.array_equal(
        np.signbit(to_float(patterns, dtype)[numbers]), np.signbit(expected[numbers])
    )


@pytest.mark.parametrize("dtype", SHORT, ids=lambda d: d.name)
def test_rounding_at_every_edge(dtype: DType) -> None:
    values = to_float(every_pattern(dtype)[: 1 << 8 * dtype.size - 1], dtype)
    count = int(np.isfinite(values).sum())
    lower = np.arange(count).astype(dtype.pattern)
    edge = values[:count]
    # What would come next, if the type went on, bounds the last interval.
    following = np.append(edge[1:], 2 * edge[-1] - edge[-2])
    middle = (edge + following) / 2
    upper, even = lower + 1, lower + (lower & 1)
    assert np.array_equal(round_to(edge, dtype), lower)
    assert np.array_equal(round_to(np.nextafter(middle, 0), dtype), lower)
    assert np.array_equal(round_to(middle, dtype), even)
    assert np.array_equal(round_to(np.nextafter(middle, np.inf), dtype), upper)
    sign = dtype.pattern.type(1 << 8 * dtype.size - 1)
    assert np.array_equal(round_to(-middle, dtype), even | sign)


@given(st.floats(allow_nan=False), st.sampled_from(FLOATS))
def test_rounding_of_any_number(value: float, dtype: DType) -> None:
    assert int(round_to(np.array([value]), dtype)[0]) == round_reference(value, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_special_patterns_have_values_without_a_warning(dtype: DType) -> None:
    values = to_float(SPECIAL[dtype.name], dtype)
    assert values[0] == 0 and values[1] > 0 and np.isnan(values[7])


def test_names_and_sizes_are_those_of_safetensors() -> None:
    sizes = {name: dtype.size for name, dtype in DTYPES.items()}
    assert sizes == {
        "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
        "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
        "U32": 4, "I32": 4, "F32": 4,
        "U64": 8, "I64": 8, "F64": 8,
    }  # fmt: skip
