r"""The whole trade-off in one problem: what is lost against what the network still costs.

minimise    (f(x), c_1(x), ..., c_m(x))        at most what was asked of units, parameters and multiply-adds
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import BinaryQuadratic, InvalidProblem, MultiObjective, Statistics, unknown
from prunesolve.problems._arrays import Bits, Floats

from . import get
from ._base import Formulation, Objective
from .budgets import Amount, at_most, least_of_groups
from .removal import starting_points

RESOURCES = ("params", "macs")


@dataclass(frozen=True)
class MultiObjectiveSelection(Formulation):
    r"""(f(x), c(x)): f is another formulation's value, c = constant + c.x + sum_{i<j} q_ij x_i x_j the true cost.

    Parameters and multiply-adds are bilinear in the widths of neighbouring layers and exact. The problem carries the
    points that searches begin with: the greedy removal path, whose next unit is the one that raises f least for what
    it saves, and selections of uniform density.

    Parameters
    ----------
    error : str or Formulation
        What is lost: "reconstruction", "fisher", "hybrid-qubo", "l1-qubo", or one with its options set.
    costs : sequence of "params", "macs"
        What it is weighed against; a text may name them with commas between.
    starts : int
        Most points to begin with, a quarter of them of uniform density.

    Reference
    ---------
    Reconstruction (ours). Evolutionary multi-objective pruning: Shang et al., EMO-DIR, arXiv 2303.16212.

    Examples
    --------
    >>> from prunesolve.problems import Group
    >>> fc1 = Group("fc1", 2, [("fc1", "out", [[0], [1]])])
    >>> gram = {"reconstruction": [[[0.5, -0.25], [-0.25, 1.0]]]}
    >>> problem = MultiObjectiveSelection().encode(Statistics([fc1], blocks=gram, cost={"params": [4.0, 4.0]}))
    >>> problem.objectives, problem.values([[1, 1], [1, 0], [0, 1]]).tolist()
    (('reconstruction', 'params'), [[0.0, 8.0], [1.0, 4.0], [0.5, 4.0]])
    """

    error: Any = "reconstruction"
    costs: Sequence[str] | str = ("params",)
    starts: int = 64

    name: ClassVar[str] = "multi-objective"

    def __post_init__(self) -> None:
        super().__post_init__()
        costs = tuple(self.costs.split(",")) if isinstance(self.costs, str) else tuple(self.costs)
        if not costs or len(set(costs)) < len(costs):
            raise InvalidProblem(f"costs: expected some of {', '.join(RESOURCES)}, each once, got {self.costs!r}")
        for resource in costs:
            if resource not in RESOURCES:
                raise unknown("cost", str(resource), RESOURCES)
        object.__setattr__(self, "costs", costs)
        if isinstance(self.starts, bool) or not isinstance(self.starts, int) or self.starts < 2:
            raise InvalidProblem(f"starts: expected a whole number >= 2, got {self.starts!r}")
        lost = get(self.error) if isinstance(self.error, str) else self.error
        if not isinstance(lost, Formulation) or type(lost).encode is not Formulation.encode:
            raise InvalidProblem(f"error: expected a formulation of one objective or its name, got {self.error!r}")

    @property
    def lost(self) -> Formulation:
        """The formulation behind the first objective."""
        found: Formulation = get(self.error) if isinstance(self.error, str) else self.error
        return found

    @property
    def needs(self) -> tuple[str, ...]:
        """What the error's formulation reads, and the costs."""
        return (*self.lost.needs, *(f"cost.{resource}" for resource in self.costs))

    def _objective(self, stats: Statistics) -> Objective:
        return self.lost._objective(stats)

    def meaning(self, stats: Statistics, keep: Any) -> Any:
        """(m,) the error formulation's meaning, and what the network costs that keeps `keep` (n,)."""
        spent = (stats.spent(resource, keep) for resource in self.costs)
        return np.array([self.lost.meaning(stats, keep), *spent])

    def encode(  # type: ignore[override]  # several objectives, and budgets are not needed
        self,
        stats: Statistics,
        *,
        keep: Amount | None = None,
        params: Amount | None = None,
        macs: Amount | None = None,
    ) -> MultiObjective:
        """The problem of weighing error against costs.

        Parameters
        ----------
        stats : Statistics
            What was measured; it is not changed.
        keep, params, macs : float or int, optional
            The most units, parameters and multiply-adds: a fraction of the dense total, or a number.

        Returns
        -------
        MultiObjective
            Labelled by the units; `parts` are the objectives.

        Raises
        ------
        InvalidProblem
            If a statistic is missing, or no selection can meet the budgets; then with the smallest that can be met.
        """
        self._require(stats)
        asked = at_most(stats, minimum=self.minimum, keep=keep, params=params, macs=macs)
        error = BinaryQuadratic(**self._objective(stats)._asdict(), constraints=asked.constraints, labels=stats.units)
        parts = [error, *(_spending(stats, resource) for resource in self.costs)]
        found = self._points(stats, error, parts[1:])
        # sorted, so that the order says nothing; the dense one comes first
        starts = np.unique(np.concatenate([*found.values()]), axis=0)[::-1]
        return MultiObjective.over(
            parts,
            (self.lost.name, *self.costs),
            reference=_beyond(parts, starts),
            starts=starts,
            groups=stats.group_of,
            labels=stats.units,
            meta=self._told(stats, asked.told),
        )

    def starting_points(self, stats: Statistics, problem: MultiObjective) -> dict[str, Bits]:
        """What the encoded problem's starts are made of: {"removal path": (p, n), "uniform density": (q, n)}."""
        assert problem.parts is not None
        error = problem.parts[0].replace(constraints=problem.constraints)
        return self._points(stats, error, problem.parts[1:])

    def _points(self, stats: Statistics, error: BinaryQuadratic, costs: Sequence[BinaryQuadratic]) -> dict[str, Bits]:
        low = least_of_groups(stats, self.minimum)
        return starting_points(error, costs, stats.group_of, low, self.starts)


def _beyond(parts: Sequence[BinaryQuadratic], starts: Bits) -> Floats | None:
    """(m,) a tenth of the range beyond the worst of the starts; None without any."""
    if not len(starts):
        return None
    values = np.stack([part.value(starts) for part in parts], axis=1)
    span = np.ptp(values, axis=0)
    return np.asarray(values.max(axis=0) + 0.1 * np.where(span > 0, span, 1.0))


def _spending(stats: Statistics, resource: str) -> BinaryQuadratic:
    """What the network costs, its constant included."""
    return BinaryQuadratic(
        stats.cost[resource],
        stats.pair_cost.get(resource),
        offset=stats.constant.get(resource, 0.0),
        labels=stats.units,
    )
