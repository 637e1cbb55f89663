"""Arrays of numpy and ml_dtypes as the format has them: element types and bit patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqcodec.common import foreign
from tqcodec.errors import EncodeError
from tqcodec.format.dtypes import DTYPES, DType

Array = NDArray[Any]

_NATIVE = {
    "BOOL": "?",
    **{f"U{8 * n}": f"<u{n}" for n in (1, 2, 4, 8)},
    **{f"I{8 * n}": f"<i{n}" for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": f"<f{n}" for n in (2, 4, 8)},
}
_EXTENDED = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_NAMES = {
    **{np.dtype(code).name: name for name, code in _NATIVE.items()},
    **{extended: name for name, extended in _EXTENDED.items()},
}


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy type of an element type; ml_dtypes has those that numpy lacks."""
    if dtype.name in _NATIVE:
        return np.dtype(_NATIVE[dtype.name])
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, _EXTENDED[dtype.name]))


def dtype_of(name: str, array: Array) -> DType:
    """The element type of an array, the tensor `name`.

    Raises:
        EncodeError: the format has none for it.
    """
    if array.dtype.name not in _NAMES:
        raise EncodeError(f"tensor {name!r}: dtype {array.dtype} is not one that the format holds")
    return DTYPES[_NAMES[array.dtype.name]]


def patterns_of(name: str, array: Array) -> tuple[DType, NDArray[np.unsignedinteger]]:
    """Element type and little-endian bit patterns of an array, in C order."""
    try:
        if isinstance(array, np.ma.MaskedArray):
            raise EncodeError(f"tensor {name!r}: a masked array; its mask would be lost, fill it")
        array = np.asarray(array)
    except EncodeError:
        raise
    except Exception as error:  # of whatever somebody takes for an array
        raise EncodeError(f"tensor {name!r}: no array ({foreign.message(error)})") from error
    dtype = dtype_of(name, array)
    if dtype.name == "BOOL":
        # Views and other programs leave bytes above 1; every byte but 0 means true.
        true = np.ascontiguousarray(array).view(np.uint8) != 0
        return dtype, true.view(np.uint8).reshape(array.shape)
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    # reshape: ascontiguousarray would make a scalar 1-D
    return dtype, np.ascontiguousarray(little).reshape(array.shape).view(dtype.pattern)
