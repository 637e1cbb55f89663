"""Outcome: what a coding did to one weight matrix, measured on what a decoder makes of it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tqcodec.encoder.matrix.draft import Draft, Effect, Quantized
from tqcodec.encoder.matrix.error import error_of
from tqcodec.encoder.matrix.feedback import gains_of
from tqcodec.encoder.matrix.survey import Matrix, weights_of
from tqcodec.encoder.tensor import Source
from tqcodec.format.entries import crc
from tqcodec.format.planes import Part


def draft_of(
    source: Source,
    matrix: Matrix,
    content: Quantized | Part,
    decoded: NDArray[np.unsignedinteger],
) -> Draft:
    """A draft of what decodes to the bit patterns `decoded`, of the tensor's shape."""
    error, energy = error_of(source.patterns, decoded, source.dtype)
    judged, metric = matrix.judged, matrix.metric
    distortion, effect = judged * error if judged is not None else math.nan, None
    if metric is not None and metric.assumed is None:
        before, after = _both(source, matrix, decoded)
        gains = gains_of(metric.products(before, after), metric.products(after, after))
        effect = Effect(gains, metric.mean_output(before), metric.mean_output(after))
        if judged is None:
            distortion = metric.error(before - after)
    return Draft(content, crc(decoded), error, energy, distortion, effect)


def weighed_error(source: Source, matrix: Matrix, decoded: NDArray[np.unsignedinteger]) -> float:
    """Squared error in the units of the step: by the metric, or else of the weights."""
    if matrix.metric is None:
        return error_of(source.patterns, decoded, source.dtype)[0]
    before, after = _both(source, matrix, decoded)
    return matrix.metric.error(before - after)


def _both(
    source: Source, matrix: Matrix, decoded: NDArray[np.unsignedinteger]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The matrix before and after, float32 (rows, columns)."""
    before, after = (
        weights_of(patterns, source.dtype, matrix.item.roles)
        for patterns in (source.patterns, decoded)
    )
    return before.reshape(len(before), -1), after.reshape(len(after), -1)
