"""Fused networks against what they must be: the ensemble at alpha = 1, themselves for copies; and named errors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from prunesolve.bridges.torch._inputs import SideBySide
from prunesolve.bridges.torch.data import Batches
from prunesolve.bridges.torch.fusion import Ensemble, Pair, fuse
from prunesolve.bridges.torch.fusion_widths import _parameters, _widths, search_widths
from prunesolve.problems import InvalidProblem
from prunesolve.solvers import get

from .networks import Plain, Residual
from .test_alignment import Cnn, mlp, permuted_mlp


def trained(images, labels, seed, width=32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(25):
            for rows in torch.randperm(len(labels)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(net(images[rows]), labels[rows]).backward()
                optimiser.step()
    return net.eval()


@pytest.fixture(scope="session")
def digits():
    """(train images, train labels, test images, test labels), pixels in [0, 1]."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.from_numpy(data.data[order]).float() / 16
    labels = torch.from_numpy(data.target[order]).long()
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


@pytest.fixture(scope="session")
def trio(digits):
    """Three MLPs trained on the same digits from different seeds."""
    return [trained(digits[0], digits[1], seed) for seed in range(3)]


def accuracy(net, digits):
    with torch.no_grad():
        return float((net(digits[2]).argmax(1) == digits[3]).float().mean())


def mean_output(models, x, weights=None):
    weights = [1 / len(models)] * len(models) if weights is None else weights
    with torch.no_grad():
        return sum(w * m.eval()(x) for w, m in zip(weights, models, strict=True))


ARCHITECTURES = {
    "mlp": (lambda s: mlp(s), (6,)),
    "cnn": (Cnn, (2, 3, 3)),
    "plain": (lambda s: lively(Plain, s), (3, 8, 8)),
    "residual": (lambda s: lively(Residual, s), (3, 8, 8)),
}


def lively(kind, seed):
    torch.manual_seed(seed)
    net = kind().eval()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize(("name", "lam"), [("mlp", 0.5), ("cnn", 0.3), ("plain", 0.3), ("residual", 0.5)])
def test_alpha_one_is_the_mean_of_the_outputs(name, lam):
    make, shape = ARCHITECTURES[name]
    models, x = [make(0), make(1)], torch.randn(8, *shape)
    out = fuse(models, x, alpha=1.0, lam=lam)
    with torch.no_grad():
        torch.testing.assert_close(out.model(x), mean_output(models, x, [1 - lam, lam]), atol=1e-5, rtol=1e-4)
    assert out.report["parameters"]["of_ensemble"] <= 1.0
    assert out.report["steps"] == []


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual"])
@pytest.mark.parametrize("refit", [False, True])
def test_a_network_fused_with_its_copy_is_itself(name, refit):
    make, shape = ARCHITECTURES[name]
    net, x = make(0), torch.randn(16, *shape)
    for alpha in (0.0, 0.4):
        out = fuse([net, copy.deepcopy(net)], x, alpha=alpha, refit=refit)
        with torch.no_grad():
            torch.testing.assert_close(out.model(x), net(x), atol=2e-4, rtol=1e-3)
        ratio = out.report["parameters"]["of_first"]
        assert ratio <= 1.05 * (1 + 2 * alpha - alpha**2) if alpha else ratio == 1.0


@pytest.mark.parametrize("features", ["activations", "weights", "both"])
def test_a_permuted_copy_is_fused_to_the_network(features):
    net, x = mlp(3), torch.randn(50, 6)
    twin = permuted_mlp(net, [torch.randperm(8), torch.randperm(5)])
    out = fuse([net, twin], x, alpha=0.0, features=features, sweeps=2)
    with torch.no_grad():
        torch.testing.assert_close(out.model(x), net(x), atol=1e-5, rtol=1e-4)
    assert all(len(c.fused_b) == c.n_b for c in out.couplings[0].values())


def test_more_apart_is_closer_to_the_ensemble_and_a_refit_closer_still(trio, digits):
    x, wanted = digits[0], mean_output(trio[:2], digits[2])

    def distance(**options):
        with torch.no_grad():
            return float((fuse(trio[:2], x, **options).model(digits[2]) - wanted).square().mean())

    apart = [distance(alpha=alpha) for alpha in (0.0, 0.5, 1.0)]
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 1e-9
    for alpha, plain in ((0.0, apart[0]), (0.5, apart[1])):
        assert distance(alpha=alpha, refit=True) < 0.5 * plain


