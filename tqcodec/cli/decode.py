"""What `decode` does: files of tensors, of coefficients, and of what is still arriving."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from tqcodec import api, arrays
from tqcodec.arrays import Array
from tqcodec.cli import checkpoints
from tqcodec.cli.arguments import reading_of
from tqcodec.cli.checkpoints import STANDARD, Checkpoint
from tqcodec.common import streams
from tqcodec.common.arriving import Arriving
from tqcodec.common.progress import Progress
from tqcodec.errors import EncodeError
from tqcodec.reading.file import TensorFile
from tqcodec.reading.streaming import Stream
from tqcodec.reading.transform_tensor import TransformTensor, narrowest

KEY: Final = "tqcodec.transform"  # of the metadata: what else has to be known of each tensor


def decode(arguments: Namespace, output: str, progress: Progress | None) -> tuple[int, int]:
    """Write the tensors of a file; how many they are, and their bytes."""
    of_weights = arguments.domain == "weights"
    plain = output != STANDARD and Path(output).suffix == ".safetensors"
    if not of_weights and not plain and output != STANDARD:
        raise EncodeError(f"{output}: coefficients are written as .safetensors only")
    options = reading_of(arguments)
    if of_weights and plain:
        coming = checkpoints.arriving(arguments.input, options["remote"])
        if coming is not None:
            with streams.naming(_shown(arguments.input)), coming as source:
                return _decode_arriving(source, output, arguments.limit, progress)
    with api.open(checkpoints.source(arguments.input), **options, progress=progress) as file:
        metadata = file.metadata()
        if of_weights:
            checkpoints.check_tensors(output, _dtypes(file))
            tensors = file.decode_all()
        else:
            tensors, about = coefficients(file)
            metadata |= {KEY: json.dumps(about)}
    checkpoints.write(output, Checkpoint(tensors, metadata))
    return len(tensors), sum(array.nbytes for array in tensors.values())


def _shown(name: str) -> str:
    return "standard input" if name == STANDARD else name


def _dtypes(file: TensorFile) -> dict[str, np.dtype[Any]]:
    entries = (e for e in file.container.directory.entries if e.needs is None)
    return {e.name: arrays.numpy_dtype(e.dtype) for e in entries}


def _decode_arriving(
    source: Arriving, output: str, limit: int | None, progress: Progress | None
) -> tuple[int, int]:
    """As `decode`, each tensor when its bytes are there."""
    stream = Stream(source, limit)
    entries = stream.file.container.directory.entries
    checkpoints.check_tensors(output, _dtypes(stream.file))
    kinds = {entry.name: (entry.dtype, entry.shape) for entry in entries}

    def tensors() -> Iterator[tuple[str, Array]]:
        for done, (name, array) in enumerate(stream.tensors("weights"), 1):
            assert not isinstance(array, TransformTensor), "weights are asked for"
            yield name, array
            if progress is not None:
                progress("decode", done, len(entries))

    checkpoints.write_arriving(output, kinds, stream.file.metadata(), tensors())
    return len(entries), sum(entry.size for entry in entries)


def coefficients(file: TensorFile) -> tuple[dict[str, Array], dict[str, Any]]:
    """All tensors of a file in the transform domain, under the names of docs/use.md.

    Returns:
        arrays by `PART/NAME`, and what else has to be known of each tensor, by its name: None of
        one that has no transform domain.
    """
    parts: dict[str, Array] = {}
    about: dict[str, Any] = {}
    tensors = {entry.name: file.transform(entry.name) for entry in file.arrivals()}
    for name in file:
        tensor = tensors[name]
        parts |= {f"{part}/{name}": array for part, array in _parts(tensor).items()}
        about[name] = None if tensor.values is not None else _about(tensor)
    return parts, about


def _parts(tensor: TransformTensor) -> dict[str, Array]:
    if tensor.values is not None:
        return {"values": tensor.values}
    return {
        "coefficients": tensor.coefficients,
        "columns": narrowest(tensor.columns),
        "multipliers": narrowest(tensor.multipliers),
        "steps": tensor.step * tensor.row_scales.astype(np.float64),
        **{f"basis{a}": narrowest(b) for a, b in enumerate(tensor.bases) if b is not None},
    }


def _about(tensor: TransformTensor) -> dict[str, Any]:
    return {
        "dtype": tensor.dtype.name,
        "channels": tensor.channels,
        "bases": [axis for axis, basis in enumerate(tensor.bases) if basis is not None],
        "shape": [tensor.shape[dimension] for dimension in tensor.order],
        "transpose": np.argsort(tensor.order).tolist(),
    }
