"""Results as a dimod SampleSet: energies are dimod's own, and its JSON brings everything back."""

from __future__ import annotations

import json

import dimod
import numpy as np
import pytest

from prunesolve import solvers
from prunesolve.bridges.dimod import sample_set
from prunesolve.problems import BinaryQuadratic, Cardinality, InvalidProblem, LevelChoice, Unit, UnsupportedProblem
from prunesolve.result_files import told_of

N = 9
LABELS = [Unit("conv", i) for i in range(4)] + ["b", "a", 7, ("c", 1), "z"]


def problem_of(labels=None):
    rng = np.random.default_rng(3)
    upper = np.triu(rng.normal(size=(N, N)), 1)
    return BinaryQuadratic(
        rng.normal(size=N), upper + upper.T, offset=0.25, constraints=[Cardinality(4)], labels=labels
    )


def results_of(problem):
    return [solvers.get("swap-annealing", sweeps=2, restarts=1).solve(problem, seed=seed) for seed in range(5)]


@pytest.mark.parametrize("labels", [None, LABELS])
def test_energies_are_those_of_the_bqm(labels):
    problem = problem_of(labels)
    found = sample_set(problem, results_of(problem))
    bqm = problem.to_bqm()
    if labels is not None:
        bqm.relabel_variables({i: tuple(x) if isinstance(x, tuple) else x for i, x in enumerate(labels)})
    assert found.vartype is dimod.BINARY
    assert set(found.variables) == set(bqm.variables)
    np.testing.assert_allclose(found.record.energy, bqm.energies(found), rtol=1e-12)


def test_a_row_for_each_result_told_or_not():
    problem = problem_of(LABELS)
    results = results_of(problem)
    told = [told_of("x.npz", problem, result) for result in results]
    for found in (sample_set(problem, results), sample_set(problem, told)):
        np.testing.assert_array_equal(found.record.sample, [r.solution for r in results])
        assert list(found.variables) == [tuple(x) if isinstance(x, tuple) else x for x in LABELS]
        assert found.record.seed.tolist() == [r.seed for r in results]
        assert found.record.seconds.tolist() == [r.seconds for r in results]
        assert set(found.record.status) == {"FINISHED"}
        assert found.record.solver.tolist() == [r.solver for r in results]
        assert found.record.is_feasible.all()
        assert found.info["instance_hash"] == problem.hash


def test_feasibility_is_recomputed_and_empty_results_are_left_out():
    problem = problem_of()
    told = told_of("x.npz", problem, results_of(problem)[0])
    broken = told | {"solution": [0, 1], "kept": 2, "feasible": True}
    nothing = told | {"solution": None, "objective": None, "feasible": False}
    found = sample_set(problem, [broken, nothing, told])
    assert found.record.is_feasible.tolist() == [False, True]
    assert len(sample_set(problem, [])) == 0


def test_dimod_reads_back_what_it_serialises():
    problem = problem_of(LABELS)
    found = sample_set(problem, results_of(problem))
    back = dimod.SampleSet.from_serializable(json.loads(json.dumps(found.to_serializable())))
    assert back == found
    assert back.info == found.info
    assert back.record.status.tolist() == found.record.status.tolist()


def test_results_of_something_else_are_refused():
    problem = problem_of()
    result = results_of(problem)[0]
    with pytest.raises(InvalidProblem, match="results of instance"):
        sample_set(problem, [told_of("x.npz", problem.replace(offset=1.0), result)])
    with pytest.raises(InvalidProblem, match="selections of n = 2"):
        sample_set(BinaryQuadratic([1.0, 2.0]), [result])
    with pytest.raises(UnsupportedProblem, match="LevelChoice"):
        sample_set(LevelChoice([[0.0, 1.0]], [[0.0, 1.0]], 1.0), [])
