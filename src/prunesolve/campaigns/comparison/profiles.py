"""Shares of problems within a factor of the fastest solver, and of values within a limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .rows import Floats


class Profile(NamedTuple):
    """Points x (k,) and for each label the share (k,) of values that are at most x."""

    x: Floats
    shares: dict[str, Floats]


def profile(times: Mapping[str, Any]) -> Profile:
    r"""Performance profiles: the share of problems on which a solver is within a factor of the fastest.

    rho_s(x) = |{p : t_ps <= x min_r t_pr}| / m

    Parameters
    ----------
    times : {solver: (m,) float > 0}
        What each problem took, inf where the solver did not get there. A problem that none solved still counts.

    Returns
    -------
    Profile
        At every ratio that occurs, from 1.

    Reference
    ---------
    Dolan and Moré 2002, "Benchmarking optimization software with performance profiles".

    Examples
    --------
    >>> drawn = profile({"s": [1.0, 4.0], "t": [2.0, 1.0]})
    >>> drawn.x.tolist(), drawn.shares["s"].tolist()
    ([1.0, 2.0, 4.0], [0.5, 0.5, 1.0])
    """
    taken = np.array(list(times.values()), dtype=np.float64)
    fastest = taken.min(axis=0)
    ratios = np.full(taken.shape, math.inf)
    np.divide(taken, fastest, out=ratios, where=np.isfinite(fastest) & np.isfinite(taken))
    return cumulative(dict(zip(times, ratios, strict=True)), start=1.0)


def cumulative(values: Mapping[str, Any], start: float) -> Profile:
    """The share of each label's values at most x, at every x >= start that occurs; inf never counts.

    Examples
    --------
    >>> cumulative({"s": [0.1, 0.5, math.inf, 0.2]}, start=0.2).shares["s"].tolist()
    [0.5, 0.75]
    """
    sets = {label: np.sort(np.asarray(of, dtype=np.float64)) for label, of in values.items()}
    joined = np.concatenate([*sets.values(), [start]])
    x = np.unique(np.maximum(joined[np.isfinite(joined)], start))
    return Profile(x, {label: np.searchsorted(of, x, side="right") / max(1, len(of)) for label, of in sets.items()})
