r"""Lower bounds that hold for every feasible selection, by convex relaxation.

Bits satisfy x_i^2 = x_i, so for any d

    f(x) = offset + (a - d).x + x'Mx,        M = J/2 + diag(d)

and where M is positive semidefinite the right side is convex. Then at any point y, with g its gradient there,

    f(x) >= phi(y) + g.(x - y) >= phi(y) - g.y + min_s g.s        over any polytope that holds all feasible x,

which is what Frank-Wolfe computes at every step: the bound is valid wherever the iteration is stopped. The minimum
is exact over a cardinality and one GroupBounds (greedy on a laminar family); one budget enters through its multiplier.

Reference: Frank & Wolfe 1956; pairwise steps after Lacoste-Julien & Jaggi, NeurIPS 2015; the diagonal shift is that
of Hammer & Rubin 1970.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, Blocks, Budget, Dense, GroupBounds, LowRank

_EPS = float(np.finfo(np.float64).eps)
_TOLERANCE = 1e-9  # of a budget's scale, as in `Budget.holds`
_LARGEST_EIGEN = 2048
_MOST_ATOMS = 256


def lower_bound(problem: BinaryQuadratic, *, seconds: float = 10.0, iterations: int = 10_000) -> float:
    r"""A number that no feasible selection's value is below.

        min  offset + (a - d).y + y'(J/2 + diag d)y    over    0 <= y <= 1, counts, one budget

    bounded from below by its Frank-Wolfe dual value, less a margin for rounding.

    Parameters
    ----------
    problem : BinaryQuadratic
        Any couplings and constraints. A true `diagonal` claim makes the bound tight; it is verified before use.
    seconds : float
        Time to improve the bound in; the factorisation comes on top.
    iterations : int
        Most Frank-Wolfe steps; the bound repeats where these, and not the seconds, end it.

    Returns
    -------
    float
        The bound; inf where the constraints admit no selection.

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0], constraints=[Cardinality(2)])
    >>> round(lower_bound(problem), 6)
    -5.0
    """
    relaxation = Relaxation.of(problem)
    polytopes = list(Polytope.all_of(problem))
    free = np.full(problem.n, -1, dtype=np.int8)
    best = -np.inf
    for polytope in polytopes:
        stop = _after(seconds / len(polytopes))
        best = max(best, frank_wolfe(relaxation, polytope, free, iterations=iterations, stop=stop).bound)
    return float(best)


def _after(seconds: float) -> Callable[[], bool]:
    until = time.perf_counter() + seconds
    return lambda: time.perf_counter() > until


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
        return cls(problem, d, float(16 * _EPS * np.sqrt(problem.n + 1) * size))

    def product(self, y: Any) -> Any:
        """M y."""
        return 0.5 * self.problem.couplings.product(y) + self.d * y

    def value(self, y: Any, product: Any) -> float:
        """phi(y), given M y."""
        return float(self.problem.offset + (self.problem.linear - self.d) @ y + y @ product)

    def gradient(self, product: Any) -> Any:
        """Gradient of phi, given M y."""
        return self.problem.linear - self.d + 2.0 * product


def convex_diagonal(problem: BinaryQuadratic) -> Any:
    """(n,) d for which J/2 + diag(d) is proved positive semidefinite in float64, as small as is known.

    A low rank gives it at sight: |F_i|^2 / 2. Otherwise the problem's claim, if a Cholesky factorisation confirms it,
    or an eigenvalue shift of each block; diagonal dominance where a block is too large for either.
    """
    couplings = problem.couplings
    if isinstance(couplings, LowRank):
        return _low_rank_diagonal(couplings)
    claim = np.zeros(problem.n) if problem.diagonal is None else problem.diagonal
    if isinstance(couplings, Blocks):
        starts = couplings.starts
        parts = [_block_diagonal(m, claim[s : s + len(m)]) for m, s in zip(couplings.blocks, starts[:-1], strict=True)]
        return np.concatenate(parts) if parts else np.zeros(0)
    if isinstance(couplings, Dense):
        return _block_diagonal(couplings.matrix, claim)
    if problem.n <= _LARGEST_EIGEN:
        return _block_diagonal(couplings.dense(), claim)
    return 0.5 * np.asarray(abs(couplings.matrix).sum(axis=1)).ravel() * (1 + problem.n * _EPS)


def _low_rank_diagonal(couplings: LowRank) -> Any:
    rounding = 1 + 4 * (couplings.F.shape[1] + 4) * _EPS
    if couplings.sign == 1:
        return 0.5 * couplings.square * rounding
    largest = float(np.linalg.norm(couplings.F, 2)) ** 2 if couplings.F.size else 0.0
    return 0.5 * largest * (1 + 1e-12) - 0.5 * couplings.square / rounding


def _block_diagonal(matrix: Any, claim: Any) -> Any:
    """(n_b,) the claim plus what makes matrix/2 + diag(claim) factor; without a true claim, an even shift."""
    if not len(matrix):
        return claim
    shift = _factoring_shift(matrix, claim)
    if shift is not None:
        return claim + shift
    if len(matrix) <= _LARGEST_EIGEN:
        lift = max(0.0, -float(np.linalg.eigvalsh(matrix)[0]) / 2)
        # eigenvalues carry an error of the size of the rounding; a few tries settle it
        for slack in (1e-14, 1e-12, 1e-10):
            even = np.full(len(matrix), lift + slack * np.abs(matrix).sum(axis=1).max())
            shift = _factoring_shift(matrix, even)
            if shift is not None:
                return even + shift
    return 0.5 * np.abs(matrix).sum(axis=1) * (1 + len(matrix) * _EPS)


def _factoring_shift(matrix: Any, d: Any) -> float | None:
    """A tiny s for which matrix/2 + diag(d) + s is surely positive semidefinite, None where Cholesky breaks down.

    Cholesky that runs to its end proves the shifted matrix semidefinite up to (n + 1) eps times its trace
    (Higham, Accuracy and Stability, theorem 10.3); that much is added on top.
    """
    n = len(matrix)
    shifted = 0.5 * matrix
    at = np.arange(n)
    shift = 2 * (n + 2) * _EPS * float(np.abs(d).sum())
    shifted[at, at] = d + shift
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return None
    return shift + 2 * (n + 2) * _EPS * float(np.abs(shifted[at, at]).sum())


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

    def costs(self, fixed: Any) -> tuple[Any, float]:
        """(n,) linear costs and the limit of the budget, exact between the units fixed in, valid for all others."""
        assert self.budget is not None
        cost = self.budget.cost
        if self.budget.pair is not None:
            inside = fixed == 1
            load = self.budget.pair @ inside.astype(np.float64)
            cost = cost + np.where(inside, 0.5, 1.0) * load
        return cost, self.budget.limit + _TOLERANCE * self.budget.scale

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
            m = max(0.0, float((g[thrifty].sum() - g[dear].sum()) / (cost[dear].sum() - cost[thrifty].sum())))
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
    y = weights @ atoms
    product = relaxation.product(y)
    state = Relaxed(bound=-np.inf)
    for _ in range(max(1, iterations)):
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
