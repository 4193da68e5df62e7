"""A selection searched by evaluating the network itself, and held against data that the search never saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from prunesolve.problems import BinaryQuadratic, BlackBox, Group
from prunesolve.solvers import Result, Solver

from .evaluate import Evaluator


def evaluates(solver: Solver) -> bool:
    """Whether a solver searches by evaluations of a black box."""
    kinds = solver.accepts if isinstance(solver.accepts, tuple) else (solver.accepts,)
    return BlackBox in kinds


def refined(
    model: nn.Module,
    data: Any,
    groups: Sequence[Group],
    problem: BinaryQuadratic,
    solver: Solver,
    *,
    seed: int = 0,
    time_limit: float | None = None,
    **options: Any,
) -> Result:
    """Solve `problem` by evaluating the masked network on half of the data; the other half has the last word.

    Parameters
    ----------
    model : Module
        The dense network; it is not changed.
    data : see `Batches`
        Batches with targets.
    groups : sequence of Group
        The units of the problem.
    problem : BinaryQuadratic
        The constraints, and the surrogate that the search ranks by.
    solver : Solver
        Takes black boxes: `Refine`, `SwapSearch`, `TensorTrain`.
    seed, time_limit
        Of the search.
    **options
        Of the `Evaluator`.

    Returns
    -------
    Result
        Objective, trace and evaluations are the black box's. `details["refinement"]` gives the objective on the search
        half and on the guard half, before and after; where the guard half is worse off than before, the unrefined
        selection is returned and `details["refinement"]["returned"]` says so.
    """
    evaluator = Evaluator(model, data, groups, **options)
    result = solver.solve(evaluator.black_box(problem), seed=seed, time_limit=time_limit)
    return _guarded(result, evaluator) if result.feasible and "unrefined" in result.details else result


def _guarded(result: Result, evaluator: Evaluator) -> Result:
    """The refined selection, or the one before where the guard half says that it was better."""
    before = np.zeros(len(result.solution), dtype=bool)
    before[result.details["unrefined"]["kept"]] = True
    pair = (before, result.solution)
    scores = {half: [_finite(evaluator.score(keep, half)) for keep in pair] for half in ("search", "guard")}
    was, now = (score["loss"] for score in scores["guard"])
    worse = now is None or (was is not None and now > was)
    told = {
        "halves": scores,
        "evaluations": result.evaluations,
        "seconds": result.seconds,
        "returned": "unrefined" if worse else "refined",
    }
    details = {**result.details, "refinement": told}
    if not worse:
        return replace(result, details=details)
    before.setflags(write=False)
    return replace(result, solution=before, objective=result.details["unrefined"]["objective"], details=details)


def _finite(score: dict[str, Any]) -> dict[str, Any]:
    """The figures with None for what JSON cannot hold."""
    return {name: None if value != value or value in (math.inf, -math.inf) else value for name, value in score.items()}
