"""Hybrid QUBO pruning of denoisers and its refinement against the true metric, after Orabi et al. (2604.05856).

    python benchmarks/hybrid_qubo.py                                       the whole protocol: many hours
    python benchmarks/hybrid_qubo.py --denoiser dncnn_s25 --removed 0.36   one network, one budget, every method
    python benchmarks/hybrid_qubo.py --table --plot                        from the rows on disk alone

Every row is one selection: how it was chosen, by how many evaluations and seconds, its PSNR on the search and guard
halves of the calibration crops and on the test images, alone and after the least-squares refit. Rows are appended to
benchmarks/out/hybrid_qubo.jsonl as they come and are not computed again. Statistics, tuning and search see calibration
images only. Refinements start from the hybrid QUBO's selection; all of them get the same number of evaluations.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from denoisers import DENOISERS, Data, Denoiser

import prunesolve as ps
from prunesolve.formulations import Formulation, HybridQubo, L1Qubo, Reconstruction
from prunesolve.solvers import Refine, Solver, SwapAnnealing, SwapSearch, TensorTrain

ROWS = Path(__file__).parent / "out" / "hybrid_qubo.jsonl"
INNER = SwapAnnealing()
SCOPES = {"1 layer": 1, "8 layers": 8, "full": None}
CHOSEN: dict[str, Formulation] = {
    "l1 greedy": L1Qubo(beta=0.0),
    "greedy Taylor": HybridQubo(alpha=1.0, beta=0.0),
    "l1-qubo": L1Qubo(),
    "hybrid-qubo": HybridQubo(),
    "reconstruction": Reconstruction(),
}
REFINED: dict[str, Callable[[int], Solver]] = {
    "random swaps": lambda e: SwapSearch(evaluations=e, ranking="random"),
    "tensor-train, rank 1": lambda e: TensorTrain(evaluations=e, rank=1),
    "tensor-train": lambda e: TensorTrain(evaluations=e),
    "tensor-train, no model": lambda e: TensorTrain(evaluations=e, screen=1),
    "swap-search": lambda e: SwapSearch(evaluations=e),
}
TUNED = "hybrid-qubo, tuned"
OVER = {"": "bits", " over counts": "counts", " over both": "both"}
# bfloat16 is six times as fast where the processor has matrix tiles; its rounding drowns 38 dB
DTYPES = {"pd_color_real": torch.float32}


@dataclass(frozen=True)
class Case:
    """A denoiser, the layers that may lose units, the share that goes and the draw of all data."""

    denoiser: str
    scope: str
    removed: float
    draw: int


def pruned_layers(source: Denoiser, scope: str) -> list[str] | None:
    """The middle layers of those that may be pruned; None for all."""
    count = SCOPES[scope]
    if count is None:
        return source.layers
    found = ps.find_groups(source.network(), source.calibration(0)[0][0][:1], layers=source.layers)
    layers = [g.layer for g in found.groups]
    first = (len(layers) - count) // 2
    return layers[first : first + count]


@cache
def measured(denoiser: str, scope: str, draw: int) -> ps.Statistics:
    source = DENOISERS[denoiser]
    return ps.measure(source.network(), source.calibration(draw), layers=pruned_layers(source, scope))


class Bench:
    """What all methods of a case share."""

    def __init__(self, case: Case, crops: int) -> None:
        self.case, self.crops = case, crops
        self.source: Denoiser = DENOISERS[case.denoiser]
        self.network = self.source.network()
        self.calibration: Data = self.source.calibration(case.draw)

    @cached_property
    def statistics(self) -> ps.Statistics:
        return measured(self.case.denoiser, self.case.scope, self.case.draw)

    def evaluator(self, refit: bool) -> Any:
        # crops that the statistics have not seen
        data = self.source.calibration(1000 + self.case.draw, crops=2 * self.crops)
        dtype = DTYPES.get(self.case.denoiser, torch.bfloat16)
        return ps.evaluator(self.network, data, self.statistics.groups, objective="metric", refit=refit, dtype=dtype)

    def problem(self, formulation: Formulation) -> ps.BinaryQuadratic:
        return formulation.encode(self.statistics, keep=1 - self.case.removed)

    def scores(self, keep: Any) -> dict[str, float]:
        """Test PSNR of the removed network, alone and after the refit."""
        selection = ps.Selection(self.statistics.groups, keep)
        removed = ps.shrink(self.network, selection, self.calibration[0][0][:1])
        refitted = ps.refit(self.network, removed, self.calibration, selection)
        return {"test": self.source.score(removed), "test_refit": self.source.score(refitted)}


def chosen(bench: Bench, name: str) -> dict[str, Any]:
    """A selection by its formulation alone."""
    problem, began = bench.problem(CHOSEN[name]), time.perf_counter()
    result = ps.solve(problem, solver=INNER, seed=bench.case.draw)
    seconds = time.perf_counter() - began
    return {"method": name, "seconds": seconds, "evaluations": 0, **bench.scores(result.solution)}


def tuned(bench: Bench) -> dict[str, Any]:
    """The hybrid QUBO with its weights tuned on the search half of fresh crops."""
    evaluator = bench.evaluator(refit=False)
    found = ps.tune(HybridQubo(), bench.statistics, evaluator, keep=1 - bench.case.removed, seed=bench.case.draw)
    told = {"method": TUNED, "seconds": found.seconds, "evaluations": found.evaluations}
    return told | {"formulation": repr(found.formulation), **bench.scores(found.keep)}


def refined(bench: Bench, name: str, over: str, evaluations: int, refit: bool) -> dict[str, Any]:
    """The hybrid QUBO's selection refined against the PSNR of the search half, measured with or without the refit."""
    evaluator = bench.evaluator(refit)
    box = evaluator.black_box(bench.problem(CHOSEN["hybrid-qubo"]))
    began = time.perf_counter()
    solver = Refine(INNER, REFINED[name](evaluations), over=OVER[over])
    result = solver.solve(box, seed=bench.case.draw, evaluation_limit=evaluations)
    seconds = time.perf_counter() - began
    before = torch.zeros(box.n, dtype=torch.bool)
    before[result.details["unrefined"]["kept"]] = True
    halves = {
        f"{half}_{moment}": evaluator.score(keep, half)["metric"]
        for half in ("search", "guard")
        for moment, keep in (("before", before.numpy()), ("after", result.solution))
    }
    told = {"method": name + over + (", after refit" if refit else ""), "seconds": seconds}
    curve = [[row.evaluations, row.objective] for row in result.trace]
    return told | {"evaluations": result.evaluations, **halves, "trace": curve, **bench.scores(result.solution)}


