"""Best-first branch and bound where nothing but an exact cardinality, or nothing at all, restrains the bits.

The units that reduced costs settle at the root are folded away, the diagonal is sharpened for those that are left, and
the rest is branched on; a node costs some tens of microseconds.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from prunesolve.problems import BinaryQuadratic, Budget, GroupBounds

from . import _kernels
from ._convexity import Sharpener, power_of_two

_EPS = float(np.finfo(np.float64).eps)
LARGEST = 2048  # units; the matrix is laid out densely
_POOL = 1 << 28  # bytes of starting points kept for open nodes
_LINE = 2.0**-40  # of the size of the values: a gap closed to this is closed
_TRIAL = 2000  # nodes a tree may have before its diagonal is sharpened
_STRIDE = 5  # Newton steps between two attempts to fix units
_STEPS = 40  # Newton steps in all
_ROUNDS = 6  # of pairwise steps and linear systems by turns


def suits(problem: BinaryQuadratic) -> bool:
    """Whether the problem has no constraint but a cardinality and is small enough to be laid out densely."""
    return 2 <= problem.n <= LARGEST and not problem.of_kind(Budget) and not problem.of_kind(GroupBounds)


def prepare() -> None:
    """Load or compile the kernels."""
    with _kernels.telling("branching"):
        for k in (1, -1):
            _relax(Core(np.zeros((2, 2)), np.arange(2.0), np.ones(2), k), np.full(2, 0.5), np.inf)
            _kernels.load("faces").descend_face(np.eye(2), np.zeros(2), k, np.array([True, False]))


@dataclass(frozen=True)
class Core:
    """The units not yet fixed: offset + a.x + x'Hx over x in {0, 1}^m of k ones, in units of `unit`."""

    half: Any  # (m, m) H, zero diagonal
    linear: Any  # (m,) a
    d: Any  # (m,) makes H + diag(d) convex (on sum v = 0 where k >= 0)
    k: int  # -1 where any number may be kept
    offset: float = 0.0
    unit: float = 1.0  # a power of two, so that scaling is exact
    margin: float = 0.0  # what rounding may add to a bound
    units: Any = None  # (m,) their places in the problem
    kept: Any = None  # (n,) bool, what is fixed to be kept

    @classmethod
    def of(cls, problem: BinaryQuadratic, d: Any) -> Core:
        """The whole problem, scaled to numbers about 1."""
        half = 0.5 * problem.couplings.dense()
        unit = power_of_two(half, problem.linear, d)
        half, linear, d, offset = half / unit, problem.linear / unit, d / unit, problem.offset / unit
        core = cls(
            np.ascontiguousarray(half),
            linear,
            d,
            -1 if problem.k is None else problem.k,
            offset,
            unit,
            units=np.arange(problem.n),
            kept=np.zeros(problem.n, dtype=bool),
        )
        return replace(core, margin=core.rounding())

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.linear)

    def rounding(self) -> float:
        """What rounding may add to a bound: every value is a sum of these terms, each added up at most n times."""
        terms = abs(self.offset) + np.abs(self.linear).sum() + np.abs(self.half).sum() + 3 * np.abs(self.d).sum()
        return float(4 * (self.size + 8) * _EPS * terms)

    def with_diagonal(self, d: Any) -> Core:
        """The same bits relaxed with another diagonal; the margin covers both."""
        changed = replace(self, d=d)
        return replace(changed, margin=self.margin + changed.rounding())

    def face(self, fixed: Any) -> Core:
        """The core of the units that `fixed` (m,) leaves free."""
        free, inside = np.flatnonzero(fixed < 0), np.flatnonzero(fixed == 1)
        kept = self.kept.copy()
        kept[self.units[inside]] = True
        return replace(
            self,
            half=np.ascontiguousarray(self.half[np.ix_(free, free)]),
            linear=self.linear[free] + 2 * self.half[np.ix_(free, inside)].sum(axis=1),
            d=self.d[free],
            k=self.k - len(inside) if self.k >= 0 else -1,
            offset=float(self.offset + self.linear[inside].sum() + self.half[np.ix_(inside, inside)].sum()),
            units=self.units[free],
            kept=kept,
        )

    def convex(self, d: Any) -> tuple[Any, Any]:
        """M = H + diag(d) and c = a - d."""
        matrix = self.half.copy()
        matrix[np.arange(self.size), np.arange(self.size)] += d
        return matrix, self.linear - d

    def selection(self, x: Any) -> Any:
        """(n,) bool of the problem from (m,) bool of the core."""
        kept = self.kept.copy()
        kept[self.units] = x
        return kept

    def middle(self) -> Any:
        """(m,) a point to start from."""
        return np.full(self.size, 0.5 if self.k < 0 else self.k / max(1, self.size))


