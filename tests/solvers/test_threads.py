"""Searches side by side: one answer whoever comes first, shared limits, and an end that reaches every thread."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from prunesolve import solvers
from prunesolve.problems import BinaryQuadratic, Cardinality, InvalidProblem, SolverFailed, generators
from prunesolve.solvers import Auto, Restarts, Solver, Status, SwapAnnealing, SwapTabu
from prunesolve.solvers._threads import side_by_side
from prunesolve.solvers.testing import check_solver

PRUNING = generators.pruning(40, seed=1).replace(diagonal=None)  # with it `auto` proves the optimum at once
QUBO = generators.qubo(40, seed=1)
FEW = 6001  # evaluations, no multiple of any number of threads tried here
THREADED = [
    SwapAnnealing(sweeps=20, restarts=2),
    SwapTabu(iterations=2000),
    Restarts(SwapAnnealing(sweeps=20, restarts=1), times=4),
    Auto(),
]
PATIENCE = 300.0  # seconds after which a test that hangs is ended; kernels may have to be compiled first

threaded = pytest.mark.parametrize("solver", THREADED, ids=lambda solver: solver.name)


@pytest.fixture(autouse=True)
def _ends():
    """Ctrl-C for a test that hangs, and no thread of ours left behind."""
    alarm = threading.Timer(PATIENCE, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    yield
    hung = not alarm.is_alive()
    alarm.cancel()
    alarm.join()
    assert not hung
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("prunesolve")]


@dataclass(frozen=True)
class SideBySide(Solver):
    """Its searches are whatever the test says."""

    acts: Any = ()

    name: ClassVar[str] = "side-by-side"

    def _search(self, problem, run):
        return side_by_side(run, self.acts)


def after(*acts, problem=None, **limits):
    problem = BinaryQuadratic([-1.0, -2.0, -2.0, 4.0], constraints=[Cardinality(1)]) if problem is None else problem
    return SideBySide(acts).solve(problem, **limits)


def unit(i):
    return [j == i for j in range(4)]


def told(result):
    return result.solution.tolist(), result.objective, result.evaluations, result.status, result.details.get("threads")


# --- one answer ----------------------------------------------------------------------------------------------------


@threaded
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("limits", [{}, {"evaluation_limit": FEW}], ids=["no limit", "evaluation limit"])
def test_seed_and_threads_determine_the_answer(solver, threads, limits):
    solver = replace(solver, threads=threads)
    for problem in (PRUNING, QUBO):
        first = solver.solve(problem, seed=3, **limits)
        assert [told(solver.solve(problem, seed=3, **limits)) for _ in range(3)] == [told(first)] * 3
        assert len(first.details.get("threads", [None])) == min(threads, getattr(solver, "times", threads))
        assert first.feasible


@pytest.mark.parametrize("solver", [SwapAnnealing(sweeps=20, restarts=2), SwapTabu()], ids=lambda solver: solver.name)
def test_the_answer_is_the_best_of_the_same_searches_one_by_one(solver):
    start = np.arange(40) < PRUNING.k
    together = replace(solver, threads=3).solve(PRUNING, seed=5, start=start, evaluation_limit=3 * 700)
    parts = together.details["threads"]
    alone = [solver.solve(PRUNING, seed=one["seed"], start=start, evaluation_limit=700) for one in parts]
    assert parts[0]["seed"] == 5
    assert len({one["seed"] for one in parts}) == 3
    assert [one["objective"] for one in parts] == [result.objective for result in alone]
    best = min(alone, key=lambda result: result.objective)
    assert np.array_equal(together.solution, best.solution)
    assert together.evaluations == sum(result.evaluations for result in alone)


def test_of_equals_the_first_search_wins_whoever_is_faster():
    def late(run):
        time.sleep(0.1)
        run.offer(unit(1))

    def early(run):
        run.offer(unit(2))

    for acts, kept in (((late, early), 1), ((early, late), 2)):
        result = after(*acts)
        assert (result.solution.tolist(), result.objective) == (unit(kept), -2.0)
        assert [row.objective for row in result.trace] == [-2.0]


def test_a_start_is_kept_where_no_search_beats_it():
    result = after(*[lambda run: run.offer(unit(1)) and None] * 2, start=unit(2))
    assert result.solution.tolist() == unit(2)


def test_a_wrapper_passes_the_answer_on():
    inner = SwapAnnealing(sweeps=20, restarts=1, threads=2)
    wrapped = Restarts(inner, times=2, threads=2)
    assert told(wrapped.solve(PRUNING, seed=2)) == told(wrapped.solve(PRUNING, seed=2))
    assert solvers.Polish(replace(inner, threads=3)).solve(PRUNING).feasible


@pytest.mark.parametrize("found", [Status.OPTIMAL, Status.INFEASIBLE])
def test_a_proof_of_one_search_is_the_proof_of_all(found):
    def proves(run):
        if found is Status.OPTIMAL:
            run.offer(unit(1), bound=-2.0)
        return found

    assert after(lambda run: None, proves).status is found


@pytest.mark.parametrize("threads", [0, -1, 1.5, 2.0, "2", True, None])
def test_threads_are_counted(threads):
    for solver in THREADED:
        with pytest.raises(InvalidProblem, match="threads: expected a whole number >= 1, got"):
            replace(solver, threads=threads)


@pytest.mark.parametrize("solver", [SwapAnnealing(threads=2), SwapTabu(threads=3)], ids=lambda solver: solver.name)
def test_threads_keep_the_word_of_the_solver(solver):
    for check in ("repeats", "evaluation limit", "raising callback"):
        check_solver(solver, check)


# --- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "limit"),
    # `auto` spends its first evaluations on the greedy floor
    [(Auto(), FEW), *((solver, limit) for solver in THREADED[:3] for limit in (1, 2, FEW))],
)
def test_an_evaluation_limit_is_shared(solver, limit):
    result = replace(solver, threads=3).solve(PRUNING, evaluation_limit=limit)
    shares = [one["evaluations"] for one in result.details.get("threads", ())]
    assert result.evaluations == limit
    assert result.status is Status.ITERATION_LIMIT
    assert result.feasible
    if shares:
        assert max(shares) - min(shares) <= 1
        assert len(shares) == min(3, limit)


@threaded
def test_the_time_limit_is_common(solver):
    endless = Restarts(SwapAnnealing(), times=4) if isinstance(solver, Restarts) else solver
    result = replace(endless, threads=3).solve(generators.pruning(300, seed=1).replace(diagonal=None), time_limit=0.3)
    assert result.status is Status.TIME_LIMIT
    # far more than it takes on a machine of its own
    assert 0.2 <= result.seconds < 1.0


def test_the_problem_is_shared():
    problem = generators.pruning(64, seed=1)
    seen = []

    @dataclass(frozen=True)
    class Watched(SwapAnnealing):
        def _anneal(self, search, fields, quench):
            seen.append((search.view, fields))

    Watched(threads=3).solve(problem)
    assert len(seen) == 3
    assert all(view is seen[0][0] and fields is seen[0][1] for view, fields in seen)


# --- improvements on the way ---------------------------------------------------------------------------------------


def test_callbacks_come_from_the_callers_thread_alone():
    callers, seen = set(), []

    def callback(incumbent):
        callers.add(threading.get_ident())
        seen.append(incumbent)

    result = SwapAnnealing(threads=3).solve(generators.pruning(200, seed=2), callback=callback, evaluation_limit=90_000)
    assert callers == {threading.get_ident()}
    assert [one.objective for one in seen] == [row.objective for row in result.trace]
    assert seen[-1].objective == result.objective
    assert [one.objective for one in seen] == sorted({one.objective for one in seen}, reverse=True)
    for column in ("seconds", "evaluations"):
        values = [getattr(one, column) for one in seen]
        assert values == sorted(values)
        assert values[-1] <= getattr(result, column)


def test_an_improvement_is_told_while_the_searches_run():
    asked = threading.Event()

    def waits(run):
        run.offer(unit(1))
        assert asked.wait(10.0)

    result = after(waits, waits, callback=lambda incumbent: asked.set())
    assert (result.objective, result.status) == (-2.0, Status.FINISHED)


def test_a_slow_callback_falls_behind_by_no_more_than_one_improvement_a_thread():
    values = np.arange(0.0, -400.0, -1.0)
    calls = []

    def improves(run):
        for i in range(400):
            run.offer(np.arange(400) == i)

    problem = BinaryQuadratic(values, constraints=[Cardinality(1)])
    result = after(improves, improves, problem=problem, callback=lambda found: calls.append(found) or time.sleep(0.3))
    assert result.objective == -399.0
    assert len(calls) <= 5


# --- the end -------------------------------------------------------------------------------------------------------


def spins(run):
    """Ends when it is told to, and only then."""
    run.offer(unit(0))
    while not run.should_stop():
        time.sleep(0.001)
    run.ended = time.perf_counter()


@pytest.fixture
def ending():
    """(searches, seconds from `ending.at` to the end of the last of them)."""

    class Ending:
        at = None
        runs: ClassVar[list] = []

        def search(self, run):
            self.runs.append(run)
            spins(run)

        def stop(self, *_):
            self.at = time.perf_counter()
            return True

        @property
        def took(self):
            return max(run.ended for run in self.runs) - self.at

    Ending.runs = []
    return Ending()


def test_a_callback_that_returns_true_stops_all(ending):
    result = after(*[ending.search] * 3, callback=ending.stop)
    assert (result.status, result.objective) == (Status.STOPPED, -1.0)
    assert ending.took < 1.0


def test_a_callback_that_raises_stops_all_and_is_not_called_again(ending):
    def callback(incumbent):
        ending.stop()
        raise ZeroDivisionError("by nought")

    def improves_late(run):
        ending.search(run)
        run.offer(unit(1))

    with pytest.raises(SolverFailed, match="the callback raised ZeroDivisionError: by nought") as caught:
        after(ending.search, ending.search, improves_late, callback=callback)
    assert caught.value.result.objective == -2.0
    assert ending.took < 1.0


def test_a_search_that_raises_stops_all(ending):
    def raises(run):
        run.offer(unit(1))
        ending.stop()
        raise ZeroDivisionError("by nought")

    with pytest.raises(SolverFailed, match="side-by-side raised ZeroDivisionError: by nought") as caught:
        after(ending.search, raises, ending.search)
    assert caught.value.result.objective == -2.0
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert ending.took < 1.0


def test_the_error_told_is_that_of_the_first_search():
    together = threading.Barrier(2)

    def raises(error):
        def act(run):
            together.wait(10.0)
            raise error

        return act

    with pytest.raises(SolverFailed, match="raised KeyError: 'first'"):
        after(raises(KeyError("first")), raises(ValueError("second")))


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_stops_all_and_keeps_what_they_found(ending):
    def improves_late(run):
        ending.search(run)
        run.offer(unit(1))

    def interrupts():
        ending.stop()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, interrupts)
    timer.start()
    result = after(ending.search, improves_late, ending.search)
    timer.join()
    assert (result.status, result.objective) == (Status.STOPPED, -2.0)
    assert result.details["interrupted"] is True
    assert ending.took < 1.0


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("solver", THREADED[:3], ids=lambda solver: solver.name)
def test_ctrl_c_ends_real_searches(solver):
    pressed = []

    def press():
        pressed.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    # prepared before, or Ctrl-C comes while kernels load
    replace(solver, threads=3).solve(PRUNING, evaluation_limit=10)
    timer = threading.Timer(0.3, press)
    timer.start()
    longer = replace(solver, threads=3) if not isinstance(solver, Restarts) else Restarts(times=4, threads=3)
    result = longer.solve(generators.pruning(400, seed=1), time_limit=20.0)
    took = time.perf_counter() - pressed[0]
    timer.join()
    assert (result.status, result.feasible) == (Status.STOPPED, True)
    assert took < 1.0


def test_a_callback_stops_real_searches():
    result = SwapAnnealing(threads=3).solve(generators.pruning(400, seed=1), time_limit=20.0, callback=lambda _: True)
    assert result.status is Status.STOPPED
    assert result.seconds < 2.0
