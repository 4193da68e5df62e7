"""The network simplex of POT for partial transports of any masses, with its duals as a proof."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

from prunesolve.problems import InvalidProblem, PartialTransport

from . import _plans
from ._base import Run, Solver, Status
from ._dummies import balanced


@dataclass(frozen=True)
class NetworkSimplex(Solver):
    r"""Pivots on the spanning trees of the balanced problem with one dummy source and one dummy target.

        min <c', P'>   over P' 1 = a', P'' 1 = b'        (see `_dummies`)

    The duals of the last tree bound every plan from below; where only rounding is between, the plan is proved optimal.
    POT cannot be interrupted: it is called for some pivots at a time and goes on from the duals of the last call, so
    that limits and Ctrl-C may be late by one call. An evaluation is one call.

    Parameters
    ----------
    pivots : int
        Pivots of a call; twice as many after a call that improved neither plan nor bound.

    Reference
    ---------
    Bonneel, van de Panne, Paris and Heidrich, Displacement interpolation using Lagrangian mass transport, 2011, as in
    POT's `ot.lp.emd`. Dummies: Chapel, Alaya and Gasso, Partial optimal transport with applications on
    positive-unlabeled learning, 2020.

    Examples
    --------
    >>> problem = PartialTransport([[1.0, 4.0], [2.0, 0.0]], [0.7, 0.3], [0.4, 0.6], mass=0.5)
    >>> result = NetworkSimplex().solve(problem)
    >>> round(result.objective, 12), str(result.status), result.solution.toarray().round(12).tolist()
    (0.2, 'OPTIMAL', [[0.2, 0.0], [0.0, 0.3]])
    """

    pivots: int = 5000

    name: ClassVar[str] = "network-simplex"
    accepts: ClassVar[type[Any]] = PartialTransport

    def __post_init__(self) -> None:
        if self.pivots < 1:
            raise InvalidProblem(f"{self.name}: pivots must be at least 1, got {self.pivots!r}")

    def _prepare(self, problem: PartialTransport) -> None:
        import ot.lp  # noqa: F401

    def _search(self, problem: PartialTransport, run: Run) -> Status | None:
        from ot.lp import emd

        run.offer(_plans.greedy(problem))
        whole = balanced(problem, corner=2.0)
        pivots, potentials = self.pivots, None
        while not run.should_stop():
            run.count()
            before = run.objective, run.bound
            with warnings.catch_warnings():
                # that the pivots did not suffice is in the answer
                warnings.simplefilter("ignore")
                flow, log = emd(
                    whole.source,
                    whole.target,
                    whole.cost,
                    numItermax=pivots,
                    log=True,
                    center_dual=False,
                    potentials_init=potentials,
                )
            potentials = log["u"], log["v"]
            run.offer(whole.plan(flow))
            run.prove_duals(*whole.duals(*potentials))
            if _plans.closed(problem, run.objective, run.bound):
                return Status.OPTIMAL
            if log["warning"] is None:
                return None
            pivots *= 2 if (run.objective, run.bound) == before else 1
        return None
