"""Record: the integers of a matrix as the format has them, but for tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.histograms import Histograms, count
from tqcodec.encoder.matrix.bases import AxisBasis
from tqcodec.encoder.matrix.draft import Quantized
from tqcodec.encoder.matrix.grid import Grid
from tqcodec.encoder.matrix.quantizer import UNIFORM, Method
from tqcodec.format.records import Basis, CodedTensor
from tqcodec.format.registry import MAX_SYMBOLS, Axis, PayloadKind, Quantizer
from tqcodec.format.vectors import Vector

TILE = 1 << 18  # coefficients of a payload
TILE_COLUMNS = 1 << 12
SCALE_BITS = 24


def make_record(
    q: NDArray[np.signedinteger],
    step: float,
    method: Method,
    *,
    rows: int,
    roles: Sequence[Axis],
    bases: Sequence[AxisBasis],
    levels: Sequence[NDArray[np.uint8]],
    payload: PayloadKind,
    grid: Grid | None = None,
    flat: bool = False,
) -> CodedTensor:
    """The record of a quantized matrix; all its table indices are 0.

    Args:
        q: coefficients (rows, columns).
        step: of the tensor.
        method: the quantizer.
        rows: channels of the axis out, before any basis.
        roles: axis of each dimension.
        bases: of the axes out, in, taps.
        levels: class levels of the channels of these axes.
        payload: how the indices are coded.
        grid: relative steps of rows and columns; None where all have the same.
        flat: True to keep all columns at one depth, absent ones too.
    """
    table = 0 if payload == PayloadKind.RANGE else None
    depths = _depths(q, method, payload)
    if flat:
        depths[:] = max(1, depths.max(initial=0))
    row_scales = Vector.constant(1, rows)
    multipliers = Vector.constant(1, len(depths))
    if grid is not None:
        # Columns without a coefficient have no use for their steps: the commonest costs least.
        present, columns = depths > 0, grid.columns.codes
        common = np.bincount(columns[present], minlength=1).argmax() if present.any() else 1
        columns = np.where(present, columns, np.uint8(common))
        row_scales, multipliers = Vector(grid.rows.codes, table), Vector(columns, table)
        step *= grid.unit
    kept = np.flatnonzero(depths)
    if len(kept) < q.shape[1]:
        q = q[:, kept]
    vectors = [Vector.constant(0, len(v)) if table is None else Vector(v, table) for v in levels]
    return CodedTensor(
        roles=tuple(roles),
        scale=_scale(step / math.prod(basis.norm for basis in bases)),
        quantizer=Quantizer.TRELLIS if method.steps else Quantizer.UNIFORM,
        steps=method.steps,
        payload_kind=payload,
        tile=_tile(q.shape, method.steps),
        bases=(bases[0].basis, bases[1].basis, bases[2].basis),
        depths=Vector(depths, table),
        levels=(vectors[0], vectors[1], vectors[2]),
        table_map=(0,),
        row_scales=row_scales,
        multipliers=multipliers,
        coefficients=q,
    )


def with_integers(
    record: CodedTensor,
    q: NDArray[np.signedinteger],
    scale: float,
    levels: Sequence[NDArray[np.uint8]],
) -> CodedTensor:
    """A range-coded record of the uniform quantizer with other integers in the columns it has.

    Args:
        record: of any quantizer; its bases and relative steps stay.
        q: coefficients (rows, kept columns); columns that are all zero are left out.
        scale: the step that stands for ``scale``.
        levels: class levels of the channels of the three axes.
    """
    present = q.any(axis=0)
    kept = record.kept[present]
    depths = np.zeros_like(record.depths.values)
    depths[kept] = _depths(q[:, present], UNIFORM, PayloadKind.RANGE)
    multipliers = record.multipliers.values.copy()
    if len(kept):  # the others have no use for theirs: the commonest costs least
        multipliers[depths == 0] = np.bincount(multipliers[kept]).argmax()
    out, inn, taps = (Vector(level, 0) for level in levels)
    return replace(
        record,
        scale=_scale(scale),
        quantizer=Quantizer.UNIFORM,
        steps=0,
        payload_kind=PayloadKind.RANGE,
        tile=_tile((len(q), len(kept)), 0),
        depths=Vector(depths, 0),
        levels=(out, inn, taps),
        row_scales=Vector(record.row_scales.values, 0),
        multipliers=Vector(multipliers, 0),
        coefficients=np.ascontiguousarray(q[:, present]),
    )


def is_uniform(record: CodedTensor) -> bool:
    """True for a range-coded record of the uniform quantizer."""
    ranged = record.payload_kind == PayloadKind.RANGE
    return ranged and record.quantizer == Quantizer.UNIFORM


def as_uniform(record: CodedTensor) -> CodedTensor:
    """A record of the same weights for which `is_uniform` is true."""
    if is_uniform(record):
        return record
    levels = [level.values for level in record.levels]
    return with_integers(record, record.coefficients, math.ldexp(*record.scale), levels)


def counted(
    record: CodedTensor, method: Method, classes: NDArray[np.uint8], class_count: int
) -> Quantized:
    """A record with the histograms of what is to be coded by tables.

    Args:
        record: of `make_record`.
        method: the quantizer.
        classes: of all coefficients, uint8 (rows, columns), absent columns too.
        class_count: number of classes.
    """
    if record.payload_kind == PayloadKind.FIXED:
        indices = Histograms.empty(class_count, method.contexts)
    else:  # columns that are absent are not coded: they have no say in the tables
        indices = method.count(record.coefficients, classes[:, record.kept], class_count)
    groups = (record.depths, *record.levels, record.row_scales, record.multipliers)
    vectors = Histograms.join([_vector(v) for v in groups])
    return Quantized(record, indices, vectors, _entry_histograms(record.bases))


def _depths(
    q: NDArray[np.signedinteger], method: Method, payload: PayloadKind
) -> NDArray[np.uint8]:
    """Bits of the signed range of each column's indices; 0 where a column is all zero.

    Range-coded columns that are not all zero share the largest depth: there it only says that
    they are present, and one value is cheaper to write than many.
    """
    most, least = np.zeros((2, q.shape[1]), np.int64)
    for _, indices, _ in method.indices(q):
        np.maximum(most, indices.max(axis=0), out=most)
        np.minimum(least, indices.min(axis=0), out=least)
    extent = np.maximum(most, -1 - least)
    depths = np.frexp(extent.astype(np.float64))[1].astype(np.uint8) + np.uint8(1)
    depths[(most == 0) & (least == 0)] = 0
    if payload == PayloadKind.RANGE:
        depths[depths > 0] = depths.max(initial=0)
    return depths


def _tile(shape: tuple[int, ...], steps: int) -> tuple[int, int]:
    unit = max(1, steps)
    most = min(TILE, MAX_SYMBOLS)
    columns = min(max(1, shape[1]), TILE_COLUMNS, max(1, most // unit))
    rows = max(1, most // columns // unit) * unit
    return (min(rows, -(-max(1, shape[0]) // unit) * unit), columns)


def _scale(value: float) -> tuple[int, int]:
    """Mantissa of at most 24 bits and exponent nearest to a positive number."""
    fraction, exponent = math.frexp(value)
    mantissa = min(round(fraction * (1 << SCALE_BITS)), (1 << SCALE_BITS) - 1)
    exponent -= SCALE_BITS
    while mantissa % 2 == 0:
        mantissa, exponent = mantissa // 2, exponent + 1
    return mantissa, exponent


def _vector(vector: Vector) -> Histograms:
    """One group; without a count where the vector is not coded by a table."""
    values = vector.values
    if vector.table is None or not len(values) or values.min() == values.max():
        return Histograms.empty(1, 1)
    return count(values.astype(np.int32), np.zeros(len(values), np.int64), 1)


def _entry_histograms(bases: Sequence[Basis]) -> Histograms:
    parts = [Histograms.empty(0, 1)]
    for basis in bases:
        if basis.entries is not None:
            rows, length = basis.entries.shape
            groups = np.repeat(np.arange(rows), length)
            parts.append(count(basis.entries.ravel(), groups, rows))
    return Histograms.join(parts)
