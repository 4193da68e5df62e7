"""The campaign in a few figures, and what a reader must know before trusting its tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from prunesolve.campaigns.comparison import TINY, Row, best_bound, failed, grouped, scale

from .view import View
from .words import counted, duration, listed

ROUNDING = 1e-6  # relative; a bound this far above the best known is no matter of rounding


def facts(view: View) -> dict[str, str]:
    """{label: figure} of what the page shows large."""
    repeats = {(row["seed"], row["repeat"]) for row in view.rows}
    seconds = math.fsum(row["wall_seconds"] or row["seconds"] or 0.0 for row in view.rows)
    return {
        "jobs": str(len(view.rows)),
        "instances": str(len(view.instances)),
        "solvers": str(len(view.solvers)),
        "seeds and repeats": str(len(repeats)),
        "jobs without a result": str(sum(map(failed, view.rows))),
        "time of all jobs": duration(seconds),
        **_limits(view.rows),
    }


def _limits(rows: Sequence[Row]) -> dict[str, str]:
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "time_limit": ("time limit", duration),
        "evaluation_limit": ("evaluation limit", lambda e: f"{e:,.0f}".replace(",", "\u202f")),
        "memory_limit_mib": ("memory limit", lambda m: f"{m:.0f} MiB"),
    }
    limits = {}
    for column, (name, told) in shown.items():
        values = sorted({row[column] for row in rows if row[column] is not None})
        if values:
            limits[name] = told(values[0]) + (f" to {told(values[-1])}" if len(values) > 1 else "")
    return limits or {"limits": "none"}


def remarks(view: View) -> list[str]:
    """What a reader must know before trusting the tables; nothing where all is well."""
    expected = len(view.instances) * len(view.solvers) * len({(row["seed"], row["repeat"]) for row in view.rows})
    mixed = [
        s for s, of in grouped(view.rows, "solver").items() if len({row["solver_repr"] for row in of} - {None}) > 1
    ]
    above = [instance for instance, rows in view.instances.items() if _contradicted(instance, rows, view)]
    said = {
        f"{expected - len(view.rows)} of {expected} combinations of instance, solver, seed and repeat have no job yet; "
        "solvers are compared on the instances that both ran on.": len(view.rows) < expected,
        f"{listed(mixed)}: the jobs of one name ran with different options; its figures mix them.": mixed,
        f"{listed(above)}: a bound lies above the best known objective, so one of the two is wrong.": above,
        f"{listed(view.absolute)}: the best known objective is 0 (at most {TINY:g} in magnitude), so gaps there are "
        "absolute: a difference of 0.01 counts as 1 %.": view.absolute,
        f"The traces of {counted(len(view.unread), 'run')} could not be read; they count at their end.": view.unread,
    }
    return [text for text, holds in said.items() if holds]


def _contradicted(instance: str, rows: Sequence[Row], view: View) -> bool:
    bound = best_bound(rows)
    best = view.known.get(instance)
    return bound is not None and best is not None and bound - best.value > ROUNDING * scale(best.value)
