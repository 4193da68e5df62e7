r"""Lower bounds that hold for every feasible selection, by convex relaxation.

Bits satisfy x_i^2 = x_i, so for any d

    f(x) = offset + (a - d).x + x'Mx,        M = J/2 + diag(d)

and where M is positive semidefinite the right side is convex. Then at any point y, with g its gradient there,

    f(x) >= phi(y) + g.(x - y) >= phi(y) - g.y + min_s g.s        over any polytope that holds all feasible x,

which is what Frank-Wolfe computes at every step: the bound is valid wherever the iteration is stopped. The minimum
is exact over a cardinality and one GroupBounds (greedy on a laminar family); one budget enters through its multiplier.
Under a cardinality alone, and where the other constraints are priced, the same certificate comes from pairwise steps
in `_branching`, which goes on to branch. A budget over several blocks is bounded by their fronts in `_budget_fronts`.

Reference: Frank & Wolfe 1956; pairwise steps after Lacoste-Julien & Jaggi, NeurIPS 2015; the diagonal shift is that
of Hammer & Rubin 1970.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, Budget, Cardinality, GroupBounds, InvalidProblem

from . import _budget_fronts
from ._base import Run
from ._branching import LARGEST, Branching, prepare, suits
from ._completion import completion_bound
from ._convexity import convex_diagonal
from .block_fronts import BlockFronts, splits

_EPS = float(np.finfo(np.float64).eps)
_TOLERANCE = 1e-9  # of a budget's scale, as in `Budget.holds`
_FREE = 1e-100  # limits, what costs less counts as nothing
_DEAREST = 1e290  # for a limit, above which no multiplier is tried
_MOST_ATOMS = 256
_JOINING, _RELAXING, _COMPLETING = 0.65, 0.25, 0.95  # of the seconds, when fronts, relaxation and completions end
_GLANCE = 15  # steps after which completions must be within reach of the relaxation
_REFRESH = 32  # steps after which M y is computed anew
_LARGEST_COMPLETION = 1024  # units; it takes three dense matrices


def lower_bound(
    problem: BinaryQuadratic, *, seconds: float = 10.0, iterations: int = 10_000, incumbent: float | None = None
) -> float:
    r"""A number that no feasible selection's value is below.

        min  offset + (a - d).y + y'(J/2 + diag d)y    over    0 <= y <= 1, counts, one budget

    bounded from below by its dual value, less a margin for rounding. Under a cardinality alone the diagonal is
    sharpened, units are fixed by reduced cost and the rest is branched on; the least bound of an open part is the
    result. GroupBounds and budgets are priced for that, and a budget is also bounded by its best completions, and by
    the fronts of the blocks where there are several.

    Parameters
    ----------
    problem : BinaryQuadratic
        Any couplings and constraints. A true `diagonal` claim helps; it is verified before use.
    seconds : float
        Time to improve the bound in; a factorisation that has begun is finished.
    iterations : int
        Most steps of each kind and most nodes; the bound repeats where these, and not the seconds, end it.
    incumbent : float, optional
        The value of a feasible selection; with it more units can be fixed.

    Returns
    -------
    float
        The bound; inf where the constraints admit no selection.

    Reference
    ---------
    The relaxation as in the module; sharpening after Billionnet, Elloumi & Plateau, Discrete Applied Mathematics 157
    (2009); completions after Caprara, Pisinger & Toth, INFORMS Journal on Computing 11 (1999).

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0], constraints=[Cardinality(2)])
    >>> round(lower_bound(problem), 6)
    -5.0
    """
    alone, joined = suits(problem), bool(problem.of_kind(Budget)) and _budget_fronts.falls_apart(problem)
    split = splits(problem)
    # the clock starts once the kernels are there
    if alone:
        prepare()
    if split:
        BlockFronts()._prepare(problem)
    if joined:
        _budget_fronts.prepare(problem)
    began = time.perf_counter()
    relaxation = Relaxation.of(problem)
    if alone and not split:
        return _branched(problem, relaxation.d, incumbent, iterations, _until(began + seconds))
    best, priced = -np.inf, problem
    if split:
        best = _joined(problem, iterations, 0.5 * seconds)
        if alone:
            return max(best, _branched(problem, relaxation.d, incumbent, iterations, _until(began + seconds)))
    for budget in problem.of_kind(Budget) if joined else ():
        stop = _until(began + _JOINING * seconds)
        best = max(best, _budget_fronts.budget_bound(problem, budget, rounds=iterations, stop=stop))
    if best == np.inf:
        return np.inf
    part = (_JOINING + 0.1 if joined else _RELAXING) if problem.n <= LARGEST else 1.0
    polytopes = list(Polytope.all_of(problem))
    for p, polytope in enumerate(polytopes, 1):
        stop = _until(began + part * seconds * p / len(polytopes))
        free = np.full(problem.n, -1, dtype=np.int8)
        found = frank_wolfe(relaxation, polytope, free, iterations=iterations, stop=stop)
        if found.bound == np.inf:
            return np.inf
        if found.bound > best:
            best, priced = found.bound, polytope.priced(problem, found.gradient)
    for budget in problem.of_kind(Budget) if problem.n <= _LARGEST_COMPLETION else ():
        stop = _until(began + _COMPLETING * seconds)
        glance = completion_bound(problem, budget, iterations=min(iterations, _GLANCE), stop=stop)
        if glance > best - 0.5 * abs(best):
            # far from convex: completions, slow at first, are the better use of the time
            best = max(best, completion_bound(problem, budget, iterations=iterations, stop=stop))
    if priced is not problem and suits(priced):
        best = max(best, _branched(priced, relaxation.d, incumbent, iterations, _until(began + seconds)))
    return float(best)


def _joined(problem: BinaryQuadratic, nodes: int, seconds: float) -> float:
    """The bound of the joined fronts of blocks that do not touch."""
    run = Run(problem, seed=0, time_limit=seconds)
    BlockFronts(node_limit=nodes)._search(problem, run)
    return -np.inf if run.bound is None else run.bound


def _branched(problem: BinaryQuadratic, d: Any, incumbent: float | None, nodes: int, stop: Callable[[], bool]) -> float:
    branching = Branching(problem, d, value=np.inf if incumbent is None else incumbent)
    branching.root(stop)
    for _ in range(nodes):
        if branching.done or stop():
            break
        branching.expand(stop)
    return branching.bound


def _until(moment: float) -> Callable[[], bool]:
    return lambda: time.perf_counter() > moment


@dataclass(frozen=True)
class Relaxation:
    """phi(y) = offset + linear.y + y'My with M = J/2 + diag(d) positive semidefinite."""

    problem: BinaryQuadratic
    d: Any  # (n,)
    margin: float  # what rounding may add to a bound

    @classmethod
    def of(cls, problem: BinaryQuadratic) -> Relaxation:
        """The relaxation with the claimed diagonal where that is verified, else the smallest shift known to do."""
        d = convex_diagonal(problem)
        size = abs(problem.offset) + np.abs(problem.linear).sum() + problem.couplings.magnitude() + 2 * np.abs(d).sum()
        return cls(problem, d, float(4 * (problem.n + 8) * _EPS * size))

    def product(self, y: Any) -> Any:
        """M y."""
        return 0.5 * self.problem.couplings.product(y) + self.d * y

    def value(self, y: Any, product: Any) -> float:
        """phi(y), given M y."""
        return float(self.problem.offset + (self.problem.linear - self.d) @ y + y @ product)

    def gradient(self, product: Any) -> Any:
        """Gradient of phi, given M y."""
        return self.problem.linear - self.d + 2.0 * product


