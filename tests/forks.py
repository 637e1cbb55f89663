"""Programs in processes of their own, forked from one that has imported torch.

Importing it takes seconds; a hundred commands would spend most of their time there. torch must not
have run before a fork, as its threads are not there afterwards: so no fork of the tests' own
process does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "import sys; from tqcodec.cli.commands import main; sys.exit(main())"

SERVER = """
import atexit, gc, json, os, sys, traceback
from contextlib import suppress
import torch._dynamo, scipy.optimize, scipy.sparse.linalg
import tqcodec.cli.commands, tqcodec.torch.synthesis, tqcodec.torch.retraining.retrain

gc.freeze()  # a child need not look through all that is imported
for line in sys.stdin:
    task = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.chdir(task["folder"])
os.environ.update(task["environment"])
streams = (0, os.devnull, os.O_RDONLY), *(
    (number, name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, name in ((1, task["out"]), (2, task["err"]))
)
for number, name, how in streams:
    opened = os.open(name, how, 0o600)
    os.dup2(opened, number)
    os.close(opened)
sys.path[:0] = task["path"]
sys.argv[:] = ["-c", *task["arguments"]]
code = 0
try:
    exec(compile(task["program"], "<program>", "exec"), {"__name__": "__main__"})
except SystemExit as end:
    code = end.code or 0
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
except BaseException:
    traceback.print_exc()
    code = 1
atexit._run_exitfuncs()
for stream in (sys.stdout, sys.stderr):
    with suppress(AttributeError, ValueError):  # it may be none, or closed
        stream.flush()
os._exit(code)  # Python would take seconds to put away what torch has made
"""


@dataclass(frozen=True)
class Done:
    """What a program left."""

    code: int
    out: bytes
    err: str


class Forks:
    """A process that forks for each program.

    Args:
        folder: for what programs print.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def close(self) -> None:
        """End it."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()

    def command(
        self, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> Done:
        """Run a command of tqcodec, as `run` does."""
        return self.run(COMMAND, *arguments, folder=folder, environment=environment)

    def run(
        self,
        program: str,
        *arguments: str,
        folder: Path,
        path: tuple[Path, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a program of Python.

        Args:
            program: its text.
            arguments: in `sys.argv` after the first.
            folder: to run in.
            path: where it finds modules, beside those of this installation.
            environment: variables that are set for it.
        """
        server, out, err = self._server, self._folder / "out", self._folder / "err"
        assert server.stdin is not None and server.stdout is not None
        task = {
            "program": program,
            "arguments": arguments,
            "folder": str(folder),
            "path": ["", *map(str, path)],
            "environment": dict(environment or {}),
            "out": str(out),
            "err": str(err),
        }
        print(json.dumps(task), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return Done(code, out.read_bytes(), err.read_text())
