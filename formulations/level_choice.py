r"""How many units each layer keeps: one level a group, whose units are ranked beforehand.

minimise    sum_g E||sum_(i in g, i goes) u_i||^2 / E||y||^2     over keep counts, within one budget
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

import numpy as np

from prunesolve.problems import Group, InvalidProblem, LevelChoice, Selection, Statistics
from prunesolve.problems._arrays import Bits, Floats, Indices

from ._base import Formulation, Objective
from .budgets import Amount, check_asked, spending_limit, units_to_keep
from .terms import off_diagonal

_ELIMINATION = "elimination"


@dataclass(frozen=True)
class KeepCounts(Formulation):
    r"""f(s) = sum_g p' G_g p, where p marks the units of group g that level s_g leaves out.

    Units leave a group in a fixed order, so that a level is a count and every level contains the ones below. The error
    is that of the kept units as they are, without a refit; the levels of `bridges.torch.levels` are refitted. Costs
    are those of the kept units themselves and of every pair of them, so that what a choice spends is what
    `Statistics.spent` counts. Where one consumer reads several groups (concatenation) the error leaves out what they
    share: levels add up.

    Parameters
    ----------
    levels : int >= 2
        Most levels of a group, spread evenly over its keep counts from `minimum` to all.
    order : str
        "elimination": the next unit to go is argmin_i 2 (G p)_i + G_ii. Otherwise a saliency, such as "taylor", whose
        least units go first.

    Reference
    ---------
    Backward elimination per layer as in Meng et al., "OSSCAR", 2024, here without its refit; one level a layer within
    a budget as in Frantar, Alistarh, "SPDY", 2022, with costs of neighbours (ours).

    Examples
    --------
    >>> from prunesolve.problems import Group
    >>> fc1 = Group("fc1", 2, [("fc1", "out", [[0], [1]])])
    >>> stats = Statistics([fc1], blocks={"reconstruction": [[[0.5, -0.25], [-0.25, 1.0]]]})
    >>> choice = KeepCounts().encode(stats, keep=1)
    >>> choice.error, choice.cost, KeepCounts().decode(stats, [0]).kept
    ((array([0.5, 0. ]),), (array([1., 2.]),), {'fc1': [1]})
    """

    levels: int = 16
    order: str = _ELIMINATION

    name: ClassVar[str] = "level-choice"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or self.levels < 2:
            raise InvalidProblem(f"levels: expected a whole number >= 2, got {self.levels!r}")
        if not isinstance(self.order, str) or not self.order:
            raise InvalidProblem(f"order: expected {_ELIMINATION!r} or the name of a saliency, got {self.order!r}")

    @property
    def needs(self) -> tuple[str, ...]:
        """One Gram matrix per group, and the saliency that ranks."""
        ranked = () if self.order == _ELIMINATION else (f"saliency.{self.order}",)
        return ("blocks.reconstruction", *ranked)

    def _objective(self, stats: Statistics) -> Objective:
        """The same error of any selection, on a level or between two."""
        grams = stats.matrices("reconstruction")
        sums = np.concatenate([(g.sum(axis=0) + g.sum(axis=1)) / 2 for g in grams])
        diagonal = np.concatenate([np.diagonal(g) for g in grams])
        return Objective(diagonal - 2 * sums, off_diagonal(grams, 2.0), float(sums.sum()), diagonal)

    def meaning(self, stats: Statistics, keep: Any) -> float:
        """The relative squared error of the consumers' outputs, group by group, without the units that go."""
        gone = (1.0 - keep[start:end] for start, end in zip(stats.starts, stats.starts[1:], strict=False))
        return float(sum(p @ gram @ p for p, gram in zip(gone, stats.matrices("reconstruction"), strict=True)))

    def encode(  # type: ignore[override]  # levels, not units
        self,
        stats: Statistics,
        *,
        keep: Amount | None = None,
        params: Amount | None = None,
        macs: Amount | None = None,
    ) -> LevelChoice:
        """The problem of choosing a level for each group within one budget.

        Parameters
        ----------
        stats : Statistics
            What was measured; it is not changed.
        keep : float or int, optional
            The most units: a fraction of the n units, or a count.
        params, macs : float or int, optional
            The most that the pruned network may hold or multiply: a fraction of the dense total, or a number.

        Returns
        -------
        LevelChoice
            Labelled by the groups; `meta["levels"]` lists each group's channels, the last to go first, and its counts.

        Raises
        ------
        InvalidProblem
            If a statistic is missing, or not exactly one budget is given, or no level can meet it; then with the
            smallest that can be met.
        """
        self._require(stats)
        asked = {n: a for n, a in (("keep", keep), ("params", params), ("macs", macs)) if a is not None}
        check_asked(asked)
        if len(asked) > 1:
            raise InvalidProblem(f"{self.name}: expected one budget, got {', '.join(asked)}; leave out all but one")
        ((resource, amount),) = asked.items()
        limit, told = _limit(stats, resource, amount)
        ladders = [self._ladder(stats, g) for g in range(len(stats.groups))]
        cost, pair_cost = _costs(stats, resource, [ladder.kept for ladder in ladders])
        budget = limit - stats.constant.get(resource, 0.0)
        _check_affordable(resource, told, cost, pair_cost, budget)
        return LevelChoice(
            [ladder.error for ladder in ladders],
            cost,
            budget,
            pair_cost,
            labels=[group.name for group in stats.groups],
            meta=self._told(stats, {"minimum": self.minimum, resource: told})
            | {"levels": [ladder.told(group) for ladder, group in zip(ladders, stats.groups, strict=True)]},
        )

    def decode(self, stats: Statistics, solution: Any) -> Selection:
        """The selection that levels (L,) of the encoded problem stand for."""
        if solution is None:
            return super().decode(stats, solution)
        self._require(stats)
        ladders = [self._ladder(stats, g) for g in range(len(stats.groups))]
        levels, sizes = np.asarray(solution), [len(ladder.error) for ladder in ladders]
        if levels.shape != (len(sizes),) or not all(s in range(m) for s, m in zip(levels.tolist(), sizes, strict=True)):
            raise InvalidProblem(f"{self.name}: expected a level of each group, below {sizes}, got {levels.tolist()}")
        kept = [ladder.kept[s] for ladder, s in zip(ladders, levels.tolist(), strict=True)]
        return Selection(stats.groups, np.concatenate(kept))

    def _ladder(self, stats: Statistics, g: int) -> Ladder:
        span = slice(int(stats.starts[g]), int(stats.starts[g + 1]))
        gram = stats.matrices("reconstruction")[g]
        gram = (gram + gram.T) / 2
        leaving = None
        if self.order != _ELIMINATION:
            leaving = np.argsort(stats.criterion(self.order)[span], kind="stable")
        order, lost = eliminated(gram, leaving)
        size, least = len(gram), min(self.minimum, len(gram))
        counts = np.unique(np.linspace(least, size, min(self.levels, size - least + 1)).round()).astype(np.int64)
        kept = np.argsort(order)[None] >= size - counts[:, None]
        return Ladder(order[::-1], counts, kept, lost[size - counts])


