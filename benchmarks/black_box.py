"""Searches on black boxes with a wrong surrogate, at equal evaluations: how far each stays from the best known value.

    python benchmarks/black_box.py                          all cases, five seeds that no default was chosen on
    python benchmarks/black_box.py --case levels --seeds 3 --methods tensor-train,swap-search

bits: 64 units, 32 kept; a quadratic, which is the surrogate, plus 400 three-body terms. Every search begins at the
surrogate's optimum. levels: 12 layers of 11 levels within an exact budget; separable errors, which are the surrogate,
plus interactions of neighbours. Every search begins at the optimum of the separable part. layers: 19 layers of up to 16
levels with real-valued costs; the truth weighs the errors of each layer anew and lets layers interact, and every search
begins at the optimum of the errors. The best known value of a seed is the lowest of all runs of the call and, but for
layers, of steepest descents from random points. Gaps are medians over the seeds, in percent of it. An evaluation is one
distinct point. Methods that do not take a case are left out of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from prunesolve import solvers
from prunesolve.problems import BinaryQuadratic, BlackBox, Cardinality, LevelChoice, LevelTuples
from prunesolve.solvers._count_state import ProbabilityTensor
from prunesolve.solvers._level_space import LevelSpace
from prunesolve.solvers._modes import Modes

Curve = list[tuple[int, float]]
DESCENTS = 30


class Case(NamedTuple):
    """A black box with the point that its surrogate likes best."""

    box: BlackBox
    start: Any
    marks: tuple[int, ...]


def bits(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    n, k, triples = 64, 32, 400
    upper = np.triu(rng.normal(0.0, n**-0.5, (n, n)), 1)
    quadratic = BinaryQuadratic(rng.normal(size=n), upper + upper.T, constraints=[Cardinality(k)])
    members = np.array([rng.choice(n, 3, replace=False) for _ in range(triples)])
    weights = rng.normal(0.0, 0.4, triples)
    box = BlackBox.over(quadratic, lambda x: quadratic.value(x) + x[:, members].all(axis=2) @ weights)
    return Case(box, solvers.get("swap-tabu").solve(quadratic, seed=seed).solution, (300, 1000, 4000))


class Separable:
    """sum_l error[l, s_l]."""

    def __init__(self, error: np.ndarray) -> None:
        self.error = error

    def value(self, x: Any) -> Any:
        return self.error[np.arange(len(self.error)), x].sum(axis=-1)


def levels(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    layers, count = 12, 11
    pruned = 1.0 - np.arange(count) / (count - 1)
    error = rng.lognormal(0.0, 1.0, (layers, 1)) * pruned ** rng.uniform(1, 4, (layers, 1))
    pairs = np.abs(rng.normal(0.0, 0.3, layers - 1))
    cost = [np.arange(count) * int(c) for c in rng.integers(1, 6, layers)]
    space, separable = LevelTuples(cost, sum(int(c[-1]) for c in cost) // 2), Separable(error)

    def evaluate(x: np.ndarray) -> np.ndarray:
        gone = pruned[x]
        coupled = (gone[:, :-1] * gone[:, 1:]) @ pairs + 0.5 * np.abs(np.diff(gone)).max(axis=1)
        return separable.value(x) + coupled

    return Case(BlackBox(space, evaluate, separable), additive_optimum(error, space), (200, 1000))


def additive_optimum(error: np.ndarray, space: LevelTuples) -> np.ndarray:
    """The tuple of least separable error that costs the budget: dynamic programming over what was spent."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for row, cost in zip(error, space.cost, strict=True):
        longer: dict[int, tuple[float, tuple[int, ...]]] = {}
        for spent, (so_far, chosen) in best.items():
            for level, (e, c) in enumerate(zip(row, cost, strict=True)):
                if spent + c <= space.budget:
                    entry = (so_far + e, (*chosen, level))
                    longer[spent + int(c)] = min(longer.get(spent + int(c), entry), entry)
        best = longer
    return np.array(best[space.budget][1])


