"""The executable form of tqc.md: a decoder of `.tqc` files in the order of that document.

It is meant to be read beside the document by whoever writes another decoder. Lines `# > ` quote
the sentences that the code below them obeys; the line above a quotation names its section. Each
check names the rule that it stands for. Clarity comes before speed, the document before this file.

    python spec/decoder.py < weights.tqc > weights.safetensors
    python spec/decoder.py --batch < frames > verdicts

It needs the standard library only: zlib for DEFLATE and CRC-32, and floats, which are IEEE 754
doubles, for steps 5 and 6 of section 10.1. It shares no code with the package tqcodec.
"""

from __future__ import annotations

import json
import math
import struct
import sys
import traceback
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from typing import BinaryIO, TypeAlias, TypeVar

# ---- 11 Registries (first, because the code below needs the names) ----

MAJOR, MINOR, HEADER_SIZE, FLAG_DEFLATED = 0, 9, 28, 1
MAX_DIRECTORY, MAX_TABLES_SIZE, MAX_INFLATION, FREE_VALUES = 2**26, 2**20, 64, 2**14
MAX_NESTING, MAX_NAME, MAX_DIMENSIONS, MAX_ELEMENTS = 8, 4096, 16, 2**48
MAX_TABLES, MAX_ALPHABET, MAX_WEIGHTS, MAX_TABLE_LOW = 128, 4096, 2**16, 2**24
MAX_LOW_BITS, MAX_VALUE, MAX_CLASSES, MAX_DEPTH = 24, 2**30, 64, 24
MAX_SYMBOLS, MAX_PART_HEAD, MAX_OFFSET, MAX_STEPS = 2**20, 16, 2**12, 256
MAX_BASIS, MAX_BASIS_SHIFT, MAX_DCT, MAX_DCT_TAPS, MAX_DCT_DIMENSIONS = 2**24, 24, 16, 1024, 3
MAX_HEAD, MAX_VECTOR, MAX_SCALE_MANTISSA, MAX_SCALE_EXPONENT = 2**24, 255, 2**24, 900
SUM_BITS, TABLE_BITS, TABLE_SUM = 53, 12, 4096
ROW_SCALE_MANTISSA, MULTIPLIER_MANTISSA = 5, 3
SYMMETRIC, ESCAPE = 1, 2  # flags of a table
UNSIGNED, CODED = 1, 2  # flags of a part

RAW, PLANES, TRANSFORM = 0, 1, 2  # Coding
UNIFORM, TRELLIS = 0, 1  # Quantizer
RANGE, FIXED = 0, 1  # PayloadKind
OUT, IN, TAPS = 0, 1, 2  # Axis
BASIS_NONE, BASIS_DCT, BASIS_EXPLICIT = 0, 1, 2  # BasisKind
VECTOR_CONSTANT, VECTOR_PACKED, VECTOR_CODED = 0, 1, 2  # VectorKind
PLANE_PACKED, PLANE_DEFLATED = 0, 1  # PlaneKind


class DecodeError(Exception):
    """A verdict other than "decoded"; `rule` is the tag of the rule that it comes from."""

    verdict = ""
    code = 70

    def __init__(self, rule: str, what: str, offset: int | None = None) -> None:
        super().__init__(rule, what)
        self.rule, self.what, self.offset = rule, what, offset
        self.tensor: str | None = None

    def __str__(self) -> str:
        places = [] if self.offset is None else [f"at byte {self.offset}"]
        places += [] if self.tensor is None else [f"tensor {self.tensor!r}"]
        where = " " + ", ".join(places) if places else ""
        return f"{self.verdict}: [{self.rule}]{where}: {self.what}"


class Malformed(DecodeError):  # noqa: N818 (the verdict's name)
    verdict, code = "malformed", 1


class Unsupported(DecodeError):  # noqa: N818 (the verdict's name)
    verdict, code = "unsupported", 3


class Limit(DecodeError):  # noqa: N818 (the verdict's name)
    verdict, code = "limit", 4


# ---- 3.3 Descriptors ----


