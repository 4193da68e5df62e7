r"""Which neurons of two networks are alike: one coupling a group of channels.

Every weight tensor T of the two, A (h, g, d) and B (h', g', d), that leads from the units of group g to those of h
compares pairs of units with pairs of units, the activations z compare units with units. All couplings together

minimise    sum_T s_T sum_ij P_h[i, j] sum_kl P_g[k, l] ||A[i, k] - B[j, l]||^2  +  sum_g <D_g, P_g>
subject to  P_g >= 0, P_g 1 <= 1, P_g' 1 <= 1, 1' P_g 1 = (1 - alpha_g) n_g

D_g = E (z_k - z'_l)^2 of its members, each divided by its mean, and the weights that meet the input or the output;
s_T makes the mean energy of a row one. Given the others the objective is linear in each P_g: a partial transport.
Greedy: once through the groups, each by what comes in from those before. Fixed point: sweeps over all, incoming and
outgoing, which no sweep makes worse. Activations alone do not couple the groups: one pass is the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.formulations.partial_fusion import Coupling, PartialFusion, squared_distances
from prunesolve.problems import InvalidProblem
from prunesolve.problems._arrays import Floats, Indices
from prunesolve.solvers import Result, Solver

from ._forward import evaluating
from ._layers import widths
from .axes import Axes
from .batchnorm import BATCH_NORMS
from .blocks import dense_weight
from .data import Batches, Inputs, call

FEATURES = ("activations", "weights", "both")


class Edge(NamedTuple):
    """A weight tensor between two groups: a (units of `writes`, units of `reads`, d) of the first network, b."""

    writes: str
    reads: str
    a: Floats
    b: Floats
    scale: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """What the units of two networks are compared by.

    Attributes
    ----------
    widths : {group: (n_a, n_b)}
        In the order the layers run.
    activations, incoming, outgoing : {group: (n_a, n_b)}
        Costs that depend on no coupling.
    edges : sequence of Edge
        Those that do.
    """

    widths: Mapping[str, tuple[int, int]]
    activations: Mapping[str, Floats] = field(default_factory=dict)
    incoming: Mapping[str, Floats] = field(default_factory=dict)
    outgoing: Mapping[str, Floats] = field(default_factory=dict)
    edges: Sequence[Edge] = ()

    def cost(self, group: str, plans: Mapping[str, Floats], *, outgoing: bool = True) -> Floats:
        """(n_a, n_b) what joining costs by the plans there are, `group`'s own aside."""
        total = np.zeros(self.widths[group])
        for table in (self.activations, self.incoming, *((self.outgoing,) if outgoing else ())):
            total += table.get(group, 0.0)
        for edge in self.edges:
            if edge.writes == group and edge.reads in plans:
                total += edge.scale * _joined(edge.a, edge.b, plans[edge.reads])
            if outgoing and edge.reads == group and edge.writes in plans:
                total += edge.scale * _joined(edge.a.swapaxes(0, 1), edge.b.swapaxes(0, 1), plans[edge.writes])
        return total

    def change(self, group: str, plan: Floats, plans: Mapping[str, Floats], cost: Floats) -> float:
        """By how much the objective changes with another plan of a group, whose cost among the others is given."""
        if any(edge.writes == group == edge.reads for edge in self.edges):
            return self.objective({**plans, group: plan}) - self.objective(plans)
        return float(((plan - plans[group]) * cost).sum())

    def objective(self, plans: Mapping[str, Floats]) -> float:
        """What all plans cost together."""
        tables = (self.activations, self.incoming, self.outgoing)
        total = sum(float((t[g] * plans[g]).sum()) for t in tables for g in t)
        for edge in self.edges:
            cost = edge.scale * _joined(edge.a, edge.b, plans[edge.reads])
            total += float((cost * plans[edge.writes]).sum())
        return total


@dataclass(frozen=True, eq=False)
class Alignment:
    """One coupling a group.

    Attributes
    ----------
    couplings : {group: Coupling}
    results : {group: Result}
        What the solver last said of each.
    objective : tuple of float
        Of all couplings together: after the greedy pass and after every sweep.
    """

    couplings: dict[str, Coupling]
    results: dict[str, Result]
    objective: tuple[float, ...]


