"""Which units to prune next by their activations: the mutations of evolved autoencoders.

Reference: the operators of arXiv 2505.05138 (GECCO 2025) for pruning autoencoders, here on selections and levels;
reconstruction. There whole networks mutate towards fewer units only; here `Nsga2` mixes these with its own steps, which
also bring units back.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from prunesolve.problems import MultiObjective
from prunesolve.problems._arrays import Bits, Floats, Indices

from ._grid import Levels

NAMES = ("swap", "random", "variance", "conjunctive")
_QUIET = 0.1  # of an input's range within a group: below it a unit counts as silent on that input
_INPUTS = 100  # of them that a conjunction may have

# probability at time t in [0, 1] of the search, as a share of the full one
SCHEDULES: dict[str, Callable[[float], float]] = {
    "fixed": lambda t: 1.0,
    "increase": lambda t: t,
    "decrease": lambda t: 1.0 - t,
    "exponential": lambda t: 1.0 - math.exp(-2.0 * t),
    "late": lambda t: float(t >= 0.75),
}


def needs_activity(name: str) -> bool:
    """Whether a mutation looks at activations."""
    return name in ("variance", "conjunctive")


class Pruning:
    """Draws the units that a mutation steps down.

    random       each kept unit with probability `amount`
    variance     as many on average, the likelier the less a unit's activation varies: 1 - std, scaled to [0, 1] in its
                 group
    conjunctive  in each group the kept units silent on a first random input and a second and ..., until one is left

    The published code of "variance" prunes units of high variability, its paper and notes those of low variability;
    here low variability is pruned, since a unit that hardly varies is what a bias can replace.

    Parameters
    ----------
    name : {"random", "variance", "conjunctive"}
        The mutation.
    problem : MultiObjective
        Whose `activity` (samples, n) is looked at.
    group : (n,) int
        Groups 0, 1, ... of the coordinates.
    amount : float
        Share of the kept units that random and variance prune.
    """

    def __init__(self, name: str, problem: MultiObjective, group: Indices, amount: float) -> None:
        self._name, self._amount = name, amount
        self._member = group[:, None] == np.arange(int(group.max(initial=0)) + 1)
        if problem.activity is not None and len(problem.activity):
            self._steady = 1.0 - _scaled(problem.activity.std(axis=0)[None], self._member)[0]
            self._silent = _scaled(problem.activity, self._member) < _QUIET

    def chosen(self, rows: Levels, rng: np.random.Generator) -> Bits:
        """(m, n) the coordinates of each row that go one level down; none at the lowest is among them."""
        kept = rows > 0
        if self._name == "conjunctive":
            return self._conjunctive(kept, rng)
        weight = np.ones(kept.shape[1]) if self._name == "random" else self._steady
        total = (kept * weight).sum(axis=1, keepdims=True)
        wanted = self._amount * kept.sum(axis=1, keepdims=True)
        chance = wanted * weight / np.where(total > 0, total, 1.0)
        return kept & (rng.random(kept.shape) < chance)

    def _conjunctive(self, kept: Bits, rng: np.random.Generator) -> Bits:
        left, narrowed = kept.copy(), np.zeros((len(kept), self._member.shape[1]), dtype=bool)
        for _ in range(min(_INPUTS, len(self._silent))):
            counts = left.astype(np.float32) @ self._member
            silent = left & self._silent[rng.integers(len(self._silent), size=len(kept))]
            # a condition that nothing meets is left out, one unit needs no further condition
            narrows = (counts > 1) & (silent.astype(np.float32) @ self._member > 0)
            if not (counts > 1).any():
                break
            narrowed |= narrows
            left = np.where(narrows @ self._member.T, silent, left)
        return left & (narrowed @ self._member.T)


def _scaled(values: Floats, member: Bits) -> Floats:
    """Rows (s, n) from 0 to 1 within each group; 0 where a group does not vary."""
    scaled = np.zeros(values.shape)
    for units in member.T:
        part = values[:, units]
        low, span = part.min(axis=1, keepdims=True), np.ptp(part, axis=1, keepdims=True)
        scaled[:, units] = (part - low) / np.where(span > 0, span, 1.0)
    return scaled
