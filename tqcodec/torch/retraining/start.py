"""Start: the file that a training starts at, a calibrated one or one that the user has."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from tqcodec import api
from tqcodec.arrays import dtype_of
from tqcodec.common.progress import Progress
from tqcodec.encoder.settings import RANGES, Settings
from tqcodec.encoder.statistics import Statistics
from tqcodec.errors import DecodeError, EncodeError, EncodeWarning, EvaluationError, TargetError
from tqcodec.format.container import EVERYTHING, Container
from tqcodec.torch import folding
from tqcodec.torch.batches import copied, inputs_of, samples_of, single, with_tensors
from tqcodec.torch.calibration.calibrate import calibrate
from tqcodec.torch.checkpoint import Array, from_arrays, load_state, origins

CALIBRATION: Final = 2048  # samples that the start is calibrated on
START_EFFORT: Final = 2  # whose quantizer is uniform, and whose heads are small
STARTS: Final = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # sizes of the start over the target, in turn


@dataclass(frozen=True, eq=False)
class Start:
    """A file that fits a network.

    Attributes:
        data: the file.
        container: likewise.
        arrays: what it decodes to, by the names of the network's state dict in their order; its
            normalisations in the form of the file that is to come.
        given: True for a file of the user, whose weights may be far from the network's.
    """

    data: bytes
    container: Container
    arrays: dict[str, Array]
    given: bool


def calibrated(
    model: nn.Module,
    folded: folding.Folded,
    batches: Iterable[Any],
    settings: Settings,
    statistics: Statistics | None,
    seed: int,
    progress: Progress | None,
) -> bytes:
    """The file of the network at the size asked for, or at the least above it."""
    if statistics is None:
        torch.manual_seed(seed)
        # A copy, for networks that change their weights when they run; in float32, as is trained.
        samples = [with_tensors(inputs, single) for inputs in _first(batches)]
        statistics = calibrate(copied(model).float(), samples, seed=seed, progress=progress)
    statistics, known = folded.statistics(statistics), folded.origins(origins(model))
    wanted = replace(settings, effort=START_EFFORT)
    target = "bits" if settings.max_size is None else "max_size"
    numbers = RANGES[target]
    for times in STARTS:
        size = min(getattr(settings, target) * times, numbers.most)
        wish: Any = {target: int(size) if numbers.whole else size}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EncodeWarning)  # of what is trained yet
                return api.encode(
                    folded.arrays,
                    replace(wanted, **wish),
                    statistics,
                    origins=known,
                    progress=progress,
                )
        except TargetError as error:
            refused = error
    raise TargetError(f"retrain starts at {STARTS[-1]:g} times its size at most: {refused}")


def _first(batches: Iterable[Any]) -> Iterable[Any]:
    """Batches of enough samples for a calibration."""
    samples = 0
    for batch in batches:
        inputs = inputs_of(batch)
        yield inputs
        samples += samples_of(inputs)
        if samples >= CALIBRATION:
            return


def opened(data: bytes, folded: folding.Folded) -> Start:
    """A file of `calibrated`."""
    container = Container.of(data, EVERYTHING)
    return Start(data, container, _decoded(container, folded.arrays), False)


def adopted(
    data: bytes,
    model: nn.Module,
    original: Mapping[str, Array],
    folded: folding.Folded,
    settings: Settings,
) -> Start:
    """A file of the user, of any encoder and any settings, held against the network.

    Normalisations that are not in inference form are brought into it where `folded` is.

    Args:
        data: the file.
        model: the network.
        original: arrays of its state dict.
        folded: these in the form of the file that is to come.
        settings: of that file.

    Raises:
        EncodeError: it does not decode, or has not the names, shapes and types of the network, or
            is in inference form where the file to come is not.
    """
    try:
        container = Container.of(data, EVERYTHING)
        _check_tensors(container, original)
        arrays = _decoded(container, original)
    except DecodeError as error:
        raise EncodeError(f"start: {error}") from error
    if folded.constants:
        arrays = _folded(model, arrays, folded, settings)
    else:
        _check_form(model, original, arrays)
    return Start(data, container, arrays, True)


def _check_tensors(container: Container, original: Mapping[str, Array]) -> None:
    """Refuse a file that has not the names, shapes and types of the network."""
    entries = {entry.name: entry for entry in container.directory.entries}
    for name, array in original.items():
        if name not in entries:
            raise EncodeError(f"start: the network's tensor {name!r} is not in the file")
        entry, dtype = entries[name], dtype_of(name, array)
        found, wanted = ((d.name, s) for d, s in ((entry.dtype, entry.shape), (dtype, array.shape)))
        if found != wanted:
            raise EncodeError(
                f"start: {name!r} is {found[0]} {found[1]}, in the network {wanted[0]} {wanted[1]}"
            )
    extra = next((name for name in entries if name not in original), None)
    if extra is not None:
        raise EncodeError(f"start: the network has no tensor {extra!r}")


def _decoded(container: Container, like: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of a file in the order and the types of others."""
    found = {entry.name: patterns for entry, patterns in container.decode_all()}
    return {name: found[name].view(array.dtype) for name, array in like.items()}


def _folded(
    model: nn.Module, arrays: dict[str, Array], folded: folding.Folded, settings: Settings
) -> dict[str, Array]:
    """The tensors of a file with the same normalisations in inference form as `folded`."""
    network = copied(model)
    try:
        load_state(network, from_arrays(arrays))
    except EvaluationError as error:
        raise EncodeError(f"start: {error}") from error
    found = folding.fold(network, arrays, settings)
    other = sorted(folded.constants ^ found.constants)
    if other:
        raise EncodeError(
            f"start: {other[0]!r} cannot be brought into inference form as in the network: train "
            "without that form"
        )
    return found.arrays


def _check_form(
    model: nn.Module, original: Mapping[str, Array], arrays: Mapping[str, Array]
) -> None:
    """Refuse a file in inference form."""
    form = folding.fold(model, original)
    for name in form.constants:
        constant = np.array_equal(arrays[name], form.arrays[name])
        if constant and not np.array_equal(arrays[name], original[name]):
            raise EncodeError(
                f"start: {name!r} is in inference form, which the file is not to have: start at "
                "another file, or train in that form"
            )
