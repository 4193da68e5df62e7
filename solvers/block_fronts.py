"""Block-diagonal problems solved block by block: fronts over the counts, joined by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import (
    BinaryQuadratic,
    Blocks,
    Cardinality,
    Dense,
    GroupBounds,
    InvalidProblem,
    LowRank,
)
from prunesolve.problems._feasibility import cheapest

from . import _kernels
from ._base import Run, Solver, Status
from ._diagonal import Tight, natural, tightest
from ._tolerance import tolerance, typical_bias

_EPS = float(np.finfo(np.float64).eps)
_TIGHTENED = 256  # units of a block up to which its diagonal is optimised
_ENUMERATED = 14  # units of a block up to which all its selections are valued
_NODES = 50_000  # where nothing else limits the search
_LARGEST = 2048  # units of a block that is laid out densely
_TABLE = 20_000_000  # entries of one table of the join
_WORK = 2_000_000  # of a call into the kernels, in multiplications: a few milliseconds
_STEPS = 5  # of the relaxation at a node, for each unit
_STARTING = 64  # open nodes a tree has room for at first
_MOST_BYTES = 1 << 25  # of one tree
_BATCH = 64  # pairs searched between two joins
_AGAIN = 2000  # nodes after which what is left is searched again


@dataclass(frozen=True)
class BlockFronts(Solver):
    r"""One front per block, F_b(k) = min f_b(x) over the x of k units, and the best way to share the cardinality out.

        min f = offset + min over k_1 + ... + k_B = k of sum_b F_b(k_b)

    Blocks are the connected components of the couplings, layers in pruning. Each front is held between an upper one
    (greedy from both ends, then tabu search by swaps) and a lower one (the convex relaxation with the natural
    diagonal; one gradient bounds all counts of a block). Dynamic programming joins the upper fronts to a selection
    and the lower ones to a bound, and tells which pairs (block, count) can still be part of a better selection. Those
    are searched again and bounded by branch and bound until the two meet.

    OPTIMAL means proved as in `exact`. Otherwise the bound holds, and `details` say how many fronts on the chosen
    path are heuristic (`heuristic_blocks`) and by how much at most (`front_gap`); `pairs` counts the pairs that the
    constraints allow, `open_pairs` those that are neither exact nor ruled out. An evaluation is one tabu search of a
    pair or one node; the greedy fronts count as one. Without limits it ends after `node_limit` nodes.

    Parameters
    ----------
    patience : int
        Swaps without an improvement, for each unit of a block, after which a tabu search ends.
    node_limit : int or None
        Most nodes of branch and bound; None: 50,000 where no other limit is given.

    Reference
    ---------
    Our own form of separable resource allocation: R. Bellman, Dynamic Programming (1957); the bound is that of
    `bounds`, the branch and bound that of A. H. Land, A. G. Doig, Econometrica 28 (1960).

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> pair = [[0.0, 3.0], [3.0, 0.0]]
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0, -1.0], Blocks([pair, pair]), constraints=[Cardinality(2)])
    >>> result = BlockFronts().solve(problem)
    >>> result.objective, str(result.status)
    (-5.0, 'OPTIMAL')
    """

    patience: int = 10
    node_limit: int | None = None

    name: ClassVar[str] = "block-fronts"

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise InvalidProblem(f"patience: expected a count >= 0, got {self.patience}")
        if self.node_limit is not None and self.node_limit < 1:
            raise InvalidProblem(f"node_limit: expected a count >= 1 or None, got {self.node_limit}")

    def refuse(self, problem: Any) -> str | None:
        """A cardinality, at most one GroupBounds, and blocks that fit into memory."""
        return super().refuse(problem) or _refusal(problem)

    def _prepare(self, problem: BinaryQuadratic) -> None:
        with _kernels.telling("block front"):
            _compile()

    def _search(self, problem: BinaryQuadratic, run: Run) -> Status | None:
        limited = run.time_limit is not None or run.evaluation_limit is not None
        nodes = self.node_limit or (math.inf if limited else _NODES)
        status = _Fronts(problem, run).close(self.patience, nodes)
        spent = status is None and self.node_limit is not None and run.details["nodes"] >= self.node_limit
        return Status.ITERATION_LIMIT if spent else status


# --- blocks --------------------------------------------------------------------------------------------------------


def _refusal(problem: BinaryQuadratic) -> str | None:
    counted = problem.of_kind(Cardinality) + problem.of_kind(GroupBounds)
    if problem.k is None or len(problem.of_kind(GroupBounds)) > 1 or len(counted) < len(problem.constraints):
        asked = ", ".join(type(c).__name__ for c in problem.constraints) or "none"
        return f"block-fronts takes BinaryQuadratic with a Cardinality and at most one GroupBounds, got {asked}"
    sizes = np.bincount(components(problem), minlength=1)
    if sizes.max(initial=0) > _LARGEST:
        return f"block-fronts lays blocks out densely, up to {_LARGEST} units; the largest here has {sizes.max()}"
    if (sizes > 1).sum() * (problem.n + 1) > _TABLE:
        return f"block-fronts joins at most {_TABLE // (problem.n + 1)} blocks of {problem.n} units, got {len(sizes)}"
    return None


def components(problem: BinaryQuadratic) -> Any:
    """(n,) block of each unit: units that couplings or bounds on a group tie together, directly or not.

    Examples
    --------
    >>> components(BinaryQuadratic([1.0, 1.0, 1.0], [[0, 0, 2], [0, 0, 0], [2, 0, 0]])).tolist()
    [0, 1, 0]
    """
    labels = _coupled(problem.couplings)
    for bounds in problem.of_kind(GroupBounds):
        tied = np.flatnonzero(_tied(bounds))
        labels = _linked(labels[tied], bounds.group[tied], labels.max(initial=-1) + 1, len(bounds.low))[labels]
    return labels


def splits(problem: BinaryQuadratic) -> bool:
    """Whether the problem falls into several blocks that `block-fronts` takes."""
    return BlockFronts().refuse(problem) is None and int(components(problem).max(initial=0)) > 0


def _tied(bounds: GroupBounds) -> Any:
    """(n,) units of a group whose bounds leave out some counts; -1, no group, reads the last entry."""
    binding = np.append((bounds.low > 0) | (bounds.high < bounds.sizes), False)
    return binding[bounds.group]


def _coupled(couplings: Any) -> Any:
    """(n,) connected component of each unit."""
    if isinstance(couplings, Dense):
        return _reached(couplings.matrix)
    if isinstance(couplings, Blocks):
        labels, found = np.zeros(couplings.n, dtype=np.int64), 0
        for start, matrix in zip(couplings.starts[:-1], couplings.blocks, strict=True):
            inside = _reached(matrix) + found
            labels[start : start + len(matrix)] = inside
            found = int(inside.max(initial=found - 1)) + 1
        return labels
    if isinstance(couplings, LowRank):
        unit, column = np.nonzero(couplings.F)
        return _linked(unit, column, couplings.n, couplings.F.shape[1])
    from scipy.sparse.csgraph import connected_components

    return connected_components(couplings.matrix, directed=False)[1]


def _reached(matrix: Any) -> Any:
    """(n,) connected component of each index of a dense matrix; reads every row once."""
    labels = np.full(len(matrix), -1)
    found = 0
    while (unseen := np.flatnonzero(labels < 0)).size:
        frontier = unseen[:1]
        while frontier.size:
            labels[frontier] = found
            frontier = np.flatnonzero((matrix[frontier] != 0).any(axis=0) & (labels < 0))
        found += 1
    return labels


def _linked(left: Any, right: Any, n: int, m: int) -> Any:
    """(n,) component of each of n left nodes under edges (left, right) to m others."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    graph = sparse.coo_array((np.ones(len(left)), (left, n + right)), shape=(n + m, n + m))
    found = connected_components(graph, directed=False)[1][:n]
    return np.unique(found, return_inverse=True)[1]


