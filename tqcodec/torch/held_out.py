"""Never worse than weights alone: a calibrated file beside a plain one, on inputs held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

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
from tqcodec.torch.comparison import measure
from tqcodec.torch.synthetic.steps import is_classes
from tqcodec.torch.unchanged import unchanged

EVERY = 8  # batches, of which one is held out
LEAST = 3  # batches: tuning needs two

Made = tuple[bytes, EncodeReport]
Encode = Callable[[Settings], Made]


def split(batches: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Batches to calibrate and tune on, and every eighth, or the last of fewer, held out.

    Raises:
        EncodeError: fewer than three.
    """
    given = list(batches)
    if len(given) < LEAST:
        raise EncodeError(
            f"one batch is held out and tuning needs two: {LEAST} at least, not {len(given)}"
        )
    every = min(EVERY, len(given))
    held = range(every - 1, len(given), every)
    return [one for i, one in enumerate(given) if i not in held], [given[i] for i in held]


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
            EncodeError: neither can be made, or outputs that cannot be compared.
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
            one[1].held_out = self.compare(one[0])
            return one
        found = self.compare(one[0], other[0])
        chosen = one
        if not found.helped:
            other = other if of_size else plain(settings)
            chosen = _with(other, f"did not help: {found}")
        chosen[1].held_out = found
        return chosen

    def compare(self, calibrated: bytes, plain: bytes | None = None) -> HeldOut:
        """What a calibrated file does to the network, and one by weights alone if there is one.

        Raises:
            EncodeError: outputs that cannot be compared.
        """
        files = [calibrated] if plain is None else [calibrated, plain]
        states = [decoded(data, limit=EVERYTHING) for data in files]
        totals, what = [0.0] * len(files), ""
        for inputs in self._inputs:
            wanted = self._outputs(self._original, inputs)
            given = []
            for state in states:
                load_state(self._network, state)
                given.append(self._outputs(self._network, inputs))
            # Outputs as boxes that are found may be more or fewer than the original's.
            same = [
                one for one in zip(wanted, *given, strict=False) if len({y.shape for y in one}) == 1
            ]
            if not same:
                raise EncodeError("held_out: the network has no outputs that can be compared")
            what = what or ("KL" if len(wanted) == 1 and is_classes(wanted[0]) else "error")
            distance = _divergence if what == "KL" else _error
            for i in range(len(files)):
                totals[i] += sum(distance(y[0], y[1 + i]) for y in same) / len(same)
        found = [t / len(self._inputs) if math.isfinite(t) else math.inf for t in totals]
        return HeldOut(self._samples, what, found[0], *(found[1:] or [math.inf]))

    def _outputs(self, network: nn.Module, inputs: Any) -> list[Tensor]:
        device = device_of(network)
        with unchanged(network, device, 0):  # networks may draw, and change buffers
            return _tensors(Runner(network)(*arguments(inputs, device)))


def _with(made: Made, why: str) -> Made:
    """A file by weights alone, whose report says why it is that."""
    message = f"calibration {why}; the file is made by weights alone"
    made[1].findings.insert(0, Finding("calibration", message))
    return made


def _tensors(given: Any) -> list[Tensor]:
    """The `logits` of what a network gives, else its floating-point tensors at any depth."""
    given = given.logits if isinstance(getattr(given, "logits", None), Tensor) else given
    if isinstance(given, Tensor):
        is_known = given.is_floating_point() and given.numel() > 0
        return [given.detach().cpu()] if is_known else []
    values = given.values() if isinstance(given, Mapping) else given
    return [y for one in values for y in _tensors(one)] if _is_nested(values) else []


def _is_nested(values: Any) -> bool:
    return isinstance(values, Iterable) and not isinstance(values, (str, bytes))


def _divergence(wanted: Tensor, given: Tensor) -> float:
    return float(measure(wanted, given, None).kl.mean())


def _error(wanted: Tensor, given: Tensor) -> float:
    """Squared error over the energy of what the original has finite numbers for."""
    known = wanted.isfinite()
    y, z = wanted[known].double(), given[known].double()
    return float((y - z).square().sum()) / (float(y.square().sum()) or 1.0)
