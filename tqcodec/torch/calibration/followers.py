"""Followers: which vectors take up a shift or a gain of a layer's output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tqcodec.torch.calibration.layers import Use, linear_columns, version_of, watch


@dataclass(eq=False)
class _Link:
    """A call of a layer, and the batch normalisation that took its output, if one did."""

    use: Use
    out: Tensor
    version: int
    bias: str | None
    mean: str | None = None
    gain: str | None = None
    through: Tensor | None = None  # gradient by the output through the normalisation alone
    alone: bool = False


class Followers:
    """Watches one forward and backward pass.

    A batch normalisation behind a layer counts if it gets the very tensor that the layer returned
    and if the output of the network depends on that tensor in no other way: it gets an alias, and
    the gradient through the alias must be all of the tensor's gradient.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._links: dict[int, _Link] = {}
        self._means: Counter[str] = Counter()

    def add(self, use: Use, out: Tensor, bias: Tensor | None) -> None:
        """Note a call of a layer."""
        link = _Link(use, out, version_of(out), self._names.get(id(bias)))
        self._links[id(out)] = link

        def arrived(gradient: Tensor) -> None:
            link.alone = link.through is not None and torch.equal(gradient, link.through)
            link.through = None

        watch(out, arrived)

    def batch_norm(self, x: Tensor, mean: Any, gain: Any) -> Tensor:
        """Note a batch normalisation; gives the input that it is to work on."""
        name = self._names.get(id(mean))
        if name is None:
            return x
        self._means[name] += 1
        link = self._links.get(id(x))
        if link is None or link.use.axis is None or version_of(x) != link.version:
            return x
        if link.use.columns is linear_columns and x.ndim > 2:  # normalised over other channels
            return x
        link.mean, link.gain = name, self._names.get(id(gain))
        alias = x.view_as(x)

        def arrived(gradient: Tensor) -> None:
            link.through = gradient

        watch(alias, arrived)
        return alias

    def found(self) -> dict[str, dict[str, Any]]:
        """By name of the weights in use what they have of `shift`, `shift_sign` and `gain`."""
        links = list(self._links.values())
        calls = Counter(link.use.key for link in links)
        biases = Counter({(link.use.key[0], link.bias) for link in links})
        shared = Counter(bias for _, bias in biases)
        result: dict[str, dict[str, Any]] = {link.use.key[0]: {} for link in links}
        for link in links:
            layer = link.use.layer
            if calls[link.use.key] > 1 or layer.embedding or (layer.rows and layer.groups > 1):
                continue
            normed = link.alone and link.mean is not None and self._means[link.mean] == 1
            one: dict[str, Any] = {"gain": link.gain if normed else None}
            if link.bias is not None and shared[link.bias] == 1:
                one["shift"] = link.bias
            elif link.bias is None and normed:
                one |= {"shift": link.mean, "shift_sign": -1}
            result[link.use.key[0]] = one
        return result
