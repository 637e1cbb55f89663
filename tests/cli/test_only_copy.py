"""The only copy is safe: outputs that are inputs, that cannot be written, parts left out."""

from __future__ import annotations

import argparse
import collections
import datetime
import fractions
import functools
import json
import operator
import os
import pathlib
import shlex
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import tqcodec
import tqcodec.torch
from tqcodec.cli import checkpoints, commands
from tqcodec.common.progress import Progress
from tqcodec.errors import EncodeError

Run = Callable[[str], tuple[int, str, str]]

CODE = """
import torch
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 12))
"""


def weights(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).astype("f4")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of every kind that is read, in the working directory."""
    monkeypatch.chdir(tmp_path)
    arrays = {"w": weights(64, 64)}
    save_file(arrays, "a.safetensors")
    save_file(arrays, "s-1.safetensors")
    Path("s.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "s-1.safetensors"}})
    )
    np.savez("n.npz", **arrays)
    torch.save({"w": torch.from_numpy(arrays["w"])}, "c.pth")
    Path("net.py").write_text(CODE)
    namespace: dict[str, Any] = {}
    exec(CODE, namespace)
    model = namespace["network"]()
    tqcodec.torch.save(model, "m.tqc", tqcodec.Settings(bits=6))
    for name in ("m.safetensors", "m.html", "m.png", "m.csv"):  # as somebody may name them
        Path(name).write_bytes(Path("m.tqc").read_bytes())
    np.savez("data.npz", images=weights(8, 3, 4, 4))
    tqcodec.torch.calibrate(model, [torch.rand(4, 3, 4, 4)]).save("stats.npz")
    Path("stats.csv").write_bytes(Path("stats.npz").read_bytes())
    Path("images").mkdir()
    Path("images/1.png").write_bytes(b"the only picture")
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(line: str) -> tuple[int, str, str]:
        code = commands.main(shlex.split(line))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


NET = "--model net.py:network --data data.npz"


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("a.safetensors", "encode a.safetensors -o {}"),
        ("n.npz", "encode n.npz -o {}"),
        ("c.pth", "encode c.pth -o {}"),
        ("s.safetensors.index.json", "encode s.safetensors.index.json -o {}"),
        ("s-1.safetensors", "encode s.safetensors.index.json -o {}"),
        ("stats.npz", "encode c.pth --statistics stats.npz -o {}"),
        ("net.py", f"encode {NET} -o {{}}"),
        ("data.npz", f"encode {NET} -o {{}}"),
        ("images/1.png", "encode --model net.py:network --data images -o {}"),
        ("m.safetensors", "decode m.safetensors -o {}"),
        ("m.html", "report m.html -o {}"),
        ("data.npz", f"calibrate {NET} -o {{}}"),
        ("images/1.png", "calibrate --model net.py:network --data images -o {}"),
        ("images/1.png", "sweep --model net.py:network --data images --bits 4 -o {}"),
    ],
)
def test_an_output_that_is_an_input_is_refused(
    output: str, line: str, run: Run, folder: Path
) -> None:
    before = Path(output).read_bytes()
    ending = Path(output).suffix
    Path(f"symbolic{ending}").symlink_to(output)
    Path(f"hard{ending}").hardlink_to(output)
    (folder / "sub").mkdir()
    Path("folder").symlink_to(folder)
    same = [
        output, f"./{output}", str(folder / output), f"sub/../{output}", f"folder/{output}",
        f"symbolic{ending}", f"hard{ending}",
    ]  # fmt: skip
    names = sorted(p.name for p in folder.iterdir())
    for name in same:
        code, out, err = run(line.format(name) + " -f")
        assert (code, out) == (2, ""), name
        assert "is the same file as the input" in err
        assert name in err
        assert Path(output).read_bytes() == before
        assert sorted(p.name for p in folder.iterdir()) == names


@pytest.mark.parametrize(
    "line",
    [
        "decode m.safetensors -f",  # whose output has that name too
        "report m.html -f",
        f"sweep {NET} --statistics stats.csv --bits 4 -o stats.png -f",  # whose table has it
    ],
)
def test_also_one_that_was_not_named(line: str, run: Run, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    code, _, err = run(line)
    assert (code, "is the same file as the input" in err) == (2, True)
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "line",
    ["encode - -o a.safetensors -f < a.safetensors", "encode a.safetensors -o - >> a.safetensors"],
)
def test_also_by_redirection(line: str, folder: Path) -> None:
    before = Path("a.safetensors").read_bytes()
    command = f"{shlex.quote(sys.executable)} -m tqcodec {line}"
    done = subprocess.run(command, shell=True, capture_output=True, check=False)
    assert (done.returncode, b"the same file" in done.stderr) == (2, True)
    assert Path("a.safetensors").read_bytes() == before


def test_what_is_not_written_may_be_an_input(run: Run, folder: Path) -> None:
    assert run("encode a.safetensors -o a.safetensors --dry-run -e 1")[0] == 0
    assert run("encode a.safetensors -o b.tqc -e 1")[0] == 0


def outputs_that_cannot_be(folder: Path) -> list[str]:
    (folder / "notes").touch()
    (folder / "archive").mkdir(exist_ok=True)
    found = ["nothing/m.tqc", "archive", "archive/", "notes/m.tqc", "x" * 300, "a\0b.tqc"]
    closed = [name for name in ("/sys", "/proc") if Path(name).is_dir()]  # not even for root
    return [*found, *(f"{name}/m.tqc" for name in closed)]


def saved_from_torch(tensors: dict[str, np.ndarray], output: str, progress: Progress) -> None:
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    tqcodec.torch.save(state, output, progress=progress)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(folder: Path) -> None:
    stages: list[str] = []

    def progress(stage: str, *_: int) -> None:
        stages.append(stage)

    for output in outputs_that_cannot_be(folder):
        for save in (tqcodec.save, saved_from_torch):
            with pytest.raises(OSError) as caught:
                save({"w": weights(8, 8)}, output, progress=progress)
            assert caught.value.filename == output
            assert ".tqc-" not in str(caught.value)
    assert stages == []
    assert not list(folder.rglob(".tqc-*"))


def test_also_on_the_command_line(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("work before the refusal")

    for module in ("encode", "decode", "load"):
        monkeypatch.setattr(tqcodec.api, module, work)
    monkeypatch.setattr(tqcodec.cli.describe, "info", work)
    for output in outputs_that_cannot_be(folder):
        quoted = shlex.quote(output)
        for line in (f"encode a.safetensors -o {quoted}", f"decode m.tqc -o {quoted}",
                     f"report m.tqc -o {quoted}", f"calibrate {NET} -o {quoted}"):  # fmt: skip
            code, _, err = run(line)
            assert code == 2, line
            assert err.startswith(f"tqcodec: {' '.join(output.split())}: "), err
            assert ".tqc-" not in err


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users")
def test_a_file_of_somebody_else_in_a_common_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("m.tqc").chmod(0o666)
    folder.chmod(0o1777)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match="another user"):
        tqcodec.save({"w": weights(8, 8)}, "m.tqc")


def test_content_that_the_output_cannot_hold_is_refused_before_the_work(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tqcodec.save({"w": weights(8), "w.npy": weights(9)}, "twins.tqc")
    tqcodec.save({"a\0b": weights(8)}, "nul.tqc")
    tqcodec.torch.save({"half": torch.ones(8, dtype=torch.bfloat16)}, "half.tqc")
    tqcodec.save({"__metadata__": weights(8)}, "meta.tqc")
    monkeypatch.setattr(tqcodec.api, "load", None)
    for line, name in (
        ("decode twins.tqc -o x.npz", "'w.npy'"),
        ("decode nul.tqc -o x.npz", "'a\\x00b'"),
        ("decode half.tqc -o x.npz", "bfloat16"),
        ("decode meta.tqc -o x.safetensors", "'__metadata__'"),
    ):
        code, _, err = run(line)
        assert (code, name in err, err.count("\n")) == (2, True, 1), err
        assert not list(folder.glob("x.*"))


def test_npz_is_read_by_its_members(folder: Path) -> None:
    tensors = {"w": weights(8), "w.npy": -weights(8), "x.npy": weights(3)}
    np.savez("twins.npz", **tensors)
    found = checkpoints.read("twins.npz").tensors
    assert set(found) == set(tensors)
    assert all(np.array_equal(found[name], array) for name, array in tensors.items())
    checkpoints.write("alone.npz", checkpoints.Checkpoint({"x.npy": tensors["x.npy"]}))
    with np.load("alone.npz") as file:
        assert np.array_equal(file["x.npy"], tensors["x.npy"])
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile("two.npz", "w") as archive:
        data = zipfile.Path("twins.npz", "w.npy").read_bytes()
        archive.writestr("w.npy", data)
        archive.writestr("w.npy", data)
    with pytest.raises(EncodeError, match="two arrays are named 'w'"):
        checkpoints.read("two.npz")


def safetensors(header: str, body: bytes = bytes(16)) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + body


FIELD = '{"dtype": "F32", "shape": [2], "data_offsets": [%d, %d]}'


def test_names_that_come_twice_are_refused(folder: Path) -> None:
    first, second = FIELD % (0, 8), FIELD % (8, 16)
    Path("x.safetensors").write_bytes(safetensors(f'{{"a": {first}, "a": {second}}}'))
    with pytest.raises(EncodeError, match=r"x\.safetensors.*'a' is in it 2 times"):
        checkpoints.read("x.safetensors")
    Path("x.safetensors.index.json").write_text('{"weight_map": {"w": "s-1", "w": "s-2"}}')
    with pytest.raises(EncodeError, match="'w' is in it 2 times"):
        checkpoints.read("x.safetensors.index.json")


def test_metadata_that_is_null(folder: Path) -> None:
    Path("x.safetensors").write_bytes(
        safetensors(f'{{"__metadata__": null, "a": {FIELD % (0, 8)}}}', bytes(8))
    )
    assert checkpoints.read("x.safetensors").metadata == {}


def test_metadata_beyond_the_directory_leaves_the_old_file(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqcodec.encoder.plan.MAX_DIRECTORY", 10_000)
    assert run("encode a.safetensors -o x.tqc -e 1")[0] == 0
    before = Path("x.tqc").read_bytes()
    save_file({"w": weights(64, 64)}, "a.safetensors", {"tags": "x" * 10_000})
    code, _, err = run("encode a.safetensors -o x.tqc -f")
    assert (code, "10004 bytes of metadata" in err) == (2, True)
    assert Path("x.tqc").read_bytes() == before
    # What only the writer can count is refused by the writer.
    monkeypatch.setattr("tqcodec.format.header.MAX_DIRECTORY", 1_000)
    with pytest.raises(EncodeError, match="names and metadata are too much"):
        tqcodec.encode({f"w{i}": np.zeros(3) for i in range(60)})


# Checkpoints.


def state(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(weights(8, 8)) for name in names}


OPTIMIZER = {
    "state": {0: {"exp_avg": torch.ones(8, 8), "step": torch.tensor(1.0)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}
BY_NAME = {"state": {"a": {"exp_avg": torch.ones(8, 8)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("value", "names", "left_out"),
    [
        (state("a"), ["a"], []),
        ({"state_dict": state("a"), "epoch": 3}, ["a"], ["epoch (int)"]),
        ({"model": state("a"), "optimizer": OPTIMIZER}, ["a"], ["optimizer (2 tensors)"]),
        ({"model": state("a"), "optimizer": BY_NAME}, ["a"], ["optimizer (1 tensor)"]),
        ({"state_dict": {}, "model": state("a")}, ["a"], ["state_dict (dict)"]),
        ({"net": {"weights": state("a"), "x": 1}, "y": None}, ["a"],
         ["y (NoneType)", "net.x (int)"]),
        ({"state_dict": state("a"), "best": torch.tensor(1.0)}, ["a"], ["best (1 tensor)"]),
        ({"state_dict": state("a"), "scaler": {"scale": torch.tensor(2.0)}}, ["a"],
         ["scaler (1 tensor)"]),
        ({"state_dict": state("a"), "hooks": {"x": {"score": torch.ones(1), "path": "p"}}}, ["a"],
         ["hooks (1 tensor)"]),
        ({"biases": {"a": torch.ones(3)}, "n": 1}, ["a"], ["n (int)"]),
    ],
)  # fmt: skip
def test_what_is_left_out_of_a_checkpoint_is_named(
    value: Any, names: list[str], left_out: list[str], run: Run, folder: Path
) -> None:
    torch.save(value, "x.pt")
    found = checkpoints.read("x.pt")
    assert list(found.tensors) == names
    assert list(found.left_out) == left_out
    code, out, err = run("encode x.pt -e 1 --json --quiet")
    assert code == 0
    assert json.loads(out)["left_out"] == left_out
    assert err == "".join(f"tqcodec: x.pt: left out: {one}\n" for one in left_out)


TWO = {
    "averaged": ({"model": state("a"), "model_ema": state("a"), "head.weight": torch.ones(2, 2)},
                 ["'' (1 tensor: head.weight)", "'model' (1 tensor: a)", "'model_ema'"]),
    "ema": ({"state_dict": state("a"), "state_dict_ema": state("a")}, ["'state_dict_ema'"]),
    "names": ({"state_dict": state("a"), "model": state("b", "c", "d")},
              ["'model' (3 tensors: b, c, ...)"]),
    "nested": ({"nets": {"g": state("a"), "d": {"state_dict": state("b")}}},
               ["'nets.g'", "'nets.d.state_dict'"]),
    "many": ({f"n{i}": state("a") for i in range(20)}, ["'n7'", "12 others"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(TWO))
def test_several_state_dicts_are_listed(kind: str, run: Run, folder: Path) -> None:
    value, listed = TWO[kind]
    torch.save(value, "x.pt")
    code, _, err = run("encode x.pt")
    assert (code, err.count("\n")) == (2, 1)
    assert "x.pt: several state dicts, --key takes one of: " in err
    assert all(one in err for one in listed), err
    assert not Path("x.tqc").exists()


def test_key_takes_one(run: Run, folder: Path) -> None:
    torch.save(TWO["averaged"][0], "x.pt")
    code, _, err = run("encode x.pt --key model_ema -e 1")
    assert code == 0
    assert list(tqcodec.load("x.tqc")) == ["a"]
    assert "left out: model (1 tensor)" in err
    assert "left out: head.weight (1 tensor)" in err
    assert run("encode x.pt --key '' -e 1 -f")[0] == 0
    assert list(tqcodec.load("x.tqc")) == ["head.weight"]
    torch.save(TWO["nested"][0], "x.pt")
    assert run("encode x.pt --key nets.d.state_dict -e 1 -f")[0] == 0
    assert list(tqcodec.load("x.tqc")) == ["b"]
    code, _, err = run("encode x.pt --key nets -f")
    assert (code, "no state dict 'nets'; there are: 'nets.g'" in err) == (2, True)
    code, _, err = run("encode a.safetensors --key w")
    assert (code, "only checkpoints of PyTorch" in err) == (2, True)
    code, _, err = run(f"encode {NET} --key w -o y.tqc")
    assert (code, "--key needs IN" in err) == (2, True)


def test_a_checkpoint_that_holds_itself(folder: Path) -> None:
    value: dict[str, Any] = {"state_dict": state("a"), "list": []}
    value["self"] = value
    value["list"].append(value["list"])
    torch.save(value, "x.pt")
    assert list(checkpoints.read("x.pt").tensors) == ["a"]


def test_tensors_of_shards_that_the_index_lacks_are_named(run: Run, folder: Path) -> None:
    save_file({"w": weights(8, 8), "more": weights(8, 8)}, "s-1.safetensors")
    code, _, err = run("encode s.safetensors.index.json -e 1 --quiet")
    assert code == 0
    assert err.endswith("left out: tensor 'more' of s-1.safetensors\n")


class Config(collections.namedtuple("Config", "depth")):
    pass


@pytest.mark.parametrize(
    ("thing", "culprit"),
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.float64(1.5), "numpy"),
        (pathlib.PurePosixPath("x"), "PurePosixPath"),
        (functools.partial(operator.add, 1), "functools.partial"),
        (Config(3), "Config"),
        (fractions.Fraction(1, 3), "fractions.Fraction"),
        (datetime.date(2020, 1, 1), "datetime.date"),
        (torch.nn.Linear(8, 8), "torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.parametrize("archive", [True, False])
def test_classes_that_torch_does_not_load_safely_are_named(
    thing: Any, culprit: str, archive: bool, run: Run, folder: Path
) -> None:
    for value in (thing, {"state_dict": state("a"), "thing": thing}):
        torch.save(value, "x.ckpt.pt", _use_new_zipfile_serialization=archive)
        code, _, err = run("encode x.ckpt.pt")
        assert (code, err.count("\n")) == (2, 1), err
        assert err.startswith("tqcodec: x.ckpt.pt: holds ")
        assert culprit in err
        assert "state_dict()" in err
        assert "\x1b" not in err


def test_damaged_archives_are_named_as_such(run: Run, folder: Path) -> None:
    torch.save(state("a", "b"), "full.pt")
    data = Path("full.pt").read_bytes()
    for part in (0, 1, len(data) // 50, len(data) // 3, len(data) * 9 // 10, len(data) - 1):
        Path("x.pt").write_bytes(data[:part])
        code, _, err = run("encode x.pt")
        assert (code, err.count("\n")) == (2, 1)
        assert "x.pt: " in err
        assert part < 4 or "incomplete or damaged" in err, (part, err)
    # torch itself does not look at the checksums.
    at = data.index(weights(8, 8).tobytes())
    Path("x.pt").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(EncodeError, match="wrong checksum of 'full/data/0'"):
        checkpoints.read("x.pt")


@pytest.mark.skipif(
    not hasattr(torch.serialization, "set_crc32_options"), reason="torch writes all checksums"
)
def test_archives_without_checksums(folder: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state("a", "b"), "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert list(checkpoints.read("x.pt").tensors) == ["a", "b"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_named(run: Run, folder: Path) -> None:
    torch.jit.trace(torch.nn.Linear(8, 8), torch.zeros(1, 8)).save("x.pt")
    code, _, err = run("encode x.pt")
    assert (code, err.count("\n")) == (2, 1)
    assert "x.pt: a TorchScript archive" in err


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


@pytest.mark.parametrize("name", ["x.pt", "x.npz", "x.safetensors", "x.safetensors.index.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(POINTER, "a Git LFS pointer"), (b"\n<!DOCTYPE html>\n<html>", "a web page"), (b"", "empty")],
)
def test_what_downloads_leave_in_place_of_a_file(
    name: str, content: bytes, message: str, folder: Path
) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(EncodeError, match=f"{name}: .*{message}"):
        checkpoints.read(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize("name", ["a.safetensors", "n.npz", "c.pth", "s.safetensors.index.json"])
def test_all_kinds_are_read_from_pipes(name: str, folder: Path) -> None:
    os.mkfifo(f"pipe-{name}")
    writer = subprocess.Popen(["cp", name, f"pipe-{name}"])
    assert list(checkpoints.read(f"pipe-{name}").tensors) == ["w"]
    assert writer.wait() == 0


def test_two_outputs_of_which_one_fails_are_both_as_before(folder: Path) -> None:
    Path("new.csv").write_bytes(b"old")
    with pytest.raises(OSError, match=r"no/new\.png"):
        checkpoints.write_together({"new.csv": b"table", "no/new.png": b"picture"})
    assert Path("new.csv").read_bytes() == b"old"
    assert not list(folder.glob(".tqc-*"))
    checkpoints.write_together({"new.csv": b"table", "new.png": b"picture"})
    assert (Path("new.csv").read_bytes(), Path("new.png").read_bytes()) == (b"table", b"picture")


def _open_header() -> bytes:
    """An array whose header numpy cannot tokenize."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, ".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(12)


@pytest.mark.parametrize("kind", ["header", "compressed"])
def test_damage_of_which_libraries_say_anything(kind: str, folder: Path, run: Run) -> None:
    packing = zipfile.ZIP_LZMA if kind == "compressed" else zipfile.ZIP_STORED
    for name in ("x.npz", "x.zip"):
        with zipfile.ZipFile(name, "w", packing) as archive:
            archive.writestr("about.npy", _open_header())
        if kind == "compressed":
            data = bytearray(Path(name).read_bytes())
            at = data.index(b"about.npy") + len(b"about.npy")
            data[at + 4 : at + 9] = b"\xff" * 5  # properties of the compression
            Path(name).write_bytes(data)
    Path("x.pt").write_bytes(Path("x.zip").read_bytes())
    for line in (
        "encode x.npz", "encode x.pt", "info m.tqc --statistics x.npz",
        "calibrate --model net.py:network --data x.npz -o new.npz",
        "calibrate --model net.py:network --data x.zip -o new.npz",
    ):  # fmt: skip
        code, out, err = run(line)
        assert (code, out, err.count("\n")) == (2, "", 1), line
        assert "x." in err
