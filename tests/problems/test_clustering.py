"""A clustering by its definition: inertia, sizes, what is refused, and files."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans2

from prunesolve.problems import BinaryQuadratic, Clustering, InvalidProblem, canonical

X = np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0], [3.0, 3.0], [3.0, 4.0]])
APART = ((X[:, None] - X[None]) ** 2).sum(axis=2)


def example(**changes):
    return Clustering(**({"features": X, "n_clusters": 2} | changes))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.booleans())
def test_the_value_is_the_inertia_about_the_means_and_that_of_the_pairs(seed, n, weighted):
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(n, 3)), rng.integers(0, 4, n)
    weights = rng.random(n) * (rng.random(n) < 0.8) if weighted else np.ones(n)
    about_means = 0.0
    for cluster in set(labels.tolist()):
        w, members = weights[labels == cluster], x[labels == cluster]
        if w.sum():
            mean = np.average(members, axis=0, weights=w)
            about_means += sum(w[i] * ((members[i] - mean) ** 2).sum() for i in range(len(w)))
    apart = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    for given_ in ({"features": x}, {"distances": apart}):
        problem = Clustering(**given_, n_clusters=1, weights=weights)
        assert problem.value(labels) == pytest.approx(about_means, rel=1e-9, abs=1e-12)


def test_the_value_of_what_scipy_clusters_is_its_distortion():
    x = np.random.default_rng(0).normal(size=(40, 3))
    means, labels = kmeans2(x, 5, seed=1, minit="++", iter=100)
    assert example(features=x, n_clusters=5).value(labels) == pytest.approx(((x - means[labels]) ** 2).sum())


def test_far_from_zero_the_value_stays_accurate():
    shifted = Clustering(X + 1e7, n_clusters=2)
    assert shifted.value([0, 0, 0, 1, 1]) == pytest.approx(example().value([0, 0, 0, 1, 1]), rel=1e-9)


def test_violation_counts_clusters_and_points_too_many():
    problem = example(max_size=3)
    assert problem.is_feasible([0, 0, 0, 1, 1])
    assert problem.violation([0, 0, 0, 0, 1]) == 1
    assert problem.violation([0, 0, 0, 0, 0]) == 1 + 2
    assert problem.violation([0, 1, 2, 3, 3]) == 2
    assert not problem.is_feasible([0, 1, 2, 3, 3])


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12))
def test_canonical_labels_are_numbered_by_first_appearance(labels):
    numbers = {}
    expected = [numbers.setdefault(label, len(numbers)) for label in labels]
    assert canonical(labels).tolist() == expected
    assert canonical(canonical(labels)).tolist() == expected


def test_checked_labels_are_canonical_whole_numbers():
    assert example().checked("x", np.array([4.0, 4.0, 1.0, 4.0, 1.0])).tolist() == [0, 0, 1, 0, 1]
    assert example().checked("x", np.array([3, 3, 1, 1, 0], dtype=np.uint8)).dtype == np.int64
    for labels, words in (
        ([0, 1], r"x: expected labels of shape \(5,\), got \(2,\)"),
        ([[0, 0, 0, 0, 0]], r"x: expected labels of shape \(5,\), got \(1, 5\)"),
        ([0.5, 0, 0, 0, 0], "x: expected whole numbers"),
        ([np.nan, 0, 0, 0, 0], "x: nan at"),
        ([True] * 5, "x: expected the number of each point's cluster, got bool"),
        (["a"] * 5, "x: expected the number of each point's cluster"),
    ):
        with pytest.raises(InvalidProblem, match=words):
            example().checked("x", labels)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distances": APART}, "expected exactly one of features and distances, got both"),
        ({"features": None}, "expected exactly one of features and distances, got neither"),
        ({"features": [[1.0, np.nan]] * 5}, r"features: nan at \(0, 1\)"),
        ({"features": np.zeros((0, 2))}, "expected at least one point"),
        ({"features": np.zeros(3)}, r"features: expected shape \(any, any\), got \(3,\)"),
        ({"features": np.full((2, 2), 1e160)}, "divide the features or the distances"),
        ({"features": None, "distances": APART[:3]}, "distances: expected a square table"),
        ({"features": None, "distances": -APART}, "distances: expected squared distances of zero or more"),
        ({"features": None, "distances": APART + 1.0}, "distances: expected a zero diagonal"),
        ({"features": None, "distances": np.triu(APART)}, "distances: not symmetric"),
        ({"features": None, "distances": np.where(APART > 9, np.inf, APART)}, "distances: inf at"),
        ({"n_clusters": 0}, "n_clusters: expected 1 to n = 5, got 0"),
        ({"n_clusters": 6}, "n_clusters: expected 1 to n = 5, got 6"),
        ({"n_clusters": 1.5}, "n_clusters: expected whole numbers"),
        ({"max_size": 2}, "2 clusters of up to 2 do not hold 5 points; the smallest max_size that does is 3"),
        ({"weights": [1.0]}, r"weights: expected shape \(5\), got \(1,\)"),
        ({"weights": [1.0, -1.0, 1.0, 1.0, 1.0]}, "weights: expected zero or more, got -1 at 1"),
        ({"labels": ["a"]}, "labels: expected one for each of n = 5"),
    ],
)
def test_nonsense_is_refused_by_name(changes, words):
    with pytest.raises(InvalidProblem, match=words):
        example(**changes)


def test_the_tables_are_kept_as_they_are():
    for dtype in (np.float64, np.float32):
        x, apart = X.astype(dtype), APART.astype(dtype)
        assert np.shares_memory(example(features=x).features, x)
        kept = Clustering(distances=apart, n_clusters=2).distances
        assert np.shares_memory(kept, apart)
        assert kept.dtype == dtype
        assert not kept.flags.writeable


def test_a_file_brings_it_back(tmp_path):
    for problem in (
        example(labels=list("abcde"), meta={"layer": "fc1"}, weights=[1, 2, 0, 1, 1], max_size=4),
        Clustering(distances=APART.astype(np.float32), n_clusters=3),
    ):
        problem.save(tmp_path / "p.npz")
        again = Clustering.load(tmp_path / "p.npz")
        assert again.hash == problem.hash
        assert (again.labels, again.meta, again.max_size) == (problem.labels, problem.meta, problem.max_size)
        assert type(again.n_clusters) is type(problem.n_clusters) is int


def test_the_hash_is_of_the_content():
    changed = ({"n_clusters": 3}, {"max_size": 4}, {"weights": [1, 1, 1, 1, 2]}, {"features": X + 1})
    hashes = [example().hash, *(example(**c).hash for c in changed)]
    assert len(set(hashes)) == len(hashes)
    assert example(meta={"a": 1}).hash == example(weights=np.ones(5)).hash == example().hash


def test_damaged_files_are_said(tmp_path):
    BinaryQuadratic([1.0]).save(tmp_path / "other.npz")
    with pytest.raises(InvalidProblem, match=re.escape("expected a file of kind 'clustering'")):
        Clustering.load(tmp_path / "other.npz")
    example().save(tmp_path / "p.npz")
    arrays = dict(np.load(tmp_path / "p.npz"))
    np.savez(tmp_path / "q.npz", **{name: array for name, array in arrays.items() if name != "features"})
    with pytest.raises(InvalidProblem, match="expected exactly one of features and distances"):
        Clustering.load(tmp_path / "q.npz")
