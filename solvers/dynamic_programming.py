r"""One level for each layer, proved best: dynamic programming over non-dominated (cost, error) of a chain of layers.

minimise    sum_l error[l][s_l]    subject to    sum_l cost[l][s_l] + sum_l pair[l, l+1][s_l, s_(l+1)] <= budget
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import InvalidProblem, LevelChoice
from prunesolve.problems._arrays import Indices

from ._base import Run, Solver, Status
from ._front import nondominated
from ._kernels import telling
from ._level_chain import Chain, Hulls, Labels, below, nearby, up_to

_METHODS = ("exact", "lagrangian")
_ROUNDING = 1e-12  # relative; what sums of the same numbers may differ by


@dataclass(frozen=True)
class DynamicProgramming(Solver):
    r"""Choose levels by non-dominated lists of (cost, error), layer after layer, for one budget or for all of them.

    Real-valued costs are taken as they are. A partial choice (c, e) goes where e + H(B - c) reaches the incumbent; H is
    the convex front of the layers to come, which is the Lagrangian bound for every multiplier and budget at once. For
    the front, partial choices go that no multiplier brings below the corners of the supported points. The largest
    term as `total` needs no bounds. An evaluation is the list of one layer and state.

    Takes separable costs and those of neighbours (l, l + 1), which parameters and MACs of a plain chain are.

    Parameters
    ----------
    front : bool
        Find the whole front of (error, spent) up to the budget, one choice a point: `Result.front`.
    method : {"exact", "lagrangian"}
        "lagrangian" stops at the supported points: the cheaper one next to the budget, improved by the best single
        changes that fit, with the Lagrangian bound; as the front, the supported points alone. The largest term is
        solved exactly by both.
    bins : int, optional
        Round costs up to this many parts of what the budget leaves free, which keeps the answer feasible and bounds
        work and memory; rounded down they give a bound.
    label_limit : int
        Most partial choices held (8 bytes each, 40 in the last layer); past them the incumbent and its bound stand.

    Reference
    ---------
    Sinha, Zoltners, "The multiple-choice knapsack problem", 1979; with convex completion bounds and pairs of
    neighbours, our reconstruction. Rounded costs: Frantar, Alistarh, "SPDY", ICML 2022.

    Examples
    --------
    >>> choice = LevelChoice([[4.0, 1.0, 0.0], [3.0, 0.0]], [[1, 2, 4], [1, 3]], budget=5)
    >>> result = DynamicProgramming(front=True).solve(choice)
    >>> result.solution, result.objective, str(result.status)
    (array([1, 1]), 1.0, 'OPTIMAL')
    >>> result.front.objectives.tolist()
    [[1.0, 5.0], [4.0, 3.0], [7.0, 2.0]]
    """

    front: bool = False
    method: str = "exact"
    bins: int | None = None
    label_limit: int = 30_000_000

    name: ClassVar[str] = "dynamic-programming"
    accepts: ClassVar[type[Any]] = LevelChoice

    def __post_init__(self) -> None:
        if not isinstance(self.front, bool):
            raise InvalidProblem(f"front: expected True or False, got {self.front!r}")
        if self.method not in _METHODS:
            raise InvalidProblem(f"method: expected one of {', '.join(_METHODS)}, got {self.method!r}")
        for name, value in (("bins", self.bins), ("label_limit", self.label_limit)):
            if value is None and name == "bins":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidProblem(f"{name}: expected a whole number >= 1, got {value!r}")
        if self.bins is not None and self.method == "lagrangian":
            raise InvalidProblem("bins: the lagrangian method rounds nothing; leave bins out or take method='exact'")

    def refuse(self, problem: Any) -> str | None:
        """Pairs of layers that do not follow each other are for searches."""
        reason = super().refuse(problem)
        if reason is not None or problem.is_chain:
            return reason
        low, high = next((a, b) for a, b in problem.pair_cost if b != a + 1)
        names = [f"{i}" if problem.labels is None else f"{i} ({problem.labels[i]})" for i in (low, high)]
        return (
            f"{self.name} takes pair costs of neighbouring layers (l, l + 1), got one of layers {' and '.join(names)}; "
            "level-switch and coefficient-search take any"
        )

    def _prepare(self, problem: LevelChoice) -> None:
        _compile()

    def _search(self, problem: LevelChoice, run: Run) -> Status | None:
        status = self._searched(problem, run)
        if status is Status.OPTIMAL:
            run.prove(run.objective)
        return status

    def _searched(self, problem: LevelChoice, run: Run) -> Status | None:
        run.offer(problem.cheapest, bound=sum(float(error.min()) for error in problem.error))
        search = _Search(problem, run, self.front, self.label_limit)
        search.offer_front(problem.cheapest[None], "the cheapest choice")
        if problem.total == "max":
            return search.peaks() if self.front else search.peak()
        chain = Chain.of(problem)
        free = search.limit - sum(float(step.min()) for step in chain.step)
        # without a part to spare every term is at its least, which needs no rounding
        if self.bins is not None and free > 0.0:
            return search.rounded(chain, free / self.bins, self.bins)
        hulls = search.hulls(chain, search.limit)
        if hulls is None:
            return None
        run.prove(hulls.bound(search.limit))
        if self.method == "lagrangian":
            return search.filled()
        proved = search.all_budgets(hulls, search.limit) if self.front else search.exact(hulls)
        return Status.OPTIMAL if proved else None


@cache
def _compile() -> None:
    """Run every kernel once."""
    tiny = LevelChoice([np.array([1.0, 0.0])] * 2, [np.array([0.0, 1.0])] * 2, 1.0)
    with telling("level front"):
        for front in (False, True):
            DynamicProgramming(front)._search(tiny, Run(tiny, seed=0))


class _Search:
    """One run over one problem.

    Parameters
    ----------
    problem : LevelChoice
        On a chain.
    run : Run
        Its run.
    front : bool
        Whether fronts are offered.
    label_limit : int
        As for the solver.
    """

    def __init__(self, problem: LevelChoice, run: Run, front: bool, label_limit: int) -> None:
        self.problem, self.run, self.front, self.label_limit = problem, run, front, label_limit
        # half of what rounding may add; the other half is for the library's own sums
        self.limit = problem.budget + 0.5 * problem.slack
        self.rows = problem.cheapest[None]

    def go_on(self) -> bool:
        """Count one more list, where there is time for it."""
        if self.run.should_stop():
            return False
        self.run.count()
        return True

    def offer_front(self, rows: Any, what: str) -> None:
        """Put forward what no other dominates of these choices (m, L) and earlier ones, by the problem's figures."""
        if not self.front:
            return
        rows = np.concatenate([self.rows, rows])
        told = np.stack([self.problem.value(rows), self.problem.spent(rows)], axis=1)
        stays = np.flatnonzero(nondominated(told) & (told[:, 1] <= self.problem.budget + self.problem.slack))
        self.rows = rows[stays[np.argsort(told[stays, 0])]]
        self.run.offer_front(self.rows)
        self.run.details |= {"front": what, "objectives": ["error", "spent"]}
        self.run.offer(self.rows[0])

    def hulls(self, chain: Chain, budget: float) -> Hulls | None:
        """The hulls of a chain, whose supported points within a budget are offered; None where there was no time."""
        hulls = Hulls.over(chain, self.go_on)
        if hulls is not None and len(supported := hulls.supported(budget)):
            self.run.details["supported"] = len(supported)
            self.run.offer(supported[-1])
            self.offer_front(supported, "supported points")
        return hulls

    def exact(self, hulls: Hulls) -> bool:
        """The least error within the budget; whether it is proved."""
        return self.least(hulls, self.limit, self.run.offer, self.run.prove) is not None

    def least(
        self, hulls: Hulls, budget: float, offer: Callable[[Indices], float], prove: Callable[[float], None]
    ) -> float | None:
        """The least error of a chain within a budget, None where the sweep was cut short.

        Better choices are offered, which gives their error, and bounds proved on the way.
        """
        least, labels = self.run.objective, Labels(hulls.chain, self.label_limit)
        while labels.layer < hulls.chain.n:
            if not self.extended(labels, below(hulls, budget, least)):
                return None
            done = labels.completed(hulls, budget)
            if done.levels is not None and done.error < least:
                least = min(least, offer(done.levels))
            prove(min(least, done.bound))
        return least

    def all_budgets(self, hulls: Hulls, budget: float) -> bool:
        """Every point of the front of a chain within a budget; whether none is missing."""
        labels = Labels(hulls.chain, self.label_limit)
        while labels.layer < hulls.chain.n:
            if not self.extended(labels, nearby(hulls, budget)):
                return False
        self.offer_front(np.concatenate([hulls.supported(budget), labels.every()]), "proved")
        return True

    def extended(self, labels: Labels, limits: Callable[[int, int], Any]) -> bool:
        """Whether one more layer was done."""
        done = labels.extend(limits, self.go_on)
        self.run.details["labels"] = self.run.details.get("labels", 0) + labels.added
        if labels.full:
            self.run.details["label_limit"] = "reached"
        return done

    def filled(self) -> Status:
        """The supported point next to the budget, improved by single changes."""
        self.run.offer(_filled(self.problem, self.run.best))
        return Status.FINISHED if self.front else self.standing()

    def standing(self) -> Status:
        """Whether the bound proves the incumbent."""
        objective, bound = self.run.objective, self.run.bound
        met = bound is not None and objective - bound <= _ROUNDING * max(abs(objective), abs(bound))
        return Status.OPTIMAL if met else Status.FINISHED

    def rounded(self, chain: Chain, width: float, bins: int) -> Status | None:
        """Costs in parts of a width, rounded up, which what is found keeps, then down, which bounds every choice."""
        up = self.hulls(chain.in_parts(width, np.ceil), bins)
        if up is None:
            return None
        done = self.least(up, bins, self.run.offer, lambda bound: None) is not None
        if done and self.front and self.all_budgets(up, bins):
            self.run.details["front"] = "proved for costs rounded up"
        down = Hulls.over(chain.in_parts(width, np.floor), self.go_on)
        if down is None:
            return None
        self.run.prove(min(self.run.objective, down.bound(bins)))
        self.least(down, bins, self.problem.value, self.run.prove)
        if self.run.should_stop():
            return None
        return Status.FINISHED if self.front else self.standing()

    def peak(self) -> Status | None:
        """The least error of which no term passes the budget: a term above it costs 1 of nothing to spend."""
        chain = Chain.of(self.problem)
        forbidden = chain._replace(step=tuple((step > self.limit).astype(np.float64) for step in chain.step))
        return None if self.hulls(forbidden, 0.0) is None else Status.OPTIMAL

    def peaks(self) -> Status | None:
        """Every point of the front of error and largest term."""
        labels = Labels(Chain.of(self.problem), self.label_limit, peak=True)
        while labels.layer < self.problem.n:
            if not self.extended(labels, lambda layer, state: up_to(self.limit)):
                return None
        self.offer_front(labels.every(), "proved")
        return Status.OPTIMAL


def _filled(problem: LevelChoice, levels: Indices) -> Indices:
    """The single change that lowers the error most and fits, until there is none."""
    layer = np.repeat(np.arange(problem.n), problem.sizes)
    level = np.concatenate([np.arange(size) for size in problem.sizes])
    while True:
        rows = np.repeat(levels[None], len(layer), axis=0)
        rows[np.arange(len(layer)), layer] = level
        errors = np.where(problem.is_feasible(rows), problem.value(rows), np.inf)
        best = int(errors.argmin())
        if not errors[best] < problem.value(levels):
            return levels
        levels = rows[best]