@dataclass(frozen=True)
class Polytope:
    """What the relaxation keeps of the constraints: a cardinality, one partition, one budget; all others dropped."""

    n: int
    k: int | None
    part: Any  # (n,) part of each unit, the last part being that of no group
    low: Any  # (p,)
    high: Any  # (p,)
    budget: Budget | None

    @classmethod
    def all_of(cls, problem: BinaryQuadratic) -> Iterator[Polytope]:
        """One polytope for every choice of a partition and a budget; each holds all feasible selections."""
        for groups in problem.of_kind(GroupBounds) or [None]:
            for budget in problem.of_kind(Budget) or [None]:
                yield cls(problem.n, problem.k, *_partition(groups, problem.n), budget)

    @classmethod
    def tightest(cls, problem: BinaryQuadratic) -> Polytope:
        """The one of most parts and of the scarcest budget, for searches that can afford a single one."""

        def promise(polytope: Polytope) -> tuple[int, float]:
            budget = polytope.budget
            scarcity = 0.0 if budget is None else 1.0 - budget.limit / budget.scale
            return (len(polytope.low) if (polytope.low > 0).any() or budget is None else 0, scarcity)

        return max(cls.all_of(problem), key=promise)

    def reduced_costs(self, g: Any, fixed: Any) -> Any:
        """(n,) what forcing a free unit to its other side adds to min g.s, negative for units in the minimiser.

        None where more than a cardinality over the free units shapes the minimum.
        """
        if self.budget is not None or len(self.low) > 1 and ((self.low > 0).any() or (self.high < self.n).any()):
            return None
        free = np.flatnonzero(fixed < 0)
        if self.k is None:
            return np.where(fixed < 0, g, 0.0)
        missing = self.k - int((fixed == 1).sum())
        if not 0 < missing < len(free):
            return None
        ranked = np.sort(g[free])
        change = np.zeros(self.n)
        # a unit outside replaces the worst inside, one inside is replaced by the best outside
        inside = g[free] <= ranked[missing - 1]
        change[free] = np.where(inside, np.minimum(g[free] - ranked[missing], 0.0), g[free] - ranked[missing - 1])
        return change

    def priced(self, problem: BinaryQuadratic, g: Any) -> BinaryQuadratic:
        r"""The problem with partition and budget in the objective, at the multipliers that fit the gradient g (n,).

            f(x) + m (c.x - limit) + sum_p u_p+ (count_p - high_p) + sum_p u_p- (count_p - low_p)

        is nowhere above f where x is feasible, whatever m >= 0 and u.
        """
        free = np.full(self.n, -1, dtype=np.int8)
        linear, offset = problem.linear, problem.offset
        kept = self._cheapest(g, free)
        if self.budget is not None:
            cost, limit = self.costs(free)
            m, kept = self._budget_price(g, free, kept)
            g, linear, offset = g + m * cost, linear + m * cost, offset - m * limit
        u = self._part_prices(g, kept)
        linear = linear + u[self.part]
        offset = offset - float(np.maximum(u, 0.0) @ self.high + np.minimum(u, 0.0) @ self.low)
        cardinality = [] if self.k is None else [Cardinality(self.k)]
        try:
            return problem.replace(linear=linear, offset=offset, constraints=cardinality, diagonal=None)
        except InvalidProblem:
            # prices past the float64 range
            return problem

    def _budget_price(self, g: Any, fixed: Any, kept: Any) -> tuple[float, Any]:
        """The multiplier of the budget, and the selection of least cost at that price."""
        cost, limit = self.costs(fixed)
        if cost[kept].sum() <= limit:
            return 0.0, kept
        dear, thrifty, m = kept, self._cheapest(cost, fixed), 0.0
        for _ in range(50):
            m = _crossing(g, cost, dear, thrifty)
            between = self._cheapest(g + m * cost, fixed)
            if (between == dear).all() or (between == thrifty).all():
                break
            if cost[between].sum() > limit:
                dear = between
            else:
                thrifty = between
        return m, self._cheapest(g + m * cost, fixed)

    def _part_prices(self, g: Any, kept: Any) -> Any:
        """(p,) what must be added to the costs of each part so that one threshold separates what is kept."""
        parts = len(self.low)
        dearest, cheapest = np.full(parts, -np.inf), np.full(parts, np.inf)
        np.maximum.at(dearest, self.part[kept], g[kept])
        np.minimum.at(cheapest, self.part[~kept], g[~kept])
        threshold = 0.0
        if self.k is not None:
            count = np.bincount(self.part[kept], minlength=parts)
            threshold = float(dearest[count > self.low].max(initial=-np.inf))
            if not np.isfinite(threshold):
                threshold = float(cheapest[count < self.high].min(initial=np.inf))
        if not np.isfinite(threshold):
            return np.zeros(parts)
        return np.clip(0.0, threshold - cheapest, threshold - dearest)

    def costs(self, fixed: Any) -> tuple[Any, float]:
        """(n,) linear costs and limit, both in limits; exact between the units fixed in, valid for all others."""
        assert self.budget is not None
        # in limits and without costs far above one, so that multipliers stay in range
        budget = self.budget.capped
        unit = budget.limit or 1.0
        cost = np.where(budget.cost < _FREE * unit, 0.0, budget.cost / unit)
        if budget.pair is not None:
            inside = fixed == 1
            load = budget.pair @ inside.astype(np.float64) / unit
            cost = cost + np.where(inside, 0.5, 1.0) * load
        return cost, (budget.limit + _TOLERANCE * self.budget.scale) / unit

    def minimise(self, g: Any, fixed: Any) -> tuple[Any, float] | None:
        """(s (n,) float, value): a minimiser of g.s and a number not above its value; None where nothing fits."""
        x = self._cheapest(g, fixed)
        if x is None:
            return None
        if self.budget is None:
            return x.astype(np.float64), float(g[x].sum())
        return self._within_budget(g, fixed, x)

    def _cheapest(self, g: Any, fixed: Any) -> Any:
        """(n,) bool of least g.x under the counts, by the greedy that is exact on laminar families."""
        key = np.where(fixed == 1, -np.inf, np.where(fixed == 0, np.inf, g))
        order = np.lexsort((key, self.part))
        begins = np.searchsorted(self.part[order], np.arange(len(self.low)))
        rank = np.empty(self.n, dtype=np.int64)
        rank[order] = np.arange(self.n) - begins[self.part[order]]
        needed = (rank < self.low[self.part]) | (fixed == 1)
        allowed = (rank < self.high[self.part]) & (fixed != 0)
        if (needed & ~allowed).any():
            return None
        if self.k is None:
            return needed | (allowed & (g < 0))
        spare = np.flatnonzero(allowed & ~needed)
        missing = self.k - int(needed.sum())
        if not 0 <= missing <= len(spare):
            return None
        needed[spare[np.argsort(g[spare], kind="stable")[:missing]]] = True
        return needed

    def _within_budget(self, g: Any, fixed: Any, x: Any) -> tuple[Any, float] | None:
        """The exact minimum with the budget: max over its multiplier m >= 0 of min_s (g + m c).s - m limit."""
        cost, limit = self.costs(fixed)
        if cost[x].sum() <= limit:
            return x.astype(np.float64), float(g[x].sum())
        thrifty = self._cheapest(cost, fixed)
        if cost[thrifty].sum() > limit:
            return None
        dear, best = x, float(g[x].sum())
        for _ in range(50):
            # where the lines of the two selections cross; the dual is the lower envelope of all such lines
            m = _crossing(g, cost, dear, thrifty)
            crossing = float(g[dear].sum() + m * (cost[dear].sum() - limit))
            between = self._cheapest(g + m * cost, fixed)
            value = float(g[between].sum() + m * (cost[between].sum() - limit))
            best = max(best, value)
            if value >= crossing - 1e-12 * (1.0 + abs(crossing)):
                break
            if cost[between].sum() > limit:
                dear = between
            else:
                thrifty = between
        share = (limit - cost[thrifty].sum()) / (cost[dear].sum() - cost[thrifty].sum())
        return share * dear + (1.0 - share) * thrifty, best


