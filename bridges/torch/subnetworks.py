r"""A network split at stage boundaries: what each sub-network loses, judged by the dense rest of the network.

    f = f_S o ... o f_1        F_s = f_s(... f_1(x)) the dense features, computed once

    e_s(x_s) = loss of f_S o ... o f_s^x o ... o f_1                 the rest as frozen feature detector
             + gamma d(f_s^x(F_{s-1}), F_s)                          features at the stage's end
             + gamma_cross d(f_s^x(F^p_{s-1}), F_s)                  features made by the pruned predecessor
    d(A, F) = E ||A - F||^2 / E ||F||^2

Channels that cross a boundary stay as they are, so that sub-networks fit together however each is pruned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems import (
    Composite,
    Group,
    GroupBounds,
    InvalidProblem,
    LevelChoice,
    MultiObjective,
    Selection,
    Selections,
)
from prunesolve.problems._arrays import Bits, Floats, floats
from prunesolve.problems.units import offsets

from ._forward import evaluating
from ._layers import conv_groups, widths
from ._stages import Boundary, Stages
from .attention import open_attention, owners
from .costs import Cost, _positions, costs
from .data import Batches, Inputs, call
from .evaluate import Evaluator, Loss, per_sample, placed, with_targets
from .groups import find_groups
from .levels import Levels
from .masks import apply_masks, masks
from .measure import measure
from .shrink import shrink
from .unfold import LINEAR_LAYERS, taps

# what the network gives, as a boundary behind its last stage
_OUTPUT = ""


@dataclass(frozen=True, eq=False)
class Part:
    """One sub-network.

    Parameters
    ----------
    name : str
        Path of the module at whose end it ends; "" for the last one, which ends with the network.
    groups : tuple of Group
        The units that it decides on.
    modules : frozenset of str
        Paths of its layers.
    """

    name: str
    groups: tuple[Group, ...]
    modules: frozenset[str]

    @property
    def n(self) -> int:
        """Number of units."""
        return sum(group.size for group in self.groups)


class Subnetworks:
    r"""A network in parts, with an error and an exact cost for each.

    Parameters
    ----------
    model : Module
        The dense network; it is not changed.
    data : see `Batches`
        Samples with targets; held in memory.
    groups : sequence of Group, optional
        The units; default all that `find_groups` finds. Those that cross a boundary are left out and stay.
    boundaries : sequence of str, optional
        Modules behind which the network is split. Default: wherever the size of the feature map changes, or its width
        where the size leaves one part; what holds no unit joins its neighbour.
    gamma : float >= 0
        Weight of the features at a part's end against the dense ones.
    cross : Selection, optional
        A pruning that the predecessors of each part are taken with: the cross-network constraint. Units that it does
        not name stay.
    gamma_cross : float >= 0
        Weight of the features made from what the pruned predecessor hands on.
    minimum : int
        Units that every group keeps.
    resource : {"params", "macs"}
        What the parts cost.
    loss : callable (outputs, targets), optional
        As in `evaluate`.
    device : torch device, optional
        Where to compute; default where the model lies.
    **options
        Of the `Evaluator`s: dtype, refit, batchnorm, guard (here False by default), memory.

    Attributes
    ----------
    parts : tuple of Part
        The sub-networks, in order.
    groups : tuple of Group
        The units of all parts, in order of the parts.
    excluded : {group name: reason}
        What stays.

    Raises
    ------
    InvalidProblem
        If a boundary cuts a residual (names the addition), there is only one part, or a part holds no unit.

    References
    ----------
    Shang, Zhu, Wu, Zhang, Jiao, Xu, EMO-DIR, arXiv 2303.16212: sub-networks, feature detectors and the cross-network
    constraint are the paper's; these formulas are our reconstruction.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 5, 1),
    ...                     nn.Conv2d(5, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> data = torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64)
    >>> split = Subnetworks(net, data, boundaries=["2"])
    >>> [(part.name, [group.name for group in part.groups]) for part in split.parts]
    [('2', ['0']), ('', ['3'])]
    >>> split.composite().joint.values(np.ones(split.n, dtype=bool)).shape
    (2,)
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        groups: Sequence[Group] | None = None,
        boundaries: Iterable[str] | None = None,
        *,
        gamma: float = 1.0,
        cross: Selection | None = None,
        gamma_cross: float = 1.0,
        minimum: int = 1,
        resource: str = "params",
        loss: Loss | None = None,
        device: Any = None,
        **options: Any,
    ) -> None:
        self.gamma, self.gamma_cross = _weight("gamma", gamma), _weight("gamma_cross", gamma_cross)
        self.minimum, self.resource, self.loss = minimum, resource, loss
        self.model = copy.deepcopy(placed(model, device)).eval()
        self.data = [(inputs, with_targets(targets, self.model)) for inputs, targets in Batches(data)]
        self.example = self.data[0][0]
        self._options = {"guard": False} | options
        if groups is None:
            groups = find_groups(self.model, self.example).groups
        open_attention(self.model, owners(groups))
        self.parts, self.excluded = _split(self.model, self.example, groups, boundaries)
        self.groups = tuple(group for part in self.parts for group in part.groups)
        self.starts = offsets(self.groups)
        self._reference = None if cross is None else _kept_by(cross, self.groups)

    @property
    def n(self) -> int:
        """Number of units of all parts."""
        return int(self.starts[-1])

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """What the network costs as a function of the units: {"params": Cost, "macs": Cost}."""
        return costs(self.model, self.groups, self.example)

    def span(self, part: int) -> slice:
        """Where a part's units are among all n."""
        start = sum(one.n for one in self.parts[:part])
        return slice(start, start + self.parts[part].n)

    def cost(self, part: int) -> Cost:
        """What a part's layers cost as a function of its units."""
        own, whole = self.span(part), self.costs[self.resource]
        linear, pair = whole.linear[own], whole.pair[own][:, own]
        dense = _dense_cost(self.model, self.parts[part].modules, self.resource, self.example)
        return Cost(float(dense - linear.sum() - pair.sum() / 2), linear, pair)

    def composite(
        self,
        *,
        saliency: str | Floats = "taylor",
        starts: int = 16,
        reference: Sequence[float] | None = None,
        limits: Sequence[float] | None = None,
    ) -> Composite:
        """The problem of each part and that of the whole, over bits.

        Parameters
        ----------
        saliency : str or (n,) float
            What the units are worth, measured by that name or given: each problem starts with the path on which
            the unit of the least worth per cost goes next.
        starts : int
            Points of that path, spread over the cost; 0 for none.
        reference, limits : (2,) float, optional
            Of the whole: reference point of the hypervolume, and the most that error and cost may be.

        Returns
        -------
        Composite
            It can be sent to worker processes if the model can.
        """
        worth = self._worth(saliency) if starts else np.zeros(self.n)
        parts = []
        for index in range(len(self.parts)):
            own = self.span(index)
            evaluation = Evaluation(self._judges(index), self.cost(index))
            parts.append(self._problem(self.parts[index].groups, evaluation, worth[own], starts, {}))
        judge = Evaluator(self.model, self.data, self.groups, loss=self.loss, **self._options)
        evaluation = Evaluation([judge], self.costs[self.resource])
        joint = self._problem(self.groups, evaluation, worth, starts, {"reference": reference, "limits": limits})
        return Composite(parts, joint, np.ones(self.n, dtype=bool))

    def level_composite(
        self,
        levels: Levels,
        *,
        reference: Sequence[float] | None = None,
        limits: Sequence[float] | None = None,
        **options: Any,
    ) -> Composite:
        """The problem of each part and that of the whole, over the levels of a database with its refitted weights.

        The error of a part is that of the whole network with the other parts dense, without the features' terms.

        Parameters
        ----------
        levels : Levels
            Built for `groups` of this object, in their order.
        reference, limits : (2,) float, optional
            As in `composite`.
        **options
            Of `Levels.multi_objective`.

        Raises
        ------
        InvalidProblem
            If the database is of other groups.
        """
        if [group.name for group in levels.groups] != [group.name for group in self.groups]:
            raise InvalidProblem("levels: expected the groups of these sub-networks; Levels.build(model, data, groups)")
        options = self._options | {"loss": self.loss} | options
        joint = levels.multi_objective(self.data, ("loss", self.resource), **options)
        ends = np.cumsum([len(part.groups) for part in self.parts])
        parts = [
            _restricted(joint, np.arange(end - len(part.groups), end), levels.dense)
            for part, end in zip(self.parts, ends, strict=True)
        ]
        return Composite(parts, joint.replace(reference=reference, limits=limits), levels.dense)

    def trained(
        self, part: int, keep: Any, *, steps: int = 100, rate: float = 1e-3, seed: int = 0
    ) -> dict[str, Tensor]:
        """A part's weights after a short training of the pruned sub-network, everything else frozen.

        minimise    loss + gamma d(f_s(F_{s-1}), F_s) + gamma_cross d(f_s(F^p_{s-1}), F_s)        by Adam

        Parameters
        ----------
        part : int
            Which one.
        keep : (n_part,) bool
            Its units that stay; the weights of the others stay zero.
        steps, rate, seed
            Steps of one batch each, Adam's rate, and the seed of the batches' order.

        Returns
        -------
        dict
            {name in the network's state dict: tensor}, for `network`.
        """
        span = self.span(part)
        whole = np.ones(self.n, dtype=bool)
        whole[span] = np.asarray(keep, dtype=bool)
        chosen = masks(Selection(self.groups, whole), self.model)
        work = apply_masks(copy.deepcopy(self.model), chosen)
        own = {
            f"{path}." for path in self.parts[part].modules if next(work.get_submodule(path).children(), None) is None
        }
        for name, parameter in work.named_parameters():
            parameter.requires_grad_(name.rpartition(".")[0] + "." in own)
        end, observed = self.parts[part].name, []
        dense, power = self._dense(end)
        observed.append((Observed(work, end, power, False), PartLoss(self.loss, self.gamma, False)))
        if part and self._reference is not None and self.gamma_cross:
            before = self._pruned_before(part).requires_grad_(False)
            for path in own:
                # the same layers behind a pruned predecessor
                before.set_submodule(path[:-1], work.get_submodule(path[:-1]))
            observed.append((Observed(before, end, power, True), PartLoss(None, self.gamma_cross, True)))
        adam = torch.optim.Adam([p for p in work.parameters() if p.requires_grad], lr=rate)
        order = np.random.default_rng(seed).integers(len(self.data), size=steps)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            for index in order.tolist():
                inputs, targets = self.data[index]
                adam.zero_grad()
                for network, loss in observed:
                    loss(network(*_each(inputs), dense[index]), targets).mean().backward()
                adam.step()
                apply_masks(work, chosen)
        return {
            name: tensor.detach().clone()
            for name, tensor in work.state_dict().items()
            if name.rpartition(".")[0] + "." in own
        }

    def network(self, keep: Any, weights: Iterable[Mapping[str, Tensor]] = ()) -> nn.Module:
        """The smaller network that keeps `keep` (n,), with the weights that `trained` gave for some parts."""
        model = copy.deepcopy(self.model)
        for own in weights:
            model.load_state_dict(dict(own), strict=False)
        return shrink(model, Selection(self.groups, np.asarray(keep, dtype=bool)), self.example)

    def _dense(self, end: str) -> tuple[list[Tensor], float]:
        """The dense features at a boundary, batch by batch, and their mean square."""
        dense = [_features(self.model, inputs, end) for inputs, _ in self.data]
        return dense, float(np.mean([float(f.double().square().mean()) for f in dense]))

    def _worth(self, saliency: str | Floats) -> Floats:
        if isinstance(saliency, str):
            measured = measure(self.model, self.data, groups=self.groups, loss=self.loss, progress=False)
            return measured.criterion(saliency)
        return floats("saliency", saliency, (self.n,))

    def _problem(
        self, groups: Sequence[Group], evaluation: Evaluation, worth: Floats, starts: int, more: Mapping[str, Any]
    ) -> MultiObjective:
        sizes = np.array([group.size for group in groups])
        block = np.repeat(np.arange(len(groups)), sizes)
        bounds = GroupBounds(block, np.minimum(self.minimum, sizes), sizes)
        path = removal_path(worth, evaluation.cost, block, self.minimum, starts)
        labels = [str(tuple(unit)) for group in groups for unit in group.units]
        space = Selections(len(block), [bounds])
        return MultiObjective(
            space, evaluation, ("loss", self.resource), starts=path, groups=block, labels=labels, **more
        )

    def _judges(self, part: int) -> list[Evaluator]:
        """What a part's error is added up from."""
        groups, end = _under(self.parts[part].groups), self.parts[part].name
        found = [self._judge(self.model, groups, end, False, self.loss, self.gamma)]
        if part and self._reference is not None and self.gamma_cross:
            found.append(self._judge(self._pruned_before(part), groups, end, True, None, self.gamma_cross))
        return found

    def _judge(
        self, model: nn.Module, groups: Sequence[Group], end: str, only: bool, loss: Loss | None, gamma: float
    ) -> Evaluator:
        """Judges units by the loss and the features at a part's end, or by the features only."""
        dense, power = self._dense(end)
        data = [((*_each(x), f), y) for (x, y), f in zip(self.data, dense, strict=True)]
        observed = Observed(model, end, power, only)
        return Evaluator(observed, data, groups, loss=PartLoss(loss, gamma, only), **self._options)

    def _pruned_before(self, part: int) -> nn.Module:
        """The network whose earlier parts are pruned as the reference says."""
        assert self._reference is not None
        keep = self._reference.copy()
        keep[self.span(part).start :] = True
        return apply_masks(copy.deepcopy(self.model), masks(Selection(self.groups, keep), self.model))


