from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesolve.bridges.torch._stages import Stages
from prunesolve.bridges.torch.costs import count
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.levels import Levels
from prunesolve.bridges.torch.masks import apply_masks, masks
from prunesolve.bridges.torch.subnetworks import Subnetworks, removal_path
from prunesolve.problems import InvalidProblem, Selection
from prunesolve.solvers.emo_dir import EmoDir

from .networks import make


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@functools.cache
def example(name):
    """A network, four batches with classes as targets, its units."""
    net, x = make(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        inputs = torch.randn(16, *x.shape[1:])
    with torch.no_grad():
        classes = net(inputs.clone()).argmax(1)
    return net, list(zip(inputs.split(4), classes.split(4), strict=True)), find_groups(net, x).groups


def split(name="option-a", **options):
    net, data, groups = example(name)
    return Subnetworks(net, data, groups, **options)


def some(n, share=0.7, seed=0):
    keep = np.random.default_rng(seed).random(n) < share
    keep[:1] = True
    return keep


# -- where it is split


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("option-a", ["one", "two", "three"]),
        ("residual", ["blocks", "last"]),
        ("plain", ["1", "2", "4", "5", "7"]),
        ("u-net", []),
    ],
)
def test_boundaries_are_where_the_shape_changes(name, expected):
    net, x = make(name)
    assert [boundary.path for boundary in Stages.of(net, x).found(slice(None))] == expected


def test_parts_hold_what_lies_between_boundaries():
    found = split()
    assert [part.name for part in found.parts] == ["one", "two", ""]
    assert [[g.name for g in part.groups] for part in found.parts] == [
        ["one.first.0"],
        ["two.conv1.0"],
        ["three.conv1.0"],
    ]
    assert found.n == 16 + 32 + 64
    # the residual streams, tied across the stages, stay
    assert all("cross the boundary" in reason for reason in found.excluded.values())


def test_what_holds_no_unit_joins_its_neighbour():
    with_all, without = split(), split(boundaries=["one"])
    assert [part.name for part in without.parts] == ["one", ""]
    net, data, groups = example("option-a")
    last = Subnetworks(net, data, [g for g in groups if not g.name.startswith("one")])
    assert [part.name for part in last.parts] == ["two", ""]
    assert with_all.n == without.n


@pytest.mark.parametrize(
    ("boundaries", "words"),
    [
        (
            ["one.first"],
            "split behind 'one.first' cuts a residual: add in 'one' reads behind it what relu in the network's",
        ),
        (["two.conv2"], r"cuts a residual: __getitem__ in 'two' reads behind it .* such as 'two'"),
        (["tow"], "unknown module to split behind 'tow': did you mean 'two'"),
        (["stem"], "part that ends at stem holds no unit"),
        ([], "expected at least one module to split behind"),
    ],
)
def test_a_split_that_cannot_be_is_refused(boundaries, words):
    with pytest.raises(InvalidProblem, match=words):
        split(boundaries=boundaries)


