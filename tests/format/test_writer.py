"""The writer holds the rules of the specification: what breaks one is an error with its name.

Each case has a wrong value, which is refused, and a right one next to it, which is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Array, Case, cases, coders, examples, parts, tables, using
from test_records import assert_same_record, open_bytes, small

from tqcodec.errors import InternalError, MalformedError
from tqcodec.format.dtypes import DTYPES, DType
from tqcodec.format.entries import crc
from tqcodec.format.header import Header, write_header
from tqcodec.format.planes import Part
from tqcodec.format.records import Basis
from tqcodec.format.registry import (
    MAX_ELEMENTS,
    MAX_SCALE_EXPONENT,
    MAX_SYMBOLS,
    MAX_VALUE,
    Axis,
    BasisKind,
    PayloadKind,
    Quantizer,
)
from tqcodec.format.tables import Table, Tables
from tqcodec.format.vectors import Vector
from tqcodec.format.writer import Bundled, Raw, Record, Tied, write

ROOT = Path(__file__).resolve().parents[2]
RULES = set(
    re.findall(r"\*\*\[([a-z]+\.[a-z_]+)\]\*\*", (ROOT / "spec" / "tqc.md").read_text("utf-8"))
)

# Rules that no record, table, part or directory handed to the writer can break, and why.
ONLY_BYTES = {
    "integer.shortest": "the writer has one form for each integer",
    "deflate.stream": "streams come from zlib",
    "deflate.size": "sizes are those of what was deflated",
    "container.length": "segments are joined, and their lengths taken from them",
    "header.signature": "a constant",
    "header.crc": "computed",
    "header.version": "a constant",
    "header.flags": "one flag, the one of this version",
    "directory.stored": "a directory that deflates too well, or not at all, is stored as it is",
    "directory.crc": "computed",
    "directory.msgpack": "one value, packed by msgpack",
    "directory.nesting": "maps and arrays of the writer's own, four deep; metadata are text",
    "directory.values": "a directory that deflates too well is stored: a byte for each value",
    "directory.features": "none is written",
    "directory.coding": "follows from the class of the content",
    "segment.crc": "computed",
    "tensor.segments": "follows from the shape, which the content has to have",
    "table.flags": "computed",
    "payload.invalid": "words come from the range coder",
    "payload.end": "words come from the range coder",
    "stream.escape_size": "computed",
    "stream.escapes": "counted",
    "bits.spare": "packing leaves them 0, and each value has the bits of its width only",
    "vector.kind": "one of three constants",
    "vector.width": "that of a value which vector.range has passed",
    "plane.kind": "one of two constants",
    "plane.range": "each value has the bits of its width only",
    "limit.decoded": "a limit of the caller of a decoder; no file breaks it by itself",
}

F32, U8 = DTYPES["F32"], DTYPES["U8"]
KNOWN = Tables(
    [
        Table(-1, (1000, 2000, 1000), 96),
        Table(-1, (600, 2896, 600)),
        Table(0, (4000,), 96, low_bits=1),
        Table(0, (4000,), 96),
    ]
)


class File(NamedTuple):
    """Arguments of `write`."""

    items: Sequence[Record]
    tables: Tables = KNOWN
    metadata: Any = {}  # noqa: RUF012


def constant(value: int, length: int = 2) -> Vector:
    return Vector(np.full(length, value, np.int64))


def vector(*values: int, table: int | None = None) -> Vector:
    return Vector(np.array(values, np.int64), table)


def coded(shape: tuple[int, ...] = (2, 2), dtype: DType = F32, **changes: Any) -> File:
    """A 2 x 2 matrix, transform-coded, with some fields changed."""
    return File([Record("t", dtype, shape, 0, small(**changes))])


def trellis(**changes: Any) -> File:
    zeros = np.zeros((2, 2), np.int32)
    base: dict[str, Any] = {"quantizer": Quantizer.TRELLIS, "steps": 2, "coefficients": zeros}
    return coded(**base | changes)


def basis(axis: Axis = Axis.IN, **changes: Any) -> File:
    """A 2 x 2 matrix with an explicit basis on one axis."""
    rows = Basis(BasisKind.EXPLICIT, np.ones((2, 2), np.int64), constant(0), constant(0))
    bases = [Basis(), Basis(), Basis()]
    bases[axis] = replace(rows, **changes)
    return coded(bases=tuple(bases))


def wide_basis(rows: int, length: int) -> File:
    """A matrix of one row with an explicit basis of zeros on the axis in."""
    entries = np.zeros((rows, length), np.int32)
    explicit = Basis(BasisKind.EXPLICIT, entries, constant(0, rows), constant(3, rows))
    return coded(
        (1, length),
        bases=(Basis(), explicit, Basis()),
        depths=constant(1, rows),
        levels=(constant(0, 1), constant(0, rows), constant(0, 1)),
        row_scales=constant(1, 1),
        multipliers=constant(1, rows),
        coefficients=np.zeros((1, rows), np.int16),
    )


def empty_kernel(*taps: int) -> File:
    """A kernel with a DCT, all of whose columns are absent."""
    size = int(np.prod(taps))
    return coded(
        (1, *taps),
        roles=(Axis.OUT, *[Axis.TAPS] * len(taps)),
        bases=(Basis(), Basis(), Basis(BasisKind.DCT)),
        depths=constant(0, size),
        levels=(constant(0, 1), constant(0, 1), constant(0, size)),
        row_scales=constant(1, 1),
        multipliers=constant(1, size),
        coefficients=np.zeros((1, 0), np.int16),
    )


def matrix(height: int, dtype: DType = F32) -> File:
    return coded(
        (height, 2),
        dtype,
        levels=(constant(0, height), constant(0), constant(0, 1)),
        row_scales=constant(1, height),
        coefficients=np.zeros((height, 2), np.int16),
    )


def one(name: str = "t", **changes: Any) -> Record:
    """A tensor of four bytes, stored as they are."""
    data = np.array([1, 0, 1, 1], np.uint8)
    base = Record(name, U8, (4,), crc(data), Raw(data.tobytes()))
    return replace(base, **changes)


def raw(**changes: Any) -> File:
    return File([one(**changes)])


def floats(*values: float) -> Array:
    return np.array(values, "<f4").view("<u4")


def planes(
    patterns: Array, dtype: DType = F32, shape: tuple[int, ...] = (), check: int = 0, **part: Any
) -> File:
    """A tensor in planes; `check` is added to the right one."""
    content = Part(dtype, patterns, **({"kept": dtype.mantissa_bits} | part))
    size = shape or (len(patterns),)
    return File([Record("t", dtype, size, crc(patterns) + check, content)])


def bundled(patterns: Array, dtype: DType = F32, **changes: Any) -> File:
    """The same in a bundle, behind another tensor."""
    ((_, _, shape, check, part, _),) = map(_fields, planes(patterns, dtype, **changes).items)
    first = np.zeros(3, np.uint8)
    other = Record("u", U8, (3,), crc(first), Bundled(0, Part(U8, first, 8)))
    return File([other, Record("t", dtype, shape, check, Bundled(0, part))])


def _fields(item: Record) -> tuple[Any, ...]:
    return (item.name, item.dtype, item.shape, item.check, item.content, item.snr)


def bundles(*places: int) -> File:
    """Tensors in bundles of given numbers."""
    data = np.arange(4, dtype=np.uint8)
    part = Part(U8, data, 8)
    return File([Record(f"t{i}", U8, (4,), crc(data), Bundled(i, part)) for i in places])


def table(low: int, weights: Sequence[int], escape: int = 0, low_bits: int = 0) -> File:
    return File([], Tables([Table(low, tuple(weights), escape, low_bits)]))


def many(count: int, weights: Sequence[int]) -> File:
    return File([], Tables([Table(0, tuple(weights))] * count))


def ties(name: str) -> File:
    """Tensors a, b tied to a, c tied to the one of this name, and d."""
    tied = [one(n, check=0, content=Tied(to)) for n, to in (("b", "a"), ("c", name))]
    return File([one("a"), *tied, one("d")])


def metadata(value: Any) -> File:
    return File([one()], KNOWN, value)


@dataclass(frozen=True)
class Broken:
    """A rule, and files that break it or just do not.

    Attributes:
        rule: the rule.
        what: what breaks it.
        build: makes a file.
        right, wrong: values that `build` takes.
        tensor: that the error names.
        limits: lowered while the files are written, by module and name.
    """

    rule: str
    what: str
    build: Callable[[Any], File]
    right: Any
    wrong: tuple[Any, ...]
    tensor: str | None = "t"
    limits: dict[str, int] = field(default_factory=dict)


def broken(rule: str, what: str, build: Any, right: Any, *wrong: Any, **rest: Any) -> Broken:
    return Broken(rule, what, build, right, wrong, **rest)


BIG = 1 << 40  # more than 32 bits
HUGE = 1 << 70  # more than 64 bits
TWO = np.array([[1, 2], [3, 4]], np.int16)
LENGTHS = [  # vectors of two values, and what else has a length
    ("depths", lambda n: coded(depths=constant(4, n))),
    ("depths, coded", lambda n: coded(depths=vector(*range(4, 4 + n), table=0))),
    ("depths, packed", lambda n: coded(depths=vector(*range(4, 4 + n)))),
    ("levels of out", lambda n: coded(levels=(constant(0, n), constant(0), constant(0, 1)))),
    ("levels of in", lambda n: coded(levels=(constant(0), constant(0, n), constant(0, 1)))),
    ("levels of taps", lambda n: coded(levels=(constant(0), constant(0), constant(0, n - 1)))),
    (
        "levels without a use",
        lambda n: coded(
            levels=(constant(0, n), constant(0), constant(0, 1)), payload_kind=PayloadKind.FIXED
        ),
    ),
    ("row scales", lambda n: coded(row_scales=constant(1, n))),
    ("multipliers", lambda n: coded(multipliers=constant(1, n))),
    ("roles", lambda n: coded(roles=(Axis.OUT, Axis.IN, Axis.TAPS)[:n])),
    ("rows of coefficients", lambda n: coded(coefficients=np.ones((n, 2), np.int16))),
    ("columns of coefficients", lambda n: coded(coefficients=np.ones((2, n), np.int16))),
    ("tables of a basis", lambda n: basis(tables=constant(0, n))),
    ("shifts of a basis", lambda n: basis(shifts=constant(0, n))),
    ("entries of a basis", lambda n: basis(entries=np.ones((2, n), np.int32))),
    ("part", lambda n: planes(floats(*[1.5] * n), shape=(2,), table=0, offset=127)),
    ("part of a bundle", lambda n: bundled(floats(*[1.5] * n), shape=(2,), table=0, offset=127)),
]

BROKEN = [
    *[broken("segment.short", what, build, 2, 1) for what, build in LENGTHS],
    *[broken("segment.surplus", what, build, 2, 3) for what, build in LENGTHS],
    broken("segment.short", "empty part", lambda n: planes(floats(*[0] * n), shape=(2,)), 2, 0),
    broken(
        "segment.surplus",
        "part of 2^20 elements more",
        lambda n: planes(np.zeros(n, np.uint8), U8, (4,), kept=8),
        4,
        MAX_SYMBOLS + 4,
    ),
    # ---- integers ----
    broken("integer.size", "mantissa of the scale", lambda v: coded(scale=(v, 0)), 1, -1, HUGE),
    broken("integer.size", "exponent of the scale", lambda v: coded(scale=(1, v)), 0, HUGE, -HUGE),
    broken("integer.size", "weight", lambda v: table(0, (v, 4096 - v)), 1, -1, tensor=None),
    broken("integer.size", "escape", lambda v: table(0, (4096 - v,), v), 1, -1, tensor=None),
    broken(
        "integer.size",
        "offset",
        lambda v: planes(floats(1, 2), table=0, offset=v),
        127,
        HUGE,
        -HUGE,
    ),
    broken(
        "integer.range",
        "mantissa of the scale",
        lambda v: coded(scale=(v, 0)),
        1 << 24,
        (1 << 24) + 1,
    ),
    broken(
        "integer.range",
        "exponent of the scale",
        lambda v: coded(scale=(1, v)),
        MAX_SCALE_EXPONENT,
        MAX_SCALE_EXPONENT + 1,
        -MAX_SCALE_EXPONENT - 2,
    ),
    broken("integer.range", "steps", lambda v: trellis(steps=v), 256, 257, BIG),
    broken("integer.range", "classes", lambda v: coded(table_map=(0,) * v), 64, 65, 200, 1000),
    broken("integer.range", "rows of a basis", lambda v: wide_basis(v, 2), 2, 3),
    broken(
        "integer.range",
        "offset",
        lambda v: planes(floats(1, 2), table=0, offset=v),
        1 << 12,
        (1 << 12) + 1,
        BIG,
        -BIG,
    ),
    broken(
        "integer.range",
        "offset in a bundle",
        lambda v: bundled(floats(1, 2), table=0, offset=v),
        -(1 << 12) - 1,
        -(1 << 12) - 2,
        BIG,
    ),
    broken(
        "integer.range",
        "symbols of a table",
        lambda v: table(v, (4095, 1)),
        1 << 24,
        (1 << 24) + 1,
        BIG,
        tensor=None,
    ),
    broken(
        "integer.range",
        "low bits that are no byte",
        lambda v: table(0, (4096,), 0, v),
        24,
        256,
        -1,
        BIG,
        tensor=None,
    ),
    # ---- directory ----
    broken(
        "directory.size",
        "metadata",
        lambda v: metadata({"a": "x" * v}),
        800,
        1000,
        tensor=None,
        limits={"tqcodec.format.header.MAX_DIRECTORY": 1000},
    ),
    broken(
        "directory.canonical",
        "name that is not UTF-8",
        lambda v: raw(name=v),
        "\u00fc",
        "\ud800",
        tensor=None,
    ),
    broken(
        "directory.canonical",
        "metadata that are not UTF-8",
        metadata,
        {"a": "\u00fc"},
        {"a": "\udfff"},
        {"\ud800": "a"},
        tensor=None,
    ),
    broken(
        "directory.type",
        "metadata that are not text",
        metadata,
        {"a": "b"},
        {"a": 1},
        {"a": None},
        {"a": b"b"},
        {"a": 1.5},
        {"a": ["b"]},
        {"a": {"b": "c"}},
        {1: "a"},
        {None: "a"},
        {"a": HUGE},
        {"a": object()},
        [("a", "b")],
        tensor=None,
    ),
    broken("directory.type", "name", lambda v: raw(name=v), "t", 5, None, tensor=None),
    broken(
        "directory.type",
        "check",
        lambda v: raw(check=v),
        crc(np.array([1, 0, 1, 1], np.uint8)),
        None,
        "1",
    ),
    broken(
        "directory.type",
        "check that no file holds",
        lambda v: coded_with(check=v),
        0,
        object(),
        tensor=None,
    ),
    broken("directory.range", "check", lambda v: coded_with(check=v), (1 << 32) - 1, 1 << 32, -1),
    broken(
        "directory.range",
        "check beyond 64 bits",
        lambda v: coded_with(check=v),
        0,
        HUGE,
        -HUGE,
        tensor=None,
    ),
    broken("directory.range", "snr", lambda v: raw(snr=v), 1 << 20, (1 << 20) + 1, -(1 << 20) - 1),
    broken(
        "directory.range",
        "dimension",
        lambda v: raw(shape=(0, v), content=Raw(b""), check=0),
        MAX_ELEMENTS,
        MAX_ELEMENTS + 1,
        -1,
    ),
    broken("directory.range", "tied to nothing", ties, "a", "x", "", tensor="c"),
    broken("directory.range", "tied to a later one", ties, "a", "d", "c", tensor="c"),
    broken("directory.range", "bundle", lambda v: bundles(0, v), 1, -1, tensor="t-1"),
    broken("directory.name", "twice", lambda v: File([one(), one(v)]), "u", "t"),
    broken(
        "directory.name",
        "twice, tied",
        lambda v: File([one(), one(v, content=Tied("t"), check=0)]),
        "u",
        "t",
    ),
    broken(
        "directory.name",
        "empty or too long",
        lambda v: raw(name=v),
        "x" * 4096,
        "",
        "x" * 4097,
        "\u00fc" * 2049,
        tensor=None,
    ),
    broken("directory.same_as", "tied to a tied one", ties, "a", "b", tensor="c"),
    broken(
        "directory.same_as",
        "of another shape",
        lambda v: File([one(), one("u", content=Tied("t"), shape=v)]),
        (4,),
        (5,),
        (2, 2),
        tensor="u",
    ),
    broken(
        "directory.same_as",
        "of another type",
        lambda v: File([one(), one("u", content=Tied("t"), dtype=DTYPES[v])]),
        "U8",
        "I8",
        tensor="u",
    ),
    broken("directory.dtype", "raw", lambda v: raw(dtype=v), U8, DType("U4", 1)),
    broken(
        "directory.dtype",
        "planes",
        lambda v: planes(np.arange(4, dtype=np.uint8), v, kept=8),
        U8,
        DType("U4", 1),
    ),
    broken(
        "directory.dtype",
        "bundle",
        lambda v: bundled(np.arange(4, dtype=np.uint8), v, kept=8),
        U8,
        DType("U4", 1),
    ),
    broken("directory.dtype", "transform", lambda v: coded(dtype=v), F32, DType("F20", 4, 8, 23)),
    broken(
        "directory.shape",
        "dimensions",
        lambda v: raw(shape=(0,) * v, content=Raw(b""), check=0),
        16,
        17,
    ),
    broken(
        "directory.shape",
        "elements",
        lambda v: raw(shape=(0, 1 << 47, v), content=Raw(b""), check=0),
        2,
        3,
        MAX_ELEMENTS,
    ),
    broken("directory.bundle", "gap", lambda v: bundles(0, v), 1, 2, BIG, tensor=None),
    broken("directory.bundle", "first left out", lambda v: bundles(v), 0, 1, tensor=None),
    broken("directory.transform", "no elements", matrix, 1, 0),
    broken("directory.transform", "integers", lambda v: matrix(2, DTYPES[v]), "F32", "I32"),
    # ---- tensors ----
    broken("raw.length", "raw", lambda v: raw(content=Raw(bytes([1, 0, 1, 1, 0])[:v])), 4, 0, 3, 5),
    broken("raw.length", "raw, very large", lambda v: raw(shape=(v,)), 4, BIG),
    broken("tensor.check", "raw", lambda v: raw(check=one().check ^ v), 0, 1),
    broken(
        "tensor.check",
        "planes",
        lambda v: planes(np.arange(4, dtype=np.uint8), U8, check=v, kept=8),
        0,
        1,
    ),
    broken(
        "tensor.check",
        "bundle",
        lambda v: bundled(np.arange(4, dtype=np.uint8), U8, check=v, kept=8),
        0,
        1,
    ),
    broken(
        "tensor.check",
        "sign that a part leaves out",
        lambda v: planes(floats(1.5, 1.75 * v), unsigned=True, offset=127),
        1,
        -1,
    ),
    broken(
        "tensor.check",
        "mantissa bits that a part leaves out",
        lambda v: planes(floats(1.5, v), kept=1, offset=127),
        1.5,
        1.25,
    ),
    broken(
        "tensor.check",
        "bits of integers that a part leaves out",
        lambda v: planes(np.array([7, v, 1, 255 & v], np.uint8), U8, kept=3),
        7,
        8,
        255,
    ),
    broken(
        "tensor.check",
        "bits of integers, deflated",
        lambda v: planes(np.array([v] * 500, np.uint16), DTYPES["I16"], kept=9),
        511,
        512,
        65535,
    ),
    broken(
        "tensor.check",
        "exponents that are not all the offset",
        lambda v: planes(floats(1.5, v), offset=127),
        1.25,
        4,
    ),
    broken(
        "tensor.bool",
        "raw",
        lambda v: raw(
            dtype=DTYPES["BOOL"],
            content=Raw(bytes([0, 1, v])),
            shape=(3,),
            check=crc(np.array([0, 1, v], np.uint8)),
        ),
        1,
        2,
        255,
    ),
    broken(
        "tensor.bool",
        "planes",
        lambda v: planes(np.array([0, 1, v], np.uint8), DTYPES["BOOL"], kept=8),
        1,
        2,
        255,
    ),
    broken(
        "tensor.bool",
        "bundle",
        lambda v: bundled(np.array([0, 1, v], np.uint8), DTYPES["BOOL"], kept=8),
        1,
        2,
        255,
    ),
    # ---- tables ----
    broken("table.count", "tables", lambda v: many(v, (4096,)), 128, 129, 1000, tensor=None),
    broken(
        "table.low_bits", "low bits", lambda v: table(0, (4096,), 0, v), 24, 25, 255, tensor=None
    ),
    broken(
        "table.size",
        "symbols",
        lambda v: table(0, (1,) * (v - 1) + (4097 - v,) * (v > 0)),
        4095,
        0,
        4096,
        tensor=None,
    ),
    broken("table.total", "members", lambda v: many(v, (1,) * 4094 + (2,)), 16, 17, tensor=None),
    broken(
        "table.range", "symbols", lambda v: table(v, (4095, 1), 0, 24), 62, 63, -65, tensor=None
    ),
    broken("table.weight", "weight", lambda v: table(0, (4096 - v, v)), 1, 0, tensor=None),
    broken(
        "table.weight", "symmetric", lambda v: table(-1, (v, 4096 - 2 * v, v)), 1, 0, tensor=None
    ),
    broken("table.sum", "weights", lambda v: table(0, (v, 1)), 4095, 4096, 4094, 1, tensor=None),
    broken("table.sum", "escape", lambda v: table(0, (4095,), v), 1, 0, 2, tensor=None),
    broken("table.sum", "symmetric", lambda v: table(-1, (1, v, 1)), 4094, 4095, 4096, tensor=None),
    broken(
        "table.index", "vector", lambda v: coded(depths=vector(4, 5, table=v)), 3, 4, 255, 256, -1
    ),
    broken(
        "table.index",
        "shifts of a basis",
        lambda v: basis(shifts=vector(0, 1, table=v)),
        3,
        4,
        256,
        -1,
    ),
    broken(
        "table.index", "rows of a basis", lambda v: basis(tables=vector(0, v)), 3, 4, 255, 256, -1
    ),
    broken(
        "table.index",
        "part",
        lambda v: planes(floats(1, 2), table=v, offset=127),
        3,
        4,
        255,
        256,
        -1,
    ),
    broken(
        "table.index",
        "part of a bundle",
        lambda v: bundled(floats(1, 2), table=v, offset=127),
        3,
        4,
        256,
        -1,
    ),
    broken(
        "table.index",
        "no tables",
        lambda v: planes(floats(1, 1), table=v, offset=127)._replace(tables=Tables(())),
        None,
        0,
    ),
    # ---- streams and vectors ----
    broken(
        "stream.escape",
        "coefficient",
        lambda v: coded(table_map=(1,), coefficients=np.array([[0, 1], [v, 0]], np.int16)),
        -1,
        -2,
        2,
    ),
    broken(
        "stream.escape",
        "coefficient of a trellis",
        lambda v: trellis(
            table_map=(1,), coefficients=np.array([[0, v], [0, 0]], np.int16)
        )._replace(tables=Tables([KNOWN[0], KNOWN[1], KNOWN[1]])),
        2,
        4,
        -4,
    ),
    broken("stream.escape", "vector", lambda v: coded(row_scales=vector(0, v, table=1)), 1, 2),
    broken(
        "stream.escape",
        "basis",
        lambda v: basis(entries=np.array([[1, 0], [0, v]], np.int32), tables=constant(1)),
        -1,
        -2,
        2,
    ),
    broken(
        "stream.escape",
        "exponent",
        lambda v: planes(floats(1, v), table=1, offset=127),
        0.5,
        0.25,
        4,
    ),
    broken(
        "stream.escape",
        "exponent in a bundle",
        lambda v: bundled(floats(1, v), table=1, offset=127),
        0.5,
        0.25,
        4,
        tensor=None,
    ),
    broken(
        "stream.range",
        "basis",
        lambda v: basis(entries=np.array([[1, 0], [0, v]], np.int64)),
        MAX_VALUE,
        MAX_VALUE + 1,
        BIG,
        -BIG,
    ),
    broken(
        "stream.range",
        "basis below 0",
        lambda v: basis(entries=np.array([[1, 0], [0, v]], np.int64)),
        -MAX_VALUE,
        -MAX_VALUE - 1,
        -(1 << 31),
    ),
    broken("vector.range", "depth", lambda v: coded(depths=constant(v)), 24, 25, 255, 256, BIG),
    broken("vector.range", "depth, packed", lambda v: coded(depths=vector(4, v)), 24, 25, -1, 300),
    broken(
        "vector.range",
        "depth, coded",
        lambda v: coded(depths=vector(4, v, table=0)),
        24,
        25,
        -1,
        300,
    ),
    broken(
        "vector.range",
        "level",
        lambda v: coded(levels=(vector(0, v), constant(0), constant(0, 1))),
        64,
        65,
        -1,
        255,
    ),
    broken(
        "vector.range",
        "level of all",
        lambda v: coded(levels=(constant(0), constant(v), constant(0, 1))),
        64,
        65,
        -1,
        BIG,
    ),
    broken("vector.range", "row scale", lambda v: coded(row_scales=vector(1, v)), 255, 256, -1),
    broken(
        "vector.range", "multiplier", lambda v: coded(multipliers=vector(1, v)), 200, 256, -1, BIG
    ),
    broken("vector.range", "shift of a basis", lambda v: basis(shifts=constant(v)), 24, 25, -1),
    # ---- heads ----
    broken("head.size", "entries of a basis", lambda v: wide_basis(v, 300), 220, 230),
    broken(
        "head.role",
        "role",
        lambda v: coded((2, 2, 1), roles=(Axis.OUT, Axis.IN, v)),
        Axis.TAPS,
        3,
        255,
    ),
    broken("head.quantizer", "quantizer", lambda v: coded(quantizer=v), 0, 2, 3, 255),
    broken("head.steps", "trellis", lambda v: trellis(steps=v), 1, 0, -1),
    broken("head.steps", "no trellis", lambda v: coded(steps=v), 0, 1, -1),
    broken("head.payload_kind", "kind", lambda v: coded(payload_kind=v), 1, 2, 255),
    broken("head.tile", "rows", lambda v: coded(tile=(v, 2)), 1 << 19, 0, -1, (1 << 19) + 1, BIG),
    broken("head.tile", "columns", lambda v: coded(tile=(1, v)), 1 << 20, 0, -2, (1 << 20) + 1),
    broken("head.scale", "mantissa", lambda v: coded(scale=(v, 0)), 1, 0),
    broken("basis.kind", "kind", lambda v: coded(bases=(Basis(), Basis(), Basis(v))), 1, 3, 255),
    broken(
        "basis.kind",
        "rows",
        lambda v: basis(kind=v),
        BasisKind.EXPLICIT,
        BasisKind.NONE,
        BasisKind.DCT,
        3,
    ),
    broken(
        "basis.kind",
        "no rows",
        lambda v: coded(bases=(Basis(v), Basis(), Basis())),
        BasisKind.NONE,
        BasisKind.EXPLICIT,
    ),
    broken(
        "basis.size",
        "entries",
        lambda v: wide_basis(v, 3),
        2,
        3,
        limits={"tqcodec.format.records.MAX_BASIS": 6},
    ),
    broken(
        "basis.dct",
        "axis",
        lambda v: coded(bases=(Basis(), Basis(v), Basis())),
        BasisKind.NONE,
        BasisKind.DCT,
    ),
    broken("basis.dct", "length", lambda v: empty_kernel(v), 16, 17),
    broken("basis.dct", "dimensions", lambda v: empty_kernel(*[2] * v), 3, 4),
    broken("basis.dct", "positions", lambda v: empty_kernel(16, 16, v), 1, 5),
    broken("class.count", "no class", lambda v: coded(table_map=v), (0,), ()),
    broken(
        "class.count",
        "no class, no coefficients",
        lambda v: coded(table_map=v, depths=constant(0), coefficients=np.zeros((2, 0), np.int16)),
        (0,),
        (),
    ),
    broken("class.table", "uniform", lambda v: coded(table_map=(0, v)), 3, 4, 255, 256, -1, BIG),
    broken("class.table", "trellis", lambda v: trellis(table_map=(0, v)), 0, 3, 4, 255, -1),
    broken("class.low_bits", "pair", lambda v: trellis(table_map=(v,)), 0, 1, 2),
    broken("class.low_bits", "pair without a use", lambda v: trellis(table_map=(0, v)), 0, 1, 2),
    broken(
        "reconstruct.bound",
        "multipliers",
        lambda v: coded(depths=constant(24), multipliers=constant(v)),
        200,
        255,
    ),
    broken(
        "reconstruct.bound",
        "shifts",
        lambda v: basis(entries=np.full((2, 2), 1 << 25), shifts=constant(v)),
        23,
        24,
    ),
    broken("reconstruct.work", "DCT", lambda v: empty_kernel(16, 8, v), 1, 8),
    # ---- payloads, blocks, bundles ----
    broken(
        "payload.depth",
        "range-coded",
        lambda v: coded(coefficients=np.array([[0, 0], [0, v]], np.int64)),
        7,
        8,
        -9,
        MAX_VALUE + 1,
        BIG,
        -BIG,
    ),
    broken(
        "payload.depth",
        "fixed length",
        lambda v: coded(
            payload_kind=PayloadKind.FIXED, coefficients=np.array([[0, 0], [0, v]], np.int64)
        ),
        -8,
        8,
        -9,
        1 << 31,
        BIG,
        -BIG,
    ),
    broken(
        "payload.depth",
        "one column of several",
        lambda v: coded(depths=vector(4, 2), coefficients=np.array([[7, 0], [0, v]], np.int16)),
        1,
        2,
        -3,
        7,
    ),
    broken(
        "payload.depth",
        "trellis",
        lambda v: trellis(coefficients=np.array([[0, 0], [0, v]], np.int64)),
        14,
        16,
        -18,
        (1 << 31) - 2,
        -(1 << 31),
        BIG,
    ),
    broken(
        "payload.depth",
        "trellis, fixed length",
        lambda v: trellis(
            payload_kind=PayloadKind.FIXED, coefficients=np.array([[0, 0], [0, v]], np.int64)
        ),
        -16,
        -18,
        16,
        -(1 << 31),
        BIG,
    ),
    broken(
        "payload.depth",
        "not on the trellis",
        lambda v: trellis(coefficients=np.array([[0, v], [0, 0]], np.int32)),
        2,
        1,
        -3,
        (1 << 30) - 1,
    ),
    broken(
        "bundle.size",
        "elements",
        lambda v: bundled(np.zeros(v, np.uint8), U8, kept=8),
        5,
        6,
        tensor="u",
        limits={"tqcodec.format.container.MAX_SYMBOLS": 8},
    ),
    broken(
        "block.kept",
        "float",
        lambda v: planes(floats(1.5, 1.25), kept=v, offset=127),
        23,
        24,
        300,
        -1,
        BIG,
    ),
    broken(
        "block.kept",
        "integer",
        lambda v: planes(np.arange(4, dtype=np.uint8), U8, kept=v),
        8,
        9,
        300,
        -1,
    ),
    broken(
        "block.kept",
        "bundle",
        lambda v: bundled(floats(1.5, 1.25), kept=v, offset=127),
        23,
        24,
        300,
        -1,
    ),
    broken(
        "block.flags",
        "unsigned integers",
        lambda v: planes(np.arange(4, dtype=np.uint8), U8, kept=8, unsigned=v),
        False,
        True,
    ),
    broken(
        "block.flags",
        "integers with a table",
        lambda v: planes(np.arange(4, dtype=np.uint8), U8, kept=8, table=v),
        None,
        0,
    ),
    broken(
        "block.exponent",
        "without a table",
        lambda v: planes(floats(np.inf, -np.inf), offset=v),
        255,
        256,
        -1,
        1 << 12,
    ),
]


def coded_with(check: int) -> File:
    """A transform-coded tensor, whose check the writer cannot know."""
    (item,) = coded().items
    return File([replace(item, check=check)])


@coders
@pytest.mark.parametrize("case", BROKEN, ids=lambda case: f"{case.rule}-{case.what}")
def test_what_breaks_a_rule_is_an_error_with_its_name(case: Broken, coder: str) -> None:
    with using(coder), ExitStack() as stack:
        for name, value in case.limits.items():
            stack.enter_context(mock.patch(name, value))
        assert write(*case.build(case.right))
        for wrong in case.wrong:
            with pytest.raises(InternalError) as caught:
                write(*case.build(wrong))
            assert (caught.value.rule, caught.value.tensor) == (case.rule, case.tensor), wrong
            assert "\n" not in str(caught.value)


def test_a_directory_of_a_size_that_no_header_states() -> None:
    assert write_header(Header(False, 5, (1 << 32) - 1, 0))
    with pytest.raises(MalformedError, match=r"directory\.size"):
        write_header(Header(False, 5, 1 << 32, 0))


def test_every_rule_is_broken_here_or_by_bytes_only() -> None:
    by_records = {case.rule for case in BROKEN}
    assert not by_records & set(ONLY_BYTES)
    assert by_records | set(ONLY_BYTES) == RULES


# ---- what is wrong in a way that nobody thought of ----


def wild(draw: st.DrawFn, *likely: int) -> int:
    return draw(st.sampled_from([*likely, 0, 1, -1, 3, 64, 255, 256, 1 << 31, BIG]))


def wild_vector(draw: st.DrawFn, old: Vector) -> Vector:
    """The vector with another length, another value or another table."""
    values, what = old.values.astype(np.int64), draw(st.integers(0, 3))
    if what == 0:
        values = values[: draw(st.integers(0, len(values)))]
    elif what == 1:
        values = np.append(values, wild(draw, 2))
    elif what == 2 and len(values):
        values[draw(st.integers(0, len(values) - 1))] = wild(draw, 24, 25)
    # Numbers that the type of a vector forbids, too.
    return Vector(values, wild(draw, 2) if what == 3 else old.table)  # type: ignore[arg-type]


def wild_array(draw: st.DrawFn, old: Array) -> Array:
    """The matrix with another shape or another number."""
    array, what = old.astype(np.int64), draw(st.integers(0, 2))
    if what == 0:
        return array[: draw(st.integers(0, len(array)))]
    if what == 1:
        return np.concatenate([array, array[:, :1]], axis=1)
    if array.size:
        array.ravel()[draw(st.integers(0, array.size - 1))] = wild(draw, 2, -2, 1 << 30)
    return array


def wild_basis(draw: st.DrawFn, old: Basis) -> Basis:
    what = draw(st.integers(0, 3))
    if what == 0 or old.entries is None or old.shifts is None or old.tables is None:
        return replace(old, kind=draw(st.sampled_from(BasisKind)))
    if what == 1:
        return replace(old, entries=wild_array(draw, old.entries))
    if what == 2:
        return replace(old, shifts=wild_vector(draw, old.shifts))
    return replace(old, tables=wild_vector(draw, old.tables))


@st.composite
def wild_cases(draw: st.DrawFn) -> Case:
    """Cases whose record is changed in one to three places."""
    case = draw(cases())
    record = case.record
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(vars(record).keys() - {"kept", "_column_levels"})))
        old = getattr(record, name)
        new: Any
        if isinstance(old, Vector):
            new = wild_vector(draw, old)
        elif isinstance(old, np.ndarray):
            new = wild_array(draw, old)
        elif name == "bases" or name == "levels":
            make: Any = wild_basis if name == "bases" else wild_vector
            place = draw(st.integers(0, 2))
            new = (*old[:place], make(draw, old[place]), *old[place + 1 :])
        elif isinstance(old, tuple):
            what = draw(st.integers(0, len(old)))
            new = (*old[:what], wild(draw, 2), *old[what + draw(st.integers(0, 1)) :])
            if name in ("scale", "tile"):
                new = (*new, 0)[:2]
        else:
            new = wild(draw, 2)
        record = replace(record, **{name: new})
    return replace(case, record=record)


@coders
@examples(400)
@given(case=wild_cases())
def test_a_record_is_written_as_it_is_or_refused(coder: str, case: Case) -> None:
    record = case.record
    with using(coder):
        try:
            data = write([Record("t", case.dtype, case.shape, 0, record)], case.tables, {})
        except InternalError as error:
            assert error.rule in {broken.rule for broken in BROKEN}
            assert error.tensor == "t"
            return
        container = open_bytes(data)
        found = container.record(container.directory.entries[0])
    if record.payload_kind == PayloadKind.FIXED:  # has no classes
        record = replace(record, levels=found.levels, table_map=found.table_map)
    assert_same_record(found, record)


def test_wild_records_are_refused_and_written() -> None:
    """Otherwise the test above would show nothing."""
    outcomes: set[str] = set()

    @settings(max_examples=400)
    @given(case=wild_cases())
    def collect(case: Case) -> None:
        try:
            write([Record("t", case.dtype, case.shape, 0, case.record)], case.tables, {})
        except InternalError as error:
            outcomes.add(error.rule)
        else:
            outcomes.add("written")

    collect()
    assert {"written", "segment.short", "segment.surplus", "vector.range"} < outcomes
    assert len(outcomes) > 12


@coders
@examples(200)
@given(st.data(), parts(), tables())
def test_a_part_is_written_as_it_is_or_refused(
    coder: str, data: st.DataObject, part: Part, known: Tables
) -> None:
    name = data.draw(st.sampled_from(["dtype", "kept", "unsigned", "table", "offset"]))
    new: Any = data.draw(st.sampled_from([0, 1, 2, -1, 8, 127, 256, BIG, -BIG]))
    if name == "dtype":
        new = data.draw(st.sampled_from(list(DTYPES.values())))
    changed = replace(part, **{name: new})
    check, shape = crc(part.patterns), (len(part.patterns),)
    for content in (changed, Bundled(0, changed)):
        with using(coder):
            try:
                file = write([Record("t", part.dtype, shape, check, content)], known, {})
            except InternalError as error:
                assert error.rule in {broken.rule for broken in BROKEN}
                continue
            container = open_bytes(file)
            found = container.decode(container.directory.entries[0])
        assert np.array_equal(found, part.patterns)


# ---- the document of what makes each rule hold ----


def documented() -> list[list[str]]:
    """Rows of docs/limits.md: rule, its words, what makes it hold, test."""
    lines = (ROOT / "docs" / "limits.md").read_text("utf-8").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]


def test_the_document_has_each_rule_once() -> None:
    found = [row[0].strip("`") for row in documented()]
    assert sorted(found) == sorted(RULES)
    assert all(len(row) == 4 and row[1] and row[2] for row in documented())


def test_the_tests_that_the_document_names_exist() -> None:
    for rule, _, _, test in documented():
        file, name = test.strip("`").split("::")
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text("utf-8"), rule


def test_what_the_document_says_makes_rules_hold_exists() -> None:
    for rule, _, how, _ in documented():
        for module, name in re.findall(r"`([a-z_]+)\.([A-Za-z_]+)`", how):
            texts = [path.read_text("utf-8") for path in (ROOT / "tqcodec").rglob(f"{module}.py")]
            defined = rf"^ *(def|class) {name}\b|^{name}\b.*="
            assert any(re.search(defined, text, re.M) for text in texts), (rule, module, name)