def _crossing(g: Any, cost: Any, dear: Any, thrifty: Any) -> float:
    """The multiplier at which two selections come to the same."""
    m = float(g[thrifty].sum() - g[dear].sum()) / float(cost[dear].sum() - cost[thrifty].sum())
    return min(max(0.0, m), _DEAREST)


def _partition(groups: GroupBounds | None, n: int) -> tuple[Any, Any, Any]:
    """Parts and their bounds, units of no group in a last part without any."""
    if groups is None:
        return np.zeros(n, dtype=np.int64), np.zeros(1, dtype=np.int64), np.full(1, n)
    part = np.where(groups.group < 0, len(groups.low), groups.group)
    return part, np.append(np.maximum(groups.low, 0), 0), np.append(groups.high, n)


@dataclass
class Relaxed:
    """Where Frank-Wolfe stands: y = weights.atoms, its value, and the best bound so far."""

    bound: float = np.inf
    value: float = np.inf
    y: Any = None  # (n,)
    gradient: Any = None  # (n,)
    atoms: Any = field(default_factory=lambda: np.zeros((0, 0)))  # (m, n)
    weights: Any = field(default_factory=lambda: np.zeros(0))  # (m,)


def frank_wolfe(
    relaxation: Relaxation,
    polytope: Polytope,
    fixed: Any,
    *,
    iterations: int,
    cutoff: float = np.inf,
    warm: Relaxed | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Relaxed:
    """Bound the relaxation on the face where `fixed` (n,) holds: 1 in, 0 out, -1 free.

    Ends once the bound reaches `cutoff`, once that is out of reach, or when the gap is closed. `bound` is inf where
    the face is empty.
    """
    start = polytope.minimise(relaxation.problem.linear, fixed)
    if start is None:
        return Relaxed()
    atoms, weights = _inherited(warm, fixed) if warm is not None else (start[0][None], np.ones(1))
    if not len(atoms):
        atoms, weights = start[0][None], np.ones(1)
    y, product = start[0], start[0]
    state = Relaxed(bound=-np.inf)
    for step in range(max(1, iterations)):
        if step % _REFRESH == 0:
            # moved along with y, it would gather rounding
            y = weights @ atoms
            product = relaxation.product(y)
        value, gradient = relaxation.value(y, product), relaxation.gradient(product)
        vertex = polytope.minimise(gradient, fixed)
        if vertex is None:
            return Relaxed()
        s, least = vertex
        bound = value - float(gradient @ y) + least - relaxation.margin
        state = Relaxed(max(state.bound, bound), value, y, gradient, atoms, weights)
        # above cutoff the node is done; with the value below it, no bound on this face can get there
        hopeless = np.isfinite(cutoff) and value < cutoff and value - state.bound < 0.5 * (cutoff - state.bound)
        closed = value - state.bound <= max(2 * relaxation.margin, 1e-10 * abs(value))
        if state.bound >= cutoff or hopeless or closed or stop():
            break
        atoms, weights, y, product = _pairwise_step(relaxation, atoms, weights, y, product, gradient, s)
    return state


def _pairwise_step(
    relaxation: Relaxation, atoms: Any, weights: Any, y: Any, product: Any, gradient: Any, s: Any
) -> tuple[Any, Any, Any, Any]:
    """Move weight from the worst atom to the new vertex, as far as the quadratic wants."""
    away = int((atoms @ gradient).argmax())
    direction = s - atoms[away]
    shifted = relaxation.product(direction)
    curvature = float(direction @ shifted)
    slope = float(gradient @ direction)
    step = weights[away] if curvature <= 0 else min(weights[away], max(0.0, -slope / (2 * curvature)))
    same = np.flatnonzero((atoms == s).all(axis=1))
    weights = weights.copy()
    weights[away] -= step
    if len(same):
        weights[same[0]] += step
    else:
        atoms, weights = np.vstack([atoms, s]), np.append(weights, step)
    kept = weights > 1e-15
    if kept.sum() > _MOST_ATOMS:
        # merging the lightest two keeps y where it is
        return _merged(atoms[kept], weights[kept], y + step * direction, product + step * shifted)
    return atoms[kept], weights[kept], y + step * direction, product + step * shifted


def _merged(atoms: Any, weights: Any, y: Any, product: Any) -> tuple[Any, Any, Any, Any]:
    i, j = np.argsort(weights)[:2]
    mean = (weights[i] * atoms[i] + weights[j] * atoms[j]) / (weights[i] + weights[j])
    others = np.delete(np.arange(len(weights)), [i, j])
    return np.vstack([atoms[others], mean]), np.append(weights[others], weights[i] + weights[j]), y, product


def _inherited(warm: Relaxed, fixed: Any) -> tuple[Any, Any]:
    """The parent's atoms that lie on the face, reweighted."""
    on_face = ((warm.atoms == fixed) | (fixed < 0)).all(axis=1)
    weights = warm.weights[on_face]
    return warm.atoms[on_face], weights / weights.sum() if len(weights) else weights
