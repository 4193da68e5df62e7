"""The door costs nothing to open: heavy libraries come with the work that needs them, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import prunesolve as ps

HEAVY = ("torch", "tntorch", "pymoo", "ot", "matplotlib", "numba")
PUBLIC = (
    "prune measure solve select masks apply_masks shrink verify refit recalibrate_batchnorm load "
    "BinaryQuadratic Cardinality GroupBounds Budget Blocks LowRank Group Statistics Selection Unit "
    "InvalidProblem UnsupportedProblem SolverFailed Result Solver Status formulations solvers problems bridges"
)


def loaded_after(code: str, *modules: str) -> list[str]:
    """Which of `modules` a fresh process has loaded after running `code`."""
    told = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint([m for m in {modules!r} if m in sys.modules])"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    return eval(told.stdout.splitlines()[-1])


def test_naming_every_public_name_loads_nothing_heavy():
    code = "import prunesolve\nfor name in dir(prunesolve): getattr(prunesolve, name)"
    assert loaded_after(code, *HEAVY) == []


def test_importing_alone_loads_not_even_numpy():
    assert loaded_after("import prunesolve", "numpy", *HEAVY) == []


def test_naming_every_formulation_loads_neither_scipy_nor_anything_heavy():
    code = "from prunesolve import formulations\nformulations.names(); formulations.all()"
    assert loaded_after(code, "scipy", "dimod", *HEAVY) == []


def test_listing_the_formulations_loads_none_of_them():
    code = "from prunesolve import formulations\nformulations.names()"
    assert loaded_after(code, "prunesolve.formulations.l1_qubo", "prunesolve.formulations._base") == []


def test_select_by_greedy_loads_no_torch():
    code = (
        "import prunesolve\nprunesolve.select([3.0, 2.0, 1.0], [[0, 2, 0], [2, 0, 0], [0, 0, 0]], 2, solver='greedy')"
    )
    assert loaded_after(code, "torch", "torch_pruning", "matplotlib", "dimod") == []


def test_the_check_itself_sees_what_is_loaded():
    assert loaded_after("import numpy", "numpy", "torch") == ["numpy"]


@pytest.mark.parametrize("name", PUBLIC.split())
def test_the_public_names_are_there(name):
    assert name in dir(ps)
    assert getattr(ps, name) is not None


def test_the_version_is_the_installed_one():
    assert ps.__version__ == version("prunesolve")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'prunesolve' has no attribute 'prunning'"):
        ps.prunning  # noqa: B018


def test_functions_stay_functions_whatever_is_imported():
    """No module of the door is named like a public function, so importing one cannot put itself in its place."""
    for name in ("solve", "select", "masks", "load", "measure", "refit", "shrink", "verify"):
        assert callable(getattr(ps, name)), name
