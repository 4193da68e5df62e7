"""The main job on real data: prune a trained network at four budgets, by seven methods, through several solvers.

Statistics are measured once, on the same calibration data for every method. Each method encodes them, solvers solve
what was encoded, and the networks that come out are judged on test data that no method has seen.
"""

from __future__ import annotations

import copy
import csv
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prunesolve import solvers
from prunesolve.formulations import Formulation, HybridQubo, L1Qubo, Reconstruction
from prunesolve.problems import BinaryQuadratic, InvalidProblem, Selection, SolverFailed, Statistics
from prunesolve.problems._npz import whole_file
from prunesolve.solvers import Refine, Result, Solver, SwapSearch

from .report import Curve, Figure, Table, counts, lines, shown, write_report

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from torch import nn

    from .demo_networks import DemoData, DemoTask

REMOVED = (0.20, 0.36, 0.50, 0.70)
SEARCHES = ("swap-annealing", "simulated-annealing", "swap-tabu")
RACERS = (*SEARCHES, "exact")


@dataclass(frozen=True)
class Method:
    """A way to choose units: what is minimised (None: nothing, they are drawn) and by which solvers.

    A solver of black boxes takes it as surrogate and minimises the network's loss on the calibration data.
    """

    name: str
    formulation: Formulation | None
    searches: tuple[str | Solver, ...] = ("greedy",)

    def problem(self, stats: Statistics, removed: float, seed: int) -> BinaryQuadratic:
        """The problem of removing that share of the units."""
        if self.formulation is not None:
            return self.formulation.encode(stats, keep=1.0 - removed)
        # drawn numbers in the place of norms: the same budget and least number per layer as everybody else
        drawn = replace(stats, saliency={"l1": np.random.default_rng(seed).random(stats.n)})
        return L1Qubo(beta=0.0).encode(drawn, keep=1.0 - removed)


