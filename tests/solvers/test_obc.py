"""Optimal brain surgery: every removal is valued and made up for exactly, and the rows are merged as by a heap."""

from __future__ import annotations

import heapq
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.problems import InvalidProblem, Keep, NofM, PerRow, SparseRegression
from prunesolve.solvers import get
from prunesolve.solvers._base import Run
from prunesolve.solvers._sparse_rows import Rows
from prunesolve.solvers._sparse_starts import magnitude, wanda
from prunesolve.solvers.obc import Obc, _by_loss, _eliminated, _merged
from prunesolve.solvers.testing import check_solver


def layer(seed, d, o, pattern, rank=0, samples=None):
    """A layer with correlated inputs of different sizes."""
    rng = np.random.default_rng(seed)
    samples = samples or 3 * d
    inputs = rng.normal(size=(samples, d)) @ (np.eye(d) + 0.5 * rng.normal(size=(d, d)) / np.sqrt(d))
    inputs *= rng.uniform(0.2, 5.0, d)
    targets = inputs @ rng.normal(size=(d, o)) + rng.normal(size=(samples, o))
    factors = rng.normal(size=(o, d, rank)) if rank else None
    gram, cross = inputs.T @ inputs / samples, inputs.T @ targets / samples
    return SparseRegression(gram, cross, pattern, row_factors=factors, offset=float((targets**2).sum()) / samples)


def removed(problem, row):
    """What goes from a row, all of it, and what each removal costs."""
    rows = Rows(problem)
    return _eliminated(rows, row, np.bincount(rows.group), Run(problem, seed=0))


def row_values(problem, row, gone):
    """The values of a row alone after each removal, by solving its normal equations anew."""
    h, c = problem.hessian(row), problem.cross[:, row]
    for count in range(len(gone) + 1):
        kept = np.setdiff1d(np.arange(len(c)), gone[:count])
        yield -float(c[kept] @ np.linalg.solve(h[np.ix_(kept, kept)], c[kept])) if len(kept) else 0.0


@pytest.mark.parametrize("check", ["values", "trivial", "repeats", "evaluation limit", "time limit", "start"])
def test_the_cheaper_order_keeps_its_word_too(check):
    check_solver(Obc(order="columns", block=2), check)


@pytest.mark.parametrize("rank", [0, 3, 30])
def test_a_removal_costs_what_a_refit_says_however_long_updates_are_put_off(rank):
    problem = layer(1, 40, 2, Keep(3), rank)
    for row in range(2):
        gone, losses = removed(problem, row)
        assert sorted(gone.tolist()) == list(range(40))
        true = np.diff(list(row_values(problem, row, gone)))
        assert np.allclose(losses, true, rtol=1e-6, atol=1e-9 * problem.offset)


@pytest.mark.parametrize("rank", [0, 2])
def test_every_removal_is_the_cheapest_there_is(rank):
    problem = layer(2, 9, 1, Keep(3), rank)
    gone, losses = removed(problem, 0)
    for step in range(9):
        costs = [
            np.diff(list(row_values(problem, 0, [*gone[:step], p]))[-2:])[0] for p in range(9) if p not in gone[:step]
        ]
        assert losses[step] == pytest.approx(min(costs), rel=1e-7, abs=1e-10)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 8))
def test_rows_are_merged_as_by_a_heap_of_their_next_removals(seed, o, d):
    rng = np.random.default_rng(seed)
    losses = rng.integers(0, 6, (o, d)).astype(float)
    count = int(rng.integers(0, o * d + 1))
    heap, taken = [(losses[row, 0], row) for row in range(o)], [0] * o
    heapq.heapify(heap)
    spent = 0.0
    for _ in range(count):
        loss, row = heapq.heappop(heap)
        spent, taken[row] = spent + loss, taken[row] + 1
        if taken[row] < d:
            heapq.heappush(heap, (losses[row, taken[row]], row))
    found = _merged(losses, count)
    assert found.sum() == count
    # ties may be taken from another row, at the same running maximum
    dearest = np.maximum.accumulate(losses, axis=1)
    ours, theirs = (sorted(x for row in range(o) for x in dearest[row, : c[row]]) for c in (found, taken))
    assert ours == theirs


