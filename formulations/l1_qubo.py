r"""The field's baseline: keep filters of large norm, and not two that point the same way.

minimise    - sum_i ||w_i||_1 / mean of its group + beta sum_{i<j, same group} cos(w_i, w_j) x_i x_j
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from prunesolve.problems import Statistics

from ._base import Formulation, Objective, number_in
from .terms import kept_pairs, off_diagonal, over_mean


@dataclass(frozen=True)
class L1Qubo(Formulation):
    r"""f(x) = - sum_i l_i x_i + beta sum_{i<j, same group} cos(w_i, w_j) x_i x_j.

    l_i is the L1 norm of unit i's filter over the mean of its group, w_i the filter itself.

    Parameters
    ----------
    beta : float >= 0
        Weight of the similarity; 0 leaves the norms alone and needs no similarity.

    Reference
    ---------
    The L1-norm QUBO is a baseline of hybrid-QUBO filter pruning (arXiv 2604.05856); these terms are our
    reconstruction. L1 norms as filter importance: Li et al., "Pruning filters for efficient ConvNets", ICLR 2017.

    Examples
    --------
    >>> from prunesolve.problems import Group
    >>> stats = Statistics([Group("fc1", 3, [("fc1", "out", [[0], [1], [2]])])], {"l1": [1.0, 2.0, 3.0]})
    >>> L1Qubo(beta=0).encode(stats, keep=2).linear
    array([-0.5, -1. , -1.5])
    """

    name: ClassVar[str] = "l1-qubo"

    beta: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        number_in("beta", self.beta, 0.0, 1e6)

    @property
    def needs(self) -> tuple[str, ...]:
        """The norms, and the filters' cosines where beta weighs them."""
        return ("saliency.l1", "blocks.weights") if self.beta else ("saliency.l1",)

    def _objective(self, stats: Statistics) -> Objective:
        linear = -over_mean(stats.criterion("l1"), stats.group_of)
        quadratic = off_diagonal(stats.matrices("weights"), self.beta) if self.beta else None
        return Objective(linear, quadratic)

    def meaning(self, stats: Statistics, keep: Any) -> float:
        """Minus the kept share of each group's mean norm, plus beta times the cosines of the pairs kept."""
        norms = stats.criterion("l1")
        value = 0.0
        for start, end in zip(stats.starts, stats.starts[1:], strict=False):
            mean = norms[start:end].mean()
            value -= norms[start:end][keep[start:end]].sum() / mean if mean else 0.0
        if self.beta:
            value += self.beta * sum(kept_pairs(stats.matrices("weights"), stats, keep))
        return float(value)
