"""Heads: found, masked, removed and refitted in every way attention is written down."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunesolve as ps
from prunesolve.bridges.torch.attention import HeadAttention, heads_of, layers_of, open_attention, opened
from prunesolve.bridges.torch.costs import costs, count
from prunesolve.bridges.torch.evaluate import Evaluator
from prunesolve.bridges.torch.groups import Found, find_groups
from prunesolve.bridges.torch.masks import apply_masks, masks
from prunesolve.bridges.torch.measure import measure
from prunesolve.bridges.torch.shrink import cut_out, save_model, shrink
from prunesolve.problems import Group, Selection

DIM, HEADS, EACH, TOKENS = 12, 3, 4, 5


class FromInput(nn.Module):
    """Reads its width off the input, as vision transformers are often written: no attribute makes it smaller."""

    def __init__(self, heads_first: bool = False) -> None:
        super().__init__()
        self.num_heads, self.scale, self.heads_first = HEADS, EACH**-0.5, heads_first
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.attn_drop, self.proj_drop = nn.Dropout(0.1), nn.Dropout(0.2)

    def forward(self, x):
        b, n, c = x.shape
        each = c // self.num_heads
        if self.heads_first:
            q, k, v = self.qkv(x).reshape(b, n, self.num_heads, 3, each).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, each).permute(2, 0, 3, 1, 4)
        weights = self.attn_drop((q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).reshape(b, n, c)))


class FromAttributes(nn.Module):
    """Separate projections, a causal mask, the widths in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.inner = HEADS, DIM
        self.query, self.key, self.value, self.out = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x):
        b, n, _ = x.shape
        shape = (b, n, self.n_heads, self.inner // self.n_heads)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, n, self.inner))


class Turned(nn.Module):
    """nn.MultiheadAttention, batch first or tokens first."""

    def __init__(self, batch_first: bool, need_weights: bool = False, **options) -> None:
        super().__init__()
        self.batch_first, self.need_weights = batch_first, need_weights
        self.inner = nn.MultiheadAttention(DIM, HEADS, batch_first=batch_first, **options)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.inner(x, x, x, need_weights=self.need_weights)[0]
        return y if self.batch_first else y.transpose(0, 1)


class Net(nn.Module):
    """A pre-norm block around an attention module, with a neck that changes the width."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, DIM), nn.Parameter(torch.randn(1, TOKENS, DIM))
        self.norm1, self.norm2, self.attn = nn.LayerNorm(DIM), nn.LayerNorm(DIM), attention
        self.fc1, self.drop, self.fc2 = nn.Linear(DIM, 10), nn.Dropout(0.1), nn.Linear(10, DIM)
        self.head = nn.Linear(DIM, 3)

    def forward(self, x):
        x = self.embed(x) + self.place
        x = x + self.attn(self.norm1(x))
        return self.head((x + self.fc2(self.drop(F.gelu(self.fc1(self.norm2(x)))))).mean(1))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "packed": FromInput,
    "packed by head": lambda: FromInput(heads_first=True),
    "separate": FromAttributes,
    "batch first": lambda: Turned(True),
    "tokens first": lambda: Turned(False),
    "with weights": lambda: Turned(True, need_weights=True),
    "no bias": lambda: Turned(True, bias=False),
}
# rows of the first projection that a head owns
ROWS = {"packed": 3 * EACH, "packed by head": 3 * EACH}


def net_of(kind: str) -> tuple[nn.Module, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = Net(KINDS[kind]())
        for parameter in net.attn.parameters():
            nn.init.normal_(parameter, std=0.5)
        return net.eval(), torch.randn(2, TOKENS, 4)


def heads_in(found: Found, net: nn.Module) -> Group:
    modules = layers_of(net)
    (group,) = [g for g in found.groups if heads_of(g, modules)]
    return group


def heads_group(net: nn.Module, x: torch.Tensor) -> Group:
    return heads_in(find_groups(net, x), net)


@cache
def found_of(kind: str) -> Found:
    return find_groups(*net_of(kind))


def by_hand(net: nn.Module, x: torch.Tensor, kept: list[int], kind: str) -> torch.Tensor:
    """The network's answer with attention written out as a sum over the kept heads, from the dense weights."""
    attn = net.attn
    if kind.startswith("packed"):
        weight, bias, out = attn.qkv.weight, attn.qkv.bias, attn.proj
    elif kind == "separate":
        three = (attn.query, attn.key, attn.value)
        weight, bias, out = torch.cat([t.weight for t in three]), torch.cat([t.bias for t in three]), attn.out
    else:
        weight, bias, out = attn.inner.in_proj_weight, attn.inner.in_proj_bias, attn.inner.out_proj
    bias = torch.zeros(3 * DIM) if bias is None else bias

    def rows(part: int, head: int) -> slice:
        start = (head * 3 + part) * EACH if kind == "packed by head" else part * DIM + head * EACH
        return slice(start, start + EACH)

    x = net.embed(x) + net.place
    z = net.norm1(x)
    y = torch.zeros_like(x) if out.bias is None else out.bias.expand_as(x).clone()
    for h in kept:
        q, k, v = (z @ weight[rows(p, h)].T + bias[rows(p, h)] for p in range(3))
        scores = q @ k.transpose(1, 2) / EACH**0.5
        if kind == "separate":
            scores = scores.masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), float("-inf"))
        y = y + scores.softmax(-1) @ v @ out.weight[:, h * EACH : (h + 1) * EACH].T
    x = x + y
    return net.head((x + net.fc2(F.gelu(net.fc1(net.norm2(x))))).mean(1))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_heads_masked_and_removed_give_the_sum_over_the_others(kind: str) -> None:
    net, x = net_of(kind)
    group = heads_in(found_of(kind), net)
    assert group.size == HEADS
    assert group.members[0].channels.shape == (HEADS, ROWS.get(kind, EACH))
    before = {name: t.clone() for name, t in net.state_dict().items()}
    for kept in ([0], [1, 2], [0, 2]):
        selection = Selection([group], [h in kept for h in range(HEADS)])
        wanted = by_hand(net, x, kept, kind)
        chosen = masks(selection, net)
        torch.testing.assert_close(apply_masks(copy.deepcopy(net), chosen)(x), wanted)
        torch.testing.assert_close(apply_masks(copy.deepcopy(net), chosen, how="prune")(x), wanted)
        small = shrink(net, selection, x)
        torch.testing.assert_close(small(x), wanted)
        assert small.get_submodule(group.members[-1].path).in_features == EACH * len(kept)
    torch.testing.assert_close(by_hand(net, x, [0, 1, 2], kind), net(x))
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert "HeadAttention" not in {type(m).__name__ for m in net.modules()}


