r"""What was measured on a network, unit by unit, and what was decided.

A unit is one keep/drop decision. A `Group` holds the units of one channel axis: `size` decisions, each of which
removes a slice from every member. `Statistics` says what the units are worth and cost, `Selection` which stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Bits, Floats, Indices, bits, csr_arrays, csr_from, floats, integers, number, symmetric_sparse
from ._errors import InvalidProblem, unknown
from ._npz import json_array, read, unpack, write


class Unit(NamedTuple):
    """One keep/drop decision in the original network's numbering."""

    layer: str
    channel: int


class Member(NamedTuple):
    """One axis of one module that loses slices with the group: unit u owns `channels[u]` of it."""

    path: str
    axis: str
    channels: Indices


@dataclass(frozen=True, eq=False)
class Group:
    """`size` units decided on one channel axis.

    Parameters
    ----------
    name : str
        Path of the first module whose outputs go, with a suffix where several groups share it.
    size : int
        Number of units.
    members : sequence of (path, "out" | "in", (size, m) int)
        Module path, axis, and for each unit the channels of that axis which go with it.
    layer : str, optional
        Module path by which units are labelled; default the first "out" member's.
    channels : (size,) int, optional
        Channel of each unit in the ORIGINAL network's numbering of `layer`; default the first "out" member's.

    Examples
    --------
    >>> Group("fc1", 2, [("fc1", "out", [[0], [1]]), ("fc2", "in", [[0], [1]])]).units
    (Unit(layer='fc1', channel=0), Unit(layer='fc1', channel=1))
    """

    name: str
    size: int
    members: Sequence[Member]
    layer: str = ""
    channels: Any = None

    def __post_init__(self) -> None:
        members = []
        for path, axis, owned in self.members:
            if axis not in ("out", "in"):
                raise InvalidProblem(f"group {self.name}: axis of {path}: expected 'out' or 'in', got {axis!r}")
            members.append(Member(path, axis, integers(f"group {self.name}: {path}", owned, (self.size, None))))
        first = next((m for m in members if m.axis == "out"), None)
        if first is None:
            raise InvalidProblem(f"group {self.name}: expected at least one 'out' member, got none")
        channels = first.channels[:, 0] if self.channels is None else self.channels
        object.__setattr__(self, "members", tuple(members))
        object.__setattr__(self, "layer", self.layer or first.path)
        object.__setattr__(self, "channels", integers(f"group {self.name}: channels", channels, (self.size,)))

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units in the original network's numbering."""
        return tuple(Unit(self.layer, int(c)) for c in self.channels)


def offsets(groups: Sequence[Group]) -> Indices:
    """(len(groups) + 1,) where each group's units start among all n."""
    return np.concatenate([[0], np.cumsum([g.size for g in groups])]).astype(np.int64)


def _checked_blocks(kind: str, blocks: Sequence[Any], groups: Sequence[Group]) -> tuple[Floats, ...]:
    if len(blocks) != len(groups):
        raise InvalidProblem(f"blocks[{kind!r}]: expected one matrix for each of {len(groups)} groups")
    return tuple(
        floats(f"blocks[{kind!r}] of {g.name}", m, (g.size, g.size)) for g, m in zip(groups, blocks, strict=True)
    )


