r"""What points are worth: Gaussian process regression on the values that were evaluated.

f(x) = (1 + g) . surrogate(x) + constant + r(x), the surrogate in one part or in several. r has effects of single bits,
of pairs and of triples of bits, alike likely a priori within each order, so that the sum over all of them is a
polynomial in the overlap t = c(x) . c(y) of two points' codes in {-1, 1}^N:

    k(x, y) = v_0 + v_1 e_1 / N + v_2 e_2 / C(N, 2) + v_3 e_3 / C(N, 3),
    e_1 = t,   e_2 = (t^2 - N) / 2,   e_3 = (t^3 - (3 N - 2) t) / 6
"""

from __future__ import annotations

import math

import numpy as np

from prunesolve.problems._arrays import Floats

_FIRST = {"noise": 0.01, "single": 1.0, "pair": 1.0, "triple": 0.3, "surrogate": 0.05}  # prior variances
_CONSTANT = 1.0  # v_0
_LEAST, _MOST = 1e-4, 1e3
_GROWTH = 1.2  # how many more values make the variances worth another fit
_TOLD = 8  # values below which the variances stay as they are
_WINDOW, _SLACK = 1200, 200  # values remembered, the lowest, once there are so many more
_OUTLIER = 4.0  # rises beyond that many times the upper quartile are cut: how bad a bad point is tells little


