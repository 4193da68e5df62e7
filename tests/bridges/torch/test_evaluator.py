from __future__ import annotations

import copy
import functools
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import remove_parametrizations

from prunesolve.bridges.torch.batchnorm import recalibrate_batchnorm
from prunesolve.bridges.torch.evaluate import Evaluator, evaluate
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.masks import apply_masks, masks
from prunesolve.problems import BinaryQuadratic, Cardinality, Group, InvalidProblem, Selection

from .networks import NETWORKS, make


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def noisy_answers(net, x, size=4):
    """Batches whose targets are the dense network's answers and noise."""
    with torch.no_grad():
        y = net(x.clone())
    y = y + 0.3 * torch.randn(y.shape)
    return list(zip(x.split(size), y.split(size), strict=True))


@functools.cache
def known(name):
    net, x = make(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        data = noisy_answers(net, torch.randn(10, *x.shape[1:]))
    return net, data, find_groups(net, x).groups


def count(groups):
    return sum(g.size for g in groups)


def walk(n, steps, seed=0):
    """Masks as a search asks for them: neighbours of one that moves, and now and then any."""
    rng = np.random.default_rng(seed)
    base = rng.random(n) < 0.6
    for _ in range(steps):
        mask = base.copy()
        if rng.random() < 0.2:
            mask = rng.random(n) < rng.random()
        else:
            mask[rng.integers(n, size=2)] ^= True
        if rng.random() < 0.2:
            base = mask
        yield mask


def masked(net, groups, keep):
    return apply_masks(copy.deepcopy(net), masks(Selection(groups, keep), net))


def outs(path, reader, width):
    """The outputs of one layer, read by another."""
    each = np.arange(width)[:, None]
    return Group(path, width, [(path, "out", each), (reader, "in", each)])


# -- values


@pytest.mark.parametrize("multiple", [1, 3, 16])
@pytest.mark.parametrize("name", NETWORKS)
def test_values_are_those_of_the_masked_network(name, multiple):
    net, data, groups = known(name)
    evaluator = Evaluator(net, data, groups, guard=False)
    plain = Evaluator(net, data, groups, guard=False, memory=0)
    evaluator._reduced.multiple = multiple
    for mask in walk(count(groups), 12):
        wanted = evaluate(masked(net, groups, mask), data)
        assert evaluator.evaluate([mask])[0] == pytest.approx(wanted["loss"], rel=1e-5)
        assert evaluator.evaluate([mask])[0] == pytest.approx(plain.evaluate([mask])[0], rel=1e-6)
        scored = evaluator.score(mask)
        assert [scored["loss"], scored["metric"]] == pytest.approx([wanted["loss"], wanted["metric"]], rel=1e-5)
    assert plain.counters.skipped == 0


@pytest.mark.parametrize("name", ["residual", "u-net"])
def test_layers_are_skipped_in_a_neighbourhood(name):
    net, data, groups = known(name)
    n = count(groups)
    rows = np.ones((n, n), dtype=bool) & ~np.eye(n, dtype=bool)
    evaluator = Evaluator(net, data, groups, guard=False)
    values = evaluator.evaluate(rows)
    assert evaluator.counters.skipped > 0.2 * evaluator.counters.layers
    np.testing.assert_allclose(values, Evaluator(net, data, groups, guard=False, memory=0).evaluate(rows), rtol=1e-6)


class Counting(nn.Module):
    calls = 0

    def forward(self, x):
        Counting.calls += 1
        return x


def test_what_stands_before_the_first_change_is_not_computed():
    net = nn.Sequential(nn.Linear(3, 5), Counting(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1))
    groups = [outs("0", "2", 5), outs("2", "4", 6)]
    evaluator = Evaluator(net, (torch.randn(6, 3), torch.randn(6, 1)), groups)
    rows = np.ones((12, 11), dtype=bool)
    rows[np.arange(12), 5 + np.arange(12) % 6] = False
    evaluator.evaluate(rows)
    before = Counting.calls
    evaluator.evaluate(rows)
    assert Counting.calls == before
    rows[:, 0] = False
    evaluator.evaluate(rows[:1])
    assert Counting.calls > before


class InPlace(nn.Module):
    """All the ways in which code works on a layer's output behind its back."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(i, 6, 3, padding=1) for i in (2, 6, 6, 6))
        self.relu, self.gate, self.head = nn.ReLU(inplace=True), nn.Conv2d(2, 6, 1), nn.Conv2d(6, 1, 1)

    def forward(self, x):
        x -= 0.5
        a = self.a(x)
        gate = self.gate(x)
        self.relu(a)
        b = self.b(a)
        b += a
        c = self.c(F.relu_(b))
        c.mul_(torch.sigmoid(gate)).add_(b)
        d = self.d(self.relu(c))
        flat = d.flatten(1)
        flat *= 2.0
        return self.head(self.relu(d))


def one_by_one(width, *members):
    return Group(members[0][0], width, [(path, axis, np.arange(width)[:, None]) for path, axis in members])


STREAM = one_by_one(6, *((p, "out") for p in ("a", "b", "c", "gate")), *((p, "in") for p in ("b", "c", "d")))


class Views(nn.Module):
    """Reshapes that only take the contiguous layout, and a layer that returns a tuple."""

    def __init__(self):
        super().__init__()
        self.conv, self.mid = nn.Conv2d(2, 4, 3), nn.Linear(16, 6)
        self.gru, self.head, self.last = nn.GRU(6, 5, batch_first=True), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.mid(F.relu(self.conv(x)).view(len(x), -1))
        sequence, last = self.gru(F.relu(x)[:, None])
        last += 0.1
        return self.last(F.relu(self.head(sequence[:, 0] + last[0])))


class Reused(nn.Module):
    """Code hands the weights of a later layer to an earlier one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x * self.b.weight.abs().sum())))))


