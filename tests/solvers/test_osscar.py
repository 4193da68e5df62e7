"""Elimination and swaps of input groups: every cost against values fitted anew, small instances against enumeration."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.problems import Cardinality, GroupBounds, InvalidProblem, SubsetRegression, UnsupportedProblem
from prunesolve.solvers import Osscar, Status, _regression_testing
from prunesolve.solvers._base import Run
from prunesolve.solvers._group_counts import GroupCounts
from prunesolve.solvers._tableau import Tableau
from prunesolve.solvers.osscar import _Search
from prunesolve.solvers.testing import check_solver


def regression(n, width=1, outputs=3, seed=0, k=None, rank=None, noise=1.0):
    """Inputs that say much the same, so that the best single ones are not the best set."""
    rng = np.random.default_rng(seed)
    d = n * width
    x = rng.normal(size=(4 * d, rank or d)) @ rng.normal(size=(rank or d, d)) + noise * rng.normal(size=(4 * d, d))
    y = x @ rng.normal(size=(d, outputs)) + noise * rng.normal(size=(4 * d, outputs))
    block = np.repeat(np.arange(n), width)
    return SubsetRegression(x.T @ x, x.T @ y, block, Cardinality(n // 2 if k is None else k), float((y**2).sum()))


def enumerated(problem):
    found = []
    for kept in combinations(range(problem.n), problem.k):
        x = np.isin(np.arange(problem.n), kept)
        if problem.is_feasible(x):
            found.append(problem.value(x))
    return min(found)


@pytest.mark.parametrize("check", ["optimum", "bound", "trivial", "evaluation limit", "start"])
def test_a_search_without_enumeration_keeps_its_word(check):
    check_solver(Osscar(batch=3, swap=1.0, kicks=1, enumerate_up_to=0), check)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 2))
def test_every_move_changes_the_value_by_what_the_tableau_says(seed, uneven):
    rng = np.random.default_rng(seed)
    problem = regression(6, 2, 3 if uneven else 20, seed)
    if uneven:
        problem = problem.replace(block=rng.permutation([0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, -1 if uneven == 2 else 4]))
        problem = problem.replace(constraints=Cardinality(2))
    tableau, nothing = Tableau(problem), problem.value(np.zeros(problem.n, dtype=bool))
    close = {"abs": 1e-8 * nothing}
    for _ in range(6):
        now = problem.value(tableau.kept)
        assert nothing - tableau.explained == pytest.approx(now, **close)
        for group, change in enumerate(tableau.changes()):
            moved = tableau.kept.copy()
            moved[group] ^= True
            assert now - problem.value(moved) == pytest.approx(change, **close)
        inside, outside = np.flatnonzero(tableau.kept), np.flatnonzero(~tableau.kept)
        for leaves, row in zip(inside, tableau.swaps(inside), strict=True):
            for comes, change in zip(outside, row, strict=True):
                moved = tableau.kept.copy()
                moved[[leaves, comes]] = False, True
                assert now - problem.value(moved) == pytest.approx(change, **close)
        side = np.flatnonzero(tableau.kept == (rng.random() < 0.6))
        if len(side):
            tableau.pivot(rng.choice(side, int(rng.integers(1, len(side) + 1)), replace=False))
    again = tableau.copy()
    again.refresh(again.kept)
    np.testing.assert_allclose(again.table, tableau.table, atol=1e-6 * np.abs(tableau.table).max())
    np.testing.assert_allclose(again.changes(), tableau.changes(), atol=1e-8 * nothing)


def test_a_copy_is_pivoted_apart():
    tableau = Tableau(regression(5))
    before = tableau.changes()
    tableau.copy().pivot([1, 3])
    np.testing.assert_array_equal(tableau.changes(), before)
    assert tableau.kept.all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 2))
def test_small_instances_are_solved_and_bounded_without_enumeration(seed, k, width):
    problem = regression(7, width, seed=seed, k=k)
    best = enumerated(problem)
    found = Osscar(enumerate_up_to=0).solve(problem, seed=seed, evaluation_limit=150)
    assert found.objective == pytest.approx(best, rel=1e-9)
    assert problem.least - 1e-6 * abs(best) <= found.bound <= best + 1e-9 * problem.offset
    proved = Osscar().solve(problem, seed=seed)
    assert (proved.status, proved.bound) == (Status.OPTIMAL, proved.objective)
    assert proved.objective == pytest.approx(best, rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_bounds_are_kept_by_every_phase(seed):
    rng = np.random.default_rng(seed)
    sets = rng.integers(-1, 3, 7)
    sizes = np.bincount(sets[sets >= 0], minlength=3)
    low = rng.integers(0, sizes + 1)
    bounds = GroupBounds(sets, low, np.maximum(low, rng.integers(0, sizes + 1)))
    least, most = int(bounds.low.sum()), int(bounds.high.sum() + (sets < 0).sum())
    constraints = [bounds] if rng.random() < 0.3 else [bounds, Cardinality(int(rng.integers(least, most + 1)))]
    problem = regression(7, seed=seed).replace(constraints=constraints)
    values = {}
    for x in map(np.array, np.ndindex(*[2] * 7)):
        if problem.is_feasible(x):
            values[tuple(x)] = problem.value(x)
    found = Osscar(enumerate_up_to=0, swap=0.5).solve(problem, seed=seed)
    assert found.feasible
    assert found.objective >= min(values.values()) - 1e-9 * problem.offset
    assert found.bound <= min(values.values()) + 1e-9 * problem.offset
    assert Osscar().solve(problem).objective == pytest.approx(min(values.values()), rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_counts_leave_and_enter_as_the_constraints_allow(seed):
    rng = np.random.default_rng(seed)
    sets = rng.integers(-1, 3, 8)
    sizes = np.bincount(sets[sets >= 0], minlength=3)
    low = rng.integers(0, sizes + 1)
    bounds = GroupBounds(sets, low, np.maximum(low, rng.integers(0, sizes + 1)))
    k = int(rng.integers(low.sum(), bounds.high.sum() + (sets < 0).sum() + 1))
    problem = regression(8).replace(constraints=[bounds, Cardinality(k)])
    counts = GroupCounts.of_problem(problem)
    every = [np.array(x, dtype=bool) for x in np.ndindex(*[2] * 8)]
    feasible = [x for x in every if problem.is_feasible(x)]
    kept = np.ones(8, dtype=bool)
    while kept.sum() > k:
        going = counts.leaving(kept, rng.permutation(np.flatnonzero(kept)), min(2, int(kept.sum()) - k))
        assert going
        kept[going] = False
        assert any((x <= kept).all() for x in feasible)
    assert problem.is_feasible(kept)
    for group in np.flatnonzero(kept):
        for comes, allowed in zip(np.flatnonzero(~kept), counts.exchanges(kept, group), strict=True):
            moved = kept.copy()
            moved[[group, comes]] = False, True
            assert problem.is_feasible(moved) == allowed
    kept[rng.permutation(np.flatnonzero(kept))[: int(rng.integers(k + 1))]] = False
    kept[counts.entering(kept, rng.permutation(np.flatnonzero(~kept)))] = True
    assert problem.is_feasible(kept)


def test_no_swap_of_two_groups_improves_the_answer():
    problem = regression(14, 2, rank=6, seed=3)
    found = Osscar(enumerate_up_to=0, kicks=0).solve(problem)
    for leaves in np.flatnonzero(found.solution):
        for comes in np.flatnonzero(~found.solution):
            moved = found.solution.copy()
            moved[[leaves, comes]] = False, True
            assert problem.value(moved) >= found.objective - 1e-9 * problem.offset


def test_each_phase_does_better_than_what_it_is_given():
    better = {"swaps": 0, "kicks": 0}
    for seed in range(4):
        problem = regression(30, rank=12, noise=0.3, seed=seed, k=10)
        search = _Search(problem, Run(problem, seed=0), GroupCounts.of_problem(problem))
        alone = problem.value(search.eliminated(1).kept)
        swapped = Osscar(swap=0.0, kicks=0).solve(problem).objective
        kicked = Osscar(swap=0.0, kicks=10).solve(problem).objective
        assert kicked <= swapped + 1e-9 <= alone + 2e-9
        better["swaps"] += swapped < alone - 1e-6
        better["kicks"] += kicked < swapped - 1e-6
    assert better["swaps"] == 4
    assert better["kicks"] >= 2


def test_elimination_beats_the_largest_weights():
    problem = regression(40, rank=12, seed=1)
    search = _Search(problem, Run(problem, seed=0), GroupCounts.of_problem(problem))
    weights = problem.weights(np.ones(40, dtype=bool))
    largest = np.zeros(40, dtype=bool)
    largest[np.argsort(-np.abs(weights).sum(0))[:20]] = True
    assert problem.value(search.eliminated(1).kept) < 0.9 * problem.value(largest)


def test_the_bound_of_inputs_that_have_nothing_in_common_is_the_optimum():
    weights = np.random.default_rng(0).normal(size=(40, 2))
    square = np.linspace(1.0, 3.0, 40)
    problem = SubsetRegression(np.diag(square), square[:, None] * weights, np.arange(40), Cardinality(15))
    found = Osscar().solve(problem)
    gains = np.sort(square * (weights**2).sum(1))
    assert found.objective == pytest.approx(-gains[25:].sum())
    assert found.bound == pytest.approx(found.objective)


@pytest.mark.parametrize("seconds", [0.05, None])
def test_a_run_that_must_stop_at_once_still_has_an_answer(seconds):
    problem = regression(120, 3, k=30)
    found = Osscar().solve(problem, time_limit=seconds, evaluation_limit=None if seconds else 1)
    assert found.feasible
    assert found.status is (Status.TIME_LIMIT if seconds else Status.ITERATION_LIMIT)


def test_a_start_is_improved():
    problem = regression(20, rank=6)
    start = np.arange(20) < 10
    found = Osscar(enumerate_up_to=0, kicks=0).solve(problem, start=start)
    assert found.objective < problem.value(start)


def test_bounds_that_overlap_are_enumerated_or_refused():
    overlapping = [
        GroupBounds([0] * 8, [2], [5]),
        GroupBounds([0, 0, 0, 1, 1, 1, 1, 1], [1, 1], [2, 2]),
        Cardinality(4),
    ]
    problem = regression(8).replace(constraints=overlapping)
    assert Osscar().solve(problem).objective == pytest.approx(enumerated(problem))
    with pytest.raises(UnsupportedProblem, match="osscar takes GroupBounds whose groups do not overlap"):
        replace(Osscar(), enumerate_up_to=10).solve(problem)


def test_overlapping_bounds_that_nothing_meets_are_proved_to():
    contradiction = [GroupBounds([0, 0, 1, 1], [2, 0], [2, 2]), GroupBounds([0, 1, 0, 1], [0, 1], [0, 2])]
    found = Osscar().solve(regression(4).replace(constraints=contradiction))
    assert (found.status, found.feasible) == (Status.INFEASIBLE, False)


def test_dependent_inputs_do_not_mislead():
    x = np.random.default_rng(0).normal(size=(80, 12))
    x = np.hstack([x, x])
    y = x[:, :12] @ np.diag(np.arange(1.0, 13.0))
    problem = SubsetRegression(x.T @ x, x.T @ y, np.arange(24), Cardinality(12), float((y**2).sum()))
    found = Osscar().solve(problem)
    assert found.objective == pytest.approx(0.0, abs=1e-9 * problem.offset)
    assert (found.solution[:12] ^ found.solution[12:]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "batch"),
        ({"swap": 1.5}, "swap"),
        ({"kicks": -1}, "kicks"),
        ({"enumerate_up_to": -1}, "enumerate"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(InvalidProblem, match=words):
        Osscar(**options)


def test_the_examples_of_the_battery_are_what_they_are_called():
    made = _regression_testing.regressions()
    assert np.linalg.matrix_rank(made["twins"].gram) == 6
    assert not made["never anything"].gram[4:6].any()
    assert made["more outputs than inputs"].cross.shape == (12, 18)
    for problem in made.values():
        x = np.random.default_rng(0).random((20, problem.n)) < 0.5
        for row in x:
            assert _regression_testing._value(problem, row) == pytest.approx(problem.value(row), rel=1e-7)
            assert _regression_testing._meets(problem, row) == problem.is_feasible(row)
