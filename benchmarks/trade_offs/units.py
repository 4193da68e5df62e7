"""Loss against parameters over single units: seeded and unseeded NSGA-II, greedy removal, pymoo's default."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prunesolve import solvers

from . import pymoo_default
from .cases import Bench
from .objectives import Objectives, front, hypervolume, thinned
from .paths import reconstruction_path, taylor_path

PYMOO, PLAIN, SEEDED = "pymoo's default", "nsga2, unseeded", "nsga2, seeded"
SMALLER = "pymoo's default, as many points as nsga2"
GREEDY = {"greedy removal, Taylor": taylor_path, "greedy removal, reconstruction": reconstruction_path}
POPULATION = 100
Job = tuple[dict[str, Any], Callable[[], dict[str, Any]]]


def greedy(bench: Bench, objectives: Objectives, method: str, evaluations: int) -> Any:
    """Every point of the path, or as many as are allowed, evenly spread."""
    path = GREEDY[method](bench.stats)
    chosen = np.unique(np.linspace(0, len(path) - 1, min(evaluations, len(path))).round().astype(int))
    objectives(path[chosen])
    return path[chosen], {}


def seeds(bench: Bench, objectives: Objectives, most: float = 1.0) -> np.ndarray:
    """Half a population from both greedy paths, evenly spread over the share of the cost up to the most."""
    paths = [path(bench.stats) for path in GREEDY.values()]
    paths = [p[objectives.share(p) <= most + 1e-9] for p in paths]
    each = POPULATION // (2 * len(paths))
    rows = [p[thinned(np.stack([np.zeros(len(p)), objectives.share(p)], 1), each)] for p in paths]
    return np.unique(np.concatenate(rows), axis=0)


def searched(bench: Bench, objectives: Objectives, method: str, evaluations: int) -> Any:
    starts = seeds(bench, objectives) if method == SEEDED else ()
    problem = bench.problem(objectives, starts)
    solver = solvers.get("nsga2", population=POPULATION)
    result = solver.solve(problem, seed=bench.draw, evaluation_limit=evaluations)
    told = {what: result.details.get(what) for what in ("generations", "population")} | {"solver": result.solver}
    return result.front.solutions, told


def defaulted(bench: Bench, objectives: Objectives, method: str, evaluations: int) -> Any:
    seen: list[np.ndarray] = []

    def evaluate(keep: Any) -> Any:
        seen.append(keep)
        return objectives(keep)

    # nsga2 takes no more than a twentieth of the evaluations
    population = min(POPULATION, evaluations // 20) if method == SMALLER else POPULATION
    told = pymoo_default.minimised(evaluate, bench.stats.group_of, evaluations, bench.draw, population)
    return np.concatenate(seen), told


METHODS: dict[str, Callable[..., Any]] = {
    PYMOO: defaulted,
    SMALLER: defaulted,
    PLAIN: searched,
    SEEDED: searched,
    **dict.fromkeys(GREEDY, greedy),
}


def jobs(asked: Namespace) -> Iterator[Job]:
    for draw in range(asked.draws):
        for name in asked.network.split(","):
            for refit in {"no": [False], "yes": [True], "both": [False, True]}[asked.refit]:
                bench = Bench(name, draw, refit)
                for method in METHODS:
                    key = {"network": name, "draw": draw, "refit": refit, "method": method, "limit": asked.evaluations}
                    yield key, lambda bench=bench, method=method: row(bench, method, asked.evaluations)


def row(bench: Bench, method: str, evaluations: int) -> dict[str, Any]:
    objectives = bench.objectives()
    began = time.perf_counter()
    candidates, told = METHODS[method](bench, objectives, method, evaluations)
    seconds = time.perf_counter() - began
    values = np.array([objectives.log[np.packbits(x).tobytes()] for x in candidates])
    best = front(values)
    seen = objectives.seen
    return told | {
        "n": bench.stats.n,
        "evaluations": len(seen),
        "seconds": seconds,
        "evaluation_seconds": objectives.seconds,
        "hypervolume": hypervolume(seen, bench.reference),
        "unseen": hypervolume(bench.judged(candidates[best]), bench.reference),
        "front": values[best].round(6).tolist(),
        "seen": seen.round(6).tolist(),
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Mean and half the range over the draws; the ratio is that of each draw to pymoo's default."""
    for where in dict.fromkeys((r["network"], r["refit"], r["limit"]) for r in rows):
        here = [r for r in rows if (r["network"], r["refit"], r["limit"]) == where]
        name, refit, limit = where
        yield f"\n{name}, n = {here[0]['n']}, loss {'after the stand-in refit' if refit else 'of the mask alone'}, "
        yield f"at most {limit} evaluations, hypervolume as a share of the box up to the reference\n"
        yield "| method | draws | evaluations | hypervolume | to pymoo's | on unseen data | seconds | in the network |"
        yield "|---|---|---|---|---|---|---|---|"
        base = {r["draw"]: r["hypervolume"] for r in here if r["method"] == PYMOO}
        for method in dict.fromkeys(r["method"] for r in here):
            group = [r for r in here if r["method"] == method]
            ratios = [r["hypervolume"] / base[r["draw"]] for r in group if base.get(r["draw"])]
            cells = [
                method,
                len(group),
                f"{np.mean([r['evaluations'] for r in group]):.0f}",
                spread([r["hypervolume"] for r in group]),
                spread(ratios, 2) if ratios else "",
                spread([r["unseen"] for r in group]),
                f"{np.mean([r['seconds'] for r in group]):.0f}",
                f"{np.mean([r['evaluation_seconds'] for r in group]):.0f}",
            ]
            yield "| " + " | ".join(map(str, cells)) + " |"


