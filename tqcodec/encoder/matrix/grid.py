"""Grid: steps of rows and columns as the small integers of the format.

A step is a tensor's scale times an integer of its row times an integer of its column. Here both are
2 or 3 times a power of two, half an octave apart, about: finer ones cost more than they save.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.matrix.metric import Metric
from tqcodec.format.reconstruct import MULTIPLIER_MANTISSA, ROW_SCALE_MANTISSA, expand

PER_OCTAVE = 2
MOST_ROW, MOST_COLUMN = 13, 26  # half octaves between the finest and the coarsest step


@dataclass(frozen=True, eq=False)
class Steps:
    """Relative steps of one axis.

    Attributes:
        codes: uint8, for the file.
        values: float64, what they stand for, times `unit`.
        unit: the step that the integer 1 stands for.
    """

    codes: NDArray[np.uint8]
    values: NDArray[np.float64]
    unit: float


@dataclass(frozen=True, eq=False)
class Grid:
    """Steps of the coefficients of a matrix relative to the step of the network.

    Attributes:
        rows, columns: factors of each.
    """

    rows: Steps
    columns: Steps

    @property
    def unit(self) -> float:
        """The step where both integers are 1."""
        return self.rows.unit * self.columns.unit

    @property
    def steps(self) -> NDArray[np.float64]:
        """Relative steps of all coefficients: float64 (rows, columns)."""
        return self.rows.values[:, None] * self.columns.values

    def relative(self, coefficients: NDArray[np.float32]) -> NDArray[np.float32]:
        """Coefficients (O', I', T') over their relative steps."""
        return (coefficients / self.steps.reshape(coefficients.shape)).astype(np.float32)


def constant(length: int, value: float) -> Steps:
    """The same step for all."""
    return Steps(np.ones(length, np.uint8), np.full(length, value), value)


def _steps(octaves: NDArray[np.float64], mantissa: int, most: int) -> Steps:
    """Steps nearest to powers of two with these exponents."""
    middle = np.median(octaves)
    low = max(float(octaves.min()), float(middle) - most / 2 / PER_OCTAVE)
    k = np.clip(np.rint((octaves - low) * PER_OCTAVE), 0, most).astype(np.int64)
    if not k.any():
        return constant(len(octaves), float(2 ** octaves.mean()))
    integers = np.where(k % 2, 3, 2) << (k // 2)
    codes = np.searchsorted(expand(np.arange(256, dtype=np.uint8), mantissa), integers)
    unit = float(2 ** np.mean(octaves - np.log2(integers)))
    return Steps(codes.astype(np.uint8), integers.astype(np.float64) * unit, unit)


def grid_of(diagonal: NDArray[np.float64], metric: Metric, rows: int) -> Grid:
    """Steps in inverse proportion to the diagonal of R: equal slope (`feedback`).

    Args:
        diagonal: float64 (blocks, n), as of `Metric.factor`.
        metric: that it is of.
        rows: of the matrix.
    """
    wanted = -np.log2(diagonal)
    if not metric.by_rows:
        wanted = wanted.reshape(1, -1)[:, : metric.columns]
    blocks = wanted.mean(axis=1)
    column = metric.share * (wanted - blocks[:, None]).mean(axis=0)
    row_steps = _steps(np.repeat(blocks, rows // len(blocks)), ROW_SCALE_MANTISSA, MOST_ROW)
    most = MOST_COLUMN if metric.tools.column_steps else 0
    column_steps = _steps(column, MULTIPLIER_MANTISSA, most)
    return Grid(row_steps, column_steps)
