"""The command line: ``tqcodec COMMAND``.

Results go to standard output, messages and progress to standard error, never in colour. Exit codes:
0 done, 1 malformed or a check failed, 2 usage, 3 unsupported, 4 limit, 70 a fault of the program,
130 interrupted, 141 nobody reads. Each command imports what it needs, so that ``--help`` answers at
once. Those that run a network are in `network` and `retrain`.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqcodec.cli.arguments import (
    UsageError,
    check_encode,
    inputs_of,
    make_parser,
    reading_of,
    settings_of,
)
from tqcodec.cli.terminal import terminal_progress
from tqcodec.common import foreign, streams, urls
from tqcodec.errors import (
    DecodeError,
    EncodeWarning,
    InternalError,
    LimitError,
    TQCError,
    UnsupportedError,
)

STANDARD = "-"
INTERRUPTED, BROKEN_PIPE = 130, 141  # what a shell reports for the signals
ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
INTERNAL = 70  # EX_SOFTWARE of sysexits.h


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    A process that is asked to end (SIGTERM, SIGHUP) tidies up and then ends by that signal.

    Args:
        argv: arguments without the program's name; those of the process if None.
    """
    _hold_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _tidy_ending() as came, _plain_warnings():
            return _run(argv, came)
    except _Ended as end:
        # As if it had not been caught, for those who look at how the process ended.
        signal.signal(end.number, signal.SIG_DFL)
        os.kill(os.getpid(), end.number)
        return 128 + end.number


def _run(argv: list[str] | None, came: list[int]) -> int:
    try:
        try:
            arguments = make_parser().parse_args(argv)
            code = COMMANDS[arguments.command](arguments)
            sys.stdout.flush()
        except Exception as error:
            if came:  # libraries make other errors of what a signal raises in their midst
                raise _ending(came[0]) from error
            raise
    except SystemExit as stop:  # after --help and --version
        return _flushed(int(stop.code or 0))
    except KeyboardInterrupt as stop:
        _complain(": ".join(["interrupted", *map(str, stop.args)]))
        return INTERRUPTED
    except BrokenPipeError:
        _drop_stdout()
        return BROKEN_PIPE
    except (TQCError, UsageError, OSError) as error:
        _complain(_message(error))
        return _flushed(_exit_code(error))
    except MemoryError as error:
        _complain(f"not enough memory: {foreign.message(error)}")
        return 2
    except Exception as error:
        if _is_of_loading(error):
            _complain(f"a library cannot be loaded: {foreign.message(error)}")
            return 2
        # Python's own exit code, 1, would say that the input is malformed.
        with suppress(OSError):  # nowhere to say it
            traceback.print_exc()
        return INTERNAL
    return code


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
        _drop_stdout()
        return BROKEN_PIPE
    except OSError as error:
        _drop_stdout()
        if code == 0:
            _complain(f"standard output: {_reason(error)}")
        return code or 2
    return code


def _drop_stdout() -> None:
    """What could not be written goes nowhere: Python tries once more at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _hold_streams() -> None:
    """Standard streams that are closed fail when they are used, and no file gets their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        # The wrong way round, so that using them is an error, but for messages, which may vanish.
        wrong = os.O_WRONLY if number == 0 else os.O_RDONLY if number == 1 else os.O_WRONLY
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, wrong)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        mode = "r" if number == 0 else "w"
        setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


