"""The command line on real files: results, messages, exit codes, and nothing half done."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import tqcodec
from tqcodec import api
from tqcodec.cli import checkpoints, commands
from tqcodec.cli.arguments import size
from tqcodec.cli.describe import info
from tqcodec.errors import EncodeError
from tqcodec.format.trellis import indices_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, standard output, standard error."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        code = commands.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(32, 16, 3, 3)).astype(np.float32)
    return {
        "conv.weight": weight,
        "tied.weight": weight.copy(),
        "fc.weight": rng.normal(size=(24, 32)).astype(ml_dtypes.bfloat16),
        "fc.bias": rng.normal(size=24).astype(np.float32),
        "steps": np.array(17),
        "empty": np.zeros((0, 4), np.float32),
    }


@pytest.fixture(scope="module")
def folder(tensors: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`model.safetensors` and `model.tqc` made of it; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("files")
    save_file(tensors, folder / "model.safetensors", {"format": "np"})
    settings = tqcodec.Settings(quality=60, effort=4, metadata=(("format", "np"),))
    tqcodec.save(tensors, folder / "model.tqc", settings)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    yield folder
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A file whose last segment is damaged."""
    data = bytearray((folder / "model.tqc").read_bytes())
    data[-1] ^= 1
    (tmp_path / "broken.tqc").write_bytes(data)
    return tmp_path / "broken.tqc"


def metadata(strings: dict[str, str]) -> tqcodec.Settings:
    return tqcodec.Settings(metadata=tuple(strings.items()), effort=1)


