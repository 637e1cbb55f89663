"""Coding: the record of one weight matrix at a settled step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder import side
from tqcodec.encoder.histograms import Histograms, count
from tqcodec.encoder.matrix.bases import AxisBasis, integer_bases, project
from tqcodec.encoder.matrix.blocks import row_blocks
from tqcodec.encoder.matrix.classes import class_of
from tqcodec.encoder.matrix.draft import Coded, Effect
from tqcodec.encoder.matrix.error import error_of
from tqcodec.encoder.matrix.feedback import gains_of, quantize_with_feedback
from tqcodec.encoder.matrix.grid import Grid
from tqcodec.encoder.matrix.quantizer import Method, Rates
from tqcodec.encoder.matrix.survey import Analysis, weights_of
from tqcodec.encoder.matrix.transform import IDENTITY
from tqcodec.encoder.tensor import Source
from tqcodec.errors import DecodeError, InternalError
from tqcodec.format.entries import crc
from tqcodec.format.reader import Reader
from tqcodec.format.reconstruct import check_bound, reconstruct
from tqcodec.format.records import Basis, CodedTensor, read_head, taps_lengths, write_head
from tqcodec.format.registry import MAX_SYMBOLS, TABLE_SUM, Axis, PayloadKind, Quantizer
from tqcodec.format.tables import Table, Tables
from tqcodec.format.vectors import Vector

TILE = 1 << 18  # coefficients of a payload
TILE_COLUMNS = 1 << 12
SCALE_BITS = 24
# Of larger matrices the head is a small part.
MOST_SHORTENED = 1 << 9  # elements
RECORD_BYTES = 34  # of head, ends of streams and segment of a small matrix, but for what is coded
PART_BYTES = 3  # of the head of a part of a bundle
FINER = 0.25  # octaves to which the coarsest step is found at which something is left
OCTAVES = 64  # by which the step of a matrix may be off, until its depths fit or something is left
ANYTHING = Tables([Table(0, (TABLE_SUM - 1,), 1)] * 2)  # codes any integer, by its escape


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
    coded = _legal(source, analysis, method, step, rates, payload)
    if not analysis.may_vanish and not coded.record.coefficients.any():
        # Not so coarse that nothing is left: by octaves, then back by less.
        factors = [2.0**-octaves for octaves in range(1, OCTAVES)]
        for factor in factors:
            coded = _legal(source, analysis, method, step * factor, rates, payload)
            if coded.record.coefficients.any():
                break
        step *= factor
        for _ in range(round(1 / FINER) - 1):
            coarser = _legal(source, analysis, method, step * 2.0**FINER, rates, payload)
            if not coarser.record.coefficients.any():
                break
            coded, step = coarser, step * 2.0**FINER
    coded = _measured(source, analysis, coded)
    if source.patterns.size > MOST_SHORTENED:
        return coded
    return _cheaper(source, analysis, method, step, coded)


def _cheaper(
    source: Source, analysis: Analysis, method: Method, step: float, coded: Coded
) -> Coded:
    """A small matrix by its record, or by short mantissas in a bundle, which needs no head.

    The error is counted as bits at the slope of the quantizer, as in `choice`.
    """
    uniform = step / method.relative_step
    slope = 6 / math.log(2) / uniform**2  # bits for an error of 1, high rate

    def cost(bits: float, decoded: NDArray[np.unsignedinteger]) -> float:
        return bits + slope * _weighed_error(source, analysis, decoded)

    record = reconstruct(coded.record, source.patterns.shape, source.dtype)
    parts = [h.entropy() for h in (coded.indices, coded.vectors, coded.entries)]
    best, least = coded, cost(8 * RECORD_BYTES + sum(parts), record)
    for kept in range(source.dtype.mantissa_bits):
        part = side.make_part(source.patterns, source.dtype, kept)
        decoded = part.patterns.reshape(source.patterns.shape)
        exponents = side.exponent_histograms([part])
        bits = part.width * source.patterns.size + exponents.entropy() + 8 * PART_BYTES
        if bits >= least:
            break  # even without an error
        price = cost(bits, decoded)
        if price < least:
            best, least = _compared(source, analysis, replace(coded, part=part), decoded), price
    return best


def _legal(
    source: Source, analysis: Analysis, method: Method, step: float, rates: Rates, payload: str
) -> Coded:
    """The first record of a tensor that a decoder takes, not measured yet."""
    rule = ""
    for simpler, own_step, flat in _attempts(analysis, step):
        coded = _code(source, simpler, method, own_step, rates, payload, flat)
        rule = _broken_rule(coded, source.patterns.shape)
        if not rule:
            return coded
    raise InternalError(rule, "no record of this matrix is legal", source.name)


def _attempts(analysis: Analysis, step: float) -> Iterator[tuple[Analysis, float, bool]]:
    """Ways to code a matrix, until a decoder takes what comes out.

    An analysis, a step, and True to keep all columns at one depth.
    """
    yield analysis, step, False
    # So fine a step leaves no room for a basis, or so coarse a one pays for none.
    yield replace(analysis, transform=IDENTITY), step, False
    # One class, one step and no absent column: the head takes a few bytes.
    zeros = [np.broadcast_to(np.uint8(0), level.shape) for level in analysis.levels]
    levels = (zeros[0], zeros[1], zeros[2])
    plain = replace(analysis, transform=IDENTITY, levels=levels, metric=None)
    if analysis.metric is not None:
        step /= math.sqrt(analysis.metric.power)
    for octaves in range(OCTAVES):  # the depths are the only thing left that can be too much
        yield plain, step * 2.0**octaves, True


def _broken_rule(coded: Coded, shape: tuple[int, ...]) -> str:
    """The rule for which a decoder would refuse the head of a record; empty for a good one."""
    record, bits = coded.record, coded.indices.entropy()  # no tables do better
    if record.payload_kind == PayloadKind.FIXED:
        bits = record.coefficients.shape[0] * float(record.depths.values.sum(dtype=np.int64))
    stored = int(bits + coded.entries.entropy()) // 8
    try:
        head = Reader(write_head(record, shape, ANYTHING))
        check_bound(read_head(head, shape, stored, ANYTHING), shape, head.check)
    except DecodeError as error:
        return error.rule
    return ""


def _code(
    source: Source,
    analysis: Analysis,
    method: Method,
    step: float,
    rates: Rates,
    payload: str,
    flat: bool,
) -> Coded:
    weights = weights_of(source.patterns, source.dtype, analysis.item.roles)
    taps = taps_lengths(source.patterns.shape, analysis.item.roles)
    metric = analysis.metric
    plain = step if metric is None else step / math.sqrt(metric.power)
    bases = integer_bases(analysis.transform, weights, taps, plain, metric is None)
    coefficients = project(weights, bases)
    del weights
    levels = [
        level if basis.kept is None else level[basis.kept]
        for level, basis in zip(analysis.levels, bases, strict=True)
    ]
    columns = math.prod(coefficients.shape[1:])
    method = method.fitted(len(coefficients), columns)
    classes = class_of(levels, np.arange(columns))
    scaled = rates.scaled(method.lam)
    if metric is None:
        grid = None
        matrix = coefficients.reshape(len(coefficients), columns)
        q = _quantize(matrix, classes, method, step, scaled)
        del matrix
    else:
        inner = metric.transformed([basis.rows for basis in bases])
        fed = quantize_with_feedback(coefficients, inner, classes, method, step, scaled)
        q, grid, step = fed.coefficients, fed.grid, fed.step
    del coefficients
    record = _record(q, levels, bases, analysis, method, step, payload, grid, flat)
    # Columns that are absent are not coded: they have no say in the tables.
    indices = method.count(record.coefficients, classes[:, record.kept], analysis.class_count)
    if payload == "fixed":
        indices = Histograms.empty(analysis.class_count, method.contexts)
    groups = (record.depths, *record.levels, record.row_scales, record.multipliers)
    return Coded(
        record=record,
        check=0,
        error=0.0,
        energy=0.0,
        distortion=0.0,
        effect=None,
        indices=indices,
        vectors=Histograms.join([_vector(v) for v in groups]),
        entries=_entry_histograms(record.bases),
    )


def _quantize(
    flat: NDArray[np.float32],
    classes: NDArray[np.uint8],
    method: Method,
    step: float,
    scaled: NDArray[np.float32],
) -> NDArray[np.signedinteger]:
    """Integers for coefficients (rows, columns), in the narrowest type."""
    largest = max(float(flat.max(initial=0)), -float(flat.min(initial=0))) / step
    # Trellis and rounding move a coefficient by less than 4 steps.
    out = np.empty(flat.shape, np.int16 if largest < (1 << 15) - 4 else np.int32)
    for rows in row_blocks(flat.shape[0], flat.shape[1], max(1, method.steps)):
        out[rows] = method.quantize(flat[rows] / np.float32(step), classes[rows], scaled)
    return out


def _record(
    q: NDArray[np.signedinteger],
    levels: Sequence[NDArray[np.uint8]],
    bases: Sequence[AxisBasis],
    analysis: Analysis,
    method: Method,
    step: float,
    payload: str,
    grid: Grid | None,
    flat: bool,
) -> CodedTensor:
    fixed = payload == "fixed"
    table = None if fixed else 0
    depths = _depths(q, method, payload)
    if flat:
        depths[:] = max(1, depths.max(initial=0))
    row_scales = Vector.constant(1, len(analysis.levels[Axis.OUT]))
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
    zeros = [Vector.constant(0, len(level)) for level in levels]
    vectors = zeros if fixed else [Vector(level, 0) for level in levels]
    return CodedTensor(
        roles=analysis.item.roles,
        scale=_scale(step / math.prod(basis.norm for basis in bases)),
        quantizer=Quantizer.TRELLIS if method.steps else Quantizer.UNIFORM,
        steps=method.steps,
        payload_kind=PayloadKind.FIXED if fixed else PayloadKind.RANGE,
        tile=_tile(q.shape, method.steps),
        bases=(bases[0].basis, bases[1].basis, bases[2].basis),
        depths=Vector(depths, table),
        levels=(vectors[0], vectors[1], vectors[2]),
        table_map=(0,),
        row_scales=row_scales,
        multipliers=multipliers,
        coefficients=q,
    )


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


def _measured(source: Source, analysis: Analysis, coded: Coded) -> Coded:
    """Decode the record as a decoder will, for the check and the error."""
    decoded = reconstruct(coded.record, source.patterns.shape, source.dtype)
    return _compared(source, analysis, coded, decoded)


def _compared(
    source: Source, analysis: Analysis, coded: Coded, decoded: NDArray[np.unsignedinteger]
) -> Coded:
    """What is coded with its check and error, given what it decodes to."""
    dtype = source.dtype
    error, energy = error_of(source.patterns, decoded, dtype)
    coded = replace(coded, check=crc(decoded), error=error, energy=energy)
    judged, metric = analysis.judged, analysis.metric
    distortion = judged * error if judged is not None else math.nan
    if metric is None or metric.assumed is not None:
        return replace(coded, distortion=distortion)
    before, after = _both(source, analysis, decoded)
    gains = gains_of(metric.products(before, after), metric.products(after, after))
    effect = Effect(gains, metric.mean_output(before), metric.mean_output(after))
    if judged is None:
        distortion = metric.error(before - after)
    return replace(coded, distortion=distortion, effect=effect)


def _both(
    source: Source, analysis: Analysis, decoded: NDArray[np.unsignedinteger]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The matrix before and after, float32 (rows, columns)."""
    before, after = (
        weights_of(patterns, source.dtype, analysis.item.roles)
        for patterns in (source.patterns, decoded)
    )
    return before.reshape(len(before), -1), after.reshape(len(after), -1)


def _weighed_error(
    source: Source, analysis: Analysis, decoded: NDArray[np.unsignedinteger]
) -> float:
    """Squared error in the units of the step: by the metric, or else of the weights."""
    if analysis.metric is None:
        return error_of(source.patterns, decoded, source.dtype)[0]
    before, after = _both(source, analysis, decoded)
    return analysis.metric.error(before - after)


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
