"""What a layer's channels are: the axis they run along and the entries of its parameters that belong to them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from prunesolve.problems import InvalidProblem

Role = Literal["mixing", "depthwise", "channelwise", "sealed", "plain"]


def role(module: nn.Module) -> Role:
    """How a module treats channels.

    mixing: every output channel reads many input channels (convolutions, linear layers). depthwise: a convolution
    with one input channel per group. channelwise: parameters per channel, channels kept apart (BatchNorm, PReLU).
    sealed: owns parameters in a way that is not known to be sliceable. plain: none of its own, or one number.
    """
    known = isinstance(module, (_ConvNd, nn.Linear, _BatchNorm, _InstanceNorm, nn.PReLU))
    leaf = next(module.children(), None) is None
    if not known:
        return (
            "sealed" if leaf and any(p.numel() > 1 for p in module._parameters.values() if p is not None) else "plain"
        )
    if not leaf or not set(module._parameters) <= {"weight", "bias"}:
        return "sealed"  # a mask, a parametrisation or weight normalisation computes the weight anew at each call
    if isinstance(module, nn.PReLU):
        return "channelwise" if module.num_parameters > 1 else "plain"
    if isinstance(module, _ConvNd):
        return "depthwise" if 1 < module.groups == module.in_channels else "mixing"
    return "mixing" if isinstance(module, nn.Linear) else "channelwise"


def channel_axis(module: nn.Module) -> int:
    """The dimension of the module's input and output that runs over channels."""
    if isinstance(module, (_ConvNd, nn.Linear)):
        return 1 - module.weight.ndim
    return -module._get_no_batch_dim() if isinstance(module, _InstanceNorm) else 1


def widths(module: nn.Module) -> tuple[int, int]:
    """(input channels, output channels)."""
    if isinstance(module, _ConvNd):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.PReLU):
        return module.num_parameters, module.num_parameters
    if isinstance(module, (_BatchNorm, _InstanceNorm)):
        return module.num_features, module.num_features
    raise InvalidProblem(
        f"{type(module).__name__}: expected a layer with channels (convolution, Linear, BatchNorm, PReLU)"
    )


def conv_groups(module: nn.Module) -> int:
    """Number of groups of a convolution; 1 for everything else."""
    return module.groups if isinstance(module, _ConvNd) else 1


def constructor_numbers(module: nn.Module) -> dict[str, int]:
    """The widths by the names of the module's constructor."""
    names = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_parameters")
    return {name: int(getattr(module, name)) for name in names if isinstance(getattr(module, name, None), int)}


def weight_mask(module: nn.Module, kept_in: torch.Tensor | None, kept_out: torch.Tensor | None) -> torch.Tensor:
    """Which entries of `weight` belong to kept channels alone.

    Parameters
    ----------
    module : nn.Module
        A convolution or a linear layer; anything else has one entry per channel.
    kept_in, kept_out : (in,), (out,) bool or None
        Channels that stay; None keeps all.

    Returns
    -------
    bool tensor of the weight's shape
    """
    reads, makes = widths(module)
    kept_in = torch.ones(reads, dtype=torch.bool) if kept_in is None else kept_in
    kept_out = torch.ones(makes, dtype=torch.bool) if kept_out is None else kept_out
    if not isinstance(module, (_ConvNd, nn.Linear)):
        return kept_out
    rows, columns = (kept_in, kept_out) if isinstance(module, _ConvTransposeNd) else (kept_out, kept_in)
    # a grouped weight is (rows, columns / groups): each block of rows sees its own group of columns
    groups = conv_groups(module)
    block = columns.reshape(groups, -1).repeat_interleave(len(rows) // groups, dim=0)
    mask = (rows[:, None] & block).reshape(*block.shape, *[1] * (module.weight.ndim - 2))
    return mask.expand(module.weight.shape)


def cut(module: nn.Module, path: str, kept_in: torch.Tensor | None, kept_out: torch.Tensor | None) -> None:
    """Take the dropped channels out of the module, in place.

    torch-pruning's slice functions are not used: they reset `requires_grad`, leave InstanceNorm's statistics whole and
    cut depthwise convolutions with a multiplier and grouped transposed ones in the wrong place.

    Raises
    ------
    InvalidProblem
        If nothing would be left, or if the groups of a convolution would differ in width.
    """
    reads, makes = widths(module)
    kept_in = torch.ones(reads, dtype=torch.bool) if kept_in is None else kept_in
    kept_out = torch.ones(makes, dtype=torch.bool) if kept_out is None else kept_out
    if role(module) == "depthwise":
        # a channel goes with everything its group makes
        kept_in = kept_out.reshape(reads, -1).any(dim=1)
        kept_out = kept_in.repeat_interleave(makes // reads)
    elif role(module) == "channelwise":
        kept_in = kept_out
    _check_cut(module, path, kept_in, kept_out)
    into, out = int(kept_in.sum()), int(kept_out.sum())
    groups = into if role(module) == "depthwise" else conv_groups(module)
    shape: tuple[int, ...] = (out, into // groups)
    if isinstance(module, _ConvTransposeNd):
        shape = (into, out // groups)
    elif role(module) == "channelwise":
        shape = (out,)
    _slice(module, weight_mask(module, kept_in, kept_out), kept_out, shape)
    _set_widths(module, into, out, groups)


def _check_cut(module: nn.Module, path: str, kept_in: torch.Tensor, kept_out: torch.Tensor) -> None:
    for side, kept in (("input", kept_in), ("output", kept_out)):
        if not kept.any():
            raise InvalidProblem(f"{path}: every {side} channel would go; keep at least one")
        counts = kept.reshape(conv_groups(module), -1).sum(dim=1)
        if role(module) == "mixing" and bool((counts != counts[0]).any()):
            raise InvalidProblem(f"{path}: its {len(counts)} groups would keep different numbers of {side} channels")


def _slice(module: nn.Module, kept_weight: torch.Tensor, kept_out: torch.Tensor, shape: tuple[int, ...]) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        old = getattr(module, name, None)
        if old is None:
            continue
        mask, lengths = (kept_weight, (*shape, *old.shape[2:])) if name == "weight" else (kept_out, (-1,))
        new = old.detach()[mask.to(old.device)].reshape(lengths)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _set_widths(module: nn.Module, reads: int, makes: int, groups: int) -> None:
    numbers = {"in_channels": reads, "in_features": reads, "out_channels": makes, "out_features": makes}
    numbers |= {"num_features": makes, "num_parameters": makes, "groups": groups}
    for name, number in numbers.items():
        if hasattr(module, name):
            setattr(module, name, number)
