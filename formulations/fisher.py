r"""The loss that removing units together costs, to second order, with couplings across layers.

minimise    1/2 p' E[g g'] p,    p = 1 - x,    g_i = d loss / d gate_i of one sample
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import LowRank, Statistics

from ._base import Formulation, Objective


@dataclass(frozen=True)
class Fisher(Formulation):
    r"""f(x) = 1/2 p' M p with p = 1 - x and M = E[g g'] = F F', the empirical Fisher matrix of the units' gates.

    With x_i x_i = x_i: offset = 1/2 sum M, linear_i = -sum_j M_ij + 1/2 M_ii, J_ij = M_ij. The couplings stay F
    (n, r); a Gram's natural diagonal, 1/2 M_ii, is claimed for bounds.

    Reference
    ---------
    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, take the diagonal; the full
    form over gates, coupled across layers, is our reconstruction.

    Examples
    --------
    >>> from prunesolve.problems import Group
    >>> fc1 = Group("fc1", 2, [("fc1", "out", [[0], [1]])])
    >>> problem = Fisher(minimum=0).encode(Statistics([fc1], factors={"fisher": [[1.0], [-1.0]]}), keep=0)
    >>> problem.value([[0, 0], [0, 1], [1, 1]])  # removing both of an opposed pair costs nothing
    array([0. , 0.5, 0. ])
    """

    name: ClassVar[str] = "fisher"

    @property
    def needs(self) -> tuple[str, ...]:
        """Factors F (n, r) of E[g g']."""
        return ("factors.fisher",)

    def _objective(self, stats: Statistics) -> Objective:
        factors = stats.factors["fisher"]
        total = factors.sum(axis=0)
        diagonal = np.einsum("ir,ir->i", factors, factors) / 2
        return Objective(diagonal - factors @ total, LowRank(factors), float(total @ total) / 2, diagonal)

    def meaning(self, stats: Statistics, keep: Any) -> float:
        """Half the mean square, over the samples behind F, of the summed derivatives of what is removed."""
        removed = stats.factors["fisher"][~keep].sum(axis=0)
        return 0.5 * float(np.square(removed).sum())
