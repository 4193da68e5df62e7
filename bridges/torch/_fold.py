"""BatchNorm folded into the convolution that alone feeds it: the same function in fewer layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ._forward import evaluating, tensors
from .batchnorm import BATCH_NORMS
from .data import Inputs, call
from .unfold import CONVOLUTIONS

# relative to the largest output: what reordering sums leaves after tens of layers, with room
_TOLERANCE = 1e-4


def followers(model: nn.Module, inputs: Inputs) -> dict[str, str]:
    """{path of a convolution: path of the BatchNorm that reads its output as it was made}, each called once."""
    made: dict[str, list[tuple[Tensor, int]]] = {}
    read: dict[str, list[tuple[Tensor, int]]] = {}

    def note(into: dict[str, list[tuple[Tensor, int]]], path: str) -> Any:
        return lambda tensor: into.setdefault(path, []).append((tensor, tensor._version))

    handles = []
    for path, module in model.named_modules():
        if type(module) in CONVOLUTIONS:
            noted = note(made, path)
            handles.append(module.register_forward_hook(lambda _m, _i, output, noted=noted: noted(output)))
        elif type(module) in BATCH_NORMS and module.running_mean is not None:
            noted = note(read, path)
            handles.append(module.register_forward_pre_hook(lambda _m, args, noted=noted: noted(args[0])))
    try:
        with evaluating(model):
            call(model, copied(inputs))
    finally:
        for handle in handles:
            handle.remove()
    once = {norm: seen[0] for norm, seen in read.items() if len(seen) == 1}
    return {
        conv: norm
        for conv, outputs in made.items()
        if len(outputs) == 1
        for norm, (tensor, version) in once.items()
        if tensor is outputs[0][0] and version == outputs[0][1]
    }


def folded(model: nn.Module, pairs: dict[str, str], inputs: Inputs) -> nn.Module | None:
    """A copy with each pair's BatchNorm inside its convolution, None where that computes something else.

    It does where the network's own code reads what stands between the two, or a hook or a parametrisation does.
    """
    fused = copy.deepcopy(model)
    for conv, norm in pairs.items():
        layer: Any = fused.get_submodule(conv)
        follower: Any = fused.get_submodule(norm)
        if set(layer._parameters) != {"weight", "bias"} or layer._forward_hooks or layer._forward_pre_hooks:
            return None
        with evaluating(fused):
            fused.set_submodule(conv, fuse_conv_bn_eval(layer, follower))
        fused.set_submodule(norm, nn.Identity())
    return fused if agree(answer(model, inputs), answer(fused, inputs)) else None


def answer(model: nn.Module, inputs: Inputs) -> Any:
    """What the model gives in eval mode; the inputs stay as they are."""
    with evaluating(model):
        return call(model, copied(inputs))


def agree(one: Any, other: Any) -> bool:
    """Whether two answers are the same to rounding, NaN with NaN."""
    first, second = tensors(one), tensors(other)
    return len(first) == len(second) and all(_close(a, b) for a, b in zip(first, second, strict=True))


def copied(inputs: Inputs) -> Inputs:
    """For a network that works on its inputs in place."""
    return inputs.clone() if isinstance(inputs, Tensor) else tuple(part.clone() for part in inputs)


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return one.shape == other.shape and torch.equal(one, other)
    finite = one[one.isfinite()]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True)
