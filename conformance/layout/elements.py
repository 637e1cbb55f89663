"""Descriptors, packing and canonical MessagePack (chapters 3, 4.3 and 6.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def uv(value: int) -> bytes:
    """The descriptor `uv`."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def sv(value: int) -> bytes:
    """The descriptor `sv`."""
    return uv(2 * value if value >= 0 else -2 * value - 1)


def u32(value: int) -> bytes:
    """The descriptor `u32`."""
    return value.to_bytes(4, "little")


def pack(values: Iterable[int], widths: Iterable[int]) -> bytes:
    """Unsigned integers of given widths behind each other, least significant bit first."""
    total = position = 0
    for value, width in zip(values, widths, strict=True):
        total |= (value & (1 << width) - 1) << position
        position += width
    return total.to_bytes((position + 7) // 8, "little")


def packed(values: Sequence[int], width: int) -> bytes:
    """Unsigned integers of one width."""
    return pack(values, [width] * len(values))


def msgpack(value: Any) -> bytes:
    """The canonical MessagePack form of a value."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, str):
        return text(value.encode())
    if isinstance(value, Mapping):
        pairs = sorted((key.encode(), item) for key, item in value.items())
        return map_start(len(pairs)) + b"".join(text(k) + msgpack(v) for k, v in pairs)
    return array_start(len(value)) + b"".join(msgpack(item) for item in value)


def _integer(value: int) -> bytes:
    if -32 <= value < 128:
        return bytes([value & 0xFF])
    code, size, signed = 0xCC, 1, value < 0
    if signed:
        code, size = 0xD0, 1
    while not (-(1 << 8 * size - 1) <= value if signed else value < 1 << 8 * size):
        code, size = code + 1, 2 * size
    return bytes([code]) + value.to_bytes(size, "big", signed=signed)


def text(raw: bytes) -> bytes:
    """A string, whatever its bytes."""
    count = len(raw)
    if count < 32:
        return bytes([0xA0 | count]) + raw
    size = 1 if count < 1 << 8 else 2 if count < 1 << 16 else 4
    return bytes([{1: 0xD9, 2: 0xDA, 4: 0xDB}[size]]) + count.to_bytes(size, "big") + raw


def array_start(count: int) -> bytes:
    """The head of an array."""
    return _start(count, 0x90, 0xDC)


def map_start(count: int) -> bytes:
    """The head of a map."""
    return _start(count, 0x80, 0xDE)


def _start(count: int, short: int, long: int) -> bytes:
    if count < 16:
        return bytes([short | count])
    size = 2 if count < 1 << 16 else 4
    return bytes([long + (size == 4)]) + count.to_bytes(size, "big")
