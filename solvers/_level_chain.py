r"""Layers in a chain, and two sweeps over it: convex fronts of what is to come, exact fronts of what was chosen.

    H_l(s, b) = the least error of the layers from l on, after state s, at cost b:      from the last layer back, convex
    F_l(s)    = the non-dominated (cost, error) of the layers before l that end in s:   from the first layer on

A point (c, e) of F_l(s) leads to no error below e + H_l(s, B - c) within a budget B. H is the Lagrangian bound at its
best multiplier, for every budget at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from prunesolve.problems import LevelChoice
from prunesolve.problems._arrays import Floats, Indices

from ._kernels import load

_ROUNDING = 1e-12  # relative
_STEEPEST = 1e290  # times a cost still a number


class Chain(NamedTuple):
    """Layers in their order; the state after a layer is its level where it is linked to the next, else 0."""

    step: tuple[Floats, ...]  # of each layer (states before, levels): what entering a level costs
    error: tuple[Floats, ...]  # of each layer (levels,)
    linked: tuple[bool, ...]

    @classmethod
    def of(cls, choice: LevelChoice) -> Chain:
        """The chain of a choice whose pair costs join neighbours only."""
        steps, join = [], np.add if choice.total == "sum" else np.maximum
        for layer, cost in enumerate(choice.cost):
            pair = choice.pair_cost.get((layer - 1, layer))
            steps.append(cost[None] if pair is None else join(cost, pair))
        linked = tuple((layer, layer + 1) in choice.pair_cost for layer in range(choice.n))
        return cls(tuple(steps), tuple(choice.error), linked)

    @property
    def n(self) -> int:
        """Number of layers."""
        return len(self.step)

    def in_parts(self, width: float, rounded: Callable[[Any], Any]) -> Chain:
        """The same with every cost, less the least of its kind, as a whole number of parts."""
        # a multiple of the width that is off by rounding is one all the same
        nudge = 1.0 - _ROUNDING if rounded is np.ceil else 1.0 + _ROUNDING
        return self._replace(step=tuple(rounded((s - s.min()) / width * nudge) for s in self.step))

    def states(self, layer: int) -> int:
        """Number of states before a layer, or after the last."""
        return len(self.step[layer]) if layer < self.n else 1

    def onward(self, layer: int, state: int) -> Any:
        """The arcs that leave a state before a layer."""
        levels = np.arange(len(self.error[layer]))
        after = levels if self.linked[layer] else np.zeros_like(levels)
        return _arcs(after, levels, self.step[layer][state], self.error[layer])

    def arriving(self, layer: int, state: int) -> Any:
        """The arcs that end in a state after a layer, the levels that lose least first."""
        before, levels = self.step[layer].shape
        chosen = np.array([state]) if self.linked[layer] else np.argsort(self.error[layer], kind="stable")
        sources, level = (part.ravel() for part in np.meshgrid(np.arange(before), chosen))
        return _arcs(sources, level, self.step[layer][sources, level], self.error[layer][level])


def _arcs(state: Any, level: Any, cost: Any, error: Any) -> Any:
    whole, real = np.int64, np.float64
    # copies: numba compiles anew for arrays that are read-only
    parts = [np.array(p, dtype=t) for p, t in ((state, whole), (level, whole), (cost, real), (error, real))]
    return load("level_fronts").Arcs(*parts)


def _points(lists: Sequence[Any]) -> Any:
    """One after another the lists (cost, error, before, level) of all states."""
    start = np.cumsum([0, *(len(found[0]) for found in lists)]).astype(np.int64)
    return load("level_fronts").Points(*(np.concatenate(parts) for parts in zip(*lists, strict=True)), start)


def _origin() -> Any:
    nothing = np.zeros(1)
    return _points([(nothing, nothing, np.full(1, -1, dtype=np.int64), np.full(1, -1, dtype=np.int64))])


@dataclass(frozen=True)
class Hulls:
    """H of every layer and state; each vertex of it is a way to go on.

    Parameters
    ----------
    chain : Chain
        The layers.
    before : sequence of L + 1 Points
        Of the states before each layer, and after the last.
    """

    chain: Chain
    before: Sequence[Any]

    @classmethod
    def over(cls, chain: Chain, go_on: Callable[[], bool]) -> Hulls | None:
        """The hulls of a chain, None where `go_on` ends the work before; it is asked once for each list."""
        kernels, found = load("level_fronts"), [_origin()]
        for layer in reversed(range(chain.n)):
            lists = []
            for state in range(chain.states(layer)):
                if not go_on():
                    return None
                lists.append(kernels.hull(found[-1], chain.onward(layer, state)))
            found.append(_points(lists))
        return cls(chain, found[::-1])

    def of(self, layer: int, state: int) -> tuple[Floats, Floats]:
        """(cost, error) of the vertices in a state before a layer."""
        points = self.before[layer]
        span = slice(points.start[state], points.start[state + 1])
        return points.cost[span], points.error[span]

    def bound(self, budget: float) -> float:
        """The Lagrangian bound on the error within a budget, at the best multiplier."""
        cost, error = self.of(0, 0)
        at = int(np.searchsorted(cost, budget, side="right"))
        if at in (0, len(cost)):
            return float(error[-1]) if at else np.inf
        share = (cost[at] - budget) / (cost[at] - cost[at - 1])
        return float(error[at] + (error[at - 1] - error[at]) * share)

    def ways(self, layer: int, vertices: Any) -> Indices:
        """(m, L - layer) levels from a layer on, of m vertices of the states before it."""
        at, levels = np.atleast_1d(vertices), np.zeros((np.size(vertices), self.chain.n - layer), dtype=np.int64)
        for i, points in enumerate(self.before[layer:-1]):
            levels[:, i], at = points.level[at], points.before[at]
        return levels

    def supported(self, budget: float) -> Indices:
        """(m, L) the choices at the vertices that keep the budget, from the cheapest on."""
        cost, _ = self.of(0, 0)
        return self.ways(0, np.arange(np.searchsorted(cost, budget, side="right")))


class Completed(NamedTuple):
    """The best choice that points and hulls make together, and the bound that the points leave."""

    error: float
    levels: Indices | None
    bound: float


class Labels:
    """F, layer after layer, of what a limit leaves of it.

    Parameters
    ----------
    chain : Chain
        The layers.
    most : int
        Points held at most; past them `extend` gives up.
    peak : bool
        Whether the largest cost counts, not the sum.
    """

    def __init__(self, chain: Chain, most: int, *, peak: bool = False) -> None:
        self.chain, self.most, self.peak = chain, most, peak
        # nothing is less than the largest of any terms
        self.points = _origin()._replace(cost=np.full(1, -np.inf)) if peak else _origin()
        self._trail: list[tuple[Any, Any]] = []
        self.held = self.added = 0

    @property
    def layer(self) -> int:
        """Layers done."""
        return len(self._trail)

    def extend(self, limits: Callable[[int, int], Any], go_on: Callable[[], bool]) -> bool:
        """Do one more layer within `limits(layer, state)`; whether it was done, points being left or not."""
        kernels, layer, lists = load("level_fronts"), self.layer, []
        self.added = 0
        for state in range(self.chain.states(layer + 1)):
            if self.full or not go_on():
                return False
            arcs = self.chain.arriving(layer, state)
            lists.append(kernels.extend(self.points, arcs, limits(layer + 1, state), self.peak))
            self.added += len(lists[-1][0])
            self.held += len(lists[-1][0])
        self.points = _points(lists)
        # of layers done only the way back is kept, in as few bytes as will do
        self._trail.append((self.points.before.astype(np.int32), self.points.level.astype(np.int32)))
        return True

    def completed(self, hulls: Hulls, budget: float) -> Completed:
        """The best that the points lead to by the vertices of the hulls, and the least that they may lead to."""
        ahead = hulls.before[self.layer]
        error, point, vertex, bound = load("level_fronts").completed(self.points, ahead, float(budget))
        if point < 0:
            return Completed(np.inf, None, bound)
        rest = hulls.ways(self.layer, vertex)[0]
        return Completed(error, np.concatenate([self.ways(np.array([point]))[0], rest]), bound)

    @property
    def full(self) -> bool:
        """Whether no more points may be held."""
        return self.held > self.most

    def every(self) -> Indices:
        """(m, layers done) levels that led to each of the points."""
        return self.ways(np.arange(len(self.points.cost)))

    def ways(self, points: Any) -> Indices:
        """(m, layers done) levels that led to m of the points."""
        at, levels = points, np.zeros((len(points), self.layer), dtype=np.int64)
        for i in reversed(range(self.layer)):
            before, level = self._trail[i]
            levels[:, i], at = level[at], before[at]
        return levels


def below(hulls: Hulls, budget: float, error: float) -> Callable[[int, int], Any]:
    """Limits that leave what may still lead to less than an error within a budget."""

    def limit(layer: int, state: int) -> Any:
        cost, least = (part[::-1] for part in hulls.of(layer, state))
        slope = np.append(0.0, _slopes(cost, least))
        # anchored at the vertex of less error, whose digits count; cheaper points have the last vertex's all alike
        at, top = (np.append(part[0], part[:-1]) for part in (budget - cost, error - least))
        since = np.append(-np.inf, at[1:])
        return load("level_fronts").Limit(since, at, top, slope, float(budget - cost[-1]))

    return limit


def _slopes(cost: Floats, error: Floats) -> Floats:
    """What error each part of a hull saves for its cost; past all measure a smaller figure, limiting less, will do."""
    with np.errstate(over="ignore"):
        return np.minimum(np.abs(np.diff(error) / np.diff(cost)), _STEEPEST / max(1.0, float(np.abs(cost).max())))


def nearby(hulls: Hulls, budget: float) -> Callable[[int, int], Any]:
    """Limits that leave what may lead to a point within a budget that no vertex of the hull dominates.

    Between two vertices it costs less than the dearer and loses less than the cheaper one: seen along the slope of the
    hull there, it lies below their corner.
    """
    cost, error = hulls.of(0, 0)
    slope = _slopes(cost, error)
    within = slice(None, int(np.searchsorted(cost[:-1], budget, side="right")))
    rounding = _ROUNDING * (np.abs(error).max() + slope * np.abs(cost).max())
    top = (error[:-1] + slope * np.minimum(cost[1:], budget) + rounding)[within]
    slope = slope[within]

    def limit(layer: int, state: int) -> Any:
        ahead, least = hulls.of(layer, state)
        if not len(slope):
            return up_to(-np.inf)
        return load("level_fronts").Limit(
            *load("level_fronts").envelope(ahead, least, slope, top), float(budget - ahead[0])
        )

    return limit


def up_to(budget: float) -> Any:
    """The limit that a budget alone sets."""
    zero = np.zeros(1)
    return load("level_fronts").Limit(zero - np.inf, zero, zero + np.inf, zero, float(budget))
