"""The alternating direction method of multipliers: least squares on one side, the pattern on the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import InvalidProblem, SparseRegression
from prunesolve.problems._arrays import Bits, Floats

from ._base import Run, Solver, Status
from ._sparse_rows import Rows
from ._sparse_starts import magnitude, wanda

_EVERY = 3  # iterations between two looks at the support
_RAISES = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # from which share of the support changing on rho grows by what
_SETTLED, _EARLY = 3e-4, 30  # a share that counts as settled after so many iterations
_FROZEN, _RETRIES = 0.005, 4  # a support that hardly moves at the first look: rho was too large to begin with


@dataclass(frozen=True)
class Admm(Solver):
    r"""Let weights without a pattern and weights of the pattern pull at each other until their supports agree.

    minimise sum_i b_i' H_i b_i - 2 b_i' c_i  subject to  b = d,  d of the pattern:

        b = (H + rho I)^-1 (c - v + rho d)        d = what is largest in  b + v / rho        v += rho (b - d)

    in inputs scaled to a unit diagonal. H is decomposed once, so that rho may change; rows with a Hessian of their own
    are inverted by Woodbury's identity around it. Every third iteration rho grows by 1.3, 1.2 or 1.1 as more than
    10 %, 0.5 % or none of the support has changed, and the search ends where nothing has, or next to nothing after 30
    iterations. Where the support hardly moves from the beginning, it starts anew with a fifth of rho. The weights on
    the support are then refitted exactly, as those of every solver are.

    An evaluation is one iteration; without limits there are at most `iterations`. A start is where d begins.

    Parameters
    ----------
    iterations : int
        The most iterations.
    rho : float
        What rho begins with, in units of the scaled diagonal, which is 1.

    Reference
    ---------
    X. Meng et al., ALPS: improved optimization for highly sparse one-shot pruning for large language models, NeurIPS
    2024; the schedule of rho as in the authors' program.

    Examples
    --------
    >>> from prunesolve.problems import Keep
    >>> problem = SparseRegression([[4.0, 2.0], [2.0, 4.0]], [[6.0], [0.0]], Keep(1), offset=9.0)
    >>> result = Admm().solve(problem)
    >>> result.solution.tolist(), result.objective
    ([True, False], 0.0)
    """

    iterations: int = 300
    rho: float = 0.1

    name: ClassVar[str] = "admm"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = SparseRegression

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise InvalidProblem(f"iterations: expected a count >= 1, got {self.iterations}")
        if not 0.0 < self.rho < np.inf:
            raise InvalidProblem(f"rho: expected a number > 0, got {self.rho}")

    def _search(self, problem: SparseRegression, run: Run) -> Status | None:
        for cheap in (magnitude(problem), wanda(problem)):
            run.offer(cheap)
        if run.should_stop():
            return None
        run.prove(problem.least)
        split = _Split(problem, Rows(problem))
        rho, left = self.rho, self.iterations
        for _ in range(1 + _RETRIES):
            support, used, moved = self._walk(split, rho, left, run)
            left -= used
            if moved or left <= 0 or run.should_stop():
                break
            rho /= 5.0
        run.offer(support.ravel())
        return None

    def _walk(self, split: _Split, rho: float, iterations: int, run: Run) -> tuple[Bits, int, bool]:
        """The support that one run of the method ends with, its iterations, and whether rho let it move at all."""
        split.begin(run.start)
        looked, kept = split.support, max(1, int(split.support.sum()))
        for step in range(1, iterations + 1):
            split.iterate(rho)
            run.count()
            if run.should_stop():
                return split.support, step, True
            if step % _EVERY:
                continue
            change = np.count_nonzero(split.support != looked) / kept
            looked = split.support
            if step == _EVERY and change <= _FROZEN:
                return split.support, step, False
            if change == 0.0 or (step >= _EARLY and change < _SETTLED):
                return split.support, step, True
            rho *= next(factor for share, factor in _RAISES if change > share)
        return split.support, iterations, True


class _Split:
    """The three variables of the method (o, d), and what solves for the first."""

    def __init__(self, problem: SparseRegression, rows: Rows) -> None:
        self.pattern, self.rows = problem.pattern, rows
        self.values, self.vectors = np.linalg.eigh(rows.gram)
        # rounding alone makes an eigenvalue negative
        self.values = np.maximum(self.values, 0.0)
        self.own = None if rows.factors is None else self.vectors.T @ rows.factors
        self._rho, self._inner = 0.0, np.empty(0)
        self.support: Bits = np.empty(0, dtype=bool)

    def begin(self, start: Any) -> None:
        """From the dense weights, or from those on a start's support."""
        self.b = self.rows.dense
        self.v = np.zeros_like(self.b)
        self.support = self.pattern.best(np.abs(self.b)) if start is None else self.rows.by_row(start)
        self.d = self.b * self.support

    def iterate(self, rho: float) -> None:
        """One step of each variable."""
        self.b = self._solved(self.rows.cross - self.v + rho * self.d, rho)
        pulled = self.b + self.v / rho
        self.support = self.pattern.best(np.abs(pulled))
        self.d = pulled * self.support
        self.v = self.v + rho * (self.b - self.d)

    def _solved(self, sides: Floats, rho: float) -> Floats:
        """(o, d) (H_i + rho I)^-1 of each row's side."""
        shrunk = sides @ self.vectors / (self.values + rho)
        if self.own is not None:
            if rho != self._rho:
                reach = self.own / (self.values + rho)[:, None]
                inner = np.eye(self.own.shape[2]) + self.own.transpose(0, 2, 1) @ reach
                self._rho, self._inner = rho, reach @ np.linalg.inv(inner)
            # B = V diag(1 / (values + rho)) V':  B s - B U (I + U' B U)^-1 U' B s
            shrunk = shrunk - np.einsum("ojr,or->oj", self._inner, np.einsum("ojr,oj->or", self.own, shrunk))
        return np.asarray(shrunk @ self.vectors.T)
