"""Compress EfficientNet-Lite0 without any data, decode the files, classify photographs with each.

    python demo/demo.py [--output FOLDER] [--bits 4 3 2.5]

Inputs for calibration are made from the network alone, once for all rates. Prints one row a file:
bytes, ratio to the float32 weights, bits per weight, seconds, and how far the decoded network
agrees with the original on views of the photographs that scikit-image and scikit-learn ship. They
take no part in encoding. `--model`, `--size`, `--mean`, `--std` and `--pictures` put a classifier
and photographs of one's own in their place.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import photographs
import torch
from torch import nn

import tqcodec.torch
from tqcodec.cli.arguments import numbers
from tqcodec.torch.user_code import load_model

NETWORK = f"{Path(__file__).with_name('network.py')}:network"
IMAGES = 128  # that are made: a quarter of what encode makes by itself, and of the time
TQC = str(Path(sys.executable).with_name("tqcodec"))
HEAD = ("file", "bytes", "ratio", "bits/w", "encode s", "decode s", "same top1", "KL")
ROW = "{:>24} {:>10} {:>6} {:>7} {:>8} {:>8} {:>9} {:>8}"


def network(model: str) -> nn.Module:
    """What the function of FILE.py:FUNCTION returns, in evaluation mode."""
    return load_model(model).eval()


def encode(model: str, target: Path, options: list[str]) -> float:
    """Encode and verify by the command line; seconds of the former."""
    start = time.perf_counter()
    command = [TQC, "encode", "--model", model, "-o", str(target), "-f", "-j", "2", *options]
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


def arguments() -> argparse.Namespace:
    """Those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 3, 2.5])
    parser.add_argument("--model", default=NETWORK, metavar="FILE.py:FUNCTION")
    parser.add_argument("--size", type=int, default=224, help="side of its inputs, in pixels")
    about = "they are (x - MEAN) / STD: one number, or one a channel with commas between"
    parser.add_argument("--mean", type=numbers, default=[127.0], metavar="MEAN", help=about)
    parser.add_argument("--std", type=numbers, default=[128.0], metavar="STD", help="likewise")
    parser.add_argument("--images", type=int, default=IMAGES, help="that are made")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="to classify")
    return parser.parse_args()


def main() -> None:
    """Run the demonstration."""
    given = arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    model, pictures = network(given.model), photographs.read(given.pictures)
    views = [v for one in pictures for v in photographs.views(one, given.size)]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (given.mean, given.std))
    batch = torch.stack([(torch.from_numpy(v) - mean) / std for v in views])
    reference = tqcodec.torch.Reference(model, [(part, None) for part in batch.split(20)])
    original = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    name = "EfficientNet-Lite0" if given.model == NETWORK else given.model
    print(f"{name}, {original:,} bytes of weights; {len(batch)} views")
    print(ROW.format(*HEAD))
    inputs = given.output / "inputs.npz"
    made = ["--size", str(given.size)]
    for name, values in (("--mean", given.mean), ("--std", given.std)):
        made.append(f"{name}={','.join(map(str, values))}")
    made += ["--images", str(given.images), "--save-inputs", str(inputs)]
    for bits in given.bits:
        for name, data in (("weights alone", ["--data", "none"]), ("made-up inputs", made)):
            target = given.output / f"{bits:g} bits, {name}.tqc"
            seconds = encode(given.model, target, ["--bits", f"{bits:g}", *data])
            print(row(target, seconds, reference, original), flush=True)
        made = ["--data", str(inputs)]  # made once, for all rates


if __name__ == "__main__":
    main()
