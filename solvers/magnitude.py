"""What everybody else is measured by: the largest weights stay, the others are not asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from prunesolve.problems import InvalidProblem, SparseRegression

from ._base import Run, Solver, Status
from ._sparse_starts import SCORES, magnitude, wanda


@dataclass(frozen=True)
class Magnitude(Solver):
    r"""Keep the weights of the largest |w_ij|, or of the largest |w_ij| sqrt(H_jj), that the pattern allows.

    The weights that stay are refitted, as those of every solver are. An evaluation is that of the one selection there
    is.

    Parameters
    ----------
    score : "magnitude" or "wanda"
        By the weights alone, or by what they do with their inputs.

    Reference
    ---------
    M. Sun, Z. Liu, A. Bair, J. Z. Kolter, A simple and effective pruning approach for large language models, ICLR 2024.

    Examples
    --------
    >>> from prunesolve.problems import Keep
    >>> problem = SparseRegression([[4.0, 0.0], [0.0, 0.25]], [[4.0], [0.5]], Keep(1), offset=5.0)
    >>> Magnitude().solve(problem).objective, Magnitude(score="wanda").solve(problem).objective
    (4.0, 1.0)
    """

    score: str = "magnitude"

    name: ClassVar[str] = "magnitude"
    accepts: ClassVar[type[Any] | tuple[type[Any], ...]] = SparseRegression

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise InvalidProblem(f"score: expected one of {', '.join(SCORES)}, got {self.score!r}")

    def _search(self, problem: SparseRegression, run: Run) -> Status | None:
        run.offer(magnitude(problem) if self.score == "magnitude" else wanda(problem))
        run.count()
        if not run.halted:
            run.prove(problem.least)
        return None
