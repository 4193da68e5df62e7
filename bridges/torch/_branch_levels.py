"""Level 0 of a layer: the residual branch around it goes, and what that saves of parameters and multiply-adds.

A branch that no unit of some group is left to reads nothing any more and gives its mean. The cost of levels counts what
is left of its layers, biases and norms; the difference to the network without it is affine in the other layers' units,
so it enters the table of level 0 alone and with each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from prunesolve.problems import Group, InvalidProblem, Member, Selection
from prunesolve.problems._arrays import Bits
from prunesolve.problems.units import offsets

from ._level_costs import CostTable
from ._stitching import Stitching
from .branches import Branch, find_branches
from .costs import Cost, costs


def branches_at_zero(network: Stitching) -> dict[int, str]:
    """{group: the residual branch that goes with its last unit}, tried by removal.

    Of several groups inside a branch the one nearest its end is taken. A branch inside one taken is not, nor one whose
    other layers cost a product of two other groups' units: no pair of levels tells that these go.
    """
    found: dict[int, str] = {}
    taken: list[Branch] = []
    dense = costs(network.model, network.groups, network.example)
    for branch in reversed(find_branches(network.model, network.example)):
        inside = set(branch.groups_inside(network.groups))
        around = any(all(other.holds(path) for path in branch.layers) for other in taken)
        for g in [] if branch.reason or around else reversed(range(len(network.groups))):
            if network.groups[g].name in inside and _goes(network, g, branch.name, dense):
                found[g] = branch.name
                taken.append(branch)
                break
    return dict(sorted(found.items()))


def _goes(network: Stitching, g: int, branch: str, dense: Mapping[str, Cost]) -> bool:
    try:
        without = costs_without(network, g, branch)
        for resource, cost in dense.items():
            _difference(cost, without[resource], g, network.groups)
    except InvalidProblem:
        return False
    return True


def costs_without(network: Stitching, g: int, branch: str) -> dict[str, Cost]:
    """What the network costs without the branch, as a function of all units; those of group g do not matter."""
    starts = offsets(network.groups)
    keep = np.ones(int(starts[-1]), dtype=bool)
    keep[starts[g] : starts[g + 1]] = False
    left = network.network(Selection(network.groups, keep), {g: branch})
    return costs(left, _with_means(left, network), network.example)


def _with_means(left: nn.Module, network: Stitching) -> list[Group]:
    """The groups with what stands at the end of a removed branch: its mean loses the channels that its layers did."""
    dense = dict(network.model.named_modules())
    stays = {path for path, module in left.named_modules() if type(module) is type(dense.get(path))}
    means = [path for path, _ in left.named_modules() if path not in dense and path.endswith(".mean")]
    groups = []
    for group in network.groups:
        members = list(group.members)
        # a layer inside the branch goes with all its channels, one that its sum carries on lives elsewhere too
        for path in means if any(member.path in stays for member in group.members) else ():
            end = path.removesuffix(".mean")
            same = [m for m in group.members if m.axis == "out" and f"{m.path}.".startswith(f"{end}.")]
            members += [Member(path, "out", member.channels) for member in same[-1:]]
        groups.append(Group(group.name, group.size, members, group.layer, group.channels))
    return groups


def with_branch_gone(
    table: CostTable, cost: Cost, without: Cost, g: int, groups: Sequence[Group], keep: Sequence[Bits]
) -> CostTable:
    """The table with level 0 of group g costing what the network without the branch costs."""
    constant, linear = _difference(cost, without, g, groups)
    starts = offsets(groups)
    each = [row.copy() for row in table.cost]
    pair = {ends: values.copy() for ends, values in table.pair.items()}
    each[g][0] += constant
    if constant < 0.0:
        # what goes was counted for every choice: now each other level of this layer pays for it
        each[g] -= constant
        each[0] += constant
    for h, kept in enumerate(keep):
        saved = kept @ linear[starts[h] : starts[h + 1]]
        if h == g or not saved.any():
            continue
        ends = (min(g, h), max(g, h))
        values = pair.setdefault(ends, np.zeros((len(keep[ends[0]]), len(keep[ends[1]]))))
        (values if g < h else values.T)[0] += saved
    return CostTable(tuple(each), pair, table.total, table.notes)


def _difference(cost: Cost, without: Cost, g: int, groups: Sequence[Group]) -> tuple[float, Any]:
    """Constant and (n,) slope of the cost without the branch less the cost with no unit of group g."""
    starts = offsets(groups)
    others = np.ones(int(starts[-1]), dtype=bool)
    others[starts[g] : starts[g + 1]] = False
    apart = (without.pair - cost.pair)[others][:, others]
    if apart.nnz and np.abs(apart.data).max() > 0:
        raise InvalidProblem(f"what goes with {groups[g].name} costs a product of other layers' widths")
    return without.constant - cost.constant, np.where(others, without.linear - cost.linear, 0.0)
