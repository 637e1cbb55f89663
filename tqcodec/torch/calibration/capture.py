"""Capture: sees every call of a layer in a forward pass.

The calls are seen where PyTorch's functions are called, not where modules are: a module that pads
its input or calls the function itself is seen all the same, and no module is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import checkpoint

from tqcodec.torch.batches import Ordinary
from tqcodec.torch.calibration import recurrent
from tqcodec.torch.calibration.layers import (
    Columns,
    Layer,
    conv_columns,
    transposed_columns,
)
from tqcodec.torch.calibration.recorder import Recorder


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """`torch.utils.checkpoint` keeps what it else computes once more, where nobody would see it."""
    before = {name: getattr(checkpoint, name) for name in _DIRECT if hasattr(checkpoint, name)}
    for name in before:
        setattr(checkpoint, name, _DIRECT[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(checkpoint, name, value)


class _Direct:
    @staticmethod
    def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
        return function(*args)


def _direct(*_: Any, **__: Any) -> Iterator[None]:
    yield


# What `torch.utils.checkpoint.checkpoint` calls, with and without reentrant autograd.
_DIRECT = {"CheckpointFunction": _Direct, "_checkpoint_without_reentrant_generator": _direct}


def _is_transformed() -> bool:
    """True inside of vmap and the like, where tensors are not what they seem."""
    functorch = getattr(torch._C, "_functorch", None)
    peek = getattr(functorch, "peek_interpreter_stack", None)
    return peek is not None and peek() is not None


class Capture(Ordinary):
    """While entered, tells a recorder of the layers that are called with gradients enabled."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        convs = (torch.conv1d, torch.conv2d, torch.conv3d)
        transposed = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
        self._handlers: dict[Any, Callable[..., Any]] = {
            **dict.fromkeys(convs, self._conv),
            **dict.fromkeys(transposed, self._conv_transposed),
            functional.linear: self._linear,
            functional.embedding: self._embedding,
            functional.batch_norm: self._batch_norm,
            functional.multi_head_attention_forward: self._attention,
            **dict.fromkeys(recurrent.LAYERS, self._recurrent),
            **dict.fromkeys(recurrent.CELLS, self._cell),
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        handler = self._handlers.get(func)
        if handler is None or not torch.is_grad_enabled() or _is_transformed():
            return self.called(func, args, kwargs or {})
        try:
            return handler(func, *args, **(kwargs or {}))
        except RuntimeError as error:
            if "Inference tensors" not in str(error):
                raise
        return self.called(func, args, kwargs or {})

    def _linear(self, func: Any, input: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
        return self._recorder.linear(input, weight, bias)

    def _conv(
        self,
        func: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        out = func(input, weight, bias, stride, padding, dilation, groups)
        columns = conv_columns(weight.shape[2:], stride, padding, dilation, groups)
        layer = Layer(tuple(weight.shape), groups=groups)
        return self._convolved(weight, layer, input, out, columns, bias)

    def _conv_transposed(
        self,
        func: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor:
        out = func(input, weight, bias, stride, padding, output_padding, groups, dilation)
        kernel = weight.shape[2:]
        columns = transposed_columns(kernel, stride, padding, output_padding, dilation, groups)
        layer = Layer(tuple(weight.shape), rows=1, groups=groups)
        return self._convolved(weight, layer, input, out, columns, bias)

    def _convolved(
        self,
        weight: Tensor,
        layer: Layer,
        input: Tensor,
        out: Tensor,
        columns: Columns,
        bias: Tensor | None,
    ) -> Tensor:
        axis = 0 if input.ndim == weight.ndim else None  # else there is no batch
        return self._recorder.record(weight, layer, input, out, columns, axis=axis, bias=bias)

    def _embedding(
        self, func: Any, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        renormed = kwargs.get("max_norm") is not None  # which changes the weight in place
        out = func(input, weight.clone() if renormed else weight, *args, **kwargs)
        return self._recorder.record(weight, Layer(tuple(weight.shape), embedding=True), input, out)

    def _batch_norm(
        self,
        func: Any,
        input: Tensor,
        mean: Any,
        var: Any,
        weight: Any = None,
        **others: Any,
    ) -> Tensor:
        input = self._recorder.batch_norm(input, mean, weight)
        return func(input, mean, var, weight, **others)

    def _attention(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        return recurrent.attention(self._recorder, func, *args, **kwargs)

    def _recurrent(self, func: Any, *args: Any) -> Any:
        return recurrent.layers(self._recorder, func, *args)

    def _cell(self, func: Any, *args: Any) -> Any:
        return recurrent.cell(self._recorder, func, *args)
