"""A sparse regression by its definition: values by scipy's least squares, patterns, what is refused, and files."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import lstsq
from scipy.optimize import minimize

from prunesolve.problems import Cardinality, Clustering, GroupBounds, InvalidProblem, Keep, NofM, PerRow
from prunesolve.problems import SparseRegression as Sparse

GRAM = np.array([[2.0, 1.0, 0.0, 0.5], [1.0, 3.0, 0.5, 0.0], [0.0, 0.5, 1.0, 0.2], [0.5, 0.0, 0.2, 2.0]])
CROSS = np.array([[1.0, 0.0], [2.0, -1.0], [0.5, 0.5], [0.0, 1.0]])


def example(**changes):
    return Sparse(**({"gram": GRAM, "cross": CROSS, "pattern": Keep(3), "offset": 5.0} | changes))


def layer(rng, samples, d, o, pattern, rank=0, ridge=0.0):
    """A layer's regression beside its inputs, targets, and the rows' own factors."""
    inputs, targets = rng.normal(size=(samples, d)), rng.normal(size=(samples, o))
    factors = rng.normal(size=(o, d, rank)) if rank else None
    problem = Sparse(
        inputs.T @ inputs + ridge * np.eye(d),
        inputs.T @ targets,
        pattern,
        row_factors=factors,
        offset=float((targets**2).sum()),
    )
    return problem, inputs, targets


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2), st.integers(1, 9))
def test_the_value_is_what_scipy_fits_on_the_support(seed, d, o, rank, samples):
    rng = np.random.default_rng(seed)
    problem, inputs, targets = layer(rng, samples, d, o, Keep(0), rank)
    kept = rng.random((o, d)) < 0.6
    total = 0.0
    for i in range(o):
        rows, y = inputs, targets[:, i]
        if rank:
            # w' U U' w is the squared error of samples U' whose targets are 0
            rows, y = np.vstack([inputs, problem.row_factors[i].T]), np.append(y, np.zeros(rank))
        fitted = lstsq(rows[:, kept[i]], y)[0] if kept[i].any() else np.zeros(0)
        total += ((rows[:, kept[i]] @ fitted - y) ** 2).sum()
    assert problem.value(kept.ravel()) == pytest.approx(total, rel=1e-7, abs=1e-8)


def test_the_weights_lie_on_the_support_and_no_others_there_are_better():
    problem, _, _ = layer(np.random.default_rng(1), 20, 5, 2, Keep(6), rank=2)
    kept = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]], dtype=bool)
    w = problem.weights(kept.ravel())
    assert np.array_equal(w != 0, kept)

    def error(free):
        tried = np.zeros((2, 5))
        tried[kept] = free
        return problem.error(tried)

    found = minimize(error, np.zeros(6), method="BFGS", options={"gtol": 1e-8})
    assert found.fun == pytest.approx(problem.value(kept.ravel()), rel=1e-9)
    assert np.allclose(found.x, w[kept], atol=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_dense_weights_by_woodbury_are_those_of_the_full_support(rank):
    problem, _, _ = layer(np.random.default_rng(2), 30, 6, 3, Keep(9), rank)
    everything = np.ones(18, dtype=bool)
    assert np.allclose(problem.dense_weights, problem.weights(everything), rtol=1e-9)
    assert problem.least == pytest.approx(problem.value(everything), rel=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_a_larger_support_is_never_worse_and_none_is_better_than_all(seed):
    rng = np.random.default_rng(seed)
    problem, _, _ = layer(rng, int(rng.integers(2, 9)), 5, 2, Keep(5), int(rng.integers(0, 3)))
    small = rng.random(10) < 0.4
    large = small | (rng.random(10) < 0.4)
    slack = 1e-8 * problem.offset
    assert problem.least - slack <= problem.value(large) <= problem.value(small) + slack <= problem.offset + 2 * slack


def test_the_value_keeps_its_digits_in_any_unit_of_the_inputs():
    problem, inputs, targets = layer(np.random.default_rng(3), 20, 4, 2, Keep(4))
    kept, unit = np.array([1, 0, 1, 0, 0, 1, 1, 0], dtype=bool), np.array([1e-6, 1.0, 1e3, 1e6])
    scaled = Sparse((inputs * unit).T @ (inputs * unit), (inputs * unit).T @ targets, Keep(4), offset=problem.offset)
    assert scaled.value(kept) == pytest.approx(problem.value(kept), rel=1e-10)
    assert np.allclose(scaled.weights(kept) * unit, problem.weights(kept))


def test_gradients_are_chitas_regression():
    rng = np.random.default_rng(4)
    w, g, ridge = rng.normal(size=7), rng.normal(size=(3, 7)), 0.3
    problem = Sparse.from_gradients(w, g, Keep(4), ridge)
    kept = np.array([1, 0, 1, 1, 0, 0, 1], dtype=bool)
    # min ||G w^ - G b||^2 / m + ridge ||b - w^||^2 as one least-squares problem
    rows = np.vstack([g / np.sqrt(3), np.sqrt(ridge) * np.eye(7)])
    b = lstsq(rows[:, kept], rows @ w)[0]
    assert problem.value(kept) == pytest.approx(((rows[:, kept] @ b - rows @ w) ** 2).sum())
    assert problem.least == pytest.approx(0.0, abs=1e-12)
    assert np.array_equal(problem.start_weights, w[None])


# --- patterns --------------------------------------------------------------------------------------------------------

ORDER = (0, 2, 1, 3)


def in_words(pattern, rows):
    """Whether rows (o, d) are of the pattern, as its name says."""
    if isinstance(pattern, Keep):
        return rows.sum() == pattern.k
    if isinstance(pattern, PerRow):
        return (rows.sum(axis=1) == pattern.k).all()
    order = list(pattern.order or range(rows.shape[1]))
    return all(
        rows[i, order[at : at + pattern.m]].sum() == pattern.n
        for i in range(len(rows))
        for at in range(0, rows.shape[1], pattern.m)
    )


PATTERNS = [
    Keep(3),
    Keep(0),
    Keep(8),
    PerRow(1),
    PerRow(3),
    NofM(1, 2),
    NofM(2, 4),
    NofM(1, 2, order=ORDER),
    NofM(0, 2),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_constraints_the_count_and_the_pattern_mean_the_same(pattern):
    problem = example(pattern=pattern)
    kinds = Cardinality if isinstance(pattern, Keep) else GroupBounds
    assert [type(c) for c in problem.constraints] == [kinds]
    met = 0
    for bits in product((False, True), repeat=8):
        x = np.array(bits)
        meets = in_words(pattern, x.reshape(2, 4))
        met += meets
        assert problem.is_feasible(x) == meets
        assert (problem.violation(x) == 0) == meets == all(c.holds(x) for c in problem.constraints)
        assert not meets or x.sum() == problem.k
    assert met


def test_violation_counts_the_weights_that_are_too_many_or_too_few():
    x = np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool)
    assert [example(pattern=p).violation(x) for p in (Keep(3), PerRow(2), NofM(1, 2))] == [1, 4, 4]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(PATTERNS))
def test_the_best_by_scores_is_the_best_of_all_that_are_allowed(seed, pattern):
    scores = np.random.default_rng(seed).integers(0, 5, (2, 4)).astype(float)
    best = pattern.best(scores)
    every = [np.array(bits).reshape(2, 4) for bits in product((False, True), repeat=8)]
    assert in_words(pattern, best)
    assert scores[best].sum() == max(scores[x].sum() for x in every if in_words(pattern, x))


def test_an_order_may_run_along_the_channels_of_each_tap():
    channels, taps = 4, 9
    order = np.arange(channels * taps).reshape(channels, taps).T.ravel()
    kept = NofM(2, 4, order=order).best(np.random.default_rng(5).random((3, channels * taps)))
    assert (kept.reshape(3, channels, taps).sum(axis=1) == 2).all()


def test_patterns_are_equal_by_what_they_say():
    assert NofM(1, 2, order=np.array(ORDER)) == NofM(1, 2, order=ORDER) != NofM(1, 2)
    assert len({Keep(3), Keep(np.int64(3)), PerRow(3)}) == 2


# --- what is refused -------------------------------------------------------------------------------------------------

SKEW = GRAM + np.triu(np.full((4, 4), 0.1), 1)
REFUSED = {
    "nan in gram": ({"gram": GRAM * np.nan}, "gram: nan at (0, 0); every entry must be finite"),
    "nan in cross": ({"cross": np.full((4, 2), np.inf)}, "cross: inf at (0, 0)"),
    "not square": ({"gram": GRAM[:3]}, "gram: expected a square matrix, got shape (3, 4)"),
    "not symmetric": ({"gram": SKEW}, "gram: not symmetric; (gram + gram.T) / 2 is"),
    "indefinite": ({"gram": GRAM - 2 * np.eye(4)}, "gram: expected a positive semidefinite matrix, got -1 on its diag"),
    "indefinite inside": (
        {"gram": np.ones((4, 4)) + np.eye(4)[::-1]},
        "expected a positive semidefinite matrix, got the eigenvalue -1; sum the samples in double",
    ),
    "other inputs": ({"cross": CROSS[:3]}, "cross: expected shape (4, any), got (3, 2)"),
    "outside the range": (
        {"gram": np.diag([1.0, 1.0, 1.0, 0.0])},
        "cross: column 1 lies outside what gram spans, so the value has no lower end",
    ),
    "too many kept": ({"pattern": Keep(9)}, "Keep: k = 9 of o x d = 2 x 4 weights; the largest k is 8"),
    "too many in a row": ({"pattern": PerRow(5)}, "PerRow: k = 5 of d = 4 weights in a row; the largest k is 4"),
    "no groups": ({"pattern": NofM(1, 3)}, "d = 4 inputs do not part into groups of m = 3, 1 would be left over; keep"),
    "another order": ({"pattern": NofM(1, 2, order=(1, 0))}, "NofM.order: expected the order of d = 4 inputs, got one"),
    "no pattern": ({"pattern": 3}, "pattern: expected Keep(k), PerRow(k) or NofM(n, m), got 3"),
    "factors": ({"row_factors": np.ones((2, 3, 1))}, "row_factors: expected shape (2, 4, any), got (2, 3, 1)"),
    "weights": ({"start_weights": np.ones((4, 2))}, "start_weights: expected shape (2, 4), got (4, 2)"),
    "labels": ({"labels": ["a"]}, "labels: expected one for each of n = 8 variables, got 1"),
    "huge": ({"cross": CROSS * 1e200}, "cross: expected entries up to 1e+150"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_in_words(name):
    changes, words = REFUSED[name]
    with pytest.raises(InvalidProblem, match=re.escape(words)):
        example(**changes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Keep(-1), "Keep.k: expected a whole number >= 0, got -1"),
        (lambda: PerRow(1.5), "PerRow.k: expected whole numbers, got 1.5"),
        (lambda: NofM(3, 2), "NofM: expected 0 <= n <= m and m >= 1, got 3 of 2"),
        (lambda: NofM(0, 0), "NofM: expected 0 <= n <= m and m >= 1"),
        (lambda: NofM(1, 2, order=(0, 0)), "NofM.order: expected every input from 0 to 1 once"),
        (lambda: Sparse.from_gradients([1.0], [[1.0]], Keep(1), -1.0), "expected gradients and ridge >= 0"),
        (lambda: Sparse.from_gradients([1.0], np.empty((0, 1)), Keep(1)), "expected gradients and ridge >= 0, got 0 r"),
        (lambda: example().value(np.ones((2, 4), dtype=bool)), "x: expected shape (8,), got (2, 4)"),
        (lambda: example().value(np.ones((2, 8), dtype=bool)), "x: expected shape (8,), got (2, 8)"),
        (lambda: example().error(np.ones((4, 2))), "weights: expected shape (2, 4), got (4, 2)"),
    ],
)
def test_so_are_patterns_gradients_and_selections(make, words):
    with pytest.raises(InvalidProblem, match=re.escape(words)):
        make()


def test_a_gram_that_is_singular_alone_may_be_sound_with_the_rows_own_part():
    own = np.zeros((2, 4, 1))
    own[:, 3] = 1.0
    gram = np.diag([1.0, 1.0, 1.0, 0.0])
    assert example(gram=gram, row_factors=own).least == pytest.approx(5.0 - (CROSS**2).sum())
    with pytest.raises(InvalidProblem, match="cross: column 1 lies outside"):
        example(gram=gram, row_factors=own * [[[0.0]], [[0.0]]])


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_files_bring_back_the_same_problem(tmp_path, pattern):
    problem = example(
        pattern=pattern,
        row_factors=np.ones((2, 4, 1)),
        start_weights=CROSS.T,
        labels=[("conv", i) for i in range(8)],
        meta={"layer": "conv"},
    )
    problem.save(tmp_path / "a.npz")
    again = Sparse.load(tmp_path / "a.npz")
    assert again.hash == problem.hash
    assert (again.pattern, again.labels, again.meta, again.shape) == (pattern, problem.labels, problem.meta, (2, 4))
    assert all(np.array_equal(getattr(again, n), getattr(problem, n)) for n in ("gram", "row_factors", "start_weights"))


def test_every_array_is_part_of_the_hash_and_meta_is_not():
    plain = example()
    changed = [
        {"gram": GRAM + np.eye(4)},
        {"cross": CROSS + 1.0},
        {"offset": 6.0},
        {"row_factors": np.ones((2, 4, 1))},
        {"start_weights": CROSS.T},
        *({"pattern": p} for p in PATTERNS[1:]),
    ]
    assert len({plain.hash, *(plain.replace(**c).hash for c in changed)}) == 1 + len(changed)
    assert plain.replace(meta={"a": 1}).hash == plain.hash


def test_a_file_of_another_kind_or_without_an_array_is_refused(tmp_path):
    Clustering([[0.0], [1.0]], n_clusters=1).save(tmp_path / "other.npz")
    with pytest.raises(InvalidProblem, match="expected a file of kind 'sparse-regression', got 'clustering'"):
        Sparse.load(tmp_path / "other.npz")
    example().save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "cross"}
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(InvalidProblem, match="an array is missing or damaged"):
        Sparse.load(tmp_path / "b.npz")


def test_the_arrays_cannot_be_written_into():
    problem = example()
    for array in (problem.gram, problem.cross):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 7.0
