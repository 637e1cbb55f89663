"""Files by the decoder in C (`decoders/c`), where it was built; the same arrays as without.

It decodes or it does not: for what it refuses, the caller asks `container`, which says what is
wrong. Built from `native/decoder.c`. Imports numpy and the standard library only, besides the
layers below.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tqcodec import native
from tqcodec.common.progress import Progress
from tqcodec.format.dtypes import DTYPES, DType
from tqcodec.format.entries import Directory

_library = native.library(native.DECODER)

Done = TypeVar("Done")
Patterns = NDArray[np.unsignedinteger]
Fetch = Callable[[int, int], bytes]  # (offset, length) -> that many bytes

TASK = 1 << 21  # elements of a task, more or less
AHEAD = 1 << 22  # bytes decoded together at most where only the first is asked for


def available() -> bool:
    """True if the decoder in C is there."""
    return _library is not None


@dataclass(frozen=True)
class Tensor:
    """What the directory says of a tensor.

    Attributes:
        name: its name.
        dtype: element type, None for one that this version does not know.
        shape: its shape.
        coding: how its bytes are coded, a number of `Coding` or one that is not known.
        same_as: index of the tensor that it is tied to.
        bundle: index of its bundle.
    """

    name: str
    dtype: DType | None
    shape: tuple[int, ...]
    coding: int
    same_as: int | None
    bundle: int | None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Decoded bytes; 0 for an unknown type."""
        return 0 if self.dtype is None else self.elements * self.dtype.size


def described(directory: Directory) -> list[Tensor]:
    """The same, of a directory that the format layer has read."""
    found: list[Tensor] = []
    for entry in directory.entries:
        twin = entry if entry.same_as is None else directory.entries[entry.same_as]
        dtype = DTYPES.get(twin.dtype.name)
        place = (entry.same_as, twin.bundle)
        found.append(Tensor(entry.name, dtype, twin.shape, int(twin.coding), *place))
    return found


