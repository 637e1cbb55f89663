"""Calibration: statistics of a network's weights from one pass over some data."""

from __future__ import annotations

from collections.abc import Iterable, Sized
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
    check_output,
    device_of,
    first_logits,
    inputs_of,
)
from tqcodec.torch.calibration.capture import Capture, without_checkpoints
from tqcodec.torch.calibration.recorder import Recorder
from tqcodec.torch.unchanged import unchanged

MOST_PROBES = 1 << 16


def calibrate(
    model: nn.Module,
    batches: Iterable[Any] | Dataset[Any],
    *,
    outputs: Outputs | None = None,
    probes: int = 1,
    seed: int = 0,
    block: int = 4096,
    progress: Progress | None = None,
) -> Statistics:
    """Statistics of a network's weights for the encoder (Young et al. 2021, section II).

    One pass forward, and one backward for each probe v: a vector of random signs for each sample,
    whose product with the logits y is differentiated by what each layer gives. Convolutions of all
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
        outputs: from what the model gives to (samples, ...) logits; by default the tensor itself,
            its `logits`, or the first tensor of a tuple or mapping.
        probes: sign vectors for each sample; each costs a backward pass.
        seed: of the signs. Those of a sample depend on this and on its place in the run.
        block: most columns, and rows, between which second moments are kept.
        progress: called with (stage, done, of) after each batch; `of` is `done` where the number of
            batches is not known.

    Raises:
        EncodeError: no data, or a network without gradients or with numbers that are not finite.
    """
    check_network(model)
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
    total = len(batches) if isinstance(batches, Sized) else 0
    recorder, done = Recorder(model, block), 0
    with unchanged(model, device, seed):
        for done, batch in enumerate(batches, start=1):
            args, kwargs = arguments(inputs_of(batch), device)
            with Capture(recorder), without_checkpoints():
                given = _run(model, args, kwargs)
            logits = outputs(given) if outputs else first_logits(given)
            check_output(logits, done, "logits", needs_gradient=recorder.seen)
            drawn = _signs(logits, probes, signs)
            if recorder.seen:
                recorder.backward(logits, drawn)
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


def _signs(logits: Tensor, probes: int, generator: torch.Generator) -> list[Tensor]:
    """Sign vectors of the logits' shape, drawn sample by sample."""
    shape = (len(logits), probes, *logits.shape[1:])
    bits = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
    return list((2 * bits - 1).to(logits).unbind(1))
