import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve import solvers
from prunesolve.problems import (
    BinaryQuadratic,
    BlackBox,
    Budget,
    Cardinality,
    GroupBounds,
    InvalidProblem,
    LevelTuples,
    Selections,
)
from prunesolve.solvers._base import Run
from prunesolve.solvers._change_model import ChangeModel
from prunesolve.solvers._evaluations import Evaluations
from prunesolve.solvers._proposals import LevelMoves, UnitMoves
from prunesolve.solvers._value_model import ValueModel
from prunesolve.solvers.swap_search import SwapSearch
from prunesolve.solvers.testing import check_solver

RANKINGS = ("learned", "surrogate", "random", "halved")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    # the defaults are in test_battery.py
    [
        {"ranking": "random"},
        {"ranking": "halved"},
        {"ranking": "surrogate"},
        {"proposals": 1, "bundle": 1, "ranking": "random"},
    ],
)
def test_battery(options):
    check_solver(SwapSearch(**options))


def all_selections(n):
    return np.array(list(itertools.product([False, True], repeat=n)))


def quadratic_and_cubic(n, seed):
    """A quadratic surrogate and a truth with three-body terms beside it."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(0, 1, (n, n)), 1)
    triples = np.array([rng.choice(n, 3, replace=False) for _ in range(2 * n)])
    weights = rng.normal(0, 1, len(triples))
    quadratic = BinaryQuadratic(rng.normal(0, 1, n), upper + upper.T)

    def truth(x):
        return quadratic.value(x) + (x[:, triples[:, 0]] & x[:, triples[:, 1]] & x[:, triples[:, 2]]) @ weights

    return quadratic, truth


class Counted:
    """The mean of batches that disagree a little; remembers what was asked."""

    def __init__(self, truth, batches, spread=0.3):
        self.truth, self.batches, self.spread = truth, batches, spread
        self.asked = []

    def __call__(self, x, batch=0):
        self.asked += [(row.tobytes(), batch) for row in x]
        offset = self.spread * np.sin(x @ np.arange(1.0, x.shape[1] + 1) + batch)
        return self.truth(x) + offset


CONSTRAINTS = {
    "unconstrained": [],
    "cardinality": [Cardinality(4)],
    "groups": [GroupBounds(np.repeat([0, 1, 2], 3), [1, 1, 1], [1, 2, 2])],
    "exact groups": [GroupBounds(np.repeat([0, 1, 2], 3), [2, 1, 1], [2, 1, 1])],
    "budget": [Budget(np.arange(1.0, 10.0), 20.0)],
    "bilinear": [Budget(np.ones(9), 12.0, 1.0 * (np.abs(np.subtract.outer(range(9), range(9))) == 1))],
    "all": [Cardinality(4), GroupBounds(np.repeat([0, 1, 2], 3), [1, 1, 1], [2, 2, 2]), Budget(np.arange(1.0, 10), 20)],
}


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("with_surrogate", [True, False])
@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_enumerated_optimum(kind, with_surrogate, batches):
    for seed in range(2):
        surrogate, truth = quadratic_and_cubic(9, seed)
        space = Selections(9, CONSTRAINTS[kind])
        counted = Counted(truth, batches, spread=0.0)
        box = BlackBox(space, counted, surrogate if with_surrogate else None, np.ones(batches))
        rows = all_selections(9)
        optimum = truth(rows[space.is_feasible(rows)]).min()
        result = SwapSearch().solve(box, seed=seed)
        assert result.feasible
        assert result.objective == pytest.approx(optimum)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_ends_by_itself_before_its_own_count(ranking):
    surrogate, truth = quadratic_and_cubic(6, 0)
    box = BlackBox(Selections(6, [Cardinality(3)]), truth, surrogate)
    result = SwapSearch(ranking=ranking, evaluations=10**9).solve(box)
    assert result.evaluations <= math.comb(6, 3)


def test_own_count_ends_it():
    surrogate, truth = quadratic_and_cubic(40, 0)
    result = SwapSearch(evaluations=50).solve(BlackBox(Selections(40, [Cardinality(20)]), truth, surrogate))
    assert 50 <= result.evaluations <= 50 + 20


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_moves_keep_every_constraint_and_a_start_is_never_lost(data):
    n = data.draw(st.integers(2, 10))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    start = rng.random(n) < 0.5
    # constraints that the start meets
    constraints = []
    if data.draw(st.booleans()):
        constraints.append(Cardinality(int(start.sum())))
    if data.draw(st.booleans()):
        group = rng.integers(-1, 3, n)
        kept = np.bincount(group[(group >= 0) & start], minlength=3)
        slack = data.draw(st.integers(0, 1))
        sizes = np.bincount(group[group >= 0], minlength=3)
        constraints.append(GroupBounds(group, np.maximum(kept - slack, 0), np.minimum(kept + slack, sizes)))
    if data.draw(st.booleans()):
        pair = np.triu(rng.integers(0, 2, (n, n)), 1).astype(float)
        budget = Budget(rng.integers(0, 4, n).astype(float), 1e6, pair + pair.T)
        constraints.append(Budget(budget.cost, float(budget.spent(start)) + data.draw(st.integers(0, 3)), budget.pair))
    surrogate, truth = quadratic_and_cubic(max(n, 3), 1)
    asked = Counted(lambda x: truth(np.pad(x, ((0, 0), (0, max(n, 3) - n)))), 2)
    known = BinaryQuadratic(surrogate.linear[:n], surrogate.couplings.dense()[:n, :n])
    space = Selections(n, constraints)
    box = BlackBox(space, asked, known if data.draw(st.booleans()) else None, [1.0, 2.0])
    ranking = data.draw(st.sampled_from(RANKINGS))
    result = SwapSearch(ranking=ranking).solve(box, start=start, evaluation_limit=30)
    assert result.feasible
    assert result.objective <= box.value(start)
    points = np.array([np.frombuffer(key, dtype=bool) for key, _ in asked.asked])
    assert space.is_feasible(points).all()


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("batches", [1, 3, 4])
def test_the_black_box_sees_what_the_run_counts(ranking, batches):
    surrogate, truth = quadratic_and_cubic(20, 0)
    counted = Counted(truth, batches)
    box = BlackBox(Selections(20, [Cardinality(9)]), counted, surrogate, np.ones(batches))
    result = SwapSearch(ranking=ranking).solve(box, evaluation_limit=60)
    assert len(counted.asked) == len(set(counted.asked))
    assert result.evaluations == math.ceil(len(counted.asked) / batches - 1e-9) <= 60


def test_what_loses_a_look_costs_less_than_an_evaluation():
    surrogate, truth = quadratic_and_cubic(30, 0)
    counted = Counted(truth, 8)
    box = BlackBox(Selections(30, [Cardinality(15)]), counted, surrogate, np.ones(8))
    SwapSearch().solve(box, evaluation_limit=60)
    asked = {}
    for key, batch in counted.asked:
        asked.setdefault(key, set()).add(batch)
    looks = np.array([len(batches) for batches in asked.values()])
    # far more points than evaluations, most of them dropped after a look or two
    assert len(looks) > 120
    assert np.median(looks) <= 2
    assert looks.max() == 8
    assert set(looks) <= {1, 2, 4, 8}


def test_stages_double_up_to_all_batches():
    def stages(batches):
        box = BlackBox(Selections(2), lambda x, _: x[:, 0] * 1.0, None, np.ones(batches))
        return Evaluations(box, Run(box, seed=0)).stages

    assert [stages(b) for b in (1, 2, 3, 4, 6, 16)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8, 16],
    ]  # fmt: skip


def test_only_the_undecided_units_move():
    surrogate, truth = quadratic_and_cubic(12, 0)
    counted = Counted(truth, 1)
    box = BlackBox(Selections(12, [Cardinality(6)]), counted, surrogate)
    start = np.arange(12) < 6
    SwapSearch(undecided=5).solve(box, start=start, evaluation_limit=40)
    points = np.array([np.frombuffer(key, dtype=bool) for key, _ in counted.asked])
    assert 1 < (points != start).any(axis=0).sum() <= 5


def test_a_point_without_value_is_passed_by():
    surrogate, truth = quadratic_and_cubic(9, 0)
    space = Selections(9, [Cardinality(4)])

    def patchy(x):
        return np.where(x[:, 0], np.nan, truth(x))

    rows = all_selections(9)
    rows = rows[space.is_feasible(rows) & ~rows[:, 0]]
    start = np.arange(9) < 4  # without a value itself
    result = SwapSearch().solve(BlackBox(space, patchy, surrogate), start=start)
    assert result.objective == pytest.approx(truth(rows).min())
    assert result.details["failures"]


def levels_truth(sizes, seed):
    rng = np.random.default_rng(seed)
    tables = [np.sort(rng.random(s))[::-1] for s in sizes]
    mixed = rng.normal(0, 0.3, len(sizes))

    def truth(x):
        separable = sum(table[x[:, i]] for i, table in enumerate(tables))
        return separable + 0.1 * np.sin((x @ mixed) * 3.0)

    return truth


class Separable:
    """A surrogate of level tuples: the level alone, without what mixes coordinates."""

    def __init__(self, sizes):
        self.sizes = np.asarray(sizes)

    def value(self, x):
        values = -(np.atleast_2d(x) / self.sizes).sum(axis=1)
        return float(values[0]) if np.ndim(x) == 1 else values


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("with_surrogate", [True, False])
@pytest.mark.parametrize("batches", [1, 2])
def test_level_tuples(exact, with_surrogate, batches):
    sizes = (4, 5, 3, 4)
    space = LevelTuples([np.arange(s) for s in sizes], budget=7, exact=exact)
    truth = levels_truth(sizes, 0)
    counted = Counted(truth, batches, spread=0.0)
    box = BlackBox(space, counted, Separable(sizes) if with_surrogate else None, np.ones(batches))
    rows = np.array(list(itertools.product(*map(range, sizes))))
    optimum = truth(rows[space.is_feasible(rows)]).min()
    result = SwapSearch().solve(box)
    assert result.objective == pytest.approx(optimum)
    points = np.array([np.frombuffer(key, dtype=np.int64) for key, _ in counted.asked])
    assert space.is_feasible(points).all()


def test_level_tuples_whose_costs_differ():
    space = LevelTuples([[0, 3, 7], [0, 2, 4, 5], [1, 6]], budget=11)
    rows = np.array(list(itertools.product(range(3), range(4), range(2))))
    feasible = rows[space.is_feasible(rows)]
    target = feasible[len(feasible) // 2]
    box = BlackBox(space, lambda x: np.abs(x - target).sum(axis=1).astype(float))
    # two-coordinate switches may not connect all tuples; the start reaches what they do
    result = SwapSearch().solve(box, start=feasible[0])
    assert result.feasible
    assert result.objective <= np.abs(feasible[0] - target).sum()


def test_repeats_under_a_seed():
    surrogate, truth = quadratic_and_cubic(24, 0)
    space = Selections(24, [Cardinality(11)])
    told = [
        SwapSearch().solve(BlackBox(space, Counted(truth, 4), surrogate, np.ones(4)), seed=seed, evaluation_limit=80)
        for seed in (3, 3, 4)
    ]
    assert np.array_equal(told[0].solution, told[1].solution)
    assert told[0].evaluations == told[1].evaluations
    assert told[0].objective == told[1].objective


def test_learning_beats_random_swaps_at_equal_evaluations():
    gains = {}
    for ranking in ("learned", "random"):
        found = []
        for seed in range(4):
            surrogate, truth = quadratic_and_cubic(48, seed)
            problem = surrogate.replace(constraints=[Cardinality(24)])
            box = BlackBox.over(problem, Counted(truth, 4, spread=0.0), np.ones(4))
            start = np.arange(48) < 24
            result = SwapSearch(ranking=ranking).solve(box, start=start, seed=seed, evaluation_limit=100)
            found.append(box.value(start) - result.objective)
        gains[ranking] = np.mean(found)
    assert gains["learned"] > 1.2 * gains["random"]


def test_halved_looks_without_a_surrogate():
    surrogate, truth = quadratic_and_cubic(30, 0)
    space = Selections(30, [Cardinality(15)])
    asked = []
    for known in (surrogate, surrogate.replace(linear=np.zeros(30))):
        counted = Counted(truth, 8)
        start = np.arange(30) < 15
        solver = SwapSearch(ranking="halved")
        solver.solve(BlackBox(space, counted, known, np.ones(8)), start=start, seed=0, evaluation_limit=40)
        asked.append(counted.asked)
    # what the surrogate says plays no part
    assert asked[0] == asked[1]
    looks = np.unique([key for key, _ in asked[0]], return_counts=True)[1]
    assert len(looks) > 80
    assert set(looks) <= {1, 2, 4, 8}


def monomials(codes, degree):
    pairs = itertools.combinations(range(codes.shape[1]), degree)
    return np.array([codes[:, list(p)].prod(axis=1) for p in pairs]).T


@pytest.mark.parametrize("parts", [1, 3])
def test_value_model_is_regression_on_monomials(parts):
    rng = np.random.default_rng(0)
    n, m = 6, 7  # below the number from which the variances are fitted
    codes, guesses, values = 2.0 * (rng.random((m, n)) < 0.5) - 1.0, rng.normal(size=m), rng.normal(size=m)
    new, new_guesses = 2.0 * (rng.random((5, n)) < 0.5) - 1.0, rng.normal(size=5)
    model = ValueModel(n, guided=True)
    for some in np.array_split(np.arange(m), parts):
        model.learn(codes[some], guesses[some], values[some])
    # single 1, pair 1, triple 0.3, surrogate 0.05, noise 0.01, each order shared by its monomials
    prior = np.repeat([1.0, 1.0 / 6, 1.0 / 15, 0.3 / 20, 0.05], [1, 6, 15, 20, 1])

    def features(c, g):
        return np.hstack([np.ones((len(c), 1)), *(monomials(c, d) for d in (1, 2, 3)), g[:, None]])

    known, level = features(codes, guesses), np.median(values - guesses)
    missed = values - guesses - level
    precision = known.T @ known / 0.01 + np.diag(1 / prior)
    weights = np.linalg.solve(precision, known.T @ missed / 0.01)
    told = features(new, new_guesses)
    np.testing.assert_allclose(model.mean(new, new_guesses), new_guesses + level + told @ weights, rtol=1e-7)
    size = missed @ np.linalg.solve(known @ np.diag(prior) @ known.T + 0.01 * np.eye(m), missed) / m
    variance = size * np.einsum("pi,ip->p", told, np.linalg.solve(precision, told.T))
    np.testing.assert_allclose(model.deviation(new, new_guesses), np.sqrt(variance), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_value_model_knows_a_cubic_after_few_values(scale):
    rng = np.random.default_rng(0)
    surrogate, truth = quadratic_and_cubic(9, 0)
    rows = all_selections(9)
    seen = rng.permutation(len(rows))[:300]
    guesses, values = surrogate.value(rows) * scale, truth(rows) * scale
    codes = 2.0 * rows - 1.0
    model = ValueModel(9, guided=False)
    for some in np.array_split(seen, 40):
        model.learn(codes[some], np.zeros(len(some)), values[some] - guesses[some])
    others = np.setdiff1d(np.arange(len(rows)), seen)
    predicted = model.mean(codes[others], np.zeros(len(others)))
    assert np.corrcoef(predicted / scale, (values - guesses)[others] / scale)[0, 1] > 0.99


def test_value_model_forgets_the_highest():
    rng = np.random.default_rng(0)
    codes = 2.0 * (rng.random((1500, 12)) < 0.5) - 1.0
    values = codes @ rng.normal(size=12)
    model = ValueModel(12, guided=False)
    for some in np.array_split(np.arange(1500), 3):
        model.learn(codes[some], np.zeros(len(some)), values[some])
    low = np.argsort(values)[:200]
    np.testing.assert_allclose(model.mean(codes[low], np.zeros(200)), values[low], atol=0.05 * values.std())


def three_body(seed):
    """64 units of which 32 are kept, 400 three-body terms that the surrogate does not know of, and their tensor."""
    rng = np.random.default_rng(seed)
    n, triples = 64, 400
    upper = np.triu(rng.normal(0.0, n**-0.5, (n, n)), 1)
    quadratic = BinaryQuadratic(rng.normal(size=n), upper + upper.T, constraints=[Cardinality(n // 2)])
    members = np.array([rng.choice(n, 3, replace=False) for _ in range(triples)])
    weights = rng.normal(0.0, 0.4, triples)
    cubic = np.zeros((n, n, n))
    for order in itertools.permutations(range(3)):
        np.add.at(cubic, tuple(members[:, order].T), weights)
    return BlackBox.over(quadratic, lambda x: quadratic.value(x) + x[:, members].all(axis=2) @ weights), cubic


def descended(box, cubic, x):
    """Steepest descent by single swaps, every one tried by its exact change; some 15,000 evaluations' worth."""
    quadratic = box.surrogate
    while True:
        second = quadratic.quadratic + cubic @ x
        first = quadratic.linear + second @ x - 0.5 * cubic @ x @ x
        out, come = np.flatnonzero(x), np.flatnonzero(~x)
        change = first[come] - first[out][:, None] - second[np.ix_(out, come)]
        if change.min() > -1e-9:
            return box.value(x)
        i, j = np.unravel_index(change.argmin(), change.shape)
        x = x.copy()
        x[out[i]], x[come[j]] = False, True


