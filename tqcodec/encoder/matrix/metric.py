"""Metric: what an error of a weight does to the logits, or to the output of its layer.

With E = W - W^, one row for each output of the layer, the error of the logits is to second order,
by the statistics of the layer (`metric_of`),

    D = E |dy|^2 = SUM over rows o of  e_o A e_o^T,     A = mix C + (1 - mix) K

    C = n C_gg of Young et al. 2021 (equation 5) over the columns, measured: E[dW^T dW] / rows
    K = E[|g|^2] / rows * E[x x^T], its Kronecker approximation, positions taken as independent

C knows what K does not, that errors of one image add up over its positions, but has only as many
samples as there were probes: its share is probes / (probes + SHRINKAGE n).

Without statistics (`assumed_metric`) A is E[x x^T] of inputs as they are in most networks: those
behind a rectifier have a positive mean, so that the errors of all columns add up, and neighbours in
a picture or in time are alike. With x of power 1, c and d its channels, s and t its taps,

    E[x_cs x_dt] = MEAN + (1 - MEAN) [c = d] NEIGHBOURS^|s - t|

where |s - t| counts steps along the taps' dimensions. Error feedback then keeps the sum of the
errors of a row near zero, and puts the rest where inputs have little power. Where they are white
after all, this costs one dimension of many. Measured in docs/encoder.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.effort import ALL_TOOLS, Tools
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.encoder.tensor import roles_of
from tqcodec.format.records import axis_lengths
from tqcodec.format.registry import Axis

DAMPING = 0.02, 0.05  # of the mean diagonal, added to it; the second times n / probes, at most 1
FLOOR = 1e-3  # of the mean of all blocks: for channels that the calibration data never woke
SHRINKAGE = 3.0
JITTER = 1e-6  # of the mean diagonal, added where it is singular all the same
MEAN = 0.5  # share of the power of inputs that all channels have in common, where no data tells
NEIGHBOURS = 0.7  # correlation of neighbouring taps, where no data tells
WIDEST = 1024  # columns of a block, where no data tells

Array = NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Metric:
    """The matrix A of a weight, in blocks as in `WeightStatistics`.

    Attributes:
        blocks: float64 (blocks, n, n), positive definite.
        means: float64 (blocks, n), mean input of the columns.
        taps: length of the axis taps; columns are (in, taps).
        columns: number of columns.
        share: how far the data is to be trusted, 0 to 1.
        tools: what of it the encoder uses.
        assumed: arguments of `assumed_metric`, where that made it; None for a measured metric.
        factors: what `factor` returns with feedback, where it is known.
    """

    blocks: Array
    means: Array
    taps: int
    columns: int
    share: float
    tools: Tools = ALL_TOOLS
    assumed: tuple[int, tuple[int, ...]] | None = None
    factors: tuple[Array, Array] | None = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        if self.assumed is None or self.tools != ALL_TOOLS:
            return super().__reduce_ex__(protocol)
        return assumed_metric, self.assumed  # shared by all matrices of a shape

    @property
    def by_rows(self) -> bool:
        """True where each block has rows of its own and all columns."""
        return self.blocks.shape[1] == self.columns

    @property
    def power(self) -> float:
        """Squared error of the logits for a unit of squared error of the weights, on average."""
        return float(np.einsum("bjj->", self.blocks)) / self.blocks[:, 0].size

    def scaled(self, factor: float) -> Metric:
        """The metric of errors that count more by a factor."""
        return replace(self, blocks=self.blocks * factor)

    def split(self, array: NDArray[Number]) -> NDArray[Number]:
        """From (rows, columns) to (blocks, rows of a block, n), padded with zeros."""
        count, n = self.blocks.shape[:2]
        if self.by_rows:
            return array.reshape(count, -1, n)
        padded = np.pad(array, ((0, 0), (0, count * n - array.shape[1])))
        return padded.reshape(-1, count, n).swapaxes(0, 1)

    def join(self, array: NDArray[Number]) -> NDArray[Number]:
        """Inverse of `split`."""
        if self.by_rows:
            return array.reshape(-1, self.columns)
        return array.swapaxes(0, 1).reshape(array.shape[1], -1)[:, : self.columns]

    def error(self, difference: NDArray[np.floating]) -> float:
        """D of a difference (rows, columns)."""
        return float(self.products(difference, difference)[0].sum())

    def products(self, first: NDArray[np.floating], *others: NDArray[np.floating]) -> list[Array]:
        """Row by row, first A other^T for each of the others: float64 (rows,)."""
        left = self.split(np.asarray(first, np.float64)) @ self.blocks
        rights = (self.split(np.asarray(other, np.float64)) for other in others)
        rows = [np.einsum("brn,brn->br", left, right) for right in rights]
        return [one.ravel() if self.by_rows else one.sum(axis=0) for one in rows]

    def mean_output(self, weights: NDArray[np.floating]) -> Array:
        """Mean of the output of weights (rows, columns): float64 (rows,)."""
        rows = np.einsum("brn,bn->br", self.split(np.asarray(weights, np.float64)), self.means)
        found: Array = rows.ravel() if self.by_rows else rows.sum(axis=0)
        return found

    @cached_property
    def noise_gain(self) -> float:
        """Squared error of weights quantized with feedback, for white rounding of power 1."""
        from scipy import linalg  # slow to import; signal-to-noise ratios do without

        filters = self.factor()[1]
        unit = np.eye(filters.shape[1])
        inverses = (linalg.solve_triangular(one, unit, unit_diagonal=True) for one in filters)
        return sum(float((one**2).sum()) for one in inverses) / self.blocks[:, 0].size

    def can_have(self, axis: Axis) -> bool:
        """True where the blocks allow a basis on an axis."""
        count, n = self.blocks.shape[:2]
        if axis == Axis.OUT:  # rows of one metric only
            return count == 1 or not self.by_rows
        return self.by_rows or (axis == Axis.TAPS and n % self.taps == 0)

    def moment(self, axis: Axis) -> Array:
        """C_gg of the axis in or taps: the mean of A over all else, (length, length)."""
        mean = self.blocks.mean(axis=0)
        inner = len(mean) // self.taps
        spread = mean.reshape(inner, self.taps, inner, self.taps)
        if axis == Axis.IN:
            return np.asarray(np.einsum("itjt->ij", spread) / self.taps)
        return np.asarray(np.einsum("itiu->tu", spread) / inner)

    def transformed(self, rows: Sequence[Array | None]) -> Metric:
        """The metric of coefficients W', W = W' S, by synthesis rows S of the axes: S A S^T."""
        if rows[Axis.IN] is None and rows[Axis.TAPS] is None:
            return self
        count, n = self.blocks.shape[:2]
        inner = n // self.taps
        spread = self.blocks.reshape(count, inner, self.taps, inner, self.taps)
        taps, columns = self.taps, self.columns // self.taps
        if (basis := rows[Axis.TAPS]) is not None:
            spread = np.einsum("kt,bitju,lu->bikjl", basis, spread, basis, optimize=True)
            taps = len(basis)
        if (basis := rows[Axis.IN]) is not None:
            spread = np.einsum("ki,bitju,lj->bktlu", basis, spread, basis, optimize=True)
            inner = columns = len(basis)
        blocks = spread.reshape(count, inner * taps, inner * taps)
        means = np.zeros((count, inner * taps))
        blocks = np.ascontiguousarray(blocks)
        return Metric(blocks, means, taps, columns * taps, self.share, self.tools)

    def factor(self) -> tuple[Array, Array]:
        """Upper R with A = R R^T: its diagonal (blocks, n), and R with each column over it.

        (E R)_j is what the errors up to column j make of it, so D = |E R|^2. Without feedback they
        are taken to make nothing of it, and the second is the identity.
        """
        diagonal, filters = self.factors if self.factors is not None else self._factors()
        if not self.tools.feedback:
            filters = np.broadcast_to(np.eye(filters.shape[1]), filters.shape)
        return diagonal, filters

    def _factors(self) -> tuple[Array, Array]:
        reverse = self.blocks[:, ::-1, ::-1]
        try:
            lower = np.linalg.cholesky(reverse)
        except np.linalg.LinAlgError:  # rows of a coarse basis may depend on others or vanish
            n = reverse.shape[1]
            mean = np.einsum("bjj->b", reverse) / n
            mean[mean <= 0] = 1.0
            lower = np.linalg.cholesky(reverse + JITTER * mean[:, None, None] * np.eye(n))
        upper = lower[:, ::-1, ::-1]
        diagonal = np.einsum("bjj->bj", upper)
        return diagonal.copy(), upper / diagonal[:, None, :]


def metric_of(statistics: WeightStatistics, tools: Tools = ALL_TOOLS) -> Metric:
    """The metric of a weight by the statistics of its layer."""
    shape = statistics.shape
    count, n = statistics.sums.shape
    rows = shape[statistics.rows]
    columns = int(np.prod(shape)) // max(1, rows)
    height = rows // count if n == columns else rows
    vectors, probes = max(1, statistics.vectors), max(1, statistics.probes)
    inputs = statistics.inputs / vectors
    outputs = np.einsum("bmm->bm", statistics.outputs).ravel()[:rows] / probes
    power = outputs.reshape(-1, height).mean(axis=1)[:, None, None]
    share = probes / (probes + SHRINKAGE * n) if tools.moments else 1.0
    if not tools.gradients:
        share = 0.0
    blocks = share / (probes * height) * statistics.gradients + (1 - share) * power * inputs
    diagonal = np.einsum("bjj->b", blocks) / n
    damping = (DAMPING[0] + DAMPING[1] * min(1.0, n / probes)) * diagonal + FLOOR * diagonal.mean()
    if not damping.all():  # the output does not depend on the weight at all
        damping = np.where(damping > 0, damping, 1.0)
    blocks = blocks + damping[:, None, None] * np.eye(n)
    taps = axis_lengths(shape, roles_of(shape, statistics.rows))[Axis.TAPS]
    return Metric(blocks, statistics.sums / vectors, taps, columns, share, tools)


@cache
def assumed_metric(channels: int, taps_shape: tuple[int, ...]) -> Metric:
    """The metric of a matrix of which only the shape is known, in units of its weights.

    Args:
        channels: length of the axis in.
        taps_shape: lengths of the taps' dimensions.
    """
    taps = math.prod(taps_shape)
    near: NDArray[np.floating] = np.ones((1, 1))
    for length in taps_shape:
        place = np.arange(length)
        near = np.kron(near, NEIGHBOURS ** np.abs(place[:, None] - place))
    count = math.ceil(channels / max(1, WIDEST // taps))
    wide = math.ceil(channels / max(1, count))
    block: Array = MEAN + (1 - MEAN) * np.kron(np.eye(wide), near)
    one = Metric(block[None], np.zeros((1, len(block))), taps, channels * taps, 0.0)
    count = math.ceil(channels / wide)
    blocks, means, diagonal, upper = (
        np.broadcast_to(a, (count, *a.shape[1:])) for a in (one.blocks, one.means, *one.factor())
    )
    return replace(
        one,
        blocks=blocks,
        means=means,
        assumed=(channels, taps_shape),
        factors=(diagonal, upper),
    )
