"""DEFLATE streams (3.3): what is valid and what is not, as planes of bytes."""

from __future__ import annotations

from collections.abc import Iterator

from layout.deflate import (
    DISTANCES,
    Bits,
    Code,
    Lengths,
    Token,
    dynamic,
    fixed,
    matches,
    stored,
)
from layout.file import PLANES, File, Tensor
from layout.planes import Part, block, deflated_plane

from vectors.case import Case, accept, reject

TEXT = b"abracadabra"
ABC = {97: 2, 98: 2, 99: 2, 256: 2}
AA = {97: 1, 256: 1}
FOUR = dict.fromkeys(range(4), 2)
TEXT_CODE = {97: 2, 98: 3, 99: 3, 100: 3, 114: 3, 256: 3, 257: 3}
# Code lengths of the literals 0 to 255 where that of 97 is 1 and all others are 0.
ZEROS_TO_256 = (Lengths(18, 86), Lengths(1), Lengths(18, 127), Lengths(18, 9))


def _file(stream: bytes, data: bytes) -> File:
    """A tensor of bytes whose plane is a stream."""
    part = Part("U8", range(len(data)), 8)
    head = block([Part("U8", [], 8)])
    tensor = Tensor("t", "U8", (len(part.patterns),), data, PLANES, [head + deflated_plane(stream)])
    return File([tensor])


def cases() -> Iterator[Case]:
    """All vectors of this section."""
    yield from _valid()
    yield from _valid_codes()
    yield from _invalid()
    yield from _invalid_codes()
    yield from _sizes()


def _valid() -> Iterator[Case]:
    def valid(name: str, text: str, stream: Bits | bytes, data: bytes = TEXT) -> Case:
        stream = stream if isinstance(stream, bytes) else stream.build()
        return accept(f"deflate-{name}", "3.3", text, _file(stream, data))

    yield valid("stored", "a stored block", stored(Bits(), TEXT))
    yield valid("fixed", "a block of the fixed codes", fixed(Bits(), matches(TEXT)))
    yield valid(
        "literals", "fixed codes of all bytes", fixed(Bits(), range(256)), bytes(range(256))
    )
    bits = stored(stored(Bits(), b"abra", final=False), b"", final=False)
    bits = fixed(fixed(bits, b"", final=False), b"cadab", final=False)
    bits = dynamic(bits, b"ra", {97: 2, 114: 1, 256: 2}, {}, final=False)
    yield valid("blocks", "blocks of all types, some of them empty", stored(bits, b""))
    text = "spare bits of the last byte are 1"
    yield valid("spare", text, fixed(Bits(), TEXT).align(255))
    text = "spare bits before the length of a stored block are 1"
    bits = stored(fixed(Bits(), TEXT[:4], final=False), TEXT[4:], fill=255)
    yield valid("spare-stored", text, bits)
    text = "a match reaches back into a block before"
    bits = fixed(stored(Bits(), TEXT[:7], final=False), [(4, 7)])
    yield valid("match-over-blocks", text, bits)
    text = "matches of all lengths, 3 to 258"
    tokens: list[Token] = [120, *[(n, 1) for n in range(3, 259)]]
    yield valid("lengths", text, fixed(Bits(), tokens), b"x" * (1 + sum(range(3, 259))))
    text = "a match of length 258 by code 284, all of whose extra bits are 1"
    bits = fixed(Bits(), [97, Code(284, (31, 5), 0)])
    yield valid("length-284", text, bits, b"a" * 259)
    text = "matches of the first and the last distance of each code"
    data, tokens = bytearray(range(256)), list(range(256))
    for base, extra in DISTANCES:
        for distance in dict.fromkeys((base, base + (1 << extra) - 1)):
            while len(data) < distance:
                tokens.append((258, 256))
                data += bytes(data[-256:]) + data[-256:-254]
            tokens.append((3, distance))
            start = len(data) - distance
            data += bytes(data[start + i % distance] for i in range(3))
    yield valid("distances", text, fixed(Bits(), tokens), bytes(data))
    text = "a match of distance 1 overlaps itself; a match reaches back to the first byte"
    bits = fixed(Bits(), [97, (10, 1), 98, (12, 12)])
    yield valid("overlap", text, bits, (b"a" * 11 + b"b") * 2)
    text = "an empty block of the fixed codes is the last one"
    yield valid("empty-last", text, fixed(stored(Bits(), TEXT, final=False), b""))


