"""Measurements of tqcodec, each run from the root of the checkout: `python -m benchmarks.NAME`.

README.md says what each shows. The tests and the conformance suite are folders of modules, not
packages; benchmarks use some of these and find them by the paths added here. Runs in the
environment of any codec, so it imports the standard library only.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

sys.path += [str(ROOT / folder) for folder in ("tests", "tests/format", "conformance")]
