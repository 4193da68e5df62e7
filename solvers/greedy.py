"""Greedy construction: the baseline, and the smallest solver to copy from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from prunesolve.problems import BinaryQuadratic, InvalidProblem

from ._base import Run, Solver, Status
from ._start import Ledger, backward, forward, repair

_DIRECTIONS = ("both", "forward", "backward")


@dataclass(frozen=True)
class Greedy(Solver):
    r"""Add or drop one unit at a time, always the one whose move changes the value least.

    With local fields h = a + J x an addition changes f by h_i, a removal by -h_i. O(n) a step for dense couplings.
    Deterministic; an evaluation is one step.

    Parameters
    ----------
    direction : {"both", "forward", "backward"}
        Forward adds to the empty selection, backward drops from the full one, both keeps the better.

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> problem = BinaryQuadratic([-1.0, -2.0, -3.0], constraints=[Cardinality(2)])
    >>> Greedy().solve(problem).solution
    array([False,  True,  True])
    """

    direction: str = "both"

    name: ClassVar[str] = "greedy"

    def __post_init__(self) -> None:
        if self.direction not in _DIRECTIONS:
            raise InvalidProblem(f"direction: expected one of {', '.join(_DIRECTIONS)}, got {self.direction!r}")

    def _search(self, problem: BinaryQuadratic, run: Run) -> Status | None:
        def go_on() -> bool:
            if run.should_stop():
                return False
            run.count()
            return True

        for direction, build, full in (("forward", forward, False), ("backward", backward, True)):
            if self.direction in (direction, "both"):
                ledger = Ledger(problem, np.full(problem.n, full))
                build(ledger, go_on)
                repair(ledger, run.rng, go_on)
                run.offer(ledger.x)
        return None
