"""Element types: names, layouts, and the rounding of a float64 to one of them (chapter 4).

Arrays travel through the format layer as unsigned integers of the element's size ("bit patterns"),
so that types numpy does not have need no further library. Imports numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes:
        name: as in safetensors' header.
        size: bytes of an element.
        exponent_bits: of a floating-point type; 0 for integers.
        mantissa_bits: stored bits of the mantissa.
        infinities: False for the type without infinities, whose overflow is NaN.
    """

    name: str
    size: int
    exponent_bits: int = 0
    mantissa_bits: int = 0
    infinities: bool = True

    @property
    def is_float(self) -> bool:
        """True for floating-point types."""
        return self.exponent_bits > 0

    @property
    def largest(self) -> float:
        """Largest finite number of a floating-point type."""
        top = (2 << self.mantissa_bits) - (1 if self.infinities else 2)
        exponent = (1 << self.exponent_bits - 1) - (1 if self.infinities else 0)
        return math.ldexp(top, exponent - self.mantissa_bits)

    @property
    def pattern(self) -> np.dtype[np.unsignedinteger]:
        """Little-endian unsigned integer of the element's size."""
        return np.dtype(f"<u{self.size}")


DTYPES: Final = {
    dtype.name: dtype
    for dtype in (
        DType("BOOL", 1),
        DType("U8", 1),
        DType("I8", 1),
        DType("U16", 2),
        DType("I16", 2),
        DType("U32", 4),
        DType("I32", 4),
        DType("U64", 8),
        DType("I64", 8),
        DType("F8_E4M3", 1, 4, 3, infinities=False),
        DType("F8_E5M2", 1, 5, 2),
        DType("F16", 2, 5, 10),
        DType("BF16", 2, 8, 7),
        DType("F32", 4, 8, 23),
        DType("F64", 8, 11, 52),
    )
}


CHUNK: Final = 1 << 17


def round_to(values: NDArray[np.float64], dtype: DType) -> NDArray[np.unsignedinteger]:
    """Bit patterns of float64 values rounded once, half to even, to a floating-point type."""
    native = {"F64": np.float64, "F32": np.float32, "F16": np.float16}.get(dtype.name)
    if native is not None:
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(native).view(dtype.pattern)
    flat = values.reshape(-1)
    out = np.empty(flat.shape, dtype.pattern)
    for start in range(0, len(flat), CHUNK):  # to bound memory
        out[start : start + CHUNK] = _round_bits(flat[start : start + CHUNK], dtype)
    return out.reshape(values.shape)


def _round_bits(values: NDArray[np.float64], dtype: DType) -> NDArray[np.unsignedinteger]:
    bias = (1 << (dtype.exponent_bits - 1)) - 1
    magnitude = np.abs(values)
    exponent = np.where(magnitude > 0, np.frexp(magnitude)[1].astype(np.int64) - 1, -2048)
    # One unit in the last place; subnormal numbers share that of the smallest normal ones.
    unit = np.maximum(exponent, 1 - bias) - dtype.mantissa_bits
    finite = np.isfinite(magnitude)
    # Exact but for the rint, which rounds half to even.
    steps = np.rint(np.ldexp(np.where(finite, magnitude, 0.0), -unit)).astype(np.int64)
    field = (unit + dtype.mantissa_bits + bias - 1) << dtype.mantissa_bits
    pattern = field + steps
    top = (1 << (dtype.exponent_bits + dtype.mantissa_bits)) - 1
    infinity = top - (1 << dtype.mantissa_bits) + 1
    overflow = (pattern >= (infinity if dtype.infinities else top)) | ~finite
    pattern = np.where(overflow, infinity if dtype.infinities else top, pattern)
    sign = np.signbit(values).astype(np.int64) << (8 * dtype.size - 1)
    return (pattern | sign).astype(dtype.pattern)


def to_float(patterns: NDArray[np.unsignedinteger], dtype: DType) -> NDArray[np.float64]:
    """Values of bit patterns of a floating-point type, exact in float64."""
    native = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}.get(dtype.name)
    if native is not None:
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return patterns.view(native).astype(np.float64)
    bits = patterns.astype(np.int64)
    mantissa = bits & ((1 << dtype.mantissa_bits) - 1)
    exponent = bits >> dtype.mantissa_bits & ((1 << dtype.exponent_bits) - 1)
    bias = (1 << (dtype.exponent_bits - 1)) - 1
    normal = exponent > 0
    scaled = np.where(normal, mantissa + (1 << dtype.mantissa_bits), mantissa)
    values = np.ldexp(
        scaled.astype(np.float64), np.maximum(exponent, 1) - bias - dtype.mantissa_bits
    )
    top = (1 << dtype.exponent_bits) - 1
    if dtype.infinities:
        values = np.where(exponent == top, np.where(mantissa == 0, np.inf, np.nan), values)
    else:
        nan = (exponent == top) & (mantissa + 1 == 1 << dtype.mantissa_bits)
        values = np.where(nan, np.nan, values)
    return np.where(bits >> (8 * dtype.size - 1) > 0, -values, values)
