"""How far below the best known value the lower bound is, and what it takes: synthetic and public instances.

    python benchmarks/bounds.py --seconds 0.1,1 --kind pruning,cosine,mdp,ubqp,qkp

`gap %` is (best - bound) / |best|. Best values are the published ones, or what swap annealing finds in one second on
a synthetic instance. The bound is not told any of them. Kernels are loaded before the clock starts; factorisations
count. Each figure is the median over the seeds or instances of its row, `worst %` the largest gap.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from instances import FOLDER, instances, words

from prunesolve import solvers
from prunesolve.problems import BinaryQuadratic, Budget, Cardinality, GroupBounds, generators
from prunesolve.solvers.bounds import lower_bound

SIZES = (64, 128, 256, 512, 1024)
PUBLIC = {
    "mdp": ("GKD-c", "SOM-b_11", "SOM-b_12", "SOM-b_13", "SOM-b_17"),
    "ubqp": ("bqp50-", "bqp100-", "bqp250-", "bqp500-", "gka"),
    "qkp": ("100_25", "100_50", "100_75", "100_100", "200_25", "200_50", "200_75", "200_100", "300_25", "300_50"),
}


class Row(NamedTuple):
    """Instances that share a line of the table; `best` is None where it must be searched for."""

    name: str
    problems: list[BinaryQuadratic]
    best: list[float] | None = None


def pruning_rows(seeds: range) -> Iterator[Row]:
    """The diagonal given, to be recovered, or at sight; rank n/8, half the units kept."""

    def drawn(n: int, **options: object) -> list[BinaryQuadratic]:
        return [generators.pruning(n, keep=0.5, rank=n // 8, seed=seed, **options) for seed in seeds]  # type: ignore[arg-type]

    for n in SIZES:
        yield Row(f"dense, diagonal given, n={n}", drawn(n))
    for n in SIZES:
        yield Row(f"dense, diagonal recovered, n={n}", [p.replace(diagonal=None) for p in drawn(n)])
    for n in SIZES:
        yield Row(f"low rank, n={n}", drawn(n, coupling="low-rank"))
    for n in SIZES:
        yield Row(f"8 blocks, n={n}", drawn(n, coupling="blocks", layers=8))
    for n in (256, 1024):
        yield Row(f"groups of 4, 2 kept, n={n}", [constrained(p, pairs=True) for p in drawn(n)])
        yield Row(f"budget alone, n={n}", [constrained(p, pairs=False) for p in drawn(n)])


def constrained(problem: BinaryQuadratic, *, pairs: bool) -> BinaryQuadratic:
    """The same objective under two of every four, or under half of a random cost."""
    n = problem.n
    if pairs:
        return problem.replace(constraints=[GroupBounds(np.arange(n) // 4, [2] * (n // 4), [2] * (n // 4))])
    cost = np.random.default_rng(0).integers(1, 9, n).astype(float)
    return problem.replace(constraints=[Budget(cost, 0.5 * cost.sum())])


def cosine_rows(seeds: range) -> Iterator[Row]:
    """|cos| of random maps, as in hybrid-qubo, and random matrices: neither is positive semidefinite."""
    for n in (64, 256, 512, 1024):
        yield Row(f"|cos| of 40 features, n={n}", [cosines(n, seed) for seed in seeds])
    for n in (64, 256):
        yield Row(f"random normal J, n={n}", [noise(n, seed) for seed in seeds])


def cosines(n: int, seed: int) -> BinaryQuadratic:
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(n, 40))
    maps /= np.linalg.norm(maps, axis=1, keepdims=True)
    upper = np.triu(np.abs(maps @ maps.T), 1)
    return BinaryQuadratic(
        -rng.lognormal(size=n), 2 * (upper + upper.T) / np.sqrt(n), constraints=[Cardinality(n // 2)]
    )


def noise(n: int, seed: int) -> BinaryQuadratic:
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(size=(n, n)), 1)
    return BinaryQuadratic(rng.normal(size=n), (upper + upper.T) / np.sqrt(n), constraints=[Cardinality(n // 2)])


def public_rows(kind: str) -> Iterator[Row]:
    """Instances of one kind with a published value, by family."""
    if not FOLDER.is_dir():
        return
    for family in PUBLIC[kind]:
        found = [i for i in instances([kind], [family]) if i.best is not None]
        if found:
            yield Row(f"{kind} {family}", [i.problem for i in found], [i.sign * i.best for i in found if i.best])


def report(row: Row, seconds: list[float]) -> None:
    """Print one line: for every time allowed the median gap, the worst and the median seconds used."""
    best = row.best or [solvers.get("swap-annealing").solve(p, time_limit=1).objective for p in row.problems]
    cells = []
    for allowed in seconds:
        gaps, used = [], []
        for problem, value in zip(row.problems, best, strict=True):
            began = time.perf_counter()
            bound = lower_bound(problem, seconds=allowed, iterations=10**9)
            used.append(time.perf_counter() - began)
            gaps.append(100 * (value - bound) / max(1e-12, abs(value)))
        cells.append(f"{np.median(gaps):>10.4f}{max(gaps):>10.4f}{np.median(used):>8.3f}")
    print(f"{row.name:<32}{len(best):>3}" + " |".join(cells), flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", default="0.1,1", help="times allowed, separated by commas")
    parser.add_argument("--kind", default="pruning,cosine,mdp,ubqp,qkp")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--name", default="", help="part of a row's name")
    options = parser.parse_args()
    seconds = [float(word) for word in words(options.seconds)]
    lower_bound(generators.pruning(8))
    print(f"{'':<32}{'':>3}" + " |".join(f"{f'gap % {s:g} s':>10}{'worst %':>10}{'s':>8}" for s in seconds))
    for kind in words(options.kind):
        if kind in PUBLIC:
            rows = public_rows(kind)
        else:
            rows = {"pruning": pruning_rows, "cosine": cosine_rows}[kind](range(options.seeds))
        for row in rows:
            if options.name in row.name:
                report(row, seconds)


if __name__ == "__main__":
    main()
