"""Error feedback: quantize a matrix column by column, later columns making up for earlier errors.

With A = R R^T (R upper), D = |E R|^2 and column j of E R is R_jj (x'_j - q_j), where

    x'_j = x_j + SUM over i < j of (x_i - q_i) R_ij / R_jj

so rounding x'_j in place of x_j leaves D = SUM R_jj^2 |x'_j - q_j|^2: steps as 1 / R_jj are those
of equal slope. The same numbers as GPTQ (Frantar et al. 2022) with H^-1 = U^T U, U_jj = 1 / R_jj,
without an inverse; WaterSIC (arXiv 2603.04956) for the steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.matrix.grid import Grid, grid_of
from tqcodec.encoder.matrix.method import Method
from tqcodec.encoder.matrix.metric import Metric

WIDTH = 64  # columns whose errors are fed to all later ones at once
GAINS = 0.8, 1.25  # smallest and largest that is believed


@dataclass(frozen=True, eq=False)
class Fed:
    """A matrix quantized with error feedback.

    Attributes:
        coefficients: integers (rows, columns).
        grid: relative steps of rows and columns.
        step: of the tensor; mended for what rounding towards zero took away.
    """

    coefficients: NDArray[np.signedinteger]
    grid: Grid
    step: float


def quantize_with_feedback(
    coefficients: NDArray[np.float32],
    metric: Metric,
    classes: NDArray[np.uint8],
    method: Method,
    step: float,
    scaled: NDArray[np.float32],
) -> Fed:
    """Quantize a matrix.

    Args:
        coefficients: float32 (O', I', T').
        metric: of them.
        classes: uint8 (O', I' T').
        method: the quantizer.
        step: of the network.
        scaled: code lengths, `Rates.scaled`.
    """
    diagonal, filters = metric.factor()
    grid = grid_of(diagonal, metric, len(coefficients))
    columns = metric.split(grid.columns.values[None, :])[:, 0] if not metric.by_rows else None
    own = grid.columns.values[None, :] if columns is None else np.where(columns > 0, columns, 1.0)
    filters = filters * (own[:, :, None] / own[:, None, :])
    flat = coefficients.reshape(len(coefficients), -1).astype(np.float64)
    steps = grid.steps
    q = _quantize(flat / (step * steps), metric, filters, classes, method, scaled)
    rebuilt = q * steps
    gain = gains_of(
        np.atleast_1d(metric.products(flat, rebuilt).sum()),
        np.atleast_1d(step * metric.products(rebuilt, rebuilt).sum()),
    )[0]
    narrow = np.int16 if np.abs(q).max(initial=0) < 1 << 15 else np.int32
    return Fed(q.astype(narrow), grid, step * float(gain))


def gains_of(both: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors that bring decoded rows closest to the original ones, within bounds.

    Args:
        both: w A w^^T of each row.
        own: w^ A w^^T of each row.
    """
    gains = np.divide(both, own, out=np.ones_like(own), where=own > 0)
    return np.clip(gains, *GAINS)


def _quantize(
    x: NDArray[np.float64],
    metric: Metric,
    filters: NDArray[np.float64],
    classes: NDArray[np.uint8],
    method: Method,
    scaled: NDArray[np.float32],
) -> NDArray[np.int32]:
    """Integers for coefficients over steps.

    Args:
        x: float64 (rows, columns).
        metric: says how rows and columns fall into blocks.
        filters: float64 (blocks, n, n), R_ij / R_jj in units of the steps.
        classes: uint8 (rows, columns).
        method: quantizes some columns at once.
        scaled: code lengths, `Rates.scaled`.
    """
    original, kinds = metric.split(x), metric.split(classes)
    wanted = original.copy()
    q = np.zeros(wanted.shape, np.int32)
    errors = np.empty((*wanted.shape[:2], WIDTH))
    n = wanted.shape[2]
    for start in range(0, n, WIDTH):
        stop = min(start + WIDTH, n)
        for j in range(start, stop):
            column, kind = wanted[:, :, j].astype(np.float32), kinds[:, :, j]
            if metric.by_rows:  # all rows are of one column
                column, kind = column.reshape(-1, 1), kind.reshape(-1, 1)
            else:
                column, kind = column.T, kind.T
            rounded = method.quantize(column, np.ascontiguousarray(kind), scaled)
            q[:, :, j] = rounded.reshape(len(q), -1) if metric.by_rows else rounded.T
            errors[:, :, j - start] = original[:, :, j] - q[:, :, j]
            if j + 1 < stop:
                row = filters[:, None, j, j + 1 : stop]
                wanted[:, :, j + 1 : stop] += errors[:, :, j - start, None] * row
        if stop < n:
            wanted[:, :, stop:] += errors[:, :, : stop - start] @ filters[:, start:stop, stop:]
    return metric.join(q)
