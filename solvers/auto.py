"""Picks a solver by size, constraints and declared limits, and says what it picked and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunesolve.problems import BinaryQuadratic

from ._base import Run, Solver, Status
from ._descent import descend, prepare
from ._threads import check_threads
from .exact import Exact
from .greedy import Greedy
from .swap_annealing import SwapAnnealing
from .swap_tabu import SwapTabu


@dataclass(frozen=True)
class Auto(Solver):
    """Greedy with exact descent as the floor, then the solver that fits.

    Up to 16 units are enumerated, unconstrained problems go to tabu search, all others to swap annealing; the choice
    follows the problem and the declared limits, never measured time. `details["picked"]` names it.

    Parameters
    ----------
    threads : int
        Searches side by side, where the picked solver searches; the answer depends on their number and the seed.

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> result = Auto().solve(BinaryQuadratic([-1.0, -2.0, -3.0], constraints=[Cardinality(2)]))
    >>> result.objective, result.details["picked"]
    (-5.0, 'exact: 3 units can be enumerated')
    """

    threads: int = 1

    name: ClassVar[str] = "auto"

    def __post_init__(self) -> None:
        check_threads(self.threads)

    def _prepare(self, problem: BinaryQuadratic) -> None:
        picked, _ = _pick(problem, self.threads)
        picked._prepare(problem)
        if not isinstance(picked, Exact):
            prepare(problem)

    def _search(self, problem: BinaryQuadratic, run: Run) -> Status | None:
        picked, reason = _pick(problem, self.threads)
        run.details["picked"] = f"{picked.name}: {reason}"
        if isinstance(picked, Exact):
            return picked._search(problem, run)
        run.delegate(Greedy())
        if run.feasible:
            run.offer(descend(problem, run.best, run.should_stop))
            run.start = run.best
        return None if run.should_stop() else picked._search(problem, run)


def _pick(problem: BinaryQuadratic, threads: int) -> tuple[Solver, str]:
    if problem.n <= Exact().enumerate_up_to:
        return Exact(), f"{problem.n} units can be enumerated"
    if not problem.constraints:
        return SwapTabu(threads=threads), "tabu search leads on unconstrained problems"
    return SwapAnnealing(threads=threads), f"n = {problem.n} under constraints"
