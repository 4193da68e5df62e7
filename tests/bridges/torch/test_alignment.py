"""Couplings of two networks: a permuted copy is found again, sweeps only improve, and the objective is right."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from prunesolve import solvers
from prunesolve.bridges.torch._alignment import FEATURES, Comparison, Edge, _counts, align, compare
from prunesolve.bridges.torch._inputs import Renormalised, SideBySide, differ, normalisation
from prunesolve.bridges.torch.axes import Axes
from prunesolve.bridges.torch.data import Batches
from prunesolve.problems import InvalidProblem

AUTO = solvers.get("auto")


def mlp(seed, widths=(6, 8, 5, 3)):
    torch.manual_seed(seed)
    layers = [m for i, o in itertools.pairwise(widths) for m in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).eval()


class Cnn(nn.Module):
    """BatchNorm, a tied stream and a flatten boundary."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.bn0 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.inner, self.bn1 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.outer, self.bn2 = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 9, 3)
        for norm in (self.bn0, self.bn1, self.bn2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 1.5)
        self.eval()

    def forward(self, x):
        x = torch.relu(self.bn0(self.stem(x)))
        x = torch.relu(x + self.bn2(self.outer(torch.relu(self.bn1(self.inner(x))))))
        return self.head(x.flatten(1))


def permuted_mlp(net, orders):
    """The same function with hidden units in another order."""
    twin = copy.deepcopy(net)
    for (first, second), order in zip(((0, 2), (2, 4)), orders, strict=True):
        twin[first].weight.data = twin[first].weight.data[order]
        twin[first].bias.data = twin[first].bias.data[order]
        twin[second].weight.data = twin[second].weight.data[:, order]
    return twin


def compared(a, b, x, features):
    axes = Axes.of(a, x[:2]), Axes.of(b, x[:2])
    return compare((a, b), axes, (Batches(x), Batches(x)), features)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("sweeps", [0, 5])
def test_a_permuted_copy_is_found_again(features, sweeps):
    net, x = mlp(0), torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    orders = [torch.tensor(np.random.default_rng(k).permutation(n)) for k, n in ((1, 8), (2, 5))]
    twin = permuted_mlp(net, orders)
    assert torch.allclose(twin(x), net(x), atol=1e-5)
    comparison = compared(net, twin, x, features)
    found = align(comparison, dict.fromkeys(comparison.widths, 0.0), AUTO, sweeps=sweeps)
    for order, coupling in zip(orders, found.couplings.values(), strict=True):
        rows, columns = coupling.plan.nonzero()
        np.testing.assert_array_equal(rows[np.argsort(columns)], order)
    assert found.objective[-1] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("features", FEATURES)
def test_a_permuted_stream_and_its_flattened_map_are_found_again(features):
    net, x = Cnn(0), torch.randn(16, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    twin = copy.deepcopy(net)
    order = torch.tensor([2, 0, 3, 1])
    for conv, norm in ((twin.stem, twin.bn0), (twin.outer, twin.bn2)):
        conv.weight.data = conv.weight.data[order]
        for held in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            held.copy_(held[order].clone())
    twin.inner.weight.data = twin.inner.weight.data[:, order]
    twin.head.weight.data = twin.head.weight.data.reshape(3, 4, 9)[:, order].reshape(3, 36)
    assert torch.allclose(twin(x), net(x), atol=1e-5)
    comparison = compared(net, twin, x, features)
    found = align(comparison, dict.fromkeys(comparison.widths, 0.0), AUTO, sweeps=2)
    rows, columns = found.couplings["stem"].plan.nonzero()
    np.testing.assert_array_equal(rows[np.argsort(columns)], order)


@pytest.mark.parametrize("features", ["weights", "both"])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_no_sweep_makes_the_objective_worse(features, alpha):
    for seed in range(4):
        a, b = mlp(seed, (6, 12, 9, 3)), mlp(seed + 50, (6, 12, 9, 3))
        comparison = compared(a, b, torch.randn(30, 6), features)
        found = align(comparison, dict.fromkeys(comparison.widths, alpha), AUTO, sweeps=6)
        assert len(found.objective) > 1
        assert all(after <= before + 1e-9 for before, after in itertools.pairwise(found.objective))


def test_the_objective_is_the_sum_over_pairs_of_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 2, 4)), rng.normal(size=(4, 3, 4))
    plans = {"h": rng.random((3, 4)), "g": rng.random((2, 3))}
    tables = {name: rng.random(plan.shape) for name, plan in plans.items()}
    edge = Edge("h", "g", a, b, 0.7)
    comparison = Comparison({"h": (3, 4), "g": (2, 3)}, tables, {}, {}, [edge])
    wanted = sum((tables[name] * plans[name]).sum() for name in plans)
    for i, j, k, m in itertools.product(range(3), range(4), range(2), range(3)):
        wanted += 0.7 * plans["h"][i, j] * plans["g"][k, m] * ((a[i, k] - b[j, m]) ** 2).sum()
    assert comparison.objective(plans) == pytest.approx(wanted)
    # linear in each plan: its cost times the plan is all that changes with it
    for name in plans:
        rest = comparison.objective(plans | {name: np.zeros_like(plans[name])})
        assert comparison.objective(plans) - rest == pytest.approx((comparison.cost(name, plans) * plans[name]).sum())


