r"""What every formulation shares: the budgets, the labels and the way back.

A formulation is a frozen dataclass whose fields are its weights. It says which statistics it `needs`, writes its
objective in `_objective`, and states in `meaning` what a value of that objective is, computed from the statistics
along another path; `formulations.testing.check_formulation` proves by enumeration that the two agree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

from prunesolve.problems import BinaryQuadratic, InvalidProblem, Selection, Statistics
from prunesolve.problems._arrays import Floats

from .budgets import Amount, demand


class Objective(NamedTuple):
    """offset + linear.x + sum_{i<j} J_ij x_i x_j, with the arguments of `BinaryQuadratic`."""

    linear: Floats
    quadratic: Any = None
    offset: float = 0.0
    diagonal: Floats | None = None


@dataclass(frozen=True)
class Formulation(ABC):
    """A way to say what a selection of units is worth: statistics to problem and back.

    Subclasses set `name` and write `needs`, `_objective` and `meaning`. See docs/adding-a-formulation.md.

    Parameters
    ----------
    minimum : int
        Units that every group keeps at least, or all of a smaller group; 0 lets a layer die.
    """

    name: ClassVar[str]

    minimum: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.minimum, bool) or not isinstance(self.minimum, int) or self.minimum < 0:
            raise InvalidProblem(f"minimum: expected a whole number of units >= 0, got {self.minimum!r}")

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """The statistics it reads, as 'section.name': 'saliency.l1', 'blocks.activation', 'factors.fisher'."""

    @abstractmethod
    def _objective(self, stats: Statistics) -> Objective:
        """The objective of the n units, unconstrained; `stats` holds all that is needed and stays as it is."""

    @abstractmethod
    def meaning(self, stats: Statistics, keep: Any) -> float:
        """What the objective's value of keeping `keep` (n,) bool means, from the statistics themselves."""

    def encode(
        self,
        stats: Statistics,
        *,
        keep: Amount | None = None,
        params: Amount | None = None,
        macs: Amount | None = None,
    ) -> BinaryQuadratic:
        """The problem of choosing units within the budgets; at least one is needed, several may be combined.

        Parameters
        ----------
        stats : Statistics
            What was measured; it is not changed.
        keep : float or int, optional
            Units to keep exactly: a fraction f of the n units, floor(f n + 0.5), or a count.
        params, macs : float or int, optional
            The most that the pruned network may hold or multiply: a fraction of the dense total, or a number.

        Returns
        -------
        BinaryQuadratic
            Labelled by the units, so that a stored instance can name what it keeps.

        Raises
        ------
        InvalidProblem
            If a statistic is missing, or no selection can meet the budgets; then with the smallest that can be met.
        """
        self._require(stats)
        asked = demand(stats, minimum=self.minimum, keep=keep, params=params, macs=macs)
        return BinaryQuadratic(
            **self._objective(stats)._asdict(),
            constraints=asked.constraints,
            labels=stats.units,
            meta=self._told(stats, asked.told),
        )

    def _told(self, stats: Statistics, asked: dict[str, Any]) -> dict[str, Any]:
        """The JSON-able facts of an instance."""
        return {
            "formulation": repr(self),
            "sense": "minimise",
            "groups": [{"name": g.name, "layer": g.layer, "size": g.size} for g in stats.groups],
            "asked": asked,
            # with these the groups can be found again in the model, without the statistics
            **{fact: stats.meta[fact] for fact in ("example", "layers") if fact in stats.meta},
        }

    def decode(self, stats: Statistics, solution: Any) -> Selection:
        """The selection that a solution (n,) of the encoded problem stands for."""
        if solution is None:
            raise InvalidProblem(f"{self.name}: there is no solution to decode; see the result's status for why")
        return Selection(stats.groups, solution)

    def _require(self, stats: Statistics) -> None:
        if not isinstance(stats, Statistics):
            raise InvalidProblem(
                f"{self.name}: expected Statistics, got {type(stats).__name__}; see prunesolve.measure"
            )
        if stats.n == 0:
            raise InvalidProblem(f"{self.name}: the statistics hold no unit, so there is nothing to choose")
        for need in self.needs:
            section, _, name = need.partition(".")
            held = getattr(stats, section)
            if name not in held:
                raise InvalidProblem(
                    f"{self.name} needs {section} {name!r}, the statistics hold {', '.join(held) or 'none'}; "
                    "measure it, or set the options so that it is not needed"
                )

    @classmethod
    def options(cls) -> dict[str, Any]:
        """{option: default} of this formulation."""
        return {f.name: f.default for f in fields(cls)}


@dataclass(frozen=True)
class FeatureFormulation(ABC):
    """A way to say which neurons are alike: one table of features a layer to problem and back.

    Subclasses set `name` and `layers` and write `encode`, `decode` and `meaning`; `check_formulation` takes them too.
    """

    name: ClassVar[str]
    layers: ClassVar[int] = 1  # how many tables `encode` takes

    @abstractmethod
    def encode(self, *features: Any, **options: Any) -> Any:
        """The problem on tables of features, one row a neuron."""

    @abstractmethod
    def decode(self, problem: Any, solution: Any) -> Any:
        """What a solution of the encoded problem makes of the neurons."""

    @abstractmethod
    def meaning(self, decoded: Any, *features: Any) -> float:
        """What the objective's value of a decoded solution means, from the features themselves."""

    @classmethod
    def options(cls) -> dict[str, Any]:
        """{option: default} of this formulation."""
        return {f.name: f.default for f in fields(cls)}


def number_in(name: str, value: Any, low: float, high: float) -> None:
    """Refuse an option that is no number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidProblem(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")
