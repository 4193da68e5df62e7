r"""What the library itself says of a transport plan: what it carries, and what duals prove of any plan.

A plan of mass M costs at least t M + <u, a> + <v, b> where u <= 0, v <= 0 and t + u_i + v_j <= c_ij for all i, j.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from prunesolve.problems import InvalidProblem, PartialTransport
from prunesolve.problems._arrays import Floats

# entries of the cost that are looked at together
_CHUNK = 1 << 15
_ROUNDING = 1e-9


class Duals(NamedTuple):
    """A lower bound on the cost of every plan, and what proves it: u (n,), v (m,) and the multiplier t of the mass."""

    bound: float
    u: Floats
    v: Floats
    t: float

    def told(self) -> dict[str, Any]:
        """As the details of a result tell it."""
        return {"u": self.u, "v": self.v, "mass": self.t}


def repaired(problem: PartialTransport, u: Any, v: Any, objective: float = np.inf) -> Duals:
    r"""The best bound that goes with either half of the duals (u (n,), v (m,)), whatever they are.

    Given v, the best u_i is min(0, r_i - t) with r_i = min_j c_ij - v_j, and the bound is concave in t: its largest
    value is where the sources with r_i < t hold the mass. Optimal duals so come back with the optimal value after one
    pass over the cost. Only a bound that does not reach the `objective` takes a second, over the columns given u.
    """
    u, v = _clipped("u", u, problem.n), _clipped("v", v, problem.m)
    t, best, value = _best(_row_minima(problem.cost, v), problem.source, problem.mass)
    from_rows = Duals(value + float(v @ problem.target), best, v, t)
    if closed(problem, objective, from_rows.bound):
        return from_rows
    t, best, value = _best(_column_minima(problem.cost, u), problem.target, problem.mass)
    return max(from_rows, Duals(value + float(u @ problem.source), u, best, t), key=lambda duals: duals.bound)


def greedy(problem: PartialTransport) -> Any:
    """A feasible plan: each source in turn, that of the cheapest edge first, to the cheapest targets with room."""
    return filled(problem, problem.source.copy(), problem.target.copy(), problem.mass)


def filled(problem: PartialTransport, left: Floats, room: Floats, mass: float) -> Any:
    """A plan that carries the mass from what the sources have left (n,) to where the targets have room (m,)."""
    from scipy import sparse

    rows: list[int] = []
    columns: list[int] = []
    amounts: list[float] = []
    full = np.where(room > 0.0, 0.0, np.inf)
    for i in np.argsort(_row_minima(problem.cost, np.zeros(problem.m))):
        if mass <= 0.0:
            break
        while left[i] > 0.0 and mass > 0.0:
            j = int((problem.cost[i] + full).argmin())
            if room[j] <= 0.0:
                break
            amount = min(left[i], room[j], mass)
            left[i], room[j], mass = left[i] - amount, room[j] - amount, mass - amount
            if room[j] <= 0.0:
                full[j] = np.inf
            rows.append(int(i))
            columns.append(j)
            amounts.append(float(amount))
    return sparse.csr_array((amounts, (rows, columns)), shape=problem.cost.shape)


def told(problem: PartialTransport, plan: Any) -> dict[str, Any]:
    """The facts of a plan, or of none, for the details of a result."""
    facts: dict[str, Any] = {"mass_asked": problem.mass}
    if plan is not None:
        errors = zip(("source", "target", "mass"), problem.marginal_errors(plan), strict=True)
        facts |= {"mass_carried": float(plan.sum()), "marginal_errors": dict(errors)}
    return facts


def closed(problem: PartialTransport, objective: float, bound: float | None) -> bool:
    """Whether only rounding parts a plan's value from a bound."""
    return bound is not None and objective - bound <= _ROUNDING * problem.scale


def listed(plan: Any) -> dict[str, Any]:
    """A plan as JSON tells it: rows [source, target, mass], and its shape."""
    found = plan.tocoo()
    rows = zip(found.row.tolist(), found.col.tolist(), found.data.tolist(), strict=True)
    return {"plan": [list(row) for row in rows], "shape": list(plan.shape)}


def unlisted(told_: Mapping[str, Any]) -> Any:
    """The plan that `listed` told."""
    from scipy import sparse

    try:
        rows = np.array(told_["plan"], dtype=np.float64).reshape(-1, 3)
        ends = rows[:, :2].astype(np.int64)
        return sparse.csr_array((rows[:, 2], (ends[:, 0], ends[:, 1])), shape=tuple(told_["shape"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidProblem(
            f"solution: expected a plan of rows [source, target, mass] within its shape ({error})"
        ) from None


def _clipped(name: str, values: Any, size: int) -> Floats:
    """Duals as they may be: at most zero; what is no number counts as zero, which always may."""
    duals = np.asarray(values, dtype=np.float64)
    if duals.shape != (size,):
        raise InvalidProblem(f"{name}: expected duals of shape ({size},), got {duals.shape}")
    return np.where(np.isfinite(duals), np.minimum(duals, 0.0), 0.0)


def _row_minima(cost: Any, v: Floats) -> Floats:
    """(n,) min_j c_ij - v_j."""
    return np.concatenate([(cost[part] - v).min(axis=1) for part in _parts(cost)])


def _column_minima(cost: Any, u: Floats) -> Floats:
    """(m,) min_i c_ij - u_i."""
    least = np.full(cost.shape[1], np.inf)
    for part in _parts(cost):
        np.minimum(least, (cost[part] - u[part, None]).min(axis=0), out=least)
    return least


def _parts(cost: Any) -> list[slice]:
    """Rows that stay in the cache together."""
    step = max(1, _CHUNK // cost.shape[1])
    return [slice(start, start + step) for start in range(0, len(cost), step)]


def _best(reduced: Floats, weights: Floats, mass: float) -> tuple[float, Floats, float]:
    """The multiplier t, the duals min(0, reduced - t) and the largest value of t mass + <duals, weights>."""
    order = np.argsort(reduced)
    place = int(np.searchsorted(np.cumsum(weights[order]), mass))
    t = float(reduced[order[min(place, len(order) - 1)]])
    duals = np.minimum(0.0, reduced - t)
    return t, duals, t * mass + float(duals @ weights)
