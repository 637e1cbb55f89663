"""Error feedback: quantize a matrix column by column, later columns making up for earlier errors.

With A = R R^T (R upper), D = |E R|^2 and column j of E R is R_jj (x'_j - q_j), where

    x'_j = x_j + SUM over i < j of (x_i - q_i) R_ij / R_jj

so rounding x'_j in place of x_j leaves D = SUM R_jj^2 |x'_j - q_j|^2: steps as 1 / R_jj are those
of equal slope. The same numbers as GPTQ (Frantar et al. 2022) with H^-1 = U^T U, U_jj = 1 / R_jj,
without an inverse; WaterSIC (arXiv 2603.04956) for the steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.matrix.blocks import row_blocks
from tqcodec.encoder.matrix.grid import Grid, grid_of
from tqcodec.encoder.matrix.metric import Metric
from tqcodec.encoder.matrix.quantizer import Method

WIDTH = 64  # columns whose errors are fed to all later ones at once
AT_ONCE = 1 << 21  # coefficients quantized at a time
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
    flat = coefficients.reshape(len(coefficients), -1)
    q = np.empty(flat.shape, np.int32)
    both = own_power = 0.0
    for rows in _row_groups(metric, len(flat), method):
        original = flat[rows].astype(np.float64)
        steps = grid.rows.values[rows, None] * grid.columns.values
        q[rows] = _quantize(
            original / (step * steps), metric, filters, classes[rows], method, scaled
        )
        rebuilt = q[rows] * steps
        mixed, squares = metric.products(rebuilt, original, rebuilt)
        both += float(mixed.sum())
        own_power += float(step * squares.sum())
    gain = 1.0
    if metric.tools.gains:
        gain = float(gains_of(np.atleast_1d(both), np.atleast_1d(own_power))[0])
    narrow = np.int16 if np.abs(q).max(initial=0) < 1 << 15 else np.int32
    return Fed(q.astype(narrow), grid, step * gain)


def _row_groups(metric: Metric, rows: int, method: Method) -> Iterator[slice]:
    """Rows to take at a time, to bound memory; all, where blocks of the metric have their own."""
    if metric.by_rows and len(metric.blocks) > 1:
        return iter([slice(0, rows)])
    return row_blocks(rows, metric.columns, max(1, method.steps), AT_ONCE)


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
    # Columns first: each is one piece of memory.
    original, kinds = (np.ascontiguousarray(metric.split(a).swapaxes(1, 2)) for a in (x, classes))
    wanted, q = original.copy(), np.zeros(original.shape, np.int32)
    n = original.shape[1]
    errors = np.empty((len(original), WIDTH, original.shape[2]))
    for start in range(0, n, WIDTH):
        stop = min(start + WIDTH, n)
        for j in range(start, stop):
            known = errors[:, : j - start]
            column = wanted[:, j] + (filters[:, None, start:j, j] @ known)[:, 0]
            q[:, j] = _one_column(column.astype(np.float32), kinds[:, j], metric, method, scaled)
            np.subtract(original[:, j], q[:, j], out=errors[:, j - start])
        if stop < n:
            later = filters[:, start:stop, stop:].swapaxes(1, 2)
            wanted[:, stop:] += later @ errors[:, : stop - start]
    return metric.join(np.ascontiguousarray(q.swapaxes(1, 2)))


def _one_column(
    column: NDArray[np.float32],
    kinds: NDArray[np.uint8],
    metric: Metric,
    method: Method,
    scaled: NDArray[np.float32],
) -> NDArray[np.int32]:
    """Integers for one column of each block, (blocks, rows of a block)."""
    if metric.by_rows:  # all rows are of one column
        return method.quantize(column.reshape(-1, 1), kinds.reshape(-1, 1), scaled).reshape(
            column.shape
        )
    return method.quantize(np.ascontiguousarray(column.T), np.ascontiguousarray(kinds.T), scaled).T