REFINED = Refine("swap-annealing", SwapSearch(evaluations=200))
METHODS = (
    Method("random", None),
    Method("L1", L1Qubo(beta=0.0)),
    Method("greedy Taylor", HybridQubo(alpha=1.0, beta=0.0)),
    Method("l1-qubo", L1Qubo(), SEARCHES),
    Method("hybrid-qubo", HybridQubo(), SEARCHES),
    Method("hybrid, refined", HybridQubo(), (REFINED,)),
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
    params: int
    macs: int
    objective: float | None
    seconds: float
    difference: float
    counts: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found; `report` and `table` are the files it wrote.

    `references` are metrics to compare with; `units`, `params` and `macs` are the dense network's; `anytime` holds
    {solver: result} on `instance`.
    """

    task: DemoTask
    rows: tuple[Row, ...]
    dense: float
    references: Mapping[str, float]
    units: int
    params: int
    macs: int
    instance: str
    anytime: Mapping[str, Result]
    seconds: float
    report: Path
    table: Path

    @property
    def difference(self) -> float:
        """The largest difference between a masked network's outputs and its removed one's, of all selections."""
        return max(row.difference for row in self.rows)

    @property
    def best(self) -> tuple[Row, ...]:
        """For each method and budget the row of least objective, the first solver's where several reach it."""
        found: dict[tuple[str, float], Row] = {}
        for row in self.rows:
            held = found.setdefault((row.method, row.removed), row)
            if row.objective is not None and held.objective is not None and row.objective < held.objective:
                found[row.method, row.removed] = row
        return tuple(found.values())


def run_demo(
    task: str = "classify",
    out: str | Path = "demo-out",
    *,
    seed: int = 0,
    progress: bool | None = None,
    methods: Sequence[Method] = METHODS,
    removed: Sequence[float] = REMOVED,
    race_seconds: float = 1.0,
) -> DemoResult:
    """Prune the task's network by every method at every budget; write report.html, metric.svg and table.csv.

    Parameters
    ----------
    task : {"classify", "denoise"}
        Handwritten digits or noisy photographs.
    out : path
        Folder of the files.
    seed : int
        Seed of every solver and of the units drawn at random.
    progress : bool, optional
        A bar on stderr; default where stderr is a terminal.
    methods : sequence of Method
        Who chooses; solvers race on the last one's instance.
    removed : sequence of float
        Shares of the units that go.
    race_seconds : float
        Seconds for each solver in the race. Nothing else here depends on time.

    Returns
    -------
    DemoResult
        The table's rows and what the report shows.

    Raises
    ------
    InvalidProblem
        If there is no such task, its weights are missing or `out` is a file.
    """
    from .demo_networks import demo_task, load_network

    began, chosen, folder = time.perf_counter(), demo_task(task), _folder(out)
    bench = _Bench(load_network(task), chosen.data())
    jobs = [(method, search, share) for share in removed for method in methods for search in method.searches]
    rows = tuple(bench.row(method, search, share, seed) for method, search, share in _followed(jobs, progress))
    middle = min(removed, key=lambda share: abs(share - 0.5))
    anytime = bench.race(methods[-1].problem(bench.stats, middle, seed), seed, race_seconds)
    result = DemoResult(
        task=chosen,
        rows=rows,
        dense=bench.dense,
        references=_references(chosen, bench),
        units=bench.stats.n,
        params=bench.costs["params"],
        macs=bench.costs["macs"],
        instance=f"{methods[-1].name}, {100 * middle:.0f} % removed",
        anytime=anytime,
        seconds=time.perf_counter() - began,
        report=folder / "report.html",
        table=folder / "table.csv",
    )
    _write_table(result)
    _write_page(result)
    _write_plot(result)
    return result


def _references(task: DemoTask, bench: _Bench) -> dict[str, float]:
    """The dense network's metric, and the input's own where the network is to improve it."""
    from torch.nn import Identity

    from prunesolve.bridges.torch.evaluate import evaluate

    references = {"dense": bench.dense}
    if task.improves:
        references[task.improves] = float(evaluate(Identity(), bench.data.test)["metric"])
    return references


def _folder(out: str | Path) -> Path:
    """The folder to write to, known to be one before the work begins."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InvalidProblem(f"out: expected a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class _Judged(NamedTuple):
    """What one selection makes of the network; `difference` is the largest between masked and removed."""

    masked: float
    refitted: float
    params: int
    macs: int
    difference: float


class _Bench:
    """The network, its statistics measured once, and the judgement of selections, each judged once."""

    def __init__(self, network: nn.Module, data: DemoData) -> None:
        from prunesolve.bridges.torch.costs import count
        from prunesolve.bridges.torch.evaluate import evaluate
        from prunesolve.bridges.torch.measure import measure

        self.network, self.data = network, data
        self.example = data.test[0][0][:4]
        self.stats = measure(network, data.calibration, progress=False)
        self.dense = float(evaluate(network, data.test)["metric"])
        self.costs = count(network, self.example[:1])
        self._judged: dict[bytes, _Judged] = {}

    def row(self, method: Method, search: str | Solver, removed: float, seed: int) -> Row:
        """One method at one budget through one solver."""
        solver = solvers.get(search) if isinstance(search, str) else search
        result = self._solved(method.problem(self.stats, removed, seed), solver, seed)
        if not result.feasible:
            raise SolverFailed(f"{method.name}, {solver.name}: {result.status.value}", result)
        selection = Selection(self.stats.groups, result.solution)
        judged = self.judge(selection)
        return Row(
            method=method.name,
            solver=solver.name,
            removed=removed,
            dense=self.dense,
            masked=judged.masked,
            refitted=judged.refitted,
            kept=int(selection.keep.sum()),
            params=judged.params,
            macs=judged.macs,
            objective=None if method.formulation is None else result.objective,
            seconds=result.seconds,
            difference=judged.difference,
            counts=selection.counts,
        )

    def _solved(self, problem: BinaryQuadratic, solver: Solver, seed: int) -> Result:
        from prunesolve.bridges.torch.refinement import evaluates, refined

        if not evaluates(solver):
            return solver.solve(problem, seed=seed)
        return refined(self.network, self.data.calibration, self.stats.groups, problem, solver, seed=seed)

    def judge(self, selection: Selection) -> _Judged:
        """Mask, remove, compare the two, refit; solvers often agree, so the answer is kept."""
        key = selection.keep.tobytes()
        if key not in self._judged:
            self._judged[key] = self._judge(selection)
        return self._judged[key]

    def _judge(self, selection: Selection) -> _Judged:
        from prunesolve.bridges.torch.costs import count
        from prunesolve.bridges.torch.evaluate import evaluate
        from prunesolve.bridges.torch.masks import apply_masks, masks
        from prunesolve.bridges.torch.refit import refit
        from prunesolve.bridges.torch.shrink import shrink
        from prunesolve.bridges.torch.verify import verify

        masked = apply_masks(copy.deepcopy(self.network), masks(selection, self.network))
        removed = shrink(self.network, selection, self.example)
        refitted = refit(self.network, removed, self.data.calibration, selection)
        spent = count(removed, self.example[:1])
        return _Judged(
            masked=float(evaluate(masked, self.data.test)["metric"]),
            refitted=float(evaluate(refitted, self.data.test)["metric"]),
            params=spent["params"],
            macs=spent["macs"],
            difference=verify(masked, removed, self.example).largest_difference,
        )

    def race(self, problem: BinaryQuadratic, seed: int, seconds: float) -> dict[str, Result]:
        """{solver: result} on one instance, the same time for each."""
        return {name: solvers.get(name).solve(problem, seed=seed, time_limit=seconds) for name in RACERS}


def _followed(jobs: Sequence[Any], progress: bool | None) -> Iterable[Any]:
    """The jobs, with a bar on stderr where asked or where somebody is watching."""
    if not (sys.stderr.isatty() if progress is None else progress):
        return jobs
    from rich.console import Console
    from rich.progress import track

    return track(jobs, "pruning", console=Console(stderr=True), transient=True)


# What is shown


def render(result: DemoResult) -> RichTable:
    """The rows as a table for a terminal of 80 columns; what is common to a budget stands above its rows."""
    from rich.table import Table as RichTable

    task = result.task
    dense = f"{task.metric} {result.dense:.2f} {task.unit}, {result.units} units"
    table = RichTable(
        title=f"{task.title}, dense: {dense}, {_short(result.params)} params, {_short(result.macs)} MACs",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for heading in ("method", "solver"):
        table.add_column(heading, no_wrap=True)
    for heading in ("masked", "+ refit", "params", "MACs", "objective", "s"):
        table.add_column(heading, no_wrap=True, justify="right")
    for share in dict.fromkeys(row.removed for row in result.rows):
        rows = [row for row in result.rows if row.removed == share]
        table.add_row()
        table.add_row(f"{100 * share:.0f} % removed", f"{rows[0].kept} units kept", style="bold")
        for row in rows:
            metric = f"{row.masked:.2f}", f"{row.refitted:.2f}"
            spent = _short(row.params), _short(row.macs)
            table.add_row(row.method, row.solver, *metric, *spent, shown(row.objective, ".4g"), f"{row.seconds:.2f}")
    return table


def _short(number: float) -> str:
    """Three digits and a letter: 54472 is 54.5k."""
    scale, letter = next(((s, c) for s, c in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if number >= s), (1.0, ""))
    scaled = number / scale
    return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{letter}" if letter else f"{number:.0f}"


def _columns(result: DemoResult) -> dict[str, str]:
    unit = result.task.unit
    return {
        "removed / %": ".0f",
        "method": "",
        "solver": "",
        f"dense / {unit}": ".2f",
        f"masked / {unit}": ".2f",
        f"+ refit / {unit}": ".2f",
        "kept": "d",
        "params": ",d",
        "MACs": ",d",
        "objective": ".5g",
        "seconds": ".3f",
    }


def _values(row: Row) -> tuple[Any, ...]:
    head = (100 * row.removed, row.method, row.solver, row.dense, row.masked, row.refitted)
    return *head, row.kept, row.params, row.macs, row.objective, row.seconds


def _write_table(result: DemoResult) -> None:
    """table.csv: the rows without their per-layer counts."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields[:-1])
    writer.writerows(row[:-1] for row in result.rows)
    with whole_file(result.table) as file:
        file.write(text.getvalue().encode())


def _write_page(result: DemoResult) -> None:
    task = result.task
    write_report(
        result.report,
        f"What to keep of a trained network: {task.title.lower()}",
        list(_blocks(result)),
        lead=(
            f"Six ways to choose which of {result.units} units to remove, all from one measurement on the same "
            f"calibration data, judged by {task.metric} on test data none of them has seen. "
            "Nothing is trained afterwards; a refit solves one least-squares problem per layer, without labels."
        ),
        facts={
            f"dense {task.metric}": f"{result.dense:.2f} {task.unit}",
            "units": f"{result.units:,}",
            "parameters": f"{result.params:,}",
            "multiply-adds a sample": f"{result.macs:,}",
            "largest difference, masked against removed": f"{result.difference:.1e}",
            "seconds, everything": f"{result.seconds:.0f}",
        },
    )


def _write_plot(result: DemoResult) -> None:
    """metric.svg: the page's first figure, for use elsewhere."""
    with whole_file(result.report.with_name("metric.svg")) as file:
        file.write(_metric_figure(result).svg.encode())


def _blocks(result: DemoResult) -> Iterator[Table | Figure | str]:
    yield _metric_figure(result)
    yield Table(
        "All selections",
        {**_columns(result), "difference": ".1e"},
        [(*_values(row), row.difference) for row in result.rows],
        "Click a heading to sort. Seconds are the solver's own. The last column is the largest difference between the "
        "outputs of the masked network and of the physically smaller one on test samples.",
    )
    yield _race_figure(result)
    yield _race_table(result)
    yield _counts_figure(result)


def _metric_figure(result: DemoResult) -> Figure:
    task, names = result.task, list(dict.fromkeys(row.method for row in result.rows))

    def curves(field: str) -> list[Curve]:
        found = []
        for style, name in enumerate(reversed(names)):
            rows = [row for row in result.best if row.method == name]
            found.append(Curve(name, [100 * r.removed for r in rows], [getattr(r, field) for r in rows], style))
        return found

    return lines(
        {"Removed": curves("masked"), "Removed, then refit": curves("refitted")},
        title=f"{task.metric[:1].upper()}{task.metric[1:]} against units removed",
        x="units removed / %",
        y=f"{task.metric} on test data / {task.unit}",
        note="One curve a method, through the solver that reached the least objective.",
        references=result.references,
        ticks=sorted({100 * row.removed for row in result.rows}),
    )


def _counts_figure(result: DemoResult) -> Figure:
    kept: dict[str, dict[str, Mapping[str, tuple[int, int]]]] = {}
    for row in result.best:
        kept.setdefault(f"{100 * row.removed:.0f} % removed", {})[row.method] = row.counts
    note = "Through the solver that reached the least objective. In brackets the units of the layer."
    return counts(kept, title="Units kept per layer", note=note)


_FLOOR = 1e-6  # relative distances below this are drawn here: zero has no place on a logarithmic axis


def _race_figure(result: DemoResult) -> Figure:
    least = min(r.objective for r in result.anytime.values() if r.objective is not None)
    scale = max(1e-12, abs(least))
    curves = []
    for style, (name, run) in enumerate(result.anytime.items()):
        steps = [(row.seconds, row.objective) for row in run.trace if row.objective is not None]
        steps += [(run.seconds, run.objective)] if run.objective is not None else []
        x, y = zip(*((t, max(_FLOOR, (f - least) / scale)) for t, f in steps), strict=True)
        curves.append(Curve(name, x, y, style))
    return lines(
        {result.instance: curves},
        title="Solvers on the same instance",
        x="time / s",
        y="above the best objective / relative",
        note=f"Best objective found by then, relative to the least of all; {_FLOOR:g} stands for equal.",
        log_x=True,
        log_y=True,
        steps=True,
    )


def _race_table(result: DemoResult) -> Table:
    rows = [
        (name, run.objective, run.bound, run.gap, str(run.status), run.seconds, run.evaluations)
        for name, run in result.anytime.items()
    ]
    columns = {"solver": "", "objective": ".8g", "bound": ".8g", "gap": ".2%", "status": ""}
    note = f"{result.instance}; the bound, where a solver proves one, is on the optimum."
    return Table("What each solver reached", {**columns, "seconds": ".2f", "evaluations": ",d"}, rows, note)
