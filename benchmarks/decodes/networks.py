"""Networks and calibration statistics made from a seed, for the long run.

No two matrices are alike: each draws its scale, the spread of its rows and columns, its tails, its
rank and its dead or outlying channels, so that a file has hundreds of distributions to code, as
those of real checkpoints have. What a network computes with such weights means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tqcodec import Statistics
from tqcodec.encoder.statistics import WeightStatistics

Array = NDArray[Any]
Tensors = dict[str, Array]
Rng = np.random.Generator

TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
BLOCK_WORK = 1e10  # elements of a weight times columns of a block of its statistics, at most
RANK = 16  # of the correlated part of a second moment


# ---- tensors ----


def weight(rng: Rng, shape: tuple[int, ...], dtype: str = "F32") -> Array:
    """A matrix or kernel (rows, inputs, taps...)."""
    rows, inputs = shape[:2]
    out = rng.standard_normal((rows, inputs, math.prod(shape[2:])), np.float32)
    if rng.random() < 0.5:  # Student's tails
        freedom = float(rng.choice([3, 5, 9]))
        out /= np.sqrt(rng.standard_gamma(freedom / 2, out.shape, np.float32) * (2 / freedom))
    if rng.random() < 0.4 and min(rows, inputs) > 16:
        rank = int(rng.integers(4, min(rows, inputs) // 2))
        left, right = (rng.standard_normal((n, rank), np.float32) for n in (rows, inputs))
        out += ((left @ right.T) * np.float32(rng.uniform(1, 4) / math.sqrt(rank)))[:, :, None]
    for axis, length in enumerate(out.shape):
        factors = np.exp2(rng.standard_normal(length) * min(3.0, rng.exponential(0.6)))
        if axis < 2:
            factors[rng.random(length) < rng.choice([0, 0, 0.02])] = 0.0  # dead
            factors[rng.random(length) < rng.choice([0, 0, 0.005])] *= 40  # outlying
        out *= factors.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
    if rng.random() < 0.1:  # pruned
        out[np.abs(out) < np.quantile(np.abs(out[:64]), 0.7)] = 0
    scale = np.float32(np.exp2(rng.normal(0, 1.5)) / math.sqrt(inputs * math.prod(shape[2:])))
    return (out * scale).clip(-6e4, 6e4).reshape(shape).astype(TYPES[dtype])


def vector(rng: Rng, length: int, dtype: str = "F32", middle: float = 0.0) -> Array:
    """A bias or the like: `middle` and what lies about it, of a scale of its own."""
    about = rng.standard_normal(length) * np.exp2(rng.normal(-3, 2))
    about *= np.exp2(rng.standard_normal(length) * rng.uniform(0, 2))
    return np.clip(middle + about, -6e4, 6e4).astype(TYPES[dtype])


def _batch_norm(rng: Rng, name: str, length: int) -> Iterator[tuple[str, Array]]:
    yield f"{name}.weight", vector(rng, length, middle=1.0)
    yield f"{name}.bias", vector(rng, length)
    yield f"{name}.running_mean", vector(rng, length)
    spread = np.exp2(rng.normal(-2, 3) + rng.standard_normal(length) * rng.uniform(0.5, 3))
    yield f"{name}.running_var", spread.astype(np.float32)
    yield f"{name}.num_batches_tracked", np.array(rng.integers(1, 1 << 40))


# ---- networks ----


def vgg(rng: Rng) -> Tensors:
    """A text detector on a VGG trunk, and the trunk's classifier: 84 million weights."""
    return dict(_vgg(rng))


def _vgg(rng: Rng) -> Iterator[tuple[str, Array]]:
    inputs = 3
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    for i, width in enumerate(widths):
        yield f"basenet.slice{1 + i // 4}.{3 * i}.weight", weight(rng, (width, inputs, 3, 3))
        yield f"basenet.slice{1 + i // 4}.{3 * i}.bias", vector(rng, width)
        yield from _batch_norm(rng, f"basenet.slice{1 + i // 4}.{3 * i + 1}", width)
        inputs = width
    for i, (inputs, middle, width) in enumerate(
        ((1536, 512, 256), (768, 256, 128), (384, 128, 64), (192, 64, 32)), 1
    ):
        yield f"upconv{i}.conv.0.weight", weight(rng, (middle, inputs, 1, 1))
        yield from _batch_norm(rng, f"upconv{i}.conv.1", middle)
        yield f"upconv{i}.conv.3.weight", weight(rng, (width, middle, 3, 3))
        yield from _batch_norm(rng, f"upconv{i}.conv.4", width)
        yield f"upconv{i}.up.weight", weight(rng, (width, width, 4, 4), "F16")
        yield f"upconv{i}.refine.weight", weight(rng, (width, 1, 5, 5))  # depthwise
        yield from _batch_norm(rng, f"upconv{i}.refine_bn", width)
    yield "conv_cls.weight", weight(rng, (16, 32, 3, 3))
    yield "conv_cls.bias", vector(rng, 16)
    for i, (rows, columns) in enumerate(((2304, 25088), (2304, 2304), (1000, 2304))):
        yield f"classifier.{3 * i}.weight", weight(rng, (rows, columns), "F32" if i else "BF16")
        yield f"classifier.{3 * i}.bias", vector(rng, rows)
    yield "anchors", rng.uniform(0, 512, (9, 4))
    yield "classes_kept", rng.random(1000) < 0.9


