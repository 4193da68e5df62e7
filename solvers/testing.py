"""Does a solver keep its word? `check_solver` finds out on small instances whose optimum or front is enumerated.

Anybody's solver can be checked; ours are, in the test suite, by the same function. What `solver.refuse(problem)`
refuses is not asked of it.
"""

from __future__ import annotations

import json
import math
import pickle
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from prunesolve.problems import (
    BinaryQuadratic,
    BlackBox,
    Blocks,
    Budget,
    Cardinality,
    GroupBounds,
    InvalidProblem,
    LevelChoice,
    LowRank,
    SolverFailed,
    UnsupportedProblem,
    generators,
    unknown,
)
from prunesolve.problems._arrays import Bits, Floats

from . import _clustering_testing, _regression_testing, _sparse_testing, _transport_testing
from ._base import Incumbent, Result, Run, Solver, Status
from ._front_testing import CHECKS, fronts_for

_CLOSE = 1e-9
_LIMIT = 0.2  # seconds asked for on a larger instance
_SOME, _FEW = 2000, 100  # evaluations, for checks to which it is all one how the search ends; of a black box
_SLACK = 1.3  # seconds that a run may take to notice that it should end
_KINDS = (_transport_testing.KIND, _clustering_testing.KIND, _regression_testing.KIND, _sparse_testing.KIND)
_PATIENCE = 60.0  # seconds after which a search on a tiny instance is taken to be endless
_BY_ITSELF = (Status.OPTIMAL, Status.FINISHED)


def check_solver(solver: Solver, check: str | None = None) -> None:
    """Prove on small instances that the solver keeps its word.

    Values are those of the problem and never below the enumerated optimum, bounds never above it; runs repeat, end
    within their limits and leave everything else alone; nonsense is refused in words. Of several objectives a front is
    checked in place of an optimum; transports and clusterings are checked like selections, on examples of their own.
    Takes some seconds.

    Parameters
    ----------
    solver : Solver
        What to check, with the options it is to be checked with.
    check : str, optional
        One of `checks()`; all of them by default.

    Raises
    ------
    AssertionError
        With the solver, the check that failed, what was expected and what came.
    InvalidProblem
        If there is no such check.

    Examples
    --------
    >>> from prunesolve.solvers import Greedy
    >>> check_solver(Greedy(), "optimum")
    """
    if check is not None and check not in _CHECKS:
        raise unknown("check", check, _CHECKS)
    for name in _CHECKS if check is None else (check,):
        try:
            for asked in _checks_of(solver, name):
                asked(solver)
        except AssertionError as error:
            raise AssertionError(f"{solver!r}: {name}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{solver!r}: {name}: raised {type(error).__name__}: {error}") from error


def checks() -> tuple[str, ...]:
    """Names of all checks, to parametrise tests with."""
    return tuple(_CHECKS)


def _checks_of(solver: Any, name: str) -> list[Callable[[Any], None]]:
    """The checks of that name, for each kind that the solver takes; of fronts where nothing but fronts is taken."""
    shared = name in ("class", "ending") or not isinstance(solver, Solver)
    if shared or (_accepts(solver, BinaryQuadratic, BlackBox, LevelChoice) and not _wraps_another_kind(solver)):
        found = [_CHECKS[name]]
    else:
        found = [CHECKS[name]] if name in CHECKS and not _kinds_of(solver) else []
    return found if shared else [*found, *(kind[name] for kind in _kinds_of(solver) if name in kind)]


def _wraps_another_kind(solver: Solver) -> bool:
    """Whether it is a wrapper around a solver of transports or clusterings, which `accepts` does not tell."""
    return bool(_kinds_of(solver)) and not _examples_for(solver)


def _kinds_of(solver: Solver) -> list[dict[str, Callable[[Any], None]]]:
    return [kind.checks() for kind in _KINDS if kind.examples_for(solver)]


def _accepts(solver: Solver, *kinds: type[Any]) -> bool:
    return any(issubclass(kind, solver.accepts) for kind in kinds)


