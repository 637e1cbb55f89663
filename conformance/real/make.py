"""Makes the real files: three small networks of our own, trained on scikit-learn's digits.

    python conformance/real/make.py

Needs torch, scikit-learn and the encoder. Training does not give the same bits everywhere, so the
files are committed, not checked; making them again changes them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tqcodec.torch
from tqcodec import Settings

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from package import safetensors  # noqa: E402
from run import read_safetensors  # noqa: E402

LARGE = 100_000  # bytes of a safetensors file beyond which only digests are kept
TRAINED = 1400  # of 1797 images; the others are for the accuracy


class Convolutional(nn.Module):
    """Three convolutions with batch normalisation, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in ((1, 32), (32, 64), (64, 48)):
            layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten())
        self.classifier = nn.Linear(48 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images (N, 8, 8)."""
        out: Tensor = self.classifier(self.features(images[:, None]))
        return out


class Perceptron(nn.Sequential):
    """Three linear layers."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(64, 192),
            nn.GELU(),
            nn.Linear(192, 160),
            nn.GELU(),
            nn.Linear(160, 10),
        )


class Transformer(nn.Module):
    """Two blocks over the rows of an image; the readout has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 48)
        self.positions = nn.Parameter(torch.randn(8, 48) / 8)
        self.order: Tensor
        self.register_buffer("order", torch.arange(8))
        block = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, dropout=0.0)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.readout = nn.Linear(48, 10)
        self.alias = self.readout

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images (N, 8, 8)."""
        tokens = self.embedding(images) + self.positions[self.order]
        out: Tensor = self.readout(self.blocks(tokens).mean(dim=1))
        return out


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Some dozen passes of Adam."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for _ in range(30):
        for batch in torch.randperm(TRAINED).split(64):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    model.eval()


def digests(data: bytes) -> str:
    """Expected tensors by the digests of their elements."""
    answer = read_safetensors(safetensors(data))
    document: dict[str, Any] = {"metadata": answer.metadata}
    document["tensors"] = [vars(tensor) for tensor in answer.tensors]
    return json.dumps(document, indent=1) + "\n"


def main() -> None:
    """Train, encode and write."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    batches = list(images[:TRAINED].split(64))
    cnn, mlp, transformer = Convolutional(), Perceptron(), Transformer()
    for model in (cnn, mlp, transformer):
        train(model, images, labels)
    half = Perceptron().to(torch.bfloat16)
    half.load_state_dict(mlp.state_dict())
    wishes: dict[str, tuple[nn.Module, nn.Module, Settings, Any, str]] = {
        "cnn-2-bits": (
            cnn,
            Convolutional(),
            Settings(bits=2),
            tqcodec.torch.calibrate(cnn, batches),
            "a convolutional network of digits, calibrated, 2 bits per weight",
        ),
        "mlp-bf16-3-bits": (
            half,
            Perceptron(),
            Settings(bits=3),
            None,
            "a perceptron of digits with weights in BF16, without data, 3 bits per weight",
        ),
        "transformer-mixed": (
            transformer,
            Transformer(),
            Settings(
                snr=24,
                rules=(("embedding.*", "lossless"), ("positions", "lossless")),
                metadata=(("task", "digits"), ("\u00fcber", "\u6570\u5b57")),
            ),
            None,
            "a transformer of digits: 24 dB and lossless, a tied readout, an integer buffer",
        ),
    }
    about = {}
    for name, (original, copy, settings, statistics, description) in wishes.items():
        data = tqcodec.torch.encode(original, settings, statistics)
        copy.load_state_dict(tqcodec.torch.decode(data))
        copy.eval()
        with torch.no_grad():
            found = copy(images[TRAINED:]).argmax(dim=1) == labels[TRAINED:]
        tensors = safetensors(data)
        (HERE / f"{name}.tqc").write_bytes(data)
        for suffix in (".json", ".safetensors"):
            (HERE / f"{name}{suffix}").unlink(missing_ok=True)
        if len(tensors) > LARGE:
            (HERE / f"{name}.json").write_text(digests(data), "utf-8")
        else:
            (HERE / f"{name}.safetensors").write_bytes(tensors)
        accuracy = 100 * found.float().mean().item()
        about[name] = f"{description}; {accuracy:.1f} % right"
        sys.stdout.write(f"{name}: {len(data)} bytes of {len(tensors)}, {accuracy:.1f} % right\n")
    (HERE / "descriptions.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
