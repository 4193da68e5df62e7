"""`prunesolve check`: claims that hold, and each way in which one can be wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

import prunesolve as ps
from prunesolve.claims import examine
from prunesolve.result_files import told_of

NAME = "resnet20-layer1.0-reconstruction-keep50"


def honest(problem, solution, **changes):
    """What a solver would say of this solution, with some of it changed."""
    told = told_of("library:" + NAME, problem, ps.solve(problem, solver="greedy"))
    true = {"objective": problem.value(solution), "native_objective": problem.value(solution), "status": "FINISHED"}
    kept = np.flatnonzero(solution).tolist()
    units = {"layer1.0.conv1": [problem.labels[i].channel for i in kept]}
    true |= {"solution": kept, "kept": len(kept), "kept_units": units, "feasible": problem.is_feasible(solution)}
    return told | true | changes


@pytest.fixture(scope="module")
def problem():
    return ps.library.load(NAME)


@pytest.fixture(scope="module")
def best():
    return ps.library.best_solution(NAME)


def worse(problem, best):
    """A feasible selection that is not the best: one kept unit of each half changed places."""
    found = best.copy()
    found[[np.flatnonzero(best)[0], np.flatnonzero(~best)[0]]] ^= True
    assert problem.value(found) > problem.value(best)
    return found


def test_the_best_known_matches(problem, best):
    verdict = examine(problem, honest(problem, best, status="OPTIMAL", bound=problem.value(best)))
    assert verdict.faults == ()
    assert verdict.lines[0].startswith("holds: objective 0.1")
    assert "8 of 16 kept, feasible" in verdict.lines[0]
    assert verdict.lines[1].startswith("matches best known")
    assert "proved optimal" in verdict.lines[1]


def test_a_worse_one_is_told_its_distance(problem, best):
    other = worse(problem, best)
    verdict = examine(problem, honest(problem, other))
    assert verdict.faults == ()
    distance = problem.value(other) - problem.value(best)
    assert f"{distance:.2g} above best known" in verdict.lines[1]


def test_a_better_one_is_told_so(problem, best):
    modest = problem.replace(meta=dict(problem.meta) | {"best_known": problem.value(best) + 0.25, "proved": False})
    verdict = examine(modest, honest(modest, best))
    assert "0.25 better than best known" in verdict.lines[1]
    bounded = problem.replace(meta=dict(problem.meta) | {"bound": problem.value(best) + 0.1})
    assert "that bound is wrong" in "\n".join(examine(bounded, honest(bounded, best)).lines)


FORGED = {
    "objective": ({"objective": 0.05}, "claims objective 0.05, recomputed 0.1"),
    "objective by a hair": ({"objective": None}, "claims objective None"),
    "native objective": ({"native_objective": -1.0}, "claims native_objective -1, recomputed 0.1"),
    "feasibility": ({"feasible": False}, "claims to be infeasible, violation 0"),
    "count": ({"kept": 7}, "claims 7 kept, its solution keeps 8"),
    "units": ({"kept_units": {"layer1.0.conv1": [0]}}, "claims kept_units that are not"),
    "units of another kind": ({"kept_units": [0, 1]}, "claims kept_units that are not"),
    "bound": ({"bound": 0.2}, "claims bound 0.2, above its objective 0.1"),
    "bound of text": ({"bound": "high"}, "claims bound high, which is no number"),
    "instance": ({"instance_hash": "0" * 16}, "made for instance 0000000000000000, this one is"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_claim_is_refuted(problem, best, case):
    changes, words = FORGED[case]
    verdict = examine(problem, honest(problem, best, **changes))
    assert len(verdict.faults) == 1
    assert words in verdict.faults[0]
    assert verdict.lines[0] == f"wrong: {verdict.faults[0]}"


def test_a_small_lie_on_a_small_objective_is_found():
    # an absolute tolerance of 1e-9 would swallow it
    tiny = ps.BinaryQuadratic([-1e-10, -2e-10], constraints=[ps.Cardinality(1)])
    told = {"n": 2, "solution": [1], "objective": -2.1e-10, "feasible": True}
    assert "claims objective -2.1e-10, recomputed -2e-10" in examine(tiny, told).faults
    assert examine(tiny, told | {"objective": -2e-10}).faults == ()


def test_an_infeasible_solution_called_feasible(problem, best):
    less = best.copy()
    less[np.flatnonzero(best)[0]] = False
    verdict = examine(problem, honest(problem, less, feasible=True))
    assert verdict.faults == ("claims to be feasible, violation 1",)
    admitted = examine(problem, honest(problem, less))
    assert admitted.faults == ()
    assert not admitted.feasible
    assert admitted.lines[0].startswith("infeasible, as claimed")
    optimal = examine(problem, honest(problem, less, status="OPTIMAL"))
    assert optimal.faults == ("claims to be OPTIMAL, but is infeasible",)


def test_what_is_known_refutes_optimality_and_bounds(problem, best):
    other = worse(problem, best)
    claimed = examine(problem, honest(problem, other, status="OPTIMAL"))
    assert "claims to be OPTIMAL, the best known value" in claimed.faults[0]
    between = (problem.value(best) + problem.value(other)) / 2
    assert "above the best known value" in examine(problem, honest(problem, other, bound=between)).faults[0]
    unknown = problem.replace(meta={})
    assert examine(unknown, honest(unknown, other, status="OPTIMAL", bound=between)).faults == ()


def test_the_sense_of_the_file():
    problem = ps.BinaryQuadratic([-5.0, 1.0], meta={"sense": "maximise"})
    told = {"n": 2, "solution": [0], "objective": -5.0, "native_objective": 5.0, "feasible": True}
    verdict = examine(problem, told)
    assert verdict.faults == ()
    assert "objective -5 (5 maximised)" in verdict.lines[0]
    assert "claims native_objective -5" in examine(problem, told | {"native_objective": -5.0}).faults[0]


@pytest.mark.parametrize("changes", [{"solution": None}, {"n": 3}, {"solution": [99]}, {"solution": [-1]}])
def test_nothing_to_check_is_bad_input(problem, best, changes):
    with pytest.raises(ps.InvalidProblem, match="solution"):
        examine(problem, honest(problem, best) | changes)


# From the shell


@pytest.fixture
def solved(command, folder):
    told = command("solve", f"library:{NAME}", "--solver", "exact", "--out", "r.json", "--json")
    assert (told.code, told.err) == (0, "")
    return json.loads(told.out)


def test_the_way_through_the_library(command, folder, solved):
    assert solved["instance"] == f"library:{NAME}"
    assert solved["kept_units"].keys() == {"layer1.0.conv1"}
    assert len(solved["kept_units"]["layer1.0.conv1"]) == 8
    told = command("check", f"library:{NAME}", "r.json")
    assert (told.code, told.err) == (0, "")
    assert "matches best known" in told.out
    assert command("convert", f"library:{NAME}", "own.npz").code == 0
    assert "matches best known" in command("check", "own.npz", "r.json").out


@pytest.mark.parametrize("case", ["objective", "bound", "instance", "count"])
def test_a_forged_file_is_exit_code_1_in_clear_words(command, folder, solved, case):
    changes, words = FORGED[case]
    (folder / "r.json").write_text(json.dumps(solved | changes))
    told = command("check", f"library:{NAME}", "r.json")
    assert (told.code, told.err) == (1, "")
    assert words in told.out


def test_another_instance_is_refuted(command, folder, solved):
    told = command("check", "library:resnet20-stage1-reconstruction-keep64", "r.json")
    assert told.code == 1
    assert "made for instance" in told.out


def test_the_listing_and_what_is_known(command, folder):
    lines = command("instances").out.splitlines()
    assert [line.split()[0] for line in lines] == ps.library.names()
    told = command("info", f"library:{NAME}")
    assert told.code == 0
    for words in ("BinaryQuadratic, n = 16", "ResNet-20", "best known", "proved optimal"):
        assert words in told.out


@pytest.mark.parametrize("line", ["solve {}", "info {}", "convert {} x.npz", "check {} r.json"])
def test_a_name_without_its_prefix_or_misspelt_is_suggested(command, folder, line):
    for missing in (NAME, f"{NAME}.npz", NAME[:-1]):
        told = command(*line.format(missing).split())
        assert (told.code, told.out) == (2, "")
        assert f"did you mean library:{NAME}?" in told.err
    told = command(*line.format(f"library:{NAME[:-1]}").split())
    assert told.code == 2
    assert "did you mean" in told.err
