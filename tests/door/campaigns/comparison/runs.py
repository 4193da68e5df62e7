"""Rows as a campaign leaves them, with the columns that statistics ask for."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from prunesolve.campaigns.records import COLUMNS

INF = math.inf


def row(instance, solver, objective, **columns):
    """A run; None brought nothing feasible."""
    found = objective is not None
    known = {"instance": instance, "solver": solver, "objective": objective, "feasible": found, "status": "FINISHED"}
    return dict.fromkeys(COLUMNS) | known | columns


def duel(differences):
    """Two solvers on instances whose best known is 1, where b is at it and a's gap is larger by each difference."""
    rows = []
    for i, difference in enumerate(differences):
        a, b = (1 + difference, 1.0) if difference >= 0 else (1.0, 1 - difference)
        rows += [row(f"i{i}", "a", None if a == INF else a), row(f"i{i}", "b", None if b == INF else b)]
    return rows


values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)
