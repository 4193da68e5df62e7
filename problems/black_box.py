r"""Minimise a function that only calling it can tell: the true loss of a masked network, say.

minimise    f(x) = sum_b w_b f_b(x) / sum_b w_b        over selections, or over one level per layer

Batches b of calibration data are what makes a cheap look possible: a few of them first, all of them for what survives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ._arrays import Bits, Floats, Indices, bits, floats, integers, whole
from ._arrays import levels as checked_levels
from ._errors import InvalidProblem
from ._feasibility import check_together
from .binary_quadratic import BinaryQuadratic, checked_constraints, checked_labels
from .constraints import Cardinality, Constraint
from .level_choice import LevelChoice


@dataclass(frozen=True, eq=False)
class Selections:
    """The selections x in {0, 1}^n that satisfy the constraints; x_i = 1 keeps unit i.

    Parameters
    ----------
    n : int
        Number of units.
    constraints : sequence of Cardinality, GroupBounds, Budget
        What a selection must satisfy.

    Raises
    ------
    InvalidProblem
        If no selection can meet the constraints.

    Examples
    --------
    >>> Selections(3, [Cardinality(2)]).is_feasible([[True, True, False], [True, False, False]])
    array([ True, False])
    """

    n: int
    constraints: Sequence[Constraint] = ()

    def __post_init__(self) -> None:
        n = whole("Selections.n", self.n)
        if n < 0:
            raise InvalidProblem(f"Selections.n: expected a number of units >= 0, got {n}")
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "constraints", checked_constraints(self.constraints, n))
        check_together(self.constraints, n)

    @cached_property
    def k(self) -> int | None:
        """The exact cardinality, None where none is asked."""
        return next((c.k for c in self.constraints if isinstance(c, Cardinality)), None)

    def of_kind(self, kind: type[Any]) -> list[Any]:
        """The constraints of one kind."""
        return [c for c in self.constraints if isinstance(c, kind)]

    def checked(self, name: str, x: Any) -> Bits:
        """A bool copy of one selection (n,) or of rows (m, n); refuses anything else."""
        return bits(name, x, self.n)

    def violation(self, x: Any) -> Any:
        """By how much x (n,), or each row of x (m, n), breaks the constraints, added up."""
        kept = self.checked("x", x)
        total = sum((c.violation(kept) for c in self.constraints), start=np.zeros(kept.shape[:-1]))
        return float(total) if kept.ndim == 1 else total

    def is_feasible(self, x: Any) -> Any:
        """Whether every constraint holds within 1e-9 of its scale, for x (n,) or each row of x (m, n)."""
        kept = self.checked("x", x)
        holds = np.ones(kept.shape[:-1], dtype=bool)
        for constraint in self.constraints:
            holds = holds & constraint.holds(kept)
        return bool(holds) if kept.ndim == 1 else holds


@dataclass(frozen=True, eq=False)
class LevelTuples:
    r"""One level s_l in 0 .. S_l - 1 for each of L coordinates: sum_l cost[l][s_l] = budget, or <= budget.

    Parameters
    ----------
    cost : sequence of L arrays (S_l,) int >= 0
        What each level costs, units kept for instance.
    budget : int
        What may be spent.
    exact : bool
        Whether all of it must be.

    Raises
    ------
    InvalidProblem
        If no tuple can meet the budget; says which totals next to it can be met.

    Examples
    --------
    >>> tuples = LevelTuples([[1, 2, 3], [2, 4]], budget=5)
    >>> tuples.is_feasible([0, 1]), tuples.is_feasible([2, 1])
    (True, False)
    """

    cost: Sequence[Indices]
    budget: int
    exact: bool = True

    def __post_init__(self) -> None:
        cost = tuple(integers(f"LevelTuples.cost[{i}]", c, (None,)) for i, c in enumerate(self.cost))
        if any(not len(c) or c.min() < 0 for c in cost):
            raise InvalidProblem("LevelTuples.cost: expected at least one level of cost >= 0 for each coordinate")
        object.__setattr__(self, "cost", cost)
        object.__setattr__(self, "budget", whole("LevelTuples.budget", self.budget))
        totals = self.totals
        fits = totals == self.budget if self.exact else totals <= self.budget
        if not fits.any():
            below, above = totals[totals < self.budget], totals[totals > self.budget]
            near = [str(found) for found in (*below[-1:], *above[:1])]
            raise InvalidProblem(
                f"LevelTuples: budget {self.budget} cannot be met; the nearest totals are {', '.join(near)}"
            )

    @property
    def n(self) -> int:
        """Number of coordinates."""
        return len(self.cost)

    @property
    def sizes(self) -> Indices:
        """(L,) number of levels of each coordinate."""
        return np.array([len(c) for c in self.cost], dtype=np.int64)

    @cached_property
    def totals(self) -> Indices:
        """Every total that some tuple costs, ascending."""
        totals = np.zeros(1, dtype=np.int64)
        for cost in self.cost:
            totals = np.unique(totals[:, None] + cost)
        return totals

    def checked(self, name: str, x: Any) -> Indices:
        """An int copy of one tuple (L,) or of rows (m, L); refuses anything else."""
        return checked_levels(name, x, self.sizes)

    def spent(self, x: Any) -> Any:
        """sum_l cost[l][s_l] of one tuple (L,), as an int, or of each row (m, L)."""
        levels = self.checked("x", x)
        total = sum((c[levels[..., i]] for i, c in enumerate(self.cost)), start=np.zeros(levels.shape[:-1], int))
        return int(total) if levels.ndim == 1 else total

    def violation(self, x: Any) -> Any:
        """By how much the spending of x (L,), or of each row (m, L), misses the budget."""
        over = np.asarray(self.spent(x)) - self.budget
        excess = np.abs(over) if self.exact else np.maximum(over, 0)
        return float(excess) if excess.ndim == 0 else excess.astype(np.float64)

    def is_feasible(self, x: Any) -> Any:
        """Whether x (L,), or each row of x (m, L), meets the budget."""
        holds = np.asarray(self.violation(x)) == 0.0
        return bool(holds) if holds.ndim == 0 else holds


@dataclass(frozen=True, eq=False)
class BlackBox:
    r"""f(x) = sum_b w_b f_b(x) / sum_b w_b over a space, to be minimised, known only where it was evaluated.

    Parameters
    ----------
    space : Selections, LevelTuples or LevelChoice
        What may be asked.
    evaluate : callable
        `evaluate(X)` gives (m,) values of the rows of X (m, n); with `weights`, `evaluate(X, b)` those of batch b. The
        same row must always get the same value. NaN says that a row has no value.
    surrogate : object with `value(X)`, optional
        A cheap model of f that searches rank by; for selections a `BinaryQuadratic` over the same units.
    weights : (B,) float > 0, optional
        Weights of the batches; None for a function in one piece.
    labels : sequence of n, optional
        Names of the coordinates, as in `BinaryQuadratic`.
    meta : mapping, optional
        JSON-able facts, such as the groups of the units.

    Raises
    ------
    InvalidProblem
        If the parts do not fit one another.

    Examples
    --------
    >>> box = BlackBox(Selections(3, [Cardinality(1)]), lambda X: X @ [3.0, 1.0, 2.0])
    >>> box.value([False, True, False])
    1.0
    """

    space: Selections | LevelTuples | LevelChoice
    evaluate: Callable[..., Any]
    surrogate: Any = None
    weights: Floats | None = None
    labels: Sequence[Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    _known: dict[bytes, dict[int, float]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.space, (Selections, LevelTuples, LevelChoice)):
            raise InvalidProblem(
                f"space: expected Selections, LevelTuples or LevelChoice, got {type(self.space).__name__}"
            )
        if not callable(self.evaluate):
            raise InvalidProblem(f"evaluate: expected a callable, got {type(self.evaluate).__name__}")
        if self.surrogate is not None and not callable(getattr(self.surrogate, "value", None)):
            raise InvalidProblem(f"surrogate: expected an object with value(X), got {type(self.surrogate).__name__}")
        if isinstance(self.surrogate, BinaryQuadratic) and self.surrogate.n != self.n:
            raise InvalidProblem(f"surrogate: expected n = {self.n} units as in the space, got {self.surrogate.n}")
        if self.weights is not None:
            weights = floats("weights", self.weights, (None,))
            if not len(weights) or weights.min() <= 0.0:
                raise InvalidProblem("weights: expected one number > 0 for each batch")
            object.__setattr__(self, "weights", weights)
        if self.labels is not None:
            object.__setattr__(self, "labels", checked_labels(self.labels, self.n))
        object.__setattr__(self, "meta", dict(self.meta))

    @classmethod
    def over(cls, problem: BinaryQuadratic, evaluate: Callable[..., Any], weights: Any = None) -> BlackBox:
        """The black box over the selections of a problem, which becomes its surrogate."""
        space = Selections(problem.n, problem.constraints)
        return cls(space, evaluate, problem, weights, problem.labels, problem.meta)

    @classmethod
    def of(cls, problem: BlackBox | BinaryQuadratic | LevelChoice) -> BlackBox:
        """A black box as it is; a problem in closed form as one whose surrogate is exact."""
        if isinstance(problem, LevelChoice):
            return cls(problem, problem.value, problem, labels=problem.labels, meta=problem.meta)
        return problem if isinstance(problem, BlackBox) else cls.over(problem, problem.value)

    @property
    def n(self) -> int:
        """Number of coordinates: units or layers."""
        return self.space.n

    @property
    def k(self) -> int | None:
        """The exact cardinality of selections, None where none is asked."""
        return self.space.k if isinstance(self.space, Selections) else None

    @property
    def constraints(self) -> Sequence[Constraint]:
        """The constraints of selections."""
        return self.space.constraints if isinstance(self.space, Selections) else ()

    def of_kind(self, kind: type[Any]) -> list[Any]:
        """The constraints of one kind."""
        return [c for c in self.constraints if isinstance(c, kind)]

    @cached_property
    def shares(self) -> Floats:
        """(B,) share of each batch in the objective, and in the cost of an evaluation."""
        weights = np.ones(1) if self.weights is None else self.weights
        return weights / weights.sum()

    def value(self, x: Any) -> Any:
        """f(x) of one point (n,) as a float, or of each row of x (m, n); what was evaluated before is remembered."""
        asked = self.checked(x)
        values = self.partial(np.atleast_2d(asked), range(len(self.shares)))
        return float(values[0]) if asked.ndim == 1 else values

    def partial(self, x: Any, batches: Sequence[int]) -> Floats:
        """(m,) sum_b w_b f_b / sum_b w_b over some batches, for each row of x (m, n)."""
        rows = self.checked(x)
        keys = [self.key(row) for row in rows]
        self._learn(rows, keys, batches)
        found = np.array([[self._known[key][b] for b in batches] for key in keys]).reshape(len(rows), len(batches))
        shares = self.shares[list(batches)]
        return found @ (shares / shares.sum())

    def knows(self, x: Any, batch: int) -> bool:
        """Whether a point (n,) was evaluated on a batch."""
        return batch in self._known.get(self.key(self.checked(x)), ())

    def _learn(self, rows: Any, keys: Sequence[bytes], batches: Sequence[int]) -> None:
        """Evaluate what is not known yet, each distinct row once."""
        for b in batches:
            new = {key: i for i, key in enumerate(keys) if b not in self._known.get(key, ())}
            if new:
                values = self._evaluated(rows[list(new.values())], b)
                for key, value in zip(new, values, strict=True):
                    self._known.setdefault(key, {})[b] = float(value)

    def _evaluated(self, rows: Any, batch: int) -> Floats:
        """(m,) values of the rows on a batch, as the callable gives them; refuses another shape."""
        # a copy, so that an evaluation which writes into its argument spoils nobody's rows
        given = self.evaluate(rows.copy()) if self.weights is None else self.evaluate(rows.copy(), batch)
        values = np.asarray(given, dtype=np.float64)
        if values.shape != (len(rows),):
            raise InvalidProblem(f"evaluate: expected {len(rows)} values, one a row, got shape {values.shape}")
        return values

    @staticmethod
    def key(x: Any) -> bytes:
        """What a checked point is remembered by."""
        return np.packbits(x).tobytes() if x.dtype == np.bool_ else x.tobytes()

    def checked(self, x: Any, name: str = "x") -> Any:
        """A copy of one point (n,) or of rows (m, n); refuses anything else."""
        return self.space.checked(name, x)

    def violation(self, x: Any) -> Any:
        """By how much x (n,), or each row of x (m, n), breaks the constraints."""
        return self.space.violation(x)

    def is_feasible(self, x: Any) -> Any:
        """Whether x (n,), or each row of x (m, n), may be answered."""
        return self.space.is_feasible(x)

    def replace(self, **changes: Any) -> BlackBox:
        """The same black box with some fields changed; what was evaluated is forgotten."""
        return dataclasses.replace(self, **changes)
