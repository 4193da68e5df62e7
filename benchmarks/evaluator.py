"""What an evaluation of a selection costs, and how near the refit stand-in comes to the refit it stands in for.

    python benchmarks/evaluator.py                           both tables, DnCNN sigma 25
    python benchmarks/evaluator.py --seconds 10 --crops 4    a quick look

DnCNN sigma 25 on calibration crops, 36 % of the channels removed. First table: milliseconds for one selection on all
crops, when a search walks from the hybrid QUBO's selection by exchanges of two units, asks for eight at a time and
takes a step about every seventh; the ways take turns. masked: `apply_masks` and `evaluate`, as anyone would write it.
removed: the `Evaluator` without memory. resumed: with it, layers before the first change being answered from what was
computed before; last, the share of the layers so answered. Second table: PSNR in dB of the masks alone, after the
`Evaluator`'s stand-in, and after `refit`, all on the same crops.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from denoisers import DENOISERS, Data
from torch import nn

import prunesolve as ps
from prunesolve.bridges.torch.evaluate import Counters, Evaluator, evaluate
from prunesolve.formulations import Formulation, HybridQubo, L1Qubo, Reconstruction

KEEP, ROWS, STEP = 0.64, 8, 0.15
# rounds before the clock runs: a resumption is checked the first time from each layer
WARM = 8
CHOSEN: dict[str, Formulation] = {
    "Taylor": HybridQubo(alpha=1.0, beta=0.0),
    "hybrid": HybridQubo(),
    "reconstruction": Reconstruction(),
    "L1": L1Qubo(beta=0.0),
}
DTYPES = (torch.float32, torch.bfloat16)
Timed = Callable[[np.ndarray], Any]


def selections(stats: ps.Statistics, seed: int) -> dict[str, np.ndarray]:
    """(n,) what is kept, by the way it was chosen."""
    found = {
        name: ps.solve(form.encode(stats, keep=KEEP), solver="swap-annealing", time_limit=1.0, seed=seed).solution
        for name, form in CHOSEN.items()
    }
    drawn = np.zeros(stats.n, dtype=bool)
    drawn[np.random.default_rng(seed).permutation(stats.n)[: found["hybrid"].sum()]] = True
    return {**found, "random": drawn}


def neighbours(centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(ROWS, n) exchanges of two units from a centre, which moves to one of them now and then."""
    rows = []
    for _ in range(ROWS):
        row = centre.copy()
        row[rng.choice(np.flatnonzero(centre))] = False
        row[rng.choice(np.flatnonzero(~centre))] = True
        rows.append(row)
        if rng.random() < STEP:
            centre[:] = row
    return np.array(rows)


def masked(network: nn.Module, data: Data, groups: Any, rows: np.ndarray) -> None:
    for row in rows:
        mask = ps.masks(ps.Selection(groups, row), network)
        evaluate(ps.apply_masks(copy.deepcopy(network), mask), data)


def ways(network: nn.Module, data: Data, groups: Any) -> dict[tuple[str, str, str], tuple[Timed, Evaluator | None]]:
    """{(precision, refit, way): what to time and, where it is one, the evaluator}."""
    found: dict[tuple[str, str, str], tuple[Timed, Evaluator | None]] = {}
    for dtype in DTYPES:
        short = [(x.to(dtype), y.to(dtype)) for x, y in data]
        kind = str(dtype).removeprefix("torch.")
        found[kind, "no", "masked"] = partial(masked, copy.deepcopy(network).to(dtype), short, groups), None
        for refit in (False, True):
            for way, memory in (("removed", 0), ("resumed", 2**30)):
                made = Evaluator(network, data, groups, guard=False, dtype=dtype, refit=refit, memory=memory)
                found[kind, "yes" if refit else "no", way] = made.evaluate, made
    return found


def cost_table(network: nn.Module, data: Data, groups: Any, start: np.ndarray, seconds: float, seed: int) -> None:
    timed = ways(network, data, groups)
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in timed}
    rng, centre = np.random.default_rng(seed), start.copy()
    for _ in range(WARM):
        rows = neighbours(centre, rng)
        for (_, _, way), (_, made) in timed.items():
            if made is not None and way == "resumed":
                made.evaluate(rows)
                made.counters = Counters()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times["float32", "no", "masked"]) < 4:
        rows = neighbours(centre, rng)
        for key, (run, _) in timed.items():
            # masking takes as long whatever came before
            asked = rows[:1] if key[2] == "masked" else rows
            started = time.perf_counter()
            run(asked)
            times[key].append((time.perf_counter() - started) / len(asked))
    print(f"{'precision':<12}{'refit':<8}{'masked ms':>12}{'removed ms':>12}{'resumed ms':>12}{'layers skipped':>16}")
    for kind, refit in dict.fromkeys(key[:2] for key in timed):
        line = ""
        for way in ("masked", "removed", "resumed"):
            spent = times.get((kind, refit, way), [])
            line += f"{1e3 * np.median(spent):>12.1f}" if spent else f"{'-':>12}"
        made = timed[kind, refit, "resumed"][1]
        skipped = made.counters.skipped / made.counters.layers if made is not None else 0.0
        print(f"{kind:<12}{refit:<8}{line}{skipped:>15.0%}", flush=True)
    print(f"medians of {len(times['float32', 'no', 'masked'])} rounds of {ROWS} selections\n")


def refit_table(network: nn.Module, data: Data, groups: Any, chosen: dict[str, np.ndarray]) -> None:
    evaluator = Evaluator(network, data, groups, guard=False, refit=True)
    print(f"{'selection':<16}{'mask dB':>10}{'stand-in dB':>13}{'refit dB':>10}{'stand-in s':>12}{'refit s':>10}")
    for name, keep in chosen.items():
        selection = ps.Selection(groups, keep)
        smaller = ps.shrink(network, selection, data[0][0][:1])
        began = time.perf_counter()
        stand_in = evaluator.score(keep)["metric"]
        between = time.perf_counter()
        refitted = ps.refit(network, smaller, data, selection)
        ended = time.perf_counter()
        alone, whole = (evaluate(net, data)["metric"] for net in (smaller, refitted))
        seconds = f"{between - began:>12.2f}{ended - between:>10.2f}"
        print(f"{name:<16}{alone:>10.2f}{stand_in:>13.2f}{whole:>10.2f}{seconds}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--side", type=int, default=40, help="edge of the crops, at most 64")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the first table")
    parser.add_argument("--draw", type=int, default=0, help="of the crops")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = DENOISERS["dncnn_s25"]
    network, crops = source.network(), source.calibration(options.draw, crops=options.crops)
    # one batch: small ones leave the processor waiting for Python
    x, y = (torch.cat(part)[..., : options.side, : options.side].contiguous() for part in zip(*crops, strict=True))
    data = [(x, y)]
    stats = ps.measure(network, data)
    chosen = selections(stats, options.draw)
    print(f"{tuple(x.shape)} crops, {stats.n} channels, {chosen['hybrid'].sum()} kept, {options.threads} thread(s)\n")
    cost_table(network, data, stats.groups, chosen["hybrid"], options.seconds, options.draw)
    refit_table(network, data, stats.groups, chosen)


if __name__ == "__main__":
    main()
