"""Ward's agglomeration with restarts, and descents from where it ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import Clustering, InvalidProblem
from prunesolve.problems._arrays import Floats, Indices

from . import _kernels
from ._base import Run, Solver, Status

_TIE = 1e-12  # share of the inertia of a single cluster that a change must save to be worth making
_WORK = 1 << 21  # pairs that a kernel looks at before the clock is asked: some milliseconds
_FEW, _SPAN = 48, 4  # the most points of a neighbourhood: 48, or what 4 clusters hold, where that is more
_MOST = 512
_TRIES = 16  # neighbourhoods between two looks at the clock


@dataclass(frozen=True)
class Ward(Solver):
    r"""Merge the two clusters whose union adds least to the inertia, by chance among the cheapest, many times over.

    Merging a and b adds  W_a W_b / (W_a + W_b) ||mean_a - mean_b||^2  to the inertia; by the Lance-Williams rule that
    takes the squared distances alone, whatever the length of the features. The first agglomeration takes the cheapest
    merge each time: Ward's method. The others take one of the `top_k` cheapest, of c = sqrt(2 x what it adds), with
    probability ~ exp(-(c - c_min) / mean(c - c_min)). No merge makes a cluster larger than `max_size`; clusters that
    can no longer be merged are dissolved, the smallest first, each point to where it adds least.

    Every agglomeration is followed by descents, each change valued exactly from sums of distances:
    single points move (what Lloyd's iterations do, and more: each of their fixed points that a move improves is left);
    two points change places, where `max_size` is given; the cheapest merge pays for a point set free elsewhere;
    neighbourhoods of some fifty points are clustered anew by the same means and kept where they are better.

    An evaluation is one agglomeration with its descents. Without limits there are `restarts` of them; an evaluation
    limit asks for as many, a time limit for as many as fit. A start is improved first.

    Memory: two tables of n^2 and one of n x n_clusters numbers.

    Parameters
    ----------
    restarts : int
        Agglomerations where no limit is given.
    top_k : int
        Cheapest merges among which the later ones choose.
    renewals : float
        Neighbourhoods clustered anew, for each cluster, until a round improves none; 0 leaves that out.

    Reference
    ---------
    J. H. Ward, Hierarchical grouping to optimize an objective function, J. Am. Stat. Assoc. 58 (1963); restarts by
    softmax as in Morelli, Eckstein, partial fusion, 2026. Moves: J. A. Hartigan, Clustering Algorithms, 1975;
    neighbourhoods: E. D. Taillard, Heuristic methods for large centroid clustering problems, J. Heuristics 9 (2003),
    here from distances (ours).

    Examples
    --------
    >>> problem = Clustering([[0.0], [1.0], [5.0], [6.5]], n_clusters=2)
    >>> result = Ward().solve(problem)
    >>> result.solution.tolist(), result.objective
    ([0, 0, 1, 1], 1.625)
    """

    restarts: int = 8
    top_k: int = 5
    renewals: float = 2.0

    name: ClassVar[str] = "ward"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = Clustering

    def __post_init__(self) -> None:
        if not (self.restarts >= 1 and self.top_k >= 1):
            raise InvalidProblem(f"restarts, top_k: expected counts >= 1, got {self.restarts} and {self.top_k}")
        if not self.renewals >= 0:
            raise InvalidProblem(f"renewals: expected a number >= 0, got {self.renewals}")

    def _prepare(self, problem: Clustering) -> None:
        tiny = Clustering(np.arange(7.0)[:, None] ** 2, n_clusters=4, max_size=2)
        with _kernels.telling("clustering"):
            Ward(restarts=2)._search(tiny, Run(tiny, seed=0))

    def _search(self, problem: Clustering, run: Run) -> Status | None:
        search = _Search(problem, run)
        for labels in self._starts(search):
            found = search.descended(labels, self.renewals, self.top_k)
            run.count()
            run.offer(found)
            if run.should_stop():
                return None
        return None

    def _starts(self, search: _Search) -> Iterator[Indices]:
        """What descents begin with."""
        run = search.run
        if run.start is not None:
            yield run.start
        limited = run.time_limit is not None or run.evaluation_limit is not None
        for restart in count() if limited else range(self.restarts):
            labels = search.agglomerated(1 if restart == 0 else self.top_k)
            if labels is not None:
                yield labels
            elif run.best is None:
                # the time was over before the first agglomeration: any partition of even sizes keeps the limits
                yield np.arange(search.n) % search.clusters
            if run.halted:
                return


class _Search:
    """One problem laid out for the kernels."""

    def __init__(self, problem: Clustering, run: Run) -> None:
        self.run, self.n, self.clusters = run, problem.n, problem.n_clusters
        self.sized = problem.max_size is not None
        self.max_size = problem.n if problem.max_size is None else problem.max_size
        self.distance, self.weight = _scaled(squared_distances(problem)), _scaled(problem.weights)
        total = self.weight.sum()
        spread = float(self.weight @ self.distance @ self.weight) / (2.0 * total) if total > 0.0 else 0.0
        self.least = _TIE * spread

    def agglomerated(self, top: int) -> Indices | None:
        """Labels of one agglomeration, None where the time was over before its end."""
        from ._kernels.ward import Tree

        kernel, n = _kernels.load("ward"), self.n
        tree = Tree(
            np.empty((n, n)),
            np.empty(n),
            np.empty(n, np.int64),
            np.empty(n, np.int64),
            np.empty(n),
            np.empty(n, np.int64),
        )
        kernel.plant(self.distance, self.weight, self.max_size, tree)
        left = n - self.clusters
        while left and not self.run.halted:
            merges = min(left, max(1, _WORK // (2 * (top + 2) * n)))
            made = kernel.agglomerate(tree, self.max_size, self.run.rng.random(merges), top, merges)
            left -= made
            if made < merges:
                return self._dissolved(tree.label)
        return None if left else _numbered(tree.label)

    def _dissolved(self, labels: Indices) -> Indices:
        """As many clusters as asked for, where sizes forbid every merge of those there are."""
        kernel, labels = _kernels.load("ward"), _numbered(labels)
        sums = self._sums(labels, int(labels.max()) + 1)
        for _ in range(int(labels.max()) + 1 - self.clusters):
            gone = int(np.where(sums.size > 0, sums.size, self.n + 1).argmin())
            kernel.dissolve(sums, gone, self.max_size)
        return _numbered(sums.label)

    def descended(self, labels: Indices, renewals: float, top: int) -> Indices:
        """Labels that none of the descents improves, or what they had come to when the time was over."""
        sums = self._sums(labels, self.clusters)
        while not self.run.halted:
            self._descend(sums)
            if not self._renewed(sums, renewals, top):
                break
        return sums.label

    def _descend(self, sums: Any) -> None:
        """Moves, exchanges and relocations until none pays."""
        kernel = _kernels.load("ward")
        while not self.run.halted:
            self._move(sums)
            if self.sized and self._exchanged(sums):
                continue
            if not kernel.relocate(sums, self.max_size, self.least):
                return

    def _move(self, sums: Any) -> None:
        kernel, point, quiet = _kernels.load("ward"), 0, 0
        while quiet < self.n and not self.run.halted:
            points = max(1, _WORK // self.clusters)
            point, quiet = kernel.move(sums, self.max_size, point, quiet, self.least, points)

    def _exchanged(self, sums: Any) -> int:
        """How many exchanges paid."""
        kernel, made, rows = _kernels.load("ward"), 0, max(1, _WORK // self.n)
        for first in range(0, self.n, rows):
            if self.run.halted:
                break
            made += kernel.swap(sums, first, rows, self.least)
        return made

    def _renewed(self, sums: Any, renewals: float, top: int) -> int:
        """How many neighbourhoods a round made better."""
        kernel, kept, tries = _kernels.load("ward"), 0, round(renewals * self.clusters)
        points = min(self.n, max(_FEW, min(_MOST, _SPAN * self.n // self.clusters)))
        for first in range(0, tries, _TRIES):
            if self.run.halted:
                break
            draws = self.run.rng.random((min(_TRIES, tries - first), 2 + points))
            kept += kernel.renew(sums, self.max_size, draws, top, self.least)
        return kept

    def _sums(self, labels: Indices, clusters: int) -> Any:
        from ._kernels.ward import Sums

        size, mass, pairs = np.zeros(clusters, np.int64), np.zeros(clusters), np.zeros(clusters)
        reach = np.zeros((self.n, clusters))
        sums = Sums(self.distance, self.weight, np.array(labels), size, mass, pairs, reach)
        _kernels.load("ward").count(sums)
        return sums


def squared_distances(problem: Clustering) -> Floats:
    """(n, n) the problem's distances in double precision, from its features where it has those."""
    if problem.distances is not None:
        return np.ascontiguousarray(problem.distances, dtype=np.float64)
    x = np.asarray(problem.features, dtype=np.float64)
    # around the mean, so that a common offset does not drown the differences
    x = x - x.mean(axis=0)
    norms = np.einsum("ij,ij->i", x, x)
    distances = np.maximum(norms[:, None] + norms - 2.0 * (x @ x.T), 0.0)
    np.fill_diagonal(distances, 0.0)
    return np.asarray(distances)


def _scaled(values: Floats) -> Floats:
    """Divided by the largest, so that products neither overflow nor vanish."""
    most = float(values.max(initial=0.0))
    return values / most if most > 0.0 else np.zeros_like(values)


def _numbered(labels: Indices) -> Indices:
    """The same clusters, numbered from 0 without gaps."""
    return np.asarray(np.unique(labels, return_inverse=True)[1], dtype=np.int64)
