"""The header: the first 28 bytes of a file (chapter 4).

Imports the layers below and the standard library only.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from tqcodec.errors import UnsupportedError
from tqcodec.format import reader as io
from tqcodec.format.reader import Reader
from tqcodec.format.registry import (
    FLAG_DEFLATED,
    HEADER_SIZE,
    MAJOR,
    MAX_DIRECTORY,
    MAX_INFLATION,
    MINOR,
    SIGNATURE,
)


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
    """The element `header`; MalformedError for a directory whose size it cannot even state."""
    io.check(header.size < 1 << 32, "directory.size", f"directory of {header.size} bytes")
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
