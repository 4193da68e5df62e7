"""Mutations that look at activations, on an autoencoder of the digits whose encoder and decoder are pruned jointly.

    python benchmarks/autoencoder.py                    every method, 3 seeds, 1,000 evaluations each
    python benchmarks/autoencoder.py --table --plot     from the rows on disk alone

An autoencoder 64-48-32-12-32-48-64 of scikit-learn's 8 x 8 digits is trained here for each seed. All hidden units may
go, those of the code too: 172 bits, each method's points at random densities to begin with. Objectives: squared error
on digits that were not trained on, share of the parameters. Hypervolume is the share of the box up to the error of the
mean image and all parameters; `unseen` is that of the front on digits that neither training nor search has seen.
Activations are those of training digits; a fifth of the units is silent on all of them, which "conjunctive" finds out.
Rows go to benchmarks/out/autoencoder.jsonl and are not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from trade_offs import pymoo_default
from trade_offs.objectives import Objectives, front, hypervolume

import prunesolve as ps
from prunesolve import solvers
from prunesolve.bridges.torch.activity import activity
from prunesolve.problems import MultiObjective, Selections

ROWS = Path(__file__).parent / "out" / "autoencoder.jsonl"
WIDTHS = (64, 48, 32, 12, 32, 48, 64)
TRAINED, SEARCHED = 1000, 400
POPULATION = 50
PYMOO = "pymoo's default"
METHODS: dict[str, dict[str, Any]] = {
    PYMOO: {},
    "swap": {"mutation": "swap"},
    "random": {"mutation": "random"},
    "variance": {"mutation": "variance"},
    "conjunctive": {"mutation": "conjunctive"},
    "conjunctive, exponential": {"mutation": "conjunctive", "schedule": "exponential"},
    "variance, exponential": {"mutation": "variance", "schedule": "exponential"},
}


@dataclass(frozen=True)
class Digits:
    """A seed's autoencoder and data."""

    seed: int

    @cached_property
    def images(self) -> tuple[Tensor, Tensor, Tensor]:
        """Digits (m, 64) in [0, 1] to train on, to search on, and unseen ones."""
        pixels = torch.from_numpy(load_digits().data).float() / 16
        order = torch.from_numpy(np.random.default_rng(self.seed).permutation(len(pixels)))
        return torch.split(pixels[order], [TRAINED, SEARCHED, len(pixels) - TRAINED - SEARCHED])

    @cached_property
    def network(self) -> nn.Module:
        """Trained for 150 epochs with Adam; the code, the fourth layer, is linear."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layers: list[nn.Module] = []
            for reads, makes in zip(WIDTHS, WIDTHS[1:], strict=False):
                layers += [nn.Linear(reads, makes), nn.Identity() if makes == min(WIDTHS) else nn.ReLU()]
            network = nn.Sequential(*layers[:-1], nn.Sigmoid())
            optimiser = torch.optim.Adam(network.parameters(), 2e-3)
            for _ in range(150):
                for batch in self.images[0][torch.randperm(TRAINED)].split(50):
                    optimiser.zero_grad()
                    F.mse_loss(network(batch), batch).backward()
                    optimiser.step()
        return network.eval()

    @cached_property
    def stats(self) -> ps.Statistics:
        return ps.measure(self.network, self.images[0], progress=False)

    @cached_property
    def activity(self) -> np.ndarray:
        return activity(self.network, self.images[0], self.stats.groups)

    @cached_property
    def reference(self) -> tuple[float, float]:
        """The error of the mean image, and all parameters."""
        trained, searched, _ = self.images
        return float((searched - trained.mean(0)).square().mean()), 1.0

    def objectives(self, images: Tensor) -> Objectives:
        evaluator = ps.evaluator(self.network, [(images, images)], self.stats.groups, guard=False)
        return Objectives(evaluator, self.stats)

    def problem(self, objectives: Objectives) -> MultiObjective:
        group, low = self.stats.group_of, np.ones(len(self.stats.groups), dtype=int)
        space = Selections(self.stats.n, [ps.GroupBounds(group, low, np.bincount(group))])
        return MultiObjective(
            space,
            objectives,
            ("error", "params"),
            reference=self.reference,
            groups=group,
            activity=self.activity,
            meta={"seed": self.seed},
        )


def row(digits: Digits, method: str, evaluations: int) -> dict[str, Any]:
    objectives = digits.objectives(digits.images[1])
    dense = objectives.evaluator.score(np.ones(digits.stats.n, dtype=bool))["loss"]
    began = time.perf_counter()
    if method == PYMOO:
        pymoo_default.minimised(objectives, digits.stats.group_of, evaluations, digits.seed, POPULATION)
    else:
        solver = solvers.get("nsga2", population=POPULATION, **METHODS[method])
        solver.solve(digits.problem(objectives), seed=digits.seed, evaluation_limit=evaluations)
    seconds = time.perf_counter() - began
    seen = objectives.seen
    best = front(seen)
    keys = list(objectives.log)
    keep = np.array([np.unpackbits(np.frombuffer(keys[i], np.uint8))[: digits.stats.n] for i in best], dtype=bool)
    unseen = digits.objectives(digits.images[2])(keep)
    return {
        "n": digits.stats.n,
        "dense": dense,
        "silent": int((digits.activity == 0).all(axis=0).sum()),
        "reference": digits.reference[0],
        "evaluations": len(seen),
        "seconds": seconds,
        "unseen": hypervolume(unseen, digits.reference),
        "seen": seen.round(6).tolist(),
    }


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def compute(asked: argparse.Namespace) -> None:
    ROWS.parent.mkdir(exist_ok=True)
    done = {(r["seed"], r["method"], r["limit"]) for r in rows()}
    for seed in range(asked.seeds):
        digits = Digits(seed)
        for method in METHODS:
            if (seed, method, asked.evaluations) in done:
                continue
            told = {"seed": seed, "method": method, "limit": asked.evaluations}
            found = told | row(digits, method, asked.evaluations)
            with ROWS.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print({k: v for k, v in found.items() if k != "seen"}, flush=True)


def volume(found: dict[str, Any], evaluations: int) -> float:
    """Hypervolume after so many evaluations."""
    return hypervolume(np.array(found["seen"])[:evaluations], (found["reference"], 1.0))


def table(evaluations: int) -> None:
    """Means ± half the range over the seeds; ratios to the plain swap mutation, seed by seed."""
    here = [r for r in rows() if r["limit"] == evaluations]
    silent = {r["seed"]: r["silent"] for r in here}
    print(f"silent on all training digits, seed by seed: {list(silent.values())} of {here[0]['n']} units\n")
    early = evaluations // 4
    plain = {r["seed"]: volume(r, evaluations) for r in here if r["method"] == "swap"}
    print(f"| mutation | seeds | hypervolume, {early} | hypervolume, {evaluations} | to swap | unseen | seconds |")
    print("|---|---|---|---|---|---|---|")
    for method in METHODS:
        group = [r for r in here if r["method"] == method]
        if not group:
            continue
        columns = [[volume(r, early) for r in group], [volume(r, evaluations) for r in group]]
        columns += [[volume(r, evaluations) / plain[r["seed"]] for r in group if r["seed"] in plain]]
        columns += [[r["unseen"] for r in group]]
        cells = [method, str(len(group)), *(_spread(column) for column in columns)]
        print("| " + " | ".join([*cells, f"{np.mean([r['seconds'] for r in group]):.0f}"]) + " |")


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {(max(values) - min(values)) / 2:.4f}"


# Okabe and Ito's colours
COLOURS = dict(zip(METHODS, ("#999999", "#000000", "#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7"), strict=True))


def plot(evaluations: int, path: Path) -> None:
    """Fronts of the first seed, and mean hypervolume against evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    here = [r for r in rows() if r["limit"] == evaluations]
    figure, (fronts, curves) = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained")
    for method, colour in COLOURS.items():
        group = [r for r in here if r["method"] == method]
        if not group:
            continue
        points = np.array(group[0]["seen"])
        points = points[front(points)[::-1]]
        fronts.plot(points[:, 1], points[:, 0], color=colour, label=method, drawstyle="steps-post", linewidth=1.2)
        grid = np.unique(np.linspace(POPULATION, evaluations, 60).astype(int))
        curves.plot(grid, np.mean([[volume(r, e) for e in grid] for r in group], axis=0), color=colour)
    reference = here[0]["reference"]
    fronts.set(xlabel="share of the parameters", ylabel="squared error", ylim=(0, reference), title="fronts, seed 0")
    curves.set(xlabel="evaluations", ylabel="hypervolume", title="mean over the seeds")
    for axis in (fronts, curves):
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*fronts.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=1000, help="the same for all methods")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of what is on disk and compute nothing")
    parser.add_argument("--plot", nargs="?", const="docs/autoencoder.svg", help="write the plot and compute nothing")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if not asked.table and not asked.plot:
        compute(asked)
    if asked.plot:
        plot(asked.evaluations, Path(asked.plot))
    if not asked.plot or asked.table:
        table(asked.evaluations)


if __name__ == "__main__":
    main()
