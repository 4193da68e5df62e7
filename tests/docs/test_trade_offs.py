"""The code of docs/trade-offs.md runs, top to bottom, and does what the text says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import prunesolve as ps
from prunesolve._startup import _declared
from prunesolve.cli import app

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "trade-offs.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_code_runs(tmp_path, monkeypatch, capsys):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    told: dict[str, object] = {"__name__": "document"}
    for block in re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, "trade-offs.md", "exec", dont_inherit=True), told)
    after, before = told["small"].report["achieved"]["params"]
    assert after <= 0.5 * before
    np.testing.assert_array_equal(told["knee"].selection.keep, told["trade"].result.solution)
    assert told["trade"].result.evaluations <= 60
    assert {p.name for p in (tmp_path / "front-out").iterdir()} == set(
        re.findall(r"\w+\.(?:json|svg|html)", DOCUMENT.partition("# front.json")[2].partition("\n")[0])
    ) | {"front.json"}
    # enumeration: no selection of the four beats a point of the front
    every = np.array([[i >> b & 1 for b in range(4)] for i in range(16)], dtype=bool)
    values, front = told["problem"].values(every), told["result"].front.objectives
    for point in front:
        assert not ((values <= point).all(axis=1) & (values < point).any(axis=1)).any()
    capsys.readouterr()


def test_the_commands_have_the_flags_that_the_text_names():
    lines = [line.split() for line in DOCUMENT.splitlines() if line.startswith("    prunesolve ")]
    assert len(lines) == 5
    commands = {command.name or command.callback.__name__: command for command in app.registered_commands}
    for _, name, *words in lines:
        _, flags = _declared(commands[name].callback)
        for flag in (word for word in words if word.startswith("--")):
            assert flag in flags, (name, flag)


def test_what_the_text_names_is_there():
    for name in ("trade_off", "MultiObjective", "TradeOff"):
        assert name in dir(ps)
    for solver in ("nsga2", "emo-dir"):
        assert solver in ps.solvers.names()
