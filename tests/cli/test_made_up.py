"""``tqcodec encode --model`` without data: inputs that are made from the network alone."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tqcodec.torch
from tqcodec import Settings
from tqcodec.cli import commands
from tqcodec.torch import user_code

Run = Callable[[str], tuple[int, str, str]]

KINDS = Path(__file__).parents[1] / "torch" / "kinds.py"
CODE = """
import torch
from torch import nn
from kinds import KINDS, Convolutions, Detector, Embedding, Regression, Plain, Sound, Tokens
from kinds import Volume, trained, masked as mask

def convolutions(): return trained(Convolutions)
def plain(): return trained(Plain)
def detector(): return trained(Detector)
def regression(): return trained(Regression)
def embedding(): return trained(Embedding)
def tokens(): return trained(Tokens)
def sound(): return trained(Sound)
def volume(): return trained(Volume)

def masked(): return mask()
def pair(): return KINDS["volume"].ways["example"], None
def sounds(): return KINDS["sound"].ways["example"]
def number(): return 3
def fails(): raise KeyError("no such\\nbatch")

class Choosy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 48)

    def forward(self, x):
        if x.shape[1:] != (64,):
            raise RuntimeError("not\\nmine")
        return self.linear(x)

def choosy():
    torch.manual_seed(0)
    return Choosy()

def its_own(): return torch.randn(9, 64)

class Boxes(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 48)

    def forward(self, x):
        y = self.linear(x)
        return [{"boxes": one.view(12, 4), "scores": one.sigmoid(), "found": 48} for one in y]

class Words(Boxes):
    def forward(self, x):
        return ["word" for _ in self.linear(x)]

def boxes():
    torch.manual_seed(0)
    return Boxes()

