"""Tabu search that never leaves the feasible selections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunesolve.problems import BinaryQuadratic, InvalidProblem

from . import _kernels
from ._base import Run, Solver, Status
from ._search import Search
from ._threads import check_threads, side_by_side

_LARGE = 5000  # units from which the tenure grows no more; every step looks at all units that are tabu


@dataclass(frozen=True)
class SwapTabu(Solver):
    r"""Iterated tabu search by drop-add swaps, and by single flips where the constraints leave room for them.

    Every step makes the best move that is not tabu, even an uphill one; a tabu move is taken if it leads below the
    best value (aspiration). A swap drops the kept unit i whose field exceeds most the cheapest one that may follow
    it, then adds the j of least  h_j - h_i - J_ij.  What was moved is tabu for a while. A search that stagnates
    starts again from its best selection after some random moves. O(n) a step for dense couplings.
    An evaluation is one step.

    Several threads run as many searches side by side, with different seeds from one start, and the best is kept. They
    share the evaluation limit, or each makes all of its `iterations`: more quality per second of the clock, none per
    second of processor time.

    Parameters
    ----------
    tenure : int, optional
        Steps a moved unit is tabu, half as many for one that was just added; a random half is added to each.
        None: a share of the units that can move.
    iterations : int
        Steps in all; limits take their place where given.
    threads : int
        Searches side by side; the answer depends on their number and the seed.

    Reference
    ---------
    F. Glover, Tabu search, part I, ORSA Journal on Computing 1 (1989); drop-add swaps as in Q. Wu, J.-K. Hao, A hybrid
    metaheuristic method for the maximum diversity problem, EJOR 231 (2013) (reconstruction).

    Examples
    --------
    >>> import numpy as np
    >>> from prunesolve.problems import Cardinality
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0], np.ones((3, 3)) - np.eye(3), constraints=[Cardinality(2)])
    >>> SwapTabu().solve(problem).objective
    -4.0
    """

    tenure: int | None = None
    iterations: int = 50_000
    threads: int = 1

    name: ClassVar[str] = "swap-tabu"

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.iterations < 1 or (self.tenure is not None and self.tenure < 0):
            raise InvalidProblem(
                f"iterations, tenure: expected counts >= 1 and >= 0, got {self.iterations} and {self.tenure}"
            )

    def _prepare(self, problem: BinaryQuadratic) -> None:
        with _kernels.telling(f"{_kernels.kind(problem)} tabu"):
            tiny = _kernels.tiny(problem)
            search = Search.begin(tiny, Run(tiny, seed=0))
            if search is not None:
                search.tabu((1, 1), 1)

    def _search(self, problem: BinaryQuadratic, run: Run) -> Status | None:
        first = Search.begin(problem, run)
        if first is None:
            return None

        def search(one: Run) -> None:
            self._walk(first if one is run else Search(problem, one, first.state.x, first.view))

        return side_by_side(run, [search] * self.threads)

    def _walk(self, search: Search) -> None:
        """Steps of tabu search, until the run of this search ends."""
        problem, run = search.problem, search.run
        tenure = tenures(problem, self.tenure)
        patience = min(1000 + 10 * problem.n, 50 * problem.n)
        left = self.iterations if run.time_limit is None and run.evaluation_limit is None else 2**62
        search.reprice()
        while left > 0 and not run.should_stop():
            left -= search.tabu(tenure, patience, left)
            if not search.unfinished:
                search.reprice(float(run.rng.uniform(0.0, 1.1)))
                search.shake(self._strength(problem, run))
        search.offer()

    def _strength(self, problem: BinaryQuadratic, run: Run) -> int:
        """Random moves after a stagnation."""
        movable = problem.n if problem.k is None else min(problem.k, problem.n - problem.k)
        return 3 + int(run.rng.integers(0, max(1, movable // 4)))


def tenures(problem: BinaryQuadratic, dropped: int | None = None) -> tuple[int, int]:
    """Steps for which a unit just added and one just dropped stay as they are."""
    if dropped is None:
        dropped = 10 + min(problem.n, _LARGE) // 100
    if problem.k is not None:
        # more than the units there are would leave no move
        kept, free = problem.k, problem.n - problem.k
        return min(dropped // 2, kept // 3), min(dropped, free // 3)
    return min(dropped, problem.n // 3), min(dropped, problem.n // 3)