# --- instances -----------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """A problem beside its couplings (n, n) written out, so that it can be enumerated without the library.

    Of a `LevelChoice` the tables are written out already.
    """

    problem: Any
    matrix: Any = None


def examples() -> dict[str, Example]:
    """Nine units under every kind of constraint, alone and mixed, in every storage; all can be met."""
    group = np.repeat([0, 1, 2], _SIZES)
    layers = GroupBounds(group, np.array([1, 1, 0]), np.array([3, 2, 1]))
    patterns = GroupBounds(np.arange(_N) % 3 - 1, np.array([1, 0]), np.array([2, 2]))
    cost = np.array([3.0, 5, 2, 7, 4, 1, 6, 2, 8])
    neighbours = np.abs(group[:, None] - group) == 1
    budget, bilinear = Budget(cost, 17.5), Budget(cost, 30.5, 2.0 * neighbours)
    constraints: dict[str, list[Any]] = {
        "unconstrained": [],
        "cardinality": [Cardinality(4)],
        "group bounds": [layers],
        "budget": [budget],
        "bilinear budget": [bilinear],
        "cardinality and group bounds": [Cardinality(4), layers],
        "cardinality and budget": [Cardinality(4), budget],
        "group bounds and bilinear budget": [layers, bilinear],
        "overlapping group bounds": [layers, patterns],
        "everything": [Cardinality(4), layers, patterns, budget, bilinear],
    }
    linear = np.random.default_rng(5).normal(-0.5, 1.0, _N)
    return {
        f"{kind}, {storage}": Example(BinaryQuadratic(linear, stored, offset=0.75, constraints=asked), matrix)
        for kind, asked in constraints.items()
        for storage, (stored, matrix) in _storages().items()
    }


_SIZES = (4, 3, 2)
_N = sum(_SIZES)
# what any search can meet: a mere refusal to find something is no answer here
_EASY = (
    "unconstrained",
    "cardinality",
    "group bounds",
    "budget",
    "bilinear budget",
    "cardinality and group bounds",
    "levels",
)


def _storages() -> dict[str, tuple[Any, Floats]]:
    """{storage: (couplings as given, the same as an (n, n) array)}."""
    from scipy import sparse

    rng = np.random.default_rng(6)
    upper = np.triu(rng.normal(0.2, 0.6, (_N, _N)), 1)
    full = upper + upper.T
    few = full * (np.abs(full) > 0.5)
    ends = np.cumsum(_SIZES)
    spans = [slice(end - size, end) for end, size in zip(ends, _SIZES, strict=True)]
    diagonal = np.zeros((_N, _N))
    for span in spans:
        diagonal[span, span] = full[span, span]
    factors = rng.normal(0.0, 0.5, (_N, 3))
    gram = factors @ factors.T
    gram -= np.diag(np.diag(gram))
    return {
        "dense": (full, full),
        "sparse": (sparse.csr_array(few), few),
        "blocks": (Blocks([full[span, span] for span in spans]), diagonal),
        "low rank": (LowRank(factors), gram),
        "negative low rank": (LowRank(factors, sign=-1), -gram),
    }


def _trivial() -> dict[str, BinaryQuadratic]:
    """Instances on which anything else than the optimum is a mistake."""
    even = 0.25 * (np.ones((6, 6)) - np.eye(6))
    return {
        "n = 0": _problem([]).replace(offset=2.0),
        "n = 0 in no blocks": _problem([], Blocks([])),
        "n = 1, better dropped": _problem([1.0]),
        "n = 1, better kept": _problem([-1.0], [[0.0]]),
        "n = 1, k = 1": _problem([3.0], None, Cardinality(1)),
        "n = 1, too dear": _problem([-1.0], None, Budget(np.array([2.0]), 1.0)),
        "k = 0": _problem([-1.0] * 6, even, Cardinality(0)),
        "k = n": _problem([1.0] * 6, even, Cardinality(6)),
        "all zero": _problem([0.0] * 6, np.zeros((6, 6))),
        "all zero, k = 2": _problem([0.0] * 6, None, Cardinality(2)),
        "ties": _problem([-1.0] * 6, even, Cardinality(3)),
    }


def level_examples() -> dict[str, Example]:
    """Levels of few layers with every kind of cost; all can be met."""
    rng = np.random.default_rng(8)
    sizes = (4, 3, 2, 3)
    error = [np.sort(rng.random(size))[::-1] for size in sizes]
    cost = [np.arange(1.0, size + 1) * (1.0 + i) for i, size in enumerate(sizes)]
    chain: dict[tuple[int, int], Floats] = {(i, i + 1): np.outer(cost[i], cost[i + 1]) / 4.0 for i in range(3)}
    return {
        "levels, separable": Example(LevelChoice(error, cost, 18.0)),
        "levels, fractions": Example(LevelChoice(error, [c / 7.0 for c in cost], 2.5)),
        "levels, chain": Example(LevelChoice(error, cost, 25.0, chain)),
        "levels, any pairs": Example(LevelChoice(error, cost, 28.0, {**chain, (0, 3): np.outer(cost[0], cost[3]) / 8})),
        "levels, peak": Example(LevelChoice(error, cost, 7.0, chain, total="max")),
    }


def _trivial_levels() -> dict[str, LevelChoice]:
    """Choices on which anything else than the optimum is a mistake."""
    one, two = np.array([1.0]), np.array([1.0, 2.0])
    return {
        "one layer": LevelChoice([np.array([2.0, 1.0, 0.0])], [np.array([1.0, 2.0, 3.0])], 2.0),
        "one level each": LevelChoice([one, one], [one, one], 2.0),
        "only the cheapest fits": LevelChoice([two[::-1], two[::-1]], [two, two], 2.0),
        "all fits": LevelChoice([two[::-1], two[::-1]], [two, two], 4.0),
        "all errors equal": LevelChoice([np.ones(2), np.ones(2)], [two, two], 3.0),
    }


def _larger_levels(n: int) -> dict[str, LevelChoice]:
    """Choices of n layers that take a search some time."""
    rng = np.random.default_rng(n)
    error = [np.sort(rng.lognormal(size=8))[::-1] for _ in range(n)]
    cost = [np.arange(1.0, 9.0) * rng.integers(1, 4) for _ in range(n)]
    table = np.outer(np.arange(1.0, 9.0), np.arange(1.0, 9.0))
    pairs = {(i, i + 1): table for i in range(n - 1)}
    half = LevelChoice(error, cost, 1e9, pairs).spent(np.full(n, 4))
    return {"layers": LevelChoice(error, cost, float(half), pairs), "alone": LevelChoice(error, cost, 8.0 * n)}


def _problem(linear: Any, quadratic: Any = None, *constraints: Any) -> BinaryQuadratic:
    return BinaryQuadratic(linear, quadratic, constraints=constraints)


def _larger(n: int) -> dict[str, BinaryQuadratic]:
    """Instances that take a search some time."""
    pruning = generators.pruning(n, keep=0.4, layers=4, seed=1)
    factored = generators.pruning(n, coupling="low-rank", seed=2)
    cost = np.array([1.0 + i % 7 for i in range(n)])
    return {
        "pruning": pruning,
        "pruning within a budget": factored.replace(constraints=[Budget(cost, 1.7 * n)]),
        "qubo": generators.qubo(n, seed=3),
    }


def _contradiction() -> BinaryQuadratic:
    """Of units 0 and 1 both, and at most one of all four: construction does not see that no selection meets it."""
    pairs, all_four = np.array([0, 0, 1, 1]), np.zeros(4, dtype=np.int64)
    both = GroupBounds(pairs, np.array([2, 0]), np.array([2, 2]))
    return _problem(-np.ones(4), None, both, GroupBounds(all_four, np.array([0]), np.array([1])))


def _some(solver: Solver) -> int:
    """Evaluations that cost a solver moderate time; one that takes black boxes thinks longer about each."""
    return _FEW if _asks(solver) else _SOME


def _asks(solver: Solver) -> bool:
    return isinstance(solver.accepts, tuple) and BlackBox in solver.accepts


def _taken(solver: Solver, problems: dict[str, Any]) -> dict[str, Any]:
    return {name: problem for name, problem in problems.items() if solver.refuse(problem) is None}


def _examples_for(solver: Solver) -> dict[str, Example]:
    """The examples that a solver takes: selections, or else levels."""
    taken = {name: example for name, example in examples().items() if solver.refuse(example.problem) is None}
    levels = {} if taken else level_examples()
    return taken or {name: e for name, e in levels.items() if solver.refuse(e.problem) is None}


def _over_levels(solver: Solver) -> bool:
    return not _accepts(solver, BinaryQuadratic)


def _few_for(solver: Solver) -> dict[str, Example]:
    """Every kind of constraint once and every storage twice, for checks that would gain little from the others."""
    storages = len(_storages())
    few = [name for i, name in enumerate(examples()) if i % storages == i // storages % storages]
    taken = _examples_for(solver)
    return {name: taken[name] for name in few if name in taken} or taken


def _tried(solver: Solver, n: int) -> dict[str, Any]:
    """Larger instances, or the small ones for a solver that takes no others."""
    small = {name: example.problem for name, example in [*_examples_for(solver).items()][::9][:3]}
    return _taken(solver, _larger_levels(n // 8) if _over_levels(solver) else _larger(n)) or small


def _one(solver: Solver) -> Any:
    return next(iter(_examples_for(solver).values())).problem


# --- the definitions, written out ----------------------------------------------------------------------------------


def _values(example: Example, x: Any) -> Floats:
    """(m,) offset + a.x + sum_{i<j} J_ij x_i x_j of each row; of levels the sum of their errors."""
    if isinstance(example.problem, LevelChoice):
        return np.array([sum(e[s] for e, s in zip(example.problem.error, row, strict=True)) for row in x])
    kept = x.astype(np.float64)
    i, j = np.triu_indices(example.problem.n, 1)
    pairs = (kept[:, i] * kept[:, j]) @ example.matrix[i, j]
    return example.problem.offset + kept @ example.problem.linear + pairs


def _meets(problem: Any, x: Any) -> Bits:
    """(m,) whether each row satisfies every constraint."""
    if isinstance(problem, LevelChoice):
        return np.array([_spent_by(problem, row) <= problem.budget + 1e-9 for row in x])
    meets = np.ones(len(x), dtype=bool)
    for constraint in problem.constraints:
        if isinstance(constraint, Cardinality):
            meets &= x.sum(axis=1) == constraint.k
        elif isinstance(constraint, GroupBounds):
            for g, (low, high) in enumerate(zip(constraint.low, constraint.high, strict=True)):
                count = x[:, constraint.group == g].sum(axis=1)
                meets &= (low <= count) & (count <= high)
        elif isinstance(constraint, Budget):
            meets &= _spent(constraint, x) <= constraint.limit + _CLOSE * constraint.scale
    return meets


def _spent(budget: Budget, x: Bits) -> Floats:
    kept = x.astype(np.float64)
    spent = kept @ budget.cost
    if budget.pair is not None:
        i, j = np.triu_indices(len(budget.cost), 1)
        spent = spent + (kept[:, i] * kept[:, j]) @ budget.pair.toarray()[i, j]
    return spent


def _spent_by(problem: LevelChoice, row: Any) -> float:
    terms = [float(c[s]) for c, s in zip(problem.cost, row, strict=True)]
    terms += [float(table[row[i], row[j]]) for (i, j), table in problem.pair_cost.items()]
    return sum(terms) if problem.total == "sum" else max(terms)


def _points(problem: Any) -> Any:
    """Every selection (2^n, n), or every tuple of levels."""
    if isinstance(problem, LevelChoice):
        return np.array(list(product(*(range(size) for size in problem.sizes))))
    return (np.arange(2**problem.n)[:, None] >> np.arange(problem.n)) & 1 == 1


def _optimum(example: Example) -> float:
    """The least value of any feasible point, inf where there is none."""
    points = _points(example.problem)
    return float(_values(example, points)[_meets(example.problem, points)].min(initial=np.inf))


def _written_out(problem: Any) -> Example:
    return Example(problem, problem.couplings.dense() if isinstance(problem, BinaryQuadratic) else None)


# --- what checks say -----------------------------------------------------------------------------------------------


def _say(holds: Any, message: str) -> None:
    # no assert statement: these checks must also hold under python -O
    if not holds:
        raise AssertionError(message)


def _near(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=_CLOSE)


def _written(x: Any) -> str:
    return "nothing" if x is None else "".join(str(int(level)) for level in x)


def _told(result: Result) -> tuple[Any, ...]:
    """What must be the same when a run is repeated; not the trace, whose rows depend on the clock."""
    return _written(result.solution), result.objective, str(result.status), result.evaluations


def _refusal(what: str, expected: type[Exception], call: Callable[[], Any]) -> str:
    """The words of the error that `call` raises."""
    try:
        call()
    except expected as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{what}: expected {expected.__name__}, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"{what}: expected {expected.__name__}, got an answer")


class _Watched(Run):
    """A run that objects when the search goes on after it should have ended."""

    def count(self, k: int = 1) -> None:
        """Count, unless the limit was reached before."""
        _say(
            self.evaluations_left > 0,
            f"counted on after its {self.evaluation_limit} evaluations; ask run.should_stop() after run.count()",
        )
        super().count(k)

    def should_stop(self) -> bool:
        """Ask, for a minute at most."""
        _say(
            self.seconds < _PATIENCE, f"does not end by itself: still at it after {_PATIENCE:.0f} s on a tiny instance"
        )
        return super().should_stop()


def _watched(solver: Solver, problem: Any, evaluation_limit: int | None = None) -> None:
    solver._prepare(problem)
    solver._search(problem, _Watched(problem, seed=0, evaluation_limit=evaluation_limit))


# --- the checks ----------------------------------------------------------------------------------------------------


def _check_class(solver: Any) -> None:
    """A frozen dataclass with a name, whose options all have defaults, and that takes something."""
    _say(isinstance(solver, Solver), f"expected a Solver, got {type(solver).__name__}")
    cls = type(solver)
    _say(
        is_dataclass(cls) and "__dataclass_fields__" in vars(cls),
        f"decorate {cls.__name__} with @dataclass(frozen=True)",
    )
    _say(isinstance(getattr(cls, "name", None), str), f"give {cls.__name__} a name: ClassVar[str]")
    bare = [f.name for f in fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING]
    _say(not bare, f"every option needs a default, {', '.join(bare)} has none")
    taken = _examples_for(solver) or fronts_for(solver) or any(kind.examples_for(solver) for kind in _KINDS)
    _say(taken, f"refuses every example, {next(iter(examples()))!r} included")


def _check_values(solver: Solver) -> None:
    """Solution, objective and feasibility agree with the definition; the trace ends there."""
    for name, example in _few_for(solver).items():
        result = solver.solve(example.problem, evaluation_limit=_some(solver))
        _say(result.solver == repr(solver), f"{name}: expected result.solver {solver!r}, got {result.solver}")
        if result.solution is None:
            _say(not result.feasible and result.objective is None, f"{name}: figures without a solution")
            continue
        x = np.asarray(result.solution)
        n, kind = example.problem.n, "i" if isinstance(example.problem, LevelChoice) else "b"
        _say(
            x.dtype.kind == kind and x.shape == (n,),
            f"{name}: expected a solution ({n},) {'int' if kind == 'i' else 'bool'}, got {x.dtype} {x.shape}",
        )
        value, meets = float(_values(example, x[None])[0]), bool(_meets(example.problem, x[None])[0])
        _say(
            _near(result.objective, value),
            f"{name}: reported objective {result.objective}, the value of {_written(x)} is {value}",
        )
        _say(result.feasible == meets, f"{name}: reported feasible={result.feasible}, {_written(x)} is {meets}")
        if meets:
            last = result.trace[-1] if result.trace else None
            _say(
                last is not None and _near(last.objective, value),
                f"{name}: expected the trace to end at {value}, got {last}",
            )


def _check_optimum(solver: Solver) -> None:
    """Never below the optimum, equal to it where that is claimed, and easy constraints are met."""
    # every kind and every storage with each other would take twice as long; every second one
    skip = 1 if _over_levels(solver) else 7 if _asks(solver) else 2
    for name, example in [*_examples_for(solver).items()][::skip]:
        result, optimum = solver.solve(example.problem), _optimum(example)
        _say(result.status is not Status.INFEASIBLE, f"{name}: told INFEASIBLE, the optimum is {optimum}")
        _say(result.feasible or name.split(",")[0] not in _EASY, f"{name}: found nothing feasible ({result.status})")
        if not result.feasible:
            continue
        objective = result.objective if result.objective is not None else -np.inf
        _say(
            objective > optimum or _near(objective, optimum),
            f"{name}: reported {objective}, below the optimum {optimum}",
        )
        if result.status is Status.OPTIMAL:
            _say(_near(objective, optimum), f"{name}: told OPTIMAL at {objective}, the optimum is {optimum}")


def _check_bound(solver: Solver) -> None:
    """No bound above the optimum; asked for, there is one."""
    for name, example in _few_for(solver).items():
        result, optimum = solver.solve(example.problem, bound=True, evaluation_limit=_some(solver)), _optimum(example)
        asked = isinstance(example.problem, BinaryQuadratic)
        _say(result.bound is not None or not result.feasible or not asked, f"{name}: bound=True told no bound")
        if result.bound is not None:
            _say(
                result.bound < optimum or _near(result.bound, optimum),
                f"{name}: told the bound {result.bound}, above the optimum {optimum}",
            )


def _check_infeasible(solver: Solver) -> None:
    """Nothing feasible is made up where there is nothing."""
    problem = _contradiction()
    if solver.refuse(problem) is not None:
        return
    result = solver.solve(problem, evaluation_limit=_some(solver))
    _say(
        not result.feasible and result.status in (Status.NO_FEASIBLE_FOUND, Status.INFEASIBLE),
        f"told feasible={result.feasible} and {result.status} where no selection meets the constraints",
    )


def _check_trivial(solver: Solver) -> None:
    """The optimum where there is no choice or none that matters."""
    problems: dict[str, Any] = {**_trivial(), **_trivial_levels()}
    for name, problem in _taken(solver, problems).items():
        result, optimum = solver.solve(problem), _optimum(_written_out(problem))
        _say(
            result.feasible and _near(result.objective, optimum),
            f"{name}: expected the optimum {optimum}, got {result.objective} ({result.status})",
        )
        again = solver.solve(problem, time_limit=10.0, evaluation_limit=10_000)
        _say(
            again.feasible and _near(again.objective, optimum), f"{name}: with limits {again.objective}, not {optimum}"
        )


def _check_repeats(solver: Solver) -> None:
    """The same seed gives the same answer, from an equal solver too."""
    problems: list[tuple[str, Any, int | None]]
    whole = _FEW if _asks(solver) else None
    problems = [(name, example.problem, whole) for name, example in [*_few_for(solver).items()][::2]]
    problems += [(name, problem, 300) for name, problem in _tried(solver, 40).items()]
    for name, problem, limit in problems:
        run = partial(_told_by, problem, seed=7, evaluation_limit=limit)
        first, equal = run(solver), run(replace(solver))
        if first != equal:
            again = run(solver)
            _say(first == again, f"{name}: one seed, two answers: {first} and {again}; draw from run.rng alone")
            raise AssertionError(
                f"{name}: an equal solver answers {equal} instead of {first}; keep nothing between runs"
            )
    _say(solver.solve(_one(solver), seed=7).seed == 7, "the seed is not in the result")
    drawn = solver.solve(_one(solver), seed=None).seed
    _say(isinstance(drawn, int), f"seed=None: expected the effective seed in the result, got {drawn!r}")


def _told_by(problem: Any, solver: Solver, **limits: Any) -> tuple[Any, ...]:
    return _told(solver.solve(problem, **limits))


def _check_purity(solver: Solver) -> None:
    """The problem and the start are as they were."""
    for name, example in _few_for(solver).items():
        problem = example.problem
        # replace() hashes anew, the property remembers
        before, facts = problem.replace().hash, json.dumps(dict(problem.meta))
        result = solver.solve(problem, evaluation_limit=_some(solver))
        _say(problem.replace().hash == before, f"{name}: the search changed the problem; copy before you write")
        _say(json.dumps(dict(problem.meta)) == facts, f"{name}: the search changed the problem's meta")
        if result.feasible:
            start = np.array(result.solution)
            solver.solve(problem, start=start, evaluation_limit=50)
            _say(np.array_equal(start, result.solution), f"{name}: the search changed the caller's start")


def _check_random_state(solver: Solver) -> None:
    """Nobody else's random numbers are drawn."""
    for name, problem in _tried(solver, 40).items():
        before = pickle.dumps((np.random.get_state(), random.getstate()))  # noqa: NPY002  (the state we guard)
        solver.solve(problem, evaluation_limit=100)
        after = pickle.dumps((np.random.get_state(), random.getstate()))  # noqa: NPY002
        _say(before == after, f"{name}: drew from a global random generator; use run.rng or run.seed")


