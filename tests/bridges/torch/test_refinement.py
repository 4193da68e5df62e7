"""Refining by evaluations of the network itself: what is searched, what the guard half decides, what is told."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import prunesolve as ps
from prunesolve.bridges.torch.evaluate import Evaluator
from prunesolve.bridges.torch.refinement import _guarded, evaluates, refined
from prunesolve.formulations import HybridQubo
from prunesolve.solvers import Greedy, Refine, SwapSearch, TensorTrain


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))


def data(seed: int = 1, samples: int = 96) -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs = torch.randn(samples, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        targets = network()(inputs).argmax(1)
    return list(zip(inputs.split(16), targets.split(16), strict=True))


@pytest.fixture(scope="module")
def measured():
    stats = ps.measure(network(), data())
    return stats, HybridQubo().encode(stats, keep=0.5)


def test_black_box_solvers_are_told_from_others():
    assert evaluates(Refine())
    assert evaluates(SwapSearch())
    assert evaluates(TensorTrain())
    assert not evaluates(Greedy())


def test_the_objective_is_the_masked_networks_loss_on_the_search_half(measured):
    stats, problem = measured
    result = refined(network(), data(), stats.groups, problem, Refine("greedy", SwapSearch(evaluations=60)))
    evaluator = Evaluator(network(), data(), stats.groups)
    assert result.objective == pytest.approx(evaluator.score(result.solution, "search")["loss"], rel=1e-5)
    assert problem.is_feasible(result.solution)
    told = result.details["refinement"]
    search = [score["loss"] for score in told["halves"]["search"]]
    assert search[1] <= search[0]
    json.dumps(told, allow_nan=False)


class Halves:
    """An evaluator whose guard half says what the test wants."""

    def __init__(self, guard: dict[bool, float]) -> None:
        self.guard = guard

    def score(self, keep, half):
        return {"loss": self.guard[bool(keep[0])] if half == "guard" else 1.0, "metric": float("nan")}


@pytest.mark.parametrize(
    ("before", "after", "returned"),
    [(1.0, 0.5, "refined"), (1.0, 1.5, "unrefined"), (1.0, float("nan"), "unrefined"), (float("inf"), 2.0, "refined")],
)
def test_the_guard_half_has_the_last_word(measured, before, after, returned):
    stats, problem = measured
    result = Refine("greedy", SwapSearch(evaluations=5)).solve(problem)
    solution = result.solution.copy()
    solution[0] = True
    kept = np.flatnonzero(~solution).tolist()
    result = replace(result, solution=solution, details={"unrefined": {"objective": 7.0, "kept": kept}})
    guarded = _guarded(result, Halves({False: before, True: after}))
    assert guarded.details["refinement"]["returned"] == returned
    assert bool(guarded.solution[0]) == (returned == "refined")
    assert guarded.objective == (result.objective if returned == "refined" else 7.0)
    json.dumps(guarded.details["refinement"], allow_nan=False)


def test_progress_is_told_on_stderr_and_changes_nothing(measured, capsys):
    stats, problem = measured
    solver = Refine("greedy", SwapSearch(evaluations=20))
    quiet, told = (
        refined(network(), data(), stats.groups, problem, solver, progress=progress) for progress in (False, True)
    )
    assert np.array_equal(quiet.solution, told.solution)
    assert quiet.evaluations == told.evaluations
    out, err = capsys.readouterr()
    assert not out
    assert "refining" in err


@pytest.mark.parametrize("refit", [False, True])
def test_prune_refines_with_a_black_box_solver(tmp_path, refit):
    dense = network()
    before = copy.deepcopy(dense.state_dict())
    solver = Refine("greedy", SwapSearch(evaluations=40), over="both")
    out = ps.prune(dense, data(), keep=0.5, formulation="hybrid-qubo", solver=solver, refit=refit, seed=3)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    assert int(out.selection.keep.sum()) == 9
    told = str(out.report)
    assert "guard half" in told
    assert "evaluations" in told
    out.save(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "result.json").read_text())
    # what is stored belongs to the instance beside it
    problem = ps.load(tmp_path / "out" / "instance.npz")
    assert saved["objective"] == pytest.approx(problem.value(out.result.solution))
    assert saved["solver"].startswith("Refine(")


def test_prune_takes_the_name_alone():
    out = ps.prune(network(), data(samples=32), keep=0.5, formulation="hybrid-qubo", solver="swap-search", time_limit=1)
    assert out.result.feasible
    assert out.report["solver"]["solver"].startswith("SwapSearch(")


def test_a_budget_is_spent_to_the_last_unit_that_fits():
    out = ps.prune(
        network(), data(), params=0.5, formulation="hybrid-qubo", solver=Refine("greedy", SwapSearch(evaluations=20))
    )
    after, dense = out.report["achieved"]["params"]
    assert after <= 0.5 * dense


def test_the_same_seed_gives_the_same_masks():
    first, second = (
        ps.prune(network(), data(), keep=0.5, solver=Refine("greedy", SwapSearch(evaluations=30)), seed=5)
        for _ in range(2)
    )
    assert np.array_equal(first.selection.keep, second.selection.keep)


def test_data_without_targets_are_refused_in_words():
    inputs = [batch for batch, _ in data()]
    with pytest.raises(ps.InvalidProblem, match="targets"):
        ps.prune(network(), inputs, keep=0.5, solver=Refine("greedy", "swap-search"))
