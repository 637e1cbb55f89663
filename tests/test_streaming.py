"""Streams, and tensors in the transform domain: the bytes that `decode` gives, at any cut."""

from __future__ import annotations

import io
import json
import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import several
from networks import Network, networks
from strategies import Case, cases, coders, using

import tqcodec
from tqcodec.common.arriving import Arriving
from tqcodec.errors import DecodeError, LimitError, MalformedError
from tqcodec.format.entries import crc
from tqcodec.format.reconstruct import reconstruct
from tqcodec.format.writer import Record, write

Arrays = dict[str, Any]
VECTORS = Path(__file__).resolve().parents[1] / "conformance"


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def same(found: Any, expected: Any) -> bool:
    alike = found.dtype == expected.dtype and found.shape == expected.shape
    return alike and found.tobytes() == expected.tobytes()


def assert_streams(source: Any, expected: Arrays, domain: Any = "weights") -> None:
    seen = []
    for name, tensor in tqcodec.stream(source, domain):
        array = tensor.weights() if domain == "transform" else tensor
        assert same(array, expected[name]), name
        seen.append(name)
    assert sorted(seen) == sorted(expected)


def until_error(source: Any, domain: Any = "weights") -> tuple[Arrays, DecodeError | None]:
    """The tensors that a stream gives, and the error that it ends with."""
    found = {}
    try:
        for name, tensor in tqcodec.stream(source, domain):
            found[name] = tensor.weights() if domain == "transform" else tensor
    except DecodeError as error:
        return found, error
    return found, None


@pytest.fixture(scope="module")
def data() -> bytes:
    return several()


@pytest.fixture(scope="module")
def arrays(data: bytes) -> Arrays:
    return tqcodec.decode(data)


@coders
@settings(max_examples=60)
@given(case=cases())
def test_every_record_is_rebuilt_bit_by_bit(coder: str, case: Case) -> None:
    """Bases on any axis, multipliers, row scales, absent columns, payloads, quantizers, types."""
    check = crc(reconstruct(case.record, case.shape, case.dtype))
    data = write([Record("t", case.dtype, case.shape, check, case.record)], case.tables, {})
    with using(coder), tqcodec.open(data) as file:
        tensor = file.transform("t")
        assert same(tensor.weights(), file["t"])
        assert np.array_equal(tensor.coefficients, case.record.coefficients)
    assert tensor.values is None
    assert tensor.channels[0] == len(tensor.coefficients)
    assert 0 <= tensor.density() <= 1
    with using(coder):
        assert_streams(pieces(data, 7), tqcodec.decode(data), "transform")


def test_records_by_c_as_well(data: bytes, arrays: Arrays) -> None:
    with tqcodec.open(data) as file:
        for name, array in arrays.items():
            assert same(file.transform(name).weights(), array)


