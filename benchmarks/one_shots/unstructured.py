"""Single weights of every network: 50 to 95.5 % are zero, layers shared out in five ways, nothing is trained."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator

from torch import nn

from . import methods, peers
from .cases import Bench
from .methods import Job, Method, Row, pruned

SHARES = [0.5, 0.8, 0.9, 0.95, 0.955]
ALLOCATIONS = ("uniform", "erk", "lamp", "global", "level-choice")
OURS = {
    "prunesolve, mask alone": Method(pruned(granularity="weight", refit=False), "nothing"),
    "prunesolve, refit": Method(pruned(granularity="weight", refit=True), "nothing"),
    "prunesolve, reconstruct": Method(pruned(granularity="weight", refit="reconstruct"), "gradients"),
} | {
    f"prunesolve, {name}, refit": Method(pruned(granularity="weight", allocation=name, refit=True), "nothing")
    for name in ALLOCATIONS
}
TORCH = {"global": peers.global_magnitude, "uniform": peers.layer_magnitude}


def _torch(name: str, bn: bool) -> Callable[[Bench, float], tuple[nn.Module, Row]]:
    def call(bench: Bench, share: float) -> tuple[nn.Module, Row]:
        network = TORCH[name](bench.network, share)
        return (peers.recalibrated(network, bench.data) if bn else network), {}

    return call


METHODS = OURS | {
    f"torch magnitude, {name}{' + bn' if bn else ', mask alone'}": Method(_torch(name, bn), "nothing", "peers")
    for name in TORCH
    for bn in (True, False)
}


def jobs(asked: Namespace) -> Iterator[Job]:
    yield from methods.dense("unstructured", asked)
    yield from methods.jobs("unstructured", METHODS, SHARES, asked)
