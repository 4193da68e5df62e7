"""Two trained networks made one: accuracy against the share alpha of every layer that stays apart.

    python benchmarks/fusion.py                          all cases, methods, alphas and repairs that are not on disk yet
    python benchmarks/fusion.py --case mnist,even-odd --method activations,both
    python benchmarks/fusion.py --table --plot           from the rows on disk alone

Cases: `mnist` and `cifar` are public pairs beside the checkout (CIFAR-10's two read differently normalised inputs);
`even-odd` and `digit-4` train two specialists 784-100-100-100-10 here: on the even and the odd digits; on all fours and
a tenth of the rest, and on the other nine tenths. Couplings, repairs and refits see training images without labels,
scores are those of test images. Methods: `naive` averages the weights as they stand; `rebasin` permutes first;
`activations`, `weights` (greedy), `weights fixed` and `both` (fixed point) are partial fusion; `clusters` clusters the
ensemble's neurons; `search` chooses alpha layer by layer within the parameters of the even one; `widened` is the first
network with alpha n random units a layer; `ensemble` averages the outputs. Rows go to benchmarks/out/fusion.jsonl
and are not computed again.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunesolve import solvers
from prunesolve.bridges.torch._inputs import Renormalised, SideBySide
from prunesolve.bridges.torch.batchnorm import recalibrate_batchnorm
from prunesolve.bridges.torch.data import Batches
from prunesolve.bridges.torch.fusion import Ensemble, Pair
from prunesolve.bridges.torch.fusion_widths import search_widths
from prunesolve.formulations.partial_fusion import Coupling

ROWS = Path(__file__).parent / "out" / "fusion.jsonl"
ALPHAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
SEARCHED = (0.2, 0.4, 0.6)
PARTIAL: dict[str, dict[str, Any]] = {
    "activations": {"features": "activations", "sweeps": 0},
    "weights": {"features": "weights", "sweeps": 0},
    "weights fixed": {"features": "weights", "sweeps": 10},
    "both": {"features": "both", "sweeps": 10},
}
AUTO = solvers.get("auto")
Inputs = tuple[Any, Any]


@dataclass(frozen=True)
class Case:
    """Two networks with data normalised for the first."""

    networks: Callable[[], tuple[nn.Module, nn.Module]]
    data: Callable[[], tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]  # calibration, test
    inputs: Inputs | None = None

    @cached_property
    def pair(self) -> tuple[nn.Module, nn.Module]:
        return self.networks()

    @cached_property
    def sets(self) -> tuple[Batches, Batches]:
        """Calibration and test."""
        calibration, test = self.data()
        return Batches(calibration), Batches(test, 500)

    @cached_property
    def side(self) -> SideBySide | None:
        return None if self.inputs is None else SideBySide(*self.inputs)

    @cached_property
    def ensemble(self) -> nn.Module:
        return Ensemble(self.pair, (0.5, 0.5), self.inputs).eval()

    def ready(self, features: str, sweeps: int) -> Pair:
        read = self.sets[0] if self.side is None else Batches(Renormalised(self.sets[0], self.side))
        return Pair(self.pair, (self.sets[0], read), 0.5, self.side, features, sweeps, AUTO, False, 0)


# -- cases


def mnist_images(file: str) -> tuple[Tensor, Tensor]:
    with np.load(models.SHARED / file) as held:
        pixels = torch.from_numpy(held["images"]).float()[:, None] / 255
        return (pixels - 0.1307) / 0.3081, torch.from_numpy(held["labels"]).long()


def mnist_data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """2,000 training images and all test images."""
    images, labels = mnist_images("mnist_train_10k.npz")
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(images))[:2000])
    return (images[chosen], labels[chosen]), mnist_images("mnist_test.npz")


def mnist_pair() -> tuple[nn.Module, nn.Module]:
    return models.mlp(), models.loaded(models.MnistMLP(), "mnist_mlp_1.pt")


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def cifar_images(file: str) -> tuple[Tensor, Tensor]:
    """Normalised for resnet20_a."""
    with np.load(models.SHARED / file) as held:
        pixels = torch.from_numpy(held["images"]).float() / 255
        images = (pixels - torch.tensor(IMAGENET[0])) / torch.tensor(IMAGENET[1])
        return images.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(held["labels"]).long()


def cifar_data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """512 training images and all test images."""
    images, labels = cifar_images("cifar10_train_5k.npz")
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(images))[:512])
    return (images[chosen], labels[chosen]), cifar_images("cifar10_test.npz")


def cifar_pair() -> tuple[nn.Module, nn.Module]:
    return models.resnet20(), models.loaded(models.CifarResNet(20), "resnet20_b.pt")


def specialists(mine: Callable[[Tensor, np.random.Generator], Tensor]) -> tuple[nn.Module, nn.Module]:
    """Two MLPs trained on the images that `mine` gives the first, and on the others."""
    images, labels = mnist_images("mnist_train_10k.npz")
    rng = np.random.default_rng(0)
    order = torch.from_numpy(rng.permutation(len(images))[2000:])  # the first 2,000 calibrate
    images, labels = images[order], labels[order]
    first = mine(labels, rng)
    return trained(images[first], labels[first], 0), trained(images[~first], labels[~first], 1)


def trained(images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """784-100-100-100-10 without biases, 5 epochs of Adam at 1e-3."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = (784, 100, 100, 100, 10)
        layers: list[nn.Module] = [nn.Flatten()]
        for reads, makes in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(reads, makes, bias=False), nn.ReLU()]
        network = nn.Sequential(*layers[:-1])
        optimiser = torch.optim.Adam(network.parameters(), 1e-3)
        for _ in range(5):
            for rows in torch.randperm(len(labels)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(network(images[rows]), labels[rows]).backward()
                optimiser.step()
    return network.eval()


def even_first(labels: Tensor, _: np.random.Generator) -> Tensor:
    return labels % 2 == 0


def fours_first(labels: Tensor, rng: np.random.Generator) -> Tensor:
    return (labels == 4) | torch.from_numpy(rng.random(len(labels)) < 0.1)


CASES = {
    "mnist": Case(mnist_pair, mnist_data),
    "cifar": Case(cifar_pair, cifar_data, (IMAGENET, CIFAR)),
    "even-odd": Case(lambda: specialists(even_first), mnist_data),
    "digit-4": Case(lambda: specialists(fours_first), mnist_data),
}


# -- methods: each yields (alpha, repair, network, facts)


Found = tuple[float, str, nn.Module, dict[str, Any]]
Wanted = Callable[[float, str], bool]


def single(case: Case, wanted: Wanted) -> Iterator[Found]:
    """Each network by itself; the second behind its own normalisation."""
    for k, network in enumerate(case.pair):
        if wanted(float(k), ""):
            weights = (1.0, 0.0) if k == 0 else (0.0, 1.0)
            size = sum(p.numel() for p in network.parameters())
            yield float(k), "", Ensemble(case.pair, weights, case.inputs).eval(), {"params": size}


def ensemble(case: Case, wanted: Wanted) -> Iterator[Found]:
    if wanted(1.0, ""):
        yield 1.0, "", case.ensemble, {}


def naive(case: Case, wanted: Wanted) -> Iterator[Found]:
    pair = case.ready("weights", 0)
    couplings = {group.name: Coupling.identity(group.size) for group in pair.axes[0].groups}
    yield from repaired(case, pair, couplings, 0.0, wanted)


def rebasin(case: Case, wanted: Wanted) -> Iterator[Found]:
    """Git Re-Basin: one permutation for each group."""
    from prunesolve.bridges.torch.rebasin import match_weights

    pair = case.ready("weights", 0)
    orders = match_weights(*case.pair, case.sets[0].example())
    couplings = {name: Coupling.permutation(order) for name, order in orders.items()}
    yield from repaired(case, pair, couplings, 0.0, wanted)


def clusters(case: Case, wanted: Wanted) -> Iterator[Found]:
    """Clusters of both networks' neurons, as many as the partial fusion has."""
    from prunesolve.bridges.torch.merging import merge_ensemble

    for alpha in ALPHAS:
        for refit in (False, True):
            if case.inputs is None and wanted(alpha, "refit" if refit else ""):
                merged = merge_ensemble(list(case.pair), case.sets[0], keep=(1 + alpha) / 2, refit=refit)
                yield alpha, "refit" if refit else "", merged.model, {}


def partial_fusion(case: Case, wanted: Wanted, features: str, sweeps: int) -> Iterator[Found]:
    pair = case.ready(features, sweeps)
    for alpha in ALPHAS:
        if any(wanted(alpha, repair) for repair in repairs(case)):
            began = time.perf_counter()
            found = pair.align(dict.fromkeys(pair.groups, alpha))
            told = {"aligned in": time.perf_counter() - began, "objective": found.objective[-1]}
            yield from repaired(case, pair, found.couplings, alpha, wanted, told)


def search(case: Case, wanted: Wanted) -> Iterator[Found]:
    pair = case.ready("activations", 0)
    for alpha in SEARCHED:
        for refit in (False, True):
            if wanted(alpha, "refit" if refit else ""):
                even = pair.fused(pair.align(dict.fromkeys(pair.groups, alpha)).couplings)
                limit = sum(p.numel() for p in even.parameters())
                widths = search_widths(pair, limit, refit=refit)
                network = pair.fused(pair.align(widths.alphas).couplings, refit=refit)
                yield alpha, "refit" if refit else "", network, {"alphas": widths.alphas, "search": widths.report}


def widened(case: Case, wanted: Wanted) -> Iterator[Found]:
    """The first network with random units beside its own; refit: its last layer fitted to the ensemble's outputs."""
    noise = copy.deepcopy(case.pair[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in noise.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)):
                module.reset_parameters()
    pair = Pair((case.pair[0], noise), (case.sets[0], case.sets[0]), 0.0, None, "activations", 0, AUTO, False, 0)
    for alpha in ALPHAS[1:]:
        if not any(wanted(alpha, repair) for repair in ("", "refit")):
            continue
        couplings = {}
        for group in pair.axes[0].groups:
            joined = np.arange(group.size - round(alpha * group.size))
            whole = Coupling.matched(joined, joined, group.size, group.size)
            couplings[group.name] = whole
        network = pair.fused(couplings)
        yield alpha, "", network, {}
        yield alpha, "refit", refitted_output(copy.deepcopy(network), case), {}


@torch.no_grad()
def refitted_output(network: nn.Module, case: Case, ridge: float = 1e-3) -> nn.Module:
    """The network with its last layer fitted by least squares to the ensemble's outputs."""
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    read: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _m, args: read.append(args[0].double()))
    wanted = torch.cat([case.ensemble(x).double() for x, _ in case.sets[0]])
    for x, _ in case.sets[0]:
        network(x)
    handle.remove()
    features = torch.cat(read)
    ones = features.new_ones(len(features), 1 if last.bias is not None else 0)
    design = torch.cat([features, ones], 1)
    start = last.weight.double() if last.bias is None else torch.cat([last.weight, last.bias[:, None]], 1).double()
    gram = design.T @ design / len(design)
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    change = torch.linalg.solve(gram, design.T @ (wanted - design @ start.T) / len(design)).T
    last.weight += change[:, : last.in_features].to(last.weight)
    if last.bias is not None:
        last.bias += change[:, -1].to(last.bias)
    return network


