"""What a fused network costs to run: processor time against both networks one after the other, parameters.

    OMP_NUM_THREADS=1 python benchmarks/fused_speed.py

Couplings are random: time depends on how many units are fused, not on which. Medians of rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.bridges.torch.assembly import assemble
from prunesolve.bridges.torch.axes import Axes
from prunesolve.formulations.partial_fusion import Coupling

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MNIST MLP, batch of 256": (models.MnistMLP, (256, 1, 28, 28)),
    "ResNet-20, batch of 32": (lambda: models.CifarResNet(20), (32, 3, 32, 32)),
    "DnCNN, one 96 x 96 image": (models.DnCNN, (1, 1, 96, 96)),
}


def coupling(size: int, alpha: float, rng: np.random.Generator) -> Coupling:
    pairs = int((1 - alpha) * size + 0.5)
    return Coupling.matched(rng.permutation(size)[:pairs], rng.permutation(size)[:pairs], size, size)


def fused(pair: tuple[nn.Module, nn.Module], axes: tuple[Axes, Axes], alpha: float, example: Tensor) -> nn.Module:
    rng = np.random.default_rng(0)
    couplings = {group.name: coupling(group.size, alpha, rng) for group in axes[0].groups}
    return assemble(*pair, *axes, couplings, example).model


@torch.inference_mode()
def seconds(calls: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median processor seconds of each, in turns."""
    spent: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, of in zip(calls, spent, strict=True):
            began = time.thread_time()
            call()
            of.append(time.thread_time() - began)
    return [float(np.median(of[1:])) for of in spent]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("time of both networks one after the other = 1; in brackets parameters of one network\n")
    print("| alpha | " + " | ".join(f"{alpha:g}" for alpha in ALPHAS) + " |")
    print("|---|" + "---|" * len(ALPHAS))
    for name, (make, shape) in NETWORKS.items():
        first, second, x = make().eval(), make().eval(), torch.randn(shape)
        axes = Axes.of(first, x[:1]), Axes.of(second, x[:1])
        made = [fused((first, second), axes, alpha, x[:1]) for alpha in ALPHAS]
        calls = [lambda a=first, b=second, x=x: (a(x), b(x)), *(lambda m=m, x=x: m(x) for m in made)]
        both, *times = seconds(calls, asked.rounds)
        one = sum(p.numel() for p in first.parameters())
        sizes = [sum(p.numel() for p in m.parameters()) / one for m in made]
        cells = [f"{t / both:.2f} ({size:.2f})" for t, size in zip(times, sizes, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
