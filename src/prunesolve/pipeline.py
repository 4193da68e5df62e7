"""The one-call functions. torch is imported inside the functions that need it, never by importing this module."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from prunesolve import solvers
from prunesolve.formulations.budgets import check_asked, units_to_keep
from prunesolve.problems import (
    BinaryQuadratic,
    Blocks,
    Budget,
    Cardinality,
    Clustering,
    Constraint,
    Group,
    GroupBounds,
    InvalidProblem,
    LevelChoice,
    LowRank,
    MultiObjective,
    PartialTransport,
    Selection,
    SolverFailed,
    SparseRegression,
    Statistics,
    SubsetRegression,
    UnsupportedProblem,
    unknown,
)
from prunesolve.problems._arrays import Bits, floats, integers
from prunesolve.problems._npz import FORMAT, whole_file, whole_folder
from prunesolve.solvers import Result, Solver, Status

if TYPE_CHECKING:
    from prunesolve.bridges.torch.evaluate import Evaluator
    from prunesolve.bridges.torch.fusion import FuseResult
    from prunesolve.bridges.torch.groups import Found
    from prunesolve.bridges.torch.masks import Masks
    from prunesolve.bridges.torch.merging import MergeResult
    from prunesolve.bridges.torch.rounds import PruneAndTuneResult
    from prunesolve.bridges.torch.tune import Tuned
    from prunesolve.bridges.torch.verify import Check

    from .single_weights import WeightsResult

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
    """Read back what prunesolve wrote, by its suffix.

    `.npz` holds a problem or statistics, `.json` a result, report or widths, `.safetensors` masks or weights, `.pt2` a
    program. Every other file is read as an instance in one of the formats of `prunesolve.problems.readers`.

    Parameters
    ----------
    path : path
        The file.
    index : int, optional
        Which instance, counted from 1, of an instance file that holds several.

    Returns
    -------
    a problem, Statistics, Result, Report, Masks, dict or torch.nn.Module
        What the file holds; a dict for widths and for weights (a state dict), a module for a program.

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
    read = _READERS.get(path.suffix.lower())
    if read is not None:
        if index not in (None, 1):
            raise InvalidProblem(f"{path}: holds one thing, got index {index}; leave the index out")
        return read(path)
    from prunesolve.problems import readers

    return readers.read(path, index=index)


def _load_json(path: Path) -> Result | Report | dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        told = json.loads(text)
        kind = told.get("kind") if isinstance(told, dict) and told.pop("format", None) == FORMAT else None
        if kind == "report":
            return Report({name: value for name, value in told.items() if name != "kind"})
        return told if kind == "widths" else Result.from_json(text)
    except (InvalidProblem, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidProblem(f"{path}: expected a result, report or widths that prunesolve wrote ({error})") from None


def _load_safetensors(path: Path) -> Masks | dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    from prunesolve.bridges.torch.masks import load_masks

    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("kind") != "model":
                return load_masks(path)
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InvalidProblem(f"{path}: expected masks or weights that prunesolve wrote ({error})") from None


def _load_program(path: Path) -> Any:
    import torch

    try:
        return torch.export.load(path).module()
    except Exception as error:  # torch names no type for a file it cannot read
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidProblem(f"{path}: expected a program that torch.export wrote ({reason})") from None


def _load_npz(path: Path) -> Any:
    from prunesolve.problems._npz import kind_of

    kinds: dict[str | None, Any] = {
        "binary-quadratic": BinaryQuadratic,
        "clustering": Clustering,
        "level-choice": LevelChoice,
        "multi-objective": MultiObjective,
        "partial-transport": PartialTransport,
        "sparse-regression": SparseRegression,
        "statistics": Statistics,
        "subset-regression": SubsetRegression,
    }
    kind = kind_of(path)
    if kind not in kinds:
        raise InvalidProblem(
            f"{path}: expected a problem or statistics that prunesolve wrote, got "
            + ("a truncated or foreign file" if kind is None else f"a file of kind {kind!r}")
        )
    return kinds[kind].load(path)


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npz": _load_npz,
    ".json": _load_json,
    ".safetensors": _load_safetensors,
    ".pt2": _load_program,
}


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


def find_groups(model: Any, example: Any, *, layers: Sequence[str] | None = None) -> Found:
    """The coupled channel groups of a torch model, and what was left out and why; see `bridges.torch.groups`."""
    from prunesolve.bridges.torch.groups import find_groups

    return find_groups(model, example, layers=layers)


def find_branches(model: Any, example: Any) -> tuple[Any, ...]:
    """The residual branches of a torch model that can be removed whole; see `bridges.torch.branches`."""
    from prunesolve.bridges.torch.branches import find_branches

    return find_branches(model, example)


