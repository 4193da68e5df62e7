r"""The front of a trained network: its own loss on data against what it costs.

minimise    (loss(x), c_1(x), ..., c_m(x))        x the units kept; costs exact, the loss by running the network

One half of the data is searched on, the other half says what of it is overfitting.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from prunesolve.formulations import MultiObjectiveSelection
from prunesolve.formulations.removal import spread
from prunesolve.problems import (
    Composite,
    Group,
    InvalidProblem,
    LevelChoice,
    MultiObjective,
    Selection,
    Statistics,
)
from prunesolve.problems._arrays import Floats
from prunesolve.solvers import DynamicProgramming, Incumbent, Solver

from .activity import activity
from .data import Batches
from .evaluate import Evaluator, Loss, _halves
from .levels import Levels, _front
from .measure import measure
from .subnetworks import Subnetworks

MEASURED = ("loss", "metric")
_SHARES = 200  # densities that the uniform starts are taken from


@dataclass(frozen=True, eq=False)
class Search:
    """What is searched for a front, where searches begin, and what a point of it means.

    Parameters
    ----------
    problem : MultiObjective or Composite
        Error first, then the costs.
    starts : {kind: points (p, n)}
        What the search begins with and is compared to.
    statistics : Statistics
        Of the units that are decided on.
    selection : callable
        The units that a point keeps.
    dense : {cost: float}
        What the dense network costs.
    guard : callable or None
        The error of a point on data that the search never saw; None for an error in closed form.
    """

    problem: Any
    starts: Mapping[str, Any]
    statistics: Statistics
    selection: Callable[[Any], Selection]
    dense: Mapping[str, float]
    guard: Callable[[Any], float] | None = None

    @property
    def joint(self) -> MultiObjective:
        """The problem whose points make up the front."""
        found: MultiObjective = self.problem.joint if isinstance(self.problem, Composite) else self.problem
        return found


@dataclass(frozen=True)
class Measured:
    """How the error of a pruned network is measured: the options of the `Evaluator`."""

    objective: str = "loss"
    refit: bool = True
    loss: Loss | None = None
    metric: Loss | None = None
    dtype: torch.dtype | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of `Evaluator`, but for the refit."""
        names = ("objective", "loss", "metric", "dtype")
        return {name: getattr(self, name) for name in names}

    def on_guard(self, evaluator: Evaluator, keep: Any) -> float:
        """The error of a selection on the half that the search never saw."""
        score = evaluator.score(keep, "guard")
        turned = self.objective == "metric" and score["metric_name"] != "loss"
        return -float(score["metric"]) if turned else float(score["loss"])


def over_units(
    model: nn.Module,
    data: Any,
    stats: Statistics,
    formulation: MultiObjectiveSelection,
    objectives: Sequence[str],
    measured: Measured,
    *,
    limits: Any = None,
    with_activity: bool = False,
    more_starts: Mapping[str, Any] | None = None,
) -> Search:
    r"""One bit a unit, valued by the masked network after a quick refit.

    Parameters
    ----------
    model : Module
        The dense network; it is not changed.
    data : see `Batches`
        Batches with targets, where the error is measured.
    stats : Statistics
        The units and what they cost.
    formulation : MultiObjectiveSelection
        Ranks the units for the starts; its value is the error where none is measured.
    objectives : sequence of str
        "loss", "metric" (which enters as minus it) or the name of the formulation's error; then its costs.
    measured : Measured
        How.
    limits : (m,) float, optional
        The most that each objective may be.
    with_activity : bool
        Whether to measure how much each sample switches each unit on, for informed mutations.
    more_starts : {kind: (p, n) bool}, optional
        Further points to begin with.

    Returns
    -------
    Search
    """
    closed = formulation.encode(stats)
    starts = formulation.starting_points(stats, closed) | dict(more_starts or {})
    more: dict[str, Any] = {"limits": limits, "starts": _distinct(starts.values())}
    if with_activity:
        more["activity"] = activity(model, data, stats.groups)
    dense = {name: stats.total(name) for name in objectives[1:]}

    def selection(x: Any) -> Selection:
        return formulation.decode(stats, x)

    if objectives[0] not in MEASURED:
        return Search(closed.replace(**more), starts, stats, selection, dense)
    evaluator = Evaluator(model, data, stats.groups, refit=measured.refit, **measured.options)
    assert closed.parts is not None
    costs = closed.parts[1:]

    def evaluate(x: Any) -> Floats:
        return np.stack([evaluator.evaluate(x), *(cost.value(x) for cost in costs)], axis=1)

    problem = MultiObjective(
        closed.space,
        evaluate,
        objectives,
        groups=closed.groups,
        labels=closed.labels,
        meta=dict(closed.meta) | {"objectives": list(objectives), "refit": measured.refit},
        **more,
    )
    return Search(problem, starts, stats, selection, dense, partial(measured.on_guard, evaluator))


