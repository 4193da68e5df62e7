"""Gradient steps and exchanges: each is valued exactly, and no exchange that is left saves."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.problems import InvalidProblem, Keep, NofM, PerRow, SparseRegression
from prunesolve.solvers import _kernels, get
from prunesolve.solvers._base import Run
from prunesolve.solvers._sparse_rows import Rows
from prunesolve.solvers._sparse_starts import magnitude, wanda
from prunesolve.solvers._sparse_testing import optimum
from prunesolve.solvers.iht_swap import IhtSwap, _Exchanges, _stepped, _value
from prunesolve.solvers.testing import check_solver


def layer(seed, d, o, pattern, rank=0, samples=None):
    rng = np.random.default_rng(seed)
    samples = samples or 3 * d
    inputs = rng.normal(size=(samples, d)) @ (np.eye(d) + rng.normal(size=(d, d)) / np.sqrt(d))
    inputs *= rng.uniform(0.2, 5.0, d)
    targets = inputs @ rng.normal(size=(d, o)) + rng.normal(size=(samples, o))
    factors = rng.normal(size=(o, d, rank)) if rank else None
    gram, cross = inputs.T @ inputs / samples, inputs.T @ targets / samples
    return SparseRegression(gram, cross, pattern, row_factors=factors, offset=float((targets**2).sum()) / samples)


def row_value(problem, row, kept):
    """The value of a row's support, by its normal equations."""
    h, c = problem.hessian(row)[np.ix_(kept, kept)], problem.cross[kept, row]
    return -float(c @ np.linalg.solve(h, c))


@pytest.mark.parametrize("check", ["values", "trivial", "repeats", "evaluation limit", "time limit", "start"])
def test_it_keeps_its_word_after_another_solver_too(check):
    check_solver(IhtSwap(begin="admm"), check)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(0, 2), st.booleans())
def test_the_exchange_made_is_the_best_of_all_and_saves_what_a_refit_says(seed, d, rank, grouped):
    rng = np.random.default_rng(seed)
    d += grouped and d % 2
    problem = layer(seed, d, 1, NofM(1, 2) if grouped else PerRow(int(rng.integers(1, d))), rank)
    kept = problem.pattern.best(rng.random((1, d)))
    search = _Exchanges(problem, Rows(problem), kept.copy(), 64, Run(problem, seed=0))
    at, table, z = search._tableau(0, search.rows.damped(0))
    assert sorted(at.tolist()) == list(range(d))
    inside, group = kept[0, at], search.rows.group
    made = _kernels.load("weight_swaps").exchange(table, z, inside, group[at], 1e-12, 1)
    before = row_value(problem, 0, np.flatnonzero(kept[0]))
    values = {}
    for p in np.flatnonzero(kept[0]):
        for q in np.flatnonzero(~kept[0] & (group == group[p])):
            values[p, q] = row_value(problem, 0, sorted({*np.flatnonzero(kept[0]), q} - {p}))
    best = min(values.values())
    after = np.zeros(d, dtype=bool)
    after[at] = inside
    assert made == (best < before - 1e-12)
    assert row_value(problem, 0, np.flatnonzero(after)) == pytest.approx(min(best, before), rel=1e-9)
    # the tableau brought up to date is that of the new support
    search.kept[0] = after
    again, fresh, right = search._tableau(0, search.rows.damped(0))
    order = np.argsort(at)[np.argsort(np.argsort(again))]
    assert np.allclose(table[np.ix_(order, order)], fresh, atol=1e-8 * np.abs(fresh).max())
    assert np.allclose(z[order], right, atol=1e-8 * np.abs(right).max())


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from(["keep", "per row", "n:m"]), st.integers(0, 2))
def test_no_exchange_that_the_pattern_allows_saves_at_the_end(seed, kind, rank):
    pattern = {"keep": Keep(8), "per row": PerRow(3), "n:m": NofM(1, 3, order=(0, 3, 1, 4, 2, 5))}[kind]
    problem = layer(seed, 6, 3, pattern, rank)
    result = IhtSwap().solve(problem)
    slack = 1e-9 * problem.offset
    for p in np.flatnonzero(result.solution):
        for q in np.flatnonzero(~result.solution):
            x = result.solution.copy()
            x[p], x[q] = False, True
            assert not problem.is_feasible(x) or problem.value(x) > result.objective - slack


