r"""Divide and conquer: a front for each sub-network, joined by what its members do to the whole network.

F_s = front of (e_s(x_s), c_s(x_s))        one search for each part s
I(s, m) = f(dense, but part s is m) - f(dense),    g(s, m) = c(dense) - c(dense, but part s is m)        m in F_s
join: schemes (m_1 .. m_S) of small sum I for large sum g, evaluated truly on the whole
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import Composite, InvalidProblem, MultiObjective, unknown
from prunesolve.problems._arrays import Bits, Floats, Indices

from ._base import Run, Solver, Status
from ._impairment import Table, exact_front, greedy_path, spread, table
from ._part_searches import PartFront, PartSearch, check_sendable, fronts
from .nsga2 import Nsga2
from .restarts import resolved

# most of the evaluations that the points to begin with may take
_OPENING = 0.2
_JOINS = {"gpir": greedy_path, "knapsack": exact_front}


@dataclass(frozen=True)
class EmoDir(Solver):
    r"""A front per part by `inner`; members ranked by their impairment of the whole; schemes of them evaluated truly.

    An evaluation is one point of a part or of the whole. The answer holds points evaluated on the whole alone:
    `details["parts"]` tells the parts' fronts, impairments and savings, `details["additive"]` how far the sum of
    impairments foretells what was measured.

    Parameters
    ----------
    inner : str or Solver
        Searches a part, a `MultiObjective`; ends by itself where there are no limits. Default: `Nsga2` with a small
        population, for a part gets few evaluations.
    join : {"gpir", "knapsack"}
        "gpir", the global performance impairment ranking: from dense on, again and again the next step along some
        part's front with the smallest impairment per saved cost. "knapsack": every scheme whose sums of impairments
        and savings are not dominated, by dynamic programming.
    share : float
        Share of the limits that the searches of the parts get; without `polish` more where the join needs less.
    members : int
        Most members of each part's front whose impairment is measured.
    points : int
        Most schemes that are evaluated; without `polish` as many as an evaluation limit allows.
    polish : bool
        Whether what is then left of the limits goes to `inner` on the whole, begun with the joined front (ours).
        `details["joined"]` tells what was reached before.
    workers : int
        Processes that search parts side by side; 0 searches them in this one. The front is the same.

    Reference
    ---------
    Shang, Zhu, Wu, Zhang, Jiao, Xu, EMO-DIR, arXiv 2303.16212: the division and the ranking are the paper's, their
    formulas, the exact join and the sharing of the evaluations are our reconstruction.

    Examples
    --------
    >>> from prunesolve.problems import BinaryQuadratic, MultiObjective
    >>> error = [BinaryQuadratic([-w, -2 * w], offset=3 * w) for w in (1.0, 5.0)]
    >>> size, names = BinaryQuadratic([1.0, 1.0]), ("error", "size")
    >>> parts = [MultiObjective.over([e, size], names) for e in error]
    >>> whole = [BinaryQuadratic([-1.0, -2.0, -5.0, -10.0], offset=18.0), BinaryQuadratic(np.ones(4))]
    >>> problem = Composite(parts, MultiObjective.over(whole, names), np.ones(4, dtype=bool))
    >>> EmoDir().solve(problem, evaluation_limit=60).front.objectives.tolist()
    [[0.0, 4.0], [1.0, 3.0], [3.0, 2.0], [8.0, 1.0], [18.0, 0.0]]
    """

    inner: Any = field(default_factory=partial(Nsga2, population=20, generations=50))
    join: str = "gpir"
    share: float = 0.3
    members: int = 40
    points: int = 100
    polish: bool = True
    workers: int = 0

    name: ClassVar[str] = "emo-dir"
    accepts: ClassVar[type[Any]] = Composite

    def __post_init__(self) -> None:
        if self.join not in _JOINS:
            raise unknown("join", str(self.join), _JOINS)
        if not 0.0 < self.share < 1.0:
            raise InvalidProblem(f"share: expected a number between 0 and 1, got {self.share!r}")
        for option, least in (("members", 1), ("points", 1), ("workers", 0)):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidProblem(f"{option}: expected a whole number >= {least}, got {value!r}")

    def refuse(self, problem: Any) -> str | None:
        """What it cannot take, and what the inner solver refuses of a part."""
        reason = super().refuse(problem)
        if reason is not None:
            return reason
        inner = resolved(self.inner)
        return next((why for why in map(inner.refuse, problem.parts) if why is not None), None)

    def _prepare(self, problem: Any) -> None:
        inner = resolved(self.inner)
        if self.workers:
            check_sendable(inner, problem.parts)
        else:
            inner._prepare(problem.parts[0])

    def _search(self, problem: Any, run: Run) -> Status | None:
        opening = _opening(problem, run)
        # one point alone would make a poor reference point of the hypervolume: then dense waits for the members
        if problem.joint.reference is not None or len(opening) > 1:
            run.evaluate(opening)
        found = fronts(self._searches(problem, run), run, self.workers)
        tables = self._tables(problem, run, found, opening)
        if tables is None:
            return None
        schemes = _JOINS[self.join](tables)
        self._evaluate(problem, run, tables, schemes)
        if self.polish and (run.evaluation_limit or run.time_limit) is not None:
            self._polish(problem.joint, run)
        return None

    def _searches(self, problem: Composite, run: Run) -> list[PartSearch]:
        """What is searched how; every part gets as much as the others."""
        parts, left = len(problem.parts), run.evaluations_left
        limits: list[int | None] = [None] * parts
        if np.isfinite(left):
            # without a polish nobody else needs more than to measure the members and the path through them
            spare = 0.0 if self.polish else left - 2 * self.members * parts
            limits = [int(max(self.share * left, spare)) // parts] * parts
        seconds = None
        if run.time_limit is not None:
            seconds = self.share * run.time_limit * min(max(1, self.workers), parts) / parts
        seeds = run.rng.integers(2**31, size=parts).tolist()
        inner = resolved(self.inner)
        return [
            PartSearch(inner, part, seed, limit, seconds)
            for part, seed, limit in zip(problem.parts, seeds, limits, strict=True)
        ]

    def _tables(
        self, problem: Composite, run: Run, found: Sequence[PartFront | None], opening: Any
    ) -> list[Table] | None:
        """The impairment of what was found for each part, measured on the whole; None where even dense has no value."""
        parts = len(problem.parts)
        most = self.members
        if np.isfinite(run.evaluations_left):
            most = min(most, max(1, int(run.evaluations_left) // (2 * parts)))
        thinned = [_thinned(front, most) for front in found]
        rows = [problem.placed(s, front.solutions) for s, front in enumerate(thinned) if front is not None]
        values = run.evaluate(np.concatenate([opening, *rows]))
        dense, values = values[0], values[len(opening) :]
        if not np.isfinite(dense).all():
            return None
        tables, told = [], []
        for s, front in enumerate(thinned):
            own = np.asarray(problem.dense)[None, problem.starts[s] : problem.starts[s + 1]]
            measured = dense[None]
            if front is not None:
                own = np.concatenate([own, front.solutions])
                measured = np.concatenate([measured, values[: len(front.solutions)]])
                values = values[len(front.solutions) :]
            tables.append(table(own, measured[:, 0] - dense[0], dense[1] - measured[:, 1]))
            told.append(_told(found[s], tables[-1]))
        run.details["parts"] = told
        return tables

    def _evaluate(self, problem: Composite, run: Run, tables: Sequence[Table], schemes: Indices) -> None:
        """Schemes evaluated truly: those that may be answered, spread over the cost."""
        rows = np.concatenate([part.members[schemes[:, s]] for s, part in enumerate(tables)], axis=1)
        foretold = _foretold(tables, schemes)
        dense = run.evaluate(np.asarray(problem.dense)[None])[0]
        objectives = np.stack([dense[0] + foretold[:, 0], dense[1] - foretold[:, 1]], axis=1)
        promising = _promising(problem, rows, objectives)
        rows, foretold = rows[promising], foretold[promising]
        count = self.points if np.isinf(run.evaluations_left) else int(run.evaluations_left)
        count = min(count, self.points) if self.polish else count
        chosen = spread(foretold[:, 1], count)
        measured = run.evaluate(rows[chosen])[:, 0] - dense[0]
        known = np.isfinite(measured)
        run.details["schemes"] = len(schemes)
        run.details["additive"] = _validity(foretold[chosen][known, 0], measured[known])

    def _polish(self, joint: MultiObjective, run: Run) -> None:
        """What is left of the limits goes to `inner` on the whole, begun with the front."""
        assert run.archive is not None
        run.details["joined"] = {"evaluations": run.evaluations, "hypervolume": run.archive.hypervolume}
        if run.should_stop() or not len(run.archive.objectives):
            return
        inner = resolved(self.inner)
        begun = joint.replace(starts=run.archive.solutions)
        inner._prepare(begun)
        left = int(run.evaluations_left) if run.evaluation_limit is not None else None
        seed = int(run.rng.integers(2**31))
        inner._search(begun, Run(begun, seed=seed, time_limit=run.time_limit, evaluation_limit=left, outer=run))


def _opening(problem: Composite, run: Run) -> Any:
    """The dense point, before points that every search begins with: of many some, as few evaluations must do."""
    starts, left = problem.joint.starts, run.evaluations_left
    if np.isfinite(left):
        starts = starts[spread(np.arange(float(len(starts))), int(_OPENING * left))]
    return np.concatenate([np.asarray(problem.dense)[None], starts])


def _thinned(front: PartFront | None, most: int) -> PartFront | None:
    """At most so many members, spread over the cost."""
    if front is None or not len(front.solutions):
        return None
    kept = spread(front.objectives[:, 1], most)
    return front._replace(solutions=front.solutions[kept], objectives=front.objectives[kept])


def _foretold(tables: Sequence[Table], schemes: Indices) -> Floats:
    """(p, 2) sums of impairments and of savings."""
    sums = [
        sum(column[schemes[:, s]] for s, column in enumerate(columns))
        for columns in ([part.impairment for part in tables], [part.saving for part in tables])
    ]
    return np.stack(sums, axis=1)


def _promising(problem: Composite, rows: Any, foretold: Floats) -> Bits:
    """(p,) what lies in the space and is foretold to count: within the limits, better than a given reference point.

    Where nothing does, only the space counts; where nothing lies in that, all.
    """
    feasible = np.asarray(problem.is_feasible(rows))
    counts = feasible & (problem.joint.excess(foretold) == 0.0)
    if problem.joint.reference is not None:
        counts &= (foretold < problem.joint.reference).all(axis=1)
    return counts if counts.any() else feasible if feasible.any() else np.ones(len(rows), dtype=bool)


def _validity(foretold: Floats, measured: Floats) -> dict[str, Any]:
    """How far the sum of impairments foretells the measured one."""
    told: dict[str, Any] = {"foretold": foretold, "measured": measured}
    if len(foretold) > 1 and np.ptp(foretold) > 0 and np.ptp(measured) > 0:
        told["correlation"] = float(np.corrcoef(foretold, measured)[0, 1])
    return told


def _told(front: PartFront | None, measured: Table) -> dict[str, Any]:
    """JSON-able facts of one part."""
    told: dict[str, Any] = {"members": 0, "impairment": measured.impairment, "saving": measured.saving}
    if front is not None:
        told |= {"members": len(front.solutions), "front": front.objectives, "evaluations": front.evaluations}
        told |= front.told
    return told
