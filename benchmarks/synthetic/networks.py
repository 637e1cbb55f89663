"""Networks of packages that need much else: rebuilt in plain PyTorch, with their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class FaceNet(nn.Module):
    """O-Net of MTCNN (Zhang et al., IEEE Signal Processing Letters 2016).

    Takes (samples, 3, 48, 48) and gives boxes (samples, 4), landmarks (samples, 10) and the
    probabilities of no face and a face (samples, 2).

    Args:
        weights: `onet.pt` of the package `facenet-pytorch`.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        widths, kernels = (3, 32, 64, 64, 128), (3, 3, 3, 2)
        for i, kernel in enumerate(kernels, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(widths[i - 1], widths[i], kernel))
            self.add_module(f"prelu{i}", nn.PReLU(widths[i]))
        self.dense5 = nn.Linear(1152, 256)
        self.prelu5 = nn.PReLU(256)
        self.dense6_1 = nn.Linear(256, 2)
        self.dense6_2 = nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)
        self.load_state_dict(torch.load(weights, weights_only=True))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, landmarks, probabilities."""
        for i, pool in enumerate((3, 3, 2, None), start=1):
            x = self.get_submodule(f"prelu{i}")(self.get_submodule(f"conv{i}")(x))
            if pool:
                x = functional.max_pool2d(x, pool, 2, ceil_mode=True)
        x = self.prelu5(self.dense5(x.permute(0, 3, 2, 1).flatten(1)))
        return self.dense6_2(x), self.dense6_3(x), self.dense6_1(x).softmax(1)


class Detector(nn.Module):
    """NudeNet's detector, a YOLOv8-nano for 18 parts of people, as the package `onnx2torch` has it.

    Takes (samples, 3, 320, 320) and gives boxes (samples, 4, places) in pixels and scores (samples,
    18, places). Its batch normalisations are folded into its convolutions.

    Args:
        graph: `320n.onnx` of the package `nudenet`.
    """

    def __init__(self, graph: str) -> None:
        super().__init__()
        from onnx2torch import convert

        self.graph = convert(graph)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes, scores."""
        found = self.graph(x)
        return found[:, :4], found[:, 4:]
