r"""Two networks of one architecture side by side in one: the ensemble as a plain network.

Every hidden layer holds the neurons of both; what stands between the two is zero. The outputs are
(1 - lam) f_A(x) + lam f_B(x).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from prunesolve.problems import Group, InvalidProblem

from ._layers import _set_widths, conv_groups, role, widths
from .groups import Found
from .unfold import TRANSPOSED

_VECTORS = ("bias", "running_mean", "running_var")


def stacked(one: nn.Module, other: nn.Module, found: tuple[Found, Found], lam: float) -> nn.Module:
    """The ensemble of two networks as one plain module.

    Raises
    ------
    InvalidProblem
        If the networks are not of one architecture, or a layer cannot be stacked; names it.
    """
    hidden = [_hidden(model, f) for model, f in zip((one, other), found, strict=True)]
    if hidden[0] != hidden[1]:
        apart = sorted(hidden[0] ^ hidden[1])
        raise InvalidProblem(f"models: expected one architecture, got networks that differ in {apart[0][0]}")
    work = copy.deepcopy(one)
    with torch.no_grad():
        for path, module in one.named_modules():
            if role(module) in ("plain", "sealed"):
                if role(module) == "sealed":
                    raise InvalidProblem(
                        f"{path}: {type(module).__name__} cannot be stacked; fuse the networks instead"
                    )
                continue
            inside, outside = (path, "in") in hidden[0], (path, "out") in hidden[0]
            _stack(path, work.get_submodule(path), (module, other.get_submodule(path)), inside, outside, lam)
    return work


def _hidden(model: nn.Module, found: Found) -> set[tuple[str, str]]:
    """Axes whose channels are hidden units, every one of them a group's."""
    owners: dict[tuple[str, str], list[Group]] = {}
    for group in found.groups:
        for member in group.members:
            owners.setdefault((member.path, member.axis), []).append(group)
    for (path, axis), groups in owners.items():
        module = model.get_submodule(path)
        owned = sum(m.channels.size for g in groups for m in g.members if (m.path, m.axis) == (path, axis))
        if len(groups) > 1 or owned < widths(module)[axis == "out"]:
            raise InvalidProblem(
                f"{path}: its {axis}put channels are not those of one layer (concatenation, padding); only plain "
                "chains can be stacked, fuse the networks instead"
            )
        if conv_groups(module) > 1:
            raise InvalidProblem(f"{path}: a convolution in groups cannot be stacked; fuse the networks instead")
    return set(owners)


def _stack(path: str, work: Any, pair: tuple[Any, Any], inside: bool, outside: bool, lam: float) -> None:
    """One layer of both networks."""
    shares = (1.0, 1.0) if outside else (1.0 - lam, lam)
    if role(work) == "channelwise":
        if not outside:
            raise InvalidProblem(f"{path}: {type(work).__name__} at the network's output cannot be stacked")
        for name in ("weight", *_VECTORS):
            _replace(work, name, [getattr(module, name, None) for module in pair])
        made = sum(widths(module)[1] for module in pair)
        _set_widths(work, made, made, 1)
        return
    axes = (0, 1) if isinstance(work, TRANSPOSED) else (1, 0)
    parts = [module.weight * share for module, share in zip(pair, shares, strict=True)]
    if inside and outside:
        whole = _diagonal(parts)
    elif inside or outside:
        _check_same(path, parts, axes[inside])
        whole = torch.cat(parts, dim=axes[outside])
    else:
        whole = parts[0] + parts[1]
    work.weight = nn.Parameter(whole, work.weight.requires_grad)
    if work.bias is not None:
        biases = [module.bias * share for module, share in zip(pair, shares, strict=True)]
        work.bias = nn.Parameter(torch.cat(biases) if outside else biases[0] + biases[1], work.bias.requires_grad)
    reads, makes = (
        sum(widths(m)[k] for m in pair) if many else widths(pair[0])[k] for k, many in enumerate((inside, outside))
    )
    _set_widths(work, reads, makes, 1)


def _check_same(path: str, parts: list[Tensor], axis: int) -> None:
    shapes = [part.shape[axis] for part in parts]
    if shapes[0] != shapes[1]:
        raise InvalidProblem(f"{path}: expected both networks to have the same inputs and outputs, got {shapes}")


def _diagonal(parts: list[Tensor]) -> Tensor:
    """Both along the first two axes, zero between."""
    one, other = parts
    shape = (one.shape[0] + other.shape[0], one.shape[1] + other.shape[1], *one.shape[2:])
    whole = one.new_zeros(shape)
    whole[: one.shape[0], : one.shape[1]] = one
    whole[one.shape[0] :, one.shape[1] :] = other
    return whole


def _replace(work: Any, name: str, values: list[Any]) -> None:
    """One vector after the other under the same name."""
    if values[0] is None:
        return
    whole = torch.cat([value.detach() for value in values])
    is_parameter = isinstance(values[0], nn.Parameter)
    setattr(work, name, nn.Parameter(whole, values[0].requires_grad) if is_parameter else whole)


def averaged(one: Any, other: Any, lam: float) -> Any:
    """(1 - lam) one + lam other, of tensors in any nest."""
    return _pytree.tree_map(lambda a, b: (1.0 - lam) * a + lam * b if isinstance(a, Tensor) else a, one, other)
