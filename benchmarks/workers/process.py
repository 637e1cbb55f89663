"""The parent's side of a codec process: starts it with one thread, sends orders, reads answers."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ONE_THREAD = {
    f"{library}_NUM_THREADS": "1"
    for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "BLIS", "VECLIB", "RAYON")
}


@dataclass(frozen=True)
class Program:
    """A codec of this folder and the interpreter of its environment."""

    python: Path
    codec: str


class Process:
    """A running codec process, used as a context."""

    def __init__(self, program: Program) -> None:
        self._codec = program.codec
        self._child = subprocess.Popen(
            [program.python, "-W", "ignore", "-m", f"benchmarks.workers.{program.codec}"],
            env={**os.environ, **ONE_THREAD},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.communicate()

    def order(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one order and wait for its answer."""
        if self._child.stdin is None or self._child.stdout is None:
            raise RuntimeError("the process has no pipes")
        print(json.dumps({"do": do, **arguments}), file=self._child.stdin, flush=True)
        answer = self._child.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._codec} ended in {do!r}: its message is above")
        return dict(json.loads(answer))
