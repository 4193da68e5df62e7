"""Nearest feasible rows: feasible always, wanted ones untouched, exact where that is claimed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from prunesolve.problems import Budget, Cardinality, GroupBounds, LevelChoice, LevelTuples, Product, Selections
from prunesolve.solvers._grid import LEVEL, grid_of

N = 24
GROUP = np.arange(N) // 6
BOUNDS = GroupBounds(GROUP, [1, 2, 0, 3], [4, 5, 2, 6])
SOME = GroupBounds(np.where(GROUP == 3, -1, GROUP), [1, 2, 0], [4, 5, 2])
PAIRS = 1.0 * (np.abs(GROUP[:, None] - GROUP) == 1)
SPACES = {
    "free": Selections(N),
    "cardinality": Selections(N, [Cardinality(9)]),
    "nothing kept": Selections(N, [Cardinality(0)]),
    "everything kept": Selections(N, [Cardinality(N)]),
    "bounds": Selections(N, [BOUNDS]),
    "bounds on some": Selections(N, [SOME]),
    "cardinality and bounds": Selections(N, [Cardinality(10), SOME]),
    "budget": Selections(N, [Budget(np.arange(1.0, N + 1), 60.0)]),
    "two budgets": Selections(N, [Budget(np.arange(1.0, N + 1), 60.0), Budget(np.arange(N, 0.0, -1), 90.0)]),
    "bilinear budget": Selections(N, [Budget(np.ones(N), 40.0, PAIRS)]),
    "tight": Selections(N, [Cardinality(10), BOUNDS, Budget(np.arange(1.0, N + 1), 96.0)]),
    "overlapping bounds": Selections(N, [BOUNDS, GroupBounds(np.arange(N) % 4, [1] * 4, [4] * 4)]),
    "levels": LevelTuples([[1, 5, 2, 9]] * 6, 20, exact=False),
    "exact levels": LevelTuples([[1, 5, 2, 9], [0, 3], [2, 4, 6]] * 3, 33),
    "choice": LevelChoice([np.zeros(5)] * 6, [np.arange(5.0)] * 6, 11.0, {(0, 1): np.ones((5, 5)), (2, 4): np.eye(5)}),
    "peak": LevelChoice([np.zeros(5)] * 6, [np.arange(5.0)] * 6, 3.0, {(0, 1): np.eye(5)}, "max"),
    "both": Product([Selections(N, [Cardinality(9)]), LevelTuples([[1, 2, 3]] * 4, 8), LevelTuples([[4, 2]], 2)]),
}


def points(space, rows):
    return rows.astype(bool) if isinstance(space, Selections) else rows.astype(int)


@pytest.mark.parametrize("name", SPACES)
def test_rows_are_feasible_and_wanted_ones_that_are_stay(name):
    space, rng = SPACES[name], np.random.default_rng(0)
    grid = grid_of(space)
    wanted = np.floor(rng.random((60, 1)) * (grid.top + 0.999) * rng.random((60, grid.n)) ** 0.3).astype(LEVEL)
    wanted[0], wanted[1] = 0, grid.top
    found, ok = grid.nearest(wanted, rng.random(wanted.shape), rng)
    assert ok.all()
    assert found.shape == wanted.shape
    assert found.dtype == LEVEL
    assert np.asarray(space.is_feasible(points(space, found))).all()
    again, _ = grid.nearest(found, rng.random(wanted.shape), rng)
    assert np.array_equal(again, found)


def test_what_is_held_least_gives_way_first():
    grid = grid_of(SPACES["cardinality"])
    hold = np.linspace(0.0, 0.9, N)[None]
    most, _ = grid.nearest(np.ones((1, N), dtype=LEVEL), hold, np.random.default_rng(0))
    assert np.flatnonzero(most[0]).tolist() == list(range(N - 9, N))
    # of what is not wanted the coordinates held least come first
    few, _ = grid.nearest(np.zeros((1, N), dtype=LEVEL), hold, np.random.default_rng(0))
    assert np.flatnonzero(few[0]).tolist() == list(range(9))


def test_a_budget_takes_no_more_than_it_needs():
    space = Selections(N, [Budget(np.ones(N), 10.0)])
    rng = np.random.default_rng(0)
    found, _ = grid_of(space).nearest(np.ones((20, N), dtype=LEVEL), rng.random((20, N)), rng)
    # bisection to 1/4096 of the hold tells two units apart here
    assert (found.sum(axis=1) >= 9).all()


def test_exact_levels_are_the_nearest_that_there_are():
    space = LevelTuples([[1, 5, 2, 9], [0, 3], [2, 4, 6]], 11)
    every = np.array(list(itertools.product(range(4), range(2), range(3))))
    feasible = every[space.is_feasible(every)]
    found, _ = grid_of(space).nearest(every.astype(LEVEL), np.zeros(every.shape), np.random.default_rng(0))
    distance = np.abs(every[:, None] - feasible).sum(axis=2).min(axis=1)
    assert np.array_equal(np.abs(found - every).sum(axis=1), distance)


def test_samples_have_about_the_density_asked():
    grid = grid_of(LevelTuples([np.arange(9)] * 40, 8 * 40, exact=False))
    rows, _ = grid.sample(np.repeat([[0.0], [0.25], [1.0]], 40, axis=1), np.random.default_rng(0))
    assert rows[0].sum() == 0
    assert rows[2].sum() == 320
    assert abs(rows[1].sum() - 80) < 20
