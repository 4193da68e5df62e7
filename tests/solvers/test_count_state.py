"""The probability tensor against enumeration, finite differences and tntorch's automata."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.problems import BinaryQuadratic, BlackBox, Cardinality, GroupBounds, LevelTuples, Selections
from prunesolve.solvers._count_state import ProbabilityTensor, in_order, of_levels, of_selections
from prunesolve.solvers._modes import Modes
from prunesolve.solvers._undecided import undecided

SPREAD = np.array([0, 1, 0, -1, 2, 1, 0, 2])  # groups that are not contiguous
BOUNDS = GroupBounds(SPREAD, [1, 0, 1], [2, 1, 1])
SPACES = {
    "unconstrained": Selections(8),
    "cardinality": Selections(8, [Cardinality(3)]),
    "group bounds": Selections(8, [BOUNDS]),
    "cardinality and group bounds": Selections(8, [Cardinality(4), BOUNDS]),
    "at least one of each group": Selections(8, [Cardinality(5), GroupBounds(SPREAD, [1, 1, 1], [8, 8, 8])]),
    "levels of exact cost": LevelTuples([[1, 2, 3], [2, 4], [0, 1, 2, 3], [5, 1]], 7),
    "levels within a budget": LevelTuples([[1, 2, 3], [2, 4], [0, 1, 2, 3], [5, 1]], 7, exact=False),
}


def every(space):
    """All feasible points (p, n) and the modes that read them."""
    levels = [2] * space.n if isinstance(space, Selections) else space.sizes
    points = np.array(list(itertools.product(*map(range, levels))))
    points = points.astype(bool) if isinstance(space, Selections) else points
    return points[space.is_feasible(points)]


def states_of(space):
    if isinstance(space, LevelTuples):
        return of_levels(space), np.arange(space.n)
    units = in_order(space, np.arange(space.n))
    return of_selections(space, units, np.zeros(space.n, dtype=bool)), units


def drawn(space, rank, seed=0):
    """A tensor of random cores and the feasible levels (p, m)."""
    states, order = states_of(space)
    logits = np.random.default_rng(seed).normal(0.0, 1.5, (states.modes, rank, states.sizes.max(), rank))
    return ProbabilityTensor(states, logits), every(space)[:, order].astype(np.int16)


def written_out(tensor, levels):
    """(p,) probabilities of the rows by multiplying the cores one after the other."""
    weights = []
    for row in levels:
        product = np.ones(tensor.rank)
        for i, s in enumerate(row):
            product = product @ np.exp(tensor.logits[i, :, s, :])
        weights.append(product.sum())
    return np.array(weights) / np.sum(weights)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", SPACES)
def test_the_likelihood_is_the_enumerated_one(name, rank):
    tensor, levels = drawn(SPACES[name], rank)
    told = np.array([tensor.log_likelihood(row[None]) for row in levels])
    assert np.allclose(np.exp(told), written_out(tensor, levels), rtol=1e-10)
    assert np.isclose(np.exp(told).sum(), 1.0)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", SPACES)
def test_samples_come_as_often_as_they_should(name, rank):
    tensor, levels = drawn(SPACES[name], rank)
    expected = written_out(tensor, levels)
    draws = 20_000
    index = {row.tobytes(): i for i, row in enumerate(levels)}
    seen = [index[row.tobytes()] for row in tensor.sample(draws, np.random.default_rng(1))]
    count = np.bincount(seen, minlength=len(levels))
    # six standard deviations of each frequency
    assert (np.abs(count - draws * expected) <= 6 * np.sqrt(draws * expected) + 1).all()
    marginal = sum(
        p * (row[:, None] == np.arange(tensor.logits.shape[2])) for p, row in zip(expected, levels, strict=True)
    )
    assert np.allclose(tensor.marginals(), marginal)


@pytest.mark.parametrize("name", SPACES)
def test_the_gradient_is_that_of_finite_differences(name):
    tensor, levels = drawn(SPACES[name], 2)
    some, step = levels[:3], 1e-5
    gradient = tensor.gradient(some)
    for at in itertools.islice(np.ndindex(tensor.logits.shape), 0, None, 5):
        if at[2] >= tensor.states.sizes[at[0]]:
            assert gradient[at] == 0.0
            continue
        sides = []
        for sign in (step, -step):
            logits = tensor.logits.copy()
            logits[at] += sign
            sides.append(ProbabilityTensor(tensor.states, logits).log_likelihood(some))
        assert np.isclose(gradient[at], (sides[0] - sides[1]) / (2 * step), atol=1e-7)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 2), (6, 1), (9, 5)])
def test_the_indicator_is_the_automaton_of_tntorch(n, k):
    tntorch = pytest.importorskip("tntorch")
    states, _ = states_of(Selections(n, [Cardinality(k)]))
    reached = np.zeros((2,) * n)
    for point in itertools.product([0, 1], repeat=n):
        q = 0
        for bit in point:
            q = states.to[q, bit] if q >= 0 else -1
        reached[point] = q >= 0
    # its masks need two modes at least
    expected = tntorch.weight_mask(n, k).numpy() if n > 1 else np.array([0.0, 1.0])
    assert np.array_equal(reached, expected)


@st.composite
def bounded(draw):
    """A selection and the space of group bounds and perhaps a cardinality that it meets."""
    n = draw(st.integers(1, 12))
    x = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    group = np.array(draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n)))
    kept = np.bincount(group[x & (group >= 0)], minlength=4)
    low = [max(0, k - draw(st.integers(0, 2))) for k in kept]
    high = [k + draw(st.integers(0, 3)) for k in kept]
    constraints = [GroupBounds(group, low, high)]
    if draw(st.booleans()):
        constraints.append(Cardinality(int(x.sum())))
    units = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
    return Selections(n, constraints), x, np.sort(units)


@settings(max_examples=150, deadline=None)
@given(case=bounded(), seed=st.integers(0, 99))
def test_every_sample_is_feasible_and_leaves_the_others_alone(case, seed):
    space, x, units = case
    modes = Modes.of(BlackBox(space, lambda rows: rows.sum(axis=1)), x, units)
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 10.0, (modes.states.modes, 2, 2, 2))
    points = modes.points(ProbabilityTensor(modes.states, logits).sample(20, rng))
    assert space.is_feasible(points).all()
    frozen = np.setdiff1d(np.arange(space.n), units)
    assert (points[:, frozen] == x[frozen]).all()


def test_a_thousand_units_under_lopsided_weights_stay_in_range():
    """Every unit all but refuses to be kept, and 650 must be."""
    states, _ = states_of(Selections(1024, [Cardinality(650)]))
    weights = np.stack([np.zeros(1024), np.linspace(-30.0, -5.0, 1024)], axis=1)
    tensor = ProbabilityTensor.product(states, weights)
    assert (tensor.sample(5, np.random.default_rng(0)).sum(axis=1) == 650).all()
    marginals = tensor.marginals()
    assert np.isclose(marginals[:, 1].sum(), 650.0)
    assert (np.diff(marginals[:, 1]) >= -1e-12).all()


def test_rank_two_learns_a_correlation_that_rank_one_cannot():
    points = np.array([[0, 0], [1, 1]], dtype=np.int16)
    reached = {}
    for rank in (1, 2):
        states, _ = states_of(Selections(2))
        tensor = ProbabilityTensor.product(states, np.zeros((2, 2))).mixed(rank, np.random.default_rng(0))
        tensor.ascend(points, 400, 0.1)
        reached[rank] = tensor.log_likelihood(points)
    # half of the points each: no product does better than a quarter
    assert np.isclose(reached[1], np.log(0.25), atol=1e-6)
    assert np.isclose(reached[2], np.log(0.5), atol=0.01)


def test_a_peaked_tensor_moves_about_as_many_modes_as_asked():
    rng = np.random.default_rng(0)
    problem = BinaryQuadratic(rng.normal(size=200), constraints=[Cardinality(80)])
    x = np.arange(200) < 80
    modes = Modes.of(BlackBox.of(problem), x, np.arange(200))
    samples = modes.peaked(modes.levels(x), modes.guessed_changes(x), 6, 1.0).sample(500, rng)
    assert 3.0 < (samples != modes.levels(x)).sum(axis=1).mean() < 9.0


@pytest.mark.parametrize("constraints", [[], [Cardinality(3)]])
def test_the_undecided_units_are_those_of_smallest_margin(constraints):
    rng = np.random.default_rng(1)
    coupled = np.triu(rng.normal(size=(7, 7)), 1)
    problem = BinaryQuadratic(rng.normal(size=7), coupled + coupled.T, constraints=constraints)
    x = np.arange(7) < 3
    fields = problem.linear + (coupled + coupled.T) @ x
    mu = (fields[:3].max() + fields[3:].min()) / 2 if constraints else 0.0
    assert undecided(problem, x, 3).tolist() == sorted(np.argsort(np.abs(fields - mu))[:3])
    assert undecided(problem, x, 0).tolist() == undecided(problem, x, 9).tolist() == list(range(7))
