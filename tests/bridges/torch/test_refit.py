from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.masks import apply_masks, masks
from prunesolve.bridges.torch.refit import refit
from prunesolve.bridges.torch.shrink import cut_out
from prunesolve.problems import Group, InvalidProblem, Selection

from .networks import make

NAMES = ["plain", "residual", "concatenated", "separable", "grouped", "shared", "u-net", "instance", "halves"]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def one_each(size):
    return np.arange(size)[:, None]


def chain(width, *layers):
    """Layers "0", ..., "last" in a row; the units are the outputs of "0"."""
    net = nn.Sequential(*layers).double()
    last = str(len(layers) - 1)
    return net, Group("0", width, [("0", "out", one_each(width)), (last, "in", one_each(width))])


def removed(net, selection):
    return cut_out(net, masks(selection, net))


@functools.cache
def doubled(name):
    """A network whose last unit of every group does just what the first does, data, and the selection without it."""
    net, x = make(name)
    net = net.double()
    x = torch.randn(48, *x.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    groups = [g for g in find_groups(net, x[:2]).groups if g.size > 1]
    for group in groups:
        for path, axis, channels in group.members:
            if axis == "out":
                module = net.get_submodule(path)
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    dim = 1 if isinstance(module, nn.ConvTranspose2d) and tensor.ndim > 1 else 0
                    if tensor.ndim and tensor.shape[dim] > channels.max():
                        first, last = torch.tensor(channels[0]), torch.tensor(channels[-1])
                        with torch.no_grad():
                            tensor.index_copy_(dim, last, tensor.index_select(dim, first))
    keep = np.concatenate([np.arange(g.size) < g.size - 1 for g in groups])
    return net, x, Selection(groups, keep)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("grouped", "shared", "halves")])