def transformer(rng: Rng) -> Tensors:
    """A deep and narrow language model: 356 matrices, 98 million weights, the head tied."""
    return dict(_transformer(rng))


def _transformer(
    rng: Rng, layers: int = 44, width: int = 384, inner: int = 1024
) -> Iterator[tuple[str, Array]]:
    embedding = weight(rng, (50257, width))
    yield "model.embed_tokens.weight", embedding
    yield "model.embed_positions.weight", weight(rng, (1024, width), "F16")
    yield "model.position_ids", np.arange(1024)[None]
    yield "model.causal_mask", np.triu(np.full((64, 64), -np.inf, np.float32), 1)
    shapes = {f"self_attn.{one}_proj": (width, width) for one in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width)}
    shapes |= {"mlp.down_proj": (width, inner)}
    for i in range(layers):
        dtype = ("F32", "F32", "BF16", "F16")[i % 4]
        for name, shape in shapes.items():
            yield f"model.layers.{i}.{name}.weight", weight(rng, shape, dtype)
            yield f"model.layers.{i}.{name}.bias", vector(rng, shape[0], dtype)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{i}.{norm}.weight", vector(rng, width, middle=1.0)
        yield f"model.layers.{i}.self_attn.relative_bias", weight(rng, (32, 12))
        yield f"model.layers.{i}.self_attn.mask", np.tri(64, dtype=bool)[None, None]
        yield f"model.layers.{i}.self_attn.inv_freq", 1e4 ** -np.linspace(0, 1, 32)
    yield "model.norm.weight", vector(rng, width, middle=1.0)
    yield "lm_head.weight", embedding


NETWORKS: dict[str, Callable[[Rng], Tensors]] = {"vgg": vgg, "transformer": transformer}


# ---- statistics ----


def statistics(rng: Rng, weights: Tensors, tensors: Tensors) -> Statistics:
    """What a calibration of most of the weights could have given.

    Args:
        rng: for the numbers.
        weights: the matrices of the network.
        tensors: all of it, in the order of the layers.
    """
    images = int(rng.integers(8, 2000))
    chosen = [name for name in weights if rng.random() < 0.95]
    return Statistics({name: _one(rng, images, name, tensors) for name in chosen})


def _one(rng: Rng, images: int, name: str, tensors: Tensors) -> WeightStatistics:
    shape = tensors[name].shape
    is_kernel, is_embedding = len(shape) > 2, "embed" in name and len(shape) == 2
    by_group = is_kernel and shape[1] == 1
    turned = int(is_kernel and not by_group and (".up." in name or rng.random() < 0.05))
    rows = shape[turned]
    columns = math.prod(shape) // rows
    taps = math.prod(shape[2:])
    most = min(float(rng.choice([64, 256, 1024])), BLOCK_WORK / math.prod(shape))
    blocks, n = (rows, columns) if by_group else (1, columns)
    if not by_group and columns > most:  # a block-diagonal; taps of a channel stay together
        n = taps * max(1, int(most) // taps)
        blocks = -(-columns // n)
    vectors = images * int(rng.integers(1, 200))
    power = np.exp2(rng.normal(0, 2))
    spread = np.exp2(rng.standard_normal((blocks, n, 1)) * rng.uniform(0, 1.5))
    spread[rng.random(spread.shape) < 0.01] = 0.0  # channels that the data never woke
    inputs = _moment(rng, spread) * vectors
    shift, sign, gain = _followers(name, rows, tensors)
    strengths = rng.standard_exponential((rows,))
    if is_embedding:  # how often each token came: many never
        strengths = rng.poisson(1e3 / np.arange(1, rows + 1)).astype(np.float64)
        strengths[0] += 1
    return WeightStatistics(
        shape=shape,
        rows=turned,
        images=images,
        vectors=vectors,
        probes=images,
        inputs=inputs,
        sums=np.zeros((blocks, n)) if is_embedding else _means(rng, spread) * vectors,
        outputs=strengths[:, None, None] * power * images,  # of which the diagonal is used
        gradients=inputs if is_embedding else _moment(rng, spread) * power * images * rows,
        shift=shift,
        shift_sign=sign,
        gain=gain,
    )


def _means(rng: Rng, spread: Array) -> Array:
    return spread[:, :, 0] * rng.normal(0, 0.3, spread.shape[:2])


def _moment(rng: Rng, spread: Array) -> Array:
    """Low rank plus a diagonal: (blocks, n, n)."""
    x = rng.standard_normal((*spread.shape[:2], RANK)) * spread / math.sqrt(RANK)
    out = x @ x.swapaxes(1, 2)
    np.einsum("bjj->bj", out)[:] += 0.1 * spread[:, :, 0] ** 2
    return out


def _followers(name: str, rows: int, tensors: Tensors) -> tuple[str | None, int, str | None]:
    """Bias, or running mean and weight of the batch normalisation behind a matrix."""
    bias = name.removesuffix("weight") + "bias"
    if bias in tensors and tensors[bias].shape == (rows,):
        return bias, 1, None
    names = list(tensors)
    for other in names[names.index(name) + 1 :]:
        if tensors[other].ndim > 1:
            break
        gain = other.removesuffix("running_mean") + "weight"
        if other.endswith("running_mean") and tensors[other].shape == (rows,) and gain in tensors:
            return other, -1, gain
    return None, 1, None
