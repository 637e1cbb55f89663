"""Pipeline: the order of the encoder's stages, and nothing else.

plan -> parts of side tensors -> metrics -> analysis -> rate control -> coding -> corrections of
side tensors -> tables -> records -> file
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder import corrections, rate_control, side, tables
from tqcodec.encoder.analysis import (
    Analysis,
    analyse,
    energy_of,
    first_step,
    in_scale,
    sensitivities,
)
from tqcodec.encoder.assembly import EXPONENT_CLUSTERS, assemble
from tqcodec.encoder.coding import Coded, code
from tqcodec.encoder.metric import Metric, metric_of
from tqcodec.encoder.plan import Item, Source, Treatment, make_plan
from tqcodec.encoder.quantizer import (
    TRELLIS_FEEDBACK_LAMBDA,
    TRELLIS_LAMBDA,
    UNIFORM_FEEDBACK_LAMBDA,
    UNIFORM_LAMBDA,
    Method,
)
from tqcodec.encoder.rate_control import Estimate
from tqcodec.encoder.settings import TRELLIS_EFFORT, Progress, Settings
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.encoder.target import Correction, Target
from tqcodec.errors import EncodeError
from tqcodec.format.planes import Part

SAMPLE = 200_000  # coefficients on which the step is sought
TENSOR_SHARE = 1 / 8  # of the coefficients at most, while they are more than SAMPLE / 4
PASSES = 8  # corrections of the step after whole encodings
STEP_OFF = 0.3  # octaves by which the step of an analysis may be off; metrics are hard to guess by
ENTRY_BYTES = 28  # of a directory entry, deflated, about

Refine = Callable[[bytes], Mapping[str, NDArray[np.unsignedinteger]]]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight matrix before its analysis.

    Attributes:
        item: its plan.
        slope: weight of its squared error in the distortion, without a metric.
        metric: what its errors do, or None.
    """

    item: Item
    slope: float
    metric: Metric | None


@dataclass(frozen=True, eq=False)
class Job:
    """What stays the same while the step is sought."""

    sources: Mapping[str, Source]
    items: Sequence[Item]
    settings: Settings
    parts: Mapping[str, Part]
    matrices: Sequence[Matrix]
    analyses: Sequence[Analysis]
    method: Method
    step: float
    weights: int
    statistics: Mapping[str, WeightStatistics]
    refine: Refine | None
    progress: Progress | None


def encode(
    sources: Sequence[Source],
    settings: Settings,
    statistics: Mapping[str, WeightStatistics],
    refine: Refine | None = None,
    progress: Progress | None = None,
) -> bytes:
    """A whole file for the tensors.

    Args:
        sources: the tensors.
        settings: how to encode.
        statistics: of weights, by name; those without are encoded without data.
        refine: given a file, bit patterns of side tensors that go better with its weights.
        progress: called with (stage, done, of).

    Raises:
        EncodeError: tensors that the format cannot hold, or a target that cannot be met.
    """
    items = make_plan(sources, settings, statistics)
    by_name = {s.name: s for s in sources}
    job = _prepare(by_name, items, settings, statistics, refine, progress)
    if not job.analyses:
        return _fitting(_write(job, [], {}), settings)
    return _search(job)


