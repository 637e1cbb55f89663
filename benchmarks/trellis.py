"""What the trellis saves: bits a weight at equal error on Gaussian and Laplacian sources.

    python benchmarks/trellis.py
    python benchmarks/trellis.py --networks EFFICIENTNET.pth MINILM.safetensors

Both quantizers are rate-distortion optimised and coded at the entropy of their indices; for the
trellis that is the entropy given the quantizer. Segments are 32 rows and, as the encoder has them
where a matrix is large enough, 256. With networks it prints sizes of whole files at equal
signal-to-noise ratios of the weights instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

import numpy as np
from tensors import read_weights

import tqcodec
from tqcodec.encoder.matrix import quantizer
from tqcodec.encoder.matrix.quantizer import TRELLIS_LAMBDA, UNIFORM_LAMBDA, Method, Rates

ERRORS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
STEPS = 2.0 ** np.arange(-5, 1.6, 0.25)
ROUNDS = 5  # quantize, take the entropies, again
SHAPE = (256, 1024)
SEGMENTS = (32, 256)
RATIOS = (8, 11, 15, 20)  # dB, of whole networks


def rate_and_error(x: np.ndarray, method: Method, step: float) -> tuple[float, float]:
    """Bits a coefficient and relative squared error at a step."""
    classes = np.zeros(x.shape, np.uint8)
    scaled = (x / step).astype(np.float32)
    rates = Rates(np.zeros((1, method.contexts, 1), np.float32), np.zeros(1, np.int64))
    for _ in range(ROUNDS):
        q = method.quantize(scaled, classes, rates.scaled(method.lam))
        counts = method.count(q, classes, 1).counts[0] + 1e-3
        bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
        half = counts.shape[1] // 2 - 1  # the bin of 0; the last bin is for what lies beyond
        rates = Rates(bits[None, :, half:-1].astype(np.float32), np.zeros(1, np.int64))
    total = float((method.count(q, classes, 1).counts[0] * bits).sum())
    return total / x.size, float(((scaled - q) ** 2).sum() / (scaled**2).sum())


def rates_at(x: np.ndarray, method: Method) -> np.ndarray:
    """Bits a coefficient at each of ERRORS, interpolated over the logarithm of the error."""
    points = sorted((e, r) for r, e in (rate_and_error(x, method, s) for s in STEPS))
    errors, rates = np.array(points).T
    return np.interp(np.log(ERRORS), np.log(errors), rates)


def print_files(path: Path) -> None:
    """Print one row a signal-to-noise ratio: sizes with both lengths of segments."""
    tensors = read_weights(path)
    for snr in RATIOS:
        sizes = []
        for steps in SEGMENTS:
            with mock.patch.object(quantizer, "MAX_STEPS", steps):
                sizes.append(len(tqcodec.encode(tensors, tqcodec.Settings(snr=snr))))
        short, long = sizes
        print(f"{path.stem:>32}{snr:>7g} dB{short:>12}{long:>12}{long / short - 1:>9.2%}")


def main() -> None:
    """Print one row a source and error, or a network and ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=Path, nargs="+", default=[], metavar="FILE")
    networks = parser.parse_args().networks
    for path in networks:
        print_files(path)
    if not networks:
        print_sources()


def print_sources() -> None:
    """Print one row a source and error."""
    rng = np.random.default_rng(0)
    heads = [f"{steps} rows" for steps in SEGMENTS]
    print("".join(f"{head:>10}" for head in ("source", "error", "uniform", *heads)))
    for name, x in (("gaussian", rng.normal(size=SHAPE)), ("laplacian", rng.laplace(size=SHAPE))):
        uniform = rates_at(x, Method(0, UNIFORM_LAMBDA))
        trellis = [rates_at(x, Method(steps, TRELLIS_LAMBDA)) for steps in SEGMENTS]
        for error, *rates in zip(ERRORS, uniform, *trellis, strict=True):
            print(f"{name:>10}{error:>10.0e}" + "".join(f"{rate:>10.3f}" for rate in rates))


if __name__ == "__main__":
    main()
