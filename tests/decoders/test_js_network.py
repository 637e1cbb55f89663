"""Networks as the page of the JavaScript decoder runs them: the outputs are those of PyTorch.

With TQCODEC_CIFAR, a folder with `resnet20_cifar10.safetensors`, its `cifar_resnet.py`, and
`cifar10_test.npz`, a trained network is run on real pictures as well.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tqcodec
import tqcodec.torch
from decoders.js import graph

ROOT = Path(__file__).parents[2] / "decoders" / "js"
NODE = shutil.which("node")
TOLERANCE = 1e-5  # of the largest output, as decoders/js/README.md states
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 70.0]
CIFAR = os.environ.get("TQCODEC_CIFAR")

needs_node = pytest.mark.skipif(NODE is None, reason="no Node.js")


def describe(model: nn.Module, shape: Sequence[int]) -> dict[str, Any]:
    layers, output = graph.graph_of(model)
    inputs = {"shape": list(shape), "mean": MEAN[: shape[0]], "std": STD[: shape[0]]}
    return {"file": "network.tqc", "input": inputs, "output": output, "layers": layers}


def run(folders: Sequence[Path]) -> list[Any]:
    """Outputs of the networks in some folders, by Node."""
    assert NODE is not None
    command = [NODE, str(ROOT / "test" / "run-network.mjs"), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def prepare(folder: Path, model: nn.Module, pixels: Tensor) -> Tensor:
    """Write a folder for `run`; what PyTorch makes of it."""
    folder.mkdir()
    data = tqcodec.torch.encode(model, tqcodec.Settings(lossless=True))
    description = describe(model, pixels.shape[1:])
    (folder / "network.json").write_text(json.dumps(description))
    (folder / "network.tqc").write_bytes(data)
    (folder / "pixels").write_bytes(pixels.contiguous().numpy().tobytes())
    network = tqcodec.torch.network(model, data).eval()
    mean, std = (torch.tensor(x[: pixels.shape[1]]).view(-1, 1, 1) for x in (MEAN, STD))
    with torch.no_grad():
        expected: Tensor = network((pixels - mean) / std)
    return expected


def check(found: Any, expected: Tensor) -> None:
    assert [tuple(one["shape"]) for one in found] == [tuple(y.shape) for y in expected]
    values = torch.tensor([one["data"] for one in found]).reshape(expected.shape)
    assert (values - expected).abs().max() <= TOLERANCE * expected.abs().max()


class Block(nn.Module):
    """A residual block whose shortcut has no weights (He et al. 2015, option A)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.pad = stride, (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *[self.pad] * 2)
            )
        return functional.relu(x + y)


class ResNet(nn.Module):
    """The network of 6 n + 2 layers on 32 x 32 pixels."""

    def __init__(self, n: int) -> None:
        super().__init__()
        widths = [16, *[16] * n, *[32] * n, *[64] * n]
        pairs = itertools.pairwise(widths)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*[Block(a, b, 1 + (a != b)) for a, b in pairs])
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.bn1(self.conv1(x))))
        found: Tensor = self.linear(x.mean((2, 3)))
        return found


def lively(model: nn.Module) -> nn.Module:
    """Statistics and factors of normalisations as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.running_mean, module.bias):
                if tensor is not None:
                    nn.init.normal_(tensor, 0, 0.3)
    return model.eval()


@needs_node
def test_a_residual_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 32, 32)).float()
    expected = prepare(tmp_path / "a", lively(ResNet(3)), pixels)
    check(run([tmp_path / "a"])[0], expected)


class Sum(nn.Module):
    """Branches that are added up, one of them twice."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        total = x + x
        for branch in self.branches:
            total = torch.add(total, branch(x))
        return total


def some_layer(rng: random.Random, channels: int) -> tuple[nn.Module, int]:
    """A layer for values of at least 12 x 12, and its channels."""
    groups = rng.choice([g for g in (1, 2, 3, channels) if channels % g == 0])
    width = groups * rng.randint(1, 4)
    kernel = (rng.randint(1, 5), rng.randint(1, 5))
    kind = rng.randrange(8)
    if kind < 3:
        same = rng.random() < 0.3
        padding: Any = "same" if same else (rng.randint(0, 2), rng.randint(0, 2))
        stride = 1 if same else (rng.randint(1, 2), rng.randint(1, 2))
        size = (3, 5) if same else kernel
        dilation = rng.randint(1, 2)
        bias = rng.random() < 0.5
        layer = nn.Conv2d(channels, width, size, stride, padding, dilation, groups, bias)
        return layer, width
    if kind == 3:
        return nn.BatchNorm2d(
            channels, eps=rng.choice([1e-5, 1e-3]), affine=rng.random() < 0.7
        ), channels
    if kind == 4:
        return rng.choice([nn.ReLU(), nn.ReLU6(), nn.Identity(), nn.Dropout()]), channels
    if kind == 5:
        pool = rng.choice([nn.MaxPool2d, nn.AvgPool2d])
        return pool((2, 3), rng.choice([None, 1, 2]), padding=rng.choice([0, 1])), channels
    if kind == 6:
        return nn.ZeroPad2d(1 if rng.random() < 0.5 else (0, 1, 2, 0)), channels
    return Sum(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()), channels


