"""Moments of a layer against numpy on the columns themselves, and what choosing inputs by them does to a network."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesolve.bridges.torch.moments import DAMPED, Moments, layer_moments
from prunesolve.bridges.torch.unfold import weight_matrix
from prunesolve.formulations import InputSelection
from prunesolve.problems import GroupBounds, InvalidProblem
from prunesolve.solvers import Osscar


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (40, 6)),
    "tokens": (lambda: nn.Linear(6, 4, bias=False), (8, 5, 6)),
    "conv": (lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1), (9, 3, 8, 8)),
    "conv1d": (lambda: nn.Conv1d(4, 3, 3, dilation=2, bias=False), (9, 4, 12)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (9, 4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(5, 5, 3, groups=5, padding=1), (9, 5, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1), (9, 4, 5, 5)),
}


def made(name):
    make, shape = LAYERS[name]
    return make().double(), torch.randn(*shape).double() + 0.5


def accumulated(layer, x, targets, size=4, **options):
    moments = Moments(layer, "layer", **options)
    for rows in torch.arange(len(x)).split(size):
        moments.add(x[rows], targets[rows])
    return moments


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_recovered_from_the_moments_of_what_it_does(name):
    layer, x = made(name)
    with torch.no_grad():
        moments = accumulated(layer, x, layer(x))
    problem = moments.regression(None, ridge=0.0, start=np.zeros(weight_matrix(layer).shape))
    every = np.ones(problem.n, dtype=bool)
    assert problem.value(every) == pytest.approx(0.0, abs=1e-9 * problem.offset)
    wanted = torch.block_diag(*weight_matrix(layer)).numpy()
    np.testing.assert_allclose(problem.weights(every), wanted, atol=1e-9)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        moments.write(InputSelection().decode(problem, every), other)
        torch.testing.assert_close(other(x), layer(x))


@pytest.mark.parametrize("intercept", [True, False])
def test_moments_of_a_convolution_are_those_of_its_unfolded_columns(intercept):
    layer, x = made("conv")
    targets = torch.randn(9, 5, 4, 4).double() + 2.0
    moments = accumulated(layer, x, targets, intercept=intercept)
    rows = F.unfold(x, 3, padding=1, stride=2).transpose(0, 1).flatten(1).numpy()
    wanted = targets.flatten(2).transpose(0, 1).flatten(1).numpy()
    assert (moments.columns, moments.samples) == (9 * 16, 9)
    np.testing.assert_allclose(moments.means[0][0], rows.mean(1))
    np.testing.assert_allclose(moments.means[1][0], wanted.mean(1))
    for found, covariance in ((moments.about_zero(), False), (moments.central(), True)):
        x_, y_ = (part - part.mean(1, keepdims=True) * covariance for part in (rows, wanted))
        np.testing.assert_allclose(found[0][0], x_ @ x_.T / 144, atol=1e-12)
        np.testing.assert_allclose(found[1][0], x_ @ y_.T / 144, atol=1e-12)
        np.testing.assert_allclose(found[2][0], (y_**2).mean(1))
    keep = np.array([True, False, True])
    inputs = np.flatnonzero(np.repeat(keep, 9))
    design = rows[inputs].T
    if intercept:
        design = np.hstack([design, np.ones((144, 1))])
    _, lost, *_ = np.linalg.lstsq(design, wanted.T, rcond=None)
    problem = moments.regression(keep=2, ridge=0.0)
    assert problem.value(keep) == pytest.approx(lost.sum() / 144)
    assert problem.labels == (("layer", 0), ("layer", 1), ("layer", 2))


def test_compensated_sums_in_single_precision_are_as_good_as_single_products():
    layer = nn.Linear(4, 2)
    x = torch.randn(20000, 4) + torch.tensor([0.0, 100.0, -1000.0, 3.0])
    y = torch.randn(20000, 2) - 500.0
    double, compensated = (accumulated(layer, x, y, 20, precision=p) for p in ("double", "compensated"))
    wanted = np.cov(x.double().numpy().T, bias=True)
    np.testing.assert_allclose(double.central()[0][0], wanted, atol=1e-10)
    error = np.abs(compensated.central()[0][0] - wanted).max()
    plain = (x.T @ x / 20000 - x.mean(0)[:, None] * x.mean(0)).numpy()
    assert error < 2e-6
    assert np.abs(plain - wanted).max() > 100 * error
    np.testing.assert_allclose(compensated.means[1], double.means[1], rtol=1e-7)


def test_a_compensated_sum_keeps_what_single_additions_lose():
    layer = nn.Linear(1, 1, bias=False)
    moments = Moments(layer, precision="compensated")
    moments.add(torch.tensor([[4096.0], [-4096.0]]), torch.zeros(2, 1))
    for _ in range(1000):
        moments.add(torch.full((1, 1), 0.5), torch.zeros(1, 1))
    assert np.float32(2 * 4096.0**2) + np.float32(0.25) == 2 * 4096.0**2
    assert moments.about_zero()[0].item() * 1002 == pytest.approx(2 * 4096.0**2 + 250, abs=1e-3)


def test_too_few_columns_are_refused_without_a_ridge_and_damped_with_one(caplog):
    layer = nn.Conv2d(4, 3, 3)
    moments = Moments(layer, "stem")
    x = torch.randn(2, 4, 5, 5)
    moments.add(x, layer(x))
    with pytest.raises(
        InvalidProblem, match=r"stem: 18 columns of 2 samples for 36 inputs; at least 37 columns, 3 sam"
    ):
        moments.regression(keep=2, ridge=0.0)
    with caplog.at_level(logging.WARNING, logger="prunesolve"):
        problem = moments.regression(keep=2)
    assert "stem: 18 columns of 2 samples for 36 inputs" in caplog.text
    assert f"ridge={DAMPED}" in problem.meta["formulation"]
    assert np.linalg.eigvalsh(problem.gram)[0] > 0
    caplog.clear()
    x = torch.randn(3, 4, 5, 5)
    moments.add(x, layer(x))
    assert moments.missing == 0
    assert "ridge=0.001" in moments.regression(keep=2).meta["formulation"]
    assert not caplog.records


@pytest.mark.parametrize(("spoiled", "words"), [(0, "inputs are not finite"), (1, "targets are not finite")])
def test_activations_that_are_not_finite_name_the_layer(spoiled, words):
    pair = [torch.randn(4, 3), torch.randn(4, 2)]
    pair[spoiled][2, 1] = float("inf") if spoiled else float("nan")
    with pytest.raises(InvalidProblem, match=f"blocks.3.fc: its {words} in samples 0 to 3"):
        Moments(nn.Linear(3, 2), "blocks.3.fc").add(*pair)


def test_heads_are_equal_runs_of_inputs():
    layer = nn.Linear(12, 5)
    x = torch.randn(60, 12)
    with torch.no_grad():
        moments = accumulated(layer, x, layer(x), 60)
    problem = moments.regression(keep=2, units=3)
    assert problem.block.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    with pytest.raises(InvalidProblem, match="12 input channels do not make 5 equal runs"):
        moments.regression(keep=2, units=5)
    mixed = moments.regression(
        keep=None, units=[-1, -1, *np.repeat(range(5), 2)], per_set=GroupBounds([0] * 5, [2], [2])
    )
    assert (mixed.n, mixed.k, mixed.support(np.zeros(5, dtype=bool)).tolist()) == (5, None, [0, 1])


def test_what_is_no_linear_layer_or_no_data_is_refused():
    with pytest.raises(InvalidProblem, match="norm: expected a Linear or convolution, got BatchNorm2d"):
        Moments(nn.BatchNorm2d(3), "norm")
    with pytest.raises(InvalidProblem, match="did you mean 'double'"):
        Moments(nn.Linear(1, 1), precision="doubel")
    with pytest.raises(InvalidProblem, match="expected at least one column"):
        Moments(nn.Linear(1, 1)).regression()
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with pytest.raises(InvalidProblem, match="1: expected a linear layer"):
        layer_moments(net, net, "1", torch.randn(4, 3))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.first, self.second = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.norm, self.last = nn.BatchNorm2d(6), nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return F.relu(x + self.last(self.second(F.relu(self.norm(self.first(x))))))


def changed(net):
    """A copy whose stem is off, as after pruning what came before."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.stem.weight[1] = 0.0
    return other


