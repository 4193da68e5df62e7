"""A solver's campaign in a line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .quality import TIE, Best, best_known, median_gaps, scale
from .quantiles import quantile
from .rows import Row, failed, grouped, solved


class Summary(NamedTuple):
    """A solver's campaign in a line; shares between 0 and 1, None where the rows cannot tell.

    Gaps are those of the median run of each instance that it solved in the median; `bound_gap` is the median, over
    runs, of the gap to the bound that the run itself proved.
    """

    solver: str
    instances: int
    runs: int
    best_found: float | None
    mean_gap: float | None
    median_gap: float | None
    bound_gap: float | None
    feasible: float
    proved: int
    failed: int
    seconds: float | None
    evaluations: float | None


def summaries(rows: Sequence[Row], known: Mapping[str, Best] | None = None) -> list[Summary]:
    """A line for each solver, in alphabetical order."""
    known = best_known(rows) if known is None else known
    medians = median_gaps(rows, known)
    ties = _best_runs(rows, known)
    return [_summary(solver, of, medians, ties) for solver, of in sorted(grouped(rows, "solver").items())]


def _summary(
    solver: str, rows: Sequence[Row], medians: Mapping[str, Mapping[str, float]], ties: Mapping[str, set[str]]
) -> Summary:
    instances = {row["instance"] for row in rows}
    finite = [m for m in (medians[instance][solver] for instance in instances) if math.isfinite(m)]
    found = [solver in ties[instance] for instance in instances if instance in ties]
    return Summary(
        solver,
        len(instances),
        len(rows),
        sum(found) / len(found) if found else None,
        math.fsum(finite) / len(finite) if finite else None,
        float(quantile(finite, 0.5)) if finite else None,
        _median(row["gap"] for row in rows),
        sum(map(solved, rows)) / len(rows),
        sum(row["status"] == "OPTIMAL" for row in rows),
        sum(map(failed, rows)),
        _median(row["seconds"] for row in rows),
        _median(row["evaluations"] for row in rows),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(quantile(known, 0.5)) if known else None


def _best_runs(rows: Sequence[Row], known: Mapping[str, Best]) -> dict[str, set[str]]:
    """{instance: solvers whose best run ties with the best run of all}, without instances that nobody solved."""
    best: dict[str, dict[str, float]] = {}
    for row in filter(solved, rows):
        of = best.setdefault(row["instance"], {})
        of[row["solver"]] = min(row["objective"], of.get(row["solver"], math.inf))
    return {
        instance: {s for s, value in of.items() if value - min(of.values()) <= TIE * scale(known[instance].value)}
        for instance, of in best.items()
    }
