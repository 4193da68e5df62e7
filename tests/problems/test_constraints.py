"""Constraints against brute-force counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from prunesolve.problems import Budget, Cardinality, GroupBounds, InvalidProblem


@given(seed=st.integers(0, 2**16))
@settings(max_examples=40)
def test_violations_are_the_counts_by_hand(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    x = rng.random(n) < 0.5
    k = int(rng.integers(0, n + 1))
    assert Cardinality(k).violation(x) == abs(sum(x.tolist()) - k)

    group = rng.integers(-1, 3, size=n)
    low = np.array([rng.integers(0, (group == g).sum() + 1) for g in range(3)])
    high = low + rng.integers(0, 3, size=3)
    short_or_over = 0
    for g in range(3):
        kept = sum(1 for i in range(n) if group[i] == g and x[i])
        short_or_over += max(0, low[g] - kept) + max(0, kept - high[g])
    assert GroupBounds(group, low, high).violation(x) == short_or_over

    cost, limit = rng.integers(0, 5, size=n), float(rng.integers(0, 10))
    pair = np.triu(rng.integers(0, 3, size=(n, n)), 1)
    spent = sum(cost[i] for i in range(n) if x[i])
    spent += sum(pair[i, j] for i in range(n) for j in range(i + 1, n) if x[i] and x[j])
    assert Budget(cost, limit, pair + pair.T).violation(x) == max(0.0, spent - limit)
    assert Budget(cost, limit, sparse.coo_array(pair + pair.T)).spent(x) == spent


@pytest.mark.parametrize(
    "constraint",
    [
        Cardinality(2),
        GroupBounds([0, 1, 0, -1], [1, 0], [1, 1]),
        Budget([1.0, 2.0, 3.0, 4.0], 4.0),
        Budget([1.0, 2.0, 3.0, 4.0], 4.0, np.ones((4, 4)) - np.eye(4)),
    ],
    ids=lambda c: type(c).__name__,
)
def test_rows_are_judged_one_by_one(constraint):
    X = np.random.default_rng(0).random((20, 4)) < 0.5
    assert constraint.violation(X).tolist() == [constraint.violation(x) for x in X]
    assert constraint.holds(X).tolist() == [bool(constraint.violation(x) <= 1e-9) for x in X]


def test_a_budget_forgives_rounding_and_no_more():
    budget = Budget([0.1] * 10, 1.0 - 1e-12)
    assert budget.holds(np.ones(10, dtype=bool))
    assert not Budget([0.1] * 10, 1.0 - 1e-6).holds(np.ones(10, dtype=bool))


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: Cardinality(-1), ">= 0"),
        (lambda: Cardinality(1.5), "whole"),
        (lambda: Cardinality(True), "whole"),
        (lambda: Cardinality("two"), "numbers"),
        (lambda: Cardinality(None), "Cardinality.k"),
        (lambda: Cardinality(float("nan")), "finite"),
        (lambda: GroupBounds([0, 0], [3], [3]), "has 2 units and asks for 3 to 3"),
        (lambda: GroupBounds([0, 0], [2], [1]), "asks for 2 to 1"),
        (lambda: GroupBounds([0, 0], [-2], [-1]), "meet 0 to 2"),
        (lambda: GroupBounds([0, 2], [0], [1]), "group: expected -1 to 0, got 0 to 2"),
        (lambda: GroupBounds([0, 0], [0], [1, 1]), "high"),
        (lambda: GroupBounds([0.5], [0], [1]), "whole"),
        (lambda: Budget([-1.0], 1.0), ">= 0"),
        (lambda: Budget([1.0], -1.0), ">= 0"),
        (lambda: Budget([1.0], np.inf), "finite"),
        (lambda: Budget([1.0], None), "limit"),
        (lambda: Budget([1.0, 1.0], 1.0, np.ones((3, 3))), "pair"),
        (lambda: Budget([1.0, 1.0], 1.0, np.eye(2)), "diagonal"),
        (lambda: Budget([1.0, 1.0], 1.0, [[0, 1], [0, 0]]), "symmetric"),
        (lambda: Budget([1.0, 1.0], 1.0, [[0, -1], [-1, 0]]), ">= 0"),
        (lambda: Budget([1.0, 1.0], 1.0, sparse.csr_array([[0, np.nan], [np.nan, 0]])), "finite"),
    ],
)
def test_what_makes_no_sense_is_refused(build, complaint):
    with pytest.raises(InvalidProblem, match=complaint):
        build()
