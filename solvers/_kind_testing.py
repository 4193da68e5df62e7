"""Does a solver of one kind of problem keep its word? The checks of `testing.check_solver` for transports, clusterings.

What a kind has of its own, examples and definitions written out, is in a `Kind`; the optimum is never the library's.
"""

from __future__ import annotations

import json
import math
import pickle
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, InvalidProblem, SolverFailed, UnsupportedProblem

from ._base import Incumbent, Result, Solver, Status

_LIMIT = 0.2  # seconds asked for on a larger instance
_SLACK = 1.3  # seconds that a run may take to notice that it should end
_SOME = 300  # evaluations, for checks to which it is all one how the search ends
_CLOSE = 1e-9  # of the scale of the values


@dataclass(frozen=True)
class Kind:
    """A kind of problem: instances, and what its values, constraints and optima are by definition.

    `examples` are small, `trivial` leave no choice that matters, `larger(n)` take a search some time. `value(problem,
    solution)`, `meets`, `optimum(problem)` and `scale` follow the definition; `starts` are feasible, a poor one and a
    good one; `fault(problem, solution)` says what is wrong with the type or the shape of a solution; `nonsense` are no
    starts; `asks_bound` says that a bound asked for must be there.
    """

    type: type[Any]
    examples: Callable[[], Mapping[str, Any]]
    trivial: Callable[[], Mapping[str, Any]]
    larger: Callable[[int], Mapping[str, Any]]
    value: Callable[[Any, Any], float]
    meets: Callable[[Any, Any], bool]
    optimum: Callable[[Any], float]
    scale: Callable[[Any], float]
    starts: Callable[[Any], list[Any]]
    fault: Callable[[Any, Any], str | None]
    nonsense: Callable[[Any], list[Any]]
    written: Callable[[Any], Any]
    asks_bound: bool = False

    def checks(self) -> dict[str, Callable[[Any], None]]:
        """{name: check} of this kind."""
        return {name: partial(check, self) for name, check in _CHECKS.items()}

    def examples_for(self, solver: Solver) -> dict[str, Any]:
        """The examples that a solver takes."""
        return {name: problem for name, problem in self.examples().items() if solver.refuse(problem) is None}

    def near(self, problem: Any, a: float | None, b: float | None) -> bool:
        """Whether only rounding parts two values."""
        if a is None or b is None:
            return a is b
        return abs(a - b) <= _CLOSE * max(self.scale(problem), abs(a), abs(b))


def _tried(kind: Kind, solver: Solver, n: int) -> dict[str, Any]:
    larger = {name: problem for name, problem in kind.larger(n).items() if solver.refuse(problem) is None}
    return larger or dict([*kind.examples_for(solver).items()][:3])


def _one(kind: Kind, solver: Solver) -> Any:
    return next(iter(kind.examples_for(solver).values()))


