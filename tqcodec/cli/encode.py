"""``tqcodec encode``: a `.tqc` file of a file of tensors, or of a network that is run."""

from __future__ import annotations

import itertools
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from tqcodec import api
from tqcodec.cli import checkpoints, measures
from tqcodec.cli.arguments import NO_DATA, SYNTHETIC
from tqcodec.common.progress import Progress
from tqcodec.encoder.findings import EncodeReport, HeldOut
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.statistics import Statistics
from tqcodec.errors import EncodeError


@dataclass(frozen=True)
class MadeUp:
    """Inputs that were made from the network alone, and what they were good for.

    Attributes:
        inputs: their number.
        seconds: that making them took; None where they come from a file.
        held_out: what those that were held out say; None of a lossless file, and where none was
            made with statistics.
    """

    inputs: int
    seconds: float | None
    held_out: HeldOut | None


@dataclass(frozen=True, eq=False)
class Encoded:
    """What `encode` made.

    Attributes:
        data: the file.
        statistics: that were gathered or given, empty if there are none.
        left_out: what of the input is not in the file.
        made_up: of made-up inputs, if there were any.
    """

    data: bytes
    statistics: Statistics
    left_out: Sequence[str] = ()
    made_up: MadeUp | None = None


def encode(arguments: Namespace, settings: Settings, progress: Progress | None) -> Encoded:
    """The file, and what there is to say of it.

    Raises:
        EncodeError: arguments, tensors, network or data that do not work.
        OSError: a file cannot be read, or that of `--save-inputs` not be written.
    """
    given = None if arguments.statistics is None else Statistics.load(arguments.statistics)
    if arguments.model is not None:
        return _of_network(arguments, settings, given, progress)
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
    return Encoded(data, given if given is not None else Statistics({}), checkpoint.left_out)


def _of_network(
    arguments: Namespace, settings: Settings, given: Statistics | None, progress: Progress | None
) -> Encoded:
    """Calibrate unless that has been done, encode, tune if there is data."""
    from tqcodec.cli import network

    model, batches = network.load(arguments, shuffled=True)
    from tqcodec import torch as codec
    from tqcodec.torch import held_out
    from tqcodec.torch.batches import samples_of

    seconds = None
    if arguments.data == SYNTHETIC:
        start = time.perf_counter()
        with _or_weights_alone():
            batches = network.make_inputs(arguments, model, progress)
        seconds = time.perf_counter() - start
    is_made_up = batches is not None and batches.synthetic
    used, held = held_out.split(batches) if is_made_up else (batches, None)
    tuned = batches is not None and arguments.tune
    if tuned and len(batches) == 1:
        raise EncodeError(f"{arguments.data}: one batch, tuning needs two: --batch or --no-tune")
    with network.running(arguments.model), _or_weights_alone(is_made_up):
        if given is None and used is not None:
            probes = None if is_made_up else 1
            given = codec.calibrate(model, used, probes=probes, progress=progress)
            given = given.made_up() if is_made_up else given
        elif tuned:  # see that it runs before the encoder does
            codec.calibrate(model, itertools.islice(used, 1))
    report = EncodeReport()
    with network.running(arguments.model):
        data = codec.encode(
            model,
            settings,
            given,
            tune=used if tuned else None,
            held_out=held,
            progress=progress,
            verify=arguments.verify,
            report=report,
        )
    made_up = None
    if is_made_up:
        inputs = sum(samples_of(one) for one, _ in batches)
        made_up = MadeUp(inputs, seconds, report.held_out)
    return Encoded(data, given if given is not None else Statistics({}), made_up=made_up)


@contextmanager
def _or_weights_alone(hint: bool = True) -> Iterator[None]:
    """Errors of what a network is run on unasked name the way without."""
    try:
        yield
    except ValueError as error:  # an EncodeError, or a number out of range
        if not hint:
            raise
        reason = str(error).removeprefix("tqcodec: ")
        raise EncodeError(f"{reason}; --data {NO_DATA} encodes weights alone") from error


def document(made_up: MadeUp | None) -> dict[str, Any] | None:
    """Of made-up inputs, for ``--json``; None without any."""
    if made_up is None:
        return None
    found = made_up.held_out
    judged = None if found is None else measures.finite({**asdict(found), "helped": found.helped})
    return {"inputs": made_up.inputs, "seconds": made_up.seconds, "held_out": judged}


def line(made_up: MadeUp) -> str:
    """Of made-up inputs, for people: how many, how long, what they were good for."""
    took = "" if made_up.seconds is None else f" from the network in {made_up.seconds:.1f} s"
    quality = "" if made_up.held_out is None else f"; {made_up.held_out}"
    return f"{'made' if took else 'read'} {made_up.inputs} inputs{took}{quality}"