class _Ended(BaseException):
    """A signal that asks the process to end; nothing but `main` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _ending(number: int) -> BaseException:
    """What a signal raises."""
    return KeyboardInterrupt() if number == signal.SIGINT else _Ended(number)


def _is_loading(library: str) -> bool:
    """Whether a library is being imported."""
    about = getattr(sys.modules.get(library), "__spec__", None)
    return getattr(about, "_initializing", False) is True


@contextmanager
def _tidy_ending() -> Iterator[list[int]]:
    """Signals that would end the process at once run what tidies up first; those that came."""
    came: list[int] = []

    def end(number: int, _: Any) -> None:
        if _is_loading("torch"):  # whose C++ aborts at any exception; it comes again afterwards
            later = threading.Timer(0.05, os.kill, (os.getpid(), number))
            later.daemon = True
            later.start()
            return
        came.append(number)
        raise _ending(number)

    numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # elsewhere Python allows no handlers
    before = {number: signal.getsignal(number) for number in numbers}
    # One that is ignored, as by nohup, stays so.
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: handler for number, handler in before.items() if handler in usual}
    for number in before:
        signal.signal(number, end)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Log(logging.Handler):
    """Says what libraries log, where nobody else takes it."""

    def emit(self, record: logging.LogRecord) -> None:
        _complain(f"warning: {foreign.message(Warning(record.getMessage()))}")


def _text(message: Warning | str) -> str:
    return message if isinstance(message, str) else foreign.message(message)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings of libraries, and what they log of that kind, are messages like ours."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _complain(f"warning: {_text(message)}")

    before = warnings.showwarning
    if before.__module__ != "warnings":  # somebody else takes them
        yield
        return
    last, logging.lastResort = logging.lastResort, _Log(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", EncodeWarning)
            warnings.showwarning = show
            yield
    finally:
        logging.lastResort = last


def _exit_code(error: Exception) -> int:
    if isinstance(error, UnsupportedError):
        return 3
    if isinstance(error, LimitError):
        return 4
    if isinstance(error, InternalError):
        return INTERNAL
    return 1 if isinstance(error, DecodeError) else 2


def _message(error: Exception) -> str:
    file = getattr(error, "filename", None)
    return _reason(error) if file is None else f"{file}: {_reason(error)}"


def _reason(error: Exception) -> str:
    """What went wrong, without the name of the file."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _complain(message: str) -> None:
    with suppress(OSError):  # nowhere to say it
        print(f"tqcodec: {' '.join(message.split())}", file=sys.stderr, flush=True)


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

    name: str = arguments.output or checkpoints.with_suffix(arguments.input, suffix)
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


@contextmanager
def _encode_warnings() -> Iterator[list[str]]:
    """Warnings of the block: each is shown at once, and kept to be counted and for ``--json``."""
    found: list[str] = []
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        found.append(_text(message))
        if issubclass(category, EncodeWarning):
            _complain(f"warning: {message}")
        else:
            others(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", EncodeWarning)
        warnings.showwarning = show
        yield found


def _encode(arguments: Namespace) -> int:
    check_encode(arguments)
    settings = settings_of(arguments)
    from tqcodec import api
    from tqcodec.cli import checkpoints, describe, encode, text

    output = _output(arguments, ".tqc")
    _check_saved_inputs(arguments, output)
    with terminal_progress(arguments.quiet) as progress, _encode_warnings() as warned:
        made = encode.encode(arguments, settings, progress)
    without = made.statistics.without
    missing = [f"{arguments.input}: left out: {text.printable(one)}" for one in made.left_out]
    missing += text.lines_without(without)
    for one in missing:
        _complain(one)
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
            _complain(encode.line(made.made_up))
        would = "would be " if arguments.dry_run else ""
        line = f"{text.printable(output)}: {would}{text.summary_line(result)}"
        _complain(f"{line}, {text.counted(len(warned) + len(without), 'warning')}")
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
        codes.append(0 if error is None else _exit_code(error))
        results.append({"file": name, "ok": error is None, **_fault(error)})
        if error is not None:
            _complain(f"{name}: {_reason(error)}")
        elif not arguments.json:
            _print([f"{text.printable(name)}: good"])
    if arguments.json:
        _print_json(results)
    return next(filter(None, codes), 0)


def _fault(error: Exception | None) -> dict[str, Any]:
    if not isinstance(error, DecodeError):
        return {} if error is None else {"message": _reason(error)}
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
    with terminal_progress() as progress:
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
