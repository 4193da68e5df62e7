r"""How much of the next layers' outputs is lost, exactly, with nothing to tune.

minimise    sum over consumers of E||sum_i (1 - x_i) u_i||^2 / E||sum_i u_i||^2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import Statistics
from prunesolve.problems._arrays import Floats

from ._base import Formulation, Objective
from .terms import off_diagonal

_DENSE_UP_TO = 1024


@dataclass(frozen=True)
class Reconstruction(Formulation):
    r"""f(x) = p' G p with p = 1 - x and G_ij = sum over consumers of E<u_i, u_j> / E||y||^2.

    u_i is what unit i contributes to its consumer's output y = sum_i u_i on calibration data. With x_i x_i = x_i:
    offset = sum G, linear_i = -2 sum_j G_ij + G_ii, J_ij = 2 G_ij. G is a Gram: its diagonal is claimed for bounds.
    Couplings are one block per group, or one matrix where a consumer reads several groups (concatenation).

    Reference
    ---------
    Our own form of channel selection by reconstruction of the next layer: He, Zhang, Sun, "Channel pruning for
    accelerating very deep neural networks", ICCV 2017.

    Examples
    --------
    >>> from prunesolve.problems import Group
    >>> fc1 = Group("fc1", 2, [("fc1", "out", [[0], [1]])])
    >>> stats = Statistics([fc1], blocks={"reconstruction": [[[0.5, -0.25], [-0.25, 1.0]]]})
    >>> Reconstruction(minimum=0).encode(stats, keep=1).value([[1, 1], [1, 0], [0, 1], [0, 0]])
    array([0. , 1. , 0.5, 1. ])
    """

    name: ClassVar[str] = "reconstruction"

    @property
    def needs(self) -> tuple[str, ...]:
        """One Gram matrix per group; `cross` is read where it is there."""
        return ("blocks.reconstruction",)

    def _objective(self, stats: Statistics) -> Objective:
        grams = stats.matrices("reconstruction")
        sums = np.concatenate([(g.sum(axis=0) + g.sum(axis=1)) / 2 for g in grams])
        for (g, h), between in _cross(stats).items():
            sums[_span(stats, g)] += between.sum(axis=1)
            sums[_span(stats, h)] += between.sum(axis=0)
        diagonal = np.concatenate([np.diagonal(g) for g in grams])
        return Objective(diagonal - 2 * sums, _couplings(stats), float(sums.sum()), diagonal)

    def meaning(self, stats: Statistics, keep: Any) -> float:
        """The relative squared error of the consumers' outputs without the units that go, added over consumers."""
        removed = [1.0 - keep[_span(stats, g)] for g in range(len(stats.groups))]
        within = sum(p @ gram @ p for p, gram in zip(removed, stats.matrices("reconstruction"), strict=True))
        between = sum(removed[g] @ m @ removed[h] for (g, h), m in _cross(stats).items())
        return float(within + 2 * between)


def _span(stats: Statistics, g: int) -> slice:
    return slice(int(stats.starts[g]), int(stats.starts[g + 1]))


def _cross(stats: Statistics) -> dict[tuple[int, int], Floats]:
    return dict(stats.cross.get("reconstruction", {}))


def _couplings(stats: Statistics) -> Any:
    """J = 2 G without its diagonal: Blocks, or dense or CSR where groups meet in a consumer."""
    blocks = off_diagonal(stats.matrices("reconstruction"), 2.0)
    cross = _cross(stats)
    if not cross:
        return blocks
    filled = sum(b.size for b in blocks.blocks) + 2 * sum(m.size for m in cross.values())
    if stats.n <= _DENSE_UP_TO or filled > 0.1 * stats.n**2:
        matrix = blocks.dense()
        for (g, h), between in cross.items():
            matrix[_span(stats, g), _span(stats, h)] = 2 * between
            matrix[_span(stats, h), _span(stats, g)] = 2 * between.T
        return matrix
    from scipy import sparse

    tiles: list[list[Any]] = [[None] * len(blocks.blocks) for _ in blocks.blocks]
    for g, block in enumerate(blocks.blocks):
        tiles[g][g] = sparse.csr_array(block)
    for (g, h), between in cross.items():
        tiles[g][h], tiles[h][g] = sparse.csr_array(2 * between), sparse.csr_array(2 * between.T)
    return sparse.csr_array(sparse.block_array(tiles, format="csr"))
