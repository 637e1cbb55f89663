"""Viterbi: the cheapest paths through the trellis, in numpy, where there are no native loops.

Marcellin and Fischer 1990. Costs are in squared steps: distortion plus the rates of the indices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tqcodec.format.trellis import STATES, TRANSITIONS

# Predecessors (state, parity) of each state, two each.
_INTO: Final = tuple(
    tuple((s, b) for s in range(STATES) for b in (0, 1) if TRANSITIONS[s][b] == n)
    for n in range(STATES)
)
# Coefficient magnitude 4n + offset and index magnitude 2n + parity, by (quantizer, parity).
_OFFSET: Final = np.array([[0.0, 2.0], [-1.0, 1.0]], np.float32)


def best_paths(
    x: NDArray[np.float32], classes: NDArray[np.uint8], scaled: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Best paths of segments side by side: x (steps, segments)."""
    count, width = x.shape
    magnitude = np.abs(x)
    base = classes.astype(np.int32)
    cost = np.full((STATES, width), np.float32(1e30))
    cost[0] = 0
    from_second = np.empty((count, STATES, width), np.bool_)
    branches = _branches(magnitude, base, scaled)
    for t in range(count):
        fresh = np.empty_like(cost)
        branch = branches.costs[:, :, t]
        for state, ((s0, b0), (s1, b1)) in enumerate(_INTO):
            first = cost[s0] + branch[s0 & 1, b0]
            second = cost[s1] + branch[s1 & 1, b1]
            np.less(second, first, out=from_second[t, state])
            np.minimum(first, second, out=fresh[state])
        cost = fresh
    quantizer, parity = _trace(cost, from_second)
    return _coefficients(x, magnitude, quantizer, parity, branches.zero)


@dataclass(frozen=True, eq=False)
class _Branches:
    """Costs of the best coefficient by (quantizer, parity, step, segment); where it is zero."""

    costs: NDArray[np.float32]
    zero: NDArray[np.bool_]  # (quantizer, step, segment), for even parity


def _branches(
    magnitude: NDArray[np.float32], base: NDArray[np.int32], scaled: NDArray[np.float32]
) -> _Branches:
    costs = np.empty((2, 2, *magnitude.shape), np.float32)
    zero = np.empty((2, *magnitude.shape), np.bool_)
    square = magnitude * magnitude
    for quantizer in (0, 1):
        flat, length = scaled[:, quantizer].ravel(), scaled.shape[2]
        offsets = base * length
        for parity in (0, 1):
            n = _nearest(magnitude, quantizer, parity)
            value = 4 * n + _OFFSET[quantizer, parity]
            if parity == 0:
                np.maximum(value, 0, out=value)
            index = 2 * n + np.float32(parity)
            cost = lagrangian(magnitude, value, index, offsets, length, flat)
            if parity == 0:
                nothing = square + flat.take(offsets)
                np.less_equal(nothing, cost, out=zero[quantizer])
                np.minimum(cost, nothing, out=cost)
            costs[quantizer, parity] = cost
    return _Branches(costs, zero)


def _nearest(magnitude: NDArray[np.float32], quantizer: int, parity: int) -> NDArray[np.float32]:
    """n of the nearest magnitude 4n + offset that the branch has."""
    shift = np.float32(0.5 - _OFFSET[quantizer, parity] / 4)
    n = np.floor(magnitude * np.float32(0.25) + shift)
    return np.maximum(n, 0, out=n)


def _trace(
    cost: NDArray[np.float32], from_second: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Quantizer and parity along the cheapest path: uint8 (steps, segments) each."""
    count, _, width = from_second.shape
    previous = np.array([[s for s, _ in into] for into in _INTO], np.uint8).ravel()
    parities = np.array([[b for _, b in into] for into in _INTO], np.uint8).ravel()
    quantizer, parity = (np.empty((count, width), np.uint8) for _ in range(2))
    state = cost.argmin(axis=0)
    segments = np.arange(width)
    for t in range(count - 1, -1, -1):
        branch = 2 * state + from_second[t].ravel().take(state * width + segments)
        parity[t] = parities[branch]
        state = previous[branch].astype(np.int64)
        quantizer[t] = state & 1
    return quantizer, parity


def _coefficients(
    x: NDArray[np.float32],
    magnitude: NDArray[np.float32],
    quantizer: NDArray[np.uint8],
    parity: NDArray[np.uint8],
    zero: NDArray[np.bool_],
) -> NDArray[np.int32]:
    offset = _OFFSET[quantizer, parity]
    n = np.floor(magnitude * np.float32(0.25) + (np.float32(0.5) - offset * np.float32(0.25)))
    value = np.maximum(4 * np.maximum(n, 0) + offset, 0)
    value[(parity == 0) & np.where(quantizer == 0, zero[0], zero[1])] = 0
    return np.copysign(value, x).astype(np.int32)


def lagrangian(
    magnitude: NDArray[np.float32],
    value: NDArray[np.float32],
    index: NDArray[np.float32],
    base: NDArray[np.int32],
    length: int,
    flat: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Distortion plus scaled rate of candidates, by the magnitude of their indices."""
    error = magnitude - value
    error *= error
    error += flat.take(np.minimum(index, length - 1).astype(np.int32) + base)
    return error
