"""Pipeline: the order of the encoder's stages, and nothing else.

plan -> parts of side tensors -> analysis -> rate control -> coding -> tables -> records -> file
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqcodec.encoder import rate_control, side, tables
from tqcodec.encoder.analysis import (
    Analysis,
    analyse,
    energy_of,
    first_step,
    sensitivities,
    step_factor,
)
from tqcodec.encoder.assembly import EXPONENT_CLUSTERS, assemble
from tqcodec.encoder.coding import Coded, code
from tqcodec.encoder.plan import Item, Source, Treatment, make_plan
from tqcodec.encoder.quantizer import TRELLIS_LAMBDA, UNIFORM_LAMBDA
from tqcodec.encoder.rate_control import Estimate, Method
from tqcodec.encoder.settings import TRELLIS_EFFORT, Progress, Settings
from tqcodec.encoder.target import Correction, Target
from tqcodec.errors import EncodeError
from tqcodec.format.planes import Part

SAMPLE = 200_000  # coefficients on which the step is sought
TENSOR_SHARE = 1 / 8  # of the coefficients at most, while they are more than SAMPLE / 4
PASSES = 8  # corrections of the step after whole encodings
ENTRY_BYTES = 28  # of a directory entry, deflated, about


@dataclass(frozen=True, eq=False)
class Job:
    """What stays the same while the step is sought."""

    sources: Mapping[str, Source]
    items: Sequence[Item]
    settings: Settings
    parts: Mapping[str, Part]
    analyses: Sequence[Analysis]
    method: Method
    step: float
    weights: int
    progress: Progress | None


def encode(
    sources: Sequence[Source], settings: Settings, progress: Progress | None = None
) -> bytes:
    """A whole file for the tensors.

    Raises:
        EncodeError: tensors that the format cannot hold, or a target that cannot be met.
    """
    items = make_plan(sources, settings)
    by_name = {s.name: s for s in sources}
    job = _prepare(by_name, items, settings, progress)
    if not job.analyses:
        return _fitting(_write(job, []), settings)
    return _search(job)


def _prepare(
    sources: Mapping[str, Source],
    items: Sequence[Item],
    settings: Settings,
    progress: Progress | None,
) -> Job:
    parts = {}
    for done, item in enumerate(items, 1):
        if progress is not None:
            progress("prepare", done, len(items))
        if item.treatment in (Treatment.EXACT, Treatment.ROUNDED):
            kept = None
            if item.treatment == Treatment.ROUNDED:
                own = item.options.side_bits
                kept = own if own is not None else settings.side_bits
            source = sources[item.name]
            parts[item.name] = side.make_part(source.patterns, source.dtype, kept)
    matrices = [i for i in items if i.treatment == Treatment.TRANSFORM]
    sizes = [sources[i.name].patterns.size for i in matrices]
    energies = [energy_of(sources[i.name]) for i in matrices]
    weighed = sensitivities(energies, settings)
    factors = [step_factor(i, w) for i, w in zip(matrices, weighed, strict=True)]
    step = first_step(energies, sizes, factors, settings)
    method = _method(settings)
    total = max(1, sum(sizes))
    share = min(1.0, max(SAMPLE / 4, min(SAMPLE, TENSOR_SHARE * total)) / total)
    calls = [
        (sources[item.name], item, step, weight, settings, share, max(1, method.steps))
        for item, weight in zip(matrices, weighed, strict=True)
    ]
    analyses = [
        rate_control.with_own_step(analysis, method, step)
        for analysis in _map(analyse, calls, settings.workers, "analyse", progress)
    ]
    weights = sum(sources[i.name].patterns.size for i in items if i.is_weight)
    return Job(sources, items, settings, parts, analyses, method, step, weights, progress)


def _method(settings: Settings) -> Method:
    if settings.effort < TRELLIS_EFFORT:
        return Method(0, UNIFORM_LAMBDA)
    steps = 32 if settings.effort < 7 else 64 if settings.effort < 9 else 128
    return Method(steps, TRELLIS_LAMBDA)


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
    overhead = _overhead_bits(job)

    def miss(found: Estimate) -> float:
        return target.octaves(found.distortion, found.bits + overhead)

    start = job.step * (rate_control.TRELLIS_STEP if job.method.steps else 1.0)
    step, found = rate_control.search(job.analyses, job.method, start, miss, target.tolerance)
    meet = _meet_snr if job.settings.target_snr is not None else _meet_size
    return meet(job, target, step, found)


def _meet_snr(job: Job, target: Target, step: float, found: Estimate) -> bytes:
    """Encode, and again with a corrected step, until the error is right; then write once."""
    correction = Correction()
    for attempt in itertools.count(1):
        coded = _code(job, step, found)
        pairs = zip(job.analyses, coded, strict=True)
        octaves = target.octaves(sum(a.sensitivity * c.error for a, c in pairs), 0.0)
        if abs(octaves) <= target.tolerance or attempt == PASSES:
            return _write(job, coded)
        del coded, pairs  # half a network: gone before the next one is made
        step = correction.next_step(step, octaves)
        found = rate_control.estimate(job.analyses, job.method, step)
    raise AssertionError("the last pass returns")


def _meet_size(job: Job, target: Target, step: float, found: Estimate) -> bytes:
    """Encode and write, and again with a corrected step, until the size is right."""
    best, best_rank, correction = b"", math.inf, Correction()
    for _ in range(PASSES):
        data = _write(job, _code(job, step, found))
        octaves = target.octaves(0.0, 8.0 * len(data))
        rank = target.rank(octaves, len(data))
        if rank < best_rank:
            best, best_rank = data, rank
        if rank <= target.tolerance:
            break
        step = correction.next_step(step, octaves)
        found = rate_control.estimate(job.analyses, job.method, step)
    return _fitting(best, job.settings)


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


def _write(job: Job, coded: Sequence[Coded]) -> bytes:
    matrices = {a.item.name: one for a, one in zip(job.analyses, coded, strict=True)}
    return assemble(job.sources, job.items, matrices, job.parts, job.settings)
