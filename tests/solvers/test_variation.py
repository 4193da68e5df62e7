"""Steps, exchanges and what is learned from them."""

from __future__ import annotations

import numpy as np

from prunesolve.problems import Cardinality, LevelTuples, Selections
from prunesolve.solvers._grid import LEVEL, grid_of
from prunesolve.solvers._variation import Marginals, Variation, places


def variation(space, groups=None, seed=0):
    return Variation(grid_of(space), groups, np.random.default_rng(seed))


def test_steps_change_few_units_more_often_than_many_and_never_none():
    rows = (np.random.default_rng(1).random((2000, 100)) < 0.5).astype(LEVEL)
    changed = (variation(Selections(100)).step(rows) != rows).sum(axis=1)
    assert changed.min() >= 1
    assert np.median(changed) <= 3
    assert changed.max() > 10
    further = (variation(Selections(100)).step(rows, least=8) != rows).sum(axis=1)
    assert np.median(further) > 6


def test_steps_go_down_up_and_both():
    rows = np.tile(np.arange(100) % 2, (600, 1)).astype(LEVEL)
    stepped = variation(Selections(100)).step(rows)
    down, up = (stepped < rows).any(axis=1), (stepped > rows).any(axis=1)
    for kind in (down & ~up, up & ~down, down & up):
        assert 0.2 < kind.mean() < 0.5


def test_at_the_ends_there_is_one_direction():
    vary = variation(Selections(10))
    for level in (0, 1):
        stepped = vary.step(np.full((200, 10), level, dtype=LEVEL))
        assert stepped.min() >= 0
        assert stepped.max() <= 1


def test_levels_step_by_one_and_now_and_then_far():
    space = LevelTuples([np.arange(9)] * 30, 8 * 30, exact=False)
    rows = np.full((300, 30), 4, dtype=LEVEL)
    away = np.abs(variation(space).step(rows) - rows)
    assert (away <= 4).all()
    near, far = (away == 1).sum(), (away > 1).sum()
    assert 0 < far < near


def test_exchanges_take_from_the_mate_alone():
    groups = np.repeat([5, 7, 9], [3, 4, 2])
    vary = variation(Selections(9), groups)
    rows, mates = np.zeros((50, 9), dtype=LEVEL), np.ones((50, 9), dtype=LEVEL)
    assert set(vary.exchange(rows, mates).sum(axis=1)) >= {1, 4, 8}
    whole = vary.exchange_groups(rows, mates)
    for group in (5, 7, 9):
        assert (np.ptp(whole[:, groups == group], axis=1) == 0).all()
    assert len(np.unique(whole, axis=0)) > 3


def test_what_a_child_changed_is_kept_where_it_must_be_made_feasible():
    vary = variation(Selections(20, [Cardinality(10)]))
    parents = np.tile(np.arange(20) % 2, (100, 1)).astype(LEVEL)
    wanted = parents.copy()
    wanted[:, 1] = 0
    found, ok = vary.feasible(parents, wanted)
    assert ok.all()
    assert (found[:, 1] == 0).all()
    assert (found.sum(axis=1) == 10).all()


def test_marginals_of_additive_changes_are_learned():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(2, 30))
    marginals = Marginals(np.zeros((2, 30)))
    for _ in range(60):
        before = rng.integers(0, 2, (100, 30)).astype(LEVEL)
        after = np.where(rng.random((100, 30)) < 0.1, 1 - before, before).astype(LEVEL)
        marginals.learn(before, after, (after - before) @ true.T)
    assert np.abs(marginals.slopes - true).max() < 0.05
    assert np.allclose(marginals.advance(before, after), ((after - before) @ true.T).sum(axis=1), atol=0.3)


def test_no_pair_or_too_long_a_change_teaches_nothing():
    marginals = Marginals(np.zeros((2, 30)))
    same = np.zeros((3, 30), dtype=LEVEL)
    marginals.learn(same[:0], same[:0], np.zeros((0, 2)))
    marginals.learn(same, same, np.ones((3, 2)))
    marginals.learn(same, same + 1, np.ones((3, 2)))
    assert not marginals.slopes.any()


def test_places_are_shares_of_the_front():
    front = np.array([[0.0, 9.0], [1.0, 4.0], [5.0, 0.0]])
    assert places(front, front).tolist() == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    assert places(np.array([[3.0, -1.0]]), front).tolist() == [[0.75, 0.0]]
    assert places(front, front[:1]).tolist() == [[0.0, 0.0]] * 3
