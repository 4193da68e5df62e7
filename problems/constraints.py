r"""What a selection x in {0, 1}^n must satisfy: exact cardinality, bounds per group, budgets.

    Cardinality      sum_i x_i = k
    GroupBounds      low_g <= sum_{i in g} x_i <= high_g
    Budget           sum_i c_i x_i + sum_{i<j} q_ij x_i x_j <= limit

Several of each may be combined in one problem.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ._arrays import LARGEST, Bits, Floats, Indices, floats, integers, number, symmetric_sparse, whole
from ._errors import InvalidProblem

TOLERANCE = 1e-9
_CAP = 1e3  # limits; far above what could be met, and a sum that holds it keeps the digits of all others


class Constraint(ABC):
    """A condition on a selection; `violation` is 0 where it holds, in the constraint's own unit where it does not."""

    scale: float = 1.0

    @abstractmethod
    def check(self, n: int) -> None:
        """Refuse a problem of n variables that this constraint does not fit or that cannot meet it."""

    @abstractmethod
    def _excess(self, x: Bits) -> Any:
        """By how much each selection in x (..., n) breaks the constraint."""

    def violation(self, x: Bits) -> Any:
        """By how much x (n,), as a float, or each row of x (m, n) breaks the constraint."""
        excess = self._excess(x)
        return float(excess) if x.ndim == 1 else excess

    def holds(self, x: Bits) -> Any:
        """Whether the violation is at most 1e-9 of the constraint's scale."""
        return self.violation(x) <= TOLERANCE * self.scale


@dataclass(frozen=True, eq=False)
class Cardinality(Constraint):
    """Keep exactly k units: sum_i x_i = k.

    Parameters
    ----------
    k : int
        Number of ones, 0 <= k <= n.

    Examples
    --------
    >>> Cardinality(2).violation(np.array([True, False, False]))
    1.0
    """

    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", whole("Cardinality.k", self.k))
        if self.k < 0:
            raise InvalidProblem(f"Cardinality.k: expected a whole number >= 0, got {self.k}")

    def check(self, n: int) -> None:
        """Refuse k > n."""
        if self.k > n:
            raise InvalidProblem(f"Cardinality: k = {self.k} of n = {n} units; the largest that can be kept is {n}")

    def _excess(self, x: Bits) -> Any:
        return np.abs(x.sum(axis=-1) - self.k).astype(np.float64)


