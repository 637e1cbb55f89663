"""The decoder in C behind `decode`, `load` and `verify`: the same arrays, the same errors."""

from __future__ import annotations

import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from fuzz import golden_files, mutants

import tqcodec
from tqcodec import api
from tqcodec.errors import DecodeError, LimitError, MalformedError
from tqcodec.format import native_decoder

pytestmark = pytest.mark.skipif(
    not native_decoder.available(), reason="the decoder in C is not built"
)
Tensors = dict[str, np.ndarray]


def tensors() -> Tensors:
    rng = np.random.default_rng(0)
    large = rng.normal(size=(700, 3100)).astype(np.float32)
    found: Tensors = {
        "large": large,
        "kernels": rng.normal(size=(32, 16, 3, 3)).astype(np.float32),
        "half": rng.normal(size=(50, 40)).astype(np.float16),
        "brain": rng.normal(size=(50, 40)).astype(ml_dtypes.bfloat16),
        "eight": rng.normal(size=(50, 40)).astype(ml_dtypes.float8_e4m3fn),
        "scalar": np.array(3),
        "truth": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float64),
    }
    return found | {"tied": found["kernels"]}


@pytest.fixture(scope="module", params=[{"bits": 3}, {"lossless": True}], ids=str)
def data(request: pytest.FixtureRequest) -> bytes:
    return tqcodec.encode(tensors(), tqcodec.Settings(**request.param))


def by_python(data: bytes) -> Tensors:
    with api.open(data) as file:
        return {name: file[name] for name in file}


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("workers", [1, 3])
def test_arrays_are_those_of_python(data: bytes, workers: int, tmp_path: Path) -> None:
    assert native_decoder.decode(data, None, 1, None) is not None
    assert native_decoder.visit(data, None, workers, unseen, None)
    expected = by_python(data)
    assert_equal(tqcodec.decode(data, workers=workers), expected)
    (tmp_path / "x.tqc").write_bytes(data)
    assert_equal(tqcodec.load(tmp_path / "x.tqc", workers=workers), expected)


def test_where_no_thread_can_be_started(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_python(data)

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert native_decoder.decode(data, None, 1, None) is not None
    for workers in (1, 3):
        assert_equal(tqcodec.decode(data, workers=workers), expected)
        tqcodec.verify(data, workers=workers)
    with pytest.raises(MemoryError, match="can't start new thread"):
        tqcodec.encode(tensors(), tqcodec.Settings(bits=3, workers=2))


def test_arrays_are_aligned_and_of_their_own(data: bytes) -> None:
    found = tqcodec.decode(data)
    for array in found.values():
        assert array.flags.aligned
        assert array.flags.writeable
    assert not np.shares_memory(found["kernels"], found["tied"])


def unseen(index: int, patterns: np.ndarray) -> None:
    """A visitor that looks at nothing."""


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_ends_at_the_number_of_tensors_that_are_work(data: bytes, workers: int) -> None:
    for take, stage in ((tqcodec.decode, "decode"), (tqcodec.verify, "verify")):
        calls: list[tuple[str, int, int]] = []
        take(data, workers=workers, progress=lambda *call: calls.append(call))  # noqa: B023
        own = len(tensors()) - 1  # without the tied one
        assert calls[-1] == (stage, own, own)
        assert [c[1] for c in calls] == sorted(c[1] for c in calls)


def test_errors_are_those_of_python(data: bytes) -> None:
    damaged = bytearray(data)
    damaged[-5] ^= 1
    for take in (tqcodec.decode, tqcodec.verify):
        with pytest.raises(MalformedError, match=r"segment\.crc.*'.+'"):
            take(bytes(damaged), workers=2)
        with pytest.raises(LimitError):
            take(data, limit=0)
        with pytest.raises(LimitError):
            take(data, limit=1000)


def test_it_decodes_what_python_decodes_and_nothing_else() -> None:
    """Mutants whose checksums are right, but for those of the elements."""
    for data in mutants(list(golden_files().values()), 1500, seed=3):
        try:
            expected = by_python(data)
            tqcodec.verify(data)
        except DecodeError:
            assert native_decoder.decode(data, None, 1, None) is None
            assert not native_decoder.visit(data, None, 1, unseen, None)
        else:
            assert_equal(tqcodec.decode(data), expected)
