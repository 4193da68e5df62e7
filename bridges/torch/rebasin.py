r"""Git Re-Basin: the permutations of one network's units that bring its weights closest to another's.

maximise    sum over tensors <w_A permuted along all its axes, w_B>        one permutation a group of tied channels

Coordinate descent: given all other permutations, each is a linear assignment. A baseline for partial fusion, which it
is at alpha = 0 where only weights are compared and pairs are whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems import Group, InvalidProblem, Member
from prunesolve.problems._arrays import Floats, Indices, integers, number

from ._layers import conv_groups, role
from .axes import Axes
from .unfold import TRANSPOSED

_GAIN = 1e-12  # relative to the weights' norms: a sweep that gains less ends the descent


def match_weights(
    model_a: nn.Module, model_b: nn.Module, example: Any, *, sweeps: int = 100, seed: int = 0
) -> dict[str, Indices]:
    """Which unit of A is which of B, for every group of coupled channels.

    Parameters
    ----------
    model_a, model_b : nn.Module
        Networks of one architecture and one width; they stay as they are.
    example : tensor or tuple of tensors
        What both are called with, batch first.
    sweeps : int
        Most rounds over all groups, in a random order each.
    seed : int

    Returns
    -------
    {group: (n,) int}
        order[j] is the unit of A that becomes unit j: `permuted(model_a, example, orders)` is A in B's order.

    Raises
    ------
    InvalidProblem
        If the networks differ in architecture or width, or have channels that cannot be permuted.

    References
    ----------
    Ainsworth, Hayase, Srinivasa, Git Re-Basin, ICLR 2023 (weight matching).

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> other = permuted(net, torch.zeros(1, 2), {"0": [2, 0, 1]})
    >>> match_weights(net, other, torch.zeros(1, 2))["0"].tolist()
    [2, 0, 1]
    """
    from scipy.optimize import linear_sum_assignment

    axes = _common_axes(model_a, model_b, example)
    work, rng = copy.deepcopy(model_a), np.random.default_rng(seed)
    orders = {group.name: np.arange(group.size) for group in axes.groups}
    energy = sum(float(p.detach().double().square().sum()) for p in model_b.parameters())
    for _ in range(sweeps):
        gained = 0.0
        for g in rng.permutation(len(axes.groups)):
            group = axes.groups[g]
            table = _overlaps(work, model_b, group)
            ours, theirs = linear_sum_assignment(table, maximize=True)
            order = ours[np.argsort(theirs)]
            gain = float(table[order, np.arange(group.size)].sum() - np.trace(table))
            if gain > _GAIN * energy:
                gained += gain
                orders[group.name] = orders[group.name][order]
                _permute(work, group, order)
        if not gained:
            break
    return orders


def permuted(model: nn.Module, example: Any, orders: Mapping[str, Any]) -> nn.Module:
    """A copy of the network with its units in another order: it computes the same.

    Parameters
    ----------
    model : nn.Module
        It stays as it is.
    example : tensor or tuple of tensors
        What it is called with, batch first.
    orders : {group: (n,) int}
        order[j] is the unit that becomes unit j; groups that are not named stay as they are.

    Raises
    ------
    InvalidProblem
        If a group is unknown or an order is no permutation of its units.
    """
    axes, work = Axes.of(model, example), copy.deepcopy(model)
    for name, order in orders.items():
        group = axes.group(name)
        checked = integers(f"order of {name}", order, (group.size,))
        if not np.array_equal(np.sort(checked), np.arange(group.size)):
            raise InvalidProblem(
                f"order of {name}: expected each of 0 to {group.size - 1} once, got {checked.tolist()}"
            )
        _check_group(work, group)
        _permute(work, group, checked)
    return work


def average(models: Sequence[nn.Module], example: Any, *, lam: float = 0.5, seed: int = 0) -> nn.Module:
    """Weights (1 - lam) A + lam B of two networks, A in the order that brings it closest to B.

    BatchNorm statistics are averaged too; recalibrate them on data afterwards.

    Parameters
    ----------
    models : two nn.Module
    example : tensor or tuple of tensors
        What both are called with.
    lam : float in [0, 1]
        The second network's share.
    seed : int

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> x = torch.randn(4, 2)
    >>> both = average([permuted(net, x, {"0": [2, 0, 1]}), net], x)
    >>> torch.allclose(both(x), net(x), atol=1e-6)
    True
    """
    if len(models) != 2:
        raise InvalidProblem(f"models: expected two networks, got {len(models)}")
    share = number("lam", lam)
    if not 0.0 <= share <= 1.0:
        raise InvalidProblem(f"lam: expected a number from 0 to 1, got {lam!r}")
    ours = permuted(models[0], example, match_weights(models[0], models[1], example, seed=seed)).state_dict()
    mean = copy.deepcopy(models[1])
    theirs = mean.state_dict()
    mean.load_state_dict({n: torch.lerp(ours[n], t, share) if t.is_floating_point() else t for n, t in theirs.items()})
    return mean


def _common_axes(model_a: nn.Module, model_b: nn.Module, example: Any) -> Axes:
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} for model in (model_a, model_b)
    ]
    if shapes[0] != shapes[1]:
        apart = next(n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
        raise InvalidProblem(
            f"models: expected two networks of one architecture and width, got {apart} of "
            f"{shapes[0].get(apart)} and {shapes[1].get(apart)}"
        )
    axes = Axes.of(model_a, example)
    for group in axes.groups:
        _check_group(model_a, group)
    return axes


def _check_group(model: nn.Module, group: Group) -> None:
    for member in group.members:
        module = model.get_submodule(member.path)
        if role(module) == "mixing" and conv_groups(module) > 1:
            raise InvalidProblem(f"{member.path}: the channels of a convolution in groups cannot be permuted")


def _overlaps(model_a: nn.Module, model_b: nn.Module, group: Group) -> Floats:
    """(n, n) inner products of the units' weights, over all tensors that have an axis of the group."""
    table = np.zeros((group.size, group.size))
    for member in group.members:
        pairs = zip(_tensors(model_a, member), _tensors(model_b, member), strict=True)
        for (name, ours), (_, theirs) in pairs:
            if not name.startswith("running"):
                table += _by_unit(ours, member) @ _by_unit(theirs, member).T
    return table


def _by_unit(tensor: Tensor, member: Member) -> Floats:
    """(n, d) the entries of each unit."""
    rows = tensor.detach().cpu().double().numpy()[member.channels]
    return np.asarray(rows.reshape(len(member.channels), -1))


def _permute(model: nn.Module, group: Group, order: Indices) -> None:
    """Put the group's units in that order, in place."""
    with torch.no_grad():
        for member in group.members:
            for _, tensor in _tensors(model, member):
                at = torch.from_numpy(np.array(member.channels.ravel()))
                came = torch.from_numpy(np.array(member.channels[order].ravel()))
                tensor[at.to(tensor.device)] = tensor[came.to(tensor.device)].clone()


def _tensors(model: nn.Module, member: Member) -> Iterator[tuple[str, Tensor]]:
    """What a member holds for its channels, the axis of these first."""
    module: Any = model.get_submodule(member.path)
    if member.axis == "in":
        yield "weight", module.weight if isinstance(module, TRANSPOSED) else module.weight.transpose(0, 1)
        return
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(module, name, None)
        if tensor is not None:
            turned = name == "weight" and isinstance(module, TRANSPOSED)
            yield name, tensor.transpose(0, 1) if turned else tensor
