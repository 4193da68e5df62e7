"""The main job on real data: prune a trained network at four budgets, by six methods, through several solvers.

Statistics are measured once, on the same calibration data for every method; each method encodes them, solvers solve
what was encoded, and the networks that come out are judged on test data no method has seen.
"""

from __future__ import annotations

import copy
import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prunesolve import solvers
from prunesolve.formulations import Formulation, HybridQubo, L1Qubo, Reconstruction
from prunesolve.problems import BinaryQuadratic, Selection, Statistics
from prunesolve.problems._npz import whole_file
from prunesolve.solvers import Result

from . import report

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from .demo_networks import DemoTask

REMOVED = (0.20, 0.36, 0.50, 0.70)
SEARCHES = ("swap-annealing", "simulated-annealing", "swap-tabu")
COMPARED = ("swap-annealing", "simulated-annealing", "swap-tabu", "exact")

Progress = Callable[[int, int, str], Any]


@dataclass(frozen=True)
class Method:
    """A way to choose: what is minimised (None: nothing, units are drawn), and by which solvers."""

    name: str
    formulation: Formulation | None
    solvers: tuple[str, ...] = ("greedy",)

    def problem(self, stats: Statistics, removed: float, seed: int) -> BinaryQuadratic:
        """The problem of removing that share of the units."""
        keep = 1.0 - removed
        if self.formulation is not None:
            return self.formulation.encode(stats, keep=keep)
        # drawn numbers in the place of norms: the same budget and least number per layer as everybody else
        drawn = replace(stats, saliency={"l1": np.random.default_rng(seed).random(stats.n)})
        return L1Qubo(beta=0.0).encode(drawn, keep=keep)


METHODS = (
    Method("random", None),
    Method("L1", L1Qubo(beta=0.0)),
    Method("greedy Taylor", HybridQubo(alpha=1.0, beta=0.0)),
    Method("l1-qubo", L1Qubo(), SEARCHES),
    Method("hybrid-qubo", HybridQubo(), SEARCHES),
    Method("reconstruction", Reconstruction(), SEARCHES),
)


class Row(NamedTuple):
    """One selection: who made it, what it costs and what the network is worth with it."""

    method: str
    solver: str
    removed: float
    dense: float
    masked: float
    refitted: float
    kept: int
    params: float
    macs: float
    objective: float | None
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo found; `report` and `table` are the files it wrote."""

    task: DemoTask
    rows: tuple[Row, ...]
    dense: float
    units: int
    params: float
    macs: float
    difference: float
    counts: Mapping[float, Mapping[str, Mapping[str, tuple[int, int]]]]
    anytime: Mapping[str, Result]
    seconds: Mapping[str, float]
    report: Path
    table: Path


def run_demo(
    task: str = "classify",
    out: str | Path = "demo-out",
    *,
    seed: int = 0,
    methods: Sequence[Method] = METHODS,
    removed: Sequence[float] = REMOVED,
    seconds: float = 2.0,
    progress: Progress | None = None,
) -> DemoResult:
    """Prune the task's network by every method at every budget and write report.html and table.csv.

    Parameters
    ----------
    task : {"classify", "denoise"}
        Handwritten digits or noisy photographs.
    out : path
        Folder of the two files.
    seed : int
        Seed of every solver and of the units drawn at random.
    methods : sequence of Method
        Who chooses.
    removed : sequence of float
        Shares of the units that go.
    seconds : float
        Time of each solver in the anytime comparison; nothing else here depends on time.
    progress : callable (done, total, what), optional
        Told before every selection.

    Returns
    -------
    DemoResult
        The table's rows and what the report shows.
    """
    from .demo_networks import demo_task, load_network

    began = time.perf_counter()
    chosen = demo_task(task)
    bench = _Bench(load_network(task), chosen.data())
    rows: list[Row] = []
    counts: dict[float, dict[str, dict[str, tuple[int, int]]]] = {share: {} for share in removed}
    jobs = [(share, method, solver) for share in removed for method in methods for solver in method.solvers]
    for done, (share, method, solver) in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs), f"{method.name}, {solver}, {100 * share:.0f} % removed")
        row, selection = bench.row(method, solver, share, seed)
        rows.append(row)
        counts[share].setdefault(method.name, selection.counts)
