"""A wrapper is a solver: the best of several runs of another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from prunesolve.problems import InvalidProblem

from . import get
from ._base import Run, Solver, Status


@dataclass(frozen=True)
class Restarts(Solver):
    """The best of `times` runs of `inner`, each with a seed drawn from this run's.

    Parameters
    ----------
    inner : str or Solver
        What is run.
    times : int
        Runs; a time limit is shared evenly among those that are left.

    Examples
    --------
    >>> from prunesolve.problems import BinaryQuadratic, Cardinality
    >>> Restarts("greedy", times=2).solve(BinaryQuadratic([-1.0, -2.0], constraints=[Cardinality(1)])).objective
    -2.0
    """

    inner: Any = "swap-annealing"
    times: int = 3

    name: ClassVar[str] = "restarts"

    def __post_init__(self) -> None:
        if self.times < 1:
            raise InvalidProblem(f"times: expected a count >= 1, got {self.times}")

    def refuse(self, problem: Any) -> str | None:
        """What the inner solver refuses."""
        return resolved(self.inner).refuse(problem)

    def _prepare(self, problem: Any) -> None:
        resolved(self.inner)._prepare(problem)

    def _search(self, problem: Any, run: Run) -> Status | None:
        solver = resolved(self.inner)
        for left in range(self.times, 0, -1):
            if run.should_stop():
                return None
            inner = run.delegate(
                solver,
                seed=int(run.rng.integers(2**31)),
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
