"""Inputs like an example: of its shapes and types, and of its means and spreads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tqcodec.errors import EncodeError
from tqcodec.torch.batches import inputs_of
from tqcodec.torch.synthetic.leaves import dead_leaves, pink_noise
from tqcodec.torch.synthetic.parts import ALONE, Part, Parts

LEAST_SIDE = 16  # in pixels, of what is taken for a picture
MOST_CHANNELS = 16  # likewise
LEAST_ROWS = 8  # samples from which each feature of a vector has a mean and a spread of its own


def numbers_of(example: Any) -> tuple[int, int]:
    """Floats and integers of one sample in the largest tensor of each kind of an example."""
    floats = integers = 0
    for one in _given(example).values():
        if isinstance(one, Tensor) and one.ndim and len(one):
            if one.is_floating_point():
                floats = max(floats, one[0].numel())
            else:
                integers = max(integers, one[0].numel())
    return floats, integers


def parts_like(example: Any, count: int, generator: torch.Generator) -> Parts:
    """Parts of `count` samples like those of an example.

    By what a tensor of the example is:

    - floats (samples, channels, height, width), at most 16 channels: dead leaves;
    - other floats: noise, over dimensions behind the second one with a spectrum of 1 / frequency;
    - integers and booleans: a column in which all samples (two or more) agree stays; tensors of at
      most two values, as masks have, are those of samples drawn from the example; others are random
      between the least and the largest;
    - anything else, and tensors without dimensions, stays as it is.

    Raises:
        EncodeError: no tensor with samples, or different numbers of them.
    """
    given = _given(example)
    sizes = {len(one) for one in given.values() if isinstance(one, Tensor) and one.ndim}
    if len(sizes) != 1 or 0 in sizes:
        raise EncodeError(
            f"the example needs samples along dimension 0 of all its tensors: {sizes}"
        )
    rows = torch.randint(sizes.pop(), (count,), generator=generator, device="cpu")
    return {name: _like(value, rows, generator) for name, value in given.items()}


def _given(example: Any) -> dict[str, Any]:
    """What an example holds, by name."""
    inputs = inputs_of(example)
    return dict(inputs) if isinstance(inputs, Mapping) else {ALONE: inputs}


def _like(example: Any, rows: Tensor, generator: torch.Generator) -> Part:
    if not isinstance(example, Tensor) or not example.ndim:
        return Part(example)
    example = example.detach().cpu()
    if example.is_floating_point():
        return _floats_like(example, len(rows), generator)
    if example.is_complex():
        raise EncodeError("the example holds complex numbers, which cannot be made up")
    return Part(_integers_like(example, rows, generator))


def _integers_like(example: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    if example.dtype == torch.bool or len(example.unique()) <= 2:
        return example[rows]
    agreed = (example == example[:1]).all(0)
    if len(example) < 2 or agreed.all():
        agreed = torch.zeros_like(agreed)
    varying = example[:, ~agreed]
    shape = (len(rows), *example.shape[1:])
    low, high = int(varying.min()), int(varying.max())
    drawn = torch.randint(low, high + 1, shape, generator=generator, device="cpu").to(example.dtype)
    return torch.where(agreed, example[0], drawn)


def _floats_like(example: Tensor, count: int, generator: torch.Generator) -> Part:
    known = example.double()
    if not known.isfinite().all():
        raise EncodeError("the example holds numbers that are not finite")
    shape = (count, *example.shape[1:])
    is_picture = (
        example.ndim == 4
        and example.shape[1] <= MOST_CHANNELS
        and min(example.shape[2:]) >= LEAST_SIDE
    )
    seed = int(torch.randint(1 << 62, (), generator=generator, device="cpu"))
    if is_picture:
        leaves = dead_leaves(count, shape[2], shape[3], shape[1], seed=seed)
        values, over = torch.from_numpy(leaves).double(), [0, 2, 3]
    else:
        values = torch.from_numpy(pink_noise(shape, seed=seed)).double()
        over = (
            [0] if example.ndim == 2 and len(example) >= LEAST_ROWS else list(range(example.ndim))
        )
    own_mean, own_std = (f(values, over) for f in (_mean, _std))
    values = (values - own_mean) / own_std.clamp(min=1e-12)
    mean, std = _mean(known, over), _std(known, over)
    unit = std.clamp(min=1e-12)
    standard = (known - mean) / unit
    low, high = float(standard.min()), float(standard.max())  # no further than the example goes
    return Part(
        values.clamp(low, high).float(),
        std[0].float(),
        mean[0].float(),
        low,
        high,
        is_picture,
        example.dtype,
    )


def _mean(values: Tensor, over: list[int]) -> Tensor:
    return values.mean(over, keepdim=True)


def _std(values: Tensor, over: list[int]) -> Tensor:
    return values.std(over, correction=0, keepdim=True)
