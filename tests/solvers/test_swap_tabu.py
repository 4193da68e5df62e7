"""Swap tabu: repeatable, within its limits, and good on what is known."""

import subprocess
import sys

import numpy as np
import pytest

from prunesolve.problems import BinaryQuadratic, Budget, Cardinality, InvalidProblem
from prunesolve.solvers import Greedy, Status, SwapTabu

SCRIPT = """
import numpy as np
from prunesolve.problems import BinaryQuadratic, Cardinality
from prunesolve.solvers import SwapTabu
rng = np.random.default_rng(0)
upper = np.triu(rng.normal(size=(60, 60)), 1)
problem = BinaryQuadratic(rng.normal(size=60), upper + upper.T, constraints=[Cardinality(20)])
result = SwapTabu(iterations=4000).solve(problem, seed=7)
print(np.flatnonzero(result.solution).tolist(), result.objective, result.evaluations)
"""


def random_problem(n=60, k=20):
    rng = np.random.default_rng(0)
    upper = np.triu(rng.normal(size=(n, n)), 1)
    return BinaryQuadratic(rng.normal(size=n), upper + upper.T, constraints=[Cardinality(k)])


def test_same_seed_same_answer_in_a_fresh_process():
    result = SwapTabu(iterations=4000).solve(random_problem(), seed=7)
    fresh = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == f"{np.flatnonzero(result.solution).tolist()} {result.objective} {result.evaluations}"


@pytest.mark.parametrize("limit", [1, 7, 5_000])
def test_the_evaluation_limit_is_respected_and_used_up(limit):
    result = SwapTabu().solve(random_problem(), evaluation_limit=limit)
    assert result.evaluations == limit
    assert result.status is Status.ITERATION_LIMIT


def test_the_time_limit_is_kept():
    problem = random_problem(400, 150)
    SwapTabu()._prepare(problem)
    result = SwapTabu().solve(problem, time_limit=0.3)
    assert result.status is Status.TIME_LIMIT
    assert result.seconds < 0.3 + 0.25


def test_it_ends_by_itself_after_its_iterations():
    result = SwapTabu(iterations=1234).solve(random_problem())
    assert result.status is Status.FINISHED
    assert result.evaluations == 1234


def test_it_improves_on_greedy():
    problem = random_problem()
    assert SwapTabu(iterations=5000).solve(problem).objective < Greedy().solve(problem).objective


def test_a_full_knapsack_does_not_freeze_the_search():
    """Exact by dynamic programming: without couplings the problem is a knapsack with whole weights."""
    rng = np.random.default_rng(4)
    weights, profits = rng.integers(5, 60, size=40), rng.integers(5, 100, size=40)
    capacity = 400
    table = np.zeros(capacity + 1)
    for weight, profit in zip(weights, profits, strict=True):
        table[weight:] = np.maximum(table[weight:], table[:-weight] + profit)
    problem = BinaryQuadratic(-profits.astype(float), constraints=[Budget(weights, capacity)])
    assert SwapTabu().solve(problem).objective == -table[-1]


@pytest.mark.parametrize("k", [1, 5])
def test_tiny_neighbourhoods_do_not_stall(k):
    problem = random_problem(6, k)
    assert SwapTabu(iterations=500).solve(problem).status is Status.FINISHED


@pytest.mark.parametrize("options", [{"iterations": 0}, {"tenure": -1}])
def test_options_without_sense_are_refused(options):
    with pytest.raises(InvalidProblem, match="expected"):
        SwapTabu(**options)


@pytest.mark.shared
def test_best_known_of_an_unconstrained_instance(shared):
    import json

    best = json.loads((shared / "instances" / "index.json").read_text())["instances"]["ubqp_bqp250-1"]["best"]
    with np.load(shared / "instances" / "ubqp_bqp250-1.npz") as arrays:
        n, i, j, q = int(arrays["n"]), arrays["i"], arrays["j"], arrays["q"].astype(float)
    linear, matrix = np.zeros(n), np.zeros((n, n))
    np.add.at(linear, i[i == j], q[i == j])
    np.add.at(matrix, (i[i != j], j[i != j]), q[i != j])
    result = SwapTabu().solve(BinaryQuadratic(linear, matrix + matrix.T), evaluation_limit=100_000)
    assert result.objective == best
