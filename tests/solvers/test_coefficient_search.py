import itertools
import math

import numpy as np
import pytest

from prunesolve.problems import BlackBox, InvalidProblem, LevelChoice, LevelTuples, Selections, UnsupportedProblem
from prunesolve.solvers._base import Run
from prunesolve.solvers._level_proxy import LevelProxy
from prunesolve.solvers.coefficient_search import CoefficientSearch
from prunesolve.solvers.testing import check_solver

SIZES = (4, 3, 5, 3)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"screen": 1}, {"starts": 1, "patience": 3, "offspring": 1, "survivors": 1.0}])
def test_battery(options):
    # the defaults are in test_battery.py
    check_solver(CoefficientSearch(**options))


def tables(seed=0):
    """Convex errors and the costs of levels."""
    rng = np.random.default_rng(seed)
    error = [np.sort(rng.random(s))[::-1] for s in SIZES]
    cost = [np.sort(rng.random(s)) * 3.0 for s in SIZES]
    return error, cost


def choices():
    error, cost = tables()
    pairs = {key: np.outer(cost[key[0]], cost[key[1]]) for key in [(0, 1), (1, 2), (2, 3), (0, 3)]}
    chain = {key: pairs[key] for key in [(0, 1), (1, 2), (2, 3)]}
    return {
        "separable": LevelChoice(error, cost, 5.0),
        "chain": LevelChoice(error, cost, 9.0, chain),
        "any pairs": LevelChoice(error, cost, 11.0, pairs),
        "peak": LevelChoice(error, cost, 2.5, chain, "max"),
    }


CHOICES = choices()


def all_tuples(space):
    rows = np.array(list(itertools.product(*map(range, space.sizes))))
    return rows[space.is_feasible(rows)]


def weighed(coefficients, error, x):
    return sum(c * e[x[..., i]] for i, (c, e) in enumerate(zip(coefficients, error, strict=True)))


class Weighed:
    """The errors, layers of which count for more or less than the tables say; remembers what was asked."""

    def __init__(self, coefficients, error, batches=1):
        self.coefficients, self.error, self.batches, self.asked = coefficients, error, batches, []

    def truth(self, x):
        return weighed(self.coefficients, self.error, x)

    def __call__(self, x, batch=0):
        self.asked += [(row.tobytes(), batch) for row in x]
        return self.truth(x)


@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("batches", [1, 4])
def test_finds_the_weights_of_the_truth(kind, batches):
    choice, true = CHOICES[kind], np.array([0.1, 1.0, 0.6, 0.05])
    box = Weighed(true, choice.error, batches)
    result = CoefficientSearch().solve(BlackBox(choice, box, None, np.ones(batches)), evaluation_limit=40)
    rows = all_tuples(choice)
    assert result.objective == pytest.approx(box.truth(rows).min())
    asked = np.array([np.frombuffer(key, dtype=np.int64) for key, _ in box.asked])
    assert choice.is_feasible(asked).all()


@pytest.mark.parametrize("exact", [True, False])
def test_tuples_with_a_surrogate(exact):
    error, _ = tables()
    space = LevelTuples([np.arange(s) * (1 + i % 2) for i, s in enumerate(SIZES)], 7, exact)

    class Known:
        def value(self, x):
            return weighed(np.ones(4), error, np.asarray(x))

    box = Weighed(np.array([0.1, 1.0, 0.6, 0.05]), error)
    result = CoefficientSearch().solve(BlackBox(space, box, Known()), evaluation_limit=40)
    assert result.objective == pytest.approx(box.truth(all_tuples(space)).min())


@pytest.mark.parametrize("kind", CHOICES)
def test_the_proxy_solves_what_it_is_asked(kind):
    choice = CHOICES[kind]
    box, rows = BlackBox(choice, choice.value), all_tuples(choice)
    proxy = LevelProxy(box, Run(box, seed=0))
    assert choice.value(proxy.optimum()) == pytest.approx(choice.value(rows).min())
    for seed in range(5):
        coefficients = np.random.default_rng(seed).random(4)
        found = proxy.near_optimum([c * e for c, e in zip(coefficients, choice.error, strict=True)])
        assert choice.is_feasible(found)
        values = weighed(coefficients, choice.error, rows)
        # one multiplier and single changes miss little: the best tenth
        assert weighed(coefficients, choice.error, found) <= np.quantile(values, 0.1)


def test_exact_tuples_spend_all_whatever_the_weights():
    space = LevelTuples([[0, 2, 5, 7], [1, 2, 3], [0, 1, 2, 3, 9], [0, 4, 6]], 12)

    class Known:
        def value(self, x):
            return weighed(np.ones(4), tables()[0], np.asarray(x))

    box, rows = BlackBox(space, Known().value, Known()), all_tuples(space)
    proxy = LevelProxy(box, Run(box, seed=0))
    for seed in range(10):
        coefficients = np.random.default_rng(seed).random(4)
        levels = proxy.near_optimum([c * e for c, e in zip(coefficients, proxy.errors, strict=True)])
        found = weighed(coefficients, tables()[0], levels)
        assert found == pytest.approx(weighed(coefficients, tables()[0], rows).min())


@pytest.mark.parametrize("batches", [1, 3])
def test_the_black_box_sees_what_the_run_counts(batches):
    choice = CHOICES["separable"]
    box = Weighed(np.array([0.1, 1.0, 0.6, 0.05]), choice.error, batches)
    result = CoefficientSearch().solve(BlackBox(choice, box, None, np.ones(batches)), evaluation_limit=15)
    assert len(box.asked) == len(set(box.asked))
    assert result.evaluations == math.ceil(len(box.asked) / batches - 1e-9) <= 15


def test_ends_by_itself_before_its_own_count():
    choice = CHOICES["separable"]
    solver = CoefficientSearch(starts=5, patience=5, evaluations=10**9)
    result = solver.solve(BlackBox(choice, Weighed(np.ones(4), choice.error)))
    assert result.evaluations <= len(all_tuples(choice))


def test_points_without_a_value_are_passed_by():
    choice = CHOICES["chain"]
    truth = Weighed(np.array([0.1, 1.0, 0.6, 0.05]), choice.error).truth
    best = CoefficientSearch().solve(choice, evaluation_limit=1).solution
    box = BlackBox(choice, lambda x: np.where((x == best).all(axis=1), np.nan, truth(x)))
    result = CoefficientSearch().solve(box, evaluation_limit=40)
    assert result.feasible
    assert (result.solution != best).any()


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (BlackBox(Selections(3), lambda x: x.sum(axis=1) * 1.0), "over LevelTuples or LevelChoice"),
        (BlackBox(LevelTuples([[0, 1], [0, 1]], 1), lambda x: x[:, 0] * 1.0), "LevelTuples with a surrogate"),
    ],
)
def test_refused(box, words):
    with pytest.raises(UnsupportedProblem, match=words):
        CoefficientSearch().solve(box)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"starts": 0}, "starts: expected a count"),
        ({"patience": 0.5}, "patience: expected a count"),
        ({"screen": -1}, "screen: expected a count"),
        ({"survivors": 2}, "survivors: expected a share"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(InvalidProblem, match=words):
        CoefficientSearch(**options)
