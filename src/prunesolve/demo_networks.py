r"""The demo's two trained networks and the real data they work on.

`classify`: a small residual network on scikit-learn's handwritten digits. `denoise`: a small DnCNN on scikit-learn's
two photographs with the noise of an image sensor. Both were trained by `benchmarks/train_demo_networks.py`.

References
----------
Zhang, Zuo, Chen, Meng, Zhang (2017), Beyond a Gaussian denoiser: residual learning of deep CNN for image denoising.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems import InvalidProblem, unknown

Batch = tuple[Tensor, Tensor]
WEIGHTS = Path(__file__).parent / "demo_data"


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x)))))); the shortcut is a 1x1 convolution where shapes change."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels_in, h, w) -> (batch, channels, h / stride, w / stride)."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.bn2(self.conv2(inner)))


class DigitsNet(nn.Module):
    """Three residual blocks for 8 x 8 grey images: (batch, 1, 8, 8) -> (batch, 10) logits."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block1 = ResidualBlock(width, width)
        self.block2 = ResidualBlock(width, 2 * width, stride=2)
        self.block3 = ResidualBlock(2 * width, 2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 1, 8, 8) -> (batch, 10) logits."""
        x = torch.relu(self.norm(self.stem(images)))
        x = self.block3(self.block2(self.block1(x)))
        return self.head(x.mean(dim=(2, 3)))


class PhotoDenoiser(nn.Module):
    """A small DnCNN: predicts the noise and subtracts it, (batch, 3, h, w) noisy -> (batch, 3, h, w) clean."""

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.Conv2d(width, 3, 3, padding=1))
        self.noise = nn.Sequential(*layers)

    def forward(self, noisy: Tensor) -> Tensor:
        """(batch, 3, h, w) noisy -> the same shape, clean."""
        return noisy - self.noise(noisy)


@dataclass(frozen=True)
class DemoData:
    """Batches of (inputs, targets): what methods may look at, what choices were made by, and what judges them."""

    calibration: list[Batch]
    validation: list[Batch]
    test: list[Batch]


# Places of a fixed permutation of the 1,797 digits that each part may see.
PLACES = {"train": slice(0, 1000), "validation": slice(1000, 1297), "test": slice(1297, 1797)}


def digits(part: str) -> Batch:
    """The part's handwritten digits: (m, 1, 8, 8) float32 in [0, 1] and (m,) labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(labels))[PLACES[part]]
    inputs = torch.from_numpy(images[chosen].astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    return inputs, torch.from_numpy(labels[chosen].astype(np.int64))


def digits_data() -> DemoData:
    """Handwritten digits as (image, label): 500 of the 1,000 trained on to calibrate, 297 and 500 others."""
    inputs, targets = digits("train")
    return DemoData(
        calibration=_batches(inputs[:500], targets[:500], 250),
        validation=_batches(*digits("validation"), 250),
        test=_batches(*digits("test"), 250),
    )


# Columns of both photographs, 640 wide, that each part may see.
REGIONS = {"train": slice(0, 384), "validation": slice(384, 480), "test": slice(480, 640)}


def photographs(part: str) -> list[np.ndarray[Any, Any]]:
    """The part's region of scikit-learn's two photographs, each (3, 427, columns) float32 in [0, 1]."""
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    return [np.moveaxis(image[:, REGIONS[part]], 2, 0).astype(np.float32) / 255 for image in images]


def sensor(clean: Any, rng: np.random.Generator, photons: float = 80.0, read: float = 0.02) -> Any:
    r"""What an image sensor reads: shot noise of the light and read noise of the electronics.

    .. math:: y = \mathrm{Poisson}(p x) / p + \mathcal{N}(0, \sigma^2)

    Parameters
    ----------
    clean : (...) array in [0, 1]
        Irradiance; 1 is white.
    rng : numpy.random.Generator
        Source of the noise.
    photons : float
        p, photons per pixel at white.
    read : float
        sigma, in units of white.

    Returns
    -------
    (...) float32
        Unclipped, so that the noise has mean zero everywhere.

    Examples
    --------
    >>> noisy = sensor(np.full((200, 200), 0.5), np.random.default_rng(0))
    >>> bool(abs(noisy.var() / (0.5 / 80 + 0.02**2) - 1) < 0.03)
    True
    """
    shot = rng.poisson(np.asarray(clean, dtype=np.float64) * photons) / photons
    return (shot + rng.normal(0.0, read, shot.shape)).astype(np.float32)


def photo_data() -> DemoData:
    """Crops of the two photographs as (noisy, clean), 32 / 10 / 20; each part has its own columns and noise."""
    return DemoData(
        calibration=_noisy_crops("train", side=40, count=32, seed=0),
        validation=_noisy_crops("validation", side=80, count=10, seed=1),
        test=_noisy_crops("test", side=80, count=20, seed=2),
    )


def _noisy_crops(part: str, side: int, count: int, seed: int) -> list[Batch]:
    """`count` of the crops that tile the part, in batches of ten."""
    rng = np.random.default_rng(seed)
    crops = [
        photo[:, top : top + side, left : left + side]
        for photo in photographs(part)
        for top in range(0, photo.shape[1] - side + 1, side)
        for left in range(0, photo.shape[2] - side + 1, side)
    ]
    # shuffled, so that every batch shows both photographs
    clean = np.stack(crops)[rng.permutation(len(crops))[:count]]
    return _batches(torch.from_numpy(sensor(clean, rng)), torch.from_numpy(clean), 10)


def _batches(inputs: Tensor, targets: Tensor, size: int) -> list[Batch]:
    return list(zip(inputs.split(size), targets.split(size), strict=True))


@dataclass(frozen=True)
class DemoTask:
    """One of the demo's two jobs: a network, its data and its figure of merit, of which more is better.

    `improves` names the input where the network returns a better version of it.
    """

    name: str
    title: str
    network: Callable[[], nn.Module]
    data: Callable[[], DemoData]
    metric: str
    unit: str
    weights: str
    improves: str = ""


TASKS = {
    "classify": DemoTask(
        "classify", "Handwritten digits", DigitsNet, digits_data, "accuracy", "%", "digits.safetensors"
    ),
    "denoise": DemoTask(
        "denoise",
        "Noisy photographs",
        PhotoDenoiser,
        photo_data,
        "PSNR",
        "dB",
        "denoiser.safetensors",
        improves="noisy input",
    ),
}


def demo_task(name: str) -> DemoTask:
    """The task of that name."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def load_network(name: str) -> nn.Module:
    """The task's trained network, in eval mode; the caller's random state is left alone."""
    from safetensors.torch import load_file

    task = demo_task(name)
    with torch.device("meta"):  # nothing is initialised, hence nothing drawn
        network = task.network()
    network.load_state_dict(load_file(_weights(task)), assign=True)
    return network.eval()


def training_facts(name: str) -> dict[str, Any]:
    """What the weight file says about itself: command, seed, seconds, version, test metrics."""
    from safetensors import safe_open

    with safe_open(_weights(demo_task(name)), framework="pt") as file:
        return json.loads(file.metadata()["facts"])


def _weights(task: DemoTask) -> Path:
    path = WEIGHTS / task.weights
    if not path.is_file():
        raise InvalidProblem(
            f"{path}: expected the demo's trained weights, found none; "
            f"train them with `python benchmarks/train_demo_networks.py --task {task.name}`"
        )
    return path