# -- evaluation


class Evaluation:
    """evaluate(X): error and cost of a part, or of the whole; a class, so that it can be sent to other processes."""

    def __init__(self, judges: Sequence[Evaluator], cost: Cost) -> None:
        self.judges, self.cost = tuple(judges), cost

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"threads": torch.get_num_threads()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # another number of threads adds up in another order: a worker would find another front
        torch.set_num_threads(state.pop("threads"))
        vars(self).update(state)

    def __call__(self, x: Any) -> Floats:
        """(m, 2) of the rows of x (m, n)."""
        keep = np.asarray(x, dtype=bool)
        error = sum((judge.evaluate(keep) for judge in self.judges), start=np.zeros(len(keep)))
        return np.stack([error, spent(self.cost, keep)], axis=1)


class Restricted:
    """evaluate(X) of some coordinates of a larger problem, the others dense."""

    def __init__(self, evaluate: Any, columns: Any, dense: Any) -> None:
        self.evaluate, self.columns, self.dense = evaluate, columns, np.asarray(dense)

    def __call__(self, x: Any) -> Floats:
        """(m, 2) of the rows of x (m, columns)."""
        rows = np.repeat(self.dense[None], len(x), axis=0)
        rows[:, self.columns] = x
        return np.asarray(self.evaluate(rows))


