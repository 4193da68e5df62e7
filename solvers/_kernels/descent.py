"""Best-improvement descent: the best feasible add, drop or swap until none improves."""

from __future__ import annotations

import numpy as np
from numba import njit

from .borrow import borrow
from .couplings import entry, reach, rebuild, shift
from .limits import can_flip, can_swap, move, recount


@njit(cache=True, nogil=True)
def descend_steps(c, a, limits, state, top, fresh, least, steps):
    """At most `steps` best moves, each better than the rounding `least` (1,); returns how many were made."""
    c, a, limits, state, top = borrow((c, a, limits, state, top))
    if fresh:
        recount(limits, state)
        rebuild(c, a, state.f, state.x)
        reach(c, top)
        least[0] = _rounding(c, a, state)
    for made in range(steps):
        i, j = _best_move(c, limits, state, top, -least[0])
        if i < 0:
            return made
        for unit in (i, j):
            if unit >= 0:
                shift(c, state.f, unit, -1.0 if state.x[unit] else 1.0)
                move(limits, state, unit)
    return steps


@njit
def _rounding(c, a, state):
    """The change of the value below which all is rounding."""
    size = 0.0
    for i in range(state.x.size):
        if state.x[i]:
            size += 0.5 * (abs(a[i]) + abs(state.f[i]))
    return 1e-14 * size


@njit
def _best_move(c, limits, state, top, best):
    """(i, j) to swap or (i, -1) to flip with the least change below `best`; (-1, -1) where there is none."""
    x, h = state.x, state.f
    out, into = -1, -1
    cheapest = np.inf
    for i in range(x.size):
        change = -h[i] if x[i] else h[i]
        if change < best and can_flip(limits, state, i):
            best, out = change, i
        if not x[i]:
            cheapest = min(cheapest, h[i])
    for i in range(x.size):
        if not x[i] or cheapest - h[i] - top[i] >= best:
            continue
        for j in range(x.size):
            if x[j] or h[j] - h[i] - top[i] >= best:
                continue
            change = h[j] - h[i] - entry(c, i, j)
            if change < best and can_swap(limits, state, i, j):
                best, out, into = change, i, j
    return out, into
