from __future__ import annotations

import pytest
import torch
from torch import nn

from prunesolve.bridges.torch.batchnorm import recalibrate_batchnorm
from prunesolve.problems import InvalidProblem

from .networks import make


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_the_running_statistics_become_the_datas():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    net[1].running_mean.fill_(7.0)
    x = torch.randn(10, 3).double()
    recalibrate_batchnorm(net, x)
    with torch.no_grad():
        inner = net[0](x)
    torch.testing.assert_close(net[1].running_mean, inner.mean(0))
    torch.testing.assert_close(net[1].running_var, inner.var(0))


def test_uneven_batches_weigh_by_their_samples():
    net = nn.Sequential(nn.BatchNorm2d(2)).double()
    x = torch.randn(9, 2, 4, 4).double()
    recalibrate_batchnorm(net, list(x.split([6, 2, 1])))
    torch.testing.assert_close(net[0].running_mean, x.mean((0, 2, 3)))
    variances = torch.stack([part.var((0, 2, 3)) for part in x.split([6, 2, 1])])
    torch.testing.assert_close(net[0].running_var, torch.tensor([6.0, 2.0, 1.0]).double() @ variances / 9)


def test_only_the_running_statistics_change():
    net, x = make("residual")
    net.head = nn.Sequential(nn.Dropout(0.5), net.head)
    net.train()
    net.get_submodule("head")[0].eval()
    net_flags = [m.training for m in net.modules()]
    momenta = [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(6, *x.shape[1:])
    assert recalibrate_batchnorm(net, x) is net
    after = net.state_dict()
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert [m.training for m in net.modules()] == net_flags
    assert [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    once = {name: value.clone() for name, value in after.items() if "running" in name}
    recalibrate_batchnorm(net, x)
    for name, value in once.items():
        torch.testing.assert_close(net.state_dict()[name], value)


def test_networks_and_layers_without_statistics_are_left_alone():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    recalibrate_batchnorm(net, torch.randn(4, 2))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_single_sample_is_refused_and_everything_put_back():
    net = nn.Sequential(nn.BatchNorm1d(2, momentum=0.3)).train()
    with pytest.raises(InvalidProblem, match="larger batches"):
        recalibrate_batchnorm(net, torch.randn(1, 2))
    assert net[0].momentum == 0.3
    assert net[0].training
