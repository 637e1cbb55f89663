"""Tensors of a file while its bytes come in, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO, Literal, overload

from tqcodec.arrays import Array
from tqcodec.common import streams, urls
from tqcodec.common.arriving import BYTES, Arriving
from tqcodec.common.checks import DOMAINS, Domain, PathLike, need, need_options, path_of
from tqcodec.errors import MalformedError, UnsupportedError
from tqcodec.format.container import Container
from tqcodec.format.entries import Entry, Segment
from tqcodec.format.header import read_header
from tqcodec.format.registry import HEADER_SIZE
from tqcodec.reading.file import TensorFile
from tqcodec.reading.remote.options import Remote
from tqcodec.reading.transform_tensor import TransformTensor

Source = PathLike | bytes | BinaryIO | Iterable[bytes]
Found = Array | TransformTensor


@overload
def stream(
    source: Source,
    domain: Literal["weights"] = ...,
    *,
    limit: int | None = ...,
    remote: Remote | None = ...,
) -> Iterator[tuple[str, Array]]: ...
@overload
def stream(
    source: Source,
    domain: Literal["transform"],
    *,
    limit: int | None = ...,
    remote: Remote | None = ...,
) -> Iterator[tuple[str, TransformTensor]]: ...
def stream(
    source: Source,
    domain: Domain = "weights",
    *,
    limit: int | None = None,
    remote: Remote | None = None,
) -> Iterator[tuple[str, Any]]:
    """Name and tensor of each tensor of a file, as soon as its bytes are there.

    They come in the order of their bytes: those that share bundles first, tied ones behind the one
    that they are tied to. What is held is the directory, the tables of the file, and one tensor
    with its bytes, or one bundle with its bytes; not what the caller keeps. Every checksum of a
    tensor is checked before it is given; when the iteration ends without an error, the whole file
    is good.

    Args:
        source: path of a file or a pipe, an address (one request, repeated from where it breaks
            off), an open file or anything with a method `read` that gives
            bytes (a pipe, a socket's file, the response of `urllib.request.urlopen`), the bytes of
            a file, or an iterable of bytes cut anywhere. What is given open stays open.
        domain: "weights" for arrays, "transform" for `TransformTensor`.
        limit: largest number of decoded bytes; None for 32 MiB plus 1000 times the file's length,
            of which 4 MiB are believed where only its directory says it.
        remote: how a file with an address is read; None for `Remote()`.

    Raises:
        DecodeError: at the first fault, which may be that the source ends too early; tensors that
            are unsupported are left out, and said at the end.
        OSError: the source cannot be read.
        TypeError: an argument of another type, or a source that gives something else than bytes.
    """
    need_options(limit, 1, None)
    if domain not in DOMAINS:
        raise ValueError(f"tqcodec: domain is {domain!r}, not 'weights' or 'transform'")
    if not isinstance(source, (str, os.PathLike, *BYTES)) and not hasattr(source, "read"):
        need("source", source, Iterable, "a path, an open file, or bytes")
    need("remote", remote, (Remote, NoneType), "tqcodec.Remote")
    return _tensors(source, domain, limit, remote if remote is not None else Remote())


def _tensors(
    source: Source, domain: Domain, limit: int | None, remote: Remote
) -> Iterator[tuple[str, Found]]:
    if isinstance(source, BYTES):
        data = memoryview(source).cast("B")
        yield from Stream(Arriving([data], len(data)), limit).tensors(domain)
        return
    if not isinstance(source, str | os.PathLike):
        yield from Stream(Arriving(source), limit).tensors(domain)
        return
    path = path_of(source)
    if urls.is_url(path):
        from tqcodec.reading.remote.file import arriving

        with arriving(path, remote) as coming:
            yield from Stream(coming, limit).tensors(domain)
        return
    source = urls.local(path)
    with streams.naming(source):
        file = Path(source).open("rb", buffering=0)  # noqa: SIM115 - closed below
    with file:
        length = os.fstat(file.fileno()).st_size if streams.is_file(file) else None
        yield from Stream(Arriving(file, length), limit).tensors(domain)


class Stream:
    """A file that is arriving, its directory read.

    Attributes:
        file: the file; a tensor can be asked for while its bytes are there.

    Raises:
        DecodeError: header, directory or tables cannot be decoded, or promise more than the limit.
    """

    def __init__(self, arriving: Arriving, limit: int | None) -> None:
        self._arriving = arriving
        arriving.hold(0, HEADER_SIZE)
        header = read_header(arriving.fetch(0, HEADER_SIZE))
        arriving.hold(0, HEADER_SIZE + header.stored)
        directory = Container(arriving.fetch, arriving.length, limit).directory
        if directory.tables is not None:
            arriving.hold(0, _end(directory.tables))
        arriving.keep()
        self.file = TensorFile(arriving, limit)

    def tensors(self, domain: Domain) -> Iterator[tuple[str, Found]]:
        """As `stream`."""
        container = self.file.container
        entries = container.directory.entries
        container.check_limit(entries)
        _ = container.tables  # checked even where no tensor uses them
        tied: dict[int, list[str]] = {}
        for entry in entries:
            if entry.same_as is not None:
                tied.setdefault(entry.same_as, []).append(entry.name)
        pending: UnsupportedError | None = None
        for entry in self._arrivals():
            try:
                found: Found = self._decoded(entry, domain)
            except UnsupportedError as error:
                pending = pending or error
                continue
            yield entry.name, found
            for name in tied.get(container.index[entry.name], ()):
                yield name, found.copy() if not isinstance(found, TransformTensor) else found
            del found  # before the next one is decoded
        end = container.length
        if self._arriving.hold(end, end + 1):
            raise MalformedError("container.length", "bytes behind the last segment", end)
        if pending is not None:
            raise pending

    def _decoded(self, entry: Entry, domain: Domain) -> Found:
        return self.file[entry.name] if domain == "weights" else self.file.transform(entry.name)

    def _arrivals(self) -> Iterator[Entry]:
        """All tensors but tied ones, in the order of their bytes, which are held meanwhile."""
        container = self.file.container
        for members, bundle in zip(container.members, container.directory.bundles, strict=True):
            self._arriving.hold(bundle.offset, _end(bundle))
            yield from (entry for entry in members if entry.same_as is None)
        for entry in container.directory.entries:
            if entry.same_as is None and entry.bundle is None:
                if entry.segments:
                    self._arriving.hold(entry.segments[0].offset, _end(entry.segments[-1]))
                yield entry


def _end(segment: Segment) -> int:
    return segment.offset + segment.length
