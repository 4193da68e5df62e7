"""What moves are worth: Bayesian linear regression on the changes that were evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunesolve.problems._arrays import Floats

_WINDOW = 512  # changes remembered; older ones come from far away in the space
_FIRST = {"surrogate": 4.0, "slope": 0.25, "trend": 0.25, "coordinate": 0.1}  # prior variances over the noise
_LEAST, _MOST = 1e-4, 1e4
_GROWTH = 1.25  # how many more changes make the variances worth another fit


class ChangeModel:
    r"""y = A theta + e, theta_b ~ N(0, s^2 v_b), e_t ~ N(0, s^2 w_t): changes y of the value, features A of the moves.

    The features come in blocks b, each with its own prior variance v_b: the surrogate's predicted change, its part in
    each group, the number of units each group gains, the units themselves. The variances are fitted by marginal
    likelihood, s^2 in closed form. Where nothing is known yet the surrogate is believed.

    Parameters
    ----------
    blocks : sequence of (name, width)
        Consecutive blocks of features; the names are the keys of `_FIRST`.

    Reference
    ---------
    D. J. C. MacKay, Bayesian interpolation, Neural Computation 4 (1992); draws by Matheron's rule.
    """

    def __init__(self, blocks: Sequence[tuple[str, int]]) -> None:
        ends = np.cumsum([0, *(width for _, width in blocks)])
        self._spans = [slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        self._widths = [width for _, width in blocks]
        self._variances = np.array([_FIRST[name] for name, _ in blocks])
        self._believed = np.zeros(int(ends[-1]))
        for (name, _), span in zip(blocks, self._spans, strict=True):
            self._believed[span] = float(name == "surrogate")
        self._rows: Floats = np.zeros((0, int(ends[-1])))
        self._changes: Floats = np.zeros(0)
        self._noise: Floats = np.zeros(0)
        self._grams: Floats = np.zeros((len(blocks), 0, 0))
        self._fitted_at = 0
        self._inverse: Any = None

    def learn(self, rows: Floats, changes: Floats, noise: Floats) -> None:
        """Take in changes (m,) of moves with features (m, p) and noise variances (m,) relative to one another."""
        told = np.isfinite(changes)
        self._rows = np.concatenate([self._rows, rows[told]])[-_WINDOW:]
        self._changes = np.concatenate([self._changes, changes[told]])[-_WINDOW:]
        self._noise = np.concatenate([self._noise, noise[told]])[-_WINDOW:]
        self._extend_grams(int(told.sum()))
        self._inverse = None
        if len(self._changes) >= _GROWTH * self._fitted_at or self._fitted_at == 0:
            self._fit()

    def _extend_grams(self, new: int) -> None:
        """Append the rows' products within each block, (b, W, W)."""
        size = len(self._rows)
        old = min(self._grams.shape[1], size - new)
        grams = np.zeros((len(self._spans), size, size))
        if old:
            grams[:, :old, :old] = self._grams[:, -old:, -old:]
        for gram, span in zip(grams, self._spans, strict=True):
            part = self._rows[:, span]
            gram[:, old:] = part @ part[old:].T
            gram[old:, :old] = gram[:old, old:].T
        self._grams = grams

    def _covariance(self, variances: Floats) -> Floats:
        return np.tensordot(variances, self._grams, axes=1) + np.diag(self._noise)

    def _evidence(self, variances: Floats) -> float:
        """Log marginal likelihood up to a constant, s^2 at its best."""
        try:
            factor = np.linalg.cholesky(self._covariance(variances))
        except np.linalg.LinAlgError:
            return -np.inf
        scaled = np.linalg.solve(factor, self._changes)
        m = len(self._changes)
        return float(-0.5 * m * np.log(max(float(scaled @ scaled) / m, 1e-300)) - np.log(np.diag(factor)).sum())

    def _fit(self) -> None:
        """One round over the variances, each a quarter, the same or four times."""
        if len(self._changes) < 8:
            return
        self._fitted_at = len(self._changes)
        best = self._evidence(self._variances)
        for b in range(len(self._variances)):
            for factor in (0.25, 4.0):
                tried = self._variances.copy()
                tried[b] = np.clip(tried[b] * factor, _LEAST, _MOST)
                found = self._evidence(tried)
                if found > best:
                    best, self._variances = found, tried

    def mean(self) -> Floats:
        """(p,) posterior mean of theta."""
        return self._posterior(np.zeros((1, len(self._believed))), np.zeros((1, len(self._changes))))[0]

    def draws(self, rng: np.random.Generator, count: int) -> Floats:
        """(count, p) draws from the posterior of theta."""
        deviations = np.sqrt(np.repeat(self._variances, self._widths))
        prior = deviations * rng.standard_normal((count, len(deviations)))
        noise = np.sqrt(self._noise) * rng.standard_normal((count, len(self._noise)))
        if not len(self._changes):
            return self._believed + prior * (self._believed == 0.0)
        scale = self._scale()
        return self._posterior(scale * prior, scale * noise)

    def _solved(self, changes: Floats) -> Floats:
        """(k, m) rows times the inverse covariance of the changes seen."""
        if self._inverse is None:
            # one inverse serves the mean and all draws; numpy has no triangular solve that would be cheaper
            self._inverse = np.linalg.inv(self._covariance(self._variances))
        solved: Floats = changes @ self._inverse
        return solved

    def _scale(self) -> float:
        """s: size of the noise of one move on all data."""
        explained = float(self._changes @ self._solved(self._changes[None])[0])
        return float(np.sqrt(max(explained, 0.0) / len(self._changes)))

    def _posterior(self, prior: Floats, noise: Floats) -> Floats:
        """(count, p) prior draws corrected by what was seen."""
        if not len(self._changes):
            return prior + self._believed
        missed = self._changes - prior @ self._rows.T - noise
        corrected = (self._solved(missed) @ self._rows) * np.repeat(self._variances, self._widths)
        return prior + corrected
