"""Loop: trains a student until its file has the size that was asked for."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tqcodec.common.checks import kind_of
from tqcodec.errors import EncodeError
from tqcodec.torch.batches import (
    Call,
    Runner,
    arguments,
    copied,
    device_of,
    inputs_of,
    length_of,
    samples_of,
    single,
    with_tensors,
)
from tqcodec.torch.retraining import processes, trimming
from tqcodec.torch.retraining.controller import RateController
from tqcodec.torch.retraining.hints import Hints
from tqcodec.torch.retraining.objective import Loss, chance, distillation, loss_of
from tqcodec.torch.retraining.rate import Rate
from tqcodec.torch.retraining.recipe import TrainingRecipe
from tqcodec.torch.retraining.student import Student
from tqcodec.torch.search import Evaluate
from tqcodec.torch.unchanged import Buffers

SMOOTH = 0.02  # share of a batch in the running mean of the loss
INTEGRAL_PART = 1 / 6  # of all steps
LEAST_EXCESS = 0.02  # of the loss that it may be above the original's, at least, for the controller
TINY = 1e-12
HISTORY = 1000  # moments that are kept, about
UNREACHED = "retrain: the loss does not depend on any weight matrix that is trained"


@dataclass(frozen=True)
class TrainingMoment:
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


Watch = Callable[[TrainingMoment], None]


@dataclass
class TrainingState:
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
        reached: names of the matrices that had a gradient at a step, each with True.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    overhead: float = 0.0
    loss: float = math.nan
    least: float = math.nan
    quality: float | None = None
    reached: dict[str, bool] = field(default_factory=dict)


class Loop:
    """One training.

    Args:
        student: what is trained.
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
        state: where it is.
        controller: steers the weight of the bits.
        optimizer: of latents, steps and vectors.
        steps: batches of all epochs.
        history: about a thousand moments of the whole training, for a drawing.
    """

    def __init__(
        self,
        student: Student,
        original: nn.Module,
        batches: Iterable[Any],
        target: int,
        epochs: int,
        recipe: TrainingRecipe,
        seed: int,
        *,
        loss: Loss | None = None,
        evaluate: Evaluate | None = None,
        bfloat16: bool = False,
        compiled: bool = False,
    ) -> None:
        self.student = student
        self._batches, self._target, self._recipe, self._seed = batches, target, recipe, seed
        self._loss, self._evaluate, self._bfloat16 = loss, evaluate, bfloat16
        self._device = device_of(student.network)
        self._count = _length(batches)
        self.steps = epochs * self._count
        self.state = TrainingState()
        for network in (student.network, original):
            for parameter in network.parameters():
                if parameter.ndim == 4:  # kernels, which are faster in this order
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._hints = Hints(student.network, original)
        trained = {id(one) for several in student.parameters.values() for one in several}
        kept = [one for one in student.network.parameters() if id(one) not in trained]
        self._buffers = Buffers(student.network, kept), Buffers(original, original.parameters())
        if loss is None and recipe.hints and self._count:
            self._draw(0)  # so that it is the same batch where a training goes on
            batch = next(iter(batches))
            self._hints.choose(self._call(batch), samples_of(inputs_of(batch)))
        self._forward = _compiled(self._running(student.network), compiled)
        self._wanted = Runner(_compiled(self._running(original), compiled))
        self._latents = list(student.latents.values())
        groups = [
            {"params": [one.values for one in self._latents], "peak": recipe.rate},
            {"params": [one.log_scale for one in self._latents], "peak": recipe.scale_rate},
            {"params": list(student.vectors.values()), "peak": recipe.vector_rate},
        ]
        self.optimizer = torch.optim.Adam([g for g in groups if g["params"]], betas=(0.9, 0.99))
        self._bits = Rate(self._latents)
        integral = max(1.0, min(recipe.integral, INTEGRAL_PART * self.steps))
        self.controller = RateController(recipe.pull, recipe.gain, integral)
        self.history: list[TrainingMoment] = []

    def _running(self, network: nn.Module) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            kind, on = self._device.type, self._bfloat16
            with torch.autocast(kind, torch.bfloat16) if on else nullcontext():
                return network(*args, **kwargs)

        return run

    def moments(self) -> Iterator[TrainingMoment]:
        """Train from where `state` is to the end; gives where it is after every step."""
        if not self._count:
            raise EncodeError("retrain: there is no batch")
        state, start = self.state, time.monotonic()
        first = state.step
        while state.step < self.steps:
            epoch = state.epoch
            self._draw(epoch)  # for loaders that shuffle and augment
            for batch in _from(_shuffled(self._batches), state.batch):
                self._step(batch)
                state.step, state.batch = state.step + 1, state.batch + 1
                left = (time.monotonic() - start) / (state.step - first)
                yield self._ended(left * (self.steps - state.step))
                if state.epoch > epoch:
                    break
            else:
                raise EncodeError(
                    f"retrain: {state.batch} batches in epoch {epoch + 1}, "
                    f"{self._count} in the first"
                )

    def _draw(self, number: int) -> None:
        """Seed torch's global generator."""
        torch.manual_seed((self._seed + number) % (1 << 64))

    def _ended(self, seconds: float) -> TrainingMoment:
        """What is due after a step, and the moment that it is."""
        state = self.state
        if state.step == self.steps:
            self._classify()
            self._trim()
        if state.batch == self._count:
            if self._evaluate is not None:
                state.quality = quality_of(
                    self._evaluate, Hints.unwatched(copied(self.student.network))
                )
            state.epoch, state.batch = state.epoch + 1, 0
        moment = self.moment(seconds)
        if state.step % max(1, self.steps // HISTORY) == 0 or state.step == self.steps:
            self.history.append(moment)
        return moment

    def distances(self) -> tuple[float, float]:
        """How far outputs for the first batch are from the original's.

        Returns:
            the distance of those that the file gives, and that of outputs that are alike for all
            samples; both 0 where the loss is the user's, or there is one sample.
        """
        batch = next(iter(self._batches))
        samples = samples_of(inputs_of(batch))
        if self._loss is not None or samples < 2:
            return 0.0, 0.0
        wanted = self._wanted(*self._call(batch))
        given = Runner(self._forward)(*self._call(batch))
        self._hints.clear()
        distance = float(distillation(given, wanted, samples, None).detach())
        return distance, chance(wanted, samples)

    def moment(self, seconds: float) -> TrainingMoment:
        """Where it is, with so many seconds left."""
        state, size = self.state, (self._bits.bits + self.state.overhead) / 8
        return TrainingMoment(
            step=state.step,
            steps=self.steps,
            epoch=state.epoch + state.batch / self._count,
            loss=state.loss,
            size=size,
            bits=8 * size / self.student.weights,
            weight=self.controller.weight,
            seconds=seconds,
            quality=state.quality,
        )

    def _step_of(self, part: float) -> int:
        return math.ceil(part * self.steps)

    def _step(self, batch: Any) -> None:
        """Train on one batch."""
        state, recipe = self.state, self._recipe
        self._prepare()
        self._differentiated(batch)
        size = (self._bits.bits + state.overhead) / 8
        excess = max(state.loss - state.least, LEAST_EXCESS * abs(state.loss), TINY)
        weight = (
            self.controller.update(excess, math.log(size / self._target)) / self.student.weights
        )
        for latent, slope in zip(self._latents, self._bits.gradients(), strict=True):
            if latent.values.grad is not None:  # else nothing would hold against the bits
                latent.values.grad.add_(slope, alpha=weight)
        part = state.step / self.steps
        rise = min(1.0, (state.step + 1) / max(1.0, recipe.warm_up * self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rise * (1 + math.cos(math.pi * part)) / 2
        self.optimizer.step()
        self.student.assign()

    def _prepare(self) -> None:
        """What is due before a step: classes, a file of the right size, tables."""
        step, recipe = self.state.step, self._recipe
        if step in [self._step_of(part) for part in recipe.classify]:
            self._classify()
        if step in [self._step_of(part) for part in recipe.trim]:
            self._trim()
        if step % recipe.fit_every == 0:
            self._bits.fit()
        if step % recipe.size_every == 0:
            self._measure()

    def _differentiated(self, batch: Any) -> None:
        """The loss of a batch; leaves its gradients at latents and vectors."""
        # What networks draw is the same for both, depends on the step alone, so that training can
        # go on from any, and leaves the state that loaders draw by.
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            self._differentiate(batch)
        for buffers in self._buffers:  # to what the file has
            buffers.restore()
        self._collect()

    def _differentiate(self, batch: Any) -> None:
        for parameter in itertools.chain(*self.student.parameters.values()):
            parameter.grad = None
        args, kwargs = self._call(batch)
        given, wanted = self._forward(*args, **kwargs), None
        known = self._loss is not None and not math.isnan(self.state.least)
        if not known:
            wanted = self._wanted(*self._call(batch))
        loss = loss_of(self._loss, given, wanted, batch)
        loss = loss + self._recipe.hints * self._hints.take()
        value = processes.mean(float(loss.detach()), self._device)
        if not math.isfinite(value):
            raise EncodeError(f"retrain: the loss of batch {self.state.step + 1} is {value}")
        if not loss.requires_grad:
            raise EncodeError(UNREACHED)
        loss.backward()
        self._hints.clear()
        self.state.loss = _smoothed(self.state.loss, value)
        if not known:
            least = float(loss_of(self._loss, wanted, wanted, batch).detach())
            least = processes.mean(least, self._device)
            self.state.least = _smoothed(self.state.least, least)

    def _call(self, batch: Any) -> Call:
        """What both networks are called with; they draw the same."""
        self._draw(self.state.step)
        return call_of(batch, self._device)

    @torch.no_grad()
    def _collect(self) -> None:
        """Hand gradients by weights and vectors to what these are made of."""
        parameters = self.student.parameters
        found = {name: [p.grad for p in s if p.grad is not None] for name, s in parameters.items()}
        gradients = {
            name: sum(found[name], torch.zeros_like(several[0]))
            for name, several in parameters.items()
        }
        processes.average(gradients.values())
        finite = [one.isfinite().all().to(self._device) for one in gradients.values()]
        if not torch.stack(finite).all():  # waits for the device once
            raise EncodeError(
                f"retrain: the gradient of the loss of batch {self.state.step + 1} is not finite"
            )
        latents = self.student.latents
        flags = processes.anywhere([bool(found[name]) for name in latents], self._device)
        if not any(flags):
            raise EncodeError(UNREACHED)
        for (name, latent), reached in zip(latents.items(), flags, strict=True):
            latent.values.grad = latent.log_scale.grad = None
            if reached:
                self.state.reached[name] = True
                latent.values.grad, latent.log_scale.grad = latent.gradients(gradients[name])
        for name, vector in self.student.vectors.items():
            vector.grad = gradients[name]

    def _trim(self) -> None:
        """Bring the file to its size, if it is not there yet."""
        if trimming.trim(self.student, self._target):
            self._bits.fit()
            self._measure()

    def _classify(self) -> None:
        """Fit classes to the integers as they are now."""
        self._bits.classify()
        self._measure()

    def _measure(self) -> None:
        """Lay down the file, to know what it has beside coefficients."""
        self.state.overhead = 8 * self.student.size() - self._bits.bits


def quality_of(evaluate: Evaluate, network: nn.Module) -> float:
    """What `evaluate` gives.

    Raises:
        EncodeError: no number.
    """
    found: Any = evaluate(network)
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EncodeError(f"retrain: evaluate gave {kind_of(found)}, not a number") from error


def call_of(batch: Any, device: torch.device) -> Call:
    """What a float32 network is called with for a batch."""
    return with_tensors(arguments(inputs_of(batch), device), single)


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
    return (batches[i] for i in torch.randperm(len(batches), device="cpu").tolist())


def _length(batches: Iterable[Any]) -> int:
    """Number of batches; those of a loader that does not know are counted."""
    return length_of(batches) or sum(1 for _ in batches)


def _compiled(function: Callable[..., Any], wanted: bool) -> Callable[..., Any]:
    return torch.compile(function) if wanted else function
