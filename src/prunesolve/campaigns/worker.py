"""A process that solves jobs one after another: a line of JSON in, a line of JSON out; the parent may kill it.

Nothing it does touches the campaign's folder, so that it can be killed at any moment.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .records import FAILED, OUT_OF_MEMORY

_LOOK_FOR_PARENT = 1.0  # seconds between two looks


class Solving:
    """Solves jobs; the last instance stays in memory for the next job on it."""

    def __init__(self) -> None:
        self._digest: str | None = None
        self._problem: Any = None

    def outcome(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """{"row": columns, "told": what `solve --out` writes, or None}; whatever goes wrong is a row."""
        began = time.perf_counter()
        try:
            row, told = self._solved(job)
        except MemoryError as error:
            self._digest = self._problem = None
            row, told = {"status": OUT_OF_MEMORY, "reason": str(error) or "out of memory"}, None
        except Exception as error:
            row, told = {"status": FAILED, "reason": _reason(error)}, None
        row |= {"wall_seconds": time.perf_counter() - began, "peak_mib": _resident_mib(), "host": platform.node()}
        return {"row": row, "told": told}

    def _solved(self, job: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        from prunesolve import solvers
        from prunesolve.result_files import told_of

        problem = self._problem_of(job)
        # what a search lays out for a problem is kept as long as that lives; every job begins with a fresh one
        problem = problem.replace() if hasattr(problem, "replace") else problem
        solver = solvers.get(job["name"], **job["options"])
        limits = {"time_limit": job["time_limit"], "evaluation_limit": job["evaluation_limit"]}
        result = solver.solve(problem, seed=job["seed"], bound=job["bound"], **limits)
        told = told_of(job["source"]["name"], problem, result)
        row = {column: told.get(column) for column in _FROM_RESULT}
        row["compile_seconds"] = result.details.get("compile_seconds")
        row["best_known"] = problem.meta.get("best_known")
        return row, told | {"source": job["source"], "trace": [list(step) for step in result.trace]}

    def _problem_of(self, job: Mapping[str, Any]) -> Any:
        if job["digest"] != self._digest:
            from .sources import source_of

            self._digest = self._problem = None
            content = None if job.get("content") is None else Path(job["content"])
            self._problem = source_of(job["source"]).problem(content)
            self._digest = job["digest"]
        return self._problem


_FROM_RESULT = (
    "instance_hash",
    "status",
    "objective",
    "native_objective",
    "sense",
    "bound",
    "gap",
    "feasible",
    "n",
    "kept",
    "seconds",
    "evaluations",
)


def _reason(error: BaseException) -> str:
    """What was raised, in one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _resident_mib() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss / 2**20)


def _end_with(parent: int) -> None:
    """Leave as soon as the parent has gone, however it went, even in the middle of a search."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_FOR_PARENT)
        # the group is our own, with what a solver may have started
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=look, daemon=True).start()


def _own_output() -> IO[str]:
    """The pipe to the parent; what solvers print goes to stderr instead."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return pipe


def main() -> None:
    """Solve what comes in until nothing more comes."""
    # the parent hears Ctrl-C, and ends us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # asked of the parent, which may have gone before we could look
    _end_with(int(sys.argv[1]))
    output, solving = _own_output(), Solving()
    for line in sys.stdin:
        told = json.dumps(solving.outcome(json.loads(line)), allow_nan=False)
        output.write(told + "\n")
        output.flush()


if __name__ == "__main__":
    main()
