"""Train the demo's two networks and write the weights the package ships.

    python benchmarks/train_demo_networks.py [--task classify|denoise] [--seed 0] [--threads 1] [--out FOLDER]

A few minutes on one core. The same seed and thread count give the same weights on the same machine; the test part is
looked at once, after training.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional

import prunesolve
from prunesolve import demo_networks as demo
from prunesolve.bridges.torch.evaluate import evaluate
from prunesolve.problems._npz import whole_file

EPOCHS, DIGITS_BATCH = 60, 50
STEPS, CROPS, SIDE = 1500, 16, 40


def train_digits(network: torch.nn.Module, rng: np.random.Generator) -> None:
    """Cross-entropy with label smoothing on digits shifted by up to one pixel; Adam, cosine schedule."""
    inputs, targets = demo.digits("train")
    steps = EPOCHS * (len(targets) // DIGITS_BATCH)
    optimiser, schedule = adam(network, 3e-3, steps)
    for _ in range(EPOCHS):
        for chosen in rng.permutation(len(targets)).reshape(-1, DIGITS_BATCH):
            shift = tuple(int(s) for s in rng.integers(-1, 2, size=2))
            images = torch.roll(functional.pad(inputs[chosen], (1, 1, 1, 1)), shift, (2, 3))[:, :, 1:-1, 1:-1]
            loss = functional.cross_entropy(network(images), targets[chosen], label_smoothing=0.05)
            step(optimiser, schedule, loss)


def train_denoiser(network: torch.nn.Module, rng: np.random.Generator) -> None:
    """Mean squared error on random crops, flipped, turned and with fresh noise; Adam, cosine schedule."""
    photos = demo.photographs("train")
    optimiser, schedule = adam(network, 2e-3, STEPS)
    for done in range(STEPS):
        clean = np.stack([random_crop(photos, rng) for _ in range(CROPS)])
        noisy = torch.from_numpy(demo.sensor(clean, rng))
        loss = functional.mse_loss(network(noisy), torch.from_numpy(clean))
        step(optimiser, schedule, loss)
        if (done + 1) % 250 == 0:
            print(f"step {done + 1} of {STEPS}: training loss {loss.item():.6f}", flush=True)


def random_crop(photos: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """(3, SIDE, SIDE) of one photograph, turned by a multiple of 90 degrees and perhaps flipped."""
    photo = photos[rng.integers(len(photos))]
    top, left = (int(rng.integers(size - SIDE + 1)) for size in photo.shape[1:])
    crop = np.rot90(photo[:, top : top + SIDE, left : left + SIDE], rng.integers(4), axes=(1, 2))
    return crop[:, :, ::-1] if rng.integers(2) else crop


def adam(network: torch.nn.Module, rate: float, steps: int):
    """The optimiser and its schedule: linear warm-up over 5 % of the steps, then a cosine to zero."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-4)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda t: min((t + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(1.0, t / steps)))
    )
    return optimiser, schedule


def step(optimiser, schedule, loss: torch.Tensor) -> None:
    """One update."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()


def train(task: demo.DemoTask, seed: int, threads: int, out: Path) -> None:
    """Train one network, say how well it does and write its weights with the facts of their making."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    network, began = task.network(), time.perf_counter()
    learn = {"classify": train_digits, "denoise": train_denoiser}[task.name]
    learn(network, np.random.default_rng(seed))
    network.eval()
    data = task.data()
    facts = {
        "command": f"python benchmarks/train_demo_networks.py --task {task.name} --seed {seed} --threads {threads}",
        "seed": seed,
        "version": prunesolve.__version__,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - began, 1),
        "metric": f"{task.metric} / {task.unit}",
        "validation": round(evaluate(network, data.validation)["metric"], 3),
        "test": round(evaluate(network, data.test)["metric"], 3),
    }
    if task.name == "denoise":
        facts["noisy"] = round(evaluate(torch.nn.Identity(), data.test)["metric"], 3)
    with whole_file(out / task.weights) as file:
        file.write(save(network.state_dict(), {"facts": json.dumps(facts)}))
    print(json.dumps(facts, indent=2), (out / task.weights).stat().st_size, "bytes")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(demo.TASKS), help="default: both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=demo.WEIGHTS)
    told = parser.parse_args()
    for name in [told.task] if told.task else sorted(demo.TASKS):
        train(demo.demo_task(name), told.seed, told.threads, told.out)


if __name__ == "__main__":
    main()
