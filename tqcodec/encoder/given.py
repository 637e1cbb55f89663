"""Given: the file of integers that were chosen elsewhere, as retraining does.

The tensors are what the integers decode to: nothing is searched for, nothing is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tqcodec.common.progress import Progress
from tqcodec.encoder import verification
from tqcodec.encoder.assembly import assemble
from tqcodec.encoder.effort import EFFORTS
from tqcodec.encoder.kinds import Kind
from tqcodec.encoder.matrix.classes import class_count, class_of
from tqcodec.encoder.matrix.draft import Draft, Quantized
from tqcodec.encoder.matrix.quantizer import UNIFORM
from tqcodec.encoder.matrix.record import counted
from tqcodec.encoder.network import part_of
from tqcodec.encoder.plan import make_plan
from tqcodec.encoder.provenance import provenance
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.side import make_part
from tqcodec.encoder.tensor import Item, Source, Treatment
from tqcodec.format.entries import crc
from tqcodec.format.records import CodedTensor
from tqcodec.format.writer import Layout


def quantized_of(record: CodedTensor) -> Quantized:
    """A record of the uniform quantizer with the histograms of its symbols."""
    levels = [level.values for level in record.levels]
    columns = len(levels[1]) * len(levels[2])
    classes = class_of(levels, np.arange(columns))
    return counted(record, UNIFORM, classes, class_count(levels))


def plan(sources: Sequence[Source], names: Collection[str], settings: Settings) -> list[Item]:
    """The plan of the tensors: those of `names` are weights, however few values they are left."""
    return [
        replace(item, treatment=Treatment.TRANSFORM, kind=Kind.WEIGHT, same_as=None)
        if item.name in names
        else item
        for item in make_plan(sources, settings, {})
    ]


def lay_out(
    sources: Sequence[Source],
    records: Mapping[str, CodedTensor],
    settings: Settings,
) -> Layout:
    """The file, of which only the size is known.

    Args:
        sources: the tensors; those of `records` are what these decode to.
        records: of matrices, by name, of the uniform quantizer; their tables do not count.
        settings: how to encode the other tensors; how many tables to try.

    Raises:
        EncodeError: as of `make_plan`.
    """
    items = plan(sources, records, settings)
    drafts, parts = {}, {}
    for item, source in zip(items, sources, strict=True):
        if item.name in records:
            quantized = quantized_of(records[item.name])
            drafts[item.name] = Draft(quantized, crc(source.patterns), 0.0, 0.0, 0.0, None)
        elif item.treatment == Treatment.TRANSFORM:
            parts[item.name] = make_part(source.patterns, source.dtype, None)
        elif item.treatment != Treatment.TIED:
            part = part_of(item, source, settings)
            if not np.array_equal(part.patterns, source.patterns.reshape(-1)):
                # Subnormal numbers that were shortened once may be shortened further.
                part = make_part(source.patterns, source.dtype, None)
            parts[item.name] = part
    about = provenance(settings, {}, retrained=True)
    by_name = {source.name: source for source in sources}
    effort, metadata = EFFORTS[settings.effort], dict(settings.metadata)
    return assemble(by_name, items, drafts, parts, effort, metadata, about)


def encode(
    sources: Sequence[Source],
    records: Mapping[str, CodedTensor],
    settings: Settings,
    progress: Progress | None = None,
) -> bytes:
    """The file, decoded and compared with the tensors; arguments and errors as of `lay_out`.

    Raises:
        InternalError: it breaks a rule, or does not decode to the tensors.
    """
    items = plan(sources, records, settings)
    by_name = {source.name: source for source in sources}

    def decode(data: bytes) -> None:
        verification.check(data, by_name, items, {}, settings, progress)

    return lay_out(sources, records, settings).finish(decode)
