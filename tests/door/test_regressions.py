"""Regressions on groups of inputs through files and the command line: info, solve, check, convert."""

from __future__ import annotations

import json

import numpy as np
import pytest

import prunesolve as ps
from prunesolve.claims import examine
from prunesolve.result_files import told_of
from prunesolve.solvers import _regression_testing

from .test_cli import KEYS
from .test_light import HEAVY, loaded_after


@pytest.fixture
def saved(folder):
    """An instance whose groups are channels of two layers, and the least value."""
    labels = [("conv1", 0), ("conv1", 2), ("conv1", 3), ("conv2", 1), ("conv2", 4), ("conv2", 5)]
    problem = _regression_testing.regressions()["pairs"].replace(labels=labels)
    problem.save(folder / "inputs.npz")
    return problem, _regression_testing.optimum(problem)


def test_info_says_what_is_in_the_file(command, saved):
    told = command("info", "inputs.npz")
    assert (told.code, told.err) == (0, "")
    assert "SubsetRegression, 6 groups of 12 inputs, 3 outputs, constraints: Cardinality(3)" in told.out
    assert saved[0].hash in told.out
    assert isinstance(ps.load("inputs.npz"), ps.SubsetRegression)


@pytest.mark.parametrize("solver", ["osscar", "auto"])
def test_solve_check_and_solve_again(command, saved, solver):
    problem, optimum = saved
    told = command("solve", "inputs.npz", "--solver", solver, "--out", "result.json", "--json")
    assert (told.code, told.err) == (0, "")
    printed = json.loads(told.out)
    assert set(printed) >= KEYS
    assert printed["objective"] == pytest.approx(optimum)
    assert (printed["instance_hash"], printed["n"], printed["kept"], printed["status"]) == (
        problem.hash,
        6,
        3,
        "OPTIMAL",
    )
    units = {(layer, channel) for layer, channels in printed["kept_units"].items() for channel in channels}
    assert units == {problem.labels[i] for i in printed["solution"]}
    told = command("check", "inputs.npz", "result.json")
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith("holds: objective ")
    again = command("solve", "inputs.npz", "--start", "result.json", "--json")
    assert json.loads(again.out)["objective"] <= printed["objective"] + 1e-12


def test_another_count_can_be_asked_for(command, saved):
    problem, optimum = saved
    printed = json.loads(command("solve", "inputs.npz", "--keep", "4", "--json").out)
    assert printed["kept"] == 4
    assert printed["objective"] < optimum


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"objective": 0.0}, "claims objective 0,"),
        ({"kept": 4}, "claims 4 kept"),
        ({"bound": 1e3}, "claims bound 1000, above its objective"),
        ({"kept_units": {"conv1": [0]}}, "claims kept_units"),
        ({"solution": [0, 1]}, "claims to be feasible, violation 1"),
    ],
)
def test_false_claims_are_found(saved, changes, fault):
    problem, _ = saved
    told = told_of("inputs.npz", problem, ps.solve(problem))
    assert examine(problem, told).faults == ()
    assert fault in "\n".join(examine(problem, told | changes).faults)


def test_what_makes_no_sense_ends_in_one_line(command, saved):
    arrays = dict(np.load("inputs.npz"))
    np.savez("broken.npz", **(arrays | {"gram": arrays["gram"] - 10.0 * np.eye(12)}))
    for arguments, words in (
        (("solve", "inputs.npz", "--solver", "greedy"), "greedy takes BinaryQuadratic, got SubsetRegression"),
        (("solve", "inputs.npz", "--keep", "9"), "the largest count that can be kept is 6"),
        (("convert", "inputs.npz", "copy.coo"), "only .npz holds a SubsetRegression"),
        (("solve", "broken.npz"), "smallest eigenvalue is -"),
    ):
        told = command(*arguments)
        assert told.code == 2, arguments
        assert words in told.err
        assert told.err.count("\n") == 1


def test_the_problem_and_the_solver_load_nothing_heavy():
    code = (
        "import prunesolve as ps\n"
        "problem = ps.SubsetRegression([[1.0]], [[1.0]], [0], ps.Cardinality(1))\n"
        "problem.hash, problem.least, ps.solvers.get('osscar'), ps.solvers.available(problem)"
    )
    assert loaded_after(code, "scipy.sparse", *HEAVY) == []
