"""Pipeline: the order of the encoder's stages, and nothing else.

plan -> parts of side tensors -> analysis -> rate control -> coding -> tables -> records -> file
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder import rate_control, side, tables
from tqcodec.encoder.analysis import (
    Analysis,
    analyse,
    energy_of,
    first_step,
    sensitivities,
    step_factor,
)
from tqcodec.encoder.coding import Coded, code, with_tables
from tqcodec.encoder.plan import SMALL, Item, Source, Treatment, make_plan
from tqcodec.encoder.quantizer import TRELLIS_LAMBDA, UNIFORM_LAMBDA
from tqcodec.encoder.rate_control import Estimate, Method
from tqcodec.encoder.settings import Progress, Settings
from tqcodec.encoder.tables import Histograms
from tqcodec.errors import EncodeError
from tqcodec.format import writer
from tqcodec.format.planes import Part
from tqcodec.format.registry import MAX_SYMBOLS
from tqcodec.format.tables import Table, Tables
from tqcodec.format.writer import Bundled, Raw, Record, Tied

SAMPLE = 200_000  # coefficients on which the step is sought
TENSOR_SHARE = 1 / 8  # of the coefficients at most, while they are more than SAMPLE / 4
PASSES = 5  # corrections of the step after whole encodings
SNR_TOLERANCE = 0.02  # dB
FAST_TOLERANCE = 5.0  # times as much at the efforts without trellis
FAST_SIZES = (8, 24)  # numbers of tables tried there
DECIBELS_PER_OCTAVE = 20 * math.log10(2)
BITS_TOLERANCE = 0.003  # relative
TRELLIS_EFFORT = 3
INDEX_CLUSTERS, VECTOR_CLUSTERS, ENTRY_CLUSTERS, EXPONENT_CLUSTERS = 48, 6, 8, 12
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
    for item in items:
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
    analyses = list(_map(analyse, calls, settings.workers, "analyse", progress))
    weights = sum(sources[i.name].patterns.size for i in items if i.is_weight)
    return Job(sources, items, settings, parts, analyses, method, step, weights, progress)


def _method(settings: Settings) -> Method:
    if settings.effort < TRELLIS_EFFORT:
        return Method(0, UNIFORM_LAMBDA)
    steps = 32 if settings.effort < 7 else 64
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
        return _fitting(_write(job, _code(job, 1.0, _estimate(job, 1.0))), job.settings)
    target = _Target(job.settings, job.weights, energy)
    overhead = _overhead_bits(job)

    def miss(found: Estimate) -> float:
        return target.octaves(found.distortion, found.bits + overhead)

    start = job.step * (rate_control.TRELLIS_STEP if job.method.steps else 1.0)
    step, found = rate_control.search(job.analyses, job.method, start, miss, target.tolerance)
    meet = _meet_snr if job.settings.target_snr is not None else _meet_size
    return meet(job, target, step, found)


def _meet_snr(job: Job, target: _Target, step: float, found: Estimate) -> bytes:
    """Encode, and again with a corrected step, until the error is right; then write once."""
    for attempt in range(1, PASSES + 1):
        coded = _code(job, step, found)
        pairs = zip(job.analyses, coded, strict=True)
        octaves = target.octaves(sum(a.sensitivity * c.error for a, c in pairs), 0.0)
        if abs(octaves) <= target.tolerance or attempt == PASSES:
            break
        step *= 2.0**-octaves
        found = _estimate(job, step)
    return _write(job, coded)


def _meet_size(job: Job, target: _Target, step: float, found: Estimate) -> bytes:
    """Encode and write, and again with a corrected step, until the size is right."""
    best, best_rank = b"", math.inf
    for _ in range(PASSES):
        data = _write(job, _code(job, step, found))
        octaves = target.octaves(0.0, 8.0 * len(data))
        rank = target.rank(octaves, len(data))
        if rank < best_rank:
            best, best_rank = data, rank
        if rank <= target.tolerance:
            break
        step *= 2.0**-octaves
        found = _estimate(job, step)
    return _fitting(best, job.settings)


@dataclass(frozen=True)
class _Target:
    """What the user asked for, as a distance in octaves of the step."""

    settings: Settings
    weights: int
    energy: float

    @property
    def tolerance(self) -> float:
        """Distance that will do: 0.02 dB or 0.3 % of the bits, five times that in a hurry."""
        slack = FAST_TOLERANCE if self.settings.effort < TRELLIS_EFFORT else 1.0
        if self.settings.target_snr is not None:
            return slack * SNR_TOLERANCE / DECIBELS_PER_OCTAVE
        return slack * BITS_TOLERANCE * self._wanted / self.weights

    @property
    def _wanted(self) -> float:
        if self.settings.bits is not None:
            return self.settings.bits * self.weights
        # Below the limit by half the tolerance: nothing above it will do.
        return 8 * (self.settings.max_size or 1) * (1 - BITS_TOLERANCE / 2)

    def octaves(self, distortion: float, bits: float) -> float:
        """By how much the step is too coarse; negative where it is too fine."""
        wanted = self.settings.target_snr
        if wanted is not None:
            snr = 10 * math.log10(self.energy / max(distortion, 1e-30 * self.energy))
            return (wanted - snr) / DECIBELS_PER_OCTAVE
        return (self._wanted - bits) / self.weights

    def rank(self, octaves: float, size: int) -> float:
        """Distance from the target; infinitely far where a hard limit is broken."""
        limit = self.settings.max_size
        return abs(octaves) + (1e6 * size if limit is not None and size > limit else 0)


def _fitting(data: bytes, settings: Settings) -> bytes:
    limit = settings.max_size
    if limit is not None and len(data) > limit:
        raise EncodeError(f"max_size: {len(data)} bytes is the smallest found, limit is {limit}")
    return data


def _estimate(job: Job, step: float) -> Estimate:
    return rate_control.estimate(job.analyses, job.method, step)


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
    """Fit the tables and write the file."""
    all_tables: list[Table] = []

    def fit(
        histograms: Sequence[Histograms], most: int, symmetric: bool
    ) -> list[NDArray[np.int64]]:
        """First tables of the groups of each of the histograms."""
        joined = Histograms.join(histograms) if histograms else Histograms.empty(0, 1)
        if not len(joined.counts):
            return [np.zeros(0, np.int64)] * len(histograms)
        fast = job.settings.effort < TRELLIS_EFFORT
        fitted = tables.fit(joined, most, symmetric, FAST_SIZES if fast else tables.SIZES)
        first = fitted.first_table(len(all_tables))
        all_tables.extend(fitted.tables)
        return np.split(first, np.cumsum([len(h.counts) for h in histograms])[:-1])

    classes = fit([c.indices for c in coded], INDEX_CLUSTERS, True)
    vectors = fit([c.vectors for c in coded], VECTOR_CLUSTERS, False)
    entries = fit([c.entries for c in coded], ENTRY_CLUSTERS, True)
    parts = list(job.parts.values())
    exponents = fit([side.exponent_histograms([p]) for p in parts], EXPONENT_CLUSTERS, False)
    contents: dict[str, Coded | Part] = {}
    for i, one in enumerate(coded):
        record = with_tables(one, classes[i], vectors[i], entries[i])
        contents[job.analyses[i].item.name] = replace(one, record=record)
    for name, part, table in zip(job.parts, parts, exponents, strict=True):
        contents[name] = side.with_table(part, int(table[0]))
    metadata = dict(job.settings.metadata)
    return writer.write(_records(job, contents), Tables(all_tables), metadata)


def _records(job: Job, contents: Mapping[str, Coded | Part]) -> Iterator[Record]:
    bundle, filled = 0, 0
    for item in job.items:
        source = job.sources[item.name]
        shape, dtype = source.patterns.shape, source.dtype
        if item.same_as is not None:
            yield Record(item.name, dtype, shape, 0, Tied(item.same_as))
            continue
        content = contents[item.name]
        if isinstance(content, Coded):
            snr = _hundredths(content)
            yield Record(item.name, dtype, shape, content.check, content.record, snr)
            continue
        check, size = writer.crc(content.patterns), len(content.patterns)
        if size == 0 or side.is_incompressible(content):
            raw = Raw(content.patterns.tobytes())
            yield Record(item.name, dtype, shape, check, raw)
        elif size > SMALL:
            yield Record(item.name, dtype, shape, check, content)
        else:
            if filled + size > MAX_SYMBOLS:
                bundle, filled = bundle + 1, 0
            filled += size
            yield Record(item.name, dtype, shape, check, Bundled(bundle, content))


def _hundredths(coded: Coded) -> int | None:
    """Signal-to-noise ratio in hundredths of a decibel; None where there is no noise."""
    if coded.error <= 0 or coded.energy <= 0:
        return None
    return round(1000 * math.log10(coded.energy / coded.error))
