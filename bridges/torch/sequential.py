r"""Units chosen layer by layer on what the pruned network gives, each layer refitted: one pass over the data.

In execution order, X what a layer reads in the network pruned so far, Y what it gives in the dense one and, where a
shortcut is added to it, what makes that shortcut's error good (see `refit`),

    W = argmin ||Y - W X - b||^2 / columns + r ||W - W_0||^2

and where the layer reads a group of units, those stay with which that minimum is least: a `SubsetRegression`.

A layer whose outputs meet nothing but a ReLU needs only relu(W X + b) = relu(Y), relu's slope included. That is fitted
by majorisation: where the dense output is cut off at zero, t = min(W X + b, zero) takes its place, and so on,

    W <- W_0 + (cov(T, X) - W_0 C) (C + r I)^-1        every step with the same factorisation, none raising the error
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunesolve import solvers
from prunesolve.problems import Group, InvalidProblem, Member, Selection, SolverFailed, unknown
from prunesolve.problems._arrays import Bits
from prunesolve.solvers import Solver

from ._forward import evaluating, tensors
from ._layers import conv_groups, role, widths
from ._lockstep import Lockstep
from ._weight_moments import Moments, keeps_mean, sampled, target_of, write_intercept
from .batchnorm import BATCH_NORMS
from .data import Batches, Inputs, call
from .evaluate import placed
from .masks import apply_masks, masks
from .refit import _check_weights, _is_as_made, _Layer, trace
from .unfold import LINEAR_LAYERS, set_weight, taps, weight_matrix

# more columns would need matrices of several GiB
_WIDE = 16384
# columns an input, where the data have as many: what a fit of that many unknowns wants
_ENOUGH = 100
# floats of columns that are kept for the steps of a rectified fit
_KEPT = 2**27
_RELU = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu_}
_log = logging.getLogger("prunesolve")


@dataclass(frozen=True, eq=False)
class Sequenced:
    """What `prune_in_sequence` brought back.

    Attributes
    ----------
    model : Module
        The masked network, refitted: the shapes of the dense one.
    selection : Selection
        The units kept.
    errors : {layer: float}
        Each fitted layer's error as a share of the variance of what it should give, on the calibration data.
    """

    model: nn.Module
    selection: Selection
    errors: dict[str, float]


def prune_in_sequence(
    dense: nn.Module,
    data: Any,
    groups: Sequence[Group],
    counts: Mapping[str, int],
    *,
    chosen: Mapping[str, Any] | None = None,
    solver: str | Solver = "osscar",
    ridge: float = 1e-3,
    columns: int = 2**15,
    rectified: int = 4,
    device: Any = None,
    seed: int = 0,
) -> Sequenced:
    """Choose units and refit layers in one pass through the network.

    Parameters
    ----------
    dense : Module
        The trained network; untouched.
    data : see `Batches`
        Calibration samples; targets are not used.
    groups : sequence of Group
        The units.
    counts : {group name: int}
        How many of each group stay.
    chosen : {group name: (size,) bool}, optional
        Groups whose units are chosen already. Needed of those that `sequential_groups` does not name.
    solver : str or Solver
        Of `SubsetRegression`: which of the units that a layer reads stay.
    ridge : float > 0
        Pull towards the present weights, relative to the mean variance of the inputs.
    columns : int
        The most columns (samples x output positions) from which a layer is fitted, drawn at random where there are
        more; 100 an input where that is more.
    rectified : int
        Steps of the fit through a ReLU; 0 fits the outputs before it.
    device : torch device, optional
        Where to compute; default where the model lies.
    seed : int
        Draws the columns and goes to the solver.

    Returns
    -------
    Sequenced

    Raises
    ------
    InvalidProblem
        If counts and groups do not fit, an option makes no sense or a layer's activations are not finite.

    References
    ----------
    Meng et al., OSSCAR, 2024 (removal costs; dense targets, pruned inputs). The targets along the residual stream and
    the fit through the ReLU are ours.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> units = Group("0", 4, [("0", "out", [[0], [1], [2], [3]]), ("2", "in", [[0], [1], [2], [3]])])
    >>> found = prune_in_sequence(net, torch.randn(64, 3), [units], {"0": 2})
    >>> found.selection.counts, int((found.model[2].weight != 0).any(0).sum())
    ({'0': (2, 4)}, 2)
    """
    if not ridge > 0.0 or columns < 1 or rectified < 0:
        raise InvalidProblem(
            f"expected ridge > 0, columns >= 1 and rectified >= 0, got {ridge}, {columns} and {rectified}"
        )
    _check_weights(dense)
    known = {name: np.asarray(keep, dtype=bool) for name, keep in (chosen or {}).items()}
    # inference tensors keep no version, by which an in-place change is told
    with torch.inference_mode(False):
        full, batches = placed(dense, device), Batches(data)
        work = copy.deepcopy(full)
        with evaluating(full), evaluating(work):
            order = trace(work, batches.example())
            alone = _alone(work, groups, order)
            _check_counts(groups, counts, known, alone)
            found = solvers.get(solver) if isinstance(solver, str) else solver
            sequence = _Sequence(work, groups, counts, known, alone, ridge, columns, rectified, found, seed)
            sequence.run(full, order, batches)
    return Sequenced(work, Selection(groups, np.concatenate([known[g.name] for g in groups])), sequence.errors)


def sequential_groups(model: nn.Module, groups: Sequence[Group], example: Inputs) -> frozenset[str]:
    """Names of the groups whose units `prune_in_sequence` chooses: those that one mixing layer reads, called once."""
    with torch.inference_mode(False), evaluating(model):
        return frozenset(_alone(model, groups, trace(model, example)).values())


def _alone(model: nn.Module, groups: Sequence[Group], order: Sequence[_Layer]) -> dict[str, str]:
    """{layer: the group it chooses from}."""
    once = {layer.path for layer in order if layer.calls == 1}
    readers = {g.name: [m.path for m in g.members if m.axis == "in"] for g in groups}
    paths = [path for read in readers.values() for path in read]
    return {
        read[0]: name
        for name, read in readers.items()
        if len(read) == 1 and paths.count(read[0]) == 1 and read[0] in once and _is_plain(model.get_submodule(read[0]))
    }


def _is_plain(module: nn.Module) -> bool:
    return (
        isinstance(module, LINEAR_LAYERS)
        and role(module) == "mixing"
        and conv_groups(module) == 1
        and weight_matrix(module).shape[2] <= _WIDE
    )


def _check_counts(
    groups: Sequence[Group], counts: Mapping[str, int], known: Mapping[str, Bits], alone: Mapping[str, str]
) -> None:
    for group in groups:
        if group.name in known:
            if known[group.name].shape != (group.size,):
                raise InvalidProblem(
                    f"chosen: expected {group.size} flags of {group.name}, got {known[group.name].shape}"
                )
        elif group.name not in alone.values():
            raise InvalidProblem(
                f"{group.name}: it is not read by one plain layer alone, so its units cannot be chosen in sequence; "
                "hand them in as chosen={...}"
            )
        elif counts.get(group.name) not in range(1, group.size + 1):
            raise InvalidProblem(
                f"counts: expected 1 to {group.size} units of {group.name}, got {counts.get(group.name)}"
            )
        if group.name in known and not known[group.name].any():
            raise InvalidProblem(f"chosen: expected one unit or more of {group.name} to stay, got none")
    for what, named in (("counts", counts), ("chosen", known)):
        for name in named:
            if name not in {group.name for group in groups}:
                raise unknown(f"group in {what}", name, (group.name for group in groups))


class _Sequence:
    """Goes from layer to layer of the network under work."""

    def __init__(
        self,
        work: nn.Module,
        groups: Sequence[Group],
        counts: Mapping[str, int],
        known: dict[str, Bits],
        alone: Mapping[str, str],
        ridge: float,
        columns: int,
        rectified: int,
        solver: Solver,
        seed: int,
    ) -> None:
        self.work, self.counts, self.known, self.alone = work, counts, known, alone
        self.groups = {g.name: g for g in groups}
        self.ridge, self.columns, self.rectified = ridge, columns, rectified
        self.solver, self.seed = solver, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.errors: dict[str, float] = {}

    def run(self, full: nn.Module, order: Sequence[_Layer], batches: Batches) -> None:
        """Every layer from the first that loses inputs."""
        for name in self.known:
            self._mask(name)
        readers = {m.path for g in self.groups.values() for m in g.members if m.axis == "in"}
        first = next((i for i, layer in enumerate(order) if layer.path in readers), len(order))
        bent = rectified_layers(self.work, order, batches.example()) if self.rectified else frozenset()
        count = sum(1 for _ in batches)
        fitted = [layer for layer in order[first:] if self._fits(layer.path)]
        with Lockstep(full, self.work, batches, fitted) as steps:
            for layer in fitted:
                self._one(layer, layer.path in bent, steps.at(layer), count * layer.calls)

    def _fits(self, path: str) -> bool:
        """Whether the layer's moments have room; says where it is left as it is."""
        room = weight_matrix(self.work.get_submodule(path)).shape[2] <= _WIDE
        if not room:
            _log.warning("sequence: %s reads more than %d columns and is left as it is", path, _WIDE)
        return room

    def _mask(self, name: str) -> None:
        group = self.groups[name]
        apply_masks(self.work, masks(Selection([group], self.known[name]), self.work))

    def _one(self, layer: _Layer, bent: bool, stops: Any, calls: int) -> None:
        module = self.work.get_submodule(layer.path)
        reads = weight_matrix(module).shape[2]
        norm = None if layer.norm is None else self.work.get_submodule(layer.norm)
        most = max(self.columns, _ENOUGH * reads)
        kept = _Columns() if bent and not layer.added and most * reads <= _KEPT and conv_groups(module) == 1 else None
        moments = Moments(
            layer.path, module, -(-most // calls), module.bias is not None or keeps_mean(norm), self.generator
        )
        for stop in stops:
            target = target_of(stop, layer, norm)
            if kept is None:
                moments.add(stop.inputs, target)
            else:
                x, y = sampled(module, stop.inputs, target, moments.share, self.generator)
                moments.add_columns(x, y)
                kept.add(x, y)
        moments.settle(self.ridge)
        moments.warn_if_few()
        self._write(layer, module, norm, moments, kept)

    def _write(self, layer: _Layer, module: Any, norm: Any, moments: Moments, kept: _Columns | None) -> None:
        """Fit, choose where the layer chooses, and put weights and intercept in place."""
        stays = self._stays(layer.path, module)
        weight = moments.fitted(stays)
        if layer.path in self.alone and self.alone[layer.path] not in self.known:
            name = self.alone[layer.path]
            self.known[name] = self._chosen(self.groups[name], layer.path, module, moments)
            self._mask(name)
            stays = self._stays(layer.path, module)
            weight = moments.fitted(stays)
        self.errors[layer.path] = moments.error(weight)
        if kept is not None:
            weight = _through_relu(moments, weight, stays, kept, *_zero(norm, module), self.rectified)
        gone = self._gone(layer.path, module)
        weight.flatten(0, 1)[gone] = 0.0
        set_weight(module, weight.to(module.weight.device, module.weight.dtype))
        write_intercept(module, norm, moments.intercept(weight))
        if module.bias is not None:
            module.bias[gone.to(module.bias.device)] = 0.0

    def _gone(self, path: str, module: Any) -> Tensor:
        """(o,) outputs that are gone already."""
        gone = torch.zeros(widths(module)[1], dtype=torch.bool)
        for group in self.groups.values():
            for member in group.members:
                if member.axis == "out" and member.path == path and group.name in self.known:
                    gone[torch.from_numpy(member.channels[~self.known[group.name]].ravel())] = True
        return gone

    def _stays(self, path: str, module: Any) -> Tensor:
        """(groups, d) inputs that are not gone yet."""
        there = torch.ones(conv_groups(module) * (weight_matrix(module).shape[2] // taps(module)), dtype=torch.bool)
        for group, member in self._read(path):
            if group.name in self.known:
                there[torch.from_numpy(member.channels[~self.known[group.name]].ravel())] = False
        return there.reshape(conv_groups(module), -1).repeat_interleave(taps(module), dim=1)

    def _read(self, path: str) -> list[tuple[Group, Member]]:
        return [(g, m) for g in self.groups.values() for m in g.members if m.axis == "in" and m.path == path]

    def _chosen(self, group: Group, path: str, module: Any, moments: Moments) -> Bits:
        """(size,) the units that stay, by the solver."""
        count = self.counts[group.name]
        if count == group.size:
            return np.ones(group.size, dtype=bool)
        (member,) = [m for g, m in self._read(path) if g.name == group.name]
        unit = np.full(widths(module)[0], -1)
        unit[member.channels] = np.arange(group.size)[:, None]
        problem = moments.units_problem(np.repeat(unit, taps(module)), count)
        result = self.solver.solve(problem, seed=self.seed)
        if result.details.get("interrupted"):
            # the solver keeps its incumbent at Ctrl-C; who interrupts the whole way wants it to end
            raise KeyboardInterrupt
        if not result.feasible:
            raise SolverFailed(f"layer {path}: {result.solver}: {result.status.value}", result)
        return np.array(result.solution)


class _Columns:
    """The columns X (d, columns) and Y (o, columns) of a layer, kept."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.y: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """One call's, (1, d, columns) and (1, o, columns)."""
        self.x.append(x[0])
        self.y.append(y[0])


def _zero(norm: Any, module: Any) -> tuple[Tensor, Tensor]:
    """(o, 1) the output at which the ReLU behind the layer and its norm begins, and whether it passes larger ones."""
    if norm is None:
        return module.weight.new_zeros(1, 1), torch.ones(1, 1, dtype=torch.bool, device=module.weight.device)
    slope = torch.rsqrt(norm.running_var + norm.eps)
    shift = torch.zeros_like(slope) if norm.bias is None else norm.bias
    slope = slope if norm.weight is None else slope * norm.weight
    # a channel whose slope is zero gives a constant: whatever the fit is there
    at = norm.running_mean - torch.where(slope == 0, 0.0, shift / torch.where(slope == 0, 1.0, slope))
    return at[:, None], (slope > 0)[:, None]


def _through_relu(
    moments: Moments, weight: Tensor, stays: Tensor, kept: _Columns, zero: Tensor, larger: Tensor, steps: int
) -> Tensor:
    """(1, o, d) fitted to the outputs behind a ReLU; the moments then hold the targets of the last step."""
    x, y = torch.cat(kept.x, 1), torch.cat(kept.y, 1)
    kept.x.clear()
    kept.y.clear()
    active = torch.where(larger, y > zero, y < zero)
    for _ in range(steps):
        given = weight[0].to(x) @ x
        shift = moments.intercept(weight)
        given = given if shift is None else given + shift.to(given)[:, None]
        target = torch.where(active, y, torch.where(larger, torch.minimum(given, zero), torch.maximum(given, zero)))
        moments.retarget(x, target)
        weight = moments.fitted(stays)
    return weight


class _Rectified(TorchFunctionMode):
    """Which layers' outputs, through a BatchNorm at most, go into a ReLU and nowhere else."""

    def __init__(self, norms: Mapping[str, str]) -> None:
        super().__init__()
        self.norms = norms
        # outputs of layers and of their norms, and the uses of either
        self.tracked: dict[str, list[tuple[Tensor, int]]] = {}
        self.uses: dict[str, list[bool]] = {}
        self.before: dict[str, int] = {}

    def at(self, path: str) -> Any:
        def note(_: nn.Module, __: Any, output: Tensor) -> None:
            self.tracked[path] = [(output, output._version)]
            self.uses[path] = []

        return note

    def before_norm(self, path: str) -> Any:
        def note(_: nn.Module, __: Any) -> None:
            self.before[path] = len(self.uses.get(self.norms[path], []))

        return note

    def at_norm(self, path: str) -> Any:
        def note(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            layer = self.norms[path]
            if layer in self.tracked and _is_as_made(inputs[0], self.tracked[layer][0]):
                self.tracked[layer].append((output, output._version))
                # the norm's own reading is none of another
                del self.uses[layer][self.before[path] :]

        return note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reading = self.readers((args, kwargs))
        answer = func(*args, **(kwargs or {}))
        # properties such as a shape are read by way of __get__, but so is a transpose
        if getattr(func, "__name__", "") != "__get__" or isinstance(answer, Tensor):
            for path in reading:
                self.uses[path].append(func in _RELU)
        return answer

    def readers(self, nested: Any) -> list[str]:
        """The layers whose outputs are among these."""
        found = tensors(nested)
        return [p for p, seen in self.tracked.items() if any(_is_as_made(t, one) for t in found for one in seen)]


def rectified_layers(model: nn.Module, order: Sequence[_Layer], example: Inputs) -> frozenset[str]:
    """Paths of the layers, called once, whose outputs meet nothing but a ReLU.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> with torch.no_grad():
    ...     sorted(rectified_layers(net, trace(net, torch.ones(1, 2)), torch.ones(1, 2)))
    ['0']
    """
    layers = [layer for layer in order if layer.calls == 1]
    watch = _Rectified({layer.norm: layer.path for layer in layers if layer.norm is not None})
    modules = dict(model.named_modules())
    handles = [modules[layer.path].register_forward_hook(watch.at(layer.path)) for layer in layers]
    handles += [modules[norm].register_forward_pre_hook(watch.before_norm(norm)) for norm in watch.norms]
    handles += [modules[norm].register_forward_hook(watch.at_norm(norm)) for norm in watch.norms]
    try:
        with watch:
            answer = call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    for path in watch.readers(answer):
        watch.uses[path].append(False)
    found = [path for path, uses in watch.uses.items() if uses == [True]]
    return frozenset(path for path in found if _keeps_threshold(modules, path, layers))


def _keeps_threshold(modules: Mapping[str, nn.Module], path: str, layers: Sequence[_Layer]) -> bool:
    """Whether it is known where the ReLU begins: no norm, or one with running statistics."""
    norm = next(layer.norm for layer in layers if layer.path == path)
    return norm is None or (isinstance(modules[norm], BATCH_NORMS) and keeps_mean(modules[norm]))
