from __future__ import annotations

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesolve.bridges.torch import contributions
from prunesolve.bridges.torch.data import Batches
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.measure import _Gates, measure
from prunesolve.problems import Group, InvalidProblem, Statistics

from .networks import make

# between them: flatten to linear, residual adds, concatenation, grouped, depthwise and transposed convolutions, a
# layer called twice and one-dimensional data
NAMES = ["plain", "residual", "concatenated", "separable", "grouped", "shared", "u-net", "instance", "halves"]
SIZES = (3, 1, 2)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@functools.cache
def case(name):
    """A network in double precision, its groups, six samples in uneven batches with random regression targets."""
    net, x = make(name)
    net = net.double()
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SIZES), *x.shape[1:], generator=chance).double()
    with torch.no_grad():
        y = torch.randn(net(x).shape, generator=chance).double()
    groups = find_groups(net, x[:2]).groups
    return net, x, y, groups


def batches(x, y):
    return list(zip(x.split(list(SIZES)), y.split(list(SIZES)), strict=True))


@functools.cache
def measured(name):
    net, x, y, groups = case(name)
    return measure(net, batches(x, y), groups=groups, progress=False)


def gates_by_hand(net, x, y, groups, loss):
    """d loss / d gate of each sample: gates as parameters, multiplied in at every consumer, one backward a sample."""
    gates = [torch.ones(g.size, dtype=torch.float64, requires_grad=True) for g in groups]
    net, handles = copy.deepcopy(net), []
    for group, gate in zip(groups, gates, strict=True):
        for path, axis, channels in group.members:
            if axis == "in":
                module = net.get_submodule(path)

                def multiply(m, inputs, gate=gate, channels=channels):
                    dim = -1 if isinstance(m, nn.Linear) else 1
                    factors = torch.ones(inputs[0].shape[dim], dtype=torch.float64)
                    factors = factors.index_put((torch.tensor(channels),), gate[:, None].expand(channels.shape))
                    shape = [1] * inputs[0].ndim
                    shape[dim] = -1
                    return (inputs[0] * factors.reshape(shape),)

                handles.append(module.register_forward_pre_hook(multiply))
    rows = []
    for sample, target in zip(x, y, strict=True):
        found = torch.autograd.grad(loss(net(sample[None]), target[None]), gates)
        rows.append(torch.cat(found).numpy())
    return np.array(rows)


@pytest.mark.parametrize("name", NAMES)
def test_gate_gradients_are_those_of_gates_put_in_by_hand(name):
    net, x, y, groups = case(name)
    g = gates_by_hand(net, x, y, groups, F.mse_loss)
    stats = measured(name)
    assert np.abs(g).max() > 1e-6
    for key, wanted in [
        ("taylor", np.abs(g).mean(0)),
        ("taylor_signed", g.mean(0)),
        ("fisher", 0.5 * np.square(g).mean(0)),
    ]:
        np.testing.assert_allclose(stats.saliency[key], wanted, rtol=1e-8, atol=1e-12)
    factor = stats.factors["fisher"]
    assert factor.shape == (stats.n, len(x))
    np.testing.assert_allclose(factor @ factor.T, g.T @ g / len(x), rtol=1e-8, atol=1e-12)


