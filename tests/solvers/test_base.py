"""What the library adds to every search: statuses, limits, Ctrl-C, the trace, the result and the registry."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesolve import solvers
from prunesolve.problems import BinaryQuadratic, Cardinality, GroupBounds, InvalidProblem, SolverFailed
from prunesolve.solvers import Greedy, Restarts, Result, Run, Solver, Status

PROBLEM = BinaryQuadratic([-1.0, -2.0, -3.0, 4.0], constraints=[Cardinality(2)])
OPEN = BinaryQuadratic([-1.0, -2.0, -3.0, 4.0])
NONE, POOR, GOOD = ([bool(int(bit)) for bit in bits] for bits in ("0000", "1001", "0110"))


@dataclass(frozen=True)
class Acts(Solver):
    """Its search is whatever the test says."""

    act: Any = None

    name: ClassVar[str] = "acts"

    def _search(self, problem, run):
        return self.act(run)


def after(act, problem=PROBLEM, **limits):
    return Acts(act).solve(problem, **limits)


# --- status --------------------------------------------------------------------------------------------------------


def offers(*selections, told=None):
    def act(run):
        for x in selections:
            run.offer(x)
        return told

    return act


def until_told(run):
    run.offer(GOOD)
    while not run.should_stop():
        run.count()


@pytest.mark.parametrize(
    ("act", "limits", "status"),
    [
        (offers(GOOD), {}, Status.FINISHED),
        (offers(GOOD, told=Status.OPTIMAL), {}, Status.OPTIMAL),
        (offers(), {}, Status.NO_FEASIBLE_FOUND),
        (offers(NONE), {}, Status.NO_FEASIBLE_FOUND),
        (offers(NONE, told=Status.OPTIMAL), {}, Status.NO_FEASIBLE_FOUND),
        (offers(told=Status.INFEASIBLE), {}, Status.INFEASIBLE),
        # a feasible selection in hand refutes what the search told
        (offers(GOOD, told=Status.INFEASIBLE), {}, Status.FINISHED),
        (until_told, {"time_limit": 0.02}, Status.TIME_LIMIT),
        (until_told, {"evaluation_limit": 50}, Status.ITERATION_LIMIT),
        (until_told, {"callback": lambda incumbent: True}, Status.STOPPED),
    ],
)
def test_the_status_says_why_the_run_ended(act, limits, status):
    result = after(act, **limits)
    assert result.status is status
    assert result.feasible == (status not in (Status.NO_FEASIBLE_FOUND, Status.INFEASIBLE))


def test_every_status_is_a_sentence_and_prints_its_name():
    for status in Status:
        assert status.value.endswith(".")
        assert str(status) == status.name


def test_an_evaluation_limit_is_exact():
    assert after(until_told, evaluation_limit=50).evaluations == 50


# --- incumbent, bound, trace ---------------------------------------------------------------------------------------


def test_feasible_goes_before_infeasible_and_then_the_objective_decides():
    everything = [True] * 4  # two too many, and a better value than POOR
    run = Run(PROBLEM, seed=0)
    assert run.offer(NONE) == math.inf
    assert run.offer(everything) == math.inf
    assert not run.feasible
    assert run.offer(POOR) == 3.0
    assert run.offer(everything) == math.inf
    assert (run.objective, run.feasible) == (3.0, True)
    assert run.offer(GOOD) == -5.0
    assert run.offer(POOR) == 3.0
    assert run.best.tolist() == GOOD


def test_the_incumbent_is_a_copy_that_nobody_can_change():
    x = np.array(GOOD)
    run = Run(PROBLEM, seed=0)
    run.offer(x)
    x[:] = False
    assert run.best.tolist() == GOOD
    with pytest.raises(ValueError, match="read-only"):
        run.best[0] = True


@given(st.lists(st.tuples(st.integers(0, 15), st.floats(-30, 0) | st.none()), max_size=20))
def test_the_trace_only_improves(offered):
    def act(run):
        for code, bound in offered:
            run.offer([bool(code >> i & 1) for i in range(4)], bound)
            run.count()

    result = after(act)
    rows = result.trace
    objectives = [row.objective for row in rows if row.objective is not None]
    bounds = [row.bound for row in rows if row.bound is not None]
    assert objectives == sorted(objectives, reverse=True)
    assert bounds == sorted(bounds)
    for column in ("seconds", "evaluations"):
        assert [getattr(row, column) for row in rows] == sorted(getattr(row, column) for row in rows)
    feasible = [x for code, _ in offered if sum(x := [bool(code >> i & 1) for i in range(4)]) == 2]
    assert result.feasible == bool(feasible)
    if feasible:
        assert result.objective == objectives[-1] == min(PROBLEM.value(x) for x in feasible)


def test_the_callback_sees_every_improvement_and_no_other():
    seen = []
    after(offers(NONE, POOR, POOR, GOOD), callback=seen.append)
    assert [incumbent.objective for incumbent in seen] == [3.0, -5.0]


@pytest.mark.parametrize(
    ("objective", "bound", "gap"), [(-5.0, -6.0, 0.2), (-5.0, None, None), (0.0, 0.0, 0.0), (4.0, 4.0, 0.0)]
)
def test_the_gap(objective, bound, gap):
    result = Result(np.array(GOOD), objective, bound, True, Status.FINISHED, 0.0, 0, 0, "acts")
    assert result.gap == gap


def test_a_bound_is_computed_where_it_is_asked_for():
    assert after(offers(POOR)).bound is None
    assert after(offers(POOR), bound=True).bound == pytest.approx(-5.0)
    assert after(offers(GOOD, told=Status.OPTIMAL), bound=True).bound == -5.0


def test_rounding_never_lifts_a_bound_above_the_incumbent():
    def act(run):
        run.offer(GOOD, bound=-5.0 + 1e-12)

    assert after(act).bound == -5.0


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_the_incumbent():
    def act(run):
        run.offer(GOOD)
        raise KeyboardInterrupt

    result = after(act)
    assert (result.status, result.objective) == (Status.STOPPED, -5.0)
    assert result.details["interrupted"] is True


def test_ctrl_c_before_the_first_solution():
    def act(run):
        raise KeyboardInterrupt

    result = after(act)
    assert (result.status, result.solution) == (Status.NO_FEASIBLE_FOUND, None)
    assert result.details["interrupted"] is True


ENDLESS = """
import signal
import numpy as np
from prunesolve.problems import BinaryQuadratic, Cardinality
from prunesolve import solvers

