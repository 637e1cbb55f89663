"""The file of chapter 13 of spec/tqc.md, from hand-written records through the format layer alone.

Run as a program, it prints the file in hex.
"""

from __future__ import annotations

import sys
import zlib

import numpy as np

from tqcodec.format import payload, planes, records
from tqcodec.format.directory import write_directory
from tqcodec.format.dtypes import DTYPES
from tqcodec.format.entries import Directory, Entry, Segment
from tqcodec.format.header import Header, write_header
from tqcodec.format.records import Basis, CodedTensor
from tqcodec.format.registry import Axis, BasisKind, Coding, PayloadKind, Quantizer
from tqcodec.format.tables import Table, Tables, write_tables
from tqcodec.format.trellis import from_indices
from tqcodec.format.vectors import Vector

TABLES = Tables(
    (
        Table(low=-1, weights=(1000, 2000, 1000), escape=96),  # indices, quantizer 0
        Table(low=-1, weights=(600, 2896, 600)),  # indices, quantizer 1
        Table(low=-2, weights=(1024, 1024, 1024, 1024), low_bits=1),  # entries of the basis
        Table(low=0, weights=(2048, 2048)),  # exponents
    )
)

# A basis of two channels on the 2 x 2 taps of "w": one twice as coarse as the other.
BASIS = np.array([[3, 2, 2, 3], [1, -2, -1, 2]], np.int32)
# Indices of 5 rows, in two trellis segments of 3 and 2 rows; -3 is an escape.
INDICES = np.array([[1, 0], [-1, 1], [1, -1], [-3, 0], [1, 1]], np.int32)
STEPS = 3

# Bit patterns of "b": -1.5, 0.75, 1.25, of which two mantissa bits are kept.
BIASES = np.array([-1.5, 0.75, 1.25], "<f4").view("<u4")


def _vector(*values: int) -> Vector:
    return Vector(np.array(values, np.uint8))


WEIGHT = CodedTensor(
    roles=(Axis.OUT, Axis.IN, Axis.TAPS, Axis.TAPS),
    scale=(3, -5),
    quantizer=Quantizer.TRELLIS,
    steps=STEPS,
    payload_kind=PayloadKind.RANGE,
    tile=(6, 2),
    bases=(
        Basis(),
        Basis(),
        Basis(BasisKind.EXPLICIT, BASIS, _vector(2, 0), _vector(2, 2)),
    ),
    depths=_vector(3, 2),
    levels=(Vector.constant(0, 5), Vector.constant(0, 1), Vector.constant(0, 2)),
    table_map=(0,),
    row_scales=_vector(1, 1, 1, 1, 2),
    multipliers=Vector.constant(1, 2),
    coefficients=from_indices(INDICES, STEPS),
)
BIAS = planes.Part(DTYPES["F32"], BIASES, kept=2, table=3, offset=126)


def build() -> bytes:
    """The whole file: the directory and the tables as they are, not deflated."""
    tables = write_tables(TABLES)
    bundle = planes.write_block([BIAS], TABLES)
    ((rows, columns),) = WEIGHT.tiles()
    weight = records.write_head(WEIGHT, (5, 1, 2, 2), TABLES)
    weight += payload.write_payload(WEIGHT, rows, columns, TABLES)

    def segment(data: bytes) -> Segment:
        return Segment(len(data), zlib.crc32(data))

    f32 = DTYPES["F32"]
    entries = (
        Entry(
            "w", f32, (5, 1, 2, 2), Coding.TRANSFORM, zlib.crc32(decoded()["w"]), (segment(weight),)
        ),
        Entry("b", f32, (3,), Coding.PLANES, zlib.crc32(decoded()["b"]), bundle=0),
        Entry("t", f32, (5, 1, 2, 2), Coding.TRANSFORM, 0, same_as=0),
        Entry("e", DTYPES["I64"], (0, 2), Coding.RAW, 0),
    )
    plain, _ = write_directory(Directory(entries, (segment(bundle),), segment(tables)))
    header = Header(deflated=False, stored=len(plain), size=len(plain), crc=zlib.crc32(plain))
    return write_header(header) + plain + tables + bundle + weight


def decoded() -> dict[str, bytes]:
    """Little-endian bytes of each tensor, computed from the formulas of chapter 10 in integers."""
    coefficients = from_indices(INDICES, STEPS).astype(np.int64)
    sums = coefficients @ (BASIS.astype(np.int64) << np.array([[2], [0]]))
    scales = 3 / 32 * np.array([[1], [1], [1], [1], [2]])
    weight = (sums * scales).astype("<f4").tobytes()
    return {"w": weight, "b": BIASES.tobytes(), "t": weight, "e": b""}


if __name__ == "__main__":
    sys.stdout.write(build().hex(" ") + "\n")
