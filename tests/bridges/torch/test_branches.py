from __future__ import annotations

import copy
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesolve.bridges.torch.branches import Branch, branch_importance, find_branches, remove_branches
from prunesolve.bridges.torch.costs import count
from prunesolve.bridges.torch.evaluate import evaluate
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.shrink import save_model
from prunesolve.bridges.torch.verify import verify
from prunesolve.problems import InvalidProblem

from .networks import Block, Concatenated, PaddedBlock, conv_bn
from .networks import make as make_network


class Projected(nn.Module):
    """Stride 2 and more channels, a 1x1 convolution on the shortcut."""

    def __init__(self, reads: int, makes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(reads, makes, 3, 2, 1, bias=False), nn.BatchNorm2d(makes)
        self.conv2, self.bn2 = nn.Conv2d(makes, makes, 3, padding=1, bias=False), nn.BatchNorm2d(makes)
        self.downsample, self.relu = conv_bn(reads, makes, 1, stride=2), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.downsample(x)
        return self.relu(y)


class PreActivation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x):
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class Inverted(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.conv = nn.Sequential(
            conv_bn(width, wide, 1), nn.ReLU6(), conv_bn(wide, wide, groups=wide), nn.ReLU6(), conv_bn(wide, width, 1)
        )

    def forward(self, x):
        return x + self.conv(x)


class MlpBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Attending(nn.Module):
    """Two branches; that of the attention is called with three tensors and gives two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 9), nn.GELU(), nn.Linear(9, width))

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attention(y, y, y)[0]
        return x + self.mlp(x)


class Scaled(nn.Module):
    """A scale per channel and a dropout between the branch and the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(width, width, 3, padding=1), nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x):
        return F.dropout(self.scale * self.conv(x), 0.1, self.training) + x


class Rectified(nn.Module):
    """An activation between the branch and the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + F.relu(self.conv(x))


class Gated(nn.Module):
    """Two modules make the result together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x + self.value(x) * torch.sigmoid(self.gate(x))


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            conv_bn(6, 6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 1, 1),
        )

    def forward(self, x):
        return x - self.body(x)


class Nested(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.outer, self.inner = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x):
        y = F.relu(self.outer(x))
        return x + self.last(y + self.inner(y))


class Tied(nn.Module):
    """One layer runs in both blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shared, self.one, self.two = (nn.Conv2d(width, width, 1) for _ in range(3))

    def forward(self, x):
        x = x + self.one(F.relu(self.shared(x)))
        return x + self.two(F.relu(self.shared(x)))


class Net(nn.Module):
    """Stem, blocks, head on 4 x 4 or 8 x 8 images."""

    def __init__(self, *blocks: nn.Module, reads: int = 3, stem: int = 6, last: int = 6) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(reads, stem, 1), nn.Sequential(*blocks), nn.Linear(last, 3)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).mean(dim=(2, 3)))


class Tokens(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = nn.Linear(5, 6), nn.Sequential(*blocks), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x)).mean(dim=1))


@dataclass(frozen=True)
class Known:
    """A branch as the network's author would describe it."""

    name: str
    exit: str
    inside: tuple[str, ...]


def blocks(*made, **options):
    return Net(*made, **options), (3, 8, 8)


