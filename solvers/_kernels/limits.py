"""The constraints as the kernels see them: counts in groups and spent budgets, kept up to date move by move.

Cardinality and every GroupBounds are the same thing, a partition of the units with bounds on each part's count.
Partition 0 is always "all units". Units of no group form a last part without bounds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit


class Limits(NamedTuple):
    """What must hold: p partitions with g parts in all, b budgets."""

    part: Any  # (p, n) part of each unit
    low: Any  # (g,)
    high: Any  # (g,)
    start: Any  # (g,) where a part begins in `order`
    size: Any  # (g,) units in a part
    cost: Any  # (b, n)
    limit: Any  # (b,)
    indptr: Any  # (b, n + 1) pair costs as compressed rows
    indices: Any
    data: Any


class State(NamedTuple):
    """Where a search stands; every kernel moves it only from feasible to feasible."""

    x: Any  # (n,) bool
    f: Any  # fields, see couplings
    count: Any  # (g,) units kept in each part
    order: Any  # (p, n) units by part, the kept ones of a part first
    place: Any  # (p, n) where each unit stands in `order`
    spent: Any  # (b,)
    load: Any  # (b, n) pair cost of a unit with all kept ones


@njit(inline="always")
def can_flip(limits, state, i):
    """Whether x_i may change alone."""
    step = -1 if state.x[i] else 1
    for p in range(limits.part.shape[0]):
        g = limits.part[p, i]
        kept = state.count[g] + step
        if kept < limits.low[g] or kept > limits.high[g]:
            return False
    if step > 0:
        for b in range(limits.limit.size):
            if state.spent[b] + limits.cost[b, i] + state.load[b, i] > limits.limit[b]:
                return False
    return True


@njit(inline="always")
def can_swap(limits, state, i, j):
    """Whether kept i may be replaced by dropped j."""
    for p in range(limits.part.shape[0]):
        leaves, enters = limits.part[p, i], limits.part[p, j]
        if leaves != enters and (
            state.count[leaves] <= limits.low[leaves] or state.count[enters] >= limits.high[enters]
        ):
            return False
    for b in range(limits.limit.size):
        change = limits.cost[b, j] + state.load[b, j] - limits.cost[b, i] - state.load[b, i]
        after = state.spent[b] + change
        # without the cost of the pair itself the move looks dearer than it is: look that up only where it matters
        if after > limits.limit[b] and after - pair_cost(limits, b, i, j) > limits.limit[b]:
            return False
    return True


@njit
def pair_cost(limits, b, i, j):
    """q_ij of budget b."""
    first, end = limits.indptr[b, i], limits.indptr[b, i + 1]
    last = end
    while first < last:
        middle = (first + last) >> 1
        if limits.indices[middle] < j:
            first = middle + 1
        else:
            last = middle
    if first < end and limits.indices[first] == j:
        return limits.data[first]
    return 0.0


@njit(forceinline=True)
def move(limits, state, i):
    """Change x_i and all that is counted and spent; the fields are the caller's."""
    step = -1 if state.x[i] else 1
    for p in range(limits.part.shape[0]):
        g = limits.part[p, i]
        if step < 0:
            state.count[g] -= 1
        _exchange(state.order[p], state.place[p], i, limits.start[g] + state.count[g])
        if step > 0:
            state.count[g] += 1
    for b in range(limits.limit.size):
        state.spent[b] += step * (limits.cost[b, i] + state.load[b, i])
        for at in range(limits.indptr[b, i], limits.indptr[b, i + 1]):
            state.load[b, limits.indices[at]] += step * limits.data[at]
    state.x[i] = step > 0


@njit(forceinline=True)
def _exchange(order, place, i, target):
    other, origin = order[target], place[i]
    order[target], order[origin] = i, other
    place[i], place[other] = target, origin


@njit
def recount(limits, state):
    """Counts, order and spending from x."""
    n = state.x.size
    state.count[:] = 0
    for p in range(limits.part.shape[0]):
        for wanted in (True, False):
            for i in range(n):
                if state.x[i] == wanted:
                    g = limits.part[p, i]
                    _place(state.order[p], state.place[p], i, limits.start[g] + state.count[g])
                    state.count[g] += 1
        for i in range(n):
            if not state.x[i]:
                state.count[limits.part[p, i]] -= 1
    respend(limits, state)


@njit(inline="always")
def _place(order, place, i, target):
    order[target] = i
    place[i] = target


@njit
def respend(limits, state):
    """Spending and pair loads from x."""
    for b in range(limits.limit.size):
        state.load[b, :] = 0.0
        spent, paired = 0.0, 0.0
        for i in range(state.x.size):
            if state.x[i]:
                spent += limits.cost[b, i]
                for at in range(limits.indptr[b, i], limits.indptr[b, i + 1]):
                    state.load[b, limits.indices[at]] += limits.data[at]
        for i in range(state.x.size):
            if state.x[i]:
                paired += state.load[b, i]
        state.spent[b] = spent + 0.5 * paired
