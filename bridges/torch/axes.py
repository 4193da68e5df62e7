"""Which channels of a network are one unit, all of them: those that could not be removed too.

`find_groups` proves what can be cut out; here every hidden channel is counted, so that whole layers can be matched with
another network's or made of other units. Both rest on the same probe.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from prunesolve.problems import Group, InvalidProblem, Member, unknown
from prunesolve.problems._arrays import Indices

from ._forward import evaluating
from ._layers import conv_groups, role, widths
from ._probe import INPUT, OUTPUT, Flow, Node, probe
from .blocks import plain_layers
from .groups import _Layer, _only_passes, _prepared, _Unit, _units

_OUTSIDE = -1


class Side(NamedTuple):
    """What the channels of one side of a layer are, (w,) each.

    Parameters
    ----------
    group : index into `Axes.groups`; -1 where the channel is the network's own input or output.
    unit : which unit of the group; the channel itself where it is of no group.
    tap : which of the unit's channels here; several where a map is flattened.
    """

    group: Indices
    unit: Indices
    tap: Indices


@dataclass(frozen=True, eq=False)
class Axes:
    """Every hidden unit of a network, and who writes and reads it.

    Attributes
    ----------
    groups : tuple of Group
        In the order the layers run; each named after the first layer that writes it. Residual streams are one group;
        where a stream is widened by zeros, what is there from the start and what comes later are two.
    roles : {path: role}
        Every layer that ran, in that order: "mixing", "depthwise" or "channelwise".
    sides : {(path, "in" | "out"): Side}
    inputs, outputs : tuple of str
        Layers that read the network's input and that write its output.
    """

    groups: tuple[Group, ...]
    roles: Mapping[str, str]
    sides: Mapping[Node, Side]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, example: Any) -> Axes:
        """The axes of a network, found by perturbation.

        Parameters
        ----------
        model : nn.Module
            Any network, a fused one too; it is copied and stays as it is.
        example : tensor or tuple of tensors
            What the model is called with, batch first; one sample is enough.

        Raises
        ------
        InvalidProblem
            If a hidden channel is read by something that is no such layer (LayerNorm, attention), shares its weights,
            meets the network's input or depends on all others; names the layer and says why.

        Examples
        --------
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> axes = Axes.of(net, torch.zeros(1, 1, 4, 4))
        >>> [(g.name, g.size) for g in axes.groups], axes.inputs, axes.outputs
        ([('0', 4)], ('0',), ('4',))
        >>> axes.side("4", "in").unit.tolist()
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
        """
        probed, inputs = _prepared(plain_layers(copy.deepcopy(model)), example)
        with evaluating(probed):
            flow = probe(probed, inputs)
        modules = dict(probed.named_modules())
        layers = {p: _Layer(role(modules[p]), *widths(modules[p]), conv_groups(modules[p])) for p in flow.order}
        hidden, outside = _sorted(layers, flow)
        return _axes(layers, hidden, outside)

    @property
    def order(self) -> tuple[str, ...]:
        """Paths of all layers, in the order they run."""
        return tuple(self.roles)

    def group(self, name: str) -> Group:
        """The group of that name."""
        found = next((group for group in self.groups if group.name == name), None)
        if found is None:
            raise unknown("group", name, [group.name for group in self.groups])
        return found

    def side(self, path: str, axis: str) -> Side:
        """What the "in" or "out" channels of a layer are."""
        if (path, axis) not in self.sides:
            raise unknown("side of a layer", f"{path} {axis}", [" ".join(node) for node in self.sides])
        return self.sides[path, axis]

    def writers(self, name: str) -> tuple[Member, ...]:
        """The convolutions and linear layers whose outputs are units of the group."""
        return tuple(m for m in self.group(name).members if m.axis == "out" and self.roles[m.path] == "mixing")

    def norms(self, name: str) -> tuple[Member, ...]:
        """The layers with parameters for each unit of the group: BatchNorm and the like, depthwise convolutions."""
        return tuple(m for m in self.group(name).members if m.axis == "out" and self.roles[m.path] != "mixing")

    def readers(self, name: str) -> tuple[Member, ...]:
        """The convolutions and linear layers that read units of the group."""
        return tuple(m for m in self.group(name).members if m.axis == "in")


def _sorted(layers: Mapping[str, _Layer], flow: Flow) -> tuple[list[_Unit], list[_Unit]]:
    """Hidden units, and those of the network's input and output."""
    hidden, outside = [], []
    for unit in _units(dict(layers), flow):
        said = {r for node, channels in unit.items() for c in channels if (r := flow.fixed.get(node, {}).get(c))}
        writers = [path for path, side in unit if side == "out" and layers[path].role == "mixing"]
        whole = [p for p in writers if 1 < layers[p].makes == len(unit[p, "out"])]
        if said == {OUTPUT} or not writers:
            outside.append(unit)
        elif said:
            raise InvalidProblem(_refusal(writers[0], next(iter(sorted(said - {OUTPUT})))))
        elif whole:
            raise InvalidProblem(_refusal(whole[0], f"all channels of {whole[0]} depend on one another"))
        else:
            hidden.append(unit)
    return hidden, outside


