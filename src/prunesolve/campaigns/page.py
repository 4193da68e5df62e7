"""A campaign as one HTML page, and its tables as CSV files beside it."""

from __future__ import annotations

import csv
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prunesolve.problems import InvalidProblem
from prunesolve.problems._npz import whole_folder
from prunesolve.report import Block, Code, Curve, Figure, Section, Table, lines, write_report

from . import comparison
from .comparison import TIE, TINY, Anytime, Best, Floats, Pair, Profile, Row, Summary, failed, grouped, quantile, solved
from .records import COLUMNS, Records

REPORT, TABLES = "report.html", "tables"

# what the page can hold and still open at once; the CSV files hold everything
PLOTTED = 24  # instances with a plot of their own
DETAILED = 200  # instances that can be opened
RUNS = 10_000  # rows of single runs
ROWS = 4_000  # rows of a table
REASON = 200  # characters of what went wrong

TARGETS = {"1 %": 1e-2, "0.1 %": 1e-3, "best": TIE}
PROFILED = {"within 0.1 % of the best known": 1e-3, "within 0.0001 % of the best known": 1e-6}
FLOOR = 1e-6  # gaps below this are drawn here, as a logarithm has no zero
ROUNDING = 1e-6  # relative; a bound this far above the best known is no matter of rounding
POINTS = 200  # of a drawn profile
MARKS = 8  # markers along a curve
LABEL = 40  # characters of a solver in a legend

_NO_RESULT = "No run brought a feasible result, so there is nothing to draw or compare here."
_UNITS = {"seconds": "s", "evaluations": "evaluations"}


def write_page(records: Records, path: str | Path | None = None) -> Path:
    """Write a campaign's page, self-contained, and `tables/*.csv` beside it, each whole or not at all.

    Parameters
    ----------
    records : Records
        Of a finished campaign or one that still runs. Traces are read one at a time.
    path : path, optional
        The `.html` file, by default `report.html` in the campaign's folder.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    InvalidProblem
        If no job has ended yet.

    Examples
    --------
    >>> import tempfile
    >>> row = dict.fromkeys(COLUMNS) | {"job": "a1", "instance": "a", "solver": "greedy", "status": "FINISHED"}
    >>> row |= {"feasible": True, "objective": -2.0, "seconds": 0.1, "seed": 0, "repeat": 0}
    >>> page = write_page(Records(Path(tempfile.mkdtemp()), [row], "one"))
    >>> page.name, sorted(file.name for file in (page.parent / "tables").iterdir())[:2]
    ('report.html', ['environment.csv', 'instances.csv'])
    """
    if not records.rows:
        raise InvalidProblem(f"{records.folder}: expected at least one finished job, got none; run the campaign first")
    page = records.folder / REPORT if path is None else Path(path)
    view = _View(records, _apart(records.rows), _Tables(), [])
    # before the remarks: what traces could not be read is known afterwards
    sections = [make(view) for make in _SECTIONS]
    view.tables.hold("runs", [*COLUMNS, "gap to best known / %"], _run_rows(view))
    view.tables.write(page.parent / TABLES)
    title = f"Campaign {records.name}" if records.name else "Campaign"
    write_report(page, title, [*_remarks(view), *sections], lead=_lead(view), facts=_facts(view))
    return page


# --- what the sections share ---------------------------------------------------------------------------------------


