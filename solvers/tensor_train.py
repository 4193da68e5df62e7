"""Black-box search by a probability tensor in tensor-train format; also TT-cross on a cheap surrogate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import (
    BinaryQuadratic,
    BlackBox,
    Budget,
    GroupBounds,
    InvalidProblem,
    LevelChoice,
    Selections,
    unknown,
)
from prunesolve.problems._arrays import Floats

from . import _kernels
from ._base import Run, Solver, Status
from ._count_state import CountStates, ProbabilityTensor, Step
from ._cross import candidates
from ._evaluations import Evaluations
from ._local_model import LocalModel
from ._modes import Modes
from ._start import feasible_start
from ._undecided import undecided

_MODES = ("learn", "cross")
_MOVES = (2, 8)  # modes that differ between a mutant and its parent, about; one of them each time
_FIRST_MOVES = 8  # and between a first sample and the start
_GREED = 0.5  # standard deviations of the predicted changes that make a move e times likelier
_INCUMBENT = 0.7  # share of the mutants whose parent is the best point; the others' is one of the elites
_LOOKED = 3  # proposals looked at for each that is evaluated in full
_EXPLORED = 0.2  # share of a batch that is drawn from the proposals by chance, not for its prediction
_ENOUGH = 5  # points from which the local model is fitted
_STAGNANT = 20  # batches without an improvement after which a kick leads elsewhere
_PATIENCE = 12  # batches in a row without a new point after which the search ends
_CROSSED = 64  # units that TT-cross takes on by itself: its time grows with their square
_WARMING = (64, 4)  # samples and rounds of a start without a quadratic surrogate


@dataclass(frozen=True)
class TensorTrain(Solver):
    r"""Learn where a black box is low as a probability tensor, every sample of which is feasible.

        p(s) = 1[s feasible] sum_a prod_i G_i[a_{i-1}, s_i, a_i] / Z

    The modes s_i are the bits of the undecided units, or the levels of all coordinates. The indicator of the
    constraints is a tensor train too, its bond the running count, so that samples, Z and the gradient of the likelihood
    are exact. The cores begin near the start, looser where the surrogate sees little change, and climb the likelihood
    of the best points seen so far. A batch is proposed by the tensor and by mutants of the best points, which are
    samples of tensors of rank 1 that peak there. Of `screen` times as many proposals those are evaluated that a linear
    model of the values seen so far, with the surrogate as one of its features, predicts to be lowest. Where batches in
    a row bring nothing better the tensor begins anew some way off the best point. The best point is kept: the answer is
    never worse than the start.

    `mode="cross"` spends the evaluations on what TT-cross (tntorch) finds on the surrogate alone, repaired to
    feasibility; it needs a surrogate that is cheap.

    An evaluation is one distinct point on all batches of calibration data; a look costs its share. Without limits the
    search ends after `evaluations` of them, and in any case when no new point turns up.

    Parameters
    ----------
    rank : int
        Rank r of the learned tensor; 1 treats the modes as independent but for the constraints.
    batch : int
        Points evaluated between two updates.
    elites : int
        Best points whose likelihood is raised.
    steps : int
        Gradient steps after each batch.
    learning_rate : float
        Of Adam on the logarithms of the cores.
    mutations : float
        Share of mutants among the proposals.
    screen : int
        Proposals for each evaluation; 1 evaluates every proposal.
    look : float
        Share of the calibration batches on which three times as many points are tried first, the best of which go on to
        the others; 1 tries all on all batches. A black box of one batch has no first ones.
    undecided : int
        Units left free, those of smallest margin in a quadratic surrogate; 0 frees all, 64 with TT-cross.
    mode : {"learn", "cross"}
        Whether to learn from the black box, or to minimise the surrogate by TT-cross and try what it finds.
    evaluations : int
        When to stop where no limit is given.

    Reference
    ---------
    A. Batsheva et al., PROTES: Probabilistic Optimization with Tensor Sampling, NeurIPS 2023; the refinement of a QUBO
    solution: arXiv 2604.05856. The count states, the exact gradient and the screening are our reconstruction.

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> space = Selections(6, [Cardinality(2)])
    >>> TensorTrain().solve(BlackBox(space, lambda x: (x[:, 0] & x[:, 5]) * -1.0)).objective
    -1.0
    """

    rank: int = 2
    batch: int = 4
    elites: int = 10
    steps: int = 1
    learning_rate: float = 0.1
    mutations: float = 0.9
    screen: int = 20
    look: float = 0.25
    undecided: int = 0
    mode: str = "learn"
    evaluations: int = 1000

    name: ClassVar[str] = "tensor-train"
    accepts: ClassVar[tuple[type[Any], ...]] = (BlackBox, BinaryQuadratic)

    def __post_init__(self) -> None:
        for option in ("rank", "batch", "elites", "screen", "evaluations"):
            _check_count(option, getattr(self, option), least=1)
        for option in ("steps", "undecided"):
            _check_count(option, getattr(self, option), least=0)
        if not (isinstance(self.learning_rate, Real) and 0 < self.learning_rate < math.inf):
            raise InvalidProblem(f"learning_rate: expected a number > 0, got {self.learning_rate!r}")
        if not (isinstance(self.mutations, Real) and 0 <= self.mutations <= 1):
            raise InvalidProblem(f"mutations: expected a share from 0 to 1, got {self.mutations!r}")
        if not (isinstance(self.look, Real) and 0 < self.look <= 1):
            raise InvalidProblem(f"look: expected a share above 0, 1 at most, got {self.look!r}")
        if self.mode not in _MODES:
            raise unknown("mode", str(self.mode), _MODES)

    def refuse(self, problem: Any) -> str | None:
        """Budgets, and group bounds that overlap, have no short count; TT-cross needs a surrogate."""
        reason = super().refuse(problem)
        if reason is not None:
            return reason
        if isinstance(problem, BlackBox) and isinstance(problem.space, LevelChoice):
            return f"{self.name} takes LevelTuples, whose costs are whole numbers, got a LevelChoice; see level-switch"
        if problem.of_kind(Budget):
            return f"{self.name} takes a Cardinality and GroupBounds, no Budget; choose levels per layer instead"
        if len(problem.of_kind(GroupBounds)) > 1:
            return f"{self.name} takes one GroupBounds: those of several overlap, and their counts have no short state"
        if self.mode == "cross" and isinstance(problem, BlackBox) and problem.surrogate is None:
            return f'{self.name} with mode="cross" needs a BlackBox with a surrogate'
        return None

    def _prepare(self, problem: Any) -> None:
        with _kernels.telling("count-state"):
            states = CountStates.reading([Step(np.arange(2))] * 2, least=1, most=1)
            tensor = ProbabilityTensor.product(states, np.zeros((2, 2)))
            tensor.ascend(tensor.sample(1, np.random.default_rng(0)), 1, self.learning_rate)
        if self.mode == "cross":
            import tntorch  # noqa: F401  (2 s, before the clock starts)

    def _search(self, problem: Any, run: Run) -> Status | None:
        box = _bounded(BlackBox.of(problem))
        evaluations = Evaluations(box, run)
        start = self._start(box, run)
        if start is None:
            return None
        evaluations.values(start)
        most = math.inf if run.evaluation_limit or run.time_limit else self.evaluations
        modes = Modes.of(box, start, self._chosen(box, start))
        search = _Learning(self, modes, evaluations, run, start)
        if self.mode == "cross" and modes.states.modes > 2:
            found = candidates(modes, run, start, self.rank, int(min(most, evaluations.left, self.evaluations)))
            for first in range(0, len(found), self.batch):
                if run.should_stop():
                    break
                evaluations.values(found[first : first + self.batch])
            return None
        while not run.should_stop() and evaluations.left >= 1 and run.evaluations < most and search.patient:
            search.advance(int(min(self.batch, evaluations.left, most - run.evaluations)))
        return None

    def _chosen(self, box: BlackBox, start: Any) -> Any:
        free = self.undecided or (_CROSSED if self.mode == "cross" else 0)
        return undecided(box.surrogate, start, free) if _quadratic(box.surrogate) else np.arange(box.n)

    @staticmethod
    def _start(box: BlackBox, run: Run) -> Any:
        """The caller's start, the greedy one of a quadratic surrogate, or the surrogate's best of some samples."""
        if run.start is not None:
            return run.start
        if _quadratic(box.surrogate):
            return feasible_start(box.surrogate, run.rng, run.should_stop)
        nothing = np.zeros(box.n, dtype=bool if isinstance(box.space, Selections) else np.int64)
        free = Modes.of(box, nothing, np.arange(box.n))
        if free.states.empty:
            return None
        tensor = ProbabilityTensor.product(free.states, np.zeros((free.states.modes, free.size)))
        samples, rounds = _WARMING
        best = None
        for _ in range(rounds):
            points = free.points(tensor.sample(samples, run.rng))
            points = points if best is None else np.concatenate([best[None], points])
            best = points[int(np.argmin(free.guesses(points)))]
            tensor = free.peaked(free.levels(best), free.guessed_changes(best), free.states.modes / 2, _GREED)
        return best


class _Learning:
    """What one search has seen, and what it makes of it."""

    def __init__(self, options: TensorTrain, modes: Modes, evaluations: Evaluations, run: Run, start: Any) -> None:
        self.options, self.modes, self.evaluations, self.run = options, modes, evaluations, run
        # looked at and left, with the value that the look lets expect; and what was seen before the last kick
        self.left, self.expected, self.left_guesses = start[None][:0], np.zeros(0), np.zeros(0)
        shares = np.cumsum(evaluations.box.shares)
        self.first = int(np.searchsorted(shares, options.look - 1e-9)) + 1
        self.share = float(shares[min(self.first, len(shares)) - 1])
        self.misses = self.stagnant = self.kicks = 0
        self._begin(start, run.objective)

    def _begin(self, start: Any, value: float) -> None:
        """Learn anew from a point."""
        first = self.modes.peaked(self.modes.levels(start), self.modes.guessed_changes(start), _FIRST_MOVES, _GREED)
        self.tensor = first.mixed(self.options.rank, self.run.rng)
        # ascending by value
        self.points, self.values = start[None], np.array([value])
        self.guesses = self.modes.guesses(self.points)

    def _kick(self) -> None:
        """Go on from a feasible point some way off the best one; further each time it was in vain."""
        self.kicks += 1
        self.stagnant = 0
        known = np.isfinite(self.values)
        self.left = np.concatenate([self.left, self.points[known]])
        self.expected = np.concatenate([self.expected, self.values[known]])
        self.left_guesses = np.concatenate([self.left_guesses, self.guesses[known]])
        at = self.modes.levels(self.run.best)
        moves = min(_FIRST_MOVES * self.kicks, len(at) / 2)
        far = self.modes.peaked(at, np.zeros((len(at), self.modes.size)), moves, _GREED)
        point = self.modes.points(far.sample(1, self.run.rng))
        self._begin(point[0], float(self.evaluations.values(point)[0]))

    @property
    def patient(self) -> bool:
        """Whether new points still turn up."""
        return self.misses < _PATIENCE

    def advance(self, most: int) -> None:
        """Propose, screen, evaluate at most `most` points, and learn."""
        model = self._model()
        points = self._proposed(model, most * self.options.screen)
        if self.share < 1.0:
            # what the looks cost is saved on evaluations
            most = max(1, int(most / (_LOOKED * self.share + 1.0 - self.share)))
            points = self._survivors(self._picked(points, model, _LOOKED * most), most)
        else:
            points = self._picked(points, model, most)
        self.misses = 0 if len(points) else self.misses + 1
        if self.stagnant >= _STAGNANT:
            self._kick()
        elif len(points):
            before, lowest = self.run.objective, self.values[0]
            self._remember(points, self.evaluations.values(points))
            self.stagnant = 0 if self.values[0] < lowest else self.stagnant + 1
            self.kicks = 0 if self.run.objective < before else self.kicks
            self.tensor.ascend(
                self.modes.levels(self.points[: self.options.elites]), self.options.steps, self.options.learning_rate
            )

    def _survivors(self, points: Any, most: int) -> Any:
        """The points that do best on the first batches; what they say of the others is remembered."""
        if not len(points):
            return points
        best, *looks = self.evaluations.partial(np.concatenate([self.points[:1], points]), self.first)
        order = np.argsort(looks, kind="stable")
        lost = order[most:][np.isfinite(np.asarray(looks)[order[most:]])]
        if math.isfinite(best) and math.isfinite(self.values[0]):
            self.left = np.concatenate([self.left, points[lost]])
            self.expected = np.concatenate([self.expected, self.values[0] + (np.asarray(looks)[lost] - best)])
            self.left_guesses = np.concatenate([self.left_guesses, self.modes.guesses(points[lost])])
        return points[order[:most]]

    def _model(self) -> LocalModel | None:
        if self.options.screen == 1 or not math.isfinite(self.values[0]):
            return None
        values = np.concatenate([self.values, self.expected])
        # a start, or where a kick led, may have no value
        known = np.isfinite(values)
        if known.sum() < _ENOUGH:
            return None
        values = values[known]
        levels = self.modes.levels(np.concatenate([self.points, self.left])[known])
        guesses = np.concatenate([self.guesses, self.left_guesses])[known]
        return LocalModel(levels[0], levels, values - values[0], guesses - guesses[0], self.modes.size)

    def _proposed(self, model: LocalModel | None, count: int) -> Any:
        """(p, n) distinct points not evaluated yet: samples of the tensor and mutants."""
        mutants = int(self.run.rng.binomial(count, self.options.mutations))
        parts = [self.tensor.sample(count - mutants, self.run.rng)]
        of_best = int(_INCUMBENT * mutants + self.run.rng.random())
        elite = int(self.run.rng.integers(min(self.options.elites, len(self.points))))
        for parent, some in ((0, of_best), (elite, mutants - of_best)):
            if some:
                parts.append(self._mutants(parent, model, some))
        points = np.unique(self.modes.points(np.concatenate(parts)), axis=0)
        return points[~self.evaluations.known(points)]

    def _mutants(self, parent: int, model: LocalModel | None, count: int) -> Any:
        """(count, m) levels near those of a point."""
        point = self.points[parent]
        changes = self.modes.guessed_changes(point)
        if model is not None:
            changes = model.changes(changes)
        moves = self.run.rng.choice(_MOVES)
        return self.modes.peaked(self.modes.levels(point), changes, moves, _GREED).sample(count, self.run.rng)

    def _picked(self, points: Any, model: LocalModel | None, count: int) -> Any:
        """The points of the lowest predictions, and some by chance."""
        if len(points) <= count:
            return points
        by_chance = self.run.rng.permutation(len(points))
        if model is None:
            return points[by_chance[:count]]
        predicted = model.predicted(self.modes.levels(points), self.modes.guesses(points) - self.guesses[0])
        explored = int(_EXPLORED * count + self.run.rng.random())
        lowest = np.argsort(predicted, kind="stable")[: count - explored]
        others = by_chance[~np.isin(by_chance, lowest)]
        return points[np.concatenate([lowest, others[:explored]])]

    def _remember(self, points: Any, values: Floats) -> None:
        known = np.isfinite(values)
        self.points = np.concatenate([self.points, points[known]])
        self.values = np.concatenate([self.values, values[known]])
        self.guesses = np.concatenate([self.guesses, self.modes.guesses(points[known])])
        order = np.argsort(self.values, kind="stable")
        self.points, self.values, self.guesses = self.points[order], self.values[order], self.guesses[order]


def _quadratic(surrogate: Any) -> bool:
    return isinstance(surrogate, BinaryQuadratic)


def _bounded(box: BlackBox) -> BlackBox:
    """The black box with a quadratic surrogate that has the constraints of the space."""
    if not _quadratic(box.surrogate) or box.surrogate.constraints is box.constraints:
        return box
    return box.replace(surrogate=box.surrogate.replace(constraints=box.constraints))


def _check_count(option: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise InvalidProblem(f"{option}: expected a whole number >= {least}, got {value!r}")
