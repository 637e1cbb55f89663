"""Transform-coded tensors: heads, payloads and weights (chapters 6, 7, 9 and 10)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from layout.coder import Table, stream, trellis
from layout.elements import pack, packed, sv, uv
from layout.file import TRANSFORM, Tensor
from layout.numbers import dct, expand, to_bytes, weight

OUT, IN, TAPS = 0, 1, 2
UNIFORM, TRELLIS = 0, 1
RANGE, FIXED = 0, 1
NONE, DCT, EXPLICIT = 0, 1, 2
CONSTANT, PACKED, CODED = 0, 1, 2


@dataclass(frozen=True)
class Coded:
    """A vector in the stream of the head."""

    values: Sequence[int]
    table: int


@dataclass(frozen=True)
class Packed:
    """A vector of packed values."""

    values: Sequence[int]
    width: int


Vector = int | Coded | Packed  # an integer is a constant vector


@dataclass(frozen=True)
class Basis:
    """An explicit basis: rows of entries, the table of each row, and shifts."""

    entries: Sequence[Sequence[int]]
    tables: Sequence[int]
    shifts: Vector = 0


def _values(vector: Vector, count: int) -> list[int]:
    return [vector] * count if isinstance(vector, int) else list(vector.values)


@dataclass(frozen=True)
class Transform:
    """A transform-coded tensor, by the elements of its head.

    Attributes:
        shape: dimensions.
        roles: the axis of each.
        indices: rows of the matrix, kept columns only.
        steps: of the trellis; 0 for the uniform quantizer.
        tile: rows and columns; None for all in one.
        bases: basis of an axis, `DCT` or explicit; NONE where it has no key.
        raw: bytes to be put instead of an element of the head, by its name; "basis0" to "basis2"
            for the bases, "stream" for the stream.
        payloads: bytes to be put instead of a payload, by its number.
    """

    shape: tuple[int, ...]
    roles: Sequence[int]
    indices: Sequence[Sequence[int]]
    dtype: str = "F32"
    scale: tuple[int, int] = (1, 0)
    steps: int = 0
    payload_kind: int = RANGE
    tile: tuple[int, int] | None = None
    bases: Mapping[int, int | Basis] = field(default_factory=dict)
    depths: Vector = 8
    table_map: Sequence[int] = (0,)
    levels: tuple[Vector, Vector, Vector] = (0, 0, 0)
    row_scales: Vector = 1
    multipliers: Vector = 1
    raw: Mapping[str, bytes] = field(default_factory=dict)
    payloads: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """Lengths of the axes."""
        pairs = list(zip(self.shape, self.roles, strict=True))
        return [math.prod(n for n, role in pairs if role == axis) for axis in (OUT, IN, TAPS)]

    @property
    def channels(self) -> list[int]:
        """Channels of the axes."""
        out = self.lengths
        for axis, basis in self.bases.items():
            out[axis] = len(basis.entries) if isinstance(basis, Basis) else out[axis]
        return out

    @property
    def kept(self) -> list[int]:
        """Columns that are not absent."""
        _, inner, taps = self.channels
        return [i for i, depth in enumerate(_values(self.depths, inner * taps)) if depth]

    def tiles(self) -> Iterator[tuple[range, range]]:
        """Rows and columns of each tile."""
        rows, columns = len(self.indices), len(self.kept)
        high, wide = self.tile or (max(rows, 1), max(columns, 1))
        for top, left in product(range(0, rows, high), range(0, columns, wide)):
            yield range(top, min(top + high, rows)), range(left, min(left + wide, columns))

    # ---- bytes ----

    def head(self, known: Sequence[Table]) -> bytes:
        """The element `transform_head`."""
        parts: dict[str, bytes] = {}
        values: list[int] = []
        ids: list[int] = []

        def vector(name: str, item: Vector) -> None:
            if isinstance(item, int):
                parts[name] = bytes([CONSTANT]) + uv(item)
            elif isinstance(item, Packed):
                parts[name] = bytes([PACKED, item.width]) + packed(item.values, item.width)
            else:
                parts[name] = bytes([CODED, item.table])
                values.extend(item.values)
                ids.extend([item.table] * len(item.values))

        parts["roles"] = bytes(self.roles)
        parts["scale_mantissa"] = uv(self.scale[0])
        parts["scale_exponent"] = sv(self.scale[1])
        parts["quantizer"] = bytes([TRELLIS if self.steps else UNIFORM])
        parts["steps"] = uv(self.steps) if self.steps else b""
        parts["payload_kind"] = bytes([self.payload_kind])
        tile = self.tile or (max(len(self.indices), 1), max(len(self.kept), 1))
        parts["tile_rows"], parts["tile_columns"] = map(uv, tile)
        for axis in (OUT, IN, TAPS):
            basis = self.bases.get(axis, NONE)
            name = f"basis{axis}"
            if isinstance(basis, int):
                parts[name] = bytes([basis])
                continue
            vector(name, basis.shifts)
            start = bytes([EXPLICIT]) + uv(len(basis.entries)) + bytes(basis.tables)
            parts[name] = start + parts[name]
            for table, row in zip(basis.tables, basis.entries, strict=True):
                values.extend(row)
                ids.extend([table] * len(row))
        vector("depths", self.depths)
        if self.payload_kind == RANGE:
            parts["class_count"] = uv(len(self.table_map))
            parts["table_map"] = bytes(self.table_map)
            for name, level in zip(("out", "in", "taps"), self.levels, strict=True):
                vector(f"levels_{name}", level)
        vector("row_scales", self.row_scales)
        vector("multipliers", self.multipliers)
        parts["stream"] = b""
        if self._anything_coded and "stream" not in self.raw:
            parts["stream"] = stream(values, ids, known)
        return b"".join(self.raw.get(name, part) for name, part in parts.items())

    @property
    def _anything_coded(self) -> bool:
        vectors = [self.depths, self.row_scales, self.multipliers]
        if self.payload_kind == RANGE:
            vectors += self.levels
        coded = any(isinstance(vector, Coded) for vector in vectors)
        return coded or any(isinstance(basis, Basis) for basis in self.bases.values())

    def payload(self, number: int, known: Sequence[Table]) -> bytes:
        """The element `payload` of one tile."""
        if number in self.payloads:
            return self.payloads[number]
        rows, columns = list(self.tiles())[number]
        values = [self.indices[row][column] for row in rows for column in columns]
        if self.payload_kind == FIXED:
            depths = _values(self.depths, self.channels[1] * self.channels[2])
            widths = [depths[self.kept[column]] for _ in rows for column in columns]
            return pack(values, widths)
        ids = [self._table(row, column) for row in rows for column in columns]
        return stream(values, ids, known, len(columns), self.steps)

    def _table(self, row: int, column: int) -> int:
        out, inner, taps = (
            _values(level, count) for level, count in zip(self.levels, self.channels, strict=True)
        )
        i, t = divmod(self.kept[column], self.channels[2])
        return self.table_map[min(out[row] + inner[i] + taps[t], len(self.table_map) - 1)]

    def segments(self, known: Sequence[Table]) -> list[bytes]:
        """All segments."""
        payloads = [self.payload(i, known) for i in range(len(list(self.tiles())))] or [b""]
        return [self.head(known) + payloads[0], *payloads[1:]]

    # ---- weights ----

    def coefficients(self) -> list[list[int]]:
        """The matrix of coefficients."""
        out = [list(row) for row in self.indices]
        for rows, columns in self.tiles() if self.steps else ():
            part = trellis([[out[r][c] for c in columns] for r in rows], self.steps)
            for r, row in zip(rows, part, strict=True):
                out[r][columns.start : columns.stop] = row
        return out

    def _rows(self, axis: int) -> list[list[int]]:
        """Synthesis rows of an axis, the identity without a basis."""
        basis, length = self.bases.get(axis, NONE), self.lengths[axis]
        if isinstance(basis, Basis):
            shifts = _values(basis.shifts, len(basis.entries))
            return [[e << s for e in row] for row, s in zip(basis.entries, shifts, strict=True)]
        if basis == NONE:
            return [[int(n == k) for n in range(length)] for k in range(length)]
        sizes = [n for n, role in zip(self.shape, self.roles, strict=True) if role == TAPS]
        ones = [dct(n) for n in sizes]
        places = list(product(*map(range, sizes)))
        return [
            [math.prod(one[k][n] for one, k, n in zip(ones, ks, ns, strict=True)) for ns in places]
            for ks in places
        ]

    def sums(self) -> dict[tuple[int, int, int], int]:
        """C[o,i,t] of 10.1 after step 4."""
        _, inner, taps = self.channels
        codes = _values(self.multipliers, inner * taps)
        matrix, kept = self.coefficients(), self.kept
        out: dict[tuple[int, int, int], int] = {}
        rows = [self._rows(axis) for axis in (OUT, IN, TAPS)]
        for o, i, t in product(*map(range, self.lengths)):
            out[o, i, t] = sum(
                matrix[k][column] * expand(codes[place], 3) * rows[OUT][k][o] * b_in * b_taps
                for column, place in enumerate(kept)
                if (b_in := rows[IN][place // taps][i]) and (b_taps := rows[TAPS][place % taps][t])
                for k in range(len(matrix))
            )
        return out

    def elements(self) -> bytes:
        """The decoded bytes."""
        scales = [expand(code, 5) for code in _values(self.row_scales, self.lengths[OUT])]
        sums = self.sums()
        patterns = []
        for place in product(*map(range, self.shape)):
            at = [0, 0, 0]
            for x, n, role in zip(place, self.shape, self.roles, strict=True):
                at[role] = at[role] * n + x
            total = sums[at[0], at[1], at[2]]
            patterns.append(weight(total, self.scale, scales[at[0]], self.dtype))
        return to_bytes(patterns, self.dtype)

    def tensor(self, known: Sequence[Table] = (), name: str = "t", **changes: Any) -> Tensor:
        """The tensor in a file with tables `known`; `changes` are fields of `Tensor`."""
        if "elements" not in changes:
            changes["elements"] = self.elements()
        if "segments" not in changes:
            changes["segments"] = self.segments(known)
        return Tensor(name, self.dtype, self.shape, coding=TRANSFORM, **changes)
