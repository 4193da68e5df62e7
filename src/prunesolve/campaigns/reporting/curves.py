"""Curves of solvers: shares, and gaps over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prunesolve.campaigns.comparison import Anytime, Floats, Profile, quantile
from prunesolve.report import Curve, Figure, lines

from .view import View

FLOOR = 1e-6  # gaps below this are drawn here, as a logarithm has no zero
POINTS = 200  # of a drawn profile
MARKS = 8  # markers along a curve
LABEL = 40  # characters of a solver in a legend


def profile_curves(view: View, drawn: Profile) -> list[Curve]:
    """The curves, at no more points than an eye can tell apart, held a little past the last."""
    steps = np.unique(np.linspace(0, len(drawn.x) - 1, POINTS).round().astype(int))
    x = np.append(drawn.x[steps], max(drawn.x[-1] * 1.2, drawn.x[0] * 2))
    every = max(1, len(x) // MARKS)
    return [
        Curve(_label(view, solver), x, np.append(share[steps], share[-1]), view.styles[solver], every=every)
        for solver, share in drawn.shares.items()
    ]


def anytime_curves(view: View, runs: Anytime, places: Mapping[str, Any], factor: float = 100.0) -> list[Curve]:
    """The median gap of each solver's runs at these places, without solvers half of whose runs found nothing."""
    drawn = (_anytime_curve(view, runs, solver, rows, factor) for solver, rows in places.items() if len(rows))
    return [curve for curve in drawn if curve is not None]


def _anytime_curve(view: View, runs: Anytime, solver: str, rows: Any, factor: float) -> Curve | None:
    middle, low, high = (_drawable(quantile(runs.gap[rows], q), factor) for q in (0.5, 0.25, 0.75))
    there = np.isfinite(middle)
    if not there.any():
        return None
    banded = len(rows) > 2
    return Curve(
        _label(view, solver),
        runs.grid[there],
        middle[there],
        view.styles[solver],
        every=max(1, int(there.sum()) // MARKS),
        low=low[there] if banded else None,
        high=high[there] if banded else None,
    )


def _drawable(gap: Floats, factor: float) -> Floats:
    return np.where(np.isfinite(gap), factor * np.maximum(gap, FLOOR), np.nan)


def _label(view: View, solver: str) -> str:
    """A solver in a legend: not too long, still its own; matplotlib hides what begins with an underscore."""
    if len(solver) > LABEL:
        return f"{view.styles[solver] + 1}: {solver[: LABEL - 12]}…{solver[-8:]}"
    return f" {solver}" if solver.startswith("_") else solver


def anytime_figure(runs: Anytime, panels: Mapping[str, Sequence[Curve]], title: str, y: str = "gap / %") -> Figure:
    """Gaps along what runs are compared along, both logarithmic."""
    return lines(panels, title=title, x=runs.axis, y=y, log_x=True, log_y=True, steps=True, columns=3)


def bare(figure: Figure) -> Figure:
    """Without the heading that its section has."""
    return Figure("", figure.svg, figure.note)
