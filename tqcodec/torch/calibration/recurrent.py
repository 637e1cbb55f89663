"""Attention and recurrent layers, whose matrices are no layers of their own, done step by step.

Their outputs are those of PyTorch's own functions up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tqcodec.torch.calibration.layers import Layer
from tqcodec.torch.calibration.recorder import Recorder

State = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, State], State]


def attention(recorder: Recorder, func: Any, *args: Any, **kwargs: Any) -> Any:
    """F.multi_head_attention_forward with its four matrices as linear layers.

    PyTorch's function does the rest with identity matrices in their place.
    """
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    query, bias = given["query"], given["in_proj_bias"]
    axis = 1 if query.ndim == 3 else None
    inputs = [query, given["key"], given["value"]]
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    if given["use_separate_proj_weight"]:
        names = [f"{role}_proj_weight" for role in "qkv"]
        inputs = [
            recorder.linear(x, given[name], b, axis=axis)
            for x, name, b in zip(inputs, names, biases, strict=True)
        ]
    else:
        whole = given["in_proj_weight"]
        inputs = [
            recorder.linear(x, w, b, axis=axis, of=(whole, bias), part=i)
            for i, (x, w, b) in enumerate(zip(inputs, whole.chunk(3), biases, strict=True))
        ]
    identity = torch.eye(query.shape[-1], dtype=query.dtype, device=query.device)
    weight, out_bias = given["out_proj_weight"], given["out_proj_bias"]
    given |= dict(zip(("query", "key", "value"), inputs, strict=True))
    given |= {f"{role}_proj_weight": identity for role in ("q", "k", "v", "out")}
    given |= {"in_proj_weight": None, "in_proj_bias": None, "out_proj_bias": None}
    given["use_separate_proj_weight"] = True
    out, attended = func(**given)
    return recorder.linear(out, weight, out_bias, axis=axis), attended


def layers(recorder: Recorder, func: Any, *args: Any) -> Any:
    """torch.lstm, gru, rnn_tanh and rnn_relu; packed sequences are left to PyTorch."""
    if any(isinstance(args[i], Tensor) for i in ((1,) if func is torch.lstm else (2,))):
        return func(*args)
    x, state, weights, has_bias, count, dropout, training, bidirectional, batch_first = args
    if training and dropout:
        return func(*args)
    starts = state if isinstance(state, (tuple, list)) else (state,)
    directions = 2 if bidirectional else 1
    each = len(weights) // (count * directions)
    x = x.transpose(0, 1) if batch_first else x
    ends = []
    for layer in range(count):
        outs = []
        for direction in range(directions):
            i = layer * directions + direction
            own = weights[i * each : (i + 1) * each]
            out, end = _run(
                recorder,
                LAYERS[func],
                x.flip(0) if direction else x,
                tuple(start[i] for start in starts),
                own[:2],
                own[2:4] if has_bias else (None, None),
                own[-1] if each in (3, 5) else None,
            )
            outs.append(out.flip(0) if direction else out)
            ends.append(end)
        x = torch.cat(outs, -1)
    out = x.transpose(0, 1) if batch_first else x
    return out, *(torch.stack(parts) for parts in zip(*ends, strict=True))


def _run(
    recorder: Recorder,
    step: Step,
    x: Tensor,
    state: State,
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    projection: Tensor | None,
) -> tuple[Tensor, State]:
    """One direction of one layer over x (steps, batch, features): outputs and the last state.

    What multiplies the state of a step is added to a row of zeros, whose gradient is then that of
    the products of all steps.
    """
    steps, batch = x.shape[:2]
    from_x = recorder.linear(x, matrices[0], biases[0], axis=1)
    zeros = x.new_zeros(steps, batch, matrices[1].shape[0], requires_grad=True)
    short = None if projection is None else projection.shape[0]
    zeros_short = x.new_zeros(steps, batch, short or 0, requires_grad=True)
    states, cells, outs = [], [], []
    for now, zero, zero_short in zip(from_x, zeros.unbind(), zeros_short.unbind(), strict=True):
        states.append(state[0])
        from_h = functional.linear(state[0], matrices[1], biases[1]) + zero
        state = step(now, from_h, state)
        if projection is not None:
            cells.append(state[0])
            state = (functional.linear(state[0], projection) + zero_short, *state[1:])
        outs.append(state[0])
    for weight, bias, inputs, zero in (
        (matrices[1], biases[1], states, zeros),
        (projection, None, cells, zeros_short),
    ):
        if weight is not None:
            layer = Layer(tuple(weight.shape))
            recorder.record(weight, layer, torch.stack(inputs), zero, axis=1, bias=bias)
    return torch.stack(outs), state


def cell(recorder: Recorder, func: Any, x: Tensor, state: Any, *weights: Any) -> Any:
    """torch.lstm_cell, gru_cell, rnn_tanh_cell and rnn_relu_cell."""
    w_x, w_h, b_x, b_h = weights
    old = tuple(state) if isinstance(state, (tuple, list)) else (state,)
    new = CELLS[func](recorder.linear(x, w_x, b_x), recorder.linear(old[0], w_h, b_h), old)
    return new if len(new) > 1 else new[0]


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (r_x, z_x, n_x), (r_h, z_h, n_h) = x.chunk(3, -1), h.chunk(3, -1)
    z = (z_x + z_h).sigmoid()
    n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return ((1 - z) * n + z * state[0],)


def _tanh(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).tanh(),)


def _relu(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).relu(),)


LAYERS: dict[Any, Step] = {
    torch.lstm: _lstm,
    torch.gru: _gru,
    torch.rnn_tanh: _tanh,
    torch.rnn_relu: _relu,
}
CELLS: dict[Any, Step] = {
    torch.lstm_cell: _lstm,
    torch.gru_cell: _gru,
    torch.rnn_tanh_cell: _tanh,
    torch.rnn_relu_cell: _relu,
}
