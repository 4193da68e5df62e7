"""Tuning against toy black boxes whose best point, cost and calls are known by counting."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunesolve.bridges.torch.evaluate import Evaluator
from prunesolve.bridges.torch.measure import measure
from prunesolve.bridges.torch.tune import tune
from prunesolve.formulations import Fisher, HybridQubo, L1Qubo, Moonshot
from prunesolve.formulations.testing import example_statistics
from prunesolve.problems import BlackBox, InvalidProblem, Selections
from prunesolve.solvers import Exact

SOLVER = Exact()
GRID = {"alpha": (0.0, 0.5, 1.0), "beta": (0.0, 0.5, 3.0)}


class Toy:
    """Linear loss on each of B batches; counts what it was asked."""

    def __init__(self, batches=8, seed=0, nan=()):
        rng = np.random.default_rng(seed)
        self.losses = rng.standard_normal(10) + 0.3 * rng.standard_normal((batches, 10))
        self.weights = rng.integers(1, 4, size=batches).astype(float)
        self.nan, self.asked = nan, Counter()
        self.box = BlackBox(Selections(10), self.evaluate, weights=self.weights)

    def evaluate(self, rows, batch):
        self.asked.update((row.tobytes(), batch) for row in rows)
        values = rows @ self.losses[batch]
        return np.where([row.tobytes() in self.nan for row in rows], np.nan, values)

    def value(self, x):
        """The objective, past the box."""
        return float((self.losses @ np.asarray(x, dtype=float)) @ self.weights / self.weights.sum())


def answers(stats, formulations):
    return [SOLVER.solve(f.encode(stats, keep=5)).solution for f in formulations]


def tuned(toy, stats, **options):
    return tune(HybridQubo(), stats, toy.box, keep=5, solver=SOLVER, **{"grid": GRID} | options)


def test_with_one_batch_it_finds_the_best_of_the_grid():
    stats = example_statistics()
    for seed in range(5):
        toy = Toy(batches=1, seed=seed)
        tried = [HybridQubo(), *(HybridQubo(alpha=a, beta=b) for a in GRID["alpha"] for b in GRID["beta"])]
        best = min(toy.value(x) for x in answers(stats, tried))
        found = tuned(toy, stats)
        assert toy.value(found.keep) == pytest.approx(best)
        np.testing.assert_array_equal(answers(stats, [found.formulation])[0], found.keep)
        assert len(found.trials) == 9  # the untuned one is a point of the grid and tried once


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_never_worse_than_untuned_on_what_was_searched(seed, batches):
    stats, toy = example_statistics(seed % 7), Toy(batches, seed)
    found = tuned(toy, stats)
    default = answers(stats, [HybridQubo()])[0]
    assert found.default.formulation == HybridQubo()
    assert found.default.batches == found.trials[0].batches == batches
    assert found.default.value == pytest.approx(toy.value(default))
    assert toy.value(found.keep) <= toy.value(default) + 1e-12
    assert found.trials[0].formulation == found.formulation


def test_every_selection_is_judged_once_a_batch_and_the_cost_is_what_was_asked():
    stats, toy = example_statistics(), Toy()
    found = tuned(toy, stats)
    assert set(toy.asked.values()) == {1}
    shares = toy.weights / toy.weights.sum()
    assert found.evaluations == pytest.approx(sum(shares[batch] for _, batch in toy.asked))
    distinct = len({trial.keep.tobytes() for trial in found.trials})
    assert found.evaluations < distinct
    again = tuned(toy, stats)
    assert again.evaluations == 0.0
    assert again.formulation == found.formulation


def test_fewer_get_more_batches():
    stats, toy = example_statistics(3), Toy()
    wide = {"beta": (0.0, 1.0, 3.0, 10.0, 100.0), "normalisation": ("global", "layer"), "pairs": ("pruned", "kept")}
    found = tuned(toy, stats, grid=wide)
    judged = {t.keep.tobytes(): t.batches for t in found.trials}
    reached = [sum(batches >= rung for batches in judged.values()) for rung in (1, 2, 4, 8)]
    assert reached == sorted(reached, reverse=True)
    assert reached[0] == len(judged) >= 5
    assert reached[-1] <= (len(judged) + 1) // 2 + 1 < len(judged)
    assert [t.batches for t in found.trials] == sorted((t.batches for t in found.trials), reverse=True)


def test_a_selection_without_a_value_loses():
    stats = example_statistics()
    default = answers(stats, [HybridQubo()])[0]
    toy = Toy(nan={default.tobytes()})
    found = tuned(toy, stats)
    assert found.default.value == np.inf
    assert np.isfinite(toy.value(found.keep))
    assert not np.array_equal(found.keep, default)
    every = Toy(nan={x.keep.tobytes() for x in found.trials})
    assert tuned(every, stats).formulation == HybridQubo()


def test_a_tie_leaves_the_formulation_alone():
    flat = BlackBox(Selections(10), lambda X: np.zeros(len(X)))
    found = tune(HybridQubo(), example_statistics(), flat, keep=5, grid=GRID, solver=SOLVER)
    assert found.formulation == HybridQubo()


def test_an_evaluator_judges_and_its_guard_half_is_told():
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    inputs = torch.randn(32, 4, generator=generator)
    data = [(part, network(part).detach() + 0.1) for part in inputs.split(8)]
    stats = measure(network, data, progress=False)
    evaluator = Evaluator(network, data, stats.groups)
    found = tune(HybridQubo(), stats, evaluator, keep=0.5, grid=GRID, solver=SOLVER)
    assert found.trials[0].value == pytest.approx(evaluator.score(found.keep)["loss"], rel=1e-4)
    assert found.trials[0].guard == evaluator.score(found.keep, "guard")
    assert found.default.guard is not None
    told = str(found)
    assert "alpha" in told.splitlines()[0]
    assert f"{found.evaluations:.1f} evaluations" in told
    unguarded = Evaluator(network, data, stats.groups, guard=False)
    assert tune(HybridQubo(), stats, unguarded, keep=0.5, grid=GRID, solver=SOLVER).default.guard is None


def test_the_shipped_grids_fit_their_formulations():
    stats, toy = example_statistics(), Toy()
    assert len(tune(HybridQubo(), stats, toy.box, keep=5, solver=SOLVER).trials) == 24
    assert len(tune(L1Qubo(beta=0.3), stats, toy.box, keep=5, solver=SOLVER).trials) == 5


@pytest.mark.parametrize(
    ("formulation", "grid", "words"),
    [
        (Fisher(), None, "grid: expected one for 'fisher'; there are hybrid-qubo"),
        (HybridQubo(), {"betta": (0.1,)}, "unknown field of hybrid-qubo 'betta': did you mean 'beta'"),
        (HybridQubo(), {"beta": (-1.0,)}, "beta: expected a number from 0"),
    ],
)
def test_nonsense_is_refused_in_words(formulation, grid, words):
    with pytest.raises(InvalidProblem, match=words):
        tune(formulation, example_statistics(), Toy().box, keep=5, grid=grid, solver=SOLVER)


def test_moonshot_is_swept_by_its_own_grid():
    """The loss counts what lam = 0 would keep: nothing but the sweep finds that end."""
    stats = example_statistics(3)
    wanted = SOLVER.solve(Moonshot(lam=0.0).encode(stats, keep=5)).solution
    assert not np.array_equal(wanted, SOLVER.solve(Moonshot().encode(stats, keep=5)).solution)
    box = BlackBox(Selections(10), lambda rows: (rows != wanted).sum(axis=1).astype(float))
    found = tune(Moonshot(), stats, box, keep=5, solver=SOLVER)
    assert {t.formulation.lam for t in found.trials} == {round(0.1 * tenth, 1) for tenth in range(11)}
    np.testing.assert_array_equal(found.keep, wanted)
    assert found.trials[0].value == 0.0
    assert found.default.value > 0.0
