"""Planes (chapter 8)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from layout.coder import Table, even, stream
from layout.deflate import deflate
from layout.elements import sv, uv
from layout.file import PLANES, File, Tensor
from layout.numbers import DTYPES, FLOATS, singles
from layout.planes import Changes, Part, block, deflated_plane, packed_plane

from vectors.case import Case, accept, reject
from vectors.common import BITS, planes_file

EXPONENTS = Table(0, (1000, 1000, 1000, 1000), 96)
MANY = 1 << 20


def cases() -> Iterator[Case]:
    """All vectors of this chapter."""
    yield from _integers()
    yield from _floats()
    yield from _planes()
    yield from _blocks()
    yield from _bundles()
    yield from _broken()


def _file_name(dtype: str) -> str:
    return dtype.lower().replace("_", "-")


def _integers() -> Iterator[Case]:
    for name, dtype in DTYPES.items():
        if dtype.exponent:
            continue
        bits = 1 if name == "BOOL" else 8 * dtype.size
        patterns = [0, 1, (1 << bits) - 1, (1 << bits) // 3]
        text = f"{name} with all of its bits"
        file = planes_file(Part(name, patterns, 8 * dtype.size))
        yield accept(f"planes-{_file_name(name)}", "8.3", text, file)
    for kept in (0, 1, 7, 8, 9, 15, 17, 31, 63, 64):
        name = "U8" if kept < 8 else "I16" if kept < 16 else "U32" if kept < 32 else "U64"
        most = (1 << kept) - 1
        text = f"{name} with {kept} bits kept"
        file = planes_file(Part(name, [0, most, most // 3, most // 5], kept))
        yield accept(f"integer-kept-{kept}", "8.3", text, file)
    text = "booleans in planes of one bit"
    yield accept("bool-1", "8.3", text, planes_file(Part("BOOL", [1, 0, 1, 1, 0, 0, 1, 0, 1], 1)))


def _special(dtype: str) -> list[int]:
    """Zero, subnormal, normal and special patterns of both signs, all mantissa bits used."""
    kind = DTYPES[dtype]
    e, m = kind.exponent, kind.mantissa
    top = (1 << e) - 1
    plain = [0, 1, (1 << m) - 1, 1 << m, (top << m) - 1, top << m, top << m | 1, (1 << e + m) - 1]
    plain.append(kind.bias << m)
    return plain + [1 << 8 * kind.size - 1 | pattern for pattern in plain]


def _floats() -> Iterator[Case]:
    for name in FLOATS:
        kind = DTYPES[name]
        table = even(-1, 2, 96)
        special = Part(name, _special(name), kind.mantissa, table=0)
        text = f"{name}: zeros, subnormals, largest numbers, infinities and NaNs, all bits kept"
        yield accept(f"special-{_file_name(name)}", "8.2", text, planes_file(special, table))
        for kept in range(kind.mantissa + 1):
            if name == "F64" and 2 < kept < kind.mantissa - 1 and kept % 8:
                continue
            drop = kind.mantissa - kept
            signed = [0x2B, 0x33, 0x1C, 0x55] if kind.size == 1 else _some(name)
            patterns = [pattern >> drop << drop for pattern in signed]
            text = f"{name} with {kept} of {kind.mantissa} mantissa bits"
            part = Part(name, patterns, kept, table=0, offset=kind.bias)
            yield accept(
                f"{_file_name(name)}-kept-{kept}", "8.3", text, planes_file(part, EXPONENTS)
            )
    patterns = singles([1.5, 2.0, 3.75, 1.0])
    for kept in (0, 1, 7, 8, 9, 16, 23):
        drop = 23 - kept
        rounded = [pattern >> drop << drop for pattern in patterns]
        text = f"UNSIGNED, {kept} mantissa bits"
        part = Part("F32", rounded, kept, unsigned=True, table=0, offset=127)
        yield accept(f"unsigned-kept-{kept}", "8.3", text, planes_file(part, EXPONENTS))
    text = "all exponents are the offset: nothing is coded"
    part = Part("F32", singles([1.5, -1.25, 1.0]), 2, offset=127)
    yield accept("uncoded", "8.2", text, planes_file(part))
    text = "zeros: UNSIGNED, no bits kept, nothing coded"
    yield accept("zeros", "8.2", text, planes_file(Part("F64", [0] * 9, 0, unsigned=True)))
    text = "negative zeros: one bit each"
    yield accept("negative-zeros", "8.2", text, planes_file(Part("F16", [0x8000] * 9, 0)))
    text = "infinities by the offset alone"
    part = Part("BF16", [0x7F80, 0xFF80], 0, offset=255)
    yield accept("infinities", "8.2", text, planes_file(part))
    for offset in (1 << 12, -(1 << 12) - 1):
        text = f"an offset of {offset}, which the stream makes up for"
        part = Part("F32", singles([1.5, -0.5]), 1, table=0, offset=offset)
        yield accept(f"offset-{offset}", "8.1", text, planes_file(part, EXPONENTS))
    text = "exponents from 0 to 2047 of F64 by a table with low bits"
    part = Part("F64", [0, 1 << 52, 0x7FF << 52, 5 << 52], 0, unsigned=True, table=0)
    yield accept("exponents-low-bits", "8.2", text, planes_file(part, even(0, 16, low_bits=7)))


def _some(dtype: str) -> list[int]:
    """Numbers of exponents bias .. bias + 3 and of both signs, with many mantissa bits."""
    kind = DTYPES[dtype]
    one = kind.bias << kind.mantissa
    step = (1 << kind.mantissa) // 3
    sign = 1 << 8 * kind.size - 1
    return [one, sign | one + step, one + 4 * step, sign | one + 7 * step, one + 10 * step]


def _planes() -> Iterator[Case]:
    data = [0, 0, 0, 7, 7, 7, 7, 7, 1] * 5
    text = "a plane that is deflated"
    part = Part("U8", data, 8)
    plane = deflated_plane(deflate(bytes(data)))
    yield accept("deflated", "8.3", text, planes_file(part, planes={0: plane}))
    part = Part("U16", [value << 4 | value for value in data], 11)
    text = "of two planes, the second is deflated, of values of 3 bits"
    plane = deflated_plane(deflate(bytes(value << 4 >> 8 for value in data)))
    yield accept("deflated-second", "8.3", text, planes_file(part, planes={1: plane}))
    text = "the head of a block is deflated"
    head = deflated_plane(deflate(part.head))
    yield accept("deflated-head", "8.1", text, planes_file(part, head_plane=head))
    wide = Part("U16", [3], 12)
    plane = deflated_plane(deflate(b"\0"))
    text = "a deflated plane of one value"
    yield accept("deflated-one", "8.3", text, planes_file(wide, planes={1: plane}))
    part = Part("U8", [1, 2], 8)
    yield reject("plane.kind", "8.3", "kind 2 of a plane", planes_file(part, planes={0: b"\2\1\2"}))
    text = "kind 2 of the plane of the head"
    yield reject("plane.kind@head", "8.3", text, planes_file(part, head_plane=b"\2" + part.head))
    part = Part("U8", [1, 7], 3)
    plane = deflated_plane(deflate(b"\1\x08"))
    text = "a deflated plane has an 8 among values of 3 bits"
    yield reject("plane.range", "8.3", text, planes_file(part, planes={0: plane}))
    part = Part("U16", [1, 7], 9)
    plane = deflated_plane(deflate(b"\0\2"))
    text = "the second plane has a 2 among values of 1 bit"
    yield reject("plane.range@second", "8.3", text, planes_file(part, planes={1: plane}))
    part = Part("U8", [1, 7, 3], 3)
    text = "a spare bit of a packed plane is 1"
    plane = b"\0" + bytes([packed_plane([1, 7, 3], [3] * 3)[1], 0x80])
    yield reject("bits.spare@plane", "6.1", text, planes_file(part, planes={0: plane}))
    text = "a deflated plane reaches past its segment"
    plane = b"\1" + uv(100) + deflate(b"\1\1\1")
    yield reject("segment.short@deflated-plane", "3.3", text, planes_file(part, planes={0: plane}))
    for name, count in (("short", 2), ("long", 4)):
        text = f"a deflated plane has {count} values, not 3"
        plane = deflated_plane(deflate(bytes(count)))
        yield reject(
            f"deflate.size@plane-{name}", "3.3", text, planes_file(part, planes={0: plane})
        )
    text = "a byte lies behind the last plane"
    plane = packed_plane([1, 7, 3], [3] * 3) + b"\0"
    yield reject("segment.surplus@block", "3.3", text, planes_file(part, planes={0: plane}))
    text = "a packed plane is cut off"
    yield reject("segment.short@plane", "3.3", text, planes_file(part, planes={0: b"\0\1"}))


def _blocks() -> Iterator[Case]:
    count = MANY + 3
    blocks = [block([Part("U8", [], 0)]), block([Part("U8", [7, 8, 9], 8)])]
    tensor = Tensor("t", "U8", (count,), bytes(MANY) + b"\7\x08\x09", PLANES, blocks)
    text = "2^20 + 3 elements in two blocks, of which the first keeps no bits"
    yield accept("two-blocks", "4.4", text, File([tensor]))
    tensor = Tensor("t", "BF16", (MANY,), b"\x80\x3f" * MANY, PLANES, [_ones()])
    text = "2^20 elements, the most of one block"
    yield accept("full-block", "4.4", text, File([tensor]))
    tensor = Tensor("t", "F32", (3, MANY), b"\0\0\x80\x3f" * 3 * MANY, PLANES, [_ones("F32")] * 3)
    text = "three full blocks, whose rows are not those of the tensor's shape"
    yield accept("three-blocks", "4.4", text, File([tensor]))
    text = "blocks of one tensor with different kept bits, flags and tables"
    table = Table(127, (4096,))
    signed = Part("F32", singles([-1.5, 1.25]), 2, table=0)
    tensor = Tensor(
        "t",
        "F32",
        (MANY + 2,),
        b"\0\0\x80\x3f" * MANY + signed.elements,
        PLANES,
        [_ones("F32"), block([signed], [table])],
    )
    yield accept("blocks-differ", "4.4", text, File([tensor], [table]))


def _ones(dtype: str = "BF16") -> bytes:
    """A block of any number of ones."""
    return block([Part(dtype, [], 0, unsigned=True, offset=127)])


def _bundles() -> Iterator[Case]:
    def bundle(name: str, text: str, *parts: Part, **changes: Any) -> Case:
        known = [EXPONENTS, BITS]
        data = block(parts, known, Changes(**changes))
        tensors = [part.tensor(name=f"{i}", bundle=0) for i, part in enumerate(parts)]
        return accept(name, "8.1", text, File(tensors, known, bundles=[data]))

    f32 = Part("F32", singles([1.5, -2.25, 3.0]), 3, table=0, offset=127)
    f16 = Part("F16", [0x3C00, 0x3E00], 1, unsigned=True, table=1, offset=15)
    ones = Part("BF16", [0x3F80, 0xBF80], 0, offset=127)
    f64 = Part("F64", [0x3FF123456789ABCD], 52, offset=1023)
    u8, i32 = Part("U8", [1, 2, 3], 2), Part("I32", [5, 1 << 18, 0], 19)
    empty, nothing = Part("F32", [], 23, table=0, offset=5), Part("I64", [], 64)
    yield bundle("bundle-types", "parts of many types and widths", f32, u8, f16, i32, ones, f64)
    text = "parts without elements count for nothing, least of all for the number of planes"
    yield bundle("bundle-empty-parts", text, nothing, u8, empty, f16, nothing)
    yield bundle("bundle-empty", "only parts without elements", nothing, empty)
    text = "parts without elements, none of them coded"
    yield bundle("bundle-empty-uncoded", text, nothing, replace(empty, table=None))
    text = "a part of width 0 between others"
    yield bundle("bundle-width-0", text, u8, Part("F32", [0, 0], 0, unsigned=True), i32)
    text = "exponents of a coded part come after those of an uncoded one"
    yield bundle("bundle-uncoded-first", text, ones, f32, f64, f16)
    text = "300 parts, whose head is deflated"
    parts = [replace(ones, patterns=[0x3F80 | i % 128], kept=7) for i in range(300)]
    head = deflated_plane(deflate(b"".join(part.head for part in parts)))
    yield bundle("bundle-300", text, *parts, head_plane=head)
    text = "a bundle of 2^20 elements"
    half = Tensor("a", "U8", (MANY // 2,), bytes(MANY // 2), PLANES, bundle=0)
    data = block([Part("U8", [], 0)] * 2)
    yield accept("bundle-full", "8.1", text, File([half, replace(half, name="b")], bundles=[data]))
    more = replace(half, name="b", shape=(MANY // 2 + 1,), elements=bytes(MANY // 2 + 1))
    text = "a bundle of 2^20 + 1 elements"
    yield reject("bundle.size", "8.1", text, File([half, more], bundles=[data]))


def _broken() -> Iterator[Case]:
    part = Part("F32", singles([1.5, -2.25, 3.0]), 3, table=0, offset=127)

    def head(name: str, section: str, text: str, data: bytes, wrong: Part = part) -> Case:
        """The head of a block, changed: kept, flags, table, offset."""
        return reject(name, section, text, planes_file(wrong, EXPONENTS, head=data))

    text = "24 mantissa bits kept of 23"
    yield head("block.kept", "8.1", text, bytes([24, 2, 0]) + sv(127))
    text = "9 bits kept of a byte"
    yield head("block.kept@integer", "8.1", text, bytes([9, 0]), Part("U8", [1, 2], 8))
    text = "flag 4 of a part"
    yield head("block.flags", "8.1", text, bytes([3, 6, 0]) + sv(127))
    for flag, name in ((1, "unsigned"), (2, "coded")):
        data = bytes([8, flag]) + b"\0" * (flag == 2)
        text = f"{name.upper()} is set for integers"
        yield head(f"block.flags@{name}", "8.1", text, data, Part("U8", [1, 2], 8))
    text = "table 1 of 1"
    yield head("table.index@part", "5.1", text, bytes([3, 2, 1]) + sv(127))
    for offset in ((1 << 12) + 1, -(1 << 12) - 2):
        text = f"an offset of {offset}"
        data = bytes([3, 2, 0]) + sv(offset)
        yield head(f"integer.range@offset-{offset}", "8.1", text, data)
    text = "a byte lies behind the last part of a head"
    yield head("segment.surplus@part", "3.3", text, part.head + b"\0")
    text = "the head of a block ends in its last part"
    yield head("segment.short@part", "3.3", text, part.head[:-1])
    yield head("segment.short@no-head", "3.3", "an empty head of a block", b"")
    text = "a head of 17 bytes for one part"
    yield head("integer.range@head-size", "8.1", text, part.head + bytes(17 - len(part.head)))
    for name, value in (("most", 256), ("least", -1)):
        text = f"an exponent of {value}"
        values = [value - 127, 0, 0]
        data = stream(values, [0] * 3, [EXPONENTS])
        file = planes_file(part, EXPONENTS, stream=data)
        yield reject(f"block.exponent@{name}", "8.2", text, file)
    wrong = Part("F8_E4M3", [0, 0], 0, unsigned=True)
    text = "an exponent of 16 of 4 bits, by the offset alone"
    yield head("block.exponent@offset", "8.2", text, bytes([0, 1]) + sv(16), wrong)
    text = "an exponent of -1 by the offset alone"
    yield head("block.exponent@negative-offset", "8.2", text, bytes([0, 1]) + sv(-1), wrong)
    text = "offsets without elements may be anything within their range"
    empty = Part("F8_E4M3", [], 0, unsigned=True, offset=-4000)
    file = File([empty.tensor(bundle=0)], bundles=[block([empty])])
    yield accept("offset-of-no-elements", "8.2", text, file)
