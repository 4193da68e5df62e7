from __future__ import annotations

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import nn

from prunesolve.bridges.torch.costs import count
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.keep_counts import _last, _shared_out, distance, measured_counts
from prunesolve.bridges.torch.levels import Levels
from prunesolve.bridges.torch.shrink import shrink
from prunesolve.problems import Group, InvalidProblem, Selection, UnsupportedProblem

from .networks import make


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@functools.cache
def case(name):
    net, x = make(name)
    return net, torch.randn(20, *x.shape[1:], generator=torch.Generator().manual_seed(0)), find_groups(net, x).groups


def same_state(one, other):
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["mlp", "plain", "residual", "u-net"])
def test_as_many_units_stay_as_were_asked(name):
    net, x, groups = case(name)
    before, size = copy.deepcopy(net), sum(g.size for g in groups)
    for total in (len(groups), size // 2, size - 1, size):
        counted = measured_counts(net, x, groups, {"keep": total})
        assert sum(counted.counts.values()) == total == counted.keep.sum()
        for group, keep in Selection(groups, counted.keep):
            assert 1 <= keep.sum() == counted.counts[group.name]
    assert same_state(net, before)
    assert counted.evaluations > 0


def test_counts_are_the_best_of_all_by_the_interpolated_losses():
    net, x, groups = case("mlp")
    found = Levels.build(net, x, groups, levels=4, progress=False)
    rng = np.random.default_rng(1)
    for _ in range(5):
        losses = [np.append(np.sort(rng.exponential(size=len(c) - 1))[::-1], 0.0) for c in found.counts]
        tables = []
        for counts, loss in zip(found.counts, losses, strict=True):
            floor = 1e-3 * loss.max()
            every = np.arange(1, counts[-1] + 1)
            tables.append(np.exp(np.interp(every, counts, np.log(loss + floor))) - floor)
        for total in (2, 6, 9, 14):
            best = min(
                sum(table[k - 1] for table, k in zip(tables, chosen, strict=True))
                for chosen in itertools.product(*(range(1, g.size + 1) for g in groups))
                if sum(chosen) == total
            )
            got = _shared_out(found, losses, total)
            assert sum(got.values()) == total
            value = sum(table[got[g.name] - 1] for table, g in zip(tables, groups, strict=True))
            assert value == pytest.approx(best, abs=1e-9)


def test_a_layer_of_twins_gives_up_its_units_first():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        # one neuron, eight times
        net[0].weight[:] = net[0].weight[:1]
        net[0].bias[:] = 1.0
    units = [np.arange(8)[:, None]] * 2
    groups = [
        Group("0", 8, [("0", "out", units[0]), ("2", "in", units[0])]),
        Group("2", 8, [("2", "out", units[1]), ("4", "in", units[1])]),
    ]
    counts = measured_counts(net, torch.randn(100, 4).double(), groups, {"keep": 9}).counts
    assert counts["0"] < counts["2"]


@pytest.mark.parametrize("name", ["mlp", "plain"])
@pytest.mark.parametrize("resource", ["macs", "params"])
def test_a_budget_of_a_resource_is_kept_on_the_smaller_network(name, resource):
    net, x, groups = case(name)
    dense = count(net, x[:1])[resource]
    for limit in (0.6, int(0.8 * dense)):
        counted = measured_counts(net, x, groups, {resource: limit})
        smaller = shrink(net, Selection(groups, counted.keep), x[:2])
        most = limit * dense if isinstance(limit, float) else limit
        assert 0.3 * most < count(smaller, x[:1])[resource] <= most
        assert [int(k.sum()) for _, k in Selection(groups, counted.keep)] == list(counted.counts.values())


def test_the_distance_is_the_divergence_of_classes_and_the_mean_squared_error_of_all_else():
    given, wanted = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    p, q = softmax(wanted.numpy(), 1), softmax(given.numpy(), 1)
    np.testing.assert_allclose(distance(given, wanted), rel_entr(p, q).sum(1), rtol=1e-9)
    for shape in ((5,), (5, 1), (5, 2, 3), (5, 1, 4, 4)):
        given, wanted = torch.randn(shape).double(), torch.randn(shape).double()
        squared = ((given - wanted).numpy() ** 2).reshape(5, -1).mean(1)
        np.testing.assert_allclose(distance(given, wanted), squared, rtol=1e-9)
    assert float(distance(wanted, wanted).abs().max()) == 0.0


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_few_samples_serve(samples):
    net, x, groups = case("mlp")
    assert measured_counts(net, x[:samples], groups, {"keep": 8}).keep.sum() == 8


def test_one_number_a_sample_is_an_answer():
    class Flat(nn.Sequential):
        def forward(self, x):
            return super().forward(x)[:, 0]

    net = Flat(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))
    units = np.arange(6)[:, None]
    group = Group("0", 6, [("0", "out", units), ("2", "in", units)])
    assert measured_counts(net, torch.randn(30, 3), [group], {"keep": 4}).counts == {"0": 4}


def test_the_last_samples_judge():
    x = torch.arange(11.0)[:, None]
    for most in (1, 3, 4, 10, 11, 50):
        taken = torch.cat(_last([(part, None) for part in x.split(4)], most))
        assert taken.flatten().tolist() == list(range(max(0, 11 - most), 11))


def test_labels_are_not_looked_at_and_it_is_repeatable():
    net, x, groups = case("residual")
    state = torch.get_rng_state()
    one = measured_counts(net, x, groups, {"keep": 20})
    two = measured_counts(net, (x, torch.full((len(x),), 10**6)), groups, {"keep": 20})
    assert torch.equal(torch.get_rng_state(), state)
    assert one.counts == two.counts
    np.testing.assert_array_equal(one.keep, two.keep)


def test_what_makes_no_sense_is_refused_in_words():
    net, x, groups = case("mlp")
    for keep in (0, 1, 16):
        with pytest.raises(InvalidProblem, match="expected 2 to 15 units"):
            measured_counts(net, x, groups, {"keep": keep})
    with pytest.raises(InvalidProblem, match="one budget"):
        measured_counts(net, x, groups, {"macs": 0.5, "params": 0.5})
    with pytest.raises(InvalidProblem, match="budget"):
        measured_counts(net, x, groups, {"macs": 1})
    # the stem's units are read along the whole residual stream
    residual, images, coupled = case("residual")
    with pytest.raises(UnsupportedProblem, match="neighbouring layers"):
        measured_counts(residual, images, coupled, {"macs": 0.5})

    class Two(nn.Sequential):
        def forward(self, x):
            return super().forward(x), x

    units = np.arange(6)[:, None]
    group = Group("0", 6, [("0", "out", units), ("2", "in", units)])
    with pytest.raises(UnsupportedProblem, match="expected a tensor as its answer, got tuple"):
        measured_counts(Two(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(9, 3), [group], {"keep": 3})
