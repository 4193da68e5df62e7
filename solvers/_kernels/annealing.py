"""Metropolis annealing over feasible selections, resumable after any proposal."""

from __future__ import annotations

import numpy as np
from numba import njit

from .borrow import borrow
from .couplings import entry, field
from .moves import (
    BEST,
    COOLING,
    DRIFT,
    HEAT,
    LEAST,
    STEP,
    SWEEP,
    SWEEPS,
    VALUE,
    allowed,
    begin,
    bill,
    keep_best,
    make,
    propose,
    refresh,
    stale,
    uniform,
)


@njit(cache=True, nogil=True)
def anneal(c, a, limits, state, walk, moves, most, work):
    """At most `most` proposals and about `work` of work; returns the proposals made. Heat inf accepts everything."""
    c, a, limits, state, walk = borrow((c, a, limits, state, walk))
    real, whole = walk.real, walk.whole
    if whole[SWEEP] < 0:
        begin(c, a, limits, state, walk)
        whole[STEP] = 0
    n, done = state.x.size, 0
    while done < most and work > 0 and whole[SWEEP] < whole[SWEEPS]:
        done += 1
        work -= 1
        i, j = propose(limits, state, walk.chance, moves)
        if i >= 0:
            change = _accepted(c, a, limits, state, walk, i, j)
            if change < np.inf:
                if change >= 0.0 and real[VALUE] < real[BEST] - real[LEAST]:
                    keep_best(state, walk)
                real[VALUE] += change
                work -= make(c, limits, state, i, j) >> 3
                whole[DRIFT] += 1
                if stale(state, walk, change):
                    refresh(c, a, limits, state, walk)
        whole[STEP] += 1
        if whole[STEP] == n:
            _end_sweep(walk)
    if whole[SWEEP] == whole[SWEEPS] and real[VALUE] < real[BEST] - real[LEAST]:
        keep_best(state, walk)
    return done


@njit(inline="always")
def _accepted(c, a, limits, state, walk, i, j):
    """The change of the value where the move is allowed and Metropolis takes it, inf otherwise."""
    heat = walk.real[HEAT]
    change, dearer = field(c, a, state.f, state.x, i), bill(limits, state, walk, i)
    if j < 0:
        if state.x[i]:
            change, dearer = -change, -dearer
    else:
        change = field(c, a, state.f, state.x, j) - change
        dearer = bill(limits, state, walk, j) - dearer
        # a swap this bad is refused whatever J_ij is: no need to fetch it from memory
        if change + dearer - walk.top[i] > 40.0 * heat:
            return np.inf
        change -= entry(c, i, j)
    uphill = change + dearer
    if uphill > 0.0 and heat < np.inf and (uphill > 40.0 * heat or uniform(walk.chance) >= np.exp(-uphill / heat)):
        return np.inf
    if not allowed(limits, state, i, j):
        return np.inf
    if heat == np.inf:
        walk.changes[walk.whole[DRIFT] % walk.changes.size] = abs(change)
    return change


@njit
def _end_sweep(walk):
    walk.whole[STEP] = 0
    walk.whole[SWEEP] += 1
    walk.real[HEAT] *= walk.real[COOLING]
