"""Coverage by folder, of the document of ``coverage json`` on standard input."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import PurePath

KEYS = ("covered_lines", "num_statements", "covered_branches", "num_branches")


def main() -> None:
    sums: dict[str, list[int]] = defaultdict(lambda: [0] * len(KEYS))
    for path, file in json.load(sys.stdin)["files"].items():
        counts = [file["summary"][key] for key in KEYS]
        for parent in PurePath(path).parents[:-1]:
            sums[str(parent)] = [a + b for a, b in zip(sums[str(parent)], counts, strict=True)]
    print(f"{'':28}  lines  branches")
    for folder, (lines, all_lines, branches, all_branches) in sorted(sums.items()):
        print(f"{folder:28} {_share(lines, all_lines)}   {_share(branches, all_branches)}")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:5.1f} %" if whole else f"{'-':>7}"


if __name__ == "__main__":
    main()