@pytest.mark.slow
def test_three_body_gap_after_a_thousand_evaluations():
    gaps = []
    for seed in range(3):
        (box, cubic), rng = three_body(seed), np.random.default_rng(seed)
        start = solvers.get("swap-tabu").solve(box.surrogate, seed=seed).solution
        found = SwapSearch().solve(box, start=start, seed=seed, evaluation_limit=1000).objective
        best = min(found, *(descended(box, cubic, rng.permutation(64) < 32) for _ in range(100)))
        gaps.append((found - best) / -best)
    assert np.median(gaps) < 0.016


def test_learns_three_body_terms_in_a_few_hundred_evaluations():
    gains = {"learned": 0.0, "random": 0.0}
    for seed in range(3):
        box, _ = three_body(seed)
        start = np.zeros(64, dtype=bool)
        start[np.argsort(box.surrogate.linear)[:32]] = True
        for ranking in gains:
            result = SwapSearch(ranking=ranking).solve(box, start=start, seed=seed, evaluation_limit=200)
            gains[ranking] += box.value(start) - result.objective
    assert gains["learned"] > 1.2 * gains["random"]


def test_model_mean_is_ridge_regression():
    rng = np.random.default_rng(0)
    rows, noise = rng.normal(size=(7, 5)), rng.uniform(0.5, 2.0, 7)
    changes = rng.normal(size=7)
    model = ChangeModel([("trend", 2), ("coordinate", 3)])
    model.learn(rows, changes, noise)
    prior = np.array([0.25, 0.25, 0.1, 0.1, 0.1])
    precision = rows.T @ (rows / noise[:, None]) + np.diag(1 / prior)
    np.testing.assert_allclose(model.mean(), np.linalg.solve(precision, rows.T @ (changes / noise)), rtol=1e-8)


