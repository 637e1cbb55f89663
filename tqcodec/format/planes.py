"""Blocks of numbers as exponents and planes of bits (chapter 8).

The exponents of floating-point numbers are range-coded; the sign and the mantissa bits that are
kept, and the bits of integers, are laid down in planes of 8 bits, each packed or deflated. With all
mantissa bits kept the coding is lossless; with m of them its relative error is at most 2^-(m+1).

A block holds one or several parts, each a tensor or a piece of one. Imports numpy only, besides the
layers below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.format import packing, stream
from tqcodec.format import reader as io
from tqcodec.format.dtypes import DType
from tqcodec.format.reader import Reader
from tqcodec.format.registry import MAX_OFFSET, MAX_PART_HEAD, PlaneKind
from tqcodec.format.tables import Tables

UNSIGNED, CODED = 1, 2


@dataclass(frozen=True, eq=False)
class Part:
    """Numbers of one type and how they are coded.

    Attributes:
        dtype: element type.
        patterns: bit patterns, 1-D. Bits that the part does not keep must be 0.
        kept: mantissa bits kept of a floating-point type; low bits kept of an integer.
        unsigned: True where no number has its sign bit set (floating point only).
        table: table of the exponents, None where all exponents equal `offset`.
        offset: subtracted from the biased exponents before coding.
    """

    dtype: DType
    patterns: NDArray[np.unsignedinteger]
    kept: int
    unsigned: bool = False
    table: int | None = None
    offset: int = 0

    @property
    def flags(self) -> int:
        """The element `flags`."""
        return (UNSIGNED if self.unsigned else 0) | (CODED if self.table is not None else 0)

    @property
    def width(self) -> int:
        """Bits of each number in the planes."""
        return self.kept + (1 if self.dtype.is_float and not self.unsigned else 0)

    def piece(self, start: int, stop: int) -> Part:
        """Some of the numbers, coded alike."""
        return replace(self, patterns=self.patterns[start:stop])


def write_block(parts: Sequence[Part], tables: Tables) -> bytes:
    """The element `block`.

    Raises:
        MalformedError: a part that a block cannot hold, as of `write_part`, or exponents that its
            table cannot.
    """
    head = b"".join(write_part(part, tables) for part in parts)
    out = _write_plane(np.frombuffer(head, np.uint8), np.full(len(head), 8, np.uint8))
    out = io.uv(len(head)) + out
    coded = [p for p in parts if p.table is not None]
    if coded:
        values = np.concatenate([_exponents(p) - np.int32(p.offset) for p in coded])
        ids = np.concatenate([np.full(len(p.patterns), p.table, np.uint8) for p in coded])
        out += stream.write_stream(values[None], ids[None], tables)
    for plane in range(_planes(parts)):
        pieces = [_plane_values(p, plane) for p in parts if p.width > 8 * plane]
        out += _write_plane(np.concatenate(pieces), _plane_widths(parts, plane))
    return out


def write_part(part: Part, tables: Tables) -> bytes:
    """The element `part`.

    Raises:
        MalformedError: more bits kept than there are, flags that the type does not have, no such
            table, or an offset beyond its bound.
    """
    _check_kept(part.dtype, part.kept, part.flags, io.check)
    out = io.u8(part.kept) + io.u8(part.flags)
    if part.table is not None:
        tables.check_index(part.table, io.check)
        out += io.u8(part.table)
    return out + (io.sv(part.offset, MAX_OFFSET) if part.dtype.is_float else b"")


def read_block(reader: Reader, shapes: Sequence[tuple[DType, int]], tables: Tables) -> list[Part]:
    """Inverse of `write_block`; `shapes` gives type and length of each part."""
    size = reader.uv(MAX_PART_HEAD * len(shapes))
    head = Reader(
        _read_plane(reader, np.full(size, 8, np.uint8)).tobytes(), reader.base, reader.tensor
    )
    parts = [_read_head(head, dtype, count, tables) for dtype, count in shapes]
    head.end()
    coded = [p for p in parts if p.table is not None]
    exponents = np.zeros(0, np.int32)
    if coded:
        ids = np.concatenate([np.full(len(p.patterns), p.table, np.uint8) for p in coded])
        exponents = stream.read_stream(reader, ids[None], tables)[1][0]
    start = 0
    for part in parts:
        if part.dtype.is_float:
            count = len(part.patterns) if part.table is not None else 0
            _put_exponents(part, exponents[start : start + count], reader)
            start += count
    for plane in range(_planes(parts)):
        values, start = _read_plane(reader, _plane_widths(parts, plane)), 0
        for part in parts:
            if part.width > 8 * plane:
                _put_plane(part, values[start : start + len(part.patterns)], plane)
                start += len(part.patterns)
    reader.end()
    return parts


def _read_head(head: Reader, dtype: DType, count: int, tables: Tables) -> Part:
    kept, flags = head.u8(), head.u8()
    _check_kept(dtype, kept, flags, head.check)
    table = None
    if flags & CODED:
        table = head.u8()
        tables.check_index(table, head.check)
    offset = head.sv(MAX_OFFSET) if dtype.is_float else 0
    patterns = np.zeros(count, dtype.pattern)
    return Part(dtype, patterns, kept, bool(flags & UNSIGNED), table, offset)


def _check_kept(dtype: DType, kept: int, flags: int, check: io.Check) -> None:
    """Check the bits kept, and the flags, of a part of some type (8.1)."""
    most = dtype.mantissa_bits if dtype.is_float else 8 * dtype.size
    check(0 <= kept <= most, "block.kept", f"{kept} bits kept of {most}")
    allowed = UNSIGNED | CODED if dtype.is_float else 0
    check(flags | allowed == allowed, "block.flags", f"flags {flags}")


def _exponents(part: Part) -> NDArray[np.int32]:
    mask = (1 << part.dtype.exponent_bits) - 1
    return (part.patterns >> part.dtype.mantissa_bits & mask).astype(np.int32)


def _put_exponents(part: Part, coded: NDArray[np.int32], reader: Reader) -> None:
    values = coded.astype(np.int64) + part.offset if part.table is not None else part.offset
    exponents = np.broadcast_to(values, part.patterns.shape)
    if len(exponents):
        inside = exponents.min() >= 0 and exponents.max() < 1 << part.dtype.exponent_bits
        reader.check(bool(inside), "block.exponent", "exponent outside its type's range")
    part.patterns[:] = exponents.astype(part.dtype.pattern) << part.dtype.mantissa_bits


def _planes(parts: Sequence[Part]) -> int:
    return max((-(-p.width // 8) for p in parts if len(p.patterns)), default=0)


def _plane_widths(parts: Sequence[Part], plane: int) -> NDArray[np.uint8]:
    wide = [p for p in parts if p.width > 8 * plane]
    widths = np.array([min(8, p.width - 8 * plane) for p in wide], np.uint8)
    return np.repeat(widths, [len(p.patterns) for p in wide])


def _plane_values(part: Part, plane: int) -> NDArray[np.uint8]:
    """Bits 8 * plane and up of (kept mantissa << 1 | sign), kept mantissa, or integer."""
    dtype, rest = part.dtype, part.patterns
    number = dtype.pattern.type
    if dtype.is_float:
        mantissa = rest & number((1 << dtype.mantissa_bits) - 1)
        kept = mantissa >> number(dtype.mantissa_bits - part.kept)
        sign = rest >> number(8 * dtype.size - 1)
        rest = kept if part.unsigned else kept << number(1) | sign
    low = rest >> number(8 * plane)
    return (low & number((1 << min(8, part.width - 8 * plane)) - 1)).astype(np.uint8)


def _put_plane(part: Part, values: NDArray[np.uint8], plane: int) -> None:
    dtype = part.dtype
    rest = values.astype(dtype.pattern)
    if not dtype.is_float:
        part.patterns[:] |= rest << (8 * plane)
        return
    shift = 8 * plane + dtype.mantissa_bits - part.kept
    if part.unsigned:
        part.patterns[:] |= rest << shift
        return
    if plane == 0:
        part.patterns[:] |= (rest & 1) << (8 * dtype.size - 1)
        part.patterns[:] |= rest >> 1 << shift
    else:
        part.patterns[:] |= rest << (shift - 1)


def _write_plane(values: NDArray[np.uint8], widths: NDArray[np.uint8]) -> bytes:
    packed = values.tobytes() if (widths == 8).all() else packing.pack(values, widths)
    deflated = io.deflate(values.tobytes())
    deflated = io.uv(len(deflated)) + deflated
    if len(deflated) < len(packed):
        return bytes([PlaneKind.DEFLATED]) + deflated
    return bytes([PlaneKind.PACKED]) + packed


def _read_plane(reader: Reader, widths: NDArray[np.uint8]) -> NDArray[np.uint8]:
    kind = reader.u8()
    reader.check(kind in list(PlaneKind), "plane.kind", f"unknown kind {kind}")
    if kind == PlaneKind.PACKED:
        if (widths == 8).all():
            return np.frombuffer(reader.take(len(widths)), np.uint8)
        return packing.unpack(reader, widths).astype(np.uint8)
    data = io.inflate(reader.take(reader.uv(reader.remaining)), len(widths), reader)
    values = np.frombuffer(data, np.uint8)
    fits = bool((values >> np.minimum(widths, 7) >> (widths == 8) == 0).all())
    reader.check(fits, "plane.range", "a plane value wider than its width")
    return values
