"""The range coder (chapter 5). The only module that imports constriction.

Tables are exact: 12-bit weights become 24-bit frequencies `weight << 12`, handed to constriction as
`frequency - 1` with ``perfect=False``, for which its intervals equal the table (no rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from tqcodec.format.reader import Reader
from tqcodec.format.registry import TABLE_BITS

PRECISION = 24  # bits of constriction's frequencies


class Model:
    """Frequencies of one alphabet in the form that the coder takes.

    Args:
        weights: 12-bit weights, each at least 1, sum 4096, at least two.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        frequencies = np.asarray(weights, np.int64) << (PRECISION - TABLE_BITS)
        probabilities = (frequencies - 1).astype(np.float64)
        self.native: Any = constriction.stream.model.Categorical(probabilities, perfect=False)


class RangeWriter:
    """Encodes runs of symbols; a new one for each payload."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, symbols: NDArray[np.int32], model: Model) -> None:
        """Append symbols (indices into the alphabet), int32, 1-D, contiguous."""
        self._coder.encode(symbols, model.native)

    def words(self) -> bytes:
        """The sealed stream as little-endian 32-bit words."""
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class RangeReader:
    """Decodes runs of symbols and checks that the stream is the one an encoder writes."""

    def __init__(self, words: memoryview, reader: Reader) -> None:
        self._words = bytes(words)
        self._reader = reader
        self._coder = constriction.stream.queue.RangeDecoder(
            np.frombuffer(self._words, "<u4").astype(np.uint32)
        )
        # constriction does not tell where its decoder stands, so the canonical-end check encodes
        # the symbols again: a stream is canonical exactly if the same words come out.
        self._mirror = RangeWriter()

    def take(self, count: int, model: Model) -> NDArray[np.int32]:
        """The next `count` symbols (indices into the alphabet), int32."""
        try:
            symbols: NDArray[np.int32] = self._coder.decode(model.native, count)
        except AssertionError:
            self._reader.fail("payload.invalid", "words that no encoder writes")
        self._mirror.put(symbols, model)
        return symbols

    def end(self) -> None:
        """Canonical-end check."""
        same = self._mirror.words() == self._words
        self._reader.check(same, "payload.end", "words do not end as an encoder ends them")