class Skipping(nn.Module):
    """The input itself is read again at the end, and one layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return x - self.head(F.relu(self.b(F.relu(self.b(self.a(x))))))


def test_the_network_s_input_is_a_residual_too():
    stages = Stages.of(Skipping(), torch.randn(1, 2, 3, 3))
    with pytest.raises(
        InvalidProblem, match="sub in the network's own forward reads behind it what the network's input"
    ):
        stages.given(["a"])
    with pytest.raises(InvalidProblem, match="'b': it runs 2 times"):
        stages.given(["b"])


def test_a_network_of_one_stage_asks_for_boundaries():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1))
    with pytest.raises(InvalidProblem, match="name the modules to split behind"):
        Subnetworks(net, (torch.randn(4, 1, 5, 5), torch.randn(4, 4, 5, 5)))


# -- what a part loses and costs


def features(model, x, path):
    seen = []
    handle = model.get_submodule(path).register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    with torch.no_grad():
        answer = model(x.clone())
    handle.remove()
    return seen[0], answer


def distance(made, dense):
    return ((made - dense) ** 2).mean() / (dense**2).mean()


@pytest.mark.parametrize("part", [0, 1, 2])
def test_the_error_of_a_part_is_its_definition(part):
    net, data, _ = example("option-a")
    found = split()
    keep = some(found.n, seed=3)
    reference = Selection(found.groups, keep)
    found = split(gamma=0.7, cross=reference, gamma_cross=1.3)
    own = some(found.parts[part].n, seed=4)
    got = found.composite(starts=0).parts[part].values(own)[0]

    x, y = torch.cat([a for a, _ in data]), torch.cat([b for _, b in data])
    whole = np.ones(found.n, dtype=bool)
    whole[found.span(part)] = own
    pruned = apply_masks(copy.deepcopy(net), masks(Selection(found.groups, whole), net))
    before = keep.copy()
    before[found.span(part).start :] = True
    crossed = before.copy()
    crossed[found.span(part)] = own
    behind = apply_masks(copy.deepcopy(net), masks(Selection(found.groups, crossed), net))
    end = found.parts[part].name
    made, answer = features(pruned, x, end)
    dense, _ = features(net, x, end)
    expected = F.cross_entropy(answer, y) + 0.7 * distance(made, dense)
    if part:
        expected += 1.3 * distance(features(behind, x, end)[0], dense)
    assert got == pytest.approx(float(expected), rel=1e-4)


def test_the_joint_error_is_the_masked_network_s_loss():
    net, data, _ = example("option-a")
    found = split()
    joint = found.composite(starts=0).joint
    for seed in range(3):
        keep = some(found.n, seed=seed)
        pruned = apply_masks(copy.deepcopy(net), masks(Selection(found.groups, keep), net))
        with torch.no_grad():
            losses = [float(F.cross_entropy(pruned(x.clone()), y)) for x, y in data]
        assert joint.values(keep)[0] == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("resource", ["params", "macs"])
def test_costs_are_those_of_the_removed_network(resource):
    net, data, _ = example("option-a")
    found = split(resource=resource)
    composite = found.composite(starts=0)
    for seed in range(3):
        keep = some(found.n, seed=seed)
        for part in range(3):
            keep[found.span(part).start] = True
        removed = count(found.network(keep), data[0][0])[resource]
        assert composite.joint.values(keep)[1] == removed
        each = [composite.parts[s].values(keep[found.span(s)])[1] for s in range(3)]
        assert sum(each) == removed


def test_evaluations_of_a_late_part_do_not_run_what_comes_before_it():
    found = split()
    last = found.composite(starts=0).parts[2].evaluate.judges[0]
    base = np.ones((1, found.parts[2].n), dtype=bool)
    rows = np.repeat(base, 40, axis=0)
    rows[np.arange(40), np.arange(40)] = False
    last.evaluate(rows)
    # of about twenty layers all but the last block's are answered from memory once that pays
    assert last.counters.skipped > 0.4 * last.counters.layers


def test_every_point_to_begin_with_keeps_the_minimum():
    found = split(minimum=3)
    problem = found.composite(starts=7)
    for part in (*problem.parts, problem.joint):
        kept = np.stack([part.starts[:, part.groups == g].sum(1) for g in np.unique(part.groups)], axis=1)
        assert part.starts[0].all() or part.starts[-1].all()
        assert kept.min() == 3
        assert len(part.starts) == 7
    assert not problem.parts[0].is_feasible(np.arange(16) < 2)


def test_the_removal_path_drops_the_least_worth_per_cost_first():
    found = split(boundaries=["one"])
    part = found.parts[0]
    worth = np.random.default_rng(0).random(part.n)
    path = removal_path(worth, found.cost(0), np.zeros(part.n, int), 1, part.n)
    gone = [int(np.flatnonzero(a & ~b)[0]) for a, b in zip(path, path[1:], strict=False)]
    # every unit of one group costs the same
    assert gone == np.argsort(worth)[:-1].tolist()


# -- what comes of it


@pytest.mark.slow
def test_emo_dir_on_a_network_and_in_workers():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    x = torch.randn(12, 1, 6, 6)
    with torch.no_grad():
        data = x, net(x).argmax(1)
    found = Subnetworks(net, data, boundaries=["3"])
    composite = found.composite(reference=[3.0, 200.0])
    runs = [EmoDir(workers=workers).solve(composite, seed=1, evaluation_limit=80) for workers in (0, 2)]
    assert np.array_equal(runs[0].front.solutions, runs[1].front.solutions)
    assert runs[0].evaluations == runs[1].evaluations <= 80
    judged = found.composite(starts=0).joint.values(runs[0].front.solutions)
    assert np.allclose(judged, runs[0].front.objectives, rtol=1e-4)


def test_a_composite_of_levels_restricts_the_stitched_network():
    net, data, _ = example("option-a")
    found = split()
    levels = Levels.build(net, data, found.groups, levels=4, progress=False)
    composite = found.level_composite(levels)
    rows = np.stack([some(3, seed=s) * np.array([3, 2, 1]) for s in range(4)])
    joint = composite.joint.values(rows)
    assert np.allclose(joint, levels.multi_objective(data, ("loss", "params"), guard=False).values(rows), rtol=1e-5)
    for s in range(3):
        own = np.arange(4)[:, None]
        assert np.array_equal(composite.parts[s].values(own), composite.joint.values(composite.placed(s, own)))
    with pytest.raises(InvalidProblem, match="levels: expected the groups of these sub-networks"):
        found.level_composite(Levels.build(net, data, found.groups[:2], levels=2, progress=False))


def test_training_a_part_lowers_its_error_and_leaves_the_rest_alone():
    net, data, _ = example("option-a")
    found = split()
    found = split(cross=Selection(found.groups, some(found.n, 0.8)), gamma=0.5)
    keep = some(found.parts[1].n, 0.5, seed=5)
    weights = found.trained(1, keep, steps=40, rate=3e-3)
    assert set(weights) == {k for k in net.state_dict() if k.startswith("two.")}
    whole = np.ones(found.n, dtype=bool)
    whole[found.span(1)] = keep

    def loss(model):
        with torch.no_grad():
            return float(np.mean([float(F.cross_entropy(model(x.clone()), y)) for x, y in data]))

    assert loss(found.network(whole, [weights])) < loss(found.network(whole))
    assert not weights["two.conv1.0.weight"][~torch.from_numpy(keep)].any()
    again = found.trained(1, keep, steps=40, rate=3e-3)
    assert all(torch.equal(weights[k], again[k]) for k in weights)


def test_a_composite_survives_pickling():
    composite = split().composite(starts=3)
    again = pickle.loads(pickle.dumps(composite))
    for one, other in zip((*composite.parts, composite.joint), (*again.parts, again.joint), strict=True):
        assert np.allclose(one.values(one.starts), other.values(one.starts), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma": -1.0}, "gamma: expected a number >= 0"),
        ({"gamma_cross": np.nan}, "gamma_cross: expected a number >= 0"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(InvalidProblem, match=words):
        split(**options)
