"""Layers as matrices: what each position of a layer's output saw, as columns of its weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Columns = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """How a weight is used.

    Attributes:
        shape: of the weight, or of its part where it is several matrices above each other.
        rows: dimension of `shape` that holds the rows.
        groups: groups of channels that do not see each other.
        embedding: True if tokens choose rows.
    """

    shape: tuple[int, ...]
    rows: int = 0
    groups: int = 1
    embedding: bool = False

    @property
    def height(self) -> int:
        """Rows of one group. Those of a transposed convolution are shared by all groups."""
        return self.shape[self.rows] // (1 if self.rows else self.groups)

    @property
    def width(self) -> int:
        """Columns that one group sees."""
        columns = math.prod(self.shape) // self.shape[self.rows]
        return columns // (self.groups if self.rows else 1)


@dataclass(eq=False)
class Use:
    """One call of a layer.

    Attributes:
        key: name of the weight, and which part of it.
        layer: how the weight is used.
        x: input, or the tokens of an embedding.
        axis: dimension of `x` and of the output that holds the batch; None without one, and for a
            matrix 0 may turn out to be 1 once the number of samples is known.
        columns: from (items, ...) of `x` to (groups, items, width, positions).
        shape: of the output.
        version: of `x`, to notice if it is overwritten.
        gradient: of the probe by the output, once it is known.
    """

    key: tuple[str, int]
    layer: Layer
    x: Tensor
    axis: int | None
    columns: Columns
    shape: torch.Size
    version: int = 0
    gradient: Tensor | None = None

    def items(self, tensor: Tensor, samples: int) -> Tensor:
        """The tensor with the batch as its first dimension."""
        if self.axis is None:
            return tensor.unsqueeze(0)
        flexible = self.axis == 0 and self.columns is linear_columns and tensor.ndim > 2
        turned = flexible and tensor.shape[0] != samples == tensor.shape[1]
        return tensor.movedim(1 if turned else self.axis, 0)

    def rows(self, gradient: Tensor) -> Tensor:
        """From (items, ...) of the output's gradient to (groups, items, height, positions)."""
        items, layer = len(gradient), self.layer
        if self.columns is linear_columns:
            return working(gradient).reshape(items, -1, layer.height).mT[None]
        return working(gradient).reshape(items, layer.groups, layer.height, -1).transpose(0, 1)


def version_of(tensor: Tensor) -> int:
    """Changes when a tensor is overwritten; always 0 for one made under inference_mode."""
    return 0 if tensor.is_inference() else tensor._version


def working(tensor: Tensor) -> Tensor:
    """At least float32, for products."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def watch(tensor: Tensor, arrived: Callable[[Tensor], None]) -> None:
    """Have the gradient by a tensor told when it is known."""
    hook: Any = tensor.register_hook  # which has no types
    hook(arrived)


def linear_columns(x: Tensor) -> Tensor:
    """Columns of a matrix that multiplies the last dimension: (1, items, features, positions)."""
    return working(x).reshape(len(x), -1, x.shape[-1]).mT[None]


def conv_columns(
    kernel: Sequence[int], stride: Any, padding: Any, dilation: Any, groups: int
) -> Columns:
    """Columns of a convolution over any number of dimensions; arguments as PyTorch's."""
    stride, dilation = _each(stride, kernel), _each(dilation, kernel)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = [(n // 2, n - n // 2) for n in total]
    else:
        pads = [(n, n) for n in _each(0 if padding == "valid" else padding, kernel)]
    return partial(_unfold, kernel, stride, pads, dilation, groups)


def transposed_columns(
    kernel: Sequence[int], stride: Any, padding: Any, extra: Any, dilation: Any, groups: int
) -> Columns:
    """Columns of a transposed convolution; arguments as PyTorch's, `extra` its output padding."""
    stride, dilation = _each(stride, kernel), _each(dilation, kernel)
    both = zip(dilation, kernel, _each(padding, kernel), strict=True)
    reach = [d * (k - 1) - p for d, k, p in both]
    pads = [(n, n + more) for n, more in zip(reach, _each(extra, kernel), strict=True)]

    def columns(x: Tensor) -> Tensor:
        # A plain convolution of the input with zeros put between, the kernel reversed.
        items, channels, *lengths = x.shape
        sizes = [(length - 1) * s + 1 for length, s in zip(lengths, stride, strict=True)]
        spread = x.new_zeros(items, channels, *sizes)
        spread[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
        return _unfold(kernel, [1] * len(kernel), pads, dilation, groups, spread, flip=True)

    return columns


def _each(value: Any, kernel: Sequence[int]) -> list[int]:
    """One value for each dimension of the kernel."""
    values = [value] if isinstance(value, int) else list(value)
    return values * len(kernel) if len(values) == 1 else values


def _unfold(
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    x: Tensor,
    flip: bool = False,
) -> Tensor:
    """Columns of x (items, channels, ...); padding before and after each dimension."""
    x = working(x)
    if any(any(pair) for pair in padding):
        x = functional.pad(x, [n for pair in reversed(padding) for n in pair])
    items, channels, *lengths = x.shape
    along = zip(lengths, kernel, stride, dilation, strict=True)
    out = [(length - d * (k - 1) - 1) // s + 1 for length, k, s, d in along]
    first, second, *steps = x.stride()
    taps = [step * d for step, d in zip(steps, dilation, strict=True)]
    hops = [step * s for step, s in zip(steps, stride, strict=True)]
    # One copy into the layout that the products want.
    if groups == 1:
        windows = x.as_strided((channels, *kernel, items, *out), (second, *taps, first, *hops))
        windows = windows.flip(tuple(range(1, 1 + len(kernel)))) if flip else windows
        return windows.reshape(1, -1, items, math.prod(out)).transpose(1, 2)
    each = channels // groups
    sizes = (groups, items, each, *kernel, *out)
    windows = x.as_strided(sizes, (second * each, first, second, *taps, *hops))
    windows = windows.flip(tuple(range(3, 3 + len(kernel)))) if flip else windows
    return windows.reshape(groups, items, -1, math.prod(out))