PIXELS = Group("conv", 4, [("conv", "out", np.arange(4)[:, None]), ("mid", "in", np.arange(16).reshape(4, 4))])
HARD = {
    "in place": (InPlace, (10, 2, 5, 5), [STREAM, outs("d", "head", 6)]),
    "views": (Views, (10, 2, 4, 4), [PIXELS, outs("head", "last", 4)]),
}


@pytest.mark.parametrize("name", HARD)
def test_hostile_code_gets_the_same_values(name):
    build, shape, groups = HARD[name]
    net = build().eval()
    data = noisy_answers(net, torch.randn(shape))
    kept = [(x.clone(), y) for x, y in data]
    evaluator = Evaluator(net, data, groups, guard=False)
    for mask in walk(count(groups), 25, seed=1):
        fresh = [(x.clone(), y) for x, y in kept]
        assert evaluator.evaluate([mask])[0] == pytest.approx(
            evaluate(masked(net, groups, mask), fresh)["loss"], rel=1e-5
        )
    assert evaluator.counters.skipped > 0
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(data, kept, strict=True))


def test_weights_read_past_their_layer_switch_the_memory_off():
    net = Reused().eval()
    data = noisy_answers(net, torch.randn(10, 4))
    groups = [outs("b", "c", 4)]
    evaluator = Evaluator(net, data, groups, guard=False)
    for mask in walk(4, 30):
        wanted = evaluate(masked(net, groups, mask), data)["loss"]
        assert evaluator.evaluate([mask])[0] == pytest.approx(wanted, rel=1e-5)
    skipped = evaluator.counters.skipped
    evaluator.evaluate(np.array(list(walk(4, 30))))
    assert evaluator.counters.skipped == skipped


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x):
        return self.b(F.dropout(F.relu(self.a(x)), training=True))


class Moody(Noisy):
    """Python's own random numbers, which no seed of torch's reaches."""

    def forward(self, x):
        return self.b(F.relu(self.a(x))) + 1e-3 * random.random()


def test_random_networks_get_common_random_numbers_and_no_memory():
    net = Noisy().eval()
    data = [(torch.randn(6, 4), torch.randn(6, 1))]
    groups = [outs("a", "b", 6)]
    evaluator = Evaluator(net, data, groups, guard=False)
    rows = list(walk(6, 20))
    first = [evaluator.evaluate([mask])[0] for mask in rows]
    again = [evaluator.evaluate([mask])[0] for mask in reversed(rows)]
    assert first == again[::-1]
    assert first == pytest.approx([evaluate(masked(net, groups, mask), data)["loss"] for mask in rows], rel=1e-5)
    assert evaluator.counters.skipped == 0


