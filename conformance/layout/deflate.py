"""DEFLATE streams made by hand (RFC 1951): every block is what the caller says.

Compressors differ from build to build; these bytes do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple, TypeAlias

END = 256
CODE_LENGTH_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
FIXED_LITERALS = {s: 8 if s < 144 else 9 if s < 256 else 7 if s < 280 else 8 for s in range(288)}
FIXED_DISTANCES = dict.fromkeys(range(32), 5)


class Code(NamedTuple):
    """A bare symbol of the code for literals and lengths, then perhaps one of the distances."""

    literal: int
    extra: tuple[int, int] = (0, 0)  # value, bits
    distance: int | None = None


# What a block codes: a literal, or (length, distance), or a bare symbol.
Token: TypeAlias = int | tuple[int, int] | Code


class Bits:
    """Collects bits, the first in the lowest bit of the first byte."""

    def __init__(self) -> None:
        self.total = self.count = 0

    def put(self, value: int, count: int) -> Bits:
        """Append a number, its least significant bit first."""
        self.total |= value << self.count
        self.count += count
        return self

    def code(self, codes: Mapping[int, tuple[int, int]], symbol: int) -> None:
        """Append a Huffman code, its most significant bit first."""
        value, length = codes[symbol]
        for bit in reversed(range(length)):
            self.put(value >> bit & 1, 1)

    def align(self, fill: int = 0) -> Bits:
        """Fill the last byte with spare bits."""
        spare = -self.count % 8
        return self.put(fill & (1 << spare) - 1, spare)

    def build(self) -> bytes:
        """All bytes."""
        return self.total.to_bytes((self.count + 7) // 8, "little")


def canonical(lengths: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    """(code, length) of each symbol that has a length above 0."""
    out: dict[int, tuple[int, int]] = {}
    code = 0
    for length in range(1, 16):
        for symbol in sorted(lengths):
            if lengths[symbol] == length:
                out[symbol] = (code, length)
                code += 1
        code <<= 1
    return out


def _bases(start: int, groups: Iterable[int]) -> list[tuple[int, int]]:
    out = []
    for extra in groups:
        out.append((start, extra))
        start += 1 << extra
    return out


LENGTHS = _bases(3, [0] * 8 + [e for e in range(1, 6) for _ in range(4)])
DISTANCES = _bases(1, [0] * 4 + [e for e in range(1, 14) for _ in range(2)])


def length_code(length: int) -> Code:
    """The symbol of the length of a match."""
    if length == 258:
        return Code(285)
    symbol = max(i for i, (base, _) in enumerate(LENGTHS) if base <= length)
    base, extra = LENGTHS[symbol]
    return Code(257 + symbol, (length - base, extra))


def _body(
    bits: Bits,
    tokens: Iterable[Token],
    literals: Mapping[int, int],
    distances: Mapping[int, int],
) -> Bits:
    literal_codes, distance_codes = canonical(literals), canonical(distances)
    for token in tokens:
        if isinstance(token, int):
            bits.code(literal_codes, token)
        elif isinstance(token, Code):
            bits.code(literal_codes, token.literal)
            bits.put(*token.extra)
            if token.distance is not None:
                bits.code(distance_codes, token.distance)
        else:
            symbol = length_code(token[0])
            bits.code(literal_codes, symbol.literal)
            bits.put(*symbol.extra)
            place = max(i for i, (base, _) in enumerate(DISTANCES) if base <= token[1])
            bits.code(distance_codes, place)
            bits.put(token[1] - DISTANCES[place][0], DISTANCES[place][1])
    return bits


def stored(bits: Bits, data: bytes, *, final: bool = True, fill: int = 0) -> Bits:
    """A stored block; `fill` goes to the spare bits before its length."""
    bits.put(final, 1).put(0, 2).align(fill)
    bits.put(len(data), 16).put(len(data) ^ 0xFFFF, 16)
    return bits.put(int.from_bytes(data, "little"), 8 * len(data))


def fixed(bits: Bits, tokens: Iterable[Token], *, final: bool = True, end: bool = True) -> Bits:
    """A block of the fixed codes."""
    bits.put(final, 1).put(1, 2)
    return _body(bits, [*tokens, *[END] * end], FIXED_LITERALS, FIXED_DISTANCES)


class Lengths(NamedTuple):
    """A symbol of the code for code lengths, with the value of its extra bits."""

    symbol: int
    extra: int = 0


def dynamic(
    bits: Bits,
    tokens: Iterable[Token],
    literals: Mapping[int, int],
    distances: Mapping[int, int],
    *,
    final: bool = True,
    end: bool = True,
    counts: tuple[int, int] | None = None,
    sequence: Sequence[Lengths] | None = None,
    code_lengths: Mapping[int, int] | None = None,
) -> Bits:
    """A block of codes of its own.

    Args:
        bits: what comes before.
        tokens: what the block codes.
        literals: code length of each literal or length symbol that has one.
        distances: likewise for distances.
        final: whether it is the last block.
        end: whether the symbol for the end of the block follows.
        counts: numbers of literal and distance codes, if not the fewest.
        sequence: how the code lengths are coded, if not one by one.
        code_lengths: lengths of the code for code lengths, if not 4 or 5 for each of its symbols.
    """
    most = (max([256, *literals]) + 1, max([0, *distances]) + 1)
    count_literals, count_distances = counts or most
    if sequence is None:
        plain = [literals.get(i, 0) for i in range(count_literals)]
        plain += [distances.get(i, 0) for i in range(count_distances)]
        sequence = run_lengths(plain)
    if code_lengths is None:  # complete: 13 codes of 4 bits and 6 of 5
        code_lengths = {symbol: 4 if symbol < 13 else 5 for symbol in range(19)}
    order = [code_lengths.get(symbol, 0) for symbol in CODE_LENGTH_ORDER]
    while len(order) > 4 and not order[-1]:
        order.pop()
    bits.put(final, 1).put(2, 2)
    bits.put(count_literals - 257, 5).put(count_distances - 1, 5).put(len(order) - 4, 4)
    for length in order:
        bits.put(length, 3)
    codes = canonical(code_lengths)
    for symbol, extra in sequence:
        bits.code(codes, symbol)
        bits.put(extra, {16: 2, 17: 3, 18: 7}.get(symbol, 0))
    return _body(bits, [*tokens, *[END] * end], literals, distances)


def run_lengths(lengths: Sequence[int]) -> list[Lengths]:
    """Code lengths, runs of zeros by symbols 17 and 18."""
    out: list[Lengths] = []
    i = 0
    while i < len(lengths):
        run = 0
        while i + run < len(lengths) and run < 138 and lengths[i + run] == 0:
            run += 1
        if run >= 11:
            out.append(Lengths(18, run - 11))
        elif run >= 3:
            out.append(Lengths(17, run - 3))
        else:
            out.append(Lengths(lengths[i]))
            run = 1
        i += run
    return out


def matches(data: bytes) -> list[Token]:
    """Literals and the longest matches there are; for data without matches beyond 32 KiB."""
    tokens: list[Token] = []
    i = 0
    while i < len(data):
        length = distance = 0
        while length < min(258, len(data) - i):
            place = data.rfind(data[i : i + length + 1], 0, i + length)
            if place < 0:
                break
            length, distance = length + 1, i - place
        tokens.append((length, distance) if length >= 3 else data[i])
        i += length if length >= 3 else 1
    return tokens


def deflate(data: bytes, length: int | None = None) -> bytes:
    """One block of the fixed codes; empty blocks before it if the stream has to be longer."""
    tokens = matches(data)
    for coded, plain in product(range(8), range(40)) if length is not None else [(0, 0)]:
        bits = Bits()
        for _ in range(coded):
            fixed(bits, [], final=False)
        for _ in range(plain):
            stored(bits, b"", final=False)
        stream = fixed(bits, tokens).build()
        if length in (None, len(stream)):
            return stream
    raise ValueError(f"no stream of {length} bytes")
