"""The batteries of transports and clusterings pass sound solvers, and fail, in words, on each kind of broken one."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar

import numpy as np
import pytest

from prunesolve.problems import Clustering, PartialTransport
from prunesolve.solvers import Solver, Status, _clustering_testing, _kind_testing, _plans, _transport_testing, get
from prunesolve.solvers.testing import check_solver, checks

TRANSPORT, CLUSTERING = _transport_testing.KIND, _clustering_testing.KIND


@dataclass(frozen=True)
class Sound(Solver):
    """A greedy plan with no duals but zero; of points, each to the nearest of random ones with room."""

    tries: int = 20

    name: ClassVar[str] = "sound"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = (PartialTransport, Clustering)

    def _search(self, problem, run):
        for _ in range(self.tries):
            if run.should_stop():
                break
            run.count()
            run.offer(_plans.greedy(problem) if isinstance(problem, PartialTransport) else clustered(problem, run.rng))
            if isinstance(problem, PartialTransport):
                run.prove_duals(np.zeros(problem.n), np.zeros(problem.m))


def clustered(problem, rng):
    """Centres drawn at random, then the other points in order, each to the nearest centre with room."""
    apart = problem.distances
    if apart is None:
        x = problem.features.astype(float)
        apart = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    centres = rng.choice(problem.n, problem.n_clusters, replace=False)
    labels, sizes = np.full(problem.n, -1), np.ones(problem.n_clusters)
    labels[centres] = np.arange(problem.n_clusters)
    most = problem.n if problem.max_size is None else problem.max_size
    for i in np.flatnonzero(labels < 0):
        labels[i] = np.argmin(np.where(sizes < most, apart[i, centres], np.inf))
        sizes[labels[i]] += 1
    return labels


@dataclass(frozen=True)
class Altered(Sound):
    def altered(self, problem, result):
        return result

    def solve(self, problem, **limits):
        return self.altered(problem, super().solve(problem, **limits))


@dataclass(frozen=True)
class WrongObjective(Altered):
    def altered(self, problem, result):
        return replace(result, objective=result.objective - 1.0)


@dataclass(frozen=True)
class WrongFeasibility(Altered):
    def altered(self, problem, result):
        return replace(result, feasible=not result.feasible)


@dataclass(frozen=True)
class DensePlan(Altered):
    def altered(self, problem, result):
        return replace(result, solution=result.solution.toarray())


@dataclass(frozen=True)
class BackwardLabels(Altered):
    def altered(self, problem, result):
        return replace(result, solution=result.solution.max() - result.solution)


@dataclass(frozen=True)
class FloatingLabels(Altered):
    def altered(self, problem, result):
        return replace(result, solution=result.solution.astype(float))


@dataclass(frozen=True)
class ForgetsTheTrace(Altered):
    def altered(self, problem, result):
        return replace(result, trace=())


@dataclass(frozen=True)
class FindsNothing(Sound):
    def _search(self, problem, run):
        return None


@dataclass(frozen=True)
class TooMuchMass(Sound):
    """More than what a target takes, in the last column."""

    def _search(self, problem, run):
        plan = _plans.greedy(problem).toarray()
        plan[0, -1] += 1.0
        run.offer(plan)


@dataclass(frozen=True)
class TooFewClusters(Sound):
    def _search(self, problem, run):
        run.offer(np.minimum(clustered(problem, run.rng), problem.n_clusters - 2))


@dataclass(frozen=True)
class ProvesTooMuch(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        return Status.OPTIMAL


@dataclass(frozen=True)
class BoundsTooHigh(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        run.prove(run.objective + 1e-6 * abs(run.objective))


@dataclass(frozen=True)
class NoBound(Altered):
    def altered(self, problem, result):
        return replace(result, bound=None)


@dataclass(frozen=True)
class FailsOnOneRow(Sound):
    def _search(self, problem, run):
        if problem.n == 1:
            raise ZeroDivisionError("one row")
        return super()._search(problem, run)


@dataclass(frozen=True)
class FailsInOnePlace(Sound):
    def _search(self, problem, run):
        if not problem.value(np.zeros(problem.n)):
            raise ZeroDivisionError("no distance")
        return super()._search(problem, run)


CALLS = count()


@dataclass(frozen=True)
class DiffersFromCallToCall(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        run.count(next(CALLS) % 2 if run.evaluations_left > 1 else 0)


@dataclass(frozen=True)
class WritesIntoTheProblem(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        weights = problem.source if isinstance(problem, PartialTransport) else problem.weights
        weights.setflags(write=True)
        weights[0] += 1e-12


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
            start[...] = 0
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
class CountsOn(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        run.count(200)


@dataclass(frozen=True)
class TellsTheTimeLimit(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        return Status.TIME_LIMIT if run.evaluation_limit is not None else None


@dataclass(frozen=True)
class IgnoresTheTimeLimit(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        time.sleep(0.9 if run.time_limit is not None and run.time_limit < 1 else 0.0)


@dataclass(frozen=True)
class IgnoresTheCallback(Sound):
    def _search(self, problem, run):
        super()._search(problem, run)
        time.sleep(0.9 if run.stopped else 0.0)


@dataclass(frozen=True)
class NeverCallsBack(Sound):
    def solve(self, problem, *, callback=None, **limits):
        return super().solve(problem, **limits)


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
class AcceptsNonsense(Sound):
    def solve(self, problem, *, time_limit=None, **limits):
        return super().solve(problem, time_limit=time_limit or None, **limits)


@dataclass(frozen=True)
class PicklesIntoAnother(Sound):
    def __reduce__(self):
        return type(self), (self.tries + 1,)


@dataclass(frozen=True)
class NotANumber(Altered):
    def altered(self, problem, result):
        return replace(result, seconds=float("nan"))


BOTH = {
    WrongObjective(): "values: .*: reported objective",
    WrongFeasibility(): "values: .*: reported feasible=False",
    ForgetsTheTrace(): "values: .*: expected the trace to end at",
    FindsNothing(): "values: .*: no solution",
    ProvesTooMuch(): "optimum: .*: told OPTIMAL at .*, the optimum is",
    BoundsTooHigh(): "bound: .*: told the bound .*, above the optimum",
    DiffersFromCallToCall(): "repeats: .*: one seed, two answers",
    WritesIntoTheProblem(): "purity: .*: the search changed the problem;",
    WritesIntoTheMeta(): "purity: .*: the search changed the problem's meta",
    WritesIntoTheStart(): "purity: .*: the search changed the caller's start",
    DrawsFromNumpy(): "random state: .*: drew from a global random generator",
    DrawsFromRandom(): "random state: .*: drew from a global random generator",
    CountsOn(): "evaluation limit: .*: counted .* evaluations of 1 allowed",
    TellsTheTimeLimit(): "evaluation limit: .*: told TIME_LIMIT",
    IgnoresTheTimeLimit(): "time limit: .*: took .* of the 0.2 s allowed",
    IgnoresTheCallback(): "callback: .*: went on for",
    NeverCallsBack(): "callback: .*: found a solution and never called the callback",
    SwallowsErrors(): "raising callback: the callback raised and nobody heard",
    SwallowsCtrlC(): "raising callback: Ctrl-C: expected STOPPED",
    IgnoresTheStart(): "start: .*: started at .* and ended at",
    TakesAnything(): "refusals: .*raised",
    AcceptsNonsense(): "refusals: .*'time_limit': 0.0.*: expected InvalidProblem, got an answer",
    PicklesIntoAnother(): "pickle: a pickle round trip made it",
    NotANumber(): "json: .*: the result has no JSON",
}
OWN = {
    DensePlan(): (TRANSPORT, r"values: units: expected a plan \(5, 4\) as a CSR array of float64, got ndarray"),
    TooMuchMass(): (TRANSPORT, "optimum: units: found nothing feasible"),
    NoBound(): (TRANSPORT, "bound: units: bound=True told no bound"),
    FailsOnOneRow(): (TRANSPORT, "trivial: .*raised ZeroDivisionError"),
    FloatingLabels(): (CLUSTERING, r"values: features: expected labels \(7,\) int, got float64"),
    BackwardLabels(): (CLUSTERING, "values: features: expected labels numbered from 0 by first appearance"),
    TooFewClusters(): (CLUSTERING, "optimum: features: found nothing feasible"),
    FailsInOnePlace(): (CLUSTERING, "trivial: .*raised ZeroDivisionError"),
}
CASES = [(broken, kind, words) for broken, words in BOTH.items() for kind in (TRANSPORT, CLUSTERING)]
CASES += [(broken, kind, words) for broken, (kind, words) in OWN.items()]


def only(broken, kind):
    """The same solver, of one kind of problem alone."""
    cls = type(broken)
    return dataclass(frozen=True)(type(cls.__name__, (cls,), {"accepts": kind.type, "__module__": cls.__module__}))()


@pytest.mark.parametrize(
    ("broken", "kind", "words"), CASES, ids=[f"{type(b).__name__}-{k.type.__name__}" for b, k, _ in CASES]
)
def test_a_broken_solver_fails_for_its_reason(broken, kind, words, monkeypatch):
    monkeypatch.setattr(_kind_testing, "_SLACK", 0.6)
    # a class made here cannot be pickled
    solver = broken if isinstance(broken, PicklesIntoAnother) else only(broken, kind)
    with pytest.raises(AssertionError, match=words):
        check_solver(solver, words.split(":")[0])


def test_what_the_broken_ones_are_made_of_is_sound():
    check_solver(Sound())


def test_all_checks_can_fail():
    for kind in (TRANSPORT, CLUSTERING):
        can = {words.split(":")[0] for _, which, words in CASES if which is kind}
        assert can == set(kind.checks()) <= set(checks())


def test_examples_can_be_met_and_are_what_they_are_written_out_as():
    for kind in (TRANSPORT, CLUSTERING):
        for name, problem in {**kind.examples(), **kind.trivial()}.items():
            assert np.isfinite(kind.optimum(problem)), name
            for solution in kind.starts(problem) if problem.n > 1 else ():
                assert kind.meets(problem, solution), name
                assert problem.is_feasible(solution), name
                assert kind.near(problem, problem.value(solution), kind.value(problem, solution)), name


@pytest.mark.parametrize("inner", ["assignment", "ward"])
@pytest.mark.parametrize("check", ["values", "bound", "refusals", "pickle"])
def test_a_wrapper_is_checked_by_the_kind_that_its_inner_solver_takes(inner, check):
    check_solver(get("restarts", inner=inner), check)
