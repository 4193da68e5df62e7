"""The solver `assignment` beside POT and beside scipy on the padded matrix: processor time, ratios, memory.

    OMP_NUM_THREADS=1 python benchmarks/transport.py --sizes 64,256,1024,2048 --shares 0.5,0.9,1

Square tables of n x n costs, a share of whose rows is matched: squared distances of normal points in 2, 32 and 512
dimensions, uniform numbers, integers of 0 to 3, two tables of tied structure (`duplicates`: 32 distinct points;
`rank one`: a_i b_j, worst for us), single precision and rectangles (`wide` n/2 x n, `tall` n x n/2; POT and scipy get
double precision). `weights` and `activations` are the 400 neurons of the first layer of two MNIST networks (../shared).

`solve` is the whole of it: the plan, and its proof over the full table, as the library checks it; `search` is the
search alone. scipy gets the padded matrix ready-made, POT as many pivots as it wants. Milliseconds of processor time
are medians of rounds in which all take turns on one thread; the ratios, to the faster of POT and scipy, are medians of
those of each round. Values are compared: `=` where they agree, else the difference, `none` where POT gives up. The
memory table is what the resident set grows by at its peak, in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from prunesolve.problems import PartialTransport
from prunesolve.solvers import Assignment
from prunesolve.solvers.assignment import Pairs

FOLDER = Path(__file__).resolve().parents[1].parent / "shared" / "data"
TARGET = 5
PLAIN = ("plane", "32-d", "512-d", "uniform", "integers")
OTHER = ("duplicates", "rank one", "plane f32", "32-d f32", "wide", "tall", "wide plane", "tall plane")
REAL = ("weights", "activations")


def table(family: str, n: int) -> Any:
    """Costs of a family."""
    rng = np.random.default_rng(n)
    rows, columns = (n // 2 if "wide" in family else n), (n // 2 if "tall" in family else n)
    if family in REAL:
        return neurons(family)
    if family == "duplicates":
        return distances(rng.standard_normal((32, 32))[rng.integers(32, size=(2, n))])
    if family == "rank one":
        return np.outer(rng.random(n), rng.random(n))
    if family == "integers":
        return rng.integers(0, 4, (n, n)).astype(float)
    if family in ("uniform", "wide", "tall"):
        return rng.random((rows, columns))
    d = 2 if "plane" in family else int(family.split("-")[0])
    costs = distances((rng.standard_normal((rows, d)), rng.standard_normal((columns, d))))
    return costs.astype(np.float32) if family.endswith("f32") else costs


def distances(points: Any) -> Any:
    """(n, m) squared distances of a pair of point sets."""
    return cdist(points[0], points[1], "sqeuclidean")


def neurons(family: str) -> Any:
    """(400, 400) squared distances of the first layer's neurons of the two networks."""
    import torch

    weights = [
        torch.load(FOLDER / f"mnist_mlp_{i}.pt", map_location="cpu", weights_only=True)["fc1.weight"].double().numpy()
        for i in (0, 1)
    ]
    if family == "weights":
        return distances(weights)
    with np.load(FOLDER / "mnist_train_10k.npz") as arrays:
        images = (arrays["images"][:2000].reshape(2000, -1) / 255.0 - 0.1307) / 0.3081
    return distances([np.maximum(w @ images.T, 0.0) for w in weights])


# --- the three ------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """One table and how many pairs of it."""

    problem: PartialTransport
    k: int


def by_assignment(task: Task) -> float:
    result = Assignment().solve(task.problem)
    assert str(result.status) == "OPTIMAL"
    return float(result.objective or 0.0) * min(task.problem.cost.shape)


def by_scipy(task: Task) -> Callable[[], float]:
    """The call, its padded matrix made."""
    cost, k = task.problem.cost, task.k
    n, m = cost.shape
    padded = np.zeros((n + m - k, n + m - k))
    padded[:n, :m] = cost
    padded[n:, m:] = 2.0 * k * np.abs(cost).max() + 1.0

    def solve() -> float:
        i, j = linear_sum_assignment(padded)
        real = (i < n) & (j < m)
        return float(padded[i[real], j[real]].sum())

    return solve