def test_aligned_averaging_beats_plain_averaging(trio, digits):
    plain = copy.deepcopy(trio[0])
    for mine, other in zip(plain.parameters(), trio[1].parameters(), strict=True):
        mine.data = (mine.data + other.data) / 2
    fused = fuse(trio[:2], digits[0], alpha=0.0, refit=True)
    assert fused.report["parameters"]["fused"] == fused.report["parameters"]["models"][0]
    assert accuracy(fused.model, digits) > accuracy(plain, digits)
    assert accuracy(fused.model, digits) > 0.9


@pytest.mark.parametrize("lam", [0.5, (0.5, 0.3, 0.2)])
def test_three_models_are_folded_with_their_weights(trio, digits, lam):
    weights = None if lam == 0.5 else lam
    out = fuse(trio, digits[0], alpha=1.0, lam=lam)
    with torch.no_grad():
        torch.testing.assert_close(out.model(digits[2]), mean_output(trio, digits[2], weights), atol=1e-4, rtol=1e-4)
    assert out.report["parameters"]["of_ensemble"] <= 1.0
    assert len(out.couplings) == 2
    small = fuse(trio, digits[0], alpha=0.0, refit=True)
    assert small.report["parameters"]["of_first"] == 1.0
    assert accuracy(small.model, digits) > 0.9


@pytest.mark.parametrize("whole", [False, True])
def test_networks_of_different_widths(digits, whole):
    wide, narrow = trained(*digits[:2], 0, width=40), trained(*digits[:2], 1, width=24)
    models = [wide, narrow]
    apart = fuse(models, digits[0], alpha=1.0, whole=whole)
    with torch.no_grad():
        torch.testing.assert_close(apart.model(digits[2]), mean_output(models, digits[2]), atol=1e-4, rtol=1e-4)
    fused = fuse(models, digits[0], alpha=0.3, whole=whole, refit=True)
    assert fused.report["layers"]["0"]["widths"] == [40, 24]
    assert accuracy(fused.model, digits) > 0.9


def test_whole_pairs_of_different_widths_cost_less_than_the_ensemble(digits):
    models = [trained(*digits[:2], 0, width=40), trained(*digits[:2], 1, width=24)]
    sizes = [fuse(models, digits[0], alpha=alpha).report["parameters"]["of_ensemble"] for alpha in (0.0, 0.3, 0.6)]
    assert sizes == sorted(sizes)
    assert sizes[-1] < 1.0


def test_models_of_different_input_normalisation():
    first, second = ((0.5, 0.4), (0.2, 0.3)), ((0.1, 0.2), (1.0, 0.5))
    models, pixels = [Cnn(0), Cnn(1)], torch.rand(8, 2, 3, 3)

    def normalised(of):
        mean, std = (torch.tensor(part).reshape(1, 2, 1, 1) for part in of)
        return (pixels - mean) / std

    x = normalised(first)
    with torch.no_grad():
        wanted = (models[0](x) + models[1](normalised(second))) / 2
        torch.testing.assert_close(Ensemble(models, [0.5, 0.5], [first, second])(x), wanted)
        for refit in (False, True):
            out = fuse(models, x, alpha=1.0, inputs=[first, second], refit=refit)
            torch.testing.assert_close(out.model(x), wanted, atol=1e-4, rtol=1e-3)
        same = fuse(models, x, alpha=0.5, inputs=[first, first])
        assert not any(isinstance(m, SideBySide) for m in same.model.modules())


