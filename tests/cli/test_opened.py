"""Opened files: shared by threads and processes, pickled by their path, closed with one error."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tqcodec
import tqcodec.torch
from tqcodec.format.container import Container

Open = Callable[..., Any]

opens = pytest.mark.parametrize("open_file", [tqcodec.open, tqcodec.torch.open])
EXACT = tqcodec.Settings(lossless=True)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    """Large ones, small ones in bundles, and all of them different."""
    rng = np.random.default_rng(0)
    large = {f"w{i}": rng.normal(size=(64, 64)).astype("f4") for i in range(4)}
    return large | {f"b{i}": rng.normal(size=9).astype("f4") for i in range(4)}


@pytest.fixture(scope="module")
def path(tensors: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("opened") / "m.tqc"
    tqcodec.save(tensors, path, EXACT)
    return path


def is_right(file: Any, tensors: dict[str, Any], rounds: int = 1) -> bool:
    return all(
        np.array_equal(np.asarray(file[name]), array)
        for _ in range(rounds)
        for name, array in tensors.items()
    )


@opens
def test_in_decodes_nothing(open_file: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: Any) -> None:
        raise AssertionError("decoded")

    with open_file(path) as file:
        monkeypatch.setattr(Container, "decode", decode)
        assert "w0" in file
        assert "w0" in file.keys()  # noqa: SIM118 - the view is another class
        assert "none" not in file
        assert 3 not in file
        assert file.get("none") is None
        assert len(file) == 8


@opens
def test_pickled_and_copied(open_file: Open, path: Path, tensors: dict[str, Any]) -> None:
    with open_file(path) as file, open_file(path.read_bytes()) as of_bytes:
        for one in (file, of_bytes):
            for again in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one), copy.copy(one)):
                assert is_right(again, tensors)
                again.close()
        assert is_right(file, tensors)


def test_pickled_by_a_path_from_anywhere(
    path: Path, tensors: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with tqcodec.open(path.name, limit=1 << 20) as file:
        data = pickle.dumps(file)
    monkeypatch.chdir(tmp_path)
    with pickle.loads(data) as again:
        assert is_right(again, tensors)
        assert again.container.limit == 1 << 20


def test_another_file_is_not_taken_for_the_one_that_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "m.tqc"
    tqcodec.save({"w": np.zeros(3)}, path)
    with tqcodec.open(path) as file:
        data = pickle.dumps(file)
        tqcodec.save({"w": np.ones(3)}, path)
        assert file["w"].tolist() == [0, 0, 0]
    with pytest.raises(OSError, match="replaced since"):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)


@opens
@pytest.mark.parametrize("how", ["path", "bytes"])
def test_closed(open_file: Open, how: str, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tqc"
    tqcodec.save({"b0": np.zeros(9, np.float32)}, other, EXACT)
    file = open_file(path if how == "path" else path.read_bytes())
    file["b0"]  # whose bundle is kept
    file.close()
    file.close()
    with open_file(other):  # gets the number that the closed file had
        for name in ("w0", "b0", "b1"):
            with pytest.raises(ValueError, match="closed"):
                file[name]
        with pytest.raises(ValueError, match="closed"):
            pickle.dumps(file)
        with pytest.raises(KeyError):
            file["none"]
    assert "w0" in file
    assert file.metadata() == {}


def test_closed_while_it_is_read(path: Path, tensors: dict[str, Any]) -> None:
    """Another file may get its number meanwhile: right values, or the one error."""
    for _ in range(20):
        file = tqcodec.open(path)
        found: list[Any] = []

        def reads(file: Any = file, found: list[Any] = found) -> None:
            try:
                while True:
                    found.append(is_right(file, tensors))
            except BaseException as error:
                found.append(error)

        thread = threading.Thread(target=reads)
        thread.start()
        while not found:
            pass
        file.close()
        others = [path.open("rb") for _ in range(3)]
        thread.join()
        for other in others:
            other.close()
        assert all(one is True for one in found[:-1])
        assert isinstance(found[-1], ValueError)
        assert "closed" in str(found[-1])


def test_threads(path: Path, tensors: dict[str, Any]) -> None:
    with tqcodec.open(path) as file, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: is_right(file, tensors, 20), range(8)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_processes(path: Path, tensors: dict[str, Any]) -> None:
    with tqcodec.open(path) as file:
        child = os.fork()
        if not child:
            os._exit(0 if is_right(file, tensors, 100) else 1)
        assert is_right(file, tensors, 100)
        assert os.waitpid(child, 0)[1] == 0


class Data(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, file: Any) -> None:
        self.file = file

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> torch.Tensor:
        found: torch.Tensor = self.file[f"w{i % 4}"]
        return found


@pytest.mark.parametrize(
    "method", [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()]
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
def test_data_loaders(method: str, path: Path, tensors: dict[str, Any]) -> None:
    with tqcodec.torch.open(path) as file:
        loader = torch.utils.data.DataLoader(
            Data(file), batch_size=None, num_workers=2, multiprocessing_context=method
        )
        for i, tensor in enumerate(loader):
            assert np.array_equal(tensor.numpy(), tensors[f"w{i % 4}"])


def test_without_positioned_reads(
    path: Path, tensors: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pread", raising=False)
    with tqcodec.open(path) as file, ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: is_right(file, tensors, 5), range(4)))


def test_reads_that_give_less_are_continued(
    path: Path, tensors: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 100), at))
    with tqcodec.open(path) as file:
        assert is_right(file, tensors)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize(
    "use",
    [
        lambda pipe: dict(tqcodec.open(pipe)),
        lambda pipe: dict(pickle.loads(pickle.dumps(tqcodec.open(pipe)))),
        tqcodec.load,
        tqcodec.torch.load,
    ],
)
def test_pipes(use: Any, path: Path, tensors: dict[str, Any], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    thread.start()
    assert is_right(use(pipe), tensors)
    thread.join()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_damage_in_a_pipe_is_told_as_of_a_file(path: Path, tmp_path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: pipe.write_bytes(data))
    thread.start()
    with pytest.raises(tqcodec.MalformedError, match=r"segment\.crc"):
        tqcodec.verify(pipe)
    thread.join()
