"""The head of a transform-coded tensor (chapter 9)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from layout.coder import Table, even
from layout.elements import uv
from layout.file import File
from layout.transform import DCT, FIXED, IN, OUT, TAPS, Basis, Coded, Packed, Transform

from vectors.case import Case, accept, reject
from vectors.common import ANY, NOTHING, broken_head, matrix, square, transform_file


def cases() -> Iterator[Case]:
    """All vectors of these sections."""
    yield from _roles()
    yield from _fields()
    yield from _bases()
    yield from _classes()


# ---- roles ----


def _roles() -> Iterator[Case]:
    def roles(name: str, text: str, shape: tuple[int, ...], *axes: int) -> Case:
        lengths = [1, 1, 1]
        for n, axis in zip(shape, axes, strict=True):
            lengths[axis] *= n
        columns = lengths[IN] * lengths[TAPS]
        indices = [[(7 * r + 3 * c) % 8 - 4 for c in range(columns)] for r in range(lengths[OUT])]
        scales = Packed([1 + r for r in range(lengths[OUT])], 4)
        multipliers = Packed([1 + c for c in range(columns)], 5)
        coded = Transform(
            shape, axes, indices, scale=(1, -3), row_scales=scales, multipliers=multipliers
        )
        return accept(name, "9.1", text, transform_file(coded))

    yield roles("roles-scalar", "a scalar: all axes have length 1", ())
    for axis, name in enumerate(("out", "in", "taps")):
        yield roles(f"roles-{name}", f"one dimension on {name}", (3,), axis)
    yield roles("roles-in-out", "inputs come before rows", (2, 3), IN, OUT)
    yield roles("roles-taps-in-out", "axes in reverse order", (2, 2, 3), TAPS, IN, OUT)
    text = "dimensions of one axis are apart"
    yield roles("roles-apart", text, (2, 2, 2, 3), OUT, TAPS, OUT, IN)
    yield roles("roles-taps-apart", text + ": taps", (2, 2, 2, 3), TAPS, IN, TAPS, OUT)
    text = "16 dimensions, the most, over the axes in turn"
    shape = (1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1)
    yield roles("roles-16", text, shape, *[i % 3 for i in range(16)])


# ---- fields ----


def _fields() -> Iterator[Case]:
    yield broken_head("head.role", "9.1", "role 3", raw={"roles": b"\0\3"})
    yield broken_head("head.scale", "9.3", "scale_mantissa is 0", scale=(0, 0))
    text = "scale_mantissa is 2^24 + 1"
    yield broken_head("integer.range@scale-mantissa", "9.1", text, scale=((1 << 24) + 1, 0))
    for exponent in (901, -902):
        text = f"scale_exponent is {exponent}"
        yield broken_head(
            f"integer.range@scale-exponent-{exponent}", "9.1", text, scale=(1, exponent)
        )
    yield broken_head("head.steps", "9.1", "steps is 0", raw={"quantizer": b"\1", "steps": b"\0"})
    text = "steps is 257"
    raw = {"quantizer": b"\1", "steps": uv(257)}
    yield broken_head("integer.range@steps", "9.1", text, ANY, ANY, raw=raw)
    yield broken_head("head.payload_kind", "9.1", "payload_kind is 2", raw={"payload_kind": b"\2"})
    yield broken_head("head.tile@rows", "9.1", "tile_rows is 0", raw={"tile_rows": b"\0"})
    yield broken_head("head.tile@columns", "9.1", "tile_columns is 0", raw={"tile_columns": b"\0"})
    raw = {"tile_rows": uv(1 << 20), "tile_columns": b"\2"}
    yield broken_head("head.tile", "9.1", "a tile of 2^21 indices", raw=raw)
    raw = {"tile_rows": uv((1 << 20) + 1)}
    yield broken_head("integer.range@tile", "9.1", "tile_rows is 2^20 + 1", raw=raw)
    for rows, columns in ((1 << 20, 1), (1, 1 << 20), (1024, 1024)):
        text = f"tiles of {rows} x {columns}, the most there may be, for a smaller matrix"
        raw = {"tile_rows": uv(rows), "tile_columns": uv(columns)}
        coded = square(raw=raw) if columns >= 3 and rows >= 2 else _tall(rows, columns)
        yield accept(f"tile-{rows}x{columns}", "9.1", text, transform_file(coded))
    text = "a byte lies behind a head without tiles"
    absent = matrix([], [], shape=(2, 2), depths=0)
    data = File([absent.tensor([ANY], segments=[absent.head([ANY]) + b"\0"])], [ANY])
    yield reject("segment.surplus@head", "3.3", text, data)
    text = "a stream behind a head in which nothing is coded"
    data = File([absent.tensor([ANY], segments=[absent.head([ANY]) + b"\0\0"])], [ANY])
    yield reject("segment.surplus@head-stream", "6.3", text, data)


def _tall(rows: int, columns: int) -> Transform:
    """A column or a row, to be one tile."""
    raw = {"tile_rows": uv(rows), "tile_columns": uv(columns)}
    return matrix([1], [2], raw=raw) if columns == 1 else matrix([1, 2], raw=raw)


# ---- bases ----


def _bases() -> Iterator[Case]:
    def basis(name: str, text: str, *tables: Table, **changes: Any) -> Case:
        return accept(name, "9.2", text, transform_file(_cube(**changes), *tables))

    explicit = Basis([[1, 2], [3, -4]], [0, 0])
    for axis, name in enumerate(("out", "in", "taps")):
        yield basis(f"explicit-{name}", f"an explicit basis on {name}", bases={axis: explicit})
    yield basis("dct", "a DCT on taps", bases={TAPS: DCT}, scale=(1, -10))
    every = {OUT: explicit, IN: Basis([[2, 1], [1, 0]], [0, 0]), TAPS: explicit}
    yield basis("explicit-all", "an explicit basis on each axis", bases=every)
    text = "a DCT on taps and explicit bases elsewhere"
    yield basis("explicit-and-dct", text, bases=every | {TAPS: DCT}, scale=(1, -10))
    text = "a basis of fewer rows than positions"
    one_row = Basis([[3, -1]], [0])
    yield accept(
        "explicit-fewer", "9.2", text, transform_file(_cube(1, 2, 2, bases={OUT: one_row}))
    )
    text = "a basis without rows: its axis has no channels, the weights are 0"
    none = Basis([], [])
    for axis, name in enumerate(("out", "in", "taps")):
        sizes = [2, 2, 2]
        sizes[axis] = 0
        file = transform_file(_cube(*sizes, bases={axis: none}))
        yield accept(f"explicit-no-rows-{name}", "9.2", text, file)
    text = "rows of a basis with different tables, one of them with low bits"
    rows = Basis([[1, 3], [-7, 9]], [0, 1])
    yield basis("explicit-tables", text, ANY, even(-4, 8, low_bits=2), bases={IN: rows})
    text = "rows of a basis with shifts 0 and 24"
    rows = Basis([[1, 3], [-2, 1]], [0, 0], Packed([0, 24], 5))
    yield basis("explicit-shifts", text, bases={IN: rows}, scale=(1, -24))
    text = "coded shifts of a basis: they come before its entries"
    rows = Basis([[1, 3], [-2, 1]], [0, 0], Coded([1, 2], 1))
    yield basis("explicit-coded-shifts", text, ANY, even(0, 4), bases={IN: rows, OUT: rows})
    shapes: dict[str, tuple[int, ...]] = {
        "1": (1,),
        "none": (),
        "16": (16,),
        "3x3": (3, 3),
        "2x3x4": (2, 3, 4),
    }
    shapes |= {str(n): (n,) for n in range(2, 16)}
    for name, shape in shapes.items():
        count = 1
        for n in shape:
            count *= n
        indices = [[(5 * i) % 8 - 4 for i in range(count)]]
        roles = [TAPS] * len(shape)
        coded = Transform(shape, roles, indices, bases={TAPS: DCT}, scale=(1, -10))
        text = f"a DCT of {' x '.join(map(str, shape)) or 'no dimensions'}"
        yield accept(f"dct-{name}", "10.2", text, transform_file(coded))
    text = "a DCT of 16 x 16 x 4, the longest axis"
    long = Transform((16, 16, 4), (TAPS,) * 3, [[1]], depths=_first(1024), bases={TAPS: DCT})
    yield accept("dct-1024", "10.2", text, transform_file(long))
    yield from _broken_bases()


def _first(count: int) -> Packed:
    return Packed([8] + [0] * (count - 1), 4)


def _cube(*sizes: int, **changes: Any) -> Transform:
    """Two positions on each axis; `sizes` are the numbers of channels."""
    o, i, t = sizes or (2, 2, 2)
    indices = [[(3 * r + 5 * c) % 7 - 3 for c in range(i * t)] for r in range(o)]
    return Transform((2, 2, 2), (OUT, IN, TAPS), indices, **changes)


def _broken_bases() -> Iterator[Case]:
    yield broken_head("basis.kind", "9.2", "kind 3 of a basis", raw={"basis1": b"\3"})
    for axis, name in ((OUT, "out"), (IN, "in")):
        raw = {f"basis{axis}": bytes([DCT])}
        yield broken_head(f"basis.dct@{name}", "9.2", f"a DCT on {name}", raw=raw)
    wrong: dict[str, tuple[int, ...]] = {
        "length-17": (17,),
        "4-dimensions": (2, 1, 2, 2),
        "1280": (16, 16, 5),
    }
    for name, shape in wrong.items():
        count = 1
        for n in shape:
            count *= n
        coded = Transform(shape, (TAPS,) * len(shape), [[]], depths=0, bases={TAPS: DCT})
        text = f"a DCT of {' x '.join(map(str, shape))}"
        segments = [coded.head([NOTHING])]
        tensor = coded.tensor(segments=segments, elements=bytes(4 * count))
        yield reject(f"basis.dct@{name}", "9.2", text, File([tensor]))
    count = 4097
    text = "a basis of 4096 rows of 4097 entries"
    start = bytes([2]) + uv(count - 1) + bytes(count - 1) + b"\0\0"
    coded = Transform((count,), (IN,), [[]], depths=0, raw={"basis1": start, "stream": b"\0\0"})
    tensor = coded.tensor(segments=[coded.head([NOTHING])], elements=bytes(4 * count))
    yield reject("basis.size", "9.2", text, File([tensor], [NOTHING]))
    text = "a basis of more rows than positions"
    rows = Basis([[1, 0, 0]] * 4, [0] * 4)
    coded = matrix([1] * 4, [0] * 4, shape=(2, 3), bases={IN: rows})
    yield reject("integer.range@basis-rows", "9.2", text, transform_file(coded))
    text = "the second row of a basis has table 1 of 1"
    start = b"\2\2\0\1\0\0"
    raw = {"basis1": start, "stream": b"\0\0"}
    yield broken_head("table.index@basis", "5.1", text, raw=raw)


# ---- classes ----


def _classes() -> Iterator[Case]:
    def classes(name: str, text: str, *tables: Table, **changes: Any) -> Case:
        return accept(name, "9.5", text, transform_file(_cube(**changes), *tables))

    wide = even(-4, 8)
    levels = (Packed([0, 1], 1), Packed([1, 0], 1), Packed([0, 2], 2))
    text = "classes are sums of the levels of rows, inputs and taps"
    five = [0, 1, 1, 0, 1]
    yield classes("sums", text, ANY, wide, levels=levels, table_map=five)
    text = "sums of levels beyond class_count - 1 give the last class"
    yield classes("clamped", text, ANY, wide, levels=levels, table_map=[0, 1])
    text = "levels of 64 on all axes, the most there may be"
    yield classes("levels-64", text, ANY, wide, levels=(64, 64, 64), table_map=[1, 0])
    text = "64 classes, of which the last is used"
    yield classes("64", text, ANY, wide, levels=(63, 0, 0), table_map=[1] * 63 + [0])
    text = "levels on all three axes that add up to 64 and more with 64 classes"
    high = (Packed([10, 60], 6), Packed([3, 40], 6), Packed([0, 20], 5))
    yield classes("high-levels", text, ANY, wide, levels=high, table_map=[1] * 63 + [0])
    text = "levels of absent columns count for nothing"
    absent = Transform(
        (2, 3),
        (OUT, IN),
        [[1, -2], [3, 0]],
        depths=Packed([8, 0, 8], 4),
        levels=(0, Packed([0, 5, 1], 3), 0),
        table_map=[0, 1],
    )
    yield accept("absent", "9.5", text, transform_file(absent, ANY, wide))
    text = "the trellis takes the table of a class and the one after it, the last two of the file"
    yield classes("trellis-last-tables", text, NOTHING, ANY, wide, table_map=[1], steps=2)
    yield broken_head(
        "class.count", "9.5", "class_count is 0", raw={"class_count": b"\0", "table_map": b""}
    )
    text = "class_count is 65"
    yield broken_head("integer.range@class-count", "9.5", text, table_map=[0] * 65)
    text = "a class that no index has names table 1 of 1"
    raw = {"class_count": b"\2", "table_map": b"\0\1"}
    yield broken_head("class.table", "9.5", text, raw=raw)
    text = "with a trellis, a class names the last table of the file"
    coded = square(steps=2, payloads={0: b"\0\0"})
    yield reject("class.table@trellis", "9.5", text, transform_file(coded))
    text = "a class names table 0 of a file without tables"
    coded = matrix([], [], shape=(2, 2), depths=0)
    yield reject("class.table@none", "9.5", text, File([coded.tensor()]))
    text = "the two tables of a class have 0 and 1 low bits"
    low = even(-4, 8, low_bits=1)
    coded = square(steps=2, payloads={0: b"\0\0\0"})
    yield reject("class.low_bits", "9.5", text, transform_file(coded, wide, low))
    text = "a class that no index has names tables of 0 and 1 low bits"
    coded = square(steps=2, table_map=[0, 1])
    yield reject("class.low_bits@unused", "9.5", text, transform_file(coded, wide, wide, low))
    text = "with fixed lengths there are no classes: levels would be row_scales"
    yield accept("fixed-no-classes", "9.5", text, File([square(payload_kind=FIXED).tensor()]))
