import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.problems import BlackBox, InvalidProblem, LevelChoice, LevelTuples, Selections, UnsupportedProblem
from prunesolve.solvers import get
from prunesolve.solvers._level_space import LevelSpace, even
from prunesolve.solvers.level_switch import LevelSwitch
from prunesolve.solvers.testing import check_solver

RANKINGS = ("learned", "random")
SIZES = (4, 3, 4, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"ranking": "random"}, {"offspring": 1, "survivors": 1.0, "switches": 1, "ranking": "random"}]
)
def test_battery(options):
    # the defaults are in test_battery.py
    check_solver(LevelSwitch(**options))


def spaces():
    """Whole and real costs, alone, of neighbours, of layers far apart, added up or the largest."""
    rng = np.random.default_rng(0)
    error = [np.sort(rng.random(s))[::-1] for s in SIZES]
    cost = [np.sort(rng.random(s)) * 3.0 for s in SIZES]
    pairs = {key: np.outer(cost[key[0]], cost[key[1]]) for key in [(0, 1), (1, 2), (2, 3), (0, 3)]}
    chain = {key: pairs[key] for key in [(0, 1), (1, 2), (2, 3)]}
    whole = [np.arange(s) * (1 + i % 2) for i, s in enumerate(SIZES)]
    return {
        "exact tuples": LevelTuples(whole, 7),
        "tuples": LevelTuples(whole, 7, exact=False),
        "separable": LevelChoice(error, cost, 5.0),
        "chain": LevelChoice(error, cost, 9.0, chain),
        "any pairs": LevelChoice(error, cost, 11.0, pairs),
        "peak": LevelChoice(error, cost, 2.5, chain, "max"),
    }


SPACES = spaces()


def all_tuples(space):
    rows = np.array(list(itertools.product(*map(range, space.sizes))))
    return rows[space.is_feasible(rows)]


class Mixed:
    """Errors of single layers, which are the surrogate, and what neighbours make of them; remembers what was asked."""

    def __init__(self, batches=1, spread=0.0):
        rng = np.random.default_rng(1)
        self.tables = [np.sort(rng.random(s))[::-1] for s in SIZES]
        self.batches, self.spread, self.asked = batches, spread, []

    def value(self, x):
        return sum(table[x[..., i]] for i, table in enumerate(self.tables))

    def truth(self, x):
        return self.value(x) + 0.7 * np.sin(2.0 * x[:, :-1] * x[:, 1:]).sum(axis=1)

    def __call__(self, x, batch=0):
        self.asked += [(row.tobytes(), batch) for row in x]
        return self.truth(x) + self.spread * np.sin(x @ np.arange(1.0, x.shape[1] + 1) + batch)


@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("surrogate", [True, False])
@pytest.mark.parametrize("kind", SPACES)
def test_enumerated_optimum(kind, surrogate, batches):
    space, mixed = SPACES[kind], Mixed(batches)
    box = BlackBox(space, mixed, mixed if surrogate else None, np.ones(batches))
    result = LevelSwitch().solve(box, evaluation_limit=150)
    assert result.objective == pytest.approx(mixed.truth(all_tuples(space)).min())
    asked = np.array([np.frombuffer(key, dtype=np.int64) for key, _ in mixed.asked])
    assert space.is_feasible(asked).all()


@pytest.mark.parametrize("kind", ["separable", "chain", "any pairs", "peak"])
def test_a_choice_is_a_black_box_of_its_own_value(kind):
    choice = SPACES[kind]
    result = LevelSwitch(evaluations=20).solve(choice)
    assert result.objective == pytest.approx(choice.value(all_tuples(choice)).min())


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("batches", [1, 3, 4])
def test_the_black_box_sees_what_the_run_counts(ranking, batches):
    mixed = Mixed(batches, spread=0.1)
    box = BlackBox(SPACES["separable"], mixed, None, np.ones(batches))
    result = LevelSwitch(ranking=ranking).solve(box, evaluation_limit=40)
    assert len(mixed.asked) == len(set(mixed.asked))
    assert result.evaluations == math.ceil(len(mixed.asked) / batches - 1e-9) <= 40


def test_most_offspring_lose_the_first_look():
    mixed = Mixed(8, spread=0.1)
    LevelSwitch().solve(BlackBox(SPACES["separable"], mixed, None, np.ones(8)), evaluation_limit=20)
    asked = {}
    for key, batch in mixed.asked:
        asked.setdefault(key, set()).add(batch)
    looks = np.array([len(batches) for batches in asked.values()])
    assert np.median(looks) == 1
    assert set(looks) <= {1, 2, 4, 8}


@pytest.mark.parametrize("ranking", RANKINGS)
def test_ends_by_itself_before_its_own_count(ranking):
    space = SPACES["separable"]
    result = LevelSwitch(ranking=ranking, evaluations=10**9).solve(BlackBox(space, Mixed()))
    assert result.evaluations <= len(all_tuples(space))


def test_own_count_ends_it():
    mixed = Mixed()
    result = LevelSwitch(evaluations=20).solve(BlackBox(SPACES["separable"], mixed))
    assert 20 <= result.evaluations <= 20 + 4


