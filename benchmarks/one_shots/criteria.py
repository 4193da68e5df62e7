"""Every criterion that says which units go before every repair of what is left: choosing well and mending well apart.

A table of repaired figures alone makes all criteria look equal; the first column is the mask alone.
"""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from torch import nn

import prunesolve as ps
from prunesolve.formulations import Fisher, HybridQubo, L1Qubo, Moonshot, Reconstruction

from .cases import Bench
from .methods import Job, Method, Row, keep
from .methods import jobs as jobs_of

SHARES = [0.36, 0.5, 0.7]
LABELS = {"Taylor", "Fisher", "hybrid QUBO", "moonshot"}
CRITERIA: dict[str, Any] = {
    "L1": L1Qubo(beta=0.0),
    "Taylor": HybridQubo(alpha=1.0, beta=0.0),
    "Fisher": Fisher(),
    "hybrid QUBO": HybridQubo(),
    "reconstruction": Reconstruction(),
    "moonshot": Moonshot(),
    # chosen layer by layer with the refit in mind, so that there is no problem over the whole network
    "subset regression": None,
}
Repair = Callable[[nn.Module, nn.Module, Any, ps.Selection], nn.Module]


def _statistical(*names: str) -> Repair:
    def repair(dense: nn.Module, removed: nn.Module, data: Any, selection: ps.Selection) -> nn.Module:
        from prunesolve.bridges.torch.repair import repaired

        return repaired(dense, removed, data, list(names), selection)

    return repair


def _reconstructed(dense: nn.Module, removed: nn.Module, data: Any, selection: ps.Selection) -> nn.Module:
    from prunesolve.bridges.torch.reconstruct import reconstruct

    return reconstruct(dense, ps.refit(dense, removed, data, selection), data, selection)


REPAIRS: dict[str, Repair] = {
    "none": lambda dense, removed, data, selection: removed,
    **{name: _statistical(name) for name in ("bn", "layer-variance", "asr", "repair", "bias", "damped")},
    "refit": lambda dense, removed, data, selection: ps.refit(dense, removed, data, selection),
    "refit, bn": lambda dense, removed, data, selection: ps.recalibrate_batchnorm(
        ps.refit(dense, removed, data, selection), data
    ),
    "reconstruct": _reconstructed,
}


@lru_cache(maxsize=1)
def _statistics(name: str, seed: int, count: int) -> ps.Statistics:
    bench = Bench(name, seed, count)
    return ps.measure(bench.network, bench.data, layers=bench.case.layers)


@lru_cache(maxsize=1)
def _selected(name: str, seed: int, count: int, criterion: str, share: float) -> ps.Selection:
    bench, formulation = Bench(name, seed, count), CRITERIA[criterion]
    if formulation is None:
        return ps.prune(bench.network, bench.data, keep=keep(share), seed=seed, layers=bench.case.layers).selection
    stats = _statistics(name, seed, count)
    result = ps.solve(formulation.encode(stats, keep=keep(share)), solver="swap-annealing", seed=seed)
    return formulation.decode(stats, result.solution)


def _mended(criterion: str, repair: str) -> Callable[[Bench, float], tuple[nn.Module, Row]]:
    def call(bench: Bench, share: float) -> tuple[nn.Module, Row]:
        selection = _selected(bench.name, bench.seed, bench.count, criterion, share)
        removed = ps.shrink(bench.network, selection, bench.data[0][0][:2])
        mended = REPAIRS[repair](bench.network, copy.deepcopy(removed), bench.data, selection)
        return mended, {"criterion": criterion, "repair": repair}

    return call


def _needs(criterion: str, repair: str) -> str:
    if criterion in LABELS:
        return "labels"
    return "gradients" if repair == "reconstruct" else "nothing"


METHODS = {
    f"{criterion} | {repair}": Method(_mended(criterion, repair), _needs(criterion, repair))
    for criterion in CRITERIA
    for repair in REPAIRS
}


def jobs(asked: Namespace) -> Iterator[Job]:
    yield from jobs_of("criteria", METHODS, SHARES, asked)
