"""Prune single weights of a real network in one pass: allocations and solvers side by side, top-1 on test images.

    python benchmarks/weights.py                                          90 and 95 % removed, every allocation
    python benchmarks/weights.py --removed 0.9 --allocations global --solvers magnitude,obc,admm,iht-swap
    python benchmarks/weights.py --pattern 2:4 --images 9977              two of every four

Calibration images and test images never meet; no labels are used and no gradient is taken. "mask" is the dense network
with the mask alone, "refit" what `prune_weights` returns. Seconds are those of `prune_weights`.
"""

from __future__ import annotations

import argparse
import copy
import time

import models
import numpy as np
import torch
from networks import cifar_accuracy, normalised
from torch import Tensor

import prunesolve as ps
from prunesolve.bridges.torch.weights import prune_weights


def calibration(count: int, draw: int) -> list[tuple[Tensor, Tensor]]:
    """Training images in batches of 128."""
    with np.load(models.SHARED / "cifar10_train_5k.npz") as file:
        chosen = np.random.default_rng(draw).permutation(len(file["labels"]))[:count]
        images, labels = normalised(file["images"][chosen]), torch.from_numpy(file["labels"][chosen]).long()
    return list(zip(images.split(128), labels.split(128), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=["resnet20", "resnet32", "densenet"], default="resnet20")
    parser.add_argument("--images", type=int, default=2000, help="test images, at most the 9,977 exact ones")
    parser.add_argument("--calibration", type=int, default=2048, help="training images")
    parser.add_argument("--removed", default="0.9,0.95", help="comma-separated shares of the weights")
    parser.add_argument("--pattern", default=None, help="n:m in place of shares")
    parser.add_argument("--allocations", default="uniform,erk,lamp,global,level-choice", help="comma-separated")
    parser.add_argument("--solvers", default="magnitude,admm", help="comma-separated")
    parser.add_argument("--columns", type=int, default=2**16, help="most columns a layer is fitted from")
    parser.add_argument("--ridge", type=float, default=1e-3)
    parser.add_argument("--draw", type=int, default=0, help="seed of the calibration draw")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    network, data = getattr(models, asked.network)(), calibration(asked.calibration, asked.draw)
    print(f"{asked.network}: dense {cifar_accuracy(network, asked.images):.2f} on {asked.images} test images")
    print(f"{'removed':<9}{'allocation':<14}{'solver':<12}{'mask':>7}{'refit':>7}{'kept':>9}{'seconds':>9}")
    budgets = [None] if asked.pattern else [float(share) for share in asked.removed.split(",")]
    for removed in budgets:
        for allocation in ["-"] if removed is None else asked.allocations.split(","):
            for solver in asked.solvers.split(","):
                began = time.perf_counter()
                how = {"pattern": asked.pattern} if removed is None else {"keep": 1 - removed, "allocation": allocation}
                out = prune_weights(
                    network, data, solver=solver, columns=asked.columns, ridge=asked.ridge, seed=asked.draw, **how
                )
                seconds = time.perf_counter() - began
                masked = ps.apply_masks(copy.deepcopy(network), out.masks)
                scores = [cifar_accuracy(n, asked.images) for n in (masked, out.model)]
                kept = sum(k for k, _ in out.counts.values())
                share = asked.pattern if removed is None else f"{removed:.1%}"
                row = f"{share:<9}{allocation:<14}{solver:<12}{scores[0]:>7.2f}{scores[1]:>7.2f}"
                print(f"{row}{kept:>9}{seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