def _restricted(joint: MultiObjective, columns: Any, dense: Any) -> MultiObjective:
    """A problem over levels with all but some of its layers dense."""
    space, first = joint.space, int(columns[0])
    pairs = {
        (a - first, b - first): table for (a, b), table in space.pair_cost.items() if a in columns and b in columns
    }
    error, cost = [space.error[i] for i in columns], [space.cost[i] for i in columns]
    most = sum(float(np.abs(table).max()) for table in (*cost, *pairs.values()))
    choice = LevelChoice(error, cost, most, pairs, space.total)
    starts = np.unique(joint.starts[:, columns], axis=0)
    evaluate = Restricted(joint.evaluate, columns, dense)
    return MultiObjective(choice, evaluate, joint.objectives, starts=starts, groups=np.arange(len(columns)))


def spent(cost: Cost, keep: Bits) -> Floats:
    """(m,) what the rows of keep (m, n) cost."""
    kept = keep.astype(np.float64)
    return np.asarray(cost.constant + kept @ cost.linear + 0.5 * ((kept @ cost.pair) * kept).sum(axis=1))


class Observed(nn.Module):
    """A network that is also told the dense features at a boundary, and tells how far it is from them.

    Parameters
    ----------
    model : Module
        What runs.
    boundary : str
        The module whose output is compared; "" compares the network's own.
    power : float
        Mean square of the dense features.
    only : bool
        Whether to stop there, and tell nothing else.
    """

    def __init__(self, model: nn.Module, boundary: str, power: float, only: bool) -> None:
        super().__init__()
        self.model, self.boundary, self.power, self.only = model, boundary, power, only

    def forward(self, *inputs: Tensor) -> Any:
        """(the network's outputs, 1 + each sample's distance d from the dense features), or the latter alone.

        Without the 1 the dense network's own would be zero, from which a rounding error cannot be told.
        """
        *inputs_, dense = inputs
        seen: list[Tensor] = []

        def compare(_module: Any, _inputs: Any, features: Tensor) -> None:
            error = (features.float() - dense.float()).square().flatten(1).mean(1)
            seen.append(1.0 + error / (self.power or 1.0))
            if self.only:
                raise _Reached

        watched = self.model if self.boundary == _OUTPUT else self.model.get_submodule(self.boundary)
        handle = watched.register_forward_hook(compare)
        try:
            outputs = self.model(*inputs_)
        except _Reached:
            return seen[0]
        finally:
            handle.remove()
        return outputs, seen[0]


