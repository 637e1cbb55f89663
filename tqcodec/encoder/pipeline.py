"""Pipeline: the order of the encoder's stages, and nothing else.

plan -> parts of side tensors -> metrics -> surveys -> rate control -> drafts -> corrections of side
tensors -> tables -> records -> file -> verification
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.common.progress import Progress
from tqcodec.encoder import (
    corrections,
    directions,
    findings,
    rate_control,
    side,
    tables,
    verification,
)
from tqcodec.encoder.assembly import EXPONENT_CLUSTERS, assemble
from tqcodec.encoder.effort import Effort
from tqcodec.encoder.findings import EncodeReport, Finding, snr_of
from tqcodec.encoder.matrix.draft import Draft
from tqcodec.encoder.matrix.survey import Survey
from tqcodec.encoder.network import Network, Refine, part_of, prepare
from tqcodec.encoder.plan import adjusted, directory_full, make_plan
from tqcodec.encoder.provenance import provenance
from tqcodec.encoder.rate_control import Estimate
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.encoder.step_search import NARROWEST, StepSearch
from tqcodec.encoder.target import Target
from tqcodec.encoder.tensor import Item, Source
from tqcodec.encoder.workers import kept
from tqcodec.errors import InternalError, TargetError
from tqcodec.format.writer import Layout

PASSES = 8  # corrections of the step after whole encodings
STEP_OFF = 0.3  # octaves by which the step of an analysis may be off; metrics are hard to guess by
ENTRY_BYTES = 28  # of a directory entry, deflated, about
DIRECTORY_FULL = "directory.size"  # the one rule of the format that a user's tensors can break


@dataclass(frozen=True, eq=False)
class Written:
    """A file, and the tensors that it was made of.

    Attributes:
        layout: the file.
        changed: new bit patterns of side tensors that make up for the coding, by name.
        items: the plan, in the order of the file.
        snr: of each matrix that was transform-coded, in dB.
        reached: signal-to-noise ratio as the target counts it, in dB; None where nothing is lost.
        tuned: bytes that the file would have with refined side tensors, where that is too many.
    """

    layout: Layout
    changed: Mapping[str, NDArray[np.unsignedinteger]]
    items: Sequence[Item]
    snr: Mapping[str, float]
    reached: float | None = None
    tuned: int | None = None

    def finish(self, decode: Callable[[bytes], None] | None = None) -> bytes:
        """The bytes of the file, as of `Layout.finish`."""
        try:
            return self.layout.finish(decode)
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
    effort: Effort | None = None,
) -> tuple[bytes, EncodeReport]:
    """A whole file for the tensors, and what is to be known of it.

    Where slices that weight normalisation divides by their lengths would be lost, they get other
    lengths (`directions.evened`).

    Args:
        sources: the tensors.
        settings: how to encode.
        statistics: of weights, by name; those without are encoded without data.
        refine: given a file, bit patterns of side tensors that go better with its weights.
        progress: called with (stage, done, of).
        verify: decode the file and compare it with the tensors.
        effort: what is done to get a smaller file; None for what the settings say.

    Raises:
        EncodeError: tensors that the format cannot hold, or a target that cannot be met.
        InternalError: the file breaks a rule, or does not decode to what it was made of.
    """

    def made(
        by_name: Mapping[str, Source], known: Mapping[str, WeightStatistics], refine: Refine | None
    ) -> tuple[bytes, EncodeReport]:
        items = make_plan(list(by_name.values()), settings, known)
        network = prepare(by_name, items, settings, known, refine, progress, effort)
        written = _search(network) if network.matrices else _fitting(_write(network, []), settings)

        def decode(data: bytes) -> None:
            verification.check(data, by_name, written.items, written.changed, settings, progress)

        data = written.finish(decode if verify else None)
        return data, EncodeReport(_findings(network, written), dict(written.snr))

    by_name = {s.name: s for s in sources}
    data, report = made(by_name, statistics, _unless_lost(refine, by_name))
    lost, changed = directions.lost(data, by_name), {}
    if not lost:
        return data, report
    if evened := directions.evened(by_name, lost):
        others = {**by_name, **evened}
        known = {name: one for name, one in statistics.items() if name not in evened}
        with suppress(TargetError):  # which may take more bytes
            found = made(others, known, _unless_lost(refine, others))
            if not directions.lost(found[0], others):
                (data, report), changed = found, evened
    if not changed and refine is not None:
        data, report = made(by_name, statistics, refine)
    report.findings[:0] = directions.findings_of(lost, changed)
    return data, report


def _unless_lost(refine: Refine | None, by_name: Mapping[str, Source]) -> Refine | None:
    """Refines no file that is made again for its lost slices, so that it is done once."""
    if refine is None:
        return None
    return lambda data: {} if directions.lost(data, by_name) else refine(data)


def _findings(network: Network, written: Written) -> list[Finding]:
    settings, size = network.settings, written.layout.size
    sizes = {name: source.patterns.size for name, source in network.sources.items()}
    excused = findings.excused(network.items, set(network.statistics))
    decoded = sum(source.patterns.nbytes for source in network.sources.values())
    assumed = {
        one.item.name: one.metric for one in network.matrices if one.metric and one.metric.assumed
    }
    shaped = {name: 10 * math.log10(metric.noise_gain) for name, metric in assumed.items()}
    return [
        *findings.of_target(settings, network.weights, size, written.reached),
        *findings.of_tuning(written.tuned),
        *findings.of_matrices(written.snr, sizes, excused, shaped),
        *findings.of_size(size, decoded),
    ]


def _search(network: Network) -> Written:
    """Seek the step on samples, encode, and correct the step by what came out."""
    surveys = network.survey(network.first_step)
    energy = sum(one.energy for one in surveys)
    if energy <= 0:
        found = rate_control.estimate(surveys, network.method, 1.0)
        return _fitting(_write(network, network.draft(surveys, 1.0, found)), network.settings)
    target = Target(network.settings, network.weights, energy, network.effort.slack)
    finer, overhead = network.method.relative_step, _overhead_bits(network)
    step, found = _seek(network, surveys, target, network.first_step * finer, overhead)
    if network.statistics and abs(math.log2(step / finer / network.first_step)) > STEP_OFF:
        surveys = network.survey(step / finer)
        step, found = _seek(network, surveys, target, step, overhead)
    meet = _meet_snr if network.settings.target_snr is not None else _meet_size
    return meet(network, surveys, target, step, found)


def _seek(
    network: Network, surveys: Sequence[Survey], target: Target, start: float, overhead: float
) -> tuple[float, Estimate]:
    """Step that meets the target on the samples, with bits that do not depend on it."""

    def miss(found: Estimate) -> float:
        return target.octaves(found.distortion, found.bits + overhead)

    return rate_control.seek(surveys, network.method, start, miss, target.tolerance)


def _meet_snr(
    network: Network, surveys: Sequence[Survey], target: Target, step: float, found: Estimate
) -> Written:
    """Encode, and again with a corrected step, until the error is right; then write once."""
    search = StepSearch(step, target.tolerance, PASSES, NARROWEST)
    while search.is_open:
        drafts: list[Draft] = []  # half a network: gone before the next one is made
        last = search.step
        drafts = network.draft(surveys, last, found)
        octaves = target.octaves(_distortion(drafts), 0.0)
        if search.tell(octaves, target.rank_of_snr(octaves)):
            best = found
        if search.is_open:
            found = rate_control.estimate(surveys, network.method, search.step)
    if search.best_step != last:
        drafts = []
        drafts = network.draft(surveys, search.best_step, best)
    written = _refined(network, drafts, _write(network, drafts))
    return replace(written, reached=target.snr(_distortion(drafts)))


def _distortion(drafts: Sequence[Draft]) -> float:
    return sum(one.distortion for one in drafts)


def _meet_size(
    network: Network, surveys: Sequence[Survey], target: Target, step: float, found: Estimate
) -> Written:
    """Encode and write, and again with a corrected step, until the size is right."""
    coarsest = max(one.coarsest for one in surveys)
    search = StepSearch(step, target.tolerance, PASSES, NARROWEST, coarsest)
    first, spare = True, PASSES
    while search.is_open:
        last = search.step
        drafts = network.draft(surveys, last, found)
        written = _write(network, drafts)
        size = written.layout.size
        octaves = target.octaves(0.0, 8.0 * size)
        if search.tell(octaves, target.rank(octaves, size)):
            best, best_drafts = written, drafts if network.refine is not None else []
        del drafts  # half a network: gone before the next one is made
        if last >= coarsest and target.is_above(size):
            break
        if search.is_spent and target.is_above(best.layout.size):
            search.reopen(coarsest, spare)  # is there anything smaller, and how much?
            spare = 0
        if not search.is_open:
            break
        if first:  # the samples were off, but their slope is better than a guess
            overhead = 8.0 * size - found.bits
            search.step, found = _seek(network, surveys, target, search.step, overhead)
            first = False
        else:
            found = rate_control.estimate(surveys, network.method, search.step)
    if target.is_above(best.layout.size):
        _refuse_if_far(network, best.layout.size)
    return _refined(network, best_drafts, _fitting(best, network.settings))


def _refuse_if_far(network: Network, smallest: int) -> None:
    """Refuse bits that cannot be reached, unless they are nearly met."""
    bits = network.settings.bits
    if bits is not None and 8 * smallest > (1 + findings.SIZE_MISS) * bits * network.weights:
        least = f"{8 * smallest / network.weights:.3f} per weight, {smallest} bytes"
        raise TargetError(f"bits: {bits:g} per weight cannot be reached, the least is {least}")


def _fitting(written: Written, settings: Settings) -> Written:
    limit, size = settings.max_size, written.layout.size
    if limit is not None and size > limit:
        raise TargetError(f"max_size: {size} bytes is the smallest file, {limit} were allowed")
    return written


def _overhead_bits(network: Network) -> float:
    """Bits of all that does not depend on the step, about."""
    histograms = side.exponent_histograms(list(network.parts.values()))
    bits = float(sum(p.width * len(p.patterns) for p in network.parts.values()))
    if network.parts:
        fitted = tables.fit(histograms, EXPONENT_CLUSTERS, False)
        bits += float(tables.group_bits(histograms, fitted).sum())
    return bits + 8 * ENTRY_BYTES * len(network.items)


def _write(
    network: Network,
    drafts: Sequence[Draft],
    refined: Mapping[str, NDArray[np.unsignedinteger]] | None = None,
) -> Written:
    """The file, with side tensors that make up for the coding, and those given."""
    by_name = {m.item.name: one for m, one in zip(network.matrices, drafts, strict=True)}
    names = corrections.adjustable(network.items)
    changed = corrections.corrected(network.sources, network.statistics, by_name, names)
    changed |= {name: patterns for name, patterns in (refined or {}).items() if name in names}
    sources, parts = dict(network.sources), dict(network.parts)
    items = {item.name: item for item in network.items}
    for name, patterns in changed.items():
        sources[name] = replace(sources[name], patterns=patterns)
        items[name] = adjusted(items[name], network.settings)
        parts[name] = part_of(items[name], sources[name], network.settings)
    about = provenance(network.settings, network.statistics, tuned=bool(refined))
    planned = list(items.values())
    metadata = dict(network.settings.metadata)
    layout = assemble(sources, planned, by_name, parts, network.effort, metadata, about)
    ratios = {name: snr_of(one) for name, one in by_name.items()}
    return Written(layout, changed, planned, ratios)


def _refined(network: Network, drafts: Sequence[Draft], written: Written) -> Written:
    """The file with refined side tensors, unless it no longer fits."""
    if network.refine is None:
        return written
    better = _write(network, drafts, network.refine(written.finish()))
    size = better.layout.size
    if size > written.layout.size and size > _limit(network):
        return replace(written, tuned=size)
    return better


def _limit(network: Network) -> float:
    """Bytes that the file may have."""
    settings = network.settings
    if settings.max_size is not None:
        return settings.max_size
    if settings.bits is not None and network.weights:
        wanted = settings.bits * network.weights / 8
        return wanted + max(findings.SIZE_MISS * wanted, findings.LEAST_MISS)
    return math.inf
