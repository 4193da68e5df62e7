"""Other packages' one-shot pruning, through their own calls: torch-pruning removes units, torch masks weights.

Peers get the calibration images we get, may remove units of the same layers, and have BatchNorm recalibrated on the
same images. torch-pruning chooses by a ratio and leaves a layer whole where it would go altogether, so the ratio is
the one that removes a number of units as near to the asked one as there is.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import prunesolve as ps

from .cases import Bench, Data

PRUNABLE = (nn.Conv2d, nn.Linear)
# how much of the ratio is tried on either side where every layer loses the same share
SLACK, STEPS = 0.05, 41


class Importance(NamedTuple):
    """A criterion of torch-pruning and the gradients it wants in the parameters: none, "taylor", "hessian", "all"."""

    make: Callable[[], Any]
    gradients: str | None = None


def importances() -> dict[str, Importance]:
    import torch_pruning as tp

    kinds = tp.importance
    return {
        "magnitude": Importance(kinds.GroupMagnitudeImportance),
        "Taylor": Importance(kinds.GroupTaylorImportance, "taylor"),
        "Hessian": Importance(kinds.GroupHessianImportance, "hessian"),
        # its accumulate_grad looks parameters up by name in a table by parameter, so that the last sample overwrites
        # those before it; this is what it means to compute
        "Hessian, all samples": Importance(kinds.GroupHessianImportance, "all"),
    }


# -- torch-pruning: units


def prepared(bench: Bench, kind: str | None) -> float:
    """Seconds of the gradients, which all shares reuse."""
    return 0.0 if kind is None else _gradients(bench.name, bench.seed, bench.count, kind)[1]


def removed(bench: Bench, name: str, share: float, uniform: bool) -> nn.Module:
    """The network that torch-pruning leaves."""
    importance = importances()[name]
    work = copy.deepcopy(bench.network)
    if importance.gradients is not None:
        gradients, _ = _gradients(bench.name, bench.seed, bench.count, importance.gradients)
        for parameter_name, parameter in work.named_parameters():
            parameter.grad = gradients[parameter_name].clone()
    example, layers = bench.data[0][0][:1], bench.case.layers
    for group in chosen(work, importance.make, layers, example, share, uniform):
        group.prune()
    for parameter in work.parameters():
        parameter.grad = None
    return work.eval()


def chosen(
    network: nn.Module, importance: Callable[[], Any], layers: list[str], example: Tensor, share: float, uniform: bool
) -> list[Any]:
    """Groups of torch-pruning, not yet removed, whose units are as near to that share as its ratio allows."""
    units = sum(network.get_submodule(layer).weight.shape[0] for layer in layers)
    asked = units - int((1 - share) * units + 0.5)
    best: list[Any] = []
    for ratio in _ratios(units, asked, share, uniform):
        groups = _groups(network, importance(), layers, example, ratio, uniform)
        if abs(_size(groups) - asked) < abs(_size(best) - asked):
            best = groups
        if _size(groups) == asked or (not uniform and _size(groups) > asked):
            break
    return best


def _ratios(units: int, asked: int, share: float, uniform: bool) -> Iterator[float]:
    if uniform:
        yield from share + np.linspace(-SLACK, SLACK, STEPS)
        return
    # a layer that would go altogether stays whole, so that more has to be asked for to get as many
    for count in range(asked, units):
        yield (count - 0.5) / units


def _groups(
    network: nn.Module, importance: Any, layers: list[str], example: Tensor, ratio: float, uniform: bool
) -> list[Any]:
    import torch_pruning as tp

    may_go = [network.get_submodule(layer) for layer in layers]
    pruner = tp.pruner.BasePruner(
        network,
        example,
        importance=importance,
        global_pruning=not uniform,
        pruning_ratio=float(ratio),
        ignored_layers=[m for m in network.modules() if isinstance(m, PRUNABLE) and m not in may_go],
    )
    return list(pruner.step(interactive=True))


def _size(groups: list[Any]) -> int:
    return sum(len(group[0].idxs) for group in groups)


@lru_cache(maxsize=4)
def _gradients(name: str, seed: int, count: int, kind: str) -> tuple[dict[str, Tensor], float]:
    """{parameter: what the importance reads} and the seconds it took."""
    bench = Bench(name, seed, count)
    network, data = copy.deepcopy(bench.network), bench.data
    began = time.perf_counter()
    if kind == "taylor":
        found = mean_gradients(network, data)
    else:
        found = last_squares(network, data) if kind == "hessian" else mean_squares(network, data)
    return found, time.perf_counter() - began


def loss(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of labels, mean squared error of images."""
    outputs = network(inputs)
    return F.mse_loss(outputs, targets) if targets.is_floating_point() else F.cross_entropy(outputs, targets)


