"""What the library says of plans: repaired duals are valid and tight, greedy plans feasible, JSON whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from prunesolve.problems import InvalidProblem, PartialTransport, SolverFailed
from prunesolve.solvers import Result, Solver, Status, _plans
from prunesolve.solvers import _transport_testing as oracle

EXAMPLES = oracle.transports()


def any_transport(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 6, 2)
    whole = bool(rng.integers(2))
    source, target = (rng.integers(0, 3, size) / 2.0 if whole else rng.random(size) for size in (n, m))
    cost = rng.integers(-2, 3, (n, m)) / 2.0 if rng.integers(2) else rng.normal(size=(n, m))
    share = rng.choice([0.0, 0.5, 1.0])
    return PartialTransport(cost, source, target, share * min(source.sum(), target.sum()))


def dual_program(problem):
    """(value, u, v) of the dual linear program, by scipy: max t mass + <u, a> + <v, b>, t + u_i + v_j <= c_ij."""
    from scipy.optimize import linprog

    n, m = problem.n, problem.m
    rows = np.concatenate([np.ones((n * m, 1)), np.kron(np.eye(n), np.ones((m, 1))), np.tile(np.eye(m), (n, 1))], 1)
    found = linprog(
        -np.concatenate([[problem.mass], problem.source, problem.target]),
        A_ub=rows,
        b_ub=np.asarray(problem.cost, dtype=float).ravel(),
        bounds=[(None, None)] + [(None, 0.0)] * (n + m),
        method="highs",
    )
    assert found.status == 0, found.message
    return -found.fun, found.x[1 : n + 1], found.x[n + 1 :]


def assert_valid(problem, duals):
    u, v, t = duals.u, duals.v, duals.t
    assert (u <= 0).all()
    assert (v <= 0).all()
    largest = max(1.0, np.abs(u).max(), np.abs(v).max(), abs(t))
    assert (t + u[:, None] + v <= problem.cost + 1e-12 * largest).all()
    assert duals.bound == pytest.approx(t * problem.mass + u @ problem.source + v @ problem.target, abs=1e-9 * largest)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_any_duals_are_repaired_to_valid_ones(seed):
    problem, rng = any_transport(seed), np.random.default_rng(seed)
    optimum = oracle._linear_program(problem)[0]
    for size in (0.0, 0.3, 100.0):
        u, v = size * rng.normal(size=problem.n), size * rng.normal(size=problem.m)
        duals = _plans.repaired(problem, u, v)
        assert_valid(problem, duals)
        assert duals.bound <= optimum + 1e-9 * max(1.0, size)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_either_half_of_optimal_duals_proves_the_optimum(seed):
    problem = any_transport(seed)
    best, u, v = dual_program(problem)
    nothing = np.full(problem.n, np.nan), np.full(problem.m, -np.inf)
    for given_ in ((u, v), (u, nothing[1]), (nothing[0], v)):
        duals = _plans.repaired(problem, *given_)
        assert_valid(problem, duals)
        assert duals.bound == pytest.approx(best, abs=1e-9)


def test_duals_of_another_shape_are_refused():
    with pytest.raises(InvalidProblem, match=r"u: expected duals of shape \(5,\), got \(4,\)"):
        _plans.repaired(EXAMPLES["units"], np.zeros(4), np.zeros(4))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_a_greedy_plan_is_feasible_and_no_better_than_the_optimum(seed):
    problem = any_transport(seed)
    plan = _plans.greedy(problem)
    assert problem.is_feasible(plan)
    assert problem.value(plan) >= oracle._linear_program(problem)[0] - 1e-9
    assert plan.nnz <= problem.n + problem.m


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.startswith("units")])
def test_the_oracles_agree(name):
    """Enumeration, the linear program, and the padded assignment of scipy."""
    problem = EXAMPLES[name]
    n, m, k = problem.n, problem.m, problem.pairs
    padded = np.full((n + m - k, n + m - k), np.inf)
    padded[:n, :m] = problem.cost
    padded[:n, m:], padded[n:, :m] = 0.0, 0.0
    rows, columns = linear_sum_assignment(padded)
    scale = problem.scale
    assert padded[rows, columns].sum() * problem.unit == pytest.approx(oracle.optimum(problem), abs=1e-12 * scale)
    assert oracle._linear_program(problem)[0] == pytest.approx(oracle.optimum(problem), abs=1e-9 * scale)


# --- through a run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offers(Solver):
    """Offers a plan and hands in duals, whatever they are."""

    name: ClassVar[str] = "offers"
    accepts: ClassVar[type[Any]] = PartialTransport
    given: ClassVar[dict[str, Any]] = {}

    def _search(self, problem, run):
        for plan in self.given.get("plans", ()):
            run.offer(plan)
        for duals in self.given.get("duals", ()):
            run.prove_duals(*duals)


def offered(monkeypatch, problem, **given_):
    monkeypatch.setattr(Offers, "given", given_)
    return Offers().solve(problem)


def test_a_run_recomputes_what_a_plan_is_worth(monkeypatch):
    problem = EXAMPLES["units"]
    good, over = np.eye(5, 4) * [1, 1, 0, 0], np.eye(5, 4) * 2
    result = offered(monkeypatch, problem, plans=[over, good, over])
    assert result.feasible
    assert result.objective == problem.cost[0, 0] + problem.cost[1, 1]
    assert result.solution.toarray().tolist() == good.tolist()
    assert result.status is Status.FINISHED
    assert result.details["mass_asked"] == result.details["mass_carried"] == 2.0
    assert result.details["marginal_errors"] == {"source": 0.0, "target": 0.0, "mass": 0.0}
    result = offered(monkeypatch, problem, plans=[over])
    assert not result.feasible
    assert result.status is Status.NO_FEASIBLE_FOUND
    assert result.details["marginal_errors"] == {"source": 1.0, "target": 1.0, "mass": 6.0}


def test_the_best_duals_are_told_and_bound_the_result(monkeypatch):
    problem = EXAMPLES["masses"]
    best, u, v = dual_program(problem)
    poor = np.full(5, -3.0), np.full(4, -3.0)
    plan = oracle._linear_program(problem)[1]
    result = offered(monkeypatch, problem, plans=[plan], duals=[poor, (u, v), (u + 10.0, v + 10.0), poor])
    assert result.bound == pytest.approx(best)
    assert abs(result.gap) < 1e-9
    duals = result.details["duals"]
    told = duals["mass"] * problem.mass + np.dot(duals["u"], problem.source) + np.dot(duals["v"], problem.target)
    assert told == pytest.approx(best)
    weak = offered(monkeypatch, problem, plans=[plan], duals=[poor])
    assert weak.bound < result.bound


def test_no_bound_is_above_the_objective_by_rounding_alone(monkeypatch):
    problem = PartialTransport([[1e9, 0.0], [0.0, -1e9]], [1.0, 1.0], [1.0, 1.0], 2.0)
    _, u, v = dual_program(problem)
    result = offered(monkeypatch, problem, plans=[np.eye(2)], duals=[(u, v)])
    assert result.bound <= result.objective == 0.0


def test_what_is_no_plan_fails_the_search(monkeypatch):
    with pytest.raises(SolverFailed, match="offered solution: expected a plan"):
        offered(monkeypatch, EXAMPLES["units"], plans=[np.zeros(5)])


def test_nothing_to_carry_is_nobodys_search(monkeypatch):
    result = offered(monkeypatch, EXAMPLES["units"].replace(mass=0.0), plans=["never offered"])
    assert (result.objective, result.bound, result.status) == (0.0, 0.0, Status.OPTIMAL)
    assert result.solution.nnz == 0


def test_a_start_is_kept_where_nothing_is_better():
    problem = EXAMPLES["masses"]
    plan = oracle._linear_program(problem)[1]
    result = Offers().solve(problem, start=plan)
    assert result.solution.toarray().tolist() == plan.tolist()
    with pytest.raises(InvalidProblem, match=r"start: expected a feasible plan \(5, 4\), got one of violation 0.8"):
        Offers().solve(problem, start=np.zeros((5, 4)))


def test_json_brings_the_plan_back(monkeypatch, tmp_path):
    problem = EXAMPLES["masses, zero weights"]
    _, u, v = dual_program(problem)
    result = offered(monkeypatch, problem, plans=[oracle._linear_program(problem)[1]], duals=[(u, v)])
    result.save(tmp_path / "result.json")
    again = Result.load(tmp_path / "result.json")
    assert again.to_json() == result.to_json()
    assert (again.solution.toarray() == result.solution.toarray()).all()
    for told in (
        '{"plan": [[0, 1]], "shape": [5, 4]}',
        '{"plan": [[9, 1, 1.0]], "shape": [5, 4]}',
        '{"shape": [5, 4]}',
    ):
        start, end = result.to_json().index('{"plan"'), result.to_json().index(', "details"')
        with pytest.raises(InvalidProblem, match="expected"):
            Result.from_json(result.to_json()[:start] + told + result.to_json()[end:])
