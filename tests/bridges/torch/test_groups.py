from __future__ import annotations

import copy
import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.masks import apply_masks, masks
from prunesolve.bridges.torch.shrink import cut_out, shrink
from prunesolve.bridges.torch.verify import verify
from prunesolve.problems import Group, InvalidProblem, Selection

from .networks import NETWORKS, Block, make

# {network: {layer a group is named after: units}}, read off the definitions
SIZES = {
    "plain": {"0.0": 8, "3": 6, "6": 5},
    "mlp": {"0": 8, "2": 7},
    "residual": {"stem.0": 8, "blocks.0.first.0": 8, "blocks.1.first.0": 8, "down": 10, "last.first.0": 10},
    "option-a": {"stem.0": 16, "one.first.0": 16, "two.conv1.0": 32, "three.conv1.0": 64},
    "concatenated": {"stem": 6, "convs.0": 4, "convs.1": 4},
    "separable": {"stem.0": 8, "pointwise.0": 10},
    "grouped": {"enter.0": 6, "grouped.0": 4, "leave": 5, "up": 3, "head": 2},
    "squeeze-excite": {"conv.0": 8, "squeeze": 4},
    "normed": {"first": 8, "third": 5},
    "shared": {"enter": 6},
    "u-net": {"down1": 6, "down2": 8, "up": 5, "mix": 4},
    "instance": {"a": 6, "b": 4},
    "halves": {"gated": 4, "split": 3, "left": 4},
    "shuffled": {"wide": 3, "body": 5},
}


def members(group: Group) -> dict[tuple[str, str], list[list[int]]]:
    return {(m.path, m.axis): m.channels.tolist() for m in group.members}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_of_every_network_is_found(name: str) -> None:
    found = find_groups(*make(name))
    assert {g.name: g.size for g in found.groups} == SIZES[name]
    assert set(found.notes) == set(SIZES[name])


@pytest.mark.parametrize("name", ["plain", "residual", "concatenated", "squeeze-excite", "u-net", "instance", "shared"])
def test_torch_pruning_agrees_where_it_is_right(name: str) -> None:
    assert set(find_groups(*make(name)).notes.values()) == {"agrees with torch-pruning"}


def test_a_flattened_channel_owns_all_its_features() -> None:
    group = find_groups(*make("plain")).groups[1]
    assert members(group)["6", "in"] == [[4 * c + i for i in range(4)] for c in range(6)]


def test_concatenated_channels_arrive_behind_the_others() -> None:
    stem, first, second = find_groups(*make("concatenated")).groups
    assert members(first)["head", "in"] == [[6 + c] for c in range(4)]
    assert members(second)["norms.2", "out"] == [[10 + c] for c in range(4)]
    assert ("convs.1", "in") not in members(second)


def test_grouped_convolutions_lose_one_channel_of_each_group() -> None:
    enter, grouped, *_ = find_groups(*make("grouped")).groups
    assert members(enter)["grouped.0", "in"] == [[c, c + 6] for c in range(6)]
    assert members(grouped)["grouped.0", "out"] == [[c, c + 4] for c in range(4)]


def test_depthwise_convolutions_are_outputs_only() -> None:
    stem, pointwise = find_groups(*make("separable")).groups
    assert ("depthwise.0", "in") not in members(stem)
    assert members(pointwise)["doubling", "out"] == [[2 * c, 2 * c + 1] for c in range(10)]


def test_gated_and_split_halves_go_together() -> None:
    gated, split, _ = find_groups(*make("halves")).groups
    assert members(gated)["gated", "out"] == [[c, c + 4] for c in range(4)]
    assert members(split)["split", "out"] == [[c, c + 3] for c in range(3)]


def test_padded_shortcuts_shift_channels() -> None:
    found = find_groups(*make("option-a"))
    stem = members(found.groups[0])
    assert stem["two.conv2.0", "out"] == [[c + 8] for c in range(16)]
    assert stem["three.conv2.1", "out"] == [[c + 24] for c in range(16)]
    assert found.notes["stem.0"].startswith("remapped: torch-pruning maps")
    assert "fixed in the forward code" in found.excluded["two.conv2.0"]
    assert "fixed in the forward code" in found.excluded["three.conv2.0"]


