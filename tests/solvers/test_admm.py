"""ALPS: its linear algebra, its schedule, and what it finds."""

from __future__ import annotations

import re

import numpy as np
import pytest

from prunesolve.problems import InvalidProblem, Keep, NofM, PerRow, SparseRegression
from prunesolve.solvers import Status, get
from prunesolve.solvers._sparse_rows import Rows
from prunesolve.solvers._sparse_starts import magnitude, wanda
from prunesolve.solvers._sparse_testing import optimum
from prunesolve.solvers.admm import Admm, _Split


def layer(seed, d, o, pattern, rank=0, samples=None):
    rng = np.random.default_rng(seed)
    samples = samples or 3 * d
    inputs = rng.normal(size=(samples, d)) @ (np.eye(d) + rng.normal(size=(d, d)) / np.sqrt(d))
    inputs *= rng.uniform(0.2, 5.0, d)
    targets = inputs @ rng.normal(size=(d, o)) + rng.normal(size=(samples, o))
    factors = rng.normal(size=(o, d, rank)) if rank else None
    gram, cross = inputs.T @ inputs / samples, inputs.T @ targets / samples
    return SparseRegression(gram, cross, pattern, row_factors=factors, offset=float((targets**2).sum()) / samples)


@pytest.mark.parametrize("rank", [0, 1, 3, 20])
def test_the_first_variable_solves_its_equations_for_every_rho(rank):
    rows = Rows(problem := layer(1, 9, 3, Keep(9), rank))
    split, sides = _Split(problem, rows), np.random.default_rng(0).normal(size=(3, 9))
    for rho in (0.1, 2.0, 0.1):
        found = split._solved(sides, rho)
        for row in range(3):
            assert np.allclose((rows.hessian(row) + rho * np.eye(9)) @ found[row], sides[row])


def test_scaling_leaves_a_unit_diagonal_and_the_same_regression():
    problem = layer(2, 7, 2, Keep(5), rank=2)
    rows = Rows(problem)
    assert np.allclose(np.mean([np.diag(rows.hessian(i)) for i in range(2)], axis=0), 1.0)
    w = np.random.default_rng(1).normal(size=(2, 7))
    scaled = w * rows.scale
    value = sum(scaled[i] @ rows.hessian(i) @ scaled[i] - 2 * scaled[i] @ rows.cross[i] for i in range(2))
    assert problem.offset + value == pytest.approx(problem.error(w))
    assert np.allclose(rows.product(scaled), [rows.hessian(i) @ scaled[i] for i in range(2)])


@pytest.mark.parametrize("rank", [0, 2])
def test_inverses_are_inverses_by_woodbury_or_alone(rank):
    for samples in (30, 6):
        # six samples of nine inputs: singular, and damped
        rows = Rows(layer(3, 9, 2, Keep(5), rank, samples))
        for row in range(2):
            assert np.allclose(rows.damped(row) @ rows.inverse(row), np.eye(9), atol=1e-5)
            assert np.allclose(rows.damped(row), rows.hessian(row), atol=1e-6)


@pytest.mark.parametrize("pattern", [Keep(40), PerRow(8), NofM(1, 4)], ids=str)
@pytest.mark.parametrize("rank", [0, 3])
def test_it_explains_clearly_more_than_the_cheap_selections(pattern, rank):
    problem = layer(4, 32, 5, pattern, rank)
    result = Admm().solve(problem)
    cheap = min(problem.value(magnitude(problem)), problem.value(wanda(problem)))
    assert result.status is Status.FINISHED
    assert 3 < result.evaluations <= 300
    assert result.objective - problem.least < 0.85 * (cheap - problem.least)


def test_it_comes_near_the_enumerated_optimum():
    gaps = []
    for seed in range(20):
        problem = layer(seed, 5, 2, Keep(5))
        best = optimum(problem)
        gaps.append((Admm().solve(problem).objective - best) / (problem.offset - best))
    assert min(gaps) > -1e-9
    assert np.mean(gaps) < 0.01


def test_where_inputs_do_not_touch_it_is_optimal():
    rng = np.random.default_rng(5)
    problem = SparseRegression(np.diag(rng.uniform(0.1, 9.0, 12)), rng.normal(size=(12, 4)), Keep(10))
    explained = np.sort((problem.cross**2 / np.diag(problem.gram)[:, None]).ravel())[-10:].sum()
    assert Admm().solve(problem).objective == pytest.approx(-explained)


def test_a_rho_that_freezes_the_support_is_tried_smaller():
    problem = layer(6, 32, 5, Keep(40))
    cheap = min(problem.value(magnitude(problem)), problem.value(wanda(problem)))
    result = Admm(rho=30.0).solve(problem)
    assert result.evaluations > 3
    assert result.objective - problem.least < 0.95 * (cheap - problem.least)


def test_a_limit_ends_it_with_a_selection_of_the_pattern():
    problem = layer(7, 24, 4, NofM(1, 2))
    for limit in (1, 2, 7):
        result = Admm().solve(problem, evaluation_limit=limit)
        assert result.evaluations == limit
        assert result.feasible
    assert Admm(iterations=4).solve(problem).evaluations <= 4


@pytest.mark.parametrize(
    ("options", "words"),
    [({"iterations": 0}, "iterations: expected a count >= 1, got 0"), ({"rho": 0.0}, "rho: expected a number > 0")],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(InvalidProblem, match=re.escape(words)):
        get("admm", **options)