def _check_time_limit(solver: Solver) -> None:
    """A run of 0.2 s is over in 1.5 s."""
    for name, problem in _tried(solver, 200).items():
        # the better of two: a busy machine may lose a second
        taken = _seconds(solver, problem)
        if taken > _LIMIT + _SLACK:
            taken = min(taken, _seconds(solver, problem))
        _say(taken <= _LIMIT + _SLACK, f"{name}: took {taken:.1f} s of the {_LIMIT} s allowed; ask run.should_stop()")


def _seconds(solver: Solver, problem: Any) -> float:
    began = time.perf_counter()
    result = solver.solve(problem, time_limit=_LIMIT)
    return time.perf_counter() - began - float(result.details.get("compile_seconds", 0.0))


def _check_ending(solver: Solver) -> None:
    """Without limits it ends by itself."""
    problems = [example.problem for example in _few_for(solver).values()] or [*fronts_for(solver).values()]
    for kind in _KINDS:
        problems += kind.examples_for(solver).values()
    for problem in problems[1::2] or problems:
        _watched(solver, problem)


def _check_evaluation_limit(solver: Solver) -> None:
    """Nothing is evaluated after the limit."""
    for name, problem in _tried(solver, 40).items():
        for limit in (1, 100):
            _watched(solver, problem, limit)
            status = solver.solve(problem, evaluation_limit=limit).status
            _say(
                status not in (Status.TIME_LIMIT, Status.STOPPED),
                f"{name}: told {status} for a run that only evaluations limit",
            )


