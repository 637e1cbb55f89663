"""Plan: how each tensor is to be coded, by its shape, type and name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.settings import Settings, TensorOptions, options_for
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.errors import EncodeError
from tqcodec.format.directory import is_legal_shape
from tqcodec.format.dtypes import DType, to_float
from tqcodec.format.registry import MAX_DIRECTORY, MAX_NAME, Axis

SMALL = 1 << 14  # tensors up to this many elements share bundles
LEAST_WEIGHTS = 64  # a matrix with fewer elements is a side tensor
LEAST_LARGEST, MOST_LARGEST = 2.0**-50, 2.0**50  # of a matrix that is transformed
MOST_TAPS = 512  # more positions than this are no kernel


class Treatment(Enum):
    """What becomes of a tensor."""

    TRANSFORM = "transform"
    EXACT = "exact"
    ROUNDED = "rounded"  # mantissa shortened
    TIED = "tied"


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor as the encoder gets it.

    Attributes:
        name: unique name.
        dtype: element type.
        patterns: bit patterns, of the tensor's shape, C order.
    """

    name: str
    dtype: DType
    patterns: NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Item:
    """The plan for one tensor.

    Attributes:
        name: of the tensor.
        treatment: what becomes of it.
        is_weight: True for a weight matrix, the elements that `bits` and `snr` count.
        roles: axis of each dimension, for a transform.
        options: wishes of the rules.
        same_as: name of the earlier tensor with the same bytes, if tied.
        unusual: True where numbers are not finite, or far from those of any weight.
    """

    name: str
    treatment: Treatment
    is_weight: bool
    roles: tuple[Axis, ...]
    options: TensorOptions
    same_as: str | None = None
    unusual: bool = False


def is_weight_matrix(dtype: DType, shape: Sequence[int]) -> bool:
    """True for the tensors whose elements count as weights."""
    return dtype.is_float and len(shape) >= 2 and math.prod(shape) >= LEAST_WEIGHTS


def roles_of(shape: Sequence[int], rows: int = 0) -> tuple[Axis, ...]:
    """Axes of a weight matrix by the layout that PyTorch gives it.

    Linear, embedding and LSTM matrices are (out, in); convolutions of any dimension are
    (out, in / groups, kernel...). A transposed convolution is (in, out / groups, kernel...);
    without statistics, which know (`rows` is 1), its first dimension is taken as rows all the same.
    With more than 512 kernel positions the trailing dimensions are no kernel and join the input
    axis.
    """
    taps = math.prod(shape[2:])
    rest = Axis.TAPS if taps <= MOST_TAPS else Axis.IN
    first = (Axis.IN, Axis.OUT) if rows else (Axis.OUT, Axis.IN)
    return (*first, *[rest] * (len(shape) - 2))


def make_plan(
    sources: Sequence[Source], settings: Settings, statistics: Mapping[str, WeightStatistics]
) -> list[Item]:
    """Plan of all tensors, in their order.

    Raises:
        EncodeError: names, metadata or a shape that the format cannot hold, a rule without a match,
            or statistics of another network.
    """
    _check_texts([s.name for s in sources], settings)
    shapes = {s.name: s.patterns.shape for s in sources}
    for name, one in statistics.items():
        if name not in shapes:
            raise EncodeError(f"statistics: there is no tensor {name!r}")
        if shapes[name] != one.shape:
            raise EncodeError(
                f"statistics: {name!r} has shape {one.shape}, the tensor's is {shapes[name]}"
            )
    options = options_for(settings.rules, list(shapes))
    seen: dict[bytes, str] = {}
    return [_plan_one(s, settings, options[s.name], seen, statistics.get(s.name)) for s in sources]


def _check_texts(names: Iterable[str], settings: Settings) -> None:
    """Refuse names and metadata that no directory holds, before there is any work.

    Raises:
        EncodeError: they take more bytes than a directory may have.
    """
    metadata = _bytes(text for pair in settings.metadata for text in pair)
    named = _bytes(names)
    if metadata + named > MAX_DIRECTORY:
        raise directory_full(f"{metadata} bytes of metadata and {named} of names")


def _bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode(errors="replace")) for text in texts)


def directory_full(what: str) -> EncodeError:
    """The error for names and metadata that are too much."""
    return EncodeError(
        f"names and metadata are too much for one file: {what}, its directory takes at most "
        f"{MAX_DIRECTORY} bytes"
    )


def _plan_one(
    source: Source,
    settings: Settings,
    options: TensorOptions,
    seen: dict[bytes, str],
    statistics: WeightStatistics | None,
) -> Item:
    shape, name = source.patterns.shape, source.name
    if not name or len(name.encode(errors="replace")) > MAX_NAME:
        raise EncodeError(f"tensor {name[:40]!r}: names take 1 to {MAX_NAME} bytes")
    if any("\ud800" <= c <= "\udfff" for c in name):
        raise EncodeError(f"tensor {name!r}: the name is not a UTF-8 string")
    if not is_legal_shape(shape):
        raise EncodeError(f"tensor {name!r}: shape {shape} is beyond the limits of the format")
    is_weight = is_weight_matrix(source.dtype, shape)
    twin = _twin(source, options, seen)
    rows = statistics.rows if statistics is not None else 0
    roles = roles_of(shape, rows) if len(shape) >= 2 else ()
    if twin is not None:
        return Item(name, Treatment.TIED, False, roles, options, twin)
    exact = settings.lossless or options.lossless or not source.dtype.is_float
    unusual = source.dtype.is_float and not _in_range(source)
    if exact or unusual:
        treatment = Treatment.EXACT
    elif is_weight:
        treatment = Treatment.TRANSFORM
    elif settings.side_bits is None and options.side_bits is None:
        treatment = Treatment.EXACT
    else:
        treatment = Treatment.ROUNDED
    return Item(name, treatment, is_weight, roles, options, unusual=unusual)


def _twin(source: Source, options: TensorOptions, seen: dict[bytes, str]) -> str | None:
    """Name of an earlier tensor with the same type, shape, bytes and wishes, if there is one."""
    if source.patterns.size < LEAST_WEIGHTS:
        return None
    digest = hashlib.sha256(f"{source.dtype.name}{source.patterns.shape}{options}".encode())
    digest.update(source.patterns.reshape(-1).view(np.uint8).data)
    key = digest.digest()
    if key in seen:
        return seen[key]
    seen[key] = source.name
    return None


def _in_range(source: Source) -> bool:
    """True for finite numbers whose magnitudes leave room for squares and steps in float32."""
    flat, largest = source.patterns.reshape(-1), 0.0
    for i in range(0, len(flat), SMALL):
        block = np.abs(to_float(flat[i : i + SMALL], source.dtype))
        largest = max(largest, float(block.max()) if np.isfinite(block).all() else math.inf)
    return largest == 0 or LEAST_LARGEST < largest < MOST_LARGEST
