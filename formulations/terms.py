r"""The terms that formulations share: saliency over its mean, similarity between the kept units of a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prunesolve.problems import Blocks, Statistics
from prunesolve.problems._arrays import Floats, Indices


def over_mean(values: Floats, group: Indices | None = None) -> Floats:
    """Values (n,) / their mean, within each group where `group` (n,) says so; where all are zero, zeros.

    Examples
    --------
    >>> over_mean(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]))
    array([0.5, 1.5, 1. ])
    """
    if group is None:
        group = np.zeros(len(values), dtype=np.int64)
    mean = np.bincount(group, weights=values) / np.maximum(np.bincount(group), 1)
    return values / np.where(mean == 0.0, 1.0, mean)[group]


def off_diagonal(matrices: Sequence[Floats], weight: float) -> Blocks:
    """Weight times each group's symmetric matrix, as couplings: x_i x_i is no pair, so the diagonal goes."""
    blocks = [weight * (m + m.T) / 2 for m in matrices]
    for block in blocks:
        np.fill_diagonal(block, 0.0)
    return Blocks(blocks)


def kept_pairs(matrices: Sequence[Floats], stats: Statistics, keep: Any) -> Iterator[float]:
    """The matrix entry of every pair of units of one group that are both kept."""
    return (entry for *_, entry in pairs_among(matrices, stats, keep))


def pairs_among(matrices: Sequence[Floats], stats: Statistics, chosen: Any) -> Iterator[tuple[int, int, float]]:
    """(unit i, unit j > i, their group's matrix entry) for every pair of one group's units that are both chosen."""
    for start, end, matrix in zip(stats.starts, stats.starts[1:], matrices, strict=False):
        units = np.flatnonzero(chosen[start:end])
        for a, i in enumerate(units):
            for j in units[a + 1 :]:
                yield int(start + i), int(start + j), float(matrix[i, j])