def test_networks_that_vary_get_no_memory():
    evaluator = Evaluator(Moody(), (torch.randn(6, 4), torch.randn(6, 1)), [outs("a", "b", 6)])
    evaluator.evaluate(np.array(list(walk(6, 20))))
    assert evaluator.counters.skipped == 0


def test_memory_that_does_not_suffice_changes_nothing():
    net, data, groups = known("residual")
    rows = np.array(list(walk(count(groups), 30)))
    ample = Evaluator(net, data, groups)
    values = ample.evaluate(rows)
    used = sum(tape.nbytes for tape in ample._prefix.tapes.values())
    scarce = Evaluator(net, data, groups, memory=used // 2)
    np.testing.assert_allclose(scarce.evaluate(rows), values, rtol=1e-6)
    assert 0 < scarce.counters.skipped < ample.counters.skipped


def test_groups_of_a_convolution_may_differ_in_width():
    net = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 1, 1))
    data = noisy_answers(net, torch.randn(8, 2, 3, 3))
    groups = [outs("0", "2", 8), outs("2", "4", 4)]
    evaluator = Evaluator(net, data, groups, guard=False)
    for mask in walk(12, 20):
        wanted = evaluate(masked(net, groups, mask), data)["loss"]
        assert evaluator.evaluate([mask])[0] == pytest.approx(wanted, rel=1e-5)


def test_what_stands_between_convolution_and_batchnorm_may_be_read():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)
            nn.init.uniform_(self.norm.running_var, 2.0, 3.0)

        def forward(self, x):
            x = self.conv(x)
            return self.head(F.relu(self.norm(x)) + torch.tanh(x))

    net = Read().eval()
    data = noisy_answers(net, torch.randn(8, 2, 3, 3))
    each = np.arange(4)[:, None]
    groups = [Group("conv", 4, [("conv", "out", each), ("norm", "out", each), ("head", "in", each)])]
    evaluator = Evaluator(net, data, groups, guard=False)
    for mask in walk(4, 10):
        wanted = evaluate(masked(net, groups, mask), data)["loss"]
        assert evaluator.evaluate([mask])[0] == pytest.approx(wanted, rel=1e-5)


