"""The run, its limits and its result: what holds for every solver because the library does it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from prunesolve.problems import BinaryQuadratic, Cardinality, InvalidProblem, SolverFailed, UnsupportedProblem
from prunesolve.solvers import Front, Greedy, Restarts, Result, Solver, Status, bounds

PROBLEM = BinaryQuadratic([-1.0, -2.0, -3.0, -4.0], constraints=[Cardinality(2)])
WORST, BEST = np.array([True, True, False, False]), np.array([False, False, True, True])


@dataclass(frozen=True)
class Scripted(Solver):
    """Does what it is given."""

    script: Any = None
    name: ClassVar[str] = "scripted"

    def _search(self, problem, run):
        return self.script(run)


def solve(script, problem=PROBLEM, **limits) -> Result:
    return Scripted(script).solve(problem, **limits)


def test_the_better_of_two_offers_stays():
    def script(run):
        assert run.offer(BEST) == -7.0
        assert run.offer(WORST) == -3.0
        assert run.offer(np.ones(4, dtype=bool)) == np.inf

    result = solve(script)
    assert result.objective == -7.0
    assert [row.objective for row in result.trace] == [-7.0]


def test_the_least_infeasible_offer_is_returned_as_such():
    def script(run):
        run.offer(np.ones(4, dtype=bool))
        run.offer(np.array([True, True, True, False]))

    result = solve(script)
    assert (result.status, result.feasible) == (Status.NO_FEASIBLE_FOUND, False)
    assert result.solution.sum() == 3
    assert result.gap is None
    assert result.trace == ()


def test_an_offer_is_copied():
    x = BEST.copy()

    def script(run):
        run.offer(x)
        x[:] = False

    assert solve(script).solution.tolist() == BEST.tolist()


@pytest.mark.parametrize(
    "wrong", [np.ones(3, dtype=bool), np.ones((2, 4), dtype=bool), np.full(4, 0.5), np.full(4, np.nan)]
)
def test_a_senseless_offer_is_the_solvers_failure_and_keeps_the_incumbent(wrong):
    def script(run):
        run.offer(BEST)
        run.offer(wrong)

    with pytest.raises(SolverFailed, match="scripted raised InvalidProblem: offered solution") as failed:
        solve(script)
    assert failed.value.result.objective == -7.0


def test_a_problem_refused_within_the_search_stays_a_refusal():
    def script(run):
        raise UnsupportedProblem("no pairs, please")

    with pytest.raises(UnsupportedProblem, match="no pairs"):
        solve(script)


@pytest.mark.parametrize(
    ("offers", "told", "expected"),
    [
        ([BEST], None, Status.FINISHED),
        ([BEST], Status.OPTIMAL, Status.OPTIMAL),
        ([BEST], Status.INFEASIBLE, Status.FINISHED),
        ([BEST], Status.NO_FEASIBLE_FOUND, Status.FINISHED),
        ([], None, Status.NO_FEASIBLE_FOUND),
        ([], Status.OPTIMAL, Status.NO_FEASIBLE_FOUND),
        ([], Status.INFEASIBLE, Status.INFEASIBLE),
    ],
)
def test_what_is_in_hand_outranks_what_is_told(offers, told, expected):
    def script(run):
        for x in offers:
            run.offer(x)
        return told

    assert solve(script).status is expected


def test_each_limit_has_its_status():
    def endless(run):
        run.offer(BEST)
        while not run.should_stop():
            run.count()

    assert solve(endless, time_limit=0.02).status is Status.TIME_LIMIT
    assert solve(endless, evaluation_limit=10).status is Status.ITERATION_LIMIT
    assert solve(endless, callback=lambda incumbent: True).status is Status.STOPPED


def test_seconds_spent_on_the_bound_do_not_turn_into_a_time_limit(monkeypatch):
    def slow(problem, *, seconds):
        while run_of[0].remaining > 0:
            pass
        return -8.0

    def script(run):
        run_of.append(run)
        run.offer(BEST)

    run_of: list[Any] = []
    monkeypatch.setattr(bounds, "lower_bound", slow)
    result = solve(script, time_limit=0.05, bound=True)
    assert (result.status, result.bound) == (Status.FINISHED, -8.0)
    assert result.seconds < 0.05


def test_an_optimum_is_its_own_bound():
    def script(run):
        run.offer(BEST)
        return Status.OPTIMAL

    result = solve(script, bound=True)
    assert (result.bound, result.gap) == (-7.0, 0.0)


def test_rounding_never_lifts_a_bound_above_the_incumbent_but_a_wrong_bound_shows():
    def proving(bound):
        return lambda run: run.offer(BEST, bound=bound) and None

    assert solve(proving(-7.0 + 1e-12)).bound == -7.0
    assert solve(proving(-6.0)).gap < 0
    assert solve(proving(float("nan"))).bound is None
    assert solve(proving(-np.inf)).bound is None


# --- Ctrl-C --------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_the_search_keeps_the_incumbent():
    def script(run):
        run.offer(BEST)
        raise KeyboardInterrupt

    result = solve(script, bound=True)
    assert (result.objective, result.status, result.bound) == (-7.0, Status.STOPPED, None)
    assert result.details["interrupted"] is True


def test_ctrl_c_in_the_bound_keeps_the_incumbent(monkeypatch):
    def interrupted(problem, *, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(bounds, "lower_bound", interrupted)
    result = Greedy().solve(PROBLEM, bound=True)
    assert (result.objective, result.bound, result.details["interrupted"]) == (-7.0, None, True)


def test_ctrl_c_before_anything_was_found_returns_nothing_rather_than_raising():
    def script(run):
        raise KeyboardInterrupt

    result = solve(script)
    assert (result.solution, result.objective, result.status) == (None, None, Status.NO_FEASIBLE_FOUND)
    assert json.loads(result.to_json())["solution"] is None


SLEEPER = """
import sys, numpy as np
from typing import ClassVar
from dataclasses import dataclass
from prunesolve.problems import BinaryQuadratic
from prunesolve.solvers import {solver}, Solver

