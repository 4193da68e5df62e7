"""Ward's agglomeration against scipy's, the descents against enumeration and against the definition of inertia."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, ward

from prunesolve.problems import Clustering, InvalidProblem, canonical
from prunesolve.solvers import Ward, _kernels
from prunesolve.solvers._base import Run
from prunesolve.solvers.ward import _numbered, _Search, squared_distances


def partitions(n, clusters):
    """Every partition, as labels."""

    def grown(head):
        if len(head) == n:
            yield np.array(head)
            return
        for label in range(min(clusters, max(head, default=-1) + 2)):
            yield from grown([*head, label])

    return [labels for labels in grown([]) if labels.max() == clusters - 1]


def searching(problem, seed=0):
    return _Search(problem, Run(problem, seed=seed))


@pytest.mark.parametrize("n", [12, 60, 200])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_plain_agglomeration_is_scipys(n, share):
    x = np.random.default_rng(n).normal(size=(n, 5))
    clusters = max(2, int(share * n))
    ours = searching(Clustering(x, n_clusters=clusters)).agglomerated(1)
    np.testing.assert_array_equal(canonical(ours), canonical(fcluster(ward(x), clusters, "maxclust")))


def test_a_whole_weight_is_as_good_as_so_many_points():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(20, 3)), rng.integers(1, 4, 20)
    many = np.repeat(np.arange(20), weights)
    light = searching(Clustering(x, n_clusters=6, weights=weights)).agglomerated(1)
    heavy = searching(Clustering(x[many], n_clusters=6)).agglomerated(1)
    np.testing.assert_array_equal(canonical(light[many]), canonical(heavy))


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_small_instances_are_solved(seed, clusters, weighted, sized):
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(8, 2)), rng.random(8) + 0.1 if weighted else None
    most = int(rng.integers(-(-8 // clusters), 8 - clusters + 2)) if sized else None
    problem = Clustering(x, n_clusters=clusters, weights=weights, max_size=most)
    best = min(problem.value(labels) for labels in partitions(8, clusters) if problem.is_feasible(labels))
    found = Ward().solve(problem, seed=seed)
    assert found.feasible
    assert found.objective == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_features_and_their_distances_give_the_same():
    x = np.random.default_rng(3).normal(size=(40, 7)) + 100.0
    of_features = Clustering(x, n_clusters=12)
    table = np.square(x[:, None] - x).sum(axis=2)
    np.testing.assert_allclose(squared_distances(of_features), table, atol=1e-9)
    found = [Ward().solve(p, seed=1) for p in (of_features, Clustering(distances=table, n_clusters=12))]
    np.testing.assert_array_equal(found[0].solution, found[1].solution)
    assert found[0].objective == pytest.approx(found[1].objective, rel=1e-9)


def moved_at_random(seed):
    """Sums after many moves of every kind, beside the sums of the same labels from scratch."""
    rng = np.random.default_rng(seed)
    weights = rng.random(30) * (rng.random(30) < 0.9)
    problem = Clustering(rng.normal(size=(30, 4)), n_clusters=8, weights=weights, max_size=6)
    search, kernel = searching(problem), _kernels.load("ward")
    sums = search._sums(rng.permutation(np.arange(30) % 8), 8)
    values = [problem.value(sums.label)]
    for descent in (
        lambda: kernel.move(sums, 6, 0, 0, search.least, 30),
        lambda: kernel.swap(sums, 0, 30, search.least),
        lambda: kernel.relocate(sums, 6, search.least),
        lambda: kernel.renew(sums, 6, rng.random((20, 32)), 5, search.least),
    ):
        descent()
        values.append(problem.value(sums.label))
    return problem, sums, search._sums(sums.label, 8), values


@pytest.mark.parametrize("seed", range(10))
def test_every_descent_lowers_the_inertia_and_keeps_its_sums(seed):
    problem, sums, afresh, values = moved_at_random(seed)
    assert all(after <= before + 1e-12 for before, after in zip(values, values[1:], strict=False))
    assert values[-1] < values[0]
    assert problem.is_feasible(sums.label)
    for name in ("size", "mass", "pairs", "reach"):
        np.testing.assert_allclose(getattr(sums, name), getattr(afresh, name), rtol=1e-9, atol=1e-12, err_msg=name)


def test_clusters_that_cannot_be_merged_any_more_are_dissolved():
    # two pairs and two points close to them: after three merges no two of the three pairs fit together
    x = np.array([[0.0], [0.1], [10.0], [10.1], [20.0], [20.1]])
    problem = Clustering(x, n_clusters=2, max_size=3)
    labels = searching(problem).agglomerated(1)
    assert problem.is_feasible(labels)
    result = Ward().solve(problem)
    assert result.objective == pytest.approx(min(problem.value(p) for p in partitions(6, 2) if problem.is_feasible(p)))


def test_numbered_labels_have_no_gaps():
    assert _numbered(np.array([4, 4, 9, 0])).tolist() == [1, 1, 2, 0]


def test_restarts_do_not_lose_what_the_plain_one_found():
    problem = Clustering(np.random.default_rng(5).normal(size=(80, 6)), n_clusters=30)
    one, many = (Ward().solve(problem, evaluation_limit=limit) for limit in (1, 6))
    assert (one.evaluations, many.evaluations) == (1, 6)
    assert many.objective <= one.objective < problem.value(fcluster(ward(problem.features), 30, "maxclust"))


def test_a_start_is_improved():
    problem = Clustering(np.random.default_rng(6).normal(size=(40, 3)), n_clusters=10)
    start = np.arange(40) % 10
    assert Ward().solve(problem, start=start, evaluation_limit=1).objective < problem.value(start)


def test_a_table_too_large_for_the_time_is_answered_all_the_same():
    problem = Clustering(np.random.default_rng(7).normal(size=(1500, 3)), n_clusters=700, max_size=3)
    result = Ward().solve(problem, time_limit=1e-3)
    assert result.feasible
    assert result.seconds < 10.0


@pytest.mark.parametrize("options", [{"restarts": 0}, {"top_k": 0}, {"renewals": -1.0}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(InvalidProblem, match=next(iter(options))):
        Ward(**options)
