"""Generalised pruning of one network: neurons deleted, transported onto those kept, or clustered, at equal widths.

    python benchmarks/merging.py                     every network, width, method and draw that is not on disk yet
    python benchmarks/merging.py --table --plot      from the rows on disk alone; the plot goes to docs/merging.svg
    python benchmarks/merging.py --clustering        inertia at equal time: ours, scipy's Ward, scikit-learn's KMeans

Networks: the two MNIST MLPs beside the checkout (784-400-200-100-10, ReLU, no biases); an MLP 64-96-64-10 (biases,
GELU) and a convolutional network 16-32-48-10 (BatchNorm, ReLU, pooling, flattened maps) of scikit-learn's 8 x 8 digits,
trained here. Every hidden layer keeps the same share of its neurons; BatchNorm is not recalibrated.
Calibration: 1,000 training images a draw, without labels (Taylor alone uses them); scores: all 10,000 test images, or
the 597 digits that were not trained on. Before and after a least-squares refit on the calibration images.
Rows go to benchmarks/out/merging.jsonl and are not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunesolve import solvers
from prunesolve.bridges.torch._likeness import distances, moments
from prunesolve.bridges.torch.data import Batches
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.bridges.torch.merging import merge, refit_merged
from prunesolve.problems import Clustering

ROWS = Path(__file__).parent / "out" / "merging.jsonl"
PLOT = Path(__file__).parents[1] / "docs" / "merging.svg"
WIDTHS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
METHODS: dict[str, dict[str, Any]] = {
    "delete, L2": {"how": "delete", "criterion": "l2"},
    "delete, std": {"how": "delete", "criterion": "std"},
    "delete, Taylor": {"how": "delete", "criterion": "taylor"},
    "transport": {"how": "transport"},
    "cluster, activations": {"how": "cluster", "features": "activations", "importance": "uniform"},
    "cluster": {"how": "cluster"},
}
CALIBRATION = 1000
NETWORKS = ("mnist_mlp_0", "mnist_mlp_1", "digits", "digits_cnn")
Split = tuple[Tensor, Tensor]


class Digits(nn.Module):
    """64-96-64-10 with GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


