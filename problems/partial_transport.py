r"""Match two sets of weighted points at the least cost, as far as a given mass and no further.

minimise    <cost, P>
subject to  P >= 0,  P 1 <= source,  P' 1 <= target,  sum P = mass
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ._arrays import LARGEST, Floats, floats, number, plan, table
from ._errors import InvalidProblem
from ._npz import content_hash, json_array, read, unpack, write
from .binary_quadratic import checked_labels

# relative to the largest of the masses: what rounding may add
_SLACK = 1e-9
# half the slack, so that a plan of whole weights is feasible wherever weights count as equal
_EQUAL = 5e-10


@dataclass(frozen=True, eq=False)
class PartialTransport:
    r"""Carry a mass from n source points to m target points at the least cost; the rest stays where it is.

    min <C, P>  over P >= 0, P 1 <= a, P' 1 <= b, 1' P 1 = mass

    Parameters
    ----------
    cost : (n, m) float64 or float32
        C, what a unit of mass costs from each source to each target; may be negative. Such an array in C order is kept
        as it is, read-only and without a copy, so leave it alone afterwards; any other becomes float64.
    source, target : (n,), (m,) float
        a and b, what each point holds and what each may take; zero or more.
    mass : float
        What is carried: at most the smaller of the two sums. 0 is valid.
    labels : pair of sequences of n and m, optional
        Names of the sources and of the targets.
    meta : mapping, optional
        JSON-able facts.

    Raises
    ------
    InvalidProblem
        If an entry is not finite, a weight negative, the shapes do not fit or the mass does not; says which mass does.

    References
    ----------
    Figalli, The optimal partial transport problem, 2010. Morelli and Eckstein, 2026, fuse networks by it.

    Examples
    --------
    >>> problem = PartialTransport([[1.0, 4.0], [2.0, 0.0], [5.0, 3.0]], [1, 1, 1], [1, 1], mass=1)
    >>> problem.value([[0, 0], [0, 1], [0, 0]]), problem.is_feasible([[1, 0], [0, 1], [0, 0]])
    (0.0, False)
    >>> problem.unit, problem.pairs
    (1.0, 1)
    """

    cost: Any
    source: Any
    target: Any
    mass: float
    labels: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cost, least, most = table("cost", self.cost)
        if 0 in cost.shape:
            raise InvalidProblem(f"cost: expected at least one row and one column, got shape {cost.shape}")
        source = _weights("source", self.source, cost.shape[0], "row")
        target = _weights("target", self.target, cost.shape[1], "column")
        object.__setattr__(self, "cost", cost)
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "mass", _fitting(number("mass", self.mass), source, target))
        largest = max(abs(least), abs(most))
        if largest * max(1.0, self.mass) > LARGEST:
            raise InvalidProblem(
                f"cost and mass: expected a largest cost, alone and times the mass, of at most {LARGEST:g}, got "
                f"{largest:.3g} and mass {self.mass:.3g}; divide the costs or the masses"
            )
        object.__setattr__(self, "scale", largest * self.mass)
        if self.labels is not None:
            object.__setattr__(self, "labels", _pair_of_labels(self.labels, cost.shape))
        object.__setattr__(self, "meta", dict(self.meta))

    # largest absolute cost times mass: no value is further from zero
    scale: float = field(init=False, repr=False)

    @property
    def n(self) -> int:
        """Number of sources."""
        return int(self.cost.shape[0])

    @property
    def m(self) -> int:
        """Number of targets."""
        return int(self.cost.shape[1])

    @property
    def k(self) -> None:
        """No cardinality: how many pairs are joined follows from the masses."""
        return None

    @property
    def constraints(self) -> tuple[()]:
        """None beside the masses."""
        return ()

    @cached_property
    def unit(self) -> float | None:
        """The weight that all points share where the mass is a whole multiple of it within rounding, else None."""
        unit = float(self.source[0])
        low = min(self.source.min(), self.target.min())
        high = max(self.source.max(), self.target.max())
        if unit <= 0.0 or high - low > _EQUAL * unit:
            return None
        times = self.mass / unit
        return unit if abs(times - round(times)) <= _EQUAL * max(1.0, times) else None

    @property
    def pairs(self) -> int | None:
        """How many pairs an integral plan joins: mass / unit, None without a unit."""
        return None if self.unit is None else round(self.mass / self.unit)

    @cached_property
    def slack(self) -> float:
        """What rounding may add to a mass."""
        return _SLACK * max(float(self.source.max()), float(self.target.max()), self.mass)

    def checked(self, name: str, plan_: Any) -> Any:
        """A read-only CSR copy (n, m) of a plan, given as such or as a dense array; refuses anything else."""
        return plan(name, plan_, self.cost.shape)

    def value(self, plan_: Any) -> float:
        """<cost, P> of a plan (n, m), sparse or dense."""
        found = self.checked("plan", plan_).tocoo()
        return float(self.cost[found.row, found.col].astype(np.float64) @ found.data)

    def carried(self, plan_: Any) -> tuple[Floats, Floats]:
        """(n,) and (m,): what a plan takes from each source and brings to each target."""
        found = self.checked("plan", plan_).tocoo()
        given = np.bincount(found.row, weights=found.data, minlength=self.n)
        taken = np.bincount(found.col, weights=found.data, minlength=self.m)
        return np.asarray(given, np.float64), np.asarray(taken, np.float64)

    def marginal_errors(self, plan_: Any) -> tuple[float, float, float]:
        """The most that a source gives beyond its weight and a target takes beyond its; and |sum P - mass|."""
        given, taken = self.carried(plan_)
        over = max(0.0, float((given - self.source).max())), max(0.0, float((taken - self.target).max()))
        return (*over, abs(float(given.sum()) - self.mass))

    def violation(self, plan_: Any) -> float:
        """The largest of the marginal errors and of the negative entries."""
        negative = -float(self.checked("plan", plan_).data.min(initial=0.0))
        return max(negative, *self.marginal_errors(plan_))

    def is_feasible(self, plan_: Any) -> bool:
        """Whether a plan keeps every mass within 1e-9 of the largest."""
        return self.violation(plan_) <= self.slack

    @cached_property
    def hash(self) -> str:
        """Content hash: the first 16 hex digits of a SHA-256 over the arrays."""
        return content_hash(_arrays(self))

    def replace(self, **changes: Any) -> PartialTransport:
        """The same problem with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)

    def save(self, path: str | Path) -> None:
        """Write the instance as `.npz` (format `prunesolve/1`, no pickle), whole or not at all."""
        write(path, "partial-transport", _arrays(self) | {"meta": json_array("meta", dict(self.meta))})

    @classmethod
    def load(cls, path: str | Path) -> PartialTransport:
        """Read what `save` wrote."""
        return unpack(path, _from_arrays, read(path, "partial-transport"))


