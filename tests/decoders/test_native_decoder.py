"""The decoder in C behind `decode`, `load` and `verify`: the same arrays, the same errors."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from damage import golden_files, mutants
from strategies import using

import tqcodec
from tqcodec.errors import DecodeError, LimitError, MalformedError
from tqcodec.format import native_decoder
from tqcodec.format.container import Container
from tqcodec.format.native_decoder import NativeFile
from tqcodec.format.registry import Coding

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
    metadata = (("made", "by\0hand"), ("", "\U0001f600"))
    return tqcodec.encode(tensors(), tqcodec.Settings(**request.param, metadata=metadata))


def by_python(data: bytes) -> Tensors:
    with using("portable"), tqcodec.open(data) as file:
        return {name: file[name] for name in file}


def by_c(data: bytes, workers: int = 1) -> bool:
    """True where the decoder in C takes all of a file."""
    file = NativeFile.of(data, len(data))
    decoded = file is not None and file.decode_all(workers, None) is not None
    assert decoded == (file is not None and file.visit(workers, unseen, None))
    return decoded


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("workers", [1, 3])
def test_arrays_are_those_of_python(data: bytes, workers: int, tmp_path: Path) -> None:
    assert by_c(data, workers)
    expected = by_python(data)
    assert_equal(tqcodec.decode(data, workers=workers), expected)
    (tmp_path / "x.tqc").write_bytes(data)
    assert_equal(tqcodec.load(tmp_path / "x.tqc", workers=workers), expected)
    for source in (data, tmp_path / "x.tqc"):
        with tqcodec.open(source) as file:
            assert_equal(dict(file), expected)
            assert file.metadata() == {"made": "by\0hand", "": "\U0001f600"}


def test_records_are_those_of_python(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tqc").write_bytes(data)
    container = Container.of(data)
    entries = [e for e in container.directory.entries if e.coding == Coding.TRANSFORM]
    for source in (data, tmp_path / "x.tqc"):
        with tqcodec.open(source) as file:
            for entry in entries:
                if entry.same_as is None:
                    expected = container.record(entry)
                    found = file.record(entry)
                    assert np.array_equal(found.coefficients, expected.coefficients)
                    assert found.roles == expected.roles
                    assert np.array_equal(found.kept, expected.kept)


def test_threads_share_an_open_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tqc").write_bytes(data)
    expected = by_python(data)
    with tqcodec.open(tmp_path / "x.tqc") as file, ThreadPoolExecutor(8) as pool:
        names = list(expected) * 20
        for name, array in zip(names, pool.map(file.__getitem__, names), strict=True):
            assert array.tobytes() == expected[name].tobytes()


def test_a_file_that_is_cut_while_it_is_open(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tqc").write_bytes(data)
    with tqcodec.open(tmp_path / "x.tqc") as file:
        os.truncate(tmp_path / "x.tqc", len(data) - 10)
        with pytest.raises(MalformedError, match=r"container\.length"):
            dict(file)
        with pytest.raises(DecodeError):
            file.decode_all()
    with pytest.raises(ValueError, match="closed"):
        file["scalar"]
    assert file.metadata()


def test_where_no_thread_can_be_started(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_python(data)

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert by_c(data)
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
            assert not by_c(data)
        else:
            assert_equal(tqcodec.decode(data), expected)


# Tensors that are decoded together, where they are read in their order


def layers(count: int = 12) -> bytes:
    """A file of small matrices that share no bundle."""
    rng = np.random.default_rng(1)
    found = {f"w{i}": rng.normal(size=(64, 40 + i)).astype(np.float32) for i in range(count)}
    return tqcodec.encode(found, tqcodec.Settings(bits=3))


def decoded_together(data: bytes, names: list[str], limit: int | None = None) -> list[int]:
    """Tensors of each call of the decoder while these are read, which give what Python does."""
    expected, calls = by_python(data), []
    decode = NativeFile._decode

    def counted(self: NativeFile, task: list[int]) -> Any:
        calls.append(len(task))
        return decode(self, task)

    with mock.patch.object(NativeFile, "_decode", counted), tqcodec.open(data, limit=limit) as file:
        for name in names:
            np.testing.assert_array_equal(file[name], expected[name])
    return calls


def test_what_is_read_in_order_is_decoded_together() -> None:
    names = [f"w{i}" for i in range(12)]
    assert decoded_together(layers(), names) == [1, 11]
    assert decoded_together(layers(), names * 2) == [1, 11] * 2


def test_what_is_read_in_another_order_is_decoded_alone() -> None:
    names = [f"w{i}" for i in (7, 0, 11, 3, 9, 1, 5)]
    assert decoded_together(layers(), names) == [1] * 7


def test_no_more_is_decoded_ahead_than_the_limit_and_some_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"w{i}" for i in range(12)]
    sizes = [64 * (40 + i) * 4 for i in range(12)]
    assert decoded_together(layers(), names, limit=sum(sizes[1:4])) == [1, 3, 2, 2, 2, 2]
    monkeypatch.setattr(native_decoder, "AHEAD", sum(sizes[1:4]))
    assert decoded_together(layers(), names) == [1, 3, 2, 2, 2, 2]


def test_one_that_is_damaged_hurts_none_before_it() -> None:
    data = bytearray(layers())
    with tqcodec.open(bytes(data)) as file:
        entry = file.container.directory.entries[5]
    data[entry.segments[0].offset + 3] ^= 1
    expected = by_python(layers())
    with tqcodec.open(bytes(data)) as file:
        for name in file:
            if name == "w5":
                with pytest.raises(MalformedError, match=r"segment\.crc"):
                    file[name]
            else:
                np.testing.assert_array_equal(file[name], expected[name])


def test_threads_that_read_in_order_get_arrays_of_their_own() -> None:
    data = layers()
    expected = by_python(data)
    with tqcodec.open(data) as file:

        def read(_: int) -> None:
            for name in file:
                array = file[name]
                np.testing.assert_array_equal(array, expected[name])
                array[:] = 0

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(40)))
