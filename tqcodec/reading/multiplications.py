"""Multiplications of layers, with dense weights and in the transform domain."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tqcodec.common.checks import PathLike
from tqcodec.reading.file import TensorFile
from tqcodec.reading.transform_tensor import AXES, TransformTensor


@dataclass(frozen=True)
class Operations:
    """Multiplications of one layer, a linear one or a convolution.

    They are counted for each position of the output (a pixel, a token), and, apart, for what is
    done to the weights once a pass, whatever the batch.

    Attributes:
        name: of the weights.
        shape: of the weights.
        kept: columns of the transform domain that are there.
        columns: all columns, I' T'.
        dense: for each position, with dense weights.
        transform: for each position: bases, filters and coefficients; None where the transform
            domain gives no way of its own.
        rebuilding: once a pass: dense weights from coefficients.
        scaling: once a pass: factors onto the coefficients.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    columns: int
    dense: int
    transform: int | None
    rebuilding: int
    scaling: int

    @property
    def way(self) -> str:
        """The way of fewer multiplications for each position: "dense" or "transform"."""
        fewer = self.transform is not None and self.transform < self.dense
        return "transform" if fewer else "dense"

    @property
    def least(self) -> int:
        """Multiplications of that way for each position."""
        return self.dense if self.way == "dense" else self.transform or 0

    def pays(self, positions: int) -> bool:
        """Whether the transform domain takes no more multiplications than rebuilt weights do.

        Args:
            positions: of the output, over the whole batch.
        """
        if self.transform is None:
            return False
        return positions * (self.transform - self.dense) <= self.rebuilding - self.scaling


def operations(source: bytes | PathLike | TensorFile) -> list[Operations]:
    """Multiplications of each weight matrix of a file, in the order of the file.

    Weight matrices are floating-point tensors of two or more dimensions; tied ones count each time.
    A file does not say what a layer does: convolutions are taken to have a stride of 1, and no
    groups, but those of one input channel to be depthwise. `tqcodec.torch.network` knows.

    Raises:
        DecodeError: a tensor cannot be decoded.
    """
    if not isinstance(source, TensorFile):
        with TensorFile(source) as file:
            return operations(file)
    found = []
    for entry in source.container.directory.entries:
        if len(entry.shape) < 2 or entry.needs is not None or not entry.dtype.is_float:
            continue
        depthwise = len(entry.shape) > 2 and entry.shape[1] == 1
        groups = entry.shape[0] if depthwise else 1
        found.append(of_tensor(entry.name, source.transform(entry.name), groups))
    return found


def of_tensor(name: str, tensor: TransformTensor, groups: int = 1, stride: int = 1) -> Operations:
    """Multiplications of one layer.

    Args:
        name: of the weights.
        tensor: the weights.
        groups: of a convolution.
        stride: of a convolution, the product over its dimensions.
    """
    dense = math.prod(tensor.shape)
    if tensor.values is not None:
        return Operations(name, tensor.shape, 0, 0, dense, None, 0, 0)
    out, inn, taps = tensor.lengths
    rows, channels, filters = tensor.channels
    kept = len(tensor.columns)
    out_basis, in_basis, taps_basis = tensor.bases
    rebuilding = kept * rows + out * inn * taps  # multipliers, and steps of the rows
    if taps_basis is not None:
        rebuilding += rows * channels * filters * taps
    if in_basis is not None:
        rebuilding += rows * channels * taps * inn
    if out_basis is not None:
        rebuilding += rows * out * inn * taps
    transform = None
    if has_own_way(tensor, groups):
        transform = kept * rows
        if in_basis is not None:
            transform += groups * inn * len(used_channels(tensor)) * stride
        if taps > 1:
            transform += groups * kept * taps
        if out_basis is not None:
            transform += rows * out
    return Operations(
        name, tensor.shape, kept, channels * filters, dense, transform, rebuilding, kept * rows
    )


def has_own_way(tensor: TransformTensor, groups: int = 1) -> bool:
    """Whether a layer can be computed from coefficients without rebuilding its weights.

    Its dimensions have to be (out, in, taps...). An output basis mixes rows of all groups.
    """
    rest = len(tensor.shape) - 2
    straight = rest >= 0 and tensor.roles == (*AXES[:2], *AXES[2:] * rest)
    return straight and len(tensor.columns) > 0 and (groups == 1 or tensor.bases[0] is None)


def used_channels(tensor: TransformTensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The channels i' of the input axis of which a column is kept, ascending."""
    return np.unique(tensor.columns // max(1, tensor.channels[2]))
