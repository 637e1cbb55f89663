"""Damaged and hostile files end in arrays or a DecodeError, at once and in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layout.coder
import layout.planes
import msgpack
import numpy as np
import pytest
from damage import Parsed, assemble, failures, golden_files
from layout.file import File, Tensor
from layout.transform import DCT, Transform
from made_files import several, tables_file
from strategies import coders, using

import tqcodec
from tqcodec.encoder.side import make_part
from tqcodec.errors import DecodeError, MalformedError, UnsupportedError
from tqcodec.format.directory import write_directory
from tqcodec.format.dtypes import DTYPES
from tqcodec.format.entries import Directory, Entry, Segment, crc
from tqcodec.format.header import Header, write_header
from tqcodec.format.planes import Part
from tqcodec.format.reader import sv, uv
from tqcodec.format.records import Basis, CodedTensor
from tqcodec.format.registry import (
    MAX_DIRECTORY,
    MAX_STEPS,
    MAX_SYMBOLS,
    Axis,
    Coding,
    PayloadKind,
    Quantizer,
)
from tqcodec.format.tables import Table, Tables
from tqcodec.format.vectors import Vector
from tqcodec.format.writer import Bundled, Raw, Record, write

GOLDEN = golden_files()
golden = pytest.mark.parametrize("data", GOLDEN.values(), ids=GOLDEN.keys())
MUTANTS = 4000


def refused(data: bytes) -> bool:
    """True if both decode and verify raise a DecodeError."""
    for take in (tqcodec.decode, tqcodec.verify):
        try:
            take(data)
        except DecodeError as error:
            assert error.rule in str(error)
        else:
            return False
    return True


@golden
def test_golden_files_are_small_and_good(data: bytes) -> None:
    assert len(data) < 500
    tqcodec.verify(data)
    assert Parsed(data).file()[:8] == data[:8]
    assert {n: a.tobytes() for n, a in tqcodec.decode(Parsed(data).file()).items()} == {
        n: a.tobytes() for n, a in tqcodec.decode(data).items()
    }


@golden
def test_every_prefix_is_refused(data: bytes) -> None:
    assert [n for n in range(len(data)) if not refused(data[:n])] == []


@golden
def test_every_bit_flip_is_refused(data: bytes) -> None:
    missed = []
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        if not refused(bytes(damaged)):
            missed.append(bit)
    assert missed == []


@golden
def test_trailing_bytes_are_refused(data: bytes) -> None:
    for tail in (b"\0", b"abc", data):
        with pytest.raises(MalformedError, match=r"container\.length"):
            tqcodec.decode(data + tail)


def test_damage_in_one_segment_leaves_the_other_tensors() -> None:
    data = several()
    good = tqcodec.decode(data)
    with tqcodec.open(data) as file:
        entries = file.container.directory.entries
    for victim in entries:
        for segment in victim.segments:
            damaged = bytearray(data)
            damaged[segment.offset + segment.length // 2] ^= 1
            with tqcodec.open(bytes(damaged)) as file:
                for entry in entries:
                    if entry.name != victim.name:
                        assert np.array_equal(file[entry.name], good[entry.name])
                with pytest.raises(MalformedError, match=r"segment\.crc") as caught:
                    file[victim.name]
            assert caught.value.tensor == victim.name
            assert caught.value.offset == segment.offset
            assert repr(victim.name) in str(caught.value)


def test_damage_in_a_bundle_names_its_tensors() -> None:
    data = several()
    with tqcodec.open(data) as file:
        directory = file.container.directory
    damaged = bytearray(data)
    damaged[directory.bundles[0].offset] ^= 1
    with tqcodec.open(bytes(damaged)) as file:
        for entry in directory.entries:
            if entry.bundle is None:
                assert file[entry.name] is not None
                continue
            with pytest.raises(MalformedError) as caught:
                file[entry.name]
            assert caught.value.tensor == entry.name


@coders
def test_mutants_end_in_arrays_or_a_decode_error(coder: str) -> None:
    with using(coder):
        found = next(failures(MUTANTS, seed=0), None)
    if found is not None:
        raise AssertionError(f"mutant {found[0].hex()}") from found[1]


# ---- single rules of the container ----


def tree(data: bytes = GOLDEN["raw"]) -> dict[str, Any]:
    return Parsed(data).tree


RIGHT = [[1, zlib.crc32(b"\0")]]


def raw_file(bundles: object = None, **changes: object) -> bytes:
    """A file of one byte, its entry changed."""
    entry: dict[str, object] = {"name": "a", "dtype": "U8", "shape": [1], "coding": 0}
    entry |= {"check": 0, "segments": [[1, 0]]} | changes
    entry = {k: v for k, v in sorted(entry.items()) if v is not None}
    if bundles is None:
        return assemble(msgpack.packb({"tensors": [entry]}), [b"\0"])
    return assemble(msgpack.packb({"bundles": bundles, "tensors": [entry]}), [b"\0", b"\0"])


def directory_file(plain: bytes) -> bytes:
    return assemble(plain, [])


@pytest.mark.parametrize(
    ("rule", "data"),
    [
        ("header.signature", b""),
        ("header.signature", b"\x89TQC\n\x1a\n"),
        ("header.signature", b"PK" + bytes(40)),
        ("directory.size", write_header(Header(True, 1, MAX_DIRECTORY + 1, 0))),
        ("directory.stored", write_header(Header(True, 9, 9, 0))),
        ("directory.stored", write_header(Header(False, 9, 8, 0))),
        ("segment.short", write_header(Header(False, 9, 9, 0))),
        ("directory.msgpack", directory_file(b"\xc1")),
        ("directory.msgpack", directory_file(b"\x81")),
        ("directory.canonical", directory_file(b"\x81\xa1\xff\x00")),
        ("directory.values", directory_file(b"\xdd\xff\xff\xff\xff")),
        ("directory.type", directory_file(b"\x90")),
        ("directory.canonical", directory_file(b"\x81\xa1a\xcc\x01")),
        ("directory.canonical", directory_file(b"\x82\xa1b\x01\xa1a\x01")),
        ("directory.canonical", directory_file(b"\x82\xa1a\x01\xa1a\x01")),
        ("directory.canonical", directory_file(b"\x81\xa1a" + msgpack.packb(1.5))),
        ("directory.canonical", directory_file(b"\x81\xa1a" + msgpack.packb(b"bytes"))),
        (
            "directory.canonical",
            directory_file(b"\x81\xa1a" + msgpack.packb(msgpack.ExtType(5, b""))),
        ),
        ("directory.type", directory_file(msgpack.packb({"tensors": {}}))),
        ("directory.type", directory_file(msgpack.packb({"metadata": {"a": 1}}))),
        ("directory.type", directory_file(msgpack.packb({"tables": [1, 2]}))),
        ("directory.name", raw_file(name="")),
        ("directory.type", raw_file(name=None)),
        ("directory.name", raw_file(name="n" * 4097)),
        ("directory.name", assemble(msgpack.packb({"tensors": tree()["tensors"] * 2}), [])),
        ("directory.type", raw_file(shape="1")),
        ("directory.type", raw_file(shape=[True])),
        ("directory.range", raw_file(shape=[-1])),
        ("directory.shape", raw_file(shape=[1] * 17)),
        ("directory.shape", raw_file(shape=[1 << 25, 1 << 25])),
        ("directory.shape", raw_file(shape=[0, 1 << 47, 1 << 47])),
        ("directory.range", raw_file(same_as=0)),
        ("directory.range", raw_file(bundle=0)),
        ("directory.range", raw_file(check=1 << 32)),
        ("directory.range", raw_file(coding=256)),
        ("directory.transform", raw_file(coding=2)),
        ("directory.transform", raw_file(coding=2, dtype="F32", shape=[0])),
        ("segment.crc", raw_file()),
        ("container.length", raw_file(segments=[[2, 0]])),
        ("container.length", raw_file(segments=[[(1 << 63) - 1, 0]] * 3)),
    ],
)
def test_broken_rules_are_named(rule: str, data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        tqcodec.decode(data)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("rule", "data"),
    [
        ("directory.dtype", raw_file(dtype="F4", segments=RIGHT)),
        ("directory.coding", raw_file(coding=3, segments=RIGHT)),
        ("directory.coding", raw_file(coding=9, bundle=0, segments=RIGHT, bundles=RIGHT)),
        ("directory.features", directory_file(msgpack.packb({"features": ["dither"]}))),
    ],
)
def test_what_a_newer_decoder_may_know_is_unsupported(rule: str, data: bytes) -> None:
    with pytest.raises(UnsupportedError) as caught:
        tqcodec.decode(data)
    assert caught.value.rule == rule


def test_what_is_unsupported_stops_its_own_tensor_only() -> None:
    parsed = Parsed(write_pair())
    parsed.tree["tensors"][0]["coding"] = 3
    data = parsed.file()
    with tqcodec.open(data) as file:
        assert file["b"].tolist() == [2]
        with pytest.raises(UnsupportedError, match=r"directory\.coding.*'a'"):
            file["a"]
    for take in (tqcodec.decode, tqcodec.verify):
        with pytest.raises(UnsupportedError, match=r"directory\.coding"):
            take(data)
    parsed.tree["tensors"][1]["check"] ^= 1
    for take in (tqcodec.decode, tqcodec.verify):  # malformed wins, whatever comes first
        with pytest.raises(MalformedError, match=r"tensor\.check"):
            take(parsed.file())


def write_pair() -> bytes:
    patterns = [np.array([value], np.uint8) for value in (1, 2)]
    items = [
        Record(name, DTYPES["U8"], (1,), crc(p), Raw(p.tobytes()))
        for name, p in zip("ab", patterns, strict=True)
    ]
    return write(items, Tables(()), {})


def test_unknown_ancillary_entries_are_skipped() -> None:
    parsed = Parsed(GOLDEN["raw"])
    parsed.tree["later"] = {"any": ["thing", 1, None]}
    parsed.tree["tensors"][0]["remark"] = "text"
    assert list(tqcodec.decode(parsed.file())) == ["raw"]


def test_booleans_other_than_0_and_1_are_refused() -> None:
    raw = Tensor("b", "BOOL", (3,), bytes([0, 1, 2]))
    for tensor in (raw, layout.planes.Part("BOOL", [0, 1, 2], 2).tensor()):
        with pytest.raises(MalformedError, match=r"tensor\.bool"):
            tqcodec.decode(File([tensor]).build())


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "C:\\x", "a\0b", "~/x", "con", "\n"])
def test_path_like_names_are_inert(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tqcodec.save({name: np.ones(3)}, "file.tqc", tqcodec.Settings(metadata=((name, name),)))
    found = tqcodec.load("file.tqc")
    tqcodec.verify("file.tqc")
    assert list(found) == [name]
    assert [path.name for path in tmp_path.iterdir()] == ["file.tqc"]


# ---- bombs ----

O, I, T = Axis  # noqa: E741


def head_file(shape: tuple[int, ...], roles: tuple[Axis, ...], **changes: Any) -> bytes:
    """A file of one transform-coded tensor that is nothing but a head."""
    known = [layout.coder.Table(0, (4096,)), layout.coder.Table(1, (4096,))]
    fields: dict[str, Any] = {"dtype": "F8_E5M2", "tile": (1, 1), "depths": 0}
    record = Transform(shape, roles, (), **(fields | changes))
    tensor = record.tensor(known, elements=b"", segments=[record.head(known)])
    return File([tensor], known).build()


def shape_only(*shape: int, coding: int = 0, dtype: str = "F32") -> bytes:
    entry = Entry("t", DTYPES[dtype], shape, Coding(coding), 0)
    return assemble(write_directory(Directory((entry,)))[0], [])


def many_bundles(count: int) -> bytes:
    part = Part(DTYPES["F64"], np.zeros(MAX_SYMBOLS, "<u8"), 0, unsigned=True)
    items = [
        Record(f"{i}", DTYPES["F64"], (MAX_SYMBOLS,), crc(part.patterns), Bundled(i, part))
        for i in range(count)
    ]
    return write(items, Tables(()), {})


def small_bundles(count: int) -> bytes:
    """A file whose time must not grow with the square of its tensors."""
    part = make_part(np.zeros(1, np.uint8), DTYPES["U8"], None)
    check = crc(part.patterns)
    items = [Record(f"{i}", DTYPES["U8"], (1,), check, Bundled(i, part)) for i in range(count)]
    return write(items, Tables(()), {})


def many_ties(count: int) -> bytes:
    """Many names of one tensor of 16 MiB."""
    size = 1 << 24
    patterns = np.zeros(size, np.uint8)
    part = make_part(patterns, DTYPES["U8"], None)
    data = write([Record("t", DTYPES["U8"], (size,), crc(patterns), part)], Tables(()), {})
    parsed = Parsed(data)
    parsed.tree["tensors"] += [{"name": f"{i}", "same_as": 0} for i in range(count)]
    return parsed.file()


def full_tables() -> bytes:
    """As many and as long tables as there may be, the sum of the last one wrong."""
    one = bytes([2, 0]) + sv(0) + uv(4094) + b"\1" * 4094
    return uv(128) + (one + b"\2") * 127 + one + b"\3"


def explicit_basis(rows: int, length: int) -> bytes:
    """A square basis that costs no bits: all of its entries are 1."""
    head = bytes([O, I]) + uv(1) + sv(0) + bytes([0, 0]) + uv(1) + uv(1 << 20) + bytes([0, 2])
    head += uv(length) + b"\1" * length + b"\0\0" + b"\0"  # shifts 0, no basis on the taps
    head += b"\0\1" + uv(1) + b"\0" + b"\0\0" * 3 + b"\0\1\0\1" + uv(0) + uv(0)
    tables = uv(2) + bytes([1, 0, 0]) + uv(4096) + bytes([0, 0]) + sv(1) + uv(1) + uv(4096)
    segment, first = Segment(len(head), zlib.crc32(head)), Segment(len(tables), zlib.crc32(tables))
    entry = Entry("t", DTYPES["F8_E5M2"], (rows, length), Coding.TRANSFORM, 0, (segment,))
    return assemble(write_directory(Directory((entry,), (), first))[0], [tables, head])


def padding(count: int) -> bytes:
    """Text that deflates badly, so that the file seems to earn a large directory."""
    return np.random.default_rng(0).integers(32, 127, count, np.uint8).tobytes()


LISTS = MAX_DIRECTORY - 64
EMPTY_LISTS = 120_000  # about as many as 2^17 bytes of padding pay for
BOMBS: dict[str, Callable[[], bytes]] = {
    "raw-shape": lambda: shape_only(1 << 48),
    "planes-shape": lambda: shape_only(1 << 48, coding=1),
    "transform-shape": lambda: head_file((1 << 24, 1 << 24), (O, I)),
    "empty-shape": lambda: head_file((0, 1 << 40), (O, I)),
    "empty-shape-columns": lambda: head_file((0, 1 << 40, 1 << 40), (O, I, T)),
    "empty-shape-raw": lambda: shape_only(0, 1 << 48, 1 << 48),
    "empty-shape-planes": lambda: shape_only(0, 1 << 48, 1 << 48, coding=1),
    "tiles": lambda: head_file((4096, 4096), (O, I), depths=1),
    "dct": lambda: head_file((1, 1, 16, 16, 16, 16), (O, I, T, T, T, T), bases={T: DCT}),
    "basis": lambda: explicit_basis(1, 4096),
    "work": lambda: explicit_basis(2048, 2048),
    "directory-lists": lambda: directory_file(
        b"\x81\xa7tensors\xdd" + LISTS.to_bytes(4, "big") + b"\x90" * LISTS
    ),
    "directory-lists-padded": lambda: directory_file(
        b"\x82\xa1a\xdb"
        + (1 << 17).to_bytes(4, "big")
        + padding(1 << 17)
        + b"\xa7tensors\xdd"
        + EMPTY_LISTS.to_bytes(4, "big")
        + b"\x90" * EMPTY_LISTS
    ),
    "directory-nested": lambda: directory_file(b"\x91" * LISTS),
    "directory-string": lambda: directory_file(
        b"\x81\xa1a\xdb" + LISTS.to_bytes(4, "big") + b"a" * LISTS
    ),
    "directory-size": lambda: write_header(Header(True, 40, MAX_DIRECTORY, 0)) + bytes(40),
    "tables-size": lambda: tables_file(bytes(1 << 20)),
    "tables-count": lambda: tables_file(uv(1 << 60)),
    "tables-full": lambda: tables_file(full_tables()),
    "bundles": lambda: many_bundles(40),
    "ties": lambda: many_ties(2000),
}
SINGLE_BOMB = """
import resource, sys, tracemalloc, warnings
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
warnings.simplefilter("error")
import numpy, ml_dtypes, tqcodec.api, tqcodec.format.portable
data = sys.stdin.buffer.read()
take = getattr(tqcodec, sys.argv[1])
tracemalloc.start()
try:
    take(data)
    name = "nothing"
