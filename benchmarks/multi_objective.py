"""Whole trade-offs of real networks: fronts of loss against parameters, and half the multiply-adds of ResNets.

    python benchmarks/multi_objective.py units --network resnet20   loss against parameters over 336 channels
    python benchmarks/multi_objective.py units --network dncnn      the same over 1,024
    python benchmarks/multi_objective.py half --network resnet20    top-1 at half the multiply-adds
    python benchmarks/multi_objective.py proxy                      the exact front of the additive proxy, and the truth
    python benchmarks/multi_objective.py divide                     EMO-DIR and the whole network, equal evaluations
    python benchmarks/multi_objective.py overhead                   what a generation costs beside the evaluations
    python benchmarks/multi_objective.py resume                     killed in the middle, resumed, the same front
    python benchmarks/multi_objective.py units --table --plot       from the rows on disk alone

Every row is one run. Rows are appended to benchmarks/out/multi_objective.jsonl as they come and are not computed again.
Statistics, search and the judgement on unseen data use different training images; test images only score.
Hypervolumes are shares of the box up to a fixed reference: the loss of a network that knows nothing (guessing among
ten classes; predicting no noise) and the whole cost. They are computed here from the log of evaluations.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from trade_offs.cases import OUT

ROWS = OUT / "multi_objective.jsonl"
PARTS = ("units", "half", "proxy", "divide", "overhead", "resume")
PLOTTED = ("units", "proxy")


def rows(part: str) -> list[dict[str, Any]]:
    """What was computed before."""
    if not ROWS.exists():
        return []
    return [row for row in map(json.loads, ROWS.read_text().splitlines()) if row["part"] == part]


def compute(part: str, jobs: Iterator[Any], methods: str) -> None:
    ROWS.parent.mkdir(exist_ok=True)
    for key, job in jobs:
        done = any(row.items() >= key.items() for row in rows(part))
        if done or not _wanted(key, methods):
            continue
        row = {"part": part} | key | job()
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({k: v for k, v in row.items() if not isinstance(v, (list, dict))}, flush=True)


def _wanted(key: dict[str, Any], methods: str) -> bool:
    return methods == "all" or key.get("method", "") in methods.split(";")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--network", default="resnet20", help="comma-separated: resnet20, resnet32, dncnn")
    parser.add_argument("--draws", type=int, default=3, help="of data and solver seed")
    parser.add_argument("--evaluations", type=int, default=1000, help="the same for all methods")
    parser.add_argument("--refit", choices=("no", "yes", "both"), default="no", help="units: loss after the stand-in")
    parser.add_argument("--images", type=int, default=9977, help="half: exact test images")
    parser.add_argument("--epochs", type=int, default=2, help="half: of the fine-tuning")
    parser.add_argument("--methods", default="all", help="semicolon-separated, as in the table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of what is on disk and compute nothing")
    parser.add_argument("--plot", action="store_true", help="units, proxy: write docs/*.svg, compute nothing")
    asked = parser.parse_args()
    if asked.plot and asked.part not in PLOTTED:
        parser.error(f"--plot: expected one of {', '.join(PLOTTED)}, got {asked.part}")
    torch.set_num_threads(asked.threads)
    part = importlib.import_module(f"trade_offs.{asked.part}")
    if not asked.table and not asked.plot:
        compute(asked.part, part.jobs(asked), asked.methods)
    if asked.plot:
        print("wrote", part.plot(rows(asked.part)))
    if not asked.plot or asked.table:
        print(*part.table(rows(asked.part)), sep="\n")


if __name__ == "__main__":
    main()