@pytest.mark.parametrize("kind", ["packed", "separate", "batch first"])
def test_feed_forward_neurons_are_found_and_the_residual_stream_stays(kind: str) -> None:
    found = found_of(kind)
    assert [g.size for g in found.groups] == [HEADS, 10]
    assert found.groups[1].name == "fc1"
    assert "(LayerNorm) reads it and takes moments" in found.excluded["embed"]


@pytest.mark.parametrize("kind", ["packed", "separate", "tokens first"])
def test_costs_are_those_of_the_removed_network(kind: str) -> None:
    net, x = net_of(kind)
    found = found_of(kind)
    modelled = costs(net, found.groups, x)
    chance = np.random.default_rng(0)
    for _ in range(3):
        keep = np.concatenate([np.r_[True, chance.random(g.size - 1) < 0.5] for g in found.groups])
        counted = count(shrink(net, Selection(found.groups, keep), x), x)
        for name, cost in modelled.items():
            assert cost.constant + cost.linear @ keep + keep @ (cost.pair @ keep) / 2 == counted[name]


@pytest.mark.parametrize("kind", ["packed", "batch first", "tokens first"])
def test_saliency_is_the_gradient_of_a_gate_on_each_head(kind: str) -> None:
    net, x = net_of(kind)
    net, x = net.double(), x.double()
    group, targets = heads_in(found_of(kind), net), torch.tensor([0, 2])
    stats = measure(net, (x, targets), groups=[group])
    gates = torch.ones(HEADS, dtype=torch.float64, requires_grad=True)
    work = open_attention(copy.deepcopy(net))
    spread = gates.repeat_interleave(EACH)
    work.get_submodule(group.members[-1].path).register_forward_pre_hook(lambda _, args: (args[0] * spread,))
    losses = F.cross_entropy(work(x), targets, reduction="none")
    each = torch.stack([torch.autograd.grad(loss, gates, retain_graph=True)[0] for loss in losses])
    np.testing.assert_allclose(stats.saliency["taylor"], each.abs().mean(0), rtol=1e-9)
    # what each head adds to the output, over samples and tokens
    read = []
    handle = work.get_submodule(group.members[-1].path).register_forward_hook(lambda m, a, y: read.append((m, a[0])))
    work(x)
    handle.remove()
    out, seen = read[0]
    parts = torch.stack(
        [
            (seen[..., h * EACH : (h + 1) * EACH] @ out.weight[:, h * EACH : (h + 1) * EACH].T).flatten()
            for h in range(3)
        ]
    )
    gram = (parts @ parts.T / parts.sum(0).square().sum()).detach()
    np.testing.assert_allclose(stats.blocks["reconstruction"][0], gram, rtol=1e-6)


