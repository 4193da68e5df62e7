"""How good a network is right after pruning: ours, torch-pruning and torch.nn.utils.prune, in one process, untrained.

    python benchmarks/one_shot.py structured                    whole units: 20, 36, 50, 70 % go
    python benchmarks/one_shot.py unstructured                  single weights: 50, 80, 90, 95, 95.5 % are zero
    python benchmarks/one_shot.py two_four                      two of every four weights are zero
    python benchmarks/one_shot.py criteria                      whole units: every criterion before every repair
    python benchmarks/one_shot.py repairs                       single weights: every mask before every repair
    python benchmarks/one_shot.py ice                           half the units, with labels and fine-tuning
    python benchmarks/one_shot.py costs                         seconds and peak memory, each in a fresh process
    python benchmarks/one_shot.py table                         all rows on disk as tables
    python benchmarks/one_shot.py plot                          the curves of what is on disk, docs/one-shot.svg
    python benchmarks/one_shot.py structured --cases resnet20 --only torch-pruning --shares 0.5 --seeds 0

Every row is one network, pruned and scored: how, on which images, its score, what stays of it, the seconds of the
call. Rows are appended to benchmarks/out/one_shot.jsonl as they come and are not computed again for the same code.
Calibration images are training images, 2,048 (64 crops for the denoiser), the same for all methods, drawn by the
seed; test images only score. Peers get BatchNorm recalibrated on the same images.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import torch
from one_shots import rows
from one_shots.cases import CASES

COMPUTED = ("structured", "unstructured", "two_four", "criteria", "repairs", "ice", "costs")
TOLD = ("table", "plot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*COMPUTED, *TOLD, "once"], help="once: what costs runs in its processes")
    parser.add_argument("--cases", type=_names, default=list(CASES), help="comma-separated: " + ", ".join(CASES))
    parser.add_argument("--only", type=lambda text: text.split(";"), default=[], help="parts of names, semicolons")
    parser.add_argument("--shares", type=_numbers(float), default=None, help="comma-separated shares that go")
    parser.add_argument("--seeds", type=_numbers(int), default=[0, 1, 2], help="comma-separated, of data and solvers")
    parser.add_argument("--images", type=int, default=None, help="test images; default all that are exact")
    parser.add_argument("--calibration", type=int, default=None, help="images or crops; default 2,048 or 64")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--any-code", action="store_true", help="take rows of other code for done")
    parser.add_argument("--rows", type=Path, default=rows.ROWS, help="where the rows are")
    parser.add_argument("--of", choices=COMPUTED, default=None, help="table: this part alone; once: whose method")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.part in COMPUTED:
        part = importlib.import_module(f"one_shots.{asked.part}")
        for row in rows.compute(part.jobs(asked), asked.rows, asked.any_code):
            print({name: value for name, value in row.items() if not isinstance(value, dict | list)}, flush=True)
    elif asked.part == "once":
        print(json.dumps(importlib.import_module("one_shots.costs").once(asked)))
    else:
        told = importlib.import_module(f"one_shots.{asked.part}s")
        print(*told.told(rows.read(asked.rows), asked), sep="\n")


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(CASES)}, got {', '.join(unknown)}")
    return names


def _numbers(kind: type) -> object:
    def numbers(text: str) -> list[float]:
        return [kind(part) for part in text.split(",")]

    return numbers


if __name__ == "__main__":
    main()