def spread(values: list[float], digits: int = 4) -> str:
    return f"{np.mean(values):.{digits}f} ± {(max(values) - min(values)) / 2:.{digits}f}"


STYLES = {
    PYMOO: ("#999999", "-"),
    SMALLER: ("#999999", ":"),
    "greedy removal, Taylor": ("#56B4E9", "--"),
    "greedy removal, reconstruction": ("#0072B2", "--"),
    PLAIN: ("#E69F00", "-"),
    SEEDED: ("#D55E00", "-"),
}


def plot(rows: list[dict[str, Any]]) -> Path:
    """Fronts of draw 0 above, mean hypervolume against evaluations below; one column a network and loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = list(dict.fromkeys((r["network"], r["refit"]) for r in rows))
    size = max(7.0, 4.4 * len(columns)), 6.4
    figure, axes = plt.subplots(2, len(columns), figsize=size, squeeze=False, layout="constrained")
    for (name, refit), (fronts, curves) in zip(columns, axes.T, strict=True):
        reference = Bench(name, 0).reference
        for method, (colour, style) in STYLES.items():
            runs = [r for r in rows if (r["network"], r["refit"], r["method"]) == (name, refit, method)]
            if not runs:
                continue
            points = np.array(runs[0]["front"])[::-1]
            fronts.plot(points[:, 1], points[:, 0], style, color=colour, label=method, drawstyle="steps-post")
            # a path is no search: it has no order in which it gets better
            if method in GREEDY:
                curves.axhline(np.mean([r["hypervolume"] for r in runs]), linestyle=style, color=colour)
                continue
            grid = np.unique(np.linspace(10, min(r["evaluations"] for r in runs), 60).astype(int))
            grown = [[hypervolume(np.array(r["seen"])[:e], reference) for e in grid] for r in runs]
            curves.plot(grid, np.mean(grown, axis=0), style, color=colour)
        what = "after the stand-in refit" if refit else "mask alone"
        fronts.set(title=f"{name}, {what}", xlabel="share of the parameters", ylabel="loss", ylim=(0, reference[0]))
        curves.set(xlabel="evaluations", ylabel="hypervolume")
        for axis in (fronts, curves):
            axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    path = Path("docs/fronts.svg")
    figure.savefig(path)
    return path