except BaseException as error:
    name = type(error).__name__
sys.stdout.write(f"{name} {tracemalloc.get_traced_memory()[1]}")
"""


@pytest.mark.parametrize("take", ["decode", "verify"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_end_at_once_and_in_little_memory(bomb: str, take: str) -> None:
    out = subprocess.run(
        [sys.executable, "-c", SINGLE_BOMB, take],
        input=BOMBS[bomb](),
        capture_output=True,
        timeout=60,  # a guard against hanging, not a measurement
        check=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    ).stdout.decode()
    error, peak = out.split()
    assert error in ("LimitError", "MalformedError")
    assert int(peak) < 50 << 20


def test_time_does_not_grow_with_the_square_of_the_tensors() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, tqcodec; tqcodec.verify(sys.stdin.buffer.read())"],
        input=small_bundles(10_000),
        timeout=60,
        check=True,
    )


def test_a_file_of_very_many_small_tensors_is_legal() -> None:
    """Its directory deflates so well that it has to be stored as it is."""
    tensors = {f"t{i}": np.zeros(0, np.float32) for i in range(20_000)}
    assert len(tqcodec.decode(tqcodec.encode(tensors))) == len(tensors)


def test_a_long_trellis_is_no_slower_than_a_short_one() -> None:
    """Each step costs time of its own: the format bounds their number."""
    rows, nothing = 1 << 18, Vector.constant(0, 1)
    record = CodedTensor(
        roles=(O, I),
        scale=(1, 0),
        quantizer=Quantizer.TRELLIS,
        steps=MAX_STEPS,
        payload_kind=PayloadKind.RANGE,
        tile=(rows, 1),
        bases=(Basis(), Basis(), Basis()),
        depths=Vector.constant(2, 1),
        levels=(Vector.constant(0, rows), nothing, nothing),
        table_map=(0,),
        row_scales=Vector.constant(1, rows),
        multipliers=Vector.constant(1, 1),
        coefficients=np.zeros((rows, 1), np.int32),
    )
    free = Tables([Table(0, (4096,)), Table(1, (4096,))])  # tables of one symbol: no bits
    data = write([Record("t", DTYPES["F8_E5M2"], (rows, 1), 0, record)], free, {})
    code = """