def align(
    comparison: Comparison,
    alphas: Mapping[str, float],
    solver: Solver,
    *,
    sweeps: int = 0,
    whole: bool = False,
    seed: int = 0,
) -> Alignment:
    """The couplings of all groups: a greedy pass, then sweeps until none gets better.

    Parameters
    ----------
    comparison : Comparison
    alphas : {group: float}
        Share of each group that stays apart.
    solver : Solver
        Of partial transport.
    sweeps : int
        At most so many; 0 is greedy.
    whole : bool
        Whether groups of different widths are joined by whole pairs, see `PartialFusion`.
    seed : int
        Of the solver.
    """
    plans: dict[str, Floats] = {}
    found: dict[str, tuple[Coupling, Result]] = {}
    rules = {group: PartialFusion(alpha=alphas[group], whole=whole) for group in comparison.widths}

    def couple(group: str, cost: Floats) -> tuple[Coupling, Result]:
        problem = rules[group].encode_cost(cost)
        result = solver.solve(problem, seed=seed)
        return rules[group].decode(problem, result.solution), result

    for group in comparison.widths:
        found[group] = couple(group, comparison.cost(group, plans, outgoing=False))
        plans[group] = _counts(found[group][0])
    objective = [comparison.objective(plans)]
    for _ in range(sweeps):
        for group in comparison.widths:
            cost = comparison.cost(group, plans)
            tried = couple(group, cost)
            plan = _counts(tried[0])
            if comparison.change(group, plan, plans, cost) < 0.0:
                plans[group], found[group] = plan, tried
        objective.append(comparison.objective(plans))
        if not objective[-1] < objective[-2]:
            break
    couplings = {group: coupling for group, (coupling, _) in found.items()}
    return Alignment(couplings, {group: result for group, (_, result) in found.items()}, tuple(objective))


def compare(
    models: tuple[nn.Module, nn.Module],
    axes: tuple[Axes, Axes],
    batches: tuple[Batches, Batches],
    features: str,
) -> Comparison:
    """The costs of two networks' groups by weights, activations or both.

    Parameters
    ----------
    models, axes : pairs
        Of one architecture: groups of the same names.
    batches : pair of Batches
        The same samples as each network reads them.
    features : "activations", "weights" or "both"

    Raises
    ------
    InvalidProblem
        If an activation is not finite; names the layer.
    """
    one, other = axes
    widths = {group.name: (group.size, other.group(group.name).size) for group in one.groups}
    found: dict[str, Any] = {}
    if features != "weights":
        found["activations"] = _activation_costs(models, axes, batches)
    if features != "activations":
        found |= _weight_costs(models, axes, (batches[0].example(), batches[1].example()))
    return Comparison(widths, **found)


def _joined(a: Floats, b: Floats, plan: Floats) -> Floats:
    """(n_a, n_b) sum_kl plan[k, l] ||a[i, k] - b[j, l]||^2 of a (n_a, k, d) and b (n_b, l, d)."""
    energy_a = np.einsum("ikd,ikd,k->i", a, a, plan.sum(axis=1))
    energy_b = np.einsum("jld,jld,l->j", b, b, plan.sum(axis=0))
    moved = np.einsum("ikd,kl->ild", a, plan, optimize=True).reshape(len(a), -1)
    return energy_a[:, None] + energy_b - 2.0 * moved @ b.reshape(len(b), -1).T


def _counts(coupling: Coupling) -> Floats:
    """The plan with a mass of one for each pair that is wholly joined."""
    plan: Floats = coupling.plan.toarray()
    masses = float(coupling.source.sum() * coupling.target.sum())
    return plan * math.sqrt(plan.size / masses)


# -- weights


class _Piece(NamedTuple):
    """The weights of one layer between two groups, (units that write, units that read, d); "" is no group."""

    writes: str
    reads: str
    weight: Floats
    energy: float


