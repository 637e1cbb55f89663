"""Element types, their rounding and the weights of a transform-coded tensor (chapters 4.6 and 10).

Exact integers and fractions, one element at a time.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple


class DType(NamedTuple):
    """An element type: bytes, bits of exponent and mantissa (0 for integers), infinities."""

    size: int
    exponent: int = 0
    mantissa: int = 0
    infinities: bool = True

    @property
    def bias(self) -> int:
        """Subtracted from the stored exponent."""
        return (1 << self.exponent - 1) - 1

    @property
    def largest(self) -> int:
        """Pattern of the largest finite number."""
        top = (1 << self.exponent + self.mantissa) - 1
        return top - (1 << self.mantissa) if self.infinities else top - 1

    def value(self, pattern: int) -> Fraction:
        """Value of a finite pattern without its sign."""
        exponent, mantissa = pattern >> self.mantissa, pattern & (1 << self.mantissa) - 1
        if exponent:
            mantissa |= 1 << self.mantissa
        return mantissa * Fraction(2) ** (max(exponent, 1) - self.bias - self.mantissa)


DTYPES = {
    "BOOL": DType(1),
    "U8": DType(1),
    "I8": DType(1),
    "U16": DType(2),
    "I16": DType(2),
    "U32": DType(4),
    "I32": DType(4),
    "U64": DType(8),
    "I64": DType(8),
    "F8_E4M3": DType(1, 4, 3, False),
    "F8_E5M2": DType(1, 5, 2),
    "F16": DType(2, 5, 10),
    "BF16": DType(2, 8, 7),
    "F32": DType(4, 8, 23),
    "F64": DType(8, 11, 52),
}
FLOATS = [name for name, dtype in DTYPES.items() if dtype.exponent]


def to_bytes(patterns: Sequence[int], dtype: str) -> bytes:
    """Elements, each with its least significant byte first."""
    size = DTYPES[dtype].size
    return b"".join(pattern.to_bytes(size, "little") for pattern in patterns)


def round_to(value: float, dtype: str) -> int:
    """Pattern of a double, rounded as in step 6 of 10.1: never beyond the largest finite number."""
    kind = DTYPES[dtype]
    sign = (math.copysign(1, value) < 0) << 8 * kind.size - 1
    exact = abs(Fraction(value))
    least, most = 0, kind.largest
    if exact >= kind.value(most):
        return sign | most
    while most - least > 1:  # patterns are in the order of their values
        middle = (least + most) // 2
        least, most = (middle, most) if kind.value(middle) <= exact else (least, middle)
    below, above = exact - kind.value(least), kind.value(most) - exact
    up = above < below or (above == below and least & 1 == 1)
    return sign | (most if up else least)


def expand(code: int, mantissa: int) -> int:
    """Integer of a code of a row scale or multiplier (9.4)."""
    exponent, fraction = code >> mantissa, code % (1 << mantissa)
    return ((1 << mantissa) + fraction) << (exponent - 1) if exponent else fraction


def weight(total: int, scale: tuple[int, int], row_scale: int, dtype: str) -> int:
    """Steps 5 and 6 of 10.1: the pattern of one sum."""
    step = math.ldexp(scale[0] * row_scale, scale[1])  # exact: at most 37 bits
    return round_to(float(total) * step, dtype)


def doubles(values: Sequence[float]) -> list[int]:
    """Patterns of F64."""
    return [struct.unpack("<Q", struct.pack("<d", value))[0] for value in values]


def singles(values: Sequence[float]) -> list[int]:
    """Patterns of F32."""
    return [struct.unpack("<I", struct.pack("<f", value))[0] for value in values]


def _cosine(length: int, angle: int) -> int:
    """round(2^10 * cos(pi * angle / (2 * length))), none of which is near a half."""
    return round(1024 * math.cos(math.pi * angle / (2 * length)))


def dct(length: int) -> list[list[int]]:
    """Synthesis rows of the DCT of a length (10.2), from cosines instead of the table."""
    return [
        [724 if k == 0 else _cosine(length, k * (2 * n + 1) % (4 * length)) for n in range(length)]
        for k in range(length)
    ]
