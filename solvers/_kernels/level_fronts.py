"""Fronts of (cost, error) along a chain of layers: convex ones of what is to come, exact ones of what was chosen.

A list holds points of ascending cost and strictly descending error. An arc leads from a state before a layer, by one
of its levels, to a state after it; a state is the level of the last layer where the next one's cost depends on it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit


class Arcs(NamedTuple):
    """q arcs that meet in one state: whose list each continues, by which level, at which cost and error."""

    state: Any  # (q,) int64
    level: Any  # (q,) int64
    cost: Any  # (q,)
    error: Any  # (q,)


class Points(NamedTuple):
    """The lists of all states, one after another: state s owns start[s] .. start[s + 1] - 1."""

    cost: Any  # (m,)
    error: Any  # (m,)
    before: Any  # (m,) int64 point that this one continues, -1 for none
    level: Any  # (m,) int64 by which level
    start: Any  # (states + 1,) int64


class Limit(NamedTuple):
    """The largest error worth keeping at each cost: top - slope (cost - at) from `since` on, nothing past `end`."""

    since: Any  # (p,) ascending, the first -inf
    at: Any  # (p,)
    top: Any  # (p,)
    slope: Any  # (p,)
    end: float


@njit(cache=True, nogil=True)
def hull(points, arcs):
    """The lower convex hull of the lists that arcs lead to: (cost, error, before, level)."""
    found = _nothing()
    for a in range(arcs.state.size):
        first, last = points.start[arcs.state[a]], points.start[arcs.state[a] + 1]
        every = np.arange(first, last)
        found = _convex(_joined(found, points, every, arcs.cost[a], arcs.error[a], arcs.level[a], False))
    return found


@njit(cache=True, nogil=True)
def extend(points, arcs, limit, peak):
    """The non-dominated points that arcs lead to from the lists, within a limit: (cost, error, before, level).

    Costs are added, or the largest counts where `peak`.
    """
    found = _nothing()
    for a in range(arcs.state.size):
        first, last = points.start[arcs.state[a]], points.start[arcs.state[a] + 1]
        worth = _within(points, first, last, arcs.cost[a], arcs.error[a], limit, peak)
        found = _joined(found, points, worth, arcs.cost[a], arcs.error[a], arcs.level[a], peak)
    return found


@njit
def _nothing():
    return np.empty(0), np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64)


@njit
def _total(one, other, peak):
    return max(one, other) if peak else one + other


@njit
def _within(points, first, last, cost, error, limit, peak):
    """Points of a list that stay within the limit once an arc's cost and error are added."""
    worth = np.empty(last - first, np.int64)
    m, piece, pieces = 0, 0, limit.since.size
    for i in range(first, last):
        c, e = _total(points.cost[i], cost, peak), points.error[i] + error
        if c > limit.end:
            break
        while piece + 1 < pieces and limit.since[piece + 1] <= c:
            piece += 1
        if e < limit.top[piece] - limit.slope[piece] * (c - limit.at[piece]):
            worth[m] = i
            m += 1
    return worth[:m]


@njit
def _joined(found, points, chosen, cost, error, level, peak):
    """Two sorted lists in one, without what another point of lower or equal cost and error dominates."""
    costs, errors, before, levels = found
    n, m = costs.size, chosen.size
    if m == 0:
        return found
    c, e = np.empty(n + m), np.empty(n + m)
    b, v = np.empty(n + m, np.int64), np.empty(n + m, np.int64)
    i, j, k, its, loss, least = 0, 0, 0, 0.0, 0.0, np.inf
    while i < n or j < m:
        if j < m:
            its, loss = _total(points.cost[chosen[j]], cost, peak), points.error[chosen[j]] + error
        old = j == m or (i < n and (costs[i] < its or (costs[i] == its and errors[i] <= loss)))
        at, lost = (costs[i], errors[i]) if old else (its, loss)
        if lost < least:
            # of equal costs the last one, of least error, stays
            k -= 1 if k > 0 and c[k - 1] == at else 0
            c[k], e[k], least = at, lost, lost
            b[k], v[k] = (before[i], levels[i]) if old else (chosen[j], level)
            k += 1
        if old:
            i += 1
        else:
            j += 1
    return c[:k], e[:k], b[:k], v[:k]


@njit
def _convex(found):
    """The points of a list on its lower convex hull."""
    c, e, b, v = found
    k = 0
    for i in range(c.size):
        while k >= 2 and (c[k - 1] - c[k - 2]) * (e[i] - e[k - 2]) <= (c[i] - c[k - 2]) * (e[k - 1] - e[k - 2]):
            k -= 1
        c[k], e[k], b[k], v[k] = c[i], e[i], b[i], v[i]
        k += 1
    return c[:k], e[:k], b[:k], v[:k]


@njit(cache=True, nogil=True)
def completed(points, hulls, budget):
    """The best solution that a point and a hull's vertex make, and how little error any can lead to.

    (error, point, vertex, bound); a point and a vertex of -1 where nothing fits the budget.
    """
    best, of_point, of_vertex, bound = np.inf, -1, -1, np.inf
    for s in range(points.start.size - 1):
        first, vertex = hulls.start[s], hulls.start[s + 1] - 1
        for i in range(points.start[s], points.start[s + 1]):
            left = budget - points.cost[i]
            while vertex >= first and hulls.cost[vertex] > left:
                vertex -= 1
            if vertex < first:
                break
            value = points.error[i] + hulls.error[vertex]
            if value < best:
                best, of_point, of_vertex = value, i, vertex
            if vertex + 1 < hulls.start[s + 1]:
                ahead, step = hulls.cost[vertex + 1], hulls.cost[vertex + 1] - hulls.cost[vertex]
                drop = hulls.error[vertex] - hulls.error[vertex + 1]
                value = points.error[i] + hulls.error[vertex + 1] + drop * ((ahead - left) / step)
            bound = min(bound, value)
    return best, of_point, of_vertex, bound


@njit(cache=True, nogil=True)
def envelope(cost, error, slope, top):
    """Where some line e = top_k - slope_k c, less what a hull of completions adds at that slope, still has room.

    Slopes descend; gives the upper envelope as (since, at, top, slope).
    """
    since, lines, m, vertex = np.empty(slope.size), np.empty(slope.size, np.int64), 0, 0
    room = np.empty(slope.size)
    for k in range(slope.size):
        while vertex + 1 < cost.size and (
            error[vertex + 1] + slope[k] * cost[vertex + 1] <= error[vertex] + slope[k] * cost[vertex]
        ):
            vertex += 1
        room[k] = top[k] - (error[vertex] + slope[k] * cost[vertex])
        # a flatter line overtakes the last one where they meet, which may leave nothing of it
        meets = -np.inf
        while m > 0:
            last = lines[m - 1]
            steeper, above = slope[last] - slope[k], room[last] - room[k]
            meets = above / steeper if steeper > 0.0 else (np.inf if above >= 0.0 else -np.inf)
            if meets > since[m - 1]:
                break
            m -= 1
            meets = -np.inf
        if meets < np.inf:
            lines[m], since[m] = k, meets
            m += 1
    chosen, since = lines[:m], since[:m]
    at = np.where(np.isfinite(since), since, 0.0)
    return since, at, room[chosen] - slope[chosen] * at, slope[chosen]
