"""Swap annealing: repeatable, within its limits, and good on what is known."""

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest

from prunesolve.problems import BinaryQuadratic, Cardinality, InvalidProblem, LowRank
from prunesolve.solvers import Greedy, Status, SwapAnnealing

SCRIPT = """
import hashlib, numpy as np
from prunesolve.problems import BinaryQuadratic, Cardinality
from prunesolve.solvers import SwapAnnealing
rng = np.random.default_rng(0)
upper = np.triu(rng.normal(size=(60, 60)), 1)
problem = BinaryQuadratic(rng.normal(size=60), upper + upper.T, constraints=[Cardinality(20)])
result = SwapAnnealing(sweeps=50).solve(problem, seed=7)
print(hashlib.sha256(result.solution.tobytes()).hexdigest(), result.objective, result.evaluations)
"""


def random_problem(n=60, k=20):
    rng = np.random.default_rng(0)
    upper = np.triu(rng.normal(size=(n, n)), 1)
    return BinaryQuadratic(rng.normal(size=n), upper + upper.T, constraints=[Cardinality(k)])


def test_same_seed_same_answer_in_a_fresh_process():
    result = SwapAnnealing(sweeps=50).solve(random_problem(), seed=7)
    told = f"{hashlib.sha256(result.solution.tobytes()).hexdigest()} {result.objective} {result.evaluations}"
    fresh = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == told


@pytest.mark.parametrize("limit", [1, 7, 999, 12_345])
def test_the_evaluation_limit_is_respected_and_used_up(limit):
    result = SwapAnnealing().solve(random_problem(), evaluation_limit=limit)
    assert result.evaluations == limit
    assert result.status is Status.ITERATION_LIMIT
    assert result.feasible


def test_the_time_limit_is_kept():
    problem = random_problem(400, 150)
    SwapAnnealing()._prepare(problem)
    result = SwapAnnealing().solve(problem, time_limit=0.3)
    assert result.status is Status.TIME_LIMIT
    # generous against a busy machine: one chunk is 5 ms
    assert result.seconds < 0.3 + 0.25


def test_a_callback_stops_the_run():
    began = time.perf_counter()
    result = SwapAnnealing(sweeps=10**6).solve(random_problem(), callback=lambda incumbent: True)
    assert result.status is Status.STOPPED
    assert time.perf_counter() - began < 30


def test_never_worse_than_the_start_or_greedy():
    problem = random_problem()
    greedy = Greedy(direction="forward").solve(problem)
    assert SwapAnnealing(sweeps=1, restarts=1).solve(problem).objective <= greedy.objective
    start = np.arange(60) < 20
    result = SwapAnnealing(sweeps=1, restarts=1).solve(problem, start=start)
    assert result.objective <= problem.value(start)
    assert result.trace[0].objective == pytest.approx(problem.value(start))


def test_a_low_rank_agrees_with_its_dense_matrix():
    rng = np.random.default_rng(2)
    factors = LowRank(rng.normal(size=(16, 2)))
    linear = rng.normal(size=16) - 3
    found = [
        SwapAnnealing().solve(BinaryQuadratic(linear, quadratic, constraints=[Cardinality(6)])).objective
        for quadratic in (factors, factors.dense())
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_ties_everywhere_end_by_themselves():
    result = SwapAnnealing(sweeps=20).solve(BinaryQuadratic(np.zeros(12), constraints=[Cardinality(5)]))
    assert result.objective == 0.0
    assert result.status is Status.FINISHED


@pytest.mark.parametrize("options", [{"sweeps": 0}, {"restarts": 0}, {"t_start": 0.001, "t_end": 0.1}, {"t_end": 0.0}])
def test_options_without_sense_are_refused(options):
    with pytest.raises(InvalidProblem, match="expected"):
        SwapAnnealing(**options)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["GKD-c_1_n500_m50", "SOM-b_19_n500_m150"])
def test_best_known_of_the_maximum_diversity_problem(shared, name):
    import json

    best = json.loads((shared / "instances" / "index.json").read_text())["instances"][f"mdp_{name}"]["best"]
    with np.load(shared / "instances" / f"mdp_{name}.npz") as arrays:
        n = int(arrays["n"])
        matrix = np.zeros((n, n))
        matrix[np.triu_indices(n, 1)] = -arrays["d"]
        problem = BinaryQuadratic(np.zeros(n), matrix + matrix.T, constraints=[Cardinality(int(arrays["m"]))])
    # published values of GKD-c are rounded to single precision
    assert -SwapAnnealing().solve(problem, evaluation_limit=40_000_000).objective >= best * (1 - 1e-6)
