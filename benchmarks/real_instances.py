"""Pruning instances of real networks: measured once a network, encoded for several formulations and budgets.

    python benchmarks/real_instances.py                      every network, into benchmarks/out/real/*.npz
    python benchmarks/real_instances.py --network mlp,dncnn  some of them
    python benchmarks/real_instances.py --library            better values and bounds for the shipped instance library
    python benchmarks/real_instances.py --library --rebuild  its instances measured anew first

The networks and images are the public ones beside the checkout; `--library` alone needs neither. An instance's labels
are units of its network, its `meta` says the network, formulation, budget and calibration data.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import models
import networks
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

import prunesolve as ps
from prunesolve import solvers
from prunesolve.demo_networks import demo_task, load_network
from prunesolve.formulations import Fisher, Formulation, HybridQubo, L1Qubo, Reconstruction
from prunesolve.problems import BinaryQuadratic, Blocks, LowRank, Statistics
from prunesolve.problems._npz import whole_file
from prunesolve.solvers.bounds import lower_bound

OUT = Path(__file__).resolve().parent / "out" / "real"
LIBRARY = Path(__file__).resolve().parents[1] / "problems" / "instances"
KEEPS = (0.8, 0.64, 0.5, 0.3)
# the plain form, as the instances were drawn with it; its couplings are no Gram's
HYBRID = HybridQubo(beta=0.02, pairs="kept", scaled=False, squared=False)
FORMULATIONS = (Reconstruction(), Fisher(), HYBRID)
SEARCHERS, PROVERS = ("swap-annealing", "swap-tabu", "auto"), ("block-fronts", "exact")
TOLERANCE = 1e-9  # relative; below it two objectives are one

Batches = list[tuple[Tensor, Tensor]]
Budget = Mapping[str, float]


def cifar(mean: tuple[float, ...], std: tuple[float, ...], count: int, draw: int) -> Batches:
    with np.load(models.SHARED / "cifar10_train_5k.npz") as file:
        chosen = np.random.default_rng(draw).permutation(len(file["labels"]))[:count]
        images, labels = torch.from_numpy(file["images"][chosen]), torch.from_numpy(file["labels"][chosen]).long()
    inputs = ((images.float() / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).contiguous()
    return list(zip(inputs.split(128), labels.split(128), strict=True))


def mnist(draw: int) -> Batches:
    with np.load(models.SHARED / "mnist_train_10k.npz") as file:
        chosen = np.random.default_rng(draw).permutation(len(file["labels"]))[:1024]
        images, labels = torch.from_numpy(file["images"][chosen]), torch.from_numpy(file["labels"][chosen]).long()
    return list(zip(((images.float() / 255 - 0.1307) / 0.3081)[:, None].split(128), labels.split(128), strict=True))


def demo_data(task: str) -> Batches:
    return demo_task(task).data().calibration


@dataclass(frozen=True)
class Source:
    """A trained network, the layers that may lose outputs, and what it is calibrated on."""

    title: str
    network: Callable[[], torch.nn.Module]
    data: Callable[[int], Batches]
    calibration: str
    layers: list[str] | None = None


IMAGENET, CIFAR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
RESNET32 = [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in range(5)]
CROPS = "16 crops of 64 x 64 from the BSD400 training images, Gaussian noise of 25/255"
SOURCES = {
    "resnet20": Source(
        "ResNet-20 trained on CIFAR-10, inner channels of its residual blocks",
        models.resnet20,
        lambda draw: cifar(*IMAGENET, 1024, draw),
        "1,024 CIFAR-10 training images",
        networks.INNER,
    ),
    "resnet32": Source(
        "ResNet-32 trained on CIFAR-10, inner channels of its residual blocks",
        models.resnet32,
        lambda draw: cifar(*IMAGENET, 1024, draw),
        "1,024 CIFAR-10 training images",
        RESNET32,
    ),
    "densenet": Source(
        "DenseNet-BC (6, 12, 24; growth 12) trained on CIFAR-10",
        models.densenet,
        lambda draw: cifar(*CIFAR, 512, draw),
        "512 CIFAR-10 training images",
    ),
    "dncnn": Source("DnCNN trained for noise 25", models.dncnn, networks.denoising_calibration, CROPS),
    "dncnn-nobn": Source(
        "DnCNN without BatchNorm trained for noise 25", models.dncnn_nobn, networks.denoising_calibration, CROPS
    ),
    "mlp": Source("784-400-200-100-10 perceptron trained on MNIST", models.mlp, mnist, "1,024 MNIST training images"),
    "digits": Source(
        "the demo's residual network, trained on scikit-learn's handwritten digits",
        lambda: load_network("classify"),
        lambda draw: demo_data("classify"),
        "500 of the digits it was trained on",
    ),
    "denoiser": Source(
        "the demo's denoiser, trained on scikit-learn's two photographs",
        lambda: load_network("denoise"),
        lambda draw: demo_data("denoise"),
        "noisy crops of the photographs it was trained on",
    ),
}


def measured(name: str, draw: int) -> Statistics:
    source = SOURCES[name]
    return ps.measure(source.network(), source.data(draw), layers=source.layers, progress=False)


def encoded(name: str, network: str, stats: Statistics, formulation: Formulation, asked: Budget, draw: int) -> Any:
    """The problem, its `meta` telling where it comes from."""
    problem, source = formulation.encode(stats, **asked), SOURCES[network]
    seed = "" if network in ("digits", "denoiser") else f", drawn with seed {draw}"
    told = {
        "name": name,
        "network": network,
        "budget": ", ".join(f"{resource} {amount:g}" for resource, amount in asked.items()),
        "provenance": f"{source.title}; {len(stats.groups)} layers, calibrated on {source.calibration}{seed}",
    }
    return problem.replace(meta=dict(problem.meta) | told)


# Every network, for benchmarks


def budgets(network: str, formulation: Formulation) -> Iterator[Budget]:
    """The budgets an instance is made for."""
    yield from ({"keep": keep} for keep in KEEPS)
    if isinstance(formulation, Reconstruction) and network != "densenet":
        yield from ({"macs": 0.5}, {"params": 0.36})


def write_all(names: list[str], folder: Path, draw: int) -> None:
    """Measure each network once and write all its instances."""
    for network in names:
        began = time.perf_counter()
        stats = measured(network, draw)
        took, count, size = time.perf_counter() - began, 0, 0
        for formulation in (*FORMULATIONS, L1Qubo()) if network == "resnet20" else FORMULATIONS:
            for asked in budgets(network, formulation):
                ((resource, amount),) = asked.items()
                name = f"{network}-{formulation.name}-{resource}{100 * amount:.0f}"
                encoded(name, network, stats, formulation, asked, draw).save(folder / f"{name}.npz")
                count, size = count + 1, size + (folder / f"{name}.npz").stat().st_size
        total = time.perf_counter() - began
        print(
            f"{network:<12}{stats.n:>6} units {len(stats.groups):>3} layers  measured in {took:5.1f} s, "
            f"{count} instances, {size / 2**20:.1f} MiB, {total:.1f} s in all",
            flush=True,
        )


# The shipped library: small parts of the same networks


@dataclass(frozen=True)
class Entry:
    """A library instance: the groups of a network whose names start so, one formulation, one budget."""

    network: str
    formulation: Formulation
    asked: Budget
    parts: tuple[str, ...] = ("",)
    dense: bool = False  # one matrix where one block or a full-rank factor says the same
    rank: int | None = None


ENTRIES = {
    "resnet20-layer1.0-reconstruction-keep50": Entry(
        "resnet20", Reconstruction(), {"keep": 0.5}, ("layer1.0.",), dense=True
    ),
    "resnet20-stage1-reconstruction-keep64": Entry("resnet20", Reconstruction(), {"keep": 0.64}, ("layer1.",)),
    "resnet20-reconstruction-keep50": Entry("resnet20", Reconstruction(), {"keep": 0.5}),
    "resnet20-fisher-keep50": Entry("resnet20", Fisher(), {"keep": 0.5}, rank=32),
    "resnet20-hybrid-qubo-keep64": Entry("resnet20", HYBRID, {"keep": 0.64}),
    "resnet20-stage2-l1-qubo-keep50": Entry("resnet20", L1Qubo(beta=0.2), {"keep": 0.5}, ("layer2.",)),
    "resnet32-stage2-reconstruction-keep64": Entry("resnet32", Reconstruction(), {"keep": 0.64}, ("layer2.",)),
    "densenet-start-reconstruction-keep50": Entry(
        "densenet", Reconstruction(), {"keep": 0.5}, ("stem", "blocks.0.0.", "blocks.0.1.", "blocks.0.2.")
    ),
    "mlp-fc3-reconstruction-keep50": Entry("mlp", Reconstruction(), {"keep": 0.5}, ("fc3",), dense=True),
    "mlp-fc3-fisher-keep30": Entry("mlp", Fisher(), {"keep": 0.3}, ("fc3",), dense=True),
    "dncnn-reconstruction-keep64": Entry(
        "dncnn", Reconstruction(), {"keep": 0.64}, ("dncnn.0", "dncnn.23", "dncnn.44")
    ),
    "dncnn-nobn-reconstruction-keep30-min16": Entry(
        "dncnn-nobn", Reconstruction(minimum=16), {"keep": 0.3}, ("dncnn.0", "dncnn.10", "dncnn.20", "dncnn.30")
    ),
    "digits-hybrid-qubo-keep36": Entry("digits", HYBRID, {"keep": 0.36}),
    "digits-reconstruction-macs50": Entry("digits", Reconstruction(), {"macs": 0.5}),
    "denoiser-reconstruction-macs50": Entry("denoiser", Reconstruction(), {"macs": 0.5}),
    "denoiser-reconstruction-keep50": Entry("denoiser", Reconstruction(), {"keep": 0.5}),
}


def restricted(stats: Statistics, parts: tuple[str, ...]) -> Statistics:
    """The statistics of some groups, every other unit staying: what it costs joins the constant and linear parts."""
    chosen = [g for g, group in enumerate(stats.groups) if group.name.startswith(parts)]
    if len(chosen) == len(stats.groups):
        return stats
    inside = np.isin(stats.group_of, chosen)
    pairs = {r: sparse.csr_array(pair) for r, pair in stats.pair_cost.items()}
    cost = {r: c + (pairs[r] @ (~inside).astype(float) if r in pairs else 0.0) for r, c in stats.cost.items()}
    return replace(
        stats,
        groups=[stats.groups[g] for g in chosen],
        saliency={name: values[inside] for name, values in stats.saliency.items()},
        blocks={kind: [blocks[g] for g in chosen] for kind, blocks in stats.blocks.items()},
        cross={
            kind: {(chosen.index(g), chosen.index(h)): m for (g, h), m in found.items() if {g, h} <= set(chosen)}
            for kind, found in stats.cross.items()
        },
        factors={kind: factors[inside] for kind, factors in stats.factors.items()},
        cost={r: c[inside] for r, c in cost.items()},
        pair_cost={r: pair[inside][:, inside] for r, pair in pairs.items()},
        constant={r: stats.spent(r, ~inside) for r in stats.cost},
    )


def sketched(stats: Statistics, rank: int) -> Statistics:
    """The statistics as measured with that `rank`, a divisor of the one they have: its columns wrapped around."""
    factors = stats.factors["fisher"]
    return replace(stats, factors={"fisher": factors.reshape(stats.n, -1, rank).sum(axis=1)})


def rounded(stats: Statistics) -> Statistics:
    """The statistics with their matrices in single precision, which halves the files."""
    return replace(
        stats,
        blocks={kind: [single(block) for block in blocks] for kind, blocks in stats.blocks.items()},
        cross={kind: {pair: single(m) for pair, m in found.items()} for kind, found in stats.cross.items()},
        factors={kind: single(factors) for kind, factors in stats.factors.items()},
    )


def single(values: Any) -> Any:
    return values.astype(np.float32).astype(np.float64)


def lifted(problem: BinaryQuadratic) -> BinaryQuadratic:
    """The problem with its claimed diagonal raised until J/2 + diag(d) is positive semidefinite after the rounding."""
    couplings = problem.couplings
    if problem.diagonal is None or isinstance(couplings, LowRank):
        return problem
    blocks = couplings.blocks if isinstance(couplings, Blocks) else [couplings.dense()]
    parts = np.split(problem.diagonal, np.cumsum([len(block) for block in blocks])[:-1])
    claim = [raised(block / 2, part) for block, part in zip(blocks, parts, strict=True)]
    return problem.replace(diagonal=np.concatenate(claim))


def raised(half: Any, claim: Any) -> Any:
    """(b,) the claim, raised evenly by what the least eigenvalue falls short of zero."""
    least = float(np.linalg.eigvalsh(half + np.diag(claim))[0])
    return claim + max(0.0, -1.5 * least) + 1e-12 * float(np.abs(claim).max())


def entry_problem(name: str, entry: Entry, stats: Statistics, draw: int) -> BinaryQuadratic:
    part = restricted(stats, entry.parts)
    part = rounded(part if entry.rank is None else sketched(part, entry.rank))
    problem = encoded(name, entry.network, part, entry.formulation, entry.asked, draw)
    if entry.dense:
        facts = ("linear", "offset", "constraints", "labels", "diagonal", "meta")
        problem = BinaryQuadratic(
            quadratic=problem.couplings.dense(), **{fact: getattr(problem, fact) for fact in facts}
        )
    return lifted(problem)


def rebuild(draw: int) -> None:
    """Measure the networks anew and write the library's instances; their hashes change with the arithmetic."""
    for network in dict.fromkeys(entry.network for entry in ENTRIES.values()):
        stats = measured(network, draw)
        for name, entry in ENTRIES.items():
            if entry.network == network:
                entry_problem(name, entry, stats, draw).save(LIBRARY / f"{name}.npz")
                print(f"{name}: {(LIBRARY / f'{name}.npz').stat().st_size:,} bytes", flush=True)


