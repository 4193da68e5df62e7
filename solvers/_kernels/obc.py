"""Exact backward elimination of one row's weights, the updates of the inverse put off and made a block at a time.

When weight p goes, the best update of the others changes w by -u w_p / sqrt(B_pp) and the inverse B by -u u', with
u = B_p / sqrt(B_pp). A step needs the diagonal of B, kept up to date, and its row p: the stored row less what the
updates put off take from it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_LEAST = 1e-300


@njit(cache=True, nogil=True)
def eliminate(inverse, diagonal, weight, group, room, alive, panel, gone, loss):
    """Up to len(panel) removals, each the cheapest that `room` (g,) still allows; returns how many were made.

    `panel` (steps, a) takes the updates put off, `gone` and `loss` (steps,) what went and what it cost.
    """
    size = weight.size
    for step in range(panel.shape[0]):
        p, least = -1, np.inf
        for j in range(size):
            if alive[j] and room[group[j]] > 0:
                cost = weight[j] * weight[j] / diagonal[j]
                if cost < least:
                    p, least = j, cost
        if p < 0:
            return step
        u = panel[step]
        u[:] = inverse[p]
        for before in range(step):
            share = panel[before, p]
            for j in range(size):
                u[j] -= share * panel[before, j]
        root = np.sqrt(max(diagonal[p], _LEAST))
        move = weight[p] / root
        for j in range(size):
            u[j] = u[j] / root if alive[j] else 0.0
            weight[j] -= move * u[j]
            # rounding only: a diagonal entry of an inverse is positive
            diagonal[j] = max(diagonal[j] - u[j] * u[j], _LEAST)
        weight[p], alive[p] = 0.0, False
        room[group[p]] -= 1
        gone[step], loss[step] = p, least
    return panel.shape[0]
