"""Writes a file from records (chapter 4): segments, directory, header.

Imports the layers below and the standard library only. Knows nothing of why records are as they
are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tqcodec.errors import EncodeError
from tqcodec.format import payload, records
from tqcodec.format import reader as io
from tqcodec.format.container import block_lengths
from tqcodec.format.directory import values_allowed, write_directory
from tqcodec.format.dtypes import DType
from tqcodec.format.entries import Directory, Entry, Segment
from tqcodec.format.header import Header, inflatable, write_header
from tqcodec.format.planes import Part, write_block
from tqcodec.format.records import CodedTensor
from tqcodec.format.registry import MAX_DIRECTORY, Coding
from tqcodec.format.tables import Tables, write_tables


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
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    check: int
    content: CodedTensor | Part | Bundled | Raw | Tied
    snr: int | None = None


def write(items: Iterable[Record], tables: Tables, metadata: Mapping[str, str]) -> bytes:
    """A whole file.

    Args:
        items: tensors in their order; taken one at a time, so that they may be made on demand.
        tables: the tables that records refer to.
        metadata: free strings.
    """
    entries: list[Entry] = []
    bodies: list[bytes] = []
    bundles: dict[int, list[Part]] = {}
    index: dict[str, int] = {}
    for item in items:
        segments = _segments(item.content, tables)
        bodies += segments
        entries.append(_entry(item, [_describe(s) for s in segments], index))
        index[item.name] = len(index)
        if isinstance(item.content, Bundled):
            bundles.setdefault(item.content.bundle, []).append(item.content.part)
    blocks = [write_block(bundles[i], tables) for i in range(len(bundles))]
    plain = write_tables(tables)
    deflated = io.deflate(plain)
    smaller = len(deflated) < len(plain)
    first = [deflated if smaller else plain] if tables else []
    directory = Directory(
        tuple(entries),
        tuple(_describe(b) for b in blocks),
        _describe(first[0]) if first else None,
        len(plain) if smaller else 0,
        metadata,
    )
    return _file(directory, [*first, *blocks, *bodies])


def _describe(data: bytes) -> Segment:
    return Segment(len(data), zlib.crc32(data))


def _entry(item: Record, segments: list[Segment], index: Mapping[str, int]) -> Entry:
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
        same_as=index[content.name] if isinstance(content, Tied) else None,
        snr=item.snr,
    )


def _segments(content: CodedTensor | Part | Bundled | Raw | Tied, tables: Tables) -> list[bytes]:
    if isinstance(content, CodedTensor):
        # The head and the first payload share a segment: small tensors have just one.
        head = records.write_head(content, tables)
        tiles = [payload.write_payload(content, r, c, tables) for r, c in content.tiles()]
        return [head + tiles[0], *tiles[1:]] if tiles else [head]
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


def _file(directory: Directory, segments: Sequence[bytes]) -> bytes:
    plain, values = write_directory(directory)
    if len(plain) > MAX_DIRECTORY:
        raise EncodeError(
            f"names, shapes and metadata take {len(plain)} bytes, the format holds {MAX_DIRECTORY}"
        )
    deflated = io.deflate(plain)
    # Where a directory deflates so well that a decoder would refuse it, it is stored as it is.
    smaller = len(deflated) < len(plain) <= inflatable(len(deflated))
    smaller = smaller and values <= values_allowed(len(deflated))
    stored = deflated if smaller else plain
    header = Header(smaller, len(stored), len(plain), zlib.crc32(stored))
    return b"".join([write_header(header), stored, *segments])
