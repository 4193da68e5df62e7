"""Solvers two by two, on the instances that both ran on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from .quality import TIE, Best, median_gaps
from .quantiles import quantile
from .rows import Row
from .significance import LEVEL, holm, signed_ranks


class Pair(NamedTuple):
    """Two solvers on the instances that both ran on; wins are a's.

    `difference` is the median of a's gap minus b's; `p` that of Wilcoxon's signed-rank test, `adjusted` the same after
    Holm's correction over all pairs, both None where fewer than six instances differ; `ahead` is who has the larger
    rank sum.
    """

    a: str
    b: str
    wins: int
    ties: int
    losses: int
    difference: float
    p: float | None
    adjusted: float | None
    ahead: str | None

    @property
    def shown(self) -> bool:
        """Whether the difference is significant at 5 %."""
        return self.adjusted is not None and self.adjusted < LEVEL


def pairwise(rows: Sequence[Row], known: Mapping[str, Best] | None = None) -> list[Pair]:
    """Every pair of solvers: wins, ties and losses on instances, and Wilcoxon's test of their gaps.

    Of each instance counts the median over runs. Two medians tie within 1e-9 of the best known. The test is on the
    differences of the relative gaps of the instances that do not tie; one that only one of the two solved counts as a
    difference larger than all others.

    Parameters
    ----------
    rows : sequence of rows
        Of all solvers.
    known : {instance: Best}, optional
        By default that of the rows.

    Returns
    -------
    list of Pair
        In alphabetical order.

    Reference
    ---------
    Wilcoxon 1945, "Individual comparisons by ranking methods"; Holm 1979, "A simple sequentially rejective multiple
    test procedure".

    Examples
    --------
    >>> row = {"instance": "a", "feasible": True, "best_known": None}
    >>> rows = [row | {"solver": "s", "objective": -2.0}, row | {"solver": "t", "objective": -1.0}]
    >>> pairwise(rows)[0][:5], pairwise(rows)[0].p
    (('s', 't', 1, 0, 0), None)
    """
    medians = median_gaps(rows, known)
    solvers = sorted({row["solver"] for row in rows})
    pairs = [_pair(a, b, medians.values()) for a, b in combinations(solvers, 2)]
    tested = [i for i, pair in enumerate(pairs) if pair.p is not None]
    for i, adjusted in zip(tested, holm([pairs[i].p for i in tested]), strict=True):
        pairs[i] = pairs[i]._replace(adjusted=float(adjusted))
    return pairs


def _pair(a: str, b: str, medians: Iterable[Mapping[str, float]]) -> Pair:
    # where neither solved an instance both gaps are inf, whose difference is none
    both = [(of[a], of[b]) for of in medians if a in of and b in of]
    differences = np.array([0.0 if x == y else x - y for x, y in both], dtype=np.float64)
    apart = differences[np.abs(differences) > TIE]
    p, balance = signed_ranks(apart)
    return Pair(
        a,
        b,
        int((apart < 0).sum()),
        len(both) - len(apart),
        int((apart > 0).sum()),
        float(quantile(differences, 0.5)) if both else math.nan,
        p,
        None,
        None if balance == 0 else a if balance < 0 else b,
    )


def standings(pairs: Iterable[Pair]) -> dict[str, float]:
    """Wins minus losses over all comparisons of a solver, between -1 and 1, the best first."""
    balance: dict[str, int] = {}
    played: dict[str, int] = {}
    for pair in pairs:
        for solver, sign in ((pair.a, 1), (pair.b, -1)):
            balance[solver] = balance.get(solver, 0) + sign * (pair.wins - pair.losses)
            played[solver] = played.get(solver, 0) + pair.wins + pair.ties + pair.losses
    shares = {solver: balance[solver] / max(1, played[solver]) for solver in balance}
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))
