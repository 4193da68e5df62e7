"""Merged networks: exact for duplicates whatever stands behind them, smaller as asked, better than deletion."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import prunesolve as ps
from prunesolve.bridges.torch._merged import merged, refusal
from prunesolve.bridges.torch.evaluate import evaluate
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.merging import merge, merge_ensemble, refit_merged
from prunesolve.bridges.torch.shrink import shrink
from prunesolve.formulations.generalised_pruning import Merging
from prunesolve.problems import InvalidProblem, Selection

from .networks import NETWORKS, make


@functools.cache
def prepared(name):
    """In double precision, where duplicates leave nothing but the last digits."""
    net, x = make(name)
    net, x = net.double(), x.double()
    return net, x, tuple(g for g in find_groups(net, x).groups if refusal(net, g) is None and g.size > 2)


def duplicated(net, group, one, other):
    """A copy in which unit `other` is made as unit `one` is."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for member in (m for m in group.members if m.axis == "out"):
            module = twin.get_submodule(member.path)
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(module, name, None)
                if tensor is not None:
                    turned = isinstance(module, nn.ConvTranspose2d) and name == "weight"
                    rows = tensor.transpose(0, 1) if turned else tensor
                    rows[torch.tensor(member.channels[other])] = rows[torch.tensor(member.channels[one])].clone()
    return twin


def pair_merged(group, one, other):
    labels = np.arange(group.size)
    labels[other] = one
    return Merging.of_labels(np.unique(labels, return_inverse=True)[1])


MERGEABLE = [name for name in NETWORKS if prepared(name)[2]]


@pytest.mark.parametrize("name", MERGEABLE)
def test_duplicates_merge_exactly_in_every_group(name):
    net, x, groups = prepared(name)
    twins = net
    for group in groups:
        twins = duplicated(twins, group, 0, 2)
    mergings = {group.name: pair_merged(group, 0, 2) for group in groups}
    small = merged(twins, x, groups, mergings).model
    with torch.no_grad():
        torch.testing.assert_close(small(x), twins(x), rtol=1e-9, atol=1e-9)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in twins.parameters())


def test_most_kinds_of_networks_can_be_merged():
    assert set(NETWORKS) - set(MERGEABLE) <= {"shared"}


def test_duplicates_behind_norms_of_different_scales_merge_exactly():
    net, x, groups = prepared("plain")
    twins = duplicated(net, groups[0], 0, 2)
    with torch.no_grad():
        conv, norm = twins[0][0], twins[0][1]
        conv.weight[2] *= -3.0
        norm.running_mean[2] *= -3.0
        norm.running_var[2] = 9.0 * norm.running_var[0] + 8.0 * norm.eps
        norm.weight[2] *= -1.0
    small = merged(twins, x, groups[:1], {groups[0].name: pair_merged(groups[0], 0, 2)}).model
    with torch.no_grad():
        assert not torch.allclose(conv.weight[2], conv.weight[0])
        torch.testing.assert_close(small(x), twins(x), rtol=1e-9, atol=1e-9)