@settings(max_examples=15)
@given(network=networks(10), size=st.sampled_from([1, 1000, 1 << 30]))
def test_networks(network: Network, size: int) -> None:
    data = tqcodec.encode(network.tensors(), tqcodec.Settings(snr=15, effort=1))
    expected = tqcodec.decode(data)
    assert_streams(pieces(data, max(size, len(data) // 5000)), expected)
    assert_streams(io.BytesIO(data), expected, "transform")


def test_tensors_without_a_transform_domain_are_what_they_are(data: bytes, arrays: Arrays) -> None:
    with tqcodec.open(data) as file:
        tensor = file.transform("long")
        assert tensor.values is not None
        assert same(tensor.values, arrays["long"])
        assert (tensor.shape, tensor.roles, tensor.density()) == ((20000,), (), 1)
        with pytest.raises(KeyError):
            file.transform("nothing")


@pytest.mark.parametrize("domain", ["weights", "transform"])
def test_sources(data: bytes, arrays: Arrays, domain: str, tmp_path: Path) -> None:
    (tmp_path / "m.tqc").write_bytes(data)
    with (tmp_path / "m.tqc").open("rb") as file:
        assert_streams(file, arrays, domain)
        assert not file.closed
    for source in (tmp_path / "m.tqc", str(tmp_path / "m.tqc"), data, bytearray(data)):
        assert_streams(source, arrays, domain)
    for chunks in (pieces(data, 1), [data], (memoryview(p) for p in pieces(data, 100))):
        assert_streams(chunks, arrays, domain)


def test_what_is_no_source(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="source is an int"):
        tqcodec.stream(3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="domain is 'frequency'"):
        tqcodec.stream(data, "frequency")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="not bytes"):
        list(tqcodec.stream(["text"]))  # type: ignore[list-item]
    with pytest.raises(TypeError, match="not bytes"):
        list(tqcodec.stream(io.StringIO("text")))  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        list(tqcodec.stream(tmp_path / "nothing.tqc"))


@pytest.mark.parametrize("domain", ["weights", "transform"])
def test_cut_anywhere(data: bytes, arrays: Arrays, domain: str) -> None:
    """What came before the cut, then one error, which says that it is a cut."""
    with tqcodec.open(data) as file:
        directory_end = min(s.offset for s in file.container.directory.segments())
    most = 0
    for end in range(0, len(data), 23):
        found, error = until_error([data[:end]], domain)
        assert isinstance(error, MalformedError)
        if end >= directory_end:
            assert error.rule == "container.length"
            assert f"{end} bytes, not {len(data)}" in str(error)
        assert all(same(found[name], arrays[name]) for name in found)
        assert len(found) >= most
        most = len(found)
    assert most == len(arrays) - 1


@settings(max_examples=40)
@given(data=st.data())
def test_damage_is_found_before_it_is_used(data: st.DataObject) -> None:
    good = several()
    arrays = tqcodec.decode(good)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= 1 << data.draw(st.integers(0, 7))
    found, error = until_error(pieces(bytes(bad), 64))
    assert error is not None
    assert all(same(found[name], arrays[name]) for name in found)


def test_bytes_behind_the_end(data: bytes) -> None:
    found, error = until_error([data, b"x"])
    assert "container.length" in str(error)
    assert len(found) == 5
    found, error = until_error(data + b"x")  # whose length is known
    assert "container.length" in str(error)
    assert not found


def test_limits(data: bytes) -> None:
    with pytest.raises(LimitError):
        next(iter(tqcodec.stream([data], limit=10)))


@pytest.mark.parametrize(
    "vector", json.loads((VECTORS / "manifest.json").read_text())["vectors"][::7]
)
def test_verdicts_are_those_of_decode(vector: dict[str, Any]) -> None:
    data = (VECTORS / vector["file"]).read_bytes()
    try:
        expected: Arrays | None = tqcodec.decode(data)
    except DecodeError as error:
        expected, verdict = None, type(error)
    if expected is not None:
        assert_streams(pieces(data, 50), expected)
        assert_streams(data, expected, "transform")
        return
    _, found = until_error(pieces(data, 50))
    assert type(found) is verdict
    until_error(data, "transform")


def test_starts_before_the_input_ends(data: bytes, arrays: Arrays) -> None:
    """Each tensor comes while the writer of a pipe still holds back the last byte of the next."""
    read, write = os.pipe()
    names: list[str] = []
    got = threading.Semaphore(0)
    bounds = [end for end in range(len(data)) if len(until_error([data[:end]])[0])][:1]

    def feed() -> None:
        with os.fdopen(write, "wb", buffering=0) as pipe:
            pipe.write(data[: bounds[0]])
            assert got.acquire(timeout=30)  # the first tensor is there
            pipe.write(data[bounds[0] :])

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(read, "rb") as pipe:
        for name, tensor in tqcodec.stream(pipe):
            assert same(tensor, arrays[name])
            names.append(name)
            got.release()
    thread.join()
    assert sorted(names) == sorted(arrays)


def test_named_pipes(data: bytes, arrays: Arrays, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
    thread.start()
    assert_streams(tmp_path / "pipe", arrays)
    thread.join()


@pytest.mark.parametrize("domain", ["weights", "transform"])
def test_one_tensor_is_held_at_a_time(domain: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"w{i}": rng.normal(size=(200, 300)).astype("f4") for i in range(24)}
    tqcodec.save(tensors, tmp_path / "m.tqc", tqcodec.Settings(lossless=True))
    size = tensors["w0"].nbytes
    del tensors
    tracemalloc.start()
    for _ in tqcodec.stream(tmp_path / "m.tqc", domain):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * size  # one tensor, its bytes, their copies; all together are 24


def test_a_stream_that_is_left_lets_go(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.tqc").write_bytes(data)
    names = tqcodec.stream(tmp_path / "m.tqc")
    next(names)
    names.close()  # type: ignore[attr-defined]


def test_window() -> None:
    window = Arriving(pieces(b"0123456789", 3))
    assert window.hold(0, 4) == 4
    assert window.fetch(1, 9) == b"123"
    window.keep()
    assert window.hold(6, 99) == 4
    assert (window.fetch(6, 2), window.fetch(2, 2), window.fetch(5, 1)) == (b"67", b"23", b"")
