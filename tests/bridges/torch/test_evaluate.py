from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesolve.bridges.torch.evaluate import evaluate, per_sample
from prunesolve.problems import InvalidProblem

from .networks import make


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def uneven(inputs, targets, *sizes):
    return list(zip(inputs.split(list(sizes)), targets.split(list(sizes)), strict=True))


def test_classification_equals_torch_over_uneven_batches():
    net, x = make("mlp")
    x, y = torch.randn(7, 6), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    got = evaluate(net, uneven(x, y, 4, 2, 1))
    outputs = net(x).detach()
    assert got["loss"] == pytest.approx(float(F.cross_entropy(outputs, y)), rel=1e-6)
    assert got["metric"] == pytest.approx(100.0 * float((outputs.argmax(1) == y).double().mean()))
    assert got["metric_name"] == "accuracy"


def test_regression_gives_the_mean_psnr_of_the_samples():
    x, y = torch.rand(5, 1, 4, 4), torch.rand(5, 1, 4, 4)
    got = evaluate(nn.Identity(), uneven(x, y, 3, 2))
    errors = (x - y).double().square().mean(dim=(1, 2, 3))
    assert got["loss"] == pytest.approx(float(errors.mean()), rel=1e-6)
    assert got["metric"] == pytest.approx(float((10 * torch.log10(1 / errors)).mean()), rel=1e-6)
    assert evaluate(nn.Identity(), (x, x.clone()))["metric"] == pytest.approx(100.0)


@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (3, 5, 5, 4)], ids=["classes second", "classes last"])
def test_dense_predictions(shape):
    outputs, y = torch.randn(shape), torch.randint(0, 4, (3, 5, 5))
    second = outputs if shape[1] == 4 else outputs.movedim(-1, 1)
    got = evaluate(nn.Identity(), uneven(outputs, y, 2, 1))
    assert got["loss"] == pytest.approx(float(F.cross_entropy(second, y)), rel=1e-6)
    assert got["metric"] == pytest.approx(100.0 * float((second.argmax(1) == y).double().mean()))


def test_a_mean_and_per_sample_losses_are_the_same_loss():
    x, y = torch.randn(7, 6), torch.randint(0, 2, (7,))
    net, _ = make("mlp")
    data = uneven(x, y, 4, 2, 1)
    mean = evaluate(net, data, loss=lambda o, t: F.cross_entropy(o, t))
    each = evaluate(net, data, loss=lambda o, t: F.cross_entropy(o, t, reduction="none"))
    assert mean["loss"] == pytest.approx(each["loss"], rel=1e-6)


def test_a_metric_of_ones_own_is_named():
    def worst(outputs, targets):
        return outputs.amax(dim=1)

    x = torch.randn(6, 3)
    got = evaluate(nn.Identity(), uneven(x, torch.zeros(6, dtype=torch.int64), 4, 2), metric=worst)
    assert got["metric_name"] == "worst"
    assert got["metric"] == pytest.approx(float(x.amax(dim=1).mean()), rel=1e-6)


def test_the_loss_is_the_metric_where_no_default_fits():
    x = torch.randn(4, 3)
    got = evaluate(nn.Identity(), (x, torch.randn(4, 1)), loss=lambda o, t: (o.sum(1) - t[:, 0]).abs())
    assert got["metric_name"] == "loss"
    assert got["metric"] == got["loss"]


def test_flags_are_restored_and_dropout_is_off():
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.9), nn.BatchNorm1d(8), nn.Linear(8, 2)).train()
    net[2].eval()
    data = (torch.randn(6, 4), torch.randint(0, 2, (6,)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [m.training for m in net.modules()]
    assert evaluate(net, data) == evaluate(net, data)
    assert [m.training for m in net.modules()] == flags
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_flags_are_restored_after_a_failure():
    net = nn.Sequential(nn.Linear(4, 2)).train()
    with pytest.raises(InvalidProblem):
        evaluate(net, (torch.randn(3, 4), torch.tensor([0, 1, 2])))
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (torch.tensor([0, 1, 9]), "classes 0 to 1, got 0 to 9"),
        (torch.randn(3, 5), "no default"),
        (torch.zeros(3, 7, 7, dtype=torch.int64), "do not fit outputs"),
        (None, "without targets"),
    ],
)
def test_targets_that_fit_no_default_are_refused_in_words(targets, words):
    with pytest.raises(InvalidProblem, match=words):
        evaluate(nn.Linear(4, 2), (torch.randn(3, 4), targets))


def test_outputs_that_are_no_tensor_need_a_loss():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(InvalidProblem, match="give loss="):
        evaluate(Two(), (torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)))
    got = evaluate(Two(), (torch.ones(3, 4), torch.zeros(3)), loss=lambda o, t: (o[0][:, 0] - t) ** 2)
    assert got == {"loss": 1.0, "metric": 1.0, "metric_name": "loss"}


def test_a_loss_of_a_wrong_shape_is_refused():
    with pytest.raises(InvalidProblem, match="one a sample"):
        per_sample(lambda o, t: o[:2, 0], torch.randn(5, 2), torch.zeros(5), 5)