def torch_prunings_own(net: nn.Module, x: torch.Tensor, layer: str, size: int) -> Group:
    """The group torch-pruning makes of each channel of a layer, in our form."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(net, x)
    paths = {module: path for path, module in net.named_modules()}
    root, owned = net.get_submodule(layer), {}
    for c in range(size):
        for dep, channels in graph.get_pruning_group(root, torch_pruning.prune_conv_out_channels, [c]):
            if isinstance(dep.target.module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                axis = "out" if graph.is_out_channel_pruning_fn(dep.handler) else "in"
                owned.setdefault((paths[dep.target.module], axis), []).append(channels)
    return Group(layer, size, [(path, axis, channels) for (path, axis), channels in owned.items()])


def test_torch_prunings_own_map_of_padded_shortcuts_is_refused() -> None:
    net, x = make("option-a")
    group = torch_prunings_own(net, x, "stem.0", 16)
    assert ("three.conv2.0", "out") in members(group)
    selection = Selection([group], np.arange(16) % 2 == 0)
    chosen = masks(selection, net)
    removed = cut_out(net, chosen)
    assert removed(x).shape == net(x).shape  # it runs: only the comparison can tell
    check = verify(apply_masks(copy.deepcopy(net), chosen), removed, x)
    assert not check.passed
    assert check.tolerance < check.largest_difference < float("inf")
    # the first layer behind the shortcut that reads shifted channels
    assert check.parted_at == "three.conv1.0"
    with pytest.raises(InvalidProblem, match=r"part at three\.conv1\.0"):
        shrink(net, selection, x)


def test_reasons_are_plain() -> None:
    found = find_groups(*make("normed"))
    assert found.excluded["head"] == "it is part of the network's output"
    assert found.excluded["second"].startswith("norm (LayerNorm) reads it")


def test_layers_limit_what_may_go() -> None:
    net, x = make("residual")
    found = find_groups(net, x, layers=["blocks.0.first.0", "stem.0"])
    assert [g.name for g in found.groups] == ["blocks.0.first.0"]
    expected = "it is coupled to blocks.0.second.0, blocks.1.second.0, which `layers` does not name"
    assert found.excluded == {"stem.0": expected}
    whole = ["stem.0", "blocks.0.second.0", "blocks.1.second.0"]
    assert [g.name for g in find_groups(net, x, layers=whole).groups] == ["stem.0"]
    with pytest.raises(InvalidProblem, match=r"unknown layer 'stem\.1'.*did you mean 'stem\.0'"):
        find_groups(net, x, layers=["stem.1"])


def test_nothing_of_the_model_changes() -> None:
    net, x = make("u-net")
    net.train()
    net.up.eval()
    net.mix.weight.requires_grad_(False)
    net.mix.register_forward_hook(lambda *_: None)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    flags = [m.training for m in net.modules()]
    state, python_state = torch.get_rng_state(), random.getstate()
    found = find_groups(net, x)
    assert len(found.groups) == 4
    assert [m.training for m in net.modules()] == flags
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not net.mix.weight.requires_grad
    assert "forward" not in vars(net.mix)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    assert torch.backends.mha.get_fastpath_enabled()


def test_dead_channels_still_transmit() -> None:
    net, x = make("residual")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.zero_()
                module.bias.fill_(-1)
    assert {g.name: g.size for g in find_groups(net, 0 * x).groups} == SIZES["residual"]


def test_precision_follows_the_model() -> None:
    net, x = make("concatenated")
    assert {g.name: g.size for g in find_groups(net.double(), x.double()).groups} == SIZES["concatenated"]


def test_a_model_that_does_not_run_names_the_layer() -> None:
    net, _ = make("residual")
    with pytest.raises(InvalidProblem, match=r"fails at layer 'stem\.0' \(Conv2d\).*\(2, 4, 8, 8\)"):
        find_groups(net, torch.zeros(2, 4, 8, 8))


def test_unusable_models_are_refused() -> None:
    with pytest.raises(InvalidProblem, match="expected a tensor or a tuple of tensors"):
        find_groups(nn.Linear(2, 2), [[1.0, 2.0]])
    with pytest.raises(InvalidProblem, match="run it once on an example"):
        find_groups(nn.LazyLinear(2), torch.zeros(1, 2))
    with pytest.raises(InvalidProblem, match="expected a plain torch"):
        find_groups(lambda x: x, torch.zeros(1, 2))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def forward(self, x):
        return self.b(F.dropout(F.relu(self.a(x)), training=True))


def test_noise_that_depends_on_the_width_cannot_be_proved_and_is_left_out() -> None:
    found = find_groups(Noisy(), torch.ones(2, 3))
    assert found.groups == ()
    assert "removing channels differs from masking them, first at b" in found.excluded.values()


class Encoder(nn.Module):
    """Embedding, a raw parameter, attention and LayerNorm: only heads and the hidden layers inside can go."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(20, 16), nn.Parameter(torch.zeros(1, 5, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.mid, self.head = nn.Linear(16, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.mid(self.layer(self.embed(x) + self.place).mean(1))))


def test_embeddings_raw_parameters_and_what_layernorm_reads_are_left_out_by_name() -> None:
    found = find_groups(Encoder(), torch.arange(10).reshape(2, 5))
    sizes = {"layer.self_attn.q_proj": 2, "layer.linear1": 32, "mid": 6}
    assert {g.name: g.size for g in found.groups} == sizes
    assert "layer.norm2 (LayerNorm) reads it" in found.excluded["layer.linear2"]
    assert found.excluded["layer.self_attn.out_proj"].startswith("layer.norm1 (LayerNorm) reads it")


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.gain, self.one = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.c(self.gain * F.relu(self.b(self.one * F.relu(self.a(x)))))


