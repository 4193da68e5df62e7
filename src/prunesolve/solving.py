"""Arrays and problems in, answers out, without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prunesolve.formulations.budgets import units_to_keep
from prunesolve.problems import (
    BinaryQuadratic,
    Blocks,
    Budget,
    Cardinality,
    Constraint,
    GroupBounds,
    InvalidProblem,
    LowRank,
    SolverFailed,
)
from prunesolve.problems._arrays import Bits, floats, integers
from prunesolve.solvers import Result

from .choices import AnySolver, solver_of


def select(
    importance: Any,
    similarity: Any = None,
    keep: float | None = None,
    costs: Any = None,
    budget: float | None = None,
    groups: Any = None,
    per_group: Any = None,
    *,
    solver: AnySolver = "auto",
    seed: int = 0,
    time_limit: float | None = None,
) -> Bits:
    r"""Which of n things to keep: important ones that are not alike. Loads no torch.

    minimise    - sum_i importance_i x_i + sum_{i<j} similarity_ij x_i x_j

    Parameters
    ----------
    importance : (n,) float
        What each is worth.
    similarity : (n, n) array, scipy sparse, Blocks or LowRank, optional
        What keeping a pair costs: symmetric, each pair counted once, diagonal ignored.
    keep : int or float, optional
        Count to keep exactly, or with a point a fraction of n. Needed where neither a budget nor per_group is given.
    costs : (n,) float >= 0, optional
        What each costs; needs `budget`.
    budget : float, optional
        The most that the kept ones may cost together.
    groups : (n,) int, optional
        Group of each, numbered from 0, -1 for none; needs `per_group`.
    per_group : int, (low, high) or (g,) array, optional
        Exactly that many of every group; a tuple bounds the number; an array says how many group by group.
    solver : str, Solver or Solver class
        Name of a solver, a solver or its class.
    seed : int
        The same seed gives the same answer, unless a time limit ended the search.
    time_limit : float, optional
        Seconds.

    Returns
    -------
    (n,) bool
        True keeps.

    Raises
    ------
    InvalidProblem
        If an array is no good, something is missing, or nothing can meet the constraints.
    SolverFailed
        If no selection that meets them was found; `.result` holds the nearest.

    Examples
    --------
    >>> select([3.0, 2.9, 1.0], similarity=[[0, 2.5, 0], [2.5, 0, 0], [0, 0, 0]], keep=2).tolist()
    [True, False, True]
    """
    worth = floats("importance", importance, (None,))
    constraints = [
        *_count(keep, len(worth)),
        *_spending(costs, budget, len(worth)),
        *_per_group(groups, per_group, len(worth)),
    ]
    if not constraints:
        raise InvalidProblem("select: expected keep, costs with budget or groups with per_group, got none of them")
    problem = BinaryQuadratic(-worth, _pairs(similarity), constraints=constraints)
    result = solve(problem, solver, seed=seed, time_limit=time_limit)
    if not result.feasible:
        raise SolverFailed(f"select: {result.status.value}", result)
    return np.array(result.solution)


def _count(keep: float | None, n: int) -> list[Constraint]:
    return [] if keep is None else [Cardinality(units_to_keep(keep, n))]


def _spending(costs: Any, budget: float | None, n: int) -> list[Constraint]:
    if costs is None and budget is None:
        return []
    if costs is None or budget is None:
        given, missing = ("costs", "budget") if budget is None else ("budget", "costs")
        raise InvalidProblem(f"select: {given} needs {missing}; give both")
    return [Budget(floats("costs", costs, (n,)), float(floats("budget", budget, ())))]


def _per_group(groups: Any, per_group: Any, n: int) -> list[Constraint]:
    if groups is None and per_group is None:
        return []
    if groups is None or per_group is None:
        given, missing = ("groups", "per_group") if per_group is None else ("per_group", "groups")
        raise InvalidProblem(f"select: {given} needs {missing}; give both")
    group = integers("groups", groups, (n,))
    count = int(group.max(initial=-1)) + 1
    low, high = per_group if isinstance(per_group, tuple) and len(per_group) == 2 else (per_group, per_group)
    return [GroupBounds(group, _for_each(low, count), _for_each(high, count))]


def _for_each(bound: Any, count: int) -> Any:
    """One number for all groups, or one for each."""
    return np.full(count, bound) if np.ndim(bound) == 0 else integers("per_group", bound, (count,))


def _pairs(similarity: Any) -> Any:
    """The couplings with their diagonal cleared, in the storage they came in."""
    if similarity is None or isinstance(similarity, (Blocks, LowRank)):
        return similarity
    if hasattr(similarity, "tocsr"):
        from scipy import sparse

        csr = sparse.csr_array(similarity, dtype=np.float64)
        return csr - sparse.diags_array(csr.diagonal(), format="csr")
    matrix = floats("similarity", similarity, (None, None)).copy()
    np.fill_diagonal(matrix, 0.0)
    return matrix


def solve(
    problem: Any,
    solver: AnySolver = "auto",
    *,
    seed: int | None = 0,
    time_limit: float | None = None,
    evaluation_limit: int | None = None,
    callback: Callable[..., Any] | None = None,
    start: Any = None,
    bound: bool = False,
    **options: Any,
) -> Result:
    """Solve a problem by a solver's name, a solver or its class; further keywords are options of a named one.

    Parameters
    ----------
    problem : BinaryQuadratic, LevelChoice, BlackBox, MultiObjective, Composite, PartialTransport or Clustering
        What to minimise.
    solver : str, Solver or Solver class
        See `prunesolve.solvers.available(problem)`.
    seed, time_limit, evaluation_limit, callback, start, bound
        As for `Solver.solve`.
    **options
        Options of the solver, where it is given by name or class.

    Returns
    -------
    Result
        Solution, objective, status, bound and trace.

    Raises
    ------
    InvalidProblem
        If the solver or an option is unknown.
    UnsupportedProblem
        If the solver does not take this kind of problem.

    Examples
    --------
    >>> problem = BinaryQuadratic([-1.0, -3.0, -2.0], constraints=[Cardinality(2)])
    >>> solve(problem, "greedy").solution.tolist()
    [False, True, True]
    """
    return solver_of(solver, options).solve(
        problem,
        seed=seed,
        time_limit=time_limit,
        evaluation_limit=evaluation_limit,
        callback=callback,
        start=start,
        bound=bound,
    )