def test_few_taking_part_at_a_time_find_nearly_as_much_as_all():
    problem = layer(1, 60, 4, Keep(80))
    cheap = min(problem.value(magnitude(problem)), problem.value(wanda(problem)))
    all_, few = (IhtSwap(active=a).solve(problem).objective for a in (1000, 6))
    assert few - problem.least < 1.05 * (all_ - problem.least)
    assert all_ - problem.least < 0.8 * (cheap - problem.least)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_gradient_step_falls_and_is_exact_where_the_support_stays(rank):
    problem = layer(2, 12, 3, PerRow(4), rank)
    rows = Rows(problem)
    w, run = rows.dense * problem.pattern.best(np.abs(rows.dense)), Run(problem, seed=0)
    stayed = 0
    for _ in range(40):
        value = _value(rows, w, rows.product(w) - rows.cross)
        assert problem.offset + value == pytest.approx(problem.error(w / rows.scale))
        found, reached = _stepped(rows, problem.pattern, w, run)
        assert reached <= value
        support, gradient = w != 0, rows.product(w) - rows.cross
        along = gradient * support
        full = w - (along**2).sum() / (along * rows.product(along)).sum() * gradient
        if np.array_equal(problem.pattern.best(np.abs(full)), support):
            stayed += 1
            # along the step the value has no slope left at its end
            assert np.allclose(found, full * support)
            slope = ((found - w) * (rows.product(found) - rows.cross)).sum()
            assert abs(slope) < 1e-6 * abs(((found - w) * gradient).sum())
        w = found
    assert stayed


def test_it_comes_near_the_enumerated_optimum():
    gaps = []
    for seed in range(15):
        problem = layer(seed, 5, 2, Keep(5))
        best = optimum(problem)
        gaps.append((IhtSwap().solve(problem).objective - best) / (problem.offset - best))
    assert min(gaps) > -1e-9
    assert np.mean(gaps) < 0.005


@pytest.mark.parametrize("pattern", [Keep(50), PerRow(10), NofM(2, 4)], ids=str)
def test_exchanges_improve_on_the_solver_that_comes_before(pattern):
    problem = layer(3, 40, 5, pattern)
    for begin in ("admm", "obc"):
        before, after = get(begin).solve(problem), IhtSwap(begin=begin).solve(problem)
        assert after.objective < before.objective
        assert after.evaluations > before.evaluations


def test_it_starts_from_what_it_is_given():
    problem = layer(4, 30, 3, Keep(30))
    admm = get("admm").solve(problem)
    result = IhtSwap(steps=0).solve(problem, start=admm.solution)
    assert result.objective <= admm.objective
    assert result.objective == pytest.approx(IhtSwap(begin="admm").solve(problem).objective, rel=1e-12)


def test_a_fisher_block_is_one_row():
    rng = np.random.default_rng(5)
    w, gradients = rng.normal(size=200), rng.normal(size=(60, 200)) * rng.uniform(0.1, 3.0, 200)
    problem = SparseRegression.from_gradients(w, gradients, Keep(40), ridge=1e-3)
    cheap = min(problem.value(magnitude(problem)), problem.value(wanda(problem)))
    assert IhtSwap().solve(problem).objective < 0.7 * cheap


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": -1}, "steps: expected a count >= 0, got -1"),
        ({"active": 0}, "active: expected a count >= 1, got 0"),
        ({"begin": "greedy"}, "begin: expected one of iht, admm, obc, got 'greedy'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(InvalidProblem, match=re.escape(words)):
        get("iht-swap", **options)
