"""The one-call functions. torch is imported inside the functions that need it, never by importing this module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunesolve import solvers
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
    Statistics,
)
from prunesolve.problems._arrays import Bits, floats, integers
from prunesolve.solvers import Result, Solver

if TYPE_CHECKING:
    from prunesolve.bridges.torch.masks import Masks
    from prunesolve.bridges.torch.verify import Check
    from prunesolve.problems import Selection

AnySolver = str | Solver | type[Solver]


# Arrays in, arrays out


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
    problem : BinaryQuadratic
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
    return _solver(solver, options).solve(
        problem,
        seed=seed,
        time_limit=time_limit,
        evaluation_limit=evaluation_limit,
        callback=callback,
        start=start,
        bound=bound,
    )


def _solver(solver: AnySolver, options: dict[str, Any]) -> Solver:
    if isinstance(solver, str):
        return solvers.get(solver, **options)
    if isinstance(solver, Solver):
        if options:
            raise InvalidProblem(
                f"solve: {', '.join(options)}: options go into the solver itself where one is given, such as "
                f"{type(solver).__name__}({next(iter(options))}=...)"
            )
        return solver
    if isinstance(solver, type) and issubclass(solver, Solver):
        try:
            return solver(**options)
        except TypeError as error:
            raise InvalidProblem(f"{solver.__name__}: {error}") from None
    raise InvalidProblem(f"solver: expected a name, a Solver or its class, got {type(solver).__name__}")


# Files


def load(path: str | Path, *, index: int | None = None) -> Any:
    """Read back what prunesolve wrote: a problem or statistics (.npz), a result (.json), masks (.safetensors).

    Every other file is read as an instance in one of the formats of `prunesolve.problems.readers`.

    Parameters
    ----------
    path : path
        The file.
    index : int, optional
        Which instance, counted from 1, of an instance file that holds several.

    Returns
    -------
    BinaryQuadratic, Statistics, Result or Masks
        What the file holds.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InvalidProblem
        If it is truncated or of no format we know.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    kind = path.suffix.lower()
    if kind in (".npz", ".json", ".safetensors") and index not in (None, 1):
        raise InvalidProblem(f"{path}: holds one thing, got index {index}; leave the index out")
    if kind == ".npz":
        return _load_npz(path)
    if kind == ".json":
        return _load_result(path)
    if kind == ".safetensors":
        from prunesolve.bridges.torch.masks import load_masks

        return load_masks(path)
    from prunesolve.problems.readers import read

    return read(path, index=index)


def _load_result(path: Path) -> Result:
    try:
        return Result.load(path)
    except (InvalidProblem, UnicodeDecodeError) as error:
        raise InvalidProblem(f"{path}: expected a result that prunesolve wrote ({error})") from None


def _load_npz(path: Path) -> BinaryQuadratic | Statistics:
    from prunesolve.problems._npz import kind_of

    kinds: dict[str | None, type[BinaryQuadratic] | type[Statistics]] = {
        "binary-quadratic": BinaryQuadratic,
        "statistics": Statistics,
    }
    kind = kind_of(path)
    if kind not in kinds:
        raise InvalidProblem(
            f"{path}: expected a problem or statistics that prunesolve wrote, got "
            + ("a truncated or foreign file" if kind is None else f"a file of kind {kind!r}")
        )
    return kinds[kind].load(path)


# Doors to the torch bridge


def measure(model: Any, data: Any, **options: Any) -> Statistics:
    """What each unit of a torch model is worth and costs on calibration data; see `bridges.torch.measure`.

    Parameters
    ----------
    model : torch.nn.Module
        A trained model; it is not changed.
    data : iterable of (inputs, targets) batches
        Calibration data.
    **options
        `layers`, `loss`, `device`, ... of the bridge's `measure`.
    """
    from prunesolve.bridges.torch.measure import measure

    return measure(model, data, **options)


def masks(selection: Selection, model: Any) -> Masks:
    """{module path: (out,) bool} of every module whose outputs go; see `bridges.torch.masks`."""
    from prunesolve.bridges.torch.masks import masks

    return masks(selection, model)


def apply_masks(model: Any, masks: Masks, how: str = "plain") -> Any:
    """Zero what the masks drop, in place, plainly or through torch.nn.utils.prune; returns the model."""
    from prunesolve.bridges.torch.masks import apply_masks

    return apply_masks(model, masks, how=how)


def shrink(model: Any, selection: Selection, example: Any) -> Any:
    """A new, physically smaller model that computes what the masked one does; the original stays as it is."""
    from prunesolve.bridges.torch.shrink import shrink

    return shrink(model, selection, example)


def verify(masked: Any, removed: Any, example: Any) -> Check:
    """Whether the masked and the removed network agree on the example, layer by layer."""
    from prunesolve.bridges.torch.verify import verify

    return verify(masked, removed, example)


def refit(dense: Any, removed: Any, data: Any, selection: Selection, **options: Any) -> Any:
    """A copy of the removed model with consumers fitted by least squares to the dense one's; no labels needed."""
    from prunesolve.bridges.torch.refit import refit

    return refit(dense, removed, data, selection, **options)


def recalibrate_batchnorm(model: Any, data: Any, **options: Any) -> Any:
    """The model with its BatchNorm statistics measured anew on data."""
    from prunesolve.bridges.torch.refit import recalibrate_batchnorm

    return recalibrate_batchnorm(model, data, **options)


# The whole way: prune