def repairs(case: Case) -> tuple[str, ...]:
    """What may follow the fusion."""
    norms = any(isinstance(m, nn.BatchNorm2d) for m in case.pair[0].modules())
    return ("", "bn", "refit", "refit, bn") if norms else ("", "refit")


def repaired(
    case: Case, pair: Pair, couplings: Any, alpha: float, wanted: Wanted, told: dict[str, Any] | None = None
) -> Iterator[Found]:
    """The fused network as it is and after every repair."""
    for refit in ("", "refit"):
        names = [name for name in repairs(case) if ("refit" in name) == bool(refit) and wanted(alpha, name)]
        if not names:
            continue
        began = time.perf_counter()
        network = pair.fused(couplings, refit=bool(refit))
        facts = dict(told or {}) | {"made in": time.perf_counter() - began}
        for name in names:
            made = recalibrate_batchnorm(copy.deepcopy(network), case.sets[0]) if "bn" in name else network
            yield alpha, name, made, facts


MADE: dict[str, Callable[[Case, Wanted], Iterator[Found]]] = {
    "single": single,
    "naive": naive,
    "rebasin": rebasin,
    **{name: functools.partial(partial_fusion, **options) for name, options in PARTIAL.items()},
    "clusters": clusters,
    "search": search,
    "widened": widened,
    "ensemble": ensemble,
}


