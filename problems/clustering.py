r"""Part weighted points into a given number of clusters that are as tight as can be.

minimise    sum_c sum_{i < j in c} w_i w_j d2_ij / sum_{i in c} w_i        = sum_i w_i ||x_i - mean of its cluster||^2

over partitions into exactly n_clusters clusters, none larger than max_size: the weighted K-means inertia, which the
distances between the points tell.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ._arrays import LARGEST, SYMMETRY, Floats, Indices, floats, integers, table, whole
from ._errors import InvalidProblem
from ._npz import content_hash, json_array, read, unpack, write
from .binary_quadratic import checked_labels

# rows of a table that are compared with its transpose at a time
_ROWS = 256


@dataclass(frozen=True, eq=False)
class Clustering:
    r"""Part n points into clusters of the least weighted inertia.

    f(labels) = sum_c sum_{i < j in c} w_i w_j d2_ij / W_c,    W_c = sum_{i in c} w_i,  0 where W_c = 0

    Parameters
    ----------
    features : (n, d) float64 or float32, optional
        The points; d2_ij = ||x_i - x_j||^2.
    distances : (n, n) float64 or float32, optional
        d2, the squared distances themselves: symmetric, zero diagonal, no negative entry. Exactly one of the two is
        given; in C order it is kept as it is, read-only and without a copy.
    n_clusters : int
        How many clusters, none of them empty.
    weights : (n,) float, optional
        w, how much each point counts; zero or more, 1 by default.
    max_size : int, optional
        The most points in a cluster.
    labels : sequence of n, optional
        Names of the points.
    meta : mapping, optional
        JSON-able facts.

    Raises
    ------
    InvalidProblem
        If the arrays do not fit one another, an entry makes no sense or no partition keeps the sizes; says which does.

    Examples
    --------
    >>> problem = Clustering([[0.0], [1.0], [5.0]], n_clusters=2)
    >>> problem.value([0, 0, 1]), problem.value([0, 1, 1]), problem.is_feasible([0, 0, 0])
    (0.5, 8.0, False)
    """

    features: Any = None
    distances: Any = None
    n_clusters: int = 0
    weights: Any = None
    max_size: int | None = None
    labels: Sequence[Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.features is None) == (self.distances is None):
            given = "neither" if self.features is None else "both"
            raise InvalidProblem(f"Clustering: expected exactly one of features and distances, got {given}")
        if self.distances is None:
            features, least, most = table("features", self.features)
            object.__setattr__(self, "features", features)
            widest = 2.0 * max(abs(least), abs(most))
            self._check_scale(widest * widest * features.shape[1])
        else:
            distances, most = _squared_distances(self.distances)
            object.__setattr__(self, "distances", distances)
            self._check_scale(most)
        if self.n == 0:
            raise InvalidProblem("Clustering: expected at least one point, got none")
        object.__setattr__(self, "weights", _weights(self.weights, self.n))
        object.__setattr__(self, "n_clusters", whole("n_clusters", self.n_clusters))
        if self.max_size is not None:
            object.__setattr__(self, "max_size", whole("max_size", self.max_size))
        self._check_sizes()
        if self.labels is not None:
            object.__setattr__(self, "labels", checked_labels(self.labels, self.n))
        object.__setattr__(self, "meta", dict(self.meta))

    @property
    def n(self) -> int:
        """Number of points."""
        return len(self.features if self.distances is None else self.distances)

    @property
    def k(self) -> None:
        """No cardinality: every point belongs to a cluster."""
        return None

    @property
    def constraints(self) -> tuple[()]:
        """None beside the number of clusters and their size."""
        return ()

    def checked(self, name: str, labels: Any) -> Indices:
        """A canonical int copy of labels (n,), see `canonical`; refuses anything else."""
        found = np.array(labels)
        if found.shape != (self.n,):
            raise InvalidProblem(f"{name}: expected labels of shape ({self.n},), got {found.shape}")
        if found.dtype == np.bool_ or found.dtype.kind not in "iuf":
            raise InvalidProblem(f"{name}: expected the number of each point's cluster, got {found.dtype}")
        if found.dtype.kind == "f":
            found = integers(name, found, (None,))
        return canonical(found)

    def value(self, labels: Any) -> float:
        """The weighted inertia of labels (n,)."""
        found = self.checked("labels", labels)
        inertia = _inertia_of_features if self.distances is None else _inertia_of_distances
        return inertia(self, found)

    def violation(self, labels: Any) -> float:
        """How many clusters there are too many or too few, and points in clusters that are too large."""
        sizes = np.bincount(self.checked("labels", labels))
        excess = 0 if self.max_size is None else np.maximum(sizes - self.max_size, 0).sum()
        return float(abs(len(sizes) - self.n_clusters) + excess)

    def is_feasible(self, labels: Any) -> bool:
        """Whether there are exactly n_clusters clusters, none too large."""
        return self.violation(labels) == 0.0

    @cached_property
    def hash(self) -> str:
        """Content hash: the first 16 hex digits of a SHA-256 over the arrays."""
        return content_hash(_arrays(self))

    def replace(self, **changes: Any) -> Clustering:
        """The same problem with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)

    def save(self, path: str | Path) -> None:
        """Write the instance as `.npz` (format `prunesolve/1`, no pickle), whole or not at all."""
        write(path, "clustering", _arrays(self) | {"meta": json_array("meta", dict(self.meta))})

    @classmethod
    def load(cls, path: str | Path) -> Clustering:
        """Read what `save` wrote."""
        return unpack(path, _from_arrays, read(path, "clustering"))

    def _check_scale(self, largest: float) -> None:
        if not largest * max(self.n, 1) <= LARGEST:
            raise InvalidProblem(
                f"Clustering: expected squared distances that add up to {LARGEST:g} at most, got one of up to "
                f"{largest:.3g}; divide the features or the distances"
            )

    def _check_sizes(self) -> None:
        if not 1 <= self.n_clusters <= self.n:
            raise InvalidProblem(f"n_clusters: expected 1 to n = {self.n}, got {self.n_clusters}")
        least = -(-self.n // self.n_clusters)
        if self.max_size is not None and self.max_size < least:
            raise InvalidProblem(
                f"max_size: {self.n_clusters} clusters of up to {self.max_size} do not hold {self.n} points; the "
                f"smallest max_size that does is {least}"
            )


def canonical(labels: Any) -> Indices:
    """Labels numbered from 0 by first appearance, so that equal partitions have equal labels.

    Parameters
    ----------
    labels : (n,) int
        The number of each point's cluster, whatever the numbers are.

    Examples
    --------
    >>> canonical([7, 2, 7, 0]).tolist()
    [0, 1, 0, 2]
    """
    _, first, inverse = np.unique(np.asarray(labels), return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    found = rank[inverse]
    found.setflags(write=False)
    return found


def _inertia_of_features(problem: Clustering, labels: Indices) -> float:
    """From the centroids, which sum no large numbers of opposite sign."""
    total = 0.0
    for points in _members(labels):
        weights = problem.weights[points]
        if weights.sum() > 0.0:
            x = problem.features[points].astype(np.float64)
            centred = x - weights / weights.sum() @ x
            total += float(weights @ np.einsum("ij,ij->i", centred, centred))
    return total


def _inertia_of_distances(problem: Clustering, labels: Indices) -> float:
    total = 0.0
    for points in _members(labels):
        weights = problem.weights[points]
        if weights.sum() > 0.0:
            # each pair is met twice
            total += float(weights @ problem.distances[np.ix_(points, points)] @ (weights / weights.sum())) / 2.0
    return total


def _members(labels: Indices) -> list[Indices]:
    """The points of each cluster."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels))[:-1])


def _weights(values: Any, n: int) -> Floats:
    weights = floats("weights", np.ones(n) if values is None else values, (n,))
    if (weights < 0).any():
        at = int(weights.argmin())
        raise InvalidProblem(f"weights: expected zero or more, got {weights[at]:g} at {at}")
    if not weights.sum() <= LARGEST:
        raise InvalidProblem(f"weights: expected weights that add up to {LARGEST:g} at most; divide them all")
    return weights


def _squared_distances(values: Any) -> tuple[Any, float]:
    distances, least, most = table("distances", values)
    if distances.shape[0] != distances.shape[1]:
        raise InvalidProblem(f"distances: expected a square table, got shape {distances.shape}")
    if least < 0.0:
        raise InvalidProblem(f"distances: expected squared distances of zero or more, got {least:g}")
    if distances.diagonal().any():
        raise InvalidProblem("distances: expected a zero diagonal, a point has no distance to itself")
    for start in range(0, len(distances), _ROWS):
        rows = slice(start, start + _ROWS)
        if np.abs(distances[rows] - distances[:, rows].T).max(initial=0.0) > SYMMETRY * most:
            raise InvalidProblem("distances: not symmetric; (d + d.T) / 2 is")
    return distances, most


def _arrays(problem: Clustering) -> dict[str, Any]:
    optional = {"features": problem.features, "distances": problem.distances}
    arrays = {name: array for name, array in optional.items() if array is not None}
    if problem.labels is not None:
        arrays["labels"] = json_array("labels", list(problem.labels))
    if problem.max_size is not None:
        arrays["max_size"] = np.array(problem.max_size)
    return arrays | {"n_clusters": np.array(problem.n_clusters), "weights": problem.weights}


def _from_arrays(arrays: dict[str, Any]) -> Clustering:
    return Clustering(
        arrays.get("features"),
        arrays.get("distances"),
        n_clusters=arrays["n_clusters"],
        weights=arrays["weights"],
        max_size=arrays.get("max_size"),
        labels=json.loads(str(arrays["labels"])) if "labels" in arrays else None,
        meta=json.loads(str(arrays["meta"])),
    )
