"""The whole way, `prune`: measure, encode, solve, decode, carry out; torch is imported when it is called."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from prunesolve.formulations.budgets import check_asked
from prunesolve.problems import BinaryQuadratic, Budget, GroupBounds, Selection, SolverFailed, UnsupportedProblem
from prunesolve.solvers import Result, Status

from .carrying_out import Work, carried_out
from .choices import checked_choices, formulation_of, solver_of
from .pareto import trade_off
from .results import Clock, PruneResult
from .single_weights import WeightsResult, prune_single_weights
from .torch_door import measure, shrink

if TYPE_CHECKING:
    from prunesolve.bridges.torch.rounds import PruneAndTuneResult


# samples that statistics are measured on where units are chosen on what the pruned network gives
_MEASURED = 256


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
    chosen, searcher = formulation_of(formulation), solver_of(solver, {})
    steps_after = checked_choices(granularity, allocation, refit, repair)
    if asked or chosen.name != "multi-objective":
        check_asked(asked)
    if chosen.name == "multi-objective":
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
    by_layer = bool(refit) and solver == "auto" and chosen == formulation_of("reconstruction")
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
        After a refit the default rate is a tenth of that for masks alone, and BatchNorm keeps its statistics.
    """
    from prunesolve.bridges.torch.rounds import Rate, prune_and_tune

    if refit:
        # steps that mend a mask alone push a refitted network away from the answers it has been fitted to
        options = {"lr": Rate(base=5e-4, delta=7e-5), "batchnorm": "eval"} | options

    # names are checked now, not after the first round; "auto" stays a name, which lets `prune` go layer by layer
    checked = solver_of(solver, {})
    pruned: Callable[..., Any] = partial(
        prune,
        formulation=formulation_of(formulation),
        solver=solver if solver == "auto" else checked,
        refit=refit,
        repair=repair,
        loss=loss,
        metric=metric,
        time_limit=time_limit,
    )
    return prune_and_tune(model, data, keep=keep, prune=pruned, loss=loss, metric=metric, **options)
