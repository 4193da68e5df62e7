"""What a row of a campaign tells.

A row is a mapping with the keys of `records.COLUMNS`. Objectives are minimised; what brought no feasible result counts
as infinitely bad, so that no solver gains by giving up on what is hard.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from prunesolve.campaigns.records import WITHOUT_RESULT

Row = Mapping[str, Any]
Floats = np.ndarray[Any, Any]


def solved(row: Row) -> bool:
    """Whether a job brought a feasible result."""
    objective = row["objective"]
    return bool(row["feasible"]) and objective is not None and math.isfinite(objective)


def failed(row: Row) -> bool:
    """Whether a job brought no result at all: it raised, was ended or died."""
    return row["status"] in WITHOUT_RESULT


def grouped(rows: Iterable[Row], key: str) -> dict[Any, list[Row]]:
    """The rows of each value of a column, in their order."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found
