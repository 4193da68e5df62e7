"""A regression on some groups of inputs: values against numpy's least squares, what is refused, and files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.problems import (
    Budget,
    Cardinality,
    Clustering,
    GroupBounds,
    InvalidProblem,
    SubsetRegression,
    readers,
)
from prunesolve.problems.subset_regression import solved

GRAM = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
CROSS = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])


def example(**changes):
    return SubsetRegression(**({"gram": GRAM, "cross": CROSS, "block": [0, 1, 2]} | changes))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans(), st.booleans())
def test_the_value_is_the_error_of_least_squares_on_the_kept_inputs(seed, groups, dependent, scaled):
    rng = np.random.default_rng(seed)
    d = 2 * groups + 1
    x, y = rng.normal(size=(50, d)), rng.normal(size=(50, 3))
    if dependent:
        x[:, 0], x[:, -1] = x[:, 1:].sum(axis=1), 0.0
    if scaled:
        x *= 10.0 ** rng.integers(-4, 5, d)
    block = rng.permutation(np.append(np.repeat(np.arange(groups), 2), -1))
    problem = SubsetRegression(x.T @ x, x.T @ y, block, offset=float((y**2).sum()))
    keep = rng.random(groups) < 0.6
    inputs = np.flatnonzero(np.append(keep, True)[block])
    length = np.maximum(np.linalg.norm(x[:, inputs], axis=0), 1e-300)
    fitted = np.linalg.lstsq(x[:, inputs] / length, y, rcond=1e-9)[0]
    lost = np.square(y - x[:, inputs] / length @ fitted).sum()
    assert problem.value(keep) == pytest.approx(lost, rel=1e-7)
    weights = problem.weights(keep)
    assert np.square(y - x @ weights.T).sum() == pytest.approx(lost, rel=1e-7)
    assert not weights[:, np.setdiff1d(np.arange(d), inputs)].any()
    more = keep | (rng.random(groups) < 0.5)
    assert problem.least - 1e-6 <= problem.value(more) <= problem.value(keep) + 1e-6 * problem.offset


def test_rows_are_valued_one_by_one():
    problem = example(constraints=Cardinality(2), offset=5.0)
    rows = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], dtype=bool)
    np.testing.assert_allclose(problem.value(rows), [problem.value(row) for row in rows])
    assert problem.value(rows).tolist()[2] == 5.0
    assert problem.is_feasible(rows).tolist() == [True, True, False]
    assert problem.violation(rows).tolist() == [0.0, 0.0, 2.0]
    assert (problem.n, problem.k, problem.support(rows[0]).tolist()) == (3, 2, [0, 1])


def test_bounds_and_cardinality_are_kept_together():
    bounds = GroupBounds([0, 0, 1], [1, 0], [1, 1])
    problem = example(constraints=[bounds, Cardinality(2)])
    assert problem.is_feasible([True, False, True])
    assert not problem.is_feasible([True, True, False])
    assert problem.of_kind(GroupBounds) == [bounds]


def test_a_singular_gram_is_solved_by_the_least_weights():
    x = np.array([[1.0, 1.0], [2.0, 2.0], [-1.0, -1.0]])
    problem = SubsetRegression(x.T @ x, x.T @ np.array([[2.0], [4.0], [-2.0]]), [0, 1], offset=24.0)
    assert problem.least == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(problem.weights([True, True]), [[1.0, 1.0]])
    np.testing.assert_allclose(solved(np.zeros((2, 2)), np.zeros((2, 1))), np.zeros((2, 1)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gram": GRAM[:2]}, r"gram: expected a square matrix, got shape \(2, 3\)"),
        ({"gram": np.where(GRAM == 0.5, np.nan, GRAM)}, r"gram: nan at \(1, 2\); every entry must be finite"),
        ({"gram": np.triu(GRAM)}, r"gram: not symmetric, entries differ by up to 1; \(H \+ H.T\) / 2 is"),
        (
            {"gram": GRAM - np.eye(3)},
            f"smallest eigenvalue is {np.linalg.eigvalsh(GRAM - np.eye(3))[0]:.6g}; add a ridge",
        ),
        (
            {"gram": GRAM - 0.9 * np.eye(3)},
            "smallest eigenvalue is -0.[0-9]*; second moments have none below zero, and a",
        ),
        ({"gram": np.diag([1.0, 1.0, -2.0])}, "smallest eigenvalue is -2; add a ridge"),
        ({"gram": np.diag([1.0, 1.0, 0.0])}, "cross: expected moments within the range of the gram"),
        ({"gram": np.ones((3, 3))}, "cross: expected moments within the range of the gram"),
        ({"gram": GRAM * 1e304}, "gram: expected entries that add up to 1e.304 at most"),
        ({"cross": CROSS[:2]}, r"cross: expected shape \(3, any\), got \(2, 2\)"),
        ({"cross": np.full((3, 2), np.inf)}, "cross: inf"),
        ({"block": [0, 1]}, r"block: expected shape \(3\), got \(2,\)"),
        ({"block": [0, 2, 2]}, "block: group 1 has no input"),
        ({"block": [0, -2, 1]}, "block: expected groups from 0, or -1 for what always stays, got -2"),
        ({"block": [0, 0.5, 1]}, "block: expected whole numbers"),
        ({"constraints": Cardinality(4)}, "k = 4 of n = 3 units; the largest that can be kept is 3"),
        (
            {"constraints": [Cardinality(1), GroupBounds([0, 0, 1], [1, 1], [2, 1])]},
            "the smallest k that can be met is 2",
        ),
        ({"constraints": GroupBounds([0, 0], [1], [1])}, "expected one entry for each of n = 3"),
        ({"constraints": Budget([1.0, 1.0, 1.0], 2.0)}, "expected Cardinality or GroupBounds, got Budget"),
        ({"labels": ["a", "b"]}, "labels: expected one for each of n = 3"),
        ({"offset": np.nan}, "offset: nan"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, words):
    with pytest.raises(InvalidProblem, match=words):
        example(**changes)


@pytest.mark.parametrize("x", [[True, False], [0.5, 0, 1], "all"])
def test_what_is_no_selection_is_refused(x):
    with pytest.raises(InvalidProblem, match="x: expected"):
        example().value(x)
    with pytest.raises(InvalidProblem, match="one selection"):
        example().weights(np.ones((2, 3), dtype=bool))


def test_rounding_in_the_gram_is_no_fault_and_the_arrays_are_copies():
    gram = GRAM.copy()
    gram[0, 1] += 1e-14
    problem = example(gram=gram)
    np.testing.assert_array_equal(problem.gram, problem.gram.T)
    gram[0, 0] = 99.0
    assert problem.gram[0, 0] == 2.0
    with pytest.raises(ValueError, match="read-only"):
        problem.gram[0, 0] = 1.0


def test_files_keep_everything(tmp_path):
    constraints = [GroupBounds([0, 0, 1], [1, 0], [1, 1]), Cardinality(2)]
    labels = [("conv", 0), ("conv", 1), ("conv", 5)]
    problem = example(constraints=constraints, offset=3.0, labels=labels, meta={"name": "x", "sense": "minimise"})
    problem.save(tmp_path / "instance.npz")
    for again in (SubsetRegression.load(tmp_path / "instance.npz"), readers.read(tmp_path / "instance.npz")):
        assert (again.hash, again.labels, again.k) == (problem.hash, tuple(labels), 2)
        assert again.value([True, False, True]) == problem.value([True, False, True])
        assert again.is_feasible([True, False, True])
        assert again.meta["name"] == "x"
    with pytest.raises(InvalidProblem, match="expected a file of kind 'clustering', got 'subset-regression'"):
        Clustering.load(tmp_path / "instance.npz")


@pytest.mark.parametrize(
    "changes",
    [{"gram": 2 * GRAM}, {"cross": 2 * CROSS}, {"block": [0, 1, 1]}, {"offset": 1.0}, {"constraints": Cardinality(1)}],
)
def test_the_hash_follows_the_content(changes):
    assert example(**changes).hash != example().hash
    assert example().hash == example(meta={"name": "another"}).hash


@pytest.mark.parametrize("missing", ["gram", "block", "offset", "meta"])
def test_a_damaged_file_says_so(tmp_path, missing):
    path = tmp_path / "instance.npz"
    example().save(path)
    arrays = dict(np.load(path))
    del arrays[missing]
    np.savez(path, **arrays)
    with pytest.raises(InvalidProblem, match="an array is missing or damaged"):
        SubsetRegression.load(path)