def _prepare(
    sources: Mapping[str, Source],
    items: Sequence[Item],
    settings: Settings,
    statistics: Mapping[str, WeightStatistics],
    refine: Refine | None,
    progress: Progress | None,
) -> Job:
    parts = {}
    for done, item in enumerate(items, 1):
        if progress is not None:
            progress("prepare", done, len(items))
        if item.treatment in (Treatment.EXACT, Treatment.ROUNDED):
            parts[item.name] = _part(item, sources[item.name], settings)
    matrices = [i for i in items if i.treatment == Treatment.TRANSFORM]
    sizes = [sources[i.name].patterns.size for i in matrices]
    energies = [energy_of(sources[i.name]) for i in matrices]
    metrics = [metric_of(statistics[i.name]) if i.name in statistics else None for i in matrices]
    powers = [m.power if m is not None else None for m in metrics]
    weighed = sensitivities(energies, settings)
    if settings.snr is None:
        weighed = in_scale(weighed, powers)
    slopes = [w if p is None else p for w, p in zip(weighed, powers, strict=True)]
    factors = [i.options.step / math.sqrt(s) for i, s in zip(matrices, slopes, strict=True)]
    step = first_step(energies, sizes, factors, settings)
    weights = sum(sources[i.name].patterns.size for i in items if i.is_weight)
    job = Job(
        sources=sources,
        items=items,
        settings=settings,
        parts=parts,
        matrices=[Matrix(*m) for m in zip(matrices, weighed, metrics, strict=True)],
        analyses=[],
        method=_method(settings, bool(statistics)),
        step=step,
        weights=weights,
        statistics=statistics,
        refine=refine,
        progress=progress,
    )
    return _analysed(job, step)


def _analysed(job: Job, step: float) -> Job:
    """The job with its matrices analysed for a step of about `step`."""
    total = max(1, sum(job.sources[m.item.name].patterns.size for m in job.matrices))
    share = min(1.0, max(SAMPLE / 4, min(SAMPLE, TENSOR_SHARE * total)) / total)
    steps = max(1, job.method.steps)
    calls = [
        (job.sources[m.item.name], m.item, step, m.slope, job.settings, share, steps, m.metric)
        for m in job.matrices
    ]
    analyses = [
        rate_control.with_own_step(analysis, job.method, step)
        for analysis in _map(analyse, calls, job.settings.workers, "analyse", job.progress)
    ]
    return replace(job, analyses=analyses, step=step)


def _part(item: Item, source: Source, settings: Settings) -> Part:
    kept = None
    if item.treatment == Treatment.ROUNDED:
        own = item.options.side_bits
        kept = own if own is not None else settings.side_bits
    return side.make_part(source.patterns, source.dtype, kept)


def _method(settings: Settings, feedback: bool) -> Method:
    if settings.effort < TRELLIS_EFFORT:
        return Method(0, UNIFORM_FEEDBACK_LAMBDA if feedback else UNIFORM_LAMBDA)
    steps = 32 if settings.effort < 7 else 64 if settings.effort < 9 else 128
    return Method(steps, TRELLIS_FEEDBACK_LAMBDA if feedback else TRELLIS_LAMBDA)


def _map(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    workers: int,
    stage: str,
    progress: Progress | None,
) -> Iterator[Any]:
    """Results of the calls in their order, from processes where more than one is wanted."""
    if workers == 1:
        results: Iterable[Any] = (function(*call) for call in calls)
    else:
        from joblib import Parallel, delayed

        pool = Parallel(n_jobs=workers, return_as="generator")
        results = pool(delayed(function)(*call) for call in calls)
    for done, result in enumerate(results, 1):
        if progress is not None:
            progress(stage, done, len(calls))
        yield result


def _search(job: Job) -> bytes:
    """Seek the step on samples, encode, and correct the step by what came out."""
    energy = sum(a.sensitivity * a.energy for a in job.analyses)
    if energy <= 0:
        coded = _code(job, 1.0, rate_control.estimate(job.analyses, job.method, 1.0))
        return _fitting(_write(job, coded), job.settings)
    hurried = job.settings.effort < TRELLIS_EFFORT
    target = Target(job.settings, job.weights, energy, hurried)
    finer = rate_control.TRELLIS_STEP if job.method.steps else 1.0
    step, found = _seek(job, target, job.step * finer)
    if job.statistics and abs(math.log2(step / finer / job.step)) > STEP_OFF:
        job = _analysed(job, step / finer)
        step, found = _seek(job, target, step)
    meet = _meet_snr if job.settings.target_snr is not None else _meet_size
    return meet(job, target, step, found)


