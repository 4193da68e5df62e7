"""Rounds with a pruner of the test's own and scripted metrics: who is trained, at what rate, and what is left."""

from __future__ import annotations

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunesolve.bridges.torch.data import Batches
from prunesolve.bridges.torch.evaluate import evaluate
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.masks import apply_masks
from prunesolve.bridges.torch.rounds import Rate, prune_and_tune
from prunesolve.bridges.torch.shrink import shrink
from prunesolve.problems import InvalidProblem, Selection


class Net(nn.Module):
    """conv1 - bn1 - conv2 - bn2 - head, 8 + 6 units; (B, 1, 6, 6) -> (B, 3)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def data(count=24):
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 3


class Pruner:
    """Drops units at random, every group keeping one; remembers what it was given and what it gave."""

    def __init__(self, seed=0):
        self.rng, self.given, self.gave = np.random.default_rng(seed), [], []

    def __call__(self, network, seen, *, keep, layers, seed):
        example = Batches(seen).example()
        groups = find_groups(network, example, layers=layers).groups
        first = np.concatenate([np.arange(g.size) == self.rng.integers(g.size) for g in groups])
        chosen = np.lexsort((self.rng.random(len(first)), ~first))[:keep]
        selection = Selection(groups, np.isin(np.arange(len(first)), chosen))
        self.given.append(network)
        self.gave.append(shrink(network, selection, example))
        return SimpleNamespace(model=self.gave[-1], selection=selection)


def scripted(*values):
    """A metric that tells these values, one an evaluation: dense, then after every pruning and training."""
    left = list(values)

    def metric(outputs, targets):
        return left.pop(0)

    return metric


def run(prune=None, **options):
    options = {"keep": 6, "steps": 4, "threshold": 1.0} | options
    return prune_and_tune(options.pop("model", net()), data(), prune=prune or Pruner(), **options)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("steps", [1, 3])
def test_units_are_the_original_ones_composed_over_the_rounds(seed, steps):
    """Untuned, the smaller network is the original one masked; weights carry their original channel's number."""
    model = net()
    with torch.no_grad():
        model.conv1.weight[:] = torch.arange(8.0)[:, None, None, None] + 1
    out = run(Pruner(seed), model=model, steps=steps, threshold=math.inf, keep=5)
    assert not any(r.tuned for r in out.rounds)
    marks = (out.model.conv1.weight[:, 0, 0, 0] - 1).long().tolist()
    assert out.selection.kept["conv1"] == marks
    assert len(out.rounds) == steps
    assert out.selection.keep.sum() == out.rounds[-1].units == 5
    masked = apply_masks(copy.deepcopy(model), out.masks)
    torch.testing.assert_close(out.model(data()[0]), masked(data()[0]), rtol=1e-4, atol=1e-5)
    assert out.model.prunesolve_kept["conv1"]["out"] == marks


def test_steps_go_down_evenly_and_end_at_what_was_asked():
    out = run(keep=0.5, steps=3, threshold=1e9)
    assert [r.units for r in out.rounds] == [12, 9, 7]  # of 14: 14 - 7 t / 3
    assert out.report["units"] == [7, 14]
    assert [sum(kept for kept, _ in r.layers.values()) for r in out.rounds] == [12, 9, 7]
    assert out.report["params"][0] == sum(p.numel() for p in out.model.parameters())
    assert out.rounds[-1].params == out.report["params"][0] / out.report["params"][1]
    assert [r.units for r in run(keep=12, steps=5, threshold=1e9).rounds] == [13, 12]  # empty steps are left out


def test_training_starts_only_below_the_threshold():
    """90 dense; a fall of exactly 1 is none too much, 1 1/8 is; measured from the dense one, not the last round."""
    told = scripted(90.0, 89.0, 88.875, 91.0, 90.5, 88.0, 88.5)
    out = run(metric=told)
    assert [r.tuned for r in out.rounds] == [False, True, False, True]
    assert [(r.before, r.pruned, r.after) for r in out.rounds] == [
        (90.0, 89.0, 89.0),
        (89.0, 88.875, 91.0),
        (91.0, 90.5, 90.5),
        (90.5, 88.0, 88.5),
    ]
    assert [r.lr is not None for r in out.rounds] == [False, True, False, True]


