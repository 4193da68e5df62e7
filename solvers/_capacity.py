r"""Capacity-driven search: steer an unconstrained sampler to the constraints by linear fields alone.

    minimise  f(x) + sum_c mu_c w_c.x

Each constraint c gets a field mu_c on what it counts (w = 1 for a cardinality, a group's members, a budget's costs)
and mu_c is bisected until the sampler's answer reads within its bounds. A linear field moves the optimum along the
lower convex hull of (objective, capacity) and leaves the couplings alone, where a quadratic penalty would bury them.
Capacities off the hull, which no field reaches, are finished by cheapest adds and drops and exact descent.

Reference: reconstruction of the 'dynamic capacity-driven search' of Orabi et al., Hybrid QUBO (arXiv 2604.05856),
whose text gives no equations.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, Blocks, Budget, Cardinality, Dense, GroupBounds, LowRank

from ._base import Run
from ._descent import descend
from ._start import Ledger, repair

Sample = Callable[[Any], Any]  # field (n,) -> selections (m, n) bool that make f(x) + field.x small


@dataclass
class _Gauge:
    """One count or cost, its bounds and the field that steers it."""

    weight: Any  # (n,)
    low: float
    high: float
    least: float
    most: float
    spent: Callable[[Any], float] | None = None
    mu: float = 0.0

    def read(self, x: Any) -> float:
        return float(self.weight[x].sum()) if self.spent is None else float(self.spent(x))

    def turn(self, reading: float) -> bool:
        """Halve the bracket on the side the reading asks for; False where the field is right."""
        if reading > self.high or (reading > self.low and self.mu < 0):
            self.least = self.mu
        elif reading < self.low or (reading < self.high and self.mu > 0):
            self.most = self.mu
        else:
            return False
        self.mu = (self.least + self.most) / 2
        return True


class Interrupt:
    """`should_stop` for a compiled sampler.

    An exception that reaches compiled code is lost there, so Ctrl-C is held back until the sampler has returned, and
    so is whatever `should_stop` raised.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._caught: BaseException | None = None
        self._handler: Any = None
        self._pressed: Any = None  # the signal and its frame

    def __enter__(self) -> Interrupt:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._handler = handler
            signal.signal(signal.SIGINT, self._hold)
        return self

    def _hold(self, *pressed: Any) -> None:
        self._pressed = pressed

    def __call__(self) -> bool:
        """Whether the sampler should stop."""
        try:
            return self._pressed is not None or self._run.should_stop()
        except BaseException as error:  # noqa: BLE001
            self._caught = error
            return True

    def __exit__(self, *raised: Any) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
        if self._pressed is not None:
            self._handler(*self._pressed)
        if self._caught is not None:
            raise self._caught


def search(problem: BinaryQuadratic, run: Run, sample: Sample, bisections: int) -> None:
    """Offer what the sampler finds, steered to the constraints in at most `bisections` rounds.

    Without constraints the best of one sample is all: nothing to steer, and the sampler's own merit is left to show.

    Parameters
    ----------
    problem : BinaryQuadratic
        Any mix of constraints.
    run : Run
        Gets every feasible finish.
    sample : callable
        field (n,) -> (m, n) bool, selections that make f(x) + field.x small.
    bisections : int
        Most rounds.
    """
    if not problem.constraints:
        _offer_best(problem, run, sample(np.zeros(problem.n)))
        return
    if run.start is not None:
        run.offer(descend(problem, run.start, lambda: run.halted))
    gauges = _gauges(problem)
    rows = np.zeros((0, problem.n), dtype=bool)
    for _ in range(bisections):
        field = sum((g.mu * g.weight for g in gauges), start=np.zeros(problem.n))
        rows = sample(field)
        if len(rows):
            best = rows[np.argmin(problem.value(rows) + rows @ field)]
            _offer_best(problem, run, rows)
            _finish(problem, run, best)
            # a list, not a generator: every gauge must turn
            turned = [gauge.turn(gauge.read(best)) for gauge in gauges]
            if not any(turned):
                break
        if run.should_stop():
            return
    for row in np.unique(rows, axis=0)[:64]:
        if run.halted:
            return
        _finish(problem, run, row)


def _offer_best(problem: BinaryQuadratic, run: Run, rows: Any) -> None:
    feasible = rows[problem.is_feasible(rows)]
    if len(feasible):
        run.offer(feasible[np.argmin(problem.value(feasible))])


def _finish(problem: BinaryQuadratic, run: Run, x: Any) -> None:
    """Mend what breaks a constraint, cheapest flips first, and descend from there."""
    ledger = Ledger(problem, x)
    # the first finish is never cut short: without it there would be nothing feasible in hand
    repair(ledger, run.rng, lambda: not (run.feasible and run.halted))
    run.offer(ledger.x)
    if problem.is_feasible(ledger.x):
        run.offer(descend(problem, ledger.x, lambda: run.halted))


def reach(problem: BinaryQuadratic) -> Any:
    """(n,) |a_i| + sum_j |J_ij|, or a bound on it from above: no field larger than that matters to unit i."""
    couplings = problem.couplings
    if isinstance(couplings, Dense):
        across = np.abs(couplings.matrix).sum(axis=1)
    elif isinstance(couplings, Blocks):
        across = np.concatenate([np.abs(m).sum(axis=1) for m in couplings.blocks] or [np.zeros(0)])
    elif isinstance(couplings, LowRank):
        length = np.sqrt(couplings.square)
        across = length * (length.sum() - length)
    else:
        across = np.asarray(abs(couplings.matrix).sum(axis=1)).ravel()
    return np.abs(problem.linear) + across


def _gauges(problem: BinaryQuadratic) -> list[_Gauge]:
    most = 1.01 * float(reach(problem).max()) + 1e-9
    gauges: list[_Gauge] = []
    for constraint in problem.constraints:
        if isinstance(constraint, Cardinality):
            gauges.append(_Gauge(np.ones(problem.n), constraint.k, constraint.k, -most, most))
        elif isinstance(constraint, GroupBounds):
            for g, (low, high) in enumerate(zip(constraint.low, constraint.high, strict=True)):
                gauges.append(_Gauge((constraint.group == g).astype(np.float64), low, high, -most, most))
        elif isinstance(constraint, Budget):
            cost = constraint.capped.cost
            typical = float(np.median(cost[cost > 0])) if cost.any() else 1.0
            # no unit counts as a thousand others: fields may be near the end of the float64 range
            weight = np.minimum(cost, 1e3 * typical) / typical
            gauges.append(_Gauge(weight, -np.inf, constraint.limit, 0.0, most, spent=constraint.spent))
    return gauges
