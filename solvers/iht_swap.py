"""Gradient steps cut down to the pattern, then exchanges of single weights, each valued exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from prunesolve.problems import InvalidProblem, Keep, SparseRegression
from prunesolve.problems._arrays import Bits, Floats, Indices

from . import _kernels, get
from ._base import Run, Solver, Status
from ._sparse_rows import Rows
from ._sparse_starts import magnitude, wanda

_BEGINNINGS = ("iht", "admm", "obc")
_TIE = 1e-11  # share of the explained error that an exchange must save to be worth making
_WORK = 1 << 21  # entries of a tableau brought up to date before the clock is asked: a few milliseconds
_DOUBLINGS, _HALVINGS = 5, 20
_SETTLED = 1e-5  # share of the value that a gradient step must save, lest the steps end


@dataclass(frozen=True)
class IhtSwap(Solver):
    r"""Iterative hard thresholding with exact line search, then swaps until none improves.

    A step takes W to the largest of  W - t (W H - C)  that the pattern allows, in inputs scaled to a unit diagonal:
    t = ||g||^2 / <g, g H> is exact along g where the support stays as it is, and where it changes t is doubled while
    the value falls and halved until it does. Steps end when they save next to nothing; the weights that stay are
    refitted and the steps begin anew, until the support is the same.

    Then a weight leaves and another of the same quota comes, the best pair of a row each time, valued exactly with all
    others of the row refitted. The `active` weights of the support that cost least take part at a time, and as many
    from outside, those of the largest gradients, until none of their exchanges saves. For `Keep` a weight also leaves
    one row for one in another, the cheapest of a row for the best of another, until that saves nothing.

    The problem may also be a Fisher block of all weights of a network, `SparseRegression.from_gradients`: that is
    CHITA's regression, one row.

    An evaluation is one gradient step, or one row searched for exchanges. Without limits the search ends by itself.
    It begins with the better of the cheap selections by magnitude and by Wanda, or the start, or another solver.

    Parameters
    ----------
    steps : int
        The most gradient steps.
    active : int
        Weights inside a row's support and weights outside that take part in its exchanges at a time.
    begin : "iht", "admm" or "obc"
        What comes before the exchanges: the gradient steps, or another solver.

    Reference
    ---------
    R. Benbaki et al., Fast as CHITA: neural network pruning with combinatorial optimization, ICML 2023 (steps, active
    set and coordinate swaps). The tableau that values all pairs of a row at once is ours.

    Examples
    --------
    >>> problem = SparseRegression([[4.0, 2.0], [2.0, 4.0]], [[6.0], [0.0]], Keep(1), offset=9.0)
    >>> result = IhtSwap().solve(problem)
    >>> result.solution.tolist(), result.objective
    ([True, False], 0.0)
    """

    steps: int = 100
    active: int = 64
    begin: str = "iht"

    name: ClassVar[str] = "iht-swap"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = SparseRegression

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InvalidProblem(f"steps: expected a count >= 0, got {self.steps}")
        if self.active < 1:
            raise InvalidProblem(f"active: expected a count >= 1, got {self.active}")
        if self.begin not in _BEGINNINGS:
            raise InvalidProblem(f"begin: expected one of {', '.join(_BEGINNINGS)}, got {self.begin!r}")

    def _prepare(self, problem: SparseRegression) -> None:
        tiny = SparseRegression(np.eye(3), np.ones((3, 2)), Keep(2))
        with _kernels.telling("sparse regression"):
            IhtSwap()._search(tiny, Run(tiny, seed=0))
        if self.begin != "iht":
            get(self.begin)._prepare(problem)

    def _search(self, problem: SparseRegression, run: Run) -> Status | None:
        for cheap in (magnitude(problem), wanda(problem)):
            run.offer(cheap)
        if run.should_stop():
            return None
        run.prove(problem.least)
        if self.begin != "iht":
            run.delegate(get(self.begin), start=run.start)
        rows = Rows(problem)
        if self.begin == "iht":
            run.offer(_thresholded(problem, rows, rows.by_row(run.best), self.steps, run).ravel())
        search = _Exchanges(problem, rows, rows.by_row(run.best), self.active, run)
        while search.rows_improved() and search.moved_between_rows():
            pass
        run.offer(search.kept.ravel())
        return None


def _thresholded(problem: SparseRegression, rows: Rows, kept: Bits, steps: int, run: Run) -> Bits:
    """(o, d) the support that gradient steps lead to."""
    left, w, value = steps, problem.weights(kept.ravel()) * rows.scale, np.inf
    while left > 0 and not run.should_stop():
        before, left = value, left - 1
        w, value = _stepped(rows, problem.pattern, w, run)
        run.count()
        if before - value <= _SETTLED * abs(value):
            if np.array_equal(w != 0.0, kept):
                break
            kept = w != 0.0
            # the pattern asks for exact counts, and a weight that is kept may be 0
            kept = problem.pattern.best(np.where(kept, 1.0 + np.abs(w), np.abs(w)))
            w, value = problem.weights(kept.ravel()) * rows.scale, np.inf
    return problem.pattern.best(np.abs(w))


def _stepped(rows: Rows, pattern: Any, w: Floats, run: Run) -> tuple[Floats, float]:
    """One gradient step and the value there."""
    gradient = rows.product(w) - rows.cross
    value = _value(rows, w, gradient)
    along = gradient * (w != 0.0)
    # after a refit there is no gradient inside the support: the length is that along all of it
    if np.square(along).sum() <= 1e-18 * np.square(gradient).sum():
        along = gradient
    curvature = float((along * rows.product(along)).sum())
    if curvature <= 0.0:
        return w, value
    length = float(np.square(along).sum()) / curvature
    best, least, grew = w, value, 0
    for _ in range(_DOUBLINGS + _HALVINGS):
        found = w - length * gradient
        found = found * pattern.best(np.abs(found))
        reached = _value(rows, found, rows.product(found) - rows.cross)
        if reached < least:
            best, least, grew = found, reached, grew + 1
            if grew > _DOUBLINGS or np.array_equal(found != 0.0, w != 0.0):
                break
            length *= 2.0
        elif grew or run.halted:
            break
        else:
            length /= 2.0
    return best, least


def _value(rows: Rows, w: Floats, gradient: Floats) -> float:
    """The sum of w' H w - 2 w' c over rows, by H w - c."""
    return float((w * (gradient - rows.cross)).sum())


class _Ends(NamedTuple):
    """The cheapest removal and the best addition of a row, -1 where there is none."""

    gone: int
    cost: float
    come: int
    gain: float


class _Exchanges:
    """A selection whose rows are searched for exchanges until none of them saves."""

    def __init__(self, problem: SparseRegression, rows: Rows, kept: Bits, active: int, run: Run) -> None:
        self.rows, self.kept, self.active, self.run = rows, kept, active, run
        self.across = isinstance(problem.pattern, Keep)
        explained = float((rows.dense * rows.cross).sum())
        self.least = _TIE * abs(explained)
        self.groups = int(rows.group.max(initial=0)) + 1
        self.ends: dict[int, _Ends] = {}
        self.pending: list[int] = list(range(rows.o))

    def rows_improved(self) -> bool:
        """Search every row that has changed; whether there was time for all."""
        for row in self.pending:
            if self.run.should_stop():
                return False
            self._improve(row)
            self.run.count()
        self.pending = []
        return True

    def _improve(self, row: int) -> None:
        """Exchanges within a row until none saves, weights from outside chosen anew after each round."""
        kernel, hessian = _kernels.load("weight_swaps"), self.rows.damped(row)
        while True:
            at, table, z = self._tableau(row, hessian)
            kept, group = self.kept[row, at], self.rows.group[at]
            most, made, total = max(1, _WORK // max(1, 2 * table.size)), 1, 0
            while made and not self.run.halted:
                made = kernel.exchange(table, z, kept, group, self.least, most)
                total += made
            self.kept[row, at] = kept
            if not total or len(at) == self.rows.d or self.run.halted:
                break
        p, cost, q, gain = kernel.ends(table, z, kept)
        self.ends[row] = _Ends(int(at[p]) if p >= 0 else -1, cost, int(at[q]) if q >= 0 else -1, gain)

    def _tableau(self, row: int, hessian: Floats) -> tuple[Indices, Floats, Floats]:
        """The weights that take part, the tableau over them and its right side."""
        support, cross = np.flatnonzero(self.kept[row]), self.rows.cross[row]
        w, inverse = _fitted(hessian[np.ix_(support, support)], cross[support])
        # what removing each costs, and for the others their gradients squared, which is the least that adding one gains
        worth = np.square(cross - hessian[:, support] @ w)
        worth[support] = np.square(w) / inverse.diagonal()
        inside, outside = self._taking_part(row, worth)
        at, s = np.concatenate([inside, outside]), len(inside)
        place = np.searchsorted(support, inside)
        between = hessian[np.ix_(support, outside)]
        reach = inverse[place] @ between
        table = np.empty((len(at), len(at)))
        table[:s, :s], table[:s, s:], table[s:, :s] = -inverse[np.ix_(place, place)], reach, reach.T
        table[s:, s:] = hessian[np.ix_(outside, outside)] - between.T @ (inverse @ between)
        return at, table, np.concatenate([w[place], cross[outside] - between.T @ w])

    def _taking_part(self, row: int, worth: Floats) -> tuple[Indices, Indices]:
        """The weights inside and outside the support by whose exchange most may be saved."""
        kept, group = self.kept[row], self.rows.group
        inside, outside = np.flatnonzero(kept), np.flatnonzero(~kept)
        if self.groups == 1:
            return inside[_first(worth[inside], self.active)], outside[_first(-worth[outside], self.active)]
        cost, gain = np.full(self.groups, np.inf), np.zeros(self.groups)
        np.minimum.at(cost, group[inside], worth[inside])
        np.maximum.at(gain, group[outside], worth[outside])
        chosen = np.zeros(self.groups, dtype=bool)
        chosen[_first(cost - gain, max(1, 2 * self.active * self.groups // len(group)))] = True
        return inside[chosen[group[inside]]], outside[chosen[group[outside]]]

    def moved_between_rows(self) -> bool:
        """Let the cheapest weights go for the best of other rows, each row taking part once; whether any did."""
        if not self.across:
            return False
        gains = sorted(self.ends, key=lambda row: (-self.ends[row].gain, row))
        costs = sorted(self.ends, key=lambda row: (self.ends[row].cost, row))
        taken: set[int] = set()
        for there in gains:
            here = next((row for row in costs if row not in taken and row != there), None)
            if there in taken or here is None:
                continue
            come, gone = self.ends[there], self.ends[here]
            # no break: the row of the best gain may itself hold the cheapest removal
            if come.come < 0 or gone.gone < 0 or come.gain - gone.cost <= self.least:
                continue
            self.kept[there, come.come], self.kept[here, gone.gone] = True, False
            taken |= {there, here}
        self.pending = sorted(taken)
        return bool(taken)


def _first(values: Floats, count: int) -> Indices:
    """Places of the smallest values, in the order they come."""
    if count >= len(values):
        return np.arange(len(values))
    return np.sort(np.argpartition(values, count - 1)[:count])


def _fitted(gram: Floats, cross: Floats) -> tuple[Floats, Floats]:
    """The least-squares weights, and the inverse of a gram that has one."""
    from scipy.linalg import lapack

    if not len(gram):
        return np.empty(0), np.empty((0, 0))
    factor, _ = lapack.dpotrf(gram, lower=1)
    lower, _ = lapack.dpotri(factor, lower=1)
    inverse = np.tril(lower) + np.tril(lower, -1).T
    return inverse @ cross, inverse
