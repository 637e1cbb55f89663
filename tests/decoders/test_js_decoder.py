"""The JavaScript decoder: its own tests, and its answers beside those of the package."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import damage
import ml_dtypes
import numpy as np
import pytest
from batch_client import Batch
from numpy.typing import NDArray

import tqcodec
from tqcodec.errors import LimitError, MalformedError, UnsupportedError

ROOT = Path(__file__).parents[2] / "decoders" / "js"
NODE = shutil.which("node")
OLDEST = (18, 15)


def _version() -> tuple[int, ...]:
    if NODE is None:
        return ()
    out = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(number) for number in out.lstrip("v").split("."))


pytestmark = pytest.mark.skipif(_version() < OLDEST, reason="no Node.js 18.15 or newer")


@pytest.fixture(scope="module")
def decoder() -> Iterator[Batch]:
    assert NODE is not None
    batch = Batch([NODE, str(ROOT / "tqcdec.mjs")])
    yield batch
    batch.close()


def _parse(data: bytes) -> tuple[list[tuple[str, tuple[int, ...], bytes]], dict[str, str]]:
    """Name, shape and bytes of each tensor in order, and the metadata."""
    (size,) = struct.unpack_from("<Q", data)
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    body, end, tensors = data[8 + size :], 0, []
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        assert start == end
        end = stop
        tensors.append((name, tuple(entry["shape"]), body[start:stop]))
    assert end == len(body)
    return tensors, metadata


def _expected(data: bytes) -> tuple[list[tuple[str, tuple[int, ...], bytes]], dict[str, str]]:
    with tqcodec.open(data) as file:
        tensors = [(name, file[name].shape, file[name].tobytes()) for name in file]
        return tensors, dict(file.metadata())


def _verdict(data: bytes) -> int:
    try:
        tqcodec.decode(data)
    except MalformedError:
        return 1
    except UnsupportedError:
        return 3
    except LimitError:
        return 4
    return 0


def _tensors(seed: int) -> dict[str, NDArray[Any]]:
    """Tensors of every type, of values that differ much in size, and of odd shapes."""
    rng = np.random.default_rng(seed)
    out: dict[str, NDArray[Any]] = {"empty": np.zeros((0, 4), np.float32), "scalar": np.array(2.5)}
    spread = np.exp(rng.normal(size=(40, 1, 1, 1)))
    floats = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]
    for kind in [*floats, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]:
        name = np.dtype(kind).name
        out[f"{name}.conv"] = (rng.normal(size=(40, 24, 3, 3)) * spread).astype(kind)
        out[f"{name}.linear"] = (rng.normal(size=(70, 50)) * 0.02).astype(kind)
        out[f"{name}.bias"] = rng.normal(size=33).astype(kind)
    out["special"] = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-42], np.float32)
    for name in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"):
        info = np.iinfo(name)
        out[name] = rng.integers(info.min, info.max, (9, 5), dtype=name, endpoint=True)
        out[f"{name}.small"] = rng.integers(0, 100, 300).astype(name)
    out["bool"] = rng.integers(0, 2, (3, 7)).astype(bool)
    out["tied"] = out["float32.conv"]
    return out


@pytest.mark.parametrize("path", sorted((ROOT / "test").glob("*.test.js")), ids=lambda p: p.name)
def test_own_tests(path: Path) -> None:
    """The package's tests pass; what they skip, as a tool is missing, is skipped here as well."""
    assert NODE is not None
    command = [NODE, "--test", "--test-reporter=tap", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = re.findall(r"^ *ok \d+ - (.*) # SKIP (.*)$", done.stdout, re.M)
    if skipped:
        pytest.skip("; ".join(f"{name}: {reason}" for name, reason in skipped))


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 2},
        {"bits": 3, "payload": "fixed"},
        {"bits": 4, "transform": "dct"},
        {"bits": 3, "transform": "klt"},
        {"snr": 30.0, "side_bits": None, "effort": 9},
        {"snr": 90.0, "transform": "none"},
        {"lossless": True, "metadata": (("key", "\N{GREEK SMALL LETTER LAMDA}\n"),)},
    ],
    ids=str,
)
def test_same_tensors(decoder: Batch, options: dict[str, Any]) -> None:
    data = tqcodec.encode(_tensors(len(str(options))), tqcodec.Settings(**options))
    verdict, rule, output = decoder.decode(data)
    assert (verdict, rule) == (0, "")
    assert _parse(output) == _expected(data)


@pytest.mark.parametrize("name", list(damage.golden_files()))
def test_golden_files(decoder: Batch, name: str) -> None:
    data = damage.golden_files()[name]
    assert _parse(decoder.decode(data)[2]) == _expected(data)


def test_same_verdicts(decoder: Batch) -> None:
    """Mutants that reach the depths of a decoder: same verdict, same tensors."""
    files = list(damage.golden_files().values())
    decoded = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in damage.mutants(files, 1500, 20):
            verdict, rule, output = decoder.decode(data)
            assert verdict == _verdict(data), f"{rule}: {data.hex()}"
            if verdict == 0:
                assert _parse(output) == _expected(data), data.hex()
                decoded += 1
    assert decoded > 50
