"""Search on a black box in one piece: walk down a model of its values, evaluate where it may be lowest, learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from prunesolve.problems._arrays import Bits, Floats

from ._evaluations import Evaluations
from ._proposals import Moves
from ._value_model import ValueModel

LARGEST = 512  # coordinates up to which a walk down the model is cheap
_NEAR = 64  # neighbours predicted at each step
_STEPS = 30  # of one walk at most
_DOUBT = 1.0  # posterior deviations below its mean at which a point is rated
_BARREN = 20  # rounds in a row that find nothing new, after which the search ends


class ModelWalk:
    """Each round evaluates two points: from the best one, and from some random moves away from it, a walk goes down
    the posterior mean; of where it ends and the neighbours there the new point of the lowest mean - deviation is asked.

    The random moves grow with the rounds that brought nothing better.

    Parameters
    ----------
    evaluations : Evaluations
        The black box.
    moves : Moves
        Measured at the start.
    most : float
        Evaluations after which it ends.
    """

    def __init__(self, evaluations: Evaluations, moves: Moves, most: float) -> None:
        self.evaluations, self.moves, self.most = evaluations, moves, most
        self.box, self.run = evaluations.box, evaluations.run
        self.seen: set[bytes] = set()

    def go(self, x: Any) -> None:
        """Rounds from x (n,)."""
        self.guess = float(self.moves.guesses(x[None])[0])
        self.model = ValueModel(self.moves.codes(x[None]).shape[1], guided=self.moves.surrogate is not None)
        self.best, self.value = x, math.inf
        self._evaluate(x[None])
        idle = barren = 0
        while not self.run.should_stop() and self.run.evaluations < self.most and barren < _BARREN:
            before = self.value
            points = self._proposed(idle)
            self._evaluate(points)
            barren = 0 if len(points) else barren + 1
            idle = 0 if self.value < before else idle + 1

    def _proposed(self, idle: int) -> Any:
        """(m, n), m <= 2: new points to evaluate."""
        away = self._away(idle)
        chosen = [point for x in (self.best, away) for point in self._chosen(x)]
        if not chosen:
            return self.moves.random(away, self.run.rng, 1, self._skip)
        return np.array(list({self.box.key(point): point for point in chosen}.values()))

    def _away(self, idle: int) -> Any:
        """Some random moves away from the best point."""
        x = self.best
        for _ in range(1 + int(self.run.rng.integers(2 + min(idle, self.box.n // 4)))):
            drawn = self.moves.random(x, self.run.rng, 1, lambda points: np.zeros(len(points), dtype=bool))
            x = drawn[0] if len(drawn) else x
        return x

    def _chosen(self, x: Any) -> Any:
        """(1, n) the most promising new point where a walk down the model from x (n,) ends; (0, n) if none is new."""
        for _ in range(_STEPS):
            near, means, here = self._near(x)
            if not len(near) or means.min() >= here:
                break
            x = near[np.argmin(means)]
        pool = np.concatenate([x[None], near])
        pool = pool[~self._skip(pool)]
        if not len(pool):
            return pool
        told = self._told(pool)
        rated = self.model.mean(*told) - _DOUBT * self.model.deviation(*told)
        return pool[[np.argmin(rated)]]

    def _near(self, x: Any) -> tuple[Any, Floats, float]:
        """Neighbours (m, n) of x (n,) that may be low, what they are predicted to be (m,), and x itself."""
        flipped, _, _ = self.moves.flips(x)
        here, *flips = self.model.mean(*self._told(np.concatenate([x[None], flipped])))
        near = self.moves.nearest(x, np.array(flips) - here, _NEAR)
        return near, self.model.mean(*self._told(near)), float(here)

    def _told(self, points: Any) -> tuple[Floats, Floats]:
        return self.moves.codes(points), self.moves.guesses(points) - self.guess

    def _skip(self, points: Any) -> Bits:
        return np.array([self.box.key(point) in self.seen for point in points], dtype=bool)

    def _evaluate(self, points: Any) -> None:
        if not len(points):
            return
        values = self.evaluations.values(points)
        self.seen.update(self.box.key(point) for point in points)
        self.model.learn(*self._told(points), values / self.moves.scale)
        if values.min() < self.value:
            self.best, self.value = points[np.argmin(values)], float(values.min())