def test_batchnorm_is_recalibrated_and_every_step_reported():
    models, x = [Cnn(0), Cnn(1)], torch.randn(32, 2, 3, 3)
    out = fuse(models, (x, torch.arange(32) % 3), alpha=0.2, repair="bn", refit=True)
    assert [step["step"] for step in out.report["steps"]] == ["model 0", "model 1", "ensemble", "fused", "refit", "bn"]
    norm = out.model.get_submodule("bn0")
    seen = []
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        out.model(x)
    handle.remove()
    torch.testing.assert_close(norm.running_mean, seen[0].mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert "fused" in str(out.report)
    assert "accuracy" in str(out.report)


def test_the_models_stay_as_they_are(trio, digits):
    before = [copy.deepcopy(m.state_dict()) for m in trio[:2]]
    fuse(trio[:2], digits[0][:100], alpha=0.3, refit=True)
    for model, state in zip(trio, before, strict=False):
        assert not model.training
        assert all(torch.equal(held, state[name]) for name, held in model.state_dict().items())


def test_alpha_by_group(trio, digits):
    by_name = fuse(trio[:2], digits[0], alpha={"0": 1.0, "2": 0.0})
    listed = fuse(trio[:2], digits[0], alpha=[1.0, 0.0])
    for out in (by_name, listed):
        assert [len(c.fused_b) for c in out.couplings[0].values()] == [0, 32]
    with torch.no_grad():
        torch.testing.assert_close(by_name.model(digits[2]), listed.model(digits[2]))


def test_every_transport_is_proved(trio, digits):
    for told in fuse(trio[:2], digits[0], alpha=0.25).report["layers"].values():
        assert told["status"] == "OPTIMAL"
        assert told["gap"] == pytest.approx(0.0, abs=1e-6)
        assert told["fused"] == 24


# -- alpha chosen


@pytest.fixture
def ready(trio, digits):
    batches = Batches(digits[0][:300])
    return Pair(tuple(trio[:2]), (batches, batches), 0.5, None, "activations", 0, get("auto"), False, 0)


@pytest.mark.parametrize(("name", "joined"), [("mlp", False), ("residual", False), ("cnn", True)])
def test_the_parameters_of_every_choice_are_exact(name, joined):
    make, shape = ARCHITECTURES[name]
    batches, levels = Batches(torch.randn(4, *shape)), (0.0, 0.5, 1.0)
    side = SideBySide((0.0, 1.0), (0.5, 1.0)) if joined else None
    pair = Pair((make(0), make(1)), (batches, batches), 0.5, side, "activations", 0, get("auto"), False, 0)
    cost, pair_cost = _parameters(pair, [_widths(pair, level) for level in levels])
    rng = np.random.default_rng(0)
    for choice in rng.integers(0, 3, (3, len(pair.groups))):
        alphas = {g: levels[s] for g, s in zip(pair.groups, choice, strict=True)}
        fused = pair.fused(pair.align(alphas).couplings)
        told = sum(c[s] for c, s in zip(cost, choice, strict=True))
        told += sum(table[choice[i], choice[j]] for (i, j), table in pair_cost.items())
        assert told == sum(p.numel() for p in fused.parameters())


def test_the_search_is_at_least_as_good_as_the_even_choice_within_the_budget(ready, digits):
    found = search_widths(ready, 1.5, evaluations=6, levels=(0.0, 0.25, 0.5, 1.0))
    assert found.report["value"] <= found.report["even"]["value"]
    fused = ready.fused(ready.align(found.alphas).couplings)
    spent = sum(p.numel() for p in fused.parameters())
    assert spent == found.report["spent"] <= found.report["budget"]
    # the value it tells is the distance to the ensemble's outputs
    x = digits[0][:300]
    with torch.no_grad():
        error = (fused(x) - mean_output(ready.models, x)).square().mean()
    assert found.report["value"] == pytest.approx(float(error), rel=1e-4)


def test_fuse_searches(trio, digits):
    out = fuse(trio[:2], digits[0][:200], alpha="search", params=1.5, evaluations=1)
    assert out.report["parameters"]["of_first"] <= 1.5
    assert out.report["search"]["spent"] == out.report["parameters"]["fused"]


# -- errors by name


def test_what_cannot_be_fused_is_refused_by_name(trio, digits):
    two, x = trio[:2], digits[0][:20]
    deeper = nn.Sequential(*copy.deepcopy(two[0]), nn.ReLU(), nn.Linear(10, 10))
    other = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), *copy.deepcopy(two[0])[2:])
    for asked, words in (
        (lambda: fuse(two[:1], x), "expected a list of two networks or more, got 1"),
        (lambda: fuse(two[0], x), "expected a list of two networks or more, got Sequential"),
        (lambda: fuse([two[0], "b"], x), "got str as model 1"),
        (lambda: fuse([two[0], deeper], x), "part at '5': nothing and ReLU"),
        (lambda: fuse([two[0], other], x), "part at '1': ReLU and Tanh"),
        (lambda: fuse(two, x, alpha=1.5), "alpha: expected numbers from 0 to 1, got 1.5"),
        (lambda: fuse(two, x, alpha=float("nan")), "alpha: expected numbers from 0 to 1"),
        (lambda: fuse(two, x, alpha=[0.5]), r"expected 2 numbers, one a group \(0, 2\), got 1"),
        (lambda: fuse(two, x, alpha={"0": 0.5}), "no value for 2"),
        (lambda: fuse(two, x, alpha={"0": 0.5, "3": 0.1}), "unknown group in alpha '3'"),
        (lambda: fuse(two, x, alpha="serch"), "'search', got 'serch'"),
        (lambda: fuse(two, x, alpha="search"), "needs a budget"),
        (lambda: fuse(two, x, params=1.5), "params: expected with alpha='search' only"),
        (lambda: fuse(two, x, alpha="search", params=0.5), "budget"),
        (lambda: fuse(two, x, lam=-0.1), "lam: expected a number from 0 to 1"),
        (lambda: fuse(trio, x, lam=0.3), "lam: one number weighs two models"),
        (lambda: fuse(trio, x, lam=(0.5, 0.5)), "expected 3 weights"),
        (lambda: fuse(trio, x, alpha="search", params=1.5), "takes two models"),
        (lambda: fuse(two, x, repair="bm"), "unknown repair 'bm': Known: bn"),
        (lambda: fuse(two, x, features="weight"), "did you mean 'weights'"),
        (lambda: fuse(two, x, sweeps=-1), "sweeps: expected a whole number"),
        (lambda: fuse(two, x, solver="networksimplex"), "did you mean 'network-simplex'"),
        (lambda: fuse(two, x, inputs=[(0, 1)]), r"one \(mean, std\) for each of 2 models, got 1"),
        (lambda: fuse(two, []), "expected at least one sample"),
    ):
        with pytest.raises(InvalidProblem, match=words):
            asked()