@dataclass(frozen=True, eq=False)
class GroupBounds(Constraint):
    """Keep between low_g and high_g units of every group g.

    Parameters
    ----------
    group : (n,) int
        Group of each unit, -1 for none.
    low, high : (g,) int
        Bounds on the number kept.

    Raises
    ------
    InvalidProblem
        If low > high, or a group is smaller than its lower bound.

    Examples
    --------
    >>> two_of_four = GroupBounds(group=[0, 0, 0, 0], low=[2], high=[2])
    >>> two_of_four.violation(np.array([True, True, True, False]))
    1.0
    """

    group: Indices
    low: Indices
    high: Indices

    def __post_init__(self) -> None:
        group = integers("GroupBounds.group", self.group, (None,))
        low = integers("GroupBounds.low", self.low, (None,))
        high = integers("GroupBounds.high", self.high, (len(low),))
        for name, value in (("group", group), ("low", low), ("high", high)):
            object.__setattr__(self, name, value)
        if group.size and (group.min() < -1 or group.max() >= len(low)):
            raise InvalidProblem(
                f"GroupBounds.group: expected -1 to {len(low) - 1}, got {group.min()} to {group.max()}"
            )
        sizes = np.bincount(group[group >= 0], minlength=len(low))
        for g in np.flatnonzero((low > high) | (low > sizes) | (high < 0)):
            raise InvalidProblem(
                f"GroupBounds: group {g} has {sizes[g]} units and asks for {low[g]} to {high[g]}; "
                f"the bounds must meet 0 to {sizes[g]}"
            )

    @cached_property
    def sizes(self) -> Indices:
        """(g,) units in each group."""
        return np.bincount(self.group[self.group >= 0], minlength=len(self.low))

    def check(self, n: int) -> None:
        """Refuse a group vector of another length."""
        if len(self.group) != n:
            raise InvalidProblem(f"GroupBounds.group: expected one entry for each of n = {n}, got {len(self.group)}")

    def counts(self, x: Bits) -> Indices:
        """(..., g) units kept in each group."""
        groups, rows = len(self.low), np.atleast_2d(x)
        row, unit = np.nonzero(rows & (self.group >= 0))
        kept = np.bincount(row * groups + self.group[unit], minlength=len(rows) * groups)
        return kept.reshape(*x.shape[:-1], groups)

    def _excess(self, x: Bits) -> Any:
        kept = self.counts(x)
        missing, surplus = np.maximum(self.low - kept, 0), np.maximum(kept - self.high, 0)
        return (missing + surplus).sum(axis=-1).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Budget(Constraint):
    r"""Spend at most `limit`: sum_i c_i x_i + sum_{i<j} q_ij x_i x_j <= limit.

    Parameters and multiply-adds are bilinear in the widths of neighbouring layers; `pair` makes them exact.

    Parameters
    ----------
    cost : (n,) float >= 0
        Cost of each unit in the resource's own unit.
    limit : float
        The most that may be spent.
    pair : (n, n) sparse or dense, optional
        Symmetric, zero diagonal, entries >= 0; each pair is counted once.

    Raises
    ------
    InvalidProblem
        If a cost is negative or the limit is below 0.

    Examples
    --------
    >>> Budget(cost=[3.0, 4.0], limit=5.0).violation(np.array([True, True]))
    2.0
    """

    cost: Floats
    limit: float
    pair: Any = None

    def __post_init__(self) -> None:
        cost = floats("Budget.cost", self.cost, (None,))
        if cost.size and cost.min() < 0:
            raise InvalidProblem(f"Budget.cost: expected costs >= 0, got {cost.min()}; keeping a unit never pays back")
        limit = number("Budget.limit", self.limit)
        if limit < 0:
            raise InvalidProblem(f"Budget.limit: expected a number >= 0, got {limit}; the smallest is 0")
        object.__setattr__(self, "cost", cost)
        object.__setattr__(self, "limit", limit)
        if self.pair is not None:
            object.__setattr__(self, "pair", _pair_costs(self.pair, len(cost)))
        with np.errstate(over="ignore"):
            total = cost.sum() + limit + (0.0 if self.pair is None else self.pair.data.sum() / 2)
        if not total <= LARGEST:
            raise InvalidProblem(
                f"Budget: expected costs and a limit up to {LARGEST:g} in all, got {total:.3g}: sums would leave the "
                "float64 range; divide cost, pair and limit by 1e10"
            )

    @cached_property
    def scale(self) -> float:  # type: ignore[override]
        """Size of the numbers compared: what all units would spend together, none counted above the limit.

        In the budget's own unit, without a floor: costs of microseconds must not all fall below the tolerance, nor one
        unit that nobody can afford lift it above all others.
        """
        total = float(np.minimum(self.cost, self.limit).sum())
        if self.pair is not None:
            total += float(np.minimum(self.pair.data, self.limit).sum()) / 2
        return max(total, self.limit, math.ulp(0.0))

    @cached_property
    def capped(self) -> Budget:
        """The same condition with no cost above 1000 limits, for searches that keep sums: 1e300 + 1 - 1e300 is 0."""
        if not self.limit:
            pair = None if self.pair is None else (self.pair > 0).astype(np.float64)
            return Budget((self.cost > 0).astype(np.float64), 0.0, pair)
        cap = _CAP * self.limit
        if max(self.cost.max(initial=0.0), 0.0 if self.pair is None else self.pair.data.max(initial=0.0)) <= cap:
            return self
        pair = None if self.pair is None else self.pair.minimum(self.pair.sign() * cap)
        return Budget(np.minimum(self.cost, cap), self.limit, pair)

    def check(self, n: int) -> None:
        """Refuse costs of another length."""
        if len(self.cost) != n:
            raise InvalidProblem(f"Budget.cost: expected one entry for each of n = {n} units, got {len(self.cost)}")

    def spent(self, x: Bits) -> Any:
        """What x (n,) or each row of x (m, n) costs."""
        kept = x.astype(np.float64)
        spent = kept @ self.cost
        if self.pair is not None:
            spent = spent + 0.5 * (kept * (self.pair @ kept.T).T).sum(axis=-1)
        return spent

    def _excess(self, x: Bits) -> Any:
        return np.maximum(self.spent(x) - self.limit, 0.0)


def _pair_costs(pair: Any, n: int) -> Any:
    if not hasattr(pair, "tocsr"):
        pair = floats("Budget.pair", pair, (n, n))
    matrix = symmetric_sparse("Budget.pair", pair, n, remedy="x_i x_i = x_i belongs to `cost`")
    if matrix.nnz and matrix.data.min() < 0:
        raise InvalidProblem(f"Budget.pair: expected entries >= 0, got {matrix.data.min()}; keeping never pays back")
    return matrix
