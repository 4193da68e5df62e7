"""The units that mutations by activations prune, by the definitions written out."""

from __future__ import annotations

import numpy as np
import pytest

from prunesolve.problems import MultiObjective, Selections
from prunesolve.solvers._grid import LEVEL
from prunesolve.solvers._mutations import SCHEDULES, Pruning

GROUP = np.repeat([0, 1], [6, 4])


def pruning(name, activity, amount=0.1, group=GROUP):
    problem = MultiObjective(Selections(len(group)), lambda x: x[:, :2], ["a", "b"], activity=activity)
    return Pruning(name, problem, group, amount)


def test_random_prunes_its_share_of_the_kept_units_alone():
    group = np.zeros(200, dtype=int)
    rows = np.zeros((300, 200), dtype=LEVEL)
    rows[:, ::2] = 1
    chosen = pruning("random", None, 0.1, group).chosen(rows, np.random.default_rng(0))
    assert not chosen[:, 1::2].any()
    assert chosen.sum() / rows.sum() == pytest.approx(0.1, abs=0.01)


def test_variance_prunes_what_varies_least():
    rng = np.random.default_rng(0)
    spread = np.array([0.1, 1.0, 1.0, 1.0, 1.0, 2.0, 0.3, 0.3, 0.3, 0.3])
    activity = rng.normal(size=(4000, 10)) * spread
    often = pruning("variance", activity, 0.2).chosen(np.ones((4000, 10), dtype=LEVEL), rng).mean(axis=0)
    # scaled within the group: the steadiest unit goes most, the liveliest never, those between as they vary
    deviation = activity.std(axis=0)
    for units in (GROUP == 0, GROUP == 1):
        steady = 1.0 - (deviation[units] - deviation[units].min()) / np.ptp(deviation[units])
        assert often[units][deviation[units].argmax()] == 0.0
        assert np.corrcoef(often[units], steady)[0, 1] > 0.98
    assert often.sum() == pytest.approx(0.2 * 10, abs=0.1)


def test_variance_where_nothing_varies_prunes_evenly():
    chosen = pruning("variance", np.ones((5, 10)), 0.3).chosen(
        np.ones((2000, 10), dtype=LEVEL), np.random.default_rng(0)
    )
    assert np.abs(chosen.mean(axis=0) - 0.3).max() < 0.05


def test_conjunctive_leaves_one_silent_unit_of_each_group():
    rng = np.random.default_rng(0)
    activity = rng.random((100, 10)) + 1.0
    # units 2 and 8 are silent on all inputs, unit 3 on half of them
    activity[:, [2, 8]] = 0.0
    activity[::2, 3] = 0.0
    chosen = pruning("conjunctive", activity).chosen(np.ones((500, 10), dtype=LEVEL), rng)
    assert (chosen.sum(axis=1) == 2).all()
    assert chosen[:, 2].all()
    assert chosen[:, 8].all()


def test_conjunctive_prunes_all_that_no_input_tells_apart():
    activity = np.ones((20, 10))
    activity[:, [0, 4]] = 0.0
    chosen = pruning("conjunctive", activity).chosen(np.ones((10, 10), dtype=LEVEL), np.random.default_rng(0))
    assert chosen[:, [0, 4]].all()
    assert not chosen[:, [1, 2, 3, 5]].any()


def test_conjunctive_prunes_nothing_that_was_never_silent():
    activity = np.tile(np.arange(10.0), (20, 1))
    rows = np.ones((10, 10), dtype=LEVEL)
    # what is left of either group stands above a tenth of its range on every input
    rows[:, [0, 6]] = 0
    chosen = pruning("conjunctive", activity).chosen(rows, np.random.default_rng(0))
    assert not chosen.any()


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_stay_between_nothing_and_everything(name):
    shares = [SCHEDULES[name](t) for t in np.linspace(0.0, 1.0, 11)]
    assert min(shares) >= 0.0
    assert max(shares) <= 1.0


def test_schedules_go_where_they_say():
    assert [SCHEDULES["increase"](t) for t in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
    assert [SCHEDULES["decrease"](t) for t in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]
    assert [SCHEDULES["late"](t) for t in (0.0, 0.74, 0.75)] == [0.0, 0.0, 1.0]
    assert SCHEDULES["exponential"](1.0) == pytest.approx(1 - np.exp(-2.0))
    assert SCHEDULES["fixed"](0.3) == 1.0
