"""`select` and `solve`: arrays in, the optimum out, against enumeration of what the docstring says."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import prunesolve as ps
from prunesolve.solvers import Solver, Status

few = settings(max_examples=25, deadline=None)


@dataclass(frozen=True)
class Enumerate(Solver):
    """Every selection in turn; `backwards` shows that options arrive."""

    name: ClassVar[str] = "enumerate"
    backwards: bool = False

    def _search(self, problem, run):
        order = reversed(range(2**problem.n)) if self.backwards else range(2**problem.n)
        for code in order:
            run.count()
            run.offer(np.array([(code >> i) & 1 for i in range(problem.n)], dtype=bool))
        return Status.OPTIMAL if run.feasible else Status.INFEASIBLE


def best_by_hand(importance, similarity, admits):
    """{x: - sum importance + sum of the similarities of kept pairs} of the selections that `admits` lets through."""
    n = len(importance)
    values = {}
    for x in itertools.product([False, True], repeat=n):
        kept = [i for i in range(n) if x[i]]
        if admits(kept):
            values[x] = -sum(importance[i] for i in kept) + sum(
                similarity[i][j] for i, j in itertools.combinations(kept, 2)
            )
    return values


def check(chosen, values):
    assert chosen.dtype == np.bool_
    assert values[tuple(bool(x) for x in chosen)] == pytest.approx(min(values.values()), abs=1e-9)


def instance(seed, n=7):
    rng = np.random.default_rng(seed)
    similarity = rng.random((n, n))
    similarity += similarity.T
    return rng, rng.random(n) * 2, similarity


@few
@given(st.integers(0, 10_000))
def test_keep_exactly_k(seed):
    rng, importance, similarity = instance(seed)
    k = int(rng.integers(0, 8))
    chosen = ps.select(importance, similarity, keep=k, solver=Enumerate())
    check(chosen, best_by_hand(importance, similarity, lambda kept: len(kept) == k))


@few
@given(st.integers(0, 10_000))
def test_costs_within_a_budget_with_and_without_a_count(seed):
    rng, importance, similarity = instance(seed)
    costs = rng.random(7)
    budget = 0.6 * costs.sum()

    def affordable(kept):
        return costs[kept].sum() <= budget

    chosen = ps.select(importance, similarity, costs=costs, budget=budget, solver=Enumerate())
    check(chosen, best_by_hand(importance, similarity, affordable))
    chosen = ps.select(importance, similarity, 3, costs, budget, solver=Enumerate())
    check(chosen, best_by_hand(importance, similarity, lambda kept: len(kept) == 3 and affordable(kept)))


GROUPS = [0, 0, 0, 1, 1, 1, -1]


@few
@given(
    st.integers(0, 10_000),
    st.sampled_from(
        [
            (2, (2, 2), (2, 2)),
            ((1, 2), (1, 1), (2, 2)),
            ([1, 3], (1, 3), (1, 3)),
            (np.array([0, 2]), (0, 2), (0, 2)),
            (([0, 1], [2, 3]), (0, 1), (2, 3)),
            ((0, [1, 3]), (0, 0), (1, 3)),
        ]
    ),
)
def test_so_many_of_each_group(seed, bounds):
    per_group, low, high = bounds
    _, importance, similarity = instance(seed)

    def admits(kept):
        counts = [sum(GROUPS[i] == g for i in kept) for g in (0, 1)]
        return all(a <= c <= b for a, c, b in zip(low, counts, high, strict=True))

    chosen = ps.select(importance, similarity, groups=GROUPS, per_group=per_group, solver=Enumerate())
    check(chosen, best_by_hand(importance, similarity, admits))


def test_a_fraction_rounds_as_everywhere():
    assert ps.select([1.0, 2.0, 3.0], keep=0.5, solver=Enumerate()).tolist() == [False, True, True]


def test_the_diagonal_is_ignored_and_the_callers_array_left_alone():
    similarity = np.array([[9.0, 0.1, 0.2], [0.1, 9.0, 0.3], [0.2, 0.3, 9.0]])
    before = similarity.copy()
    with_diagonal = ps.select([1.0, 1.0, 1.0], similarity, keep=2, solver=Enumerate())
    assert with_diagonal.tolist() == [True, True, False]
    np.testing.assert_array_equal(similarity, before)
    assert ps.select([1.0] * 3, sparse.csr_array(similarity), keep=2, solver=Enumerate()).tolist() == [
        True,
        True,
        False,
    ]


def test_blocks_and_low_rank_are_taken_as_they_are():
    blocks = ps.Blocks([[[0, 1.0], [1.0, 0]], [[0.0]]])
    assert ps.select([1.0, 1.0, 0.5], blocks, keep=2, solver=Enumerate()).tolist() in (
        [True, False, True],
        [False, True, True],
    )
    low_rank = ps.LowRank([[1.0], [1.0], [-1.0]])
    assert ps.select([1.0, 1.0, 0.9], low_rank, keep=2, solver=Enumerate())[2]


def test_greedy_by_name_finds_what_it_must():
    assert ps.select([3.0, 2.0, 1.0, 4.0], keep=2, solver="greedy").tolist() == [True, False, False, True]


def test_the_default_solver():
    rng, importance, similarity = instance(3)
    chosen = ps.select(importance, similarity, keep=3)
    check(chosen, best_by_hand(importance, similarity, lambda kept: len(kept) == 3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "expected keep, costs with budget or groups with per_group, got none"),
        ({"keep": 4}, "keep: asked for 4 of 3 units; the largest count that can be kept is 3"),
        ({"keep": "two"}, "keep: expected a fraction such as 0.5 or a number of units of 3, got str 'two'"),
        ({"keep": 1.5}, r"fraction and lies in \(0, 1\]"),
        ({"keep": 1, "costs": [1, 1, 1]}, "costs needs budget; give both"),
        ({"keep": 1, "budget": 3}, "budget needs costs; give both"),
        ({"budget": 1, "costs": [1, 1]}, r"costs: expected shape \(3\), got \(2,\)"),
        ({"budget": "much", "costs": [1, 1, 1]}, "budget: expected numbers"),
        ({"keep": 2, "budget": 1.5, "costs": [1, 1, 1]}, "limit 1.5 cannot be met; .*smallest .*2"),
        ({"groups": [0, 0, 1]}, "groups needs per_group; give both"),
        ({"per_group": 1}, "per_group needs groups; give both"),
        ({"groups": [0, 0, 1], "per_group": 2}, "group 1 has 1 units and asks for 2 to 2"),
        ({"groups": [0, 0, 1], "per_group": [1, 1, 1]}, r"per_group: expected shape \(2\), got \(3,\)"),
        ({"groups": [0, 0, 0.5], "per_group": 1}, "groups: expected whole numbers, got 0.5"),
        ({"groups": ["a", "a", "b"], "per_group": 1}, "groups: expected numbers"),
        ({"keep": 1, "similarity": [[0, 1], [1, 0]]}, r"quadratic: expected \(3, 3\) to match linear, got \(2, 2\)"),
        ({"keep": 1, "similarity": np.triu(np.ones((3, 3)))}, "not symmetric"),
        ({"keep": 1, "similarity": [1, 2, 3]}, r"similarity: expected shape \(any, any\), got \(3,\)"),
        ({"keep": 1, "importance": [1, np.nan, 3]}, "importance: nan at .1,.; every entry must be finite"),
        ({"keep": 1, "solver": "gredy"}, "unknown solver 'gredy': did you mean 'greedy'"),
        ({"keep": 1, "solver": 7}, "solver: expected a name, a Solver or its class, got int"),
        ({"keep": 1, "seed": -1}, "seed: expected a whole number >= 0"),
        ({"keep": 1, "time_limit": 0}, "time_limit: expected seconds > 0"),
    ],
)
def test_nonsense_is_refused_in_words(arguments, words):
    with pytest.raises(ps.InvalidProblem, match=words):
        ps.select(**{"importance": [1.0, 2.0, 3.0], "solver": "greedy"} | arguments)


@dataclass(frozen=True)
class GivesUp(Solver):
    """Offers one selection that breaks the count, and stops."""

    name: ClassVar[str] = "gives-up"

    def _search(self, problem, run):
        run.offer(np.zeros(problem.n, dtype=bool))


def test_a_search_that_finds_nothing_says_so_and_brings_its_result():
    with pytest.raises(ps.SolverFailed, match="select: No feasible solution was found") as caught:
        ps.select([1.0, 1.0, 1.0], keep=1, solver=GivesUp)
    assert caught.value.result.status is Status.NO_FEASIBLE_FOUND
    assert not caught.value.result.feasible


def problem():
    return ps.BinaryQuadratic([-1.0, -3.0, -2.0], constraints=[ps.Cardinality(2)])


@pytest.mark.parametrize("solver", ["greedy", Enumerate(), Enumerate])
def test_solve_takes_a_name_a_solver_or_a_class(solver):
    result = ps.solve(problem(), solver, seed=3)
    assert result.solution.tolist() == [False, True, True]
    assert result.objective == -5.0
    assert result.seed == 3


def test_options_go_to_a_solver_given_by_name_or_class():
    assert ps.solve(problem(), Enumerate, backwards=True).solver == "Enumerate(backwards=True)"
    assert ps.solve(problem(), "greedy", direction="forward").solver == "Greedy(direction='forward')"
    with pytest.raises(ps.InvalidProblem, match="unknown option of greedy 'directions': did you mean 'direction'"):
        ps.solve(problem(), "greedy", directions="forward")
    with pytest.raises(ps.InvalidProblem, match=r"options go into the solver itself .* Enumerate\(backwards=...\)"):
        ps.solve(problem(), Enumerate(), backwards=True)
    with pytest.raises(ps.InvalidProblem, match="Enumerate: .*forwards"):
        ps.solve(problem(), Enumerate, forwards=True)


def test_limits_start_and_callback_reach_the_solver():
    seen = []
    start = np.array([True, False, True])
    result = ps.solve(problem(), Enumerate(), start=start, callback=seen.append, evaluation_limit=100, time_limit=60)
    assert seen[0].solution.tolist() == start.tolist()
    assert result.status is ps.Status.OPTIMAL
    with pytest.raises(ps.InvalidProblem, match="start: expected a feasible selection"):
        ps.solve(problem(), Enumerate(), start=[True, True, True])


def test_something_that_is_no_problem_is_unsupported():
    with pytest.raises(ps.UnsupportedProblem, match="takes BinaryQuadratic, got ndarray"):
        ps.solve(np.ones((2, 2)), "greedy")
