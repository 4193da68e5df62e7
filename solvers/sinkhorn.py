"""Entropic partial transport by POT's Sinkhorn iteration in the log domain, rounded to a feasible plan."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import InvalidProblem, PartialTransport
from prunesolve.problems._arrays import Floats

from . import _plans
from ._base import Run, Solver, Status
from ._dummies import Balanced, balanced

# iterations between two looks at the clock; POT looks at the marginals in the first of them
_CHUNK = 10
# the regularisation starts high and falls by this factor every other chunk, which converges far sooner
_FALL, _HIGHEST, _CHUNKS = 4.0, 0.5, 2


@dataclass(frozen=True)
class Sinkhorn(Solver):
    r"""Alternating projections of the balanced problem with one dummy source and one dummy target, smoothed by entropy.

        min <c', P'> + r sum P' (log P' - 1)   over P' 1 = a', P'' 1 = b'        (see `_dummies`)

    The smoothed plan is dense, meets the masses only in the limit, and is not optimal for the costs alone. What is
    offered is made of it: entries without weight dropped, rows and columns cut to their weights, the mass that is then
    missing carried greedily. Its gap is proved by the repaired potentials. `details` tell the marginal errors before
    the rounding, the value after it, and whether the iteration converged; where a plain greedy plan is better, that is
    the answer. An evaluation is one iteration.

    Parameters
    ----------
    regularisation : float
        r, as a share of the range of the costs. Smaller is closer to the optimum and slower.
    iterations : int
        Most iterations.
    tolerance : float
        Error of the marginals, as a share of all mass, at which the iteration has converged.

    Reference
    ---------
    Cuturi, Sinkhorn distances, 2013; in the log domain as in POT's `ot.bregman.sinkhorn_log`. Rounding: after
    Altschuler, Weed and Rigollet, Near-linear time approximation algorithms for optimal transport, 2017, with a sparse
    completion.

    Examples
    --------
    >>> problem = PartialTransport([[1.0, 4.0], [2.0, 0.0]], [0.7, 0.3], [0.4, 0.6], mass=0.5)
    >>> result = Sinkhorn().solve(problem)
    >>> result.feasible, bool(result.bound <= 0.2 <= round(result.objective, 9))
    (True, True)
    """

    regularisation: float = 0.002
    iterations: int = 1000
    tolerance: float = 1e-5

    name: ClassVar[str] = "sinkhorn"
    accepts: ClassVar[type[Any]] = PartialTransport

    def __post_init__(self) -> None:
        for option in ("regularisation", "tolerance"):
            if not 0.0 < getattr(self, option) < np.inf:
                raise InvalidProblem(f"{self.name}: {option} must be above 0, got {getattr(self, option)!r}")
        if self.iterations < 1:
            raise InvalidProblem(f"{self.name}: iterations must be at least 1, got {self.iterations!r}")

    def _prepare(self, problem: PartialTransport) -> None:
        import ot.bregman  # noqa: F401

    def _search(self, problem: PartialTransport, run: Run) -> Status | None:
        run.offer(_plans.greedy(problem))
        whole = balanced(problem, corner=np.inf)
        potentials, flow, converged = (np.zeros(len(whole.source)), np.zeros(len(whole.target))), None, False
        for made, smoothing in self._smoothings():
            if converged or run.should_stop():
                break
            steps = int(min(_CHUNK, self.iterations - made, run.evaluations_left))
            flow, potentials, error, done = self._iterated(whole, potentials, smoothing, steps)
            converged = smoothing == self.regularisation and error < self.tolerance
            run.count(done)
        if flow is None:
            return None
        plan = whole.plan(flow)
        run.details |= {"converged": converged, "regularisation": smoothing * whole.spread}
        run.details["before_rounding"] = _told(problem, plan)
        run.prove_duals(*whole.duals(*potentials))
        run.details["rounded_value"] = run.offer(rounded(problem, plan))
        return Status.OPTIMAL if _plans.closed(problem, run.objective, run.bound) else None

    def _smoothings(self) -> Iterator[tuple[int, float]]:
        """Iterations made and the regularisation, chunk by chunk: falling to the one asked for, then that one."""
        falls = max(0, math.floor(math.log(_HIGHEST / self.regularisation, _FALL)))
        for chunk in range(-(-self.iterations // _CHUNK)):
            yield chunk * _CHUNK, self.regularisation * _FALL ** max(0, falls - chunk // _CHUNKS)

    def _iterated(
        self, whole: Balanced, potentials: tuple[Floats, Floats], smoothing: float, steps: int
    ) -> tuple[Floats, tuple[Floats, Floats], float, int]:
        """The flow (p, q), its potentials, its error at the marginals and how many steps were made."""
        from ot.bregman import sinkhorn_log

        f, g = potentials
        with warnings.catch_warnings():
            # that it has not converged yet is in the log; the infinite corner is meant
            warnings.simplefilter("ignore")
            flow, log = sinkhorn_log(
                whole.source,
                whole.target,
                whole.cost,
                smoothing,
                numItermax=steps,
                stopThr=self.tolerance,
                log=True,
                warmstart=(f / smoothing, g / smoothing),
            )
        potentials = smoothing * log["log_u"], smoothing * log["log_v"]
        return flow, potentials, float(log["err"][-1]), log["niter"] + 1


def rounded(problem: PartialTransport, plan: Any) -> Any:
    """A feasible sparse plan near a plan (n, m) that need not be one.

    Entries below a thousandth of what source or target hold are dropped, rows, columns and the whole cut to their
    weights; what is missing goes from the sources that have left to the cheapest targets with room.
    """
    from scipy import sparse

    found = plan.tocoo()
    amounts = np.minimum(found.data, np.minimum(problem.source[found.row], problem.target[found.col]))
    amounts[amounts < 1e-3 * np.minimum(problem.source[found.row], problem.target[found.col])] = 0.0
    for ends, weights in ((found.row, problem.source), (found.col, problem.target)):
        held = np.bincount(ends, amounts, len(weights))
        amounts = amounts * (weights / np.maximum(np.maximum(held, weights), 1e-300))[ends]
    amounts = amounts * min(1.0, problem.mass / max(float(amounts.sum()), 1e-300))
    cut = sparse.csr_array((amounts, (found.row, found.col)), shape=plan.shape)
    given, taken = problem.carried(cut)
    left, room = np.maximum(problem.source - given, 0.0), np.maximum(problem.target - taken, 0.0)
    return cut + _plans.filled(problem, left, room, problem.mass - float(given.sum()))


def _told(problem: PartialTransport, plan: Any) -> dict[str, Any]:
    facts = _plans.told(problem, plan)
    return {"value": problem.value(plan)} | {name: facts[name] for name in ("mass_carried", "marginal_errors")}