class Ladder(NamedTuple):
    """The levels of one group."""

    rank: Indices  # (size,) units, the last to go first
    counts: Indices  # (S,) units kept, ascending
    kept: Bits  # (S, size)
    error: Floats  # (S,)

    def told(self, group: Group) -> dict[str, Any]:
        """The same to be stored: the channels at a level are the first of the list, as many as its count says."""
        channels = group.channels[self.rank]
        return {"layer": group.layer, "channels": channels.tolist(), "counts": self.counts.tolist()}


def eliminated(gram: Floats, order: Indices | None = None) -> tuple[Indices, Floats]:
    """((size,) units in the order in which they go, (size + 1,) error p'Gp before the first has gone and after each).

    Without an order the unit goes next that raises the error least.

    Examples
    --------
    >>> order, error = eliminated(np.array([[0.5, -0.25], [-0.25, 1.0]]))
    >>> order.tolist(), error.tolist()
    ([0, 1], [0.0, 0.5, 1.0])
    """
    size = len(gram)
    shared, gone = np.zeros(size), np.zeros(size, dtype=bool)
    leaving, rises = np.zeros(size, dtype=np.int64), np.zeros(size + 1)
    for step in range(size):
        rise = 2 * shared + np.diagonal(gram)
        i = int(np.argmin(np.where(gone, np.inf, rise))) if order is None else int(order[step])
        leaving[step], rises[step + 1], gone[i] = i, rise[i], True
        shared += gram[i]
    return leaving, np.cumsum(rises)


def _limit(stats: Statistics, resource: str, amount: Amount) -> tuple[float, dict[str, Any]]:
    """The most that may be spent, constant included, and the same as JSON-able facts."""
    asked = int(amount) if isinstance(amount, Integral) else float(amount)
    if resource == "keep":
        k = units_to_keep(amount, stats.n)
        return float(k), {"asked": asked, "units": k, "of": stats.n}
    if resource not in stats.cost:
        raise InvalidProblem(
            f"a {resource} budget needs cost {resource!r}, the statistics hold {', '.join(stats.cost) or 'none'}"
        )
    total = stats.total(resource)
    limit = spending_limit(resource, amount, total)
    return limit, {"asked": asked, "limit": limit, "of": total}


def _costs(
    stats: Statistics, resource: str, kept: Sequence[Bits]
) -> tuple[list[Floats], dict[tuple[int, int], Floats]]:
    """What the kept units of each level (S, size) cost by themselves, and with those of another group's levels."""
    ends = np.cumsum([len(levels) for levels in kept])
    rows = [slice(end - len(levels), end) for end, levels in zip(ends, kept, strict=True)]
    chosen = np.zeros((int(ends[-1]), stats.n))
    for g, levels in enumerate(kept):
        chosen[rows[g], stats.starts[g] : stats.starts[g + 1]] = levels
    if resource == "keep":
        return [chosen[span].sum(axis=1) for span in rows], {}
    cost, pair = chosen @ stats.cost[resource], stats.pair_cost.get(resource)
    if pair is None:
        return [cost[span] for span in rows], {}
    together = chosen @ (pair @ chosen.T)
    cost += np.diagonal(together) / 2
    between = {(g, h): together[rows[g], rows[h]] for g, h in combinations(range(len(rows)), 2)}
    return [cost[span] for span in rows], {ends: table for ends, table in between.items() if table.any()}


def _check_affordable(
    resource: str, told: Mapping[str, Any], cost: list[Floats], pair: Mapping[tuple[int, int], Floats], budget: float
) -> None:
    """Refuse a budget that not even the lowest levels keep; they cost least, as every level contains the ones below."""
    limit = told.get("limit", told.get("units"))
    least = sum(c[0] for c in cost) + sum(table[0, 0] for table in pair.values())
    if least > budget + 1e-9 * max(1.0, float(told["of"])):
        smallest = math.ceil(limit - budget + least - 1e-9 * float(told["of"]))
        raise InvalidProblem(
            f"{resource}: {limit:.0f} of {told['of']:.0f} cannot be met with the minimum of every group; "
            f"the smallest that can is {smallest}"
        )
