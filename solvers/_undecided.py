"""Which units a quadratic model is least sure about."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic
from prunesolve.problems._arrays import Floats, Indices


def margins(surrogate: BinaryQuadratic, x: Any) -> Floats:
    r"""|h_i - mu| (n,): how far each unit is from changing sides at the selection x.

    Dropping a kept unit changes f by -h_i, adding one by h_j, h = a + J x. Under a cardinality the exchange multiplier
    mu lies midway between the dearest kept and the cheapest dropped unit; without one it is 0.
    """
    kept = np.asarray(x, dtype=bool)
    fields = surrogate.fields(kept)
    exchanged = surrogate.k is not None and kept.any() and not kept.all()
    mu = fields[kept].max() / 2 + fields[~kept].min() / 2 if exchanged else 0.0
    return np.abs(fields - mu)


def undecided(surrogate: BinaryQuadratic, x: Any, m: int) -> Indices:
    """The m units of smallest margin at the selection x (n,), ascending; all of them where m is 0 or no less than n.

    Examples
    --------
    >>> undecided(BinaryQuadratic([-3.0, -1.0, 0.5, 4.0]), [True, True, False, False], 2)
    array([1, 2])
    """
    if not 0 < m < surrogate.n:
        return np.arange(surrogate.n)
    return np.sort(np.argsort(margins(surrogate, x), kind="stable")[:m])
