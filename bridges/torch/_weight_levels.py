r"""What the network's answer loses where one layer alone keeps fewer weights: the table behind "level-choice".

error[l][s] = D_l e_l(s) / e_l(s_0)

e_l(s) is the error of layer l's output with its k_s largest weights refitted, D_l the divergence of the network's
answer with layer l alone at level s_0: Kullback-Leibler of rows of scores, the squared error of any other answer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems.sparse_regression import Keep

from ._forward import tensors
from ._lockstep import Lockstep
from ._weight_moments import Moments, write_intercept
from .data import Batches, Inputs, call, samples
from .keep_counts import distance
from .refit import _Layer
from .unfold import set_weight

# levels around the count that the layer starts from
_FACTORS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
# samples on which the network's answer is compared
_JUDGED = 256


def level_errors(
    dense: nn.Module,
    batches: Batches,
    layers: Sequence[_Layer],
    start: Mapping[str, int],
    moments_of: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Errors and counts of each layer's levels around its start, for `level_counts`.

    Parameters
    ----------
    dense : Module
        In eval mode.
    batches : Batches
    layers : sequence of _Layer
        Those that are pruned, in execution order.
    start : {path: int}
        s_0 of each layer.
    moments_of : callable (layer, module, norm, stops) -> Moments
        Gathers and settles a layer's moments.
    """
    errors: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    alone: dict[str, tuple[Tensor, Tensor | None]] = {}
    same = copy.deepcopy(dense)
    with Lockstep(dense, same, batches, layers) as steps:
        for layer in layers:
            moments = moments_of(layer, same, steps.at(layer))
            size = moments.dense.numel()
            ladder = sorted({min(size, max(1, round(f * start[layer.path]))) for f in _FACTORS})
            fits = [_fitted(moments, k) for k in ladder]
            counts[layer.path] = np.array(ladder)
            errors[layer.path] = np.array([moments.error(w) for w in fits])
            at = ladder.index(start[layer.path])
            alone[layer.path] = fits[at].float(), moments.intercept(fits[at])
            errors[layer.path] /= max(errors[layer.path][at], 1e-12)
    judged = [inputs for inputs, _ in batches.first(_JUDGED)]
    wanted = [tensors(call(dense, inputs)) for inputs in judged]
    for layer in layers:
        errors[layer.path] *= _divergence(_changed(dense, layer, *alone[layer.path]), judged, wanted)
    return errors, counts


def _fitted(moments: Moments, k: int) -> Tensor:
    """W (groups, o, d) of the k largest dense weights, refitted."""
    kept = np.zeros(moments.dense.numel(), dtype=bool)
    kept[np.argsort(-moments.dense.abs().flatten().numpy(), kind="stable")[:k]] = True
    parts = np.split(kept, len(moments.dense))
    fits = [moments.problem(g, Keep(int(part.sum()))).weights(part) for g, part in enumerate(parts)]
    return torch.from_numpy(np.stack(fits))


def _changed(dense: nn.Module, layer: _Layer, weight: Tensor, intercept: Tensor | None) -> nn.Module:
    """The dense network with that layer's weights and intercept."""
    changed = copy.deepcopy(dense)
    module: Any = changed.get_submodule(layer.path)
    set_weight(module, weight.to(module.weight.device, module.weight.dtype))
    write_intercept(module, None if layer.norm is None else changed.get_submodule(layer.norm), intercept)
    return changed


def _divergence(changed: nn.Module, judged: Sequence[Inputs], wanted: Sequence[Sequence[Tensor]]) -> float:
    """Mean divergence over samples of the network's answers from those wanted."""
    total = 0.0
    for inputs, answers in zip(judged, wanted, strict=True):
        given = tensors(call(changed, inputs))
        total += sum(float(distance(b.double(), a.double()).sum()) for a, b in zip(answers, given, strict=True))
    return total / sum(samples(inputs) for inputs in judged)
