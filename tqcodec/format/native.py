"""The optional native loops, with the interface of `portable` (chapter 5).

Built from `native/loops.c` where a C compiler is at hand; the results are the same. Imports numpy
only, besides the layers below.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tqcodec import native
from tqcodec.format.reader import Reader
from tqcodec.format.tables import Tables

_library = native.library(native.LOOPS)

AVAILABLE = _library is not None

# By the status that the `decode` of the loops returns.
_FAULTS = {
    1: ("payload.invalid", "words that no encoder writes"),
    2: ("payload.end", "words do not end as an encoder ends them"),
    3: ("stream.escapes", "fewer escapes than coded"),
    4: ("stream.escape", "an escape that needs none"),
    5: ("stream.escapes", "escapes left over"),
    6: ("stream.range", "a value above 2 ** 30"),
}


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


def decode(
    reader: Reader,
    words: memoryview,
    escapes: NDArray[np.int32],
    low: NDArray[np.uint32],
    ids: NDArray[np.uint8],
    tables: Tables,
    steps: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """As `portable.decode`."""
    packed = tables.packed
    indices = np.empty(ids.shape, np.int32)
    coefficients = np.empty(ids.shape, np.int32) if steps else indices
    rows, columns = ids.shape
    status = _library.decode(
        np.frombuffer(words, "<u4").astype(np.uint32),
        packed.numbers,
        packed.weights,
        packed.starts,
        packed.slots,
        np.ascontiguousarray(ids),
        low,
        escapes,
        rows,
        columns,
        steps,
        coefficients,
        indices,
    )
    if status:
        reader.fail(*_FAULTS[status])
    return coefficients, indices


def quantize(
    x: NDArray[np.float32],
    classes: NDArray[np.uint8],
    scaled_bits: NDArray[np.float32],
    steps: int,
) -> NDArray[np.int32]:
    """As `uniform` (steps 0) and `trellis` of the encoder's quantizer, whose rates are scaled."""
    out = np.empty(x.shape, np.int32)
    _, quantizers, length = scaled_bits.shape
    _library.quantize(
        np.ascontiguousarray(x),
        np.ascontiguousarray(classes),
        np.ascontiguousarray(scaled_bits),
        quantizers,
        length,
        *x.shape,
        steps,
        out,
    )
    return out


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
