"""docs/formats.md names every key that is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import prunesolve as ps

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("formats")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        inputs = torch.randn(16, 4)
    out = ps.prune(net, [(inputs, torch.arange(16) % 3)], macs=0.6, solver="greedy")
    out.save(folder)
    out.statistics.save(folder / "stats.npz")
    levels = ps.formulations.KeepCounts(levels=3).encode(out.statistics, macs=0.6)
    levels.save(folder / "levels.npz")
    ps.formulations.MultiObjectiveSelection().encode(out.statistics).save(folder / "several.npz")
    data = [(inputs, torch.arange(16) % 3)]
    ps.trade_off(net, data, objectives=("reconstruction", "params"), evaluations=20).save(folder)
    plain = ps.prune(net, data, granularity="2:4")
    plain.save(folder / "zeros")
    ps.SubsetRegression(np.eye(3), np.ones((3, 1)), [0, 1, -1], ps.Cardinality(1), labels=["a", "b"]).save(
        folder / "inputs.npz"
    )
    optional = {"row_factors": np.ones((1, 4, 2)), "start_weights": np.ones((1, 4)), "labels": list("abcd")}
    pattern = ps.NofM(1, 2, order=(0, 2, 1, 3))
    ps.SparseRegression(np.eye(4), np.ones((4, 1)), pattern, **optional).save(folder / "weights.npz")
    return folder


def names(section):
    """Words in code marks."""
    return set(re.findall(r"`([^`]+)`", SECTIONS[section]))


@pytest.mark.parametrize(("file", "section"), [("result.json", "Results: JSON"), ("report.json", "Reports: JSON")])
def test_json_keys(written, file, section):
    told = json.loads((written / file).read_text())
    inner = [*told["removal"], *told["solver"], *told["steps"][0], *told["achieved"]] if file == "report.json" else []
    assert {*told, *inner} - {"format", "kind"} <= names(section)


def test_keys_of_single_weights(written):
    told = json.loads((written / "zeros" / "report.json").read_text())
    inner = [*told["asked"], *told["solver"], *told["steps"][0], *told["achieved"]]
    assert {*told, *inner} - {"format", "kind"} <= names("Reports: JSON")
    with safe_open(written / "zeros" / "masks.safetensors", framework="pt") as file:
        assert {key: file.get_slice(key).get_shape() for key in file.keys()} == {"0.weight": [6, 4]}  # noqa: SIM118
        assert {*file.metadata()} == {"format", "kind", "inputs"}


def test_the_patterns_by_name():
    from prunesolve.problems.sparse_regression import _KINDS

    assert {*_KINDS} <= names("Single weights of a layer: `.npz`, kind `sparse-regression`")


def test_keys_of_a_front(written):
    told = json.loads((written / "front.json").read_text())
    inner = [*told["front"], *told["points"][0], *told["points"][0]["costs"]]
    assert {*told, *inner} <= names("Fronts: JSON") | names("Results: JSON")


@pytest.mark.parametrize(
    ("file", "section"),
    [
        ("instance.npz", "Problems: `.npz`, kind `binary-quadratic`"),
        ("stats.npz", "Statistics: `.npz`, kind `statistics`"),
        ("levels.npz", "Choices of levels: `.npz`, kind `level-choice`"),
        ("several.npz", "Several objectives: `.npz`, kind `multi-objective`"),
        ("inputs.npz", "Inputs of a layer: `.npz`, kind `subset-regression`"),
        ("weights.npz", "Single weights of a layer: `.npz`, kind `sparse-regression`"),
    ],
)
def test_arrays(written, file, section):
    # {g} and the like stand for a number or a name
    told = names(section) | {"format", "kind"}
    parts = "Problems: `.npz`, kind `binary-quadratic`"
    told |= {f"part{{i}}.{name}" for name in names(parts)} if "part{i}.{name}" in told else set()
    patterns = [re.sub(r"\\{\w\\}", r"\\w+", re.escape(name)) for name in told]
    with np.load(written / file) as arrays:
        assert [name for name in arrays.files if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []
