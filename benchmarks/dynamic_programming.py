"""The dynamic program on keep counts of 36 layers: seconds to the proof, and to the whole front, beside HiGHS.

    OMP_NUM_THREADS=1 python benchmarks/dynamic_programming.py --seeds 3 --highs 60

Made-up networks of 36 layers with 16 keep counts each, about a million parameters as integers; errors fall with the
count. `chain` costs are products of neighbouring counts, `separable` ones belong to a layer alone; `real` adds a
fraction to every cost. HiGHS (scipy.optimize.milp, one thread) gets the same choice as a path through the levels, or
as one binary a level where costs are separable. Kernels are loaded before the clock starts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from prunesolve.problems import LevelChoice
from prunesolve.solvers import DynamicProgramming, Result

LAYERS, LEVELS, TOTAL = 36, 16, 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.5, help="budget as a share of the dense network")
    parser.add_argument("--highs", type=float, default=60.0, help="seconds for HiGHS, 0 leaves it out")
    asked = parser.parse_args()
    DynamicProgramming(front=True).solve(network(0, "chain").replace(budget=TOTAL / 2))
    print(f"{'costs':16}{'seed':>5}{'exact s':>9}{'objective':>11}{'lagr. s':>9}{'gap %':>8}{'front s':>9}{'points':>8}"
          f"{'labels':>10}{'HiGHS s':>9}{'HiGHS':>22}")  # fmt: skip
    for kind in ("separable", "separable real", "chain", "chain real"):
        for seed in range(asked.seeds):
            report(kind, seed, asked.share, asked.highs)


def report(kind: str, seed: int, share: float, highs: float) -> None:
    """One row."""
    free = network(seed, kind)
    choice = free.replace(budget=share * free.spent(free.sizes - 1))
    exact, seconds = timed(DynamicProgramming(), choice)
    fast, fast_seconds = timed(DynamicProgramming(method="lagrangian"), choice)
    whole, whole_seconds = timed(DynamicProgramming(front=True), free, repeats=1)
    assert exact.objective is not None
    assert fast.gap is not None
    assert whole.front is not None
    cells = f"{kind:16}{seed:>5}{seconds:>9.3f}{exact.objective:>11.6f}{fast_seconds:>9.3f}{100 * fast.gap:>8.3f}"
    cells += f"{whole_seconds:>9.2f}{len(whole.front.objectives):>8}{whole.details['labels']:>10}"
    print(cells + (by_highs(choice, highs, exact.objective) if highs else ""), flush=True)


def timed(solver: DynamicProgramming, choice: LevelChoice, repeats: int = 3) -> tuple[Result, float]:
    """The result, and the median of its seconds."""
    results = [solver.solve(choice) for _ in range(repeats)]
    return results[0], statistics.median(result.seconds for result in results)


def network(seed: int, kind: str) -> LevelChoice:
    """Keep counts of 36 layers, with a budget that everything keeps."""
    rng = np.random.default_rng(seed)
    counts = [np.unique(np.linspace(1, width, LEVELS).round()) for width in rng.integers(16, 128, LAYERS)]
    shares = [count / count[-1] for count in counts]
    worth, bend = rng.lognormal(0.0, 1.0, LAYERS), rng.uniform(1.0, 3.0, LAYERS)
    error = [
        w * ((1 - s) ** b + 0.01 * rng.random(len(s)) * (s < 1)) for w, b, s in zip(worth, bend, shares, strict=True)
    ]
    pair: dict[tuple[int, int], Any] = {}
    if kind.startswith("chain"):
        products = [np.outer(a, b) for a, b in zip(counts, counts[1:], strict=False)]
        scale = TOTAL / sum(product[-1, -1] for product in products)
        pair = {(a, a + 1): np.round(scale * product) for a, product in enumerate(products)}
        cost = [np.round(2.0 * count) for count in counts]
    else:
        each = rng.lognormal(0.0, 1.0, LAYERS)
        each *= TOTAL / (each @ [count[-1] for count in counts])
        cost = [np.round(e * count) for e, count in zip(each, counts, strict=True)]
    if kind.endswith("real"):
        cost = [c + rng.random(len(c)) for c in cost]
    return LevelChoice(error, cost, 1e12, pair)


def by_highs(choice: LevelChoice, seconds: float, optimum: float) -> str:
    """Two cells: the seconds HiGHS takes, and how its answer stands to the optimum."""
    error, cost, rows, sent = one_binary_a_level(choice) if choice.is_separable else paths(choice)
    constraints = [LinearConstraint(rows, sent, sent), LinearConstraint(cost[None], -np.inf, choice.budget)]
    options = {"time_limit": seconds, "mip_rel_gap": 1e-9}
    began = time.perf_counter()
    found = milp(error, constraints=constraints, integrality=np.ones(len(error)), bounds=Bounds(0, 1), options=options)
    took = time.perf_counter() - began
    if found.x is None:
        return f"{took:>9.1f}{'nothing found':>22}"
    over = 100 * (found.fun / optimum - 1)
    return f"{took:>9.1f}{('proved, ' if found.status == 0 else 'limit, ') + f'{over:+.4f} %':>22}"


def one_binary_a_level(choice: LevelChoice) -> tuple[Any, Any, Any, Any]:
    """Errors, costs, and one level a layer."""
    layer = np.repeat(np.arange(choice.n), choice.sizes)
    rows = sparse.csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))))
    return np.concatenate(choice.error), np.concatenate(choice.cost), rows, np.ones(choice.n)


def paths(choice: LevelChoice) -> tuple[Any, Any, Any, Any]:
    """Errors and costs of the arcs from a level to one of the next layer, and the flow of one path."""
    starts = np.concatenate([[0], np.cumsum(choice.sizes)])
    arcs = [(0, 0, t) for t in range(choice.sizes[0])] + [
        (layer, s, t) for layer in range(1, choice.n)
        for s in range(choice.sizes[layer - 1]) for t in range(choice.sizes[layer])
    ]  # fmt: skip
    error = np.array([choice.error[layer][t] for layer, _, t in arcs])
    cost = np.array([
        choice.cost[layer][t] + (choice.pair_cost[layer - 1, layer][s, t] if layer else 0.0) for layer, s, t in arcs
    ])  # fmt: skip
    rows = sparse.lil_array((1 + int(starts[-2]), len(arcs)))
    for column, (layer, s, t) in enumerate(arcs):
        rows[0 if layer == 0 else 1 + starts[layer - 1] + s, column] += 1.0
        if layer < choice.n - 1:
            rows[1 + starts[layer] + t, column] -= 1.0
    return error, cost, rows.tocsr(), np.append(1.0, np.zeros(rows.shape[0] - 1))


if __name__ == "__main__":
    main()
