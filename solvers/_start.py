"""A feasible selection to begin with, under any mix of constraints; numpy only.

Construction is exact for a cardinality with one GroupBounds (a laminar family). Overlapping bounds and bilinear
budgets may leave it stuck; a tabu walk on the violation then repairs what it built.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, Budget, GroupBounds


class Ledger:
    """A selection with its fields, counts and spending, kept up to date flip by flip.

    Attributes
    ----------
    x : (n,) bool
    h : (n,) float
        Local fields: the change of the value when a dropped unit is added, minus that when a kept one is dropped.
    parts : list of ((n,) part of each unit, (g,) low, (g,) high, (g,) count)
        One partition for the cardinality, one for each GroupBounds; units of no group form a last part.
    budgets : list of Budget
    spent : list of float
    load : list of (n,) pair cost of each unit with all kept ones
    """

    def __init__(self, problem: BinaryQuadratic, x: Any) -> None:
        self.problem = problem
        self.x = np.array(x, dtype=bool)
        self.h = problem.fields(self.x)
        self.parts = [
            (part, low, high, np.bincount(part[self.x], minlength=len(low))) for part, low, high in _parts(problem)
        ]
        self.budgets: list[Budget] = [budget.capped for budget in problem.of_kind(Budget)]
        self.spent = [float(b.spent(self.x)) for b in self.budgets]
        self.load = [np.zeros(problem.n) if b.pair is None else b.pair @ self.x.astype(float) for b in self.budgets]

    def flip(self, i: int) -> None:
        """Change x_i."""
        step = -1 if self.x[i] else 1
        for part, _, _, count in self.parts:
            count[part[i]] += step
        for b, budget in enumerate(self.budgets):
            self.spent[b] += step * (budget.cost[i] + self.load[b][i])
            if budget.pair is not None:
                span = slice(budget.pair.indptr[i], budget.pair.indptr[i + 1])
                self.load[b][budget.pair.indices[span]] += step * budget.pair.data[span]
        self.h += step * self.problem.couplings.row(i)
        self.x[i] = step > 0

    def change(self) -> Any:
        """(n,) change of the value if each unit flipped."""
        return np.where(self.x, -self.h, self.h)

    @property
    def feasible(self) -> bool:
        """Whether every constraint holds."""
        counted = all(((low <= count) & (count <= high)).all() for _, low, high, count in self.parts)
        return counted and all(_within(b, spent) for b, spent in zip(self.budgets, self.spent, strict=True))

    def wanting(self) -> Any:
        """(n,) units of a part that has too few, None where no part has."""
        return _any_of([(count < low)[part] for part, low, _, count in self.parts if (count < low).any()])

    def surplus(self) -> Any:
        """(n,) units of a part that has too many or that a broken budget pays for, None where nothing exceeds."""
        crowded = [(count > high)[part] for part, _, high, count in self.parts if (count > high).any()]
        dear = [
            budget.cost + self.load[b] > 0
            for b, budget in enumerate(self.budgets)
            if not _within(budget, self.spent[b])
        ]
        return _any_of(crowded + dear)

    def addable(self) -> Any:
        """(n,) dropped units whose addition breaks no bound and leaves room for what must still come."""
        may = ~self.x
        room = self.parts[0][2][0] - self.parts[0][3][0]
        for part, low, high, count in self.parts:
            may &= (count < high)[part]
            missing = np.maximum(low - count, 0)
            if missing.sum() >= room:
                may &= (missing > 0)[part]
        for b in range(len(self.budgets)):
            may &= self._affordable(b)
        return may

    def droppable(self) -> Any:
        """(n,) kept units whose removal breaks no lower bound and leaves enough that can still go."""
        may = self.x.copy()
        room = self.parts[0][3][0] - self.parts[0][1][0]
        for part, low, high, count in self.parts:
            may &= (count > low)[part]
            excess = np.maximum(count - high, 0)
            if excess.sum() >= room:
                may &= (excess > 0)[part]
        return may

    def _affordable(self, b: int) -> Any:
        """(n,) units that budget b can pay for together with the cheapest that must still come."""
        price = self.budgets[b].cost + self.load[b]
        dearest = np.zeros(self.problem.n)
        reserved = 0.0
        for part, low, _, count in self.parts:
            missing = np.maximum(low - count, 0)
            if missing.any():
                total, last = _cheapest(price, part, missing, ~self.x)
                if total > reserved:
                    reserved, dearest = total, last[part]
        # a unit of a part that still wants units takes the place of the dearest reserved for it
        extra = np.maximum(price - dearest, 0.0)
        return _within(self.budgets[b], self.spent[b] + reserved + extra)

    def pull(self) -> Any:
        """(n,) change of the total violation if each unit flipped; a budget counts in units of its mean cost."""
        step = np.where(self.x, -1, 1)
        total = np.zeros(self.problem.n)
        for part, low, high, count in self.parts:
            now = _outside(count, low, high)
            up, down = _outside(count + 1, low, high) - now, _outside(count - 1, low, high) - now
            total += np.where(self.x, down[part], up[part])
        for b, budget in enumerate(self.budgets):
            after = self.spent[b] + step * (budget.cost + self.load[b])
            unit = max(float(budget.cost.mean()), 1e-9 * budget.scale, math.ulp(0.0))
            total += (np.maximum(after - budget.limit, 0.0) - max(self.spent[b] - budget.limit, 0.0)) / unit
        return total


def _parts(problem: BinaryQuadratic) -> list[tuple[Any, Any, Any]]:
    n = problem.n
    least, most = (0, n) if problem.k is None else (problem.k, problem.k)
    parts = [(np.zeros(n, dtype=np.int64), np.array([least]), np.array([most]))]
    for bounds in problem.of_kind(GroupBounds):
        part = np.where(bounds.group < 0, len(bounds.low), bounds.group)
        parts.append((part, np.append(bounds.low, 0), np.append(bounds.high, n)))
    return parts


def _within(budget: Budget, spent: Any) -> Any:
    return spent <= budget.limit + 0.5e-9 * budget.scale


def _outside(count: Any, low: Any, high: Any) -> Any:
    return np.maximum(low - count, 0) + np.maximum(count - high, 0)


def _any_of(masks: list[Any]) -> Any:
    return np.logical_or.reduce(masks) if masks else None


def _cheapest(price: Any, part: Any, missing: Any, free: Any) -> tuple[float, Any]:
    """What the cheapest free units cost that fill each part, and the (g,) price of the dearest among them."""
    order = np.lexsort((price, part))
    order = order[free[order]]
    sizes = np.bincount(part[order], minlength=len(missing))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = order[rank < missing[part[order]]]
    last = np.zeros(len(missing))
    np.maximum.at(last, part[taken], price[taken])
    return float(price[taken].sum()), last


def forward(ledger: Ledger, go_on: Callable[[], bool]) -> None:
    """Add the unit that changes the value least until the lower bounds are met and no addition pays."""
    while go_on():
        may, wanting = ledger.addable(), ledger.wanting()
        if wanting is not None and (may & wanting).any():
            may &= wanting if ledger.h[may].min() >= 0 else True
        elif (may & (ledger.h < 0)).any():
            may &= ledger.h < 0
        else:
            return
        ledger.flip(int(np.argmin(np.where(may, ledger.h, np.inf))))


def backward(ledger: Ledger, go_on: Callable[[], bool]) -> None:
    """Drop the unit that changes the value least until the upper bounds are met and no removal pays."""
    while go_on():
        may, surplus = ledger.droppable(), ledger.surplus()
        if surplus is not None and (may & surplus).any():
            may &= surplus if ledger.h[may].max() <= 0 else True
        elif (may & (ledger.h > 0)).any():
            may &= ledger.h > 0
        else:
            return
        ledger.flip(int(np.argmax(np.where(may, ledger.h, -np.inf))))


def repair(ledger: Ledger, rng: np.random.Generator, go_on: Callable[[], bool]) -> None:
    """Tabu walk on the violation: flip what lowers it most, ties by the value, until every constraint holds."""
    n = ledger.problem.n
    until = np.zeros(n, dtype=np.int64)
    for step in range(200 + 20 * n):
        if ledger.feasible or not go_on():
            return
        pull = np.where(until > step, np.inf, ledger.pull())
        near = pull <= pull.min() + 1e-9
        i = int(np.argmin(np.where(near, ledger.change(), np.inf)))
        ledger.flip(i)
        until[i] = step + 1 + rng.integers(1, max(2, min(12, n // 2)))


def feasible_start(
    problem: BinaryQuadratic, rng: np.random.Generator, should_stop: Callable[[], bool] = lambda: False
) -> Any:
    """A feasible selection (n,), greedy where that works and repaired where not; None when none is found.

    Parameters
    ----------
    problem : BinaryQuadratic
        Whose constraints to meet; the value decides where they leave a choice.
    rng : numpy.random.Generator
        Used by the repair alone.
    should_stop : callable
        Asked at every step.

    Returns
    -------
    (n,) bool or None
        A feasible selection.

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0], constraints=[Cardinality(2)])
    >>> feasible_start(problem, np.random.default_rng(0))
    array([False,  True,  True])
    """

    def go_on() -> bool:
        return not should_stop()

    greedy = []
    for build, full in ((forward, False), (backward, True)):
        ledger = Ledger(problem, np.full(problem.n, full))
        build(ledger, go_on)
        repair(ledger, rng, go_on)
        if problem.is_feasible(ledger.x):
            greedy.append(ledger.x)
        if should_stop():
            break
    if greedy:
        return min(greedy, key=problem.value)
    for attempt in range(1, 8):
        if should_stop():
            return None
        ledger = Ledger(problem, rng.random(problem.n) < 0.5 / attempt)
        repair(ledger, rng, go_on)
        if problem.is_feasible(ledger.x):
            return ledger.x
    return None