# network, shape of a sample, its removable branches
CASES = {
    "basic": (
        lambda: blocks(Block(6), Block(6)),
        [Known(f"blocks.{b}", f"blocks.{b}.second", ("first", "second")) for b in (0, 1)],
    ),
    "option A": (
        lambda: blocks(PaddedBlock(6, 10), last=10),
        [Known("blocks.0", "blocks.0.conv2", ("conv1", "conv2"))],
    ),
    "projected": (
        lambda: blocks(Projected(6, 8), last=8),
        [Known("blocks.0", "blocks.0.bn2", ("conv1", "bn1", "conv2", "bn2"))],
    ),
    "pre-activation": (
        lambda: blocks(PreActivation(6), PreActivation(6)),
        [Known(f"blocks.{b}", f"blocks.{b}.conv2", ("bn1", "conv1", "bn2", "conv2")) for b in (0, 1)],
    ),
    "inverted": (lambda: blocks(Inverted(6)), [Known("blocks.0.conv", "blocks.0.conv", ("conv",))]),
    "scaled": (lambda: blocks(Scaled(6)), [Known("blocks.0.conv", "blocks.0.conv", ("conv",))]),
    "mlp": (
        lambda: (Tokens(MlpBlock(6), MlpBlock(6)), (7, 5)),
        [Known(f"blocks.{b}", f"blocks.{b}.fc2", ("norm", "fc1", "fc2")) for b in (0, 1)],
    ),
}
BRANCHES = [(case, known) for case, (_, branches) in CASES.items() for known in branches]


def make(case):
    """In double precision, with BatchNorm statistics as if trained, and 20 samples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net, shape = case() if callable(case) else CASES[case][0]()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
        return net.double().eval(), torch.randn(20, *shape).double()


def reasons(net, x):
    return {branch.name: branch.reason for branch in find_branches(net.eval(), x)}


def outputs(net, path, x):
    """What a module gives."""
    seen = []
    handle = net.get_submodule(path).register_forward_hook(lambda m, args, made: seen.append(made.clone()))
    with torch.no_grad():
        net(x)
    handle.remove()
    return seen[0]


def channel_mean(y):
    """Over all but the channels, of the shape that adds to y."""
    return y.mean(dim=(0, 2, 3), keepdim=True) if y.ndim == 4 else y.mean(dim=(0, 1), keepdim=True)


def masked(net, path, level):
    """The network in which a module's output is a constant."""
    net = copy.deepcopy(net)
    net.get_submodule(path).register_forward_hook(lambda m, args, made: torch.zeros_like(made) + level)
    return net


@pytest.mark.parametrize("case", CASES)
def test_branches_are_those_of_the_code(case):
    net, x = make(case)
    found = find_branches(net, x)
    expected = CASES[case][1]
    assert [(b.name, b.exit, b.reason, b.within) for b in found] == [(k.name, k.exit, "", "") for k in expected]
    for branch, known in zip(found, expected, strict=True):
        gone = [p for p, m in net.named_modules() if branch.holds(p) and isinstance(m, (nn.Conv2d, nn.Linear))]
        block = known.exit.rpartition(".")[0]
        wanted = [p for p, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        wanted = [p for p in wanted if any((p + ".").startswith(f"{block}.{inner}.") for inner in known.inside)]
        assert sorted(gone) == sorted(branch.layers) == sorted(wanted)


@pytest.mark.parametrize(("case", "known"), BRANCHES, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("with_data", [False, True])
def test_removed_equals_masked(case, known, with_data):
    net, x = make(case)
    before = copy.deepcopy(net.state_dict())
    level = channel_mean(outputs(net, known.exit, x)) if with_data else 0.0
    removed = remove_branches(net, known.name, x[:2], x if with_data else None)
    check = verify(masked(net, known.exit, level), removed, x)
    assert check.passed, check
    # and on what it was not tried on
    other = torch.randn(3, *x.shape[1:], generator=torch.Generator().manual_seed(5)).double()
    other = other.repeat(1, 1, 2, 2)[:, :, :13, :11] if x.ndim == 4 else other.repeat(1, 2, 1)
    assert verify(masked(net, known.exit, level), removed, other).passed
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))


