r"""The diagonal that makes the convex relaxation of one dense block at one count as tight as it can be.

    max over d, M(d) = J/2 + diag(d) + u 11' semidefinite, of  min over y in [0, 1]^n, sum y = k, of  (a - d).y + y'M y

which is the semidefinite relaxation. Units only move against each other where sum y is fixed, so M need not be
semidefinite along 1 alone: u 11' adds a constant. Newton steps on the saddle point of

    (a - d).y + y'My + mu log det M(d) - mu sum log y_i (1 - y_i),      mu -> 0.

`_convexity.Sharpener` lowers the diagonal of any problem, counted or not, and stops anywhere with one that holds;
at one count this is as tight in less time, which many blocks and counts need.

Reference: Billionnet, Elloumi & Plateau, Discrete Applied Mathematics 157 (2009), for the tightest diagonal; the
interior-point method on the saddle is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_EPS = float(np.finfo(np.float64).eps)
_LARGEST_EIGEN = 512  # units up to which eigenvalues come in no time
_STEPS = 60
_SHRINK = 0.1  # of mu after a step that went far
_SHARE = 1e-2  # of the first mu at which it ends


class Tight(NamedTuple):
    """d (n,) with J/2 + diag(d) + ridge 11' proved positive semidefinite; y (n,) where the saddle point was."""

    d: Any
    ridge: float
    y: Any


def natural(J: Any, claim: Any) -> Any:
    """(n,) the claim where J/2 + diag(claim) is proved positive semidefinite, else an even shift of J that is."""
    if claim is not None and _definite(0.5 * J, claim + _lift(claim)):
        return claim + 2 * _lift(claim)
    dominant = 0.5 * np.abs(J).sum(axis=1) * (1 + len(J) * _EPS)
    if len(J) > _LARGEST_EIGEN:
        return dominant
    least = max(0.0, -float(np.linalg.eigvalsh(J)[0]) / 2)
    for slack in (1e-14, 1e-12, 1e-10):
        even = np.full(len(J), least + slack * float(np.abs(J).sum(axis=1).max()))
        if _definite(0.5 * J, even):
            return even + _lift(even)
    return dominant


def tightest(J: Any, a: Any, k: int, valid: Any, stop: Callable[[], bool], warm: Tight | None = None) -> Tight | None:
    """The tightest diagonal for k of n units, 0 < k < n, from a `valid` one; None where it is stopped or not proved."""
    n = len(a)
    ridge = 4.0 * float(np.abs(J).sum(axis=1).max()) / n
    fixed = 0.5 * J + ridge
    # a little above a semidefinite diagonal is definite
    d = valid + 1e-3 * max(float(np.abs(valid).mean()), 1e-300)
    y = np.full(n, k / n)
    if warm is not None:
        d, y = 0.9 * warm.d + 0.1 * d, 0.8 * warm.y + 0.2 * k / n
        y += k / n - y.mean()
        y = np.full(n, k / n) if y.min() <= 0.0 or y.max() >= 1.0 else y
    if not _definite(fixed, d):
        return None
    mu = first = 0.1 * float(np.abs(d) @ (y * (1 - y))) / n
    for _ in range(_STEPS):
        if stop():
            return None
        try:
            step = _newton(fixed, J, a, d, y, mu, k)
        except np.linalg.LinAlgError:
            break
        if not np.isfinite(step).all():
            break
        length = _length(fixed, d, y, step[n : 2 * n], step[:n])
        y, d = y + length * step[:n], d + length * step[n : 2 * n]
        if length > 0.5:
            mu *= _SHRINK
        if mu < _SHARE * first or length < 1e-6:
            break
    return _proved(fixed, d, valid, ridge, y)


def _newton(fixed: Any, J: Any, a: Any, d: Any, y: Any, mu: float, k: int) -> Any:
    """(2 n + 1,) the step of y, of d and the new multiplier of the count."""
    n, at = len(a), np.arange(len(a))
    M = fixed.copy()
    M[at, at] += d
    inverse = np.linalg.inv(M)
    system = np.zeros((2 * n + 1, 2 * n + 1))
    system[:n, :n] = 2.0 * M
    system[at, at] += mu / y**2 + mu / (1 - y) ** 2
    system[at, n + at] = system[n + at, at] = 2.0 * y - 1.0
    system[n : 2 * n, n : 2 * n] = -mu * inverse * inverse
    system[:n, -1] = system[-1, :n] = 1.0
    slope = a - d + J @ y + 2.0 * d * y - mu / y + mu / (1 - y)
    curve = y * y - y + mu * np.diagonal(inverse)
    return np.linalg.solve(system, -np.concatenate([slope, curve, [y.sum() - k]]))


def _length(fixed: Any, d: Any, y: Any, change: Any, move: Any) -> float:
    """How far the step may go with y inside the box and M definite."""
    with np.errstate(divide="ignore"):
        room = np.where(move < 0, -y / np.minimum(move, -1e-300), (1 - y) / np.maximum(move, 1e-300))
    length = min(1.0, 0.9 * float(room.min()))
    while length > 1e-8 and not _definite(fixed, d + length / 0.9 * change):
        length *= 0.6
    return length


def _lift(d: Any, further: float = 0.0) -> float:
    """More than what rounding may hide from the Cholesky factorisation of that diagonal (Higham, theorem 10.3)."""
    return 4 * (len(d) + 2) * _EPS * (float(np.abs(d).sum()) + further)


def _definite(fixed: Any, d: Any) -> bool:
    M = fixed.copy()
    M[np.diag_indices(len(d))] += d
    try:
        np.linalg.cholesky(M)
    except np.linalg.LinAlgError:
        return False
    return True


def _proved(fixed: Any, d: Any, valid: Any, ridge: float, y: Any) -> Tight | None:
    """The diagonal, or a mixture with the valid one, lifted until it is proved."""
    n = len(d)
    for share in (0.0, 1e-3, 0.1):
        mixed = (1 - share) * d + share * valid
        lift = _lift(mixed, n * ridge)
        if _definite(fixed, mixed + lift):
            return Tight(mixed + 2 * lift, ridge, y)
    return None
