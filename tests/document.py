"""The specification's text, for the tests that hold code against it."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = (Path(__file__).resolve().parents[1] / "spec" / "tqc.md").read_text("utf-8")


def chapter(number: str) -> str:
    """Text of a chapter or section, by its number."""
    level = "#" * (2 + number.count("."))
    match = re.search(rf"^{level} {re.escape(number)} .*?(?=^##? |\Z)", DOCUMENT, re.M | re.S)
    if number.count("."):
        match = re.search(rf"^{level} {re.escape(number)} .*?(?=^###? |\Z)", DOCUMENT, re.M | re.S)
    assert match is not None, number
    return match.group()


def rows(text: str, first: str) -> list[list[str]]:
    """Cells of the rows of the table whose header begins with the cell `first`."""
    match = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)
    assert match is not None, first
    lines = match.group(1).splitlines()
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