class Reader:
    """Bytes that are read from the front: a file, a segment, inflated bytes or the head of a block.

    `start` is the offset in the file of the first byte, None for inflated bytes; `short` is the
    rule that an element breaks that reaches past the end.
    """

    def __init__(self, data: bytes, start: int | None = None, short: str = "segment.short") -> None:
        self.data, self.start, self.short = data, start, short
        self.position = 0

    def malformed(self, rule: str, what: str) -> Malformed:
        return Malformed(rule, what, None if self.start is None else self.start + self.position)

    def left(self) -> int:
        return len(self.data) - self.position

    # > An element MUST NOT reach past the end of what contains it: the file, the segment, the
    # > inflated tables, or the head of a block **[segment.short]**. -- 3.3
    def bytes(self, n: int) -> bytes:
        if n > self.left():
            raise self.malformed(self.short, f"{n} bytes are needed, {self.left()} are left")
        self.position += n
        return self.data[self.position - n : self.position]

    # > Nothing MUST be left over behind the last element of a segment, of the inflated tables, or
    # > of the head of a block **[segment.surplus]**. -- 3.3
    def end(self) -> None:
        if self.left():
            raise self.malformed("segment.surplus", f"{self.left()} bytes are left over")

    # > unsigned integer of 1, 2 or 4 bytes, least significant byte first -- 3.3
    def u8(self) -> int:
        return self.bytes(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.bytes(2), "little")

    def u32(self) -> int:
        return int.from_bytes(self.bytes(4), "little")

    # > unsigned integer in base 128: each byte gives 7 bits, least significant first; all bytes but
    # > the last have bit 7 set -- 3.3
    # > A `uv` MUST be below 2^64 and at most 10 bytes long **[integer.size]** and MUST have no last
    # > byte of 0 but in the one-byte form of the number 0 **[integer.shortest]**. `uv(n)` is a `uv`
    # > that MUST be at most n; `sv(n)` is an `sv` whose `uv` MUST be at most 2n + 1, that is, v is
    # > in -n-1 .. n **[integer.range]**. -- 3.3
    def uv(self, most: int = 2**64 - 1) -> int:
        value = 0
        for i in range(10):
            byte = self.u8()
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                if value >= 2**64:
                    raise self.malformed("integer.size", f"{value} is not below 2^64")
                if byte == 0 and i > 0:
                    raise self.malformed("integer.shortest", "the last byte of an integer is 0")
                if value > most:
                    raise self.malformed("integer.range", f"{value} is above {most}")
                return value
        raise self.malformed("integer.size", "an integer is longer than 10 bytes")

    # > signed integer v coded as `uv`: 2v for v >= 0, -2v - 1 for v < 0 -- 3.3
    def sv(self, most: int) -> int:
        coded = self.uv(2 * most + 1)
        return -((coded + 1) // 2) if coded % 2 else coded // 2


# > `deflated(n)` names a raw DEFLATE stream, without zlib or gzip wrapper. It MUST be a valid
# > stream **[deflate.stream]**. It MUST inflate to exactly n bytes, and its last block MUST end in
# > the last byte of the stream's container **[deflate.size]**. Where RFC 1951 leaves a question
# > open, a stream is valid as follows (this is what zlib takes): -- 3.3
def inflate(container: bytes, n: int) -> bytes:
    stream = zlib.decompressobj(-15)
    try:
        plain = stream.decompress(container, n + 1)  # never more than one byte too many
    except zlib.error as error:
        raise Malformed("deflate.stream", f"not a DEFLATE stream: {error}") from None
    if len(plain) > n:
        raise Malformed("deflate.size", f"more than {n} bytes")
    if not stream.eof:
        raise Malformed("deflate.size", f"{len(container)} bytes end within the stream")
    if len(plain) < n:
        raise Malformed("deflate.size", f"{len(plain)} bytes instead of {n}")
    if stream.unused_data:
        raise Malformed("deflate.size", f"{len(stream.unused_data)} bytes behind the last block")
    return plain


# ---- 4.2 Header ----


@dataclass
class Header:
    deflated: bool
    stored: int
    size: int
    directory_crc: int


# > `signature` MUST be `89 54 51 43 0D 0A 1A 0A` **[header.signature]**. `header_crc` MUST be the
# > CRC-32 of the 24 bytes before it **[header.crc]**. These two rules hold for every version of the
# > format. -- 4.2
def read_header(reader: Reader) -> Header:
    first = Reader(reader.bytes(HEADER_SIZE), 0)
    if first.bytes(8) != bytes.fromhex("89 54 51 43 0D 0A 1A 0A"):
        raise first.malformed("header.signature", "not the signature of .tqc")
    major, minor, flags = first.u8(), first.u8(), first.u16()
    stored, size, directory_crc = first.u32(), first.u32(), first.u32()
    if zlib.crc32(first.data[:24]) != first.u32():
        raise first.malformed("header.crc", "the header is damaged")
    # > `major` and `minor` are 0 and 9. A decoder of this version MUST report a file of another
    # > version as unsupported **[header.version]**. -- 4.2
    # > `flags` is 0 or FLAG_DEFLATED (1): the directory is deflated. A decoder MUST report a file
    # > with any other bit set as unsupported **[header.flags]**. -- 4.2
    if (major, minor) != (MAJOR, MINOR):
        raise Unsupported("header.version", f"version {major}.{minor}", 8)
    if flags & ~FLAG_DEFLATED:
        raise Unsupported("header.flags", f"flags {flags:#06x}", 10)
    return Header(flags == FLAG_DEFLATED, stored, size, directory_crc)


# > `size` is the number of bytes of the directory, inflated; it MUST be at most MAX_DIRECTORY
# > **[directory.size]**. `stored` is the number of bytes of the directory in the file; it MUST
# > equal `size` without FLAG_DEFLATED, and be below `size` with it, and `size` at most 2^16 +
# > MAX_INFLATION * `stored` **[directory.stored]**. `directory_crc` MUST be the CRC-32 of those
# > `stored` bytes **[directory.crc]**. With FLAG_DEFLATED they are `deflated(size)`. -- 4.2
def read_stored_directory(reader: Reader, header: Header) -> bytes:
    stored, size = header.stored, header.size
    if size > MAX_DIRECTORY:
        raise Malformed("directory.size", f"size {size}", 16)
    if header.deflated:
        if stored >= size or size > 2**16 + MAX_INFLATION * stored:
            raise Malformed("directory.stored", f"{size} bytes deflated to {stored}", 12)
    elif stored != size:
        raise Malformed("directory.stored", f"stored {stored}, size {size}", 12)
    directory = reader.bytes(stored)
    if zlib.crc32(directory) != header.directory_crc:
        raise Malformed("directory.crc", "the directory is damaged", HEADER_SIZE)
    return inflate(directory, size) if header.deflated else directory


# ---- 4.3 Directory ----

Value: TypeAlias = "bool | int | str | list[Value] | dict[str, Value] | None"
Kind = TypeVar("Kind")

# Forms of MessagePack with a number behind the first byte: bytes of that number, and the smallest
# one (of the signed forms: the largest one) for which there is no shorter form.
UNSIGNED_FORMS = {0xCC: (1, 2**7), 0xCD: (2, 2**8), 0xCE: (4, 2**16), 0xCF: (8, 2**32)}
SIGNED_FORMS = {0xD0: (1, -33), 0xD1: (2, -129), 0xD2: (4, -(2**15) - 1), 0xD3: (8, -(2**31) - 1)}
STRING_FORMS = {0xD9: (1, 32), 0xDA: (2, 2**8), 0xDB: (4, 2**16)}
ARRAY_FORMS = {0xDC: (2, 16), 0xDD: (4, 2**16)}
MAP_FORMS = {0xDE: (2, 16), 0xDF: (4, 2**16)}


# > The directory MUST be exactly one MessagePack value **[directory.msgpack]**. It MUST be
# > *canonical* **[directory.canonical]**: -- 4.3
# > Arrays and maps MUST NOT lie deeper than MAX_NESTING inside each other, the directory itself
# > being at depth 0 **[directory.nesting]**. The number of values, keys and the directory itself
# > included, MUST be at most FREE_VALUES + `stored` **[directory.values]**. -- 4.3
class MessagePack:
    """Reads one canonical value that takes all bytes of `data`."""

    def __init__(self, data: bytes, start: int | None, most: int) -> None:
        self.reader = Reader(data, start, short="directory.msgpack")
        self.count, self.most = 0, most

    def read(self) -> Value:
        value = self.value(0)
        if self.reader.left():
            raise self.reader.malformed("directory.msgpack", "bytes behind the value")
        return value

    def value(self, depth: int) -> Value:
        self.count += 1
        if self.count > self.most:
            raise self.reader.malformed("directory.values", f"more than {self.most} values")
        form = self.reader.u8()
        if form <= 0x7F:  # positive fixint
            return form
        if form <= 0x8F:
            return self.map(form & 15, depth)
        if form <= 0x9F:
            return self.array(form & 15, depth)
        if form <= 0xBF:
            return self.string(form & 31)
        if form >= 0xE0:  # negative fixint
            return form - 256
        if form in (0xC2, 0xC3):
            return form == 0xC3
        if form in STRING_FORMS:
            return self.string(self.number(*STRING_FORMS[form]))
        if form in ARRAY_FORMS:
            return self.array(self.number(*ARRAY_FORMS[form]), depth)
        if form in MAP_FORMS:
            return self.map(self.number(*MAP_FORMS[form]), depth)
        if form in UNSIGNED_FORMS:
            return self.number(*UNSIGNED_FORMS[form])
        if form in SIGNED_FORMS:
            size, largest = SIGNED_FORMS[form]
            negative = int.from_bytes(self.reader.bytes(size), "big", signed=True)
            if negative > largest:
                raise self.canonical(f"{negative} is not in its shortest form")
            return negative
        if form == 0xC1:
            raise self.reader.malformed("directory.msgpack", "the byte c1 begins no value")
        # > it is made of nil, booleans, integers, strings of valid UTF-8, arrays and maps only: no
        # > floating-point numbers, no binary strings, no extension types; -- 4.3
        if form != 0xC0:
            raise self.canonical(f"a value of form {form:#04x}")
        return None

    # > every integer has the shortest of its forms, integers of 0 and above one of the unsigned
    # > forms (positive fixint, uint 8 to uint 64); -- 4.3
    # > every string, array and map has its length in the shortest form; -- 4.3
    def number(self, size: int, smallest: int) -> int:
        number = int.from_bytes(self.reader.bytes(size), "big")
        if number < smallest:
            raise self.canonical(f"{number} is not in its shortest form")
        return number

    def string(self, n: int) -> str:
        try:
            return self.reader.bytes(n).decode("utf-8")
        except UnicodeDecodeError:
            raise self.canonical("a string is not valid UTF-8") from None

    def array(self, n: int, depth: int) -> list[Value]:
        self.check_nesting(depth)
        return [self.value(depth + 1) for _ in range(n)]

    # > keys of maps are strings, all different, in ascending order of their UTF-8 bytes. -- 4.3
    def map(self, n: int, depth: int) -> dict[str, Value]:
        self.check_nesting(depth)
        result: dict[str, Value] = {}
        last: bytes | None = None
        for _ in range(n):
            key = self.value(depth + 1)
            if not isinstance(key, str):
                raise self.canonical("a key is not a string")
            if last is not None and key.encode() <= last:
                raise self.canonical(f"key {key!r} is out of order")
            last = key.encode()
            result[key] = self.value(depth + 1)
        return result

    def check_nesting(self, depth: int) -> None:
        if depth > MAX_NESTING:
            raise self.reader.malformed("directory.nesting", f"depth {depth}")

    def canonical(self, what: str) -> Malformed:
        return self.reader.malformed("directory.canonical", what)


@dataclass
class Segment:
    length: int
    crc: int
    offset: int = 0  # see place_segments


@dataclass
class Entry:
    """An entry of the directory; a tied one has only `name` and `same_as`."""

    name: str
    same_as: int | None = None
    dtype: str = ""
    shape: tuple[int, ...] = ()
    coding: int = RAW
    check: int = 0
    segments: list[Segment] = field(default_factory=list)
    bundle: int | None = None
    unsupported: Unsupported | None = None  # unknown dtype or coding

    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass
class Directory:
    metadata: dict[str, str]
    tables: Segment | None
    tables_size: int
    bundles: list[Segment]
    entries: list[Entry]


# > Its elements are listed below. Each MUST be there unless it is said to be optional, and MUST
# > have the type given **[directory.type]**. Integers MUST lie in the range given
# > **[directory.range]**. Further keys may be there in any map; a decoder MUST ignore them. -- 4.3
def typed(value: Value, kind: type[Kind], what: str) -> Kind:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Malformed("directory.type", f"{what} is not of type {kind.__name__}")
    return value


def integer(value: Value, low: int, high: int, what: str) -> int:
    number = typed(value, int, what)
    if not low <= number <= high:
        raise Malformed("directory.range", f"{what} {number} is not in {low} .. {high}")
    return number


# > Version 0.9 defines no features. A decoder MUST report a file that names one as unsupported
# > **[directory.features]**. -- 4.3
def read_directory(root: Value) -> Directory:
    directory = typed(root, dict, "directory")
    features = [
        typed(name, str, "feature")
        for name in typed(directory.get("features", []), list, "features")
    ]
    if features:
        raise Unsupported("directory.features", f"feature {features[0]!r}")
    metadata = typed(directory.get("metadata", {}), dict, "metadata")
    for text in metadata.values():
        typed(text, str, "value of metadata")
    tables, tables_size = None, 0
    if "tables" in directory:
        tables, tables_size = read_tables_segment(directory["tables"])
    bundles = read_segments(directory.get("bundles", []), "bundles")
    entries: list[Entry] = []
    names: set[str] = set()
    for item in typed(directory.get("tensors", []), list, "tensors"):
        entry = read_entry(typed(item, dict, "entry"), entries, len(bundles), names)
        names.add(entry.name)
        entries.append(entry)
    # > A tensor with `bundle` MUST have coding PLANES and no segments, and each bundle MUST have at
    # > least one tensor **[directory.bundle]**. -- 4.3
    unused = set(range(len(bundles))) - {entry.bundle for entry in entries}
    if unused:
        raise Malformed("directory.bundle", f"bundle {min(unused)} has no tensor")
    return Directory(metadata, tables, tables_size, bundles, entries)


# > A *segment* is an array of two integers: length in bytes, 0 .. 2^63 - 1, and CRC-32, 0 .. 2^32 -
# > 1. -- 4.3
def read_segments(value: Value, what: str) -> list[Segment]:
    segments = []
    for item in typed(value, list, what):
        pair = typed(item, list, "segment")
        if len(pair) != 2:
            raise Malformed("directory.type", f"a segment is an array of {len(pair)}, not of 2")
        length = integer(pair[0], 0, 2**63 - 1, "length of a segment")
        segments.append(Segment(length, integer(pair[1], 0, 2**32 - 1, "CRC-32")))
    return segments


# > A *tables segment* is an array of three: length, 0 .. 2^32, CRC-32, and size, 0 ..
# > MAX_TABLES_SIZE. -- 4.3
def read_tables_segment(value: Value) -> tuple[Segment, int]:
    triple = typed(value, list, "tables segment")
    if len(triple) != 3:
        raise Malformed("directory.type", f"tables segment of {len(triple)} integers, not of 3")
    length = integer(triple[0], 0, 2**32, "length of the tables segment")
    crc = integer(triple[1], 0, 2**32 - 1, "CRC-32")
    return Segment(length, crc), integer(triple[2], 0, MAX_TABLES_SIZE, "size of the tables")


def read_entry(
    item: dict[str, Value], earlier: list[Entry], bundles: int, names: set[str]
) -> Entry:
    # > `name` MUST have 1 to MAX_NAME bytes and differ from the names of all earlier entries
    # > **[directory.name]**. -- 4.3
    name = typed(item.get("name"), str, "name")
    if not 1 <= len(name.encode()) <= MAX_NAME:
        raise Malformed("directory.name", f"a name of {len(name.encode())} bytes")
    if name in names:
        raise Malformed("directory.name", f"a second tensor {name!r}")
    # > The tensor that `same_as` points to MUST NOT itself be tied **[directory.same_as]**. -- 4.3
    if "same_as" in item:
        same_as = integer(item["same_as"], 0, len(earlier) - 1, "same_as")
        if earlier[same_as].same_as is not None:
            raise Malformed("directory.same_as", f"{name!r} is tied to a tied tensor")
        return Entry(name, same_as)

    entry = Entry(
        name,
        dtype=typed(item.get("dtype"), str, "dtype"),
        shape=tuple(
            integer(n, 0, 2**48, "dimension") for n in typed(item.get("shape"), list, "shape")
        ),
        coding=integer(item.get("coding"), 0, 255, "coding"),
        check=integer(item.get("check"), 0, 2**32 - 1, "check"),
        segments=read_segments(item.get("segments", []), "segments"),
    )
    if "bundle" in item:
        entry.bundle = integer(item["bundle"], 0, bundles - 1, "bundle")
    if "snr" in item:
        integer(item["snr"], -(2**20), 2**20, "snr")
    # > `shape` MUST have at most MAX_DIMENSIONS dimensions, and the product of those that are not 0
    # > MUST be at most MAX_ELEMENTS; an empty `shape` is that of a scalar, with one element
    # > **[directory.shape]**. -- 4.3
    if len(entry.shape) > MAX_DIMENSIONS or math.prod(n for n in entry.shape if n) > MAX_ELEMENTS:
        raise Malformed("directory.shape", f"shape {entry.shape} of {name!r}")
    # > A decoder MUST report an unknown `dtype` **[directory.dtype]** or an unknown `coding`
    # > **[directory.coding]** as unsupported. -- 4.3
    #
    # Section 12.1: of such an entry only the rules above apply.
    if entry.dtype not in ELEMENT_TYPES:
        entry.unsupported = Unsupported("directory.dtype", f"element type {entry.dtype!r}")
    elif entry.coding not in (RAW, PLANES, TRANSFORM):
        entry.unsupported = Unsupported("directory.coding", f"coding {entry.coding}")
    # > A tensor with coding TRANSFORM MUST have a floating-point type and at least one element
    # > **[directory.transform]**. -- 4.3
    elif entry.bundle is not None and (entry.coding != PLANES or entry.segments):
        raise Malformed("directory.bundle", f"{name!r} in a bundle has a coding or segments")
    elif entry.coding == TRANSFORM and (
        not ELEMENT_TYPES[entry.dtype].floating or entry.elements() == 0
    ):
        raise Malformed("directory.transform", f"{name!r} cannot be transform-coded")
    if entry.unsupported is not None:
        entry.unsupported.tensor = name
    return entry


# ---- 4.4 Segments ----


# > The segments of a file are, in this order: the tables segment, if there is one; the bundles; and
# > for each entry of `tensors` in order its `segments`. The bytes of a segment MUST have the CRC-32
# > that the directory states **[segment.crc]**. -- 4.4
# > Segments lie back to back: the first begins behind the directory, each other one where the one
# > before it ends. The file MUST end where the last segment ends **[container.length]**. -- 4.1
def place_segments(directory: Directory, reader: Reader) -> None:
    segments = [] if directory.tables is None else [directory.tables]
    segments += directory.bundles
    for entry in directory.entries:
        segments += entry.segments
    for segment in segments:
        segment.offset = reader.position
        if zlib.crc32(reader.bytes(segment.length)) != segment.crc:
            raise Malformed("segment.crc", "the segment is damaged", segment.offset)
    if reader.left():
        raise reader.malformed("container.length", f"{reader.left()} bytes behind the segments")


# > The segments of a RAW tensor, any number of them, MUST together have as many bytes as the tensor
# > **[raw.length]**. They are its elements in row-major order, each with its least significant byte
# > first. -- 4.4
def decode_raw(entry: Entry, segments: list[Reader]) -> bytes:
    size, total = (
        entry.elements() * ELEMENT_TYPES[entry.dtype].size,
        sum(s.left() for s in segments),
    )
    if total != size:
        raise Malformed("raw.length", f"{total} bytes for a tensor of {size}")
    return b"".join(segment.data for segment in segments)


# > PLANES, not in a bundle: ceil(E / MAX_SYMBOLS) for E elements; segment k is `block( )` of
# > chapter 8 for the elements from k * MAX_SYMBOLS on, MAX_SYMBOLS of them or those that are left;
# > -- 4.4
def decode_planes(entry: Entry, segments: list[Reader], tables: list[Table]) -> bytes:
    count = entry.elements()
    check_segment_count(segments, ceil_divide(count, MAX_SYMBOLS))
    result = []
    for k, segment in enumerate(segments):
        elements = min(MAX_SYMBOLS, count - k * MAX_SYMBOLS)
        result += read_block(segment, [Part(ELEMENT_TYPES[entry.dtype], elements)], tables)
    return b"".join(result)


# > TRANSFORM: the number of tiles (7.1), but at least 1. The first segment is `transform_head( )`
# > of chapter 9, followed by `payload( )` of the first tile if there is one; each further segment
# > is the `payload( )` of the next tile. -- 4.4
def decode_transform(entry: Entry, segments: list[Reader], tables: list[Table]) -> bytes:
    if not segments:
        raise Malformed("tensor.segments", "no segment")
    head = read_head(segments[0], entry.shape, tables)
    check_bound(head)
    check_segment_count(segments, max(head.tile_count(), 1))
    coefficients = [0] * math.prod(head.channels())
    for segment, (rows, columns) in zip(segments, head.tiles(), strict=False):
        payload = iter(read_payload(segment, head, rows, columns, tables))
        for row in rows:
            for column in columns:
                coefficients[row * len(head.depths) + column] = next(payload)
    for segment in segments:
        segment.end()
    return reconstruct(head, coefficients, entry)


# > The number of a tensor's segments MUST be **[tensor.segments]**: -- 4.4
def check_segment_count(segments: list[Reader], count: int) -> None:
    if len(segments) != count:
        raise Malformed("tensor.segments", f"{len(segments)} segments instead of {count}")


# > Each bundle is one `block( )` whose parts are the tensors that name the bundle, in the order of
# > their entries. -- 4.4
# > A bundle MUST have at most MAX_SYMBOLS elements in all **[bundle.size]**. -- 8.1
def decode_bundle(segment: Reader, members: list[Entry], tables: list[Table]) -> list[bytes]:
    elements = sum(entry.elements() for entry in members)
    if elements > MAX_SYMBOLS:
        raise Malformed("bundle.size", f"{elements} elements", segment.start)
    parts = [Part(ELEMENT_TYPES[entry.dtype], entry.elements()) for entry in members]
    return read_block(segment, parts, tables)


def ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


# ---- 4.5 Tensor check ----


# > `check` of an entry MUST be the CRC-32 of the bytes of all elements of the decoded tensor in
# > row-major order, each with its least significant byte first, whatever the coding
# > **[tensor.check]**. -- 4.5
# > `BOOL` MUST be 0 for false or 1 for true **[tensor.bool]**. -- 4.6
def check_tensor(entry: Entry, elements: bytes) -> None:
    if entry.dtype == "BOOL" and elements.strip(b"\0\1"):
        raise Malformed("tensor.bool", "an element is neither 0 nor 1")
    if zlib.crc32(elements) != entry.check:
        raise Malformed("tensor.check", "the decoded elements have another CRC-32")


# ---- 4.6 Element types ----


@dataclass(frozen=True)
class ElementType:
    size: int
    exponent: int = 0  # bits; 0 for a type that is not floating-point
    mantissa: int = 0
    infinities: bool = True

    @property
    def floating(self) -> bool:
        return self.exponent > 0


ELEMENT_TYPES = {
    "BOOL": ElementType(1),
    "U8": ElementType(1),
    "I8": ElementType(1),
    "U16": ElementType(2),
    "I16": ElementType(2),
    "U32": ElementType(4),
    "I32": ElementType(4),
    "U64": ElementType(8),
    "I64": ElementType(8),
    "F8_E4M3": ElementType(1, 4, 3, infinities=False),
    "F8_E5M2": ElementType(1, 5, 2),
    "F16": ElementType(2, 5, 10),
    "BF16": ElementType(2, 8, 7),
    "F32": ElementType(4, 8, 23),
    "F64": ElementType(8, 11, 52),
}


# > **Rounding** of a finite double v to such a type gives the pattern with the sign of v (the sign
# > of zero included) whose value is nearest to v, computed as if the exponent had no upper end; of
# > two equally near ones that with even y. -- 4.6
# > W[o,i,t] is v rounded to the element type (4.6); beyond its largest finite number it is that
# > number, with the sign of v. -- 10.1
def rounded(v: float, kind: ElementType) -> int:
    """The pattern of a double rounded to a type; the exponent field has no upper end until min."""
    bias = (1 << (kind.exponent - 1)) - 1
    # The exponent field of v; 1 has the ulp of zero and of subnormal numbers too.
    x = max(math.frexp(v)[1] - 1 + bias, 1) if v else 1
    y = round(math.ldexp(abs(v), kind.mantissa + bias - x))  # v in ulps: half to even
    # y has the bit 2^m of a normal number, which adds 1 to the field x - 1, and perhaps a carry.
    pattern = ((x - 1) << kind.mantissa) + y
    if kind.infinities:
        special = ((1 << kind.exponent) - 1) << kind.mantissa  # infinity
    else:
        special = (1 << (kind.exponent + kind.mantissa)) - 1  # NaN
    sign = 1 if math.copysign(1.0, v) < 0 else 0
    return sign << (kind.exponent + kind.mantissa) | min(pattern, special - 1)


# ---- 5.1 Tables ----


@dataclass
class Table:
    low: int
    size: int
    low_bits: int
    weights: list[int]  # by number; the last one is that of the escape, if there is one
    starts: list[int]  # of the intervals: sums of the weights before


# > `count` MUST be at most MAX_TABLES **[table.count]**. -- 5.1
# > If size is 0, the segment is `tables( )` of 5.1; otherwise it is `deflated(size)`, and `tables(
# > )` is what it inflates to. -- 4.3
def read_tables(segment: Reader, size: int) -> list[Table]:
    reader = Reader(inflate(segment.data, size)) if size else segment
    count = reader.uv()
    if count > MAX_TABLES:
        raise reader.malformed("table.count", f"{count} tables")
    tables: list[Table] = []
    total = 0
    for _ in range(count):
        tables.append(read_table(reader, MAX_WEIGHTS - total))
        total += tables[-1].size
    reader.end()
    return tables


# > `flags` MUST NOT have bits other than SYMMETRIC (1) and ESCAPE (2) set **[table.flags]**.
# > `low_bits` MUST be at most MAX_LOW_BITS **[table.low_bits]**. With SYMMETRIC, low is -half, size
# > is 2 * half + 1, and weight[-s] is weight[s]. -- 5.1
# > `size` MUST be at least 1 and below MAX_ALPHABET **[table.size]**, and the sizes of all tables
# > together at most MAX_WEIGHTS **[table.total]**. max(-low, low + size) * 2^low_bits MUST be at
# > most MAX_VALUE **[table.range]**. Each weight, escape_weight included, MUST be at least 1
# > **[table.weight]**. Their sum, escape_weight included, MUST be TABLE_SUM = 2^TABLE_BITS; with
# > SYMMETRIC each weight but weight[0] counts twice **[table.sum]**. -- 5.1
def read_table(reader: Reader, most: int) -> Table:
    flags, low_bits = reader.u8(), reader.u8()
    if flags & ~(SYMMETRIC | ESCAPE):
        raise reader.malformed("table.flags", f"flags {flags}")
    if low_bits > MAX_LOW_BITS:
        raise reader.malformed("table.low_bits", f"{low_bits} low bits")
    if flags & SYMMETRIC:
        half = reader.uv(MAX_ALPHABET)
        low, size, stored = -half, 2 * half + 1, half + 1
    else:
        low = reader.sv(MAX_TABLE_LOW)
        stored = size = reader.uv(MAX_ALPHABET)
    if not 1 <= size < MAX_ALPHABET:
        raise reader.malformed("table.size", f"size {size}")
    if size > most:
        raise reader.malformed("table.total", f"more than {MAX_WEIGHTS} weights")
    if max(-low, low + size) << low_bits > MAX_VALUE:
        raise reader.malformed("table.range", f"low {low}, size {size}, {low_bits} low bits")
    weights = [reader.uv() for _ in range(stored)]
    if flags & SYMMETRIC:
        weights = weights[:0:-1] + weights
    if flags & ESCAPE:
        weights.append(reader.uv())
    if min(weights) < 1:
        raise reader.malformed("table.weight", "a weight is 0")
    if sum(weights) != TABLE_SUM:
        raise reader.malformed("table.sum", f"weights sum to {sum(weights)}, not {TABLE_SUM}")
    # > Member n with weight f has the interval [c, c + f) of 0 .. TABLE_SUM - 1, where c is the sum
    # > of the weights of members 0 .. n - 1. -- 5.1
    return Table(low, size, low_bits, weights, list(accumulate(weights[:-1], initial=0)))


# > A table index in a segment MUST be below `count` (0 without tables) **[table.index]**; chapter 9
# > has rules of its own for the map of classes. -- 5.1
def read_table_index(reader: Reader, tables: list[Table]) -> int:
    index = reader.u8()
    if index >= len(tables):
        raise reader.malformed("table.index", f"table {index} of {len(tables)}")
    return index


# ---- 5.2 Range decoder ----


class RangeDecoder:
    """The Python code of section 5.2; bisect takes the place of the search for `number`."""

    def __init__(self, words: Sequence[int]) -> None:
        self.words = words
        self.diff = self.word(0) << 32 | self.word(1)
        self.range = 2**64 - 1
        self.position = 2
        self.used = False

    # > Words past the last one count as 0. -- 5.2
    def word(self, i: int) -> int:
        return self.words[i] if i < len(self.words) else 0

    # > `decode` returns the number of the next symbol, whose table has the weights `weights` in the
    # > order of their numbers; it is not called for a table with one member, whose only symbol has
    # > number 0 and takes no bits. -- 5.2
    # > `slot` MUST be below TABLE_SUM at each call **[payload.invalid]**. -- 5.2
    def decode(self, table: Table) -> int:
        self.used = True
        scale = (self.range >> 24) << (24 - TABLE_BITS)
        slot = self.diff // scale
        if slot >= TABLE_SUM:
            raise Malformed("payload.invalid", "the words are not those of any symbols")
        number = bisect_right(table.starts, slot) - 1
        self.diff -= scale * table.starts[number]
        self.range = scale * table.weights[number]
        if self.range < 2**32:
            self.range <<= 32
            self.diff = self.diff << 32 | self.word(self.position)
            self.position += 1
        return number

    # > The words MUST be exactly those that the encoder of 5.3 writes for the decoded symbols; no
    # > words if `decode` is never called **[payload.end]**. A decoder checks this with `end` after
    # > the last symbol, or by encoding the symbols again. -- 5.2
    def end(self) -> None:
        count = 0
        if self.used:
            extra = self.range - self.diff < 2**32
            count = self.position - 2 + 1 + extra
            if self.diff >= 2**32 or (extra and self.word(count - 1) != 0):
                raise Malformed("payload.end", "the last words are not canonical")
        if len(self.words) != count:
            raise Malformed("payload.end", f"{len(self.words)} words instead of {count}")


# ---- 5.4 Streams ----


class Stream:
    """A stream, read to its end: `step` decodes more and more of its integers, `end` checks.

    Args:
        low_bits: for each integer that of its table, which is known before the table itself.
    """

    def __init__(self, reader: Reader, low_bits: Sequence[int], tables: list[Table]) -> None:
        self.tables, self.start = tables, reader.start
        words, escapes = reader.uv(), reader.uv(len(low_bits))
        escape_size = reader.u8() if escapes else 1
        # > `escape_size` MUST be 1, 2 or 4 **[stream.escape_size]**. Each `escape[i]` is a signed
        # > integer in two's complement, least significant byte first. -- 5.4
        if escape_size not in (1, 2, 4):
            raise reader.malformed("stream.escape_size", f"escapes of {escape_size} bytes")
        packed_words = reader.bytes(4 * words)
        self.decoder = RangeDecoder(struct.unpack(f"<{words}I", packed_words))
        packed_escapes = reader.bytes(escape_size * escapes)
        self.escapes = [
            int.from_bytes(packed_escapes[i : i + escape_size], "little", signed=True)
            for i in range(0, len(packed_escapes), escape_size)
        ]
        self.escapes_decoded = 0
        # > `low` packs, for all integers in order of position, the low_bits lowest bits of each,
        # > low_bits being that of its table. -- 5.4
        self.low = unpack(reader, low_bits)
        self.integers = [0] * len(low_bits)

    # > Within a step, integers are taken in ascending order of their table's index, those of one
    # > table in ascending order of position. -- 5.4
    def step(self, positions: Iterable[int], table_of: Sequence[int]) -> None:
        for position in sorted(positions, key=table_of.__getitem__):
            table = self.tables[table_of[position]]
            value = self.symbol(table) * 2**table.low_bits + self.low[position]
            # > The integer is symbol * 2^low_bits plus these bits. It MUST be in -MAX_VALUE ..
            # > MAX_VALUE **[stream.range]**. -- 5.4
            if not -MAX_VALUE <= value <= MAX_VALUE:
                raise Malformed("stream.range", f"integer {value}", self.start)
            self.integers[position] = value

    # > If the number of a symbol is that of the escape, the symbol is the next of `escape[0]`,
    # > `escape[1]`, ..., in the order of decoding. It MUST NOT be in low .. low + size - 1 of its
    # > table **[stream.escape]**. The number of escapes decoded MUST equal `escapes`
    # > **[stream.escapes]**. In any other case the symbol is low + number. -- 5.4
    def symbol(self, table: Table) -> int:
        number = self.decoder.decode(table) if len(table.weights) > 1 else 0
        if number < table.size:
            return table.low + number
        if self.escapes_decoded == len(self.escapes):
            raise Malformed("stream.escapes", f"more than {len(self.escapes)} escapes", self.start)
        symbol = self.escapes[self.escapes_decoded]
        self.escapes_decoded += 1
        if table.low <= symbol < table.low + table.size:
            raise Malformed("stream.escape", f"symbol {symbol} needs no escape", self.start)
        return symbol

    def end(self) -> list[int]:
        """All integers, once every position has been in a step."""
        if self.escapes_decoded != len(self.escapes):
            what = f"{self.escapes_decoded} of {len(self.escapes)} escapes are used"
            raise Malformed("stream.escapes", what, self.start)
        self.decoder.end()
        return self.integers


# > Without a trellis there is one step, of all integers. -- 5.4
def read_stream(reader: Reader, table_of: Sequence[int], tables: list[Table]) -> list[int]:
    stream = Stream(reader, [tables[index].low_bits for index in table_of], tables)
    stream.step(range(len(table_of)), table_of)
    return stream.end()


# ---- 6.1 Packing ----


# > To *pack* unsigned integers of given widths, 0 to 57 bits each, is to lay the bits of each,
# > least significant first, behind those of the one before it; bit b of the sequence is bit b mod 8
# > of byte floor(b / 8). The sequence takes ceil(n / 8) bytes for n bits. The spare bits of the
# > last byte MUST be 0 **[bits.spare]**. -- 6.1
def unpack(reader: Reader, widths: Sequence[int]) -> list[int]:
    bits = sum(widths)
    packed = reader.bytes(ceil_divide(bits, 8))
    if bits % 8 and packed[-1] >> bits % 8:
        raise reader.malformed("bits.spare", "spare bits are not 0")
    values, b = [], 0
    for width in widths:
        window = int.from_bytes(packed[b // 8 : b // 8 + 8], "little")  # 57 bits and those before
        values.append(window >> b % 8 & (2**width - 1))
        b += width
    return values


# ---- 6.2 Vectors and 6.3 The stream of a head ----


@dataclass
class Run:
    """Integers that the stream of a head codes, all with one table; empty until it is read."""

    table: int
    count: int
    most: int | None  # of a vector; None for the entries of a row of a basis
    integers: list[int] = field(default_factory=list)


# > `kind` MUST be one of these three **[vector.kind]**. `width` MUST be 1 to 8 **[vector.width]**.
# > With CONSTANT all n integers are `value`. With CODED they are in the stream of the head (6.3),
# > all with the table `table`. All n integers MUST be in 0 .. most **[vector.range]**. -- 6.2
def read_vector(
    reader: Reader, n: int, most: int, tables: list[Table], runs: list[Run]
) -> Sequence[int]:
    """The integers; if they are coded, the list of a new run, filled by read_head_stream."""
    kind = reader.u8()
    if kind == VECTOR_CODED:
        runs.append(Run(read_table_index(reader, tables), n, most))
        return runs[-1].integers
    if kind == VECTOR_CONSTANT:
        value = reader.uv(MAX_VECTOR)
        if n > 0:
            check_vector([value], most)
        return bytes([value]) * n
    if kind == VECTOR_PACKED:
        width = reader.u8()
        if not 1 <= width <= 8:
            raise reader.malformed("vector.width", f"width {width}")
        if n * width > 8 * reader.left():  # before a list of n widths is made
            raise reader.malformed("segment.short", f"{n} values of {width} bits are needed")
        values = bytes(unpack(reader, [width] * n))
        check_vector(values, most)
        return values
    raise reader.malformed("vector.kind", f"kind {kind} of a vector")


def check_vector(values: Sequence[int], most: int) -> None:
    if values and (min(values) < 0 or max(values) > most):
        raise Malformed("vector.range", f"an integer of a vector is not in 0 .. {most}")


# > A head (chapter 9) ends with one `stream( )`, without a trellis, if it has at least one vector
# > of kind CODED or one explicit basis. It codes the integers of these elements as one row, in the
# > order in which the elements stand in the head. There MUST be at most min(MAX_HEAD, 2^16 + 4 * E)
# > of them for a tensor of E elements **[head.size]**. -- 6.3
def read_head_stream(reader: Reader, runs: list[Run], elements: int, tables: list[Table]) -> None:
    count = sum(run.count for run in runs)
    if count > min(MAX_HEAD, 2**16 + 4 * elements):
        raise reader.malformed("head.size", f"{count} coded integers for {elements} elements")
    table_of = [run.table for run in runs for _ in range(run.count)]
    integers = iter(read_stream(reader, table_of, tables))
    for run in runs:
        run.integers += [next(integers) for _ in range(run.count)]
        if run.most is not None:
            check_vector(run.integers, run.most)


# ---- 7 Payloads and the trellis ----


# > Both give the indices of the tile in order of position. In a range-coded payload, the table of
# > an index is that of its class (9.5) and, with a trellis, of its quantizer. An index k of a
# > column of depth d MUST be in -2^(d-1) .. 2^(d-1) - 1 **[payload.depth]**. -- 7.1
def read_payload(
    reader: Reader, head: Head, rows: range, columns: list[int], tables: list[Table]
) -> list[int]:
    """The coefficients of a tile, in order of position."""
    depths = [head.depths[column] for column in columns] * len(rows)
    if head.payload_kind == FIXED:
        # > In a fixed-length payload, an index has the width d of its column and is packed as k mod
        # > 2^d. -- 7.1
        packed = zip(unpack(reader, depths), depths, strict=True)
        indices = [k - 2**d if k >> (d - 1) else k for k, d in packed]
        # > With the uniform quantizer, coefficients are the indices. -- 7.1
        if head.quantizer == UNIFORM:
            return indices
        return trellis(indices, len(columns), head.steps, None, [])
    table_of = [head.table(row, column) for row in rows for column in columns]
    stream = Stream(reader, [tables[index].low_bits for index in table_of], tables)
    if head.quantizer == UNIFORM:
        stream.step(range(len(table_of)), table_of)
        coefficients = stream.integers
    else:
        coefficients = trellis(stream.integers, len(columns), head.steps, stream, table_of)
    for k, d in zip(stream.end(), depths, strict=True):
        if not -(2 ** (d - 1)) <= k < 2 ** (d - 1):
            raise reader.malformed("payload.depth", f"index {k} in a column of depth {d}")
    return coefficients


NEXT_STATE = ((0, 2), (5, 7), (1, 3), (4, 6), (2, 0), (7, 5), (3, 1), (6, 4))


# > With the trellis quantizer, the rows of each column of a tile are cut into *segments of the
# > trellis* of `steps` rows from the top; the last may be shorter. Each segment begins in state 0
# > and passes its indices from top to bottom. In state s: -- 7.2
# > A range-coded payload with a trellis is decoded in min(steps, rows of the tile) steps: step t,
# > from 0, takes the rows t, t + steps, t + 2 * steps, ... of the tile. The table of an index is
# > the one that its class gives with quantizer 0, and the one after it with quantizer 1. -- 7.2
def trellis(
    indices: list[int], columns: int, steps: int, stream: Stream | None, table_of: list[int]
) -> list[int]:
    """The coefficients of a tile; a stream fills `indices` as the states become known."""
    count = len(indices)
    rows = count // columns
    coefficients, states = [0] * count, [0] * count
    for t in range(min(steps, rows)):
        positions = [
            row * columns + column for row in range(t, rows, steps) for column in range(columns)
        ]
        if stream is not None:
            for position in positions:
                table_of[position] += states[position] % 2
            stream.step(positions, table_of)
        for position in positions:
            k, s = indices[position], states[position]
            # > the coefficient of an index k is 2k with quantizer 0, and 2k - sign(k) with
            # > quantizer 1; -- 7.2
            coefficients[position] = 2 * k - s % 2 * ((k > 0) - (k < 0))
            below = position + columns
            if t + 1 < steps and below < count:
                states[below] = NEXT_STATE[s][k % 2]
    return coefficients


# ---- 8 Planes ----


@dataclass
class Part:
    kind: ElementType
    count: int  # elements
    kept: int = 0
    flags: int = 0
    table: int = 0
    offset: int = 0

    # > The *width* of a part is kept, plus 1 for a floating-point part without UNSIGNED. -- 8.3
    @property
    def width(self) -> int:
        return self.kept + (self.kind.floating and not self.flags & UNSIGNED)


def read_block(reader: Reader, parts: list[Part], tables: list[Table]) -> list[bytes]:
    """The elements of each part."""
    head_size = reader.uv(MAX_PART_HEAD * len(parts))
    head = Reader(bytes(read_plane(reader, [8] * head_size)))
    for part in parts:
        read_part(head, part, tables)
    head.end()

    # > The stream codes, without a trellis, as one row, an integer for each element of each part
    # > with CODED, in order, with the part's table. -- 8.2
    coded = [part for part in parts if part.flags & CODED]
    integers: Iterator[int] = iter(())
    if coded:
        table_of = [part.table for part in coded for _ in range(part.count)]
        integers = iter(read_stream(reader, table_of, tables))

    # > `planes` is ceil(w / 8) for the largest width w of all parts that have elements, 0 if there
    # > are none. Plane j has a value for each element of each part of a width above 8j, in order:
    # > the bits 8j and up of its rest, min(8, width - 8j) of them. -- 8.3
    rests = [[0] * part.count for part in parts]
    for low in range(0, max((part.width for part in parts if part.count), default=0), 8):
        in_plane = [k for k, part in enumerate(parts) if part.width > low]
        widths = [min(8, parts[k].width - low) for k in in_plane for _ in range(parts[k].count)]
        values = iter(read_plane(reader, widths))
        for k in in_plane:
            rests[k] = [rest | next(values) << low for rest in rests[k]]
    reader.end()
    return [join_part(part, rest, integers) for part, rest in zip(parts, rests, strict=True)]


# > `kept` MUST be at most the number of mantissa bits of a floating-point type, and at most 8 times
# > the bytes of another **[block.kept]**. `flags` MUST NOT have bits set other than UNSIGNED (1)
# > and CODED (2), and none for a type that is not floating-point **[block.flags]**. -- 8.1
def read_part(head: Reader, part: Part, tables: list[Table]) -> None:
    part.kept, part.flags = head.u8(), head.u8()
    if part.kept > (part.kind.mantissa if part.kind.floating else 8 * part.kind.size):
        raise head.malformed("block.kept", f"{part.kept} bits are kept")
    if part.flags & ~(UNSIGNED | CODED) or (part.flags and not part.kind.floating):
        raise head.malformed("block.flags", f"flags {part.flags}")
    if part.flags & CODED:
        part.table = read_table_index(head, tables)
    if part.kind.floating:
        part.offset = head.sv(MAX_OFFSET)


# > `kind` MUST be PACKED or DEFLATED **[plane.kind]**. A deflated plane has one byte for each
# > value; the byte MUST be below 2^b for a value of b bits **[plane.range]**. -- 8.3
def read_plane(reader: Reader, widths: Sequence[int]) -> Sequence[int]:
    kind = reader.u8()
    if kind == PLANE_PACKED:
        return unpack(reader, widths)
    if kind != PLANE_DEFLATED:
        raise reader.malformed("plane.kind", f"kind {kind} of a plane")
    values = inflate(reader.bytes(reader.uv(reader.left())), len(widths))
    if any(value >> width for value, width in zip(values, widths, strict=True)):
        raise reader.malformed("plane.range", "a value has more bits than it may")
    return values


# > The exponent of an element (4.6) is this integer plus `offset`; in a floating-point part without
# > CODED every exponent is `offset`. It MUST be in 0 .. 2^e - 1 for a type with e exponent bits
# > **[block.exponent]**. -- 8.2
# > floating-point with UNSIGNED: y', the sign being 0; -- 8.3
# > floating-point without: 2 * y' + s, s the sign bit; -- 8.3
# > otherwise: the element, as an unsigned integer. -- 8.3
# > The mantissa is y = y' * 2^(m - kept) for m mantissa bits. -- 8.3
def join_part(part: Part, rests: list[int], integers: Iterator[int]) -> bytes:
    """Bytes of the elements; `integers` are taken from if the exponents are coded."""
    kind = part.kind
    if not kind.floating:
        return b"".join(rest.to_bytes(kind.size, "little") for rest in rests)
    elements = []
    for rest in rests:
        exponent = part.offset + (next(integers) if part.flags & CODED else 0)
        if not 0 <= exponent < 2**kind.exponent:
            raise Malformed("block.exponent", f"exponent {exponent}")
        y, sign = (rest, 0) if part.flags & UNSIGNED else (rest >> 1, rest & 1)
        pattern = (sign << kind.exponent | exponent) << kind.mantissa
        pattern |= y << (kind.mantissa - part.kept)
        elements.append(pattern.to_bytes(kind.size, "little"))
    return b"".join(elements)


# ---- 9 The transform-coded record ----


@dataclass
class Basis:
    kind: int
    channels: int
    dimensions: list[int]  # of the axis
    shifts: Sequence[int] = ()
    entries: list[Run] = field(default_factory=list)  # one for each row


@dataclass
class Head:
    roles: list[int]
    scale: float
    quantizer: int
    steps: int
    payload_kind: int
    tile_rows: int
    tile_columns: int
    bases: list[Basis]  # OUT, IN, TAPS
    depths: Sequence[int]
    table_map: list[int]
    levels: list[Sequence[int]]  # OUT, IN, TAPS; none in a fixed-length payload
    row_scales: Sequence[int]
    multipliers: Sequence[int]
    kept: list[int] = field(default_factory=list)  # columns of depth above 0

    def channels(self) -> list[int]:
        return [basis.channels for basis in self.bases]

    # > There are ceil(O' / tile_rows) * ceil(K / tile_columns) tiles; none if O' or K is 0. -- 7.1
    def tile_count(self) -> int:
        bands = ceil_divide(self.bases[OUT].channels, self.tile_rows)
        return bands * ceil_divide(len(self.kept), self.tile_columns)

    # > Tiles are taken in bands of `tile_rows` rows from the top, each band from left to right;
    # > those at the right and bottom edge are smaller where the size does not divide. -- 7.1
    def tiles(self) -> Iterator[tuple[range, list[int]]]:
        rows = self.bases[OUT].channels
        for top in range(0, rows, self.tile_rows):
            for left in range(0, len(self.kept), self.tile_columns):
                band = range(top, min(top + self.tile_rows, rows))
                yield band, self.kept[left : left + self.tile_columns]

    # > min( levels_out[o'] + levels_in[i'] + levels_taps[t'], class_count - 1 ) -- 9.5
    # > and its table is table_map[class]. -- 9.5
    def table(self, row: int, column: int) -> int:
        i, t = divmod(column, self.bases[TAPS].channels)
        level = self.levels[OUT][row] + self.levels[IN][i] + self.levels[TAPS][t]
        return self.table_map[min(level, len(self.table_map) - 1)]


def read_head(reader: Reader, shape: tuple[int, ...], tables: list[Table]) -> Head:
    # > `role` MUST be OUT, IN or TAPS **[head.role]**. The length of an axis, O, I or T, is the
    # > product of the dimensions with its role, 1 without any. -- 9.1
    roles = list(reader.bytes(len(shape)))
    if not set(roles) <= {OUT, IN, TAPS}:
        raise reader.malformed("head.role", f"roles {roles}")
    # > scale = scale_mantissa * 2^scale_exponent. `scale_mantissa` MUST NOT be 0 **[head.scale]**.
    # > -- 9.3
    scale_mantissa, scale_exponent = reader.uv(MAX_SCALE_MANTISSA), reader.sv(MAX_SCALE_EXPONENT)
    if scale_mantissa == 0:
        raise reader.malformed("head.scale", "the scale is 0")
    # > `quantizer` is UNIFORM or TRELLIS; a decoder MUST report any other value as unsupported
    # > **[head.quantizer]**. `steps` MUST be at least 1 **[head.steps]**. `payload_kind` MUST be
    # > RANGE or FIXED **[head.payload_kind]**. tile_rows * tile_columns MUST be 1 to MAX_SYMBOLS
    # > **[head.tile]**. -- 9.1
    quantizer = reader.u8()
    if quantizer not in (UNIFORM, TRELLIS):
        raise Unsupported("head.quantizer", f"quantizer {quantizer}")
    steps = reader.uv(MAX_STEPS) if quantizer == TRELLIS else 1
    if steps < 1:
        raise reader.malformed("head.steps", "segments of the trellis without rows")
    payload_kind = reader.u8()
    if payload_kind not in (RANGE, FIXED):
        raise reader.malformed("head.payload_kind", f"payload_kind {payload_kind}")
    tile_rows, tile_columns = reader.uv(MAX_SYMBOLS), reader.uv(MAX_SYMBOLS)
    if not 1 <= tile_rows * tile_columns <= MAX_SYMBOLS:
        raise reader.malformed("head.tile", f"tiles of {tile_rows} x {tile_columns}")

    runs: list[Run] = []

    def vector(n: int, most: int) -> Sequence[int]:
        return read_vector(reader, n, most, tables, runs)

    bases = []
    for axis in (OUT, IN, TAPS):
        dimensions = [n for n, role in zip(shape, roles, strict=True) if role == axis]
        bases.append(read_basis(reader, axis, dimensions, tables, runs))
    rows, inputs, taps = (basis.channels for basis in bases)
    depths = vector(inputs * taps, MAX_DEPTH)
    table_map: list[int] = []
    levels: list[Sequence[int]] = []
    if payload_kind == RANGE:
        table_map = read_table_map(reader, quantizer, tables)
        levels = [vector(n, MAX_CLASSES) for n in (rows, inputs, taps)]
    row_scales = vector(math.prod(bases[OUT].dimensions), MAX_VECTOR)
    multipliers = vector(inputs * taps, MAX_VECTOR)
    if runs or any(basis.kind == BASIS_EXPLICIT for basis in bases):
        read_head_stream(reader, runs, math.prod(shape), tables)
    return Head(
        roles=roles,
        scale=math.ldexp(scale_mantissa, scale_exponent),
        quantizer=quantizer,
        steps=steps,
        payload_kind=payload_kind,
        tile_rows=tile_rows,
        tile_columns=tile_columns,
        bases=bases,
        depths=depths,
        table_map=table_map,
        levels=levels,
        row_scales=row_scales,
        multipliers=multipliers,
        # > Columns of depth 0 are *absent*: their coefficients are 0 and nothing is coded for them;
        # > the other columns are *kept*. -- 2
        kept=[column for column, depth in enumerate(depths) if depth > 0],
    )


# > `kind` MUST be NONE, DCT or EXPLICIT **[basis.kind]**. With NONE and DCT, the axis has as many
# > channels as positions. -- 9.2
def read_basis(
    reader: Reader, axis: int, dimensions: list[int], tables: list[Table], runs: list[Run]
) -> Basis:
    kind, length = reader.u8(), math.prod(dimensions)
    if kind == BASIS_NONE:
        return Basis(kind, length, dimensions)
    if kind == BASIS_DCT:
        # > DCT MUST be on the axis TAPS only, with at most MAX_DCT_DIMENSIONS dimensions of that
        # > role, each 1 to MAX_DCT, and T at most MAX_DCT_TAPS **[basis.dct]**. -- 9.2
        if axis != TAPS or len(dimensions) > MAX_DCT_DIMENSIONS:
            raise reader.malformed("basis.dct", f"a DCT on axis {axis}, dimensions {dimensions}")
        if max(dimensions, default=1) > MAX_DCT or length > MAX_DCT_TAPS:
            raise reader.malformed("basis.dct", f"a DCT of dimensions {dimensions}")
        return Basis(kind, length, dimensions)
    if kind != BASIS_EXPLICIT:
        raise reader.malformed("basis.kind", f"kind {kind} of a basis")
    # > With EXPLICIT it has `rows` channels. rows times the length of the axis MUST be at most
    # > MAX_BASIS **[basis.size]**. The stream of the head codes the entries, row by row, entries of
    # > row k with table[k]; in the order of 6.3 they stand behind `shifts`. -- 9.2
    rows = reader.uv(length)
    if rows * length > MAX_BASIS:
        raise reader.malformed("basis.size", f"{rows} rows of {length} entries")
    row_tables = [read_table_index(reader, tables) for _ in range(rows)]
    shifts = read_vector(reader, rows, MAX_BASIS_SHIFT, tables, runs)
    entries = [Run(table, length, None) for table in row_tables]
    runs += entries
    return Basis(kind, rows, dimensions, shifts, entries)


# > `row_scales` and `multipliers` give the integers r[o] and m[i',t'] as codes of 8 bits, with a
# > mantissa of ROW_SCALE_MANTISSA = 5 bits and of MULTIPLIER_MANTISSA = 3 bits: -- 9.4
def expand(code: int, mantissa: int) -> int:
    exponent, fraction = code >> mantissa, code % (1 << mantissa)
    if exponent == 0:
        return fraction
    return ((1 << mantissa) + fraction) << (exponent - 1)


# > `class_count` MUST be at least 1 **[class.count]**. With the uniform quantizer each table_map[i]
# > MUST be the index of a table; with the trellis quantizer table_map[i] and table_map[i] + 1 both
# > MUST be **[class.table]**, and these two tables MUST have the same low_bits
# > **[class.low_bits]**. -- 9.5
def read_table_map(reader: Reader, quantizer: int, tables: list[Table]) -> list[int]:
    class_count = reader.uv(MAX_CLASSES)
    if class_count < 1:
        raise reader.malformed("class.count", "no classes")
    table_map = list(reader.bytes(class_count))
    for index in table_map:
        last = index + 1 if quantizer == TRELLIS else index
        if last >= len(tables):
            raise reader.malformed("class.table", f"table {last} of {len(tables)}")
        if tables[index].low_bits != tables[last].low_bits:
            raise reader.malformed("class.low_bits", f"tables {index} and {last} differ")
    return table_map


# ---- 10.1 Weights ----


# > **Bound.** Let D be the largest depth, Q = 2^D with the trellis quantizer and 2^(D-1) with the
# > uniform one, M the largest multiplier, and for each basis G = max over n of SUM over k of
# > |B[k,n]|; each of Q, M and G is taken as 1 where it is below 1 or there is nothing to take it
# > of. The product Q * M * G_out * G_in * G_taps MUST be below 2^SUM_BITS **[reconstruct.bound]**.
# > All of it is in the head, so a decoder checks it before any payload. -- 10.1
def check_bound(head: Head) -> None:
    depth = max(head.depths, default=0)
    product = 2**depth if head.quantizer == TRELLIS else 2 ** max(depth - 1, 0)
    product *= max(expand(max(head.multipliers, default=0), MULTIPLIER_MANTISSA), 1)
    for basis in head.bases:
        if basis.kind != BASIS_NONE:
            sums = (sum(map(abs, column)) for column in synthesis_columns(basis))
            product *= max(1, max(sums))
    if product >= 2**SUM_BITS:
        raise Malformed("reconstruct.bound", f"sums may reach {product}")


# > C[o',i',t'] = q[o',i',t'] * m[i',t']. -- 10.1
# > If `taps` has a basis: C[o',i',t] = SUM over t' of C[o',i',t'] * B_taps[t',t]. -- 10.1
# > If `in` has a basis: C[o',i,t] = SUM over i' of C[o',i',t] * B_in[i',i]. -- 10.1
# > If `out` has a basis: C[o,i,t] = SUM over o' of C[o',i,t] * B_out[o',o]. -- 10.1
# > step[o] = scale * r[o], a double; v = C[o,i,t] * step[o], a double, C being converted to a
# > double without loss. -- 10.1
def reconstruct(head: Head, coefficients: list[int], entry: Entry) -> bytes:
    """Bytes of the elements, from the coefficients of all rows and columns."""
    multipliers = [expand(code, MULTIPLIER_MANTISSA) for code in head.multipliers]
    columns = len(multipliers)
    c = [q * multipliers[k % columns] for k, q in enumerate(coefficients)]
    out, inputs, taps = head.bases
    c = synthesize(c, out.channels * inputs.channels, taps, 1)
    tap_count = math.prod(taps.dimensions)
    c = synthesize(c, out.channels, inputs, tap_count)
    row_length = math.prod(inputs.dimensions) * tap_count
    c = synthesize(c, 1, out, row_length)

    kind = ELEMENT_TYPES[entry.dtype]
    patterns = []
    for o, code in enumerate(head.row_scales):
        step = head.scale * expand(code, ROW_SCALE_MANTISSA)
        row = c[o * row_length : (o + 1) * row_length]
        patterns += [rounded(float(number) * step, kind) for number in row]
    positions = element_positions(entry.shape, head.roles)
    return b"".join(patterns[position].to_bytes(kind.size, "little") for position in positions)


def synthesize(c: list[int], outer: int, basis: Basis, inner: int) -> list[int]:
    """From (outer, channels, inner) to (outer, positions, inner) of an axis, in row-major order."""
    if basis.kind == BASIS_NONE:
        return c
    columns = synthesis_columns(basis)
    block = basis.channels * inner
    result: list[int] = []
    for k in range(outer):
        vectors = [c[k * block + x : (k + 1) * block : inner] for x in range(inner)]
        result += [sum(map(mul, vector, column)) for column in columns for vector in vectors]
    return result


# > Entry n of synthesis row k is B[k,n] = entry[k,n] * 2^shifts[k]. -- 9.2
# > Where the dimensions of role TAPS are n_1, ..., n_d, position (p_1, ..., p_d) and channel (k_1,
# > ..., k_d) are both in row-major order, and B_taps[k,p] is the product of the entries (k_i, p_i)
# > of the DCT of length n_i; 1 without any dimension. -- 10.2
def synthesis_columns(basis: Basis) -> list[list[int]]:
    """For each position n of an axis the numbers B[k,n] of all channels k."""
    if basis.kind == BASIS_EXPLICIT:
        rows = list(zip(basis.entries, basis.shifts, strict=True))
        length = math.prod(basis.dimensions)
        return [[row.integers[n] << shift for row, shift in rows] for n in range(length)]
    columns = [[1]]
    for n in basis.dimensions:
        dct = [[dct_entry(COSINES[n - 1], k, p) for k in range(n)] for p in range(n)]
        columns = [[a * b for a in column for b in d] for column in columns for d in dct]
    return columns


# ---- 10.2 DCT ----

COSINES = (
    (1024,),
    (1024, 724),
    (1024, 887, 512),
    (1024, 946, 724, 392),
    (1024, 974, 828, 602, 316),
    (1024, 989, 887, 724, 512, 265),
    (1024, 998, 923, 801, 638, 444, 228),
    (1024, 1004, 946, 851, 724, 569, 392, 200),
    (1024, 1008, 962, 887, 784, 658, 512, 350, 178),
    (1024, 1011, 974, 912, 828, 724, 602, 465, 316, 160),
    (1024, 1014, 983, 931, 861, 774, 671, 554, 425, 288, 146),
    (1024, 1015, 989, 946, 887, 812, 724, 623, 512, 392, 265, 134),
    (1024, 1017, 994, 957, 907, 843, 766, 679, 582, 476, 363, 245, 123),
    (1024, 1018, 998, 967, 923, 867, 801, 724, 638, 545, 444, 338, 228, 115),
    (1024, 1018, 1002, 974, 935, 887, 828, 761, 685, 602, 512, 416, 316, 213, 107),
    (1024, 1019, 1004, 980, 946, 903, 851, 792, 724, 650, 569, 483, 392, 297, 200, 100),
)


# > The synthesis rows of the DCT of length N are built from this table of round(2^10 * cos(pi * j /
# > (2 N))) for j = 0 .. N - 1: -- 10.2
def dct_entry(cosines: Sequence[int], k: int, n: int) -> int:
    length = len(cosines)
    if k == 0:
        return 724
    angle = k * (2 * n + 1) % (4 * length)
    angle = min(angle, 4 * length - angle)
    if angle == length:
        return 0
    return cosines[angle] if angle < length else -cosines[2 * length - angle]


# ---- 10.3 Dimensions ----


# > Element (x_1, ..., x_d) of the tensor is W[o,i,t], where o is the row-major position of the x_j
# > of role OUT, in the order of the dimensions, among the dimensions of that role; i and t
# > likewise. -- 10.3
def element_positions(shape: tuple[int, ...], roles: list[int]) -> list[int]:
    """For each element in row-major order, the position of its W[o,i,t] in row-major order."""
    lengths = [
        math.prod(n for n, r in zip(shape, roles, strict=True) if r == axis) for axis in range(3)
    ]
    strides = [lengths[IN] * lengths[TAPS], lengths[TAPS], 1]
    stride_of = [0] * len(shape)
    for j in reversed(range(len(shape))):
        stride_of[j] = strides[roles[j]]
        strides[roles[j]] *= shape[j]
    positions = [0]
    for n, stride in zip(shape, stride_of, strict=True):
        positions = [p + x * stride for p in positions for x in range(n)]
    return positions


# ---- 12.1 Decoders ----

Tensors: TypeAlias = "dict[str, tuple[str, tuple[int, ...], bytes]]"


# > **limit**: decoding would take more than the caller allows. A decoder MAY have such limits. The
# > reference decoder refuses files whose tensors take more bytes, all together and tied ones
# > included, than a given number, by default 32 MiB plus 1000 times the length of the file
# > **[limit.decoded]**. It does so once the directory breaks no rule, before it looks at any
# > segment. -- 12.1
# > Tensors of unknown type count nothing towards [limit.decoded]. -- 12.1
def check_limit(directory: Directory, limit: int) -> None:
    total = 0
    for entry in directory.entries:
        target = entry if entry.same_as is None else directory.entries[entry.same_as]
        if target.dtype in ELEMENT_TYPES:
            total += target.elements() * ELEMENT_TYPES[target.dtype].size
    if total > limit:
        raise Limit("limit.decoded", f"the tensors take {total} bytes, more than {limit}")


# > a file that is malformed and unsupported is malformed. -- 3.1
# > Rules for other tensors and for the file apply all the same. -- 12.1
def decode_file(data: bytes, limit: int | None = None) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the metadata of a file.

    Raises:
        Malformed, Unsupported, Limit: the verdicts of section 12.1.
    """
    # What these two call unsupported hides all that follows.
    reader = Reader(data, 0)
    header = read_header(reader)
    plain = read_stored_directory(reader, header)
    most = FREE_VALUES + header.stored
    start = None if header.deflated else HEADER_SIZE
    directory = read_directory(MessagePack(plain, start, most).read())
    check_limit(directory, 2**25 + 1000 * len(data) if limit is None else limit)
    place_segments(directory, reader)

    def segment_reader(segment: Segment) -> Reader:
        return Reader(data[segment.offset : segment.offset + segment.length], segment.offset)

    tables: list[Table] = []
    if directory.tables is not None:
        tables = read_tables(segment_reader(directory.tables), directory.tables_size)
    # What is unsupported below hides rules of its own tensor only, so decoding goes on behind it.
    unsupported = [entry.unsupported for entry in directory.entries if entry.unsupported]
    decoded: dict[str, bytes] = {}
    for k, segment in enumerate(directory.bundles):
        # > A tensor tied to an unsupported one is unsupported, and so are all tensors of a bundle
        # > that one of unknown type or coding names; of such a bundle, [segment.crc] is checked. --
        # > 12.1
        members = [entry for entry in directory.entries if entry.bundle == k]
        if not any(entry.unsupported for entry in members):
            elements = decode_bundle(segment_reader(segment), members, tables)
            decoded.update(zip((entry.name for entry in members), elements, strict=True))
    for entry in directory.entries:
        if entry.same_as is not None or entry.unsupported:
            continue
        segments = [segment_reader(segment) for segment in entry.segments]
        try:
            if entry.coding == RAW:
                decoded[entry.name] = decode_raw(entry, segments)
            elif entry.coding == TRANSFORM:
                decoded[entry.name] = decode_transform(entry, segments, tables)
            elif entry.bundle is None:
                decoded[entry.name] = decode_planes(entry, segments, tables)
            if entry.name in decoded:
                check_tensor(entry, decoded[entry.name])
        except Unsupported as error:
            error.tensor = entry.name
            unsupported.append(error)
        except Malformed as error:
            error.tensor = entry.name
            raise
    if unsupported:
        raise unsupported[0]

    tensors: Tensors = {}
    for entry in directory.entries:
        target = entry if entry.same_as is None else directory.entries[entry.same_as]
        tensors[entry.name] = (target.dtype, target.shape, decoded[target.name])
    return tensors, directory.metadata


def decode(data: bytes, limit: int | None = None) -> Tensors:
    """The tensors of a file by name, in the order of the file: dtype, shape and bytes of each.

    Raises:
        Malformed, Unsupported, Limit: the verdicts of section 12.1.
    """
    return decode_file(data, limit)[0]


# ---- The command ----


def safetensors(tensors: Tensors, metadata: dict[str, str]) -> Iterator[bytes]:
    """A safetensors file in pieces: length of the header, header, data."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape, elements) in tensors.items():
        offsets = [offset, offset + len(elements)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        offset = offsets[1]
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text))
    yield text
    for _, _, elements in tensors.values():
        yield elements


def run_once(source: BinaryIO, sink: BinaryIO) -> int:
    try:
        tensors, metadata = decode_file(source.read())
    except DecodeError as error:
        line = str(error).encode("utf-8", "backslashreplace").decode()
        sys.stderr.write(" ".join(line.splitlines()) + "\n")
        return error.code
    for piece in safetensors(tensors, metadata):
        sink.write(piece)
    sink.flush()
    return 0


def run_batch(source: BinaryIO, sink: BinaryIO) -> int:
    """Frames of u32 length and a file; answers of verdict, rule and safetensors file."""
    while prefix := source.read(4):
        size = int.from_bytes(prefix, "little")
        data = source.read(size)
        if len(prefix) < 4 or len(data) < size:
            sys.stderr.write("standard input ends within a frame\n")
            return 2
        code, rule, output = 0, b"", b""
        try:
            output = b"".join(safetensors(*decode_file(data)))
        except DecodeError as error:
            code, rule = error.code, error.rule.encode()
        sink.write(bytes([code, len(rule)]) + rule + struct.pack("<I", len(output)) + output)
        sink.flush()
    return 0


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--batch"]):
        sys.stderr.write("usage: decoder.py [--batch] < FILE.tqc > FILE.safetensors\n")
        return 2
    run = run_batch if arguments else run_once
    try:
        return run(sys.stdin.buffer, sys.stdout.buffer)
    except Exception:  # a fault of this program must not look like a verdict
        traceback.print_exc()
        return 70


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
