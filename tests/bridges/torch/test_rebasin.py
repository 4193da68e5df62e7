"""Git Re-Basin: a permuted network computes the same, and a permutation is found again."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from prunesolve.bridges.torch.axes import Axes
from prunesolve.bridges.torch.rebasin import average, match_weights, permuted
from prunesolve.problems import InvalidProblem

from .networks import make

PERMUTABLE = ["plain", "mlp", "residual", "option-a", "concatenated", "separable", "u-net", "instance", "halves"]


def in_double(name):
    net, x = make(name)
    return net.double(), x.double()


def shuffles(net, x, seed):
    rng = np.random.default_rng(seed)
    return {group.name: rng.permutation(group.size) for group in Axes.of(net, x).groups}


@pytest.mark.parametrize("name", PERMUTABLE)
def test_a_permuted_network_computes_the_same(name):
    net, x = in_double(name)
    other = permuted(net, x, shuffles(net, x, 0))
    with torch.no_grad():
        torch.testing.assert_close(other(x), net(x), rtol=1e-10, atol=1e-10)
    assert any(not torch.equal(a, b) for a, b in zip(other.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("name", ["plain", "mlp", "residual", "separable"])
def test_a_permutation_is_found_again(name):
    net, x = in_double(name)
    orders = shuffles(net, x, 1)
    found = match_weights(net, permuted(net, x, orders), x)
    assert {group: order.tolist() for group, order in found.items()} == {g: o.tolist() for g, o in orders.items()}


def test_the_average_of_a_network_and_its_permuted_self_is_the_network():
    net, x = in_double("residual")
    both = average([permuted(net, x, shuffles(net, x, 2)), net], x, lam=0.3)
    with torch.no_grad():
        torch.testing.assert_close(both(x), net(x), rtol=1e-10, atol=1e-10)


def test_matching_never_moves_weights_apart():
    net, x = in_double("mlp")
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(p.numel())))

    def overlap(one):
        return sum(float((p * q).detach().sum()) for p, q in zip(one.parameters(), other.parameters(), strict=True))

    matched = permuted(net, x, match_weights(net, other, x))
    best = max(overlap(permuted(net, x, shuffles(net, x, seed))) for seed in range(20))
    assert overlap(matched) > max(best, overlap(net))


def test_the_same_seed_gives_the_same_matching():
    net, x = in_double("mlp")
    other = permuted(net, x, shuffles(net, x, 3))
    one, two = (match_weights(net, other, x, seed=4) for _ in range(2))
    assert all(np.array_equal(one[group], two[group]) for group in one)


def test_networks_that_do_not_fit_are_refused():
    net, x = in_double("mlp")
    wider = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    with pytest.raises(InvalidProblem, match=r"0.weight of \(8, 6\) and \(9, 6\)"):
        match_weights(net, wider, x)
    with pytest.raises(InvalidProblem, match="each of 0 to 7 once"):
        permuted(net, x, {"0": [0] * 8})
    with pytest.raises(InvalidProblem, match="expected two networks"):
        average([net], x)
    with pytest.raises(InvalidProblem, match="lam"):
        average([net, net], x, lam=-0.1)
    grouped, images = in_double("grouped")
    with pytest.raises(InvalidProblem, match="convolution in groups"):
        match_weights(grouped, grouped, images)
