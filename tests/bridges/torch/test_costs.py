from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunesolve.bridges.torch.costs import costs, count
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.masks import masks
from prunesolve.bridges.torch.shrink import cut_out
from prunesolve.problems import Group, Selection, Statistics

from .networks import NETWORKS, make


@functools.cache
def measured(name):
    net, x = make(name)
    groups = find_groups(net, x).groups
    return net, x, with_costs(net, groups, x)


def with_costs(net, groups, x):
    found = costs(net, groups, x)
    return Statistics(
        groups,
        cost={r: c.linear for r, c in found.items()},
        pair_cost={r: c.pair for r, c in found.items()},
        constant={r: c.constant for r, c in found.items()},
    )


def counted(net, x):
    """An independent count: parameters one by one, MACs by torch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(x[:1])
    return {"params": sum(p.numel() for p in net.parameters()), "macs": counter.get_total_flops() / 2}


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_kept_is_the_dense_count(name):
    net, x, stats = measured(name)
    assert {r: stats.total(r) for r in ("params", "macs")} == counted(net, x) == count(net, x)


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_selection_spends_is_the_removed_networks_count(name, seed):
    net, x, stats = measured(name)
    chance = np.random.default_rng(seed)
    keep = chance.random(stats.n) < chance.random()
    keep[stats.starts[:-1]] = True
    removed = cut_out(net, masks(Selection(stats.groups, keep), net))
    got = {r: stats.spent(r, keep) for r in ("params", "macs")}
    assert got == pytest.approx(counted(removed, x), rel=1e-12)


@pytest.mark.parametrize("name", ["residual", "grouped", "shared"])
def test_the_pair_costs_are_symmetric_with_zero_diagonal(name):
    _, _, stats = measured(name)
    for pair in stats.pair_cost.values():
        dense = pair.toarray()
        assert np.array_equal(dense, dense.T)
        assert not np.diagonal(dense).any()


def test_a_weight_used_by_two_layers_is_counted_once():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    x = torch.randn(2, 4)
    units = Group("2", 4, [("2", "out", np.arange(4)[:, None]), ("3", "in", np.arange(4)[:, None])])
    assert with_costs(net, [units], x).total("params") == 16 + 10


def test_matrix_products_outside_of_layers_are_constant():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x):
            return self.down(self.up(torch.relu(x @ x.transpose(1, 2) @ x)))

    net, x = Attention(), torch.randn(2, 3, 4)
    units = Group("up", 6, [("up", "out", np.arange(6)[:, None]), ("down", "in", np.arange(6)[:, None])])
    stats = with_costs(net, [units], x)
    assert stats.constant["macs"] == 2 * 3 * 3 * 4
    assert stats.total("macs") == counted(net, x)["macs"]


def test_an_embedding_loses_columns():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(10, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.table(x)).mean(1)

    net = Words()
    units = Group("table", 3, [("table", "out", [[0], [1], [2]]), ("head", "in", [[0], [1], [2]])])
    stats = with_costs(net, [units], torch.zeros(2, 5, dtype=torch.int64))
    assert stats.spent("params", [True, False, False]) == 10 + 2 + 2
