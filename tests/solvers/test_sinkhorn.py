"""Entropic transport: near the optimum as its regularisation falls, and honest about what it misses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.problems import InvalidProblem, PartialTransport
from prunesolve.solvers import Sinkhorn
from prunesolve.solvers import _transport_testing as oracle
from prunesolve.solvers.sinkhorn import rounded


def points(n=20):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    source, target = rng.random(n), rng.random(n)
    cost = ((x[:, None] - y) ** 2).sum(axis=2)
    return PartialTransport(cost, source, target, 0.5 * min(source.sum(), target.sum()))


def test_less_regularisation_is_nearer_to_the_optimum_and_proves_more():
    problem = points()
    best = oracle._linear_program(problem)[0]
    results = [Sinkhorn(regularisation).solve(problem) for regularisation in (0.1, 0.01, 0.001)]
    values = [result.details["rounded_value"] for result in results]
    bounds = [result.bound for result in results]
    assert values == sorted(values)[::-1]
    assert bounds == sorted(bounds)
    assert bounds[-1] <= best <= values[-1] + 1e-9
    assert values[-1] <= 1.01 * best


def test_the_errors_before_the_rounding_are_told():
    problem = points()
    early = Sinkhorn(iterations=20).solve(problem)
    late = Sinkhorn(regularisation=0.02, tolerance=1e-9).solve(problem)
    assert not early.details["converged"]
    assert late.details["converged"]
    for result in (early, late):
        assert result.feasible
        assert set(result.details["before_rounding"]) == {"value", "mass_carried", "marginal_errors"}
    missed = [max(result.details["before_rounding"]["marginal_errors"].values()) for result in (early, late)]
    assert missed[1] < 1e-7 < missed[0]
    assert early.evaluations <= 20
    assert late.details["regularisation"] == pytest.approx(0.02 * np.ptp(problem.cost))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 1.0]))
def test_anything_is_rounded_to_a_feasible_plan(seed, share):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 7, 2)
    source, target = rng.random(n) * rng.integers(0, 2, n), rng.random(m)
    problem = PartialTransport(rng.normal(size=(n, m)), source, target, share * min(source.sum(), target.sum()))
    for plan in (np.zeros((n, m)), 3 * rng.random((n, m)), np.outer(source, target)):
        assert problem.is_feasible(rounded(problem, problem.checked("plan", plan)))


def test_a_feasible_plan_is_rounded_to_itself():
    problem = oracle.transports()["masses"]
    _, plan = oracle._linear_program(problem)
    found = rounded(problem, problem.checked("plan", plan))
    assert found.toarray() == pytest.approx(plan, abs=1e-12)


@pytest.mark.parametrize(
    "options", [{"regularisation": 0.0}, {"regularisation": np.nan}, {"tolerance": -1.0}, {"iterations": 0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidProblem, match=f"{next(iter(options))} must be"):
        Sinkhorn(**options)
