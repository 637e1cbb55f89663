"""Small things that vectors of several chapters are made of."""

from __future__ import annotations

from typing import Any

from layout.coder import Table, even
from layout.file import File, Tensor
from layout.planes import Changes, Part, block
from layout.transform import IN, OUT, Transform

from vectors.case import Case, reject

# Any small integer: -4 .. 3 by its symbol, others by the escape.
ANY = Table(-4, (100, 400, 800, 1400, 800, 400, 100, 80), 16)
EVEN = even(-2, 4)  # -2 .. 1
BITS = even(0, 2)  # 0 and 1
NOTHING = Table(0, (4096,))  # only 0, which takes no bits


def one(dtype: str = "U8", elements: bytes = b"\x05", name: str = "t", **changes: Any) -> Tensor:
    """A RAW tensor of one element or a few."""
    size = {"U8": 1, "BOOL": 1, "F32": 4, "U16": 2}[dtype]
    changes.setdefault("shape", (len(elements) // size,))
    return Tensor(name, dtype, elements=elements, **changes)


def matrix(*rows: list[int], **changes: Any) -> Transform:
    """A transform-coded matrix of rows and inputs with the uniform quantizer."""
    fields: dict[str, Any] = {"roles": (OUT, IN), "indices": rows} | changes
    fields.setdefault("shape", (len(rows), len(rows[0])))
    return Transform(**fields)


def transform_file(tensor: Transform, *tables: Table) -> File:
    """A file of one transform-coded tensor; with table `ANY` if no other is given."""
    known = tables or (ANY,)
    return File([tensor.tensor(known)], known)


def planes_file(part: Part, *tables: Table, **changes: Any) -> File:
    """A file of one tensor in planes; `changes` are those of its only block."""
    segment = block([part], tables, Changes(**changes))
    return File([part.tensor(tables, segments=[segment])], tables or None)


def square(**changes: Any) -> Transform:
    """Two rows and three inputs, whose head is to be looked at."""
    return matrix([1, -2, 3], [0, 2, -1], **({"scale": (1, -2)} | changes))


def broken_head(name: str, section: str, text: str, *tables: Table, **changes: Any) -> Case:
    """The head of `square`, with something wrong."""
    return reject(name, section, text, transform_file(square(**changes), *tables))
