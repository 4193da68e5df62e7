"""Joining the fronts of parts by what each member does to the whole: tables, the greedy path and the exact front.

I(s, m) = f(dense, but part s is m) - f(dense)        g(s, m) = c(dense) - c(dense, but part s is m)

A scheme takes one member of every part; as far as impairments add up it has error f(dense) + sum I and cost
c(dense) - sum g.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prunesolve.problems import LevelChoice
from prunesolve.problems._arrays import Floats, Indices

from ._front import nondominated


class Table(NamedTuple):
    """Members of one part by ascending saving, none dominated: points (p, n_part), impairment (p,), saving (p,)."""

    members: np.ndarray
    impairment: Floats
    saving: Floats


def table(members: np.ndarray, impairment: Floats, saving: Floats) -> Table:
    """The members (p, n_part) that have a value and that no other one dominates, by ascending saving."""
    known = np.flatnonzero(np.isfinite(impairment) & np.isfinite(saving))
    stays = known[nondominated(np.stack([impairment[known], -saving[known]], axis=1))]
    order = stays[np.argsort(saving[stays])]
    return Table(members[order], impairment[order], saving[order])


def greedy_path(tables: Sequence[Table]) -> Indices:
    """(p, S) schemes on the way from the least saving to the largest, by the smallest impairment per saving.

    The next move goes along the front of the part where some later member has the smallest
    (I' - I) / (g' - g); the members in between are passed through.

    Examples
    --------
    >>> one = Table(np.arange(3)[:, None], np.array([0.0, 5.0, 6.0]), np.array([0.0, 1.0, 3.0]))
    >>> other = Table(np.arange(2)[:, None], np.array([0.0, 3.0]), np.array([0.0, 1.0]))
    >>> greedy_path([one, other]).tolist()
    [[0, 0], [1, 0], [2, 0], [2, 1]]
    """
    at = np.zeros(len(tables), dtype=np.int64)
    path = [at.copy()]
    while any(here < len(part.saving) - 1 for here, part in zip(at, tables, strict=True)):
        slopes = [_smallest_slope(part, here) for part, here in zip(tables, at.tolist(), strict=True)]
        part = min(range(len(tables)), key=lambda s: slopes[s][0])
        for _ in range(slopes[part][1]):
            at[part] += 1
            path.append(at.copy())
    return np.array(path)


def _smallest_slope(part: Table, here: int) -> tuple[float, int]:
    """(the smallest impairment per saving of a later member, how many members further it is)."""
    if here == len(part.saving) - 1:
        return np.inf, 0
    slopes = np.diff(part.impairment[here:]).cumsum() / np.diff(part.saving[here:]).cumsum()
    return float(slopes.min()), int(slopes.argmin()) + 1


def exact_front(tables: Sequence[Table]) -> Indices:
    """(p, S) all schemes whose (sum of impairments, sum of savings) no other one dominates."""
    from .dynamic_programming import DynamicProgramming

    error = [part.impairment[::-1] for part in tables]
    cost = [part.saving.max() - part.saving[::-1] for part in tables]
    choice = LevelChoice(error, cost, float(sum(c.max() for c in cost)))
    front = DynamicProgramming(front=True).solve(choice).front
    assert front is not None
    return choice.sizes - 1 - np.asarray(front.solutions)


def spread(values: Floats, count: int) -> Indices:
    """At most `count` indices of `values` (p,) that lie evenly between the smallest and the largest, ascending.

    Examples
    --------
    >>> spread(np.array([0.0, 0.1, 0.2, 0.9, 1.0]), 3).tolist()
    [0, 2, 4]
    """
    if count >= len(values):
        return np.arange(len(values))
    chosen: set[int] = set()
    for target in np.linspace(values.min(), values.max(), count):
        # the nearest one may be taken: then the nearest of the others
        order = np.argsort(np.abs(values - target), kind="stable").tolist()
        chosen.add(next(i for i in order if i not in chosen))
    return np.array(sorted(chosen), dtype=np.int64)
