from __future__ import annotations

import copy
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

from prunesolve.bridges.torch import _lockstep
from prunesolve.bridges.torch.batchnorm import recalibrate_batchnorm
from prunesolve.bridges.torch.compensation import bias_importance
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.masks import apply_masks, masks
from prunesolve.bridges.torch.repair import REPAIRS, asr, bias, damped, layer_variance, repair, repaired
from prunesolve.bridges.torch.shrink import shrink
from prunesolve.problems import InvalidProblem, Selection

from .networks import make

STATISTICAL = ["layer-variance", "repair", "asr", "damped"]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def network(name, count=40):
    net, example = make(name)
    return net.double(), torch.randn(count, *example.shape[1:]).double()


def sparse(net, share=0.5):
    """Single weights at zero, of every layer with a matrix, and the masks."""
    work, kept = copy.deepcopy(net), {}
    for path, module in work.named_modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            kept[f"{path}.weight"] = torch.rand(module.weight.shape) > share
    return apply_masks(work, kept), kept


@lru_cache
def removed(name):
    """Masked, smaller, selection."""
    net, example = network(name)
    groups = find_groups(net, example[:2]).groups
    keep = np.concatenate([np.arange(g.size) % 2 == 0 for g in groups])
    selection = Selection(groups, keep)
    return apply_masks(copy.deepcopy(net), masks(selection, net)), shrink(net, selection, example[:2]), selection


@torch.no_grad()
def outputs(net, path, x):
    """(values, channels) of a module."""
    found = []
    module = net.get_submodule(path)
    handle = module.register_forward_hook(lambda m, i, o: found.append(o.clone()))
    net.eval()(x)
    handle.remove()
    axis = -1 if isinstance(module, nn.Linear) else 1
    return torch.cat([o.movedim(axis, -1).flatten(0, -2) for o in found])


def ends(net):
    """Paths behind which a layer's outputs are repaired, and the layers, of a network of conv_bn and bare layers."""
    modules = dict(net.named_modules())
    for path, module in modules.items():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            follower = f"{path.rpartition('.')[0]}.1"
            yield path, follower if path.endswith(".0") and isinstance(modules.get(follower), nn.BatchNorm2d) else path


# Oracles: what is measured afterwards


@pytest.mark.parametrize("name", ["residual", "mlp", "plain", "separable", "grouped", "normed"])
def test_repair_sets_every_channels_mean_and_deviation(name):
    net, x = network(name)
    work = repair(net, sparse(net, 0.3)[0], x)
    varied = 0
    for _, end in ends(net):
        wanted, given = outputs(net, end, x), outputs(work, end, x)
        varies = given.std(0) > 1e-9
        torch.testing.assert_close(given.mean(0), wanted.mean(0), msg=end)
        torch.testing.assert_close(given.std(0)[varies], wanted.std(0)[varies], msg=end)
        varied += int(varies.sum())
    assert varied > 10


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", ["residual", "mlp", "plain", "separable"])
def test_a_layers_total_variance_is_the_dense_one(name, where):
    net, x = network(name)
    pruned = sparse(net)[0]
    work = layer_variance(net, pruned, x, where=where)
    changed = 0
    for path, end in ends(net):
        place = end if where == "after" else path
        total = outputs(net, place, x).var(0).sum()
        torch.testing.assert_close(outputs(work, place, x).var(0).sum(), total, msg=path)
        changed += not torch.isclose(outputs(pruned, place, x).var(0).sum(), total, rtol=1e-3)
    assert changed


def test_means_are_matched_unless_left():
    net, x = network("plain")
    pruned = sparse(net)[0]
    for function in (layer_variance, asr):
        for means in (True, False):
            work = function(net, pruned, x, means=means)
            same = [torch.allclose(outputs(work, end, x).mean(0), outputs(net, end, x).mean(0)) for _, end in ends(net)]
            assert all(same) is means


@pytest.mark.parametrize("shrink_to", ["identity", "layer"])
def test_asr_factors_are_those_of_its_formula(shrink_to):
    net = nn.Sequential(nn.Linear(5, 4)).double()
    x = torch.randn(200, 5).double()
    pruned = copy.deepcopy(net)
    scales = torch.tensor([0.001, 0.5, 0.9, 1.0]).double()
    pruned[0].weight.data *= scales[:, None]
    v, u = outputs(net, "0", x).var(0), outputs(pruned, "0", x).var(0)
    goal = (v.sum() / u.sum()).sqrt() if shrink_to == "layer" else 1.0
    factor = (goal + u / (u + u.median()) * ((v / u).sqrt() - goal)).clamp(0.25, 4.0)
    work = asr(net, pruned, x, shrink=shrink_to, gmax=4.0, means=False)
    torch.testing.assert_close(work[0].weight, pruned[0].weight * factor[:, None])
    torch.testing.assert_close(work[0].bias, pruned[0].bias * factor)
    # the raw factor of the collapsed channel is 1,000
    assert float(factor[0]) < 2.0


