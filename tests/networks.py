"""Networks for property-based tests: tensors as real checkpoints have them, and odd ones between.

Names, shapes, element types, spreads of rows and columns, special bytes and numbers of tensors
vary; a network is drawn from a few choices and a seed, so that large ones cost no more to draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from strategies import Array, Rng, some_patterns

from tqcodec.arrays import numpy_dtype
from tqcodec.format.dtypes import DTYPES, DType

Tensors = dict[str, Array]

# Name patterns of checkpoints: {i} is a layer, {j} a part of it. Shapes by letters: o and i are
# widths, k a kernel, s a small number.
PATTERNS = (
    ("features.{i}.conv.{j}.weight", "oikk"),
    ("features.{i}.conv.{j}.bias", "o"),
    ("features.{i}.depthwise.weight", "o1kk"),
    ("layer{i}.{j}.bn1.running_mean", "o"),
    ("layer{i}.{j}.bn1.num_batches_tracked", ""),
    ("encoder.layer.{i}.attention.self.query.weight", "oi"),
    ("encoder.layer.{i}.attention.self.query.bias", "o"),
    ("encoder.layer.{i}.LayerNorm.{j}.gamma", "o"),
    ("embeddings.{i}.position_ids", "1s"),
    ("embeddings.{i}.word_embeddings.weight", "oi"),
    ("transformer.h.{i}.attn.{j}.bias", "11ss"),
    ("transformer.h.{i}.attn.{j}.masked_bias", ""),
    ("model.layers.{i}.self_attn.{j}.lora_A.weight", "si"),
    ("model.layers.{i}.self_attn.{j}.lora_B.weight", "os"),
    ("rnn.weight_ih_l{i}_{j}", "oi"),
    ("decoder.{i}.up.{j}.weight", "iokk"),
    ("volume.{i}.{j}.weight", "oikkk"),
    ("wave.{i}.{j}.weight", "oik"),
    ("hyper.{i}.{j}.weight", "kkkkkk"),
    ("experts.{i}.{j}.w1", "soi"),
    ("quant.{i}.{j}.scale", "o1"),
    ("empty.{i}.{j}", "0i"),
)
KINDS = ("weights", "weights", "weights", "special", "any", "constant", "few")


@dataclass(frozen=True)
class Network:
    """What a network was drawn from; its `repr` makes it again.

    Attributes:
        seed: of all numbers.
        count: tensors.
        width: largest width of a layer.
        octaves: standard deviation of the sizes of rows, of columns and of tensors.
        odd: share of the tensors that are not float32 weights.
    """

    seed: int
    count: int
    width: int
    octaves: tuple[float, float, float]
    odd: float

    def tensors(self) -> Tensors:
        """The tensors; some are tied to others."""
        rng = np.random.default_rng(self.seed)
        out: Tensors = {}
        for number in range(self.count):
            pattern, letters = PATTERNS[int(rng.integers(len(PATTERNS)))]
            name = pattern.format(i=number // 3, j=number)
            if out and rng.random() < 0.03:
                out[name] = out[list(out)[int(rng.integers(len(out)))]]
            else:
                out[name] = self._tensor(rng, letters)
        return out

    def _tensor(self, rng: Rng, letters: str) -> Array:
        sizes = {
            "o": int(rng.integers(1, self.width + 1)),
            "i": int(rng.integers(1, self.width + 1)),
            "k": int(rng.choice([1, 2, 3, 5])),
            "s": int(rng.integers(1, 9)),
        }
        shape = tuple(sizes[c] if c in sizes else int(c) for c in letters)
        if rng.random() >= self.odd:
            return self._weights(rng, shape).astype(np.float32)
        dtype = list(DTYPES.values())[int(rng.integers(len(DTYPES)))]
        return self._odd(rng, shape, dtype, KINDS[int(rng.integers(len(KINDS)))])

    def _weights(self, rng: Rng, shape: tuple[int, ...]) -> Array:
        """Heavy tails; rows, columns and tensors of very different size."""
        rows, columns, tensors = (rng.normal(0, octaves) for octaves in self.octaves)
        values = np.asarray(rng.laplace(0, 0.02, shape) * 2.0**tensors)
        if values.ndim >= 2:
            values *= 2.0 ** rng.normal(0, abs(rows), (shape[0],) + (1,) * (len(shape) - 1))
            values *= 2.0 ** rng.normal(0, abs(columns), (1, shape[1]) + (1,) * (len(shape) - 2))
            if rng.random() < 0.1:
                values[:, :1] = 0
        return values

    def _odd(self, rng: Rng, shape: tuple[int, ...], dtype: DType, kind: str) -> Array:
        count = math.prod(shape)
        if kind == "constant":
            patterns = np.repeat(some_patterns(rng, dtype, 1, "weights"), count)
        elif kind == "few":
            patterns = rng.choice(some_patterns(rng, dtype, 3, "weights"), count)
        elif kind == "weights" and dtype.is_float:
            with np.errstate(over="ignore", invalid="ignore"):
                return self._weights(rng, shape).astype(numpy_dtype(dtype))
        else:
            patterns = some_patterns(rng, dtype, count, kind)
        if dtype.name == "BOOL" and kind == "any":
            patterns = rng.integers(0, 256, count).astype(np.uint8)  # as a view leaves them
        return patterns.reshape(shape).view(numpy_dtype(dtype))


def networks(most: int = 40) -> st.SearchStrategy[Network]:
    """Networks of 1 to `most` tensors."""
    spreads = st.sampled_from([0.0, 0.5, 2.0, 6.0])
    return st.builds(
        Network,
        seed=st.integers(0, (1 << 32) - 1),
        count=st.integers(1, most),
        width=st.sampled_from([4, 24, 100]),
        octaves=st.tuples(spreads, spreads, spreads),
        odd=st.sampled_from([0.0, 0.3, 1.0]),
    )
