"""What gap each run had when."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .quality import Best, gap
from .rows import Floats, Row, solved

AXES = {"seconds": 0, "evaluations": 1}  # where a trace's row has them
_LEAST = {"seconds": 1e-4, "evaluations": 1.0}  # below this a clock tells nothing, and a logarithm needs something


def axis_of(rows: Iterable[Row]) -> str:
    """What runs are compared along: evaluations where they alone are limited, as seconds would not repeat."""
    rows = list(rows)
    timed = any(row["time_limit"] is not None for row in rows)
    counted = any(row["evaluation_limit"] is not None for row in rows)
    return "evaluations" if counted and not timed else "seconds"


class Descent(NamedTuple):
    """When (k,) a run improved and the gap (k,) it had from then on."""

    at: Floats
    gap: Floats


def descent(row: Row, trace: Iterable[Sequence[Any]] | None, best: float, axis: str = "seconds") -> Descent:
    """The gaps a run went through; one without a trace had its objective at its end.

    Parameters
    ----------
    row : row
        Of the run.
    trace : iterable of [seconds, evaluations, objective, bound], optional
        Its improvements.
    best : float
        The best known objective.
    axis : str
        "seconds" or "evaluations".

    Returns
    -------
    Descent

    Examples
    --------
    >>> row = {"feasible": True, "objective": -9.0, "seconds": 2.0}
    >>> [part.tolist() for part in descent(row, [[0.5, 10, -5.0, None]], best=-10.0)]
    [[0.5, 2.0], [0.5, 0.1]]
    """
    column = AXES[axis]
    points = [(step[column], step[2]) for step in trace or () if step[2] is not None and step[column] is not None]
    if solved(row) and row[axis] is not None:
        points.append((row[axis], row["objective"]))
    at, objective = np.array(points, dtype=np.float64).reshape(-1, 2).T
    order = np.argsort(at, kind="stable")
    return Descent(at[order], np.minimum.accumulate(np.maximum(0.0, gap(objective[order], best))))


def reached(run: Descent, target: float) -> float:
    """When the gap was first at most the target, inf where it never was."""
    within = np.flatnonzero(run.gap <= target)
    return float(run.at[within[0]]) if len(within) else math.inf


def held(run: Descent, grid: Floats) -> Floats:
    """The gap at each point of a grid, inf before the first feasible solution."""
    return np.concatenate([[math.inf], run.gap])[np.searchsorted(run.at, grid, side="right")]


class Anytime(NamedTuple):
    """The runs of a campaign over time.

    `gap` (m, g) on the `grid` (g,) along `axis`; `reached` {target: (m,)} is when the gap was first at most the target;
    both inf for never. `without` counts feasible runs that left no trace.
    """

    axis: str
    grid: Floats
    gap: Floats
    reached: dict[float, Floats]
    without: int


def anytime(
    rows: Sequence[Row],
    trace_of: Callable[[Row], Any],
    known: Mapping[str, Best],
    targets: Sequence[float],
    points: int = 60,
) -> Anytime | None:
    """Every run reduced to a fixed grid, its trace read, used and let go before the next.

    Parameters
    ----------
    rows : sequence of m rows
        Of all solvers.
    trace_of : callable
        The trace of a row's run, None where there is none.
    known : {instance: Best}
        Of `best_known`.
    targets : sequence of float
        Relative gaps.
    points : int
        Size of the grid, which spans five decades up to the longest run.

    Returns
    -------
    Anytime or None
        None where no run with a feasible result says how long it took.
    """
    axis = axis_of(rows)
    ends = [row[axis] for row in rows if solved(row) and row[axis]]
    if not ends:
        return None
    least = _LEAST[axis]
    grid = _grid(max(ends), least, points)
    paths, times, without = np.full((len(rows), points), math.inf), np.full((len(targets), len(rows)), math.inf), 0
    for r, row in enumerate(rows):
        if not solved(row):
            continue
        trace = trace_of(row)
        without += not trace
        run = descent(row, trace, known[row["instance"]].value, axis)
        paths[r] = held(run, grid)
        times[:, r] = [max(least, reached(run, target)) for target in targets]
    return Anytime(axis, grid, paths, dict(zip(targets, times, strict=True)), without)


def _grid(last: float, least: float, points: int) -> Floats:
    grid = np.geomspace(max(least, last * 1e-5), max(last, 2 * least), points)
    # the logarithm and back may miss the end of the longest run by a rounding
    grid[-1] = max(grid[-1], last)
    return grid
