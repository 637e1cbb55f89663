"""The command line: ``tqcodec COMMAND``.

Results go to standard output, messages and progress to standard error, never in colour. Exit codes:
0 done, 1 malformed or a check failed, 2 usage, 3 unsupported, 4 limit, 70 a fault of the program,
130 interrupted, 141 nobody reads. Each command imports what it needs, so that ``--help`` answers at
once. Those that run a network are in `network` and `retrain`.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqcodec.cli.arguments import (
    UsageError,
    check_encode,
    check_names,
    inputs_of,
    make_parser,
    reading_of,
    settings_of,
)
from tqcodec.cli.messages import (
    INTERNAL,
    complain,
    encode_warnings,
    exit_code,
    message_of,
    plain_warnings,
    reason,
)
from tqcodec.cli.process import (
    Ended,
    drop_stdout,
    ending,
    hold_streams,
    stdout_kept,
    tidy_ending,
)
from tqcodec.cli.terminal import terminal_progress
from tqcodec.common import foreign, streams, urls
from tqcodec.errors import DecodeError, TQCError

STANDARD = "-"
INTERRUPTED, BROKEN_PIPE = 130, 141  # what a shell reports for the signals


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    A process that is asked to end (SIGTERM, SIGHUP) tidies up and then ends by that signal.

    Args:
        argv: arguments without the program's name; those of the process if None.
    """
    hold_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with tidy_ending() as came, plain_warnings():
            return _run(argv, came)
    except Ended as end:
        # As if it had not been caught, for those who look at how the process ended.
        signal.signal(end.number, signal.SIG_DFL)
        os.kill(os.getpid(), end.number)
        return 128 + end.number


def _run(argv: list[str] | None, came: list[int]) -> int:
    try:
        try:
            arguments = make_parser().parse_args(argv)
            check_names(arguments)
            with _named(arguments):
                code = COMMANDS[arguments.command](arguments)
            sys.stdout.flush()
        except Exception as error:
            if came:  # libraries make other errors of what a signal raises in their midst
                raise ending(came[0]) from error
            raise
    except SystemExit as stop:  # after --help and --version
        return _flushed(int(stop.code or 0))
    except KeyboardInterrupt as stop:
        complain(": ".join(["interrupted", *map(str, stop.args)]))
        return INTERRUPTED
    except BrokenPipeError:
        drop_stdout()
        return BROKEN_PIPE
    except (TQCError, UsageError, OSError) as error:
        complain(message_of(error))
        return _flushed(exit_code(error))
    except MemoryError as error:
        complain(f"not enough memory: {foreign.message(error)}")
        return 2
    except Exception as error:
        if _is_of_loading(error):
            complain(f"a library cannot be loaded: {foreign.message(error)}")
            return 2
        # Python's own exit code, 1, would say that the input is malformed.
        with suppress(OSError):  # nowhere to say it
            traceback.print_exc()
        return INTERNAL
    return code


@contextmanager
def _named(arguments: Namespace) -> Iterator[None]:
    """What is wrong with a file names it, where a command reads but one."""
    try:
        yield
    except DecodeError as error:
        name = getattr(arguments, "input", None)
        if isinstance(name, str) and name != STANDARD:
            from tqcodec.cli.text import printable

            error.filename = printable(name)  # type: ignore[attr-defined]
        raise


def _is_of_loading(error: Exception) -> bool:
    """Whether a library failed while it was imported; too little memory makes it raise anything."""
    package = str(Path(__file__).parents[1]) + os.sep
    frames = traceback.extract_tb(error.__traceback__)
    ours = [i for i, frame in enumerate(frames) if frame.filename.startswith(package)]
    behind = frames[ours[-1] + 1 :]  # code that the last of ours has called
    if behind:
        return behind[0].name == "<module>" or behind[0].filename.startswith("<frozen importlib")
    return isinstance(error, ImportError) and not (error.name or "").startswith("tqcodec")


