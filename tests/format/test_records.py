"""Transform-coded records: what is written to a file is what is read from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout.coder import even
from layout.file import File
from layout.transform import IN, OUT, Transform
from strategies import Array, Case, cases, coders, examples, rngs, tables, using

from tqcodec.errors import DecodeError, MalformedError, UnsupportedError
from tqcodec.format.container import Container
from tqcodec.format.reader import Reader
from tqcodec.format.records import Basis, CodedTensor, read_head, write_head
from tqcodec.format.registry import Axis, PayloadKind, Quantizer
from tqcodec.format.tables import Table, Tables
from tqcodec.format.vectors import HeadReader, HeadWriter, Vector
from tqcodec.format.writer import Record, write


def open_bytes(data: bytes) -> Container:
    return Container(lambda offset, length: data[offset : offset + length], len(data))


def assert_same_vector(found: Vector, wanted: Vector) -> None:
    assert found.values.tolist() == wanted.values.tolist()
    # A constant vector is laid down without its table.
    if len(set(wanted.values.tolist())) > 1:
        assert found.table == wanted.table


def assert_same_basis(found: Basis, wanted: Basis) -> None:
    assert found.kind == wanted.kind
    if wanted.entries is None or wanted.tables is None or wanted.shifts is None:
        assert found.entries is None
        return
    assert found.entries is not None and found.tables is not None and found.shifts is not None
    assert found.entries.shape == wanted.entries.shape
    assert np.array_equal(found.entries, wanted.entries)
    assert found.tables.values.tolist() == wanted.tables.values.tolist()
    assert_same_vector(found.shifts, wanted.shifts)


def assert_same_record(found: CodedTensor, wanted: CodedTensor) -> None:
    for name in ("roles", "scale", "quantizer", "steps", "payload_kind", "tile", "table_map"):
        assert getattr(found, name) == getattr(wanted, name), name
    for basis, wanted_basis in zip(found.bases, wanted.bases, strict=True):
        assert_same_basis(basis, wanted_basis)
    for levels, wanted_levels in zip(found.levels, wanted.levels, strict=True):
        assert_same_vector(levels, wanted_levels)
    for name in ("depths", "row_scales", "multipliers"):
        assert_same_vector(getattr(found, name), getattr(wanted, name))
    assert found.coefficients.shape == wanted.coefficients.shape
    assert np.array_equal(found.coefficients, wanted.coefficients)


@coders
@examples(300)
@given(case=cases())
def test_records_come_back_from_a_file(coder: str, case: Case) -> None:
    with using(coder):
        data = write([Record("t", case.dtype, case.shape, 0, case.record)], case.tables, {})
        container = open_bytes(data)
        found = container.record(container.directory.entries[0])
    assert_same_record(found, case.record)
    tile_count = max(1, len(case.record.tiles()))
    assert len(container.directory.entries[0].segments) == tile_count


@given(tables(), rngs, st.lists(st.tuples(st.integers(0, 20), st.integers(0, 255)), max_size=4))
def test_vectors_share_the_stream_of_a_head(
    known: Tables, rng: np.random.Generator, wishes: list[tuple[int, int]]
) -> None:
    kinds = [None, 0, 1]
    vectors = [
        Vector(rng.integers(0, most + 1, n).astype(np.uint8), kinds[i % 3])
        for i, (n, most) in enumerate(wishes)
    ]
    writer = HeadWriter(known)
    for vector in vectors:
        writer.vector(vector, len(vector.values))
    head = HeadReader(Reader(writer.end()), known)
    pending = [head.vector(len(v.values)) for v in vectors]
    head.end()
    head.reader.end()
    for found, wanted in zip(pending, vectors, strict=True):
        assert_same_vector(found.get(), wanted)


def test_a_vector_above_its_bound_is_refused() -> None:
    writer = HeadWriter(Tables(()))
    writer.vector(Vector(np.array([1, 9], np.uint8)), 2)
    head = HeadReader(Reader(writer.end()), Tables(()))
    pending = head.vector(2, most=8)
    with pytest.raises(MalformedError, match=r"vector\.range"):
        pending.get()


KNOWN = Tables([Table(0, (4000,), 96), Table(0, (4000,), 96, low_bits=1)])


def small(**changes: Any) -> CodedTensor:
    """A record of a 2 x 2 matrix."""
    record = CodedTensor(
        roles=(Axis.OUT, Axis.IN),
        scale=(1, 0),
        quantizer=Quantizer.UNIFORM,
        steps=0,
        payload_kind=PayloadKind.RANGE,
        tile=(2, 2),
        bases=(Basis(), Basis(), Basis()),
        depths=Vector.constant(4, 2),
        levels=(Vector.constant(0, 2), Vector.constant(0, 2), Vector.constant(0, 1)),
        table_map=(0,),
        row_scales=Vector.constant(1, 2),
        multipliers=Vector.constant(1, 2),
        coefficients=np.array([[1, -2], [3, 0]], np.int16),
    )
    return replace(record, **changes)


def head_of(data: Array | bytes | bytearray) -> CodedTensor:
    return read_head(Reader(bytes(data)), (2, 2), len(data), KNOWN)


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("integer.range", {"scale": (1 << 25, 0)}),
        ("head.scale", {"scale": (0, 0)}),
        ("head.steps", {"quantizer": Quantizer.TRELLIS}),
        (
            "integer.range",
            {
                "quantizer": Quantizer.TRELLIS,
                "steps": 1 << 20,
                "payload_kind": PayloadKind.FIXED,
            },
        ),
        ("head.tile", {"tile": (0, 1)}),
        ("head.tile", {"tile": (1 << 20, 2)}),
        ("class.count", {"table_map": ()}),
        ("integer.range", {"table_map": (0,) * 65}),
        ("class.table", {"table_map": (2,)}),
        ("class.table", {"table_map": (1,), "quantizer": Quantizer.TRELLIS, "steps": 1}),
        ("class.low_bits", {"table_map": (0,), "quantizer": Quantizer.TRELLIS, "steps": 1}),
        ("vector.range", {"depths": Vector.constant(25, 2)}),
    ],
)
def test_hostile_heads_are_refused(rule: str, changes: dict[str, object]) -> None:
    assert head_of(write_head(small(), (2, 2), KNOWN)).scale == (1, 0)
    with pytest.raises(MalformedError) as caught:
        head_of(write_head(small(**changes), (2, 2), KNOWN))
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("position", "value", "rule", "error"),
    [
        (0, 3, "head.role", MalformedError),
        (4, 2, "head.quantizer", UnsupportedError),
        (4, 3, "head.quantizer", UnsupportedError),
        (4, 9, "head.quantizer", UnsupportedError),
        (5, 2, "head.payload_kind", MalformedError),
        (8, 1, "basis.dct", MalformedError),
        (8, 3, "basis.kind", MalformedError),
        (11, 3, "vector.kind", MalformedError),
    ],
)
def test_hostile_bytes_of_a_head_are_refused(
    position: int, value: int, rule: str, error: type[DecodeError]
) -> None:
    data = bytearray(write_head(small(), (2, 2), KNOWN))
    data[position] = value
    with pytest.raises(error) as caught:
        head_of(data)
    assert caught.value.rule == rule


@coders
def test_an_index_outside_its_depth_is_refused(coder: str) -> None:
    record = Transform((2, 2), (OUT, IN), [[1, -2], [3, 0]], depths=2)
    known = [even(-4, 8)]
    tensor = record.tensor(known, elements=b"")
    container = open_bytes(File([tensor], known).build())
    with using(coder), pytest.raises(MalformedError, match=r"payload\.depth"):
        container.record(container.directory.entries[0])
