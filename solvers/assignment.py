r"""The cheapest k pairs of a cost table, proved: k shortest augmenting paths with prices.

minimise    sum of c_ij over k pairs (i, j), no row and no column in two of them
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import InvalidProblem, PartialTransport
from prunesolve.problems._arrays import Floats

from . import _kernels, _plans
from ._base import Run, Solver, Status

_PASSES = 2  # of augmenting row reduction
_BLOCK = 1 << 18  # costs read between two looks at the clock
_FIRST = 1 << 20  # columns looked at before the first look


@dataclass(frozen=True)
class Assignment(Solver):
    r"""Partial transport between points of one weight w, as the k-cardinality assignment that it is: mass = k w.

        max  t k + sum u_i + sum v_j    over  t + u_i + v_j <= c_ij,  u <= 0,  v <= 0          (times w)

    t is the price of a row that stays alone. It begins just below the k-th least row minimum or column minimum, which
    no optimal price is below: fewer than k pairs cost less. Augmenting row reduction and one shortest path for each
    row left over give the best matching at that price. Then t rises by shortest paths from any free row to any free
    column, each of which makes the matching the best of one pair more. Where all of the rows are to be matched no row
    stays alone, and t is not needed.

    Paths run along lists of each row's cheapest columns. Prices of columns only fall, so that what is not on a list
    stays known to be too dear, and a row is read whole only where a path gets that far; in narrow tables, and where it
    gets that far too often, paths from a single row go without lists. Beside the costs, which are
    read where they are in single or double precision, memory is O(n + m). The prices at the end are the proof, checked
    over the whole table by the library. An evaluation is one shortest path.

    Other weights, and masses that are no whole multiple of them, are for `network-simplex`.

    Parameters
    ----------
    path : bool
        Begin at no pair and tell the least cost of 0, 1, ..., k pairs in `details["path"]`; slower.

    Reference
    ---------
    Jonker and Volgenant, A shortest augmenting path algorithm for dense and sparse linear assignment problems, 1987.
    Dell'Amico and Martello, The k-cardinality assignment problem, 1997. Lists with bounds on what is not on them, and
    the first price, are our reconstruction.

    Examples
    --------
    >>> problem = PartialTransport([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]], [1] * 3, [1] * 3, mass=2)
    >>> result = Assignment(path=True).solve(problem)
    >>> result.solution.toarray().tolist(), result.objective, result.bound
    ([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], 2.0, 2.0)
    >>> result.details["path"]
    [0.0, 0.0, 2.0]
    """

    path: bool = False

    name: ClassVar[str] = "assignment"
    accepts: ClassVar[type[Any]] = PartialTransport

    def __post_init__(self) -> None:
        if not isinstance(self.path, bool):
            raise InvalidProblem(f"path: expected True or False, got {self.path!r}")

    def refuse(self, problem: Any) -> str | None:
        """Weights must be one, and the mass a whole multiple of it."""
        reason = super().refuse(problem)
        if reason is None and problem.unit is None:
            return (
                f"{self.name} takes one weight for all rows and columns and a mass that is a whole multiple of it, "
                f"got weights from {min(problem.source.min(), problem.target.min()):g} to "
                f"{max(problem.source.max(), problem.target.max()):g} and mass {problem.mass:g}; "
                "network-simplex takes any"
            )
        return reason

    def _prepare(self, problem: PartialTransport) -> None:
        _load(problem.cost.dtype)

    def _search(self, problem: PartialTransport, run: Run) -> Status | None:
        weight, k = problem.unit, problem.pairs
        assert weight is not None
        assert k is not None
        pairs = Pairs(problem.cost, k, path=self.path)
        slices = pairs.steps(run)
        while not run.should_stop() and next(slices, None) is not None:
            pass
        run.offer(_plan(problem, pairs, weight))
        run.prove_duals(*pairs.duals())
        run.details |= {"paths": pairs.searched}
        if self.path:
            run.details["path"] = (weight * pairs.values()).tolist()
        done = pairs.done and _plans.closed(problem, run.objective, run.bound)
        return Status.OPTIMAL if done else None


@cache
def _load(dtype: Any) -> None:
    """The kernels for costs of this type."""
    with _kernels.telling("assignment"):
        for k in (1, 2):
            Pairs(np.zeros((2, 2), dtype), k).find()


def _plan(problem: PartialTransport, pairs: Pairs, weight: float) -> Any:
    """(n, m) CSR: the pairs found; where the search was stopped the cheapest of what is free for the others."""
    from scipy import sparse

    rows, columns = pairs.matched()
    shape = problem.cost.shape
    plan = sparse.csr_array((np.full(len(rows), weight), (rows, columns)), shape=shape)
    if len(rows) == pairs.k:
        return plan
    left, room = np.full(problem.n, weight), np.full(problem.m, weight)
    left[rows], room[columns] = 0.0, 0.0
    return plan + _plans.filled(problem, left, room, weight * (pairs.k - len(rows)))


class Pairs:
    """The search for the cheapest k pairs of a cost (n, m), to be run in slices.

    Parameters
    ----------
    cost : (n, m) float64 or float32
        Read where it is.
    k : int
        Pairs, at least 1 and at most min(n, m).
    path : bool
        Go through the best matchings of all sizes.

    Examples
    --------
    >>> pairs = Pairs(np.array([[4.0, 1.0], [2.0, 0.0]]), 1).find()
    >>> [ends.tolist() for ends in pairs.matched()]
    [[1], [1]]
    """

    def __init__(self, cost: Any, k: int, *, path: bool = False) -> None:
        self.kernel = _kernels.load("assignment")
        seen = np.ascontiguousarray(cost).view()
        seen.setflags(write=False)
        self.k, self.path = k, path
        self.done = False
        self.levels = np.zeros(k)
        self._cost = seen
        self._matching = self.kernel.begin(seen)
        self._whole = k == cost.shape[0] <= cost.shape[1] and not path
        self._t = -math.inf

    @property
    def searched(self) -> int:
        """Shortest paths so far."""
        return int(self._matching.tally[0])

    def find(self) -> Pairs:
        """Run to the end."""
        for _ in self.steps():
            pass
        return self

    def matched(self) -> tuple[Any, Any]:
        """Rows and columns of the pairs."""
        rows = np.flatnonzero(self._matching.column_of >= 0)
        return rows, self._matching.column_of[rows]

    def duals(self) -> tuple[Floats, Floats]:
        """Duals u (n,) and v (m,); of a search that was stopped v alone means something."""
        price, v = self._matching.r, self._matching.v
        if not self.done:
            return np.zeros_like(price), v
        return np.minimum(0.0, price - (price.max() if self._whole else self._t)), v

    def values(self) -> Floats:
        """The least cost of 0, 1, ... pairs, as far as the search got; with `path` alone."""
        found = len(self.matched()[0])
        return np.concatenate([[0.0], np.cumsum(self.levels[:found])])

    def steps(self, run: Run | None = None) -> Iterator[bool]:
        """The search in slices of some milliseconds, which count in a run and keep its limits."""
        yield from self._lists()
        if self._whole:
            yield from self._match(np.arange(len(self._cost), dtype=np.int32), math.inf, run)
        else:
            yield from self._begin(run)
            yield from self._climb(run)
        self.done = True

    def _lists(self) -> Iterator[bool]:
        n, m = self._cost.shape
        step = max(1, _BLOCK // m)
        for first in range(0, n, step):
            self.kernel.list_rows(self._matching, first, min(n, first + step))
            yield True

    def _begin(self, run: Run | None) -> Iterator[bool]:
        """The best matching at a price that leaves it fewer than k pairs, or none."""
        least = self._matching.least
        self._t = float(least.min())
        if not self.path:
            columns = yield from self._column_minima()
            t = max(np.partition(sides, self.k - 1)[self.k - 1] for sides in (least, columns))
            self._t = float(np.nextafter(t, -np.inf))
            rows = np.flatnonzero(least < self._t).astype(np.int32)
            yield from self._match(rows, self._t, run)

    def _column_minima(self) -> Generator[bool, None, Floats]:
        n, m = self._cost.shape
        least, step = np.full(m, np.inf), max(1, _BLOCK // m)
        for first in range(0, n, step):
            self.kernel.column_minima(self._cost, first, min(n, first + step), least)
            yield True
        return least

    def _match(self, rows: Any, t: float, run: Run | None) -> Iterator[bool]:
        """The best matching of these rows where each may stay alone at price t."""
        self._matching.r[:] = t
        left = len(rows)
        for _ in range(_PASSES):
            left = self.kernel.reduce_rows(self._matching, rows, left, t)
            yield True
        first = 0

        def insert(work: int, most: int) -> bool:
            nonlocal first
            first = self.kernel.insert_rows(self._matching, rows, first, left, t, work, most)
            return first == left

        yield from self._paced(insert, run)

    def _climb(self, run: Run | None) -> Iterator[bool]:
        """Pair after pair."""
        found = len(self.matched()[0])

        def climb(work: int, most: int) -> bool:
            nonlocal found
            self._t, found = self.kernel.climb(self._matching, self._t, found, self.k, self.levels, work, most)
            return found == self.k

        yield from self._paced(climb, run)

    def _paced(self, search: Callable[[int, int], bool], run: Run | None) -> Iterator[bool]:
        """Calls of `search(columns to look at, paths to search)` until it is done."""
        pace = _kernels.Pace(_FIRST)
        while True:
            before, began = self.searched, time.perf_counter()
            done = search(pace.work, _most(run))
            if run is not None:
                pace.learn(time.perf_counter() - began, run.remaining)
                run.count(self.searched - before)
            if done:
                return
            yield True


def _most(run: Run | None) -> int:
    return 1 << 62 if run is None else int(min(run.evaluations_left, 1 << 62))