def test_a_merged_norm_that_is_recalibrated_gives_what_its_channels_gave():
    net, x, groups = prepared("plain")
    twins = duplicated(net, groups[0], 0, 2)
    data = torch.randn(64, *x.shape[1:], dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    ps.recalibrate_batchnorm(twins, data)
    small = merged(twins, x, groups[:1], {groups[0].name: pair_merged(groups[0], 0, 2)}).model
    ps.recalibrate_batchnorm(small, data)
    with torch.no_grad():
        # the merged channel's variance is known without its epsilon
        torch.testing.assert_close(small(x), twins(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "plain", "residual", "separable"])
def test_keeping_all_changes_nothing(name):
    net, x, groups = prepared(name)
    made = merge(net, x, keep=1.0)
    with torch.no_grad():
        torch.testing.assert_close(made.model(x), net(x), rtol=1e-12, atol=1e-12)
    assert made.report["params"][0] == made.report["params"][1]


def test_deletion_is_what_shrink_does():
    net, x, groups = prepared("plain")
    made = merge(net, x, keep=0.5, how="delete", criterion="std")
    keep = np.concatenate([np.isin(np.arange(g.size), made.mergings[g.name].places) for g in groups])
    small = shrink(net, Selection(groups, keep), x)
    for name, tensor in small.state_dict().items():
        torch.testing.assert_close(made.model.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["cluster", "transport", "delete"])
@pytest.mark.parametrize("name", ["mlp", "plain", "residual"])
def test_widths_are_as_asked(name, how):
    net, x, groups = prepared(name)
    before = copy.deepcopy(net.state_dict())
    made = merge(net, x, keep=0.5, how=how)
    assert made.report["widths"] == {g.name: [int(np.floor(g.size / 2 + 0.5)), g.size] for g in groups}
    for group in groups:
        assert made.mergings[group.name].width == made.report["widths"][group.name][0]
        first = made.model.get_submodule(group.layer)
        assert made.report["widths"][group.name][0] in (
            getattr(first, "out_channels", 0),
            getattr(first, "out_features", 0),
        )
    assert made.model(x).shape == net(x).shape
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    again = merge(net, x, keep=0.5, how=how)
    assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), again.model.parameters(), strict=True))


def test_groups_by_name_the_others_stay():
    net, x, groups = prepared("mlp")
    made = merge(net, x, keep={groups[1].name: 3})
    assert made.report["widths"] == {groups[1].name: [3, 7]}
    assert (made.model[0].out_features, made.model[2].out_features, made.model[4].in_features) == (8, 3, 3)


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


@functools.cache
def trained(seed):
    """An MLP of the digits, images to calibrate on and images to test on."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = torch.tensor(data.data[order] / 16).float(), torch.tensor(data.target[order])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Digits()
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(120):
        optimiser.zero_grad()
        F.cross_entropy(net(x[:1200]), y[:1200]).backward()
        optimiser.step()
    return net.eval(), (x[:600], y[:600]), (x[1200:], y[1200:])


def score(net):
    return evaluate(net, trained(0)[2])["metric"]


def test_clusters_lose_less_than_deletion_and_a_refit_mends_much():
    net, data, _ = trained(0)
    for keep in (0.5, 0.3):
        lost = {how: score(net) - score(merge(net, data, keep=keep, how=how).model) for how in ("cluster", "delete")}
        assert lost["cluster"] < lost["delete"]
    rough = merge(net, data, keep=0.3)
    fitted = refit_merged(net, rough, data)
    assert score(fitted) > score(rough.model)
    whole = merge(net, data, keep=0.3, refit=True).model
    assert all(torch.equal(a, b) for a, b in zip(fitted.parameters(), whole.parameters(), strict=True))


def test_the_refit_fits_what_the_clusters_gave():
    """A linear network of rank two is fitted exactly by two neurons a layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 6), nn.Linear(6, 5), nn.Linear(5, 3)).double()
        x = torch.randn(40, 2).double()
    made = merge(net, x, keep={"0": 3, "1": 3}, refit=True, ridge=0.0)
    with torch.no_grad():
        torch.testing.assert_close(made.model(x), net(x), rtol=1e-6, atol=1e-6)
        assert not torch.allclose(made.merged.model(x), net(x), atol=1e-2)


def test_the_taylor_criterion_keeps_what_the_loss_needs():
    net, data, _ = trained(0)
    blind = copy.deepcopy(net)
    with torch.no_grad():
        # nobody reads the neurons with the largest weights
        blind.fc1.weight[:32] *= 10.0
        blind.fc2.weight[:, :32] = 0.0
    kept = {
        c: merge(blind, data, keep={"fc1": 32}, how="delete", criterion=c).mergings["fc1"].places
        for c in ("l2", "taylor")
    }
    assert kept["l2"].tolist() == list(range(32))
    assert kept["taylor"].tolist() == list(range(32, 64))


