r"""A bound under a budget that is bilinear in the widths of layers, as parameters and multiply-adds are.

Blocks keep k_1, ..., k_B units, block b at F_b(k) or more, and they spend C(k) or more, the least cost of any unit
and any pair of the two blocks taken for all of them. With a price m >= 0 on the budget

    f(x) >= offset + max over m of  min over k of  sum_b F_b(k_b) + m (C(k) - limit),
    C(k) = sum_b c_b k_b + w_bb k_b (k_b - 1) / 2 + sum_{b < e} w_be k_b k_e.

Only pairs of blocks along a forest enter C, a chain of layers being one, so that the inner minimum is exact by dynamic
programming. Fronts are lifted where that minimum lies until nothing moves any more.

Reference: ours, after H. Everett, Generalized Lagrange multiplier method, Operations Research 11 (1963).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, Budget, GroupBounds

from .block_fronts import BlockFronts, _blocks, _Coupled, _Uncoupled, components

_EPS = float(np.finfo(np.float64).eps)
_TOLERANCE = 1e-9  # of a budget's scale, as in `Budget.holds`
_LARGEST = 2048  # units; pair costs are laid out densely
_ROUNDS = 1000  # of lifting the fronts
_PRICES = 100  # tried in one round
_NODES = 20  # of branch and bound for each pair of a block and a count, in one round


def falls_apart(problem: BinaryQuadratic) -> bool:
    """Whether the problem has several blocks and what this bound can use."""
    few = problem.n <= _LARGEST and len(problem.of_kind(GroupBounds)) <= 1
    return few and problem.k is None and int(components(problem).max(initial=0)) > 0


def prepare(problem: BinaryQuadratic) -> None:
    """Load or compile the kernels."""
    BlockFronts()._prepare(problem)


def budget_bound(
    problem: BinaryQuadratic, budget: Budget, *, rounds: int = _ROUNDS, stop: Callable[[], bool] = lambda: False
) -> float:
    """The best bound that the rounds allowed find; inf where not even the cheapest counts meet the budget."""
    fronts = _Priced(problem, budget)
    fronts.begin(stop)
    best = -np.inf
    for _ in range(max(1, rounds)):
        bound, paths = fronts.bound()
        best = max(best, bound)
        if stop() or best == np.inf or not fronts.lift(paths, stop):
            break
    return best


class _Priced:
    """The fronts of all blocks and what they spend, in limits."""

    def __init__(self, problem: BinaryQuadratic, budget: Budget) -> None:
        self.blocks = _blocks(problem)
        self.offset = problem.offset
        capped = budget.capped
        unit = capped.limit or 1.0
        self.limit = (capped.limit + _TOLERANCE * budget.scale) / unit
        single, self.pair = _least_costs(capped, [block.units for block in self.blocks])
        counts = [np.arange(len(block.units) + 1.0) for block in self.blocks]
        self.spent = [
            (c * k + 0.5 * w * k * (k - 1)) / unit
            for c, w, k in zip(single, np.diagonal(self.pair), counts, strict=True)
        ]
        self.pair = self.pair / unit
        sizes = np.array([len(block.units) for block in self.blocks])
        self.parent, self.order = _forest(self.pair * sizes[:, None] * sizes)

    def begin(self, stop: Callable[[], bool]) -> None:
        """First fronts, by the natural diagonals."""
        for block in self.blocks:
            if isinstance(block, _Coupled):
                block.begin()
                if not block.exact and not stop():
                    block.relax(len(block.units) // 2, stop)
                    # nothing and everything are one selection each
                    for k in (0, len(block.units)):
                        block.lower[k] = max(block.lower[k], block.upper[k] - block.layout.margin)

    def lift(self, paths: list[list[int]], stop: Callable[[], bool]) -> bool:
        """Lift the fronts where the bound rests: their diagonal, then by branching; False where none is open."""
        found = {(b, k): self._loss(b, k) for path in paths for b, k in enumerate(path)}
        most = max(found.values())
        for (b, k), lost in sorted(found.items()):
            block = self.blocks[b]
            if isinstance(block, _Coupled) and lost > 0 and lost >= 0.5 * most and not stop():
                if k in block.trees:
                    block.trees[k].grow(np.inf, block.layout.margin, _NODES)
                elif block.tree(k, stop).tight is None:
                    block.lift(block.layout, k, np.full(len(block.units), k / len(block.units)), 0.0, stop)
        return most > 0

    def _loss(self, b: int, k: int) -> float:
        """By how much the front is open there, 0 where nothing more can be done about it."""
        block = self.blocks[b]
        if not isinstance(block, _Coupled) or k in block.trees and (block.trees[k].full or not block.trees[k].count):
            return 0.0
        lost = float(block.upper[k] - block.lower[k])
        return lost if lost > 2 * block.layout.margin else 0.0

    def bound(self) -> tuple[float, list[list[int]]]:
        """(max over the price, the counts that meet there), by the lines of counts above and below the limit."""
        fronts = [_from_below(block) for block in self.blocks]
        dear = self._counts(fronts, 0.0)
        thrifty = self._counts([np.where(np.isfinite(front), 0.0, np.inf) for front in fronts], 1.0)
        if self._spent(thrifty) > self.limit:
            return np.inf, []
        best, price = self._dual(fronts, dear, 0.0), 0.0
        for _ in range(_PRICES):
            if self._spent(dear) <= self.limit:
                break
            values = [sum(front[k] for front, k in zip(fronts, path, strict=True)) for path in (dear, thrifty)]
            price = min(max(0.0, (values[1] - values[0]) / (self._spent(dear) - self._spent(thrifty))), 1e290)
            between = self._counts(fronts, price)
            best = max(best, self._dual(fronts, between, price))
            if between in (dear, thrifty) or price == 0.0:
                break
            if self._spent(between) > self.limit:
                dear = between
            else:
                thrifty = between
        return best, [dear, thrifty]

    def _spent(self, path: list[int]) -> float:
        alone = sum(float(spent[k]) for spent, k in zip(self.spent, path, strict=True))
        joint = sum(self.pair[b, e] * path[b] * path[e] for b, e in enumerate(self.parent) if e >= 0)
        return alone + float(joint)

    def _dual(self, fronts: list[Any], path: list[int], price: float) -> float:
        """What the path comes to at that price, less what rounding may add; the bound where the path is the least."""
        value = sum(float(front[k]) for front, k in zip(fronts, path, strict=True))
        # each front was bounded with a margin of its own; this one is for the sums
        size = abs(self.offset) + sum(abs(float(front[k])) for front, k in zip(fronts, path, strict=True))
        size += price * (self._spent(path) + self.limit)
        value += self.offset + price * (self._spent(path) - self.limit)
        return float(value - 8 * (len(path) + 8) * _EPS * size)

    def _counts(self, fronts: list[Any], price: float) -> list[int]:
        """The counts of least front plus priced cost, children first."""
        priced = [front + price * spent for front, spent in zip(fronts, self.spent, strict=True)]
        choice: dict[int, Any] = {}
        for b in reversed(self.order):
            above = self.parent[b]
            if above >= 0:
                counts = np.arange(len(priced[above]))[:, None] * np.arange(len(priced[b]))
                table = price * self.pair[b, above] * counts + priced[b]
                choice[b] = table.argmin(axis=1)
                priced[above] = priced[above] + table.min(axis=1)
        path = [0] * len(fronts)
        for b in self.order:
            above = self.parent[b]
            path[b] = int(priced[b].argmin() if above < 0 else choice[b][path[above]])
        return path


def _from_below(block: _Coupled | _Uncoupled) -> Any:
    """(n_b + 1,) the front less what rounding may have added to one that is exact."""
    if isinstance(block, _Uncoupled):
        sizes = np.abs(np.diff(block.lower))
        return block.lower - 4 * len(block.lower) * _EPS * float(sizes.sum())
    return block.lower - block.layout.margin * block.exact


def _least_costs(budget: Budget, groups: list[Any]) -> tuple[Any, Any]:
    """(least cost of a unit of each block (B,), least cost of a pair of each two blocks (B, B))."""
    single = np.array([budget.cost[units].min() for units in groups])
    pair = np.zeros((len(groups), len(groups)))
    if budget.pair is not None:
        matrix = budget.pair.toarray()
        np.fill_diagonal(matrix, np.inf)
        order, starts = np.concatenate(groups), np.cumsum([0, *map(len, groups)])[:-1]
        rows = np.minimum.reduceat(matrix[order], starts, axis=0)[:, order]
        pair = np.minimum.reduceat(rows, starts, axis=1)
        pair[np.isinf(pair)] = 0.0
    return single, pair


def _forest(weight: Any) -> tuple[list[int], list[int]]:
    """(parent of each block or -1, blocks with parents first): a forest of most weight (B, B), by Prim."""
    size = len(weight)
    parent, order = [-1] * size, []
    reach, by = np.zeros(size), np.full(size, -1)
    left = np.ones(size, dtype=bool)
    for _ in range(size):
        b = int(np.where(left, reach, -1.0).argmax())
        parent[b] = int(by[b])
        order.append(b)
        left[b] = False
        nearer = left & (weight[b] > reach)
        reach[nearer], by[nearer] = weight[b][nearer], b
    return parent, order
