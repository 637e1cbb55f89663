"""Settings of hypothesis for all tests, the same examples on every run; no silent skips in CI."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "tqcodec",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("tqcodec")

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