signal.signal(signal.SIGINT, signal.default_int_handler)
problem = BinaryQuadratic(-np.arange(1.0, 31.0), constraints=[Cardinality(10)])
solver = solvers.get({name!r}, **{options!r})
told = lambda incumbent: print("found", flush=True)
result = solver.solve(problem, start=np.arange(30) < 10, callback=told, time_limit=60.0)
print(result.status, result.details["interrupted"], result.seconds < 30.0, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize(("name", "options"), [("swap-annealing", {}), ("simulated-annealing", {"sweeps": 10**7})])
def test_a_real_ctrl_c_ends_a_real_search(name, options):
    code = ENDLESS.format(name=name, options=options)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as search:
        # the start is told of when the search begins
        assert search.stdout.readline() == "found\n"
        time.sleep(0.3)
        search.send_signal(signal.SIGINT)
        told = search.stdout.read()
    assert told.splitlines()[-1] == "STOPPED True True"
    assert search.returncode == 0


@pytest.mark.parametrize("at", ["search", "callback"])
def test_a_crash_carries_the_incumbent(at):
    def act(run):
        run.offer(GOOD)
        raise ZeroDivisionError("by nought")

    def callback(incumbent):
        raise ZeroDivisionError("by nought")

    limits = {"callback": callback} if at == "callback" else {}
    said = {"search": "acts raised ZeroDivisionError: by nought", "callback": "the callback raised ZeroDivisionError"}
    with pytest.raises(SolverFailed, match=said[at]) as caught:
        after(act, **limits)
    assert caught.value.result.objective == -5.0
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("offered", [[True], [0.5, 0.5, 1, 0], [GOOD, POOR], [math.nan] * 4])
def test_an_offer_that_is_no_selection_is_refused(offered):
    with pytest.raises(SolverFailed, match="offered solution: expected"):
        after(offers(offered))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"time_limit": 0}, "time_limit: expected seconds > 0 or None, got 0"),
        ({"time_limit": math.nan}, "time_limit: expected seconds > 0 or None, got nan"),
        ({"time_limit": "5"}, "time_limit: expected seconds > 0 or None, got '5'"),
        ({"evaluation_limit": 0}, "evaluation_limit: expected a whole number > 0 or None, got 0"),
        ({"evaluation_limit": 2.5}, "evaluation_limit: expected a whole number > 0 or None, got 2.5"),
        ({"evaluation_limit": True}, "evaluation_limit: expected a whole number > 0 or None, got True"),
        ({"evaluation_limit": math.inf}, "evaluation_limit: expected a whole number > 0 or None, got inf"),
        ({"seed": -1}, "seed: expected a whole number >= 0 or None, got -1"),
        ({"seed": 1.5}, "seed: expected a whole number >= 0 or None, got 1.5"),
        ({"start": NONE}, "start: expected a feasible selection"),
        ({"start": [True, False]}, r"start: expected shape \(4,\), got \(2,\)"),
        ({"start": [GOOD, GOOD]}, "start: expected a feasible selection"),
    ],
)
def test_limits_that_make_no_sense_are_refused_before_the_search(limits, words):
    def act(run):
        raise AssertionError("the search was started")

    with pytest.raises(InvalidProblem, match=words):
        after(act, **limits)