def words(): return Words()
"""
PICTURES = "--size 16 --mean 127 --std 64"
LINE = r"tqcodec: made 24 inputs from the network in \d+\.\d s; (KL|error) \S+ calibrated, "
LINE += r"\S+ by weights alone on 8 inputs held out\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in a folder that has networks."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(CODE)
    shutil.copy(KINDS, "kinds.py")
    monkeypatch.delitem(sys.modules, "kinds", raising=False)

    def call(line: str) -> tuple[int, str, str]:
        code = commands.main(line.split())
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def encode(kind: str, more: str, output: str = "new.tqc") -> str:
    return f"encode --model net.py:{kind} --images 24 --bits 5 -e 1 -o {output} {more}"


@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        *((k, PICTURES) for k in ("convolutions", "plain", "detector", "regression", "embedding")),
        ("tokens", "--tokens 9"),
        ("tokens", "--example net.py:masked"),
        ("sound", "--example net.py:sounds"),
        ("volume", "--example net.py:pair"),
        ("choosy", "--example net.py:its_own"),
        ("boxes", "--example net.py:its_own"),
    ],
)
def test_networks_of_many_kinds(run: Run, kind: str, ways: str) -> None:
    code, out, err = run(encode(kind, f"{ways} --save-inputs inputs.npz"))
    assert (code, out) == (0, ""), err
    lines = [line for line in err.splitlines(keepends=True) if re.fullmatch(LINE, line)]
    assert len(lines) == 1 and err.splitlines()[-1].startswith("tqcodec: new.tqc: ")
    helped = "tqcodec: warning: calibration did not help" not in err
    assert (" synthetic=16 tuned" in run("info new.tqc")[1]) == helped
    if "KL" in lines[0]:
        assert run(f"eval new.tqc --model net.py:{kind} --data inputs.npz")[0] == 0
    # The same inputs once more, from the file: the same bytes.
    code, _, err = run(encode(kind, "--data inputs.npz", "again.tqc"))
    assert code == 0 and "tqcodec: read 24 inputs; " in err
    assert Path("again.tqc").read_bytes() == Path("new.tqc").read_bytes()


def test_asked_by_name_or_not_at_all(run: Run) -> None:
    for number, more in enumerate(("", "--data synthetic", "--data synthetic -j 2")):
        assert run(encode("convolutions", f"{PICTURES} {more}", f"{number}.tqc"))[0] == 0
        assert Path(f"{number}.tqc").read_bytes() == Path("0.tqc").read_bytes()
    code, _, err = run(encode("convolutions", "--data none", "none.tqc"))
    assert code == 0 and "inputs" not in err
    model = user_code.call("net.py:convolutions")
    wish = Settings(bits=5, effort=1)
    assert Path("none.tqc").read_bytes() == tqcodec.torch.encode(model, wish)
    # What is made, and done with it, is what Python does.
    batches = tqcodec.torch.synthetic_inputs(model, 24, size=16, mean=127, std=64)
    wanted = tqcodec.torch.encode(model, wish, synthetic=batches)
    assert Path("0.tqc").read_bytes() == wanted
    assert run(encode("convolutions", f"{PICTURES} --images 48 --batch 8", "small.tqc"))[0] == 0
    assert "synthetic=40" in run("info small.tqc")[1]


def test_what_json_and_quiet_say(run: Run) -> None:
    code, out, err = run(encode("convolutions", f"{PICTURES} --json --quiet --save-inputs i.npz"))
    about = json.loads(out)["synthetic"]
    assert (code, err, about["inputs"]) == (0, "", 24) and about["seconds"] > 0
    assert set(about["held_out"]) == {
        "samples",
        "measure",
        "calibrated",
        "plain",
        "chance",
        "helped",
    }
    document = json.loads(run(encode("convolutions", "--data i.npz --json -f"))[1])
    assert document["synthetic"] == {**about, "seconds": None} and document["calibrated"] == 3
    document = json.loads(run(encode("convolutions", "--data none --json -f"))[1])
    assert document["synthetic"] is None and document["calibrated"] == 0


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    line = encode("convolutions", f"{PICTURES} --dry-run --save-inputs i.npz")
    code, _, err = run(line)
    assert code == 0 and re.match(LINE, err)
    assert sorted(p for p in tmp_path.iterdir() if p.name != "__pycache__") == before


def test_statistics_without_tuning_and_lossless(run: Run) -> None:
    assert run(encode("convolutions", f"{PICTURES} --save-inputs i.npz"))[0] == 0
    code, out, _ = run("calibrate --model net.py:convolutions --data i.npz -o s.npz --json")
    assert (code, json.loads(out)["images"]) == (0, 16)  # the others are held out
    more = "--data i.npz --statistics s.npz"
    assert run(encode("convolutions", more, "same.tqc"))[0] == 0
    assert Path("same.tqc").read_bytes() == Path("new.tqc").read_bytes()
    code, _, err = run(encode("convolutions", "--statistics s.npz", "alone.tqc"))
    assert code == 0 and "inputs" not in err
    assert "synthetic=16\n" in run("info alone.tqc")[1]
    assert run(encode("convolutions", "--data i.npz --no-tune", "plain.tqc"))[0] == 0
    assert "tuned" not in run("info plain.tqc")[1]
    exact = encode("convolutions", "", "exact.tqc").replace("--bits 5", "--lossless")
    code, _, err = run(exact)
    assert code == 0 and "inputs" not in err
    code, _, err = run(f"{exact} -f --data i.npz")
    assert code == 0 and "tqcodec: read 24 inputs\n" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (encode("plain", ""), "pictures need --size, --mean, --std, others --tokens or --example"),
        (encode("plain", "--data synthetic"), "need --size, --mean, --std, others"),
        (encode("plain", "--size 16"), "need --mean, --std, others"),
        (encode("plain", "--size 16 --std 3"), "need --mean, others"),
        (encode("plain", "--mean 1 --std 3"), "need --size, others"),
        (encode("plain", ""), "--data none encodes weights alone"),
        (encode("plain", f"{PICTURES} --tokens 4"), "cannot all say what the network takes"),
        (encode("plain", "--example net.py:pair --size 3"), "--size and --example cannot all"),
        (encode("plain", "--example net.py:pair --tokens 3"), "--tokens and --example cannot all"),
        (encode("plain", "--data none --tokens 4"), "--tokens needs --model, and --data synthetic"),
        (encode("plain", "--data d.npz --example net.py:pair"), "--example needs --model, and"),
        (encode("plain", "--data d.npz --save-inputs x.npz"), "--save-inputs needs --model, and"),
        ("encode w.npz --tokens 4 -o new.tqc", "--tokens needs --model"),
        ("encode w.npz --data synthetic -o new.tqc", "--data needs --model in place of IN"),
        (
            encode("plain", f"{PICTURES} --save-inputs x.txt"),
            "x.txt: made-up inputs are a .npz file",
        ),
        (encode("plain", f"{PICTURES} --save-inputs no/x.npz"), "no/x.npz: there is no such"),
        (encode("plain", f"{PICTURES} --save-inputs w.npz"), "w.npz exists; -f overwrites it"),
        (encode("plain", f"{PICTURES} --save-inputs new.npz", "./new.npz"), "cannot hold both"),
        (encode("plain", PICTURES).replace("24", "2"), "--images: at least 3 inputs"),
        (encode("plain", PICTURES).replace("24", "0"), "at least 1"),
        (encode("plain", PICTURES).replace("24", "9999999"), "count is 9999999, not at most"),
        (encode("plain", "--size 16 --mean 1,2 --std 1"), "mean (1.0, 2.0): not one finite number"),
        (encode("tokens", "--tokens 0"), "tokens is 0, not at least 1"),
        (encode("plain", "--tokens 4"), "no nn.Embedding; give an example"),
        (encode("plain", "--example net.py:number"), "a batch is an int, not a tensor"),
        (encode("plain", "--example net.py:fails"), "net.py:fails: KeyError: 'no such"),
        (encode("plain", "--example net.py:nothing"), "net.py has no function 'nothing'"),
        (encode("plain", "--example none.py:f"), "none.py: No such file"),
        (encode("choosy", PICTURES), "the network fails on made-up inputs: RuntimeError: not mine"),
        (encode("choosy", PICTURES), "(--example); --data none encodes weights alone"),
        (encode("words", "--example net.py:its_own"), "is a list, not a tensor"),
        (encode("words", "--example net.py:its_own"), "; --data none encodes weights alone"),
        (encode("plain", "--data none --mean 4"), "--mean is of pictures, and there are none"),
        (encode("plain", "--lossless --size 4").replace("--bits 5", ""), "--size is of pictures"),
        ("encode w.npz --std 4 -o new.tqc", "--std is of pictures, and there are none"),
        (encode("plain", "--data d.npz --mean 4"), "d.npz: mean would be ignored"),
    ],
)
def test_errors_are_one_line(run: Run, tmp_path: Path, line: str, message: str) -> None:
    np.savez("w.npz", w=np.ones((4, 4), "f4"))
    np.savez("d.npz", x=np.ones((8, 3, 16, 16), "f4"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    code, out, err = run(line)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("tqcodec: ") and message in err, err
    after = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert before == after


@pytest.mark.parametrize("read", ["net.py", "example.py", "s.npz"])
def test_inputs_are_never_written_over_what_is_read(run: Run, read: str) -> None:
    shutil.copy("net.py", "example.py")
    assert run(encode("sound", "--example net.py:sounds --save-inputs i.npz"))[0] == 0
    assert run("calibrate --model net.py:sound --data i.npz -o s.npz")[0] == 0
    before = Path(read).read_bytes()
    Path("link.npz").symlink_to(read)
    Path("hard.npz").hardlink_to(read)
    more = "--example example.py:sounds --data synthetic --statistics s.npz -f"
    for name in ("link.npz", "hard.npz"):
        code, _, err = run(encode("sound", f"{more} --save-inputs {name}"))
        assert (code, "is the same file as the input" in err) == (2, True)
        code, _, err = run(encode("sound", more, name))
        assert (code, "is the same file as the input" in err) == (2, True)
    assert Path(read).read_bytes() == before


def test_an_output_is_never_the_inputs_that_were_saved(run: Run) -> None:
    assert run(encode("sound", "--example net.py:sounds --save-inputs i.npz"))[0] == 0
    before = Path("i.npz").read_bytes()
    code, _, err = run(encode("sound", "--data i.npz -f", "i.npz"))
    assert (code, "is the same file as the input" in err) == (2, True)
    more = "--example net.py:sounds -f --save-inputs new.tqc"
    assert run(encode("sound", more))[0] == 2
    Path("link.npz").symlink_to("new.tqc")
    code, _, err = run(encode("sound", more.replace("new.tqc", "link.npz")))
    assert (code, "is the same file as the input new.tqc" in err) == (2, True)
    assert Path("i.npz").read_bytes() == before
