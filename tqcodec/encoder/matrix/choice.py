"""Choice: which bases a tensor gets.

What costs least is taken, its own cost included. With error feedback the gradient side of the ELT
is gained without a basis, so that in theory the KLT is as good there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.effort import Effort
from tqcodec.encoder.matrix.classes import class_of, fit_levels
from tqcodec.encoder.matrix.feedback import quantize_with_feedback
from tqcodec.encoder.matrix.grid import grid_of
from tqcodec.encoder.matrix.metric import Metric
from tqcodec.encoder.matrix.quantizer import UNIFORM
from tqcodec.encoder.matrix.transform import (
    IDENTITY,
    Transform,
    basis_bits,
    column_energies,
    cost,
    elt,
    finest_step,
    klt,
    second_moment,
    unit_dct,
)
from tqcodec.encoder.tables import code_lengths
from tqcodec.format.records import has_dct
from tqcodec.format.registry import Axis, BasisKind

LARGEST_BASIS = 1024  # axis length up to which a basis is tried
WIDE_ENOUGH = 4  # times more weights a channel than channels, for a basis of in or out
LARGEST_HEAD = 1 << 16  # entries of a basis that any record may hold; with more weights, as many


@dataclass(frozen=True, eq=False)
class Problem:
    """What a transform is chosen for.

    Attributes:
        weights: float32 (O, I, T).
        taps_shape: lengths of the taps' dimensions.
        step: of the quantizer, in units of the weights or, with a metric, of the logits.
        metric: what errors do, or None where all weights count alike.
    """

    weights: NDArray[np.float32]
    taps_shape: Sequence[int]
    step: float
    metric: Metric | None = None

    def moments(self, axis: Axis) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """C_tt and C_gg of an axis; the latter None where it is not known."""
        known = self.metric is not None and axis != Axis.OUT
        gradients = self.metric.moment(axis) if self.metric is not None and known else None
        return second_moment(self.weights, axis), gradients

    def cost(self, transform: Transform, axis: Axis) -> float:
        """Bits of the coefficients, and of the basis of one axis."""
        coefficients = transform.analyse(self.weights)
        even, bits = coefficients, None
        if self.metric is not None:
            metric = self.metric.transformed(transform.rows)
            diagonal, _ = metric.factor()
            even = _in_steps(coefficients, metric, diagonal)
            if axis == Axis.TAPS:
                bits = self._trial(coefficients, metric, diagonal)
        if axis == Axis.OUT:  # its basis makes rows unequal, not columns
            even = even.transpose(1, 0, 2)
        energies = column_energies(even)
        if bits is None:
            bits = cost(energies, len(even), self.step)
        if transform.kinds[axis] == BasisKind.EXPLICIT:
            length = self.weights.shape[axis]
            bits += basis_bits(energies.sum(axis=0 if axis == Axis.TAPS else 1), length, self.step)
        return bits

    def _trial(
        self, coefficients: NDArray[np.float32], metric: Metric, diagonal: NDArray[np.float64]
    ) -> float:
        """As `cost`, by quantizing: where feedback meets vanishing columns no formula holds."""
        grid = grid_of(diagonal, metric, len(coefficients))
        relative = grid.relative(coefficients)
        step = max(self.step, finest_step(float(np.linalg.norm(relative))))
        levels = fit_levels(relative)
        classes = class_of(levels, np.arange(metric.columns))
        number = int(classes.max()) + 1
        free = np.zeros((number, 1, 1), np.float32)
        fed = quantize_with_feedback(coefficients, metric, classes, UNIFORM, step, free)
        counts = UNIFORM.count(fed.coefficients, classes, number).counts
        bits = float((counts * code_lengths(counts.astype(np.float32))).sum())
        rebuilt = fed.coefficients * fed.grid.steps * fed.step
        error = metric.error(coefficients.reshape(rebuilt.shape) - rebuilt)
        return bits + 6 / math.log(2) * error / step**2


def _in_steps(
    coefficients: NDArray[np.float32], metric: Metric, diagonal: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Coefficients (O', I', T') in units in which all have the same step."""
    if metric.by_rows:
        diagonal = np.exp(np.log(diagonal).mean(axis=0))
    shape = coefficients.shape[1:]
    flat = diagonal.ravel()[: math.prod(shape)].astype(np.float32)
    return coefficients * flat.reshape(shape)


def choose(problem: Problem, wish: str, effort: Effort) -> Transform:
    """The transform of one tensor at a step, its bases counted in the cost.

    Args:
        problem: the weights, the step and the metric.
        wish: ``auto``, ``none``, ``dct`` (taps), ``klt`` or ``elt`` (every axis longer than one
            that is small enough). Without statistics C_gg = I and the ELT is the KLT.
        effort: whether bases of the axes in and out are tried, and which.
    """
    weights = problem.weights
    depthwise = weights.shape[1] == 1 and weights.shape[2] > 1
    # A depthwise kernel alone makes its output channel: what a basis zeroes there is lost whole.
    if wish == "none" or not weights.size or (wish == "auto" and depthwise):
        return IDENTITY
    forced = wish in ("klt", "elt")
    chosen = IDENTITY
    for axis in (Axis.TAPS, Axis.IN, Axis.OUT):
        if axis != Axis.TAPS and (wish == "dct" or (wish == "auto" and not effort.channel_bases)):
            break
        length = weights.shape[axis]
        wide = axis == Axis.TAPS or weights.size // length >= WIDE_ENOUGH * length
        possible = problem.metric is None or (
            problem.metric.can_have(axis) and length**2 <= max(LARGEST_HEAD, weights.size)
        )
        if 1 < length <= LARGEST_BASIS and (wide or forced) and possible:
            found = candidates(problem, chosen, axis, wish, effort.tools.bases)
            if len(found) == 1:
                chosen = found[0]
            elif found:
                chosen = min(found, key=lambda t, a=axis: problem.cost(t, a))  # type: ignore[misc]
    return chosen


def candidates(
    problem: Problem, now: Transform, axis: Axis, wish: str, bases: frozenset[str]
) -> list[Transform]:
    """Transforms to choose from, with each of these bases that an axis can have."""
    wanted = bases if wish == "auto" else frozenset({wish})
    found = [now] if "none" in wanted else []
    if axis == Axis.TAPS and "dct" in wanted and has_dct(problem.taps_shape):
        unit = unit_dct(tuple(problem.taps_shape))
        found.append(now.replaced(axis, BasisKind.DCT, unit, True))
    if not wanted & {"klt", "elt"}:
        return found
    weights, gradients = problem.moments(axis)
    if "klt" in wanted or gradients is None:
        found.append(now.replaced(axis, BasisKind.EXPLICIT, klt(weights), True))
    if "elt" in wanted and gradients is not None:
        found.append(now.replaced(axis, BasisKind.EXPLICIT, elt(weights, gradients), False))
    return found
