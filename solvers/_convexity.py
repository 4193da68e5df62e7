r"""Diagonals d that make x'(J/2 + diag d)x convex where it has to be, each verified by a Cholesky factorisation.

On bits x_i^2 = x_i, so d is free, and the smaller it is where the relaxation is fractional the better the bound:
d(bound)/d(d_i) = -y_i (1 - y_i). Under an exact cardinality it is enough that the form is convex on sum v = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, Blocks, Dense, LowRank

_EPS = float(np.finfo(np.float64).eps)
LARGEST_EIGEN = 2048
_INWARD = 0.05  # of the mean diagonal, what it starts above one that is barely convex
_SHRINK = 0.15  # of the barrier's weight, from one centre to the next


def power_of_two(*arrays: Any) -> float:
    """What brings the largest entry to about 1; being a power of two it scales without rounding."""
    largest = max(float(np.abs(array).max(initial=0.0)) for array in arrays)
    # the reciprocal must be a number too
    return 2.0 ** int(np.clip(np.frexp(largest)[1], -1000, 1000)) if largest else 1.0


def convex_diagonal(problem: BinaryQuadratic) -> Any:
    """(n,) d for which J/2 + diag(d) is proved positive semidefinite in float64, as small as is known.

    A low rank gives it at sight: |F_i|^2 / 2. Otherwise the problem's claim, if a Cholesky factorisation confirms it;
    else the diagonal of the low-rank matrix that J is the rest of, if there is one; else an eigenvalue shift of each
    block; diagonal dominance where a block is too large for any of these.
    """
    couplings = problem.couplings
    if isinstance(couplings, LowRank):
        return _low_rank_diagonal(couplings)
    claim = np.zeros(problem.n) if problem.diagonal is None else problem.diagonal
    if isinstance(couplings, Blocks):
        starts = couplings.starts
        parts = [_block_diagonal(m, claim[s : s + len(m)]) for m, s in zip(couplings.blocks, starts[:-1], strict=True)]
        return np.concatenate(parts) if parts else np.zeros(0)
    if isinstance(couplings, Dense):
        return _block_diagonal(couplings.matrix, claim)
    if problem.n <= LARGEST_EIGEN:
        return _block_diagonal(couplings.dense(), claim)
    return 0.5 * np.asarray(abs(couplings.matrix).sum(axis=1)).ravel() * (1 + problem.n * _EPS)


def _low_rank_diagonal(couplings: LowRank) -> Any:
    rounding = 1 + 4 * (couplings.F.shape[1] + 4) * _EPS
    if couplings.sign == 1:
        return 0.5 * couplings.square * rounding
    largest = float(np.linalg.norm(couplings.F, 2)) ** 2 if couplings.F.size else 0.0
    return 0.5 * largest * (1 + 1e-12) - 0.5 * couplings.square / rounding


def _block_diagonal(matrix: Any, claim: Any) -> Any:
    """(n_b,) the claim plus what makes matrix/2 + diag(claim) factor; without a true claim, what can be found."""
    if not len(matrix):
        return claim
    shift = factoring_shift(matrix, claim)
    if shift is not None:
        return claim + shift
    if len(matrix) <= LARGEST_EIGEN:
        recovered = recovered_diagonal(matrix)
        if recovered is not None:
            return recovered
        lift = max(0.0, -float(np.linalg.eigvalsh(matrix)[0]) / 2)
        # eigenvalues carry an error of the size of the rounding; a few tries settle it
        for slack in (1e-14, 1e-12, 1e-10):
            even = np.full(len(matrix), lift + slack * np.abs(matrix).sum(axis=1).max())
            shift = factoring_shift(matrix, even)
            if shift is not None:
                return even + shift
    return 0.5 * np.abs(matrix).sum(axis=1) * (1 + len(matrix) * _EPS)


def factoring_shift(matrix: Any, d: Any) -> float | None:
    """A tiny s for which matrix/2 + diag(d) + s is surely positive semidefinite, None where Cholesky breaks down.

    Cholesky that runs to its end proves the shifted matrix semidefinite up to (n + 1) eps times its trace
    (Higham, Accuracy and Stability, theorem 10.3); that much is added on top.
    """
    n = len(matrix)
    shifted = 0.5 * matrix
    at = np.arange(n)
    shift = 2 * (n + 2) * _EPS * float(np.abs(d).sum())
    shifted[at, at] += d + shift
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return None
    return shift + 2 * (n + 2) * _EPS * float(np.abs(shifted[at, at]).sum())


def recovered_diagonal(matrix: Any) -> Any:
    r"""(n,) verified diagonal of the low-rank FF'/2 whose other entries are those of matrix/2; None if there is none.

    Units fall into three parts. Where F_B and F_C have the rank of F, for every i in A

        F_i F_C' (F_B F_C')^+ F_B F_i' = F_i F_i',

    and no diagonal entry is among the factors on the left (a reconstruction; Guttman 1956 for single factors).
    """
    n = len(matrix)
    parts = [np.arange(first, n, 3) for first in range(3)]
    if n < 6:
        return None
    d = np.empty(n)
    for a in range(3):
        first, second, third = (parts[(a + b) % 3] for b in range(3))
        u, size, vt = np.linalg.svd(0.5 * matrix[np.ix_(second, third)])
        rank = int((size > 1e-11 * size[0]).sum())
        if not 0 < rank <= 0.9 * min(len(second), len(third)):
            return None
        left = (0.5 * matrix[np.ix_(first, third)]) @ vt[:rank].T / size[:rank]
        d[first] = np.einsum("ir,ir->i", left, (0.5 * matrix[np.ix_(first, second)]) @ u[:, :rank])
    for slack in (0.0, 1e-13, 1e-11, 1e-9, 1e-7):
        raised = d + slack * float(np.abs(d).max())
        shift = factoring_shift(matrix, raised)
        if shift is not None:
            return raised + shift
    return None


class Sharpener:
    r"""Newton steps towards the diagonal of the best bound.

        max_d  min_y (a - d).y + y'(H + diag d)y  +  mu log det (H + diag d),    mu -> 0

    over 0 <= y <= 1 (and sum y = k), the matrix positive definite (on sum v = 0 where k is given). The limit is the
    bound of the semidefinite relaxation (Billionnet, Elloumi and Plateau 2009: quadratic convex reformulation).
    It serves problems without a count too and may be stopped at any step; `_diagonal.tightest` is quicker at one count.

    Parameters
    ----------
    half : (n, n)
        H = J/2, zero diagonal.
    k : int
        Exact cardinality, -1 for none.
    d, y : (n,)
        A diagonal known to be convex, and a point to start the first relaxation at.
    relax : callable
        (d, y) to (bound, minimiser y (n,)), warm-started at y.
    stop : callable
        Asked at every trial step.
    """

    def __init__(
        self,
        half: Any,
        k: int,
        d: Any,
        y: Any,
        relax: Callable[[Any, Any], tuple[float, Any]],
        stop: Callable[[], bool],
    ) -> None:
        self.half, self.k, self.relax, self.stop = half, k, relax, stop
        self.n = len(half)
        # a multiple of (sum x - k)^2, which is 0 on every selection; any large enough serves
        self.ridge = float(np.abs(half).sum(axis=1).max(initial=0.0)) / max(1, self.n) if k >= 0 else 0.0
        self.d = d + _INWARD * float(np.abs(d).mean()) + 1e-9 * float(np.abs(half).max(initial=0.0))
        self.matrix, self.log = self._factored(self.d)
        self.bound, self.y = relax(self.d, y)
        self.weight: float | None = None

    def _factored(self, d: Any) -> tuple[Any, float]:
        """The matrix of d and its log determinant, -inf where it is not positive definite."""
        matrix = self.half + self.ridge
        matrix[np.arange(self.n), np.arange(self.n)] += d
        try:
            pivots = np.diagonal(np.linalg.cholesky(matrix))
        except np.linalg.LinAlgError:
            return matrix, -np.inf
        return matrix, 2.0 * float(np.log(pivots).sum())

    def step(self) -> bool:
        """One Newton step with a line search; False once there is nothing left to gain."""
        if not np.isfinite(self.log):
            return False
        inverse = self._on_slice(np.linalg.inv(self.matrix))
        spread = self.y * (1 - self.y)
        if self.weight is None:
            self.weight = max(float(spread.sum()), 0.01 * self.n) / float(np.diagonal(inverse).sum())
        ascent = self.weight * np.diagonal(inverse) - spread
        try:
            change = np.linalg.solve(self._curvature(inverse), ascent)
        except np.linalg.LinAlgError:
            return False
        slope = float(ascent @ change)
        moved = np.isfinite(slope) and self._search(change, slope)
        if not moved or slope < max(2.0, 0.03 * self.n) * self.weight:
            self.weight *= _SHRINK
        return self.n * self.weight > 1e-5 * abs(self.bound)

    def _search(self, change: Any, slope: float) -> bool:
        assert self.weight is not None
        merit = self.bound + self.weight * self.log
        step = 1.0
        while step > 1e-3 and not self.stop():
            d = self.d + step * change
            matrix, log = self._factored(d)
            if np.isfinite(log):
                bound, y = self.relax(d, self.y)
                if bound + self.weight * log >= merit + 1e-3 * step * slope:
                    self.d, self.matrix, self.log, self.bound, self.y = d, matrix, log, bound, y
                    return True
            step *= 0.5
        return False

    def _on_slice(self, inverse: Any) -> Any:
        """The inverse on sum v = 0, whatever the ridge."""
        if self.k < 0:
            return inverse
        row = inverse.sum(axis=1)
        return inverse - np.outer(row, row) / row.sum()

    def _curvature(self, inverse: Any) -> Any:
        """(n, n) minus the second derivative of the merit, the fractional units following d."""
        assert self.weight is not None
        curvature = self.weight * inverse * inverse
        at = np.flatnonzero((self.y > 1e-7) & (self.y < 1 - 1e-7))
        if len(at) > 1:
            follow = self._on_slice(0.5 * np.linalg.inv(self.matrix[np.ix_(at, at)]))
            pull = 2 * self.y[at] - 1
            curvature[np.ix_(at, at)] += pull[:, None] * follow * pull
        curvature[np.arange(self.n), np.arange(self.n)] *= 1 + 1e-10
        return curvature

    def verified(self) -> Any:
        """(n,) the diagonal plus what proves it convex (on the slice); None where that fails."""
        shift = factoring_shift(2.0 * (self.half + self.ridge), self.d)
        return None if shift is None else self.d + shift
