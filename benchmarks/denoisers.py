"""Four denoisers with the data that calibrate them and the data that score them.

    python benchmarks/denoisers.py                 their dense scores and the least that counts, the noisy images' own

Three DnCNNs remove Gaussian noise: calibrated on crops of BSD400, scored on the seven 256 x 256 images of Set12. One
network removes real camera noise: pairs of a single exposure and the mean of many, calibrated and scored on different
scenes. It was trained on noise without spatial correlation and reads, as its authors have it (pixel-shuffle
down-sampling, Zhou et al., AAAI 2020), every second pixel of every second row: an image is four images to it. Every
network predicts the noise, so targets are the noise and out = clip(noisy - net(noisy), 0, 1).
"""

from __future__ import annotations

import argparse
import io
import re
import time
import zipfile
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import matplotlib.image
import models
import numpy as np
import torch
from torch import Tensor, nn

Data = list[tuple[Tensor, Tensor]]
CROPS, SIDE, BATCH = 16, 64, 4
TEST_SIDE, TEST_PAIRS, STRIDE = 128, 2, 2


class Denoiser(NamedTuple):
    """A network, its calibration batches (noisy, noise) of a draw, its test pairs (noisy, clean), what may be pruned.

    `layers` are those that may lose outputs; None: all.
    """

    network: Callable[[], nn.Module]
    calibration: Callable[..., Data]
    test: Callable[[], Data]
    layers: list[str] | None = None

    def score(self, network: nn.Module) -> float:
        """Mean PSNR of the test images in dB, in the network's own precision."""
        return psnr(network, self.test())


@torch.inference_mode()
def psnr(network: nn.Module, pairs: Data) -> float:
    """Mean over pairs (noisy, clean) of the PSNR in dB of clip(noisy - net(noisy), 0, 1)."""
    dtype = next(network.parameters()).dtype
    found = []
    for noisy, clean in pairs:
        error = ((noisy - network(noisy.to(dtype)).float()).clamp(0, 1) - clean).square().mean()
        found.append(float(-10 * torch.log10(error)))
    return float(np.mean(found))


def gaussian_calibration(sigma: float, draw: int = 0, crops: int = CROPS) -> Data:
    """Crops of as many images of BSD400 with noise of that sigma (grey levels of 255)."""
    rng = np.random.default_rng(draw)
    with np.load(models.SHARED / "bsd400_train.npz") as file:
        images = file["images"]
    chosen = [_crop(rng, images[i])[0] for i in rng.choice(len(images), crops, replace=False)]
    clean = torch.from_numpy(np.stack(chosen)[:, None]).float() / 255
    noise = torch.from_numpy(rng.normal(0, sigma / 255, clean.shape)).float()
    return list(zip((clean + noise).split(BATCH), noise.split(BATCH), strict=True))


