r"""Constraints that contradict each other are found when the problem is built, not when a search gives up.

Cardinality and one GroupBounds form a laminar family, where greedy is exact: the cheapest selection takes the
lower bounds first, then the cheapest units that the upper bounds still allow. Several overlapping GroupBounds or
bilinear budgets are only checked one at a time; the search then decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._arrays import Bits, Floats, Indices
from ._errors import InvalidProblem
from .constraints import Budget, Cardinality, Constraint, GroupBounds


def check_together(constraints: Sequence[Constraint], n: int) -> None:
    """Raise InvalidProblem where the constraints provably admit no selection, with the nearest that can be met."""
    k = next((c.k for c in constraints if isinstance(c, Cardinality)), None)
    bounds = [c for c in constraints if isinstance(c, GroupBounds)]
    if k is not None:
        for group in bounds:
            _check_count(k, group, n)
    for budget in constraints:
        if isinstance(budget, Budget):
            _check_budget(budget, k, bounds, n)


def _check_count(k: int, bounds: GroupBounds, n: int) -> None:
    free = n - int(bounds.sizes.sum())
    least = int(np.maximum(bounds.low, 0).sum())
    most = int(np.minimum(bounds.high, bounds.sizes).sum()) + free
    if k < least:
        raise InvalidProblem(f"Cardinality k = {k} contradicts GroupBounds; the smallest k that can be met is {least}")
    if k > most:
        raise InvalidProblem(f"Cardinality k = {k} contradicts GroupBounds; the largest k that can be met is {most}")


def _check_budget(budget: Budget, k: int | None, bounds: Sequence[GroupBounds], n: int) -> None:
    """The cheapest selection under the cardinality and each one GroupBounds is a lower bound on what must be spent."""
    least = max((cheapest(budget.cost, k, b, n) for b in [*bounds, None]), key=lambda found: found[0])[0]
    if least > budget.limit + 1e-9 * budget.scale:
        raise InvalidProblem(f"Budget: limit {budget.limit:.17g} cannot be met; the smallest that can is {least:.17g}")


def cheapest(cost: Floats, k: int | None, bounds: GroupBounds | None, n: int) -> tuple[float, Bits]:
    """The selection of least linear cost that takes k units within one GroupBounds."""
    taken = np.zeros(n, dtype=bool)
    order = np.argsort(cost, kind="stable")
    if bounds is not None and not len(bounds.low):
        bounds = None
    low = np.zeros(1, dtype=np.int64) if bounds is None else np.maximum(bounds.low, 0)
    group = np.full(n, -1) if bounds is None else bounds.group
    rank = _rank_in_group(group, cost)
    taken[(group >= 0) & (rank < low[group])] = True
    if k is not None and taken.sum() < k:
        high = np.full(1, n) if bounds is None else bounds.high
        allowed = (group < 0) | (rank < high[group])
        rest = order[(allowed & ~taken)[order]][: k - int(taken.sum())]
        taken[rest] = True
    return float(cost[taken].sum()), taken


def _rank_in_group(group: Indices, cost: Floats) -> Indices:
    """(n,) place of each unit among its group's units, cheapest first."""
    by_group = np.lexsort((cost, group))
    ordered = group[by_group]
    rank = np.empty(len(group), dtype=np.int64)
    rank[by_group] = np.arange(len(group)) - np.searchsorted(ordered, ordered)
    return rank
