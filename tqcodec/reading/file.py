"""The one door through which files are read: `TensorFile`.

The decoder in C has the first word, where it was built. What it refuses, the format layer decides:
it decodes the same, and says what is wrong.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from tqcodec.arrays import Array, numpy_dtype
from tqcodec.common import streams, urls
from tqcodec.common.arriving import BYTES, Arriving
from tqcodec.common.checks import PathLike, need, need_options, path_of
from tqcodec.common.progress import Progress
from tqcodec.errors import DecodeError
from tqcodec.format import reconstruct
from tqcodec.format.container import Container, limit_of
from tqcodec.format.entries import Entry
from tqcodec.format.header import Header
from tqcodec.format.native_decoder import Fetch, NativeFile, described
from tqcodec.format.records import CodedTensor
from tqcodec.format.registry import Coding
from tqcodec.reading.remote.options import Remote
from tqcodec.reading.transform_tensor import TransformTensor, of_domain, of_values

if TYPE_CHECKING:
    from tqcodec.reading.remote.file import RemoteFile, Span

Found = TypeVar("Found")
TOGETHER: Final = 1 << 22  # bytes that are asked for together where all tensors are read

_SEEKING = threading.Lock()  # only where a file cannot be read at a position


class Reading(TypedDict, total=False):
    """Options of all that reads files; each may be left out.

    Attributes:
        limit: largest number of decoded bytes; None for 32 MiB plus 1000 times the file's length.
        workers: threads that decode whole files; only the decoder in C has use for more than one.
        progress: called with (stage, done, of) while whole files are decoded.
        remote: how a file with an address is read; None for `Remote()`.
    """

    limit: int | None
    workers: int
    progress: Progress | None
    remote: Remote | None


class TensorFile(Mapping[str, Array]):
    """Read-only mapping from names to arrays, each decoded when it is asked for.

    Threads and forked processes may share it: reads have positions of their own. It is pickled (and
    copied) as the path or the address of the file, which is opened again there, or as the bytes
    that it was made of. Once it is closed, names and metadata are still there, tensors are not
    (ValueError).

    Attributes:
        tensors: what the directory says of each tensor.

    Args:
        source: path of a file or a pipe, its address (`https://`, `s3://`, `hf://` and what else
            fsspec knows), or its bytes. (`tqcodec.stream` gives what is arriving: a tensor can then
            be asked for while its bytes are held.)
        limit, workers, progress, remote: as in `Reading`.
    """

    def __init__(
        self,
        source: bytes | PathLike | Arriving,
        limit: int | None = None,
        workers: int = 1,
        progress: Progress | None = None,
        remote: Remote | None = None,
    ) -> None:
        need_options(limit, workers, progress)
        need("remote", remote, (Remote, NoneType), "tqcodec.Remote")
        self._limit, self._workers, self._progress = limit, workers, progress
        self._closed = False
        self._path: str | None = None
        self._file: BinaryIO | None = None
        self._arriving: Arriving | None = None
        self._remote: RemoteFile | None = None
        self._data = memoryview(b"")
        if isinstance(source, Arriving):
            self._arriving = source
        elif isinstance(source, BYTES):
            self._data = memoryview(source).cast("B")
        elif urls.is_url(path := path_of(source)):
            from tqcodec.reading.remote.file import RemoteFile

            self._path = path
            self._remote = RemoteFile(path, remote if remote is not None else Remote())
        else:
            source = urls.local(path)
            with streams.naming(source):
                file = open(source, "rb", buffering=0)  # noqa: PTH123, SIM115
                if streams.is_file(file):
                    # Opened again by another process, perhaps one in another folder.
                    self._path, self._file = os.path.abspath(source), file  # noqa: PTH100
                else:
                    with file:
                        self._data = memoryview(file.read())
        self._length = self._size()
        try:
            # Where nobody knows the length, the directory says it.
            length = self._length if self._length is not None else self.container.length
            self._most = limit_of(limit, self._length, length)
            # Of what is elsewhere, the bytes of the next tensor are not there.
            self._together = 0 if self._elsewhere is not None else self._most
            # It reads the tables as well, for which an address would be asked once more.
            decoder = self._native if self._remote is None else None
            self.tensors = decoder.tensors if decoder else described(self.container.directory)
            self._index = {tensor.name: i for i, tensor in enumerate(self.tensors)}
            self._metadata = decoder.metadata if decoder else self.container.directory.metadata
        except BaseException:
            self.close()
            raise

    @property
    def _elsewhere(self) -> Arriving | RemoteFile | None:
        """What gives the bytes, where they are neither in memory nor in an open file."""
        return self._arriving if self._arriving is not None else self._remote

    @cached_property
    def _native(self) -> NativeFile | None:
        """The file as the decoder in C sees it; None where there is none, or it refuses."""
        length = self._length if self._length is not None else self.container.length
        try:
            return NativeFile.of(self._place(), length)
        except MemoryError:
            return None

    @cached_property
    def container(self) -> Container:
        """The file as the format layer sees it."""
        return Container(self._fetch, self._length, self._limit)

    def _size(self) -> int | None:
        """Bytes of the file, None where nobody knows."""
        if self._elsewhere is not None:
            return self._elsewhere.length
        return len(self._data) if self._file is None else os.fstat(self._file.fileno()).st_size

    def _place(self) -> memoryview | int | Fetch:
        """Where the decoder in C finds the file."""
        if self._elsewhere is not None:
            return self._elsewhere.fetch
        return self._data if self._file is None else self._file.fileno()

    def _fetch(self, offset: int, length: int) -> bytes:
        self._check_open()
        if self._elsewhere is not None:
            return self._elsewhere.fetch(offset, length)
        if self._file is None:
            return bytes(self._data[offset : offset + length])
        data = _read_at(self._file, offset, length)
        self._check_open()  # else the bytes may be those of a file opened meanwhile
        return data

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"tqcodec: {self._path or 'the file'} is closed, open it again")

    def _by_c(
        self, indices: Iterable[int], act: Callable[[NativeFile], Found | None]
    ) -> Found | None:
        """What the decoder in C makes of some tensors.

        Returns:
            None where the format layer is to be asked: there is no decoder in C, it refuses them,
            they are more than the limit, or the machine has not enough memory for its way.

        Raises:
            ValueError: the file is closed.
        """
        self._check_open()
        decoder, found = self._native, None
        if decoder is not None and sum(decoder.tensors[i].size for i in indices) <= self._most:
            with suppress(MemoryError):
                found = act(decoder)
            self._check_open()  # else the bytes may be those of a file opened meanwhile
        return found

    def metadata(self) -> dict[str, str]:
        """The file's free strings."""
        return dict(self._metadata)

    @contextmanager
    def _holding(self, index: int) -> Iterator[None]:
        """All bytes of a tensor are at hand meanwhile, also where the file is elsewhere.

        So no decoder waits for a network, nor loses its errors.

        Raises:
            OSError: they cannot be had, or a file with an address has changed, which is why they
                cannot be decoded.
        """
        if self._remote is None:
            yield
            return
        self._check_open()
        with self._unchanged(), self._remote.holding(self._spans([index])):
            yield

    def _spans(self, indices: Iterable[int]) -> list[Span]:
        """Where the bytes of some tensors are, and the tables."""
        directory = self.container.directory
        found = [s for i in indices for s in self.container.needed(directory.entries[i])]
        if directory.tables is not None:
            found.append(directory.tables)
        return [(segment.offset, segment.length) for segment in found]

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        try:
            yield
        except DecodeError:
            if self._remote is not None:
                self._remote.check()
            raise

    def __getitem__(self, name: str) -> Array:
        index = self._index[name]
        with self._holding(index):
            found = self._by_c([index], lambda d: self._one(d, index))
            if found is not None:
                return found
            entry = self.container.directory.entries[index]
            return self.container.decode(entry).view(numpy_dtype(entry.dtype))

    def _one(self, decoder: NativeFile, index: int) -> Array | None:
        patterns = decoder.tensor(index, self._together)
        return None if patterns is None else _array(decoder, index, patterns)

    def record(self, entry: Entry) -> CodedTensor:
        """The record of a transform-coded tensor: its transform domain, nothing reconstructed.

        Raises:
            DecodeError: it cannot be decoded.
        """
        index = self._index[entry.name]
        with self._holding(index):
            found = self._by_c([index], lambda decoder: decoder.coefficients(index))
            if found is None:
                return self.container.record(entry)
            record, _ = self.container.head(entry)
            record.coefficients[:] = found.reshape(record.coefficients.shape)
            return record

    def transform(self, name: str) -> TransformTensor:
        """A tensor in the transform domain, nothing reconstructed.

        One that has none, because it is coded exactly or as a vector, comes as what it is, in
        `TransformTensor.values`.

        Raises:
            DecodeError: it cannot be decoded.
            KeyError: there is no such tensor.
        """
        entry = self.container.directory.entries[self._index[name]]
        if entry.same_as is not None:
            entry = self.container.directory.entries[entry.same_as]
        if entry.needs is not None or entry.coding != Coding.TRANSFORM:
            return of_values(self[name])
        domain = reconstruct.domain(self.record(entry), entry.shape)
        return of_domain(domain, numpy_dtype(entry.dtype))

    def decode_all(self) -> dict[str, Array]:
        """All tensors, in the order of the file; errors as of `tqcodec.decode`."""

        def everything(decoder: NativeFile) -> dict[str, Array] | None:
            found = decoder.decode_all(self._workers, self._progress)
            if found is None:
                return None
            pairs = zip(self._index.items(), found, strict=True)
            return {name: _array(decoder, i, patterns) for (name, i), patterns in pairs}

        found = self._by_c(range(len(self)), everything) if self._remote is None else None
        if found is not None:
            return found
        out: dict[str, Array] = {}
        for entry, patterns in self._entries("decode"):
            out[entry.name] = patterns.view(numpy_dtype(entry.dtype))
        return {name: out[name] for name in self}

    def verify(self) -> None:
        """Decode everything and check every checksum; as `tqcodec.verify`."""

        def good(decoder: NativeFile) -> bool:
            return decoder.visit(self._workers, _look_at_nothing, self._progress)

        if self._remote is not None or not self._by_c(range(len(self)), good):
            for _ in self._entries("verify"):
                pass

    def _entries(self, stage: str) -> Iterator[tuple[Entry, NDArray[np.unsignedinteger]]]:
        """All tensors, one after the other."""
        if self._remote is None:
            pairs = self.container.decode_all()
        else:
            pairs = self.container.decode_all(self.arrivals(), self._patterns)
        with self._unchanged():
            for done, pair in enumerate(pairs, 1):
                if self._progress is not None:
                    self._progress(stage, done, len(self))
                yield pair

    def arrivals(self) -> Iterator[Entry]:
        """All tensors in the order of their bytes, each when these are at hand.

        Who reads many tensors of a file with an address reads them in this order: their bytes are
        asked for together, and ahead.

        Raises:
            OSError: they cannot be had.
        """
        if self._remote is None:
            yield from self.container.by_bundle()
            return
        self._check_open()
        groups: list[list[Entry]] = []
        size = TOGETHER
        for entry in self.container.by_bundle():
            if size >= TOGETHER:
                groups.append([])
                size = 0
            groups[-1].append(entry)
            size += sum(segment.length for segment in entry.segments)
        index = self.container.index
        spans = [self._spans([index[entry.name] for entry in group]) for group in groups]
        for group, _ in zip(groups, self._remote.in_turn(spans), strict=True):
            yield from group

    def _patterns(self, entry: Entry) -> NDArray[np.unsignedinteger]:
        """Bit patterns of a tensor whose bytes are at hand."""
        index = self._index[entry.name]
        found = self._by_c([index], lambda decoder: decoder.tensor(index, self._together))
        return found if found is not None else self.container.decode(entry)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        if self._path is None:
            return TensorFile, (bytes(self._data), self._limit)
        remote = None if self._remote is None else self._remote.options
        return _reopened, (self._path, self._limit, remote, self.container.header)

    def close(self) -> None:
        """Close the file; arrays already decoded stay."""
        self._closed = True
        self.__dict__["_native"] = None
        self._data = memoryview(b"")
        if self._remote is not None:
            self._remote.close()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def need_bytes(data: object) -> None:
    """Raise TypeError unless a value is the bytes of a file, as `decode` takes them."""
    need("data", data, BYTES, "the bytes of a file (load takes its path)")


