"""Does a solver of several objectives keep its word? The checks that `testing.check_solver` makes of it.

Small instances are enumerated; a front is judged by definitions written out here, not by the library's.
"""

from __future__ import annotations

import itertools
import json
import math
import pickle
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from prunesolve.problems import (
    BinaryQuadratic,
    Budget,
    Cardinality,
    Composite,
    GroupBounds,
    InvalidProblem,
    LevelChoice,
    LevelTuples,
    MultiObjective,
    Product,
    Selections,
    SolverFailed,
    UnsupportedProblem,
)
from prunesolve.problems._arrays import Bits, Floats

from ._base import Incumbent, Result, Solver, Status

_LIMIT = 0.2  # seconds asked for where an evaluation takes a while
_SLACK = 1.3  # seconds that a run may take to notice that it should end
_FEW = 100  # evaluations, for checks to which it is all one how the search ends
_N = 6


# --- instances -----------------------------------------------------------------------------------------------------


def fronts() -> dict[str, Any]:
    """Instances of several objectives over every kind of space, small enough to be enumerated."""
    group = np.array([0, 0, 0, 1, 1, 1])
    bounds, budget = GroupBounds(group, np.array([1, 0]), np.array([3, 2])), Budget(np.array([3.0, 1, 2, 4, 1, 2]), 8.5)
    constraints: dict[str, list[Any]] = {
        "units": [],
        "cardinality": [Cardinality(3)],
        "group bounds": [bounds],
        "budget": [budget],
        "everything": [Cardinality(3), bounds, budget],
    }
    levels = _tuples([1, 2, 4], [0, 1, 2], [2, 3], budget=6, exact=False)
    exact = _tuples([1, 2, 4], [0, 1, 2], [2, 3, 4], budget=6)
    pairs = {(0, 1): np.array([[0.0, 1.0], [1.0, 2.0], [1.0, 3.0]])}
    costs = [np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0])]
    choice = LevelChoice([np.array([3.0, 1.0, 0.0]), np.array([2.0, 0.0])], costs, 6.0, pairs)
    spaces = {"levels": levels, "exact levels": exact, "level choice": choice}
    spaces["both"] = Product([Selections(3, [Cardinality(2)]), levels])
    found: dict[str, Any] = {name: _quadratics(asked) for name, asked in constraints.items()}
    found |= {name: _black_box(space) for name, space in spaces.items()}
    found["three objectives"] = _black_box(Selections(_N), 3)
    found["no reference"] = _quadratics([]).replace(reference=None)
    limits = np.quantile(true_front(found["units"]), 0.8, axis=0)
    found["limits"] = _quadratics([]).replace(limits=limits, starts=[[True] * _N])
    half = _quadratics([], 3)
    whole = _quadratics([])
    found["composite"] = Composite([half, half], whole, np.ones(_N, dtype=bool))
    return found


def _tuples(*cost: list[int], budget: int, exact: bool = True) -> LevelTuples:
    return LevelTuples([np.array(c) for c in cost], budget, exact)


