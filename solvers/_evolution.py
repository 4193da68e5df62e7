"""The generations of NSGA-II as ask and tell: who has children with whom, and what is learned from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prunesolve.problems import InvalidProblem, MultiObjective
from prunesolve.problems._arrays import Bits, Floats, Indices

from ._base import Front, Run
from ._grid import LEVEL, Levels, as_points, grid_of
from ._mutations import SCHEDULES, Pruning
from ._survival import Survival, loneliness
from ._variation import Marginals, Variation, places

if TYPE_CHECKING:
    from .nsga2 import Nsga2

CROSSOVERS = {"both": ("exchange", "exchange_groups"), "uniform": ("exchange",), "groups": ("exchange_groups",)}
_WORTH = 2  # random points that a start makes superfluous
_RANDOM = 0.1  # share of the population that is drawn at random however many starts there are
_UNEVEN = 1.0  # standard deviation of the logarithm of the power that a group's density is raised to
_NEAR, _WIDE = 0.03, 0.2  # of the front: how far away a mate is, for exchanges of single coordinates and of groups
_MEMORY = 0.9  # of an operator's success from generation to generation
_LEAST = 0.1  # of all chances, shared alike by the operators whatever their success
_AGAIN = 8  # times that duplicates are mutated, each time further
_ROUNDS, _SMALLEST = 20, 10  # generations that an evaluation limit should be enough for, and a population for that
_BARREN = 3  # generations without a new point after which the space is taken to be exhausted


class Brood(NamedTuple):
    """Children (c, n) to be evaluated, the operator (c,) of each, and their parents (c, n) with values (c, m)."""

    parents: Levels
    values: Floats
    rows: Levels
    operator: Indices


class Evolution:
    """One run: its population, what it has learned and how its operators fare."""

    def __init__(self, options: Nsga2, problem: MultiObjective, run: Run) -> None:
        self.options, self.problem, self.run = options, problem, run
        self.grid = grid_of(problem.space)
        self.variation = Variation(self.grid, problem.groups, run.rng)
        self.marginals = Marginals(np.zeros((problem.m, problem.n)))
        self.pruning = None
        if options.mutation != "swap":
            self.pruning = Pruning(options.mutation, problem, self.variation.group, options.amount)
        self.operators = ("step", *CROSSOVERS.get(options.crossover, ()))
        self.success = np.ones(len(self.operators))
        self.generation = self.barren = 0
        self.seen: set[bytes] = set()
        self.size = _size(options.population, run.evaluation_limit)
        self.survival = Survival(problem, self.size, run.rng)

    @property
    def going(self) -> bool:
        """Whether there may be another generation."""
        return self.generation < self.options.generations and self.barren < _BARREN

    def ask(self) -> Brood:
        """The points of the next generation, all feasible and new."""
        count = int(min(self.size, self.run.evaluations_left))
        if self.generation == 0:
            return self._first()
        if not len(self.survival.rows):
            return self._drawn(self.run.rng.random(count))
        return self._children(count)

    def tell(self, brood: Brood, values: Floats) -> None:
        """What the points asked are worth (c, m), inf for no value."""
        self.survival.tell(brood.rows, values)
        self._learn(brood, values)
        self.generation += 1
        self.barren = 0 if len(brood.rows) else self.barren + 1

    def _first(self) -> Brood:
        """The starts, spread if the limits allow only some of them, and random points of all densities."""
        starts = np.asarray(self.problem.starts, dtype=LEVEL)[_spread(len(self.problem.starts))]
        count = max(self.size - _WORTH * len(starts), int(np.ceil(_RANDOM * self.size)))
        given = starts if self.run.start is None else np.concatenate([np.atleast_2d(self.run.start), starts])
        return self._drawn(np.linspace(0.0, 1.0, count), given.astype(LEVEL))

    def _drawn(self, density: Floats, given: Levels | None = None) -> Brood:
        """New random points of the densities (c,), their groups denser or sparser at random, after those given."""
        group, rng = self.variation.group, self.run.rng
        power = np.exp(_UNEVEN * rng.normal(size=(len(density), int(group.max(initial=0)) + 1)))
        rows, ok = self.grid.sample(density[:, None] ** power[:, group], rng)
        rows = rows[ok] if given is None else np.concatenate([given, rows[ok]])
        rows = rows[self._new(rows)]
        return Brood(rows, np.full((len(rows), self.problem.m), np.inf), rows, np.full(len(rows), -1))

    def _children(self, count: int) -> Brood:
        """New feasible children; what was seen before is mutated again, each time further."""
        parents, values, wanted, operator = self._bred(count)
        children, ok = self.variation.feasible(parents, wanted)
        new = self._new(children, ok)
        for attempt in range(_AGAIN):
            again = np.flatnonzero(~new)
            if not len(again):
                break
            origin = np.where(ok[again, None], children[again], parents[again])
            children[again], ok[again] = self.variation.feasible(origin, self.variation.step(origin, attempt + 1))
            new[again] = self._new(children[again], ok[again])
        return Brood(parents[new], values[new], children[new], operator[new])

    def _bred(self, count: int) -> tuple[Levels, Floats, Levels, Indices]:
        """Parents with their values, the most promising of some candidates wanted of each, and its operator."""
        rng, front = self.run.rng, self._front()
        parents, values = self._parents(count, front)
        many = self.options.candidates
        repeated = np.tile(parents, (many, 1))
        place = np.tile(np.searchsorted(front.objectives[:, 0], values[:, 0]), many)
        share = _LEAST / len(self.operators) + (1.0 - _LEAST) * self.success / self.success.sum()
        operator = rng.choice(len(self.operators), len(repeated), p=share / share.sum())
        wanted = repeated.copy()
        for number, name in enumerate(self.operators):
            mine = np.flatnonzero(operator == number)
            if name == "step":
                wanted[mine] = self._stepped(repeated[mine])
            else:
                mates = self._mates(place[mine], front, _NEAR if name == "exchange" else _WIDE)
                wanted[mine] = getattr(self.variation, name)(repeated[mine], mates)
        promise = self.marginals.advance(repeated, wanted)
        # what equals its parent promises nothing
        promise[(wanted == repeated).all(axis=1)] = np.inf
        best = promise.reshape(many, count).argmin(axis=0) * count + np.arange(count)
        return parents, values, wanted[best], operator[best]

    def _parents(self, count: int, front: Front) -> tuple[Levels, Floats]:
        """(count, n) parents and their values (count, m)."""
        chosen = self.survival.tournament(count)
        rows, values = self.survival.rows[chosen], self.survival.values[chosen]
        lonely = np.flatnonzero(self.run.rng.random(count) < 0.5)
        picked = self.run.rng.choice(len(front.objectives), len(lonely), p=loneliness(front.objectives))
        rows[lonely], values[lonely] = front.solutions[picked], front.objectives[picked]
        return rows, values

    def _front(self) -> Front:
        """What nothing dominates, by the first objective; the population where nothing is within the limits."""
        archive = self.run.archive
        if archive is not None and len(archive.objectives):
            return Front(archive.solutions, archive.objectives)
        order = np.argsort(self.survival.values[:, 0], kind="stable")
        return Front(self.survival.rows[order], self.survival.values[order])

    def _mates(self, place: Indices, front: Front, width: float) -> Levels:
        """(c, n) points of the front at most a share of it away from where the parents are."""
        most, rng = max(2, int(width * len(front.objectives))), self.run.rng
        away = rng.integers(1, most + 1, size=len(place)) * rng.choice([-1, 1], size=len(place))
        return front.solutions[np.clip(place + away, 0, len(front.objectives) - 1)].astype(LEVEL)

    def _stepped(self, rows: Levels) -> Levels:
        stepped = self.variation.step(rows)
        if self.pruning is None:
            return stepped
        chance = self.options.probability * SCHEDULES[self.options.schedule](self._time)
        informed = self.run.rng.random((len(rows), 1)) < chance
        return np.where(informed, self.variation.lower(rows, self.pruning.chosen(rows, self.run.rng)), stepped)

    @property
    def _time(self) -> float:
        """How far the run is, from 0 to 1, by generations or evaluations."""
        limit = self.run.evaluation_limit
        done = 0.0 if limit is None else self.run.evaluations / limit
        return min(1.0, max(done, self.generation / self.options.generations))

    def _learn(self, brood: Brood, values: Floats) -> None:
        """What the children say about single coordinates and about the operators."""
        front = self._front().objectives
        before, after, then, now = brood.parents, brood.rows, brood.values, values
        if self.generation == 0:
            # neighbours among the first points take the part of parents and children
            order = np.argsort(values[:, 0], kind="stable")
            before, after, then, now = after[order[:-1]], after[order[1:]], values[order[:-1]], values[order[1:]]
        told = np.isfinite(then).all(axis=1) & np.isfinite(now).all(axis=1)
        self.marginals.learn(before[told], after[told], places(now[told], front) - places(then[told], front))
        good = np.isin(_joined(values), _joined(front))
        for number in range(len(self.operators) if self.generation else 0):
            mine = brood.operator == number
            rate = (good[mine].sum() + 0.5) / (mine.sum() + 1.0)
            self.success[number] = _MEMORY * self.success[number] + (1.0 - _MEMORY) * rate

    def _new(self, rows: Levels, ok: Bits | None = None) -> Bits:
        """(c,) which of the rows that are `ok` were not seen before, here or earlier."""
        new = np.ones(len(rows), dtype=bool) if ok is None else ok.copy()
        points = as_points(self.problem, rows)
        for i in np.flatnonzero(new):
            key = self.problem.key(points[i])
            new[i] = key not in self.seen
            self.seen.add(key)
        return new

    def state(self) -> dict[str, Any]:
        """{"arrays", "facts"} that `resume` takes."""
        points, told = self.run.evaluated
        survival, archive = self.survival, self.run.archive
        reference = None if archive is None else archive.reference
        arrays = {
            "evaluated": np.packbits(points, axis=1) if points.dtype == np.bool_ else points,
            "evaluated_objectives": told,
            "population": survival.rows,
            "population_objectives": survival.values,
            "rank": survival.rank,
            "crowding": survival.crowding,
            "slopes": self.marginals.slopes,
            "success": self.success,
            "reference": np.zeros(0) if reference is None else reference,
        }
        facts = {
            "seed": self.run.seed,
            "generation": self.generation,
            "barren": self.barren,
            "random": self.run.rng.bit_generator.state,
        }
        return {"arrays": arrays, "facts": facts}

    def resume(self, arrays: dict[str, Any], facts: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        if facts["seed"] != self.run.seed:
            raise InvalidProblem(
                f"{self.options.checkpoint}: expected a checkpoint of seed {self.run.seed}, got one of seed "
                f"{facts['seed']}; give that seed or another file"
            )
        points = arrays["evaluated"]
        if points.dtype == np.uint8:
            points = np.unpackbits(points, axis=1, count=self.problem.n).astype(bool)
        reference = arrays["reference"] if len(arrays["reference"]) else None
        self.run.restore(points, arrays["evaluated_objectives"], reference)
        self.seen = {self.problem.key(point) for point in points}
        self.generation, self.barren = facts["generation"], facts["barren"]
        self.success, self.marginals = arrays["success"], Marginals(arrays["slopes"])
        self.survival.rows, self.survival.values = arrays["population"], arrays["population_objectives"]
        self.survival.rank, self.survival.crowding = arrays["rank"], arrays["crowding"]
        self.run.rng.bit_generator.state = facts["random"]


def _size(population: int, evaluation_limit: int | None) -> int:
    """Points of a generation, so few that there are some generations within the limit."""
    return population if evaluation_limit is None else min(population, max(_SMALLEST, evaluation_limit // _ROUNDS))


def _spread(count: int) -> Indices:
    """(count,) the numbers below it so that those up to any point lie evenly: by their reversed bits."""
    width = max(1, int(count - 1).bit_length())
    return np.array(sorted(range(count), key=lambda i: f"{i:0{width}b}"[::-1]), dtype=np.int64)


def _joined(values: Floats) -> Any:
    """(p,) one item for each row (p, m), equal where the rows are."""
    return np.ascontiguousarray(values).view([("", np.float64)] * values.shape[1]).reshape(-1)
