"""The record of a transform-coded tensor, and its head (chapter 9).

`CodedTensor` is the waist of the library: integers and tables' indices, no floats. Encoders make
it, the writer lays it down, the reconstruction turns it into weights. Imports numpy only, besides
the layers below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tqcodec.format import reader as io
from tqcodec.format.reader import Reader
from tqcodec.format.registry import (
    FREE_CHANNELS,
    MAX_BASIS,
    MAX_BASIS_SHIFT,
    MAX_CLASSES,
    MAX_DCT,
    MAX_DCT_DIMENSIONS,
    MAX_DCT_TAPS,
    MAX_DEPTH,
    MAX_HEAD,
    MAX_SCALE_EXPONENT,
    MAX_SCALE_MANTISSA,
    MAX_STEPS,
    MAX_SYMBOLS,
    RESERVED_QUANTIZERS,
    WORK_PER_BYTE,
    Axis,
    BasisKind,
    PayloadKind,
    Quantizer,
)
from tqcodec.format.tables import Tables
from tqcodec.format.vectors import HeadReader, HeadWriter, PendingVector, Vector


@dataclass(frozen=True, eq=False)
class Basis:
    """Synthesis vectors of one axis, as rows of integers.

    Row k is ``entries[k] << shifts[k]``. A DCT basis has no entries: chapter 10 gives them.

    Attributes:
        kind: none, the DCT of the format, or explicit.
        entries: int32 (rows, length of the axis), for an explicit basis.
        shifts: power of two of each row, `Vector` of `rows`.
        tables: table of the entries of each row, `Vector` of `rows`.
    """

    kind: BasisKind = BasisKind.NONE
    entries: NDArray[np.int32] | None = None
    shifts: Vector | None = None
    tables: Vector | None = None


@dataclass(frozen=True, eq=False)
class CodedTensor:
    """A transform-coded tensor. Symbols as in chapter 9: O', I', T' are channels of the axes.

    Attributes:
        roles: axis of each dimension of the tensor.
        scale: (mantissa, exponent): the step is ``mantissa * 2 ** exponent``.
        quantizer: what an index stands for.
        steps: rows of a trellis segment; 0 without trellis.
        payload_kind: range-coded or fixed-length.
        tile: (rows, columns) of a payload.
        bases: basis of the axes out, in, taps.
        depths: bits of the signed range of the indices of each column, uint8 (I' * T').
        levels: class contributions of the channels of the three axes; their sum is a class.
        table_map: table of each class.
        row_scales: 5-bit-mantissa codes, one for each row of the output axis.
        multipliers: 3-bit-mantissa codes, one for each column (I' * T').
        coefficients: signed integers (O', columns of non-zero depth).
    """

    roles: tuple[Axis, ...]
    scale: tuple[int, int]
    quantizer: Quantizer
    steps: int
    payload_kind: PayloadKind
    tile: tuple[int, int]
    bases: tuple[Basis, Basis, Basis]
    depths: Vector
    levels: tuple[Vector, Vector, Vector]
    table_map: tuple[int, ...]
    row_scales: Vector
    multipliers: Vector
    coefficients: NDArray[np.signedinteger]

    @cached_property
    def kept(self) -> NDArray[np.int64]:
        """Columns of non-zero depth, ascending."""
        return np.flatnonzero(self.depths.values)

    def tiles(self) -> list[tuple[slice, slice]]:
        """Rows and columns of the coefficients of each payload, in order."""
        return tiles(self.coefficients.shape[0], self.coefficients.shape[1], self.tile)

    def table_ids(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """Table of each coefficient of a tile: uint8 (rows, columns)."""
        # Sums of three levels, each at most MAX_CLASSES, fit eight bits.
        table_map = np.full(3 * MAX_CLASSES + 1, self.table_map[-1], np.uint8)
        table_map[: len(self.table_map)] = self.table_map
        out = self.levels[Axis.OUT].values[rows, None]
        return table_map.take(out + self._column_levels[columns])

    @cached_property
    def _column_levels(self) -> NDArray[np.uint8]:
        """Sum of the levels of each kept column."""
        inn, taps = self.levels[Axis.IN].values, self.levels[Axis.TAPS].values
        levels: NDArray[np.uint8] = (inn[:, None] + taps[None, :]).ravel()[self.kept]
        return levels


def tiles(rows: int, columns: int, tile: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Tiles of a (rows, columns) array: bands of rows from the top, each from left to right."""
    return [
        (slice(r, min(r + tile[0], rows)), slice(c, min(c + tile[1], columns)))
        for r in range(0, rows, tile[0])
        for c in range(0, columns, tile[1])
    ]


def tile_count(rows: int, columns: int, tile: tuple[int, int]) -> int:
    """Number of `tiles`."""
    return -(-rows // tile[0]) * -(-columns // tile[1])


def axis_lengths(shape: Sequence[int], roles: Sequence[Axis]) -> tuple[int, int, int]:
    """Lengths of the axes out, in, taps: products of the dimensions of each role."""
    out, inn, taps = (
        math.prod(n for n, role in zip(shape, roles, strict=True) if role == axis) for axis in Axis
    )
    return out, inn, taps


def taps_lengths(shape: Sequence[int], roles: Sequence[Axis]) -> list[int]:
    """Lengths of the dimensions that make up the axis taps."""
    return [n for n, role in zip(shape, roles, strict=True) if role == Axis.TAPS]


def axis_order(roles: Sequence[Axis]) -> list[int]:
    """Dimensions sorted by their role: those of out, of in, of taps, each in their order."""
    return sorted(range(len(roles)), key=lambda d: (roles[d], d))


def write_head(coded: CodedTensor, shape: Sequence[int], tables: Tables) -> bytes:
    """The element `transform_head`.

    Args:
        coded: the record.
        shape: of the tensor.
        tables: of the file.

    Raises:
        MalformedError: parts of the record that do not fit each other, or what a head cannot hold.
            `read_head` finds the rest of what is wrong.
    """
    io.check_length(len(coded.roles), len(shape), "roles")
    check_steps(coded.quantizer, coded.steps, io.check)
    check_tile(coded.tile, io.check)
    lengths = axis_lengths(shape, coded.roles)
    head = HeadWriter(tables)
    head.out += b"".join(map(io.u8, coded.roles))
    head.out += io.uv(coded.scale[0]) + io.sv(coded.scale[1])
    head.out += io.u8(coded.quantizer)
    if coded.quantizer == Quantizer.TRELLIS:
        head.out += io.uv(coded.steps)
    head.out += io.u8(coded.payload_kind)
    head.out += io.uv(coded.tile[0]) + io.uv(coded.tile[1])
    channels = [_write_basis(head, coded.bases[axis], lengths[axis]) for axis in Axis]
    columns = channels[Axis.IN] * channels[Axis.TAPS]
    head.vector(coded.depths, columns, MAX_DEPTH)
    ranged = coded.payload_kind == PayloadKind.RANGE
    if ranged:
        check_classes(coded.table_map, coded.quantizer, tables, io.check)
        head.out += io.uv(len(coded.table_map), MAX_CLASSES) + bytes(coded.table_map)
    for level, length in zip(coded.levels, channels, strict=True):
        if ranged:
            head.vector(level, length, MAX_CLASSES)
        else:
            io.check_length(len(level.values), length, "levels")
    head.vector(coded.row_scales, lengths[Axis.OUT])
    head.vector(coded.multipliers, columns)
    io.check_length(coded.coefficients.shape[0], channels[Axis.OUT], "rows of coefficients")
    io.check_length(coded.coefficients.shape[1], len(coded.kept), "columns of coefficients")
    return head.end()


def _write_basis(head: HeadWriter, basis: Basis, length: int) -> int:
    """The element `basis`; returns the number of its channels."""
    head.out += io.u8(basis.kind)
    entries, shifts, ids = basis.entries, basis.shifts, basis.tables
    if entries is None or shifts is None or ids is None:
        io.check(basis.kind != BasisKind.EXPLICIT, "basis.kind", "an explicit basis without rows")
        return length
    io.check(basis.kind == BasisKind.EXPLICIT, "basis.kind", "rows of a basis that has none")
    rows = len(entries)
    io.check_length(math.prod(entries.shape[1:]), length, "entries of a row of a basis")
    io.check_length(len(ids.values), rows, "tables of a basis")
    head.out += io.uv(rows, length)
    for index in ids.values:
        head.table(int(index))
    head.vector(shifts, rows, MAX_BASIS_SHIFT)
    head.rows(entries, ids.values.tolist(), length)
    return rows


def check_steps(quantizer: int, steps: int, check: io.Check) -> None:
    """Check that there are rows in a segment of the trellis, and none without one (9.1)."""
    trellis = quantizer == Quantizer.TRELLIS
    check(steps > 0 if trellis else steps == 0, "head.steps", f"segments of {steps} rows")


def check_tile(tile: tuple[int, int], check: io.Check) -> None:
    """Check that a tile has indices, and not too many (9.1)."""
    fits = min(tile) > 0 and tile[0] * tile[1] <= MAX_SYMBOLS
    check(fits, "head.tile", f"tile of {tile[0]} x {tile[1]}")


@dataclass(frozen=True, eq=False)
class _PendingBasis:
    kind: BasisKind
    length: int  # channels of the axis
    entries: NDArray[np.int32] | None = None
    shifts: PendingVector | None = None
    tables: Vector | None = None

    def get(self) -> Basis:
        shifts = self.shifts.get() if self.shifts is not None else None
        return Basis(self.kind, self.entries, shifts, self.tables)


def work_is_paid(elements: int, channels: int, stored: int) -> bool:
    """True if so many bytes may ask for a basis of so many channels (10.1)."""
    return elements * channels <= FREE_CHANNELS * elements + WORK_PER_BYTE * stored


def read_head(reader: Reader, shape: Sequence[int], stored: int, tables: Tables) -> CodedTensor:
    """Inverse of `write_head`; the coefficients have their shape and are all zero.

    Args:
        reader: at the start of the first segment.
        shape: of the tensor.
        stored: bytes of all segments of the tensor.
        tables: of the file.
    """
    elements = math.prod(shape)
    head = HeadReader(reader, tables, min(MAX_HEAD, (1 << 16) + 4 * elements))
    check = reader.check
    codes = bytes(reader.take(len(shape)))
    check(all(c <= max(Axis) for c in codes), "head.role", f"unknown role in {list(codes)}")
    roles = tuple(Axis(c) for c in codes)
    mantissa = reader.uv(MAX_SCALE_MANTISSA)
    check(mantissa > 0, "head.scale", "scale of 0")
    scale = (mantissa, reader.sv(MAX_SCALE_EXPONENT))
    quantizer = _read_quantizer(reader)
    steps = reader.uv(MAX_STEPS) if quantizer == Quantizer.TRELLIS else 0
    check_steps(quantizer, steps, check)
    kind = reader.u8()
    check(kind in list(PayloadKind), "head.payload_kind", f"unknown kind {kind}")
    tile = (reader.uv(MAX_SYMBOLS), reader.uv(MAX_SYMBOLS))
    check_tile(tile, check)
    lengths = axis_lengths(shape, roles)
    taps = taps_lengths(shape, roles)
    bases = [_read_basis(head, axis, lengths[axis], taps) for axis in Axis]
    rows, inner, outer = (basis.length for basis in bases)
    channels = sum(basis.length for basis in bases if basis.kind != BasisKind.NONE)
    check(work_is_paid(elements, channels, stored), "reconstruct.work", f"{channels} channels")
    depths = head.vector(inner * outer, MAX_DEPTH)
    table_map, levels = _read_classes(head, (rows, inner, outer), kind, quantizer, tables)
    row_scales = head.vector(lengths[0])
    multipliers = head.vector(inner * outer)
    head.end()
    depth = depths.get()
    columns = np.count_nonzero(depth.values)
    return CodedTensor(
        roles=roles,
        scale=scale,
        quantizer=quantizer,
        steps=steps,
        payload_kind=PayloadKind(kind),
        tile=tile,
        bases=(bases[0].get(), bases[1].get(), bases[2].get()),
        depths=depth,
        levels=(levels[0].get(), levels[1].get(), levels[2].get()),
        table_map=table_map,
        row_scales=row_scales.get(),
        multipliers=multipliers.get(),
        coefficients=np.zeros((rows, columns), _narrowest(depth)),
    )


def _narrowest(depths: Vector) -> type[np.signedinteger]:
    """Type that holds the coefficients of indices of these depths; a trellis doubles them."""
    return np.int16 if not len(depths.values) or depths.values.max() < 15 else np.int32


def _read_quantizer(reader: Reader) -> Quantizer:
    code = reader.u8()
    if code not in list(Quantizer):
        feature = RESERVED_QUANTIZERS.get(code, f"quantizer {code}")
        raise io.unsupported(reader, "head.quantizer", feature)
    return Quantizer(code)


def _read_basis(head: HeadReader, axis: Axis, length: int, taps: Sequence[int]) -> _PendingBasis:
    reader = head.reader
    kind = reader.u8()
    reader.check(kind in list(BasisKind), "basis.kind", f"unknown kind {kind}")
    if kind == BasisKind.NONE:
        return _PendingBasis(BasisKind.NONE, length)
    if kind == BasisKind.DCT:
        fits = axis == Axis.TAPS and has_dct(taps)
        reader.check(fits, "basis.dct", f"no DCT of this length on axis {axis.name.lower()}")
        return _PendingBasis(BasisKind.DCT, length)
    rows = reader.uv(length)
    reader.check(rows * length <= MAX_BASIS, "basis.size", f"basis of {rows} x {length}")
    ids = np.frombuffer(reader.take(rows), np.uint8)
    if rows:
        head.tables.check_index(int(ids.max()), reader.check)
    shifts = head.vector(rows, MAX_BASIS_SHIFT)
    entries = head.rows(ids, length)
    return _PendingBasis(BasisKind.EXPLICIT, rows, entries, shifts, Vector(ids))


def _read_classes(
    head: HeadReader,
    lengths: tuple[int, int, int],
    kind: int,
    quantizer: Quantizer,
    tables: Tables,
) -> tuple[tuple[int, ...], list[PendingVector]]:
    reader = head.reader
    if kind == PayloadKind.FIXED:
        return (0,), [PendingVector(0, reader, _zeros(n)) for n in lengths]
    table_map = tuple(reader.take(reader.uv(MAX_CLASSES)))
    check_classes(table_map, quantizer, tables, reader.check)
    return table_map, [head.vector(n, MAX_CLASSES) for n in lengths]


def check_classes(
    table_map: tuple[int, ...], quantizer: Quantizer, tables: Tables, check: io.Check
) -> None:
    """Check that each class has its table, or its pair of tables (9.5)."""
    check(len(table_map) > 0, "class.count", "no class")
    paired = quantizer == Quantizer.TRELLIS
    for index in table_map:
        known = 0 <= index < len(tables) - (1 if paired else 0)
        check(known, "class.table", f"no {'pair of tables' if paired else 'table'} {index}")
        if paired:
            same = tables[index].low_bits == tables[index + 1].low_bits
            check(same, "class.low_bits", f"pair of tables {index} differs in low bits")


def has_dct(taps: Sequence[int]) -> bool:
    """True for lengths of the taps' dimensions that may have a DCT."""
    short = all(1 <= n <= MAX_DCT for n in taps) and math.prod(taps) <= MAX_DCT_TAPS
    return short and len(taps) <= MAX_DCT_DIMENSIONS


def _zeros(length: int) -> NDArray[np.int32]:
    return np.broadcast_to(np.int32(0), (length,))
