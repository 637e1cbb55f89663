"""Coding: the record of one weight matrix at a settled step, and its tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.analysis import Analysis, axis_energies, taps_shape, weights_of
from tqcodec.encoder.blocks import row_blocks
from tqcodec.encoder.classes import class_of
from tqcodec.encoder.plan import Source
from tqcodec.encoder.quantizer import Rates
from tqcodec.encoder.rate_control import Method, nearest_seen
from tqcodec.encoder.tables import Histograms, count
from tqcodec.encoder.transform import IDENTITY, IntegerBasis, analysis_of, quantize_basis
from tqcodec.format.dtypes import to_float
from tqcodec.format.reader import Reader
from tqcodec.format.reconstruct import basis_rows, reconstruct, sums_are_exact
from tqcodec.format.records import Basis, CodedTensor
from tqcodec.format.registry import Axis, BasisKind, PayloadKind, Quantizer
from tqcodec.format.vectors import Vector
from tqcodec.format.writer import crc

TILE = 1 << 18  # coefficients of a payload
TILE_COLUMNS = 1 << 12
VANISHING = 0.3  # largest coefficient over step below which a channel is dropped at once
SCALE_BITS = 24


@dataclass(frozen=True, eq=False)
class Coded:
    """One weight matrix, coded but for the tables.

    Attributes:
        record: its record; table indices are 0.
        check: CRC-32 of the decoded bytes.
        error: squared error of the decoded weights.
        energy: of the weights.
        indices: histograms of the indices by class.
        vectors: histograms of the vectors depths and levels, four groups.
        entries: histograms of the rows of all explicit bases, in the order of the axes.
    """

    record: CodedTensor
    check: int
    error: float
    energy: float
    indices: Histograms
    vectors: Histograms
    entries: Histograms


@dataclass(frozen=True, eq=False)
class _Axes:
    """Integer bases of a tensor and how to get coefficients in units of them."""

    bases: list[Basis]
    analysis: list[NDArray[np.float64] | None]
    channels: list[NDArray[np.int64] | None]  # channels of the float transform that are kept
    norm: float  # of a synthesis vector, all axes together


def code(
    source: Source, analysis: Analysis, method: Method, step: float, rates: Rates, payload: str
) -> Coded:
    """Quantize one tensor.

    Args:
        source: the tensor.
        analysis: its transform and levels.
        method: the quantizer.
        step: of the network.
        rates: code lengths to quantize by.
        payload: ``range`` or ``fixed``.
    """
    step = analysis.step(step)
    coded = _code(source, analysis, method, step, rates, payload)
    if not sums_are_exact(coded.record, source.patterns.shape):
        # So fine a step leaves no room for a basis.
        analysis = replace(analysis, transform=IDENTITY)
        coded = _code(source, analysis, method, step, rates, payload)
    return _measured(source, coded)


def _code(
    source: Source, analysis: Analysis, method: Method, step: float, rates: Rates, payload: str
) -> Coded:
    weights = weights_of(source, analysis.item)
    axes = _integer_axes(source, analysis, weights, step)
    coefficients = weights
    for axis in (Axis.TAPS, Axis.IN, Axis.OUT):
        coefficients = _project(coefficients, axes.analysis[axis], axis)
    del weights
    levels = tuple(
        level if kept is None else level[kept]
        for level, kept in zip(analysis.levels, axes.channels, strict=True)
    )
    flat = coefficients.reshape(len(coefficients), math.prod(coefficients.shape[1:]))
    classes = class_of(levels, np.arange(flat.shape[1]))
    q = _quantize(flat, classes, method, step, rates)
    del flat, coefficients
    indices = method.count(q, classes, analysis.class_count)
    record = _record(q, levels, axes, analysis, method, step, payload)
    return Coded(
        record=record,
        check=0,
        error=0.0,
        energy=0.0,
        indices=indices,
        vectors=Histograms.join([_vector(v) for v in (record.depths, *record.levels)]),
        entries=_entry_histograms(record.bases),
    )


def _quantize(
    flat: NDArray[np.float32],
    classes: NDArray[np.uint8],
    method: Method,
    step: float,
    rates: Rates,
) -> NDArray[np.signedinteger]:
    """Integers for coefficients (rows, columns), in the narrowest type."""
    largest = max(float(flat.max(initial=0)), -float(flat.min(initial=0))) / step
    # Trellis and rounding move a coefficient by less than 4 steps.
    out = np.empty(flat.shape, np.int16 if largest < (1 << 15) - 4 else np.int32)
    for rows in row_blocks(flat.shape[0], flat.shape[1], max(1, method.steps)):
        out[rows] = method.quantize(flat[rows] / np.float32(step), classes[rows], rates)
    return out


def _project(
    array: NDArray[np.float32], matrix: NDArray[np.float64] | None, axis: Axis
) -> NDArray[np.float32]:
    if matrix is None:
        return array
    moved = np.moveaxis(array, axis, -1) @ matrix.astype(np.float32).T
    return np.ascontiguousarray(np.moveaxis(moved, -1, axis))


def _integer_axes(
    source: Source, analysis: Analysis, weights: NDArray[np.float32], step: float
) -> _Axes:
    transform = analysis.transform
    axes = _Axes([], [], [], 1.0)
    explicit = any(kind == BasisKind.EXPLICIT for kind in transform.kinds)
    coefficients = transform.analyse(weights) if explicit else weights
    norm = 1.0
    for axis in Axis:
        kind, rows = transform.kinds[axis], transform.rows[axis]
        if kind == BasisKind.DCT:
            shape = taps_shape(source, analysis.item)
            integers = basis_rows(Basis(kind), shape)
            if integers is None:
                raise AssertionError("a DCT has rows")
            length = float(np.linalg.norm(integers[0]))
            axes.bases.append(Basis(kind))
            axes.analysis.append(analysis_of(integers / length))
            axes.channels.append(None)
            norm *= length
        elif kind == BasisKind.EXPLICIT and rows is not None:
            others = tuple(a for a in range(3) if a != axis)
            largest = np.abs(coefficients).max(axis=others, initial=0.0)
            kept = np.flatnonzero(largest > VANISHING * step)
            energies = axis_energies(coefficients, axis)[kept]
            integer = quantize_basis(rows[kept], energies, step)
            axes.bases.append(_explicit(integer))
            axes.analysis.append(analysis_of(integer.rows))
            axes.channels.append(kept)
            norm *= 2.0**integer.exponent
        else:
            axes.bases.append(Basis())
            axes.analysis.append(None)
            axes.channels.append(None)
    return replace(axes, norm=norm)


def _explicit(basis: IntegerBasis) -> Basis:
    tables = Vector.constant(0, len(basis.entries))
    return Basis(BasisKind.EXPLICIT, basis.entries, Vector(basis.shifts), tables)


def _record(
    q: NDArray[np.signedinteger],
    levels: Sequence[NDArray[np.uint8]],
    axes: _Axes,
    analysis: Analysis,
    method: Method,
    step: float,
    payload: str,
) -> CodedTensor:
    depths = _depths(q, method, payload)
    kept = np.flatnonzero(depths)
    if len(kept) < q.shape[1]:
        q = q[:, kept]
    fixed = payload == "fixed"
    zeros = [Vector.constant(0, len(level)) for level in levels]
    vectors = zeros if fixed else [Vector(level, 0) for level in levels]
    return CodedTensor(
        roles=analysis.item.roles,
        scale=_scale(step / axes.norm),
        quantizer=Quantizer.TRELLIS if method.steps else Quantizer.UNIFORM,
        steps=method.steps,
        payload_kind=PayloadKind.FIXED if fixed else PayloadKind.RANGE,
        tile=_tile(q.shape, method.steps),
        bases=(axes.bases[0], axes.bases[1], axes.bases[2]),
        depths=Vector(depths, None if fixed else 0),
        levels=(vectors[0], vectors[1], vectors[2]),
        table_map=(0,),
        row_scales=Vector.constant(1, analysis_rows(analysis, axes)),
        multipliers=Vector.constant(1, len(depths)),
        coefficients=q,
    )


def analysis_rows(analysis: Analysis, axes: _Axes) -> int:
    """Length of the output axis of the weights."""
    basis = axes.bases[Axis.OUT].entries
    return len(analysis.levels[Axis.OUT]) if basis is None else basis.shape[1]


def _depths(q: NDArray[np.signedinteger], method: Method, payload: str) -> NDArray[np.uint8]:
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
    if payload == "range":
        depths[depths > 0] = depths.max(initial=0)
    return depths


def _tile(shape: tuple[int, ...], steps: int) -> tuple[int, int]:
    columns = min(max(1, shape[1]), TILE_COLUMNS)
    unit = max(1, steps)
    rows = max(1, TILE // columns // unit) * unit
    return (min(rows, -(-max(1, shape[0]) // unit) * unit), columns)


def _scale(value: float) -> tuple[int, int]:
    """Mantissa of at most 24 bits and exponent nearest to a positive number."""
    fraction, exponent = math.frexp(value)
    mantissa = min(round(fraction * (1 << SCALE_BITS)), (1 << SCALE_BITS) - 1)
    exponent -= SCALE_BITS
    while mantissa % 2 == 0:
        mantissa, exponent = mantissa // 2, exponent + 1
    return mantissa, exponent


def _measured(source: Source, coded: Coded) -> Coded:
    """Decode the record as a decoder will, for the check and the error."""
    decoded = reconstruct(
        coded.record, source.patterns.shape, source.dtype, Reader(b"", 0, source.name)
    )
    error = energy = 0.0
    old, new = source.patterns.reshape(-1), decoded.reshape(-1)
    for i in range(0, len(old), TILE):
        truth = to_float(old[i : i + TILE], source.dtype)
        difference = truth - to_float(new[i : i + TILE], source.dtype)
        error += float(np.dot(difference, difference))
        energy += float(np.dot(truth, truth))
    return replace(coded, check=crc(decoded), error=error, energy=energy)


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


def with_tables(
    coded: Coded,
    classes: NDArray[np.int64],
    vectors: NDArray[np.int64],
    entries: NDArray[np.int64],
) -> CodedTensor:
    """The record with the tables that were fitted.

    Args:
        coded: the tensor.
        classes: first table of each of its classes.
        vectors: tables of depths and of the three levels.
        entries: table of each basis row.
    """
    record = coded.record
    seen = coded.indices.seen
    table_map: tuple[int, ...] = (0,)
    if seen.any() and record.payload_kind == PayloadKind.RANGE:
        length = int(np.flatnonzero(seen)[-1]) + 1
        table_map = tuple(classes[nearest_seen(seen)[:length]].tolist())
    bases, start = [], 0
    for basis in record.bases:
        if basis.entries is not None:
            ids = entries[start : start + len(basis.entries)].astype(np.uint8)
            basis = replace(basis, tables=Vector(ids))
            start += len(ids)
        bases.append(basis)

    def tabled(vector: Vector, table: int) -> Vector:
        return vector if vector.table is None else Vector(vector.values, int(table))

    levels = [tabled(v, t) for v, t in zip(record.levels, vectors[1:], strict=True)]
    return replace(
        record,
        depths=tabled(record.depths, vectors[0]),
        levels=(levels[0], levels[1], levels[2]),
        table_map=table_map,
        bases=(bases[0], bases[1], bases[2]),
    )
