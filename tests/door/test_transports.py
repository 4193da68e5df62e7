"""Transports and clusterings through files and the command line: info, solve, check, convert."""

from __future__ import annotations

import json

import numpy as np
import pytest

import prunesolve as ps
from prunesolve.claims import examine
from prunesolve.result_files import told_of
from prunesolve.solvers import _clustering_testing, _transport_testing

from .test_cli import KEYS
from .test_light import HEAVY, loaded_after


@pytest.fixture
def saved(folder):
    """A transport of equal weights, one of any masses, and a clustering, with their optima."""
    transports = _transport_testing.transports()
    problems = {
        "unit": transports["units, wide, sixths"],
        "masses": transports["masses"].replace(labels=([("fc1", i) for i in range(5)], [("fc1", i) for i in range(4)])),
        "points": _clustering_testing.clusterings()["size, weights, distances"],
    }
    for name, problem in problems.items():
        problem.save(folder / f"{name}.npz")
    kinds = {"points": _clustering_testing}
    return {name: (p, kinds.get(name, _transport_testing).optimum(p)) for name, p in problems.items()}


def test_info_says_what_is_in_the_files(command, saved):
    for name, words in (
        (
            "unit",
            "PartialTransport, 2 sources, 6 targets, float64 costs, mass 0.166667 of 0.333333 and 1, equal weights",
        ),
        ("masses", "PartialTransport, 5 sources, 4 targets, float64 costs, mass 0.8 of 1.8 and 1.5, any weights"),
        ("points", "Clustering, 7 points by distances, 4 clusters of at most 2"),
    ):
        told = command("info", f"{name}.npz")
        assert (told.code, told.err) == (0, "")
        assert words in told.out
        assert saved[name][0].hash in told.out
        loaded = ps.load(f"{name}.npz")
        assert (type(loaded), loaded.hash) == (type(saved[name][0]), saved[name][0].hash)


@pytest.mark.parametrize(
    ("name", "picked"), [("unit", "assignment"), ("masses", "network-simplex"), ("points", "ward")]
)
def test_solve_and_check(command, saved, name, picked):
    problem, optimum = saved[name]
    told = command("solve", f"{name}.npz", "--out", "result.json", "--json")
    assert (told.code, told.err) == (0, "")
    printed = json.loads(told.out)
    assert set(printed) >= KEYS
    assert printed["details"]["picked"].startswith(picked)
    assert printed["objective"] == pytest.approx(optimum, abs=1e-9)
    assert (printed["instance_hash"], printed["n"]) == (problem.hash, problem.n)
    assert (printed["kept"], printed["kept_units"], printed["feasible"]) == (None, None, True)
    result = ps.load("result.json")
    assert problem.value(result.solution) == pytest.approx(printed["objective"])
    told = command("check", f"{name}.npz", "result.json")
    assert told.code == 0
    assert told.out.startswith("holds: objective ")
    again = command("solve", f"{name}.npz", "--start", "result.json", "--json")
    assert json.loads(again.out)["objective"] <= printed["objective"] + 1e-12


def test_a_transports_result_has_the_documented_keys(command, saved):
    problem, optimum = saved["masses"]
    printed = json.loads(command("solve", "masses.npz", "--json").out)
    rows, shape = np.array(printed["solution"]["plan"]), printed["solution"]["shape"]
    plan = np.zeros(shape)
    plan[rows[:, 0].astype(int), rows[:, 1].astype(int)] = rows[:, 2]
    assert (plan * problem.cost).sum() == pytest.approx(optimum)
    details = printed["details"]
    assert details["mass_asked"] == 0.8
    assert details["mass_carried"] == pytest.approx(0.8)
    assert set(details["marginal_errors"]) == {"source", "target", "mass"}
    u, v, t = (np.array(details["duals"][name]) for name in ("u", "v", "mass"))
    assert max(u.max(), v.max()) <= 0.0
    assert (t + u[:, None] + v <= problem.cost + 1e-12).all()
    assert (
        t * 0.8 + u @ problem.source + v @ problem.target == pytest.approx(printed["bound"]) == pytest.approx(optimum)
    )
    assert printed["status"] == "OPTIMAL"


def test_a_summary_shows_the_plan_or_the_clusters(command, saved):
    told = command("solve", "masses.npz")
    assert "carried     0.8 of 0.8, " in told.out
    assert told.out.count(" -> ") == len(json.loads(command("solve", "masses.npz", "--json").out)["solution"]["plan"])
    labels = json.loads(command("solve", "points.npz", "--json").out)["solution"]
    assert f"solution    {' '.join(map(str, labels))}" in command("solve", "points.npz").out


def test_a_long_plan_is_cut_short(command, folder):
    ps.PartialTransport(np.random.default_rng(0).random((40, 30)), np.ones(40), 1.1 * np.ones(30), 25.0).save(
        "long.npz"
    )
    told = command("solve", "long.npz")
    assert told.out.count(" -> ") == 20
    assert "more; --json tells them all" in told.out