class ValueModel:
    """Posterior mean and deviation of f; the variances are fitted by marginal likelihood, their size in closed form.

    Parameters
    ----------
    width : int
        Length N of the codes.
    guided : bool
        Whether the guesses are a surrogate's; else they are all 0.

    Reference
    ---------
    C. Rasmussen, C. Williams, Gaussian processes for machine learning, 2006; C. Oh et al., Combinatorial Bayesian
    optimization using the graph Cartesian product, NeurIPS 2019. The kernel is ours.
    """

    def __init__(self, width: int, guided: bool) -> None:
        self._guided = guided
        n = float(width)
        # what e_1, e_2, e_3 are divided by, their own factors 1/2 and 1/6 taken along; 1 where there are none
        self._parts = np.array([max(n, 1.0), max(n * (n - 1), 1.0), max(n * (n - 1) * (n - 2), 1.0)])
        self._width = n
        self._variances = np.array([_FIRST[name] for name in ("noise", "single", "pair", "triple", "surrogate")])
        self._codes: Floats = np.zeros((0, width))
        self._guesses: Floats = np.zeros((0, 1))
        self._values: Floats = np.zeros(0)
        self._root: Floats = np.zeros((0, 0))  # the inverse of the covariance's Cholesky factor
        self._dual: Floats = np.zeros(0)
        self._level, self._unit, self._scale = 0.0, 1.0, 1.0
        self._fitted_at = 0

    def learn(self, codes: Floats, guesses: Floats, values: Floats) -> None:
        """Take in the values (m,) of points with codes (m, N), guesses (m,) or in parts (m, g); none that is inf."""
        told, guesses = np.isfinite(values), _parts(guesses)
        if not told.any():
            return
        known = len(self._values)
        if not known:
            self._guesses = np.zeros((0, guesses.shape[1]))
        self._codes = np.concatenate([self._codes, codes[told]])
        self._guesses = np.concatenate([self._guesses, guesses[told]])
        self._values = np.concatenate([self._values, values[told]])
        if len(self._values) > _WINDOW + _SLACK:
            self._forget()
            known = 0
        targets = self._targets()
        if len(targets) >= max(_TOLD, _GROWTH * self._fitted_at):
            self._fit(targets)
            known = 0
        self._extend_root(known)
        whitened = self._root @ targets
        self._dual = self._root.T @ whitened
        self._scale = math.sqrt(float(whitened @ whitened) / len(targets))

    def mean(self, codes: Floats, guesses: Floats) -> Floats:
        """(p,) posterior mean at points with codes (p, N) and guesses (p,) or (p, g)."""
        guesses = _parts(guesses)
        if not len(self._values):
            return np.asarray(guesses.sum(axis=1))
        mean: Floats = guesses.sum(axis=1) + self._level + self._unit * (self._covariance(codes, guesses) @ self._dual)
        return mean

    def deviation(self, codes: Floats, guesses: Floats) -> Floats:
        """(p,) posterior standard deviation."""
        guesses = _parts(guesses)
        prior = _CONSTANT + self._variances[1:4].sum() + self._guided * self._variances[4] * (guesses**2).sum(axis=1)
        variance = np.broadcast_to(prior, len(guesses))
        if len(self._values):
            known = self._covariance(codes, guesses) @ self._root.T
            variance = variance - (known**2).sum(axis=1)
        return self._unit * self._scale * np.sqrt(np.maximum(variance, 0.0))

    def blank(self) -> ValueModel:
        """A model of the same variances that has seen nothing."""
        model = ValueModel(self._codes.shape[1], self._guided)
        model._variances, model._fitted_at = self._variances.copy(), self._fitted_at
        return model

    @property
    def evidence(self) -> float:
        """Log marginal likelihood of the values, up to a constant that guesses and variances do not change."""
        targets = self._targets()
        return _evidence(self._grams(), self._variances, targets) - len(targets) * math.log(self._unit)

    def _forget(self) -> None:
        lowest = np.argsort(self._values, kind="stable")[:_WINDOW]
        self._codes, self._guesses, self._values = self._codes[lowest], self._guesses[lowest], self._values[lowest]

    def _targets(self) -> Floats:
        """(m,) what the surrogate misses, centred and in a unit of its own: squares of 1e300 overflow."""
        least = self._values.min()
        rises = self._values - least
        quartile = float(np.quantile(rises, 0.75))
        cut = np.minimum(rises, _OUTLIER * quartile) if len(rises) >= _TOLD and quartile > 0.0 else rises
        missed = least + cut - self._guesses.sum(axis=1)
        self._level = float(np.median(missed))
        self._unit = float(np.abs(missed - self._level).max()) or 1.0
        targets: Floats = (missed - self._level) / self._unit
        return targets

    def _covariance(self, codes: Floats, guesses: Floats) -> Floats:
        """(p, m) covariances with what is known."""
        t = codes @ self._codes.T
        # in Horner's form: this is where the time goes
        a, b, c = self._variances[1:4] / self._parts
        k = ((c * t + b) * t + (a - c * (3 * self._width - 2))) * t + (_CONSTANT - b * self._width)
        if self._guided:
            k += self._variances[4] * (guesses @ self._guesses.T)
        return k

    def _grams(self) -> Floats:
        """(5, m, m) what each variance is a factor of."""
        t, n = self._codes @ self._codes.T, self._width
        single, pair, triple = np.array([t, t * t - n, t**3 - (3 * n - 2) * t]) / self._parts[:, None, None]
        guessed = self._guided * (self._guesses @ self._guesses.T)
        return np.array([np.eye(len(t)), single, pair, triple, guessed])

    def _fit(self, targets: Floats) -> None:
        """One round over the variances, each a quarter, the same or four times."""
        self._fitted_at = len(targets)
        grams = self._grams()
        best = _evidence(grams, self._variances, targets)
        for i in range(len(self._variances) if self._guided else 4):
            for factor in (0.25, 4.0):
                tried = self._variances.copy()
                tried[i] = np.clip(tried[i] * factor, _LEAST, _MOST)
                found = _evidence(grams, tried, targets)
                if found > best:
                    best, self._variances = found, tried

    def _extend_root(self, known: int) -> None:
        """Take the rows after the first `known` into the inverse Cholesky factor."""
        root = self._root[:known, :known]
        rows = self._covariance(self._codes[known:], self._guesses[known:])
        corner = rows[:, known:] + self._variances[0] * np.eye(len(rows))
        # updates of the inverse itself lose all digits after a few dozen
        side = rows[:, :known] @ root.T
        last = np.linalg.inv(np.linalg.cholesky(corner - side @ side.T))
        self._root = np.block([[root, np.zeros((known, len(rows)))], [-last @ side @ root, last]])


def _parts(guesses: Floats) -> Floats:
    """(m, g) guesses, one part where they are told in one."""
    return guesses[:, None] if guesses.ndim == 1 else guesses


def _evidence(grams: Floats, variances: Floats, targets: Floats) -> float:
    """Log marginal likelihood up to a constant, the size of all variances at its best."""
    try:
        factor = np.linalg.cholesky(np.tensordot(variances, grams, axes=1) + _CONSTANT)
    except np.linalg.LinAlgError:
        return -math.inf
    scaled = np.linalg.solve(factor, targets)
    m = len(targets)
    return float(-0.5 * m * math.log(max(float(scaled @ scaled) / m, 1e-300)) - np.log(np.diag(factor)).sum())
