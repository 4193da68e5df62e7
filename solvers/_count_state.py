r"""A probability tensor in tensor-train format over the points of a space, every one of them feasible.

p(s) = 1[s feasible] sum_a prod_i G_i[a_{i-1}, s_i, a_i] / Z        G_i = exp(logits_i) >= 0, ranks r

The indicator of the constraints is itself a tensor train, whose bond is the running count (the count of units kept, the
kept ones of the group at hand, the cost spent). The product of both is summed by one backward sweep over (count, a), so
that Z, samples, marginals and the gradient of the likelihood are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prunesolve.problems import GroupBounds, LevelTuples, Selections
from prunesolve.problems._arrays import Floats, Indices

from . import _kernels

_WIDEST = 40.0  # spread of the logits of a mode; exp of it is what probabilities can still tell apart


@dataclass(frozen=True, eq=False)
class CountStates:
    """The indicator of the feasible points as an automaton that reads one mode after the other.

    Parameters
    ----------
    sizes : (m,) int
        Levels of each mode.
    first : (m + 2,) int
        States after i modes are first[i] to first[i + 1] - 1; from each of them a feasible point can be reached.
    to : (states, largest size) int
        State that a level leads to, -1 for none.
    """

    sizes: Indices
    first: Indices
    to: Any

    @classmethod
    def reading(cls, steps: Sequence[Step], least: int = 0, most: int = 0) -> CountStates:
        """The states of modes whose costs must add up to `least` at least and `most` at most."""
        keys, ways = [np.zeros(1, dtype=np.int64)], []
        for step in steps:
            after = step.after(keys[-1])
            after[after >= (most + 1) * _FIELD] = -1
            keys.append(np.unique(after[after >= 0]))
            ways.append(np.where(after >= 0, np.searchsorted(keys[-1], after), -1))
        alive: Any = keys[-1] >= least * _FIELD
        index = [np.where(alive, np.cumsum(alive) - 1, -1)]
        tables: list[Any] = []
        for way in reversed(ways):
            way = np.where(way >= 0, index[-1][way], -1)
            alive = (way >= 0).any(axis=1)
            index.append(np.where(alive, np.cumsum(alive) - 1, -1))
            tables.append(way[alive])
        return cls._joined([len(step.cost) for step in steps], tables[::-1], int((index[0] >= 0).sum()))

    @classmethod
    def _joined(cls, sizes: list[int], tables: list[Any], last: int) -> CountStates:
        """All tables in one, states numbered through."""
        first = np.cumsum([0, *(len(table) for table in tables), last])
        to = np.full((first[-1], max(sizes, default=1)), -1, dtype=np.int32)
        for i, table in enumerate(tables):
            to[first[i] : first[i + 1], : sizes[i]] = np.where(table >= 0, table + first[i + 1], -1)
        return cls(np.array(sizes, dtype=np.int64), first.astype(np.int64), to)

    @property
    def modes(self) -> int:
        """Number of modes."""
        return len(self.sizes)

    @property
    def empty(self) -> bool:
        """Whether no point is feasible."""
        return self.first[-1] == self.first[-2]


_FIELD = 1 << 20  # a state's key is total * _FIELD + what its group has so far


@dataclass(frozen=True, eq=False)
class Step:
    """What one mode adds to the running count.

    Parameters
    ----------
    cost : (levels,) int
        What each level adds to the total; for the units of a group also to the group's count.
    counted : bool
        Whether a count of the group is kept.
    low, high : int
        Bounds on it; at `cap` it is full and counts no further.
    cap : int
        From here on all counts are one.
    closes : bool
        Whether the group ends here.
    totalled : bool
        Whether the total matters.
    """

    cost: Indices
    counted: bool = False
    low: int = 0
    high: int = 0
    cap: int = 0
    closes: bool = False
    totalled: bool = True

    def after(self, keys: Indices) -> Indices:
        """(states, levels) key of what follows, -1 where a bound is broken."""
        total, count = np.divmod(keys[:, None], _FIELD)
        total = total + (self.cost if self.totalled else 0 * self.cost)
        broken = np.zeros(total.shape, dtype=bool)
        if self.counted:
            count = count + self.cost
            broken = count > self.high
            count = np.minimum(count, self.cap)
            if self.closes:
                broken |= count < self.low
                count = 0 * count
        return np.where(broken, -1, total * _FIELD + count)


def of_levels(space: LevelTuples) -> CountStates:
    """The states of level tuples: what was spent."""
    return CountStates.reading(
        [Step(cost) for cost in space.cost], least=space.budget if space.exact else 0, most=space.budget
    )


def of_selections(space: Selections, units: Indices, x: Any) -> CountStates:
    """The states of some units (m,) of a selection x (n,) whose other units stay as they are.

    The units must come group by group (`in_order`). A mode's level is the unit's bit.
    """
    bounds = next(iter(space.of_kind(GroupBounds)), None)
    frozen = np.array(x, dtype=bool)
    frozen[units] = False
    wanted = None if space.k is None else space.k - int(frozen.sum())
    bit = np.arange(2)
    if bounds is None:
        steps = [Step(bit, totalled=wanted is not None)] * len(units)
    else:
        steps = _grouped(bounds, units, bounds.counts(frozen), wanted is not None)
    return CountStates.reading(steps, least=wanted or 0, most=wanted or 0)


def _grouped(bounds: GroupBounds, units: Indices, kept: Indices, totalled: bool) -> list[Step]:
    """A step for each unit; `kept` (g,) of each group are kept by the frozen units."""
    group = bounds.group[units]
    steps = []
    for i, g in enumerate(group):
        if g < 0:
            steps.append(Step(np.arange(2), totalled=totalled))
            continue
        size = int((group == g).sum())
        low, high = max(0, int(bounds.low[g] - kept[g])), min(size, int(bounds.high[g] - kept[g]))
        closes = i + 1 == len(group) or group[i + 1] != g
        # a group that cannot overflow is counted up to its lower bound only
        cap = low if high >= size else size
        steps.append(Step(np.arange(2), low > 0 or high < size, low, high, cap, closes, totalled))
    return steps


def in_order(space: Selections, units: Indices) -> Indices:
    """The units (m,) group by group, otherwise in their order."""
    bounds = next(iter(space.of_kind(GroupBounds)), None)
    return units if bounds is None else units[np.argsort(bounds.group[units], kind="stable")]


class ProbabilityTensor:
    """A distribution over the points that `states` accepts; sampled and fitted exactly.

    Parameters
    ----------
    states : CountStates
        The indicator of the feasible points.
    logits : (m, r, levels, r) float
        Logarithms of the cores; entries of levels that a mode does not have are ignored.
    """

    def __init__(self, states: CountStates, logits: Floats) -> None:
        self.states = states
        self.logits = np.array(logits, dtype=np.float64)
        self._moments = np.zeros((2, *self.logits.shape))
        self._steps = 0

    @classmethod
    def product(cls, states: CountStates, weights: Floats) -> ProbabilityTensor:
        """Rank 1: independent modes with log-weights (m, levels), but for the constraints."""
        missing = np.arange(weights.shape[1]) >= states.sizes[:, None]
        return cls(states, np.where(missing, -_WIDEST, weights)[:, None, :, None])

    def mixed(self, rank: int, rng: np.random.Generator) -> ProbabilityTensor:
        """A tensor of a higher rank beside this one of rank 1: products that differ a little and seldom mix."""
        if rank == 1:
            return self
        m, _, levels, _ = self.logits.shape
        own = self.logits + rng.normal(0.0, _OFF, (m, rank, levels, 1))
        stay = np.where(np.eye(rank, dtype=bool), 0.0, np.log(_LEAK))
        return ProbabilityTensor(self.states, own + stay[:, None, :])

    @property
    def rank(self) -> int:
        """The rank r of the learned part; the bond is r times the number of count states."""
        return self.logits.shape[1]

    def sample(self, count: int, rng: np.random.Generator) -> Any:
        """(count, m) points, all feasible."""
        out = np.zeros((count, self.states.modes), dtype=np.int16)
        self._kernel.sample(self._cores(), *self._ways, *self._ahead, rng.random((count, self.states.modes + 1)), out)
        return out

    def marginals(self) -> Floats:
        """(m, levels) probability of each level."""
        return self._expected().sum(axis=(1, 3))

    def log_likelihood(self, points: Any) -> float:
        """Mean log p of points (m, modes)."""
        return self._gradient(points)[0]

    def gradient(self, points: Any) -> Floats:
        """Gradient (m, r, levels, r) of the mean log-likelihood in the logits: what is seen minus what is expected."""
        return self._gradient(points)[1]

    def ascend(self, points: Any, steps: int, learning_rate: float) -> None:
        """Likelihood ascent on points (m, modes): Adam, whose moments live on between calls."""
        for _ in range(steps):
            gradient = self.gradient(points)
            self._steps += 1
            for moment, decay, seen in zip(self._moments, _DECAY, (gradient, gradient**2), strict=True):
                moment *= decay
                moment += (1 - decay) * seen
            mean, square = (
                moment / (1 - decay**self._steps) for moment, decay in zip(self._moments, _DECAY, strict=True)
            )
            self.shift(learning_rate * mean / (np.sqrt(square) + _TINY))

    def shift(self, change: Floats) -> None:
        """Add to the logits, whose spread within a mode stays bounded."""
        self.logits += change
        self.logits -= self._largest()
        np.maximum(self.logits, -_WIDEST, out=self.logits)
        self.__dict__.pop("_ahead", None)

    def _largest(self) -> Floats:
        return self.logits.max(axis=(1, 2, 3), keepdims=True)

    def _cores(self) -> Floats:
        return np.exp(np.maximum(self.logits - self._largest(), -_WIDEST))

    @property
    def _kernel(self) -> Any:
        return _kernels.load("count_state")

    @cached_property
    def _ways(self) -> tuple[Any, ...]:
        return self.states.sizes, self.states.first, self.states.to

    @cached_property
    def _ahead(self) -> tuple[Floats, Indices]:
        """Sum over all completions of each state: shares (states, r) and the power of two they count in (states,)."""
        states = int(self.states.first[-1])
        share, scale = np.zeros((states, self.rank)), np.zeros(states, dtype=np.int64)
        self._kernel.backward(self._cores(), *self._ways, share, scale)
        return share, scale

    def _expected(self) -> Floats:
        share, scale = self._ahead
        counts = np.zeros(self.logits.shape)
        self._kernel.expected(self._cores(), *self._ways, share, scale, np.zeros(share.shape), counts)
        return counts

    def _gradient(self, points: Any) -> tuple[float, Floats]:
        rows = np.ascontiguousarray(points, dtype=np.int16)
        weight = np.full(len(rows), 1 / len(rows))
        seen, ahead = np.zeros(self.logits.shape), np.zeros((self.states.modes + 1, self.rank))
        mean = self._kernel.observed(self._cores(), self.states.sizes, rows, weight, ahead, seen)
        share, scale = self._ahead
        log_z = np.log(share[0].sum()) + float(scale[0]) * np.log(2.0)
        return mean - log_z, seen - self._expected()


_OFF = 0.3  # standard deviation of the logits by which the products of a mixture differ at first
_LEAK = 0.02  # weight of leaving a product for another between two modes, against staying
_DECAY = (0.9, 0.99)
_TINY = 1e-8
