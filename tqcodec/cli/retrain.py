"""``tqcodec retrain``: a network that is trained until it does well in a file of few bits."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqcodec import api
from tqcodec.cli import checkpoints, describe, network
from tqcodec.cli.arguments import check_retrain, inputs_of, settings_of
from tqcodec.cli.terminal import training_progress
from tqcodec.cli.text import printable, summary_line
from tqcodec.common.progress import Progress
from tqcodec.errors import EncodeError

if TYPE_CHECKING:
    from tqcodec.torch import TrainingMoment


def retrain(arguments: Namespace, progress: Progress | None) -> network.Result:
    """Train a network and write its file, and a drawing if that is asked for.

    Raises:
        UsageError: options that do not go together.
        EncodeError: arguments, network or data that do not work.
        OSError: a file cannot be read or written.
    """
    check_retrain(arguments)
    _check_outputs(arguments)
    curve = network.drawing_for("--plot") if arguments.plot is not None else None
    settings = settings_of(arguments)
    started = Path(arguments.start).read_bytes() if arguments.start is not None else None
    model, data = network.load(arguments, redrawn=True)
    from tqcodec import torch as codec
    from tqcodec.torch.retraining.augment import Augmented

    if arguments.crop or arguments.mirror:
        data = Augmented(data, arguments.crop, arguments.mirror)
    moments: list[TrainingMoment] = []
    start = time.monotonic()
    with (
        _interruptible(arguments.checkpoint),
        network.running(arguments.model),
        training_progress(arguments.epochs) as shown,
    ):

        def watch(moment: TrainingMoment) -> None:
            moments.append(moment)
            shown.watch(moment)

        file = codec.retrain(
            model,
            data,
            settings,
            epochs=arguments.epochs,
            start=started,
            inference=arguments.inference,
            checkpoint=arguments.checkpoint,
            resume=arguments.resume,
            bfloat16=arguments.bfloat16,
            compiled=arguments.compile,
            seed=arguments.seed,
            watch=watch,
            progress=shown.show,
        )
    outputs = {arguments.output: file}
    if curve is not None:
        outputs[arguments.plot] = curve.draw_training(moments, arguments.model, settings)
    checkpoints.write_together(outputs)
    with api.open(file) as opened:
        result = describe.summary(opened.container)
    seconds = time.monotonic() - start
    about = {"epochs": arguments.epochs, "loss": moments[-1].loss, "seconds": round(seconds, 1)}
    line = f"{printable(arguments.output)}: {summary_line(result)}, loss {moments[-1].loss:.4f}"
    return {"output": arguments.output, **result, **about}, [line]


@contextmanager
def _interruptible(checkpoint: str | None) -> Iterator[None]:
    """Ctrl-C says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint is None:
            raise
        hint = f"{printable(checkpoint)} is kept, --resume goes on from it, a minute back at most"
        if not Path(checkpoint).exists():
            hint = f"nothing is kept yet, {printable(checkpoint)} comes after some steps"
        raise KeyboardInterrupt(hint) from None


def _check_outputs(arguments: Namespace) -> None:
    """Refuse outputs that may not be written, or are the same, before any work."""
    if arguments.output == checkpoints.STANDARD:
        raise EncodeError("a retrained network is written to a file: name one with -o")
    if arguments.plot is not None and not arguments.plot.endswith(".png"):
        raise EncodeError(f"{arguments.plot}: a curve is a .png file")
    outputs = [arguments.output, arguments.checkpoint, arguments.plot]
    outputs = [name for name in outputs if name is not None]
    for name in outputs:
        kept = name == arguments.checkpoint
        if kept and (name == checkpoints.STANDARD or checkpoints.is_pipe(name)):
            raise EncodeError(f"{name}: a checkpoint is a file, which --resume reads again")
        overwrite = arguments.force or (arguments.resume and kept)
        instead = "--resume goes on from it, " if kept else ""
        checkpoints.check_output(name, overwrite, inputs_of(arguments), instead=instead)
        if sum(os.path.realpath(name) == os.path.realpath(other) for other in outputs) > 1:
            raise EncodeError(f"{name} is named as two outputs")
