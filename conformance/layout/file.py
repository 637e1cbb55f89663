"""Files: header, directory and segments (chapter 4)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from layout.coder import Table, tables
from layout.elements import msgpack, u32

SIGNATURE = b"\x89TQC\r\n\x1a\n"
VERSION = b"\0\x09"
RAW, PLANES, TRANSFORM = 0, 1, 2
ABSENT = object()  # a key that an entry or the directory shall not have


def header(
    stored: int,
    size: int,
    crc: int,
    *,
    flags: int = 0,
    version: bytes = VERSION,
    signature: bytes = SIGNATURE,
    damage: int = 0,
) -> bytes:
    """The element `header`; `damage` is added to its checksum."""
    start = signature + version + flags.to_bytes(2, "little") + u32(stored) + u32(size) + u32(crc)
    return start + u32((zlib.crc32(start) + damage) % 2**32)


def wrap(
    directory: bytes, body: bytes = b"", *, deflated: bytes | None = None, **changes: Any
) -> bytes:
    """A file of a directory, plain or as the stream `deflated`; `changes` are those of `header`."""
    stored = directory if deflated is None else deflated
    fields = {"flags": int(deflated is not None)} | changes
    return header(len(stored), len(directory), zlib.crc32(stored), **fields) + stored + body


def segment(data: bytes) -> list[int]:
    """A *segment* of the directory."""
    return [len(data), zlib.crc32(data)]


@dataclass(frozen=True)
class Tensor:
    """A tensor: what is stored, and what a decoder has to make of it.

    Attributes:
        elements: the decoded bytes.
        segments: what the file holds; None for the elements as one segment.
        bundle: index of its bundle.
        same_as: index of the tensor it is tied to.
        entry: keys of its entry that differ from what the others say; `ABSENT` leaves one out.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: bytes
    coding: int = RAW
    segments: Sequence[bytes] | None = None
    bundle: int | None = None
    same_as: int | None = None
    entry: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bodies(self) -> Sequence[bytes]:
        """Bytes of the segments of its own."""
        if self.bundle is not None or self.same_as is not None:
            return ()
        return [self.elements] if self.segments is None else self.segments

    def describe(self) -> dict[str, Any]:
        """Its *entry*."""
        entry: dict[str, Any] = {"name": self.name}
        if self.same_as is not None:
            entry["same_as"] = self.same_as
        else:
            entry |= {"coding": self.coding, "dtype": self.dtype, "shape": list(self.shape)}
            entry["check"] = zlib.crc32(self.elements)
            if self.bundle is not None:
                entry["bundle"] = self.bundle
            else:
                entry["segments"] = [segment(data) for data in self.bodies]
        return changed(entry, self.entry)


def changed(keys: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A map with some keys put in, replaced or left out."""
    return {key: value for key, value in {**keys, **changes}.items() if value is not ABSENT}


@dataclass(frozen=True)
class File:
    """A file with a plain directory.

    Attributes:
        tables: the tables, or the bytes of the element `tables`; None for no tables segment.
        deflated: a stream to be stored instead of the tables.
        bundles: a block for each bundle.
        keys: keys of the directory that differ; `ABSENT` leaves one out.
    """

    tensors: Sequence[Tensor] = ()
    tables: Sequence[Table] | bytes | None = None
    deflated: bytes | None = None
    bundles: Sequence[bytes] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bodies(self) -> list[bytes]:
        """All segments in the order of 4.4."""
        out = list(self._tables())
        out += self.bundles
        return out + [body for tensor in self.tensors for body in tensor.bodies]

    def _tables(self) -> list[bytes]:
        if self.deflated is not None:
            return [self.deflated]
        return [] if self.tables is None else [self._plain_tables()]

    def _plain_tables(self) -> bytes:
        plain = self.tables
        return plain if isinstance(plain, bytes) else tables(plain or ())

    def tree(self) -> dict[str, Any]:
        """The directory."""
        keys: dict[str, Any] = {"tensors": [tensor.describe() for tensor in self.tensors]}
        for data in self._tables():
            size = len(self._plain_tables()) if self.deflated is not None else 0
            keys["tables"] = [*segment(data), size]
        if self.bundles:
            keys["bundles"] = [segment(data) for data in self.bundles]
        if self.metadata:
            keys["metadata"] = dict(self.metadata)
        return changed(keys, self.keys)

    def build(self) -> bytes:
        """The whole file."""
        return wrap(msgpack(self.tree()), b"".join(self.bodies))