def test_model_draws_have_the_posterior_covariance():
    rng = np.random.default_rng(0)
    rows, noise, changes = rng.normal(size=(6, 3)), np.ones(6), rng.normal(size=6)
    model = ChangeModel([("trend", 1), ("coordinate", 2)])
    model.learn(rows, changes, noise)
    prior = np.array([0.25, 0.1, 0.1])
    covariance = rows @ np.diag(prior) @ rows.T + np.eye(6)
    size = changes @ np.linalg.solve(covariance, changes) / 6
    expected = size * np.linalg.inv(rows.T @ rows + np.diag(1 / prior))
    draws = model.draws(np.random.default_rng(1), 40_000)
    np.testing.assert_allclose(np.cov(draws.T), expected, atol=0.02 * np.abs(expected).max() + 1e-4)
    np.testing.assert_allclose(draws.mean(axis=0), model.mean(), atol=4 * np.sqrt(expected.max() / 40_000))


def test_model_finds_which_group_the_surrogate_misjudges():
    rng = np.random.default_rng(0)
    surrogate, _ = quadratic_and_cubic(30, 0)
    groups = np.repeat([0, 1, 2], 10)
    box = BlackBox(
        Selections(30, [Cardinality(15)]), lambda x: np.zeros(len(x)), surrogate,
        meta={"groups": [{"name": f"g{g}", "size": 10} for g in range(3)]},
    )  # fmt: skip
    moves = UnitMoves(box, np.ones(30, dtype=bool))
    x = np.arange(30) % 2 == 0
    moves.measure(x)
    points = moves.random(x, rng, 60, lambda p: np.zeros(len(p), dtype=bool))
    features = moves.features(x, points)
    # the predicted change adds up from its parts, and is the surrogate's
    np.testing.assert_allclose(features[:, 0], features[:, 1:4].sum(axis=1))
    np.testing.assert_allclose(features[:, 0] * moves.scale, surrogate.value(points) - surrogate.value(x))
    gained = (points.astype(int) - x) @ (groups[:, None] == 2)
    model = ChangeModel(moves.blocks)
    changes = features[:, 0] + 5.0 * gained[:, 0]
    model.learn(features[:40], changes[:40], np.ones(40))
    predicted = features[40:] @ model.mean()
    assert np.corrcoef(predicted, changes[40:])[0, 1] > 0.95 > np.corrcoef(features[40:, 0], changes[40:])[0, 1]


