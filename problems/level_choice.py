r"""One level for each layer: how many channels it keeps, from a table of what every level costs and loses.

minimise    sum_l error[l][s_l]
subject to  sum_l cost[l][s_l] + sum_{l<m} pair[l, m][s_l, s_m] <= budget

The parameters of neighbouring layers are a product of their widths, which the pair costs carry exactly. A peak, such as
that of the activations' memory, is the largest of these terms instead of their sum.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ._arrays import Floats, Indices, floats, integers, number
from ._arrays import levels as checked_levels
from ._errors import InvalidProblem, unknown
from ._npz import content_hash, json_array, read, unpack, write
from .binary_quadratic import checked_labels

_TOTALS = ("sum", "max")
# relative to the largest term: what rounding may add to a total
_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class LevelChoice:
    r"""Choose a level s_l in 0 .. S_l - 1 for each of L layers at the least error within a budget.

    f(s) = sum_l error[l][s_l]        subject to spent(s) <= budget

    Parameters
    ----------
    error : sequence of L arrays (S_l,) float
        What each level loses.
    cost : sequence of L arrays (S_l,) float
        What each level costs by itself, in the budget's unit.
    budget : float
        The most that may be spent.
    pair_cost : {(l, m): (S_l, S_m) float}, l < m
        What levels cost together.
    total : {"sum", "max"}
        Whether all terms are added, or the largest counts.
    labels : sequence of L, optional
        Names of the layers.
    meta : mapping, optional
        JSON-able facts, such as the units that each level keeps.

    Raises
    ------
    InvalidProblem
        If the tables do not fit one another or no choice can meet the budget; says which budget can be met.

    Examples
    --------
    >>> choice = LevelChoice([[4.0, 1.0, 0.0], [3.0, 0.0]], [[1, 2, 4], [1, 3]], budget=5)
    >>> choice.value([1, 1]), choice.spent([1, 1]), choice.is_feasible([2, 1])
    (1.0, 5.0, False)
    """

    error: Sequence[Any]
    cost: Sequence[Any]
    budget: float
    pair_cost: Mapping[tuple[int, int], Floats] = field(default_factory=dict)
    total: Literal["sum", "max"] = "sum"
    labels: Sequence[Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        error = tuple(floats(f"error[{i}]", e, (None,)) for i, e in enumerate(self.error))
        if any(not len(levels) for levels in error):
            raise InvalidProblem("error: expected at least one level for each layer, got a layer without")
        if len(self.cost) != len(error):
            raise InvalidProblem(f"cost: expected {len(error)} arrays, one a layer as in error, got {len(self.cost)}")
        cost = tuple(floats(f"cost[{i}]", c, (len(error[i]),)) for i, c in enumerate(self.cost))
        if self.total not in _TOTALS:
            raise unknown("total", self.total, _TOTALS)
        object.__setattr__(self, "error", error)
        object.__setattr__(self, "cost", cost)
        object.__setattr__(self, "budget", number("budget", self.budget))
        object.__setattr__(self, "pair_cost", _checked_pairs(self.pair_cost, [len(e) for e in error]))
        if self.labels is not None:
            object.__setattr__(self, "labels", checked_labels(self.labels, self.n))
        object.__setattr__(self, "meta", dict(self.meta))
        self._check_budget()

    @property
    def n(self) -> int:
        """Number of layers."""
        return len(self.error)

    @property
    def k(self) -> None:
        """No cardinality: how many units are kept follows from the levels."""
        return None

    @property
    def constraints(self) -> tuple[()]:
        """None beside the budget."""
        return ()

    @property
    def sizes(self) -> Indices:
        """(L,) number of levels of each layer."""
        return np.array([len(e) for e in self.error], dtype=np.int64)

    @property
    def is_separable(self) -> bool:
        """Whether no two layers cost something together."""
        return not self.pair_cost

    @property
    def is_chain(self) -> bool:
        """Whether only neighbours l, l + 1 cost something together."""
        return all(m == low + 1 for low, m in self.pair_cost)

    def checked(self, name: str, x: Any) -> Indices:
        """An int copy of one choice (L,) or of rows (m, L); refuses anything else."""
        return checked_levels(name, x, self.sizes)

    def value(self, x: Any) -> Any:
        """sum_l error[l][s_l] of one choice (L,) as a float, or of each row (m, L)."""
        levels = self.checked("x", x)
        total = sum((e[levels[..., i]] for i, e in enumerate(self.error)), start=np.zeros(levels.shape[:-1]))
        return float(total) if levels.ndim == 1 else total

    def spent(self, x: Any) -> Any:
        """What one choice (L,) costs as a float, or each row (m, L)."""
        levels = self.checked("x", x)
        join = np.add if self.total == "sum" else np.maximum
        found = np.zeros(levels.shape[:-1])
        for i, term in enumerate(self._terms(levels)):
            found = term if i == 0 else join(found, term)
        return float(found) if levels.ndim == 1 else found

    def violation(self, x: Any) -> Any:
        """By how much x (L,), or each row of x (m, L), exceeds the budget."""
        excess = np.maximum(0.0, np.asarray(self.spent(x)) - self.budget)
        return float(excess) if excess.ndim == 0 else excess

    def is_feasible(self, x: Any) -> Any:
        """Whether x (L,), or each row of x (m, L), keeps the budget, within 1e-9 of its scale."""
        holds = np.asarray(self.violation(x)) <= self.slack
        return bool(holds) if holds.ndim == 0 else holds

    @cached_property
    def slack(self) -> float:
        """What rounding may add to the spending."""
        tables = [*self.cost, *self.pair_cost.values(), np.array([self.budget])]
        return _SLACK * max(1.0, *(float(np.abs(t).max()) for t in tables))

    @cached_property
    def cheapest(self) -> Indices:
        """(L,) the choice that spends least where the pair costs are a chain, else a cheap one."""
        return _cheapest(self)

    @cached_property
    def hash(self) -> str:
        """Content hash: the first 16 hex digits of a SHA-256 over the tables."""
        return content_hash(_arrays(self))

    def replace(self, **changes: Any) -> LevelChoice:
        """The same problem with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)

    def save(self, path: str | Path) -> None:
        """Write the instance as `.npz` (format `prunesolve/1`, no pickle), whole or not at all."""
        write(path, "level-choice", _arrays(self) | {"meta": json_array("meta", dict(self.meta))})

    @classmethod
    def load(cls, path: str | Path) -> LevelChoice:
        """Read what `save` wrote."""
        return unpack(path, _from_arrays, read(path, "level-choice"))

    def _terms(self, levels: Indices) -> Iterator[Any]:
        for i, cost in enumerate(self.cost):
            yield cost[levels[..., i]]
        for (i, j), pair in self.pair_cost.items():
            yield pair[levels[..., i], levels[..., j]]

    def _check_budget(self) -> None:
        if self.n == 0:
            return
        least = float(self.spent(self.cheapest))
        if least <= self.budget + self.slack:
            return
        if self.is_chain:
            raise InvalidProblem(
                f"LevelChoice: budget {self.budget:g} cannot be met; the smallest that can is {least:.17g}"
            )
        bound = _least(self)
        if bound > self.budget + self.slack:
            raise InvalidProblem(
                f"LevelChoice: budget {self.budget:g} cannot be met; none below {bound:.17g} can, {least:.17g} does"
            )


