"""Feasible moves of a selection or of a tuple of levels, ordered by a linear model of what they change.

Both spaces answer the same questions: `features` of moves, the best `singles` at given coefficients, a `path` of
several moves one after the other, `random` ones. A move is told by the point it leads to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, BlackBox, GroupBounds, LevelChoice, LevelTuples, Selections
from prunesolve.problems._arrays import Bits, Floats, Indices
from prunesolve.problems.couplings import Blocks

from ._base import Run
from ._level_space import LevelSpace, even
from ._start import feasible_start

_BREADTH = 512  # units on either side that single swaps are made of
_STEP = 12  # the same at a step of a path, and within each part of a partition
_CHUNK = 256  # moves looked at together
_FEW = 16  # the same at a step of a path
_CHUNKS = 64  # of them at most
_ATTEMPTS = 40  # draws for each random move asked for

Skip = Callable[[Any], Bits]


class Moves(ABC):
    """What both spaces have in common.

    Attributes
    ----------
    box : BlackBox
    blocks : list of (name, width)
        The features, in order; see `ChangeModel`.
    surrogate : BinaryQuadratic, object with `value(X)` or None
    scale : float
        Unit of the surrogate's predictions; see `measure`.
    """

    box: BlackBox
    blocks: list[tuple[str, int]]
    surrogate: Any
    scale: float

    @abstractmethod
    def start(self, run: Run) -> Any:
        """A feasible point (n,); None where none is found."""

    @abstractmethod
    def measure(self, x: Any) -> None:
        """Take the surrogate's spread around x (n,) as the unit of its predictions."""

    @abstractmethod
    def features(self, x: Any, points: Any) -> Floats:
        """(m, p) features of the moves from x (n,) to the points (m, n)."""

    @abstractmethod
    def codes(self, points: Any) -> Floats:
        """(m, N) the points (m, n) in -1 and 1; near where the points are."""

    @abstractmethod
    def guesses(self, points: Any) -> Floats:
        """(m,) what the surrogate says of the points, in the unit of its predictions; 0 where it says nothing."""

    @abstractmethod
    def flips(self, x: Any) -> tuple[Any, Indices, Floats]:
        """Points (m, n) with one coordinate changed, feasible or not, the coefficient of each and its sign."""

    @abstractmethod
    def _ordered(self, x: Any, theta: Floats, frozen: Bits | None = None) -> Iterator[Any]:
        """Chunks (c, n) of moves, the best by theta first; with `frozen` a few good ones that leave those alone."""

    @abstractmethod
    def _drawn(self, x: Any, rng: np.random.Generator, count: int) -> Any:
        """(count, n) random moves, feasible or not."""

    def sizes(self, x: Any, points: Any) -> Floats:
        """(m,) swaps that each move amounts to."""
        return np.maximum((points != x).sum(axis=1) / 2.0, 1.0)

    def singles(self, x: Any, theta: Floats, count: int, skip: Skip) -> Any:
        """(m, n), m <= count: the best single moves by theta, disjoint where there are enough, skipping some."""
        taken: dict[bytes, Any] = {}
        spare: dict[bytes, Any] = {}
        used = np.zeros(self.box.n, dtype=bool)
        for points in self._ordered(x, theta):
            for point in self._allowed(points, skip):
                changed = point != x
                if not (used & changed).any():
                    taken[self.box.key(point)] = point
                    used |= changed
                elif len(spare) < count:
                    spare[self.box.key(point)] = point
                if len(taken) == count:
                    return np.array(list(taken.values()))
            if len(taken) + len(spare) >= 2 * count:
                break
        return self.rows(x, list((taken | spare).values())[:count])

    def path(self, x: Any, theta: Floats, steps: int) -> list[Any]:
        """Points after 1, 2, ... moves, each the best by theta that leaves alone what has moved, until none pays."""
        points: list[Any] = []
        at = x
        for _ in range(steps):
            found = next((p for p in map(self._allowed, self._ordered(at, theta, at != x)) if len(p)), None)
            if found is None or (points and float((self.features(at, found[:1]) @ theta)[0]) >= 0.0):
                break
            at = found[0]
            points.append(at)
        return points

    def nearest(self, x: Any, worth: Floats, count: int) -> Any:
        """(m, n), m <= count: the moves that are best if they are worth what their flips are together."""
        theta = np.zeros(sum(width for _, width in self.blocks))
        points, slots, signs = self.flips(x)
        theta[slots] = signs * worth
        found = self.rows(x, [])
        for points in self._ordered(x, theta):
            found = np.concatenate([found, self._allowed(points)[:count]])
            if len(found) >= count:
                break
        return found[:count]

    def random(self, x: Any, rng: np.random.Generator, count: int, skip: Skip) -> Any:
        """(m, n), m <= count: random feasible single moves, distinct."""
        found: dict[bytes, Any] = {}
        for _ in range(_ATTEMPTS):
            for point in self._allowed(self._drawn(x, rng, 2 * count), skip):
                found.setdefault(self.box.key(point), point)
            if len(found) >= count:
                break
        return self.rows(x, list(found.values())[:count])

    def _allowed(self, points: Any, skip: Skip | None = None) -> Any:
        points = points[self.box.is_feasible(points)] if len(points) else points
        return points if skip is None or not len(points) else points[~skip(points)]

    @staticmethod
    def rows(x: Any, points: list[Any]) -> Any:
        """Points as rows (m, n) of the type of x, m = 0 included."""
        return np.array(points) if points else np.zeros((0, len(x)), dtype=x.dtype)


