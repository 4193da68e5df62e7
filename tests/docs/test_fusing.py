"""The code of docs/fusing.md runs, top to bottom, and does what the text says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

import prunesolve as ps
from prunesolve.bridges.torch.fusion import fuse

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "fusing.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_code_runs(capsys):
    torch.set_num_threads(1)
    told: dict[str, object] = {"__name__": "document"}
    with torch.random.fork_rng(devices=[]):
        for block in re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE):
            exec(compile(block, "fusing.md", "exec", dont_inherit=True), told)
    images, labels = told["images"][1200:], told["labels"][1200:]
    accuracy = [float((net(images).argmax(1) == labels).float().mean()) for net in (*told["models"], told["out"].model)]
    assert accuracy[2] > min(accuracy[:2]) - 0.01
    assert told["out"].report["parameters"]["of_first"] <= 1.05 * (1 + 2 * 0.2 - 0.2**2)
    assert told["fitted"].report["parameters"]["of_first"] <= 1.3
    assert str(told["result"].status) == "OPTIMAL"
    assert len(told["coupling"].fused_b) == 16
    capsys.readouterr()


def test_the_options_that_the_table_names_are_there():
    named = re.findall(r"^\| `(\w+)", DOCUMENT, flags=re.MULTILINE)
    assert len(named) == 8
    assert set(named) <= set(inspect.signature(fuse).parameters)
    assert "fuse" in dir(ps)
