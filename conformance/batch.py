"""Drives a decoder in its batch mode: many files, one process. Standard library only."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from threading import Timer

SECONDS = 10.0  # for one file; a decoder that takes longer hangs


class CrashError(Exception):
    """A decoder ended, or was ended because it hung, instead of answering."""


@dataclass(frozen=True)
class Reply:
    """A decoder's answer.

    Attributes:
        verdict: 0 decoded, 1 malformed, 3 unsupported, 4 limit.
        rule: tag of the rule, empty where it decoded.
        data: the safetensors file.
    """

    verdict: int
    rule: str
    data: bytes


class Decoder:
    """A decoder that runs until `close`; it is started again after a crash.

    Args:
        command: with the option that asks for the batch mode.
        seconds: time for one file.
    """

    def __init__(self, command: str, seconds: float = SECONDS) -> None:
        self.command, self.seconds = command, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._hung = False

    def send(self, data: bytes) -> None:
        """Give it a file. An error shows in `receive`."""
        if self._process is None:
            self._process = subprocess.Popen(
                shlex.split(self.command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(len(data).to_bytes(4, "little") + data)
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: there is nothing to receive

    def receive(self) -> Reply:
        """Its answer to the file sent last.

        Its time begins here: it may have waited behind decoders that were asked before.
        """
        self._hung = False
        self._timer = Timer(self.seconds, self._kill)
        self._timer.start()
        try:
            verdict, length = self._take(2)
            rule = self._take(length).decode("ascii")
            return Reply(verdict, rule, self._take(int.from_bytes(self._take(4), "little")))
        except (CrashError, UnicodeDecodeError) as error:
            self.close()
            what = f"no answer in {self.seconds:.0f} s" if self._hung else str(error)
            raise CrashError(what) from None
        finally:
            self._timer.cancel()

    def ask(self, data: bytes) -> Reply:
        """Its answer to a file."""
        self.send(data)
        return self.receive()

    def _take(self, count: int) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        if len(data) < count:
            raise CrashError(f"ended with exit code {self._process.wait()}")
        return data

    def _kill(self) -> None:
        self._hung = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End it."""
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate()
        self._process = None