def test_damped_of_power_one_is_the_regression():
    net = nn.Sequential(nn.Linear(5, 4)).double()
    x = torch.randn(100, 5).double()
    pruned = sparse(net, 0.4)[0]
    work = damped(net, pruned, x, power=1.0)
    for c in range(4):
        y, z = outputs(net, "0", x)[:, c].numpy(), outputs(pruned, "0", x)[:, c].numpy()
        design = np.stack([z, np.ones_like(z)], axis=1)
        fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
        np.testing.assert_allclose(outputs(work, "0", x)[:, c].numpy(), fitted, atol=1e-10)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_damped_scales_by_a_power_of_the_correlation(power):
    net, x = network("mlp", 100)
    pruned = sparse(net, 0.3)[0]
    work = damped(net, pruned, x, power=power)
    y, z, w = (outputs(n, "0", x) for n in (net, pruned, work))
    for c in range(8):
        if float(z[:, c].var()) == 0.0:
            continue
        rho = max(0.0, float(np.corrcoef(y[:, c], z[:, c])[0, 1]))
        assert float(w[:, c].std()) == pytest.approx(float(y[:, c].std()) * rho**power, rel=1e-9)
        assert float(w[:, c].mean()) == pytest.approx(float(y[:, c].mean()), abs=1e-9)


def test_in_eval_mode_damped_is_the_same_on_either_side_of_a_batchnorm():
    net, x = network("residual")
    pruned = sparse(net, 0.3)[0]
    torch.testing.assert_close(damped(net, pruned, x)(x), damped(net, pruned, x, where="before")(x))


# BatchNorm recalibration cancels what stands before it


@pytest.mark.parametrize(
    "function",
    [
        lambda *a: asr(*a, where="before"),
        lambda *a: layer_variance(*a, where="before", means=True),
        lambda *a: damped(*a, where="before", power=0.0),
        repair,
        bias,
    ],
    ids=["asr", "layer-variance", "damped", "repair", "bias"],
)
def test_recalibration_cancels_what_was_written_before_batchnorm(function):
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5)
    )
    net.double().eval()
    for norm in (net[1], net[4]):
        norm.eps = 1e-12
    x = torch.randn(20, 3, 8, 8).double()
    recalibrate_batchnorm(net, x)
    pruned = sparse(net, 0.4)[0]
    alone = recalibrate_batchnorm(copy.deepcopy(pruned), x)
    first = function(net, pruned, x)
    assert not torch.allclose(first(x), pruned(x), rtol=1e-2)
    torch.testing.assert_close(recalibrate_batchnorm(first, x)(x), alone(x), rtol=1e-6, atol=1e-6)


def test_recalibration_leaves_what_was_written_behind_batchnorm():
    net, x = network("residual")
    pruned = sparse(net, 0.4)[0]
    alone = recalibrate_batchnorm(copy.deepcopy(pruned), x)
    work = recalibrate_batchnorm(asr(net, pruned, x), x)
    assert not torch.allclose(work(x), alone(x), rtol=1e-2)


def test_the_order_of_names_is_the_order_of_repairs():
    net, x = network("residual")
    pruned = sparse(net, 0.4)[0]
    one = repaired(net, pruned, x, ["bn", "repair"])
    other = repaired(net, pruned, x, ["repair", "bn"])
    assert not torch.allclose(one(x), other(x), rtol=1e-3)
    by_hand = recalibrate_batchnorm(repair(net, pruned, x), x)
    torch.testing.assert_close(other(x), by_hand(x))


# Bias compensation


@pytest.mark.parametrize("weighted", [False, True])
def test_constant_activations_are_made_good_wholly(weighted):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3)).double()
    x = torch.randn(1, 3, 1, 1).double().expand(6, 3, 6, 6).contiguous()
    pruned = sparse(net)[0]
    assert not torch.allclose(pruned(x), net(x), rtol=0.1)
    torch.testing.assert_close(bias(net, pruned, x, weighted=weighted)(x), net(x))


def test_the_bias_makes_good_the_mean_with_padding():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2)).double()
    x = (torch.randn(30, 3, 7, 7) + 1.0).double()
    pruned = sparse(net)[0]
    work = bias(net, pruned, x)
    torch.testing.assert_close(outputs(work, "0", x).mean(0), outputs(net, "0", x).mean(0))
    assert torch.equal(work[0].weight, pruned[0].weight)


