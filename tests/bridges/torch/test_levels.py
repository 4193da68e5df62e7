from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesolve import solvers
from prunesolve.bridges.torch._mapped import read_mapped
from prunesolve.bridges.torch.costs import count
from prunesolve.bridges.torch.evaluate import evaluate
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.levels import Levels
from prunesolve.bridges.torch.memory import _live
from prunesolve.problems import Group, InvalidProblem
from prunesolve.problems.level_choice import LevelChoice

from .networks import NETWORKS, make


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# as ResNet-20, a VGG, a DenseNet, and what else couples channels
LIKE = ["option-a", "plain", "concatenated", "residual", "separable", "grouped", "u-net", "shared", "halves", "mlp"]


@functools.cache
def built(name):
    net, x = make(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        inputs = torch.randn(24, *x.shape[1:])
        with torch.no_grad():
            answers = net(inputs.clone())
        data = list(zip(inputs.split(10), (answers + 0.3 * torch.randn(answers.shape)).split(10), strict=True))
    return net, data, Levels.build(net, data, find_groups(net, x).groups, levels=4)


def tuples(levels, rows, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([[rng.integers(len(k)) for k in levels.keep] for _ in range(rows)])


# -- levels


def test_counts_are_one_and_equal_steps_up_to_all():
    net = nn.Sequential(nn.Linear(3, 32), nn.Linear(32, 5), nn.Linear(5, 16), nn.Linear(16, 1))
    levels = Levels.build(net, torch.randn(64, 3))
    assert levels.counts[0].tolist() == [1, *range(4, 33, 2)]
    assert levels.counts[1].tolist() == [1, 2, 3, 4, 5]
    assert levels.counts[2].tolist() == list(range(1, 17))


def test_levels_are_nested_and_errors_fall_to_zero():
    for name in LIKE:
        levels = built(name)[2]
        for keep, error in zip(levels.keep, levels.error, strict=True):
            assert (keep[:-1] <= keep[1:]).all()
            assert keep[-1].all()
            assert error[-1] == 0.0
            assert (np.diff(error) <= 1e-9).all()


def test_given_counts_and_none_kept():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    levels = Levels.build(net, torch.randn(64, 3), counts={"0": [6, 0, 2]})
    assert levels.counts[0].tolist() == [0, 2, 6]
    # all that varies is lost
    assert levels.error[0][0] == pytest.approx(1.0)


def test_uniform_takes_the_nearest_counts():
    levels = built("option-a")[2]
    assert levels.uniform(1.0).tolist() == levels.dense.tolist()
    for share in (0.1, 0.5, 0.8):
        for c, s in zip(levels.counts, levels.uniform(share), strict=True):
            assert abs(c[s] - share * c[-1]) == np.abs(c - share * c[-1]).min()


# -- weights


def by_lstsq(inputs, outputs, kept, weights, ridge, intercept=True):
    """W, b on the kept columns of inputs (N, d), pulled to weights (o, d), by numpy's least squares."""
    x, start = inputs[:, kept], weights[:, kept]
    pull = ridge * np.var(x, axis=0).mean() * len(x)
    rows = np.column_stack([x, np.ones(len(x))]) if intercept else x
    extra = np.sqrt(pull) * np.eye(rows.shape[1])[: x.shape[1]]
    found = np.linalg.lstsq(np.vstack([rows, extra]), np.vstack([outputs, np.sqrt(pull) * start.T]), rcond=None)[0]
    return found[: x.shape[1]].T, found[-1]


def test_linear_layers_are_fitted_as_numpy_fits_them():
    net, data, levels = built("mlp")
    chosen = np.array([1, 2])
    smaller, inputs = levels.network(chosen), torch.cat([x for x, _ in data])
    with torch.no_grad():
        hidden = F.relu(net[0](inputs))
        hidden, wanted = hidden.double().numpy(), net[2](hidden).double().numpy()
    kept, out = levels.keep[0][1], levels.keep[1][2]
    weight, bias = by_lstsq(hidden, wanted, kept, net[2].weight.detach().double().numpy(), 1e-3)
    np.testing.assert_allclose(smaller[2].weight.detach(), weight[out], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(smaller[2].bias.detach(), bias[out], rtol=1e-4, atol=1e-5)


def test_convolutions_before_batchnorm_are_fitted_as_numpy_fits_them():
    """The intercept goes into the norm's running mean."""
    net, data, levels = built("residual")
    at = levels.labels.index("blocks.0.first.0")
    chosen = levels.dense.copy()
    chosen[at] = 1
    smaller, kept = levels.network(chosen), levels.keep[at][1]
    block, fitted = net.blocks[0], levels.network(chosen).blocks[0]
    with torch.no_grad():
        x = F.relu(block.first(F.relu(net.stem(torch.cat([x for x, _ in data])))))
        wanted = block.second[0](x).movedim(1, -1).flatten(0, -2).double().numpy()
        columns = F.unfold(x, 3, padding=1).movedim(1, -1).flatten(0, 1).double().numpy()
    dense = block.second[0].weight.detach().double().flatten(1).numpy()
    weight, bias = by_lstsq(columns, wanted, np.repeat(kept, 9), dense, 1e-3)
    np.testing.assert_allclose(fitted.second[0].weight.detach().flatten(1), weight, rtol=1e-3, atol=1e-5)
    shift = block.second[1].running_mean - fitted.second[1].running_mean
    np.testing.assert_allclose(shift, bias, rtol=1e-3, atol=1e-5)
    assert smaller.blocks[0].first[0].out_channels == levels.counts[at][1]


def seen(net, path, data):
    """What a layer gives on the data, its BatchNorm behind it where there is one, channels last (N, o)."""
    found = []
    handle = net.get_submodule(path).register_forward_hook(lambda _m, _i, out: found.append(out.clone()))
    with torch.no_grad():
        for x, _ in data:
            net(x.clone())
    handle.remove()
    outputs = torch.cat(found)
    return (outputs.movedim(1, -1).flatten(0, -2) if outputs.ndim > 2 else outputs).double().numpy()


# {group: where the output of its only reader is seen, its BatchNorm behind it}
SEEN = {
    "mlp": {"0": "2", "2": "4"},
    "plain": {"0.0": "3", "3": "6", "6": "8"},
    "residual": {"blocks.0.first.0": "blocks.0.second.1", "last.first.0": "last.second.1"},
    "grouped": {"grouped.0": "leave"},
}


@pytest.mark.parametrize("name", list(SEEN))
def test_error_is_what_is_measured_on_the_data(name):
    net, data, levels = built(name)
    for group, path in SEEN[name].items():
        at = levels.labels.index(group)
        y = seen(net, path, data)
        for level, error in enumerate(levels.error[at][:-1]):
            chosen = levels.dense.copy()
            chosen[at] = level
            lost = np.square(y - seen(levels.network(chosen), path, data)).sum()
            assert error == pytest.approx(lost / np.square(y - y.mean(0)).sum(), rel=1e-3)


def test_readers_of_a_group_add_their_errors():
    net, data, levels = built("concatenated")
    # the stem is read by both convolutions and the head, as their first six inputs behind other norms
    at = levels.labels.index("stem")
    chosen = levels.dense.copy()
    chosen[at] = 1
    total = 0.0
    for path in ("convs.0", "convs.1", "head"):
        layer, fitted = net.get_submodule(path), levels._network.refit(path, kept_inputs(levels, path, chosen))
        inputs = reads(net, path, data)
        y = layer(inputs)
        with torch.no_grad():
            if isinstance(layer, nn.Conv2d):
                again = F.conv2d(inputs, fitted["weight"], layer.bias, padding=1)
                y, again = (t.movedim(1, -1).flatten(0, -2) for t in (y, again))
                # no bias and no norm behind: the fit has no intercept
                total += float((y - again).square().sum() / y.square().sum())
            else:
                again = F.linear(inputs, fitted["weight"], fitted["bias"])
                total += float((y - again).square().sum() / (y - y.mean(0)).square().sum())
    # the head's inputs are means that hardly vary, in single precision
    assert levels.error[at][1] == pytest.approx(total, rel=1e-2)


def reads(net, path, data):
    found = []
    handle = net.get_submodule(path).register_forward_pre_hook(lambda _m, args: found.append(args[0].clone()))
    with torch.no_grad():
        for x, _ in data:
            net(x.clone())
    handle.remove()
    return torch.cat(found)


def kept_inputs(levels, path, chosen):
    kept = None
    for group, keep in levels.selection(chosen):
        for member in group.members:
            if (member.path, member.axis) == (path, "in"):
                kept = torch.ones(int(member.channels.max()) + 20, dtype=torch.bool) if kept is None else kept
                kept[torch.from_numpy(member.channels[~keep].ravel().copy())] = False
    layer = levels._network.base.get_submodule(path)
    return kept[: layer.weight.shape[1]]


def test_readers_too_wide_to_refit_keep_their_weights(monkeypatch):
    monkeypatch.setattr("prunesolve.bridges.torch._dense_refit._WIDE", 7)
    net, data, _ = built("mlp")
    levels = Levels.build(net, data, levels=4)
    assert list(levels._network.refit.layers) == ["4"]
    at, chosen = 0, levels.dense.copy()
    chosen[at] = 1
    kept = levels.keep[at][1]
    smaller = levels.network(chosen)
    torch.testing.assert_close(smaller[2].weight, net[2].weight[:, kept])
    lost = seen(net, "2", data) - seen(smaller, "2", data)
    energy = np.square(seen(net, "2", data) - net[2].bias.detach().double().numpy()).sum()
    assert levels.error[at][1] == pytest.approx(np.square(lost).sum() / energy, rel=1e-4)


# -- costs


@pytest.mark.parametrize("name", LIKE)
def test_spent_is_counted_on_the_smaller_network(name):
    net, data, levels = built(name)
    choices = {r: levels.choice(r) for r in ("params", "macs")}
    for row in tuples(levels, 6):
        counted = count(levels.network(row), data[0][0])
        assert {r: choice.spent(row) for r, choice in choices.items()} == pytest.approx(counted)
    dense = count(net, data[0][0])
    assert {r: levels.total(r) for r in choices} == pytest.approx(dense)


def test_budgets_are_shares_or_numbers():
    levels = built("option-a")[2]
    total = levels.total("params")
    assert levels.choice("params").budget == total
    assert levels.choice("params", 0.5).budget == 0.5 * total
    assert levels.choice("params", int(total) - 100).budget == total - 100
    with pytest.raises(InvalidProblem, match="cannot be met"):
        levels.choice("params", 10)
    with pytest.raises(InvalidProblem, match=r"did you mean 'params'\?"):
        levels.choice("param")


def test_memory_and_latency_are_choices_too():
    net, data, levels = built("residual")
    memory = levels.choice("memory", 0.9)
    assert memory.total == "max"
    assert memory.budget == pytest.approx(0.9 * memory.spent(levels.dense))
    levels.time(data[0][0][:1], grid=2, seconds=1e-4)
    assert levels.choice("latency").spent(levels.dense) == pytest.approx(levels.total("latency"))


# -- true losses


@pytest.mark.parametrize("name", ["option-a", "plain", "concatenated", "separable", "u-net", "grouped"])
def test_black_box_values_are_those_of_the_networks(name):
    net, data, levels = built(name)
    box = levels.black_box(data, "params")
    assert isinstance(box.space, LevelChoice)
    assert box.weights.tolist() == [10, 10, 4]
    for row in tuples(levels, 4, seed=1):
        smaller = levels.network(row)
        assert box.value(row) == pytest.approx(evaluate(smaller, data)["loss"], rel=1e-3)
        first = evaluate(smaller, data[:1])["loss"]
        assert box.partial(row[None], [0])[0] == pytest.approx(first, rel=1e-3)
    assert box.value(levels.dense) == pytest.approx(evaluate(net, data)["loss"], rel=1e-3)


def test_metrics_are_minimised_as_their_negatives():
    net, data, levels = built("mlp")
    row = levels.uniform(0.5)
    told = evaluate(levels.network(row), data)
    assert told["metric_name"] == "psnr"
    assert levels.black_box(data, objective="metric").value(row) == pytest.approx(-told["metric"], rel=1e-4)


def test_refitting_helps():
    net, data, levels = built("option-a")
    row = levels.uniform(0.5)
    plain = levels.evaluator(data, memory=0)
    masked = type(plain)(levels._network.base, data, levels._network.base_groups, guard=False)
    bits = levels.bits(row)
    assert plain.evaluate(bits)[0] < masked.evaluate(bits)[0]


def test_losses_of_single_layers():
    net, data, levels = built("mlp")
    losses, box = levels.losses(data), levels.black_box(data)
    row = levels.dense.copy()
    row[1] = 0
    assert losses[1][0] == pytest.approx(box.value(row) - box.value(levels.dense))
    assert losses[0][-1] == 0.0
    assert levels.choice("params", error=losses).value(row) == pytest.approx(losses[1][0])


def test_several_objectives():
    net, data, levels = built("option-a")
    problem = levels.multi_objective(data, ("loss", "params", "macs"))
    rows = tuples(levels, 3)
    values = problem.values(rows)
    np.testing.assert_allclose(values[:, 0], levels.black_box(data).value(rows))
    np.testing.assert_allclose(values[:, 1:], [list(count(levels.network(r), data[0][0]).values()) for r in rows])
    starts = {tuple(row) for row in problem.starts}
    assert {tuple(levels.uniform(share)) for share in (0.25, 0.5, 1.0)} <= starts
    assert problem.is_feasible(rows).all()
    assert problem.groups.tolist() == list(range(levels.n))
    with pytest.raises(InvalidProblem, match="a cost among them"):
        levels.multi_objective(data, ("loss", "metric"))


def test_peak_memory_as_an_objective_is_exact_where_a_table_is_not():
    net, data, levels = built("concatenated")
    assert not levels.choice("memory").meta["cost"]["exact"]
    problem = levels.multi_objective(data, ("loss", "memory"))
    for row in tuples(levels, 3):
        true = _live(levels.network(row), (data[0][0][:1].clone(),)).max()
        assert problem.values(row)[1] == pytest.approx(true)


def test_the_front_of_a_solver_joins_the_starts():
    net, data, levels = built("option-a")
    problem = levels.multi_objective(data, solver=solvers.get("dynamic-programming", front=True), starts=8)
    assert len(problem.starts) > 8
    uniform = {tuple(levels.uniform(share)) for share in np.linspace(0, 1, 9)[1:]}
    fronts = [row for row in problem.starts if tuple(row) not in uniform]
    choice = levels.choice("params")
    assert not choice.is_chain
    # spread from small to dense, though layers that are no neighbours cost together
    assert choice.spent(fronts).min() < 0.3 * choice.budget


def test_a_budget_bounds_the_space_and_its_starts():
    net, data, levels = built("option-a")
    front, error = solvers.get("dynamic-programming", front=True), levels.losses(data)
    problem = levels.multi_objective(data, budget=0.6, error=error, solver=front)
    dense = levels.choice("params").budget
    assert problem.space.budget == pytest.approx(0.6 * dense)
    assert len(problem.starts)
    assert not problem.is_feasible(levels.dense)
    assert max(problem.space.spent(problem.starts)) <= 0.6 * dense
    np.testing.assert_array_equal(problem.space.error[0], error[0])


# -- files


def test_a_file_gives_the_same_levels(tmp_path):
    net, data, levels = built("residual")
    levels.save(tmp_path / "levels.npz")
    again = Levels.load(tmp_path / "levels.npz", net)
    assert again.choice("params", 0.7).hash == levels.choice("params", 0.7).hash
    row = levels.uniform(0.4)
    assert (again.bits(row) == levels.bits(row)).all()
    for name, tensor in again.network(row).state_dict().items():
        assert torch.equal(tensor, levels.network(row).state_dict()[name])
    assert again.labels == levels.labels
    assert again.meta == levels.meta


def test_moments_stay_on_the_disk(tmp_path):
    net, data, levels = built("mlp")
    levels.save(tmp_path / "levels.npz")
    before = (tmp_path / "levels.npz").read_bytes()
    again = Levels.load(tmp_path / "levels.npz", net)
    assert isinstance(read_mapped(tmp_path / "levels.npz", "levels")["second.2"], np.memmap)
    again._network.refit.layers["2"].xx += 1.0
    assert (tmp_path / "levels.npz").read_bytes() == before


def test_without_the_network_there_are_masks_and_costs(tmp_path):
    net, data, levels = built("mlp")
    levels.save(tmp_path / "levels.npz")
    again = Levels.load(tmp_path / "levels.npz")
    assert again.choice("macs").spent(again.dense) == levels.total("macs")
    assert (again.selection([0, 1]).keep == levels.selection([0, 1]).keep).all()
    with pytest.raises(InvalidProblem, match="without their network"):
        again.network(again.dense)


def test_bad_files_are_refused(tmp_path):
    net, data, levels = built("mlp")
    path = tmp_path / "levels.npz"
    levels.save(path)
    with pytest.raises(InvalidProblem, match="other weights"):
        Levels.load(path, make("plain")[0])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InvalidProblem, match="truncated"):
        Levels.load(path)
    np.savez(path, objects=np.array([{}], dtype=object))
    with pytest.raises(InvalidProblem, match="pickles"):
        Levels.load(path)
    levels.choice().save(path)
    with pytest.raises(InvalidProblem):
        Levels.load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["levels.npz"]


# -- bad input and manners


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0.0}, "ridge"),
        ({"levels": 1}, "levels"),
        ({"counts": {"0": [1, 4]}}, "counts of 0"),
        ({"counts": {"0": [-1, 8]}}, "counts of 0"),
        ({"groups": []}, "at least one group"),
        ({"resources": ["watts"]}, "unknown resource"),
    ],
)
def test_bad_options(options, message):
    net, data, _ = built("mlp")
    with pytest.raises(InvalidProblem, match=message):
        Levels.build(net, data, **options)


