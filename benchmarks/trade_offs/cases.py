"""Networks whose loss is traded for parameters: data to measure, search and judge on, the problem over single units."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import denoisers
import models
import networks
import numpy as np
import torch
from torch import Tensor, nn

import prunesolve as ps
from prunesolve.problems import MultiObjective, Selections

from .objectives import Objectives

OUT = Path(__file__).resolve().parents[1] / "out"
Data = list[tuple[Tensor, Tensor]]
# images or crops of the search and of the judgement
SEARCHED, JUDGED = {"cifar": 128, "crops": 16}, {"cifar": 512, "crops": 48}
SIDE = 40


class Network(NamedTuple):
    """A network, the layers that may lose outputs, its data of a draw and the loss of knowing nothing.

    `measured` are the batches of the statistics, `searched` and `judged` one batch each; the three share no image.
    """

    network: Callable[[], nn.Module]
    layers: list[str] | None
    measured: Callable[[int], Data]
    searched: Callable[[int], Data]
    judged: Callable[[int], Data]
    nothing: float


def cifar(draw: int, first: int, count: int) -> Data:
    """Training images in an order that the draw makes; the statistics read the first 1,024."""
    with np.load(models.SHARED / "cifar10_train_5k.npz") as file:
        chosen = np.random.default_rng(draw).permutation(len(file["labels"]))[first : first + count]
        images, labels = file["images"][chosen], file["labels"][chosen]
    return [(networks.normalised(images), torch.from_numpy(labels).long())]


def crops(draw: int, count: int) -> Data:
    noisy, noise = (torch.cat(part) for part in zip(*denoisers.gaussian_calibration(25.0, draw, count), strict=True))
    return [(noisy[..., :SIDE, :SIDE].contiguous(), noise[..., :SIDE, :SIDE].contiguous())]


def inner(blocks: int) -> list[str]:
    """First convolution of every residual block: what it makes no shortcut reads."""
    return [f"layer{stage}.{b}.conv1" for stage in (1, 2, 3) for b in range(blocks)]


def classifier(network: Callable[[], nn.Module], blocks: int) -> Network:
    return Network(
        network,
        inner(blocks),
        networks.cifar_calibration,
        partial(cifar, first=1024, count=SEARCHED["cifar"]),
        partial(cifar, first=1024 + SEARCHED["cifar"], count=JUDGED["cifar"]),
        math.log(10),
    )


# the draws of the crops differ by thousands, so that no two uses share one
NETWORKS = {
    "resnet20": classifier(models.resnet20, 3),
    "resnet32": classifier(models.resnet32, 5),
    "dncnn": Network(
        models.dncnn,
        None,
        partial(denoisers.gaussian_calibration, 25.0),
        lambda draw: crops(1000 + draw, SEARCHED["crops"]),
        lambda draw: crops(2000 + draw, JUDGED["crops"]),
        networks.SIGMA**2,
    ),
}


@dataclass(frozen=True)
class Bench:
    """What all methods of a network and a draw share; `refit` measures the loss after the stand-in for the refit."""

    name: str
    draw: int
    refit: bool = False

    @property
    def source(self) -> Network:
        return NETWORKS[self.name]

    @cached_property
    def network(self) -> nn.Module:
        return self.source.network()

    @cached_property
    def stats(self) -> ps.Statistics:
        """Measured once for each draw, then read from benchmarks/out."""
        path = OUT / "statistics" / f"{self.name}-{self.draw}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            data = self.source.measured(self.draw)
            ps.measure(self.network, data, layers=self.source.layers, progress=False).save(path)
        return ps.Statistics.load(path)

    def evaluator(self, data: Data) -> Any:
        return ps.evaluator(self.network, data, self.stats.groups, refit=self.refit, guard=False, dtype=torch.bfloat16)

    def objectives(self, resource: str = "params") -> Objectives:
        """A fresh account each time."""
        return Objectives(self.evaluator(self.source.searched(self.draw)), self.stats, resource)

    def judged(self, keep: Any) -> np.ndarray:
        """(m, 2) objectives on data that no search has seen."""
        return Objectives(self.evaluator(self.source.judged(self.draw)), self.stats)(keep)

    @property
    def reference(self) -> tuple[float, float]:
        """The loss of a network that knows nothing, and all parameters."""
        return self.source.nothing, 1.0

    def problem(self, objectives: Objectives, starts: Any = ()) -> MultiObjective:
        """Selections that leave every group one unit at least."""
        group = self.stats.group_of
        low = np.ones(len(self.stats.groups), dtype=int)
        space = Selections(self.stats.n, [ps.GroupBounds(group, low, np.bincount(group))])
        return MultiObjective(
            space,
            objectives,
            ("loss", objectives.resource),
            reference=self.reference,
            starts=starts,
            groups=group,
            meta={"network": self.name, "draw": self.draw, "refit": self.refit},
        )