def remove_branches(model: Any, branches: Any, example: Any, data: Any = None) -> Any:
    """A network without some of its residual branches; see `bridges.torch.branches`."""
    from prunesolve.bridges.torch.branches import remove_branches

    return remove_branches(model, branches, example, data)


def masks(selection: Selection, model: Any) -> Masks:
    """{module path: (out,) bool} of every module whose outputs go; see `bridges.torch.masks`."""
    from prunesolve.bridges.torch.masks import masks

    return masks(selection, model)


def apply_masks(model: Any, masks: Mapping[str, Any], how: Literal["plain", "prune"] = "plain") -> Any:
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


def evaluator(model: Any, data: Any, groups: Sequence[Group], **options: Any) -> Evaluator:
    """The model as a black box: selections in, true loss or metric out; see `bridges.torch.evaluate.Evaluator`."""
    from prunesolve.bridges.torch.evaluate import Evaluator

    return Evaluator(model, data, groups, **options)


def tune(formulation: Any, stats: Statistics, judge: Any, **options: Any) -> Tuned:
    """The formulation's weights whose selection an evaluator or black box likes best; see `bridges.torch.tune.tune`."""
    from prunesolve.bridges.torch.tune import tune

    return tune(_formulation(formulation), stats, judge, **options)


def refit(dense: Any, removed: Any, data: Any, selection: Selection, **options: Any) -> Any:
    """A copy of the removed model with consumers fitted by least squares to the dense one's; no labels needed."""
    from prunesolve.bridges.torch.refit import refit

    return refit(dense, removed, data, selection, **options)


def fuse(
    models: Sequence[Any], data: Any, *, alpha: Any = 0.4, lam: Any = 0.5, repair: Any = None, **options: Any
) -> FuseResult:
    """One network from several: similar neurons fused, the rest side by side; see `bridges.torch.fusion.fuse`."""
    from prunesolve.bridges.torch.fusion import fuse

    return fuse(models, data, alpha=alpha, lam=lam, repair=repair, **options)


def merge(model: Any, data: Any, *, keep: Any, how: str = "cluster", **options: Any) -> MergeResult:
    """A smaller network whose neurons are clusters of neurons; see `bridges.torch.merging.merge`.

    Two networks in a list become one, see `merge_ensemble` there; `keep` is then of the neurons of both.
    """
    from prunesolve.bridges.torch.merging import merge, merge_ensemble

    merged = merge_ensemble if isinstance(model, (list, tuple)) else merge
    return merged(model, data, keep=keep, how=how, **options)


def recalibrate_batchnorm(model: Any, data: Any) -> Any:
    """The model, in place, with its BatchNorm statistics averaged anew over the data; returns it."""
    from prunesolve.bridges.torch.batchnorm import recalibrate_batchnorm

    return recalibrate_batchnorm(model, data)


def prune_and_tune(
    model: Any,
    data: Any,
    *,
    keep: int | float,
    formulation: Any = "reconstruction",
    solver: Any = "auto",
    refit: bool | str = True,
    repair: Sequence[str] | None = None,
    loss: Callable[..., Any] | None = None,
    metric: Callable[..., Any] | None = None,
    time_limit: float | None = None,
    **options: Any,
) -> PruneAndTuneResult:
    """Prune in rounds, train where the metric falls too far; see `bridges.torch.rounds.prune_and_tune`.

    Parameters
    ----------
    model, data, keep, loss, metric
        As there.
    formulation, solver, refit, repair, time_limit
        Of every round's `prune`.
    **options
        `steps`, `threshold`, `frozen`, `lr`, `calibration`, `judge`, ... of the bridge, and options of its `finetune`.
    """
    from prunesolve.bridges.torch.rounds import prune_and_tune

    # names are checked now, not after the first round; "auto" stays a name, which lets `prune` go layer by layer
    checked = _solver(solver, {})
    pruned: Callable[..., Any] = partial(
        prune,
        formulation=_formulation(formulation),
        solver=solver if solver == "auto" else checked,
        refit=refit,
        repair=repair,
        loss=loss,
        metric=metric,
        time_limit=time_limit,
    )
    return prune_and_tune(model, data, keep=keep, prune=pruned, loss=loss, metric=metric, **options)


# The whole way: prune


