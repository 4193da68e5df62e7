"""The feasible flip of each unit, alone or in exchange with one of the other side, that changes f least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunesolve.problems import Budget, GroupBounds
from prunesolve.problems._arrays import Bits, Floats, Indices

from .terms import RELATIVE, Selected, Terms
from .tight import marginal

_CHUNK = 256  # kept units whose exchanges are looked at together


@dataclass(frozen=True)
class Flips:
    """(n,) each unit's least change of f by a feasible flip, infinite without one, and its partner, -1 for none."""

    cost: Floats
    partner: Indices


def least_flips(problem: Selected, kept: Bits, terms: Terms) -> Flips:
    """Alone, or in exchange with one of the other side, whichever is feasible and changes f least."""
    moves = _Moves(problem, kept)
    fields = terms.linear + terms.couplings
    cost = np.where(moves.alone, np.where(kept, -fields, fields), np.inf)
    partner = np.full(problem.n, -1, dtype=np.int64)
    stay, into = np.flatnonzero(kept), np.flatnonzero(~kept)
    for first in range(0, len(stay) if len(into) else 0, _CHUNK):
        out = stay[first : first + _CHUNK]
        change = np.where(moves.swaps(out, into), terms.swaps(out, into), np.inf)
        for units, mates, best in (
            (out, into[change.argmin(axis=1)], change.min(axis=1)),
            (into, out[change.argmin(axis=0)], change.min(axis=0)),
        ):
            better = best < cost[units]
            cost[units[better]], partner[units[better]] = best[better], mates[better]
    return Flips(cost, partner)


class _Moves:
    """Which flips and exchanges of a feasible selection stay feasible."""

    def __init__(self, problem: Selected, kept: Bits) -> None:
        self._kept = kept
        self._bounds = [_Counts.of(c, kept) for c in problem.constraints if isinstance(c, GroupBounds)]
        self._budgets = [_Purse.of(c, kept) for c in problem.constraints if isinstance(c, Budget)]
        self._counted = problem.k is not None

    @property
    def alone(self) -> Bits:
        """(n,) units that may go, or come, by themselves."""
        fits = np.full(len(self._kept), not self._counted)
        for bounds in self._bounds:
            fits &= np.where(self._kept, bounds.may_go, bounds.may_come)
        for purse in self._budgets:
            fits &= self._kept | (purse.price <= purse.left)
        return fits

    def swaps(self, out: Indices, into: Indices) -> Bits:
        """(out, into) kept units that may go for dropped ones."""
        fits = np.ones((len(out), len(into)), dtype=bool)
        for b in self._bounds:
            same = (b.group[out][:, None] == b.group[into]) & (b.group[into] >= 0)
            fits &= same | (b.may_go[out][:, None] & b.may_come[into])
        for purse in self._budgets:
            fits &= purse.price[into] - purse.between(out, into) <= purse.left + purse.price[out][:, None]
        return fits


@dataclass(frozen=True)
class _Counts:
    """Which units their groups can spare or take."""

    group: Indices
    may_go: Bits
    may_come: Bits

    @classmethod
    def of(cls, bounds: GroupBounds, kept: Bits) -> _Counts:
        counts = bounds.counts(kept)
        # the last entry is what group -1 looks up
        spare, room = np.append(counts > bounds.low, True), np.append(counts < bounds.high, True)
        return cls(bounds.group, spare[bounds.group], room[bounds.group])


@dataclass(frozen=True)
class _Purse:
    """What is left of a budget, and what each unit costs beside the kept ones."""

    left: float
    price: Floats
    pair: Any

    @classmethod
    def of(cls, budget: Budget, kept: Bits) -> _Purse:
        capped = budget.capped  # a cost of 1e300 would take the digits of all others along
        left = capped.limit - float(capped.spent(kept)) + RELATIVE * budget.scale
        return cls(left, marginal(capped, kept), None if capped.pair is None else capped.pair.tocsr())

    def between(self, out: Indices, into: Indices) -> Any:
        return 0.0 if self.pair is None else self.pair[out][:, into].toarray()