def test_without_a_bias_the_running_mean_takes_it():
    net, x = network("residual")
    pruned = copy.deepcopy(net)
    pruned.stem[0].weight.data[:, 1] = 0.0
    work = bias(net, pruned, x)
    torch.testing.assert_close(outputs(work, "stem.1", x).mean(0), outputs(net, "stem.1", x).mean(0))
    assert not torch.allclose(outputs(pruned, "stem.1", x).mean(0), outputs(net, "stem.1", x).mean(0))


def test_removed_channels_are_compensated_by_hand():
    net, x = network("mlp")
    masked, smaller, selection = removed("mlp")
    kept = masks(selection, net)
    work = bias(net, smaller, x, selection)
    with torch.no_grad():
        means = torch.relu(net[0](x)).mean(0)
        lost = net[2].weight[kept["2"]] * ~kept.inputs["2"]
        torch.testing.assert_close(work[2].bias, net[2].bias[kept["2"]] + lost @ means)
    torch.testing.assert_close(work(x), bias(net, masked, x, selection)(x))


# Importance of single weights


def test_importance_is_what_is_left_after_the_best_bias():
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)).double()
    x = torch.randn(5, 2, 4, 4).double()
    found = bias_importance(net, x)["0.weight"]
    for index in [(0, 0, 0, 0), (1, 1, 1, 2), (2, 0, 2, 1)]:
        pruned = copy.deepcopy(net)
        pruned[0].weight.data[index] = 0.0
        change = (outputs(net, "0", x) - outputs(pruned, "0", x))[:, index[0]]
        # the best bias is the mean of the change
        assert float(found[index]) == pytest.approx(float(change.var(correction=0)), rel=1e-9)


@pytest.mark.parametrize("name", ["mlp", "shared"])
def test_weighted_importance_is_the_first_order_change_of_the_outputs(name):
    net, x = network(name, 6)
    if name == "shared":
        net, x = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten()), x[:4]
    found = bias_importance(net, list(x.split(4)), weighted=True)
    path = "2" if name == "mlp" else "0.again"
    module, parameters = net.get_submodule(path), {k: v.detach() for k, v in net.named_parameters()}

    def answer(weight, shift):
        return torch.func.functional_call(net, {**parameters, f"{path}.weight": weight, f"{path}.bias": shift}, (x,))

    by_weight, by_bias = torch.func.jacrev(answer, argnums=(0, 1))(module.weight.detach(), module.bias.detach())
    for row, column in [(0, 0), (3, 2), (5, 1)]:
        w = module.weight.detach()[row, column].flatten()[0]
        g = by_weight[:, :, row, column]
        g = w * (g[..., 0, 0] if g.ndim > 2 else g)
        h = by_bias[:, :, row]
        best = (g * h).sum() / (h * h).sum().clamp_min(1e-300)
        left = float(((g - best * h) ** 2).sum() / len(x))
        value = found[f"{path}.weight"][row, column].flatten()[0]
        assert float(value) == pytest.approx(left, rel=1e-6, abs=1e-12)


def test_importance_needs_no_targets_and_keeps_shapes():
    net, x = network("grouped", 4)
    found = bias_importance(net, x)
    named = dict(net.named_parameters())
    assert found
    for name, values in found.items():
        assert values.shape == named[name].shape
        assert bool((values >= 0).all())


# Masks, removal, networks of every kind


@pytest.mark.parametrize("name", list(REPAIRS))
@pytest.mark.parametrize("net_name", ["residual", "mlp", "separable", "grouped"])
def test_masked_and_removed_networks_give_the_same_repaired(name, net_name):
    net, x = network(net_name)
    masked, smaller, selection = removed(net_name)
    one = repaired(net, masked, x, name, selection)
    other = repaired(net, smaller, x, name, selection)
    torch.testing.assert_close(one(x), other(x))
    again = apply_masks(copy.deepcopy(one), masks(selection, net)).state_dict()
    for key, value in one.state_dict().items():
        assert torch.equal(value, again[key]), key


@pytest.mark.parametrize("name", list(REPAIRS))
def test_zeros_stay_zeros_and_originals_stay_as_they_are(name):
    net, x = network("residual")
    pruned, kept = sparse(net)
    net.train()
    pruned.blocks.train()
    flags = [[m.training for m in n.modules()] for n in (net, pruned)]
    states = [{k: v.clone() for k, v in n.state_dict().items()} for n in (net, pruned)]
    work = repaired(net, pruned, x, name, masks=kept)
    assert flags == [[m.training for m in n.modules()] for n in (net, pruned)]
    assert [m.training for m in work.modules()] == flags[1]
    for state, model in zip(states, (net, pruned), strict=True):
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    for key, stays in kept.items():
        assert not work.get_parameter(key)[~stays].any()
    assert not torch.allclose(work.eval()(x), pruned.eval()(x))
    assert {k: v.shape for k, v in work.state_dict().items()} == {k: v.shape for k, v in states[1].items()}


