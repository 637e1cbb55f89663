"""The optional native loops of the encoder, with the interface of `portable` (chapter 5).

Built from `native/loops.c` where a C compiler is at hand; the results are the same. Imports numpy
only, besides the layers below.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tqcodec import native
from tqcodec.format.tables import Tables

_library = native.library(native.LOOPS)

AVAILABLE = _library is not None


def encode(
    indices: NDArray[np.int32], ids: NDArray[np.uint8], tables: Tables, steps: int
) -> tuple[bytes, NDArray[np.int32]]:
    """As `portable.encode`."""
    packed = tables.packed
    rows, columns = ids.shape
    words, escapes = _library.encode(
        packed.numbers,
        packed.weights,
        packed.starts,
        np.ascontiguousarray(ids),
        np.ascontiguousarray(indices),
        rows,
        columns,
        steps,
    )
    return words, np.frombuffer(escapes, np.int32)


def indices_of(
    coefficients: NDArray[np.signedinteger], steps: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """As `trellis.indices_of`."""
    indices = np.empty(coefficients.shape, np.int32)
    quantizers = np.empty(coefficients.shape, np.uint8)
    wide = np.ascontiguousarray(coefficients, np.int32)
    if not _library.indices(wide, *wide.shape, steps, indices, quantizers):
        raise ValueError("coefficient is not on the trellis")
    return indices, quantizers
