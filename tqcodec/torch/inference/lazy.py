"""Weights that are decoded when a module runs, the next one meanwhile, and then let go."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from tqcodec.reading.file import TensorFile
from tqcodec.torch.checkpoint import to_tensor
from tqcodec.torch.inference.held import Holder


class Owned:
    """A file that is closed when nobody decodes from it any more."""

    def __init__(self, file: TensorFile) -> None:
        self._close = file.close

    def __del__(self) -> None:
        self._close()


class LazyFile:
    """Decodes tensors of a file, one ahead of those that are asked for.

    The order is learnt: after a tensor the one comes next that came after it the last time. What is
    held is the tensor that was asked for last and the one ahead, and what the file decodes together
    with them: small tensors that follow, up to `native_decoder.AHEAD` bytes.

    Args:
        file: stays open as long as this is in use.
        owned: shared by all that closes it together; None where somebody else does.
    """

    def __init__(self, file: TensorFile, owned: Owned | None) -> None:
        self._file, self._owned = file, owned
        self._after: dict[str, str] = {}
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "tqcodec")
        self._last: tuple[str, Tensor] | None = None
        self._ahead: tuple[str, Future[Tensor]] | None = None
        self._alive: WeakValueDictionary[str, Tensor] = WeakValueDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._file,)

    def __deepcopy__(self, memo: Any) -> LazyFile:
        return LazyFile(self._file, self._owned)

    def __call__(self, name: str) -> Tensor:
        """A tensor, on the CPU; it may be given to others as well, so it must not be changed.

        Raises:
            DecodeError: it cannot be decoded.
        """
        if self._process != os.getpid():  # forked: the thread has not come along
            self._start()
        with self._lock:
            found = self._alive.get(name)
            ahead = self._ahead
            if ahead is not None and ahead[0] == name:
                self._ahead = None
        if found is None:
            early = ahead is not None and ahead[0] == name
            found = ahead[1].result() if ahead is not None and early else self._decode(name)
        with self._lock:
            if self._last is not None and self._last[0] != name:
                self._after[self._last[0]] = name
            self._last = (name, found)
            self._alive[name] = found
            following = self._after.get(name)
            if self._ahead is None and following is not None and following not in self._alive:
                with suppress(RuntimeError):  # no thread can be started: it is decoded when needed
                    self._ahead = (following, self._pool.submit(self._decode, following))
        return found

    def _decode(self, name: str) -> Tensor:
        return to_tensor(self._file[name])


def _unpickled(file: TensorFile) -> LazyFile:
    return LazyFile(file, Owned(file))


class Lazy(Holder):
    """A weight in a file.

    Args:
        file: shared by all weights of a network.
        name: of the tensor.
        shape: of the weight.
        like: a tensor of the type and on the device that the weight has at first.
    """

    def __init__(self, file: LazyFile, name: str, shape: tuple[int, ...], like: Tensor) -> None:
        super().__init__(like)
        self._tensors, self._name, self._shape = file, name, shape
        self._trained = like.requires_grad

    def forward(self) -> Tensor:
        """The weight."""
        if torch.compiler.is_compiling():  # not as a decorator: the compiler takes seconds to load
            given: Tensor = torch.compiler.disable(self._decoded)()
            return given
        return self._decoded()

    def _decoded(self) -> Tensor:
        recorded = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.no_grad():  # a tensor such as a parameter is
            found = self._tensors(self._name).to(self.like)
            if self._trained and not recorded:
                # torch.matmul goes another way, with other rounding, for weights that require
                # gradients. Where these are recorded, it would hold the weight.
                found = found.detach().requires_grad_()
            return found

    def extra_repr(self) -> str:
        return f"{self._name!r}, {'x'.join(map(str, self._shape))}"
