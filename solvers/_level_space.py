"""Level tuples within a budget of whole or real numbers, with or without pair costs: what is spent, and feasible moves.

A move is a switch: one layer goes to another level, and a second one, or a few, to the dearest level that then fits,
so that what one layer gives up another gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prunesolve.problems import LevelChoice, LevelTuples
from prunesolve.problems._arrays import Bits, Floats, Indices

_CHILDREN, _PARENTS = 256, 32  # tuples rated in each round of an evolution, and those that they come from
_STEP = 0.6  # chance that a switch is by one level, else by two, and so on
_SHARES = 201  # even choices looked at
_LOOSE = 0.1  # share of the switches that may leave some of the budget
_PARTNERS = 8  # layers tried to take up what a switch has freed or overspent


class LevelSpace:
    """The tuples of a `LevelTuples` or `LevelChoice` as padded tables, without a check of each row.

    Parameters
    ----------
    space : LevelTuples or LevelChoice
        Whose tuples they are.
    """

    def __init__(self, space: LevelTuples | LevelChoice) -> None:
        self.sizes, self.n, self.most = space.sizes, space.n, int(space.sizes.max(initial=1))
        self.budget = float(space.budget)
        choice = space if isinstance(space, LevelChoice) else None
        self.exact = choice is None and space.exact  # type: ignore[union-attr]
        self._slack = 0.0 if choice is None else choice.slack
        self.largest = choice is not None and choice.total == "max"
        self._cost = padded(space.cost, self.most)
        self._pairs = {} if choice is None else dict(choice.pair_cost)

    def spent(self, rows: Indices) -> Floats:
        """(m,) what each row (m, L) costs."""
        terms = self._cost[np.arange(self.n), rows]
        total: Floats = terms.max(axis=1) if self.largest else terms.sum(axis=1)
        for (i, j), pair in self._pairs.items():
            term = pair[rows[:, i], rows[:, j]]
            total = np.maximum(total, term) if self.largest else total + term
        return total

    def fits(self, spent: Floats) -> Bits:
        """Whether the spending meets the budget, in the shape of what is asked."""
        over = spent - self.budget
        return np.asarray(over == 0.0 if self.exact else over <= self._slack)

    def switched(self, rows: Indices, rng: np.random.Generator, switches: Indices) -> Indices:
        """(p, L), p <= m: the rows (m, L) after so many switches (m,); what then fits."""
        rows = rows.copy()
        for done in range(int(switches.max(initial=0))):
            some = np.flatnonzero(switches > done)
            layer = rng.integers(self.n, size=len(some))
            step = rng.geometric(_STEP, len(some)) * rng.choice([-1, 1], len(some))
            rows[some, layer] = np.clip(rows[some, layer] + step, 0, self.sizes[layer] - 1)
            rows[some] = self._settled(rows[some], layer, rng, _PARTNERS)
        return rows[self.fits(self.spent(rows))]

    def fitted(self, rows: Indices, rng: np.random.Generator) -> Indices:
        """(p, L), p <= m: the rows (m, L) with random layers lowered until they fit; those that do."""
        nobody = np.full(len(rows), -1)
        rows = self._settled(rows.copy(), nobody, rng, _PARTNERS * self.n)
        return rows[self.fits(self.spent(rows))]

    def evolved(
        self, rows: Indices, rate: Callable[[Indices], Floats], rng: np.random.Generator, rounds: int, switches: int
    ) -> tuple[Indices, Floats]:
        """Distinct tuples (p, L) and their rates (p,), the lowest first, from so many rounds of switches."""
        rates = rate(rows)
        for _ in range(rounds):
            parents = rows[rng.integers(min(len(rows), _PARENTS), size=_CHILDREN)]
            new = self.switched(parents, rng, 1 + rng.integers(switches, size=_CHILDREN))
            rows, first = np.unique(np.concatenate([rows, new]), axis=0, return_index=True)
            rates = np.concatenate([rates, rate(new)])[first]
            order = np.argsort(rates, kind="stable")[:_CHILDREN]
            rows, rates = rows[order], rates[order]
        return rows, rates

    def _settled(self, rows: Indices, moved: Indices, rng: np.random.Generator, partners: int) -> Indices:
        """Rows (m, L) whose random partners, not the layer that moved (m,), take up what is free or give up the rest.

        Where no level of the partner alone makes up for it, the partner goes down a bit and another one is asked.
        """
        # now and then nobody takes up what is free: less than the budget may be truly better
        left = np.flatnonzero(~self.fits(self.spent(rows)) | (rng.random(len(rows)) >= _LOOSE))
        for _ in range(partners):
            if not len(left):
                break
            layer = rng.integers(self.n, size=len(left))
            other = layer != moved[left]
            fits = self.fits(self._spent_at(rows[left], layer))
            done = other & fits.any(axis=1)
            dearest = self.most - 1 - fits[:, ::-1].argmax(axis=1)
            rows[left[done], layer[done]] = dearest[done]
            lower = other & ~done & (not self.exact)
            rows[left[lower], layer[lower]] = rng.integers(rows[left[lower], layer[lower]] + 1)
            left = left[~done]
        return rows

    def _spent_at(self, rows: Indices, layer: Indices) -> Floats:
        """(m, S) what each row (m, L) costs with its layer (m,) at each level; NaN where there is no such level."""
        levels = np.arange(self.most)
        moved = np.repeat(rows[:, None], self.most, axis=1)
        sizes = self.sizes[layer][:, None]
        moved[np.arange(len(rows))[:, None], levels, layer[:, None]] = np.minimum(levels, sizes - 1)
        spent = self.spent(moved.reshape(-1, self.n)).reshape(len(rows), self.most)
        return np.where(levels < sizes, spent, np.nan)


def padded(tables: Sequence[Floats] | Sequence[Indices], width: int) -> Floats:
    """(L, width) tables (S_l,) as rows, zeros behind them."""
    rows = np.zeros((len(tables), width))
    for row, table in zip(rows, tables, strict=True):
        row[: len(table)] = table
    return rows


def layer_by_layer(value: Callable[[Indices], Floats], around: Indices, sizes: Indices) -> list[Floats]:
    """L arrays (S_l,): the value of every level of each layer, the others as they are in a tuple (L,)."""
    rows = np.repeat(around[None], sizes.sum(), axis=0)
    layer = np.repeat(np.arange(len(sizes)), sizes)
    rows[np.arange(len(rows)), layer] = np.concatenate([np.arange(size) for size in sizes])
    return np.split(np.asarray(value(rows), dtype=np.float64), np.cumsum(sizes)[:-1])


def even(space: LevelTuples | LevelChoice) -> Indices | None:
    """(L,) feasible levels that treat all layers about alike; None where none were found."""
    if isinstance(space, LevelTuples):
        return _even_tuple(space)
    tables = LevelSpace(space)
    rows = np.rint(np.linspace(0.0, 1.0, _SHARES)[:, None] * (tables.sizes - 1)).astype(np.int64)
    found = np.flatnonzero(tables.fits(tables.spent(rows)))
    if len(found):
        return rows[found[-1]]
    return space.cheapest if space.is_feasible(space.cheapest) else None


def _even_tuple(space: LevelTuples) -> Indices:
    """A tuple of the budget, or of the largest total below it, with little spread: min sum_l (cost_l - mean_l)^2."""
    target = int(space.budget) if space.exact else int(space.totals[space.totals <= space.budget].max())
    mean = np.array([c.mean() for c in space.cost])
    wanted = mean * (target / max(mean.sum(), 1e-12))
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for cost, goal in zip(space.cost, wanted, strict=True):
        step: dict[int, tuple[float, tuple[int, ...]]] = {}
        for spent, (error, levels) in best.items():
            for level, c in enumerate(cost.tolist()):
                told = (error + (c - goal) ** 2, (*levels, level))
                if spent + c <= target and (spent + c not in step or told < step[spent + c]):
                    step[spent + c] = told
        best = step
    return np.array(best[target][1], dtype=np.int64)
