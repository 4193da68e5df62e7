r"""A network whose layers are merged: every module that makes or reads a group's channels gets mixed weights.

With F = forward (c, n), B = backward (n, c) of a group's `Merging`, makers become  F W,  F b  and readers  W B.  Where
a BatchNorm follows a maker, rows that merge several channels mix what the norm gives, a_i (z_i - mean_i) + beta_i with
a_i = gamma_i / sqrt(var_i + eps): the row F_ci a_i of W, and a norm of slope one. So duplicates merge exactly, whatever
the scale of their norms. Every merged channel is written over one of the channels it is made of, and the others are cut
out: the merged network is made, and checked, like any other that loses channels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.formulations.generalised_pruning import Merging
from prunesolve.problems import Group, InvalidProblem, Member, Selection
from prunesolve.problems._arrays import Floats

from ._fold import agree, answer
from ._forward import as_inputs, evaluating
from ._layers import conv_groups, role, widths
from .data import Inputs
from .masks import masks
from .refit import Rows, trace
from .shrink import shrink
from .unfold import TRANSPOSED

Norms = Mapping[str, str]  # {path of a layer: path of the BatchNorm that it alone feeds}
_Mixed = dict[str, tuple[Floats, Floats]]  # {path: (o, o) what becomes of its outputs, and of a shortcut added to them}


@dataclass(frozen=True, eq=False)
class Merged:
    """A merged network, what each of its layers' outputs are of the dense layer's, and who reads merged channels."""

    model: nn.Module
    rows: dict[str, Rows]
    readers: frozenset[str]


def refusal(model: nn.Module, group: Group) -> str | None:
    """Why the channels of a group cannot be merged, None where they can."""
    for member in group.members:
        module = model.get_submodule(member.path)
        if role(module) == "mixing" and conv_groups(module) > 1:
            return f"{member.path} is a convolution in {conv_groups(module)} groups, which channels cannot change"
    return None


def following_norms(model: nn.Module, example: Inputs) -> dict[str, str]:
    """{layer: the BatchNorm that it alone feeds}, where nothing else reads what stands between the two."""
    with evaluating(model):
        found = {layer.path: layer.norm for layer in trace(model, example) if layer.norm and layer.calls == 1}
    norms = {path: norm for path, norm in found.items() if _follows(model, norm)}
    if agree(answer(model, example), answer(_folded(model, norms), example)):
        return norms
    # few networks read a layer past its norm: then each is tried by itself
    return {p: n for p, n in norms.items() if agree(answer(model, example), answer(_folded(model, {p: n}), example))}


def merged(model: nn.Module, example: Inputs, groups: Sequence[Group], mergings: Mapping[str, Merging]) -> Merged:
    """The smaller network.

    Raises
    ------
    InvalidProblem
        If what is left does not compute what the mixed weights compute.
    """
    norms = following_norms(model, example)
    work = copy.deepcopy(model)
    mixed: _Mixed = {}
    keep = []
    with torch.no_grad():
        for group in groups:
            merging = mergings[group.name]
            if merging.n != group.size:
                raise InvalidProblem(f"merging of {group.name}: expected {group.size} neurons, got {merging.n}")
            keep.append(np.isin(np.arange(group.size), merging.places))
            _merge(work, group, merging, norms, mixed)
    selection = Selection(tuple(groups), np.concatenate(keep) if keep else np.zeros(0, dtype=bool))
    small = shrink(work, selection, as_inputs(work, example))
    left = masks(selection, work)
    readers = frozenset(path for path, mask in left.inputs.items() if not mask.all())
    return Merged(small, {path: Rows(*(_left(m, left[path]) for m in both)) for path, both in mixed.items()}, readers)


def _left(matrix: Floats, mask: Tensor) -> Tensor:
    return torch.from_numpy(matrix)[mask]


def _merge(work: nn.Module, group: Group, merging: Merging, norms: Norms, mixed: _Mixed) -> None:
    """Write one group's merged channels over those at its places, in place."""
    readers = [member for member in group.members if member.axis == "in"]
    makers = [member for member in group.members if member.axis == "out"]
    owner = {norm: path for path, norm in norms.items()}
    for member in makers:
        module: Any = work.get_submodule(member.path)
        if role(module) == "channelwise" and member.path not in owner:
            _mix_vectors(module, member, merging.forward, merging.places)
    for member in makers:
        module = work.get_submodule(member.path)
        if role(module) in ("mixing", "depthwise"):
            norm: Any = work.get_submodule(norms[member.path]) if member.path in norms else None
            _make(member, module, norm, merging, mixed)
    for member in readers:
        module = work.get_submodule(member.path)
        if role(module) == "mixing":
            _read(module, member, merging)