def test_convert_keeps_the_instance_and_refuses_other_formats(command, saved):
    for name, kind in (("unit", "PartialTransport"), ("points", "Clustering")):
        assert command("convert", f"{name}.npz", "copy.npz").code == 0
        assert ps.load("copy.npz").hash == saved[name][0].hash
        told = command("convert", f"{name}.npz", "copy.coo")
        assert (told.code, told.err) == (2, f"prunesolve: copy.coo: only .npz holds a {kind}, got .coo\n")


@pytest.mark.parametrize(
    ("name", "changes", "fault"),
    [
        ("masses", {"objective": 0.0}, "claims objective 0,"),
        ("masses", {"bound": 1e3}, "claims bound 1000, above its objective"),
        ("masses", {"details": {"duals": {"u": [0.0] * 5, "v": [-9.0] * 4}}}, "its duals prove"),
        ("masses", {"kept": 3}, "claims 3 kept"),
        ("masses", {"instance_hash": "0" * 16}, "made for instance"),
        ("masses", {"solution": {"plan": [], "shape": [5, 4]}}, "claims to be feasible, violation 0.8"),
        ("points", {"objective": 0.0}, "claims objective 0,"),
        ("points", {"solution": [0, 0, 0, 1, 1, 2, 3]}, "claims to be feasible, violation 1"),
        ("points", {"kept_units": {"fc1": [0]}}, "claims kept_units"),
    ],
)
def test_false_claims_are_found(saved, name, changes, fault):
    problem, _ = saved[name]
    told = told_of(name, problem, ps.solve(problem))
    assert examine(problem, told).faults == ()
    assert fault in "\n".join(examine(problem, told | changes).faults)


@pytest.mark.parametrize(
    "solution",
    [[0, 1], {"plan": [[0, 0, 0.8]]}, {"plan": [[7, 0, 0.8]], "shape": [5, 4]}, {"plan": 3, "shape": [5, 4]}],
)
def test_what_is_no_plan_is_no_claim(command, saved, folder, solution):
    problem, _ = saved["masses"]
    told = told_of("masses.npz", problem, ps.solve(problem)) | {"solution": solution}
    (folder / "result.json").write_text(json.dumps(told))
    told = command("check", "masses.npz", "result.json")
    assert told.code == 2
    assert told.err.startswith("prunesolve: result.json")
    assert told.err.count("\n") == 1


def test_what_makes_no_sense_of_them_ends_in_one_line(command, saved, folder):
    for arguments, words in (
        (("solve", "masses.npz", "--solver", "greedy"), "greedy takes BinaryQuadratic, got PartialTransport"),
        (("solve", "masses.npz", "--solver", "assignment"), "network-simplex"),
        (("solve", "points.npz", "--solver", "sinkhorn"), "sinkhorn takes PartialTransport, got Clustering"),
        (("solve", "masses.npz", "--keep", "3"), "--keep: a PartialTransport has no count"),
        (("solve", "masses.npz", "--solver", "sinkhorn", "--option", "regularisation=-1"), "must be above 0"),
        (("apply", "net_factory:trained", "result.json", "-o", "out"), "expected kept_units"),
    ):
        if arguments[0] == "apply":
            command("solve", "masses.npz", "--out", "result.json")
        told = command(*arguments)
        assert told.code == 2, arguments
        assert words in told.err
        assert told.err.count("\n") == 1


def test_damaged_instances_end_in_one_line(command, saved, folder):
    arrays = dict(np.load("masses.npz"))
    cost = arrays["cost"].copy()
    cost[0, 0] = np.nan
    for changes, words in (
        ({"mass": np.array(9.0)}, "9 does not fit; the largest that does is 1.5"),
        ({"cost": cost}, "nan"),
    ):
        np.savez("broken.npz", **(arrays | changes))
        told = command("solve", "broken.npz")
        assert (told.code, told.err.count("\n")) == (2, 1)
        assert words in told.err


def test_nothing_to_carry_and_one_cluster_need_no_search(command, folder):
    ps.PartialTransport([[1.0, 2.0]], [1.0], [1.0, 1.0], 0.0).save("none.npz")
    ps.Clustering([[1.0], [2.0], [4.0]], n_clusters=1).save("one.npz")
    for name, solution in (("none", {"plan": [], "shape": [1, 2]}), ("one", [0, 0, 0])):
        told = command("solve", f"{name}.npz", "--json", "--out", "result.json")
        assert (told.code, json.loads(told.out)["solution"]) == (0, solution)
        assert json.loads(told.out)["status"] == "OPTIMAL"
        assert command("check", f"{name}.npz", "result.json").code == 0


def test_the_problems_and_the_solvers_load_without_pot():
    code = (
        "import prunesolve as ps\n"
        "problem = ps.PartialTransport([[1.0]], [1.0], [1.0], 1.0)\n"
        "problem.hash, problem.unit, ps.Clustering([[1.0]], n_clusters=1).hash\n"
        "ps.solvers.summaries(), [ps.solvers.get(name) for name in ('network-simplex', 'sinkhorn')]"
    )
    assert loaded_after(code, "scipy.sparse", *HEAVY) == []
