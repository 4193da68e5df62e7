"""Drives a compiled search in short calls: between two of them the clock is read and improvements are offered."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, Budget, GroupBounds
from prunesolve.problems._feasibility import cheapest

from . import _kernels
from ._base import Run
from ._start import feasible_start

_PROBES = 1000  # proposals that measure the scale of the moves
_GIANT = 1e3  # medians from which a change is no measure of the others
_OFFERS = 0.05  # share of the time that improvements on the way may cost; recomputing one is O(n^2)


class Search:
    """One search of one run.

    Attributes
    ----------
    view : _kernels.View
        The problem as the kernels see it.
    state, walk
        Where the search stands and what it remembers, see `_kernels.limits.State` and `_kernels.moves.Walk`.
    moves : int
        Flips, swaps or both: whatever the constraints leave room for.
    """

    def __init__(self, problem: BinaryQuadratic, run: Run, x: Any, view: _kernels.View) -> None:
        self._at = _kernels.load("moves")
        self.run, self.problem, self.view = run, problem, view
        self.moves = _moves(problem, self._at)
        self.state = _kernels.state(view, x)
        self.walk = self._new_walk(x)
        self._loose = _kernels.loose(problem)
        self._aside: Any = None  # what a tabu kernel keeps beside the state
        self._strength = 0
        self._offered = math.inf
        self._offer_seconds = self._offers_seconds = 0.0
        self._pace = _kernels.Pace(work=100)

    @classmethod
    def begin(cls, problem: BinaryQuadratic, run: Run, *, sums: bool = False) -> Search | None:
        """A search from the caller's start, else a greedy one; None where no feasible selection is found."""
        fields = _kernels.view(problem)
        x = run.start
        if x is None:
            x = cls._greedy(problem, run, fields) if _constructible(problem) else None
            if x is None:
                x = feasible_start(problem, run.rng, run.should_stop)
            if x is None:
                return None
            run.offer(x)
        return cls(problem, run, x, _kernels.view(problem, sums=sums))

    @classmethod
    def _greedy(cls, problem: BinaryQuadratic, run: Run, fields: _kernels.View) -> Any:
        """(n,) the better of greedy additions and greedy removals, see `_constructible`."""
        wanted = -1 if problem.k is None else problem.k
        built: list[tuple[float, Any]] = []
        for full in (False, True):
            search = cls(problem, run, np.full(problem.n, full), fields)
            if search._construct(not full, wanted):
                built.append((search.walk.real[search._at.VALUE], search.state.x))
            elif not built:
                return search._rounded(wanted)
        return min(built, key=lambda b: b[0])[1]

    def _construct(self, adds: bool, wanted: int) -> bool:
        """Greedy from where the search stands, in short calls; whether it came to its end."""
        kernel, scan, pace = _kernels.load("drop_add").construct, _kernels.scan(self.view), _kernels.Pace(work=16)
        while not self.run.should_stop():
            began = time.perf_counter()
            portion = pace.work
            if kernel(*self.view, self.state, self.walk, scan, adds, wanted, portion) < portion:
                return True
            pace.learn(time.perf_counter() - began, self.run.remaining)
        return False

    def _rounded(self, wanted: int) -> Any:
        """(n,) what is kept so far, filled up by the fields as they stand."""
        if wanted < 0:
            return self.state.x
        asks = self.problem.fields(self.state.x)
        asks[self.state.x] -= 2 * np.abs(asks).max()
        groups = self.problem.of_kind(GroupBounds)
        return cheapest(asks, wanted, groups[0] if groups else None, self.problem.n)[1]

    def _new_walk(self, x: Any) -> Any:
        n = self.problem.n
        walk = self._at.Walk(
            best=np.array(x, dtype=bool),
            top=np.full(n, -1.0),
            until=np.zeros(n, dtype=np.int64),
            price=np.zeros(len(self.view.limits.limit)),
            real=np.zeros(7),
            whole=np.zeros(4, dtype=np.int64),
            chance=self.run.rng.integers(0, 2**64, size=1, dtype=np.uint64),
            changes=np.full(_PROBES, -1.0),
        )
        walk.real[self._at.BEST] = math.inf
        walk.whole[self._at.SWEEP] = -1
        return walk

    def reprice(self, share: float = 1.0) -> None:
        """Price the budgets at the best selection so far, `share` of what the break-even unit pays."""
        self.walk.price[:] = 0.0
        budgets = self.problem.of_kind(Budget)
        if budgets:
            h = self.problem.fields(self.walk.best)
            prices = np.array([_price(self.problem, b.capped, h, self.walk.best) for b in budgets])
            self.walk.price[:] = share * prices / max(1, int((prices > 0).sum()))

    # --- annealing -------------------------------------------------------------------------------------------------

    def heat(self, start: float, cooling: float, sweeps: int) -> None:
        """Begin an annealing from where the search stands."""
        at, walk = self._at, self.walk
        walk.real[at.HEAT], walk.real[at.COOLING] = start, cooling
        walk.whole[at.SWEEPS] = sweeps
        if walk.whole[at.SWEEP] > 0:
            walk.whole[at.SWEEP] = walk.whole[at.STEP] = 0

    @property
    def unfinished(self) -> bool:
        """Whether the sweeps asked for are still to be done."""
        return bool(self.walk.whole[self._at.SWEEP] < self.walk.whole[self._at.SWEEPS])

    def anneal(self, most: float = math.inf) -> int:
        """At most `most` proposals of the annealing, in one short call; returns their number."""
        kernel = _kernels.load("annealing").anneal
        limit = int(min(most, self.run.evaluations_left, 2**62))
        fixed = (*self.view, self.state, self.walk, self.moves, limit)
        return self._counted(lambda work: kernel(*fixed, work))

    def mean_change(self) -> float:
        """Mean absolute change of the value over a random walk that is thrown away, giants left out."""
        scout = Search(self.problem, self.run, self.state.x, self.view)
        scout.walk.real[self._at.BEST] = -math.inf
        scout.heat(math.inf, 1.0, _PROBES)
        left = min(_PROBES, self.run.evaluations_left // 10)
        while left > 0 and not self.run.should_stop():
            left -= scout.anneal(left)
        self.walk.top[:] = scout.walk.top
        changes = scout.walk.changes[scout.walk.changes >= 0]
        if not changes.any():
            return 0.0
        # one giant coupling among ones would set a heat at which the ones do not count
        return float(changes[changes <= _GIANT * np.median(changes[changes > 0])].mean())

    # --- tabu ------------------------------------------------------------------------------------------------------

    def tabu(self, tenure: tuple[int, int], patience: int, most: float = math.inf) -> int:
        """Steps of tabu search in one short call, until `patience` of them brought nothing; returns their number."""
        kernel = _kernels.load("drop_add" if self._loose else "tabu").search
        self.walk.whole[self._at.SWEEPS] = patience
        if self._aside is None:
            self._aside = _kernels.scan(self.view) if self._loose else np.zeros(len(self.view.limits.low))
        fixed = (*self.view, self.state, self.walk, self._aside, self.moves, np.array(tenure))
        limit, strength, self._strength = int(min(most, self.run.evaluations_left, 2**62)), self._strength, 0
        return self._counted(lambda work: kernel(*fixed, strength, min(limit, work)))

    def shake(self, strength: int) -> None:
        """Go on from the best selection so far, after `strength` random moves."""
        self._strength = strength
        self.walk.whole[self._at.SWEEP] = 0

    # --- both ------------------------------------------------------------------------------------------------------

    def _counted(self, kernel: Callable[[int], int]) -> int:
        began = time.perf_counter()
        done = kernel(self._pace.work)
        self.run.count(done)
        if self.unfinished:
            self._pace.learn(time.perf_counter() - began, self.run.remaining - self._offer_seconds)
        if self._offer_seconds == 0.0 or self._offers_seconds < _OFFERS * self.run.seconds:
            self.offer()
        return int(done)

    def offer(self) -> None:
        """Offer the best selection, or the present one where that is better and not yet put aside."""
        at, real = self._at, self.walk.real
        present = real[at.VALUE] < real[at.BEST] - real[at.LEAST]
        value = real[at.VALUE] if present else real[at.BEST]
        if not value < self._offered - real[at.LEAST]:
            return
        self._offered = value
        began = time.perf_counter()
        self.run.offer(self.state.x if present else self.walk.best)
        self._offer_seconds = time.perf_counter() - began
        self._offers_seconds += self._offer_seconds


def _constructible(problem: BinaryQuadratic) -> bool:
    """Whether greedy moves keep their promises to the constraints: none, or a cardinality and one partition."""
    if problem.of_kind(Budget) or len(problem.of_kind(GroupBounds)) > 1:
        return False
    return problem.k is not None or not problem.constraints


def _moves(problem: BinaryQuadratic, at: Any) -> int:
    if not problem.constraints:
        return int(at.FLIPS)
    fixed = problem.k is not None or any(_leaves_no_flip(b) for b in problem.of_kind(GroupBounds))
    return int(at.SWAPS if fixed else at.BOTH)


def _leaves_no_flip(bounds: GroupBounds) -> bool:
    return bool((bounds.group >= 0).all() and (bounds.low == bounds.high).all())


def _price(problem: BinaryQuadratic, budget: Budget, h: Any, x: Any) -> float:
    """The least price at which the problem linearised at x, min (h + price cost) y, keeps within the budget."""
    cost = budget.cost if budget.pair is None else budget.cost + budget.pair @ x.astype(np.float64)
    # pairs are spent once, but each of the two units sees them in its marginal cost
    limit = budget.limit * max(1.0, float(cost @ x) / max(budget.spent(x), math.ulp(0.0)))
    worth, dear = float(np.abs(h).max()), float(cost.max(initial=0.0))
    # in units of the largest, since a ratio of extremes leaves the float64 range
    asks, asked = h / (worth or 1.0), cost / (dear or 1.0)

    def spent(price: float) -> float:
        total = asks + price * asked
        kept = np.argsort(total, kind="stable")[: problem.k] if problem.k is not None else total < 0
        return float(cost[kept].sum())

    low, high = 0.0, 1.0
    if spent(low) <= limit:
        return 0.0
    for _ in range(60):
        if spent(high) <= limit:
            break
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) <= limit else (middle, high)
    with np.errstate(over="ignore"):
        price = np.float64(high) * worth / dear
    return float(price) if np.isfinite(price) else 0.0
