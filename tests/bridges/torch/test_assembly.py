"""Fused networks compute what their couplings say: the ensemble, one of the two, or the same as both."""

import copy
import io
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesolve.bridges.torch.assembly import assemble
from prunesolve.bridges.torch.axes import Axes
from prunesolve.formulations.partial_fusion import Coupling
from prunesolve.problems import InvalidProblem

torch.set_num_threads(1)


class Mlp(nn.Module):
    def __init__(self, widths=(8, 6), bias=True):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, widths[0], bias=bias), nn.Linear(*widths, bias=bias)
        self.norm, self.fc3 = nn.BatchNorm1d(widths[1]), nn.Linear(widths[1], 3, bias=bias)

    def forward(self, x):
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.gelu(self.norm(self.fc2(x))))


class Cnn(nn.Module):
    def __init__(self, widths=(6, 5, 7)):
        super().__init__()
        a, b, c = widths
        self.body = nn.Sequential(
            nn.Conv2d(3, a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(a, b, 3), nn.PReLU(b), nn.Dropout(0.5),
        )  # fmt: skip
        self.fc1, self.fc2 = nn.Linear(4 * b, c), nn.Linear(c, 4)

    def forward(self, x: "Tensor") -> "Tensor":  # noqa: F821  (a name that the fused network's own code does not know)
        x = self.body(x)
        x = F.dropout(x.view(x.size(0), -1), 0.5, self.training)
        return self.fc2(F.relu(self.fc1(x)))


def conv_bn(reads, makes, size=3, stride=1):
    return nn.Sequential(nn.Conv2d(reads, makes, size, stride, size // 2, bias=False), nn.BatchNorm2d(makes))


class Block(nn.Module):
    def __init__(self, reads, inner, makes, stride=1):
        super().__init__()
        self.first, self.second = conv_bn(reads, inner, stride=stride), conv_bn(inner, makes)
        self.shortcut = conv_bn(reads, makes, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return F.relu(self.shortcut(x) + self.second(F.relu(self.first(x))))


class ResNet(nn.Module):
    """Identity skips and a 1x1 shortcut."""

    def __init__(self, widths=(5, 7), inner=6):
        super().__init__()
        self.stem = conv_bn(3, widths[0])
        self.blocks = nn.Sequential(Block(widths[0], inner, widths[0]), Block(*(widths[0], inner, widths[1]), 2))
        self.head = nn.Linear(widths[1], 4)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).mean(dim=(2, 3)))


class PaddedBlock(nn.Module):
    """Zero channels before and behind, every second pixel."""

    def __init__(self, reads, makes, inner, stride):
        super().__init__()
        self.first, self.second = conv_bn(reads, inner, stride=stride), conv_bn(inner, makes)
        self.stride, self.zeros = stride, (makes - reads) // 2

    def forward(self, x):
        y = self.second(F.relu(self.first(x)))
        if self.zeros:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.zeros, self.zeros))
        return F.relu(x + y)


class OptionA(nn.Module):
    def __init__(self, widths=(4, 8, 12), inner=5):
        super().__init__()
        a, b, c = widths
        self.stem = conv_bn(3, a)
        self.blocks = nn.Sequential(
            PaddedBlock(a, a, inner, 1), PaddedBlock(a, b, inner, 2), PaddedBlock(b, c, inner + 1, 2)
        )
        self.head = nn.Linear(c, 4)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).mean(dim=(2, 3)))


class Denoiser(nn.Module):
    """As DnCNN, the noise taken from the image."""

    def __init__(self, width=6, bn=True):
        super().__init__()
        layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=not bn)]
            layers += [nn.BatchNorm2d(width)] * bn + [nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1, bias=False))

    def forward(self, x):
        return x - self.body(x)


class Separable(nn.Module):
    """A depthwise convolution and a gate of its own channels."""

    def __init__(self, width=6):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.point, self.act, self.head = nn.Conv1d(width, 4, 1), nn.PReLU(width), nn.Linear(4, 2)

    def forward(self, x):
        x = self.depthwise(self.act(self.stem(x)))
        x = self.point(torch.mul(x, torch.sigmoid(x)).amax(dim=3))
        return self.head(F.adaptive_avg_pool1d(x, 1).squeeze(2))


