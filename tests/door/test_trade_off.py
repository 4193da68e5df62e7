"""The whole trade-off: a front of the network's own loss and its cost, points as smaller networks, and the files."""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import prunesolve as ps
from prunesolve.bridges.torch.evaluate import evaluate
from prunesolve.bridges.torch.trade_off import level_path, search_half
from prunesolve.problems import LevelChoice
from prunesolve.solvers import EmoDir, Nsga2, Solver

from .networks import macs, params


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@functools.cache
def network():
    """Eight and six units between six inputs and four classes."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval()


@functools.cache
def batches():
    """What the network itself says of 96 inputs, so that pruning it costs something."""
    inputs = torch.randn(96, 6, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return [(x, network()(x).argmax(1)) for x in inputs.split(32)]


def traded(**options):
    return ps.trade_off(network(), batches(), **{"evaluations": 150, "refit": False} | options)


found = functools.cache(traded)


def half(name: str) -> list[Any]:
    """The batches of a half, samples told apart by their first input."""
    searched = {float(x[0]) for inputs, _ in search_half(batches()) for x in inputs}
    kept = [(x, y) for inputs, targets in batches() for x, y in zip(inputs, targets, strict=True)]
    rows = [(x, y) for x, y in kept if (float(x[0]) in searched) == (name == "search")]
    return [(torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows]))]


def masked_loss(selection, name):
    masked = ps.apply_masks(torch.nn.Sequential(*[type(m)(m.in_features, m.out_features) if isinstance(m, nn.Linear)
                                                   else m for m in network()]), {})  # fmt: skip
    masked.load_state_dict(network().state_dict())
    return evaluate(ps.apply_masks(masked, ps.masks(selection, masked)), half(name))["loss"]


# The front


def test_every_point_is_what_it_says():
    out = found()
    assert out.objectives == ("loss", "params")
    example = batches()[0][0][:2]
    for selection, values, guard in zip(out.selections, out.front.objectives, out.guard, strict=True):
        removed = ps.shrink(network(), selection, example)
        assert values[1] == params(removed, example)
        assert values[0] == pytest.approx(masked_loss(selection, "search"), rel=1e-4)
        assert guard == pytest.approx(masked_loss(selection, "guard"), rel=1e-4)


def test_no_point_is_beaten_and_the_front_beats_what_it_began_with():
    out = found()
    values = out.front.objectives
    assert len(values) > 3
    for one in values:
        assert not ((values <= one).all(axis=1) & (values < one).any(axis=1)).any()
    for path in out.baselines.values():
        for one in path.objectives[np.isfinite(path.objectives).all(axis=1)]:
            assert (values <= one + 1e-12).all(axis=1).any()
    assert set(out.baselines) == {"removal path", "uniform density"}
    assert out.result.evaluations <= 150


def test_the_hypervolume_is_the_area_up_to_the_reference():
    out = found()
    inside = out.front.objectives[(out.front.objectives < out.reference).all(axis=1)]
    area, level = 0.0, out.reference[1]
    for error, cost in inside[np.argsort(inside[:, 0])]:
        area += (out.reference[0] - error) * max(0.0, level - cost)
        level = min(level, cost)
    assert out.hypervolume == pytest.approx(area)
    assert out.result.objective == pytest.approx(-area)


def test_the_same_seed_gives_the_same_front():
    again = traded(seed=0)
    np.testing.assert_array_equal(again.front.solutions, found().front.solutions)
    assert not np.array_equal(traded(seed=1).front.objectives, found().front.objectives)


def test_costs_are_those_of_the_removed_network():
    out, example = found(), batches()[0][0][:2]
    for i in (0, out.knee, len(out.selections) - 1):
        removed = ps.shrink(network(), out.selections[i], example)
        assert out.costs["macs"][i] == macs(removed, example)
        assert out.costs["units"][i] == out.selections[i].keep.sum()


# Picking


@pytest.mark.parametrize("budget", [{"params": 0.5}, {"macs": 0.6}, {"keep": 8}, {"params": 90, "keep": 0.9}], ids=str)
def test_a_budget_picks_the_least_guard_loss_within(budget):
    out = found()
    picked = out.pick(**budget)
    totals = {"keep": 14, "params": out.statistics.total("params"), "macs": out.statistics.total("macs")}
    names = {"keep": "units", "params": "params", "macs": "macs"}
    within = np.ones(len(out.selections), dtype=bool)
    for name, asked in budget.items():
        limit = asked * totals[name] if isinstance(asked, float) else asked
        within &= out.costs[names[name]] <= limit
        after, before = picked.report["achieved"][names[name]]
        assert after <= (asked * before if isinstance(asked, float) else asked)
    best = int(np.flatnonzero(within)[np.argmin(out.guard[within])])
    np.testing.assert_array_equal(picked.selection.keep, out.selections[best].keep)
    assert picked.report["solver"]["front"]["point"] == best


def test_a_picked_network_equals_its_masks():
    out, (inputs, _) = found(), batches()[0]
    picked = out.pick(index=-2)
    masked = ps.apply_masks(nn.Sequential(*[nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m
                                            for m in network()]), {})  # fmt: skip
    masked.load_state_dict(network().state_dict())
    masked = ps.apply_masks(masked, picked.masks)
    torch.testing.assert_close(masked(inputs), picked.model(inputs))
    assert picked.report["removal"]["passed"]
    assert params(picked.model, inputs) == out.front.objectives[-2, 1]
    assert [step["step"] for step in picked.report["steps"]] == ["dense", "masked"]


def test_the_knee_without_a_word_and_a_refit_where_asked():
    out = found()
    picked = out.pick(refit=True, repair=["bn"])
    np.testing.assert_array_equal(picked.selection.keep, out.selections[out.knee].keep)
    assert [step["step"] for step in picked.report["steps"]] == ["dense", "masked", "refit", "bn"]
    assert picked.report["asked"] == {"knee": True}
    np.testing.assert_array_equal(out.result.solution, picked.selection.keep)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"params": 1}, r"params: no point of the front is within 1 parameters; the cheapest has \d+"),
        ({"keep": 0.01}, "keep: no point of the front is within 0 units"),
        ({"index": 99}, r"index: expected a point of the front, 0 to \d+, got 99"),
        ({"index": True}, "index: expected a point"),
        ({"knee": True, "params": 0.5}, "one of knee, index or budgets"),
        ({"params": 1.5}, r"lies in \(0, 1\]"),
        ({"repair": ["bm"]}, "repair 'bm'"),
    ],
    ids=str,
)
def test_what_cannot_be_picked_is_said(asked, words):
    with pytest.raises(ps.InvalidProblem, match=words):
        found().pick(**asked)


# Files


def test_the_folder_holds_front_plots_and_report(tmp_path):
    out = found()
    out.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "front.json", "front.svg", "hypervolume.svg", "counts.svg", "report.html",
    }  # fmt: skip
    told = json.loads((tmp_path / "front.json").read_text(), parse_constant=pytest.fail)
    assert told["front"]["names"] == ["loss", "params"]
    assert (told["front"]["knee"], told["front"]["hypervolume"]) == (out.knee, out.hypervolume)
    assert len(told["points"]) == len(out.selections) == len(told["front"]["solutions"])
    for point, selection, guard in zip(told["points"], out.selections, out.guard, strict=True):
        assert point["kept"] == np.flatnonzero(selection.keep).tolist()
        assert point["costs"]["params"] == out.statistics.spent("params", selection.keep)
        assert point["guard"] == pytest.approx(guard)
    assert {tuple(u) for u in told["units"]} == {tuple(u) for u in out.statistics.units}
    again = ps.load(tmp_path / "front.json")
    np.testing.assert_array_equal(again.front.solutions, out.front.solutions)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure>") == 3
    for word in ("removal path", "guard half", "knee", "hypervolume"):
        assert word in page
    assert len(re.findall("<tr>", page)) == len(out.selections) + 1


def test_a_point_and_the_front_share_a_folder(tmp_path):
    out = found()
    out.save(tmp_path)
    out.pick().save(tmp_path)
    problem, result = ps.load(tmp_path / "instance.npz"), ps.load(tmp_path / "result.json")
    assert problem.is_feasible(result.solution)
    assert problem.value(result.solution) == pytest.approx(result.objective)
    assert (tmp_path / "front.json").exists()


def test_it_prints_as_a_table():
    out = found()
    lines = str(out).splitlines()
    assert lines[0] == f"{len(out.selections)} points, hypervolume {out.hypervolume:.6g}, knee {out.knee}"
    assert lines[1].split() == ["loss", "guard", "units", "params", "macs"]
    assert any(line.startswith(f"{out.knee} knee") for line in lines)


# What is decided, and by whom


def test_levels_are_counts_of_the_database():
    out = traded(decide="levels", evaluations=60, refit=True)
    assert out.front.solutions.dtype == np.int64
    assert set(out.baselines) == {"removal path", "dynamic programming", "uniform density"}
    for levels, selection, values in zip(out.front.solutions, out.selections, out.front.objectives, strict=True):
        assert len(levels) == 2
        assert values[1] == out.statistics.spent("params", selection.keep)
    assert out.pick(params=0.5).report["removal"]["passed"]
    assert np.isfinite(out.guard).all()


def test_levels_above_a_limit_are_never_tried():
    out = traded(decide="levels", evaluations=60, limits={"params": 0.5})
    space, most = out.problem.space, 0.5 * out.dense["params"]
    assert space.budget == pytest.approx(most)
    assert len(out.problem.starts)
    assert max(space.spent(out.problem.starts)) <= most
    assert out.costs["params"].max() <= most
    with pytest.raises(ps.InvalidProblem, match="budget"):
        traded(decide="levels", evaluations=60, limits={"params": 0.001})


def test_both_begins_with_the_front_of_levels():
    out = traded(decide="both", evaluations=80, refit=True)
    assert out.front.solutions.dtype == bool
    assert len(out.baselines["levels"].solutions)
    for one in out.baselines["levels"].objectives:
        assert (out.front.objectives <= one + 1e-12).all(axis=1).any()


def test_sub_networks_are_split_where_it_is_said():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        wide = nn.Sequential(
            nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)
        )
    solver = EmoDir(inner=Nsga2(population=8, generations=3))
    more = {"solver": solver, "boundaries": ["3"], "refit": False}
    out = ps.trade_off(wide, batches(), objectives=("loss", "macs"), evaluations=80, **more)
    # the layer behind which it is split stays
    assert [group.layer for group in out.statistics.groups] == ["0", "4"]
    example = batches()[0][0][:2]
    for selection, values in zip(out.selections, out.front.objectives, strict=True):
        assert values[1] == macs(ps.shrink(wide, selection, example), example)
    assert out.pick(macs=0.8).report["removal"]["passed"]
    with pytest.raises(ps.InvalidProblem, match="sub-networks take the loss and one cost"):
        ps.trade_off(wide, batches(), objectives=("loss", "params", "macs"), **more)


def test_an_error_in_closed_form_needs_no_targets():
    inputs = [x for x, _ in batches()]
    out = ps.trade_off(network(), inputs, objectives=("reconstruction", "params", "macs"), evaluations=60)
    assert out.guard is None
    assert out.front.objectives.shape[1] == 3
    problem = ps.formulations.Reconstruction().encode(out.statistics, keep=1.0)
    np.testing.assert_allclose(out.front.objectives[:, 0], problem.value(out.front.solutions), atol=1e-12)
    picked = out.pick(macs=0.7)
    assert picked.report["steps"] == []
    assert picked.report["achieved"]["macs"][0] <= 0.7 * picked.report["achieved"]["macs"][1]


def test_the_metric_enters_as_minus_it():
    out = traded(objectives=("metric", "params"), evaluations=60)
    assert out.front.objectives[:, 0].min() >= -100.0
    dense = out.front.objectives[np.argmin(out.front.objectives[:, 0])]
    assert dense[0] == -100.0
    assert (out.guard <= 0).all()


def test_activities_are_measured_for_a_solver_that_wants_them():
    solver = Nsga2(mutation="variance", population=10, generations=4)
    assert traded(solver=solver).problem.activity.shape == (96, 14)
    assert found().problem.activity is None


def test_limits_hold_and_an_empty_front_names_the_nearest():
    out = traded(limits={"params": 0.5, "loss": 3.0}, evaluations=100)
    assert (out.front.objectives[:, 1] <= 0.5 * out.statistics.total("params")).all()
    assert (out.front.objectives[:, 0] <= 3.0).all()
    with pytest.raises(ps.SolverFailed, match=r"no point within the limits.*nearest has loss \S+, params") as failed:
        traded(limits={"loss": 1e-9}, evaluations=30)
    assert failed.value.result.details["least_violated"]["violation"] > 0


@dataclass(frozen=True)
class InterruptedSearch(Solver):
    """Evaluates the starts; then somebody presses Ctrl-C."""

    name: ClassVar[str] = "interrupted"
    accepts: ClassVar[Any] = ps.MultiObjective
    before: int = 6

    def _search(self, problem, run):
        run.evaluate(problem.starts[: self.before])
        raise KeyboardInterrupt


def test_ctrl_c_keeps_the_front_so_far():
    out = traded(solver=InterruptedSearch())
    assert out.result.details["interrupted"]
    assert out.guard is None
    assert len(out.selections) >= 1
    assert out.pick().result.details["interrupted"]
    with pytest.raises(KeyboardInterrupt):
        traded(solver=InterruptedSearch(before=0))


def test_prune_takes_the_formulation_too():
    network_, data = network(), batches()
    solver = Nsga2(population=20, generations=3)
    out = ps.prune(network_, data, params=0.5, formulation="multi-objective", solver=solver, refit=False)
    after, before = out.report["achieved"]["params"]
    assert after <= 0.5 * before
    assert "point" in out.report["solver"]["front"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objectives": ("los", "params")}, "did you mean 'loss'"),
        ({"objectives": ("loss", "parms")}, "did you mean 'params'"),
        ({"objectives": ("loss",)}, "expected an error and one or two costs"),
        ({"objectives": "loss"}, "expected an error and one or two costs"),
        ({"objectives": ("params", "loss")}, "error to be the first objective 'params'"),
        ({"decide": "unit"}, "did you mean 'units'"),
        ({"decide": "levels", "objectives": ("fisher", "params")}, "first objective of levels 'fisher'"),
        ({"solver": "nsga"}, "did you mean 'nsga2'"),
        ({"solver": "greedy"}, "greedy takes BinaryQuadratic"),
        ({"evaluations": 0}, "evaluations: expected a whole number >= 1"),
        ({"limits": {"macs": 0.5}}, "objective with a limit 'macs'"),
        ({"limits": {"params": 1.5}}, r"lies in \(0, 1\]"),
        ({"refit": "nonsense"}, "refit: expected True"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_in_words(options, words):
    with pytest.raises((ps.InvalidProblem, ps.UnsupportedProblem), match=words):
        traded(**options)


def test_a_loss_needs_targets():
    with pytest.raises(ps.InvalidProblem, match="inputs without targets"):
        ps.trade_off(network(), [x for x, _ in batches()], evaluations=10)


def test_an_evaluation_without_a_value_is_told():
    def broken(outputs, targets):
        losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return losses * math.nan if float(losses.detach().mean()) > 1.2 else losses

    out = traded(loss=broken, evaluations=60)
    assert (out.front.objectives[:, 0] <= 1.3).all()
    assert out.result.details["failures"][0]["error"] == "no value (NaN)"


def test_the_path_over_levels_takes_the_cheapest_step_next():
    choice = LevelChoice([[5.0, 1.0, 0.0], [3.0, 0.0]], [[1.0, 2.0, 4.0], [0.0, 2.0]], 6.0)
    path = level_path(choice, 10)
    assert path[0].tolist() == [2, 1]
    assert path[-1].tolist() == [0, 0]
    for one, other in zip(path, path[1:], strict=False):
        steps = {}
        for layer in np.flatnonzero(one):
            less = one.copy()
            less[layer] -= 1
            steps[layer] = (choice.value(less) - choice.value(one)) / (choice.spent(one) - choice.spent(less))
        assert steps[int(np.flatnonzero(one - other)[0])] == min(steps.values())
