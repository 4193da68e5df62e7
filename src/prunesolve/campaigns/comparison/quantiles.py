"""Quantiles of values of which some are infinite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def quantile(values: Any, q: float) -> Any:
    """The q-quantile along the first axis, the mean of two neighbours where it falls between them; takes infinities.

    Parameters
    ----------
    values : (m, ...) float
        At least one; inf for what never happened.
    q : float
        Between 0 and 1; 0.5 is the median.

    Returns
    -------
    float or (...) float

    Reference
    ---------
    Hyndman and Fan 1996, "Sample quantiles in statistical packages", definition 2.

    Examples
    --------
    >>> float(quantile([4.0, 1.0, math.inf], 0.5)), float(quantile([4.0, 1.0], 0.5))
    (4.0, 2.5)
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=0)
    at = q * len(ordered)
    low, high = math.ceil(at - 1e-9) - 1, math.floor(at + 1e-9)
    return (ordered[max(0, low)] + ordered[min(len(ordered) - 1, high)]) / 2
