"""Archives of numpy arrays. Imports numpy only, besides its neighbours."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqcodec.common import foreign, streams
from tqcodec.common.checks import PathLike
from tqcodec.errors import EncodeError


def read(path: PathLike) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz, by name.

    Member by member, as numpy finds an array by the name of another one's member as well.

    Raises:
        EncodeError: not such a file.
        OSError: it cannot be read.
    """
    arrays: dict[str, NDArray[Any]] = {}
    with streams.open(path) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                for member in archive.infolist():
                    name = member.filename.removesuffix(".npy")
                    if name in arrays:
                        raise EncodeError(f"{path}: two arrays are named {name!r}")
                    with archive.open(member) as file:
                        arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # damaged files make numpy and zipfile raise anything
            if isinstance(error, EncodeError):
                raise
            reason = foreign.message(error)
            raise EncodeError(f"{path}: not an .npz file of plain arrays ({reason})") from error
    return arrays
