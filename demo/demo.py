"""Compress EfficientNet-Lite0 without any data, decode the files, classify photographs with each.

    python demo/demo.py [--output FOLDER] [--bits 4 3 2.5]

Inputs for calibration are made from the network alone, once for all rates. Prints one row a file:
bytes, ratio to the float32 weights, bits per weight, seconds, and how far the decoded network
agrees with the original on views of the photographs that scikit-image and scikit-learn ship. They
take no part in encoding.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import network
import numpy as np
import skimage.data
import skimage.transform
import torch
from sklearn.datasets import load_sample_images

import tqcodec.torch

SKIMAGE_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")
IMAGES = 128  # that are made: half of what encode makes by itself, and half of the time
TQC = str(Path(sys.executable).with_name("tqcodec"))
HEAD = ("file", "bytes", "ratio", "bits/w", "encode s", "decode s", "same top1", "KL")
ROW = "{:>24} {:>10} {:>6} {:>7} {:>8} {:>8} {:>9} {:>8}"


def photographs() -> list[np.ndarray]:
    """Colour photographs, uint8 (height, width, 3)."""
    images = [getattr(skimage.data, name)() for name in SKIMAGE_PHOTOGRAPHS]
    images += [skimage.data.stereo_motorcycle()[0]]
    return images + list(load_sample_images().images)


def views(image: np.ndarray) -> list[torch.Tensor]:
    """Ten views: the corners and the centre, each also mirrored, float32 (3, SIZE, SIZE)."""
    scale, size = 256 / min(image.shape[:2]), network.SIZE
    shape = (round(image.shape[0] * scale), round(image.shape[1] * scale))
    image = skimage.transform.resize(image, shape, preserve_range=True, anti_aliasing=True)
    image = (image.astype(np.float32) - network.MEAN) / network.STD
    down, right = shape[0] - size, shape[1] - size
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    crops = [image[y : y + size, x : x + size] for y, x in corners]
    both = [c.transpose(2, 0, 1).copy() for crop in crops for c in (crop, crop[:, ::-1])]
    return [torch.from_numpy(one) for one in both]


def encode(target: Path, options: list[str]) -> float:
    """Encode and verify by the command line; seconds of the former."""
    spec = f"{Path(network.__file__)}:network"
    start = time.perf_counter()
    command = [TQC, "encode", "--model", spec, "-o", str(target), "-f", "-j", "2", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    subprocess.run([TQC, "verify", str(target)], check=True, stdout=subprocess.DEVNULL)
    return seconds


def row(target: Path, seconds: float, reference: tqcodec.torch.Reference, original: int) -> str:
    """One row of the table: decode and classify."""
    start = time.perf_counter()
    decoded = tqcodec.torch.load(target)
    loaded = time.perf_counter() - start
    found, size = reference.compare(decoded), target.stat().st_size
    weights = sum(tensor.numel() for tensor in decoded.values() if tensor.ndim >= 2)
    return ROW.format(
        target.stem,
        f"{size:,}",
        f"{original / size:.1f}",
        f"{8 * size / weights:.2f}",
        f"{seconds:.1f}",
        f"{loaded:.2f}",
        f"{found.agreement.value:.1f}",
        f"{found.kl.value:.4f}",
    )


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 3, 2.5])
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = network.network()
    batch = torch.stack([view for image in photographs() for view in views(image)])
    reference = tqcodec.torch.Reference(model, [(part, None) for part in batch.split(20)])
    original = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    print(f"EfficientNet-Lite0, {original:,} bytes of weights; {len(batch)} views")
    print(ROW.format(*HEAD))
    inputs = arguments.output / "inputs.npz"
    made = ["--size", str(network.SIZE), "--mean", str(network.MEAN), "--std", str(network.STD)]
    made += ["--images", str(IMAGES), "--save-inputs", str(inputs)]
    for bits in arguments.bits:
        for name, data in (("weights alone", ["--data", "none"]), ("made-up inputs", made)):
            target = arguments.output / f"{bits:g} bits, {name}.tqc"
            seconds = encode(target, ["--bits", f"{bits:g}", *data])
            print(row(target, seconds, reference, original), flush=True)
        made = ["--data", str(inputs)]  # made once, for all rates


if __name__ == "__main__":
    main()
