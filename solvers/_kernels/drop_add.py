"""Tabu search and greedy construction where a cardinality and loose group bounds hold, or no constraint at all.

The units are cut into chunks that fit the nearest cache. Each chunk remembers its largest field among the units that
may leave and its least among those that may enter; a move updates the fields of the chunks its rows touch and finds
their new extremes in the same pass, all other chunks keep theirs. A group at a bound is shut: its units move only
within it, and one such group is looked at in every step. `tabu` does the same search under any constraints.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .borrow import borrow
from .couplings import entry, origin, row, tidy, touched
from .extremes import exchanged, extremes, least_after, shifted
from .limits import can_swap, move
from .moves import BEST, DRIFT, FLIPS, LEAST, STEP, SWEEP, SWEEPS, VALUE, begin, below, draw, keep_best, refresh, stale
from .tabu import forbid, shake

_LOWER = np.uint64(0xFFFFFFFF)


class Scan(NamedTuple):
    """What is known of each chunk, and which units may move."""

    cut: Any  # (m + 1,) int64 where the chunks begin and end
    chunk_of: Any  # (n,) int32
    leave: Any  # (n,) 0 where a kept unit may leave, -inf elsewhere
    enter: Any  # (n,) 0 where a dropped unit may enter, inf elsewhere
    most: Any  # (m,) largest field + leave
    least: Any  # (m,) least field + enter
    tried: Any  # (m,) least field + enter after one unit has left
    held: Any  # (n,) int32 the units that are tabu, the first `count[0]` of them
    count: Any  # (2,) int64 units held, chunks stale
    stale: Any  # (m,) bool whose bars have changed since they were scanned
    shut: Any  # (2, g) bool groups that nothing may leave, that nothing may enter
    tight: Any  # (g,) int32 the groups shut either way, the first `tight[-1]` of them
    listed: Any  # (2, m) int32 chunks that a row touches
    scratch: Any  # (2, n) a row that is not stored as one


@njit(cache=True, nogil=True)
def search(c, a, limits, state, walk, scan, moves, tenure, strength, most):
    """At most `most` steps, while SWEEP (steps since the last improvement) is below SWEEPS; returns the steps made.

    A positive `strength` begins with that many random moves from the best selection.
    """
    c, a, limits, state, walk, scan = borrow((c, a, limits, state, walk, scan))
    real, whole = walk.real, walk.whole
    if whole[SWEEP] < 0:
        begin(c, a, limits, state, walk)
    if strength > 0:
        shake(c, a, limits, state, walk, moves, strength)
    for g in range(1, limits.low.size):
        _gauge(limits, state, scan, g)
    _survey(limits, state, walk, scan)
    done = 0
    while done < most and whole[SWEEP] < whole[SWEEPS]:
        done += 1
        whole[STEP] += 1
        whole[SWEEP] += 1
        aspired = real[BEST] - real[LEAST] - real[VALUE]
        if moves == FLIPS:
            change, i = _best_flip(state, walk, scan, aspired)
            j = -1
        else:
            change, i, j = _best_swap(c, limits, state, walk, scan, aspired)
        if i >= 0:
            if change >= 0.0 and real[VALUE] < real[BEST] - real[LEAST]:
                keep_best(state, walk)
                whole[SWEEP] = 0
            real[VALUE] += change
            _make(c, limits, state, walk, scan, tenure, i, j)
            whole[DRIFT] += 1
            if stale(state, walk, change):
                refresh(c, a, limits, state, walk)
                _survey(limits, state, walk, scan)
        else:
            _release(limits, state, walk, scan)
            _mend(state, scan)
    if whole[SWEEP] == whole[SWEEPS] and real[VALUE] < real[BEST] - real[LEAST]:
        keep_best(state, walk)
    return done


@njit(cache=True, nogil=True)
def construct(c, a, limits, state, walk, scan, adds, wanted, most):
    """Greedy additions, or removals, until `wanted` units are kept, or until none pays where that is negative.

    Exact in the counts of one partition: what its bounds still ask for is never used up. At most `most` moves; returns
    how many were made.
    """
    c, a, limits, state, walk, scan = borrow((c, a, limits, state, walk, scan))
    if walk.whole[SWEEP] < 0:
        begin(c, a, limits, state, walk)
    _reserve(limits, state, scan, adds, wanted)
    _survey(limits, state, walk, scan)
    done = 0
    while done < most and state.count[0] != wanted:
        if adds:
            i = _first(state.f, scan.enter, scan.least, scan, 1.0)
        else:
            i = _first(state.f, scan.leave, scan.most, scan, -1.0)
        if i < 0 or (wanted < 0 and (state.f[i] >= 0.0 if adds else state.f[i] <= 0.0)):
            break
        move(limits, state, i)
        _settle(limits, state, walk, scan, i)
        _flip(c, state, scan, i, 1.0 if adds else -1.0)
        if _reserve(limits, state, scan, adds, wanted):
            _survey(limits, state, walk, scan)
        done += 1
    if done < most:
        refresh(c, a, limits, state, walk)
    return done


@njit
def _reserve(limits, state, scan, adds, wanted):
    """Shut the groups that must not be added to, or removed from, for the sake of the others; whether any changed."""
    owed, changed = 0, False
    for g in range(1, limits.low.size):
        owed += max(limits.low[g] - state.count[g], 0) if adds else max(state.count[g] - limits.high[g], 0)
    spare = abs(wanted - state.count[0]) > owed or wanted < 0
    for g in range(1, limits.low.size):
        if adds:
            shut = state.count[g] >= (limits.high[g] if spare else limits.low[g])
        else:
            shut = state.count[g] <= (limits.low[g] if spare else limits.high[g])
        side = 1 if adds else 0
        changed = changed or shut != scan.shut[side, g]
        scan.shut[side, g] = shut
    return changed


# --- what may move -------------------------------------------------------------------------------------------------


@njit
def _survey(limits, state, walk, scan):
    """Bars, tabu units and extremes from the fields."""
    scan.count[0] = 0
    for i in range(state.x.size):
        if walk.until[i] > walk.whole[STEP]:
            scan.held[scan.count[0]] = i
            scan.count[0] += 1
        _settle(limits, state, walk, scan, i)
    scan.stale[:] = True
    scan.count[1] = 1
    _mend(state, scan)


@njit(forceinline=True)
def _open(limits, scan, side, i):
    """Whether no group of the unit is shut on that side."""
    free = True
    for p in range(1, limits.part.shape[0]):
        free = free and not scan.shut[side, limits.part[p, i]]
    return free


@njit(forceinline=True)
def _settle(limits, state, walk, scan, i):
    """Bars of one unit for the next step."""
    free = walk.until[i] <= walk.whole[STEP]
    scan.leave[i] = 0.0 if free and state.x[i] and _open(limits, scan, 0, i) else -np.inf
    scan.enter[i] = 0.0 if free and not state.x[i] and _open(limits, scan, 1, i) else np.inf
    scan.stale[scan.chunk_of[i]] = True
    scan.count[1] += 1


@njit(forceinline=True)
def _release(limits, state, walk, scan):
    """Let go of the units whose time is over at the next step."""
    at = 0
    while at < scan.count[0]:
        i = scan.held[at]
        if walk.until[i] > walk.whole[STEP]:
            at += 1
            continue
        scan.count[0] -= 1
        scan.held[at] = scan.held[scan.count[0]]
        _settle(limits, state, walk, scan, i)


@njit(forceinline=True)
def _hold(limits, state, walk, scan, tenure, i):
    held = walk.until[i] >= walk.whole[STEP]
    forbid(state, walk, tenure, i)
    if not held and walk.until[i] > walk.whole[STEP]:
        scan.held[scan.count[0]] = i
        scan.count[0] += 1
    _settle(limits, state, walk, scan, i)


@njit
def _gauge(limits, state, scan, g):
    """Shut or open a group by its count; whether that changed anything."""
    none_leaves, none_enters = state.count[g] <= limits.low[g], state.count[g] >= limits.high[g]
    if none_leaves == scan.shut[0, g] and none_enters == scan.shut[1, g]:
        return False
    scan.shut[0, g], scan.shut[1, g] = none_leaves, none_enters
    scan.tight[-1] = 0
    for other in range(1, limits.low.size):
        # a swap needs a unit on either side
        if (scan.shut[0, other] or scan.shut[1, other]) and 0 < state.count[other] < limits.size[other]:
            scan.tight[scan.tight[-1]] = other
            scan.tight[-1] += 1
    return True


@njit(forceinline=True)
def _regauge(limits, state, walk, scan, i):
    """Bars of all units whose groups a move of unit i has shut or opened."""
    for p in range(1, limits.part.shape[0]):
        g = limits.part[p, i]
        if _gauge(limits, state, scan, g):
            for at in range(limits.start[g], limits.start[g] + limits.size[g]):
                _settle(limits, state, walk, scan, state.order[p, at])


# --- extremes of a chunk -------------------------------------------------------------------------------------------


@njit(forceinline=True)
def _mend(state, scan):
    """Extremes of the chunks whose bars have changed."""
    if scan.count[1] == 0:
        return
    scan.count[1] = 0
    for q in range(scan.stale.size):
        if scan.stale[q]:
            first, last = scan.cut[q], scan.cut[q + 1]
            scan.most[q], scan.least[q] = extremes(state.f[first:last], scan.leave[first:last], scan.enter[first:last])
            scan.stale[q] = False


@njit(forceinline=True)
def _add_row(f, span, first, s, scan, q):
    low, high = scan.cut[q], scan.cut[q + 1]
    scan.most[q], scan.least[q] = shifted(
        f[low:high], span[low - first : high - first], s, scan.leave[low:high], scan.enter[low:high]
    )
    scan.stale[q] = False


# --- choosing ------------------------------------------------------------------------------------------------------


@njit(forceinline=True)
def _scaled(half, m):
    """A number in 0 to m - 1 from 32 random bits."""
    return np.int64((half * np.uint64(m)) >> np.uint64(32))


@njit(forceinline=True)
def _chunk_of_least(values, sign, start):
    """The first chunk from `start` on, in a circle, with the least sign * value; -1 where all are infinite."""
    best, at = np.inf, -1
    for s in range(values.size):
        q = start + s
        if q >= values.size:
            q -= values.size
        if sign * values[q] < best:
            best, at = sign * values[q], q
    return at


@njit(forceinline=True)
def _unit_at(f, bar, value, low, high, start):
    """The first unit of a chunk from `start` on, in a circle, whose field + bar is `value`."""
    for t in range(low + start, high):
        if f[t] + bar[t] == value:
            return t
    for t in range(low, low + start):
        if f[t] + bar[t] == value:
            return t
    return -1


@njit(forceinline=True)
def _pick(f, bar, extremes, scan, sign, chance):
    """The unit of least sign * (field + bar), ties by chance; -1 where none may move."""
    bits = draw(chance)
    at = _chunk_of_least(
        extremes, sign, np.int64(((bits >> np.uint64(32)) * np.uint64(extremes.size)) >> np.uint64(32))
    )
    if at < 0:
        return -1
    low, high = scan.cut[at], scan.cut[at + 1]
    return _unit_at(f, bar, extremes[at], low, high, _scaled(bits & _LOWER, high - low))


@njit(forceinline=True)
def _first(f, bar, extremes, scan, sign):
    """The same with ties by index."""
    at = _chunk_of_least(extremes, sign, 0)
    return _unit_at(f, bar, extremes[at], scan.cut[at], scan.cut[at + 1], 0) if at >= 0 else -1


@njit(forceinline=True)
def _best_flip(state, walk, scan, aspired):
    """(change, i) of the best flip that is not tabu or leads below the best value."""
    f, x = state.f, state.x
    out = _pick(f, scan.leave, scan.most, scan, -1.0, walk.chance)
    into = _pick(f, scan.enter, scan.least, scan, 1.0, walk.chance)
    change, i = np.inf, -1
    if out >= 0:
        change, i = -f[out], out
    if into >= 0 and (f[into] < change or (f[into] == change and draw(walk.chance) >> np.uint64(63))):
        change, i = f[into], into
    for at in range(scan.count[0]):
        u = scan.held[at]
        asks = -f[u] if x[u] else f[u]
        if asks < aspired and asks < change:
            change, i = asks, u
    return change, i


@njit(forceinline=True)
def _best_swap(c, limits, state, walk, scan, aspired):
    """(change, i, j): the kept unit of largest field, then what follows it best; tabu ones if that leads to a best.

    Row i is left in scratch.
    """
    f, x = state.f, state.x
    i = _pick(f, scan.leave, scan.most, scan, -1.0, walk.chance)
    largest = f[i] if i >= 0 else -np.inf
    cheapest = np.inf
    for q in range(scan.least.size):
        cheapest = min(cheapest, scan.least[q])
    for at in range(scan.count[0]):
        u = scan.held[at]
        if x[u] and f[u] > largest and cheapest - f[u] < aspired and _open(limits, scan, 0, u):
            largest, i = f[u], u
    change, j = np.inf, -1
    if i >= 0:
        j = _best_entrant(c, state, walk, scan, i)
        follows = f[j] - entry(c, i, j) if j >= 0 else np.inf
        for at in range(scan.count[0]):
            u = scan.held[at]
            if not x[u] and f[u] - largest < aspired + walk.top[i] and _open(limits, scan, 1, u):
                asks = f[u] - entry(c, i, u)
                if asks < follows and asks - largest < aspired:
                    follows, j = asks, u
        change = follows - largest
    if scan.tight[-1] > 0:
        inside, out, into = _swap_inside(c, limits, state, walk, scan)
        if inside < change:
            if i >= 0:
                tidy(c, i, scan.scratch[0])
            row(c, out, scan.scratch[0], True)
            return inside, out, into
    if j < 0:
        if i >= 0:
            tidy(c, i, scan.scratch[0])
        return np.inf, -1, -1
    return change, i, j


@njit
def _swap_inside(c, limits, state, walk, scan):
    """(change, i, j) of a good swap within one of the shut groups, chosen by chance."""
    f, step = state.f, walk.whole[STEP]
    g = np.int64(scan.tight[below(walk.chance, scan.tight[-1])])
    p = 1
    while limits.part[p, state.order[p, limits.start[g]]] != g:
        p += 1
    first, middle, last = limits.start[g], limits.start[g] + state.count[g], limits.start[g] + limits.size[g]
    out, into, change = -1, -1, np.inf
    for at in range(first, middle):
        i = state.order[p, at]
        if walk.until[i] < step and (out < 0 or f[i] > f[out]):
            out = i
    if out < 0:
        return np.inf, -1, -1
    for at in range(middle, last):
        j = state.order[p, at]
        if walk.until[j] < step and f[j] - f[out] - walk.top[out] < change:
            asks = f[j] - f[out] - entry(c, out, j)
            if asks < change and can_swap(limits, state, out, j):
                change, into = asks, j
    return change, out, into


@njit(forceinline=True)
def _best_entrant(c, state, walk, scan, i):
    """The unit of least field after i has left, ties by chance; -1 where none may enter."""
    f, tried = state.f, scan.tried
    span, first = row(c, i, scan.scratch[0], True), origin(c, i)
    count = touched(c, i, scan.chunk_of, scan.listed[0])
    for q in range(tried.size):
        tried[q] = scan.least[q]
    for at in range(count):
        q = scan.listed[0, at]
        low, high = scan.cut[q], scan.cut[q + 1]
        tried[q] = least_after(f[low:high], span[low - first : high - first], scan.enter[low:high])
    bits = draw(walk.chance)
    q = _chunk_of_least(tried, 1.0, _scaled(bits >> np.uint64(32), tried.size))
    if q < 0:
        return -1
    low, high = scan.cut[q], scan.cut[q + 1]
    start = _scaled(bits & _LOWER, high - low)
    within = False
    for at in range(count):
        within = within or scan.listed[0, at] == q
    if not within:
        return _unit_at(f, scan.enter, tried[q], low, high, start)
    for s in range(high - low):
        t = low + start + s
        if t >= high:
            t -= high - low
        if f[t] - span[t - first] + scan.enter[t] == tried[q]:
            return t
    return -1


@njit(forceinline=True)
def _make(c, limits, state, walk, scan, tenure, i, j):
    """Make the move, hold what moved, release what may move again, and bring fields and extremes up to date."""
    s = -1.0 if state.x[i] else 1.0
    move(limits, state, i)
    _hold(limits, state, walk, scan, tenure, i)
    if j >= 0:
        move(limits, state, j)
        _hold(limits, state, walk, scan, tenure, j)
        _regauge(limits, state, walk, scan, j)
    _regauge(limits, state, walk, scan, i)
    _release(limits, state, walk, scan)
    if j < 0:
        _flip(c, state, scan, i, s)
    else:
        _swap(c, state, scan, i, j)


@njit(forceinline=True)
def _flip(c, state, scan, i, s):
    span, first = row(c, i, scan.scratch[0], True), origin(c, i)
    for at in range(touched(c, i, scan.chunk_of, scan.listed[0])):
        _add_row(state.f, span, first, s, scan, scan.listed[0, at])
    tidy(c, i, scan.scratch[0])
    _mend(state, scan)


@njit(forceinline=True)
def _swap(c, state, scan, i, j):
    """Fields and extremes after the swap; row i is still where `_best_swap` left it."""
    f = state.f
    leaver, first = row(c, i, scan.scratch[0], False), origin(c, i)
    leaves = touched(c, i, scan.chunk_of, scan.listed[0])
    entrant, second = row(c, j, scan.scratch[1], True), origin(c, j)
    enters = touched(c, j, scan.chunk_of, scan.listed[1])
    if _same(scan.listed, leaves, enters):
        for at in range(leaves):
            q = scan.listed[0, at]
            low, high = scan.cut[q], scan.cut[q + 1]
            scan.most[q], scan.least[q] = exchanged(
                f[low:high],
                leaver[low - first : high - first],
                entrant[low - second : high - second],
                scan.leave[low:high],
                scan.enter[low:high],
            )
            scan.stale[q] = False
    else:
        for at in range(leaves):
            _add_row(f, leaver, first, -1.0, scan, scan.listed[0, at])
        for at in range(enters):
            _add_row(f, entrant, second, 1.0, scan, scan.listed[1, at])
    tidy(c, i, scan.scratch[0])
    tidy(c, j, scan.scratch[1])
    _mend(state, scan)


@njit(forceinline=True)
def _same(listed, ones, others):
    """Whether two rows touch the same chunks."""
    alike = ones == others
    for at in range(ones):
        alike = alike and listed[0, at] == listed[1, at]
    return alike