class Wide(nn.Module):
    """Code that goes by the width of a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.b(x - x.mean(1, keepdim=True))


class Fixed(Wide):
    """Code that names the width of a layer, so that the removed network fails."""

    def forward(self, x):
        return self.b(F.relu(self.a(x)).reshape(-1, 6))


@pytest.mark.parametrize("build", [Wide, Fixed])
def test_where_removal_gives_something_else_units_are_masked(build):
    net = build().eval()
    data = noisy_answers(net, torch.randn(10, 4))
    groups = [outs("a", "b", 6)]
    evaluator = Evaluator(net, data, groups, guard=False)
    evaluator._reduced.multiple = evaluator._exact.multiple = 1
    for mask in walk(6, 20):
        wanted = evaluate(masked(net, groups, mask), data)["loss"]
        assert evaluator.evaluate([mask])[0] == pytest.approx(wanted, rel=1e-5)
        assert evaluator.score(mask)["loss"] == pytest.approx(wanted, rel=1e-5)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x, y):
        return self.c(F.relu(self.a(x) + self.b(y)))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.attention = nn.Embedding(9, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.b(F.gelu(self.a(x))).mean(1)


class Twice(nn.Module):
    """One submodule under two names, called under both."""

    def __init__(self):
        super().__init__()
        self.a, self.block, self.c = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 2)
        self.alias = self.block

    def forward(self, x):
        x = self.block(F.relu(self.a(x)))
        return self.c(self.alias(x))


DRAWN = {
    TwoInputs: lambda: ((torch.randn(8, 3), torch.randn(8, 4)), torch.randn(8, 2)),
    Tokens: lambda: (torch.randint(0, 9, (8, 5)), torch.randint(0, 3, (8,))),
    Twice: lambda: (torch.randn(8, 4), torch.randn(8, 2)),
}


@pytest.mark.parametrize("build", DRAWN)
def test_inputs_and_layers_of_other_kinds(build):
    net = build().eval()
    inputs, targets = DRAWN[build]()
    data = [(inputs, targets)]
    groups = find_groups(net, inputs).groups
    evaluator = Evaluator(net, data, groups, guard=False)
    refitted, again = (Evaluator(net, data, groups, guard=False, refit=True, memory=m) for m in (2**30, 0))
    rows = np.array(list(walk(count(groups), 20)))
    wanted = [evaluate(masked(net, groups, mask), data)["loss"] for mask in rows]
    np.testing.assert_allclose(evaluator.evaluate(rows), wanted, rtol=1e-5)
    np.testing.assert_allclose(refitted.evaluate(rows), again.evaluate(rows[::-1])[::-1], rtol=1e-5)


# -- objectives, batches, halves


def test_batches_add_up_to_the_whole():
    net, data, groups = known("plain")
    evaluator = Evaluator(net, data, groups, guard=False)
    rows = np.array(list(walk(count(groups), 5)))
    parts = np.array([evaluator.evaluate(rows, b) for b in range(3)])
    assert evaluator.weights.tolist() == [4, 4, 2]
    for mask, values, whole in zip(rows, parts.T, evaluator.evaluate(rows), strict=True):
        assert values == pytest.approx(
            [evaluate(masked(net, groups, mask), [batch])["loss"] for batch in data], rel=1e-5
        )
        assert whole == pytest.approx(np.average(values, weights=[4, 4, 2]), rel=1e-12)


def test_metrics_are_maximised_and_losses_minimised():
    net, _, groups = known("mlp")
    data = (torch.randn(20, 6), torch.randint(0, 2, (20,)))
    keep = np.arange(count(groups)) % 3 > 0
    wanted = evaluate(masked(net, groups, keep), data)
    arguments = {"guard": False, "data": data, "model": net, "groups": groups}
    assert Evaluator(**arguments).evaluate([keep])[0] == pytest.approx(wanted["loss"], rel=1e-5)
    assert Evaluator(**arguments, objective="metric").evaluate([keep])[0] == pytest.approx(-wanted["metric"])

    def first(outputs, targets):
        return outputs[:, 0]

    mean = float(masked(net, groups, keep)(data[0]).detach()[:, 0].mean())
    assert Evaluator(**arguments, loss=first).evaluate([keep])[0] == pytest.approx(mean, rel=1e-5)
    assert Evaluator(**arguments, objective="metric", metric=first).evaluate([keep])[0] == pytest.approx(
        -mean, rel=1e-5
    )


def test_where_there_is_no_metric_the_loss_is_minimised():
    net, data, groups = known("mlp")

    def loss(outputs, targets):
        return outputs.sum(1) + targets[:, 0]

    narrow = [(x, y[:, :1]) for x, y in data]
    keep = np.ones(count(groups), dtype=bool)
    losses = Evaluator(net, narrow, groups, loss=loss).evaluate([keep])
    assert Evaluator(net, narrow, groups, loss=loss, objective="metric").evaluate([keep]) == losses


def test_metrics_may_be_whole_numbers_and_classes_of_any_integer_type():
    net, _, groups = known("mlp")
    x, y = torch.randn(20, 6), torch.randint(0, 2, (20,))
    keep = np.arange(count(groups)) % 3 > 0
    wanted = evaluate(masked(net, groups, keep), (x, y))

    def hits(outputs, targets):
        return outputs.argmax(1) == targets.long()

    for kind in (torch.int32, torch.uint8, torch.uint16):
        evaluator = Evaluator(net, (x, y.to(kind)), groups, guard=False, objective="metric", metric=hits)
        assert evaluator.evaluate(keep)[0] == pytest.approx(-wanted["metric"] / 100)
        scored = Evaluator(net, (x, y.to(kind)), groups, guard=False).score(keep)
        assert [scored["loss"], scored["metric"]] == pytest.approx([wanted["loss"], wanted["metric"]], rel=1e-5)


def test_a_loss_that_works_in_place_spoils_nothing():
    net, data, groups = known("residual")

    def loss(outputs, targets):
        value = outputs.sub_(targets).square_().mean(1)
        targets.zero_()
        return value

    kept = [y.clone() for _, y in data]
    evaluator = Evaluator(net, data, groups, guard=False, loss=loss)
    rows = np.ones((12, count(groups)), dtype=bool)
    wanted = evaluate(net, data)["loss"]
    np.testing.assert_allclose(evaluator.evaluate(rows), wanted, rtol=1e-5)
    assert evaluator.counters.skipped > 0
    assert evaluator.score(rows[0])["loss"] == evaluator.score(rows[0])["loss"] == pytest.approx(wanted, rel=1e-5)
    assert all(torch.equal(y, before) for (_, y), before in zip(data, kept, strict=True))


@pytest.mark.parametrize("sizes", [(5, 4, 2), (1, 1, 1, 1), (2,), (1, 1), (11,)])
def test_halves_share_no_sample_and_cover_all(sizes):
    total, seen = sum(sizes), []

    def loss(outputs, targets):
        seen.append(targets.long().tolist())
        return outputs[:, 0]

    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    inputs, targets = torch.randn(total, 2), torch.arange(float(total))
    data = list(zip(inputs.split(list(sizes)), targets.split(list(sizes)), strict=True))
    halves = []
    for _ in range(2):
        evaluator = Evaluator(net, data, [outs("0", "1", 3)], loss=loss)
        for half in ("search", "guard"):
            seen.clear()
            evaluator.score([True] * 3, half)
            halves.append({sample for batch in seen for sample in batch})
    assert halves[:2] == halves[2:]
    search, guard = halves[:2]
    assert not search & guard
    assert search | guard == set(range(total))
    assert abs(len(search) - len(guard)) <= 1
    seen.clear()
    evaluator.evaluate([[True, False, True]])
    assert {sample for batch in seen for sample in batch} == search
    with pytest.raises(InvalidProblem, match="half 'all'"):
        evaluator.score([True] * 3, "all")


def test_the_black_box_takes_the_problems_constraints_and_counts():
    net, data, groups = known("plain")
    n = count(groups)
    problem = BinaryQuadratic(np.zeros(n), np.zeros((n, n)), constraints=[Cardinality(n - 3)])
    evaluator = Evaluator(net, data, groups)
    box = evaluator.black_box(problem)
    keep = np.arange(n) >= 3
    assert box.k == n - 3
    assert box.surrogate is problem
    assert box.value(keep) == pytest.approx(evaluator.score(keep)["loss"], rel=1e-5)
    assert box.value(keep) == box.value(keep)
    assert evaluator.counters.masks == pytest.approx(1.0)
    assert evaluator.counters.batches == len(evaluator.weights)
    assert evaluator.counters.seconds > 0.0
    with pytest.raises(InvalidProblem, match="units"):
        evaluator.black_box(BinaryQuadratic(np.zeros(2), np.zeros((2, 2))))


def test_the_callers_network_stays_as_it_was():
    net, x = make("residual")
    net.train()
    net.stem.eval()
    flags = [m.training for m in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    groups = find_groups(net, x).groups
    for options in ({}, {"refit": True}, {"batchnorm": True}, {"dtype": torch.bfloat16}, {"device": "cpu"}):
        evaluator = Evaluator(net, (torch.randn(8, 3, 8, 8), torch.randn(8, 3)), groups, **options)
        evaluator.evaluate(np.array(list(walk(count(groups), 3))))
        evaluator.score(np.ones(count(groups), dtype=bool), "guard")
    assert [m.training for m in net.modules()] == flags
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(p.grad is not None or not p.requires_grad for p in net.parameters())


def test_half_precision_is_near_and_scores_are_exact():
    net, data, groups = known("residual")
    short, long = (Evaluator(net, data, groups, dtype=dtype) for dtype in (torch.bfloat16, None))
    rows = np.array(list(walk(count(groups), 6)))
    values = long.evaluate(rows)
    assert np.abs(short.evaluate(rows) - values).max() < 0.1 * np.abs(values).max()
    assert not np.array_equal(short.evaluate(rows), values)
    assert short.score(rows[0])["loss"] == pytest.approx(long.score(rows[0])["loss"], rel=1e-6)


def test_inside_inference_mode():
    net, data, groups = known("residual")
    rows = np.array(list(walk(count(groups), 12)))
    with torch.inference_mode():
        got = Evaluator(net, data, groups, refit=True).evaluate(rows)
    np.testing.assert_allclose(got, Evaluator(net, data, groups, refit=True).evaluate(rows), rtol=1e-5)


# -- refit and BatchNorm


def fitted(x, y, weight, kept, ridge=1e-3):
    """Rows x (N, d), wanted y (N, o), present weight (o, d): numpy's least squares on the kept columns."""
    x, centred = x[:, kept], y - y.mean(0)
    inputs = x - x.mean(0)
    variances = inputs.var(0)
    pull = np.sqrt(ridge * variances[variances > 0].mean() * len(x))
    stacked = np.vstack([inputs, pull * np.eye(inputs.shape[1])])
    wanted = np.vstack([centred, pull * weight[:, kept].T])
    new = np.zeros_like(weight)
    new[:, kept] = np.linalg.lstsq(stacked, wanted, rcond=None)[0].T
    return new, y.mean(0) - new[:, kept] @ x.mean(0)


