"""A network to be compressed: its float32 tensors, in memory and in a file for the processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file

from benchmarks.common.tensors import Tensors, matrices, read_weights


@dataclass(frozen=True)
class Network:
    """Float32 tensors under a name; `path` holds them, `scratch` is free for one encoded file."""

    name: str
    tensors: Tensors
    path: Path
    scratch: str

    @property
    def parameters(self) -> int:
        """How many elements all tensors have."""
        return sum(array.size for array in self.tensors.values())

    @property
    def float_bytes(self) -> int:
        """Size of the float32 elements, what memory is compared with."""
        return 4 * self.parameters

    @property
    def is_3x3(self) -> bool:
        """Whether most weights are those of 3x3 convolutions."""
        weights = matrices(self.tensors).values()
        taps = sum(array.size for array in weights if array.shape[2:] == (3, 3))
        return 2 * taps > self.parameters


@contextmanager
def open_network(name: str, source: Path) -> Iterator[Network]:
    """Read the weights of `source`, for the length of a context."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "network.safetensors"
        tensors = read_weights(source)
        save_file(tensors, path)
        yield Network(name, tensors, path, str(Path(directory) / "encoded"))
