"""The file: header, directory, segments (chapter 4); and tensors out of it.

Imports the layers below and the standard library only.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tqcodec.errors import DecodeError, LimitError, MalformedError, UnsupportedError
from tqcodec.format import payload, planes, records
from tqcodec.format import reader as io
from tqcodec.format.directory import read_directory
from tqcodec.format.entries import Entry, Segment, crc
from tqcodec.format.header import read_header
from tqcodec.format.reader import Reader
from tqcodec.format.reconstruct import check_bound, reconstruct
from tqcodec.format.registry import HEADER_SIZE, MAX_SYMBOLS, Coding
from tqcodec.format.tables import Tables, read_tables

EVERYTHING: Final = 1 << 63  # a limit of decoded bytes that is none
FREE_BYTES: Final = 32 << 20  # decoded, of any file
BYTES_PER_BYTE: Final = 1000  # decoded, for each byte of the file
TRUSTED: Final = 1 << 22  # bytes that a directory may claim to come, where nobody knows the length

Decode = Callable[[Entry], NDArray[np.unsignedinteger]]
Fetch = Callable[[int, int], bytes]  # (offset, length) -> that many bytes, or fewer at the end


class Container:
    """A file whose tensors are decoded one at a time.

    Args:
        fetch: gives bytes of the file by (offset, length).
        length: bytes of the whole file; None where they are not known yet, and the directory is
            believed.
        limit: largest number of decoded bytes; None for 32 MiB plus 1000 times the file's length,
            of which no more than 4 MiB are believed.

    Attributes:
        header: the header.
        directory: the directory.
        directory_size: its bytes in the file.
        start: offset of what follows it.
        index: place of each tensor among the directory's entries, by name.
        members: tensors of each bundle, in their order.

    Raises:
        DecodeError: the header or the directory cannot be decoded, or promises too much.
    """

    def __init__(self, fetch: Fetch, length: int | None, limit: int | None = None) -> None:
        self._fetch = fetch
        self.header = header = read_header(fetch(0, HEADER_SIZE))
        stored = fetch(HEADER_SIZE, header.stored)
        self.directory_size = len(stored)
        reader = Reader(stored, HEADER_SIZE)
        plain = bytes(reader.take(header.stored))
        reader.check(zlib.crc32(plain) == header.crc, "directory.crc", "damaged directory")
        if header.deflated:
            plain = io.inflate(plain, header.size, reader)
        self.start = start = HEADER_SIZE + header.stored
        self.directory = read_directory(plain, header.stored, start, Reader(b"", HEADER_SIZE))
        end = start + sum(s.length for s in self.directory.segments())
        if length is not None and length != end:
            raise MalformedError("container.length", f"{length} bytes, not {end}", min(end, length))
        self.length = end
        self.limit = limit_of(limit, length, end)
        self.index = {entry.name: i for i, entry in enumerate(self.directory.entries)}
        self._tables: Tables | None = None
        # The last bundle read, by its index: patterns by name.
        self._bundle: tuple[int, dict[str, NDArray[np.unsignedinteger]]] = (-1, {})
        self.members: list[list[Entry]] = [[] for _ in self.directory.bundles]
        for entry in self.directory.entries:
            if entry.bundle is not None:
                self.members[entry.bundle].append(entry)

    @staticmethod
    def of(data: bytes | memoryview, limit: int | None = None) -> Container:
        """A file in memory."""
        return Container(lambda offset, n: bytes(data[offset : offset + n]), len(data), limit)

    def segment(self, segment: Segment, tensor: str | None = None) -> Reader:
        """A cursor over a segment whose CRC has been checked."""
        data = self._fetch(segment.offset, segment.length)
        if len(data) < segment.length:  # of a source whose length was not known before
            end = segment.offset + len(data)
            raise MalformedError("container.length", f"{end} bytes, not {self.length}", end, tensor)
        reader = Reader(data, segment.offset, tensor)
        reader.check(zlib.crc32(data) == segment.crc, "segment.crc", "damaged segment")
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

    def needed(self, entry: Entry) -> Sequence[Segment]:
        """The segments that a tensor is decoded from; the tables come on top of them."""
        if entry.same_as is not None:
            return self.needed(self.directory.entries[entry.same_as])
        return entry.segments if entry.bundle is None else [self.directory.bundles[entry.bundle]]

    def check_limit(self, entries: Sequence[Entry]) -> None:
        """Raise LimitError if these tensors together exceed the limit."""
        total = sum(entry.size for entry in entries)
        if total > self.limit:
            name = max(entries, key=lambda e: e.size).name
            raise LimitError(
                "limit.decoded", f"{total} bytes decoded, limit is {self.limit}", None, name
            )

    def by_bundle(self) -> list[Entry]:
        """All tensors in an order that reads each bundle once: tied ones are with their twins."""

        def bundle(entry: Entry) -> int:
            twin = entry if entry.same_as is None else self.directory.entries[entry.same_as]
            return -1 if twin.bundle is None else twin.bundle

        return sorted(self.directory.entries, key=bundle)

    def decode_all(
        self, entries: Iterable[Entry] | None = None, decode: Decode | None = None
    ) -> Iterator[tuple[Entry, NDArray[np.unsignedinteger]]]:
        """All tensors; every segment is checked.

        What is unsupported stops nothing but its own tensor: the error comes at the end, unless
        another part of the file is malformed (12.1).

        Args:
            entries: in the order in which they are decoded; None for that of `by_bundle`.
            decode: decodes one; None for `decode`.
        """
        self.check_limit(self.directory.entries)
        _ = self.tables  # checked even where no tensor uses them
        pending: UnsupportedError | None = None
        for entry in entries if entries is not None else self.by_bundle():
            try:
                patterns = (decode or self.decode)(entry)
            except UnsupportedError as error:
                pending = pending or error
            else:
                yield entry, patterns
        if pending is not None:
            raise pending

    def decode(self, entry: Entry) -> NDArray[np.unsignedinteger]:
        """Bit patterns of one tensor, of its shape, little-endian; its check is verified."""
        if entry.same_as is not None:
            return self.decode(self.directory.entries[entry.same_as])
        self.check_limit([entry])
        try:
            patterns = self._decode(entry)
        except UnsupportedError as error:
            for segment in entry.segments:
                self.segment(segment, entry.name)
            raise _named(error, entry.name) from None
        except DecodeError as error:
            raise _named(error, entry.name) from None
        if entry.dtype.name == "BOOL" and patterns.size and patterns.max() > 1:
            raise MalformedError("tensor.bool", "a truth value above 1", None, entry.name)
        if crc(patterns) != entry.check:
            raise MalformedError("tensor.check", "decoded bytes differ", None, entry.name)
        return patterns

    def check_supported(self, entry: Entry) -> None:
        """Raise UnsupportedError if the tensor, or one of its bundle, needs a newer decoder."""
        for other in [entry] if entry.bundle is None else self.members[entry.bundle]:
            if other.needs is None:
                continue
            if entry.bundle is not None:
                self.segment(self.directory.bundles[entry.bundle])
            raise UnsupportedError(other.needs.rule, other.needs.message, None, other.name)

    def _decode(self, entry: Entry) -> NDArray[np.unsignedinteger]:
        if entry.coding == Coding.TRANSFORM:
            return reconstruct(self.record(entry), entry.shape, entry.dtype)
        self.check_supported(entry)
        if entry.coding == Coding.RAW:
            return self._decode_raw(entry)
        if entry.bundle is not None:
            # A copy: what the caller does to one tensor must not reach the others.
            return self._bundled(entry.bundle)[entry.name].reshape(entry.shape).copy()
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

    def _bundled(self, index: int) -> Mapping[str, NDArray[np.unsignedinteger]]:
        """Patterns of all tensors of a bundle; only the last bundle is kept."""
        bundle = self._bundle  # another thread may put another one there
        if bundle[0] != index:
            pairs = zip(self.members[index], self.bundle_parts(index), strict=True)
            bundle = (index, {entry.name: part.patterns for entry, part in pairs})
            self._bundle = bundle
        return bundle[1]

    def bundle_parts(self, index: int) -> list[planes.Part]:
        """Parts of a bundle, one for each of its `members`."""
        reader = self.segment(self.directory.bundles[index])
        members = self.members[index]
        total = sum(e.elements for e in members)
        reader.check(total <= MAX_SYMBOLS, "bundle.size", f"{total} numbers in one bundle")
        return planes.read_block(reader, [(e.dtype, e.elements) for e in members], self.tables)

    def record(self, entry: Entry) -> records.CodedTensor:
        """The record of a transform-coded tensor: its transform domain, nothing reconstructed."""
        coded, reader = self.head(entry)
        tiles = coded.tiles()
        for i, (rows, columns) in enumerate(tiles):
            if i:
                reader = self.segment(entry.segments[i], entry.name)
            payload.read_payload(reader, coded, rows, columns, self.tables)
        if not tiles:
            reader.end()
        return coded

    def head(self, entry: Entry) -> tuple[records.CodedTensor, Reader]:
        """The record of a transform-coded tensor without payloads, and a cursor behind its head.

        All coefficients are zero.
        """
        self.check_supported(entry)
        self.check_limit([entry])
        Reader(b"", 0, entry.name).check(
            len(entry.segments) > 0, "tensor.segments", "no segment for the head"
        )
        reader = self.segment(entry.segments[0], entry.name)
        stored = sum(segment.length for segment in entry.segments)
        coded = records.read_head(reader, entry.shape, stored, self.tables)
        check_bound(coded, entry.shape, reader.check)
        height, width = coded.coefficients.shape
        count = records.tile_count(height, width, coded.tile)
        self._check_count(entry, max(1, count))
        return coded, reader

    def _check_count(self, entry: Entry, count: int) -> None:
        if len(entry.segments) != count:
            raise MalformedError(
                "tensor.segments", f"{len(entry.segments)} segments, not {count}", None, entry.name
            )


def default_limit(length: int) -> int:
    """Decoded bytes that a file of so many bytes may take where the caller does not say (12.1)."""
    return FREE_BYTES + BYTES_PER_BYTE * length


def limit_of(limit: int | None, length: int | None, claimed: int) -> int:
    """Decoded bytes that a file may take.

    Args:
        limit: what the caller says; None for `default_limit`.
        length: bytes of the file; None where they are not known.
        claimed: what its directory says that they are.
    """
    if limit is not None:
        return limit
    return default_limit(length if length is not None else min(claimed, TRUSTED))


def block_lengths(elements: int) -> list[int]:
    """Elements of each block of a tensor coded in planes: all full but the last."""
    return [min(MAX_SYMBOLS, elements - i) for i in range(0, elements, MAX_SYMBOLS)]


def _named(error: DecodeError, tensor: str) -> DecodeError:
    name = error.tensor if error.tensor is not None else tensor
    return type(error)(error.rule, error.message, error.offset, name)
