"""POT's network simplex as a solver: any masses, proved, in pieces, and on what POT itself gets wrong."""

from __future__ import annotations

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.problems import InvalidProblem, PartialTransport
from prunesolve.solvers import NetworkSimplex, Status
from prunesolve.solvers import _transport_testing as oracle


def masses(n, seed=0):
    rng = np.random.default_rng(seed)
    source, target = rng.random(n), rng.random(n)
    return PartialTransport(rng.random((n, n)), source, target, 0.4 * min(source.sum(), target.sum()))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 5000]))
def test_any_transport_is_solved_and_proved(seed, pivots):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 8, 2)
    source, target = rng.integers(0, 4, n) / 4.0, rng.random(m)
    cost = rng.integers(-3, 4, (n, m)) / 4.0 if seed % 2 else rng.normal(size=(n, m))
    problem = PartialTransport(cost, source, target, rng.choice([0.3, 1.0]) * min(source.sum(), target.sum()))
    result = NetworkSimplex(pivots).solve(problem)
    assert result.status is Status.OPTIMAL
    assert result.objective == pytest.approx(oracle._linear_program(problem)[0], abs=1e-8)
    assert result.bound == pytest.approx(result.objective, abs=1e-9)


def test_it_agrees_with_pots_own_partial_transport():
    problem = masses(40)
    plan = ot.partial.partial_wasserstein(problem.source, problem.target, problem.cost, m=problem.mass)
    assert NetworkSimplex().solve(problem).objective == pytest.approx(problem.value(plan), rel=1e-9)


def test_costs_that_are_nowhere_positive_carry_no_more_than_the_mass():
    """POT's own dummies let more pass here: a unit from dummy to dummy costs it 2 max c <= 0."""
    problem = masses(10).replace(cost=-masses(10).cost)
    plan = ot.partial.partial_wasserstein(problem.source, problem.target, np.array(problem.cost), m=problem.mass)
    assert problem.violation(plan) > problem.slack
    result = NetworkSimplex().solve(problem)
    assert result.feasible
    assert result.objective == pytest.approx(oracle._linear_program(problem)[0], abs=1e-9)


def test_a_search_in_pieces_ends_at_the_same_optimum():
    problem = masses(60)
    whole, pieces = NetworkSimplex().solve(problem), NetworkSimplex(pivots=40).solve(problem)
    assert whole.evaluations == 1 < pieces.evaluations
    assert pieces.objective == pytest.approx(whole.objective, rel=1e-12)
    assert pieces.status is Status.OPTIMAL


def test_a_limit_leaves_a_feasible_plan_and_a_valid_bound():
    problem = masses(60)
    result = NetworkSimplex(pivots=40).solve(problem, evaluation_limit=2)
    assert result.status is Status.ITERATION_LIMIT
    assert result.feasible
    assert result.evaluations == 2
    assert result.bound <= NetworkSimplex().solve(problem).objective <= result.objective


def test_plans_hold_no_entries_of_rounding():
    problem = PartialTransport(np.random.default_rng(0).random((6, 5)), np.ones(6) / 6, np.ones(5) / 6, 0.5)
    plan = NetworkSimplex().solve(problem).solution
    assert plan.nnz == 3
    assert plan.data == pytest.approx(1 / 6)


def test_weights_and_costs_of_any_size_are_solved():
    problem = masses(12)
    best = NetworkSimplex().solve(problem).objective
    for by in (1e-12, 1e12):
        scaled = problem.replace(source=by * problem.source, target=by * problem.target, mass=by * problem.mass)
        assert NetworkSimplex().solve(scaled).objective == pytest.approx(by * best, rel=1e-9)
        costly = problem.replace(cost=by * problem.cost)
        assert NetworkSimplex().solve(costly).objective == pytest.approx(by * best, rel=1e-9)


def test_options_out_of_range_are_refused():
    with pytest.raises(InvalidProblem, match="pivots must be at least 1"):
        NetworkSimplex(pivots=0)
