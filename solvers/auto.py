"""Picks solvers by size, structure, constraints and declared limits, and says what it picked and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import (
    BinaryQuadratic,
    Clustering,
    LevelChoice,
    LowRank,
    MultiObjective,
    PartialTransport,
    SparseRegression,
    SubsetRegression,
)

from . import _branching, get
from ._base import Run, Solver, Status
from ._descent import descend, prepare
from ._search import Search
from ._threads import check_threads
from .block_fronts import BlockFronts, components, splits
from .exact import Exact
from .swap_annealing import SwapAnnealing
from .swap_tabu import SwapTabu

_FRONT_NODES, _FRONT_WORK = 2000, 2e7  # of block-fronts without a limit: nodes, and nodes times entries of a block
_TRIAL = 500  # nodes of a tree that may prove the optimum at once
_TRIAL_SHARE = 0.25  # of the time limit
_TRIAL_COST = 5e-7  # seconds for each pair of units below which a limit leaves no room for a trial


@dataclass(frozen=True)
class Auto(Solver):
    """Greedy with exact descent as the floor, then what fits the instance.

    - up to 16 units: enumeration;
    - blocks that do not touch, under one cardinality: `block-fronts`, for half the time limit if it proves nothing
      earlier, then `swap-tabu` from there, whose swaps cross the blocks;
    - a form that is positive semidefinite, under a cardinality alone: a short branch and bound, which often proves the
      optimum at once, then as below from what it found;
    - any other: `swap-annealing`;
    - several objectives: `nsga2`;
    - a choice of levels: `dynamic-programming` where it takes the costs, else `level-switch`;
    - a partial transport: `assignment` where all weights are equal and the mass a whole multiple of them, else
      `network-simplex`; a clustering: `ward`; a regression on a subset of inputs: `osscar`; one
      on single weights: `admm`, then the exchanges of `iht-swap`.

    The choice follows the problem and the declared limits, never measured time. `details["picked"]` names it.

    Parameters
    ----------
    threads : int
        Searches side by side, where the picked solver searches; the answer depends on their number and the seed.

    Examples
    --------
    >>> from prunesolve.problems import Cardinality
    >>> result = Auto().solve(BinaryQuadratic([-1.0, -2.0, -3.0], constraints=[Cardinality(2)]))
    >>> result.objective, result.details["picked"]
    (-5.0, 'exact: 3 units can be enumerated')
    """

    threads: int = 1

    name: ClassVar[str] = "auto"
    accepts: ClassVar[tuple[type[Any], ...]] = (
        BinaryQuadratic,
        MultiObjective,
        LevelChoice,
        PartialTransport,
        Clustering,
        SparseRegression,
        SubsetRegression,
    )

    def __post_init__(self) -> None:
        check_threads(self.threads)

    def _prepare(self, problem: Any) -> None:
        picked, _ = _pick(problem, self.threads)
        picked._prepare(problem)
        if isinstance(picked, Exact) or not isinstance(problem, BinaryQuadratic):
            return
        prepare(problem)
        if splits(problem):
            BlockFronts()._prepare(problem)
        elif _promises_a_proof(problem):
            Exact()._prepare(problem)

    def _search(self, problem: Any, run: Run) -> Status | None:
        picked, reason = _pick(problem, self.threads)
        run.details["picked"] = f"{picked.name}: {reason}"
        if isinstance(picked, Exact) or not isinstance(problem, BinaryQuadratic):
            return picked._search(problem, run)
        if Search.begin(problem, run) is None:
            return None
        run.offer(descend(problem, run.best, run.should_stop))
        for trial, share, named in _trials(problem, run):
            left = None if run.time_limit is None else share * run.remaining
            inner = run.delegate(trial, start=run.best, time_limit=left)
            if inner.told is Status.OPTIMAL:
                run.details["picked"] = named
                return Status.OPTIMAL
        run.start = run.best
        return None if run.should_stop() else picked._search(problem, run)


def _trials(problem: BinaryQuadratic, run: Run) -> list[tuple[Solver, float, str]]:
    """What may prove the optimum before the picked solver goes on from what it found, with its share of the time."""
    if splits(problem):
        nodes = None if run.time_limit else _front_nodes(problem)
        return [(BlockFronts(node_limit=nodes), 0.5, "block-fronts: proved")]
    roomy = run.time_limit is None or run.time_limit > _TRIAL_COST * problem.n**2
    if roomy and _promises_a_proof(problem):
        return [(Exact(node_limit=_TRIAL), _TRIAL_SHARE, "exact: proved in a short trial")]
    return []


def _front_nodes(problem: BinaryQuadratic) -> int:
    """Nodes that take some seconds, whatever the width of the blocks."""
    widest = int(np.bincount(components(problem)).max())
    return max(1, min(_FRONT_NODES, int(_FRONT_WORK / widest**2)))


def _pick(problem: Any, threads: int) -> tuple[Solver, str]:
    if isinstance(problem, MultiObjective):
        return get("nsga2"), f"{problem.m} objectives"
    if isinstance(problem, LevelChoice):
        proves = get("dynamic-programming")
        if proves.refuse(problem) is None:
            return proves, "levels whose costs it joins exactly"
        return get("level-switch"), "levels whose costs no dynamic program joins"
    if isinstance(problem, PartialTransport):
        if problem.unit is not None:
            return get("assignment"), f"{problem.pairs} pairs of equal weights"
        return get("network-simplex"), "a transport of any masses"
    if isinstance(problem, Clustering):
        return get("ward"), f"{problem.n} points in {problem.n_clusters} clusters"
    if isinstance(problem, SubsetRegression):
        return get("osscar"), f"{problem.n} groups of {len(problem.block)} inputs"
    if isinstance(problem, SparseRegression):
        return get("iht-swap", begin="admm"), f"{problem.k} of {problem.n} weights"
    if problem.n <= Exact().enumerate_up_to:
        return Exact(), f"{problem.n} units can be enumerated"
    if splits(problem):
        return SwapTabu(threads=threads), "swaps across the blocks, after block-fronts"
    return SwapAnnealing(threads=threads), f"n = {problem.n}, annealings quenched by tabu search"


def _promises_a_proof(problem: BinaryQuadratic) -> bool:
    """Whether the relaxation is likely to be tight: a semidefinite form is claimed, and a count is all else."""
    couplings = problem.couplings
    claimed = problem.diagonal is not None or (isinstance(couplings, LowRank) and couplings.sign == 1)
    return claimed and problem.k is not None and _branching.suits(problem)
