"""Points of a black box's space as levels of modes, and tensors that peak at one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, BlackBox, LevelTuples, Selections
from prunesolve.problems._arrays import Floats, Indices

from ._count_state import CountStates, ProbabilityTensor, in_order, of_levels, of_selections

_MOST = 15.0  # logit of a level that is not to be left
_TINY = np.finfo(float).tiny


@dataclass(frozen=True, eq=False)
class Modes:
    """The coordinates that a search may change.

    Parameters
    ----------
    box : BlackBox
        Whose space it is.
    base : (n,) bool or int
        The point that fixed coordinates are taken from.
    chosen : (m,) int
        Coordinate of each mode.
    states : CountStates
        Which levels of the modes are feasible together.
    """

    box: BlackBox
    base: Any
    chosen: Indices
    states: CountStates

    @classmethod
    def of(cls, box: BlackBox, base: Any, chosen: Indices) -> Modes:
        """The modes of some coordinates of a selection, or of all of a level tuple."""
        if isinstance(box.space, LevelTuples):
            return cls(box, base, np.arange(box.n), of_levels(box.space))
        assert isinstance(box.space, Selections)
        chosen = in_order(box.space, chosen)
        return cls(box, base, chosen, of_selections(box.space, chosen, base))

    @property
    def size(self) -> int:
        """Largest number of levels."""
        return int(self.states.sizes.max(initial=1))

    def levels(self, points: Any) -> Any:
        """(..., m) levels of points (..., n)."""
        return np.asarray(points)[..., self.chosen].astype(np.int16)

    def points(self, levels: Any) -> Any:
        """(p, n) points with these levels (p, m)."""
        points = np.repeat(self.base[None], len(levels), axis=0)
        points[:, self.chosen] = levels
        return points

    def guesses(self, points: Any) -> Floats:
        """(p,) what the surrogate says, 0 without one."""
        return np.zeros(len(points)) if self.box.surrogate is None else np.asarray(self.box.surrogate.value(points))

    def guessed_changes(self, point: Any) -> Floats:
        """(m, size) the surrogate's change of moving one mode of a point (n,) alone; 0 for its own level."""
        now, surrogate = self.levels(point), self.box.surrogate
        changes = np.zeros((len(now), self.size))
        if isinstance(surrogate, BinaryQuadratic):
            fields = surrogate.fields(point)[self.chosen]
            changes[np.arange(len(now)), 1 - now] = np.where(now == 1, -fields, fields)
        elif surrogate is not None:
            mode, level = np.nonzero(np.arange(self.size) < self.states.sizes[:, None])
            moved = np.repeat(np.asarray(point)[None], len(mode), axis=0)
            moved[np.arange(len(mode)), self.chosen[mode]] = level
            changes[mode, level] = self.guesses(moved) - self.guesses(np.asarray(point)[None])
        return changes

    def peaked(self, at: Any, changes: Floats, moves: float, greed: float) -> ProbabilityTensor:
        """A product of weights near the levels `at` (m,), under which about `moves` modes have other levels.

        Moves whose predicted change (m, size) is less are likelier: by a factor e for each `greed` standard deviations.
        Dearer and cheaper levels are moved to alike, however one-sided the predictions are.
        """
        logits = np.full(changes.shape, -_MOST)
        own = np.arange(self.size) == at[:, None]
        other = ~own & (np.arange(self.size) < self.states.sizes[:, None])
        logits[own] = 0.0
        unit = max(float(np.abs(changes[other]).max(initial=0.0)), _TINY)
        scaled = changes / unit
        scaled = scaled / max(greed * float(scaled[other].std()) if other.any() else 1.0, 1e-9)
        up = other & (np.arange(self.size) > at[:, None])
        for side in (up, other & ~up):
            if side.any():
                odds = -scaled[side]
                logits[side] = np.clip(odds - _offset(odds, moves / 2), -_MOST, _MOST)
        return ProbabilityTensor.product(self.states, logits)


def _offset(odds: Floats, moves: float) -> float:
    """What to take from the log odds so that about `moves` of them come true; bisection."""
    wanted = min(moves, 0.5 * len(odds))
    low, high = float(odds.min()) - 50.0, float(odds.max()) + 50.0
    for _ in range(50):
        middle = (low + high) / 2
        chance = 1.0 / (1.0 + np.exp(np.clip(middle - odds, -700.0, 700.0)))
        low, high = (middle, high) if chance.sum() > wanted else (low, middle)
    return (low + high) / 2
