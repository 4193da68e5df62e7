"""The multipliers of tight constraints: a linear program, then each in the middle of its best interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunesolve.problems import Cardinality, GroupBounds
from prunesolve.problems._arrays import Bits, Floats

from .tight import Tight

_ROUNDS = 20  # of centring one multiplier after another
_SPARING = 1e-5  # of one unit's violation: the price of a multiplier that could be 0


def multipliers_of(fields: Floats, kept: Bits, tight: Sequence[Tight]) -> tuple[Floats, Floats]:
    """(multipliers (m,), reduced fields (n,)): least in all on the wrong side, then each in the middle of its interval.

    One multiplier, or several that share no unit, are exact by themselves; others begin at the optimum of the linear
    program and stay within its solutions. A one-sided one is 0 where 0 is among the best.
    """
    shared = np.bincount(np.concatenate([t.units for t in tight]), minlength=1).max() > 1 if tight else False
    found = _least_violation(fields, kept, tight) if shared else np.zeros(len(tight))
    reduced = fields.copy()
    for multiplier, t in zip(found, tight, strict=True):
        reduced[t.units] += multiplier * t.rate
    order = sorted(range(len(tight)), key=lambda c: not tight[c].one_sided)
    for _ in range(_ROUNDS if shared else 1):
        before = found.copy()
        for c in order:
            _centre(c, tight, kept, found, reduced)
        if np.allclose(before, found, rtol=1e-12, atol=0.0):
            break
    return found, reduced


def _centre(c: int, tight: Sequence[Tight], kept: Bits, found: Floats, reduced: Floats) -> None:
    """Move one multiplier to the middle of those at which least is on the wrong side; changes `found` and `reduced`.

    The cardinality's takes its own from those of the groups that are charged: what their units pay stays as it is.
    """
    t, carried = tight[c], _carried(c, tight, found)
    free = np.ones(len(reduced), dtype=bool)
    for d in carried:
        free[tight[d].units] = False
    units, rate = t.units[free[t.units]], t.rate[free[t.units]]
    rest = reduced[units] - found[c] * rate
    least = max([t.low, *(found[c] + found[d] - tight[d].high for d in carried)])
    most = min([t.high, *(found[c] + found[d] - tight[d].low for d in carried)])
    low, high = (float(np.clip(end, least, most)) for end in _interval(rest, rate, kept[units]))
    moved = 0.0 if t.one_sided and low <= 0.0 <= high else _middle(low, high)
    for d in carried:
        found[d] -= moved - found[c]
    found[c], reduced[units] = moved, rest + moved * rate


def _carried(c: int, tight: Sequence[Tight], found: Floats) -> list[int]:
    """The groups without a common unit that are charged beside the cardinality c; none for another constraint."""
    if tight[c].kind is not Cardinality:
        return []
    taken: set[int] = set()
    carried = []
    for d, t in enumerate(tight):
        if t.kind is GroupBounds and (found[d] or not t.one_sided) and taken.isdisjoint(t.units.tolist()):
            taken.update(t.units.tolist())
            carried.append(d)
    return carried


def _middle(low: float, high: float) -> float:
    """The middle of an interval, its finite end where it has but one, 0 where it has none."""
    finite = [end for end in (low, high) if np.isfinite(end)]
    return sum(finite) / len(finite) if finite else 0.0


def _interval(rest: Floats, rate: Floats, kept: Bits) -> tuple[float, float]:
    r"""Where sum_kept max(0, rest_i + lambda rate_i) + sum_dropped max(0, -rest_i - lambda rate_i) is least.

    Its slope is minus the rates of the dropped at first and grows by rate_i at each -rest_i / rate_i. A dropped one of
    rate below 0, a switch that frees some of the budget, counts as a kept one of the opposite signs.

    Examples
    --------
    >>> _interval(np.array([-3.0, -2.0, -1.0]), np.ones(3), np.array([True, False, False]))
    (2.0, 3.0)
    """
    if not len(rest):
        return -np.inf, np.inf
    kept, turns, rate = kept ^ (rate < 0), -rest / rate, np.abs(rate)
    order = np.argsort(turns, kind="stable")
    slope = np.concatenate([[0.0], np.cumsum(rate[order])]) - rate[~kept].sum()
    ends = np.concatenate([[-np.inf], turns[order], [np.inf]])
    # sums of costs in two orders differ by rounding
    level = 1e-12 * rate.sum()
    first = int(np.flatnonzero(slope >= -level)[0])
    last = int(np.flatnonzero(slope > level)[0]) if (slope > level).any() else len(slope)
    return float(ends[first]), float(ends[last])


def _least_violation(fields: Floats, kept: Bits, tight: Sequence[Tight]) -> Floats:
    """(m,) multipliers that solve the linear program of the package's head."""
    from scipy import optimize, sparse

    n, m = len(fields), len(tight)
    sign, size = np.where(kept, 1.0, -1.0), float(np.abs(fields).max(initial=0.0)) or 1.0
    scales = np.array([t.rate.max(initial=0.0) or 1.0 for t in tight])
    units = np.concatenate([t.units for t in tight])
    column = np.repeat(np.arange(m), [len(t.units) for t in tight])
    entries = sign[units] * np.concatenate([t.rate / s for t, s in zip(tight, scales, strict=True)])
    charged = sparse.coo_array((entries, (units, column)), shape=(n, m))
    # among the best, few that are not 0: the slopes of the violation are whole numbers but for budgets
    prices = [0.0 if not t.one_sided else _SPARING if np.isinf(t.high) else -_SPARING for t in tight]
    solved = optimize.linprog(
        np.concatenate([prices, np.ones(n)]),
        A_ub=sparse.hstack([charged, -sparse.eye_array(n)], format="csc"),
        b_ub=-sign * fields / size,
        bounds=[(t.low, t.high) for t in tight] + [(0.0, None)] * n,
        method="highs",
    )
    # without an optimum, centring one after another from 0 still brings each to its best given the others
    return np.zeros(m) if solved.x is None else np.asarray(solved.x[:m] * size / scales)
