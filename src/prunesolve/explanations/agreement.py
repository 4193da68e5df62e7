"""The answers that are compared: a checked solution, and how other results agree with one another and with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prunesolve.problems import BinaryQuadratic, InvalidProblem, LevelChoice
from prunesolve.problems._arrays import Bits, Floats, bits

from .terms import Selected

_CHUNK = 256  # results whose overlaps are counted together


@dataclass(frozen=True)
class Answer:
    """A solution, and the solver that found it."""

    solution: Any
    solver: str | None


def checked(problem: Selected | LevelChoice, solution: Any) -> Any:
    """A solution (n,) of the problem's own type; feasible or not."""
    if solution is None:
        raise InvalidProblem(f"expected a solution of n = {problem.n} units, got none")
    x: Any = (
        bits("solution", solution, problem.n)
        if isinstance(problem, BinaryQuadratic)
        else problem.checked("solution", solution)
    )
    if x.ndim != 1:
        raise InvalidProblem(f"solution: expected one of shape ({problem.n},), got {x.shape}")
    return x


@dataclass(frozen=True)
class Agreement:
    """The feasible ones of other results: solutions (m, n), and which are of the same solver, (m,)."""

    solutions: Any
    same: Bits
    left_out: int

    @classmethod
    def of(cls, problem: Any, solver: str | None, others: Iterable[Any]) -> Agreement:
        """Of solutions or Results; None and infeasible ones are left out."""
        answers = [Answer(getattr(o, "solution", o), getattr(o, "solver", None)) for o in others]
        found = [(checked(problem, a.solution), a.solver) for a in answers if a.solution is not None]
        feasible = [(x, by) for x, by in found if problem.is_feasible(x)]
        solutions = np.array([x for x, _ in feasible]).reshape(len(feasible), problem.n)
        same = np.array([solver is not None and by == solver for _, by in feasible], dtype=bool)
        return cls(solutions, same, len(answers) - len(feasible))

    def __len__(self) -> int:
        return len(self.same)

    def of_unit(self, i: int, value: Any) -> dict[str, Any] | None:
        """How many of the others, and what share, have this value at i; the same for those of the same solver."""
        if not len(self):
            return None
        has = self.solutions[:, i] == value
        own = float(has[self.same].mean()) if self.same.any() else None
        return {"count": int(has.sum()), "share": float(has.mean()), "share_of_same_solver": own}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """How many there are, are of the same solver, and were left out."""
        return {"others": len(self), "of_same_solver": int(self.same.sum()), "left_out": self.left_out}

    def of_kept(self) -> dict[str, Any]:
        """Units kept in all, in some and in none of the others, and their mean overlap |A and B| / |A or B|."""
        times = self.solutions.sum(axis=0)
        core, never = int((times == len(self)).sum()), int((times == 0).sum())
        counted = {"core": core, "border": len(times) - core - never, "never": never} if len(self) else {}
        return self.facts | counted | {"overlap": _overlap(self.solutions.astype(np.float32))}

    def of_levels(self) -> dict[str, Any]:
        """Layers at one level in all of the others, and the mean share of layers at which two of them agree."""
        if not len(self):
            return self.facts
        alike = int((self.solutions == self.solutions[0]).all(axis=0).sum())
        shares = [(self.solutions[a + 1 :] == row).mean() for a, row in enumerate(self.solutions[:-1]) if row.size]
        weights = np.arange(len(shares), 0, -1)
        return self.facts | {"alike": alike, "overlap": float(np.average(shares, weights=weights)) if shares else None}


def _overlap(solutions: Floats) -> float | None:
    """The mean Jaccard index of two of the selections (m, n); of two empty ones it is 1."""
    m, sizes = len(solutions), solutions.sum(axis=1)
    if m < 2:
        return None
    total = 0.0
    for a in range(0, m, _CHUNK):
        both = solutions[a : a + _CHUNK] @ solutions.T
        either = sizes[a : a + _CHUNK, None] + sizes - both
        total += float(np.where(either > 0, both / np.maximum(either, 1), 1.0).sum(dtype=np.float64))
    return (total - m) / (m * (m - 1))
