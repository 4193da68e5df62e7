"""Group counts as levels: what a tuple stands for, and what it may be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesolve.problems import (
    BinaryQuadratic,
    BlackBox,
    Blocks,
    Cardinality,
    GroupBounds,
    InvalidProblem,
    Selections,
    generators,
)
from prunesolve.solvers._keep_counts import KeepCounts, parts, refusal

SIZES = (6, 4, 8)
GROUP = np.repeat([0, 1, 2], SIZES)


def problem(seed: int, k: int = 9, low: int = 1) -> BinaryQuadratic:
    rng = np.random.default_rng(seed)
    blocks = []
    for size in SIZES:
        upper = np.triu(rng.random((size, size)), 1)
        blocks.append(upper + upper.T)
    bounds = GroupBounds(GROUP, [low] * 3, [6, 3, 8])
    return BinaryQuadratic(-3 * rng.random(18), Blocks(blocks), constraints=[Cardinality(k), bounds])


def start(p: BinaryQuadratic) -> np.ndarray:
    x = np.zeros(18, dtype=bool)
    x[[0, 3, 5, 6, 8, 10, 12, 13, 17]] = True
    assert p.is_feasible(x)
    return x


@given(st.integers(0, 50), st.data())
def test_every_tuple_in_the_budget_stands_for_a_feasible_selection(seed, data):
    p = problem(seed)
    counts = KeepCounts(BlackBox.of(p), start(p), levels=9)
    space = counts.box.space
    tuples = np.array([data.draw(st.integers(0, int(size) - 1)) for size in space.sizes])
    if space.is_feasible(tuples):
        x = counts.selection(tuples)
        assert p.is_feasible(x)
        assert counts.box.value(tuples) == pytest.approx(p.value(x))
        assert counts.box.surrogate.value(tuples) == pytest.approx(p.value(x))
        kept = [int(x[g == GROUP].sum()) for g in range(3)]
        assert kept == [int(c[s]) for c, s in zip(space.cost, tuples, strict=True)]


def test_the_start_stands_for_the_selection_it_came_from():
    p = problem(1)
    counts = KeepCounts(BlackBox.of(p), start(p), levels=9)
    assert np.array_equal(counts.selection(counts.start), start(p))


def test_units_go_and_come_by_the_least_change_of_the_surrogate():
    p = problem(2)
    x = start(p)
    counts = KeepCounts(BlackBox.of(p), x, levels=9)
    kept = np.array([3, 2, 4])
    for g, change in ((0, -1), (1, 1), (2, 1), (2, -1)):
        wanted = kept.copy()
        wanted[g] += change
        tuples = [int(np.flatnonzero(c == w)[0]) for c, w in zip(counts.box.space.cost, wanted, strict=True)]
        (flipped,) = np.flatnonzero(counts.selection(tuples) ^ x)
        others = [i for i in np.flatnonzero(g == GROUP) if x[i] == (change < 0)]
        values = {}
        for i in others:
            y = x.copy()
            y[i] = ~y[i]
            values[i] = p.value(y)
        assert flipped == min(values, key=values.get)


def test_levels_stay_within_the_bounds_and_their_number():
    p = problem(3, low=2)
    cost = KeepCounts(BlackBox.of(p), start(p), levels=5).box.space.cost
    assert [c.tolist() for c in cost] == [[2, 3, 4, 5], [2, 3], [2, 3, 4, 5, 6]]


def test_wide_groups_take_wider_steps():
    p = generators.pruning(512, keep=0.5, layers=4, seed=0)
    x = np.tile([True, False], 256)
    cost = KeepCounts(BlackBox.of(p), x, levels=7).box.space.cost
    assert cost[0].tolist() == [52, 56, 60, 64, 68, 72, 76]


def test_batches_pass_through():
    p = problem(4)
    box = BlackBox.over(p, lambda x, b: x.sum(axis=1) * 0.0 + b, weights=[1.0, 1.0])
    counts = KeepCounts(box, start(p), levels=5)
    assert counts.box.partial(counts.start[None], [1])[0] == 1.0
    assert counts.box.value(counts.start) == 0.5


def test_groups_are_taken_from_meta_bounds_or_blocks():
    p = problem(5)
    assert [len(part) for part in parts(BlackBox.of(p))] == [6, 4, 8]
    named = p.replace(meta={"groups": [{"name": "a", "size": 10}, {"name": "b", "size": 8}]})
    assert [len(part) for part in parts(BlackBox.of(named))] == [10, 8]
    assert [len(part) for part in parts(BlackBox.of(p.replace(constraints=[Cardinality(9)])))] == [6, 4, 8]


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (BlackBox(Selections(4, [Cardinality(2)]), np.sum), "surrogate"),
        (BlackBox.of(problem(0).replace(constraints=[])), "cardinality"),
        (BlackBox.of(BinaryQuadratic(np.zeros(4), constraints=[Cardinality(2)])), "groups"),
    ],
)
def test_what_has_no_counts_is_refused_in_words(box, words):
    assert words in refusal(box)
    with pytest.raises(InvalidProblem, match=words):
        KeepCounts(box, np.array([True, True, False, False]), levels=5)
