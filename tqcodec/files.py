"""Files of tensors other than `.tqc`: what they hold, and how they are written.

The suffix says the format: `.safetensors`, `.safetensors.index.json` (the index of a sharded
checkpoint), `.npz`, and `.pt .pth .bin` through PyTorch. `-` is standard input or output, as
safetensors. Imports torch only through `tqcodec.torch`, and only for PyTorch's files.
"""

from __future__ import annotations

import errno
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqcodec.api import numpy_dtype
from tqcodec.atomic import replacing
from tqcodec.errors import EncodeError
from tqcodec.format.dtypes import DTYPES

Array = NDArray[Any]

STANDARD = "-"
METADATA = "__metadata__"  # key of the header of safetensors
INDEX_SUFFIX = ".safetensors.index.json"
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
READABLE = (".safetensors", INDEX_SUFFIX, ".npz", *TORCH_SUFFIXES)
WRITABLE = (".safetensors", ".npz", ".pt", ".pth")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file of tensors holds.

    Attributes:
        tensors: arrays by name, in the order of the file; some cannot be written to.
        metadata: free strings.
    """

    tensors: dict[str, Array]
    metadata: dict[str, str] = field(default_factory=dict)


def read(name: str) -> Checkpoint:
    """The tensors of a file, by its suffix, or of safetensors bytes on standard input.

    Raises:
        EncodeError: a format that is not known, or a file that is damaged.
        OSError: the file cannot be read.
    """
    if name == STANDARD:
        return parse_safetensors(np.frombuffer(sys.stdin.buffer.read(), np.uint8), "standard input")
    path = Path(name)
    if name.endswith(INDEX_SUFFIX):
        return _read_sharded(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in TORCH_SUFFIXES:
        with _needing_torch(path):
            from tqcodec.torch import checkpoint
        return Checkpoint(checkpoint.read(path))
    raise EncodeError(f"{name}: not a file of a known format ({' '.join(READABLE)})")


@contextmanager
def _needing_torch(path: Path) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise EncodeError(f"{path} needs PyTorch: pip install 'tqcodec[torch]'") from error


def parse_safetensors(data: NDArray[np.uint8], source: str) -> Checkpoint:
    """Tensors of a safetensors file, as views of its bytes.

    The library's numpy interface is not used here because it copies every tensor and knows no
    8-bit floats.

    Args:
        data: the whole file, uint8, 1-D; may be mapped from disk.
        source: its name, for messages.

    Raises:
        EncodeError: not a safetensors file, or one with a dtype that the format does not hold.
    """
    try:
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:start].tobytes())
        metadata = header.pop(METADATA, {})
        body = data[start:]
        tensors = {name: _view(body, fields, source, name) for name, fields in header.items()}
        strings = {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, EncodeError):
            raise
        raise EncodeError(f"{source}: damaged safetensors file ({error})") from error
    return Checkpoint(tensors, strings)


def _view(body: NDArray[np.uint8], fields: dict[str, Any], source: str, name: str) -> Array:
    if fields["dtype"] not in DTYPES:
        raise EncodeError(f"{source}: tensor {name!r} has dtype {fields['dtype']}, not supported")
    begin, end = fields["data_offsets"]
    if not 0 <= begin <= end <= len(body) or min(fields["shape"], default=0) < 0:
        raise ValueError(f"tensor {name!r} is outside the file")
    array = body[begin:end].view(numpy_dtype(DTYPES[fields["dtype"]])).reshape(fields["shape"])
    return np.require(array, requirements="A")


def _read_safetensors(path: Path) -> Checkpoint:
    if path.stat().st_size == 0:
        raise EncodeError(f"{path}: empty file")
    return parse_safetensors(np.asarray(np.memmap(path, mode="r")), str(path))


def _read_sharded(path: Path) -> Checkpoint:
    """The tensors that an index names, from shards beside it and from nowhere else."""
    try:
        places = json.loads(path.read_bytes())["weight_map"]
        shards = {str(shard): _shard_path(path, shard) for shard in places.values()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, EncodeError):
            raise
        raise EncodeError(f"{path}: not the index of a sharded checkpoint ({error})") from error
    read_shards = {shard: _read_safetensors(place) for shard, place in shards.items()}
    tensors = {}
    for name, shard in places.items():
        if name not in read_shards[shard].tensors:
            raise EncodeError(f"{path}: tensor {name!r} is not in {shard!r}")
        tensors[name] = read_shards[shard].tensors[name]
    metadata = {k: v for shard in read_shards.values() for k, v in shard.metadata.items()}
    return Checkpoint(tensors, metadata)


def _shard_path(index: Path, shard: Any) -> Path:
    plain = isinstance(shard, str) and shard.endswith(".safetensors")
    if not plain or any(c in shard for c in "/\\:\0"):
        raise EncodeError(f"{index}: shard {shard!r} is not the name of a file beside the index")
    return index.with_name(shard)


def _read_npz(path: Path) -> Checkpoint:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return Checkpoint({name: file[name] for name in file.files})
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise EncodeError(f"{path}: not an .npz file of plain arrays ({error})") from error


def check_output(name: str, overwrite: bool) -> None:
    """Refuse an output that exists, before any work is done.

    Raises:
        EncodeError: the file exists and may not be overwritten; or bytes for a terminal.
        FileNotFoundError: there is no such folder.
    """
    if name == STANDARD:
        if sys.stdout.isatty():
            raise EncodeError("standard output is a terminal; name an output with -o")
        return
    path = Path(name)
    if path.is_file() and not overwrite:
        raise EncodeError(f"{name} exists; -f overwrites it")
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "no such folder", str(path.parent))


def check_suffix(name: str) -> None:
    """Refuse an output for tensors whose suffix is not known.

    Raises:
        EncodeError: an unknown format.
    """
    if name != STANDARD and Path(name).suffix not in WRITABLE:
        raise EncodeError(f"{name}: not a format that can be written ({' '.join(WRITABLE)})")


def with_suffix(name: str, suffix: str) -> str:
    """The name of an output beside the input `name`; standard output for standard input."""
    if name == STANDARD:
        return STANDARD
    return str(Path(name.removesuffix(INDEX_SUFFIX)).with_suffix(suffix))


def write(name: str, checkpoint: Checkpoint) -> None:
    """Write tensors in the format that the suffix says, or safetensors to standard output.

    Raises:
        EncodeError: a format that is not known or cannot hold these tensors.
        OSError: the file cannot be written; an old one is untouched.
    """
    from safetensors.numpy import save, save_file

    check_suffix(name)
    tensors = {key: np.asarray(array, order="C") for key, array in checkpoint.tensors.items()}
    metadata = checkpoint.metadata or None
    path = Path(name)
    if METADATA in tensors and (name == STANDARD or path.suffix == ".safetensors"):
        raise EncodeError(f"safetensors cannot hold a tensor named {METADATA!r}")
    if name == STANDARD:
        write_bytes(name, save(tensors, metadata))
        return
    if path.suffix in TORCH_SUFFIXES:
        with _needing_torch(path):
            from tqcodec.torch import checkpoint as torch_files
    with replacing(path) as temporary, _as_oserror(path):
        if path.suffix == ".npz":
            _write_npz(temporary, tensors)
        elif path.suffix in TORCH_SUFFIXES:
            torch_files.write(temporary, tensors)
        else:
            save_file(tensors, temporary, metadata)


@contextmanager
def _as_oserror(path: Path) -> Iterator[None]:
    """A full disk, say, where a library has errors of its own for it."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(errno.EIO, f"cannot be written ({error})", str(path)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_npz(path: Path, tensors: Mapping[str, Array]) -> None:
    # Not np.savez, whose own parameters are keywords as well.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in tensors.items():
            if array.dtype.isbuiltin != 1:
                raise EncodeError(f"tensor {name!r}: .npz holds no {array.dtype}")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def write_bytes(name: str, data: bytes) -> None:
    """Write a file atomically, or bytes to standard output."""
    if name == STANDARD:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with replacing(Path(name)) as temporary:
        temporary.write_bytes(data)