def _weights(name: str, values: Any, size: int, what: str) -> Floats:
    weights = floats(name, values, (None,))
    if len(weights) != size:
        raise InvalidProblem(f"{name}: expected {size} weights, one for each {what} of cost, got {len(weights)}")
    if (weights < 0).any():
        at = int(weights.argmin())
        raise InvalidProblem(f"{name}: expected weights of zero or more, got {weights[at]:g} at {at}")
    return weights


def _fitting(mass: float, source: Floats, target: Floats) -> float:
    """The mass, rounding above what fits cut off."""
    with np.errstate(over="ignore"):
        held, taken = float(source.sum()), float(target.sum())
    most = min(held, taken)
    if not max(held, taken) <= LARGEST:
        raise InvalidProblem(f"source and target: expected weights that add up to {LARGEST:g} at most; divide them all")
    if mass < 0:
        raise InvalidProblem(f"mass: expected 0 or more, got {mass:g}; the largest that fits is {most:.17g}")
    if mass > most * (1.0 + _SLACK):
        raise InvalidProblem(
            f"mass: {mass:g} does not fit; the largest that does is {most:.17g} (source holds {held:g}, target takes "
            f"{taken:g})"
        )
    return min(mass, most)


def _pair_of_labels(labels: Any, shape: tuple[int, int]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    if not isinstance(labels, Sequence) or isinstance(labels, str) or len(labels) != 2:
        raise InvalidProblem("labels: expected a pair, names of the sources and names of the targets")
    return checked_labels(labels[0], shape[0]), checked_labels(labels[1], shape[1])


def _arrays(problem: PartialTransport) -> dict[str, Any]:
    labels = {} if problem.labels is None else {"labels": json_array("labels", [list(side) for side in problem.labels])}
    return labels | {
        "cost": problem.cost,
        "source": problem.source,
        "target": problem.target,
        "mass": np.array(problem.mass),
    }


def _from_arrays(arrays: dict[str, Any]) -> PartialTransport:
    return PartialTransport(
        arrays["cost"],
        arrays["source"],
        arrays["target"],
        float(arrays["mass"]),
        labels=json.loads(str(arrays["labels"])) if "labels" in arrays else None,
        meta=json.loads(str(arrays["meta"])),
    )
