"""Method: a quantizer and the counts of the indices that it makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder import histograms
from tqcodec.encoder.histograms import Histograms
from tqcodec.encoder.matrix import quantizer
from tqcodec.encoder.matrix.blocks import row_blocks
from tqcodec.format.trellis import indices_of

SHORTEST = 32  # rows of a trellis segment, where more would leave too few lanes

TRELLIS_STEP = 0.56  # step of the trellis with the distortion of a uniform step of 1, about


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
            return quantizer.trellis(x, classes, scaled, self.steps)
        return quantizer.uniform(x, classes, scaled)

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
