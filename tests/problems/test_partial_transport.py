"""A partial transport by its definition: values, masses, what is refused, and files."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from prunesolve.problems import BinaryQuadratic, InvalidProblem, PartialTransport

COST = np.array([[1.0, 4.0], [2.0, 0.0], [5.0, -3.0]])
SOURCE, TARGET = [0.5, 0.0, 1.0], [0.75, 0.5]
ONES = np.ones(3)


def example(**changes):
    return PartialTransport(**({"cost": COST, "source": SOURCE, "target": TARGET, "mass": 1.0} | changes))


def plans(seed, n, m):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, m)) * (rng.random((n, m)) < 0.5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
def test_value_and_violation_are_those_of_the_definition(seed, n, m):
    rng = np.random.default_rng(seed)
    problem = PartialTransport(rng.normal(size=(n, m)), rng.random(n), rng.random(m), 0.0)
    plan = plans(seed, n, m)
    given_, taken = plan.sum(axis=1) - problem.source, plan.sum(axis=0) - problem.target
    errors = (max(given_.max(), 0.0), max(taken.max(), 0.0), abs(plan.sum()))
    for told in (plan, sparse.csr_array(plan), sparse.coo_matrix(plan), plan.tolist()):
        assert problem.value(told) == pytest.approx((problem.cost * plan).sum(), abs=1e-12)
        assert problem.marginal_errors(told) == pytest.approx(errors, abs=1e-12)
        assert problem.violation(told) == pytest.approx(max(*errors, -plan.min()), abs=1e-12)


def test_a_plan_is_feasible_within_rounding_only():
    plan = np.array([[0.5, 0.0], [0.0, 0.0], [0.0, 0.5]])
    problem = example()
    assert problem.is_feasible(plan)
    for i, j, change in ((0, 0, 2e-9), (2, 1, 2e-9), (0, 1, -2e-9), (0, 0, -2e-9)):
        other = plan.copy()
        other[i, j] += change
        assert not problem.is_feasible(other)
        other[i, j] += -change + change / 10
        assert problem.is_feasible(other)


def test_a_plan_is_copied_as_sorted_csr_without_zeros_and_read_only():
    given_ = sparse.coo_array(([1.0, 2.0, -1.0, 3.0], ([0, 2, 0, 2], [1, 1, 1, 0])), shape=(3, 2))
    plan = example().checked("plan", given_)
    assert isinstance(plan, sparse.csr_array)
    assert plan.toarray().tolist() == [[0, 0], [0, 0], [3, 2]]
    assert plan.nnz == 2
    with pytest.raises(ValueError, match="read-only"):
        plan.data[0] = 1.0
    again = example().checked("plan", plan)
    assert again is not plan
    assert again.toarray().tolist() == plan.toarray().tolist()


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (np.zeros((2, 2)), r"plan: expected a plan of shape \(3, 2\), got \(2, 2\)"),
        (np.full((3, 2), np.nan), "plan: an entry is NaN"),
        ("no", "plan: expected a plan"),
        ([[1, "a"]] * 3, "plan: expected a plan"),
    ],
)
def test_what_is_no_plan_is_refused(plan, words):
    with pytest.raises(InvalidProblem, match=words):
        example().value(plan)


def test_a_table_of_floats_is_kept_as_it_is():
    for dtype in (np.float64, np.float32):
        cost = COST.astype(dtype)
        problem = example(cost=cost)
        assert problem.cost.dtype == dtype
        assert np.shares_memory(problem.cost, cost)
        assert not problem.cost.flags.writeable
        assert cost.flags.writeable
    for other in (COST.astype(int), COST.tolist(), np.asfortranarray(COST), COST.astype(np.float16)):
        assert example(cost=other).cost.dtype == np.float64
        assert np.array_equal(example(cost=other).cost, COST)


def test_single_precision_costs_are_added_in_double():
    cost = np.full((1, 3), 0.1, dtype=np.float32)
    problem = PartialTransport(cost, [3.0], ONES, 3.0)
    assert problem.value(np.ones((1, 3))) == 3 * float(np.float32(0.1))


@pytest.mark.parametrize(
    ("source", "target", "mass", "unit", "pairs"),
    [
        (ONES, np.ones(2), 2.0, 1.0, 2),
        (ONES, np.ones(2), 0.0, 1.0, 0),
        (ONES / 3, np.ones(2) / 3, 2 / 3 * (1 + 1e-12), 1 / 3, 2),
        (ONES / 3, np.ones(2) * (1 - 1e-12) / 3, 1 / 3, 1 / 3, 1),
        (ONES, np.ones(2), 1.5, None, None),
        (ONES, np.ones(2), 1 + 1e-8, None, None),
        (ONES, np.ones(2) * (1 + 1e-8), 1.0, None, None),
        (ONES, 2 * np.ones(2), 1.0, None, None),
        (np.zeros(3), np.zeros(2), 0.0, None, None),
    ],
)
def test_equal_weights_and_a_whole_multiple_make_pairs(source, target, mass, unit, pairs):
    problem = example(source=source, target=target, mass=mass)
    assert problem.unit == (None if unit is None else pytest.approx(unit, rel=1e-11))
    assert problem.pairs == pairs


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.floats(1e-6, 1e6), st.data())
def test_a_plan_of_whole_weights_is_feasible_wherever_there_is_a_unit(n, weight, data):
    jitter = st.floats(1 - 2e-9, 1 + 2e-9)
    source = [weight * data.draw(jitter) for _ in range(n)]
    k = data.draw(st.integers(0, n))
    problem = PartialTransport(np.zeros((n, n)), source, source, min(k * weight * data.draw(jitter), sum(source)))
    if problem.unit is not None:
        assert problem.is_feasible(problem.unit * np.diag(np.arange(n) < problem.pairs))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cost": [[1.0, np.nan]] * 3}, r"cost: nan at \(0, 1\)"),
        ({"cost": [[1.0, 2.0], [np.inf, 0.0], [0.0, 0.0]]}, r"cost: inf at \(1, 0\)"),
        ({"cost": np.full((3, 2), -np.inf, np.float32)}, r"cost: -inf at \(0, 0\)"),
        ({"cost": np.zeros((0, 2)), "source": []}, "cost: expected at least one row and one column"),
        ({"cost": np.zeros((3, 0)), "target": []}, "cost: expected at least one row and one column"),
        ({"cost": [1.0, 2.0]}, r"cost: expected shape \(any, any\), got \(2,\)"),
        ({"cost": "text"}, "cost: expected numbers"),
        ({"cost": [[1.0], [2.0, 3.0]]}, "cost: expected numbers"),
        ({"source": [1.0, 1.0]}, "source: expected 3 weights, one for each row of cost, got 2"),
        ({"target": ONES}, "target: expected 2 weights, one for each column of cost, got 3"),
        ({"source": [1.0, -0.5, 1.0]}, "source: expected weights of zero or more, got -0.5 at 1"),
        ({"target": [1.0, np.nan]}, r"target: nan at \(1,\)"),
        ({"mass": -0.1}, "mass: expected 0 or more, got -0.1; the largest that fits is 1.25"),
        ({"mass": 1.26}, "mass: 1.26 does not fit; the largest that does is 1.25 "),
        ({"mass": np.nan}, "mass: nan"),
        ({"mass": "much"}, "mass: expected numbers"),
        ({"source": [0.0, 0.0, 0.0]}, "mass: 1 does not fit; the largest that does is 0 "),
        ({"cost": 3e307 * COST, "mass": 1.0}, "cost and mass: .* divide the costs or the masses"),
        ({"cost": 1e307 * COST, "mass": 1e-6}, "cost and mass: .* divide the costs or the masses"),
        ({"source": [1e308] * 3, "mass": 1.0}, "source and target: .* divide them all"),
        ({"labels": ["a", "b", "c"]}, "labels: expected a pair"),
        ({"labels": (["a", "b"], ["c", "d"])}, "labels: expected one for each of n = 3"),
    ],
)
def test_nonsense_is_refused_by_name(changes, words):
    with pytest.raises(InvalidProblem, match=words):
        example(**changes)


def test_a_mass_above_what_fits_by_rounding_alone_is_cut():
    assert example(mass=1.25 * (1 + 1e-12)).mass == 1.25


def test_a_file_brings_it_back(tmp_path):
    labels = (("a", ("b", 1), 3), ["x", "y"])
    for problem in (example(labels=labels, meta={"layer": "fc1"}), example(cost=COST.astype(np.float32))):
        problem.save(tmp_path / "p.npz")
        again = PartialTransport.load(tmp_path / "p.npz")
        assert again.hash == problem.hash
        assert again.cost.dtype == problem.cost.dtype
        assert (again.labels, again.meta, again.mass) == (problem.labels, problem.meta, problem.mass)


def test_the_hash_is_of_the_content():
    changed = ({"mass": 0.5}, {"cost": COST + 1}, {"source": [0.5, 0.5, 0.5]}, {"target": [1.0, 0.5]})
    changed += ({"cost": COST.astype(np.float32)}, {"labels": (["a", "b", "c"], ["x", "y"])})
    hashes = [example().hash, *(example(**c).hash for c in changed)]
    assert len(set(hashes)) == len(hashes)
    assert example(meta={"a": 1}).hash == example(cost=np.asfortranarray(COST)).hash == example().hash
    assert example().replace(mass=0.5).hash == example(mass=0.5).hash


def test_damaged_files_are_said(tmp_path):
    BinaryQuadratic([1.0]).save(tmp_path / "other.npz")
    with pytest.raises(InvalidProblem, match=re.escape("expected a file of kind 'partial-transport'")):
        PartialTransport.load(tmp_path / "other.npz")
    example().save(tmp_path / "p.npz")
    arrays = dict(np.load(tmp_path / "p.npz"))
    np.savez(tmp_path / "q.npz", **{name: array for name, array in arrays.items() if name != "target"})
    with pytest.raises(InvalidProblem, match="an array is missing or damaged"):
        PartialTransport.load(tmp_path / "q.npz")
    np.savez(tmp_path / "q.npz", **(arrays | {"mass": np.array(9.0)}))
    with pytest.raises(InvalidProblem, match=r"q.npz: mass: 9 does not fit"):
        PartialTransport.load(tmp_path / "q.npz")
