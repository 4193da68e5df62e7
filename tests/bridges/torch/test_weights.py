from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from prunesolve.bridges.torch import _lockstep, weights
from prunesolve.bridges.torch._weight_moments import sampled
from prunesolve.bridges.torch.masks import apply_masks
from prunesolve.bridges.torch.unfold import columns, output_columns, weight_matrix
from prunesolve.bridges.torch.weights import n_of_m, prune_weights
from prunesolve.problems import InvalidProblem
from prunesolve.solvers import Obc

from .networks import make

NAMES = ["plain", "residual", "option-a", "concatenated", "grouped", "shared", "u-net"]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def case(name, count=48):
    net, x = make(name)
    return net, torch.randn(count, *x.shape[1:]).split(24)


def answers(net, data):
    with torch.no_grad():
        return torch.cat([net(x) for x in data])


def distance(net, dense, data):
    return float((answers(net, data) - answers(dense, data)).square().mean())


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_exact_what_goes_is_zero_and_the_original_stays(name):
    net, data = case(name)
    before = copy.deepcopy(net.state_dict())
    out = prune_weights(net, data, keep=0.4, solver="magnitude")
    sizes = [w.numel() for w in (net.get_parameter(key) for key in out.masks)]
    assert sum(int(m.sum()) for m in out.masks.values()) == int(0.4 * sum(sizes) + 0.5)
    for key, mask in out.masks.items():
        weight = out.model.get_parameter(key)
        assert mask.shape == weight.shape
        assert not weight[~mask].any()
        assert out.counts[key.removesuffix(".weight")] == (int(mask.sum()), mask.numel())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not net.training


@pytest.mark.parametrize("name", NAMES)
def test_the_refit_brings_the_answer_nearer_to_the_dense_networks(name):
    net, data = case(name, 192)
    out = prune_weights(net, data, keep=0.5, solver="magnitude")
    masked = apply_masks(copy.deepcopy(net), out.masks)
    assert distance(out.model, net, data) < distance(masked, net, data)


@pytest.mark.parametrize("name", ["residual", "option-a", "u-net"])
def test_passes_that_rest_and_passes_anew_come_to_the_same(name, monkeypatch):
    net, data = case(name)
    together = prune_weights(net, data, keep=0.4, solver="magnitude")
    monkeypatch.setattr(_lockstep, "_room", lambda: -1)
    anew = prune_weights(net, data, keep=0.4, solver="magnitude")
    for (key, one), other in zip(together.model.state_dict().items(), anew.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=key)


def test_without_refit_the_network_is_the_masked_one():
    net, data = case("residual")
    out = prune_weights(net, data, keep=0.4, solver="obc", refit=False)
    masked = apply_masks(copy.deepcopy(net), out.masks)
    for key, value in masked.state_dict().items():
        torch.testing.assert_close(out.model.state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("solver", ["magnitude", "wanda", Obc()])
def test_two_of_every_four_input_channels_of_each_tap(solver):
    net = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).eval()
    out = prune_weights(net, torch.randn(64, 8, 5, 5), pattern="2:4", solver=solver)
    conv, linear = out.masks["0.weight"], out.masks["3.weight"]
    assert (conv.unflatten(1, (2, 4)).sum(2) == 2).all()
    assert (linear.unflatten(1, (9, 4)).sum(2) == 2).all()
    assert out.exempt == {}


def test_layers_whose_inputs_do_not_part_stay_dense_and_are_told():
    net, data = case("residual")
    out = prune_weights(net, data, pattern="2:4", solver="magnitude")
    assert "stem.0" in out.exempt
    assert "3 input channels" in out.exempt["stem.0"]
    assert "stem.0.weight" not in out.masks
    with pytest.raises(InvalidProblem, match=r"stem\.0: 3 input channels"):
        prune_weights(net, data, pattern="2:4", layers=["stem.0"])