def test_masks_of_biases_hold():
    net, x = network("mlp")
    pruned, kept = sparse(net)
    kept["0.bias"] = torch.arange(8) % 2 == 0
    work = repaired(net, apply_masks(pruned, kept), x, ["bias", "repair"], masks=kept)
    assert not work[0].bias[1::2].any()
    assert work[0].bias[::2].all()


@pytest.mark.parametrize("name", STATISTICAL)
@pytest.mark.parametrize("net_name", ["residual", "shared", "concatenated", "u-net", "instance", "squeeze-excite"])
def test_batches_and_the_memory_for_them_make_no_difference(name, net_name, monkeypatch):
    net, x = network(net_name, 12)
    pruned = sparse(net, 0.3)[0]
    whole = repaired(net, pruned, x, name)
    parts = repaired(net, pruned, list(x.split([5, 4, 3])), name)
    monkeypatch.setattr(_lockstep, "_room", lambda: 0)
    anew = repaired(net, pruned, list(x.split([6, 6])), name)
    torch.testing.assert_close(parts(x), whole(x))
    torch.testing.assert_close(anew(x), whole(x))


@pytest.mark.parametrize("name", STATISTICAL)
def test_an_unpruned_network_stays_as_it_is(name):
    net, x = network("residual")
    torch.testing.assert_close(repaired(net, net, x, name)(x), net(x))


def test_a_dead_channel_is_given_its_mean_and_nothing_explodes():
    net, x = network("mlp")
    pruned = copy.deepcopy(net)
    pruned[0].weight.data[2] = 0.0
    for name in ("repair", "damped"):
        given = outputs(repaired(net, pruned, x, name), "0", x)[:, 2]
        torch.testing.assert_close(given, outputs(net, "0", x)[:, 2].mean().expand_as(given))
    for name in ("layer-variance", "asr"):
        assert repaired(net, pruned, x, name)(x).isfinite().all()


def test_a_network_of_zeros_is_repaired_to_its_means():
    net, x = network("mlp")
    pruned = copy.deepcopy(net)
    for p in pruned.parameters():
        p.data.zero_()
    for name in STATISTICAL:
        torch.testing.assert_close(repaired(net, pruned, x, name)(x).mean(0), net(x).mean(0))
    for function in (asr, layer_variance):
        assert not function(net, pruned, x, means=False)(x).any()


def test_a_norm_without_numbers_of_its_own_is_moved_by_its_statistics():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    x = torch.randn(50, 3).double()
    recalibrate_batchnorm(net, x)
    work = damped(net, sparse(net, 0.3)[0], x, power=0.0)
    torch.testing.assert_close(outputs(work, "1", x).mean(0), outputs(net, "1", x).mean(0))


# Errors


def test_unknown_names_are_refused_with_the_nearest():
    net, x = network("mlp")
    with pytest.raises(InvalidProblem, match="did you mean 'layer-variance'"):
        repaired(net, net, x, ["bn", "layer-varianc"])
    with pytest.raises(InvalidProblem, match="unknown where 'behind'"):
        asr(net, net, x, where="behind")
    with pytest.raises(InvalidProblem, match="unknown shrink"):
        asr(net, net, x, shrink="all")
    with pytest.raises(InvalidProblem, match="gmax"):
        asr(net, net, x, gmax=0.5)
    with pytest.raises(InvalidProblem, match="power"):
        damped(net, net, x, power=-1.0)


@pytest.mark.parametrize("name", [*STATISTICAL, "bias"])
def test_values_that_are_not_finite_name_the_layer(name):
    net, x = network("mlp")
    broken = copy.deepcopy(net)
    broken[2].bias.data[0] = float("nan")
    with pytest.raises(InvalidProblem, match=r"layer (2 of the dense network|4)"):
        repaired(broken, net, x, name)


def test_one_sample_is_too_few():
    net, x = network("mlp")
    with pytest.raises(InvalidProblem, match="two samples"):
        repair(net, net, x[:1])


def test_networks_that_do_not_belong_together_are_refused():
    net, x = network("mlp")
    _, smaller, _ = removed("mlp")
    with pytest.raises(InvalidProblem, match="selection that made it"):
        repair(net, smaller, x)
    with pytest.raises(InvalidProblem, match="no layer"):
        repair(nn.Sequential(nn.Linear(6, 8)).double(), net, x)
    hung = copy.deepcopy(net)
    torch.nn.utils.prune.l1_unstructured(hung[0], "weight", 0.5)
    with pytest.raises(InvalidProblem, match="fold the parametrisation"):
        repair(net, hung, x)


def test_the_door_knows_every_repair():
    from prunesolve import choices

    assert set(choices.REPAIRS) == set(REPAIRS)
    assert not any(r.labels for r in REPAIRS.values())
