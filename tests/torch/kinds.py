"""Small networks of many kinds, for calibration without data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Convolutions(nn.Module):
    """A classifier of pictures with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3)]
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Plain(Convolutions):
    """The same without normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU())


class Detector(Convolutions):
    """Several outputs, nested."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes = nn.Conv2d(24, 8, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return {"scores": self.head(y.mean((2, 3))), "maps": [self.boxes(y), (y,)]}


class Regression(Convolutions):
    """One number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :1]


class Embedding(Convolutions):
    """Outputs of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(super().forward(x), dim=1)


class Tokens(nn.Module):
    """A transformer of tokens with a mask, by keywords, whose output has several names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        ignored = None if attention_mask is None else attention_mask == 0
        y = self.layer(self.embedding(input_ids), src_key_padding_mask=ignored)
        return {"logits": self.head(y.mean(1)), "states": y}


class Sound(nn.Module):
    """One dimension."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv1d(1, 16, 9, 4), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 5, 2)]
        self.body = nn.Sequential(*layers, nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(2))


class Volume(nn.Module):
    """Three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(2, 48, 3), nn.BatchNorm3d(48), nn.ReLU())
        self.head = nn.Conv3d(48, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@dataclass(frozen=True)
class Kind:
    """A network, what says what it takes, and how far outputs are from each other."""

    network: type[nn.Module]
    measure: str
    ways: dict[str, Any] = field(default_factory=lambda: {"size": 16, "mean": 127, "std": 64})


def masked() -> dict[str, Tensor]:
    ids = torch.arange(40).reshape(4, 10)
    return {"input_ids": ids, "attention_mask": (ids % 10 < 7 + ids // 10).long()}


KINDS = {
    "convolutions": Kind(Convolutions, "KL"),
    "plain": Kind(Plain, "KL"),
    "detector": Kind(Detector, "error"),
    "regression": Kind(Regression, "error"),
    "embedding": Kind(Embedding, "error"),
    "tokens": Kind(Tokens, "error", {"tokens": 9}),
    "masked tokens": Kind(Tokens, "error", {"example": masked()}),
    "sound": Kind(Sound, "KL", {"example": torch.sin(torch.arange(800.0)).reshape(2, 1, 400)}),
    "volume": Kind(Volume, "error", {"example": torch.linspace(-1, 1, 1024).view(1, 2, 8, 8, 8)}),
}


def trained(kind: type[nn.Module]) -> nn.Module:
    """A network whose normalisations have seen numbers, always the same."""
    torch.manual_seed(0)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


class Counts(nn.Module):
    """Changes buffers in evaluation mode, in place and not, and computes with them."""

    runs: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 32)
        self.register_buffer("runs", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.add_(1)
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.linear(x - self.mean) + self.runs