def test_activations_that_are_not_finite_name_the_layer(trio, digits):
    broken = copy.deepcopy(trio[1])
    broken[2].weight.data[3] = torch.inf
    with pytest.raises(InvalidProblem, match="layer '2' of model 1 gives activations that are not finite"):
        fuse([trio[0], broken], digits[0][:20])


def test_refitting_rows_is_least_squares_on_the_columns_they_read():
    """The last layer of a fused MLP against numpy's least squares, with next to no pull."""
    models, x = [mlp(0), mlp(1)], torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    batches = Batches(x)
    pair = Pair(tuple(models), (batches, batches), 0.5, None, "activations", 0, get("auto"), False, 0)
    couplings = pair.align(dict.fromkeys(pair.groups, 0.4)).couplings
    fitted = pair.fused(couplings, refit=True)
    read = []
    handle = fitted.get_submodule("4").register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        outputs = fitted(x)
    handle.remove()
    design = np.hstack([read[0].numpy(), np.ones((len(x), 1))]).astype(np.float64)
    wanted = mean_output(models, x).numpy()
    best = design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
    best_error = np.square(best - wanted).mean()
    plain_error = np.square(pair.fused(couplings)(x).detach().numpy() - wanted).mean()
    error = np.square(outputs.numpy() - wanted).mean()
    assert best_error <= error <= best_error + 0.02 * (plain_error - best_error)


def test_options_go_together():
    models, x = [Cnn(0), Cnn(1)], torch.randn(6, 2, 3, 3)
    for features, sweeps, refit in (("weights", 0, True), ("weights", 2, False), ("both", 0, False), ("both", 2, True)):
        out = fuse(models, x, alpha=0.3, features=features, sweeps=sweeps, refit=refit)
        assert torch.isfinite(out.model(x)).all()