class NativeFile:
    """A file that the decoder in C has opened; threads may share it.

    Attributes:
        tensors: of the file, in its order.
        metadata: the file's free strings.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.metadata: dict[str, str] = dict(file.metadata())
        self.tensors = [
            Tensor(name, None if dtype is None else DTYPES.get(dtype), *others)
            for name, dtype, *others in file.tensors()
        ]
        self._members: dict[int, list[int]] = {}
        for index, tensor in enumerate(self.tensors):
            if tensor.bundle is not None and tensor.same_as is None:
                self._members.setdefault(tensor.bundle, []).append(index)
        # The last bundle that was decoded, by its index.
        self._bundle: tuple[int, dict[int, Patterns]] = (-1, {})
        alone = [i for i, t in enumerate(self.tensors) if t.same_as is None and t.bundle is None]
        self._after = dict(itertools.pairwise(alone))  # of tensors that share nothing, the next one
        self._expected = -1  # the tensor that is asked for next, if all are read in their order
        self._ahead: dict[int, Patterns] = {}

    @staticmethod
    def of(source: bytes | memoryview | int | Fetch, length: int) -> NativeFile | None:
        """A file in memory, one on disk by its descriptor, which stays open, or one elsewhere.

        Args:
            source: the bytes, the descriptor, or a function that gives bytes by (offset, length).
            length: bytes of the file.

        Returns:
            None if there is no decoder in C, or if it does not open the file.
        """
        if _library is None:
            return None
        if callable(source):
            file = _library.open_fetch(source, length)
        elif not isinstance(source, int):
            file = _library.open_memory(source)
        elif hasattr(_library, "open_descriptor"):
            file = _library.open_descriptor(source, length)
        else:
            return None
        return None if file is None else NativeFile(file)

    def tensor(self, index: int, most: int) -> Patterns | None:
        """Bit patterns of one tensor, of its shape; None if it does not decode.

        Args:
            index: of the tensor.
            most: bytes that may be decoded together, where others are decoded with it.

        Raises:
            MemoryError: the machine has not enough.
        """
        tensor = self.tensors[index]
        if tensor.same_as is not None:
            return self.tensor(tensor.same_as, most)
        if tensor.bundle is None:
            return self._alone(index, min(most, AHEAD))
        bundle = self._bundle  # another thread may put another one there
        if bundle[0] != tensor.bundle:
            members = self._members[tensor.bundle]
            found = self._decode(members)
            if found is None:
                return None
            bundle = (tensor.bundle, dict(zip(members, found, strict=True)))
            self._bundle = bundle
        # A copy: what the caller does to one tensor must not reach the others.
        return bundle[1][index].copy()

    def _alone(self, index: int, most: int) -> Patterns | None:
        """As `tensor`, for one that shares nothing.

        Who reads all in order gets small ones decoded together, `most` bytes at a time: one alone
        leaves the decoder waiting for its own last step. Each is given away when it is asked for.
        """
        early = self._ahead.pop(index, None)  # which no other thread gets as well
        if early is not None:
            return early
        task, size = [index], self.tensors[index].size
        in_order = index == self._expected
        while (following := self._after.get(task[-1])) is not None:
            size += self.tensors[following].size
            if not in_order or size > most:
                break
            task.append(following)
        self._expected = -1 if following is None else following
        found = None
        if len(task) > 1:  # may fail for a tensor that nobody asked for
            with suppress(MemoryError):
                found = self._decode(task)
        if found is None:
            task, found = [index], self._decode([index])
        if found is None:
            return None
        self._ahead = dict(zip(task[1:], found[1:], strict=True))
        return found[0]

    def coefficients(self, index: int) -> NDArray[np.int32] | None:
        """Coefficients of a transform-coded tensor, flat: int32 (rows * kept columns).

        Returns:
            None if it does not decode.

        Raises:
            MemoryError: the machine has not enough.
        """
        found = self._file.record(index)
        return None if found is None else np.frombuffer(found, np.int32)

    def decode_all(self, workers: int, progress: Progress | None) -> list[Patterns] | None:
        """Bit patterns of all tensors, in the order of the file; None if they do not decode.

        Args:
            workers: threads.
            progress: called with ("decode", done, of) as tensors are done.

        Raises:
            MemoryError: the machine has not enough.
        """
        found: dict[int, Patterns] = {}
        for task, arrays in self._run("decode", self._decode, workers, progress):
            if arrays is None:
                return None
            found.update(zip(task, arrays, strict=True))
        twins = enumerate(tensor.same_as for tensor in self.tensors)
        return [found[i] if twin is None else found[twin].copy() for i, twin in twins]

    def visit(
        self, workers: int, visitor: Callable[[int, Patterns], None], progress: Progress | None
    ) -> bool:
        """True if nothing is wrong with the file.

        Args:
            workers: threads.
            visitor: called with each tensor that is not tied, its index in the file and its bit
                patterns, which are not kept; in threads, and in no order.
            progress: called with ("verify", done, of).

        Raises:
            MemoryError: the machine has not enough for one of the tensors.
        """

        def decodes(task: list[int]) -> bool:
            arrays = self._decode(task)
            for index, patterns in zip(task, arrays or [], strict=arrays is not None):
                visitor(index, patterns)
            return arrays is not None

        return all(good for _, good in self._run("verify", decodes, workers, progress))

    def _tasks(self) -> Iterator[list[int]]:
        """All tensors but tied ones, the large ones first: what is left at the end is soon done.

        Those of bundles come last and together, so that each bundle is decoded once.
        """
        own = [(i, t) for i, t in enumerate(self.tensors) if t.same_as is None]
        own.sort(key=lambda one: (one[1].bundle is not None, -one[1].elements))
        task: list[int] = []
        elements = 0
        for index, tensor in own:
            task.append(index)
            elements += tensor.elements
            if tensor.bundle is None and elements >= TASK:
                yield task
                task, elements = [], 0
        if task:
            yield task

    def _decode(self, task: Sequence[int]) -> list[Patterns] | None:
        """Bit patterns of some tensors, None if they do not decode."""
        arrays: list[Patterns] = []
        for tensor in (self.tensors[i] for i in task):
            if tensor.dtype is None:
                return None
            arrays.append(np.empty(tensor.shape, tensor.dtype.pattern))
        flat = [array.reshape(-1).view(np.uint8) for array in arrays]
        return arrays if self._file.decode(list(zip(task, flat, strict=True))) else None

    def _run(
        self, stage: str, act: Callable[[list[int]], Done], workers: int, progress: Progress | None
    ) -> Iterator[tuple[list[int], Done]]:
        """Each task with what came of it, in threads; no other is begun if the caller leaves.

        Raises:
            MemoryError: of a task, or no thread can be started.
        """
        done, total = 0, sum(tensor.same_as is None for tensor in self.tensors)
        for task, result in _results(act, self._tasks(), workers):
            done += len(task)
            if progress is not None:
                progress(stage, done, total)
            yield task, result


def _results(
    act: Callable[[list[int]], Done], tasks: Iterable[list[int]], workers: int
) -> Iterator[tuple[list[int], Done]]:
    if workers == 1:  # needs no thread, and perhaps none can be had
        yield from ((task, act(task)) for task in tasks)
        return
    with ThreadPoolExecutor(max_workers=workers) as pool:
        running: dict[Future[Done], list[int]] = {}
        try:
            for task in tasks:
                running[_submitted(pool, act, task)] = task
            for future in as_completed(list(running)):
                yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()


def _submitted(
    pool: ThreadPoolExecutor, act: Callable[[list[int]], Done], task: list[int]
) -> Future[Done]:
    try:
        return pool.submit(act, task)
    except RuntimeError as error:  # no thread can be started
        raise MemoryError(str(error)) from error
