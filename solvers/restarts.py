"""A wrapper is a solver: the best of several runs of another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from prunesolve.problems import InvalidProblem

from . import get
from ._base import Run, Solver, Status
from ._threads import check_threads, side_by_side


@dataclass(frozen=True)
class Restarts(Solver):
    """The best of `times` runs of `inner`, each with a seed drawn from this run's.

    Several threads share the runs; that pays for an inner solver whose kernels leave the interpreter alone.

    Parameters
    ----------
    inner : str or Solver
        What is run.
    times : int
        Runs; limits are shared evenly among those that are left, the evaluation limit first among the threads.
    threads : int
        Runs side by side; the answer depends on their number and the seed.

    Examples
    --------
    >>> from prunesolve.problems import BinaryQuadratic, Cardinality
    >>> Restarts("greedy", times=2).solve(BinaryQuadratic([-1.0, -2.0], constraints=[Cardinality(1)])).objective
    -2.0
    """

    inner: Any = "swap-annealing"
    times: int = 3
    threads: int = 1

    name: ClassVar[str] = "restarts"

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.times < 1:
            raise InvalidProblem(f"times: expected a count >= 1, got {self.times}")

    def refuse(self, problem: Any) -> str | None:
        """What the inner solver refuses."""
        return resolved(self.inner).refuse(problem)

    def _prepare(self, problem: Any) -> None:
        resolved(self.inner)._prepare(problem)

    def _search(self, problem: Any, run: Run) -> Status | None:
        seeds = run.rng.integers(2**31, size=self.times).tolist()
        threads = min(self.threads, self.times)
        return side_by_side(run, [partial(self._runs, seeds[index::threads]) for index in range(threads)])

    def _runs(self, seeds: Sequence[int], run: Run) -> Status | None:
        """One run after the other."""
        for left, seed in zip(range(len(seeds), 0, -1), seeds, strict=True):
            if run.should_stop():
                return None
            inner = run.delegate(
                resolved(self.inner),
                seed=seed,
                start=run.start,
                time_limit=None if run.time_limit is None else run.remaining / left,
                evaluation_limit=None if run.evaluation_limit is None else max(1, int(run.evaluations_left / left)),
            )
            if inner.told in (Status.OPTIMAL, Status.INFEASIBLE):
                return inner.told
        return None


def resolved(inner: str | Solver) -> Solver:
    """The solver that a name or a solver stands for."""
    return get(inner) if isinstance(inner, str) else inner
