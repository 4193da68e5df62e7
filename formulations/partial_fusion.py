r"""Which neurons of two layers become one, and which stay apart.

minimise    sum_ij P_ij ||x_i - y_j||^2     over partial couplings P of the two layers that carry 1 - alpha of each
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import InvalidProblem, PartialTransport
from prunesolve.problems._arrays import Bits, Floats, Indices, floats, plan

from ._base import FeatureFormulation, number_in

# relative to a neuron's weight: mass below it is rounding
_ROUNDING = 1e-7


@dataclass(frozen=True)
class PartialFusion(FeatureFormulation):
    r"""min <C, P>,  C_ij = ||x_i - y_j||^2,  P >= 0,  P 1 <= mu,  P' 1 <= nu,  sum P = 1 - alpha.

    alpha = 0 fuses all (optimal-transport fusion), alpha = 1 nothing (the ensemble). Layers of one width n have
    weights 1/n and fuse k = floor((1 - alpha) n + 1/2) whole pairs, so that every vertex is a partial assignment.
    Layers of different widths have uniform measures, and some neurons split: one part is fused, the other stays alone.

    Parameters
    ----------
    alpha : float in [0, 1]
        The share of each layer that stays alone.
    whole : bool
        Fuse k = floor((1 - alpha) min(n, m) + 1/2) whole pairs at any widths: each neuron weighs 1, and what the wider
        layer has more stays alone.

    References
    ----------
    Morelli and Eckstein, partial fusion by partial optimal transport, ICML 2026; alpha = 0: Singh and Jaggi, Model
    fusion via optimal transport, NeurIPS 2020. `whole` is ours.

    Examples
    --------
    >>> fusion = PartialFusion(alpha=0.5)
    >>> problem = fusion.encode([[0.0], [4.0]], [[9.0], [1.0]])
    >>> problem.cost.tolist(), problem.pairs
    ([[81.0, 1.0], [25.0, 9.0]], 1)
    >>> fusion.decode(problem, [[0, 0.5], [0, 0]])
    Coupling(2 and 2 units: 1 fused, 1 and 1 alone)
    """

    alpha: float = 0.4
    whole: bool = False

    name: ClassVar[str] = "partial-fusion"
    layers: ClassVar[int] = 2

    def __post_init__(self) -> None:
        number_in("alpha", self.alpha, 0.0, 1.0)
        if not isinstance(self.whole, bool):
            raise InvalidProblem(f"whole: expected True or False, got {self.whole!r}")

    def encode(self, features_a: Any, features_b: Any, *, labels: Any = None) -> PartialTransport:
        """The problem of matching two layers by what their neurons are like.

        Parameters
        ----------
        features_a, features_b : (n, d), (m, d)
            One row a neuron: aligned weights, activations on common data, or both side by side.
        labels : pair of sequences of n and m, optional
            Names of the neurons.

        Raises
        ------
        InvalidProblem
            If a feature is not finite, or the rows differ in length.
        """
        a, b = floats("features_a", features_a, (None, None)), floats("features_b", features_b, (None, None))
        if a.shape[1] != b.shape[1]:
            raise InvalidProblem(
                f"features: expected rows of one length, got {a.shape[1]} and {b.shape[1]}; align the first layer's "
                "to the second's"
            )
        return self.encode_cost(squared_distances(a, b), labels=labels)

    def encode_cost(self, cost: Any, *, labels: Any = None) -> PartialTransport:
        """The same from a table of costs (n, m), as where several layers share one coupling and their costs add up."""
        n, m = shape if len(shape := np.shape(cost)) == 2 else (0, 0)
        if not n or not m:
            raise InvalidProblem(f"cost: expected a table of at least one row and one column, got shape {shape}")
        meta = {"formulation": repr(self), "sense": "minimise", "alpha": self.alpha}
        if self.whole or n == m:
            weight = 1.0 if self.whole else 1.0 / n
            mass = weight * np.floor((1.0 - self.alpha) * min(n, m) + 0.5)
            return PartialTransport(cost, np.full(n, weight), np.full(m, weight), mass, labels, meta)
        return PartialTransport(cost, np.full(n, 1.0 / n), np.full(m, 1.0 / m), 1.0 - self.alpha, labels, meta)

    def decode(self, problem: PartialTransport, solution: Any) -> Coupling:
        """What a plan (n, m) of the encoded problem makes of the two layers.

        Raises
        ------
        InvalidProblem
            If there is no plan, or it does not keep the problem's masses.
        """
        if solution is None:
            raise InvalidProblem(f"{self.name}: there is no solution to decode; see the result's status for why")
        carried = problem.checked("solution", solution)
        # an entropic plan is rounded only so far; what it misses is far below what a share shows
        if problem.violation(carried) > 1e-6 * max(problem.source.max(), problem.target.max(), problem.mass):
            over = problem.marginal_errors(carried)
            raise InvalidProblem(f"{self.name}: expected a plan that keeps the masses, got one off by {max(over):g}")
        return Coupling(carried, problem.source, problem.target)

    def meaning(self, decoded: Coupling, *features: Any) -> float:
        """How far what is fused lies apart: squared distances of the neurons, by the mass that joins them."""
        a, b = (np.asarray(table, dtype=np.float64) for table in features)
        met = decoded.plan.tocoo()
        pairs = zip(met.row, met.col, met.data, strict=True)
        return float(sum(mass * np.square(a[i] - b[j]).sum() for i, j, mass in pairs))


def squared_distances(a: Floats, b: Floats) -> Floats:
    """(n, m) ||a_i - b_j||^2 of rows; exact zeros for equal rows may come out as rounding, never below zero."""
    cost = a @ b.T
    cost *= -2.0
    cost += np.einsum("ij,ij->i", a, a)[:, None]
    cost += np.einsum("ij,ij->i", b, b)
    return np.maximum(cost, 0.0, out=cost)


@dataclass(frozen=True, eq=False, repr=False)
class Coupling:
    r"""Which units of two layers are one unit of the fused layer, and which keep a unit of their own.

    The fused layer holds [A's alone | fused | B's alone]: one fused unit for each unit of B that takes part, in B's
    order. A value of A is read off it as a = share * backward @ fused + (1 - share) * alone, and likewise of B; a fused
    unit reads the mean, forward, of what its units of A read. A unit that splits is in both parts.

    Parameters
    ----------
    plan : (n, m) scipy CSR or dense
        What is carried from each unit of A to each of B.
    source, target : (n,), (m,)
        What each unit weighs.

    References
    ----------
    Morelli and Eckstein, 2026. There the rows of fused units are scaled to columns that sum to one; here every value
    of A is a mean of fused ones (rows of `backward` sum to one), so that duplicates of a unit are added up: exact for
    a layer that repeats units, and the same wherever pairs are whole.

    Examples
    --------
    >>> half = Coupling.matched([0, 2], [1, 0], 3, 2)
    >>> half, half.alone_a.tolist(), half.forward.toarray().tolist()
    (Coupling(3 and 2 units: 2 fused, 1 and 0 alone), [1], [[0.0, 1.0], [1.0, 0.0]])
    """

    plan: Any
    source: Any
    target: Any

    def __post_init__(self) -> None:
        source, target = floats("source", self.source, (None,)), floats("target", self.target, (None,))
        carried = plan("plan", self.plan, (len(source), len(target)))
        if (carried.data < 0).any():
            raise InvalidProblem(f"plan: expected masses of zero or more, got {carried.data.min():g}")
        for name, weights, given in (("source", source, carried.sum(axis=1)), ("target", target, carried.sum(axis=0))):
            if (np.asarray(given) > weights * (1 + 1e-5) + 1e-300).any():
                raise InvalidProblem(f"plan: it carries more than {name} holds")
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "plan", _without_rounding(carried, source, target))

    def __repr__(self) -> str:
        apart = f"{len(self.alone_a)} and {len(self.alone_b)} alone"
        return f"Coupling({self.n_a} and {self.n_b} units: {len(self.fused_b)} fused, {apart})"

    # -- made without a plan

    @classmethod
    def matched(cls, rows: Sequence[int] | Indices, columns: Sequence[int] | Indices, n_a: int, n_b: int) -> Coupling:
        """Whole pairs: unit rows[p] of A with unit columns[p] of B; all others stay alone."""
        from scipy import sparse

        pairs = np.asarray(rows, dtype=np.int64), np.asarray(columns, dtype=np.int64)
        return cls(sparse.csr_array((np.ones(len(pairs[0])), pairs), shape=(n_a, n_b)), np.ones(n_a), np.ones(n_b))

    @classmethod
    def permutation(cls, order: Sequence[int] | Indices) -> Coupling:
        """Unit order[j] of A is unit j of B, and all are fused."""
        return cls.matched(order, np.arange(len(order)), len(order), len(order))

    @classmethod
    def identity(cls, n: int) -> Coupling:
        """Unit j of A is unit j of B."""
        return cls.permutation(np.arange(n))

    @classmethod
    def apart(cls, n_a: int, n_b: int) -> Coupling:
        """Nothing is fused."""
        return cls.matched([], [], n_a, n_b)

    # -- who goes where

    @property
    def n_a(self) -> int:
        """Units of A."""
        return len(self.source)

    @property
    def n_b(self) -> int:
        """Units of B."""
        return len(self.target)

    @property
    def width(self) -> int:
        """Units of the fused layer."""
        return len(self.alone_a) + len(self.fused_b) + len(self.alone_b)

    @cached_property
    def share_a(self) -> Floats:
        """(n_a,) how much of each unit of A is fused, from 0 to 1."""
        return _shares(np.asarray(self.plan.sum(axis=1)), self.source)

    @cached_property
    def share_b(self) -> Floats:
        """(n_b,) how much of each unit of B is fused, from 0 to 1."""
        return _shares(np.asarray(self.plan.sum(axis=0)), self.target)

    @cached_property
    def fused_a(self) -> Indices:
        """Units of A that are fused, whole or in part."""
        return np.flatnonzero(self.share_a > 0)

    @cached_property
    def fused_b(self) -> Indices:
        """Units of B that are fused, whole or in part."""
        return np.flatnonzero(self.share_b > 0)

    @cached_property
    def alone_a(self) -> Indices:
        """Units of A that stay alone, whole or in part."""
        return np.flatnonzero(self.share_a < 1)

    @cached_property
    def alone_b(self) -> Indices:
        """Units of B that stay alone, whole or in part."""
        return np.flatnonzero(self.share_b < 1)

    # -- kernels

    @cached_property
    def forward(self) -> Any:
        """(|fused_b|, |fused_a|) CSR, rows that sum to one: a fused unit reads the mean of what its units of A read."""
        return _rows_to_one(self._met.T)

    @cached_property
    def backward(self) -> Any:
        """(|fused_a|, |fused_b|) CSR, rows that sum to one: a fused unit of A is the mean of its fused ones."""
        return _rows_to_one(self._met)

    @property
    def _met(self) -> Any:
        return self.plan[self.fused_a][:, self.fused_b]

    @cached_property
    def read_a(self) -> Any:
        """(n_a, width) CSR: what each unit of A is of the fused layer; rows sum to one."""
        fused = _placed(_scaled(self.share_a[self.fused_a], self.backward), self.fused_a, len(self.alone_a), self)
        return fused + _diagonal(1 - self.share_a[self.alone_a], self.alone_a, 0, self.n_a, self.width)

    @cached_property
    def read_b(self) -> Any:
        """(n_b, width) CSR: what each unit of B is of the fused layer; rows sum to one."""
        start, last = len(self.alone_a), len(self.alone_a) + len(self.fused_b)
        fused = _diagonal(self.share_b[self.fused_b], self.fused_b, start, self.n_b, self.width)
        return fused + _diagonal(1 - self.share_b[self.alone_b], self.alone_b, last, self.n_b, self.width)

    def make_a(self, weight: float) -> Any:
        """(width, n_a) CSR: A's part in each unit of the fused layer, `weight` of a fused one and all of its own."""
        fused = _placed((weight * self.forward).T, self.fused_a, len(self.alone_a), self)
        return (fused + _diagonal(np.ones(len(self.alone_a)), self.alone_a, 0, self.n_a, self.width)).T.tocsr()

    def make_b(self, weight: float) -> Any:
        """(width, n_b) CSR: B's part in each unit of the fused layer, `weight` of a fused one and all of its own."""
        start, last = len(self.alone_a), len(self.alone_a) + len(self.fused_b)
        fused = _diagonal(np.full(len(self.fused_b), weight), self.fused_b, start, self.n_b, self.width)
        return (fused + _diagonal(np.ones(len(self.alone_b)), self.alone_b, last, self.n_b, self.width)).T.tocsr()


