"""Tiles, payloads and the trellis (chapter 7)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from layout.coder import NEXT_STATE, Table, even
from layout.file import File
from layout.transform import FIXED, IN, OUT, RANGE, TAPS, Basis, Packed, Transform, Vector

from vectors.case import Case, accept, reject
from vectors.common import ANY, EVEN, NOTHING, matrix, transform_file

Levels = tuple[Vector, Vector, Vector]
PAIR = (ANY, Table(-4, (90, 300, 700, 1700, 700, 300, 200, 90), 16))


def cases() -> Iterator[Case]:
    """All vectors of this chapter."""
    yield from _tiles()
    yield from _depths()
    yield from _trellis()
    yield from _broken()


def _numbers(rows: int, columns: int, most: int = 3) -> list[list[int]]:
    """A matrix of small integers of both signs."""
    span = 2 * most + 1
    return [
        [(7 * r * r + 5 * c + r * c) % span - most for c in range(columns)] for r in range(rows)
    ]


def _tiles() -> Iterator[Case]:
    coded = matrix(*_numbers(5, 7), scale=(1, -2))
    sizes = {
        "one": (5, 7),
        "larger": (100, 100),
        "1x1": (1, 1),
        "rows": (2, 7),
        "columns": (5, 3),
        "edges": (2, 3),
        "exact": (5, 1),
    }
    for (name, tile), kind in product(sizes.items(), (RANGE, FIXED)):
        how = "range-coded" if kind == RANGE else "fixed-length"
        text = f"{how} tiles of {tile[0]} x {tile[1]} in a matrix of 5 x 7"
        tiled = replace(coded, tile=tile, payload_kind=kind)
        short = "range" if kind == RANGE else "fixed"
        yield accept(f"tiles-{name}-{short}", "7.1", text, transform_file(tiled))
    text = "tiles of kept columns: absent columns lie between them"
    depths = Packed([8, 0, 0, 5, 8, 0, 3], 4)
    absent = matrix(*_numbers(3, 4), shape=(3, 7), depths=depths, tile=(2, 3))
    yield accept("tiles-absent", "7.1", text, transform_file(absent))
    text = "all columns absent: no tiles"
    absent = matrix([], [], shape=(2, 3), depths=0)
    yield accept("all-absent", "7.1", text, transform_file(absent))
    text = "all columns absent, fixed-length"
    file = File([replace(absent, payload_kind=FIXED).tensor()])
    yield accept("all-absent-fixed", "7.1", text, file)
    text = "tiles of taps and inputs"
    taps = Transform((2, 2, 3), (OUT, IN, TAPS), _numbers(2, 6), tile=(2, 4), scale=(1, -1))
    yield accept("tiles-taps", "7.1", text, transform_file(taps))
    text = "classes of a tile: levels are those of its rows and columns in the matrix"
    levels: Levels = (Packed([0, 1, 0, 1, 1], 1), Packed([0, 0, 0, 1, 1, 2, 0], 2), 0)
    classes = replace(coded, tile=(2, 3), levels=levels, table_map=[0, 1, 2])
    file = transform_file(classes, ANY, even(-4, 8), even(-3, 7, 5))
    yield accept("tiles-classes", "7.1", text, file)
    text = "tables of classes are taken in ascending order, not in that of the positions"
    levels = (Packed([1, 0, 2, 0, 1], 2), 0, 0)
    classes = replace(coded, levels=levels, table_map=[2, 0, 1])
    yield accept("order-of-tables", "5.4", text, transform_file(classes, *file.tables or ()))


def _depths() -> Iterator[Case]:
    for depth in range(1, 25):
        most = (1 << depth - 1) - 1
        coded = matrix([-most - 1, most], [0, -1], depths=depth, payload_kind=FIXED)
        text = f"fixed length, depth {depth}: the smallest and the largest index"
        yield accept(f"fixed-depth-{depth}", "7.1", text, File([coded.tensor()]))
    text = "range-coded, the smallest and the largest index of depths 1 to 24"
    depths = list(range(1, 25))
    rows = [[-(1 << d - 1) for d in depths], [(1 << d - 1) - 1 for d in depths]]
    coded = matrix(*rows, depths=Packed(depths, 5))
    yield accept("range-depths", "7.1", text, transform_file(coded))
    text = "fixed-length payload of all depths, 0 to 24"
    coded = matrix(*rows, shape=(2, 25), depths=Packed([0, *depths], 5), payload_kind=FIXED)
    yield accept("fixed-depths", "7.1", text, File([coded.tensor()]))
    text = "fixed length, depth 8: one byte for each index"
    coded = matrix([-128, 127, 5], payload_kind=FIXED)
    yield accept("fixed-bytes", "6.1", text, File([coded.tensor()]))
    for kind, name in ((RANGE, "range"), (FIXED, "fixed")):
        coded = matrix([1, -2], payload_kind=kind, steps=1, scale=(1, -3))
        text = f"depth 24 with the trellis, {name}"
        most = (1 << 23) - 1
        coded = replace(
            coded, indices=[[-most - 1, most], [3, -3]], depths=24, shape=(2, 2), steps=2
        )
        yield accept(f"trellis-depth-24-{name}", "7.2", text, transform_file(coded, *PAIR))


def _paths(length: int) -> list[list[int]]:
    """Indices of columns that between them take every state and both parities."""
    return [list(path) for path in zip(*product((0, 1, -2, 3), repeat=length), strict=True)]


def _trellis() -> Iterator[Case]:
    def trellis(name: str, text: str, rows: list[list[int]], steps: int, **changes: Any) -> Case:
        fields: dict[str, Any] = {"scale": (1, -3), "steps": steps} | changes
        tables = [] if fields.get("payload_kind") == FIXED else PAIR
        coded = matrix(*rows, **fields)
        return accept(name, "7.2", text, File([coded.tensor(tables)], tables or None))

    for state, parity in product(range(8), (0, 1)):
        path = _reach(state)
        after = NEXT_STATE[state][parity]
        text = f"from state {state} to state {after} by {'an odd' if parity else 'an even'} index"
        # Each index after it tells the state: its parity is 1, and so is the quantizer's effect.
        rows = [[k] for k in [*path, 2 + parity, 1, -3, 2, 1]]
        name = f"trellis-{state}-{'odd' if parity else 'even'}"
        yield trellis(name, text, rows, 16, payload_kind=FIXED, depths=4)
    text = "all paths of four indices of both signs, with tables of their own for each quantizer"
    yield trellis("trellis-paths", text, _paths(4), 4)
    text = "all paths of three indices, fixed-length"
    yield trellis("trellis-paths-fixed", text, _paths(3), 3, payload_kind=FIXED, depths=3)
    for steps in (1, 2, 3, 5, 6, 256):
        text = f"segments of {steps} rows in 5 rows"
        yield trellis(f"steps-{steps}", text, _numbers(5, 3), steps)
        name = f"steps-{steps}-fixed"
        yield trellis(name, text + ", fixed-length", _numbers(5, 3), steps, payload_kind=FIXED)
    text = "a segment of 256 rows"
    rows = [[(r * r // 3) % 4 - 1] for r in range(260)]
    yield trellis("steps-256-full", text, rows, 256)
    text = "each tile begins in state 0, though its rows do not divide by steps"
    yield trellis("trellis-tiles", text, _numbers(7, 3), 2, tile=(3, 2))
    text = "the trellis with classes of several pairs of tables"
    levels = (Packed([0, 1, 0, 1, 1, 0], 1), Packed([0, 1, 0], 1), 0)
    known: tuple[Table, ...] = (*PAIR, even(-4, 8), even(-3, 7, 6))
    coded = matrix(*_numbers(6, 3), steps=3, levels=levels, table_map=[2, 0, 1], scale=(1, -3))
    yield accept("trellis-classes", "7.2", text, File([coded.tensor(known)], known))
    text = "the trellis with tables of two low bits"
    known = (even(-4, 8, 9, 2), Table(-4, (90, 300, 700, 1700, 700, 300, 206, 100), low_bits=2))
    coded = matrix(*_numbers(6, 3, 15), steps=3, scale=(1, -3))
    yield accept("trellis-low-bits", "7.2", text, File([coded.tensor(known)], known))
    text = "the trellis with absent columns"
    coded = matrix(*_numbers(4, 2), shape=(4, 3), depths=Packed([4, 0, 4], 3), steps=2)
    yield accept("trellis-absent", "7.2", text, transform_file(coded, *PAIR))
    text = "the trellis runs along the channels of an axis with a basis"
    coded = Transform(
        (3, 2), (OUT, IN), _numbers(4, 2)[:3], steps=3, bases={OUT: Basis([[1, 2, 1]] * 3, [0] * 3)}
    )
    yield accept("trellis-basis", "7.2", text, transform_file(coded, *PAIR))
    text = "the smallest indices of depth 1 and 2 with the trellis"
    depths = Packed([1, 2], 2)
    yield trellis("trellis-depth-1", text, [[-1, -2], [-1, 1], [0, -2]], 3, depths=depths)


def _reach(state: int) -> list[int]:
    """The shortest indices that lead from state 0 to a state."""
    paths: dict[int, list[int]] = {0: []}
    while state not in paths:
        for known, path in list(paths.items()):
            for parity in (0, 1):
                paths.setdefault(NEXT_STATE[known][parity], [*path, parity])
    return paths[state]


def _broken() -> Iterator[Case]:
    text = "an index of 8 in a column of depth 4"
    broken = matrix([0, 7, 8], depths=4)
    yield reject("payload.depth", "7.1", text, transform_file(broken))
    text = "an index of -9 in a column of depth 4"
    broken = matrix([0, 7, -9], depths=4)
    yield reject("payload.depth@negative", "7.1", text, transform_file(broken))
    text = "an index of 1 in a column of depth 1, beside one of depth 3"
    broken = matrix([1, 1], depths=Packed([3, 1], 2))
    yield reject("payload.depth@1", "7.1", text, transform_file(broken, even(-2, 4)))
    text = "with the trellis, an index of 2 in a column of depth 2; its coefficient is 4 or 3"
    broken = matrix([2], [0], depths=2, steps=2)
    yield reject("payload.depth@trellis", "7.1", text, transform_file(broken, *PAIR))
    text = "an index of 2^30 by an escape, twice which does not fit 31 bits"
    broken = matrix([1 << 30], [-(1 << 30)], depths=24, steps=2)
    yield reject("payload.depth@2-30", "7.1", text, transform_file(broken, *PAIR))
    text = "the second tile breaks its depth"
    broken = matrix([0, 7, 1, 8], depths=4, tile=(1, 2))
    yield reject("payload.depth@second-tile", "7.1", text, transform_file(broken))
    fixed = matrix([1, -2, 3], depths=3, payload_kind=FIXED)
    data = fixed.payload(0, [])
    text = "a spare bit of a fixed-length payload is 1"
    file = File([replace(fixed, payloads={0: data[:1] + bytes([data[1] | 2])}).tensor()])
    yield reject("bits.spare@payload", "6.1", text, file)
    text = "a fixed-length payload is cut off"
    file = File([replace(fixed, payloads={0: data[:1]}).tensor()])
    yield reject("segment.short@payload", "3.3", text, file)
    text = "a byte lies behind a fixed-length payload"
    file = File([replace(fixed, payloads={0: data + b"\0"}).tensor()])
    yield reject("segment.surplus@payload", "3.3", text, file)
    text = "a byte lies behind the payload of the second tile"
    tiled = matrix([1, -2, 1, 0], tile=(1, 2))
    extra = tiled.payload(1, [EVEN]) + b"\0"
    file = transform_file(replace(tiled, payloads={1: extra}), EVEN)
    yield reject("segment.surplus@second-tile", "3.3", text, file)
    text = "the payload is in a segment of its own, not in that of the head"
    coded = matrix([1, -2])
    head, payload = coded.head([EVEN]), coded.payload(0, [EVEN])
    file = File([coded.tensor([EVEN], segments=[head, payload])], [EVEN])
    yield reject("tensor.segments@head-alone", "4.4", text, file)
    text = "range-coded, without tables, though nothing is coded: the class needs one"
    coded = matrix([0, 0])
    file = File([coded.tensor([NOTHING])])
    yield reject("class.table@no-tables", "9.5", text, file)
