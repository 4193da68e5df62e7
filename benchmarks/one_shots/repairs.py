"""Masks of single weights by magnitude, layers shared out in four ways, before every repair and some in a row.

The masks are the same for all repairs. BatchNorm recalibrated after a factor takes most of the factor away again, so
both orders are there.
"""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import methods
from .cases import Bench
from .methods import Job, Method, Row, keep
from .peers import PRUNABLE

SHARES = [0.8, 0.9, 0.95, 0.955]
ALLOCATIONS = ("uniform", "erk", "lamp", "global")
REPAIRS: dict[str, tuple[str, ...]] = {
    "none": (),
    **{name: (name,) for name in ("bn", "layer-variance", "asr", "repair", "bias", "damped")},
    "layer-variance, bn": ("layer-variance", "bn"),
    "asr, bn": ("asr", "bn"),
    "bn, layer-variance": ("bn", "layer-variance"),
    "bn, asr": ("bn", "asr"),
}


def magnitude_masks(network: nn.Module, share: float, allocation: str) -> dict[str, Tensor]:
    """{"path.weight": bool}: in every layer the largest weights, as many as the allocation gives it."""
    from prunesolve.bridges.torch.allocation import keep_counts

    weights = {name: m.weight.detach() for name, m in network.named_modules() if isinstance(m, PRUNABLE)}
    kept = int(keep(share) * sum(w.numel() for w in weights.values()) + 0.5)
    counts = keep_counts(weights, kept, allocation)
    return {f"{name}.weight": _largest(w, counts[name]) for name, w in weights.items()}


def _largest(weight: Tensor, count: int) -> Tensor:
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[weight.abs().flatten().topk(count).indices] = True
    return mask.view(weight.shape)


def masked(network: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    work = copy.deepcopy(network)
    for name, mask in masks.items():
        work.get_parameter(name).data.mul_(mask)
    return work


def _mended(allocation: str, repair: str) -> Callable[[Bench, float], tuple[nn.Module, Row]]:
    def call(bench: Bench, share: float) -> tuple[nn.Module, Row]:
        from prunesolve.bridges.torch.repair import repaired

        masks = magnitude_masks(bench.network, share, allocation)
        network: Any = masked(bench.network, masks)
        if REPAIRS[repair]:
            network = repaired(bench.network, network, bench.data, REPAIRS[repair], masks=masks)
        return network, {"criterion": f"magnitude, {allocation}", "repair": repair}

    return call


METHODS = {
    f"magnitude, {allocation} | {repair}": Method(_mended(allocation, repair), "nothing")
    for allocation in ALLOCATIONS
    for repair in REPAIRS
}


def jobs(asked: Namespace) -> Iterator[Job]:
    yield from methods.jobs("repairs", METHODS, SHARES, asked)