class _Found(NamedTuple):
    """What the kernel brings back from a face."""

    bound: float
    value: float
    unit: int
    fixed: Any  # (m,)
    y: Any  # (m,)
    rounded: Any  # (m,)


def _relax(core: Core, y: Any, cutoff: float, d: Any = None) -> _Found:
    """The relaxation of the whole core."""
    matrix, linear = core.convex(core.d if d is None else d)
    return _on_face(core, matrix, linear, np.full(core.size, -1, dtype=np.int8), np.array(y), cutoff)


def _relax_closely(core: Core, y: Any, d: Any, stop: Callable[[], bool] = lambda: False) -> tuple[float, Any]:
    """Bound and minimiser (m,) to high accuracy: pairwise steps find which units are fractional, a linear system where.

    Near a singular matrix the pairwise steps alone would take for ever.
    """
    matrix, linear = core.convex(d)
    best, best_y = -np.inf, y
    for _ in range(_ROUNDS):
        free = np.full(core.size, -1, dtype=np.int8)
        found = _on_face(core, matrix, linear, free, np.array(best_y), np.inf, 5 * core.size + 100)
        if found.bound <= best + _LINE * (1.0 + abs(best)) or stop():
            break
        best, best_y = found.bound, _settled(matrix, linear, found.y, core.k >= 0)
    return (found.bound, found.y) if found.bound > best else (best, found.y)


def _settled(matrix: Any, linear: Any, y: Any, balanced: bool) -> Any:
    """(m,) the minimiser over the fractional units, as far towards it as the box allows."""
    y = y.copy()
    for _ in range(_ROUNDS):
        at = np.flatnonzero((y > 0) & (y < 1))
        if len(at) < 2:
            break
        slope = linear[at] + 2 * matrix[at] @ y
        rows = np.column_stack([slope, np.ones(len(at))])
        try:
            step, even = np.linalg.solve(2 * matrix[np.ix_(at, at)] + balanced * _even(matrix), rows).T
        except np.linalg.LinAlgError:
            break
        step = step - even * (step.sum() / even.sum()) if balanced else step
        room = np.where(step > 0, y[at], 1 - y[at]) / np.maximum(np.abs(step), 1e-300)
        length = min(1.0, float(room.min()))
        y[at] -= length * step
        y[at[room <= length]] = np.rint(y[at[room <= length]])
        if length == 1.0 or not np.isfinite(y).all():
            break
    return np.clip(np.nan_to_num(y), 0.0, 1.0)


def _even(matrix: Any) -> float:
    """A multiple of 11' that keeps a matrix definite that only is so on sum v = 0."""
    return float(np.abs(matrix).sum()) / max(1, len(matrix)) ** 2


def _on_face(
    core: Core, matrix: Any, linear: Any, fixed: Any, y: Any, cutoff: float, steps: int | None = None
) -> _Found:
    rounded = np.empty(core.size, dtype=np.bool_)
    steps = 20 * core.size + 1000 if steps is None else steps
    bound, value, unit = _kernels.load("faces").relax_face(
        matrix, linear, core.k, fixed, y, cutoff - core.offset, core.margin, steps, rounded
    )
    return _Found(bound + core.offset, value + core.offset, unit, fixed, y, rounded)


class _Node(NamedTuple):
    """An open part of the tree; ordered by bound, then by age so that equal bounds compare no arrays."""

    bound: float
    age: int
    unit: int
    fixed: Any  # (m,) int8
    y: Any  # (m,) float32, None where memory is short


