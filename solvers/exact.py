"""Proof of optimality: enumeration while the bits are few, branch and bound on the convex relaxation beyond."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from prunesolve.problems import BinaryQuadratic, Budget, InvalidProblem

from . import _branching, _budget_fronts
from ._base import Incumbent, Run, Solver, Status
from ._tolerance import tolerance, typical_bias
from .block_fronts import BlockFronts, splits
from .bounds import Polytope, Relaxation, Relaxed, frank_wolfe

_CHUNK = 1 << 13  # selections valued at once
_LEAF = 10  # free units below which a node is enumerated
_PROPOSALS = 400  # of the annealing that finds the first incumbent, for each unit
_BUDGET_SHARE, _ROUNDS = 0.25, 100  # of the time, for the bound of the whole under a budget; rounds of it at most
_UNLIMITED = 1 << 62  # nodes
_WARM = 20_000  # open nodes above which their starting points are no longer kept


@dataclass(frozen=True)
class Exact(Solver):
    r"""The optimum, proved; at a limit the incumbent and the bound.

    A node fixes some units in or out and is bounded by the relaxation of `bounds`: f(x) >= phi(y) + g.(x - y). It is
    cut off once no better value is left in it; units whose reduced cost exceeds the gap are fixed. The node of least
    bound is opened next, on the unit that is most fractional. Under a cardinality alone, and up to 2048 units, the
    tree is compiled. A cardinality over several blocks that do not touch is left to `block-fronts`, and to the tree
    where that gives up. An evaluation is one node, or one enumerated selection; `block-fronts` counts its own.

    OPTIMAL means that no selection is better by more than 1e-9 of max(|objective|, typical |a_i|), the median of the
    biases that are not 0; where rounding in a bound exceeds that, the tree goes on down to single selections. A search
    without limits ends by itself, if late: the tree is exponential where the relaxation is loose.

    Parameters
    ----------
    enumerate_up_to : int
        Units up to which all 2^n selections are valued.
    node_limit : int or None
        Most nodes.

    Reference
    ---------
    A. H. Land, A. G. Doig, An automatic method of solving discrete programming problems, Econometrica 28 (1960).

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> result = Exact().solve(BinaryQuadratic([-1.0, -2.0, -3.0], constraints=[Cardinality(2)]))
    >>> result.objective, result.bound, str(result.status)
    (-5.0, -5.0, 'OPTIMAL')
    """

    enumerate_up_to: int = 16
    node_limit: int | None = None

    name: ClassVar[str] = "exact"

    def __post_init__(self) -> None:
        if not 0 <= self.enumerate_up_to <= 30:
            raise InvalidProblem(f"enumerate_up_to: expected 0 to 30 units, got {self.enumerate_up_to}")
        if self.node_limit is not None and self.node_limit < 1:
            raise InvalidProblem(f"node_limit: expected a count >= 1 or None, got {self.node_limit}")

    def _prepare(self, problem: BinaryQuadratic) -> None:
        if problem.n > self.enumerate_up_to:
            from .swap_annealing import SwapAnnealing

            SwapAnnealing()._prepare(problem)
            if splits(problem):
                BlockFronts()._prepare(problem)
            if _branching.suits(problem):
                _branching.prepare()
            if problem.of_kind(Budget) and _budget_fronts.falls_apart(problem):
                _budget_fronts.prepare(problem)

    def _search(self, problem: BinaryQuadratic, run: Run) -> Status | None:
        if problem.n <= self.enumerate_up_to:
            return _enumerate(problem, run)
        if splits(problem):
            status = BlockFronts(node_limit=self.node_limit or _UNLIMITED)._search(problem, run)
            if status is not None or run.should_stop():
                return status
        _first_incumbent(problem, run)
        if _branching.suits(problem):
            return _branch(problem, run, self.node_limit)
        for budget in problem.of_kind(Budget) if _budget_fronts.falls_apart(problem) else ():
            # the nodes below know nothing of pair costs
            until = run.seconds + _BUDGET_SHARE * run.remaining
            bound = _budget_fronts.budget_bound(problem, budget, rounds=_ROUNDS, stop=_after(run, until))
            run.prove(min(bound, run.objective))
        return _Tree(problem, run).search(self.node_limit)


def _after(run: Run, seconds: float) -> Callable[[], bool]:
    return lambda: run.seconds > seconds or run.should_stop()


def _branch(problem: BinaryQuadratic, run: Run, node_limit: int | None) -> Status | None:
    """The compiled tree, for a cardinality or no constraint at all."""
    value = run.objective if run.feasible else math.inf
    d = Relaxation.of(problem).d
    lead = _lead(_least_step(problem), value, typical_bias(problem))
    tree = _branching.Branching(problem, d, value=value, lead=lead, offer=run.offer)
    tree.root(run.should_stop)
    nodes = 0
    while not tree.done:
        run.prove(min(tree.bound, run.objective))
        if nodes == node_limit:
            return Status.ITERATION_LIMIT
        if run.should_stop():
            return None
        tree.expand(run.should_stop)
        nodes += 1
        run.count()
    return _proved(run)


def _lead(step: float, value: float, typical: float) -> float:
    """How much better than `value` a selection must be to count, where values differ by at least `step`."""
    same = tolerance(value, typical) if math.isfinite(value) else 0.0
    return max(same, step - same)


def _enumerate(problem: BinaryQuadratic, run: Run) -> Status | None:
    """Value every selection, in chunks."""
    for rows in _selections(np.full(problem.n, -1, dtype=np.int8)):
        if run.should_stop():
            return None
        _offer_best(problem, run, rows)
        run.count(len(rows))
    return _proved(run)


def _selections(fixed: Any) -> Iterator[Any]:
    """All selections (m, n) bool that agree with `fixed` (n,): 1 in, 0 out, -1 free; a chunk at a time."""
    free = np.flatnonzero(fixed < 0)
    for first in range(0, 1 << len(free), _CHUNK):
        codes = np.arange(first, min(first + _CHUNK, 1 << len(free)), dtype=np.int64)
        rows = np.repeat((fixed == 1)[None], len(codes), axis=0)
        rows[:, free] = (codes[:, None] >> np.arange(len(free))) & 1
        yield rows


def _offer_best(problem: BinaryQuadratic, run: Run, rows: Any) -> None:
    feasible = rows[problem.is_feasible(rows)]
    if len(feasible):
        values = problem.value(feasible)
        best = int(np.argmin(values))
        if not run.feasible or values[best] < run.objective:
            run.offer(feasible[best])


def _proved(run: Run) -> Status:
    if not run.feasible:
        return Status.INFEASIBLE
    run.prove(run.objective)
    return Status.OPTIMAL


def _first_incumbent(problem: BinaryQuadratic, run: Run) -> None:
    """A short annealing on a run of its own, so that its proposals do not count as nodes."""
    from .swap_annealing import SwapAnnealing

    def pass_on(found: Incumbent) -> bool:
        run.offer(found.solution)
        return run.should_stop()

    limit = None if math.isinf(run.remaining) else run.remaining / 4
    # the evaluation limit ends it: under a time limit alone an annealing uses all the time there is
    inner = Run(problem, seed=run.seed, time_limit=limit, evaluation_limit=_PROPOSALS * problem.n, callback=pass_on)
    inner.start = run.start
    SwapAnnealing(restarts=1)._search(problem, inner)


class _Node(NamedTuple):
    """An open part of the tree; ordered by bound, then by age so that equal bounds compare no arrays."""

    bound: float
    age: int
    fixed: Any  # (n,) int8: 1 in, 0 out, -1 free
    warm: Relaxed | None


class _Tree:
    """Best-first branch and bound."""

    def __init__(self, problem: BinaryQuadratic, run: Run) -> None:
        self.problem, self.run = problem, run
        self.relaxation = Relaxation.of(problem)
        self.polytope = Polytope.tightest(problem)
        self.step, self.typical = _least_step(problem), typical_bias(problem)
        self.ages = itertools.count()
        self.open: list[_Node] = []

    def search(self, node_limit: int | None) -> Status | None:
        """Open nodes until none is left or a limit is reached."""
        self._push(np.full(self.problem.n, -1, dtype=np.int8), None, iterations=2000)
        nodes = 0
        while self.open and self.open[0].bound < self.cutoff:
            self.run.prove(min(self.open[0].bound, self.run.objective))
            if self.run.should_stop() or nodes == node_limit:
                return Status.ITERATION_LIMIT if nodes == node_limit else None
            node = heapq.heappop(self.open)
            nodes += 1
            self.run.count()
            self._expand(node)
        return _proved(self.run)

    @property
    def cutoff(self) -> float:
        """What a bound must reach for its node to be done with."""
        if not self.run.feasible:
            return math.inf
        return self.run.objective - _lead(self.step, self.run.objective, self.typical)

    def _expand(self, node: _Node) -> None:
        if (node.fixed < 0).sum() <= _LEAF:
            for rows in _selections(node.fixed):
                _offer_best(self.problem, self.run, rows)
            return
        unit = self._branching_unit(node)
        for side in (1, 0):
            fixed = node.fixed.copy()
            fixed[unit] = side
            self._push(fixed, node.warm, iterations=60)

    def _push(self, fixed: Any, warm: Relaxed | None, *, iterations: int) -> None:
        found = frank_wolfe(
            self.relaxation,
            self.polytope,
            fixed,
            iterations=iterations,
            cutoff=self.cutoff,
            warm=warm,
            stop=self.run.should_stop,
        )
        if found.bound >= self.cutoff:
            return
        self._offer_vertex(found)
        fixed = self._by_reduced_cost(found, fixed)
        kept = found if len(self.open) < _WARM else None
        heapq.heappush(self.open, _Node(found.bound, next(self.ages), fixed, kept))

    def _offer_vertex(self, found: Relaxed) -> None:
        heaviest = found.atoms[int(np.argmax(found.weights))] > 0.5
        _offer_best(self.problem, self.run, heaviest[None])

    def _by_reduced_cost(self, found: Relaxed, fixed: Any) -> Any:
        """Fix the free units whose change of side would lift the linear bound above the cutoff."""
        change = self.polytope.reduced_costs(found.gradient, fixed)
        if change is None:
            return fixed
        settled = (fixed < 0) & (found.bound + np.abs(change) - self.relaxation.margin > self.cutoff)
        return np.where(settled, (change < 0).astype(np.int8), fixed)

    def _branching_unit(self, node: _Node) -> int:
        """The free unit whose relaxed value is nearest to one half; the strongest coupled among equals."""
        free = np.flatnonzero(node.fixed < 0)
        if node.warm is None:
            return int(free[0])
        fractional = np.minimum(node.warm.y, 1 - node.warm.y)[free]
        near = free[fractional >= fractional.max() - 1e-9]
        return int(near[np.argmax(self.relaxation.d[near])])


def _least_step(problem: BinaryQuadratic) -> float:
    """1 where every bias is a whole number, so that values differ by at least that; else 0."""
    parts = [problem.linear, *(biases for _, _, biases in problem.couplings.pairs())]
    whole = all(np.array_equal(part, np.rint(part)) for part in parts)
    return 1.0 if whole and abs(problem.offset) < 2**40 else 0.0
