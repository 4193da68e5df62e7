r"""A linear model of a black box around its best known point, learnt from every value seen so far.

f(s) - f(best) = g [surrogate(s) - surrogate(best)] + sum_i w_i(s_i),   w_i(best_i) = 0,   Gaussian priors on g and w

The further a point lies from the best one the more its value is noise to a linear model: linear plus quadratic in the
number of modes that differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunesolve.problems._arrays import Floats

_LINEAR, _QUADRATIC = 0.1, 0.02  # noise of a point at distance d against the prior of one w: linear d + quadratic d^2
_POINTS = 300  # nearest points that the model is fitted to; the time of a fit grows with their cube
_LEAST = 0.2  # weight of the surrogate in `changes`, however wrong it was so far


class LocalModel:
    """Posterior mean of g and w.

    Parameters
    ----------
    best : (m,) int
        Levels of the best known point.
    levels : (p, m) int
        Points seen.
    rises : (p,) float
        f of them minus f of the best.
    guesses : (p,) float
        The surrogate's rises.
    size : int
        Largest number of levels of a mode.
    """

    def __init__(self, best: Any, levels: Any, rises: Floats, guesses: Floats, size: int) -> None:
        self.best, self.size = best, size
        distance = (levels != best).sum(axis=1)
        near = np.argsort(distance, kind="stable")
        near = near[distance[near] > 0][:_POINTS]
        apart = distance[near].astype(np.float64)
        moved = self._moved(levels[near])
        self.guess_unit = _unit(guesses[near], apart)
        guess, rise = guesses[near] / self.guess_unit, rises[near] / _unit(rises[near], apart)
        gram = moved @ moved.T + np.outer(guess, guess) + np.diag(_LINEAR * apart + _QUADRATIC * apart**2)
        dual = np.linalg.solve(gram, rise)
        self.g = float(guess @ dual)
        self.w = (moved.T @ dual).reshape(-1, size)

    def _moved(self, levels: Any) -> Floats:
        """(p, m * size) which level each mode moved to."""
        moved = (levels[:, :, None] == np.arange(self.size)) & (levels != self.best)[:, :, None]
        return moved.reshape(len(levels), -1).astype(np.float64)

    def predicted(self, levels: Any, guesses: Floats) -> Floats:
        """(p,) rises of points (p, m) whose rises the surrogate guesses, in the model's unit."""
        return self.g * (guesses / self.guess_unit) + self._moved(levels) @ self.w.ravel()

    def changes(self, guessed: Floats) -> Floats:
        """(m, size) predicted change of moving one mode alone, given the surrogate's."""
        return max(self.g, _LEAST) * (guessed / self.guess_unit) + self.w


def _unit(values: Floats, apart: Floats) -> float:
    """Typical size of a value one mode away, 1 where there is none."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return 1.0
    # divided first: squares of 1e300 overflow, and those of 1e-300 vanish
    return max(largest * float(np.sqrt(((values / largest) ** 2 / apart).mean())), np.finfo(float).tiny)
