"""Tables on the page, and the files beside it that hold all of their rows."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunesolve.problems._npz import whole_folder
from prunesolve.report import Table

FOLDER = "tables"
NAMES = ("summary", "targets", "pairs", "instances", "failures", "environment", "solvers", "runs")
ROWS = 4_000  # of a table on the page, which must open at once


class Tables:
    """Tables as they go onto the page, and all of their rows for the files."""

    def __init__(self) -> None:
        self._all: dict[str, tuple[Iterable[str], Iterable[Sequence[Any]]]] = {}

    def add(
        self, name: str, title: str, columns: Mapping[str, str], rows: Iterable[Sequence[Any]], note: str = ""
    ) -> Table:
        """The table for the page, cut where it is too long; the file has every row."""
        rows = list(rows)
        self.hold(name, columns, rows)
        if len(rows) > ROWS:
            note = f"{note} These are the first {ROWS} of {len(rows)} rows; the file has them all.".strip()
        return Table(title, columns, rows[:ROWS], note, f"{FOLDER}/{name}.csv")

    def hold(self, name: str, columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
        """Rows for a file alone."""
        self._all[name] = (columns, rows)

    def write(self, folder: Path) -> None:
        """The files, in place of those of an earlier page; others in the folder stay."""
        with whole_folder(folder, replaces=[f"{name}.csv" for name in NAMES]) as new:
            for name, (columns, rows) in self._all.items():
                with open(new / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    writer.writerow(columns)
                    writer.writerows([_plain(value) for value in row] for row in rows)


def _plain(value: Any) -> Any:
    missing = value is None or (isinstance(value, float) and not math.isfinite(value))
    return "" if missing else value