def test_the_effective_seed_repeats_a_run():
    def act(run):
        k = int(run.rng.integers(4))
        run.offer([i == k for i in range(4)])

    drawn = [after(act, OPEN, seed=None) for _ in range(5)]
    assert len({result.seed for result in drawn}) > 1
    for result in drawn:
        assert np.array_equal(after(act, OPEN, seed=result.seed).solution, result.solution)


def test_the_start_is_offered_first():
    assert after(offers(), start=GOOD).objective == -5.0
    assert after(offers(GOOD), start=POOR).objective == -5.0


@pytest.mark.parametrize("k", [0, 4])
def test_where_there_is_no_choice_no_search_is_needed(k):
    def act(run):
        raise AssertionError("the search was started")

    result = after(act, PROBLEM.replace(constraints=[Cardinality(k)]))
    assert (result.status, result.solution.sum(), result.gap) == (Status.OPTIMAL, k, 0.0)


# --- delegation ----------------------------------------------------------------------------------------------------


def test_an_inner_search_shares_limits_counts_incumbent_and_bound():
    def inner(run):
        while not run.should_stop():
            run.count()
        run.offer(GOOD, bound=-7.0)
        return Status.FINISHED

    seen = {}

    def outer(run):
        first = run.delegate(Acts(inner), evaluation_limit=30)
        second = run.delegate(Acts(inner), evaluation_limit=300)
        seen.update(counts=(first.evaluations, second.evaluations), told=first.told)

    result = after(outer, evaluation_limit=100)
    assert seen == {"counts": (30, 70), "told": Status.FINISHED}
    assert (result.evaluations, result.objective, result.bound) == (100, -5.0, -7.0)


def test_a_stop_reaches_the_inner_search():
    def inner(run):
        run.offer(GOOD)
        assert run.should_stop()

    result = after(lambda run: run.delegate(Acts(inner)) and None, callback=lambda incumbent: True)
    assert result.status is Status.STOPPED


# --- result --------------------------------------------------------------------------------------------------------


