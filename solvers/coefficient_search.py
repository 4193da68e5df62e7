"""Search over weights of the layers' errors, which dynamic programming turns into levels, by their true value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import BlackBox, LevelChoice
from prunesolve.problems._arrays import Floats, Indices

from ._base import Run, Solver, Status
from ._generations import Generations, check_options, evolve, refusal
from ._level_proxy import LevelProxy
from .dynamic_programming import DynamicProgramming

_SHARE = 0.1  # of the coefficients is drawn anew at a time, at first
_MISSES = 12  # draws in a row that lead to known tuples, after which a generation is left smaller


@dataclass(frozen=True)
class CoefficientSearch(Solver):
    r"""Find coefficients c in [0, 1]^L under which the additive optimum is truly good.

    s(c) = argmin_s sum_l c_l error[l][s_l]  within the budget,        minimise f(s(c)) over c

    The errors are those of the `LevelChoice`, or what the surrogate says of each layer's levels alone. It begins with
    c = 1, even levels and `starts` random c, never more than half of the evaluation limit; then round(0.1 L)
    coordinates of the best c are drawn anew, after `patience` tuples in vain one less, down to one. s(c) is what the
    Lagrangian finds and single changes improve (`DynamicProgramming`), what evolution finds where pair costs are no
    chain; it always keeps the budget.

    Of `screen` times as many c those are tried whose s(c) is rated lowest by a Gaussian process of the values so far;
    batches and survivors are as in `LevelSwitch`. An evaluation is one distinct tuple on all batches, a look costs its
    share. A `LevelChoice` is taken as a black box of its own value. Without limits it ends after `evaluations`, before
    that where single coordinates bring nothing more or nothing new.

    Parameters
    ----------
    starts : int
        Random c, looked at before any is varied.
    patience : int
        Tuples in a row that bring nothing better, after which fewer coordinates are drawn.
    screen : int
        Tuples rated for each that is looked at; 1 leaves the choice to chance: SPDY.
    offspring : int
        Tuples looked at in each generation.
    survivors : float in (0, 1]
        Share that survives each look.
    evaluations : int
        Evaluations where the run has no limit of its own.

    Reference
    ---------
    E. Frantar, D. Alistarh, SPDY: accurate pruning with speedup guarantees, ICML 2022. Screening and halving are ours.

    Examples
    --------
    >>> choice = LevelChoice([[4.0, 1.0, 0.0], [3.0, 2.5, 0.0]], [[1, 2, 4], [1, 2, 3]], budget=5)
    >>> box = BlackBox(choice, lambda s: choice.value(s) + 5.0 * (s[:, 0] < 2))
    >>> CoefficientSearch().solve(box).solution
    array([2, 0])
    """

    starts: int = 100
    patience: int = 100
    screen: int = 4
    offspring: int = 16
    survivors: float = 0.25
    evaluations: int = 1000

    name: ClassVar[str] = "coefficient-search"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = (BlackBox, LevelChoice)

    def __post_init__(self) -> None:
        counts = ("starts", "patience", "screen", "offspring", "evaluations")
        check_options({name: getattr(self, name) for name in counts}, self.survivors)

    def refuse(self, problem: Any) -> str | None:
        """There must be levels, and errors of theirs to weigh."""
        reason = super().refuse(problem) or refusal(self.name, problem)
        if reason is None and not isinstance(BlackBox.of(problem).space, LevelChoice) and problem.surrogate is None:
            return f"{self.name} weighs errors: give a LevelChoice as space, or LevelTuples with a surrogate"
        return reason

    def _prepare(self, problem: Any) -> None:
        DynamicProgramming()._prepare(problem)

    def _search(self, problem: BlackBox | LevelChoice, run: Run) -> Status | None:
        evolve(self, problem, run, _Drawing)
        return None


class _Drawing:
    """Proposes the tuples of coefficients drawn at random, those that the model likes."""

    def __init__(self, options: CoefficientSearch, generations: Generations, proxy: LevelProxy) -> None:
        self.options, self.generations, self.proxy = options, generations, proxy
        self.run, self.n = generations.run, proxy.space.n
        self.errors = proxy.errors or []
        self.coefficients: dict[bytes, Floats] = {}
        self.fewer = max(1, round(_SHARE * self.n))
        limit = self.run.evaluation_limit
        self.starts = options.starts if limit is None else min(options.starts, limit // 2)
        self.tried = self.vain = 0

    def __call__(self) -> Indices:
        """(m, L) new tuples for a generation; none once single coordinates were in vain."""
        self._give_up()
        if not self.fewer:
            return np.zeros((0, self.n), dtype=np.int64)
        drawn = self._drawn()
        if len(drawn) and self.options.screen > 1:
            drawn = drawn[np.argsort(self.generations.rated(drawn), kind="stable")]
        chosen = self.generations.chosen(drawn)
        self.tried, self.vain = self.tried + len(chosen), self.vain + len(chosen)
        return chosen

    def _give_up(self) -> None:
        """Count tuples in vain from the last improvement, and vary fewer coordinates after too many."""
        if self.generations.idle == 0 or self.tried < self.starts:
            self.vain = 0
        if self.vain >= self.options.patience:
            self.fewer, self.vain = self.fewer - 1, 0

    def _drawn(self) -> Indices:
        """(m, L) distinct new tuples that drawn coefficients lead to."""
        wanted, base = self.options.screen * self.generations.count, self._base()
        found: dict[bytes, Indices] = {}
        misses = 0
        while len(found) < wanted and misses < _MISSES and not self.run.should_stop():
            c, known = self._resampled(base), len(found)
            levels = self.proxy.near_optimum([weight * e for weight, e in zip(c, self.errors, strict=True)])
            if levels is not None and self.generations.new(levels[None])[0]:
                found[levels.tobytes()] = levels
                self.coefficients[levels.tobytes()] = c
            misses = misses + 1 if len(found) == known else 0
        return np.array(list(found.values()), dtype=np.int64).reshape(-1, self.n)

    def _resampled(self, base: Floats) -> Floats:
        """(L,) coefficients: all at random at first, then some of the best ones."""
        rng, c = self.run.rng, base.copy()
        some = np.arange(self.n) if self.tried < self.starts else rng.choice(self.n, self.fewer, replace=False)
        c[some] = rng.random(len(some))
        return c

    def _base(self) -> Floats:
        """(L,) the coefficients of the best tuple that has any, else all 1."""
        values = self.generations.known
        tried = [key for key in self.coefficients if key in values]
        return self.coefficients[min(tried, key=values.__getitem__)] if tried else np.ones(self.n)