@pytest.mark.parametrize("residual", [True, False])
def test_targets_are_the_dense_networks_and_make_the_shortcuts_error_good(residual):
    dense = Residual().double().eval()
    with torch.no_grad():
        dense.last.running_var.uniform_(0.5, 2.0)
        dense.last.weight.uniform_(0.5, 1.5)
    pruned, x = changed(dense), torch.randn(12, 2, 6, 6).double()
    before = [copy.deepcopy(net.state_dict()) for net in (dense, pruned)]
    moments = layer_moments(dense, pruned, "second", [(x[:5], None), (x[5:], None)], residual=residual)
    with torch.no_grad():
        shortcuts = [F.relu(net.stem(x)) for net in (dense, pruned)]
        hidden = [F.relu(n.norm(n.first(s))) for n, s in zip((dense, pruned), shortcuts, strict=True)]
        wanted = dense.second(hidden[0])
        if residual:
            slope = dense.last.weight / torch.sqrt(dense.last.running_var + dense.last.eps)
            wanted = wanted + (shortcuts[0] - shortcuts[1]) / slope[:, None, None]
        rows = F.unfold(hidden[1], 3, padding=1).transpose(1, 2).flatten(0, 1).numpy()
        targets = wanted.flatten(2).transpose(1, 2).flatten(0, 1).numpy()
    problem = moments.regression(keep=3, ridge=0.0)
    keep = np.array([True, True, False, False, True, False])
    design = np.hstack([rows[:, np.repeat(keep, 9)], np.ones((len(rows), 1))])
    fitted, *_ = np.linalg.lstsq(design, targets, rcond=None)
    lost = np.square(targets - design @ fitted).sum() / len(rows)
    assert problem.value(keep) == pytest.approx(lost, rel=1e-6)
    for net, state in zip((dense, pruned), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_choosing_and_writing_back_gives_the_error_that_was_promised():
    dense = Residual().double().eval()
    pruned, x = changed(dense), torch.randn(16, 2, 8, 8).double()
    moments = layer_moments(dense, pruned, "second", x, residual=False)
    problem = moments.regression(keep=4, ridge=1e-8)
    result = Osscar().solve(problem)
    kept = InputSelection().decode(problem, result.solution)
    moments.write(kept, pruned.second, pruned.last)
    with torch.no_grad():
        assert not pruned.second.weight[:, ~kept.keep].any()
        hidden = F.relu(pruned.norm(pruned.first(F.relu(pruned.stem(x)))))
        wanted = dense.last(dense.second(F.relu(dense.norm(dense.first(F.relu(dense.stem(x)))))))
        missed = pruned.last(pruned.second(hidden)) - wanted
        slope = dense.last.weight / torch.sqrt(dense.last.running_var + dense.last.eps)
        error = (missed / slope[:, None, None]).square().mean((0, 2, 3)).sum().item()
    assert error == pytest.approx(result.objective, rel=1e-5)


def test_an_intercept_needs_a_place():
    layer = nn.Linear(3, 2, bias=False)
    x = torch.randn(20, 3)
    moments = Moments(layer, "fc", intercept=True)
    with torch.no_grad():
        moments.add(x, layer(x) + 1.0)
    problem = moments.regression(keep=3)
    kept = InputSelection().decode(problem, [True] * 3)
    with pytest.raises(InvalidProblem, match="fc: has no bias"):
        moments.write(kept)
