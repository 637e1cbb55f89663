"""Recorder: the calls of a network's layers, and the sums that a backward pass makes of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tqcodec.encoder.kinds import is_matrix
from tqcodec.encoder.statistics import WeightStatistics, sampled_places, sketch_of
from tqcodec.errors import EncodeError
from tqcodec.torch.calibration.followers import Followers
from tqcodec.torch.calibration.layers import (
    Columns,
    Layer,
    Use,
    linear_columns,
    version_of,
    watch,
)
from tqcodec.torch.calibration.sums import Sums, UnfitError, joined

UNUSED = (
    "not the weight of a linear, convolution, embedding, attention or recurrent layer in use, "
    "or in use only where none is seen (TorchScript, no_grad, vmap)"
)


class Recorder:
    """Takes down the calls of layers; `backward` turns them into sums.

    Attributes:
        weights: the weight matrices of the network by their first name in the state dict.
    """

    def __init__(self, model: nn.Module, block: int) -> None:
        state = model.state_dict(keep_vars=True)
        tensors = [(name, t) for name, t in state.items() if isinstance(t, Tensor)]
        self.names = {id(tensor): name for name, tensor in reversed(tensors)}
        self.weights = {
            name: tensor
            for name, tensor in tensors
            if isinstance(tensor, nn.Parameter)
            and self.names[id(tensor)] == name
            and tensor.is_floating_point()
            and is_matrix(tensor.shape)
        }
        self._state = state  # keeps the identities valid
        self._block = block
        self._sums: dict[str, dict[int, Sums]] = defaultdict(dict)
        self._unfit: dict[str, str] = {}
        self._uses: dict[tuple[str, int], list[Use]] = defaultdict(list)
        self._pending: set[tuple[str, int]] = set()
        self._samples, self._first = 0, True
        self._images = self._probes = 0  # of the whole run, whichever weights took part
        self._followers: Followers | None = Followers(self.names)
        self._found: dict[str, dict[str, Any]] = {}

    @property
    def seen(self) -> bool:
        """True if a layer was called since the last `backward`."""
        return bool(self._uses)

    def backward(
        self, outputs: Sequence[Tensor], signs: Sequence[Sequence[Tensor]], samples: int
    ) -> None:
        """Back-propagate each sign vector and add what it says of the calls since the last time.

        Args:
            outputs: what the network gave; none if it found nothing in these samples, or if they
                reached no layer.
            signs: for each probe, of the outputs' shapes.
            samples: in the batch.
        """
        self._samples = samples
        self._images += samples
        self._probes += samples * len(signs)
        for key, uses in self._uses.items():
            # A matrix that is an embedding as well counts as a matrix.
            self._uses[key] = [use for use in uses if not use.layer.embedding] or uses
        for k, v in enumerate(signs):
            self._first, self._pending = k == 0, set(self._uses)
            for use in (use for uses in self._uses.values() for use in uses):
                use.gradient = None  # of gradients that the network took itself
            if outputs:
                torch.autograd.backward(outputs, v, retain_graph=k + 1 < len(signs))
            for key in sorted(self._pending):  # not all of their calls reach the output
                self._add(key)
        self._uses.clear()
        if self._followers is not None:  # those of a weight are judged when it is first used
            self._found = {**self._followers.found(), **self._found}
            waiting = not self.weights.keys() <= self._found.keys()
            self._followers = Followers(self.names) if waiting else None

    def batch_norm(self, x: Tensor, mean: Any, gain: Any) -> Tensor:
        """Note a batch normalisation; gives the input that it is to work on."""
        return x if self._followers is None else self._followers.batch_norm(x, mean, gain)

    def record(
        self,
        weight: Tensor,
        layer: Layer,
        x: Tensor,
        out: Tensor,
        columns: Columns = linear_columns,
        *,
        axis: int | None = 0,
        part: int = 0,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Note one call of a layer; gives the output to go on with.

        Args:
            weight: the parameter; if it is no weight matrix of the network, nothing is noted.
            layer, x, columns, axis: as in `Use`.
            out: what the layer gave.
            part: which part of the weight.
            bias: what was added to the output.
        """
        name = self.names.get(id(weight))
        if name is None or name not in self.weights or not out.numel():
            return out  # an expert without samples gives nothing
        if not out.requires_grad:
            out = out.detach().requires_grad_().clone()  # a leaf could not be changed in place
        use = Use((name, part), layer, x.detach(), axis, columns, out.shape, version_of(x))
        self._uses[use.key].append(use)
        if self._followers is not None:
            self._followers.add(use, out, bias)

        def arrived(gradient: Tensor) -> None:
            use.gradient = gradient.detach()
            if all(other.gradient is not None for other in self._uses[use.key]):
                self._add(use.key)

        watch(out, arrived)
        return out

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        axis: int | None = 0,
        of: tuple[Tensor, Tensor | None] | None = None,
        part: int = 0,
    ) -> Tensor:
        """functional.linear, recorded; `weight` and `bias` may be a part of the parameters `of`."""
        out = functional.linear(x, weight, bias)
        axis = None if x.ndim == 1 else axis
        whole, bias = of or (weight, bias)
        layer = Layer(tuple(weight.shape))
        return self.record(whole, layer, x, out, axis=axis, part=part, bias=bias)

    def _add(self, key: tuple[str, int]) -> None:
        """Add the calls of one weight to its sums, once for each sign vector."""
        if key not in self._pending:
            return
        self._pending.remove(key)
        name, part = key
        uses = self._uses[key]
        sums, layer = self._sums[name], uses[0].layer
        try:
            if any(use.layer != sums.get(part, uses[0]).layer for use in uses):
                raise UnfitError("used in two ways")
            if any(version_of(use.x) != use.version for use in uses):
                raise UnfitError("its input is overwritten after use")
            if part not in sums:
                sums[part] = Sums(layer, self._block, uses[0].x.device)
            sums[part].add(uses, self._samples, self._first)
        except UnfitError as error:
            self._unfit[name] = str(error)
        for use in uses:
            use.gradient = None

    def statistics(self) -> tuple[dict[str, WeightStatistics], dict[str, str]]:
        """Statistics by name, and why weights have none.

        Raises:
            EncodeError: a sum that is not finite.
        """
        weights, without = {}, dict(self._unfit)
        for name, weight in self.weights.items():
            parts = [self._sums[name][part] for part in sorted(self._sums[name])]
            if not parts:
                without.setdefault(name, UNUSED)
            if name in without:
                continue
            try:
                sums = joined(tuple(weight.shape), parts)
                weights[name] = replace(
                    sums,
                    images=self._images,
                    probes=self._probes,
                    sketch=_sketch(weight),
                    **self._found.get(name, {}),
                )
            except UnfitError as error:
                without[name] = str(error)
            except FloatingPointError:
                text = f"layer {name!r}: inputs or gradients are not finite"
                raise EncodeError(text) from None
        return weights, {name: without[name] for name in self.weights if name in without}


def _sketch(weight: Tensor) -> tuple[float, ...]:
    places = torch.from_numpy(sampled_places(weight.numel())).to(weight.device)
    return sketch_of(weight.detach().reshape(-1)[places].double().cpu().numpy())
