"""Steps of gradient that make inputs look to a network as its training data did.

After DeepInversion (Yin et al., CVPR 2020) and ZeroQ (Cai et al., CVPR 2020): a network with batch
normalisation holds the mean and the variance that each of its channels had on real data, and inputs
are moved until they have them too. Meanwhile each input is drawn towards an output of its own,
since what all look alike to says nothing of how outputs vary: towards a random class where the
outputs are classes, else in a random direction from the mean of the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tqcodec.errors import EncodeError
from tqcodec.torch.outputs import is_classes, numbers_of, samples_in
from tqcodec.torch.synthetic.parts import Part, Parts, call_of

LEAST_VARIANCE = 1e-3  # of that of real data, for the logarithm
MOVED = 1 / 16  # most that pictures are moved to and fro, of their side


@dataclass(frozen=True)
class SyntheticRecipe:
    """How inputs are moved.

    Attributes:
        steps: of gradient, by Adam.
        rate: its first rate, falling to 0 as a cosine does; of the range of the inputs.
        moments: weight of means and variances.
        outputs: weight of the outputs; in every second batch they are left alone.
        smoothness: weight of the mean difference of neighbouring pixels.
        batch: most samples that are moved together. Means and variances are those of a batch.
        side: most of a picture's short side, in pixels. Smaller pictures take less time and serve
            as well; of a network that takes no other size than its own they have that.
    """

    steps: int = 40
    rate: float = 0.015
    moments: float = 1.0
    outputs: float = 0.03
    smoothness: float = 0.2
    batch: int = 32
    side: int = 128

    def __post_init__(self) -> None:
        numbers = (self.rate, self.moments, self.outputs, self.smoothness)
        if (
            self.steps < 0
            or min(self.batch, self.side) < 1
            or not all(0 <= x < math.inf for x in numbers)
        ):
            raise EncodeError(
                f"{self}: numbers must be finite and at least 0, batch and side at least 1"
            )


DEFAULT = SyntheticRecipe()


class Moments:
    """How far the inputs of batch normalisations are from what their running statistics say.

    Watches every module that has a `running_mean` and a `running_var`, frozen ones too.

    Attributes:
        terms: of the layers called since `clear`, to be differentiated.
    """

    def __init__(self, model: nn.Module) -> None:
        self.norms = [module for module in model.modules() if _statistics_of(module) is not None]
        self.terms: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch, as long as it lasts."""
        hooks = []
        try:
            for norm in self.norms:
                hooks.append(norm.register_forward_pre_hook(self._look, with_kwargs=True))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def distance(self) -> Tensor:
        """Mean over the layers called since the last time; 0 if there was none."""
        found = torch.stack(self.terms).mean() if self.terms else torch.zeros((), device="cpu")
        self.terms.clear()
        return found

    def _look(self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        known = _statistics_of(norm)
        x = next(iter((*args, *kwargs.values())), None)
        if known is None or not isinstance(x, Tensor) or x.ndim < 2:
            return
        mean, variance = known
        if x.shape[1] != len(mean) or not x.requires_grad:
            return
        found = _MeanAndSquare.apply(x)  # type: ignore[no-untyped-call]
        own_mean, own_square = found[0], found[1]
        own_variance = own_square - own_mean.square()
        mean, variance = mean.to(own_mean), variance.to(own_mean) + getattr(norm, "eps", 1e-5)
        ratio = (own_variance / variance).clamp(min=0) + LEAST_VARIANCE
        by_mean = ((own_mean - mean).square() / variance).mean()
        self.terms.append(by_mean + 0.5 * ratio.log().abs().mean())


def _statistics_of(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Running mean and variance of a batch normalisation, each (channels,); None if it is none."""
    mean, variance = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return None
    return (mean, variance) if mean.ndim == 1 and mean.shape == variance.shape else None


class _MeanAndSquare(torch.autograd.Function):
    """Means of x and of x^2 by channel: (samples, channels, ...) -> (2, channels).

    PyTorch's own functions take several times as long, most of it going back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        over = [0, *range(2, x.ndim)]
        precise = torch.promote_types(x.dtype, torch.float32)
        return torch.stack([x.mean(over, dtype=precise), x.square().mean(over, dtype=precise)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        by_mean, by_square = gradients[0] * (x.shape[1] / x.numel())
        shape = (1, -1, *[1] * (x.ndim - 2))
        slope, start = (2 * by_square).to(x.dtype), by_mean.to(x.dtype)
        return torch.addcmul(start.view(shape), x, slope.view(shape))


def goal_of(outputs: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """How far outputs are from what they are to be: a random class, or direction, for each sample.

    Args:
        outputs: of the network for some samples.
        generator: of the goal.
    """
    if is_classes(outputs):
        classes = torch.randint(
            outputs.shape[1], (len(outputs),), generator=generator, device="cpu"
        )
        classes = classes.to(outputs.device)
        return lambda given: functional.cross_entropy(given.float(), classes)
    values = outputs.numel() // len(outputs)
    directions = torch.randn(len(outputs), values, generator=generator, device="cpu").to(
        outputs.device
    )

    def distance(given: Tensor) -> Tensor:
        flat = given.float().reshape(len(given), -1)
        return 1 - functional.cosine_similarity(flat - flat.mean(0), directions).mean()

    return distance


def move(
    model: nn.Module,
    moments: Moments,
    parts: Parts,
    number: int,
    recipe: SyntheticRecipe,
    generator: torch.Generator,
    done: Callable[[], None],
) -> dict[str, Part]:
    """Parts of a batch, moved as the recipe says; those that the network got as integers stay.

    Args:
        model: the network, in evaluation mode, its parameters without gradient.
        moments: of this network, watching.
        parts: of the batch, on the network's device.
        number: of the batch, for messages.
        recipe: what is done.
        generator: of all that is random, on the CPU.
        done: called after each step.
    """
    now = {
        name: replace(part, values=part.values.clone().requires_grad_())
        for name, part in parts.items()
        if part.gain is not None
    }
    values = [part.values for part in now.values()]
    samples = max(len(one) for one in values)
    optimizer = torch.optim.Adam(values, betas=(0.5, 0.9))
    goals: dict[str, tuple[torch.Size, Callable[[Tensor], Tensor]]] = {}
    for step in range(recipe.steps):
        falling = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        optimizer.param_groups[0]["lr"] = recipe.rate * falling
        seen = {name: _jittered(part, generator) for name, part in now.items()}
        args, kwargs = call_of({**parts, **seen})
        outputs = numbers_of(model(*args, **kwargs), samples, number, "numbers")
        if not step:
            goals = {
                name: (given.shape, goal_of(given, generator))
                for name, given in outputs.items()
                if len(given) == samples_in(outputs, samples) and given.numel()
            }
        distances = [
            goals[name][1](given)
            for name, given in outputs.items()
            if name in goals and given.shape == goals[name][0]
        ]
        loss = recipe.moments * moments.distance()
        if distances:
            loss = loss + recipe.outputs * torch.stack(distances).mean()
        for part in now.values():
            if part.is_picture:
                loss = loss + recipe.smoothness * _roughness(part.values)
        if loss.requires_grad:  # else nothing says where to go
            gradients = torch.autograd.grad(loss, values, allow_unused=True)
            for part, gradient in zip(now.values(), gradients, strict=True):
                part.values.grad = gradient
            optimizer.step()
        with torch.no_grad():
            for part in now.values():
                part.values.clamp_(part.low, part.high)
        done()
    return {
        **parts,
        **{name: replace(part, values=part.values.detach()) for name, part in now.items()},
    }


def _jittered(part: Part, generator: torch.Generator) -> Part:
    """A picture moved by some pixels, around its borders, and mirrored half of the time."""
    if not part.is_picture:
        return part
    most = [max(1, round(MOVED * n)) for n in part.values.shape[2:]]
    by = [int(torch.randint(-m, m + 1, (), generator=generator, device="cpu")) for m in most]
    values = part.values.roll(by, (2, 3))
    if torch.rand((), generator=generator, device="cpu") < 0.5:
        values = values.flip(3)
    return replace(part, values=values.contiguous(memory_format=torch.channels_last))


def _roughness(values: Tensor) -> Tensor:
    return values.diff(dim=2).abs().mean() + values.diff(dim=3).abs().mean()
