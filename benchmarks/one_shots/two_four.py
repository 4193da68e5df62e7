"""Two of every four consecutive input channels are zero for each output and tap, nothing is trained.

There is no share to ask for; layers whose input channels are no multiple of four stay dense.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

import prunesolve as ps

from . import methods, peers
from .cases import Bench
from .methods import Job, Method, Row

SHARES = [0.5]


def _ours(**options: Any) -> Callable[[Bench, float], tuple[nn.Module, Row]]:
    def call(bench: Bench, _: float) -> tuple[nn.Module, Row]:
        return ps.prune(bench.network, bench.data, granularity="2:4", seed=bench.seed, **options).model, {}

    return call


def _magnitude(bn: bool) -> Callable[[Bench, float], tuple[nn.Module, Row]]:
    def call(bench: Bench, _: float) -> tuple[nn.Module, Row]:
        network = peers.two_of_four(bench.network)
        return (peers.recalibrated(network, bench.data) if bn else network), {}

    return call


METHODS = {
    "prunesolve, mask alone": Method(_ours(refit=False), "nothing"),
    "prunesolve, refit": Method(_ours(refit=True), "nothing"),
    "prunesolve, reconstruct": Method(_ours(refit="reconstruct"), "gradients"),
    # the pass that SparseGPT made known, by our solver of that kind
    "prunesolve, obc, refit": Method(_ours(solver="obc", refit=True), "nothing"),
    "magnitude + bn": Method(_magnitude(bn=True), "nothing", "peers"),
    "magnitude, mask alone": Method(_magnitude(bn=False), "nothing", "peers"),
}


def jobs(asked: Namespace) -> Iterator[Job]:
    yield from methods.dense("two_four", asked)
    yield from methods.jobs("two_four", METHODS, SHARES, asked)
