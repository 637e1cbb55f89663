"""Vectors and the stream of a head (6.2 and 6.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from layout.coder import Table, even, stream
from layout.file import File
from layout.transform import IN, OUT, Basis, Coded, Packed, Transform

from vectors.case import Case, accept, reject
from vectors.common import ANY, NOTHING, broken_head, matrix, square, transform_file

BYTES = even(0, 256)


def cases() -> Iterator[Case]:
    """All vectors of these sections."""
    yield from _vectors()
    yield from _broken_vectors()


def _vectors() -> Iterator[Case]:
    def vector(name: str, text: str, *tables: Table, **changes: Any) -> Case:
        return accept(name, "6.2", text, transform_file(square(**changes), *tables))

    yield vector("constant", "a constant vector", row_scales=7)
    yield vector("constant-255", "a constant vector of 255", row_scales=255, scale=(1, -60))
    for width in range(1, 9):
        values = [1, (1 << width) - 1]
        text = f"a packed vector of {width} bits"
        yield vector(f"packed-{width}", text, row_scales=Packed(values, width))
    text = "a packed vector of equal values, in more bits than they need"
    yield vector("packed-equal", text, row_scales=Packed([2, 2], 8))
    text = "a coded vector"
    yield vector("coded", text, ANY, BYTES, row_scales=Coded([7, 200], 1))
    text = "a coded vector of equal values in a table of one member"
    yield vector("coded-equal", text, ANY, Table(5, (4096,)), row_scales=Coded([5, 5], 1))
    low = even(0, 4, low_bits=6)
    text = "a coded vector with low bits"
    yield vector("coded-low-bits", text, ANY, low, row_scales=Coded([7, 200], 1))
    text = "a coded vector with escapes"
    yield vector("coded-escapes", text, row_scales=Coded([7, 200], 0))
    text = "all vectors are coded, with different tables"
    yield vector(
        "all-coded",
        text,
        ANY,
        even(0, 9),
        BYTES,
        depths=Coded([8, 3, 8], 2),
        levels=(Coded([0, 1], 1), Coded([1, 0, 1], 0), Coded([0], 0)),
        table_map=[0, 0, 0],
        row_scales=Coded([33, 5], 2),
        multipliers=Coded([1, 8, 3], 1),
    )
    text = "vectors of no values, of each kind: a basis without rows leaves no channels"
    none = Transform(
        (1, 2),
        (OUT, IN),
        [[]],
        bases={IN: Basis([], [])},
        depths=Packed([], 3),
        levels=(0, Coded([], 0), 0),
        multipliers=5,
    )
    yield accept("no-values", "6.2", text, transform_file(none))


def _broken_vectors() -> Iterator[Case]:
    yield broken_head("vector.kind", "6.2", "kind 3 of a vector", raw={"row_scales": b"\3\1"})
    for width in (0, 9):
        text = f"a packed vector of {width} bits"
        data = bytes([1, width]) + b"\1" * width
        yield broken_head(f"vector.width@{width}", "6.2", text, raw={"row_scales": data})
    text = "depths of 25: a constant vector"
    yield broken_head("vector.range", "6.2", text, depths=25)
    yield broken_head(
        "vector.range@packed", "6.2", "a packed depth of 25", depths=Packed([8, 25, 8], 5)
    )
    text = "a coded depth of 25"
    yield broken_head("vector.range@coded", "6.2", text, depths=Coded([8, 25, 8], 0))
    text = "a coded row scale of 256"
    yield broken_head("vector.range@256", "6.2", text, raw=_row_scales([1, 256]))
    text = "a coded row scale of -1"
    yield broken_head("vector.range@negative", "6.2", text, raw=_row_scales([1, -1]))
    text = "a level of 65"
    yield broken_head("vector.range@level", "6.2", text, levels=(Packed([0, 65], 7), 0, 0))
    text = "a constant vector of 256, where uv(255) stands"
    yield broken_head("integer.range@vector", "6.2", text, row_scales=256)
    text = "a shift of 25 in a basis"
    basis = Basis([[1, 0, 0]], [0], 25)
    coded = matrix([1], [0], shape=(2, 3), bases={IN: basis}, scale=(1, -30))
    yield reject("vector.range@shift", "6.2", text, transform_file(coded))
    text = "a spare bit behind a packed vector is 1"
    yield broken_head("bits.spare@vector", "6.1", text, raw={"row_scales": b"\1\2\x15"})
    text = "a vector coded with table 1 of 1"
    yield broken_head("table.index@vector", "5.1", text, raw={"row_scales": b"\2\1"})
    cut = [square().head([ANY])[:-6]]
    file = File([square().tensor(segments=cut, elements=b"")], [ANY])
    yield reject("segment.short@head", "3.3", "the segment ends in the head", file)
    text = "one coded integer of the head more than 2^16 + 4 * E"
    length = 259  # 259^2 is the first square above 2^16 + 4 * n
    basis = Basis([[0] * length] * length, [0] * length)
    coded = Transform((length,), (IN,), [[]], bases={IN: basis}, depths=0)
    yield reject("head.size", "6.3", text, transform_file(coded, NOTHING))
    text = "as many coded integers of a head as there may be but one"
    basis = Basis([[0] * length] * (length - 2), [0] * (length - 2))
    coded = Transform((length,), (IN,), [[]], bases={IN: basis}, depths=0, scale=(5, 0))
    yield accept("large-head", "6.3", text, transform_file(coded, NOTHING))


def _row_scales(values: list[int]) -> dict[str, bytes]:
    """A coded vector of any integers, as the only one of the head."""
    return {"row_scales": b"\2\0", "stream": stream(values, [0] * len(values), [ANY])}
