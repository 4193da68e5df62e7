"""How long the exact solver takes to prove seeded pruning-like instances optimal.

    python benchmarks/proofs.py --time-limit 10

Kernels are loaded before the clock starts. Half the units are kept; three seeds a row.
"""

from __future__ import annotations

import argparse

import numpy as np

from prunesolve import solvers
from prunesolve.problems import generators

SIZES = ((32, 4), (64, 8), (64, 16), (128, 8), (128, 16), (128, 32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time-limit", type=float, default=10.0, help="seconds a proof may take")
    limit = parser.parse_args().time_limit
    print(f"{'n':>5}{'rank':>6}{'proved':>8}{'median s':>10}{'median nodes':>14}{'largest gap':>13}")
    for n, rank in SIZES:
        runs = [
            solvers.get("exact").solve(generators.pruning(n, keep=0.5, rank=rank, seed=seed), time_limit=limit)
            for seed in range(3)
        ]
        proved = sum(run.status is solvers.Status.OPTIMAL for run in runs)
        seconds, nodes = np.median([run.seconds for run in runs]), np.median([run.evaluations for run in runs])
        print(f"{n:>5}{rank:>6}{proved:>6}/3{seconds:>10.2f}{nodes:>14.0f}{max(run.gap or 0.0 for run in runs):>13.2e}")


if __name__ == "__main__":
    main()
