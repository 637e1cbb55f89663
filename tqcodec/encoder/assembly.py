"""Assembly: fit the tables of the file and make the records in its order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder import side, tables
from tqcodec.encoder.coded import Coded, with_tables
from tqcodec.encoder.histograms import Histograms
from tqcodec.encoder.plan import SMALL, Item, Source
from tqcodec.encoder.settings import TRELLIS_EFFORT, Settings
from tqcodec.format import writer
from tqcodec.format.entries import crc
from tqcodec.format.planes import Part
from tqcodec.format.registry import MAX_SYMBOLS
from tqcodec.format.tables import Table, Tables
from tqcodec.format.writer import Bundled, Raw, Record, Tied

INDEX_CLUSTERS, VECTOR_CLUSTERS, ENTRY_CLUSTERS, EXPONENT_CLUSTERS = 48, 16, 8, 12
FAST_SIZES = (8, 24)  # numbers of clusters tried at the efforts without trellis


@dataclass
class _TableBuilder:
    """Collects the tables of the file."""

    sizes: Sequence[int]
    tables: list[Table] = field(default_factory=list)

    def fit(
        self, histograms: Sequence[Histograms], most: int, symmetric: bool, wanted: bool
    ) -> list[NDArray[np.int64]]:
        """First tables of the groups of each of the histograms.

        Without a count there is nothing to fit; `wanted` says whether a table is needed all the
        same, because records refer to one.
        """
        joined = Histograms.join(histograms) if histograms else Histograms.empty(0, 1)
        if not len(joined.counts) or not (wanted or joined.seen.any()):
            return [np.zeros(len(h.counts), np.int64) for h in histograms]
        fitted = tables.fit(joined, most, symmetric, self.sizes)
        first = fitted.first_table(len(self.tables))
        self.tables.extend(fitted.tables)
        return np.split(first, np.cumsum([len(h.counts) for h in histograms])[:-1])


def assemble(
    sources: Mapping[str, Source],
    items: Sequence[Item],
    matrices: Mapping[str, Coded],
    parts: Mapping[str, Part],
    settings: Settings,
) -> bytes:
    """The file of coded matrices and of parts, in the order of the items."""
    builder = _TableBuilder(FAST_SIZES if settings.effort < TRELLIS_EFFORT else tables.SIZES)
    coded = list(matrices.values())
    classes = builder.fit([c.indices for c in coded], INDEX_CLUSTERS, True, True)
    vectors = builder.fit([c.vectors for c in coded], VECTOR_CLUSTERS, False, False)
    entries = builder.fit([c.entries for c in coded], ENTRY_CLUSTERS, True, False)
    plain = {name for name, part in parts.items() if side.is_incompressible(part)}
    tabled = {name: part for name, part in parts.items() if name not in plain}
    histograms = [side.exponent_histograms([p]) for p in tabled.values()]
    exponents = builder.fit(histograms, EXPONENT_CLUSTERS, False, False)
    contents: dict[str, Coded | Part | Raw] = {}
    for i, (name, one) in enumerate(matrices.items()):
        record = with_tables(one, classes[i], vectors[i], entries[i])
        contents[name] = replace(one, record=record)
    contents |= {name: Raw(parts[name].patterns.tobytes()) for name in plain}
    for (name, part), table in zip(tabled.items(), exponents, strict=True):
        contents[name] = side.with_table(part, int(table[0]))
    records = _records(sources, items, contents)
    return writer.write(records, Tables(builder.tables), dict(settings.metadata))


def _records(
    sources: Mapping[str, Source],
    items: Sequence[Item],
    contents: Mapping[str, Coded | Part | Raw],
) -> Iterator[Record]:
    bundle, filled = 0, 0
    for item in items:
        source = sources[item.name]
        shape, dtype = source.patterns.shape, source.dtype
        if item.same_as is not None:
            yield Record(item.name, dtype, shape, 0, Tied(item.same_as))
            continue
        content = contents[item.name]
        if isinstance(content, Coded):
            snr = _hundredths(content)
            yield Record(item.name, dtype, shape, content.check, content.record, snr)
            continue
        if isinstance(content, Raw):
            yield Record(item.name, dtype, shape, crc(source.patterns), content)
            continue
        check, size = crc(content.patterns), len(content.patterns)
        if size > SMALL:
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
