"""Local search on a black box by feasible swaps, ranked by a surrogate that learns from what was evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import BinaryQuadratic, BlackBox, InvalidProblem, unknown
from prunesolve.problems._arrays import Bits, Floats

from ._base import Run, Solver, Status
from ._change_model import ChangeModel
from ._evaluations import Evaluations
from ._model_walk import LARGEST, ModelWalk
from ._proposals import Moves, moves_of
from ._undecided import undecided

_RANKINGS = ("learned", "surrogate", "random", "halved")
_DRAWS = 3  # draws a round of what the moves may be worth, beside the mean
_KICKS = 20  # kicks in a row that lead to nothing new
_RESTLESS = 8  # rounds without an improvement after which a kick is worth more


@dataclass(frozen=True)
class SwapSearch(Solver):
    r"""Improve a point by feasible moves, the promising ones by a cheap look first, the last few on all batches.

    On selections a move swaps a kept for a dropped unit, or flips one where the number kept is free; on tuples of
    levels one coordinate goes down and another up, the cost kept. Every round

    1. proposes the moves that a linear model of the changes ranks best at its mean and at draws from its posterior:
       disjoint single moves, and bundles of several that the model would make one after the other;
    2. looks at all of them on the first batch, adds what the improving disjoint ones make together and half of that,
       keeps the better share, looks again on twice as many batches, and so on (successive halving);
    3. goes to the best that is better on all batches, and learns from every change it saw.

    The model corrects the surrogate: predicted change + a slope for each group + a worth for each group and unit
    (`ChangeModel`). Bundles shrink where they fail. After several rounds without an improvement, or where all
    neighbours are known, a kick of random moves leads away from the best point; kicks grow while they are in vain. An
    evaluation is one distinct point on all batches, a look costs its share.

    Where the black box is in one piece there is no cheap look. Up to 512 coordinates the model is then one of the
    values themselves, with pairs and triples of bits (`ValueModel`); every round walks down it and evaluates two points
    where it may be lowest (`ModelWalk`); `proposals`, `keep` and `bundle` play no part.

    Without limits it ends after `evaluations`, before that where kicks lead to nothing new.

    Parameters
    ----------
    evaluations : int
        Evaluations where the run has no limit of its own.
    proposals : int
        Moves proposed a round.
    keep : float in (0, 1]
        Share that survives each look.
    bundle : int
        Most moves that are proposed as one; 1 proposes none.
    undecided : int
        Search only among that many units the surrogate is least sure of at the start (smallest |field - multiplier|);
        0 for all.
    ranking : {"learned", "surrogate", "random", "halved"}
        Learned: as above. Surrogate: by its predicted change alone, best first. Random: random feasible moves one at a
        time on all batches, taken where they improve - the baseline. Halved: the same rounds as learned, their
        proposals random feasible moves - what the looks alone are worth.

    Reference
    ---------
    K. Jamieson, A. Talwalkar, Non-stochastic best arm identification (successive halving), AISTATS 2016; O. Chapelle,
    L. Li, An empirical evaluation of Thompson sampling, NIPS 2011; C. Oh et al., Combinatorial Bayesian optimization
    using the graph Cartesian product, NeurIPS 2019. Their combination here is ours.

    Examples
    --------
    >>> from prunesolve.problems import Cardinality, Selections
    >>> box = BlackBox(Selections(4, [Cardinality(2)]), lambda X: X @ [3.0, 1.0, 2.0, 4.0])
    >>> SwapSearch().solve(box).solution
    array([False,  True,  True, False])
    """

    evaluations: int = 1000
    proposals: int = 16
    keep: float = 0.25
    bundle: int = 32
    undecided: int = 0
    ranking: str = "learned"

    name: ClassVar[str] = "swap-search"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = (BlackBox, BinaryQuadratic)

    def __post_init__(self) -> None:
        for option in ("evaluations", "proposals", "bundle"):
            if not getattr(self, option) >= 1:
                raise InvalidProblem(f"{option}: expected a count >= 1, got {getattr(self, option)}")
        if not 0 < self.keep <= 1:
            raise InvalidProblem(f"keep: expected a share above 0 and up to 1, got {self.keep}")
        if not self.undecided >= 0:
            raise InvalidProblem(f"undecided: expected a number of units >= 0, 0 for all, got {self.undecided}")
        if self.ranking not in _RANKINGS:
            raise unknown("ranking", str(self.ranking), _RANKINGS)

    def _search(self, problem: BlackBox | BinaryQuadratic, run: Run) -> Status | None:
        box = BlackBox.of(problem)
        evaluations = Evaluations(box, run)
        moves = moves_of(box, np.ones(box.n, dtype=bool))
        x = moves.start(run) if run.start is None else run.start
        if x is None:
            return None
        if self.undecided and isinstance(box.surrogate, BinaryQuadratic):
            free = np.zeros(box.n, dtype=bool)
            free[undecided(box.surrogate, x, self.undecided)] = True
            moves = moves_of(box, free)
        moves.measure(x)
        most = math.inf if run.evaluation_limit is not None or run.time_limit is not None else self.evaluations
        if self.ranking == "learned" and len(box.shares) == 1 and box.n <= LARGEST:
            ModelWalk(evaluations, moves, most).go(np.array(x))
        else:
            _Walk(self, evaluations, moves, most).go(np.array(x))
        return None


class _Walk:
    """One run: what it has seen and learned, and how far it reaches."""

    def __init__(self, options: SwapSearch, evaluations: Evaluations, moves: Moves, most: float) -> None:
        self.most = most
        self.options, self.evaluations, self.moves = options, evaluations, moves
        self.box, self.run = evaluations.box, evaluations.run
        self.model = ChangeModel(moves.blocks)
        self.seen: set[bytes] = set()
        self.reach = min(options.bundle, max(1, self.box.n // 8))
        self.batches = len(self.box.shares)
        self.plain = options.ranking == "random"

    def go(self, x: Any) -> None:
        """Rounds of moves from x (n,), and kicks away from the best point where none improves any more."""
        value = self._value(x)
        best, best_value = x, value
        idle = kicks = barren = 0
        while not self.run.should_stop() and self.run.evaluations < self.most and barren < _KICKS:
            pool = self._proposed(x)
            barren = 0 if len(pool) else barren + 1
            found, found_value = self._round(x, value, pool) if len(pool) else (x, value)
            idle = 0 if found_value < value else idle + 1
            x, value = found, found_value
            if value < best_value:
                best, best_value, kicks = x, value, 0
            if not len(pool) or (idle >= _RESTLESS and not self.plain):
                x, idle, kicks = self._kicked(best, kicks), 0, kicks + 1
                value = self._value(x)

    def _value(self, x: Any) -> float:
        self.seen.add(self.box.key(x))
        return float(self.evaluations.values(x)[0])

    def _skip(self, points: Any) -> Bits:
        """(m,) whether each was looked at before: what lost a look needs no second one."""
        return np.array([self.box.key(point) in self.seen for point in points], dtype=bool)

    def _proposed(self, x: Any) -> Any:
        """(m, n) candidates of a round, none seen before."""
        if self.plain:
            return self.moves.random(x, self.run.rng, 1, self._skip)
        if self.options.ranking == "halved":
            return self.moves.random(x, self.run.rng, self.options.proposals, self._skip)
        count, thetas = self.options.proposals, self._coefficients()
        found: dict[bytes, Any] = {}
        for theta in thetas if self.reach > 1 else ():
            path = self.moves.path(x, theta, self.reach)
            found |= {self.box.key(p): p for p in (path[-1:] + path[len(path) // 2 :][:1])}
        found = {key: point for key, point in found.items() if key not in self.seen}
        each = math.ceil(max(1, count - len(found)) / len(thetas))
        for theta in thetas:
            found |= {self.box.key(p): p for p in self.moves.singles(x, theta, each, self._skip)}
        return self.moves.rows(x, list(found.values())[:count])

    def _coefficients(self) -> Floats:
        """(m, p) what the model takes the moves to be worth; the mean comes first."""
        mean = self.model.mean()[None]
        if self.options.ranking == "surrogate":
            return mean
        return np.concatenate([mean, self.model.draws(self.run.rng, _DRAWS)])

    def _round(self, x: Any, value: float, pool: Any) -> tuple[Any, float]:
        """The best of the pool and of its improvements joined, by successive halving; x itself if none is better."""
        stages = [self.batches] if self.plain else self.evaluations.stages
        for stage in stages:
            # the incumbent was paid for in full: to look at it again is free
            here = value if stage == self.batches else float(self.evaluations.partial(x, stage)[0])
            values = self._look(x, here, pool, stage)
            if stage == stages[0] and not self.plain:
                joined = self._joined(x, pool, values < here, values)
                values = np.concatenate([values, self._look(x, here, joined, stage)])
                pool = np.concatenate([pool, joined])
            order = np.argsort(values, kind="stable")[: max(1, math.ceil(self.options.keep * len(values)))]
            order = order[values[order] < here]
            if not len(order):
                self.reach = max(1, self.reach // 2)
                return x, value
            pool, values = pool[order], values[order]
        self.reach = self._reach_after(int(self.moves.sizes(x, pool[:1])[0]))
        return pool[0], float(values[0])

    def _reach_after(self, size: int) -> int:
        """Twice what succeeded, and no less than half of what was tried."""
        return min(self.options.bundle, max(2 * size, self.reach // 2))

    def _look(self, x: Any, here: float, points: Any, stage: int) -> Floats:
        """(m,) values on the first batches of points next to x, whose value there is `here`; learns from them."""
        if not len(points):
            return np.zeros(0)
        last = stage == self.batches
        values = self.evaluations.values(points) if last else self.evaluations.partial(points, stage)
        self.seen.update(self.box.key(point) for point in points)
        if self.options.ranking == "learned" and math.isfinite(here):
            noise = self.moves.sizes(x, points) / float(self.box.shares[:stage].sum())
            self.model.learn(self.moves.features(x, points), values - here, noise)
        return values

    def _joined(self, x: Any, pool: Any, better: Bits, values: Floats) -> Any:
        """Up to two points (m, n): the improving moves that are disjoint all at once, and the better half of them."""
        steps = [x]
        for i in np.argsort(values, kind="stable"):
            changed = pool[i] != x
            if not better[i] or ((steps[-1] != x) & changed).any():
                continue
            joint = np.where(changed, pool[i], steps[-1])
            if self.box.is_feasible(joint):
                steps.append(joint)
        both = [steps[-1], steps[len(steps) // 2]] if len(steps) > 4 else steps[2:][-1:]
        points = self.moves.rows(x, both)
        return points[~self._skip(points)] if len(points) else points

    def _kicked(self, x: Any, kicks: int) -> Any:
        """A few random moves away from x (n,), more after each kick that was in vain."""
        most = max(2, self.box.n // 8)
        for _ in range(2 + min(kicks, most) // 2 + int(self.run.rng.integers(3))):
            drawn = self.moves.random(x, self.run.rng, 1, lambda points: np.zeros(len(points), dtype=bool))
            x = drawn[0] if len(drawn) else x
        return x
