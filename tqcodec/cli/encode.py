"""``tqcodec encode``: a `.tqc` file of a file of tensors, or of a network that is run."""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

from tqcodec import api
from tqcodec.cli import checkpoints
from tqcodec.common.progress import Progress
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.statistics import Statistics
from tqcodec.errors import EncodeError


def encode(
    arguments: Namespace, settings: Settings, progress: Progress | None
) -> tuple[bytes, Statistics, Sequence[str]]:
    """The file, the statistics that it was made with, empty if without any, and what is left out.

    Raises:
        EncodeError: arguments, tensors, network or data that do not work.
        OSError: a file cannot be read.
    """
    given = None if arguments.statistics is None else Statistics.load(arguments.statistics)
    if arguments.model is not None:
        return *_of_network(arguments, settings, given, progress), ()
    checkpoint = checkpoints.read(arguments.input, arguments.key)
    metadata = {**checkpoint.metadata, **dict(settings.metadata)}
    settings = replace(settings, metadata=tuple(metadata.items()))
    data = api.encode(
        checkpoint.tensors,
        settings,
        statistics=given,
        progress=progress,
        verify=arguments.verify,
    )
    return data, given if given is not None else Statistics({}), checkpoint.left_out


def _of_network(
    arguments: Namespace, settings: Settings, given: Statistics | None, progress: Progress | None
) -> tuple[bytes, Statistics]:
    """Calibrate unless that has been done, encode, tune if there is data."""
    from tqcodec.cli import network

    model, batches = network.load(arguments, shuffled=True)
    from tqcodec import torch as codec

    tuned = batches is not None and arguments.tune
    if tuned and len(batches) == 1:
        raise EncodeError(f"{arguments.data}: one batch, tuning needs two: --batch or --no-tune")
    with network.running(arguments.model):
        if given is None:
            given = codec.calibrate(model, batches, progress=progress)
        elif tuned:  # see that it runs before the encoder does
            codec.calibrate(model, itertools.islice(batches, 1))
    tune = batches if tuned else None
    data = codec.encode(
        model, settings, given, tune=tune, progress=progress, verify=arguments.verify
    )
    return data, given
