"""Levels: class levels of the channels by which given integers take the fewest bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.matrix.blocks import row_blocks
from tqcodec.encoder.matrix.quantizer import Rates

SWEEPS: Final = 3
MOST_COUNTS: Final = 1 << 22  # that are kept at a time
VECTOR_BITS: Final = 16.0  # of a vector that is not constant, beside its elements, about
UNSEEN: Final = 0.5  # of a count, for levels that no channel has

Levels = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


def refitted(
    levels: Sequence[NDArray[np.uint8]], q: NDArray[np.signedinteger], rates: Rates
) -> Levels:
    """Levels under which integers cost less: one axis after the other, the best of each channel.

    Args:
        levels: of the channels of the three axes, from which the search starts; no class is larger
            than theirs.
        q: integers of the uniform quantizer (rows, columns). Columns that are all zero are not in
            the file: any level does for them.
        rates: code lengths of the classes that `levels` make.
    """
    found = [level.astype(np.int64) for level in levels]
    columns = np.flatnonzero(q.any(axis=0))
    lengths = rates.lengths[rates.cluster, 0]
    if len(lengths) > 1 and len(columns):
        magnitudes = np.minimum(np.abs(q[:, columns]), lengths.shape[1] - 1)
        places = np.divmod(columns, len(found[2]))
        for _ in range(SWEEPS):
            for axis in range(3):
                if len(found[axis]) > 1:
                    found[axis] = _best(axis, found, places, magnitudes, lengths)
    out, inn, taps = ((v - v.min(initial=v.max(initial=0))).astype(np.uint8) for v in found)
    return out, inn, taps


def _best(
    axis: int,
    levels: Sequence[NDArray[np.int64]],
    places: tuple[NDArray[np.int64], NDArray[np.int64]],
    magnitudes: NDArray[np.signedinteger],
    lengths: NDArray[np.float32],
) -> NDArray[np.int64]:
    """New levels of one axis.

    Args:
        axis: 0 out, 1 in, 2 taps.
        levels: as they are.
        places: channel in and tap of each column.
        magnitudes: of the integers (rows, columns), none too large for `lengths`.
        lengths: bits of magnitudes, (classes, magnitudes).
    """
    own = levels[axis]
    of_row = levels[0] if axis else np.zeros(len(magnitudes), np.int64)
    of_column = np.zeros(magnitudes.shape[1], np.int64)
    for other in {1, 2} - {axis}:
        of_column = of_column + levels[other][places[other - 1]]
    width = int(of_row.max() + of_column.max()) + 1
    choices = len(lengths) - width + 1  # so that no class is beyond those that are known
    table = np.stack([lengths[i : i + width].ravel() for i in range(choices)], axis=1)
    size = len(table)
    cost = np.empty((len(own), choices))
    step = max(1, MOST_COUNTS // size)
    for start in range(0, len(own), step):
        number = min(step, len(own) - start)
        if axis == 0:
            part, rows = magnitudes[start : start + number], np.arange(number) * width
            columns = of_column
        else:
            place = places[axis - 1] - start
            chosen = np.flatnonzero((place >= 0) & (place < number))
            part, rows = magnitudes[:, chosen], of_row
            columns = of_column[chosen] + place[chosen] * width
        counts = _counts(part, rows, columns, lengths.shape[1], number * size)
        cost[start : start + number] = counts.reshape(number, size).astype(np.float32) @ table
    taken = np.bincount(own, minlength=choices) + UNSEEN
    side = np.log2(taken.sum() / taken)
    best = (cost + side).argmin(axis=1)
    several = (cost + side).min(axis=1).sum() + VECTOR_BITS
    alike = cost.sum(axis=0)
    return best if several < alike.min() else np.full(len(own), alike.argmin())


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
    for block in row_blocks(*magnitudes.shape):
        index = (rows[block, None] + columns) * length + magnitudes[block]
        counts += np.bincount(index.ravel(), minlength=total)
    return counts