def test_what_the_kept_units_can_express_is_recovered_exactly(name):
    net, x, selection = doubled(name)
    smaller = removed(net, selection)
    with torch.no_grad():
        fitted, wanted = refit(net, smaller, x, selection, ridge=1e-10)(x), net(x)
        assert (smaller(x) - wanted).abs().max() > 1e-3 * wanted.abs().max()
        torch.testing.assert_close(fitted, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_the_masked_and_the_removed_network_are_refitted_alike(name):
    net, x = make(name)
    net = net.double()
    x = torch.randn(20, *x.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    groups = find_groups(net, x[:2]).groups
    keep = np.concatenate([np.arange(g.size) < max(1, g.size // 2) for g in groups])
    selection = Selection(groups, keep)
    masked = apply_masks(copy.deepcopy(net), masks(selection, net))
    smaller = refit(net, removed(net, selection), x, selection)
    with torch.no_grad():
        torch.testing.assert_close(refit(net, masked, x, selection)(x), smaller(x))
        assert (smaller(x) - net(x)).square().mean() < (masked(x) - net(x)).square().mean()


def test_a_linear_layer_with_bias_takes_the_least_squares_solution():
    net, units = chain(5, nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(40, 4).double()
    selection = Selection([units], [True, True, False, True, False])
    fitted = refit(net, removed(net, selection), [x[:30], x[30:]], selection, ridge=0.0)
    with torch.no_grad():
        read, wanted = F.relu(net[0](x))[:, [0, 1, 3]].numpy(), net(x).numpy()
    solution = np.linalg.lstsq(np.column_stack([read, np.ones(40)]), wanted, rcond=None)[0]
    np.testing.assert_allclose(fitted[2].weight.detach().numpy(), solution[:3].T, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fitted[2].bias.detach().numpy(), solution[3], rtol=1e-7, atol=1e-9)


def test_a_layer_without_bias_or_norm_is_fitted_through_the_origin():
    net, units = chain(4, nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    x = torch.randn(40, 4).double()
    selection = Selection([units], [True, True, False, True])
    fitted = refit(net, removed(net, selection), x, selection, ridge=0.0)
    with torch.no_grad():
        read, wanted = F.relu(net[0](x))[:, [0, 1, 3]].numpy(), net(x).numpy()
    solution = np.linalg.lstsq(read, wanted, rcond=None)[0]
    np.testing.assert_allclose(fitted[2].weight.detach().numpy(), solution.T, rtol=1e-7, atol=1e-9)
    assert fitted[2].bias is None


def test_a_convolution_without_bias_leaves_its_intercept_in_the_batchnorm_it_feeds():
    net = nn.Sequential(
        nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
    ).double().eval()  # fmt: skip
    units = Group("0", 5, [("0", "out", one_each(5)), ("2", "in", one_each(5))])
    x = torch.randn(6, 2, 5, 5).double()
    selection = Selection([units], [True, False, True, True, False])
    smaller = removed(net, selection)
    fitted = refit(net, smaller, x, selection, ridge=0.0)
    with torch.no_grad():
        unfolded = F.unfold(F.relu(net[0](x))[:, [0, 2, 3]], 3, padding=1).movedim(1, 2).flatten(0, 1).numpy()
        wanted = net[2](F.relu(net[0](x))).movedim(1, 3).flatten(0, 2).numpy()
    solution = np.linalg.lstsq(np.column_stack([unfolded, np.ones(len(unfolded))]), wanted, rcond=None)[0]
    np.testing.assert_allclose(fitted[2].weight.detach().flatten(1).numpy(), solution[:-1].T, rtol=1e-6, atol=1e-9)
    shift = (smaller[3].running_mean - fitted[3].running_mean).numpy()
    np.testing.assert_allclose(shift, solution[-1], rtol=1e-6, atol=1e-9)
    assert torch.equal(fitted[3].running_var, smaller[3].running_var)


def test_a_large_ridge_leaves_the_weights_and_a_middling_one_lies_between():
    net, units = chain(4, nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(40, 4).double()
    selection = Selection([units], [True, True, False, True])
    smaller = removed(net, selection)
    moved = [
        float((refit(net, smaller, x, selection, ridge=r)[2].weight - smaller[2].weight).detach().norm())
        for r in (0.0, 1.0, 1e12)
    ]
    assert moved[0] > moved[1] > 1e3 * moved[2]


def test_later_layers_see_the_refitted_network():
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    groups = [
        Group("0", 6, [("0", "out", one_each(6)), ("2", "in", one_each(6))]),
        Group("2", 6, [("2", "out", one_each(6)), ("4", "in", one_each(6))]),
    ]
    selection = Selection(groups, [True] * 3 + [False] * 3 + [True] * 4 + [False] * 2)
    x = torch.randn(60, 3).double()
    fitted = refit(net, removed(net, selection), x, selection, ridge=0.0)
    with torch.no_grad():
        read, wanted = fitted[:4](x).numpy(), net(x).numpy()
    solution = np.linalg.lstsq(np.column_stack([read, np.ones(60)]), wanted, rcond=None)[0]
    np.testing.assert_allclose(fitted[4].weight.detach().numpy(), solution[:-1].T, rtol=1e-6, atol=1e-9)


class Branches(nn.Module):
    """skip(relu(units(x))) + body(x): what the skip loses, the body can make good."""

    def __init__(self, norm: bool, in_place: bool) -> None:
        super().__init__()
        self.units, self.skip = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 2, 1)
        self.body = nn.Conv1d(3, 2, 1, bias=not norm)
        self.norm = nn.BatchNorm1d(2) if norm else nn.Identity()
        self.in_place = in_place
        if norm:
            nn.init.uniform_(self.norm.weight, 0.5, 2.0)
            self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        skip = self.skip(self.units(x))
        body = self.norm(self.body(x))
        if self.in_place:
            body += skip
            return body
        return skip + body


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_shortcuts_error_is_made_good(norm, in_place):
    net = Branches(norm, in_place).double().eval()
    units = Group("units", 4, [("units", "out", one_each(4)), ("skip", "in", one_each(4))])
    selection = Selection([units], [True, False, False, False])
    x = torch.randn(30, 3, 4).double()
    fitted = refit(net, removed(net, selection), x, selection, ridge=0.0)
    with torch.no_grad():
        torch.testing.assert_close(fitted(x), net(x))


def test_an_activation_before_the_addition_ends_the_correction():
    class Active(Branches):
        def forward(self, x):
            return self.skip(self.units(x)) + self.norm(self.body(x)).relu_()

    net = Active(norm=False, in_place=False).double().eval()
    units = Group("units", 4, [("units", "out", one_each(4)), ("skip", "in", one_each(4))])
    selection = Selection([units], [True, False, False, False])
    x = torch.randn(30, 3, 4).double()
    fitted = refit(net, removed(net, selection), x, selection, ridge=0.0)
    # the body reads what it always read and has its dense outputs as targets: nothing to change
    torch.testing.assert_close(fitted.body.weight, net.body.weight)


@pytest.mark.parametrize("added", [False, True])
def test_a_batchnorm_behind_an_in_place_activation_is_not_fed_by_the_layer_alone(added):
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.units, self.body, self.norm = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 2, 1, bias=False), nn.BatchNorm1d(2)
            self.skip = nn.Conv1d(4, 2, 1, bias=False)

        def forward(self, x):
            units = F.relu(self.units(x))
            skip = self.skip(units) if added else 0.0
            return skip + self.norm(self.body(units).relu_())

    net = Between().double().eval()
    readers = ("body", "skip") if added else ("body",)
    units = Group("units", 4, [("units", "out", one_each(4)), *((r, "in", one_each(4)) for r in readers)])
    selection = Selection([units], [True, True, True, False])
    x = torch.randn(30, 3, 4).double()
    fitted = refit(net, removed(net, selection), x, selection, ridge=0.0)
    with torch.no_grad():
        read = F.relu(net.units(x))
        read, wanted = (t.movedim(1, 2).flatten(0, 1).numpy() for t in (read, net.body(read)))
    solution = np.linalg.lstsq(read[:, :3], wanted, rcond=None)[0]
    np.testing.assert_allclose(fitted.body.weight.detach()[:, :, 0].numpy(), solution.T, rtol=1e-7, atol=1e-9)
    assert torch.equal(fitted.norm.running_mean, net.norm.running_mean)


def test_a_layer_called_twice_is_fitted_once_to_both_calls():
    net, x, selection = doubled("shared")
    fitted = refit(net, removed(net, selection), x, selection)
    with torch.no_grad():
        assert (fitted(x) - net(x)).square().mean() < (removed(net, selection)(x) - net(x)).square().mean()


def test_nothing_is_touched_but_the_copy():
    net, x, selection = doubled("residual")
    net = copy.deepcopy(net).train()
    smaller = removed(net, selection).train()
    before = [copy.deepcopy(m.state_dict()) for m in (net, smaller)]
    fitted = refit(net, smaller, x, selection)
    for module, state in zip((net, smaller), before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
        assert all(m.training and not m._forward_hooks for m in module.modules())
    assert {n: v.shape for n, v in fitted.state_dict().items()} == {n: v.shape for n, v in smaller.state_dict().items()}
    assert all(m.training and not m._forward_hooks for m in fitted.modules())
    assert all(p.requires_grad for p in fitted.parameters())
    assert not torch.equal(fitted.state_dict()["head.weight"], smaller.state_dict()["head.weight"])


def test_nothing_dropped_changes_nothing():
    net, x, selection = doubled("plain")
    everything = Selection(selection.groups, np.ones(len(selection.keep), bool))
    fitted = refit(net, copy.deepcopy(net), x, everything)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in fitted.state_dict().items())


def test_targets_are_not_looked_at():
    net, x, selection = doubled("plain")
    smaller = removed(net, selection)
    plain = refit(net, smaller, x, selection).state_dict()
    labelled = refit(net, smaller, (x, torch.full((len(x),), 10**6)), selection).state_dict()
    assert all(torch.equal(plain[name], labelled[name]) for name in plain)


def test_single_precision_is_accurate():
    net, x, selection = doubled("residual")
    smaller = removed(net, selection)
    double = refit(net, smaller, x, selection)
    single = refit(copy.deepcopy(net).float(), copy.deepcopy(smaller).float(), x.float(), selection)
    with torch.no_grad():
        torch.testing.assert_close(single(x.float()).double(), double(x), rtol=1e-3, atol=1e-3)


def test_a_caller_in_inference_mode_gets_the_same():
    net, x, selection = doubled("residual")
    smaller = removed(net, selection)
    wanted = refit(net, smaller, x, selection)
    with torch.inference_mode():
        got = refit(net, smaller, x, selection)
        assert torch.equal(got(x), wanted(x))


def test_a_very_wide_layer_is_left_alone_with_a_notice(monkeypatch, caplog):
    net, x, selection = doubled("plain")
    smaller = removed(net, selection)
    monkeypatch.setattr("prunesolve.bridges.torch.refit._WIDE", 0)
    fitted = refit(net, smaller, x, selection)
    assert "left as it is" in caplog.text
    assert all(torch.equal(fitted.state_dict()[name], value) for name, value in smaller.state_dict().items())


def test_a_weight_that_is_computed_is_refused():
    net, x, selection = doubled("plain")
    masked = apply_masks(copy.deepcopy(net), masks(selection, net), how="prune")
    with pytest.raises(InvalidProblem, match="how='plain'"):
        refit(net, masked, x, selection)


def test_bad_input_is_refused_in_words():
    net, x, selection = doubled("plain")
    smaller = removed(net, selection)
    with pytest.raises(InvalidProblem, match="ridge"):
        refit(net, smaller, x, selection, ridge=-1.0)
    with pytest.raises(InvalidProblem, match="ridge"):
        refit(net, smaller, x, selection, ridge=float("nan"))
    with pytest.raises(InvalidProblem, match="has no layer"):
        refit(nn.Sequential(nn.Linear(6, 2)).double(), smaller, x, selection)
    other = Selection(selection.groups, np.arange(len(selection.keep)) % 2 == 0)
    with pytest.raises(InvalidProblem, match="that this selection made"):
        refit(net, smaller, x, other)
    with pytest.raises(InvalidProblem, match="at least one sample"):
        refit(net, smaller, [], selection)