def test_refit_of_linear_layers_is_numpys_least_squares():
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    data = noisy_answers(net, torch.randn(40, 5).double(), size=16)
    groups = [outs("0", "2", 8), outs("2", "4", 6)]
    evaluator = Evaluator(net, data, groups, guard=False, refit=True)
    x = torch.cat([inputs for inputs, _ in data])
    for mask in walk(14, 6):
        oracle = masked(net, groups, mask)
        for path, kept in (("2", mask[:8]), ("4", mask[8:])):
            inputs = net[: int(path)](x).detach()
            new, shift = fitted(
                inputs.numpy(), net[int(path)](inputs).detach().numpy(), net[int(path)].weight.detach().numpy(), kept
            )
            with torch.no_grad():
                rows = torch.from_numpy(mask[8:]) if path == "2" else slice(None)
                oracle[int(path)].weight[rows] = torch.from_numpy(new)[rows]
                oracle[int(path)].bias[rows] = torch.from_numpy(shift)[rows]
        assert evaluator.evaluate([mask])[0] == pytest.approx(evaluate(oracle, data)["loss"], rel=1e-8)
        assert evaluator.score(mask)["loss"] == pytest.approx(evaluate(oracle, data)["loss"], rel=1e-8)


def conv_chain():
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Conv2d(5, 1, 1),
    )  # fmt: skip
    for norm in (net[1], net[4]):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    return net.double().eval(), [
        Group("0", 6, [(p, s, np.arange(6)[:, None]) for p, s in (("0", "out"), ("1", "out"), ("3", "in"))])
    ]