def _quadratics(constraints: list[Any], n: int = _N) -> MultiObjective:
    """A reconstruction error and a bilinear size over n units.

    All numbers are multiples of 1/64, whose sums are exact: a row's values must not hang on what is asked with it.
    """
    factors = np.random.default_rng(n).integers(-16, 17, (n, 3)) / 8.0
    gram = factors @ factors.T + np.eye(n) / 8.0
    couplings = 2.0 * (gram - np.diag(np.diag(gram)))
    error = BinaryQuadratic(np.diag(gram) - 2.0 * gram.sum(axis=1), couplings, offset=gram.sum())
    neighbours = np.abs(np.arange(n)[:, None] * 2 // n - np.arange(n) * 2 // n) == 1
    size = BinaryQuadratic(np.ones(n), 0.5 * neighbours, constraints=constraints)
    reference = np.array([1.1 * gram.sum() + 1.0, 1.1 * n * n])
    return MultiObjective.over([error, size], ["error", "size"], reference=reference, groups=np.arange(n) * 2 // n)


class _Weighted:
    """Objectives that pull in opposite directions, not additive; a class, so that a problem can be pickled."""

    def __init__(self, n: int, objectives: int) -> None:
        # eighths, whose sums are exact
        self.weights = np.random.default_rng(n).integers(4, 13, (n, objectives - 1)) / 8.0

    def __call__(self, x: Any) -> Floats:
        rows = x.astype(np.float64)
        lost = 30.0 / (1.0 + rows @ self.weights)
        return np.concatenate([lost, (rows * rows).sum(axis=1, keepdims=True)], axis=1)


def _black_box(space: Any, objectives: int = 2) -> MultiObjective:
    names = [f"loss{i}" for i in range(objectives - 1)] + ["size"]
    return MultiObjective(space, _Weighted(space.n, objectives), names, reference=np.full(objectives, 31.0))


def _joint(problem: Any) -> MultiObjective:
    return problem.joint if isinstance(problem, Composite) else problem


def _points(problem: Any) -> Any:
    """Every point of the space, feasible or not, as the space takes them."""
    space = _joint(problem).space
    parts = space.spaces if isinstance(space, Product) else [space]
    sizes = [size for part in parts for size in ([2] * part.n if isinstance(part, Selections) else part.sizes)]
    rows = np.array(list(itertools.product(*map(range, sizes)))).reshape(-1, len(sizes))
    return rows.astype(bool) if isinstance(space, Selections) else rows


def true_front(problem: Any) -> Floats:
    """(p, m) the front by enumeration, within constraints and limits."""
    rows, several = _points(problem), _joint(problem)
    values = several.evaluate(rows[several.is_feasible(rows)])
    if several.limits is not None:
        values = values[(values <= several.limits).all(axis=1)]
    return np.unique(values[_undominated(values)], axis=0)


def _undominated(values: Floats) -> Bits:
    """(p,) by definition: no row is at most this one everywhere and below it somewhere."""
    below = (values[:, None] <= values[None]).all(axis=2) & (values[:, None] < values[None]).any(axis=2)
    return np.asarray(~below.any(axis=0))


def volume(values: Floats, reference: Floats) -> float:
    """What (p, m) dominates up to the reference (m,), cell by cell of the grid that the values span."""
    inside = values[(values < reference).all(axis=1)]
    edges = [np.append(np.unique(column), end) for column, end in zip(inside.T, reference, strict=True)]
    total = 0.0
    for cell in itertools.product(*(range(len(edge) - 1) for edge in edges)):
        corner = np.array([edge[i] for edge, i in zip(edges, cell, strict=True)])
        if (inside <= corner).all(axis=1).any():
            total += math.prod(float(edge[i + 1] - edge[i]) for edge, i in zip(edges, cell, strict=True))
    return total


def fronts_for(solver: Solver) -> dict[str, Any]:
    """The instances that a solver takes."""
    return {name: problem for name, problem in fronts().items() if solver.refuse(problem) is None}


def _few_for(solver: Solver) -> dict[str, Any]:
    taken = fronts_for(solver)
    few = ("units", "everything", "exact levels", "both", "three objectives", "limits", "composite")
    return {name: taken[name] for name in few if name in taken} or taken


def _one(solver: Solver) -> Any:
    return next(iter(fronts_for(solver).values()))


def _with(problem: Any, **changes: Any) -> Any:
    """The same instance, the whole's fields changed and nothing remembered."""
    if isinstance(problem, Composite):
        parts = [part.replace() for part in problem.parts]
        return Composite(parts, problem.joint.replace(**changes), problem.dense)
    return problem.replace(**changes)


def _say(holds: Any, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _front(result: Result) -> tuple[Any, Floats]:
    """The front's solutions (p, n) and objectives (p, m)."""
    front = result.front
    if front is None:
        raise AssertionError(f"no front ({result.status})")
    return np.asarray(front.solutions), np.asarray(front.objectives)


def _told(result: Result) -> tuple[Any, ...]:
    """What must be the same when a run is repeated."""
    front = result.front
    rows = () if front is None else (np.asarray(front.solutions).tolist(), np.asarray(front.objectives).tolist())
    return (*rows, result.objective, str(result.status), result.evaluations)


# --- the checks ----------------------------------------------------------------------------------------------------


def _check_values(solver: Solver) -> None:
    """Every member of the front is feasible, worth what is told, and dominated by no other; the volume is true."""
    for name, problem in fronts_for(solver).items():
        result, several = solver.solve(problem, evaluation_limit=_FEW), _joint(problem)
        _say(result.feasible, f"{name}: no front ({result.status})")
        rows, told = _front(result)
        _say(rows.shape == (len(told), several.n), f"{name}: {rows.shape} solutions and {told.shape} objectives")
        _say(np.all(several.is_feasible(rows)), f"{name}: the front breaks the constraints")
        values = several.evaluate(rows)
        _say(np.allclose(values, told), f"{name}: told {told.tolist()}, the values are {values.tolist()}")
        _say(_undominated(values).all(), f"{name}: members of the front dominate one another")
        if several.limits is not None:
            _say((values <= several.limits).all(), f"{name}: the front exceeds the limits {several.limits}")
        reference = np.array(result.details["reference"])
        expected = volume(values, reference)
        _say(
            math.isclose(-result.objective, expected, rel_tol=1e-9),  # type: ignore[operator]
            f"{name}: reported the hypervolume {-result.objective}, it is {expected}",  # type: ignore[operator]
        )
        knee = rows[result.details["knee"]]
        _say(np.array_equal(knee, result.solution), f"{name}: the solution is not the knee of the front")


def _check_optimum(solver: Solver) -> None:
    """A front is never better than the enumerated one."""
    for name, problem in _few_for(solver).items():
        best = true_front(problem)
        for row in _front(solver.solve(problem, evaluation_limit=_FEW))[1]:
            _say((best <= row + 1e-9).all(axis=1).any(), f"{name}: {row.tolist()} is below the true front")


def _check_trivial(solver: Solver) -> None:
    """The whole front where there is next to no choice."""
    problems = {
        "n = 1": _black_box(Selections(1)),
        "k = n": _quadratics([Cardinality(_N)]),
        "k = 0": _quadratics([Cardinality(0)]),
        "one tuple": _black_box(_tuples([1, 2], [3], budget=4)),
        "one level each": _black_box(_tuples([1], [2], budget=3)),
    }
    for name, problem in problems.items():
        if solver.refuse(problem) is None:
            result, best = solver.solve(problem), true_front(problem)
            found = np.unique(_front(result)[1], axis=0)
            _say(
                found.shape == best.shape and np.allclose(found, best),
                f"{name}: expected {best.tolist()}, got {found}",
            )


def _check_repeats(solver: Solver) -> None:
    """The same seed gives the same front, from an equal solver too."""
    for name, problem in _few_for(solver).items():
        first = _told(solver.solve(_with(problem), seed=7, evaluation_limit=_FEW))
        other = _told(replace(solver).solve(_with(problem), seed=7, evaluation_limit=_FEW))
        _say(first == other, f"{name}: one seed, two answers: {first} and {other}; draw from run.rng alone")
    _say(solver.solve(_one(solver), seed=7, evaluation_limit=_FEW).seed == 7, "the seed is not in the result")


def _check_purity(solver: Solver) -> None:
    """The problem and the start are as they were."""
    for name, problem in _few_for(solver).items():
        several = _joint(problem)
        before, starts = json.dumps(dict(several.meta)) + several.replace().hash, np.array(several.starts)
        result = solver.solve(problem, evaluation_limit=_FEW)
        same = json.dumps(dict(several.meta)) + several.replace().hash == before
        _say(same and np.array_equal(several.starts, starts), f"{name}: the search changed the problem")
        start = np.array(result.solution)
        solver.solve(problem, start=start, evaluation_limit=20)
        _say(np.array_equal(start, result.solution), f"{name}: the search changed the caller's start")


def _check_random_state(solver: Solver) -> None:
    """Nobody else's random numbers are drawn."""
    before = pickle.dumps((np.random.get_state(), random.getstate()))  # noqa: NPY002  (the state we guard)
    for problem in _few_for(solver).values():
        solver.solve(problem, evaluation_limit=_FEW)
    after = pickle.dumps((np.random.get_state(), random.getstate()))  # noqa: NPY002
    _say(before == after, "drew from a global random generator; use run.rng or run.seed")


def _check_evaluation_limit(solver: Solver) -> None:
    """Each distinct point counts once, and none is evaluated after the limit."""
    for name, problem in _few_for(solver).items():
        several = _joint(problem)
        for limit in (1, 7, 30):
            asked: set[bytes] = set()
            given = _with(problem, evaluate=partial(_noted, several.evaluate, asked))
            result = solver.solve(given, evaluation_limit=limit)
            _say(result.evaluations <= limit, f"{name}: counted {result.evaluations} where {limit} were allowed")
            _say(
                len(asked) == result.evaluations or isinstance(problem, Composite),
                f"{name}: {len(asked)} points were evaluated, {result.evaluations} counted; ask run.evaluate",
            )
            said = (Status.TIME_LIMIT, Status.STOPPED)
            _say(result.status not in said, f"{name}: told {result.status} for a run that only evaluations limit")


def _noted(evaluate: Callable[..., Any], asked: set[bytes], x: Any) -> Any:
    asked.update(row.tobytes() for row in x)
    return evaluate(x)


def _slow(evaluate: Callable[..., Any], x: Any) -> Any:
    time.sleep(0.002 * len(x))
    return evaluate(x)


def _slowed(solver: Solver) -> Any:
    problem = _one(solver)
    return _with(problem, evaluate=partial(_slow, _joint(problem).evaluate))


def _check_time_limit(solver: Solver) -> None:
    """A run of 0.2 s is over in 1.5 s."""
    taken = math.inf
    # the better of two: a busy machine may lose a second
    for _ in range(2):
        began = time.perf_counter()
        result = solver.solve(_slowed(solver), time_limit=_LIMIT)
        taken = min(taken, time.perf_counter() - began - float(result.details.get("compile_seconds", 0.0)))
    _say(taken <= _LIMIT + _SLACK, f"took {taken:.1f} s of the {_LIMIT} s allowed; ask run.should_stop()")


def _check_callback(solver: Solver) -> None:
    """A callback that returns True ends the run; what it sees improves."""
    seen: list[Incumbent] = []
    asked: list[float] = []

    def stop_at_third(incumbent: Incumbent) -> bool:
        seen.append(incumbent)
        if len(seen) >= 3:
            asked.append(time.perf_counter())
        return len(seen) >= 3

    result = solver.solve(_slowed(solver), callback=stop_at_third, time_limit=5.0)
    late = time.perf_counter() - asked[0] if asked else 0.0
    _say(seen, "found a front and never called the callback")
    _say(late <= _SLACK, f"went on for {late:.1f} s after the callback asked to stop; ask run.should_stop()")
    _say(not asked or result.status is Status.STOPPED, f"expected STOPPED, got {result.status}")
    objectives = [incumbent.objective for incumbent in seen]
    _say(objectives == sorted(objectives)[::-1], f"the callback saw the objectives {objectives}")


def _check_raising_callback(solver: Solver) -> None:
    """An error of the callback comes out as SolverFailed with the front; Ctrl-C keeps it."""

    def fail(incumbent: Incumbent) -> None:
        raise ValueError("the disk is full")

    def interrupt(incumbent: Incumbent) -> None:
        raise KeyboardInterrupt

    try:
        solver.solve(_one(solver), callback=fail)
    except SolverFailed as error:
        _say("the disk is full" in str(error), f"SolverFailed does not say what the callback raised: {error}")
        _say(isinstance(error.result, Result) and error.result.front is not None, "SolverFailed carries no front")
    else:
        raise AssertionError("the callback raised and nobody heard; let errors pass through the search")
    result = solver.solve(_one(solver), callback=interrupt)
    _say(
        result.feasible and result.status is Status.STOPPED,
        f"Ctrl-C: expected STOPPED with the front, got {result.status}; let KeyboardInterrupt pass",
    )


def _check_start(solver: Solver) -> None:
    """No front is worse than the start."""
    for name, problem in _few_for(solver).items():
        several, rows = _joint(problem), _points(problem)
        rows = rows[several.is_feasible(rows)]
        values = several.evaluate(rows)
        within = np.ones(len(rows), dtype=bool) if several.limits is None else (values <= several.limits).all(axis=1)
        start, value = rows[within][-1], values[within][-1]
        found = _front(solver.solve(_with(problem), start=start, evaluation_limit=3))[1]
        _say(
            (found <= value + 1e-9).all(axis=1).any(),
            f"{name}: started at {value.tolist()} and ended without anything as good",
        )


def _holed(evaluate: Callable[..., Any], x: Any) -> Any:
    return np.where(x[:, :1] > 0, np.nan, evaluate(x))


def _broken(x: Any) -> Any:
    raise RuntimeError("the device is lost")


def _flat(x: Any) -> Any:
    return np.zeros(len(x))


def _check_black_box(solver: Solver) -> None:
    """Points without a value are outlived, failures are told, an empty front tells what violates its limits least."""
    problem = _one(solver)
    holed = _with(problem, evaluate=partial(_holed, _joint(problem).evaluate))
    for limit in (30, None):
        rows, _ = _front(solver.solve(_with(holed), evaluation_limit=limit))
        _say(not len(rows) or not rows[:, 0].any(), f"answered a point without a value: {rows.tolist()}")
    for evaluate, words in ((_broken, "the device is lost"), (_flat, "shape")):
        try:
            solver.solve(_with(problem, evaluate=evaluate))
        except SolverFailed as error:
            _say(words in str(error), f"SolverFailed does not say {words!r}: {error}")
        else:
            raise AssertionError("every evaluation failed and nobody heard; ask run.evaluate")
    result = solver.solve(_with(problem, limits=[-1.0, np.inf]), evaluation_limit=30)
    _say(
        not result.feasible and result.status is Status.NO_FEASIBLE_FOUND and "least_violated" in result.details,
        f"nothing lies within the limits: expected NO_FEASIBLE_FOUND and the least violated, got {result.status}",
    )


def _check_refusals(solver: Solver) -> None:
    """Nonsense is refused in words, and what it cannot take with the name of what it can."""
    kinds = solver.accepts if isinstance(solver.accepts, tuple) else (solver.accepts,)
    for foreign in (object(), None, BinaryQuadratic(np.ones(1))):
        words = _refusal(f"solve({foreign!r})", UnsupportedProblem, partial(solver.solve, foreign))
        _say(any(kind.__name__ in words for kind in kinds), f"the refusal names no kind that it takes: {words!r}")
    problem = _one(solver)
    for asked in _nonsense(_joint(problem).n):
        (name,) = asked
        words = _refusal(f"solve({asked})", InvalidProblem, partial(solver.solve, problem, **asked))
        _say(name in words, f"the refusal of {asked} must name it: {words!r}")


def _refusal(what: str, expected: type[Exception], call: Callable[[], Any]) -> str:
    try:
        call()
    except expected as error:
        return str(error)
    raise AssertionError(f"{what}: expected {expected.__name__}, got an answer")


def _nonsense(n: int) -> Iterator[dict[str, Any]]:
    yield from ({"time_limit": seconds} for seconds in (0.0, math.nan, "soon"))
    yield from ({"evaluation_limit": evaluations} for evaluations in (0, 1.5))
    yield from ({"seed": seed} for seed in (-1, "seven"))
    yield from ({"start": start} for start in (np.full(n, np.nan), np.full(n, 0.5), np.ones(n + 1, dtype=bool)))


def _check_pickle(solver: Solver) -> None:
    """A copy from a pickle is the same solver."""
    copy = pickle.loads(pickle.dumps(solver))
    _say(repr(copy) == repr(solver), f"a pickle round trip made it {copy!r}")
    first, other = (_told(s.solve(_with(_one(s)), evaluation_limit=_FEW)) for s in (solver, copy))
    _say(first == other, f"a copy from a pickle answers {other} instead of {first}")


def _check_json(solver: Solver) -> None:
    """The result survives JSON, front included."""
    for problem in _few_for(solver).values():
        result = solver.solve(problem, evaluation_limit=_FEW)
        again = Result.from_json(result.to_json())
        _say(_told(again) == _told(result), f"JSON gives back {again}, not {result}")


CHECKS: dict[str, Callable[[Any], None]] = {
    "values": _check_values,
    "optimum": _check_optimum,
    "trivial": _check_trivial,
    "repeats": _check_repeats,
    "purity": _check_purity,
    "random state": _check_random_state,
    "evaluation limit": _check_evaluation_limit,
    "time limit": _check_time_limit,
    "callback": _check_callback,
    "raising callback": _check_raising_callback,
    "start": _check_start,
    "black box": _check_black_box,
    "refusals": _check_refusals,
    "pickle": _check_pickle,
    "json": _check_json,
}
