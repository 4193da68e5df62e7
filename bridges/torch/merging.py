r"""A smaller network whose neurons are clusters of neurons: generalised pruning of one network, or of an ensemble.

    cluster      neurons that are alike become one: it reads the mean of what they read, and is read with the sum
    transport    the best neurons stay, and all are carried onto them at the least cost
    delete       the best neurons stay, the others are dropped

Nothing is trained and no label is needed, unless `criterion="taylor"` asks for the loss.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from prunesolve import solvers
from prunesolve.formulations.budgets import Amount, units_to_keep
from prunesolve.formulations.generalised_pruning import GeneralisedPruning, Merging
from prunesolve.problems import Group, InvalidProblem, PartialTransport, unknown
from prunesolve.problems._arrays import Floats, Indices, number
from prunesolve.solvers import Solver

from ._fold import agree, answer
from ._likeness import FEATURES, Moments, distances, incoming_norms, moments, outgoing_norms
from ._merged import Merged, following_norms, merged, read_merged, refusal
from ._stacked import averaged, stacked
from .costs import count
from .data import Batches
from .groups import Found, find_groups, without_heads
from .measure import measure
from .refit import refit_mapped

HOW = ("cluster", "transport", "delete")
CRITERIA = ("l2", "std", "taylor")
IMPORTANCE = ("outgoing", "uniform")
# a longer search gains some tenths of a percent of the inertia, which no accuracy shows
_SOLVER = {"restarts": 4, "renewals": 1.0}
_ROUNDING = 1e-9  # of a neuron's mass


_HEADS = "attention heads are not merged: two of them have no head that does the work of both"


@dataclass(frozen=True, eq=False)
class MergeResult:
    """What `merge` made.

    Parameters
    ----------
    model : nn.Module
        The smaller network, a plain module with the paths of the original.
    report : dict
        JSON-able: how, widths {group: [after, before]}, params and macs [after, before], inertia {group: share of the
        inertia of a single cluster}, excluded {name: reason}, seconds.
    mergings : {group: Merging}
        Who became whom.
    merged : Merged
        The network before any refit, and what its layers' outputs are of the dense network's: see `refit_merged`.
    """

    model: nn.Module
    report: dict[str, Any]
    mergings: dict[str, Merging]
    merged: Merged


def merge(
    model: nn.Module,
    data: Any,
    *,
    keep: Amount | Mapping[str, Amount],
    how: str = "cluster",
    features: str = "both",
    importance: str = "outgoing",
    criterion: str = "l2",
    layers: Iterable[str] | None = None,
    refit: bool = False,
    ridge: float = 1e-3,
    solver: Solver | None = None,
    seed: int = 0,
) -> MergeResult:
    r"""Make a network smaller by making its neurons fewer, layer by layer, without training.

        minimise over clusters    sum_i w_i ||x_i - mean of i's cluster||^2        in every group of coupled channels

    Parameters
    ----------
    model : nn.Module
        Any network whose channels `find_groups` can couple; it stays as it is. Coupled layers are merged alike.
    data : see `Batches`
        Calibration samples; targets are used by the criterion "taylor" alone.
    keep : float, int or {group: float or int}
        Neurons that every group keeps: a fraction, floor(f n + 0.5) and one at least, or a count; groups that a
        mapping does not name stay as they are.
    how : "cluster", "transport" or "delete"
    features : "both", "activations" or "weights"
        By what neurons are alike: what their readers see on the data, the weights by which they read what is left of
        the groups before, or both, each of mean one.
    importance : "outgoing" or "uniform"
        What neurons count: the squared norm of the weights that read them, so that the objective is the sum of what
        every reader's output loses, up to correlations; or all the same. `cluster` alone asks.
    criterion : "l2", "std" or "taylor"
        Which neurons stay where some are deleted or transported: by the norm of the weights that make them, by the
        standard deviation of what is read of them, or by the first-order change of the loss.
    layers : iterable of str, optional
        Paths of the layers whose outputs may be merged; default all.
    refit : bool
        Fit every layer behind the first merged one to the dense network's pre-activations, by least squares.
    ridge : float
        Of that fit, see `refit`.
    solver : Solver, optional
        Of the clustering (default `Ward`) or of the transport (default `network-simplex`).
    seed : int

    Returns
    -------
    MergeResult

    Raises
    ------
    InvalidProblem
        If an option is unknown, or no group can be merged; names what each is coupled to.

    References
    ----------
    Morelli and Eckstein, partial fusion by partial optimal transport, ICML 2026 (generalised pruning); Singh and
    Jaggi, Model fusion via optimal transport, NeurIPS 2020 (transport onto the neurons kept). Means of what is read
    and sums of what reads, the importance and the refit are ours.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    >>> twice = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> _ = twice[0].load_state_dict({k: torch.cat([v, v]) for k, v in net[0].state_dict().items()})
    >>> _ = twice[2].load_state_dict({"weight": net[2].weight.repeat(1, 2) / 2, "bias": net[2].bias})
    >>> x = torch.randn(8, 3)
    >>> small = merge(twice, x, keep=2)
    >>> small.report["widths"], torch.allclose(small.model(x), twice(x), atol=1e-6)
    ({'0': [2, 4]}, True)
    """
    chosen = _Choice(how, features, importance, criterion, solver, seed)
    batches = Batches(data)
    found = without_heads(find_groups(model, batches.example(), layers=layers), model, _HEADS)
    return _made(model, batches, found, keep, chosen, refit, ridge, {})


def merge_ensemble(
    models: Sequence[nn.Module],
    data: Any,
    *,
    keep: Amount | Mapping[str, Amount],
    lam: float = 0.5,
    how: str = "cluster",
    features: str = "both",
    importance: str = "outgoing",
    criterion: str = "l2",
    refit: bool = False,
    ridge: float = 1e-3,
    solver: Solver | None = None,
    seed: int = 0,
) -> MergeResult:
    r"""Merge the neurons of two networks: generalised pruning of their ensemble (1 - lam) f_A + lam f_B.

    The two are laid side by side in one network, whose layers hold the neurons of both; then `merge`, where neurons
    of A count 1 - lam times and those of B lam times their importance. Partial fusion is the case of clusters of two
    at most, one from each network.

    Parameters
    ----------
    models : two nn.Module
        Networks of one architecture (MLPs, plain CNNs), of the same or of other widths, that read the same inputs.
    keep : float, int or {group: float or int}
        Of the neurons of both: (1 + alpha) / 2 gives the width of a partial fusion at alpha.
    lam : float in [0, 1]
        The second network's share.
    data, how, features, importance, criterion, refit, ridge, solver, seed
        See `merge`; least squares fit to the ensemble.

    Returns
    -------
    MergeResult
        Neurons of A come first in the mergings.

    Raises
    ------
    InvalidProblem
        If the networks cannot be laid side by side; names the layer.

    References
    ----------
    Morelli and Eckstein, partial fusion by partial optimal transport, ICML 2026.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> x = torch.randn(8, 3)
    >>> twins = merge_ensemble([net, net], x, keep=0.5)
    >>> torch.allclose(twins.model(x), net(x), atol=1e-6)
    True
    """
    if len(models) != 2:
        raise InvalidProblem(f"models: expected two networks, got {len(models)}; merge the first two, then the next")
    share = number("lam", lam)
    if not 0.0 <= share <= 1.0:
        raise InvalidProblem(f"lam: expected a number from 0 to 1, got {lam!r}")
    chosen = _Choice(how, features, importance, criterion, solver, seed)
    batches = Batches(data)
    example = batches.example()
    parts = [without_heads(find_groups(model, example), model, _HEADS) for model in models]
    both = stacked(models[0], models[1], (parts[0], parts[1]), share)
    if not agree(averaged(answer(models[0], example), answer(models[1], example), share), answer(both, example)):
        raise InvalidProblem(
            "models: side by side they do not compute what their ensemble computes (skip connections?); fuse the "
            "networks instead"
        )
    found = without_heads(find_groups(both, example), both, _HEADS)
    sizes = {group.name: group.size for group in parts[0].groups}
    factors = {
        g.name: np.where(np.arange(g.size) < sizes.get(g.name, g.size), 1.0 - share, share) for g in found.groups
    }
    return _made(both, batches, found, keep, chosen, refit, ridge, factors)


def refit_merged(model: nn.Module, made: MergeResult, data: Any, *, ridge: float = 1e-3) -> nn.Module:
    """The merged network with every layer behind the first merged one fitted to the dense network's outputs.

    Parameters
    ----------
    model : nn.Module
        The network that was merged.
    made : MergeResult
        What `merge` made of it.
    data : see `Batches`
    ridge : float
        Pull towards the merged weights, relative to the mean variance of the inputs.
    """
    return refit_mapped(model, made.merged.model, data, made.merged.rows, made.merged.readers, ridge=ridge)


@dataclass(frozen=True)
class _Choice:
    """What the caller chose, checked."""

    how: str
    features: str
    importance: str
    criterion: str
    solver: Solver | None
    seed: int

    def __post_init__(self) -> None:
        named = (("how", HOW), ("features", FEATURES), ("importance", IMPORTANCE), ("criterion", CRITERIA))
        for name, known in named:
            if getattr(self, name) not in known:
                raise unknown(name, str(getattr(self, name)), known)

    @property
    def sees(self) -> bool:
        """Whether activations are needed."""
        likeness = self.how != "delete" and self.features != "weights"
        return likeness or (self.how != "cluster" and self.criterion == "std")


def _made(
    model: nn.Module,
    batches: Batches,
    found: Found,
    keep: Amount | Mapping[str, Amount],
    chosen: _Choice,
    refitted: bool,
    ridge: float,
    factors: Mapping[str, Floats],
) -> MergeResult:
    began = time.perf_counter()
    groups, excluded = _mergeable(model, found, chosen.how)
    counts = _counts(groups, keep)
    groups = [group for group in groups if group.name in counts]
    example = batches.example()
    seen = moments(model, groups, batches) if chosen.sees else {}
    units = _Units(model, batches, following_norms(model, example), seen, factors)
    mergings = {}
    for group in groups:
        mergings[group.name] = units.merging(group, counts[group.name], chosen)
        read_merged(units.view, group, mergings[group.name])
    made = merged(model, example, groups, mergings)
    report = {
        "how": chosen.how,
        "widths": {group.name: [counts[group.name], group.size] for group in groups},
        **_sizes(model, made, example),
        "inertia": units.inertia,
        "refit": refitted,
        "excluded": excluded,
        "seed": chosen.seed,
        "seconds": time.perf_counter() - began,
    }
    result = MergeResult(made.model, report, mergings, made)
    return replace(result, model=refit_merged(model, result, batches, ridge=ridge)) if refitted else result


def _mergeable(model: nn.Module, found: Found, how: str) -> tuple[list[Group], dict[str, str]]:
    """The groups whose channels can be merged, and why the others cannot."""
    refused = {} if how == "delete" else {group.name: refusal(model, group) for group in found.groups}
    excluded = dict(found.excluded) | {name: reason for name, reason in refused.items() if reason}
    groups = [group for group in found.groups if group.name not in excluded]
    if not groups:
        said = "; ".join(f"{name}: {reason}" for name, reason in list(excluded.items())[:4])
        raise InvalidProblem(f"model: no layer has channels that can be merged ({said or 'it has no hidden layer'})")
    return groups, excluded


def _counts(groups: Sequence[Group], keep: Amount | Mapping[str, Amount]) -> dict[str, int]:
    """{group: neurons it keeps}."""
    if not isinstance(keep, Mapping):
        return {group.name: max(1, units_to_keep(keep, group.size)) for group in groups}
    sizes = {group.name: group.size for group in groups}
    for name in keep:
        if name not in sizes:
            raise unknown("group", name, sizes)
    return {name: max(1, units_to_keep(keep[name], size)) for name, size in sizes.items() if name in keep}


def _sizes(model: nn.Module, made: Merged, example: Any) -> dict[str, list[int]]:
    before, after = count(copy.deepcopy(model), example), count(made.model, example)
    return {name: [after[name], before[name]] for name in before}


class _Units:
    """What is known of a network's neurons.

    `view` is the network as it is read once the groups before are merged: by their incoming weights neurons are alike
    that read the same of what is left, also where they belong to two networks side by side.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        norms: Mapping[str, str],
        seen: Mapping[str, Moments],
        factors: Mapping[str, Floats],
    ) -> None:
        self.model, self.batches, self.norms, self.seen, self.factors = model, batches, norms, seen, factors
        self.view = copy.deepcopy(model)
        self.inertia: dict[str, float] = {}

    def merging(self, group: Group, count: int, chosen: _Choice) -> Merging:
        """Who becomes whom in one group."""
        if count == group.size:
            return Merging.identity(group.size)
        if chosen.how == "cluster":
            return self._clustered(group, count, chosen)
        kept = self._best(group, count, chosen.criterion)
        return Merging.deletion(kept, group.size) if chosen.how == "delete" else self._carried(group, kept, chosen)

    def _clustered(self, group: Group, count: int, chosen: _Choice) -> Merging:
        pruning = GeneralisedPruning()
        table = self._distances(group, chosen.features)
        problem = pruning.encode_distances(table, count, self._weights(group, chosen.importance))
        solver = solvers.get("ward", **_SOLVER) if chosen.solver is None else chosen.solver
        solution = solver.solve(problem, seed=chosen.seed).solution
        whole = problem.replace(n_clusters=1).value(np.zeros(group.size, dtype=np.int64))
        self.inertia[group.name] = problem.value(solution) / whole if whole > 0 else 0.0
        return pruning.decode(problem, solution)

    def _carried(self, group: Group, kept: Indices, chosen: _Choice) -> Merging:
        """All neurons onto those kept, each of which takes an equal share."""
        n, m = group.size, len(kept)
        cost = self._distances(group, chosen.features)[:, kept]
        problem = PartialTransport(cost, np.full(n, 1.0 / n), np.full(m, 1.0 / m), 1.0)
        solver = solvers.get("network-simplex") if chosen.solver is None else chosen.solver
        plan = solver.solve(problem, seed=chosen.seed).solution.toarray()
        return Merging(np.where(plan > _ROUNDING / n, plan, 0.0), kept)

    def _distances(self, group: Group, features: str) -> Floats:
        return distances(self.view, group, self.seen.get(group.name), self.norms, features)

    def _weights(self, group: Group, importance: str) -> Floats:
        """(n,) what the neurons count; all the same where none counts."""
        weights = outgoing_norms(self.model, group) ** 2 if importance == "outgoing" else np.ones(group.size)
        weights = weights * self.factors.get(group.name, 1.0)
        return weights / weights.max() if weights.max() > 0 else np.ones(group.size)

    def _best(self, group: Group, count: int, criterion: str) -> Indices:
        """(count,) the neurons that stay, ascending."""
        if criterion == "taylor":
            scores = measure(self.model, self.batches, groups=[group], progress=False).criterion("taylor")
        elif criterion == "std":
            scores = self.seen[group.name].deviation
        else:
            scores = incoming_norms(self.model, group, self.norms)
        scores = scores * self.factors.get(group.name, 1.0)
        return np.sort(np.argsort(-scores, kind="stable")[:count])