def over_levels(
    model: nn.Module,
    data: Any,
    stats: Statistics,
    objectives: Sequence[str],
    measured: Measured,
    *,
    starts: int,
    limits: Any = None,
    progress: bool | None = None,
) -> Search:
    """One level a layer, valued by the network that the level database refits.

    The database sees the search half alone. A search begins with the greedy removal path over levels, the front of
    the sum of errors that `DynamicProgramming` gives and levels of uniform density.

    Parameters
    ----------
    model, data, stats, objectives, measured, limits
        See `over_units`; a cost may also be "latency".
    starts : int
        Most points of each kind.
    progress : bool, optional
        See `Levels.build`.

    Returns
    -------
    Search
    """
    batches = Batches(data)
    levels = Levels.build(model, search_half(batches), stats.groups, resources=objectives[1:], progress=progress)
    choices = [levels.choice(resource) for resource in objectives[1:]]
    if limits is not None and np.isfinite(limits[1]):
        # no level tuple above the limit is ever tried
        choices[0] = choices[0].replace(budget=min(float(limits[1]), choices[0].budget))
    evaluator = levels.evaluator(batches, guard=True, **measured.options)

    def evaluate(x: Any) -> Floats:
        return np.stack([evaluator.evaluate(levels.bits(x)), *(c.spent(x) for c in choices)], axis=1)

    def guard(x: Any) -> float:
        return measured.on_guard(evaluator, levels.bits(x))

    front = _front(DynamicProgramming(front=True), choices[0], starts)
    kinds = {
        "removal path": level_path(choices[0], starts),
        "dynamic programming": np.array(front),
        "uniform density": _uniform(levels, choices[0], starts),
    }
    # measured times do not always fall with the width
    kinds = {kind: rows[choices[0].is_feasible(rows)] for kind, rows in kinds.items()}
    problem = MultiObjective(
        choices[0],
        evaluate,
        objectives,
        starts=_distinct(kinds.values()),
        groups=np.arange(levels.n),
        labels=levels.labels,
        limits=limits,
        meta=dict(choices[0].meta) | {"objectives": list(objectives)},
    )
    dense = {resource: levels.total(resource) for resource in objectives[1:]}
    return Search(problem, kinds, stats, levels.selection, dense, guard)


