"""Assembly: fit the tables of the file and make the records in its order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder import budget, side, tables
from tqcodec.encoder.effort import EFFORTS
from tqcodec.encoder.histograms import Histograms
from tqcodec.encoder.matrix.draft import Coded, with_tables
from tqcodec.encoder.matrix.error import decibels
from tqcodec.encoder.plan import SMALL
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.tables import TableSet
from tqcodec.encoder.tensor import Item, Source
from tqcodec.format import writer
from tqcodec.format.entries import crc
from tqcodec.format.planes import Part
from tqcodec.format.registry import MAX_SYMBOLS, PayloadKind
from tqcodec.format.tables import Table, Tables
from tqcodec.format.writer import Bundled, Draft, Raw, Record, Tied

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
    matrices: Mapping[str, Coded],
    parts: Mapping[str, Part],
    settings: Settings,
    provenance: str,
) -> Draft:
    """The file of coded matrices and of parts, in the order of the items."""
    parts = {**parts, **{n: one.part for n, one in matrices.items() if one.part is not None}}
    ratios = {n: decibels(one.error, one.energy) for n, one in matrices.items()}
    matrices = {name: one for name, one in matrices.items() if one.part is None}
    coded = list(matrices.values())
    plain = {name for name, part in parts.items() if side.is_incompressible(part)}
    tabled = {name: part for name, part in parts.items() if name not in plain}
    ranged = any(c.record.payload_kind == PayloadKind.RANGE for c in coded)
    wanted = [
        _Wanted([c.indices for c in coded], INDEX_CLUSTERS, symmetric=True, needed=ranged),
        _Wanted([c.vectors for c in coded], VECTOR_CLUSTERS, symmetric=False),
        _Wanted([c.entries for c in coded], ENTRY_CLUSTERS, symmetric=True),
        _Wanted(
            [side.exponent_histograms([p]) for p in tabled.values()],
            EXPONENT_CLUSTERS,
            symmetric=False,
        ),
    ]
    counts = EFFORTS[settings.effort].table_counts
    known, (classes, vectors, entries, exponents) = _fit(wanted, counts)
    contents: dict[str, Coded | Part | Raw] = {}
    for i, (name, one) in enumerate(matrices.items()):
        record = with_tables(one, classes[i], vectors[i], entries[i])
        contents[name] = replace(one, record=record)
    contents |= {name: Raw(parts[name].patterns.tobytes()) for name in plain}
    for (name, part), table in zip(tabled.items(), exponents, strict=True):
        contents[name] = side.with_table(part, int(table[0]))
    records = _records(sources, items, contents, ratios)
    return writer.draft(records, known, dict(settings.metadata), provenance)


def _records(
    sources: Mapping[str, Source],
    items: Sequence[Item],
    contents: Mapping[str, Coded | Part | Raw],
    ratios: Mapping[str, int | None],
) -> Iterator[Record]:
    bundle, filled = 0, 0
    for item in items:
        source = sources[item.name]
        shape, dtype = source.patterns.shape, source.dtype
        if item.same_as is not None:
            yield Record(item.name, dtype, shape, 0, Tied(item.same_as))
            continue
        content, snr, kind = contents[item.name], ratios.get(item.name), int(item.kind)
        if isinstance(content, Coded):
            yield Record(item.name, dtype, shape, content.check, content.record, snr, kind)
            continue
        if isinstance(content, Raw):
            yield Record(item.name, dtype, shape, crc(source.patterns), content, kind=kind)
            continue
        check, size = crc(content.patterns), len(content.patterns)
        if size > min(SMALL, MAX_SYMBOLS):
            yield Record(item.name, dtype, shape, check, content, snr, kind)
        else:
            if filled + size > MAX_SYMBOLS:
                bundle, filled = bundle + 1, 0
            filled += size
            yield Record(item.name, dtype, shape, check, Bundled(bundle, content), snr, kind)
