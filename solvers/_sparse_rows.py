"""The rows of a sparse regression, scaled to a unit diagonal, and inverses to search by; numpy only at import.

With s_j^2 the mean over rows of H_jj the searches see H_i / (s s') and c_i / s, whose weights are s w_i: the losses
are the same, and inputs of any unit are alike.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from prunesolve.problems import NofM, SparseRegression
from prunesolve.problems._arrays import Bits, Floats, Indices

# added to a unit diagonal until a Cholesky factor has no pivot below _PIVOT; values are told without any
_DAMPING = (0.0, 1e-9, 1e-7, 1e-5, 1e-3)
_PIVOT = 1e-9


class Rows:
    """The rows of a problem as the searches see them.

    Attributes
    ----------
    scale : (d,) float
        s; 1 for an input that is always 0.
    gram : (d, d) float
        The scaled gram; 1 on the diagonal of an input that is always 0.
    cross : (o, d) float
        The scaled c_i, a row each.
    factors : (o, d, r) float or None
        The scaled U_i.
    group : (d,) int
        Which inputs of a row share a quota: groups of m, else all are in one.
    """

    def __init__(self, problem: SparseRegression) -> None:
        self._problem = problem
        self.o, self.d = problem.shape
        self.scale = np.sqrt(problem.diagonals.mean(axis=0))
        self.scale[self.scale == 0.0] = 1.0
        dead = problem.diagonals.mean(axis=0) == 0.0
        self.gram = problem.gram / self.scale[:, None] / self.scale + np.diag(dead.astype(np.float64))
        self.cross = np.ascontiguousarray((problem.cross / self.scale[:, None]).T)
        self.factors = None if problem.row_factors is None else problem.row_factors / self.scale[:, None]
        pattern = problem.pattern
        self.group = pattern.group(self.d) if isinstance(pattern, NofM) else np.zeros(self.d, dtype=np.int64)
        self._inverse = _inverse(self.gram)
        self._damped_gram = self.gram + self._inverse[1] * np.eye(self.d)
        # a gram that is singular alone may be sound with the rows' own part: damping it would be for nothing
        self._alone = self._inverse[1] > 0.0 or (self.factors is not None and 2 * self.factors.shape[2] > self.d)

    def hessian(self, row: int) -> Floats:
        """(d, d) the scaled H_i."""
        return self.gram if self.factors is None else np.asarray(self.gram + self.factors[row] @ self.factors[row].T)

    def damped(self, row: int) -> Floats:
        """(d, d) the scaled H_i, damped as far as its inverse needs."""
        if self.factors is None:
            return self._damped_gram
        if self._alone:
            return np.asarray(self.hessian(row) + _inverse(self.hessian(row))[1] * np.eye(self.d))
        return self.hessian(row)

    def product(self, w: Floats) -> Floats:
        """(o, d) H_i w_i of each row."""
        found = w @ self.gram
        if self.factors is not None:
            found += np.einsum("odr,or->od", self.factors, np.einsum("odr,od->or", self.factors, w))
        return found

    def inverse(self, row: int) -> Floats:
        """(d, d) inverse of the scaled H_i, not to be written into: by Woodbury's identity where rows differ.

        H_i^-1 = B - B U (I + U' B U)^-1 U' B,    B = gram^-1
        """
        base, _ = self._inverse
        if self.factors is None:
            return base
        if self._alone:
            return _inverse(self.hessian(row))[0]
        own = self.factors[row]
        reach = base @ own
        inner = np.eye(own.shape[1]) + own.T @ reach
        return np.asarray(base - reach @ np.linalg.solve(inner, reach.T))

    def mean_inverse_factor(self, order: Indices) -> Floats:
        """(d, d) upper triangular R with R' R the inverse of the rows' mean Hessian, inputs taken in that order."""
        mean = self.gram
        if self.factors is not None:
            mean = mean + np.tensordot(self.factors, self.factors, axes=((0, 2), (0, 2))) / self.o
        inverse = _inverse(mean[np.ix_(order, order)])[0]
        return np.asarray(np.linalg.cholesky(inverse).T)

    @cached_property
    def dense(self) -> Floats:
        """(o, d) scaled weights of the least loss, nothing pruned."""
        return np.asarray(self._problem.dense_weights * self.scale)

    def by_row(self, mask: Any) -> Bits:
        """(o, d) a selection (o d,)."""
        return np.array(mask, dtype=bool).reshape(self.o, self.d)

    def quota(self, kept: Bits) -> Indices:
        """(g,) kept in each group by one row's support (d,)."""
        return np.bincount(self.group[kept], minlength=int(self.group.max(initial=0)) + 1)


def _inverse(matrix: Floats) -> tuple[Floats, float]:
    """The inverse of a positive semidefinite matrix, and what had to be added to its diagonal first."""
    from scipy.linalg import lapack

    eye = np.eye(len(matrix))
    size = float(matrix.diagonal().mean()) if len(matrix) else 1.0
    for damping in _DAMPING:
        factor, info = lapack.dpotrf(matrix + damping * size * eye, lower=1)
        if info == 0 and factor.diagonal().min(initial=1.0) ** 2 > _PIVOT * (0.1 if damping else 1.0) * size:
            break
    lower, _ = lapack.dpotri(factor, lower=1)
    found = np.tril(lower)
    return np.ascontiguousarray(found + np.tril(found, -1).T), damping * size
