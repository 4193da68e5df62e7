r"""A wrapper: solve the cheap surrogate first, then refine its answer against the true objective.

x_0 = argmin of the surrogate by `inner`;        x = the best that `refiner` evaluates from there, never worse than x_0
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import BinaryQuadratic, BlackBox, InvalidProblem, unknown
from prunesolve.problems._arrays import Bits

from . import get
from ._base import Account, Run, Solver, Status, _Held
from ._evaluations import Evaluations
from ._keep_counts import KeepCounts, refusal
from .restarts import resolved

_OVER = ("bits", "counts", "both")


@dataclass(frozen=True)
class Refine(Solver):
    r"""`inner` on the surrogate, then `refiner` on the black box from its answer.

    An evaluation is one of the black box; what `inner` does to the surrogate is told in `details["inner"]`. With a time
    limit the surrogate gets a fifth of it.

    Parameters
    ----------
    inner : str or Solver
        Takes the surrogate, a `BinaryQuadratic`.
    refiner : str or Solver
        Takes a black box: "swap-search", "tensor-train".
    over : {"bits", "counts", "both"}
        What is refined: which units stay; how many each group keeps, the surrogate ranking them inside the group; or
        first the counts with a tenth of the evaluations, then the units.
    undecided : int
        Units left open, those with the smallest |field - multiplier|, where the refiner has such an option; 0 keeps
        the refiner's own choice.
    levels : int
        Most counts that a group may choose from.

    Reference
    ---------
    Orabi, Zagitov, Salloum, Lobachev, Khubiev, Kholodov, hybrid-QUBO filter pruning with tensor-train refinement, arXiv
    2604.05856: the two stages are the paper's, what is left open and the counts are our reconstruction.

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> surrogate = BinaryQuadratic([-1.0, -2.0, -3.0], constraints=[Cardinality(1)])
    >>> box = BlackBox.over(surrogate, lambda X: X @ [1.0, 0.5, 0.75])
    >>> Refine("greedy", "swap-search").solve(box).objective
    0.5
    """

    inner: Any = "auto"
    refiner: Any = "swap-search"
    over: str = "bits"
    undecided: int = 0
    levels: int = 16

    name: ClassVar[str] = "refine"
    accepts: ClassVar[tuple[type[Any], ...]] = (BlackBox, BinaryQuadratic)

    def __post_init__(self) -> None:
        if self.over not in _OVER:
            raise unknown("value of over", str(self.over), _OVER)
        for option, least in (("undecided", 0), ("levels", 3)):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidProblem(f"{option}: expected a whole number >= {least}, got {value!r}")

    def refuse(self, problem: Any) -> str | None:
        """What it cannot take, and what either of the two solvers refuses."""
        reason = super().refuse(problem)
        if reason is not None:
            return reason
        box = BlackBox.of(problem)
        if not isinstance(box.surrogate, BinaryQuadratic):
            return f"{self.name} takes a BlackBox whose surrogate is a BinaryQuadratic; BlackBox.over makes one"
        reason = None if self.over == "bits" else refusal(box)
        return reason or resolved(self.inner).refuse(box.surrogate) or self._refiner.refuse(problem)

    @property
    def _refiner(self) -> Solver:
        refiner = resolved(self.refiner)
        if not self.undecided:
            return refiner
        if "undecided" not in refiner.options():
            raise InvalidProblem(f"undecided: {refiner.name} has no such option; leave it at 0")
        return get(refiner.name, **{o: getattr(refiner, o) for o in refiner.options()} | {"undecided": self.undecided})

    def _prepare(self, problem: Any) -> None:
        resolved(self.inner)._prepare(BlackBox.of(problem).surrogate)
        self._refiner._prepare(problem)

    def _search(self, problem: Any, run: Run) -> Status | None:
        box = BlackBox.of(problem)
        status, x = self._surrogate_solution(box.surrogate, run)
        if x is None:
            return status
        value = float(Evaluations(box, run).values(x)[0])
        run.details["unrefined"] = {"objective": value, "kept": np.flatnonzero(x).tolist()}
        if self.over != "bits" and not run.should_stop():
            self._refine_counts(box, run, _start(run, x))
        if self.over != "counts" and not run.should_stop():
            run.details["refiner"] = run.delegate(self._refiner, start=_start(run, x)).details
        return None

    def _surrogate_solution(self, surrogate: BinaryQuadratic, run: Run) -> tuple[Status | None, Any]:
        """(status, solution) of the surrogate; its values never reach the run, whose objective is another."""
        result = resolved(self.inner).solve(
            surrogate,
            seed=run.seed,
            time_limit=None if run.time_limit is None else run.time_limit / 5,
            start=run.start,
            callback=lambda _: run.should_stop(),
        )
        if "interrupted" in result.details:
            raise KeyboardInterrupt
        run.details["inner"] = {
            "solver": result.solver,
            "status": str(result.status),
            "objective": result.objective,
            "seconds": result.seconds,
            "evaluations": result.evaluations,
        }
        return (None, result.solution) if result.feasible else (result.status, None)

    def _refine_counts(self, box: BlackBox, run: Run, x: Bits) -> None:
        """Let the refiner choose how many units each group keeps."""
        counts = KeepCounts(box, x, self.levels)
        # counts gain fast and little: on one denoiser more in fifty evaluations than units, less in two hundred
        share = 0.1 if self.over == "both" else 1.0
        limit, seconds = None, None
        if run.time_limit is not None:
            seconds = share * run.remaining
        if run.evaluation_limit is not None:
            limit = max(1, int(share * run.evaluations_left))
        elif seconds is None:
            limit = max(1, int(share * getattr(resolved(self.refiner), "evaluations", 1000)))
        inner = _Above(counts.box, counts.selection, run, seconds, limit)
        inner.start = counts.start
        resolved(self.refiner)._search(counts.box, inner)


def _start(run: Run, x: Bits) -> Bits:
    """The best so far; the surrogate's answer where even that has no value."""
    return run.best if run.feasible else x


class _Above(Run):
    """A run over level tuples; what it finds goes to the outer run as the selections the tuples stand for."""

    def __init__(
        self,
        box: BlackBox,
        selection: Callable[[Any], Any],
        outer: Run,
        time_limit: float | None,
        evaluation_limit: int | None,
    ) -> None:
        super().__init__(box, seed=outer.seed, time_limit=time_limit, evaluation_limit=evaluation_limit, outer=outer)
        self._selection = selection
        # the outer run's are selections
        self.account = Account()

    def _take(self, held: _Held, bound: float | None) -> None:
        assert self._outer is not None
        solution = None if held.solution is None else np.asarray(self._selection(held.solution))
        self._outer._take(held._replace(solution=solution), bound)
        self._keep(held, bound)
