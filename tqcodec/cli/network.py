"""Commands that run a network: ``tqcodec calibrate | eval | sweep``.

Each gives a document for ``--json`` and lines for people. Torch is left to `tqcodec.torch`.
"""

from __future__ import annotations

import os
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from tqcodec import api
from tqcodec.cli import checkpoints, describe, measures
from tqcodec.cli.arguments import NO_DATA, PICTURES, SYNTHETIC, inputs_of, reading_of
from tqcodec.cli.text import lines_without, printable
from tqcodec.common import foreign
from tqcodec.common.progress import Progress
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.statistics import Statistics
from tqcodec.errors import EncodeError, EncodeWarning, TQCError
from tqcodec.format.container import EVERYTHING
from tqcodec.reading.file import TensorFile

Result = tuple[dict[str, Any], Iterable[str]]

CALIBRATED, DATA_FREE = "calibrated", "data-free"


def load(arguments: Namespace, shuffled: bool = False, redrawn: bool = False) -> tuple[Any, Any]:
    """The network and the data of ``--model`` and ``--data``.

    Args:
        arguments: of the command line.
        shuffled: samples come in random order, always the same.
        redrawn: samples come in another order in each pass.

    Returns:
        an nn.Module, and a `tqcodec.torch.inputs.Data`, or None where `encode` names none.

    Raises:
        EncodeError: either cannot be had.
    """
    try:
        from tqcodec.torch import user_code
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise EncodeError("networks need PyTorch: pip install 'torch>=2.6'") from error
    from tqcodec.torch import inputs

    options = _options(arguments, shuffled, redrawn)
    data = None
    if arguments.data not in (SYNTHETIC, NO_DATA) or _is_there(arguments):
        with _surroundings_kept():
            data = inputs.load_batches(arguments.data, options)
    with _surroundings_kept():
        return user_code.load_model(arguments.model, arguments.device), data


def _is_there(arguments: Namespace) -> bool:
    """Whether a choice of `encode --data` is the name of something, as it is to other commands.

    Raises:
        EncodeError: it is neither.
    """
    if arguments.command == "encode":
        return False
    if not Path(arguments.data).exists():
        raise EncodeError(
            f"{arguments.data} is no data but a choice of `encode --model`; "
            "made-up inputs are kept by its --save-inputs, and read from that file"
        )
    return True


def _options(arguments: Namespace, shuffled: bool = False, redrawn: bool = False) -> Any:
    """The `DataOptions` that are given; the others have defaults."""
    from tqcodec.torch.inputs import DataOptions

    names = ("images", "batch", "size", "mean", "std")
    given = {name: getattr(arguments, name) for name in names}
    known = {name: value for name, value in given.items() if value is not None}
    return DataOptions(**known, shuffled=shuffled, redrawn=redrawn)


def make_inputs(arguments: Namespace, model: Any, progress: Progress | None) -> Any:
    """Data made from the network alone, as the arguments of `encode` say; saved where they do.

    Raises:
        EncodeError: arguments that do not fit the network, or a network that fails on such inputs.
        OSError: the file cannot be written.
    """
    from tqcodec import torch as codec
    from tqcodec.torch import held_out, inputs, user_code
    from tqcodec.torch.synthetic.file import save_inputs
    from tqcodec.torch.synthetic.steps import DEFAULT

    if arguments.images is not None and arguments.images < held_out.LEAST:
        raise EncodeError(
            f"--images: at least {held_out.LEAST} inputs are made up, some of which are held out, "
            f"not {arguments.images}"
        )
    ways = {name: getattr(arguments, name) for name in (*PICTURES, "tokens")}
    if arguments.images is not None:
        ways["count"] = arguments.images
    recipe = replace(DEFAULT, batch=arguments.batch)
    with _surroundings_kept():
        if arguments.example is not None:
            ways["example"] = user_code.call(arguments.example)
        known = {name: value for name, value in ways.items() if value is not None}
        made = codec.synthetic_inputs(model, **known, recipe=recipe, progress=progress)
    if arguments.save_inputs is not None and not arguments.dry_run:
        save_inputs(arguments.save_inputs, made)
    return inputs.made_up(made, inputs.DataOptions(images=arguments.images))


