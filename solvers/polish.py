"""A wrapper: no single feasible add, drop or swap improves what it brings back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ._base import Run, Solver, Status
from ._descent import descend, prepare
from .restarts import resolved


@dataclass(frozen=True)
class Polish(Solver):
    """`inner`, then exact descent from its best solution.

    Parameters
    ----------
    inner : str or Solver
        What is polished; also a dimod sampler through `bridges.dimod.DimodSampler`.

    Examples
    --------
    >>> from prunesolve.problems import BinaryQuadratic, Cardinality
    >>> Polish("greedy").solve(BinaryQuadratic([-1.0, -2.0], constraints=[Cardinality(1)])).objective
    -2.0
    """

    inner: Any = "greedy"

    name: ClassVar[str] = "polish"

    def refuse(self, problem: Any) -> str | None:
        """What the inner solver refuses."""
        return resolved(self.inner).refuse(problem)

    def _prepare(self, problem: Any) -> None:
        resolved(self.inner)._prepare(problem)
        prepare(problem)

    def _search(self, problem: Any, run: Run) -> Status | None:
        told = run.delegate(resolved(self.inner), start=run.start).told
        if run.feasible and told is not Status.OPTIMAL:
            run.offer(descend(problem, run.best, run.should_stop))
        return told if told in (Status.OPTIMAL, Status.INFEASIBLE) else None
