"""Mutants of good files: with checksums repaired, so that they reach a decoder's depths, or not."""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
from layout.elements import msgpack as canonical
from layout.elements import uv
from layout.file import header, wrap

Tree = Any  # what MessagePack holds
HEADER_SIZE = 28
NUMBERS = [0, 1, 2, 3, 5, 7, 16, 24, 127, 128, 255, 256, 4095, 4096, 65535, 65536, (1 << 20) + 1]
NUMBERS += [1 << 24, 1 << 31, 1 << 32, 1 << 48, (1 << 63) - 1, (1 << 64) - 1, -1, -(1 << 63)]
OTHERS: list[Tree] = [None, True, False, "", "x", "F4", [], [0], [[]], {}, {"a": 1}]
DTYPES = ["BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"]
DTYPES += ["F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64"]
CODES = [0x80, 0x90, 0xA0, 0xC0, 0xC1, 0xC2, 0xCA, 0xCB, 0xCC, 0xCD, 0xCE, 0xCF, 0xD0, 0xD3, 0xD9]
CODES += [0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xE0, 0xFF]


def inflate(data: bytes) -> bytes:
    """What a raw DEFLATE stream holds."""
    return zlib.decompress(data, -15)


def deflate(data: bytes) -> bytes:
    """A raw DEFLATE stream."""
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    return engine.compress(data) + engine.flush()


class Parsed:
    """A good file taken apart, to be changed and put together again.

    Attributes:
        tree: the directory as MessagePack gives it.
        deflated: whether the directory is stored deflated.
        tables: the tables, inflated if they are stored so; None without tables.
        inflated: whether the tables are stored deflated.
        bodies: all other segments, in order.
    """

    def __init__(self, data: bytes) -> None:
        stored = int.from_bytes(data[12:16], "little")
        directory = data[HEADER_SIZE : HEADER_SIZE + stored]
        self.deflated = bool(data[10] & 1)
        plain = inflate(directory) if self.deflated else directory
        self.tree: Tree = msgpack.unpackb(plain, strict_map_key=False)
        lengths = [pair[0] for pair in _pairs(self.tree)]
        position = HEADER_SIZE + stored
        self.bodies: list[bytearray] = []
        self.tables: bytearray | None = None
        self.inflated = False
        if "tables" in self.tree:
            length, _, size = self.tree["tables"]
            body = data[position : position + length]
            self.inflated = size > 0
            self.tables = bytearray(inflate(body) if size else body)
            position += length
        for length in lengths:
            self.bodies.append(bytearray(data[position : position + length]))
            position += length

    def file(self, change: Callable[[bytes], bytes] = bytes) -> bytes:
        """The file again: lengths and checksums are of what is there.

        Args:
            change: of the bytes of the directory, before its checksum is taken.
        """
        bodies = [bytes(body) for body in self.bodies]
        if isinstance(self.tree, dict):
            for pair, body in zip(_pairs(self.tree), bodies, strict=False):
                pair[:] = [len(body), zlib.crc32(body)]
            if self.tables is not None and "tables" in self.tree:
                plain = bytes(self.tables)
                body = deflate(plain) if self.inflated else plain
                self.tree["tables"] = [len(body), zlib.crc32(body), len(plain) * self.inflated]
                bodies.insert(0, body)
        plain = change(canonical(self.tree))
        stream = deflate(plain) if self.deflated else None
        small = stream is not None and len(stream) < len(plain)
        return wrap(plain, b"".join(bodies), deflated=stream if small else None)


def _pairs(tree: dict[str, Tree]) -> Iterator[list[int]]:
    """The segments of bundles and tensors that still have their form, in the order of the file."""
    lists = [tree.get("bundles")]
    tensors = tree.get("tensors")
    for tensor in tensors if isinstance(tensors, list) else []:
        lists.append(tensor.get("segments") if isinstance(tensor, dict) else None)
    for segments in lists:
        for pair in segments if isinstance(segments, list) else []:
            if isinstance(pair, list):
                yield pair


def _places(tree: Tree) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value of a tree."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def change_tree(rng: random.Random, tree: Tree) -> None:
    """Change one value of a directory."""
    places = list(_places(tree))
    if not places:
        return
    holder, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == 2:
        holder[key] = copy.deepcopy(rng.choice(OTHERS))
    elif kind == 3:
        other, place = rng.choice(places)
        holder[key] = copy.deepcopy(other[place])
    elif key == "dtype":
        holder[key] = rng.choice(DTYPES)
    elif type(holder[key]) is int and kind < 6:
        holder[key] = max(0, holder[key] + rng.randint(-2, 2))
    else:
        holder[key] = rng.choice(NUMBERS)


