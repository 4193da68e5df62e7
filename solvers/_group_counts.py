"""How many input groups stay, in all and of each set of groups: which may leave or enter without a count being missed.

A cardinality and bounds on sets that do not overlap are the bases of a matroid: what may be completed stays so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from prunesolve.problems import GroupBounds, SubsetRegression
from prunesolve.problems._arrays import Bits, Indices


@dataclass(frozen=True, eq=False)
class GroupCounts:
    """k groups in all, low to high of each set.

    Parameters
    ----------
    k : int
        Groups that stay.
    of : (n,) int
        Set of each group, -1 for none.
    low, high : (sets,) int
        How many of each set stay.

    Examples
    --------
    >>> counts = GroupCounts(2, np.array([0, 0, -1]), np.array([1]), np.array([1]))
    >>> counts.leaving(np.ones(3, dtype=bool), [0, 1, 2], 1), counts.leaving(np.ones(3, dtype=bool), [2], 1)
    ([0], [])
    """

    k: int
    of: Indices
    low: Indices
    high: Indices

    @classmethod
    def of_problem(cls, problem: SubsetRegression) -> GroupCounts | None:
        """The problem's constraints as one, None where sets overlap.

        More kept groups never fit worse: without a Cardinality k is the most that the bounds allow.
        """
        of, low, high = np.full(problem.n, -1), np.zeros(0, np.int64), np.zeros(0, np.int64)
        for bounds in problem.of_kind(GroupBounds):
            member = bounds.group >= 0
            if (of[member] >= 0).any():
                return None
            of = np.where(member, bounds.group + len(low), of)
            low = np.concatenate([low, np.maximum(bounds.low, 0)])
            high = np.concatenate([high, np.minimum(bounds.high, bounds.sizes)])
        most = int(high.sum()) + int((of < 0).sum())
        return cls(most if problem.k is None else problem.k, of, low, high)

    def fewer(self, k: int) -> GroupCounts:
        """The same for k groups on the way to more, none of them needed yet."""
        return GroupCounts(k, self.of, np.zeros_like(self.low), self.high)

    def kept(self, kept: Bits) -> Indices:
        """(sets,) how many of each set are kept."""
        return np.bincount(self.of[kept & (self.of >= 0)], minlength=len(self.low))

    def leaving(self, kept: Bits, order: Iterable[int], many: int) -> list[int]:
        """Up to `many` kept groups, the first in order, without which k can still be chosen among the others."""
        chosen: list[int] = []
        counts = self.kept(kept)
        room = int(np.minimum(counts, self.high).sum()) + int((kept & (self.of < 0)).sum())
        for group in order:
            if len(chosen) == many:
                break
            which = int(self.of[group])
            # one above the most of its set is no loss
            spare = which >= 0 and counts[which] > self.high[which]
            if (which >= 0 and counts[which] <= self.low[which]) or (not spare and room <= self.k):
                continue
            room -= not spare
            if which >= 0:
                counts[which] -= 1
            chosen.append(int(group))
        return chosen

    def entering(self, kept: Bits, order: Iterable[int]) -> list[int]:
        """The first in order that make k of the kept groups, none of a set above its most, none below its least."""
        chosen: list[int] = []
        counts = self.kept(kept)
        left = self.k - int(kept.sum())
        missing = int(np.maximum(self.low - counts, 0).sum())
        for group in order:
            if len(chosen) == left:
                break
            which = int(self.of[group])
            wanted = which >= 0 and counts[which] < self.low[which]
            full = which >= 0 and counts[which] >= self.high[which]
            if full or (not wanted and missing >= left - len(chosen)):
                continue
            missing -= wanted
            if which >= 0:
                counts[which] += 1
            chosen.append(int(group))
        return chosen

    def exchanges(self, kept: Bits, group: int) -> Bits:
        """(groups out,) which of the groups that are out may take the place of a kept one."""
        out, which = self.of[~kept], int(self.of[group])
        if not len(self.low):
            return np.ones(len(out), dtype=bool)
        counts = self.kept(kept)
        may_leave = which < 0 or bool(counts[which] > self.low[which])
        has_room = (out < 0) | (counts < self.high)[out]
        found: Bits = (may_leave & has_room) | ((out == which) & (which >= 0))
        return found