class _Stopper:
    """Stops the run at the first incumbent, and remembers when."""

    def __init__(self) -> None:
        self.seen: list[Incumbent] = []
        self.asked = math.inf

    def __call__(self, incumbent: Incumbent) -> bool:
        self.asked = min(self.asked, time.perf_counter())
        self.seen.append(incumbent)
        return True


def _check_callback(solver: Solver) -> None:
    """A callback that returns True ends the run; what it sees is true and improves."""
    for name, problem in _tried(solver, 200).items():
        stopper = _Stopper()
        result = solver.solve(problem, callback=stopper, time_limit=5.0)
        late = time.perf_counter() - stopper.asked
        _say(stopper.seen or not result.feasible, f"{name}: found a solution and never called the callback")
        _say(
            late <= _SLACK, f"{name}: went on for {late:.1f} s after the callback asked to stop; ask run.should_stop()"
        )
        if stopper.seen:
            expected = (Status.STOPPED, *_BY_ITSELF)
            _say(result.status in expected, f"{name}: expected STOPPED, got {result.status}")
        seen = [incumbent.objective for incumbent in stopper.seen]
        _say(
            all(_near(i.objective, problem.value(i.solution)) for i in stopper.seen) and seen == sorted(seen)[::-1],
            f"{name}: the callback saw the objectives {seen}",
        )


