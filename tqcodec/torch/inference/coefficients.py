"""Weights that stay coefficients in memory, and layers that compute from them.

Everything that a file holds of a weight stays the integers that it is, of the narrowest type, so
that `half()` and `to(dtype)` change what is computed in, and no weight. Factors are put onto the
coefficients, which makes them of the size of weights in any type.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tqcodec.reading.multiplications import Operations, used_channels
from tqcodec.reading.transform_tensor import AXES, TransformTensor, narrowest
from tqcodec.torch import synthesis
from tqcodec.torch.inference.held import Holder, holder_of

CONVOLUTIONS: Final = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class Coefficients(Holder):
    """A weight in the transform domain: 8 bits a coefficient, and 8 or 24 more in columns beyond.

    Weights are rebuilt in float32 and then rounded to the type of the network.

    Args:
        tensor: the weight; it has a transform domain.
        like: a tensor of the type and on the device that the weight has at first.
        operations: multiplications of its layer.
    """

    coefficients: Tensor
    wide: Tensor | None
    wide_columns: Tensor | None
    columns: Tensor | None
    multipliers: Tensor | None
    multiplier_of: Tensor | None
    row_scales: Tensor

    used: Tensor | None
    in_basis: Tensor | None
    out_basis: Tensor | None
    taps_basis: Tensor | None

    def __init__(self, tensor: TransformTensor, like: Tensor, operations: Operations) -> None:
        super().__init__(like)
        self.operations = operations
        self._shape, self._lengths, self._channels = tensor.shape, tensor.lengths, tensor.channels
        self._spread = [tensor.shape[d] for d in tensor.order]
        self._places = np.argsort(tensor.order).tolist()
        self._step = tensor.step
        self._keep_coefficients(tensor.coefficients)
        whole = len(tensor.columns) == tensor.channels[1] * tensor.channels[2]
        self._keep("columns", None if whole else narrowest(tensor.columns))
        self._keep("row_scales", narrowest(tensor.row_scales))
        self._keep_multipliers(tensor.multipliers)
        for axis, basis in zip(AXES, tensor.bases, strict=True):
            self._keep_basis(axis, basis)
        used = used_channels(tensor)
        every = self.in_basis is None or len(used) == tensor.channels[1]
        self._keep("used", None if every else narrowest(used))

    def _keep(self, name: str, array: NDArray[Any] | None) -> None:
        found = None if array is None else torch.from_numpy(np.ascontiguousarray(array))
        self.register_buffer(name, None if found is None else found.to(self.like.device), False)

    def _keep_coefficients(self, values: NDArray[Any]) -> None:
        """In 8 bits, and in a few columns what lies beyond these; in more bits where most do."""
        narrow = values.clip(-128, 127).astype(np.int8)
        rest = values.astype(np.int32) - narrow
        beyond = np.flatnonzero(rest.any(axis=0))
        few = 0 < len(beyond) < values.shape[1] / 2
        self._keep("coefficients", narrow if few or not len(beyond) else narrowest(values))
        self._keep("wide", narrowest(rest[:, beyond]) if few else None)
        self._keep("wide_columns", narrowest(beyond) if few else None)

    def _keep_multipliers(self, multipliers: NDArray[np.int64]) -> None:
        """Few different ones, and one byte a column; no byte where all are the same."""
        different, number = np.unique(multipliers, return_inverse=True)
        if len(different) == 1:
            self._step *= int(different[0])
        one = len(different) <= 1
        self._keep("multipliers", None if one else different)
        self._keep("multiplier_of", None if one else number.astype(np.uint8))

    def _keep_basis(self, axis: str, basis: NDArray[np.int64] | None) -> None:
        """Rows of a length of about 1, but for a power of two; that which is taken off the step."""
        exponent = 0
        if basis is not None and basis.size:
            longest = math.sqrt(float(np.square(basis.astype(np.float64)).sum(axis=1).max()))
            exponent = math.ceil(math.log2(longest)) if longest > 0 else 0
            self._step = math.ldexp(self._step, exponent)
            zeros = int(np.bitwise_or.reduce(basis, axis=None))
            shift = (zeros & -zeros).bit_length() - 1 if zeros else 0
            basis, exponent = basis >> shift, exponent - shift
        self._keep(f"{axis}_basis", None if basis is None else narrowest(basis))
        setattr(self, f"_{axis}_unit", math.ldexp(1.0, -exponent))

    def basis(self, axis: str) -> Tensor | None:
        """Synthesis rows of an axis, float32 (channels, positions); None without a basis."""
        rows: Tensor | None = getattr(self, f"{axis}_basis")
        return None if rows is None else rows.float() * getattr(self, f"_{axis}_unit")

    def _rows(self) -> Tensor:
        return self.row_scales.float()

    def _scaled(self, rows: Tensor | None = None) -> Tensor:
        """Coefficients by multipliers and step, of some rows or all: float32 (..., columns)."""
        narrow, wide = self.coefficients, self.wide
        values = _rows(narrow, rows).float()
        if wide is not None and self.wide_columns is not None:
            values.index_add_(-1, self.wide_columns.long(), _rows(wide, rows).float())
        if self.multipliers is not None and self.multiplier_of is not None:
            return values * (self.multipliers.float() * self._step)[self.multiplier_of.long()]
        return values * self._step

    def _synthesis(self, kept: Tensor) -> Tensor:
        """Sums over the channels of the input axis and the taps: (..., I * T) of (..., columns)."""
        columns = None if self.columns is None else self.columns.long()
        channels = self._channels[1:]
        return synthesis.of_columns(kept, columns, channels, self.basis("in"), self.basis("taps"))

    def forward(self) -> Tensor:
        """The weight, rebuilt."""
        kept = self._synthesis(self._scaled())
        sums = synthesis.of_rows(kept, self.basis("out"), self._rows())
        return sums.reshape(self._spread).permute(self._places).contiguous().to(self.like.dtype)

    def kernel(self) -> Tensor:
        """Coefficients as the weights of a layer on kept columns: (O', kept columns)."""
        scaled = self._scaled()
        if self.out_basis is None:
            scaled = scaled * self._rows()[:, None]
        return scaled.to(self.like.dtype)

    def outputs(self) -> Tensor | None:
        """Weights of the layer behind it, (O, O'), where there is an output basis."""
        out = self.basis("out")
        return None if out is None else (out.T * self._rows()[:, None]).to(self.like.dtype)

    def analysis(self) -> Tensor | None:
        """The input basis, (channels of which a column is kept, I)."""
        rows = self.basis("in")
        if rows is None:
            return None
        return (rows if self.used is None else rows[self.used.long()]).to(self.like.dtype)

    def inputs(self, x: Tensor, dim: int) -> Tensor:
        """The channel of each kept column, out of those of `analysis` along a dimension.

        Where all columns are kept the channels as they are, each of which has all filters.
        """
        if self.columns is None:
            return x
        channel = self.columns.long() // self._channels[2]
        if self.used is not None:
            channel = torch.searchsorted(self.used.long(), channel)
        return x.index_select(dim, channel)

    def filters(self) -> Tensor:
        """The filter of each kept column, (columns, T)."""
        rows = self.basis("taps")
        if rows is None:
            rows = torch.eye(self._lengths[2], device=self.like.device)
        if self.columns is None:
            rows = rows.repeat(self._channels[1], 1)
        else:
            rows = rows[self.columns.long() % self._channels[2]]
        return rows.to(self.like.dtype)

    def lookup(self, indices: Tensor) -> Tensor:
        """Rows of the weight, of a matrix without an output basis."""
        sums = self._synthesis(self._scaled(indices))
        return (sums * _rows(self._rows()[:, None], indices)).to(self.like.dtype)

    def extra_repr(self) -> str:
        about, found = self.coefficients, self.operations
        least = f"{found.dense} multiplications a position"
        if found.way == "transform":
            least += f", in the transform domain {found.transform}"
        rows = f"{about.shape[0]} x {found.kept} of {found.columns} coefficients"
        return f"{rows}, {str(about.dtype).removeprefix('torch.')}, {least}"


def _rows(matrix: Tensor, indices: Tensor | None) -> Tensor:
    """Rows of a matrix, with the checks of an embedding: no negative index, no mask."""
    return matrix if indices is None else functional.embedding(indices, matrix)


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    """The forward of a linear layer whose weight is held."""
    held = holder_of(module, "weight")
    fits = x.shape[-1:] == (module.in_features,)  # else the dense way refuses it
    if not fits or not held.operations.pays(x.numel() // max(1, module.in_features)):
        return functional.linear(x, module.weight, module.bias)
    basis, outputs = held.analysis(), held.outputs()
    if basis is not None:
        x = functional.linear(x, basis)
    x = held.inputs(x, -1)
    kernel = held.kernel()
    if held.taps_basis is not None:  # of a single position: one factor for each column
        kernel = kernel * held.filters()[:, 0]
    if outputs is None:
        return functional.linear(x, kernel, module.bias)
    return functional.linear(functional.linear(x, kernel), outputs, module.bias)


def convolution(module: Any, x: Tensor) -> Tensor:
    """The forward of a convolution of 1 to 3 dimensions whose weight is held.

    A layer of 1x1 filters for an input basis; the filters of the taps on each channel, for the kept
    columns alone; a layer of 1x1 filters of coefficients; and one for an output basis.
    """
    held = holder_of(module, "weight")
    dims = len(module.kernel_size)
    fits = x.dim() in (dims + 1, dims + 2) and x.shape[-dims - 1] == module.in_channels
    positions = x.numel() // max(1, module.in_channels) // math.prod(module.stride)
    if not fits or not held.operations.pays(positions):  # the dense way refuses what does not fit
        found: Tensor = module._conv_forward(x, module.weight, module.bias)
        return found
    if x.dim() == dims + 1:
        return convolution(module, x[None])[0]
    conv, groups, ones = CONVOLUTIONS[dims], module.groups, [1] * dims
    padding = module.padding
    if module.padding_mode != "zeros":
        x = functional.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding = 0
    basis, outputs = held.analysis(), held.outputs()
    if basis is not None:
        weight = basis.repeat(groups, 1)
        x = conv(x, weight.reshape(*weight.shape, *ones), groups=groups)
    x = held.inputs(x.unflatten(1, (groups, -1)), 2).flatten(1, 2)
    kernel = held.kernel()
    geometry = {"stride": module.stride, "padding": padding, "dilation": module.dilation}
    if math.prod(module.kernel_size) > 1:
        filters = held.filters().repeat(groups, 1).reshape(-1, 1, *module.kernel_size)
        x = conv(x, filters, groups=x.shape[1], **geometry)
        geometry = {}
    elif held.taps_basis is not None:
        kernel = kernel * held.filters()[:, 0]
    kernel = kernel.reshape(*kernel.shape, *ones)
    if outputs is None:
        return conv(x, kernel, module.bias, groups=groups, **geometry)
    x = conv(x, kernel, groups=groups, **geometry)
    return conv(x, outputs.reshape(*outputs.shape, *ones), module.bias)


def embedding(module: nn.Embedding, x: Tensor) -> Tensor:
    """The forward of an embedding whose weight is held: the rows that are asked for."""
    held = holder_of(module, "weight")
    if held.out_basis is not None:
        return functional.embedding(x, module.weight)
    found: Tensor = held.lookup(x)
    return found