def _array(decoder: NativeFile, index: int, patterns: NDArray[np.unsignedinteger]) -> Array:
    dtype = decoder.tensors[index].dtype
    assert dtype is not None, "of an unknown type nothing is decoded"
    return patterns.view(numpy_dtype(dtype))


def _look_at_nothing(index: int, patterns: NDArray[np.unsignedinteger]) -> None:
    """What a verification makes of tensors that decode."""


def _read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    """Bytes of a file, fewer at its end; no position is shared with other readers of it."""
    if not hasattr(os, "pread"):  # where there is none, processes cannot share an open file either
        with _SEEKING:
            file.seek(offset)
            return _all(file.read, length)
    descriptor, done = file.fileno(), 0

    def more(wanted: int) -> bytes:
        nonlocal done
        part = os.pread(descriptor, wanted, offset + done)
        done += len(part)
        return part

    return _all(more, min(length, max(0, os.fstat(descriptor).st_size - offset)))


def _all(read: Callable[[int], bytes], length: int) -> bytes:
    """As many bytes, where each call may give fewer; fewer only at the end of the file."""
    parts: list[bytes] = []
    while length and (part := read(length)):
        parts.append(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _reopened(path: str, limit: int | None, remote: Remote | None, header: Header) -> TensorFile:
    """An opened file in another process.

    Raises:
        OSError: it is gone, or another file than the one that was opened.
    """
    file = TensorFile(path, limit, remote=remote)
    if file.container.header != header:
        file.close()
        raise OSError(errno.ESTALE, "has been replaced since it was opened", path)
    return file
