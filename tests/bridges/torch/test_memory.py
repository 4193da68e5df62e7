from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.masks import masks
from prunesolve.bridges.torch.memory import _live, peak_memory
from prunesolve.bridges.torch.shrink import cut_out
from prunesolve.problems import Group, InvalidProblem, Selection

from .networks import NETWORKS, make


def levels_of(groups):
    return [np.unique([1, (g.size + 1) // 2, g.size]) for g in groups]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_peak_is_that_of_the_smaller_network(name):
    net, x = make(name)
    groups, x = find_groups(net, x).groups, x[:1].clone()
    found = peak_memory(net, groups, x)
    table = found.table(levels_of(groups))
    rng = np.random.default_rng(0)
    for _ in range(5):
        levels = [int(rng.integers(len(c))) for c in levels_of(groups)]
        counts = np.array([c[s] for c, s in zip(levels_of(groups), levels, strict=True)])
        keep = np.concatenate([rng.permutation(g.size) < c for g, c in zip(groups, counts, strict=True)])
        true = _live(cut_out(net, masks(Selection(groups, keep), net)), (x,)).max()
        assert found.peak(counts) == pytest.approx(true)
        terms = [c[s] for c, s in zip(table.cost, levels, strict=True)]
        bound = max([*terms, *(p[levels[i], levels[j]] for (i, j), p in table.pair.items())])
        assert bound == pytest.approx(true) if table.notes["exact"] else bound >= true - 1e-6
    assert table.dense == pytest.approx(found.peak([g.size for g in groups]))


def test_peak_of_a_chain_by_hand():
    """The input stays with the caller; an activation's input goes when the next layer has made its output."""
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Tanh(), nn.Conv2d(3, 5, 1), nn.Tanh(), nn.Conv2d(5, 1, 1))
    x = torch.zeros(1, 2, 4, 4)
    groups = find_groups(net, x).groups
    peak = peak_memory(net, groups, torch.zeros(8, 2, 4, 4)).peak
    for a in (1, 2, 3):
        for b in (1, 3, 5):
            assert peak([a, b]) == 4 * 16 * (2 + max(2 * a, a + b, 2 * b, b + 1))


def test_shortcuts_are_held():
    net, x = make("residual")
    groups = find_groups(net, x).groups
    shapes = peak_memory(net, groups, x)
    dense = np.array([g.size for g in groups])
    narrow = np.where([g.name.endswith("first.0") for g in groups], 1, dense)
    # the stream of eight channels and its block's output lie there whatever the inner layers keep
    assert 4 * 64 * (3 + 8 + 8) <= shapes.peak(narrow) <= shapes.peak(dense)


class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x):
        h = self.a(x)
        return self.b(h) + (h[:, :, None] * h[:, None, :]).sum(dim=(1, 2))[:, None]


def test_what_is_not_affine_is_refused():
    each = np.arange(8)[:, None]
    with pytest.raises(InvalidProblem, match="affine"):
        peak_memory(Squares(), [Group("a", 8, [("a", "out", each), ("b", "in", each)])], torch.zeros(1, 3))