def process(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
    program = "import sys; from tqcodec.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, **options)


def test_there_and_back(run: Run, folder: Path, tensors: dict[str, Any], tmp_path: Path) -> None:
    packed, back = tmp_path / "x.tqc", tmp_path / "x.safetensors"
    code, out, err = run("encode", folder / "model.safetensors", "-o", packed, "--lossless")
    assert (code, out) == (0, "")
    assert err.startswith(f"tqcodec: {packed}: 6 tensors")
    code, out, err = run("decode", packed)
    assert (code, err) == (0, "")
    assert out.startswith(f"{back}: 6 tensors")
    found = checkpoints.read(str(back))
    assert found.metadata == {"format": "np"}
    for name, array in tensors.items():
        assert found.tensors[name].dtype == array.dtype
        assert found.tensors[name].shape == array.shape
        assert found.tensors[name].tobytes() == array.tobytes()


def test_default_output_is_beside_the_input(run: Run, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a.b.safetensors"
    copy.write_bytes((folder / "model.safetensors").read_bytes())
    assert run("encode", copy, "-e", 1)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.b.safetensors", "a.b.tqc"]


def test_options_reach_the_settings(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def encode(tensors: Any, settings: tqcodec.Settings, **_: Any) -> bytes:
        seen.append(settings)
        return (folder / "model.tqc").read_bytes()

    monkeypatch.setattr(api, "encode", encode)
    options = "--max-size 1.5k --transform dct --payload fixed --side-bits all -e 3 -j 2"
    rules = ["--rule", "fc.*=lossless", "--rule", "a=b*=step:2,side:3"]
    strings = ["--metadata", "a=b=c", "--metadata", "format=pt"]
    name = folder / "model.safetensors"
    code, _, err = run("encode", name, "--dry-run", "--quiet", *options.split(), *rules, *strings)
    assert (code, err) == (0, "")
    assert seen == [
        tqcodec.Settings(
            max_size=1500,
            transform="dct",
            payload="fixed",
            side_bits=None,
            rules=[("fc.*", "lossless"), ("a=b*", "step:2,side:3")],
            effort=3,
            workers=2,
            metadata=(("format", "pt"), ("a", "b=c")),
        )
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("500k", 500_000), ("2M", 2_000_000), ("1.5g", 1_500_000_000), ("4Ki", 4096)],
)
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "nonsense",
        "encode",
        "encode {model} --bits 2 --snr 20",
        "encode {model} --bits two",
        "encode {model} --max-size 5q",
        "encode {model} --max-size inf",
        "encode {model} --side-bits many",
        "encode {model} --rule lossless",
        "encode {model} --rule *=no-such-option -o {new}",
        "encode {model} --rule no.such.tensor=lossless -o {new}",
        "encode {model} --metadata x",
        "encode {model} --transform fourier",
        "encode {model} -e 10 -o {new}",
        "encode {model} --bits -1 -o {new}",
        "encode {model} -o -  --json",
        "encode {model} --model net.py:network -o {new}",
        "encode {model} --data data.npz -o {new}",
        "encode {model} --no-tune -o {new}",
        "encode --model net.py:network --data data.npz",
        "encode --model net.py:network -o {new}",
        "encode {model} --statistics {missing} -o {new}",
        "encode {model} --statistics {packed} -o {new}",
        "info {packed} --statistics {missing}",
        "encode {model} -o no/such/folder/x.tqc",
        "encode {missing} -o {new}",
        "encode {folder} -o {new}",
        "encode {packed} -o {new}",
        "decode {packed} -o {new}.onnx",
        "decode {missing} -o {new}.npz",
        "info {missing}",
        "info {folder}",
        "dump {missing}",
        "verify {missing}",
        "report {packed} -o {new}.txt",
        "decode {packed} --limit lots",
    ],
)
def test_usage_errors(arguments: str, run: Run, folder: Path, tmp_path: Path) -> None:
    names = {
        "model": folder / "model.safetensors",
        "packed": folder / "model.tqc",
        "missing": folder / "missing.safetensors",
        "folder": folder,
        "new": tmp_path / "new",
    }
    code, out, err = run(*arguments.format(**names).split())
    assert (code, out) == (2, "")
    assert err.startswith("tqcodec: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_refused_overwrite_leaves_the_old_file(run: Run, folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.tqc"
    old.write_text("old")
    code, _, err = run("encode", folder / "model.safetensors", "-o", old)
    assert code == 2
    assert "-f" in err
    assert old.read_text() == "old"
    back = tmp_path / "old.safetensors"
    back.write_text("old")
    assert run("decode", folder / "model.tqc", "-o", back)[0] == 2
    assert back.read_text() == "old"
    assert run("encode", folder / "model.safetensors", "-o", old, "-f", "-e", 1)[0] == 0
    assert run("decode", old, "-o", back, "--force")[0] == 0
    assert "steps" in load_file(back)


@pytest.mark.parametrize(
    ("error", "code"),
    [(EncodeError("no"), 2), (KeyboardInterrupt(), 130), (OSError("full"), 2)],
)
@pytest.mark.parametrize("stage", ["encode", "fsync"])
def test_nothing_partial_when_encode_fails(
    stage: str,
    error: BaseException,
    code: int,
    run: Run,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(*((api, "encode") if stage == "encode" else (os, "fsync")), fail)
    old = tmp_path / "old.tqc"
    old.write_text("old")
    found, out, err = run("encode", folder / "model.safetensors", "-o", old, "-f", "-e", 1)
    assert (found, out) == (code, "")
    assert err.startswith("tqcodec: ")
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_dry_run_writes_nothing(run: Run, folder: Path) -> None:
    code, out, _ = run("encode", folder / "model.safetensors", "--dry-run", "--json", "-e", 1)
    assert code == 0
    document = json.loads(out)
    assert document["dry_run"]
    assert document["output"] == str(folder / "model.tqc")
    assert document["weights"] == 32 * 16 * 9 + 24 * 32
    assert document["bits_per_weight"] == pytest.approx(
        8 * document["bytes"] / document["weights"], abs=1e-4
    )
    assert "would be" in run("encode", folder / "model.safetensors", "--dry-run", "-e", 1)[2]


def test_info(run: Run, folder: Path, tensors: dict[str, Any]) -> None:
    code, out, err = run("info", folder / "model.tqc", "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    by_name = {tensor["name"]: tensor for tensor in data["tensors"]}
    assert list(by_name) == list(tensors)
    assert data["bytes"] == (folder / "model.tqc").stat().st_size
    assert data["decoded_bytes"] == sum(array.nbytes for array in tensors.values())
    own = sum(tensor["bytes"] or 0 for tensor in data["tensors"])
    bundles = sum(bundle["bytes"] for bundle in data["bundles"])
    shared = data["directory_bytes"] + data["tables_bytes"]
    assert own + bundles + shared == data["bytes"]
    conv = by_name["conv.weight"]
    assert conv["coding"] == "transform"
    assert conv["channels"] == 16 * 9 == sum(conv["depths"])
    assert conv["kept"] <= conv["channels"]
    assert conv["snr"] == pytest.approx(24, abs=3)
    assert by_name["tied.weight"]["same_as"] == "conv.weight"
    assert by_name["fc.weight"]["dtype"] == "BF16"
    assert by_name["steps"]["shape"] == []


@pytest.mark.parametrize("payload", ["range", "fixed"])
@pytest.mark.parametrize("effort", [1, 5])
def test_depths_are_those_of_the_indices(payload: str, effort: int) -> None:
    spread = 2.0 ** -np.arange(12)
    array = np.random.default_rng(4).normal(size=(30, 12)) * spread
    data = tqcodec.encode(
        {"w": array.astype(np.float32)},
        tqcodec.Settings(snr=25, payload=payload, effort=effort, transform="none"),
    )
    with tqcodec.open(data) as file:
        (entry,) = file.container.directory.entries
        coded = file.container.record(entry)
        (shown,) = info(file)["tensors"]
    indices = indices_of(coded.coefficients, coded.steps)[0] if coded.steps else coded.coefficients
    wanted = [0] * len(shown["depths"])
    wanted[0] = shown["channels"] - shown["kept"]
    for column in indices.T.tolist():
        needed = max((v if v >= 0 else ~v).bit_length() + 1 for v in column)
        wanted[needed if any(column) else 0] += 1
    assert shown["depths"] == wanted
    assert wanted[0] > 0


def test_info_table(run: Run, folder: Path, tensors: dict[str, Any]) -> None:
    code, out, _ = run("info", folder / "model.tqc")
    assert code == 0
    lines = out.splitlines()
    # Matrices by their bytes, then what else there is.
    names = ["conv.weight", "tied.weight", "fc.weight"]
    assert [line.split()[0] for line in lines[1:4]] == names
    assert sorted(line.split()[0] for line in lines[4:7]) == sorted(set(tensors) - set(names))
    assert "32x16x3x3" in lines[1]
    assert "tied to conv.weight" in lines[2]
    whole = run("info", folder / "model.tqc", "--all")[1].splitlines()
    assert [line.split()[0] for line in whole[1:7]] == list(tensors)
    assert sorted(whole) == sorted(lines)
    sizes = [line for line in lines[:-1] if line.split()[-1].isdigit()]
    assert len({len(line) for line in sizes}) == 1
    assert lines[-1].startswith("6 tensors (")
    assert "bits per weight" in lines[-1]


def test_info_sums_small_tensors(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for i, height in enumerate((16, 48, 32)):
        tensors[f"{i}.bias"] = rng.normal(size=height).astype("f4")
        tensors[f"{i}.weight"] = rng.normal(size=(height, 64)).astype("f4")
        tensors[f"{i}.mask"] = rng.integers(0, 2, (height, 64)).astype(bool)
        tensors[f"{i}.lora.weight"] = rng.uniform(1, 2, (2, 32)).astype("f2")
    tensors["last"] = tensors["1.bias"]
    tqcodec.save(tensors, tmp_path / "x.tqc", tqcodec.Settings(bits=8))
    code, out, _ = run("info", tmp_path / "x.tqc")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows[1:4]] == ["1.weight", "2.weight", "0.weight"]
    sums = [" ".join(row) for row in rows if row[0] == "[3"]
    assert sums == [
        "[3 tensors] 192 elements F16 in bundles weight",
        "[3 tensors] 96 elements F32 in bundles vector",
        "[3 tensors] 6144 elements BOOL in bundles exact: no floating point",
    ]
    assert "last" in [row[0] for row in rows]  # the only one of its kind
    whole = run("info", tmp_path / "x.tqc", "--all")[1]
    assert [line.split()[0] for line in whole.splitlines()[1:14]] == list(tensors)


def test_names_cannot_write_to_the_terminal(run: Run, tmp_path: Path) -> None:
    name = "\x1b[2J../../evil\nsecond line <script>$\\frac$é漢"
    path = tmp_path / "x.tqc"
    tqcodec.save({name: np.ones((16, 16), np.float32)}, path, metadata({"\x1b": "\x1b"}))
    for command in ("info", "dump"):
        code, out, _ = run(command, path)
        assert code == 0
        assert "\x1b" not in out
        assert "\\x1b[2J../../evil\\nsecond line" in out
    assert run("report", path)[0] == 0
    page = (tmp_path / "x.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert run("decode", path, "-o", tmp_path / "x.npz")[0] == 0
    assert {p.name for p in tmp_path.iterdir()} == {"x.tqc", "x.html", "x.npz"}


def test_verify(run: Run, folder: Path, broken: Path) -> None:
    good = folder / "model.tqc"
    assert run("verify", good) == (0, f"{good}: good\n", "")
    code, out, err = run("verify", broken, good)
    assert code == 1
    assert out == f"{good}: good\n"
    assert err.startswith(f"tqcodec: {broken}: malformed: [")
    code, out, err = run("verify", good, broken, folder / "gone", "--json")
    assert code == 1
    document = json.loads(out)
    assert [result["ok"] for result in document] == [True, False, False]
    assert document[1]["rule"] == "segment.crc"
    assert document[1]["verdict"] == "malformed"
    assert document[2]["message"] == "No such file or directory"
    assert err.endswith(f"tqcodec: {folder / 'gone'}: No such file or directory\n")


def test_exit_codes(run: Run, folder: Path, broken: Path, tmp_path: Path) -> None:
    packed, out = folder / "model.tqc", tmp_path / "out.safetensors"
    assert run("decode", broken, "-o", out)[0] == 1
    assert run("info", folder / "model.safetensors")[0] == 1
    assert run("decode", packed, "-o", out, "--limit", "1k")[0] == 4
    assert not out.exists()
    assert run("decode", packed, "-o", out, "--limit", "1M")[0] == 0
    data = bytearray(packed.read_bytes())
    data[8] = 9  # the major version
    data[24:28] = zlib.crc32(bytes(data[:24])).to_bytes(4, "little")
    (tmp_path / "newer.tqc").write_bytes(data)
    for command in ("info", "dump", "verify", "decode"):
        code, _, err = run(command, tmp_path / "newer.tqc")
        assert code == 3
        assert "unsupported: [header.version]" in err
        assert err.count("\n") == 1


def test_a_fault_of_the_program_does_not_look_like_a_malformed_file(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(api, "verify", fail)
    code, _, err = run("verify", folder / "model.tqc")
    assert code == 70
    assert "RuntimeError: a fault" in err


def test_dump(run: Run, folder: Path) -> None:
    code, out, _ = run("dump", folder / "model.tqc", "--json")
    assert code == 0
    document = json.loads(out)
    assert set(document) == {"header", "directory", "tables", "bundles", "heads"}
    assert document["header"]["signature"] == "89 54 51 43 0d 0a 1a 0a"
    assert document["directory"]["metadata"] == {"format": "np"}
    assert all(sum(t["weights"]) + t["escape"] == 4096 for t in document["tables"])
    heads = {head["name"]: head for head in document["heads"]}
    assert heads["conv.weight"]["roles"] == ["out", "in", "taps", "taps"]
    assert len(heads["conv.weight"]["row_scales"]["values"]) == 32
    names = [part["name"] for bundle in document["bundles"] for part in bundle["parts"]]
    assert "fc.bias" in names
    code, out, _ = run("dump", folder / "model.tqc")
    assert code == 0
    assert out.startswith("header: signature=89 54")
    assert all(len(line) < 300 for line in out.splitlines())


def test_dump_of_separate_planes(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.tqc"
    array = np.random.default_rng(5).normal(size=(200, 200)).astype(np.float32)
    tqcodec.save({"w": array}, path, tqcodec.Settings(lossless=True))
    (head,) = json.loads(run("dump", path, "--json")[1])["heads"]
    assert [part["kept"] for part in head["parts"]] == [23]


def test_report(run: Run, folder: Path, tmp_path: Path) -> None:
    packed, page, picture = folder / "model.tqc", tmp_path / "r.html", tmp_path / "r.png"
    assert run("report", packed, "-o", page) == (0, "", "")
    text = page.read_text()
    assert "data:image/png;base64," in text
    assert "http" not in text
    assert "conv.weight" in text
    assert run("report", packed, "-o", picture) == (0, "", "")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run("report", packed, "-o", picture)[0] == 2


def test_report_of_many_tensors_and_of_none(run: Run, tmp_path: Path) -> None:
    path, rng = tmp_path / "x.tqc", np.random.default_rng(6)
    many = {f"layer{i}.{'x' * i}": rng.normal(size=(8, 8)).astype(np.float32) for i in range(50)}
    for tensors in (many, {"b": np.ones(3, np.float32)}, {}):
        tqcodec.save(tensors, path, tqcodec.Settings(effort=1))
        assert run("report", path, "-f") == (0, "", "")
        assert run("info", path)[0] == 0


def test_missing_extras_are_named(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tqcodec.cli.report", "tqcodec.torch", "tqcodec.torch.checkpoint"):
        monkeypatch.delitem(sys.modules, module, raising=False)
        parent, _, name = module.rpartition(".")
        if parent in sys.modules:
            monkeypatch.delattr(sys.modules[parent], name, raising=False)
    for module in ("matplotlib", "torch"):
        monkeypatch.setitem(sys.modules, module, None)
    code, _, err = run("report", folder / "model.tqc", "-o", tmp_path / "x.png")
    assert code == 2
    assert "pip install matplotlib" in err
    code, _, err = run("decode", folder / "model.tqc", "-o", tmp_path / "x.pt")
    assert code == 2
    assert "pip install 'torch>=2.6'" in err


def test_torch_checkpoint(run: Run, tmp_path: Path) -> None:
    state = {"w": torch.randn(16, 16).to(torch.bfloat16), "b": torch.randn(16)}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "x.pt")
    assert run("encode", tmp_path / "x.pt", "--lossless")[0] == 0
    assert run("decode", tmp_path / "x.tqc", "-o", tmp_path / "y.pt")[0] == 0
    back = torch.load(tmp_path / "y.pt", weights_only=True)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_sharded_checkpoint(run: Run, tmp_path: Path) -> None:
    arrays = {name: np.full((9, 9), i, np.float32) for i, name in enumerate("abc")}
    places = {name: f"m-0000{i}-of-00003.safetensors" for i, name in enumerate(arrays, 1)}
    for name, place in places.items():
        save_file({name: arrays[name]}, tmp_path / place)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert run("encode", index, "--lossless")[0] == 0
    found = tqcodec.load(tmp_path / "m.tqc")
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }


def test_standard_streams(folder: Path, tensors: dict[str, Any]) -> None:
    plain = (folder / "model.safetensors").read_bytes()
    packed = process("encode", "-", "--lossless", input=plain)
    assert packed.returncode == 0
    assert packed.stderr.startswith(b"tqcodec: -: 6 tensors")
    back = process("decode", "-", input=packed.stdout)
    assert back.returncode == 0
    found = checkpoints.parse_safetensors(np.frombuffer(back.stdout, np.uint8), "test")
    assert found.tensors["conv.weight"].tobytes() == tensors["conv.weight"].tobytes()
    assert found.metadata == {"format": "np"}
    for command in ("info", "verify", "dump"):
        shown = process(command, "-", input=packed.stdout)
        assert (shown.returncode, shown.stderr) == (0, b"")
    assert process("info", "-", input=packed.stdout[:-1]).returncode == 1
    assert process("encode", "-", input=b"rubbish").returncode == 2


def test_unprintable_on_this_stream(tmp_path: Path) -> None:
    tqcodec.save({"größe": np.ones((9, 9), np.float32)}, tmp_path / "x.tqc", metadata({}))
    done = process(
        "info", tmp_path / "x.tqc", env={**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    )
    assert done.returncode == 0
    assert b"gr\\xf6" in done.stdout


def test_nobody_reads(folder: Path) -> None:
    program = "import sys; from tqcodec.cli import main; sys.exit(main())"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program, "info", folder / "model.tqc"],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    save_file({"w": rng.normal(size=(2000, 1000)).astype(np.float32)}, tmp_path / "x.safetensors")
    program = """
import os, signal, sys, threading
from tqcodec import api, cli
encode = api.encode
def interrupted(*args, **options):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    return encode(*args, **options)
api.encode = interrupted
sys.exit(cli.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "encode", tmp_path / "x.safetensors", "-e", "9"],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, b"")
    assert done.stderr == b"tqcodec: interrupted\n"
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_only_on_a_terminal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, terminal = tmp_path / "x.tqc", Terminal()
    arguments = ["encode", str(folder / "model.safetensors"), "-o", str(out), "-e", "1", "-f"]
    monkeypatch.setattr(sys, "stderr", terminal)
    assert commands.main(arguments) == 0
    assert "%" in terminal.getvalue()
    assert "\x1b[3" not in terminal.getvalue()  # no colours
    assert commands.main(["decode", str(out)]) == 0
    assert "decode" in terminal.getvalue()
    quiet = io.StringIO()
    monkeypatch.setattr(sys, "stderr", quiet)
    assert commands.main(arguments) == 0
    assert "%" not in quiet.getvalue()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert commands.main([*arguments, "--quiet"]) == 0
    assert terminal.getvalue() == ""


def test_encode_ends_with_one_line(run: Run, folder: Path, tmp_path: Path) -> None:
    command = ["encode", folder / "model.safetensors", "-e", 1, "-f", "-o", tmp_path / "x.tqc"]
    for options in ([], ["--json"]):
        code, _, err = run(*command, *options)
        size = (tmp_path / "x.tqc").stat().st_size
        assert code == 0
        assert re.fullmatch(
            rf"tqcodec: \S+x\.tqc: 6 tensors \(.*\), {size} of 38504 bytes \(ratio [\d.]+\), "
            r"[\d.]+ bits per weight \(5376 weights\), no warnings\n",
            err,
        )
    code, _, err = run(*command, "--bits", 1)
    assert code == 0
    *warned, last = err.splitlines()
    assert len(warned) == 1
    assert warned[0].startswith("tqcodec: warning: ")
    assert last.endswith(", 1 warning")
    code, out, err = run(*command, "--bits", 1, "--quiet")
    assert (code, out, err) == (0, "", f"{warned[0]}\n")


def test_help_imports_nothing_heavy() -> None:
    program = """
import sys
from tqcodec import cli
for arguments in (["--help"], ["--version"], ["encode", "--help"], ["encode"], ["nonsense"]):
    cli.main(arguments)
heavy = {"numpy", "torch", "scipy", "matplotlib", "msgpack", "constriction", "tqdm",
         "safetensors", "ml_dtypes"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (0, 2), done.stderr
    assert (
        f"tqcodec {tqcodec.__version__} (format {tqcodec.FORMAT_VERSION}, " in done.stdout.decode()
    )


def test_only_the_torch_edge_imports_torch(folder: Path) -> None:
    program = """
import sys
from tqcodec import cli
assert cli.main(["verify", sys.argv[1]]) == 0
assert cli.main(["info", sys.argv[1]]) == 0
assert not {"torch", "scipy", "matplotlib"} & set(sys.modules)
"""
    command = [sys.executable, "-c", program, str(folder / "model.tqc")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("command", ["info", "decode", "report", "verify"])
def test_files_that_are_something_else_are_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"w": np.zeros(8, np.float32)}, other)
    more = [] if command in ("info", "verify") else ["-o", str(tmp_path / "new.png")]
    if command == "decode":
        more[1] = str(tmp_path / "new.safetensors")
    assert commands.main([command, str(other), *more]) == 1
    assert capsys.readouterr().err.startswith(f"tqcodec: {other}: malformed: [header.signature]")
    assert sorted(tmp_path.iterdir()) == [other]