def test_neighbours_are_all_feasible_swaps_once():
    surrogate, truth = quadratic_and_cubic(8, 0)
    box = BlackBox(Selections(8, [Cardinality(3)]), truth, surrogate)
    moves = UnitMoves(box, np.ones(8, dtype=bool))
    x = np.arange(8) < 3
    theta = np.zeros(sum(width for _, width in moves.blocks))
    found = moves.singles(x, theta, 100, lambda p: np.zeros(len(p), dtype=bool))
    assert len({row.tobytes() for row in found}) == len(found) == 3 * 5
    assert (found.sum(axis=1) == 3).all()
    assert ((found != x).sum(axis=1) == 2).all()


def test_a_path_makes_disjoint_moves_one_after_the_other():
    surrogate, truth = quadratic_and_cubic(16, 0)
    box = BlackBox(Selections(16, [Cardinality(8)]), truth, surrogate)
    moves = UnitMoves(box, np.ones(16, dtype=bool))
    x = np.arange(16) < 8
    theta = np.zeros(sum(width for _, width in moves.blocks))
    theta[0] = 1.0
    path = moves.path(x, theta, 4)
    assert [int((p != x).sum()) for p in path] == [2 * (i + 1) for i in range(len(path))]
    # every further move pays by the surrogate
    values = [surrogate.value(p) for p in path]
    assert values == sorted(values)[::-1]


def test_levels_start_meets_the_budget():
    space = LevelTuples([np.arange(9)] * 4, budget=16)
    start = LevelMoves(BlackBox(space, lambda x: x.sum(axis=1))).start(Run(None, seed=0))
    assert start.tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize(
    "option", [{"evaluations": 0}, {"proposals": 0}, {"keep": 0.0}, {"keep": 1.5}, {"bundle": 0}, {"undecided": -1}]
)
def test_options_are_checked(option):
    with pytest.raises(InvalidProblem, match=next(iter(option))):
        SwapSearch(**option)


def test_unknown_ranking_suggests_the_nearest():
    with pytest.raises(InvalidProblem, match="learned"):
        SwapSearch(ranking="learnt")
