from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from prunesolve.bridges.torch._forward import evaluating
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.masks import masks
from prunesolve.bridges.torch.reconstruct import _blocks, _White, reconstruct
from prunesolve.bridges.torch.refit import trace
from prunesolve.bridges.torch.shrink import cut_out
from prunesolve.problems import Group, InvalidProblem, Selection

from .networks import make

QUICK = {"block_steps": 15, "joint_steps": 15, "batch": 16}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def case(name, samples=40):
    """The dense network, data, a selection of the first half of every group and the network that is left by it."""
    net, x = make(name)
    x = torch.randn(samples, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    groups = find_groups(net, x[:2]).groups
    if name == "residual":
        # the blocks' own units: what runs past them keeps its width
        groups = [g for g in groups if g.layer.endswith("first.0")]
    keep = np.concatenate([np.arange(g.size) < max(1, g.size // 2) for g in groups])
    selection = Selection(groups, keep)
    return net, x, selection, cut_out(net, masks(selection, net))


def state_of(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def apart(one, other, x):
    """How far two networks' answers are from each other."""
    with evaluating(one), evaluating(other):
        return float((one(x) - other(x)).square().mean())


@pytest.mark.parametrize("name", ["plain", "mlp", "residual", "concatenated", "separable", "u-net", "instance"])
def test_the_answers_come_nearer_to_the_dense_ones(name):
    net, x, selection, small = case(name)
    mended = reconstruct(net, small, x, selection, block_steps=30, joint_steps=40, batch=16)
    assert apart(mended, net, x) < 0.7 * apart(small, net, x)


@pytest.mark.parametrize("name", ["grouped", "shared", "halves", "squeeze-excite", "normed", "shuffled", "option-a"])
def test_any_network_runs_and_is_no_worse(name):
    net, x, selection, small = case(name, 24)
    mended = reconstruct(net, small, x, selection, **QUICK)
    assert apart(mended, net, x) <= apart(small, net, x)
    assert {n: t.shape for n, t in mended.state_dict().items()} == {n: t.shape for n, t in small.state_dict().items()}


def test_a_stage_that_makes_it_worse_is_undone_with_a_notice(caplog):
    net, x, selection, small = case("residual")
    mended = reconstruct(net, small, x, selection, lr=(1e4, 1e4), **QUICK)
    assert caplog.text.count("is undone; try a smaller lr") == 2
    assert same(state_of(mended), state_of(small))


def test_a_network_without_blocks_has_no_block_stage_to_undo(caplog):
    net, x, selection, small = case("mlp")
    caplog.set_level(logging.WARNING)
    reconstruct(net, small, x, selection, block_steps=5, joint_steps=0)
    assert caplog.text == ""


def test_no_steps_change_nothing():
    net, x, selection, small = case("residual")
    assert same(state_of(reconstruct(net, small, x, selection, block_steps=0, joint_steps=0)), state_of(small))


@pytest.mark.parametrize("stage", [{"block_steps": 30, "joint_steps": 0}, {"block_steps": 0, "joint_steps": 30}])
def test_each_stage_of_a_residual_network_helps_by_itself(stage):
    net, x, selection, small = case("residual")
    mended = reconstruct(net, small, x, selection, batch=16, **stage)
    assert apart(mended, net, x) < apart(small, net, x)
    changed = {name for name, t in mended.state_dict().items() if not torch.equal(t, small.state_dict()[name])}
    assert any(name.startswith("blocks.1") for name in changed)
    # the head is in no block
    assert ("head.weight" in changed) == (stage["block_steps"] == 0)


def test_single_weights_that_are_masked_stay_zero():
    net, x, *_ = case("plain")
    pruned, kept = copy.deepcopy(net), {}
    for path in ("0.0", "3", "6"):
        weight = pruned.get_submodule(path).weight
        kept[f"{path}.weight"] = weight.detach().abs() > weight.detach().abs().median()
        weight.data *= kept[f"{path}.weight"]
    mended = reconstruct(net, pruned, x, masks=kept, **QUICK)
    for key, mask in kept.items():
        weight = mended.state_dict()[key]
        assert (weight[~mask] == 0).all()
        assert not torch.equal(weight, pruned.state_dict()[key])
    assert apart(mended, net, x) < apart(pruned, net, x)


def test_masked_weights_of_grouped_and_transposed_layers_stay_zero():
    net, x, *_ = case("grouped")
    pruned, kept = copy.deepcopy(net), {}
    for path in ("grouped.0", "up", "head"):
        weight = pruned.get_submodule(path).weight
        kept[f"{path}.weight"] = weight.detach().abs() > weight.detach().abs().median()
        weight.data *= kept[f"{path}.weight"]
    mended = reconstruct(net, pruned, x, masks=kept, **QUICK)
    assert all((mended.state_dict()[key][~mask] == 0).all() for key, mask in kept.items())
    assert apart(mended, net, x) < apart(pruned, net, x)


def test_nothing_is_touched_but_the_copy_and_that_has_the_flags_it_had():
    net, x, selection, small = case("residual")
    small.train()
    small.head.bias.requires_grad_(False)
    small.blocks[1].first[0].weight.requires_grad_(False)
    small.last.first[1].eval()
    before, random = [state_of(net), state_of(small)], torch.get_rng_state()
    mended = reconstruct(net, small, x, selection, **QUICK)
    assert same(before[0], state_of(net))
    assert same(before[1], state_of(small))
    assert torch.equal(random, torch.get_rng_state())
    for model in (net, small, mended):
        assert all(p.grad is None for p in model.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert list(mended.state_dict()) == list(small.state_dict())
    wanted = {name: p.requires_grad for name, p in small.named_parameters()}
    assert {name: p.requires_grad for name, p in mended.named_parameters()} == wanted
    assert [name for name, _ in mended.named_parameters()] == list(wanted)
    assert [m.training for m in mended.modules()] == [m.training for m in small.modules()]
    assert not any(parametrize.is_parametrized(m) for m in mended.modules())
    assert [type(m) for m in mended.modules()] == [type(m) for m in small.modules()]
    assert all(p.requires_grad for p in net.parameters())


def test_what_comes_before_the_first_change_stays_bit_for_bit():
    net, x, *_ = case("residual")
    groups = [g for g in find_groups(net, x[:2]).groups if g.layer == "last.first.0"]
    selection = Selection(groups, np.arange(10) < 4)
    small = cut_out(net, masks(selection, net))
    mended = reconstruct(net, small, x, selection, **QUICK)
    same_now = {name for name, t in mended.state_dict().items() if torch.equal(t, small.state_dict()[name])}
    assert {n for n in small.state_dict() if n.startswith(("stem", "blocks", "down"))} <= same_now
    assert not {"last.first.0.weight", "last.second.0.weight"} & same_now


def test_running_statistics_stay():
    net, x, selection, small = case("separable")
    mended = reconstruct(net, small, x, selection, **QUICK)
    changed = {name for name, t in mended.state_dict().items() if not torch.equal(t, small.state_dict()[name])}
    assert changed
    assert not {name for name in changed if "running" in name or "num_batches" in name}


@pytest.mark.parametrize("name", ["residual", "plain"])
def test_it_is_repeatable_and_labels_are_not_looked_at(name):
    net, x, selection, small = case(name)
    one = reconstruct(net, small, x, selection, **QUICK)
    two = reconstruct(net, small, (x, torch.full((len(x),), 10**6)), selection, **QUICK)
    other = reconstruct(net, small, x, selection, seed=1, **QUICK)
    assert same(state_of(one), state_of(two))
    assert not same(state_of(one), state_of(other))


def test_double_precision_stays():
    net, x, selection, small = case("residual")
    net, small, x = net.double(), small.double(), x.double()
    mended = reconstruct(net, small, x, selection, **QUICK)
    assert {p.dtype for p in mended.parameters()} == {torch.float64}
    assert apart(mended, net, x) < apart(small, net, x)


def test_a_caller_in_inference_mode_gets_the_same():
    net, x, selection, small = case("residual")
    wanted = reconstruct(net, small, x, selection, **QUICK)
    with torch.inference_mode():
        got = reconstruct(net, small, x, selection, **QUICK)
    assert same(state_of(wanted), state_of(got))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def test_packed_attention_is_trained_with_the_rest():
    net = Attending().eval()
    x = torch.randn(40, 5, 4)
    units = np.arange(16)[:, None]
    groups = [
        Group(f"layers.{i}.linear1", 16, [(f"layers.{i}.linear1", "out", units), (f"layers.{i}.linear2", "in", units)])
        for i in range(2)
    ]
    selection = Selection(groups, np.arange(32) % 4 == 0)
    small = cut_out(net, masks(selection, net))
    mended = reconstruct(net, small, x, selection, block_steps=30, joint_steps=30, batch=16)
    assert type(mended.layers[1].self_attn) is nn.MultiheadAttention
    assert list(mended.state_dict()) == list(small.state_dict())
    assert apart(mended, net, x) < 0.9 * apart(small, net, x)
    # the packed weight itself learnt, in all three parts
    moved = (mended.layers[1].self_attn.in_proj_weight - small.layers[1].self_attn.in_proj_weight).detach()
    assert all(bool((part != 0).any()) for part in moved.chunk(3))
    assert mended.layers[1].self_attn.in_proj_weight.requires_grad


def test_a_weight_that_two_layers_share_stays_shared():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.mid, self.two = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(torch.tanh(self.mid(torch.tanh(self.one(x)))))

    net = Tied()
    pruned = copy.deepcopy(net)
    with torch.no_grad():
        pruned.mid.weight *= torch.eye(4)
    mended = reconstruct(net, pruned, torch.randn(60, 4), **QUICK)
    assert mended.two.weight is mended.one.weight
    assert apart(mended, net, torch.randn(60, 4)) <= 2 * apart(pruned, net, torch.randn(60, 4))


def test_scalar_answers_and_a_last_batch_of_one_sample():
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    units = np.arange(8)[:, None]
    selection = Selection([Group("0", 8, [("0", "out", units), ("2", "in", units)])], np.arange(8) < 3)
    small = cut_out(net, masks(selection, net))
    x = torch.randn(17, 3)
    for data in (x, list(x.split(8))):
        mended = reconstruct(net, small, data, selection, joint_steps=60, batch=8)
        assert apart(mended, net, x) < 0.5 * apart(small, net, x)
    # of one sample alone nothing but that it runs is to be expected
    assert torch.isfinite(reconstruct(net, small, x[:1], selection, **QUICK)(x)).all()


def test_images_of_unlike_sizes_have_the_joint_stage_alone():
    net, x, selection, small = case("residual")
    data = [x[:8], x[8:16, :, :6, :6], x[16:24, :, :, :7]]
    mended = reconstruct(net, small, data, selection, block_steps=5, joint_steps=30, batch=8, augment=False)
    error = sum(apart(mended, net, part) for part in data)
    assert error < sum(apart(small, net, part) for part in data)


class Between(nn.Module):
    """Two blocks, and a ReLU between them that works in place or not at all."""

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return x + self.b(torch.tanh(self.a(x)))

    def __init__(self, in_place):
        super().__init__()
        self.first, self.second, self.in_place = self.Part(), self.Part(), in_place

    def forward(self, x):
        x = self.first(x)
        if self.in_place:
            F.relu_(x)
        return self.second(x)


@pytest.mark.parametrize("in_place", [False, True])
def test_blocks_follow_one_another_only_where_nothing_lies_between(in_place):
    net, x = Between(in_place), torch.randn(3, 4)
    with evaluating(net):
        found = _blocks(net, net, x, {layer.path for layer in trace(net, x)})
    assert [(b.path, b.chained) for b in found] == [("first", False), ("second", not in_place)]


def test_whitened_weights_are_the_weights():
    root = torch.randn(5, 5).double()
    root = root @ root.T + torch.eye(5)
    weight, mask = torch.randn(3, 5, 1, 1).double(), torch.rand(3, 5, 1, 1) < 0.5
    white = _White((root, torch.linalg.inv(root)), None)
    torch.testing.assert_close(white(white.right_inverse(weight)), weight)
    masked = _White((root, torch.linalg.inv(root)), mask)
    torch.testing.assert_close(masked(masked.right_inverse(weight * mask)), weight * mask)


def test_bad_input_is_refused_in_words():
    net, x, selection, small = case("plain")
    for options in (
        {"block_steps": -1},
        {"batch": 0},
        {"damping": 0.0},
        {"lr": (0.0, 1.0)},
        {"lr": (float("nan"),) * 2},
    ):
        with pytest.raises(InvalidProblem, match="expected steps >= 0"):
            reconstruct(net, small, x, selection, **options)
    with pytest.raises(InvalidProblem, match="the selection that shrank it"):
        reconstruct(net, small, x, **QUICK)
    with pytest.raises(InvalidProblem, match="at least one sample"):
        reconstruct(net, small, [], selection)
    with pytest.raises(InvalidProblem, match="one tensor of the same shape"):
        reconstruct(nn.Sequential(*net, nn.Linear(3, 2)), small, x, selection, **QUICK)

    class Two(nn.Sequential):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(InvalidProblem, match=r"one tensor of the same shape, got tuple and tuple"):
        reconstruct(Two(nn.Linear(3, 2)), Two(nn.Linear(3, 2)), torch.randn(8, 3), **QUICK)
