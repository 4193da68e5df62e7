"""The code of docs/black-boxes.md runs, top to bottom, and its search of one's own keeps its word."""

from __future__ import annotations

import re
from pathlib import Path

from prunesolve.solvers.testing import check_solver

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "black-boxes.md").read_text(encoding="utf-8")


def test_the_code_runs(capsys):
    told: dict[str, object] = {"__name__": "document"}
    for block in re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE):
        # no annotations future of this file: dataclasses look their module up by name
        exec(compile(block, "black-boxes.md", "exec", dont_inherit=True), told)
    before, _, after, *_ = capsys.readouterr().out.split()
    assert float(after) <= float(before)
    assert told["result"].evaluations <= 100
    check_solver(told["RandomSelections"](), "optimum")
    check_solver(told["RandomSelections"](), "refusals")
