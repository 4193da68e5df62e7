from __future__ import annotations

import copy
import functools
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.masks import apply_masks, masks
from prunesolve.bridges.torch.shrink import save_model, shrink
from prunesolve.bridges.torch.verify import verify
from prunesolve.problems import Group, InvalidProblem, Selection

from .networks import NETWORKS, make


@functools.cache
def grouped(name: str) -> tuple[nn.Module, torch.Tensor, tuple[Group, ...]]:
    """In double precision, where removing channels leaves nothing but the last digits."""
    net, x = make(name)
    net, x = net.double(), x.double()
    return net, x, find_groups(net, x).groups


def some(groups: tuple[Group, ...], seed: int) -> Selection:
    """A random share of every group, one unit at least."""
    chance = np.random.default_rng(seed)
    keep = [chance.random(g.size) < chance.random() for g in groups]
    for kept in keep:
        kept[chance.integers(len(kept))] = True
    return Selection(groups, np.concatenate(keep))


def cost(net: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops()


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_removed_computes_what_masked_computes(name: str, seed: int) -> None:
    net, x, groups = grouped(name)
    before = {key: t.clone() for key, t in net.state_dict().items()}
    selection = some(groups, seed)
    removed = shrink(net, selection, x)
    masked = apply_masks(copy.deepcopy(net), masks(selection, net))
    with torch.no_grad():
        torch.testing.assert_close(removed(x), masked(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())
    if not selection.keep.all():
        assert all(new < old for new, old in zip(cost(removed, x), cost(net, x), strict=True))
    kept = [len(removed.prunesolve_kept[g.layer]["out"]) for g in groups if g.name == g.layer]
    assert kept == [removed.get_submodule(g.layer).weight.shape[_out(removed, g)] * _parts(removed, g) for g in groups]


def _out(net: nn.Module, group: Group) -> int:
    return int(isinstance(net.get_submodule(group.layer), nn.ConvTranspose2d))


def _parts(net: nn.Module, group: Group) -> int:
    """A transposed weight holds the outputs of one of its groups only."""
    module = net.get_submodule(group.layer)
    return module.groups if isinstance(module, nn.ConvTranspose2d) else 1


def test_flags_devices_hooks_and_types_are_kept() -> None:
    net, x = make("u-net")
    net.train()
    net.up.eval()
    net.mix.weight.requires_grad_(False)
    calls = []
    net.head.register_forward_hook(lambda *_: calls.append(1))
    groups = find_groups(net, x).groups
    removed = shrink(net, some(groups, 0), x)
    calls.clear()
    removed(x)
    assert len(calls) == 1 or len(removed.head._forward_hooks) == 1
    assert [m.training for m in removed.modules()] == [m.training for m in net.modules()]
    assert not removed.mix.weight.requires_grad
    assert removed.down1.weight.requires_grad
    assert {type(m) for m in removed.modules()} == {type(m) for m in net.modules()}
    assert all(m.training for m in [net, net.mix])


def test_the_smaller_network_trains() -> None:
    net, x = make("separable")
    removed = shrink(net, some(find_groups(net, x).groups, 1), x).train()
    removed(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in removed.parameters())


def test_original_numbers_are_composed_over_rounds() -> None:
    net, x = make("option-a")
    first = find_groups(net, x).groups
    keep = np.concatenate([np.arange(g.size) % 2 == 1 for g in first])
    smaller = shrink(net, Selection(first, keep), x)
    second = find_groups(smaller, x).groups
    assert second[0].channels.tolist() == list(range(1, 16, 2))
    assert [m.channels[0, 0] for m in second[0].members if m.path == "two.conv2.0"] == [8]
    keep = np.concatenate([np.arange(g.size) % 2 == 1 for g in second])
    smallest = shrink(smaller, Selection(second, keep), x)
    assert smallest.prunesolve_kept["stem.0"]["out"] == [3, 7, 11, 15]
    assert smallest.prunesolve_kept["one.first.0"]["in"] == [3, 7, 11, 15]
    assert pickle.loads(pickle.dumps(smallest.prunesolve_kept)) == smallest.prunesolve_kept
    masked = apply_masks(copy.deepcopy(smaller), masks(Selection(second, keep), smaller))
    assert verify(masked, smallest, x).passed
    # what stays of the first network's filters is bit for bit what they were
    assert torch.equal(smallest.stem[0].weight, net.stem[0].weight[[3, 7, 11, 15]])


def test_a_layer_cannot_lose_everything() -> None:
    net, x = make("mlp")
    groups = find_groups(net, x).groups
    keep = np.concatenate([np.zeros(8, dtype=bool), np.ones(7, dtype=bool)])
    with pytest.raises(InvalidProblem, match="0: every output channel would go; keep at least one"):
        shrink(net, Selection(groups, keep), x)


def test_unequal_groups_of_a_convolution_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2))
    group = Group("0", 4, [("0", "out", [[0], [1], [2], [3]]), ("1", "in", [[0], [1], [2], [3]])])
    with pytest.raises(InvalidProblem, match="1: its 2 groups would keep different numbers of input channels"):
        shrink(net, Selection([group], [True, True, True, False]), torch.ones(1, 1, 2, 2))