@pytest.mark.parametrize("batchnorm", [False, True])
def test_refit_of_convolutions_is_numpys_least_squares(batchnorm):
    net, groups = conv_chain()
    data = noisy_answers(net, torch.randn(6, 2, 7, 7).double())
    evaluator = Evaluator(net, data, groups, guard=False, refit=True, batchnorm=batchnorm)
    with torch.no_grad():
        inputs = torch.cat([net[:3](x.clone()) for x, _ in data])
        columns = F.unfold(inputs, 3, padding=1).transpose(1, 2).reshape(-1, 54).numpy()
        outputs = net[3](inputs).movedim(1, 3).reshape(-1, 5).numpy()
    for mask in walk(6, 5):
        oracle = masked(net, groups, mask)
        new, shift = fitted(columns, outputs, net[3].weight.detach().flatten(1).numpy(), np.repeat(mask, 9))
        with torch.no_grad():
            oracle[3].weight.copy_(torch.from_numpy(new).reshape(5, 6, 3, 3))
            oracle[4].running_mean -= torch.from_numpy(shift)
        if batchnorm:
            recalibrate_batchnorm(oracle, data)
        wanted = evaluate(oracle, data)["loss"]
        assert evaluator.evaluate([mask])[0] == pytest.approx(wanted, rel=1e-8)
        assert evaluator.score(mask)["loss"] == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize("name", ["shared", "u-net", "grouped", "concatenated", "instance"])
def test_refit_keeps_the_dense_network_and_mends_a_unit_that_others_can_make(name):
    net, data, groups = known(name)
    evaluator = Evaluator(net, data, groups, guard=False, refit=True)
    plain = Evaluator(net, data, groups, guard=False)
    n = count(groups)
    assert evaluator.evaluate(np.ones((1, n)))[0] == pytest.approx(plain.evaluate(np.ones((1, n)))[0], rel=1e-6)
    rows = np.ones((n, n), dtype=bool) & ~np.eye(n, dtype=bool)
    again = Evaluator(net, data, groups, guard=False, refit=True, memory=0)
    np.testing.assert_allclose(evaluator.evaluate(rows), again.evaluate(rows[::-1])[::-1], rtol=1e-5)
    dense = [(x, net(x.clone()).detach()) for x, _ in data]
    mended, broken = (Evaluator(net, dense, groups, guard=False, refit=on).evaluate(rows) for on in (True, False))
    assert mended.mean() < broken.mean()


