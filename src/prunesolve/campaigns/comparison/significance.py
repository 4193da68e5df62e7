"""How easily chance alone would bring a difference: Wilcoxon's test, and Holm's correction of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .rows import Floats

TOO_FEW = 6  # fewer instances that differ cannot give a two-sided p below 0.05: 2 / 2^5 = 0.0625
EXACT = 50  # up to so many the test is exact; counts of sign choices stay whole numbers below 2^53
LEVEL = 0.05


def signed_ranks(differences: Any) -> tuple[float | None, float]:
    """Wilcoxon's two-sided signed-rank test of differences that are not 0.

    Parameters
    ----------
    differences : (m,) float
        Infinite ones rank above all others.

    Returns
    -------
    p : float or None
        None for fewer than six; exact up to 50, ties or not, above that scipy's normal approximation.
    balance : float
        Rank sum of the positive differences minus that of the negative ones.

    Examples
    --------
    >>> signed_ranks([1.0, 2.0, 3.0, 4.0, 5.0, np.inf])
    (0.03125, 21.0)
    """
    from scipy.stats import rankdata, wilcoxon

    values = np.asarray(differences, dtype=np.float64)
    if len(values) == 0:
        return None, 0.0
    ranks = np.sign(values) * rankdata(np.abs(values))
    balance = float(ranks.sum())
    if len(values) < TOO_FEW:
        return None, balance
    # the signed ranks in place of the differences: same test, and no infinity
    return (_exact(ranks) if len(values) <= EXACT else float(wilcoxon(ranks).pvalue)), balance


def _exact(ranks: Floats) -> float:
    """The share of all choices of signs that are at least as one-sided, counted sum by sum.

    scipy's own count leaves ties to the normal approximation, and instances that one solver alone solved all tie: 30
    wins out of 30 would then give p = 4e-8 in place of 2e-9.
    """
    doubled = np.rint(2 * np.abs(ranks)).astype(np.int64)
    counts = np.zeros(int(doubled.sum()) + 1)
    counts[0] = 1.0
    for rank in doubled:
        counts[rank:] = counts[rank:] + counts[:-rank]
    seen = int(doubled[ranks > 0].sum())
    tail = min(counts[: seen + 1].sum(), counts[seen:].sum())
    return float(min(1.0, 2 * tail / 2.0 ** len(ranks)))


def holm(p: Sequence[Any]) -> Floats:
    """Holm's correction: the i-th smallest of m values times m - i + 1, made monotone, at most 1.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted
