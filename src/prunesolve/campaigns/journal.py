"""The truth of a campaign: a line on disk for each finished job before anything else is told of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prunesolve.problems import InvalidProblem
from prunesolve.problems._npz import whole_file

from .records import (
    ABOUT,
    CAMPAIGN,
    COLUMNS,
    JOURNAL,
    RESULTS,
    SOLUTIONS,
    WITHDRAWN,
    WITHOUT_RESULT,
    at_of,
    lines_of,
    place_of,
)

_BATCH = 1_000  # rows of a Parquet file that are in memory at a time

_ABOUT = f"""A campaign of prunesolve. To go on with it, or to make sure that nothing is missing:
    prunesolve batch {CAMPAIGN} --out THIS_FOLDER
{JOURNAL:<24}one JSON object a line for each finished job, the truth; of a job run again the last line counts
{SOLUTIONS:<24}one JSON object a line: solution and trace; "at" in the journal says where (first byte, length)
{RESULTS:<24}the journal as a table, written when a session ends: pandas.read_parquet("results")
{CAMPAIGN:<24}the campaign as it was last run; paths in it are relative to where it lay
environment.json        machine and versions of the last session
instances/              instances that were made of networks
"""


class Journal:
    """A campaign's folder, open for writing by this process alone.

    A job's solution is on disk before the line that tells of it, and that line before `add` returns. What a killed
    process left unfinished at the end of a file is cut off when it is opened again.

    Parameters
    ----------
    folder : path
        Made where it is missing; refused where it holds something else.
    warn : callable
        Told in a sentence what was found damaged.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        _check(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._warn = folder, warn
        with contextlib.ExitStack() as opened:
            self._lock = opened.enter_context(_locked(folder))
            self._solutions = opened.enter_context(_Appended(folder / SOLUTIONS, warn))
            self._lines = opened.enter_context(_Appended(folder / JOURNAL, warn))
            self._failures: dict[tuple[Any, ...], str] = {}
            self.statuses = self._finished()
            if not (folder / ABOUT).exists():
                (folder / ABOUT).write_text(_ABOUT, encoding="utf-8")
            _sync_folder(folder)
            self._opened = opened.pop_all()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *raised: object) -> None:
        self._opened.close()

    def _finished(self) -> dict[str, str]:
        """{job: status} of the jobs whose row and solution are whole."""
        found: dict[str, str] = {}
        lost: set[str] = set()
        damaged = 0
        with open(self.folder / JOURNAL, "rb") as file:
            for line in lines_of(file):
                if line.told is None:
                    damaged += 1
                    continue
                job, at = line.told["job"], at_of(line.told)
                whole = at is None or sum(at) <= self._solutions.size
                (lost.discard if whole else lost.add)(job)
                found[job] = line.told["status"]
                self._note(line.told)
                if found[job] == WITHDRAWN:
                    del found[job]
                    self._failures = {place: failed for place, failed in self._failures.items() if failed != job}
        if damaged:
            self._warn(f"{self.folder / JOURNAL}: {damaged} lines are damaged and left out; their jobs are done again")
        if lost:
            self._warn(f"{self.folder / SOLUTIONS}: {len(lost)} solutions are missing; their jobs are done again")
        return {job: status for job, status in found.items() if job not in lost}

    def add(self, outcomes: Iterable[tuple[Mapping[str, Any], Mapping[str, Any] | None]]) -> None:
        """Put finished jobs on disk, all or none of them.

        Parameters
        ----------
        outcomes : iterable of (row, told)
            The row with the keys of `COLUMNS`, and what `solve --out` tells with its trace, None for no result.

        Raises
        ------
        OSError
            If the disk does not take them; the files are as they were.
        """
        solutions, lines, rows = b"", b"", []
        for row, told in outcomes:
            rows.append(row)
            kept = dict(row)
            if told is not None:
                text = _line({"job": row["job"]} | dict(told))
                kept["at"] = [self._solutions.size + len(solutions), len(text)]
                solutions += text
            lines += _line(kept) + _withdrawal(self._superseded(row))
        with _undisturbed():
            self._append(solutions, lines)
        for row in rows:
            self._forget(row)
            self.statuses[row["job"]] = row["status"]
            self._note(row)

    def _append(self, solutions: bytes, lines: bytes) -> None:
        size = self._solutions.size
        self._solutions.append(solutions)
        try:
            self._lines.append(lines)
        except OSError:
            self._solutions.cut(size)
            raise

    def supersede(self, row: Mapping[str, Any]) -> None:
        """Take back the row without a result that another job left in the place of this one."""
        if self._superseded(row) is not None:
            self._lines.append(_withdrawal(self._superseded(row)))
            self._forget(row)

    def _superseded(self, row: Mapping[str, Any]) -> str | None:
        job = self._failures.get(place_of(row))
        return None if job == row["job"] else job

    def _forget(self, row: Mapping[str, Any]) -> None:
        """The job without a result in the place of this one, as its line was taken back."""
        if self._superseded(row) is not None:
            self.statuses.pop(self._failures.pop(place_of(row)), None)

    def _note(self, row: Mapping[str, Any]) -> None:
        """Remember what has no result, by its place in the campaign."""
        if row["status"] in WITHOUT_RESULT:
            self._failures[place_of(row)] = row["job"]
        elif self._failures.get(place_of(row)) == row["job"]:
            del self._failures[place_of(row)]

    def compact(self) -> Path:
        """Write the table of all rows, whole or not at all; returns its path."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
        schema = pa.schema([(column, kinds[kind]) for column, kind in COLUMNS.items()])
        path = self.folder / RESULTS
        with whole_file(path) as file, pq.ParquetWriter(file, schema) as writer:
            for rows in self._batches():
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        return path

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        """The last row of every job, many at a time, in the order of the journal."""
        last: dict[str, int] = {}
        with open(self.folder / JOURNAL, "rb") as file:
            for line in lines_of(file):
                if line.told is not None:
                    last[line.told["job"]] = line.start
            file.seek(0)
            rows: list[dict[str, Any]] = []
            for line in lines_of(file):
                if line.told is not None and last[line.told["job"]] == line.start:
                    rows += [_cells(line.told)] if line.told["status"] != WITHDRAWN else []
                if len(rows) == _BATCH:
                    yield rows
                    rows = []
            yield rows


class _Appended:
    """A file that only grows, by whole lines; what was appended is on disk when `append` returns."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.size = _whole_lines(path)
        rest = path.stat().st_size - self.size
        if rest:
            warn(f"{path}: its last {rest} bytes are no whole line and are cut off")
            self.cut(self.size)

    def __enter__(self) -> _Appended:
        return self

    def __exit__(self, *raised: object) -> None:
        os.close(self._file)

    def append(self, text: bytes) -> None:
        """Write at the end; where the disk does not take all of it nothing of it stays."""
        written = 0
        try:
            while written < len(text):
                written += os.pwrite(self._file, text[written:], self.size + written)
            os.fsync(self._file)
        except BaseException:
            self.cut(self.size)
            raise
        self.size += len(text)

    def cut(self, size: int) -> None:
        """Go back to an earlier size."""
        os.ftruncate(self._file, size)
        self.size = size


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and a termination signal wait until what has ended is on disk."""
    if threading.current_thread() is not threading.main_thread():
        # where Python hears no signals
        yield
        return
    came: list[int] = []
    # a mask would not do: the system gives the signal to another thread then, and Python to this one
    before: dict[int, Any] = {
        number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _whole_lines(path: Path) -> int:
    """Bytes up to and with the last line break."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        while size:
            begin = max(0, size - 65_536)
            file.seek(begin)
            place = file.read(size - begin).rfind(b"\n")
            if place >= 0:
                return begin + place + 1
            size = begin
    return 0


def _line(told: Mapping[str, Any]) -> bytes:
    return json.dumps(told, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _withdrawal(job: str | None) -> bytes:
    return b"" if job is None else _line({"job": job, "status": WITHDRAWN})


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the table takes it; a number of an older version that is of another kind becomes ours."""
    return {c: None if row.get(c) is None else kind(row[c]) for c, kind in COLUMNS.items()}


def _check(folder: Path) -> None:
    """Refuse a folder with other things in it, which a mistyped path would fill with ours."""
    if folder.exists() and not folder.is_dir():
        raise InvalidProblem(f"{folder}: expected a folder for the campaign, got a file")
    if folder.is_dir() and not (folder / JOURNAL).exists() and any(folder.iterdir()):
        raise InvalidProblem(
            f"{folder}: expected a new folder or that of a campaign, got one with other files and no {JOURNAL}"
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder for this process alone; the system gives it back however the process ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InvalidProblem(
            f"{folder}: another `prunesolve batch` is writing into it; wait for it, or name another folder"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make the names of new files survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