import sys, tqcodec
try:
    tqcodec.verify(sys.stdin.buffer.read())
except tqcodec.MalformedError:
    pass
"""
    for native in ("0", "1"):
        env = os.environ | {"TQCODEC_NATIVE": native}
        subprocess.run([sys.executable, "-c", code], input=data, timeout=60, check=True, env=env)


def test_work_is_bounded_by_the_bytes_that_ask_for_it() -> None:
    with pytest.raises(MalformedError, match=r"reconstruct\.work"):
        tqcodec.verify(BOMBS["work"]())


def test_the_encoder_leaves_out_bases_that_nothing_pays_for() -> None:
    kernels = np.zeros((512, 512, 3, 3), np.float32)
    kernels[0, 0] = 1
    for transform in ("dct", "auto"):
        settings = tqcodec.Settings(snr=20, transform=transform, rules=[("w", "weight")])
        data = tqcodec.encode({"w": kernels}, settings)
        assert len(data) < 400
        assert np.abs(tqcodec.decode(data)["w"] - kernels).max() < 0.1


def test_a_limit_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file.tqc"
    tqcodec.save({"a": np.zeros(1000), "b": np.ones(1000)}, path)
    assert len(tqcodec.load(path, limit=16000)) == 2
    with pytest.raises(tqcodec.LimitError) as caught:
        tqcodec.load(path, limit=15999)
    assert caught.value.rule == "limit.decoded"
    with tqcodec.open(path, limit=8000) as file:
        assert len(file["a"]) == 1000
    with tqcodec.open(path, limit=7999) as file, pytest.raises(tqcodec.LimitError):
        file["a"]


@pytest.mark.parametrize("limit", [None, 1 << 62])
def test_a_claim_is_earned_before_memory_is_taken(limit: int | None) -> None:
    for coding in (0, 1):
        with pytest.raises(DecodeError):
            tqcodec.decode(shape_only(1 << 48, coding=coding), limit=limit)
