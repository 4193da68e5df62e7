"""Black boxes: their spaces, their batches and what they remember."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesolve.problems import (
    BinaryQuadratic,
    BlackBox,
    Budget,
    Cardinality,
    InvalidProblem,
    LevelTuples,
    Selections,
)

ALL = np.array(list(product([False, True], repeat=5)))
SLOPES = np.array([3.0, -1.0, 2.0, 0.5, -4.0])


class Counted:
    """A function of selections that notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, int]] = []

    def __call__(self, x, batch=0):
        self.asked += [(row.tobytes(), batch) for row in x]
        return x @ SLOPES + batch


def test_selections_judge_as_a_problem_with_the_same_constraints():
    constraints = [Cardinality(2), Budget(np.arange(5.0), 5.0)]
    space = Selections(5, constraints)
    problem = BinaryQuadratic(np.zeros(5), constraints=constraints)
    assert np.array_equal(space.is_feasible(ALL), problem.is_feasible(ALL))
    assert np.array_equal(space.violation(ALL), problem.violation(ALL))
    assert space.k == 2
    assert len(space.of_kind(Budget)) == 1


@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_level_tuples_judge_as_their_definition(cost, data):
    tuples = np.array(list(product(*(range(len(c)) for c in cost))))
    totals = np.array([sum(c[s] for c, s in zip(cost, row, strict=True)) for row in tuples])
    budget = data.draw(st.sampled_from(sorted(set(totals.tolist()))))
    for exact in (True, False):
        space = LevelTuples(cost, budget, exact=exact)
        fits = totals == budget if exact else totals <= budget
        assert np.array_equal(space.is_feasible(tuples), fits)
        assert np.array_equal(space.spent(tuples), totals)
        assert np.array_equal(space.totals, np.unique(totals))


def test_a_budget_that_no_tuple_meets_names_the_nearest():
    with pytest.raises(InvalidProblem, match="nearest totals are 4, 8"):
        LevelTuples([[4, 8], [0]], budget=5)
    with pytest.raises(InvalidProblem, match="nearest totals are 4"):
        LevelTuples([[4, 8], [0]], budget=3, exact=False)


def test_the_value_is_the_weighted_mean_of_the_batches():
    box = BlackBox(Selections(5), Counted(), weights=[1.0, 3.0])
    assert np.allclose(box.value(ALL), ALL @ SLOPES + 0.75)
    assert box.value(ALL[7]) == pytest.approx(float(ALL[7] @ SLOPES) + 0.75)
    assert np.allclose(box.partial(ALL, [1]), ALL @ SLOPES + 1.0)
    assert np.allclose(box.shares, [0.25, 0.75])


def test_no_point_is_evaluated_twice_on_a_batch():
    told = Counted()
    box = BlackBox(Selections(5), told, weights=[1.0, 1.0])
    box.partial(ALL[[1, 2, 1]], [0])
    assert len(told.asked) == 2
    box.value(ALL[[2, 3]])
    assert len(told.asked) == len(set(told.asked)) == 5
    assert box.knows(ALL[2], 1)
    assert not box.knows(ALL[1], 1)


def test_an_evaluation_that_writes_into_its_rows_spoils_nothing():
    def greedy(x):
        values = x @ SLOPES
        x[:] = False
        return values

    box = BlackBox(Selections(5), greedy)
    rows = ALL[:4].copy()
    box.value(rows)
    assert np.array_equal(rows, ALL[:4])


def test_a_quadratic_problem_is_a_black_box_with_an_exact_surrogate():
    problem = BinaryQuadratic(SLOPES, constraints=[Cardinality(2)], labels=list("abcde"))
    box = BlackBox.of(problem)
    assert box.surrogate is problem
    assert box.k == 2
    assert box.labels == problem.labels
    assert np.allclose(box.value(ALL), problem.value(ALL))
    assert BlackBox.of(box) is box


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Selections(-1), "number of units"),
        (lambda: Selections(2, [Cardinality(3)]), "k = 3 of n = 2"),
        (lambda: LevelTuples([[]], 0), "at least one level"),
        (lambda: LevelTuples([[-1, 2]], 2), "cost >= 0"),
        (lambda: BlackBox(5, Counted()), "Selections, LevelTuples or LevelChoice"),
        (lambda: BlackBox(Selections(5), 3), "callable"),
        (lambda: BlackBox(Selections(5), Counted(), surrogate=3.0), "value"),
        (lambda: BlackBox(Selections(5), Counted(), surrogate=BinaryQuadratic(np.zeros(4))), "n = 5"),
        (lambda: BlackBox(Selections(5), Counted(), weights=[1.0, 0.0]), "> 0"),
        (lambda: BlackBox(Selections(5), Counted(), labels=["a"]), "labels"),
        (lambda: BlackBox(Selections(5), Counted()).value([1, 0]), "shape"),
        (lambda: BlackBox(Selections(5), lambda x: x).value(ALL), "one a row"),
        (lambda: BlackBox(LevelTuples([[0, 1]], 1), Counted()).value([2]), "levels from 0"),
    ],
)
def test_bad_input_is_refused_in_words(make, words):
    with pytest.raises(InvalidProblem, match=words):
        make()
