"""Reconstruction (10.1) and the rounding to element types (4.6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

from layout.coder import Table
from layout.file import File
from layout.numbers import DTYPES, FLOATS, dct, expand
from layout.transform import DCT, FIXED, IN, OUT, TAPS, Basis, Packed, Transform

from vectors.case import Case, accept, reject
from vectors.common import NOTHING, matrix, transform_file

WIDE = Table(0, (4000,), 96)  # any integer by its escape


def cases() -> Iterator[Case]:
    """All vectors of these sections."""
    yield from _rounding()
    yield from _codes()
    yield from _scales()
    yield from _bound()
    yield from _work()


def _rounded(name: str, text: str, dtype: str, values: list[Fraction]) -> Case:
    """A row of weights that have given values before they are rounded."""
    exponent = 0
    while any((value / Fraction(2) ** exponent).denominator > 1 for value in values):
        exponent -= 1
    while all((value / Fraction(2) ** (exponent + 1)).denominator == 1 for value in values):
        exponent += 1
    entries = [int(value / Fraction(2) ** exponent) for value in values]
    coded = Transform(
        (1, len(values)),
        (OUT, IN),
        [[1]],
        dtype,
        (1, exponent),
        bases={IN: Basis([entries], [0])},
        depths=2,
        payload_kind=FIXED,
    )
    return accept(name, "4.6", text, transform_file(coded, WIDE))


def _rounding() -> Iterator[Case]:
    half = Fraction(1, 2)
    for name in FLOATS:
        kind, file = DTYPES[name], name.lower().replace("_", "-")
        if name == "F64":
            continue
        m = kind.mantissa
        one = 1 << m
        ties = [one + half, one + 1 + half, 2 * one - half, one + half / 2, one + 3 * half / 2]
        ties += [one + half + half / 4, one + half - half / 4, -one - half, -one - 1 - half]
        text = f"{name}: ties go to even, others to the nearest; up to the next power of two"
        yield _rounded(f"ties-{file}", text, name, [Fraction(t) / one for t in ties])
        least = kind.value(1)
        text = f"{name}: subnormal numbers, ties among them, and what rounds to zero of either sign"
        quarters = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 14, -1, -2, -3, -4, -6]
        yield _rounded(f"subnormal-{file}", text, name, [least * q / 4 for q in quarters])
        text = f"{name}: the largest subnormal number, and what rounds to the smallest normal one"
        normal = kind.value(one)
        near = [normal - least * Fraction(q, 4) for q in range(8)]
        if m < 20:
            yield _rounded(f"subnormal-most-{file}", text, name, near)
        largest = kind.value(kind.largest)
        step = largest - kind.value(kind.largest - 1)
        text = f"{name}: beyond the largest finite number it is that number, never an infinity"
        over = [largest, largest + step / 4, largest + step / 2, largest + step, largest * 2]
        over += [largest - step / 2, largest - step / 4, largest - step]
        yield _rounded(f"largest-{file}", text, name, [*over, *(-value for value in over)])
    values = [(1 << 23) - 1, -(1 << 23), (1 << 23) - 3, 5]
    for name in ("F64", "F32"):
        coded = matrix(
            values,
            dtype=name,
            scale=((1 << 24) - 1, -40),
            depths=24,
            payload_kind=FIXED,
            row_scales=255,
            multipliers=Packed([223, 200, 87, 221], 8),
        )
        text = f"{name}: products of more than 53 bits are rounded to a double"
        yield accept(f"double-{name.lower()}", "10.1", text, File([coded.tensor()]))
    yield from _twice()
    text = "weights of 0 are +0, also where the scale or a coefficient has the other sign"
    coded = matrix([0, -1, 1], multipliers=Packed([1, 0, 1], 1), depths=2, payload_kind=FIXED)
    yield accept("no-negative-zero", "10.1", text, File([coded.tensor()]))
    text = "a sum of two products that cancel is +0"
    coded = Transform(
        (1, 2),
        (OUT, IN),
        [[1, -1]],
        bases={IN: Basis([[1, 2], [1, 2]], [0, 0])},
        depths=2,
        payload_kind=FIXED,
    )
    yield accept("cancelled", "10.1", text, transform_file(coded, WIDE))
    text = "a negative weight that rounds to zero is -0"
    for name in ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"):
        coded = matrix([-1, 1], dtype=name, scale=(1, -900), depths=2, payload_kind=FIXED)
        file_name = f"minus-zero-{name.lower().replace('_', '-')}"
        about = text if name != "F64" else "the smallest step, which F64 holds"
        yield accept(file_name, "4.6", f"{name}: {about}", File([coded.tensor()]))


def _twice() -> Iterator[Case]:
    """Products of 54 bits beside a tie of F32, which as doubles are that tie."""
    for side, name, odd in ((1, "above", 0), (-1, "below", 1)):
        for first in range((1 << 24) - 1, 1 << 23, -2):
            second = pow(first, -1, 1 << 30) * ((1 << 29) + side) % (1 << 30)
            product = first * second
            if product.bit_length() == 54 and product >> 30 & 1 == odd:
                break
        coded = Transform(
            (1, 1),
            (OUT, IN),
            [[-1]],
            scale=(first, -60),
            bases={IN: Basis([[second]], [0])},
            depths=1,
            payload_kind=FIXED,
        )
        text = (
            f"F32: a product {name} a tie is rounded to a double, which is the tie, and once more"
        )
        yield accept(f"rounded-twice-{name}", "10.1", text, transform_file(coded, WIDE))


def _codes() -> Iterator[Case]:
    text = "all 256 codes of row scales"
    coded = matrix(*[[1]] * 256, row_scales=Packed(range(256), 8), depths=2, payload_kind=FIXED)
    yield accept("row-scales", "9.4", text, File([coded.tensor()]))
    text = "codes of multipliers up to the largest, as many as one row needs"
    codes = [*range(0, 256, 5), 255, 1, 7, 8, 9, 15, 16]
    coded = matrix([1] * len(codes), multipliers=Packed(codes, 8), depths=2, payload_kind=FIXED)
    yield accept("multipliers", "9.4", text, File([coded.tensor()]))
    text = "a row scale of 0 and a multiplier of 0"
    coded = matrix(
        [3, -1],
        [1, -1],
        row_scales=Packed([0, 1], 1),
        multipliers=Packed([0, 1], 1),
        depths=3,
        payload_kind=FIXED,
    )
    yield accept("scales-0", "10.1", text, File([coded.tensor()]))
    text = "row scales are of positions, not of channels, where the axis has a basis"
    rows = Basis([[1, 2, 3]], [0])
    coded = Transform(
        (3, 1),
        (OUT, IN),
        [[2]],
        row_scales=Packed([1, 2, 3], 2),
        bases={OUT: rows},
        depths=3,
        payload_kind=FIXED,
    )
    yield accept("row-scales-with-basis", "10.1", text, transform_file(coded, WIDE))
    text = "multipliers are of channels, not of positions, where taps and inputs have bases"
    coded = Transform(
        (1, 2, 2),
        (OUT, IN, TAPS),
        [[1, -2, 1, 3]],
        bases={IN: Basis([[1, 2], [0, 1]], [0, 0]), TAPS: DCT},
        multipliers=Packed([1, 2, 9, 0], 4),
        scale=(1, -10),
        depths=4,
        payload_kind=FIXED,
    )
    yield accept("multipliers-with-bases", "10.1", text, transform_file(coded, WIDE))


def _scales() -> Iterator[Case]:
    for mantissa, exponent in ((1 << 24, 900), (1 << 24, -900), (1, 900), (1, -901)):
        for dtype in ("F64", "F32"):
            coded = matrix(
                [1, -3, 0], dtype=dtype, scale=(mantissa, exponent), depths=3, payload_kind=FIXED
            )
            name = f"scale-{mantissa}-{exponent}-{dtype.lower()}"
            text = f"{dtype}, scale {mantissa} * 2^{exponent}"
            yield accept(name, "9.3", text, File([coded.tensor()]))


TOP = 1 << 30


def _basis(*column: int, shift: int = 0) -> Basis:
    """Rows for two positions of which the second is always 0."""
    return Basis([[value, 0] for value in column], [1] * len(column), shift)


def _bounded(bases: dict[int, int | Basis], channels: int = 1, **changes: Any) -> Transform:
    """Two positions on each axis that has a basis; the coefficients are the least there are."""
    roles = sorted(bases)
    fields: dict[str, Any] = {"depths": 24, "payload_kind": FIXED, "scale": (1, -50)} | changes
    fields.setdefault("indices", [[-(1 << 23)] * channels])
    return Transform((2,) * len(roles), roles, bases=bases, **fields)


def _bound() -> Iterator[Case]:
    def bound(accepted: bool, name: str, text: str, coded: Transform) -> Case:
        """A tensor whose product of 10.1 is just below 2^53, or 2^53 and more."""
        file = transform_file(coded, NOTHING, WIDE)
        if accepted:
            return accept(f"bound-{name}", "10.1", text, file)
        return reject(f"reconstruct.bound@{name}", "10.1", text, file)

    def inner(*column: int, shift: int = 0, **changes: Any) -> Transform:
        return _bounded({IN: _basis(*column, shift=shift)}, len(column), **changes)

    text = "2^23 * (2^30 - 1), the most there may be for a basis of one row; the sum reaches it"
    yield bound(True, "most", text, inner(TOP - 1))
    yield bound(False, "equal", "2^23 * 2^30", inner(TOP))
    text = "Q is 2^24 with the trellis: 2^24 * (2^29 - 1)"
    yield bound(True, "trellis", text, inner(TOP // 2 - 1, steps=1))
    text = "Q is 2^24 with the trellis: 2^24 * 2^29"
    yield bound(False, "trellis", text, inner(TOP // 2, steps=1))
    text = "entries of both signs: their magnitudes are added"
    yield bound(True, "signs", text, inner(TOP - 2, -1))
    yield bound(False, "signs", text, inner(TOP - 1, -1))
    text = "the shift of a row counts"
    yield bound(True, "shift", text, inner((1 << 20) - 1, shift=10))
    yield bound(False, "shift", text, inner(1 << 20, shift=10))
    text = "the largest sum of a position counts, which need not be the first or last"
    for accepted in (True, False):
        entries = Basis([[0, TOP - 1, 0], [5, 0 if accepted else 1, 3]], [1, 1])
        coded = matrix([-(1 << 23)] * 2, shape=(1, 3), depths=24, payload_kind=FIXED)
        coded = replace(coded, bases={IN: entries}, scale=(1, -50))
        yield bound(accepted, "position", text, coded)
    text = "the largest multiplier counts, though its column is absent"
    codes = Packed([1, 72], 7)
    entry = TOP // expand(72, 3) - 1  # the second row adds 1
    fields: dict[str, Any] = {
        "multipliers": codes,
        "depths": Packed([24, 0], 5),
        "indices": [[-(1 << 23)]],
    }
    yield bound(True, "multiplier", text, inner(entry - 1, 1, **fields))
    yield bound(False, "multiplier", text, inner(entry, 1, **fields))
    text = "the largest depth counts, though its column is all 0"
    fields = {"depths": Packed([1, 24], 5), "indices": [[-1, 0]]}
    yield bound(True, "depth", text, inner(TOP - 2, 1, **fields))
    yield bound(False, "depth", text, inner(TOP - 1, 1, **fields))
    axes = (OUT, IN, TAPS)
    text = "a product of 2^113, which is 0 modulo 2^64"
    coded = _bounded(dict.fromkeys(axes, _basis(TOP)), indices=[[0]])
    yield bound(False, "wrap", text, coded)
    text = "a product of some 2^200, by shifts and multipliers"
    high = _basis(TOP, shift=24)
    coded = _bounded(dict.fromkeys(axes, high), indices=[[0]], multipliers=255)
    yield bound(False, "far", text, coded)
    text = "a multiplier of 0 and a basis of zeros count as 1"
    yield bound(True, "zeros", text, inner(0, multipliers=0))
    text = "a multiplier of 0 does not make the product 0"
    yield bound(False, "multiplier-0", text, inner(TOP, multipliers=0))
    text = "a basis of zeros does not make the product 0"
    yield bound(False, "basis-0", text, _bounded({OUT: _basis(0), IN: _basis(TOP)}))
    text = "a basis without rows counts as 1"
    coded = _bounded({OUT: Basis([], []), IN: _basis(TOP - 1)}, indices=[])
    yield bound(True, "no-rows", text, coded)
    coded = _bounded({OUT: Basis([], []), IN: _basis(TOP)}, indices=[])
    yield bound(False, "no-rows", text, coded)
    text = "no column is kept: Q is 1, and the bound is that of the bases"
    for accepted in (True, False):
        bases: dict[int, int | Basis] = {OUT: _basis(1 << 27), IN: _basis((1 << 26) - accepted)}
        coded = _bounded(bases, indices=[[]], depths=0)
        yield bound(accepted, "depth-0", text, coded)
    text = "the DCT counts by the largest sum of a position"
    most = max(sum(map(abs, column)) for column in zip(*dct(4), strict=True))
    shift = 13
    entry = ((1 << 53) - 1) // most >> shift
    for accepted in (True, False):
        bases = {IN: Basis([[entry + (not accepted)]], [1], shift), TAPS: DCT}
        coded = Transform(
            (1, 4),
            (IN, TAPS),
            [[-1, 0, -1, 0]],
            bases=bases,
            depths=1,
            payload_kind=FIXED,
            scale=(1, -50),
        )
        yield bound(accepted, "dct", text, coded)


def _work() -> Iterator[Case]:
    """A DCT of 1024 taps, 960 more than are free: 1024 * 960 is 60 * 2^14."""
    for size in (60, 59):
        coded = Transform(
            (1, 16, 16, 4),
            (OUT, TAPS, TAPS, TAPS),
            [[0] * 1024],
            "F8_E5M2",
            bases={TAPS: DCT},
            table_map=[0] * (size - 29),
        )
        segments = coded.segments([NOTHING])
        if [len(data) for data in segments] != [size]:
            raise ValueError(f"{len(segments[0])} bytes, not {size}")
        file = File([coded.tensor([NOTHING], segments=segments, elements=bytes(1024))], [NOTHING])
        text = f"1024 elements, 1024 channels and {size} bytes, where 60 are needed"
        if size == 60:
            yield accept("work", "10.1", text, file)
        else:
            yield reject("reconstruct.work", "10.1", text, file)
    text = "an explicit basis of 260 rows for 2^17 elements, too many for its bytes"
    entries = Basis([[0] * 260] * 260, [0] * 260)
    coded = Transform((512, 260), (OUT, IN), [[]] * 512, "F8_E5M2", bases={IN: entries}, depths=0)
    tensor = coded.tensor([NOTHING], elements=bytes(512 * 260))
    yield reject("reconstruct.work@explicit", "10.1", text, File([tensor], [NOTHING]))
