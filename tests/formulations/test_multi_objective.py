"""The multi-objective formulation: every objective is what it says, budgets are upper limits, starts span the front."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from prunesolve import formulations
from prunesolve.formulations import Fisher, HybridQubo, L1Qubo, MultiObjectiveSelection, Reconstruction
from prunesolve.formulations.removal import density_sweep, removal_order, removal_path, spread
from prunesolve.formulations.testing import example_statistics
from prunesolve.problems import BinaryQuadratic, InvalidProblem, MultiObjective

ALL = np.array(list(itertools.product([False, True], repeat=10)))
ERRORS = (Reconstruction(), Fisher(), HybridQubo(alpha=0.3), L1Qubo(beta=0.2))


def kept_in_groups(stats, rows):
    """(m, g) units kept in each group."""
    return np.stack([rows[:, stats.group_of == g].sum(axis=1) for g in range(len(stats.groups))], axis=1)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.name)
@pytest.mark.parametrize("concat", [False, True])
def test_every_objective_is_what_it_says_for_every_selection(error, concat):
    stats = example_statistics(concat=concat)
    formulation = MultiObjectiveSelection(error=error, costs=("params", "macs"))
    problem = formulation.encode(stats)
    assert problem.objectives == (error.name, "params", "macs")
    meant = np.array([[error.meaning(stats, x), stats.spent("params", x), stats.spent("macs", x)] for x in ALL])
    np.testing.assert_allclose(problem.values(ALL), meant, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose([formulation.meaning(stats, x) for x in ALL[::97]], meant[::97])


@pytest.mark.parametrize(
    "asked",
    [{}, {"keep": 6}, {"keep": 0.6}, {"params": 0.6}, {"macs": 4000}, {"keep": 7, "params": 0.8, "macs": 0.7}],
    ids=str,
)
@pytest.mark.parametrize("minimum", [0, 1, 2])
def test_budgets_are_upper_limits(asked, minimum):
    stats = example_statistics()
    problem = MultiObjectiveSelection(minimum=minimum).encode(stats, **asked)
    meets = (kept_in_groups(stats, ALL) >= minimum).all(axis=1)
    for name, amount in asked.items():
        dense = stats.n if name == "keep" else stats.total(name)
        spent = ALL.sum(axis=1) if name == "keep" else np.array([stats.spent(name, x) for x in ALL])
        meets &= spent <= (amount * dense if isinstance(amount, float) else amount) + 1e-6
    np.testing.assert_array_equal(problem.is_feasible(ALL), meets)
    assert problem.is_feasible(problem.starts).all()


def test_what_nobody_can_meet_says_what_can_be_met():
    stats = example_statistics()
    least = min(stats.spent("params", x) for x in ALL[(kept_in_groups(stats, ALL) >= 1).all(axis=1)])
    with pytest.raises(InvalidProblem, match=f"the smallest limit that can is {least:.0f}"):
        MultiObjectiveSelection().encode(stats, params=int(least) - 1)
    with pytest.raises(InvalidProblem, match="the smallest count that can is 3"):
        MultiObjectiveSelection().encode(stats, keep=2)


@pytest.mark.parametrize("concat", [False, True])
def test_the_removal_takes_the_unit_that_raises_the_error_least_for_what_it_saves(concat):
    stats = example_statistics(concat=concat)
    problem = MultiObjectiveSelection(costs=("params", "macs")).encode(stats)
    low = np.array([1, 1, 1])
    order = removal_order(problem.parts[0], problem.parts[1:], stats.group_of, low)
    assert len(set(order.tolist())) == len(order) == 7
    total = problem.values(np.ones(10, dtype=bool))
    x = np.ones(10, dtype=bool)
    for i in order:
        ratios = {}
        for j in np.flatnonzero(x):
            if x[stats.group_of == stats.group_of[j]].sum() > 1:
                less = x.copy()
                less[j] = False
                change = problem.values(less) - problem.values(x)
                ratios[int(j)] = change[0] / -(change[1:] / total[1:]).sum()
        assert ratios[int(i)] == pytest.approx(min(ratios.values()))
        x[i] = False
    np.testing.assert_array_equal(removal_path(order, 10)[-1], x)


def test_the_starts_hold_the_removal_path_and_uniform_densities():
    stats = example_statistics()
    problem = MultiObjectiveSelection(starts=64).encode(stats)
    starts = {tuple(x) for x in problem.starts.tolist()}
    assert len(starts) == len(problem.starts) <= 64
    order = removal_order(problem.parts[0], problem.parts[1:], stats.group_of, np.array([1, 1, 1]))
    # ten units: the path needs no thinning
    assert {tuple(x) for x in removal_path(order, 10).tolist()} <= starts
    assert any(kept_in_groups(stats, np.array([x]))[0].tolist() == [2, 2, 2] for x in starts)


def test_few_starts_span_the_whole_range():
    stats = example_statistics()
    problem = MultiObjectiveSelection(starts=4).encode(stats)
    assert len(problem.starts) <= 4
    spent = problem.values(problem.starts)[:, 1]
    feasible = ALL[(kept_in_groups(stats, ALL) >= 1).all(axis=1)]
    assert spent.max() == stats.total("params")
    assert spent.min() == min(stats.spent("params", x) for x in feasible)


def test_a_density_keeps_the_units_that_are_removed_last():
    rng = np.random.default_rng(0)
    group = np.array([0] * 5 + [1] * 3)
    order, low = rng.permutation(8)[:6], np.array([1, 0])
    order = np.array([i for i in order if i not in (0, 5)])
    step = {int(i): t for t, i in enumerate(order)}
    for x, density in zip(density_sweep(order, group, low, [0.0, 0.4, 1.0]), (0.0, 0.4, 1.0), strict=True):
        for g, size in enumerate((5, 3)):
            inside = np.flatnonzero(group == g)
            keep = max(int(np.floor(density * size + 0.5)), low[g])
            last = sorted(inside, key=lambda i: -step.get(int(i), 99))[:keep]
            assert {step.get(int(i), 99) for i in inside[x[inside]]} == {step.get(int(i), 99) for i in last}
            assert x[inside].sum() == keep


def test_spreading_keeps_all_where_there_is_room():
    rows = np.eye(4, dtype=bool)
    assert spread(rows, np.arange(4.0), 4) is rows
    assert len(spread(rows, np.array([0.0, 0.0, 0.0, 1.0]), 3)) == 2


def test_the_reference_lies_beyond_every_start():
    problem = MultiObjectiveSelection().encode(example_statistics())
    assert (problem.values(problem.starts) < problem.reference).all()


def test_an_instance_survives_its_file(tmp_path):
    stats = example_statistics(concat=True)
    problem = MultiObjectiveSelection(costs="params,macs").encode(stats, keep=0.8, macs=0.9)
    problem.save(tmp_path / "i.npz")
    again = MultiObjective.load(tmp_path / "i.npz")
    assert (again.hash, again.objectives, dict(again.meta)) == (problem.hash, problem.objectives, dict(problem.meta))
    np.testing.assert_array_equal(again.values(ALL), problem.values(ALL))
    np.testing.assert_array_equal(again.is_feasible(ALL), problem.is_feasible(ALL))
    np.testing.assert_array_equal(again.starts, problem.starts)
    np.testing.assert_array_equal(again.groups, stats.group_of)
    json.dumps(dict(problem.meta), allow_nan=False)


def test_decode_gives_back_the_units():
    stats = example_statistics()
    selection = MultiObjectiveSelection().decode(stats, ALL[300])
    np.testing.assert_array_equal(selection.keep, ALL[300])
    assert selection.groups == stats.groups


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"costs": ("latency",)}, "cost 'latency'"),
        ({"costs": ()}, "expected some of params, macs"),
        ({"costs": "params,params"}, "each once"),
        ({"error": "reconstructoin"}, "did you mean 'reconstruction'"),
        ({"error": 3}, "expected a formulation of one objective"),
        ({"error": MultiObjectiveSelection()}, "of one objective"),
        ({"error": "level-choice"}, "of one objective"),
        ({"starts": 1}, "starts: expected a whole number >= 2"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(InvalidProblem, match=words):
        MultiObjectiveSelection(**options)


def test_a_missing_statistic_is_named():
    stats = example_statistics()
    bare = type(stats)(stats.groups, blocks=stats.blocks, cost={"params": stats.cost["params"]})
    with pytest.raises(InvalidProblem, match="needs cost 'macs'"):
        MultiObjectiveSelection(costs="macs").encode(bare)
    with pytest.raises(InvalidProblem, match="needs factors 'fisher'"):
        MultiObjectiveSelection(error="fisher").encode(bare)
    assert formulations.get("multi-objective", error="fisher").needs == ("factors.fisher", "cost.params")


def test_a_unit_that_saves_nothing_goes_when_it_loses_nothing():
    error, cost = BinaryQuadratic([-1.0, 0.0]), BinaryQuadratic([1.0, 0.0])
    assert removal_order(error, [cost], np.array([0, 0]), np.array([0])).tolist() == [1, 0]
