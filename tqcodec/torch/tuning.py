"""Tunes the vectors of a network (norms, biases) to weight matrices that were quantized."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from tqcodec.common.checks import need, need_number
from tqcodec.common.progress import Progress
from tqcodec.errors import EncodeError
from tqcodec.torch.batches import (
    SEEDS,
    Call,
    Ordinary,
    Outputs,
    Runner,
    arguments,
    batched,
    check_network,
    copied,
    device_of,
    inputs_of,
    samples_of,
    to_evaluation,
)
from tqcodec.torch.checkpoint import load_state
from tqcodec.torch.outputs import (
    ALONE,
    class_axis,
    comparable,
    divergence,
    mean_sizes,
    numbers_of,
    outputs_of,
    samples_in,
)
from tqcodec.torch.unchanged import Buffers, seeded

# By default as few passes over the data as make so many steps.
PASSES = 2, 8
STEPS = 64
# With 400 photographs 2e-3 overfits EfficientNet-Lite0; smaller rates give ResNet-32 away.
RATE = 1e-3
HELD_OUT = 8  # every one of so many batches is not trained on
# What was calibrated on the same data looks better there than it is: this much is no harm.
TOLERATED = 1.1
# Where the softmax is saturated, as on training images, only the higher one learns.
TEMPERATURES = 1.0, 4.0
# Made-up inputs give larger scores than real ones (docs/encoder.md).
MADE_UP = 2.0, 8.0
WARM_UP = 0.1  # part of all steps


def tune(
    model: nn.Module,
    decoded: Mapping[str, Tensor],
    batches: Iterable[Any] | Dataset[Any],
    *,
    epochs: int | None = None,
    rate: float = RATE,
    temperatures: Sequence[float] = TEMPERATURES,
    outputs: Outputs | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """New values for the 1-D parameters of a decoded network, near the original in its outputs.

    They are trained without labels (Adam, warm-up and cosine) while everything else stays as it is
    and batch normalisations use their running statistics. Loss, mean over samples: where the only
    output is scores of classes (`tqcodec.torch.outputs.class_axis`) the Kullback-Leibler divergence
    of the decoded network's softmax from the original's in nats, the sum over some temperatures,
    else the squared error over the mean energy of the original's output, or, of several, over the
    variance of each, the mean of those that have the original's shape. Every eighth batch, one if
    there are fewer, is only looked at: where the loss there rises by more than a tenth nothing is
    changed.

    The model is not changed (two copies of it run), nor are torch's global random states.

    Args:
        model: the original, on any device.
        decoded: its whole state dict with quantized weights.
        batches: tensors, tuples of which the first is the input, or mappings of keyword arguments;
            dimension 0 is the batch. Gone through once and kept in memory, so an iterator will do.
            Samples should be in random order. A Dataset is read in batches of 32.
        epochs: passes over the data; 0 changes nothing. By default 2 to 8, as few as train on 64
            batches.
        rate: largest step of a parameter.
        temperatures: a list or tuple by which scores are divided; 2 and 8 where the inputs are made
            up.
        outputs: from what the model gives to the one tensor (samples, ...) that counts; by default
            all floats in it do.
        seed: of the order of batches.
        progress: called with ("tune", batches trained on, of how many).

    Returns:
        By their names in the state dict the floating-point parameters of one dimension, with the
        dtypes and devices of `decoded`.

    Raises:
        EncodeError: fewer than two batches, or outputs that are not finite numbers by sample.
        EvaluationError: a state dict that does not fit the model.
    """
    check_network(model)
    if epochs is not None:
        need_number("epochs", epochs)
    need_number("seed", seed, *SEEDS)
    need("rate", rate, (int, float), "a number")
    if (epochs is not None and epochs < 0) or not 0 < rate < math.inf:
        raise EncodeError(f"epochs={epochs} must be at least 0 and rate={rate} above it")
    need("temperatures", temperatures, (list, tuple), "a list of numbers")
    for one in temperatures:
        need("temperatures", one, (int, float), "a list of numbers")
    if not temperatures or not all(0 < one < math.inf for one in temperatures):
        raise EncodeError(f"temperatures={temperatures} must be above 0, and one at least")
    device = device_of(model)
    # The seed is for networks and loaders that draw.
    with seeded(device, seed), torch.inference_mode(False), torch.enable_grad():
        inputs = [inputs_of(batch) for batch in batched(batches)]
        if len(inputs) < 2:
            raise EncodeError(f"tuning needs two batches, one is held out: there is {len(inputs)}")
        network = to_evaluation(copied(model))
        load_state(network, decoded)
        distances = Distances(network, to_evaluation(copied(model)), inputs, outputs, temperatures)
        vectors = _vectors(network)
        _train(distances, list(vectors.values()), epochs, rate, seed, progress)
    return {name: vector.detach().to(decoded[name], copy=True) for name, vector in vectors.items()}


def _vectors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters that are tuned; one that has several names is there under each."""
    return {
        name: parameter.requires_grad_()
        for name, parameter in network.named_parameters(remove_duplicate=False)
        if parameter.ndim == 1 and parameter.is_floating_point()
    }


