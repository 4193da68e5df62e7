"""Which channels of a network go together.

`_probe` sees where each channel arrives; channels that meet are coupled, by connected components. Components with the
same members form one `Group`. Every group is then tried: about half of its units are removed from a copy with random
weights, and the result must equal the masked network. torch-pruning's dependency graph is asked as a second opinion.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from prunesolve.problems import Group, InvalidProblem, Member, Selection, unknown

from ._forward import as_inputs, evaluating, reseed, run, tensors
from ._layers import conv_groups, role, widths
from ._probe import Flow, Node, probe
from .attention import heads_of, layers_of, open_attention, why_closed
from .masks import apply_masks, masks
from .shrink import cut_out
from .verify import kept_channels, verify

_PRODUCERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Found:
    """The groups of a network.

    Parameters
    ----------
    groups : tuple of Group
        Channels that can go, in the order the layers run.
    excluded : {name: reason}
        What cannot go, and why.
    notes : {group name: str}
        Whether torch-pruning's index map agrees.
    """

    groups: tuple[Group, ...]
    excluded: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def find_groups(model: nn.Module, example: Any, *, layers: Iterable[str] | None = None) -> Found:
    """The coupled channels of a network: found by perturbation, proved by removal.

    Parameters
    ----------
    model : nn.Module
        Any network; it is copied and stays as it is.
    example : tensor or tuple of tensors
        What the model is called with, batch first; one sample is enough.
    layers : iterable of str, optional
        Paths of the modules whose outputs may go; default all. A group counts if all its producers are named.

    Returns
    -------
    Found

    Raises
    ------
    InvalidProblem
        If the model does not run on the example (names the layer) or a layer name is unknown.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> found = find_groups(net, torch.zeros(1, 1, 4, 4))
    >>> [(m.path, m.axis, m.channels.shape) for m in found.groups[0].members]
    [('0', 'out', (4, 1)), ('1', 'out', (4, 1)), ('4', 'in', (4, 4))]
    >>> found.excluded
    {'4': "it is part of the network's output"}
    """
    wanted = None if layers is None else _checked_layers(model, layers)
    work, inputs = _prepared(model, example)
    work = _with_heads(work, inputs)
    probed = copy.deepcopy(work)
    # infinite values may be meant, as in a mask
    if any(bool(x.isnan().any()) for x in inputs):
        raise InvalidProblem("data: the example holds NaN, which is not finite; mend the data")
    with evaluating(probed):
        flow = probe(probed, inputs)
    candidates, excluded = _candidates(work, flow, wanted)
    groups, failures = _Trials(work, inputs).proved(candidates)
    return Found(tuple(groups), {**excluded, **failures}, _second_opinion(model, inputs, groups))


def without_heads(found: Found, model: nn.Module, why: str) -> Found:
    """The same without the groups that are attention heads, which `why` says are left out."""
    modules = layers_of(model)
    heads = [g for g in found.groups if heads_of(g, modules)]
    groups = tuple(g for g in found.groups if g not in heads)
    return Found(groups, found.excluded | {g.name: why for g in heads}, found.notes)


def _checked_layers(model: nn.Module, layers: Iterable[str]) -> set[str]:
    known = [path for path, module in layers_of(model).items() if path and isinstance(module, _PRODUCERS)]
    for layer in (wanted := {layers} if isinstance(layers, str) else set(layers)):
        if layer not in known:
            raise unknown("layer", layer, known)
    return wanted


def _prepared(model: nn.Module, example: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A copy to experiment on and the example's first sample, where that alone gives the first row of the answer."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise InvalidProblem(
            f"model: expected a plain torch.nn.Module, got {type(model).__name__}; hand in the network as it was "
            "before torch.jit or torch.compile"
        )
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise InvalidProblem("model: it has lazy layers without parameters yet; run it once on an example first")
    inputs = as_inputs(model, example)
    with evaluating(model):
        answer = tensors(run(model, inputs))
        first = tuple(x[:1] if x.ndim else x for x in inputs)
        try:
            alone = tensors(run(model, first))
        except InvalidProblem:
            return copy.deepcopy(model), inputs
    same = all(a.ndim and torch.allclose(a, b[:1], 1e-3, 1e-5) for a, b in zip(alone, answer, strict=True))
    return copy.deepcopy(model), first if same else inputs


def _with_heads(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> nn.Module:
    """A copy whose nn.MultiheadAttention runs as layers, on which heads are seen; the model itself if it cannot."""
    if not any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        return model
    inside = open_attention(copy.deepcopy(model))
    with evaluating(model), evaluating(inside):
        wanted = tensors(run(model, inputs))
        reseed(inside)
        try:
            got = tensors(run(inside, inputs))
        except InvalidProblem:
            # the forward code reaches for weights that an opened one does not have
            return model
    close = len(got) == len(wanted) and all(torch.allclose(w, g, 1e-3, 1e-5) for w, g in zip(wanted, got, strict=True))
    return inside if close else model


# -- units and groups


class _Layer(NamedTuple):
    """What is asked of a layer here."""

    role: str
    reads: int
    makes: int
    groups: int

    @property
    def sides(self) -> tuple[str, ...]:
        return ("out",) if self.role == "channelwise" else ("in", "out")

    def width(self, side: str) -> int:
        return self.makes if side == "out" else self.reads


_Unit = dict[Node, list[int]]  # channels that can only go together


def _candidates(model: nn.Module, flow: Flow, wanted: set[str] | None) -> tuple[list[Group], dict[str, str]]:
    """Groups that nothing speaks against, and the others with the reason."""
    modules = dict(model.named_modules())
    layers = {p: _Layer(role(modules[p]), *widths(modules[p]), conv_groups(modules[p])) for p in flow.order}
    bins: dict[tuple[Any, ...], list[list[list[int]]]] = defaultdict(list)
    for unit in _units(layers, flow):
        producers = [path for path, side in unit if side == "out" and layers[path].role == "mixing"]
        if not producers or (wanted is not None and not wanted.intersection(producers)):
            continue
        reasons = _reasons(layers, flow, unit)
        if wanted is not None and not reasons and not wanted.issuperset(producers):
            others = ", ".join(p for p in producers if p not in wanted)
            reasons = (f"it is coupled to {others}, which `layers` does not name",)
        shown = {node: channels for node, channels in unit.items() if not _only_passes(layers, node)}
        bins[tuple((node, len(c)) for node, c in shown.items()), reasons].append(list(shown.values()))
    groups, excluded = _named(model, layers, bins)
    return groups, excluded | _outside(modules, layers, wanted)


def _outside(modules: Mapping[str, nn.Module], layers: Mapping[str, _Layer], wanted: set[str] | None) -> dict[str, str]:
    """Convolutions and linear layers that never ran as such, and why nothing is said about their channels."""
    said = {}
    for path, module in modules.items():
        if isinstance(module, _PRODUCERS) and path not in layers and (wanted is None or path in wanted):
            said[path] = "it does not run as a layer on the example"
            if role(module) == "sealed":
                said[path] = "it computes its weight at each call (a pruning mask, a parametrisation)"
            if reason := why_closed(modules[path.rpartition(".")[0]]):
                said[path] = reason
    return said


def _named(
    model: nn.Module, layers: Mapping[str, _Layer], bins: Mapping[tuple[Any, ...], list[list[list[int]]]]
) -> tuple[list[Group], dict[str, str]]:
    """One group per bin, named after its first producer; where several share that, with their channels."""
    rank = {path: i for i, path in enumerate(layers)}
    groups, excluded = [], {}
    # a bin's key is ((((path, axis), channels per unit), ...), reasons)
    ordered = sorted(bins.items(), key=lambda item: (rank[item[0][0][0][0][0]], item[1][0][0]))
    sharing = Counter(signature[0][0][0] for (signature, _), _ in ordered)
    seen: Counter[str] = Counter()
    for (signature, reasons), units in ordered:
        layer = signature[0][0][0]
        seen[layer] += 1
        nodes = [node for node, _ in signature]
        members = [Member(path, axis, np.array([u[k] for u in units])) for k, (path, axis) in enumerate(nodes)]
        original = np.array(kept_channels(model, layer, "out", layers[layer].makes))
        channels = original[members[0].channels[:, 0]]
        name = layer + _suffix(channels, seen[layer]) if sharing[layer] > 1 else layer
        if reasons:
            excluded[name] = "; ".join(reasons)
        else:
            groups.append(Group(name, len(units), members, layer, channels))
    return groups, excluded


def _suffix(channels: np.ndarray[Any, Any], position: int) -> str:
    start, stop = int(channels[0]), int(channels[-1]) + 1
    return f"[{start}:{stop}]" if np.array_equal(channels, np.arange(start, stop)) else f"#{position}"


def _units(layers: Mapping[str, _Layer], flow: Flow) -> list[_Unit]:
    """The connected components: producers first, then BatchNorm and the like, then readers, as they run."""
    sides = [(path, side) for path, layer in layers.items() for side in layer.sides]
    lengths = [layers[path].width(side) for path, side in sides]
    starts = dict(zip(sides, np.cumsum([0, *lengths]).tolist(), strict=False))
    edges = [np.zeros((0, 2), dtype=int)]
    for (producer, reader), pairs in flow.arrivals.items():
        side = "in" if (reader, "in") in starts else "out"
        edges.append(pairs + [starts[producer, "out"], starts[reader, side]])
    for path, layer in layers.items():
        edges += [_within(layer, starts[path, "in"], starts[path, "out"])] if "in" in layer.sides else []
    ends, total = np.concatenate(edges), sum(lengths)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(total, total))
    labels = connected_components(graph, directed=False)[1] if total else []
    units: dict[int, _Unit] = defaultdict(dict)
    # the sort is stable: within a kind the layers stay in the order they run
    for path, side in sorted(sides, key=lambda node: 2 if node[1] == "in" else int(layers[node[0]].role != "mixing")):
        for channel in range(layers[path].width(side)):
            units[labels[starts[path, side] + channel]].setdefault((path, side), []).append(channel)
    return list(units.values())


def _within(layer: _Layer, start_in: int, start_out: int) -> np.ndarray[Any, Any]:
    """(e, 2) couplings inside one layer: all groups of a convolution have to lose equally many channels."""
    if layer.role == "depthwise":
        out = np.arange(layer.makes)
        return np.stack([start_in + out // (layer.makes // layer.reads), start_out + out], axis=1)
    pairs = []
    for start, width in ((start_in, layer.reads), (start_out, layer.makes)):
        channel = np.arange(width)
        pairs.append(np.stack([start + channel, start + channel % (width // layer.groups)], axis=1))
    return np.concatenate(pairs)


def _only_passes(layers: Mapping[str, _Layer], node: Node) -> bool:
    """Whether it is the input of a depthwise convolution, which goes with the output."""
    return node[1] == "in" and layers[node[0]].role == "depthwise"


def _reasons(layers: Mapping[str, _Layer], flow: Flow, unit: _Unit) -> tuple[str, ...]:
    """Why the unit cannot go; empty where nothing is known against it."""
    said = []
    for node, channels in unit.items():
        against = flow.fixed.get(node, {})
        said += [against[c] for c in channels if c in against]
    if said:
        return tuple(dict.fromkeys(said))[:2]
    if all(side == "out" or _only_passes(layers, (path, side)) for path, side in unit):
        return ("nothing reads it",)
    whole = [path for (path, side), channels in unit.items() if len(channels) == layers[path].width(side)]
    return (f"all channels of {whole[0]} depend on one another",) if whole else ()


# -- trial removal


class _Trials:
    """Removal tried on a copy with random weights, so that no zero or dead weight hides a wrong map."""

    def __init__(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.random, self.turn = np.random.default_rng(0), 0
        self.starts: dict[str, float] = {}
        generator = torch.Generator().manual_seed(0)
        self.model, self.inputs = copy.deepcopy(model).eval(), inputs
        _enliven(self.model, generator)
        noisy = tuple(
            x + torch.rand(x.shape, generator=generator).to(x) if x.is_floating_point() else x for x in inputs
        )
        try:
            with evaluating(self.model):
                finite = all(bool(t.isfinite().all()) for t in tensors(run(self.model, noisy)))
            self.inputs = noisy if finite else inputs
        except InvalidProblem:
            finite = False
        if not finite:
            self.model = copy.deepcopy(model).eval()
        self.masked = copy.deepcopy(self.model)

    def proved(self, groups: list[Group]) -> tuple[list[Group], dict[str, str]]:
        """The groups whose removal is right, and the others with the reason.

        Groups of one layer that fail one by one get a second chance together: the halves that `chunk` makes of a
        layer's channels have to stay equally long.
        """
        failures = self._screened(groups)
        for group in _together([g for g in groups if g.name in failures]):
            if not self._screened([group]):
                parts = [g.name for g in groups if g.layer == group.layer and g.name in failures]
                failures = {name: reason for name, reason in failures.items() if name not in parts}
                at = min(i for i, g in enumerate(groups) if g.name in parts)
                groups = [*groups[:at], group, *(g for g in groups[at:] if g.name not in parts)]
                failures |= self._screened([g for g in groups if g.name not in failures])
        return [g for g in groups if g.name not in failures], failures

    def _screened(self, groups: list[Group]) -> dict[str, str]:
        """{name of a group whose removal is wrong: reason}, tried until all that are left are right."""
        failures: dict[str, str] = {}
        while True:
            left = [g for g in groups if g.name not in failures]
            found: dict[str, str] = {}
            for company in _companies(len(left)):
                found |= self._culprits([left[i] for i in company if left[i].name not in found])
            if not found:
                return failures
            failures |= found

    def _culprits(self, groups: list[Group]) -> dict[str, str]:
        reason = self._wrong(groups) if groups else ""
        if not reason:
            return {}
        if len(groups) == 1:
            return {groups[0].name: reason}
        half = len(groups) // 2
        found = self._culprits(groups[:half]) | self._culprits(groups[half:])
        if found:
            return found
        return {groups[-1].name: f"only in company with {groups[0].name} or others: {reason}"}

    def _wrong(self, groups: list[Group]) -> str:
        selection = self._sample(groups)
        chosen = masks(selection, self.model)
        try:
            removed = cut_out(self.model, chosen, self.inputs)
        except InvalidProblem as error:
            return str(error)
        self.masked.load_state_dict(self.model.state_dict())
        check = verify(apply_masks(self.masked, chosen), removed, self.inputs)
        if check.passed:
            return ""
        if np.isinf(check.largest_difference):
            return f"a width of it is fixed in the forward code: {check.reason}"
        return f"removing channels differs from masking them, first at {check.parted_at}"

    def _sample(self, groups: list[Group]) -> Selection:
        """About half of each group goes, now more, now less; never all that a layer has."""
        while True:
            self.turn += 1
            keep = [self._kept(group, len(groups) == 1) for group in groups]
            selection = Selection(groups, np.concatenate(keep))
            chosen = masks(selection, self.model)
            if all(bool(m.any()) for m in (*chosen.values(), *chosen.inputs.values())):
                return selection

    def _kept(self, group: Group, alone: bool) -> np.ndarray[Any, Any]:
        # another number each time, for a map can be right by chance: an odd width still splits into halves when one
        # channel is gone. Golden-ratio steps from a start of each group's own spread the numbers evenly
        start = self.starts.setdefault(group.name, float(self.random.random()))
        place = (start + self.turn * 0.618034) % 1
        dropped = 1 + int(place * (group.size - 1)) if group.size > 1 else int(alone or place < 0.5)
        keep = np.ones(group.size, dtype=bool)
        keep[self.random.permutation(group.size)[:dropped]] = False
        return keep


def _companies(groups: int) -> list[np.ndarray[Any, Any]]:
    """Which groups are tried together: by each bit of their numbers, then all, twice.

    Any two are told apart, in both directions, by log2 of as many trials as there are groups.
    """
    number = np.arange(groups)
    bits = range((groups - 1).bit_length() if groups else 0)
    return [number[number >> b & 1 == has] for b in bits for has in (1, 0)] + [number, number]


def _together(failed: list[Group]) -> list[Group]:
    """Failed groups of one layer and one size made one: unit u is the u-th unit of each."""
    parts: dict[tuple[str, int], list[Group]] = defaultdict(list)
    for group in failed:
        parts[group.layer, group.size].append(group)
    joined = []
    for (layer, size), groups in parts.items():
        owned: dict[Node, list[np.ndarray[Any, Any]]] = defaultdict(list)
        for group in groups:
            for member in group.members:
                owned[member.path, member.axis].append(member.channels)
        members = [Member(path, axis, np.concatenate(channels, axis=1)) for (path, axis), channels in owned.items()]
        members.sort(key=lambda member: member.axis == "in")
        joined += [Group(layer, size, members, layer, groups[0].channels)] if len(groups) > 1 else []
    return joined


@torch.no_grad()
def _enliven(model: nn.Module, generator: torch.Generator) -> None:
    """Random weights of unit gain and normalisations near the identity, in place."""
    for module in model.modules():
        kind = role(module)
        if kind not in ("mixing", "depthwise", "channelwise"):
            continue
        for name in ("weight", "bias", "running_mean", "running_var"):
            held = getattr(module, name, None)
            if held is None:
                continue
            if name == "weight" and kind != "channelwise":
                fresh = torch.randn(held.shape, generator=generator) * (2 / max(1, held[0].numel())) ** 0.5
            elif name in ("weight", "running_var"):
                fresh = torch.rand(held.shape, generator=generator) + 0.5
            else:
                fresh = torch.randn(held.shape, generator=generator) * 0.1
            held.copy_(fresh)


# -- torch-pruning's view


def _second_opinion(model: nn.Module, inputs: tuple[torch.Tensor, ...], groups: list[Group]) -> dict[str, str]:
    """{group name: whether torch-pruning's dependency graph maps its first and last unit alike}."""
    import torch_pruning

    mapped = copy.deepcopy(model).eval()
    notes = {}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        for parameter in mapped.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(mapped, example_inputs=inputs, verbose=False)
        except Exception as error:  # it is a second opinion: whatever stops it must not stop us
            return {g.name: f"torch-pruning could not map this network ({type(error).__name__})" for g in groups}
        paths = {module: path for path, module in mapped.named_modules()}
        for group in groups:
            if not all(m.path in paths.values() for m in group.members):
                notes[group.name] = "torch-pruning does not map single heads of nn.MultiheadAttention"
                continue
            try:
                notes[group.name] = _compared(graph, paths, mapped, group)
            except Exception as error:
                notes[group.name] = f"torch-pruning could not map this group ({type(error).__name__})"
    return notes


def _compared(graph: Any, paths: dict[nn.Module, str], mapped: nn.Module, group: Group) -> str:
    units = sorted({0, group.size - 1})
    ours = {(m.path, m.axis): set(m.channels[units].ravel().tolist()) for m in group.members}
    root = mapped.get_submodule(group.layer)
    start = sorted(ours[group.layer, "out"])
    pruner = graph.get_pruner_of_module(root)
    theirs: dict[Node, set[int]] = defaultdict(set)
    for dep, channels in graph.get_pruning_group(root, pruner.prune_out_channels, start):
        path = paths.get(dep.target.module)
        if path is not None and role(dep.target.module) != "plain":
            theirs[path, "out" if graph.is_out_channel_pruning_fn(dep.handler) else "in"].update(channels)
    for node in [*ours, *theirs]:
        if ours.get(node, set()) != theirs.get(node, set()):
            path, side = node
            return (
                f"remapped: torch-pruning maps channels {start} of {group.layer} to "
                f"{sorted(theirs.get(node, ())) or 'none'} of {path} ({side}), the probe to "
                f"{sorted(ours.get(node, ())) or 'none'}"
            )
    return "agrees with torch-pruning"
