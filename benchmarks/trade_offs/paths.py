"""Greedy removal: from the dense network one unit after another, the one that a criterion misses least."""

from __future__ import annotations

import numpy as np

import prunesolve as ps


def taylor_path(stats: ps.Statistics) -> np.ndarray:
    """(n + 1 - groups, n) selections from dense to one unit a group, by mean absolute Taylor saliency."""
    return _selections(stats, _Static(stats.criterion("taylor")))


def reconstruction_path(stats: ps.Statistics) -> np.ndarray:
    """The same by what the removal adds to the reconstruction error of the layers that read the units."""
    return _selections(stats, _Reconstruction(stats))


class _Static:
    """A criterion that what is already gone does not change."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores

    def remove(self, unit: int) -> None:
        """Nothing changes."""


class _Reconstruction:
    """Delta_i of p' G p where unit i goes after those with p = 1: G_ii + 2 (G p)_i, block by block."""

    def __init__(self, stats: ps.Statistics) -> None:
        self.starts, self.blocks = stats.starts, stats.matrices("reconstruction")
        self.scores = np.concatenate([np.diag(block) for block in self.blocks])

    def remove(self, unit: int) -> None:
        g = int(np.searchsorted(self.starts, unit, side="right")) - 1
        first, last = self.starts[g], self.starts[g + 1]
        self.scores[first:last] += 2 * self.blocks[g][unit - first]


def _selections(stats: ps.Statistics, criterion: _Static | _Reconstruction) -> np.ndarray:
    keep, left = np.ones(stats.n, dtype=bool), np.bincount(stats.group_of)
    rows = [keep.copy()]
    for _ in range(stats.n - len(left)):
        open_ = keep & (left[stats.group_of] > 1)
        unit = int(np.argmin(np.where(open_, criterion.scores, np.inf)))
        keep[unit] = False
        left[stats.group_of[unit]] -= 1
        criterion.remove(unit)
        rows.append(keep.copy())
    return np.array(rows)
