"""Never worse than weights alone: a calibrated file beside a plain one, on inputs held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tqcodec.encoder.findings import EncodeReport, Finding, HeldOut
from tqcodec.encoder.settings import Settings
from tqcodec.errors import EncodeError, TargetError
from tqcodec.format.container import EVERYTHING
from tqcodec.torch.batches import (
    Runner,
    arguments,
    batched,
    copied,
    device_of,
    inputs_of,
    samples_of,
    to_evaluation,
)
from tqcodec.torch.checkpoint import decoded, load_state
from tqcodec.torch.comparison import measure_outputs, measure_places
from tqcodec.torch.outputs import (
    class_axis,
    comparable,
    is_classes,
    outputs_of,
    samples_in,
    sizes_of,
)
from tqcodec.torch.unchanged import unchanged

EVERY = 8  # batches, of which one is held out
LEAST = 3  # batches: tuning needs two
NO_NUMBERS = (
    "the decoded network gives outputs that are not finite where the original's are, on inputs "
    "held out: more bits"
)
SAME = (
    "on inputs held out the networks of both files give the same in every bit: does the network "
    "run weights that are not its own, as those of a global variable?"
)
Made = tuple[bytes, EncodeReport]
Encode = Callable[[Settings], Made]


def split(batches: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Batches to calibrate and tune on, and every eighth, or the last of fewer, held out.

    Raises:
        TypeError, EncodeError: no batches, or fewer than three.
    """
    given = list(batched(batches))
    if len(given) < LEAST:
        raise EncodeError(
            f"one batch is held out and tuning needs two: {LEAST} at least, not {len(given)}"
        )
    every = min(EVERY, len(given))
    held = range(every - 1, len(given), every)
    return [one for i, one in enumerate(given) if i not in held], [given[i] for i in held]


class NothingToCompareError(EncodeError):
    """No outputs of the decoded network can be held against the original's."""


class Judge:
    """Makes two files and gives the one whose network is nearer to the original.

    Args:
        model: the original. Two copies of it run.
        batches: as for `calibrate`, held out.

    Raises:
        EncodeError: no batch, or a network that cannot be copied.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any]) -> None:
        self._inputs = [inputs_of(batch) for batch in batched(batches)]
        if not self._inputs:
            raise EncodeError("held_out: there is no batch")
        self._samples = sum(map(samples_of, self._inputs))
        self._finite = True  # what the original gives
        self._original = to_evaluation(copied(model))
        self._network = to_evaluation(copied(model))

    def better(self, settings: Settings, calibrated: Encode, plain: Encode) -> Made:
        """The better file of two that are about as large, and its report, which says of both.

        A target of bits or bytes holds for both. By a ratio or quality the two would differ in
        size: there the plain file that is compared is one of at most the calibrated one's bytes,
        and where it is better the plain one of the target is given. Where only one of the two can
        be as small as asked, it is that one.

        Args:
            settings: of the file.
            calibrated: makes it with statistics, tuned or not.
            plain: makes it by weights alone.

        Raises:
            EncodeError: neither can be made.
        """
        if settings.lossless:
            return calibrated(settings)
        of_size = settings.bits is not None or settings.max_size is not None
        try:
            one = calibrated(settings)
        except TargetError as error:
            return _with(plain(settings), f"failed: {error}")
        as_large = settings
        if not of_size:
            as_large = replace(settings, snr=None, quality=None, max_size=len(one[0]))
        try:
            other = plain(as_large)
        except TargetError:  # weights alone take more bytes
            with suppress(NothingToCompareError):  # nothing else could be given
                one[1].held_out = self.compare(one[0])
            return one
        try:
            found = self.compare(one[0], other[0])
        except NothingToCompareError as error:  # as where a detector finds nothing
            message = f"calibration was not checked: {error}"
            one[1].findings.insert(0, Finding("calibration", message))
            return one
        chosen = one
        if not found.helped:
            other = other if of_size else plain(settings)
            chosen = _with(other, f"did not help: {found}")
        chosen[1].held_out = found
        number = found.calibrated if found.helped else found.plain
        if self._finite and not math.isfinite(number):
            chosen[1].findings.insert(0, Finding("lost", NO_NUMBERS))
        if found.calibrated == found.plain == 0:
            chosen[1].findings.insert(0, Finding("calibration", SAME))
        return chosen

    def compare(self, calibrated: bytes, plain: bytes | None = None) -> HeldOut:
        """What a calibrated file does to the network, and one by weights alone if there is one.

        Batches whose outputs cannot be compared are left out, as those in which a detector finds
        nothing, or another number of things than the original.

        Raises:
            NothingToCompareError: there is no other batch.
        """
        files = [calibrated] if plain is None else [calibrated, plain]
        states = [decoded(data, limit=EVERYTHING) for data in files]
        distances: list[list[NDArray[np.float64]]] = [[] for _ in files]
        what = ""
        for inputs in self._inputs:
            wanted = self._outputs(self._original, inputs)
            given = []
            for state in states:
                load_state(self._network, state)
                given.append(self._outputs(self._network, inputs))
            same = comparable(wanted, *given)
            if not same:
                continue
            self._finite &= all(bool(wanted[name].isfinite().all()) for name in same)
            axis = class_axis(wanted)
            first = wanted[same[0]]
            is_scores = axis is not None and (first.ndim > 2 or is_classes(first))
            what = what or ("KL" if is_scores else "error")
            count = samples_in(wanted, samples_of(inputs))
            sizes = sizes_of(wanted, count)
            for i, z in enumerate(given):
                if what == "KL" and axis is not None:
                    (name,) = same
                    distances[i].append(measure_places(wanted[name], z[name], axis).kl)
                else:
                    distances[i].append(measure_outputs(wanted, z, same, sizes, count).error)
        if not what:
            raise NothingToCompareError(
                "held_out: the network has no outputs that can be compared: evaluate its file"
            )
        each = [np.concatenate(one) for one in distances]
        means = [m if math.isfinite(m := float(one.mean())) else math.inf for one in each]
        if plain is None:
            return HeldOut(self._samples, what, means[0], math.inf)
        apart = each[0] - each[1]
        chance = float(apart.std(ddof=1)) / math.sqrt(len(apart)) if len(apart) > 1 else 0.0
        chance = chance if math.isfinite(chance) else 0.0
        return HeldOut(self._samples, what, means[0], means[1], chance)

    def _outputs(self, network: nn.Module, inputs: Any) -> dict[str, Tensor]:
        device = device_of(network)
        with unchanged(network, device, 0):  # networks may draw, and change buffers
            found = outputs_of(Runner(network)(*arguments(inputs, device)), samples_of(inputs))
            return {name: y.detach().cpu() for name, y in found.items()}


def _with(made: Made, why: str) -> Made:
    """A file by weights alone, whose report says why it is that."""
    message = f"calibration {why}; the file is made by weights alone"
    made[1].findings.insert(0, Finding("calibration", message))
    return made
