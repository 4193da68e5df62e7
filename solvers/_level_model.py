r"""What level tuples are worth: the value model over levels, guided by the errors that are known layer by layer.

f(s) = u sum_l (1 + g_l) error[l][s_l] + constant + r(s)

Errors of layers and the true loss need not be counted alike: the unit u is the likeliest of a few. The weights g_l are
learned with the rest.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from prunesolve.problems import BlackBox, LevelChoice
from prunesolve.problems._arrays import Floats, Indices

from ._level_space import layer_by_layer, padded
from ._proposals import LevelMoves
from ._value_model import ValueModel

_FIRST = 2  # values before which the errors alone rank
_UNSURE = 8  # half as many values as tell that another unit is likelier
_FACTORS = (0.25, 1.0, 4.0)  # tried, of the unit and of the slope of the values over the errors
_TRUST = 3.0  # log likelihood that speaks for the unit so far, at first the errors' own


class LevelModel:
    """A Gaussian process over level tuples.

    Parameters
    ----------
    box : BlackBox
        Over `LevelTuples` or `LevelChoice`.
    errors : list of L arrays (S_l,) or None
        What is known of the levels.
    around : (L,) int
        The tuple that errors are counted from.
    """

    def __init__(self, box: BlackBox, errors: list[Floats] | None, around: Indices) -> None:
        self._moves = LevelMoves(box)
        self._errors: Floats | None = None
        self._surrogate: Any = None
        if errors is not None:
            rises = [e - e[level] for e, level in zip(errors, around, strict=True)]
            self._scale = _spread(np.concatenate(rises)) or 1.0
            self._errors = padded(rises, max(map(len, rises))) / self._scale
            self._surrogate = None if isinstance(box.space, LevelChoice) else box.surrogate
            self._around = around
        self._sizes = box.space.sizes  # type: ignore[union-attr]
        self._unit = 1.0 if errors is None else self._scale
        self._model = ValueModel(self._moves.codes(around[None]).shape[1], guided=errors is not None)
        self._points: Indices = np.zeros((0, len(around)), dtype=np.int64)
        self._values: Floats = np.zeros(0)
        self._learned, self._fitted_at = False, _UNSURE

    def learn(self, points: Indices, values: Floats) -> None:
        """Take in the values (m,) of points (m, L); none that is inf."""
        told = np.isfinite(values)
        points, values = points[told], values[told]
        self._points, self._values = np.concatenate([self._points, points]), np.concatenate([self._values, values])
        if self._waiting:
            return
        if not self._learned:
            points, values = self._points, self._values
        self._learned = True
        self._model.learn(self._moves.codes(points), self._guesses(points), values / self._unit)
        if self._errors is not None and len(self._values) >= 2 * self._fitted_at:
            self._fit_unit()

    def _fit_unit(self) -> None:
        """Leave the unit only for one under which the values are far likelier."""
        self._fitted_at = len(self._values)
        codes, guesses = self._moves.codes(self._points), self._guesses(self._points)
        slope = _slope(guesses.sum(axis=1), self._values)
        likeliest = self._likelihood(self._model, self._unit) + _TRUST
        for unit in [factor * u for u in (self._unit, slope) for factor in _FACTORS]:
            model = self._model.blank()
            model.learn(codes, guesses, self._values / unit)
            likelihood = self._likelihood(model, unit)
            if likelihood > likeliest:
                likeliest, self._model, self._unit = likelihood, model, unit

    def _likelihood(self, model: ValueModel, unit: float) -> float:
        return model.evidence - len(self._values) * math.log(unit)

    def rated(self, points: Indices, doubt: float) -> Floats:
        """(m,) posterior mean less so many deviations of points (m, L); what the errors say before there are values."""
        guesses = self._guesses(points)
        if self._waiting:
            return np.asarray(guesses.sum(axis=1))
        codes = self._moves.codes(points)
        mean = self._model.mean(codes, guesses)
        return mean - doubt * self._model.deviation(codes, guesses) if doubt else mean

    def tables(self, around: Indices) -> list[Floats]:
        """L arrays (S_l,): the posterior mean of every level of each layer where the others are as in a tuple (L,)."""
        return layer_by_layer(lambda points: self.rated(points, 0.0), around, self._sizes)

    @property
    def _waiting(self) -> bool:
        return self._errors is not None and len(self._values) < _FIRST

    def _guesses(self, points: Indices) -> Floats:
        """(m, L) the errors of each layer, and (m, 1) what a surrogate knows beyond them."""
        if self._errors is None:
            return np.zeros((len(points), 1))
        parts = self._errors[np.arange(points.shape[1]), points]
        if self._surrogate is None:
            return parts
        both = np.asarray(self._surrogate.value(np.concatenate([self._around[None], points])), dtype=np.float64)
        beyond = (both[1:] - both[0]) / self._scale - parts.sum(axis=1)
        # a surrogate may know nothing of some tuples
        return np.column_stack([parts, np.where(np.isfinite(beyond), beyond, 0.0)])


def _slope(guesses: Floats, values: Floats) -> float:
    """What a unit of the guesses is worth in values."""
    apart, spread = _spread(guesses), _spread(values)
    return spread / apart if apart and spread else 1.0


def _spread(values: Floats) -> float:
    """Standard deviation; squares of 1e300 overflow."""
    largest = float(np.abs(values).max(initial=0.0))
    return largest * float((values / largest).std()) if largest else 0.0