@pytest.mark.parametrize("pattern", [PerRow(4), NofM(1, 3), NofM(2, 4, order=tuple(np.arange(12)[::-1].tolist()))])
def test_with_quotas_the_cheapest_that_may_still_go_goes(pattern):
    problem = layer(3, 12, 1, pattern)
    group = np.zeros(12, dtype=int) if isinstance(pattern, PerRow) else pattern.group(12)
    left = {g: int((group == g).sum()) * (12 - problem.k) // 12 for g in set(group.tolist())}
    h, c, kept = problem.hessian(0), problem.cross[:, 0], list(range(12))
    for _ in range(12 - problem.k):

        def value(p, kept=kept):
            rest = [j for j in kept if j != p]
            return -c[rest] @ np.linalg.solve(h[np.ix_(rest, rest)], c[rest])

        gone = min((p for p in kept if left[group[p]]), key=value)
        kept.remove(gone)
        left[group[gone]] -= 1
    run = Run(problem, seed=0)
    run.offer(magnitude(problem))
    found = _by_loss(problem, Rows(problem), run)
    assert np.flatnonzero(found[0]).tolist() == kept


def test_rows_not_reached_keep_what_the_cheap_selection_keeps():
    problem = layer(4, 20, 5, Keep(30))
    cheap = min((magnitude(problem), wanda(problem)), key=problem.value).reshape(5, 20)
    result = Obc().solve(problem, evaluation_limit=2)
    found = result.solution.reshape(5, 20)
    assert result.evaluations == 2
    assert np.array_equal(found[2:], cheap[2:])
    assert np.array_equal(found.sum(axis=1), cheap.sum(axis=1))
    assert problem.value(cheap.ravel()) > result.objective > Obc().solve(problem).objective


@pytest.mark.parametrize("rank", [0, 2])
def test_by_columns_later_inputs_make_up_exactly_for_those_before(rank):
    problem = layer(5, 10, 3, PerRow(4))
    if rank:
        # alike in all rows, so that their mean is the Hessian of each
        own = np.repeat(np.random.default_rng(0).normal(size=(1, 10, rank)), 3, axis=0)
        problem = problem.replace(row_factors=own)
    rows = Rows(problem)
    weights, kept = rows.dense.copy(), np.ones((3, 10), dtype=bool)
    Obc()._block(problem.pattern, rows.mean_inverse_factor(np.arange(10)), weights, kept, slice(0, 6))
    w, h = weights * kept, rows.hessian(0)
    # minimise over w[6:] with w[:6] as they are
    best = np.linalg.solve(h[6:, 6:], (rows.cross[:, 6:] - w[:, :6] @ h[:6, 6:]).T).T
    assert kept[:, :6].sum() < 18
    assert np.allclose(w[:, 6:], best, rtol=1e-8)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4), st.integers(1, 7))
def test_by_columns_every_pattern_is_met_whatever_the_blocks(seed, d, o, block):
    k = int(np.random.default_rng(seed).integers(0, o * d + 1))
    for pattern in (Keep(k), PerRow(k // o), *([NofM(1, 2)] if d % 2 == 0 else [])):
        result = Obc(order="columns", block=block).solve(layer(seed, d, o, pattern))
        assert result.feasible


def test_both_orders_beat_what_the_weights_alone_tell():
    for pattern in (Keep(60), PerRow(10), NofM(2, 4)):
        problem = layer(6, 40, 6, pattern)
        cheap = min(problem.value(magnitude(problem)), problem.value(wanda(problem)))
        greedy, columns = Obc().solve(problem).objective, Obc(order="columns").solve(problem).objective
        assert greedy < columns < cheap


def test_a_singular_gram_is_no_obstacle_and_twins_go_first():
    problem = layer(7, 12, 2, Keep(8), samples=9)
    assert Obc().solve(problem).objective < problem.value(wanda(problem))
    twins = np.repeat(np.random.default_rng(8).normal(size=(20, 3)), 2, axis=1)
    alike = SparseRegression(twins.T @ twins, twins.T @ twins[:, :1], PerRow(3), offset=float((twins[:, 0] ** 2).sum()))
    result = Obc().solve(alike)
    assert result.objective == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": "rows"}, "order: expected one of greedy, columns, got 'rows'"),
        ({"block": 0}, "block: expected a cou"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(InvalidProblem, match=re.escape(words)):
        get("obc", **options)


@pytest.mark.parametrize("score", ["magnitude", "wanda"])
def test_the_cheap_selections_are_the_largest_scores(score):
    problem = layer(9, 8, 3, Keep(7), rank=2)
    w = np.stack([np.linalg.solve(problem.hessian(i), problem.cross[:, i]) for i in range(3)])
    sizes = np.stack([np.sqrt(np.diag(problem.hessian(i))) for i in range(3)])
    worth = (np.abs(w) * (sizes if score == "wanda" else 1.0)).ravel()
    expected = np.zeros(24, dtype=bool)
    expected[np.argsort(worth)[-7:]] = True
    assert np.array_equal(get("magnitude", score=score).solve(problem).solution, expected)
    given_ = problem.replace(start_weights=w[:, ::-1])
    assert not np.array_equal(get("magnitude", score=score).solve(given_).solution, expected)


def test_a_score_that_there_is_not_is_refused():
    with pytest.raises(InvalidProblem, match="score: expected one of magnitude, wanda, got 'taylor'"):
        get("magnitude", score="taylor")
