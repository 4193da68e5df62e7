"""When two objectives count as the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic

RELATIVE = 1e-9


def typical_bias(problem: BinaryQuadratic) -> float:
    """The median of the |a_i| that are not 0; unlike their sum it is left alone by one giant among them.

    Examples
    --------
    >>> typical_bias(BinaryQuadratic([0.0, -2.0, 3.0, 1e300]))
    3.0
    """
    sizes: Any = np.abs(problem.linear[problem.linear != 0])
    return float(np.median(sizes)) if len(sizes) else 0.0


def tolerance(objective: float, typical: float) -> float:
    """1e-9 of max(|objective|, typical bias): relative, so that an instance keeps its answer in any unit.

    Examples
    --------
    >>> tolerance(-1e-6, 1e-8), tolerance(0.0, 1e-8)
    (1e-15, 1e-17)
    """
    return RELATIVE * max(abs(objective), typical)
