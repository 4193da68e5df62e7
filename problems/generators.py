r"""Seeded random instances: pruning-like ones, and classics of the binary quadratic literature.

Every function draws from a generator of its own; the same arguments give the same instance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import Floats
from ._errors import InvalidProblem, unknown
from .binary_quadratic import BinaryQuadratic
from .constraints import Budget, Cardinality
from .couplings import Blocks, LowRank, from_pairs
from .units import Unit

COUPLINGS = ("dense", "blocks", "low-rank", "sparse")
_LCG_FACTOR, _LCG_MODULUS = 16807, 2**31 - 1  # of Palubeckis' stream


def pruning(
    n: int,
    keep: float = 0.5,
    *,
    layers: int = 1,
    rank: int = 16,
    clusters: int = 8,
    coupling: str = "dense",
    seed: int = 0,
) -> BinaryQuadratic:
    r"""An instance like those of channel pruning: few units matter much, and similar ones stand in for each other.

    f(x) = -w.x + sum_{i<j} (FF')_ij x_i x_j,   w_i = exp(z_i), z_i ~ N(0, 1)

    Row F_i is the centre of the unit's cluster plus noise, scaled so that |F_i|^2 / 2 = w_i / 4; with d = |F_i|^2 / 2
    the matrix J/2 + diag(d) = FF'/2 is positive semidefinite, and `diagonal` says so. Units of different layers meet
    only where the coupling is "dense" or "low-rank"; "sparse" joins each unit to its cluster in its own layer.

    Parameters
    ----------
    n : int
        Units, n >= 1.
    keep : float
        Fraction to keep, k = floor(keep n + 0.5).
    layers : int
        Layers of nearly equal width; they name the units and are the blocks of "blocks".
    rank : int
        Columns of F, which is the rank of the similarity.
    clusters : int
        Groups of similar units in a layer.
    coupling : {"dense", "blocks", "low-rank", "sparse"}
        How J is stored, and which pairs it couples.
    seed : int
        Seed of the generator.

    Returns
    -------
    BinaryQuadratic
        With Cardinality(k), `diagonal` and labels Unit("layer0", 0), ...

    Raises
    ------
    InvalidProblem
        If a number makes no sense or the coupling is unknown.

    Examples
    --------
    >>> problem = pruning(8, keep=0.25, layers=2, seed=1)
    >>> problem.k, problem.labels[4]
    (2, Unit(layer='layer1', channel=0))
    """
    if coupling not in COUPLINGS:
        raise unknown("coupling", coupling, COUPLINGS)
    if not 1 <= layers <= n or rank < 1 or clusters < 1 or not 0 <= keep <= 1:
        raise InvalidProblem(
            f"pruning: expected 1 <= layers <= n, rank and clusters >= 1 and keep from 0 to 1, got n = {n}, "
            f"layers = {layers}, rank = {rank}, clusters = {clusters}, keep = {keep}"
        )
    rng = np.random.default_rng(seed)
    importance = np.asarray(rng.lognormal(size=n), dtype=np.float64)
    layer = np.arange(n) * layers // n
    cluster = layer * clusters + rng.integers(clusters, size=n)
    F = rng.normal(size=(layers * clusters, rank))[cluster] + 0.5 * rng.normal(size=(n, rank))
    F *= np.sqrt(0.5 * importance / np.einsum("ir,ir->i", F, F))[:, None]
    channel = np.arange(n) - np.searchsorted(layer, layer)
    return BinaryQuadratic(
        -importance,
        _similarity(F, layer, cluster, coupling),
        constraints=[Cardinality(int(np.floor(keep * n + 0.5)))],
        labels=[Unit(f"layer{a}", int(c)) for a, c in zip(layer, channel, strict=True)],
        diagonal=0.5 * np.einsum("ir,ir->i", F, F),
        meta={"name": f"pruning-{coupling}-n{n}-r{rank}-s{seed}", "sense": "minimise", "seed": seed},
    )


def qubo(n: int, density: float = 1.0, seed: int = 0) -> BinaryQuadratic:
    """An unconstrained instance in the manner of Beasley: biases drawn evenly from -100 to 100, pairs doubled.

    Parameters
    ----------
    n : int
        Variables.
    density : float
        Chance that a bias, linear or quadratic, is not zero.
    seed : int
        Seed of the generator.

    Returns
    -------
    BinaryQuadratic
        Without constraints; meta["sense"] is "maximise", as in the files.

    Reference
    ---------
    J. E. Beasley, Heuristic algorithms for the unconstrained binary quadratic programming problem (1998).

    Examples
    --------
    >>> qubo(5, seed=3).constraints
    ()
    """
    _check(n, density)
    rng = np.random.default_rng(seed)
    linear = _whole(rng, -100, 100, n) * (rng.random(n) < density)
    i, j = _pairs(rng, n, density)
    quadratic = from_pairs(n, i, j, -2.0 * _whole(rng, -100, 100, len(i)))
    return BinaryQuadratic(-linear, quadratic, meta=_named("qubo", n, seed))


def palubeckis(n: int, density: float, seed: int) -> BinaryQuadratic:
    r"""Palubeckis' unconstrained instance of that size, density and seed: p3000.1 is palubeckis(3000, 50, 31000).

        maximise  sum_i q_ii x_i + 2 sum_{i<j} q_ij x_i x_j,     q whole numbers from -100 to 100

    A linear congruential stream  s <- 16807 s mod (2^31 - 1),  u = s / 2^31  is read row by row: q_ii takes one
    number; each j > i takes one to decide whether 100 u <= density, and where it does another for
    q_ij = floor(201 u) - 100. The best known values of p3000.1, p3000.4 and p3000.5 are reached on what this gives; on
    p3000.2 and p3000.3, of density 80, they are exceeded, so that the published instances must be others there.

    Parameters
    ----------
    n : int
        Variables.
    density : float
        Percent of the pairs that are coupled.
    seed : int
        First state of the stream, 1 to 2^31 - 2.

    Returns
    -------
    BinaryQuadratic
        Without constraints, dense, negated to be minimised; meta["sense"] is "maximise".

    Raises
    ------
    InvalidProblem
        If n, the density or the seed is out of range.

    Reference
    ---------
    G. Palubeckis, Multistart tabu search strategies for the unconstrained binary quadratic optimization problem,
    Annals of Operations Research 131 (2004).

    Examples
    --------
    >>> palubeckis(3, 100, seed=31000).linear
    array([ 52., -47.,  63.])
    """
    if n < 1 or not 0 <= density <= 100 or not 1 <= seed < _LCG_MODULUS:
        raise InvalidProblem(
            f"palubeckis: expected n >= 1, a density from 0 to 100 and a seed from 1 to {_LCG_MODULUS - 1}, "
            f"got n = {n}, {density} and {seed}"
        )
    linear, matrix = np.zeros(n), np.zeros((n, n))
    # as many numbers as a row of n - 1 coupled pairs takes
    ahead = _powers(2 * n)
    state = int(seed)
    for i in range(n):
        states = ahead[: 2 * (n - i)] * state % _LCG_MODULUS
        u = states / 2.0**31
        linear[i] = _coefficient(u[0])
        asks = _deciding(100.0 * u[1:] <= density)[: n - 1 - i] + 1
        coupled = 100.0 * u[asks] <= density
        matrix[i, i + 1 :][coupled] = _coefficient(u[asks[coupled] + 1])
        last = asks[-1] + coupled[-1] if len(asks) else 0
        state = int(states[last])
    return BinaryQuadratic(
        -linear, -2.0 * (matrix + matrix.T), meta=_named("palubeckis", n, seed) | {"density": density}
    )


def quadratic_knapsack(n: int, density: float = 0.5, seed: int = 0) -> BinaryQuadratic:
    """A quadratic knapsack in the manner of Gallo, Hammer and Simeone.

    Profits are drawn from 1 to 100, weights from 1 to 50, the capacity from 50 to the sum of the weights.

    Parameters
    ----------
    n : int
        Items.
    density : float
        Chance that a profit, linear or quadratic, is not zero.
    seed : int
        Seed of the generator.

    Returns
    -------
    BinaryQuadratic
        With one Budget; meta["sense"] is "maximise".

    Reference
    ---------
    G. Gallo, P. L. Hammer, B. Simeone, Quadratic knapsack problems, Mathematical Programming Study 12 (1980).

    Examples
    --------
    >>> quadratic_knapsack(10).is_feasible([False] * 10)
    True
    """
    _check(n, density)
    rng = np.random.default_rng(seed)
    profit = _whole(rng, 1, 100, n) * (rng.random(n) < density)
    i, j = _pairs(rng, n, density)
    quadratic = from_pairs(n, i, j, -_whole(rng, 1, 100, len(i)))
    weight = _whole(rng, 1, 50, n)
    capacity = float(rng.integers(50, max(50, weight.sum()) + 1))
    return BinaryQuadratic(
        -profit, quadratic, constraints=[Budget(weight, capacity)], meta=_named("quadratic-knapsack", n, seed)
    )


def max_diversity(n: int, m: int, seed: int = 0) -> BinaryQuadratic:
    """Keep m of n points with the largest sum of distances, in the manner of Glover, Kuo and Dhir.

    The points have ten coordinates drawn evenly from 0 to 10; distances are Euclidean.

    Parameters
    ----------
    n, m : int
        Points, and how many to keep.
    seed : int
        Seed of the generator.

    Returns
    -------
    BinaryQuadratic
        J = -distances with Cardinality(m); meta["sense"] is "maximise".

    Reference
    ---------
    F. Glover, C.-C. Kuo, K. S. Dhir, Heuristic algorithms for the maximum diversity problem (1998).

    Examples
    --------
    >>> max_diversity(6, 2).k
    2
    """
    _check(n, 1.0)
    points = np.random.default_rng(seed).uniform(0, 10, size=(n, 10))
    square = np.einsum("ir,ir->i", points, points)
    distance = np.sqrt(np.maximum(square[:, None] + square - 2.0 * points @ points.T, 0.0))
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0.0)
    return BinaryQuadratic(np.zeros(n), -distance, constraints=[Cardinality(m)], meta=_named("max-diversity", n, seed))


def _similarity(F: Floats, layer: Any, cluster: Any, coupling: str) -> Any:
    """FF' without its diagonal, in the storage asked for and over the pairs that it couples."""
    if coupling == "low-rank":
        return LowRank(F)
    if coupling == "dense":
        return LowRank(F).dense()
    if coupling == "blocks":
        return Blocks([LowRank(F[layer == a]).dense() for a in np.unique(layer)])
    from scipy import sparse

    members = [np.flatnonzero(cluster == c) for c in np.unique(cluster)]
    i = np.concatenate([np.repeat(m, len(m)) for m in members])
    j = np.concatenate([np.tile(m, len(m)) for m in members])
    i, j = i[i < j], j[i < j]
    upper = sparse.coo_array((np.einsum("pr,pr->p", F[i], F[j]), (i, j)), shape=(len(F), len(F)))
    return (upper + upper.T).tocsr()


def _pairs(rng: np.random.Generator, n: int, density: float) -> tuple[Any, Any]:
    i, j = np.triu_indices(n, 1)
    chosen = rng.random(len(i)) < density
    return i[chosen], j[chosen]


def _whole(rng: np.random.Generator, low: int, high: int, size: int) -> Floats:
    return rng.integers(low, high + 1, size=size).astype(np.float64)


def _powers(count: int) -> Any:
    """(count,) powers 16807^1, 16807^2, ... modulo 2^31 - 1; products of two residues fit in 62 bits."""
    powers = np.array([_LCG_FACTOR], dtype=np.int64)
    while len(powers) < count:
        powers = np.concatenate([powers, powers * powers[-1] % _LCG_MODULUS])
    return powers[:count]


def _deciding(hit: Any) -> Any:
    """Places of a stream that decide about a pair; a hit is followed by the coefficient, which decides nothing.

    In a run of hits every second one is a coefficient, and so is the miss that ends a run of odd length.
    """
    place = np.arange(len(hit))
    begin = np.maximum.accumulate(np.where(hit & np.r_[True, ~hit[:-1]], place, -1))
    # of a miss, the length of the run of hits just before it
    before = np.where(np.r_[False, hit[:-1]], place - begin, 0)
    return np.flatnonzero(np.where(hit, place - begin, before) % 2 == 0)


def _coefficient(u: Any) -> Any:
    return np.floor(201.0 * u) - 100.0


def _check(n: int, density: float) -> None:
    if n < 1 or not 0 <= density <= 1:
        raise InvalidProblem(f"expected n >= 1 and a density from 0 to 1, got n = {n} and {density}")


def _named(kind: str, n: int, seed: int) -> dict[str, Any]:
    return {"name": f"{kind}-n{n}-s{seed}", "sense": "maximise", "seed": seed}
