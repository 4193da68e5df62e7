r"""First-order Taylor and second-order Fisher say what a filter is worth, similar feature maps what is redundant.

minimise    - sum_i (alpha T_i + (1 - alpha) F_i) x_i + beta sum_{i<j, same group} rho_ij x_i x_j
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import Statistics, unknown
from prunesolve.problems._arrays import Floats

from ._base import Formulation, Objective, number_in
from .terms import kept_pairs, off_diagonal, over_mean


@dataclass(frozen=True)
class HybridQubo(Formulation):
    r"""f(x) = - sum_i (alpha T_i + (1 - alpha) F_i) x_i + beta sum_{i<j, same group} rho_ij x_i x_j.

    T_i = |mean or mean absolute d loss / d gate_i| and F_i = 1/2 E[(d loss / d gate_i)^2], each over its mean;
    rho_ij = |cos| in [0, 1] of the two units' feature maps (or filters). The |cos| matrix is not positive
    semidefinite in general, so no natural diagonal is claimed.

    Parameters
    ----------
    alpha : float in [0, 1]
        Weight of the first-order term; 1 - alpha weighs the second-order term.
    beta : float >= 0
        Weight of the similarity. It is delicate: 0.02 gained 0.2 dB over greedy Taylor on one DnCNN, 0.1 lost 3.5 dB.
    normalisation : {"global", "layer"}
        Means over all n units, which lets layers compete, or within each group.
    similarity : {"activation", "weights"}
        What is compared: feature maps on calibration data, or filters.
    first_order : {"taylor", "taylor_signed"}
        Mean of the absolute per-sample derivatives, or absolute value of their mean.

    Reference
    ---------
    Orabi, Zagitov, Salloum, Lobachev, Khubiev, Kholodov, hybrid-QUBO filter pruning, arXiv 2604.05856: the kinds of
    terms are the paper's, their exact form here is our reconstruction.

    Examples
    --------
    >>> from prunesolve.problems import Group
    >>> fc1 = Group("fc1", 2, [("fc1", "out", [[0], [1]])])
    >>> stats = Statistics([fc1], {"taylor": [1.0, 3.0], "fisher": [1.0, 1.0]}, {"activation": [[[1, 0.5], [0.5, 1]]]})
    >>> problem = HybridQubo(alpha=0.5, beta=0.1).encode(stats, keep=1)
    >>> problem.linear, problem.couplings.dense()[0, 1].item()
    (array([-0.75, -1.25]), 0.05)
    """

    name: ClassVar[str] = "hybrid-qubo"

    alpha: float = 0.5
    beta: float = 0.02
    normalisation: str = "global"
    similarity: str = "activation"
    first_order: str = "taylor"

    def __post_init__(self) -> None:
        super().__post_init__()
        number_in("alpha", self.alpha, 0.0, 1.0)
        number_in("beta", self.beta, 0.0, 1e6)
        for option, choices in _CHOICES.items():
            if getattr(self, option) not in choices:
                raise unknown(option, str(getattr(self, option)), choices)

    @property
    def needs(self) -> tuple[str, ...]:
        """What a weight above zero asks for."""
        weighed = {
            f"saliency.{self.first_order}": self.alpha,
            "saliency.fisher": 1 - self.alpha,
            f"blocks.{self.similarity}": self.beta,
        }
        return tuple(need for need, weight in weighed.items() if weight)

    def _objective(self, stats: Statistics) -> Objective:
        group = stats.group_of if self.normalisation == "layer" else None
        worth = sum((w * over_mean(s, group) for w, s in self._worth(stats)), start=np.zeros(stats.n))
        quadratic = off_diagonal(self._similarity(stats), self.beta) if self.beta else None
        return Objective(-worth, quadratic)

    def _worth(self, stats: Statistics) -> list[tuple[float, Floats]]:
        """(weight, (n,) saliency >= 0) of the terms that count."""
        terms = [(self.alpha, self.first_order), (1 - self.alpha, "fisher")]
        return [(weight, np.abs(stats.criterion(name))) for weight, name in terms if weight]

    def _similarity(self, stats: Statistics) -> list[Floats]:
        return [np.abs(m) for m in stats.matrices(self.similarity)]

    def meaning(self, stats: Statistics, keep: Any) -> float:
        """Minus the weighted worth kept, plus beta times the similarity of the pairs kept."""
        value = 0.0
        spans = list(zip(stats.starts, stats.starts[1:], strict=False))
        for weight, worth in self._worth(stats):
            for start, end in spans:
                mean = worth[start:end].mean() if self.normalisation == "layer" else worth.mean()
                value -= weight * worth[start:end][keep[start:end]].sum() / mean if mean else 0.0
        if self.beta:
            value += self.beta * sum(kept_pairs(self._similarity(stats), stats, keep))
        return float(value)


_CHOICES = {
    "normalisation": ("global", "layer"),
    "similarity": ("activation", "weights"),
    "first_order": ("taylor", "taylor_signed"),
}
