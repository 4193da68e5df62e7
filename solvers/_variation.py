"""Children from parents: steps down and up, exchanges with a mate, and what was learned about single steps.

Rows are those of a `Grid`, so that one step is a flip of a unit or the next level of a layer. What comes out is wanted,
not yet feasible.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunesolve.problems._arrays import Bits, Floats, Indices

from ._grid import LEVEL, Grid, Levels

_FAR = 0.2  # chance that a step of more than two levels goes to any of them
_LEARNED = 16  # a change of more coordinates teaches nothing about one of them
_RATE = 0.5  # share of what a change contradicts that is corrected


class Variation:
    """The operators of a search over a grid.

    Parameters
    ----------
    grid : Grid
        Whose rows are varied.
    groups : (n,) int or None
        The block of each coordinate.
    rng : numpy.random.Generator
        The only source of randomness.
    """

    def __init__(self, grid: Grid, groups: Indices | None, rng: np.random.Generator) -> None:
        self.grid, self.rng = grid, rng
        given = np.zeros(grid.n, dtype=np.int64) if groups is None else groups
        self.group = np.unique(given, return_inverse=True)[1].reshape(-1)

    def step(self, rows: Levels, least: int = 1) -> Levels:
        """Some coordinates of each row one level down, some up, or as many of both; few more often than many."""
        count, n = rows.shape
        most = max(least, n // 4)
        steps = np.minimum(np.floor(least / (1.0 - self.rng.random(count))), most).astype(np.int64)
        kind = self.rng.integers(3, size=count)
        down = self._some(rows > 0, np.where(kind == 1, 0, steps))
        up = self._some((rows < self.grid.top) & ~down, np.where(kind == 0, 0, steps))
        return self._far((rows - down + up).astype(LEVEL), down | up)

    def lower(self, rows: Levels, chosen: Bits) -> Levels:
        """The chosen coordinates of each row one level down."""
        return self.grid.clipped(rows - chosen)

    def exchange(self, rows: Levels, mates: Levels) -> Levels:
        """A random share of each row's coordinates from its mate."""
        share = self.rng.random((len(rows), 1), dtype=np.float32)
        return np.where(self.rng.random(rows.shape, dtype=np.float32) < share, mates, rows)

    def exchange_groups(self, rows: Levels, mates: Levels) -> Levels:
        """A random share of each row's groups from its mate."""
        share = self.rng.random((len(rows), 1))
        taken = self.rng.random((len(rows), int(self.group.max(initial=0)) + 1)) < share
        return np.where(taken[:, self.group], mates, rows)

    def feasible(self, parents: Levels, wanted: Levels) -> tuple[Levels, Bits]:
        """Feasible rows next to the wanted ones and for which rows there is one; what was changed stays longest."""
        if self.grid.free:
            return wanted, np.ones(len(wanted), dtype=bool)
        hold = 0.5 * self.rng.random(wanted.shape)
        return self.grid.nearest(wanted, np.where(wanted != parents, hold + 0.499, hold), self.rng)

    def _some(self, allowed: Bits, counts: Indices) -> Bits:
        """(m, n) about counts (m,) of the allowed coordinates of each row, at random; 0 is none, else one at least."""
        key = np.where(allowed, self.rng.random(allowed.shape, dtype=np.float32), np.float32(2.0))
        share = np.maximum(counts - 1, 0) / np.maximum(allowed.sum(axis=1), 1)
        chosen = key < share[:, None].astype(np.float32)
        chosen[np.arange(len(key)), key.argmin(axis=1)] |= counts > 0
        return chosen & allowed

    def _far(self, rows: Levels, changed: Bits) -> Levels:
        """The rows, some of their changed coordinates at any level."""
        if (self.grid.top <= 1).all():
            return rows
        far = changed & (self.grid.top > 1) & (self.rng.random(rows.shape) < _FAR)
        return np.where(far, self.rng.integers(self.grid.sizes, size=rows.shape), rows).astype(LEVEL)


class Marginals:
    r"""What one level more of each coordinate changes, learned from pairs of evaluated points.

    du ~ slopes dx,    slopes += rate (du - slopes dx) dx' / |dx|^2, averaged over the pairs that change a coordinate

    Changes du of the objectives are counted in places on the front, u_j(f) = share of the front's points below f in
    objective j: then a change weighs the same at its dense and at its sparse end, and along the front sum_j du_j is
    about 0 where there are two objectives; below it is an advance. The rule is normalised least mean squares (Widrow &
    Hoff, 1960); its use here is ours.

    Parameters
    ----------
    slopes : (m, n) float
        What was learned before.
    """

    def __init__(self, slopes: Floats) -> None:
        self.slopes = slopes

    def learn(self, before: Levels, after: Levels, change: Floats) -> None:
        """Learn from rows (p, n) before and after, and the change (p, m) in places between them, all at once."""
        dx = (after - before).astype(np.float64)
        size = (dx * dx).sum(axis=1)
        few = (size > 0.0) & ((dx != 0.0).sum(axis=1) <= _LEARNED)
        dx, size, change = dx[few], size[few], change[few]
        missed = change - dx @ self.slopes.T
        # what several pairs say about a coordinate is averaged
        often = np.maximum((dx != 0.0).sum(axis=0), 1)
        self.slopes += _RATE * ((missed / size[:, None]).T @ dx) / often

    def advance(self, before: Levels, after: Levels) -> Floats:
        """(p,) predicted sum of the changes in places; the smaller the better."""
        return np.asarray((after - before).astype(np.float32) @ self.slopes.sum(axis=0).astype(np.float32))


def places(values: Floats, front: Floats) -> Floats:
    """(p, m) share of the front's points (q, m) below each value (p, m), between neighbours in proportion."""
    if len(front) < 2:
        return np.zeros(values.shape)
    shares = np.linspace(0.0, 1.0, len(front))
    columns: list[Any] = [np.interp(v, np.sort(f), shares) for v, f in zip(values.T, front.T, strict=True)]
    return np.stack(columns, axis=1)