@pytest.mark.parametrize("name", ["plain", "residual", "concatenated"])
def test_batchnorm_is_recalibrated_for_each_selection(name):
    net, data, groups = known(name)
    evaluator = Evaluator(net, data, groups, guard=False, batchnorm=True)
    for mask in walk(count(groups), 8):
        oracle = recalibrate_batchnorm(masked(net, groups, mask), data)
        wanted = evaluate(oracle, data)["loss"]
        assert evaluator.evaluate([mask])[0] == pytest.approx(wanted, rel=1e-4)
        assert evaluator.score(mask)["loss"] == pytest.approx(wanted, rel=1e-4)


# -- what goes wrong


def test_not_a_number_is_told_and_forgotten():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].bias[0] = float("nan")
    groups = [outs("0", "2", 4)]
    rows = [[False, True, True, True], [True, True, True, True], [False, True, False, True]]
    data = torch.randn(8, 3), torch.randint(0, 2, (8,))
    for objective in ("loss", "metric"):
        values = Evaluator(net, data, groups, guard=False, objective=objective).evaluate(rows)
        assert np.isnan(values).tolist() == [False, True, False]
        wanted = evaluate(masked(net, groups, np.array(rows[2])), data)[objective]
        assert abs(values[2]) == pytest.approx(wanted, rel=1e-5)


def test_errors_say_what_to_do():
    net, groups = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), [outs("0", "1", 4)]
    data = (torch.randn(8, 3), torch.randn(8, 2))
    with pytest.raises(InvalidProblem, match="unknown layer 'other'"):
        Evaluator(net, data, [outs("other", "1", 4)])
    with pytest.raises(InvalidProblem, match="another network"):
        Evaluator(net, data, [outs("0", "1", 6)])
    with pytest.raises(InvalidProblem, match="without targets"):
        Evaluator(net, data[0], groups)
    with pytest.raises(InvalidProblem, match="one for each half"):
        Evaluator(net, (data[0][:1], data[1][:1]), groups)
    with pytest.raises(InvalidProblem, match="objective 'accuracy'"):
        Evaluator(net, data, groups, objective="accuracy")
    with pytest.raises(InvalidProblem, match="no default"):
        Evaluator(net, (data[0], torch.randn(8, 5)), groups)
    with pytest.raises(InvalidProblem, match="device: expected"):
        Evaluator(net, data, groups, device="nowhere")
    with pytest.raises(InvalidProblem, match="X"):
        Evaluator(net, data, groups).evaluate([[True, False]])
    for b in (1, -1, 0.5):
        with pytest.raises(InvalidProblem, match="b: expected a batch, 0 to 0"):
            Evaluator(net, data, groups).evaluate([[True] * 4], b)
    for wrong in (None, [], groups[0], [1]):
        with pytest.raises(InvalidProblem, match="groups: expected one or more Group"):
            Evaluator(net, data, wrong)
    for name, wrong in (
        ("memory", -1), ("memory", None), ("memory", float("nan")), ("dtype", "bfloat16"), ("dtype", torch.int32),
        ("loss", "mse"), ("metric", "accuracy"),
    ):  # fmt: skip
        with pytest.raises(InvalidProblem, match=f"{name}: expected a"):
            Evaluator(net, data, groups, **{name: wrong})
    for value in (None, torch.ones(8, dtype=torch.complex64), torch.ones(3)):
        with pytest.raises(InvalidProblem, match="loss: expected"):
            Evaluator(net, data, groups, loss=lambda outputs, targets, value=value: value)


