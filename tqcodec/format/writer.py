"""Writes a file from records (chapter 4): segments, directory, header.

What is written obeys the rules that it is read by, because the reader is asked: tables before
anything is coded by them, all else before the file is handed out. Only the coefficients are not
decoded again; the rules that they can break are those of `payload` and `stream`, asked for while
they are written. Imports the layers below and the standard library only. Knows nothing of why
records are as they are.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tqcodec.errors import DecodeError, InternalError
from tqcodec.format import payload, records
from tqcodec.format import reader as io
from tqcodec.format.container import EVERYTHING, Container, block_lengths
from tqcodec.format.directory import check_bundles, values_allowed, write_directory
from tqcodec.format.dtypes import DType
from tqcodec.format.entries import Directory, Entry, Segment
from tqcodec.format.header import Header, inflatable, write_header
from tqcodec.format.planes import Part, write_block, write_part
from tqcodec.format.reader import Reader
from tqcodec.format.records import CodedTensor
from tqcodec.format.registry import Coding
from tqcodec.format.tables import Tables, read_tables, write_tables


@dataclass(frozen=True)
class Raw:
    """Bytes as they are."""

    data: bytes


@dataclass(frozen=True)
class Tied:
    """The bytes of an earlier tensor."""

    name: str


@dataclass(frozen=True, eq=False)
class Bundled:
    """A part of bundle `bundle`."""

    bundle: int
    part: Part


@dataclass(frozen=True, eq=False)
class Record:
    """One tensor, ready to be written.

    Attributes:
        name: unique in the file.
        dtype: element type.
        shape: dimensions.
        check: CRC-32 of the decoded bytes.
        content: `CodedTensor` for the transform, `Part` for planes, or one of the above.
        snr: hundredths of a decibel, for the directory.
        kind: why the tensor is coded as it is, for the directory.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    check: int
    content: CodedTensor | Part | Bundled | Raw | Tied
    snr: int | None = None
    kind: int | None = None


