"""Follow docs/adding-a-formulation.md to the letter: save, check, use, register."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from prunesolve import formulations
from prunesolve.problems import InvalidProblem

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "adding-a-formulation.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
TOML = re.findall(r"^```toml\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The example saved as a module that can be imported, as in a package of one's own."""
    example, _ = PYTHON
    (tmp_path / "redundant_taylor.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("redundant_taylor")
    del sys.modules["redundant_taylor"]


def test_the_example_keeps_its_word_and_chooses_the_best(module):
    _, usage = PYTHON
    names = dict(vars(module))
    exec(usage, names)
    problem, stats, formulation = names["problem"], names["stats"], module.RedundantTaylor(gamma=0.1)
    selections = np.array(list(product([False, True], repeat=stats.n)))
    admitted = selections[problem.is_feasible(selections)]
    best = admitted[np.argmin(problem.value(admitted))]
    assert {int(x.sum()) for x in admitted} == {5}
    assert stats.spent("macs", best) <= 0.8 * stats.total("macs")
    assert formulation.meaning(stats, best) == pytest.approx(min(formulation.meaning(stats, x) for x in admitted))
    kept = formulation.decode(stats, best).kept
    assert {(layer, c) for layer, channels in kept.items() for c in channels} == {
        unit for unit, bit in zip(stats.units, best, strict=True) if bit
    }


def test_its_option_is_checked(module):
    with pytest.raises(InvalidProblem, match="gamma: expected a number >= 0, got -1"):
        module.RedundantTaylor(gamma=-1)


def test_the_entry_point_registers_it(module, tmp_path):
    (points,) = TOML
    registered = tomllib.loads(points)["project"]["entry-points"]["prunesolve.formulations"]
    info = tmp_path / "redundant_taylor-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: redundant-taylor\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in registered.items()]
    (info / "entry_points.txt").write_text("\n".join(["[prunesolve.formulations]", *lines, ""]))
    assert "redundant-taylor" in formulations.names()
    made = formulations.get("redundant-taylor", gamma=0.5)
    assert made == module.RedundantTaylor(gamma=0.5)
    with pytest.raises(InvalidProblem, match="did you mean 'redundant-taylor'"):
        formulations.get("redundant-tailor")


def test_the_line_for_the_table_has_the_table_s_form():
    (line,) = re.findall(r'`("[\w-]+": \("\w+", "\w+", "[^"]+"\))`', DOCUMENT)
    name, (module, class_name, _) = next(iter(eval(f"{{{line}}}").items()))
    assert name.replace("-", "_") == module
    assert f"class {class_name}(Formulation)" in PYTHON[0]
    assert f'name: ClassVar[str] = "{name}"' in PYTHON[0]
    assert f"formulations/{module}.py" in DOCUMENT


def test_the_statistics_listed_are_those_of_the_example_statistics():
    from prunesolve.formulations.testing import example_statistics

    stats = example_statistics(concat=True)
    for section in ("saliency", "blocks", "cross", "factors"):
        (row,) = re.findall(rf"^\| `{section}`.*?\|(.*)\|$", DOCUMENT, flags=re.MULTILINE)
        assert re.findall(r"`(\w+)`", row) == list(getattr(stats, section))