def _valid_codes() -> Iterator[Case]:
    def valid(name: str, text: str, bits: Bits, data: bytes) -> Case:
        return accept(f"deflate-{name}", "3.3", text, _file(bits.build(), data))

    yield valid("dynamic", "a block of codes of its own", dynamic(Bits(), b"abc", ABC, {}), b"abc")
    text = "286 literal and length codes and 30 distance codes, the most there may be"
    literals = {97: 2, 98: 2, 256: 2, 285: 2}
    bits = dynamic(Bits(), [97, 98, (258, 2)], literals, {1: 1, 29: 1})
    yield valid("most-codes", text, bits, b"ab" * 130)
    text = "a code of one literal or length, the end of the block"
    bits = dynamic(stored(Bits(), TEXT, final=False), b"", {256: 1}, {})
    yield valid("one-literal-code", text, bits, TEXT)
    text = "one distance code, of length 1"
    bits = dynamic(Bits(), [97, (3, 1)], {97: 1, 256: 2, 257: 2}, {0: 1})
    yield valid("one-distance-code", text, bits, b"aaaa")
    text = "one distance code, of length 1, that is not the first"
    bits = dynamic(Bits(), [97, 97, (3, 2)], {97: 1, 256: 2, 257: 2}, {1: 1})
    yield valid("one-distance-code-later", text, bits, b"aaaaa")
    text = "no distance code, and a length code that is not used"
    bits = dynamic(Bits(), [97, 97], {97: 1, 256: 2, 257: 2}, {})
    yield valid("no-distance-code", text, bits, b"aa")
    text = "codes of 15 bits"
    literals = {65 + i: i + 1 for i in range(15)} | {256: 15}
    bits = dynamic(Bits(), range(65, 80), literals, {})
    yield valid("15-bits", text, bits, bytes(range(65, 80)))
    text = "distance codes of 15 bits"
    distances = {i: min(i + 1, 15) for i in range(16)}
    bits = dynamic(Bits(), [*TEXT, (3, 11), (3, 1)], TEXT_CODE, distances)
    yield valid("15-bit-distances", text, bits, TEXT + TEXT[:3] + TEXT[2:3] * 3)
    lengths = dict.fromkeys(range(255), 8) | {255: 9, 256: 9}
    sequence = [Lengths(8), *[Lengths(16, 3)] * 42, Lengths(8), Lengths(8)]
    sequence += [Lengths(9), Lengths(9), Lengths(1), Lengths(1)]
    bits = dynamic(Bits(), TEXT, lengths, {0: 1, 1: 1}, sequence=sequence)
    yield valid("repeats-16", "repeats of a code length by 16", bits, TEXT)
    text = "the last literal's code length is repeated for the first distances, by 16"
    sequence = [*ZEROS_TO_256[:1], Lengths(2), *ZEROS_TO_256[2:], Lengths(2), Lengths(2)]
    sequence += [Lengths(2), Lengths(16, 1)]
    lengths = {97: 2, 256: 2, 257: 2, 258: 2}
    bits = dynamic(Bits(), [97, (3, 1), (4, 3)], lengths, FOUR, sequence=sequence)
    yield valid("repeat-into-distances", text, bits, b"a" * 8)
    text = "a repeat of zeros goes on from the literals into the distances"
    sequence = [*ZEROS_TO_256, Lengths(1), Lengths(18, 0)]
    bits = dynamic(Bits(), b"aa", AA, {}, sequence=sequence, counts=(258, 10))
    yield valid("zeros-into-distances", text, bits, b"aa")
    text = "a code for code lengths of 1 to 7 bits, all 19 of them sent"
    code = {0: 1, 18: 2, 1: 3, 17: 4, 2: 5, 16: 6, 15: 7, 14: 7}
    bits = dynamic(Bits(), b"aa", AA, {}, code_lengths=code)
    yield valid("code-lengths-7-bits", text, bits, b"aa")
    text = "a code for code lengths of two symbols"
    bits = dynamic(
        Bits(),
        b"aa",
        AA,
        {0: 1},
        code_lengths={1: 1, 18: 1},
        sequence=[*ZEROS_TO_256, Lengths(1), Lengths(1)],
    )
    yield valid("two-code-lengths", text, bits, b"aa")


