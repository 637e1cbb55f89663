"""The decoder in C against the package: elements, verdicts, memory; plain and under sanitizers."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import damage
import example_file
import msgpack
import numpy as np
import pytest
from batch_client import Batch
from hypothesis import given, settings
from strategies import FLOATS, Array, Case, arrays, cases

import tqcodec
from tqcodec import Settings
from tqcodec.arrays import numpy_dtype
from tqcodec.errors import DecodeError, LimitError, MalformedError, UnsupportedError
from tqcodec.format.dtypes import DTYPES
from tqcodec.format.entries import crc
from tqcodec.format.reconstruct import reconstruct
from tqcodec.format.records import Basis, CodedTensor, tiles
from tqcodec.format.registry import Axis, BasisKind, PayloadKind, Quantizer
from tqcodec.format.tables import Table, Tables
from tqcodec.format.trellis import from_indices
from tqcodec.format.vectors import Vector
from tqcodec.format.writer import Record, write

SOURCE = Path(__file__).parents[2] / "decoders" / "c"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-ffp-contract=off"]
SANITIZERS = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
VERDICTS = {MalformedError: 1, UnsupportedError: 3, LimitError: 4}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")

NAMES = {np.dtype(numpy_dtype(dtype)): name for name, dtype in DTYPES.items()}
Result = tuple[int, str, bytes]
Part = TypeVar("Part")


def build(folder: Path, main: str, *options: str) -> Path:
    """A program of the library, which is compiled once for each choice of options, and one file."""
    assert COMPILER is not None
    library = folder / f"tqcdec-{len(options)}.o"
    target = folder / f"{Path(main).stem}-{len(options)}"
    compiler = [COMPILER, *STRICT, *options]
    if not library.exists():
        subprocess.run([*compiler, "-c", "-o", library, SOURCE / "tqcdec.c"], check=True)
    subprocess.run([*compiler, "-o", target, library, SOURCE / main, "-lm"], check=True)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c")


@pytest.fixture(scope="module")
def command(folder: Path) -> Path:
    return build(folder, "main.c", "-O1")


@pytest.fixture(scope="module")
def plain(command: Path) -> Iterator[Batch]:
    batch = Batch([str(command)])
    yield batch
    batch.close()


@pytest.fixture(scope="module")
def sanitized(folder: Path) -> Iterator[Batch]:
    try:
        batch = Batch([str(build(folder, "main.c", *SANITIZERS))])
    except subprocess.CalledProcessError:
        pytest.skip("the compiler has no sanitizers")
    yield batch
    batch.close()


def tensors(file: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Type, shape and bytes of each tensor of a safetensors file, and its metadata."""
    length = struct.unpack_from("<Q", file)[0]
    header, body = json.loads(file[8 : 8 + length]), file[8 + length :]
    metadata = header.pop("__metadata__", {})
    found, end = {}, 0
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        assert start == end
        end = stop
        found[name] = (entry["dtype"], tuple(entry["shape"]), body[start:stop])
    assert end == len(body)
    return found, metadata


def expected(data: bytes) -> dict[str, Any]:
    """The same by the package."""
    return {
        name: (NAMES[array.dtype], array.shape, array.tobytes())
        for name, array in tqcodec.decode(data).items()
    }


def check(decoder: Batch, data: bytes) -> None:
    """Both decode the file to the same."""
    verdict, rule, file = decoder.decode(data)
    assert (verdict, rule) == (0, "")
    assert tensors(file)[0] == expected(data)


def verdict_of(data: bytes) -> int:
    """The verdict of the package on a whole file."""
    try:
        tqcodec.decode(data)
    except DecodeError as error:
        return next(number for kind, number in VERDICTS.items() if isinstance(error, kind))
    return 0


def test_example(plain: Batch, sanitized: Batch) -> None:
    for decoder in (plain, sanitized):
        found, metadata = tensors(decoder.decode(example_file.build())[2])
        assert metadata == {}
        assert list(found) == ["w", "b", "t", "e"]
        assert np.frombuffer(found["b"][2], "<f4").tolist() == [-1.5, 0.75, 1.25]
        check(decoder, example_file.build())


def test_golden_files(plain: Batch, sanitized: Batch) -> None:
    for data in damage.golden_files().values():
        check(plain, data)
        check(sanitized, data)
    found = sanitized.decode(damage.golden_files()["integers"])[2]
    assert tensors(found)[1] == {"a": "b"}


def test_library(folder: Path) -> None:
    """Failing allocators, limits, reads, prefixes and flipped bits, under sanitizers."""
    paths = []
    for name, data in damage.golden_files().items():
        paths.append(folder / f"{name}.tqc")
        paths[-1].write_bytes(data)
    try:
        program = build(folder, "test.c", *SANITIZERS)
    except subprocess.CalledProcessError:
        program = build(folder, "test.c", "-O1")
    subprocess.run([str(program), *map(str, paths)], check=True, capture_output=True)


def case_file(case: Case) -> bytes:
    check_value = crc(reconstruct(case.record, case.shape, case.dtype))
    record = Record("x", case.dtype, case.shape, check_value, case.record)
    return write([record], case.tables, {})


@settings(max_examples=200)
@given(case=cases())
def test_records(sanitized: Batch, case: Case) -> None:
    check(sanitized, case_file(case))


@settings(max_examples=100)
@given(array=arrays())
def test_arrays(sanitized: Batch, array: Array) -> None:
    check(sanitized, tqcodec.encode({"a": array, "b": array.ravel()[:1]}, Settings(lossless=True)))


def basis(rng: damage.Rng, length: int) -> Basis:
    rows = int(rng.integers(1, length + 1))
    entries = rng.integers(-2, 3, (rows, length)).astype(np.int32)
    return Basis(
        BasisKind.EXPLICIT,
        entries,
        Vector(rng.integers(0, 3, rows).astype(np.uint8)),
        Vector(np.full(rows, 0, np.uint8)),
    )


