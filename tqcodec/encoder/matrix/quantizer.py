"""Quantizers: integers for coefficients, chosen by distortion plus lambda times rate.

Both work in units of the step: x = coefficient / step, D = (x - q)², and lambda is in steps² a
bit. Rates come from a `Rates` table of the real tables' code lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder import histograms
from tqcodec.encoder.effort import Effort
from tqcodec.encoder.histograms import Histograms
from tqcodec.encoder.matrix.blocks import row_blocks
from tqcodec.encoder.matrix.viterbi import best_paths, lagrangian
from tqcodec.format import native
from tqcodec.format.registry import MAX_STEPS
from tqcodec.format.trellis import indices_of
from tqcodec.native import LOOPS, library

_loops = library(LOOPS)

Number = TypeVar("Number", np.float32, np.uint8)

# Measured best on Gaussian and Laplacian sources and on the weights of the README's networks.
UNIFORM_LAMBDA: Final = 0.11
TRELLIS_LAMBDA: Final = 0.45
# With error feedback rounding towards zero costs more: it is not white noise.
UNIFORM_FEEDBACK_LAMBDA: Final = 0.06
TRELLIS_FEEDBACK_LAMBDA: Final = 0.2
NO_RATE: Final = 1e-6  # of two sequences with the same error the shorter one, and no more
# Step of the trellis with the distortion of a uniform step of 1, about.
TRELLIS_STEP: Final = 0.56
SHORTEST: Final = 32  # rows of a trellis segment, where more would leave too few lanes
CHUNK: Final = 1 << 16  # coefficients quantized at a time, to stay in the cache


@dataclass(frozen=True, eq=False)
class Rates:
    """Bits of an index of a magnitude under the table of its class.

    Attributes:
        lengths: float32 (clusters, quantizers, magnitudes), shared by all tensors. Magnitudes
            beyond the last cost as much as the last.
        cluster: cluster of each class, int64.
    """

    lengths: NDArray[np.float32]
    cluster: NDArray[np.int64]

    def scaled(self, lam: float) -> NDArray[np.float32]:
        """Bits times lambda: float32 (classes, quantizers, magnitudes)."""
        return self.lengths[self.cluster] * np.float32(lam)


@dataclass(frozen=True)
class Method:
    """How coefficients are quantized.

    Attributes:
        steps: rows of a trellis segment, at most; 0 for the uniform quantizer.
        lam: lambda in squared steps a bit.
        lanes: segments that a tile should have side by side, at least: a decoder advances them
            together.
    """

    steps: int
    lam: float
    lanes: int = 1

    @classmethod
    def of(cls, effort: Effort, feedback: bool) -> Method:
        """The method of an encoding, with error feedback or without."""
        if effort.trellis:
            lam = TRELLIS_FEEDBACK_LAMBDA if feedback else TRELLIS_LAMBDA
        else:
            lam = UNIFORM_FEEDBACK_LAMBDA if feedback else UNIFORM_LAMBDA
        if not effort.tools.rate_term:
            lam = NO_RATE
        return cls(MAX_STEPS, lam, effort.lanes) if effort.trellis else cls(0, lam)

    @property
    def relative_step(self) -> float:
        """Its step with the distortion of a uniform step of 1, about."""
        return TRELLIS_STEP if self.steps else 1.0

    @property
    def contexts(self) -> int:
        """Tables of each class."""
        return 2 if self.steps else 1

    def fitted(self, rows: int, columns: int) -> Method:
        """The method for a matrix: segments so short that there are enough of them."""
        steps = self.steps
        while steps > SHORTEST and -(-rows // steps) * columns < self.lanes:
            steps //= 2
        return replace(self, steps=steps)

    def quantize(
        self, x: NDArray[np.float32], classes: NDArray[np.uint8], scaled: NDArray[np.float32]
    ) -> NDArray[np.int32]:
        """Integers for coefficients over steps, both (rows, columns).

        Args:
            x: coefficients over steps.
            classes: of each.
            scaled: ``rates.scaled(lam)``.
        """
        if self.steps:
            return trellis(x, classes, scaled, self.steps)
        return uniform(x, classes, scaled)

    def indices(
        self, q: NDArray[np.signedinteger]
    ) -> Iterator[tuple[slice, NDArray[np.int32], NDArray[np.uint8] | None]]:
        """Rows of coefficients, their indices and quantizers, block by block."""
        for rows in row_blocks(q.shape[0], q.shape[1], max(1, self.steps)):
            if self.steps:
                yield rows, *indices_of(q[rows], self.steps)
            else:
                yield rows, q[rows].astype(np.int32), None

    def count(
        self, q: NDArray[np.signedinteger], classes: NDArray[np.uint8], number: int
    ) -> Histograms:
        """Histograms of the indices by class, one group for each of `number` classes."""

        def blocks() -> Iterator[histograms.Counted]:
            for rows, indices, quantizers in self.indices(q):
                contexts = None if quantizers is None else quantizers.ravel()
                yield indices.ravel(), classes[rows].ravel(), contexts

        return histograms.count_blocks(blocks, number, self.steps > 0)


UNIFORM: Final = Method(0, 0.0)  # every coefficient to the nearest integer


def uniform(
    x: NDArray[np.float32], classes: NDArray[np.uint8], scaled: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Rate-distortion optimised rounding to integers, of x (rows, columns) of any shape.

    Args:
        x: coefficients over steps.
        classes: of each.
        scaled: `Rates.scaled`.
    """
    if native.AVAILABLE:
        return _by_loops(x, classes, scaled, 0)
    flat, length = scaled[:, 0].ravel(), scaled.shape[2]
    out = np.empty(x.shape, np.int32)
    height = max(1, CHUNK // max(1, x.shape[1]))
    for top in range(0, len(x), height):
        rows = slice(top, top + height)
        magnitude = np.abs(x[rows])
        base = classes[rows].astype(np.int32) * length
        up = np.floor(magnitude + np.float32(0.5))
        best, cost = up, lagrangian(magnitude, up, up, base, length, flat)
        for candidate in (np.maximum(up - 1, 0), np.zeros_like(up)):
            other = lagrangian(magnitude, candidate, candidate, base, length, flat)
            better = other < cost
            best = np.where(better, candidate, best)
            cost = np.where(better, other, cost)
        out[rows] = np.copysign(best, x[rows])
    return out


def trellis(
    x: NDArray[np.float32],
    classes: NDArray[np.uint8],
    scaled: NDArray[np.float32],
    steps: int,
) -> NDArray[np.int32]:
    """Trellis-coded quantization by the Viterbi algorithm (Marcellin and Fischer 1990).

    Args:
        x: float32 (rows, columns), coefficients over steps.
        classes: uint8, same shape.
        scaled: `Rates.scaled`, by class, quantizer and magnitude of the index.
        steps: rows of a segment.

    Returns:
        int32 coefficients, each on its segment's path through the trellis.
    """
    if native.AVAILABLE:
        return _by_loops(x, classes, scaled, steps)
    out = np.empty(x.shape, np.int32)
    whole = len(x) // steps * steps
    for rows in (slice(0, whole), slice(whole, len(x))):
        height = min(steps, rows.stop - rows.start)
        if not height or not x.shape[1]:
            continue
        segments, kinds = _side_by_side(x[rows], height), _side_by_side(classes[rows], height)
        width = max(1, CHUNK // height)
        parts = [
            best_paths(segments[:, i : i + width], kinds[:, i : i + width], scaled)
            for i in range(0, segments.shape[1], width)
        ]
        joined = np.concatenate(parts, axis=1).reshape(height, -1, x.shape[1])
        out[rows] = joined.swapaxes(0, 1).reshape(-1, x.shape[1])
    return out


def _by_loops(
    x: NDArray[np.float32],
    classes: NDArray[np.uint8],
    scaled: NDArray[np.float32],
    steps: int,
) -> NDArray[np.int32]:
    """As `uniform` (steps 0) and `trellis`, by the native loops."""
    out = np.empty(x.shape, np.int32)
    _, quantizers, length = scaled.shape
    _loops.quantize(
        np.ascontiguousarray(x),
        np.ascontiguousarray(classes),
        np.ascontiguousarray(scaled),
        quantizers,
        length,
        *x.shape,
        steps,
        out,
    )
    return out


def _side_by_side(rows: NDArray[Number], height: int) -> NDArray[Number]:
    """From (groups * height, columns) to (height, segments)."""
    return rows.reshape(-1, height, rows.shape[1]).swapaxes(0, 1).reshape(height, -1)