def _refusal(path: str, reason: str) -> str:
    said = "the network's own input is added to it" if reason == INPUT else reason
    return f"{path}: its channels are no units of their own: {said}; leave such networks out, or change that layer"


def _axes(layers: Mapping[str, _Layer], hidden: Sequence[_Unit], outside: Sequence[_Unit]) -> Axes:
    bins: dict[tuple[Any, ...], list[_Unit]] = defaultdict(list)
    for unit in hidden:
        bins[tuple((node, len(channels)) for node, channels in unit.items())].append(unit)
    rank = {path: i for i, path in enumerate(layers)}
    ordered = sorted(bins.values(), key=lambda units: (rank[_writer(units[0])], units[0][_writer(units[0]), "out"][0]))
    sharing = Counter(_writer(units[0]) for units in ordered)
    empty = {
        (p, side): np.full((3, layer.width(side)), _OUTSIDE) for p, layer in layers.items() for side in layer.sides
    }
    groups, sides, seen = [], empty, Counter[str]()
    for index, units in enumerate(ordered):
        path = _writer(units[0])
        seen[path] += 1
        groups.append(_group(f"{path}#{seen[path]}" if sharing[path] > 1 else path, layers, units))
        for node in units[0]:
            channels = np.array([unit[node] for unit in units])
            which, tap = np.indices(channels.shape)
            sides[node][:, channels] = np.stack([np.full(channels.shape, index), which, tap])
    for side in sides.values():
        free = np.flatnonzero(side[0] == _OUTSIDE)
        side[1:, free] = np.stack([free, np.zeros(len(free))])
    ends = {end: _ends(layers, outside, end) for end in ("in", "out")}
    roles = {path: layer.role for path, layer in layers.items()}
    return Axes(tuple(groups), roles, {n: Side(*s) for n, s in sides.items()}, ends["in"], ends["out"])


def _writer(unit: _Unit) -> str:
    """The first layer that makes the unit: units list their producers first."""
    return next(iter(unit))[0]


def _group(name: str, layers: Mapping[str, _Layer], units: Sequence[_Unit]) -> Group:
    shown = [node for node in units[0] if not _only_passes(layers, node)]
    members = [Member(path, axis, np.array([unit[path, axis] for unit in units])) for path, axis in shown]
    return Group(name, len(units), members)


def _ends(layers: Mapping[str, _Layer], outside: Sequence[_Unit], end: str) -> tuple[str, ...]:
    """The layers that write the output ("out"), or that read what no layer writes ("in")."""
    found: dict[str, None] = {}
    for unit in outside:
        writes = any(side == "out" and layers[path].role == "mixing" for path, side in unit)
        if writes == (end == "out"):
            found.update(dict.fromkeys(path for path, side in unit if side == end))
    return tuple(path for path in layers if path in found)
