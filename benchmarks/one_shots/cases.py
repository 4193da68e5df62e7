"""The networks that are pruned in one shot: what calibrates them, which layers may lose units, what scores them.

Calibration images are training images in an order that the seed draws; scores are of test images alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import denoisers
import models
import networks
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunesolve.bridges.torch.costs import count

Data = list[tuple[Tensor, Tensor]]
Scale = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of every channel
MOST = 5000  # calibration images
BATCH, SCORED = 128, 250
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = (tuple(networks.MEAN.tolist()), tuple(networks.STD.tolist()))
MNIST = ((0.1307,), (0.3081,))
NOISE = 25.0


class Case(NamedTuple):
    """A network with its data.

    `layers` may lose outputs; `calibration(seed, count)` are batches (inputs, targets); `judge(network, images)` the
    score on test data, higher is better, and the loss.
    """

    network: Callable[[], nn.Module]
    layers: list[str]
    calibration: Callable[[int, int], Data]
    count: int
    judge: Callable[[nn.Module, int], dict[str, float]]
    images: int
    unit: str


def pixels(images: np.ndarray, scale: Scale) -> Tensor:
    """(n, channels, height, width) in the normalisation the network was trained with."""
    grey = images[..., None] if images.ndim == 3 else images
    mean, std = (torch.tensor(part) for part in scale)
    return ((torch.from_numpy(grey).float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def drawn(file: str, scale: Scale, seed: int, count: int) -> Data:
    """Training images of that file in batches, in an order that the seed draws."""
    with np.load(models.SHARED / file) as stored:
        chosen = np.random.default_rng(seed).permutation(len(stored["labels"]))[:count]
        images, labels = pixels(stored["images"][chosen], scale), torch.from_numpy(stored["labels"][chosen]).long()
    return list(zip(images.split(BATCH), labels.split(BATCH), strict=True))


@cache
def tested(file: str, scale: Scale) -> tuple[Tensor, Tensor]:
    """All test images of that file that are exact."""
    with np.load(models.SHARED / file) as stored:
        exact = np.flatnonzero(stored["lossless"]) if "lossless" in stored else np.arange(len(stored["labels"]))
        return pixels(stored["images"][exact], scale), torch.from_numpy(stored["labels"][exact]).long()


@torch.inference_mode()
def top1(file: str, scale: Scale, network: nn.Module, images: int) -> dict[str, float]:
    """Top-1 in % and cross-entropy on the first exact test images, in float32."""
    inputs, labels = (part[:images] for part in tested(file, scale))
    right, loss = 0, 0.0
    for x, y in zip(inputs.split(SCORED), labels.split(SCORED), strict=True):
        # twice as fast a convolution on a processor
        outputs = network(x.to(memory_format=torch.channels_last))
        right += int((outputs.argmax(1) == y).sum())
        loss += float(F.cross_entropy(outputs, y, reduction="sum"))
    return {"score": 100 * right / len(labels), "loss": loss / len(labels)}


def psnr(network: nn.Module, images: int) -> dict[str, float]:
    """Mean PSNR in dB on the first images of Set12."""
    return {"score": denoisers.psnr(network, denoisers.set12(NOISE)[:images])}


def classifier(network: Callable[[], nn.Module], layers: list[str], scale: Scale) -> Case:
    return Case(
        network,
        layers,
        partial(drawn, "cifar10_train_5k.npz", scale),
        2048,
        partial(top1, "cifar10_test.npz", scale),
        9977,
        "top-1 %",
    )


def inner(blocks: int) -> list[str]:
    """First convolution of every residual block: what it makes no shortcut reads."""
    return [f"layer{stage}.{b}.conv1" for stage in (1, 2, 3) for b in range(blocks)]


def bottlenecks() -> list[str]:
    """The 1 x 1 convolution of every dense layer: what it makes is not concatenated."""
    return [f"blocks.{b}.{i}.conv1" for b, layers in enumerate((6, 12, 24)) for i in range(layers)]


CASES = {
    "resnet20": classifier(models.resnet20, inner(3), IMAGENET),
    "resnet32": classifier(models.resnet32, inner(5), IMAGENET),
    "densenet": classifier(models.densenet, bottlenecks(), CIFAR),
    "dncnn": Case(
        models.dncnn,
        [f"dncnn.{i}" for i in (0, *range(2, 47, 3))],
        lambda seed, count: denoisers.gaussian_calibration(NOISE, seed, count),
        64,
        psnr,
        7,
        "dB",
    ),
    "mlp": Case(
        models.mlp,
        ["fc1", "fc2", "fc3"],
        partial(drawn, "mnist_train_10k.npz", MNIST),
        2048,
        partial(top1, "mnist_test.npz", MNIST),
        10_000,
        "top-1 %",
    ),
}


class Bench:
    """A case with its network and the calibration images of a seed, made when they are first asked for."""

    def __init__(self, name: str, seed: int, calibration: int | None = None, images: int | None = None) -> None:
        self.name, self.seed, self.case = name, seed, CASES[name]
        self.count = self.case.count if calibration is None else calibration
        if not 0 < self.count <= MOST:
            raise ValueError(f"calibration: expected 1 to {MOST} images, got {self.count}")
        self.images = self.case.images if images is None else min(images, self.case.images)
        self._network: nn.Module | None = None
        self._data: Data | None = None

    @property
    def network(self) -> nn.Module:
        """The dense network; nobody changes it."""
        if self._network is None:
            self._network = self.case.network()
        return self._network

    @property
    def data(self) -> Data:
        if self._data is None:
            self._data = self.case.calibration(self.seed, self.count)
        return self._data

    def judged(self, network: nn.Module) -> dict[str, float]:
        return self.case.judge(network.eval(), self.images)

    def stays(self, network: nn.Module) -> dict[str, float]:
        """Shares of units, parameters, MACs and of the weights that are not zero, by counting the network itself."""
        example = self.data[0][0][:1]
        before, after = count(self.network, example), count(network, example)
        told = {name: after[name] / before[name] for name in before}
        told |= {what: of(network) / of(self.network) for what, of in (("units", self._units), ("weights", nonzero))}
        return told

    def _units(self, network: nn.Module) -> int:
        return sum(network.get_submodule(layer).weight.shape[0] for layer in self.case.layers)


def nonzero(network: nn.Module) -> int:
    """Weights of Linear and convolutions that are not zero; biases and norms do not count."""
    return sum(int(m.weight.count_nonzero()) for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d))