def over_parts(
    model: nn.Module,
    data: Any,
    groups: Sequence[Group],
    objectives: Sequence[str],
    measured: Measured,
    *,
    starts: int,
    limits: Any = None,
    boundaries: Sequence[str] | None = None,
) -> Search:
    """A problem for each sub-network, split at stage boundaries, and the whole that they are joined in.

    Units that cross a boundary stay.

    Parameters
    ----------
    model, data, objectives, measured, limits
        See `over_units`; the loss against one cost.
    groups : sequence of Group
        The units.
    starts : int
        Points of the removal path that each problem begins with.
    boundaries : sequence of str, optional
        Modules to split behind; default where the features change in size or width.

    Returns
    -------
    Search

    Raises
    ------
    InvalidProblem
        If there is more than one cost, the error is not the loss, or the network is in one part.
    """
    if objectives[0] != "loss" or len(objectives) != 2:
        raise InvalidProblem(f"objectives: sub-networks take the loss and one cost, got {', '.join(objectives)}")
    batches = Batches(data)
    split = Subnetworks(
        model,
        search_half(batches),
        groups,
        boundaries,
        resource=objectives[1],
        loss=measured.loss,
        refit=measured.refit,
        dtype=measured.dtype,
    )
    stats = measure(model, batches, groups=split.groups, loss=measured.loss, progress=False)
    composite = split.composite(starts=starts, limits=limits)
    evaluator = Evaluator(model, batches, split.groups, refit=measured.refit, **measured.options)

    def selection(x: Any) -> Selection:
        return Selection(stats.groups, x)

    kinds = {"removal path": composite.joint.starts}
    dense = {objectives[1]: stats.total(objectives[1])}
    return Search(composite, kinds, stats, selection, dense, partial(measured.on_guard, evaluator))


def level_path(choice: LevelChoice, count: int) -> Any:
    """(at most `count`, L) levels from all to the fewest, the one next that raises the error least for what it saves.

    Examples
    --------
    >>> level_path(LevelChoice([[3.0, 1.0, 0.0], [4.0, 0.0]], [[0, 1, 2], [0, 1]], 3.0), 9).tolist()
    [[2, 1], [1, 1], [0, 1], [0, 0]]
    """
    now = choice.sizes - 1
    path = [now]
    while now.any():
        below = now - np.eye(choice.n, dtype=np.int64)[now > 0]
        rise = choice.value(below) - choice.value(now)
        saved = np.maximum(choice.spent(now) - choice.spent(below), 1e-12 * max(1.0, abs(choice.spent(now))))
        now = below[int(np.argmin(rise / saved))]
        path.append(now)
    rows = np.array(path)
    within = rows[choice.is_feasible(rows)]
    return spread(within, choice.spent(within), count)


def _uniform(levels: Levels, choice: LevelChoice, count: int) -> Any:
    """(at most `count`, L) levels of about the same share of every layer, within the budget."""
    rows = np.unique([levels.uniform(share) for share in np.linspace(0.0, 1.0, _SHARES)[1:]], axis=0)
    within = rows[choice.is_feasible(rows)]
    return spread(within, choice.spent(within), count)


def _distinct(kinds: Iterable[Any]) -> Any:
    """(p, n) the points of all kinds, each once, those of many units first."""
    return np.unique(np.concatenate([np.asarray(rows) for rows in kinds]), axis=0)[::-1]


def search_half(data: Any) -> list[Any]:
    """The batches that an `Evaluator` with a guard half searches on."""
    return _halves(data, guard=True)["search"]


def wants_activity(solver: Solver) -> bool:
    """Whether a solver mutates by what the units do."""
    return getattr(solver, "mutation", None) in ("variance", "conjunctive")


@contextmanager
def followed(problem: Any, progress: bool | None) -> Iterator[tuple[Any, Callable[[Incumbent], None] | None]]:
    """The problem, and a callback, that tell on stderr how far a search is."""
    # what the parts of a composite evaluate in other processes is not seen here
    if isinstance(problem, Composite) or not (sys.stderr.isatty() if progress is None else progress):
        yield problem, None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    words = TextColumn("searching: {task.completed:.0f} evaluations, hypervolume {task.fields[best]}")
    columns = (SpinnerColumn(), words, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, force_terminal=progress), transient=True) as bar:
        task = bar.add_task("", total=None, best="none yet")

        def evaluate(x: Any) -> Any:
            values = problem.evaluate(x)
            bar.advance(task, len(x))
            return values

        def improved(incumbent: Incumbent) -> None:
            bar.update(task, best=f"{-incumbent.objective:.5g}")

        yield problem.replace(evaluate=evaluate), improved
