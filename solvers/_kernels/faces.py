"""The relaxation on one face of the cube, by sequential minimal optimisation, with reduced-cost fixing.

Pairs are chosen by the largest gain (Fan, Chen and Lin, JMLR 2005), so that a step costs one pass over the free units.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def relax_face(m, c, k, fixed, y, cutoff, margin, steps, rounded):
    """Bound c.y + y'My on the face `fixed` (n,) int8: 1 in, 0 out, -1 free; k ones, any number where k < 0.

    Starts at `y` (n,), leaves the point reached there and the units fixed by reduced cost in `fixed`; `rounded` (n,)
    becomes the selection of least gradient. Returns (bound, value of the rounded selection, unit to branch on or -1).
    """
    n = c.size
    free = np.flatnonzero(fixed < 0)
    missing = -1
    if k >= 0:
        missing = k
        for i in range(n):
            if fixed[i] == 1:
                missing -= 1
        if missing < 0 or missing > free.size:
            return np.inf, np.inf, -1
    for i in range(n):
        if fixed[i] >= 0:
            y[i] = fixed[i]
    g = _gradient(m, c, y)
    if missing >= 0:
        _restore(m, g, y, free, missing)
        _descend_pairs(m, c, g, y, free, cutoff, margin, steps)
    else:
        _descend_single(m, c, g, y, free, cutoff, margin, steps)
    g = _gradient(m, c, y)
    bound, keep, drop = _certificate(c, g, y, fixed, free, missing)
    bound -= margin
    value = _round(m, c, g, fixed, free, missing, keep, rounded)
    if missing == 0 or missing == free.size:
        for i in free:
            fixed[i] = 1 if missing else 0
    elif bound < cutoff:
        _fix(g, fixed, free, missing, keep, drop, bound, margin, cutoff)
    return bound, value, _most_fractional(m, y, fixed, free)


@njit
def _gradient(m, c, y):
    g = c.copy()
    for i in range(c.size):
        if y[i] != 0.0:
            double = 2.0 * y[i]
            for j in range(c.size):
                g[j] += double * m[i, j]
    return g


@njit
def _restore(m, g, y, free, missing):
    """Give the free units the right sum again, where the gradient says it is cheapest."""
    total = 0.0
    for i in free:
        total += y[i]
    lacking = missing - total
    while abs(lacking) > 1e-13 * (1.0 + missing):
        best, at = np.inf, -1
        for i in free:
            room = y[i] < 1.0 if lacking > 0.0 else y[i] > 0.0
            key = g[i] if lacking > 0.0 else -g[i]
            if room and key < best:
                best, at = key, i
        if at < 0:
            return
        step = min(lacking, 1.0 - y[at]) if lacking > 0.0 else max(lacking, -y[at])
        # a full step is stored as such: 1 - y added to y need not be 1
        reached = y[at] + step
        if lacking > 0.0 and step == 1.0 - y[at]:
            reached = 1.0
        y[at] = reached
        lacking -= step
        for j in free:
            g[j] += 2.0 * step * m[at, j]


@njit
def _value(c, g, y):
    """c.y + y'My, from g = c + 2 M y."""
    value = 0.0
    for i in range(c.size):
        value += 0.5 * (c[i] + g[i]) * y[i]
    return value


@njit
def _descend_pairs(m, c, g, y, free, cutoff, margin, steps):
    """Shift weight between the pair that gains most, until the gap is closed or the cutoff is settled."""
    value = _value(c, g, y)
    scale = 1e-9 * (1.0 + abs(value))
    for made in range(steps):
        up, least = -1, np.inf
        for i in free:
            if y[i] < 1.0 and g[i] < least:
                up, least = i, g[i]
        if up < 0:
            return
        down, gain, worst = -1, 0.0, least
        for i in free:
            slope = g[i] - least
            if y[i] > 0.0 and slope > 0.0:
                worst = max(worst, g[i])
                bend = max(m[up, up] + m[i, i] - 2.0 * m[up, i], 1e-300)
                step = min(0.5 * slope / bend, 1.0 - y[up], y[i])
                better = step * (slope - step * bend)
                if better > gain:
                    gain, down = better, i
        if down < 0 or gain <= 1e-3 * scale / free.size:
            return
        slope = g[down] - least
        bend = max(m[up, up] + m[down, down] - 2.0 * m[up, down], 1e-300)
        room = min(1.0 - y[up], y[down])
        step = min(0.5 * slope / bend, room)
        if step == y[down]:
            y[up] = min(1.0, y[up] + step)
            y[down] = 0.0
        elif step == 1.0 - y[up]:
            y[down] -= step
            y[up] = 1.0
        else:
            y[up] += step
            y[down] -= step
        value -= gain
        for j in free:
            g[j] += 2.0 * step * (m[up, j] - m[down, j])
        if made % 8 == 7:
            # any multiplier of the cardinality bounds; halfway between the two extremes is cheap and good
            multiplier = 0.5 * (least + worst)
            lost = 0.0
            for i in free:
                reduced = g[i] - multiplier
                lost += reduced * y[i] - min(0.0, reduced)
            if value - lost - margin >= cutoff or lost <= scale:
                return
            if value < cutoff < np.inf and lost < 0.01 * (cutoff - value):
                return


