"""What a result file says of its solution, against what the solution really is on the instance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from prunesolve.problems import (
    BinaryQuadratic,
    Clustering,
    InvalidProblem,
    LevelChoice,
    MultiObjective,
    PartialTransport,
    SparseRegression,
    SubsetRegression,
)
from prunesolve.result_files import units_of_levels
from prunesolve.solvers import Front, Result, _plans
from prunesolve.solvers._front import hypervolume, knee, nondominated
from prunesolve.solvers._tolerance import tolerance, typical_bias

# problems with one value; of a MultiObjective the whole front is looked at
_One = BinaryQuadratic | LevelChoice | PartialTransport | Clustering | SparseRegression | SubsetRegression


@dataclass(frozen=True)
class Verdict:
    """The outcome of checking a claim.

    Parameters
    ----------
    faults : tuple of str
        What the claim says that is not so; empty where it holds.
    feasible : bool
        Whether the solution meets the constraints, recomputed.
    lines : tuple of str
        The same to be read, first what matters most.
    """

    faults: tuple[str, ...]
    feasible: bool
    lines: tuple[str, ...]


def examine(problem: _One | MultiObjective, told: Mapping[str, Any]) -> Verdict:
    """Recompute what a result claims: instance, objective in both senses, feasibility, counts, and what bounds allow.

    A claimed bound is only compared with known values, not proved again, but for a transport's, which comes with its
    duals. Of several objectives the whole front is
    recomputed: every point, that none dominates another, and the hypervolume up to the reference it names.

    Parameters
    ----------
    problem : BinaryQuadratic, LevelChoice, PartialTransport, Clustering, a regression or MultiObjective
        The instance; `best_known` and `bound` in its `meta`, to be minimised, are compared with where they are there.
    told : mapping
        The JSON object that `solve` writes.

    Raises
    ------
    InvalidProblem
        If the result holds no solution of the problem's n units, so that there is nothing to check.

    Examples
    --------
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0])
    >>> told = {"n": 3, "solution": [1, 2], "objective": -6.0, "feasible": True}
    >>> examine(problem, told).faults
    ('claims objective -6, recomputed -5',)
    """
    if told.get("instance_hash") not in (None, problem.hash):
        fault = f"made for instance {told['instance_hash']}, this one is {problem.hash}"
        return Verdict((fault,), False, (f"wrong: {fault}",))
    if isinstance(problem, MultiObjective):
        return _examine_front(problem, told)
    solution = solution_of(problem, told)
    objective, feasible = problem.value(solution), problem.is_feasible(solution)
    faults = tuple(_faults(problem, told, solution, objective, feasible))
    native = f" ({-objective:.12g} maximised)" if problem.meta.get("sense") == "maximise" else ""
    if isinstance(problem, LevelChoice):
        faults += tuple(_dominated(problem, told))
    found = f"objective {objective:.12g}{native}, {_what(problem, solution)}"
    if faults:
        return Verdict(faults, feasible, (*(f"wrong: {fault}" for fault in faults), f"recomputed: {found}"))
    if not feasible:
        return Verdict((), False, (f"infeasible, as claimed: {found}, violation {problem.violation(solution):g}",))
    return Verdict((), True, (f"holds: {found}, feasible", *_standing(problem, told, objective)))


def _what(problem: _One, solution: Any) -> str:
    """What a solution amounts to, in a few words."""
    if isinstance(problem, LevelChoice):
        return f"{problem.spent(solution):.12g} of {problem.budget:.12g} spent"
    if isinstance(problem, PartialTransport):
        return f"{solution.sum():.12g} of {problem.mass:.12g} carried by {solution.nnz} entries"
    if isinstance(problem, Clustering):
        return f"{solution.max() + 1} clusters of up to {np.bincount(solution).max()}"
    return f"{int(solution.sum())} of {problem.n} kept"


def _examine_front(problem: MultiObjective, told: Mapping[str, Any]) -> Verdict:
    front, claimed = _front(problem, told), told["front"]
    true = problem.values(front.solutions)
    feasible = bool(np.all(problem.is_feasible(front.solutions)) and not problem.excess(true).any())
    volume, faults = _volume(true, claimed), tuple(_front_faults(problem, told, front, true, feasible))
    found = f"{len(true)} points of {', '.join(problem.objectives)}, hypervolume {volume:.12g}"
    if faults:
        return Verdict(faults, feasible, (*(f"wrong: {fault}" for fault in faults), f"recomputed: {found}"))
    if not feasible:
        return Verdict((), False, (f"infeasible, as claimed: {found}",))
    return Verdict((), True, (f"holds: {found}, feasible, none dominated",))


def _front(problem: MultiObjective, told: Mapping[str, Any]) -> Front:
    try:
        front = Result.from_json(json.dumps(dict(told))).front
    except (InvalidProblem, IndexError, ValueError) as error:
        raise InvalidProblem(f"expected a front of n = {problem.n} coordinates ({error})") from None
    if front is None or not len(front.solutions):
        raise InvalidProblem(f"expected a front, got none (status {told.get('status')})")
    return Front(problem.checked(front.solutions, "front"), np.asarray(front.objectives))


def _front_faults(
    problem: MultiObjective, told: Mapping[str, Any], front: Front, true: Any, feasible: bool
) -> Iterator[str]:
    """Each thing that is not as claimed of a front, in a few words."""
    slack = 1e-9 * np.maximum(np.abs(true).max(axis=0), 1e-12)
    if front.objectives.shape != true.shape:
        yield f"claims objectives of shape {front.objectives.shape}, recomputed {true.shape}"
        return
    for i, (claimed, value) in enumerate(zip(front.objectives, true, strict=True)):
        if not (np.abs(claimed - value) <= slack).all():
            yield f"claims {claimed.tolist()} for point {i}, recomputed {value.tolist()}"
    beaten = np.flatnonzero(~nondominated(true))
    if len(beaten):
        yield f"claims a front, but {len(beaten)} of its points are dominated, point {beaten[0]} first"
    volume = _volume(true, told["front"])
    if not _is_number(told.get("objective")) or not math.isclose(told["objective"], -volume, rel_tol=1e-9):
        yield f"claims objective {_shown(told.get('objective'))}, minus the hypervolume is {-volume:.12g}"
    place = told["front"].get("knee")
    if place != knee(true):
        yield f"claims the knee at point {place}, recomputed {knee(true)}"
    if told.get("feasible") != feasible:
        yield f"claims to be {'feasible' if told.get('feasible') else 'infeasible'}, which it is not"


def _volume(values: Any, claimed: Mapping[str, Any]) -> float:
    """The hypervolume of the points (p, m) up to the reference that the claim names."""
    reference = claimed.get("reference")
    if not isinstance(reference, list) or len(reference) != values.shape[1] or not all(map(_is_number, reference)):
        raise InvalidProblem(f"front: expected a reference of {values.shape[1]} numbers, got {reference!r}")
    return hypervolume(values, reference)


def _dominated(problem: LevelChoice, told: Mapping[str, Any]) -> Iterator[str]:
    """Each thing that is not as claimed of a front of error and spending."""
    if told.get("front") is None:
        return
    rows, claimed = problem.checked("front", told["front"]["solutions"]), np.asarray(told["front"]["objectives"])
    true = np.stack([problem.value(rows), problem.spent(rows)], axis=1)
    if claimed.shape != true.shape or not np.allclose(claimed, true, rtol=1e-9, atol=1e-12):
        yield "claims a front whose errors or costs are not those of its choices"
    if not nondominated(true).all():
        yield f"claims a front, but {int((~nondominated(true)).sum())} of its points are dominated"
    if not np.all(problem.is_feasible(rows)):
        yield "claims a front with points above the budget"


def solution_of(problem: _One, told: Mapping[str, Any]) -> Any:
    """The solution that a result file tells, checked against the problem."""
    kept, n = told.get("solution"), told.get("n")
    if kept is None or n != problem.n:
        got = f"none (status {told.get('status')})" if kept is None else f"one of {n}"
        raise InvalidProblem(f"expected a solution of n = {problem.n} units, got {got}")
    if isinstance(problem, PartialTransport):
        return problem.checked("solution", _plans.unlisted(kept))
    if isinstance(problem, (LevelChoice, Clustering)):
        return problem.checked("solution", kept)
    if not all(isinstance(i, int) and 0 <= i < problem.n for i in kept):
        raise InvalidProblem(f"solution: expected indices from 0 to {problem.n - 1}")
    solution = np.zeros(problem.n, dtype=bool)
    solution[kept] = True
    return solution


def _faults(problem: _One, told: Mapping[str, Any], solution: Any, objective: float, feasible: bool) -> Iterator[str]:
    """Each thing that is not as claimed, in a few words."""
    slack, turned = rounding(problem, objective), -1.0 if problem.meta.get("sense") == "maximise" else 1.0
    claims = {"objective": told.get("objective"), "native_objective": told.get("native_objective", turned * objective)}
    for (name, claimed), true in zip(claims.items(), (objective, turned * objective), strict=True):
        if not _is_number(claimed) or not abs(claimed - true) <= slack:
            yield f"claims {name} {_shown(claimed)}, recomputed {true:.12g}"
    if told.get("kept") not in (None, int(solution.sum())):
        yield f"claims {told['kept']} kept, its solution keeps {int(solution.sum())}"
    if told.get("kept_units") is not None and _units_of(told["kept_units"]) != _units_kept(problem, solution):
        yield "claims kept_units that are not those of its solution"
    if told.get("feasible") != feasible:
        said = "feasible" if told.get("feasible") else "infeasible"
        yield f"claims to be {said}, violation {problem.violation(solution):g}"
    yield from _bound_faults(problem, told, objective, feasible, slack)


def _units_of(kept_units: Any) -> set[tuple[str, int]] | None:
    """(layer, channel) of each claimed unit; None where the claim is of another form."""
    try:
        return {(layer, channel) for layer, channels in kept_units.items() for channel in channels}
    except (AttributeError, TypeError):
        return None


def _units_kept(problem: _One, solution: Any) -> set[Any] | None:
    if isinstance(problem, (PartialTransport, Clustering)):
        return None
    if isinstance(problem, LevelChoice):
        return _units_of(units_of_levels(problem.meta.get("levels", ()), solution))
    labels = problem.labels or ()
    return {tuple(label) for label, stays in zip(labels, solution, strict=False) if stays and isinstance(label, tuple)}


def _bound_faults(
    problem: _One, told: Mapping[str, Any], objective: float, feasible: bool, slack: float
) -> Iterator[str]:
    bound, best = told.get("bound"), problem.meta.get("best_known")
    if bound is not None and not _is_number(bound):
        yield f"claims bound {_shown(bound)}, which is no number"
    elif bound is not None and feasible and bound > objective + slack:
        yield f"claims bound {bound:.12g}, above its objective {objective:.12g}"
    elif bound is not None and best is not None and bound > best + slack:
        yield f"claims bound {bound:.12g}, above the best known value {best:.12g}"
    elif bound is not None and isinstance(problem, PartialTransport):
        proved = _proved_by_duals(problem, told)
        if proved is not None and bound > proved + slack:
            yield f"claims bound {bound:.12g}, its duals prove {proved:.12g}"
    if told.get("status") != "OPTIMAL":
        return
    if not feasible:
        yield "claims to be OPTIMAL, but is infeasible"
    elif best is not None and objective > best + slack + tolerance(best, _typical(problem)):
        yield f"claims to be OPTIMAL, the best known value {best:.12g} is lower"


def _proved_by_duals(problem: PartialTransport, told: Mapping[str, Any]) -> float | None:
    """What the duals that a result tells prove, None where it tells none."""
    details = told.get("details")
    duals = details.get("duals") if isinstance(details, Mapping) else None
    if duals is None:
        return None
    try:
        return _plans.repaired(problem, duals["u"], duals["v"]).bound
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidProblem(
            f"details: expected duals u ({problem.n},) and v ({problem.m},), got others ({error})"
        ) from None


def _typical(problem: _One) -> float:
    return typical_bias(problem) if isinstance(problem, BinaryQuadratic) else 0.0


def _standing(problem: _One, told: Mapping[str, Any], objective: float) -> Iterator[str]:
    """Where a claim that holds stands among what is known of the instance."""
    best, known, slack = problem.meta.get("best_known"), problem.meta.get("bound"), rounding(problem, objective)
    if best is not None:
        proved = ", which is proved optimal" if problem.meta.get("proved") else ""
        if abs(objective - best) <= slack:
            yield f"matches best known {best:.12g}{proved}"
        elif objective > best:
            yield f"{objective - best:.2g} above best known {best:.12g}{_percent(objective - best, best)}{proved}"
        else:
            yield f"{best - objective:.2g} better than best known {best:.12g}{_percent(best - objective, best)}"
    if known is not None and objective < known - slack:
        yield f"below the recorded bound {known:.12g}: that bound is wrong"
    elif known is not None and objective > known + slack:
        yield f"{objective - known:.2g} above the recorded bound {known:.12g}{_percent(objective - known, objective)}"
    if told.get("bound") is None:
        return
    if isinstance(problem, PartialTransport) and _proved_by_duals(problem, told) is not None:
        yield f"bound {told['bound']:.12g}: proved again by its duals"
    else:
        yield f"claims bound {told['bound']:.12g}: not above what is known, not proved again here"


def rounding(problem: _One, objective: float) -> float:
    """How far two honest computations of the objective may differ."""
    if isinstance(problem, PartialTransport):
        return 1e-9 * problem.scale
    if isinstance(problem, Clustering):
        # no partition has more inertia than all points together
        return 1e-9 * problem.value(np.zeros(problem.n, dtype=np.int64))
    if isinstance(problem, LevelChoice):
        return 1e-9 * sum(float(np.abs(error).max()) for error in problem.error)
    if isinstance(problem, (SparseRegression, SubsetRegression)):
        return 1e-9 * (abs(problem.offset) + abs(problem.offset - problem.least))
    size = abs(problem.offset) + float(np.abs(problem.linear).sum()) + problem.couplings.magnitude()
    return 1e-9 * abs(objective) + 64 * float(np.finfo(np.float64).eps) * size


def _percent(difference: float, reference: float) -> str:
    return f" ({100 * difference / abs(reference):.2g} %)" if reference else ""


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{value:.12g}" if _is_number(value) else str(value)
