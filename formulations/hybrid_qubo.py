r"""First-order Taylor and second-order Fisher say what a filter is worth, similar feature maps what is redundant.

minimise    - sum_i s_i x_i + beta sum_{i<j, same group} rho_ij sqrt(s_i s_j) (1 - x_i) (1 - x_j)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import InvalidProblem, Statistics, unknown
from prunesolve.problems._arrays import Floats

from ._base import Formulation, Objective, number_in
from .terms import off_diagonal, over_mean, pairs_among


@dataclass(frozen=True)
class HybridQubo(Formulation):
    r"""f(x) = - sum_i s_i x_i + beta sum_{i<j, same group} rho_ij sqrt(s_i s_j) (1 - x_i) (1 - x_j).

    s_i = alpha T_i + (1 - alpha) F_i with T_i = |mean or mean absolute d loss / d gate_i| and
    F_i = 1/2 E[(d loss / d gate_i)^2], each over its mean; rho_ij = cos^2 in [0, 1] of the two units' feature maps (or
    filters): the share of one map that the other explains. Removing both of a similar pair costs more than the two
    alone, as their errors add up.

    With c_ij = rho_ij sqrt(s_i s_j) this is beta c_ij x_i x_j, the price of keeping both, up to linear terms: it gives
    back the credit -beta sum_j c_ij for every unit that goes, which is no matter of pairs and moves units between
    layers, from those of similar maps to the others.

    The paper's terms in their plainest reading are `HybridQubo(beta=0.02, pairs="kept", scaled=False, squared=False)`;
    there beta is delicate, and on a DnCNN that choice lost more than 2 dB to greedy Taylor. Squared cosines of
    measured maps form a positive semidefinite matrix, so bounds get a natural diagonal; absolute ones need not.

    Parameters
    ----------
    alpha : float in [0, 1]
        Weight of the first-order term; 1 - alpha weighs the second-order term.
    beta : float >= 0
        Weight of the similarity; 0 leaves a greedy choice by s.
    normalisation : {"global", "layer"}
        Means over all n units, which lets layers compete, or within each group.
    similarity : {"activation", "weights"}
        What is compared: feature maps on calibration data, or filters.
    first_order : {"taylor", "taylor_signed"}
        Mean of the absolute per-sample derivatives, or absolute value of their mean.
    pairs : {"pruned", "kept"}
        Which pairs pay: both removed, (1 - x_i) (1 - x_j), or both kept, x_i x_j.
    scaled : bool
        Whether a pair pays in proportion to its worth, sqrt(s_i s_j), or 1 whatever it is worth.
    squared : bool
        rho_ij = cos^2 or |cos|.

    Reference
    ---------
    Orabi, Zagitov, Salloum, Lobachev, Khubiev, Kholodov, hybrid-QUBO filter pruning, arXiv 2604.05856: the kinds of
    terms are the paper's, their exact form here is our reconstruction.

    Examples
    --------
    >>> from prunesolve.problems import Group
    >>> fc1 = Group("fc1", 2, [("fc1", "out", [[0], [1]])])
    >>> stats = Statistics([fc1], {"taylor": [1.0, 3.0], "fisher": [1.0, 1.0]}, {"activation": [[[1, 0.5], [0.5, 1]]]})
    >>> problem = HybridQubo(alpha=0.5, beta=1.0).encode(stats, keep=1)
    >>> [round(problem.value(x), 3) for x in ([1, 1], [1, 0], [0, 1], [0, 0])]  # 0.242 = 0.5^2 sqrt(0.75 x 1.25)
    [-2.0, -0.75, -1.25, 0.242]
    """

    name: ClassVar[str] = "hybrid-qubo"

    alpha: float = 0.5
    beta: float = 0.5
    normalisation: str = "global"
    similarity: str = "activation"
    first_order: str = "taylor"
    pairs: str = "pruned"
    scaled: bool = True
    squared: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        number_in("alpha", self.alpha, 0.0, 1.0)
        number_in("beta", self.beta, 0.0, 1e6)
        for option, choices in _CHOICES.items():
            if getattr(self, option) not in choices:
                raise unknown(option, str(getattr(self, option)), choices)
        for option in ("scaled", "squared"):
            if not isinstance(getattr(self, option), bool):
                raise InvalidProblem(f"{option}: expected True or False, got {getattr(self, option)!r}")

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
        worth = sum((w * over_mean(s, group) for w, s in self._saliencies(stats)), start=np.zeros(stats.n))
        if not self.beta:
            return Objective(-worth)
        prices = self._prices(stats, worth)
        price, diagonal = off_diagonal(prices, self.beta), _diagonal(prices, self.beta)
        if self.pairs == "kept":
            return Objective(-worth, price, diagonal=diagonal)
        rows = np.concatenate([block.sum(axis=1) for block in price.blocks])
        return Objective(-worth - rows, price, float(rows.sum()) / 2, diagonal)

    def _saliencies(self, stats: Statistics) -> list[tuple[float, Floats]]:
        """(weight, (n,) saliency >= 0) of the terms that count."""
        terms = [(self.alpha, self.first_order), (1 - self.alpha, "fisher")]
        return [(weight, np.abs(stats.criterion(name))) for weight, name in terms if weight]

    def _similarity(self, stats: Statistics) -> list[Floats]:
        return [np.square(m) if self.squared else np.abs(m) for m in stats.matrices(self.similarity)]

    def _prices(self, stats: Statistics, worth: Floats) -> list[Floats]:
        """What each pair pays at beta = 1, one matrix a group."""
        if not self.scaled:
            return self._similarity(stats)
        roots = np.split(np.sqrt(worth), stats.starts[1:-1])
        return [m * np.outer(root, root) for m, root in zip(self._similarity(stats), roots, strict=True)]

    def meaning(self, stats: Statistics, keep: Any) -> float:
        """Minus the worth kept, plus beta times what the pairs pay: their similarity, times their worth if scaled."""
        worth = np.zeros(stats.n)
        for weight, saliency in self._saliencies(stats):
            for start, end in zip(stats.starts, stats.starts[1:], strict=False):
                mean = saliency[start:end].mean() if self.normalisation == "layer" else saliency.mean()
                worth[start:end] += weight * saliency[start:end] / mean if mean else 0.0
        value = -worth[keep].sum()
        if self.beta:
            paying = keep if self.pairs == "kept" else ~keep
            for i, j, similarity in pairs_among(self._similarity(stats), stats, paying):
                value += self.beta * similarity * (np.sqrt(worth[i] * worth[j]) if self.scaled else 1.0)
        return float(value)


def _diagonal(prices: Sequence[Floats], beta: float) -> Floats | None:
    """(n,) d that makes J/2 + diag(d) positive semidefinite: what each unit pays with itself, where that is enough.

    It is for squared cosines, a Schur product of two Gram matrices. Absolute ones are left to the bounds, which find a
    tighter diagonal than one shift for all.
    """
    least = min((float(np.linalg.eigvalsh(m)[0]) for m in prices if len(m)), default=0.0)
    diagonal = np.concatenate([np.diag(m) for m in prices])
    if least < -_ROUNDING * diagonal.max(initial=0.0):
        return None
    return 0.5 * beta * (diagonal + max(0.0, -least))


_ROUNDING = 1e-9
_CHOICES = {
    "normalisation": ("global", "layer"),
    "similarity": ("activation", "weights"),
    "first_order": ("taylor", "taylor_signed"),
    "pairs": ("pruned", "kept"),
}