def _check_raising_callback(solver: Solver) -> None:
    """An error of the callback comes out as SolverFailed with the incumbent; Ctrl-C keeps the incumbent."""

    def fail(incumbent: Incumbent) -> None:
        raise ValueError("the disk is full")

    def interrupt(incumbent: Incumbent) -> None:
        raise KeyboardInterrupt

    problem = _one(solver)
    try:
        solver.solve(problem, callback=fail)
    except SolverFailed as error:
        held = error.result
        _say("the disk is full" in str(error), f"SolverFailed does not say what the callback raised: {error}")
        _say(isinstance(held, Result) and held.feasible, f"SolverFailed carries no incumbent: {held}")
    else:
        raise AssertionError("the callback raised and nobody heard; let errors pass through the search")
    result = solver.solve(problem, callback=interrupt)
    _say(
        result.feasible and result.status is Status.STOPPED,
        f"Ctrl-C: expected STOPPED with the incumbent, got {result.status}; let KeyboardInterrupt pass",
    )


def _check_start(solver: Solver) -> None:
    """The answer is never worse than the start."""
    rng = np.random.default_rng(0)
    for name, example in _few_for(solver).items():
        points = _points(example.problem)
        points = points[rng.permutation(len(points))[:400]]
        feasible = points[_meets(example.problem, points)]
        # a poor start and a good one
        order = np.argsort(_values(example, feasible))
        for start in feasible[order[[0, -1]]] if len(order) else ():
            value = float(_values(example, start[None])[0])
            result = solver.solve(example.problem, start=start, evaluation_limit=1)
            _say(
                result.feasible and (result.objective <= value or _near(result.objective, value)),  # type: ignore[operator]
                f"{name}: started at {value} and ended at {result.objective} ({result.status})",
            )


