"""Worker processes that end with their parent, whatever ends it, and leave nothing behind.

Each is a Python of its own that takes pickled calls from a pipe and gives pickled results to
another; nothing lies in files or in shared memory. Only the parent holds the other ends of the
pipes, so a worker sees them closed when the parent is gone, and ends, in the middle of a call too.
A script needs no `if __name__ == "__main__"`, as nothing of it is run again. Imports the standard
library only.
"""

from __future__ import annotations

import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from tqcodec.common.progress import Progress
from tqcodec.errors import EncodeError

# Threads of the libraries that multiply matrices: the processes share the processors.
THREADS = ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM")
START = "import sys; sys.path[:] = {path!r}; from tqcodec.encoder import workers; workers.work()"

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Arguments = TypeVarTuple("Arguments")

Result = TypeVar("Result")

_kept: ContextVar[list[Workers] | None] = ContextVar("_kept", default=None)


class Workers:
    """Some processes.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        if not sys.executable:
            raise EncodeError("workers: there is no Python to start processes of; use one")
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []

    def _start(self, count: int) -> None:
        """See that there are so many processes."""
        environment = dict(os.environ)
        for name in THREADS:
            share = max(1, (os.cpu_count() or 1) // self._count)
            environment.setdefault(f"{name}_NUM_THREADS", str(share))
        with _interrupts_blocked():
            while len(self._processes) < count:
                process = subprocess.Popen(
                    [sys.executable, "-c", START.format(path=sys.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
                self._processes.append(process)

    def map(
        self,
        function: Callable[[Unpack[Arguments]], Result],
        calls: Sequence[tuple[Unpack[Arguments]]],
    ) -> Iterator[Result]:
        """Results in the order of the calls; after an exception the workers are of no use."""
        self._start(min(self._count, len(calls)))
        left = iter(enumerate(calls))
        lock = threading.Lock()
        results: queue.SimpleQueue[tuple[int, bool, Any]] = queue.SimpleQueue()

        def serve(process: subprocess.Popen[bytes]) -> None:
            while True:
                with lock:
                    index, call = next(left, (-1, ()))
                if index < 0:
                    return
                good, result = _ask(process, function, call)
                results.put((index, good, result))
                if not good:
                    return

        threads = [threading.Thread(target=serve, args=(p,), daemon=True) for p in self._processes]
        for thread in threads:
            try:
                thread.start()
            except RuntimeError as error:  # no thread can be started
                raise MemoryError(str(error)) from error
        early: dict[int, Any] = {}
        for wanted in range(len(calls)):
            while wanted not in early:
                index, good, result = results.get()
                if not good:
                    raise result
                early[index] = result
            yield early.pop(wanted)

    def close(self) -> None:
        """End the processes, also in the middle of a call."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):  # what was not sent yet
                        stream.close()


@contextmanager
def kept() -> Iterator[None]:
    """As long as it lasts, `workers_for` gives the same processes; they end with it."""
    held: list[Workers] = []
    token = _kept.set(held)
    try:
        yield
    finally:
        _kept.reset(token)
        for workers in held:
            workers.close()


@contextmanager
def workers_for(count: int) -> Iterator[Workers]:
    """So many processes; after an exception they end."""
    held = _kept.get()
    if held is None:
        with kept(), workers_for(count) as workers:
            yield workers
        return
    if not held:
        held.append(Workers(count))
    try:
        yield held[0]
    except BaseException:
        held.pop().close()
        raise


def map_calls(
    function: Callable[[Unpack[Arguments]], Result],
    calls: Sequence[tuple[Unpack[Arguments]]],
    workers: int,
    stage: str,
    progress: Progress | None,
) -> Iterator[Result]:
    """Results of the calls in their order, from processes where more than one is wanted.

    Args:
        function: of a module, so that a process can import it.
        calls: its arguments.
        workers: most processes.
        stage: name for `progress`.
        progress: called with (stage, done, of).
    """

    def counted(results: Iterable[Result]) -> Iterator[Result]:
        for done, result in enumerate(results, 1):
            if progress is not None:
                progress(stage, done, len(calls))
            yield result

    if min(workers, len(calls)) == 1:
        yield from counted(function(*call) for call in calls)
    else:
        with workers_for(workers) as processes:
            yield from counted(processes.map(function, calls))


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal; the parent ends those that start meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ask(
    process: subprocess.Popen[bytes], function: Callable[..., Any], call: tuple[Any, ...]
) -> tuple[bool, Any]:
    """Whether a call was done, and its result or what was raised."""
    assert process.stdin is not None and process.stdout is not None, "pipes were asked for"
    try:
        pickle.dump((function, call), process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        good, result, trace = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError, ValueError):
        code = process.wait()
        return False, EncodeError(
            f"a worker process ended ({_ending(code)}): too little memory? Use fewer workers"
        )
    except BaseException as error:
        return False, error
    if not good and trace:
        result.__cause__ = RuntimeError(f"in a worker process:\n{trace}")
    return good, result


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def work() -> None:
    """What a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    calls, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    try:
        os.dup2(2, 1)  # what libraries print goes where messages go
    except OSError:  # nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _watch(calls)
    while True:
        try:
            function, call = pickle.load(calls)
            message = _packed(True, function(*call), "")
        except (EOFError, pickle.UnpicklingError):
            os._exit(1)  # the parent is gone
        except Exception as error:
            message = _failure(error)
        with suppress(BrokenPipeError):
            results.write(message)
            results.flush()


def _failure(error: Exception) -> bytes:
    trace = traceback.format_exc()
    try:
        return _packed(False, error, trace)
    except Exception:  # one that pickle does not take, or does not give back
        return _packed(False, RuntimeError(trace), "")


def _packed(good: bool, result: Any, trace: str) -> bytes:
    message = pickle.dumps((good, result, trace), pickle.HIGHEST_PROTOCOL)
    if not good:
        pickle.loads(message)
    return message


def _watch(calls: BinaryIO) -> None:
    """End at once when the parent is gone, which a call would notice only at its end."""
    if not hasattr(select, "poll"):
        return
    poll = select.poll()
    poll.register(calls, 0)  # that the other end is closed is told without being asked for

    def wait() -> None:
        poll.poll()
        os._exit(1)

    try:
        threading.Thread(target=wait, daemon=True).start()
    except RuntimeError:  # too little memory, and nobody would notice that the parent is gone
        os._exit(1)
