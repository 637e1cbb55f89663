"""Loop: trains a pupil until its file has the size that was asked for."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from tqcodec.errors import EncodeError
from tqcodec.torch.batches import arguments, device_of, first_logits, inputs_of, to_evaluation
from tqcodec.torch.retraining import processes
from tqcodec.torch.retraining.objective import Loss, distillation, labels_of
from tqcodec.torch.retraining.pupil import Pupil
from tqcodec.torch.retraining.rate import Rate
from tqcodec.torch.retraining.wheel import Wheel
from tqcodec.torch.search import Evaluate

SMOOTH = 0.02  # share of a batch in the running mean of the loss
HALVINGS = 12  # until it is known how much must be trimmed
DOUBLINGS = 24  # of the steps, until integers that fall by one are enough

INTEGRAL_PART = 1 / 6  # of all steps
LEAST_EXCESS = 0.02  # of the loss that it may be above the original's, at least, for the wheel
TINY = 1e-12
HISTORY = 1000  # moments that are kept, about
# Least and most of the numbers of a recipe, by name; those with whole bounds are whole.
RECIPES: Final = {
    **dict.fromkeys(("rate", "scale_rate", "vector_rate", "warm_up"), (0.0, 1.0)),
    **dict.fromkeys(("classify", "trim"), (0.0, 1.0)),
    **dict.fromkeys(("fit_every", "size_every"), (1, 1 << 30)),
    **dict.fromkeys(("pull", "gain"), (0.0, 1e6)),
    "integral": (1.0, 1e12),
}
EDGE = 0.05  # of a step below an edge, where a latent is put that is to fall


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults were chosen on held-out training images (docs/encoder.md).

    Attributes:
        rate: largest step of a latent, in steps of its quantizer.
        scale_rate: largest step of the logarithm of a quantizer's step.
        vector_rate: largest step of a vector.
        warm_up: part of all steps over which these rise.
        fit_every: steps between two fits of the tables.
        size_every: steps between two measurements of the whole file.
        classify: parts of the training after which classes are fitted anew.
        trim: parts after which the file is brought to its size, if it is not there yet; it is once
            more at the end.
        pull: weight of the bits, in units of what the loss is above the original's, before the
            size has a say.
        gain: powers by which the weight answers to the size at once.
        integral: steps after which it has answered twice as much; a sixth of all, if that is less.
    """

    rate: float = 0.003
    scale_rate: float = 0.001
    vector_rate: float = 0.001
    warm_up: float = 0.02
    fit_every: int = 20
    size_every: int = 400
    classify: tuple[float, ...] = (0.25, 0.5)
    trim: tuple[float, ...] = (0.4, 0.7, 0.85, 0.97)
    pull: float = 2.0
    gain: float = 6.0
    integral: float = 2000.0

    def __post_init__(self) -> None:
        for name, (least, most) in RECIPES.items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                whole = isinstance(least, int)
                if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                    kind = "whole number" if whole else "number"
                    raise EncodeError(f"recipe: {name} is {value!r}, not a {kind}")
                if not least <= value <= most:
                    raise EncodeError(
                        f"recipe: {name} is {value}, not within {least:g} to {most:g}"
                    )


@dataclass(frozen=True)
class Moment:
    """Where a training is.

    Attributes:
        step: batches trained on.
        steps: of how many.
        epoch: passes over the data, with the part of the one that runs.
        loss: running mean of the loss, without the bits.
        size: bytes of the file as it would be, about.
        bits: the same per weight.
        weight: of the bits per weight in the loss.
        seconds: left, about.
        quality: what the last evaluation gave; None before any.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    size: float
    bits: float
    weight: float
    seconds: float
    quality: float | None


Watch = Callable[[Moment], None]


@dataclass
class Place:
    """Where a training is that can be gone on with.

    Attributes:
        step: batches trained on.
        epoch: that runs.
        batch: batches of it that are done.
        overhead: bits of the file besides its coefficients.
        loss: running mean; not a number before the first.
        least: likewise of what the original would have; that of the first batch where the loss is
            the user's, which saves a run of the original for each of the others.
        quality: of the last evaluation.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    overhead: float = 0.0
    loss: float = math.nan
    least: float = math.nan
    quality: float | None = None


