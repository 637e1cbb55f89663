"""Files as tensors of PyTorch: all at once, when they are asked for, as they come in."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from tqcodec import api
from tqcodec.common.checks import PathLike, path_of
from tqcodec.format.container import Container
from tqcodec.reading import streaming
from tqcodec.reading.file import Reading, TensorFile, need_bytes
from tqcodec.reading.remote.options import Remote
from tqcodec.reading.transform_tensor import TransformTensor
from tqcodec.torch.checkpoint import decoded, to_tensor
from tqcodec.torch.versions import versions

if TYPE_CHECKING:
    from typing_extensions import Unpack


def decode(data: bytes, **options: Unpack[Reading]) -> dict[str, torch.Tensor]:
    """The state dict of a `.tqc` file, as in `tqcodec.decode`.

    Where it was made of a module, or of a state dict of one, it is an OrderedDict with the versions
    of its modules (`_metadata`), so that `load_state_dict` takes it as it took the original.

    Raises:
        DecodeError: the bytes cannot be decoded.
    """
    need_bytes(data)
    return decoded(data, **options)


def load(path: PathLike, **options: Unpack[Reading]) -> dict[str, torch.Tensor]:
    """`decode` of a file. `open` takes less memory: it reads one tensor at a time."""
    return decoded(path_of(path), **options)


def open(source: bytes | PathLike, **options: Unpack[Reading]) -> StateFile:
    """A file whose tensors are decoded when they are asked for, as in `tqcodec.open`."""
    return StateFile(api.open(source, **options))


def stream(
    source: streaming.Source, *, limit: int | None = None, remote: Remote | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """`tqcodec.stream` of tensors of PyTorch."""
    found = streaming.stream(source, "weights", limit=limit, remote=remote)
    return ((name, to_tensor(array)) for name, array in found)


class StateFile(Mapping[str, torch.Tensor]):
    """Read-only mapping from names to tensors, each decoded when it is asked for."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file

    @property
    def container(self) -> Container:
        """The file as the format layer sees it."""
        return self._file.container

    def metadata(self) -> dict[str, str]:
        """The file's free strings."""
        return self._file.metadata()

    @property
    def _metadata(self) -> OrderedDict[str, dict[str, Any]] | None:
        """Versions of the modules, for `load_state_dict`."""
        return versions(self, self.metadata())

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def __getitem__(self, name: str) -> torch.Tensor:
        return to_tensor(self._file[name])

    def transform(self, name: str) -> TransformTensor:
        """A tensor in the transform domain, in arrays of numpy, as of `TensorFile`."""
        return self._file.transform(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def __copy__(self) -> StateFile:
        return StateFile(copy.copy(self._file))

    def close(self) -> None:
        """Close the file; tensors already decoded stay."""
        self._file.close()

    def __enter__(self) -> StateFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
