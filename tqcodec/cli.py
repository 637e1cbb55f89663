"""The command line: ``tqcodec COMMAND``.

Results go to standard output, messages and progress to standard error, never in colour. Exit codes:
0 done, 1 malformed or a check failed, 2 usage, 3 unsupported, 4 limit, 70 a fault of the program,
130 interrupted, 141 nobody reads. Each command imports what it needs, so that ``--help`` answers at
once. Those that run a network are in `network`.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqcodec.arguments import UsageError, check_encode, inputs_of, make_parser
from tqcodec.encoder.settings import Settings
from tqcodec.errors import DecodeError, LimitError, TQCError, UnsupportedError
from tqcodec.progress import terminal_progress

STANDARD = "-"
INTERRUPTED, BROKEN_PIPE = 130, 141  # what a shell reports for the signals
INTERNAL = 70  # EX_SOFTWARE of sysexits.h


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: arguments without the program's name; those of the process if None.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        arguments = make_parser().parse_args(argv)
        code = COMMANDS[arguments.command](arguments)
        sys.stdout.flush()
    except SystemExit as stop:  # after --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Python closes the stream once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (TQCError, UsageError, OSError) as error:
        _complain(_message(error))
        return _exit_code(error)
    except Exception:
        # Python's own exit code, 1, would say that the input is malformed.
        traceback.print_exc()
        return INTERNAL
    return code


def _exit_code(error: Exception) -> int:
    if isinstance(error, UnsupportedError):
        return 3
    if isinstance(error, LimitError):
        return 4
    return 1 if isinstance(error, DecodeError) else 2


def _message(error: Exception) -> str:
    file = getattr(error, "filename", None)
    return _reason(error) if file is None else f"{file}: {_reason(error)}"


def _reason(error: Exception) -> str:
    """What went wrong, without the name of the file."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _complain(message: str) -> None:
    print(f"tqcodec: {' '.join(message.split())}", file=sys.stderr)


def _print(lines: Iterable[str], output: str | None = None) -> None:
    """Lines for the user: on standard error where `output` is standard output."""
    stream = sys.stderr if output == STANDARD else sys.stdout
    for line in lines:
        print(line, file=stream)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=1))


def _output(arguments: Namespace, suffix: str) -> str:
    """The name of the output, which may be written."""
    from tqcodec import files

    name: str = arguments.output or files.with_suffix(arguments.input, suffix)
    if name == STANDARD and getattr(arguments, "json", False):
        raise UsageError("--json needs standard output for itself: name a file with -o")
    if not getattr(arguments, "dry_run", False):
        files.check_output(name, arguments.force, inputs_of(arguments))
    return name


def _encode(arguments: Namespace) -> int:
    check_encode(arguments)
    settings = Settings(**{f.name: getattr(arguments, f.name) for f in fields(Settings)})
    from tqcodec import api, describe, encoding, files, text

    output = _output(arguments, ".tqc")
    with terminal_progress() as progress:
        data, statistics, left_out = encoding.encode(arguments, settings, progress)
    for one in left_out:
        _complain(f"{arguments.input}: left out: {text.printable(one)}")
    if not arguments.dry_run:
        files.write_bytes(output, data)
    with api.open(data) as file:
        result = describe.summary(file.container)
    if arguments.json:
        calibrated = {"calibrated": len(statistics), "without": dict(statistics.without)}
        about = {"output": output, "dry_run": arguments.dry_run, "left_out": list(left_out)}
        _print_json({**about, **result, **calibrated})
    else:
        would = "would be " if arguments.dry_run else ""
        line = f"{text.printable(output)}: {would}{text.summary_line(result)}"
        _print([*text.lines_without(statistics.without), line], output)
    return 0


def _decode(arguments: Namespace) -> int:
    from tqcodec import api, files, text

    output = _output(arguments, ".safetensors")
    files.check_suffix(output)
    source = files.source(arguments.input)
    options = {"limit": arguments.limit, "workers": arguments.workers}
    with terminal_progress() as progress, api.open(source, limit=arguments.limit) as file:
        metadata = file.metadata()
        entries = (e for e in file.container.directory.entries if e.needs is None)
        files.check_tensors(output, {e.name: api.numpy_dtype(e.dtype) for e in entries})
        if isinstance(source, bytes):
            tensors = api.decode(source, **options, progress=progress)
        else:
            tensors = api.load(source, **options, progress=progress)
    files.write(output, files.Checkpoint(tensors, metadata))
    decoded = sum(array.nbytes for array in tensors.values())
    if arguments.json:
        _print_json({"output": output, "tensors": len(tensors), "decoded_bytes": decoded})
    else:
        line = f"{text.printable(output)}: {len(tensors)} tensors, {decoded} bytes"
        _print([line], output)
    return 0


def _info(arguments: Namespace) -> int:
    from tqcodec import api, describe, files, text

    given = None
    if arguments.statistics is not None:
        from tqcodec import Statistics, gains

        given = Statistics.load(arguments.statistics)
    source = files.source(arguments.input)
    with terminal_progress() as progress, api.open(source, limit=arguments.limit) as file:
        data = describe.info(file.container, progress)
        if given is not None:
            gains.add_gains(data, file, given, progress)
    if arguments.json:
        _print_json(data)
    else:
        _print(text.info_lines(data))
    return 0


def _dump(arguments: Namespace) -> int:
    from tqcodec import api, describe, files, text

    with api.open(files.source(arguments.input), limit=arguments.limit) as file:
        document = describe.dump(file.container)
    if arguments.json:
        _print_json(document)
    else:
        _print(text.dump_lines(document))
    return 0


def _verify(arguments: Namespace) -> int:
    from tqcodec import api, files, text

    codes, results = [], []
    for name in arguments.inputs:
        error: Exception | None = None
        try:
            with terminal_progress() as progress:
                options = {"limit": arguments.limit, "workers": arguments.workers}
                api.verify(files.source(name), **options, progress=progress)
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
    from tqcodec import api, describe, files

    output = _output(arguments, ".html")
    try:
        from tqcodec import report
    except ModuleNotFoundError as error:
        raise UsageError("report needs matplotlib: pip install 'tqcodec[plot]'") from error
    kind = report.kind_of(output)
    source = files.source(arguments.input)
    with terminal_progress() as progress, api.open(source, limit=arguments.limit) as file:
        data = describe.info(file.container, progress)
    files.write_bytes(output, report.draw(data, Path(arguments.input).name, kind))
    return 0


def _network(arguments: Namespace) -> int:
    from tqcodec import network

    with terminal_progress() as progress:
        document, lines = network.COMMANDS[arguments.command](arguments, progress)
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
    "dump": _dump,
    "report": _report,
    "calibrate": _network,
    "eval": _network,
    "sweep": _network,
}