def test_weights_that_are_computed_are_refused():
    data, groups = (torch.randn(8, 3), torch.randn(8, 2)), [outs("0", "1", 4)]
    build = (nn.utils.parametrizations.weight_norm, lambda layer: prune.random_unstructured(layer, "weight", 0.5))
    for change in build:
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        change(net[1])
        with pytest.raises(InvalidProblem, match="model: 1 computes its weight anew"):
            Evaluator(net, data, groups)
        prune.remove(net[1], "weight") if prune.is_pruned(net) else remove_parametrizations(net[1], "weight")
        wanted = evaluate(masked(net, groups, np.array([True, True, False, True])), data)["loss"]
        found = Evaluator(net, data, groups, guard=False).evaluate([True, True, False, True])
        assert found[0] == pytest.approx(wanted, rel=1e-5)


def test_a_precision_that_the_network_does_not_take():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.b(self.a(x) + torch.ones(4))

    data = (torch.randn(8, 3), torch.randn(8, 1))
    Evaluator(Single(), data, [outs("a", "b", 4)])
    with pytest.raises(InvalidProblem, match="dtype: the network does not run in torch.bfloat16"):
        Evaluator(Single(), data, [outs("a", "b", 4)], dtype=torch.bfloat16)


def test_a_failure_leaves_the_evaluator_in_order():
    net, data, groups = known("residual")
    rows = np.array(list(walk(count(groups), 20)))
    wanted = Evaluator(net, data, groups).evaluate(rows)
    failing = False

    def loss(outputs, targets):
        if failing:
            raise KeyboardInterrupt
        return F.mse_loss(outputs, targets)

    evaluator = Evaluator(net, data, groups, loss=loss)
    evaluator.evaluate(rows[:10])
    failing = True
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(rows[10:])
    failing = False
    np.testing.assert_allclose(evaluator.evaluate(rows), wanted, rtol=1e-6)


class Interrupted(nn.Module):
    left = -1

    def forward(self, x):
        Interrupted.left -= 1
        if Interrupted.left == 0:
            raise KeyboardInterrupt
        return x


@pytest.mark.parametrize("options", [{}, {"refit": True}, {"batchnorm": True}])
def test_an_interruption_anywhere_leaves_the_evaluator_in_order(options):
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), Interrupted(), nn.BatchNorm2d(6), nn.ReLU(inplace=True), Interrupted(),
        nn.Conv2d(6, 4, 3), nn.ReLU(), Interrupted(), nn.Conv2d(4, 1, 1), Interrupted(),
    )  # fmt: skip
    each = np.arange(6)[:, None]
    groups = [Group("0", 6, [("0", "out", each), ("2", "out", each), ("5", "in", each)]), outs("5", "8", 4)]
    data = noisy_answers(net.eval(), torch.randn(8, 1, 6, 6))
    rows = np.array(list(walk(10, 12)))
    wanted = Evaluator(net, data, groups, **options).evaluate(rows)
    evaluator = Evaluator(net, data, groups, **options)
    for after in range(1, 40, 3):
        Interrupted.left = after
        with pytest.raises(KeyboardInterrupt):
            evaluator.evaluate(np.roll(rows, after, axis=0))
        np.testing.assert_allclose(evaluator.evaluate(rows[after % 12 :]), wanted[after % 12 :], rtol=1e-6)
    assert evaluator.counters.skipped > 0 or options == {"batchnorm": True}


def test_threads_take_turns():
    net, data, groups = known("residual")
    rows = np.array(list(walk(count(groups), 12)))
    evaluators = [Evaluator(net, data, groups), Evaluator(net, data, groups, batchnorm=True)]
    wanted = [evaluator.evaluate(rows) for evaluator in evaluators]
    orders = [np.random.default_rng(i).permutation(12) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: evaluators[i % 2].evaluate(rows[orders[i]]), range(6)))
    for i, values in enumerate(found):
        np.testing.assert_allclose(values, wanted[i % 2][orders[i]], rtol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda evaluator: pickle.loads(pickle.dumps(evaluator))])
def test_copies_go_their_own_way(copied):
    net, data, groups = known("residual")
    rows = np.array(list(walk(count(groups), 20)))
    evaluator = Evaluator(net, data, groups, refit=True)
    wanted = evaluator.evaluate(rows)
    other = copied(evaluator)
    before = other.counters.masks
    evaluator.evaluate(rows[:1])
    np.testing.assert_allclose(other.evaluate(rows), wanted, rtol=1e-6)
    np.testing.assert_allclose(evaluator.evaluate(rows[::-1]), wanted[::-1], rtol=1e-6)
    assert other.counters.masks == pytest.approx(before + len(rows))
