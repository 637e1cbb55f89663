"""What the long runs share: a log that a run goes on behind, and which of its lines count."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import tqcodec

Line = dict[str, Any]  # of the log


def fingerprint(folder: Path) -> str:
    """CRC-32 of the sources that an outcome depends on: the package and those in a folder."""
    found = 0
    paths = [p for p in Path(tqcodec.__file__).parent.rglob("*.*") if p.suffix in (".py", ".c")]
    for path in sorted(paths) + sorted(folder.glob("*.py")):
        found = zlib.crc32(path.read_bytes(), found)
    return f"{found:08x}"


def read_log(path: Path) -> list[Line]:
    """Lines of the log. What a killed run left of a line is cut off."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def append(path: Path, line: Line) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