def _check_black_box(solver: Solver) -> None:
    """What takes a black box counts each distinct point once, in shares of its batches, and outlives failures."""
    example = _boxed(solver)
    if example is None:
        return
    asked: set[tuple[bytes, int]] = set()

    def evaluate(x: Bits, batch: int) -> Floats:
        asked.update((row.tobytes(), batch) for row in x)
        return example.value(x) + (-1) ** batch

    box = _box(example, evaluate)
    for limit in (1, 7, None):
        asked.clear()
        result = solver.solve(box.replace(), evaluation_limit=limit)
        spent, told = len(asked) / 2, result.evaluations
        _say(result.feasible, f"found nothing feasible within {limit} evaluations ({result.status})")
        _say(_near(result.objective, example.value(result.solution)), f"reported {result.objective} as the mean")
        _say(told - 1 < spent <= told, f"{spent} evaluations were made, {told} counted; ask through Evaluations")
        _say(limit is None or told <= limit, f"made {told} evaluations where {limit} were allowed")
    holed = box.replace(evaluate=lambda x, _: np.where(x[:, 0] > 0, np.nan, example.value(x)))
    # without a limit too: points without a value must not keep it busy for ever
    for limit in (50, None):
        result = solver.solve(holed.replace(), evaluation_limit=limit)
        _say(not result.feasible or not result.solution[0], f"answered a selection without a value: {result.solution}")

    def broken(x: Bits, _: int) -> Floats:
        raise RuntimeError("the device is lost")

    try:
        solver.solve(box.replace(evaluate=broken))
    except SolverFailed as error:
        _say("the device is lost" in str(error), f"SolverFailed does not say what the evaluation raised: {error}")
    else:
        raise AssertionError("every evaluation raised and nobody heard; ask through Evaluations")


