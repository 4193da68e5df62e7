"""Instances that can be opened: a plot, and every single run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from prunesolve.campaigns.comparison import Row
from prunesolve.report import Block, Figure, Section, Table, shown

from .curves import anytime_curves, anytime_figure, bare
from .names import natural, run_order
from .senses import native, sense_of
from .view import View

# what the page can hold and still open at once; the files hold everything
PLOTTED = 24  # instances with a plot of their own
DETAILED = 200  # instances that can be opened
RUNS = 10_000  # rows of single runs

_COLUMNS = {
    "solver": "",
    "seed": "d",
    "repeat": "d",
    "objective": ".8g",
    "feasible": "",
    "status": "",
    "seconds": ".3g",
    "evaluations": "d",
    "kept": "d",
}


def drilldown(view: View) -> Iterator[Block]:
    """Each instance to be opened, after what had to be left out."""
    spreads = _spreads(view)
    widest = list(spreads)[:PLOTTED]
    many = len(view.instances) > DETAILED
    opened = [i for i in view.instances if i in widest] if many else list(view.instances)
    listed = sum(len(view.instances[instance]) for instance in opened) <= RUNS
    if many:
        yield f"With more than {DETAILED} instances only those with a plot can be opened here; the file has them all."
    if len(widest) < len(view.instances):
        apart = "its runs'" if len(view.solvers) == 1 else "the solvers' median"
        yield f"Plots are drawn of the {PLOTTED} instances on which {apart} gaps lie furthest apart."
    if not listed:
        yield f"With more than {RUNS} runs the single ones are left to the file of runs."
    yield "Every single run stands in tables/runs.csv."
    for instance in opened:
        yield _detail(view, instance, spreads[instance], plot=instance in widest, listed=listed)


def _spreads(view: View) -> dict[str, float]:
    """How far apart the solvers' median gaps on each instance are, the widest first; of one solver its runs' gaps."""
    values: dict[str, list[float]] = {instance: list(of.values()) for instance, of in view.medians.items()}
    if len(view.solvers) == 1:
        values = {instance: [] for instance in values}
        for row, gap in zip(view.rows, view.gaps, strict=True):
            values[row["instance"]].append(float(gap))
    spreads = {i: 0.0 if min(of) == max(of) else max(of) - min(of) for i, of in values.items()}
    return dict(sorted(spreads.items(), key=lambda item: (-item[1], natural(item[0]))))


def _detail(view: View, instance: str, spread: float, *, plot: bool, listed: bool) -> Section:
    rows = view.instances[instance]
    sense, best = sense_of(rows), view.known.get(instance)
    facts = [f"best known {shown(native(best.value, sense), '.8g')}" if best else "no feasible result"]
    facts += ["maximised"] if sense == "maximise" else []
    facts += [f"spread {shown(100 * spread, '.3g')} %"] if math.isfinite(spread) and spread > 0 else []
    facts += ["solved by some only"] if spread == math.inf else []
    blocks: list[Block] = [*(_plot(view, instance) if plot else ())]
    if listed:
        blocks.append(Table("", _COLUMNS, [_run(row, sense) for row in sorted(rows, key=run_order)]))
    return Section(f"{instance}: {', '.join(facts)}", blocks or ["Its runs are in the file."], folded=True)


def _plot(view: View, instance: str) -> Iterator[Figure]:
    if view.anytime is None or instance not in view.known:
        return
    absolute = instance in view.absolute
    own = view.own_places[instance]
    places = {solver: own[solver] for solver in view.solvers if solver in own}
    curves = anytime_curves(view, view.anytime, places, 1.0 if absolute else 100.0)
    if curves:
        y = "gap, absolute" if absolute else "gap / %"
        yield bare(anytime_figure(view.anytime, {"": curves}, f"Gap over time, {instance}", y))


def _run(row: Row, sense: str) -> Sequence[Any]:
    named = {**row, "objective": native(row["objective"], sense), "feasible": "yes" if row["feasible"] else "no"}
    return [named[column] for column in _COLUMNS]
