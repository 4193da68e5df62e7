"""Plots of benchmarks/solvers.py: the median gap against time, and the share of runs within a gap or a time."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FLOOR = 1e-7  # relative gap drawn as "best known"
# Okabe and Ito's colours, told apart by colour-blind readers too; ours are solid, peers dashed with markers
STYLES = {
    "auto": ("#000000", "-", ""),
    "swap-annealing": ("#0072B2", "-", ""),
    "swap-tabu": ("#D55E00", "-", ""),
    "block-fronts": ("#009E73", "-", ""),
    "exact": ("#E69F00", "-", ""),
    "dwave-sa": ("#56B4E9", "--", "o"),
    "dwave-tabu": ("#CC79A7", "--", "s"),
    "dwave-descent": ("#999999", "--", "v"),
    "openjij-sa": ("#009E73", "--", "D"),
    "gurobi": ("#E69F00", ":", "^"),
    "scip": ("#0072B2", ":", "<"),
    "highs": ("#D55E00", ":", ">"),
}
Steps = list[tuple[float, float]]  # seconds, relative gap
Falls = dict[tuple[str, str], dict[tuple[str, int], Steps]]  # (group, solver): (instance, seed): how the gap fell


def anytime(falls: Falls, path: Path) -> None:
    """One panel a group: the median over instances and seeds of the gap reached by then."""
    groups = list(dict.fromkeys(group for group, _ in falls))
    figure, axes = _panels(len(groups))
    for axis, group in zip(axes, groups, strict=True):
        for solver, runs in ((s, r) for (g, s), r in falls.items() if g == group):
            times = np.unique([t for steps in runs.values() for t, _ in steps])
            gaps = np.array([median(_reached(steps, t) for steps in runs.values()) for t in times])
            seen = np.isfinite(gaps)
            _step(axis, solver, times[seen], 100 * np.maximum(gaps[seen], FLOOR))
        axis.axhline(100 * FLOOR, color="0.8", linewidth=6, zorder=0)
        axis.annotate("best known", (0.02, 100 * FLOOR), xycoords=("axes fraction", "data"), va="center", color="0.3")
        axis.set(title=group, xscale="log", yscale="log")
        axis.set(xlabel="seconds, model building included", ylabel="median gap to the best known, %")
    _finish(figure, axes, "Anytime curves; peers: calls of several lengths, the best of three penalties", path)


def profiles(falls: Falls, target: float, path: Path) -> None:
    """The share of runs within a gap in the end, and Dolan and More's profile of the time to the target."""
    figure, axes = _panels(2)
    by_solver: dict[str, dict[tuple[str, int], Steps]] = {}
    for (_, solver), runs in falls.items():
        by_solver[solver] = by_solver.get(solver, {}) | runs
    shares: list[dict[str, Any]] = [{}, {}]
    for solver, runs in by_solver.items():
        gaps = [100 * max(_reached(steps, math.inf), FLOOR) for steps in runs.values()]
        times = {key: _time_to(steps, target) for key, steps in runs.items()}
        fastest = {key: min(_time_to(r[key], target) for r in by_solver.values() if key in r) for key in runs}
        ratios = [times[key] / fastest[key] for key in runs if math.isfinite(times[key])]
        for panel, reached in zip(shares, (gaps, ratios), strict=True):
            panel[solver] = (np.sort([x for x in reached if math.isfinite(x)]), len(runs))
    for axis, panel in zip(axes, shares, strict=True):
        # every line runs from nothing reached to the right edge of the panel
        edge = 1.5 * max((x[-1] for x, _ in panel.values() if len(x)), default=1.0)
        for solver, (x, count) in panel.items():
            _step(axis, solver, [*x[:1], *x, edge], np.array([0, *range(1, len(x) + 1), len(x)]) / count)
    axes[0].set(
        title="Gap at the longest time", xlabel="gap to the best known, %", ylabel="share of runs within the gap"
    )
    axes[1].set(
        title=f"Time to within {100 * target:g} % of the best known", xlabel="time / that of the fastest solver"
    )
    axes[1].set(ylabel="share of runs there by then")
    for axis in axes:
        axis.set(xscale="log", ylim=(0, 1.03))
    _finish(figure, axes, "Performance profiles over the instances and seeds that each solver took", path)


def _panels(count: int) -> tuple[Any, list[Any]]:
    columns = min(3, count)
    rows = math.ceil(count / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 4 * rows + 1), squeeze=False)
    for spare in axes.flat[count:]:
        spare.set_visible(False)
    return figure, list(axes.flat[:count])


def _step(axis: Any, solver: str, x: Any, y: Any) -> None:
    colour, line, marker = STYLES.get(solver, ("0.5", "-.", ""))
    if len(x):
        axis.step(x, y, where="post", color=colour, linestyle=line, marker=marker, markersize=4, label=solver)


def _finish(figure: Any, axes: list[Any], title: str, path: Path) -> None:
    entries = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    for axis in axes:
        axis.grid(alpha=0.25)
    figure.suptitle(title)
    figure.legend(entries.values(), entries.keys(), loc="lower center", ncols=6, frameon=False)
    figure.tight_layout(rect=(0, 0.6 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _reached(steps: Steps, by: float) -> float:
    return min((gap for t, gap in steps if t <= by), default=math.inf)


def _time_to(steps: Steps, target: float) -> float:
    return min((t for t, gap in steps if gap <= target), default=math.inf)
