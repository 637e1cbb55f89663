"""Pipeline: the order of the encoder's stages, and nothing else.

plan -> parts of side tensors -> metrics -> analysis -> rate control -> coding -> corrections of
side tensors -> tables -> records -> file -> verification
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.common.progress import Progress
from tqcodec.encoder import corrections, findings, rate_control, side, tables, verification
from tqcodec.encoder.assembly import EXPONENT_CLUSTERS, assemble
from tqcodec.encoder.effort import EFFORTS
from tqcodec.encoder.findings import EncodeReport, Finding, snr_of
from tqcodec.encoder.job import Job, Refine, analysed, map_calls, part_of, prepare
from tqcodec.encoder.matrix.coding import code
from tqcodec.encoder.matrix.draft import Coded
from tqcodec.encoder.plan import adjusted, directory_full, make_plan
from tqcodec.encoder.provenance import provenance
from tqcodec.encoder.rate_control import Estimate
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.encoder.target import Correction, Target
from tqcodec.encoder.tensor import Item, Source
from tqcodec.encoder.workers import kept
from tqcodec.errors import EncodeError, InternalError
from tqcodec.format.writer import Draft

PASSES = 8  # corrections of the step after whole encodings
STEP_OFF = 0.3  # octaves by which the step of an analysis may be off; metrics are hard to guess by
ENTRY_BYTES = 28  # of a directory entry, deflated, about
DIRECTORY_FULL = "directory.size"  # the one rule of the format that a user's tensors can break


@dataclass(frozen=True, eq=False)
class Written:
    """A file, and the tensors that it was made of.

    Attributes:
        draft: the file.
        changed: new bit patterns of side tensors that make up for the coding, by name.
        items: the plan, in the order of the file.
        snr: of each matrix that was transform-coded, in dB.
        reached: signal-to-noise ratio as the target counts it, in dB; None where nothing is lost.
    """

    draft: Draft
    changed: Mapping[str, NDArray[np.unsignedinteger]]
    items: Sequence[Item]
    snr: Mapping[str, float]
    reached: float | None = None

    def finish(self, decode: Callable[[bytes], None] | None = None) -> bytes:
        """The bytes of the file, as of `Draft.finish`."""
        try:
            return self.draft.finish(decode)
        except InternalError as error:
            if error.rule == DIRECTORY_FULL:
                raise directory_full(error.message) from error
            raise


@kept()
def encode(
    sources: Sequence[Source],
    settings: Settings,
    statistics: Mapping[str, WeightStatistics],
    refine: Refine | None = None,
    progress: Progress | None = None,
    verify: bool = True,
) -> tuple[bytes, EncodeReport]:
    """A whole file for the tensors, and what is to be known of it.

    Args:
        sources: the tensors.
        settings: how to encode.
        statistics: of weights, by name; those without are encoded without data.
        refine: given a file, bit patterns of side tensors that go better with its weights.
        progress: called with (stage, done, of).
        verify: decode the file and compare it with the tensors.

    Raises:
        EncodeError: tensors that the format cannot hold, or a target that cannot be met.
        InternalError: the file breaks a rule, or does not decode to what it was made of.
    """
    items = make_plan(sources, settings, statistics)
    by_name = {s.name: s for s in sources}
    job = prepare(by_name, items, settings, statistics, refine, progress)
    written = _search(job) if job.analyses else _fitting(_write(job, [], {}), settings)

    def decode(data: bytes) -> None:
        verification.check(data, by_name, written.items, written.changed, settings, progress)

    data = written.finish(decode if verify else None)
    return data, EncodeReport(_findings(job, written), dict(written.snr))


def _findings(job: Job, written: Written) -> list[Finding]:
    settings, size = job.settings, written.draft.size
    sizes = {name: source.patterns.size for name, source in job.sources.items()}
    excused = findings.excused(job.items, set(job.statistics))
    decoded = sum(source.patterns.nbytes for source in job.sources.values())
    assumed = {a.item.name: a.metric for a in job.analyses if a.metric and a.metric.assumed}
    shaped = {name: 10 * math.log10(metric.noise_gain) for name, metric in assumed.items()}
    return [
        *findings.of_target(settings, job.weights, size, written.reached),
        *findings.of_matrices(written.snr, sizes, excused, shaped),
        *findings.of_size(size, decoded),
    ]


def _search(job: Job) -> Written:
    """Seek the step on samples, encode, and correct the step by what came out."""
    energy = sum(a.energy for a in job.analyses)
    if energy <= 0:
        coded = _code(job, 1.0, rate_control.estimate(job.analyses, job.method, 1.0))
        return _fitting(_write(job, coded, {}), job.settings)
    target = Target(job.settings, job.weights, energy, EFFORTS[job.settings.effort].slack)
    finer = job.method.relative_step
    overhead = _overhead_bits(job)
    step, found = _seek(job, target, job.step * finer, overhead)
    if job.statistics and abs(math.log2(step / finer / job.step)) > STEP_OFF:
        job = analysed(job, step / finer)
        step, found = _seek(job, target, step, overhead)
    meet = _meet_snr if job.settings.target_snr is not None else _meet_size
    return meet(job, target, step, found)


def _seek(job: Job, target: Target, start: float, overhead: float) -> tuple[float, Estimate]:
    """Step that meets the target on the samples, with bits that do not depend on it."""

    def miss(found: Estimate) -> float:
        return target.octaves(found.distortion, found.bits + overhead)

    return rate_control.search(job.analyses, job.method, start, miss, target.tolerance)


def _meet_snr(job: Job, target: Target, step: float, found: Estimate) -> Written:
    """Encode, and again with a corrected step, until the error is right; then write once."""
    correction = Correction()
    tries: list[tuple[float, float, Estimate]] = []
    for _ in range(PASSES):
        coded: list[Coded] = []  # half a network: gone before the next one is made
        coded = _code(job, step, found)
        octaves = target.octaves(_distortion(coded), 0.0)
        tries.append((target.rank_of_snr(octaves), step, found))
        if abs(octaves) <= target.tolerance:
            break
        step = correction.next_step(step, octaves)
        if correction.is_narrow:
            break
        found = rate_control.estimate(job.analyses, job.method, step)
    best = min(tries, key=lambda one: one[0])
    if best is not tries[-1]:
        coded = []
        coded = _code(job, *best[1:])
    written = _refined(job, coded, _write(job, coded, {}))
    return replace(written, reached=target.snr(_distortion(coded)))


def _distortion(coded: Sequence[Coded]) -> float:
    return sum(one.distortion for one in coded)


def _meet_size(job: Job, target: Target, step: float, found: Estimate) -> Written:
    """Encode and write, and again with a corrected step, until the size is right."""
    best: Written | None = None
    best_coded: list[Coded] = []
    best_rank = math.inf
    correction = Correction()
    coarsest = max(a.coarsest for a in job.analyses)
    for attempt in range(2 * PASSES):
        if attempt == PASSES:
            if best is None or not target.is_above(best.draft.size):
                break
            # Still too large: is there anything smaller, and how much?
            step = coarsest
            found = rate_control.estimate(job.analyses, job.method, step)
        coded = _code(job, step, found)
        written = _write(job, coded, {})
        size = written.draft.size
        octaves = target.octaves(0.0, 8.0 * size)
        rank = target.rank(octaves, size)
        if rank < best_rank:
            best, best_rank = written, rank
            best_coded = coded if job.refine is not None else []
        del coded  # half a network: gone before the next one is made
        if rank <= target.tolerance or (step >= coarsest and target.is_above(size)):
            break
        step = min(correction.next_step(step, octaves), coarsest)
        if correction.is_narrow:
            break
        if attempt == 0:  # the samples were off, but their slope is better than a guess
            step, found = _seek(job, target, step, 8.0 * size - found.bits)
        else:
            found = rate_control.estimate(job.analyses, job.method, step)
    assert best is not None, "PASSES is positive, and no rank infinite"
    if target.is_above(best.draft.size):
        _refuse_if_far(job, best.draft.size)
    return _refined(job, best_coded, _fitting(best, job.settings))


def _refuse_if_far(job: Job, smallest: int) -> None:
    """Refuse bits that cannot be reached, unless they are nearly met."""
    bits = job.settings.bits
    if bits is not None and 8 * smallest > (1 + findings.SIZE_MISS) * bits * job.weights:
        least = f"{8 * smallest / job.weights:.3f} per weight, {smallest} bytes"
        raise EncodeError(f"bits: {bits:g} per weight cannot be reached, the least is {least}")


def _fitting(written: Written, settings: Settings) -> Written:
    limit, size = settings.max_size, written.draft.size
    if limit is not None and size > limit:
        raise EncodeError(f"max_size: {size} bytes is the smallest file, {limit} were allowed")
    return written


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
    return list(map_calls(code, calls, job.settings.workers, "encode", job.progress))


def _write(
    job: Job, coded: Sequence[Coded], refined: Mapping[str, NDArray[np.unsignedinteger]]
) -> Written:
    """The file, with side tensors that make up for the coding, and those given."""
    matrices = {a.item.name: one for a, one in zip(job.analyses, coded, strict=True)}
    names = corrections.adjustable(job.items)
    changed = corrections.corrected(job.sources, job.statistics, matrices, names)
    changed |= {name: patterns for name, patterns in refined.items() if name in names}
    sources, parts = dict(job.sources), dict(job.parts)
    items = {item.name: item for item in job.items}
    for name, patterns in changed.items():
        sources[name] = replace(sources[name], patterns=patterns)
        items[name] = adjusted(items[name], job.settings)
        parts[name] = part_of(items[name], sources[name], job.settings)
    about = provenance(job.settings, job.statistics, tuned=bool(refined))
    planned = list(items.values())
    draft = assemble(sources, planned, matrices, parts, job.settings, about)
    ratios = {name: snr_of(one) for name, one in matrices.items()}
    return Written(draft, changed, planned, ratios)


def _refined(job: Job, coded: Sequence[Coded], written: Written) -> Written:
    """The file with refined side tensors, unless it no longer fits."""
    if job.refine is None:
        return written
    better = _write(job, coded, job.refine(written.finish()))
    limit = job.settings.max_size
    return written if limit is not None and better.draft.size > limit else better
