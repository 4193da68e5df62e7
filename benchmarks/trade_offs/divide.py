"""EMO-DIR, by both joins, beside NSGA-II on the whole network: the same points to begin with, the same evaluations.

An evaluation of one part costs what one of the whole costs, less what the prefix cache answers; seconds are told too.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import prunesolve as ps
from prunesolve.bridges.torch.subnetworks import Subnetworks
from prunesolve.formulations import HybridQubo

from .cases import Bench
from .objectives import hypervolume
from .units import POPULATION, spread

WHOLE = "nsga2 on the whole"
METHODS: dict[str, dict[str, Any]] = {
    WHOLE: {"solver": "nsga2", "population": POPULATION},
    "emo-dir, gpir": {"solver": "emo-dir", "join": "gpir"},
    "emo-dir, knapsack": {"solver": "emo-dir", "join": "knapsack"},
    "emo-dir, gpir, pruned predecessors": {"solver": "emo-dir", "join": "gpir"},
}


def jobs(asked: Namespace) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    for draw in range(asked.draws):
        for name in asked.network.split(","):
            for method in METHODS:
                key = {"network": name, "draw": draw, "method": method, "limit": asked.evaluations}
                bench = Bench(name, draw, refit=True)
                yield key, lambda bench=bench, method=method: row(bench, method, asked.evaluations)


def row(bench: Bench, method: str, evaluations: int) -> dict[str, Any]:
    composite = divided(bench, method.endswith("predecessors"))
    problem = composite.joint if method == WHOLE else composite
    began = time.perf_counter()
    result = ps.solve(problem, seed=bench.draw, evaluation_limit=evaluations, **METHODS[method])
    seconds = time.perf_counter() - began
    dense = composite.joint.values(composite.dense)[1]
    points = result.front.objectives / [1.0, dense]
    judged = bench.judged(in_order(bench, result.front.solutions))
    return {
        "n": composite.n,
        "parts": len(composite.parts),
        "evaluations": result.evaluations,
        "seconds": seconds,
        "hypervolume": hypervolume(points, bench.reference),
        "unseen": hypervolume(judged, bench.reference),
        "correlation": result.details.get("additive", {}).get("correlation"),
        "additive": [result.details.get("additive", {}).get(key, []) for key in ("foretold", "measured")],
        "front": points.round(6).tolist(),
    }


def divided(bench: Bench, cross: bool) -> ps.problems.Composite:
    stats = bench.stats
    pruned = None
    if cross:
        formulation = HybridQubo(alpha=1.0, beta=0.0)
        keep = ps.solve(formulation.encode(stats, keep=0.5), solver="greedy").solution
        pruned = ps.Selection(stats.groups, keep)
    split = Subnetworks(
        bench.network,
        bench.source.searched(bench.draw),
        stats.groups,
        cross=pruned,
        refit=True,
        dtype=torch.bfloat16,
    )
    worth = dict(
        zip((g.name for g in stats.groups), np.split(stats.criterion("taylor"), stats.starts[1:-1]), strict=True)
    )
    saliency = np.concatenate([worth[group.name] for group in split.groups])
    return split.composite(saliency=saliency, reference=(bench.reference[0], stats.total("params")))


def in_order(bench: Bench, solutions: Any) -> Any:
    """Selections (m, n) of the parts' groups as selections of the statistics' groups."""
    split = Subnetworks(bench.network, bench.source.searched(bench.draw), bench.stats.groups)
    parts = np.split(solutions, split.starts[1:-1], axis=1)
    named = dict(zip((group.name for group in split.groups), parts, strict=True))
    dense = [np.ones((len(solutions), group.size), dtype=bool) for group in bench.stats.groups]
    return np.concatenate([named.get(g.name, d) for g, d in zip(bench.stats.groups, dense, strict=True)], axis=1)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    for where in dict.fromkeys((r["network"], r["limit"]) for r in rows):
        here = [r for r in rows if (r["network"], r["limit"]) == where]
        yield f"\n{where[0]}, n = {here[0]['n']}, at most {where[1]} evaluations, loss after the stand-in refit\n"
        yield "| method | draws | parts | evaluations | hypervolume | on unseen data | sum foretells (r) | seconds |"
        yield "|---|---|---|---|---|---|---|---|"
        for method in dict.fromkeys(r["method"] for r in here):
            group = [r for r in here if r["method"] == method]
            known = [r["correlation"] for r in group if r["correlation"] is not None]
            cells = [
                method,
                len(group),
                "" if method == WHOLE else group[0]["parts"],
                f"{np.mean([r['evaluations'] for r in group]):.0f}",
                spread([r["hypervolume"] for r in group]),
                spread([r["unseen"] for r in group]),
                spread(known, 2) if known else "",
                f"{np.mean([r['seconds'] for r in group]):.0f}",
            ]
            yield "| " + " | ".join(map(str, cells)) + " |"