def _pair_cost(resource: str, pair: Any, n: int) -> Any:
    return symmetric_sparse(f"pair_cost[{resource!r}]", pair, n, remedy="x_i x_i = x_i belongs to `cost`")


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was measured, per unit: n = the groups' sizes added up.

    Parameters
    ----------
    groups : sequence of Group
        The units, in order.
    saliency : {criterion: (n,)}
        What each unit is worth by itself.
    blocks : {kind: one (size, size) matrix per group}
        Similarity or Gram within each group.
    cross : {kind: {(g, h): (size_g, size_h)}}
        The same between two groups g < h read by one consumer; absent where no consumer reads both.
    factors : {kind: (n, r)}
        Network-wide low-rank couplings.
    cost : {resource: (n,)}
        Linear part of what each unit costs.
    pair_cost : {resource: (n, n) sparse}
        Bilinear part, symmetric with zero diagonal.
    constant : {resource: float}
        What is spent whatever is kept.
    meta : mapping
        JSON-able facts: totals, samples seen, excluded groups and why.
    """

    groups: Sequence[Group]
    saliency: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    pair_cost: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    cross: Mapping[str, Any] = field(default_factory=dict)
    constant: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, groups = int(offsets(self.groups)[-1]), tuple(self.groups)
        if len({g.name for g in groups}) != len(groups):
            raise InvalidProblem("groups: expected distinct names, got a repeated one")
        checked: dict[str, Any] = {
            "groups": groups,
            "saliency": {c: floats(f"saliency[{c!r}]", v, (n,)) for c, v in self.saliency.items()},
            "blocks": {kind: _checked_blocks(kind, b, groups) for kind, b in self.blocks.items()},
            "factors": {kind: floats(f"factors[{kind!r}]", v, (n, None)) for kind, v in self.factors.items()},
            "cost": {r: floats(f"cost[{r!r}]", v, (n,)) for r, v in self.cost.items()},
            "cross": {
                kind: {
                    (int(g), int(h)): floats(f"cross[{kind!r}]", m, (groups[g].size, groups[h].size))
                    for (g, h), m in pairs.items()
                }
                for kind, pairs in self.cross.items()
            },
            "pair_cost": {r: _pair_cost(r, pair, n) for r, pair in self.pair_cost.items()},
            "constant": {r: number(f"constant[{r!r}]", v) for r, v in self.constant.items()},
            "meta": dict(self.meta),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def n(self) -> int:
        """Number of units."""
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> Indices:
        """(groups + 1,) where each group's units start."""
        return offsets(self.groups)

    @cached_property
    def group_of(self) -> Indices:
        """(n,) group of each unit."""
        return np.repeat(np.arange(len(self.groups)), np.diff(self.starts))

    @property
    def units(self) -> tuple[Unit, ...]:
        """All n units in the original network's numbering."""
        return tuple(u for g in self.groups for u in g.units)

    def total(self, resource: str) -> float:
        """What the whole network costs: constant, linear and bilinear parts with every unit kept."""
        return self.spent(resource, np.ones(self.n, dtype=bool))

    def spent(self, resource: str, keep: Any) -> float:
        """What the network costs when it keeps `keep` (n,)."""
        if resource not in self.cost:
            raise unknown("resource", resource, self.cost)
        kept = bits("keep", keep, self.n).astype(np.float64)
        pair = self.pair_cost.get(resource)
        bilinear = 0.0 if pair is None else 0.5 * float(kept @ (pair @ kept))
        return self.constant.get(resource, 0.0) + float(kept @ self.cost[resource]) + bilinear

    def criterion(self, name: str) -> Floats:
        """The saliency of that name, (n,)."""
        if name not in self.saliency:
            raise unknown("saliency", name, self.saliency)
        return self.saliency[name]

    def matrices(self, kind: str) -> tuple[Floats, ...]:
        """The matrices of that kind, one (size, size) per group."""
        if kind not in self.blocks:
            raise unknown("block statistic", kind, self.blocks)
        return self.blocks[kind]

    def save(self, path: str | Path) -> None:
        """Write `.npz` (format `prunesolve/1`, no pickle), whole or not at all."""
        write(path, "statistics", dict(_statistics_arrays(self)))

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what `save` wrote."""
        return unpack(path, _statistics_from, read(path, "statistics"))


@dataclass(frozen=True, eq=False)
class Selection:
    """Which units stay.

    Parameters
    ----------
    groups : sequence of Group
        The units, in order.
    keep : (n,) bool
        True keeps.

    Examples
    --------
    >>> fc1 = Group("fc1", 3, [("fc1", "out", [[0], [1], [2]])])
    >>> Selection([fc1], [True, False, True]).kept
    {'fc1': [0, 2]}
    """

    groups: Sequence[Group]
    keep: Bits

    def __post_init__(self) -> None:
        n = int(offsets(self.groups)[-1])
        keep = bits("keep", self.keep, n)
        keep.setflags(write=False)
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "keep", keep)

    def __iter__(self) -> Iterator[tuple[Group, Bits]]:
        starts = offsets(self.groups)
        for g, group in enumerate(self.groups):
            yield group, self.keep[starts[g] : starts[g + 1]]

    @property
    def kept(self) -> dict[str, list[int]]:
        """{module path: kept channels in the original numbering}."""
        found: dict[str, list[int]] = {}
        for group, keep in self:
            found.setdefault(group.layer, []).extend(int(c) for c in group.channels[keep])
        return {layer: sorted(channels) for layer, channels in found.items()}

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """{group name: (kept, size)}."""
        return {group.name: (int(keep.sum()), group.size) for group, keep in self}


def _group_arrays(groups: Sequence[Group]) -> Iterator[tuple[str, Any]]:
    described = []
    for g, group in enumerate(groups):
        described.append(
            {
                "name": group.name,
                "size": group.size,
                "layer": group.layer,
                "members": [[m.path, m.axis] for m in group.members],
            }
        )
        yield f"group{g}.channels", group.channels
        for m, member in enumerate(group.members):
            yield f"group{g}.member{m}", member.channels
    yield "groups", np.array(json.dumps(described))


def _groups_from(arrays: Mapping[str, Any]) -> list[Group]:
    groups = []
    for g, d in enumerate(json.loads(str(arrays["groups"]))):
        members = [Member(path, axis, arrays[f"group{g}.member{m}"]) for m, (path, axis) in enumerate(d["members"])]
        groups.append(Group(d["name"], d["size"], members, d["layer"], arrays[f"group{g}.channels"]))
    return groups


def _statistics_arrays(stats: Statistics) -> Iterator[tuple[str, Any]]:
    yield from _group_arrays(stats.groups)
    for section in ("saliency", "factors", "cost", "constant"):
        for name, array in getattr(stats, section).items():
            yield f"{section}.{name}", np.asarray(array)
    for kind, matrices in stats.blocks.items():
        for g, matrix in enumerate(matrices):
            yield f"blocks.{kind}.{g}", matrix
    for kind, pairs in stats.cross.items():
        for (g, h), matrix in pairs.items():
            yield f"cross.{kind}.{g}.{h}", matrix
    for resource, pair in stats.pair_cost.items():
        for part, array in csr_arrays(pair).items():
            yield f"pair_cost.{resource}.{part}", array
    yield "meta", json_array("meta", dict(stats.meta))


def _statistics_from(arrays: Mapping[str, Any]) -> Statistics:
    groups = _groups_from(arrays)
    n = int(offsets(groups)[-1])
    found: dict[str, dict[str, Any]] = {
        name: {} for name in ("saliency", "factors", "cost", "constant", "blocks", "cross")
    }
    pairs: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        section, _, name = key.partition(".")
        if section == "pair_cost":
            resource, _, part = name.rpartition(".")
            pairs.setdefault(resource, {})[part] = array
        elif section == "blocks":
            kind, _, g = name.rpartition(".")
            found["blocks"].setdefault(kind, {})[int(g)] = array
        elif section == "cross":
            kind, g, h = name.rsplit(".", 2)
            found["cross"].setdefault(kind, {})[int(g), int(h)] = array
        elif section in found:
            found[section][name] = array
    found["blocks"] = {kind: [b[g] for g in range(len(groups))] for kind, b in found["blocks"].items()}
    return Statistics(
        groups,
        pair_cost={r: csr_from(p, "", n) for r, p in pairs.items()},
        meta=json.loads(str(arrays["meta"])),
        **found,
    )
