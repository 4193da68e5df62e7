r"""Which neurons of a layer become one: clusters of neurons that are alike.

minimise    sum_i w_i ||x_i - mean of i's cluster||^2        over partitions into as many clusters as units are kept
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import Clustering, InvalidProblem
from prunesolve.problems._arrays import Floats, Indices, floats, integers

from ._base import FeatureFormulation, number_in
from .budgets import Amount, units_to_keep


@dataclass(frozen=True)
class GeneralisedPruning(FeatureFormulation):
    r"""f(labels) = sum_i w_i ||x_i - m_(label i)||^2,  m_c the weighted mean of cluster c's features.

    A cluster becomes one neuron, which reads the mean of what its members read and is read with the sum of the weights
    they are read with: exact for neurons that are duplicates, whatever the activation is. A cluster of one is a
    neuron that stays as it is; a neuron without weight is dropped.

    Parameters
    ----------
    spread : float, optional
        The most neurons in a cluster, in multiples of n / clusters, rounded up; any number by default.

    References
    ----------
    Morelli and Eckstein, partial fusion by partial optimal transport, ICML 2026 (generalised pruning). Their merged
    neuron reads the sum and is read with the mean; that is exact for positively homogeneous activations without
    biases alone.

    Examples
    --------
    >>> pruning = GeneralisedPruning()
    >>> problem = pruning.encode([[0.0], [0.5], [4.0]], 2)
    >>> merging = pruning.decode(problem, [0, 0, 1])
    >>> merging.forward.tolist(), merging.backward.tolist()
    ([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    """

    spread: float | None = None

    name: ClassVar[str] = "generalised-pruning"

    def __post_init__(self) -> None:
        if self.spread is not None:
            number_in("spread", self.spread, 1.0, np.inf)

    def encode(self, features: Any, keep: Amount = 0.5, weights: Any = None, *, labels: Any = None) -> Clustering:
        """The problem of clustering a layer's neurons.

        Parameters
        ----------
        features : (n, d)
            One row a neuron: what it reads, what it does on data, or both side by side.
        keep : float or int
            Neurons of the smaller layer: a fraction of n, floor(f n + 0.5), or a count; one at least.
        weights : (n,), optional
            What each neuron counts, 1 by default.
        labels : sequence of n, optional
            Names of the neurons.

        Raises
        ------
        InvalidProblem
            If a feature is not finite or nothing or more than all is to be kept.
        """
        return self._clustering(keep, weights, labels, features=floats("features", features, (None, None)))

    def encode_distances(
        self, distances: Any, keep: Amount = 0.5, weights: Any = None, *, labels: Any = None
    ) -> Clustering:
        """The same from squared distances (n, n), which may add up over several tables of features."""
        return self._clustering(keep, weights, labels, distances=floats("distances", distances, (None, None)))

    def _clustering(self, keep: Amount, weights: Any, labels: Any, **points: Floats) -> Clustering:
        n = len(next(iter(points.values())))
        kept = units_to_keep(keep, n)
        if not kept:
            raise InvalidProblem(f"keep: {keep!r} of {n} neurons leaves none; keep at least one")
        most = None if self.spread is None else int(np.ceil(self.spread * n / kept))
        meta = {"formulation": repr(self), "sense": "minimise", "keep": kept}
        return Clustering(**points, n_clusters=kept, weights=weights, max_size=most, labels=labels, meta=meta)

    def decode(self, problem: Clustering, solution: Any) -> Merging:
        """What labels (n,) of the encoded problem make of the layer.

        Raises
        ------
        InvalidProblem
            If there are no labels, or not as many clusters as asked for.
        """
        if solution is None:
            raise InvalidProblem(f"{self.name}: there is no solution to decode; see the result's status for why")
        labels = problem.checked("solution", solution)
        if not problem.is_feasible(labels):
            raise InvalidProblem(
                f"{self.name}: expected {problem.n_clusters} clusters of at most {problem.max_size or problem.n} "
                f"neurons, got {labels.max() + 1} of up to {np.bincount(labels).max()}"
            )
        return Merging.of_labels(labels, problem.weights)

    def meaning(self, decoded: Merging, features: Any, weights: Any = None) -> float:
        """What is lost by reading each neuron's features off the merged ones."""
        rows = floats("features", features, (None, None))
        lost = np.square(rows - decoded.backward @ (decoded.forward @ rows)).sum(axis=1)
        return float(lost @ (np.ones(len(rows)) if weights is None else np.asarray(weights)))


@dataclass(frozen=True, eq=False)
class Merging:
    r"""How a layer's neurons make a smaller layer: what merged neurons read, and what each neuron is read off.

    forward_ci = P_ic / sum_j P_jc        backward_ic = P_ic / sum_d P_id, a row of zeros where neuron i is dropped

    A merged layer has the weights  forward W  and biases  forward b;  who reads the layer has the weights  W backward.

    Parameters
    ----------
    plan : (n, c)
        P >= 0, how much of each neuron goes into each merged one; none of these is empty.
    places : (c,) int, optional
        The neuron that each merged one takes the place of, by default the first that goes into it; all different. The
        merged neurons are numbered by their places.

    Examples
    --------
    >>> Merging.deletion([0, 2], 3).backward.tolist()
    [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    """

    plan: Any
    places: Any = None

    def __post_init__(self) -> None:
        plan = floats("plan", self.plan, (None, None))
        if (plan < 0).any():
            raise InvalidProblem(f"plan: expected zero or more, got {plan.min():g}")
        if not plan.any(axis=0).all():
            empty = int(plan.any(axis=0).argmin())
            raise InvalidProblem(f"plan: nothing goes into merged neuron {empty}; leave it out")
        places = (plan > 0).argmax(axis=0) if self.places is None else self.places
        places = integers("places", places, (plan.shape[1],))
        if len(np.unique(places)) < len(places) or (places < 0).any() or (places >= len(plan)).any():
            raise InvalidProblem(f"places: expected different neurons of {len(plan)}, got {places.tolist()}")
        order = np.argsort(places)
        object.__setattr__(self, "plan", floats("plan", plan[:, order], plan.shape))
        object.__setattr__(self, "places", integers("places", places[order], places.shape))

    @classmethod
    def of_labels(cls, labels: Any, weights: Any = None) -> Merging:
        """Clusters 0 to c - 1; neurons with the label -1 are dropped.

        A neuron without weight is dropped where another of its cluster has some.
        """
        found = integers("labels", labels, (None,))
        each = np.ones(len(found)) if weights is None else floats("weights", weights, (len(found),))
        plan = np.zeros((len(found), int(found.max(initial=-1)) + 1))
        members = np.flatnonzero(found >= 0)
        plan[members, found[members]] = each[members]
        empty = np.flatnonzero(plan.sum(axis=0) == 0.0)
        weightless = np.flatnonzero(np.isin(found, empty))
        plan[weightless, found[weightless]] = 1.0
        return cls(plan)

    @classmethod
    def deletion(cls, kept: Any, n: int) -> Merging:
        """The neurons `kept` as they are; the others are dropped."""
        labels = np.full(n, -1)
        chosen = integers("kept", kept, (None,))
        labels[chosen] = np.arange(len(chosen))
        return cls.of_labels(labels)

    @classmethod
    def identity(cls, n: int) -> Merging:
        """Every neuron as it is."""
        return cls(np.eye(n))

    @property
    def n(self) -> int:
        """Neurons before."""
        return len(self.plan)

    @property
    def width(self) -> int:
        """Neurons after."""
        return int(self.plan.shape[1])

    @cached_property
    def forward(self) -> Floats:
        """(c, n) what each merged neuron reads; rows sum to one."""
        return np.ascontiguousarray((self.plan / self.plan.sum(axis=0)).T)

    @cached_property
    def backward(self) -> Floats:
        """(n, c) what each neuron is read off; rows sum to one, or to zero where it is dropped."""
        total = self.plan.sum(axis=1, keepdims=True)
        return np.asarray(np.divide(self.plan, total, out=np.zeros_like(self.plan), where=total > 0))

    @property
    def labels(self) -> Indices:
        """(n,) the merged neuron that each goes into for the most part, -1 where it is dropped."""
        return np.where(self.plan.any(axis=1), self.plan.argmax(axis=1), -1)

    @property
    def alone(self) -> Indices:
        """Neurons that stay as they are: no other goes into the merged one, and they go into no other."""
        parts = self.plan > 0
        shared = parts.sum(axis=0) > 1
        return np.flatnonzero((parts.sum(axis=1) == 1) & ~parts[:, shared].any(axis=1))
