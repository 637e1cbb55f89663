"""Kinds: which tensors are weights, which are vectors, which are exact, and why.

A codec of weights must not touch what is none. Three sources of knowledge, best first: the rules of
the user; the module, which tells parameters from buffers (`Origin`); and the numbers, names and
neighbours of a tensor. In doubt a tensor is exact: such tensors are small.

The table of names begins with `CONSTANTS`; docs/encoder.md has it in words.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

import numpy as np
from numpy.typing import NDArray

from tqcodec.format.dtypes import DType, to_float

Patterns = NDArray[np.unsignedinteger]

LEAST_WEIGHTS = 64  # a matrix with fewer elements is a vector
FEW = 16  # distinct values of a tensor of more elements: an alphabet, not weights
BLOCK = 1 << 16  # elements looked at together
LEAST_STEPS = 8  # elements of a line that can be a progression
SAMPLE = 4  # places along each other axis at which lines are tried before all of them
LEAST_ULP = 2.0**-40  # float64 holds more than the sums and powers behind it are worth
CLASS_SIZE = 16  # numbers of kinds for each class


class Origin(Enum):
    """What a tensor is in the module that it comes from."""

    PARAMETER = "parameter"  # one that is trained
    FROZEN = "frozen"  # a parameter that requires no gradient
    STATISTIC = "statistic"  # vector of a normalisation with running statistics
    BUFFER = "buffer"  # any other buffer
    DIRECTION = "direction"  # a parameter that weight normalisation divides by its lengths
    CONSTANT = "constant"  # running mean or variance of a normalisation in inference form


class Class(IntEnum):
    """What may become of a tensor."""

    WEIGHT = 0  # coded at the rate; its elements are those that `bits` counts
    VECTOR = 1  # keeps `side_bits` mantissa bits
    EXACT = 2


class Kind(IntEnum):
    """Class of a tensor and why; the number that the file states (11.5 of the specification)."""

    WEIGHT = 0
    WEIGHT_RULE = 1
    WEIGHT_ASKED = 2
    WEIGHT_RANGE = 3
    VECTOR = 16
    VECTOR_SMALL = 17
    VECTOR_RULE = 18
    VECTOR_ASKED = 19
    ASKED = 32
    INTEGERS = 33
    RANGE = 34
    SINGLE = 35
    BUFFER = 36
    QUANTIZED = 37
    FEW = 38
    WHOLE = 39
    REGULAR = 40
    NAME = 41
    UNKNOWN = 42


REASONS = {
    Kind.WEIGHT: "",
    Kind.WEIGHT_RULE: "by a rule",
    Kind.WEIGHT_ASKED: "exact as asked",
    Kind.WEIGHT_RANGE: "exact, not finite or out of range",
    Kind.VECTOR: "",
    Kind.VECTOR_SMALL: "fewer than 64 elements",
    Kind.VECTOR_RULE: "by a rule",
    Kind.VECTOR_ASKED: "exact as asked",
    Kind.ASKED: "as asked",
    Kind.INTEGERS: "no floating point",
    Kind.RANGE: "not finite or out of range",
    Kind.SINGLE: "single number",
    Kind.BUFFER: "buffer of a module",
    Kind.QUANTIZED: "beside quantized weights",
    Kind.FEW: "at most 16 distinct values",
    Kind.WHOLE: "whole numbers",
    Kind.REGULAR: "progression or sinusoids",
    Kind.NAME: "name of a constant",
    Kind.UNKNOWN: "vector of unknown name",
}

# Judged by their numbers alone: once a network's data changes them, they are vectors like others.
BY_NUMBERS = frozenset({Kind.FEW, Kind.WHOLE, Kind.REGULAR})

# Words of the last part of a name (`encoder.attn.causal_mask`: causal, mask) of a constant.
CONSTANTS = {
    "masks": "mask masks masked causal tril triu alibi",
    "positions": (
        "id ids idx index indices bucket buckets coords coordinates anchor anchors prior priors"
    ),
    "schedules": "timestep timesteps betas alphas sigmas cumprod schedule",
    "frequencies and sinusoids": (
        "freq freqs frequency frequencies cis cos sin cached slopes sinusoid sinusoidal "
        "fourier gaussian"
    ),
    "windows and filterbanks": (
        "window windows hann hamming mel melw filterbank filterbanks fb stft istft dft wsin wcos"
    ),
    "codebooks and what goes with quantized weights": (
        "codebook codebooks centroids absmax lut scb zeros qzeros quant"
    ),
    "counters": "count counts counter tracked",
}
CONSTANT_WORDS = {word for words in CONSTANTS.values() for word in words.split()}
CONSTANT_NAMES = re.compile(
    r"(.*_)?(scales|scale_inv|scale_inverse|zero_points?|zp)(_\d+)?"
    r"|(weight|input|output|act|activation|k|v|q|kv|block|group|global)_scale(_\d+)?"
    r"|(forward|inverse|mel|dct)_basis|projection_matrix|pos_weight|class_weights?"
    r"|.*_correction_bias"  # of a router's scores: the order of near ones decides
)
ZERO_POINTS = re.compile(r"(.*_)?zero_points?")
# Parts of a path below which nothing is trained.
CONSTANT_PARTS = {"stft", "istft", "rotary_emb", "rotary_pos_emb", "mel_scale"}
# What these words stand beside is learned: mask_token, position_embeddings.
LEARNED_WORDS = {"token", "tokens", "embed", "embedding", "embeddings", "emb"}

VECTOR_WORDS = LEARNED_WORDS | {"weight", "bias", "biases", "gamma", "beta", "magnitude"}
VECTOR_NAMES = {
    *("running_mean", "running_var", "moving_mean", "moving_var", "moving_variance"),
    *("scale", "offset", "layer_scale", "g", "b"),
}
# Last parts of a name that say nothing: those of lists, parametrizations and adapters.
MEANINGLESS = re.compile(r"\d+|original\d*|default")


def class_of(number: int | None) -> Class | None:
    """Class of the number that a file states, also of a kind that is not known here."""
    if number is None or number // CLASS_SIZE not in list(Class):
        return None
    return Class(number // CLASS_SIZE)


def is_weight(number: int | None, dtype: DType, shape: Sequence[int]) -> bool:
    """True for the tensors whose elements `bits` counts.

    Args:
        number: of the kind, as the file states it; files from before it was stated are judged by
            the rule of their encoders.
        dtype: element type.
        shape: dimensions.
    """
    found = class_of(number)
    if found is not None:
        return found is Class.WEIGHT
    return dtype.is_float and len(shape) >= 2 and math.prod(shape) >= LEAST_WEIGHTS


def describe(number: int | None) -> str | None:
    """Class and reason in words, of the number that a file states; None if that says nothing."""
    found = class_of(number)
    if found is None or number is None:
        return None
    reason = REASONS[Kind(number)] if number in REASONS else f"reason {number}"
    return f"{found.name.lower()}: {reason}" if reason else found.name.lower()


def is_matrix(shape: Sequence[int]) -> bool:
    """True for the shape of a weight matrix: two axes longer than 1, and not too small."""
    return sum(n > 1 for n in shape) >= 2 and math.prod(shape) >= LEAST_WEIGHTS


def is_constant_name(name: str) -> bool:
    """True for names of masks, positions, schedules, frequencies, windows, scales and counters."""
    parts = _parts(name)
    if CONSTANT_NAMES.fullmatch(parts[-1]) or not CONSTANT_PARTS.isdisjoint(parts):
        return True
    words = _words(parts[-1])
    return bool(words & CONSTANT_WORDS) and not words & VECTOR_WORDS


def is_vector_name(name: str) -> bool:
    """True for names of vectors that are weights: biases, norms, running statistics, tokens."""
    leaf = _parts(name)[-1]
    if leaf in ("weight_u", "weight_v"):  # singular vectors of a spectral normalisation
        return False
    return leaf in VECTOR_NAMES or bool(_words(leaf) & VECTOR_WORDS)


def _parts(name: str) -> list[str]:
    """Parts of the path of a name up to the last one that says something, in lower case."""
    parts = re.split(r"[./]", re.sub(r":\d+$", "", name.lower()))
    while len(parts) > 1 and MEANINGLESS.fullmatch(parts[-1]):
        parts.pop()
    return parts


def _words(leaf: str) -> set[str]:
    return set(re.findall("[a-z]+", leaf))


@dataclass(frozen=True)
class Neighbours:
    """Where quantized weights are, so that what stands beside them is known.

    Attributes:
        packed: prefixes beside which everything floating is exact, 8-bit floats too.
        floats: those of 8-bit floats: everything else beside them is.
        zeros: those of zero points, whose `scale` is that of no normalisation.
    """

    packed: frozenset[str]
    floats: frozenset[str]
    zeros: frozenset[str]

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, DType, int]]) -> Neighbours:
        """Those of a checkpoint, by name, type and number of elements of its tensors."""
        packed: set[str] = set()
        floats: set[str] = set()
        zeros: set[str] = set()
        for name, dtype, size in tensors:
            if ZERO_POINTS.fullmatch(_parts(name)[-1]):
                zeros.add(_parent(name))
            if size < LEAST_WEIGHTS or is_constant_name(name):
                continue
            if dtype.is_float and dtype.size == 1:
                floats |= _prefixes(name)
            elif not dtype.is_float and dtype.name not in ("BOOL", "I64", "U64"):
                packed |= _prefixes(name)
        return cls(frozenset(packed), frozenset(floats), frozenset(zeros))

    def has(self, name: str, dtype: DType) -> bool:
        """True where a tensor stands beside a quantized weight."""
        around = {_parent(name), *itertools.accumulate(name.split("_")[:-1], "{}_{}".format)}
        scale = _parts(name)[-1] == "scale" and _parent(name) in self.zeros
        if scale or around & self.packed:
            return True
        return dtype.size > 1 and bool(around & self.floats)


def _parent(name: str) -> str:
    """The name without its last part; "" at the top."""
    return name[: max(name.rfind("."), name.rfind("/"), 0)]


def _prefixes(name: str) -> set[str]:
    """What the names begin with that stand beside a quantized weight: its module, and its own.

    At the top, where everything stands beside everything, `fc1_weight` speaks for `fc1_...`.
    """
    parent = _parent(name)
    stem, _, last = name.rpartition("_")
    return {name} | ({parent} if parent else {stem} if stem and last.endswith("weight") else set())


def kind_of(
    name: str,
    dtype: DType,
    patterns: Patterns,
    origin: Origin | None = None,
    quantized: bool = False,
    side: bool = False,
) -> Kind:
    """The kind of a floating-point or other tensor that no rule decides on.

    Args:
        name: of the tensor.
        dtype: element type.
        patterns: bit patterns, of the tensor's shape.
        origin: what it is in its module; None where that is not known.
        quantized: it stands beside a quantized weight.
        side: a rule says how many mantissa bits it keeps.
    """
    if not dtype.is_float:
        return Kind.INTEGERS
    if patterns.size <= 1:
        return Kind.SINGLE
    if origin in (Origin.BUFFER, Origin.CONSTANT):
        return Kind.BUFFER
    if quantized:
        return Kind.QUANTIZED
    found = by_numbers(patterns, dtype)
    if found is not None:
        return found
    constant = is_constant_name(name)
    if is_matrix(patterns.shape):
        trained = origin in (Origin.PARAMETER, Origin.DIRECTION)
        return Kind.NAME if constant and not trained else Kind.WEIGHT
    if side:
        return Kind.VECTOR_RULE
    if constant:
        return Kind.NAME
    if origin is None and not is_vector_name(name):
        return Kind.UNKNOWN
    single = sum(n > 1 for n in patterns.shape) == 1
    return Kind.VECTOR if single else Kind.VECTOR_SMALL


def by_numbers(patterns: Patterns, dtype: DType) -> Kind | None:
    """Why the numbers of a tensor cannot be those of trained weights, None where they can."""
    flat = patterns.reshape(-1)
    if flat.size > FEW and _is_few(flat):
        return Kind.FEW
    if all(_is_whole(to_float(block, dtype)) for block in _blocks(flat)):
        return Kind.WHOLE
    if any(_is_regular(patterns, axis, dtype) for axis in range(patterns.ndim)):
        return Kind.REGULAR
    return None


def _blocks(flat: Patterns) -> Iterator[Patterns]:
    """Blocks of growing size: most tensors are judged by the first."""
    start, size = 0, 1 << 10
    while start < flat.size:
        yield flat[start : start + size]
        start, size = start + size, BLOCK


def _is_few(flat: Patterns) -> bool:
    seen = flat[:0]
    for block in _blocks(flat):
        new = block[~np.isin(block, seen, kind="sort")]  # compares with each, as they are few
        seen = np.union1d(seen, new)
        if len(seen) > FEW:
            return False
    return True


def _is_whole(values: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(values).all()) and bool((values == np.rint(values)).all())


def _is_regular(patterns: Patterns, axis: int, dtype: DType) -> bool:
    """True where all lines along an axis are progressions, or pairs of sine and cosine."""
    moved = np.moveaxis(patterns, axis, -1)
    length, ulp = moved.shape[-1], max(2.0 ** -(dtype.mantissa_bits + 1), LEAST_ULP)
    few = moved[tuple(slice(None, None, math.ceil(n / SAMPLE)) for n in moved.shape[:-1])]

    def lines(chosen: Patterns) -> NDArray[np.float64]:
        return to_float(np.ascontiguousarray(chosen).reshape(-1, chosen.shape[-1]), dtype)

    tests = [_are_progressions] if length >= LEAST_STEPS else []
    if length % 2 == 0 and length <= BLOCK and patterns.size >= LEAST_WEIGHTS:
        tests.append(_are_sinusoids)
    for test in tests:
        short = few[..., :BLOCK]
        if test(lines(short), ulp) and test(lines(moved), ulp):
            return True
    return False


def _are_progressions(lines: NDArray[np.float64], ulp: float) -> bool:
    """True for lines (count, n) in equal steps, or equal ratios, up to a few roundings.

    Lines that do not go anywhere count if they are constant to the bit.
    """
    if not np.isfinite(lines).all():
        return False
    if (lines[:, 1:] == lines[:, :1]).all():
        return True
    if _even(lines, 8 * ulp * float(np.abs(lines).max())):
        return True
    return bool((lines > 0).all()) and _even(np.log(lines), 64 * ulp)


def _even(lines: NDArray[np.float64], tolerance: float) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):  # next to the largest numbers of float64
        even = np.abs(np.diff(lines, 2)).max() <= tolerance
        return bool(even) and bool(np.abs(lines[:, -1] - lines[:, 0]).max() > 8 * tolerance)


def _are_sinusoids(lines: NDArray[np.float64], ulp: float) -> bool:
    """True for lines (count, n) of pairs on the unit circle: beside each other, in halves, thirds.

    Lines of zeros may stand between, as for a class token.
    """
    if not np.abs(lines).max() <= 1 + 4 * ulp:
        return False
    half = lines.shape[1] // 2
    for groups in {1, 2, 3, half}:
        if half % groups == 0:
            pairs = lines.reshape(-1, groups, 2, half // groups)
            radius = np.square(pairs).sum(2)
            on_circle = np.abs(radius - 1) <= min(1e-3 + 8 * ulp, 0.1)
            if (on_circle | (radius == 0)).all() and on_circle.any():
                return True
    return False