def _boxed(solver: Solver) -> Any:
    """An example of which the solver takes a black box, None where it takes none."""
    both = (examples()["cardinality, dense"], level_examples()["levels, chain"])
    taken = (e.problem for e in both if solver.refuse(_box(e.problem, lambda x, _: np.zeros(len(x)))) is None)
    return next(taken, None)


def _box(problem: Any, evaluate: Callable[..., Any]) -> BlackBox:
    """A black box in two batches over the points of a problem."""
    if isinstance(problem, LevelChoice):
        return BlackBox(problem, evaluate, problem, np.ones(2))
    return BlackBox.over(problem, evaluate, [1.0, 1.0])


def _check_refusals(solver: Solver) -> None:
    """Nonsense is refused in words, and what it cannot take with the name of what it can."""
    kinds = solver.accepts if isinstance(solver.accepts, tuple) else (solver.accepts,)
    for foreign in (object(), [[1.0, 2.0]], None):
        words = _refusal(f"solve({foreign!r})", UnsupportedProblem, partial(solver.solve, foreign))
        _say(
            any(kind.__name__ in words for kind in kinds),
            f"the refusal of {foreign!r} names no kind that it takes: {words!r}",
        )
    for name, example in examples().items():
        if solver.refuse(example.problem) is not None:
            words = _refusal(f"solve({name})", UnsupportedProblem, partial(solver.solve, example.problem))
            _say(words.strip(), f"the refusal of {name} has no words")
    problem = _one(solver)
    for asked in _nonsense(problem):
        (name,) = asked
        words = _refusal(f"solve({asked})", InvalidProblem, partial(solver.solve, problem, **asked))
        _say(name in words, f"the refusal of {asked} must name it: {words!r}")
    for values in ([[np.nan]], [[0.0, 0.0], [[0.0, np.nan], [np.nan, 0.0]]]):
        _refusal(f"a problem with {values}", InvalidProblem, partial(_solved, solver, *values))