# -- rows


@torch.inference_mode()
def score(network: nn.Module, test: Batches, images: int, dtype: torch.dtype) -> dict[str, Any]:
    """Accuracy in % and cross-entropy on the first test images."""
    judged = copy.deepcopy(network).eval().to(dtype)
    right, loss, count = 0, 0.0, 0
    for x, y in test:
        x, y = x[: images - count], y[: images - count]
        if len(y):
            outputs = judged(x.to(dtype)).float()
            right += int((outputs.argmax(1) == y).sum())
            loss += float(F.cross_entropy(outputs, y, reduction="sum"))
            count += len(y)
    return {"accuracy": 100 * right / count, "loss": loss / count, "images": count, "dtype": str(dtype)[6:]}


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def compute(asked: argparse.Namespace) -> None:
    ROWS.parent.mkdir(exist_ok=True)
    scored = {"asked": asked.images, "dtype": asked.dtype}
    if any(r["case"] in asked.case and {k: r[k] for k in scored} != scored for r in rows()):
        raise SystemExit(f"{ROWS} holds rows of other images or another dtype; delete them, or ask for the same")
    done = {(r["case"], r["method"], r["alpha"], r["repair"]) for r in rows()}
    for name, method in itertools.product(asked.case, asked.method):

        def wanted(alpha: float, repair: str, key: tuple[str, str] = (name, method)) -> bool:
            chosen = (asked.repair is None or repair in asked.repair) and (asked.alpha is None or alpha in asked.alpha)
            return chosen and (*key, alpha, repair) not in done

        began = time.perf_counter()
        for alpha, repair, network, facts in MADE[method](CASES[name], wanted):
            told = {"case": name, "method": method, "alpha": alpha, "repair": repair}
            told |= {"params": sum(p.numel() for p in network.parameters())} | facts
            told |= {"seconds": time.perf_counter() - began}
            told |= score(network, CASES[name].sets[1], asked.images, getattr(torch, asked.dtype))
            told["asked"] = asked.images
            with ROWS.open("a") as file:
                file.write(json.dumps(told) + "\n")
            print({k: v for k, v in told.items() if k not in ("alphas", "search")}, flush=True)
            began = time.perf_counter()


