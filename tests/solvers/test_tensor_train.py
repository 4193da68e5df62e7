"""The tensor-train search: optima of small black boxes, starts, modes, refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from prunesolve.problems import (
    BinaryQuadratic,
    BlackBox,
    Budget,
    Cardinality,
    GroupBounds,
    InvalidProblem,
    LevelTuples,
    Selections,
    UnsupportedProblem,
    generators,
)
from prunesolve.solvers import Status
from prunesolve.solvers._local_model import LocalModel
from prunesolve.solvers.tensor_train import TensorTrain
from prunesolve.solvers.testing import check_solver

GROUPS = GroupBounds(np.arange(12) % 3, [1, 1, 0], [4, 3, 3])


FIVE = Cardinality(5)


def cubic(n=12, seed=0, constraints=(FIVE,)):
    """A quadratic problem and a black box that adds three-body terms to it."""
    rng = np.random.default_rng(seed)
    quadratic = np.triu(rng.normal(0.0, 0.3, (n, n)), 1)
    problem = BinaryQuadratic(rng.normal(size=n), quadratic + quadratic.T, constraints=constraints)
    triples = np.array([rng.choice(n, 3, replace=False) for _ in range(3 * n)])
    weights = rng.normal(0.0, 0.5, len(triples))

    def evaluate(x):
        return problem.value(x) + x[:, triples].all(axis=2) @ weights

    return problem, BlackBox.over(problem, evaluate)


def levels(seed=0, exact=True):
    """Errors of three layers of five levels with neighbour interactions, and their separable part as the surrogate."""
    rng = np.random.default_rng(seed)
    error = [np.sort(rng.random(5))[::-1] for _ in range(4)]

    class Separable:
        def value(self, x):
            return sum(e[np.asarray(x)[..., i]] for i, e in enumerate(error))

    def evaluate(x):
        return Separable().value(x) + 0.1 * np.abs(np.diff(x, axis=1)).sum(axis=1)

    return BlackBox(LevelTuples([np.arange(1, 6)] * 4, 11, exact), evaluate, Separable())


def optimum(box):
    sizes = [2] * box.n if isinstance(box.space, Selections) else box.space.sizes
    points = np.array(list(itertools.product(*map(range, sizes))))
    points = points.astype(bool) if isinstance(box.space, Selections) else points
    return box.replace().value(points[box.is_feasible(points)]).min()


@pytest.mark.parametrize("options", [{}, {"rank": 1}, {"screen": 1}, {"mutations": 0.0}, {"mutations": 1.0}], ids=str)
@pytest.mark.parametrize("constraints", [[], [Cardinality(5)], [GROUPS], [Cardinality(5), GROUPS]], ids=str)
def test_small_black_boxes_are_solved(constraints, options):
    _, box = cubic(constraints=constraints)
    result = TensorTrain(**options).solve(box)
    assert result.objective >= optimum(box) - 1e-9
    if options.get("screen") != 1:
        assert np.isclose(result.objective, optimum(box))


@pytest.mark.parametrize("exact", [True, False])
def test_level_tuples_are_solved(exact):
    box = levels(exact=exact)
    assert np.isclose(TensorTrain().solve(box).objective, optimum(box))


@pytest.mark.parametrize("exact", [True, False])
def test_cross_finds_the_optimum_of_a_separable_surrogate(exact):
    box = levels(exact=exact)
    own = box.replace(evaluate=box.surrogate.value)
    assert np.isclose(TensorTrain(mode="cross", rank=4).solve(own).objective, optimum(own))


def test_a_black_box_without_a_surrogate_is_solved():
    box = BlackBox(Selections(10, [Cardinality(4)]), lambda x: -(x[:, :4].sum(axis=1) ** 2.0))
    assert TensorTrain().solve(box).objective == -16.0
    box = BlackBox(LevelTuples([[0, 1, 2]] * 5, 4), lambda x: (x[:, 0] - 2.0) ** 2 + x[:, 1:].max(axis=1))
    assert TensorTrain().solve(box).objective == 1.0


def test_cross_improves_on_the_greedy_start_of_a_quadratic():
    problem = generators.pruning(40, keep=0.5, seed=3)
    greedy = TensorTrain().solve(problem, evaluation_limit=1).objective
    result = TensorTrain(mode="cross", rank=4).solve(problem, evaluation_limit=200)
    assert result.feasible
    assert result.objective <= greedy


def test_the_learned_search_beats_random_points_and_its_start():
    problem, box = cubic(40, seed=1, constraints=[Cardinality(16)])
    x = np.array([np.isin(np.arange(40), np.random.default_rng(i).permutation(40)[:16]) for i in range(400)])
    result = TensorTrain().solve(box, evaluation_limit=400)
    assert result.evaluations <= 400
    assert result.objective < min(box.value(x).min(), result.trace[0].objective)


def test_frozen_units_stay_as_the_start_has_them():
    problem, box = cubic(40, seed=1, constraints=[Cardinality(16)])
    start = TensorTrain().solve(problem, evaluation_limit=100).solution
    result = TensorTrain(undecided=10).solve(box, start=start, evaluation_limit=200)
    assert (result.solution != start).sum() <= 10


def test_it_ends_by_itself():
    _, box = cubic(30, constraints=[Cardinality(12)])
    result = TensorTrain(evaluations=50).solve(box)
    assert result.status is Status.FINISHED
    assert result.evaluations == 50


def test_looks_at_some_batches_cost_their_share():
    """Four batches that sum to the cubic value: the same optimum, more points seen than evaluations paid for."""
    _, box = cubic()
    rows = []

    def evaluate(x, batch):
        rows.append(len(x))
        return box.evaluate(x) + 0.1 * (batch - 1.5) * x[:, batch]

    parted = BlackBox(box.space, evaluate, box.surrogate, weights=np.ones(4))
    result = TensorTrain(look=0.25).solve(parted, evaluation_limit=200)
    assert result.evaluations <= 200
    assert sum(rows) <= 4 * 200
    assert result.objective >= optimum(parted) - 1e-9
    assert np.isclose(TensorTrain().solve(parted.replace()).objective, optimum(parted))


def test_it_goes_on_elsewhere_where_nothing_improves():
    """A needle far from the basin that everything seen leads to."""
    space = Selections(10, [Cardinality(5)])
    needle = np.arange(10) >= 5
    box = BlackBox(space, lambda x: np.where((x == needle).all(axis=1), -100.0, -1.0 * x[:, :5].sum(axis=1)))
    assert TensorTrain().solve(box, start=~needle).objective == -100.0


def test_points_without_a_value_are_passed_over():
    problem, box = cubic()
    holed = box.replace(evaluate=lambda x: np.where(x[:, 0], np.nan, problem.value(x)))
    result = TensorTrain().solve(holed, evaluation_limit=300)
    assert result.feasible
    assert not result.solution[0]
    assert result.details["failures"]


def test_huge_and_tiny_values_do_not_upset_it():
    for scale in (1e300, 1e-300):
        _, box = cubic()
        scaled = BlackBox(box.space, lambda x, box=box, scale=scale: scale * box.evaluate(x))
        assert np.isclose(TensorTrain().solve(scaled).objective / scale, optimum(box))


def test_what_it_cannot_take_is_refused():
    n, cost = 6, Budget(np.ones(6), 3.0)
    overlapping = [GroupBounds(np.arange(n) % 2, [1, 1], [2, 2]), GroupBounds(np.arange(n) // 3, [1, 1], [2, 2])]
    with pytest.raises(UnsupportedProblem, match="Budget"):
        TensorTrain().solve(BinaryQuadratic(-np.ones(n), constraints=[cost]))
    with pytest.raises(UnsupportedProblem, match="overlap"):
        TensorTrain().solve(BinaryQuadratic(-np.ones(n), constraints=overlapping))
    with pytest.raises(UnsupportedProblem, match="surrogate"):
        TensorTrain(mode="cross").solve(BlackBox(Selections(n), lambda x: x.sum(axis=1)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"batch": 0},
        {"elites": 1.5},
        {"steps": -1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"mutations": 1.1},
        {"screen": 0},
        {"look": 0.0},
        {"undecided": -1},
        {"mode": "guess"},
        {"evaluations": 0},
    ],
    ids=str,
)
def test_nonsense_options_are_refused_by_name(wrong):
    (option,) = wrong
    with pytest.raises(InvalidProblem, match=option):
        TensorTrain(**wrong)


def test_the_local_model_finds_linear_changes():
    rng = np.random.default_rng(0)
    best, change = np.zeros(6, dtype=np.int16), rng.normal(size=6)
    seen = np.eye(6, dtype=np.int16)
    rises = seen @ change
    model = LocalModel(best, seen, rises, np.zeros(6), 2)
    asked = np.array(list(itertools.product([0, 1], repeat=6)), dtype=np.int16)
    predicted = model.predicted(asked, np.zeros(len(asked)))
    assert np.corrcoef(predicted, asked @ change)[0, 1] > 0.999


@pytest.mark.slow
# the defaults are in test_battery.py
@pytest.mark.parametrize("options", [{"mode": "cross"}, {"rank": 1, "screen": 1, "undecided": 5}], ids=str)
def test_the_battery_passes(options):
    check_solver(TensorTrain(**options))
