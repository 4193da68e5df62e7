"""True objectives with an account of what was asked, and the hypervolume of what came; not the library's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import prunesolve as ps


class Objectives:
    """(loss, share of the cost) of selections; keeps the values of every distinct one in order, and the time."""

    def __init__(
        self,
        evaluator: Any,
        stats: ps.Statistics,
        resource: str = "params",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.evaluator, self.stats, self.resource, self.clock = evaluator, stats, resource, clock
        self.log: dict[bytes, tuple[float, float]] = {}
        self.seconds = 0.0

    def __call__(self, keep: Any) -> np.ndarray:
        """(m, 2) of the rows of keep (m, n)."""
        began = self.clock()
        rows = np.asarray(keep, dtype=bool)
        values = np.stack([self.evaluator.evaluate(rows), self.share(rows)], axis=1)
        # no value is worse than any
        for row, value in zip(rows, np.nan_to_num(values, nan=np.inf), strict=True):
            self.log.setdefault(np.packbits(row).tobytes(), tuple(value.tolist()))
        self.seconds += self.clock() - began
        return values

    def share(self, rows: Any) -> np.ndarray:
        """(m,) exact share of what the dense network costs."""
        x, stats, resource = np.asarray(rows, dtype=np.float64), self.stats, self.resource
        bilinear = 0.5 * (np.asarray(x @ stats.pair_cost[resource]) * x).sum(1)
        return (stats.constant[resource] + x @ stats.cost[resource] + bilinear) / stats.total(resource)

    @property
    def seen(self) -> np.ndarray:
        """(distinct, 2) in the order of their evaluation."""
        return np.array(list(self.log.values())).reshape(-1, 2)


def front(points: Any) -> np.ndarray:
    """Which of the points (m, 2) no other dominates, ascending in the first objective: indices."""
    order = np.lexsort((points[:, 1], points[:, 0]))
    second = points[order, 1]
    lowest = np.minimum.accumulate(second)
    return order[second < np.concatenate([[np.inf], lowest[:-1]])]


def hypervolume(points: Any, reference: tuple[float, float]) -> float:
    """Share of the box [0, reference] that the points (m, 2) dominate; not the library's own."""
    inside = points[(points < reference).all(1)]
    chosen = inside[front(inside)]
    ceilings = np.concatenate([[reference[1]], chosen[:-1, 1]])
    return float(((reference[0] - chosen[:, 0]) * (ceilings - chosen[:, 1])).sum() / (reference[0] * reference[1]))


def thinned(points: Any, count: int) -> np.ndarray:
    """Indices of at most `count` of the points (m, 2), spread evenly over the second objective."""
    order = np.argsort(points[:, 1], kind="stable")
    wanted = np.linspace(points[order[0], 1], points[order[-1], 1], count)
    at = np.abs(points[order, 1][:, None] - wanted).argmin(0)
    return order[np.unique(at)]
