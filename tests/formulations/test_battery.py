"""The shipped battery passes over every formulation of the library and fails, in words, on each kind of broken one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from prunesolve import formulations
from prunesolve.formulations import Fisher, Formulation, HybridQubo, L1Qubo, Objective, Reconstruction
from prunesolve.formulations.testing import check_formulation, example_statistics
from prunesolve.problems import BinaryQuadratic, Cardinality, InvalidProblem, Selection, Statistics

VARIANTS = [
    L1Qubo(beta=0.0),
    L1Qubo(beta=0.7, minimum=2),
    HybridQubo(alpha=1.0),
    HybridQubo(alpha=0.0, beta=0.3, normalisation="layer"),
    HybridQubo(beta=0.0),
    HybridQubo(similarity="weights", first_order="taylor_signed", minimum=0),
    Reconstruction(minimum=2),
    Fisher(minimum=0),
]


@pytest.mark.parametrize("cls", formulations.all(), ids=lambda cls: cls.name)
def test_every_formulation_with_its_defaults_keeps_its_word(cls):
    check_formulation(cls())


@pytest.mark.parametrize("formulation", VARIANTS, ids=repr)
def test_every_option_keeps_its_word(formulation):
    check_formulation(formulation)


@pytest.mark.parametrize("seed", [1, 2])
def test_other_statistics(seed):
    check_formulation(Reconstruction(), example_statistics(seed, concat=True))


def test_too_many_units_to_enumerate_is_said():
    small = example_statistics()
    rows = [*small.groups, *(replace(g, name=f"{g.name}b", layer=f"{g.name}b") for g in small.groups)]
    with pytest.raises(AssertionError, match="at most 12 units, got 20"):
        check_formulation(L1Qubo(beta=0), Statistics(rows, {"l1": np.ones(20)}))


@dataclass(frozen=True)
class Sound(Formulation):
    """Loses t_i by removing unit i; the broken ones below each spoil one thing of it."""

    name: ClassVar[str] = "sound"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("saliency.taylor",)

    def _objective(self, stats: Statistics) -> Objective:
        worth = stats.criterion("taylor")
        return Objective(-worth, offset=float(worth.sum()))

    def meaning(self, stats: Statistics, keep: Any) -> float:
        return float(stats.criterion("taylor")[~keep].sum())


def test_the_sound_one_passes():
    check_formulation(Sound())


@dataclass(frozen=True)
class WrongValue(Sound):
    def _objective(self, stats):
        return super()._objective(stats)._replace(offset=0.0)


@dataclass(frozen=True)
class WrongPair(Sound):
    def _objective(self, stats):
        matrix = np.zeros((stats.n, stats.n))
        matrix[2, 7] = matrix[7, 2] = 1e-3
        return super()._objective(stats)._replace(quadratic=matrix)


@dataclass(frozen=True)
class ChangesStatistics(Sound):
    def _objective(self, stats):
        objective = super()._objective(stats)
        stats.meta["seen"] = True
        return objective


_CALLS = iter(range(10**6))


@dataclass(frozen=True)
class DiffersFromCallToCall(Sound):
    def _objective(self, stats):
        return super()._objective(stats)._replace(diagonal=np.full(stats.n, 1.0 + next(_CALLS)))


@dataclass(frozen=True)
class DrawsGlobally(Sound):
    def _objective(self, stats):
        np.random.rand()  # noqa: NPY002  (what the battery must catch)
        return super()._objective(stats)


@dataclass(frozen=True)
class FalseDiagonal(Sound):
    def _objective(self, stats):
        return super()._objective(stats)._replace(diagonal=np.full(stats.n, -0.1))


@dataclass(frozen=True)
class WrongLabels(Sound):
    def encode(self, stats, **asked):
        return super().encode(stats, **asked).replace(labels=range(stats.n))


@dataclass(frozen=True)
class WrongWayBack(Sound):
    def decode(self, stats, solution):
        return Selection(stats.groups, ~np.asarray(solution))


@dataclass(frozen=True)
class MetaNotJson(Sound):
    def encode(self, stats, **asked):
        problem = super().encode(stats, **asked)
        return problem.replace(meta=dict(problem.meta) | {"array": np.ones(2)})


@dataclass(frozen=True)
class MetaForgotten(Sound):
    def encode(self, stats, **asked):
        return super().encode(stats, **asked).replace(meta={})


@dataclass(frozen=True)
class ForgetsTheMinimum(Sound):
    def encode(self, stats, **asked):
        problem = super().encode(stats, **asked)
        return problem.replace(constraints=problem.constraints[1:] if self.minimum else problem.constraints)


@dataclass(frozen=True)
class RoundsDown(Sound):
    """With keep = 5, a count, all is well; a fraction keeps one too few."""

    def encode(self, stats, *, keep=None, **asked):
        problem = super().encode(stats, keep=keep, **asked)
        if not isinstance(keep, float) or keep == 1.0:
            return problem
        kept = [c for c in problem.constraints if not isinstance(c, Cardinality)]
        return problem.replace(constraints=[*kept, Cardinality(problem.k - 1)])


@dataclass(frozen=True)
class IgnoresMacs(Sound):
    def encode(self, stats, *, macs=None, **asked):
        if macs is not None:
            super().encode(stats, macs=macs, **asked)
            return super().encode(stats, **asked or {"params": 1.0})
        return super().encode(stats, **asked)


@dataclass(frozen=True)
class RefusesTooMuch(Sound):
    def encode(self, stats, *, params=None, **asked):
        return super().encode(stats, params=None if params is None else params / 100, **asked)


@dataclass(frozen=True)
class NeedsMoreThanItSays(Sound):
    def _objective(self, stats):
        stats.matrices("activation")
        return super()._objective(stats)


@dataclass(frozen=True)
class NeedsLessThanItSays(Sound):
    """Names a statistic, but solves happily without it."""

    def encode(self, stats, **asked):
        if "taylor" not in stats.saliency:
            return BinaryQuadratic(np.zeros(stats.n), constraints=[Cardinality(5)], labels=stats.units)
        return super().encode(stats, **asked)


@dataclass(frozen=True)
class MissingUnnamed(Sound):
    def _require(self, stats):
        if "taylor" not in stats.saliency:
            raise InvalidProblem("something is missing")


@dataclass(frozen=True)
class AcceptsNoBudget(Sound):
    def encode(self, stats, **asked):
        return super().encode(stats, **asked or {"keep": 0.5})


@dataclass(frozen=True)
class RaisesTheWrongError(Sound):
    def encode(self, stats, *, keep=None, **asked):
        if keep is not None and keep != keep:
            raise KeyError("keep")
        return super().encode(stats, keep=keep, **asked)


@dataclass(frozen=True)
class KeepsTheSmallestToItself(Sound):
    def encode(self, stats, **asked):
        try:
            return super().encode(stats, **asked)
        except InvalidProblem as error:
            raise InvalidProblem(re.sub(r"\d", "", str(error))) from None


@dataclass(frozen=True)
class NoDefault(Sound):
    weight: float = 0.0

    def __init__(self, weight: float, minimum: int = 1) -> None:
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "minimum", minimum)


class NotADataclass(Sound):
    pass


@dataclass(frozen=True)
class Nameless(Sound):
    name: ClassVar[Any] = None


BROKEN = {
    WrongValue(): "value differs from meaning at x = 0000000000",
    WrongPair(): "value differs from meaning at x = ..1....1..",
    ChangesStatistics(): "encode changed the statistics",
    DiffersFromCallToCall(): "encode twice gave two problems",
    DrawsGlobally(): "drew from numpy's global random generator",
    FalseDiagonal(): r"its smallest eigenvalue is -0\.1",
    WrongLabels(): "labels must be the statistics' units",
    WrongWayBack(): "decode of .* kept",
    MetaNotJson(): "meta must be JSON-able",
    MetaForgotten(): r"meta lacks \['asked', 'formulation', 'groups', 'sense'\]",
    ForgetsTheMinimum(): r"encode\(keep=7\) admits",
    RoundsDown(): r"encode\(keep=0.5\) (admits|excludes)",
    IgnoresMacs(): r"encode\(macs=0.6\) admits",
    RefusesTooMuch(): r"encode\(params=0.6\) can be met and was refused",
    NeedsMoreThanItSays(): r"`needs` is \('saliency.taylor',\), more was read",
    NeedsLessThanItSays(): "statistics without saliency.taylor: expected InvalidProblem, got a problem",
    MissingUnnamed(): "does not name it: something is missing",
    AcceptsNoBudget(): r"encode\(\): expected InvalidProblem, got a problem",
    RaisesTheWrongError(): r"encode\(keep=nan\): expected InvalidProblem, got KeyError",
    KeepsTheSmallestToItself(): r"refusal of encode\(keep=2\) must name it and say that 3 is the smallest",
    NoDefault(1.0): "every field needs a default",
    NotADataclass(): r"decorate it with @dataclass\(frozen=True\)",
    Nameless(): "give it a name",
}


@pytest.mark.parametrize(("broken", "words"), BROKEN.items(), ids=lambda case: type(case).__name__)
def test_a_broken_formulation_fails_in_words(broken, words):
    with pytest.raises(AssertionError, match=words):
        check_formulation(broken)


def test_something_else_is_no_formulation():
    with pytest.raises(AssertionError, match="expected a Formulation, got str"):
        check_formulation("l1-qubo")