class _Reached(BaseException):
    """The boundary is reached; no Exception, which the network's own code may catch."""


class PartLoss:
    """(outputs, targets) -> what each sample of a part loses, from what `Observed` gives."""

    def __init__(self, loss: Loss | None, gamma: float, only: bool) -> None:
        self.loss, self.gamma, self.only = loss, gamma, only

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """(samples,) losses."""
        if self.only:
            return self.gamma * (outputs - 1.0)
        answer, distance = outputs
        return per_sample(self.loss, answer, targets, len(distance)) + self.gamma * (distance - 1.0)


def _features(model: nn.Module, inputs: Inputs, boundary: str) -> Tensor:
    """The dense network's features at a boundary."""
    seen: list[Any] = []
    watched = model if boundary == _OUTPUT else model.get_submodule(boundary)
    # a copy: what follows may work on them in place
    handle = watched.register_forward_hook(lambda _m, _i, output: seen.append(_tensor(output).clone()))
    try:
        with evaluating(model):
            call(model, inputs)
    finally:
        handle.remove()
    found: Tensor = seen[0]
    return found


def _tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise InvalidProblem(
            f"model: expected one tensor as its output, got {type(output).__name__}; wrap it so that it gives one"
        )
    return output


def _each(inputs: Inputs) -> tuple[Tensor, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def _under(groups: Iterable[Group]) -> list[Group]:
    """The groups as those of the network inside `Observed`."""
    return [
        Group(g.name, g.size, [m._replace(path=f"model.{m.path}") for m in g.members], g.layer, g.channels)
        for g in groups
    ]


# -- the split


def _split(
    model: nn.Module, example: Inputs, groups: Sequence[Group], boundaries: Iterable[str] | None
) -> tuple[tuple[Part, ...], dict[str, str]]:
    stages = Stages.of(model, example)
    if boundaries is not None:
        paths = [boundaries] if isinstance(boundaries, str) else list(boundaries)
        chosen = stages.given(paths)
        parts, excluded = _parts(stages, chosen, groups)
        empty = [part.name or "the end" for part in parts if not part.groups]
        if empty or len(parts) < 2:
            raise InvalidProblem(
                f"boundaries: the part that ends at {empty[0]} holds no unit that could go; leave that boundary out"
                if empty
                else "boundaries: expected at least one module to split behind, got none"
            )
        return parts, excluded
    for axes in (slice(1, None), slice(None)):
        parts, excluded = _filled(stages, stages.found(axes), groups)
        if len(parts) > 1:
            return parts, excluded
    raise InvalidProblem(
        "boundaries: no change of size or width splits this network into parts that hold units; name the modules to "
        "split behind, each the only thing that what follows reads"
    )


def _filled(
    stages: Stages, boundaries: list[Boundary], groups: Sequence[Group]
) -> tuple[tuple[Part, ...], dict[str, str]]:
    """The parts between boundaries, those without units joined to the next one."""
    while True:
        parts, excluded = _parts(stages, boundaries, groups)
        empty = next((i for i, part in enumerate(parts) if not part.groups), None)
        if empty is None or not boundaries:
            return parts, excluded
        del boundaries[min(empty, len(boundaries) - 1)]


def _parts(
    stages: Stages, boundaries: Sequence[Boundary], groups: Sequence[Group]
) -> tuple[tuple[Part, ...], dict[str, str]]:
    ends = [boundary.order for boundary in boundaries]
    within: dict[str, set[int]] = {}
    for order, end in enumerate(stages.ends):
        within.setdefault(end.path, set()).add(int(np.searchsorted(ends, order)))
    owned: list[list[Group]] = [[] for _ in range(len(ends) + 1)]
    excluded = {}
    for group in groups:
        where = {part for member in group.members for part in within.get(member.path, ())}
        if len(where) == 1:
            owned[where.pop()].append(group)
        else:
            crossed = [boundaries[part].path for part in sorted(where)[:-1]]
            reason = f"its channels cross the boundary at {', '.join(crossed)}" if where else "it never runs"
            excluded[group.name] = reason
    names = [*(boundary.path for boundary in boundaries), _OUTPUT]
    modules = [frozenset(path for path, found in within.items() if found == {index}) for index in range(len(names))]
    return tuple(Part(n, tuple(g), m) for n, g, m in zip(names, owned, modules, strict=True)), excluded


def _dense_cost(model: nn.Module, modules: Iterable[str], resource: str, example: Inputs) -> int:
    """What these modules cost in the dense network."""
    found = [(path, model.get_submodule(path)) for path in modules]
    if resource == "params":
        seen = {id(p): p.numel() for _, module in found for p in module.parameters(recurse=False)}
        return sum(seen.values())
    positions = _positions(model, example)
    total = 0
    for path, module in found:
        if isinstance(module, LINEAR_LAYERS):
            reads, makes = widths(module)
            total += reads * makes * taps(module) * positions.get(path, 0) // conv_groups(module)
    return total


def removal_path(worth: Floats, cost: Cost, block: Any, minimum: int, points: int) -> Bits:
    """Selections (points, n) on the way from everything to the minimum, the least worth per cost going first.

    Parameters
    ----------
    worth : (n,) float
        What the units are worth.
    cost : Cost
        What a selection costs.
    block : (n,) int
        The group of each unit.
    minimum : int
        Units that every group keeps.
    points : int
        Selections, spread over the cost; both ends are among them.
    """
    keep = np.ones(len(worth), dtype=bool)
    left = np.bincount(block)
    marginal = cost.linear + np.asarray(cost.pair.sum(axis=1)).ravel()
    path = [keep.copy()]
    while True:
        free = np.flatnonzero(keep & (left[block] > minimum))
        if not len(free):
            break
        unit = free[np.argmin(worth[free] / np.maximum(marginal[free], 1e-12))]
        keep[unit] = False
        left[block[unit]] -= 1
        marginal -= cost.pair[[unit]].toarray().ravel()
        path.append(keep.copy())
    rows = np.array(path)
    if points >= len(rows):
        return rows
    total = spent(cost, rows)
    wanted = np.linspace(total[0], total[-1], points) if points else np.zeros(0)
    return rows[np.unique([int(np.abs(total - w).argmin()) for w in wanted]).astype(int)]


def _kept_by(cross: Selection, groups: Sequence[Group]) -> Bits:
    """(n,) what a selection over other groups of the same network says of these."""
    said = {group.name: keep for group, keep in cross}
    for group in groups:
        if group.name in said and len(said[group.name]) != group.size:
            raise InvalidProblem(f"cross: expected {group.size} units of {group.name}, got {len(said[group.name])}")
    return np.concatenate([said.get(group.name, np.ones(group.size, dtype=bool)) for group in groups])


def _weight(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < np.inf:
        raise InvalidProblem(f"{name}: expected a number >= 0, got {value!r}")
    return float(value)