def test_a_round_that_is_not_trained_keeps_its_weights():
    prune = Pruner()
    out = run(prune, metric=scripted(90.0, 89.5, 10.0, 10.0, 89.5, 89.5))
    for pruned, after, told in zip(prune.gave, [*prune.given[1:], out.model], out.rounds, strict=True):
        one, other = pruned.state_dict(), after.state_dict()
        assert all(torch.equal(one[n], other[n]) for n in one) != told.tuned


@pytest.mark.parametrize(("reached", "undone"), [(79.0, True), (math.nan, True), (80.0, False), (81.0, False)])
def test_a_training_that_makes_it_worse_is_taken_back(reached, undone):
    prune = Pruner()
    out = run(prune, metric=scripted(90.0, 80.0, reached), steps=1)
    assert out.rounds[0].tuned
    assert out.rounds[0].undone == undone
    assert out.rounds[0].after == (80.0 if undone else reached)
    one, other = prune.gave[0].state_dict(), out.model.state_dict()
    assert all(torch.equal(one[n], other[n]) for n in one) == undone
    assert ("is undone" in str(out)) == undone
    assert out.report["rounds"][0]["undone"] == undone


def test_a_metric_that_is_no_number_is_trained_and_told_as_none():
    out = run(metric=scripted(90.0, float("nan"), 90.0), steps=1)
    assert out.rounds[0].tuned
    assert out.report["rounds"][0]["pruned"] is None


def test_where_only_the_loss_is_there_a_rise_counts():
    def loss(outputs, targets):
        return (outputs.mean(1) - targets).square()

    x, _ = data()
    wanted = net()(x).mean(1).detach()  # the dense network is without fault, every pruned one is not
    model, asked = net(), {"keep": 6, "steps": 2, "loss": loss, "teacher": False, "prune": Pruner()}
    low = prune_and_tune(model, (x, wanted), threshold=1e-6, lr=1e-3, **asked)
    assert low.report["metric_name"] == "loss"
    assert all(r.tuned for r in low.rounds)
    assert not any(
        r.tuned for r in prune_and_tune(model, (x, wanted), threshold=1e6, **asked | {"prune": Pruner()}).rounds
    )


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_from_the_second_training_on_what_changed_least_is_frozen_bit_by_bit(share):
    prune = Pruner()
    out = run(prune, metric=scripted(90.0, *[10.0] * 8), frozen=share, lr=0.05)
    tuned = [*prune.given[1:], out.model]
    layers, norm_of = ["conv1", "conv2", "head"], {"conv1": "bn1", "conv2": "bn2"}
    size = lambda m, path: float(m.get_submodule(path).weight.detach().abs().sum())  # noqa: E731
    change = {p: abs(size(tuned[0], p) - size(prune.gave[0], p)) / size(prune.gave[0], p) for p in layers}
    least = sorted(layers, key=change.get)[: int(share * 3)]
    expected = [p for layer in least for p in (layer, norm_of.get(layer)) if p]
    assert [r.frozen for r in out.rounds] == [(), *[tuple(expected)] * 3]
    for pruned, after, told in zip(prune.gave, tuned, out.rounds, strict=True):
        before, now = pruned.state_dict(), after.state_dict()
        for name in before:
            held = name.rpartition(".")[0] in told.frozen
            assert torch.equal(before[name], now[name]) == held, name


def test_the_rate_follows_what_remains():
    asked = []
    out = run(metric=scripted(90.0, *[10.0] * 8), lr=lambda x: asked.append(x) or 0.01 * x)
    assert asked == [r.params for r in out.rounds]
    assert [r.lr for r in out.rounds] == [0.01 * r.params for r in out.rounds]
    out = run(metric=scripted(90.0, *[10.0] * 8))
    assert [r.lr for r in out.rounds] == [Rate()(r.params) for r in out.rounds]


