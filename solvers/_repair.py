"""The nearest feasible selection to an infeasible one, by greedy flips and swaps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, Budget, Cardinality, GroupBounds


def repair(problem: BinaryQuadratic, x: Any) -> Any:
    """A feasible selection near x (n,) bool, or None where greedy repair finds none.

    Counts first: the cheapest flips that bring every count into its bounds (always possible for a cardinality and
    one GroupBounds). Then budgets: the drops and swaps that cost the objective least per unit saved.
    """
    kept = np.array(x, dtype=bool)
    fields = problem.fields(kept)
    if not _fit_counts(problem, kept, fields) or not _fit_budgets(problem, kept, fields):
        return None
    return kept if problem.is_feasible(kept) else None


def _flip(problem: BinaryQuadratic, kept: Any, fields: Any, i: int) -> None:
    kept[i] = not kept[i]
    fields += problem.couplings.row(i) if kept[i] else -problem.couplings.row(i)


def partitions(problem: BinaryQuadratic) -> Iterator[tuple[Any, Any, Any, float]]:
    """(part of each unit (n,), low, high, weight) of everything that is counted; -1 is in no part.

    Groups weigh twice the cardinality, so that mending a group pays even where it upsets the total.
    """
    for constraint in problem.constraints:
        if isinstance(constraint, Cardinality):
            count = np.array([constraint.k])
            yield np.zeros(problem.n, dtype=np.int64), count, count, 1.0
        elif isinstance(constraint, GroupBounds):
            yield constraint.group, constraint.low, constraint.high, 2.0


def _counts(part: Any, kept: Any, parts: int) -> Any:
    return np.bincount(part[kept & (part >= 0)], minlength=parts)


def _gain_of_flips(problem: BinaryQuadratic, kept: Any) -> tuple[Any, float]:
    """(n,) by how much each flip lowers the weighted count violation, and that violation."""
    gain, total = np.zeros(problem.n), 0.0
    step = np.where(kept, -1, 1)
    for part, low, high, weight in partitions(problem):
        counts = _counts(part, kept, len(low))
        excess = np.maximum(counts - high, 0) + np.maximum(low - counts, 0)
        after = counts[part] + step
        left = np.maximum(after - high[part], 0) + np.maximum(low[part] - after, 0)
        gain += weight * np.where(part >= 0, excess[part] - left, 0)
        total += weight * float(excess.sum())
    return gain, total


def _fit_counts(problem: BinaryQuadratic, kept: Any, fields: Any) -> bool:
    while True:
        gain, total = _gain_of_flips(problem, kept)
        if total == 0:
            return True
        change = np.where(gain > 0, np.where(kept, -fields, fields), np.inf)
        i = int(change.argmin())
        if not np.isfinite(change[i]):
            return False
        _flip(problem, kept, fields, i)


def _may_drop(problem: BinaryQuadratic, kept: Any) -> Any:
    """(n,) kept units that no count needs."""
    free = kept.copy()
    for part, low, _, _ in partitions(problem):
        free &= (part < 0) | (_counts(part, kept, len(low)) > low)[part]
    return free


def _may_swap(problem: BinaryQuadratic, kept: Any, out: Any, into: Any) -> Any:
    """(out, into) pairs whose exchange leaves every count within its bounds."""
    allowed = np.ones((len(out), len(into)), dtype=bool)
    for part, low, high, _ in partitions(problem):
        counts = _counts(part, kept, len(low))
        spare = (part < 0) | (counts > low)[part]
        room = (part < 0) | (counts < high)[part]
        allowed &= (part[out, None] == part[None, into]) | (spare[out, None] & room[None, into])
    return allowed


def _unit_cost(budget: Budget, kept: Any) -> Any:
    """(n,) what each unit costs beside the kept ones."""
    return budget.cost if budget.pair is None else budget.cost + budget.pair @ kept.astype(np.float64)


def _fit_budgets(problem: BinaryQuadratic, kept: Any, fields: Any) -> bool:
    while over := [b for b in problem.of_kind(Budget) if not b.holds(kept)]:
        # the least sum of relative excesses, so that mending one budget is not undone by another
        cost = sum(_unit_cost(b, kept) / b.scale for b in over)
        move = _cheapest_drop(problem, kept, fields, cost) or _cheapest_swap(problem, kept, fields, cost)
        if not move:
            return False
        for i in move:
            _flip(problem, kept, fields, i)
    return True


def _cheapest_drop(problem: BinaryQuadratic, kept: Any, fields: Any, cost: Any) -> tuple[int, ...]:
    may = _may_drop(problem, kept) & (cost > 0)
    if not may.any():
        return ()
    price = np.where(may, -fields / np.where(may, cost, 1.0), np.inf)
    return (int(price.argmin()),)


def _cheapest_swap(problem: BinaryQuadratic, kept: Any, fields: Any, cost: Any) -> tuple[int, ...]:
    out, into = np.flatnonzero(kept), np.flatnonzero(~kept)
    saved = cost[out, None] - cost[None, into]
    may = _may_swap(problem, kept, out, into) & (saved > 0) & _within_others(problem, kept, out, into)
    if not may.any():
        return ()
    change = fields[None, into] - fields[out, None]
    # a swap that also improves the objective is judged by how much it saves
    price = np.where(may, np.maximum(change, 0) / np.where(may, saved, 1.0) - 1e-12 * saved, np.inf)
    i, j = np.unravel_index(int(price.argmin()), price.shape)
    return int(out[i]), int(into[j])


def _within_others(problem: BinaryQuadratic, kept: Any, out: Any, into: Any) -> Any:
    """(out, into) swaps that break no budget which holds now."""
    allowed = np.ones((len(out), len(into)), dtype=bool)
    for budget in problem.of_kind(Budget):
        if budget.holds(kept):
            cost = _unit_cost(budget, kept)
            allowed &= budget.spent(kept) + cost[None, into] - cost[out, None] <= budget.limit
    return allowed