problem = BinaryQuadratic(np.linspace(-1, 1, 40), 0.1 * (np.ones((40, 40)) - np.eye(40)))
told = lambda incumbent: print("found", flush=True)
result = {solver}({options}).solve(problem, callback=told)
print(result.status, result.feasible, result.details.get("interrupted"), result.to_json())
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("solver", "options"), [("SimulatedAnnealing", "sweeps=1_000_000"), ("Restarts", "'swap-annealing', times=100_000")]
)
def test_a_real_ctrl_c_returns_the_incumbent(solver, options):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER.format(solver=solver, options=options)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "found\n"
        process.send_signal(signal.SIGINT)
        last = process.stdout.read().splitlines()[-1]
    assert last.startswith("STOPPED True True {")
    assert process.returncode == 0


# --- searches inside searches --------------------------------------------------------------------------------------


def test_what_an_inner_search_finds_counts_and_proves_passes_through():
    def inner(run):
        run.count(3)
        run.offer(BEST, bound=-9.0)
        return Status.OPTIMAL

    def script(run):
        run.offer(WORST)
        ended = run.delegate(Scripted(inner))
        assert (ended.told, ended.objective, ended.evaluations) == (Status.OPTIMAL, -7.0, 3)

    result = solve(script)
    assert (result.objective, result.bound, result.evaluations) == (-7.0, -9.0, 3)


def test_an_inner_search_knows_only_its_own_incumbent():
    def script(run):
        run.offer(BEST)
        assert run.delegate(Scripted(lambda inner: inner.offer(WORST) and None)).objective == -3.0

    assert solve(script).objective == -7.0


def test_outer_limits_stop_an_inner_search():
    def endless(run):
        run.offer(BEST)
        while not run.should_stop():
            run.count()

    outer = Scripted(lambda run: run.delegate(Scripted(endless)) and None)
    assert outer.solve(PROBLEM, time_limit=0.02).status is Status.TIME_LIMIT
    assert outer.solve(PROBLEM, evaluation_limit=10).evaluations == 10
    assert outer.solve(PROBLEM, callback=lambda incumbent: True).status is Status.STOPPED


def test_a_share_of_the_evaluations_stops_the_inner_search_alone():
    def endless(run):
        while not run.should_stop():
            run.count()

    def script(run):
        run.delegate(Scripted(endless), evaluation_limit=4)
        assert not run.should_stop()
        run.delegate(Scripted(endless))
        run.offer(BEST)

    assert solve(script, evaluation_limit=10).evaluations == 10


def test_a_callback_that_raises_in_an_inner_search_is_named():
    def fail(incumbent):
        raise OSError("disk full")

    with pytest.raises(SolverFailed, match="^the callback raised OSError: disk full") as failed:
        Restarts("greedy").solve(PROBLEM, callback=fail)
    assert failed.value.result.feasible
    assert isinstance(failed.value.__cause__, OSError)


# --- arguments -----------------------------------------------------------------------------------------------------


def test_a_seed_of_none_draws_one_that_repeats_the_run():
    def script(run):
        x = np.zeros(4, dtype=bool)
        x[run.rng.permutation(4)[:2]] = True
        run.offer(x)

    drawn = solve(script, seed=None)
    assert solve(script, seed=drawn.seed).solution.tolist() == drawn.solution.tolist()
    assert solve(script, seed=np.int64(7)).seed == 7


def test_a_start_that_meets_no_constraint_is_refused_before_anything_runs():
    with pytest.raises(InvalidProblem, match=r"start: expected a feasible selection \(4,\), got one of violation 2.0"):
        solve(lambda run: pytest.fail("the search ran"), start=np.ones(4, dtype=bool))


def test_options_tell_defaults_made_by_a_factory():
    @dataclass(frozen=True)
    class Optioned(Greedy):
        parameters: dict[str, int] = field(default_factory=lambda: {"reads": 3})

    assert Optioned.options() == {"direction": "both", "parameters": {"reads": 3}}


# --- JSON ----------------------------------------------------------------------------------------------------------


def test_details_become_plain_and_json_has_no_nan():
    def script(run):
        run.offer(BEST)
        run.details.update(
            duals=np.array([1.0, np.nan]), best=np.float32(0.5), worst=-np.inf, kinds={1: (np.int64(2), True)}
        )

    result = solve(script)
    assert result.details["duals"] == [1.0, None]
    assert result.details["worst"] is None
    assert result.details["kinds"] == {"1": [2, True]}
    again = Result.from_json(result.to_json())
    assert again.details == result.details
    assert again.trace == result.trace


def test_a_front_survives_json():
    front = Front(np.array([WORST, BEST]), np.array([[1.0, 4.0], [2.0, 3.0]]))
    again = Result.from_json(replace(Greedy().solve(PROBLEM), front=front).to_json()).front
    assert again is not None
    assert np.array_equal(again.solutions, front.solutions)
    assert np.array_equal(again.objectives, front.objectives)


def test_a_gap_past_the_float_range_is_none():
    zero = solve(lambda run: run.offer(np.zeros(4, dtype=bool), bound=-1e300) and None, BinaryQuadratic(np.ones(4)))
    assert zero.gap is None
    assert '"gap": null' in zero.to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"status": "GREAT"}', "nonsense"])
def test_foreign_text_is_no_result(text):
    with pytest.raises(InvalidProblem, match="expected the JSON that `solve` writes"):
        Result.from_json(text)
