from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import prunesolve as ps
from prunesolve.problems import InvalidProblem

from .conftest import FACTORY
from .networks import examples, small

SIZES = {name: m.weight.numel() for name, m in small().named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
TOTAL = sum(SIZES.values())


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def pruned(**options):
    return ps.prune(small(), [examples()], **({"solver": "magnitude", "granularity": "weight"} | options))


@pytest.mark.parametrize("allocation", ["auto", "uniform", "erk", "lamp", "global", "level-choice"])
def test_the_number_kept_is_the_number_asked(allocation):
    out = pruned(keep=0.3, allocation=allocation)
    kept = int(0.3 * TOTAL + 0.5)
    assert sum(int(mask.sum()) for mask in out.masks.values()) == kept
    assert out.report["achieved"]["weights"] == out.report["achieved"]["all weights"] == [kept, TOTAL]
    assert {path: size for path, (_, size) in out.report["layers"].items()} == SIZES
    for key, mask in out.masks.items():
        assert not out.model.get_parameter(key)[~mask].any()
    assert set(out.masks) == {f"{path}.weight" for path in SIZES}


def test_a_network_none_of_whose_inputs_part_is_refused():
    with pytest.raises(InvalidProblem, match="conv1: 1 input channels are no multiple of 4"):
        pruned(granularity="2:4")


def test_steps_are_judged_one_after_another():
    out = pruned(keep=0.5, repair=["bn", "layer-variance"])
    assert [row["step"] for row in out.report["steps"]] == ["dense", "masked", "refit", "bn", "layer-variance"]


def test_layers_that_do_not_part_are_excluded():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    out = ps.prune(net, [(inputs, torch.arange(32) % 4)], granularity="2:4", solver="magnitude", repair=["bn"])
    assert [row["step"] for row in out.report["steps"]] == ["dense", "masked", "refit", "bn"]
    assert out.report["excluded"] == {"0": "6 input channels are no multiple of 4"}
    assert (out.masks["2.weight"].unflatten(1, (2, 4)).sum(2) == 2).all()
    assert out.report["achieved"]["weights"] == [16, 32]
    assert out.report["achieved"]["all weights"] == [64, 80]
    assert "0: left out, 6 input channels" in str(out.report)


def test_masks_hold_for_the_dense_network_and_come_back_from_a_file(tmp_path):
    out = pruned(keep=0.4, refit=False)
    masked = ps.apply_masks(small(), out.masks)
    states = zip(masked.state_dict().values(), out.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
    out.save(tmp_path / "out")
    again = ps.load(tmp_path / "out" / "masks.safetensors")
    assert again.keys() == out.masks.keys()
    assert all(torch.equal(again[key], mask) for key, mask in out.masks.items())
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(saved["conv2.weight"], out.model.conv2.weight)
    assert ps.load(tmp_path / "out" / "report.json")["achieved"] == out.report["achieved"]


def test_repairs_leave_the_zeros_and_the_original_is_untouched():
    net, before = small(), small().state_dict()
    out = ps.prune(net, [examples()], granularity="weight", keep=0.3, solver="magnitude", repair=["repair"])
    assert all(not out.model.get_parameter(key)[~mask].any() for key, mask in out.masks.items())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_without_targets_nothing_is_judged():
    inputs, _ = examples()
    out = ps.prune(small(), [(inputs, None)], granularity="weight", keep=0.3, solver="magnitude")
    assert out.report["steps"] == []
    assert "weights" in str(out.report)


def test_a_network_pruned_by_hand_trains_on_with_its_zeros():
    out = pruned(keep=0.3)
    net = ps.apply_masks(copy.deepcopy(out.model), out.masks, how="prune")
    assert torch.equal(net.head.weight, out.model.head.weight)
    assert hasattr(net.head, "weight_mask")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"granularity": "wieght", "keep": 0.5}, "did you mean 'weight'"),
        ({}, "such as 0.1"),
        ({"keep": 0.5, "granularity": "2:4"}, "leave it out"),
        ({"granularity": "4:2"}, "0 < n < m"),
        ({"granularity": "4:2:1"}, "0 < n < m"),
        ({"keep": 1.5}, "keep"),
        ({"params": 0.5}, "params"),
        ({"keep": 0.5, "allocation": "unifrom"}, "did you mean 'uniform'"),
        ({"keep": 0.5, "refit": "lsq"}, "lsq"),
        ({"keep": 0.5, "repair": ["batchnorm"]}, "Known"),
        ({"keep": 0.5, "formulation": "fisher"}, "fisher"),
        ({"keep": 0.5, "solver": "swap-anealing"}, "swap-annealing"),
        ({"keep": 0.5, "layers": ["con1"]}, "did you mean 'conv1'"),
    ],
)
def test_bad_input(options, says):
    with pytest.raises(InvalidProblem, match=says):
        pruned(**options)


def test_the_command_line(command, folder):
    (folder / "plain.py").write_text(FACTORY)
    told = command(
        "prune", "plain.py:trained", "--data", "data.npz", "--granularity", "weight", "--keep", "0.25",
        "--allocation", "erk", "--solver", "magnitude", "--out", "out",
    )  # fmt: skip
    assert told.code == 0, told.err
    assert f"{int(0.25 * TOTAL + 0.5):,} of {TOTAL:,}" in told.out
    masks = ps.load(folder / "out" / "masks.safetensors")
    assert sum(int(mask.sum()) for mask in masks.values()) == int(0.25 * TOTAL + 0.5)
    assert json.loads((folder / "out" / "report.json").read_text())["solver"]["allocation"] == "erk"
    told = command("prune", "plain.py:trained", "--data", "data.npz", "--granularity", "4:2", "--out", "out2")
    assert told.code == 2
    assert "4:2" in told.err