class Branching:
    """The search for selections better than the best value known by at least `lead`.

    Parameters
    ----------
    problem : BinaryQuadratic
        One that `suits`.
    d : (n,)
        A verified diagonal.
    value : float
        Value of a feasible selection, inf where none is known.
    lead : float
        How much better a selection must be to count.
    offer : callable
        Told every better selection (n,) bool.
    """

    def __init__(
        self,
        problem: BinaryQuadratic,
        d: Any,
        *,
        value: float = np.inf,
        lead: float = 0.0,
        offer: Callable[[Any], Any] = lambda x: None,
    ) -> None:
        self.problem, self.core = problem, Core.of(problem, d)
        self.value, self.lead, self.offer = value / self.core.unit, lead / self.core.unit, offer
        self.ages = itertools.count()
        self.open: list[_Node] = []
        self._root_bound = -np.inf
        self._nodes = 0
        self._sharp = False

    @property
    def cutoff(self) -> float:
        """What a bound must reach for its node to be done with, in the core's unit."""
        return self.value - self.lead

    @property
    def bound(self) -> float:
        """A number below the value of every selection, or at most the best value less the lead."""
        least = self.open[0].bound if self.open else np.inf
        return float(self.core.unit * min(max(least, self._root_bound), self.cutoff - self.core.margin))

    @property
    def done(self) -> bool:
        """Whether nothing better than the cutoff is left."""
        return not self.open or self.open[0].bound >= self.cutoff

    def root(self, stop: Callable[[], bool]) -> None:
        """Relax, fix and fold; then one node is open, or none where that was all.

        A diagonal that leaves most units unsettled is sharpened at once. One that settles them is good enough to try
        first: being of low rank it leaves few units fractional, and branching ends sooner on it.
        """
        whole = self.core.size
        found = _relax(self.core, self.core.middle(), np.inf)
        self._improve(found)
        while True:
            found = _relax(self.core, found.y, self.cutoff)
            self._root_bound = max(self._root_bound, found.bound)
            self._take(found)
            if not self._shrink(found):
                break
            found = found._replace(y=found.y[found.fixed < 0])
        if self.core.size > whole // 2:
            self._sharpen(found.y, stop)
        self._plant()

    def _plant(self) -> None:
        """Begin a tree over the core."""
        self.open = []
        self._convex = self.core.convex(self.core.d)
        self._open(np.full(self.core.size, -1, dtype=np.int8), self.core.middle())

    def _improve(self, found: _Found) -> None:
        """Descend from the rounded point."""
        matrix, linear = self.core.convex(self.core.d)
        x = found.rounded.copy()
        value = _kernels.load("faces").descend_face(matrix, linear, self.core.k, x) + self.core.offset
        self._take(found._replace(value=value, rounded=x))

    def _take(self, found: _Found) -> None:
        """Keep the rounded selection if it is better.

        The problem values it: the kernel adds and subtracts the diagonal, which drowns small numbers beside a giant.
        """
        doubt = self.core.margin if self.core.margin > 0.25 * self.lead else 0.0
        if found.value < self.value + doubt:
            x = self.core.selection(found.rounded)
            value = float(self.problem.value(x)) / self.core.unit
            if value < self.value:
                self.value = value
                self.offer(x)

    def _shrink(self, found: _Found) -> bool:
        """Fold the settled units away; False where there are none, or all are."""
        left = int((found.fixed < 0).sum())
        if left == self.core.size or left == 0:
            return False
        self.core = self.core.face(found.fixed)
        return True

    def _sharpen(self, y: Any, stop: Callable[[], bool]) -> None:
        """Lower the diagonal where the relaxation is fractional, for as long as that brings the bound on."""
        self._sharp = True
        steps = 0
        while steps < _STEPS and self.core.size > 2 and self._root_bound < self.cutoff - _LINE and not stop():
            core = self.core

            def relax(d: Any, y: Any, core: Core = core) -> tuple[float, Any]:
                return _relax_closely(core, y, d, stop)

            sharpener = Sharpener(core.half, core.k, core.d, y, relax, stop)
            going = True
            while going and not stop() and steps < _STEPS:
                going = sharpener.step()
                steps += 1
                if steps % _STRIDE == 0 and self._adopt(sharpener):
                    break
            else:
                self._adopt(sharpener)
                return
            y = self.core.middle()

    def _adopt(self, sharpener: Sharpener) -> bool:
        """Take the diagonal over if it is proved and better; True where units could be folded away."""
        d = sharpener.verified()
        if d is None or sharpener.bound <= self._root_bound:
            return False
        core = self.core.with_diagonal(d)
        found = _relax(core, sharpener.y, self.cutoff)
        if found.bound <= self._root_bound:
            return False
        self.core, self._root_bound = core, found.bound
        self._improve(found)
        found = _relax(core, sharpener.y, self.cutoff)
        self._take(found)
        return self._shrink(found)

    def expand(self, stop: Callable[[], bool]) -> None:
        """Open the node of least bound, both ways; a tree that grows is begun anew on a sharper diagonal."""
        node = heapq.heappop(self.open)
        self._nodes += 1
        if self._nodes > _TRIAL and not self._sharp:
            self._root_bound = max(self._root_bound, node.bound)
            self._sharpen(self.core.middle(), stop)
            self._plant()
            return
        for side in (1, 0):
            fixed = node.fixed.copy()
            fixed[node.unit] = side
            self._open(fixed, self.core.middle() if node.y is None else node.y.astype(np.float64))

    def _open(self, fixed: Any, y: Any) -> None:
        found = _on_face(self.core, *self._convex, fixed, y, self.cutoff)
        self._take(found)
        if found.unit < 0 or found.bound >= self.cutoff:
            return
        room = 4 * self.core.size * len(self.open) < _POOL
        y32 = found.y.astype(np.float32) if room else None
        heapq.heappush(self.open, _Node(max(found.bound, self._root_bound), next(self.ages), found.unit, fixed, y32))