@given(st.floats(0.01, 0.99), st.floats(0.05, 0.9), st.sampled_from([40.0, 50.0, 60.0]))
def test_the_rate_is_the_published_formula(x, p, beta):
    rate = Rate(0.005, 7e-4, p, beta)
    assert 0.005 - 7e-4 - 1e-12 <= rate(x) <= 0.005
    if x < 2 * (1 - p) - 1e-3:
        ratio = np.longdouble(x) / (2 * (1 - np.longdouble(p)) - np.longdouble(x))
        assert rate(x) == pytest.approx(float(0.005 - 7e-4 / (1 + ratio ** np.longdouble(beta))), abs=1e-12)
    else:
        assert rate(x) == pytest.approx(0.005, abs=1e-9)


def test_the_same_seed_gives_the_same_network():
    runs = [run(Pruner(3), metric=scripted(90.0, *[10.0] * 8), seed=s).model.state_dict() for s in (1, 1, 2)]
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])
    assert not all(torch.equal(runs[0][n], runs[2][n]) for n in runs[0])


def test_the_original_stays_and_the_report_is_json():
    model = net()
    model.bn1.train()
    before = copy.deepcopy(model.state_dict())
    out = run(model=model, threshold=0.0, metric=scripted(90.0, *[10.0] * 8))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert model.bn1.training
    assert out.model.bn1.training
    told = json.loads(json.dumps(out.report, allow_nan=False))
    assert [r["tuned"] for r in told["rounds"]] == [True] * 4
    assert "round 4" in str(out)


def test_judged_and_calibrated_on_what_was_handed_in():
    class Watched(Pruner):
        def __call__(self, network, seen, **options):
            seen_shapes.append(len(Batches(seen).example(100)))
            return super().__call__(network, seen, **options)

    seen_shapes, judged = [], []
    x, y = data()
    prune_and_tune(
        net(), (x, y), keep=10, steps=1, prune=Watched(), calibration=(x[:5], y[:5]), judge=(x[:7], y[:7]),
        metric=lambda o, t: judged.append(len(o)) or 1.0,
    )  # fmt: skip
    assert seen_shapes == [5]
    assert judged == [7, 7]


def test_training_between_rounds_brings_accuracy_back():
    """Blobs of three classes: at the same four units the tuned network beats the untuned one."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(300) % 3
    inputs = 2 * torch.randn(3, 8, generator=generator)[targets] + torch.randn(300, 8, generator=generator)
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimiser = torch.optim.Adam(dense.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(dense(inputs), targets).backward()
        optimiser.step()
    asked = {"keep": 4, "steps": 3, "lr": 0.1, "epochs": 4, "frozen": 0.0}
    tuned, untuned = (
        prune_and_tune(dense, (inputs, targets), prune=Pruner(1), threshold=t, **asked) for t in (0.5, 1e9)
    )
    scores = [evaluate(m, (inputs, targets))["metric"] for m in (dense, tuned.model, untuned.model)]
    assert scores[0] > 95
    assert scores[2] < 90
    assert scores[1] > scores[2] + 5
    assert tuned.rounds[-1].after == pytest.approx(scores[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": -1.0}, "threshold"),
        ({"frozen": 1.0}, "frozen"),
        ({"steps": 0}, "steps: expected at least 1"),
        ({"epochs": 0}, "epochs: expected at least 1"),
        ({"keep": 99}, "99"),
        ({"lr": "fast"}, "lr: expected numbers"),
    ],
)
def test_nonsense_is_refused_in_words(options, words):
    with pytest.raises(InvalidProblem, match=words):
        run(**options)


def test_a_pruner_of_other_units_is_refused():
    class Wrong(Pruner):
        def __call__(self, network, seen, **options):
            return super().__call__(net(), seen, **options)  # the original, not what is left of it

    with pytest.raises(InvalidProblem, match="none of them"):
        run(Wrong(), threshold=1e9)
