from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from prunesolve.bridges.torch import latency as module
from prunesolve.bridges.torch._layers import widths
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.latency import latency
from prunesolve.bridges.torch.masks import masks
from prunesolve.bridges.torch.shrink import cut_out
from prunesolve.bridges.torch.unfold import LINEAR_LAYERS
from prunesolve.problems import InvalidProblem, Selection

from .networks import make


def pretended(layer, inputs):
    """Seconds that are bilinear in the widths, so that a table has to meet them everywhere."""
    if next(layer.children(), None) is not None:
        return 0.0
    reads, makes = widths(layer)
    mixed = reads * makes if isinstance(layer, LINEAR_LAYERS) else 0
    return (5.0 + 2.0 * reads + 3.0 * makes + mixed) * prod(inputs[0].shape[2:])


def run_layers(net, x, paths):
    """What the layers of a network take together, each with the input that it gets there."""
    total = 0.0

    def add(layer, inputs):
        nonlocal total
        total += pretended(layer, inputs)

    for path in paths:
        net.get_submodule(path).register_forward_pre_hook(add)
    with torch.no_grad():
        net(x)
    return total


# depthwise convolutions are not bilinear here: their groups go with their outputs
@pytest.mark.parametrize("name", ["mlp", "plain", "residual", "concatenated", "u-net", "shared"])
def test_tables_add_up_to_the_smaller_network(name, monkeypatch):
    monkeypatch.setattr(module._Stopwatch, "of", lambda self, layer, inputs, times=1: pretended(layer, inputs))
    net, x = make(name)
    groups = find_groups(net, x).groups
    counts = [np.arange(1, g.size + 1) for g in groups]
    # a grid that meets every count: where one group is on both sides, time is quadratic in it
    table = latency(net, groups, counts, x, grid=10)
    paths = {m.path for g in groups for m in g.members}
    rng = np.random.default_rng(0)
    for _ in range(5):
        levels = [int(rng.integers(g.size)) for g in groups]
        keep = np.concatenate([rng.permutation(g.size) <= s for g, s in zip(groups, levels, strict=True)])
        smaller = cut_out(net, masks(Selection(groups, keep), net))
        spent = sum(c[s] for c, s in zip(table.cost, levels, strict=True))
        spent += sum(p[levels[i], levels[j]] for (i, j), p in table.pair.items())
        assert spent == pytest.approx(run_layers(smaller, x, paths), rel=1e-6)


def test_layers_of_several_groups_are_named(monkeypatch):
    monkeypatch.setattr(module._Stopwatch, "of", lambda self, layer, inputs, times=1: pretended(layer, inputs))
    net, x = make("concatenated")
    groups = find_groups(net, x).groups
    table = latency(net, groups, [np.array([g.size]) for g in groups], x)
    assert {"head", "convs.1"} <= set(table.notes["fitted"])
    assert "convs.0" not in table.notes["fitted"]


def test_what_is_measured_is_positive_and_told():
    net, x = make("residual")
    groups = find_groups(net, x).groups
    told = []
    counts = [np.array([1, g.size]) for g in groups]
    table = latency(net, groups, counts, x, grid=2, seconds=1e-4, told=lambda *at: told.append(at))
    assert told == [(i + 1, len(told)) for i in range(len(told))]
    assert all((c >= 0).all() for c in table.cost)
    assert all((p >= 0).all() for p in table.pair.values())
    assert table.dense == pytest.approx(max(table.notes["whole"], table.notes["layers"]), rel=1e-6)
    assert table.notes["device"] == "cpu"


def test_one_shape_is_timed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(module._Stopwatch, "of", lambda self, layer, inputs, times=1: calls.append(layer) or 1.0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    groups = find_groups(net, torch.zeros(1, 4)).groups
    latency(net, groups, [np.array([1, 4])] * 3, torch.zeros(1, 4), grid=2)
    # in and out of 1 or 4, and the network itself
    assert len(calls) == 4 + 1


@pytest.mark.parametrize("wrong", [{"grid": 1}, {"seconds": 0.0}])
def test_bad_options(wrong):
    net, x = make("mlp")
    with pytest.raises(InvalidProblem, match="grid >= 2"):
        latency(net, find_groups(net, x).groups, [], x, **wrong)
