"""A campaign as one HTML page, and its tables as CSV files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prunesolve.campaigns.records import COLUMNS, Records
from prunesolve.problems import InvalidProblem
from prunesolve.report import write_report

from .environment import environment
from .failures import failures
from .figures import final_gaps, performance, progress
from .files import FOLDER, Tables
from .instances import instances
from .lead import lead
from .names import told_apart
from .remarks import facts, remarks
from .tables import pairs, summary, targets
from .view import View

REPORT = "report.html"
SECTIONS = (
    summary,
    performance,
    final_gaps,
    targets,
    progress,
    pairs,
    instances,
    failures,
    environment,
)


def write_page(records: Records, path: str | Path | None = None) -> Path:
    """Write a campaign's page, self-contained, and `tables/*.csv` beside it, each whole or not at all.

    Parameters
    ----------
    records : Records
        Of a finished campaign or one that still runs. Traces are read one at a time.
    path : path, optional
        The `.html` file, by default `report.html` in the campaign's folder.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    InvalidProblem
        If no job has ended yet.

    Examples
    --------
    >>> import tempfile
    >>> row = dict.fromkeys(COLUMNS) | {"job": "a1", "instance": "a", "solver": "greedy", "status": "FINISHED"}
    >>> row |= {"feasible": True, "objective": -2.0, "seconds": 0.1, "seed": 0, "repeat": 0}
    >>> page = write_page(Records(Path(tempfile.mkdtemp()), [row], "one"))
    >>> page.name, sorted(file.name for file in (page.parent / "tables").iterdir())[:2]
    ('report.html', ['environment.csv', 'instances.csv'])
    """
    if not records.rows:
        raise InvalidProblem(f"{records.folder}: expected at least one finished job, got none; run the campaign first")
    page = records.folder / REPORT if path is None else Path(path)
    view = View(records, told_apart(records.rows), Tables(), [])
    # before the remarks: what traces could not be read is known afterwards
    sections = [section(view) for section in SECTIONS]
    view.tables.hold("runs", [*COLUMNS, "gap to best known / %"], _runs(view))
    view.tables.write(page.parent / FOLDER)
    title = f"Campaign {records.name}" if records.name else "Campaign"
    write_report(page, title, [*remarks(view), *sections], lead=lead(view), facts=facts(view))
    return page


def _runs(view: View) -> Iterator[Sequence[Any]]:
    for row, gap in zip(view.rows, view.gaps, strict=True):
        yield [*(row[column] for column in COLUMNS), 100.0 * float(gap)]
