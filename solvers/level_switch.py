"""Evolution of level tuples by switches that keep the budget, screened by a model, survivors of cheap looks first."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import BlackBox, LevelChoice, unknown
from prunesolve.problems._arrays import Indices

from ._base import Run, Solver, Status
from ._generations import Generations, check_options, evolve, refusal
from ._level_proxy import LevelProxy
from .dynamic_programming import DynamicProgramming

_RANKINGS = ("learned", "random")
_ROUNDS = 6  # of the evolution on the model that proposes a generation
_ELITES = 4  # best points that a generation comes from, half of it from the very best
_LEAPS = 3  # solutions of the model taken as additive, one from the other
_RATED = 64  # evolved tuples of the lowest mean, of which those that may be lowest are taken
_COPIES = 256  # switched copies that an evolution begins with
_RESTLESS = 4  # generations without an improvement after which one more switch is made


@dataclass(frozen=True)
class LevelSwitch(Solver):
    r"""Let one layer go up and others down until the budget is met, keep what the true value likes better.

    A (1 + lambda) search: the best tuple is the parent of all. It begins with the optimum of the additive errors, where
    the box tells any, and with even levels. Every generation

    1. proposes `offspring` tuples, of the lowest mean - deviation under a Gaussian process of the values so far, which
       learns what the errors of each layer are worth (`LevelModel`). They evolve on it by switches of the best few
       points, and of where it leads if taken as additive around the best one, by dynamic programming;
    2. looks at them on the first batch, keeps the share `survivors`, looks at those on twice as many batches, and so on
       (successive halving); the parent stands by at every look, whose batches it has paid for.

    A switch moves one layer by a level or a few; another one takes the dearest level that then fits, and where none
    does it gives way and a further one is asked. So every tuple keeps the budget, be its costs real numbers or those of
    pairs. Generations without an improvement make for more switches.

    An evaluation is one distinct tuple on all batches, a look costs its share. Where the box is in one piece the model
    is the first look: it keeps the same share of the proposals. A `LevelChoice` is taken as a black box of its own
    value. Without limits it ends after `evaluations`, before that where nothing new turns up.

    Parameters
    ----------
    offspring : int
        Tuples looked at in each generation.
    survivors : float in (0, 1]
        Share that survives each look.
    switches : int
        Most switches between parent and offspring while improvements come.
    ranking : {"learned", "random"}
        Whether the model proposes, or chance: EvoPress.
    evaluations : int
        Evaluations where the run has no limit of its own.

    Reference
    ---------
    O. Sieberling et al., EvoPress: accurate dynamic model compression via evolutionary search, ICML 2025. Model,
    starts and real-valued budgets are our reconstruction.

    Examples
    --------
    >>> choice = LevelChoice([[4.0, 1.0, 0.0], [3.0, 2.5, 0.0]], [[1, 2, 4], [1, 2, 3]], budget=5)
    >>> box = BlackBox(choice, lambda s: choice.value(s) + 5.0 * (s[:, 0] < 2))
    >>> LevelSwitch().solve(box).solution
    array([2, 0])
    """

    offspring: int = 16
    survivors: float = 0.25
    switches: int = 3
    ranking: str = "learned"
    evaluations: int = 1000

    name: ClassVar[str] = "level-switch"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = (BlackBox, LevelChoice)

    def __post_init__(self) -> None:
        check_options({name: getattr(self, name) for name in ("offspring", "switches", "evaluations")}, self.survivors)
        if self.ranking not in _RANKINGS:
            raise unknown("ranking", str(self.ranking), _RANKINGS)

    def refuse(self, problem: Any) -> str | None:
        """Selections have no levels."""
        return super().refuse(problem) or refusal(self.name, problem)

    def _prepare(self, problem: Any) -> None:
        DynamicProgramming()._prepare(problem)

    def _search(self, problem: BlackBox | LevelChoice, run: Run) -> Status | None:
        evolve(self, problem, run, _Switching)
        return None


class _Switching:
    """Proposes switches of the parent, those that the model likes."""

    def __init__(self, options: LevelSwitch, generations: Generations, proxy: LevelProxy) -> None:
        self.options, self.generations, self.proxy, self.space = options, generations, proxy, proxy.space
        self.rng = generations.run.rng

    def __call__(self) -> Indices:
        """(m, L) new tuples for a generation."""
        if self.options.ranking == "random":
            return self.generations.chosen(self._switched(self.generations.best[None]))
        leaps = self._leaps()
        drawn = np.concatenate([leaps, self._switched(np.concatenate([self._parents(), leaps]))])
        if len(drawn):
            evolved, _ = self.space.evolved(drawn, self.generations.mean, self.rng, _ROUNDS, 2)
            evolved = evolved[self.generations.new(evolved)][:_RATED]
            promising = evolved[np.argsort(self.generations.rated(evolved), kind="stable")]
            # in a space that the best rated have used up the drawn ones may be new
            drawn = np.concatenate([promising, drawn])
        return self.generations.chosen(drawn)

    def _parents(self) -> Indices:
        """(m, L) the best point, and a few that come next."""
        best, values = self.generations.best, self.generations.known
        keys = heapq.nsmallest(_ELITES, values, key=values.__getitem__)
        return np.array([best, *(np.frombuffer(key, dtype=best.dtype) for key in keys)])

    def _leaps(self) -> Indices:
        """(m, L) where the model leads, taken as additive around the best point and solved, then around that."""
        found, x = [], self.generations.best
        # dynamic programming takes no other costs, and nothing else is as fast
        for _ in range(_LEAPS if self.proxy.is_chain else 0):
            leap = self.proxy.near_optimum(self.generations.model.tables(x))
            if leap is None or (leap == x).all():
                break
            found.append(leap)
            x = leap
        return np.array(found, dtype=np.int64).reshape(-1, self.space.n)

    def _switched(self, parents: Indices) -> Indices:
        """(m, L) distinct copies of the first of the parents, and of all, after a few switches."""
        most = min(self.options.switches + self.generations.idle // _RESTLESS, self.space.n)
        parent = np.where(self.rng.random(_COPIES) < 0.5, 0, self.rng.integers(len(parents), size=_COPIES))
        # the less of two draws, as EvoPress has it: mostly one switch
        switches = 1 + self.rng.integers(most, size=(2, _COPIES)).min(axis=0)
        drawn = self.space.switched(parents[parent], self.rng, switches)
        _, first = np.unique(drawn, axis=0, return_index=True)
        return drawn[np.sort(first)]