def test_one_layer_by_least_squares_on_its_support():
    net, x = nn.Sequential(nn.Linear(6, 3)), torch.randn(200, 6)
    out = prune_weights(net, x, keep=9, solver="magnitude", ridge=1e-2)
    mask = out.masks["0.weight"].numpy()
    inputs, dense = x.numpy().astype(np.float64), net[0].weight.detach().numpy().astype(np.float64)
    centred = inputs - inputs.mean(0)
    pull = np.sqrt(1e-2 * centred.var(0).mean() * len(x))
    for i, kept in enumerate(mask):
        # the pull as further rows of the system
        rows = np.vstack([centred[:, kept], pull * np.eye(6)[:, kept]])
        wanted = np.concatenate([centred @ dense[i], pull * dense[i]])
        solved = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        np.testing.assert_allclose(out.model[0].weight.detach().numpy()[i, kept], solved, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answers(out.model, [x]).mean(0), answers(net, [x]).mean(0))


class Added(nn.Module):
    """One branch can make good what the other loses."""

    def __init__(self, in_place):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 5), nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)
        self.in_place = in_place

    def forward(self, x):
        shortcut = self.first(x)
        y = self.norm(self.second(x))
        if self.in_place:
            y += shortcut
            return y
        return y + shortcut


@pytest.mark.parametrize("in_place", [False, True])
def test_what_is_added_makes_good_the_shortcuts_error(in_place):
    net, x = Added(in_place).eval(), torch.randn(300, 4)
    out = prune_weights(net, x.split(100), keep=5, layers=["first"], solver="magnitude", ridge=1e-9)
    assert not torch.allclose(out.model.first(x), net.first(x), atol=0.1)
    torch.testing.assert_close(answers(out.model, [x]), answers(net, [x]), rtol=1e-3, atol=1e-3)


def test_everything_kept_changes_nothing():
    net, data = case("residual")
    out = prune_weights(net, data, keep=1.0, solver="magnitude")
    torch.testing.assert_close(answers(out.model, data), answers(net, data), rtol=1e-3, atol=1e-4)


LAYERS = [
    (nn.Linear(5, 3), (7, 2, 5)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9, 8)),
    (nn.Conv1d(2, 3, 3, dilation=2, padding="same"), (3, 2, 9)),
    (nn.ConvTranspose2d(4, 2, 3, stride=2, groups=2, output_padding=1), (2, 4, 5, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda x: type(x).__name__)
def test_sampled_columns_are_the_unfolded_ones(layer, shape):
    x = torch.randn(shape)
    y = layer(x).detach()
    generator = torch.Generator().manual_seed(0)
    every = [(a, output_columns(layer, y, span)) for a, span in columns(layer, x)]
    inputs, outputs = (torch.cat([pair[i] for pair in every], 2) for i in (0, 1))
    got = sampled(layer, x, y, 10**9, generator)
    torch.testing.assert_close(got[0] @ got[1].mT, inputs @ outputs.mT, rtol=1e-4, atol=1e-4)
    assert got[0].shape == inputs.shape
    few, wanted = sampled(layer, x, y, 5, generator)
    assert few.shape[2] == 5
    made = weight_matrix(layer) @ few + layer.bias.detach().reshape(len(few), -1, 1)
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)


def test_counts_by_levels_add_up_and_spare_the_layer_that_matters():
    class Scaled(nn.Module):
        """Two branches of equal weights, of which the answer is ten times as sensitive to one."""

        def __init__(self):
            super().__init__()
            self.loud, self.soft = nn.Linear(20, 6), nn.Linear(20, 6)
            self.soft.weight.data.copy_(self.loud.weight.data)

        def forward(self, x):
            return torch.cat([10 * self.loud(x), self.soft(x)], dim=1).tanh().flatten(1)[..., None]

    net, x = Scaled().eval(), 0.05 * torch.randn(256, 20)
    out = prune_weights(net, x, keep=0.3, solver="magnitude", allocation="level-choice")
    assert out.allocation == "level-choice"
    assert sum(k for k, _ in out.counts.values()) == 72
    assert out.counts["loud"][0] > out.counts["soft"][0]


