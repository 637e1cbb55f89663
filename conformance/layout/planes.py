"""Blocks: exponents and planes of bits (chapter 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from layout.coder import Table, stream
from layout.elements import pack, sv, uv
from layout.file import PLANES, Tensor
from layout.numbers import DTYPES, to_bytes

UNSIGNED, CODED = 1, 2
PACKED, DEFLATED = 0, 1


def packed_plane(values: Sequence[int], widths: Sequence[int]) -> bytes:
    """A plane of kind PACKED."""
    return bytes([PACKED]) + pack(values, widths)


def deflated_plane(data: bytes) -> bytes:
    """A plane of kind DEFLATED, of any stream."""
    return bytes([DEFLATED]) + uv(len(data)) + data


@dataclass(frozen=True)
class Part:
    """Numbers of one type, as patterns; bits that the part does not keep are 0."""

    dtype: str
    patterns: Sequence[int]
    kept: int
    unsigned: bool = False
    table: int | None = None
    offset: int = 0

    @property
    def width(self) -> int:
        """Bits of a rest."""
        return self.kept + (1 if DTYPES[self.dtype].exponent and not self.unsigned else 0)

    @property
    def head(self) -> bytes:
        """The element `part`."""
        flags = (UNSIGNED if self.unsigned else 0) | (CODED if self.table is not None else 0)
        out = bytes([self.kept, flags])
        out += bytes([self.table]) if self.table is not None else b""
        return out + (sv(self.offset) if DTYPES[self.dtype].exponent else b"")

    def exponents(self) -> list[int]:
        """What the stream codes."""
        kind = DTYPES[self.dtype]
        mask = (1 << kind.exponent) - 1
        return [(p >> kind.mantissa & mask) - self.offset for p in self.patterns]

    def rests(self) -> list[int]:
        """The rest of each number."""
        kind = DTYPES[self.dtype]
        if not kind.exponent:
            return list(self.patterns)
        kept = [
            (p & (1 << kind.mantissa) - 1) >> (kind.mantissa - self.kept) for p in self.patterns
        ]
        if self.unsigned:
            return kept
        signs = [p >> 8 * kind.size - 1 for p in self.patterns]
        return [2 * y + s for y, s in zip(kept, signs, strict=True)]

    @property
    def elements(self) -> bytes:
        """The decoded bytes."""
        return to_bytes(self.patterns, self.dtype)

    def tensor(
        self, known: Sequence[Table] = (), name: str = "t", shape: Any = None, **changes: Any
    ) -> Tensor:
        """A tensor of this part alone; `changes` are fields of `Tensor`."""
        count = len(self.patterns)
        changes.setdefault("elements", self.elements)
        if "segments" not in changes and "bundle" not in changes:
            changes["segments"] = [block([self], known)] if count else []
        return Tensor(
            name, self.dtype, (count,) if shape is None else shape, coding=PLANES, **changes
        )


@dataclass(frozen=True)
class Changes:
    """Bytes to be put instead of elements of a block."""

    head_size: bytes | None = None
    head: bytes | None = None  # values of the first plane
    head_plane: bytes | None = None  # the whole first plane
    stream: bytes | None = None
    planes: Mapping[int, bytes] = field(default_factory=dict)


NO_CHANGES = Changes()


def block(
    parts: Sequence[Part], known: Sequence[Table] = (), changes: Changes = NO_CHANGES
) -> bytes:
    """The element `block`."""
    head = b"".join(part.head for part in parts) if changes.head is None else changes.head
    out = uv(len(head)) if changes.head_size is None else changes.head_size
    out += bytes([PACKED]) + head if changes.head_plane is None else changes.head_plane
    coded = [part for part in parts if part.table is not None]
    if changes.stream is not None:
        out += changes.stream
    elif coded:
        values = [value for part in coded for value in part.exponents()]
        ids = [part.table or 0 for part in coded for _ in part.patterns]
        out += stream(values, ids, known)
    count = max((-(-part.width // 8) for part in parts if part.patterns), default=0)
    for plane in range(count):
        wide = [part for part in parts if part.width > 8 * plane]
        values = [rest >> 8 * plane for part in wide for rest in part.rests()]
        widths = [min(8, part.width - 8 * plane) for part in wide for _ in part.patterns]
        out += changes.planes.get(plane, packed_plane(values, widths))
    return out