class Layout:
    """A file that has been laid down; its bytes are to be had when the reader has been asked.

    Attributes:
        size: its bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def finish(self, decode: Callable[[bytes], None] | None = None) -> bytes:
        """The file, after it has been read.

        Args:
            decode: decodes the whole file, raising a DecodeError or an error of its own: for
                callers that do so anyway. What it decodes is not decoded here as well.

        Raises:
            InternalError: a record, part or directory that breaks a rule.
        """
        with _as_internal_error():
            _read_again(self._data, with_parts=decode is None)
            if decode is not None:
                decode(self._data)
        return self._data


def write(
    items: Iterable[Record], tables: Tables, metadata: Mapping[str, str], provenance: str = ""
) -> bytes:
    """A whole file; arguments as of `lay_out`.

    Raises:
        InternalError: a record, table, part or directory that breaks a rule.
    """
    return lay_out(items, tables, metadata, provenance).finish()


def lay_out(
    items: Iterable[Record], tables: Tables, metadata: Mapping[str, str], provenance: str = ""
) -> Layout:
    """A whole file, of which only the size is known: for encoders that make several.

    Args:
        items: tensors in their order; taken one at a time, so that they may be made on demand.
        tables: the tables that records refer to.
        metadata: free strings.
        provenance: who made the file and how; nothing is written for an empty string.

    Raises:
        InternalError: tables that break a rule, or what cannot be laid down at all.
    """
    with _as_internal_error():
        plain = write_tables(tables)
        read_tables(Reader(plain))
    entries: list[Entry] = []
    bodies: list[bytes] = []
    bundles: dict[int, list[Part]] = {}
    index: dict[str, int] = {}
    for item in items:
        with _as_internal_error(item.name):
            segments = _segments(item, tables)
            bodies += segments
            twin = _twin(item, entries, index)
            entries.append(_entry(item, [_describe(s) for s in segments], twin))
        index[item.name] = len(index)
        if isinstance(item.content, Bundled):
            bundles.setdefault(item.content.bundle, []).append(item.content.part)
    with _as_internal_error():
        count = 1 + max(bundles, default=-1)
        check_bundles(bundles, count, io.check)
        blocks = [write_block(bundles[i], tables) for i in range(count)]
    deflated = io.deflate(plain)
    smaller = len(deflated) < len(plain)
    first = [deflated if smaller else plain] if tables else []
    directory = Directory(
        tuple(entries),
        tuple(_describe(b) for b in blocks),
        _describe(first[0]) if first else None,
        len(plain) if smaller else 0,
        metadata,
        provenance,
    )
    with _as_internal_error():
        return Layout(b"".join([front(directory), *first, *blocks, *bodies]))


@contextmanager
def _as_internal_error(tensor: str | None = None) -> Iterator[None]:
    """What the reader refuses is a fault of who made the records."""
    try:
        yield
    except DecodeError as error:
        name = error.tensor if error.tensor is not None else tensor
        raise InternalError(error.rule, error.message, name) from error


def _read_again(data: bytes, with_parts: bool) -> None:
    """Read a file, but for coefficients, and for the numbers of other tensors if not `with_parts`.

    Raises:
        DecodeError: as of a decoder.
    """
    container = Container.of(data, EVERYTHING)  # the limit is the user's, not the format's
    for entry in container.by_bundle():
        if entry.same_as is not None:
            continue
        if entry.coding == Coding.TRANSFORM:
            container.head(entry)
        elif with_parts:
            container.decode(entry)


def _describe(data: bytes) -> Segment:
    return Segment(len(data), zlib.crc32(data))


def _entry(item: Record, segments: list[Segment], twin: int | None) -> Entry:
    content = item.content
    coding = Coding.PLANES
    if isinstance(content, CodedTensor):
        coding = Coding.TRANSFORM
    elif isinstance(content, Raw):
        coding = Coding.RAW
    return Entry(
        name=item.name,
        dtype=item.dtype,
        shape=item.shape,
        coding=coding,
        check=item.check,
        segments=tuple(segments),
        bundle=content.bundle if isinstance(content, Bundled) else None,
        same_as=twin,
        snr=item.snr,
        kind=item.kind,
    )


def _twin(item: Record, earlier: Sequence[Entry], index: Mapping[str, int]) -> int | None:
    """Index of the tensor that one is tied to, None for one that has bytes of its own."""
    if not isinstance(item.content, Tied):
        return None
    name = item.content.name
    io.check(name in index, "directory.range", f"tied to {name!r}, not before it")
    twin = earlier[index[name]]
    alike = (twin.dtype, twin.shape) == (item.dtype, item.shape)
    io.check(alike, "directory.same_as", f"tied to {name!r} of another type or shape")
    return index[name]


def _segments(item: Record, tables: Tables) -> list[bytes]:
    content = item.content
    if isinstance(content, CodedTensor):
        # The head and the first payload share a segment: small tensors have just one.
        head = records.write_head(content, item.shape, tables)
        tiles = [payload.write_payload(content, r, c, tables) for r, c in content.tiles()]
        return [head + tiles[0], *tiles[1:]] if tiles else [head]
    if isinstance(content, Part | Bundled):
        part = content.part if isinstance(content, Bundled) else content
        io.check_length(len(part.patterns), math.prod(item.shape), "elements")
        write_part(part, tables)  # so that the error has the tensor's name
    if isinstance(content, Part):
        blocks, start = [], 0
        for count in block_lengths(len(content.patterns)):
            piece = content.piece(start, start + count)
            blocks.append(write_block([piece], tables))
            start += count
        return blocks
    if isinstance(content, Raw):
        return [content.data] if content.data else []
    return []


def front(directory: Directory) -> bytes:
    """Header and directory: what comes before the segments.

    Raises:
        MalformedError: a directory that cannot be written.
    """
    plain, values = write_directory(directory)
    deflated = io.deflate(plain)
    # Where a directory deflates so well that a decoder would refuse it, it is stored as it is.
    smaller = len(deflated) < len(plain) <= inflatable(len(deflated))
    smaller = smaller and values <= values_allowed(len(deflated))
    stored = deflated if smaller else plain
    header = Header(smaller, len(stored), len(plain), zlib.crc32(stored))
    return write_header(header) + stored
