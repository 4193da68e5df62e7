"""Rank and crowding against pymoo's own NSGA-II survival, and limits."""

from __future__ import annotations

import numpy as np
import pytest

from prunesolve.problems import MultiObjective, Selections
from prunesolve.solvers._survival import Survival, loneliness


def survival(size, objectives=2, limits=None):
    names = ["a", "b", "c"][:objectives]
    problem = MultiObjective(Selections(4), lambda x: x[:, :objectives], names, limits=limits)
    return Survival(problem, size, np.random.default_rng(0))


@pytest.mark.parametrize("objectives", [2, 3])
def test_survivors_are_those_of_pymoo(objectives):
    from pymoo.core.population import Population
    from pymoo.core.problem import Problem
    from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

    values = np.random.default_rng(objectives).random((80, objectives))
    ours = survival(30, objectives)
    ours.tell(np.zeros((80, 4)), values)
    population = Population.new(X=np.arange(80)[:, None], F=values)
    theirs = RankAndCrowding().do(
        Problem(n_var=1, n_obj=objectives), population, n_survive=30, random_state=np.random.default_rng(0)
    )

    def told(values, rank, crowding):
        return sorted((*row, r, c) for row, r, c in zip(values.tolist(), rank.tolist(), crowding.tolist(), strict=True))

    assert told(ours.values, ours.rank, ours.crowding) == told(*theirs.get("F", "rank", "crowding"))


def test_what_has_no_value_never_survives():
    ours = survival(10)
    ours.tell(np.zeros((3, 4)), np.array([[np.inf, np.inf], [1.0, 2.0], [np.inf, np.inf]]))
    assert ours.values.tolist() == [[1.0, 2.0]]
    ours.tell(np.zeros((0, 4)), np.zeros((0, 2)))
    assert len(ours.rows) == 1


def test_beyond_the_limits_the_least_excess_comes_first_and_within_them_before_all():
    ours = survival(3, limits=[1.0, np.inf])
    ours.tell(np.zeros((5, 4)), np.array([[5.0, 0.0], [2.0, 0.0], [0.5, 9.0], [3.0, 0.0], [0.9, 9.5]]))
    assert sorted(map(tuple, ours.values.tolist())) == [(0.5, 9.0), (0.9, 9.5), (2.0, 0.0)]
    assert (ours.rank[ours.values[:, 0] <= 1.0] < ours.rank[ours.values[:, 0] > 1.0]).all()


def test_tournaments_prefer_the_better_rank():
    ours = survival(10)
    ours.tell(np.zeros((2, 4)), np.array([[0.0, 0.0], [1.0, 1.0]]))
    first = ours.values[ours.tournament(400), 0] == 0.0
    assert 0.68 < first.mean() < 0.82


def test_loneliness_is_a_distribution_that_favours_gaps():
    front = np.array([[0.0, 1.0], [0.1, 0.9], [0.11, 0.89], [0.12, 0.88], [0.9, 0.1], [1.0, 0.0]])
    chances = loneliness(front)
    assert chances.sum() == pytest.approx(1.0)
    assert chances[2] < 0.1 * chances[4]
    assert chances.min() > 0.0
    for few in (front[:1], front[:2], np.repeat(front[:1], 4, axis=0)):
        assert np.allclose(loneliness(few), 1 / len(few))
