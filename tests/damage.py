"""Mutants of small files whose checksums are repaired, so that they reach the decoder's depths.

Used by format/test_damage.py; the long run is a command:

    python tests/damage.py --count 100000 --seed 1
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgpack
import numpy as np
from strategies import using

import tqcodec
from tqcodec.encoder.side import make_part
from tqcodec.errors import DecodeError
from tqcodec.format import native
from tqcodec.format import reader as io
from tqcodec.format.container import Container
from tqcodec.format.dtypes import DTYPES
from tqcodec.format.entries import crc
from tqcodec.format.header import Header, read_header, write_header
from tqcodec.format.reconstruct import reconstruct
from tqcodec.format.records import Basis, CodedTensor
from tqcodec.format.registry import HEADER_SIZE, Axis, BasisKind, PayloadKind, Quantizer
from tqcodec.format.tables import Table, Tables
from tqcodec.format.trellis import from_indices
from tqcodec.format.vectors import Vector
from tqcodec.format.writer import Bundled, Raw, Record, Tied, write

Rng = np.random.Generator
Tree = Any  # what MessagePack holds

TABLES = Tables(
    [
        Table(-2, (500, 1000, 1000, 1000, 500), 96),
        Table(-2, (400, 900, 1400, 900, 400), 96),
        Table(0, (2000, 1096, 900), 100, low_bits=2),
    ]
)
SECONDS = 5.0  # for one mutant; a good file takes milliseconds


def _vector(values: list[int], table: int | None = None) -> Vector:
    return Vector(np.array(values, np.uint8), table)


def _record(**changes: Any) -> CodedTensor:
    """A record of a (4, 3, 2) tensor: rows, inputs, taps."""
    rng = np.random.default_rng(5)
    fields: dict[str, Any] = {
        "roles": (Axis.OUT, Axis.IN, Axis.TAPS),
        "scale": (3, -4),
        "quantizer": Quantizer.UNIFORM,
        "steps": 0,
        "payload_kind": PayloadKind.RANGE,
        "tile": (4, 6),
        "bases": (Basis(), Basis(), Basis()),
        "depths": Vector.constant(6, 6),
        "levels": (_vector([0, 1, 0, 1], 2), _vector([1, 0, 2]), Vector.constant(0, 2)),
        "table_map": (0, 1, 2),
        "row_scales": _vector([1, 40, 2, 1]),
        "multipliers": _vector([1, 1, 2, 9, 1, 1], 2),
        "coefficients": rng.integers(-3, 9, (4, 6)).astype(np.int32),
    }
    return CodedTensor(**(fields | changes))


def _records() -> dict[str, CodedTensor]:
    rng = np.random.default_rng(6)
    entries = rng.integers(-9, 10, (2, 3)).astype(np.int32)
    explicit = Basis(BasisKind.EXPLICIT, entries, _vector([0, 2], 2), _vector([0, 2]))
    fixed = [Vector.constant(0, n) for n in (4, 3, 2)]
    return {
        "range": _record(),
        "fixed": _record(
            payload_kind=PayloadKind.FIXED, levels=tuple(fixed), table_map=(0,), tile=(3, 4)
        ),
        "trellis": _record(
            quantizer=Quantizer.TRELLIS,
            steps=3,
            table_map=(0,),
            depths=_vector([4, 0, 5, 4, 4, 0]),
            coefficients=from_indices(rng.integers(-3, 4, (4, 4)).astype(np.int32), 3),
        ),
        "bases": _record(
            bases=(Basis(), explicit, Basis(BasisKind.DCT)),
            levels=(Vector.constant(0, 4), _vector([1, 0]), _vector([0, 1], 0)),
            depths=Vector.constant(6, 4),
            multipliers=Vector.constant(1, 4),
            coefficients=rng.integers(-3, 9, (4, 4)).astype(np.int32),
        ),
        "tiles": _record(tile=(2, 4)),
    }


def golden_files() -> dict[str, bytes]:
    """Small files, one of each coding."""
    f32, f16, shape = DTYPES["F32"], DTYPES["F16"], (4, 3, 2)
    out = {}
    for name, record in _records().items():
        check = crc(reconstruct(record, shape, f16))
        out[name] = write([Record(name, f16, shape, check, record, snr=2000)], TABLES, {})
    patterns = np.random.default_rng(7).normal(size=24).astype("<f4").view("<u4")
    number, exact = crc(patterns), make_part(patterns, f32, None)

    def f32_file(*items: tuple[str, Any], **metadata: str) -> bytes:
        return write([Record(n, f32, (24,), number, c) for n, c in items], TABLES, metadata)

    out["raw"] = f32_file(("raw", Raw(patterns.tobytes())), origin="golden")
    out["planes"] = f32_file(("planes", exact))
    out["bundle"] = f32_file(("a", Bundled(0, exact)), ("b", Bundled(0, exact)), ("c", Tied("a")))
    integers = np.arange(40).astype("<u2")
    part = make_part(integers, DTYPES["I16"], None)
    out["integers"] = write(
        [Record("i", DTYPES["I16"], (5, 8), crc(integers), part)], Tables(()), {"a": "b"}
    )
    out["empty"] = write([], Tables(()), {})
    return out


class Parsed:
    """A file taken apart.

    Attributes:
        tree: the directory as MessagePack gives it.
        tables: bytes of the tables, inflated; None without tables.
        bodies: bytes of all other segments, in order.
    """

    def __init__(self, data: bytes) -> None:
        container = Container(lambda o, n: data[o : o + n], len(data))
        header = read_header(data)
        stored = data[HEADER_SIZE : HEADER_SIZE + header.stored]
        plain = zlib.decompress(stored, -15) if header.deflated else stored
        self.tree: Tree = msgpack.unpackb(plain)
        segments = list(container.directory.segments())
        self.bodies = [bytearray(data[s.offset : s.offset + s.length]) for s in segments]
        self.tables: bytearray | None = None
        if container.directory.tables is not None:
            first = bytes(self.bodies.pop(0))
            size = container.directory.tables_size
            self.tables = bytearray(zlib.decompress(first, -15) if size else first)

    def file(self) -> bytes:
        """The file again: lengths and checksums of what is there."""
        bodies = [bytes(body) for body in self.bodies]
        if isinstance(self.tree, dict):
            pairs = [[len(body), zlib.crc32(body)] for body in bodies]
            _repair(self.tree, pairs)
            if self.tables is not None and "tables" in self.tree:
                plain = bytes(self.tables)
                bodies.insert(0, io.deflate(plain))
                self.tree["tables"] = [len(bodies[0]), zlib.crc32(bodies[0]), len(plain)]
        return assemble(msgpack.packb(_canonical(self.tree)), bodies)


def assemble(directory: bytes, bodies: list[bytes]) -> bytes:
    """A file of any directory and segments, its header and its checksums right."""
    deflated = io.deflate(directory)
    smaller = len(deflated) < len(directory)
    stored = deflated if smaller else directory
    header = Header(smaller, len(stored), len(directory), zlib.crc32(stored))
    return b"".join([write_header(header), stored, *bodies])


def _canonical(tree: Tree) -> Tree:
    if isinstance(tree, dict):
        return {key: _canonical(tree[key]) for key in sorted(tree, key=str.encode)}
    return [_canonical(item) for item in tree] if isinstance(tree, list) else tree


def _repair(tree: dict[str, Tree], pairs: list[list[int]]) -> None:
    """Put right lengths and checksums where the directory still has its form."""
    lists: list[Tree] = [tree.get("bundles")]
    tensors = tree.get("tensors")
    for tensor in tensors if isinstance(tensors, list) else []:
        lists.append(tensor.get("segments") if isinstance(tensor, dict) else None)
    rest = iter(pairs)
    for segments in lists:
        for i in range(len(segments) if isinstance(segments, list) else 0):
            segments[i] = next(rest, segments[i])


NUMBERS = [0, 1, 2, 3, 5, 7, 16, 24, 127, 128, 255, 256, 4096, (1 << 20) + 1, 1 << 24, 1 << 32]
NUMBERS += [1 << 40, 1 << 48, (1 << 63) - 1, (1 << 64) - 1, -1, -(1 << 63)]
OTHERS: list[Tree] = [None, True, 1.5, "", "x", "../../etc/passwd", b"x", [], [0], {}, {"a": 1}]


def _pick(rng: Rng, items: list[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def _places(tree: Tree) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value of a tree."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(pairs):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def mutate_tree(rng: Rng, tree: Tree) -> None:
    """Change one value of a directory."""
    places = list(_places(tree))
    if not places:
        return
    holder, key = _pick(rng, places)
    kind = rng.integers(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == 2:
        holder[key] = copy.deepcopy(_pick(rng, OTHERS))
    elif kind == 3:
        other_holder, other_key = _pick(rng, places)
        holder[key] = copy.deepcopy(other_holder[other_key])
    elif key == "dtype":
        holder[key] = _pick(rng, list(DTYPES))
    elif type(holder[key]) is int and kind < 6:
        holder[key] = max(0, holder[key] + int(rng.integers(-2, 3)))
    else:
        holder[key] = _pick(rng, NUMBERS)


def mutate_bytes(rng: Rng, data: bytearray) -> None:
    """Change a few bytes of a segment."""
    if not data:
        data += rng.bytes(3)
        return
    at, kind = int(rng.integers(len(data))), rng.integers(6)
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[at] = int(rng.integers(256))
    elif kind == 2:
        data[at:at] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == 3:
        del data[at : at + int(rng.integers(1, 9))]
    elif kind == 4:
        data[at] = _pick(rng, [0, 1, 2, 0x7F, 0x80, 0xFF])
    else:
        data[at : at + 1] = io.uv(_pick(rng, [n for n in NUMBERS if n >= 0]))


def mutants(files: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Files with one to four changes each, checksums repaired."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        parsed = Parsed(_pick(rng, files))
        for _ in range(int(rng.integers(1, 5))):
            targets: list[Callable[[], None]] = [lambda: mutate_tree(rng, parsed.tree)]  # noqa: B023
            targets += [lambda b=body: mutate_bytes(rng, b) for body in parsed.bodies] * 3
            if parsed.tables is not None:  # seldom: nearly all changes break the sum
                targets += [partial(mutate_bytes, rng, parsed.tables)]
            _pick(rng, targets)()
        try:
            yield parsed.file()
        except OverflowError:  # a number that MessagePack cannot hold
            continue


def survive(data: bytes) -> int:
    """Decode every tensor of a file by itself; the number that decoded.

    Raises:
        BaseException: anything but a DecodeError, or a decoding that took too long.
    """
    start, good = time.monotonic(), 0
    try:
        with tqcodec.open(data) as file:
            for name in file:
                # The check of the decoded bytes is not repaired: it comes last in any case.
                try:
                    good += file[name] is not None
                except DecodeError as error:
                    str(error)
    except DecodeError as error:
        str(error)
    if time.monotonic() - start > SECONDS:
        raise TimeoutError(f"{time.monotonic() - start:.1f} s for {len(data)} bytes")
    return good


def failures(count: int, seed: int) -> Iterator[tuple[bytes, BaseException]]:
    """Mutants that end in anything but arrays or a DecodeError."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in mutants(list(golden_files().values()), count, seed):
            try:
                survive(data)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # also constriction's PanicException
                yield data, error


def main() -> int:
    """Report failures on standard output; the exit code is 1 if there are any."""
    parser = argparse.ArgumentParser(description="decode mutated files")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    built = "native" if native.AVAILABLE else "portable"
    parser.add_argument("--coder", choices=["native", "portable"], default=built)
    options = parser.parse_args()
    seen: dict[str, int] = {}
    start = time.monotonic()
    with using(options.coder):
        for data, error in failures(options.count, options.seed):
            frame = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} at {frame.filename}:{frame.lineno}: {error}"
            if key not in seen:
                sys.stdout.write(f"{key}\n  {data.hex()}\n")
            seen[key] = seen.get(key, 0) + 1
    seconds = time.monotonic() - start
    total = sum(seen.values())
    sys.stdout.write(f"{options.count} mutants, {total} failures, {seconds:.0f} s\n")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