def test_the_losss_curvature_can_be_weighed_in():
    net, data = case("grouped")
    with torch.no_grad():
        labelled = [(x, net(x).argmax(1) if net(x).ndim == 2 else net(x)) for x in data]
    plain = prune_weights(net, labelled, keep=0.4, solver="obc")
    for lam, same in ((1.0, True), (0.2, False)):
        out = prune_weights(net, labelled, keep=0.4, solver="obc", lam=lam)
        assert all(torch.equal(out.masks[key], mask) for key, mask in plain.masks.items()) == same
        assert out.counts == plain.counts
    with pytest.raises(InvalidProblem, match="targets"):
        prune_weights(net, data, keep=0.4, solver="obc", lam=0.5)


def test_counts_can_be_given():
    net, data = case("plain")
    wanted = {path: 3 for path, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    out = prune_weights(net, data, allocation=wanted, solver="magnitude")
    assert {path: kept for path, (kept, _) in out.counts.items()} == wanted


def test_a_wide_layer_goes_by_magnitude(monkeypatch, caplog):
    monkeypatch.setattr(weights, "_WIDE", 5)
    net, data = case("plain")
    out = prune_weights(net, data, keep=0.3, solver="obc")
    assert "pruned by magnitude" in caplog.text
    assert sum(int(m.sum()) for m in out.masks.values()) == sum(k for k, _ in out.counts.values())


def test_few_samples_are_told(caplog):
    prune_weights(nn.Sequential(nn.Linear(9, 2)), torch.randn(4, 9), keep=0.5, solver="magnitude")
    assert "0: 4 columns for 9 inputs; 6 more are needed to determine the fit" in caplog.text


class Poisoned(nn.Module):
    def forward(self, x):
        return x / 0.0


def test_activations_that_are_not_finite_name_the_layer():
    net = nn.Sequential(nn.Linear(4, 4), Poisoned(), nn.Linear(4, 2))
    with pytest.raises(InvalidProblem, match="layer 2: expected finite"):
        prune_weights(net, torch.randn(16, 4), keep=0.5, solver="magnitude")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": 1.5}, r"keep: .*\(0, 1\].*1\.5"),
        ({"keep": 0}, "keep"),
        ({"keep": 10**6}, "1000000"),
        ({"keep": True}, "True"),
        ({}, "neither"),
        ({"keep": 0.5, "pattern": "2:4"}, "leave keep"),
        ({"pattern": "4:2"}, "0 < n < m.*4:2"),
        ({"pattern": "two of four"}, "n:m"),
        ({"keep": 0.5, "layers": []}, "names of layers"),
        ({"keep": 0.5, "layers": ["00"]}, "layer"),
        ({"keep": 0.5, "solver": "magnitud"}, "did you mean 'magnitude'"),
        ({"keep": 0.5, "solver": 3}, "int"),
        ({"keep": 0.5, "allocation": "lampp"}, "did you mean 'lamp'"),
        ({"allocation": {"0": 3}}, "other names"),
        ({"keep": 0.5, "ridge": 0.0}, "ridge > 0"),
    ],
)
def test_bad_input(options, says):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(InvalidProblem, match=says):
        prune_weights(net, torch.randn(16, 4), **({"solver": "magnitude"} | options))


def test_a_network_without_layers_is_refused():
    with pytest.raises(InvalidProblem, match="found none"):
        prune_weights(nn.Sequential(nn.ReLU()), torch.randn(16, 4), keep=0.5)


def test_patterns():
    assert n_of_m("1:8") == (1, 8)


def test_an_unknown_allocation_is_told_with_all_that_there_are():
    with pytest.raises(InvalidProblem, match="did you mean 'level-choice'.*auto, erk, global, lamp, level-choice"):
        prune_weights(
            torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.randn(8, 4), keep=0.5, allocation="level-choise"
        )
