from __future__ import annotations

import copy
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import lstsq
from torch import nn

from prunesolve.bridges.torch._forward import evaluating
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.masks import apply_masks, masks
from prunesolve.bridges.torch.refit import trace
from prunesolve.bridges.torch.sequential import prune_in_sequence, rectified_layers, sequential_groups
from prunesolve.bridges.torch.shrink import shrink
from prunesolve.problems import Group, InvalidProblem, SubsetRegression
from prunesolve.solvers import Solver

from .networks import make

NAMES = ["plain", "mlp", "residual", "concatenated", "separable", "grouped", "shared", "u-net", "instance", "halves"]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def one_each(size):
    return np.arange(size)[:, None]


def case(name, samples=24):
    """Network, data, groups, and chosen halves of the groups that are not chosen in sequence."""
    net, x = make(name)
    net = net.double()
    x = torch.randn(samples, *x.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    groups = find_groups(net, x[:2]).groups
    alone = sequential_groups(net, groups, x[:2])
    counts = {g.name: max(1, g.size // 2) for g in groups}
    chosen = {g.name: np.arange(g.size) % 2 == 0 for g in groups if g.name not in alone}
    return net, x, groups, counts, chosen


def two_layers(reads, width, makes, bias=True):
    net = nn.Sequential(nn.Linear(reads, width), nn.ReLU(), nn.Linear(width, makes, bias=bias)).double()
    return net, Group("0", width, [("0", "out", one_each(width)), ("2", "in", one_each(width))])


def same_state(one, other):
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# What is kept


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_kept_and_what_is_masked_can_be_removed(name):
    net, x, groups, counts, chosen = case(name)
    before = copy.deepcopy(net)
    found = prune_in_sequence(net, x, groups, counts, chosen=chosen)
    for group, keep in found.selection:
        if group.name in chosen:
            np.testing.assert_array_equal(keep, chosen[group.name])
        else:
            assert keep.sum() == counts[group.name]
    assert same_state(net, before)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in found.model.modules())
    smaller = shrink(found.model, found.selection, x[:2])
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), found.model(x))
        # refitted, it is nearer than the dense weights are on the same units
        plain = apply_masks(copy.deepcopy(net), masks(found.selection, net))
        assert (found.model(x) - net(x)).norm() < 0.9 * (plain(x) - net(x)).norm()


def test_several_readers_of_one_group_need_units_chosen_already():
    net, x, groups, counts, chosen = case("concatenated")
    assert chosen
    with pytest.raises(InvalidProblem, match=r"not read by one plain layer alone.*chosen="):
        prune_in_sequence(net, x, groups, counts)


def test_a_grouped_layer_and_one_called_twice_choose_nothing():
    net, x, groups, *_ = case("grouped")
    readers = {g.name: [m.path for m in g.members if m.axis == "in"] for g in groups}
    for name in sequential_groups(net, groups, x[:2]):
        assert readers[name] not in (["grouped"], ["head"])
    net, x, groups, *_ = case("shared")
    assert "again" not in sequential_groups(net, groups, x[:2])


def twins(name):
    """The second half of every group does just what the first does; odd units are left out."""
    net, x, groups, _, _ = case(name, 48)
    groups = [g for g in groups if g.size > 1]
    for group in groups:
        half = group.size // 2
        for path, axis, channels in group.members:
            module = net.get_submodule(path)
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                dim = 1 if isinstance(module, nn.ConvTranspose2d) and tensor.ndim > 1 else 0
                if axis == "out" and tensor.ndim and tensor.shape[dim] > channels.max():
                    with torch.no_grad():
                        for one, other in zip(channels[:half], channels[half : 2 * half], strict=True):
                            read = tensor.index_select(dim, torch.tensor(one))
                            tensor.index_copy_(dim, torch.tensor(other), read)
    return net, x, groups