@pytest.mark.parametrize(("case", "known"), BRANCHES, ids=lambda value: getattr(value, "name", value))
def test_nothing_of_it_is_left_but_its_mean(case, known):
    net, x = make(case)
    [branch] = [b for b in find_branches(net, x) if b.name == known.name]
    block = net.get_submodule(known.exit.rpartition(".")[0])
    params = sum(p.numel() for inner in known.inside for p in block.get_submodule(inner).parameters())
    dense, zero = count(net, x), count(remove_branches(net, branch, x), x)
    assert branch.params == params == dense["params"] - zero["params"]
    assert branch.macs == dense["macs"] - zero["macs"] > 0
    mean = count(remove_branches(net, branch, x, x), x)
    assert (mean["params"] - zero["params"], mean["macs"]) == (branch.constant, zero["macs"])


def test_macs_are_those_of_its_convolutions():
    net, x = make("option A")
    [branch] = find_branches(net, x)
    assert branch.macs == (6 * 10 + 10 * 10) * 9 * 4 * 4


class Signed(Block):
    """A block whose branch and shortcut enter with signs."""

    def __init__(self, signs: tuple[int, int]) -> None:
        super().__init__(6)
        self.signs = signs

    def forward(self, x):
        y = self.second(F.relu(self.first(x)))
        return {(1, 1): torch.add, (1, -1): lambda y, x: y - x, (-1, 1): lambda y, x: torch.sub(x, y)}[self.signs](y, x)


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1)])
def test_the_sum_keeps_its_mean_in_every_channel_when_all_go(signs):
    net, x = make(lambda: blocks(Signed(signs), nn.ReLU(), Signed(signs)))
    removed = remove_branches(net, find_branches(net, x), x[:2], x)
    for b in ("blocks.0", "blocks.2"):
        dense, left = (channel_mean(outputs(model, b, x)) for model in (net, removed))
        torch.testing.assert_close(left, dense)
    # which its own mean alone would not give behind another removed branch
    own = channel_mean(outputs(net, "blocks.2.second", x))
    assert (outputs(removed, "blocks.2.second", x) - own).abs().max() > 1e-3


def test_an_activation_behind_the_branch_passes_the_mean():
    net, x = make(lambda: blocks(Rectified(6)))
    [branch] = find_branches(net, x)
    left = outputs(remove_branches(net, branch, x, x), "blocks.0.conv", x)
    torch.testing.assert_close(
        F.relu(left[:1]), channel_mean(F.relu(outputs(net, "blocks.0.conv", x))).expand_as(left[:1])
    )


def test_it_stays_constant_in_training():
    net, x = make("basic")
    removed = remove_branches(net, "blocks.0", x, x)
    wanted = outputs(removed, "blocks.0.second", x)
    torch.testing.assert_close(outputs(removed.train(), "blocks.0.second", x), wanted)


@pytest.mark.parametrize("case", CASES)
def test_only_modules_of_torch_stand_in(case):
    net, x = make(case)
    removed = remove_branches(net, find_branches(net, x), x, x)
    old = {id(m) for m in net.modules()} | {type(m) for m in net.modules()}
    assert all(type(m) in old or type(m).__module__.startswith("torch.nn") for m in removed.modules())
    raw = io.BytesIO()
    torch.save(removed, raw)
    # the attribute that notes what stands there is data
    assert b"prunesolve." not in raw.getvalue()
    again = torch.load(io.BytesIO(raw.getvalue()), weights_only=False)
    assert torch.equal(again(x), removed(x))