def _say(holds: Any, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _told(kind: Kind, result: Result) -> tuple[Any, ...]:
    """What must be the same when a run is repeated; not the trace, whose rows depend on the clock."""
    written = None if result.solution is None else kind.written(result.solution)
    return written, result.objective, str(result.status), result.evaluations


# --- the checks ----------------------------------------------------------------------------------------------------


def _check_values(kind: Kind, solver: Solver) -> None:
    """Solution, objective and feasibility agree with the definition; the trace ends there."""
    for name, problem in kind.examples_for(solver).items():
        result = solver.solve(problem, evaluation_limit=_SOME)
        _say(result.solver == repr(solver), f"{name}: expected result.solver {solver!r}, got {result.solver}")
        _say(result.solution is not None, f"{name}: no solution ({result.status})")
        fault = kind.fault(problem, result.solution)
        _say(fault is None, f"{name}: {fault}")
        value, meets = kind.value(problem, result.solution), kind.meets(problem, result.solution)
        _say(
            kind.near(problem, result.objective, value),
            f"{name}: reported objective {result.objective}, the value of its solution is {value}",
        )
        _say(result.feasible == meets, f"{name}: reported feasible={result.feasible}, its solution is {meets}")
        last = result.trace[-1] if result.trace else None
        _say(
            not meets or (last is not None and kind.near(problem, last.objective, value)),
            f"{name}: expected the trace to end at {value}, got {last}",
        )


def _check_optimum(kind: Kind, solver: Solver) -> None:
    """Feasible, never below the optimum, and equal to it where that is claimed."""
    for name, problem in kind.examples_for(solver).items():
        result, optimum = solver.solve(problem), kind.optimum(problem)
        _say(result.feasible, f"{name}: found nothing feasible ({result.status})")
        objective = math.inf if result.objective is None else result.objective
        equal = kind.near(problem, objective, optimum)
        _say(objective > optimum or equal, f"{name}: reported {objective}, below the optimum {optimum}")
        _say(
            result.status is not Status.OPTIMAL or equal,
            f"{name}: told OPTIMAL at {objective}, the optimum is {optimum}",
        )


def _check_bound(kind: Kind, solver: Solver) -> None:
    """No bound above the optimum."""
    for name, problem in kind.examples_for(solver).items():
        result, optimum = solver.solve(problem, bound=True, evaluation_limit=_SOME), kind.optimum(problem)
        _say(result.bound is not None or not kind.asks_bound, f"{name}: bound=True told no bound")
        if result.bound is not None:
            _say(
                result.bound < optimum or kind.near(problem, result.bound, optimum),
                f"{name}: told the bound {result.bound}, above the optimum {optimum}",
            )


def _check_trivial(kind: Kind, solver: Solver) -> None:
    """The optimum where there is no choice or none that matters."""
    for name, problem in kind.trivial().items():
        if solver.refuse(problem) is None:
            optimum = kind.optimum(problem)
            for seconds, evaluations in ((None, None), (10.0, _SOME)):
                result = solver.solve(problem, time_limit=seconds, evaluation_limit=evaluations)
                _say(
                    result.feasible and kind.near(problem, result.objective, optimum),
                    f"{name}: expected the optimum {optimum}, got {result.objective} ({result.status})",
                )


def _check_repeats(kind: Kind, solver: Solver) -> None:
    """The same seed gives the same answer, from an equal solver too."""
    problems = [(name, problem, None) for name, problem in [*kind.examples_for(solver).items()][::2]]
    for name, problem, limit in [*problems, *((n, p, 300) for n, p in _tried(kind, solver, 40).items())]:
        first = _told(kind, solver.solve(problem, seed=7, evaluation_limit=limit))
        other = _told(kind, replace(solver).solve(problem.replace(), seed=7, evaluation_limit=limit))
        _say(first == other, f"{name}: one seed, two answers: {first} and {other}; draw from run.rng alone")
    _say(solver.solve(_one(kind, solver), seed=7).seed == 7, "the seed is not in the result")


def _check_purity(kind: Kind, solver: Solver) -> None:
    """The problem and the start are as they were."""
    for name, problem in kind.examples_for(solver).items():
        # replace() hashes anew, the property remembers
        before, facts = problem.replace().hash, json.dumps(dict(problem.meta))
        solver.solve(problem, evaluation_limit=_SOME)
        _say(problem.replace().hash == before, f"{name}: the search changed the problem; copy before you write")
        _say(json.dumps(dict(problem.meta)) == facts, f"{name}: the search changed the problem's meta")
        start = kind.starts(problem)[0]
        copy = start.copy()
        solver.solve(problem, start=start, evaluation_limit=50)
        _say(kind.written(start) == kind.written(copy), f"{name}: the search changed the caller's start")


def _check_random_state(kind: Kind, solver: Solver) -> None:
    """Nobody else's random numbers are drawn."""
    for name, problem in _tried(kind, solver, 40).items():
        before = pickle.dumps((np.random.get_state(), random.getstate()))  # noqa: NPY002  (the state we guard)
        solver.solve(problem, evaluation_limit=100)
        after = pickle.dumps((np.random.get_state(), random.getstate()))  # noqa: NPY002
        _say(before == after, f"{name}: drew from a global random generator; use run.rng or run.seed")


def _check_evaluation_limit(kind: Kind, solver: Solver) -> None:
    """Nothing is evaluated after the limit."""
    for name, problem in _tried(kind, solver, 40).items():
        for limit in (1, 100):
            result = solver.solve(problem, evaluation_limit=limit)
            _say(result.evaluations <= limit, f"{name}: counted {result.evaluations} evaluations of {limit} allowed")
            _say(
                result.status not in (Status.TIME_LIMIT, Status.STOPPED),
                f"{name}: told {result.status} for a run that only evaluations limit",
            )


def _check_time_limit(kind: Kind, solver: Solver) -> None:
    """A run of 0.2 s is over in 1.5 s."""
    for name, problem in _tried(kind, solver, 200).items():
        taken = math.inf
        # the better of two: a busy machine may lose a second
        for _ in range(2):
            began = time.perf_counter()
            result = solver.solve(problem, time_limit=_LIMIT)
            spent = time.perf_counter() - began - float(result.details.get("compile_seconds", 0.0))
            taken = min(taken, spent)
            if taken <= _LIMIT + _SLACK:
                break
        _say(taken <= _LIMIT + _SLACK, f"{name}: took {taken:.1f} s of the {_LIMIT} s allowed; ask run.should_stop()")


def _check_callback(kind: Kind, solver: Solver) -> None:
    """A callback that returns True ends the run; what it sees is true and improves."""
    for name, problem in _tried(kind, solver, 200).items():
        seen: list[Incumbent] = []
        asked: list[float] = []

        def stop(incumbent: Incumbent, seen: Any = seen, asked: Any = asked) -> bool:
            seen.append(incumbent)
            asked.append(time.perf_counter())
            return True

        result = solver.solve(problem, callback=stop, time_limit=5.0)
        late = time.perf_counter() - asked[0] if asked else 0.0
        _say(seen, f"{name}: found a solution and never called the callback")
        _say(late <= _SLACK, f"{name}: went on for {late:.1f} s after the callback asked to stop")
        ended = (Status.STOPPED, Status.OPTIMAL, Status.FINISHED)
        _say(result.status in ended, f"{name}: expected STOPPED, got {result.status}")
        objectives = [incumbent.objective for incumbent in seen]
        _say(
            all(kind.near(problem, i.objective, kind.value(problem, i.solution)) for i in seen)
            and objectives == sorted(objectives)[::-1],
            f"{name}: the callback saw the objectives {objectives}",
        )


def _check_raising_callback(kind: Kind, solver: Solver) -> None:
    """An error of the callback comes out as SolverFailed with the incumbent; Ctrl-C keeps the incumbent."""

    def fail(incumbent: Incumbent) -> None:
        raise ValueError("the disk is full")

    def interrupt(incumbent: Incumbent) -> None:
        raise KeyboardInterrupt

    problem = _one(kind, solver)
    try:
        solver.solve(problem, callback=fail)
    except SolverFailed as error:
        _say("the disk is full" in str(error), f"SolverFailed does not say what the callback raised: {error}")
        _say(isinstance(error.result, Result) and error.result.feasible, "SolverFailed carries no incumbent")
    else:
        raise AssertionError("the callback raised and nobody heard; let errors pass through the search")
    result = solver.solve(problem, callback=interrupt)
    _say(
        result.feasible and result.status is Status.STOPPED,
        f"Ctrl-C: expected STOPPED with the incumbent, got {result.status}; let KeyboardInterrupt pass",
    )


def _check_start(kind: Kind, solver: Solver) -> None:
    """The answer is never worse than the start."""
    for name, problem in kind.examples_for(solver).items():
        for start in kind.starts(problem):
            value = kind.value(problem, start)
            result = solver.solve(problem, start=start, evaluation_limit=1)
            objective = math.inf if result.objective is None else result.objective
            _say(
                result.feasible and (objective <= value or kind.near(problem, objective, value)),
                f"{name}: started at {value} and ended at {result.objective} ({result.status})",
            )


def _check_refusals(kind: Kind, solver: Solver) -> None:
    """Nonsense is refused in words, and what it cannot take with the name of what it can."""
    for foreign in (object(), None, [[1.0]]):
        words = _refusal(f"solve({foreign!r})", UnsupportedProblem, partial(solver.solve, foreign))
        _say(kind.type.__name__ in words, f"the refusal names no kind that it takes: {words!r}")
    for name, problem in kind.examples().items():
        if solver.refuse(problem) is not None:
            words = _refusal(f"solve({name})", UnsupportedProblem, partial(solver.solve, problem))
            _say(words.strip(), f"the refusal of {name} has no words")
    problem = _one(kind, solver)
    for asked in _nonsense(kind, problem):
        (name,) = asked
        words = _refusal(f"solve({asked})", InvalidProblem, partial(solver.solve, problem, **asked))
        _say(name in words, f"the refusal of {asked} must name it: {words!r}")
    if not isinstance(solver.accepts, tuple):
        foreign = BinaryQuadratic(np.ones(1))
        _refusal("solve(BinaryQuadratic)", UnsupportedProblem, partial(solver.solve, foreign))


def _refusal(what: str, expected: type[Exception], call: Callable[[], Any]) -> str:
    try:
        call()
    except expected as error:
        return str(error)
    raise AssertionError(f"{what}: expected {expected.__name__}, got an answer")


def _nonsense(kind: Kind, problem: Any) -> Iterator[dict[str, Any]]:
    yield from ({"time_limit": seconds} for seconds in (0.0, math.nan, "soon"))
    yield from ({"evaluation_limit": evaluations} for evaluations in (0, 1.5))
    yield from ({"seed": seed} for seed in (-1, "seven"))
    yield from ({"start": start} for start in kind.nonsense(problem))


def _check_pickle(kind: Kind, solver: Solver) -> None:
    """A copy from a pickle is the same solver."""
    problem = _one(kind, solver)
    copy = pickle.loads(pickle.dumps(solver))
    _say(repr(copy) == repr(solver), f"a pickle round trip made it {copy!r}")
    first, other = (_told(kind, one.solve(problem)) for one in (solver, copy))
    _say(first == other, f"a copy from a pickle answers {other} instead of {first}")


def _check_json(kind: Kind, solver: Solver) -> None:
    """The result survives JSON, which has no NaN."""
    for name, problem in kind.examples_for(solver).items():
        result = solver.solve(problem, evaluation_limit=_SOME)
        try:
            text = result.to_json()
        except ValueError as error:
            raise AssertionError(f"{name}: the result has no JSON: {error}; details take finite values") from error
        again = Result.from_json(text)
        _say(
            again.to_json() == text and _told(kind, again) == _told(kind, result),
            f"{name}: JSON gives back {again}, not {result}",
        )


_CHECKS: dict[str, Callable[[Kind, Any], None]] = {
    "values": _check_values,
    "optimum": _check_optimum,
    "bound": _check_bound,
    "trivial": _check_trivial,
    "repeats": _check_repeats,
    "purity": _check_purity,
    "random state": _check_random_state,
    "evaluation limit": _check_evaluation_limit,
    "time limit": _check_time_limit,
    "callback": _check_callback,
    "raising callback": _check_raising_callback,
    "start": _check_start,
    "refusals": _check_refusals,
    "pickle": _check_pickle,
    "json": _check_json,
}
