"""What repairs without labels, gradients or training make of a pruned ResNet-20: top-1 on exact test images.

    python benchmarks/repairs.py                                   single weights, global magnitude, 90 and 95 %
    python benchmarks/repairs.py --channels 0.36 0.5               inner channels by layer-normalised L1
    python benchmarks/repairs.py --images 9977 --seeds 3

One row a repair or a sequence of them, in the order in which they are applied; mean and range over the draws of the
calibration images. "Alone" leaves the means. The weights that go are those of least magnitude among all
convolutions and linear layers; the standard error is up to 1.1 points at 2,000 images. Seconds are the
processor's, a repair.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import models
import numpy as np
import torch
from networks import cifar_accuracy, cifar_calibration
from torch import nn
from torch.nn.utils import prune

import prunesolve as ps
from prunesolve.bridges.torch.repair import asr, bias, damped, layer_variance, recalibrated, repair

Step = Callable[..., nn.Module]
ROWS: dict[str, tuple[Step, ...]] = {
    "mask only": (),
    "bn": (recalibrated,),
    "layer-variance": (layer_variance,),
    "layer-variance, factor alone": (partial(layer_variance, means=False),),
    "layer-variance, bn": (layer_variance, recalibrated),
    "bn, layer-variance": (recalibrated, layer_variance),
    "asr": (asr,),
    "asr to the identity": (partial(asr, shrink="identity"),),
    "asr, factors alone": (partial(asr, means=False),),
    "asr before BatchNorm, bn": (partial(asr, where="before"), recalibrated),
    "asr, bn": (asr, recalibrated),
    "bn, asr": (recalibrated, asr),
    "repair": (repair,),
    "bias": (bias,),
    "bias, bn": (bias, recalibrated),
    "damped, power 1/2": (damped,),
    "damped, power 1": (partial(damped, power=1.0),),
}


def weights_pruned(dense: nn.Module, share: float) -> nn.Module:
    work = copy.deepcopy(dense)
    layers = [(m, "weight") for m in work.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=share)
    for module, name in layers:
        prune.remove(module, name)
    return work


def channels_pruned(dense: nn.Module, share: float) -> tuple[nn.Module, Any]:
    """Masked: removed it computes the same; layer-normalised L1 of the inner channels, as in the tables of METHODS."""
    data = cifar_calibration()[:1]
    inner = [
        name for name, m in dense.named_modules() if isinstance(m, nn.Conv2d) and name.endswith("conv1") and "." in name
    ]
    stats = ps.measure(dense, data, layers=inner)
    norms = [dense.get_submodule(g.layer).weight.detach().abs().flatten(1).sum(1).numpy() for g in stats.groups]
    scores = np.concatenate([norm / np.linalg.norm(norm) for norm in norms])
    keep = np.zeros(len(scores), dtype=bool)
    keep[np.argsort(-scores)[: round((1.0 - share) * len(scores))]] = True
    selection = ps.Selection(stats.groups, keep)
    return ps.shrink(dense, selection, data[0][0][:2]), selection


def table(title: str, dense: nn.Module, pruned: nn.Module, selection: Any, asked: argparse.Namespace) -> None:
    print(f"\n{title}\n{'repair':<36}{'top-1 %':>9}{'range':>16}{'seconds':>9}", flush=True)
    for name in asked.rows:
        scores, spent = [], 0.0
        for seed in range(asked.seeds if ROWS[name] else 1):
            work, data = pruned, cifar_calibration(seed)[: max(1, asked.calibration // 128)]
            began = time.process_time()
            for step in ROWS[name]:
                work = step(dense, work, data, selection)
            spent += time.process_time() - began
            scores.append(cifar_accuracy(work.eval(), asked.images))
        spread = f"{min(scores):.1f} to {max(scores):.1f}" if len(scores) > 1 else ""
        print(f"{name:<36}{np.mean(scores):>9.1f}{spread:>16}{spent / len(scores):>9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=float, nargs="*", help="shares of the weights that go; default 0.9 0.95")
    parser.add_argument("--channels", type=float, nargs="*", default=[], help="shares of the inner channels that go")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--seeds", type=int, default=3, help="draws of calibration images")
    parser.add_argument("--calibration", type=int, default=1024, help="training images, up to 1024")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    dense = models.resnet20().eval()
    shares = asked.weights if asked.weights is not None else [] if asked.channels else [0.9, 0.95]
    print(f"ResNet-20, dense {cifar_accuracy(dense, asked.images):.1f} % on {asked.images} images")
    for share in shares:
        pruned = weights_pruned(dense, share)
        title = f"{100 * share:g} % of the weights, global magnitude"
        table(title, dense, pruned, None, asked)
    for share in asked.channels:
        removed, selection = channels_pruned(dense, share)
        title = f"{100 * share:g} % of the inner channels, L1, removed"
        table(title, dense, removed, selection, asked)


if __name__ == "__main__":
    main()
