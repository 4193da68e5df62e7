"""What a move costs: against the time memory takes to deliver its rows, and against the size of the instance.

    python benchmarks/kernels.py --out benchmarks/out

The first table gives the cost on block-diagonal instances of growing size, up to 20,000 units, with the peak memory of
the process; a plot of it is saved. The second compares moves a second with the limit set by memory: a swap reads the
coupling rows of two units, so no kernel can make more swaps than rows of that width and precision can be read, at
random, by the fastest loop we know (a vectorised sum), measured in the same process between the kernels' own runs.
Annealing accepts every proposal here; tabu search also looks at all fields at every step. One thread.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numba import njit

from prunesolve.problems import BinaryQuadratic, generators
from prunesolve.solvers import SwapAnnealing, SwapTabu
from prunesolve.solvers._base import Run
from prunesolve.solvers._search import Search
from prunesolve.solvers.swap_tabu import tenures

mpl.use("Agg")
WIDTHS = (256, 512, 1024, 2048, 4096)
SIZES = (625, 1250, 2500, 5000, 10_000, 20_000)
BLOCK = 128
ROUNDS = 5


@njit(fastmath=True)
def read_rows(matrix: Any, order: Any) -> float:
    """Sum the rows in that order."""
    total = 0.0
    for i in order:
        row = matrix[i]
        for j in range(row.size):
            total += row[j]
    return total


def rate(work: Callable[[int], None], portion: int) -> float:
    """Units of work a second: the median of some rounds."""
    work(portion)
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work(portion)
        seconds.append(time.perf_counter() - began)
    return portion / float(np.median(seconds))


def begun(problem: BinaryQuadratic) -> Search:
    """A search at the greedy selection, its kernels compiled."""
    for solver in (SwapAnnealing(), SwapTabu()):
        solver._prepare(problem)
    search = Search.begin(problem, Run(problem, seed=0))
    assert search is not None
    return search


def annealing(search: Search, heat: float) -> Callable[[int], None]:
    """Proposals at one temperature; at infinite heat every one is accepted."""

    def work(portion: int) -> None:
        search.heat(heat, 1.0, 2**40)
        left = portion
        while left > 0:
            left -= search.anneal(left)

    return work


def tabu(search: Search) -> Callable[[int], None]:
    """Steps of tabu search, which never stagnate here."""

    def work(portion: int) -> None:
        left = portion
        while left > 0:
            left -= search.tabu(tenures(search.problem), 2**62, left)

    return work


def against_memory() -> None:
    """The second table."""
    print("\nmoves a second as a share of what memory allows (two rows a swap), dense couplings, half the units kept")
    print(f"{'n':>6}{'stored':>9}{'rows/s':>12}{'limit':>12}{'swaps/s':>12}{'share':>8}{'tabu/s':>12}{'share':>8}")
    for n in WIDTHS:
        search = begun(generators.pruning(n, seed=0))
        matrix = search.view.couplings.matrix
        order = np.random.default_rng(0).integers(n, size=1 << 20)
        portion = max(2000, (1 << 25) // n)
        rows = rate(lambda m, matrix=matrix, order=order: read_rows(matrix, order[:m]), portion)
        swaps = rate(annealing(search, np.inf), portion)
        steps = rate(tabu(Search(search.problem, search.run, search.state.x, search.view)), portion // 2)
        limit = rows / 2
        print(
            f"{n:>6}{matrix.dtype.name:>9}{rows:>12,.0f}{limit:>12,.0f}"
            f"{swaps:>12,.0f}{swaps / limit:>8.0%}{steps:>12,.0f}{steps / limit:>8.0%}",
            flush=True,
        )


def against_size(out: Path) -> None:
    """The first table and its plot."""
    print(f"nanoseconds a move against n, block-diagonal couplings in blocks of {BLOCK}, half the units kept")
    print(f"{'n':>7}{'cold proposal':>15}{'accepted swap':>15}{'tabu step':>12}{'start s':>9}{'peak MiB':>10}")
    table = []
    for n in SIZES:
        problem = generators.pruning(n, layers=max(1, n // BLOCK), coupling="blocks", seed=0)
        began = time.perf_counter()
        search = begun(problem)
        start = time.perf_counter() - began
        cold = 1e9 / rate(annealing(search, 1e-3), 200_000)
        hot = 1e9 / rate(annealing(search, np.inf), 100_000)
        step = 1e9 / rate(tabu(Search(problem, search.run, search.state.x, search.view)), 20_000)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        table.append((n, cold, hot, step))
        print(f"{n:>7}{cold:>15.0f}{hot:>15.0f}{step:>12.0f}{start:>9.2f}{peak:>10.0f}", flush=True)
    plot(np.array(table), out)


def plot(table: Any, out: Path) -> None:
    """Cost against n on log axes; (m, 4) n, cold proposal, accepted swap, tabu step in ns."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    marks = {
        "tabu step": (3, "s", "#D55E00"),
        "accepted swap": (2, "o", "#0072B2"),
        "cold proposal": (1, "^", "#009E73"),
    }
    for label, (column, marker, colour) in marks.items():
        axes.loglog(table[:, 0], table[:, column], marker=marker, color=colour, label=label)
    axes.set(xlabel="units n", ylabel="nanoseconds a move", title=f"Cost of a move, blocks of {BLOCK}")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(frameon=False)
    path = out / "kernels.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"plot: {path}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"), help="folder of the plot")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    against_size(options.out)
    against_memory()


if __name__ == "__main__":
    main()