def _invalid() -> Iterator[Case]:
    def invalid(name: str, text: str, stream: Bits | bytes, data: bytes = TEXT) -> Case:
        stream = stream if isinstance(stream, bytes) else stream.build()
        return reject(f"deflate.stream@{name}", "3.3", text, _file(stream, data))

    def cut(name: str, text: str, stream: Bits | bytes) -> Case:
        stream = stream if isinstance(stream, bytes) else stream.build()
        return reject(f"deflate.size@{name}", "3.3", text, _file(stream, TEXT))

    yield invalid("type-3", "a block of type 3", Bits().put(7, 3))
    good = stored(Bits(), TEXT).build()
    text = "the two lengths of a stored block do not agree"
    yield invalid("stored-length", text, good[:3] + bytes([good[3] ^ 1]) + good[4:])
    yield cut("empty", "a stream of no bytes", b"")
    yield cut("cut-stored", "a stored block is cut off", good[:-1])
    yield cut("cut-length", "the length of a stored block is cut off", good[:4])
    yield cut("cut-fixed", "a fixed block is cut off", fixed(Bits(), TEXT).build()[:-2])
    text = "there is no last block"
    yield cut("not-last", text, fixed(Bits(), TEXT, final=False))
    text = "the end of the last block is missing"
    yield cut("no-end", text, fixed(Bits(), TEXT, end=False))
    for symbol in (286, 287):
        text = f"symbol {symbol} of the fixed codes"
        bits = fixed(Bits(), [*TEXT, Code(symbol, (0, 0), 0)])
        yield invalid(f"fixed-{symbol}", text, bits, TEXT * 2)
    for place in (30, 31):
        text = f"distance code {place} of the fixed codes"
        bits = fixed(Bits(), [*TEXT, Code(257, (0, 0), place)])
        yield invalid(f"fixed-distance-{place}", text, bits, TEXT + b"abc")
    text = "a distance reaches back behind the first byte"
    yield invalid("distance", text, fixed(Bits(), [97, (3, 2)]), b"aaaa")
    text = "a match comes first"
    yield invalid("distance-first", text, fixed(Bits(), [(3, 1), 97]), b"aaaa")
    text = "a distance of 32768 after 258 bytes"
    yield invalid("distance-far", text, fixed(Bits(), [97, (257, 1), (3, 32768)]), b"a" * 261)


