"""Files of measurements."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import astuple, fields
from math import isnan
from pathlib import Path
from typing import Any


class RecordFile:
    """A CSV file of dataclasses that grows by a row as soon as one is measured.

    Args:
        path: of the file, which is begun anew; None for none.
        kind: the dataclass, of strings and numbers; not a number becomes an empty cell.
    """

    def __init__(self, path: Path | None, kind: type[Any]) -> None:
        self._path = path
        if path is not None:
            with path.open("w", newline="") as file:
                csv.writer(file).writerow(field.name for field in fields(kind))

    def add(self, records: Iterable[Any]) -> None:
        """Append rows."""
        if self._path is None:
            return
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerows(map(_text, astuple(record)) for record in records)


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if isnan(value) else f"{value:.6g}"
    return str(value)
