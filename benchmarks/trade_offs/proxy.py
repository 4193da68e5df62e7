"""The exact front of the additive proxy (errors of single layers, summed) and what the stitched networks truly lose.

Two proxies: the level database's own errors, and the true loss with one layer at a level and the others dense.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import prunesolve as ps
from prunesolve import solvers

from .cases import Bench
from .half import levels
from .objectives import front, hypervolume, thinned
from .units import POPULATION, spread

POINTS = 60
PROXIES = ("errors of the database", "losses of single layers")
SEARCH = "nsga2 over levels"


def jobs(asked: Namespace) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    for draw in range(asked.draws):
        for name in asked.network.split(","):
            bench = Bench(name, draw)
            for method in PROXIES:
                key = {"network": name, "draw": draw, "method": method, "limit": POINTS}
                yield key, lambda bench=bench, method=method: row(bench, method)
            key = {"network": name, "draw": draw, "method": SEARCH, "limit": asked.evaluations}
            yield key, lambda bench=bench: searched(bench, asked.evaluations)


def row(bench: Bench, method: str) -> dict[str, Any]:
    """The proxy's front beside random levels, all of them measured."""
    found, data = levels(bench), bench.source.searched(bench.draw)
    error = found.losses(data, dtype=torch.bfloat16) if method == PROXIES[1] else None
    choice = found.choice("params", error=error)
    began = time.perf_counter()
    exact = ps.solve(choice, solver="dynamic-programming", front=True)
    seconds = time.perf_counter() - began
    points = exact.front.objectives / [1.0, found.total("params")]
    chosen = exact.front.solutions[thinned(points, POINTS)]
    drawn = _random(choice, np.random.default_rng(bench.draw))
    measured = {
        kind: np.stack([choice.value(rows), choice.spent(rows) / found.total("params"), _loss(bench, found, rows)], 1)
        for kind, rows in (("front", chosen), ("random", drawn))
    }
    truth, noise = measured["front"], measured["random"]
    return {
        "layers": found.n,
        "status": str(exact.status),
        "front_points": len(exact.front.solutions),
        "seconds": seconds,
        "evaluations": len(chosen) + (sum(map(len, found.keep)) if error is not None else 0),
        "rank_front": rank_correlation(truth[:, 0], truth[:, 2]),
        "rank_random": rank_correlation(noise[:, 0], noise[:, 2]),
        "rank_equal_cost": rank_correlation(*_detrended(noise)),
        "hypervolume": hypervolume(truth[:, [2, 1]], bench.reference),
        "unseen": hypervolume(_judged(bench, found, chosen), bench.reference),
        "measured": {kind: values.round(6).tolist() for kind, values in measured.items()},
    }


def searched(bench: Bench, evaluations: int) -> dict[str, Any]:
    """The true trade-off of the same networks, searched from the proxy's front on."""
    found, data = levels(bench), bench.source.searched(bench.draw)
    dynamic = solvers.get("dynamic-programming", front=True)
    problem = found.multi_objective(data, ("loss", "params"), solver=dynamic, dtype=torch.bfloat16)
    began = time.perf_counter()
    solver = solvers.get("nsga2", population=POPULATION)
    result = solver.solve(problem, seed=bench.draw, evaluation_limit=evaluations)
    points = result.front.objectives / [1.0, found.total("params")]
    return {
        "layers": found.n,
        "seconds": time.perf_counter() - began,
        "evaluations": result.evaluations,
        "hypervolume": hypervolume(points, bench.reference),
        "unseen": hypervolume(_judged(bench, found, result.front.solutions), bench.reference),
        "front": points[front(points)].round(6).tolist(),
    }


def _random(choice: Any, rng: np.random.Generator) -> np.ndarray:
    """Levels around every density, so that proxies and losses of all sizes are met."""
    density = np.linspace(0.1, 1.0, POINTS)[:, None] + rng.normal(0.0, 0.2, (POINTS, choice.n))
    return np.rint(density.clip(0.0, 1.0) * (np.asarray(choice.sizes) - 1)).astype(np.int64)


def _loss(bench: Bench, found: Any, rows: Any) -> np.ndarray:
    evaluator = found.evaluator(bench.source.searched(bench.draw), dtype=torch.bfloat16)
    return evaluator.evaluate(found.bits(rows))


def _judged(bench: Bench, found: Any, rows: Any) -> np.ndarray:
    """(m, 2) loss on unseen data and share of the parameters."""
    evaluator = found.evaluator(bench.source.judged(bench.draw), dtype=torch.bfloat16)
    spent = found.choice("params").spent(rows) / found.total("params")
    return np.stack([evaluator.evaluate(found.bits(rows)), spent], axis=1)


def _detrended(measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of proxy and loss with their trend in the cost taken out: do they agree at equal cost?"""
    cost = np.vander(measured[:, 1], 4)
    logs = [np.log(np.maximum(measured[:, i], 1e-9)) for i in (0, 2)]
    proxy, loss = (log - cost @ np.linalg.lstsq(cost, log, rcond=None)[0] for log in logs)
    return proxy, loss


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    for name in dict.fromkeys(r["network"] for r in rows):
        here = [r for r in rows if r["network"] == name]
        yield f"\n{name}, {here[0]['layers']} layers; rank correlations of the proxy with the measured loss\n"
        yield (
            "| front of | draws | evaluations | hypervolume | on unseen data | seconds "
            "| rank, front | rank, random levels | rank, at equal cost |"
        )
        yield "|---|---|---|---|---|---|---|---|---|"
        for method in dict.fromkeys(r["method"] for r in here):
            group = [r for r in here if r["method"] == method]
            cells = [method, len(group), f"{np.mean([r['evaluations'] for r in group]):.0f}"]
            cells += [spread([r[what] for r in group]) for what in ("hypervolume", "unseen")]
            cells.append(f"{np.mean([r['seconds'] for r in group]):.2f}")
            ranks = ("rank_front", "rank_random", "rank_equal_cost")
            cells += [spread([r[what] for r in group], 2) if what in group[0] else "" for what in ranks]
            yield "| " + " | ".join(map(str, cells)) + " |"


def plot(rows: list[dict[str, Any]]) -> Path:
    """Proxy against measured loss, and the proxy's front beside the searched one; draw 0 of the first network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    name = rows[0]["network"]
    here = {r["method"]: r for r in rows if r["network"] == name and r["draw"] == 0}
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained")
    for axis, method in zip(axes, PROXIES, strict=False):
        for kind, colour in (("random", "#999999"), ("front", "#D55E00")):
            proxy, _, loss = np.array(here[method]["measured"][kind]).T
            label = "random levels" if kind == "random" else "exact front of the proxy"
            axis.plot(proxy, loss, ".", color=colour, label=label, markersize=5)
        axis.set(title=method, xlabel="proxy", ylabel="measured loss", xscale="log", yscale="log")
    for method, colour in zip(PROXIES, ("#0072B2", "#D55E00"), strict=True):
        points = np.array(here[method]["measured"]["front"])[:, [2, 1]]
        axes[2].plot(
            points[:, 1], points[:, 0], ".-", color=colour, label=f"exact, {method}", markersize=4, linewidth=1
        )
    if SEARCH in here:
        points = np.array(here[SEARCH]["front"])
        axes[2].plot(points[:, 1], points[:, 0], "-", color="#009E73", label=SEARCH, linewidth=1.5)
    axes[2].set(title=f"{name}: the truth", xlabel="share of the parameters", ylabel="measured loss", yscale="log")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
    path = Path("docs/additive-proxy.svg")
    figure.savefig(path)
    return path
