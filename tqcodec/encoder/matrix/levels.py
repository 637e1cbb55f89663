"""Levels: class levels of the channels by which given integers take the fewest bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.histograms import entropy_of
from tqcodec.encoder.matrix.blocks import BLOCK, row_blocks
from tqcodec.encoder.matrix.classes import Levels, class_count
from tqcodec.encoder.matrix.quantizer import Rates

SWEEPS: Final = 3
MOST_COUNTS: Final = 1 << 20  # that are kept at a time
VECTOR_BITS: Final = 16.0  # of a vector that is not constant, beside its elements, about
CLASS_BITS: Final = 8.0  # of the number of the table of a class
UNSEEN: Final = 0.5  # of a count, for levels that no channel has
EXACT: Final = 1 << 16  # parts of a bit: sums of such are the same in any order


def level_bits(levels: Levels) -> float:
    """Bits of levels in the file, about."""
    total = CLASS_BITS * class_count(levels)
    for level in levels:
        bits = entropy_of(level)
        if bits > 0:
            total += VECTOR_BITS + bits
    return total


def refitted(
    levels: Sequence[NDArray[np.uint8]], q: NDArray[np.signedinteger], rates: Rates
) -> Levels:
    """Levels under which integers cost less: one axis after the other, the best of each channel.

    Args:
        levels: of the channels of the three axes, from which the search starts; there are not more
            classes than they can make.
        q: integers of the uniform quantizer (rows, columns). Columns that are all zero are not in
            the file: channels that have no others get the level that is the cheapest to write.
        rates: code lengths of all classes that `levels` can make.
    """
    columns = np.flatnonzero(q.any(axis=0))
    if not len(columns) or class_count(levels) == 1:
        out, inn, taps = (np.zeros_like(level) for level in levels)
        return out, inn, taps
    inner, tap = np.divmod(columns, len(levels[2]))
    places = np.arange(len(levels[0])), inner, tap
    present = [np.unique(place) for place in places]
    magnitudes = np.abs(q[:, columns])
    lengths = rates.lengths[rates.cluster, 0].astype(np.float64)
    magnitudes = np.minimum(magnitudes, lengths.shape[1] - 1)
    lengths = np.rint(lengths[:, : int(magnitudes.max()) + 1] * EXACT) / EXACT
    found = [
        _spread(level[there].astype(np.int64), there, len(level))
        for level, there in zip(levels, present, strict=True)
    ]
    for _ in range(SWEEPS):
        before = found.copy()
        for axis in range(3):
            if len(present[axis]) > 1:
                cost = _costs(axis, found, places, magnitudes, lengths)[present[axis]]
                best = _cheapest(cost, found[axis][present[axis]])
                found[axis] = _spread(best, present[axis], len(found[axis]))
        if all(np.array_equal(one, other) for one, other in zip(found, before, strict=True)):
            break
    out, inn, taps = ((level - level.min()).astype(np.uint8) for level in found)
    return out, inn, taps


def _spread(
    levels: NDArray[np.int64], present: NDArray[np.int64], length: int
) -> NDArray[np.int64]:
    """Levels of all channels: those that are not present have the commonest."""
    found = np.full(length, np.bincount(levels).argmax())
    found[present] = levels
    return found


def _costs(
    axis: int,
    levels: Sequence[NDArray[np.int64]],
    places: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    magnitudes: NDArray[np.signedinteger],
    lengths: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Bits of the integers of each channel of an axis at each level, float64 (channels, levels).

    Args:
        axis: 0 out, 1 in, 2 taps.
        levels: as they are.
        places: channel of each row; channel in and tap of each column.
        magnitudes: of the integers (rows, columns), none too large for `lengths`.
        lengths: bits of magnitudes, (classes, magnitudes).
    """
    of_row = levels[0] if axis else np.zeros(len(magnitudes), np.int64)
    of_column = np.zeros(magnitudes.shape[1], np.int64)
    for other in {1, 2} - {axis}:
        of_column = of_column + levels[other][places[other]]
    width = 1 + sum(int(levels[other].max()) for other in {0, 1, 2} - {axis})
    choices = len(lengths) - width + 1  # so that there are no more classes
    table = np.stack([lengths[i : i + width].ravel() for i in range(choices)], axis=1)
    cost = np.empty((len(levels[axis]), choices))
    step = max(1, MOST_COUNTS // len(table))
    for start in range(0, len(cost), step):
        number = min(step, len(cost) - start)
        place = places[axis] - start
        chosen = np.flatnonzero((place >= 0) & (place < number))
        own = place[chosen] * width
        if axis == 0:
            part, rows, columns = magnitudes[chosen], own, of_column
        else:
            part, rows, columns = magnitudes[:, chosen], of_row, of_column[chosen] + own
        counts = _counts(part, rows, columns, lengths.shape[1], number * len(table))
        cost[start : start + number] = counts.reshape(number, -1).astype(np.float64) @ table
    return cost


def _cheapest(cost: NDArray[np.float64], levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The best level of each channel, or one for all where that is cheaper.

    Args:
        cost: as of `_costs`.
        levels: as they are: what many channels have is cheap to write.
    """
    taken = np.bincount(levels, minlength=cost.shape[1]) + UNSEEN
    with_level = cost + np.log2(taken.sum() / taken)
    alike = cost.sum(axis=0)
    if with_level.min(axis=1).sum() + VECTOR_BITS < alike.min():
        return np.asarray(with_level.argmin(axis=1))
    return np.full(len(cost), alike.argmin())


def _counts(
    magnitudes: NDArray[np.signedinteger],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    length: int,
    total: int,
) -> NDArray[np.int64]:
    """How often each sum of what a row and a column have occurs with each magnitude below `length`.

    Args:
        magnitudes: (rows, columns).
        rows: what each row has.
        columns: likewise.
        length: of the magnitudes.
        total: of the counts.
    """
    counts = np.zeros(total, np.int64)
    height, width = magnitudes.shape
    for block in row_blocks(height, width, block=max(BLOCK, total)):
        index = (rows[block, None] + columns) * length + magnitudes[block]
        counts += np.bincount(index.ravel(), minlength=total)
    return counts
