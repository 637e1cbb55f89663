"""Judging: what a training cannot be made of, before it; what its user should know, after it."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import nn

from tqcodec.common import foreign
from tqcodec.encoder.findings import LEAST_MISS, names_of
from tqcodec.errors import EncodeError, EncodeWarning, TQCError
from tqcodec.torch.batches import Runner, copied, device_of, to_evaluation
from tqcodec.torch.retraining import processes
from tqcodec.torch.retraining.loop import Loop, call_of
from tqcodec.torch.retraining.objective import Loss, left_out, loss_of

SPARE: Final = 0.05  # of the size asked for, that may be left without a word
HARDLY: Final = 0.5  # of the distance of outputs that are alike for all samples
ALIKE: Final = 0.01  # a smaller distance than this says that the original's hardly differ


def check_batch(model: nn.Module, batches: Iterable[Any], loss: Loss | None) -> None:
    """Run a float32 copy of a network on the first batch, and the loss on what it gives.

    Raises:
        EncodeError: there is no batch, the copy does not run where the network may, or there is no
            loss of its outputs.
    """
    batch = _first(batches)
    network = to_evaluation(copied(model)).float()
    try:
        given = Runner(network)(*call_of(batch, device_of(network)))
    except TQCError:
        raise
    except Exception as error:  # of the user's network
        if all(one.dtype == torch.float32 for one in model.parameters()):
            raise
        raise EncodeError(
            f"retrain: the float32 copy of the network that is trained does not run: "
            f"{foreign.described(error)}: leave out what makes other types of floats"
        ) from error
    loss_of(loss, given, given, batch)
    about = left_out(batch, given) if loss is None else None
    if about is not None:
        _warn(
            f"retrain: what batches have beside inputs is left out: {about} is no whole number "
            "for each sample beside outputs (samples, classes); give a loss"
        )


def warn_of_bfloat16(device: torch.device) -> None:
    """Warn where bfloat16 is not computed in, but converted to and from: 13 times as slow."""
    old = ("DEFAULT", "NO AVX", "AVX2")
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in old:
        return
    if platform.machine().lower() in ("x86_64", "amd64"):
        _warn(
            "retrain: this processor has no instructions for bfloat16, which then takes many times "
            "as long as float32: leave it out"
        )


def judge(loop: Loop, size: int, target: int) -> None:
    """Warn of what is wrong with the file of a training that has ended.

    Args:
        loop: the training.
        size: bytes of the file.
        target: those that it was to have.
    """
    latents, weights = loop.student.latents, loop.student.weights
    unreached = [name for name in latents if name not in loop.state.reached]
    if unreached:
        _warn(
            f"retrain: no batch had a gradient by {len(unreached)} of {len(latents)} matrices, "
            f"which were not trained: {names_of(unreached)}; the network does not use them, or "
            "cuts gradients off (no_grad, detach, .data)"
        )
    if target - size > max(SPARE * target, LEAST_MISS):
        _warn(
            f"retrain: {size} bytes, {8 * size / weights:.3f} bits per weight, where {target} "
            f"bytes, {8 * target / weights:.3f} bits, were asked for"
        )
    distance, other = loop.distances()
    if distance > HARDLY * other > HARDLY * ALIKE:
        _warn(
            f"retrain: outputs are {distance:.3g} from the original's, those of a network that "
            f"gives the same for every input would be {other:.3g}: more bits or more epochs"
        )


def _first(batches: Iterable[Any]) -> Any:
    for batch in batches:
        return batch
    raise EncodeError("retrain: there is no batch")


def _warn(message: str) -> None:
    if processes.is_first():
        warnings.warn(message, EncodeWarning, stacklevel=4)
