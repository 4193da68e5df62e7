"""For those who allow training: half the units in steps, an epoch on labels where the accuracy falls too far.

Trained on the 5,000 training images from which the others' calibration images are drawn, all of them; the metric that
decides is measured on the 2,048 of those that calibrate, never on test images. "On all": the 5,000 calibrate too.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

import prunesolve as ps

from . import methods
from .cases import MOST, Bench
from .methods import Job, Method, Row, keep

SHARES = [0.5]


def _tuned(
    refit: bool | str, *, calibrate_all: bool = False, **options: Any
) -> Callable[[Bench, float], tuple[nn.Module, Row]]:
    def call(bench: Bench, share: float) -> tuple[nn.Module, Row]:
        training = bench.case.calibration(bench.seed, MOST)
        out = ps.prune_and_tune(
            bench.network,
            training,
            keep=keep(share),
            calibration=training if calibrate_all else bench.data,
            judge=bench.data,
            layers=bench.case.layers,
            refit=refit,
            seed=bench.seed,
            **options,
        )
        rounds = [{"units": r.units, "pruned": r.pruned, "after": r.after, "tuned": r.tuned} for r in out.rounds]
        return out.model, {"rounds": rounds}

    return call


METHODS = {
    "prunesolve, rounds with refit": Method(_tuned(refit=True), "labels"),
    "prunesolve, rounds with refit, 4 epochs": Method(_tuned(refit=True, epochs=4), "labels"),
    "prunesolve, rounds with reconstruct": Method(_tuned(refit="reconstruct"), "labels"),
    "prunesolve, one round with reconstruct on all, 12 epochs": Method(
        _tuned(refit="reconstruct", calibrate_all=True, steps=1, epochs=12), "labels"
    ),
    "prunesolve, rounds of masks": Method(_tuned(refit=False), "labels"),
}


def jobs(asked: Namespace) -> Iterator[Job]:
    yield from methods.dense("ice", asked)
    yield from methods.jobs("ice", METHODS, SHARES, asked)
