"""Transform coding gains of the matrices of a file, for ``tqcodec info --statistics``."""

from __future__ import annotations

import math

from tqcodec.cli.describe import Data
from tqcodec.common.progress import Progress
from tqcodec.encoder.gain import CodingGain, coding_gain, gain_axes
from tqcodec.encoder.statistics import Statistics
from tqcodec.errors import EncodeError
from tqcodec.reading.file import TensorFile


def add_gains(
    data: Data, file: TensorFile, statistics: Statistics, progress: Progress | None = None
) -> None:
    """Add `gains` to each tensor of `describe.info`: by axis, in dB, of the decoded weights.

    They are null for tensors without statistics. A single number is null for an infinite gain,
    where decoded weights lie in a subspace.

    Raises:
        EncodeError: statistics of another network.
        DecodeError: a tensor that cannot be decoded.
    """
    shapes = {entry.name: entry.shape for entry in file.container.directory.entries}
    for name, one in statistics.items():
        if shapes.get(name) != one.shape:
            raise EncodeError(f"statistics: the file has no {name!r} of shape {one.shape}")
    for done, tensor in enumerate(data["tensors"], 1):
        name = tensor["name"]
        tensor["gains"] = None
        if name in statistics:
            one, weights = statistics[name], file[name]
            found = {axis: coding_gain(weights, one, axis) for axis in gain_axes(one)}
            tensor["gains"] = {axis: _numbers(gain) for axis, gain in found.items()}
        if progress is not None:
            progress("gains", done, len(data["tensors"]))


def _numbers(gain: CodingGain) -> Data:
    values = {"weight": gain.weight, "gradient": gain.gradient, "total": gain.total}
    return {name: round(x, 4) if math.isfinite(x) else None for name, x in values.items()}
