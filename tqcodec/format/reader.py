"""Bounds-checked cursor over bytes: the descriptors of the syntax tables (chapter 3).

Imports numpy and the standard library only.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NoReturn

from tqcodec.errors import MalformedError, UnsupportedError

Check = Callable[[bool, str, str], None]  # (condition, rule, message): raises unless it holds


def check(condition: bool, rule: str, message: str) -> None:
    """Raise MalformedError unless `condition` holds, where nothing is read: see `Reader.check`."""
    if not condition:
        raise MalformedError(rule, message)


class Reader:
    """Reads the descriptors `u8 u16 u32 uv sv` and runs of bytes, never past the end.

    Args:
        data: the bytes of one segment (or of the whole file).
        base: offset of `data` in the file, for messages.
        tensor: name of the tensor the bytes belong to, for messages.
    """

    def __init__(self, data: bytes | memoryview, base: int = 0, tensor: str | None = None) -> None:
        self.data = memoryview(data)
        self.position = 0
        self.base = base
        self.tensor = tensor

    def fail(self, rule: str, message: str) -> NoReturn:
        """Raise MalformedError for the current position."""
        raise MalformedError(rule, message, self.base + self.position, self.tensor)

    def check(self, condition: bool, rule: str, message: str) -> None:
        """Raise MalformedError unless `condition` holds."""
        if not condition:
            self.fail(rule, message)

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return len(self.data) - self.position

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        if count > self.remaining:
            self.fail("segment.short", f"{count} bytes wanted, {self.remaining} left")
        start = self.position
        self.position = start + count
        return self.data[start : self.position]

    def u8(self) -> int:
        """Unsigned integer of one byte."""
        return self.take(1)[0]

    def fixed(self, size: int) -> int:
        """Unsigned little-endian integer of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def uv(self, most: int = (1 << 64) - 1) -> int:
        """Unsigned LEB128 integer in its shortest form, at most `most`."""
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            self.check(shift < 70, "integer.size", "variable-length integer above 64 bits")
        self.check(byte > 0 or shift == 0, "integer.shortest", "integer not in its shortest form")
        self.check(value < 1 << 64, "integer.size", "variable-length integer above 64 bits")
        self.check(value <= most, "integer.range", f"{value} where at most {most} is allowed")
        return value

    def sv(self, most: int = (1 << 63) - 1) -> int:
        """Signed integer, zigzag-mapped to `uv`: 0, -1, 1, -2 are 0, 1, 2, 3."""
        code = self.uv(2 * most + 1)
        return (code >> 1) ^ -(code & 1)

    def end(self) -> None:
        """Check that nothing is left."""
        self.check(self.remaining == 0, "segment.surplus", f"{self.remaining} bytes left over")


def unsupported(reader: Reader, rule: str, feature: str) -> UnsupportedError:
    """The error for a value that the specification reserves for `feature`."""
    place = reader.base + reader.position
    return UnsupportedError(rule, f"needs {feature}", place, reader.tensor)


def u8(value: int) -> bytes:
    """One byte; MalformedError for what it does not hold."""
    if not 0 <= value < 1 << 8:
        raise MalformedError("integer.range", f"{value} does not fit a byte")
    return bytes([value])


def uv(value: int, most: int = (1 << 64) - 1) -> bytes:
    """Unsigned LEB128 form of `value`, shortest; MalformedError for what has none, or is above."""
    if not 0 <= value < 1 << 64:
        raise MalformedError("integer.size", f"{value} is no unsigned integer of 64 bits")
    if value > most:
        raise MalformedError("integer.range", f"{value} where at most {most} is allowed")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def sv(value: int, most: int = (1 << 63) - 1) -> bytes:
    """Signed form of `value`: zigzag, then `uv`; bounds as of `Reader.sv`."""
    return uv(2 * value if value >= 0 else -2 * value - 1, 2 * most + 1)


def check_length(found: int, wanted: int, what: str) -> None:
    """Check that a part of a record has the length that a decoder will take it to have.

    What is too short would be read past its end, what is too long would leave a rest.
    """
    check(found >= wanted, "segment.short", f"{found} {what}, not {wanted}")
    check(found <= wanted, "segment.surplus", f"{found} {what}, not {wanted}")


def deflate(data: bytes) -> bytes:
    """Raw DEFLATE stream (RFC 1951) of `data`."""
    engine = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return engine.compress(data) + engine.flush()


def inflate(data: bytes | memoryview, size: int, reader: Reader) -> bytes:
    """The `size` bytes that the raw DEFLATE stream `data` must hold exactly."""
    engine = zlib.decompressobj(-15)
    try:
        out = engine.decompress(data, size + 1)
    except zlib.error as error:
        reader.fail("deflate.stream", f"damaged DEFLATE stream ({error})")
    exact = len(out) == size and engine.eof and not engine.unused_data
    reader.check(exact, "deflate.size", f"DEFLATE stream does not hold exactly {size} bytes")
    return out
