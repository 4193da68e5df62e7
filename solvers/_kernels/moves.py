"""Moves and chance, shared by the searches: (i, j) swaps kept i for dropped j, (i, -1) flips i, (-1, -1) is no move."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .couplings import exchange, field, reach, rebuild, shift
from .limits import can_flip, can_swap, move, recount, respend

FLIPS, SWAPS, BOTH = 0, 1, 2
_GIANT = 1e6  # times the size of the value
REBUILD_AFTER = 200  # moves per unit: rebuilding then costs under a percent

# places in Walk.real
VALUE, BEST, HEAT, COOLING, SIZE, LEAST, WIDE = range(7)
# places in Walk.whole
STEP, SWEEP, SWEEPS, DRIFT = range(4)


class Walk(NamedTuple):
    """Everything a search carries from one call to the next, so that the length of a call changes nothing."""

    best: Any  # (n,) bool
    top: Any  # (n,) see couplings.reach
    until: Any  # (n,) int64 iteration up to which a unit is tabu
    price: Any  # (b,) what a unit of each budget is worth while moves are compared, never in the value
    real: Any  # float64 scalars
    whole: Any  # int64 scalars
    chance: Any  # (1,) uint64
    changes: Any  # (p,) the last absolute changes at infinite heat


@njit(inline="always")
def draw(chance):
    """64 random bits (splitmix64; Steele, Lea and Flood 2014)."""
    chance[0] += np.uint64(0x9E3779B97F4A7C15)
    z = chance[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(inline="always")
def below(chance, m):
    """A random integer in 0 to m - 1, m < 2^32."""
    return np.int64(((draw(chance) >> np.uint64(32)) * np.uint64(m)) >> np.uint64(32))


@njit(inline="always")
def uniform(chance):
    """A random number in [0, 1)."""
    return np.float64(draw(chance) >> np.uint64(11)) * 2.0**-53


@njit(inline="always")
def propose(limits, state, chance, moves):
    """A random move, allowed or not."""
    if moves == FLIPS or (moves == BOTH and draw(chance) >> np.uint64(63)):
        return below(chance, state.x.size), -1
    kept = state.count[0]
    if kept == 0 or kept == state.x.size:
        return -1, -1
    i = np.int64(state.order[0, below(chance, kept)])
    p = 0
    if limits.part.shape[0] > 1:
        p = _partition(limits, state, chance, i)
    g = limits.part[p, i]
    dropped = limits.size[g] - state.count[g]
    if dropped == 0:
        return -1, -1
    return i, np.int64(state.order[p, limits.start[g] + state.count[g] + below(chance, dropped)])


@njit
def _partition(limits, state, chance, i):
    """The partition in which i and its successor share a part: the narrowest that cannot spare i, else any."""
    chosen, narrowest = -1, limits.part.shape[1] + 1
    for p in range(limits.part.shape[0]):
        g = limits.part[p, i]
        if state.count[g] <= limits.low[g] and limits.size[g] < narrowest:
            chosen, narrowest = p, limits.size[g]
    if chosen > 0:
        return chosen
    return below(chance, limits.part.shape[0])


@njit
def bill(limits, state, walk, i):
    """What x_i = 1 costs at the prices of the budgets."""
    total = 0.0
    for b in range(limits.limit.size):
        total += walk.price[b] * (limits.cost[b, i] + state.load[b, i])
    return total


@njit(inline="always")
def allowed(limits, state, i, j):
    """Whether the move keeps every constraint."""
    if j < 0:
        return can_flip(limits, state, i)
    return can_swap(limits, state, i, j)


@njit(inline="always")
def make(c, limits, state, i, j):
    """Make the move; returns the numbers touched."""
    touched = shift(c, state.f, i, -1.0 if state.x[i] else 1.0) if j < 0 else exchange(c, state.f, i, j)
    move(limits, state, i)
    if j >= 0:
        move(limits, state, j)
    return touched


@njit
def keep_best(state, walk):
    """Remember x as the best so far."""
    for i in range(state.x.size):
        walk.best[i] = state.x[i]
    walk.real[BEST] = walk.real[VALUE]


@njit
def begin(c, a, limits, state, walk):
    """Counts, fields and value from x; the best known value is never raised."""
    recount(limits, state)
    if walk.top[0] < 0.0:
        reach(c, walk.top)
    refresh(c, a, limits, state, walk)
    walk.real[BEST] = min(walk.real[BEST], walk.real[VALUE])
    walk.whole[SWEEP] = 0


@njit
def refresh(c, a, limits, state, walk):
    """Fields, spending and value from scratch, and below which change all is rounding."""
    walk.whole[DRIFT] = 0
    rebuild(c, a, state.f, state.x)
    respend(limits, state)
    total, size = 0.0, 0.0
    for i in range(state.x.size):
        if state.x[i]:
            h = field(c, a, state.f, state.x, i)
            total += 0.5 * (a[i] + h)
            size += 0.5 * (abs(a[i]) + abs(h))
    walk.real[VALUE], walk.real[SIZE], walk.real[LEAST] = total, size, 1e-14 * size
    walk.real[WIDE] = 1.0 if np.max(walk.top) > _GIANT * size else 0.0


@njit(forceinline=True)
def stale(state, walk, change):
    """Whether fields and value are due from scratch: many moves have gathered rounding, or one took a giant along.

    Where a coupling is a giant, any move may add it to a field and take it away again, with the digits of all others.
    """
    gathered = walk.whole[DRIFT] > REBUILD_AFTER * state.x.size
    return gathered or walk.real[WIDE] > 0.0 or change < -0.25 * walk.real[SIZE]
