"""Retraining of a network to a file of few bits, with the bits of the file in the loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from tqcodec import api
from tqcodec.common.atomic import check_writable
from tqcodec.common.checks import PathLike, need, need_function, need_number
from tqcodec.common.progress import Progress
from tqcodec.encoder.plan import make_plan
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.statistics import Statistics
from tqcodec.encoder.tensor import Treatment
from tqcodec.errors import EncodeError, TargetError
from tqcodec.format.container import EVERYTHING
from tqcodec.torch import folding
from tqcodec.torch.batches import (
    SEEDS,
    batched,
    check_network,
    copied,
    device_of,
    to_evaluation,
)
from tqcodec.torch.checkpoint import decoded, load_state, origins, to_arrays
from tqcodec.torch.retraining import checkpointing, judging, processes
from tqcodec.torch.retraining import start as starting
from tqcodec.torch.retraining.loop import Loop, Watch, quality_of
from tqcodec.torch.retraining.objective import Loss
from tqcodec.torch.retraining.recipe import TrainingRecipe
from tqcodec.torch.retraining.student import Student
from tqcodec.torch.search import Evaluate


def retrain(
    model: nn.Module,
    batches: Iterable[Any] | Dataset[Any],
    settings: Settings,
    *,
    epochs: int,
    loss: Loss | None = None,
    statistics: Statistics | None = None,
    start: bytes | None = None,
    inference: bool = True,
    checkpoint: PathLike | None = None,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    bfloat16: bool = False,
    compiled: bool = False,
    recipe: TrainingRecipe | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> bytes:
    """A `.tqc` file of a network that is trained until it does well at a given size.

    What is trained are the integers of the file, its steps and its vectors (Young et al. 2021,
    section V), under the frequency tables that the file has. The bits of the whole file are in the
    loss, with a weight that is steered so that the size comes out (docs/encoder.md, Retraining).
    The training starts at a file that is calibrated as usual. Without a loss of the user the
    network is held to the original's outputs, and to labels where a batch has them.

    The model is not changed: a float32 copy of it is trained, on its device, and a second one says
    what the outputs were. Modules run as they are, in evaluation mode: normalisations keep their
    statistics, so that what is trained is what is shipped. Under
    torch.distributed each process goes through batches of its own, gradients are averaged, and all
    return the same bytes.

    Args:
        model: the network.
        batches: gone through once an epoch: a list, which is shuffled, or a DataLoader, which may
            augment. Each is a tensor, a mapping of keyword arguments, or a tuple of such inputs
            and whole-number labels. A Dataset is read in batches of 32. Torch's global generator
            is seeded anew for each epoch.
        settings: with the target `bits` or `max_size`, which the file does not exceed.
        epochs: passes over the batches.
        loss: called with what the network gives and the batch, in place of the distance from the
            original; a number to be differentiated.
        statistics: of `calibrate`, for the start; None to gather them from the first batches.
        start: bytes of a `.tqc` file of this network to start at, such as that of an earlier
            training, in place of the calibrated one. Its bases and relative steps and the columns
            that it has stay; `model` still says what the outputs are to be.
        inference: write normalisations in inference form, as `Settings.inference`.
        checkpoint: file in which the training is kept soon, then every minute, and at its end. It
            stays.
        resume: go on from it, if it is there. On the same machine with the same number of threads
            the file is the same as without an interruption, if the batches depend on nothing but
            torch's global generator.
        evaluate: called after each epoch with the network as its file would have it, and with the
            decoded one at the end; gives a number for `watch`.
        bfloat16: run both networks under torch.autocast in bfloat16.
        compiled: use torch.compile.
        recipe: how to train.
        seed: of all that is random here.
        watch: called with a `TrainingMoment` after each step; by a training that goes on first with
            some of those before.
        progress: called with ("retrain", steps, of how many), and by the stages of the start.

    Warns:
        EncodeWarning: labels that do not count, matrices without a gradient, a file that is much
            smaller than asked for, outputs that have little to do with the original's.

    Raises:
        EncodeError: no target, no data, a network or loss that cannot be trained, a size that
            cannot be reached, a start or a checkpoint of something else.
    """
    _check(model, settings, epochs, seed, resume, checkpoint)
    need("statistics", statistics, (Mapping, NoneType), "tqcodec.Statistics")
    need("start", start, (bytes, NoneType), "the bytes of a .tqc file")
    if start is not None and statistics is not None:
        raise EncodeError("retrain: statistics are for a start of its own: give one of both")
    functions = {"loss": loss, "evaluate": evaluate, "watch": watch, "progress": progress}
    for name, function in functions.items():
        need_function(name, function)
    need("recipe", recipe, (TrainingRecipe, NoneType), "a TrainingRecipe")
    if isinstance(batches, Iterator):
        raise EncodeError(
            "retrain: batches are gone through again and again: give a list or loader"
        )
    if checkpoint is not None:
        check_writable(checkpoint)
    batches, recipe = batched(batches), recipe if recipe is not None else TrainingRecipe()
    arrays = to_arrays(model.state_dict())
    folded = folding.fold(model, arrays, settings) if inference else folding.Folded(arrays)
    settings = replace(settings, inference=bool(folded.constants))
    about = checkpointing.facts(
        model, settings, epochs, recipe, seed, start, loss is not None, bfloat16, compiled
    )
    saved = checkpointing.load(checkpoint, about) if checkpoint is not None and resume else None
    device = device_of(model)
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        np.errstate(invalid="ignore"),  # which BLAS may report of lanes beyond its arrays
    ):
        _check_tensors(model, folded, settings)
        judging.check_batch(model, batches, loss)
        if bfloat16:
            judging.warn_of_bfloat16(device)
        if evaluate is not None:  # as the decoded network will be
            load_state(copied(model), model.state_dict())
        if start is not None:
            first = starting.adopted(start, model, arrays, folded, settings)
        elif saved is not None:
            first = starting.opened(saved["start"].numpy().tobytes(), folded)
        else:
            own = starting.calibrated(model, folded, batches, settings, statistics, seed, progress)
            first = starting.opened(processes.of_first(own), folded)
        student = Student(model, first, folded, settings)
        if not student.latents:  # numbers take fewer bytes than integers and their tables
            raise EncodeError(
                "retrain: the file that the training starts at keeps all weight matrices as "
                "numbers, as it does with small ones: encode such a network without training"
            )
        target = settings.max_size or int((settings.bits or 0) * student.weights / 8)
        if (least := student.least()) > target:
            raise TargetError(
                f"retrain: {target} bytes cannot be reached from this start, whose bases, steps, "
                f"vectors and exact tensors alone take {least}: give more bytes, or fewer side_bits"
            )
        original = to_evaluation(copied(model)).float()
        loop = Loop(
            student,
            original,
            batches,
            target,
            epochs,
            recipe,
            seed,
            loss=loss,
            evaluate=evaluate,
            bfloat16=bfloat16,
            compiled=compiled,
        )
        checkpointer = checkpointing.Checkpointer(
            loop, checkpoint, first.data, about, recipe.fit_every
        )
        if saved is not None:
            checkpointer.restore(saved)
            if watch is not None:
                for moment in loop.history:
                    watch(moment)
        for moment in loop.moments():
            checkpointer.keep()
            if watch is not None:
                watch(moment)
            if progress is not None:
                progress("retrain", moment.step, moment.steps)
        data = student.file(progress)
        judging.judge(loop, len(data), target)
        if evaluate is not None:
            network = to_evaluation(copied(model)).float()
            load_state(network, decoded(data, limit=EVERYTHING))
            quality = quality_of(evaluate, network)
            if watch is not None:
                watch(replace(loop.moment(0.0), size=len(data), quality=quality))
    return data


def _check_tensors(model: nn.Module, folded: folding.Folded, settings: Settings) -> None:
    """Refuse names, rules and networks that no file or no training is made of, before any work."""
    sources = api.sources_of(folded.arrays, folded.origins(origins(model)))
    if not any(one.treatment == Treatment.TRANSFORM for one in make_plan(sources, settings, {})):
        raise EncodeError("retrain: the network has no weight matrix that could be trained")


def _check(
    model: nn.Module,
    settings: Settings,
    epochs: int,
    seed: int,
    resume: bool,
    checkpoint: PathLike | None,
) -> None:
    check_network(model)
    need("settings", settings, Settings, "tqcodec.Settings")
    need_number("epochs", epochs)
    need_number("seed", seed, *SEEDS)
    if epochs < 1:
        raise EncodeError(f"retrain: epochs={epochs} must be at least 1")
    if settings.bits is None and settings.max_size is None:
        raise EncodeError("retrain: settings need a target, bits or max_size")
    if settings.payload != "range":
        raise EncodeError("retrain: only range-coded files, payload='range'")
    if resume and checkpoint is None:
        raise EncodeError("retrain: resume needs a checkpoint")
