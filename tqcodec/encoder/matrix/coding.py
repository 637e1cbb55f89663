"""Coding: the draft of one weight matrix at a settled step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder import side
from tqcodec.encoder.matrix.bases import integer_bases, project
from tqcodec.encoder.matrix.blocks import row_blocks
from tqcodec.encoder.matrix.classes import class_of
from tqcodec.encoder.matrix.draft import Draft, Quantized
from tqcodec.encoder.matrix.feedback import quantize_with_feedback
from tqcodec.encoder.matrix.outcome import draft_of, weighed_error
from tqcodec.encoder.matrix.quantizer import Method, Rates
from tqcodec.encoder.matrix.record import counted, make_record
from tqcodec.encoder.matrix.survey import Survey, weights_of
from tqcodec.encoder.matrix.transform import IDENTITY
from tqcodec.encoder.tensor import Source
from tqcodec.errors import DecodeError, InternalError
from tqcodec.format.planes import Part
from tqcodec.format.reader import Reader
from tqcodec.format.reconstruct import check_bound, reconstruct
from tqcodec.format.records import read_head, taps_lengths, write_head
from tqcodec.format.registry import TABLE_SUM, Axis, PayloadKind
from tqcodec.format.tables import Table, Tables

# Of larger matrices the head is a small part.
MOST_SHORTENED = 1 << 9  # elements
RECORD_BYTES = 34  # of head, ends of streams and segment of a small matrix, but for what is coded
PART_BYTES = 3  # of the head of a part of a bundle
FINER = 0.25  # octaves to which the coarsest step is found at which something is left
OCTAVES = 64  # by which the step of a matrix may be off, until its depths fit or something is left
ANYTHING = Tables([Table(0, (TABLE_SUM - 1,), 1)] * 2)  # codes any integer, by its escape


@dataclass(frozen=True, eq=False)
class Trial:
    """One way to code a matrix.

    Attributes:
        source: the tensor.
        survey: its transform and levels.
        method: the quantizer.
        rates: code lengths to quantize by.
        payload: how the indices are coded.
        step: of the tensor.
        flat: True to keep all columns at one depth.
    """

    source: Source
    survey: Survey
    method: Method
    rates: Rates
    payload: PayloadKind
    step: float
    flat: bool = False

    def coarser(self, octaves: float) -> Trial:
        """The same at another step."""
        return replace(self, step=self.step * 2.0**octaves)


@np.errstate(invalid="ignore")  # which BLAS may report of lanes beyond its arrays
def make_draft(
    source: Source, survey: Survey, rates: Rates, method: Method, payload: PayloadKind, step: float
) -> Draft:
    """Quantize one tensor.

    Args:
        source: the tensor.
        survey: its transform and levels.
        rates: code lengths to quantize by.
        method: the quantizer.
        payload: how the indices are coded.
        step: of the network.
    """
    trial = Trial(source, survey, method, rates, payload, survey.step(step))
    quantized = _legal(trial)
    if quantized.is_zero and not survey.may_vanish:
        trial, quantized = _not_vanished(trial, quantized)
    decoded = reconstruct(quantized.record, source.patterns.shape, source.dtype)
    content: Quantized | Part = quantized
    if source.patterns.size <= MOST_SHORTENED:
        content, decoded = _cheapest(trial, quantized, decoded)
    return draft_of(source, survey.matrix, content, decoded)


def _not_vanished(trial: Trial, quantized: Quantized) -> tuple[Trial, Quantized]:
    """Not so coarse that nothing is left: finer by octaves, then back by less."""
    for octaves in range(1, OCTAVES):
        finer = trial.coarser(-octaves)
        quantized = _legal(finer)
        if not quantized.is_zero:
            break
    for _ in range(round(1 / FINER) - 1):
        coarser = _legal(finer.coarser(FINER))
        if coarser.is_zero:
            break
        finer, quantized = finer.coarser(FINER), coarser
    return finer, quantized


def _cheapest(
    trial: Trial, quantized: Quantized, decoded: NDArray[np.unsignedinteger]
) -> tuple[Quantized | Part, NDArray[np.unsignedinteger]]:
    """A small matrix by its record, or by short mantissas in a bundle, which needs no head.

    The error is counted as bits at the slope of the quantizer, as in `choice`.
    """
    source, uniform = trial.source, trial.step / trial.method.relative_step
    slope = 6 / math.log(2) / uniform**2  # bits for an error of 1, high rate

    def cost(bits: float, decoded: NDArray[np.unsignedinteger]) -> float:
        return bits + slope * weighed_error(source, trial.survey.matrix, decoded)

    content: Quantized | Part = quantized
    least = cost(8 * RECORD_BYTES + quantized.table_bits, decoded)
    for kept in range(source.dtype.mantissa_bits):
        part = side.make_part(source.patterns, source.dtype, kept)
        shortened = part.patterns.reshape(source.patterns.shape)
        exponents = side.exponent_histograms([part])
        bits = part.width * source.patterns.size + exponents.entropy() + 8 * PART_BYTES
        if bits >= least:
            break  # even without an error
        price = cost(bits, shortened)
        if price < least:
            content, decoded, least = part, shortened, price
    return content, decoded


def _legal(trial: Trial) -> Quantized:
    """The first record of a tensor that a decoder takes."""
    rule = ""
    for attempt in _attempts(trial):
        quantized = _quantized(attempt)
        rule = _broken_rule(quantized, trial.source.patterns.shape)
        if not rule:
            return quantized
    raise InternalError(rule, "no record of this matrix is legal", trial.source.name)


def _attempts(trial: Trial) -> Iterator[Trial]:
    """Ways to code a matrix, until a decoder takes what comes out."""
    yield trial
    # So fine a step leaves no room for a basis, or so coarse a one pays for none.
    survey = replace(trial.survey, transform=IDENTITY)
    yield replace(trial, survey=survey)
    # One class, one step and no absent column: the head takes a few bytes.
    zeros = [np.broadcast_to(np.uint8(0), level.shape) for level in survey.levels]
    step, metric = trial.step, survey.matrix.metric
    if metric is not None:
        step /= math.sqrt(metric.power)
    plain = replace(
        survey, levels=(zeros[0], zeros[1], zeros[2]), matrix=replace(survey.matrix, metric=None)
    )
    plainest = replace(trial, survey=plain, step=step, flat=True)
    for octaves in range(OCTAVES):  # the depths are the only thing left that can be too much
        yield plainest.coarser(octaves)


def _broken_rule(quantized: Quantized, shape: tuple[int, ...]) -> str:
    """The rule for which a decoder would refuse the head of a record; empty for a good one."""
    record, bits = quantized.record, quantized.indices.entropy()  # no tables do better
    if record.payload_kind == PayloadKind.FIXED:
        bits = record.coefficients.shape[0] * float(record.depths.values.sum(dtype=np.int64))
    stored = int(bits + quantized.entries.entropy()) // 8
    try:
        head = Reader(write_head(record, shape, ANYTHING))
        check_bound(read_head(head, shape, stored, ANYTHING), shape, head.check)
    except DecodeError as error:
        return error.rule
    return ""


def _quantized(trial: Trial) -> Quantized:
    source, survey, step = trial.source, trial.survey, trial.step
    roles, metric = survey.matrix.item.roles, survey.matrix.metric
    weights = weights_of(source.patterns, source.dtype, roles)
    taps = taps_lengths(source.patterns.shape, roles)
    plain = step if metric is None else step / math.sqrt(metric.power)
    bases = integer_bases(survey.transform, weights, taps, plain, metric is None)
    coefficients = project(weights, bases)
    del weights  # as large as the matrix
    levels = [
        level if basis.kept is None else level[basis.kept]
        for level, basis in zip(survey.levels, bases, strict=True)
    ]
    columns = math.prod(coefficients.shape[1:])
    method = trial.method.fitted(len(coefficients), columns)
    classes = class_of(levels, np.arange(columns))
    scaled = trial.rates.scaled(method.lam)
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
    record = make_record(
        q,
        step,
        method,
        rows=len(survey.levels[Axis.OUT]),
        roles=roles,
        bases=bases,
        levels=levels,
        payload=trial.payload,
        grid=grid,
        flat=trial.flat,
    )
    return counted(record, method, classes, survey.class_count)


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