class UnitMoves(Moves):
    """Swaps of a kept for a dropped unit, and single flips where the number kept is free.

    Features: the surrogate's predicted change, its part in each group, the units each group gains, the units gained
    and lost; fields of the surrogate count in their standard deviation at the start.

    Parameters
    ----------
    box : BlackBox
        Over `Selections`.
    free : (n,) bool
        Units that may move.
    """

    def __init__(self, box: BlackBox, free: Bits) -> None:
        self.box, self.free = box, free
        self.surrogate = box.surrogate
        self.group = _groups(box)
        groups = int(self.group.max(initial=0)) + 1
        self.member = (self.group[:, None] == np.arange(groups)).astype(np.float64)
        self.scale = 1.0
        self.blocks = [("surrogate", 1), ("slope", groups)] if self.surrogate is not None else []
        self.blocks += [("trend", groups), ("coordinate", box.n)]
        self._partitions = [bounds.group for bounds in box.of_kind(GroupBounds)]

    def start(self, run: Run) -> Any:
        """The surrogate's greedy selection."""
        known = self.surrogate
        linear, couplings = (np.zeros(self.box.n), None) if known is None else (known.linear, known.couplings)
        problem = BinaryQuadratic(linear, couplings, constraints=self.box.constraints)
        return feasible_start(problem, run.rng, run.should_stop)

    def measure(self, x: Bits) -> None:
        """Count the surrogate's predictions in standard deviations of its fields at x (n,)."""
        if self.surrogate is not None and x.size:
            self.scale = float(self.surrogate.fields(x).std()) or 1.0

    def features(self, x: Bits, points: Bits) -> Floats:
        """(m, p): predicted change, its part in each group, units each group gains, units gained and lost."""
        step = points.astype(np.float64) - x
        gained = step @ self.member
        if self.surrogate is None:
            return np.concatenate([gained, step], axis=1)
        parts = step * (self.surrogate.fields(x) + 0.5 * self.surrogate.couplings.product(step)) / self.scale
        return np.concatenate([parts.sum(axis=1, keepdims=True), parts @ self.member, gained, step], axis=1)

    def codes(self, points: Bits) -> Floats:
        """(m, n) 1 for a kept unit, -1 for a dropped one."""
        return np.where(points, 1.0, -1.0)

    def guesses(self, points: Bits) -> Floats:
        """(m,) the surrogate's values."""
        if self.surrogate is None:
            return np.zeros(len(points))
        return np.asarray(self.surrogate.value(points), dtype=np.float64) / self.scale

    def flips(self, x: Bits) -> tuple[Bits, Indices, Floats]:
        """Each free unit on its own."""
        free = np.flatnonzero(self.free)
        points = np.repeat(x[None], len(free), axis=0)
        points[np.arange(len(free)), free] ^= True
        slots = sum(width for _, width in self.blocks) - self.box.n + free
        return points, slots, np.where(x[free], -1.0, 1.0)

    def _prices(self, x: Bits, theta: Floats) -> tuple[Floats, Floats]:
        """(n,) change of the value when a unit is added, and (n,) the weight of the surrogate's couplings in it."""
        groups = self.member.shape[1]
        if self.surrogate is None:
            return theta[:groups][self.group] + theta[groups:], np.zeros(self.box.n)
        weight = (theta[0] + theta[1 : 1 + groups])[self.group] / self.scale
        rest = theta[1 + groups :]
        return weight * self.surrogate.fields(x) + rest[:groups][self.group] + rest[groups:], weight

    def _ordered(self, x: Bits, theta: Floats, frozen: Bits | None = None) -> Iterator[Bits]:
        price, weight = self._prices(x, theta)
        free = self.free if frozen is None else self.free & ~frozen
        out, come = np.flatnonzero(free & x), np.flatnonzero(free & ~x)
        out, come = out[np.argsort(-price[out], kind="stable")], come[np.argsort(price[come], kind="stable")]
        if frozen is None:
            # disjoint pairs come first, which can be taken together
            both = min(len(out), len(come), _CHUNK)
            yield self._flipped(x, np.stack([out[:both], come[:both]], axis=1))
        yield from self._best(x, price, weight, out, come, _BREADTH if frozen is None else _STEP)

    def _best(
        self, x: Bits, price: Floats, weight: Floats, out: Indices, come: Indices, breadth: int
    ) -> Iterator[Bits]:
        """Pairs of the first `breadth` units of either side, and single flips, in order."""
        pairs = _grid(out[:breadth], come[:breadth])
        if max(len(out), len(come)) > breadth:
            for part in self._partitions:
                pairs = np.concatenate([pairs, _within_parts(out, come, part)])
        change = price[pairs[:, 1]] - price[pairs[:, 0]]
        few = breadth == _STEP
        if few and self.surrogate is not None and len(pairs):
            change -= weight[pairs[:, 0]] * self._coupled(pairs)
        if self.box.k is None:
            # n stands for no unit
            alone = np.concatenate([out, come])
            pairs = np.concatenate([pairs, np.stack([alone, np.full(len(alone), self.box.n)], axis=1)])
            change = np.concatenate([change, -price[out], price[come]])
        order = np.argsort(change, kind="stable")
        size = _FEW if few else _CHUNK
        for begin in range(0, min(len(order), size * _CHUNKS), size):
            yield self._flipped(x, pairs[order[begin : begin + size]])

    def _coupled(self, pairs: Indices) -> Floats:
        rows = {int(i): self.surrogate.couplings.row(int(i)) for i in np.unique(pairs[:, 0])}
        return np.array([rows[i][j] for i, j in pairs.tolist()])

    def _flipped(self, x: Bits, pairs: Indices) -> Bits:
        points = np.zeros((len(pairs), len(x) + 1), dtype=bool)
        points[:, :-1] = x
        rows = np.arange(len(pairs))
        for side in pairs.T:
            points[rows, side] ^= True
        return points[:, :-1].copy()

    def _drawn(self, x: Bits, rng: np.random.Generator, count: int) -> Bits:
        out, come = np.flatnonzero(self.free & x), np.flatnonzero(self.free & ~x)
        none = np.full(count, self.box.n)
        first = rng.choice(out, count) if len(out) else none
        second = rng.choice(come, count) if len(come) else none
        if self._partitions and len(out) and len(come):
            # where bounds are tight only swaps within a part are left
            part = self._partitions[int(rng.integers(len(self._partitions)))]
            for row in np.flatnonzero(rng.random(count) < 0.5):
                peers = come[part[come] == part[first[row]]]
                second[row] = rng.choice(peers) if len(peers) else second[row]
        if self.box.k is None:
            kind = rng.integers(3, size=count)
            first, second = np.where(kind == 1, none, first), np.where(kind == 2, none, second)
        return self._flipped(x, np.stack([first, second], axis=1))


