"""The code of docs/one-shot.md runs, top to bottom, and does what the text says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import prunesolve as ps
from prunesolve._startup import _declared
from prunesolve.bridges.torch.repair import REPAIRS
from prunesolve.choices import checked_choices
from prunesolve.cli import app

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "one-shot.md").read_text(encoding="utf-8")


def rows(heading):
    """The first cells of the tables of a section, words in code marks."""
    section = DOCUMENT.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    assert section, heading
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")][2:]
    return [re.findall(r"`([^`]+)`", cell) for cell in cells]


def answers_off(network, told):
    """How far a network's answers are from the dense one's."""
    with torch.no_grad():
        return sum(float((network(x) - told["network"](x)).square().sum()) for x, _ in told["data"])


@pytest.mark.slow
def test_the_code_runs(tmp_path, monkeypatch, capsys):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    told: dict[str, object] = {"__name__": "document"}
    for block in re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE):
        with torch.random.fork_rng():
            exec(compile(block, "one-shot.md", "exec", dont_inherit=True), told)
    printed = capsys.readouterr().out

    assert told["out"].report["solver"]["solver"] == "in sequence"
    assert told["out"].result.bound is None
    assert told["exact"].report["solver"]["solver"] != "in sequence"
    assert told["exact"].result.bound is not None
    assert [step["step"] for step in told["half"].report["steps"]] == ["dense", "masked", "refit", "reconstruct"]
    assert answers_off(told["mended"], told) <= answers_off(told["out"].model, told)
    assert [step["step"] for step in told["repaired"].report["steps"]] == ["dense", "masked", "bn", "layer-variance"]

    kept, of = told["sparse"].report["achieved"]["weights"]
    assert kept == round(0.1 * of)
    for key, mask in told["pattern"].masks.items():
        stays = mask.movedim(1, -1).reshape(-1, 4).sum(1)
        assert (stays == 2).all(), key
        assert not told["pattern"].model.get_parameter(key)[~mask].any()
    assert list(told["pattern"].report["excluded"]) == ["stem"]

    assert told["found"].lam in (1.0, 0.5)
    assert told["mixed"].counts["head"][0] == round(0.1 * 480)
    assert told["tuned"].report["units"][0] == round(0.3 * told["tuned"].report["units"][1])
    assert told["heads"].report["layers"] == {"attention.q_proj": [2, 4]}

    problem, x = told["problem"], told["result"].solution
    assert problem.value(x) == pytest.approx(told["result"].objective)
    np.testing.assert_array_equal(told["kept"].keep, x)
    assert problem.least <= told["result"].objective
    assert isinstance(ps.load("layer.npz"), ps.SubsetRegression)
    # the value is the error of the layer's outputs, as numpy measures it
    a, dense, fitted = told["x"], told["dense"], told["fitted"]
    assert (np.count_nonzero(fitted.reshape(3, 2, 4), axis=2) == 2).all()
    error = np.square(a @ (dense - fitted).T).sum() / len(a)
    assert error == pytest.approx(ps.solve(told["layer"], "iht-swap").objective)
    assert "the smallest count that can is 5" in printed


def test_the_commands_have_the_flags_that_the_text_names():
    lines = [line.split() for line in DOCUMENT.splitlines() if line.startswith("    prunesolve ")]
    assert len(lines) == 5
    commands = {command.name or command.callback.__name__: command for command in app.registered_commands}
    for _, name, *words in lines:
        _, flags = _declared(commands[name].callback)
        for flag in (word for word in words if word.startswith("--")):
            assert flag in flags, (name, flag)


def test_the_tables_name_what_there_is():
    assert sorted(name for cell in rows("Masks alone") for name in cell) == sorted(REPAIRS)
    from prunesolve.bridges.torch.allocation import RULES
    from prunesolve.bridges.torch.weights import ALLOCATION, LEVELS

    assert sorted(cell[0] for cell in rows("Single weights")) == sorted([*RULES, LEVELS])
    assert [cell[0] for cell in rows("Single weights") if "auto" in cell] == [ALLOCATION]
    for repair in REPAIRS:
        checked_choices("channel", "auto", True, [repair])


def test_what_needs_labels_or_not():
    """No repair reads targets: each runs on inputs alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense, pruned = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)) for _ in range(2))
        inputs = torch.randn(64, 3)
    for name, repair in REPAIRS.items():
        assert not repair.labels, name
        repair.function(dense, pruned, inputs, None)


def test_the_steps_that_the_text_counts():
    from prunesolve.bridges.torch.reconstruct import reconstruct

    options = inspect.signature(reconstruct).parameters
    told = re.search(r"(\d+) steps of Adam for each block and (\d+) for the whole, (\d+) samples", DOCUMENT)
    assert told is not None
    assert [int(n) for n in told.groups()] == [
        options[name].default for name in ("block_steps", "joint_steps", "batch")
    ]


def test_what_the_text_names_is_there():
    for name in ("SubsetRegression", "SparseRegression", "Keep", "PerRow", "NofM", "prune_and_tune"):
        assert name in dir(ps)
    for solver in ("osscar", "admm", "iht-swap", "obc", "magnitude"):
        assert solver in ps.solvers.names()
        assert f"`{solver}`" in DOCUMENT or f'"{solver}"' in DOCUMENT
    for formulation in ("subset-regression", "moonshot"):
        assert formulation in ps.formulations.names()