class _Tables:
    """Tables as they go onto the page, and all of their rows for the files."""

    def __init__(self) -> None:
        self._all: dict[str, tuple[Iterable[str], Iterable[Sequence[Any]]]] = {}

    def add(
        self, name: str, title: str, columns: Mapping[str, str], rows: Iterable[Sequence[Any]], note: str = ""
    ) -> Table:
        """The table for the page, cut where it is too long; the file has every row."""
        rows = list(rows)
        self.hold(name, columns, rows)
        if len(rows) > ROWS:
            note = f"{note} These are the first {ROWS} of {len(rows)} rows; the file has them all.".strip()
        return Table(title, columns, rows[:ROWS], note, f"{TABLES}/{name}.csv")

    def hold(self, name: str, columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
        """Rows for a file alone."""
        self._all[name] = (columns, rows)

    def write(self, folder: Path) -> None:
        with whole_folder(folder, replaces=[f"{name}.csv" for name in _NAMES]) as new:
            for name, (columns, rows) in self._all.items():
                with open(new / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    writer.writerow(columns)
                    writer.writerows([_plain(value) for value in row] for row in rows)


_NAMES = ("summary", "targets", "pairs", "instances", "failures", "environment", "solvers", "runs")


def _plain(value: Any) -> Any:
    missing = value is None or (isinstance(value, float) and not math.isfinite(value))
    return "" if missing else value


@dataclass(frozen=True)
class _View:
    """The rows and what several sections ask of them, each computed once; `unread` are jobs whose trace is damaged."""

    records: Records
    rows: Sequence[Row]
    tables: _Tables
    unread: list[str]

    @cached_property
    def solvers(self) -> list[str]:
        return sorted({row["solver"] for row in self.rows}, key=_natural)

    @cached_property
    def styles(self) -> dict[str, int]:
        return {solver: i for i, solver in enumerate(self.solvers)}

    @cached_property
    def instances(self) -> dict[str, list[Row]]:
        """The rows of each instance, in natural order."""
        return dict(sorted(grouped(self.rows, "instance").items(), key=lambda item: _natural(item[0])))

    @cached_property
    def known(self) -> dict[str, Best]:
        return comparison.best_known(self.rows)

    @cached_property
    def gaps(self) -> Floats:
        return comparison.gaps(self.rows, self.known)

    @cached_property
    def places(self) -> dict[str, Floats]:
        """Where the rows of each solver are."""
        of = np.array([self.styles[row["solver"]] for row in self.rows])
        return {solver: np.flatnonzero(of == style) for solver, style in self.styles.items()}

    @cached_property
    def own_places(self) -> dict[str, dict[str, list[int]]]:
        """{instance: {solver: where its rows are}}."""
        found: dict[str, dict[str, list[int]]] = {}
        for r, row in enumerate(self.rows):
            found.setdefault(row["instance"], {}).setdefault(row["solver"], []).append(r)
        return found

    @cached_property
    def medians(self) -> dict[str, dict[str, float]]:
        return comparison.median_gaps(self.rows, self.known)

    @cached_property
    def summaries(self) -> list[Summary]:
        """Best first."""
        place = {solver: i for i, solver in enumerate(self.standings)}
        return sorted(comparison.summaries(self.rows, self.known), key=lambda of: place.get(of.solver, 0))

    @cached_property
    def pairs(self) -> list[Pair]:
        return comparison.pairwise(self.rows, self.known)

    @cached_property
    def standings(self) -> dict[str, float]:
        return comparison.standings(self.pairs)

    @cached_property
    def anytime(self) -> Anytime | None:
        targets = sorted({*TARGETS.values(), *PROFILED.values()})
        return comparison.anytime(self.rows, self._trace, self.known, targets)

    def _trace(self, row: Row) -> Any:
        try:
            told = self.records.told(row["job"])
        except InvalidProblem:
            self.unread.append(row["job"])
            return None
        return None if told is None else told.get("trace")

    @property
    def any_solved(self) -> bool:
        return bool(np.isfinite(self.gaps).any())

    @cached_property
    def absolute(self) -> list[str]:
        """Instances whose gaps are differences, as their best known is 0."""
        return [instance for instance in self.instances if self._near_zero(instance)]

    def _near_zero(self, instance: str) -> bool:
        return instance in self.known and abs(self.known[instance].value) <= TINY


def _natural(name: str) -> list[Any]:
    """So that `b10` comes after `b2`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _apart(rows: Sequence[Row]) -> list[Row]:
    """The rows, with the hash in the name of an instance whose file changed between them."""
    hashes: dict[Any, set[str]] = {}
    for row in rows:
        hashes.setdefault(row["instance"], set()).update([row["instance_hash"]] if row["instance_hash"] else [])
    return [
        row
        if isinstance(row["instance"], str) and isinstance(row["solver"], str) and len(hashes[row["instance"]]) < 2
        else {**row, "instance": _told_apart(row, hashes), "solver": str(row["solver"])}
        for row in rows
    ]


def _told_apart(row: Row, hashes: Mapping[Any, set[str]]) -> str:
    several = len(hashes[row["instance"]]) > 1
    return f"{row['instance']} ({(row['instance_hash'] or 'unread')[:8]})" if several else str(row["instance"])


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"


# --- 1 facts -------------------------------------------------------------------------------------------------------


def _facts(view: _View) -> dict[str, str]:
    repeats = {(row["seed"], row["repeat"]) for row in view.rows}
    seconds = math.fsum(row["wall_seconds"] or row["seconds"] or 0.0 for row in view.rows)
    return {
        "jobs": str(len(view.rows)),
        "instances": str(len(view.instances)),
        "solvers": str(len(view.solvers)),
        "seeds and repeats": str(len(repeats)),
        "jobs without a result": str(sum(map(failed, view.rows))),
        "time of all jobs": _duration(seconds),
        **_limits(view.rows),
    }


def _limits(rows: Sequence[Row]) -> dict[str, str]:
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "time_limit": ("time limit", _duration),
        "evaluation_limit": ("evaluation limit", lambda e: f"{e:,.0f}".replace(",", "\u202f")),
        "memory_limit_mib": ("memory limit", lambda m: f"{m:.0f} MiB"),
    }
    limits = {}
    for column, (name, told) in shown.items():
        values = sorted({row[column] for row in rows if row[column] is not None})
        if values:
            limits[name] = told(values[0]) + (f" to {told(values[-1])}" if len(values) > 1 else "")
    return limits or {"limits": "none"}


def _lead(view: _View) -> str:
    if not view.any_solved:
        return "No run found a feasible solution, so no solver can be said to have won."
    if len(view.solvers) == 1:
        own = view.summaries[0]
        return (
            f"{own.solver} ran alone, so there is nothing to compare it with; {own.feasible:.0%} of its "
            f"{_counted(own.runs, 'run')} on {_counted(own.instances, 'instance')} ended feasible."
        )
    return _winner(view)


def _winner(view: _View) -> str:
    """Who won, and against whom that is shown."""
    (first, score), (_, runner_up) = list(view.standings.items())[:2]
    instances = _counted(len(view.instances), "instance")
    if not any(pair.wins or pair.losses for pair in view.pairs):
        return f"On {instances} all solvers reach the same objective in the median run. {_fastest(view)}".strip()
    if score == runner_up:
        level = [solver for solver, share in view.standings.items() if share == score]
        return f"{', '.join(level)} share the lead: on {instances} they won alike, by the median objective."
    pairs = [pair for pair in view.pairs if first in (pair.a, pair.b)]
    wins = sum(pair.wins if pair.a == first else pair.losses for pair in pairs)
    losses = sum(pair.losses if pair.a == first else pair.wins for pair in pairs)
    ties = sum(pair.ties for pair in pairs)
    told = f"{first} did best: by the median objective on {instances} it won {wins}, tied {ties} and lost {losses} of "
    return f"{told}{_counted(wins + ties + losses, 'comparison')} with the other solvers. {_sureness(first, pairs)}"


def _sureness(first: str, pairs: Sequence[Pair]) -> str:
    shown = [pair for pair in pairs if pair.shown and pair.ahead == first]
    open_ones = [pair for pair in pairs if pair not in shown]
    largest = max((pair.adjusted or 0.0 for pair in shown), default=0.0)
    if not open_ones:
        return (
            f"That lead is significant against every other solver (Wilcoxon, Holm-corrected p at most {largest:.2g})."
        )
    against = _listed([f"{_other(pair, first)} ({_doubt(pair)})" for pair in open_ones])
    if not shown:
        return f"That lead is not shown to be more than chance: {against}."
    settled = _listed([_other(pair, first) for pair in shown])
    return f"The lead is significant against {settled} (p at most {largest:.2g}), but not against {against}."


def _other(pair: Pair, solver: str) -> str:
    return pair.b if pair.a == solver else pair.a


def _doubt(pair: Pair) -> str:
    if pair.adjusted is None:
        return f"too few instances to tell: {pair.wins + pair.losses} without a tie"
    if pair.shown:
        return f"p = {pair.adjusted:.2g} in favour of that one: it wins by more where it wins"
    return f"p = {pair.adjusted:.2g}"


def _fastest(view: _View) -> str:
    if view.anytime is None:
        return ""
    times = view.anytime.reached[TIE]
    medians = {solver: float(quantile(times[places], 0.5)) for solver, places in view.places.items()}
    solver = min(medians, key=lambda name: medians[name])
    if not math.isfinite(medians[solver]):
        return ""
    return f"{solver} got there first: after {medians[solver]:.3g} {_UNITS[view.anytime.axis]} in the median."


def _remarks(view: _View) -> list[str]:
    """What a reader must know before trusting the tables; nothing where all is well."""
    expected = len(view.instances) * len(view.solvers) * len({(row["seed"], row["repeat"]) for row in view.rows})
    mixed = [
        s for s, of in grouped(view.rows, "solver").items() if len({row["solver_repr"] for row in of} - {None}) > 1
    ]
    above = [instance for instance, rows in view.instances.items() if _contradicted(instance, rows, view)]
    remarks = {
        f"{expected - len(view.rows)} of {expected} combinations of instance, solver, seed and repeat have no job yet; "
        "solvers are compared on the instances that both ran on.": len(view.rows) < expected,
        f"{_listed(mixed)}: the jobs of one name ran with different options; its figures mix them.": mixed,
        f"{_listed(above)}: a bound lies above the best known objective, so one of the two is wrong.": above,
        f"{_listed(view.absolute)}: the best known objective is 0 (at most {TINY:g} in magnitude), so gaps there are "
        "absolute: a difference of 0.01 counts as 1 %.": view.absolute,
        f"The traces of {_counted(len(view.unread), 'run')} could not be read; they count at their end.": view.unread,
    }
    return [text for text, holds in remarks.items() if holds]


def _contradicted(instance: str, rows: Sequence[Row], view: _View) -> bool:
    bound = _best_bound(rows)
    best = view.known.get(instance)
    return bound is not None and best is not None and bound - best.value > ROUNDING * comparison.scale(best.value)


def _best_bound(rows: Iterable[Row]) -> float | None:
    return max((row["bound"] for row in rows if row["bound"] is not None and math.isfinite(row["bound"])), default=None)


# --- 2 summary -----------------------------------------------------------------------------------------------------


_SUMMARY_COLUMNS = {
    "solver": "",
    "instances": "d",
    "runs": "d",
    "best found / %": ".1f",
    "mean gap / %": ".3g",
    "median gap / %": ".3g",
    "gap to bound / %": ".3g",
    "feasible / %": ".1f",
    "optimal": "d",
    "failed": "d",
    "seconds": ".3g",
    "evaluations": ".0f",
}


def _summary(view: _View) -> Section:
    rows = [
        (
            *(of.solver, of.instances, of.runs, _percent(of.best_found), _percent(of.mean_gap)),
            *(_percent(of.median_gap), _percent(of.bound_gap), _percent(of.feasible), of.proved, of.failed),
            *(of.seconds, of.evaluations),
        )
        for of in view.summaries
    ]
    note = (
        "Best found: share of instances, of those that anyone solved, on which the solver's best run ties with the "
        "best of all. Gaps: of the solver's median run on each instance to the best known, mean and median over the "
        "instances where that run is feasible. Gap to bound: (objective - bound) / |objective|, median over the runs "
        "that proved a bound. Optimal: runs that proved it. Seconds and evaluations: medians over runs."
    )
    table = view.tables.add("summary", "", _SUMMARY_COLUMNS, rows, note)
    return Section("Solvers", [_sources(view), table])


def _sources(view: _View) -> str:
    came = {instance for instance, rows in view.instances.items() if any(row["best_known"] is not None for row in rows)}
    given = [instance for instance, best in view.known.items() if best.given]
    improved = [instance for instance in view.known if instance in came and instance not in given]
    nothing = [instance for instance in view.instances if instance not in view.known]
    told = (
        "The best known of an instance is the least of all feasible objectives of this campaign and of the value that "
    )
    told += f"came with it: here the latter on {len(given)}, the campaign's own on {len(view.known) - len(given)}"
    told += f", which beats the value that came with {_listed(improved)}." if improved else "."
    return told + (f" Nothing is known of {_listed(nothing)}." if nothing else "")


# --- 3 to 6 profiles and times -------------------------------------------------------------------------------------


def _label(view: _View, solver: str) -> str:
    """A solver in a legend: not too long, still its own; matplotlib hides what begins with an underscore."""
    if len(solver) > LABEL:
        return f"{view.styles[solver] + 1}: {solver[: LABEL - 12]}…{solver[-8:]}"
    return f" {solver}" if solver.startswith("_") else solver


def _performance(view: _View) -> Section:
    title = "Performance profile"
    if view.anytime is None:
        return Section(title, [_NO_RESULT])
    if len(view.solvers) == 1:
        return Section(title, ["A performance profile compares solvers; there is only one."])
    shared = [i for i, rows in view.instances.items() if len({row["solver"] for row in rows}) == len(view.solvers)]
    if not shared:
        return Section(title, ["There is no instance that every solver ran on yet."])
    axis, panels = view.anytime.axis, {}
    for target, value in PROFILED.items():
        times = _median_times(view, view.anytime.reached[value], shared)
        if np.isfinite(list(times.values())).any():
            panels[target] = _profile_curves(view, comparison.profile(times))
    if not panels:
        return Section(title, ["In the median run no solver came within 0.1 % of the best known on any instance."])
    note = (
        f"Share of {_counted(len(shared), 'instance')} on which a solver's median run came that close in at most x "
        f"times the {axis} of the fastest solver (Dolan and Moré 2002). On the left: how often it is the fastest; on "
        "the right: how often it gets there at all." + _clock(view.anytime) + _untraced(view.anytime)
    )
    figure = lines(
        panels, title="Performance profile", x=f"{axis}, multiple of the least", y="share", log_x=True, steps=True
    )
    return Section(title, [_bare(figure)], note)


def _clock(runs: Anytime) -> str:
    return " Less than 0.1 ms counts as 0.1 ms." if runs.axis == "seconds" else ""


def _untraced(runs: Anytime) -> str:
    return f" Runs without a trace, here {runs.without}, count at their end." if runs.without else ""


def _bare(figure: Figure) -> Figure:
    """Without the heading that its section has."""
    return Figure("", figure.svg, figure.note)


def _median_times(view: _View, times: Floats, instances: Sequence[str]) -> dict[str, list[float]]:
    place = {instance: i for i, instance in enumerate(instances)}
    taken: dict[str, list[list[float]]] = {solver: [[] for _ in instances] for solver in view.solvers}
    for row, seconds in zip(view.rows, times, strict=True):
        if row["instance"] in place:
            taken[row["solver"]][place[row["instance"]]].append(float(seconds))
    return {solver: [float(quantile(of, 0.5)) for of in each] for solver, each in taken.items()}


def _profile_curves(view: _View, drawn: Profile) -> list[Curve]:
    """The curves, at no more points than an eye can tell apart, held a little past the last."""
    steps = np.unique(np.linspace(0, len(drawn.x) - 1, POINTS).round().astype(int))
    x = np.append(drawn.x[steps], max(drawn.x[-1] * 1.2, drawn.x[0] * 2))
    every = max(1, len(x) // MARKS)
    return [
        Curve(_label(view, solver), x, np.append(share[steps], share[-1]), view.styles[solver], every=every)
        for solver, share in drawn.shares.items()
    ]


def _gap_profile(view: _View) -> Section:
    title = "Runs within a gap at the end"
    if not view.any_solved:
        return Section(title, [_NO_RESULT])
    ends = {solver: 100.0 * view.gaps[places] for solver, places in view.places.items()}
    curves = _profile_curves(view, comparison.cumulative(ends, start=100.0 * FLOOR))
    figure = lines({"": curves}, title=title, x="gap to the best known / %", y="share", log_x=True, steps=True)
    note = (
        "Share of a solver's runs that ended within a gap of the best known; runs without a feasible result never do. "
        f"Gaps of at most {100 * FLOOR:g} % stand at the left edge."
    )
    return Section(title, [_bare(figure)], note)


def _targets(view: _View) -> Section:
    title = "Time to target"
    if view.anytime is None:
        return Section(title, [_NO_RESULT])
    unit = _UNITS[view.anytime.axis]
    columns = {"solver": "", "runs": "d"}
    for target in TARGETS:
        columns |= {f"{target}: reached / %": ".1f", f"{target}: median {unit}": ".3g"}
    rows = []
    for of in view.summaries:
        row: list[Any] = [of.solver, of.runs]
        for gap in TARGETS.values():
            times = view.anytime.reached[gap][view.places[of.solver]]
            row += [100.0 * float(np.isfinite(times).mean()), float(quantile(times, 0.5))]
        rows.append(row)
    note = (
        "When runs first came within a gap of the best known: median over all runs on all instances, a dash where half "
        f"of them or more never did. Best: within {TIE:g} of it." + _clock(view.anytime) + _untraced(view.anytime)
    )
    return Section(title, [view.tables.add("targets", "", columns, rows, note)])


def _progress(view: _View) -> Section:
    title = "Gap over time" if view.anytime is None or view.anytime.axis == "seconds" else "Gap over evaluations"
    if view.anytime is None:
        return Section(title, [_NO_RESULT])
    panels = {}
    for heading, instances in _classes(view).items():
        inside = np.array([row["instance"] in instances for row in view.rows])
        curves = _anytime_curves(view, {s: places[inside[places]] for s, places in view.places.items()})
        if curves:
            panels[heading] = curves
    if not panels:
        return Section(title, ["In every group more than half of each solver's runs ended without a feasible result."])
    figure = _anytime_figure(view.anytime, panels, title)
    note = (
        "Median over instances, seeds and repeats of the gap to the best known, with the band between the quartiles; a "
        "curve begins when half of the runs have a feasible solution, its band when three quarters have. "
        f"Gaps of less than {100 * FLOOR:g} % are drawn there." + _untraced(view.anytime)
    )
    return Section(title, [_bare(figure)], note)


def _anytime_figure(runs: Anytime, panels: Mapping[str, Sequence[Curve]], title: str, y: str = "gap / %") -> Figure:
    return lines(panels, title=title, x=runs.axis, y=y, log_x=True, log_y=True, steps=True, columns=3)


def _anytime_curves(view: _View, places: Mapping[str, Any], factor: float = 100.0) -> list[Curve]:
    curves = []
    for solver, rows in places.items():
        if view.anytime is None or not len(rows):
            continue
        middle, low, high = (_drawable(quantile(view.anytime.gap[rows], q), factor) for q in (0.5, 0.25, 0.75))
        there = np.isfinite(middle)
        if not there.any():
            continue
        banded = len(rows) > 2
        curves.append(
            Curve(
                _label(view, solver),
                view.anytime.grid[there],
                middle[there],
                view.styles[solver],
                every=max(1, int(there.sum()) // MARKS),
                low=low[there] if banded else None,
                high=high[there] if banded else None,
            )
        )
    return curves


def _drawable(gap: Floats, factor: float) -> Floats:
    return np.where(np.isfinite(gap), factor * np.maximum(gap, FLOOR), np.nan)


def _classes(view: _View) -> dict[str, set[str]]:
    """{heading: instances}: one for each size where there are few, else one for each power of ten, else one for all."""
    sizes = {instance: max((row["n"] or 0 for row in rows), default=0) for instance, rows in view.instances.items()}
    by_size: dict[str, set[str]] = {}
    by_power: dict[str, set[str]] = {}
    for instance, n in sorted(sizes.items(), key=lambda item: item[1]):
        low = 10 ** (len(str(n)) - 1)
        by_size.setdefault(f"n = {n}", set()).add(instance)
        by_power.setdefault(f"n = {low} to {10 * low - 1}", set()).add(instance)
    for classes in (by_size, by_power):
        if 1 < len(classes) <= 6 and min(sizes.values()) > 0:
            return {f"{heading} ({_counted(len(of), 'instance')})": of for heading, of in classes.items()}
    return {"": set(sizes)}


# --- 7 pairs -------------------------------------------------------------------------------------------------------


_PAIR_COLUMNS = {
    "solver": "",
    "against": "",
    "wins": "d",
    "ties": "d",
    "losses": "d",
    "median difference / %": ".3g",
    "p": ".2g",
    "p, Holm": ".2g",
    "verdict": "",
}


def _pairs(view: _View) -> Section:
    title = "Pairs of solvers"
    if len(view.solvers) == 1:
        return Section(title, ["There is only one solver."])
    if not view.any_solved:
        return Section(title, [_NO_RESULT])
    rows = [
        (*pair[:5], _percent(pair.difference), pair.p, pair.adjusted, _verdict(pair))
        for pair in sorted(view.pairs, key=lambda pair: (pair.adjusted is None, pair.adjusted or 0.0, pair.a, pair.b))
    ]
    note = (
        "Wins, ties and losses of the first solver on the instances that both ran on, by the median objective of each; "
        f"two within {TIE:g} of the best known tie. The p-value is the probability, were neither solver better, of "
        "signed ranks of the gap differences at least as one-sided as these (Wilcoxon's signed-rank test, two-sided, "
        "over the instances that do not tie). It is then corrected over all pairs by Holm's method; below 0.05 the "
        "difference is called significant. A solver that brought nothing feasible loses by more than any other."
    )
    return Section(title, [view.tables.add("pairs", "", _PAIR_COLUMNS, rows, note)])


def _verdict(pair: Pair) -> str:
    if pair.wins + pair.losses == 0:
        return "all tie" if pair.ties else "no instance in common"
    if pair.adjusted is None:
        return "too few instances to tell"
    return f"{pair.ahead} better" if pair.shown else "no significant difference"


# --- 8 instances ---------------------------------------------------------------------------------------------------


def _sense(rows: Sequence[Row]) -> str:
    return next((row["sense"] for row in rows if row["sense"] is not None), "minimise")


def _native(value: float | None, sense: str) -> float | None:
    """The value in the sense of the instance; None where there is none."""
    if value is None or not math.isfinite(value):
        return None
    return 0.0 - value if sense == "maximise" else float(value)


_INSTANCE_COLUMNS = {
    "instance": "",
    "n": "d",
    "sense": "",
    "solver": "",
    "best": ".8g",
    "median": ".8g",
    "worst": ".8g",
    "best known": ".8g",
    "best gap / %": ".3g",
    "median gap / %": ".3g",
    "bound": ".8g",
    "best bound": ".8g",
    "median s": ".3g",
    "feasible / %": ".0f",
    "statuses": "",
}


def _instances(view: _View) -> Section:
    note = (
        "Objectives and bounds are in the instance's own sense; the best bound is that of all solvers. The median is "
        "over all runs, a dash where half of them or more brought nothing feasible; the worst is of the feasible runs."
    )
    table = view.tables.add("instances", "", _INSTANCE_COLUMNS, _instance_rows(view), note)
    return Section("Instances", [table, *_details(view)])


def _instance_rows(view: _View) -> Iterator[Sequence[Any]]:
    for instance, rows in view.instances.items():
        n, sense, bound = (
            next((row["n"] for row in rows if row["n"] is not None), None),
            _sense(rows),
            _best_bound(rows),
        )
        best = view.known.get(instance)
        for solver, of in sorted(grouped(rows, "solver").items(), key=lambda item: _natural(item[0])):
            values = sorted(row["objective"] if solved(row) else math.inf for row in of)
            found = [value for value in values if math.isfinite(value)] or [math.inf]
            middle = float(quantile(values, 0.5))
            seconds = [row["seconds"] for row in of if row["seconds"] is not None]
            counts = Counter(row["status"] for row in of)
            yield (
                *(instance, n, sense, solver),
                *(_native(value, sense) for value in (found[0], middle, found[-1], best and best.value)),
                *(None if best is None else 100.0 * comparison.gap(value, best.value) for value in (found[0], middle)),
                *(_native(value, sense) for value in (_best_bound(of), bound)),
                float(quantile(seconds, 0.5)) if seconds else None,
                100.0 * sum(map(solved, of)) / len(of),
                ", ".join(f"{status} {count}" for status, count in sorted(counts.items())),
            )


def _spreads(view: _View) -> dict[str, float]:
    """How far apart the solvers' median gaps on each instance are, the widest first; of one solver its runs' gaps."""
    values: dict[str, list[float]] = {instance: list(of.values()) for instance, of in view.medians.items()}
    if len(view.solvers) == 1:
        values = {instance: [] for instance in values}
        for row, gap in zip(view.rows, view.gaps, strict=True):
            values[row["instance"]].append(float(gap))
    spreads = {i: 0.0 if min(of) == max(of) else max(of) - min(of) for i, of in values.items()}
    return dict(sorted(spreads.items(), key=lambda item: (-item[1], _natural(item[0]))))


def _details(view: _View) -> Iterator[Block]:
    spreads = _spreads(view)
    widest = list(spreads)[:PLOTTED]
    many = len(view.instances) > DETAILED
    shown = [i for i in view.instances if i in widest] if many else list(view.instances)
    listed = sum(len(view.instances[instance]) for instance in shown) <= RUNS
    if many:
        yield f"With more than {DETAILED} instances only those with a plot can be opened here; the file has them all."
    if len(widest) < len(view.instances):
        apart = "its runs'" if len(view.solvers) == 1 else "the solvers' median"
        yield f"Plots are drawn of the {PLOTTED} instances on which {apart} gaps lie furthest apart."
    if not listed:
        yield f"With more than {RUNS} runs the single ones are left to the file of runs."
    yield "Every single run stands in tables/runs.csv."
    for instance in shown:
        yield _detail(view, instance, spreads[instance], plot=instance in widest, listed=listed)


def _detail(view: _View, instance: str, spread: float, *, plot: bool, listed: bool) -> Section:
    rows = view.instances[instance]
    sense, best = _sense(rows), view.known.get(instance)
    facts = [f"best known {_native(best.value, sense):.8g}" if best else "no feasible result"]
    facts += ["maximised"] if sense == "maximise" else []
    facts += [f"spread {100 * spread:.3g} %"] if math.isfinite(spread) and spread > 0 else []
    facts += ["solved by some only"] if spread == math.inf else []
    blocks: list[Block] = [*(_own_plot(view, instance) if plot else ())]
    if listed:
        blocks.append(Table("", _OWN_COLUMNS, [_own_row(row, sense) for row in sorted(rows, key=_own_order)]))
    return Section(f"{instance}: {', '.join(facts)}", blocks or ["Its runs are in the file."], folded=True)


def _own_plot(view: _View, instance: str) -> Iterator[Figure]:
    if view.anytime is None or instance not in view.known:
        return
    absolute = instance in view.absolute
    own = view.own_places[instance]
    places = {solver: own[solver] for solver in view.solvers if solver in own}
    curves = _anytime_curves(view, places, 1.0 if absolute else 100.0)
    if curves:
        y = "gap, absolute" if absolute else "gap / %"
        yield _bare(_anytime_figure(view.anytime, {"": curves}, f"Gap over time, {instance}", y))


_OWN_COLUMNS = {
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


def _own_order(row: Row) -> Any:
    return _natural(row["solver"]), row["seed"] or 0, row["repeat"] or 0


def _own_row(row: Row, sense: str) -> Sequence[Any]:
    named = {**row, "objective": _native(row["objective"], sense), "feasible": "yes" if row["feasible"] else "no"}
    return [named[column] for column in _OWN_COLUMNS]


def _run_rows(view: _View) -> Iterator[Sequence[Any]]:
    for row, gap in zip(view.rows, view.gaps, strict=True):
        yield [*(row[column] for column in COLUMNS), 100.0 * float(gap)]


# --- 9 failures and 10 environment ---------------------------------------------------------------------------------


def _failures(view: _View) -> Section:
    title = "Jobs without a result"
    columns = {"instance": "", "solver": "", "seed": "d", "repeat": "d", "status": "", "reason": "", "wall s": ".3g"}
    rows = [
        [row[key] for key in ("instance", "solver", "seed", "repeat", "status", "reason", "wall_seconds")]
        for row in sorted(filter(failed, view.rows), key=lambda row: (_natural(row["instance"]), _own_order(row)))
    ]
    if not rows:
        return Section(title, ["Every job brought a result."])
    table = view.tables.add("failures", "", columns, rows, f"Reasons of more than {REASON} characters are cut here.")
    shown = [[*row[:5], _cut(row[5]), row[6]] for row in table.rows]
    return Section(title, [Table("", columns, shown, table.note, table.file)])


def _cut(reason: str | None) -> str | None:
    return reason if reason is None or len(reason) <= REASON else f"{reason[:REASON]}…"


def _environment(view: _View) -> Section:
    facts = list(_flat(view.records.environment))
    versions = sorted({row["version"] for row in view.rows if row["version"]})
    finished = sorted(row["finished"] for row in view.rows if row["finished"])
    facts += [("version of the jobs", ", ".join(versions))] if versions else []
    facts += [("first job finished", finished[0]), ("last job finished", finished[-1])] if finished else []
    reprs = sorted({(row["solver"], row["solver_repr"] or "unknown") for row in view.rows})
    blocks: list[Block] = [
        view.tables.add("environment", "Machine and versions", {"what": "", "value": ""}, facts),
        view.tables.add("solvers", "Solvers and their options", {"solver": "", "options": ""}, reprs),
    ]
    return Section("Environment, and how to run it again", [*blocks, *_commands(view.records)])


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif value is not None:
            yield f"{prefix}{name}", str(value)


def _commands(records: Records) -> list[Block]:
    folder, campaign = shlex.quote(str(records.folder)), str(records.environment.get("file", "campaign.toml"))
    file = shlex.quote(campaign)
    return [
        Code(
            f"prunesolve batch {file} --out {folder}        # goes on where it stopped; what is solved stays\n"
            f"prunesolve batch {file} --out NEW_FOLDER        # from the beginning\n"
            f"prunesolve report {folder}        # this page once more"
        ),
        "The campaign's folder keeps a copy of the campaign file; paths in it are relative to where the original lay.",
    ]


_SECTIONS = (
    _summary,
    _performance,
    _gap_profile,
    _targets,
    _progress,
    _pairs,
    _instances,
    _failures,
    _environment,
)