def _without_rounding(carried: Any, source: Floats, target: Floats) -> Any:
    """The plan without masses that neither end would notice."""
    found = carried.tocoo()
    keep: Bits = found.data > _ROUNDING * np.minimum(source[found.row], target[found.col])
    cleaned = carried.copy()
    cleaned.data = np.where(keep, carried.data, 0.0)
    cleaned.eliminate_zeros()
    return cleaned


def _shares(given: Floats, weights: Floats) -> Floats:
    """Given / weights, whole numbers within rounding made whole; a unit without weight stays alone."""
    share = np.divide(given, weights, out=np.zeros_like(weights), where=weights > 0)
    share[share > 1 - _ROUNDING] = 1.0
    return share


def _rows_to_one(matrix: Any) -> Any:
    rows = matrix.tocsr()
    return _scaled(1.0 / np.asarray(rows.sum(axis=1)), rows)


def _scaled(factors: Floats, rows: Any) -> Any:
    from scipy import sparse

    return sparse.diags_array(factors, format="csr") @ rows if len(factors) else rows


def _placed(part: Any, rows: Indices, start: int, coupling: Coupling) -> Any:
    """(n_a, width) CSR with `part` in the given rows and the fused columns."""
    from scipy import sparse

    found = part.tocoo()
    where = rows[found.row], found.col + start
    return sparse.csr_array((found.data, where), shape=(coupling.n_a, coupling.width))


def _diagonal(values: Floats, rows: Indices, start: int, n: int, width: int) -> Any:
    """(n, width) CSR with values[p] at (rows[p], start + p)."""
    from scipy import sparse

    return sparse.csr_array((values, (rows, start + np.arange(len(rows)))), shape=(n, width))