def _make(member: Member, module: Any, norm: Any, merging: Merging, mixed: _Mixed) -> None:
    """F W and F b, and the norm that follows."""
    outputs, shortcut = mixed.setdefault(member.path, (np.eye(widths(module)[1]), np.eye(widths(module)[1])))
    several = (merging.plan > 0).sum(axis=0) > 1
    for channels in member.channels.T:
        forward = merging.forward.copy()
        if norm is not None:
            forward[several] *= slopes(norm)[channels]
            _mix_norm(norm, channels, merging, forward, several)
        at = channels[merging.places]
        for matrix, mix in ((outputs, forward), (shortcut, merging.forward)):
            matrix[at] = 0.0
            matrix[np.ix_(at, channels)] = mix
        weight = module.weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else module.weight
        _mix_rows(weight, at, channels, forward)
        if module.bias is not None:
            _mix_rows(module.bias, at, channels, forward)


def _mix_norm(norm: Any, channels: Any, merging: Merging, forward: Floats, several: Any) -> None:
    """Slope one and the mean shift for rows that merge several channels; the others keep what they have."""
    vectors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    owned = _index(channels, norm.weight)
    mean, var, weight, bias = (vector[owned].double() for vector in vectors)
    plain, sloped = _on(merging.forward, mean), _on(forward, mean)
    many = _on(several, mean)
    # what a recalibrated norm gives is of the size of its weight: the mean size of what is merged
    size = (plain @ weight.abs()).clamp_min(norm.eps**0.5)
    at = owned[_index(merging.places, norm.weight)]
    norm.running_mean[at] = torch.where(many, sloped @ mean, plain @ mean).to(norm.running_mean)
    norm.running_var[at] = torch.where(many, size.square() - norm.eps, plain @ var).to(norm.running_var)
    norm.weight[at] = torch.where(many, size, plain @ weight).to(norm.weight)
    norm.bias[at] = (plain @ bias).to(norm.bias)


def _mix_vectors(module: Any, member: Member, forward: Floats, places: Any) -> None:
    """The mean of every vector that a norm or an activation has for its channels."""
    vectors = (getattr(module, name, None) for name in ("weight", "bias", "running_mean", "running_var"))
    for vector in (v for v in vectors if v is not None):
        for channels in member.channels.T:
            _mix_rows(vector, channels[places], channels, forward)


def _read(module: Any, member: Member, merging: Merging) -> None:
    """W B."""
    weight = module.weight if isinstance(module, TRANSPOSED) else module.weight.transpose(0, 1)
    for channels in member.channels.T:
        _mix_rows(weight, channels[merging.places], channels, merging.backward.T)


def read_merged(view: nn.Module, group: Group, merging: Merging) -> None:
    """W B in place of W, at full width: what is read of a group once it is merged. Nothing else changes."""
    gone = np.setdiff1d(np.arange(group.size), merging.places)
    with torch.no_grad():
        for member in group.members:
            module: Any = view.get_submodule(member.path)
            if member.axis == "in" and role(module) == "mixing":
                _read(module, member, merging)
                weight = module.weight if isinstance(module, TRANSPOSED) else module.weight.transpose(0, 1)
                weight[_index(member.channels[gone].ravel(), weight)] = 0.0


def _mix_rows(tensor: Tensor, at: Any, channels: Any, mix: Floats) -> None:
    """tensor[at] = mix tensor[channels] along the first axis, in double precision."""
    had = tensor[_index(channels, tensor)].double()
    new = _on(mix, tensor) @ had.reshape(len(had), -1)
    tensor[_index(at, tensor)] = new.reshape(len(at), *had.shape[1:]).to(tensor)


def _index(channels: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(channels)).to(like.device)


def _on(matrix: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(matrix)).to(like.device)


def slopes(norm: Any) -> Floats:
    """(c,) what the norm multiplies each channel with."""
    slope = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    return np.asarray(slope.detach().cpu().numpy())


def _follows(model: nn.Module, norm: str) -> bool:
    module: Any = model.get_submodule(norm)
    return module.running_mean is not None and module.weight is not None


def _folded(model: nn.Module, norms: Norms) -> nn.Module:
    """A copy in which every one of these norms has the slope one."""
    work = copy.deepcopy(model)
    with torch.no_grad():
        for path, norm in norms.items():
            module: Any = work.get_submodule(path)
            member = Member(path, "out", np.arange(widths(module)[1])[:, None])
            # half of each channel and half of itself again: a row of two parts that is the channel
            _make_twice(member, module, work.get_submodule(norm))
    return work


def _make_twice(member: Member, module: Any, norm: Any) -> None:
    every = np.ones(len(member.channels), dtype=bool)
    forward = np.diag(slopes(norm))
    channels = member.channels[:, 0]
    _mix_norm(norm, channels, Merging.identity(len(channels)), forward, every)
    weight = module.weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else module.weight
    _mix_rows(weight, channels, channels, forward)
    if module.bias is not None:
        _mix_rows(module.bias, channels, channels, forward)
