"""The range coder and streams (5.2 to 5.4), as payloads of one row of coefficients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, product

from layout.coder import Parts, Table, encode, even, stream_parts
from layout.elements import uv
from layout.file import File
from layout.transform import Basis, Packed

from vectors.case import Case, accept, reject
from vectors.common import ANY, BITS, EVEN, NOTHING, matrix

THIRDS = Table(-1, (1365, 1366, 1365))


def cases() -> Iterator[Case]:
    """All vectors of these sections."""
    yield from _words()
    yield from _damaged_words()
    yield from _escapes()
    yield from _low_bits()


def _row(
    values: Sequence[int], table: Table, payload: bytes | None = None, depth: int = 24
) -> File:
    """A row of coefficients, whose payload may be replaced."""
    payloads = {} if payload is None else {0: payload}
    coded = matrix(list(values), depths=depth, payloads=payloads, scale=(1, -3))
    return File([coded.tensor([table])], [table])


def _parts(values: Sequence[int], table: Table) -> Parts:
    return stream_parts(values, [0] * len(values), [table])


# ---- words ----


def _words() -> Iterator[Case]:
    def words(name: str, description: str, values: Sequence[int], table: Table = THIRDS) -> Case:
        return accept(name, "5.2", description, _row(values, table))

    yield words("no-words", "symbols of a table with one member take no words", [0, 0, 0], NOTHING)
    for symbol in (-1, 0, 1):
        yield words(f"one-symbol-{symbol + 1}", "a stream of one symbol", [symbol])
    yield words("two-words", "symbols in two words", [(i * i) % 3 - 1 for i in range(30)])
    skewed = Table(0, (4095, 1))
    yield words("skewed", "many likely symbols in one word", [0] * 200 + [1], skewed)
    yield words("unlikely", "symbols of 12 bits each", [1] * 20, skewed)
    yield words("likely", "200 likely symbols, of which not one renormalises", [0] * 200, skewed)
    events = {
        "carry": ("a carry goes into words that were held back", _held("carry", 3)),
        "fill": ("words that were held back turn out to be without a carry", _held("fill", 3)),
        "seal-carry": (
            "the end of the stream carries into words held back",
            _held("seal carry", 2),
        ),
        "seal-fill": ("words are held back to the end, without a carry", _held("seal fill", 2)),
        "long-carry": ("a carry goes into ten words held back", _held("carry", 10)),
    }
    for name, (description, values) in events.items():
        yield words(name, description, values)
    values = _search(lambda events: events == ["zero"])
    yield words("zero", "the last word is 0 and has to be there", values)
    values = _held("seal carry", 1, "zero")
    yield words("seal-carry-zero", "a carry at the end, and a last word of 0", values)


def _around(point: int) -> Iterator[list[int]]:
    """Longer and longer runs of symbols whose interval keeps a point inside."""
    values: list[int] = []
    lower, size = 0, 2**64 - 1
    members = THIRDS.members
    while True:
        scale = (size >> 24) << 12
        starts = [lower + scale * sum(members[:number]) for number in range(3)]
        number = max(i for i, start in enumerate(starts) if start <= point)
        values.append(number - 1)
        yield list(values)
        lower, size = starts[number], scale * members[number]
        if size < 2**32:
            lower, size, point = lower << 32, size << 32, point << 32


def _events(values: Sequence[int]) -> list[str]:
    coder = encode((THIRDS, value + 1) for value in values)
    coder.finish()
    return coder.events


def _held(event: str, words: int, *more: str) -> list[int]:
    """Symbols after which `words` words are held back and then resolved in a given way."""
    for first in range(1 << 31, (1 << 31) + 100):
        for start in islice(_around(first << 32), 21 * (words + 1)):
            for tail in ((), (-1,), (1,), (-1, -1), (1, 1)):
                values = [*start, *tail]
                if _events(values) == ["held"] * words + [event, *more]:
                    return values
    raise ValueError(f"no stream with {event}")


def _search(fits: Callable[[list[str]], bool]) -> list[int]:
    """The first symbols of a simple generator with certain events."""
    for length, seed in product(range(20, 60), range(400)):
        state, values = seed, []
        for _ in range(length):
            state = (state * 1103515245 + 12345) % 2**31
            values.append((state >> 16) % 3 - 1)
        if fits(_events(values)):
            return values
    raise ValueError("no such stream")


# ---- words that no encoder writes ----


def _damaged_words() -> Iterator[Case]:
    values = [(i * i) % 3 - 1 for i in range(30)]
    good = _parts(values, THIRDS)
    words = good.words

    def damaged(name: str, description: str, parts: Parts, table: Table = THIRDS) -> Case:
        return reject(name, "5.2", description, _row(values, table, parts.build()))

    huge = (0xFFFFFFFF, 0xFFFFFFFF)
    text = "the first slot is 4096"
    yield damaged("payload.invalid", text, replace(good, words=huge))
    text = "slot 4096 of an escape's table"
    table = Table(-1, (1365, 1366, 1300), 65)
    yield damaged("payload.invalid@escape", text, replace(good, words=huge), table)
    text = "the last word is missing"
    yield damaged("payload.end@missing", text, replace(good, words=words[:-1]))
    text = "a word of 0 behind the last one"
    yield damaged("payload.end@zero", text, replace(good, words=(*words, 0)))
    text = "another word behind the last one"
    yield damaged("payload.end@surplus", text, replace(good, words=(*words, 1)))
    text = "the last word is larger by 1, with the same symbols"
    last = (*words[:-1], words[-1] + 1)
    yield damaged("payload.end", text, replace(good, words=last))
    text = "no words for symbols that have some; as if all of them were 0"
    yield damaged("payload.end@none", text, replace(good, words=()))
    zero = _search(lambda events: events == ["zero"])
    parts = _parts(zero, THIRDS)
    text = "the last word, a 0, is left out"
    data = _row(zero, THIRDS, replace(parts, words=parts.words[:-1]).build())
    yield reject("payload.end@zero-missing", "5.2", text, data)
    text = "a word where no symbol takes bits"
    data = _row([0, 0], NOTHING, Parts((0,)).build())
    yield reject("payload.end@nothing", "5.2", text, data)
    text = "2^62 words, four times as many bytes modulo 2^64"
    data = _row(values, THIRDS, uv(1 << 62) + good.build()[1:])
    yield reject("segment.short@words", "5.4", text, data)
    yield reject("segment.short@stream", "5.4", "the words are cut off", _short(good))
    text = "a byte lies behind the payload"
    data = _row(values, THIRDS, good.build() + b"\0")
    yield reject("segment.surplus", "3.3", text, data)


def _short(parts: Parts) -> File:
    return _row([(i * i) % 3 - 1 for i in range(30)], THIRDS, parts.build()[:-1])


# ---- escapes ----


def _escapes() -> Iterator[Case]:
    sizes = {
        1: ("an escape of 1 byte", [0, 4, -5, 127, -128]),
        2: ("escapes of 2 bytes", [128, 0, -129, 32767, -32768, 4]),
        4: ("escapes of 4 bytes", [32768, -32769, 0, (1 << 23) - 1, -(1 << 23)]),
    }
    for size, (description, values) in sizes.items():
        yield accept(f"escapes-{size}", "5.4", description, _row(values, ANY))
    for size in (2, 4):
        text = f"small escapes in {size} bytes each"
        parts = replace(_parts([4, -5, 0], ANY), escape_size=size)
        yield accept(f"escapes-wide-{size}", "5.4", text, _row([4, -5, 0], ANY, parts.build()))
    text = "nothing but escapes"
    yield accept("escapes-only", "5.4", text, _row([50, -50, 51], ANY))
    text = "the escape of a table of one symbol"
    yield accept("escape-one-symbol", "5.4", text, _row([0, 7, 0], Table(0, (4000,), 96)))
    good = _parts([0, 5, 1, -9], ANY)

    def broken(name: str, description: str, data: bytes) -> Case:
        return reject(name, "5.4", description, _row([0, 5, 1, -9], ANY, data))

    for size in (0, 3, 8):
        data = replace(good, escape_size=size, escapes=()).build()
        data = data[:1] + uv(2) + bytes([size]) + data[2:] + bytes([5, *[0] * 7, 247, *[255] * 7])
        text = f"escapes of {size} bytes"
        yield broken(f"stream.escape_size@{size}", text, data[: len(data) - 16 + 2 * size])
    text = "an escape is a symbol of its table: the largest one"
    yield broken("stream.escape@most", text, replace(good, escapes=(5, 3)).build())
    text = "an escape is a symbol of its table: the smallest one"
    yield broken("stream.escape@least", text, replace(good, escapes=(-4, -9)).build())
    yield broken(
        "stream.escapes@fewer", "an escape is missing", replace(good, escapes=(5,)).build()
    )
    text = "an escape too many"
    yield broken("stream.escapes@more", text, replace(good, escapes=(5, -9, 6)).build())
    text = "an escape where no symbol is the escape"
    data = replace(_parts([0, 1, 1, 0], ANY), escapes=(5,)).build()
    yield reject("stream.escapes@none", "5.4", text, _row([0, 1, 1, 0], ANY, data))
    text = "an escape whose table has none"
    data = replace(_parts([0, 1], EVEN), escapes=(5,)).build()
    yield reject("stream.escapes@no-escape", "5.4", text, _row([0, 1], EVEN, data))
    text = "more escapes than integers"
    data = good.build()[:1] + uv(5) + b"\1" + b"".join(w.to_bytes(4, "little") for w in good.words)
    yield broken("integer.range@escapes", text, data + bytes([5, 6, 7, 8, 9]))
    text = "an escape cut off"
    yield broken("segment.short@escape", text, replace(good, escape_size=4).build()[:-1])


# ---- low bits ----


def _low_bits() -> Iterator[Case]:
    table = Table(-2, (1000, 1000, 1000, 1000), 96, low_bits=3)
    values = [-16, -1, 0, 15, 16, -17, 1000, 7]
    yield accept("low-bits", "5.4", "low bits of symbols and of escapes", _row(values, table))
    known = [even(-2, 4, 8, 2), even(-4, 8), even(0, 4, 8, 5)]
    coded = matrix(
        [3, -2, 100, 1, -8],
        [7, 3, 0, -4, -1],
        depths=12,
        levels=(0, Packed([0, 1, 2, 1, 0], 2), 0),
        table_map=[0, 1, 2],
    )
    text = "low bits of three widths, one of them 0, in the order of positions"
    yield accept("low-bits-of-tables", "5.4", text, File([coded.tensor(known)], known))
    one_bit = Table(0, (4096,), low_bits=1)
    text = "low bits alone: a table of one member"
    yield accept("low-bits-alone", "5.4", text, _row([0, 1, 1, 0, 1], one_bit))
    good = _parts([0, 1, 1, 0, 1], one_bit).build()
    text = "a spare bit behind the low bits is 1"
    data = good[:-1] + bytes([good[-1] | 0x80])
    yield reject("bits.spare", "6.1", text, _row([0, 1, 1, 0, 1], one_bit, data))
    text = "the lowest spare bit behind the low bits is 1"
    data = good[:-1] + bytes([good[-1] | 0x20])
    yield reject("bits.spare@lowest", "6.1", text, _row([0, 1, 1, 0, 1], one_bit, data))
    text = "the low bits are cut off"
    yield reject("segment.short@low", "5.4", text, _row([0, 1] * 5, one_bit, good))
    yield from _range()


def _range() -> Iterator[Case]:
    """Integers up to 2^30: entries of a basis, whose sums are small because coefficients are."""
    table = Table(0, (4000,), 96)
    wide = Table(0, (4000,), 96, low_bits=24)

    def basis(value: int, table: Table) -> File:
        rows = Basis([[value, 0]], [0])
        coded = matrix([1], bases={1: rows}, shape=(1, 2), table_map=[1], depths=2, scale=(1, -30))
        known = [table, BITS]
        return File([coded.tensor(known)], known)

    most = 1 << 30
    yield accept("most", "5.4", "an integer of 2^30, by an escape of 4 bytes", basis(most, table))
    yield accept(
        "least", "5.4", "an integer of -2^30, by an escape of 4 bytes", basis(-most, table)
    )
    text = "an integer of 2^30, by an escape and 24 low bits"
    yield accept("most-low-bits", "5.4", text, basis(most, wide))
    text = "an integer of -2^30, by an escape and 24 low bits"
    yield accept("least-low-bits", "5.4", text, basis(-most, wide))
    wrong = {
        "": (most + 1, table, "2^30 + 1"),
        "@negative": (-most - 1, table, "-2^30 - 1"),
        "@low-bits": (most + 1, wide, "2^30 + 1, by an escape and 24 low bits"),
        "@low-bits-negative": (-most - 1, wide, "-2^30 - 1, by an escape and 24 low bits"),
        "@wrap": (127 << 24, wide, "127 * 2^24, by an escape and 24 low bits"),
        "@wrap-32": ((1 << 32) + 1, wide, "2^32 + 1, by an escape and 24 low bits"),
        "@wrap-54": ((1 << 54) + 1, wide, "2^54 + 1, by an escape and 24 low bits"),
    }
    for variant, (value, known, description) in wrong.items():
        text = f"an integer of {description}"
        yield reject(f"stream.range{variant}", "5.4", text, basis(value, known))
