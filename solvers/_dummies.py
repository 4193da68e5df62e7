r"""A partial transport as a balanced one: what is not carried goes to one dummy target and comes from one dummy source.

    c' = [(c - min c) / (max c - min c), 0; 0, corner],    a' = [a, sum b - mass],    b' = [b, sum a - mass]

Masses are divided by their sum, so that the tolerances of other libraries suit them; points without weight are left
out. As Chapel, Alaya and Gasso (2020) and POT's `partial_wasserstein`, whose corner 2 max c allows more than the mass
where no cost is positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunesolve.problems import PartialTransport
from prunesolve.problems._arrays import Floats, Indices

# flow that is left of what is none, where all mass is 1
_ROUNDING = 1e-15


@dataclass(frozen=True)
class Balanced:
    """The balanced problem: cost (p, q), source (p,) and target (q,) that both add up to 1.

    `rows` and `columns` are the points with weight, in the order of the balanced ones; `spare_target` says that the
    last column is the dummy target, `spare_source` that the last row is the dummy source.
    """

    problem: PartialTransport
    cost: Floats
    source: Floats
    target: Floats
    rows: Indices
    columns: Indices
    spare_source: bool
    spare_target: bool
    least: float
    spread: float
    total: float

    def plan(self, flow: Floats) -> Any:
        """The sparse plan (n, m) in a balanced flow (p, q)."""
        from scipy import sparse

        core = flow[: len(self.rows), : len(self.columns)]
        i, j = np.nonzero(core > _ROUNDING)
        ends = (self.rows[i], self.columns[j])
        return sparse.csr_array((self.total * core[i, j], ends), shape=self.problem.cost.shape)

    def duals(self, f: Floats, g: Floats) -> tuple[Floats, Floats]:
        """The duals u (n,) and v (m,) in balanced potentials f (p,) and g (q,)."""
        own, others = f[: len(self.rows)], g[: len(self.columns)]
        # potentials may be shifted against each other: the dummies' become zero, or the largest where there is none
        u = self.spread * (own + g[-1] if self.spare_target else own - own.max())
        v = self.spread * (others + f[-1] if self.spare_source else others - others.max())
        # duals of points without weight cost nothing: so low that their entries of the cost are never the least
        low = 2.0 * self.problem.scale / self.problem.mass
        u_all, v_all = np.full(self.problem.n, u.min() - low), np.full(self.problem.m, v.min() - low)
        u_all[self.rows], v_all[self.columns] = u, v
        return u_all, v_all


def balanced(problem: PartialTransport, corner: float) -> Balanced:
    """The balanced problem; `corner` is the cost from dummy to dummy, where costs are from 0 to 1."""
    rows, columns = np.flatnonzero(problem.source), np.flatnonzero(problem.target)
    held, taken = float(problem.source.sum()), float(problem.target.sum())
    # rounding is no mass that could be left
    spare_source, spare_target = taken - problem.mass > problem.slack, held - problem.mass > problem.slack
    p, q = len(rows), len(columns)
    cost = np.zeros((p + spare_source, q + spare_target))
    core = cost[:p, :q]
    whole = p == problem.n and q == problem.m
    core[:] = problem.cost if whole else problem.cost[np.ix_(rows, columns)]
    least = float(core.min())
    spread = float(core.max()) - least or 1.0
    core -= least
    core /= spread
    if spare_source and spare_target:
        cost[p, q] = corner
    source = np.append(problem.source[rows], [taken - problem.mass] * spare_source)
    target = np.append(problem.target[columns], [held - problem.mass] * spare_target)
    total = float(source.sum())
    target *= total / float(target.sum())
    return Balanced(
        problem,
        cost,
        source / total,
        target / total,
        rows,
        columns,
        spare_source,
        spare_target,
        least,
        spread,
        total,
    )
