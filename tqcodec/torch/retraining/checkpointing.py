"""Checkpoints of a training: what is needed to go on to the same file."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tqcodec.common import foreign
from tqcodec.common.atomic import replacing
from tqcodec.common.checks import PathLike
from tqcodec.encoder.settings import Settings
from tqcodec.errors import EncodeError
from tqcodec.torch.checkpoint import check_archive, save, to_arrays
from tqcodec.torch.retraining import processes
from tqcodec.torch.retraining.controller import RateController
from tqcodec.torch.retraining.loop import Loop, TrainingMoment, TrainingState
from tqcodec.torch.retraining.recipe import TrainingRecipe

EVERY = 60.0  # seconds between two checkpoints, at least
FORMAT = 5


def facts(
    model: nn.Module,
    settings: Settings,
    epochs: int,
    recipe: TrainingRecipe,
    seed: int,
    start: bytes | None,
    own_loss: bool,
    bfloat16: bool,
    compiled: bool,
) -> dict[str, str]:
    """What a checkpoint must agree in, by name: the network, and what decides on the file.

    Not in data, nor in which loss of the user's own it is, nor in the number of workers: with any
    the file is the same.
    """
    network = hashlib.sha256()
    for name, array in to_arrays(model.state_dict()).items():
        network.update(repr((name, array.shape, array.dtype.name)).encode())
        network.update(array.tobytes())
    return {
        "version of tqcodec": str(FORMAT),
        "network": network.hexdigest(),
        "settings": repr(replace(settings, workers=1)),
        "epochs": str(epochs),
        "recipe": repr(recipe),
        "seed": str(seed),
        "start": hashlib.sha256(start).hexdigest() if start is not None else "",
        "kind of loss": str(own_loss),
        "bfloat16": str(bfloat16),
        "compile": str(compiled),
    }


def load(path: PathLike, wanted: Mapping[str, str]) -> dict[str, Any] | None:
    """A checkpoint; None where there is none yet.

    Raises:
        EncodeError: something else, or of another training.
        OSError: it cannot be read.
    """
    if not Path(path).exists():
        return None
    try:
        with Path(path).open("rb") as file:
            check_archive(file)  # torch takes damaged numbers as they are
            saved = torch.load(file, map_location="cpu", weights_only=True)
        found = dict(saved["facts"])
    except (OSError, MemoryError):  # of which a good checkpoint is not to be removed
        raise
    except Exception as error:  # torch raises anything
        reason = foreign.message(error)
        raise EncodeError(
            f"{path}: not a checkpoint of a training ({reason}): remove it, or name another"
        ) from error
    if others := [name for name, value in wanted.items() if found.get(name) != value]:
        raise EncodeError(
            f"{path}: of a training that differs in {', '.join(others)}: go on with the same, or "
            "name another checkpoint"
        )
    return dict(saved)


class Checkpointer:
    """Keeps a training in a file from which it can go on.

    Args:
        loop: the training.
        path: of the file; None keeps nothing.
        start: the file that the training started at.
        about: `facts` of the training.
        every: steps between moments that can be kept: those at which tables are fitted.
    """

    def __init__(
        self, loop: Loop, path: PathLike | None, start: bytes, about: dict[str, str], every: int
    ) -> None:
        self._loop, self._path, self._start, self._about = loop, path, start, about
        self._every, self._last = every, -math.inf

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Set the training to where it was.

        Raises:
            EncodeError: its epochs had more or fewer batches.
        """
        loop = self._loop
        if saved["steps"] != loop.steps:
            raise EncodeError(
                f"{self._path}: of {saved['steps']} batches in all epochs, here are {loop.steps}"
            )
        loop.student.load_state(saved["student"])
        loop.optimizer.load_state_dict(saved["optimizer"])
        loop.state = TrainingState(**saved["state"])
        loop.controller = RateController(**saved["controller"])
        loop.history = [TrainingMoment(**moment) for moment in saved["history"]]

    def keep(self) -> None:
        """Write the file, unless that was done a short while ago; at the end in any case."""
        loop = self._loop
        due = time.monotonic() - self._last >= EVERY and loop.state.step % self._every == 0
        if self._path is None or not (due or loop.state.step == loop.steps):
            return
        if not processes.is_first():
            return
        state = {
            "facts": self._about,
            "start": torch.frombuffer(bytearray(self._start), dtype=torch.uint8),
            "student": loop.student.state(),
            "optimizer": loop.optimizer.state_dict(),
            "steps": loop.steps,
            "state": asdict(loop.state),
            "controller": asdict(loop.controller),
            "history": [asdict(moment) for moment in loop.history],
        }
        with replacing(Path(self._path)) as temporary:
            save(temporary, state)
        self._last = time.monotonic()
