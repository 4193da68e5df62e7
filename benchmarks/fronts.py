"""Block fronts on measured networks: seconds to the proof or the gap left, beside searches given the same time.

    python benchmarks/fronts.py --name resnet20,dncnn --time-limit 1,10

Reads the instances that benchmarks/real_instances.py writes to benchmarks/out/real, those of reconstruction under a
cardinality. Kernels are loaded before the clock starts; `excess` is how far a search's value lies above that of the
fronts, in percent, negative where it is below.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from prunesolve import solvers
from prunesolve.problems import BinaryQuadratic

FOLDER = Path(__file__).resolve().parent / "out" / "real"
SEARCHES = ("swap-annealing", "swap-tabu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="", help="parts of instance names, comma-separated; all where empty")
    parser.add_argument("--time-limit", default="1,10", help="seconds, comma-separated")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    files = sorted(FOLDER.glob("*-reconstruction-keep*.npz"))
    if not files:
        raise SystemExit(f"{FOLDER}: expected instances, found none; run benchmarks/real_instances.py first")
    print(f"{'instance':34}{'limit':>7}{'proved s':>10}{'gap':>10}{'objective':>15}", *(f"{s:>16}" for s in SEARCHES))
    for file in files:
        if any(part in file.stem for part in asked.name.split(",")):
            problem = BinaryQuadratic.load(file)
            for seconds in map(float, asked.time_limit.split(",")):
                report(file.stem, problem, seconds, asked.seed)


def report(name: str, problem: BinaryQuadratic, seconds: float, seed: int) -> None:
    """One row: the fronts, then how far each search lies above them."""
    fronts = solvers.get("block-fronts").solve(problem, time_limit=seconds, seed=seed)
    proved = f"{fronts.seconds:.2f}" if fronts.status is solvers.Status.OPTIMAL else "-"
    gap = "-" if fronts.gap is None else f"{fronts.gap:.1e}"
    cells = [f"{name:34}{seconds:>7g}{proved:>10}{gap:>10}{fronts.objective:>15.9g}"]
    for search in SEARCHES:
        found = solvers.get(search).solve(problem, time_limit=seconds, seed=seed)
        cells.append(f"{100 * (found.objective / fronts.objective - 1):>15.4f}%")
    print(*cells, flush=True)


if __name__ == "__main__":
    main()