class DigitsCnn(nn.Sequential):
    """Three convolutions, two of them with BatchNorm, and a linear layer on 2 x 2 maps."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 10),
        )  # fmt: skip


# class, shape of an image, steps of training, images a step
TRAINED: dict[str, tuple[type[nn.Module], tuple[int, ...], int, int]] = {
    "digits": (Digits, (64,), 300, 1200),
    "digits_cnn": (DigitsCnn, (8, 8), 150, 128),
}


@cache
def case(name: str) -> tuple[nn.Module, Split, Split]:
    """A network, its training and its test images."""
    if name in TRAINED:
        return _trained(*TRAINED[name])
    splits = []
    for file in ("mnist_train_10k.npz", "mnist_test.npz"):
        with np.load(models.SHARED / file) as arrays:
            images = (torch.from_numpy(arrays["images"]).float() / 255 - 0.1307) / 0.3081
            splits.append((images, torch.from_numpy(arrays["labels"]).long()))
    return models.loaded(models.MnistMLP(), f"{name}.pt"), splits[0], splits[1]


def _trained(build: type[nn.Module], shape: tuple[int, ...], steps: int, batch: int) -> tuple[nn.Module, Split, Split]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.from_numpy(data.data[order]).float().reshape(-1, *shape) / 16
    labels = torch.from_numpy(data.target[order]).long()
    train, test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])
    torch.manual_seed(0)
    network = build()
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    for _ in range(steps):
        chosen = torch.randperm(1200)[:batch]
        optimiser.zero_grad()
        F.cross_entropy(network(train[0][chosen]), train[1][chosen]).backward()
        optimiser.step()
    return network.eval(), train, test


@torch.inference_mode()
def accuracy(network: nn.Module, split: Split) -> float:
    return 100 * float((network(split[0]).argmax(1) == split[1]).double().mean())


@cache
def dense(name: str) -> float:
    network, _, test = case(name)
    return accuracy(network, test)


def calibration(split: Split, draw: int) -> Split:
    chosen = torch.from_numpy(np.random.default_rng(draw).permutation(len(split[1]))[:CALIBRATION])
    return split[0][chosen], split[1][chosen]


def row(name: str, method: str, width: float, draw: int) -> dict[str, Any]:
    network, train, test = case(name)
    data = calibration(train, draw)
    began = time.perf_counter()
    made = merge(network, data, keep=width, seed=draw, **METHODS[method])
    seconds = time.perf_counter() - began
    fitted = refit_merged(network, made, data)
    told = {"network": name, "method": method, "width": width, "draw": draw, "seconds": seconds}
    return told | {
        "dense": dense(name),
        "before": accuracy(made.model, test),
        "after": accuracy(fitted, test),
        "params": made.report["params"][0] / made.report["params"][1],
    }


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def compute(networks: list[str], draws: int) -> None:
    done = {(r["network"], r["method"], r["width"], r["draw"]) for r in rows()}
    ROWS.parent.mkdir(exist_ok=True)
    for draw in range(draws):
        for name in networks:
            for width in WIDTHS:
                for method in METHODS:
                    if (name, method, width, draw) not in done:
                        with ROWS.open("a") as file:
                            file.write(json.dumps(row(name, method, width, draw)) + "\n")


def means(name: str, key: str) -> dict[str, list[float]]:
    """{method: mean over draws at each width}, NaN where there is no row."""
    found = {}
    for method in METHODS:
        each = [
            [r[key] for r in rows() if (r["network"], r["method"], r["width"]) == (name, method, w)] for w in WIDTHS
        ]
        found[method] = [float(np.mean(values)) if values else float("nan") for values in each]
    return found


def table(networks: list[str]) -> None:
    for name in networks:
        told = [r for r in rows() if r["network"] == name]
        if not told:
            continue
        draws = len({r["draw"] for r in told})
        for key in ("before", "after"):
            print(f"\n{name}, test top-1 % {key} refit, mean of {draws} draws; dense {told[0]['dense']:.2f}")
            print(f"{'width':<22}" + "".join(f"{w:>8}" for w in WIDTHS))
            for method, values in means(name, key).items():
                print(f"{method:<22}" + "".join(f"{v:>8.2f}" for v in values))
        for key in ("before", "after"):
            found = means(name, key)
            best = np.max([v for m, v in found.items() if m.startswith("delete")], axis=0)
            gain = np.array(found["cluster"]) - best
            print(f"{'cluster - best delete':<22}" + "".join(f"{g:>+8.2f}" for g in gain) + f"   {key} refit")


def plot(networks: list[str]) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(networks), figsize=(4.2 * len(networks), 6.4), sharex=True, squeeze=False)
    for column, name in enumerate(networks):
        for line, key in enumerate(("before", "after")):
            axis = axes[line][column]
            for method, values in means(name, key).items():
                style = {"delete": ":", "transport": "--", "cluster": "-"}[method.partition(",")[0]]
                axis.plot(WIDTHS, values, style, marker="o", markersize=3, label=method)
            dense = [r["dense"] for r in rows() if r["network"] == name]
            axis.axhline(dense[0], color="black", linewidth=0.8)
            axis.set_title(f"{name}, {key} refit")
            axis.set_ylabel("test top-1 %")
            axis.set_ylim(bottom=20 if key == "before" else 80, top=100)
        axes[1][column].set_xlabel("share of the neurons kept")
    axes[0][0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})
    print(f"{PLOT.name} written")


def clustering(seconds: float) -> None:
    """Share of the inertia of one cluster that is left, by activations on 1,000 images, one thread."""
    from scipy.cluster.hierarchy import fcluster, ward
    from sklearn.cluster import KMeans

    heads = ("neurons", "clusters", "scipy ward", "s", "KMeans x 10", "s", "ward, 1 start", "s", f"ward, {seconds:g} s")
    print("network  layer" + "".join(f"{head:>14}" for head in heads))
    for name in ("mnist_mlp_0", "mnist_mlp_1"):
        network, train, _ = case(name)
        images, _ = calibration(train, 0)
        seen = _activations(network, images)
        groups = find_groups(network, images[:2]).groups
        apart = moments(network, groups, Batches(images))
        for group in groups:
            x = seen[group.name]
            table = distances(network, group, apart[group.name], {}, "activations")
            for share in (0.5, 0.25, 0.1):
                clusters = int(share * group.size)
                problem = Clustering(x, n_clusters=clusters)
                whole = problem.replace(n_clusters=1).value(np.zeros(len(x), dtype=np.int64))
                found = []
                began = time.perf_counter()
                labels = fcluster(ward(x), clusters, "maxclust")
                found += [problem.value(labels) / whole, time.perf_counter() - began]
                began = time.perf_counter()
                labels = KMeans(clusters, n_init=10, random_state=0).fit(x).labels_
                found += [problem.value(labels) / whole, time.perf_counter() - began]
                solver, from_table = solvers.get("ward"), Clustering(distances=table, n_clusters=clusters)
                once = solver.solve(from_table, evaluation_limit=1)
                found += [problem.value(once.solution) / whole, once.seconds]
                found += [problem.value(solver.solve(from_table, time_limit=seconds).solution) / whole]
                told = (group.size, clusters, *(f"{value:.5f}" for value in found))
                print(f"{name[-5:]:<9}{group.name}" + "".join(f"{value:>14}" for value in told), flush=True)


@torch.inference_mode()
def _activations(network: nn.Module, images: Tensor) -> dict[str, np.ndarray]:
    """{layer: (neurons, images)} what comes out of the ReLU."""
    found, x = {}, images.flatten(1)
    for layer in ("fc1", "fc2", "fc3"):
        x = F.relu(getattr(network, layer)(x))
        found[layer] = x.T.double().numpy().copy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--draws", type=int, default=3, help="calibration sets")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--clustering", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a clustering")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    networks = asked.networks.split(",")
    if asked.clustering:
        clustering(asked.seconds)
        return
    if not (asked.table or asked.plot):
        compute(networks, asked.draws)
    table(networks)
    if asked.plot:
        plot(networks)


if __name__ == "__main__":
    main()
