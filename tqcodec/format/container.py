"""The file: signature, header, directory, segments (chapter 4); and tensors out of it.

Imports the layers below and the standard library only.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqcodec.errors import DecodeError, LimitError, MalformedError, UnsupportedError
from tqcodec.format import payload, planes, records
from tqcodec.format import reader as io
from tqcodec.format.directory import Entry, Segment, read_directory
from tqcodec.format.reader import Reader
from tqcodec.format.reconstruct import reconstruct
from tqcodec.format.registry import (
    FLAG_DEFLATED,
    HEADER_SIZE,
    MAJOR,
    MAX_DIRECTORY,
    MAX_INFLATION,
    MAX_SYMBOLS,
    MINOR,
    SIGNATURE,
    Coding,
)
from tqcodec.format.tables import Tables, read_tables

Fetch = Callable[[int, int], bytes]  # (offset, length) -> that many bytes, or fewer at the end


@dataclass(frozen=True)
class Header:
    """The first 28 bytes.

    Attributes:
        deflated: True if the directory is deflated.
        stored: bytes of the directory in the file.
        size: bytes of the directory, inflated.
        crc: CRC-32 of the stored directory.
    """

    deflated: bool
    stored: int
    size: int
    crc: int


def write_header(header: Header) -> bytes:
    """The element `header`."""
    fields = SIGNATURE + bytes([MAJOR, MINOR])
    fields += (FLAG_DEFLATED if header.deflated else 0).to_bytes(2, "little")
    for value in (header.stored, header.size, header.crc):
        fields += value.to_bytes(4, "little")
    return fields + zlib.crc32(fields).to_bytes(4, "little")


def read_header(data: bytes) -> Header:
    """Inverse of `write_header`."""
    reader = Reader(data)
    signature = bytes(data[: len(SIGNATURE)])
    if signature != SIGNATURE:
        text_mode = signature[:4] == SIGNATURE[:4]
        hint = "damaged by a text-mode transfer" if text_mode else "not a .tqc file"
        reader.fail("header.signature", hint)
    fields = reader.take(HEADER_SIZE - 4)
    crc_ok = reader.fixed(4) == zlib.crc32(fields)
    reader.check(crc_ok, "header.crc", "damaged header")
    reader = Reader(fields[len(SIGNATURE) :], len(SIGNATURE))
    major, minor = reader.u8(), reader.u8()
    if major != MAJOR or (minor != MINOR if MAJOR == 0 else minor > MINOR):
        raise UnsupportedError(
            "header.version", f"format {major}.{minor}, this decoder knows {MAJOR}.{MINOR}", 8
        )
    flags = reader.fixed(2)
    if flags & ~FLAG_DEFLATED:
        raise UnsupportedError("header.flags", f"unknown flags {flags:#06x}", 10)
    stored, size, crc = (reader.fixed(4) for _ in range(3))
    reader.check(size <= MAX_DIRECTORY, "directory.size", f"directory of {size} bytes")
    deflated = bool(flags & FLAG_DEFLATED)
    fits = stored < size <= inflatable(stored) if deflated else stored == size
    reader.check(fits, "directory.stored", f"{stored} bytes stored for {size}")
    return Header(deflated, stored, size, crc)


def inflatable(stored: int) -> int:
    """Largest directory that so many deflated bytes may hold."""
    return (1 << 16) + MAX_INFLATION * stored


class Container:
    """A file whose tensors are decoded one at a time.

    Args:
        fetch: gives bytes of the file by (offset, length).
        length: bytes of the whole file.
        limit: largest number of decoded bytes; None for 32 MiB plus 1000 times the file's length.

    Raises:
        DecodeError: the header or the directory cannot be decoded, or promises too much.
    """

    def __init__(self, fetch: Fetch, length: int, limit: int | None = None) -> None:
        self._fetch = fetch
        self.length = length
        self.limit = limit if limit is not None else (32 << 20) + 1000 * length
        header = read_header(fetch(0, HEADER_SIZE))
        stored = fetch(HEADER_SIZE, header.stored)
        self.directory_size = len(stored)
        reader = Reader(stored, HEADER_SIZE)
        plain = bytes(reader.take(header.stored))
        reader.check(zlib.crc32(plain) == header.crc, "directory.crc", "damaged directory")
        if header.deflated:
            plain = io.inflate(plain, header.size, reader)
        start = HEADER_SIZE + header.stored
        self.directory = read_directory(plain, start, Reader(b"", HEADER_SIZE))
        end = start + sum(s.length for s in self.directory.segments())
        if end != length:
            raise MalformedError("container.length", f"{length} bytes, not {end}", min(end, length))
        self.index = {entry.name: i for i, entry in enumerate(self.directory.entries)}
        self._tables: Tables | None = None
        self._bundles: dict[int, dict[str, NDArray[np.unsignedinteger]]] = {}
        self._members: dict[int, list[Entry]] = {}
        for entry in self.directory.entries:
            if entry.bundle is not None:
                self._members.setdefault(entry.bundle, []).append(entry)

    def segment(self, segment: Segment, tensor: str | None = None) -> Reader:
        """A cursor over a segment whose CRC has been checked."""
        data = self._fetch(segment.offset, segment.length)
        reader = Reader(data, segment.offset, tensor)
        good = len(data) == segment.length and zlib.crc32(data) == segment.crc
        reader.check(good, "segment.crc", "damaged segment")
        return reader

    @property
    def tables(self) -> Tables:
        """The tables of the file."""
        if self._tables is None:
            segment = self.directory.tables
            if segment is None:
                self._tables = Tables(())
            else:
                reader = self.segment(segment)
                if self.directory.tables_size:
                    data = reader.take(reader.remaining)
                    plain = io.inflate(data, self.directory.tables_size, reader)
                    reader = Reader(plain, segment.offset)
                tables = read_tables(reader)
                reader.end()
                self._tables = tables
        return self._tables

    def check_limit(self, entries: Sequence[Entry]) -> None:
        """Raise LimitError if these tensors together exceed the limit."""
        total = sum(entry.size for entry in entries)
        if total > self.limit:
            name = max(entries, key=lambda e: e.size).name
            raise LimitError(
                "limit.decoded", f"{total} bytes decoded, limit is {self.limit}", None, name
            )

    def decode(self, entry: Entry) -> NDArray[np.unsignedinteger]:
        """Bit patterns of one tensor, of its shape, little-endian; its check is verified."""
        if entry.same_as is not None:
            return self.decode(self.directory.entries[entry.same_as])
        self.check_limit([entry])
        try:
            patterns = self._decode(entry)
        except DecodeError as error:
            raise _named(error, entry.name) from None
        if entry.dtype.name == "BOOL" and patterns.size and patterns.max() > 1:
            raise MalformedError("tensor.bool", "a truth value above 1", None, entry.name)
        if zlib.crc32(np.ascontiguousarray(patterns).reshape(-1).view(np.uint8)) != entry.check:
            raise MalformedError("tensor.check", "decoded bytes differ", None, entry.name)
        return patterns

    def _decode(self, entry: Entry) -> NDArray[np.unsignedinteger]:
        if entry.coding == Coding.RAW:
            return self._decode_raw(entry)
        if entry.coding == Coding.TRANSFORM:
            reader = Reader(b"", entry.segments[0].offset if entry.segments else 0, entry.name)
            return reconstruct(self.record(entry), entry.shape, entry.dtype, reader)
        if entry.bundle is not None:
            # A copy: what the caller does to one tensor must not reach the others.
            return self._bundle(entry.bundle)[entry.name].reshape(entry.shape).copy()
        return self._decode_planes(entry)

    def _decode_raw(self, entry: Entry) -> NDArray[np.unsignedinteger]:
        total = sum(segment.length for segment in entry.segments)
        Reader(b"", 0, entry.name).check(
            total == entry.size, "raw.length", f"{total} bytes, not {entry.size}"
        )
        out = np.empty(entry.elements, entry.dtype.pattern)
        view, position = out.view(np.uint8), 0
        for segment in entry.segments:
            reader = self.segment(segment, entry.name)
            view[position : position + segment.length] = reader.take(segment.length)
            position += segment.length
        return out.reshape(entry.shape)

    def _decode_planes(self, entry: Entry) -> NDArray[np.unsignedinteger]:
        self._check_count(entry, -(-entry.elements // MAX_SYMBOLS))
        out = np.empty(entry.elements, entry.dtype.pattern)
        counts = block_lengths(entry.elements)
        position = 0
        for segment, count in zip(entry.segments, counts, strict=True):
            reader = self.segment(segment, entry.name)
            (part,) = planes.read_block(reader, [(entry.dtype, count)], self.tables)
            out[position : position + count] = part.patterns
            position += count
        return out.reshape(entry.shape)

    def _bundle(self, index: int) -> Mapping[str, NDArray[np.unsignedinteger]]:
        if index not in self._bundles:
            members = self._members[index]
            reader = self.segment(self.directory.bundles[index])
            total = sum(e.elements for e in members)
            reader.check(total <= MAX_SYMBOLS, "bundle.size", f"{total} numbers in one bundle")
            shapes = [(e.dtype, e.elements) for e in members]
            parts = planes.read_block(reader, shapes, self.tables)
            pairs = zip(members, parts, strict=True)
            self._bundles[index] = {e.name: p.patterns for e, p in pairs}
        return self._bundles[index]

    def record(self, entry: Entry) -> records.CodedTensor:
        """The record of a transform-coded tensor: its transform domain, nothing reconstructed."""
        self.check_limit([entry])
        Reader(b"", 0, entry.name).check(
            len(entry.segments) > 0, "tensor.segments", "no segment for the head"
        )
        reader = self.segment(entry.segments[0], entry.name)
        coded = records.read_head(reader, entry.shape, self.tables)
        height, width = coded.coefficients.shape
        count = records.tile_count(height, width, coded.tile)
        self._check_count(entry, max(1, count))
        tiles = coded.tiles()
        for i, (rows, columns) in enumerate(tiles):
            if i:
                reader = self.segment(entry.segments[i], entry.name)
            payload.read_payload(reader, coded, rows, columns, self.tables)
        if not tiles:
            reader.end()
        return coded

    def _check_count(self, entry: Entry, count: int) -> None:
        if len(entry.segments) != count:
            raise MalformedError(
                "tensor.segments", f"{len(entry.segments)} segments, not {count}", None, entry.name
            )


def block_lengths(elements: int) -> list[int]:
    """Elements of each block of a tensor coded in planes: all full but the last."""
    return [min(MAX_SYMBOLS, elements - i) for i in range(0, elements, MAX_SYMBOLS)]


def _named(error: DecodeError, tensor: str) -> DecodeError:
    name = error.tensor if error.tensor is not None else tensor
    return type(error)(error.rule, error.message, error.offset, name)
