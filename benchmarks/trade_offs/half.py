"""ResNets at half the multiply-adds: top-1 of the removed network, after the refit, after one short fine-tuning.

Every method says which inner channels stay, from the same 1,024 calibration images and, where it searches, from 128
others. What follows is the same for all: removal, `ps.refit` on 512 of the calibration images, then a few epochs of
distillation from the dense network on the 5,000 training images. Scores are top-1 on exact test images.
"""

from __future__ import annotations

import copy
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import models
import networks
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunesolve as ps
from prunesolve import solvers
from prunesolve.bridges.torch.levels import Levels
from prunesolve.bridges.torch.subnetworks import Subnetworks
from prunesolve.formulations import HybridQubo, L1Qubo, Reconstruction

from .cases import OUT, Bench
from .units import POPULATION, spread

BUDGET, BATCH, RATE = 0.5, 128, 0.005
REFIT_BATCHES = 4
CRITERIA = {"L1": L1Qubo(beta=0.0), "Taylor": HybridQubo(alpha=1.0, beta=0.0), "reconstruction": Reconstruction()}


@dataclass(frozen=True)
class Case:
    """A network and a draw, with what several methods need: statistics and the level database."""

    name: str
    draw: int
    evaluations: int

    @property
    def bench(self) -> Bench:
        return Bench(self.name, self.draw, refit=True)

    @cached_property
    def network(self) -> nn.Module:
        return self.bench.network

    @cached_property
    def calibration(self) -> list[tuple[Tensor, Tensor]]:
        return self.bench.source.measured(self.draw)

    @cached_property
    def searched(self) -> list[tuple[Tensor, Tensor]]:
        return self.bench.source.searched(self.draw)

    @cached_property
    def levels(self) -> Levels:
        return levels(self.bench)

    def within(self, rows: Any, losses: Any, shares: Any) -> Any:
        """The row of the least loss among those that the budget admits."""
        fits = np.asarray(shares) <= BUDGET + 1e-9
        return rows[int(np.argmin(np.where(fits, losses, np.inf)))]


def levels(bench: Bench) -> Levels:
    """Built once for each draw, then read from benchmarks/out."""
    path = OUT / "levels" / f"{bench.name}-{bench.draw}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        groups = bench.stats.groups
        Levels.build(bench.network, bench.source.measured(bench.draw), groups, progress=False).save(path)
    return Levels.load(path, bench.network)


# -- methods: a case in, (n,) kept units out


def criterion(case: Case, name: str) -> Any:
    problem = CRITERIA[name].encode(case.bench.stats, macs=BUDGET)
    return ps.solve(problem, solver="swap-annealing", seed=case.draw).solution


def uniform(case: Case, _: str) -> Any:
    """The same share of every layer, the largest that the budget admits, then a level more layer by layer."""
    choice = case.levels.choice("macs", BUDGET)
    rows = [case.levels.uniform(share) for share in np.linspace(0.02, 1.0, 200)]
    row = [row for row in rows if choice.is_feasible(row)][-1]
    for more in np.eye(len(row), dtype=int):
        row = row + more if choice.is_feasible(np.minimum(row + more, case.levels.dense)) else row
    return case.levels.bits(np.minimum(row, case.levels.dense))


def exact(case: Case, name: str) -> Any:
    error = case.levels.losses(case.searched, dtype=torch.bfloat16) if name == EXACT_LOSSES else None
    choice = case.levels.choice("macs", BUDGET, error=error)
    return case.levels.bits(ps.solve(choice, solver="dynamic-programming").solution)


def refined(case: Case, name: str) -> Any:
    """A search over levels for the least true loss of the stitched network."""
    box = case.levels.black_box(case.searched, "macs", BUDGET, dtype=torch.bfloat16)
    return case.levels.bits(ps.solve(box, solver=name, seed=case.draw, evaluation_limit=case.evaluations).solution)


def evolved_units(case: Case, _: str) -> Any:
    from .units import seeds

    objectives = case.bench.objectives("macs")
    within = ps.Selections(case.bench.stats.n, CRITERIA["L1"].encode(case.bench.stats, macs=BUDGET).constraints)
    starts = seeds(case.bench, objectives, BUDGET)
    problem = case.bench.problem(objectives, starts[within.is_feasible(starts)]).replace(space=within)
    solver = solvers.get("nsga2", population=POPULATION)
    found = solver.solve(problem, seed=case.draw, evaluation_limit=case.evaluations).front
    return case.within(found.solutions, *found.objectives.T)


def evolved_levels(case: Case, _: str) -> Any:
    dynamic = solvers.get("dynamic-programming", front=True)
    problem = case.levels.multi_objective(
        case.searched,
        ("loss", "macs"),
        budget=BUDGET,
        error=case.levels.losses(case.searched, dtype=torch.bfloat16),
        solver=dynamic,
        dtype=torch.bfloat16,
    )
    solver = solvers.get("nsga2", population=POPULATION)
    found = solver.solve(problem, seed=case.draw, evaluation_limit=case.evaluations).front
    shares = found.objectives[:, 1] / case.levels.total("macs")
    return case.levels.bits(case.within(found.solutions, found.objectives[:, 0], shares))


def divided(case: Case, _: str) -> Any:
    split = Subnetworks(
        case.network,
        case.searched,
        case.bench.stats.groups,
        resource="macs",
        refit=True,
        dtype=torch.bfloat16,
    )
    composite = split.composite()
    found = ps.solve(composite, solver="emo-dir", seed=case.draw, evaluation_limit=case.evaluations).front
    dense = composite.joint.values(np.asarray(composite.dense))[1]
    return case.within(found.solutions, found.objectives[:, 0], found.objectives[:, 1] / dense)


