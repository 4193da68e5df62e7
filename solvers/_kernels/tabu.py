"""Tabu search over feasible selections: the best allowed flip or drop-add swap at every step."""

from __future__ import annotations

import numpy as np
from numba import njit

from .borrow import borrow
from .couplings import entry
from .limits import can_flip, can_swap
from .moves import (
    BEST,
    DRIFT,
    FLIPS,
    LEAST,
    STEP,
    SWAPS,
    SWEEP,
    SWEEPS,
    VALUE,
    allowed,
    begin,
    below,
    bill,
    keep_best,
    make,
    propose,
    refresh,
    stale,
)


@njit(cache=True, nogil=True)
def search(c, a, limits, state, walk, cheapest, moves, tenure, strength, most):
    """At most `most` steps, while SWEEP (steps since the last improvement) is below SWEEPS; returns the steps made.

    A positive `strength` begins with that many random moves from the best selection.
    """
    c, a, limits, state, walk, cheapest = borrow((c, a, limits, state, walk, cheapest))
    real, whole = walk.real, walk.whole
    if whole[SWEEP] < 0:
        begin(c, a, limits, state, walk)
    if strength > 0:
        shake(c, a, limits, state, walk, moves, strength)
    done = 0
    while done < most and whole[SWEEP] < whole[SWEEPS]:
        done += 1
        whole[STEP] += 1
        whole[SWEEP] += 1
        change, i, j = _best_move(c, limits, state, walk, cheapest, moves)
        if i < 0:
            continue
        if change >= 0.0 and real[VALUE] < real[BEST] - real[LEAST]:
            keep_best(state, walk)
            whole[SWEEP] = 0
        real[VALUE] += change
        make(c, limits, state, i, j)
        whole[DRIFT] += 1
        forbid(state, walk, tenure, i)
        if j >= 0:
            forbid(state, walk, tenure, j)
        if stale(state, walk, change):
            refresh(c, a, limits, state, walk)
    if whole[SWEEP] == whole[SWEEPS] and real[VALUE] < real[BEST] - real[LEAST]:
        keep_best(state, walk)
    return done


@njit(forceinline=True)
def forbid(state, walk, tenure, i):
    """Make a unit that was just moved tabu: what was added may leave earlier than what was dropped may come back."""
    span = tenure[0] if state.x[i] else tenure[1]
    walk.until[i] = walk.whole[STEP] + span + below(walk.chance, 1 + span // 2)


@njit
def shake(c, a, limits, state, walk, moves, strength):
    """`strength` random moves from the best selection so far; nothing is tabu afterwards."""
    for i in range(state.x.size):
        state.x[i] = walk.best[i]
        walk.until[i] = 0
    begin(c, a, limits, state, walk)
    # where a budget is full most proposals are not allowed
    for _ in range(20 * strength):
        i, j = propose(limits, state, walk.chance, moves)
        if i >= 0 and allowed(limits, state, i, j):
            make(c, limits, state, i, j)
            strength -= 1
            if strength == 0:
                break
    refresh(c, a, limits, state, walk)


@njit
def _best_move(c, limits, state, walk, cheapest, moves):
    """(change, i, j) of the best move that is not tabu or leads below the best value; i = -1 where there is none.

    Moves are compared at the prices of the budgets, so that a full budget does not freeze the search.
    """
    aspired = walk.real[BEST] - walk.real[LEAST] - walk.real[VALUE]
    uphill, change, i, j = np.inf, np.inf, -1, -1
    if moves != SWAPS:
        uphill, change, i = _best_flip(limits, state, walk, aspired)
    if moves != FLIPS:
        leaver = _best_leaver(limits, state, walk, cheapest, aspired)
        if leaver >= 0:
            swap, enters = _best_successor(c, limits, state, walk, leaver, uphill, aspired)
            if enters >= 0:
                change, i, j = swap, leaver, enters
            else:
                # nothing may follow it now: look at another one next time
                walk.until[leaver] = max(walk.until[leaver], walk.whole[STEP] + 1)
    return change, i, j


@njit
def _best_flip(limits, state, walk, aspired):
    """(change at prices, change, i) of the best flip."""
    x, h, until, step = state.x, state.f, walk.until, walk.whole[STEP]
    best, best_change, chosen, ties = np.inf, np.inf, -1, 1
    for i in range(x.size):
        change, uphill = h[i], h[i] + bill(limits, state, walk, i)
        if x[i]:
            change, uphill = -change, -uphill
        if uphill > best or (until[i] >= step and change >= aspired) or not can_flip(limits, state, i):
            continue
        ties = ties + 1 if uphill == best else 1
        if ties == 1 or below(walk.chance, ties) == 0:
            best, best_change, chosen = uphill, change, i
    return best, best_change, chosen


@njit
def _best_leaver(limits, state, walk, cheapest, aspired):
    """The kept unit whose field exceeds most the cheapest field that may follow it; J_ij is left to the successor."""
    x, h, until, step = state.x, state.f, walk.until, walk.whole[STEP]
    _cheapest_entrants(limits, state, walk, cheapest)
    best, chosen, ties = np.inf, -1, 1
    for i in range(x.size):
        if not x[i]:
            continue
        follows = cheapest[0]
        for p in range(1, limits.part.shape[0]):
            g = limits.part[p, i]
            if state.count[g] <= limits.low[g]:
                follows = max(follows, cheapest[g])
        uphill = follows - h[i] - bill(limits, state, walk, i)
        if uphill > best or uphill == np.inf or (until[i] >= step and uphill >= aspired):
            continue
        ties = ties + 1 if uphill == best else 1
        if ties == 1 or below(walk.chance, ties) == 0:
            best, chosen = uphill, i
    return chosen


@njit
def _cheapest_entrants(limits, state, walk, cheapest):
    """The least field of a dropped unit of each part that is not tabu."""
    cheapest[:] = np.inf
    for j in range(state.x.size):
        if not state.x[j] and walk.until[j] < walk.whole[STEP]:
            asks = state.f[j] + bill(limits, state, walk, j)
            for p in range(limits.part.shape[0]):
                g = limits.part[p, j]
                cheapest[g] = min(cheapest[g], asks)


@njit
def _best_successor(c, limits, state, walk, i, best, aspired):
    """(change, j) of the best swap of i that is below `best` at prices."""
    x, h, until, step = state.x, state.f, walk.until, walk.whole[STEP]
    spared, best_change, chosen, ties = bill(limits, state, walk, i), np.inf, -1, 1
    for j in range(x.size):
        if x[j]:
            continue
        uphill = h[j] - h[i] + bill(limits, state, walk, j) - spared
        if uphill - walk.top[i] > best:
            continue
        coupling = entry(c, i, j)
        change, uphill = h[j] - h[i] - coupling, uphill - coupling
        if uphill > best or (until[j] >= step and change >= aspired) or not can_swap(limits, state, i, j):
            continue
        ties = ties + 1 if uphill == best else 1
        if ties == 1 or below(walk.chance, ties) == 0:
            best, best_change, chosen = uphill, change, j
    return best_change, chosen
