r"""What the caller asks for, as constraints.

    keep            sum_i x_i = k                                     k a count, or floor(f n + 0.5)
    params, macs    constant + c.x + sum_{i<j} q_ij x_i x_j <= limit  a number, or a fraction of the dense total
    minimum         sum_{i in g} x_i >= min(minimum, size of g)       for every group g

Parameters and MACs are bilinear in the widths of neighbouring layers; the pair costs make them exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from prunesolve.problems import Budget, Cardinality, Constraint, GroupBounds, InvalidProblem, Statistics
from prunesolve.problems._arrays import Floats, Indices
from prunesolve.problems._feasibility import cheapest

Amount = int | float


class Demand(NamedTuple):
    """The constraints that say what was asked, and the same as JSON-able facts."""

    constraints: tuple[Constraint, ...]
    told: dict[str, Any]


def demand(
    stats: Statistics,
    *,
    minimum: int = 1,
    keep: Amount | None = None,
    params: Amount | None = None,
    macs: Amount | None = None,
) -> Demand:
    """The constraints for units kept, parameters and MACs, with at least `minimum` units in every group.

    Raises
    ------
    InvalidProblem
        If nothing is asked, an amount is no amount, or no selection can meet it; then with the smallest that can.

    Examples
    --------
    >>> from prunesolve.problems import Group
    >>> stats = Statistics([Group("fc1", 4, [("fc1", "out", [[0], [1], [2], [3]])])], cost={"params": [5.0] * 4})
    >>> demand(stats, keep=0.5, params=15).told
    {'minimum': 1, 'keep': {'asked': 0.5, 'units': 2, 'of': 4}, 'params': {'asked': 15, 'limit': 15.0, 'of': 20.0}}
    """
    resources = {name: asked for name, asked in (("params", params), ("macs", macs)) if asked is not None}
    check_asked(resources if keep is None else resources | {"keep": keep})
    told: dict[str, Any] = {"minimum": minimum}
    bounds = _at_least(stats, minimum)
    constraints: list[Constraint] = [bounds] if minimum else []
    k = None
    if keep is not None:
        k = _reachable(units_to_keep(keep, stats.n), bounds)
        constraints.append(Cardinality(k))
        told["keep"] = {"asked": _plain(keep), "units": k, "of": stats.n}
    for resource, asked in resources.items():
        total = _total(stats, resource)
        limit = spending_limit(resource, asked, total)
        _check_affordable(stats, resource, limit, k, bounds)
        spendable = max(0.0, limit - stats.constant.get(resource, 0.0))
        constraints.append(Budget(stats.cost[resource], spendable, stats.pair_cost.get(resource)))
        told[resource] = {"asked": _plain(asked), "limit": limit, "of": total}
    return Demand(tuple(constraints), told)


def at_most(
    stats: Statistics,
    *,
    minimum: int = 1,
    keep: Amount | None = None,
    params: Amount | None = None,
    macs: Amount | None = None,
) -> Demand:
    """The same with `keep` as the most units instead of their exact number, and nothing that must be asked.

    Raises
    ------
    InvalidProblem
        As `demand`.

    Examples
    --------
    >>> from prunesolve.problems import Group
    >>> stats = Statistics([Group("fc1", 4, [("fc1", "out", [[0], [1], [2], [3]])])])
    >>> [type(c).__name__ for c in at_most(stats, keep=0.5).constraints], at_most(stats).told
    (['GroupBounds', 'Budget'], {'minimum': 1})
    """
    bounds = _at_least(stats, minimum)
    constraints: tuple[Constraint, ...] = (bounds,) if minimum else ()
    told: dict[str, Any] = {"minimum": minimum}
    if keep is not None:
        k = _reachable(units_to_keep(keep, stats.n), bounds)
        constraints += (Budget(np.ones(stats.n), float(k)),)
        told["keep"] = {"asked": _plain(keep), "units": k, "of": stats.n}
    if params is None and macs is None:
        return Demand(constraints, told)
    spending = demand(stats, minimum=minimum, params=params, macs=macs)
    budgets = tuple(c for c in spending.constraints if isinstance(c, Budget))
    return Demand(constraints + budgets, told | spending.told)


def least_of_groups(stats: Statistics, minimum: int) -> Indices:
    """(g,) units that each group keeps at least."""
    return _at_least(stats, minimum).low


def check_asked(asked: Mapping[str, Any]) -> None:
    """Refuse what can be no budget, whatever the network: before hours of measuring, not after."""
    if not asked:
        raise InvalidProblem("expected at least one budget, got none; give keep, params or macs")
    counted = {"keep": "units", "params": "parameters", "macs": "multiply-adds"}
    for name, amount in asked.items():
        _check_amount(name, amount, counted[name])


def units_to_keep(keep: Any, n: int) -> int:
    """The count k that `keep` stands for: itself, or floor(f n + 0.5) for a fraction f of the n units.

    Examples
    --------
    >>> units_to_keep(0.5, 5), units_to_keep(3, 5)
    (3, 3)
    """
    _check_amount("keep", keep, f"units of {n}")
    k = int(keep) if isinstance(keep, Integral) else math.floor(float(keep) * n + 0.5)
    if k > n:
        raise InvalidProblem(f"keep: asked for {k} of {n} units; the largest count that can be kept is {n}")
    return k


def spending_limit(resource: str, asked: Any, total: float) -> float:
    """The limit that `asked` stands for: itself, or a fraction of the dense total."""
    _check_amount(resource, asked, f"{resource} of {total:.0f}")
    return float(asked) if isinstance(asked, Integral) else float(asked) * total


def _check_amount(name: str, asked: Any, counted: str) -> None:
    """Only a whole number >= 0, or one with a point in (0, 1]."""
    if isinstance(asked, (bool, np.bool_)) or not isinstance(asked, Real):
        raise InvalidProblem(
            f"{name}: expected a fraction such as 0.5 or a number of {counted}, got {type(asked).__name__} {asked!r}"
        )
    if isinstance(asked, Integral):
        if int(asked) < 0:
            raise InvalidProblem(f"{name}: expected a number >= 0 of {counted}, got {asked}")
    elif not 0.0 < float(asked) <= 1.0:
        raise InvalidProblem(
            f"{name}: a number with a point is a fraction and lies in (0, 1], got {asked}; "
            f"without a point it is a number of {counted}"
        )


def _plain(asked: Amount) -> Amount:
    return int(asked) if isinstance(asked, Integral) else float(asked)


def _at_least(stats: Statistics, minimum: int) -> GroupBounds:
    sizes = np.diff(stats.starts)
    return GroupBounds(stats.group_of, np.minimum(minimum, sizes), sizes)


def _reachable(k: int, bounds: GroupBounds) -> int:
    least = int(bounds.low.sum())
    if k < least:
        raise InvalidProblem(
            f"keep: {k} units cannot leave each of {len(bounds.low)} groups its minimum; "
            f"the smallest count that can is {least}, unless `minimum` is lowered"
        )
    return k


def _total(stats: Statistics, resource: str) -> float:
    if resource not in stats.cost:
        raise InvalidProblem(
            f"a {resource} budget needs cost {resource!r}, the statistics hold {', '.join(stats.cost) or 'none'}"
        )
    return stats.total(resource)


def _check_affordable(stats: Statistics, resource: str, limit: float, k: int | None, bounds: GroupBounds) -> None:
    """Refuse a limit below what any selection of k units within the bounds spends."""
    slack = 1e-9 * max(1.0, stats.total(resource))
    if _cheapest_spend(stats, resource, stats.cost[resource], k, bounds)[1] <= limit + slack:
        return
    least, spent = _cheapest_spend(stats, resource, _least_shares(stats, resource, bounds), k, bounds)
    if least > limit + slack:
        kept = "the minimum of every group" if k is None else f"{k} units"
        # with both `keep` and pair costs the share may fall short of the truth
        nearest = f"the smallest limit that can is {math.ceil(spent - slack)}"
        if spent > least + slack:
            nearest = f"no limit below {math.ceil(least - slack)} can, and {math.ceil(spent - slack)} does"
        raise InvalidProblem(
            f"{resource}: {limit:.0f} of {stats.total(resource):.0f} cannot be met with {kept}; {nearest}"
        )


def _cheapest_spend(
    stats: Statistics, resource: str, share: Floats, k: int | None, bounds: GroupBounds
) -> tuple[float, float]:
    """(what the cheapest selection costs by its units' shares, what it spends in truth), both with the constant."""
    least, kept = cheapest(share, k, bounds, stats.n)
    return least + stats.constant.get(resource, 0.0), stats.spent(resource, kept)


def _least_shares(stats: Statistics, resource: str, bounds: GroupBounds) -> Floats:
    """(n,) c_i + r_i / 2, where r_i is the least that unit i pays together with the minimum of every group.

    x' Q x / 2 = sum_i x_i (Q x)_i / 2 and (Q x)_i >= r_i, so no selection spends less than its units' shares; where
    the units of a group cost the same and no more than the minimum is kept, it spends exactly that.
    """
    cost, pair = stats.cost[resource], stats.pair_cost.get(resource)
    if pair is None:
        return cost
    paid = sum((part for part in _cheapest_partners(stats, pair, bounds)), start=np.zeros(stats.n))
    return cost + paid / 2


def _cheapest_partners(stats: Statistics, pair: Any, bounds: GroupBounds) -> Iterator[Floats]:
    """(n,) for each group: what every unit pays for the group's `low` cheapest units."""
    columns = pair.tocsc()
    for g, low in enumerate(bounds.low):
        block = columns[:, stats.starts[g] : stats.starts[g + 1]].toarray()
        yield np.sort(block, axis=1)[:, : int(low)].sum(axis=1)