def _checked_pairs(pairs: Any, sizes: Sequence[int]) -> dict[tuple[int, int], Floats]:
    if not isinstance(pairs, Mapping):
        raise InvalidProblem(f"pair_cost: expected a mapping {{(l, m): array}}, got {type(pairs).__name__}")
    checked = {}
    for key, table in pairs.items():
        ends = tuple(integers("pair_cost key", key, (2,)).tolist())
        if not 0 <= ends[0] < ends[1] < len(sizes):
            raise InvalidProblem(f"pair_cost: expected keys (l, m) with 0 <= l < m < {len(sizes)}, got {key!r}")
        checked[ends] = floats(f"pair_cost[{ends}]", table, (sizes[ends[0]], sizes[ends[1]]))
    return dict(sorted(checked.items()))


def _cheapest(choice: LevelChoice) -> Indices:
    """Exact on a chain, where the best way to every level follows from those to its predecessor; else descent."""
    if choice.is_chain:
        return _cheapest_chain(choice)
    levels = np.array([int(c.argmin()) for c in choice.cost], dtype=np.int64)
    spent, improved = choice.spent(levels), True
    while improved:
        improved = False
        for i, size in enumerate(choice.sizes):
            rows = np.repeat(levels[None], size, axis=0)
            rows[:, i] = np.arange(size)
            found = choice.spent(rows)
            if found.min() < spent - choice.slack:
                levels, spent, improved = rows[int(found.argmin())], float(found.min()), True
    return levels


