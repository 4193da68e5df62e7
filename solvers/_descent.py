"""Exact descent: the best feasible add, drop or swap until none improves; a polish for any solver's answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, InvalidProblem

from . import _kernels


def _never() -> bool:
    return False


def prepare(problem: BinaryQuadratic) -> None:
    """Load or compile what `descend` needs for this kind of couplings."""
    with _kernels.telling(f"{_kernels.kind(problem)} descent"):
        descend(_kernels.tiny(problem), np.array([True, False]))


def descend(problem: BinaryQuadratic, x: Any, should_stop: Callable[[], bool] = _never) -> Any:
    r"""A selection that no single feasible add, drop or swap improves.

    With local fields h = a + J x the changes are  h_i (add),  -h_i (drop),  h_j - h_i - J_ij (swap i for j).

    Parameters
    ----------
    problem : BinaryQuadratic
        What to minimise.
    x : (n,) bool
        A feasible selection; it is not changed.
    should_stop : callable
        Asked every few milliseconds; the selection reached by then is returned.

    Returns
    -------
    (n,) bool
        Feasible, and never worse than x.

    Raises
    ------
    InvalidProblem
        If x is not feasible.

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0], constraints=[Cardinality(1)])
    >>> descend(problem, [True, False, False])
    array([False, False,  True])
    """
    kept = np.array(x, dtype=bool)
    if not problem.is_feasible(kept):
        raise InvalidProblem(
            f"descend: expected a feasible selection ({problem.n},), got one of violation {problem.violation(kept)}"
        )
    kernel = _kernels.load("descent").descend_steps
    seen = _kernels.view(problem)
    state, top, least = _kernels.state(seen, kept), np.zeros(problem.n), np.zeros(1)
    pace, fresh = _kernels.Pace(work=1), True
    while not should_stop():
        began = time.perf_counter()
        made = kernel(*seen, state, top, fresh, least, pace.work)
        if made == 0 and fresh:
            break
        # the end counts only with fields from scratch: a giant that has left takes the digits of all others along
        fresh = made < pace.work
        pace.learn(time.perf_counter() - began, math.inf)
    return state.x
