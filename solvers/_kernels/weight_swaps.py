"""Exchanges of one row's weights, each valued exactly in a tableau swept on the weights that are kept.

With S kept and Q not, the tableau of a Hessian H and the vector of its right side c are

    A_SS = -H_SS^-1    A_SQ = H_SS^-1 H_SQ    A_QQ = H_QQ - H_QS H_SS^-1 H_SQ    z_S = w    z_Q = c_Q - H_QS w

p leaves S for q at a change of  -z_p^2 / A_pp - (z_q - A_pq z_p / A_pp)^2 / (A_qq - A_pq^2 / A_pp);  a sweep on each
of the two brings the tableau up to date.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_DEPENDENT = 1e-9  # of a unit diagonal: what so little is left of adds nothing of its own


@njit(cache=True, nogil=True)
def exchange(table, z, kept, group, least, most):
    """Up to `most` exchanges, the best each time, until none saves more than `least`; returns how many were made."""
    for made in range(most):
        p, q = _best(table, z, kept, group, least)
        if p < 0:
            return made
        _sweep(table, z, p, -1.0)
        _sweep(table, z, q, 1.0)
        kept[p], kept[q] = False, True
    return most


@njit(cache=True, nogil=True)
def ends(table, z, kept):
    """The cheapest removal and the most valuable addition: (p, its cost, q, its gain), -1 where there is none."""
    p, q, cost, gain = -1, -1, np.inf, 0.0
    for i in range(z.size):
        if kept[i]:
            loss = -z[i] * z[i] / table[i, i]
            if loss < cost:
                p, cost = i, loss
        elif table[i, i] > _DEPENDENT:
            worth = z[i] * z[i] / table[i, i]
            if worth > gain:
                q, gain = i, worth
    return p, cost, q, gain


@njit
def _best(table, z, kept, group, least):
    """The pair (p, q) whose exchange saves most and more than `least`, (-1, -1) where there is none."""
    best_p, best_q, best = -1, -1, -least
    for p in range(z.size):
        if not kept[p]:
            continue
        row = table[p]
        inverse = 1.0 / row[p]
        cost, move = -z[p] * z[p] * inverse, z[p] * inverse
        for q in range(z.size):
            if kept[q] or group[q] != group[p]:
                continue
            own = table[q, q] - row[q] * row[q] * inverse
            if own > _DEPENDENT:
                left = z[q] - row[q] * move
                change = cost - left * left / own
                if change < best:
                    best_p, best_q, best = p, q, change
    return best_p, best_q


@njit
def _sweep(table, z, k, sign):
    """Take k into what is kept (sign 1) or out of it (-1)."""
    pivot, right = table[k, k], z[k]
    column = table[k].copy()
    for i in range(z.size):
        share = column[i] / pivot
        if i != k and share != 0.0:
            row = table[i]
            for j in range(z.size):
                row[j] -= share * column[j]
            z[i] -= share * right
    for j in range(z.size):
        table[k, j] = table[j, k] = sign * column[j] / pivot
    table[k, k] = -1.0 / pivot
    z[k] = sign * right / pivot
