"""Regressions on subsets of input groups for the battery: few groups, all of whose selections are fitted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from prunesolve.problems import Cardinality, GroupBounds, SubsetRegression
from prunesolve.problems._arrays import Floats, Indices

from ._kind_testing import Kind


def regressions() -> dict[str, SubsetRegression]:
    """Few groups of inputs that say much the same, under every constraint, alone and mixed."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 12)) @ (np.eye(12) + 0.5 * rng.normal(size=(12, 12)))
    y = x @ rng.normal(size=(12, 3)) + rng.normal(size=(60, 3))
    pairs, uneven = np.repeat(np.arange(6), 2), np.repeat(np.arange(5), [1, 4, 2, 2, 3])
    shuffled = rng.permutation(pairs)
    sets = _bounds([0, 0, 0, 1, 1, -1], [1, 1], [2, 1])
    twins = np.hstack([x[:, :6], x[:, :6]])
    dead = x * (pairs != 2)
    return {
        "pairs": _of(x, y, pairs, Cardinality(3)),
        "shuffled": _of(x, y, shuffled, Cardinality(2)),
        "single inputs": _of(x[:, :7], y, np.arange(7), Cardinality(4)),
        "uneven": _of(x, y, uneven, Cardinality(2)),
        "one stays": _of(x, y, pairs, Cardinality(1)),
        "one goes": _of(x, y, pairs, Cardinality(5)),
        "some always stay": _of(x, y, np.where(pairs == 5, -1, pairs), Cardinality(2)),
        "bounds": _of(x, y, pairs, sets),
        "bounds, cardinality": _of(x, y, shuffled, (sets, Cardinality(3))),
        "bounds apart": _of(
            x,
            y,
            pairs,
            (_bounds([0, 0, -1, -1, -1, -1], [1], [1]), _bounds([-1, -1, -1, -1, 0, 0], [0], [1]), Cardinality(3)),
        ),
        "bounds that overlap": _of(x, y, pairs, (sets, _bounds([0, -1, -1, 0, 1, 1], [0, 1], [1, 2]))),
        "twins": _of(twins, y, pairs, Cardinality(3)),
        "never anything": _of(dead, y, pairs, Cardinality(3)),
        "large": _of(1e6 * x, 1e6 * y, pairs, Cardinality(3)),
        "scales": _of(x * 10.0 ** np.arange(-6, 6), y, pairs, Cardinality(3)),
        "more outputs than inputs": _of(x, np.hstack([y @ rng.normal(size=(3, 15)), y]), pairs, Cardinality(3)),
        "no outputs": _of(x, y[:, :0], pairs, Cardinality(3)),
    }


def _trivial() -> dict[str, SubsetRegression]:
    """Instances that leave no choice, or none that matters."""
    eye, ones = np.eye(4), np.ones((4, 1))
    return {
        "one group": SubsetRegression([[2.0]], [[1.0]], [0], Cardinality(1)),
        "no group": SubsetRegression(eye, ones, [0, 1, 2, 3], Cardinality(0), offset=1.0),
        "all groups": SubsetRegression(eye, ones, [0, 1, 2, 3], Cardinality(4)),
        "no constraint": SubsetRegression(eye, ones, [0, 1, 2, 3]),
        "alike": SubsetRegression(eye, ones, [0, 1, 2, 3], Cardinality(2)),
        "nothing to say": SubsetRegression(eye, 0.0 * ones, [0, 1, 2, 3], Cardinality(2)),
        "nothing at all": SubsetRegression(0.0 * eye, 0.0 * ones, [0, 1, 2, 3], Cardinality(2)),
        "no input": SubsetRegression(np.zeros((0, 0)), np.zeros((0, 2)), np.zeros(0)),
    }


def _larger(n: int) -> dict[str, SubsetRegression]:
    rng = np.random.default_rng(n)
    x = rng.normal(size=(4 * n, 2 * n)) @ (np.eye(2 * n) + rng.normal(size=(2 * n, 2 * n)) / np.sqrt(2 * n))
    y = x @ rng.normal(size=(2 * n, 5)) + rng.normal(size=(4 * n, 5))
    bounds = GroupBounds(np.arange(n) % 4, np.full(4, n // 16), np.full(4, n // 6))
    return {
        "pairs": _of(x, y, np.repeat(np.arange(n), 2), Cardinality(n // 2)),
        "bounds": _of(x[:, :n], y, np.arange(n), (bounds, Cardinality(n // 2))),
    }


def _of(x: Floats, y: Floats, block: Indices, constraints: Any) -> SubsetRegression:
    """E||y - W x||^2 over the rows of x and y."""
    n = len(x)
    return SubsetRegression(x.T @ x / n, x.T @ y / n, block, constraints, offset=float((y**2).sum()) / n)


def _bounds(sets: list[int], low: list[int], high: list[int]) -> GroupBounds:
    return GroupBounds(np.array(sets), np.array(low), np.array(high))


def _value(problem: SubsetRegression, x: Any) -> float:
    """The offset and tr(W H W') - 2 tr(W B) at the W of the normal equations, by singular values on scaled inputs."""
    kept = np.array([group < 0 or bool(x[group]) for group in problem.block], dtype=bool)
    gram, cross = problem.gram[kept][:, kept], problem.cross[kept]
    length = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    w = np.linalg.pinv(gram / np.outer(length, length), rcond=1e-10, hermitian=True) @ (cross / length[:, None])
    w = w / length[:, None]
    return float(problem.offset + np.trace(w.T @ gram @ w) - 2.0 * np.trace(w.T @ cross))


def _meets(problem: SubsetRegression, x: Any) -> bool:
    for constraint in problem.constraints:
        if isinstance(constraint, Cardinality):
            if sum(map(bool, x)) != constraint.k:
                return False
            continue
        if not isinstance(constraint, GroupBounds):
            raise TypeError(type(constraint).__name__)
        for g, (low, high) in enumerate(zip(constraint.low, constraint.high, strict=True)):
            if not low <= sum(bool(kept) for kept, of in zip(x, constraint.group, strict=True) if of == g) <= high:
                return False
    return True


def _feasible(problem: SubsetRegression) -> Iterator[Any]:
    every = (np.array(x, dtype=bool) for x in product((False, True), repeat=problem.n))
    return (x for x in every if _meets(problem, x))


def optimum(problem: SubsetRegression) -> float:
    """The least value of all selections."""
    return min(_value(problem, x) for x in _feasible(problem))


def _scale(problem: SubsetRegression) -> float:
    return max(abs(problem.offset), 1e-12)


def _starts(problem: SubsetRegression) -> list[Any]:
    ranked = sorted(_feasible(problem), key=lambda x: _value(problem, x))
    return [ranked[-1], ranked[0]]


def _fault(problem: SubsetRegression, x: Any) -> str | None:
    x = np.asarray(x)
    if x.dtype != np.bool_ or x.shape != (problem.n,):
        return f"expected a selection ({problem.n},) bool, got {x.dtype} {x.shape}"
    return None


def _nonsense(problem: SubsetRegression) -> list[Any]:
    return [np.full(problem.n, 0.5), np.zeros(problem.n + 1, dtype=bool), "selection"]


def _written(x: Any) -> Any:
    return np.asarray(x).astype(int).tolist()


KIND = Kind(
    SubsetRegression,
    regressions,
    _trivial,
    _larger,
    _value,
    _meets,
    optimum,
    _scale,
    _starts,
    _fault,
    _nonsense,
    _written,
    asks_bound=True,
)
