"""The battery over levels passes a sound solver, and fails, in words, on broken ones."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from prunesolve.problems import BlackBox, LevelChoice
from prunesolve.solvers import Evaluations, Solver, Status, testing
from prunesolve.solvers.testing import check_solver, checks


@dataclass(frozen=True)
class Sound(Solver):
    """Looks at the first few thousand choices in order."""

    choices: int = 3000

    name: ClassVar[str] = "choices-in-order"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = (BlackBox, LevelChoice)

    def refuse(self, problem):
        reason = super().refuse(problem)
        if reason is None and not isinstance(problem, LevelChoice) and not isinstance(problem.space, LevelChoice):
            return f"{self.name} takes LevelChoice, and BlackBox over one"
        return reason

    def _search(self, problem, run):
        space = problem if isinstance(problem, LevelChoice) else problem.space
        ask = Evaluations(problem, run).values if isinstance(problem, BlackBox) else None
        for levels in itertools.islice(itertools.product(*map(range, space.sizes)), self.choices):
            if run.should_stop():
                break
            if space.is_feasible(levels):
                if ask is None:
                    run.count()
                (ask or run.offer)(np.array(levels))


@dataclass(frozen=True)
class WrongObjective(Sound):
    def solve(self, problem, **limits):
        result = super().solve(problem, **limits)
        return replace(result, objective=result.objective and result.objective - 1.0)


@dataclass(frozen=True)
class WrongKind(Sound):
    def solve(self, problem, **limits):
        result = super().solve(problem, **limits)
        return replace(result, solution=result.solution > 0)


@dataclass(frozen=True)
class ProvesTooMuch(Sound):
    def _search(self, problem, run):
        Sound(choices=2)._search(problem, run)
        return Status.OPTIMAL


@dataclass(frozen=True)
class GivesUp(Sound):
    def _search(self, problem, run):
        return None


@dataclass(frozen=True)
class AsksForFree(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        if isinstance(problem, BlackBox):
            problem.value(problem.space.sizes - 1)


BROKEN = {
    WrongObjective: ("values", "reported objective"),
    WrongKind: ("values", "int"),
    ProvesTooMuch: ("optimum", "told OPTIMAL"),
    GivesUp: ("optimum", "nothing feasible"),
    AsksForFree: ("black box", "evaluations were made"),
}


@pytest.mark.parametrize("check", checks())
def test_a_sound_solver_passes(check):
    check_solver(Sound(), check)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_solver_fails_with_the_reason(broken):
    check, words = BROKEN[broken]
    with pytest.raises(AssertionError, match=f"{check}: .*({words})"):
        check_solver(broken(), check)


def test_every_example_can_be_met_and_leaves_a_choice():
    for name, example in testing.level_examples().items():
        points = testing._points(example.problem)
        meets = testing._meets(example.problem, points)
        assert 1 < meets.sum() < len(points), name
        assert np.array_equal(meets, example.problem.is_feasible(points)), name
        assert np.allclose(testing._values(example, points), example.problem.value(points)), name