@pytest.mark.parametrize("kind", ["packed", "tokens first"])
@torch.no_grad()
def test_refit_is_the_least_squares_fit_of_the_output_projection(kind: str) -> None:
    net, x = net_of(kind)
    net, x = net.double(), torch.randn(40, TOKENS, 4, dtype=torch.float64)
    group = heads_in(found_of(kind), net)
    selection = Selection([group], [True, False, True])
    small = shrink(net, selection, x)
    fitted = ps.refit(net, small, x, selection, ridge=0.0)
    path = group.members[-1].path

    def read(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []
        model = open_attention(copy.deepcopy(model))
        layer = model.get_submodule(path)
        layer.register_forward_hook(lambda m, a, y: seen.extend([a[0].flatten(0, -2), y.flatten(0, -2)]))
        model(x)
        return seen[0], seen[1]

    wanted, given = read(net)[1], read(small)[0]
    ones = torch.ones(len(given), 1, dtype=torch.float64)
    solution = np.linalg.lstsq(torch.cat([given, ones], 1).numpy(), wanted.numpy(), rcond=None)[0]
    layer = fitted.get_submodule(path)
    np.testing.assert_allclose(layer.weight, solution[:-1].T, atol=1e-6)
    np.testing.assert_allclose(layer.bias, solution[-1], atol=1e-6)
    masked = apply_masks(copy.deepcopy(net), masks(selection, net))
    also = ps.refit(net, masked, x, selection, ridge=0.0)
    assert type(also.attn) is type(net.attn)
    torch.testing.assert_close(also(x), fitted(x))


@pytest.mark.parametrize(("batch_first", "norm_first"), [(True, False), (False, True)])
@torch.no_grad()
def test_encoder_layers_lose_heads_with_and_without_their_fast_path(batch_first: bool, norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(DIM, 4, 9, 0.1, batch_first=batch_first, norm_first=norm_first)
    net = nn.Sequential(nn.Linear(2, DIM), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    x = torch.randn(2, 6, 2)
    found = find_groups(net, x)
    names = [f"1.layers.{i}.{part}" for i in range(2) for part in ("self_attn.q_proj", "linear1")]
    assert [(g.name, g.size) for g in found.groups] == list(zip(names, (4, 9, 4, 9), strict=True))
    keep = np.r_[[1, 0, 0, 1], np.arange(9) < 4, [0, 1, 1, 0], np.arange(9) > 6].astype(bool)
    selection = Selection(found.groups, keep)
    small = shrink(net, selection, x)
    masked = apply_masks(copy.deepcopy(net), masks(selection, net))
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)
    attention = small[1].layers[0].self_attn
    assert (type(attention), attention.num_heads, attention.out_proj.in_features) == (HeadAttention, 2, 6)
    assert small.prunesolve_kept["1.layers.0.self_attn.q_proj"]["out"] == [0, 1, 2, 9, 10, 11]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_smaller_encoder_takes_padding_masks() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(DIM, 2, 8, 0.0, batch_first=True)

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(layer, 1)

        def forward(self, x, padding=None):
            return self.encoder(x, src_key_padding_mask=padding)[:, 0]

    net, x = Padded().eval(), torch.randn(3, 4, DIM)
    selection = Selection([heads_group(net, x)], [False, True])
    small, masked = shrink(net, selection, x), apply_masks(copy.deepcopy(net), masks(selection, net))
    padding = torch.tensor([[False] * 4, [False, False, True, True], [False, False, False, True]])
    torch.testing.assert_close(small(x, padding), masked(x, padding))
    with torch.no_grad():
        torch.testing.assert_close(small(x, padding), masked(x, padding), rtol=1e-4, atol=1e-5)


OPTIONS = [{}, {"kdim": 5, "vdim": 7}, {"bias": False}, {"batch_first": True}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("need_weights", [True, False])
def test_opened_attention_is_nn_multihead_attention(options: dict, need_weights: bool) -> None:
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(8, 2, **options).eval()
    reads = [torch.randn(4, 3, 8), torch.randn(6, 3, options.get("kdim", 8)), torch.randn(6, 3, options.get("vdim", 8))]
    mask, padding = torch.randn(4, 6), torch.zeros(3, 6).bool()
    padding[1, 4:] = True
    if options.get("batch_first"):
        reads = [r.transpose(0, 1) for r in reads]
    cases = [{}, {"attn_mask": mask}, {"attn_mask": mask > 1.0}, {"key_padding_mask": padding}]
    cases += [{"attn_mask": mask.expand(6, 4, 6)}, {"average_attn_weights": False}]
    for case in cases:
        wanted = dense(*reads, need_weights=need_weights, **case)
        got = HeadAttention.of(dense)(*reads, need_weights=need_weights, **case)
        torch.testing.assert_close(got, wanted)
    alone = [r.select(0 if options.get("batch_first") else 1, 0) for r in reads]
    torch.testing.assert_close(HeadAttention.of(dense)(*alone), dense(*alone))


def test_opening_is_undone_and_writes_through() -> None:
    net = nn.ModuleDict({"one": nn.MultiheadAttention(4, 2)})
    net["two"] = net["one"]
    with opened(None, net), torch.no_grad():
        assert net["two"] is net["one"]
        net["one"].v_proj.weight.zero_()
    assert type(net["one"]) is nn.MultiheadAttention
    assert not net["one"].in_proj_weight[8:].any()
    assert net["one"].in_proj_weight[:8].all()


class Crossed(nn.Module):
    """Queries and keys from two places, of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, DIM), nn.Linear(3, 6), nn.Linear(DIM, 2)
        self.attn = nn.MultiheadAttention(DIM, HEADS, kdim=6, vdim=6, batch_first=True)

    def forward(self, x, y):
        y = torch.tanh(self.b(y))
        return self.out(torch.tanh(self.attn(self.a(x), y, y)[0]))


@torch.no_grad()
def test_cross_attention_loses_heads() -> None:
    torch.manual_seed(0)
    net, example = Crossed(), (torch.randn(2, 4, 3), torch.randn(2, 5, 3))
    found = find_groups(net, example)
    sizes = {"a": 12, "b": 6, "attn.q_proj": HEADS, "attn.out_proj": 12}
    assert {g.name: g.size for g in found.groups} == sizes
    keep = np.concatenate([np.arange(g.size) % 3 != 1 for g in found.groups])
    small = shrink(net, Selection(found.groups, keep), example)
    masked = apply_masks(copy.deepcopy(net), masks(Selection(found.groups, keep), net))
    torch.testing.assert_close(small(*example), masked(*example))


class GroupedQueries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = 4, 2, 3
        self.q, self.k, self.v, self.o = nn.Linear(DIM, 12), nn.Linear(DIM, 6), nn.Linear(DIM, 6), nn.Linear(12, DIM)

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = (layer(x).view(b, n, self.num_kv_heads, self.head_dim).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (t.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1) for t in (k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


@torch.no_grad()
def test_grouped_queries_go_with_the_head_they_read() -> None:
    torch.manual_seed(0)
    net, x = Net(GroupedQueries()).eval(), torch.randn(2, TOKENS, 4)
    group = heads_group(net, x)
    assert (group.size, [m.channels.shape[1] for m in group.members]) == (2, [6, 3, 3, 6])
    selection = Selection([group], [False, True])
    small = shrink(net, selection, x)
    assert (small.attn.num_heads, small.attn.num_kv_heads, small.attn.head_dim) == (2, 1, 3)
    torch.testing.assert_close(small(x), apply_masks(copy.deepcopy(net), masks(selection, net))(x))


class Talking(FromAttributes):
    """Every head's weights are a mixture of all heads' weights."""

    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(HEADS, HEADS) if layer else nn.Parameter(torch.randn(HEADS, HEADS))

    def forward(self, x):
        b, n, _ = x.shape
        shape = (b, n, self.n_heads, self.inner // self.n_heads)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        scores = (q @ k.transpose(2, 3)).movedim(1, 3)
        mixed = self.mix(scores) if isinstance(self.mix, nn.Linear) else scores @ self.mix
        return self.out((mixed.movedim(3, 1).softmax(-1) @ v).transpose(1, 2).reshape(b, n, self.inner))


class Normed(FromAttributes):
    """A LayerNorm over each head's queries."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(EACH)

    def forward(self, x):
        b, n, _ = x.shape
        shape = (b, n, self.n_heads, self.inner // self.n_heads)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(self.norm(q), k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, self.inner))


class Hidden(nn.Module):
    """Attention whose number of heads is written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, 3, EACH).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, DIM))


EXCLUDED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "talking heads": (lambda: Talking(layer=False), "attn.query", "parameter 'attn.mix' acts on it directly"),
    "talking layer": (lambda: Talking(layer=True), "attn.query", "fixed in the forward code"),
    "normed queries": (Normed, "attn.query", "norm (LayerNorm) reads it"),
    "heads in the code": (Hidden, "attn.q", "fixed in the forward code"),
    "one head": (lambda: nn.MultiheadAttention(DIM, 1), "attn.q_proj", "all channels of attn.q_proj depend"),
    "own key": (lambda: nn.MultiheadAttention(DIM, 3, add_bias_kv=True), "attn.out_proj", "a key of its own"),
}


@pytest.mark.parametrize("case", EXCLUDED)
def test_what_cannot_be_confirmed_is_left_out_with_the_reason(case: str) -> None:
    build, name, reason = EXCLUDED[case]

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = build()

        def forward(self, x):
            # what a caller's code may well ask
            return self.attn(x, x, x)[0] if isinstance(self.attn, nn.MultiheadAttention) else self.attn(x)

    torch.manual_seed(0)
    found = find_groups(nn.Sequential(Alone(), nn.Linear(DIM, 2)), torch.randn(2, TOKENS, DIM))
    assert not any(m.axis == "in" and m.path.startswith("0.") for g in found.groups for m in g.members)
    assert reason.replace("attn.", "0.attn.") in found.excluded[f"0.{name}"]


def test_one_head_at_least_is_kept() -> None:
    net, x = net_of("batch first")
    group = heads_in(found_of("batch first"), net)
    with pytest.raises(ps.InvalidProblem, match="every output channel would go"):
        shrink(net, Selection([group], [False] * HEADS), x)
    out = ps.prune(
        net, (x, torch.tensor([0, 1])), keep=1, layers=["attn.inner." + p for p in ("q_proj", "k_proj", "v_proj")]
    )
    assert out.model.attn.inner.num_heads == 1


def test_what_only_loses_neurons_keeps_its_multihead_attention() -> None:
    net, x = net_of("batch first")
    found = found_of("batch first")
    keep = np.r_[[True] * HEADS, np.arange(10) < 5]
    small = shrink(net, Selection(found.groups, keep), x)
    assert type(small.attn.inner) is nn.MultiheadAttention
    assert small.fc1.out_features == 5


@pytest.mark.parametrize("kind", ["packed", "separate", "tokens first"])
def test_dropout_and_training_flags_come_along(kind: str) -> None:
    net, x = net_of(kind)
    net.train()
    net.norm1.eval()
    small = shrink(net, Selection([heads_in(found_of(kind), net)], [True, False, True]), x)
    flags = {path: m.training for path, m in small.named_modules()}
    assert not flags.pop("norm1")
    assert all(flags.values())
    if kind == "packed":
        assert (small.attn.form.dropout, small.attn.form.after) == (0.1, ("proj_drop",))


@pytest.mark.parametrize("kind", ["packed", "batch first"])
def test_pruned_heads_are_pruned_again_and_load_without_the_library(kind: str, tmp_path) -> None:
    net, x = net_of(kind)
    group = heads_in(found_of(kind), net)
    small = shrink(net, Selection([group], [True, False, True]), x)
    again = heads_group(small, x)
    assert again.size == 2
    assert again.channels.tolist() == group.channels[[0, 2]].tolist()
    smaller = shrink(small, Selection([again], [False, True]), x)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), by_hand(net, x, [2], kind))
        if kind == "packed":
            save_model(smaller, tmp_path, x)
            told = json.loads((tmp_path / "widths.json").read_text())["modules"]
            assert told["attn"] == {"num_heads": 1, "head_dim": EACH}
            program = torch.export.load(tmp_path / "model.pt2").module()
            torch.testing.assert_close(program(x), smaller(x))


def test_cutting_without_an_example_sets_the_number_of_heads() -> None:
    net, x = net_of("separate")
    chosen = masks(Selection([heads_in(found_of("separate"), net)], [True, False, False]), net)
    assert cut_out(net, chosen).attn.n_heads == 1


@pytest.mark.parametrize("kind", ["packed", "tokens first"])
def test_prune_does_it_all(kind: str) -> None:
    net, _ = net_of(kind)
    data = (torch.randn(24, TOKENS, 4), torch.randint(0, 3, (24,)))
    dense = count(net, data[0])
    out = ps.prune(net, data, params=0.6)
    assert out.report["removal"]["passed"]
    assert out.report["achieved"]["params"][0] == count(out.model, data[0])["params"] <= 0.6 * dense["params"]
    assert all(kept >= 1 for kept, _ in out.selection.counts.values())


class Reaching(nn.Module):
    """Forward code that takes the packed weights out of nn.MultiheadAttention: there is nothing to open."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.fc1, self.fc2 = nn.MultiheadAttention(DIM, HEADS), nn.Linear(3 * DIM, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(F.linear(x, self.attn.in_proj_weight))))


def test_code_that_reaches_into_multihead_attention_still_runs() -> None:
    net, data = Reaching(), (torch.randn(8, DIM), torch.arange(8) % 2)
    out = ps.prune(net, data, keep=2)
    assert (out.selection.kept.keys(), out.model.fc1.out_features) == ({"fc1"}, 2)


@pytest.mark.parametrize("kind", ["packed", "batch first"])
def test_the_evaluator_masks_heads(kind: str) -> None:
    net, _ = net_of(kind)
    data = (torch.randn(16, TOKENS, 4), torch.randint(0, 3, (16,)))
    group = heads_in(found_of(kind), net)
    keep = np.array([[True, False, True], [False, False, True]])
    losses = Evaluator(net, data, groups=[group], guard=False).evaluate(keep)
    for row, loss in zip(keep, losses.ravel(), strict=True):
        small = shrink(net, Selection([group], row), data[0])
        assert loss == pytest.approx(F.cross_entropy(small(data[0]), data[1]).item(), rel=1e-5)