# Its best known values and bounds


@dataclass
class Record:
    """What is known of an instance: the best selection, its value, and what no selection's value is below."""

    problem: BinaryQuadratic
    solution: Any = None
    best: float = np.inf
    bound: float = -np.inf
    by: dict[str, str] = field(default_factory=dict)

    @property
    def proved(self) -> bool:
        return self.solution is not None and self.best - self.bound <= TOLERANCE * abs(self.best)

    def learn(self, solution: Any, bound: float | None, by: str) -> None:
        """Take what a solver says, the value recomputed; a bound above a known value is nobody's to keep."""
        if solution is not None and self.problem.is_feasible(solution) and self.problem.value(solution) < self.best:
            self.solution, self.best, self.by["best_known"] = solution, self.problem.value(solution), by
        if bound is not None and bound > self.bound:
            self.bound, self.by["bound"] = bound, by
        if self.bound > self.best + TOLERANCE * abs(self.best):
            raise ArithmeticError(f"{by}: bound {self.bound!r} above the value {self.best!r} of a known selection")


def improve(record: Record, seconds: float, seeds: range) -> None:
    """Half the time for searches, half for proofs; nothing more once the value is proved."""
    until = time.perf_counter() + seconds / 2
    searches = [(name, seed) for seed in seeds for name in takers(SEARCHERS, record.problem)]
    for done, (name, seed) in enumerate(searches):
        left = (until - time.perf_counter()) / (len(searches) - done)
        if not record.proved and left > 0:
            attempt(record, name, seed, left)
    if not record.proved:
        attempt(record, "polish", seeds[0], seconds)
    provers = takers(PROVERS, record.problem)
    share = seconds / 2 / (len(provers) + 1)
    for name in provers:
        if not record.proved:
            attempt(record, name, seeds[0], share)
    if not record.proved:
        record.learn(None, lower_bound(record.problem, seconds=share), "lower_bound")


