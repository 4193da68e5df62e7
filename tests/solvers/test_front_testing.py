"""The battery for several objectives passes a sound solver, and fails, in words, on each kind of broken one."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar

import numpy as np
import pytest

from prunesolve.problems import MultiObjective, Selections
from prunesolve.solvers import Front, Solver, Status, _front_testing
from prunesolve.solvers._front import hypervolume
from prunesolve.solvers.testing import check_solver, checks


@dataclass(frozen=True)
class Sound(Solver):
    """Evaluates random selections; each of the others spoils one thing of it."""

    points: int = 300

    name: ClassVar[str] = "random-front"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = MultiObjective

    def refuse(self, problem):
        reason = super().refuse(problem)
        if reason is None and not isinstance(problem.space, Selections):
            return f"{self.name} takes a MultiObjective over Selections"
        return reason

    def _search(self, problem, run):
        for density in run.rng.random(self.points):
            x = run.rng.random(problem.n) < density
            if run.should_stop():
                break
            if problem.is_feasible(x):
                run.evaluate(x)


@dataclass(frozen=True)
class Altered(Sound):
    def altered(self, problem, result):
        return result

    def solve(self, problem, **limits):
        return self.altered(problem, super().solve(problem, **limits))


def front_of(result, rows):
    return replace(result, front=Front(result.front.solutions[rows], result.front.objectives[rows]))


@dataclass(frozen=True)
class TellsOtherValues(Altered):
    def altered(self, problem, result):
        return replace(result, front=Front(result.front.solutions, result.front.objectives - 1.0))


@dataclass(frozen=True)
class TellsAnotherVolume(Altered):
    def altered(self, problem, result):
        return replace(result, objective=result.objective and 1.01 * result.objective)


@dataclass(frozen=True)
class KeepsDominated(Altered):
    def altered(self, problem, result):
        worse = np.zeros((1, problem.n), dtype=bool)
        worse[0, : problem.k] = True
        values = np.concatenate([result.front.objectives, problem.evaluate(worse)])
        return replace(result, front=Front(np.concatenate([result.front.solutions, worse]), values))


@dataclass(frozen=True)
class BreaksConstraints(Altered):
    def altered(self, problem, result):
        rows = np.ones((1, problem.n), dtype=bool)
        return result if problem.is_feasible(rows[0]) else replace(result, front=Front(rows, problem.evaluate(rows)))


@dataclass(frozen=True)
class AnswersNoKnee(Altered):
    def altered(self, problem, result):
        return replace(result, solution=~result.solution)


@dataclass(frozen=True)
class FindsNothing(Sound):
    def _search(self, problem, run):
        return None


CALLS = count()


@dataclass(frozen=True)
class DiffersFromCallToCall(Sound):
    def _search(self, problem, run):
        for _ in range(next(CALLS) % 5):
            run.rng.random()
        return super()._search(problem, run)


@dataclass(frozen=True)
class WritesIntoTheMeta(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        problem.meta["seen"] = True


@dataclass(frozen=True)
class DrawsFromRandom(Sound):
    def _search(self, problem, run):
        random.random()  # noqa: S311
        return super()._search(problem, run)


@dataclass(frozen=True)
class AsksBehindTheRun(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        rows = np.ones((1, problem.n), dtype=bool)
        problem.values(rows[problem.is_feasible(rows)])


@dataclass(frozen=True)
class TellsTheTimeLimit(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        return Status.TIME_LIMIT if run.evaluation_limit is not None else None


@dataclass(frozen=True)
class IgnoresTheTimeLimit(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        time.sleep(2.0 if run.time_limit is not None and run.time_limit < 1 else 0.0)


@dataclass(frozen=True)
class IgnoresTheCallback(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        time.sleep(2.0 if run.stopped else 0.0)


@dataclass(frozen=True)
class SwallowsTheCallback(Sound):
    def _search(self, problem, run):
        try:
            return super()._search(problem, run)
        except Exception:
            return None


@dataclass(frozen=True)
class NeverEnds(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        while run.evaluation_limit is None and run.time_limit is None and hasattr(run, "should_stop"):
            run.should_stop()


@dataclass(frozen=True)
class ForgetsTheStart(Altered):
    def altered(self, problem, result):
        return front_of(result, np.argsort(result.front.objectives[:, 0])[-1:])


@dataclass(frozen=True)
class AnswersHoles(Altered):
    def altered(self, problem, result):
        rows = np.ones((1, problem.n), dtype=bool)
        broken = result.status is not Status.NO_FEASIBLE_FOUND and np.isnan(problem.evaluate(rows)).any()
        return replace(result, front=Front(rows, np.zeros((1, 2)))) if broken else result


@dataclass(frozen=True)
class BearsEverything(Sound):
    def _search(self, problem, run):
        try:
            return super()._search(problem, run)
        except RuntimeError:
            return None


@dataclass(frozen=True)
class RefusesWithoutWords(Sound):
    def refuse(self, problem):
        return None if super().refuse(problem) is None else "no"


BROKEN = {
    TellsOtherValues: ("values", "told"),
    TellsAnotherVolume: ("values", "hypervolume"),
    KeepsDominated: ("values", "dominate|breaks the constraints"),
    BreaksConstraints: ("values", "breaks the constraints"),
    AnswersNoKnee: ("values", "knee"),
    FindsNothing: ("values", "no front"),
    DiffersFromCallToCall: ("repeats", "two answers"),
    WritesIntoTheMeta: ("purity", "changed the problem"),
    DrawsFromRandom: ("random state", "global"),
    AsksBehindTheRun: ("evaluation limit", "ask run.evaluate"),
    TellsTheTimeLimit: ("evaluation limit", "TIME_LIMIT"),
    IgnoresTheTimeLimit: ("time limit", "took"),
    IgnoresTheCallback: ("callback", "went on"),
    SwallowsTheCallback: ("raising callback", "nobody heard"),
    ForgetsTheStart: ("start", "started at"),
    AnswersHoles: ("black box", "without a value"),
    BearsEverything: ("black box", "nobody heard"),
    RefusesWithoutWords: ("refusals", "names no kind"),
}


@pytest.mark.parametrize("check", checks())
def test_a_sound_solver_passes(check):
    check_solver(Sound(), check)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_solver_fails_with_the_reason(broken):
    check, words = BROKEN[broken]
    with pytest.raises(AssertionError, match=f"{check}: .*({words})"):
        check_solver(broken(), check)


def test_a_search_without_end_is_noticed(monkeypatch):
    from prunesolve.solvers import testing

    monkeypatch.setattr(testing, "_PATIENCE", 0.5)
    with pytest.raises(AssertionError, match="ending: .*end by itself"):
        check_solver(NeverEnds(), "ending")


def test_whoever_takes_nothing_of_all_is_told_so():
    class RefusesEverything(Sound):
        def refuse(self, problem):
            return "not today"

    with pytest.raises(AssertionError, match="class: .*(refuses every|dataclass)"):
        check_solver(RefusesEverything(), "class")


def test_every_instance_has_a_front():
    for name, problem in _front_testing.fronts().items():
        assert len(_front_testing.true_front(problem)), name


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_volume_is_the_one_of_the_library(objectives):
    values = np.random.default_rng(0).random((12, objectives)) * 1.2
    reference = np.ones(objectives)
    assert _front_testing.volume(values, reference) == pytest.approx(hypervolume(values, reference))
    assert _front_testing.volume(values + 2.0, reference) == 0.0


def test_the_volume_of_two_boxes():
    assert _front_testing.volume(np.array([[1.0, 2.0], [2.0, 1.0], [2.5, 2.5]]), np.array([3.0, 3.0])) == 3.0
