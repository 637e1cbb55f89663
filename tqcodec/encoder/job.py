"""Job: what stays the same while the step of the network is sought."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqcodec.common.progress import Progress
from tqcodec.encoder import rate_control, side
from tqcodec.encoder.effort import EFFORTS
from tqcodec.encoder.matrix.metric import Metric, assumed_metric, metric_of
from tqcodec.encoder.matrix.quantizer import Method
from tqcodec.encoder.matrix.survey import Analysis, analyse
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.encoder.tensor import Item, Source, Treatment
from tqcodec.encoder.weighing import (
    energy_of,
    first_step,
    in_scale,
    plain_weights,
    sensitivities,
)
from tqcodec.encoder.workers import workers_for
from tqcodec.errors import EncodeError
from tqcodec.format.planes import Part
from tqcodec.format.records import axis_lengths, taps_lengths
from tqcodec.format.registry import Axis

SAMPLE = 200_000  # coefficients on which the step is sought
LEAST_POWER = 2.0**-110  # of gradients times inputs, so that float32 holds what follows from it
TENSOR_SHARE = 1 / 8  # of the coefficients at most, while they are more than SAMPLE / 4

Refine = Callable[[bytes], Mapping[str, NDArray[np.unsignedinteger]]]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight matrix before its analysis.

    Attributes:
        item: its plan.
        slope: inverse square of its step; 1 where the metric is in units of the logits.
        judged: weight of its squared error where the target is judged; None where the metric says.
        metric: what its errors do, or None where all its weights count alike.
    """

    item: Item
    slope: float
    judged: float | None
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


def prepare(
    sources: Mapping[str, Source],
    items: Sequence[Item],
    settings: Settings,
    statistics: Mapping[str, WeightStatistics],
    refine: Refine | None,
    progress: Progress | None,
) -> Job:
    """Everything that is known before the step; arguments as of `pipeline.encode`."""
    parts = {}
    for done, item in enumerate(items, 1):
        if progress is not None:
            progress("prepare", done, len(items))
        if item.treatment in (Treatment.EXACT, Treatment.ROUNDED):
            parts[item.name] = part_of(item, sources[item.name], settings)
    matrices = [i for i in items if i.treatment == Treatment.TRANSFORM]
    sizes = [sources[i.name].patterns.size for i in matrices]
    energies = [energy_of(sources[i.name]) for i in matrices]
    metrics = [_metric(i, sources[i.name], statistics, settings) for i in matrices]
    powers = [None if m is None or m.assumed is not None else m.power for m in metrics]
    for item, power, energy in zip(matrices, powers, energies, strict=True):
        sizes_of = [] if power is None else [x for x in (power, power * energy) if x != 0]
        if not all(LEAST_POWER < x < 1 / LEAST_POWER for x in sizes_of):
            raise EncodeError(
                f"statistics of {item.name!r}: gradients and inputs of such a size ({power:.3g}) "
                "cannot be weighed; scale the network's outputs"
            )
    weighed = sensitivities(energies, sizes, settings)
    if settings.snr is None:
        weighed = in_scale(weighed, powers)
    # Beside matrices with statistics, those without are judged on the scale of these.
    errors, judged = weighed, list[float | None](weighed)
    if settings.snr is None:
        if not any(p is not None for p in powers):
            errors = plain_weights(energies, sizes)
        judged = [w if p is None else None for w, p in zip(errors, powers, strict=True)]
    slopes = [w if p is None else 1.0 for w, p in zip(weighed, powers, strict=True)]
    totals = [w if p is None else p for w, p in zip(weighed, powers, strict=True)]
    factors = [i.options.step / math.sqrt(t) for i, t in zip(matrices, totals, strict=True)]
    step = first_step(energies, sizes, factors, settings)
    weights = sum(sources[i.name].patterns.size for i in items if i.is_weight)
    job = Job(
        sources=sources,
        items=items,
        settings=settings,
        parts=parts,
        matrices=[Matrix(*m) for m in zip(matrices, slopes, judged, metrics, strict=True)],
        analyses=[],
        method=Method.of(EFFORTS[settings.effort], any(m is not None for m in metrics)),
        step=step,
        weights=weights,
        statistics=statistics,
        refine=refine,
        progress=progress,
    )
    return analysed(job, step)


def _metric(
    item: Item, source: Source, statistics: Mapping[str, WeightStatistics], settings: Settings
) -> Metric | None:
    if item.name in statistics:
        return metric_of(statistics[item.name])
    if settings.snr is not None:  # of the weights, whatever their inputs
        return None
    shape = source.patterns.shape
    inner = axis_lengths(shape, item.roles)[Axis.IN]
    return assumed_metric(inner, tuple(taps_lengths(shape, item.roles)))


def analysed(job: Job, step: float) -> Job:
    """The job with its matrices analysed for a step of about `step`."""
    total = max(1, sum(job.sources[m.item.name].patterns.size for m in job.matrices))
    share = min(1.0, max(SAMPLE / 4, min(SAMPLE, TENSOR_SHARE * total)) / total)
    source_of, common = job.sources, (job.settings, share, max(1, job.method.steps))
    calls = [
        (source_of[m.item.name], m.item, step, m.slope, m.judged, *common, m.metric)
        for m in job.matrices
    ]
    analyses = [
        rate_control.with_own_step(analysis, job.method, step)
        for analysis in map_calls(analyse, calls, job.settings.workers, "analyse", job.progress)
    ]
    return replace(job, analyses=analyses, step=step)


def part_of(item: Item, source: Source, settings: Settings) -> Part:
    """The numbers of a side tensor."""
    kept = side.kept_bits(item, settings) if item.treatment == Treatment.ROUNDED else None
    return side.make_part(source.patterns, source.dtype, kept)


def map_calls(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    workers: int,
    stage: str,
    progress: Progress | None,
) -> Iterator[Any]:
    """Results of the calls in their order, from processes where more than one is wanted."""

    def counted(results: Iterable[Any]) -> Iterator[Any]:
        for done, result in enumerate(results, 1):
            if progress is not None:
                progress(stage, done, len(calls))
            yield result

    if min(workers, len(calls)) == 1:
        yield from counted(function(*call) for call in calls)
    else:
        with workers_for(workers) as processes:
            yield from counted(processes.map(function, calls))