def by_pot(task: Task) -> float:
    """POT's own answer; NaN where it gives up."""
    import ot

    problem = task.problem
    cost = np.asarray(problem.cost, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            plan = ot.partial.partial_wasserstein(
                problem.source, problem.target, cost, problem.mass, numItermax=100_000_000
            )
        except ValueError:
            return float("nan")
    return float((plan * cost).sum()) * min(cost.shape)


def task_of(family: str, n: int, share: float) -> Task:
    cost = table(family, n)
    rows, columns = cost.shape
    least = min(rows, columns)
    k = round(share * least)
    return Task(PartialTransport(cost, np.full(rows, 1 / least), np.full(columns, 1 / least), k / least), k)


# --- tables ---------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """(seconds, value)."""
    began = time.process_time()
    value = work()
    return time.process_time() - began, value


def row(family: str, n: int, share: float, rounds: int) -> tuple[float, float]:
    """Print one comparison; how many times faster than the faster of the two `solve` and the search alone are."""
    task = task_of(family, n, share)
    cost, k = task.problem.cost, task.k
    scipy = by_scipy(task)
    by_assignment(task)
    seconds, values = [], []
    for _ in range(rounds):
        runs = [
            timed(lambda: by_assignment(task)),
            timed(lambda: len(Pairs(cost, k).find().matched()[0])),
            timed(lambda: by_pot(task)),
            timed(scipy),
        ]
        seconds.append([spent for spent, _ in runs])
        values = [value for _, value in runs]
    solve, search, pot, padded = 1e3 * np.median(seconds, axis=0)
    ratios = np.median([(min(s[2:]) / s[0], min(s[2:]) / s[1]) for s in seconds], axis=0)
    scale = k * float(np.abs(cost).max())
    said = " ".join(agreement(value - values[0], scale) for value in values[2:])
    print(
        f"{family:12}{'x'.join(map(str, cost.shape)):>11}{share:>6.2f}{solve:>11.2f}{search:>11.2f}{pot:>11.2f}"
        f"{padded:>11.2f}{ratios[0]:>8.1f}{ratios[1]:>8.1f}   {said}",
        flush=True,
    )
    return float(ratios[0]), float(ratios[1])


def agreement(difference: float, scale: float) -> str:
    """Whether a peer's value is ours."""
    if np.isnan(difference):
        return "none"
    return "=" if abs(difference) <= 1e-9 * scale else f"{difference:+.1e}"


def cases(asked: argparse.Namespace) -> Iterator[tuple[str, int, float]]:
    for share in asked.shares:
        for n in asked.sizes:
            yield from ((family, n, share) for family in asked.families if family not in REAL)
        yield from ((family, 400, share) for family in asked.families if family in REAL and FOLDER.exists())


def grown(how: str, n: int, queue: Any) -> None:
    """What a call adds to the peak resident set, in MiB."""
    task = task_of("uniform", n, 0.5)
    small = task_of("uniform", 8, 0.5)
    ways: dict[str, Callable[[Task], Any]] = {
        "assignment": by_assignment,
        "POT": by_pot,
        "scipy": lambda asked: by_scipy(asked)(),
    }
    ways[how](small)
    before = peak()
    ways[how](task)
    queue.put((peak() - before) / 1024)


def peak() -> int:
    """KiB; getrusage would tell the peak of the process that started this one where that is higher."""
    told = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in told.splitlines() if line.startswith("VmHWM:")))


def memory(sizes: list[int], peers_up_to: int) -> None:
    print(f"\npeak memory in MiB beside the table of costs, uniform, half the rows\n{'n':>6}{'costs':>8}", end="")
    print("".join(f"{how:>12}" for how in ("assignment", "POT", "scipy")))
    context = multiprocessing.get_context("spawn")
    for n in sizes:
        cells = []
        for how in ("assignment", "POT", "scipy"):
            if how != "assignment" and n > peers_up_to:
                cells.append("-")
                continue
            queue = context.Queue()
            process = context.Process(target=grown, args=(how, n, queue))
            process.start()
            cells.append(f"{queue.get():.1f}")
            process.join()
        print(f"{n:>6}{n * n / 2**17:>8.0f}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def summary(share: float, ratios: dict[str, tuple[float, float]]) -> None:
    """Print what keeps the targets at a share and what does not."""
    for column, what in enumerate(("solve", "search")):
        fast = sum(pair[column] >= TARGET for pair in ratios.values())
        slow = ", ".join(f"{name} ({pair[column]:.2f})" for name, pair in ratios.items() if pair[column] < 1.0)
        print(f"share {share:g}, {what}: {TARGET} times faster on {fast} of {len(ratios)}; slower on: {slow or 'none'}")


def main() -> None:
    def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
        return lambda text: [kind(part.strip()) for part in text.split(",") if part.strip()]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=listed(int), default=[64, 128, 256, 1024, 2048])
    parser.add_argument("--shares", type=listed(float), default=[0.5, 0.9, 1.0])
    parser.add_argument("--families", type=listed(str), default=[*PLAIN, *OTHER, *REAL])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=listed(int), default=[1024, 2048, 4096], help="sizes of the memory table")
    parser.add_argument("--peers-up-to", type=int, default=2048, help="largest size whose memory peers are asked for")
    asked = parser.parse_args()
    print(f"{'':29}{'milliseconds':^44}{'faster than peers':^16}")
    heads = "".join(f"{head:>11}" for head in ("solve", "search", "POT", "scipy"))
    print(f"{'costs':12}{'shape':>11}{'share':>6}{heads}{'solve':>8}{'search':>8}   values of POT and scipy")
    kept = {(family, n, share): row(family, n, share, asked.rounds) for family, n, share in cases(asked)}
    for share in asked.shares:
        summary(share, {f"{family} {n}": ratios for (family, n, s), ratios in kept.items() if s == share})
    if asked.memory:
        memory(asked.memory, asked.peers_up_to)


if __name__ == "__main__":
    main()
