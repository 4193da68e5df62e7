"""Generations of level tuples: proposals of any kind, successive halving over the batches, a model that learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from prunesolve.problems import BlackBox, InvalidProblem, LevelChoice, Selections
from prunesolve.problems._arrays import Bits, Floats, Indices

from ._base import Run
from ._evaluations import Evaluations
from ._level_model import LevelModel
from ._level_proxy import LevelProxy

_DOUBT = 1.0  # posterior deviations below its mean at which a point is rated
_BARREN = 5  # generations in a row that find nothing new, after which the search ends


def evolve(options: Any, problem: BlackBox | LevelChoice, run: Run, proposals: Callable[..., Any]) -> None:
    """One run of a solver; `proposals(options, generations, proxy)` makes what proposes its points."""
    box = BlackBox.of(problem)
    evaluations = Evaluations(box, run)
    proxy = LevelProxy(box, run)
    first = proxy.starts() if run.start is None else np.array(run.start)[None]
    if not len(first):
        return
    most = math.inf if run.evaluation_limit is not None or run.time_limit is not None else options.evaluations
    generations = Generations(evaluations, options.offspring, options.survivors, most, proxy.errors)
    generations.go(first, proposals(options, generations, proxy))


class Generations:
    """One run over level tuples.

    A generation is looked at on the first batch; the share `survivors` that is best, as far as it beats the best point
    there, goes on to twice as many, and so on. Where the box is in one piece that share alone is evaluated.

    Parameters
    ----------
    evaluations : Evaluations
        The black box.
    offspring : int
        Tuples of a generation.
    survivors : float
        Share that survives each look.
    most : float
        Evaluations after which it ends.
    errors : list of L arrays (S_l,) or None
        What is known of the levels; the model begins with it.

    Attributes
    ----------
    best : (L,) int
        The parent, the best point on all batches.
    value : float
        Its value, inf before there is one.
    known : {key: float}
        Every point asked for; inf for what has no value or lost a look.
    idle : int
        Generations since the last improvement.
    model : LevelModel
        What points are worth.
    """

    def __init__(self, evaluations: Evaluations, offspring: int, survivors: float, most: float, errors: Any) -> None:
        self.evaluations, self.survivors = evaluations, survivors
        self.most, self.errors = most, errors
        self.box, self.run = evaluations.box, evaluations.run
        self.count = math.ceil(survivors * offspring) if len(self.box.shares) == 1 else offspring
        self.known: dict[bytes, float] = {}
        self.idle, self.value = 0, math.inf

    def go(self, first: Indices, propose: Callable[[], Indices]) -> None:
        """From the first points (m, L), with new points (p, L), p <= `count`, of every proposal."""
        self.model, self.best, barren = LevelModel(self.box, self.errors, first[0]), first[0], 0
        self._finish(first)
        while not self.run.should_stop() and self.run.evaluations < self.most and barren < _BARREN:
            before, pool = self.value, propose()
            self._halve(pool)
            barren = 0 if len(pool) else barren + 1
            self.idle = 0 if self.value < before else self.idle + 1

    def new(self, points: Indices) -> Bits:
        """(m,) whether points (m, L) were never asked for."""
        return np.array([self.box.key(point) not in self.known for point in points], dtype=bool)

    def mean(self, points: Indices) -> Floats:
        """(m,) what points (m, L) are expected to be worth."""
        return self.model.rated(points, 0.0)

    def rated(self, points: Indices) -> Floats:
        """(m,) how low points (m, L) may be by what was learned."""
        return self.model.rated(points, _DOUBT)

    def chosen(self, points: Indices) -> Indices:
        """(p, L), p <= `count`: the first new ones of points (m, L), those apart from one another before the others."""
        points = points[self.new(points)]
        taken: list[int] = []
        for i, point in enumerate(points):
            if len(taken) < self.count and all((point != points[j]).sum() > 1 for j in taken):
                taken.append(i)
        rest = [i for i in range(len(points)) if i not in taken]
        return points[(taken + rest)[: self.count]]

    def _halve(self, pool: Indices) -> None:
        *looks, last = self.evaluations.stages
        for stage in looks:
            if not len(pool):
                return
            # what the parent is worth on these batches was paid for
            here = float(self.evaluations.partial(self.best, stage)[0])
            values = self.evaluations.partial(pool, stage)
            order = np.argsort(values, kind="stable")
            kept = order[: math.ceil(self.survivors * len(order))]
            kept = kept[values[kept] < here]
            gone = np.setdiff1d(order, kept)
            if math.isfinite(here):
                self.model.learn(pool[gone], values[gone] + (self.value - here))
            self.known.update({self.box.key(point): math.inf for point in pool[gone]})
            pool = pool[kept]
        self._finish(pool)

    def _finish(self, points: Indices) -> None:
        """Evaluate points (m, L) on all batches; the best becomes the parent."""
        if not len(points):
            return
        values = self.evaluations.values(points)
        self.known.update({self.box.key(point): float(value) for point, value in zip(points, values, strict=True)})
        self.model.learn(points, values)
        if values.min() < self.value:
            self.best, self.value = points[np.argmin(values)], float(values.min())


def refusal(name: str, problem: Any) -> str | None:
    """Why a solver of levels cannot take a black box: selections have none."""
    if isinstance(problem, BlackBox) and isinstance(problem.space, Selections):
        return f"{name} takes a BlackBox over LevelTuples or LevelChoice, got one over Selections"
    return None


def check_options(counts: dict[str, Any], survivors: Any) -> None:
    """Refuse counts below 1 and a share outside (0, 1]."""
    for option, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidProblem(f"{option}: expected a count >= 1, got {value!r}")
    if isinstance(survivors, bool) or not isinstance(survivors, (int, float)) or not 0 < survivors <= 1:
        raise InvalidProblem(f"survivors: expected a share above 0 and up to 1, got {survivors!r}")