def test_activation_costs_are_mean_squared_differences_over_all_positions():
    a, b = Cnn(1), Cnn(2)
    x = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    comparison = compared(a, b, x, "activations")
    with torch.no_grad():
        seen = [net.bn0(net.stem(x)).movedim(1, 0).flatten(1) for net in (a, b)]
        inner = [net.bn1(net.inner(torch.relu(net.bn0(net.stem(x))))).movedim(1, 0).flatten(1) for net in (a, b)]
    assert seen[0].shape == (4, 54)
    wanted = (inner[0][:, None] - inner[1][None]).square().mean(-1)
    np.testing.assert_allclose(comparison.activations["inner"], (wanted / wanted.mean()).numpy(), rtol=1e-4)
    # the stream's cost is the mean over both layers that write it, each of mean one
    assert comparison.activations["stem"].mean() == pytest.approx(1.0)


def test_counts_have_a_mass_of_one_for_each_whole_pair():
    a, b = mlp(0, (6, 8, 4, 3)), mlp(1, (6, 8, 4, 3))
    comparison = compared(a, b, torch.randn(20, 6), "activations")
    found = align(comparison, {"0": 0.5, "2": 0.0}, AUTO)
    assert _counts(found.couplings["0"]).sum() == pytest.approx(4)
    assert set(np.unique(_counts(found.couplings["2"])).round(9)) == {0.0, 1.0}


def test_an_activation_that_is_not_finite_names_the_layer_and_the_model():
    a, b, x = mlp(0), mlp(1), torch.randn(10, 6)
    b[2].weight.data[0, 0] = torch.nan
    with pytest.raises(InvalidProblem, match="layer '2' of model 1 gives activations that are not finite"):
        compared(a, b, x, "activations")


def test_both_normalisations_stand_side_by_side():
    pixels = torch.rand(5, 3, 4, 4)
    first, second = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)), ((0.1, 0.2, 0.3), (1.0, 0.5, 0.25))

    def normalised(of):
        mean, std = (torch.tensor(part).reshape(1, 3, 1, 1) for part in of)
        return (pixels - mean) / std

    side = SideBySide(first, second)
    found = side(normalised(first))
    assert found.shape == (5, 6, 4, 4)
    torch.testing.assert_close(found[:, :3], normalised(first))
    torch.testing.assert_close(found[:, 3:], normalised(second))
    ((read, targets),) = Renormalised(Batches((normalised(first), torch.arange(5))), side)
    torch.testing.assert_close(read, normalised(second))
    assert targets.tolist() == list(range(5))


def test_normalisations_are_compared_and_checked():
    assert not differ((0.5, 1.0), ((0.5, 0.5, 0.5), 1.0))
    assert differ((0.5, 1.0), ((0.5, 0.5, 0.4), 1.0))
    for wrong in ((0.5, 0.0), (float("nan"), 1.0), 3.0, ((0.1, 0.2), (1.0, 1.0, 1.0))):
        with pytest.raises(InvalidProblem, match="inputs: expected"):
            normalisation(wrong)