def takers(names: tuple[str, ...], problem: BinaryQuadratic) -> list[str]:
    there = set(solvers.names())
    return [name for name in names if name in there and solvers.get(name).refuse(problem) is None]


def attempt(record: Record, name: str, seed: int, seconds: float) -> None:
    start = None if name in SEARCHERS else record.solution
    try:
        result = solvers.get(name).solve(record.problem, seed=seed, time_limit=seconds, start=start)
    except ps.SolverFailed as error:
        print(f"{name}: {error}", file=sys.stderr)
        return
    record.learn(result.solution, result.bound, f"{name}, seed {seed}")


def update(names: list[str], seconds: float, seeds: range, fresh: bool) -> None:
    """Solve the library's instances and write what is known of them; what the index had is never made worse."""
    index_file = LIBRARY / "index.json"
    index = json.loads(index_file.read_text()) if index_file.exists() else {}
    print(f"{'instance':<42}{'n':>5}{'k':>5}{'best known':>18}{'bound':>18}{'gap %':>9}  proved, best by")
    for name in ENTRIES:
        problem, known = BinaryQuadratic.load(LIBRARY / f"{name}.npz"), index.get(name, {})
        record = Record(problem)
        if known.get("hash") == problem.hash and not fresh:
            record.learn(np.isin(np.arange(problem.n), known["solution"]), known["bound"], "index")
            record.by = dict(known["by"])
        if not names or name in names:
            improve(record, seconds, seeds)
        if record.solution is None:
            print(f"{name:<42}no feasible selection known; solve it with --name {name}")
            continue
        index[name] = described(problem, record)
        gap = 100 * (record.best - record.bound) / max(1e-12, abs(record.best))
        told = f"{name:<42}{problem.n:>5}{problem.k or '-':>5}{record.best:>18.12g}{record.bound:>18.12g}{gap:>9.4f}"
        print(f"{told}  {'yes' if record.proved else 'no'}, {record.by['best_known']}", flush=True)
        # after each, so that a run cut short keeps what it found
        write_index(index_file, {entry: index[entry] for entry in ENTRIES if entry in index})


