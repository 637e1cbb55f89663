"""What users of language networks do today: rounding in groups, to integers or to NF4.

Matrices are cut into groups of neighbouring weights of a row. Vectors stay as they are, and count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

State = Mapping[str, Tensor]
Rounded = tuple[Tensor, float]  # a matrix, and the bits that it takes

NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
"""Of QLoRA (Dettmers et al., NeurIPS 2023)."""
NF4_GROUP = 64
SCALES = 256
"""Of NF4's groups, that share one of their own."""


def groups(weight: Tensor, bits: int, size: int) -> Rounded:
    """Integers of `bits` bits, with a half-precision scale and a zero of `bits` bits a group."""
    cut = _cut(weight, size)
    low, high = (f(cut, 1, keepdim=True).values for f in (torch.min, torch.max))
    scale = ((high.clamp(min=0) - low.clamp(max=0)) / (2**bits - 1)).half().float()
    scale = torch.where(scale > 0, scale, 1.0)
    zero = (-low.clamp(max=0) / scale).round()
    levels = ((cut / scale).round() + zero).clamp(0, 2**bits - 1) - zero
    return _whole(levels * scale, weight), bits * weight.numel() + len(cut) * (16 + bits)


def nf4(weight: Tensor) -> Rounded:
    """16 levels times the largest of 64 weights; the largest ones in 8 bits (QLoRA)."""
    cut = _cut(weight, NF4_GROUP)
    largest = cut.abs().amax(1)
    mean = largest.mean()
    blocks = _cut(largest - mean, SCALES)
    step = blocks.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    scales = (blocks / step).round().mul(step).flatten()[: len(cut), None] + mean
    places = torch.bucketize(cut / scales, (NF4[1:] + NF4[:-1]) / 2)
    bits = 4 * weight.numel() + 8 * len(cut) + 32 * (len(blocks) + 1)
    return _whole(NF4[places] * scales, weight), bits


CONTENDERS: Mapping[str, Callable[[Tensor], Rounded]] = {
    "4 bits, groups of 32": lambda weight: groups(weight, 4, 32),
    "4 bits, groups of 128": lambda weight: groups(weight, 4, 128),
    "NF4, groups of 64": nf4,
    "3 bits, groups of 128": lambda weight: groups(weight, 3, 128),
}


def rounded(state: State, method: Callable[[Tensor], Rounded]) -> tuple[dict[str, Tensor], int]:
    """All matrices rounded; the state, and the bytes that it takes."""
    found, bits = dict(state), 0.0
    for name, tensor in state.items():
        if tensor.ndim >= 2 and tensor.is_floating_point():
            found[name], taken = method(tensor)
            bits += taken
        else:
            bits += 8 * tensor.numel() * tensor.element_size()
    return found, round(bits / 8)


def _cut(values: Tensor, size: int) -> Tensor:
    """Groups of neighbours, float32 (groups, size), the last filled up with zeros."""
    flat = values.float().flatten()
    return functional.pad(flat, (0, -len(flat) % size)).view(-1, size)


def _whole(cut: Tensor, like: Tensor) -> Tensor:
    return cut.flatten()[: like.numel()].view(like.shape).to(like.dtype)
