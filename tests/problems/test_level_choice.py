"""A choice of levels by its definition: errors, spending, what is refused, and files."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.problems import BinaryQuadratic, BlackBox, InvalidProblem, LevelChoice

ERROR = [[4.0, 1.0, 0.0], [3.0, 0.0], [2.0, 0.5]]
COST = [[1, 2, 4], [1, 3], [0, 5]]
PAIR = {(0, 1): [[0, 1], [1, 2], [2, 4]], (0, 2): [[0, 0], [0, -1], [3, 3]]}


def example(**changes):
    return LevelChoice(**({"error": ERROR, "cost": COST, "budget": 12, "pair_cost": PAIR} | changes))


def every(choice):
    return np.array(list(itertools.product(*map(range, choice.sizes))))


def terms(choice, x):
    """The definition: each layer's own cost, then each pair's."""
    alone = [choice.cost[layer][level] for layer, level in enumerate(x)]
    return alone + [table[x[a], x[b]] for (a, b), table in choice.pair_cost.items()]


def random_choice(seed, chain, total):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, int(rng.integers(1, 6)))
    pairs = [(a, a + 1) for a in range(len(sizes) - 1)] if chain else list(itertools.combinations(range(len(sizes)), 2))
    joined = {(a, b): rng.integers(-3, 4, (sizes[a], sizes[b])) for a, b in pairs if rng.random() < 0.7}
    tables = [rng.integers(0, 6, size) for size in sizes], [rng.integers(-1, 5, size) for size in sizes]
    return LevelChoice(*tables, 10**6, joined, total)


CHOICES = st.builds(random_choice, st.integers(0, 10**6), st.booleans(), st.sampled_from(["sum", "max"]))


@settings(max_examples=80, deadline=None)
@given(CHOICES)
def test_values_and_spending_are_those_of_the_definition(choice):
    rows = every(choice)
    join = sum if choice.total == "sum" else max
    spent = [join(terms(choice, x)) for x in rows]
    assert choice.spent(rows).tolist() == spent
    assert choice.value(rows).tolist() == [sum(choice.error[i][s] for i, s in enumerate(x)) for x in rows]
    tight = choice.replace(budget=float(np.median(spent)))
    assert tight.is_feasible(rows).tolist() == [s <= tight.budget for s in spent]
    assert tight.violation(rows).tolist() == [max(0.0, s - tight.budget) for s in spent]
    one = rows[len(rows) // 2]
    assert (tight.value(one), tight.spent(one)) == (choice.value(rows)[len(rows) // 2], spent[len(rows) // 2])
    assert isinstance(tight.is_feasible(one), bool)


@settings(max_examples=80, deadline=None)
@given(CHOICES)
def test_the_cheapest_is_cheapest_on_a_chain_and_a_budget_below_is_refused_with_the_least(choice):
    least = choice.spent(every(choice)).min()
    found = choice.spent(choice.cheapest)
    assert found >= least
    if not choice.is_chain:
        return
    assert found == least
    assert choice.replace(budget=float(least)).is_feasible(choice.cheapest)
    with pytest.raises(InvalidProblem, match=f"the smallest that can is {least:.17g}$"):
        choice.replace(budget=float(least) - 0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_of_other_pairs_a_budget_is_refused_only_where_no_choice_keeps_it(seed):
    choice = random_choice(seed, chain=False, total="sum")
    least = float(choice.spent(every(choice)).min())
    assert choice.replace(budget=least).budget == least
    bound = sum(float(np.min(t)) for t in (*choice.cost, *choice.pair_cost.values()))
    if not choice.is_chain:
        with pytest.raises(InvalidProblem, match="none below"):
            choice.replace(budget=bound - 1.0)


def test_structure_is_told():
    assert (example().n, example().k, example().constraints, example().sizes.tolist()) == (3, None, (), [3, 2, 2])
    assert (example().is_separable, example().is_chain) == (False, False)
    chain = example(pair_cost={(0, 1): PAIR[0, 1]})
    assert (chain.is_separable, chain.is_chain) == (False, True)
    alone = example(pair_cost={})
    assert (alone.is_separable, alone.is_chain) == (True, True)


def test_rounding_within_the_scale_is_no_violation():
    choice = LevelChoice([[1.0, 0.0]], [[0.1, 0.1 + 0.2]], 0.3)
    assert choice.spent([1]) > choice.budget
    assert choice.is_feasible([1])
    assert not LevelChoice([[1.0, 0.0]], [[0.1, 0.3001]], 0.3).is_feasible([1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"error": [[], [1.0], [1.0]]}, "expected at least one level for each layer"),
        ({"cost": COST[:2]}, "cost: expected 3 arrays, one a layer as in error, got 2"),
        ({"cost": [[1, 2], [1, 3], [0, 5]]}, r"cost\[0\]: expected shape \(3\), got \(2,\)"),
        ({"error": [[np.nan, 1, 2], [3, 0], [2, 0]]}, r"error\[0\]: nan at \(0,\); every entry must be finite"),
        ({"budget": np.inf}, "budget"),
        ({"total": "mean"}, "unknown total 'mean'"),
        ({"pair_cost": {(1, 0): np.ones((2, 3))}}, "expected keys .* with 0 <= l < m < 3"),
        ({"pair_cost": {(0, 3): np.ones((3, 2))}}, "expected keys .* with 0 <= l < m < 3"),
        ({"pair_cost": {(0, 1): np.ones((2, 3))}}, r"pair_cost\[\(0, 1\)\]: expected shape \(3, 2\)"),
        ({"pair_cost": [1]}, "pair_cost: expected a mapping"),
        ({"labels": ["a", "b"]}, "labels"),
    ],
)
def test_tables_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(InvalidProblem, match=said):
        example(**changes)


@pytest.mark.parametrize("x", [[0, 0], [0, 0, 2], [-1, 0, 0], [0.5, 0, 0], [[[0, 0, 0]]], ["a", 0, 0]])
def test_what_is_no_choice_is_refused(x):
    with pytest.raises(InvalidProblem, match=r"levels|numbers"):
        example().value(x)


def test_tables_are_copied_and_read_only():
    error = [np.array(e) for e in ERROR]
    choice = example(error=error)
    error[0][0] = 99.0
    assert choice.value([0, 0, 0]) == 9.0
    with pytest.raises(ValueError, match="read-only"):
        choice.error[0][0] = 1.0


def test_the_hash_is_of_the_content():
    assert example().hash == example(meta={"name": "x"}).hash
    others = [
        example(budget=11),
        example(total="max"),
        example(pair_cost={}),
        example(error=[[4.0, 1.0, 0.0], [3.0, 0.0], [2.0, 0.25]]),
        example(cost=[[1, 2, 4], [1, 3], [0, 6]]),
        example(labels=["a", "b", "c"]),
    ]
    assert len({example().hash, *(other.hash for other in others)}) == len(others) + 1


@pytest.mark.parametrize(
    "changes",
    [{}, {"pair_cost": {}}, {"total": "max"}, {"labels": ["a", "b", "c"], "meta": {"asked": {"keep": 3}}}],
)
def test_a_file_gives_back_the_same(tmp_path, changes):
    choice = example(**changes)
    choice.save(tmp_path / "choice.npz")
    again = LevelChoice.load(tmp_path / "choice.npz")
    assert again.hash == choice.hash
    assert (again.total, again.budget, again.meta) == (choice.total, choice.budget, choice.meta)
    assert list(again.labels or ()) == list(choice.labels or ())
    rows = every(choice)
    assert np.array_equal(again.spent(rows), choice.spent(rows))
    assert np.array_equal(again.value(rows), choice.value(rows))


def test_foreign_files_are_refused_by_name(tmp_path):
    path = tmp_path / "other.npz"
    BinaryQuadratic([1.0]).save(path)
    with pytest.raises(InvalidProblem, match=re.escape(f"{path}: expected a file of kind 'level-choice', got")):
        LevelChoice.load(path)
    example().save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InvalidProblem, match=re.escape(str(path))):
        LevelChoice.load(path)


def test_a_black_box_may_be_asked_over_it():
    choice = example()
    box = BlackBox(choice, lambda rows: choice.value(rows) + 1.0)
    assert (box.n, box.k, box.value([1, 1, 1])) == (3, None, 2.5)
    assert box.is_feasible(every(choice)).tolist() == choice.is_feasible(every(choice)).tolist()
    with pytest.raises(InvalidProblem, match="levels from 0 to"):
        box.value([3, 0, 0])


def test_no_layers_are_a_choice_too():
    empty = LevelChoice([], [], 0.0)
    assert (empty.n, empty.value([]), empty.spent([]), empty.is_feasible([])) == (0, 0.0, 0.0, True)
