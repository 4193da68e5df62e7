"""Greedy against a naive re-evaluation of every step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesolve.problems import BinaryQuadratic, Budget, Cardinality, GroupBounds, InvalidProblem
from prunesolve.solvers import Greedy, Status


def problem_of(seed, n, constraints):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(size=(n, n)), 1)
    return BinaryQuadratic(rng.normal(size=n), upper + upper.T, constraints=constraints)


def naive(problem, x, k):
    """Add (or drop) the unit whose change is least, every candidate evaluated from scratch."""
    add = x.sum() < k
    while x.sum() != k:
        candidates = [i for i in range(problem.n) if x[i] != add]
        values = []
        for i in candidates:
            y = x.copy()
            y[i] = add
            values.append(problem.value(y))
        x[candidates[int(np.argmin(values))]] = add
    return x


@given(seed=st.integers(0, 10**6), k=st.integers(1, 7))
def test_each_direction_takes_the_least_change(seed, k):
    problem = problem_of(seed, 8, [Cardinality(k)])
    forward = Greedy(direction="forward").solve(problem)
    backward = Greedy(direction="backward").solve(problem)
    assert np.array_equal(forward.solution, naive(problem, np.zeros(8, dtype=bool), k))
    assert np.array_equal(backward.solution, naive(problem, np.ones(8, dtype=bool), k))
    assert Greedy().solve(problem).objective == min(forward.objective, backward.objective)


def test_unconstrained_greedy_stops_where_no_step_pays():
    problem = BinaryQuadratic([-1.0, -1.0, 5.0], [[0, 3, 0], [3, 0, 0], [0, 0, 0]])
    assert Greedy(direction="forward").solve(problem).objective == -1.0
    assert Greedy(direction="backward").solve(problem).objective == -1.0


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_any_mix_of_constraints_is_met(direction):
    n = 24
    rng = np.random.default_rng(1)
    layers = GroupBounds(np.arange(n) // 6, [1, 1, 1, 1], [4, 4, 2, 6])
    patterns = GroupBounds(np.arange(n) % 4 - 1, [2, 0, 0], [3, 6, 6])
    budget = Budget(1.0 + rng.random(n), 16.0, 0.1 * (np.ones((n, n)) - np.eye(n)))
    problem = problem_of(1, n, [Cardinality(9), layers, patterns, budget])
    result = Greedy(direction=direction).solve(problem)
    assert result.feasible
    assert result.status is Status.FINISHED


def test_a_lower_bound_is_met_where_nothing_pays():
    problem = BinaryQuadratic(np.ones(6), constraints=[GroupBounds([0, 0, 0, 1, 1, 1], [1, 2], [3, 3])])
    for direction in ("forward", "backward"):
        assert Greedy(direction=direction).solve(problem).objective == 3.0


def test_two_runs_agree():
    problem = problem_of(3, 30, [Cardinality(11), Budget(np.arange(30.0), 150.0)])
    one, other = Greedy().solve(problem, seed=0), Greedy().solve(problem, seed=0)
    assert np.array_equal(one.solution, other.solution)
    assert one.evaluations == other.evaluations > 0


def test_an_evaluation_limit_holds():
    assert Greedy().solve(problem_of(3, 30, []), evaluation_limit=5).evaluations <= 5


def test_an_unknown_direction_is_refused():
    with pytest.raises(InvalidProblem, match="sideways"):
        Greedy(direction="sideways")
