from __future__ import annotations

import numpy as np
import pytest

from prunesolve.bridges.torch._elimination import Refitted, Subtracted, eliminated


def ridge_loss(x, weights, pull, inputs):
    """min over W on `inputs` of ||(W - W_0) X||^2 + pull ||W - W_0||^2, by numpy's own least squares."""
    d = x.shape[1]
    rows = np.vstack([x, np.sqrt(pull) * np.eye(d)])
    wanted = rows @ weights.T
    found = np.linalg.lstsq(rows[:, inputs], wanted, rcond=None)[0]
    return float(np.square(wanted - rows[:, inputs] @ found).sum())


def example(seed, units=6, inputs=3, outs=4, samples=40):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, units * inputs)) @ rng.normal(size=(units * inputs, units * inputs))
    return x, rng.normal(size=(outs, units * inputs)), 0.7


def reader(x, weights, pull, inputs):
    return Refitted(np.linalg.inv(x.T @ x + pull * np.eye(x.shape[1])), weights, inputs)


@pytest.mark.parametrize("seed", range(3))
def test_removal_costs_are_what_least_squares_loses(seed):
    x, weights, pull = example(seed)
    found, left = reader(x, weights, pull, 3), np.arange(6)
    rng = np.random.default_rng(seed)
    while len(left) > 1:
        columns = {u: np.arange(3 * u, 3 * u + 3) for u in left}
        now = ridge_loss(x, weights, pull, np.concatenate([columns[u] for u in left]))
        without = [ridge_loss(x, weights, pull, np.concatenate([columns[v] for v in left if v != u])) for u in left]
        np.testing.assert_allclose(found.costs(), np.array(without) - now, rtol=1e-7, atol=1e-9 * now)
        going = rng.permutation(len(left))[: 1 + len(left) // 4]
        found.remove(going)
        left = np.delete(left, going)


def test_weights_left_are_those_of_least_squares():
    x, weights, pull = example(5)
    found = reader(x, weights, pull, 3)
    found.remove(np.array([4, 1]))
    left = np.concatenate([np.arange(3 * u, 3 * u + 3) for u in (0, 2, 3, 5)])
    rows = np.vstack([x, np.sqrt(pull) * np.eye(18)])
    exact = np.linalg.lstsq(rows[:, left], rows @ weights.T, rcond=None)[0].T
    np.testing.assert_allclose(found.weights, exact, rtol=1e-8, atol=1e-10)


def test_subtracted_costs_are_differences_of_the_gram():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(7, 9))
    gram, found, left = factor @ factor.T, Subtracted(factor @ factor.T), np.arange(7)
    for going in (np.array([2]), np.array([0, 3])):
        gone = np.setdiff1d(np.arange(7), left)
        lost = [gram[np.ix_(s, s)].sum() for s in (np.append(gone, u) for u in left)]
        np.testing.assert_allclose(found.costs(), np.array(lost) - gram[np.ix_(gone, gone)].sum())
        found.remove(going)
        left = np.delete(left, going)


def test_the_cheapest_unit_goes_each_time():
    x, weights, pull = example(1)
    keep = eliminated([reader(x, weights, pull, 3)], 6, [1, 2, 3, 4, 5, 6])
    columns = [np.flatnonzero(np.repeat(row, 3)) for row in keep]
    assert keep.sum(1).tolist() == [1, 2, 3, 4, 5, 6]
    for smaller, larger, row in zip(columns[:-1], columns[1:], keep[1:], strict=True):
        assert set(smaller) < set(larger)
        drops = [np.flatnonzero(np.repeat(row & (np.arange(6) != u), 3)) for u in np.flatnonzero(row)]
        best = min(ridge_loss(x, weights, pull, d) for d in drops)
        assert ridge_loss(x, weights, pull, smaller) == pytest.approx(best, rel=1e-9)


def test_readers_add_and_no_units_is_a_level():
    useful = np.diag([1.0, 2.0, 3.0])
    keep = eliminated([Subtracted(useful), Subtracted(useful[::-1, ::-1] * 10)], 3, [0, 1, 3])
    assert keep.tolist() == [[False] * 3, [True, False, False], [True] * 3]


def test_wide_groups_lose_several_units_at_a_time_and_meet_every_count():
    gram = np.diag(np.arange(1.0, 601.0))
    keep = eliminated([Subtracted(gram)], 600, [1, 299, 600])
    assert keep.sum(1).tolist() == [1, 299, 600]
    assert keep[1].nonzero()[0].tolist() == list(range(301, 600))
