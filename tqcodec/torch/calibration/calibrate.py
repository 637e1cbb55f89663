"""Calibration: statistics of a network's weights from one pass over some data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tqcodec.common.checks import need_function, need_number
from tqcodec.common.progress import Progress
from tqcodec.encoder.statistics import Statistics
from tqcodec.errors import EncodeError
from tqcodec.torch.batches import (
    SEEDS,
    Outputs,
    arguments,
    batched,
    check_network,
    device_of,
    inputs_of,
    length_of,
    samples_of,
)
from tqcodec.torch.calibration.capture import Capture, without_checkpoints
from tqcodec.torch.calibration.recorder import Recorder
from tqcodec.torch.outputs import numbers_of, samples_in, spread_of
from tqcodec.torch.unchanged import unchanged

MOST_PROBES = 1 << 16
SEVERAL, FEW = 8, 16  # probes, where a network gives so few numbers for a sample


def calibrate(
    model: nn.Module,
    batches: Iterable[Any] | Dataset[Any],
    *,
    outputs: Outputs | None = None,
    probes: int | None = 1,
    seed: int = 0,
    block: int = 4096,
    progress: Progress | None = None,
) -> Statistics:
    """Statistics of a network's weights for the encoder (Young et al. 2021, section II).

    One pass forward, and one backward for each probe v: a vector of random signs for each sample,
    whose product with the outputs y is differentiated by what each layer gives. Of several outputs
    (`tqcodec.torch.outputs`) each counts by its squared error over its variance, the mean over its
    elements; the variance is that of the first batch where it has any. Convolutions of all
    kinds, linear layers, embeddings, attention and recurrent layers are seen wherever PyTorch's
    functions of theirs are called with a parameter; other weight matrices are listed in
    `Statistics.without`. The network runs in evaluation mode on the device of its first parameter
    and is left as it was, also by an exception; global random states (torch's) are restored.

    Calls that share a weight in one forward pass count as one layer with the positions of all. An
    embedding (V, D) that is no matrix elsewhere has in `inputs` and `gradients` the sum of g g^T
    over tokens and probes, their number in `vectors`, and in `outputs` how often each of its rows
    was chosen, times probes. The rows for query, key and value of an attention are blocks; sums of
    inputs are scaled to the number of vectors of the query. A matrix multiplied with (length,
    batch, features) is understood unless both sizes are equal, where the first is the batch.
    `shift` and `gain` are judged on the first batch that uses the weight: a batch normalisation
    counts if it is called once with the very tensor that a layer returned and all gradient of that
    tensor comes through it, so that the output depends on it in no other way. A transposed
    convolution with groups has neither.

    Memory: the activations of one batch as in training, the gradient by one layer's output at a
    time, up to 64 MiB (or one sample) of unfolded inputs and their products in the network's
    precision, at least float32, and the sums on the same device in float64: 16 c min(c, block) +
    8 r min(r, block) bytes for a weight of r rows and c columns.

    Args:
        model: network whose state dict is to be encoded.
        batches: tensors, tuples of which the first is the input, or mappings of keyword arguments;
            dimension 0 is the batch. A Dataset is read in batches of 32.
        outputs: from what the model gives to the one tensor (samples, ...) that counts; by default
            all floats in it count that depend on a weight.
        probes: sign vectors for each sample; each costs a backward pass. None: 8 where the network
            gives at most 16 numbers for a sample, which they then say nearly all of, else 1; this
            is what made-up inputs calibrate with (docs/encoder.md).
        seed: of the signs. Those of a sample depend on this and on its place in the run.
        block: most columns, and rows, between which second moments are kept.
        progress: called with (stage, done, of) after each batch; `of` is `done` where the number of
            batches is not known.

    Raises:
        EncodeError: no data, or a network without gradients or with numbers that are not finite.
    """
    check_network(model)
    automatic = probes is None
    probes = 1 if probes is None else probes
    for name, number in (("probes", probes), ("block", block)):
        need_number(name, number)
    need_number("seed", seed, *SEEDS)
    need_function("outputs", outputs)
    need_function("progress", progress)
    if not 1 <= probes <= MOST_PROBES or block < 1:
        raise EncodeError(
            f"probes={probes} and block={block} must be at least 1, probes at most {MOST_PROBES}"
        )
    device = device_of(model)
    signs = torch.Generator().manual_seed(seed)
    batches = batched(batches)
    total = length_of(batches) or 0
    recorder, weights, done = Recorder(model, block), Weights(), 0
    with unchanged(model, device, seed) as buffers:
        for done, batch in enumerate(batches, start=1):
            buffers.restore()
            inputs = inputs_of(batch)
            args, kwargs = arguments(inputs, device)
            with Capture(recorder), without_checkpoints():
                given = _run(model, args, kwargs)
            count = samples_of(inputs)
            found = numbers_of(given, count, done, "numbers", outputs, needs_gradient=recorder.seen)
            count = samples_in(found, count)
            factors = weights.of(found, count)
            found = {name: tensor for name, tensor in found.items() if name in factors}
            numbers = sum(tensor.numel() for tensor in found.values()) / count
            if automatic and numbers:  # by the first batch
                automatic, probes = False, SEVERAL if numbers <= FEW else 1
            drawn = [
                [
                    v if factor == 1 else v * factor
                    for v, factor in zip(one, factors.values(), strict=True)
                ]
                for one in _signs(list(found.values()), count, probes, signs)
            ]
            # Samples that reach no matrix count like others: their gradients are 0.
            recorder.backward(list(found.values()) if recorder.seen else [], drawn, count)
            if progress is not None:
                progress("calibrate", done, max(done, total))
    if not done:
        raise EncodeError("calibration needs data: there is no batch")
    return Statistics(*recorder.statistics())


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return model(*args, **kwargs)
    except RuntimeError as error:
        if "Tensors does not require grad" not in str(error):
            raise
        reason = "the network differentiates by its own parameters, which calibration holds fixed"
        raise EncodeError(f"{reason}; encode it without statistics") from error


class Weights:
    """What the signs of outputs are multiplied with, so that each of several counts as much.

    The first output that varies has 1, as an output alone has; another one the square root of its
    variance times its elements for each sample over that of the other.
    """

    def __init__(self) -> None:
        self._sizes: dict[str, float] = {}

    def of(self, outputs: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        """Factors of those outputs that count in this batch.

        Args:
            outputs: by name; an empty one does not count, and one that was zero in all batches.
            samples: in the batch.
        """
        if not self._sizes and len(outputs) == 1:
            return dict.fromkeys(outputs, 1.0)
        for name, values in outputs.items():
            if name not in self._sizes and values.numel():
                size = spread_of(values, samples) * values.numel() / samples
                if size > 0:
                    self._sizes[name] = size
        unit = next(iter(self._sizes.values()), 1.0)
        return {
            name: math.sqrt(unit / self._sizes[name])
            for name, values in outputs.items()
            if name in self._sizes and values.numel()
        }


def _signs(
    outputs: Sequence[Tensor], samples: int, probes: int, generator: torch.Generator
) -> list[list[Tensor]]:
    """Sign vectors of the outputs' shapes for each probe.

    Those of (samples, ...) are drawn sample by sample, all outputs of a sample together; others
    behind them.
    """
    whole = [one for one in outputs if len(one) == samples]
    sizes = [one[0].numel() for one in whole]
    bits = torch.randint(
        0, 2, (samples, probes, sum(sizes)), generator=generator, dtype=torch.int8, device="cpu"
    )
    parts = iter(bits.split(sizes, 2))
    found: list[list[Tensor]] = [[] for _ in range(probes)]
    for one in outputs:
        if len(one) == samples:
            drawn = next(parts).movedim(1, 0).reshape(probes, *one.shape)
        else:
            drawn = torch.randint(
                0, 2, (probes, *one.shape), generator=generator, dtype=torch.int8, device="cpu"
            )
        for signs, own in zip(found, (2 * drawn - 1).to(one), strict=True):
            signs.append(own)
    return found