def test_raw_parameters_keep_the_channels_they_act_on() -> None:
    found = find_groups(Scaled(), torch.ones(1, 3))
    assert [g.name for g in found.groups] == ["a"]
    assert found.excluded["b"] == "parameter 'gain' acts on it directly"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight
        self.d = nn.Linear(2, 2)

    def forward(self, x):
        return self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


def test_shared_weights_stay() -> None:
    found = find_groups(Tied(), torch.ones(1, 4))
    assert [g.name for g in found.groups] == ["c"]
    assert "b shares its weight with a" in found.excluded["b"]


def test_computed_weights_stay() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    nn.utils.parametrizations.weight_norm(net[2])
    found = find_groups(net, torch.ones(1, 3))
    assert found.groups == ()
    assert found.excluded["2"].startswith("it computes its weight at each call")
    assert found.excluded["0"].endswith("make that permanent first")


class Hard(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(F.relu(self.hidden(F.relu(self.conv(x)).view(-1, 144))))


def test_widths_written_into_the_code_are_noticed() -> None:
    found = find_groups(Hard(), torch.ones(1, 1, 8, 8))
    assert [g.name for g in found.groups] == ["hidden"]
    assert "fixed in the forward code" in found.excluded["conv"]


class Recurrent(nn.Module):
    """Time first: copies of the example cannot be stacked along the first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = x - x.mean(dim=0, keepdim=True)
        return {"answer": [self.c(torch.tanh(self.b(x.cumsum(0))))], "steps": len(x)}


def test_examples_whose_first_dimension_is_no_batch() -> None:
    assert [(g.name, g.size) for g in find_groups(Recurrent(), torch.randn(7, 2, 4)).groups] == [("a", 8), ("b", 6)]


def test_models_without_a_batch() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert [g.size for g in find_groups(net, torch.ones(3)).groups] == [4]


def test_several_inputs_that_feed_a_channel_keep_it() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, shift):
            return self.c(F.relu(self.b(F.relu(self.a(x))) + shift))

    found = find_groups(Conditioned(), (torch.ones(2, 3), torch.ones(2, 4)))
    assert [g.name for g in found.groups] == ["a"]
    assert found.excluded["b"] == "the network's own input also feeds it"


def test_the_same_groups_every_time() -> None:
    first, second = find_groups(*make("option-a")), find_groups(*make("option-a"))
    assert [(g.name, members(g)) for g in first.groups] == [(g.name, members(g)) for g in second.groups]
    assert first.excluded == second.excluded


def test_block_alone() -> None:
    found = find_groups(Block(4), torch.ones(1, 4, 3, 3))
    assert [g.name for g in found.groups] == ["first.0"]


# -- the public networks


def reference(shared: Path):
    spec = importlib.util.spec_from_file_location("networks_reference", shared / "data" / "networks_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PUBLIC = {
    "resnet20_a": (lambda n: n.CifarResNet(20), (1, 3, 32, 32)),
    "dncnn_s25": (lambda n: n.DnCNN(17), (1, 1, 24, 24)),
    "densenet_bc_6_12_24": (lambda n: n.DenseNetBC((6, 12, 24)), (1, 3, 16, 16)),
    "mnist_mlp_0": (lambda n: n.MLPNet(), (2, 1, 28, 28)),
}


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", PUBLIC)
def test_public_networks_end_masked_equal_to_removed(name: str, shared: Path) -> None:
    build, shape = PUBLIC[name]
    net = build(reference(shared)).eval()
    net.load_state_dict(torch.load(shared / "data" / f"{name}.pt", weights_only=True))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = find_groups(net, x)
    chance = np.random.default_rng(0)
    keep = np.concatenate([np.r_[True, chance.random(g.size - 1) < 0.5] for g in found.groups])
    selection = Selection(found.groups, keep)
    removed = shrink(net, selection, x)
    masked = apply_masks(copy.deepcopy(net), masks(selection, net))
    with torch.no_grad():
        torch.testing.assert_close(removed(x), masked(x), rtol=1e-4, atol=1e-4 * float(masked(x).abs().max()))
    assert sum(p.numel() for p in removed.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
    if name == "resnet20_a":
        inner = {f"layer{s}.{i}.conv1": 8 * 2**s for s in (1, 2, 3) for i in range(3)}
        assert {g.name: g.size for g in found.groups} == {"conv1": 16, **inner}
        assert set(found.excluded) == {"layer2.0.conv2", "layer3.0.conv2", "linear"}


def test_an_example_may_hold_infinite_values_but_no_nan():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, mask):
            return self.b(torch.relu(self.a(x))) + torch.exp(mask)

    mask = torch.tensor([[0.0, float("-inf")]])
    assert [group.size for group in find_groups(Masked(), (torch.ones(1, 3), mask)).groups] == [4]
    with pytest.raises(InvalidProblem, match="NaN.*mend the data"):
        find_groups(Masked(), (torch.ones(1, 3), mask * 0.0))
