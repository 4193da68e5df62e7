"""Follow docs/adding-a-solver.md to the letter, as a package of one's own in another process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from prunesolve.problems import BinaryQuadratic
from prunesolve.solvers import Run, Solver

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "adding-a-solver.md").read_text(encoding="utf-8")
EXAMPLE, USAGE = re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
(TOML,) = re.findall(r"^```toml\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def python(tmp_path):
    """Runs Python where the example is installed: the module, and the metadata an installer writes."""
    (tmp_path / "random_swaps.py").write_text(EXAMPLE, encoding="utf-8")
    registered = tomllib.loads(TOML)["project"]["entry-points"]["prunesolve.solvers"]
    info = tmp_path / "random_swaps-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: random-swaps\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in registered.items()]
    (info / "entry_points.txt").write_text("\n".join(["[prunesolve.solvers]", *lines, ""]))

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        told = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )
        assert told.returncode == 0, told.stderr
        return told.stdout

    return run


def test_the_example_keeps_its_word_and_improves(python):
    told = python("-c", f"from random_swaps import *\n{USAGE}\nprint(result.solution.sum(), len(result.trace) > 1)")
    assert told.split() == ["32", "True"]


def test_the_entry_point_registers_it(python):
    code = "from prunesolve.solvers import available, get; print(get('random-swaps', proposals=7), *available())"
    made, *names = python("-c", code).split()
    assert made == "RandomSwaps(proposals=7)"
    assert "random-swaps" in names


def test_the_command_line_lists_it(python):
    code = "import sys; from prunesolve.cli import main; sys.argv[1:] = ['solvers']; main()"
    (line,) = [line for line in python("-c", code).splitlines() if "random-swaps" in line]
    assert "random_swaps:RandomSwaps" in line


def test_the_line_for_the_table_has_the_table_s_form():
    (line,) = re.findall(r'`("[\w-]+": \("\w+", "\w+", ".*?"\))`', DOCUMENT)
    name, (module, class_name, _) = next(iter(eval(f"{{{line}}}").items()))
    assert name.replace("-", "_") == module
    assert f"class {class_name}(Solver)" in EXAMPLE
    assert f'name: ClassVar[str] = "{name}"' in EXAMPLE
    assert f"solvers/{module}.py" in DOCUMENT


def test_everything_the_tables_name_is_there():
    run, problem = Run(BinaryQuadratic([1.0]), seed=0), BinaryQuadratic([1.0])
    for name in re.findall(r"`run\.(\w+)", DOCUMENT):
        assert hasattr(run, name), name
    problem_s = DOCUMENT[DOCUMENT.index("| the problem offers") : DOCUMENT.index("## Conventions")]
    for name in re.findall(r"`(\w+)[`(]", problem_s):
        assert hasattr(problem, name), name
    for name in re.findall(r"`couplings\.(\w+)|`\.(\w+)\(x?\)`", problem_s):
        assert hasattr(problem.couplings, "".join(name)), name
    assert all(hasattr(Solver, name) for name in ("refuse", "_prepare", "_search", "accepts"))
