"""The level database of ResNet-20's inner channels: how long it takes, how good its networks are, what its tables say.

    python benchmarks/levels.py                       all parts, 1,024 calibration images, one thread
    python benchmarks/levels.py --batches 4 --images 9977 --parts build,accuracy

Parts: build (seconds, file), accuracy (top-1 of the stitched networks, no fine-tuning), evaluate (black box), latency
(table against the network itself), memory. Calibration on training images, scores on test images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import models
import networks
import numpy as np
import torch

import prunesolve as ps
from prunesolve.bridges.torch.levels import Levels
from prunesolve.solvers import get

PARTS = ("build", "accuracy", "evaluate", "latency", "memory")


def built(network: torch.nn.Module, data: list[Any]) -> Levels:
    groups = ps.find_groups(network, data[0][0][:2], layers=networks.INNER).groups
    wall, cpu = time.perf_counter(), time.process_time()
    levels = Levels.build(network, data, groups)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "levels.npz"
        levels.save(path)
        began = time.perf_counter()
        Levels.load(path, network)
        told = f"{path.stat().st_size / 2**20:.1f} MiB, loaded in {time.perf_counter() - began:.2f} s"
    print(f"build: {levels.n} layers, {levels.meta['samples']} images, {wall:.1f} s ({cpu:.1f} s of processor); {told}")
    return levels


def accuracy(levels: Levels, data: list[Any], images: int) -> None:
    """Uniform counts and counts of the additive errors, at the same number of units and at the same parameters."""
    units = [c.astype(float) for c in levels.counts]
    print(f"{'units removed':<15}{'uniform':>9}{'errors':>9}{'losses':>9}   top-1 % on {images} test images")
    losses = levels.losses(data[:2])
    solver = get("dynamic-programming")
    for removed in (0.36, 0.5, 0.7):
        uniform = levels.uniform(1 - removed)
        budget = sum(c[s] for c, s in zip(units, uniform, strict=True))
        rows = [uniform]
        for error in (levels.error, losses):
            rows.append(solver.solve(ps.LevelChoice(error, units, budget)).solution)
        scores = [networks.cifar_accuracy(levels.network(row), images) for row in rows]
        print(f"{removed:<15.0%}" + "".join(f"{score:>9.2f}" for score in scores), flush=True)


def evaluations(levels: Levels, data: list[Any]) -> None:
    """Seconds of a stitched network that was never asked for, at random and next to the last one."""
    rng = np.random.default_rng(0)
    print(f"{'black box':<12}{'random tuples':>16}{'level switches':>16}   ms an evaluation of {len(data)} batches")
    for dtype in (torch.float32, torch.bfloat16):
        box = levels.black_box(data, dtype=dtype)
        row = levels.uniform(0.5)
        box.value(row)
        anywhere = [rng.integers(row // 2, levels.dense + 1) for _ in range(5)]
        near = []
        for _ in range(5):
            other = row.copy()
            one, two = rng.choice(levels.n, 2, replace=False)
            other[one], other[two] = other[one] - 1, other[two] + 1
            near.append(other)
        times = []
        for rows in (anywhere, near):
            began = time.perf_counter()
            for each in rows:
                box.value(each)
            times.append(1000 * (time.perf_counter() - began) / len(rows))
        print(f"{str(dtype).removeprefix('torch.'):<12}" + "".join(f"{t:>16.0f}" for t in times), flush=True)


def latencies(levels: Levels, data: list[Any], batch: int) -> None:
    from torch.utils.benchmark import Timer

    example = data[0][0][:batch]
    began = time.perf_counter()
    table = levels.time(example, seconds=0.05)
    print(f"latency: batch {batch}, table in {time.perf_counter() - began:.1f} s")
    choice, rng, pairs = levels.choice("latency"), np.random.default_rng(0), []
    for share in np.linspace(0.1, 1.0, 10):
        row = np.clip(levels.uniform(share) + rng.integers(-2, 3, levels.n), 0, levels.dense)
        network = levels.network(row).eval()
        with torch.inference_mode():
            timer = Timer("f(x)", globals={"f": network, "x": example}, num_threads=torch.get_num_threads())
            network(example)
            pairs.append((choice.spent(row), min(timer.blocked_autorange(min_run_time=0.5).times)))
    told, true = np.array(pairs).T
    ratio = told / true
    print(f"  table / measured {ratio.min():.2f} to {ratio.max():.2f}, correlation {np.corrcoef(told, true)[0, 1]:.3f}")
    print(f"  dense network {1e3 * table.notes['whole']:.2f} ms, its layers alone {1e3 * table.notes['layers']:.2f} ms")


def memory(levels: Levels) -> None:
    choice = levels.choice("memory")
    for share in (0.25, 0.5, 1.0):
        kib = choice.spent(levels.uniform(share)) / 2**10
        print(f"memory: {share:.0%} of the inner channels, peak {kib:.0f} KiB a sample")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=8, help="calibration batches of 128 images")
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--draw", type=int, default=0, help="seed of the calibration draw")
    parser.add_argument("--batch", type=int, default=16, help="images a batch for the latency")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    network, data = models.resnet20(), networks.cifar_calibration(asked.draw)[: asked.batches]
    levels = built(network, data)
    parts = asked.parts.split(",")
    if "accuracy" in parts:
        accuracy(levels, data, asked.images)
    if "evaluate" in parts:
        evaluations(levels, data)
    if "latency" in parts:
        latencies(levels, data, asked.batch)
    if "memory" in parts:
        memory(levels)


if __name__ == "__main__":
    main()
