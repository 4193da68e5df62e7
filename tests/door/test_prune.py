"""The whole way in one call: a network and data in, masks and a smaller network that computes the same out."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prunesolve as ps
from prunesolve.bridges.torch.evaluate import evaluate
from prunesolve.demo_networks import demo_task, load_network
from prunesolve.pipeline import spend_rest

from .networks import examples, macs, params, small

ROOT = Path(__file__).resolve().parents[2]
FAST = ps.solvers.SwapAnnealing(sweeps=100, restarts=1)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def pruned(**options):
    options = {"solver": FAST, "refit": False} | options
    return ps.prune(small(), [examples()], **options)


@functools.cache
def halved():
    return pruned(keep=0.5)


def same_state(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Budgets


@pytest.mark.parametrize(("keep", "units"), [(0.5, 9), (11, 11), (18, 18), (1.0, 18), (3, 3)])
def test_the_number_kept_is_the_number_asked(keep, units):
    out = pruned(keep=keep)
    assert out.selection.keep.sum() == units == out.report["achieved"]["units"][0]
    assert out.result.solution.sum() == units
    assert sum(kept for kept, _ in out.report["layers"].values()) == units


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.5}, {"macs": 9000}, {"params": 300, "macs": 0.9}])
def test_budgets_hold_on_the_removed_model_and_no_unit_more_fits(budget):
    network, (inputs, _) = small(), examples()
    out = pruned(**budget)
    counts = {"macs": macs, "params": params}
    dense = {name: count(network, inputs) for name, count in counts.items()}
    limit = {name: asked * dense[name] if isinstance(asked, float) else asked for name, asked in budget.items()}
    for name in budget:
        assert counts[name](out.model, inputs) <= limit[name]
        assert out.report["achieved"][name] == [counts[name](out.model, inputs), dense[name]]
    for unit in np.flatnonzero(~out.selection.keep):
        more = out.selection.keep.copy()
        more[unit] = True
        larger = ps.shrink(network, ps.Selection(out.selection.groups, more), inputs[:1])
        assert any(counts[name](larger, inputs) > limit[name] for name in budget)


def test_units_and_a_resource_together():
    network, (inputs, _) = small(), examples()
    out = pruned(keep=8, macs=0.5)
    assert out.selection.keep.sum() == 8
    assert macs(out.model, inputs) <= 0.5 * macs(network, inputs)


def test_the_result_agrees_with_the_masks_where_units_were_added_back():
    # a strong penalty on likeness leaves the search below the budget
    out = pruned(macs=0.8, formulation=ps.formulations.L1Qubo(beta=3.0))
    np.testing.assert_array_equal(out.result.solution, out.selection.keep)
    assert out.result.objective == pytest.approx(out.problem.value(out.selection.keep))
    assert out.result.details["added_back"] == out.report["solver"]["added_back"] > 0
    assert out.result.details["searched_objective"] < out.result.objective
    assert out.result.status is not ps.Status.OPTIMAL


@given(st.integers(0, 10**6), st.integers(2, 9), st.floats(0.0, 1.0))
def test_spending_the_rest_only_adds_and_leaves_no_room(seed, n, share):
    rng = np.random.default_rng(seed)
    couplings = np.triu(rng.normal(size=(n, n)), 1)
    pair = np.triu(rng.integers(0, 3, (n, n)), 1)
    cost = rng.integers(1, 5, n).astype(float)
    budget = ps.Budget(cost, share * (cost.sum() + pair.sum()), pair + pair.T)
    group = rng.integers(-1, 2, n)
    size = np.bincount(group[group >= 0], minlength=2)
    bounds = ps.GroupBounds(group, [0, 0], np.minimum(size, 2))
    problem = ps.BinaryQuadratic(rng.normal(size=n), couplings + couplings.T, constraints=[budget, bounds])
    keep = spend_rest(problem, np.zeros(n, dtype=bool))
    assert problem.is_feasible(keep)
    for unit in np.flatnonzero(~keep):
        more = keep.copy()
        more[unit] = True
        assert not problem.is_feasible(more)


def test_an_exact_count_leaves_nothing_to_spend():
    problem = ps.BinaryQuadratic([-1.0, -2.0], constraints=[ps.Cardinality(1), ps.Budget([1, 1], 5)])
    assert spend_rest(problem, [True, False]).tolist() == [True, False]


# What comes back


def test_masks_on_the_original_equal_the_smaller_model():
    inputs, _ = examples(7)
    network, out = small(), halved()
    masked = ps.apply_masks(copy.deepcopy(network), out.masks).eval()
    torch.testing.assert_close(masked(inputs), copy.deepcopy(out.model).eval()(inputs))
    for path, mask in out.masks.items():
        assert mask.dtype == torch.bool
        kept = dict(out.selection.kept)
        if path in kept:
            assert mask.nonzero().flatten().tolist() == kept[path]
    assert params(out.model, inputs) < params(network, inputs)
    assert ps.verify(masked, out.model, inputs).passed


def test_the_original_stays_as_it_was_bit_for_bit():
    network = small()
    before, flags = copy.deepcopy(network), [m.training for m in network.modules()]
    state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002  (the caller's legacy state is what must stay)
    ps.prune(network, [examples()], keep=0.5, solver=FAST, repair=["bn"], device="cpu")
    assert same_state(network, before)
    assert [m.training for m in network.modules()] == flags
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_the_smaller_model_has_the_flags_of_the_original():
    out = halved()
    assert {path: m.training for path, m in out.model.named_modules()} == {
        path: m.training for path, m in small().named_modules()
    }


def test_the_report_tells_asked_against_achieved():
    report = pruned(keep=0.5, refit=True, repair=["bn"]).report
    assert report["asked"] == {"keep": 0.5}
    assert [step["step"] for step in report["steps"]] == ["dense", "masked", "refit", "bn"]
    assert set(report["achieved"]) == {"units", "params", "macs"}
    assert report["removal"]["passed"] is True
    assert report["removal"]["largest_difference"] <= report["removal"]["tolerance"]
    assert set(report["layers"]) == {"conv1", "inner", "conv2"}
    assert "head" in report["excluded"]
    assert report["solver"]["seed"] == 0
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    shown = str(report)
    for word in ("keep=0.5", "params", "masked", "refit", "head: left out", "largest difference"):
        assert word in shown


def test_each_step_is_judged_as_it_was_when_it_was_made():
    data = [examples()]
    steps = {step["step"]: step for step in pruned(keep=0.4, refit=False, repair=["bn"]).report["steps"]}
    out = pruned(keep=0.4)
    assert steps["dense"]["loss"] == pytest.approx(evaluate(small(), data)["loss"])
    assert steps["masked"]["loss"] == pytest.approx(evaluate(out.model, data)["loss"], rel=1e-4)
    repaired = ps.recalibrate_batchnorm(copy.deepcopy(out.model), data)
    assert steps["bn"]["loss"] == pytest.approx(evaluate(repaired, data)["loss"], rel=1e-4)
    assert steps["bn"]["loss"] != steps["masked"]["loss"]


def test_the_callers_loss_and_metric_are_the_ones_reported():
    report = pruned(
        keep=0.5,
        loss=lambda outputs, targets: (outputs.sum(1) - targets).square(),
        metric=lambda outputs, targets: outputs.abs().mean(),
    ).report
    inputs, targets = examples()
    with torch.no_grad():
        outputs = small().eval()(inputs)
    assert report["steps"][0]["loss"] == pytest.approx(float((outputs.sum(1) - targets).square().mean()), rel=1e-5)
    assert report["steps"][0]["metric"] == pytest.approx(float(outputs.abs().mean()), rel=1e-5)


def test_a_loss_that_is_not_finite_is_told_and_not_written_as_nan(tmp_path):
    out = pruned(keep=0.5, metric=lambda outputs, targets: outputs.mean() * float("inf"))
    assert out.report["steps"][0]["metric"] is None
    assert "not finite" in str(out.report)
    out.save(tmp_path)
    assert "NaN" not in (tmp_path / "report.json").read_text()


def test_no_labels_are_needed():
    inputs, _ = examples()
    out = ps.prune(small(), inputs, keep=0.5, solver=FAST)
    assert out.report["steps"] == []
    assert out.selection.keep.sum() == 9
    with pytest.raises(ps.InvalidProblem, match="taylor"):
        ps.prune(small(), inputs, keep=0.5, solver=FAST, formulation="hybrid-qubo")


def test_a_one_shot_iterator_is_kept_in_memory_with_a_notice(caplog):
    inputs, targets = examples()
    out = ps.prune(small(), iter([(inputs[:12], targets[:12]), (inputs[12:], targets[12:])]), keep=0.5, solver=FAST)
    assert out.selection.keep.sum() == 9
    assert "one-shot iterator" in caplog.text


def test_a_data_loader_serves():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*examples()), batch_size=24)
    out = ps.prune(small(), loader, keep=0.5, solver=FAST, refit=False)
    np.testing.assert_array_equal(out.selection.keep, halved().selection.keep)


def test_no_progress_bar_where_nobody_watches(capsys):
    pruned(keep=0.5)
    assert capsys.readouterr() == ("", "")


# Choices


OF_STATISTICS = [cls.name for cls in ps.formulations.all() if issubclass(cls, ps.formulations.Formulation)]


@pytest.mark.parametrize("formulation", [name for name in ps.formulations.names() if name not in OF_STATISTICS])
def test_a_formulation_of_features_is_refused_with_the_way_to_go(formulation):
    with pytest.raises(ps.InvalidProblem, match=f"{formulation} reads features of neurons.*prunesolve.merge"):
        pruned(keep=0.5, formulation=formulation)


@pytest.mark.parametrize("formulation", OF_STATISTICS)
def test_every_formulation_goes_the_whole_way(formulation):
    own = {"multi-objective": ps.solvers.get("nsga2", population=20, generations=3), "level-choice": "auto"}
    out = pruned(keep=0.5, formulation=formulation, solver=own.get(formulation, FAST))
    assert out.result.feasible
    assert out.report["removal"]["passed"]
    named = "reconstruction" if formulation == "multi-objective" else formulation
    assert out.problem.meta["formulation"].startswith(type(ps.formulations.get(named)).__name__)


@pytest.mark.parametrize("solver", ["auto", "greedy", FAST, ps.solvers.Greedy])
def test_a_solver_by_name_by_options_or_by_class(solver):
    assert pruned(keep=0.5, solver=solver).result.feasible


def test_layers_name_whose_outputs_may_go():
    out = pruned(keep=0.5, layers=["inner"])
    assert list(out.report["layers"]) == ["inner"]
    assert out.report["layers"]["inner"] == [3, 5]
    assert (out.model.inner.out_channels, out.model.outer.in_channels, out.model.conv1.out_channels) == (3, 3, 6)


@pytest.mark.slow
def test_refit_lowers_the_error_of_what_the_next_layers_read():
    network, data = load_network("classify"), demo_task("classify").data().calibration[0]
    data = [(data[0][:120], data[1][:120])]
    plain = ps.prune(network, data, keep=0.36, solver="greedy", refit=False)
    fitted = ps.prune(network, data, keep=0.36, solver="greedy")
    np.testing.assert_array_equal(plain.selection.keep, fitted.selection.keep)
    with torch.no_grad():
        want, rough, close = (m(data[0][0]) for m in (network, plain.model, fitted.model))
    assert (close - want).norm() < 0.5 * (rough - want).norm()
    held_out = demo_task("classify").data().test
    assert evaluate(fitted.model, held_out)["metric"] > evaluate(plain.model, held_out)["metric"] + 10


def test_batchnorm_repair_changes_the_running_statistics_alone():
    plain, repaired = pruned(keep=0.5), pruned(keep=0.5, repair=["bn"])
    assert not torch.equal(plain.model.bn1.running_mean, repaired.model.bn1.running_mean)
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, dict(repaired.model.named_parameters())[name]), name


# By layer: the default


@functools.cache
def by_layer(**options):
    return ps.prune(small(), [examples(64)], **options)


@pytest.mark.parametrize(("keep", "units"), [(0.5, 9), (11, 11), (18, 18), (3, 3)])
def test_the_counts_of_all_layers_sum_to_what_was_asked(keep, units):
    out = by_layer(keep=keep)
    assert out.result.solver == "in sequence" == out.report["solver"]["solver"]
    assert out.selection.keep.sum() == out.result.solution.sum() == units
    assert sum(kept for kept, _ in out.report["layers"].values()) == units
    assert all(kept >= 1 for kept, _ in out.report["layers"].values())
    assert out.result.feasible
    assert out.result.objective == pytest.approx(out.problem.value(out.selection.keep))
    assert "sequence" not in out.report["notes"]


def test_the_masks_say_what_was_removed_and_the_report_has_its_rows():
    out = by_layer(keep=0.5)
    inputs, _ = examples(5)
    for path, channels in dict(out.selection.kept).items():
        assert out.masks[path].nonzero().flatten().tolist() == list(channels)
        assert out.model.get_submodule(path).out_channels == len(channels)
    rows = [step["step"] for step in out.report["steps"]]
    assert rows == ["dense", "masked", "refit"]
    # masked without a refit, as the masks do it on the original
    masked = ps.apply_masks(small(), out.masks)
    assert out.report["steps"][1]["loss"] == pytest.approx(evaluate(masked, [examples(64)])["loss"], rel=1e-4)
    assert out.report["steps"][2]["loss"] == pytest.approx(evaluate(out.model, [examples(64)])["loss"], rel=1e-4)
    with torch.no_grad():
        wanted, rough, close = (m.eval()(inputs) for m in (small(), masked, copy.deepcopy(out.model)))
    assert (close - wanted).norm() < (rough - wanted).norm()


def test_the_network_is_the_one_that_was_fitted_in_sequence():
    from prunesolve.bridges.torch.sequential import prune_in_sequence, sequential_groups

    out, data = by_layer(keep=0.5, seed=3), [examples(64)]
    groups = out.selection.groups
    alone = sequential_groups(small().eval(), groups, data[0][0][:2])
    chosen = {g.name: keep for g, keep in out.selection if g.name not in alone}
    counts = {name: kept for name, (kept, _) in out.selection.counts.items()}
    found = prune_in_sequence(small(), data, groups, counts, chosen=chosen, seed=3)
    np.testing.assert_array_equal(found.selection.keep, out.selection.keep)
    assert set(out.result.details["errors"]) == set(found.errors)
    inputs, _ = examples(9)
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(out.model).eval()(inputs), found.model.eval()(inputs))


def test_the_same_seed_gives_the_same_network_without_labels_too():
    one = by_layer(keep=0.5)
    two = ps.prune(small(), [examples(64)], keep=0.5)
    bare = ps.prune(small(), examples(64)[0], keep=0.5)
    np.testing.assert_array_equal(one.selection.keep, two.selection.keep)
    np.testing.assert_array_equal(one.selection.keep, bare.selection.keep)
    assert same_state(one.model, two.model)
    assert same_state(one.model, bare.model)
    assert bare.report["steps"] == []


def test_the_original_and_the_random_state_stay_by_layer_too():
    network, state = small(), torch.get_rng_state()
    before, flags = copy.deepcopy(network), [m.training for m in network.modules()]
    out = ps.prune(network, [examples()], keep=0.5, refit="reconstruct")
    assert same_state(network, before)
    assert [m.training for m in network.modules()] == flags
    assert all(p.grad is None and p.requires_grad for p in (*network.parameters(), *out.model.parameters()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*network.modules(), *out.model.modules()))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.6}, {"macs": 9000}])
def test_budgets_of_a_resource_hold_and_no_unit_more_fits_by_default(budget):
    network, (inputs, _) = small(), examples()
    out = by_layer(**budget)
    ((name, asked),) = budget.items()
    count = {"macs": macs, "params": params}[name]
    limit = asked * count(network, inputs) if isinstance(asked, float) else asked
    assert count(out.model, inputs) <= limit
    assert out.report["achieved"][name] == [count(out.model, inputs), count(network, inputs)]
    for unit in np.flatnonzero(~out.selection.keep):
        more = out.selection.keep.copy()
        more[unit] = True
        larger = ps.shrink(network, ps.Selection(out.selection.groups, more), inputs[:1])
        assert count(larger, inputs) > limit


def test_two_budgets_at_once_are_solved_all_at_once():
    network, (inputs, _) = small(), examples()
    out = by_layer(keep=8, macs=0.5)
    assert out.result.solver != "in sequence"
    assert out.selection.keep.sum() == 8
    assert macs(out.model, inputs) <= 0.5 * macs(network, inputs)
    assert [step["step"] for step in out.report["steps"]] == ["dense", "masked", "refit"]


@pytest.mark.parametrize(
    "options",
    [{"solver": "greedy"}, {"formulation": "l1-qubo"}, {"refit": False}],
    ids=["solver", "formulation", "bare"],
)
def test_who_names_a_solver_or_a_formulation_or_wants_no_refit_has_the_problem_solved(options):
    assert by_layer(keep=0.5, **options).result.solver != "in sequence"


def test_a_network_that_answers_with_several_tensors_is_solved_all_at_once_with_a_note():
    class Two(type(small())):
        def forward(self, x):
            return super().forward(x), x

    network = small()
    network.__class__ = Two
    out = ps.prune(network, examples()[0], keep=0.5)
    assert "expected a tensor as its answer, got tuple" in out.report["notes"]["sequence"]
    assert out.selection.keep.sum() == 9


def test_reconstruction_is_a_step_of_its_own_that_brings_the_answers_nearer():
    plain, mended = by_layer(keep=0.4), by_layer(keep=0.4, refit="reconstruct")
    assert [step["step"] for step in mended.report["steps"]] == ["dense", "masked", "refit", "reconstruct"]
    assert "reconstruct" in str(mended.report)
    np.testing.assert_array_equal(plain.selection.keep, mended.selection.keep)
    inputs, _ = examples(64)
    with torch.no_grad():
        wanted, rough, close = (copy.deepcopy(m).eval()(inputs) for m in (small(), plain.model, mended.model))
    assert (close - wanted).norm() < (rough - wanted).norm()
    assert [m.training for m in mended.model.modules()] == [m.training for m in plain.model.modules()]


def test_reconstruction_follows_a_named_solver_as_well():
    report = by_layer(keep=0.5, solver="greedy", refit="reconstruct", repair="bn").report
    assert [step["step"] for step in report["steps"]] == ["dense", "masked", "refit", "reconstruct", "bn"]


@pytest.mark.parametrize("refit", ["nonsense", None, 2])
def test_a_refit_that_does_not_exist_is_refused(refit):
    with pytest.raises(ps.InvalidProblem, match="refit: expected True .*'reconstruct' or False, got"):
        ps.prune(small(), [examples()], keep=0.5, refit=refit)


def test_what_was_chosen_by_layer_is_saved_and_read_back(tmp_path):
    out = by_layer(keep=0.5, refit="reconstruct")
    out.save(tmp_path / "by layer")
    read = {file.name: ps.load(file) for file in (tmp_path / "by layer").iterdir()}
    assert all(torch.equal(mask, out.masks[path]) for path, mask in read["masks.safetensors"].items())
    assert read["instance.npz"].hash == out.problem.hash
    np.testing.assert_array_equal(read["result.json"].solution, out.result.solution)
    assert read["result.json"].solver == "in sequence"
    assert read["report.json"] == out.report
    assert all(torch.equal(read["model.safetensors"][name], t) for name, t in out.model.state_dict().items())
    inputs, _ = examples(5)
    torch.testing.assert_close(read["model.pt2"](inputs), copy.deepcopy(out.model).eval()(inputs))


# Repeating


@pytest.mark.slow
def test_the_same_seed_gives_the_same_masks_twice_and_in_a_fresh_process():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import json, torch; torch.set_num_threads(1)\n"
        "import prunesolve as ps\n"
        "from networks import small, examples\n"
        "out = ps.prune(small(), [examples()], keep=0.5, seed=7, solver='swap-annealing', refit=False)\n"
        "print(json.dumps({path: mask.tolist() for path, mask in out.masks.items()}))"
    )
    here = [pruned(keep=0.5, seed=7, solver="swap-annealing") for _ in range(2)]
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    masks = [{path: mask.tolist() for path, mask in out.masks.items()} for out in here]
    assert masks[0] == masks[1] == json.loads(told.stdout)
    assert here[0].result.seed == 7


# Files


def test_what_is_saved_is_read_back(tmp_path):
    out = pruned(macs=0.5)
    out.save(tmp_path / "new" / "folder")
    read = {file.name: ps.load(file) for file in (tmp_path / "new" / "folder").iterdir()}
    assert set(read) == {
        "masks.safetensors", "model.safetensors", "widths.json", "model.pt2", "instance.npz", "result.json",
        "report.json",
    }  # fmt: skip
    assert read["masks.safetensors"].keys() == out.masks.keys()
    assert all(torch.equal(mask, out.masks[path]) for path, mask in read["masks.safetensors"].items())
    assert read["instance.npz"].hash == out.problem.hash
    np.testing.assert_array_equal(read["result.json"].solution, out.result.solution)
    assert read["result.json"].trace == out.result.trace
    assert read["report.json"] == out.report
    assert str(read["report.json"]) == str(out.report)
    assert read["widths.json"]["modules"]["conv1"]["out_channels"] == out.model.conv1.out_channels
    assert all(torch.equal(read["model.safetensors"][name], t) for name, t in out.model.state_dict().items())
    inputs, _ = examples(5)
    torch.testing.assert_close(read["model.pt2"](inputs), copy.deepcopy(out.model).eval()(inputs))


def test_saving_over_an_older_result_leaves_no_stale_program(tmp_path):
    (tmp_path / "model.pt2").write_text("from another run")
    (tmp_path / "notes.txt").write_text("the user's own")
    out = pruned(keep=0.5)
    # a network that torch.export cannot trace has no program
    out.model.register_forward_pre_hook(lambda module, inputs: (inputs[0] * float(inputs[0].sum() > 0 or 1.0),))
    out.save(tmp_path)
    assert not (tmp_path / "model.pt2").exists()
    assert (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "notes.txt").read_text() == "the user's own"
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_a_save_that_fails_half_way_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    out = halved()

    def fails(self, path):
        raise OSError("no space left on device")

    monkeypatch.setattr(ps.BinaryQuadratic, "save", fails)
    with pytest.raises(OSError, match="no space"):
        out.save(tmp_path / "absent")
    (tmp_path / "present").mkdir()
    (tmp_path / "present" / "result.json").write_text("older")
    with pytest.raises(OSError, match="no space"):
        out.save(tmp_path / "present")
    assert [p.name for p in tmp_path.iterdir()] == ["present"]
    assert [(p.name, p.read_text()) for p in (tmp_path / "present").iterdir()] == [("result.json", "older")]


@pytest.mark.slow
def test_the_smaller_model_loads_without_prunesolve(tmp_path):
    out = halved()
    out.save(tmp_path)
    inputs, _ = examples(3)
    np.savez(tmp_path / "io.npz", inputs=inputs, outputs=copy.deepcopy(out.model).eval()(inputs).detach())
    recipe = re.search(r"```python\n(.*?def load_smaller.*?)```", (ROOT / "docs/formats.md").read_text(), re.S)[1]
    code = (
        f"import sys; sys.modules['prunesolve'] = None\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{recipe}\n"
        "import numpy as np\nfrom networks import small\n"
        "io = np.load('io.npz'); inputs = torch.from_numpy(io['inputs']); wanted = torch.from_numpy(io['outputs'])\n"
        "rebuilt = load_smaller(small(), '.').eval()\n"
        "program = torch.export.load('model.pt2').module()\n"
        "for model in (rebuilt, program): torch.testing.assert_close(model(inputs), wanted)\n"
        "print(rebuilt.conv1.out_channels)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) == out.model.conv1.out_channels < 6


# Ending early


class Interrupted(ps.Solver):
    name = "interrupted"

    def _search(self, problem, run):
        keep = np.zeros(problem.n, dtype=bool)
        keep[: problem.k] = True
        run.offer(keep)
        raise KeyboardInterrupt


def test_ctrl_c_in_the_search_ends_the_whole_way():
    with pytest.raises(KeyboardInterrupt):
        pruned(keep=0.5, solver=Interrupted())


# The public networks


@pytest.fixture(scope="module")
def models(shared):
    spec = importlib.util.spec_from_file_location("models", ROOT / "benchmarks" / "models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.shared
@pytest.mark.slow
def test_resnet20_ends_with_masked_equal_to_removed(models):
    """The option-A shortcut pads channels with zeros, which torch-pruning takes for element-wise."""
    file = np.load(ROOT.parent / "shared" / "data" / "cifar10_test.npz")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = ((file["images"][:32] / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    inputs, targets = torch.from_numpy(images).float(), torch.from_numpy(file["labels"][:32]).long()
    network = models.resnet20()
    out = ps.prune(network, [(inputs, targets)], keep=0.5, solver=FAST, refit=False)
    assert out.report["removal"]["passed"]
    units = sum(size for _, size in out.report["layers"].values())
    assert out.selection.keep.sum() == int(0.5 * units + 0.5)
    inner = [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in range(3)]
    assert set(inner) <= set(out.report["layers"])
    masked = ps.apply_masks(copy.deepcopy(network), out.masks)
    torch.testing.assert_close(masked(inputs), out.model(inputs), rtol=1e-4, atol=1e-4)
    # every layer is a unit somewhere or named among what was left out
    told = " ".join([*out.report["layers"], *out.report["excluded"]])
    assert all(name in told for name in ("layer1", "layer2", "layer3", "linear"))


@pytest.mark.shared
@pytest.mark.slow
def test_dncnn_at_half_the_macs(models):
    image = torch.from_numpy(np.load(ROOT.parent / "shared" / "data" / "set12.npz")["01"]).float() / 255
    crops = torch.stack([image[r : r + 32, c : c + 32] for r in (0, 64, 128) for c in (0, 64)])[:, None]
    noise = 25 / 255 * torch.randn(crops.shape, generator=torch.Generator().manual_seed(0))
    network = models.dncnn()
    out = ps.prune(network, [(crops + noise, noise)], macs=0.5, solver=FAST, refit=False)
    dense, removed = macs(network, crops), macs(out.model, crops)
    assert removed <= 0.5 * dense
    assert out.report["achieved"]["macs"] == [removed, dense]
    cheapest = min(
        macs(_with(network, out.selection, unit, crops), crops) for unit in _one_dropped_of_each(out.selection)
    )
    assert cheapest > 0.5 * dense


def _one_dropped_of_each(selection):
    """The first unit dropped in every group: units of one group cost the same."""
    starts = np.cumsum([0, *(g.size for g in selection.groups)])
    for start, (_, keep) in zip(starts, selection, strict=False):
        if not keep.all():
            yield start + int(np.argmin(keep))


def _with(network, selection, unit, inputs):
    keep = selection.keep.copy()
    keep[unit] = True
    return ps.shrink(network, ps.Selection(selection.groups, keep), inputs[:1])


class Overflowing(torch.nn.Module):
    """Infinite where a sample's mean is far from zero."""

    def forward(self, x):
        return x / (x.abs().mean((1, 2, 3), keepdim=True) < 50).float()


# statistics are measured on the first 256 samples, counts judged on the last 128; between them only the fits see it
@pytest.mark.parametrize(
    ("late", "value", "where"),
    [
        (300, float("nan"), "at the inputs"),
        (300, 1e4, "at layer 0"),
        (260, 1e4, "layer 1.inner: expected finite inputs"),
    ],
)
def test_activations_that_are_not_finite_late_in_the_data_name_where(late, value, where):
    inputs, targets = examples(400)
    inputs = inputs.clone()
    inputs[late] = value
    net = torch.nn.Sequential(Overflowing(), small())
    with pytest.raises(ps.InvalidProblem, match=where):
        ps.prune(net, [(inputs, targets)], keep=0.5)
