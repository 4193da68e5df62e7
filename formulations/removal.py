r"""Selections from all units to the fewest: where searches for several objectives begin.

greedy removal: the next unit to go is argmin_i (f(x - e_i) - f(x)) / sum_r (c_r(x) - c_r(x - e_i)) / c_r(1);
uniform density: every group keeps the same share of its units, those that the removal takes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic
from prunesolve.problems._arrays import Bits, Floats, Indices

_LEAST = 1e-12  # of a cost's total: what a unit that saves nothing counts as saving


def removal_order(error: BinaryQuadratic, costs: Sequence[BinaryQuadratic], group: Indices, low: Indices) -> Indices:
    """(r,) units in the order in which backward elimination removes them, until every group is down to its least.

    Parameters
    ----------
    error : BinaryQuadratic
        f, of n units.
    costs : sequence of BinaryQuadratic
        c_r; each counts relative to its value with everything kept.
    group : (n,) int
        Group of each unit.
    low : (g,) int
        Units that each group keeps.

    Examples
    --------
    >>> error = BinaryQuadratic([-3.0, -1.0, -2.0])
    >>> removal_order(error, [BinaryQuadratic([1.0, 1.0, 1.0])], np.array([0, 0, 1]), np.array([1, 0])).tolist()
    [1, 2]
    """
    kept = np.ones(error.n, dtype=bool)
    totals = [abs(c.value(kept)) or 1.0 for c in costs]
    rise = -error.fields(kept)
    saving = sum((c.fields(kept) / total for c, total in zip(costs, totals, strict=True)), start=np.zeros(error.n))
    room = np.bincount(group, minlength=len(low)) - low
    order: list[int] = []
    while (may := kept & (room[group] > 0)).any():
        i = int(np.argmin(np.where(may, rise / np.maximum(saving, _LEAST), np.inf)))
        order.append(i)
        kept[i] = False
        room[group[i]] -= 1
        rise += error.couplings.row(i)
        for c, total in zip(costs, totals, strict=True):
            saving -= c.couplings.row(i) / total
    return np.array(order, dtype=np.int64)


def removal_path(order: Indices, n: int) -> Bits:
    """(r + 1, n) what is kept before the first removal and after each.

    Examples
    --------
    >>> removal_path(np.array([1, 0]), 3).astype(int).tolist()
    [[1, 1, 1], [1, 0, 1], [0, 0, 1]]
    """
    step = np.full(n, len(order))
    step[order] = np.arange(len(order))
    return np.arange(len(order) + 1)[:, None] <= step


def density_sweep(order: Indices, group: Indices, low: Indices, densities: Sequence[float] | Floats) -> Bits:
    """(d, n) for each density the selection in which every group keeps that share of its units, its `low` at least.

    Examples
    --------
    >>> density_sweep(np.array([1, 3, 0, 2]), np.array([0, 0, 1, 1]), np.array([0, 0]), [0.5]).astype(int).tolist()
    [[1, 0, 1, 0]]
    """
    sizes = np.bincount(group, minlength=len(low))
    step = np.full(len(group), len(order))
    step[order] = np.arange(len(order))
    last_first = np.lexsort((-step, group))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rank = np.empty(len(group), dtype=np.int64)
    rank[last_first] = np.arange(len(group)) - starts[group[last_first]]
    keep = np.maximum(np.floor(np.multiply.outer(densities, sizes) + 0.5).astype(np.int64), low)
    return rank < keep[:, group]


def starting_points(
    error: BinaryQuadratic, costs: Sequence[BinaryQuadratic], group: Indices, low: Indices, count: int
) -> dict[str, Bits]:
    """At most `count` feasible selections by kind, the dearest first: the removal path, and uniform densities.

    Parameters
    ----------
    error : BinaryQuadratic
        f with the constraints.
    costs : sequence of BinaryQuadratic
        See `removal_order`.
    group, low
        See `removal_order`.
    count : int
        A quarter of them have uniform density.
    """
    order = removal_order(error, costs, group, low)
    dense = max(1, count // 4)
    kinds = {
        "removal path": (removal_path(order, error.n), count - dense),
        "uniform density": (density_sweep(order, group, low, np.linspace(1.0, 0.0, 4 * dense)), dense),
    }
    return {kind: _spread_feasible(error, costs, rows, most) for kind, (rows, most) in kinds.items()}


def _spread_feasible(error: BinaryQuadratic, costs: Sequence[BinaryQuadratic], rows: Bits, count: int) -> Bits:
    rows = rows[error.is_feasible(rows)]
    everything = np.ones(error.n, dtype=bool)
    spent = sum((c.value(rows) / (c.value(everything) or 1.0) for c in costs), start=np.zeros(len(rows)))
    return spread(rows, spent, count)


def spread(rows: Any, cost: Floats, count: int) -> Any:
    """At most `count` of the rows (m, n), spread evenly over their cost (m,), the cheapest and the dearest included.

    Examples
    --------
    >>> spread(np.eye(5, dtype=bool), np.array([0.0, 1.0, 2.0, 9.0, 10.0]), 3).argmax(axis=1).tolist()
    [0, 2, 4]
    """
    if len(rows) <= count:
        return rows
    wanted = np.linspace(cost.min(), cost.max(), count)
    return rows[np.unique(np.abs(cost - wanted[:, None]).argmin(axis=1))]
