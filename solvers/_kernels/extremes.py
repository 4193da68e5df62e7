"""Largest and least fields of a stretch of units, in loops that the compiler turns into vector instructions.

Written as `a if a < b else b`, a minimum keeps its order for the sake of NaN and signed zeros and runs an element at a
time, eight times slower. Fields are numbers or infinite, so the two comparisons below say that neither matters.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import intrinsic

_FLAGS = ("nnan", "nsz")


def _select(relation):
    def typed(typingctx, a, b):
        def codegen(context, builder, signature, arguments):
            one, other = arguments
            chosen = builder.fcmp_ordered(relation, one, other, flags=_FLAGS)
            return builder.select(chosen, one, other, flags=_FLAGS)

        return types.float64(types.float64, types.float64), codegen

    return typed


_lesser = intrinsic(_select("<"))
_greater = intrinsic(_select(">"))


@njit
def extremes(f, leave, enter):
    """(largest f + leave, least f + enter)."""
    most, least = -np.inf, np.inf
    for t in range(f.size):
        out, into = f[t] + leave[t], f[t] + enter[t]
        most = _greater(out, most)
        least = _lesser(into, least)
    return most, least


@njit
def shifted(f, span, s, leave, enter):
    """Add s span to f; the new extremes."""
    most, least = -np.inf, np.inf
    for t in range(f.size):
        h = f[t] + s * span[t]
        f[t] = h
        out, into = h + leave[t], h + enter[t]
        most = _greater(out, most)
        least = _lesser(into, least)
    return most, least


@njit
def exchanged(f, leaver, entrant, leave, enter):
    """Take leaver from f and add entrant; the new extremes."""
    most, least = -np.inf, np.inf
    for t in range(f.size):
        h = f[t] - leaver[t] + entrant[t]
        f[t] = h
        out, into = h + leave[t], h + enter[t]
        most = _greater(out, most)
        least = _lesser(into, least)
    return most, least


@njit
def least_after(f, leaver, enter):
    """The least f + enter once row `leaver` is taken from f."""
    least = np.inf
    for t in range(f.size):
        into = f[t] - leaver[t] + enter[t]
        least = _lesser(into, least)
    return least
