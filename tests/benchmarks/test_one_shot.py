"""benchmarks/one_shot.py: rows that are not computed twice, peers that remove what they are asked to, the tables."""

import copy
import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TORCH_PRUNING = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def one_shots(monkeypatch):
    # other tests have a module of networks too: each finds its own
    monkeypatch.delitem(sys.modules, "networks", raising=False)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield lambda name: importlib.import_module(f"one_shots.{name}")
    sys.modules.pop("networks", None)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4),
    ).eval()  # fmt: skip


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(6, 3, 6, 6, generator=generator), torch.randint(0, 4, (6,), generator=generator)
    return list(zip(images.split(4), labels.split(4), strict=True))


def key(**changes):
    told = {"part": "structured", "case": "mlp", "method": "a", "share": 0.5, "seed": 0}
    return told | {"calibration": 8, "images": 16, "code": "c0"} | changes


def ran(rows, path, *keys, **options):
    calls = []

    def job(k):
        def call():
            calls.append(k["seed"])
            if k["method"] == "broken":
                raise ValueError("no such refit")
            return {"score": 90.0 + k["seed"], "seconds": 1.5, "needs": "nothing"}

        return call

    return list(rows.compute([(k, job(k)) for k in keys], path, **options)), calls


def test_rows_are_computed_once(one_shots, tmp_path):
    rows, path = one_shots("rows"), tmp_path / "deep" / "rows.jsonl"
    asked = [key(seed=seed) for seed in (0, 1)]
    first, calls = ran(rows, path, *asked)
    assert calls == [0, 1]
    assert [row["score"] for row in first] == [90.0, 91.0]
    assert [json.loads(line) for line in path.read_text().splitlines()] == first == rows.read(path)
    assert ran(rows, path, *asked, key(seed=2))[1] == [2]
    # another share, method, image count or code is another row
    changes = ({"share": 0.7}, {"method": "b"}, {"images": 17}, {"calibration": 9}, {"code": "c1"}, {"case": "dncnn"})
    for change in changes:
        assert ran(rows, path, key(**change))[1] == [0]
        assert ran(rows, path, key(**change))[1] == []


def test_rows_of_other_code_may_pass_for_done(one_shots, tmp_path):
    rows, path = one_shots("rows"), tmp_path / "rows.jsonl"
    ran(rows, path, key())
    assert ran(rows, path, key(code="c1"), any_code=True)[1] == []
    assert ran(rows, path, key(code="c1"))[1] == [0]
    assert [row["code"] for row in rows.read(path)] == ["c1"]


def test_a_failing_call_is_a_row_and_is_tried_again(one_shots, tmp_path):
    rows, path = one_shots("rows"), tmp_path / "rows.jsonl"
    found, calls = ran(rows, path, key(method="broken"), key())
    assert calls == [0, 0]
    assert found[0]["failed"] == "ValueError: no such refit"
    assert "score" not in found[0]
    assert ran(rows, path, key(method="broken"))[1] == [0]
    # a row that failed does not hide one that did not
    rows.append(key() | {"failed": "later"}, path)
    assert sorted(row.get("failed", "none") for row in rows.read(path)) == ["ValueError: no such refit", "none"]


