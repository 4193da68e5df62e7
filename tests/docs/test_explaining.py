"""The code of docs/explaining.md runs, top to bottom, and the table that it shows is the one it prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import prunesolve as ps
from prunesolve.explanations import explain

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "explaining.md").read_text(encoding="utf-8")

NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def test_the_code_runs_and_prints_what_is_shown(capsys):
    told: dict[str, object] = {"__name__": "document"}
    for block in re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, "explaining.md", "exec", dont_inherit=True), told)
    *printed, unsure = capsys.readouterr().out.splitlines()
    shown = [line[4:] for line in DOCUMENT.splitlines() if line.startswith("    ") and not line.endswith("...")]
    assert len(shown) == 11
    for line, true in zip(shown, filter(None, printed), strict=False):
        # how other seeds end may differ in the last digit of a machine, what the optimum rests on may not
        line, true = (re.sub(r"\d+ \(\d+ %\)$|(?<=solver: ).*", "", text) for text in (line, true))
        assert re.sub(NUMBER, "#", line).split() == re.sub(NUMBER, "#", true).split()
        assert [float(n) for n in re.findall(NUMBER, line)] == pytest.approx(
            [float(n) for n in re.findall(NUMBER, true)], rel=1e-3
        )
    rows, kept = told["again"].rows, [set(told["files"][s]["solution"]) for s in range(5)]
    assert set(json.loads(unsure)) == {
        row["label"] for row in rows if len({row["unit"] in solution for solution in kept}) == 2
    }


def test_the_keys_that_the_table_names_are_there():
    rows = explain(ps.BinaryQuadratic([-1.0]), [True], [[True]]).rows
    section = DOCUMENT.partition("## How to read a row")[2].partition("\n## ")[0]
    last = [line.split("|")[-2] for line in section.splitlines() if line.startswith("| ")][1:]
    named = {name for cell in last for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) == 9
    assert named <= set(rows[0])