class Loop:
    """One training.

    Args:
        pupil: what is trained.
        original: what it is to be like, in evaluation mode.
        batches: gone through once an epoch.
        target: bytes of the file.
        epochs: passes over the batches.
        recipe: how.
        seed: with the number of an epoch that of its random numbers.
        loss: as of `retrain`.
        evaluate: likewise.
        bfloat16: likewise.
        compiled: likewise.

    Attributes:
        place: where it is.
        wheel: steers the weight of the bits.
        optimizer: of latents, steps and vectors.
        steps: batches of all epochs.
        history: about a thousand moments of the whole training, for a drawing.
    """

    def __init__(
        self,
        pupil: Pupil,
        original: nn.Module,
        batches: Iterable[Any],
        target: int,
        epochs: int,
        recipe: Recipe,
        seed: int,
        *,
        loss: Loss | None = None,
        evaluate: Evaluate | None = None,
        bfloat16: bool = False,
        compiled: bool = False,
    ) -> None:
        self.pupil = pupil
        self._batches, self._target, self._recipe, self._seed = batches, target, recipe, seed
        self._loss, self._evaluate, self._bfloat16 = loss, evaluate, bfloat16
        self._device = device_of(pupil.network)
        self._count = _length(batches)
        self.steps = epochs * self._count
        for network in (pupil.network, original):
            for parameter in network.parameters():
                if parameter.ndim == 4:  # kernels, which are faster in this order
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._forward = _compiled(self._running(pupil.network), compiled)
        self._wanted = _compiled(self._running(original), compiled)
        self._latents = list(pupil.latents.values())
        groups = [
            {"params": [one.values for one in self._latents], "peak": recipe.rate},
            {"params": [one.log_scale for one in self._latents], "peak": recipe.scale_rate},
            {"params": list(pupil.vectors.values()), "peak": recipe.vector_rate},
        ]
        self.optimizer = torch.optim.Adam([g for g in groups if g["params"]], betas=(0.9, 0.99))
        self._bits = Rate(self._latents)
        integral = max(1.0, min(recipe.integral, INTEGRAL_PART * self.steps))
        self.wheel = Wheel(recipe.pull, recipe.gain, integral)
        self.place = Place()
        self.history: list[Moment] = []

    def _running(self, network: nn.Module) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            kind, on = self._device.type, self._bfloat16
            with torch.autocast(kind, torch.bfloat16) if on else nullcontext():
                return network(*args, **kwargs)

        return run

    def moments(self) -> Iterator[Moment]:
        """Train from where `place` is to the end; gives where it is after every step."""
        if not self._count:
            raise EncodeError("retrain: there is no batch")
        place, start = self.place, time.monotonic()
        first = place.step
        while place.step < self.steps:
            epoch = place.epoch
            self._draw(epoch)  # for loaders that shuffle and augment
            for batch in _from(_shuffled(self._batches), place.batch):
                self._step(batch)
                place.step, place.batch = place.step + 1, place.batch + 1
                left = (time.monotonic() - start) / (place.step - first)
                yield self._ended(left * (self.steps - place.step))
                if place.epoch > epoch:
                    break
            else:
                raise EncodeError(
                    f"retrain: {place.batch} batches in epoch {epoch + 1}, "
                    f"{self._count} in the first"
                )

    def _draw(self, number: int) -> None:
        """Seed torch's global generator."""
        torch.manual_seed((self._seed + number) % (1 << 64))

    def _ended(self, seconds: float) -> Moment:
        """What is due after a step, and the moment that it is."""
        place = self.place
        if place.step == self.steps:
            self._trim()
        if place.batch == self._count:
            if self._evaluate is not None:
                place.quality = quality_of(self._evaluate, self.pupil.network)
            place.epoch, place.batch = place.epoch + 1, 0
        moment = self.moment(seconds)
        if place.step % max(1, self.steps // HISTORY) == 0:
            self.history.append(moment)
        return moment

    def moment(self, seconds: float) -> Moment:
        """Where it is, with so many seconds left."""
        place, size = self.place, (self._bits.bits + self.place.overhead) / 8
        return Moment(
            step=place.step,
            steps=self.steps,
            epoch=place.epoch + place.batch / self._count,
            loss=place.loss,
            size=size,
            bits=8 * size / self.pupil.weights,
            weight=self.wheel.weight,
            seconds=seconds,
            quality=place.quality,
        )

    def _step_of(self, part: float) -> int:
        return math.ceil(part * self.steps)

    def _step(self, batch: Any) -> None:
        """Train on one batch."""
        place, recipe = self.place, self._recipe
        self._prepare()
        self._differentiated(batch)
        size = (self._bits.bits + place.overhead) / 8
        excess = max(place.loss - place.least, LEAST_EXCESS * abs(place.loss), TINY)
        weight = self.wheel.turn(excess, math.log(size / self._target)) / self.pupil.weights
        for latent, slope in zip(self._latents, self._bits.gradients(), strict=True):
            assert latent.values.grad is not None, "set for all"
            latent.values.grad.add_(slope, alpha=weight)
        part = place.step / self.steps
        rise = min(1.0, (place.step + 1) / max(1.0, recipe.warm_up * self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rise * (1 + math.cos(math.pi * part)) / 2
        self.optimizer.step()
        self.pupil.assign()

    def _prepare(self) -> None:
        """What is due before a step: classes, a file of the right size, tables."""
        step, recipe = self.place.step, self._recipe
        classify = step in [self._step_of(part) for part in recipe.classify]
        if classify:
            for latent in self._latents:
                latent.classify()
        if step in [self._step_of(part) for part in recipe.trim]:
            self._trim()
        if step % recipe.fit_every == 0 or classify:
            self._bits.fit()
        if step % recipe.size_every == 0 or classify:
            self.place.overhead = 8 * self.pupil.size() - self._bits.bits

    def _differentiated(self, batch: Any) -> None:
        """The loss of a batch; leaves its gradients at latents and vectors."""
        # What networks draw is the same for both, depends on the step alone, so that training can
        # go on from any, and leaves the state that loaders draw by.
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            self._differentiate(batch)
        self._collect()

    def _differentiate(self, batch: Any) -> None:
        for parameter in itertools.chain(*self.pupil.parameters.values()):
            parameter.grad = None
        given, wanted = self._run(self._forward, batch), None
        known = self._loss is not None and not math.isnan(self.place.least)
        if not known:
            with torch.no_grad():
                wanted = self._run(self._wanted, batch)
        loss = self._loss_of(given, wanted, batch)
        value = processes.mean(float(loss.detach()), self._device)
        if not math.isfinite(value):
            raise EncodeError(f"retrain: the loss of batch {self.place.step + 1} is {value}")
        if not loss.requires_grad:
            raise EncodeError("retrain: the loss does not depend on any weight matrix")
        loss.backward()
        self.place.loss = _smoothed(self.place.loss, value)
        if not known:
            with torch.no_grad():
                least = float(self._loss_of(wanted, wanted, batch))
            least = processes.mean(least, self._device)
            self.place.least = _smoothed(self.place.least, least)

    def _run(self, network: Callable[..., Any], batch: Any) -> Any:
        """What a float32 network gives for a batch."""
        args, kwargs = arguments(inputs_of(batch), self._device)
        self._draw(self.place.step)
        return network(*map(_single, args), **{n: _single(value) for n, value in kwargs.items()})

    def _loss_of(self, given: Any, wanted: Any, batch: Any) -> Tensor:
        if self._loss is not None:
            loss = self._loss(given, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                kind = type(loss).__name__
                about = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {kind}"
                raise EncodeError(f"retrain: the loss is {about}, not a tensor of one number")
            return loss.reshape(())
        return distillation(given, wanted, labels_of(batch, first_logits(given)))

    @torch.no_grad()
    def _collect(self) -> None:
        """Hand gradients by weights and vectors to what these are made of."""
        parameters = self.pupil.parameters
        gradients = {
            # No output of this batch need depend on a parameter.
            name: sum((p.grad for p in several if p.grad is not None), torch.zeros_like(several[0]))
            for name, several in parameters.items()
        }
        processes.average(gradients.values())
        for name, latent in self.pupil.latents.items():
            latent.values.grad, latent.log_scale.grad = latent.gradients(gradients[name])
        for name, vector in self.pupil.vectors.items():
            vector.grad = gradients[name]

    @torch.no_grad()
    def _trim(self) -> None:
        """Bring the file to its size: integers fall by one, those first that nearly did anyway.

        Where that is not enough, as at high rates, steps are doubled before.
        """
        if self.pupil.size() <= self._target:
            return
        for _ in range(DOUBLINGS):
            start = [latent.values.clone() for latent in self._latents]
            if self._fits(start, 1.0):
                break
            for latent, values in zip(self._latents, start, strict=True):
                latent.values.copy_(values / 2)
                latent.log_scale.add_(math.log(2))
        else:
            raise EncodeError(
                f"retrain: {self._target} bytes cannot be reached, the least is "
                f"{self.pupil.size()} bytes: a larger file, or --side-bits"
            )
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._fits(start, middle) else (middle, high)
        self._fits(start, high)
        self._bits.fit()
        self.place.overhead = 8 * self.pupil.size() - self._bits.bits
        self.pupil.assign()

    def _fits(self, start: Sequence[Tensor], reach: float) -> bool:
        """Lower latents as of `lowered`; whether the file is as small as asked then."""
        for latent, values in zip(self._latents, start, strict=True):
            latent.values.copy_(lowered(values, reach))
        return self.pupil.size() <= self._target


def quality_of(evaluate: Evaluate, network: nn.Module) -> float:
    """What `evaluate` gives; the network is in evaluation mode again afterwards.

    Raises:
        EncodeError: no number.
    """
    found: Any = evaluate(network)
    to_evaluation(network)
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(found).__name__
        raise EncodeError(f"retrain: evaluate gave a {kind}, not a number") from error


def _single(value: Any) -> Any:
    """Floats as the float32 copy of a network takes them."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def lowered(values: Tensor, reach: float) -> Tensor:
    """Latents; those that lie up to `reach` above the edge to the next smaller integer are there.

    Args:
        values: in steps.
        reach: 0 changes nothing, 1 lowers every integer by one.
    """
    magnitude = values.abs()
    edge = magnitude.round() - 0.5
    falls = (magnitude >= 0.5) & (magnitude - edge <= reach)
    return torch.where(falls, edge - EDGE, magnitude) * values.sign()


def _smoothed(mean: float, value: float) -> float:
    return value if math.isnan(mean) else mean + SMOOTH * (value - mean)


def _from(batches: Iterable[Any], start: int) -> Iterator[Any]:
    """All but the first batches; a loader draws its random numbers for these as well."""
    for i, batch in enumerate(batches):
        if i >= start:
            yield batch


def _shuffled(batches: Iterable[Any]) -> Iterable[Any]:
    """Batches of a list in random order; others as they come."""
    if not isinstance(batches, Sequence):
        return batches
    return (batches[i] for i in torch.randperm(len(batches)).tolist())


def _length(batches: Iterable[Any]) -> int:
    """Number of batches; those of a loader that does not know are counted."""
    try:
        count = len(batches)  # type: ignore[arg-type]
    except TypeError:
        count = 0
    return count or sum(1 for _ in batches)


def _compiled(function: Callable[..., Any], wanted: bool) -> Callable[..., Any]:
    return torch.compile(function) if wanted else function