def three(parts: Iterable[Part]) -> tuple[Part, Part, Part]:
    """One part for each axis."""
    out, inputs, taps = parts
    return out, inputs, taps


def large_case(seed: int) -> Case:
    """A record of several tiles whose classes have any tables, those that overlap included."""
    rng = np.random.default_rng(seed)
    rows, inputs, taps = (int(n) for n in rng.integers([1, 1, 1], [90, 20, 10]))
    axes = [int(axis) for axis in rng.permutation(3)]
    lengths = (rows, inputs, taps)
    bases = three(basis(rng, n) if rng.integers(3) == 0 else Basis() for n in lengths)
    channels = [
        len(b.entries) if b.entries is not None else n for b, n in zip(bases, lengths, strict=True)
    ]
    columns = channels[1] * channels[2]
    low_bits = int(rng.integers(3) == 0)
    known = []
    for i in range(5):
        weights = rng.integers(1, 600, 5).tolist()
        escape = 4096 - sum(weights)
        known.append(Table(-2, tuple(weights), escape, low_bits=low_bits))
        assert escape > 0, i
    depths = np.where(rng.random(columns) < 0.8, 7, 0).astype(np.uint8)
    kept = int((depths > 0).sum())
    steps = int(rng.choice([0, 1, 3, 32]))
    tile = (int(rng.integers(1, rows + 9)), int(rng.integers(1, columns + 9)))
    indices = np.rint(rng.laplace(0, 3, (channels[0], kept))).clip(-30, 30).astype(np.int32)
    coefficients = indices.copy()
    for band, part in tiles(len(coefficients), kept, tile) if steps else []:
        coefficients[band, part] = from_indices(indices[band, part], steps)
    record = CodedTensor(
        roles=tuple(Axis(axis) for axis in axes),
        scale=(int(rng.integers(1, 1 << 24)), int(rng.integers(-160, 10))),
        quantizer=Quantizer.TRELLIS if steps else Quantizer.UNIFORM,
        steps=steps,
        payload_kind=PayloadKind.RANGE,
        tile=tile,
        bases=bases,
        depths=Vector(depths),
        levels=three(Vector(rng.integers(0, 3, n).astype(np.uint8)) for n in channels),
        table_map=tuple(rng.integers(0, 4, int(rng.integers(1, 7))).tolist()),
        row_scales=Vector(rng.integers(0, 60, rows).astype(np.uint8)),
        multipliers=Vector(rng.integers(0, 12, columns).astype(np.uint8)),
        coefficients=coefficients,
    )
    shape = tuple(lengths[axis] for axis in axes)
    return Case(record, shape, FLOATS[int(rng.integers(len(FLOATS)))], Tables(tuple(known)))


@pytest.mark.parametrize("seed", range(40))
def test_large_records(sanitized: Batch, seed: int) -> None:
    check(sanitized, case_file(large_case(seed)))


@pytest.mark.parametrize(
    "chosen",
    [
        Settings(bits=2),
        Settings(bits=4),
        Settings(snr=40),
        Settings(lossless=True),
    ],
    ids=repr,
)
def test_encoded(plain: Batch, chosen: Settings) -> None:
    rng = np.random.default_rng(3)
    weights = {
        f"{name}.{i}": rng.laplace(0, 0.05, shape).astype(numpy_dtype(DTYPES[name]))
        for i, shape in enumerate([(40, 24, 3, 3), (64, 96), (16, 1, 5, 5), (33,)])
        for name in ("F32", "BF16", "F16", "F64")
    }
    weights["tied"] = weights["F32.0"]
    weights["steps"] = np.arange(300).reshape(3, 100)
    check(plain, tqcodec.encode(weights, chosen))


def test_mutants(sanitized: Batch) -> None:
    for data in damage.mutants(list(damage.golden_files().values()), 2500, 5):
        verdict, rule, file = sanitized.decode(data)
        assert verdict == verdict_of(data), (rule, data.hex())
        assert bool(rule) == bool(verdict)
        if verdict == 0:
            assert tensors(file)[0] == expected(data)


def test_command(command: Path) -> None:
    """Exit codes, and what stands on which stream."""

    def run(data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([str(command), *arguments], input=data, capture_output=True)

    data = damage.golden_files()["raw"]
    done = run(data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert tensors(done.stdout) == (expected(data), {"origin": "golden"})
    damaged = bytearray(data)
    damaged[-1] ^= 1
    done = run(bytes(damaged))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"malformed: [segment.crc] at byte ")
    assert b", tensor 'raw': " in done.stderr
    assert run(b"").returncode == 1
    assert run(b"", "--other").returncode == 2
    newer = bytearray(data[:24])
    newer[9] = 99
    newer += struct.pack("<I", crc(np.frombuffer(newer, np.uint8)))
    done = run(bytes(newer))
    assert (done.returncode, done.stderr[:33]) == (3, b"unsupported: [header.version] at ")
    assert run(struct.pack("<I", 9), "--batch").returncode not in range(5)


def test_memory(command: Path) -> None:
    """A decoder of a small process takes a bomb's refusal, not its memory."""
    resource = pytest.importorskip("resource")
    if sys.platform != "linux":
        pytest.skip("limits of address space differ")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))

    tree = {"tensors": [{"name": "x", "dtype": "F32", "shape": [1 << 40], "coding": 2, "check": 0}]}
    done = subprocess.run(
        [str(command)],
        input=damage.assemble(msgpack.packb(damage._canonical(tree)), []),
        capture_output=True,
        preexec_fn=limit,
    )
    assert done.returncode == 4, done.stderr
