"""Partial fusion: the problem it states, and what a plan makes of two layers."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.spatial.distance import cdist

from prunesolve.formulations import PartialFusion
from prunesolve.formulations.partial_fusion import Coupling, squared_distances
from prunesolve.formulations.testing import check_formulation
from prunesolve.problems import InvalidProblem

RNG = np.random.default_rng(0)
A, B, WIDE = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 3)), RNG.standard_normal((6, 3))


@pytest.mark.parametrize(
    "formulation", [PartialFusion(0.8), PartialFusion(0.3, whole=True), PartialFusion(0.0)], ids=repr
)
def test_options_keep_their_word(formulation):
    check_formulation(formulation)


def test_costs_are_squared_distances():
    np.testing.assert_allclose(squared_distances(A, WIDE), cdist(A, WIDE, "sqeuclidean"))
    np.testing.assert_allclose(PartialFusion().encode(A, WIDE).cost, cdist(A, WIDE, "sqeuclidean"))
    assert squared_distances(A + 1e8, A + 1e8).min() >= 0


@pytest.mark.parametrize(
    ("alpha", "pairs"), [(0.0, 4), (0.1, 4), (0.125, 4), (0.126, 3), (0.4, 2), (0.5, 2), (0.9, 0), (1.0, 0)]
)
def test_equal_widths_fuse_whole_pairs_halves_rounded_up(alpha, pairs):
    assert PartialFusion(alpha).encode(A, B).pairs == pairs
    assert PartialFusion(alpha, whole=True).encode(A, WIDE).pairs == pairs


def test_different_widths_have_uniform_measures():
    problem = PartialFusion(0.25).encode(A, WIDE)
    np.testing.assert_allclose(problem.source, 1 / 4)
    np.testing.assert_allclose(problem.target, 1 / 6)
    assert problem.mass == 0.75
    assert problem.pairs is None


def test_the_least_plan_is_the_best_partial_assignment():
    problem = PartialFusion(0.5).encode(A, B)
    plans = []
    for rows in combinations(range(4), 2):
        for columns in permutations(range(4), 2):
            plan = np.zeros((4, 4))
            plan[rows, columns] = 0.25
            plans.append((problem.value(plan), rows, columns, plan))
    value, rows, columns, plan = min(plans, key=lambda found: found[0])
    coupling = PartialFusion(0.5).decode(problem, plan)
    assert set(coupling.fused_a) == set(rows)
    assert set(coupling.fused_b) == set(columns)
    assert value == pytest.approx(PartialFusion().meaning(coupling, A, B))


@st.composite
def plans(draw):
    """(plan, source, target) of any widths; some units whole, some split, some left."""
    n, m = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    plan = rng.random((n, m)) * (rng.random((n, m)) < draw(st.sampled_from([0.0, 0.3, 1.0])))
    whole = rng.random(n) < 0.5, rng.random(m) < 0.5
    source = plan.sum(axis=1) * np.where(whole[0], 1.0, 1.5) + (plan.sum(axis=1) == 0)
    target = plan.sum(axis=0) * np.where(whole[1], 1.0, 2.0) + (plan.sum(axis=0) == 0)
    return plan, source, target


@given(plans())
def test_kernels_are_means(found):
    plan, source, target = found
    coupling = Coupling(plan, source, target)
    np.testing.assert_allclose(coupling.forward.sum(axis=1), 1)
    np.testing.assert_allclose(coupling.backward.sum(axis=1), 1)
    np.testing.assert_allclose(coupling.read_a.sum(axis=1), 1)
    np.testing.assert_allclose(coupling.read_b.sum(axis=1), 1)
    np.testing.assert_allclose(coupling.share_a, plan.sum(axis=1) / source)
    np.testing.assert_allclose(coupling.share_b, plan.sum(axis=0) / target)
    met = plan[np.ix_(coupling.fused_a, coupling.fused_b)]
    np.testing.assert_allclose(coupling.forward.toarray(), (met / met.sum(axis=0)).T)
    np.testing.assert_allclose(coupling.backward.toarray(), met / met.sum(axis=1, keepdims=True))
    a, f = len(coupling.alone_a), len(coupling.fused_b)
    assert coupling.width == a + f + len(coupling.alone_b)
    for weight in (0.3, 1.0):
        made = coupling.make_a(weight).toarray(), coupling.make_b(1 - weight).toarray()
        rows = [part.sum(axis=1) for part in made]
        np.testing.assert_allclose(rows[0], np.repeat([1, weight, 0], [a, f, len(coupling.alone_b)]), atol=1e-12)
        np.testing.assert_allclose(rows[1], np.repeat([0, 1 - weight, 1], [a, f, len(coupling.alone_b)]), atol=1e-12)


@given(plans())
def test_constants_pass_unchanged(found):
    """What all units of both layers agree on is read off the fused layer as it was."""
    coupling = Coupling(*found)
    fused = coupling.make_a(0.4) @ np.full(coupling.n_a, 7.0) + coupling.make_b(0.6) @ np.full(coupling.n_b, 7.0)
    np.testing.assert_allclose(fused, 7)
    np.testing.assert_allclose(coupling.read_a @ fused, 7)
    np.testing.assert_allclose(coupling.read_b @ fused, 7)


def test_whole_pairs_identity_and_nothing():
    coupling = Coupling.matched([2, 0], [1, 3], 3, 4)
    assert (coupling.fused_a.tolist(), coupling.alone_a.tolist()) == ([0, 2], [1])
    assert (coupling.fused_b.tolist(), coupling.alone_b.tolist()) == ([1, 3], [0, 2])
    # fused units come in B's order: unit 1 of B, which is 2 of A, first
    assert coupling.read_a.toarray().tolist() == [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert coupling.read_b.toarray().tolist() == [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]
    assert np.array_equal(Coupling.identity(3).read_a.toarray(), np.eye(3))
    assert np.array_equal(Coupling.permutation([2, 0, 1]).forward.toarray(), np.eye(3)[[2, 0, 1]])
    apart = Coupling.apart(2, 1)
    assert (apart.width, len(apart.fused_b), apart.forward.shape) == (3, 0, (0, 0))


def test_masses_of_rounding_do_not_split_units():
    plan = np.diag([1.0, 1 - 1e-12, 1e-12])
    coupling = Coupling(plan, np.ones(3), np.ones(3))
    assert coupling.fused_a.tolist() == [0, 1]
    assert coupling.alone_a.tolist() == [2]


def test_plans_sparse_or_dense_are_the_same():
    problem = PartialFusion(0.5).encode(A, B)
    plan = np.zeros((4, 4))
    plan[0, 1] = plan[3, 2] = 0.25
    dense, csr = (PartialFusion(0.5).decode(problem, p) for p in (plan, sparse.coo_array(plan)))
    assert np.array_equal(dense.plan.toarray(), csr.plan.toarray())


def test_bad_input_is_refused_in_words():
    with pytest.raises(InvalidProblem, match="alpha: expected a number from 0 to 1, got 1.2"):
        PartialFusion(1.2)
    with pytest.raises(InvalidProblem, match="whole: expected True or False"):
        PartialFusion(whole=1)
    with pytest.raises(InvalidProblem, match="rows of one length, got 3 and 2"):
        PartialFusion().encode(A, B[:, :2])
    with pytest.raises(InvalidProblem, match="at least one row"):
        PartialFusion().encode_cost([])
    problem = PartialFusion(0.5).encode(A, B)
    with pytest.raises(InvalidProblem, match="no solution"):
        PartialFusion().decode(problem, None)
    with pytest.raises(InvalidProblem, match="keeps the masses"):
        PartialFusion().decode(problem, np.zeros((4, 4)))
    with pytest.raises(InvalidProblem, match="masses of zero or more"):
        Coupling([[-1.0]], [1.0], [1.0])
    with pytest.raises(InvalidProblem, match="more than target holds"):
        Coupling([[1.0], [1.0]], [1.0, 1.0], [1.0])
