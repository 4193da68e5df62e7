"""Merging: means in, sums out; deletion and isolation are special cases."""

from __future__ import annotations

import numpy as np
import pytest

from prunesolve.formulations import GeneralisedPruning
from prunesolve.formulations.generalised_pruning import Merging
from prunesolve.problems import InvalidProblem
from prunesolve.solvers import Ward


def layers(rng, n):
    """Weights in and out and biases of a layer of n neurons, two of which are made alike."""
    w_in, bias, w_out = rng.normal(size=(n, 4)), rng.normal(size=n), rng.normal(size=(3, n))
    w_in[n - 1], bias[n - 1] = w_in[0], bias[0]
    return w_in, bias, w_out


@pytest.mark.parametrize("activation", [np.tanh, np.exp, np.sin, lambda z: np.maximum(z, 0.0)])
def test_duplicates_merge_exactly_under_any_activation(activation):
    rng = np.random.default_rng(0)
    w_in, bias, w_out = layers(rng, 6)
    pruning = GeneralisedPruning()
    problem = pruning.encode(np.hstack([w_in, bias[:, None]]), 5, rng.random(6) + 0.5)
    merging = pruning.decode(problem, Ward().solve(problem).solution)
    assert merging.labels.tolist() == [0, 1, 2, 3, 4, 0]
    x = rng.normal(size=(7, 4))
    whole = activation(x @ w_in.T + bias) @ w_out.T
    merged = activation(x @ (merging.forward @ w_in).T + merging.forward @ bias) @ (w_out @ merging.backward).T
    np.testing.assert_allclose(merged, whole, rtol=1e-12)


def test_rows_of_both_kernels_sum_to_one():
    rng = np.random.default_rng(1)
    merging = Merging.of_labels([0, 1, 1, 2, 0, 2, 2], rng.random(7) + 0.1)
    np.testing.assert_allclose(merging.forward.sum(axis=1), 1.0)
    np.testing.assert_allclose(merging.backward.sum(axis=1), 1.0)
    assert set(np.unique(merging.backward)) == {0.0, 1.0}
    np.testing.assert_allclose(merging.forward @ merging.backward, np.eye(3), atol=1e-15)


def test_weighted_means():
    merging = Merging.of_labels([0, 0, 1], [1.0, 3.0, 2.0])
    assert merging.forward.tolist() == [[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]
    assert merging.alone.tolist() == [2]


def test_deletion_drops_and_isolation_keeps():
    dropped, whole = Merging.deletion([1, 3], 4), Merging.identity(4)
    assert dropped.forward.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert dropped.backward.T.tolist() == dropped.forward.tolist()
    assert dropped.labels.tolist() == [-1, 0, -1, 1]
    assert dropped.alone.tolist() == [1, 3]
    np.testing.assert_array_equal(whole.forward, np.eye(4))
    np.testing.assert_array_equal(whole.backward, np.eye(4))


def test_a_neuron_without_weight_is_dropped_beside_one_with_some():
    merging = Merging.of_labels([0, 0, 1, 1], [1.0, 0.0, 0.0, 0.0])
    assert merging.labels.tolist() == [0, -1, 1, 1]
    assert merging.forward[1].tolist() == [0.0, 0.0, 0.5, 0.5]


def test_merged_neurons_are_numbered_by_their_places():
    plan = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    merging = Merging(plan)
    assert merging.places.tolist() == [0, 1]
    assert merging.plan.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    other = Merging(plan, [2, 1])
    assert other.places.tolist() == [1, 2]
    np.testing.assert_array_equal(other.plan, plan[:, ::-1])
    assert other.alone.tolist() == []


def test_a_spread_bounds_the_clusters():
    x = np.concatenate([np.zeros(9), [100.0]])[:, None]
    problem = GeneralisedPruning(spread=1.5).encode(x, 4)
    assert problem.max_size == 4
    assert GeneralisedPruning().encode(x, 4).max_size is None
    assert GeneralisedPruning(spread=1.0).encode(x, 0.25).n_clusters == 3


def test_distances_instead_of_features():
    x = np.random.default_rng(2).normal(size=(9, 3))
    table = np.square(x[:, None] - x).sum(axis=2)
    one, two = GeneralisedPruning().encode(x, 4), GeneralisedPruning().encode_distances(table, 4)
    labels = Ward().solve(one).solution
    assert one.value(labels) == pytest.approx(two.value(labels))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GeneralisedPruning(spread=0.5), "spread"),
        (lambda: GeneralisedPruning().encode(np.ones((3, 2)), 0), "leaves none"),
        (lambda: GeneralisedPruning().encode(np.ones((3, 2)), 0.1), "leaves none"),
        (lambda: GeneralisedPruning().encode(np.ones((3, 2)), 4), "asked for 4 of 3"),
        (lambda: GeneralisedPruning().encode(np.ones((3, 2)), 2, [1.0, -1.0, 1.0]), "weights"),
        (lambda: Merging([[1.0, 0.0], [1.0, 0.0]]), "nothing goes into merged neuron 1"),
        (lambda: Merging([[-1.0]]), "zero or more"),
        (lambda: Merging(np.eye(2), [0, 0]), "different neurons"),
        (lambda: Merging(np.eye(2), [0, 2]), "different neurons"),
    ],
)
def test_nonsense_is_refused_in_words(call, words):
    with pytest.raises(InvalidProblem, match=words):
        call()


def test_a_solution_of_too_few_clusters_is_refused():
    pruning = GeneralisedPruning()
    problem = pruning.encode([[0.0], [1.0], [5.0]], 2)
    with pytest.raises(InvalidProblem, match="expected 2 clusters"):
        pruning.decode(problem, [0, 0, 0])