def write_index(path: Path, index: Mapping[str, Any]) -> None:
    """One line for each instance."""
    lines = [f"{json.dumps(name)}: {json.dumps(entry, allow_nan=False)}" for name, entry in index.items()]
    with whole_file(path) as file:
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())


def described(problem: BinaryQuadratic, record: Record) -> dict[str, Any]:
    """An entry of the index."""
    return {
        "hash": problem.hash,
        "n": problem.n,
        "k": problem.k,
        "kind": f"{type(problem.couplings).__name__}; {', '.join(type(c).__name__ for c in problem.constraints)}",
        **{fact: problem.meta[fact] for fact in ("network", "formulation", "budget", "provenance")},
        "best_known": record.best,
        "bound": min(record.bound, record.best),
        "proved": record.proved,
        "by": record.by,
        "solution": np.flatnonzero(record.solution).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default=",".join(n for n in SOURCES if n not in ("digits", "denoiser")))
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the instances")
    parser.add_argument("--draw", type=int, default=0, help="seed of the calibration draw")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--library", action="store_true", help="solve the shipped instances and update their index")
    parser.add_argument("--rebuild", action="store_true", help="with --library: measure its instances anew first")
    parser.add_argument("--name", default="", help="with --library: only these instances, comma-separated")
    parser.add_argument("--seconds", type=float, default=10.0, help="with --library: for each instance")
    parser.add_argument("--seeds", type=int, default=3, help="with --library: of each search")
    parser.add_argument("--seed", type=int, default=0, help="with --library: the first of them")
    parser.add_argument("--fresh", action="store_true", help="with --library: forget what the index had")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    names, only = asked.network.split(","), [name for name in asked.name.split(",") if name]
    for flag, given, known in (("--network", names, SOURCES), ("--name", only, ENTRIES)):
        if unknown := set(given) - set(known):
            parser.error(f"{flag}: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    if not asked.library:
        write_all(names, asked.out, asked.draw)
        return
    if asked.rebuild:
        rebuild(asked.draw)
    update(only, asked.seconds, range(asked.seed, asked.seed + asked.seeds), asked.fresh)


if __name__ == "__main__":
    main()
