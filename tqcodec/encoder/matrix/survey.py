"""Survey: what the encoder needs to know of one weight matrix before the step is settled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.effort import Effort
from tqcodec.encoder.histograms import entropy_of
from tqcodec.encoder.matrix.choice import Problem, choose
from tqcodec.encoder.matrix.classes import Levels, class_count, class_of, fit_levels
from tqcodec.encoder.matrix.grid import grid_of
from tqcodec.encoder.matrix.metric import Metric
from tqcodec.encoder.matrix.transform import (
    FINEST,
    Transform,
    axis_energies,
    basis_bits,
    finest_step,
)
from tqcodec.encoder.tensor import Item, Source
from tqcodec.format.dtypes import DType, to_float
from tqcodec.format.records import axis_lengths, axis_order, taps_lengths
from tqcodec.format.registry import Axis, BasisKind

CONVERT = 1 << 18  # weights converted at a time, to bound memory


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight matrix as its network sees it.

    Attributes:
        item: its plan.
        sensitivity: what an error of its weights costs, the inverse square of its step; 1 where the
            metric is in units of the logits.
        judged: weight of its squared error where the target is judged; None where the metric says.
        metric: what its errors do, or None where all its weights count alike.
    """

    item: Item
    sensitivity: float
    judged: float | None
    metric: Metric | None


@dataclass(frozen=True)
class Look:
    """How the matrices of a network are surveyed.

    Attributes:
        step: about the step of the network, for the choice of the transform.
        transform: wish for all that have none of their own, as in `Settings`.
        effort: of the choice.
        share: part of the coefficients to sample, at most 1.
        steps: rows of a trellis segment.
    """

    step: float
    transform: str
    effort: Effort
    share: float
    steps: int


@dataclass(frozen=True, eq=False)
class Survey:
    """One weight matrix as the rate control sees it.

    Attributes:
        matrix: what was surveyed.
        size: number of weights.
        energy: of the weights, as the target counts it.
        sample_weight: weight of the squared error of the sample in the distortion.
        factor: step of the sample over that of the network.
        finest: smallest step.
        transform: bases.
        levels: class levels of the channels of the three axes.
        sample: float32 (rows, columns), some of the coefficients: whole trellis segments. With a
            metric they are divided by their relative steps, so that all have the same.
        classes: uint8, class of each coefficient of the sample.
        side_bits: bits of bases and levels, about.
        own_step: its step whatever that of the network, where a rule gives its bits.
    """

    matrix: Matrix
    size: int
    energy: float
    sample_weight: float
    factor: float
    finest: float
    transform: Transform
    levels: Levels
    sample: NDArray[np.float32]
    classes: NDArray[np.uint8]
    side_bits: float
    own_step: float | None = None

    def step(self, step: float) -> float:
        """Its step where the network has `step`; no coefficient reaches 2^20 of them.

        Nor is it above the norm, from which on no coefficient is larger than a step.
        """
        if self.own_step is not None:
            return self.own_step
        return min(max(step * self.factor, self.finest), self.finest / FINEST)

    @property
    def coarsest(self) -> float:
        """Step of the network from which on its own gets no coarser."""
        return self.finest / FINEST / self.factor

    @property
    def may_vanish(self) -> bool:
        """True where a rule or the statistics allow that nothing is left of the matrix."""
        options = self.matrix.item.options
        return self.energy <= 0 or options.bits is not None or options.step > 1.0

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return class_count(self.levels)


def weights_of(
    patterns: NDArray[np.unsignedinteger], dtype: DType, roles: Sequence[Axis]
) -> NDArray[np.float32]:
    """Weights as float32 (out, in, taps), contiguous.

    Made anew wherever they are needed: kept, they would take as much memory as the network.
    """
    lengths = axis_lengths(patterns.shape, roles)
    arranged = patterns.transpose(axis_order(roles)).reshape(lengths)
    if dtype.name == "F32":
        return np.ascontiguousarray(arranged).view(np.float32)
    out = np.empty(arranged.size, np.float32)
    flat = arranged.reshape(-1)
    for i in range(0, len(flat), CONVERT):
        out[i : i + CONVERT] = to_float(flat[i : i + CONVERT], dtype)
    return out.reshape(lengths)


@np.errstate(invalid="ignore")  # which BLAS may report of lanes beyond its arrays
def make_survey(source: Source, matrix: Matrix, look: Look) -> Survey:
    """The survey of one weight matrix."""
    item, metric = matrix.item, matrix.metric
    weights = weights_of(source.patterns, source.dtype, item.roles)
    factor = item.options.step / math.sqrt(matrix.sensitivity)
    taps = taps_lengths(source.patterns.shape, item.roles)
    problem = Problem(weights, taps, look.step * factor, metric)
    transform = choose(problem, item.options.transform or look.transform, look.effort)
    coefficients = transform.analyse(weights)
    energy = float(np.einsum("oit,oit->", weights, weights, dtype=np.float64))
    norm, grid_bits, gain = math.sqrt(energy), 0.0, 1.0
    plain = problem.step if metric is None else problem.step / math.sqrt(metric.power)
    bases_bits = _bases_bits(transform, coefficients, plain)
    if metric is not None:
        inner = metric.transformed(transform.rows)
        grid = grid_of(inner.factor()[0], inner, len(coefficients))
        gain = float((grid.rows.values**2).mean() * (grid.columns.values**2).mean())
        if metric.assumed is not None:
            gain *= metric.noise_gain
        coefficients = grid.relative(coefficients)
        norm = float(np.linalg.norm(coefficients))
        grid_bits = entropy_of(grid.rows.codes) + entropy_of(grid.columns.codes)
    if matrix.judged is not None:
        energy, sample_weight = matrix.judged * energy, matrix.judged * gain
    else:
        assert metric is not None, "only a metric says what an error does"
        energy, sample_weight = metric.error(weights.reshape(len(weights), -1)), 1.0
    levels = fit_levels(coefficients)
    flat = coefficients.reshape(len(coefficients), math.prod(coefficients.shape[1:]))
    rows, columns = _sampled(flat.shape, look.share, look.steps)
    level_bits = sum(entropy_of(level) for level in levels)
    return Survey(
        matrix=matrix,
        size=weights.size,
        energy=energy,
        sample_weight=sample_weight,
        factor=factor,
        finest=finest_step(norm),
        transform=transform,
        levels=levels,
        sample=flat[np.ix_(rows, columns)],
        classes=class_of((levels[0][rows], levels[1], levels[2]), columns),
        side_bits=level_bits + bases_bits + grid_bits,
    )


def _sampled(
    shape: tuple[int, ...], share: float, steps: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the sample: whole groups of `steps` rows, spread columns."""
    groups = -(-shape[0] // steps)
    chosen = min(groups, max(1, math.ceil(groups * math.sqrt(share))))
    width = min(shape[1], max(1, math.ceil(shape[1] * share * groups / chosen)))
    picked = np.arange(chosen) * groups // chosen
    rows = (picked[:, None] * steps + np.arange(steps)).ravel()
    # A fixed permutation: regular steps would fall in with the taps.
    columns = np.sort(np.random.default_rng(shape[1]).permutation(shape[1])[:width])
    return rows[rows < shape[0]], columns


def _bases_bits(transform: Transform, coefficients: NDArray[np.float32], step: float) -> float:
    total = 0.0
    for axis, rows in enumerate(transform.rows):
        if transform.kinds[axis] == BasisKind.EXPLICIT and rows is not None:
            energies = axis_energies(coefficients, axis)
            total += basis_bits(energies, rows.shape[1], step)
    return total