class LevelMoves(Moves):
    """Switches of one or two coordinates to other levels.

    Features: the surrogate's predicted change, what each coordinate spends more, the levels taken and left.
    """

    def __init__(self, box: BlackBox) -> None:
        assert isinstance(box.space, (LevelTuples, LevelChoice))
        self.box, self.space, self.surrogate = box, box.space, box.surrogate
        self.totals = LevelSpace(box.space)
        self.sizes_of = self.space.sizes
        self.first = np.concatenate([[0], np.cumsum(self.sizes_of)])
        self.cost = np.concatenate(self.space.cost).astype(np.float64)
        self.cost_scale = max(float(self.cost.std()), 1.0)
        self.blocks = [("surrogate", 1)] if self.surrogate is not None else []
        self.blocks += [("trend", self.space.n), ("coordinate", int(self.sizes_of.sum()))]
        self.scale = 1.0

    def start(self, run: Run) -> Any:
        """Some tuple that meets the budget, no coordinate far from its mean cost where that can be."""
        return even(self.space)

    def measure(self, x: Indices) -> None:
        """Count the surrogate's predictions in standard deviations of single switches at x (L,)."""
        if self.surrogate is not None:
            self.scale = float(self._predicted(x, self._switched(x)[0]).std()) or 1.0

    def _predicted(self, x: Indices, points: Indices) -> Floats:
        if not len(points):
            return np.zeros(0)
        change = np.asarray(self.surrogate.value(points), dtype=np.float64) - float(self.surrogate.value(x))
        # a surrogate may know nothing of a tuple outside the budget
        return np.where(np.isfinite(change), change, 0.0)

    def features(self, x: Indices, points: Indices) -> Floats:
        """(m, p): predicted change, what each coordinate spends more, levels taken and left."""
        now, then = self.first[:-1] + x, self.first[:-1] + points
        rows = np.arange(len(points))[:, None]
        levels = np.zeros((len(points), len(self.cost)))
        levels[rows, then] += 1.0
        levels[:, now] -= 1.0
        dearer = (self.cost[then] - self.cost[now]) / self.cost_scale
        if self.surrogate is None:
            return np.concatenate([dearer, levels], axis=1)
        predicted = self._predicted(x, points)[:, None] / self.scale
        return np.concatenate([predicted, dearer, levels], axis=1)

    def codes(self, points: Indices) -> Floats:
        """(m, sum_l (S_l - 1)) for each level above the lowest whether it is reached."""
        steps = [points[:, [i]] >= np.arange(1, size) for i, size in enumerate(self.sizes_of)]
        return 2.0 * np.concatenate([np.zeros((len(points), 0)), *steps], axis=1) - 1.0

    def guesses(self, points: Indices) -> Floats:
        """(m,) the surrogate's values, 0 for tuples it knows nothing of."""
        if self.surrogate is None:
            return np.zeros(len(points))
        values = np.asarray(self.surrogate.value(points), dtype=np.float64) / self.scale
        return np.where(np.isfinite(values), values, 0.0)

    def flips(self, x: Indices) -> tuple[Indices, Indices, Floats]:
        """Each other level of each coordinate."""
        points, where, _ = self._switched(x)
        slots = self.first[where] + points[np.arange(len(points)), where]
        return points, sum(width for _, width in self.blocks) - len(self.cost) + slots, np.ones(len(points))

    def _switched(self, x: Indices) -> tuple[Indices, Indices, Floats]:
        """Every tuple (m, L) with one other level, in the budget or not, its coordinate (m,) and what it costs more."""
        where = np.repeat(np.arange(self.space.n), self.sizes_of)
        level = np.arange(len(where)) - self.first[where]
        other = level != x[where]
        where, level = where[other], level[other]
        points = np.repeat(x[None], len(where), axis=0)
        points[np.arange(len(where)), where] = level
        return points, where, self.totals.spent(points) - self.totals.spent(x[None])

    def _ordered(self, x: Indices, theta: Floats, frozen: Bits | None = None) -> Iterator[Indices]:
        points, where, cost = self._switched(x)
        change = self.features(x, points) @ theta if len(points) else np.zeros(0)
        may = np.ones(len(points), dtype=bool) if frozen is None else ~frozen[where]
        spent = self.totals.spent(x[None])
        a, b = np.triu_indices(len(points), 1)
        both = (where[a] != where[b]) & may[a] & may[b] & self._may_fit(spent + cost[a] + cost[b])
        a, b = a[both], b[both]
        alone = np.flatnonzero(may & self.totals.fits(spent + cost))
        a, b = np.concatenate([a, alone]), np.concatenate([b, alone])
        total = np.where(a == b, change[a], change[a] + change[b])
        order = np.argsort(total, kind="stable")
        for begin in range(0, len(order), _CHUNK):
            some = order[begin : begin + _CHUNK]
            moved = np.where(points[b[some]] != x, points[b[some]], points[a[some]])
            yield moved

    def _may_fit(self, spent: Floats) -> Bits:
        # the largest of the costs says nothing of two switches together; whoever takes a move asks the space again
        return np.ones(len(spent), dtype=bool) if self.totals.largest else self.totals.fits(spent)

    def _drawn(self, x: Indices, rng: np.random.Generator, count: int) -> Indices:
        moves = np.concatenate([*self._ordered(x, np.zeros(sum(width for _, width in self.blocks))), x[None]])
        return moves[rng.integers(len(moves) - 1, size=count)] if len(moves) > 1 else moves[:0]