def read_by(net, x, path):
    """Everything one consumer reads for x, call by call."""
    seen = []
    handle = net.get_submodule(path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        net(x)
    handle.remove()
    return seen


def alone(module, inputs, channels):
    """The consumer's outputs, bias taken off, when it reads only `channels`: flattened."""
    module = copy.deepcopy(module)
    module.bias = None
    dim = -1 if isinstance(module, nn.Linear) else 1
    masked = torch.zeros_like(inputs).index_copy(dim, channels, inputs.index_select(dim, channels))
    with torch.no_grad():
        return module(masked).flatten().numpy()


def reconstruction_by_hand(net, x, groups):
    """G (n, n) over all groups, from what each unit alone makes each of its consumers say."""
    starts = np.concatenate([[0], np.cumsum([g.size for g in groups])])
    gram = np.zeros((starts[-1], starts[-1]))
    for path in dict.fromkeys(m.path for g in groups for m in g.members if m.axis == "in"):
        module, calls = net.get_submodule(path), read_by(net, x, path)
        units = [np.zeros(0)] * int(starts[-1])
        for g, group in enumerate(groups):
            for member in group.members:
                if (member.path, member.axis) == (path, "in"):
                    for u, channels in enumerate(member.channels):
                        parts = [alone(module, inputs, torch.tensor(channels)) for inputs in calls]
                        units[starts[g] + u] = np.concatenate(parts)
        everything = torch.arange(calls[0].shape[-1 if isinstance(module, nn.Linear) else 1])
        total = np.concatenate([alone(module, inputs, everything) for inputs in calls])
        u = np.array([v if len(v) else np.zeros(len(total)) for v in units])
        gram += u @ u.T / (total @ total)
    return gram


@pytest.mark.parametrize("name", NAMES)
def test_the_reconstruction_gram_is_that_of_single_units_contributions(name):
    net, x, _, groups = case(name)
    stats, gram = measured(name), reconstruction_by_hand(net, x, groups)
    s = stats.starts
    for g, block in enumerate(stats.blocks["reconstruction"]):
        np.testing.assert_allclose(block, gram[s[g] : s[g + 1], s[g] : s[g + 1]], rtol=1e-8, atol=1e-12)
    pairs = stats.cross.get("reconstruction", {})
    for g, h in itertools.combinations(range(len(groups)), 2):
        wanted = gram[s[g] : s[g + 1], s[h] : s[h + 1]]
        np.testing.assert_allclose(pairs.get((g, h), np.zeros_like(wanted)), wanted, rtol=1e-8, atol=1e-12)


def test_a_concatenation_couples_groups():
    assert measured("concatenated").cross["reconstruction"]
    assert "reconstruction" not in measured("plain").cross


def test_a_wide_linear_takes_the_direct_route_to_the_same_gram(monkeypatch):
    net, x, y, groups = case("plain")
    monkeypatch.setattr(contributions, "_WIDE", 2)
    monkeypatch.setattr(contributions, "_PIECE", 30)
    direct = measure(net, batches(x, y), groups=groups, progress=False)
    for a, b in zip(direct.blocks["reconstruction"], measured("plain").blocks["reconstruction"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["plain", "concatenated"])
def test_activation_similarity_is_the_cosine_of_the_maps(name):
    net, x, _, groups = case(name)
    for group, similarity in zip(groups, measured(name).blocks["activation"], strict=True):
        maps = []
        for path, axis, channels in group.members:
            if axis == "in":
                (read,) = read_by(net, x, path)
                axis_of = -1 if isinstance(net.get_submodule(path), nn.Linear) else 1
                first = read.movedim(axis_of, 0).flatten(1).numpy()
                maps.append(first[channels].reshape(group.size, -1))
        rows = np.concatenate(maps, axis=1)
        norms = np.linalg.norm(rows, axis=1)
        live = norms > 0
        wanted = np.abs(rows @ rows.T)[np.ix_(live, live)] / np.outer(norms[live], norms[live])
        np.testing.assert_allclose(similarity[np.ix_(live, live)], wanted, rtol=1e-7, atol=1e-12)
        assert similarity[~live][:, live].sum() == 0.0
        assert (np.diag(similarity) == 1.0).all()


def test_norms_and_cosines_are_those_of_the_producers_filters():
    net, _, _, groups = case("plain")
    stats = measured("plain")
    rows = np.concatenate(
        [net.get_submodule(g.layer).weight.detach().flatten(1).numpy()[g.channels] for g in groups[:1]]
    )
    first = slice(0, groups[0].size)
    np.testing.assert_allclose(stats.saliency["l1"][first], np.abs(rows).sum(1))
    np.testing.assert_allclose(stats.saliency["l2"][first], np.linalg.norm(rows, axis=1))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(stats.blocks["weights"][0], unit @ unit.T, atol=1e-12)


def test_batches_make_no_difference():
    net, x, y, groups = case("residual")
    one, many = measure(net, [(x, y)], groups=groups, progress=False), measured("residual")
    for key in ("taylor", "taylor_signed", "fisher"):
        np.testing.assert_allclose(one.saliency[key], many.saliency[key], rtol=1e-9, atol=1e-14)
    for a, b in zip(one.blocks["reconstruction"], many.blocks["reconstruction"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14)


def test_single_precision_is_accurate():
    net, x, y, groups = case("residual")
    single = measure(copy.deepcopy(net).float(), batches(x.float(), y.float()), groups=groups, progress=False)
    for a, b in zip(single.blocks["reconstruction"], measured("residual").blocks["reconstruction"], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())
    np.testing.assert_allclose(single.saliency["taylor"], measured("residual").saliency["taylor"], rtol=1e-3, atol=1e-6)


def test_a_mean_loss_gives_the_same_gradients_as_one_value_a_sample():
    net, x, y, groups = case("plain")
    mean = measure(net, batches(x, y), groups=groups, loss=F.mse_loss, progress=False)
    np.testing.assert_allclose(mean.saliency["fisher"], measured("plain").saliency["fisher"], rtol=1e-9, atol=1e-16)


def test_integer_targets_take_cross_entropy():
    net, x, _, groups = case("plain")
    y = torch.tensor([0, 2, 1, 1, 0, 2])
    g = gates_by_hand(net, x, y, groups, F.cross_entropy)
    stats = measure(net, batches(x, y), groups=groups, progress=False)
    np.testing.assert_allclose(stats.saliency["taylor"], np.abs(g).mean(0), rtol=1e-8, atol=1e-13)


def test_the_sketch_is_unbiased_over_all_signs():
    g = np.random.default_rng(0).normal(size=(5, 3))

    class Signs:
        def __init__(self, signs):
            self.signs = np.array(signs)

        def choice(self, _, size):
            return self.signs[:size]

    total = np.zeros((3, 3))
    for signs in itertools.product([-1.0, 1.0], repeat=5):
        gates = _Gates(3, rank=2)
        gates.signs = Signs(signs)
        gates.add(g)
        factor = gates.factor()
        assert factor.shape == (3, 2)
        total += factor @ factor.T / 2**5
    np.testing.assert_allclose(total, g.T @ g / 5, rtol=1e-12)


def test_the_rank_limits_the_columns_and_leaves_the_saliency_exact():
    net, x, y, groups = case("plain")
    low = measure(net, batches(x, y), groups=groups, rank=2, progress=False)
    assert low.factors["fisher"].shape == (low.n, 2)
    np.testing.assert_allclose(low.saliency["fisher"], measured("plain").saliency["fisher"])


def test_without_targets_the_losss_statistics_are_left_out_and_the_rest_is_the_same():
    net, x, _, groups = case("plain")
    stats = measure(net, list(x.split(list(SIZES))), groups=groups, progress=False)
    assert set(stats.saliency) == {"l1", "l2"}
    assert not stats.factors
    assert "no targets" in stats.meta["notes"]["loss"]
    for a, b in zip(stats.blocks["reconstruction"], measured("plain").blocks["reconstruction"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14)


def test_the_network_is_left_as_it_was():
    net, x, y, groups = case("residual")
    net = copy.deepcopy(net).train()
    for parameter in list(net.parameters())[::2]:
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    wanted = [p.requires_grad for p in net.parameters()]
    random_state = torch.get_rng_state()
    stats = measure(net, batches(x, y), groups=groups, progress=False)
    np.testing.assert_allclose(stats.saliency["taylor"], measured("residual").saliency["taylor"], rtol=1e-9)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(m.training and not m._forward_pre_hooks and not m._forward_hooks for m in net.modules())
    assert [p.requires_grad for p in net.parameters()] == wanted
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(random_state, torch.get_rng_state())


def test_groups_are_found_where_none_are_given():
    net, x, y, groups = case("plain")
    stats = measure(net, batches(x, y), progress=False)
    assert [g.name for g in stats.groups] == [g.name for g in groups]
    some = measure(net, batches(x, y), layers=[groups[0].layer], progress=False)
    assert [g.layer for g in some.groups] == [groups[0].layer]
    assert stats.meta["samples"] == len(x)


def test_costs_come_along():
    net, x, *_ = case("plain")
    stats = measured("plain")
    assert stats.total("params") == sum(p.numel() for p in net.parameters())
    assert set(stats.cost) == {"params", "macs"}


def test_classes_condition_on_the_target():
    net, x, _, groups = case("plain")
    y = torch.tensor([0, 2, 1, 1, 0, 2])
    some = measure(net, batches(x, y), groups=groups, classes=[1, 2], progress=False)
    rows = (y == 1) | (y == 2)
    same = measure(net, (x[rows], y[rows]), groups=groups, progress=False)
    assert some.meta["samples"] == 4
    assert some.meta["classes"] == [1, 2]
    np.testing.assert_allclose(some.saliency["fisher"], same.saliency["fisher"], rtol=1e-9)


def specialists():
    """Two units of equal weight: the first speaks on the first input only, the second on the second only."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        net[2].weight.fill_(1.0)
    units = Group("0", 3, [("0", "out", [[0], [1], [2]]), ("2", "in", [[0], [1], [2]])])
    return net, units


def test_against_discounts_what_the_second_data_set_needs():
    net, units = specialists()
    one, two = torch.tensor([[2.0, 0.1]] * 4), torch.tensor([[0.1, 2.0]] * 4)
    targets = torch.zeros(4, 1)
    plain = measure(net, (one, targets), groups=[units], progress=False)
    stats = measure(net, (one, targets), groups=[units], against=(two, targets), progress=False)
    for key in ("taylor", "fisher"):
        need, other = stats.saliency[f"{key}/data"], stats.saliency[f"{key}/against"]
        np.testing.assert_allclose(need, plain.saliency[key])
        share = need / need.mean() / (need / need.mean() + other / other.mean())
        np.testing.assert_allclose(stats.saliency[key], need * share)
        # the unit both need alike counts half
        assert stats.saliency[key][2] == pytest.approx(0.5 * need[2])
    assert (stats.saliency["taylor"] >= 0).all()
    np.testing.assert_allclose(np.square(stats.factors["fisher"]).sum(1), 2 * stats.saliency["fisher"], rtol=1e-9)
    gram, before = stats.blocks["reconstruction"][0], plain.blocks["reconstruction"][0]
    scale = np.sqrt(np.diag(gram) / np.diag(before))
    np.testing.assert_allclose(gram, before * np.outer(scale, scale))
    assert scale[0] > 0.99
    assert scale[1] < 0.1
    assert np.linalg.eigvalsh(gram).min() > -1e-7
    assert stats.meta["against"] == 4


def test_the_same_data_twice_halve_every_need():
    net, units = specialists()
    data = (torch.rand(4, 2), torch.zeros(4, 1))
    plain = measure(net, data, groups=[units], progress=False)
    stats = measure(net, data, groups=[units], against=data, progress=False)
    np.testing.assert_allclose(stats.saliency["taylor"], 0.5 * plain.saliency["taylor"])
    np.testing.assert_allclose(stats.saliency["taylor_signed"], 0.5 * plain.saliency["taylor_signed"])
    np.testing.assert_allclose(stats.blocks["reconstruction"][0], 0.5 * plain.blocks["reconstruction"][0])


def test_contrasted_statistics_survive_a_file(tmp_path):
    net, units = specialists()
    data = (torch.rand(4, 2), torch.zeros(4, 1))
    stats = measure(net, data, groups=[units], against=data, progress=False)
    stats.save(tmp_path / "stats.npz")
    back = Statistics.load(tmp_path / "stats.npz")
    assert set(back.saliency) == set(stats.saliency) >= {"taylor/data", "taylor/against"}
    np.testing.assert_array_equal(back.saliency["taylor/against"], stats.saliency["taylor/against"])


def test_linear_layers_with_further_axes():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    units = Group("0", 4, [("0", "out", np.arange(4)[:, None]), ("2", "in", np.arange(4)[:, None])])
    x, y = torch.randn(5, 6, 3).double(), torch.randn(5, 6, 2).double()
    stats = measure(net, [(x[:3], y[:3]), (x[3:], y[3:])], groups=[units], progress=False)
    g = gates_by_hand(net, x, y, [units], F.mse_loss)
    np.testing.assert_allclose(stats.saliency["taylor"], np.abs(g).mean(0), rtol=1e-9)
    np.testing.assert_allclose(stats.blocks["reconstruction"][0], reconstruction_by_hand(net, x, [units]), rtol=1e-9)


def test_a_dead_unit_is_worth_nothing_and_nothing_divides_by_zero():
    net, units = specialists()
    nn.init.zeros_(net[0].weight)
    stats = measure(net, (torch.rand(4, 2), torch.zeros(4, 1)), groups=[units], progress=False)
    assert not stats.saliency["taylor"].any()
    assert np.array_equal(stats.blocks["activation"][0], np.eye(3))
    assert not stats.blocks["reconstruction"][0].any()


def test_samples_elsewhere_than_on_the_first_axis_are_refused():
    class Turned(nn.Sequential):
        def forward(self, x):
            return super().forward(x.T[..., None]).squeeze(-1).T

    net = Turned(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    units = Group("0", 3, [("0", "out", [[0], [1], [2]]), ("2", "in", [[0], [1], [2]])])
    with pytest.raises(InvalidProblem, match="first axis"):
        measure(net, (torch.randn(4, 7), torch.randn(4, 7)), groups=[units], progress=False)


def test_bad_input_is_refused_in_words():
    net, units = specialists()
    x, y = torch.rand(4, 2), torch.zeros(4, 1)
    with pytest.raises(InvalidProblem, match="not finite, first at the inputs"):
        measure(net, (x / 0.0, y), groups=[units])
    with pytest.raises(InvalidProblem, match="at least one sample"):
        measure(net, [], groups=[units])
    with pytest.raises(InvalidProblem, match="no units"):
        measure(net, (x, y), groups=[])
    with pytest.raises(InvalidProblem, match="both"):
        measure(net, (x, y), groups=[units], layers=["0"])
    with pytest.raises(InvalidProblem, match="at least 1 column"):
        measure(net, (x, y), groups=[units], rank=0)
    with pytest.raises(InvalidProblem, match="got both kinds"):
        measure(net, [(x, y), (x, None)], groups=[units])
    with pytest.raises(InvalidProblem, match="targets as in data"):
        measure(net, (x, y), groups=[units], against=x)


def test_a_group_of_another_network_is_refused_with_the_nearest_name():
    net = nn.Sequential()
    net.add_module("linear", nn.Linear(2, 1))
    with pytest.raises(InvalidProblem, match="did you mean 'linear'"):
        measure(net, torch.rand(4, 2), groups=[Group("a", 1, [("linea", "out", [[0]])])])


def test_a_bar_shows_on_stderr_where_asked(capsys):
    net, units = specialists()
    measure(net, (torch.rand(4, 2), torch.zeros(4, 1)), groups=[units], progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "measuring" in err


def test_data_may_be_batches_already():
    net, units = specialists()
    data = Batches((torch.rand(4, 2), torch.zeros(4, 1)))
    assert measure(net, data, groups=[units], progress=False).meta["samples"] == 4
