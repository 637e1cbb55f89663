"""Augmentation: pictures that are moved and mirrored at random, as most networks were trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tqcodec.errors import EncodeError


class Augmented:
    """Batches whose pictures are moved by up to `crop` pixels each way, and mirrored.

    What comes in at an edge is 0. By torch's global generator, anew in each pass.

    Args:
        batches: pairs of pictures (samples, channels, height, width) and anything.
        crop: pixels; 0 moves nothing.
        mirror: exchange left and right of half of them.
    """

    def __init__(self, batches: Iterable[Any], crop: int, mirror: bool) -> None:
        if crop < 0:
            raise EncodeError(f"crop={crop} must be at least 0")
        self._batches, self._crop, self._mirror = batches, crop, mirror

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for inputs, labels in self._batches:
            if not isinstance(inputs, Tensor) or inputs.ndim != 4:
                raise EncodeError("augmentation needs pictures (samples, channels, height, width)")
            yield self._changed(inputs), labels

    def _changed(self, pictures: Tensor) -> Tensor:
        count, _, height, width = pictures.shape
        rows, columns = (torch.arange(n, device="cpu") for n in (height, width))
        padded = functional.pad(pictures, (self._crop,) * 4)
        down, right = torch.randint(0, 2 * self._crop + 1, (2, count, 1), device="cpu")
        y, x = down + rows, right + columns
        if self._mirror:
            x = torch.where(torch.rand(count, 1, device="cpu") < 0.5, x.flip(1), x)
        samples = torch.arange(count, device="cpu")[:, None, None]
        moved = padded.movedim(1, 3)[samples, y[:, :, None], x[:, None, :]]
        return moved.movedim(3, 1).contiguous()