@cache
def set12(sigma: float) -> Data:
    """The seven 256 x 256 images of Set12; noise of seed 0."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    with np.load(models.SHARED / "set12.npz") as file:
        for key in sorted(file.files)[:7]:
            clean = torch.from_numpy(file[key]).float()[None, None] / 255
            pairs.append((clean + sigma / 255 * torch.randn(clean.shape, generator=generator), clean))
    return pairs


def camera_calibration(draw: int = 0, crops: int = CROPS) -> Data:
    """Crops of as many pairs of the calibration scenes, at half the resolution."""
    rng = np.random.default_rng(draw)
    names = _scenes()[0]
    chosen = []
    for i in rng.choice(len(names), crops, replace=crops > len(names)):
        phase = rng.integers(0, STRIDE, 2)
        thinned = (image[phase[0] :: STRIDE, phase[1] :: STRIDE] for image in _pair(names[i]))
        chosen.append([_pixels(part) for part in _crop(rng, *thinned)])
    noisy, clean = (torch.stack(part) for part in zip(*chosen, strict=True))
    return list(zip(noisy.split(BATCH), (noisy - clean).split(BATCH), strict=True))


@cache
def camera_test() -> Data:
    """Central squares of the first pairs of every capture of the test scenes, each as the four images it is read as."""
    captures: dict[str, list[str]] = {}
    for name in _scenes()[1]:
        captures.setdefault(name.rpartition("_")[0], []).append(name)
    edge = (512 - TEST_SIDE) // 2
    centre = slice(edge, edge + TEST_SIDE)
    pairs = [_pair(name) for names in captures.values() for name in names[:TEST_PAIRS]]
    return [(_phases(noisy[centre, centre]), _phases(clean[centre, centre])) for noisy, clean in pairs]


@cache
def _scenes() -> tuple[list[str], list[str]]:
    """Pairs to calibrate on and to test on: scenes in turn by name, whatever the camera, so that none is in both."""
    with zipfile.ZipFile(models.SHARED / ARCHIVE) as file:
        names = sorted(n.removesuffix("_real.JPG") for n in file.namelist() if n.endswith("_real.JPG"))
    scenes = sorted({_scene(n) for n in names})
    return tuple([n for n in names if scenes.index(_scene(n)) % 2 == half] for half in (0, 1))  # type: ignore[return-value]


def _scene(name: str) -> str:
    """'Canon5D2_5_160_3200_chair_11' -> 'chair'."""
    return re.sub(r"^.*\d_|_+\d+$", "", re.sub(r"_+\d+$", "", name))


@cache
def _pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(512, 512, 3) uint8 single exposure and mean of many."""
    with zipfile.ZipFile(models.SHARED / ARCHIVE) as file:
        read = [matplotlib.image.imread(io.BytesIO(file.read(f"{name}_{kind}.JPG")), "jpg") for kind in KINDS]
    return read[0], read[1]


def _crop(rng: np.random.Generator, *images: np.ndarray) -> list[np.ndarray]:
    """The same random square of images of one size."""
    top, left = rng.integers(0, images[0].shape[0] - SIDE, 2)
    return [image[top : top + SIDE, left : left + SIDE] for image in images]


def _phases(image: np.ndarray) -> Tensor:
    """(4, 3, height / 2, width / 2) in [0, 1]."""
    thinned = [image[top::STRIDE, left::STRIDE] for top in range(STRIDE) for left in range(STRIDE)]
    return torch.stack([_pixels(part) for part in thinned])


def _pixels(image: np.ndarray) -> Tensor:
    """(3, height, width) in [0, 1]."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


# the camera denoiser without its three-layer estimator of the noise's level: with a few of its channels gone the level
# is wrong, and the scores jump by decibels up and down whatever else is chosen
INNER = [f"net.dncnn.{i}" for i in (0, *range(2, 54, 3))]
ARCHIVE, KINDS = "polyu_real_noise_100pairs.zip", ("real", "mean")
DENOISERS = {
    "dncnn_s25": Denoiser(models.dncnn, partial(gaussian_calibration, 25.0), partial(set12, 25.0)),
    "dncnn_s15": Denoiser(models.dncnn_s15, partial(gaussian_calibration, 15.0), partial(set12, 15.0)),
    "dncnn_s25_nobn": Denoiser(models.dncnn_nobn, partial(gaussian_calibration, 25.0), partial(set12, 25.0)),
    "pd_color_real": Denoiser(models.pd_color_real, camera_calibration, camera_test, INNER),
}


class _Nothing(nn.Module):
    """Predicts no noise."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    heads = ("images", "noisy dB", "dense dB", "bfloat16", "seconds")
    print(f"{'denoiser':<16}" + "".join(f"{head:>10}" for head in heads) + f"{'calibration':>14}")
    for name, denoiser in DENOISERS.items():
        network, began = denoiser.network(), time.perf_counter()
        images, dense = len(denoiser.test()), denoiser.score(network)
        seconds = time.perf_counter() - began
        shape = "x".join(map(str, denoiser.calibration(0)[0][0].shape))
        scores = (denoiser.score(_Nothing()), dense, denoiser.score(network.bfloat16()))
        told = "".join(f"{score:>10.2f}" for score in scores)
        print(f"{name:<16}{images:>10}{told}{seconds:>10.1f}{shape:>14}", flush=True)


if __name__ == "__main__":
    main()
