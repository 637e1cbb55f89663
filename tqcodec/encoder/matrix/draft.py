"""Draft: a weight matrix that is coded but for the tables, which are those of the whole file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.histograms import Histograms, nearest_seen
from tqcodec.format.planes import Part
from tqcodec.format.records import CodedTensor
from tqcodec.format.registry import PayloadKind
from tqcodec.format.vectors import Vector


@dataclass(frozen=True, eq=False)
class Effect:
    """What quantization did to the output of a layer, float64 (rows,) each.

    Attributes:
        gains: what the rows should be multiplied by to make up for rounding towards zero.
        wanted: mean of the output before.
        found: mean of the output after.
    """

    gains: NDArray[np.float64]
    wanted: NDArray[np.float64]
    found: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Quantized:
    """The integers of a matrix, and what is to be coded by tables.

    Attributes:
        record: its record; table indices are 0.
        indices: histograms of the indices by class.
        vectors: histograms of depths, levels, row scales and multipliers, six groups.
        entries: histograms of the rows of all explicit bases, in the order of the axes.
    """

    record: CodedTensor
    indices: Histograms
    vectors: Histograms
    entries: Histograms

    @property
    def is_zero(self) -> bool:
        """True where nothing is left of the matrix."""
        return not self.record.coefficients.any()

    @property
    def table_bits(self) -> float:
        """Bits of all that is coded by tables, at least."""
        return self.indices.entropy() + self.vectors.entropy() + self.entries.entropy()

    def with_tables(
        self,
        classes: NDArray[np.int64],
        vectors: NDArray[np.int64],
        entries: NDArray[np.int64],
    ) -> CodedTensor:
        """The record with the tables that were fitted.

        Args:
            classes: first table of each of its classes.
            vectors: tables of depths, the three levels, row scales and multipliers.
            entries: table of each basis row.
        """
        record, seen = self.record, self.indices.seen
        table_map: tuple[int, ...] = (0,)
        if seen.any() and record.payload_kind == PayloadKind.RANGE:
            length = int(np.flatnonzero(seen)[-1]) + 1
            table_map = tuple(classes[nearest_seen(seen)[:length]].tolist())
        bases, start = [], 0
        for basis in record.bases:
            if basis.entries is not None:
                ids = entries[start : start + len(basis.entries)].astype(np.uint8)
                basis = replace(basis, tables=Vector(ids))
                start += len(ids)
            bases.append(basis)

        def tabled(vector: Vector, table: int) -> Vector:
            return vector if vector.table is None else Vector(vector.values, int(table))

        levels = [tabled(v, t) for v, t in zip(record.levels, vectors[1:4], strict=True)]
        return replace(
            record,
            depths=tabled(record.depths, vectors[0]),
            row_scales=tabled(record.row_scales, vectors[4]),
            multipliers=tabled(record.multipliers, vectors[5]),
            levels=(levels[0], levels[1], levels[2]),
            table_map=table_map,
            bases=(bases[0], bases[1], bases[2]),
        )


@dataclass(frozen=True, eq=False)
class Draft:
    """One weight matrix, and what became of it.

    Attributes:
        content: its integers, or its numbers with short mantissas where those are cheaper.
        check: CRC-32 of the decoded bytes.
        error: squared error of the decoded weights.
        energy: of the weights.
        distortion: what the error does, as the rate control counts it.
        effect: on the output, None without statistics.
    """

    content: Quantized | Part
    check: int
    error: float
    energy: float
    distortion: float
    effect: Effect | None

    @property
    def is_lost(self) -> bool:
        """True where nothing is left of a matrix."""
        return self.energy > 0 and isinstance(self.content, Quantized) and self.content.is_zero
