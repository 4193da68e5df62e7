"""Clusterings for the battery: few points, all of whose partitions are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from prunesolve.problems import Clustering
from prunesolve.problems._arrays import Floats

from ._kind_testing import Kind


def clusterings() -> dict[str, Clustering]:
    """Few points under every option, alone and mixed."""
    rng = np.random.default_rng(9)
    x = rng.normal(size=(7, 3))
    line = rng.random((7, 1))
    apart = _squared(x)
    weights = np.array([1.0, 2.0, 0.5, 1.0, 3.0, 0.25, 1.0])
    some = np.array([1.0, 0.0, 0.5, 0.0, 3.0, 0.25, 1.0])
    pairs = np.repeat(rng.integers(-3, 4, (3, 2)), [2, 3, 2], axis=0) / 2.0
    return {
        "features": Clustering(x, n_clusters=3),
        "distances": Clustering(distances=apart, n_clusters=3),
        "on a line": Clustering(line, n_clusters=4),
        "two clusters": Clustering(x, n_clusters=2),
        "nearly alone": Clustering(x, n_clusters=6),
        "weights": Clustering(x, n_clusters=3, weights=weights),
        "weights, distances": Clustering(distances=apart, n_clusters=3, weights=weights),
        "zero weights": Clustering(x, n_clusters=3, weights=some),
        "size": Clustering(x, n_clusters=3, max_size=3),
        "size, tight": Clustering(x[:6], n_clusters=3, max_size=2),
        "size, weights, distances": Clustering(distances=apart, n_clusters=4, weights=weights, max_size=2),
        "ties": Clustering(pairs, n_clusters=2),
        "more clusters than places": Clustering(pairs, n_clusters=5),
        "float32": Clustering(x.astype(np.float32), n_clusters=3),
        "float32, distances": Clustering(distances=apart.astype(np.float32), n_clusters=3),
        "large": Clustering(1e8 * x, n_clusters=3),
    }


def _trivial() -> dict[str, Clustering]:
    """Instances that leave no choice, or none that matters."""
    x = np.arange(4.0)[:, None]
    return {
        "one point": Clustering([[1.0]], n_clusters=1),
        "all alone": Clustering(x, n_clusters=4),
        "all together": Clustering(x, n_clusters=1),
        "all in one place": Clustering(np.ones((5, 2)), n_clusters=2),
        "two places": Clustering([[0.0], [9.0], [0.0], [9.0]], n_clusters=2),
        "no weight": Clustering(x, n_clusters=2, weights=np.zeros(4)),
    }


def _larger(n: int) -> dict[str, Clustering]:
    x = np.random.default_rng(n).normal(size=(n, 5))
    return {
        "points": Clustering(x, n_clusters=n // 3),
        "distances, size": Clustering(distances=_squared(x), n_clusters=n // 2, max_size=3),
    }


def _squared(x: Floats) -> Floats:
    return np.asarray(((x[:, None] - x[None]) ** 2).sum(axis=2))


def _partitions(n: int, clusters: int) -> Iterator[list[int]]:
    """All partitions of n points into that many clusters, numbered by first appearance."""

    def further(labels: list[int], used: int) -> Iterator[list[int]]:
        if len(labels) == n:
            if used == clusters:
                yield labels
            return
        if used + n - len(labels) >= clusters:
            for label in range(min(used + 1, clusters)):
                yield from further([*labels, label], max(used, label + 1))

    return further([], 0)


def _value(problem: Clustering, labels: Any) -> float:
    """Half of sum_ij w_i w_j d2_ij / W over each cluster, pair by pair."""
    if problem.distances is None:
        apart = _squared(np.asarray(problem.features, dtype=np.float64))
    else:
        apart = np.asarray(problem.distances, dtype=np.float64)
    total = 0.0
    for cluster in np.unique(labels):
        members = np.flatnonzero(np.asarray(labels) == cluster)
        w = problem.weights[members]
        if w.sum() > 0.0:
            total += 0.5 * float((np.outer(w, w) * apart[np.ix_(members, members)]).sum() / w.sum())
    return total


def _meets(problem: Clustering, labels: Any) -> bool:
    _, sizes = np.unique(labels, return_counts=True)
    return len(sizes) == problem.n_clusters and (problem.max_size is None or sizes.max() <= problem.max_size)


def _feasible(problem: Clustering) -> list[list[int]]:
    return [labels for labels in _partitions(problem.n, problem.n_clusters) if _meets(problem, labels)]


def optimum(problem: Clustering) -> float:
    """The least inertia of all partitions."""
    return min(_value(problem, labels) for labels in _feasible(problem))


def _scale(problem: Clustering) -> float:
    return _value(problem, np.zeros(problem.n))


def _starts(problem: Clustering) -> list[Any]:
    ranked = sorted(_feasible(problem), key=lambda labels: _value(problem, labels))
    return [np.array(ranked[-1]), np.array(ranked[0])]


def _fault(problem: Clustering, labels: Any) -> str | None:
    x = np.asarray(labels)
    if x.dtype.kind != "i" or x.shape != (problem.n,):
        return f"expected labels ({problem.n},) int, got {x.dtype} {x.shape}"
    _, first = np.unique(x, return_index=True)
    if x.min() != 0 or x.max() != len(first) - 1 or (np.diff(first) < 0).any():
        return f"expected labels numbered from 0 by first appearance, got {x.tolist()}"
    return None


def _nonsense(problem: Clustering) -> list[Any]:
    return [np.full(problem.n, np.nan), np.full(problem.n, 0.5), np.zeros(problem.n + 1, dtype=int), "labels"]


def _written(labels: Any) -> Any:
    return np.asarray(labels).tolist()


KIND = Kind(
    Clustering, clusterings, _trivial, _larger, _value, _meets, optimum, _scale, _starts, _fault, _nonsense, _written
)
