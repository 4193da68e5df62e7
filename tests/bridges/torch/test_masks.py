from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.masks import Masks, apply_masks, load_masks, masks, save_masks
from prunesolve.problems import Group, InvalidProblem, Selection

from .networks import NETWORKS, make


def half(name: str) -> tuple[nn.Module, torch.Tensor, Selection]:
    net, x = make(name)
    groups = find_groups(net, x).groups
    keep = np.concatenate([np.arange(g.size) % 2 == 0 for g in groups])
    return net, x, Selection(groups, keep)


def test_masks_of_coupled_layers() -> None:
    net, _, selection = half("concatenated")
    chosen = masks(selection, net)
    stem = [True, False] * 3
    late = [True, False] * 2
    assert chosen["stem"].tolist() == chosen["norms.0"].tolist() == chosen.inputs["convs.0"].tolist() == stem
    assert chosen["norms.2"].tolist() == chosen.inputs["head"].tolist() == stem + late + late
    assert "head" not in chosen


def test_a_masked_unit_is_zero_in_all_its_slices() -> None:
    net, _, selection = half("grouped")
    masked = apply_masks(copy.deepcopy(net), masks(selection, net))
    # members, one unit at a time, against the definition: its own slices and what its readers read
    for group, keep in selection:
        for member in group.members:
            module, gone = masked.get_submodule(member.path), member.channels[~keep].ravel()
            if member.axis == "out":
                transposed = isinstance(module, nn.ConvTranspose2d)
                assert not module.bias[gone].any() if module.bias is not None else True
                if not transposed:
                    assert not module.weight[gone].any()
                elif module.groups == 1:
                    assert not module.weight[:, gone].any()
            elif module.groups == 1:
                weight = module.weight if isinstance(module, nn.ConvTranspose2d) else module.weight.transpose(0, 1)
                assert not weight[gone].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_prune_masks_compute_the_same_and_can_be_made_permanent(name: str) -> None:
    net, x, selection = half(name)
    chosen = masks(selection, net)
    plain, hung = apply_masks(copy.deepcopy(net), chosen), apply_masks(copy.deepcopy(net), chosen, how="prune")
    assert torch.equal(plain(x), hung(x))
    for module in list(hung.modules()):
        for parameter in [name[: -len("_orig")] for name, _ in module.named_parameters(recurse=False)]:
            if prune.is_pruned(module) and hasattr(module, f"{parameter}_mask"):
                prune.remove(module, parameter)
    for parameter, value in plain.state_dict().items():
        assert torch.equal(hung.state_dict()[parameter], value)


def test_prune_masks_keep_the_values_underneath() -> None:
    net, _, selection = half("mlp")
    hung = apply_masks(copy.deepcopy(net), masks(selection, net), how="prune")
    assert torch.equal(hung[0].weight_orig, net[0].weight)


def test_weight_masks_by_parameter_name() -> None:
    net, _ = make("mlp")
    mask = torch.rand(net[0].weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    masked = apply_masks(copy.deepcopy(net), {"0.weight": mask})
    assert torch.equal(masked[0].weight, net[0].weight * mask)
    assert torch.equal(masked[0].bias, net[0].bias)


def test_weight_and_channel_masks_add_up() -> None:
    layer = nn.Sequential(nn.Linear(2, 2))
    nn.init.ones_(layer[0].weight)
    apply_masks(layer, Masks({"0": [True, False], "0.weight": [[True, False], [True, True]]}))
    assert layer[0].weight.tolist() == [[1, 0], [0, 0]]


def test_the_wrong_network_is_refused_before_anything_changes() -> None:
    net, _, selection = half("mlp")
    with pytest.raises(InvalidProblem, match="made for another network"):
        masks(selection, nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 2)))
    with pytest.raises(InvalidProblem, match="unknown layer 'x'"):
        masks(Selection([Group("x", 1, [("x", "out", [[0]])])], [True]), net)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InvalidProblem, match=r"mask of 2: expected \(7,\) output channels, got \(5,\)"):
        apply_masks(net, {"0": [False] * 8, "2": [True] * 5})
    with pytest.raises(InvalidProblem, match="unknown way to apply masks 'prone'.*'prune'"):
        apply_masks(net, {"0": [False] * 8}, how="prone")
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    net, _, selection = half("concatenated")
    chosen = masks(selection, net)
    chosen["head.weight"] = torch.zeros(3, 14, dtype=torch.bool)
    save_masks(chosen, tmp_path / "masks.safetensors")
    loaded = load_masks(tmp_path / "masks.safetensors")
    assert {k: m.tolist() for k, m in loaded.items()} == {k: m.tolist() for k, m in chosen.items()}
    assert {k: m.tolist() for k, m in loaded.inputs.items()} == {k: m.tolist() for k, m in chosen.inputs.items()}


def test_foreign_and_truncated_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "masks.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(InvalidProblem, match="expected masks in format"):
        load_masks(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InvalidProblem, match="got a broken one"):
        load_masks(path)
    with pytest.raises(FileNotFoundError):
        load_masks(tmp_path / "none.safetensors")
