"""A selection searched by evaluating the network itself, and held against data that the search never saw."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from prunesolve.problems import BinaryQuadratic, BlackBox, Group
from prunesolve.solvers import Incumbent, Result, Solver

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
    progress: bool | None = None,
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
    progress : bool, optional
        A line on stderr that counts evaluations; default where stderr is a terminal.
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
    with _followed(evaluator.black_box(problem), progress) as (box, improved):
        result = solver.solve(box, seed=seed, time_limit=time_limit, callback=improved)
    return _guarded(result, evaluator) if result.feasible and "unrefined" in result.details else result


@contextmanager
def _followed(box: BlackBox, progress: bool | None) -> Iterator[tuple[BlackBox, Callable[[Incumbent], None] | None]]:
    """The black box, and a callback, that tell on stderr how far a search is."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield box, None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    words = TextColumn("refining: {task.completed:.0f} evaluations, objective {task.fields[best]}")
    columns = (SpinnerColumn(), words, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, force_terminal=progress), transient=True) as bar:
        task = bar.add_task("", total=None, best="none yet")

        def evaluate(x: Any, batch: int) -> Any:
            values = box.evaluate(x, batch)
            bar.advance(task, len(x) * float(box.shares[batch]))
            return values

        def improved(incumbent: Incumbent) -> None:
            bar.update(task, best=f"{incumbent.objective:.5g}")

        yield box.replace(evaluate=evaluate), improved


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