@pytest.mark.parametrize("case", ["option A", "mlp"])
def test_the_written_network_is_rebuilt_from_its_class(case, tmp_path):
    net, x = make(case)
    removed = remove_branches(net, find_branches(net, x)[-1], x, x)
    written = save_model(removed, tmp_path, x)
    page = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
    recipe: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?def load_smaller.*?)```", page, re.DOTALL)[1], recipe)
    with torch.no_grad():
        rebuilt = recipe["load_smaller"](CASES[case][0]()[0].double().eval(), tmp_path)
        assert torch.equal(rebuilt(x), removed(x))
        program = torch.export.load(written[-1]).module()
        torch.testing.assert_close(program(x), removed(x))


def test_flags_of_training_stay():
    net, x = make("basic")
    net.train()
    net.blocks[1].eval()
    remove_branches(net, "blocks.0", x, x)
    assert [b.training for b in net.blocks] == [True, False]
    removed = remove_branches(net, "blocks.0", x, x)
    assert removed.blocks[0].second.training
    assert not remove_branches(net, "blocks.1", x).blocks[1].second.training


def test_what_is_left_has_no_branch_there():
    net, x = make("basic")
    assert [b.name for b in find_branches(remove_branches(net, "blocks.0", x, x), x)] == ["blocks.1"]


def test_nested_branches():
    net, x = make(lambda: blocks(Nested(6)))
    inner, outer = find_branches(net, x)
    assert (inner.name, inner.within, outer.name, outer.within) == ("blocks.0.inner", "blocks.0", "blocks.0", "")
    assert outer.layers == ("blocks.0.outer", "blocks.0.inner", "blocks.0.last")
    both = remove_branches(net, [inner, outer], x, x)
    alone = remove_branches(net, outer, x, x)
    assert torch.equal(both(x), alone(x))
    assert verify(masked(net, "blocks.0.inner", 0.0), remove_branches(net, inner, x), x).passed


def test_two_branches_added_in_turn():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x):
            return x + self.a(x) + self.b(x)

    net, x = make(lambda: blocks(Two()))
    assert [(b.name, b.layers) for b in find_branches(net, x)] == [
        ("blocks.0.a", ("blocks.0.a",)),
        ("blocks.0.b", ("blocks.0.b",)),
    ]
    removed = remove_branches(net, ["blocks.0.a", "blocks.0.b"], x)
    assert torch.equal(outputs(removed, "blocks", x), outputs(net, "stem", x).relu())


def test_a_global_residual_is_listed_and_refused():
    net, x = make(lambda: (Denoiser(), (1, 6, 6)))
    [branch] = find_branches(net, x)
    assert "every layer" in branch.reason
    assert branch.params == branch.macs == 0
    with pytest.raises(InvalidProblem, match="every layer of the network"):
        remove_branches(net, branch, x)


def test_a_global_residual_between_other_layers_can_go():
    net, x = make(lambda: blocks(Denoiser(), reads=1, stem=1, last=1))
    net.stem, x = nn.Conv2d(1, 1, 1).double(), x[:, :1]
    assert reasons(net, x) == {"blocks.0.body": ""}


@pytest.mark.parametrize(
    ("block", "name", "reason"),
    [
        (Tied, "blocks.0.one", "shared also runs outside"),
        (Gated, "blocks.0", "reads what was made before|does not come from"),
    ],
)
def test_what_cannot_go_says_why(block, name, reason):
    net, x = make(lambda: blocks(block(6)))
    said = reasons(net, x)
    assert re.search(reason, said[name]), said
    with pytest.raises(InvalidProblem, match=name):
        remove_branches(net, name, x)


def test_attention_is_refused_and_the_layers_after_it_can_go():
    net, x = make(lambda: (Tokens(Attending(6)), (7, 5)))
    said = reasons(net, x)
    assert "MultiheadAttention" in said.pop("blocks.0.attention.out_proj")
    assert said == {"blocks.0.mlp": ""}
    level = channel_mean(outputs(net, "blocks.0.mlp", x))
    assert verify(masked(net, "blocks.0.mlp", level), remove_branches(net, "blocks.0.mlp", x, x), x).passed


def test_tied_weights_are_refused():
    net, x = make("basic")
    net.blocks[1].first[0].weight = net.blocks[0].first[0].weight
    assert all("also used outside" in reason for reason in reasons(net, x).values())


@pytest.mark.parametrize(
    "name", ["concatenated", "plain", "separable", "squeeze-excite", "shared", "halves", "instance"]
)
def test_networks_without_residual_sums_have_none(name):
    net, x = make_network(name)
    assert find_branches(net, x) == ()


def test_concatenation_is_no_sum_even_around_one():
    class Both(Concatenated):
        def forward(self, x):
            return super().forward(x) + 1.0

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert find_branches(Both().eval(), torch.randn(2, 3, 6, 6)) == ()


def test_activations_in_place_leave_the_shortcut_alone():
    class Signed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.relu = nn.Conv2d(6, 6, 1), nn.ReLU(inplace=True)
            self.conv2, self.last = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)

        def forward(self, x):
            # with nothing in its place, the activation would work on what the first layer reads
            return x + self.last(F.relu(self.conv2(self.relu(self.conv1(x))), inplace=True))

    net, x = make(lambda: blocks(nn.Conv2d(6, 6, 1), Signed()))
    removed = remove_branches(net, "blocks.1", x, x)
    level = channel_mean(outputs(net, "blocks.1.last", x))
    assert verify(masked(net, "blocks.1.last", level), removed, x).passed
    removed.train()(x).square().sum().backward()
    assert removed.blocks[0].weight.grad.abs().max() > 0
    assert removed.blocks[1].last.mean.bias.grad.abs().max() > 0


def test_work_in_place_is_followed():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)

        def forward(self, x):
            y = self.a(x)
            view = y[:, :, :1]
            # what the second layer's branch is added to changes behind its back
            z = self.b(y)
            view.mul_(2.0)
            return (z + y).relu_()

    net, x = make(lambda: blocks(InPlace()))
    [branch] = find_branches(net, x)
    assert (branch.name, branch.reason) == ("blocks.0.b", "")
    assert verify(masked(net, "blocks.0.b", 0.0), remove_branches(net, branch, x), x).passed


def test_a_branch_whose_values_are_read_elsewhere_is_none():
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)

        def forward(self, x):
            y = self.a(x)
            if y.mean().item() > 1e9:
                x = -x
            return x + self.b(y)

    net, x = make(lambda: blocks(Leaky()))
    # only what comes after the value was looked at; it starts from another tensor than the shortcut
    assert find_branches(net, x) == ()


def test_groups_inside_are_those_that_go_with_it():
    net, x = make("projected")
    [branch] = find_branches(net, x)
    assert branch.groups_inside(find_groups(net, x[:2]).groups) == ("blocks.0.conv1",)


def test_importance_is_what_the_mean_does_not_explain():
    net, x = make("basic")
    targets = torch.arange(20) % 3
    y, z = outputs(net, "blocks.0.second", x), F.relu(outputs(net, "stem", x))
    error = float((y - channel_mean(y)).square().sum() / (y + z).square().sum())
    first, second = branch_importance(net, ["blocks.0", "blocks.1"], (x, targets))
    assert first.error == pytest.approx(error, rel=1e-9)
    level = channel_mean(outputs(net, "blocks.1.second", x))
    loss = evaluate(masked(net, "blocks.1.second", level), (x, targets))["loss"]
    assert second.loss == pytest.approx(loss, rel=1e-6)
    assert second.loss_increase == pytest.approx(loss - evaluate(net, (x, targets))["loss"], rel=1e-6)


def test_nothing_named_changes_nothing():
    net, x = make("basic")
    assert torch.equal(remove_branches(net, [], x)(x), net(x))


def test_bad_names_and_models():
    net, x = make("basic")
    with pytest.raises(InvalidProblem, match="did you mean"):
        remove_branches(net, "block.0", x)
    with pytest.raises(InvalidProblem, match="expected names or Branch"):
        remove_branches(net, [3], x)
    with pytest.raises(InvalidProblem, match="before torch.jit"):
        find_branches(torch.jit.trace(net, x), x)
    with pytest.raises(InvalidProblem, match="stem"):
        find_branches(net, x[:, :2])


def test_a_branch_of_another_network_is_unknown():
    net, x = make("basic")
    with pytest.raises(InvalidProblem, match="layer9"):
        remove_branches(net, Branch("layer9.0", ("layer9.0",), ("layer9.0",)), x)
