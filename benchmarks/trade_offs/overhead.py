"""What a generation costs by itself: objectives that take next to no time, real costs, populations of 100.

Processor time of one thread, which other load on the machine moves less than the clock on the wall.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from prunesolve import solvers

from . import pymoo_default
from .cases import Bench
from .objectives import Objectives
from .units import PLAIN, POPULATION, PYMOO, spread


class _Saliency:
    """Stands in for the network: the Taylor saliency that is gone."""

    def __init__(self, bench: Bench) -> None:
        self.saliency = bench.stats.criterion("taylor")

    def evaluate(self, keep: Any) -> np.ndarray:
        return (~keep) @ self.saliency


def jobs(asked: Namespace) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    for draw in range(asked.draws):
        for name in asked.network.split(","):
            for method in (PLAIN, PYMOO):
                key = {"network": name, "draw": draw, "method": method, "limit": 5000}
                yield key, lambda name=name, draw=draw, method=method: row(Bench(name, draw), method)


def row(bench: Bench, method: str) -> dict[str, Any]:
    objectives = Objectives(_Saliency(bench), bench.stats, clock=time.process_time)
    began = time.process_time()
    if method == PYMOO:
        told = pymoo_default.minimised(objectives, bench.stats.group_of, 5000, bench.draw, POPULATION)
    else:
        solver = solvers.get("nsga2", population=POPULATION)
        told = solver.solve(bench.problem(objectives), seed=bench.draw, evaluation_limit=5000).details
    spent = time.process_time() - began - objectives.seconds
    generations = int(told["generations"])
    return {"n": bench.stats.n, "generations": generations, "cpu_milliseconds": 1e3 * spent / generations}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"Processor time of a generation of {POPULATION} points without the evaluations, mean ± half the range\n"
    yield "| n | method | draws | generations | ms a generation |"
    yield "|---|---|---|---|---|"
    for n, method in dict.fromkeys((r["n"], r["method"]) for r in rows):
        group = [r for r in rows if (r["n"], r["method"]) == (n, method)]
        generations = f"{np.mean([r['generations'] for r in group]):.0f}"
        yield f"| {n} | {method} | {len(group)} | {generations} | {spread([r['cpu_milliseconds'] for r in group], 1)} |"