class Report(dict[str, Any]):
    """What was asked and what came of it; JSON-able, printed as a short table.

    Keys: asked, achieved, steps, layers, excluded, notes, removal, solver, seconds.
    """

    def __str__(self) -> str:
        parts = (self._achieved(), self._front(), self._refinement(), self._steps(), self._layers(), self._removal())
        return "\n".join(line for part in parts for line in part)

    def _achieved(self) -> Iterator[str]:
        asked = ", ".join(f"{name}={value}" for name, value in self["asked"].items())
        yield f"asked        {asked}"
        for name, (after, before) in self["achieved"].items():
            yield f"{name:<12} {after:,} of {before:,}  ({100 * after / max(before, 1):.2f} %)"

    def _steps(self) -> Iterator[str]:
        for step in self["steps"]:
            loss, metric = _figure(step["loss"], 5), _figure(step["metric"], 4)
            yield f"{step['step']:<12} loss {loss}, {step['metric_name']} {metric}"

    def _front(self) -> Iterator[str]:
        told = self["solver"].get("front")
        if told is None:
            return
        values = ", ".join(f"{name} {value:.5g}" for name, value in told["objectives"].items())
        yield f"front        point {told['point']} of {told['of']}, hypervolume {told['hypervolume']:.6g}"
        yield f"searched     {values}"
        if told["guard"] is not None:
            yield f"guard half   {next(iter(told['objectives']))} {told['guard']:.5g}"

    def _refinement(self) -> Iterator[str]:
        told = self["solver"].get("refinement")
        if told is None:
            return
        for half, (before, after) in told["halves"].items():
            name = before["metric_name"]
            yield (
                f"{half + ' half':<12} loss {_figure(before['loss'], 5)} to {_figure(after['loss'], 5)}, {name} "
                f"{_figure(before['metric'], 4)} to {_figure(after['metric'], 4)}"
            )
        yield f"refinement   {told['evaluations']} evaluations, {told['seconds']:.1f} s; {told['returned']} returned"

    def _layers(self) -> Iterator[str]:
        for group, (kept, size) in self["layers"].items():
            yield f"  {group}: {kept} of {size} kept"
        for group, reason in self["excluded"].items():
            yield f"  {group}: left out, {reason}"

    def _removal(self) -> Iterator[str]:
        check = self["removal"]
        # single weights go without a removal
        if check is None:
            return
        yield f"masked equals removed: largest difference {check['largest_difference']:.3g} of {check['tolerance']:.3g}"

    def save(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all."""
        _write_json(path, {"format": FORMAT, "kind": "report", **self})


def _figure(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}g}"


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What `prune` brought back.

    Parameters
    ----------
    masks : dict
        {path of each module whose outputs go: bool (out,)}.
    model : torch.nn.Module
        Physically smaller; the original is untouched.
    result : Result
        The solver's answer: solution, status, objective, bound, trace. Where units were added back to spend the rest
        of a budget, `details["added_back"]` says how many and `details["searched_objective"]` what the search reached.
    report : Report
        Asked against achieved, loss and metric after each step, counts, exclusions and the removal check.
    selection : Selection
        The units kept.
    problem : BinaryQuadratic
        The instance that was solved.
    statistics : Statistics
        What was measured.
    example : tensor or tuple of tensors
        The inputs on which the removal was checked.
    """

    masks: Any
    model: Any
    result: Any
    report: Report
    selection: Selection
    problem: BinaryQuadratic
    statistics: Statistics
    example: Any

    def save(self, folder: str | Path) -> None:
        """Write masks, smaller model, instance.npz, result.json and report.json into a folder, all or nothing."""
        from prunesolve.bridges.torch.masks import save_masks
        from prunesolve.bridges.torch.shrink import save_model

        with whole_folder(folder, replaces=_MODEL_FILES) as place:
            save_masks(self.masks, place / "masks.safetensors")
            save_model(self.model, place, self.example)
            self.problem.save(place / "instance.npz")
            result = _on(self.problem, self.result)
            told = told_of("instance.npz", self.problem, result)
            _write_json(place / "result.json", told | {"trace": [list(row) for row in result.trace]})
            self.report.save(place / "report.json")


def _on(problem: BinaryQuadratic, result: Result) -> Result:
    """The result in the instance's own terms: a search by evaluations of the network minimised something else."""
    value = problem.value(result.solution)
    if math.isclose(value, result.objective or 0.0, rel_tol=1e-9, abs_tol=1e-9):
        return result
    details = {**result.details, "searched_objective": result.objective}
    return replace(result, objective=value, bound=None, trace=(), details=details)


# model.pt2 is not always written: an older one must not stay beside newer weights
_MODEL_FILES = ("model.safetensors", "widths.json", "model.pt2")


def _write_json(path: str | Path, told: Mapping[str, Any]) -> None:
    with whole_file(path) as file:
        file.write(json.dumps(told, indent=1, allow_nan=False).encode())


def told_of(instance: str, problem: Any, result: Result) -> dict[str, Any]:
    """What `solve --json` tells: the result without its trace, and the instance it belongs to."""
    from prunesolve import __version__
    from prunesolve.problems.readers import native_objective

    native = None if result.objective is None else native_objective(problem, result.objective)
    told: dict[str, Any] = json.loads(result.to_json(trace=False))
    if "front" in told:
        facts = {"names": "objectives", "hypervolume": "hypervolume", "reference": "reference", "knee": "knee"}
        told["front"] |= {name: told["details"].get(fact) for name, fact in facts.items()}
        told["units"] = [list(label) for label in problem.labels or () if isinstance(label, tuple)]
    return told | {
        "instance": instance,
        "instance_hash": problem.hash,
        "sense": problem.meta.get("sense", "minimise"),
        "native_objective": native,
        "n": problem.n,
        "kept_units": _kept_units(problem, result.solution),
        "instance_meta": dict(problem.meta),
        "version": __version__,
    }


def _kept_units(problem: Any, solution: Any) -> dict[str, list[int]] | None:
    """{module path: original indices kept}, where the instance's labels are units, or `meta` lists its levels'."""
    labels = problem.labels
    if solution is not None and isinstance(problem, LevelChoice) and "levels" in problem.meta:
        return units_of_levels(problem.meta["levels"], solution)
    if solution is None or isinstance(problem, (PartialTransport, Clustering)):
        return None
    if labels is None or not all(isinstance(x, tuple) and len(x) == 2 for x in labels):
        return None
    kept: dict[str, list[int]] = {str(layer): [] for layer, _ in labels}
    for (layer, channel), stays in zip(labels, solution, strict=True):
        if stays:
            kept[str(layer)].append(int(channel))
    return kept


def units_of_levels(ladders: Sequence[Mapping[str, Any]], levels: Any) -> dict[str, list[int]]:
    """{module path: original indices kept} at one level for each group, as `level-choice` lists them in `meta`."""
    kept: dict[str, list[int]] = {}
    for ladder, level in zip(ladders, levels, strict=True):
        kept.setdefault(ladder["layer"], []).extend(ladder["channels"][: ladder["counts"][int(level)]])
    return {layer: sorted(channels) for layer, channels in kept.items()}


def prune(
    model: Any,
    data: Any,
    *,
    keep: int | float | None = None,
    params: int | float | None = None,
    macs: int | float | None = None,
    granularity: str = "channel",
    formulation: Any = "reconstruction",
    solver: Any = "auto",
    allocation: str = "auto",
    layers: Sequence[str] | None = None,
    refit: bool | str = True,
    repair: Sequence[str] | None = None,
    loss: Callable[..., Any] | None = None,
    metric: Callable[..., Any] | None = None,
    device: Any = None,
    time_limit: float | None = None,
    seed: int = 0,
) -> PruneResult | WeightsResult:
    r"""Prune a trained network: measure, encode, solve, decode, mask, remove, refit.

        keep* = argmin_x f(x)   subject to the budget,   x_i = 1 keeps unit i

    Parameters
    ----------
    model : torch.nn.Module
        The trained network; it is not changed.
    data : iterable of (inputs, targets)
        Calibration batches or a DataLoader.
    keep, params, macs : int or float, optional
        Budget: units, parameters, multiply-adds; a float is a fraction of the dense network, an int a count. At least
        one. Parameters and MACs are the removed network's true counts: at most what was asked, and no unit more fits.
    granularity : "channel", "weight" or "n:m"
        What goes: units, or single weights, which become zeros. Of "weight" `keep` counts the weights of all chosen
        layers; of "2:4" and the like n of m consecutive input channels stay, without `keep`. The result is then a
        `WeightsResult`; see `bridges.torch.weights.prune_weights` for `solver` and `layers`.
    formulation, solver : str or object
        By name, or with options set. With both left at their defaults, `refit` on and one budget, counts come from
        what the network's answers lose when one layer is pruned, units are chosen layer by layer on what the pruned
        network gives, and layers are refitted on the way (`bridges.torch.keep_counts`, `sequential`); the masks are
        then made for the refit. Statistics are measured on the first 256 samples, steps judged on the first 512.
        Attention heads, several budgets and networks that this does not take are left to the formulation, as is
        everything where another one or a solver is given: its problem is solved for all units at once.

        A solver of black boxes ("refine", "swap-search", "tensor-train") takes the formulation as surrogate and
        evaluates the network itself on half of the data, after a quick refit where `refit` is on; the other half guards
        against overfitting, see `bridges.torch.refinement.refined`. Of "multi-objective" the front of loss and cost is
        searched, see `trade_off`: the point of least loss within the budgets, which are then upper limits, or the knee
        where there are none.
    allocation : "auto"
        How many units each layer keeps: by measured losses or by the formulation, as above, under one budget for the
        whole network. Of single weights how `keep` is shared out: "uniform", "erk", "lamp", "global" (what "auto"
        takes) or "level-choice".
    layers : sequence of str, optional
        Modules whose OUTPUTS may go; default all that can.
    refit : bool or "reconstruct"
        Solve each consumer's least-squares problem on what it still reads (no labels, no gradients). "reconstruct"
        goes on by gradient steps towards the dense network's activations, block by block, then its answers (no labels;
        `bridges.torch.reconstruct`).
    repair : sequence of str, optional
        After the refit, in order, of "bn" (the BatchNorm statistics are measured anew on `data`), "layer-variance",
        "repair", "asr", "bias" and "damped"; no labels, no gradients. See `prunesolve.bridges.torch.repair`.
    loss, metric : callable, optional
        loss(outputs, targets) -> mean; default cross-entropy for integer targets, mean squared error for float ones.
    device : optional
        Where to compute.
    time_limit : float, optional
        Seconds for the solver; choosing layer by layer takes what it takes.
    seed : int
        Same seed, same masks.

    Returns
    -------
    PruneResult
        masks, model, result, report.

    Raises
    ------
    InvalidProblem
        If the budget cannot be met (the message says the smallest that can), the model cannot be run or the data are
        empty.
    SolverFailed
        If no feasible selection was found.

    Examples
    --------
    >>> import torch
    >>> from prunesolve.pipeline import prune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> inputs = torch.linspace(-1, 1, 64).reshape(16, 4)
    >>> out = prune(net, [(inputs, torch.arange(16) % 3)], keep=0.5, solver="greedy")
    >>> out.model[0].out_features, int(out.masks["0"].sum())
    (4, 4)
    """
    given = {"keep": keep, "params": params, "macs": macs}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if granularity != "channel":
        from .single_weights import prune_single_weights

        return prune_single_weights(
            model,
            data,
            granularity=granularity,
            asked=asked,
            formulation=formulation,
            solver=solver,
            allocation=allocation,
            layers=layers,
            refit=refit,
            repair=repair,
            loss=loss,
            metric=metric,
            device=device,
            time_limit=time_limit,
            seed=seed,
        )
    chosen, searcher = _formulation(formulation), _solver(solver, {})
    steps_after = checked_choices(granularity, allocation, refit, repair)
    if asked or chosen.name != "multi-objective":
        check_asked(asked)
    if chosen.name == "multi-objective":
        from .pareto import trade_off

        found = trade_off(
            model,
            data,
            objectives=("loss", *chosen.costs),
            formulation=chosen,
            solver=solver,
            layers=layers,
            refit=bool(refit),
            loss=loss,
            metric=metric,
            device=device,
            time_limit=time_limit,
            seed=seed,
        )
        return found.pick(**asked, refit=refit, repair=repair)
    from prunesolve.bridges.torch.data import Batches
    from prunesolve.bridges.torch.evaluate import placed
    from prunesolve.bridges.torch.refinement import evaluates, refined

    clock = Clock()
    dense, batches = placed(model, device), Batches(data)
    by_layer = bool(refit) and solver == "auto" and chosen == _formulation("reconstruction")
    stats = measure(dense, batches.first(_MEASURED) if by_layer else batches, layers=layers, loss=loss)
    clock.tick("measure")
    problem = chosen.encode(stats, **asked)
    work = Work(model, dense, batches, stats, loss, metric)
    in_sequence = _in_sequence(work, problem, asked, seed) if by_layer else None
    if in_sequence is not None:
        clock.tick("solve")
        selection, result, fitted = in_sequence
        steps_after[0] = ("refit", fitted)
        return carried_out(work, selection, problem, result, asked=asked, steps_after=steps_after, clock=clock)
    if by_layer:
        # all at once after all: on all the data, as wherever a formulation is solved
        reason = stats.meta["notes"]["sequence"]
        stats = measure(dense, batches, layers=layers, loss=loss)
        stats.meta["notes"]["sequence"] = reason
        problem, work = chosen.encode(stats, **asked), work._replace(statistics=stats)
    if evaluates(searcher) and isinstance(problem, BinaryQuadratic):
        search = partial(
            refined, dense, batches, stats.groups, problem, searcher, loss=loss, metric=metric, refit=bool(refit)
        )
    else:
        search = partial(searcher.solve, problem)
    result = _solved(problem, search, seed, time_limit)
    clock.tick("solve")
    selection = chosen.decode(stats, result.solution)
    return carried_out(work, selection, problem, result, asked=asked, steps_after=steps_after, clock=clock)


# samples that statistics are measured on where units are chosen on what the pruned network gives, and steps judged on
_MEASURED, _JUDGED = 256, 512


def _in_sequence(
    work: Work, problem: BinaryQuadratic, asked: Mapping[str, Any], seed: int
) -> tuple[Selection, Result, Callable[..., Any]] | None:
    """Counts by measured losses of single layers, units layer by layer; None where the network or budget forbids it."""
    from prunesolve.bridges.torch.attention import heads_of, layers_of
    from prunesolve.bridges.torch.keep_counts import measured_counts
    from prunesolve.bridges.torch.sequential import prune_in_sequence, sequential_groups

    groups, began = work.statistics.groups, time.perf_counter()
    modules, notes = layers_of(work.dense), work.statistics.meta["notes"]
    notes["sequence"] = "units were chosen all at once: several budgets" if len(asked) != 1 else ""
    if any(heads_of(group, modules) for group in groups):
        notes["sequence"] = "units were chosen all at once: there are attention heads among them"
    if notes["sequence"]:
        return None
    share = {"keep": problem.k} if problem.k is not None else dict(asked)
    try:
        counted = measured_counts(work.dense, work.batches, groups, share)
        keep = spend_rest(problem, counted.keep)
        first = Selection(groups, keep)
        alone = sequential_groups(work.dense, groups, work.batches.example())
        found = prune_in_sequence(
            work.dense,
            work.batches,
            groups,
            {name: kept for name, (kept, _) in first.counts.items()},
            chosen={g.name: stays for g, stays in first if g.name not in alone},
            seed=seed,
        )
    except UnsupportedProblem as error:
        notes["sequence"] = f"units were chosen all at once: {error}"
        return None
    keep = np.array(found.selection.keep)
    if not problem.is_feasible(keep):
        notes["sequence"] = "units were chosen all at once: layer by layer they broke a constraint"
        return None
    del notes["sequence"]
    result = Result(
        solution=keep,
        objective=problem.value(keep),
        bound=None,
        feasible=True,
        status=Status.FINISHED,
        seconds=time.perf_counter() - began,
        evaluations=counted.evaluations,
        seed=seed,
        solver="in sequence",
        details={"errors": found.errors},
    )

    def fitted(dense: Any, removed: Any, batches: Any, selection: Selection) -> Any:
        return shrink(found.model, selection, batches.example())

    return found.selection, result, fitted


class Work(NamedTuple):
    """What a selection is carried out on: the caller's model, the same where it is computed, and data."""

    model: Any
    dense: Any
    batches: Any
    statistics: Statistics
    loss: Callable[..., Any] | None
    metric: Callable[..., Any] | None


def carried_out(
    work: Work,
    selection: Selection,
    problem: BinaryQuadratic,
    result: Result,
    *,
    asked: Mapping[str, Any],
    steps_after: Sequence[tuple[str, Callable[..., Any]]],
    clock: Clock,
) -> PruneResult:
    """Mask, remove, check that the two are the same, then the steps after the removal; judged after each."""
    from prunesolve.bridges.torch.masks import masks as masks_of

    model, dense, batches, stats, loss, metric = work
    example = batches.example()
    masked = apply_masks(copy.deepcopy(dense), masks_of(selection, dense))
    removed = shrink(dense, selection, example)
    check = verify(masked, removed, example)
    clock.tick("remove")

    def told(step: str, network: Any) -> dict[str, Any]:
        from prunesolve.bridges.torch.evaluate import evaluate

        return {"step": step, **_finite(evaluate(network, judges, loss=loss, metric=metric))}

    judges = batches.first(_JUDGED)
    # without targets there is nothing to judge by; measuring and refitting need none
    judged = "taylor" in stats.saliency
    steps = [told("dense", dense), told("masked", masked)] if judged else []
    clock.tick("evaluate")
    for name, step in steps_after:
        removed = step(dense, removed, batches, selection)
        clock.tick(name)
        steps += [told(name, removed)] if judged else []
        clock.tick("evaluate")
    return PruneResult(
        masks=masks_of(selection, model),
        model=removed,
        result=result,
        report=Report(
            asked=dict(asked),
            achieved=_achieved(dense, removed, selection, example),
            steps=steps,
            layers={group: list(counts) for group, counts in selection.counts.items()},
            excluded=dict(stats.meta.get("excluded", {})),
            notes=dict(stats.meta.get("notes", {})),
            removal={
                "passed": check.passed,
                "largest_difference": check.largest_difference,
                "tolerance": check.tolerance,
            },
            solver={"solver": result.solver, "status": str(result.status), "objective": result.objective}
            | {"bound": result.bound, "gap": result.gap, "seed": result.seed}
            | {name: result.details[name] for name in _TOLD if name in result.details},
            seconds=clock.seconds,
        ),
        selection=selection,
        problem=problem,
        statistics=stats,
        example=example,
    )


# details of a result that the report repeats
_TOLD = ("picked", "added_back", "refinement", "front")


def _formulation(formulation: Any) -> Any:
    from prunesolve import formulations

    if isinstance(formulation, str):
        return formulations.of_statistics(formulation)
    if isinstance(formulation, formulations.Formulation):
        return formulation
    raise InvalidProblem(f"formulation: expected a name or a Formulation, got {type(formulation).__name__}")


def _solved(problem: Any, search: Callable[..., Result], seed: int, time_limit: float | None) -> Result:
    """A feasible result that leaves no budget unspent, as far as single units can be added."""
    result = search(seed=seed, time_limit=time_limit)
    if result.details.get("interrupted"):
        # the search keeps its incumbent at Ctrl-C; who interrupts the whole way wants it to end
        raise KeyboardInterrupt
    if not result.feasible:
        raise SolverFailed(f"{result.solver}: {result.status.value}", result)
    if not isinstance(problem, BinaryQuadratic):
        return result
    keep = spend_rest(problem, result.solution)
    added = int(keep.sum() - result.solution.sum())
    if not added:
        return result
    keep.setflags(write=False)
    return replace(
        result,
        solution=keep,
        objective=problem.value(keep),
        status=Status.FINISHED if result.status is Status.OPTIMAL else result.status,
        details={**result.details, "added_back": added, "searched_objective": result.objective},
    )


def spend_rest(problem: BinaryQuadratic, keep: Any) -> Any:
    """Add units back, smallest change of f first, while any still fits the budgets.

    A minimiser may leave room where a unit would raise f; who asks for half the MACs wants half the MACs.

    Parameters
    ----------
    problem : BinaryQuadratic
        With at least one Budget and no Cardinality; any other problem is answered with `keep` as it is.
    keep : (n,) bool
        Feasible.

    Returns
    -------
    (n,) bool
        Feasible, and no further unit fits.
    """
    keep = np.array(keep, dtype=bool)
    if problem.k is not None or not problem.of_kind(Budget):
        return keep
    while (fits := _fits(problem, keep)).any():
        change = np.where(fits, problem.fields(keep), np.inf)
        keep[int(np.argmin(change))] = True
    return keep


def _fits(problem: BinaryQuadratic, keep: Any) -> Any:
    """(n,) units outside `keep` that could be added without breaking a constraint."""
    fits = ~keep
    for budget in problem.of_kind(Budget):
        more = budget.cost if budget.pair is None else budget.cost + budget.pair @ keep.astype(np.float64)
        fits &= more <= budget.limit - budget.spent(keep)
    for bounds in problem.of_kind(GroupBounds):
        full = bounds.counts(keep) >= bounds.high
        fits &= (bounds.group < 0) | ~full[bounds.group]
    return fits


def apply_result(
    model: Any, told: Mapping[str, Any], folder: str | Path, index: int | None = None
) -> dict[str, list[int]]:
    """Apply what `solve --out` wrote to the model it was measured on: masks.safetensors and the smaller model.

    Parameters
    ----------
    model : torch.nn.Module
        The network whose units the instance labels.
    told : mapping
        The JSON object of a result, with `kept_units` and, in `instance_meta`, the `example` of its instance.
    folder : path
        Where masks and model go.
    index : int, optional
        A point of the front, where the result has one; default its knee.

    Returns
    -------
    dict
        {"params": [after, before], "macs": [after, before]}.

    Raises
    ------
    InvalidProblem
        If the result carries no units, or they are not this model's.
    """
    from prunesolve.bridges.torch.costs import count
    from prunesolve.bridges.torch.groups import find_groups
    from prunesolve.bridges.torch.masks import masks as masks_of
    from prunesolve.bridges.torch.masks import save_masks
    from prunesolve.bridges.torch.shrink import save_model

    told = told if index is None else _point_of(told, index)
    kept, meta = _checked_units(told)
    example = _example_like(meta["example"])
    found = find_groups(model, example, layers=meta.get("layers")).groups
    n = sum(len(ladder["channels"]) for ladder in meta["levels"]) if "levels" in meta else told.get("n")
    selection = _selection_of(kept, n, [g for g in found if g.layer in kept])
    removed = shrink(model, selection, example)
    with whole_folder(folder, replaces=_MODEL_FILES) as place:
        save_masks(masks_of(selection, model), place / "masks.safetensors")
        save_model(removed, place, example)
    before, after = count(model, example), count(removed, example)
    return {name: [after[name], before[name]] for name in before}


def _point_of(told: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The result as if that point of its front were its solution."""
    front, units = told.get("front"), told.get("units")
    if not isinstance(front, dict) or not units:
        raise InvalidProblem("--index: expected a result with a front over units, got one without")
    points = [point["kept"] for point in told["points"]] if "points" in told else front["solutions"]
    if not -len(points) <= index < len(points):
        raise InvalidProblem(f"--index: expected a point of the front, 0 to {len(points) - 1}, got {index}")
    kept: dict[str, list[int]] = {layer: [] for layer, _ in units}
    for unit in points[index]:
        kept[units[unit][0]].append(units[unit][1])
    return {**told, "kept_units": kept, "n": len(units)}


def _checked_units(told: Mapping[str, Any]) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """{layer: channels kept} of a feasible result, and what its instance says about the measuring."""
    kept, meta = told.get("kept_units"), told.get("instance_meta")
    if not isinstance(kept, dict) or not isinstance(meta, dict) or "example" not in meta:
        raise InvalidProblem(
            "result: expected kept_units and the example's shape, as `solve --out` writes them for an instance that "
            "`encode` made, got none"
        )
    if not all(isinstance(channels, list) and all(type(c) is int for c in channels) for channels in kept.values()):
        raise InvalidProblem("result: expected kept_units as {layer: [channel, ...]}, got something else")
    if told.get("feasible") is not True:
        raise InvalidProblem("result: its selection breaks a constraint; solve again with more time or a looser budget")
    return kept, meta


def _selection_of(kept: Mapping[str, Sequence[int]], n: Any, groups: Sequence[Group]) -> Selection:
    """The units kept as a selection over the groups of the model; all of them must be there."""
    units = {(layer, channel) for layer, channels in kept.items() for channel in channels}
    foreign = sorted({layer for layer, _ in units.difference(*(g.units for g in groups))})
    size = sum(g.size for g in groups)
    if foreign or size != n:
        raise InvalidProblem(
            f"result: expected the {n} units it was made for, this model has {size} in those layers"
            + (f" and lacks some of {', '.join(foreign)}" if foreign else "")
            + "; give the model that was measured"
        )
    return Selection(groups, np.array([u in units for g in groups for u in g.units], dtype=bool))


def _example_like(described: Any) -> Any:
    """Tensors of the measured inputs' shapes: standard normal, zeros for whole numbers."""
    import torch

    generator = torch.Generator().manual_seed(0)
    made = []
    try:
        for tensor in described:
            dtype = getattr(torch, tensor["dtype"])
            values = torch.randn(tensor["shape"], generator=generator) if dtype.is_floating_point else None
            made.append(torch.zeros(tensor["shape"], dtype=dtype) if values is None else values.to(dtype))
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise InvalidProblem(f"result: expected shape and dtype of each input as its example ({error})") from None
    return made[0] if len(made) == 1 else tuple(made)


class Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def tick(self, stage: str) -> None:
        """The stage ends now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def checked_choices(
    granularity: str, allocation: str, refit: bool | str, repair: Sequence[str] | None
) -> list[tuple[str, Callable[..., Any]]]:
    """The steps after the removal, in order; choices that do not exist are refused by name."""
    if granularity != "channel":
        raise unknown("granularity", str(granularity), ["channel"])
    if allocation != "auto":
        raise unknown("allocation", str(allocation), ["auto"])
    if not isinstance(refit, bool) and refit != "reconstruct":
        raise InvalidProblem(f"refit: expected True (least squares), 'reconstruct' or False, got {refit!r}")
    steps: list[tuple[str, Callable[..., Any]]] = [("refit", _refit_step)] if refit else []
    steps += [("reconstruct", _reconstruct_step)] if refit == "reconstruct" else []
    for name in [repair] if isinstance(repair, str) else repair or ():
        if name not in _REPAIRS:
            raise unknown("repair", str(name), _REPAIRS)
        steps.append((name, _REPAIRS[name]))
    return steps


def _refit_step(dense: Any, removed: Any, batches: Any, selection: Selection) -> Any:
    from prunesolve.bridges.torch.refit import refit

    return refit(dense, removed, batches, selection)


def _reconstruct_step(dense: Any, removed: Any, batches: Any, selection: Selection) -> Any:
    from prunesolve.bridges.torch.reconstruct import reconstruct

    return reconstruct(dense, removed, batches, selection)


def _repair_step(name: str, dense: Any, removed: Any, batches: Any, selection: Selection) -> Any:
    from prunesolve.bridges.torch.repair import repaired

    return repaired(dense, removed, batches, name, selection)


# those of prunesolve.bridges.torch.repair, by name alone: choices are checked before torch is loaded
_REPAIRS: dict[str, Callable[..., Any]] = {
    name: partial(_repair_step, name) for name in ("bn", "layer-variance", "repair", "asr", "bias", "damped")
}


def _achieved(dense: Any, removed: Any, selection: Selection, example: Any) -> dict[str, list[int]]:
    from prunesolve.bridges.torch.costs import count

    before, after = count(dense, example), count(removed, example)
    units = [int(selection.keep.sum()), len(selection.keep)]
    return {"units": units} | {name: [after[name], before[name]] for name in before}


def _finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with None for what JSON cannot hold."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