def test_the_code_of_a_row_knows_syntax_alone(one_shots, tmp_path):
    rows = one_shots("rows")
    texts = {
        "a": '"""One."""\nx = 1\n\n\ndef f():\n    """Two."""\n    return x\n',
        "b": '"""Other."""\nx = 1  # why\n\n\ndef f():\n    return x\n',
        "c": "x = 2\n\n\ndef f():\n    return x\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    a, b, c = (rows._syntax(tmp_path / f"{name}.py") for name in "abc")
    assert a == b != c
    assert len(rows.code("ours")) == len(rows.code("peers")) == 12
    assert rows.code("ours") != rows.code("peers")


@TORCH_PRUNING
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_torch_pruning_removes_what_is_asked(one_shots, network, data, share, uniform):
    peers, layers, work = one_shots("peers"), ["0", "3", "8"], copy.deepcopy(network)
    importance = peers.importances()["magnitude"]
    groups = peers.chosen(work, importance.make, layers, data[0][0][:1], share, uniform)
    assert work[0].weight.shape[0] == 8
    for group in groups:
        group.prune()
    left = [work.get_submodule(layer).weight.shape[0] for layer in layers]
    asked = 40 - int((1 - share) * 40 + 0.5)
    assert 40 - sum(left) == pytest.approx(asked, abs=2 if uniform else 0)
    assert work[10].weight.shape == (4, left[2])
    assert work(data[0][0]).shape == (4, 4)
    if uniform:
        np.testing.assert_allclose(np.array(left) / (8, 12, 20), 1 - share, atol=0.13)


@TORCH_PRUNING
def test_torch_pruning_removes_only_where_it_may(one_shots, network, data):
    peers, work = one_shots("peers"), copy.deepcopy(network)
    for group in peers.chosen(work, peers.importances()["magnitude"].make, ["3"], data[0][0][:1], 0.5, False):
        group.prune()
    assert [work[i].weight.shape[0] for i in (0, 3, 8, 10)] == [8, 6, 20, 4]


def test_gradients_are_those_of_each_sample(one_shots, network, data):
    peers = one_shots("peers")
    images, labels = (torch.cat(part) for part in zip(*data, strict=True))
    weight = network[10].weight
    each = [
        torch.autograd.grad(F.cross_entropy(network(x[None]), y[None]), weight)[0]
        for x, y in zip(images, labels, strict=True)
    ]
    whole = torch.autograd.grad(F.cross_entropy(network(images), labels), weight)[0]
    torch.testing.assert_close(peers.mean_gradients(network, data)["10.weight"], whole)
    expected = torch.stack(each).square().mean(0)
    torch.testing.assert_close(peers.mean_squares(network, data)["10.weight"], expected)
    assert peers.last_squares(network, data).keys() == dict(network.named_parameters()).keys()


def test_magnitude_masks_of_torch(one_shots, network):
    peers, cases = one_shots("peers"), one_shots("cases")
    size = cases.nonzero(network)
    assert cases.nonzero(peers.global_magnitude(network, 0.9)) == size - round(0.9 * size)
    uniform = peers.layer_magnitude(network, 0.75)
    for before, after in zip(network, uniform, strict=True):
        if isinstance(before, nn.Conv2d | nn.Linear):
            assert int(after.weight.count_nonzero()) == before.weight.numel() - round(0.75 * before.weight.numel())
            assert after.state_dict().keys() == before.state_dict().keys()
    assert cases.nonzero(network) == size


def test_two_of_every_four_input_channels_stay(one_shots, network):
    halved = one_shots("peers").two_of_four(network)
    torch.testing.assert_close(halved[0].weight, network[0].weight)
    for i in (3, 8, 10):
        before, after = (
            n[i].weight.detach().flatten(2) if n[i].weight.ndim > 2 else n[i].weight.detach()[..., None]
            for n in (network, halved)
        )
        for o, j, t in np.ndindex(before.shape[0], before.shape[1] // 4, before.shape[2]):
            was, now = before[o, 4 * j : 4 * j + 4, t], after[o, 4 * j : 4 * j + 4, t]
            assert int((now != 0).sum()) == 2
            assert now.abs().sum() == was.abs().sort().values[2:].sum()


@pytest.mark.parametrize("allocation", ["uniform", "erk", "lamp", "global"])
def test_masks_by_magnitude_keep_as_many_as_asked(one_shots, network, allocation):
    repairs, cases = one_shots("repairs"), one_shots("cases")
    masks = repairs.magnitude_masks(network, 0.8, allocation)
    work = repairs.masked(network, masks)
    size = cases.nonzero(network)
    assert cases.nonzero(work) == sum(int(m.sum()) for m in masks.values()) == int(0.2 * size + 0.5)
    for name, mask in masks.items():
        weight = network.get_parameter(name).abs()
        assert weight[mask].min() >= weight[~mask].max()


def test_every_case_of_the_parts_is_named_once(one_shots):
    methods = {part: one_shots(part).METHODS for part in ("structured", "unstructured", "two_four", "criteria")}
    for named in methods.values():
        assert {m.kind for m in named.values()} <= {"ours", "peers"}
        assert {m.needs for m in named.values()} <= {"nothing", "gradients", "labels"}
    assert {m.kind for m in methods["structured"].values()} == {"ours", "peers"}


@pytest.fixture
def bench(one_shots, network, data, monkeypatch):
    cases = one_shots("cases")

    def judge(work, images):
        x, y = data[0]
        with torch.no_grad():
            return {"score": 100 * float((work(x[:images]).argmax(1) == y[:images]).float().mean())}

    tiny = cases.Case(lambda: network, ["0", "3", "8"], lambda seed, count: data, 6, judge, 4, "top-1 %")
    monkeypatch.setitem(cases.CASES, "tiny", tiny)
    return lambda seed=0: cases.Bench("tiny", seed)


@TORCH_PRUNING
@pytest.mark.parametrize(
    ("part", "name", "share", "units"),
    [
        ("structured", "prunesolve, mask alone", 0.5, 20),
        ("structured", "torch-pruning Taylor, global + bn", 0.5, 20),
        ("structured", "torch-pruning Hessian, all samples, uniform + bn", 0.5, 20),
        # the couplings of the plain call, so that no other kernels are compiled
        ("criteria", "reconstruction | refit", 0.25, 30),
        ("repairs", "magnitude, erk | bn", 0.5, 40),
        ("unstructured", "torch magnitude, global + bn", 0.5, 40),
        ("two_four", "magnitude + bn", 0.5, 40),
    ],
)
def test_a_row_tells_what_was_left_and_how_good_it_is(one_shots, bench, network, part, name, share, units):
    methods, at = one_shots("methods"), bench()
    before = copy.deepcopy(network.state_dict())
    row = methods.row(at, one_shots(part).METHODS[name], share)
    assert row["stays"]["units"] == units / 40
    assert 0.0 <= row["score"] <= 100.0
    assert row["seconds"] > 0.0
    assert row["cpu"] > 0.0
    if units == 40:
        assert row["stays"]["params"] == row["stays"]["macs"] == 1.0
        assert row["stays"]["weights"] < 0.7
    else:
        assert row["stays"]["params"] < 1.0
    json.dumps(row)
    # the dense network that all methods share is as it was
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_rounds_with_training_keep_half(one_shots, bench):
    row = one_shots("methods").row(bench(), one_shots("ice").METHODS["prunesolve, rounds of masks"], 0.5)
    assert row["stays"]["units"] == 0.5
    assert [r["units"] for r in row["rounds"]][-1] == 20


def test_a_calibration_is_of_at_most_5000_images(one_shots):
    cases = one_shots("cases")
    with pytest.raises(ValueError, match="1 to 5000 images, got 5001"):
        cases.Bench("mlp", 0, 5001)


def asked(**changes):
    told = {"of": None, "cases": ["mlp", "resnet20"], "seeds": [0, 1, 2], "shares": None}
    return Namespace(**told | changes)


def test_tables_of_rows_on_disk(one_shots, tmp_path):
    rows, path = one_shots("rows"), tmp_path / "rows.jsonl"
    stays = {"units": 0.5, "params": 0.4, "macs": 0.3, "weights": 0.2}
    told = {"seconds": 2.0, "cpu": 1.5, "needs": "labels", "threads": 1, "stays": stays}
    rows.append(key(method="dense", share=0.0) | {"score": 97.25, "threads": 1}, path)
    for seed, score in enumerate((80.0, 81.0, 84.0)):
        rows.append(key(method="ours", seed=seed) | told | {"score": score}, path)
    rows.append(key(method="ours", share=0.7) | told | {"score": 50.0}, path)
    # figures of older code are not averaged in
    rows.append(key(method="older", seed=1, code="c0") | told | {"score": 10.0}, path)
    rows.append(key(method="older", seed=0, code="c1") | told | {"score": 20.0}, path)
    rows.append(key(method="broken") | {"failed": "ValueError: why"}, path)
    rows.append(
        key(part="criteria", method="L1 | bn") | told | {"criterion": "L1", "repair": "bn", "score": 70.0}, path
    )
    rows.append(
        key(part="costs") | {"seconds": 3.0, "cpu": 2.5, "needs": "nothing", "before_mib": 9.0, "peak_mib": 12.0}, path
    )
    lines = list(one_shots("tables").told(rows.read(path), asked()))
    assert "dense 97.25" in lines
    assert "| ours | labels | 81.67 ± 2.00 | 50.00 (1) | 2.0 | 1.5 |" in lines
    assert "| ours | 50.0 / 40.0 / 30.0 / 20.0 | 50.0 / 40.0 / 30.0 / 20.0 |" in lines
    assert "| older | labels | 20.00 (1) |  | 2.0 | 1.5 |" in lines
    assert "- broken (50 %, seed 0): ValueError: why" in lines
    assert "| L1 | 70.0 (1) |" in lines
    assert "| a | 50 % | nothing | 3.0 (1) | 2.5 (1) | 9 (1) | 12 (1) |" in lines
    few = list(one_shots("tables").told(rows.read(path), asked(of="structured", shares=[0.7])))
    assert "| ours | labels | 50.00 (1) | 2.0 | 1.5 |" in few
    assert not any("costs" in line or "L1" in line for line in few)
    assert list(one_shots("tables").told(rows.read(path), asked(cases=["resnet20"]))) == []


def test_the_plot_is_a_picture_of_the_rows(one_shots, tmp_path):
    plots, cases = one_shots("plots"), one_shots("cases")
    images = cases.CASES["mlp"].images
    told = [
        key(method="prunesolve, refit", share=share, seed=seed, images=images) | {"score": 90.0 - 10 * share + seed}
        for share in (0.2, 0.5)
        for seed in (0, 1)
    ]
    drawn = plots.plot([*told, key(method="dense", share=0.0, images=images) | {"score": 97.0}], tmp_path / "p.svg")
    assert "<svg" in drawn.read_text()[:1000]