def _weight_costs(
    models: tuple[nn.Module, nn.Module], axes: tuple[Axes, Axes], examples: tuple[Inputs, Inputs]
) -> dict[str, Any]:
    """{"incoming", "outgoing", "edges"} of all layers of both networks."""
    incoming: dict[str, Floats] = {}
    outgoing: dict[str, Floats] = {}
    edges: list[Edge] = []
    first, second = (list(_pieces(*of)) for of in zip(models, axes, examples, strict=True))
    for one, other in zip(first, second, strict=True):
        energy = one.energy + other.energy
        scale = 2.0 / energy if energy > 0.0 else 0.0
        if one.writes and one.reads:
            edges.append(Edge(one.writes, one.reads, one.weight, other.weight, scale))
        elif one.writes or one.reads:
            into, group = (incoming, one.writes) if one.writes else (outgoing, one.reads)
            rows = [_by_unit(piece.weight, bool(one.writes)) for piece in (one, other)]
            into[group] = into.get(group, 0.0) + scale * squared_distances(*rows)
    return {"incoming": incoming, "outgoing": outgoing, "edges": edges}


def _pieces(model: nn.Module, axes: Axes, example: Inputs) -> Iterator[_Piece]:
    """Every layer's weights by the groups that they join; a BatchNorm is taken into the layer that alone feeds it."""
    fed = _fed(model, axes, example)
    for path in axes.order:
        module = model.get_submodule(path)
        if path in fed.values():
            continue
        writes = list(owners(axes, path, "out"))
        if axes.roles[path] == "channelwise":
            held = [p.detach().double().cpu().numpy() for p in module.parameters()]
            table = np.stack(held, axis=1)[:, None] if held else np.zeros((widths(module)[1], 1, 0))
            energy = float((table**2).sum() / len(table))
            yield from (_Piece(name, "", _split(table, rows, np.array([[0]])), energy) for name, rows in writes)
            continue
        weight, bias = _weights(model, path, fed.get(path))
        energy = float((weight**2).sum() + (bias**2).sum()) / len(weight)
        reads = [("", np.array([[0]]))] if axes.roles[path] == "depthwise" else list(owners(axes, path, "in"))
        for name, rows in writes:
            yield from (_Piece(name, other, _split(weight, rows, columns), energy) for other, columns in reads)
            yield _Piece(name, "", _split(bias[:, None, None], rows, np.array([[0]])), energy)


def _weights(model: nn.Module, path: str, norm: str | None) -> tuple[Floats, Floats]:
    """(out, in, taps) and (out,) of a layer with the BatchNorm that it feeds."""
    module: Any = model.get_submodule(path)
    weight = dense_weight(module)
    bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().double().cpu().numpy()
    if norm is None:
        return weight, bias
    follower: Any = model.get_submodule(norm)
    mean, var = (t.detach().double().cpu().numpy() for t in (follower.running_mean, follower.running_var))
    slope, shift = 1.0 / np.sqrt(var + follower.eps), 0.0
    if follower.weight is not None:
        slope = slope * follower.weight.detach().double().cpu().numpy()
        shift = follower.bias.detach().double().cpu().numpy()
    return weight * slope[:, None, None], (bias - mean) * slope + shift


def _fed(model: nn.Module, axes: Axes, example: Inputs) -> dict[str, str]:
    """{layer: the BatchNorm that reads its output as it was made}, each called once."""
    made: dict[str, list[tuple[Tensor, int]]] = {}
    read: dict[str, list[tuple[Tensor, int]]] = {}
    handles = []
    for path in axes.order:
        module = model.get_submodule(path)
        if isinstance(module, BATCH_NORMS) and module.running_mean is not None:
            seen = read.setdefault(path, [])
            handles.append(
                module.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append((args[0], args[0]._version)))
            )
        else:
            given = made.setdefault(path, [])
            handles.append(
                module.register_forward_hook(lambda _m, _i, out, given=given: given.append((out, out._version)))
            )
    try:
        with evaluating(model):
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    by_tensor = {(id(ends[0][0]), ends[0][1]): norm for norm, ends in read.items() if len(ends) == 1}
    pairs = {path: by_tensor.get((id(ends[0][0]), ends[0][1])) for path, ends in made.items() if len(ends) == 1}
    return {path: norm for path, norm in pairs.items() if norm is not None}


