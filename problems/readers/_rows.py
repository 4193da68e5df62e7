r"""Rows as files of other people have them, low <= sum c_i x_i + sum q_ij x_i x_j <= high, and our constraints.

A row becomes what it says:

    sum over all x_i = k                                  Cardinality(k)
    low <= sum over some x_i <= high                      GroupBounds, disjoint ones together in one
    sum c_i x_i + sum q_ij x_i x_j <= limit, c, q >= 0    Budget

Anything else is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunesolve.problems._arrays import Bits, Floats, Indices
from prunesolve.problems._errors import InvalidProblem, UnsupportedProblem
from prunesolve.problems.constraints import TOLERANCE, Budget, Cardinality, Constraint, GroupBounds
from prunesolve.problems.couplings import AnyCoupling

Pairs = tuple[Indices, Indices, Floats]

_NO_PAIRS: Pairs = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True)
class Row:
    """low <= sum c_i x_i + sum q_ij x_i x_j <= high; no coefficient is 0, members ascend, i < j, each pair once."""

    label: Any
    members: Indices
    cost: Floats
    pairs: Pairs
    low: float
    high: float

    @classmethod
    def of(cls, label: Any, linear: Mapping[int, float], pairs: Pairs, low: float, high: float) -> Row:
        """The row of terms as they come: repeated pairs add up, x_i x_i = x_i, zeros go."""
        if low > high:
            raise InvalidProblem(f"constraint {label!r}: expected sides in order, got from {low:g} to {high:g}")
        i, j, q = pairs
        own, off = i == j, i != j
        summed = dict(linear)
        for member, coefficient in zip(i[own].tolist(), q[own].tolist(), strict=True):
            summed[member] = summed.get(member, 0.0) + coefficient
        members = np.array(sorted(m for m, c in summed.items() if c), dtype=np.int64)
        cost = np.array([summed[m] for m in members.tolist()], dtype=np.float64)
        return cls(label, members, cost, _added(i[off], j[off], q[off]), float(low), float(high))

    @property
    def uniform(self) -> float | None:
        """The one coefficient all its variables have, None where they differ or are multiplied."""
        same = len(self.cost) and not len(self.pairs[2]) and (self.cost == self.cost[0]).all()
        return float(self.cost[0]) if same else None

    @property
    def bounds(self) -> str:
        """Its two sides in a few words."""
        if self.low == self.high:
            return f"== {self.low:g}"
        if math.isinf(self.low):
            return f"<= {self.high:g}"
        return f">= {self.low:g}" if math.isinf(self.high) else f"from {self.low:g} to {self.high:g}"

    def refuse(self, reason: str) -> UnsupportedProblem:
        """An error that names the row."""
        return UnsupportedProblem(
            f"constraint {self.label!r}: {reason}; only counts (equal coefficients) and budgets (<=, no coefficient "
            "below 0) can be kept"
        )


def _added(i: Indices, j: Indices, q: Floats) -> Pairs:
    """Each pair once, i < j."""
    if not len(q):
        return _NO_PAIRS
    first, second = np.minimum(i, j), np.maximum(i, j)
    width = int(second.max()) + 1
    places, inverse = np.unique(first * width + second, return_inverse=True)
    total = np.bincount(inverse, weights=q)
    kept = total != 0
    return places[kept] // width, places[kept] % width, total[kept]


def pairs_of(couplings: AnyCoupling) -> Iterator[Pairs]:
    """Pieces (i, j, J_ij), i < j, of all entries that are not 0; a low-rank J also gives those that are."""
    for i, j, biases in couplings.pairs():
        kept = biases != 0
        if kept.any():
            yield i[kept], j[kept], biases[kept]


def rows_of(constraints: Iterable[Constraint], n: int) -> Iterator[Row]:
    """Constraints as rows; bounds that no selection breaks are left out.

    Examples
    --------
    >>> [(row.label, row.members.tolist(), row.bounds) for row in rows_of([GroupBounds([0, 0, 1], [1, 0], [1, 1])], 3)]
    [('c0_g0', [0, 1], '== 1')]
    """
    for c, constraint in enumerate(constraints):
        label = f"c{c}"
        if isinstance(constraint, Cardinality):
            yield Row(label, np.arange(n), np.ones(n), _NO_PAIRS, constraint.k, constraint.k)
        elif isinstance(constraint, GroupBounds):
            yield from _of_groups(label, constraint)
        elif isinstance(constraint, Budget):
            yield _of_budget(label, constraint)


def _of_groups(label: str, bounds: GroupBounds) -> Iterator[Row]:
    order = np.argsort(bounds.group, kind="stable")
    ends = np.searchsorted(bounds.group[order], np.arange(len(bounds.low) + 1))
    for g, (low, high, size) in enumerate(zip(bounds.low, bounds.high, bounds.sizes, strict=True)):
        least, most = float(low) if low > 0 else -math.inf, float(high) if high < size else math.inf
        if math.isfinite(least) or math.isfinite(most):
            members = order[ends[g] : ends[g + 1]]
            sides = (float(low), float(low)) if low == high else (least, most)
            yield Row(f"{label}_g{g}", members, np.ones(size), _NO_PAIRS, *sides)


def _of_budget(label: str, budget: Budget) -> Row:
    members, pairs = np.flatnonzero(budget.cost), _NO_PAIRS
    if budget.pair is not None:
        entries = budget.pair.tocoo()
        upper = (entries.row < entries.col) & (entries.data != 0)
        pairs = entries.row[upper].astype(np.int64), entries.col[upper].astype(np.int64), entries.data[upper]
    return Row(label, members, budget.cost[members], pairs, -math.inf, budget.limit)


def constraints_of(rows: Iterable[Row], n: int) -> list[Constraint]:
    """Rows as constraints, counts over the same variables and over disjoint ones brought together.

    Raises
    ------
    UnsupportedProblem
        If a row is none that Cardinality, GroupBounds or Budget says.
    InvalidProblem
        If no selection meets a row.
    """
    counts: dict[bytes, tuple[int, int]] = {}
    budgets: list[Constraint] = []
    for row in rows:
        if not len(row.members) and not len(row.pairs[2]):
            if not row.low <= 0 <= row.high:
                raise InvalidProblem(f"constraint {row.label!r}: no variable in it, and 0 {row.bounds} is false")
        elif row.uniform is None:
            budgets.extend(_budget(row, n))
        else:
            low, high = _count(row, row.uniform)
            key = row.members.tobytes()
            before = counts.get(key, (0, n))
            counts[key] = max(low, before[0]), min(high, before[1])
    return [*_counted(counts, n), *budgets]


def _count(row: Row, coefficient: float) -> tuple[int, int]:
    """The least and the most of its variables that a row of equal coefficients allows."""
    size = len(row.members)
    least, most = sorted((row.low / coefficient, row.high / coefficient))
    low = math.ceil(least - TOLERANCE) if math.isfinite(least) else 0
    high = math.floor(most + TOLERANCE) if math.isfinite(most) else size
    if low > high or low > size or high < 0:
        raise InvalidProblem(f"constraint {row.label!r}: no count of its {size} variables can be {row.bounds}")
    return max(low, 0), min(high, size)


def _budget(row: Row, n: int) -> Iterator[Budget]:
    """The budget that a row is, none where every selection meets it."""
    coefficients = np.concatenate([row.cost, row.pairs[2]])
    if row.low == row.high:
        raise row.refuse("an equality with unequal coefficients")
    if coefficients.min() < 0 < coefficients.max():
        raise row.refuse("a negative coefficient")
    sign = 1.0 if coefficients.min() > 0 else -1.0
    least, limit = sorted((sign * row.low, sign * row.high))
    if least > 0:
        raise row.refuse("a lower limit")
    if math.isfinite(limit):
        cost = np.zeros(n)
        cost[row.members] = sign * row.cost
        yield Budget(cost, limit, _symmetric(row.pairs, sign, n))


def _symmetric(pairs: Pairs, sign: float, n: int) -> Any:
    i, j, q = pairs
    if not len(q):
        return None
    from scipy import sparse

    upper = sparse.coo_array((sign * q, (i, j)), shape=(n, n))
    return upper + upper.T


def _counted(counts: Mapping[bytes, tuple[int, int]], n: int) -> Iterator[Constraint]:
    """A Cardinality where all n variables are counted exactly; the other counts packed into few GroupBounds."""
    packs: list[tuple[Bits, list[tuple[Indices, int, int]]]] = []
    for key, (low, high) in counts.items():
        members = np.frombuffer(key, dtype=np.int64)
        if len(members) == n and low == high:
            yield Cardinality(low)
            continue
        taken, pack = next((p for p in packs if not p[0][members].any()), (np.zeros(n, dtype=bool), []))
        if not pack:
            packs.append((taken, pack))
        taken[members] = True
        pack.append((members, low, high))
    for _, pack in packs:
        group = np.full(n, -1)
        for g, (members, _, _) in enumerate(pack):
            group[members] = g
        yield GroupBounds(group, np.array([low for _, low, _ in pack]), np.array([high for _, _, high in pack]))
