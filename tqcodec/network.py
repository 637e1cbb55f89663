"""Commands that run a network: ``tqcodec calibrate``. Torch is left to `tqcodec.torch`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqcodec import files
from tqcodec.errors import EncodeError

Progress = Callable[[str, int, int], None]


def load(arguments: Namespace) -> tuple[Any, Any]:
    """The network and the data of ``--model`` and ``--data``.

    Returns:
        an nn.Module, and a `tqcodec.torch.inputs.Data`.

    Raises:
        EncodeError: either cannot be had.
    """
    try:
        from tqcodec.torch import inputs
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise EncodeError("networks need PyTorch: pip install 'tqcodec[torch]'") from error
    options = inputs.DataOptions(
        images=arguments.images,
        batch=arguments.batch,
        size=arguments.size,
        mean=arguments.mean,
        std=arguments.std,
    )
    data = inputs.load_batches(arguments.data, options)
    return inputs.load_model(arguments.model, arguments.device), data


def calibrate(arguments: Namespace, progress: Progress | None) -> dict[str, Any]:
    """Write the statistics of a network; gives a summary of them.

    Raises:
        EncodeError: arguments, network or data that do not work.
    """
    if arguments.output == files.STANDARD:
        raise EncodeError("statistics are written to a file: name one with -o")
    files.check_output(arguments.output, arguments.force)
    model, data = load(arguments)
    from tqcodec.torch import calibrate

    try:
        found = calibrate(model, data, probes=arguments.probes, progress=progress)
    except EncodeError:
        raise
    except Exception as error:  # of the user's network
        line = str(error).partition("\n")[0]
        raise EncodeError(f"{arguments.model}: {type(error).__name__}: {line}") from error
    found.save(arguments.output)
    return {
        "output": arguments.output,
        "weights": len(found),
        "without": dict(found.without),
        "images": max((one.images for one in found.values()), default=0),
        "bytes": Path(arguments.output).stat().st_size,
    }
