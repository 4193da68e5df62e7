"""Whole units of every network: 20 to 70 % go, nothing is trained."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial

from torch import nn

from . import methods, peers
from .cases import Bench
from .methods import Job, Method, Row, pruned

SHARES = [0.2, 0.36, 0.5, 0.7]
OURS = {
    "prunesolve, mask alone": Method(pruned(refit=False), "nothing"),
    "prunesolve, refit": Method(pruned(refit=True), "nothing"),
    "prunesolve, reconstruct": Method(pruned(refit="reconstruct"), "gradients"),
}


def _torch_pruning(name: str, uniform: bool, bn: bool) -> Callable[[Bench, float], tuple[nn.Module, Row]]:
    def call(bench: Bench, share: float) -> tuple[nn.Module, Row]:
        network = peers.removed(bench, name, share, uniform)
        return (peers.recalibrated(network, bench.data) if bn else network), {}

    return call


def _peers() -> Iterator[tuple[str, Method]]:
    for name, importance in peers.importances().items():
        needs = "nothing" if importance.gradients is None else "labels"
        prepare = partial(peers.prepared, kind=importance.gradients)
        for uniform in (False, True):
            label = f"torch-pruning {name}, {'uniform' if uniform else 'global'}"
            for bn in (True, False):
                call = _torch_pruning(name, uniform, bn)
                yield label + (" + bn" if bn else ", mask alone"), Method(call, needs, "peers", prepare)


def jobs(asked: Namespace) -> Iterator[Job]:
    yield from methods.dense("structured", asked)
    yield from methods.jobs("structured", METHODS, SHARES, asked)


METHODS = OURS | dict(_peers())
