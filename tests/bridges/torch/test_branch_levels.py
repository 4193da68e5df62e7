"""Levels at which whole residual branches go."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesolve.bridges.torch.branches import find_branches
from prunesolve.bridges.torch.costs import count
from prunesolve.bridges.torch.evaluate import evaluate
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.levels import Levels
from prunesolve.bridges.torch.verify import verify
from prunesolve.problems import InvalidProblem

from .networks import Block, PaddedBlock
from .test_branches import (
    Inverted,
    MlpBlock,
    Net,
    PreActivation,
    Projected,
    Tokens,
    channel_mean,
    make,
    masked,
    outputs,
)


class Bottleneck(nn.Module):
    """Two groups of units inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(x + self.bn3(self.conv3(F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))))))


class Biased(nn.Module):
    """No norm: the last layer's bias is what its mean adds to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, 5, 3, padding=1), nn.Conv2d(5, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(x)))


# network, sample, the branch of each layer that has a level 0 and the branch's last module
CASES = {
    "basic": (
        lambda: (Net(Block(6), Block(6)), (3, 8, 8)),
        {f"blocks.{b}.first.0": (f"blocks.{b}", f"blocks.{b}.second") for b in (0, 1)},
    ),
    "option A": (
        lambda: (Net(PaddedBlock(6, 10), last=10), (3, 8, 8)),
        {"blocks.0.conv1.0": ("blocks.0", "blocks.0.conv2")},
    ),
    "projected": (
        lambda: (Net(Projected(6, 8), last=8), (3, 8, 8)),
        {"blocks.0.conv1": ("blocks.0", "blocks.0.bn2")},
    ),
    "bottleneck": (
        lambda: (Net(Bottleneck(6), Bottleneck(6)), (3, 8, 8)),
        {f"blocks.{b}.conv2": (f"blocks.{b}", f"blocks.{b}.bn3") for b in (0, 1)},
    ),
    "inverted": (lambda: (Net(Inverted(6)), (3, 8, 8)), {"blocks.0.conv.0.0": ("blocks.0.conv", "blocks.0.conv")}),
    "biased": (lambda: (Net(Biased(6)), (3, 8, 8)), {"blocks.0.conv1": ("blocks.0", "blocks.0.conv2")}),
    "mlp": (lambda: (Tokens(MlpBlock(6)), (7, 5)), {"blocks.0.fc1": ("blocks.0", "blocks.0.fc2")}),
}


@functools.cache
def built(case):
    """Levels with branches, the network and its data."""
    net, x = make(CASES[case][0])
    groups = [g for g in find_groups(net, x[:2]).groups if case != "bottleneck" or g.name != "stem"]
    return Levels.build(net, x, groups, levels=3, branches=True, progress=False), net, x


def rows(levels):
    """Level tuples: every one where there are few, else a draw."""
    everything = list(itertools.product(*[range(len(k)) for k in levels.keep]))
    chosen = np.random.default_rng(0).permutation(len(everything))[:12]
    return [np.array(everything[i]) for i in chosen] + [np.zeros(levels.n, dtype=np.int64)]


@pytest.mark.parametrize("case", CASES)
def test_layers_inside_a_branch_get_a_level_without_it(case):
    levels, _, _ = built(case)
    assert levels.meta["branches"] == {name: branch for name, (branch, _) in CASES[case][1].items()}
    for name, counts in zip(levels.labels, levels.counts, strict=True):
        assert (counts[0] == 0) == (name in CASES[case][1])


@pytest.mark.parametrize("case", CASES)
def test_level_zero_is_the_branch_replaced_by_its_mean(case):
    levels, net, x = built(case)
    for name, (_, exit) in CASES[case][1].items():
        row = levels.dense
        row[levels.labels.index(name)] = 0
        level = channel_mean(outputs(net, exit, x))
        check = verify(masked(net, exit, level), levels.network(row), x)
        assert check.passed, check


@pytest.mark.parametrize("case", CASES)
def test_costs_are_those_of_the_network_made(case):
    levels, _, x = built(case)
    choices = {resource: levels.choice(resource) for resource in ("params", "macs")}
    for row in rows(levels):
        made = count(levels.network(row), x)
        assert {resource: choice.spent(row) for resource, choice in choices.items()} == made


@pytest.mark.parametrize("case", ["basic", "bottleneck"])
def test_the_evaluator_sees_the_network_made(case):
    levels, _, x = built(case)
    data = x, torch.arange(len(x)) % 3
    evaluator = levels.evaluator(data)
    for row in rows(levels)[-4:]:
        made = evaluate(levels.network(row), data)["loss"]
        assert evaluator.evaluate(levels.bits(row))[0] == pytest.approx(made, rel=1e-5)


def test_the_last_layer_of_a_branch_without_bias_leaves_nothing():
    net, x = make(lambda: (Net(PreActivation(6)), (3, 8, 8)))
    levels = Levels.build(net, x, levels=2, branches=True, progress=False)
    row = levels.dense
    row[levels.labels.index("blocks.0.conv1")] = 0
    assert verify(masked(net, "blocks.0.conv2", 0.0), levels.network(row), x).passed
    assert levels.choice("params").spent(row) == count(levels.network(row), x)["params"]


def test_a_level_whose_cost_no_pair_of_layers_tells_is_left_out():
    net, x = make(CASES["bottleneck"][0])
    # the first convolution inside multiplies the stream's width, and both count where the third loses its inputs
    levels = Levels.build(net, x, levels=2, branches=True, progress=False)
    assert levels.meta["branches"] == {}


def test_a_stream_that_is_cut_as_well_is_counted_exactly():
    levels, _, x = built("biased")
    # the stem's channels run through the shortcut
    stream, inner = levels.labels.index("stem"), levels.labels.index("blocks.0.conv1")
    assert (min(stream, inner), max(stream, inner)) in levels.table("params").pair
    row = levels.dense
    row[stream], row[inner] = 0, 0
    made = levels.network(row)
    assert made.stem.out_channels == 1
    assert levels.choice("params").spent(row) == count(made, x)["params"]


def test_costs_are_never_negative_alone():
    levels, _, _ = built("biased")
    assert all((cost >= 0).all() for cost in levels.table("params").cost)


def test_they_are_read_back(tmp_path):
    levels, net, x = built("basic")
    levels.save(tmp_path / "levels.npz")
    again = Levels.load(tmp_path / "levels.npz", net)
    row = np.zeros(levels.n, dtype=np.int64)
    assert torch.equal(again.network(row)(x), levels.network(row)(x))
    assert again.choice("macs").spent(row) == levels.choice("macs").spent(row)
    # without the tables they are found anew
    again.costs.clear()
    assert again.choice("macs").spent(row) == levels.choice("macs").spent(row)


def test_without_the_option_nothing_changes():
    net, x = make(CASES["basic"][0])
    levels = Levels.build(net, x, levels=3, progress=False)
    assert min(c.min() for c in levels.counts) == 1
    assert levels.meta["branches"] == {}


def test_a_layer_outside_of_branches_keeps_one():
    net, x = make(CASES["basic"][0])
    groups = find_groups(net, x[:2]).groups
    levels = Levels.build(net, x, groups, levels=2, counts={"stem": [0, 6]}, branches=True, progress=False)
    row = levels.dense
    row[levels.labels.index("stem")] = 0
    with pytest.raises(InvalidProblem, match="every"):
        levels.network(row)


def test_time_without_a_branch_leaves_its_layers_out():
    levels, net, x = built("basic")
    table = levels.time(x[:1], grid=2, seconds=1e-4)
    inner = levels.labels.index("blocks.0.first.0")
    spent = levels.choice("latency")
    gone, one = levels.dense, levels.dense
    gone[inner], one[inner] = 0, 1
    # the one layer that no other group widens is timed alone, at 0 for no unit
    assert table.cost[inner][0] < table.cost[inner][1]
    assert spent.spent(gone) < spent.spent(one)
    assert len(find_branches(net, x)) == 2
