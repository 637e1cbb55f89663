"""A decoder in its batch mode (conformance/README.md), for tests: it has to live and to end well.

`batch.Decoder` of the conformance suite is for decoders that may crash: it starts them again, and
no exit code of theirs counts. Here the exit code does, by which sanitizers tell of leaks.
"""

from __future__ import annotations

import struct
import subprocess


class Batch:
    """A decoder that stays and takes one file after the other.

    Args:
        command: without the option that asks for the batch mode.
    """

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            [*command, "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def _read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        data = self.process.stdout.read(size)
        assert len(data) == size, f"the decoder ended, exit code {self.process.wait()}"
        return data

    def decode(self, data: bytes) -> tuple[int, str, bytes]:
        """Verdict, rule tag and safetensors file."""
        assert self.process.stdin is not None
        self.process.stdin.write(struct.pack("<I", len(data)) + data)
        self.process.stdin.flush()
        verdict, length = self._read(2)
        rule = self._read(length).decode("ascii")
        return verdict, rule, self._read(struct.unpack("<I", self._read(4))[0])

    def close(self) -> None:
        """End the process; its exit code has to be 0, and nothing is left to be read."""
        rest, _ = self.process.communicate()
        assert (self.process.returncode, rest) == (0, b"")
