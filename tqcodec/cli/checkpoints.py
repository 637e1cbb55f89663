"""Files of tensors other than `.tqc`: what they hold, and how they are written.

The suffix says the format: `.safetensors`, `.safetensors.index.json` (the index of a sharded
checkpoint), `.npz`, and `.pt .pth .bin` through PyTorch. `-` is standard input or output, as
safetensors. Imports torch only through `tqcodec.torch`, and only for PyTorch's files.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tqcodec.arrays import dtype_of, numpy_dtype
from tqcodec.common import foreign, npz, streams, urls
from tqcodec.common.arriving import Arriving
from tqcodec.common.atomic import check_writable, replacing
from tqcodec.errors import EncodeError
from tqcodec.format.dtypes import DTYPES, DType
from tqcodec.reading.remote.options import Remote

Array = NDArray[Any]

STANDARD = "-"
METADATA = "__metadata__"  # key of the header of safetensors
MOST_HEADER = 100_000_000  # bytes, as the safetensors library reads them
INDEX_SUFFIX = ".safetensors.index.json"
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
READABLE = (".safetensors", INDEX_SUFFIX, ".npz", *TORCH_SUFFIXES)
SUFFIXES = (".tqc", ".png", ".html", *READABLE)  # in whose place another one comes
WRITABLE = (".safetensors", ".npz", ".pt", ".pth")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file of tensors holds.

    Attributes:
        tensors: arrays by name, in the order of the file; some cannot be written to.
        metadata: free strings.
        left_out: what else is in the file, a description for each.
    """

    tensors: dict[str, Array]
    metadata: dict[str, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()


def read(name: str, key: str | None = None) -> Checkpoint:
    """The tensors of a file, by its suffix, or of safetensors bytes on standard input.

    Args:
        name: of the file.
        key: which state dict of a PyTorch checkpoint that holds several.

    Raises:
        EncodeError: a format that is not known, a file that is damaged, or several state dicts and
            no `key`.
        OSError: the file cannot be read.
    """
    path = Path(name)
    of_torch = name != STANDARD and path.suffix in TORCH_SUFFIXES
    if key is not None and not of_torch:
        raise EncodeError(
            f"{name}: only checkpoints of PyTorch ({' '.join(TORCH_SUFFIXES)}) have keys"
        )
    if name != STANDARD:
        _check_kind(path)
    with streams.naming("standard input" if name == STANDARD else name):
        if name == STANDARD:
            data = np.frombuffer(sys.stdin.buffer.read(), np.uint8)
            return parse_safetensors(data, "standard input")
        if name.endswith(INDEX_SUFFIX):
            return _read_sharded(path)
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if path.suffix == ".npz":
            return Checkpoint(npz.read(path))
        if of_torch:
            with _needing_torch(path):
                from tqcodec.torch import checkpoint
            return Checkpoint(*checkpoint.read(path, key))
    raise EncodeError(f"{name}: not a file of a known format ({' '.join(READABLE)})")


def _check_kind(path: Path) -> None:
    """Say of what downloads may leave in place of a file what it is."""
    if not os.path.isfile(path):  # noqa: PTH113 - of which NULs are no names
        return
    with streams.open(path) as file:
        head = file.read(64)
    if not head:
        raise EncodeError(f"{path}: empty file")
    head = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        raise EncodeError(f"{path}: a Git LFS pointer, not the file itself: git lfs pull gets it")
    if head.startswith((b"<!doctype html", b"<html")):
        raise EncodeError(f"{path}: a web page, not the file itself: download it again")


def source(name: str) -> bytes | str:
    """A `.tqc` file to open: its path or address, or the bytes of standard input or of a pipe.

    Raises:
        OSError: they cannot be read.
    """
    if name == STANDARD:
        with streams.naming("standard input"):
            return sys.stdin.buffer.read()
    return streams.read(name) if is_pipe(name) else name


def arriving(name: str, remote: Remote) -> AbstractContextManager[Arriving] | None:
    """Bytes of standard input, a pipe or an address, read as they come; None for a file on disk."""
    if name == STANDARD:
        return nullcontext(Arriving(sys.stdin.buffer))
    if urls.is_url(name):
        from tqcodec.reading.remote import file

        return file.arriving(name, remote)
    return _from_pipe(name) if is_pipe(name) else None


@contextmanager
def _from_pipe(name: str) -> Iterator[Arriving]:
    with Path(name).open("rb", buffering=0) as file:
        yield Arriving(file)


def is_pipe(name: str) -> bool:
    """True for what is there and no regular file: a pipe, a device, a folder."""
    path = Path(name)
    return not urls.is_url(name) and path.exists() and not path.is_file()


@contextmanager
def _needing_torch(path: Path) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise EncodeError(f"{path} needs PyTorch: pip install 'torch>=2.6'") from error


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
        header = json.loads(data[8:start].tobytes(), object_pairs_hook=_without_twins)
        metadata = header.pop(METADATA, None) or {}  # null, as some have it, means none
        body = data[start:]
        tensors = {name: _view(body, fields, source, name) for name, fields in header.items()}
        strings = {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, EncodeError):
            raise
        raise EncodeError(
            f"{source}: damaged safetensors file ({foreign.message(error)})"
        ) from error
    return Checkpoint(tensors, strings)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON in which no name comes twice: one of the two values would be lost."""
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name!r} is in it {count} times")
    return dict(pairs)


def _view(body: NDArray[np.uint8], fields: dict[str, Any], source: str, name: str) -> Array:
    if fields["dtype"] not in DTYPES:
        raise EncodeError(f"{source}: tensor {name!r} has dtype {fields['dtype']}, not supported")
    begin, end = fields["data_offsets"]
    if not 0 <= begin <= end <= len(body) or min(fields["shape"], default=0) < 0:
        raise ValueError(f"tensor {name!r} is outside the file")
    array = body[begin:end].view(numpy_dtype(DTYPES[fields["dtype"]])).reshape(fields["shape"])
    return np.require(array, requirements="A")


def _read_safetensors(path: Path) -> Checkpoint:
    if not path.is_file():
        data = np.frombuffer(streams.read(path), np.uint8)
    else:
        _check_kind(path)  # of a shard as well
        data = np.asarray(np.memmap(path, mode="r"))
    return parse_safetensors(data, str(path))


def _read_sharded(path: Path) -> Checkpoint:
    """The tensors that an index names, from shards beside it and from nowhere else."""
    places = _weight_map(path)
    shards = {shard: _shard_path(path, shard) for shard in places.values()}
    read_shards = {shard: _read_safetensors(place) for shard, place in shards.items()}
    tensors = {}
    for name, shard in places.items():
        if name not in read_shards[shard].tensors:
            raise EncodeError(f"{path}: tensor {name!r} is not in {shard!r}")
        tensors[name] = read_shards[shard].tensors[name]
    metadata = {k: v for shard in read_shards.values() for k, v in shard.metadata.items()}
    # A tensor may be in several shards: what counts is where the index says.
    left_out = [
        f"tensor {name!r} of {shard}"
        for shard, checkpoint in read_shards.items()
        for name in checkpoint.tensors
        if places.get(name) != shard
    ]
    return Checkpoint(tensors, metadata, left_out)


def _weight_map(index: Path) -> dict[str, Any]:
    """Names of shards by names of tensors; the shards' may be anything."""
    try:
        document = json.loads(streams.read(index), object_pairs_hook=_without_twins)
        places = dict(document["weight_map"])
        hash(tuple(places.values()))
        if not places:
            raise ValueError("it names no tensor")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = foreign.message(error)
        raise EncodeError(f"{index}: not the index of a sharded checkpoint ({reason})") from error
    return places


def _shard_path(index: Path, shard: Any) -> Path:
    plain = isinstance(shard, str) and shard.endswith(".safetensors")
    if not plain or any(c in shard for c in "/\\:\0"):
        raise EncodeError(f"{index}: shard {shard!r} is not the name of a file beside the index")
    return index.with_name(shard)


def check_output(
    name: str, overwrite: bool, inputs: Iterable[str] = (), *, instead: str = ""
) -> None:
    """Refuse an output that exists, is an input or cannot be written, before any work is done.

    Args:
        name: of the output.
        overwrite: True where it may exist; never where it is an input.
        inputs: names of files, of folders whose files are read, and of FILE.py:FUNCTION.
        instead: what else to do about a file that exists, with a comma and space at its end.

    Raises:
        EncodeError: the file exists and may not be overwritten, or is an input, by this or by any
            other name; or bytes for a terminal.
        OSError: it cannot be written.
    """
    if name == STANDARD:
        if sys.stdout.isatty():
            raise EncodeError("standard output is a terminal; name an output with -o")
        found = _identity(sys.stdout)
    else:
        if os.path.isfile(name) and not overwrite:  # noqa: PTH113 - of which NULs are no names
            raise EncodeError(f"{name} exists; {instead}-f overwrites it")
        check_writable(name)
        found = _identity(name)
    for read in _files_read(inputs) if found is not None else ():
        if _identity(sys.stdin if read == STANDARD else read) == found:
            shown = "standard output" if name == STANDARD else name
            raise EncodeError(f"{shown} is the same file as the input {read}: name another output")


def _identity(file: Any) -> tuple[int, int] | None:
    """What all names of a regular file, links included, have in common; None without one."""
    try:
        about = os.stat(file if isinstance(file, str) else file.fileno())  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return (about.st_dev, about.st_ino) if stat.S_ISREG(about.st_mode) else None


def _files_read(inputs: Iterable[str]) -> Iterator[str]:
    """The files behind inputs: shards of an index, files of a folder, a file with a function."""
    for name in inputs:
        yield name
        file, _, function = name.rpartition(":")
        if file.endswith(".py") and function.isidentifier():
            yield file
        elif name.endswith(INDEX_SUFFIX):
            # What is wrong with an index is said when it is read.
            with suppress(EncodeError, OSError):
                for shard in set(_weight_map(Path(name)).values()):
                    yield str(_shard_path(Path(name), shard))
        elif name != STANDARD and os.path.isdir(name):  # noqa: PTH112 - as above
            yield from (str(path) for path in Path(name).rglob("*"))


def check_suffix(name: str) -> None:
    """Refuse an output for tensors whose suffix is not known.

    Raises:
        EncodeError: an unknown format, or one that needs what is not installed.
    """
    suffix = Path(name).suffix
    if name != STANDARD and suffix not in WRITABLE:
        raise EncodeError(f"{name}: not a format that can be written ({' '.join(WRITABLE)})")
    if suffix in TORCH_SUFFIXES and name != STANDARD:
        with _needing_torch(Path(name)):
            import tqcodec.torch.checkpoint  # noqa: F401


def check_tensors(name: str, dtypes: Mapping[str, np.dtype[Any]]) -> None:
    """Refuse tensors that the format of an output cannot hold, before they are decoded.

    Args:
        name: of the output.
        dtypes: of the tensors, by their names.

    Raises:
        EncodeError: names the tensor.
    """
    suffix = ".safetensors" if name == STANDARD else Path(name).suffix
    if suffix == ".safetensors" and METADATA in dtypes:
        raise EncodeError(f"safetensors cannot hold a tensor named {METADATA!r}")
    if suffix != ".npz":
        return
    for tensor, dtype in dtypes.items():
        if dtype.isbuiltin != 1:
            raise EncodeError(f"tensor {tensor!r}: .npz holds no {dtype}")
        if "\0" in tensor:
            raise EncodeError(f"tensor {tensor!r}: .npz holds no name with a NUL")
        plain = tensor.removesuffix(".npy")
        if plain != tensor and plain in dtypes:
            raise EncodeError(
                f"tensors {plain!r} and {tensor!r}: in an .npz numpy takes one for the other; "
                "name an output .safetensors"
            )


def with_suffix(name: str, suffix: str) -> str:
    """The name of an output beside the input `name`; standard output for standard input.

    Of an input with an address it lies in the current folder.
    """
    if name == STANDARD:
        return STANDARD
    name = urls.base_name(name) if urls.is_url(name) else urls.local(name)
    path = Path(name)
    if not path.name:
        raise EncodeError(f"{name!r} is not the name of a file")
    # Other dots belong to the name, as in llama-3.1.
    known = (one for one in SUFFIXES if path.name.lower().endswith(one) and path.name != one)
    stem = path.name[: len(path.name) - len(next(known, ""))]
    return str(path.with_name(stem + suffix))


def write(name: str, checkpoint: Checkpoint) -> None:
    """Write tensors in the format that the suffix says, or safetensors to standard output.

    Raises:
        EncodeError: a format that is not known or cannot hold these tensors.
        OSError: the file cannot be written; an old one is untouched.
    """
    check_suffix(name)
    tensors = {key: np.asarray(array, order="C") for key, array in checkpoint.tensors.items()}
    check_tensors(name, {key: array.dtype for key, array in tensors.items()})
    path = Path(name)
    if name == STANDARD:
        with streams.naming("standard output"):
            _write_safetensors(sys.stdout.buffer, tensors, checkpoint.metadata)
            sys.stdout.buffer.flush()
        return
    with replacing(path) as temporary, _as_oserror(path):
        if path.suffix == ".npz":
            _write_npz(temporary, tensors)
        elif path.suffix in TORCH_SUFFIXES:
            from tqcodec.torch import checkpoint as torch_files

            torch_files.write(temporary, tensors, checkpoint.metadata)
        else:
            with temporary.open("wb") as file:
                _write_safetensors(file, tensors, checkpoint.metadata)


@contextmanager
def _as_oserror(path: Path) -> Iterator[None]:
    """A full disk, say, where torch has errors of its own for it."""
    try:
        yield
    except RuntimeError as error:
        reason = f"cannot be written ({foreign.message(error)})"
        raise OSError(errno.EIO, reason, str(path)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


Kind = tuple[DType, tuple[int, ...]]  # element type and shape of a tensor


def _write_safetensors(
    file: BinaryIO, tensors: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    """A safetensors file, tensor by tensor: the library wants a path of its own, or all bytes."""
    kinds = {name: (dtype_of(name, array), array.shape) for name, array in tensors.items()}
    header, places = _layout(kinds, metadata)
    file.write(header)
    for name in places:
        file.write(_little(tensors[name]))


def _layout(kinds: Mapping[str, Kind], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """What a safetensors file begins with, and the place of each tensor behind it, ascending.

    As the library does it, the tensors with the largest elements come first, so that all are
    aligned, and the header ends at a multiple of 8 bytes.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    places, end = {}, 0
    for name in sorted(kinds, key=lambda name: (-kinds[name][0].size, name)):
        dtype, shape = kinds[name]
        begin, end = end, end + math.prod(shape) * dtype.size
        header[name] = {"dtype": dtype.name, "shape": shape, "data_offsets": [begin, end]}
        places[name] = begin
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise EncodeError(
            f"names and metadata take {len(text)} bytes, safetensors hold {MOST_HEADER}"
        )
    return len(text).to_bytes(8, "little") + text, places


def _little(array: Array) -> memoryview:
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return little.reshape(-1).view(np.uint8).data


def write_arriving(
    name: str,
    kinds: Mapping[str, Kind],
    metadata: Mapping[str, str],
    tensors: Iterable[tuple[str, Array]],
) -> None:
    """A safetensors file of tensors that come in any order, each written when it comes.

    Raises:
        OSError: the file cannot be written; an old one is untouched, as for any other error.
    """
    path = Path(name)
    header, places = _layout(kinds, metadata)
    with replacing(path) as temporary, _as_oserror(path), temporary.open("wb") as file:
        if not file.seekable():
            _write_safetensors(file, dict(tensors), metadata)
            return
        file.write(header)
        for tensor, array in tensors:
            file.seek(len(header) + places[tensor])
            file.write(_little(array))


def _write_npz(path: Path, tensors: Mapping[str, Array]) -> None:
    # Not np.savez, whose own parameters are keywords as well.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in tensors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def write_together(contents: Mapping[str, bytes]) -> None:
    """Write several files: all of them where there is room for all, else none."""
    with ExitStack() as stack:
        for name, data in contents.items():
            stack.enter_context(replacing(Path(name))).write_bytes(data)


def write_bytes(name: str, data: bytes) -> None:
    """Write a file atomically, or bytes to standard output."""
    if name == STANDARD:
        with streams.naming("standard output"):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        return
    with replacing(Path(name)) as temporary:
        temporary.write_bytes(data)
