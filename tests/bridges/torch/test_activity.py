"""Activities are plain means of what the consumers read, sample by sample and unit by unit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from prunesolve.bridges.torch.activity import activity
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.problems import Group, InvalidProblem

from .networks import make

# flatten to linear, residual adds, concatenation, a layer called twice, one-dimensional data, chunks
NAMES = ["plain", "mlp", "residual", "concatenated", "separable", "grouped", "shared", "u-net", "instance", "halves"]
SAMPLES = 5


def case(name):
    net, x = make(name)
    net = net.double()
    x = torch.randn(SAMPLES, *x.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    return net, x, find_groups(net, x[:2]).groups


def noting(calls, path):
    return lambda _, inputs: calls.append((path, inputs[0].clone()))


def by_hand(net, x, groups):
    """One sample at a time through the network, one unit at a time through what its consumers read."""
    rows = []
    for sample in x:
        row = []
        for group in groups:
            reads = {m.path: m.channels for m in group.members if m.axis == "in"}
            calls = []
            handles = [net.get_submodule(path).register_forward_pre_hook(noting(calls, path)) for path in reads]
            with torch.no_grad():
                net(sample[None])
            for handle in handles:
                handle.remove()
            for unit in range(group.size):
                seen = []
                for path, read in calls:
                    axis = -1 if isinstance(net.get_submodule(path), nn.Linear) else 1
                    seen.append(float(read.index_select(axis, torch.tensor(reads[path][unit])).mean()))
                row.append(np.mean(seen))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("name", NAMES)
def test_activities_are_means_of_what_is_read(name):
    net, x, groups = case(name)
    found = activity(net, list(x.split([2, 1, 2])), groups)
    assert found.shape == (SAMPLES, sum(g.size for g in groups))
    np.testing.assert_allclose(found, by_hand(net, x, groups), rtol=1e-10, atol=1e-12)
    assert found.std(0).max() > 0


def test_targets_are_not_used_and_the_network_is_left_as_it_was():
    net, x, groups = case("residual")
    trained = copy.deepcopy(net).train()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    random_state = torch.get_rng_state()
    found = activity(trained, [(x, torch.zeros(SAMPLES))], groups)
    np.testing.assert_array_equal(found, activity(net, x, groups))
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert all(m.training and not m._forward_pre_hooks for m in trained.modules())
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_unit_that_nothing_reads_is_never_active():
    net = nn.Sequential(nn.Linear(2, 3))
    units = Group("0", 3, [("0", "out", [[0], [1], [2]])])
    np.testing.assert_array_equal(activity(net, torch.ones(4, 2), [units]), np.zeros((4, 3)))


def test_foreign_groups_and_other_first_axes_are_refused():
    net, x, groups = case("mlp")
    with pytest.raises(InvalidProblem, match="unknown module"):
        activity(net, x, [Group("gone", 1, [("gone", "out", [[0]])])])
    pairs = nn.Sequential(nn.Linear(4, 2), nn.Unflatten(0, (3, 2)), nn.Linear(2, 1))
    units = Group("0", 2, [("0", "out", [[0], [1]]), ("2", "in", [[0], [1]])])
    with pytest.raises(InvalidProblem, match=r"2: expected the 6 samples .* got 3 rows"):
        activity(pairs, torch.ones(6, 4), [units])


def test_activations_that_are_not_finite_are_refused():
    net, x, groups = case("mlp")
    with pytest.raises(InvalidProblem, match="not finite"):
        activity(net, x * float("inf"), groups)