def mean_gradients(network: nn.Module, data: Data) -> dict[str, Tensor]:
    """Of the mean loss."""
    samples = sum(len(targets) for _, targets in data)
    network.zero_grad()
    for inputs, targets in data:
        (loss(network, inputs, targets) * len(targets) / samples).backward()
    return _of(network, lambda p: p.grad)


def last_squares(network: nn.Module, data: Data) -> dict[str, Tensor]:
    """What `GroupHessianImportance` holds after its documented loop over the samples."""
    import torch_pruning as tp

    importance = tp.importance.GroupHessianImportance()
    for _ in _each(network, data):
        importance.accumulate_grad(network)
    return _of(network, lambda p: importance._accu_grad[p] / importance._counter[p])


def mean_squares(network: nn.Module, data: Data) -> dict[str, Tensor]:
    """Mean over samples of the squared gradients."""
    sums, samples = {p: torch.zeros_like(p) for p in network.parameters()}, 0
    for _ in _each(network, data):
        samples += 1
        for p, total in sums.items():
            total += p.grad.square()
    return _of(network, lambda p: sums[p] / samples)


def _each(network: nn.Module, data: Data) -> Iterator[None]:
    """The gradients of one sample after another in the network's parameters."""
    for inputs, targets in data:
        for i in range(len(targets)):
            network.zero_grad()
            loss(network, inputs[i : i + 1], targets[i : i + 1]).backward()
            yield


def _of(network: nn.Module, value: Callable[[nn.Parameter], Any]) -> dict[str, Tensor]:
    return {name: value(p).detach().clone() for name, p in network.named_parameters()}


# -- torch.nn.utils.prune: weights


def global_magnitude(network: nn.Module, share: float) -> nn.Module:
    """The smallest weights of all layers together are zero."""
    work, weights = _weights(network)
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=share)
    return _fixed(work, weights)


def layer_magnitude(network: nn.Module, share: float) -> nn.Module:
    """The smallest weights of every layer are zero, the same share of each."""
    work, weights = _weights(network)
    for module, name in weights:
        prune.l1_unstructured(module, name, amount=share)
    return _fixed(work, weights)


def _weights(network: nn.Module) -> tuple[nn.Module, list[tuple[nn.Module, str]]]:
    work = copy.deepcopy(network)
    return work, [(m, "weight") for m in work.modules() if isinstance(m, PRUNABLE)]


def _fixed(work: nn.Module, weights: list[tuple[nn.Module, str]]) -> nn.Module:
    for module, name in weights:
        prune.remove(module, name)
    return work


def two_of_four(network: nn.Module) -> nn.Module:
    """The two smaller of every four consecutive input channels of a tap are zero.

    Written here: the sparsifier of torch.ao.pruning takes matrices alone. Layers whose input channels are no multiple
    of four stay dense.
    """
    work, weights = _weights(network)
    for module, _ in weights:
        weight = module.weight.data
        if weight.shape[1] % 4 == 0:
            runs = weight.movedim(1, -1).unflatten(-1, (-1, 4))
            order = runs.abs().argsort(-1, descending=True).argsort(-1)
            module.weight.data = (runs * (order < 2)).flatten(-2).movedim(-1, 1).contiguous()
    return work


def recalibrated(network: nn.Module, data: Data) -> nn.Module:
    return ps.recalibrate_batchnorm(network, data)