def change_bytes(rng: random.Random, data: bytearray) -> None:
    """Change a few bytes."""
    if not data:
        data += rng.randbytes(3)
        return
    at, kind = rng.randrange(len(data)), rng.randrange(7)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.randrange(256)
    elif kind == 2:
        data[at:at] = rng.randbytes(rng.randint(1, 8))
    elif kind == 3:
        del data[at : at + rng.randint(1, 8)]
    elif kind == 4:
        data[at] = rng.choice([0, 1, 2, 0x7F, 0x80, 0xFF])
    elif kind == 5:
        data[at] = (data[at] + rng.choice([-1, 1])) % 256
    else:
        data[at : at + 1] = uv(rng.choice([n for n in NUMBERS if n >= 0]))


def _directory_bytes(rng: random.Random, plain: bytes) -> bytes:
    """Change a directory beyond what a tree can say."""
    data = bytearray(plain)
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.4 and data:
            data[rng.randrange(len(data))] = rng.choice(CODES)
        else:
            change_bytes(rng, data)
    return bytes(data)


def _header(rng: random.Random, data: bytes) -> bytes:
    """Change fields of the header, whose checksum is repaired."""
    stored, size, crc = (int.from_bytes(data[i : i + 4], "little") for i in (12, 16, 20))
    values: dict[str, Any] = {"flags": int.from_bytes(data[10:12], "little")}
    kind = rng.randrange(4)
    if kind == 0:
        values["flags"] = rng.choice([0, 1, 2, 3, 0x100, 0x8000])
    elif kind == 1:
        values["version"] = bytes([rng.choice([0, 0, 1]), rng.choice([8, 9, 10, 0])])
    elif kind == 2:
        stored = rng.choice([stored - 1, stored + 1, size, 0, 1 << 26, (1 << 32) - 1])
    else:
        size = rng.choice([size - 1, size + 1, stored, 0, (1 << 26) + 1, (1 << 32) - 1])
    return header(max(stored, 0), max(size, 0), crc, **values) + data[HEADER_SIZE:]


def _stream(rng: random.Random, data: bytes) -> bytes:
    """Change the bytes of a deflated directory or of stored tables, checksums repaired."""
    parsed = Parsed(data)
    if parsed.deflated and rng.random() < 0.5:
        stored = int.from_bytes(data[12:16], "little")
        stream = bytearray(data[HEADER_SIZE : HEADER_SIZE + stored])
        change_bytes(rng, stream)
        size = int.from_bytes(data[16:20], "little")
        return wrap(bytes(size), data[HEADER_SIZE + stored :], deflated=bytes(stream))
    if parsed.tables is None:
        return data
    body = bytearray(deflate(bytes(parsed.tables)))
    change_bytes(rng, body)
    size = len(parsed.tables)
    parsed.tables = None
    parsed.tree["tables"] = [len(body), zlib.crc32(body), size]
    parsed.bodies.insert(0, body)
    plain = canonical(parsed.tree)
    return wrap(plain, b"".join(map(bytes, parsed.bodies)))


def mutants(
    files: list[bytes], rng: random.Random, repair: Callable[[Parsed], None]
) -> Iterator[bytes]:
    """Files with one to three changes each, without end.

    Args:
        files: good files.
        rng: chooses.
        repair: puts right the checks of tensors that decode to something else now.
    """
    while True:
        data = rng.choice(files)
        kind = rng.random()
        if kind < 0.04:
            raw = bytearray(data)
            change_bytes(rng, raw)
            yield bytes(raw)
        elif kind < 0.08:
            yield _header(rng, data)
        elif kind < 0.14:
            yield _stream(rng, data)
        else:
            yield from _repaired(rng, Parsed(data), kind < 0.3, repair)


def _repaired(
    rng: random.Random, parsed: Parsed, directory: bool, repair: Callable[[Parsed], None]
) -> Iterator[bytes]:
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        targets: list[Callable[[], None]] = [lambda: change_tree(rng, parsed.tree)]
        targets += [lambda b=body: change_bytes(rng, b) for body in parsed.bodies] * 3
        if parsed.tables is not None:  # seldom: nearly all changes break the sum
            targets.append(lambda: change_bytes(rng, parsed.tables or bytearray()))
        rng.choice(targets)()
    try:
        if directory:
            yield parsed.file(lambda plain: _directory_bytes(rng, plain))
        else:
            repair(parsed)
            yield parsed.file()
    except (OverflowError, ValueError, TypeError, AttributeError):
        return  # a tree that canonical MessagePack cannot hold
