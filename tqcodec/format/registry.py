"""Every assigned number, name and limit of the format (specification, chapter 11).

Imports nothing but the standard library; nothing here makes a choice.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

SIGNATURE: Final = b"\x89TQC\r\n\x1a\n"
MAJOR: Final = 0
MINOR: Final = 9
HEADER_SIZE: Final = 28
FLAG_DEFLATED: Final = 1

# Limits of the format: a file that exceeds one is malformed.
MAX_DIRECTORY: Final = 1 << 26  # bytes, inflated
MAX_INFLATION: Final = 64  # bytes of the directory for one deflated byte, beyond the first 2^16
FREE_VALUES: Final = 1 << 14  # values of the directory beyond one for each stored byte
MAX_TABLES_SIZE: Final = 1 << 20  # bytes, inflated
MAX_NAME: Final = 4096  # bytes of UTF-8
MAX_NESTING: Final = 8  # arrays and maps of the directory inside each other
MAX_DIMENSIONS: Final = 16
MAX_ELEMENTS: Final = 1 << 48
MAX_TABLES: Final = 128
MAX_ALPHABET: Final = 4096
MAX_WEIGHTS: Final = 1 << 16  # members of the alphabets of all tables
MAX_TABLE_LOW: Final = 1 << 24  # magnitude of a table's smallest symbol
MAX_LOW_BITS: Final = 24
MAX_VALUE: Final = 1 << 30  # magnitude of a coded value
MAX_CLASSES: Final = 64  # classes of one tensor: length of its table map
MAX_DEPTH: Final = 24  # bits of an index's signed range
MAX_SYMBOLS: Final = 1 << 20  # symbols of one payload, block or bundle
MAX_PART_HEAD: Final = 16  # bytes of a block's head, on average, for one part
MAX_OFFSET: Final = 1 << 12  # magnitude of what is subtracted from a part's exponents
MAX_STEPS: Final = 256  # rows of one trellis segment
MAX_BASIS: Final = 1 << 24  # entries of one explicit basis
MAX_BASIS_SHIFT: Final = 24
MAX_DCT: Final = 16  # positions on one dimension
MAX_DCT_TAPS: Final = 1024  # positions on the axis taps
MAX_DCT_DIMENSIONS: Final = 3
MAX_HEAD: Final = 1 << 24  # coded values of one head
MAX_SCALE_MANTISSA: Final = 1 << 24
MAX_SCALE_EXPONENT: Final = 900  # every product of the reconstruction stays finite
MAX_VECTOR: Final = 255  # largest value in a vector of small integers
FREE_CHANNELS: Final = 64  # of bases, beyond those that a tensor's bytes pay for
WORK_PER_BYTE: Final = 1 << 14  # multiplications with further channels for each byte
SUM_BITS: Final = 53  # sums of the reconstruction stay below 2 ** SUM_BITS

TABLE_BITS: Final = 12
TABLE_SUM: Final = 1 << TABLE_BITS


class Coding(IntEnum):
    """How the bytes of a tensor are coded. 3 to 7 are reserved by the specification."""

    RAW = 0
    PLANES = 1
    TRANSFORM = 2


RESERVED_CODINGS: Final = {
    3: "residual against another file, named by its SHA-256 digest",
    4: "refinement layer of another tensor",
}


class Quantizer(IntEnum):
    """What a coefficient index stands for."""

    UNIFORM = 0
    TRELLIS = 1


RESERVED_QUANTIZERS: Final = {
    2: "subtractively dithered uniform, generator Philox-4x32-10",
    3: "trellis of more than 8 states",
}


class PayloadKind(IntEnum):
    """How coefficient indices are laid down."""

    RANGE = 0
    FIXED = 1


class Axis(IntEnum):
    """Role of a tensor's dimension."""

    OUT = 0
    IN = 1
    TAPS = 2


class BasisKind(IntEnum):
    """Basis on one axis."""

    NONE = 0
    DCT = 1
    EXPLICIT = 2


class VectorKind(IntEnum):
    """How a vector of small integers is laid down."""

    CONSTANT = 0
    PACKED = 1
    CODED = 2


class PlaneKind(IntEnum):
    """How a plane of bits is laid down."""

    PACKED = 0
    DEFLATED = 1
