"""The best that is known of each instance, and how far results are from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .quantiles import quantile
from .rows import Floats, Row, solved

TIE = 1e-9  # relative; two objectives closer than this are one
TINY = 1e-12  # gaps to a best known of at most this magnitude are absolute


class Best(NamedTuple):
    """The least objective known of an instance; `given` says that it came with the instance, not from the campaign."""

    value: float
    given: bool


def best_known(rows: Iterable[Row]) -> dict[str, Best]:
    """The least objective of each instance: of all feasible results and of what came with the instance.

    Parameters
    ----------
    rows : iterable of rows
        Of all solvers.

    Returns
    -------
    {instance: Best}
        Without the instances of which nothing is known.

    Examples
    --------
    >>> row = {"instance": "a", "feasible": True, "objective": -2.0, "best_known": -3.0}
    >>> best_known([row, row | {"objective": -3.5}])
    {'a': Best(value=-3.5, given=False)}
    """
    known: dict[str, Best] = {}
    for row in rows:
        offers = [Best(row["objective"], False)] if solved(row) else []
        if row["best_known"] is not None and math.isfinite(row["best_known"]):
            offers.append(Best(row["best_known"], True))
        for offer in offers:
            held = known.get(row["instance"], Best(math.inf, False))
            # of equals the one that came with the instance is named
            known[row["instance"]] = min(held, offer, key=lambda best: (best.value, not best.given))
    return known


def best_bound(rows: Iterable[Row]) -> float | None:
    """The largest lower bound that any run proved; None where none did."""
    return max((row["bound"] for row in rows if row["bound"] is not None and math.isfinite(row["bound"])), default=None)


def scale(best: float) -> float:
    """What a difference to the best known is divided by: its magnitude, or 1 where that is at most 1e-12."""
    return abs(best) if abs(best) > TINY else 1.0


def gap(objective: Any, best: float) -> Any:
    """(objective - best) / |best|, the difference itself where |best| <= 1e-12.

    Examples
    --------
    >>> gap(-9.0, -10.0), gap(0.5, 0.0)
    (0.1, 0.5)
    """
    return (objective - best) / scale(best)


def gaps(rows: Sequence[Row], known: Mapping[str, Best] | None = None) -> Floats:
    """The gap of each row to the best known of its instance.

    Parameters
    ----------
    rows : sequence of m rows
        Of any solvers.
    known : {instance: Best}, optional
        By default that of the rows.

    Returns
    -------
    (m,) float
        At least 0; inf without a feasible result.
    """
    known = best_known(rows) if known is None else known
    return np.array(
        [gap(row["objective"], known[row["instance"]].value) if solved(row) else math.inf for row in rows],
        dtype=np.float64,
    )


def median_gaps(rows: Sequence[Row], known: Mapping[str, Best] | None = None) -> dict[str, dict[str, float]]:
    """The median gap of each solver's runs on each instance: the gap of its median objective.

    Returns
    -------
    {instance: {solver: gap}}
        inf where half of the runs or more brought nothing feasible.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for row, value in zip(rows, gaps(rows, known), strict=True):
        found.setdefault(row["instance"], {}).setdefault(row["solver"], []).append(float(value))
    return {
        instance: {solver: float(quantile(values, 0.5)) for solver, values in solvers.items()}
        for instance, solvers in found.items()
    }