def test_details_are_plain_enough_for_json():
    def act(run):
        run.offer(GOOD)
        run.details |= {
            "numbers": np.arange(3), "one": np.float64(2.5), "not": math.nan, "inf": [math.inf, 1],
            "path": os, 7: ("a", {"b": None}), "flag": np.bool_(True),
        }  # fmt: skip

    result = after(act)
    told = json.loads(result.to_json())["details"]
    assert told == dict(result.details)
    assert {key: told[key] for key in ("numbers", "one", "not", "inf", "7", "flag")} == {
        "numbers": [0, 1, 2], "one": 2.5, "not": None, "inf": [None, 1], "7": ["a", {"b": None}], "flag": True,
    }  # fmt: skip


@pytest.mark.parametrize("act", [offers(GOOD), offers(NONE), offers(), offers(GOOD, told=Status.OPTIMAL)])
def test_a_result_survives_a_file(act, tmp_path):
    result = after(act, bound=True)
    result.save(tmp_path / "result.json")
    again = Result.load(tmp_path / "result.json")
    assert again.to_json() == result.to_json()
    assert again.trace == result.trace
    assert again.status is result.status


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"solution": [9], "n": 2}', "null"])
def test_a_foreign_text_is_no_result(text):
    with pytest.raises(InvalidProblem, match="expected the JSON that `solve` writes"):
        Result.from_json(text)


# --- registry ------------------------------------------------------------------------------------------------------


def test_every_name_leads_to_its_class():
    for cls in solvers.all():
        assert solvers.solver_class(cls.name) is cls
        assert solvers.get(cls.name) == cls()
        assert solvers.summaries()[cls.name].endswith(".")
        assert getattr(solvers, cls.__name__) is cls


def test_unknown_names_and_options_suggest_the_nearest():
    with pytest.raises(InvalidProblem, match="did you mean 'greedy'"):
        solvers.get("gredy")
    with pytest.raises(InvalidProblem, match="did you mean 'sweeps'"):
        solvers.get("swap-annealing", sweep=3)
    with pytest.raises(InvalidProblem, match="sweeps"):
        solvers.get("swap-annealing", sweeps=0)
    with pytest.raises(AttributeError, match="no attribute 'Gredy'"):
        solvers.Gredy  # noqa: B018


def test_available_names_those_that_take_the_problem():
    assert set(solvers.available()) >= {cls.name for cls in solvers.all()}
    assert "greedy" in solvers.available(PROBLEM)
    assert solvers.available("a text") == []


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A package of somebody else's that registers a solver, and one that would replace ours."""
    (tmp_path / "elsewhere.py").write_text(
        "from prunesolve.solvers import Greedy\n\n\nclass Theirs(Greedy):\n    pass\n"
    )
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    points = "[prunesolve.solvers]\ntheirs = elsewhere:Theirs\ngreedy = elsewhere:Theirs\nbroken = nowhere:Solver\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("elsewhere", None)


@pytest.mark.usefixtures("registered")
def test_entry_points_are_found_and_replace_nothing():
    assert {"broken", "theirs"} <= set(solvers.names())
    assert solvers.names().count("greedy") == 1
    with pytest.raises(InvalidProblem, match="does not load nowhere:Solver"):
        solvers.get("broken")
    assert "broken" not in solvers.available(BinaryQuadratic([1.0]))
    assert type(solvers.get("theirs", direction="forward")).__name__ == "Theirs"
    assert type(solvers.get("greedy")) is Greedy
    assert solvers.summaries()["theirs"] == "From elsewhere:Theirs."
    with pytest.raises(InvalidProblem, match="did you mean 'theirs'"):
        solvers.get("thiers")


def test_a_wrapper_by_name_takes_what_its_inner_solver_takes():
    assert solvers.get("restarts", inner="greedy") == Restarts("greedy")
    assert Restarts("greedy").refuse("a text") == Greedy().refuse("a text")


def test_infeasibility_is_proved_by_the_exact_solver():
    bounds = [GroupBounds([0, 0, 1], [2, 0], [2, 1]), GroupBounds([0, 0, 0], [0], [1])]
    assert solvers.get("exact").solve(BinaryQuadratic(np.ones(3), constraints=bounds)).status is Status.INFEASIBLE
