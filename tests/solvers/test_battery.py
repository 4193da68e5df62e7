"""The shipped battery passes over every solver and sampler, and fails, in words, on each kind of broken one."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations, count
from typing import Any, ClassVar

import numpy as np
import pytest

from prunesolve import solvers
from prunesolve.bridges.dimod import DimodSampler
from prunesolve.problems import BinaryQuadratic, BlackBox, LowRank
from prunesolve.solvers import Evaluations, Greedy, Status, testing
from prunesolve.solvers.testing import check_solver, checks

SAMPLERS = {
    "dwave annealing": DimodSampler("dwave.samplers:SimulatedAnnealingSampler", {"num_sweeps": 200}, bisections=6),
    # told to count: by default it stops by its own clock, and no two runs agree
    "dwave tabu": DimodSampler("dwave.samplers:TabuSampler", {"timeout": None, "num_restarts": 1}, bisections=6),
    "dwave descent": DimodSampler("dwave.samplers:SteepestDescentSampler", bisections=6),
    "neal": DimodSampler("neal:SimulatedAnnealingSampler", {"num_sweeps": 200}, bisections=6),
    "dimod exact": DimodSampler("dimod:ExactSolver", bisections=6, largest=12),
}


@pytest.mark.parametrize("check", checks())
@pytest.mark.parametrize("cls", solvers.all(), ids=lambda cls: cls.name)
def test_every_solver_with_its_defaults_keeps_its_word(cls, check):
    check_solver(cls(), check)


# dwave-samplers warns of biases that are all zero, which is no mistake here
@pytest.mark.filterwarnings("ignore:All bqm biases are zero:UserWarning")
@pytest.mark.parametrize("check", checks())
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_becomes_a_solver_that_keeps_its_word(sampler, check):
    check_solver(SAMPLERS[sampler], check)


def test_every_example_can_be_met():
    for name, example in testing.examples().items():
        assert np.isfinite(testing._optimum(example)), name
    assert testing._optimum(testing._written_out(testing._contradiction())) == np.inf


def test_every_example_is_the_problem_it_is_written_out_as():
    x = np.random.default_rng(0).random((50, 9)) < 0.5
    for name, example in testing.examples().items():
        assert np.allclose(testing._values(example, x), example.problem.value(x)), name
        assert np.array_equal(testing._meets(example.problem, x), example.problem.is_feasible(x)), name


# --- one broken solver for each reason -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sound(Greedy):
    """Passes; each of the others spoils one thing of it."""

    name: ClassVar[str] = "sound"


@dataclass(frozen=True)
class Altered(Sound):
    """Its result is altered after the library has made it."""

    def altered(self, problem, result):
        return result

    def solve(self, problem, **limits):
        return self.altered(problem, super().solve(problem, **limits))


class NotADataclass(Sound):
    pass


@dataclass(frozen=True)
class Nameless(Sound):
    name: ClassVar[Any] = None


@dataclass(frozen=True, init=False)
class NoDefault(Sound):
    depth: int

    def __init__(self, depth: int = 1) -> None:
        object.__setattr__(self, "direction", "both")
        object.__setattr__(self, "depth", depth)


NoDefault.__dataclass_fields__["depth"].default = testing.MISSING


@dataclass(frozen=True)
class RefusesEverything(Sound):
    def refuse(self, problem):
        return "not today"


@dataclass(frozen=True)
class WrongObjective(Altered):
    def altered(self, problem, result):
        return replace(result, objective=result.objective - 1.0)


@dataclass(frozen=True)
class WrongFeasibility(Altered):
    def altered(self, problem, result):
        return replace(result, feasible=not result.feasible)


@dataclass(frozen=True)
class FloatingSolution(Altered):
    def altered(self, problem, result):
        return replace(result, solution=result.solution.astype(float))


@dataclass(frozen=True)
class ForgetsTheTrace(Altered):
    def altered(self, problem, result):
        return replace(result, trace=())


@dataclass(frozen=True)
class ProvesTooMuch(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        return Status.OPTIMAL


@dataclass(frozen=True)
class FindsNothing(Sound):
    def _search(self, problem, run):
        return None


@dataclass(frozen=True)
class GivesUpInProof(Sound):
    def _search(self, problem, run):
        return Status.INFEASIBLE


@dataclass(frozen=True)
class BoundsTooHigh(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        run.prove(run.objective + 1e-6 * abs(run.objective) if run.feasible else 0.0)


@dataclass(frozen=True)
class NoBound(Altered):
    def altered(self, problem, result):
        return replace(result, bound=None)


@dataclass(frozen=True)
class MakesUpFeasibility(Altered):
    def altered(self, problem, result):
        return replace(result, feasible=True) if problem.n == 4 else result


@dataclass(frozen=True)
class DividesByTheCouplings(Sound):
    def _search(self, problem, run):
        if not problem.couplings.magnitude():
            raise ZeroDivisionError("no couplings")
        return super()._search(problem, run)


@dataclass(frozen=True)
class NeverKeepsOne(Sound):
    def _search(self, problem, run):
        run.offer(np.zeros(1, dtype=bool)) if problem.n == 1 else super()._search(problem, run)


CALLS = count()


@dataclass(frozen=True)
class DiffersFromCallToCall(Sound):
    def _search(self, problem, run):
        run.count(next(CALLS))
        return super()._search(problem, run)


@dataclass(frozen=True)
class RemembersTheLastRun(Sound):
    def _search(self, problem, run):
        if "ran" not in vars(self):
            run.count()
        super()._search(problem, run)

    def __post_init__(self):
        if next(CALLS):
            object.__setattr__(self, "ran", True)


@dataclass(frozen=True)
class ForgetsTheSeed(Altered):
    def altered(self, problem, result):
        return replace(result, seed=0)


@dataclass(frozen=True)
class WritesIntoTheProblem(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        if problem.n == 9 and isinstance(problem.couplings, LowRank):
            problem.linear.setflags(write=True)
            problem.linear[0] += 1.0


@dataclass(frozen=True)
class WritesIntoTheMeta(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        problem.meta["seen"] = True


@dataclass(frozen=True)
class WritesIntoTheStart(Sound):
    def solve(self, problem, *, start=None, **limits):
        result = super().solve(problem, start=start, **limits)
        if start is not None:
            start[:] = False
        return result


@dataclass(frozen=True)
class DrawsFromNumpy(Sound):
    def _search(self, problem, run):
        np.random.random()  # noqa: NPY002
        return super()._search(problem, run)


@dataclass(frozen=True)
class DrawsFromRandom(Sound):
    def _search(self, problem, run):
        random.random()  # noqa: S311
        return super()._search(problem, run)


@dataclass(frozen=True)
class NeverEnds(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        while run.evaluation_limit is None and run.time_limit is None and self._watched(run):
            run.should_stop()

    def _watched(self, run):
        # only where somebody watches, or the other checks would hang
        return isinstance(run, testing._Watched)


@dataclass(frozen=True)
class CountsOn(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        for _ in range(3):
            run.count()


@dataclass(frozen=True)
class TellsTheWrongLimit(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        return Status.TIME_LIMIT if run.evaluation_limit is not None and problem.n == 40 else None


@dataclass(frozen=True)
class IgnoresTheTimeLimit(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        if problem.n == 200:
            time.sleep(0.9)


@dataclass(frozen=True)
class IgnoresTheCallback(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        if problem.n == 200 and run.time_limit > 1:
            time.sleep(0.9)


@dataclass(frozen=True)
class NeverCallsBack(Sound):
    def solve(self, problem, *, callback=None, **limits):
        return super().solve(problem, **limits)


@dataclass(frozen=True)
class TellsTheTimeLimit(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        return Status.TIME_LIMIT if run.stopped else None


@dataclass(frozen=True)
class SwallowsErrors(Sound):
    def _search(self, problem, run):
        try:
            return super()._search(problem, run)
        except Exception:  # noqa: BLE001
            return None


@dataclass(frozen=True)
class SwallowsCtrlC(Sound):
    def _search(self, problem, run):
        try:
            return super()._search(problem, run)
        except KeyboardInterrupt:
            return Status.FINISHED


@dataclass(frozen=True)
class IgnoresTheStart(Sound):
    def solve(self, problem, *, start=None, **limits):
        return super().solve(problem, **limits)


@dataclass(frozen=True)
class TakesAnything(Sound):
    def refuse(self, problem):
        return None


@dataclass(frozen=True)
class RefusesWithoutWords(Sound):
    def refuse(self, problem):
        return None if isinstance(problem, BinaryQuadratic) else "no"


@dataclass(frozen=True)
class AcceptsNonsense(Sound):
    def solve(self, problem, *, time_limit=None, **limits):
        return super().solve(problem, time_limit=time_limit or None, **limits)


@dataclass(frozen=True)
class Asks(Sound):
    """Takes black boxes, soundly: the first selections in order."""

    accepts: ClassVar[Any] = (BlackBox, BinaryQuadratic)

    def _search(self, problem, run):
        box = BlackBox.of(problem)
        evaluations = Evaluations(box, run)
        for kept in combinations(range(box.n), 4):
            evaluations.values(np.isin(np.arange(box.n), kept))
            if run.should_stop():
                break


@dataclass(frozen=True)
class AsksPastTheCount(Asks):
    def _search(self, problem, run):
        super()._search(problem, run)
        problem.value(np.arange(problem.n) > 4)


@dataclass(frozen=True)
class SwallowsFailures(Asks):
    def _search(self, problem, run):
        with suppress(Exception):
            super()._search(problem, run)


@dataclass(frozen=True)
class PicklesIntoAnother(Sound):
    def __reduce__(self):
        return type(self), ("forward" if self.direction == "both" else "both",)


@dataclass(frozen=True)
class NotANumber(Altered):
    def altered(self, problem, result):
        return replace(result, seconds=float("nan"))


BROKEN = {
    NotADataclass(): r"class: decorate NotADataclass with @dataclass\(frozen=True\)",
    Nameless(): "class: give Nameless a name",
    NoDefault(): "class: every option needs a default, depth has none",
    RefusesEverything(): "class: refuses every example",
    WrongObjective(): "values: .*: reported objective",
    WrongFeasibility(): "values: .*: reported feasible=False",
    FloatingSolution(): r"values: .*: expected a solution \(9,\) bool, got float64",
    ForgetsTheTrace(): "values: .*: expected the trace to end at",
    ProvesTooMuch(): "optimum: .*: told OPTIMAL at .*, the optimum is",
    FindsNothing(): "optimum: .*: found nothing feasible",
    GivesUpInProof(): "optimum: .*: told INFEASIBLE",
    BoundsTooHigh(): "bound: .*: told the bound .*, above the optimum",
    NoBound(): "bound: .*: bound=True told no bound",
    MakesUpFeasibility(): "infeasible: told feasible=True",
    DividesByTheCouplings(): "trivial: raised SolverFailed: sound raised ZeroDivisionError",
    NeverKeepsOne(): "trivial: n = 1, better kept: expected the optimum -1.0, got 0.0",
    DiffersFromCallToCall(): "repeats: .*: one seed, two answers",
    RemembersTheLastRun(): "repeats: .*: an equal solver answers",
    ForgetsTheSeed(): "repeats: the seed is not in the result",
    WritesIntoTheProblem(): "purity: .*: the search changed the problem;",
    WritesIntoTheMeta(): "purity: .*: the search changed the problem's meta",
    WritesIntoTheStart(): "purity: .*: the search changed the caller's start",
    DrawsFromNumpy(): "random state: .*: drew from a global random generator",
    DrawsFromRandom(): "random state: .*: drew from a global random generator",
    NeverEnds(): "ending: does not end by itself",
    CountsOn(): "evaluation limit: counted on after its 1 evaluations",
    TellsTheWrongLimit(): "evaluation limit: .*: told TIME_LIMIT",
    IgnoresTheTimeLimit(): "time limit: .*: took .* of the 0.2 s allowed",
    IgnoresTheCallback(): "callback: .*: went on for",
    NeverCallsBack(): "callback: .*: found a solution and never called the callback",
    TellsTheTimeLimit(): "callback: .*: expected STOPPED, got TIME_LIMIT",
    SwallowsErrors(): "raising callback: the callback raised and nobody heard",
    SwallowsCtrlC(): "raising callback: Ctrl-C: expected STOPPED",
    IgnoresTheStart(): "start: .*: started at .* and ended at",
    TakesAnything(): "refusals: .*expected UnsupportedProblem, got SolverFailed",
    RefusesWithoutWords(): "refusals: the refusal of .* names no kind that it takes: 'no'",
    AcceptsNonsense(): "refusals: .*'time_limit': 0.0.*: expected InvalidProblem, got an answer",
    AsksPastTheCount(): "black box: .* evaluations were made, .* counted",
    SwallowsFailures(): "black box: every evaluation raised and nobody heard",
    PicklesIntoAnother(): "pickle: a pickle round trip made it",
    NotANumber(): "json: the result has no JSON",
}


@pytest.mark.parametrize(("broken", "words"), BROKEN.items(), ids=lambda case: type(case).__name__)
def test_a_broken_solver_fails_for_its_reason(broken, words, monkeypatch):
    monkeypatch.setattr(testing, "_PATIENCE", 0.5)
    monkeypatch.setattr(testing, "_SLACK", 0.6)
    check = words.split(":")[0]
    with pytest.raises(AssertionError, match=words):
        check_solver(broken, check)


def test_what_the_broken_ones_are_made_of_is_sound():
    check_solver(Sound())
    check_solver(Asks(), "black box")


def test_all_checks_can_fail():
    assert {words.split(":")[0] for words in BROKEN.values()} == set(checks())


def test_a_failure_names_solver_and_check():
    with pytest.raises(AssertionError, match=r"^FindsNothing\(direction='both'\): optimum: "):
        check_solver(FindsNothing())


def test_something_else_is_no_solver():
    with pytest.raises(AssertionError, match="expected a Solver, got str"):
        check_solver("greedy")


def test_an_unknown_check_is_said():
    with pytest.raises(solvers.InvalidProblem, match="did you mean 'values'"):
        check_solver(Sound(), "value")