EXACT_LOSSES = "levels, exact on single-layer losses"
METHODS: dict[str, Callable[[Case, str], Any]] = {
    **dict.fromkeys(CRITERIA, criterion),
    "levels, uniform": uniform,
    "levels, exact on the proxy": exact,
    EXACT_LOSSES: exact,
    "level-switch": refined,
    "coefficient-search": refined,
    "nsga2 over levels": evolved_levels,
    "nsga2 over units": evolved_units,
    "emo-dir over units": divided,
}


# -- the recipe that is the same for all


def tuned(network: nn.Module, dense: nn.Module, epochs: int, seed: int) -> nn.Module:
    """A copy after some epochs on the 5,000 training images: the dense network's answers at temperature 2 are learned.

    SGD, cosine from 0.005, flips and shifts. Labels instead of answers made the refitted network worse on test images,
    and four times the rate undid the refit.
    """
    torch.manual_seed(seed)
    with np.load(models.SHARED / "cifar10_train_5k.npz") as file:
        images = networks.normalised(file["images"])
    work = copy.deepcopy(network).to(memory_format=torch.channels_last).train()
    teacher = copy.deepcopy(dense).to(memory_format=torch.channels_last).eval()
    optimiser = torch.optim.SGD(work.parameters(), RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(images)).split(BATCH)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(batches))
    for batch in batches:
        shown = _shifted(images[batch]).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                wanted = teacher(shown)
            given = work(shown)
        softened = [(answer.float() / 2).log_softmax(1) for answer in (given, wanted)]
        optimiser.zero_grad()
        F.kl_div(*softened, log_target=True, reduction="batchmean").mul(4).backward()
        optimiser.step()
        schedule.step()
    return work.eval()


def _shifted(images: Tensor) -> Tensor:
    """Each image flipped or not and moved by up to four pixels."""
    flips = torch.rand(len(images)) < 0.5
    images = torch.where(flips[:, None, None, None], images.flip(3), images)
    padded, (down, right) = F.pad(images, (4, 4, 4, 4)), torch.randint(0, 9, (2, len(images)))
    moved = [
        image[:, i : i + 32, j : j + 32] for image, i, j in zip(padded, down.tolist(), right.tolist(), strict=True)
    ]
    return torch.stack(moved)


@torch.inference_mode()
def accuracy(network: nn.Module, count: int) -> float:
    """Top-1 in % on the first exact test images, in bfloat16, which moves it by a few tenths."""
    work = copy.deepcopy(network).to(torch.bfloat16).eval()
    with np.load(models.SHARED / "cifar10_test.npz") as file:
        chosen = np.flatnonzero(file["lossless"])[:count]
        images, labels = networks.normalised(file["images"][chosen]), torch.from_numpy(file["labels"][chosen]).long()
    batches = zip(images.to(torch.bfloat16).split(500), labels.split(500), strict=True)
    return 100 * sum(int((work(x).argmax(1) == y).sum()) for x, y in batches) / len(labels)


def jobs(asked: Namespace) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    for draw in range(asked.draws):
        for name in asked.network.split(","):
            case = Case(name, draw, asked.evaluations)
            for method in METHODS:
                key = {"network": name, "draw": draw, "method": method, "limit": asked.evaluations}
                key |= {"images": asked.images, "epochs": asked.epochs}
                yield key, lambda case=case, method=method: row(case, method, asked.images, asked.epochs)


def row(case: Case, method: str, images: int, epochs: int) -> dict[str, Any]:
    began = time.perf_counter()
    keep = METHODS[method](case, method)
    seconds = time.perf_counter() - began
    stats = case.bench.stats
    selection = ps.Selection(stats.groups, keep)
    removed = ps.shrink(case.network, selection, case.calibration[0][0][:2])
    refitted = ps.refit(case.network, removed, case.calibration[:REFIT_BATCHES], selection)
    return {
        "seconds": seconds,
        "macs": stats.spent("macs", keep) / stats.total("macs"),
        "params": stats.spent("params", keep) / stats.total("params"),
        "counts": [kept for kept, _ in selection.counts.values()],
        "removed": accuracy(removed, images),
        "refitted": accuracy(refitted, images),
        "tuned": accuracy(tuned(refitted, case.network, epochs, case.draw), images),
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    for where in dict.fromkeys((r["network"], r["limit"], r["images"], r["epochs"]) for r in rows):
        here = [r for r in rows if (r["network"], r["limit"], r["images"], r["epochs"]) == where]
        yield f"\n{where[0]}, {BUDGET:.0%} of the multiply-adds, {where[1]} evaluations where a method searches;"
        yield f"top-1 in % on {where[2]} test images, mean ± half the range; fine-tuned for {where[3]} epochs\n"
        yield "| method | draws | MACs | parameters | removed | refitted | fine-tuned | seconds to choose |"
        yield "|---|---|---|---|---|---|---|---|"
        for method in dict.fromkeys(r["method"] for r in here):
            group = [r for r in here if r["method"] == method]
            cells = [method, str(len(group))]
            cells += [f"{np.mean([r[what] for r in group]):.3f}" for what in ("macs", "params")]
            cells += [spread([r[what] for r in group], 2) for what in ("removed", "refitted", "tuned")]
            yield "| " + " | ".join([*cells, f"{np.mean([r['seconds'] for r in group]):.0f}"]) + " |"
