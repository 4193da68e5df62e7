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
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from prunesolve.problems import (
    BinaryQuadratic,
    BlackBox,
    Clustering,
    Composite,
    InvalidProblem,
    LevelChoice,
    MultiObjective,
    PartialTransport,
    SolverFailed,
    SparseRegression,
    SubsetRegression,
    UnsupportedProblem,
)
from prunesolve.problems._arrays import Floats, bits

from . import _plans
from ._front import Archive, FrontEvaluations, knee


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


class Front(NamedTuple):
    """Non-dominated solutions (m, n) and their objectives (m, k) where a problem has several."""

    solutions: Any
    objectives: Any


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
    solution : (n,) bool, (L,) int, (n, m) scipy CSR or None
        Best feasible solution: a selection, a level for each coordinate, a transport plan, or the cluster of each
        point; else the least infeasible one offered, else None. Of several objectives the knee of the front.
    objective : float or None
        Its value, recomputed by the library. Of several objectives minus the front's hypervolume.
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
    front : Front or None
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
    front: Front | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> float | None:
        """(objective - bound) / max(1e-12, |objective|), None where either is missing."""
        if self.objective is None or self.bound is None or not self.feasible:
            return None
        gap = (self.objective - self.bound) / max(1e-12, abs(self.objective))
        return gap if math.isfinite(gap) else None

    def to_json(self, *, trace: bool = True) -> str:
        """One JSON object; the solution as the indices kept, levels, clusters or a plan's rows; no NaN or infinity."""
        listed = None if self.solution is None else _listed(self.solution)
        told: dict[str, Any] = {
            "solver": self.solver,
            "status": str(self.status),
            "objective": self.objective,
            "bound": self.bound,
            "gap": self.gap,
            "feasible": self.feasible,
            "n": None if self.solution is None else self.solution.shape[0],
            "kept": int(self.solution.sum()) if _selects(self.solution) else None,
            "seconds": self.seconds,
            "seed": self.seed,
            "evaluations": self.evaluations,
            "solution": listed,
            "details": _plain(self.details),
        }
        if self.front is not None:
            told["front"] = {
                "solutions": [_listed(solution) for solution in self.front.solutions],
                "objectives": _plain(self.front.objectives),
            }
        if trace:
            told["trace"] = [list(row) for row in self.trace]
        return json.dumps(told, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Result:
        """The result that `to_json` wrote."""
        try:
            told = json.loads(text)
            solution, front = None, told.get("front")
            if told["solution"] is not None:
                solution = _unlisted(told["solution"], told["n"], told["kept"])
            if front is not None:
                rows = [_unlisted(row, told["n"], told["kept"]) for row in front["solutions"]]
                front = Front(np.array(rows), np.array(front["objectives"], dtype=np.float64))
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
                front=front,
                details=told.get("details", {}),
            )
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError, IndexError) as error:
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


def _selects(solution: Any) -> bool:
    return solution is not None and solution.dtype == np.bool_


def _listed(solution: Any) -> Any:
    """The indices kept of a selection, the levels of a tuple, the rows of a plan."""
    if solution.ndim == 2:
        return _plans.listed(solution)
    return (np.flatnonzero(solution) if _selects(solution) else solution).tolist()


def _unlisted(listed: Any, n: int, kept: int | None) -> Any:
    """What `_listed` wrote; levels keep no units."""
    if isinstance(listed, Mapping):
        return _plans.unlisted(listed)
    if kept is None:
        return np.array(listed, dtype=np.int64)
    solution = np.zeros(n, dtype=bool)
    solution[listed] = True
    return solution


class _Held(NamedTuple):
    """A solution with its recomputed figures; compares as the incumbent does: feasible first, then by objective.

    Of equals the one of the lowest thread stays, so that threads never race for the answer.
    """

    violation: float
    objective: float
    thread: int
    solution: Any


_NOTHING = _Held(math.inf, math.inf, 0, None)