class _Uncoupled:
    """Units without couplings: the front is a sort, and exact."""

    exact = True

    def __init__(self, problem: BinaryQuadratic, units: Any) -> None:
        self.units = units
        self.order = np.argsort(problem.linear[units], kind="stable")
        self.upper = np.append(0.0, np.cumsum(problem.linear[units][self.order]))
        self.lower = self.upper.copy()

    def selection(self, k: int) -> Any:
        """(n_b,) the k cheapest."""
        x = np.zeros(len(self.units), dtype=bool)
        x[self.order[:k]] = True
        return x


class _Coupled:
    """One block with its front between `lower` and `upper` (n_b + 1,), selections X (n_b + 1, n_b) of the upper."""

    def __init__(self, problem: BinaryQuadratic, units: Any) -> None:
        self.at = _kernels.load("fronts")
        self.problem, self.units, n = problem, units, len(units)
        self.exact = n <= _ENUMERATED
        self.claim = None if problem.diagonal is None else problem.diagonal[units]
        self.layout: Any = None
        self.X = np.zeros((n + 1, n), dtype=bool)
        self.upper = np.full(n + 1, np.inf)
        self.lower = np.full(n + 1, -np.inf)
        self.searched = np.zeros(n + 1, dtype=bool)
        self.trees: dict[int, _Tree] = {}

    def rounding(self, terms: Any) -> float:
        """What rounding may add to a bound that such terms enter."""
        return float(32 * _EPS * math.sqrt(len(self.units) + 1) * np.abs(terms).sum())

    def selection(self, k: int) -> Any:
        """(n_b,) the best found of k units."""
        return self.X[k]

    def begin(self) -> None:
        """Lay the block out; the front from above: exact for few units, greedy for many."""
        self._lay_out()
        if self.exact:
            self.at.enumerate_all(self.layout, self.X, self.upper)
            self.lower = self.upper.copy()
            return
        self.at.greedy(self.layout, self.X, self.upper)
        self.lower[np.isinf(self.upper)] = np.inf

    def _lay_out(self) -> None:
        matrix = _matrix(self.problem.couplings, self.units)
        part, low, high = _parts(self.problem, self.units)
        linear = np.ascontiguousarray(self.problem.linear[self.units])
        size = float(np.abs(linear).sum() + np.abs(matrix).sum())
        margin = self.rounding(np.full(1, size))
        top = matrix.max(axis=1, initial=0.0)
        self.layout = self.at.Block(matrix, linear, np.zeros(len(linear)), part, low, high, top, margin)
        self.lower[:] = -size

    def take(self, x: Any) -> None:
        """Use a selection of the caller's."""
        k = int(x.sum())
        value = float(self.layout.a @ x + 0.5 * (x @ self.layout.J @ x))
        if value < self.upper[k] and np.isfinite(self.upper[k]):
            self.upper[k], self.X[k] = value, x

    def search(self, k: int, patience: int, chance: Any) -> None:
        """Tabu search for k units."""
        self.searched[k] = True
        steps = min(patience, 1 + 10 * _WORK // len(self.units) ** 2)
        self.at.search(self.layout, self.X, self.upper, k, steps, chance)

    def tree(self, k: int, stop: Callable[[], bool]) -> _Tree:
        """The branch and bound for k units, its root bounded."""
        if k not in self.trees:
            self.trees[k] = _Tree(self, k, stop)
        return self.trees[k]

    def relax(self, k: int, stop: Callable[[], bool]) -> None:
        """A first lower front, by the natural diagonal from k on."""
        d = np.ascontiguousarray(natural(self.layout.J, self.claim))
        self.layout = self.layout._replace(d=d, margin=self.layout.margin + self.rounding(d))
        y = np.full(len(self.units), k / len(self.units))
        self.lift(self.layout, k, y, 0.0, stop)

    def lift(self, layout: Any, k: int, y: Any, ridge: float, stop: Callable[[], bool]) -> None:
        """Lift the lower front by the relaxation at k, begun at y (n_b,), and at the counts around it."""
        n = len(self.units)
        steps = max(n, min(50 * n, 4 * _WORK // n))
        bound = self.at.relax(layout, np.full(n, -1, dtype=np.int8), k, y, self.upper[k], steps)
        self.lower[k] = max(self.lower[k], bound)
        self.at.lower_front(layout, y, ridge, self.lower)
        if not stop():
            reach = min(n, 1 + 10 * _WORK // n**3)
            self.at.lower_sweep(layout, k, y, reach, self.lower, self.upper, steps)
        self.lower = np.minimum(self.lower, self.upper)


class _Tree:
    """Open nodes of one block at one count, under the diagonal that is tightest there."""

    def __init__(self, block: _Coupled, k: int, stop: Callable[[], bool]) -> None:
        n = len(block.units)
        self.block, self.k, self.count = block, k, 0
        self.layout, y = block.layout, np.full(n, k / n)
        self.tight: Tight | None = None
        if 0 < k < n <= _TIGHTENED:
            # on from the nearest count that was tightened already
            near = min((t for t in block.trees if block.trees[t].tight), key=lambda t: abs(t - k), default=None)
            warm = None if near is None else block.trees[near].tight
            self.tight = tightest(self.layout.J, self.layout.a, k, self.layout.d, stop, warm)
        if self.tight is not None:
            d = self.tight.d
            self.layout = self.layout._replace(d=d, margin=block.layout.margin + block.rounding(d))
            y = np.clip(self.tight.y, 0.0, 1.0)
            y += k / n - y.mean()
            block.lift(self.layout, k, y, self.tight.ridge, stop)
        self.nodes = self._room(_STARTING)
        fixed = np.full(n, -1, dtype=np.int8)
        self.count = block.at.push(
            self.layout, k, self.nodes, 0, block.X, block.upper, fixed, y, block.upper[k], 0.0, _STEPS * n
        )

    def _room(self, nodes: int) -> Any:
        n = len(self.block.units)
        return self.block.at.Tree(np.zeros((nodes, n), dtype=np.int8), np.zeros((nodes, n)), np.zeros(nodes))

    @property
    def full(self) -> bool:
        """Whether there is no room for more nodes."""
        return self.count + 1 >= len(self.nodes.bound) and 2 * self.nodes.y.nbytes > _MOST_BYTES

    def grow(self, cutoff: float, slack: float, most: int) -> int:
        """Open nodes and lift the lower front; returns their number."""
        block, k = self.block, self.k
        n = len(block.units)
        if self.count + 1 >= len(self.nodes.bound):
            wider = self._room(2 * len(self.nodes.bound))
            for new, old in zip(wider, self.nodes, strict=True):
                new[: len(old)] = old
            self.nodes = wider
        self.count, opened = block.at.grow(
            self.layout, k, self.nodes, self.count, block.X, block.upper, cutoff, slack, most, _STEPS * n
        )
        bound = min(cutoff, block.upper[k] - slack)
        if self.count:
            bound = min(bound, float(self.nodes.bound[: self.count].min()))
        else:
            self.nodes = self._room(_STARTING)
        block.lower[k] = max(block.lower[k], bound)
        return int(opened)


def _matrix(couplings: Any, units: Any) -> Any:
    """The couplings among the units, (n_b, n_b) C-ordered."""
    if isinstance(couplings, Blocks):
        b = int(couplings.block_of[units[0]])
        if (couplings.block_of[units] == b).all():
            inside = units - couplings.starts[b]
            return np.ascontiguousarray(couplings.blocks[b][np.ix_(inside, inside)])
        matrix = np.zeros((len(units), len(units)))
        for b in np.unique(couplings.block_of[units]):
            at = np.flatnonzero(couplings.block_of[units] == b)
            inside = units[at] - couplings.starts[b]
            matrix[np.ix_(at, at)] = couplings.blocks[b][np.ix_(inside, inside)]
        return matrix
    if isinstance(couplings, LowRank):
        matrix = couplings.sign * (couplings.F[units] @ couplings.F[units].T)
        np.fill_diagonal(matrix, 0.0)
        return np.ascontiguousarray((matrix + matrix.T) / 2)
    if isinstance(couplings, Dense):
        return np.ascontiguousarray(couplings.matrix[np.ix_(units, units)])
    return np.ascontiguousarray(couplings.matrix[units][:, units].toarray())


def _parts(problem: BinaryQuadratic, units: Any) -> tuple[Any, Any, Any]:
    """Part of each of the block's units and the bounds of the parts, units of no group in a last part."""
    n = len(units)
    part, low, high = np.full(n, -1), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for bounds in problem.of_kind(GroupBounds):
        part, low, high = bounds.group[units], bounds.low, bounds.high
    groups, part = np.unique(np.where(part < 0, len(low), part), return_inverse=True)
    low, high = np.append(np.maximum(low, 0), 0)[groups], np.append(high, n)[groups]
    return part.astype(np.int64), low.astype(np.int64), np.minimum(high, n).astype(np.int64)


def _blocks(problem: BinaryQuadratic) -> list[_Coupled | _Uncoupled]:
    labels = components(problem)
    by_label = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    tied = np.zeros(problem.n, dtype=bool)
    for bounds in problem.of_kind(GroupBounds):
        tied |= _tied(bounds)
    alone = [units for units in by_label if len(units) == 1 and not tied[units[0]]]
    found: list[_Coupled | _Uncoupled] = [
        _Coupled(problem, units) for units in by_label if len(units) > 1 or tied[units[0]]
    ]
    return [*found, _Uncoupled(problem, np.concatenate(alone))] if alone else found


# --- the join ------------------------------------------------------------------------------------------------------


class _Fronts:
    """All fronts of a problem, joined from above and from below; sums are without the offset."""

    def __init__(self, problem: BinaryQuadratic, run: Run) -> None:
        self.at = _kernels.load("fronts")
        self.problem, self.run, self.k = problem, run, int(problem.k or 0)
        self.typical = typical_bias(problem)
        self.blocks = _blocks(problem)
        self.alive = [np.isfinite(block.upper) for block in self.blocks]
        self.cutoff = [np.full(len(block.upper), np.inf) for block in self.blocks]
        self.joined = np.inf
        self.path: list[tuple[int, int]] = []
        self.nodes = 0
        self.node_limit = math.inf
        self.chance = run.rng.integers(0, 2**64, size=1, dtype=np.uint64)

    def close(self, patience: int, node_limit: float) -> Status | None:
        """Search and bound until the fronts meet or a limit is reached."""
        self._begin()
        self.node_limit = node_limit
        status = self._refine(patience)
        self._tell(status)
        return status

    def _begin(self) -> None:
        """Greedy fronts, the first incumbent, a first search around it, and a first bound on every front."""
        self.run.count()
        for block in self.blocks:
            if self.run.halted:
                self._round()
                return
            if isinstance(block, _Coupled):
                block.begin()
                if self.run.start is not None:
                    block.take(self.run.start[block.units])
        self.alive = [np.isfinite(block.upper) for block in self.blocks]
        self._offer()
        if not self.path:
            self._share()
            return
        self._each(self.path, partial(self._search, patience=1))
        if self.run.should_stop():
            return
        self._offer()
        self._each([(b, k) for b, k in self.path if not self.blocks[b].exact], self._relax)

    def _share(self) -> None:
        """Offer what the fronts come to at one price a unit, where there is no time to join them."""
        counts = _priced([block.upper for block in self.blocks], self.k)
        x = np.zeros(self.problem.n, dtype=bool)
        for block, k in zip(self.blocks, counts, strict=True):
            x[block.units] = block.selection(int(k))
        self.run.offer(x)

    def _round(self) -> None:
        """Offer the cheapest selection by the fields at an even share, where there is no time for the fronts."""
        problem, share = self.problem, self.k / self.problem.n
        whole = problem.fields(np.ones(problem.n, dtype=bool))
        groups = problem.of_kind(GroupBounds)
        fields = (1 - share) * problem.linear + share * whole
        self.run.offer(cheapest(fields, self.k, groups[0] if groups else None, problem.n)[1])

    def _refine(self, patience: int) -> Status | None:
        asked, again = min(1, patience), _AGAIN
        while not self.run.should_stop():
            path, pairs = self._bound()
            if self.run.should_stop():
                break
            if not pairs:
                self.run.prove(self.run.objective)
                return Status.OPTIMAL
            opened = set(pairs)
            fresh = [(b, k) for b, k in path if (b, k) in opened and k not in self._coupled(b).trees]
            unsearched = [(b, k) for b, k in pairs if not self._coupled(b).searched[k]]
            if unsearched:
                self._each(unsearched[: max(_BATCH, len(self.blocks))], partial(self._search, patience=asked))
            elif asked < patience:
                asked = patience
                self._forget(pairs[:_BATCH])
            elif fresh:
                self._each(fresh, self._root)
            elif self.nodes >= self.node_limit or not self._grow(path, pairs):
                break
            if self.nodes >= again:
                # branch and bound is not getting there: longer searches of what is left
                again, asked, patience = 2 * self.nodes, 2 * asked, 2 * patience
                self._forget(pairs[:_BATCH])
            self._offer()
        return None

    def _forget(self, pairs: list[tuple[int, int]]) -> None:
        """Have these pairs searched again."""
        for b, k in pairs:
            self._coupled(b).searched[k] = False

    def _coupled(self, b: int) -> _Coupled:
        block = self.blocks[b]
        assert isinstance(block, _Coupled)
        return block

    def _each(self, pairs: Iterable[tuple[int, int]], work: Callable[[int, int], None]) -> None:
        for b, k in pairs:
            if self.run.should_stop():
                return
            if isinstance(self.blocks[b], _Coupled):
                work(b, k)

    def _relax(self, b: int, k: int) -> None:
        self.run.count()
        self._coupled(b).relax(k, self.run.should_stop)

    def _root(self, b: int, k: int) -> None:
        self.run.count()
        self.nodes += 1
        self._coupled(b).tree(k, self.run.should_stop)

    def _search(self, b: int, k: int, patience: int) -> None:
        self.run.count()
        self._coupled(b).search(k, patience * len(self.blocks[b].units), self.chance)

    def _grow(self, path: list[tuple[int, int]], pairs: list[tuple[int, int]]) -> bool:
        """Open nodes of the pairs on the path that the bound loses most by; False where there is no room left."""
        opened = set(pairs)
        for candidates in (path, pairs[:_BATCH]):
            loss = {pair: self._loss(*pair) for pair in candidates if pair in opened}
            chosen = [pair for pair, lost in loss.items() if lost >= 0.5 * max(loss.values())]
            if chosen:
                self._each(chosen, self._open)
                return True
        return False

    def _loss(self, b: int, k: int) -> float:
        block = self._coupled(b)
        return -1.0 if k in block.trees and block.trees[k].full else float(block.upper[k] - block.lower[k])

    def _open(self, b: int, k: int) -> None:
        block = self._coupled(b)
        left = min(self.run.evaluations_left, self.node_limit - self.nodes)
        if left < 1:
            return
        most = min(1 + _WORK // (16 * len(block.units) ** 2), left)
        opened = block.tree(k, self.run.should_stop).grow(float(self.cutoff[b][k]), self.slack, int(most))
        self.run.count(opened)
        self.nodes += max(1, opened)

    @property
    def slack(self) -> float:
        """What a front may stay open by: all of them together by half the tolerance."""
        return tolerance(self.run.objective, self.typical) / (4 * len(self.blocks))

    def _offer(self) -> None:
        """Join the fronts from above and offer what comes out."""
        fronts = [block.upper for block in self.blocks]
        tables = self._tables(fronts)
        if tables and tables[-1][self.k] < self.joined:
            self.joined = float(tables[-1][self.k])
            self.path = self._best_path(tables, fronts)
            x = np.zeros(self.problem.n, dtype=bool)
            for b, k in self.path:
                x[self.blocks[b].units] = self.blocks[b].selection(k)
            self.run.offer(x)

    def _bound(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Join the fronts from below: the least path, and the open pairs, those nearest to the incumbent first."""
        fronts = [np.where(alive, block.lower, np.inf) for block, alive in zip(self.blocks, self.alive, strict=True)]
        before, rests = self._rests(fronts)
        _, uppers = self._rests([block.upper for block in self.blocks])
        if self.run.should_stop():
            return [], []
        target = self.run.objective - self.problem.offset - 2 * len(self.blocks) * self.slack
        self.run.prove(min(float(before[-1][self.k]) + self.problem.offset, self.run.objective))
        found = []
        for b, (block, rest, upper) in enumerate(zip(self.blocks, rests, uppers, strict=True)):
            self.cutoff[b] = target - rest
            self.alive[b] &= block.lower < self.cutoff[b]
            opened = np.flatnonzero(self.alive[b] & (block.lower < block.upper - 2 * self.slack))
            found += [(float(upper[k] + block.upper[k]), b, int(k)) for k in opened]
        path = self._best_path(before, fronts) if np.isfinite(before[-1][self.k]) else []
        return path, [(b, k) for _, b, k in sorted(found)]

    def _rests(self, fronts: list[Any]) -> tuple[list[Any], list[Any]]:
        """The tables of the join, and for each block (n_b + 1,) the least that all others come to beside each count."""
        before, after = self._tables(fronts), self._tables(fronts[::-1])[::-1]
        rests: list[Any] = []
        if not before or not after:
            return before, rests
        for b, front in enumerate(fronts):
            rests.append(np.full(len(front), np.inf))
            if not self.run.should_stop():
                self.at.around(before[b], after[b + 1], rests[b])
        return before, rests

    def _tables(self, fronts: list[Any]) -> list[Any]:
        """(K + 1,) least sums of the first b fronts for each number kept, b = 0 to B; none where the time is over."""
        tables = [np.full(self.k + 1, np.inf)]
        tables[0][0] = 0.0
        for front in fronts:
            if self.run.halted:
                return []
            tables.append(np.empty(self.k + 1))
            self.at.join(tables[-2], front, tables[-1])
        return tables

    def _best_path(self, tables: list[Any], fronts: list[Any]) -> list[tuple[int, int]]:
        """The pairs (block, count) behind the least sum for K kept."""
        path, left = [], self.k
        for b in range(len(fronts) - 1, -1, -1):
            most = min(left, len(fronts[b]) - 1)
            k = int(np.argmin(tables[b][left - most : left + 1][::-1] + fronts[b][: most + 1]))
            path.append((b, k))
            left -= k
        return path[::-1]

    def _tell(self, status: Status | None) -> None:
        """What is proved and what is not, for `Result.details`."""
        gaps = [float(self.blocks[b].upper[k] - self.blocks[b].lower[k]) for b, k in self.path]
        # without a path nothing is known of any block
        gaps = gaps or [math.inf] * len(self.blocks)
        opened = [
            alive & (block.lower < block.upper - 2 * self.slack)
            for block, alive in zip(self.blocks, self.alive, strict=True)
        ]
        proved = status is Status.OPTIMAL
        self.run.details |= {
            "blocks": len(self.blocks),
            "nodes": self.nodes,
            "pairs": int(sum(np.isfinite(block.upper).sum() for block in self.blocks)),
            "open_pairs": 0 if proved else int(sum(pairs.sum() for pairs in opened)),
            "heuristic_blocks": 0 if proved else int(sum(gap > 2 * self.slack for gap in gaps)),
            "front_gap": 0.0 if proved else float(max(gaps, default=0.0)),
        }


def _priced(fronts: list[Any], kept: int) -> Any:
    """(B,) counts that add up to `kept` > 0: the best at one price a unit, the last block takes what is left over."""
    first = np.array([int(np.isfinite(front).argmax()) for front in fronts])
    last = np.array([int(np.flatnonzero(np.isfinite(front))[-1]) for front in fronts])
    finite = [np.diff(front[a : b + 1]) for front, a, b in zip(fronts, first, last, strict=True)]
    steep = max((float(np.abs(slopes).max(initial=0.0)) for slopes in finite), default=0.0)
    table = np.full((len(fronts), max(map(len, fronts))), np.inf)
    for row, front in zip(table, fronts, strict=True):
        row[: len(front)] = front / (steep or 1.0)
    at = np.arange(table.shape[1])
    # in units of the steepest, since prices of extremes leave the float64 range
    low, high, below, above = -2.0, 2.0, first, last
    for _ in range(40):
        price = (low + high) / 2
        counts = (table - price * at).argmin(axis=1)
        low, high = (price, high) if counts.sum() <= kept else (low, price)
        below, above = (counts, above) if counts.sum() <= kept else (below, counts)
    room = np.cumsum(np.maximum(above - below, 0))
    return below + np.diff(np.minimum(room, kept - below.sum()), prepend=0)


def _compile() -> None:
    """Run every kernel once, on next to nothing."""
    at = _kernels.load("fronts")
    zero, none = np.zeros(2), np.zeros((2, 2))
    block = at.Block(none, zero, zero, *(np.zeros(2, dtype=np.int64), np.zeros(1, int), np.full(1, 2)), zero, 0.0)
    X, upper, chance = np.zeros((3, 2), dtype=bool), np.full(3, np.inf), np.zeros(1, dtype=np.uint64)
    at.enumerate_all(block, X, upper)
    at.greedy(block, X, upper)
    at.search(block, X, upper, 1, 1, chance)
    tree = at.Tree(np.zeros((3, 2), dtype=np.int8), np.zeros((3, 2)), np.zeros(3))
    y = np.full(2, 0.5)
    at.push(block, 1, tree, 0, X, upper, np.full(2, -1, dtype=np.int8), y, np.inf, 0.0, 1)
    at.grow(block, 1, tree, 1, X, upper, np.inf, 0.0, 1, 1)
    at.lower_front(block, y, 0.0, np.full(3, -np.inf))
    at.lower_sweep(block, 1, y, 1, np.full(3, -np.inf), upper, 1)
    at.relax(block, np.full(2, -1, dtype=np.int8), 1, y, np.inf, 1)
    at.join(zero, zero, np.zeros(2))
    at.around(zero, zero, np.zeros(2))