def jobs(asked: argparse.Namespace) -> Iterator[tuple[str, Callable[[Bench], dict[str, Any]]]]:
    """(method, what computes its row) of every method asked for."""
    for name in CHOSEN:
        yield name, lambda bench, name=name: chosen(bench, name)
    yield TUNED, tuned
    for refit in (False, True):
        for name in REFINED:
            for over in OVER:
                method = name + over + (", after refit" if refit else "")
                yield (
                    method,
                    lambda bench, name=name, over=over, refit=refit: refined(
                        bench, name, over, asked.evaluations, refit
                    ),
                )


def rows() -> list[dict[str, Any]]:
    """What was computed before."""
    if not ROWS.exists():
        return []
    return [json.loads(line) for line in ROWS.read_text().splitlines()]


def compute(asked: argparse.Namespace) -> None:
    ROWS.parent.mkdir(exist_ok=True)
    done = {(*(row[field] for field in Case.__annotations__), row["method"]) for row in rows()}
    for draw in range(asked.draws):
        for denoiser in asked.denoiser.split(","):
            for scope in asked.scope.split(","):
                for removed in map(float, asked.removed.split(",")):
                    case = Case(denoiser, scope, removed, draw)
                    bench = Bench(case, asked.crops)
                    for method, job in jobs(asked):
                        if (*asdict(case).values(), method) in done or not _wanted(method, asked.methods):
                            continue
                        row = asdict(case) | job(bench)
                        with ROWS.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                        print({k: v for k, v in row.items() if k != "trace"}, flush=True)


def _wanted(method: str, asked: str) -> bool:
    return asked == "all" or method in asked.split(";")


