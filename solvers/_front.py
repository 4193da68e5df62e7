r"""Fronts of several objectives: what dominates what, the volume a front dominates, and its knee.

hypervolume(F, r) = volume of the union of the boxes [f, r] over the points f of F below the reference r
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from prunesolve.problems import InvalidProblem, MultiObjective
from prunesolve.problems._arrays import Bits, Floats

if TYPE_CHECKING:
    from ._base import Run

# points between two looks at the clock; not by measured time: matrix products round by the number of rows
_SLICE = 8
_TOLD = 20  # failures that the details list
_BEYOND = 0.1  # the reference lies this share of the range beyond the worst of the first points
_log = logging.getLogger("prunesolve")


class EvaluationFailed(RuntimeError):
    """The evaluation raised, or gave another shape, for the second time in a run; names the point."""


def nondominated(objectives: Any) -> Bits:
    """(p,) whether no other row of (p, m) dominates the row; of equal rows the first one.

    Examples
    --------
    >>> nondominated([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 2.0]])
    array([ True,  True, False, False])
    """
    values = np.asarray(objectives, dtype=np.float64)
    order = np.lexsort(values.T[::-1])
    keeps = np.zeros(len(values), dtype=bool)
    if values.shape[1] == 2:
        second = values[order, 1]
        # sorted by the first objective, then the second: only a smaller second one than all before is new
        keeps[order] = second < np.concatenate([[math.inf], np.minimum.accumulate(second)[:-1]])
        return keeps
    front: list[int] = []
    for i in order:
        if not front or not (values[front] <= values[i]).all(axis=1).any():
            front.append(int(i))
    keeps[front] = True
    return keeps


def hypervolume(objectives: Any, reference: Any) -> float:
    """Volume that the points (p, m) dominate up to the reference (m,).

    Examples
    --------
    >>> hypervolume([[1.0, 2.0], [2.0, 1.0]], [3.0, 3.0])
    3.0
    """
    values, worst = np.asarray(objectives, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    values = values.reshape(-1, len(worst))
    values = values[(values < worst).all(axis=1)]
    if not len(values):
        return 0.0
    values = values[nondominated(values)]
    if len(worst) > 2:
        from pymoo.indicators.hv import HV

        return float(HV(ref_point=worst)(values))
    values = values[np.argsort(values[:, 0])]
    widths = np.append(values[1:, 0], worst[0]) - values[:, 0]
    return float(widths @ (worst[1] - values[:, 1]))


def knee(objectives: Any) -> int:
    """The row of a front (p, m) farthest below the plane through its extremes, objectives scaled to [0, 1].

    Examples
    --------
    >>> knee([[0.0, 1.0], [0.1, 0.2], [1.0, 0.0]])
    1
    """
    values = np.asarray(objectives, dtype=np.float64)
    low, span = values.min(axis=0), np.ptp(values, axis=0)
    scaled = (values - low) / np.where(span > 0, span, 1.0)
    return int(scaled.sum(axis=1).argmin())


class Archive:
    """Every point of a run that no other dominates, and the volume that they dominate.

    Parameters
    ----------
    problem : MultiObjective
        What is minimised; its reference is taken, or one from the first points.
    """

    def __init__(self, problem: MultiObjective) -> None:
        self.problem = problem
        self.reference = problem.reference
        self.solutions: Any = np.zeros_like(problem.starts[:0])
        self.objectives: Floats = np.zeros((0, problem.m))
        self.hypervolume = 0.0
        self.least_violated: tuple[float, Any, Floats] | None = None

    def add(self, rows: Any, values: Floats) -> bool:
        """Take rows (p, n) with their values (p, m), inf for none; whether the front has changed."""
        known = np.isfinite(values).all(axis=1) & np.asarray(self.problem.is_feasible(rows))
        rows, values = rows[known], values[known]
        if self.reference is None and len(values):
            worst, span = values.max(axis=0), np.ptp(values, axis=0)
            self.reference = worst + _BEYOND * np.where(span > 0, span, np.maximum(1.0, np.abs(worst)))
        excess = self.problem.excess(values)
        self._remember_least(rows, values, excess)
        rows, values = rows[excess == 0.0], values[excess == 0.0]
        solutions, objectives = np.concatenate([self.solutions, rows]), np.concatenate([self.objectives, values])
        before = len(self.objectives)
        stays = nondominated(objectives)
        if not stays[before:].any():
            return False
        order = np.lexsort(objectives[stays].T[::-1])
        self.solutions, self.objectives = solutions[stays][order], objectives[stays][order]
        self.hypervolume = hypervolume(self.objectives, self.reference)
        return True

    def _remember_least(self, rows: Any, values: Floats, excess: Floats) -> None:
        if not len(excess) or len(self.objectives):
            return
        least = int(excess.argmin())
        if self.least_violated is None or excess[least] < self.least_violated[0]:
            self.least_violated = float(excess[least]), rows[least], values[least]

    def told(self) -> dict[str, Any]:
        """JSON-able facts of the front."""
        told: dict[str, Any] = {"objectives": list(self.problem.objectives), "reference": self.reference}
        if len(self.objectives):
            return told | {"hypervolume": self.hypervolume, "knee": knee(self.objectives)}
        if self.least_violated is not None:
            violation, row, values = self.least_violated
            told["least_violated"] = {"violation": violation, "objectives": values, "point": row.astype(int)}
        return told


class FrontEvaluations:
    """How a search asks for objectives: every distinct point counted once, failures pinned to their points.

    Parameters
    ----------
    problem : MultiObjective
        What is evaluated.
    run : Run
        Counts, limits and keeps the archive.
    """

    def __init__(self, problem: MultiObjective, run: Run) -> None:
        self.problem, self.run = problem, run
        self._counted: dict[bytes, Floats] = {}
        self._failed: set[bytes] = set()
        self._errors = 0
        # without a reference the front waits for all of the first points, which one is taken from
        self._waits = problem.reference is None

    def values(self, x: Any) -> Floats:
        """(p, m) of each row of x (p, n); inf for what has no value or was not evaluated."""
        rows = np.atleast_2d(self.problem.checked(x))
        values = np.full((len(rows), self.problem.m), math.inf)
        done = archived = 0
        try:
            while done < len(rows):
                values[done : done + _SLICE] = self._some(rows[done : done + _SLICE])
                done = min(done + _SLICE, len(rows))
                if not self._waits:
                    self.run.archived(rows[archived:done], values[archived:done])
                    archived = done
        finally:
            self._waits = False
            self.run.archived(rows[archived:done], values[archived:done])
        return values

    @property
    def told(self) -> tuple[Any, Floats]:
        """Every point that was counted, (p, n), and its objectives, (p, m), inf for none, in the order asked."""
        values = np.array(list(self._counted.values())).reshape(-1, self.problem.m)
        return self.problem.points(list(self._counted)), values

    def restore(self, rows: Any, values: Floats, reference: Floats | None) -> None:
        """Take over what another run was told, counted as if it had been told to this one."""
        rows = self.problem.checked(rows)
        archive = self.run.archive
        if archive is None:
            raise InvalidProblem("restore: expected a run of several objectives")
        # a start was evaluated before; it is judged again by the other run's reference
        archive.solutions, archive.objectives = archive.solutions[:0], archive.objectives[:0]
        archive.reference = None if reference is None else np.asarray(reference, dtype=np.float64)
        self._waits = reference is None
        own = len(self._counted)
        told = {self.problem.key(row): value for row, value in zip(rows, values, strict=True)}
        self._counted = told | {key: value for key, value in self._counted.items() if key not in told}
        self._failed |= {key for key, value in told.items() if not np.isfinite(value).all()}
        self.run.count(len(self._counted) - own)
        self.run.archived(*self.told)

    def _some(self, rows: Any) -> Floats:
        values = np.full((len(rows), self.problem.m), math.inf)
        keys = [self.problem.key(row) for row in rows]
        asked = self._affordable(keys)
        if asked:
            values[asked] = self._tried(rows[asked], [keys[i] for i in asked])
            self._counted |= {keys[i]: values[i] for i in asked}
        return values

    def _affordable(self, keys: list[bytes]) -> list[int]:
        """Row numbers to evaluate: known ones, and new ones as far as the limits go."""
        asked, left = [], 0.0 if self.run.should_stop() else self.run.evaluations_left
        # a dict, not a set: the order asked is part of what a checkpoint holds
        new: dict[bytes, None] = {}
        for i, key in enumerate(keys):
            if key in self._failed:
                continue
            if key not in self._counted and key not in new:
                if len(new) >= left:
                    continue
                new[key] = None
            asked.append(i)
        self.run.count(len(new))
        self._counted |= dict.fromkeys(new, np.full(self.problem.m, math.inf))
        return asked

    def _tried(self, rows: Any, keys: list[bytes]) -> Floats:
        """(p, m) values; a call that fails is repeated row by row, to find whose fault it was."""
        try:
            values = self.problem.values(rows)
        except Exception as error:
            values = self._one_by_one(rows, keys, error)
        missing: Bits = np.asarray(np.isnan(values).any(axis=1))
        for i in np.flatnonzero(missing).tolist():
            self._tell(rows[i], keys[i], "no value (NaN)")
        return np.where(missing[:, None], math.inf, values)

    def _one_by_one(self, rows: Any, keys: list[bytes], error: Exception) -> Floats:
        values = np.full((len(rows), self.problem.m), math.inf)
        before = self._errors
        for i, row in enumerate(rows):
            try:
                values[i] = self.problem.values(row[None])[0]
            except Exception as failure:
                self._raised(row, keys[i], failure)
        if self._errors == before:
            # it fails for the rows together and for none alone
            self._raised(rows[0], keys[0], error)
        return values

    def _raised(self, row: Any, key: bytes, error: Exception) -> None:
        """Bear one failure; the second ends the search."""
        self._errors += 1
        said = str(error) if isinstance(error, InvalidProblem) else f"{type(error).__name__}: {error}"
        self._tell(row, key, said)
        if self._errors > 1:
            raise EvaluationFailed(f"the evaluation failed a second time, for {row.astype(int).tolist()}: {said}")

    def _tell(self, row: Any, key: bytes, said: str) -> None:
        failures = self.run.outermost.details.setdefault("failures", [])
        entry: dict[str, Any] = {"error": said}
        if row.dtype == np.bool_:
            entry["kept"] = np.flatnonzero(row).tolist()
        else:
            entry["levels"] = row.tolist()
        if len(failures) < _TOLD and entry not in failures:
            failures.append(entry)
            _log.warning("evaluation of %s: %s", entry.get("kept", entry.get("levels")), said)
        self._failed.add(key)