def _invalid_codes() -> Iterator[Case]:
    def invalid(name: str, text: str, bits: Bits, data: bytes = b"abc") -> Case:
        return reject(f"deflate.stream@{name}", "3.3", text, _file(bits.build(), data))

    for count in (287, 288):
        text = f"{count} literal and length codes"
        bits = dynamic(Bits(), b"abc", ABC, {}, counts=(count, 1))
        yield invalid(f"hlit-{count - 257}", text, bits)
    for count in (31, 32):
        text = f"{count} distance codes"
        bits = dynamic(Bits(), b"abc", ABC, {}, counts=(257, count))
        yield invalid(f"hdist-{count - 1}", text, bits)
    text = "a code of literals that is incomplete"
    yield invalid("literals-incomplete", text, dynamic(Bits(), b"abc", ABC | {98: 3}, {}))
    text = "a code of literals with too many codes"
    yield invalid("literals-too-many", text, dynamic(Bits(), b"abc", ABC | {100: 2}, {}))
    text = "one literal code, of length 2"
    bits = dynamic(stored(Bits(), b"abc", final=False), b"", {256: 2}, {})
    yield invalid("one-literal-2", text, bits)
    text = "two distance codes, of length 2"
    literals = {97: 1, 256: 2, 257: 2}
    bits = dynamic(Bits(), [97, (3, 1)], literals, {0: 2, 1: 2})
    yield invalid("distances-incomplete", text, bits, b"aaaa")
    text = "three distance codes of length 1"
    bits = dynamic(Bits(), [97, (3, 1)], literals, {0: 1, 1: 1, 2: 1})
    yield invalid("distances-too-many", text, bits, b"aaaa")
    text = "one distance code, of length 2"
    bits = dynamic(Bits(), [97, (3, 1)], literals, {0: 2})
    yield invalid("one-distance-2", text, bits, b"aaaa")
    text = "distance codes that are wrong though no match uses them"
    bits = dynamic(Bits(), b"abc", ABC, {0: 2})
    yield invalid("one-distance-2-unused", text, bits)
    code = {symbol: 4 if symbol < 13 else 5 for symbol in range(19)}
    text = "a code for code lengths that is incomplete"
    bits = dynamic(Bits(), b"abc", ABC, {}, code_lengths=code | {15: 0})
    yield invalid("lengths-incomplete", text, bits)
    text = "a code for code lengths with too many codes"
    bits = dynamic(Bits(), b"abc", ABC, {}, code_lengths=code | {15: 4})
    yield invalid("lengths-too-many", text, bits)
    text = "a code for code lengths of one symbol"
    bits = dynamic(Bits(), b"", {}, {}, code_lengths={1: 1}, sequence=[Lengths(1)] * 258, end=False)
    yield invalid("one-code-length", text, bits)
    text = "no code for code lengths"
    bits = dynamic(Bits(), b"", {}, {}, code_lengths={}, sequence=[], end=False)
    yield invalid("no-code-lengths", text, bits.put(0, 64))
    text = "a missing code is met: the other one than the only distance code"
    bits = dynamic(Bits(), [97, Code(257)], literals, {0: 1}, end=False).put(1, 1).put(3, 2)
    yield invalid("missing-distance", text, bits, b"aaaa")
    text = "a length without any distance code"
    bits = dynamic(Bits(), [97, Code(257)], literals, {}, end=False).put(0, 1).put(3, 2)
    yield invalid("no-distance", text, bits, b"aaaa")
    text = "a missing code is met: the other one than the end of the block"
    bits = dynamic(stored(Bits(), b"abc", final=False), b"", {256: 1}, {}, end=False)
    yield invalid("missing-literal", text, bits.put(1, 1).put(0, 16))
    text = "no code for the end of a block"
    bits = dynamic(Bits(), b"abc", {97: 1, 98: 2, 99: 2}, {}, end=False)
    yield invalid("no-256", text, bits.put(0, 16))
    text = "no code at all"
    bits = dynamic(Bits(), b"", {}, {}, end=False)
    yield invalid("no-codes", text, bits.put(0, 16))
    text = "a repeat comes first"
    sequence = [Lengths(16), *ZEROS_TO_256, Lengths(1), Lengths(0)]
    bits = dynamic(Bits(), b"aa", AA, {}, sequence=sequence)
    yield invalid("repeat-first", text, bits, b"aa")
    text = "a repeat of zeros reaches past the last distance code"
    sequence = [*ZEROS_TO_256, Lengths(1), Lengths(17)]
    bits = dynamic(Bits(), b"aa", AA, {}, sequence=sequence)
    yield invalid("repeat-past-end", text, bits, b"aa")
    text = "a repeat by 16 reaches past the last distance code"
    sequence = [*ZEROS_TO_256, Lengths(1), Lengths(16)]
    bits = dynamic(Bits(), b"aa", AA, {}, sequence=sequence)
    yield invalid("repeat-16-past-end", text, bits, b"aa")


def _sizes() -> Iterator[Case]:
    def wrong(name: str, text: str, stream: bytes, data: bytes = TEXT) -> Case:
        return reject(f"deflate.size@{name}", "3.3", text, _file(stream, data))

    good = fixed(Bits(), TEXT).build()
    yield wrong("short", "one byte less than there are values", good, TEXT + b"a")
    yield wrong("long", "one byte more than there are values", good, TEXT[:-1])
    yield wrong("surplus", "a byte lies behind the last block", good + b"\0")
    text = "another block follows the last one"
    yield wrong("blocks", text, fixed(stored(Bits(), TEXT), b"").build())
    text = "one byte more than there are values, by a match that is longer"
    yield wrong("match", text, fixed(Bits(), [97, (258, 1)]).build(), b"a" * 258)
    text = "a million bytes where one is wanted"
    tokens: list[Token] = [97, *[(258, 1)] * 4000]
    yield wrong("bomb", text, fixed(Bits(), tokens).build(), b"a")
