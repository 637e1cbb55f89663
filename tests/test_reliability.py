"""What docs/reliability.md promises beside format/test_damage.py.

Files survive, memory is bounded, bytes are the same.

Tests assert no times. Longer runs are commands: `damage.py`, `benchmarks/reliability.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from damage import TABLES, Parsed, assemble, golden_files
from golden.make import MANIFEST, described
from made_files import several, tables_file
from safetensors.numpy import load_file, save_file
from strategies import using

import tqcodec
import tqcodec.torch
from tqcodec.errors import MalformedError
from tqcodec.format import native
from tqcodec.format.header import read_header
from tqcodec.format.reader import sv, uv
from tqcodec.format.registry import (
    HEADER_SIZE,
    MAX_ALPHABET,
    MAX_CLASSES,
    MAX_LOW_BITS,
    MAX_TABLE_LOW,
    MAX_TABLES,
    MAX_VALUE,
    MAX_WEIGHTS,
    TABLE_SUM,
    Coding,
)
from tqcodec.format.tables import ESCAPE, SYMMETRIC, write_tables

GOLDEN = Path(__file__).with_name("golden")
COMMAND = "import sys; from tqcodec.cli import main; sys.exit(main())"
# Of tqcodec, and of safetensors, which writes a file beside the one it is told to write.
LEFTOVER = re.compile(r"\.tqc-[0-9a-f]{16}")
KILLS = int(os.environ.get("TQCODEC_KILLS", "12"))
FORMATS = [".safetensors", ".npz", ".pt"]

Limits = dict[int, int]  # soft limits of a process by resource


def start(
    *arguments: Any,
    program: str = COMMAND,
    limits: Limits | None = None,
    env: dict[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """A process of its own that runs tqcodec, or another program."""

    def limit() -> None:
        for name, soft in (limits or {}).items():
            resource.setrlimit(name, (soft, resource.getrlimit(name)[1]))

    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | (env or {}),
        preexec_fn=limit if limits else None,
        **streams | options,
    )
    return process


def run(*arguments: Any, **options: Any) -> tuple[int, bytes, bytes]:
    """Exit code, standard output and standard error of a process."""
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def weights(seed: int = 0, side: int = 192) -> dict[str, np.ndarray]:
    """A network in which the input axis of one matrix is worth a Karhunen-Loeve basis."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(side, side)) * 2.0 ** rng.normal(0, 1, side)
    return {
        "z.mixed": (rng.normal(size=(side, side)) @ mix).astype(np.float32),
        "conv": rng.normal(size=(32, 16, 3, 3)).astype(np.float32),
        "half": rng.normal(size=(64, 64)).astype(np.float16),
        "a.bias": rng.normal(size=side).astype(np.float32),
        "steps": np.array(3),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(weights(), path)
    return path


# ---- golden files ----


def golden_paths() -> list[Path]:
    """Files of all versions that this decoder promises to read: so far, one."""
    return sorted((GOLDEN / tqcodec.FORMAT_VERSION).glob("*.tqc"))


@pytest.mark.parametrize("coder", ["native", "portable"])
@pytest.mark.parametrize("path", golden_paths(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_files_decode_as_they_did(path: Path, coder: str) -> None:
    expected = json.loads((path.parent / MANIFEST).read_text())[path.name]
    with using(coder):
        found = described(path.read_bytes())
        tqcodec.verify(path)
    assert found == expected
    assert list(found["tensors"]) == list(expected["tensors"])


def test_the_manifests_name_all_golden_files() -> None:
    for manifest in GOLDEN.glob(f"*/{MANIFEST}"):
        names = sorted(path.name for path in manifest.parent.glob("*.tqc"))
        assert sorted(json.loads(manifest.read_text())) == names
    assert len(golden_paths()) > 20


# ---- the same bytes ----

# Numbers of workers and threads, seeds of hashing, loops of C and of Python, locales: each differs
# from one run to the next.
RUNS: list[tuple[list[str], dict[str, str]]] = [
    ([], {}),
    (["-j", "1"], {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1", "TQCODEC_NATIVE": "0"}),
    (["-j", "2"], {"OMP_NUM_THREADS": "4", "LC_ALL": "C", "TZ": "Asia/Kathmandu"}),
    (["-j", "4"], {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "2", "PYTHONUTF8": "0"}),
]


def test_encoded_bytes_are_the_same_in_every_process(model: Path) -> None:
    digests = set()
    for options, env in RUNS:
        code, out, err = run("encode", model, "--bits", "3", "-o", "-", *options, env=env)
        assert code == 0, err
        digests.add(hashlib.sha256(out).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    "settings",
    [
        tqcodec.Settings(snr=30, transform="klt"),
        tqcodec.Settings(bits=4, payload="fixed"),
        tqcodec.Settings(snr=20, effort=1),
        tqcodec.Settings(lossless=True),
    ],
    ids=["klt", "fixed", "fast", "lossless"],
)
def test_native_and_portable_loops_write_and_read_the_same(settings: tqcodec.Settings) -> None:
    if not native.AVAILABLE:
        pytest.skip("the native loops are not built")
    files, decoded = set(), set()
    for coder in ("native", "portable"):
        with using(coder):
            files.add(tqcodec.encode(weights(), settings))
    for coder, data in itertools.product(("native", "portable"), files):
        with using(coder):
            decoded.add(digest(tqcodec.decode(data)))
    assert (len(files), len(decoded)) == (1, 1)


def digest(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 of names, types, shapes and bytes, in order."""
    found = hashlib.sha256()
    for name, array in tensors.items():
        found.update(repr((name, array.dtype.str, array.shape)).encode() + array.tobytes())
    return found.hexdigest()


def test_decoded_bytes_are_the_same_with_any_arithmetic(model: Path, tmp_path: Path) -> None:
    """Other kernels of OpenBLAS sum in another order, as another machine does."""
    packed = tmp_path / "x.tqc"
    packed.write_bytes(tqcodec.encode(load_file(model), tqcodec.Settings(snr=30, transform="klt")))
    with tqcodec.open(packed) as file:
        entry = file.container.directory.entries[file.container.index["z.mixed"]]
        assert any(basis.entries is not None for basis in file.container.record(entry).bases)
    expected = tqcodec.load(packed)
    for env in (
        {"OPENBLAS_CORETYPE": "Prescott"},
        {"OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "4"},
        {"OMP_NUM_THREADS": "1", "TQCODEC_NATIVE": "0"},
        {"PYTHONHASHSEED": "3"},
    ):
        back = tmp_path / "back.safetensors"
        code, _, err = run("decode", packed, "-f", "-o", back, env=env)
        assert code == 0, err
        found = load_file(back)
        assert digest({name: found[name] for name in expected}) == digest(expected)


def test_the_order_of_a_state_dict_is_kept() -> None:
    names = [*weights(), "tied", "none"]
    state = weights() | {"tied": weights()["conv"], "none": np.zeros((0, 3), np.float32)}
    for seed in range(4):
        order = random.Random(seed).sample(names, len(names))
        shuffled = OrderedDict((name, torch.from_numpy(state[name])) for name in order)
        data = tqcodec.torch.encode(shuffled, tqcodec.Settings(lossless=True))
        found = tqcodec.torch.decode(data)
        assert list(found) == order
        assert all(torch.equal(found[name], shuffled[name]) for name in names)


# ---- kill -9 ----


def left_in(folder: Path, *names: str) -> list[Path]:
    """What stands in a folder beside files of these names: only temporary files may."""
    others = [path for path in folder.iterdir() if path.name not in names]
    assert all(LEFTOVER.fullmatch(path.name) for path in others)
    return others


def test_kill_9_at_any_moment_leaves_a_whole_file(model: Path, tmp_path: Path) -> None:
    target, arguments = tmp_path / "out.tqc", ("encode", model, "--bits", "4", "-f", "-o")
    begin = time.monotonic()
    assert run(*arguments, target)[0] == 0
    span = time.monotonic() - begin  # says where to aim, decides nothing
    new, old = target.read_bytes(), tqcodec.encode({"old": np.arange(1000.0)})
    target.write_bytes(old)
    rng = np.random.default_rng(0)
    for moment in [0.0, *rng.uniform(0, 1.2 * span, KILLS - 1)]:
        with start(*arguments, target) as process:
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
        assert process.returncode in (0, -signal.SIGKILL)
        assert target.read_bytes() in (old, new)
        left_in(tmp_path, "out.tqc")
    target.write_bytes(old)
    assert run(*arguments, target)[0] == 0
    assert target.read_bytes() == new


KILLED_AT_A_LINE = """
import os, signal, sys
from pathlib import Path
from tqcodec.common import atomic
path, stop = Path(sys.argv[1]), int(sys.argv[2])
lines = 0
def trace(frame, event, argument):
    global lines
    if frame.f_code.co_filename not in (__file__, atomic.__file__, os.path.realpath(os.__file__)):
        return None
    if event == "line":
        lines += 1
        if lines == stop:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace
def write():
    with atomic.replacing(path) as temporary:
        with temporary.open("wb", buffering=0) as file:
            file.write(b"new")
            file.write(b"er")
__file__ = write.__code__.co_filename
sys.settrace(trace)
write()
"""


def test_kill_9_at_every_line_of_the_writing(tmp_path: Path) -> None:
    path, seen = tmp_path / "x", []
    for stop in itertools.count(1):
        path.write_bytes(b"old")
        code, _, err = run(path, stop, program=KILLED_AT_A_LINE)
        seen.append(path.read_bytes())
        rest = left_in(tmp_path, "x")
        assert len(rest) <= 1
        for leftover in rest:
            assert b"newer".startswith(leftover.read_bytes())
            leftover.unlink()
        if code == 0:
            break
        assert (code, err) == (-signal.SIGKILL, b"")
    olds = seen.index(b"newer")
    assert seen == [b"old"] * olds + [b"newer"] * (len(seen) - olds)
    assert olds > 10
    assert len(seen) - olds > 1


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_killed_at_any_byte_of_the_writing(command: str, model: Path, tmp_path: Path) -> None:
    """The kernel kills at the first byte beyond a limit; like kill -9, nothing is cleaned up."""
    packed = tmp_path / "x.tqc"
    assert run("encode", model, "-e", "1", "-o", packed)[0] == 0
    again, target = ["encode", model, "-e", "1", "-f", "-o", packed], packed
    if command == "decode":
        target = tmp_path / "x.safetensors"
        again = ["decode", packed, "-f", "-o", target]
        assert run(*again)[0] == 0
    good = target.read_bytes()
    program = f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL); {COMMAND}"
    for size in (0, 1, len(good) // 2, len(good) - 1):
        limits = {resource.RLIMIT_FSIZE: size, resource.RLIMIT_CORE: 0}
        code, _, _ = run(*again, program=program, limits=limits)
        assert code == -signal.SIGXFSZ
        assert target.read_bytes() == good
        for leftover in left_in(tmp_path, "x.tqc", "x.safetensors"):
            assert leftover.stat().st_size <= size
            leftover.unlink()


# ---- a full disk ----


def full_disk_case(model: Path, folder: Path, suffix: str) -> tuple[Path, list[Any]]:
    """A good file of some format, and the command that writes it again."""
    packed = folder / "x.tqc"
    make = ["encode", model, "-e", "1", "-f", "-o", packed]
    assert run(*make)[0] == 0
    if suffix == ".tqc":
        return packed, make
    target = folder / f"x{suffix}"
    again = ["decode", packed, "-f", "-o", target]
    assert run(*again)[0] == 0
    return target, again


@pytest.mark.parametrize("suffix", [".tqc", *FORMATS])
def test_a_full_disk_leaves_the_old_file(suffix: str, model: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails the same writes as a full disk, at a byte of choice."""
    target, again = full_disk_case(model, tmp_path, suffix)
    good = target.read_bytes()
    sizes = [0, len(good) // 2, len(good) - 1]
    for size in sizes if suffix != ".pt" else sizes[1:2]:  # importing torch takes its time
        code, out, err = run(*again, limits={resource.RLIMIT_FSIZE: size})
        assert (code, out) == (2, b"")
        assert b"too large" in err or suffix == ".pt"
        assert target.read_bytes() == good
        assert left_in(tmp_path, "x.tqc", target.name) == []
    assert run(*again, limits={resource.RLIMIT_FSIZE: len(good)})[0] == 0


ON_A_SMALL_DISK = """
import json, subprocess, sys
from pathlib import Path
disk, size, command, source, name, old = sys.argv[1:]
mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
if subprocess.run(mount, capture_output=True).returncode:
    sys.exit(77)
target = Path(disk, name)
target.write_bytes(bytes.fromhex(old))
run = "import sys; from tqcodec.cli import main; sys.exit(main())"
arguments = [sys.executable, "-c", run, command, source, "-f", "-o", target]
done = subprocess.run(arguments, capture_output=True, text=True)
files = {path.name: path.read_bytes().hex() for path in Path(disk).iterdir()}
print(json.dumps({"code": done.returncode, "out": done.stdout, "files": files}))
"""


@pytest.mark.parametrize("suffix", [".tqc", *FORMATS])
def test_a_small_disk_leaves_the_old_file(suffix: str, model: Path, tmp_path: Path) -> None:
    """A file system of a few KiB, mounted in a namespace that vanishes with its process."""
    source, command, size = model, "encode", 12 << 10
    if suffix != ".tqc":
        source, command, size = tmp_path / "x.tqc", "decode", 64 << 10
        assert run("encode", model, "-e", "1", "-o", source)[0] == 0
    (tmp_path / "disk").mkdir()
    spaces = ["unshare", "--map-root-user", "--mount"]
    arguments = [tmp_path / "disk", size, command, source, f"x{suffix}", b"old".hex()]
    program = [*spaces, sys.executable, "-c", ON_A_SMALL_DISK, *map(str, arguments)]
    try:
        done = subprocess.run(program, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare")
    if done.returncode:
        pytest.skip("no file system may be mounted here")
    found = json.loads(done.stdout)
    assert found["code"] != 0
    assert found["out"] == ""
    assert found["files"] == {f"x{suffix}": b"old".hex()}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_device_is_an_error(model: Path, tmp_path: Path) -> None:
    packed = tmp_path / "x.tqc"
    assert run("encode", model, "-e", "1", "-o", packed)[0] == 0
    message = b"tqcodec: %b: No space left on device\n"
    with Path("/dev/full").open("wb") as full:
        for arguments in (["encode", model, "-e", "1"], ["decode", packed]):
            code, _, err = run(*arguments, "-o", "-", stdout=full)
            assert (code, err) == (2, message % b"standard output")
    named = message % b"/dev/full"
    assert run("encode", model, "-e", "1", "-f", "-o", "/dev/full") == (2, b"", named)


# ---- memory ----

TENSORS, SIDE = 16, 512
ONE = 4 * SIDE * SIDE


def peak(call: Callable[[], object]) -> int:
    """Largest memory of arrays and objects while a call runs, over that before it."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


WISHES = [{"bits": 4}, {"snr": 20, "payload": "fixed"}, {"lossless": True}]


@pytest.mark.parametrize("wish", WISHES, ids=["range", "fixed", "lossless"])
def test_streaming_takes_the_memory_of_one_tensor(wish: dict[str, Any], tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "x.tqc"
    tensors = {f"{i}": rng.normal(size=(SIDE, SIDE)).astype(np.float32) for i in range(TENSORS)}
    tqcodec.save(tensors, path, tqcodec.Settings(effort=1, **wish))
    tqcodec.load(path)  # what is imported and made once is not a tensor's

    def stream(count: int) -> None:
        with tqcodec.open(path) as file:
            for name in list(file)[:count]:
                file[name]

    with using("native" if native.AVAILABLE else "portable"):
        one = peak(partial(stream, 1))
        assert one < 30 * ONE
        for take in (partial(stream, TENSORS), partial(tqcodec.verify, path)):
            assert peak(take) < one + 2 * ONE  # the one before it may still be there
    assert peak(partial(tqcodec.load, path)) > TENSORS * ONE


# ---- hostile tables ----


TABLE_RULES = ("count", "flags", "low_bits", "range", "size", "sum", "total", "weight")


def table_bytes(
    flags: int = 0,
    low_bits: int = 0,
    low: int = -1,
    weights: tuple[int, ...] = (1000, 2000, 1096),
    escape: int | None = None,
    size: int | None = None,
) -> bytes:
    """One table, right unless told otherwise; `low` is the half of a symmetric one."""
    out = bytes([flags, low_bits])
    if flags & SYMMETRIC:
        out += uv(low)
    else:
        out += sv(low) + uv(len(weights) if size is None else size)
    out += b"".join(map(uv, weights))
    return out + (uv(escape) if escape is not None else b"")


def with_total(total: int) -> Iterator[bytes]:
    """Tables of all four kinds whose weights sum to `total`."""
    yield table_bytes(weights=(1, total - 3, 2))
    yield table_bytes(ESCAPE, weights=(1, total - 5), escape=4)
    yield table_bytes(ESCAPE, weights=(1, 4), escape=total - 5)
    if total % 2 == 0:
        yield table_bytes(SYMMETRIC, low=1, weights=(total - 6, 3))
        yield table_bytes(SYMMETRIC | ESCAPE, low=1, weights=(2, total // 2 - 2), escape=2)


def hostile_tables() -> Iterator[tuple[str, bytes]]:
    """(rule, the element `tables`): every rule of chapter 5, on both sides of every boundary."""
    wrong_sums = [TABLE_SUM + n for n in (-4000, -2, -1, 1, 2, TABLE_SUM)]
    wrong_sums += [TABLE_SUM + (1 << n) for n in (16, 31, 32, 63)]  # right, were it to wrap
    for total in wrong_sums:
        for table in with_total(total):
            yield "table.sum", uv(1) + table
    wraps = (1 << 63, 1 << 63, TABLE_SUM)
    yield "table.sum", uv(1) + table_bytes(weights=wraps)
    yield "table.sum", uv(1) + table_bytes(weights=(TABLE_SUM // 2,))
    for place in range(3):
        zero = [1048, 2000, 1048]
        zero[place] = 0
        zero[(place + 1) % 3] += TABLE_SUM - sum(zero)
        yield "table.weight", uv(1) + table_bytes(weights=tuple(zero))
    yield "table.weight", uv(1) + table_bytes(ESCAPE, weights=(96, 2000, 2000), escape=0)
    yield "table.weight", uv(1) + table_bytes(SYMMETRIC, low=1, weights=(0, 2048))
    yield "table.weight", uv(1) + table_bytes(SYMMETRIC, low=1, weights=(TABLE_SUM, 0))
    for flags in range(4, 256):
        yield "table.flags", uv(1) + bytes([flags]) + table_bytes()[1:]
    for low_bits in range(MAX_LOW_BITS + 1, 256):
        yield "table.low_bits", uv(1) + table_bytes(low_bits=low_bits)
    yield "table.size", uv(1) + table_bytes(weights=())
    yield "table.size", uv(1) + table_bytes(weights=(1,) * MAX_ALPHABET)
    yield "table.size", uv(1) + table_bytes(SYMMETRIC, low=2048, weights=(1,) * 2049)
    for size in (MAX_ALPHABET + 1, 1 << 32, (1 << 64) - 1):
        yield "integer.range", uv(1) + table_bytes(size=size)
        yield "integer.range", uv(1) + table_bytes(SYMMETRIC, low=size)
    for low in (MAX_TABLE_LOW + 1, -MAX_TABLE_LOW - 2, (1 << 63) - 1, -(1 << 63)):
        yield "integer.range", uv(1) + table_bytes(low=low)
    for low_bits in (6, 7, MAX_LOW_BITS):
        edge = MAX_VALUE >> low_bits  # the largest magnitude allowed
        for low in (-edge - 1, edge - 2):
            if -MAX_TABLE_LOW - 1 <= low <= MAX_TABLE_LOW:
                yield "table.range", uv(1) + table_bytes(low_bits=low_bits, low=low)
    long = table_bytes(low=0, weights=(*(1,) * 4094, 2))
    yield "table.total", uv(MAX_WEIGHTS // 4095 + 1) + long * (MAX_WEIGHTS // 4095 + 1)
    one = table_bytes()
    yield "table.count", uv(MAX_TABLES + 1) + one * (MAX_TABLES + 1)
    for count in (1 << 32, (1 << 64) - 1):
        yield "table.count", uv(count) + one
    for count in range(3):
        yield "segment.surplus", uv(count) + one * (count + 1)
        yield "segment.surplus", uv(count) + one * count + b"\0"
        yield "segment.short", uv(count + 1) + one * count
    for cut in range(len(one)):
        yield "segment.short", uv(1) + one[:cut]
    yield "segment.short", b""
    for place in range(2, len(one) - 1):  # each integer of the table, in a longer form
        if one[place] < 128:
            longer = one[:place] + bytes([one[place] | 128, 0]) + one[place + 1 :]
            yield "integer.shortest", uv(1) + longer
    yield "integer.shortest", b"\x81\0" + one
    yield "integer.size", b"\xff" * 10 + b"\1" + one
    yield "integer.size", b"\xff" * 9 + b"\2" + one


def test_every_wrong_table_is_refused() -> None:
    tqcodec.verify(tables_file(uv(1) + table_bytes()))
    for edge in (
        table_bytes(weights=(TABLE_SUM,)),
        table_bytes(low=0, weights=(*(1,) * 4094, 2)),
        table_bytes(low=MAX_TABLE_LOW),
        table_bytes(low_bits=7, low=-(MAX_VALUE >> 7)),
        table_bytes(low_bits=7, low=(MAX_VALUE >> 7) - 3),
        table_bytes(SYMMETRIC, low=1, weights=(TABLE_SUM - 2, 1)),
        table_bytes(SYMMETRIC | ESCAPE, low=0, weights=(1,), escape=TABLE_SUM - 1),
    ):
        tqcodec.verify(tables_file(uv(1) + edge))
    seen = set()
    for rule, plain in hostile_tables():
        with pytest.raises(MalformedError) as caught:
            tqcodec.decode(tables_file(plain))
        assert caught.value.rule == rule, plain.hex()
        seen.add(rule)
    assert {f"table.{name}" for name in TABLE_RULES} <= seen


@pytest.mark.parametrize("name", ["range", "trellis", "bases", "tiles", "planes", "bundle"])
def test_a_table_that_is_not_there_is_refused(name: str) -> None:
    """Fewer and fewer tables: at last none that the file names is there."""
    data = golden_files()[name]
    parsed, refused = Parsed(data), []
    for count in reversed(range(len(TABLES))):
        parsed.tables = bytearray(write_tables(TABLES[:count]))
        try:
            tqcodec.decode(parsed.file())
        except MalformedError as error:
            assert error.rule in ("table.index", "class.table")
            refused.append(count)
    assert refused == list(reversed(range(refused[0] + 1)))


def test_tables_of_a_pair_have_the_same_low_bits() -> None:
    parsed = Parsed(golden_files()["trellis"])
    for low_bits in range(1, MAX_LOW_BITS):
        tables = [TABLES[0], replace(TABLES[1], low_bits=low_bits), TABLES[2]]
        parsed.tables = bytearray(write_tables(tables))
        with pytest.raises(MalformedError, match=r"class\.low_bits"):
            tqcodec.decode(parsed.file())


@pytest.mark.parametrize(
    ("rule", "element"),
    [
        ("class.count", uv(0)),
        ("integer.range", uv(MAX_CLASSES + 1)),
        ("integer.range", uv(1 << 40)),
        *[("class.table", uv(3) + bytes([0, index, 2])) for index in (3, 127, 128, 255)],
    ],
)
def test_wrong_maps_of_classes_are_refused(rule: str, element: bytes) -> None:
    parsed = Parsed(golden_files()["range"])
    right = uv(3) + bytes([0, 1, 2])  # class_count and table_map
    assert parsed.bodies[0].count(right) == 1
    parsed.bodies[0] = parsed.bodies[0].replace(right, element)
    with pytest.raises(MalformedError) as caught:
        tqcodec.decode(parsed.file())
    assert caught.value.rule == rule


def packed_in_order(tree: Any, swapped: int, seen: list[int]) -> Any:
    """The tree with the first two keys of its map number `swapped` in the wrong order."""
    if isinstance(tree, list):
        return [packed_in_order(item, swapped, seen) for item in tree]
    if not isinstance(tree, dict):
        return tree
    seen.append(len(tree))
    keys = sorted(tree)
    if len(seen) - 1 == swapped:
        keys[:2] = reversed(keys[:2])
    return {key: packed_in_order(tree[key], swapped, seen) for key in keys}


def test_every_map_of_the_directory_is_in_order() -> None:
    for data in golden_files().values():
        parsed = Parsed(data)
        bodies = data[HEADER_SIZE + read_header(data).stored :]
        maps: list[int] = []
        packed_in_order(parsed.tree, -1, maps)
        for number, size in enumerate(maps):
            plain = msgpack.packb(packed_in_order(parsed.tree, number, []))
            if size < 2:
                continue
            with pytest.raises(MalformedError, match=r"directory\.canonical"):
                tqcodec.decode(assemble(plain, [bodies]))


def test_damaged_tables_leave_what_needs_none() -> None:
    data = several()
    with tqcodec.open(data) as file:
        directory = file.container.directory
    assert directory.tables is not None
    damaged = bytearray(data)
    damaged[directory.tables.offset] ^= 1
    raw = [entry.name for entry in directory.entries if entry.coding == Coding.RAW]
    assert raw
    with tqcodec.open(bytes(damaged)) as file:
        for name in file:
            if name in raw:
                assert np.array_equal(file[name], tqcodec.decode(data)[name])
            else:
                with pytest.raises(MalformedError, match=r"segment\.crc"):
                    file[name]


# ---- nothing but bytes in, arrays out ----

VERDICTS = ("decoded", "limit", "malformed", "unsupported")
AUDITED = """
import sys
sys.path.insert(0, sys.argv[1])
import ml_dtypes, numpy, tqcodec.api, tqcodec.format.portable
from damage import golden_files, mutants
from tqcodec.errors import DecodeError
files = list(golden_files().values())
files += list(mutants(files, int(sys.argv[2]), 3))
for name, take in (("load", tqcodec.decode), ("verify", tqcodec.verify)):
    take(files[0])
seen = set()
watching = True
sys.addaudithook(lambda event, _: watching and seen.add(event))
ends = {}
for data in files:
    for take in (tqcodec.decode, tqcodec.verify):
        try:
            take(data)
            end = "decoded"
        except DecodeError as error:
            end = error.verdict
        ends[end] = ends.get(end, 0) + 1
watching = False
print(sorted(seen), sorted(ends))
"""


def test_decoding_runs_no_code_and_touches_no_path() -> None:
    """Python reports to an audit hook whatever opens, imports, compiles, runs or connects."""
    code, out, err = run(Path(__file__).parent, 1500, program=AUDITED)
    assert (code, err) == (0, b"")
    # Threads ask for ids.
    assert out.decode().replace("'builtins.id'", "") == f"[] {sorted(VERDICTS)}\n"
