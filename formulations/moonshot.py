r"""Two errors at once: what the next layers lose, and what the loss gains to second order.

minimise    lam R(x) / R(0) + (1 - lam) F(x) / F(0)        R as in `Reconstruction`, F as in `Fisher`; 0 keeps nothing
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import Statistics
from prunesolve.problems._arrays import Floats
from prunesolve.problems.couplings import Blocks, LowRank, coupling

from ._base import Formulation, Objective, number_in
from .fisher import Fisher
from .reconstruction import Reconstruction

# of the sum over single units: below it, removing everything costs nothing but rounding
_CANCELLED = 1e-9


@dataclass(frozen=True)
class Moonshot(Formulation):
    r"""f(x) = lam p' G p / 1'G1 + (1 - lam) p' M p / 1'M1 with p = 1 - x, G of `Reconstruction` and M of `Fisher`.

    Each error counts in units of what removing everything costs; where that is nothing, because the contributions
    cancel (a normalisation behind the layer takes scale out), in units of the sum over single units. Both matrices
    are Grams, so their sum is: its diagonal is claimed for bounds.

    lam = 1 is `Reconstruction` and lam = 0 is `Fisher`, divided by a number: the same couplings, in the same storage.
    In between the couplings are one dense matrix of n^2 floats.

    Parameters
    ----------
    lam : float in [0, 1]
        Weight of the reconstruction error. `bridges.torch.tune.tune` sweeps it by the loss on calibration data.

    Reference
    ---------
    Afriat, Meng, Ibrahim, Hazimeh, Mazumder, MOONSHOT, arXiv 2604.13287: weights layer-wise reconstruction against a
    second-order Taylor term for single weights. For whole units, coupled across layers, it is our reconstruction.

    Examples
    --------
    >>> from prunesolve.problems import Group
    >>> fc1 = Group("fc1", 2, [("fc1", "out", [[0], [1]])])
    >>> blocks = {"reconstruction": [[[0.5, -0.25], [-0.25, 1.0]]]}
    >>> stats = Statistics([fc1], blocks=blocks, factors={"fisher": [[1.0], [2.0]]})
    >>> Moonshot(lam=0.5, minimum=0).encode(stats, keep=1).value([[1, 1], [1, 0], [0, 1], [0, 0]]).round(3)
    array([0.   , 0.722, 0.306, 1.   ])
    """

    name: ClassVar[str] = "moonshot"

    lam: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        number_in("lam", self.lam, 0.0, 1.0)

    @property
    def needs(self) -> tuple[str, ...]:
        """What a weight above zero asks for."""
        return tuple(need for _, part in self._parts() for need in part.needs)

    def _parts(self) -> Iterator[tuple[float, Formulation]]:
        """(weight, formulation) of the errors that count."""
        for weight, part in ((self.lam, Reconstruction()), (1.0 - self.lam, Fisher())):
            if weight:
                yield weight, part

    def _objective(self, stats: Statistics) -> Objective:
        return _added([_scaled(part._objective(stats), weight) for weight, part in self._parts()])

    def meaning(self, stats: Statistics, keep: Any) -> float:
        """The two errors of removing what goes, each over that of removing everything, weighted."""
        return sum(weight * part.meaning(stats, keep) / _unit(part, stats) for weight, part in self._parts())


def _unit(part: Formulation, stats: Statistics) -> float:
    """What removing everything costs, or each unit by itself where that cancels; 1 where nothing costs anything."""
    everything = part.meaning(stats, np.zeros(stats.n, dtype=bool))
    alone = sum(part.meaning(stats, np.arange(stats.n) != i) for i in range(stats.n))
    return (everything if everything > _CANCELLED * alone else alone) or 1.0


def _scaled(objective: Objective, weight: float) -> Objective:
    """The objective of one error in its own units, times its weight; `offset` is what removing everything costs."""
    diagonal: Floats = np.asarray(objective.diagonal)
    alone = float(diagonal.sum())
    scale = weight / ((objective.offset if objective.offset > _CANCELLED * alone else alone) or 1.0)
    return Objective(
        scale * objective.linear, _times(objective.quadratic, scale), scale * objective.offset, scale * diagonal
    )


def _times(quadratic: Any, scale: float) -> Any:
    if isinstance(quadratic, Blocks):
        return Blocks([scale * block for block in quadratic.blocks])
    if isinstance(quadratic, LowRank):
        return LowRank(np.sqrt(scale) * quadratic.F)
    return scale * quadratic


def _added(parts: list[Objective]) -> Objective:
    """Their sum; one alone keeps its storage."""
    if len(parts) == 1:
        return parts[0]
    one, other = parts
    matrix = np.array(coupling(one.quadratic).dense())
    matrix += coupling(other.quadratic).dense()
    return Objective(
        one.linear + other.linear,
        matrix,
        one.offset + other.offset,
        np.asarray(one.diagonal) + np.asarray(other.diagonal),
    )
