"""Rate control: the one step of the whole network that meets the target.

One Lagrangian for all tensors: at equal slope all have the same step (times a factor of a rule),
so the search is over a single number. It runs on samples of the coefficients with tables fitted to
them; the pipeline corrects what the samples got wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder import tables
from tqcodec.encoder.histograms import Histograms, nearest_seen
from tqcodec.encoder.matrix.quantizer import Method, Rates
from tqcodec.encoder.matrix.survey import Survey
from tqcodec.encoder.step_search import StepSearch
from tqcodec.encoder.tables import TableSet

SAMPLE_TABLES = (16,)  # clusters while the step is sought
SEARCHES = 12
OWN_TOLERANCE = 0.01  # bits a weight, where a rule gives them
LARGEST_RATE = 512  # magnitudes beyond cost as much: they are rare where rates decide
ROUNDS = 2  # quantize, fit tables, again


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the samples say of a step.

    Attributes:
        distortion: squared error of all matrices, weighed.
        bits: of all coefficients, bases, levels and tables.
        rates: code lengths for each tensor, to quantize it by.
    """

    distortion: float
    bits: float
    rates: list[Rates]


def estimate(surveys: Sequence[Survey], method: Method, step: float) -> Estimate:
    """Quantize the samples at a step, in rounds that refit the tables."""
    rates = [_no_rates(one.class_count, method.contexts) for one in surveys]
    scaled = [one.sample / np.float32(one.step(step)) for one in surveys]
    for _ in range(ROUNDS):
        quantized = [
            method.quantize(x, one.classes, r.scaled(method.lam))
            for x, one, r in zip(scaled, surveys, rates, strict=True)
        ]
        counted = [
            method.count(q, one.classes, one.class_count)
            for q, one in zip(quantized, surveys, strict=True)
        ]
        joined = Histograms.join(counted)
        fitted = tables.fit(joined, max(SAMPLE_TABLES), True, SAMPLE_TABLES)
        rates = rates_of(fitted, counted)
    shares = [one.size / max(1, q.size) for one, q in zip(surveys, quantized, strict=True)]
    edges = np.cumsum([0, *(one.class_count for one in surveys)])[:-1]
    groups = np.add.reduceat(tables.group_bits(joined, fitted), edges)
    distortion = sum(
        one.sample_weight * share * one.step(step) ** 2 * _squared(x, q)
        for share, one, x, q in zip(shares, surveys, scaled, quantized, strict=True)
    )
    bits = float((groups * shares).sum()) + sum(one.side_bits for one in surveys)
    return Estimate(distortion, bits, rates)


def _squared(x: NDArray[np.float32], q: NDArray[np.int32]) -> float:
    error = (x - q).ravel().astype(np.float64)
    return float(np.dot(error, error))


def _no_rates(classes: int, contexts: int) -> Rates:
    return Rates(np.zeros((1, contexts, 1), np.float32), np.zeros(classes, np.int64))


def rates_of(fitted: TableSet, counted: Sequence[Histograms]) -> list[Rates]:
    """Code lengths of each tensor's classes; those never seen take their neighbour's."""
    reach = (max(-t.low, t.low + len(t.weights)) << t.low_bits for t in fitted.tables)
    largest = 1 + max(reach)
    lengths = np.stack(
        [tables.magnitude_bits(t, min(largest, LARGEST_RATE)) for t in fitted.tables]
    )
    lengths = lengths.reshape(-1, fitted.contexts, lengths.shape[1])
    out, start = [], 0
    for tensor in counted:
        seen = tensor.seen
        cluster = fitted.cluster[start : start + len(seen)]
        out.append(Rates(lengths, cluster[nearest_seen(seen)]))
        start += len(seen)
    return out


def with_own_step(survey: Survey, method: Method, start: float) -> Survey:
    """The survey with the step that gives a matrix the bits of its rule, if it has one."""
    bits = survey.matrix.item.options.bits
    if bits is None or survey.energy <= 0:
        return survey
    wanted = bits

    def miss(found: Estimate) -> float:
        return wanted - found.bits / survey.size

    step, _ = seek([survey], method, start, miss, OWN_TOLERANCE)
    return replace(survey, own_step=survey.step(step))


def seek(
    surveys: Sequence[Survey],
    method: Method,
    start: float,
    miss: Callable[[Estimate], float],
    tolerance: float,
) -> tuple[float, Estimate]:
    """Step at which `miss` vanishes on the samples, and what they say of it.

    Args:
        surveys: of all weight matrices.
        method: the quantizer.
        start: first step tried.
        miss: by how much an estimate lies above its target, in octaves of the step.
        tolerance: largest miss that will do.
    """
    search = StepSearch(start, tolerance, SEARCHES)
    best: Estimate | None = None
    while search.is_open:
        found = estimate(surveys, method, search.step)
        if search.tell(miss(found)):
            best = found
    assert best is not None, "SEARCHES is positive"
    return search.best_step, best
