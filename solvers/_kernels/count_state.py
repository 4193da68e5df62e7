"""Sweeps over a tensor train whose bond is a hidden state times a running count.

`to[q, s]` is the count state that level s leads to from state q, -1 where no feasible point lies that way; the states
after i modes are first[i] to first[i + 1]. Hidden states a, b of core i carry the weight core[i, a, s, b] >= 0.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_RARE = 1e-18  # chance of a state below which it counts for nothing beside the rounding of the others


_HALVES = 0.5 ** np.arange(1100)  # 0 from where a double ends


@njit
def _power(exponent):
    """2 to a whole number; a look into a table, where exp takes most of a sweep's time."""
    k = abs(exponent)
    if k >= _HALVES.size:
        return 0.0 if exponent < 0 else np.inf
    return _HALVES[k] if exponent < 0 else 1.0 / _HALVES[k]


@njit(cache=True, nogil=True)
def backward(core, sizes, first, to, share, scale):
    """Sum over all completions from (q, a): share[q, a] 2^scale[q], the shares of a state adding up to 1/2 to 1."""
    modes, rank = len(sizes), core.shape[1]
    for q in range(first[modes], first[modes + 1]):
        share[q] = 1.0
        scale[q] = 0
    for i in range(modes - 1, -1, -1):
        for q in range(first[i], first[i + 1]):
            top, none = 0, True
            for s in range(sizes[i]):
                if to[q, s] >= 0 and (none or scale[to[q, s]] > top):
                    top, none = scale[to[q, s]], False
            total = 0.0
            share[q] = 0.0
            for s in range(sizes[i]):
                t = to[q, s]
                if t < 0:
                    continue
                factor = _power(scale[t] - top)
                for a in range(rank):
                    ahead = 0.0
                    for b in range(rank):
                        ahead += core[i, a, s, b] * share[t, b]
                    share[q, a] += factor * ahead
                    total += factor * ahead
            up = math.frexp(total)[1]
            factor = _power(-up)
            for a in range(rank):
                share[q, a] *= factor
            scale[q] = top + up


@njit(cache=True, nogil=True)
def sample(core, sizes, first, to, share, scale, uniform, out):
    """Row by row a path through hidden and count states; uniform (m, modes + 1) decides, out (m, modes) takes it."""
    rank = core.shape[1]
    for row in range(len(out)):
        left, a = uniform[row, len(sizes)] * share[0].sum(), 0
        while a < rank - 1 and left >= share[0, a]:
            left -= share[0, a]
            a += 1
        q = 0
        for i in range(len(sizes)):
            a, q, out[row, i] = _step(core[i], sizes[i], to[q], share, scale, q, a, uniform[row, i])


@njit
def _step(core, levels, to, share, scale, q, a, uniform):
    """The next hidden state, count state and level."""
    left, a_next, q_next, level = uniform, -1, -1, -1
    for s in range(levels):
        t = to[s]
        if t < 0:
            continue
        factor = _power(scale[t] - scale[q]) / share[q, a]
        for b in range(core.shape[2]):
            chance = core[a, s, b] * share[t, b] * factor
            # rounding may leave some of the uniform number over: the last way that is open takes it
            if chance > 0.0:
                a_next, q_next, level = b, t, s
                if left < chance:
                    return a_next, q_next, level
                left -= chance
    return a_next, q_next, level


@njit(cache=True, nogil=True)
def expected(core, sizes, first, to, share, scale, chance, counts):
    """How often the tensor takes core entry (i, a, s, b), into counts; chance (states, rank) is scratch."""
    chance[:] = 0.0
    chance[0] = share[0] / share[0].sum()
    rank = core.shape[1]
    for i in range(len(sizes)):
        for q in range(first[i], first[i + 1]):
            # most counts are far from any that is ever sampled
            if chance[q].sum() < _RARE:
                continue
            for s in range(sizes[i]):
                t = to[q, s]
                if t < 0:
                    continue
                factor = _power(scale[t] - scale[q])
                for a in range(rank):
                    if chance[q, a] == 0.0:
                        continue
                    at = chance[q, a] / share[q, a] * factor
                    for b in range(rank):
                        p = at * core[i, a, s, b] * share[t, b]
                        chance[t, b] += p
                        counts[i, a, s, b] += p


@njit(cache=True, nogil=True)
def observed(core, sizes, rows, weight, ahead, counts):
    """How often the hidden paths of each row (m, modes) take core entry (i, a, s, b), into counts.

    Returns the weighted mean log of the rows' entries; ahead (modes + 1, rank) is scratch.
    """
    modes, rank = len(sizes), core.shape[1]
    mean = 0.0
    now, then = np.empty(rank), np.empty(rank)
    for row in range(len(rows)):
        ahead[modes] = 1.0
        for i in range(modes - 1, -1, -1):
            ahead[i] = 0.0
            for a in range(rank):
                for b in range(rank):
                    ahead[i, a] += core[i, a, rows[row, i], b] * ahead[i + 1, b]
            total = ahead[i].sum()
            ahead[i] /= total
            mean += weight[row] * np.log(total)
        now[:] = ahead[0]
        for i in range(modes):
            s = rows[row, i]
            then[:] = 0.0
            for a in range(rank):
                if now[a] == 0.0:
                    continue
                total = 0.0
                for b in range(rank):
                    total += core[i, a, s, b] * ahead[i + 1, b]
                for b in range(rank):
                    p = now[a] * core[i, a, s, b] * ahead[i + 1, b] / total
                    then[b] += p
                    counts[i, a, s, b] += weight[row] * p
            now[:] = then
    return mean
