"""Prune real networks without fine-tuning: every method, every budget, equal calibration data.

    python benchmarks/networks.py                          all tables, the removal checks and two calls of ps.prune
    python benchmarks/networks.py --network none           the checks and the two calls alone
    python benchmarks/networks.py --network resnet20 --images 9977

Statistics come from training images only, scores from test images only. Columns: mask alone, + BatchNorm
recalibration, + least-squares refit, + both. The networks and images are the public ones beside the checkout.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import models
import numpy as np
import torch
from torch import Tensor

import prunesolve as ps
from prunesolve.bridges.torch.data import Batches
from prunesolve.formulations import Fisher, HybridQubo, L1Qubo, Reconstruction

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
SIGMA = 25 / 255
METHODS: dict[str, Any] = {
    "random": None,
    "l1": L1Qubo(beta=0.0),
    "taylor": HybridQubo(alpha=1.0, beta=0.0),
    "fisher greedy": HybridQubo(alpha=0.0, beta=0.0),
    "fisher": Fisher(),
    "l1-qubo": L1Qubo(),
    "hybrid-qubo": HybridQubo(),
    "hybrid beta=0": HybridQubo(beta=0.0),
    "reconstruction": Reconstruction(),
}


class Case(NamedTuple):
    """One network with its calibration data, the layers that may lose outputs and the score on test data."""

    network: Callable[[], torch.nn.Module]
    layers: list[str] | None
    statistics: Callable[[int], list[tuple[Tensor, Tensor]]]
    refit_batches: int
    score: Callable[[torch.nn.Module, int], float]
    unit: str


def normalised(images: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(images).float() / 255
    return ((pixels - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def cifar_calibration(draw: int = 0) -> list[tuple[Tensor, Tensor]]:
    with np.load(models.SHARED / "cifar10_train_5k.npz") as file:
        chosen = np.random.default_rng(draw).permutation(len(file["labels"]))[:1024]
        images, labels = normalised(file["images"][chosen]), torch.from_numpy(file["labels"][chosen]).long()
    return list(zip(images.split(128), labels.split(128), strict=True))


@torch.inference_mode()
def cifar_accuracy(network: torch.nn.Module, count: int) -> float:
    with np.load(models.SHARED / "cifar10_test.npz") as file:
        exact = np.flatnonzero(file["lossless"])[:count]
        images, labels = normalised(file["images"][exact]), torch.from_numpy(file["labels"][exact]).long()
    batches = zip(images.split(250), labels.split(250), strict=True)
    return 100 * sum(int((network(x).argmax(1) == y).sum()) for x, y in batches) / len(labels)


def denoising_calibration(draw: int = 0) -> list[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(draw)
    with np.load(models.SHARED / "bsd400_train.npz") as file:
        images = file["images"]
    crops = []
    for image in rng.choice(len(images), 16, replace=False):
        top, left = rng.integers(0, 180 - 64, 2)
        crops.append(images[image, top : top + 64, left : left + 64])
    clean = torch.from_numpy(np.stack(crops)[:, None]).float() / 255
    noise = torch.from_numpy(rng.normal(0, SIGMA, clean.shape)).float()
    return list(zip((clean + noise).split(4), noise.split(4), strict=True))


@torch.inference_mode()
def set12_psnr(network: torch.nn.Module, count: int) -> float:
    generator = torch.Generator().manual_seed(0)
    found = []
    with np.load(models.SHARED / "set12.npz") as file:
        for key in sorted(file.files)[:7]:
            clean = torch.from_numpy(file[key]).float()[None, None] / 255
            noisy = clean + SIGMA * torch.randn(clean.shape, generator=generator)
            error = ((noisy - network(noisy)).clamp(0, 1) - clean).square().mean()
            found.append(float(-10 * torch.log10(error)))
    return float(np.mean(found))


INNER = [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in range(3)]
CASES = {
    "resnet20": Case(models.resnet20, INNER, cifar_calibration, 4, cifar_accuracy, "top-1 %"),
    "dncnn": Case(models.dncnn, None, denoising_calibration, 4, set12_psnr, "dB"),
}


def selections(stats: ps.Statistics, method: str, keep: float, seconds: float) -> ps.Selection:
    formulation = METHODS[method]
    if formulation is None:
        rng = np.random.default_rng(0)
        chosen = np.zeros(stats.n, dtype=bool)
        chosen[rng.permutation(stats.n)[: int(keep * stats.n + 0.5)]] = True
        return ps.Selection(stats.groups, chosen)
    problem = formulation.encode(stats, keep=keep)
    result = ps.solve(problem, solver="swap-annealing", time_limit=seconds, seed=0)
    return formulation.decode(stats, result.solution)


def variants(
    case: Case, network: torch.nn.Module, data: list[Any], selection: ps.Selection
) -> Iterator[torch.nn.Module]:
    """Removed; + BatchNorm recalibration; + refit; + both."""
    removed = ps.shrink(network, selection, data[0][0][:2])
    yield removed
    yield ps.recalibrate_batchnorm(copy.deepcopy(removed), data)
    refitted = ps.refit(network, removed, Batches(data[: case.refit_batches]), selection)
    yield refitted
    yield ps.recalibrate_batchnorm(copy.deepcopy(refitted), data)


def table(name: str, images: int, methods: list[str], budgets: list[float], seconds: float, draw: int) -> None:
    case = CASES[name]
    network, data = case.network(), case.statistics(draw)
    began = time.perf_counter()
    stats = ps.measure(network, data, layers=case.layers)
    print(f"\n{name}: {stats.n} units, measured in {time.perf_counter() - began:.1f} s; ", end="")
    print(f"dense {case.score(network, images):.2f} {case.unit}")
    print(f"{'removed':<9}{'method':<16}{'mask':>8}{'+ bn':>8}{'+ refit':>9}{'+ both':>8}")
    for removed in budgets:
        for method in methods:
            selection = selections(stats, method, 1 - removed, seconds)
            scores = [case.score(v, images) for v in variants(case, network, data, selection)]
            mask, bn, refit, both = scores
            print(f"{removed:<9.0%}{method:<16}{mask:>8.2f}{bn:>8.2f}{refit:>9.2f}{both:>8.2f}", flush=True)


def removal_checks() -> None:
    """Every network's largest set of groups, half the units removed: masked equals removed."""
    shapes = {"resnet20": (2, 3, 32, 32), "resnet32": (2, 3, 32, 32), "densenet": (2, 3, 32, 32)}
    shapes |= {"dncnn": (1, 1, 48, 48), "dncnn_nobn": (1, 1, 48, 48), "mlp": (2, 1, 28, 28)}
    heads = ("groups", "units", "left out", "largest difference", "tolerance", "seconds")
    print(f"\n{'network':<12}" + "".join(f"{head:>20}" for head in heads))
    for name, shape in shapes.items():
        network, example = getattr(models, name)(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
        began = time.perf_counter()
        found = ps.find_groups(network, example)
        units = sum(g.size for g in found.groups)
        keep = np.random.default_rng(0).random(units) < 0.5
        for g, start in zip(found.groups, np.cumsum([0, *(g.size for g in found.groups)]), strict=False):
            keep[start] |= not keep[start : start + g.size].any()
        selection = ps.Selection(found.groups, keep)
        masked = ps.apply_masks(copy.deepcopy(network), ps.masks(selection, network))
        check = ps.verify(masked, ps.shrink(network, selection, example), example)
        seconds = time.perf_counter() - began
        told = (len(found.groups), units, len(found.excluded))
        told += (f"{check.largest_difference:.2e}", f"{check.tolerance:.2e}", f"{seconds:.1f}")
        print(f"{name:<12}" + "".join(f"{value:>20}" for value in told), flush=True)


def one_call() -> None:
    """`ps.prune` with its defaults: half the units of ResNet-20, half the multiply-adds of DnCNN; then the score."""
    for name, budget, images in (("resnet20", {"keep": 0.5}, 2000), ("dncnn", {"macs": 0.5}, 7)):
        case = CASES[name]
        out = ps.prune(case.network(), case.statistics(0)[:4], **budget, time_limit=2, seed=0)
        print(f"\n{name}: scores {case.score(out.model, images):.2f} {case.unit}\n{out.report}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=[*CASES, "all", "none"], default="all", help="none: checks alone")
    parser.add_argument("--images", type=int, default=2000, help="test images (ResNet-20)")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--removed", default="0.2,0.36,0.5", help="comma-separated shares of the units")
    parser.add_argument("--seconds", type=float, default=1.0, help="solver time a selection")
    parser.add_argument("--draw", type=int, default=0, help="seed of the calibration draw")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.network in ("all", "none"):
        removal_checks()
        one_call()
    budgets = [float(share) for share in asked.removed.split(",")]
    for name in CASES if asked.network == "all" else [] if asked.network == "none" else [asked.network]:
        table(name, asked.images, asked.methods.split(","), budgets, asked.seconds, asked.draw)


if __name__ == "__main__":
    main()