def _cheapest_chain(choice: LevelChoice) -> Indices:
    join = np.add if choice.total == "sum" else np.maximum
    best, came = choice.cost[0], []
    for i in range(1, choice.n):
        pair = choice.pair_cost.get((i - 1, i))
        # without a pair term nothing is joined: a zero would be wrong for the largest of negative terms
        ways = np.repeat(best[:, None], choice.sizes[i], axis=1) if pair is None else join(best[:, None], pair)
        came.append(ways.argmin(axis=0))
        best = join(ways.min(axis=0), choice.cost[i])
    levels = [int(best.argmin())]
    for back in reversed(came):
        levels.append(int(back[levels[-1]]))
    return np.array(levels[::-1], dtype=np.int64)


def _least(choice: LevelChoice) -> float:
    """A lower bound on the spending: every term at its least."""
    terms = [float(t.min()) for t in (*choice.cost, *choice.pair_cost.values())]
    return sum(terms) if choice.total == "sum" else max(terms)


def _arrays(choice: LevelChoice) -> dict[str, Any]:
    """What makes the instance: tables one after another, with the sizes that part them."""
    keys = list(choice.pair_cost)
    labels = {} if choice.labels is None else {"labels": json_array("labels", list(choice.labels))}
    return labels | {
        "sizes": choice.sizes,
        "error": np.concatenate([*choice.error, np.zeros(0)]),
        "cost": np.concatenate([*choice.cost, np.zeros(0)]),
        "budget": np.array(choice.budget),
        "total": np.array(choice.total),
        "pairs": np.array(keys, dtype=np.int64).reshape(-1, 2),
        "pair_cost": np.concatenate([*(choice.pair_cost[k].ravel() for k in keys), np.zeros(0)]),
    }


def _from_arrays(arrays: dict[str, Any]) -> LevelChoice:
    sizes = integers("sizes", arrays["sizes"], (None,))
    pairs = integers("pairs", arrays["pairs"], (None, 2))
    areas = [int(sizes[a] * sizes[b]) for a, b in pairs]
    tables = np.split(arrays["pair_cost"], np.cumsum(areas)[:-1]) if len(areas) else []
    parts = np.cumsum(sizes)[:-1]
    return LevelChoice(
        np.split(arrays["error"], parts) if len(sizes) else [],
        np.split(arrays["cost"], parts) if len(sizes) else [],
        float(arrays["budget"]),
        {(int(a), int(b)): t.reshape(sizes[a], sizes[b]) for (a, b), t in zip(pairs, tables, strict=True)},
        str(arrays["total"]),  # type: ignore[arg-type]
        labels=json.loads(str(arrays["labels"])) if "labels" in arrays else None,
        meta=json.loads(str(arrays["meta"])),
    )