def test_twins_merge_into_one_of_them():
    net, data, _ = trained(0)
    made = merge_ensemble([net, net], data, keep=0.5, lam=0.3)
    with torch.no_grad():
        torch.testing.assert_close(made.model(data[0]), net(data[0]), rtol=1e-4, atol=1e-4)
    assert made.report["widths"] == {"fc1": [64, 128], "fc2": [32, 64]}


def test_the_ensemble_merged_at_full_width_is_the_ensemble():
    (one, data, _), (other, _, _) = trained(0), trained(1)
    made = merge_ensemble([one, other], data, keep=1.0, lam=0.3)
    with torch.no_grad():
        want = 0.7 * one(data[0]) + 0.3 * other(data[0])
        torch.testing.assert_close(made.model(data[0]), want, rtol=1e-4, atol=1e-4)
    assert made.report["params"][1] > 2 * sum(p.numel() for p in one.parameters())


def test_a_network_without_a_share_of_the_ensemble_is_dropped():
    (one, data, _), (other, _, _) = trained(0), trained(1)
    made = merge_ensemble([one, other], data, keep=0.5, lam=0.0)
    with torch.no_grad():
        torch.testing.assert_close(made.model(data[0]), one(data[0]), rtol=1e-4, atol=1e-4)


def test_convolutions_flattened_maps_and_norms_side_by_side():
    net, x, _ = prepared("plain")
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p += 0.1 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1))
        made = merge_ensemble([net, other], x, keep=1.0)
        torch.testing.assert_close(made.model(x), (net(x) + other(x)) / 2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["concatenated", "option-a", "u-net", "grouped"])
def test_what_cannot_stand_side_by_side_is_refused(name):
    net, x = make(name)
    with pytest.raises(InvalidProblem, match="fuse the networks instead"):
        merge_ensemble([net, net], x, keep=0.5)


def test_the_door():
    net, data, _ = trained(0)
    out = ps.merge(net, data, keep=0.5)
    assert out.model.fc1.out_features == 32
    assert ps.merge([net, net], data, keep=0.25).model.fc1.out_features == 32


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"keep": 0.5, "how": "clusters"}, "unknown how 'clusters'.*cluster"),
        ({"keep": 0.5, "features": "weight"}, "unknown features 'weight'"),
        ({"keep": 0.5, "importance": "all"}, "unknown importance"),
        ({"keep": 0.5, "how": "delete", "criterion": "l3"}, "unknown criterion 'l3'.*l2"),
        ({"keep": 1.5}, "keep"),
        ({"keep": {"fc9": 0.5}}, "unknown group 'fc9'"),
        ({"keep": 0.5, "layers": ["fc9"]}, "unknown layer 'fc9'"),
        ({"keep": 0.5, "refit": True, "ridge": -1.0}, "ridge"),
    ],
)
def test_nonsense_is_refused_in_words(asked, words):
    net, data, _ = trained(0)
    with pytest.raises(InvalidProblem, match=words):
        merge(net, data, **asked)


def test_models_that_do_not_fit_are_refused():
    net, data, _ = trained(0)
    with pytest.raises(InvalidProblem, match="expected two networks, got 1"):
        merge_ensemble([net], data, keep=0.5)
    with pytest.raises(InvalidProblem, match="lam"):
        merge_ensemble([net, net], data, keep=0.5, lam=1.5)
    with pytest.raises(InvalidProblem, match="one architecture"):
        merge_ensemble([net, nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))], data, keep=0.5)


def test_grouped_convolutions_are_left_alone_by_name():
    net, x = make("grouped")
    made = merge(net, x, keep=0.5)
    assert any("convolution in 2 groups" in reason for reason in made.report["excluded"].values())


@pytest.mark.parametrize("at", [0, 7])
def test_data_that_are_not_finite_are_refused(at):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs = torch.randn(8, 3)
    inputs[at] = float("nan")
    with pytest.raises(InvalidProblem, match="mend the data"):
        merge(net, [(part, None) for part in inputs.split(4)], keep=2)