def layers(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    count, width = 19, rng.integers(16, 65, 19)
    kept = [np.unique(np.rint(np.linspace(1, w, 16))) for w in width]
    gone = [1.0 - k / w for k, w in zip(kept, width, strict=True)]
    power, size = rng.uniform(1, 4, count), rng.lognormal(0.0, 1.0, count)
    error = [s * g**p for s, g, p in zip(size, gone, power, strict=True)]
    weight, bend = rng.lognormal(0.0, 0.7, count), rng.uniform(0.7, 1.4, count)
    truth = [w * s * g ** (p * b) for w, s, g, p, b in zip(weight, size, gone, power, bend, strict=True)]
    near, far = np.abs(rng.normal(0.0, 0.5, count - 1)), rng.normal(0.0, 0.15, (count, count))
    cost = [c * k for c, k in zip(rng.uniform(1, 10, count), kept, strict=True)]
    choice = LevelChoice(error, cost, 0.5 * sum(float(c[-1]) for c in cost))

    def evaluate(x: np.ndarray) -> np.ndarray:
        lost = np.stack([t[x[:, i]] for i, t in enumerate(truth)], axis=1).sum(axis=1)
        g = np.stack([t[x[:, i]] for i, t in enumerate(gone)], axis=1)
        mixed = (g[:, :-1] * g[:, 1:]) @ near + ((g @ far) * g).sum(axis=1) + 0.5 * np.abs(np.diff(g)).max(axis=1)
        return np.logaddexp(0.0, lost + mixed - 2.0)

    start = solvers.get("dynamic-programming").solve(choice).solution
    return Case(BlackBox(choice, evaluate, choice), start, (50, 100, 200))


CASES: dict[str, Callable[[int], Case]] = {"bits": bits, "levels": levels, "layers": layers}


def random_points(box: BlackBox, rng: np.random.Generator, count: int) -> Any:
    """Feasible points, all alike likely but for real-valued costs."""
    if isinstance(box.space, LevelChoice):
        return LevelSpace(box.space).fitted(rng.integers(box.space.sizes, size=(count, box.n)), rng)
    modes = Modes.of(box, np.zeros(box.n, dtype=bool if box.constraints else np.int64), np.arange(box.n))
    uniform = ProbabilityTensor.product(modes.states, np.zeros((modes.states.modes, modes.size)))
    return modes.points(uniform.sample(count, rng))


def random_curve(case: Case, seed: int) -> Curve:
    points = random_points(case.box, np.random.default_rng(seed), case.marks[-1])
    values = np.minimum.accumulate(case.box.value(points))
    return [(i + 1, float(value)) for i, value in enumerate(values)]


def search_curve(name: str, options: dict[str, Any], case: Case, seed: int) -> Curve:
    # a black box of its own: what another search has evaluated must not save this one any time
    box = case.box.replace()
    result = solvers.get(name, **options).solve(box, start=case.start, seed=seed, evaluation_limit=case.marks[-1])
    return [(row.evaluations, row.objective) for row in result.trace if row.objective is not None]


METHODS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "random feasible": None,
    "tensor-train": ("tensor-train", {}),
    "rank 1": ("tensor-train", {"rank": 1}),
    "without model": ("tensor-train", {"screen": 1, "batch": 25}),
    "rank 1 without model": ("tensor-train", {"screen": 1, "batch": 25, "rank": 1}),
    "cross": ("tensor-train", {"mode": "cross", "evaluations": 4000}),
    "random swaps": ("swap-search", {"ranking": "random"}),
    "swap-search": ("swap-search", {}),
    "level-switch": ("level-switch", {}),
    "random level switches": ("level-switch", {"ranking": "random"}),
    "coefficient-search": ("coefficient-search", {}),
    "unscreened coefficients": ("coefficient-search", {"screen": 1}),
}


def takes(method: str, box: BlackBox) -> bool:
    asked = METHODS[method]
    return asked is None or solvers.get(asked[0], **asked[1]).refuse(box) is None


def descended(box: BlackBox, point: Any) -> float:
    """Value of the local optimum that steepest descent by exchanges reaches."""
    value = float(box.value(point))
    while True:
        near = np.array([*neighbours(box, point)])
        values = box.value(near)
        if values.min() >= value - 1e-12:
            return value
        value, point = float(values.min()), near[np.argmin(values)]


def neighbours(box: BlackBox, point: Any) -> Iterator[Any]:
    """Feasible points that differ in two coordinates."""
    sizes = [2] * box.n if box.constraints else box.space.sizes
    moved = []
    for i in range(box.n):
        for j in range(i):
            for a in range(sizes[i]):
                for b in range(sizes[j]):
                    if a != point[i] and b != point[j]:
                        near = np.array(point)
                        near[i], near[j] = a, b
                        moved.append(near)
    rows = np.array(moved)
    yield from rows[box.is_feasible(rows)]


def at(curve: Curve, mark: int) -> float:
    return min(value for evaluations, value in curve if evaluations <= mark)


def table(name: str, methods: list[str], seeds: range) -> None:
    cases = [CASES[name](seed) for seed in seeds]
    methods = [method for method in methods if takes(method, cases[0].box)]
    found: dict[str, list[Curve]] = {}
    seconds: dict[str, float] = {}
    for method in methods:
        began, asked = time.perf_counter(), METHODS[method]
        found[method] = [
            random_curve(case, seed) if asked is None else search_curve(*asked, case, seed)
            for seed, case in zip(seeds, cases, strict=True)
        ]
        seconds[method] = (time.perf_counter() - began) / len(seeds)
    best = [min(at(curves[i], case.marks[-1]) for curves in found.values()) for i, case in enumerate(cases)]
    for i, case in enumerate(cases if name != "layers" else ()):
        points = random_points(case.box, np.random.default_rng(i), DESCENTS if case.box.constraints else 5)
        best[i] = min(best[i], *(descended(case.box.replace(), point) for point in points))
    starts = [float(case.box.value(case.start)) for case in cases]
    marks = cases[0].marks
    print(f"\n{name}: gap in %, {len(seeds)} seeds; the start alone {np.median(gaps(starts, best)):.1f}")
    print(f"{'method':<24}" + "".join(f"{mark:>10}" for mark in marks) + f"{'seconds':>10}")
    for method in methods:
        shown = [np.median(gaps([at(curve, mark) for curve in found[method]], best)) for mark in marks]
        print(f"{method:<24}" + "".join(f"{gap:>10.2f}" for gap in shown) + f"{seconds[method]:>10.1f}", flush=True)


def gaps(values: list[float], best: list[float]) -> list[float]:
    return [100 * (value - least) / abs(least) for value, least in zip(values, best, strict=True)]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=[*CASES, "all"], default="all")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first", type=int, default=100, help="the first seed")
    parser.add_argument("--methods", default=",".join(METHODS), help="names, separated by commas")
    asked = parser.parse_args()
    for name in CASES if asked.case == "all" else [asked.case]:
        table(name, asked.methods.split(","), range(asked.first, asked.first + asked.seeds))


if __name__ == "__main__":
    main()
