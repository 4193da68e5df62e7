"""What each residual branch of a network is worth: test accuracy without it, no fine-tuning.

    python benchmarks/branches.py                                        ResNet-20 and ResNet-32
    python benchmarks/branches.py --network resnet32 --images 9977

Columns: share of the parameters and multiply-adds that go; error, the share of the block's output that the branch's
mean does not explain; loss increase on the calibration images (training images only); top-1 on test images with zero
and with the branch's mean in its place, and with the mean and BatchNorm recalibrated. A last line for all branches
together that cost at most --points each, recalibrated.
"""

from __future__ import annotations

import argparse
import copy
import time

import models
import numpy as np
import torch
from networks import cifar_calibration, normalised
from torch import Tensor, nn

from prunesolve.bridges.torch.batchnorm import recalibrate_batchnorm
from prunesolve.bridges.torch.branches import branch_importance, find_branches, remove_branches
from prunesolve.bridges.torch.costs import count


def test_images(most: int) -> tuple[Tensor, Tensor]:
    with np.load(models.SHARED / "cifar10_test.npz") as file:
        exact = np.flatnonzero(file["lossless"])[:most]
        return normalised(file["images"][exact]), torch.from_numpy(file["labels"][exact]).long()


@torch.inference_mode()
def top1(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In bfloat16, BatchNorm in single precision: three to six times as fast where the processor has it."""
    work = copy.deepcopy(network).to(torch.bfloat16).eval()
    for module in work.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    batches = zip(images.to(torch.bfloat16).split(250), labels.split(250), strict=True)
    return 100 * sum(int((work(x).argmax(1) == y).sum()) for x, y in batches) / len(labels)


def table(name: str, images: Tensor, labels: Tensor, calibration: list[tuple[Tensor, Tensor]], points: float) -> None:
    network, example = getattr(models, name)(), calibration[0][0][:2]
    began = time.perf_counter()
    found = find_branches(network, example)
    dense, whole = count(network, example), top1(network, images, labels)
    print(f"\n{name}: {len(found)} branches found in {time.perf_counter() - began:.1f} s; dense {whole:.2f} % top-1")
    heads = ("params %", "MACs %", "error", "loss +", "zero", "mean", "+ bn")
    print(f"{'branch':<12}" + "".join(f"{head:>10}" for head in heads), flush=True)
    cheap = []
    for branch in found:
        [worth] = branch_importance(network, branch, calibration)
        without = [remove_branches(network, branch, example, data) for data in (None, calibration)]
        without.append(recalibrate_batchnorm(copy.deepcopy(without[1]), calibration))
        scores = [top1(removed, images, labels) for removed in without]
        shares = (100 * branch.params / dense["params"], 100 * branch.macs / dense["macs"])
        told = (*shares, worth.error, worth.loss_increase, *scores)
        print(f"{branch.name:<12}" + "".join(f"{value:>10.2f}" for value in told), flush=True)
        cheap += [branch] if scores[-1] >= whole - points else []
    if cheap:
        removed = recalibrate_batchnorm(remove_branches(network, cheap, example, calibration), calibration)
        left = count(removed, example)
        params, macs = (100 * (1 - left[resource] / dense[resource]) for resource in ("params", "macs"))
        print(f"{len(cheap)} together: {params:.1f} % params, {macs:.1f} % MACs less, ", end="")
        print(f"{top1(removed, images, labels):.2f} % top-1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=["resnet20", "resnet32", "both"], default="both")
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--calibration", type=int, default=512, help="training images, up to 1024")
    parser.add_argument("--points", type=float, default=3.0, help="top-1 that each of those together may cost")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    images, labels = test_images(asked.images)
    calibration = cifar_calibration()[: max(1, asked.calibration // 128)]
    for name in ("resnet20", "resnet32") if asked.network == "both" else (asked.network,):
        table(name, images, labels, calibration, asked.points)


if __name__ == "__main__":
    main()