def test_a_wrong_map_is_refused_with_the_layer_where_it_parts() -> None:
    net, x = make("mlp")
    shifted = Group("0", 8, [("0", "out", [[c] for c in range(8)]), ("2", "in", [[(c + 1) % 8] for c in range(8)])])
    with pytest.raises(InvalidProblem, match="they part at 2"):
        shrink(net, Selection([shifted], np.arange(8) % 2 == 0), x)
    forgotten = Group("0", 8, [("0", "out", [[c] for c in range(8)])])
    with pytest.raises(InvalidProblem, match=r"they part at 2: the removed network fails at layer '2' \(Linear\)"):
        shrink(net, Selection([forgotten], np.arange(8) % 2 == 0), x)


def test_verify_measures_each_layer() -> None:
    net, x = make("plain")
    worse = copy.deepcopy(net)
    with torch.no_grad():
        worse[6].bias.add_(0.25)
    check = verify(net, worse, x)
    assert not check.passed
    assert check.parted_at == "6"
    assert check.layers["3"] == 0
    assert check.layers["6"] == pytest.approx(0.25, rel=1e-5)
    assert verify(net, copy.deepcopy(net), x).largest_difference == 0


def test_verify_refuses_values_that_are_not_finite() -> None:
    net, x = make("mlp")
    with torch.no_grad():
        net[0].bias.fill_(float("nan"))
    check = verify(net, copy.deepcopy(net), x)
    assert not check.passed
    assert "not finite" in check.reason


LOADER = """
import sys
sys.modules["prunesolve"] = None  # whoever loads the network need not have it
import torch
{code}
sys.path.insert(0, {folder!r})
from networks import make
_, x = make("residual")
with torch.no_grad():
    small = load_smaller(make("residual")[0], {out!r}).eval()
    program = torch.export.load({out!r} + "/model.pt2").module()
    torch.save([small(x), program(x), program(torch.cat([x, x, x]))], {out!r} + "/answers.pt")
"""


@pytest.mark.slow
def test_the_smaller_model_loads_again_without_prunesolve(tmp_path: Path) -> None:
    net, x = make("residual")
    removed = shrink(net, some(find_groups(net, x).groups, 3), x)
    written = save_model(removed, tmp_path, x)
    assert [p.name for p in written] == ["model.safetensors", "widths.json", "model.pt2"]
    widths = json.loads((tmp_path / "widths.json").read_text())
    assert widths["kept"] == removed.prunesolve_kept
    page = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
    code = re.search(r"```python\n(.*?def load_smaller.*?)```", page, re.DOTALL)[1]
    script = LOADER.format(code=code, folder=str(Path(__file__).parent), out=str(tmp_path))
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
    for answer in torch.load(tmp_path / "answers.pt"):
        torch.testing.assert_close(answer, removed(x).detach().repeat(len(answer) // len(x), 1))


def test_a_model_that_does_not_export_is_saved_all_the_same(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.b(torch.relu(self.a(x)))
            return y if float(y.sum()) > 0 else -y

    net, x = Branching(), torch.ones(1, 3)
    removed = shrink(net, some(find_groups(net, x).groups, 0), x)
    assert [p.name for p in save_model(removed, tmp_path, x)] == ["model.safetensors", "widths.json"]
    assert not (tmp_path / "model.pt2").exists()
