"""Assembly: fit the tables of the file and make the records in its order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder import budget, side, tables
from tqcodec.encoder.effort import Effort
from tqcodec.encoder.histograms import Histograms
from tqcodec.encoder.matrix.draft import Draft, Quantized
from tqcodec.encoder.matrix.error import decibels
from tqcodec.encoder.plan import SMALL
from tqcodec.encoder.tables import TableSet
from tqcodec.encoder.tensor import Item, Source
from tqcodec.format import writer
from tqcodec.format.entries import crc
from tqcodec.format.planes import Part
from tqcodec.format.records import CodedTensor
from tqcodec.format.registry import MAX_SYMBOLS, PayloadKind
from tqcodec.format.tables import Table, Tables
from tqcodec.format.writer import Bundled, Layout, Raw, Record, Tied

INDEX_CLUSTERS, VECTOR_CLUSTERS, ENTRY_CLUSTERS, EXPONENT_CLUSTERS = 48, 16, 8, 12


@dataclass(frozen=True, eq=False)
class _Wanted:
    """Tables to be fitted to some histograms, as a set of their own.

    Attributes:
        histograms: groups of each tensor.
        most: largest number of clusters.
        symmetric: as of `tables.fit`.
        needed: True where records refer to a table even if nothing is counted.
    """

    histograms: Sequence[Histograms]
    most: int
    symmetric: bool
    needed: bool = False

    def fit(self, sizes: Sequence[int]) -> TableSet | None:
        """The tables, None where there is nothing to fit."""
        joined = Histograms.join(self.histograms) if self.histograms else Histograms.empty(0, 1)
        if not len(joined.counts) or not (self.needed or joined.seen.any()):
            return None
        return tables.fit(joined, self.most, self.symmetric, sizes)


def _fit(
    wanted: Sequence[_Wanted], sizes: Sequence[int]
) -> tuple[Tables, list[list[NDArray[np.int64]]]]:
    """The tables of the file, and for each set the first tables of the groups of each tensor."""
    fitted = [one.fit(sizes) for one in wanted]
    known = iter(budget.within_limits([one for one in fitted if one is not None]))
    found: list[Table] = []
    first = []
    for one, old in zip(wanted, fitted, strict=True):
        if old is None:
            first.append([np.zeros(len(h.counts), np.int64) for h in one.histograms])
            continue
        new = next(known)
        places = new.first_table(len(found))
        found.extend(new.tables)
        first.append(np.split(places, np.cumsum([len(h.counts) for h in one.histograms])[:-1]))
    return Tables(found), first


def assemble(
    sources: Mapping[str, Source],
    items: Sequence[Item],
    drafts: Mapping[str, Draft],
    parts: Mapping[str, Part],
    effort: Effort,
    metadata: Mapping[str, str],
    provenance: str,
) -> Layout:
    """The file of drafts and of parts, in the order of the items."""
    quantized, parts = {}, dict(parts)
    for name, draft in drafts.items():
        if isinstance(draft.content, Quantized):
            quantized[name] = draft.content
        else:
            parts[name] = draft.content
    contents, known = _with_tables(quantized, parts, effort.table_counts)
    records = _records(sources, items, contents, drafts)
    return writer.lay_out(records, known, metadata, provenance)


def _with_tables(
    quantized: Mapping[str, Quantized], parts: Mapping[str, Part], table_counts: Sequence[int]
) -> tuple[dict[str, CodedTensor | Part | Raw], Tables]:
    """What the file holds for each tensor, and its tables."""
    matrices = list(quantized.values())
    plain = {name for name, part in parts.items() if side.is_incompressible(part)}
    tabled = {name: part for name, part in parts.items() if name not in plain}
    ranged = any(one.record.payload_kind == PayloadKind.RANGE for one in matrices)
    exponents = [side.exponent_histograms([part]) for part in tabled.values()]
    wanted = [
        _Wanted([one.indices for one in matrices], INDEX_CLUSTERS, symmetric=True, needed=ranged),
        _Wanted([one.vectors for one in matrices], VECTOR_CLUSTERS, symmetric=False),
        _Wanted([one.entries for one in matrices], ENTRY_CLUSTERS, symmetric=True),
        _Wanted(exponents, EXPONENT_CLUSTERS, symmetric=False),
    ]
    known, (of_indices, of_vectors, of_entries, of_exponents) = _fit(wanted, table_counts)
    contents: dict[str, CodedTensor | Part | Raw] = {
        name: one.with_tables(of_indices[i], of_vectors[i], of_entries[i])
        for i, (name, one) in enumerate(quantized.items())
    }
    contents |= {name: Raw(parts[name].patterns.tobytes()) for name in plain}
    for (name, part), table in zip(tabled.items(), of_exponents, strict=True):
        contents[name] = side.with_table(part, int(table[0]))
    return contents, known


def _records(
    sources: Mapping[str, Source],
    items: Sequence[Item],
    contents: Mapping[str, CodedTensor | Part | Raw],
    drafts: Mapping[str, Draft],
) -> Iterator[Record]:
    bundle, filled = 0, 0
    for item in items:
        source = sources[item.name]
        shape, dtype = source.patterns.shape, source.dtype
        if item.same_as is not None:
            yield Record(item.name, dtype, shape, 0, Tied(item.same_as))
            continue
        content: CodedTensor | Part | Raw | Bundled = contents[item.name]
        draft, snr = drafts.get(item.name), None
        if draft is not None:
            check, snr = draft.check, decibels(draft.error, draft.energy)
        else:
            check = crc(content.patterns if isinstance(content, Part) else source.patterns)
        if isinstance(content, Part) and len(content.patterns) <= min(SMALL, MAX_SYMBOLS):
            size = len(content.patterns)
            if filled + size > MAX_SYMBOLS:
                bundle, filled = bundle + 1, 0
            filled += size
            content = Bundled(bundle, content)
        yield Record(item.name, dtype, shape, check, content, snr, int(item.kind))