@pytest.mark.parametrize("name", ["plain", "mlp", "residual", "u-net", "instance"])
def test_what_the_kept_units_can_express_is_recovered_exactly(name):
    net, x, groups = twins(name)
    alone = sequential_groups(net, groups, x[:2])
    chosen = {g.name: np.arange(g.size) // max(1, g.size // 2) != 1 for g in groups if g.name not in alone}
    counts = {g.name: g.size - g.size // 2 for g in groups}
    found = prune_in_sequence(net, x, groups, counts, chosen=chosen, ridge=1e-10)
    assert not found.selection.keep.all()
    with torch.no_grad():
        wanted = net(x)
        torch.testing.assert_close(found.model(x), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert max(found.errors.values()) < 1e-6


@given(seed=st.integers(0, 10**6), width=st.integers(2, 6), bias=st.booleans())
def test_one_unit_goes_whose_absence_least_squares_minds_least(seed, width, bias):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, units = two_layers(3, width, 2, bias)
        x = torch.randn(40, 3).double()
    found = prune_in_sequence(net, x, [units], {"0": width - 1}, ridge=1e-9)
    with torch.no_grad():
        read, wanted = F.relu(net[0](x)).numpy(), net(x).numpy()
    lost = []
    for unit in range(width):
        columns = np.delete(read, unit, axis=1)
        columns = np.column_stack([columns, np.ones(len(x))]) if bias else columns
        solution = lstsq(columns, wanted)[0]
        lost.append(float(((columns @ solution - wanted) ** 2).sum()))
    kept = found.selection.keep
    assert lost[int(np.argmin(kept))] <= min(lost) * (1 + 1e-6) + 1e-8
    with torch.no_grad():
        left = float((found.model(x) - torch.from_numpy(wanted)).square().sum())
    assert left == pytest.approx(min(lost), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_the_weights_are_those_of_a_ridge_regression_and_the_error_is_what_is_measured(bias):
    net, units = two_layers(4, 6, 3, bias)
    x, ridge = torch.randn(50, 4).double(), 0.1
    found = prune_in_sequence(net, [x[:20], x[20:]], [units], {"0": 3}, ridge=ridge)
    keep = found.selection.keep
    with torch.no_grad():
        read, wanted, start = F.relu(net[0](x)).numpy(), net(x).numpy(), net[2].weight.numpy()
    spread = read.var(0) if bias else (read**2).mean(0)
    pull = ridge * spread.mean() * len(x)
    rows = np.column_stack([read[:, keep], np.ones(len(x))]) if bias else read[:, keep]
    extra = np.sqrt(pull) * np.eye(rows.shape[1])[: keep.sum()]
    solution = lstsq(np.vstack([rows, extra]), np.vstack([wanted, np.sqrt(pull) * start[:, keep].T]))[0]
    np.testing.assert_allclose(found.model[2].weight.detach().numpy()[:, keep], solution[: keep.sum()].T, rtol=1e-6)
    with torch.no_grad():
        left = (found.model(x) - net(x)).square().sum()
        whole = ((net(x) - net(x).mean(0)) if bias else net(x)).square().sum()
    assert found.errors["2"] == pytest.approx(float(left / whole), rel=1e-6)


def test_the_running_mean_takes_the_intercept_of_a_convolution_without_bias():
    net = nn.Sequential(
        nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
    ).double().eval()  # fmt: skip
    units = Group("0", 5, [("0", "out", one_each(5)), ("2", "in", one_each(5))])
    x = torch.randn(6, 2, 5, 5).double()
    found = prune_in_sequence(net, x, [units], {"0": 3}, ridge=1e-10)
    keep = found.selection.keep
    with torch.no_grad():
        read = F.relu(net[0](x))
        columns = F.unfold(read[:, keep.nonzero()[0]], 3, padding=1).movedim(1, 2).flatten(0, 1).numpy()
        wanted = net[2](read).movedim(1, 3).flatten(0, 2).numpy()
    solution = lstsq(np.column_stack([columns, np.ones(len(columns))]), wanted)[0]
    fitted = found.model[2].weight.detach()[:, keep.nonzero()[0]].flatten(1)
    np.testing.assert_allclose(fitted, solution[:-1].T, rtol=1e-5, atol=1e-7)
    shift = net[3].running_mean - found.model[3].running_mean
    np.testing.assert_allclose(shift, solution[-1], rtol=1e-5, atol=1e-7)
    assert torch.equal(found.model[3].running_var, net[3].running_var)


class Stream(nn.Module):
    """Two branches, one after the other, added to a stream."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.second = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        x = x + self.first(x)
        return x + self.second(x)


def test_a_branch_makes_good_what_the_stream_before_it_lost():
    net, x = Stream().double(), torch.randn(80, 4).double()
    units = Group("first.0", 8, [("first.0", "out", one_each(8)), ("first.2", "in", one_each(8))])
    found = prune_in_sequence(net, x, [units], {"first.0": 2}, ridge=1e-9, rectified=0)
    with torch.no_grad():
        stream = x + found.model.first(x)
        assert (stream - x - net.first(x)).norm() > 0.1
        read = np.column_stack([found.model.second[:2](stream).numpy(), np.ones(len(x))])
        wanted = (net(x) - stream).numpy()
        best = read @ lstsq(read, wanted)[0]
        np.testing.assert_allclose(found.model.second(stream).numpy(), best, atol=1e-5)


# of a residual stream some outputs go before the layers that make them are fitted
@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_outputs_that_are_gone_have_no_weights_and_no_bias(name):
    net, x, groups, counts, chosen = case(name)
    found = prune_in_sequence(net, x, groups, counts, chosen=chosen)
    gone = False
    for group, keep in found.selection:
        for path, axis, channels in group.members:
            if axis == "out":
                module = found.model.get_submodule(path)
                rows = torch.from_numpy(channels[~keep].ravel())
                gone = gone or len(rows) > 0
                assert not module.weight[rows].any()
                assert module.bias is None or not module.bias[rows].any()
    assert gone


def test_the_same_seed_draws_the_same_columns_and_labels_are_not_looked_at():
    net, x, groups, counts, chosen = case("plain")
    one, two = (prune_in_sequence(net, x, groups, counts, chosen=chosen, columns=50, seed=4) for _ in range(2))
    labelled = prune_in_sequence(
        net, (x, torch.full((len(x),), 10**6)), groups, counts, chosen=chosen, columns=50, seed=4
    )
    assert same_state(one.model, two.model)
    assert same_state(one.model, labelled.model)


def test_the_global_random_state_and_the_flags_stay():
    net, x, groups, counts, chosen = case("residual")
    net.train()
    net.stem.requires_grad_(False)
    before, state = copy.deepcopy(net), torch.get_rng_state()
    found = prune_in_sequence(net, x, groups, counts, chosen=chosen)
    assert same_state(net, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training and not m._forward_hooks for m in net.modules())
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    assert {name: p.requires_grad for name, p in found.model.named_parameters()} == flags


# Fits through a ReLU


def test_what_a_relu_cuts_off_does_not_bend_the_fit():
    # relu(relu(x) - 3 relu(-x)) = relu(x): the second unit is nothing that the answer needs
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[2].weight.copy_(torch.tensor([[1.0, -3.0]]))
        net[0].bias.zero_()
        net[2].bias.zero_()
    units = Group("0", 2, [("0", "out", one_each(2)), ("2", "in", one_each(2))])
    x = torch.linspace(-1, 1, 100).double()[:, None]
    missed = []
    for steps in (0, 4, 100):
        found = prune_in_sequence(
            net, x, [units], {}, chosen={"0": [True, False]}, rectified=steps, ridge=1e-9
        ).model  # fmt: skip
        with torch.no_grad():
            missed.append(float((found[:4](x) - net[:4](x)).square().sum()))
    assert missed[1] < 0.5 * missed[0]
    assert missed[2] < 1e-4 * missed[0]


def missed_by(net, x, rectified):
    """The objective of the fit of layer 2, in the layer's own units, in which it is fitted."""
    units = Group("0", 8, [("0", "out", one_each(8)), ("2", "in", one_each(8))])
    found = prune_in_sequence(net, x, [units], {"0": 2}, rectified=rectified, ridge=1e-6).model
    norm = net[3]
    slope = norm.weight * torch.rsqrt(norm.running_var + norm.eps) if isinstance(norm, nn.BatchNorm1d) else 1.0
    with torch.no_grad():
        given, wanted = found[:4](x), net[:4](x)
        # where the dense output is cut off nothing but the excess counts, elsewhere the slope is to be right too
        return float((torch.where(wanted > 0, given - wanted, F.relu(given)) / slope).square().sum())


@pytest.mark.parametrize("norm", [False, True])
def test_no_step_of_the_fit_through_a_relu_raises_its_error(norm):
    for seed in range(3):
        torch.manual_seed(seed)
        between = nn.BatchNorm1d(6) if norm else nn.Identity()
        net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), between, nn.ReLU(), nn.Linear(6, 2))
        with torch.no_grad():
            net[2].bias -= 0.3
            if norm:
                # slopes of both signs, thresholds away from zero
                between.weight.copy_(torch.linspace(-1.5, 1.5, 6))
                between.bias.normal_()
                between.running_mean.normal_()
        net = net.double().eval()
        x = torch.randn(200, 5).double()
        missed = [missed_by(net, x, steps) for steps in (0, 1, 2, 4, 8)]
        assert all(b < a * (1 + 1e-9) for a, b in zip(missed, missed[1:], strict=False))
        assert missed[-1] < missed[0] * (1 - 1e-4)


class Read(nn.Module):
    """Layer, perhaps a norm, a ReLU in some spelling, perhaps something else that reads."""

    def __init__(self, spelling="function", norm=False, also=None):
        super().__init__()
        self.layer, self.head = nn.Conv1d(2, 3, 1), nn.Conv1d(3, 2, 1)
        self.norm = nn.BatchNorm1d(3) if norm else nn.Identity()
        self.relu, self.in_place = nn.ReLU(), nn.ReLU(inplace=True)
        self.spelling, self.also = spelling, also

    def forward(self, x):
        made = self.layer(x)
        early = made.mean() if self.also == "before the norm" else 0.0
        normed = self.norm(made)
        other = {
            "sum": lambda: normed.sum(),
            "concatenation": lambda: torch.cat([normed, normed], 1).sum(),
            "transpose": lambda: normed.mT.sum(),
            "keyword": lambda: torch.sum(input=normed),
            "clone": lambda: normed.detach().clone().max(),
            "shape": lambda: normed.shape[0] * 0.0,
        }.get(self.also, lambda: 0.0)()
        active = {
            "function": lambda: F.relu(normed),
            "torch": lambda: torch.relu(normed),
            "method": lambda: normed.relu(),
            "in place": lambda: normed.relu_(),
            "module": lambda: self.relu(normed),
            "in-place module": lambda: self.in_place(normed),
            "none": lambda: normed,
            "sigmoid": lambda: torch.sigmoid(normed),
        }[self.spelling]()
        answer = self.head(active) + early + other
        return (answer, normed) if self.also == "answer" else answer


def rectified(net, x):
    with evaluating(net):
        return rectified_layers(net, trace(net, x), x)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("spelling", ["function", "torch", "method", "in place", "module", "in-place module"])
def test_a_layer_with_nothing_but_a_relu_behind_it_is_recognised(spelling, norm):
    assert rectified(Read(spelling, norm), torch.randn(4, 2, 5)) == {"layer"}
    assert rectified(Read(spelling, norm, also="shape"), torch.randn(4, 2, 5)) == {"layer"}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("also", ["sum", "concatenation", "transpose", "keyword", "clone", "answer", "before the norm"])
def test_another_reader_needs_the_outputs_as_they_are(also, norm):
    assert rectified(Read("function", norm, also), torch.randn(4, 2, 5)) == set()


@pytest.mark.parametrize("spelling", ["none", "sigmoid"])
def test_without_a_relu_nothing_is_rectified(spelling):
    assert rectified(Read(spelling), torch.randn(4, 2, 5)) == set()


def test_a_norm_by_the_batchs_own_statistics_leaves_the_threshold_unknown():
    net = Read("function", norm=True)
    net.norm = nn.BatchNorm1d(3, track_running_stats=False)
    assert rectified(net, torch.randn(4, 2, 5)) == set()


def test_a_norm_without_parameters_keeps_its_threshold():
    net = Read("function", norm=True)
    net.norm = nn.BatchNorm1d(3, affine=False)
    assert rectified(net, torch.randn(4, 2, 5)) == {"layer"}


# Refusals


def test_activations_that_are_not_finite_name_the_layer():
    net, units = two_layers(3, 4, 2)
    x = torch.randn(20, 3).double()
    x[3, 1] = float("nan")
    with pytest.raises(InvalidProblem, match="layer 2: expected finite"):
        prune_in_sequence(net, x, [units], {"0": 2})


@pytest.mark.parametrize("counts", [{}, {"0": 0}, {"0": 5}, {"0": 2.5}, {"0": -1}])
def test_counts_that_do_not_fit_are_refused(counts):
    net, units = two_layers(3, 4, 2)
    with pytest.raises(InvalidProblem, match="counts: expected 1 to 4 units of 0"):
        prune_in_sequence(net, torch.randn(20, 3).double(), [units], counts)


def test_bad_options_and_names_are_refused_in_words():
    net, units = two_layers(3, 4, 2)
    x = torch.randn(20, 3).double()
    for options in ({"ridge": 0.0}, {"ridge": float("nan")}, {"columns": 0}, {"rectified": -1}):
        with pytest.raises(InvalidProblem, match="ridge > 0, columns >= 1 and rectified >= 0"):
            prune_in_sequence(net, x, [units], {"0": 2}, **options)
    with pytest.raises(InvalidProblem, match="counts.*elsewhere"):
        prune_in_sequence(net, x, [units], {"0": 2, "elsewhere": 1})
    with pytest.raises(InvalidProblem, match="expected 4 flags"):
        prune_in_sequence(net, x, [units], {}, chosen={"0": [True, False]})
    with pytest.raises(InvalidProblem, match="one unit or more of 0"):
        prune_in_sequence(net, x, [units], {}, chosen={"0": [False] * 4})
    with pytest.raises(InvalidProblem, match="at least one sample"):
        prune_in_sequence(net, [], [units], {"0": 2})


def test_a_very_wide_layer_is_left_as_it_is_with_a_notice(monkeypatch, caplog):
    net, x, groups, counts, _ = case("mlp")
    monkeypatch.setattr("prunesolve.bridges.torch.sequential._WIDE", 7)
    alone = sequential_groups(net, groups, x[:2])
    chosen = {g.name: np.arange(g.size) % 2 == 0 for g in groups if g.name not in alone}
    assert set(chosen) == {"0"}
    found = prune_in_sequence(net, x, groups, counts, chosen=chosen)
    assert "2 reads more than 7 columns and is left as it is" in caplog.text
    left = torch.tensor(found.selection.keep[8:])
    assert torch.equal(found.model[2].bias[left], net[2].bias[left])
    assert "2" not in found.errors


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_all_selections_stays(seed):
    torch.manual_seed(seed)
    net, units = two_layers(4, 6, 3, True)
    x = torch.randn(60, 4).double()
    found = prune_in_sequence(net, x, [units], {"0": 3}, ridge=1e-9)
    with torch.no_grad():
        read, wanted = F.relu(net[0](x)).numpy(), net(x).numpy()
    lost = {}
    for kept in combinations(range(6), 3):
        columns = np.column_stack([read[:, kept], np.ones(len(x))])
        lost[kept] = float(((columns @ lstsq(columns, wanted)[0] - wanted) ** 2).sum())
    assert lost[tuple(np.flatnonzero(found.selection.keep))] <= min(lost.values()) * (1 + 1e-6)


def test_any_solver_of_subset_regressions_chooses():
    net, units = two_layers(4, 6, 3, True)

    class Last(Solver):
        name, accepts = "last", SubsetRegression

        def _search(self, problem, run):
            run.offer(np.arange(problem.n) >= problem.n - problem.k)

    found = prune_in_sequence(net, torch.randn(60, 4).double(), [units], {"0": 2}, solver=Last())
    assert found.selection.keep.tolist() == [False] * 4 + [True] * 2


def test_too_few_columns_are_told_and_damped(caplog):
    net, units = two_layers(4, 6, 3, True)
    x = torch.randn(5, 4).double()
    few = prune_in_sequence(net, x, [units], {"0": 4}, ridge=1e-6)
    assert "2: 5 columns for 6 inputs; 2 more are needed to determine the fit" in caplog.text
    damped = prune_in_sequence(net, x, [units], {"0": 4}, ridge=1e-2)
    assert torch.equal(few.model[2].weight, damped.model[2].weight)
    caplog.clear()
    prune_in_sequence(net, torch.randn(7, 4).double(), [units], {"0": 4}, ridge=1e-6)
    assert not caplog.text