def _solved(solver: Solver, *values: Any) -> Result:
    return solver.solve(_problem(*values))


def _nonsense(problem: Any) -> Iterator[dict[str, Any]]:
    for seconds in (0.0, -1.0, math.nan, "soon"):
        yield {"time_limit": seconds}
    for evaluations in (0, -3, 1.5, math.nan):
        yield {"evaluation_limit": evaluations}
    for seed in (-1, 0.5, "seven"):
        yield {"seed": seed}
    for start in (np.full(problem.n, np.nan), np.full(problem.n, 0.5), np.ones(problem.n + 1, dtype=bool)):
        yield {"start": start}


def _check_pickle(solver: Solver) -> None:
    """A copy from a pickle is the same solver."""
    problem = _one(solver)
    copy = pickle.loads(pickle.dumps(solver))
    _say(repr(copy) == repr(solver), f"a pickle round trip made it {copy!r}")
    first, other = _told(solver.solve(problem)), _told(copy.solve(problem))
    _say(first == other, f"a copy from a pickle answers {other} instead of {first}")


def _check_json(solver: Solver) -> None:
    """The result survives JSON, which has no NaN."""
    for result in [
        solver.solve(example.problem, evaluation_limit=_some(solver)) for example in _few_for(solver).values()
    ]:
        try:
            text = result.to_json()
        except ValueError as error:
            raise AssertionError(f"the result has no JSON: {error}; run.details take plain finite values") from error
        again = Result.from_json(text)
        _say(again.to_json() == text and _told(again) == _told(result), f"JSON gives back {again}, not {result}")


_CHECKS: dict[str, Callable[[Any], None]] = {
    "class": _check_class,
    "values": _check_values,
    "optimum": _check_optimum,
    "bound": _check_bound,
    "infeasible": _check_infeasible,
    "trivial": _check_trivial,
    "repeats": _check_repeats,
    "purity": _check_purity,
    "random state": _check_random_state,
    "ending": _check_ending,
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
