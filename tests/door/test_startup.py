"""What a short command is spared: the same answers as with typer, and nothing hidden for longer than it helps."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from functools import wraps

import pytest
import typer

from prunesolve import cli
from prunesolve._startup import plain_arguments
from prunesolve.problems import generators


def by_typer(words):
    """The arguments that typer reads from the same words, defaults filled in."""
    app = typer.Typer()

    @app.command()
    @wraps(cli.solve)
    def record(**arguments):
        seen.update(arguments)

    seen = {}
    app(words, standalone_mode=False)
    return seen


def with_defaults(found):
    defaults = {name: parameter.default for name, parameter in inspect.signature(cli.solve).parameters.items()}
    return defaults | found


PLAIN = [
    "a.npz",
    "a.npz --json",
    "--json a.npz",
    "a.npz:3 --solver greedy --seed 7 --time-limit 0.5 --evaluation-limit 100 --keep 0.5",
    "a.npz --option sweeps=3 --option t_start=0.2 --threads 2 --bound",
    "a.npz --seed=7 --out=b.json --start c.json --format coo",
    "a.npz --option=k=v --time-limit 1e-3",
]
LEFT_TO_TYPER = [
    "",
    "--help",
    "a.npz -h",
    "a.npz b.npz",
    "a.npz --seed",
    "a.npz --seed 1.5",
    "a.npz --seed -1",
    "a.npz --sed 1",
    "a.npz --json=1",
    "a.npz --seed 1 --seed 2",
    "a.npz --time-limit soon",
    "-- a.npz",
    "--seed 1",
]


@pytest.mark.parametrize("line", PLAIN)
def test_plain_words_are_read_as_typer_reads_them(line):
    found = plain_arguments(cli.solve, line.split())
    assert found is not None
    assert with_defaults(found) == by_typer(line.split())


@pytest.mark.parametrize("line", LEFT_TO_TYPER)
def test_anything_else_is_left_to_typer(line):
    assert plain_arguments(cli.solve, line.split()) is None


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--seed", "x"], 2, "prunesolve: "),
        (["--solver", "gredy"], 2, "did you mean 'greedy'"),
        (["--threads", "0"], 2, "--threads: expected at least 1, got 0"),
        (["--seed", "5", "--json"], 0, ""),
        (["--json", "--seed", "4", "--seed", "5"], 0, ""),
    ],
)
def test_exit_codes_are_the_same_on_either_way(words, code, said, tmp_path, capsys):
    path = tmp_path / "small.npz"
    generators.pruning(8, seed=1).save(path)
    with pytest.raises(SystemExit) as left:
        cli.main(["solve", str(path), *words])
    told = capsys.readouterr()
    assert left.value.code == code
    assert said in told.err
    if code == 0:
        assert json.loads(told.out)["seed"] == 5


AFTERWARDS = """
import sys
from prunesolve._startup import NoBlasForNumba
sys.meta_path.insert(0, NoBlasForNumba)
import numba.np.arraymath
print("scipy.linalg" in sys.modules)
import numpy
print(numba.njit(lambda a: numpy.dot(a, a))(numpy.array([1.0, 2.0])))
import scipy.linalg
print(scipy.linalg.det([[3.0]]))
"""


def test_scipy_linalg_is_hidden_while_numba_starts_and_no_longer():
    told = subprocess.run([sys.executable, "-c", AFTERWARDS], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "5.0", "3.0"]


def test_a_library_caller_has_nothing_hidden():
    code = "import sys, prunesolve.cli; print([type(f).__name__ for f in sys.meta_path], sys.meta_path)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "NoBlas" not in told.stdout


def test_a_plain_solve_loads_neither_pydantic_nor_scipy_linalg(tmp_path):
    path = tmp_path / "small.npz"
    generators.pruning(40, seed=1).save(path)
    code = (
        f"import sys; sys.argv = ['prunesolve', 'solve', {str(path)!r}]\n"
        "from prunesolve.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'pydantic', 'rich', 'scipy.linalg', 'torch', 'dimod'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"