def owners(axes: Axes, path: str, side: str) -> Iterator[tuple[str, Indices]]:
    """(group, (units, channels each)) along one side of a layer, "" for what belongs to no group."""
    found = axes.side(path, side)
    for index in np.unique(found.group):
        channels = np.flatnonzero(found.group == index)
        if index < 0:
            yield "", channels[:, None]
            continue
        group = axes.groups[index]
        order = channels[np.lexsort((found.tap[channels], found.unit[channels]))]
        yield group.name, order.reshape(group.size, -1)


def _split(weight: Floats, rows: Indices, columns: Indices) -> Floats:
    """(units that write, units that read, d) of (out, in, taps)."""
    part = weight[rows[:, :, None, None], columns[None, None]]
    return np.ascontiguousarray(part.transpose(0, 2, 1, 3, 4)).reshape(len(rows), len(columns), -1)


def _by_unit(tensor: Floats, writes: bool) -> Floats:
    """(units, rest) of (units that write, units that read, d)."""
    moved = tensor if writes else tensor.swapaxes(0, 1)
    return moved.reshape(len(moved), -1)


# -- activations


class _Moments:
    """E z z', E z^2 and E z'^2 of one layer's outputs in both networks, over samples, positions and taps."""

    def __init__(self) -> None:
        self.count = 0
        self.aa: Any = 0.0
        self.bb: Any = 0.0
        self.ab: Any = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        """(n_a, columns) and (n_b, columns) of the same samples and positions."""
        self.count += a.shape[1]
        self.aa += a.double().square().sum(dim=1).cpu().numpy()
        self.bb += b.double().square().sum(dim=1).cpu().numpy()
        self.ab += (a.float() @ b.float().T).double().cpu().numpy()

    def distances(self) -> Floats:
        """(n_a, n_b) E (z_k - z'_l)^2, divided by its mean."""
        found: Floats = np.maximum(self.aa[:, None] + self.bb - 2.0 * self.ab, 0.0) / max(1, self.count)
        mean = float(found.mean())
        return found / mean if mean > 0.0 else found


def _activation_costs(
    models: tuple[nn.Module, nn.Module], axes: tuple[Axes, Axes], batches: tuple[Any, Any]
) -> dict[str, Floats]:
    """{group: (n_a, n_b)} the mean over its members of the distances of what they give before the nonlinearity."""
    watched = [[{m.path: m for m in _givers(ax, g.name)} for g in axes[0].groups] for ax in axes]
    moments: list[dict[str, _Moments]] = [{path: _Moments() for path in members} for members in watched[0]]
    for (inputs_a, _), (inputs_b, _) in zip(*batches, strict=True):
        seen = [
            _answers(model, inputs, {path for members in groups for path in members})
            for model, inputs, groups in zip(models, (inputs_a, inputs_b), watched, strict=True)
        ]
        for k, answers in enumerate(seen):
            for path, answer in answers.items():
                if not bool(torch.isfinite(answer).all()):
                    raise InvalidProblem(
                        f"data: layer {path!r} of model {k} gives activations that are not finite; mend the data or "
                        "the network"
                    )
        for kept, ours, theirs in zip(moments, *watched, strict=True):
            for path, moment in kept.items():
                moment.add(_rows(seen[0][path], ours[path]), _rows(seen[1][path], theirs[path]))
    means = [[moment.distances() for moment in kept.values()] for kept in moments]
    return {g.name: np.mean(found, axis=0) for g, found in zip(axes[0].groups, means, strict=True)}


def _givers(axes: Axes, group: str) -> Sequence[Any]:
    """The members whose outputs are compared: what the nonlinearity reads, norms where there are any."""
    return axes.norms(group) or axes.writers(group)


def _answers(model: nn.Module, inputs: Inputs, paths: set[str]) -> dict[str, Tensor]:
    """{path: (channels, columns)} of the modules' outputs in their last call."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            last = any(isinstance(part, nn.Linear) for part in module.modules())
            found[path] = output.detach().movedim(-1 if last else 1, 0).flatten(1).clone()

        return hook

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in sorted(paths)]
    try:
        with evaluating(model):
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _rows(answer: Tensor, member: Any) -> Tensor:
    """(units, columns) of (channels, columns); the channels of a unit one after the other."""
    channels = torch.tensor(member.channels, device=answer.device)
    return answer[channels].flatten(1)
