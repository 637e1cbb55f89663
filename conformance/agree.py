"""Gives files to several decoders and says whether they reach the same verdict and the same bytes.

    python conformance/agree.py FILE.tqc...

For networks of any size; the reference decoder takes seconds for each million weights, and minutes
where a file has large bases.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from batch import Decoder
from fuzz import Tally, compare, decoders

SECONDS = 3600.0  # for one file


def main(arguments: Sequence[str] | None = None) -> int:
    """One line a file; the exit code is 1 if decoders disagree or fail."""
    parser = argparse.ArgumentParser(description="compare decoders on whole networks")
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    parser.add_argument("--decoder", action="append", metavar="CMD", help="with its --batch")
    options = parser.parse_args(arguments)
    running = [Decoder(command, SECONDS) for command in options.decoder or decoders()]
    tally = Tally()
    try:
        for path in options.files:
            start = time.monotonic()
            outcomes = compare(path.read_bytes(), running, tally)
            what = " | ".join(map(str, outcomes)) or f"all {len(running)} agree"
            sys.stdout.write(f"{path}: {what} ({time.monotonic() - start:.0f} s)\n")
            sys.stdout.flush()
    finally:
        for decoder in running:
            decoder.close()
    decoded = tally.verdicts["decoded"] == tally.files
    return 0 if decoded and not tally.disagreements else 1


if __name__ == "__main__":
    sys.exit(main())
