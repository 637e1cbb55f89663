"""Parts: the tensors that inputs consist of, before the network gets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tqcodec.torch.batches import Call

Parts = Mapping[str, "Part"]

ALONE = ""  # name of the only part, where the network takes one tensor


@dataclass(frozen=True)
class Part:
    """One tensor of the inputs of some samples.

    Attributes:
        values: (samples, ...); the network gets gain * values + offset. What is no tensor, or has
            no samples, goes to every batch as it is.
        gain: None where the values are given as they are, as integers are; else to be broadcast
            over one sample, as the next.
        offset: what black, or the mean, is to the network.
        low: least value.
        high: largest value.
        is_picture: True for (samples, channels, height, width) that may be mirrored and moved.
        dtype: of what the network gets.
    """

    values: Any
    gain: Tensor | None = None
    offset: Tensor | None = None
    low: float = 0.0
    high: float = 1.0
    is_picture: bool = False
    dtype: torch.dtype = torch.float32

    def given(self) -> Any:
        """What the network gets."""
        if self.gain is None or self.offset is None:
            return self.values
        return (self.values * self.gain + self.offset).to(self.dtype)

    def chosen(self, samples: slice, device: torch.device) -> Part:
        """Some of the samples, on a device."""
        if not isinstance(self.values, Tensor):
            return self
        values = self.values[samples] if self.values.ndim else self.values
        found = replace(self, values=values.to(device))
        if self.gain is None or self.offset is None:
            return found
        return replace(found, gain=self.gain.to(device), offset=self.offset.to(device))


def batch_of(parts: Parts) -> Any:
    """Parts as a batch for the network: a tensor, or a mapping of keyword arguments."""
    given = {name: part.given() for name, part in parts.items()}
    return given.get(ALONE, given)


def call_of(parts: Parts) -> Call:
    """What the network is called with."""
    batch = batch_of(parts)
    return ((batch,), {}) if isinstance(batch, Tensor) else ((), batch)
