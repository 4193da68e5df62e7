"""Choosing a layer's inputs: the regression it states, against numpy's least squares on the samples themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.formulations import InputSelection
from prunesolve.formulations.testing import check_formulation
from prunesolve.problems import GroupBounds, InvalidProblem

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 40)), RNG.normal(size=(3, 40))


@pytest.mark.parametrize("formulation", [InputSelection(), InputSelection(ridge=0.0), InputSelection(3.0)], ids=repr)
def test_options_keep_their_word(formulation):
    check_formulation(formulation)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-3, 2.0]), st.booleans())
def test_the_value_is_that_of_least_squares_with_the_ridge_as_further_samples(seed, ridge, started):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(6, 30)), rng.normal(size=(2, 30))
    start = rng.normal(size=(2, 6)) if started else np.zeros((2, 6))
    block = rng.permutation([0, 0, 1, 1, 2, -1])
    formulation = InputSelection(ridge)
    problem = formulation.encode(x, y, keep=2, block=block, weights=start)
    keep = rng.permutation([True, True, False])
    inputs = np.flatnonzero(np.append(keep, True)[block])
    # sqrt(pull) * (W - W_0): one more sample for every weight
    pull = ridge * np.mean(x**2)
    rows = np.vstack([x[inputs].T / np.sqrt(30), np.sqrt(pull) * np.eye(6)[:, inputs]])
    wanted = np.vstack([y.T / np.sqrt(30), np.sqrt(pull) * start.T])
    fitted, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
    decoded = formulation.decode(problem, keep)
    np.testing.assert_allclose(decoded.weights[:, inputs], fitted.T, atol=1e-9)
    np.testing.assert_array_equal(decoded.inputs, inputs)
    assert not decoded.weights[:, np.setdiff1d(np.arange(6), inputs)].any()
    lost = np.square(rows @ fitted - wanted).sum()
    assert problem.value(keep) == pytest.approx(lost, abs=1e-9)
    assert formulation.meaning(decoded, x, y, weights=start) == pytest.approx(lost, abs=1e-9)


def test_silent_inputs_leave_the_ridge_as_it_is():
    silent = np.vstack([X, np.zeros((4, 40))])
    alone, among = (InputSelection().encode(x, Y, keep=3).meta["pull"] for x in (X, silent))
    assert alone == pytest.approx(among)
    assert InputSelection().encode(np.zeros((2, 5)), Y[:, :5]).meta["pull"] == 1e-3


def test_inputs_that_say_nothing_keep_their_weights():
    start = RNG.normal(size=(3, 6))
    problem = InputSelection().encode(np.zeros((6, 40)), np.zeros((3, 40)), keep=4, weights=start)
    keep = np.arange(6) < 4
    np.testing.assert_allclose(problem.weights(keep)[:, :4], start[:, :4])


def test_keep_counts_and_bounds():
    assert InputSelection().encode(X, Y).k == 3
    assert InputSelection().encode(X, Y, 0.34, block=[0, 0, 1, 1, 2, 2]).k == 1
    bounds = GroupBounds([0, 0, 0, 1, 1, 1], [1, 1], [2, 1])
    problem = InputSelection().encode(X, Y, None, per_set=bounds, labels=list("abcdef"))
    assert problem.k is None
    assert problem.labels == tuple("abcdef")
    assert not problem.is_feasible([True, True, False, True, True, False])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keep": 7}, "the largest count that can be kept is 6"),
        ({"weights": np.zeros((3, 5))}, r"weights: expected shape \(3, 6\)"),
        ({"block": [0, 0, 2, 2, 3, 3]}, "group 1 has no input"),
        ({"targets": Y[:, :5]}, "the same samples, got 40 and 5"),
        ({"per_set": 3}, "per_set: expected GroupBounds, got int"),
    ],
)
def test_what_makes_no_sense_is_refused(change, words):
    with pytest.raises(InvalidProblem, match=words):
        InputSelection().encode(**({"inputs": X, "targets": Y} | change))


@pytest.mark.parametrize("ridge", [-1.0, np.nan, "much"])
def test_a_ridge_is_a_number_from_zero(ridge):
    with pytest.raises(InvalidProblem, match="ridge: expected a number"):
        InputSelection(ridge)


def test_a_selection_that_keeps_another_count_is_not_decoded():
    problem = InputSelection().encode(X, Y, 2)
    with pytest.raises(InvalidProblem, match="got one that keeps 3"):
        InputSelection().decode(problem, np.arange(6) < 3)