def _seek(job: Job, target: Target, start: float) -> tuple[float, Estimate]:
    """Step that meets the target on the samples."""
    overhead = _overhead_bits(job)

    def miss(found: Estimate) -> float:
        return target.octaves(found.distortion, found.bits + overhead)

    return rate_control.search(job.analyses, job.method, start, miss, target.tolerance)


def _meet_snr(job: Job, target: Target, step: float, found: Estimate) -> bytes:
    """Encode, and again with a corrected step, until the error is right; then write once."""
    correction = Correction()
    for attempt in itertools.count(1):
        coded = _code(job, step, found)
        errors = (c.error if job.settings.snr is not None else c.distortion for c in coded)
        octaves = target.octaves(sum(errors), 0.0)
        if abs(octaves) <= target.tolerance or attempt == PASSES:
            return _refined(job, coded, _write(job, coded, {}))
        del coded  # half a network: gone before the next one is made
        step = correction.next_step(step, octaves)
        found = rate_control.estimate(job.analyses, job.method, step)
    raise AssertionError("the last pass returns")


def _meet_size(job: Job, target: Target, step: float, found: Estimate) -> bytes:
    """Encode and write, and again with a corrected step, until the size is right."""
    best, best_coded, best_rank = b"", [], math.inf
    correction = Correction()
    for _ in range(PASSES):
        coded = _code(job, step, found)
        data = _write(job, coded, {})
        octaves = target.octaves(0.0, 8.0 * len(data))
        rank = target.rank(octaves, len(data))
        if rank < best_rank:
            best, best_coded, best_rank = data, coded, rank
        del coded  # half a network: gone before the next one is made
        if rank <= target.tolerance:
            break
        step = correction.next_step(step, octaves)
        found = rate_control.estimate(job.analyses, job.method, step)
    return _refined(job, best_coded, _fitting(best, job.settings))


def _fitting(data: bytes, settings: Settings) -> bytes:
    limit = settings.max_size
    if limit is not None and len(data) > limit:
        raise EncodeError(f"max_size: {len(data)} bytes is the smallest found, limit is {limit}")
    return data


def _overhead_bits(job: Job) -> float:
    """Bits of all that does not depend on the step, about."""
    histograms = side.exponent_histograms(list(job.parts.values()))
    bits = float(sum(p.width * len(p.patterns) for p in job.parts.values()))
    if job.parts:
        fitted = tables.fit(histograms, EXPONENT_CLUSTERS, False)
        bits += float(tables.group_bits(histograms, fitted).sum())
    return bits + 8 * ENTRY_BYTES * len(job.items)


def _code(job: Job, step: float, found: Estimate) -> list[Coded]:
    payload = job.settings.payload
    calls = [
        (job.sources[a.item.name], a, job.method, step, rates, payload)
        for a, rates in zip(job.analyses, found.rates, strict=True)
    ]
    return list(_map(code, calls, job.settings.workers, "encode", job.progress))


def _write(
    job: Job, coded: Sequence[Coded], refined: Mapping[str, NDArray[np.unsignedinteger]]
) -> bytes:
    """The file, with side tensors that make up for the coding, and those given."""
    matrices = {a.item.name: one for a, one in zip(job.analyses, coded, strict=True)}
    names = corrections.adjustable(job.items, job.settings)
    changed = corrections.corrected(job.sources, job.statistics, matrices, names)
    changed |= {name: patterns for name, patterns in refined.items() if name in names}
    sources, parts = dict(job.sources), dict(job.parts)
    items = {item.name: item for item in job.items}
    for name, patterns in changed.items():
        sources[name] = replace(sources[name], patterns=patterns)
        parts[name] = _part(items[name], sources[name], job.settings)
    return assemble(sources, job.items, matrices, parts, job.settings)


def _refined(job: Job, coded: Sequence[Coded], data: bytes) -> bytes:
    """The file with refined side tensors, unless it no longer fits."""
    if job.refine is None:
        return data
    better = _write(job, coded, job.refine(data))
    limit = job.settings.max_size
    return data if limit is not None and len(better) > limit else better
