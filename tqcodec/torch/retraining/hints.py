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

from tqcodec.torch.batches import Call, copied
from tqcodec.torch.outputs import class_axis, is_dense, outputs_of
from tqcodec.torch.retraining import processes

MOST: Final = 4  # modules whose outputs are compared
TINY: Final = 1e-30  # least magnitude of an output that is not all 0
LEAST: Final = 1e-3  # variance of an output over its energy: what hardly varies says nothing

Seen = list[tuple[str, Tensor | None]]  # names of modules, and what they gave


class Hints:
    """Blocks of two networks of one kind that are compared, spread evenly over their depth.

    A block is a module with trained parameters and modules of its own that runs once and gives a
    tensor for the batch, or several of which the first is one, on which the outputs depend; in a
    network without blocks it is a layer. There are none where the only output is not known to be
    scores of classes: with others they were not measured (docs/encoder.md).

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

    def choose(self, call: Call, samples: int) -> None:
        """Choose blocks by a run of the student, and watch them from now on.

        Args:
            call: arguments of a batch.
            samples: in it.
        """
        trial = copied(self._networks[0])  # for networks that count their runs
        modules = _watchable(trial)
        seen: Seen = []
        for name, module in modules.items():
            if name and any(one.requires_grad for one in module.parameters()):
                module.register_forward_hook(functools.partial(_note, seen, name))
        args, kwargs = call
        outputs = outputs_of(trial(*args, **kwargs), samples)
        found = _evenly(_blocks(seen, outputs, samples, modules))
        student, original = (_watchable(network) for network in self._networks)
        names = processes.of_first("\n".join(found).encode()).decode().split("\n")
        self._pairs = {
            name: (_Watch(student[name]), _Watch(original[name])) for name in names if name
        }

    def take(self) -> Tensor | float:
        """Squared error of the last run over the variance, the mean of all blocks; 0 without any.

        A block that one of the networks left out, or that gave another shape, does not count, nor
        do places that are not finite, as where scores are masked.
        """
        terms: list[Tensor] = []
        for one, other in self._pairs.values():
            x, y = one.values, other.values
            if x is None or y is None or x.shape != y.shape or not x.requires_grad:
                continue
            x, y = x.float(), y.detach().to(x.device, torch.float32)
            both = x.detach().isfinite() & y.isfinite()
            # Before the difference, whose gradient would be no number.
            x, y = torch.where(both, x, 0.0), torch.where(both, y, 0.0)
            most = y.abs().amax().clamp(min=TINY)  # squares of more than 1e19 are infinite
            x, y = x / most, y / most
            error, size = (x - y).square().mean(), y.var(correction=0)
            # Without a look at the number, which would wait for the device.
            term = error / torch.where(size > LEAST * y.square().mean(), size, math.inf)
            terms.append(term if not terms else term.to(terms[0].device))
        return torch.stack(terms).mean() if terms else 0.0

    def clear(self) -> None:
        """Keep nothing of the last run, also of what backward computed once more."""
        for pair in self._pairs.values():
            for watch in pair:
                watch.values = None

    @staticmethod
    def unwatched(network: nn.Module) -> nn.Module:
        """A copy of a network that is watched, without our hooks."""
        for module in network.modules():
            for key, hook in list(module._forward_hooks.items()):
                if isinstance(hook, _Watch):
                    del module._forward_hooks[key]
        return network


class _Watch:
    """Keeps what a module gave last."""

    def __init__(self, module: nn.Module) -> None:
        self.values: Tensor | None = None
        module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.values = _tensor_of(output)


def _note(seen: Seen, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    seen.append((name, _tensor_of(output)))


def _blocks(
    seen: Seen, outputs: dict[str, Tensor], samples: int, modules: dict[str, nn.Module]
) -> list[str]:
    """Names of the modules that can be compared, in the order in which they end."""
    if class_axis(outputs) is None:
        return []
    calls = Counter(name for name, _ in seen)
    last = {_place(y) for y in outputs.values()}
    places: dict[Any, tuple[str, Tensor]] = {}  # of one place the outermost module, which ends last
    for name, y in seen:
        if calls[name] != 1 or y is None or y.ndim < 2 or len(y) != samples or not y.numel():
            continue
        if y.requires_grad and _place(y) not in last and y.detach().isfinite().any():
            places.pop(_place(y), None)
            places[_place(y)] = name, y
    found = dict(places.values())
    ((_, scores),) = outputs.items()
    if not scores.requires_grad:
        return []
    reached: set[str] = set()
    for name, y in found.items():
        y.register_hook(functools.partial(_reach, reached, name))
    # What outputs do not depend on is no use to them, and its history may be gone.
    scores.float().sum().backward()
    names = [name for name in found if name in reached]
    return [name for name in names if next(modules[name].children(), None) is not None] or names


def _reach(reached: set[str], name: str, gradient: Tensor) -> None:
    reached.add(name)


def _evenly(names: list[str]) -> list[str]:
    most = min(MOST, len(names))
    return [names[round((i + 1) * len(names) / most) - 1] for i in range(most)]


def _tensor_of(output: Any) -> Tensor | None:
    """What a module gives, or the first of several; None where that is no tensor of floats."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    known = isinstance(output, Tensor) and output.is_floating_point()
    return output if known and is_dense(output) else None


def _watchable(network: nn.Module) -> dict[str, nn.Module]:
    """Modules by name that tell when they run."""
    modules = network.named_modules()
    return {
        name: one
        for name, one in modules
        if not isinstance(one, torch.jit.ScriptModule) and "parametrizations" not in name.split(".")
    }


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies: that of two names of one tensor is the same."""
    return tensor.data_ptr(), tuple(tensor.shape)