class Distances:
    """How far a network is from the original, batch by batch.

    Args:
        network: in evaluation mode; its parameters are held fixed from here on.
        original: likewise; runs once over all inputs.
        inputs: tensors or mappings, one for each batch.
        outputs: as in `tune`.
        temperatures: likewise.
    """

    def __init__(
        self,
        network: nn.Module,
        original: nn.Module,
        inputs: Sequence[Any],
        outputs: Outputs | None,
        temperatures: Sequence[float] = TEMPERATURES,
    ) -> None:
        self._network = network
        self._temperatures = temperatures
        self._inputs = inputs
        self._outputs = outputs
        self._device = device_of(network)
        self._runner = Runner(network)
        self._buffers = Buffers(network)
        self._wanted: list[dict[str, Tensor]] = []
        run, buffers = Runner(original), Buffers(original)
        for i, _ in enumerate(inputs):
            buffers.restore()
            found = numbers_of(
                run(*self._call(i)), samples_of(inputs[i]), i + 1, "numbers", outputs
            )
            # A clone: what is made under inference_mode could not be trained to.
            wanted = {n: _precise(y.detach()).cpu().clone() for n, y in found.items()}
            self._wanted.append(wanted)
        # What differentiates by parameters of its own needs them as they are.
        for parameter in () if run.inside else network.parameters():
            parameter.requires_grad_(False)
        self._counts = [
            samples_in(wanted, samples_of(one))
            for wanted, one in zip(self._wanted, inputs, strict=True)
        ]
        self._sizes = mean_sizes(zip(self._wanted, self._counts, strict=True))

    def loss(self, batch: int) -> Tensor:
        """Mean over the samples of a batch, to be differentiated."""
        args, kwargs = self._call(batch)
        self._buffers.restore()
        try:
            given = self._network(*args, **kwargs)
        except RuntimeError as error:
            if "Inference tensors" not in str(error):
                raise
            with Ordinary():
                given = self._network(*args, **kwargs)
        return self._loss(batch, given)

    def _loss(self, batch: int, given: Any) -> Tensor:
        wanted = {name: y.to(self._device) for name, y in self._wanted[batch].items()}
        if self._outputs is not None:
            found = {ALONE: self._outputs(given)}
        else:
            found = outputs_of(given, samples_of(self._inputs[batch]))
        found = {name: y.to(wanted[name].dtype) for name, y in found.items() if name in wanted}
        axis, names = class_axis(wanted), comparable(wanted, found)
        if axis is not None and names:
            (name,) = names
            parts = [divergence(found[name], wanted[name], axis, t) for t in self._temperatures]
            return torch.stack(parts).sum()
        losses = [functional.mse_loss(found[n], wanted[n]) / self._sizes[n] for n in names]
        return torch.stack(losses).mean() if losses else torch.zeros((), device=self._device)

    def mean_loss(self, batches: Iterable[int]) -> float:
        """Mean over the samples of several batches."""
        sizes = {batch: self._counts[batch] for batch in batches}
        total = 0.0
        for batch, size in sizes.items():
            self._buffers.restore()
            total += size * float(self._loss(batch, self._runner(*self._call(batch))).detach())
        return total / sum(sizes.values())

    def __len__(self) -> int:
        return len(self._inputs)

    def _call(self, batch: int) -> Call:
        return arguments(self._inputs[batch], self._device)


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _train(
    distances: Distances,
    vectors: Sequence[Tensor],
    epochs: int | None,
    rate: float,
    seed: int,
    progress: Progress | None,
) -> None:
    """Train the vectors, or leave them as they are where that does harm."""
    every = min(HELD_OUT, len(distances))
    held = range((every - 1) // 2, len(distances), every)
    trained = [batch for batch in range(len(distances)) if batch not in held]
    # Half-precision vectors could not take the small steps, so copies of them do.
    values = [_precise(vector.detach()).clone() for vector in vectors]
    if not values:
        return
    if epochs is None:
        least, most = PASSES
        epochs = min(most, max(least, math.ceil(STEPS / len(trained))))
    optimizer = torch.optim.Adam(values)
    order = torch.Generator().manual_seed(seed)
    done, steps = 0, epochs * len(trained)
    before, start = distances.mean_loss(held), copy.deepcopy(values)
    for _ in range(epochs):
        for i in torch.randperm(len(trained), generator=order, device="cpu").tolist():
            optimizer.param_groups[0]["lr"] = rate * _schedule(done, steps)
            loss = distances.loss(trained[i])
            # Parameters that no output depends on have no gradient, and perhaps none has.
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, vectors, allow_unused=True)
                for value, gradient in zip(values, gradients, strict=True):
                    value.grad = None if gradient is None else gradient.to(value.dtype)
                optimizer.step()
                _assign(vectors, values)
            done += 1
            if progress is not None:
                progress("tune", done, steps)
    if not distances.mean_loss(held) <= TOLERATED * before:
        _assign(vectors, start)


def _schedule(done: int, steps: int) -> float:
    """Part of the full rate: rises over the first steps, then falls like a cosine to nothing."""
    return min(1.0, (done + 1) / (WARM_UP * steps)) * (1 + math.cos(math.pi * done / steps)) / 2


def _assign(vectors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for vector, value in zip(vectors, values, strict=True):
            vector.copy_(value)
