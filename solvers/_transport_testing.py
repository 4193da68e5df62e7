"""Partial transports for the battery: small ones whose optimum an enumeration or scipy's linear program knows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from prunesolve.problems import PartialTransport
from prunesolve.problems._arrays import Floats

from ._kind_testing import Kind


def transports() -> dict[str, PartialTransport]:
    """Unit weights first, which an assignment solves, then any others."""
    rng = np.random.default_rng(4)
    cost = rng.random((5, 4))
    ones = np.ones(6)
    uneven, other = np.array([0.5, 0.1, 0.7, 0.2, 0.3]), np.array([0.4, 0.35, 0.15, 0.6])
    holes, holed = np.array([0.5, 0.0, 0.7, 0.0, 0.3]), np.array([0.0, 0.35, 0.15, 1.0])
    # every cost is a multiple of 1/4, and many are equal
    ties = rng.integers(-2, 3, (5, 5)) / 4.0
    return {
        "units": PartialTransport(cost, ones[:5], ones[:4], 2.0),
        "units, all of the smaller side": PartialTransport(cost, ones[:5], ones[:4], 4.0),
        "units, square, all": PartialTransport(rng.random((5, 5)), ones[:5], ones[:5], 5.0),
        "units, wide, sixths": PartialTransport(rng.random((2, 6)), ones[:2] / 6, ones / 6, 1 / 6 + 1e-17),
        "units, ties": PartialTransport(ties, ones[:5], ones[:5], 3.0),
        "units, all equal": PartialTransport(np.full((4, 4), 2.0), ones[:4], ones[:4], 3.0),
        "units, negative": PartialTransport(-rng.random((5, 4)), ones[:5] * 0.1, ones[:4] * 0.1, 0.3),
        "units, float32": PartialTransport(rng.random((4, 5), dtype=np.float32), ones[:4], ones[:5], 3.0),
        "units, large": PartialTransport(1e8 * (cost - 0.5), ones[:5] * 1e3, ones[:4] * 1e3, 3e3),
        "masses": PartialTransport(cost, uneven, other, 0.8),
        "masses, all of the smaller side": PartialTransport(cost, uneven, other, 1.5),
        "masses, balanced, all": PartialTransport(cost, uneven, other * 1.2, 1.8),
        "masses, no whole multiple": PartialTransport(cost, ones[:5], ones[:4], 2.5),
        "masses, zero weights": PartialTransport(cost - 0.5, holes, holed, 1.1),
        "masses, ties": PartialTransport(ties, np.array([1.0, 2, 1, 2, 1]), np.array([2.0, 2, 1, 1, 1]), 4.0),
        "masses, negative": PartialTransport(-cost, uneven, other, 0.8),
        "masses, float32": PartialTransport(cost.astype(np.float32), uneven, other, 0.8),
        "masses, tall": PartialTransport(rng.random((7, 2)), rng.random(7), np.array([0.9, 0.6]), 1.1),
        "masses, small numbers": PartialTransport(1e-6 * cost, uneven, other, 0.8),
    }


def _trivial() -> dict[str, PartialTransport]:
    """Instances that leave no choice, or none that matters."""
    one, three = np.ones(1), np.array([0.5, 0.25, 0.25])
    return {
        "no mass": PartialTransport([[1.0, 2.0]], one, np.ones(2), 0.0),
        "one pair": PartialTransport([[-3.0]], one, one, 1.0),
        "one pair, part of it": PartialTransport([[3.0]], one, one, 0.25),
        "one source, all": PartialTransport([[1.0, 2.0, 3.0]], one, three, 1.0),
        "one target, all": PartialTransport([[1.0], [2.0], [3.0]], three, one, 1.0),
        "costs of zero": PartialTransport(np.zeros((3, 3)), np.ones(3), np.ones(3), 2.0),
        "no weight but for one pair": PartialTransport([[5.0, 1.0], [2.0, 0.0]], [0.0, 1.0], [1.0, 0.0], 1.0),
    }


def _larger(n: int) -> dict[str, PartialTransport]:
    rng = np.random.default_rng(n)
    cost = rng.random((n, n)) + rng.random(n)
    some = rng.random(n), rng.random(n)
    return {
        "half of the units": PartialTransport(cost, np.ones(n), np.ones(n), n // 2),
        "some masses": PartialTransport(cost, *some, 0.4 * min(w.sum() for w in some)),
    }


def optimum(problem: PartialTransport) -> float:
    """The least cost: of all sets of pairs where weights are equal, else by scipy's linear program."""
    weight, k = problem.unit, problem.pairs
    if weight is None or k is None:
        return _linear_program(problem)[0]
    cost = np.asarray(problem.cost, dtype=np.float64)
    best = math.inf
    for rows in itertools.combinations(range(problem.n), k):
        for columns in itertools.permutations(range(problem.m), k):
            best = min(best, float(sum(cost[i, j] for i, j in zip(rows, columns, strict=True))))
    return best * weight


