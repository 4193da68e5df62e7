"""Who survives a generation: NSGA-II's rank and crowding, by pymoo's sorting."""

from __future__ import annotations

import numpy as np

from prunesolve.problems import MultiObjective
from prunesolve.problems._arrays import Floats, Indices

from ._grid import LEVEL, Levels

_LAST = 1 << 30  # rank of what exceeds a limit
_CROWDED = 1e-3  # of the largest chance to be a parent, what those with the closest neighbours still have


class Survival:
    """The population, ranked.

    Parameters
    ----------
    problem : MultiObjective
        Whose limits count.
    size : int
        Survivors of a generation.
    rng : numpy.random.Generator
        For tournaments and ties.

    Attributes
    ----------
    rows, values : (p, n), (p, m)
        The population and its objectives.
    rank, crowding : (p,)
        Of each of its points; what exceeds a limit comes last, the least excess first.
    """

    def __init__(self, problem: MultiObjective, size: int, rng: np.random.Generator) -> None:
        self._problem, self._size, self._rng = problem, size, rng
        self.rows: Levels = np.zeros((0, problem.n), dtype=LEVEL)
        self.values: Floats = np.zeros((0, problem.m))
        self.rank: Indices = np.zeros(0, dtype=np.int64)
        self.crowding: Floats = np.zeros(0)

    def tell(self, rows: Levels, values: Floats) -> None:
        """Let rows (c, n) with their values (c, m), inf for none, compete with the population."""
        known = np.isfinite(values).all(axis=1)
        rows, values = np.concatenate([self.rows, rows[known]]), np.concatenate([self.values, values[known]])
        excess = self._problem.excess(values)
        chosen, rank, crowding = self._ranked(np.flatnonzero(excess == 0.0), values)
        over = np.flatnonzero(excess > 0.0)
        over = over[np.argsort(excess[over], kind="stable")][: self._size - len(chosen)]
        chosen = np.concatenate([chosen, over])
        self.rows, self.values = rows[chosen], values[chosen]
        self.rank = np.concatenate([rank, np.full(len(over), _LAST)])
        self.crowding = np.concatenate([crowding, -excess[over]])

    def _ranked(self, some: Indices, values: Floats) -> tuple[Indices, Indices, Floats]:
        """The survivors among some rows, front by front, with rank and crowding."""
        from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

        fronts = NonDominatedSorting().do(values[some], n_stop_if_ranked=self._size) if len(some) else []
        chosen, ranks, distances = [some[:0]], [some[:0]], [np.zeros(0)]
        left = self._size
        for rank, front in enumerate(fronts):
            distance = crowding_distance(values[some[front]])
            if len(front) > left:
                # the loneliest first, ties at random
                best = np.lexsort([self._rng.random(len(front)), -distance])[:left]
                front, distance = front[best], distance[best]
            chosen.append(some[front])
            ranks.append(np.full(len(front), rank))
            distances.append(distance)
            left -= len(front)
        return np.concatenate(chosen), np.concatenate(ranks), np.concatenate(distances)

    def tournament(self, count: int) -> Indices:
        """(count,) the better of two random members each, by rank, then crowding."""
        one, two = self._rng.integers(len(self.rows), size=(2, count))
        tied = self.rank[one] == self.rank[two]
        first = np.where(tied, self.crowding[one] >= self.crowding[two], self.rank[one] < self.rank[two])
        return np.where(first, one, two)


def crowding_distance(values: Floats) -> Floats:
    """(p,) crowding distance in a front (p, m), infinite at its extremes."""
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    if len(values) <= 2:
        return np.full(len(values), np.inf)
    return np.asarray(calc_crowding_distance(values))


def loneliness(values: Floats) -> Floats:
    """(p,) chances to be a parent in a front (p, m): by crowding distance, extremes as the loneliest inside."""
    distance = crowding_distance(values)
    most = distance[np.isfinite(distance)].max(initial=0.0)
    weight = np.minimum(distance, most) + (_CROWDED * most if most > 0.0 else 1.0)
    return np.asarray(weight / weight.sum())
