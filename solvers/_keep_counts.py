"""How many units each group keeps, as a level of its own: which ones follows from a surrogate's ranking inside it.

From one selection a nested order of each group is read off the surrogate: units go, and come, one at a time by the
least change of its value. Level s of group g then keeps the first c_g[s] of the group's order, and a decision about
n units becomes one about as many levels as there are groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, BlackBox, Blocks, GroupBounds, InvalidProblem, LevelTuples, Unit
from prunesolve.problems._arrays import Bits, Indices

_FINEST = 32  # steps that a group is divided into at most


class KeepCounts:
    """The neighbourhood of a selection in which groups change how much they keep.

    Parameters
    ----------
    box : BlackBox
        Over selections with a cardinality, with a `BinaryQuadratic` as surrogate.
    x : (n,) bool
        The selection in the middle.
    levels : int
        Most levels of a group.

    Attributes
    ----------
    box : BlackBox
        Over `LevelTuples`; it evaluates what the tuples stand for.
    start : (L,) int
        The tuple that stands for x.

    Raises
    ------
    InvalidProblem
        If no groups are known, or there is no cardinality to share among them.
    """

    def __init__(self, box: BlackBox, x: Bits, levels: int) -> None:
        reason = refusal(box)
        if reason is not None:
            raise InvalidProblem(reason)
        self._full, self._parts = box, parts(box)
        self._orders = [_order(box.surrogate, x, part) for part in self._parts]
        low, high = _limits(box, self._parts)
        step = max(1, int(np.median([len(part) for part in self._parts])) // _FINEST)
        kept = [int(x[part].sum()) for part in self._parts]
        self._counts = [_levels(*found, step, levels) for found in zip(kept, low, high, strict=True)]
        self.start = np.array([int(np.flatnonzero(c == k)[0]) for c, k in zip(self._counts, kept, strict=True)])
        evaluate = self._evaluate if box.weights is None else self._evaluate_batch
        space = LevelTuples(self._counts, sum(kept))
        self.box = BlackBox(space, evaluate, _Lifted(self), box.weights)

    def selection(self, tuples: Any) -> Bits:
        """(n,) or (m, n): the selections that level tuples (L,) or (m, L) stand for."""
        rows = np.atleast_2d(np.asarray(tuples))
        x = np.zeros((len(rows), self._full.n), dtype=bool)
        for g, (order, counts) in enumerate(zip(self._orders, self._counts, strict=True)):
            x[:, order] = np.arange(len(order)) < counts[rows[:, g]][:, None]
        return x if np.ndim(tuples) == 2 else x[0]

    def _evaluate(self, tuples: Any) -> Any:
        return self._values(tuples, [0])

    def _evaluate_batch(self, tuples: Any, batch: int) -> Any:
        return self._values(tuples, [batch])

    def _values(self, tuples: Any, batches: Sequence[int]) -> Any:
        """Values of what the tuples stand for; a further constraint may forbid some, which then have none."""
        x = self.selection(tuples)
        values = np.full(len(x), np.inf)
        feasible = self._full.is_feasible(x)
        if feasible.any():
            values[feasible] = self._full.partial(x[feasible], batches)
        return values


class _Lifted:
    """The surrogate's value of what a tuple stands for."""

    def __init__(self, counts: KeepCounts) -> None:
        self._counts = counts

    def value(self, tuples: Any) -> Any:
        return self._counts._full.surrogate.value(self._counts.selection(tuples))


def refusal(box: BlackBox) -> str | None:
    """Why the counts of a black box cannot be varied, None where they can."""
    if not isinstance(box.surrogate, BinaryQuadratic):
        return "over='counts' ranks units by a BinaryQuadratic surrogate, this black box has none"
    if box.k is None:
        return "over='counts' shares a cardinality among the groups, this problem has none; take over='bits'"
    if len(parts(box)) < 2:
        return "over='counts' needs groups (meta['groups'], GroupBounds, Unit labels, Blocks), this problem names none"
    return None


def parts(box: BlackBox) -> list[Indices]:
    """The units of each group, as meta, bounds or labels name them or as the couplings fall apart."""
    n, named = box.n, box.meta.get("groups") or box.surrogate.meta.get("groups")
    if named and sum(int(group["size"]) for group in named) == n:
        return np.split(np.arange(n), np.cumsum([int(group["size"]) for group in named])[:-1])
    for bounds in box.of_kind(GroupBounds):
        if (bounds.group >= 0).all():
            return _alike(bounds.group)
    if box.labels is not None and all(isinstance(label, Unit) for label in box.labels):
        return _alike(np.unique([label.layer for label in box.labels], return_inverse=True)[1])
    couplings = box.surrogate.couplings
    if isinstance(couplings, Blocks):
        return _alike(couplings.block_of)
    return [np.arange(n)]


def _alike(group: Indices) -> list[Indices]:
    return [np.flatnonzero(group == g) for g in np.unique(group)]


def _order(surrogate: BinaryQuadratic, x: Bits, part: Indices) -> Indices:
    """The part's units, those worth most first: what stays longest, then what comes back first."""
    stays = _walk(surrogate, x, part[x[part]])
    comes = _walk(surrogate, x, part[~x[part]])
    return np.concatenate([stays[::-1], comes]).astype(np.int64)


def _walk(surrogate: BinaryQuadratic, x: Bits, units: Indices) -> Indices:
    """The units in the order in which flipping them one after the other changes the value least."""
    left, fields, order = list(units), surrogate.fields(x), []
    sign = -1.0 if len(units) and x[units[0]] else 1.0
    while left:
        i = left.pop(int(np.argmin(sign * fields[left])))
        fields = fields + sign * surrogate.couplings.row(i)
        order.append(i)
    return np.array(order, dtype=np.int64)


def _limits(box: BlackBox, groups: Sequence[Indices]) -> tuple[list[int], list[int]]:
    """Fewest and most units that each group may keep, as far as bounds on these very groups say."""
    low, high = [0] * len(groups), [len(part) for part in groups]
    for bounds in box.of_kind(GroupBounds):
        for g, part in enumerate(groups):
            names = np.unique(bounds.group[part])
            if len(names) == 1 and names[0] >= 0 and bounds.sizes[names[0]] == len(part):
                low[g], high[g] = max(low[g], int(bounds.low[names[0]])), min(high[g], int(bounds.high[names[0]]))
    return low, high


def _levels(kept: int, low: int, high: int, step: int, levels: int) -> Indices:
    """Counts around `kept` within the limits, `step` apart."""
    reach = max(1, (levels - 1) // 2)
    counts = kept + step * np.arange(-reach, reach + 1)
    return counts[(counts >= low) & (counts <= high)]
