r"""What every solver shares: the run, its limits, its incumbent and the result.

A solver is a frozen dataclass whose fields are its options. It writes `_search(problem, run)` and nothing else; the
clock, the limits, Ctrl-C, the incumbent, the trace and the final values are the library's. A solver's own figures
are never trusted: `run.offer(x)` recomputes objective and feasibility from the problem.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from prunesolve.problems import BinaryQuadratic, InvalidProblem, SolverFailed, UnsupportedProblem


class Status(Enum):
    """Why a run ended; the value is the sentence shown to the user."""

    OPTIMAL = "The solution is proved optimal."
    FINISHED = "The search ended by itself; optimality is not proved."
    TIME_LIMIT = "The time limit was reached; the best solution so far is returned. Try a larger time_limit."
    ITERATION_LIMIT = "The evaluation limit was reached; the best solution so far is returned."
    STOPPED = "The run was stopped by the caller; the best solution so far is returned."
    NO_FEASIBLE_FOUND = "No feasible solution was found; there may be one. Loosen a budget or give a start."
    INFEASIBLE = "The constraints are proved to admit no selection."

    def __str__(self) -> str:
        return self.name


class TraceRow(NamedTuple):
    """One improvement of the incumbent or of the bound."""

    seconds: float
    evaluations: int
    objective: float | None
    bound: float | None


class Incumbent(NamedTuple):
    """What a callback sees at every improvement; returning True stops the run."""

    seconds: float
    evaluations: int
    objective: float
    bound: float | None
    solution: Any


@dataclass(frozen=True, eq=False)
class Result:
    """What a run brought back.

    Parameters
    ----------
    solution : (n,) bool or None
        Best feasible solution, else the least infeasible one offered, else None.
    objective : float or None
        Its value, recomputed by the library.
    bound : float or None
        Proved lower bound on the optimum.
    feasible : bool
        Whether every constraint holds within 1e-9 of its scale.
    status : Status
        Why the run ended.
    seconds : float
        From the start of the clock to the end of the search.
    evaluations : int
        Evaluations the search counted.
    seed : int
        The seed that repeats the run.
    solver : str
        repr of the solver: its name and options.
    trace : sequence of TraceRow
        Every improvement.
    front : None
        Solutions and objectives where there are several objectives.
    details : mapping
        JSON-able extras: compile seconds, what `auto` picked, ...
    """

    solution: Any
    objective: float | None
    bound: float | None
    feasible: bool
    status: Status
    seconds: float
    evaluations: int
    seed: int
    solver: str
    trace: tuple[TraceRow, ...] = ()
    front: Any = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> float | None:
        """(objective - bound) / max(1e-12, |objective|), None where either is missing."""
        if self.objective is None or self.bound is None or not self.feasible:
            return None
        return (self.objective - self.bound) / max(1e-12, abs(self.objective))

    def to_json(self, *, trace: bool = True) -> str:
        """One JSON object; the solution as the indices kept; no NaN or infinity."""
        kept = None if self.solution is None else [int(i) for i in np.flatnonzero(self.solution)]
        told: dict[str, Any] = {
            "solver": self.solver,
            "status": str(self.status),
            "objective": self.objective,
            "bound": self.bound,
            "gap": self.gap,
            "feasible": self.feasible,
            "n": None if self.solution is None else len(self.solution),
            "kept": None if kept is None else len(kept),
            "seconds": self.seconds,
            "seed": self.seed,
            "evaluations": self.evaluations,
            "solution": kept,
            "details": dict(self.details),
        }
        if trace:
            told["trace"] = [list(row) for row in self.trace]
        return json.dumps(told, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Result:
        """The result that `to_json` wrote."""
        try:
            told = json.loads(text)
            solution = None
            if told["solution"] is not None:
                solution = np.zeros(told["n"], dtype=bool)
                solution[told["solution"]] = True
            return cls(
                solution=solution,
                objective=told["objective"],
                bound=told["bound"],
                feasible=told["feasible"],
                status=Status[told["status"]],
                seconds=told["seconds"],
                evaluations=told["evaluations"],
                seed=told["seed"],
                solver=told["solver"],
                trace=tuple(TraceRow(*row) for row in told.get("trace", ())),
                details=told.get("details", {}),
            )
        except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
            raise InvalidProblem(
                f"result: expected the JSON that `solve` writes, got a foreign text ({error})"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all."""
        from prunesolve.problems._npz import whole_file

        with whole_file(path) as file:
            file.write(self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what `save` wrote."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


class Run:
    """One call of `solve`, as a solver's `_search` sees it.

    Attributes
    ----------
    rng : numpy.random.Generator
        The only source of randomness a search may use.
    seed : int
        The seed behind it, for searches that seed another generator.
    start : (n,) bool or None
        A feasible selection the caller wants to begin with; already offered.
    time_limit, evaluation_limit : float, int or None
        The declared limits. A search may plan by them; never by the time that has passed.
    details : dict
        JSON-able facts for `Result.details`.
    """

    def __init__(
        self,
        problem: BinaryQuadratic,
        *,
        seed: int,
        time_limit: float | None = None,
        evaluation_limit: int | None = None,
        callback: Callable[[Incumbent], Any] | None = None,
    ) -> None:
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.time_limit = time_limit
        self.evaluation_limit = evaluation_limit
        self.start: Any = None
        self.details: dict[str, Any] = {}
        self.evaluations = 0
        self.best: Any = None
        self.objective = math.inf
        self.violation = math.inf
        self.bound: float | None = None
        self.trace: list[TraceRow] = []
        self.stopped = False
        self._problem = problem
        self._callback = callback
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the clock started."""
        return time.perf_counter() - self._began

    @property
    def remaining(self) -> float:
        """Seconds left, inf without a time limit."""
        return math.inf if self.time_limit is None else max(0.0, self.time_limit - self.seconds)

    @property
    def feasible(self) -> bool:
        """Whether a feasible solution is in hand."""
        return self.violation == 0.0

    def count(self, k: int = 1) -> None:
        """Add k evaluations (proposals, moves, nodes: what the solver documents) to the run's count."""
        self.evaluations += int(k)

    @property
    def evaluations_left(self) -> float:
        """Evaluations left, inf without an evaluation limit."""
        return math.inf if self.evaluation_limit is None else max(0, self.evaluation_limit - self.evaluations)

    def should_stop(self) -> bool:
        """Whether a limit is reached or the caller asked to stop; ask at least every 10 ms."""
        return self.stopped or self.remaining <= 0 or self.evaluations_left <= 0

    def offer(self, x: Any, bound: float | None = None) -> float:
        """Put a solution (and a proved bound) forward; returns its recomputed objective, inf where infeasible.

        The better of this one and the incumbent stays: feasible before infeasible, then by objective.
        """
        kept = np.array(x, dtype=bool)
        feasible = self._problem.is_feasible(kept)
        violation = 0.0 if feasible else max(self._problem.violation(kept), math.ulp(0.0))
        objective = float(self._problem.value(kept))
        tighter = bound is not None and (self.bound is None or bound > self.bound)
        if tighter:
            self.bound = bound
        better = (violation, objective) < (self.violation, self.objective)
        if better:
            kept.setflags(write=False)
            self.best, self.objective, self.violation = kept, objective, violation
        if (better and feasible) or tighter:
            self._record()
        return objective if feasible else math.inf

    def prove(self, bound: float) -> None:
        """Record a proved lower bound without a new solution."""
        if self.bound is None or bound > self.bound:
            self.bound = bound
            self._record()

    def _record(self) -> None:
        objective = self.objective if self.feasible else None
        self.trace.append(TraceRow(self.seconds, self.evaluations, objective, self.bound))
        if self._callback is None or objective is None:
            return
        told = Incumbent(self.seconds, self.evaluations, objective, self.bound, self.best)
        try:
            self.stopped = bool(self._callback(told)) or self.stopped
        except Exception as error:
            raise _CallbackRaised from error

    def status(self, told: Status | None) -> Status:
        """The status to report, from what the search told and what the run knows."""
        if told is Status.INFEASIBLE:
            return told
        if not self.feasible:
            return Status.NO_FEASIBLE_FOUND
        if told is not None:
            return told
        if self.stopped:
            return Status.STOPPED
        if self.evaluations_left <= 0:
            return Status.ITERATION_LIMIT
        return Status.TIME_LIMIT if self.remaining <= 0 else Status.FINISHED


class _CallbackRaised(Exception):
    """Carries a callback's exception out of a search, past the searches' own handlers."""


@dataclass(frozen=True)
class Solver(ABC):
    """A way to solve problems: a frozen dataclass whose fields are its options, all with defaults.

    Subclasses set `name` and `accepts` and write `_search`. See docs/adding-a-solver.md.
    """

    name: ClassVar[str]
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = BinaryQuadratic

    @abstractmethod
    def _search(self, problem: Any, run: Run) -> Status | None:
        """Offer solutions until done or `run.should_stop()`; None lets the run tell the status."""

    def _prepare(self, problem: Any) -> None:  # noqa: B027  (most solvers have nothing to prepare)
        """Load or compile what the search needs, before the clock starts."""

    def refuse(self, problem: Any) -> str | None:
        """Why this solver cannot take the problem, None where it can."""
        if isinstance(problem, self.accepts):
            return None
        kinds = self.accepts if isinstance(self.accepts, tuple) else (self.accepts,)
        return f"{self.name} takes {' or '.join(k.__name__ for k in kinds)}, got {type(problem).__name__}"

    def solve(
        self,
        problem: Any,
        *,
        seed: int | None = 0,
        time_limit: float | None = None,
        evaluation_limit: int | None = None,
        callback: Callable[[Incumbent], Any] | None = None,
        start: Any = None,
        bound: bool = False,
    ) -> Result:
        """Solve the problem within the limits.

        Parameters
        ----------
        problem : BinaryQuadratic
            What to minimise; it is not changed.
        seed : int or None
            Seed of the run; None draws one. The effective seed is in the result.
        time_limit : float, optional
            Seconds, counted from after the kernels are loaded.
        evaluation_limit : int, optional
            Most evaluations; with it alone a run repeats bit by bit.
        callback : callable, optional
            Called with an `Incumbent` at every improvement; returning True stops the run.
        start : (n,) bool, optional
            A feasible selection to begin with; the result is never worse.
        bound : bool
            Also compute a lower bound, within what time is left and at least one second.

        Returns
        -------
        Result
            Incumbent, status, bound and trace.

        Raises
        ------
        UnsupportedProblem
            If the solver does not take this kind of problem.
        InvalidProblem
            If a limit, the seed or the start makes no sense.
        SolverFailed
            If the search or the callback raised; `.result` carries the incumbent.
        """
        reason = self.refuse(problem)
        if reason is not None:
            raise UnsupportedProblem(reason)
        _check_limits(time_limit, evaluation_limit)
        compile_seconds = _timed(lambda: self._prepare(problem))
        effective = _effective_seed(seed)
        run = Run(problem, seed=effective, time_limit=time_limit, evaluation_limit=evaluation_limit, callback=callback)
        run.details["compile_seconds"] = compile_seconds
        told = self._guarded(problem, run, start)
        seconds = run.seconds
        if bound and run.feasible and run.bound is None:
            self._bound(problem, run)
        return _result(self, run, told, seconds)

    def _guarded(self, problem: Any, run: Run, start: Any) -> Status | None:
        """The search, with Ctrl-C turned into a stop and a crash into SolverFailed."""
        told = None
        try:
            if start is not None:
                run.start = _checked_start(problem, start)
                run.offer(run.start)
            forced = _only_selection(problem)
            if forced is not None:
                run.offer(forced, bound=problem.value(forced) if problem.is_feasible(forced) else None)
                return Status.OPTIMAL if run.feasible else Status.INFEASIBLE
            told = self._search(problem, run)
        except KeyboardInterrupt:
            run.stopped = True
            run.details["interrupted"] = True
        except _CallbackRaised as wrapped:
            cause = wrapped.__cause__
            result = _result(self, run, Status.STOPPED, run.seconds)
            raise SolverFailed(f"the callback raised {type(cause).__name__}: {cause}", result) from cause
        except (InvalidProblem, UnsupportedProblem):
            raise
        except Exception as error:
            result = _result(self, run, Status.STOPPED, run.seconds)
            raise SolverFailed(f"{self.name} raised {type(error).__name__}: {error}", result) from error
        return told

    def _bound(self, problem: Any, run: Run) -> None:
        """Prove a lower bound after the search; `exact` and others that bound by themselves never come here."""
        from .bounds import lower_bound

        run.prove(lower_bound(problem, seconds=max(1.0, run.remaining if math.isfinite(run.remaining) else 10.0)))

    @classmethod
    def options(cls) -> dict[str, Any]:
        """{option: default} of this solver."""
        return {f.name: f.default for f in fields(cls)}


def _result(solver: Solver, run: Run, told: Status | None, seconds: float) -> Result:
    return Result(
        solution=run.best,
        objective=None if run.best is None else run.objective,
        bound=run.bound,
        feasible=run.feasible,
        status=run.status(told),
        seconds=seconds,
        evaluations=run.evaluations,
        seed=run.seed,
        solver=repr(solver),
        trace=tuple(run.trace),
        details=run.details,
    )


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _check_limits(time_limit: float | None, evaluation_limit: int | None) -> None:
    if time_limit is not None and not time_limit > 0:
        raise InvalidProblem(f"time_limit: expected seconds > 0 or None, got {time_limit!r}")
    if evaluation_limit is not None and not evaluation_limit > 0:
        raise InvalidProblem(f"evaluation_limit: expected a count > 0 or None, got {evaluation_limit!r}")


def _effective_seed(seed: int | None) -> int:
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(seed, bool) or int(seed) != seed or seed < 0:
        raise InvalidProblem(f"seed: expected a whole number >= 0 or None, got {seed!r}")
    return int(seed)


def _checked_start(problem: BinaryQuadratic, start: Any) -> Any:
    from prunesolve.problems._arrays import bits

    kept = bits("start", start, problem.n)
    if kept.ndim != 1 or not problem.is_feasible(kept):
        raise InvalidProblem(
            f"start: expected a feasible selection ({problem.n},), got one of violation "
            f"{problem.violation(kept)}; repair it or leave it out"
        )
    kept.setflags(write=False)
    return kept


def _only_selection(problem: Any) -> Any:
    """The one candidate where the cardinality leaves no choice, so that no solver meets n = 0, k = 0 or k = n."""
    if problem.n == 0 or problem.k == 0:
        return np.zeros(problem.n, dtype=bool)
    return np.ones(problem.n, dtype=bool) if problem.k == problem.n else None
