"""Tables of what levels cost, alone and in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prunesolve.problems import Group
from prunesolve.problems._arrays import Bits, Floats, Indices
from prunesolve.problems.units import offsets

from .costs import Cost


@dataclass(frozen=True, eq=False)
class CostTable:
    """What levels cost: a sum of terms, or the largest of them.

    Parameters
    ----------
    cost : sequence of L arrays (S_l,)
    pair : {(l, m): (S_l, S_m)}, l < m
    total : "sum" or "max"
    notes : mapping
        JSON-able facts about how it was found.
    """

    cost: Sequence[Floats]
    pair: Mapping[tuple[int, int], Floats]
    total: Literal["sum", "max"]
    notes: Mapping[str, Any]

    @property
    def dense(self) -> float:
        """What the last level of each layer costs."""
        terms = [float(c[-1]) for c in self.cost] + [float(p[-1, -1]) for p in self.pair.values()]
        return sum(terms) if self.total == "sum" else max(terms)


class Terms:
    """Adds terms of one or two layers up, or keeps the largest of each; `counts` (S_l,) units kept at each level."""

    def __init__(self, counts: Sequence[Indices], total: Literal["sum", "max"] = "sum") -> None:
        self.counts, self.total = [np.asarray(c, dtype=np.float64) for c in counts], total
        self.join: Any = np.add if total == "sum" else np.maximum
        self.cost = [np.zeros(len(c)) for c in counts]
        self.pair: dict[tuple[int, int], Floats] = {}

    def constant(self, value: float) -> None:
        """A term that every choice pays."""
        self.cost[0] = self.join(self.cost[0], value)

    def single(self, layer: int, values: Floats) -> None:
        """A term of one layer, (S_l,)."""
        self.cost[layer] = self.join(self.cost[layer], values)

    def double(self, one: int, other: int, values: Floats) -> None:
        """A term of two layers, (S_one, S_other)."""
        key, table = ((one, other), values) if one < other else ((other, one), values.T)
        self.pair[key] = self.join(self.pair[key], table) if key in self.pair else table

    def table(self, **notes: Any) -> CostTable:
        """What was collected."""
        return CostTable(tuple(self.cost), self.pair, self.total, notes)


def counted(cost: Cost, groups: Sequence[Group], keep: Sequence[Bits]) -> CostTable:
    """The exact cost (constant, linear, bilinear in the units) of masks (S_l, size_l) a layer, as a table of levels."""
    starts, terms = offsets(groups), Terms([k.sum(1) for k in keep])
    masks = [k.astype(np.float64) for k in keep]
    terms.constant(cost.constant)
    parts = [slice(int(a), int(b)) for a, b in zip(starts[:-1], starts[1:], strict=True)]
    for i, mask in enumerate(masks):
        inner = cost.pair[parts[i], parts[i]]
        terms.single(i, mask @ cost.linear[parts[i]] + 0.5 * (mask * (inner @ mask.T).T).sum(1))
        for j in range(i + 1, len(masks)):
            across = cost.pair[parts[i], parts[j]]
            if across.nnz:
                terms.double(i, j, mask @ (across @ masks[j].T))
    return terms.table()
