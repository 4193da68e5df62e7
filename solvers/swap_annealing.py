"""Simulated annealing that never leaves the feasible selections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, repeat
from typing import ClassVar

import numpy as np

from prunesolve.problems import BinaryQuadratic, Budget, InvalidProblem, LowRank

from . import _kernels
from ._base import Run, Solver, Status
from ._search import Search
from ._threads import check_threads, side_by_side
from .swap_tabu import tenures

_SHORTEST, _LONGEST = 32, 20_000  # sweeps of an annealing under a time limit; the first is the shortest
_SHARE, _LAST = 0.4, 0.25  # of the time left that an annealing takes; of the limit that the last one may take whole
_FEW = 4.0  # units over n: the least starting temperature in mean absolute changes
_SMALL = 50  # units up to which a search under a budget is quenched too
_HOTTEST = (4.0, 30.0)  # how much hotter a repeated annealing may begin and end; instances differ in what they like


@dataclass(frozen=True)
class SwapAnnealing(Solver):
    r"""Metropolis annealing by swaps, and by single flips where the constraints leave room for them.

    A swap of kept i for dropped j changes the value by  h_j - h_i - J_ij,  h = a + J x,  and is taken with
    probability min(1, exp(-change / T)). T falls geometrically from `t_start` to `t_end` times the mean absolute
    change of a random move; annealings after the first begin up to 4 and end up to 30 times hotter, by chance, since
    instances differ in how far that mean leads astray. Where a bound is tight both units come from the same group.
    Under a budget moves are compared at a random share of its break-even price, or a full budget would freeze them.
    An evaluation is one proposal, a sweep n of them.

    Each annealing is followed by a short tabu search from where it ended, not so under a budget: a cold annealing
    mostly proposes moves that it refuses, tabu search walks through the last local optima.

    Without limits: `restarts` annealings of `sweeps` sweeps. With an evaluation limit: the sweeps follow it. With a
    time limit alone: a short annealing, then each one as long as fits into 0.4 of the time left; under a budget
    annealings of growing length.

    Several threads run as many searches side by side, with different seeds from one start, and the best is kept. They
    share the evaluation limit, or each runs all of its `restarts`: more quality per second of the clock, none per
    second of processor time.

    Parameters
    ----------
    sweeps : int
        Sweeps of one annealing.
    restarts : int
        Annealings; the first begins at the start or the greedy selection, the others where the last one ended.
    t_start, t_end : float
        Temperatures in mean absolute changes; an annealing of n units begins at 4 / n of them at least.
    quench : float
        Steps of tabu search after an annealing, in multiples of its sweeps; a step counts as one evaluation.
    threads : int
        Searches side by side; the answer depends on their number and the seed.

    Reference
    ---------
    S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi, Optimization by simulated annealing, Science 220 (1983).

    Examples
    --------
    >>> import numpy as np
    >>> from prunesolve.problems import Cardinality
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0], np.ones((3, 3)) - np.eye(3), constraints=[Cardinality(2)])
    >>> SwapAnnealing().solve(problem).objective
    -4.0
    """

    sweeps: int = 1000
    restarts: int = 4
    t_start: float = 0.1
    t_end: float = 0.001
    quench: float = 16.0
    threads: int = 1

    name: ClassVar[str] = "swap-annealing"

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if not (self.sweeps >= 1 and self.restarts >= 1):
            raise InvalidProblem(f"sweeps, restarts: expected counts >= 1, got {self.sweeps} and {self.restarts}")
        if not self.quench >= 0:
            raise InvalidProblem(f"quench: expected a number >= 0, got {self.quench}")
        if not self.t_start >= self.t_end > 0:
            raise InvalidProblem(f"t_start, t_end: expected t_start >= t_end > 0, got {self.t_start} and {self.t_end}")

    def _prepare(self, problem: BinaryQuadratic) -> None:
        with _kernels.telling(f"{_kernels.kind(problem)} annealing"):
            few = SwapAnnealing(sweeps=1, restarts=1, quench=self.quench)
            few._search(_kernels.tiny(problem), Run(_kernels.tiny(problem), seed=0))

    def _search(self, problem: BinaryQuadratic, run: Run) -> Status | None:
        first = Search.begin(problem, run, sums=True)
        if first is None:
            return None
        # under a budget the time is better spent on annealings at other prices, unless units are few
        quench = 0.0 if problem.of_kind(Budget) and problem.n > _SMALL else self.quench
        # tabu search scans all fields at every step, which factors have to be multiplied out for
        fields, couplings = _kernels.view(problem), problem.couplings
        if isinstance(couplings, LowRank) and _kernels.factored(problem):
            quench /= 1 + couplings.F.shape[1] / 4

        def search(one: Run) -> None:
            begun = first if one is run else Search(problem, one, first.state.x, first.view)
            self._anneal(begun, fields, quench)

        return side_by_side(run, [search] * self.threads)

    def _anneal(self, search: Search, fields: _kernels.View, quench: float) -> None:
        """Annealings, each with its quench, until the run of this search ends."""
        problem, run = search.problem, search.run
        scale = search.mean_change()
        for annealing, sweeps in enumerate(self._lengths(problem.n, run, priced=bool(problem.of_kind(Budget)))):
            hotter = run.rng.random() if annealing else 0.0
            # where units are few a swap is no small change, and what is a hot start elsewhere is cold
            hot = max(self.t_start, _FEW / problem.n)
            start, end = hot * _HOTTEST[0] ** hotter, self.t_end * _HOTTEST[1] ** hotter
            search.reprice(float(run.rng.uniform(0.0, 1.1)))
            search.heat(start * scale, (end / start) ** (1 / max(1, sweeps - 1)), sweeps)
            while search.unfinished and not run.should_stop():
                search.anneal()
            search.offer()
            if run.should_stop():
                break
            self._quench(Search(problem, run, search.state.x, fields), int(quench * sweeps))
        search.offer()

    def _quench(self, search: Search, steps: int) -> None:
        """Tabu search from where an annealing ended; the next annealing goes on from there all the same."""
        while steps > 0 and not search.run.should_stop():
            steps -= search.tabu(tenures(search.problem), 2**62, steps)
        search.offer()

    def _lengths(self, n: int, run: Run, *, priced: bool) -> Iterator[int]:
        """Sweeps of each annealing."""
        if run.evaluation_limit is not None:
            return repeat(max(1, int(run.evaluations_left) // (n * self.restarts)))
        if run.time_limit is None:
            return repeat(self.sweeps, self.restarts)
        if priced:
            # every annealing tries another price of the budget, so many short ones go before few long ones
            return (_SHORTEST << (annealing // 3) for annealing in count())
        return self._filling(run, run.time_limit)

    def _filling(self, run: Run, limit: float) -> Iterator[int]:
        """Sweeps that fill the time: a few long annealings go deeper than many short ones, if not one alone."""
        began, done, sweeps = run.seconds, 0, _SHORTEST
        while True:
            yield sweeps
            done += sweeps
            left = run.remaining
            share = left if left < _LAST * limit else _SHARE * left
            sweeps = int(np.clip(share * done / max(run.seconds - began, 1e-6), _SHORTEST, _LONGEST))