@contextmanager
def running(model: str) -> Iterator[None]:
    """Errors of the user's network become errors of one line."""
    try:
        with _surroundings_kept():
            yield
    except (TQCError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise EncodeError(f"{model}: {foreign.described(error)}") from error


@contextmanager
def _surroundings_kept() -> Iterator[None]:
    """Names of files mean what they meant, and our warnings are shown, whatever user code does."""
    folder = Path.cwd()
    try:
        yield
    finally:
        os.chdir(folder)
        warnings.simplefilter("always", EncodeWarning)


def calibrate(arguments: Namespace, progress: Progress | None) -> Result:
    """Write the statistics of a network.

    Raises:
        EncodeError: arguments, network or data that do not work.
    """
    if arguments.output == checkpoints.STANDARD:
        raise EncodeError("statistics are written to a file: name one with -o")
    checkpoints.check_output(arguments.output, arguments.force, inputs_of(arguments))
    model, data = load(arguments, shuffled=True)
    from tqcodec.torch import calibrate, held_out

    # Of made-up inputs a part is left for `encode`, to see whether they helped.
    used = held_out.split(data)[0] if data.synthetic else data
    probes = arguments.probes
    if probes is None and not data.synthetic:
        probes = 1
    with running(arguments.model):
        found = calibrate(model, used, probes=probes, progress=progress)
    found = found.made_up() if data.synthetic else found
    found.save(arguments.output)
    document = {
        "output": arguments.output,
        "weights": len(found),
        "without": dict(found.without),
        "images": max((one.images for one in found.values()), default=0),
        "bytes": Path(arguments.output).stat().st_size,
    }
    lines = list(lines_without(found.without))
    counts = f"{document['weights']} weights, {document['images']} images"
    lines.append(f"{printable(arguments.output)}: {counts}, {document['bytes']} bytes")
    return document, lines


def evaluate(arguments: Namespace, progress: Progress | None) -> Result:
    """Hold a `.tqc` file against the network that it was made of.

    Raises:
        EncodeError: arguments, network or data that do not work.
        EvaluationError: a file or data that do not fit the network.
        DecodeError: the file cannot be decoded.
    """
    source = checkpoints.source(arguments.input)
    with api.open(source, **reading_of(arguments)) as file:
        size = _size(file)
    model, data = load(arguments)
    from tqcodec import torch as codec
    from tqcodec.torch.checkpoint import decoded

    state = decoded(source, **reading_of(arguments), progress=progress)
    with running(arguments.model):
        found = codec.compare(model, state, data, progress=progress)
    document = {"file": arguments.input, **size, **measures.document(found)}
    return document, measures.lines(arguments.input, size, found)


def _size(file: TensorFile) -> dict[str, Any]:
    wanted = ("bytes", "decoded_bytes", "ratio", "bits_per_weight")
    summary = describe.summary(file.container)
    return {name: summary[name] for name in wanted}


def sweep(arguments: Namespace, progress: Progress | None) -> Result:
    """Encode a network at several rates, with and without statistics; draw what that costs it.

    Raises:
        EncodeError: arguments, network or data that do not work.
        EvaluationError: data that do not fit the network.
    """
    picture, table = _sweep_outputs(arguments)
    curve = drawing_for("sweep")
    plain = Settings(effort=arguments.effort, workers=arguments.workers)
    points = [replace(plain, bits=bits) for bits in arguments.bits]
    encoders: dict[str, Any] = {DATA_FREE: None}
    if arguments.statistics is not None:
        encoders = {CALIBRATED: Statistics.load(arguments.statistics), **encoders}
    model, data = load(arguments)
    from tqcodec import torch as codec

    with running(arguments.model):
        reference = codec.Reference(model, data, progress=progress)
    rows = []
    for settings in points:
        for encoder, statistics in encoders.items():
            start = time.perf_counter()
            encoded = codec.encode(model, settings, statistics, progress=progress)
            seconds = time.perf_counter() - start
            state = codec.decode(encoded, limit=EVERYTHING, progress=progress)
            with running(arguments.model):
                found = reference.compare(state, progress=progress)
            with api.open(encoded) as file:
                size = _size(file)
            if size["bits_per_weight"] is None:
                raise EncodeError(f"{arguments.model}: no weight matrices, so no bits per weight")
            rows.append(measures.row(encoder, settings.bits, size, found, seconds))
    images = reference.images
    drawing = curve.draw(rows, f"{arguments.model}, {images} images")
    checkpoints.write_together({table: measures.table(rows), picture: drawing})
    outputs = {"output": picture, "table": table, "images": images}
    written = f"{printable(picture)}, {printable(table)}: {images} images"
    return {**outputs, "rows": measures.finite(rows)}, [*measures.table_lines(rows), written]


def drawing_for(what: str) -> ModuleType:
    """The module that draws curves.

    Raises:
        EncodeError: matplotlib is not there, which `what` needs.
    """
    try:
        from tqcodec.cli import curve
    except ModuleNotFoundError as error:
        raise EncodeError(f"{what} needs matplotlib: pip install matplotlib") from error
    return curve


def _sweep_outputs(arguments: Namespace) -> tuple[str, str]:
    """Names of drawing and table, which may be written."""
    picture: str = arguments.output
    if Path(picture).suffix != ".png":
        raise EncodeError(f"{picture}: a curve is a .png file")
    table = checkpoints.with_suffix(picture, ".csv")
    checkpoints.check_output(picture, arguments.force, inputs_of(arguments))
    checkpoints.check_output(table, arguments.force, [*inputs_of(arguments), picture])
    return picture, table


COMMANDS: dict[str, Callable[[Namespace, Progress | None], Result]] = {
    "calibrate": calibrate,
    "eval": evaluate,
    "sweep": sweep,
}
