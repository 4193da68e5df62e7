"""Every instance with every solver on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from prunesolve.campaigns.comparison import Best, Row, best_bound, gap, grouped, quantile, solved
from prunesolve.report import Section

from .drilldown import drilldown
from .names import natural
from .senses import native, sense_of
from .view import View

_COLUMNS = {
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


def instances(view: View) -> Section:
    """Every solver on every instance in a line, then each instance to be opened."""
    note = (
        "Objectives and bounds are in the instance's own sense; the best bound is that of all solvers. The median is "
        "over all runs, a dash where half of them or more brought nothing feasible; the worst is of the feasible runs."
    )
    table = view.tables.add("instances", "", _COLUMNS, _rows(view), note)
    return Section("Instances", [table, *drilldown(view)])


def _rows(view: View) -> Iterator[Sequence[Any]]:
    for instance, rows in view.instances.items():
        n = next((row["n"] for row in rows if row["n"] is not None), None)
        sense, bound, best = sense_of(rows), best_bound(rows), view.known.get(instance)
        for solver, of in sorted(grouped(rows, "solver").items(), key=lambda item: natural(item[0])):
            bounds = (native(value, sense) for value in (best_bound(of), bound))
            yield instance, n, sense, solver, *_objectives(of, sense, best), *bounds, *_endings(of)


def _objectives(rows: Sequence[Row], sense: str, best: Best | None) -> Iterator[float | None]:
    """Best, median, worst and best known, then the gaps of the first two in percent."""
    values = sorted(row["objective"] if solved(row) else math.inf for row in rows)
    found = [value for value in values if math.isfinite(value)] or [math.inf]
    middle = float(quantile(values, 0.5))
    yield from (native(value, sense) for value in (found[0], middle, found[-1], best and best.value))
    yield from (None if best is None else 100.0 * gap(value, best.value) for value in (found[0], middle))


def _endings(rows: Sequence[Row]) -> Iterator[Any]:
    """Median seconds, the share of feasible runs in percent, how many have each status."""
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    yield float(quantile(seconds, 0.5)) if seconds else None
    yield 100.0 * sum(map(solved, rows)) / len(rows)
    counts = Counter(row["status"] for row in rows)
    yield ", ".join(f"{status} {count}" for status, count in sorted(counts.items()))
