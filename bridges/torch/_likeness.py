r"""How alike the channels of a group are, and what each of them counts.

activations    d2_ij = sum over readers, samples, positions of (h_i - h_j)^2,  h what the readers see
weights        d2_ij = sum over makers of ||a_i w_i - a_j w_j||^2,  a the slope of a BatchNorm that follows
both           the sum of the two, each divided by its mean

Distances come from Gram matrices that are summed over batches, so that no feature is ever stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems import Group, InvalidProblem, Member
from prunesolve.problems._arrays import Floats

from ._forward import evaluating
from ._layers import channel_axis, role
from ._merged import Norms, slopes
from .data import Batches, call
from .unfold import TRANSPOSED

FEATURES = ("both", "activations", "weights")


@dataclass(eq=False)
class Moments:
    """Sums over readers, samples and positions of what is read of a group's units.

    Attributes
    ----------
    gram : (n, n)
        sum h_i h_j.
    total : (n,)
        sum h_i.
    count : int
        How many values of each unit were seen.
    """

    gram: Floats
    total: Floats
    count: int = 0

    @property
    def deviation(self) -> Floats:
        """(n,) standard deviation of each unit."""
        mean = self.total / self.count
        return np.asarray(np.sqrt(np.maximum(np.diagonal(self.gram) / self.count - mean**2, 0.0)))

    def add(self, rows: Tensor) -> None:
        """Add values (n, columns)."""
        self.gram += (rows @ rows.T).cpu().numpy()
        self.total += rows.sum(1).cpu().numpy()
        self.count += rows.shape[1]


def moments(model: nn.Module, groups: Sequence[Group], batches: Batches) -> dict[str, Moments]:
    """{group: what its readers see}, in one pass over the data."""
    found = {group.name: Moments(np.zeros((group.size, group.size)), np.zeros(group.size)) for group in groups}
    handles = [
        model.get_submodule(member.path).register_forward_pre_hook(_adding(found[group.name], member))
        for group in groups
        for member in readers(group)
    ]
    try:
        with evaluating(model):
            for inputs, _ in batches:
                call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    for name, seen in found.items():
        if not np.isfinite(seen.gram).all():
            raise InvalidProblem(
                f"data: layer {name!r} gives activations that are not finite; mend the data or the network"
            )
    return found


def _adding(into: Moments, member: Member) -> Any:
    owned = torch.from_numpy(np.array(member.channels.ravel()))

    def add(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen: Tensor = args[0]
        rows = seen.movedim(channel_axis(module), 0)[owned.to(seen.device)]
        into.add(rows.reshape(len(member.channels), -1).double())

    return add


def distances(model: nn.Module, group: Group, seen: Moments | None, norms: Norms, features: str) -> Floats:
    """(n, n) squared distances of a group's units."""
    tables = [] if seen is None or features == "weights" else [_apart(seen.gram)]
    if features != "activations":
        tables.append(_apart(_incoming(model, group, norms)))
    return np.asarray(sum(_to_mean_one(table) for table in tables))


def incoming_norms(model: nn.Module, group: Group, norms: Norms) -> Floats:
    """(n,) norm of the weights that make each unit."""
    return np.asarray(np.sqrt(np.maximum(np.diagonal(_incoming(model, group, norms)), 0.0)))


def outgoing_norms(model: nn.Module, group: Group) -> Floats:
    """(n,) norm of the weights that read each unit."""
    total = np.zeros(group.size)
    for member in readers(group):
        module: Any = model.get_submodule(member.path)
        weight = module.weight if isinstance(module, TRANSPOSED) else module.weight.transpose(0, 1)
        energy = weight.detach().double().flatten(1).square().sum(1).cpu().numpy()
        total += energy[member.channels].sum(axis=1)
    return np.asarray(np.sqrt(total))


def readers(group: Group) -> list[Member]:
    """The members that read the group's channels."""
    return [member for member in group.members if member.axis == "in"]


def _incoming(model: nn.Module, group: Group, norms: Norms) -> Floats:
    """(n, n) Gram of the weights and biases that make each unit, as they are behind their norms."""
    gram = np.zeros((group.size, group.size))
    for member in group.members:
        module: Any = model.get_submodule(member.path)
        if member.axis == "out" and role(module) in ("mixing", "depthwise"):
            weight = module.weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else module.weight
            rows = weight.detach().double().flatten(1).cpu().numpy()
            if module.bias is not None:
                rows = np.hstack([rows, module.bias.detach().double().cpu().numpy()[:, None]])
            if member.path in norms:
                rows = rows * slopes(model.get_submodule(norms[member.path]))[:, None]
            for channels in member.channels.T:
                gram += rows[channels] @ rows[channels].T
    return gram


def _apart(gram: Floats) -> Floats:
    """Squared distances of the vectors behind a Gram matrix."""
    energy = np.diagonal(gram)
    table = np.maximum(energy[:, None] + energy - gram - gram.T, 0.0)
    np.fill_diagonal(table, 0.0)
    return np.asarray(table)


def _to_mean_one(table: Floats) -> Floats:
    mean = table.mean()
    return table / mean if mean > 0 else table
