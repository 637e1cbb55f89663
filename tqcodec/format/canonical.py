"""Canonical MessagePack (chapter 4): nil, booleans, integers, strings, arrays and maps in one form.

A reader of its own, so that nothing is allocated on a length that the bytes have not earned.
Imports the standard library only, besides the layers below.
"""

from __future__ import annotations

from typing import Any

from tqcodec.format.reader import Reader
from tqcodec.format.registry import MAX_NESTING

_SINGLE = {0xC0: None, 0xC2: False, 0xC3: True}
_UNSIGNED = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_SIGNED = {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_LENGTHS = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_SHORT = {1: 31, 2: 255, 4: 65535}  # largest length that a smaller form of a string takes


def read_canonical(data: bytes, most: int, reader: Reader) -> Any:
    """The one value that `data` holds, of at most `most` values in all; `reader` for messages."""
    source = _Source(data, most, reader)
    value = source.value(0)
    reader.check(source.position == len(data), "directory.msgpack", "bytes behind the value")
    return value


class _Source:
    def __init__(self, data: bytes, most: int, reader: Reader) -> None:
        self.data, self.reader = data, reader
        self.position, self.left = 0, most - 1  # the value itself is one

    def take(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        self.reader.check(self.position <= len(self.data), "directory.msgpack", "cut off")
        return self.data[start : self.position]

    def canonical(self, condition: bool) -> None:
        self.reader.check(
            condition, "directory.canonical", f"not canonical near byte {self.position}"
        )

    def value(self, depth: int) -> Any:
        # No calls where nothing is wrong: a directory may hold hundreds of thousands of values.
        try:
            code = self.data[self.position]
        except IndexError:
            self.reader.fail("directory.msgpack", "cut off")
        self.position += 1
        if code < 0x80 or code >= 0xE0:
            return code - 256 if code >= 0xE0 else code
        if code < 0xC0:
            count = code & (0x1F if code >= 0xA0 else 0x0F)
            kind = "string" if code >= 0xA0 else "array" if code >= 0x90 else "map"
        elif code in _LENGTHS:
            size = _LENGTHS[code]
            count = int.from_bytes(self.take(size), "big")
            kind = "string" if code < 0xDC else "array" if code < 0xDE else "map"
            self.canonical(count > (_SHORT[size] if kind == "string" else {2: 15, 4: 65535}[size]))
        else:
            return self.scalar(code)
        if kind == "string":
            return self.text(count)
        if depth > MAX_NESTING:
            self.reader.fail("directory.nesting", "values nested too deep")
        if not count:
            return [] if kind == "array" else {}
        # Paid for before they are read, so that no claim is believed for long.
        self.left -= count if kind == "array" else 2 * count
        if self.left < 0:
            self.reader.fail("directory.values", "more values than bytes pay for")
        if kind == "array":
            return [self.value(depth + 1) for _ in range(count)]
        return self.map(count, depth)

    def scalar(self, code: int) -> int | bool | None:
        if code in _SINGLE:
            return _SINGLE[code]
        if code in _UNSIGNED:
            size = _UNSIGNED[code]
            value = int.from_bytes(self.take(size), "big")
            self.canonical(value > (0x7F if size == 1 else (1 << 4 * size) - 1))
            return value
        self.reader.check(code != 0xC1, "directory.msgpack", "the byte c1 is not used")
        self.canonical(code in _SIGNED)
        size = _SIGNED[code]
        value = int.from_bytes(self.take(size), "big", signed=True)
        self.canonical(value < (-32 if size == 1 else -(1 << 4 * size - 1)))
        return value

    def text(self, count: int) -> str:
        raw = self.take(count)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.reader.fail("directory.canonical", "a string that is not UTF-8")

    def map(self, count: int, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        last = b""
        for i in range(count):
            key = self.value(MAX_NESTING)
            self.canonical(isinstance(key, str))
            raw = key.encode()
            self.canonical(i == 0 or raw > last)
            last = raw
            out[key] = self.value(depth + 1)
        return out