@njit
def _descend_single(m, c, g, y, free, cutoff, margin, steps):
    """Move the coordinate that gains most, until the gap is closed or the cutoff is settled."""
    value = _value(c, g, y)
    scale = 1e-9 * (1.0 + abs(value))
    for _ in range(steps):
        at, gain, move = -1, 0.0, 0.0
        lost = 0.0
        for i in free:
            lost += g[i] * y[i] - min(0.0, g[i])
            bend = max(m[i, i], 1e-300)
            step = min(max(-0.5 * g[i] / bend, -y[i]), 1.0 - y[i])
            better = -step * (g[i] + step * bend)
            if better > gain:
                at, gain, move = i, better, step
        if at < 0 or lost <= scale or value - lost - margin >= cutoff:
            return
        if value < cutoff < np.inf and lost < 0.01 * (cutoff - value):
            return
        if move == -y[at]:
            y[at] = 0.0
        elif move == 1.0 - y[at]:
            y[at] = 1.0
        else:
            y[at] += move
        value -= gain
        for j in free:
            g[j] += 2.0 * move * m[at, j]


@njit
def _certificate(c, g, y, fixed, free, missing):
    """(value - g.y + min g.s, the largest g taken, the least left out)."""
    bound = _value(c, g, y)
    for i in range(c.size):
        bound += g[i] * (fixed[i] - y[i]) if fixed[i] >= 0 else -g[i] * y[i]
    if missing < 0:
        for i in free:
            bound += min(0.0, g[i])
        return bound, 0.0, 0.0
    ranked = np.sort(g[free])
    bound += ranked[:missing].sum()
    keep = ranked[missing - 1] if missing > 0 else -np.inf
    drop = ranked[missing] if missing < free.size else np.inf
    return bound, keep, drop


@njit
def _round(m, c, g, fixed, free, missing, keep, rounded):
    """The selection of least gradient, and its value."""
    for i in range(c.size):
        rounded[i] = fixed[i] == 1
    left = missing
    for i in free:
        inside = g[i] < keep
        rounded[i] = inside
        left -= inside
    if missing >= 0:
        for i in free:
            if left > 0 and g[i] == keep:
                rounded[i] = True
                left -= 1
    kept = np.flatnonzero(rounded)
    value = 0.0
    for i in kept:
        value += c[i]
        for j in kept:
            value += m[i, j]
    return value


@njit
def _fix(g, fixed, free, missing, keep, drop, bound, margin, cutoff):
    """Fix what would lift the linear bound above the cutoff on its other side."""
    for i in free:
        inside = g[i] <= keep if missing >= 0 else g[i] < 0.0
        change = drop - g[i] if inside else g[i] - keep
        if bound + change - margin > cutoff:
            fixed[i] = 1 if inside else 0


@njit
def _most_fractional(m, y, fixed, free):
    best, unit = -1.0, -1
    for i in free:
        if fixed[i] < 0:
            spread = y[i] * (1.0 - y[i]) * m[i, i]
            if spread > best:
                best, unit = spread, i
    return unit


@njit(cache=True, nogil=True)
def descend_face(m, c, k, x):
    """Best flips (swaps where k >= 0) of x (n,) bool in place until none lowers c.x + x'Mx; returns the value."""
    n = c.size
    h = np.empty(n)
    for i in range(n):
        h[i] = c[i] + m[i, i]
    for i in np.flatnonzero(x):
        for j in range(n):
            if j != i:
                h[j] += 2.0 * m[i, j]
    value = 0.0
    for i in np.flatnonzero(x):
        value += 0.5 * (c[i] + m[i, i] + h[i])
    least = 1e-12 * (1.0 + abs(value))
    while True:
        best, out, into = -least, -1, -1
        for i in range(n):
            if k < 0:
                change = -h[i] if x[i] else h[i]
                if change < best:
                    best, out = change, i
            elif x[i]:
                for j in range(n):
                    if not x[j] and h[j] - h[i] - 2.0 * m[i, j] < best:
                        best, out, into = h[j] - h[i] - 2.0 * m[i, j], i, j
        if out < 0:
            return value
        value += best
        for unit in (out, into):
            if unit >= 0:
                change = -2.0 if x[unit] else 2.0
                x[unit] = not x[unit]
                for j in range(n):
                    if j != unit:
                        h[j] += change * m[unit, j]