# -- what is shown


def table(names: list[str]) -> None:
    """Accuracy by case, method and repair; one column an alpha."""
    found = rows()
    for name in names:
        here = {(r["method"], r["repair"], r["alpha"]): r for r in found if r["case"] == name}
        if not here:
            continue
        some = next(iter(here.values()))
        one = here.get(("single", "", 0.0), some)["params"]
        print(
            f"\n{name}: accuracy in % of {some['images']} test images, {some['dtype']}; one network {one:,} parameters"
        )
        sizes = [here.get(("activations", "", alpha)) for alpha in ALPHAS]
        print("| method | repair | " + " | ".join(f"{alpha:g}" for alpha in ALPHAS) + " |")
        print("|---|---|" + "---|" * len(ALPHAS))
        print("| parameters of one | | " + " | ".join(_cell(r and r["params"] / one) for r in sizes) + " |")
        for method, repair in dict.fromkeys((m, r) for m in MADE for (n, r, _) in here if n == m):
            cells = [_cell(here.get((method, repair, alpha), {}).get("accuracy")) for alpha in ALPHAS]
            print(f"| {method} | {repair} | " + " | ".join(cells) + " |")
        for (_, repair, alpha), r in sorted(item for item in here.items() if item[0][0] == "search"):
            print(f"search at {alpha:g} {repair}: {r['alphas']}, judged {r['search']}")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.2f}"


