"""The two errors weighted against each other: against raw contributions and gradients, and the forms it is made of."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.formulations import Fisher, Moonshot, Reconstruction
from prunesolve.formulations.testing import check_formulation, example_statistics
from prunesolve.problems import Blocks, Group, InvalidProblem, LowRank, Statistics
from prunesolve.solvers import Exact

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 10_000)


def groups(*sizes):
    return [Group(f"g{i}", s, [(f"g{i}", "out", np.arange(s)[:, None])]) for i, s in enumerate(sizes)]


@few
@given(seeds, st.floats(0.0, 1.0))
def test_it_is_the_weighted_mean_of_both_relative_errors_on_raw_data(seed, lam):
    """One consumer with its own outputs behind each of two groups; gradients of all units' gates."""
    rng = np.random.default_rng(seed)
    outputs = [rng.standard_normal((4, 30)), rng.standard_normal((3, 20))]
    gradients = rng.standard_normal((25, 7))  # (samples, n)
    grams = [u @ u.T / np.square(u.sum(axis=0)).sum() for u in outputs]
    stats = Statistics(
        groups(4, 3), blocks={"reconstruction": grams}, factors={"fisher": gradients.T / np.sqrt(len(gradients))}
    )
    keep = rng.random(7) < rng.random()
    lost = [
        np.square(u[~kept].sum(axis=0)).sum() / np.square(u.sum(axis=0)).sum()
        for u, kept in zip(outputs, np.split(keep, [4]), strict=True)
    ]
    taylor = np.square(gradients[:, ~keep].sum(axis=1)).mean() / np.square(gradients.sum(axis=1)).mean()
    expected = lam * sum(lost) / 2 + (1 - lam) * taylor  # each consumer loses all of itself: 2 in sum
    problem = Moonshot(lam=lam, minimum=0).encode(stats, keep=1.0)
    assert problem.value(keep) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert problem.value(np.zeros(7, dtype=bool)) == pytest.approx(1.0)
    assert problem.value(np.ones(7, dtype=bool)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("lam", "part", "storage"), [(1.0, Reconstruction, Blocks), (0.0, Fisher, LowRank)], ids=["one", "zero"]
)
@pytest.mark.parametrize("seed", range(3))
def test_at_either_end_it_is_the_other_form_over_a_number(lam, part, storage, seed):
    stats = example_statistics(seed)
    ours, theirs = Moonshot(lam=lam).encode(stats, keep=5), part().encode(stats, keep=5)
    unit = theirs.offset
    assert isinstance(ours.quadratic, storage)
    assert ours.offset == pytest.approx(1.0)
    for name in ("linear", "diagonal"):
        np.testing.assert_allclose(unit * getattr(ours, name), getattr(theirs, name), rtol=1e-12)
    np.testing.assert_allclose(unit * ours.couplings.dense(), theirs.couplings.dense(), rtol=1e-12, atol=1e-15)
    answers = [Exact().solve(problem).solution for problem in (ours, theirs)]
    np.testing.assert_array_equal(*answers)


@few
@given(seeds, st.floats(0.0, 1.0), st.booleans())
def test_its_natural_diagonal_is_that_of_a_gram_and_tight(seed, lam, concat):
    stats = example_statistics(seed, concat=concat)
    problem = Moonshot(lam=lam).encode(stats, keep=0.5)
    form = problem.couplings.dense() / 2 + np.diag(problem.diagonal)
    assert np.linalg.eigvalsh(form)[0] > -1e-12
    # p' form p for every p of one removed unit: the diagonal is nothing but what each unit costs alone
    alone = [problem.value(np.arange(stats.n) != i) for i in range(stats.n)]
    np.testing.assert_allclose(problem.diagonal, alone, atol=1e-9)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("minimum", [0, 2])
def test_it_keeps_its_word(lam, minimum):
    check_formulation(Moonshot(lam=lam, minimum=minimum))


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_contributions_that_cancel_count_by_the_units_alone(lam):
    """Behind a normalisation the derivative by a common scale is zero, so removing everything costs nothing."""
    first = np.random.default_rng(0).standard_normal((9, 20))
    cancelling = np.vstack([first, -first.sum(axis=0)])
    whole = example_statistics()
    stats = Statistics(whole.groups, whole.saliency, whole.blocks, {"fisher": cancelling}, whole.cost, whole.pair_cost)
    problem = Moonshot(lam=lam, minimum=0).encode(stats, keep=1.0)
    single = np.square(cancelling).sum(axis=1)
    for i, j in itertools.combinations(range(10), 2):
        keep = ~np.isin(np.arange(10), [i, j])
        taylor = np.square(cancelling[i] + cancelling[j]).sum() / single.sum()
        gram = Reconstruction().meaning(stats, keep) / Reconstruction().meaning(stats, np.zeros(10, dtype=bool))
        assert problem.value(keep) == pytest.approx(lam * gram + (1 - lam) * taylor, rel=1e-9)
    check_formulation(Moonshot(lam=lam), stats)


def test_without_any_gradient_the_reconstruction_decides():
    whole = example_statistics()
    flat = Statistics(whole.groups, blocks=whole.blocks, factors={"fisher": np.zeros((10, 3))})
    ours, theirs = Moonshot(lam=0.4).encode(flat, keep=5), Moonshot(lam=1.0).encode(flat, keep=5)
    np.testing.assert_allclose(ours.couplings.dense(), 0.4 * theirs.couplings.dense())


def test_a_weight_of_nothing_needs_nothing_measured():
    whole = example_statistics()
    no_labels = Statistics(whole.groups, blocks=whole.blocks)
    assert Moonshot(lam=1.0).encode(no_labels, keep=5).k == 5
    with pytest.raises(InvalidProblem, match=r"moonshot needs factors 'fisher'"):
        Moonshot(lam=0.9).encode(no_labels, keep=5)


@pytest.mark.parametrize("lam", [-0.1, 1.1, float("nan"), True, "half"])
def test_a_weight_outside_of_zero_to_one_is_refused(lam):
    with pytest.raises(InvalidProblem, match="lam: expected a number from 0 to 1"):
        Moonshot(lam=lam)