# name: (made narrow, made wide, shape of a sample)
NETWORKS = {
    "mlp": (Mlp, lambda: Mlp((10, 9)), (3, 2, 2)),
    "mlp-no-bias": (lambda: Mlp(bias=False), lambda: Mlp((5, 9), bias=False), (12,)),
    "cnn": (Cnn, lambda: Cnn((4, 8, 5)), (3, 8, 8)),
    "resnet": (ResNet, lambda: ResNet((6, 9), 4), (3, 6, 6)),
    "option-a": (OptionA, lambda: OptionA((6, 10, 12), 7), (3, 8, 8)),
    "denoiser": (Denoiser, lambda: Denoiser(9), (1, 6, 6)),
    "denoiser-no-bn": (lambda: Denoiser(bn=False), lambda: Denoiser(4, bn=False), (1, 6, 6)),
    "separable": (Separable, lambda: Separable(7), (3, 5, 5)),
}


@torch.no_grad()
def lively(build, seed):
    """A network with random weights and statistics as if trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build()
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, nn.PReLU):
                module.weight.uniform_(0, 0.5)
        return net.eval()


@cache
def sample(name, batch=2):
    return torch.randn(batch, *NETWORKS[name][2], generator=torch.Generator().manual_seed(0))


@cache
def network(name, seed=0, wide=False):
    """(network, its axes)."""
    net = lively(NETWORKS[name][wide], seed)
    return net, Axes.of(net, sample(name))


def fused(one, other, coupling, name, **options):
    """Both networks assembled; `coupling` is made from the sizes of each group."""
    (net_a, axes_a), (net_b, axes_b) = one, other
    couplings = {a.name: coupling(a.size, b.size) for a, b in zip(axes_a.groups, axes_b.groups, strict=True)}
    return assemble(net_a, net_b, axes_a, axes_b, couplings, sample(name), **options)


def partial(alpha, seed=0):
    """A random partial matching, alpha of it alone."""
    rng = np.random.default_rng(seed)

    def make(n_a, n_b):
        k = round((1 - alpha) * min(n_a, n_b))
        return Coupling.matched(rng.permutation(n_a)[:k], rng.permutation(n_b)[:k], n_a, n_b)

    return make


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("lam", [0.5, 0.3])
@pytest.mark.parametrize("wide", [False, True], ids=["equal", "wider"])
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_fused_is_the_mean_of_both_answers(name, wide, lam):
    one, other = network(name), network(name, 1, wide)
    x = sample(name, 5)
    model = fused(one, other, Coupling.apart, name, lam=lam).model
    close(model(x), (1 - lam) * one[0](x) + lam * other[0](x))
    assert parameters(model) <= parameters(one[0]) + parameters(other[0])


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_fused_with_itself_stays_what_it_is(name):
    one = network(name)
    model = fused(one, one, lambda n, _: Coupling.identity(n), name).model
    x = sample(name, 3)
    close(model(x), one[0](x))
    assert parameters(model) == parameters(one[0])


def permuted(name, seed=0):
    """A copy whose hidden units are in another order, its axes, and {group: order}: unit p[j] of ours is its unit j."""
    net, axes = network(name)
    rng = np.random.default_rng(seed)
    orders = {group.name: rng.permutation(group.size) for group in axes.groups}
    copied = copy.deepcopy(net)
    with torch.no_grad():
        for group in axes.groups:
            for member in group.members:
                module = copied.get_submodule(member.path)
                index = np.arange(len(axes.side(member.path, member.axis).group))
                index[member.channels] = member.channels[orders[group.name]]
                if member.axis == "in":
                    module.weight.copy_(module.weight[:, index])
                    continue
                for held in ("weight", "bias", "running_mean", "running_var"):
                    if getattr(module, held, None) is not None:
                        getattr(module, held).copy_(getattr(module, held)[index])
    return (copied, axes), orders


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_copy_fuses_to_the_same_function_at_every_alpha(name, alpha):
    one = network(name)
    other, orders = permuted(name)
    x = sample(name, 3)
    close(other[0](x), one[0](x))
    couplings = {}
    for group, order in orders.items():
        k = round((1 - alpha) * len(order))
        couplings[group] = Coupling.matched(order[:k], np.arange(k), len(order), len(order))
    close(assemble(one[0], other[0], one[1], other[1], couplings, sample(name)).model(x), one[0](x))


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "option-a"])
def test_split_units_of_a_copy_keep_the_function(name):
    one = network(name)

    def split(n, _):
        masses = np.linspace(0.2, 1.0, n)
        return Coupling(np.diag(masses), np.ones(n), np.ones(n))

    x = sample(name, 3)
    close(fused(one, one, split, name).model(x), one[0](x))


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp", "cnn", "option-a"])
def test_a_wider_copy_with_repeated_units_fuses_to_the_same_function(name):
    """Every unit of A twice in B, each with half the weights out: incoming is averaged, outgoing added up."""
    one = network(name)
    twice, axes = doubled(name)
    x = sample(name, 3)
    close(twice(x), one[0](x))
    couplings = {
        g.name: Coupling(np.kron(np.eye(g.size), [[0.5, 0.5]]), np.ones(g.size), np.full(2 * g.size, 0.5))
        for g in one[1].groups
    }
    close(assemble(one[0], twice, one[1], axes, couplings, sample(name)).model(x), one[0](x))
    back = {name: Coupling(c.plan.T, c.target, c.source) for name, c in couplings.items()}
    narrow = assemble(twice, one[0], axes, one[1], back, sample(name)).model
    close(narrow(x), one[0](x))
    assert parameters(narrow) == parameters(one[0])


def doubled(name):
    """The network with every hidden unit twice, side by side."""
    net, axes = network(name)
    wide = lively(
        {"mlp": lambda: Mlp((16, 12)), "cnn": lambda: Cnn((12, 10, 14)), "option-a": lambda: OptionA((8, 16, 24), 10)}[
            name
        ],
        0,
    )
    if name == "option-a":
        wide.blocks[2].first[0] = nn.Conv2d(16, 12, 3, 2, 1, bias=False)
        wide.blocks[2].first[1], wide.blocks[2].second[0] = (
            nn.BatchNorm2d(12).eval(),
            nn.Conv2d(12, 24, 3, 1, 1, bias=False),
        )
    with torch.no_grad():
        for path in axes.order:
            module, target = net.get_submodule(path), wide.get_submodule(path)
            out = axes.side(path, "out").group
            copies = 1 + int(out[0] >= 0)
            for held in ("weight", "bias", "running_mean", "running_var"):
                if getattr(module, held, None) is None:
                    continue
                value = getattr(module, held).repeat_interleave(copies, 0)
                if held == "weight" and value.ndim > 1 and axes.side(path, "in").group[0] >= 0:
                    taps = int(axes.side(path, "in").tap.max()) + 1
                    value = value.unflatten(1, (-1, taps)).repeat_interleave(2, 1).flatten(1, 2) / 2
                getattr(target, held).copy_(value)
    return wide, Axes.of(wide, sample(name))


@torch.no_grad()
def test_parameters_follow_the_block_count():
    one, other = (
        lively(lambda: nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(60, 60), nn.ReLU())]), s) for s in (0, 1)
    )
    x = torch.randn(2, 60)
    axes = Axes.of(one, x), Axes.of(other, x)
    for alpha in (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0):
        couplings = {g.name: partial(alpha)(60, 60) for g in axes[0].groups}
        count = parameters(assemble(one, other, *axes, couplings, x).model)
        assert count <= 1.05 * (1 + 2 * alpha - alpha**2) * parameters(one)
        assert count <= 2 * parameters(one)


@pytest.mark.parametrize("name", ["cnn", "option-a"])
def test_the_fused_network_is_an_ordinary_module(name):
    x = sample(name, 4)
    found = fused(network(name), network(name, 1), partial(0.4), name)
    model = found.model
    with torch.no_grad():
        wanted = model(x)
        copied, stored = copy.deepcopy(model), io.BytesIO()
        torch.save(model, stored)
        stored.seek(0)
        for again in (copied, torch.load(stored, weights_only=False)):
            close(again(x), wanted)
        other = fused(network(name, 2), network(name, 3), partial(0.4), name).model
        other.load_state_dict(model.state_dict())
        close(other(x), wanted)
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = F.cross_entropy(model(x), torch.arange(4) % 4)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    optimiser.step()
    assert not torch.allclose(model.eval()(x), wanted)
    assert sorted(found.maps) == sorted(network(name)[1].order)


def test_dropout_follows_the_mode_of_the_fused_network():
    name = "cnn"
    model, x = fused(network(name), network(name, 1), partial(0.4), name).model, sample(name)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        for module in model.modules():
            module.training = isinstance(module, nn.Dropout) and "body" not in str(module)
        assert not torch.equal(model(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.4, 1.0])
@pytest.mark.parametrize("name", ["mlp", "cnn", "option-a"])
def test_inputs_side_by_side_feed_each_network_its_own(name, alpha):
    class Both(nn.Module):
        def forward(self, x):
            return torch.cat([x, 2 * x + 1], 1)

    one, x = network(name), sample(name, 3)
    other = permuted(name)[0] if alpha < 1 else network(name, 1)
    model = fused(one, other, Coupling.apart, name, inputs=Both()).model
    close(model(x), 0.5 * one[0](x) + 0.5 * other[0](2 * x + 1))
    assert torch.isfinite(fused(one, other, partial(alpha), name, inputs=Both()).model(x)).all()


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_three_networks_by_folding(name):
    one, other, third = network(name), network(name, 1, True), network(name, 2)
    x = sample(name, 3)
    two = fused(one, other, Coupling.apart, name).model
    pair = two, Axes.of(two, sample(name))
    assert [g.name for g in pair[1].groups] == [g.name for g in one[1].groups]
    model = fused(pair, third, Coupling.apart, name, lam=1 / 3).model
    close(model(x), (one[0](x) + other[0](x) + third[0](x)) / 3)
    assert parameters(model) <= sum(parameters(net) for net, _ in (one, other, third))
    again = model, Axes.of(model, sample(name))
    close(fused(again, again, lambda n, _: Coupling.identity(n), name).model(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize("given", ["none", "one", "both"])
def test_folding_keeps_the_inputs_of_the_first_two(given):
    class Both(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            return torch.cat([x, self.scale * x], 1)

    one, other, third = network("cnn"), network("cnn", 1), network("cnn", 2)
    x = sample("cnn", 3)
    first = None if given == "none" else Both(2.0)
    second = Both(3.0) if given == "both" else None
    two = fused(one, other, Coupling.apart, "cnn", inputs=first).model
    model = fused((two, Axes.of(two, x)), third, Coupling.apart, "cnn", lam=1 / 3, inputs=second).model
    wanted = one[0](x) + other[0](x if first is None else 2 * x) + third[0](x if second is None else 3 * x)
    close(model(x), wanted / 3)


@torch.no_grad()
def test_one_slope_for_all_channels_becomes_one_a_channel():
    nets = [lively(lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2)), seed) for seed in (0, 1)]
    x = torch.randn(5, 3)
    axes = [Axes.of(net, x) for net in nets]
    model = assemble(*nets, *axes, {"0": Coupling.apart(4, 4)}, x).model
    close(model(x), (nets[0](x) + nets[1](x)) / 2)


@torch.no_grad()
@pytest.mark.parametrize("last", [nn.LogSoftmax(1), nn.Sigmoid()])
def test_what_follows_the_answer_acts_on_the_mean(last):
    nets = [lively(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), last), seed) for seed in (0, 1)]
    x = torch.randn(5, 3)
    axes = [Axes.of(net, x) for net in nets]
    model = assemble(*nets, *axes, {"0": Coupling.apart(4, 4)}, x).model
    close(model(x), last((nets[0][:3](x) + nets[1][:3](x)) / 2))


@torch.no_grad()
def test_views_of_fixed_widths_follow_the_fused_ones():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 6, 3)
            self.three, self.head = nn.Conv1d(6, 4, 3), nn.Linear(4 * 14, 2)

        def forward(self, x):
            x = F.relu(self.two(F.relu(self.one(x))))
            x = F.relu(self.three(x.view(-1, 6, 16)))
            return self.head(x.reshape(-1, 56))

    nets = [lively(Viewed, seed) for seed in (0, 1)]
    x = torch.randn(40, 3, 6, 6)
    axes = [Axes.of(net, x) for net in nets]
    for coupling in (partial(0.4), Coupling.apart):
        couplings = {g.name: coupling(g.size, g.size) for g in axes[0].groups}
        model = assemble(*nets, *axes, couplings, x).model
        assert model(x).shape == (40, 2)
    close(model(x), (nets[0](x) + nets[1](x)) / 2)
    close(model(x[:3]), model(x)[:3])


# Refusals


class Wrong(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.step, self.one, self.two = step, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return self.two(self.step(self.one(x)))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (lambda x: torch.cat([x[:, :2], x[:, 2:]], 1), "getitem.* takes some of the channels"),
        (lambda x: torch.cat([torch.relu(x)], 1), "cat.* not known to keep channels apart"),
        (lambda x: x.flip(2), "flip"),
        (lambda x: x - x.mean(1, keepdim=True), "all channels of one depend on one another|mean.* channels"),
        (lambda x: x if x.sum() > 0 else -x, "torch.fx cannot trace"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1))[:, 1:-1], "channels of zeros"),
    ],
)
def test_what_does_not_keep_channels_apart_is_refused_by_name(step, said):
    net, x = Wrong(step), torch.randn(1, 3, 6, 6)

    def with_itself():
        axes = Axes.of(net, x)
        assemble(net, net, axes, axes, {g.name: Coupling.identity(g.size) for g in axes.groups}, x)

    with pytest.raises(InvalidProblem, match=said):
        with_itself()


def test_networks_and_couplings_that_do_not_fit_are_refused():
    (net, axes), (wide, wide_axes), x = network("mlp"), network("mlp", 0, True), sample("mlp")
    identity = {g.name: Coupling.identity(g.size) for g in axes.groups}
    with pytest.raises(InvalidProblem, match="coupling of fc1: expected 8 and 10 units, got 8 and 8"):
        assemble(net, wide, axes, wide_axes, identity, x)
    with pytest.raises(InvalidProblem, match="couplings: expected one for each"):
        assemble(net, net, axes, axes, {}, x)
    with pytest.raises(InvalidProblem, match="lam: expected a number from 0 to 1, got 2"):
        assemble(net, net, axes, axes, identity, x, lam=2)
    other = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    flat = torch.randn(1, 12)
    with pytest.raises(InvalidProblem, match="one architecture"):
        assemble(net, other, axes, Axes.of(other, flat), identity, flat)
    strided = [nn.Sequential(nn.Conv1d(1, 2, 3, s), nn.ReLU(), nn.Conv1d(2, 1, 1)) for s in (1, 2)]
    x = torch.randn(1, 1, 8)
    axes = [Axes.of(n, x) for n in strided]
    with pytest.raises(InvalidProblem, match="0: expected the same geometry"):
        assemble(*strided, *axes, {"0": Coupling.identity(2)}, x)
    three = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Conv1d(2, 3, 1))
    with pytest.raises(InvalidProblem, match="networks of one output, got 1 and 3 channels"):
        assemble(strided[0], three, axes[0], Axes.of(three, x), {"0": Coupling.identity(2)}, x)


def test_an_input_that_is_read_again_cannot_come_twice():
    class Both(nn.Module):
        def forward(self, x):
            return torch.cat([x, x], 1)

    one = network("denoiser")
    with pytest.raises(InvalidProblem, match="sub: it reads the network's own input"):
        fused(one, one, Coupling.apart, "denoiser", inputs=Both())


def test_norms_at_the_answer_and_depthwise_layers_that_widen_are_refused():
    x = torch.randn(2, 3, 5, 5)
    ends = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)).eval()
    widens = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    for net, said in ((ends, "BatchNorm2d. acts on the network's own"), (widens, "Conv2d. makes several channels")):
        axes = Axes.of(net, x)
        couplings = {g.name: Coupling.identity(g.size) for g in axes.groups}
        with pytest.raises(InvalidProblem, match=said):
            assemble(net, net, axes, axes, couplings, x)