def _groups(box: BlackBox) -> Indices:
    """(n,) group of each unit: the instance's own, else the blocks of the surrogate, else the first GroupBounds."""
    told = box.meta.get("groups")
    sizes = [int(group["size"]) for group in told] if told else []
    if sum(sizes) == box.n and sizes:
        return np.repeat(np.arange(len(sizes)), sizes)
    couplings = getattr(box.surrogate, "couplings", None)
    if isinstance(couplings, Blocks):
        return couplings.block_of
    for bounds in box.of_kind(GroupBounds):
        return np.where(bounds.group < 0, len(bounds.low), bounds.group)
    return np.zeros(box.n, dtype=np.int64)


def _grid(out: Indices, come: Indices) -> Indices:
    return np.stack([np.repeat(out, len(come)), np.tile(come, len(out))], axis=1)


def _within_parts(out: Indices, come: Indices, part: Indices) -> Indices:
    """Pairs of the first few of either side that lie in the same part."""
    few = [_grid(out[part[out] == p][:_STEP], come[part[come] == p][:_STEP]) for p in np.unique(part[out])]
    return np.concatenate([np.zeros((0, 2), dtype=np.int64), *few])


def moves_of(box: BlackBox, free: Bits) -> Moves:
    """The moves of the black box's space."""
    return UnitMoves(box, free) if isinstance(box.space, Selections) else LevelMoves(box)
