"""The executable form of tqc.md: a decoder of `.tqc` files in the order of that document.

It is meant to be read beside the document by whoever writes another decoder. Comments that begin
with `# >` quote the sentences that the code below them obeys and end in the number of their
section. Syntax tables are not quoted: `read_table` reads `table( )`, and so on. Each check names
its rule. Clarity comes before speed, and the document before this file.

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
FREE_CHANNELS, WORK_PER_BYTE = 64, 2**14
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


# ---- 3.1 Words ----


class DecodeError(Exception):
    """A verdict other than "decoded"; `rule` is the tag of the rule that it comes from."""

    verdict, code = "", 70

    def __init__(self, rule: str, what: str, offset: int | None = None) -> None:
        super().__init__(rule, what)
        self.rule, self.what, self.offset = rule, what, offset
        self.tensor: str | None = None

    def __str__(self) -> str:
        places = [] if self.offset is None else [f"at byte {self.offset}"]
        places += [] if self.tensor is None else [f"tensor {self.tensor!r}"]
        where = " " + ", ".join(places) if places else ""
        return f"{self.verdict}: [{self.rule}]{where}: {self.what}"


class Malformed(DecodeError):  # noqa: N818 (the name of the verdict)
    verdict, code = "malformed", 1


class Unsupported(DecodeError):  # noqa: N818
    verdict, code = "unsupported", 3


class Limit(DecodeError):  # noqa: N818
    verdict, code = "limit", 4


# > Each MUST that binds a file carries one **rule tag** in bold, such as `[table.sum]` in chapter
# > 5. A file that breaks a rule is *malformed*, unless the rule says that it is
# > *unsupported*: -- 3.1
def must(condition: bool, rule: str, what: str, offset: int | None = None) -> None:
    if not condition:
        raise Malformed(rule, what, offset)


# ---- 3.3 Descriptors ----


class Reader:
    """Bytes that are read from the front: a file, a segment, inflated bytes or the head of a block.

    `start` is the offset in the file of the first byte, None for inflated bytes.
    """

    def __init__(self, data: bytes, start: int | None = None) -> None:
        self.data, self.start, self.position = data, start, 0

    def must(self, condition: bool, rule: str, what: str) -> None:
        must(condition, rule, what, None if self.start is None else self.start + self.position)

    def left(self) -> int:
        return len(self.data) - self.position

    # > An element MUST NOT reach past the end of what contains it: the file, the segment, the
    # > inflated tables, or the head of a block **[segment.short]**. -- 3.3
    def bytes(self, n: int, rule: str = "segment.short") -> bytes:
        self.must(n <= self.left(), rule, f"{n} bytes are needed, {self.left()} are left")
        self.position += n
        return self.data[self.position - n : self.position]

    # > Nothing MUST be left over behind the last element of a segment, of the inflated tables, or
    # > of the head of a block **[segment.surplus]**. -- 3.3
    def end(self) -> None:
        self.must(self.left() == 0, "segment.surplus", f"{self.left()} bytes are left over")

    # > unsigned integer of 1, 2 or 4 bytes, least significant byte first -- 3.3
    def u(self, n: int) -> int:
        return int.from_bytes(self.bytes(n), "little")

    def u8(self) -> int:
        return self.u(1)

    # > unsigned integer in base 128: each byte gives 7 bits, least significant first; all bytes but
    # > the last have bit 7 set -- 3.3
    # > A `uv` MUST be below 2^64 and at most 10 bytes long **[integer.size]** and MUST have no last
    # > byte of 0 but in the one-byte form of the number 0 **[integer.shortest]**. `uv(n)` is a `uv`
    # > that MUST be at most n; `sv(n)` is an `sv` whose `uv` MUST be at most 2n + 1, that is, v is
    # > in -n-1 .. n **[integer.range]**. -- 3.3
    def uv(self, most: int = 2**64 - 1) -> int:
        value = size = 0
        more = True
        while more:
            self.must(size < 10, "integer.size", "more than 10 bytes")
            byte = self.u8()
            value |= (byte & 127) << (7 * size)
            size += 1
            more = byte > 127
        self.must(value < 2**64, "integer.size", f"{value} is not below 2^64")
        self.must(byte > 0 or size == 1, "integer.shortest", "the last byte is 0")
        self.must(value <= most, "integer.range", f"{value} is above {most}")
        return value

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
    must(len(plain) <= n, "deflate.size", f"more than {n} bytes")
    must(stream.eof, "deflate.size", f"{len(container)} bytes end within the stream")
    must(len(plain) == n, "deflate.size", f"{len(plain)} bytes instead of {n}")
    must(not stream.unused_data, "deflate.size", "bytes behind the last block")
    return plain


# ---- 4.2 Header ----


@dataclass
class Header:
    flags: int
    stored: int
    size: int
    directory_crc: int


# > `signature` MUST be `89 54 51 43 0D 0A 1A 0A` **[header.signature]**. `header_crc` MUST be the
# > CRC-32 of the 24 bytes before it **[header.crc]**. These two rules hold for every version of the
# > format. -- 4.2
def read_header(file: Reader) -> Header:
    reader = Reader(file.bytes(HEADER_SIZE), 0)
    signature, major, minor, flags = reader.bytes(8), reader.u8(), reader.u8(), reader.u(2)
    header = Header(flags, reader.u(4), reader.u(4), reader.u(4))
    must(signature == b"\x89TQC\r\n\x1a\n", "header.signature", "not the signature", 0)
    must(reader.u(4) == zlib.crc32(reader.data[:24]), "header.crc", "the header is damaged", 24)
    # > `major` and `minor` are 0 and 9. A decoder of this version MUST report a file of another
    # > version as unsupported **[header.version]**. -- 4.2
    if (major, minor) != (MAJOR, MINOR):
        raise Unsupported("header.version", f"version {major}.{minor}", 8)
    # > `flags` is 0 or FLAG_DEFLATED (1): the directory is deflated. A decoder MUST report a file
    # > with any other bit set as unsupported **[header.flags]**. -- 4.2
    if flags not in (0, FLAG_DEFLATED):
        raise Unsupported("header.flags", f"flags {flags:#06x}", 10)
    return header


# > `size` is the number of bytes of the directory, inflated; it MUST be at most MAX_DIRECTORY
# > **[directory.size]**. `stored` is the number of bytes of the directory in the file; it MUST
# > equal `size` without FLAG_DEFLATED, and be below `size` with it, and `size` at most 2^16 +
# > MAX_INFLATION * `stored` **[directory.stored]**. `directory_crc` MUST be the CRC-32 of those
# > `stored` bytes **[directory.crc]**. With FLAG_DEFLATED they are `deflated(size)`. -- 4.2
def read_stored_directory(file: Reader, header: Header) -> Reader:
    stored, size = header.stored, header.size
    must(size <= MAX_DIRECTORY, "directory.size", f"size {size}", 16)
    if header.flags & FLAG_DEFLATED:
        possible = stored < size <= 2**16 + MAX_INFLATION * stored
    else:
        possible = stored == size
    must(possible, "directory.stored", f"stored {stored}, size {size}", 12)
    directory = file.bytes(stored)
    must(zlib.crc32(directory) == header.directory_crc, "directory.crc", "damaged", HEADER_SIZE)
    if header.flags & FLAG_DEFLATED:
        return Reader(inflate(directory, size))
    return Reader(directory, HEADER_SIZE)


# ---- 4.3 Directory ----

Value: TypeAlias = "bool | int | str | list[Value] | dict[str, Value] | None"
Kind = TypeVar("Kind")

# Forms of MessagePack with a number behind the first byte: what it is, its bytes, and the smallest
# number that has no shorter form; for the negative numbers of `int` the largest one.
FORMS = {
    0xCC: ("uint", 1, 2**7),
    0xCD: ("uint", 2, 2**8),
    0xCE: ("uint", 4, 2**16),
    0xCF: ("uint", 8, 2**32),
    0xD0: ("int", 1, -(2**5) - 1),
    0xD1: ("int", 2, -(2**7) - 1),
    0xD2: ("int", 4, -(2**15) - 1),
    0xD3: ("int", 8, -(2**31) - 1),
    0xD9: ("str", 1, 32),
    0xDA: ("str", 2, 2**8),
    0xDB: ("str", 4, 2**16),
    0xDC: ("array", 2, 16),
    0xDD: ("array", 4, 2**16),
    0xDE: ("map", 2, 16),
    0xDF: ("map", 4, 2**16),
}
SINGLE = {0xC0: None, 0xC2: False, 0xC3: True}


# > The directory MUST be exactly one MessagePack value **[directory.msgpack]**. It MUST be
# > *canonical* **[directory.canonical]**: -- 4.3
class MessagePack:
    def __init__(self, reader: Reader, most: int) -> None:
        self.reader, self.count, self.most = reader, 0, most

    def read(self) -> Value:
        root = self.value(0)
        self.reader.must(self.reader.left() == 0, "directory.msgpack", "bytes behind the value")
        return root

    # > Arrays and maps MUST NOT lie deeper than MAX_NESTING inside each other, the directory itself
    # > being at depth 0 **[directory.nesting]**. The number of values, keys and the directory
    # > itself included, MUST be at most FREE_VALUES + `stored` **[directory.values]**. -- 4.3
    def value(self, depth: int) -> Value:
        self.count += 1
        self.reader.must(self.count <= self.most, "directory.values", f"more than {self.most}")
        form = self.bytes(1)[0]
        if form in SINGLE:
            return SINGLE[form]
        kind, n = self.kind_and_number(form)
        if kind in ("uint", "int"):
            return n
        if kind == "str":
            return self.string(n)
        self.reader.must(depth <= MAX_NESTING, "directory.nesting", f"depth {depth}")
        if kind == "array":
            return [self.value(depth + 1) for _ in range(n)]
        # > keys of maps are strings, all different, in ascending order of their UTF-8 bytes. -- 4.3
        items: dict[str, Value] = {}
        last: str | None = None
        for _ in range(n):
            key = self.value(depth + 1)
            if not isinstance(key, str) or (last is not None and key.encode() <= last.encode()):
                raise Malformed("directory.canonical", f"key {key!r} behind {last!r}")
            items[key] = self.value(depth + 1)
            last = key
        return items

    # > it is made of nil, booleans, integers, strings of valid UTF-8, arrays and maps only: no
    # > floating-point numbers, no binary strings, no extension types; -- 4.3
    # > every integer has the shortest of its forms, integers of 0 and above one of the unsigned
    # > forms (positive fixint, uint 8 to uint 64); -- 4.3
    # > every string, array and map has its length in the shortest form; -- 4.3
    def kind_and_number(self, form: int) -> tuple[str, int]:
        """Kind of a value, and the integer itself or the length."""
        if form <= 0x7F:
            return "uint", form
        if form >= 0xE0:
            return "int", form - 0x100
        if form <= 0x9F:
            return "map" if form <= 0x8F else "array", form & 15
        if form <= 0xBF:
            return "str", form & 31
        self.reader.must(form != 0xC1, "directory.msgpack", "the byte c1")
        self.reader.must(form in FORMS, "directory.canonical", f"a value of form {form:02x}")
        kind, size, bound = FORMS[form]
        n = int.from_bytes(self.bytes(size), "big", signed=kind == "int")
        shortest = n <= bound if kind == "int" else n >= bound
        self.reader.must(shortest, "directory.canonical", f"{n} has a shorter form")
        return kind, n

    def string(self, n: int) -> str:
        try:
            return self.bytes(n).decode("utf-8")
        except UnicodeDecodeError:
            raise Malformed("directory.canonical", "a string is not valid UTF-8") from None

    def bytes(self, n: int) -> bytes:
        return self.reader.bytes(n, "directory.msgpack")


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
    must(low <= number <= high, "directory.range", f"{what} {number} is not in {low} .. {high}")
    return number


# > Version 0.9 defines no features. A decoder MUST report a file that names one as unsupported
# > **[directory.features]**. -- 4.3
def read_directory(root: Value) -> Directory:
    directory = typed(root, dict, "directory")
    features = typed(directory.get("features", []), list, "features")
    for name in features:
        typed(name, str, "feature")
    if features:
        raise Unsupported("directory.features", f"feature {features[0]!r}")
    metadata = typed(directory.get("metadata", {}), dict, "metadata")
    for text in metadata.values():
        typed(text, str, "value of metadata")
    tables, tables_size = None, 0
    # > A *tables segment* is an array of three: length, 0 .. 2^32, CRC-32, and size, 0 ..
    # > MAX_TABLES_SIZE. -- 4.3
    if "tables" in directory:
        triple = typed(directory["tables"], list, "tables")
        must(len(triple) == 3, "directory.type", f"tables segment of {len(triple)} integers")
        tables = read_segment(triple[:2], 2**32)
        tables_size = integer(triple[2], 0, MAX_TABLES_SIZE, "size of the tables")
    bundles = read_segments(directory.get("bundles", []))
    entries: list[Entry] = []
    names: set[str] = set()
    for item in typed(directory.get("tensors", []), list, "tensors"):
        entries.append(read_entry(typed(item, dict, "entry"), entries, len(bundles)))
        # > `name` MUST have 1 to MAX_NAME bytes and differ from the names of all earlier entries,
        # > byte for byte **[directory.name]**. -- 4.3
        name = entries[-1].name
        must(1 <= len(name.encode()) <= MAX_NAME, "directory.name", f"a name {name[:80]!r}")
        must(name not in names, "directory.name", f"two tensors {name!r}")
        names.add(name)
    # > A tensor with `bundle` MUST have coding PLANES and no segments, and each bundle MUST have at
    # > least one tensor **[directory.bundle]**. -- 4.3
    unused = set(range(len(bundles))) - {entry.bundle for entry in entries}
    must(not unused, "directory.bundle", f"bundles without tensors: {len(unused)}")
    return Directory(metadata, tables, tables_size, bundles, entries)


# > A *segment* is an array of two integers: length in bytes, 0 .. 2^63 - 1, and CRC-32, 0 .. 2^32 -
# > 1. -- 4.3
def read_segment(value: Value, most: int = 2**63 - 1) -> Segment:
    pair = typed(value, list, "segment")
    must(len(pair) == 2, "directory.type", f"segment of {len(pair)} integers")
    return Segment(integer(pair[0], 0, most, "length"), integer(pair[1], 0, 2**32 - 1, "CRC-32"))


def read_segments(value: Value) -> list[Segment]:
    return [read_segment(item) for item in typed(value, list, "segments")]


def read_entry(item: dict[str, Value], earlier: list[Entry], bundles: int) -> Entry:
    entry = Entry(typed(item.get("name"), str, "name"))
    # > The tensor that `same_as` points to MUST NOT itself be tied **[directory.same_as]**. -- 4.3
    if "same_as" in item:
        entry.same_as = integer(item["same_as"], 0, len(earlier) - 1, "same_as")
        must(earlier[entry.same_as].same_as is None, "directory.same_as", "tied to a tied tensor")
        return entry
    entry.dtype = typed(item.get("dtype"), str, "dtype")
    shape = typed(item.get("shape"), list, "shape")
    entry.shape = tuple(integer(n, 0, 2**48, "dimension") for n in shape)
    entry.coding = integer(item.get("coding"), 0, 255, "coding")
    entry.check = integer(item.get("check"), 0, 2**32 - 1, "check")
    entry.segments = read_segments(item.get("segments", []))
    if "bundle" in item:
        entry.bundle = integer(item["bundle"], 0, bundles - 1, "bundle")
    if "snr" in item:
        integer(item["snr"], -(2**20), 2**20, "snr")
    # > `shape` MUST have at most MAX_DIMENSIONS dimensions, and the product of those that are not 0
    # > MUST be at most MAX_ELEMENTS; an empty `shape` is that of a scalar, with one element
    # > **[directory.shape]**. -- 4.3
    must(len(shape) <= MAX_DIMENSIONS, "directory.shape", f"{len(shape)} dimensions")
    product = math.prod(n for n in entry.shape if n > 0)
    must(product <= MAX_ELEMENTS, "directory.shape", f"shape {entry.shape}")
    # > A decoder MUST report an unknown `dtype` **[directory.dtype]** or an unknown `coding`
    # > **[directory.coding]** as unsupported. -- 4.3
    # Of such an entry only the rules above apply (12.1).
    if entry.dtype not in ELEMENT_TYPES:
        entry.unsupported = Unsupported("directory.dtype", f"element type {entry.dtype!r}")
    elif entry.coding not in (RAW, PLANES, TRANSFORM):
        entry.unsupported = Unsupported("directory.coding", f"coding {entry.coding}")
    else:
        in_bundle = entry.coding == PLANES and not entry.segments
        must(in_bundle or entry.bundle is None, "directory.bundle", f"{entry.name!r} in a bundle")
        # > A tensor with coding TRANSFORM MUST have a floating-point type and at least one element
        # > **[directory.transform]**. -- 4.3
        transformed = ELEMENT_TYPES[entry.dtype].floating and entry.elements() > 0
        must(transformed or entry.coding != TRANSFORM, "directory.transform", repr(entry.name))
    return entry


# ---- 4.4 Segments ----


# > Segments lie back to back: the first begins behind the directory, each other one where the one
# > before it ends. The file MUST end where the last segment ends **[container.length]**; a segment
# > that reaches past the end of the file breaks this rule. -- 4.1
# > The segments of a file are, in this order: the tables segment, if there is one; the bundles; and
# > for each entry of `tensors` in order its `segments`. -- 4.4
def place_segments(directory: Directory, file: Reader) -> list[Segment]:
    segments = [] if directory.tables is None else [directory.tables]
    segments += directory.bundles
    for entry in directory.entries:
        segments += entry.segments
    end = file.position
    for segment in segments:
        segment.offset = end
        end += segment.length
    must(end == len(file.data), "container.length", f"{len(file.data)} bytes instead of {end}")
    return segments


# > The bytes of a segment MUST have the CRC-32 that the directory states **[segment.crc]**. -- 4.4
def open_segment(segment: Segment, file: Reader) -> Reader:
    data = file.data[segment.offset : segment.offset + segment.length]
    must(zlib.crc32(data) == segment.crc, "segment.crc", "a damaged segment", segment.offset)
    return Reader(data, segment.offset)


# > The number of a tensor's segments MUST be **[tensor.segments]**: -- 4.4
def check_segment_count(segments: list[Reader], count: int) -> None:
    must(len(segments) == count, "tensor.segments", f"{len(segments)} segments instead of {count}")


# > The segments of a RAW tensor, any number of them, MUST together have as many bytes as the tensor
# > **[raw.length]**. They are its elements in row-major order, each with its least significant byte
# > first. -- 4.4
def decode_raw(entry: Entry, segments: list[Reader]) -> bytes:
    elements = b"".join(segment.data for segment in segments)
    size = entry.elements() * ELEMENT_TYPES[entry.dtype].size
    must(len(elements) == size, "raw.length", f"{len(elements)} bytes instead of {size}")
    return elements


# > PLANES, not in a bundle: ceil(E / MAX_SYMBOLS) for E elements; segment k is `block( )` of
# > chapter 8 for the elements from k * MAX_SYMBOLS on, MAX_SYMBOLS of them or those that are
# > left; -- 4.4
def decode_planes(entry: Entry, segments: list[Reader], tables: list[Table]) -> bytes:
    count = entry.elements()
    check_segment_count(segments, ceil_divide(count, MAX_SYMBOLS))
    result = []
    for k, segment in enumerate(segments):
        elements = min(MAX_SYMBOLS, count - k * MAX_SYMBOLS)
        result += read_block(segment, [Part(ELEMENT_TYPES[entry.dtype], elements)], tables)
    return b"".join(result)


# > Each bundle is one `block( )` whose parts are the tensors that name the bundle, in the order of
# > their entries. -- 4.4
# > A bundle MUST have at most MAX_SYMBOLS elements in all **[bundle.size]**. -- 8.1
def decode_bundle(members: list[Entry], segment: Reader, tables: list[Table]) -> list[bytes]:
    elements = sum(entry.elements() for entry in members)
    segment.must(elements <= MAX_SYMBOLS, "bundle.size", f"{elements} elements")
    parts = [Part(ELEMENT_TYPES[entry.dtype], entry.elements()) for entry in members]
    return read_block(segment, parts, tables)


# > TRANSFORM: the number of tiles (7.1), but at least 1. The first segment is `transform_head( )`
# > of chapter 9, followed by `payload( )` of the first tile if there is one; each further segment
# > is the `payload( )` of the next tile. -- 4.4
def decode_transform(entry: Entry, segments: list[Reader], tables: list[Table]) -> bytes:
    must(len(segments) > 0, "tensor.segments", "no segment")
    stored = sum(segment.length for segment in entry.segments)
    head = read_head(segments[0], entry.shape, stored, tables)
    check_bound(head)
    check_segment_count(segments, max(head.tile_count(), 1))
    row_length = len(head.depths)
    coefficients = [0] * (head.bases[OUT].channels * row_length)
    for segment, (rows, columns) in zip(segments, head.tiles(), strict=False):
        payload = iter(read_payload(segment, head, rows, columns, tables))
        for row in rows:
            for column in columns:
                coefficients[row * row_length + column] = next(payload)
    for segment in segments:
        segment.end()
    return reconstruct(head, coefficients, entry)


def ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


# ---- 4.5 Tensor check ----


# > `check` of an entry MUST be the CRC-32 of the bytes of all elements of the decoded tensor in
# > row-major order, each with its least significant byte first, whatever the coding
# > **[tensor.check]**. -- 4.5
# > `BOOL` MUST be 0 for false or 1 for true **[tensor.bool]**. -- 4.6
def check_tensor(entry: Entry, elements: bytes) -> None:
    valid = entry.dtype != "BOOL" or not elements.strip(b"\0\1")
    must(valid, "tensor.bool", "an element is neither 0 nor 1")
    must(zlib.crc32(elements) == entry.check, "tensor.check", "the decoded elements differ")


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
    "U32": ElementType(4),
    "U64": ElementType(8),
    "I16": ElementType(2),
    "I32": ElementType(4),
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
    bias = (1 << (kind.exponent - 1)) - 1
    # The exponent field of v; 1 has the ulp of zero and of subnormal numbers too.
    x = max(math.frexp(v)[1] - 1 + bias, 1) if v else 1
    y = round(math.ldexp(abs(v), kind.mantissa + bias - x))  # v in ulps: half to even
    # y has the bit 2^m of a normal number, which adds 1 to the field x - 1, and perhaps a carry.
    pattern = ((x - 1) << kind.mantissa) + y
    nan = (1 << (kind.exponent + kind.mantissa)) - 1
    special = nan >> kind.mantissa << kind.mantissa if kind.infinities else nan  # the first one
    sign = math.copysign(1.0, v) < 0
    return sign << (kind.exponent + kind.mantissa) | min(pattern, special - 1)


# ---- 5.1 Tables ----


@dataclass
class Table:
    low: int
    size: int
    low_bits: int
    weights: list[int]  # by number; the last one is that of the escape, if there is one
    starts: list[int]  # of the intervals: sums of the weights before


# > If size is 0, the segment is `tables( )` of 5.1; otherwise it is `deflated(size)`, and `tables(
# > )` is what it inflates to. -- 4.3
# > `count` MUST be at most MAX_TABLES **[table.count]**. -- 5.1
def read_tables(segment: Reader, size: int) -> list[Table]:
    reader = Reader(inflate(segment.data, size)) if size else segment
    count = reader.uv()
    reader.must(count <= MAX_TABLES, "table.count", f"{count} tables")
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
# > most MAX_VALUE **[table.range]**: so no symbol with its low bits exceeds it. Each weight,
# > escape_weight included, MUST be at least 1 **[table.weight]**. Their sum, escape_weight
# > included, MUST be TABLE_SUM = 2^TABLE_BITS; with SYMMETRIC each weight but weight[0] counts
# > twice **[table.sum]**. -- 5.1
def read_table(reader: Reader, most: int) -> Table:
    flags, low_bits = reader.u8(), reader.u8()
    reader.must(flags & ~(SYMMETRIC | ESCAPE) == 0, "table.flags", f"flags {flags}")
    reader.must(low_bits <= MAX_LOW_BITS, "table.low_bits", f"{low_bits} low bits")
    if flags & SYMMETRIC:
        half = reader.uv(MAX_ALPHABET)
        low, size, stored = -half, 2 * half + 1, half + 1
    else:
        low = reader.sv(MAX_TABLE_LOW)
        stored = size = reader.uv(MAX_ALPHABET)
    reader.must(1 <= size < MAX_ALPHABET, "table.size", f"size {size}")
    reader.must(size <= most, "table.total", f"more than {MAX_WEIGHTS} weights")
    largest = max(-low, low + size) << low_bits
    reader.must(largest <= MAX_VALUE, "table.range", f"values reach {largest}")
    weights = [reader.uv() for _ in range(stored)]
    if flags & SYMMETRIC:
        weights = weights[:0:-1] + weights
    if flags & ESCAPE:
        weights.append(reader.uv())
    reader.must(min(weights) >= 1, "table.weight", "a weight is 0")
    reader.must(sum(weights) == TABLE_SUM, "table.sum", f"the weights sum to {sum(weights)}")
    # > Member n with weight f has the interval [c, c + f) of 0 .. TABLE_SUM - 1, where c is the sum
    # > of the weights of members 0 .. n - 1. -- 5.1
    return Table(low, size, low_bits, weights, list(accumulate(weights[:-1], initial=0)))


# > A table index in a segment MUST be below `count` (0 without tables) **[table.index]**; chapter 9
# > has rules of its own for the map of classes. -- 5.1
def read_table_index(reader: Reader, tables: list[Table]) -> int:
    index = reader.u8()
    reader.must(index < len(tables), "table.index", f"table {index} of {len(tables)}")
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
        must(slot < TABLE_SUM, "payload.invalid", "the words are those of no symbols")
        number = bisect_right(table.starts, slot) - 1
        self.diff -= scale * table.starts[number]
        self.range = scale * table.weights[number]
        if self.range < 2**32:
            # > If `position` exceeds the number of words when `decode` reads a word, the end cannot
            # > be canonical any more, and a decoder may stop there. -- 5.2
            must(self.position <= len(self.words), "payload.end", "symbols behind the last word")
            self.range <<= 32
            self.diff = self.diff << 32 | self.word(self.position)
            self.position += 1
        return number

    # > The words MUST be exactly those that the encoder of 5.3 writes for the decoded symbols; no
    # > words if `decode` is never called **[payload.end]**. A decoder checks this with `end` after
    # > the last symbol, or by encoding the symbols again. -- 5.2
    def end(self) -> None:
        count, canonical = 0, True
        if self.used:
            extra = self.range - self.diff < 2**32
            count = self.position - 2 + 1 + extra
            canonical = self.diff < 2**32 and not (extra and self.word(count - 1) != 0)
        must(canonical, "payload.end", "the last words are not canonical")
        must(len(self.words) == count, "payload.end", f"{len(self.words)} words, not {count}")


# ---- 5.4 Streams ----


class Stream:
    """A stream, read to its end; `step` decodes the integers at some positions, `end` checks.

    `low_bits` has for each integer that of its table, which is known before the table itself.
    """

    def __init__(self, reader: Reader, low_bits: Sequence[int], tables: list[Table]) -> None:
        self.reader, self.tables = reader, tables
        words, escapes = reader.uv(), reader.uv(len(low_bits))
        # > `escape_size` MUST be 1, 2 or 4 **[stream.escape_size]**. Each `escape[i]` is a signed
        # > integer in two's complement, least significant byte first. -- 5.4
        size = reader.u8() if escapes > 0 else 1
        reader.must(size in (1, 2, 4), "stream.escape_size", f"escapes of {size} bytes")
        self.decoder = RangeDecoder(struct.unpack(f"<{words}I", reader.bytes(4 * words)))
        form = {1: "b", 2: "h", 4: "i"}[size]
        self.escapes = iter(struct.unpack(f"<{escapes}{form}", reader.bytes(size * escapes)))
        # > `low` packs, for all integers in order of position, the low_bits lowest bits of each,
        # > low_bits being that of its table. -- 5.4
        self.low = unpack(reader, low_bits)
        self.integers = [0] * len(low_bits)

    # > Within a step, integers are taken in ascending order of their table's index, those of one
    # > table in ascending order of position. -- 5.4
    def step(self, positions: Iterable[int], table_of: Sequence[int]) -> None:
        for position in sorted(positions, key=table_of.__getitem__):
            table = self.tables[table_of[position]]
            # > The integer is symbol * 2^low_bits plus these bits. It MUST be in -MAX_VALUE ..
            # > MAX_VALUE **[stream.range]**. -- 5.4
            value = (self.symbol(table) << table.low_bits) + self.low[position]
            if abs(value) > MAX_VALUE:
                raise Malformed("stream.range", f"integer {value}", self.reader.start)
            self.integers[position] = value

    # > If the number of a symbol is that of the escape, the symbol is the next of `escape[0]`,
    # > `escape[1]`, ..., in the order of decoding. It MUST NOT be in low .. low + size - 1 of its
    # > table **[stream.escape]**. The number of escapes decoded MUST equal `escapes`
    # > **[stream.escapes]**. In any other case the symbol is low + number. -- 5.4
    def symbol(self, table: Table) -> int:
        number = self.decoder.decode(table) if len(table.weights) > 1 else 0
        if number < table.size:
            return table.low + number
        symbol = next(self.escapes, None)
        if symbol is None:
            raise Malformed("stream.escapes", "too few escapes", self.reader.start)
        inside = table.low <= symbol < table.low + table.size
        must(not inside, "stream.escape", f"{symbol} needs no escape", self.reader.start)
        return int(symbol)

    def end(self) -> None:
        surplus = next(self.escapes, None) is not None
        must(not surplus, "stream.escapes", "too many escapes", self.reader.start)
        self.decoder.end()


# > Without a trellis there is one step, of all integers. -- 5.4
def read_stream(reader: Reader, table_of: Sequence[int], tables: list[Table]) -> list[int]:
    stream = Stream(reader, [tables[index].low_bits for index in table_of], tables)
    stream.step(range(len(table_of)), table_of)
    stream.end()
    return stream.integers


# ---- 6.1 Packing ----


# > To *pack* unsigned integers of given widths, 0 to 57 bits each, is to lay the bits of each,
# > least significant first, behind those of the one before it; bit b of the sequence is bit b mod 8
# > of byte floor(b / 8). The sequence takes ceil(n / 8) bytes for n bits. The spare bits of the
# > last byte MUST be 0 **[bits.spare]**. -- 6.1
def unpack(reader: Reader, widths: Sequence[int]) -> list[int]:
    bits = sum(widths)
    packed = reader.bytes(ceil_divide(bits, 8))
    values, b = [], 0
    for width in widths:
        window = int.from_bytes(packed[b // 8 : b // 8 + 8], "little")  # 57 bits behind 7 others
        values.append(window >> b % 8 & ((1 << width) - 1))
        b += width
    spare = packed[-1] >> bits % 8 if bits % 8 else 0
    reader.must(spare == 0, "bits.spare", "spare bits are not 0")
    return values


# ---- 6.2 Vectors ----


# > `kind` MUST be one of these three **[vector.kind]**. `width` MUST be 1 to 8 **[vector.width]**.
# > With CONSTANT all n integers are `value`. With CODED they are in the stream of the head (6.3),
# > all with the table `table`. A vector of no integers has the same syntax. All n integers MUST be
# > in 0 .. most **[vector.range]**. -- 6.2
def read_vector(
    reader: Reader, n: int, most: int, tables: list[Table], runs: list[Run]
) -> Sequence[int]:
    """The integers; if they are coded, the list of a new run, which read_head_stream fills."""
    kind = reader.u8()
    reader.must(kind in (VECTOR_CONSTANT, VECTOR_PACKED, VECTOR_CODED), "vector.kind", f"{kind}")
    if kind == VECTOR_CONSTANT:
        values = bytes([reader.uv(MAX_VECTOR)]) * n
        check_vector(values[:1], most)
    elif kind == VECTOR_PACKED:
        width = reader.u8()
        reader.must(1 <= width <= 8, "vector.width", f"width {width}")
        # Before a list of n widths is made:
        reader.must(n * width <= 8 * reader.left(), "segment.short", f"{n} values of {width} bits")
        values = bytes(unpack(reader, [width] * n))
        check_vector(values, most)
    else:
        runs.append(Run(read_table_index(reader, tables), n, most))
        return runs[-1].integers
    return values


def check_vector(values: Sequence[int], most: int) -> None:
    valid = min(values, default=0) >= 0 and max(values, default=0) <= most
    must(valid, "vector.range", f"an integer of a vector is not in 0 .. {most}")


# ---- 6.3 The stream of a head ----


@dataclass
class Run:
    """Integers that the stream of a head codes, all with one table; empty until it is read."""

    table: int
    count: int
    most: int | None  # of a vector; None for the entries of a row of a basis
    integers: list[int] = field(default_factory=list)


# > It codes the integers of these elements as one row, in the order in which the elements stand in
# > the head. There MUST be at most min(MAX_HEAD, 2^16 + 4 * E) of them for a tensor of E elements
# > **[head.size]**. -- 6.3
def read_head_stream(reader: Reader, runs: list[Run], elements: int, tables: list[Table]) -> None:
    count = sum(run.count for run in runs)
    reader.must(count <= min(MAX_HEAD, 2**16 + 4 * elements), "head.size", f"{count} integers")
    table_of = [run.table for run in runs for _ in range(run.count)]
    integers = iter(read_stream(reader, table_of, tables))
    for run in runs:
        run.integers += [next(integers) for _ in range(run.count)]
        if run.most is not None:
            check_vector(run.integers, run.most)


# ---- 7.1 Tiles ----


# > Both give the indices of the tile in order of position. In a range-coded payload, the table of
# > an index is that of its class (9.5) and, with a trellis, of its quantizer. An index k of a
# > column of depth d MUST be in -2^(d-1) .. 2^(d-1) - 1 **[payload.depth]**. In a fixed-length
# > payload, an index has the width d of its column and is packed as k mod 2^d. -- 7.1
# > With the uniform quantizer, coefficients are the indices. -- 7.1
def read_payload(
    reader: Reader, head: Head, rows: range, columns: list[int], tables: list[Table]
) -> list[int]:
    """The coefficients of a tile, in order of position."""
    depths = [head.depths[column] for column in columns] * len(rows)
    if head.payload_kind == FIXED:
        packed = zip(unpack(reader, depths), depths, strict=True)
        indices = [k - (1 << d) if k >> (d - 1) else k for k, d in packed]
        return indices if head.quantizer == UNIFORM else trellis(indices, head.steps, len(columns))
    table_of = [head.table(row, column) for row in rows for column in columns]
    stream = Stream(reader, [tables[index].low_bits for index in table_of], tables)
    coefficients = stream.integers
    if head.quantizer == UNIFORM:
        stream.step(range(len(table_of)), table_of)
    else:
        coefficients = trellis(stream.integers, head.steps, len(columns), stream, table_of)
    stream.end()
    for k, d in zip(stream.integers, depths, strict=True):
        if not -(1 << (d - 1)) <= k < 1 << (d - 1):
            raise Malformed("payload.depth", f"index {k} in a column of depth {d}", reader.start)
    return coefficients


# ---- 7.2 Trellis ----

NEXT_STATE = ((0, 2), (5, 7), (1, 3), (4, 6), (2, 0), (7, 5), (3, 1), (6, 4))


# > With the trellis quantizer, the rows of each column of a tile are cut into *segments of the
# > trellis* of `steps` rows from the top; the last may be shorter. Each segment begins in state 0
# > and passes its indices from top to bottom. In state s: -- 7.2
# > A range-coded payload with a trellis is decoded in min(steps, rows of the tile) steps: step t,
# > from 0, takes the rows t, t + steps, t + 2 * steps, ... of the tile. The table of an index is
# > the one that its class gives with quantizer 0, and the one after it with quantizer 1. -- 7.2
def trellis(
    indices: list[int],
    steps: int,
    columns: int,
    stream: Stream | None = None,
    table_of: Sequence[int] = (),
) -> list[int]:
    """The coefficients of a tile; a stream, if there is one, fills `indices` step by step."""
    count = len(indices)
    rows = count // columns
    coefficients, states, tables = [0] * count, [0] * count, list(table_of)
    for t in range(min(steps, rows)):
        chosen = range(t, rows, steps)
        positions = [row * columns + column for row in chosen for column in range(columns)]
        if stream is not None:
            for position in positions:
                tables[position] += states[position] % 2
            stream.step(positions, tables)
        for position in positions:
            k, s = indices[position], states[position]
            # > the coefficient of an index k is 2k with quantizer 0, and 2k - sign(k) with
            # > quantizer 1; -- 7.2
            coefficients[position] = 2 * k - s % 2 * ((k > 0) - (k < 0))
            below = position + columns
            if t + 1 < steps and below < count:
                states[below] = NEXT_STATE[s][k % 2]
    return coefficients


# ---- 8.1 Blocks ----


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
    floating = part.kind.floating
    part.kept, part.flags = head.u8(), head.u8()
    most = part.kind.mantissa if floating else 8 * part.kind.size
    head.must(part.kept <= most, "block.kept", f"{part.kept} bits are kept")
    allowed = UNSIGNED | CODED if floating else 0
    head.must(part.flags & ~allowed == 0, "block.flags", f"flags {part.flags}")
    if part.flags & CODED:
        part.table = read_table_index(head, tables)
    if floating:
        part.offset = head.sv(MAX_OFFSET)


# ---- 8.2 Exponents and 8.3 Planes of bits ----


# > `kind` MUST be PACKED or DEFLATED **[plane.kind]**. A deflated plane has one byte for each
# > value; the byte MUST be below 2^b for a value of b bits **[plane.range]**. -- 8.3
def read_plane(reader: Reader, widths: Sequence[int]) -> Sequence[int]:
    kind = reader.u8()
    reader.must(kind in (PLANE_PACKED, PLANE_DEFLATED), "plane.kind", f"kind {kind} of a plane")
    if kind == PLANE_PACKED:
        return unpack(reader, widths)
    values = inflate(reader.bytes(reader.uv()), len(widths))
    below = all(value >> width == 0 for value, width in zip(values, widths, strict=True))
    reader.must(below, "plane.range", "a value has more bits than it may")
    return values


# > The exponent of an element (4.6) is this integer plus `offset`; in a floating-point part without
# > CODED it is `offset`. That of each element MUST be in 0 .. 2^e - 1 for a type with e exponent
# > bits **[block.exponent]**. -- 8.2
# > floating-point with UNSIGNED: y', the sign being 0; -- 8.3
# > floating-point without: 2 * y' + s, s the sign bit; -- 8.3
# > otherwise: the element, as an unsigned integer. -- 8.3
# > The mantissa is y = y' * 2^(m - kept) for m mantissa bits. -- 8.3
def join_part(part: Part, rests: list[int], integers: Iterator[int]) -> bytes:
    """Bytes of the elements; coded exponents are the next integers."""
    kind, patterns = part.kind, rests
    if kind.floating:
        patterns = []
        for rest in rests:
            exponent = part.offset + (next(integers) if part.flags & CODED else 0)
            must(0 <= exponent < 1 << kind.exponent, "block.exponent", f"exponent {exponent}")
            y, sign = (rest, 0) if part.flags & UNSIGNED else (rest >> 1, rest & 1)
            y <<= kind.mantissa - part.kept
            patterns.append((sign << kind.exponent | exponent) << kind.mantissa | y)
    return b"".join(pattern.to_bytes(kind.size, "little") for pattern in patterns)


# ---- 9.1 Head ----


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
    depths: Sequence[int] = ()
    table_map: list[int] = field(default_factory=list)
    levels: list[Sequence[int]] = field(default_factory=list)  # OUT, IN, TAPS
    row_scales: Sequence[int] = ()
    multipliers: Sequence[int] = ()
    kept: list[int] = field(default_factory=list)  # columns

    # > There are ceil(O' / tile_rows) * ceil(K / tile_columns) tiles; none if O' or K is 0. -- 7.1
    def tile_count(self) -> int:
        bands = ceil_divide(self.bases[OUT].channels, self.tile_rows)
        return bands * ceil_divide(len(self.kept), self.tile_columns)

    # > Tiles are taken in bands of `tile_rows` rows from the top, each band from left to right;
    # > those at the right and bottom edge are smaller where the size does not divide. -- 7.1
    def tiles(self) -> Iterator[tuple[range, list[int]]]:
        rows = range(self.bases[OUT].channels)
        for top in range(0, len(rows), self.tile_rows):
            for left in range(0, len(self.kept), self.tile_columns):
                columns = self.kept[left : left + self.tile_columns]
                yield rows[top : top + self.tile_rows], columns

    # > min( levels_out[o'] + levels_in[i'] + levels_taps[t'], class_count - 1 ) -- 9.5
    # > and its table is table_map[class]. -- 9.5
    def table(self, row: int, column: int) -> int:
        i, t = divmod(column, self.bases[TAPS].channels)
        level = self.levels[OUT][row] + self.levels[IN][i] + self.levels[TAPS][t]
        return self.table_map[min(level, len(self.table_map) - 1)]


def read_head(reader: Reader, shape: tuple[int, ...], stored: int, tables: list[Table]) -> Head:
    # > `role` MUST be OUT, IN or TAPS **[head.role]**. -- 9.1
    roles = list(reader.bytes(len(shape)))
    reader.must(set(roles) <= {OUT, IN, TAPS}, "head.role", f"roles {roles}")
    # > scale = scale_mantissa * 2^scale_exponent. `scale_mantissa` MUST NOT be 0
    # > **[head.scale]**. -- 9.3
    scale_mantissa, scale_exponent = reader.uv(MAX_SCALE_MANTISSA), reader.sv(MAX_SCALE_EXPONENT)
    reader.must(scale_mantissa != 0, "head.scale", "the scale is 0")
    # > `quantizer` is UNIFORM or TRELLIS; a decoder MUST report any other value as unsupported
    # > **[head.quantizer]**. `steps` MUST be at least 1 **[head.steps]**. `payload_kind` MUST be
    # > RANGE or FIXED **[head.payload_kind]**. tile_rows * tile_columns MUST be 1 to MAX_SYMBOLS
    # > **[head.tile]**. -- 9.1
    quantizer = reader.u8()
    if quantizer not in (UNIFORM, TRELLIS):
        raise Unsupported("head.quantizer", f"quantizer {quantizer}")
    steps = reader.uv(MAX_STEPS) if quantizer == TRELLIS else 1
    reader.must(steps >= 1, "head.steps", "segments of the trellis without rows")
    payload_kind = reader.u8()
    reader.must(payload_kind in (RANGE, FIXED), "head.payload_kind", f"kind {payload_kind}")
    tile_rows, tile_columns = reader.uv(MAX_SYMBOLS), reader.uv(MAX_SYMBOLS)
    tile = tile_rows * tile_columns
    reader.must(1 <= tile <= MAX_SYMBOLS, "head.tile", f"tiles of {tile_rows} x {tile_columns}")

    runs: list[Run] = []

    def vector(n: int, most: int) -> Sequence[int]:
        return read_vector(reader, n, most, tables, runs)

    bases = []
    for axis in (OUT, IN, TAPS):
        dimensions = [n for n, role in zip(shape, roles, strict=True) if role == axis]
        bases.append(read_basis(reader, axis, dimensions, tables, runs))
    check_work(bases, math.prod(shape), stored)
    scale = math.ldexp(scale_mantissa, scale_exponent)
    head = Head(roles, scale, quantizer, steps, payload_kind, tile_rows, tile_columns, bases)
    rows, inputs, taps = (basis.channels for basis in bases)
    head.depths = vector(inputs * taps, MAX_DEPTH)
    if payload_kind == RANGE:
        head.table_map = read_table_map(reader, quantizer, tables)
        head.levels = [vector(n, MAX_CLASSES) for n in (rows, inputs, taps)]
    head.row_scales = vector(math.prod(bases[OUT].dimensions), MAX_VECTOR)
    head.multipliers = vector(inputs * taps, MAX_VECTOR)
    # > A head (chapter 9) ends with one `stream( )`, without a trellis, if it has at least one
    # > vector of kind CODED or one explicit basis, be it of no integers. -- 6.3
    if runs or any(basis.kind == BASIS_EXPLICIT for basis in bases):
        read_head_stream(reader, runs, math.prod(shape), tables)
    # > Columns of depth 0 are *absent*: their coefficients are 0 and nothing is coded for them; the
    # > other columns are *kept*. -- 2
    head.kept = [column for column, depth in enumerate(head.depths) if depth > 0]
    return head


# ---- 9.2 Bases ----


# > `kind` MUST be NONE, DCT or EXPLICIT **[basis.kind]**. With NONE and DCT, the axis has as many
# > channels as positions. -- 9.2
def read_basis(
    reader: Reader, axis: int, dimensions: list[int], tables: list[Table], runs: list[Run]
) -> Basis:
    kind, length = reader.u8(), math.prod(dimensions)
    reader.must(kind in (BASIS_NONE, BASIS_DCT, BASIS_EXPLICIT), "basis.kind", f"kind {kind}")
    if kind == BASIS_DCT:
        # > DCT MUST be on the axis TAPS only, with at most MAX_DCT_DIMENSIONS dimensions of that
        # > role, each 1 to MAX_DCT, and T at most MAX_DCT_TAPS **[basis.dct]**. -- 9.2
        small = len(dimensions) <= MAX_DCT_DIMENSIONS and max(dimensions, default=1) <= MAX_DCT
        possible = axis == TAPS and small and length <= MAX_DCT_TAPS
        reader.must(possible, "basis.dct", f"axis {axis}, dimensions {dimensions}")
    if kind != BASIS_EXPLICIT:
        return Basis(kind, length, dimensions)
    # > With EXPLICIT it has `rows` channels. rows times the length of the axis MUST be at most
    # > MAX_BASIS **[basis.size]**. -- 9.2
    # > The stream of the head codes the entries, row by row, entries of row k with table[k]. -- 9.2
    rows = reader.uv(length)
    reader.must(rows * length <= MAX_BASIS, "basis.size", f"{rows} rows of {length} entries")
    row_tables = [read_table_index(reader, tables) for _ in range(rows)]
    shifts = read_vector(reader, rows, MAX_BASIS_SHIFT, tables, runs)
    entries = [Run(table, length, None) for table in row_tables]
    runs += entries
    return Basis(kind, rows, dimensions, shifts, entries)


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
        columns = [[a * b for a in column for b in factor] for column in columns for factor in dct]
    return columns


# ---- 9.4 Codes of row scales and multipliers ----


# > `row_scales` and `multipliers` give the integers r[o] and m[i',t'] as codes of 8 bits, with a
# > mantissa of ROW_SCALE_MANTISSA = 5 bits and of MULTIPLIER_MANTISSA = 3 bits: -- 9.4
def expand(code: int, mantissa: int) -> int:
    exponent, fraction = code >> mantissa, code & ((1 << mantissa) - 1)
    if exponent == 0:
        return fraction
    return ((1 << mantissa) + fraction) << (exponent - 1)


# ---- 9.5 Classes ----


# > `class_count` MUST be at least 1 **[class.count]**. With the uniform quantizer each table_map[i]
# > MUST be the index of a table; with the trellis quantizer table_map[i] and table_map[i] + 1 both
# > MUST be **[class.table]**, and these two tables MUST have the same low_bits
# > **[class.low_bits]**. -- 9.5
def read_table_map(reader: Reader, quantizer: int, tables: list[Table]) -> list[int]:
    class_count = reader.uv(MAX_CLASSES)
    reader.must(class_count >= 1, "class.count", "no classes")
    table_map = list(reader.bytes(class_count))
    for index in table_map:
        last = index + 1 if quantizer == TRELLIS else index
        reader.must(last < len(tables), "class.table", f"table {last} of {len(tables)}")
        same = tables[index].low_bits == tables[last].low_bits
        reader.must(same, "class.low_bits", f"tables {index} and {last} differ in low_bits")
    return table_map


# ---- 10.1 Weights ----


# > **Bound.** Let D be the largest depth, Q = 2^D with the trellis quantizer and 2^(D-1) with the
# > uniform one, M the largest multiplier, and for each basis G = max over n of SUM over k of
# > |B[k,n]|; each of Q, M and G is taken as 1 where it is below 1 or there is nothing to take it
# > of. The product Q * M * G_out * G_in * G_taps MUST be below 2^SUM_BITS **[reconstruct.bound]**.
# > All of it is in the head, so a decoder checks it before any payload. -- 10.1
def check_bound(head: Head) -> None:
    depth = max(head.depths, default=0)
    product = 1 << (depth if head.quantizer == TRELLIS else max(depth - 1, 0))
    product *= max(1, expand(max(head.multipliers, default=0), MULTIPLIER_MANTISSA))
    for basis in head.bases:
        if basis.kind != BASIS_NONE:
            sums = [sum(map(abs, column)) for column in synthesis_columns(basis)]
            product *= max(1, max(sums))
    must(product < 1 << SUM_BITS, "reconstruct.bound", f"sums may reach {product}")


# > For a tensor of E elements whose segments have S bytes together, let N be the sum of the numbers
# > of channels of all axes with a basis. E * N MUST be at most FREE_CHANNELS * E + WORK_PER_BYTE *
# > S **[reconstruct.work]**. -- 10.1
def check_work(bases: list[Basis], elements: int, stored: int) -> None:
    work = elements * sum(basis.channels for basis in bases if basis.kind != BASIS_NONE)
    allowed = FREE_CHANNELS * elements + WORK_PER_BYTE * stored
    must(work <= allowed, "reconstruct.work", f"{work} multiplications, {allowed} are allowed")


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
    tap_count, input_count = math.prod(taps.dimensions), math.prod(inputs.dimensions)
    c = synthesize(c, out.channels * inputs.channels, taps, 1)
    c = synthesize(c, out.channels, inputs, tap_count)
    c = synthesize(c, 1, out, input_count * tap_count)

    kind, row_length, patterns = ELEMENT_TYPES[entry.dtype], input_count * tap_count, []
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
    strides, stride = [0] * len(shape), 1
    for axis in (TAPS, IN, OUT):
        for j in reversed(range(len(shape))):
            if roles[j] == axis:
                strides[j] = stride
                stride *= shape[j]
    positions = [0]
    for n, step in zip(shape, strides, strict=True):
        positions = [p + x * step for p in positions for x in range(n)]
    return positions


# ---- 12.1 Decoders ----

Tensors: TypeAlias = "dict[str, tuple[str, tuple[int, ...], bytes]]"


# > The reference decoder refuses files whose tensors take more bytes, all together and tied ones
# > included, than a given number, by default 32 MiB plus 1000 times the length of the file
# > **[limit.decoded]**. It does so once no rule of 4.2 and 4.3 is broken, nor [container.length],
# > and before it checks any other rule. Tensors of unknown type count nothing, those of unknown
# > coding as any other. -- 12.1
def check_limit(entries: list[Entry], limit: int) -> None:
    total = 0
    for entry in entries:
        target = entry if entry.same_as is None else entries[entry.same_as]
        if target.dtype in ELEMENT_TYPES:
            total += target.elements() * ELEMENT_TYPES[target.dtype].size
    if total > limit:
        raise Limit("limit.decoded", f"the tensors take {total} bytes, more than {limit}")


def decode_file(data: bytes, limit: int | None = None) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the metadata of a file.

    Raises:
        Malformed, Unsupported, Limit: the verdicts of section 12.1.
    """
    # What is unsupported in the header or names a feature is so at once: it hides all that follows.
    file = Reader(data, 0)
    header = read_header(file)
    plain = read_stored_directory(file, header)
    directory = read_directory(MessagePack(plain, FREE_VALUES + header.stored).read())
    entries = directory.entries
    segments = place_segments(directory, file)
    check_limit(entries, 2**25 + 1000 * len(data) if limit is None else limit)
    readers = iter([open_segment(segment, file) for segment in segments])
    tables = [] if directory.tables is None else read_tables(next(readers), directory.tables_size)

    # > a file that is malformed and unsupported is malformed. -- 3.1
    # > Rules for other tensors and for the file apply all the same. A tensor tied to an unsupported
    # > one is unsupported, and so are all tensors of a bundle that one of unknown type or coding
    # > names; of such a bundle, [segment.crc] is checked. -- 12.1
    unsupported: list[Unsupported] = []
    decoded: dict[str, bytes] = {}
    members: list[list[Entry]] = [[] for _ in directory.bundles]
    for entry in entries:
        if entry.bundle is not None:
            members[entry.bundle].append(entry)
    for bundle in members:
        reader = next(readers)
        if all(entry.unsupported is None for entry in bundle):
            parts = decode_bundle(bundle, reader, tables)
            decoded.update(zip((entry.name for entry in bundle), parts, strict=True))
    for entry in entries:
        own = [next(readers) for _ in entry.segments]
        try:
            if entry.unsupported is not None:
                raise entry.unsupported
            if entry.same_as is None and entry.bundle is None:
                decoded[entry.name] = decode_tensor(entry, own, tables)
            if entry.name in decoded:
                check_tensor(entry, decoded[entry.name])
        except DecodeError as error:
            error.tensor = entry.name
            if not isinstance(error, Unsupported):
                raise
            unsupported.append(error)
    if unsupported:
        raise unsupported[0]

    tensors: Tensors = {}
    for entry in entries:
        target = entry if entry.same_as is None else entries[entry.same_as]
        tensors[entry.name] = (target.dtype, target.shape, decoded[target.name])
    return tensors, directory.metadata


def decode_tensor(entry: Entry, segments: list[Reader], tables: list[Table]) -> bytes:
    if entry.coding == RAW:
        return decode_raw(entry, segments)
    decode_coded = decode_planes if entry.coding == PLANES else decode_transform
    return decode_coded(entry, segments, tables)


def decode(data: bytes, limit: int | None = None) -> Tensors:
    """The tensors of a file by name, in the order of the file: dtype, shape and bytes of each."""
    return decode_file(data, limit)[0]


# ---- The command ----


def safetensors(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, shape, elements) in tensors.items():
        start, end = end, end + len(elements)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(t[2] for t in tensors.values())])


def run_once(source: BinaryIO, sink: BinaryIO) -> int:
    try:
        output = safetensors(*decode_file(source.read()))
    except DecodeError as error:
        line = str(error).encode("ascii", "backslashreplace").decode()
        sys.stderr.write(" ".join(line.splitlines()) + "\n")
        return error.code
    sink.write(output)
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
            output = safetensors(*decode_file(data))
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
