"""One tensor: as it comes in, and what is to become of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.kinds import BY_NUMBERS, Class, Kind, Origin, class_of
from tqcodec.encoder.settings import TensorOptions
from tqcodec.format.dtypes import DType
from tqcodec.format.registry import Axis

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
        origin: what it is in its module, None where that is not known.
    """

    name: str
    dtype: DType
    patterns: NDArray[np.unsignedinteger]
    origin: Origin | None = None


@dataclass(frozen=True)
class Item:
    """The plan for one tensor.

    Attributes:
        name: of the tensor.
        treatment: what becomes of it.
        kind: its class and why; that of a tied tensor is the other one's.
        roles: axis of each dimension, for a transform.
        options: wishes of the rules.
        same_as: name of the earlier tensor with the same bytes, if tied.
    """

    name: str
    treatment: Treatment
    kind: Kind
    roles: tuple[Axis, ...]
    options: TensorOptions
    same_as: str | None = None

    @property
    def is_weight(self) -> bool:
        """True for a weight matrix, the elements that `bits` and `snr` count."""
        return self.same_as is None and class_of(self.kind) is Class.WEIGHT

    @property
    def is_adjustable(self) -> bool:
        """True for vectors that may take up what the coding does to the weights."""
        by_chance = self.kind in BY_NUMBERS
        return self.same_as is None and (by_chance or class_of(self.kind) is Class.VECTOR)


def roles_of(shape: Sequence[int], rows: int = 0) -> tuple[Axis, ...]:
    """Axes of a weight matrix by the layout that PyTorch gives it.

    Linear, embedding and LSTM matrices are (out, in); convolutions of any dimension are
    (out, in / groups, kernel...). A transposed convolution is (in, out / groups, kernel...);
    without statistics, which know (`rows` is 1), its first dimension is taken as rows all the same.
    With more than 512 kernel positions the trailing dimensions are no kernel and join the input
    axis. The elements of a vector, which a rule may call a weight, are rows.
    """
    if len(shape) < 2:
        return (Axis.OUT,) * len(shape)
    taps = math.prod(shape[2:])
    rest = Axis.TAPS if taps <= MOST_TAPS else Axis.IN
    first = (Axis.IN, Axis.OUT) if rows else (Axis.OUT, Axis.IN)
    return (*first, *[rest] * (len(shape) - 2))
