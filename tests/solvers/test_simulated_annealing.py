"""Capacity-driven search around dwave-samplers' annealer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.problems import (
    BinaryQuadratic,
    Blocks,
    Budget,
    Cardinality,
    GroupBounds,
    InvalidProblem,
    LowRank,
    generators,
)
from prunesolve.solvers import Greedy, SimulatedAnnealing, Status, _capacity
from prunesolve.solvers._base import Run


def enumerated(problem):
    x = (np.arange(2**problem.n)[:, None] >> np.arange(problem.n)) & 1 == 1
    return float(problem.value(x[problem.is_feasible(x)]).min())


def perfect_sampler(problem, fields):
    """Minimises f(x) + field.x exactly and notes the fields it was asked for."""
    x = (np.arange(2**problem.n)[:, None] >> np.arange(problem.n)) & 1 == 1

    def sample(field):
        fields.append(field)
        return x[[int(np.argmin(problem.value(x) + x @ field))]]

    return sample


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_the_optimum_of_small_instances_under_every_constraint(seed):
    rng = np.random.default_rng(seed)
    n = 12
    upper = np.triu(rng.normal(size=(n, n)), 1)
    cost = rng.integers(1, 9, n).astype(float)
    for constraints in (
        [],
        [Cardinality(5)],
        [GroupBounds(np.arange(n) % 3, [1, 1, 0], [2, 3, 4])],
        [Budget(cost, 20.0)],
        [Cardinality(4), GroupBounds(np.arange(n) % 3, [1, 1, 0], [2, 2, 4])],
    ):
        problem = BinaryQuadratic(rng.normal(size=n), upper + upper.T, constraints=constraints)
        result = SimulatedAnnealing().solve(problem, seed=seed)
        assert result.objective == pytest.approx(enumerated(problem), rel=1e-9)


def test_it_is_better_than_greedy_where_greedy_is_poor():
    problem = generators.qubo(200, seed=0)
    assert SimulatedAnnealing().solve(problem).objective < Greedy().solve(problem).objective


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
@settings(max_examples=25)
def test_a_field_alone_reaches_every_count_of_a_linear_problem(seed, k):
    # of distinct linear biases every count lies on the convex hull, so nothing is left for the finish to do
    rng = np.random.default_rng(seed)
    problem = BinaryQuadratic(rng.permutation(10) - 4.5, constraints=[Cardinality(k)])
    fields: list[np.ndarray] = []
    run = Run(problem, seed=0)
    _capacity.search(problem, run, perfect_sampler(problem, fields), bisections=30)
    assert run.objective == enumerated(problem)
    found = perfect_sampler(problem, [])(fields[-1])[0]
    assert found.sum() == k
    assert all(np.ptp(field) == 0 for field in fields)


def test_a_gap_point_that_no_field_reaches_is_finished():
    # twins that only pay together: the hull jumps from none to both
    problem = BinaryQuadratic([1.0, 1.0], [[0.0, -4.0], [-4.0, 0.0]], constraints=[Cardinality(1)])
    fields: list[np.ndarray] = []
    run = Run(problem, seed=0)
    _capacity.search(problem, run, perfect_sampler(problem, fields), bisections=8)
    assert len(fields) == 8
    assert (run.feasible, run.objective) == (True, 1.0)


def test_groups_and_budgets_get_fields_of_their_own():
    group, cost = np.array([0, 0, 0, 1, 1, 1]), np.array([1.0, 2, 3, 4, 5, 6])
    problem = BinaryQuadratic(-np.arange(1.0, 7), constraints=[GroupBounds(group, [0, 0], [1, 3]), Budget(cost, 9.0)])
    fields: list[np.ndarray] = []
    run = Run(problem, seed=0)
    _capacity.search(problem, run, perfect_sampler(problem, fields), bisections=3)
    assert (fields[0] == 0).all()
    assert fields[1][0] > 0
    apart = fields[1] / cost
    assert apart[3] == pytest.approx(apart[4]) == pytest.approx(apart[5])
    assert run.feasible


def test_a_constraint_that_holds_by_itself_gets_no_field():
    problem = BinaryQuadratic(
        [-1.0, 1.0, 1.0], constraints=[GroupBounds([0, 0, 0], [0], [2]), Budget([1.0, 1, 1], 2.0)]
    )
    fields: list[np.ndarray] = []
    _capacity.search(problem, Run(problem, seed=0), perfect_sampler(problem, fields), bisections=5)
    assert [field.tolist() for field in fields] == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("storage", ["dense", "blocks", "low rank", "sparse"])
def test_reach_bounds_every_field(storage):
    from scipy.sparse import csr_array

    rng = np.random.default_rng(0)
    upper = np.triu(rng.normal(size=(6, 6)), 1)
    matrix = upper + upper.T
    stored = {
        "dense": matrix,
        "blocks": Blocks([matrix[:2, :2], matrix[2:, 2:]]),
        "low rank": LowRank(rng.normal(size=(6, 2)), sign=-1),
        "sparse": csr_array(matrix),
    }[storage]
    problem = BinaryQuadratic(rng.normal(size=6), stored)
    x = (np.arange(64)[:, None] >> np.arange(6)) & 1 == 1
    # a unit's own bit does not act on it
    assert (np.abs(problem.fields(x)).max(axis=0) <= _capacity.reach(problem) + 1e-12).all()


def test_an_evaluation_limit_is_a_limit_on_sweeps():
    problem = generators.pruning(30, keep=0.5, seed=0)
    short = SimulatedAnnealing().solve(problem, evaluation_limit=50)
    assert 0 < short.evaluations <= 50
    assert short.feasible


def test_the_schedule_is_cut_into_parts_so_that_a_time_limit_is_kept():
    problem = generators.qubo(400, seed=0)
    result = SimulatedAnnealing(reads=8, sweeps=100_000).solve(problem, time_limit=0.3)
    assert (result.status, result.feasible) == (Status.TIME_LIMIT, True)
    # 8 x 100,000 sweeps would take minutes
    assert result.seconds < 3.0


@pytest.mark.parametrize("option", ["reads", "sweeps", "bisections"])
def test_options_below_one_are_refused(option):
    with pytest.raises(InvalidProblem, match=f"{option} must be at least 1, got 0"):
        SimulatedAnnealing(**{option: 0})


def test_what_should_stop_raises_inside_the_sampler_comes_out_behind_it():
    run = Run(generators.qubo(4, seed=0), seed=0)

    def interrupted():
        raise KeyboardInterrupt

    with _capacity.Interrupt(run) as stop:
        assert stop() is False
    run.should_stop = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt), _capacity.Interrupt(run) as stop:
        assert stop() is True