def table(asked: argparse.Namespace) -> None:
    """Mean and spread over the draws, one block for each denoiser, scope and share removed."""
    found = rows()
    for where in sorted({(row["denoiser"], row["scope"], row["removed"]) for row in found}):
        if where[0] not in asked.denoiser.split(",") or where[1] not in asked.scope.split(","):
            continue
        print(f"\n{where[0]}, {where[1]}, {where[2]:.0%} removed: PSNR in dB, mean +- half the range over the draws")
        heads = ("method", "draws", "evaluations", "seconds", "search gain", "guard gain", "test", "after refit")
        print(f"{heads[0]:<36}" + "".join(f"{head:>16}" for head in heads[1:]))
        here = [row for row in found if (row["denoiser"], row["scope"], row["removed"]) == where]
        for method in dict.fromkeys(row["method"] for row in here):
            print(
                f"{method:<36}" + "".join(f"{cell:>16}" for cell in _cells([r for r in here if r["method"] == method]))
            )


def _cells(group: list[dict[str, Any]]) -> Iterator[str]:
    yield str(len(group))
    yield f"{fmean(row['evaluations'] for row in group):.0f}"
    yield f"{fmean(row['seconds'] for row in group):.1f}"
    for half in ("search", "guard"):
        gains = [row[f"{half}_after"] - row[f"{half}_before"] for row in group if f"{half}_after" in row]
        yield _spread(gains, "+") if gains else ""
    yield _spread([row["test"] for row in group])
    yield _spread([row["test_refit"] for row in group])


def _spread(values: list[float], sign: str = "") -> str:
    return f"{fmean(values):{sign}.2f} +- {(max(values) - min(values)) / 2:.2f}"


def plot(asked: argparse.Namespace) -> None:
    """Search PSNR against evaluations: one panel a denoiser, full scope, the mean over the draws."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    removed = float(asked.removed.split(",")[0])
    here = [row for row in rows() if row["scope"] == "full" and row["removed"] == removed and row.get("trace")]
    names = [name for name in asked.denoiser.split(",") if any(row["denoiser"] == name for row in here)]
    figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 3.6), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        for method, (colour, style) in STYLES.items():
            runs = [row for row in here if row["denoiser"] == name and row["method"] == method]
            if runs:
                grid = np.arange(1, asked.evaluations + 1)
                best = np.mean([_reached(row["trace"], grid) - row["search_before"] for row in runs], axis=0)
                axis.plot(grid, best, style, color=colour, label=method)
        axis.set(title=f"{name}, {removed:.0%} removed", xlabel="evaluations", xscale="log")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("PSNR gained on the search half, dB")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(asked.plot)
    print(f"wrote {asked.plot}")


# Okabe and Ito's colours; group counts dashed, counts and units dotted
STYLES = {
    "random swaps": ("#999999", "-"),
    "tensor-train, rank 1": ("#56B4E9", "-"),
    "tensor-train": ("#0072B2", "-"),
    "tensor-train over counts": ("#0072B2", "--"),
    "swap-search": ("#D55E00", "-"),
    "swap-search over counts": ("#D55E00", "--"),
    "swap-search over both": ("#D55E00", ":"),
}


def _reached(trace: list[list[float]], grid: Any) -> Any:
    """Best PSNR on the search half by each number of evaluations; the trace holds minus PSNR."""
    evaluations, values = (np.array(column) for column in zip(*trace, strict=True))
    return -values[np.searchsorted(evaluations, grid, side="right").clip(1) - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--denoiser", default=",".join(DENOISERS))
    parser.add_argument("--scope", default=",".join(SCOPES))
    parser.add_argument("--removed", default="0.36,0.2,0.5")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--methods", default="all", help="semicolon-separated, as in the table")
    parser.add_argument("--evaluations", type=int, default=1000, help="of a refinement")
    parser.add_argument("--crops", type=int, default=24, help="crops of the search half, and of the guard half")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the table of what is on disk and compute nothing")
    parser.add_argument("--plot", nargs="?", const="docs/refinement.svg", help="write the plot and compute nothing")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if not asked.table and not asked.plot:
        compute(asked)
    if asked.plot:
        plot(asked)
    else:
        table(asked)


if __name__ == "__main__":
    main()