def test_first_evaluations_are_the_additive_optimum_and_even_levels():
    choice, mixed = SPACES["chain"], Mixed()
    LevelSwitch().solve(BlackBox(choice, mixed), evaluation_limit=2)
    rows = all_tuples(choice)
    expected = [rows[np.argmin(choice.value(rows))], even(choice)]
    assert [key for key, _ in mixed.asked] == [row.tobytes() for row in expected]


def test_one_evaluation_of_exact_tuples_is_the_additive_optimum():
    space, mixed = SPACES["exact tuples"], Mixed()
    result = LevelSwitch().solve(BlackBox(space, mixed, mixed), evaluation_limit=1)
    rows = all_tuples(space)
    assert mixed.value(result.solution) == pytest.approx(mixed.value(rows).min())


def test_points_without_a_value_are_passed_by():
    space, mixed = SPACES["chain"], Mixed()
    rows = all_tuples(space)
    start = rows[rows[:, 0] == 0][0]  # without a value itself
    box = BlackBox(space, lambda x: np.where(x[:, 0] == 0, np.nan, mixed.truth(x)))
    result = LevelSwitch().solve(box, start=start, evaluation_limit=150)
    assert result.objective == pytest.approx(mixed.truth(rows[rows[:, 0] != 0]).min())
    assert result.details["failures"]


def test_nothing_but_points_without_a_value_is_an_answer_too():
    box = BlackBox(SPACES["separable"], lambda x: np.full(len(x), np.nan))
    result = LevelSwitch(evaluations=10**9).solve(box)
    assert not result.feasible


def test_the_model_finds_more_than_chance():
    rng = np.random.default_rng(3)
    layers, count = 10, 8
    gone = 1.0 - np.arange(count) / (count - 1)
    size = rng.lognormal(0.0, 1.0, (layers, 1))
    proxy, truth = (size * gone ** rng.uniform(1, 3, (layers, 1)) for _ in range(2))
    choice = LevelChoice(proxy, [np.arange(count) * c for c in rng.uniform(1, 5, layers)], 100.0)
    found = {}
    for ranking in RANKINGS:
        box = BlackBox(choice, lambda x: truth[np.arange(layers), x].sum(axis=1))
        runs = [LevelSwitch(ranking=ranking).solve(box.replace(), seed=s, evaluation_limit=40) for s in range(2)]
        found[ranking] = np.mean([run.objective for run in runs])
    assert found["learned"] < found["random"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), kind=st.sampled_from(sorted(SPACES)), switches=st.integers(1, 5))
def test_switches_keep_the_budget(seed, kind, switches):
    space, rng = SPACES[kind], np.random.default_rng(seed)
    rows = all_tuples(space)
    rows = rows[rng.integers(len(rows), size=40)]
    tables = LevelSpace(space)
    assert tables.spent(rows) == pytest.approx(space.spent(rows))
    assert (tables.fits(tables.spent(rows)) == space.is_feasible(rows)).all()
    moved = tables.switched(rows, rng, np.full(len(rows), switches))
    assert space.is_feasible(moved).all()


@pytest.mark.parametrize("kind", SPACES)
def test_switches_reach_every_tuple(kind):
    space, rng = SPACES[kind], np.random.default_rng(0)
    reached = {even(space).tobytes()}
    for _ in range(60):
        rows = np.array([np.frombuffer(key, dtype=np.int64) for key in sorted(reached)])
        rows = rows[rng.integers(len(rows), size=200)]
        moved = LevelSpace(space).switched(rows, rng, rng.integers(1, 4, size=200))
        reached |= {row.tobytes() for row in moved}
    assert reached == {row.tobytes() for row in all_tuples(space)}


def test_what_does_not_fit_is_lowered():
    space, rng = SPACES["any pairs"], np.random.default_rng(0)
    dense = np.repeat(np.array([SIZES]) - 1, 20, axis=0)
    assert not space.is_feasible(dense).any()
    fitted = LevelSpace(space).fitted(dense, rng)
    assert len(fitted) == 20
    assert space.is_feasible(fitted).all()


@pytest.mark.parametrize("kind", ["separable", "chain", "any pairs"])
def test_swap_search_takes_real_costs(kind):
    space, mixed = SPACES[kind], Mixed()
    result = get("swap-search").solve(BlackBox(space, mixed), evaluation_limit=150)
    assert result.objective == pytest.approx(mixed.truth(all_tuples(space)).min())
    asked = np.array([np.frombuffer(key, dtype=np.int64) for key, _ in mixed.asked])
    assert space.is_feasible(asked).all()


def test_tensor_train_refuses_real_costs_by_name():
    with pytest.raises(UnsupportedProblem, match="LevelTuples"):
        get("tensor-train").solve(BlackBox(SPACES["separable"], Mixed()))


def test_selections_are_refused():
    with pytest.raises(UnsupportedProblem, match="over LevelTuples or LevelChoice"):
        LevelSwitch().solve(BlackBox(Selections(3), lambda x: x.sum(axis=1) * 1.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"offspring": 0}, "offspring: expected a count"),
        ({"switches": 1.5}, "switches: expected a count"),
        ({"evaluations": True}, "evaluations: expected a count"),
        ({"survivors": 0.0}, "survivors: expected a share"),
        ({"ranking": "lerned"}, "did you mean 'learned'"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(InvalidProblem, match=words):
        LevelSwitch(**options)