def some_network(seed: int) -> nn.Module:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = 1 + 2 * (seed % 2)
    for _ in range(rng.randint(1, 6)):
        layer, channels = some_layer(rng, channels)
        layers.append(layer)
    if rng.random() < 0.7:
        pool = rng.choice([nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1))])
        layers += [pool, nn.Flatten(), nn.Linear(channels, 7, bias=rng.random() < 0.5)]
    return lively(nn.Sequential(*layers))


@needs_node
def test_networks_of_any_layers(tmp_path: Path) -> None:
    expected, folders = [], []
    for seed in range(60):
        model = some_network(seed)
        pixels = 255 * torch.rand(1, 1 + 2 * (seed % 2), 37, 43)
        try:
            model(pixels)
        except RuntimeError:  # a padding that a pool refuses, or nothing left
            continue
        folders.append(tmp_path / str(seed))
        expected.append(prepare(folders[-1], model, pixels))
    assert len(folders) > 40
    for found, wanted in zip(run(folders), expected, strict=True):
        check(found, wanted)


class Function(nn.Module):
    """A function of the input as a network."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "padding_mode 'reflect'"),
        (nn.Conv2d(3, 4, 4, padding="same"), "an even kernel"),
        (nn.BatchNorm2d(3, track_running_stats=False), "without running statistics"),
        (nn.GELU(), r"layer 0 \(GELU\): not known"),
        (nn.Softmax(1), "not known"),
        (nn.MaxPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.AdaptiveAvgPool2d(2), "adaptive_avg_pool2d to 2"),
        (Function(lambda x: x[:, 1:]), "index"),
        (Function(lambda x: x + 1), "a sum with 1"),
        (Function(lambda x: x.mean()), "mean"),
        (Function(lambda x: x.mean(1)), "mean"),
        (Function(lambda x: functional.pad(x, (1, 1), "reflect")), "reflect"),
        (Function(lambda x: (x, x)), "no output that is one tensor"),
        (Function(lambda x: x.sum() if x.sum() > 0 else x), "cannot be traced"),
    ],
)
def test_what_the_page_does_not_know_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(graph.UnknownError, match=message):
        graph.graph_of(nn.Sequential(model))


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "from torch import nn\nmake = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.{}())\n"
    output = tmp_path / "network.json"
    arguments = [f"{tmp_path}/code.py:make", "--input", "3", "8", "8", "--labels", "cat,dog"]
    arguments += ["--mean", "127", "--std", "128", "--file", "network.tqc", "-o", str(output)]
    monkeypatch.setattr(sys, "argv", ["graph.py", *arguments])
    (tmp_path / "code.py").write_text(code.format("ReLU"))
    graph.main()
    found = json.loads(output.read_text())
    assert found["labels"] == ["cat", "dog"]
    assert found["input"] == {"shape": [3, 8, 8], "mean": [127.0], "std": [128.0]}
    assert [layer["op"] for layer in found["layers"]] == ["conv", "relu"]
    assert found["output"] == found["layers"][-1]["name"]

    def refused(code: str) -> str:
        (tmp_path / "code.py").write_text(code)
        monkeypatch.setattr(sys, "argv", ["graph.py", *arguments])
        with pytest.raises(SystemExit) as caught:
            graph.main()
        assert caught.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "layer 1 (GELU): not known to the page" in refused(code.format("GELU"))
    assert "no function 'make'" in refused("")
    arguments += ["--std", "1,2"]
    assert "take 1 or 3 numbers" in refused("")


@needs_node
@pytest.mark.skipif(CIFAR is None, reason="no TQCODEC_CIFAR")
def test_real_pictures(tmp_path: Path) -> None:
    """ResNet-20 at 3 bits on pictures of CIFAR-10."""
    assert CIFAR is not None
    about = importlib.util.spec_from_file_location("cifar", Path(CIFAR) / "cifar_resnet.py")
    assert about is not None and about.loader is not None
    module = importlib.util.module_from_spec(about)
    about.loader.exec_module(module)
    with np.load(Path(CIFAR) / "cifar10_test.npz") as file:
        images, labels = torch.from_numpy(file["images"][:50]), file["labels"][:50]
    model = module.load_resnet(20)
    data = tqcodec.torch.encode(model, tqcodec.Settings(bits=3))
    description = describe(model, (3, 32, 32))
    description["input"] |= {"mean": (255 * module.MEAN).flatten().tolist()}
    description["input"] |= {"std": (255 * module.STD).flatten().tolist()}
    (tmp_path / "network.json").write_text(json.dumps(description))
    (tmp_path / "network.tqc").write_bytes(data)
    pixels = images.permute(0, 3, 1, 2).float().contiguous()
    (tmp_path / "pixels").write_bytes(pixels.numpy().tobytes())
    with torch.no_grad():
        expected = tqcodec.torch.network(model, data)(module.normalize(images))
    found = run([tmp_path])[0]
    check(found, expected)
    assert np.mean([np.argmax(one["data"]) for one in found] == labels) > 0.85
