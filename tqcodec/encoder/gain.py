"""Transform coding gains: what a basis on an axis would save at equal error of the logits.

Young et al. 2021, Table 6. For an axis of n channels with the second moments C_tt of the weights
and C_gg of the gradients a matrix C gives 10 log10 (PROD_k C_kk / det C)^(1/n) dB, never below 0.
The weights' side is the gain of the KLT where all errors count alike. Both sides together are the
gain of the ELT, which makes both matrices diagonal; no basis has more (Hadamard's inequality).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.matrix.choice import LARGEST_BASIS
from tqcodec.encoder.matrix.metric import metric_of
from tqcodec.encoder.matrix.transform import ELT_REGULARISATION
from tqcodec.encoder.statistics import WeightStatistics
from tqcodec.errors import EncodeError
from tqcodec.format.registry import Axis

SINGULAR = 1e-12  # smallest eigenvalue of correlations that float32 weights can mean

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CodingGain:
    """Gains of one axis in dB.

    Attributes:
        weight: by the correlations of the weights; infinite where they lie in a subspace.
        gradient: by those of the gradients.
    """

    weight: float
    gradient: float

    @property
    def total(self) -> float:
        """Of the ELT."""
        return self.weight + self.gradient


def coding_gain(weights: NDArray[Any], statistics: WeightStatistics, axis: str) -> CodingGain:
    """The transform coding gain of one axis of a weight.

    Args:
        weights: in the layout of the state dict.
        statistics: of this weight.
        axis: ``out``, ``in`` or ``taps``. Groups of a convolution share no channels, so that it has
            gains of its taps only.

    Raises:
        EncodeError: statistics of another weight, or that do not know the axis.
    """
    if weights.shape != statistics.shape:
        raise EncodeError(f"statistics are of shape {statistics.shape}, weights {weights.shape}")
    if axis not in _lengths(statistics):
        raise EncodeError(f"statistics of shape {statistics.shape} know no gradients of {axis!r}")
    number = Axis[axis.upper()]
    ordered = np.moveaxis(weights, statistics.rows, 0).astype(np.float64)
    cube = ordered.reshape(*ordered.shape[:2], -1)
    flat = np.moveaxis(cube, number, 0).reshape(cube.shape[number], -1)
    if not np.isfinite(flat).all():
        raise EncodeError("weights that are not finite have no coding gain")
    moment = _outputs(statistics) if number == Axis.OUT else metric_of(statistics).moment(number)
    regular = moment + ELT_REGULARISATION * np.linalg.norm(moment) * np.eye(len(moment))
    return CodingGain(_gain(flat @ flat.T), _gain(regular))


def gain_axes(statistics: WeightStatistics) -> list[str]:
    """Axes that have gains and can have a basis."""
    lengths = _lengths(statistics)
    return [axis for axis, length in lengths.items() if 1 < length <= LARGEST_BASIS]


def _lengths(statistics: WeightStatistics) -> dict[str, int]:
    """Lengths of the axes whose gradients are known."""
    shape, rows = statistics.shape, statistics.rows
    blocks, n = statistics.sums.shape
    taps = math.prod(shape[2:])
    whole = n == shape[1 - rows] * taps  # a block has all columns
    # More blocks than one: parts of an attention or of long rows. Those of kernels can be groups,
    # and are where each has rows of its own.
    grouped = blocks > 1 and len(shape) > 2 and (whole or rows == 1)
    known = {"out": not grouped, "in": not grouped and whole, "taps": n % taps == 0}
    lengths = {"out": shape[rows], "in": shape[1 - rows], "taps": taps}
    return {axis: length for axis, length in lengths.items() if known[axis]}


def _outputs(statistics: WeightStatistics) -> Array:
    """C_gg of the rows; zero between blocks of them."""
    strips, m = statistics.outputs.shape[:2]
    whole = np.zeros((strips, m, strips, m))
    whole[range(strips), :, range(strips)] = statistics.outputs
    rows = statistics.shape[statistics.rows]
    return whole.reshape(strips * m, -1)[:rows, :rows]


def _gain(moment: Array) -> float:
    """10 log10 of (PROD_k C_kk / det C)^(1/n); channels that are zero gain nothing."""
    alive = np.diag(moment) > 0
    scale = np.sqrt(np.diag(moment)[alive])
    correlations = moment[alive][:, alive] / np.outer(scale, scale)
    values = np.linalg.eigvalsh(correlations)
    if (values < SINGULAR).any():
        return math.inf
    return max(0.0, -10 * float(np.log10(values).sum()) / len(moment))