def test_bad_levels():
    levels = built("mlp")[2]
    for wrong in ([0], [0, 9], [0.5, 1], [-1, 0]):
        with pytest.raises(InvalidProblem):
            levels.network(wrong)


def test_inputs_that_never_come_or_are_not_finite():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    units = Group("0", 3, [("0", "out", [[0], [1], [2]]), ("2", "in", [[0], [1], [2]])])
    with pytest.raises(InvalidProblem, match="2: its inputs"):
        Levels.build(net, torch.full((4, 2), float("nan")), [units])


def test_building_leaves_the_network_as_it_was_and_tells_how_far_it_is():
    net, data, _ = built("residual")
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    told = []
    Levels.build(net, data, levels=2, progress=lambda *at: told.append(at))
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    net.eval()
    assert told[:3] == [("measuring", i + 1, 3) for i in range(3)]
    assert told[-1][0] == "eliminating"
    assert told[-1][1] == told[-1][2]


def test_every_test_network_has_levels():
    for name in NETWORKS:
        levels = built(name)[2]
        assert levels.network(levels.uniform(0.5)) is not None


def test_an_evaluator_takes_refit_or_weights():
    net, data, levels = built("mlp")
    with pytest.raises(InvalidProblem, match="refit or weights"):
        levels.evaluator(data, refit=True)


class Dense(nn.Module):
    """The stem's norm has its input read elsewhere too; the other norm follows its convolution alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv, self.behind = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.last, self.head = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.Conv2d(11, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.last(F.relu(self.behind(self.conv(F.relu(self.norm(x))))))
        return self.head(torch.cat([x, y], 1)).mean(dim=(2, 3))


def test_batchnorm_is_folded_where_it_can_be():
    net = Dense().eval()
    for norm in (net.norm, net.behind):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(12, 3, 6, 6)
    levels = Levels.build(net, x, levels=3)
    assert levels._network.inside == {"conv": "behind"}
    data = (x, torch.randn(12, 2))
    for row in tuples(levels, 3):
        assert levels.black_box(data).value(row) == pytest.approx(evaluate(levels.network(row), data)["loss"], rel=1e-4)
