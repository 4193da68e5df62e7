"""Values in the sense of their own instance."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prunesolve.campaigns.comparison import Row


def sense_of(rows: Sequence[Row]) -> str:
    """The sense of an instance, of whose rows some may not tell it."""
    return next((row["sense"] for row in rows if row["sense"] is not None), "minimise")


def native(value: float | None, sense: str) -> float | None:
    """The value in the sense of the instance; None where there is none."""
    if value is None or not math.isfinite(value):
        return None
    return 0.0 - value if sense == "maximise" else float(value)
