"""The compiled searches against enumeration and against each other, under random mixes of constraints."""

import itertools
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from prunesolve.problems import BinaryQuadratic, Blocks, Budget, Cardinality, GroupBounds, InvalidProblem, LowRank
from prunesolve.solvers import SwapAnnealing, SwapTabu, _kernels
from prunesolve.solvers._base import Run
from prunesolve.solvers._descent import descend
from prunesolve.solvers._search import Search
from prunesolve.solvers._start import Ledger, feasible_start

KINDS = ("dense", "sparse", "blocks", "low-rank")


def symmetric(rng, n):
    upper = np.triu(rng.normal(size=(n, n)), 1)
    return upper + upper.T


def couplings(rng, n, kind):
    if kind == "low-rank":
        # of rank 1 the factors may stay factors, above it the matrix is laid out
        return LowRank(rng.normal(size=(n, rng.integers(1, 4))), sign=int(rng.choice([-1, 1])))
    if kind == "blocks":
        return Blocks([symmetric(rng, n // 3), symmetric(rng, n - n // 3)])
    matrix = symmetric(rng, n)
    return matrix if kind == "dense" else sparse.csr_array(matrix * (np.abs(matrix) > 1.0))


def constraints_around(rng, n, x):
    """A random mix that x meets, so that no mix is infeasible."""
    chosen = [Cardinality(int(x.sum()))] if rng.random() < 0.5 else []
    for _ in range(rng.integers(0, 3)):
        group = np.append(rng.integers(-1, 3, size=n - 3), [0, 1, 2])
        kept = np.array([(x & (group == g)).sum() for g in range(3)])
        chosen.append(GroupBounds(group, kept - rng.integers(0, 2, 3), kept + rng.integers(0, 2, 3)))
    for _ in range(rng.integers(0, 3)):
        pair = np.abs(symmetric(rng, n)) * (symmetric(rng, n) > 0.5) if rng.random() < 0.5 else None
        if pair is not None:
            pair = np.triu(pair) + np.triu(pair).T
        free = Budget(rng.random(n), 0.0, pair)
        chosen.append(Budget(free.cost, float(free.spent(x)) + 0.3 * rng.random(), pair))
    return chosen


def problem_of(seed, kind, n):
    rng = np.random.default_rng(seed)
    x = rng.random(n) < 0.5
    return BinaryQuadratic(rng.normal(size=n), couplings(rng, n, kind), constraints=constraints_around(rng, n, x))


problems = st.builds(problem_of, st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.integers(4, 11))


def feasible_selections(problem):
    every = np.array(list(itertools.product([False, True], repeat=problem.n)))
    return every[problem.is_feasible(every)]


def spied(problem, run):
    """Offers that are feasible or fail the test."""
    offer = run.offer

    def checked(x, bound=None):
        assert problem.is_feasible(x), "an infeasible selection was offered"
        return offer(x, bound)

    run.offer = checked
    return run


@settings(max_examples=60)
@given(problem=problems, seed=st.integers(0, 99))
def test_every_point_is_feasible_and_none_is_below_the_optimum(problem, seed):
    best = problem.value(feasible_selections(problem)).min()
    for solver in (SwapAnnealing(sweeps=100, restarts=2), SwapTabu(iterations=500)):
        solver._prepare(problem)
        run = spied(problem, Run(problem, seed=seed))
        run.start = feasible_selections(problem)[0]
        solver._search(problem, run)
        assert run.objective >= best - 1e-9


@settings(max_examples=60)
@given(problem=problems, seed=st.integers(0, 99))
def test_the_kernels_own_figures_agree_with_the_problem(problem, seed):
    run = Run(problem, seed=seed)
    run.start = feasible_selections(problem)[0]
    search = Search.begin(problem, run)
    for heat in (np.inf, 1.0):
        search.heat(heat, 1.0, 7)
        while search.unfinished:
            search.anneal(most=11)
        x, limits = search.state.x, search.view.limits
        assert problem.is_feasible(x)
        assert np.allclose(search.state.f, problem.fields(x))
        assert np.isclose(search.walk.real[search._at.VALUE] + problem.offset, problem.value(x))
        counts = [np.bincount(part[x], minlength=len(limits.low)) for part in limits.part]
        assert np.array_equal(search.state.count, np.sum(counts, axis=0))
        assert np.allclose(search.state.spent, [b.spent(x) for b in problem.of_kind(Budget)])


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), n=st.integers(4, 11))
def test_searches_reach_the_optimum_on_connected_slices(seed, kind, n):
    """With a cardinality and one partition swaps reach everything; overlapping bounds may cut the slice in pieces."""
    rng = np.random.default_rng(seed)
    constraints = [Cardinality(n // 2), GroupBounds(np.arange(n) % 2, [0, 1], [n, n])]
    problem = BinaryQuadratic(rng.normal(size=n), couplings(rng, n, kind), constraints=constraints)
    best = problem.value(feasible_selections(problem)).min()
    for solver in (SwapAnnealing(), SwapTabu(iterations=5000)):
        assert solver.solve(problem, seed=1).objective == pytest.approx(best, abs=1e-9)


@settings(max_examples=60)
@given(problem=problems)
def test_descent_ends_where_no_single_move_improves(problem):
    feasible = feasible_selections(problem)
    x = feasible[len(feasible) // 2]
    y = descend(problem, x)
    apart = (feasible != y).sum(axis=1)
    near = feasible[(apart == 1) | ((apart == 2) & (feasible.sum(axis=1) == y.sum()))]
    assert problem.is_feasible(y)
    assert problem.value(y) <= problem.value(x) + 1e-9
    assert problem.value(y) <= min(problem.value(near), default=np.inf) + 1e-9


@settings(max_examples=60)
@given(problem=problems)
def test_a_start_is_found_where_there_is_one(problem):
    x = feasible_start(problem, np.random.default_rng(0))
    assert x is not None
    assert problem.is_feasible(x)


@settings(max_examples=40)
@given(problem=problems, flips=st.lists(st.integers(0, 3), max_size=6))
def test_the_ledger_keeps_its_books(problem, flips):
    ledger = Ledger(problem, np.zeros(problem.n, dtype=bool))
    for i in flips:
        ledger.flip(i)
    assert np.allclose(ledger.h, problem.fields(ledger.x))
    assert np.allclose(ledger.spent, [b.spent(ledger.x) for b in problem.of_kind(Budget)])
    assert ledger.feasible == problem.is_feasible(ledger.x)


def test_descent_refuses_an_infeasible_selection():
    problem = BinaryQuadratic([1.0, 2.0], constraints=[Cardinality(1)])
    with pytest.raises(InvalidProblem, match="feasible"):
        descend(problem, [True, True])


def test_descent_stops_when_asked():
    problem = BinaryQuadratic([-1.0, -2.0], constraints=[Cardinality(1)])
    assert np.array_equal(descend(problem, [True, False], should_stop=lambda: True), [True, False])


@pytest.mark.parametrize("solver", [SwapAnnealing(sweeps=60), SwapTabu(iterations=2000)])
@pytest.mark.parametrize("kind", ["blocks", "sparse"])
def test_storages_of_one_matrix_walk_the_same_path(solver, kind):
    rng = np.random.default_rng(5)
    blocks = Blocks([symmetric(rng, 9), symmetric(rng, 14), symmetric(rng, 7)])
    stored = blocks if kind == "blocks" else sparse.csr_array(blocks.dense())
    linear = rng.normal(size=30)
    offers = []
    for quadratic in (blocks.dense(), stored):
        problem = BinaryQuadratic(linear, quadratic, constraints=[Cardinality(12)])
        solver._prepare(problem)
        run = Run(problem, seed=3)
        run.start = np.arange(30) < 12
        search = Search.begin(problem, run)
        if isinstance(solver, SwapTabu):
            search.tabu((2, 4), 10**6, most=500)
        else:
            search.heat(0.5, 0.9, 20)
            while search.unfinished:
                search.anneal()
        offers.append(search.state.x.copy())
    assert np.array_equal(*offers)


@pytest.mark.parametrize("portion", [1, 7, 1000])
def test_the_length_of_a_call_changes_nothing(portion):
    problem = problem_of(4, "dense", 11)
    ends = []
    for work in (portion, 10**6):
        run = Run(problem, seed=0)
        run.start = feasible_selections(problem)[0]
        search = Search.begin(problem, run)
        search.heat(1.0, 0.9, 40)
        while search.unfinished:
            search._pace.work = work
            search.anneal()
        ends.append((search.state.x.copy(), search.walk.best.copy(), search.walk.real.copy(), search.walk.chance[0]))
    for one, other in zip(*ends, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("solver", [SwapAnnealing(), SwapTabu()])
def test_two_of_four_patterns_are_searched_to_the_optimum(solver):
    rng = np.random.default_rng(0)
    bounds = GroupBounds(np.arange(20) // 4, [2] * 5, [2] * 5)
    problem = BinaryQuadratic(rng.normal(size=20), symmetric(rng, 20), constraints=[bounds])
    patterns = [p for p in itertools.product([False, True], repeat=4) if sum(p) == 2]
    every = np.array(list(itertools.product(patterns, repeat=5))).reshape(-1, 20)
    result = solver.solve(problem)
    assert np.array_equal(bounds.counts(result.solution), [2] * 5)
    assert result.objective == pytest.approx(problem.value(every).min(), abs=1e-9)


def test_a_cold_cache_is_announced_once_and_a_warm_one_is_not(tmp_path):
    script = (
        "import logging; logging.basicConfig(format='%(name)s %(message)s')\n"
        "from prunesolve.problems import BinaryQuadratic\n"
        "from prunesolve.solvers._descent import prepare\n"
        "prepare(BinaryQuadratic([1.0, 2.0]))\n"
        "prepare(BinaryQuadratic([1.0, 2.0, 3.0]))\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    told = [
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stderr
        for _ in range(2)
    ]
    assert told[0].count("prunesolve compiling the low-rank descent kernels") == 1
    assert told[1] == ""


def test_nothing_is_announced_when_compiled(caplog):
    problem = BinaryQuadratic([1.0, 2.0])
    SwapTabu()._prepare(problem)
    with caplog.at_level(logging.WARNING, logger="prunesolve"):
        SwapTabu()._prepare(problem)
    assert not caplog.records


def test_a_cache_folder_that_cannot_be_written_is_passed_over(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setattr(_kernels, "_HERE", blocked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert _kernels._folder("").parent == tmp_path / "home" / "prunesolve"


def test_the_kernels_leave_scipy_as_it_is():
    script = (
        "from prunesolve.problems import BinaryQuadratic\n"
        "from prunesolve.solvers._descent import prepare\n"
        "import numpy as np, sys\n"
        "prepare(BinaryQuadratic([1.0, 2.0]))\n"
        "import scipy.linalg.cython_blas\n"
        "assert scipy.linalg.cython_blas is sys.modules['scipy.linalg.cython_blas']\n"
        "assert scipy.linalg.det(np.eye(2)) == 1.0\n"
        "import numba\n"
        "assert numba.njit(lambda a: a @ a)(2 * np.eye(2))[0, 0] == 4.0\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