def _flushed(code: int) -> int:
    """Python writes what is left at its end, where an error could not be told."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
        return BROKEN_PIPE
    except OSError as error:
        drop_stdout()
        if code == 0:
            complain(f"standard output: {reason(error)}")
        return code or 2
    return code


def _print(lines: Iterable[str], output: str | None = None) -> None:
    """Lines for the user: on standard error where `output` is standard output."""
    stream = sys.stderr if output == STANDARD else sys.stdout
    with streams.naming("standard error" if output == STANDARD else "standard output"):
        for line in lines:
            print(line, file=stream)
        stream.flush()


def _print_json(document: Any) -> None:
    _print([json.dumps(document, indent=1)])


def _output(arguments: Namespace, suffix: str) -> str:
    """The name of the output, which may be written."""
    from tqcodec.cli import checkpoints

    given: str | None = arguments.output
    name = given if given is not None else checkpoints.with_suffix(arguments.input, suffix)
    if name == STANDARD and getattr(arguments, "json", False):
        raise UsageError("--json needs standard output for itself: name a file with -o")
    if not getattr(arguments, "dry_run", False):
        checkpoints.check_output(name, arguments.force, inputs_of(arguments))
    return name


def _check_saved_inputs(arguments: Namespace, output: str) -> None:
    """Refuse a file of `--save-inputs` that is another one of the command, or cannot be written."""
    from tqcodec.cli import checkpoints

    name: str | None = arguments.save_inputs
    if name is None:
        return
    if Path(name).suffix != ".npz":
        raise UsageError(f"{name}: made-up inputs are a .npz file")
    if not arguments.dry_run:
        checkpoints.check_output(name, arguments.force, [*inputs_of(arguments), output])
        if os.path.realpath(name) == os.path.realpath(output):  # neither may exist yet
            raise UsageError(f"{name} cannot hold both the file and the inputs")


def _encode(arguments: Namespace) -> int:
    check_encode(arguments)
    settings = settings_of(arguments)
    from tqcodec import api
    from tqcodec.cli import checkpoints, describe, encode, text

    output = _output(arguments, ".tqc")
    _check_saved_inputs(arguments, output)
    with terminal_progress(arguments.quiet) as progress, encode_warnings() as warned, stdout_kept():
        made = encode.encode(arguments, settings, progress)
    without = made.statistics.without
    missing = [f"{arguments.input}: left out: {text.printable(one)}" for one in made.left_out]
    missing += text.lines_without(without)
    for one in missing:
        complain(one)
    if not arguments.dry_run:
        checkpoints.write_bytes(output, made.data)
    with api.open(made.data) as file:
        result = describe.summary(file.container)
    if arguments.json:
        calibrated = {"calibrated": len(made.statistics), "without": dict(without)}
        calibrated["synthetic"] = encode.document(made.made_up)
        about = {"output": output, "dry_run": arguments.dry_run}
        about |= {"left_out": list(made.left_out), "warnings": warned}
        _print_json({**about, **result, **calibrated})
    if not arguments.quiet:
        if made.made_up is not None:
            complain(encode.line(made.made_up))
        would = "would be " if arguments.dry_run else ""
        line = f"{text.printable(output)}: {would}{text.summary_line(result)}"
        complain(f"{line}, {text.counted(len(warned) + len(without), 'warning')}")
    return 0


def _decode(arguments: Namespace) -> int:
    from tqcodec.cli import checkpoints, decode, text

    output = _output(arguments, ".safetensors")
    checkpoints.check_suffix(output)
    with terminal_progress() as progress:
        tensors, decoded = decode.decode(arguments, output, progress)
    if arguments.json:
        _print_json({"output": output, "tensors": tensors, "decoded_bytes": decoded})
    else:
        _print([f"{text.printable(output)}: {tensors} tensors, {decoded} bytes"], output)
    return 0


def _info(arguments: Namespace) -> int:
    from tqcodec import api
    from tqcodec.cli import checkpoints, describe, text

    given = None
    if arguments.statistics is not None:
        from tqcodec import Statistics
        from tqcodec.cli import gains

        given = Statistics.load(arguments.statistics)
    source = checkpoints.source(arguments.input)
    # Of a file with an address payloads are read only where something needs them.
    full = arguments.full or arguments.operations or given is not None
    full = full or not urls.is_url(source)
    with terminal_progress() as progress, api.open(source, **reading_of(arguments)) as file:
        data = describe.info(file, progress, full=full)
        if given is not None:
            gains.add_gains(data, file, given, progress)
        if arguments.operations:
            data["operations"] = describe.operations(file)
    if arguments.json:
        _print_json(data)
    else:
        _print(text.info_lines(data, whole=arguments.all))
    return 0


def _fetch(arguments: Namespace) -> int:
    from tqcodec import api
    from tqcodec.cli import checkpoints, describe, text
    from tqcodec.reading import fetching

    output = arguments.output or urls.base_name(arguments.input)
    if output == STANDARD:
        raise UsageError("fetch writes a file, which it can resume: name one with -o")
    checkpoints.check_output(output, arguments.force)
    remote = reading_of(arguments)["remote"]
    with terminal_progress(of_bytes=True) as progress:
        fetching.fetch(
            arguments.input, output, only=arguments.only, remote=remote, progress=progress
        )
    with api.open(output) as file:
        result = describe.summary(file.container)
    if arguments.json:
        _print_json({"output": output, **result})
    else:
        _print([f"{text.printable(output)}: {text.summary_line(result)}"])
    return 0


def _dump(arguments: Namespace) -> int:
    from tqcodec import api
    from tqcodec.cli import checkpoints, describe, text

    with api.open(checkpoints.source(arguments.input), **reading_of(arguments)) as file:
        document = describe.dump(file.container)
    if arguments.json:
        _print_json(document)
    else:
        _print(text.dump_lines(document))
    return 0


def _verify(arguments: Namespace) -> int:
    from tqcodec import api
    from tqcodec.cli import checkpoints, text

    codes, results = [], []
    for name in arguments.inputs:
        error: Exception | None = None
        try:
            with terminal_progress() as progress:
                options = reading_of(arguments)
                api.verify(checkpoints.source(name), **options, progress=progress)
        except (DecodeError, OSError) as caught:
            error = caught
        codes.append(0 if error is None else exit_code(error))
        results.append({"file": name, "ok": error is None, **_fault(error)})
        if error is not None:
            complain(f"{name}: {reason(error)}")
        elif not arguments.json:
            _print([f"{text.printable(name)}: good"])
    if arguments.json:
        _print_json(results)
    return next(filter(None, codes), 0)


def _fault(error: Exception | None) -> dict[str, Any]:
    if not isinstance(error, DecodeError):
        return {} if error is None else {"message": reason(error)}
    place = {"rule": error.rule, "offset": error.offset, "tensor": error.tensor}
    return {"verdict": error.verdict, **place, "message": error.message}


def _report(arguments: Namespace) -> int:
    from tqcodec import api
    from tqcodec.cli import checkpoints, describe

    output = _output(arguments, ".html")
    try:
        from tqcodec.cli import report
    except ModuleNotFoundError as error:
        raise UsageError("report needs matplotlib: pip install matplotlib") from error
    kind = report.kind_of(output)
    source = checkpoints.source(arguments.input)
    with terminal_progress() as progress, api.open(source, **reading_of(arguments)) as file:
        data = describe.info(file, progress)
    checkpoints.write_bytes(output, report.draw(data, Path(arguments.input).name, kind))
    return 0


def _network(arguments: Namespace) -> int:
    from tqcodec.cli import network, retrain

    verbs = {**network.COMMANDS, "retrain": retrain.retrain}
    with terminal_progress() as progress, stdout_kept():
        document, lines = verbs[arguments.command](arguments, progress)
    if arguments.json:
        _print_json(document)
    else:
        _print(lines)
    return 0


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "encode": _encode,
    "decode": _decode,
    "info": _info,
    "verify": _verify,
    "fetch": _fetch,
    "dump": _dump,
    "report": _report,
    "calibrate": _network,
    "eval": _network,
    "sweep": _network,
    "retrain": _network,
}