# Okabe and Ito's colours
CURVES = {
    ("weights", ""): ("#999999", "-", "by weights, greedy"),
    ("weights fixed", ""): ("#56B4E9", "-", "by weights, fixed point"),
    ("both", ""): ("#0072B2", "-", "by both, fixed point"),
    ("activations", ""): ("#E69F00", "-", "by activations"),
    ("activations", "bn"): ("#E69F00", "--", "by activations, BatchNorm recalibrated"),
    ("activations", "refit"): ("#D55E00", "-", "by activations, refit"),
    ("clusters", ""): ("#009E73", "-", "clusters of the ensemble"),
    ("search", ""): ("#000000", "", "alpha chosen by layer"),
    ("search", "refit"): ("#CC79A7", "", "alpha chosen by layer, refit"),
}


def plot(names: list[str], path: Path) -> None:
    """Accuracy against the parameters, one panel a case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = rows()
    names = [name for name in names if any(r["case"] == name for r in found)]
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 4.0), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        here = [r for r in found if r["case"] == name]
        one = next(r["params"] for r in here if r["method"] == "single")
        for (method, repair), (colour, line, label) in CURVES.items():
            points = sorted(
                (r["params"] / one, r["accuracy"]) for r in here if (r["method"], r["repair"]) == (method, repair)
            )
            if points:
                style = {"linestyle": line} if line else {"linestyle": "", "marker": "D"}
                axis.plot(*zip(*points, strict=True), color=colour, label=label, markersize=4, **style)
        for k, r in enumerate(r for r in here if r["method"] == "single"):
            axis.axhline(
                r["accuracy"], color="0.6", linewidth=0.8, linestyle=":", label="the two networks" if not k else None
            )
        axis.set(title=name, xlabel="parameters, of one network", ylabel="accuracy, %")
        axis.set_ylim(bottom=FLOORS[name])
        axis.spines[["top", "right"]].set_visible(False)
    labelled = {label: h for axis in axes[0] for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = max(1, int(3.4 * len(names) / 2.8))
    figure.legend(labelled.values(), labelled, loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(path)
    print(f"wrote {path}")


FLOORS = {"mnist": 95.0, "cifar": 0.0, "even-odd": None, "digit-4": None}


def words(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=words, default=list(CASES), help="comma-separated")
    parser.add_argument("--method", type=words, default=list(MADE), help="comma-separated")
    parser.add_argument("--alpha", type=numbers, help="comma-separated; default all")
    parser.add_argument("--repair", type=lambda text: text.split(";"), help='";"-separated, "" for none; default all')
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the scores alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of what is on disk and compute nothing")
    parser.add_argument("--plot", nargs="?", const="docs/fusion.svg", help="write the plot and compute nothing")
    asked = parser.parse_args()
    for kind, given, known in (("case", asked.case, CASES), ("method", asked.method, MADE)):
        if unknown := [word for word in given if word not in known]:
            parser.error(f"--{kind}: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    torch.set_num_threads(asked.threads)
    if not asked.table and not asked.plot:
        compute(asked)
    if asked.plot:
        plot(asked.case, Path(asked.plot))
    if not asked.plot or asked.table:
        table(asked.case)


if __name__ == "__main__":
    main()
