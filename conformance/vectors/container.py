"""Header, segments and checks (4.1, 4.2, 4.4 to 4.6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from layout.deflate import Bits, deflate, fixed
from layout.elements import msgpack
from layout.file import File, Tensor, header, wrap
from layout.numbers import DTYPES
from layout.planes import Part, block

from vectors.case import Case, accept, reject, unsupported
from vectors.common import ANY, one, planes_file

FILE = File([one()])
GOOD = FILE.build()


def cases() -> Iterator[Case]:
    """All vectors of these sections."""
    yield from _header()
    yield from _directory_bytes()
    yield from _segments()
    yield from _types()


def _header() -> Iterator[Case]:
    yield accept("one-byte", "4.1", "a file of one RAW tensor of one byte", FILE)
    plain = msgpack(FILE.tree())
    yield reject("header.signature", "4.2", "the last byte of the signature is 0b", _at(7, 0x0B))
    yield reject("header.signature@empty", "4.2", "an empty file", b"")
    yield reject("header.signature@text-mode", "4.2", "0d 0a has become 0a", GOOD[:4] + GOOD[5:])
    yield reject("header.crc", "4.2", "header_crc is 1 too large", wrap(plain, b"\5", damage=1))
    yield reject(
        "header.crc@version",
        "4.2",
        "header_crc is wrong in a file of another version: it is malformed",
        wrap(plain, b"\5", version=b"\1\0", damage=1),
    )
    yield reject("segment.short@header", "3.3", "the file ends in the header", GOOD[:27])
    yield reject(
        "segment.short@header-of-another-version",
        "3.3",
        "the file ends in the header, and its version is 1.0",
        wrap(plain, version=b"\1\0")[:27],
    )
    for name, version in {"minor-8": b"\0\x08", "minor-10": b"\0\x0a", "major-1": b"\1\0"}.items():
        numbers = ".".join(map(str, version))
        data = wrap(plain, b"\5", version=version)
        yield unsupported(name, "header.version", "4.2", f"version {numbers}", data)
    data = header(1000, 1, 0, version=b"\2\x07", flags=0xFF)
    text_ = "version 2.7, and nothing but the signature and header_crc is right"
    yield unsupported("version-hides-all", "header.version", "12.1", text_, data)
    for flag in (2, 0x8000):
        data = wrap(plain, b"\5", flags=flag)
        yield unsupported(
            f"flags-{flag:04x}", "header.flags", "4.2", f"flag {flag:#x} is set", data
        )
    text_ = "flag 2 is set, and the directory is wrong in every way"
    data = header(1000, 1, 0, flags=2)
    yield unsupported("flags-hide-all", "header.flags", "12.1", text_, data)
    size = (1 << 26) + 1
    yield reject("directory.size", "4.2", "size is 2^26 + 1", header(size, size, 0))


def _at(place: int, value: int) -> bytes:
    return GOOD[:place] + bytes([value]) + GOOD[place + 1 :]


def _directory_bytes() -> Iterator[Case]:
    long = File([one(name="n" * 60)])
    plain, body = msgpack(long.tree()), b"\5"
    small = deflate(plain)
    yield accept(
        "deflated-directory", "4.2", "FLAG_DEFLATED", long, wrap(plain, body, deflated=small)
    )
    yield reject("directory.crc", "4.2", "directory_crc is wrong", _crc_damaged(plain, body))
    text_ = "a deflated directory whose stored bytes do not have directory_crc"
    yield reject("directory.crc@deflated", "4.2", text_, _crc_damaged(plain, body, small))
    text_ = "stored is 1 less than size without FLAG_DEFLATED"
    data = header(len(plain) - 1, len(plain), 0) + plain + body
    yield reject("directory.stored", "4.2", text_, data)
    stream = fixed(Bits(), plain).build()
    text_ = "the deflated directory is larger than the directory itself"
    yield reject("directory.stored@larger", "4.2", text_, wrap(plain, body, deflated=stream))
    same = deflate(plain, len(plain))
    text_ = "the deflated directory has as many bytes as the directory itself"
    yield reject("directory.stored@equal", "4.2", text_, wrap(plain, body, deflated=same))
    yield accept(
        "deflated-by-one-byte",
        "4.2",
        "the deflated directory has one byte less than the directory itself",
        long,
        wrap(plain, body, deflated=deflate(plain, len(plain) - 1)),
    )
    for more in (0, 1):
        file, stream = _most_inflated(more)
        plain = msgpack(file.tree())
        data = wrap(plain, b"\5", deflated=stream)
        if more:
            text_ = "size is 2^16 + 64 * stored + 1"
            yield reject("directory.stored@inflation", "4.2", text_, data)
        else:
            text_ = "size is 2^16 + 64 * stored, the most there may be"
            yield accept("most-inflated", "4.2", text_, file, data)
    data = msgpack(FILE.tree())
    short = header(len(data) + 2, len(data) + 2, 0) + data + b"\5"
    yield reject("segment.short@directory", "3.3", "the file ends in the directory", short)
    empty = header(0, 0, 0)
    yield reject("directory.msgpack@empty", "4.3", "a directory of no bytes", empty)
    over = deflate(msgpack(long.tree()))
    for name, change in (("short", -1), ("long", 1)):
        size = len(msgpack(long.tree())) + change
        data = wrap(bytes(size), body, deflated=over)
        text_ = f"the directory inflates to {-change:+d} bytes against size"
        yield reject(f"deflate.size@directory-{name}", "3.3", text_, data)
    data = wrap(msgpack(long.tree()), body, deflated=over + b"\0")
    text_ = "a byte lies behind the last block of the deflated directory"
    yield reject("deflate.size@directory-surplus", "3.3", text_, data)
    yield reject(
        "deflate.stream@directory",
        "3.3",
        "the deflated directory begins with a block of type 3",
        wrap(msgpack(long.tree()), body, deflated=bytes([over[0] | 6]) + over[1:]),
    )


def _crc_damaged(plain: bytes, body: bytes, deflated: bytes | None = None) -> bytes:
    stored = plain if deflated is None else deflated
    return header(len(stored), len(plain), 1, flags=int(deflated is not None)) + stored + body


def _most_inflated(more: int) -> tuple[File, bytes]:
    """A file whose directory is `more` beyond the largest that its stored bytes allow."""
    stored = 850
    size = (1 << 16) + 64 * stored + more
    other = len(msgpack({"later": "x" * (1 << 16)} | FILE.tree())) - (1 << 16)
    file = replace(FILE, keys={"later": "x" * (size - other)})
    return file, deflate(msgpack(file.tree()), stored)


def _segments() -> Iterator[Case]:
    pair = one("U16", b"\x01\x02\x03\x04")
    pieces: tuple[bytes, ...] = (b"\x01", b"", b"\x02\x03", b"\x04")
    text_ = "a RAW tensor of four segments, one of them empty, that split its elements"
    file = File([replace(pair, segments=pieces)])
    yield accept("raw-segments", "4.4", text_, file)
    bundle = Part("U8", [7, 8], 8)
    file = File([one(), bundle.tensor(name="b", bundle=0)], (ANY,), bundles=[block([bundle])])
    text_ = "tables, then a bundle, then the segments of the tensors"
    yield accept("order-of-segments", "4.4", text_, file)
    for name, pieces in (("short", (b"\1", b"\2\3")), ("long", (b"\1\2\3\4\5",))):
        text_ = f"the segments of a RAW tensor have {sum(map(len, pieces))} bytes, not 4"
        yield reject(f"raw.length@{name}", "4.4", text_, File([replace(pair, segments=pieces)]))
    text_ = "a RAW tensor of 2 elements has no segments"
    yield reject("raw.length@none", "4.4", text_, File([replace(pair, segments=())]))
    text_ = "a RAW tensor without elements has a segment of one byte"
    file = File([one(elements=b"", segments=[b"\0"])])
    yield reject("raw.length@empty", "4.4", text_, file)
    yield accept(
        "raw-empty-segment",
        "4.4",
        "a RAW tensor without elements has a segment of no bytes",
        File([one(elements=b"", segments=[b""])]),
    )
    yield reject("container.length@short", "4.1", "the last segment lacks its last byte", GOOD[:-1])
    yield reject(
        "container.length@long", "4.1", "a byte lies behind the last segment", GOOD + b"\0"
    )
    huge = one(entry={"segments": [[(1 << 63) - 1, 0], [(1 << 63) - 1, 0], [3, 0]]})
    text_ = "lengths of segments that add up to 1 modulo 2^64"
    yield reject("container.length@wrap", "12.4", text_, File([huge]))
    damaged = one(entry={"segments": [[1, 0]]})
    yield reject("segment.crc", "4.4", "the CRC-32 of a segment is wrong", File([damaged]))
    tables_ = File([one()], (ANY,))
    keys = {"tables": [*tables_.tree()["tables"][:1], 1, 0]}
    text_ = "the CRC-32 of the tables is wrong, though no tensor uses them"
    yield reject("segment.crc@tables", "4.4", text_, replace(tables_, keys=keys))
    bundled = File([bundle.tensor(bundle=0)], bundles=[block([bundle])])
    keys = {"bundles": [[len(block([bundle])), 1]]}
    text_ = "the CRC-32 of a bundle is wrong"
    yield reject("segment.crc@bundle", "4.4", text_, replace(bundled, keys=keys))
    yield reject("tensor.check", "4.5", "check is wrong", File([one(entry={"check": 0})]))
    text_ = "check is that of the elements with their most significant bytes first"
    swapped = one("U16", b"\2\1", entry={"check": one("U16", b"\1\2").describe()["check"]})
    yield reject("tensor.check@byte-order", "4.5", text_, File([swapped]))


def _types() -> Iterator[Case]:
    for name, dtype in DTYPES.items():
        count = 2 * dtype.size
        elements = bytes((37 * i + 11) % 256 for i in range(count)) if name != "BOOL" else b"\0\1"
        raw = Tensor("t", name, (2,), elements)
        file_name = name.lower().replace("_", "-")
        yield accept(f"raw-{file_name}", "4.6", f"RAW, {name}", File([raw]))
    text_ = "a RAW tensor of BOOL holds a 2"
    yield reject("tensor.bool", "4.6", text_, File([one("BOOL", b"\0\2")]))
    text_ = "a BOOL coded in planes is 2"
    yield reject("tensor.bool@planes", "4.6", text_, planes_file(Part("BOOL", [1, 2], 2)))
