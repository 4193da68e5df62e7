r"""NSGA-II whose every point is feasible: the front of several objectives by evolution.

minimise    (f_1(x), ..., f_m(x))        over selections, levels, or both

pymoo ranks and selects; sampling, crossover, mutation and the removal of duplicates are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from prunesolve.problems import InvalidProblem, MultiObjective, unknown

from ._base import Run, Solver, Status
from ._checkpoint import Checkpoint
from ._evolution import CROSSOVERS, Evolution
from ._grid import as_points
from ._mutations import NAMES, SCHEDULES, needs_activity


@dataclass(frozen=True)
class Nsga2(Solver):
    r"""Evolve a population towards the front, all its points feasible; an evaluation is one distinct point.

    minimise    (f_1(x), ..., f_m(x))

    The first points are the problem's `starts` and random feasible points spread over all densities. Every generation
    parents are drawn, half by tournament (rank, then crowding) from the population and half from all points that
    nothing dominates, the lonelier the likelier. A child is a parent after some steps (units dropped, added or
    swapped; levels changed), or one that takes coordinates or whole groups from a neighbour on the front. Which of
    these it is follows their success: how often a child was not dominated. For each child evaluated `candidates` are
    bred, and the one is taken that what was learned about single coordinates says most of (`Marginals`). Children are
    made feasible by the least change; duplicates, found by hash, are mutated again and never evaluated.

    It ends after `generations`, or before where no new point is left.

    Parameters
    ----------
    population : int
        Points that survive a generation, and children of one; fewer where an evaluation limit would not be enough for
        20 generations, but 10 at least.
    generations : int
        Generations, the first points included.
    crossover : {"both", "uniform", "groups", "none"}
        What children may take from a mate: coordinates, groups, either or nothing.
    mutation : {"swap", "random", "variance", "conjunctive"}
        How a parent that takes nothing from a mate changes; the last three prune by activations, see `Pruning`.
    probability : float in [0, 1]
        Chance that the mutation is the one named; else it is "swap". For "swap" itself it is all one.
    schedule : {"fixed", "increase", "decrease", "exponential", "late"}
        How the chance goes over the run: p, p t, p (1 - t), p (1 - exp(-2 t)), p in the last quarter.
    amount : float in (0, 1]
        Share of the kept units that "random" and "variance" prune.
    candidates : int
        Children bred for each one evaluated; 1 does without what was learned.
    checkpoint : str, optional
        A file that the run writes itself into and, where it exists, goes on from: what was evaluated counts and is not
        evaluated again, and the front is that of a run which was never interrupted.
    checkpoint_every : int
        Generations from one writing to the next.

    Reference
    ---------
    K. Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE TEVC 6 (2002); J. Blank, K. Deb,
    pymoo, IEEE Access 8 (2020). Operators, archive parents and the choice among candidates are ours.

    Examples
    --------
    >>> from prunesolve.problems import BinaryQuadratic
    >>> error, size = BinaryQuadratic([-3.0, -1.0, -2.0], offset=6.0), BinaryQuadratic([1.0, 1.0, 1.0])
    >>> problem = MultiObjective.over([error, size], ["error", "size"], reference=[6.6, 3.3])
    >>> Nsga2(population=8, generations=5).solve(problem).front.objectives.tolist()
    [[0.0, 3.0], [1.0, 2.0], [3.0, 1.0], [6.0, 0.0]]
    """

    population: int = 100
    generations: int = 200
    crossover: str = "both"
    mutation: str = "swap"
    probability: float = 0.5
    schedule: str = "fixed"
    amount: float = 0.1
    candidates: int = 4
    checkpoint: str | None = None
    checkpoint_every: int = 1

    name: ClassVar[str] = "nsga2"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = MultiObjective

    def __post_init__(self) -> None:
        for option in ("population", "generations", "candidates", "checkpoint_every"):
            if not getattr(self, option) >= 1:
                raise InvalidProblem(f"{option}: expected a count >= 1, got {getattr(self, option)}")
        for option, known in (
            ("crossover", (*CROSSOVERS, "none")),
            ("mutation", NAMES),
            ("schedule", tuple(SCHEDULES)),
        ):
            if getattr(self, option) not in known:
                raise unknown(option, str(getattr(self, option)), known)
        if not 0 <= self.probability <= 1:
            raise InvalidProblem(f"probability: expected a number from 0 to 1, got {self.probability}")
        if not 0 < self.amount <= 1:
            raise InvalidProblem(f"amount: expected a share above 0 and up to 1, got {self.amount}")

    def refuse(self, problem: Any) -> str | None:
        """Mutations by activations need some."""
        reason = super().refuse(problem)
        if reason is None and needs_activity(self.mutation) and problem.activity is None:
            return (
                f"{self.name} with mutation={self.mutation!r} looks at activations, this problem has none; "
                "give MultiObjective(activity=...) or take mutation='swap'"
            )
        return reason

    def _prepare(self, problem: Any) -> None:
        import pymoo.operators.survival.rank_and_crowding.metrics
        import pymoo.util.nds.non_dominated_sorting  # noqa: F401

        if self.checkpoint is not None:
            self._file(problem).check()

    def _file(self, problem: MultiObjective) -> Checkpoint:
        told = {name: getattr(self, name) for name in self.options() if not name.startswith("checkpoint")}
        return Checkpoint(str(self.checkpoint), problem, told)

    def _search(self, problem: MultiObjective, run: Run) -> Status | None:
        evolution = Evolution(self, problem, run)
        file = None if self.checkpoint is None else self._file(problem)
        if file is not None and file.path.exists():
            evolution.resume(**file.load())
        while evolution.going and not run.should_stop():
            brood = evolution.ask()
            values = run.evaluate(as_points(problem, brood.rows))
            if run.halted:
                # a generation that was cut short is told to nobody: it is repeated after a resumption
                break
            evolution.tell(brood, values)
            last = not evolution.going or run.evaluations_left <= 0
            if file is not None and (last or evolution.generation % self.checkpoint_every == 0):
                file.save(**evolution.state())
        run.details |= {"generations": evolution.generation, "population": evolution.size}
        run.details["operators"] = dict(zip(evolution.operators, evolution.success.tolist(), strict=True))
        return None
