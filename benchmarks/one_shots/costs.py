"""Seconds and peak memory of a method on a network, each in a process of its own that does nothing else.

Peak memory is the high-water mark of the resident set; beside it what the process held when the call began, which is
Python, torch, the network and the images.
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import methods
from .cases import Bench
from .methods import Job, Method, Row

RUNNER = Path(__file__).resolve().parents[1] / "one_shot.py"
SHARES = {"structured": 0.5, "unstructured": 0.9, "two_four": 0.5}


def jobs(asked: Namespace) -> Iterator[Job]:
    parts = [asked.of] if asked.of else list(SHARES)
    for case in asked.cases:
        for seed in asked.seeds:
            bench = Bench(case, seed, asked.calibration, asked.images)
            for part in parts:
                for name, method in _methods(part).items():
                    if methods.wanted(name, asked.only):
                        share = SHARES[part]
                        key = methods.key("costs", bench, f"{part}: {name}", share, method.kind)
                        yield key, lambda b=bench, p=part, n=name, s=share: _in_a_process(b, p, n, s)


def _methods(part: str) -> dict[str, Method]:
    return importlib.import_module(f"{__package__}.{part}").METHODS


def _in_a_process(bench: Bench, part: str, name: str, share: float) -> Row:
    told: list[Any] = [sys.executable, RUNNER, "once", "--of", part, "--cases", bench.name, "--only", name]
    told += ["--shares", share, "--seeds", bench.seed, "--calibration", bench.count]
    told += ["--threads", torch.get_num_threads()]
    done = subprocess.run([str(part) for part in told], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def once(asked: Namespace) -> Row:
    """What the process of one method tells; nothing is scored."""
    bench = Bench(asked.cases[0], asked.seeds[0], asked.calibration, asked.images)
    # read before the high-water mark is
    _ = bench.network, bench.data
    before = _high_water()
    _, told = methods.timed(bench, _methods(asked.of)[asked.only[0]], asked.shares[0])
    return {what: told[what] for what in ("seconds", "cpu", "needs")} | {
        "before_mib": before,
        "peak_mib": _high_water(),
    }


def _high_water() -> float:
    """MiB; Linux counts KiB, macOS bytes."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / 2**20 if sys.platform == "darwin" else held / 2**10
