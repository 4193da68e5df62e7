"""The cheapest k pairs, against enumeration, scipy's padded assignment and POT, and by their own prices."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from prunesolve.problems import InvalidProblem, PartialTransport, UnsupportedProblem
from prunesolve.solvers import Assignment, Status, assignment
from prunesolve.solvers.assignment import Pairs
from prunesolve.solvers.testing import check_solver

CLOSE = 1e-9
FAMILIES = ("uniform", "plane", "norms", "ties", "equal", "duplicates", "rank one", "sums", "negative", "wild")


def table(family: str, n: int, m: int, seed: int) -> Any:
    """(n, m) costs."""
    rng = np.random.default_rng(seed)
    if family in ("plane", "norms"):
        d = 2 if family == "plane" else 64
        return ((rng.standard_normal((n, 1, d)) - rng.standard_normal((1, m, d))) ** 2).sum(axis=2)
    if family == "ties":
        return rng.integers(0, 4, (n, m)).astype(float)
    if family == "equal":
        return np.full((n, m), 3.25)
    if family == "duplicates":
        return rng.random((3, 4))[rng.integers(3, size=n)][:, rng.integers(4, size=m)]
    if family == "rank one":
        return np.outer(rng.random(n), rng.random(m))
    if family == "sums":
        return np.add.outer(rng.random(n), rng.random(m))
    if family == "wild":
        return np.exp(15.0 * rng.standard_normal((n, m)))
    return rng.random((n, m)) - (0.7 if family == "negative" else 0.0)


def of_pairs(cost: Any, k: int, weight: float = 1.0) -> PartialTransport:
    n, m = cost.shape
    return PartialTransport(cost, np.full(n, weight), np.full(m, weight), k * weight)


def enumerated(cost: Any, k: int) -> float:
    n, m = cost.shape
    return min(
        float(cost[list(rows), list(columns)].sum())
        for rows in itertools.combinations(range(n), k)
        for columns in itertools.permutations(range(m), k)
    )


def padded(cost: Any, k: int) -> float:
    """By scipy: n - k columns and m - k rows that cost nothing, but not with each other."""
    n, m = cost.shape
    square = np.zeros((n + m - k, n + m - k))
    square[:n, :m] = cost
    square[n:, m:] = 2.0 * k * np.abs(cost).max() + 1.0
    i, j = linear_sum_assignment(square)
    real = (i < n) & (j < m)
    assert real.sum() == k
    return float(cost[i[real], j[real]].sum())


def check_proof(problem: PartialTransport, result: Any) -> None:
    """Pairs of the right number, and prices that hold everywhere and add up to their cost."""
    weight, k = problem.unit, problem.pairs
    assert weight is not None
    plan = result.solution.tocoo()
    assert len(plan.data) == k
    np.testing.assert_allclose(plan.data, weight)
    assert len(set(plan.row)) == len(set(plan.col)) == k
    assert result.status is Status.OPTIMAL
    u, v = (np.array(result.details["duals"][side]) for side in "uv")
    t = result.details["duals"]["mass"]
    cost = np.asarray(problem.cost, np.float64)
    scale = np.abs(cost).max()
    assert u.max() <= 0.0
    assert v.max() <= 0.0
    reduced = cost - u[:, None] - v - t
    assert reduced.min() >= -1e-12 * scale
    # complementary slackness: pairs are tight, what is free is worth nothing
    assert np.abs(reduced[plan.row, plan.col]).max(initial=0.0) <= CLOSE * scale
    free = np.setdiff1d(np.arange(problem.m), plan.col)
    assert np.abs(v[free]).max(initial=0.0) <= CLOSE * scale
    assert result.objective - result.bound <= 1e-12 * problem.scale


# --- oracles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (6, 4), (1, 5), (5, 1), (1, 1)])
def test_enumeration(family, shape):
    for seed in range(3):
        cost = table(family, *shape, seed)
        for k in range(1, min(shape) + 1):
            problem = of_pairs(cost, k)
            best = enumerated(cost, k)
            for solver in (Assignment(), Assignment(path=True)):
                result = solver.solve(problem)
                assert abs(result.objective - best) <= 1e-12 * problem.scale
                check_proof(problem, result)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(90, 90), (70, 130), (130, 70)])
def test_padded_assignment(family, shape):
    cost = table(family, *shape, seed=1)
    for k in (1, 20, 35, 63, 69, 70):
        problem = of_pairs(cost, k, weight=1 / 7)
        result = Assignment().solve(problem)
        assert abs(result.objective - padded(cost, k) / 7) <= 1e-10 * problem.scale
        check_proof(problem, result)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["uniform", "plane", "norms", "ties", "duplicates"])
def test_wider_than_any_list(family):
    """Rows are read past their longest list."""
    cost = table(family, 400, 400, seed=2)
    for k in (200, 360, 399, 400):
        problem = of_pairs(cost, k)
        result = Assignment().solve(problem)
        assert abs(result.objective - padded(cost, k)) <= 1e-10 * problem.scale
        check_proof(problem, result)


def test_pot():
    ot = pytest.importorskip("ot")
    cost = table("plane", 60, 60, seed=3)
    weights = np.full(60, 1 / 60)
    for k in (6, 30, 54):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plan = ot.partial.partial_wasserstein(weights, weights, cost, k / 60)
        assert Assignment().solve(of_pairs(cost, k, 1 / 60)).objective == pytest.approx((plan * cost).sum(), rel=1e-9)


def test_single_precision_is_read_as_it_is():
    cost = table("norms", 80, 60, seed=4).astype(np.float32)
    problem = of_pairs(cost, 30)
    assert problem.cost.dtype == np.float32
    result = Assignment().solve(problem)
    assert abs(result.objective - padded(cost.astype(np.float64), 30)) <= 1e-12 * problem.scale
    check_proof(problem, result)


def test_far_from_zero():
    """A constant that dwarfs the differences costs digits, not pairs."""
    cost = table("uniform", 40, 50, seed=5)
    result = Assignment().solve(of_pairs(cost + 1e6, 25))
    assert result.objective - 25e6 == pytest.approx(padded(cost, 25), abs=1e-7)


# --- properties ----------------------------------------------------------------------------------------------------


@st.composite
def instances(draw):
    n, m = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    family = draw(st.sampled_from(FAMILIES[:-1]))
    return table(family, n, m, draw(st.integers(0, 10_000))), draw(st.integers(1, min(n, m)))


@settings(max_examples=60, deadline=None)
@given(instances(), st.integers(0, 1000))
def test_order_of_rows_and_columns_does_not_matter(instance, seed):
    cost, k = instance
    rng = np.random.default_rng(seed)
    shuffled = cost[rng.permutation(len(cost))][:, rng.permutation(cost.shape[1])]
    values = [Assignment().solve(of_pairs(c, k)).objective for c in (cost, np.ascontiguousarray(cost.T), shuffled)]
    assert max(values) - min(values) <= 1e-12 * max(1.0, k * np.abs(cost).max())


@settings(max_examples=60, deadline=None)
@given(instances(), st.floats(-3, 3))
def test_a_constant_adds_k_times_itself(instance, constant):
    cost, k = instance
    moved = Assignment().solve(of_pairs(cost + constant, k)).objective
    assert moved == pytest.approx(Assignment().solve(of_pairs(cost, k)).objective + k * constant, abs=1e-10)


@settings(max_examples=60, deadline=None)
@given(instances())
def test_the_path_holds_every_optimum_and_is_convex(instance):
    cost, _ = instance
    most = min(cost.shape)
    path = np.array(Assignment(path=True).solve(of_pairs(cost, most)).details["path"])
    scale = max(1.0, most * np.abs(cost).max())
    assert len(path) == most + 1
    assert path[0] == 0.0
    for k in range(1, most + 1):
        assert abs(path[k] - Assignment().solve(of_pairs(cost, k)).objective) <= 1e-11 * scale
    assert (np.diff(path, 2) >= -1e-11 * scale).all()
    if cost.min() >= 0.0:
        assert (np.diff(path) >= -1e-11 * scale).all()


@settings(max_examples=60, deadline=None)
@given(instances())
def test_prices_prove_it(instance):
    problem = of_pairs(*instance)
    check_proof(problem, Assignment().solve(problem))


# --- limits, memory, refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [False, True])
def test_a_stopped_search_keeps_the_mass_and_a_true_bound(path):
    cost = table("norms", 60, 50, seed=6)
    for k in (25, 45, 50):
        problem = of_pairs(cost, k)
        best = padded(cost, k)
        for limit in (1, 3, 10):
            result = Assignment(path=path).solve(problem, evaluation_limit=limit)
            assert result.evaluations <= limit
            assert result.feasible
            assert result.objective >= best - 1e-9
            assert result.bound <= best + 1e-9
            assert result.status in (Status.ITERATION_LIMIT, Status.OPTIMAL)


def test_a_start_that_is_the_optimum_survives_a_stop():
    problem = of_pairs(table("norms", 40, 40, seed=7), 30)
    best = Assignment().solve(problem)
    again = Assignment(path=True).solve(problem, start=best.solution, evaluation_limit=1)
    assert again.objective == best.objective


@pytest.mark.parametrize("path", [False, True])
def test_slices_change_nothing(monkeypatch, path):
    """One path a slice, or all in one."""
    cost = table("plane", 150, 150, seed=8)
    for k in (75, 150):
        whole = Pairs(cost, k, path=path).find()
        with monkeypatch.context() as patch:
            patch.setattr(assignment, "_FIRST", 1)
            sliced = Pairs(cost, k, path=path)
            slices = sum(1 for _ in sliced.steps())
        assert slices >= sliced.searched
        np.testing.assert_array_equal(whole.matched(), sliced.matched())
        np.testing.assert_array_equal(whole.duals(), sliced.duals())


def test_memory_beside_the_costs_is_linear():
    """No padded copy: less than a tenth of the table."""
    cost = table("uniform", 1500, 1500, seed=9)
    Pairs(cost[:2, :2].copy(), 1).find()
    tracemalloc.start()
    Pairs(cost, 750).find()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.1 * cost.nbytes


def test_other_masses_are_for_the_network_simplex():
    cost = table("uniform", 4, 4, seed=0)
    for source, mass in ((np.ones(4), 2.5), (np.array([1.0, 2.0, 1.0, 1.0]), 2.0)):
        with pytest.raises(UnsupportedProblem, match="network-simplex"):
            Assignment().solve(PartialTransport(cost, source, np.ones(4), mass))


def test_a_mass_within_rounding_of_a_whole_multiple():
    cost = table("uniform", 10, 10, seed=1)
    weights = np.full(10, 0.1)
    result = Assignment().solve(PartialTransport(cost, weights, weights, 0.1 + 0.2))
    assert result.objective == pytest.approx(0.1 * padded(cost, 3))
    assert Assignment().solve(PartialTransport(cost, weights, weights, 0.0)).objective == 0.0


def test_options_are_checked():
    with pytest.raises(InvalidProblem, match="path"):
        Assignment(path=1)  # type: ignore[arg-type]


def test_path_keeps_the_contract_too():
    check_solver(Assignment(path=True))
