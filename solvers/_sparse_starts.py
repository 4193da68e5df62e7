r"""Cheap selections of single weights, by which searches begin and are measured.

magnitude    |w_ij|
wanda        |w_ij| sqrt(H_jj)        H_jj of row i: the root mean square of input j, and of its gradient
"""

from __future__ import annotations

import numpy as np

from prunesolve.problems import SparseRegression
from prunesolve.problems._arrays import Bits, Floats

SCORES = ("magnitude", "wanda")


def scores(problem: SparseRegression, score: str) -> Floats:
    """(o, d) what each weight is worth by itself."""
    weights = problem.dense_weights if problem.start_weights is None else problem.start_weights
    return np.asarray(np.abs(weights) * (1.0 if score == "magnitude" else np.sqrt(problem.diagonals)))


def magnitude(problem: SparseRegression) -> Bits:
    """(o d,) the largest weights that the pattern allows, of `start_weights` or the dense least squares.

    Examples
    --------
    >>> from prunesolve.problems import Keep
    >>> magnitude(SparseRegression([[4.0, 0.0], [0.0, 0.25]], [[4.0], [0.5]], Keep(1))).tolist()
    [False, True]
    """
    return problem.pattern.best(scores(problem, "magnitude")).ravel()


def wanda(problem: SparseRegression) -> Bits:
    """(o d,) the same, each weight times the size of its input.

    References
    ----------
    M. Sun, Z. Liu, A. Bair, J. Z. Kolter, A simple and effective pruning approach for large language models, ICLR 2024.

    Examples
    --------
    >>> from prunesolve.problems import Keep
    >>> wanda(SparseRegression([[4.0, 0.0], [0.0, 0.25]], [[4.0], [0.5]], Keep(1))).tolist()
    [True, False]
    """
    return problem.pattern.best(scores(problem, "wanda")).ravel()
