"""Sparse regressions through files and the command line: info, solve, check."""

from __future__ import annotations

import json

import pytest

import prunesolve as ps
from prunesolve.solvers import _sparse_testing

WORDS = {
    "2:4": "SparseRegression, 2 outputs of 4 inputs, 2 of every 4: 4 of 8 weights stay, hash ",
    "1:3, order": "2 outputs of 6 inputs, 1 of every 3 in an order given: 4 of 12 weights stay",
    "row factors": "2 outputs of 4 inputs, 2 factors for each output, any 3 weights: 3 of 8 weights stay",
    "per row": "2 outputs of 4 inputs, 2 in each row: 4 of 8 weights stay",
}


@pytest.fixture
def saved(folder):
    problems = {name: _sparse_testing.regressions()[name] for name in WORDS}
    for name, problem in problems.items():
        problem.save(folder / f"{name[:3]}.npz")
    return problems


def test_info_says_what_is_in_the_files(command, saved):
    for name, words in WORDS.items():
        told = command("info", f"{name[:3]}.npz")
        assert (told.code, told.err) == (0, "")
        assert words in told.out
        assert saved[name].hash in told.out
        loaded = ps.load(f"{name[:3]}.npz")
        assert (type(loaded), loaded.hash, loaded.pattern) == (
            ps.SparseRegression,
            saved[name].hash,
            saved[name].pattern,
        )


@pytest.mark.parametrize("solver", ["auto", "obc", "admm", "iht-swap", "magnitude"])
def test_solve_and_check(command, saved, solver):
    for name in ("2:4", "row factors"):
        problem = saved[name]
        told = command("solve", f"{name[:3]}.npz", "--solver", solver, "--out", "result.json", "--json")
        assert (told.code, told.err) == (0, "")
        printed = json.loads(told.out)
        assert printed["objective"] >= _sparse_testing.optimum(problem) - 1e-9
        assert printed["bound"] == pytest.approx(problem.least, abs=1e-9)
        assert (printed["n"], printed["kept"], printed["feasible"]) == (8, problem.k, True)
        told = command("check", f"{name[:3]}.npz", "result.json")
        assert told.code == 0
        assert told.out.startswith("holds: objective ")
        again = command("solve", f"{name[:3]}.npz", "--solver", solver, "--start", "result.json", "--json")
        assert json.loads(again.out)["objective"] <= printed["objective"] + 1e-12


def test_a_claim_that_is_not_so_is_found(command, saved):
    command("solve", "2:4.npz", "--solver", "admm", "--out", "result.json")
    with open("result.json", encoding="utf-8") as file:
        claim = json.load(file)
    for change in ({"objective": claim["objective"] - 0.1}, {"solution": [0, 1, 2, 4, 5]}):
        with open("result.json", "w", encoding="utf-8") as file:
            json.dump(claim | change, file)
        told = command("check", "2:4.npz", "result.json")
        assert told.code != 0
        assert "wrong: " in told.out


def test_other_solvers_say_what_they_take(command, saved):
    told = command("solve", "2:4.npz", "--solver", "greedy")
    assert told.code != 0
    assert "greedy takes BinaryQuadratic, got SparseRegression" in told.err
