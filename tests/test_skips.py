"""With CI=true a test that is skipped for want of something to install has failed; long files."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import pytest

@pytest.mark.parametrize("reason", [
    "there is no C compiler",
    "the native loops are not built",
    "no node",
    "demo: no Chromium at /usr/bin/chromium",
    "playwright-core is not installed",
])
def test_that_skips_itself(reason):
    pytest.skip(reason)

def test_of_a_library():
    pytest.importorskip("no_such_library")

@pytest.mark.skipif(True, reason="no Node.js 18.15 or newer")
def test_that_is_marked():
    raise AssertionError

@pytest.mark.skipif(True, reason="no /dev/full")
def test_of_another_system():
    raise AssertionError

@pytest.mark.xfail(reason="this compiler is slow")
def test_that_is_known_to_fail():
    raise AssertionError

def test_that_passes():
    pass
"""


@pytest.mark.parametrize("ci", ["true", "false", None])
def test_what_can_be_installed_is_no_skip_in_ci(
    ci: str | None, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ci is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", ci)
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text("utf-8"))
    pytester.makepyfile(TESTS)
    found = pytester.runpytest_subprocess("-p", "no:cacheprovider").parseoutcomes()
    found = {name: count for name, count in found.items() if not name.startswith("warning")}
    if ci == "true":  # a mark is looked at before the test, so that it is an error
        wanted = {"failed": 6, "errors": 1, "skipped": 1, "xfailed": 1, "passed": 1}
    else:
        wanted = {"skipped": 8, "xfailed": 1, "passed": 1}
    assert found == wanted


def test_files_that_go_first_are_there() -> None:
    folder = Path(__file__).parent
    conftest = runpy.run_path(str(folder / "conftest.py"))
    assert set(conftest["LONGEST"]) <= {path.name for path in folder.rglob("test_*.py")}