def _linear_program(problem: PartialTransport) -> tuple[float, Floats]:
    """The optimum and a plan (n, m), the masses scaled to 1 and the costs to 1 so that tolerances suit."""
    from scipy.optimize import linprog

    n, m = problem.n, problem.m
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    scale = float(np.abs(problem.cost).max()) or 1.0
    found = linprog(
        np.asarray(problem.cost, dtype=np.float64).ravel() / scale,
        A_ub=np.concatenate([rows, columns]),
        b_ub=np.concatenate([problem.source, problem.target]),
        A_eq=np.ones((1, n * m)),
        b_eq=[problem.mass],
        method="highs",
    )
    if found.status != 0:
        raise AssertionError(f"scipy does not solve an example: {found.message}")
    return scale * float(found.fun), found.x.reshape(n, m)


def _dense(plan: Any) -> Floats:
    return np.asarray(plan.toarray() if hasattr(plan, "toarray") else plan, dtype=np.float64)


def _value(problem: PartialTransport, plan: Any) -> float:
    return float((_dense(plan) * problem.cost).sum())


def _meets(problem: PartialTransport, plan: Any) -> bool:
    """Whether each mass holds within 1e-9 of the largest."""
    dense = _dense(plan)
    excess = [
        (dense.sum(axis=1) - problem.source).max(),
        (dense.sum(axis=0) - problem.target).max(),
        abs(dense.sum() - problem.mass),
        -dense.min(),
    ]
    return max(excess) <= 1e-9 * max(problem.source.max(), problem.target.max(), problem.mass)


def _starts(problem: PartialTransport) -> list[Floats]:
    """The mass in the order of the points, whatever it costs, and an optimal plan."""
    plan = np.zeros((problem.n, problem.m))
    left, room, mass = problem.source.copy(), problem.target.copy(), problem.mass
    for i, j in itertools.product(range(problem.n), range(problem.m)):
        plan[i, j] = min(left[i], room[j], mass)
        left[i], room[j], mass = left[i] - plan[i, j], room[j] - plan[i, j], mass - plan[i, j]
    return [plan, _linear_program(problem)[1]]


def _fault(problem: PartialTransport, plan: Any) -> str | None:
    from scipy import sparse

    shape = (problem.n, problem.m)
    if isinstance(plan, sparse.csr_array) and plan.shape == shape and plan.dtype == np.float64:
        return None
    return f"expected a plan {shape} as a CSR array of float64, got {type(plan).__name__}"


def _nonsense(problem: PartialTransport) -> list[Any]:
    shape = (problem.n, problem.m)
    return [np.full(shape, np.nan), np.full(shape, 2.0 * problem.mass), np.zeros((problem.n + 1, problem.m)), "plan"]


def _written(plan: Any) -> Any:
    dense = _dense(plan)
    return dense.shape, dense.tobytes()


KIND = Kind(
    PartialTransport,
    transports,
    _trivial,
    _larger,
    _value,
    _meets,
    optimum,
    lambda problem: float(np.abs(problem.cost).max()) * problem.mass,
    _starts,
    _fault,
    _nonsense,
    _written,
    asks_bound=True,
)
