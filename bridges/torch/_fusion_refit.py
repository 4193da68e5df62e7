r"""Least-squares refit of a fused network towards the features of the networks it was made of: no labels, no gradients.

In execution order, for each layer with inputs X in the fused network (refitted up to there) and the outputs Y_A, Y_B of
the same layer in the two networks, as they leave the BatchNorm that the layer feeds, if any,

    Y = M_A Y_A + M_B Y_B        rows of fused units: the weighted mean of the matched ones; rows alone: their own

    minimise over W, b    ||Y - W X - b||^2 / columns + ridge * mean(diag C) * ||W - W_0||^2        C = cov(X)

for each part of the layer on the columns that it reads, so that what lies apart stays apart. Where a shortcut is added,
its error is made good as well: Y + (M_A S_A + M_B S_B - S).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._forward import evaluating
from .blocks import Blocks
from .data import Batches
from .refit import _FLAT, _Equations, _Layer, _Trace, _Watch
from .unfold import set_weight


class Maps(NamedTuple):
    """(c, c_a) and (c, c_b): what the channels of a fused layer are of the two networks'."""

    a: Tensor
    b: Tensor


def refit_fused(
    fused: nn.Module,
    maps: dict[str, Any],
    models: tuple[nn.Module, nn.Module],
    batches: tuple[Batches, Batches],
    *,
    ridge: float = 1e-3,
) -> None:
    """Fit every layer of the fused network, in place.

    Parameters
    ----------
    fused : Module
        Of `assemble`.
    maps : {path: (c, c_a) and (c, c_b) sparse}
        Of `assemble`: what each layer's outputs are of the two networks' outputs.
    models : pair of Module
        What was fused; untouched.
    batches : pair of Batches
        The same samples as each network reads them; the fused one reads the first.
    ridge : float
        Pull towards the present weights, relative to the mean variance of the inputs.

    References
    ----------
    Reconstruction (ours), with the least squares of Luo, Wu, Lin, ThiNet, ICCV 2017.
    """
    with torch.inference_mode(False), evaluating(fused), evaluating(models[0]), evaluating(models[1]):
        for layer in _Trace().layers(models[1], batches[1].example()):
            if layer.path in maps:
                tables = [torch.from_numpy(table.toarray()) for table in maps[layer.path]]
                _refit_layer(fused, layer, Maps(*tables), models, batches, ridge)


def _refit_layer(
    fused: nn.Module,
    layer: _Layer,
    maps: Maps,
    models: tuple[nn.Module, nn.Module],
    batches: tuple[Batches, Batches],
    ridge: float,
) -> None:
    module, norm = fused.get_submodule(layer.path), _norm(fused, layer)
    parts = module.parts() if isinstance(module, Blocks) else [(module, None, slice(None))]
    equations = [_Equations(part) for part, _, _ in parts]
    axis = -1 if isinstance(parts[0][0], nn.Linear) else 1
    for (inputs_a, _), (inputs_b, _) in zip(*batches, strict=True):
        watched = _Watch(models[0], layer).run(inputs_a), _Watch(models[1], layer).run(inputs_b)
        given = _Watch(fused, layer).run(inputs_a)
        for k, (x, z) in enumerate(zip(given.inputs, given.outputs, strict=True)):
            answers = [_normed(w.outputs[k], _norm(m, layer)) for w, m in zip(watched, models, strict=True)]
            target = _mixed(maps, answers, axis)
            if given.shortcut is not None and watched[0].shortcut is not None and watched[1].shortcut is not None:
                target = target + _mixed(maps, [watched[0].shortcut, watched[1].shortcut], axis) - given.shortcut
            target = _before(norm, target, z)
            for equation, (_, columns, rows) in zip(equations, parts, strict=True):
                equation.add(_some(x, columns, axis), _some(target, rows, axis))
    for equation, (part, _, rows) in zip(equations, parts, strict=True):
        weight, intercept = equation.solve(ridge, centred=part.bias is not None or norm is not None)
        set_weight(part, weight.to(part.weight))
        if intercept is not None and part.bias is not None:
            part.bias.data.copy_(intercept)
        elif intercept is not None and norm is not None:
            norm.running_mean[rows] -= intercept.to(norm.running_mean)


def _norm(model: nn.Module, layer: _Layer) -> Any:
    return None if layer.norm is None else model.get_submodule(layer.norm)


def _normed(outputs: Tensor, norm: Any) -> Tensor:
    return outputs if norm is None else norm(outputs)


def _mixed(maps: Maps, answers: list[Tensor], axis: int) -> Tensor:
    """M_A Y_A + M_B Y_B along the channels."""
    moved = [
        torch.tensordot(table.to(answer), answer, dims=([1], [axis % answer.ndim]))
        for table, answer in zip(maps, answers, strict=True)
    ]
    return (moved[0] + moved[1]).movedim(0, axis)


def _before(norm: Any, target: Tensor, outputs: Tensor) -> Tensor:
    """What the norm has to read to give the target; what it reads now where next to nothing passes."""
    if norm is None:
        return target
    shape = [1, -1, *[1] * (target.ndim - 2)]
    slope = torch.rsqrt(norm.running_var + norm.eps)
    shift = torch.zeros_like(slope) if norm.bias is None else norm.bias
    slope = slope if norm.weight is None else slope * norm.weight
    passing = slope.abs() > _FLAT * slope.abs().max()
    inverse = torch.where(passing, 1.0 / torch.where(passing, slope, 1.0), 0.0)
    wanted = (target - shift.reshape(shape)) * inverse.reshape(shape) + norm.running_mean.reshape(shape)
    return torch.where(passing.reshape(shape), wanted, outputs)


def _some(tensor: Tensor, channels: Any, axis: int) -> Tensor:
    """Some channels: all for None, a slice, or an index array."""
    if channels is None:
        return tensor
    if isinstance(channels, slice):
        return tensor[..., channels] if axis == -1 else tensor[:, channels]
    return tensor.index_select(axis, torch.as_tensor(channels, device=tensor.device))
