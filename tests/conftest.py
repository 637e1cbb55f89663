"""Settings of hypothesis for all tests, the same examples on every run; no silent skips in CI."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from forks import Forks

settings.register_profile(
    "tqcodec",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("few", settings.get_profile("tqcodec"), max_examples=10)
settings.load_profile("tqcodec")

# In the background of a shell and under nohup these are ignored, which the commands that tests
# interrupt would inherit.
if threading.current_thread() is threading.main_thread():
    for name, default in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, default)

# What a test writes twice within a second would be taken from the cache of the first time.
sys.dont_write_bytecode = True

# Words of reasons to skip that an installation takes away (CONTRIBUTING.md); what a system or a
# user lacks may be skipped anywhere.
INSTALLABLE = (
    "compiler",
    "built",
    "native",
    "node",
    "Node.js",
    "Chromium",
    "installed",
    "could not import",
)


# Those that take longest go first, so that no worker has one of them left when all others are done.
LONGEST = (
    "test_benchmarks.py",
    "test_networks.py",
    "test_retraining.py",
    "test_reliability.py",
    "test_conformance.py",
    "test_c_decoder.py",
    "test_retrain.py",
    "test_made_up.py",
    "test_js_decoder.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of `LONGEST`, then as they come."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(autouse=True)
def _no_modules_of_others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test loads from a folder of its own, the next one does not find."""
    folders = list(sys.path)
    yield
    sys.path[:] = folders
    own = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(own):
            del sys.modules[name]


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """What runs programs that need torch."""
    if not hasattr(os, "fork"):
        pytest.skip("processes are not forked here")
    from forks import Forks

    found = Forks(tmp_path_factory.mktemp("forks"))
    yield found
    found.close()


@pytest.fixture
def small_disk() -> Callable[[int], AbstractContextManager[None]]:
    """In a block of it files end at so many bytes."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a test that is skipped for want of something to install has failed."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if any(word in reason for word in INSTALLABLE):
            report.outcome, report.longrepr = "failed", f"{item.nodeid}: {reason}"
    return report
