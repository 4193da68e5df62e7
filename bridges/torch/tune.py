r"""The weights of a formulation, chosen by what its selections do to the network.

Every point theta of a grid is encoded and solved; what comes out is judged by the black box f:

minimise    f(x_theta),  x_theta = argmin_x q_theta(x)        over theta

with successive halving: all of them on a few batches, the better half of them on twice as many, until all batches.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from prunesolve.formulations import Formulation
from prunesolve.problems import BinaryQuadratic, BlackBox, InvalidProblem, Statistics, unknown
from prunesolve.problems._arrays import Bits, Floats
from prunesolve.solvers import Solver, SwapAnnealing

Grid = Mapping[str, Sequence[Any]]
GRIDS: dict[str, Grid] = {
    "hybrid-qubo": {"alpha": (0.0, 0.5, 1.0), "beta": (0.0, 0.2, 0.5, 1.0), "normalisation": ("global", "layer")},
    "l1-qubo": {"beta": (0.0, 0.02, 0.1, 0.5)},
    "moonshot": {"lam": tuple(round(0.1 * tenth, 1) for tenth in range(11))},
}


class Judge(Protocol):
    """What makes a black box of a problem: an `Evaluator`. Its `score(keep, "guard")`, where it has one, is told."""

    def black_box(self, problem: BinaryQuadratic) -> BlackBox:
        """The black box over the problem's selections."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One point of the grid.

    `value` is the black box's mean over the first `batches` batches, inf where it is NaN or no selection was found;
    `guard` what the judge's guard half says of the selection, None where it was not asked or has no say.
    """

    formulation: Formulation
    keep: Bits | None
    value: float
    batches: int
    guard: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Tuned:
    """What `tune` found.

    Attributes
    ----------
    formulation : Formulation
        The best of the trials that got all batches; the untuned one where none is better.
    keep : (n,) bool or None
        Its selection.
    trials : tuple of Trial
        Best first; the first is the chosen one. Trials that got fewer batches come later.
    default : Trial
        The untuned formulation's.
    evaluations : float
        Distinct selections judged, a part of the batches counted as that part.
    seconds : float
        Of it all, and of that `solving`, to encode and to solve.
    """

    formulation: Formulation
    keep: Bits | None
    trials: tuple[Trial, ...]
    default: Trial
    evaluations: float
    seconds: float
    solving: float

    def __str__(self) -> str:
        varied = [f.name for f in dataclasses.fields(self.formulation) if len(self._values(f.name)) > 1]
        rows = [[*varied, "batches", "value", "guard"]]
        for trial in self.trials:
            options = [str(getattr(trial.formulation, name)) for name in varied]
            guard = "" if trial.guard is None else ", ".join(_told(trial.guard))
            rows.append([*options, str(trial.batches), f"{trial.value:.6g}", guard])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        cost = f"{self.evaluations:.1f} evaluations, {self.seconds:.1f} s, {self.solving:.1f} s of them solving"
        return "\n".join([*lines, cost])

    def _values(self, name: str) -> set[str]:
        return {repr(getattr(trial.formulation, name)) for trial in self.trials}


def tune(
    formulation: Formulation,
    stats: Statistics,
    judge: BlackBox | Judge,
    *,
    keep: float | int | None = None,
    params: float | int | None = None,
    macs: float | int | None = None,
    grid: Grid | None = None,
    solver: Solver | None = None,
    time_limit: float | None = None,
    seed: int = 0,
) -> Tuned:
    r"""The formulation's weights whose selection the black box likes best.

    The untuned formulation is one of the trials and gets all batches, so what is returned is never worse than it on
    the batches searched. Selections that several trials agree on are judged once.

    Parameters
    ----------
    formulation : Formulation
        Its other fields stay as they are.
    stats : Statistics
        What is encoded.
    judge : BlackBox, or Evaluator
        What a selection is worth; a black box over the units of `stats`.
    keep, params, macs : float or int, optional
        The budgets, as in `Formulation.encode`.
    grid : {field: values}, optional
        What is tried, all combinations; default `GRIDS` by the formulation's name.
    solver : Solver, optional
        Answers each problem; default `SwapAnnealing()`.
    time_limit : float, optional
        Seconds of the solver for each point of the grid; None lets it end by itself.
    seed : int
        Of the solver.

    Returns
    -------
    Tuned

    Raises
    ------
    InvalidProblem
        If there is no grid, or it names no field of the formulation or a value that the field refuses.

    References
    ----------
    Jamieson, Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, AISTATS 2016
    (successive halving).

    Examples
    --------
    >>> from prunesolve.formulations import L1Qubo
    >>> from prunesolve.problems import Group, Selections
    >>> fc = Group("fc", 3, [("fc", "out", [[0], [1], [2]])])
    >>> twins = [[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]]
    >>> stats = Statistics([fc], {"l1": [3.0, 2.9, 2.8]}, {"weights": [twins]})
    >>> loss = BlackBox(Selections(3), lambda X: 1.0 * (X[:, 0] & X[:, 1]))  # units 0 and 1 do the same work
    >>> tuned = tune(L1Qubo(beta=0.0), stats, loss, keep=2, grid={"beta": [0.0, 0.01, 0.5]})
    >>> tuned.formulation, tuned.default.value, tuned.trials[0].value
    (L1Qubo(minimum=1, beta=0.5), 1.0, 0.0)
    """
    began = time.perf_counter()
    asked = {"keep": keep, "params": params, "macs": macs}
    formulations = list(_grid(formulation, grid))
    solver = SwapAnnealing() if solver is None else solver
    problem = formulation.encode(stats, **asked)
    answers: list[Bits | None] = []
    for tried in formulations:
        encoded = problem if tried is formulation else tried.encode(stats, **asked)
        result = solver.solve(encoded, seed=seed, time_limit=time_limit)
        answers.append(result.solution if result.feasible else None)
    solving = time.perf_counter() - began
    box = judge if isinstance(judge, BlackBox) else judge.black_box(problem)
    race = _Race(box, answers)
    race.run()
    trials = [Trial(f, x, *race.standing(i)) for i, (f, x) in enumerate(zip(formulations, answers, strict=True))]
    # stable: among equals the earlier, so that the untuned one, the first, gives way only to a better one
    order = sorted(range(len(trials)), key=lambda i: (-trials[i].batches, trials[i].value))
    for i in {0, order[0]}:
        trials[i] = dataclasses.replace(trials[i], guard=_guard(judge, trials[i].keep))
    best = trials[order[0]]
    seconds = time.perf_counter() - began
    ranked = tuple(trials[i] for i in order)
    return Tuned(best.formulation, best.keep, ranked, trials[0], race.evaluations, seconds, solving)


class _Race:
    """Successive halving of the distinct answers; the first, the untuned one's, always stays in."""

    def __init__(self, box: BlackBox, answers: Sequence[Bits | None]) -> None:
        self.box, self.evaluations = box, 0.0
        self.keys = [None if x is None else x.tobytes() for x in answers]
        found = {key: x for key, x in zip(self.keys, answers, strict=True) if x is not None}
        self.rows = list(found.values())
        self.row_of = {key: r for r, key in enumerate(found)}
        self.value = np.full(len(self.rows), np.inf)
        self.batches = np.zeros(len(self.rows), dtype=np.int64)

    def run(self) -> None:
        """Judge all on the first batches, the better half on twice as many, and so on."""
        alive = np.arange(len(self.rows))
        for count in _rungs(len(self.box.shares), len(self.rows)):
            self._judge(alive, count)
            better = alive[np.argsort(self.value[alive], kind="stable")][: (len(alive) + 1) // 2]
            untuned = self.row_of.get(self.keys[0], -1) if self.keys[0] is not None else -1
            alive = np.union1d(better, alive[alive == untuned])

    def standing(self, trial: int) -> tuple[float, int]:
        """(value, batches) of a trial; inf, and behind all others, where no selection was found."""
        key = self.keys[trial]
        if key is None:
            return np.inf, 0
        row = self.row_of[key]
        return float(self.value[row]), int(self.batches[row])

    def _judge(self, alive: Any, count: int) -> None:
        batches = range(count)
        rows = [self.rows[r] for r in alive]
        self.evaluations += sum(self.box.shares[b] for x in rows for b in batches if not self.box.knows(x, b))
        values: Floats = self.box.partial(np.array(rows), batches) if rows else np.zeros(0)
        self.value[alive] = np.where(np.isnan(values), np.inf, values)
        self.batches[alive] = count


def _rungs(batches: int, answers: int) -> list[int]:
    """How many batches each round gets, the last one all: [2, 4, 8] of 8 batches for 5 to 8 answers."""
    rounds = min(max(answers - 1, 1).bit_length(), batches.bit_length())
    return [max(1, batches >> r) for r in reversed(range(rounds))]


def _grid(formulation: Formulation, grid: Grid | None) -> Iterator[Formulation]:
    """The untuned formulation, then every other point of the grid."""
    if grid is None and formulation.name not in GRIDS:
        raise InvalidProblem(f"grid: expected one for {formulation.name!r}; there are {', '.join(GRIDS)}")
    grid = GRIDS[formulation.name] if grid is None else grid
    for field in grid:
        if field not in formulation.options():
            raise unknown(f"field of {formulation.name}", field, formulation.options())
    yield formulation
    seen = [formulation]
    for values in itertools.product(*grid.values()):
        tried = dataclasses.replace(formulation, **dict(zip(grid, values, strict=True)))
        if tried not in seen:
            seen.append(tried)
            yield tried


def _guard(judge: BlackBox | Judge, keep: Bits | None) -> Mapping[str, Any] | None:
    score = getattr(judge, "score", None)
    if keep is None or score is None:
        return None
    try:
        told: Mapping[str, Any] = score(keep, "guard")
    except InvalidProblem:  # all samples are searched on
        return None
    return told


def _told(score: Mapping[str, Any]) -> Iterator[str]:
    for name, value in score.items():
        if isinstance(value, float):
            yield f"{name} {value:.6g}"
