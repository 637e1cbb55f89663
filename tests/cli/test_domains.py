"""`decode` of what is arriving and in the transform domain, `info --operations`; the documents."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from made_files import several
from safetensors.numpy import load_file
from strategies import Case, cases

import tqcodec
from tqcodec.cli import commands, decode
from tqcodec.cli.checkpoints import Checkpoint, write
from tqcodec.format.entries import crc
from tqcodec.format.reconstruct import reconstruct
from tqcodec.format.writer import Record
from tqcodec.format.writer import write as write_file

USE = (Path(__file__).resolve().parents[2] / "docs" / "use.md").read_text("utf-8")
Read = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def data() -> bytes:
    return several()


@cache
def reader() -> Read:
    """The reader of coefficients, as it stands in the document but for the name of the file."""
    (code,) = re.findall(r"```python\n(import json\n.*?)```", USE, re.S)
    assert code.count('"coefficients.safetensors"') == 1
    program = compile(code.replace('"coefficients.safetensors"', "PATH"), "use.md", "exec")

    def read(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {"PATH": path}
        exec(program, found)
        tensors: dict[str, Any] = found["tensors"]
        return tensors

    return read


def feed(command: list[str], parts: list[bytes], between: Callable[[], None]) -> int:
    """Run the command line with bytes on standard input; `between` is called between parts."""
    whole = [sys.executable, "-m", "tqcodec", *command]
    with subprocess.Popen(whole, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(parts[0])
        process.stdin.flush()
        between()
        for part in parts[1:]:
            process.stdin.write(part)
        process.stdin.close()
        return process.wait()


def unfinished(parent: int, folder: Path) -> Iterator[int]:
    """Sizes of the files in a folder that children of a process have opened, named or not."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                links = list((process / "fd").iterdir())
                yield from (f.stat().st_size for f in links if str(folder) in str(f.readlink()))


def test_decode_starts_before_the_input_ends(data: bytes, tmp_path: Path) -> None:
    """What has been decoded lies in the folder of the output while the pipe still waits."""
    size = sum(array.nbytes for array in tqcodec.decode(data).values())

    def wait() -> None:
        for _ in range(600):
            if max(unfinished(os.getpid(), tmp_path), default=0) > size // 2:
                return
            time.sleep(0.05)
        raise AssertionError("nothing was written before the input ended")

    if not Path("/proc/self/fd").exists():
        pytest.skip("processes do not show their files here")
    output = tmp_path / "out.safetensors"
    assert feed(["decode", "-", "-o", str(output)], [data[:-1], data[-1:]], wait) == 0
    assert output.stat().st_size > size


def test_what_arrives_gives_the_same_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.tqc").write_bytes(data)
    plain, piped = tmp_path / "plain.safetensors", tmp_path / "piped.safetensors"
    assert commands.main(["decode", str(tmp_path / "m.tqc"), "-o", str(plain)]) == 0
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
    thread.start()
    assert commands.main(["decode", str(tmp_path / "pipe"), "-o", str(piped)]) == 0
    thread.join()
    assert piped.read_bytes() == plain.read_bytes()
    assert feed(["decode", "-", "-f", "-o", str(piped)], [data], lambda: None) == 0
    assert piped.read_bytes() == plain.read_bytes()


def test_a_cut_input_leaves_an_old_output(data: bytes, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"old")
    assert feed(["decode", "-", "-f", "-o", str(output)], [data[:-1]], lambda: None) == 1
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]


def test_coefficients_by_the_reader_of_the_document(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.tqc").write_bytes(data)
    command = ["decode", str(tmp_path / "m.tqc"), "--domain", "transform"]
    assert commands.main(command) == 0
    found = reader()(tmp_path / "m.safetensors")
    expected = tqcodec.decode(data)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    stored = load_file(tmp_path / "m.safetensors")
    assert stored["coefficients/matrix"].dtype == np.int8
    assert commands.main([*command, "-o", str(tmp_path / "m.npz")]) == 2


@settings(max_examples=80)
@given(case=cases())
def test_every_record_by_the_reader_of_the_document(case: Case) -> None:
    if case.dtype.name not in ("F16", "F32", "F64"):
        return
    check = crc(reconstruct(case.record, case.shape, case.dtype))
    data = write_file([Record("t", case.dtype, case.shape, check, case.record)], case.tables, {})
    with tqcodec.open(data) as file:
        tensors, about = decode.coefficients(file)
        metadata = {decode.KEY: json.dumps(about)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "t.safetensors"
            write(str(path), Checkpoint(tensors, metadata))
            assert reader()(path)["t"].tobytes() == file["t"].tobytes()


def test_operations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    sparse = rng.normal(size=(64, 32, 3, 3)).astype("f4")
    sparse[:, 10:] = 0  # whole columns
    tensors = {"sparse": sparse, "wide": rng.normal(size=(32, 64)).astype("f4")}
    tensors |= {"depthwise": rng.normal(size=(64, 1, 3, 3)).astype("f4")}
    tqcodec.save(tensors, tmp_path / "m.tqc", tqcodec.Settings(snr=20, transform="dct"))
    found = {layer.name: layer for layer in tqcodec.operations(tmp_path / "m.tqc")}
    one = found["sparse"]
    assert (one.kept, one.columns, one.dense) == (90, 288, 64 * 288)
    assert one.transform == 90 * 9 + 90 * 64
    assert (one.way, one.least) == ("transform", one.transform)
    for layer in found.values():
        assert layer.least <= layer.dense
    assert found["depthwise"].way == "dense"
    assert commands.main(["info", str(tmp_path / "m.tqc"), "--operations"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"sparse +64x32x3x3 +transform +90/288 +18432 +6570", shown)
    assert commands.main(["info", str(tmp_path / "m.tqc"), "--operations", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["operations"]
    assert document["dense"] == sum(layer.dense for layer in found.values())
    assert document["least"] == sum(layer.least for layer in found.values())
