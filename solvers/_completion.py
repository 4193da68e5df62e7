r"""A bound under a budget that needs no convexity: every unit is credited with its best completion.

Each pair is split into two directed halves, w_ij + w_ji = J_ij. Given x_i = 1, what its halves can bring is a
continuous knapsack over the other units; what the units can bring is one more:

    f(x) >= offset + min_x sum_i (a_i + z_i) x_i,     z_i = min { sum_j w_ij x_j : c.x <= limit - c_i, 0 <= x <= 1 }.

Any split is valid; a subgradient method looks for a good one. Every knapsack is valued by its multiplier, and any
multiplier bounds it, so the result does not hang on the sorting.

Reference: Caprara, Pisinger & Toth, Exact solution of the quadratic knapsack problem, INFORMS Journal on Computing 11
(1999); the splitting is the dual of the first-level RLT of Adams & Sherali (1986).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, Budget

from ._convexity import power_of_two

_EPS = float(np.finfo(np.float64).eps)
_TOLERANCE = 1e-9  # of a budget's scale, as in `Budget.holds`
_FREE = 1e-100  # of the largest cost
_PATIENCE = 10  # steps without a better bound before the step is halved
_SMALLEST = 1e-4  # of a step's first length, where it ends
_REACH = 0.05  # of the best bound, what a step aims at beyond it
_MEMORY = 0.6  # of the last direction


def completion_bound(
    problem: BinaryQuadratic,
    budget: Budget,
    *,
    iterations: int = 1000,
    stop: Callable[[], bool] = lambda: False,
) -> float:
    """The best bound that the steps allowed find; -inf where rounding would spoil it."""
    budget = budget.capped
    price, unit = power_of_two(budget.cost), power_of_two(problem.linear, problem.couplings.dense())
    limit = (budget.limit + _TOLERANCE * budget.scale) / price
    # next to nothing counts as nothing, which bounds as well, and keeps ratios in range
    cost, offset = np.where(budget.cost < _FREE * price, 0.0, budget.cost / price), problem.offset / unit
    together = cost[:, None] + cost <= limit
    np.fill_diagonal(together, False)
    # a pair that does not fit brings nothing; a unit that does not fit is out
    couplings = np.where(together, problem.couplings.dense() / unit, 0.0)
    linear = np.where(cost <= limit, problem.linear / unit, 0.0)
    size = abs(offset) + np.abs(linear).sum() + np.abs(couplings).sum()
    half, direction = 0.5 * couplings, np.zeros_like(couplings)
    best, length, waited = -np.inf, 1.0, 0
    for _ in range(max(1, iterations)):
        value, chosen, completions, spent = _bound(linear, half, cost, limit, together)
        # the halves may have grown past the couplings that they split
        margin = 4 * (problem.n + 8) * _EPS * (size + float(np.abs(half).sum()) + spent)
        value += offset - margin
        waited = 0 if value > best + 1e-5 * abs(best) else waited + 1
        best = max(best, value)
        if waited > _PATIENCE:
            length, waited = 0.5 * length, 0
        if length < _SMALLEST or stop():
            break
        ascent = chosen[:, None] * completions
        ascent -= ascent.T
        direction = ascent + _MEMORY * direction
        norm = float((ascent * direction).sum())
        if not norm > 0:
            break
        # Polyak's step towards a value that is a little out of reach
        half = half + (length * (best + _REACH * abs(best) - value) / (2 * norm)) * direction
    return float(unit * best) if np.isfinite(best) else -np.inf


def _bound(linear: Any, half: Any, cost: Any, limit: float, together: Any) -> tuple[float, Any, Any, float]:
    """(bound, units chosen (n,), completions (n, n), what the multipliers add to the size of the terms)."""
    gain, completions, multiplier = _knapsacks(np.where(together, half, 0.0), cost, np.maximum(limit - cost, 0.0))
    worth = np.where(cost <= limit, linear + gain, 0.0)
    value, chosen, price = _knapsacks(worth[None], cost, np.array([limit]))
    spent = float(multiplier.sum() * (cost.sum() + limit) + price[0] * (cost.sum() + limit))
    return float(value[0]), chosen[0], completions, spent


def _knapsacks(worth: Any, cost: Any, room: Any) -> tuple[Any, Any, Any]:
    """Rows min w.x, c.x <= room, 0 <= x <= 1: (bounds (m,), x (m, n), multipliers (m,))."""
    wanted = worth < 0
    # what costs nothing comes first
    each = np.where(cost > 0, worth / np.where(cost > 0, cost, 1.0), -np.inf)
    ratio = np.where(wanted, each, 0.0)
    order = np.argsort(ratio, axis=1)
    ranked = np.take_along_axis(np.where(wanted, cost, 0.0), order, axis=1)
    full = np.cumsum(ranked, axis=1)
    share = np.clip((room[:, None] - (full - ranked)) / np.where(ranked > 0, ranked, 1.0), 0.0, 1.0)
    x = np.empty_like(worth)
    np.put_along_axis(x, order, share, axis=1)
    x *= wanted
    # the first that does not fit whole sets the price
    tight = full > room[:, None]
    critical = np.take_along_axis(ratio, np.take_along_axis(order, tight.argmax(axis=1)[:, None], axis=1), axis=1)[:, 0]
    multiplier = np.where(tight[:, -1], np.maximum(-critical, 0.0), 0.0)
    reduced = worth + multiplier[:, None] * cost
    return np.minimum(reduced, 0.0).sum(axis=1) - multiplier * room, x, multiplier