@dataclass
class Account:
    """What a run has asked of a black box.

    `paid` {point: batches} cost `spent` evaluations in shares, of which `counted` were told; `failed` are the points
    without a value, `errors` the exceptions so far.
    """

    paid: dict[bytes, set[int]] = field(default_factory=dict)
    spent: float = 0.0
    counted: int = 0
    failed: set[bytes] = field(default_factory=set)
    errors: int = 0


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
    evaluations : int
        What was counted so far.
    bound : float or None
        Largest proved lower bound so far.
    stopped : bool
        Whether the caller asked to stop.
    account : Account
        What was asked of a black box; inner runs share it.
    archive : Archive or None
        What is not dominated so far, where there are several objectives; inner runs share it.
    front : Front or None
        The front of error and cost that a search put forward for a `LevelChoice`.
    """

    def __init__(
        self,
        problem: Any,
        *,
        seed: int,
        time_limit: float | None = None,
        evaluation_limit: int | None = None,
        callback: Callable[[Incumbent], Any] | None = None,
        outer: Run | None = None,
    ) -> None:
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.time_limit = time_limit
        self.evaluation_limit = evaluation_limit
        self.start: Any = None
        self.details: dict[str, Any] = {}
        self.evaluations = 0
        self.bound: float | None = None
        self.trace: list[TraceRow] = []
        self.stopped = False
        self.account: Account = Account() if outer is None else outer.account
        self.front: Front | None = None
        self.archive: Archive | None = None
        several = problem.joint if isinstance(problem, Composite) else problem
        if isinstance(several, MultiObjective):
            self.archive = Archive(several) if outer is None else outer.archive
            self._evaluations: FrontEvaluations = (
                FrontEvaluations(several, self) if outer is None else outer._evaluations
            )
        self._problem = problem
        self._callback = callback
        self._outer = outer
        self._held = _NOTHING
        self._began = time.perf_counter()

    @property
    def outermost(self) -> Run:
        """The run that the caller's result is made of."""
        return self if self._outer is None else self._outer.outermost

    @property
    def best(self) -> Any:
        """The incumbent (n,), read-only; None before the first offer."""
        return self._held.solution

    @property
    def objective(self) -> float:
        """The incumbent's objective, inf before the first offer."""
        return self._held.objective

    @property
    def violation(self) -> float:
        """The incumbent's violation, inf before the first offer."""
        return self._held.violation

    @property
    def feasible(self) -> bool:
        """Whether a feasible solution is in hand."""
        return self._held.violation == 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the clock started."""
        return time.perf_counter() - self._began

    @property
    def remaining(self) -> float:
        """Seconds left, inf without a time limit."""
        own = math.inf if self.time_limit is None else max(0.0, self.time_limit - self.seconds)
        return own if self._outer is None else min(own, self._outer.remaining)

    def count(self, k: int = 1) -> None:
        """Add k evaluations (proposals, moves, nodes: what the solver documents) to the run's count."""
        self.evaluations += int(k)
        if self._outer is not None:
            self._outer.count(k)

    @property
    def evaluations_left(self) -> float:
        """Evaluations left, inf without an evaluation limit."""
        return math.inf if self.evaluation_limit is None else max(0, self.evaluation_limit - self.evaluations)

    @property
    def halted(self) -> bool:
        """Whether the time is over or the caller asked to stop; evaluations do not matter to a last polish."""
        return self.stopped or self.remaining <= 0 or (self._outer is not None and self._outer.halted)

    def should_stop(self) -> bool:
        """Whether a limit is reached or the caller asked to stop; ask at least every 10 ms."""
        outer = self._outer is not None and self._outer.should_stop()
        return outer or self.evaluations_left <= 0 or self.halted

    def evaluate(self, x: Any) -> Floats:
        """(p, m) objectives of each row of x (p, n), inf for what has no value or is past a limit; fills the archive.

        Every distinct point counts once. The figures are the problem's, never a solver's.
        """
        return self._evaluations.values(x)

    @property
    def evaluated(self) -> tuple[Any, Floats]:
        """Every point (p, n) that counted, and its objectives (p, m), inf for none: what a checkpoint must hold."""
        return self._evaluations.told

    def restore(self, rows: Any, values: Floats, reference: Any) -> None:
        """Go on from a checkpoint: take over `evaluated` and the reference of the run that wrote it."""
        self._evaluations.restore(rows, values, reference)

    def offer_front(self, x: Any) -> None:
        """Put forward the rows of x (p, L) as the front of error and spending of a `LevelChoice`, both recomputed."""
        rows = np.atleast_2d(self._problem.checked("offered front", x))
        found = Front(rows, np.stack([self._problem.value(rows), self._problem.spent(rows)], axis=1))
        self.outermost.front = found

    def archived(self, rows: Any, values: Floats) -> None:
        """Put evaluated rows into the archive; a larger hypervolume is an improvement."""
        archive = self.archive
        if archive is None or not archive.add(rows, values):
            return
        best = np.asarray(archive.solutions[knee(archive.objectives)])
        best.setflags(write=False)
        self.outermost._take(_Held(0.0, -archive.hypervolume, 0, best), None)

    def offer(self, x: Any, bound: float | None = None) -> float:
        """Put a solution (and a proved bound) forward; returns its recomputed objective, inf where infeasible.

        The better of this one and the incumbent stays: feasible before infeasible, then by objective.
        """
        kept = _checked_one(self._problem, "offered solution", x, "one")
        objective = float(self._problem.value(kept))
        if math.isnan(objective):
            # a black box may have no value here
            return math.inf
        feasible = self._problem.is_feasible(kept)
        violation = 0.0 if feasible else max(self._problem.violation(kept), math.ulp(0.0))
        self._take(_Held(violation, objective, 0, kept), bound)
        return objective if feasible else math.inf

    def prove(self, bound: float) -> None:
        """Record a proved lower bound without a new solution."""
        self._take(_NOTHING, bound)

    def prove_duals(self, u: Any, v: Any) -> float:
        """Record what duals u (n,), v (m,) of a `PartialTransport` prove once they are repaired; returns the bound."""
        duals = _plans.repaired(self._problem, u, v, self.objective)
        outermost = self.outermost
        if outermost.bound is None or duals.bound > outermost.bound:
            outermost.details["duals"] = duals.told()
        self.prove(duals.bound)
        return duals.bound

    def delegate(
        self,
        solver: Solver,
        *,
        seed: int | None = None,
        start: Any = None,
        time_limit: float | None = None,
        evaluation_limit: int | None = None,
    ) -> Run:
        """Run another solver's search inside this one; wrappers are made of it.

        Limits, evaluations, incumbents and bounds pass through. The wrapper's `_prepare` and `refuse` must have
        asked the inner solver's.

        Returns
        -------
        Run
            The inner run: its own incumbent, and in `told` the status its search ended with.
        """
        left = [e for e in (evaluation_limit, self.evaluations_left) if e is not None and math.isfinite(e)]
        inner = Run(
            self._problem,
            seed=self.seed if seed is None else seed,
            # the declared limit, not what is left of it: the inner search may plan by it and must repeat
            time_limit=self.time_limit if time_limit is None else time_limit,
            evaluation_limit=int(min(left)) if left else None,
            outer=self,
        )
        if start is not None:
            inner.start = _checked_start(self._problem, start)
            if not isinstance(self._problem, BlackBox):
                inner.offer(inner.start)
        inner.told = solver._search(self._problem, inner)
        return inner

    told: Status | None = None

    def _take(self, held: _Held, bound: float | None) -> None:
        """Keep what is better, in the outer run first, whose callback may stop both."""
        if self._outer is not None:
            self._outer._take(held, bound)
        self._keep(held, bound)

    def _keep(self, held: _Held, bound: float | None) -> None:
        tighter = bound is not None and math.isfinite(bound) and (self.bound is None or bound > self.bound)
        better = held[:2] < self._held[:2]
        if tighter:
            self.bound = float(bound)  # type: ignore[arg-type]
        if held[:3] < self._held[:3]:
            # one assignment, so that Ctrl-C never parts a solution from its figures
            self._held = held
        if (better and held.violation == 0.0) or tighter:
            self._record()

    def _record(self) -> None:
        objective = self.objective if self.feasible else None
        self.trace.append(TraceRow(self.seconds, self.evaluations, objective, self.bound))
        if self._callback is None or objective is None:
            return
        told = Incumbent(self.seconds, self.evaluations, objective, self.bound, self.best)
        try:
            self.stopped = bool(self._callback(told)) or self.stopped
        except BaseException as error:
            # who raised is not called again with what is found until the search has ended
            self._callback = None
            # a _CallbackRaised comes from another run, which this run's callback passes on to
            if isinstance(error, _CallbackRaised) or not isinstance(error, Exception):
                raise
            raise _CallbackRaised from error

    def status(self, told: Status | None) -> Status:
        """The status to report, from what the search told and what the run knows."""
        if not self.feasible:
            return Status.INFEASIBLE if told is Status.INFEASIBLE else Status.NO_FEASIBLE_FOUND
        if told is not None and told not in (Status.INFEASIBLE, Status.NO_FEASIBLE_FOUND):
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
        problem : BinaryQuadratic, LevelChoice, BlackBox, MultiObjective, Composite, PartialTransport, ...
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
            Also compute a lower bound, within what time is left and at least one second; a black box has none.

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
        effective = _effective_seed(seed)
        checked = None if start is None else _checked_start(problem, start)
        compile_seconds = _timed(lambda: self._prepare(problem))
        most = None if evaluation_limit is None else int(evaluation_limit)
        run = Run(problem, seed=effective, time_limit=time_limit, evaluation_limit=most, callback=callback)
        run.details["compile_seconds"] = compile_seconds
        run.start = checked
        told = self._guarded(problem, run)
        # told before the bound, whose seconds are not the search's
        status, seconds = run.status(told), run.seconds
        wanted = bound and run.bound is None and status is not Status.OPTIMAL
        if wanted and isinstance(problem, BinaryQuadratic) and run.feasible and "interrupted" not in run.details:
            self._bound(problem, run)
        return _result(self, run, status, seconds)

    def _guarded(self, problem: Any, run: Run) -> Status | None:
        """The search, with Ctrl-C turned into a stop and a crash into SolverFailed."""
        try:
            # a black box is evaluated by the search alone, which counts it and outlives a failure
            if run.start is not None and run.archive is not None:
                run.evaluate(run.start)
            elif run.start is not None and not isinstance(problem, BlackBox):
                run.offer(run.start)
            forced = _only_selection(problem)
            if forced is not None and run.archive is not None:
                run.evaluate(forced)
                return None
            if forced is not None:
                run.count(int(isinstance(problem, BlackBox)))
                run.offer(forced)
                if isinstance(problem, BlackBox):
                    return Status.OPTIMAL if run.feasible else None
                return Status.OPTIMAL if run.feasible else Status.INFEASIBLE
            return self._search(problem, run)
        except KeyboardInterrupt:
            run.stopped = True
            run.details["interrupted"] = True
            return None
        except _CallbackRaised as wrapped:
            cause: BaseException = wrapped.__cause__ or wrapped
            said = f"the callback raised {type(cause).__name__}: {cause}"
        except UnsupportedProblem:
            raise
        except Exception as error:
            cause = error
            said = f"{self.name} raised {type(cause).__name__}: {cause}"
        raise SolverFailed(said, _result(self, run, run.status(Status.STOPPED), run.seconds)) from cause

    def _bound(self, problem: Any, run: Run) -> None:
        """Prove a lower bound after the search; `exact` and others that bound by themselves never come here."""
        from .bounds import lower_bound

        seconds = max(1.0, run.remaining) if run.time_limit is not None else 10.0
        try:
            run.prove(lower_bound(problem, seconds=seconds, incumbent=run.objective))
        except KeyboardInterrupt:
            run.details["interrupted"] = True
        except _CallbackRaised as wrapped:
            cause = wrapped.__cause__
            result = _result(self, run, run.status(None), run.seconds)
            raise SolverFailed(f"the callback raised {type(cause).__name__}: {cause}", result) from cause

    @classmethod
    def options(cls) -> dict[str, Any]:
        """{option: default} of this solver."""
        return {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(cls)}


