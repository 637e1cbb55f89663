"""Sizes of small networks under test: a coding loss is a difference.

Regenerate after a change that is meant to alter them:

    python tests/encoder/test_encoder.py --write
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tqcodec
from tqcodec import Settings
from tqcodec.encoder.matrix.quantizer import Method

GOLDEN = Path(__file__).parents[1] / "golden" / "sizes.json"
TOLERANCE = 0.005
Rng = np.random.Generator
Network = dict[str, np.ndarray]


def _spread(rng: Rng, count: int, octaves: float) -> np.ndarray:
    return 2.0 ** rng.normal(0, octaves, count)


def _kernels(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth kernels of very different strength, as convolutions have them."""
    noise = rng.normal(size=shape)
    smooth = noise + 0.7 * (np.roll(noise, 1, -1) + np.roll(noise, 1, -2))
    strength = _spread(rng, shape[0], 0.7)[:, None, None, None]
    return (0.03 * strength * smooth).astype(np.float32)


def _matrix(rng: Rng, rows: int, columns: int, dtype: str = "f4") -> np.ndarray:
    """A matrix with strong and weak rows and columns, and heavy tails."""
    values = rng.laplace(size=(rows, columns)) * 0.02
    values *= _spread(rng, rows, 0.5)[:, None] * _spread(rng, columns, 0.8)
    return values.astype(dtype)


def _norms(rng: Rng, name: str, count: int) -> Network:
    out = {f"{name}.weight": rng.normal(1, 0.2, count), f"{name}.bias": rng.normal(0, 0.1, count)}
    out |= {f"{name}.running_var": rng.lognormal(0, 1, count)}
    return {key: value.astype(np.float32) for key, value in out.items()} | {
        f"{name}.num_batches_tracked": np.int64(1000)
    }


def convolutions(rng: Rng) -> Network:
    out = {}
    for i, (rows, columns) in enumerate([(16, 3), (32, 16), (48, 32)]):
        out[f"conv{i}.weight"] = _kernels(rng, (rows, columns, 3, 3))
        out |= _norms(rng, f"bn{i}", rows)
    return out | {"fc.weight": _matrix(rng, 10, 48), "fc.bias": np.zeros(10, np.float32)}


def depthwise(rng: Rng) -> Network:
    out = {}
    for i, width in enumerate([32, 48, 64]):
        out[f"{i}.expand.weight"] = _matrix(rng, width, 32)[:, :, None, None]
        out[f"{i}.depthwise.weight"] = _kernels(rng, (width, 1, 5, 5))
        out[f"{i}.project.weight"] = _matrix(rng, 32, width)[:, :, None, None]
        out |= _norms(rng, f"{i}.bn", width)
    return out


def transformer(rng: Rng) -> Network:
    out = {"embedding.weight": _matrix(rng, 256, 48)}
    for name, rows, columns in [
        ("qkv", 144, 48),
        ("out", 48, 48),
        ("up", 96, 48),
        ("down", 48, 96),
    ]:
        out[f"{name}.weight"] = _matrix(rng, rows, columns)
        out[f"{name}.bias"] = (0.01 * rng.normal(size=rows)).astype(np.float32)
    return out | {"head.weight": out["embedding.weight"]}


def lstm(rng: Rng) -> Network:
    return {
        "weight_ih": _matrix(rng, 128, 40, "f2"),
        "weight_hh": _matrix(rng, 128, 32, "f2"),
        "bias_ih": rng.normal(0, 0.1, 128).astype(np.float16),
    }


NETWORKS = {f.__name__: f for f in (convolutions, depthwise, transformer, lstm)}
WISHES = {
    "bits-3": Settings(bits=3),
    "snr-20": Settings(snr=20),
    "snr-20-fast": Settings(snr=20, effort=1),
    "snr-20-thorough": Settings(snr=20, effort=9),
    "snr-20-fixed": Settings(snr=20, payload="fixed"),
    "lossless": Settings(lossless=True),
}


def size(network: str, wish: str) -> int:
    seed = list(NETWORKS).index(network)
    tensors = NETWORKS[network](np.random.default_rng(seed))
    return len(tqcodec.encode(tensors, replace(WISHES[wish], provenance=False)))


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("network", NETWORKS)
def test_size(network: str, wish: str) -> None:
    golden = json.loads(GOLDEN.read_text())[network][wish]
    found = size(network, wish)
    change = f"{network} at {wish}: {found} bytes, {golden} in {GOLDEN.name}"
    hint = "if that is meant: python tests/encoder/test_encoder.py --write"
    assert abs(found / golden - 1) <= TOLERANCE, f"{change}; {hint}"


def test_golden_sizes_are_of_these_networks() -> None:
    sizes = json.loads(GOLDEN.read_text())
    assert {n: list(w) for n, w in sizes.items()} == {n: list(WISHES) for n in NETWORKS}
    for network in sizes.values():
        assert network["snr-20"] < 1.02 * network["snr-20-fast"]
        assert network["snr-20-thorough"] < 1.005 * network["snr-20"]
        assert network["snr-20"] < network["snr-20-fixed"] < network["lossless"]


def test_a_better_transform_is_smaller() -> None:
    """`auto` is as good as the best of the others, its bases counted."""
    for network in ("convolutions", "transformer"):
        tensors = NETWORKS[network](np.random.default_rng(0))
        sizes = {
            t: len(tqcodec.encode(tensors, Settings(snr=20, transform=t)))
            for t in ("auto", "none", "dct", "klt")
        }
        assert sizes["auto"] <= 1.005 * min(sizes.values()), sizes


@pytest.mark.parametrize(
    ("rows", "columns", "steps"),
    [(256, 256, 256), (1000, 64, 256), (512, 64, 128), (4096, 1, 32), (64, 64, 32), (20, 700, 256)],
)
def test_segments_are_long_where_enough_lie_side_by_side(
    rows: int, columns: int, steps: int
) -> None:
    assert Method(256, 0.0, lanes=256).fitted(rows, columns).steps == steps
    assert Method(256, 0.0).fitted(rows, columns).steps == 256
    assert Method(0, 0.0, lanes=256).fitted(rows, columns).steps == 0


def test_each_matrix_has_segments_of_its_own() -> None:
    rng = np.random.default_rng(5)
    weights = {"wide": _matrix(rng, 300, 1500), "narrow": _matrix(rng, 512, 9)}
    container = tqcodec.open(tqcodec.encode(weights, Settings(snr=15))).container
    records = {entry.name: container.record(entry) for entry in container.directory.entries}
    assert [records[name].steps for name in weights] == [256, 32]
    # Tiles are no larger for it: what a decoder holds at once.
    assert all(math.prod(r.tile) <= 1 << 18 and r.tile[0] % r.steps == 0 for r in records.values())


@pytest.mark.parametrize("effort", [1, 5])
def test_a_rule_gives_a_matrix_its_bits(effort: int) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(128, 256)).astype(np.float32) for name in "abc"}
    rules = [("a", "bits:2"), ("b", "bits:5")]
    settings = tqcodec.Settings(snr=15, effort=effort, rules=rules)
    with tqcodec.open(tqcodec.encode(weights, settings)) as file:
        a, b, c = (
            8 * sum(s.length for s in e.segments) / e.elements
            for e in file.container.directory.entries
        )
    assert a == pytest.approx(2, abs=0.1)
    assert b == pytest.approx(5, abs=0.1)
    assert a < c < b


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/encoder/test_encoder.py --write")
    all_sizes = {n: {w: size(n, w) for w in WISHES} for n in NETWORKS}
    GOLDEN.write_text(json.dumps(all_sizes, indent=2) + "\n")
