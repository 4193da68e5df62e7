r"""What is known of a black box over levels before it is asked: errors layer by layer, and the levels they call best.

minimise    sum_l c_l error[l][s_l]        within the budget

The errors are those of a `LevelChoice`, or what a surrogate says of each layer's levels around one tuple.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from prunesolve.problems import BlackBox, LevelChoice, LevelTuples
from prunesolve.problems._arrays import Floats, Indices

from ._base import Run
from ._level_space import LevelSpace, even, layer_by_layer
from .dynamic_programming import DynamicProgramming

_ROUNDS, _FEW, _SWITCHES = 40, 3, 3  # of an evolution where pair costs are no chain; from its first answer few will do
_LABELS = 1_000_000  # partial choices held by the dynamic program, past which its incumbent stands
_DRAWN = 64  # random tuples lowered until one fits, where nothing better is known


class LevelProxy:
    """The additive errors of a black box over levels, those of each layer to be weighed.

    Parameters
    ----------
    box : BlackBox
        Over `LevelTuples` or `LevelChoice`.
    run : Run
        Its clock, its callback and its random numbers.

    Attributes
    ----------
    space : LevelSpace
        The box's.
    errors : list of L arrays (S_l,) or None
        None where nothing is known.
    """

    def __init__(self, box: BlackBox, run: Run) -> None:
        self.run, self.space = run, LevelSpace(box.space)  # type: ignore[arg-type]
        self._even = even(box.space)  # type: ignore[arg-type]
        self.errors = _errors(box, self._even)
        self._space = box.space
        self._exact = DynamicProgramming(label_limit=_LABELS)
        # its answers need not spend the whole budget
        self._fast = self._exact if self.space.exact else DynamicProgramming(method="lagrangian")

    @property
    def is_chain(self) -> bool:
        """Whether dynamic programming takes the costs."""
        return not isinstance(self._space, LevelChoice) or self._space.is_chain

    def optimum(self) -> Indices | None:
        """(L,) levels of least sum_l error[l][s_l], on a chain by dynamic programming; None where none were found."""
        return None if self.errors is None else self._solved(self.errors, self._exact)

    def near_optimum(self, errors: Sequence[Floats]) -> Indices | None:
        """(L,) levels of little sum_l errors[l][s_l], on a chain by one multiplier; None where none were found."""
        return self._solved(errors, self._fast)

    @cached_property
    def _evolved_from(self) -> Indices:
        """(m, L), m <= 2: what an evolution begins with, the optimum among it once that is found."""
        start = [row for row in (self.optimum(), self._even) if row is not None]
        return np.array(start, dtype=np.int64).reshape(-1, self.space.n)

    def _solved(self, errors: Sequence[Floats], solver: DynamicProgramming) -> Indices | None:
        choice = _choice(self._space, errors)
        if solver.refuse(choice) is not None:
            return self._evolved(choice, first=solver is self._exact)
        result = solver.solve(
            choice,
            time_limit=None if self.run.time_limit is None else max(self.run.remaining / 5, 1e-3),
            callback=lambda _: self.run.should_stop(),
        )
        if "interrupted" in result.details:
            raise KeyboardInterrupt
        return np.array(result.solution) if result.feasible else None

    def starts(self) -> Indices:
        """(m, L) distinct tuples to begin with: the best additively, and even levels; else one that fits, if any."""
        rows = [row for row in (self.optimum(), self._even) if row is not None]
        if not rows:
            drawn = self.run.rng.integers(self.space.sizes, size=(_DRAWN, self.space.n))
            return self.space.fitted(drawn, self.run.rng)[:1]
        return np.array(list({row.tobytes(): row for row in rows}.values()))

    def _evolved(self, choice: LevelChoice, first: bool) -> Indices | None:
        rows, rounds = (self._fitting(choice), _ROUNDS) if first else (self._evolved_from, _FEW)
        return self.space.evolved(rows, choice.value, self.run.rng, rounds, _SWITCHES)[0][0] if len(rows) else None

    def _fitting(self, choice: LevelChoice) -> Indices:
        return self.space.fitted(np.atleast_2d(choice.cheapest if self._even is None else self._even), self.run.rng)


def _errors(box: BlackBox, around: Indices | None) -> list[Floats] | None:
    """The tables, or what the surrogate says of every level of each layer where the others stay as they are."""
    if isinstance(box.space, LevelChoice):
        return list(box.space.error)
    if box.surrogate is None or around is None:
        return None
    here = float(box.surrogate.value(around[None])[0])
    tables = layer_by_layer(box.surrogate.value, around, box.space.sizes)  # type: ignore[union-attr]
    # a surrogate may know nothing of a tuple outside the budget
    return [np.where(np.isfinite(table), table - here, 0.0) for table in tables]


def _choice(space: Any, errors: Sequence[Floats]) -> LevelChoice:
    """The errors within the budget, as dynamic programming takes them."""
    if isinstance(space, LevelChoice):
        return space.replace(error=errors)
    assert isinstance(space, LevelTuples)
    # where all of the budget must be spent, a unit of it is worth more than the errors can differ by
    worth = 1.0 + sum(float(np.ptp(e)) for e in errors) if space.exact else 0.0
    return LevelChoice([e - worth * c for e, c in zip(errors, space.cost, strict=True)], space.cost, space.budget)
