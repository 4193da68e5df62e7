"""What a campaign's folder holds: a row for each finished job, and its solution and trace."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

from prunesolve.problems import InvalidProblem

JOURNAL, SOLUTIONS, RESULTS = "journal.jsonl", "solutions.jsonl", "results/results.parquet"
CAMPAIGN, ENVIRONMENT, ABOUT = "campaign.toml", "environment.json", "README.txt"

# statuses of jobs that brought no result; those of the others are names of `solvers.Status`
FAILED, TIMED_OUT, OUT_OF_MEMORY, DIED = "FAILED", "TIMED_OUT", "OUT_OF_MEMORY", "DIED"
WITHOUT_RESULT = (FAILED, TIMED_OUT, OUT_OF_MEMORY, DIED)
WITHDRAWN = "WITHDRAWN"  # of a job without a result in whose place another stands, as its instance was mended since

# column: kind, in the order in which they are shown
COLUMNS: dict[str, type] = {
    "job": str,
    "instance": str,
    "instance_hash": str,
    "solver": str,
    "solver_repr": str,
    "seed": int,
    "repeat": int,
    "status": str,
    "reason": str,
    "objective": float,
    "native_objective": float,
    "sense": str,
    "bound": float,
    "gap": float,
    "feasible": bool,
    "n": int,
    "kept": int,
    "seconds": float,
    "evaluations": int,
    "compile_seconds": float,
    "wall_seconds": float,
    "peak_mib": float,
    "best_known": float,
    "time_limit": float,
    "evaluation_limit": int,
    "memory_limit_mib": float,
    "host": str,
    "version": str,
    "finished": str,
}


class Line(NamedTuple):
    """A line of a journal: its first byte, and what it says of a job, None where it is damaged."""

    start: int
    told: dict[str, Any] | None


def lines_of(file: IO[bytes]) -> Iterator[Line]:
    """The whole lines of a journal; what follows the last line break is not one, and damaged ones say nothing."""
    start = 0
    for text in file:
        if not text.endswith(b"\n"):
            return
        told = _object(text)
        yield Line(start, told if told is not None and _is_row(told) else None)
        start += len(text)


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(text)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def _is_row(told: Mapping[str, Any]) -> bool:
    return isinstance(told.get("job"), str) and isinstance(told.get("status"), str)


def place_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a job is to the campaign, whatever the content of its instance was then."""
    return tuple(row.get(key) for key in _PLACE)


_PLACE = ("instance", "solver_repr", "seed", "repeat", "time_limit", "evaluation_limit")


def at_of(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """Where in the file of solutions a row's own stands: first byte, and how many."""
    at = row.get("at")
    if isinstance(at, list) and len(at) == 2 and all(isinstance(x, int) and x >= 0 for x in at):
        return at[0], at[1]
    return None


@dataclass(frozen=True)
class Records:
    r"""The finished jobs of a campaign.

    Parameters
    ----------
    folder : path
        The campaign's folder.
    rows : list of dict
        One for each job, in the order in which jobs first ended, with the keys of `COLUMNS`; a job that was run again
        is told by its last row.
    name : str
        The campaign's name.
    environment : mapping
        Machine and versions of the last session.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / JOURNAL).write_text('{"job": "a1", "status": "FINISHED", "objective": -2.0}\n')
    >>> records = Records.load(folder)
    >>> records.rows[0]["objective"], records.told("a1")
    (-2.0, None)
    """

    folder: Path
    rows: list[dict[str, Any]]
    name: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    _at: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> Records:
        """Read what `prunesolve batch` left, while it runs or afterwards.

        Raises
        ------
        InvalidProblem
            If the folder is none of a campaign.
        """
        folder = Path(folder)
        journal = folder / JOURNAL
        if not journal.is_file():
            raise InvalidProblem(f"{folder}: expected a folder that `prunesolve batch` wrote, found no {JOURNAL} in it")
        rows: dict[str, dict[str, Any]] = {}
        places: dict[str, tuple[int, int]] = {}
        with open(journal, "rb") as file:
            for line in lines_of(file):
                told = line.told
                if told is None:
                    continue
                job, at = told["job"], at_of(told)
                places.pop(job, None)
                if told["status"] == WITHDRAWN:
                    rows.pop(job, None)
                    continue
                rows[job] = {column: told.get(column) for column in COLUMNS}
                if at is not None:
                    places[job] = at
        environment = _read_environment(folder / ENVIRONMENT)
        return cls(folder, list(rows.values()), environment.get("campaign", folder.name), environment, places)

    def problem(self, instance: str) -> Any:
        """The problem of an instance that some job brought a result of, made again from where it came from.

        Raises
        ------
        InvalidProblem
            If there is no result of it, or it is not there any more.
        """
        from .sources import source_of

        if instance not in self._solved:
            raise InvalidProblem(f"{self.folder}: expected an instance with a result, got {instance!r}")
        told = self.told(self._solved[instance]) or {}
        return source_of(told["source"]).problem()

    @cached_property
    def _solved(self) -> dict[str, str]:
        """{instance: a job that brought a result of it}."""
        return {row["instance"]: row["job"] for row in self.rows if row["job"] in self._at}

    def told(self, job: str) -> dict[str, Any] | None:
        """What `prunesolve solve --out` writes of a job, its trace included; None for one without a result.

        Raises
        ------
        InvalidProblem
            If the file of solutions was damaged since.
        """
        if job not in self._at:
            return None
        start, length = self._at[job]
        path = self.folder / SOLUTIONS
        try:
            with open(path, "rb") as file:
                file.seek(start)
                found = _object(file.read(length))
        except FileNotFoundError:
            found = None
        if found is None or found.pop("job", None) != job:
            raise InvalidProblem(
                f"{path}: expected the solution of job {job} at byte {start}, found something else; "
                "run the campaign again, which solves the job once more"
            )
        return found


def _read_environment(path: Path) -> dict[str, Any]:
    try:
        return _object(path.read_bytes()) or {}
    except FileNotFoundError:
        return {}
