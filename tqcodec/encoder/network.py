"""Network: what is known of a network before its step, and stays the same while that is sought."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.common.progress import Progress
from tqcodec.encoder import rate_control, side
from tqcodec.encoder.effort import EFFORTS, Effort, Tools
from tqcodec.encoder.matrix.coding import make_draft
from tqcodec.encoder.matrix.draft import Draft
from tqcodec.encoder.matrix.metric import Metric, assumed_metric, metric_of
from tqcodec.encoder.matrix.quantizer import Method
from tqcodec.encoder.matrix.survey import Look, Matrix, Survey, make_survey
from tqcodec.encoder.rate_control import Estimate
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.encoder.tensor import Item, Source, Treatment
from tqcodec.encoder.weighing import energy_of, first_step, trusted, weigh
from tqcodec.encoder.workers import map_calls
from tqcodec.format.planes import Part
from tqcodec.format.records import axis_lengths, taps_lengths
from tqcodec.format.registry import Axis, PayloadKind

SAMPLE = 200_000  # coefficients on which the step is sought
TENSOR_SHARE = 1 / 8  # of the coefficients at most, while they are more than SAMPLE / 4
PAYLOAD_KINDS = {"range": PayloadKind.RANGE, "fixed": PayloadKind.FIXED}  # of `Settings.payload`

Refine = Callable[[bytes], Mapping[str, NDArray[np.unsignedinteger]]]


@dataclass(frozen=True, eq=False)
class Network:
    """What is known of a network before its step.

    Attributes:
        sources: the tensors, by name.
        items: their plan, in the order of the file.
        settings: how to encode.
        effort: what is done to get a smaller file.
        parts: numbers of the tensors that are not transformed, by name.
        matrices: those that are, in the order of the file.
        method: their quantizer.
        first_step: from which the search starts.
        weights: elements of all weight matrices.
        statistics: of weights, by name.
        refine: as of `pipeline.encode`.
        progress: called with (stage, done, of).
    """

    sources: Mapping[str, Source]
    items: Sequence[Item]
    settings: Settings
    effort: Effort
    parts: Mapping[str, Part]
    matrices: Sequence[Matrix]
    method: Method
    first_step: float
    weights: int
    statistics: Mapping[str, WeightStatistics]
    refine: Refine | None
    progress: Progress | None

    def survey(self, step: float) -> list[Survey]:
        """Look at all matrices, to code them with a step of about `step`."""
        sources = [self.sources[matrix.item.name] for matrix in self.matrices]
        total = max(1, sum(source.patterns.size for source in sources))
        share = min(1.0, max(SAMPLE / 4, min(SAMPLE, TENSOR_SHARE * total)) / total)
        steps = max(1, self.method.steps)
        look = Look(step, self.settings.transform, self.effort, share, steps)
        calls = [(s, m, look) for s, m in zip(sources, self.matrices, strict=True)]
        workers = self.settings.workers
        found = map_calls(make_survey, calls, workers, "analyse", self.progress)
        return [rate_control.with_own_step(one, self.method, step) for one in found]

    def draft(self, surveys: Sequence[Survey], step: float, found: Estimate) -> list[Draft]:
        """Quantize all matrices at a step, by the code lengths of an estimate there."""
        payload = PAYLOAD_KINDS[self.settings.payload]
        calls = [
            (self.sources[one.matrix.item.name], one, rates, self.method, payload, step)
            for one, rates in zip(surveys, found.rates, strict=True)
        ]
        return list(map_calls(make_draft, calls, self.settings.workers, "encode", self.progress))


def prepare(
    sources: Mapping[str, Source],
    items: Sequence[Item],
    settings: Settings,
    statistics: Mapping[str, WeightStatistics],
    refine: Refine | None,
    progress: Progress | None,
    effort: Effort | None = None,
) -> Network:
    """Everything that is known before the step; arguments as of `pipeline.encode`."""
    effort = effort if effort is not None else EFFORTS[settings.effort]
    parts = {}
    for done, item in enumerate(items, 1):
        if progress is not None:
            progress("prepare", done, len(items))
        if item.treatment in (Treatment.EXACT, Treatment.ROUNDED):
            parts[item.name] = part_of(item, sources[item.name], settings)
    matrices = [i for i in items if i.treatment == Treatment.TRANSFORM]
    sizes = [sources[i.name].patterns.size for i in matrices]
    energies = [energy_of(sources[i.name]) for i in matrices]
    metrics = [_metric(i, sources[i.name], statistics, settings, effort.tools) for i in matrices]
    parts_made_up = [_part_made_up(statistics.get(i.name)) for i in matrices]
    metrics = trusted(metrics, parts_made_up, energies, sizes, settings)
    weighed = weigh([i.name for i in matrices], energies, sizes, metrics, settings)
    factors = [i.options.step / math.sqrt(w.cost) for i, w in zip(matrices, weighed, strict=True)]
    return Network(
        sources=sources,
        items=items,
        settings=settings,
        effort=effort,
        parts=parts,
        matrices=[
            Matrix(item, one.sensitivity, one.judged, metric)
            for item, one, metric in zip(matrices, weighed, metrics, strict=True)
        ],
        method=Method.of(effort, any(m is not None for m in metrics)),
        first_step=first_step(energies, sizes, factors, settings),
        weights=sum(sources[i.name].patterns.size for i in items if i.is_weight),
        statistics=statistics,
        refine=refine,
        progress=progress,
    )


def _part_made_up(statistics: WeightStatistics | None) -> float:
    """Of the samples of statistics, the part that was made up."""
    return 0.0 if statistics is None else statistics.synthetic / max(1, statistics.images)


def _metric(
    item: Item,
    source: Source,
    statistics: Mapping[str, WeightStatistics],
    settings: Settings,
    tools: Tools,
) -> Metric | None:
    if item.name in statistics:
        return metric_of(statistics[item.name], tools)
    if settings.snr is not None:  # of the weights, whatever their inputs
        return None
    shape = source.patterns.shape
    inner = axis_lengths(shape, item.roles)[Axis.IN]
    found = assumed_metric(inner, tuple(taps_lengths(shape, item.roles)))
    return found if tools == found.tools else replace(found, tools=tools)


def part_of(item: Item, source: Source, settings: Settings) -> Part:
    """The numbers of a side tensor."""
    kept = side.kept_bits(item, settings) if item.treatment == Treatment.ROUNDED else None
    return side.make_part(source.patterns, source.dtype, kept)
