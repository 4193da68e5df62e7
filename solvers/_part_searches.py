"""One search for each part of a composite problem, one after another or in worker processes.

Every search has its own seed and limits, so that the fronts are the same however many processes there are. A worker
is a fresh interpreter that the problem is sent to; it ends with its search, with the caller's Ctrl-C, or with the
caller.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, NamedTuple

from prunesolve.problems import InvalidProblem, MultiObjective
from prunesolve.problems._arrays import Floats

from ._base import Run, Solver

_WAKE = 0.1  # seconds between two looks at the caller's limits
_PATIENCE = 5.0  # seconds that a worker has to end when it is asked to


@dataclass(frozen=True)
class PartSearch:
    """What is searched how: a part with the seed and the limits of its search."""

    solver: Solver
    part: MultiObjective
    seed: int
    evaluation_limit: int | None
    time_limit: float | None


class PartFront(NamedTuple):
    """What a search found: the front's points (p, n_part), their objectives (p, 2), and what the search told."""

    solutions: Any
    objectives: Floats
    evaluations: int
    told: dict[str, Any]


def check_sendable(solver: Solver, parts: Sequence[MultiObjective]) -> None:
    """Refuse parts that cannot be sent to a worker process."""
    for index, part in enumerate(parts):
        try:
            pickle.dumps((solver, part))
        except Exception as error:  # what stops pickle is up to the objects inside
            raise InvalidProblem(
                f"workers: part {index} cannot be sent to another process ({type(error).__name__}: {error}); define "
                "what it evaluates by as a function or class of a module, or set workers=0"
            ) from error


def fronts(searches: Sequence[PartSearch], run: Run, workers: int) -> list[PartFront | None]:
    """The front of every part, None where there was nothing to spend or the run was over before its search had ended.

    The evaluations of a search are counted when it has ended.
    """
    due = [(index, search) for index, search in enumerate(searches) if search.evaluation_limit != 0]
    found = _in_processes(due, run, workers) if workers else _one_by_one(due, run)
    return [found.get(index) for index in range(len(searches))]


def _one_by_one(searches: Sequence[tuple[int, PartSearch]], run: Run) -> dict[int, PartFront]:
    found: dict[int, PartFront] = {}
    for index, search in searches:
        if run.should_stop():
            break
        found[index] = _searched(search, run)
        run.count(found[index].evaluations)
    return found


def _searched(search: PartSearch, run: Run | None = None) -> PartFront:
    result = search.solver.solve(
        search.part,
        seed=search.seed,
        evaluation_limit=search.evaluation_limit,
        time_limit=search.time_limit,
        callback=None if run is None else lambda _: run.halted,
    )
    if "interrupted" in result.details:
        raise KeyboardInterrupt
    told = {"status": str(result.status), "seconds": result.seconds}
    told |= {key: result.details[key] for key in ("failures", "hypervolume") if key in result.details}
    assert result.front is not None
    return PartFront(result.front.solutions, result.front.objectives, result.evaluations, told)


def _in_processes(searches: Sequence[tuple[int, PartSearch]], run: Run, workers: int) -> dict[int, PartFront]:
    found: dict[int, PartFront] = {}
    waiting = list(searches)[::-1]
    active: dict[Any, tuple[int, Any]] = {}
    try:
        while (waiting or active) and not run.halted:
            while waiting and len(active) < workers:
                index, search = waiting.pop()
                receiver, process = _started(search)
                active[receiver] = index, process
            for receiver in connection.wait(list(active), timeout=_WAKE):
                index, process = active[receiver]
                found[index] = _received(receiver, index, process)
                process.join()
                del active[receiver]
                run.count(found[index].evaluations)
    finally:
        for _, process in active.values():
            process.terminate()
        for _, process in active.values():
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
    return found


def _started(search: PartSearch) -> tuple[Any, Any]:
    """(what its answer comes through, the process)."""
    # a fresh interpreter: a fork would copy the locks of threads that it does not have
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, pickle.dumps(search)), daemon=True)
    process.start()
    sender.close()
    return receiver, process


def _received(receiver: Any, index: int, process: Any) -> PartFront:
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"the worker process of part {index} ended without an answer (exit code {process.exitcode}); a script "
            "that uses workers keeps what it runs under `if __name__ == '__main__':`"
        ) from None
    if isinstance(answer, str):
        raise RuntimeError(f"part {index}: {answer}")
    return PartFront(*answer)


def _work(sender: Any, job: bytes) -> None:
    """What a worker process does."""
    # Ctrl-C reaches every process of a terminal; the caller ends its workers itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    try:
        answer: Any = tuple(_searched(pickle.loads(job)))
    except Exception as error:  # told to the caller, whatever it is
        answer = f"{type(error).__name__}: {error}"
    sender.send(answer)


def _end_with_caller() -> None:
    caller = multiprocessing.parent_process()
    if caller is not None:
        connection.wait([caller.sentinel])
        os._exit(1)
