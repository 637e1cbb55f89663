"""A file of made-up inputs, so that making them is paid for once: arrays of numpy (.npz)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tqcodec.arrays import dtype_of, numpy_dtype
from tqcodec.common.atomic import replacing
from tqcodec.common.checks import PathLike, kind_of, path_of
from tqcodec.errors import EncodeError
from tqcodec.format.dtypes import DTYPES
from tqcodec.torch.checkpoint import to_arrays, to_tensor
from tqcodec.torch.synthetic.parts import ALONE

FORMAT = "tqcodec inputs 1"
ABOUT = "about"
PLAIN = (str, int, float, bool, type(None))  # what a file holds besides tensors


def save_inputs(path: PathLike, batches: Iterable[Any]) -> None:
    """Write batches of `synthetic_inputs`, bit for bit; the file appears whole or not at all.

    An array BATCH.NUMBER for each tensor, and `about`, a JSON document: `format`, and in `batches`
    for each batch by name the element type of a tensor, or a list of one value that is none. A
    batch that is one tensor has it under the name "".

    Raises:
        EncodeError: a value that is neither tensor, string, number, boolean nor None.
        OSError: the file cannot be written.
    """
    arrays: dict[str, Any] = {}
    about = []
    for number, batch in enumerate(batches):
        named = batch if isinstance(batch, Mapping) else {ALONE: batch}
        entry: dict[str, Any] = {}
        for i, (name, value) in enumerate(named.items()):
            if isinstance(value, Tensor):
                array = to_arrays({name: value})[name]
                arrays[f"{number}.{i}"], entry[name] = array, dtype_of(name, array).name
            elif isinstance(value, PLAIN):
                entry[name] = [value]
            else:
                kind = kind_of(value)
                raise EncodeError(f"{path}: input {name!r} is {kind}, which a file cannot hold")
        about.append(entry)
    arrays[ABOUT] = np.array(json.dumps({"format": FORMAT, "batches": about}))
    with replacing(Path(path_of(path))) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def batches_of(path: PathLike, arrays: Mapping[str, Any]) -> list[Any] | None:
    """Batches of the arrays of such a file; None if it is none.

    Raises:
        EncodeError: a damaged one.
    """
    try:
        document = json.loads(str(arrays[ABOUT]))
        if document["format"] != FORMAT:
            return None
    except (KeyError, TypeError, ValueError):
        return None
    try:
        batches = []
        for number, entry in enumerate(document["batches"]):
            batch = {
                name: _value(arrays, f"{number}.{i}", entry[name]) for i, name in enumerate(entry)
            }
            batches.append(batch.get(ALONE, batch))
        return batches
    except Exception as error:
        raise EncodeError(f"{path}: a damaged file of made-up inputs") from error


def _value(arrays: Mapping[str, Any], key: str, about: str | Sequence[Any]) -> Any:
    if not isinstance(about, str):
        return about[0]
    # Types that numpy lacks come back as bytes.
    return to_tensor(arrays[key].view(numpy_dtype(DTYPES[about])))
