"""Hints: what a network computes inside is to be like the original's, too.

After FitNets (Romero et al., ICLR 2015), here between networks of one shape: what blocks in the
middle should give says more in a step of training than the last outputs alone.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from typing import Any, Final

import torch
from torch import Tensor, nn

from tqcodec.torch.batches import Call, Runner
from tqcodec.torch.outputs import class_axis, outputs_of

MOST: Final = 4  # modules whose outputs are compared
TINY: Final = 1e-12  # least variance of an output


class Hints:
    """Blocks of two networks of one kind that are compared, spread evenly over their depth.

    A block is a module with trained parameters that has modules of its own, runs once and gives a
    tensor for the batch, or several of which the first is one; in a network without blocks it is a
    layer. There are none where the only output is not known to be scores of classes: it was for
    these that they were measured (docs/encoder.md).

    Args:
        student: the network that is trained.
        original: what it is to be like.
    """

    def __init__(self, student: nn.Module, original: nn.Module) -> None:
        self._networks = student, original
        self._pairs: dict[str, tuple[_Watch, _Watch]] = {}

    @property
    def names(self) -> list[str]:
        """Of the modules that are compared."""
        return list(self._pairs)

    def choose(self, runner: Runner, call: Call, samples: int) -> None:
        """Choose blocks by a run of the original, and watch them from now on.

        Args:
            runner: of the original.
            call: arguments of a batch.
            samples: in it.
        """
        student, original = (_watchable(network) for network in self._networks)
        seen: list[tuple[str, Tensor | None]] = []  # in the order in which they end
        hooks = []
        for name, module in original.items():
            if name and any(one.requires_grad for one in student[name].parameters()):
                note = functools.partial(_note, seen, name)
                hooks.append(module.register_forward_hook(note))
        try:
            outputs = outputs_of(runner(*call), samples)
        finally:
            for hook in hooks:
                hook.remove()
        if class_axis(outputs) is None:
            return
        calls = Counter(name for name, _ in seen)
        places = {_place(y) for y in outputs.values()}
        found = []
        for name, y in seen:
            if calls[name] != 1 or y is None or y.ndim < 2 or len(y) != samples or not y.numel():
                continue
            if _place(y) not in places:
                places.add(_place(y))
                found.append(name)
        blocks = [name for name in found if next(original[name].children(), None) is not None]
        found = blocks or found
        most = min(MOST, len(found))
        names = [found[round((i + 1) * len(found) / most) - 1] for i in range(most)]
        self._pairs = {name: (_Watch(student[name]), _Watch(original[name])) for name in names}

    def take(self) -> Tensor | float:
        """Squared error of the last run over the variance, the mean of all blocks; 0 without any.

        A block that one of the networks left out, or that gave another shape, does not count.
        """
        terms = []
        for one, other in self._pairs.values():
            x, y = one.take(), other.take()
            if x is None or y is None or x.shape != y.shape or not x.requires_grad:
                continue
            error, size = (x.float() - y.float()).square().mean(), y.float().var(correction=0)
            # Without a look at the number, which would wait for the device.
            terms.append(error / torch.where(size > TINY, size, math.inf))
        return torch.stack(terms).mean() if terms else 0.0


class _Watch:
    """Keeps what a module gave last. Copies of the module are not watched."""

    def __init__(self, module: nn.Module | None) -> None:
        self._values: Tensor | None = None
        self._watches = module is not None
        if module is not None:
            module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._watches:
            self._values = _first(output)

    def __deepcopy__(self, memo: Any) -> _Watch:
        return _Watch(None)

    def take(self) -> Tensor | None:
        """What was given, which is not kept any longer."""
        values, self._values = self._values, None
        return values


def _note(
    seen: list[tuple[str, Tensor | None]], name: str, module: nn.Module, inputs: Any, output: Any
) -> None:
    seen.append((name, _first(output)))


def _first(output: Any) -> Tensor | None:
    """What a module gives, or the first of several; None where that is no tensor of floats."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    known = isinstance(output, Tensor) and output.is_floating_point()
    return output if known and output.layout == torch.strided else None


def _watchable(network: nn.Module) -> dict[str, nn.Module]:
    """Modules by name that tell when they run."""
    modules = network.named_modules()
    return {name: one for name, one in modules if not isinstance(one, torch.jit.ScriptModule)}


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies: that of two names of one tensor is the same."""
    return tensor.data_ptr(), tuple(tensor.shape)
