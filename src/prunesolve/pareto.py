"""The whole trade-off of a network in one call: a front, its points as masks and smaller models, and its report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prunesolve.formulations.budgets import check_asked, spending_limit, units_to_keep
from prunesolve.problems import (
    BinaryQuadratic,
    Cardinality,
    InvalidProblem,
    MultiObjective,
    Selection,
    SolverFailed,
    Statistics,
    unknown,
)
from prunesolve.problems._arrays import Floats
from prunesolve.problems._npz import whole_file, whole_folder
from prunesolve.solvers import Front, Result, Solver

from .carrying_out import Work, carried_out
from .choices import AnySolver, checked_choices, solver_of
from .result_files import told_of
from .results import Clock, PruneResult
from .torch_door import find_groups, measure

if TYPE_CHECKING:
    from prunesolve.bridges.torch.trade_off import Measured, Search
    from prunesolve.formulations import MultiObjectiveSelection
    from prunesolve.report import Figure, Table

MEASURED = ("loss", "metric")
_WORDS = {"params": "parameters", "macs": "multiply-adds", "units": "units"}
_DECIDED = ("units", "levels", "both")
_SHOWN = 14  # points of the front whose counts are drawn
_LEVELS_FIRST = 0.25  # of the evaluations, where levels are decided first and units then


@dataclass(frozen=True, eq=False)
class TradeOff:
    r"""The front that `trade_off` found: no point of it is beaten in every objective by another one that was evaluated.

    Parameters
    ----------
    result : Result
        The solver's answer. Its solution is the knee, its objective minus the hypervolume.
    problem : MultiObjective
        What was searched.
    statistics : Statistics
        What was measured.
    selections : tuple of p Selection
        The units that each point keeps.
    guard : (p,) float or None
        The error of each point on the half of the data that the search never saw; NaN where it has none. None for an
        error in closed form, and where the search was interrupted.
    baselines : {kind: Front}
        What the search began with: the greedy removal path, uniform densities.
    dense : {cost: float}
        What the dense network costs.
    """

    result: Result
    problem: MultiObjective
    statistics: Statistics
    selections: tuple[Selection, ...]
    guard: Floats | None
    baselines: Mapping[str, Front]
    dense: Mapping[str, float]
    _work: Work = field(repr=False)
    _formulation: MultiObjectiveSelection = field(repr=False)
    _refit: bool = field(repr=False)

    @property
    def front(self) -> Front:
        """Solutions (p, n) and objectives (p, m), the least error first."""
        assert self.result.front is not None
        return self.result.front

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, all minimised."""
        return tuple(self.problem.objectives)

    @property
    def hypervolume(self) -> float:
        """The volume that the front dominates up to the reference."""
        return float(self.result.details["hypervolume"])

    @property
    def reference(self) -> Floats:
        """(m,) reference point of the hypervolume."""
        return np.array(self.result.details["reference"], dtype=np.float64)

    @property
    def knee(self) -> int:
        """The point farthest below the plane through the front's extremes, objectives scaled to [0, 1]."""
        return int(self.result.details["knee"])

    @property
    def costs(self) -> dict[str, Floats]:
        """{"units", "params", "macs": (p,)} what each point costs, exact."""
        stats, kept = self.statistics, [s.keep for s in self.selections]
        found = {"units": np.array([float(k.sum()) for k in kept])}
        return found | {r: np.array([stats.spent(r, k) for k in kept]) for r in stats.cost}

    @property
    def errors(self) -> Floats:
        """(p,) by which points are picked: the guard half's error, or the searched one where there is none."""
        found = self.front.objectives[:, 0]
        return found if self.guard is None else np.where(np.isnan(self.guard), math.inf, self.guard)

    def pick(
        self,
        *,
        knee: bool = False,
        index: int | None = None,
        keep: int | float | None = None,
        params: int | float | None = None,
        macs: int | float | None = None,
        refit: bool | str | None = None,
        repair: Sequence[str] | None = None,
    ) -> PruneResult:
        """One point of the front as masks and a physically smaller network, proved equal to its masked one.

        Parameters
        ----------
        knee : bool
            The knee; also where nothing is said.
        index : int
            The point of that place in the front; negative ones count from the cheap end.
        keep, params, macs : int or float, optional
            The most units, parameters, multiply-adds, as a fraction or a count: of the points within, the one with the
            least error on the guard half.
        refit : bool or "reconstruct", optional
            Fit what stays by least squares, or as `prune` does; default as the search did.
        repair : sequence of str, optional
            As in `prune`.

        Returns
        -------
        PruneResult
            Its instance holds the units kept to their number, by the formulation that ranked them.

        Raises
        ------
        InvalidProblem
            If no point is within the budgets, with the least that one costs; or if there is no such index.
        """
        asked = {n: v for n, v in (("keep", keep), ("params", params), ("macs", macs)) if v is not None}
        if (index is not None) + bool(asked) + knee > 1:
            raise InvalidProblem("pick: expected one of knee, index or budgets, got several")
        steps_after = checked_choices("channel", "auto", self._refit if refit is None else refit, repair)
        place = self.knee
        if index is not None:
            place = self._checked(index)
        elif asked:
            place = self._within(asked)
        told = asked or ({"knee": True} if index is None else {"index": place})
        selection = self.selections[place]
        problem = self._instance(selection)
        return carried_out(
            self._work,
            selection,
            problem,
            self._result(place, problem, selection),
            asked=told,
            steps_after=steps_after,
            clock=Clock(),
        )

    def _checked(self, index: Any) -> int:
        count = len(self.selections)
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or not -count <= index < count:
            raise InvalidProblem(f"index: expected a point of the front, 0 to {count - 1}, got {index!r}")
        return int(index) % count

    def _within(self, asked: Mapping[str, Any]) -> int:
        """The point of least error within the budgets."""
        check_asked(asked)
        costs, fits = self.costs, np.ones(len(self.selections), dtype=bool)
        for name, amount in asked.items():
            resource = "units" if name == "keep" else name
            stats = self.statistics
            if name == "keep":
                limit = float(units_to_keep(amount, stats.n))
            else:
                limit = spending_limit(name, amount, stats.total(name))
            within = costs[resource] <= limit + 1e-9 * max(1.0, limit)
            if not within.any():
                raise InvalidProblem(
                    f"{name}: no point of the front is within {limit:.0f} {_WORDS[resource]}; the cheapest has "
                    f"{costs[resource].min():.0f}; search longer or ask for more"
                )
            fits &= within
        if not fits.any():
            raise InvalidProblem(f"{', '.join(asked)}: no point of the front is within all of them; ask for more")
        return int(np.argmin(np.where(fits, self.errors, math.inf)))

    def _instance(self, selection: Selection) -> BinaryQuadratic:
        """The formulation's problem of keeping as many units as the selection does."""
        problem = self._formulation.lost.encode(self.statistics, keep=int(selection.keep.sum()))
        if problem.is_feasible(selection.keep):
            return problem
        # a front whose formulation lets layers die
        return problem.replace(constraints=[Cardinality(int(selection.keep.sum()))])

    def _result(self, place: int, problem: BinaryQuadratic, selection: Selection) -> Result:
        """The point as the answer to its instance, whose objective is the formulation's."""
        values = self.front.objectives[place]
        told = {
            "point": place,
            "of": len(self.selections),
            "objectives": dict(zip(self.objectives, values.tolist(), strict=True)),
            "guard": None if self.guard is None else _number(self.guard[place]),
            "hypervolume": self.hypervolume,
        }
        details: dict[str, Any] = {"front": told}
        if self.result.details.get("interrupted"):
            details["interrupted"] = True
        return replace(
            self.result,
            solution=selection.keep,
            objective=problem.value(selection.keep),
            bound=None,
            front=None,
            trace=(),
            details=details,
        )

    def __str__(self) -> str:
        head = f"{len(self.selections)} points, hypervolume {self.hypervolume:.6g}, knee {self.knee}"
        columns = ["", self.objectives[0], "guard", "units", *self.statistics.cost]
        totals = {"units": self.statistics.n} | {r: self.statistics.total(r) for r in self.statistics.cost}
        rows = []
        for place in self._shown():
            costs = [f"{100 * self.costs[r][place] / max(1.0, t):.1f} %" for r, t in totals.items()]
            guard = "" if self.guard is None else f"{self.guard[place]:.5g}"
            mark = f"{place}{' knee' if place == self.knee else ''}"
            rows.append([mark, f"{self.front.objectives[place, 0]:.5g}", guard, *costs])
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (columns, *rows)]
        return "\n".join([head, *lines])

    def _shown(self) -> list[int]:
        """Points spread evenly over the first cost, the knee among them."""
        cost = self.front.objectives[:, 1]
        wanted = np.linspace(cost.max(), cost.min(), min(_SHOWN, len(cost)))
        return sorted({self.knee, *(int(np.abs(cost - w).argmin()) for w in wanted)})

    def told(self) -> dict[str, Any]:
        """The front as JSON can hold it: what `solve --json` tells, each point's costs and units, the baselines."""
        told = told_of("front", self.problem, self.result)
        costs = self.costs
        points = [
            {
                "objectives": dict(zip(self.objectives, values.tolist(), strict=True)),
                "guard": None if self.guard is None else _number(self.guard[i]),
                "costs": {name: int(spent[i]) for name, spent in costs.items()},
                "layers": {name: list(counts) for name, counts in selection.counts.items()},
                "kept": np.flatnonzero(selection.keep).tolist(),
            }
            for i, (selection, values) in enumerate(zip(self.selections, self.front.objectives, strict=True))
        ]
        return told | {
            "units": [list(unit) for unit in self.statistics.units],
            "points": points,
            "baselines": {kind: path.objectives.tolist() for kind, path in self.baselines.items()},
            "trace": [list(row) for row in self.result.trace],
        }

    def save(self, folder: str | Path) -> None:
        """Write front.json, report.html and its figures front.svg, hypervolume.svg and counts.svg, all or nothing."""
        from prunesolve.report import write_report

        figures = self._figures()
        with whole_folder(folder) as place:
            with whole_file(place / "front.json") as file:
                file.write(json.dumps(self.told(), allow_nan=False).encode())
            for name, figure in figures.items():
                with whole_file(place / f"{name}.svg") as file:
                    file.write(figure.svg.encode())
            write_report(
                place / "report.html",
                "What a smaller network costs in error",
                [figures["front"], self._table(), figures["hypervolume"], figures["counts"]],
                lead=self._lead(),
                facts=self._facts(),
            )

    def _lead(self) -> str:
        error, *costs = self.objectives
        measured = "measured by running the network" if error in MEASURED else "in closed form"
        against = " and ".join(_WORDS.get(c, c) for c in costs)
        return (
            f"Every point is a way to prune the network that no other one beats both in {error}, {measured}, and in "
            f"{against}. Search: {self.result.solver}, {self.result.evaluations} evaluations."
        )

    def _facts(self) -> dict[str, str]:
        facts = {
            "points": f"{len(self.selections)}",
            "hypervolume": f"{self.hypervolume:.5g}",
            "evaluations": f"{self.result.evaluations:,}",
            "seconds": f"{self.result.seconds:.1f}",
        }
        if self.guard is not None:
            facts["points of the front beaten on the guard half"] = f"{self._beaten()} of {len(self.selections)}"
        return facts

    def _beaten(self) -> int:
        """Points that another point of the front beats on data that the search never saw."""
        from prunesolve.solvers._front import nondominated

        values = np.column_stack([self.errors, self.front.objectives[:, 1:]])
        return int((~nondominated(values)).sum())

    def _figures(self) -> dict[str, Figure]:
        from prunesolve.report import counts, front_figure, hypervolume_figure

        error, *resources = self.objectives
        shares = {r: 100.0 / (self.dense[r] or 1.0) for r in resources}
        kept = {self._named(i): self.selections[i].counts for i in reversed(self._shown())}
        return {
            "front": front_figure(
                self.front.objectives,
                names=(error, *(f"{_WORDS.get(r, r)} / % of the dense network" for r in resources)),
                scales=(1.0, *shares.values()),
                guard=self.guard,
                knee=self.knee,
                baselines={kind: path.objectives for kind, path in self.baselines.items()},
            ),
            "hypervolume": hypervolume_figure(
                self.result.trace,
                baselines=self._best_baseline(),
            ),
            "counts": counts(
                {f"Units kept, by {error} and {_WORDS.get(resources[0], resources[0])}": kept},
                title="Units kept per layer along the front",
                note="A row is a point of the front, the cheapest one first. In brackets the units of the layer.",
            ),
        }

    def _named(self, place: int) -> str:
        error, resource = self.objectives[:2]
        share = 100.0 * self.front.objectives[place, 1] / (self.dense[resource] or 1.0)
        return f"{share:.0f} %, {error} {self.front.objectives[place, 0]:.3g}{' (knee)' if place == self.knee else ''}"

    def _best_baseline(self) -> dict[str, float]:
        """{kind: hypervolume} of the best of what the search began with."""
        from prunesolve.solvers._front import hypervolume

        volumes = {kind: hypervolume(path.objectives, self.reference) for kind, path in self.baselines.items()}
        best = max(volumes, key=volumes.__getitem__, default=None)
        return {} if best is None else {f"{best} alone": volumes[best]}

    def _table(self) -> Table:
        from prunesolve.report import Table

        costs = self.costs
        columns = {"point": "d", self.objectives[0]: ".5g"}
        columns |= {} if self.guard is None else {f"{self.objectives[0]}, guard half": ".5g"}
        columns |= {_WORDS.get(name, name): ",.0f" for name in costs}
        rows = []
        for i, error in enumerate(self.front.objectives[:, 0].tolist()):
            guard = [] if self.guard is None else [_number(self.guard[i])]
            rows.append([i, error, *guard, *(float(spent[i]) for spent in costs.values())])
        note = f"The knee is point {self.knee}. Costs are those of the removed network, exact."
        return Table("All points of the front", columns, rows, note)


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def trade_off(
    model: Any,
    data: Any,
    *,
    objectives: Sequence[str] = ("loss", "params"),
    decide: str = "units",
    solver: AnySolver = "nsga2",
    evaluations: int = 1000,
    formulation: Any = "reconstruction",
    limits: Mapping[str, float] | None = None,
    boundaries: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    refit: bool = True,
    loss: Callable[..., Any] | None = None,
    metric: Callable[..., Any] | None = None,
    device: Any = None,
    dtype: Any = None,
    time_limit: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> TradeOff:
    r"""The front of what pruning a network loses against what it saves: measure, search, hold against other data.

    minimise    (loss(x), params(x), ...)        x_i = 1 keeps unit i

    Parameters
    ----------
    model : torch.nn.Module
        The trained network; it is not changed.
    data : iterable of (inputs, targets)
        Calibration batches or a DataLoader. The search sees one half, the front is valued on the other half too.
    objectives : sequence of str
        The error first: "loss", "metric" (which enters as minus it) or the name of a formulation, such as
        "reconstruction", whose value needs no run of the network and no targets. Then "params", "macs" or both.
    decide : {"units", "levels", "both"}
        What a point says: which units stay; how many each layer keeps; or first the latter, then the former.
    solver : str, Solver or Solver class
        One that takes several objectives; "nsga2" by its name gets a population of a twentieth of the evaluations, 20
        to 100.
    evaluations : int
        Most evaluations of the objectives.
    formulation : str or Formulation
        Ranks the units for the points that the search begins with.
    limits : {objective: most}, optional
        The most that an objective may be; a float up to 1 is a fraction of a cost's dense total.
    boundaries : sequence of str, optional
        Modules behind which "emo-dir" splits the network; default where features change in size or width.
    layers : sequence of str, optional
        Modules whose OUTPUTS may go; default all that can.
    refit : bool
        Whether each evaluation refits what is left, and each picked point is refitted.
    loss, metric : callable, optional
        As in `prune`.
    device : optional
        Where to compute.
    dtype : torch dtype, optional
        Precision of the search, such as torch.bfloat16; what is reported of the guard half is in the model's own.
    time_limit : float, optional
        Seconds for the solver.
    seed : int
        Same seed, same front.
    progress : bool, optional
        A line on stderr that counts evaluations; default where stderr is a terminal.

    Returns
    -------
    TradeOff
        .front, .objectives, .hypervolume, .reference, .knee, .pick(params=0.5), .save(folder)

    Raises
    ------
    InvalidProblem
        If an objective or a limit is none, the data are empty or lack targets.
    SolverFailed
        If no point within the limits was found; `.result.details["least_violated"]` says which came nearest.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> inputs = torch.linspace(-1, 1, 64).reshape(16, 4)
    >>> found = trade_off(net, [(inputs, torch.arange(16) % 3)], evaluations=60)
    >>> found.objectives, bool((np.diff(found.front.objectives[:, 1]) < 0).all())
    (('loss', 'params'), True)
    >>> out = found.pick(params=0.5)
    >>> out.report["achieved"]["params"][0] <= 0.5 * out.report["achieved"]["params"][1]
    True
    """
    _check(objectives, decide, evaluations, limits)
    chosen, searcher = _formulation(formulation, objectives, decide), _searcher(solver, evaluations)
    from prunesolve.bridges.torch.data import Batches
    from prunesolve.bridges.torch.evaluate import placed
    from prunesolve.bridges.torch.trade_off import Measured

    checked_choices("channel", "auto", refit, None)
    dense, batches = placed(model, device), Batches(data)
    measured = Measured(objectives[0] if objectives[0] in MEASURED else "loss", refit, loss, metric, dtype)
    asked = _Asked(tuple(objectives), searcher, seed, time_limit, evaluations, limits, boundaries, progress)
    chosen = replace(chosen, starts=min(chosen.starts, max(8, evaluations // 8)))
    search, result = _found(dense, batches, chosen, decide, layers, measured, asked)
    interrupted = bool(result.details.get("interrupted"))
    return TradeOff(
        result=result,
        problem=search.joint,
        statistics=search.statistics,
        selections=tuple(search.selection(x) for x in result.front.solutions),
        guard=None if search.guard is None or interrupted else np.array([*map(search.guard, result.front.solutions)]),
        baselines={kind: Front(rows, search.joint.values(rows)) for kind, rows in search.starts.items()},
        dense=search.dense,
        _work=Work(model, dense, batches, search.statistics, loss, metric),
        _formulation=chosen,
        _refit=refit,
    )


def _searcher(solver: AnySolver, evaluations: int) -> Solver:
    """The solver; where it is only named, with a population that a short search has generations for."""
    if solver in ("nsga2", "auto"):
        return solver_of("nsga2", {"population": int(np.clip(evaluations // 20, 20, 100))})
    return solver_of(solver, {})


class _Asked(NamedTuple):
    """What is searched for, and for how long."""

    objectives: tuple[str, ...]
    solver: Solver
    seed: int
    time_limit: float | None
    evaluations: int
    limits: Mapping[str, float] | None
    boundaries: Sequence[str] | None
    progress: bool | None

    def most(self, dense: Mapping[str, float]) -> Floats | None:
        """(m,) the most that each objective may be."""
        if not self.limits:
            return None
        given = {n: spending_limit(n, v, dense[n]) if n in dense else float(v) for n, v in self.limits.items()}
        return np.array([given.get(name, math.inf) for name in self.objectives])


def _found(
    dense: Any,
    batches: Any,
    chosen: MultiObjectiveSelection,
    decide: str,
    layers: Any,
    measured: Measured,
    asked: _Asked,
) -> tuple[Search, Any]:
    """The search, and its result with a front."""
    from prunesolve.bridges.torch import trade_off as bridge
    from prunesolve.problems import Composite

    if Composite in _kinds(asked.solver):
        if decide != "units":
            raise InvalidProblem(f"decide: {asked.solver.name} decides on units, got {decide!r}; take another solver")
        search = _over_parts(dense, batches, layers, measured, asked, chosen.starts)
        return search, _searched(search, asked)
    stats = measure(dense, batches, layers=layers, loss=measured.loss, progress=asked.progress)
    limits = asked.most({name: stats.total(name) for name in stats.cost})
    first: dict[str, Any] = {}
    if decide != "units":
        share = 1.0 if decide == "levels" else _LEVELS_FIRST
        search = bridge.over_levels(
            dense,
            batches,
            stats,
            asked.objectives,
            measured,
            starts=chosen.starts,
            limits=limits,
            progress=asked.progress,
        )
        result = _searched(search, asked._replace(evaluations=max(1, int(share * asked.evaluations))))
        if decide == "levels" or result.details.get("interrupted"):
            return search, result
        first = {"levels": np.array([search.selection(x).keep for x in result.front.solutions])}
        asked = asked._replace(evaluations=max(1, asked.evaluations - result.evaluations))
    search = bridge.over_units(
        dense,
        batches,
        stats,
        chosen,
        asked.objectives,
        measured,
        limits=limits,
        with_activity=bridge.wants_activity(asked.solver),
        more_starts=first,
    )
    return search, _searched(search, asked)


def _over_parts(dense: Any, batches: Any, layers: Any, measured: Measured, asked: _Asked, starts: int) -> Search:
    from prunesolve.bridges.torch.costs import count
    from prunesolve.bridges.torch.trade_off import over_parts

    example = batches.example()
    return over_parts(
        dense,
        batches,
        find_groups(dense, example, layers=layers).groups,
        asked.objectives,
        measured,
        starts=starts,
        limits=asked.most({name: float(total) for name, total in count(dense, example).items()}),
        boundaries=asked.boundaries,
    )


def _searched(search: Search, asked: _Asked) -> Any:
    from prunesolve.bridges.torch.trade_off import followed

    limits: dict[str, Any] = {"time_limit": asked.time_limit, "evaluation_limit": asked.evaluations}
    with followed(search.problem, asked.progress) as (problem, improved):
        result = asked.solver.solve(problem, seed=asked.seed, callback=improved, **limits)
    if result.front is not None and len(result.front.solutions):
        return result
    if result.details.get("interrupted"):
        raise KeyboardInterrupt
    raise SolverFailed(f"{result.solver}: {_empty(result)}", result)


def _kinds(solver: Solver) -> tuple[type[Any], ...]:
    return solver.accepts if isinstance(solver.accepts, tuple) else (solver.accepts,)


def _formulation(formulation: Any, objectives: Sequence[str], decide: str) -> MultiObjectiveSelection:
    """What ranks the units and knows the costs that are asked for."""
    from prunesolve.formulations import Formulation, MultiObjectiveSelection, names
    from prunesolve.formulations.multi_objective import RESOURCES

    if isinstance(objectives, str) or len(objectives) < 2:
        raise InvalidProblem(
            f"objectives: expected an error and one or two costs, as (loss, params), got {objectives!r}"
        )
    error, *costs = objectives
    if decide == "levels":
        if error not in MEASURED:
            raise unknown("error to be the first objective of levels", str(error), MEASURED)
        # the other costs, such as the latency, are known to the levels alone
        costs = [cost for cost in costs if cost in RESOURCES] or ["params"]
    own = formulation.lost if isinstance(formulation, MultiObjectiveSelection) else formulation
    if error not in MEASURED:
        if error not in names():
            closed = [name for name in names() if name not in ("multi-objective", "level-choice")]
            raise unknown("error to be the first objective", str(error), (*MEASURED, *closed))
        own = own if isinstance(own, Formulation) and own.name == error else error
    if isinstance(formulation, MultiObjectiveSelection):
        return replace(formulation, error=own, costs=tuple(costs))
    return MultiObjectiveSelection(error=own, costs=tuple(costs))


def _check(objectives: Sequence[str], decide: Any, evaluations: Any, limits: Any) -> None:
    """Refuse before hours of measuring, not after."""
    for name in limits or ():
        if name not in objectives:
            raise unknown("objective with a limit", str(name), objectives)
    if decide not in _DECIDED:
        raise unknown("value of decide", str(decide), _DECIDED)
    if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1:
        raise InvalidProblem(f"evaluations: expected a whole number >= 1, got {evaluations!r}")


def _empty(result: Result) -> str:
    """Why there is no front, and what came nearest to one."""
    nearest = result.details.get("least_violated")
    if nearest is None:
        return "no point that was evaluated has a value"
    told = dict(zip(result.details["objectives"], nearest["objectives"], strict=True))
    values = ", ".join(f"{name} {value:.6g}" for name, value in told.items())
    return f"no point within the limits was found; the nearest has {values}; loosen the limits"
