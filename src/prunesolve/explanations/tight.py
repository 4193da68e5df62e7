"""Which constraints are at their limits, and what each unit adds to what they count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prunesolve.problems import Budget, Cardinality, GroupBounds
from prunesolve.problems._arrays import Bits, Floats, Indices

from .labels import unit_of
from .terms import RELATIVE, Selected
from .words import counted


@dataclass(frozen=True)
class Tight:
    """A constraint at its limit: what keeping each of its units adds to its count, and where its multiplier may lie."""

    kind: type
    name: str
    units: Indices
    rate: Floats
    low: float
    high: float

    @property
    def one_sided(self) -> bool:
        """Whether the multiplier has one sign only."""
        return not (np.isinf(self.low) and np.isinf(self.high))


def tight_constraints(problem: Selected, kept: Bits) -> tuple[list[Tight], list[str]]:
    """The constraints at their limits, and the names of those that are not."""
    tight: list[Tight] = []
    loose: list[str] = []
    exact = any(
        isinstance(c, GroupBounds) and (c.group >= 0).all() and (c.low == c.high).all() for c in problem.constraints
    )
    for constraint in problem.constraints:
        if isinstance(constraint, Cardinality):
            name = f"exactly {constraint.k} units"
            if exact:
                loose.append(f"{name} (follows from the groups)")
            else:
                tight.append(Tight(Cardinality, name, np.arange(problem.n), np.ones(problem.n), -np.inf, np.inf))
        elif isinstance(constraint, GroupBounds):
            found = list(_tight_groups(problem, constraint, kept))
            tight += found
            if len(found) < len(constraint.low):
                loose.append(f"bounds of {counted(len(constraint.low) - len(found), 'group')}")
        elif isinstance(constraint, Budget):
            tight += (budget := _tight_budget(constraint, kept))
            loose += [] if budget else [_budget_name(constraint, kept)]
    return tight, loose


def _tight_groups(problem: Selected, bounds: GroupBounds, kept: Bits) -> Iterator[Tight]:
    counts = bounds.counts(kept)
    floor, ceiling = (counts <= bounds.low) & (bounds.low > 0), (counts >= bounds.high) & (bounds.high < bounds.sizes)
    for g in np.flatnonzero(floor | ceiling):
        members = np.flatnonzero(bounds.group == g)
        word = "exactly" if floor[g] and ceiling[g] else "at least" if floor[g] else "at most"
        name = f"{word} {counts[g]} of {_group_name(problem, members, int(g))}"
        low, high = -np.inf if floor[g] else 0.0, np.inf if ceiling[g] else 0.0
        yield Tight(GroupBounds, name, members, np.ones(len(members)), low, high)


def _group_name(problem: Selected, members: Indices, g: int) -> str:
    """The layer where all units of the group and no others are of one, else its number."""
    layers = [layer for layer, _ in map(unit_of, problem.labels or ())]
    own = {layers[i] for i in members} if layers else set()
    if len(own) != 1 or None in own or sum(layer in own for layer in layers) != len(members):
        return f"group {g}"
    return str(own.pop())


def _tight_budget(budget: Budget, kept: Bits) -> list[Tight]:
    """The budget as long as some dropped unit does not fit into what is left."""
    rate = marginal(budget, kept)
    room = budget.limit - budget.spent(kept) + RELATIVE * budget.scale
    if not (rate[~kept] > room).any():
        return []
    units = np.flatnonzero(rate > 0)
    return [Tight(Budget, _budget_name(budget, kept), units, rate[units], 0.0, np.inf)]


def _budget_name(budget: Budget, kept: Bits) -> str:
    return f"budget, {budget.spent(kept):.6g} of {budget.limit:.6g} spent"


def marginal(budget: Budget, kept: Bits) -> Floats:
    """(n,) c_i + sum_j q_ij x_j: what keeping i costs, the others as they are."""
    return budget.cost if budget.pair is None else budget.cost + budget.pair @ kept.astype(np.float64)
