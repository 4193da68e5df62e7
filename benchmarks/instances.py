"""Public instances with best-known values: what a solver reaches within a time limit, misses included.

    python benchmarks/instances.py --solver swap-annealing --time-limit 1 --kind mdp,ubqp,qkp

Reads the folder ../shared/instances beside the checkout (its README says what the files hold); Palubeckis' p3000.1
to 5, which are a seed and no file, are generated. Objectives are printed
in the instance's own sense; `gap` is the shortfall from the best known value in percent; `seconds` is when the
solver found its answer. The last lines count hits and name every miss.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunesolve import solvers
from prunesolve.problems import BinaryQuadratic, Budget, Cardinality
from prunesolve.problems.generators import palubeckis

FOLDER = Path(__file__).resolve().parents[1].parent / "shared" / "instances"
SPARSE_FROM = 0.1  # density below which couplings are stored as CSR


@dataclass(frozen=True)
class Instance:
    """A public instance: `sign` is -1 where its own sense is to maximise."""

    name: str
    problem: BinaryQuadratic
    best: float | None
    sign: int


def instances(kinds: list[str], names: list[str]) -> Iterator[Instance]:
    """The instances of these kinds (all where empty) whose names contain one of `names` (any where empty)."""
    index = json.loads((FOLDER / "index.json").read_text())["instances"]
    for name, facts in sorted(index.items(), key=lambda item: (item[1]["kind"], item[1]["n"], item[0])):
        kind = facts["kind"].split("_")[0]
        if kinds and kind not in kinds or names and not any(part in name for part in names):
            continue
        file = FOLDER / facts.get("file", f"{name}.npz")
        if file.exists():
            with np.load(file) as arrays:
                problem = READERS[kind](arrays, name.removeprefix("qkp_"))
        elif "seed" in facts:
            problem = palubeckis(facts["n"], facts["density"], facts["seed"])
        else:
            continue
        yield Instance(name, problem, facts["best"], -1 if facts["kind"].endswith("_max") else 1)


def read_ubqp(arrays: np.lib.npyio.NpzFile, name: str) -> BinaryQuadratic:
    """Minimise sum of q_ij x_i x_j over i <= j."""
    n, i, j, q = int(arrays["n"]), arrays["i"], arrays["j"], arrays["q"].astype(float)
    linear = np.zeros(n)
    np.add.at(linear, i[i == j], q[i == j])
    return BinaryQuadratic(linear, symmetric(n, i[i != j], j[i != j], q[i != j]))


def read_mdp(arrays: np.lib.npyio.NpzFile, name: str) -> BinaryQuadratic:
    """Maximise the sum of the distances within m chosen of n."""
    n = int(arrays["n"])
    matrix = np.zeros((n, n))
    matrix[np.triu_indices(n, 1)] = -arrays["d"]
    return BinaryQuadratic(np.zeros(n), matrix + matrix.T, constraints=[Cardinality(int(arrays["m"]))])


def read_qkp(arrays: np.lib.npyio.NpzFile, name: str) -> BinaryQuadratic:
    """Maximise the profit that fits the knapsack."""
    weights = arrays[f"{name}_w"].astype(float)
    n = len(weights)
    profit = np.zeros((n, n))
    profit[np.triu_indices(n)] = -arrays[f"{name}_P"]
    linear = np.diagonal(profit).copy()
    np.fill_diagonal(profit, 0.0)
    return BinaryQuadratic(linear, profit + profit.T, constraints=[Budget(weights, float(arrays[f"{name}_c"]))])


def read_maxcut(arrays: np.lib.npyio.NpzFile, name: str) -> BinaryQuadratic:
    """Maximise the weight of the edges between x = 0 and x = 1: edge (i, j) counts w (x_i + x_j - 2 x_i x_j)."""
    n, i, j, w = int(arrays["n"]), arrays["i"], arrays["j"], arrays["w"].astype(float)
    linear = -(np.bincount(i, w, n) + np.bincount(j, w, n))
    return BinaryQuadratic(linear, symmetric(n, i, j, 2 * w))


READERS = {"ubqp": read_ubqp, "mdp": read_mdp, "qkp": read_qkp, "maxcut": read_maxcut}


def symmetric(n: int, i: np.ndarray, j: np.ndarray, q: np.ndarray) -> object:
    """J with entries q at (i, j) and (j, i): dense, or CSR where few are not zero."""
    rows, columns, values = np.concatenate([i, j]), np.concatenate([j, i]), np.concatenate([q, q])
    if len(values) < SPARSE_FROM * n * n:
        from scipy import sparse

        return sparse.csr_array((values, (rows, columns)), shape=(n, n))
    matrix = np.zeros((n, n))
    np.add.at(matrix, (rows, columns), values)
    return matrix


def shortfall(reached: float | None, best: float | None, sign: int) -> float | None:
    """Percent by which `reached` falls short of `best`; negative where it is better."""
    if reached is None or best is None:
        return None
    return 100.0 * sign * (reached - best) / max(1e-12, abs(best))


def run(solver_name: str, options: argparse.Namespace) -> None:
    """Print the table of one solver."""
    print(f"{solver_name}, {options.time_limit:g} s, seed {options.seed}")
    print(f"{'instance':<26}{'n':>6}{'best known':>16}{'reached':>16}{'gap %':>10}{'seconds':>9}{'run':>7}")
    hits, judged, misses = 0, 0, []
    for instance in instances(options.kind, options.name):
        result = solvers.get(solver_name).solve(instance.problem, seed=options.seed, time_limit=options.time_limit)
        reached = instance.sign * result.objective if result.feasible else None
        gap = shortfall(reached, instance.best, instance.sign)
        found = result.trace[-1].seconds if result.trace else float("nan")
        told = ["-" if v is None else f"{v:.10g}" for v in (instance.best, reached)]
        shown = "-" if gap is None else f"{gap:.4f}"
        row = f"{instance.name:<26}{instance.problem.n:>6}{told[0]:>16}{told[1]:>16}{shown:>10}{found:>9.3f}"
        print(f"{row}{result.seconds:>7.2f}", flush=True)
        if instance.best is not None:
            judged += 1
            # the published values of GKD-c are rounded to single precision
            hit = gap is not None and gap <= 1e-4
            hits += hit
            misses += [] if hit else [f"{instance.name} ({shown} %)"]
    print(f"{solver_name}: best known reached on {hits} of {judged}; misses: {', '.join(misses) or 'none'}\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solver", default="swap-annealing,swap-tabu,greedy", help="names, separated by commas")
    parser.add_argument("--time-limit", type=float, default=1.0, help="seconds for each instance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", type=words, default=[], help=f"of {', '.join(READERS)}; all where left out")
    parser.add_argument("--name", type=words, default=[], help="parts of names; all where left out")
    options = parser.parse_args()
    if unknown := set(options.kind) - set(READERS):
        parser.error(f"--kind: expected some of {', '.join(READERS)}, got {', '.join(sorted(unknown))}")
    if not FOLDER.is_dir():
        sys.exit(f"no instances at {FOLDER}: put the public instances there")
    for solver_name in words(options.solver):
        run(solver_name, options)


def words(text: str) -> list[str]:
    """Comma-separated words."""
    return [word for word in text.split(",") if word]


if __name__ == "__main__":
    main()