def _result(solver: Solver, run: Run, status: Status, seconds: float) -> Result:
    front = run.front
    if isinstance(run._problem, PartialTransport):
        run.details.update(_plans.told(run._problem, run.best))
    if run.archive is not None:
        front = Front(run.archive.solutions, run.archive.objectives)
        run.details.update(run.archive.told())
    return Result(
        solution=run.best,
        objective=None if run.best is None else run.objective,
        bound=_reported_bound(run, status),
        feasible=run.feasible,
        status=status,
        seconds=seconds,
        evaluations=run.evaluations,
        seed=run.seed,
        solver=repr(solver),
        trace=tuple(run.trace),
        front=front,
        details=_plain(run.details),
    )


def _reported_bound(run: Run, status: Status) -> float | None:
    """The proved bound; a proved optimum is its own, and rounding never lifts a bound above the incumbent."""
    if not run.feasible:
        return run.bound
    if run.bound is None:
        return run.objective if status is Status.OPTIMAL else None
    scale = run._problem.scale if isinstance(run._problem, PartialTransport) else 1.0
    rounding = 1e-9 * max(scale, abs(run.objective))
    return run.objective if run.objective < run.bound <= run.objective + rounding else run.bound


def _plain(value: Any) -> Any:
    """What JSON can carry: numpy scalars and arrays as numbers and lists, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _check_limits(time_limit: Any, evaluation_limit: Any) -> None:
    if time_limit is not None and not (isinstance(time_limit, Real) and float(time_limit) > 0):
        raise InvalidProblem(f"time_limit: expected seconds > 0 or None, got {time_limit!r}")
    if evaluation_limit is not None and not (_is_whole(evaluation_limit) and int(evaluation_limit) > 0):
        raise InvalidProblem(f"evaluation_limit: expected a whole number > 0 or None, got {evaluation_limit!r}")


def _effective_seed(seed: Any) -> int:
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if not _is_whole(seed) or int(seed) < 0:
        raise InvalidProblem(f"seed: expected a whole number >= 0 or None, got {seed!r}")
    return int(seed)


def _is_whole(number: Any) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and float(number).is_integer()


def _checked(problem: Any, name: str, x: Any) -> Any:
    """A copy of a solution as the problem takes it: bits, levels, a plan or clusters."""
    if isinstance(problem, BinaryQuadratic):
        return bits(name, x, problem.n)
    if isinstance(problem, (LevelChoice, PartialTransport, Clustering, SparseRegression, SubsetRegression)):
        return problem.checked(name, x)
    return (problem.joint if isinstance(problem, Composite) else problem).checked(x, name)


def _checked_one(problem: Any, name: str, x: Any, wanted: str) -> Any:
    """The same of one solution alone, read-only."""
    kept = _checked(problem, name, x)
    if isinstance(problem, PartialTransport):
        return kept
    if kept.ndim != 1:
        raise InvalidProblem(f"{name}: expected {wanted} selection ({problem.n},), got {kept.shape}")
    kept.setflags(write=False)
    return kept


def _checked_start(problem: Any, start: Any) -> Any:
    kept = _checked_one(problem, "start", start, "a feasible")
    if not problem.is_feasible(kept):
        wanted = "plan" if isinstance(problem, PartialTransport) else "selection"
        raise InvalidProblem(
            f"start: expected a feasible {wanted} {kept.shape}, got one of violation "
            f"{problem.violation(kept)}; repair it or leave it out"
        )
    return kept


def _only_selection(problem: Any) -> Any:
    """The one candidate where there is no choice, so that no solver meets n = 0, k = 0, k = n or a mass of 0."""
    if isinstance(problem, PartialTransport):
        return None if problem.mass else np.zeros((problem.n, problem.m))
    if isinstance(problem, Clustering):
        return _only_clustering(problem)
    if problem.n == 0 or problem.k == 0:
        return np.zeros(problem.n, dtype=bool)
    return np.ones(problem.n, dtype=bool) if problem.k == problem.n else None


def _only_clustering(problem: Clustering) -> Any:
    if problem.n_clusters == 1:
        return np.zeros(problem.n, dtype=np.int64)
    return np.arange(problem.n) if problem.n_clusters == problem.n else None
