"""Tables (5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from layout.coder import Table, even, tables
from layout.deflate import Bits, deflate, fixed
from layout.elements import sv, uv
from layout.file import File

from vectors.case import Case, accept, reject
from vectors.common import ANY, NOTHING, matrix, one

MAX_VALUE = 1 << 30


def cases() -> Iterator[Case]:
    """All vectors of this section."""
    yield from _storage()
    yield from _extremes()
    yield from _broken()
    yield from _integers()


def _use(description: str, name: str, table: Table, values: list[int], *before: Table) -> Case:
    """A row of coefficients coded with one table, the last one of the file."""
    known = [*before, table]
    coded = matrix(values, depths=24, table_map=[len(before)], scale=(1, -4))
    return accept(name, "5.1", description, File([coded.tensor(known)], known))


def _storage() -> Iterator[Case]:
    known = [ANY, even(-600, 1200)]
    coded = matrix([1, -2, 3], table_map=[1], depths=12)
    file = File([coded.tensor(known)], known)
    yield accept("tables", "5.1", "tables that are not deflated", file)
    stream = deflate(tables(known))
    yield accept("deflated-tables", "5.1", "deflated tables", replace(file, deflated=stream))
    larger = fixed(Bits(), tables(known)).build()
    text = "deflated tables that take more bytes than they would as they are"
    yield accept("deflated-tables-larger", "5.1", text, replace(file, deflated=larger))
    yield accept("tables-none", "5.1", "a tables segment without tables", File([one()], []))
    text = "a deflated tables segment without tables"
    file = File([one()], [], deflated=deflate(b"\0"))
    yield accept("deflated-tables-none", "5.1", text, file)
    text = "a byte lies behind the last table"
    plain = tables([ANY]) + b"\0"
    yield reject("segment.surplus@tables", "3.3", text, File([one()], plain))
    file = File([one()], plain, deflated=deflate(plain))
    yield reject("segment.surplus@deflated-tables", "3.3", text + ", inflated", file)
    text = "the tables end in a weight"
    yield reject("segment.short@tables", "3.3", text, File([one()], tables([ANY])[:-2]))
    plain = tables([ANY])[:-2]
    file = File([one()], plain, deflated=deflate(plain))
    yield reject("segment.short@deflated-tables", "3.3", text + ", inflated", file)
    text = "a tables segment of no bytes"
    yield reject("segment.short@tables-empty", "3.3", text, File([one()], b""))
    for change in (-1, 1):
        file = File([one()], [ANY], deflated=deflate(tables([ANY])))
        keys = {"tables": [*file.tree()["tables"][:2], len(tables([ANY])) + change]}
        text = f"deflated tables inflate to {-change:+d} bytes against their size"
        name = f"deflate.size@tables-{'short' if change > 0 else 'long'}"
        yield reject(name, "3.3", text, replace(file, keys=keys))


def _extremes() -> Iterator[Case]:
    yield _use(
        "a table of one member, which takes no bits", "one-member", Table(3, (4096,)), [3, 3]
    )
    table = Table(0, (1, 4095))
    yield _use("weights 1 and 4095", "weights-1-4095", table, [1, 1, 0, 1])
    table = Table(0, (4095, 1))
    yield _use("weights 4095 and 1", "weights-4095-1", table, [0, 0, 1, 0, 0])
    table = Table(5, (4095,), 1)
    yield _use("one symbol of weight 4095 and an escape", "escape-1", table, [5, 5, -1, 5])
    table = Table(5, (1,), 4095)
    yield _use("one symbol of weight 1 and an escape", "escape-4095", table, [5, 7, 300, -9])
    most = Table(-2000, (*[1] * 4094, 2))
    yield _use("a table of 4095 symbols", "size-4095", most, [-2000, 0, 2093, 2094])
    most = Table(-2047, (1,) * 4095, 1)
    yield _use("4095 symbols and an escape", "size-4095-escape", most, [-2047, 2048, 5000, -2048])
    table = Table(-2, (100, 900, 2096, 900, 100), symmetric=True)
    yield _use("a symmetric table", "symmetric", table, [-2, -1, 0, 1, 2])
    table = Table(-1, (700, 2000, 700), 696, symmetric=True)
    yield _use("a symmetric table with an escape", "symmetric-escape", table, [-1, 0, 1, 2, -2])
    table = Table(0, (4096,), symmetric=True)
    yield _use("a symmetric table of one symbol", "symmetric-one", table, [0, 0])
    table = Table(-2047, (*[1] * 2047, 2, *[1] * 2047), symmetric=True)
    yield _use("a symmetric table of 4095 symbols", "symmetric-4095", table, [2047, -2047, 0])
    low = 1 << 24
    table = even(low - 1, 2)
    text = "low 2^24 - 1, in a table that nothing uses"
    yield accept("low-most", "5.1", text, File([one()], [table, even(low, 1)]))
    text = "low -2^24 - 1, in a table that nothing uses"
    yield accept("low-least", "5.1", text, File([one()], [even(-low - 1, 1)]))
    text = "symbols from 2^22 on, in a row of depth 24"
    yield _use(text, "low-2-22", even(1 << 22, 3), [(1 << 22) + 2, 1 << 22, (1 << 22) + 1])
    for bits in (1, 8, 23, 24):
        table = even(-1, 2, low_bits=bits)
        reach = min(1 << bits, 1 << 23)
        values = [-reach, -1, 0, 1, reach - 1]
        yield _use(f"{bits} low bits", f"low-bits-{bits}", table, values)
    table = even(-64, 128, low_bits=24)
    text = "values up to 2^30 by low bits, in a table that nothing uses"
    yield accept("range-most", "5.1", text, File([one()], [even(-64, 128, low_bits=24), table]))
    text = "128 tables, of which the last is used"
    yield _use(text, "tables-128", even(-2, 4), [-2, 1, 0], *[even(i, 1) for i in range(127)])
    text = "2^16 members in all tables"
    count = 16
    known = [Table(0, (1,) * 4094 + (2,))] * count + [even(0, (1 << 16) - count * 4095)]
    file = File([one()], known, deflated=deflate(tables(known)))
    yield accept("members-2-16", "5.1", text, file)
    text = "the escapes do not count towards the 2^16 members"
    known = [Table(0, (1,) * 4095, 1)] * count + [even(0, (1 << 16) - count * 4095, 1)]
    file = File([one()], known, deflated=deflate(tables(known)))
    yield accept("members-2-16-escapes", "5.1", text, file)


def _broken() -> Iterator[Case]:
    def broken(name: str, description: str, *items: bytes | Table) -> Case:
        built = [item if isinstance(item, bytes) else item.build() for item in items]
        return reject(name, "5.1", description, File([one()], uv(len(items)) + b"".join(built)))

    yield broken("table.count", "129 tables", *[NOTHING] * 129)
    text = "2^60 tables, of which one is there"
    data = uv(1 << 60) + NOTHING.build()
    yield reject("table.count@huge", "5.1", text, File([one()], data))
    yield broken("table.flags", "flag 4 of a table is set", b"\4\0" + sv(0) + uv(1) + uv(4096))
    yield broken("table.low_bits", "25 low bits", even(0, 2, low_bits=25))
    yield broken("table.size@0", "a table without symbols", b"\0\0" + sv(0) + uv(0))
    text = "a table of an escape alone"
    yield broken("table.size@escape", text, b"\2\0" + sv(0) + uv(0) + uv(4096))
    yield broken("table.size@4096", "a table of 4096 symbols", Table(0, (1,) * 4096))
    text = "a symmetric table of 4097 symbols"
    yield broken("table.size@symmetric", text, b"\1\0" + uv(2048) + b"\1" * 2049)
    known = [Table(0, (1,) * 4094 + (2,))] * 16 + [even(0, 17)]
    text = "2^16 + 1 members in all tables"
    file = File([one()], known, deflated=deflate(tables(known)))
    yield reject("table.total", "5.1", text, file)
    yield broken("table.range@low", "values down to -65 * 2^24", even(-65, 65, low_bits=24))
    text = "symbols up to 64, values up to 65 * 2^24 - 1"
    yield broken("table.range", text, even(0, 65, low_bits=24))
    text = "low 2^24 and 24 low bits, a product beyond 2^47"
    yield broken("table.range@far", text, even(1 << 24, 1, low_bits=24))
    yield broken("table.weight", "a weight of 0", Table(0, (2048, 0, 2048)))
    text = "a symmetric table whose weight[0] is 0"
    yield broken("table.weight@symmetric", text, Table(-1, (2048, 0, 2048), symmetric=True))
    text = "an escape_weight of 0"
    yield broken("table.weight@escape", text, b"\2\0" + sv(0) + uv(1) + uv(4096) + uv(0))
    yield broken("table.sum@4095", "weights sum to 4095", Table(0, (2048, 2047)))
    yield broken("table.sum", "weights sum to 4097", Table(0, (2048, 2049)))
    text = "weights sum to 4096 without the escape"
    yield broken("table.sum@escape", text, Table(0, (2048, 2048), 1))
    text = "weights of a symmetric table sum to 4096 where each counts once"
    yield broken("table.sum@symmetric", text, Table(-1, (1096, 3000, 1096), symmetric=True))
    text = "weights sum to 4096 modulo 2^64"
    half = b"\xff" * 9 + b"\1"  # 2^64 - 1
    yield broken("table.sum@wrap", text, b"\0\0" + sv(0) + uv(3) + half + uv(4096) + uv(1))
    text = "weights sum to 4096 modulo 2^32"
    yield broken("table.sum@wrap-32", text, Table(0, (1 << 31, 1 << 31, 4096)))


def _integers() -> Iterator[Case]:
    def element(name: str, description: str, data: bytes) -> Case:
        return reject(name, "3.3", description, File([one()], data))

    table = NOTHING.build()
    text = "a count of 11 bytes"
    yield element("integer.size@11-bytes", text, b"\x81" + b"\x80" * 9 + b"\0" + table)
    text = "a count of 2^64 in 10 bytes"
    yield element("integer.size", text, b"\x80" * 9 + b"\2" + table)
    text = "a count of 2^64 + 1 in 10 bytes, 1 modulo 2^64"
    yield element("integer.size@wrap", text, b"\x81" + b"\x80" * 8 + b"\2" + table)
    yield element("integer.shortest", "a count of 1 in two bytes", b"\x81\0" + table)
    yield element("integer.shortest@0", "a count of 0 in two bytes", b"\x80\0")
    text = "a count of 1 in ten bytes"
    yield element("integer.shortest@10-bytes", text, b"\x81" + b"\x80" * 8 + b"\0" + table)
    text = "a size of 4097, where uv(4096) stands"
    data = uv(1) + b"\0\0" + sv(0) + uv(4097) + b"\1" * 4097
    yield element("integer.range@uv", text, data)
    for name, low in (("sv", (1 << 24) + 1), ("sv-negative", -(1 << 24) - 2)):
        text = f"a low of {low}"
        yield element(f"integer.range@{name}", text, uv(1) + even(low, 1).build())
    yield element("segment.short@integer", "the tables end in a uv", b"\x81")
