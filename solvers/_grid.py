r"""Points of any space as rows of levels, and the feasible point next to a wanted one.

A unit has the levels 0 and 1, a layer as many as it has keep counts; one step down prunes. What an operator wants need
not be feasible: `nearest` gives way where the constraints demand it, first at the coordinates held least.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import numpy as np

from prunesolve.problems import (
    BinaryQuadratic,
    Budget,
    GroupBounds,
    LevelChoice,
    LevelTuples,
    MultiObjective,
    Product,
    Selections,
)
from prunesolve.problems._arrays import Bits, Floats, Indices

from ._count_state import CountStates, of_levels
from ._start import Ledger, repair

Levels = Any  # (m, n) of this type
LEVEL = np.int16

_BISECTIONS = 12  # of how far to give way


class Grid(ABC):
    """The rows of levels that a space admits.

    Attributes
    ----------
    sizes : (n,) int
        Levels of each coordinate.
    """

    sizes: Indices

    @abstractmethod
    def nearest(self, wanted: Levels, hold: Floats, rng: np.random.Generator) -> tuple[Levels, Bits]:
        """Feasible rows (m, n) near the wanted ones, and for which rows there is one (m,).

        Parameters
        ----------
        wanted : (m, n) int
            Levels within their sizes.
        hold : (m, n) float in [0, 1)
            How much each coordinate is to stay as wanted; what is held least gives way first.
        rng : numpy.random.Generator
            For ties of a repair.
        """

    @property
    def n(self) -> int:
        """Number of coordinates."""
        return len(self.sizes)

    @cached_property
    def top(self) -> Indices:
        """(n,) highest level of each coordinate."""
        return (self.sizes - 1).astype(LEVEL)

    @property
    def free(self) -> bool:
        """Whether every row is feasible."""
        return False

    def sample(self, density: Floats, rng: np.random.Generator) -> tuple[Levels, Bits]:
        """Random rows whose levels are about density (m, n) of the highest ones."""
        shape = (len(density), self.n)
        wanted = np.floor(density * self.top + rng.random(shape)).astype(LEVEL)
        return self.nearest(self.clipped(wanted), rng.random(shape), rng)

    def clipped(self, rows: Levels) -> Levels:
        """The rows (m, n) with every level within its size."""
        return np.clip(rows, 0, self.top).astype(LEVEL)


class Units(Grid):
    """Bits under a cardinality, group bounds and budgets."""

    def __init__(self, space: Selections) -> None:
        self.space = space
        self.sizes = np.full(space.n, 2, dtype=np.int64)
        bounds = space.of_kind(GroupBounds)
        self._bounds: GroupBounds | None = bounds[0] if bounds else None
        self._overlapping = len(bounds) > 1
        self._budgets: list[Budget] = [budget.capped for budget in space.of_kind(Budget)]

    def nearest(self, wanted: Levels, hold: Floats, rng: np.random.Generator) -> tuple[Levels, Bits]:
        """Bounds and cardinality by rank, budgets by bisection, what is left by a repair of its own."""
        wanted = wanted.astype(bool)
        found = self._ranked(wanted, hold)
        if not self._budgets and not self._overlapping:
            return found.astype(LEVEL), np.ones(len(found), dtype=bool)
        broken = np.flatnonzero(~self.space.is_feasible(found))
        if len(broken) and self._budgets:
            found[broken] = self._within_budgets(wanted[broken], hold[broken], found[broken])
            broken = broken[~self.space.is_feasible(found[broken])]
        for i in broken:
            found[i] = self._repaired(found[i], wanted[i] + hold[i], rng)
        return found.astype(LEVEL), self.space.is_feasible(found)

    @property
    def free(self) -> bool:
        """Whether every row is feasible."""
        return not self.space.constraints

    def _ranked(self, wanted: Bits, hold: Floats, cheap: Any = 0.0, t: Any = 0.0) -> Bits:
        """The selections (m, n) of highest score within bounds and cardinality.

        Without a cardinality the wanted units are taken whose hold is above t (m, 1). Scores lean from wanted and hold
        (t = 0) to `cheap` (t = 1).
        """
        k = self.space.k
        if self._bounds is None and k is None:
            return wanted & (hold >= t)
        # a held unit that is wanted stays longest; one that is not wanted comes last
        score = np.where(wanted, 1.0 + hold, 1.0 - hold)
        score = (1.0 - t) * 0.5 * score + t * cheap
        must, may = self._bounded(score)
        if k is None:
            return must | (may & wanted & (hold >= t))
        score = np.where(must, score + 2.0, np.where(may, score, score - 2.0))
        found = np.zeros(score.shape, dtype=bool)
        np.put_along_axis(found, np.argpartition(-score, k - 1, axis=1)[:, :k], True, axis=1)
        return found

    def _bounded(self, score: Floats) -> tuple[Bits, Bits]:
        """Which units (m, n) the lower bounds take, and which the upper ones allow, the best by score of each group."""
        if self._bounds is None:
            return np.zeros(score.shape, dtype=bool), np.ones(score.shape, dtype=bool)
        group, low, high = self._bounds.group, self._bounds.low, self._bounds.high
        # units of no group form a group without bounds
        order = np.argsort(4.0 * np.where(group < 0, len(low), group) - score, axis=1)
        sizes = np.append(self._bounds.sizes, (group < 0).sum())
        rank = np.arange(self.n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        must, may = np.empty(score.shape, dtype=bool), np.empty(score.shape, dtype=bool)
        np.put_along_axis(must, order, (rank < np.repeat(np.append(low, 0), sizes))[None], axis=1)
        np.put_along_axis(may, order, (rank < np.repeat(np.append(high, self.n), sizes))[None], axis=1)
        return must, may

    def _within_budgets(self, wanted: Bits, hold: Floats, x: Bits) -> Bits:
        """As little as needed of what is held least given up, by bisection; at the end only prices count."""
        price = sum(
            (b.cost + (0.0 if b.pair is None else (b.pair @ x.T).T)) / max(b.limit, 1e-12) for b in self._budgets
        )
        cheap = 1.0 - np.argsort(np.argsort(np.broadcast_to(price, x.shape), axis=1), axis=1) / self.n
        low, high = np.zeros((len(x), 1)), np.ones((len(x), 1))
        best = self._ranked(wanted, hold, cheap, high)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            tried = self._ranked(wanted, hold, cheap, middle)
            fits = np.logical_and.reduce([budget.holds(tried) for budget in self._budgets])
            best[fits] = tried[fits]
            low, high = np.where(fits[:, None], low, middle), np.where(fits[:, None], middle, high)
        return best

    def _repaired(self, x: Bits, score: Floats, rng: np.random.Generator) -> Bits:
        """One selection (n,) made feasible by flips, those of least score given up first."""
        ledger = Ledger(BinaryQuadratic(-score, constraints=self.space.constraints), x)
        repair(ledger, rng, lambda: True)
        return np.asarray(ledger.x)


class Choices(Grid):
    """Levels within a budget: what does not fit goes down towards the cheapest choice, step by step."""

    def __init__(self, space: LevelTuples | LevelChoice) -> None:
        self.space = space
        self.sizes = space.sizes
        cheapest = space.cheapest if isinstance(space, LevelChoice) else [int(c.argmin()) for c in space.cost]
        self._cheapest = np.array(cheapest, dtype=LEVEL)

    def nearest(self, wanted: Levels, hold: Floats, rng: np.random.Generator) -> tuple[Levels, Bits]:
        """By bisection of the share of the way to the cheapest choice."""
        found = np.array(wanted)
        broken = np.flatnonzero(~self.space.is_feasible(found))
        if not len(broken):
            return found, np.ones(len(found), dtype=bool)
        away, hold = wanted[broken] - self._cheapest, hold[broken]
        best = np.repeat(self._cheapest[None], len(broken), axis=0)
        low, high = np.zeros((len(broken), 1)), np.ones((len(broken), 1))
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            steps = np.minimum(np.floor(np.abs(away) * (1.0 - middle) + hold), np.abs(away))
            tried = self._cheapest + (np.sign(away) * steps).astype(LEVEL)
            fits = np.asarray(self.space.is_feasible(tried))
            best[fits] = tried[fits]
            low, high = np.where(fits[:, None], low, middle), np.where(fits[:, None], middle, high)
        found[broken] = best
        return found, self.space.is_feasible(found)


class ExactTuples(Grid):
    """Levels whose cost adds up to a budget exactly: the nearest such tuple, by dynamic programming over the sum."""

    def __init__(self, space: LevelTuples) -> None:
        self.space = space
        self.sizes = space.sizes

    @cached_property
    def _states(self) -> CountStates:
        return of_levels(self.space)

    def nearest(self, wanted: Levels, hold: Floats, rng: np.random.Generator) -> tuple[Levels, Bits]:
        """The tuples of least sum_l (1 + hold_l) |s_l - wanted_l|."""
        found = np.array(wanted)
        broken = np.flatnonzero(~np.asarray(self.space.is_feasible(found)))
        if len(broken):
            found[broken] = self._shifted(wanted[broken], 1.0 + hold[broken])
        return found, np.ones(len(found), dtype=bool)

    def _shifted(self, wanted: Levels, weight: Floats) -> Levels:
        first, to = self._states.first, self._states.to
        ahead = np.zeros((len(wanted), first[-1] - first[-2]))
        ways: list[Any] = []
        for i in reversed(range(self.n)):
            nexts = to[first[i] : first[i + 1], : self.sizes[i]]
            penalty = weight[:, i, None] * np.abs(np.arange(self.sizes[i]) - wanted[:, i, None])
            total = np.where(nexts >= 0, penalty[:, None] + ahead[:, np.maximum(nexts - first[i + 1], 0)], np.inf)
            ways.append(total.argmin(axis=2))
            ahead = total.min(axis=2)
        found, at = np.empty_like(wanted), np.zeros(len(wanted), dtype=np.int64)
        for i, way in enumerate(reversed(ways)):
            found[:, i] = way[np.arange(len(wanted)), at]
            at = to[first[i] + at, found[:, i]] - first[i + 1]
        return found


class Joint(Grid):
    """Rows made of one row of each space."""

    def __init__(self, space: Product) -> None:
        self._parts = [grid_of(part) for part in space.spaces]
        self._ends = space.starts[1:-1]
        self.sizes = np.concatenate([part.sizes for part in self._parts])

    def nearest(self, wanted: Levels, hold: Floats, rng: np.random.Generator) -> tuple[Levels, Bits]:
        """Each part on its own."""
        columns = zip(np.split(wanted, self._ends, axis=1), np.split(hold, self._ends, axis=1), strict=True)
        found = [part.nearest(w, h, rng) for part, (w, h) in zip(self._parts, columns, strict=True)]
        return np.concatenate([rows for rows, _ in found], axis=1), np.all([ok for _, ok in found], axis=0)


def grid_of(space: Any) -> Grid:
    """The grid of a space."""
    if isinstance(space, Product):
        return Joint(space)
    if isinstance(space, Selections):
        return Units(space)
    exact = isinstance(space, LevelTuples) and space.exact
    return ExactTuples(space) if exact else Choices(space)


def as_points(problem: MultiObjective, rows: Levels) -> Any:
    """Rows (m, n) as the problem's space takes them: bits where it holds bits alone."""
    return rows.astype(bool) if isinstance(problem.space, Selections) else rows.astype(np.int64)
