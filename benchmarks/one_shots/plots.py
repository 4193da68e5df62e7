"""Score against the share that goes, one column a network, units above and single weights below: docs/one-shot.svg."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .cases import CASES
from .rows import Row
from .tables import _latest

PLOT = Path(__file__).resolve().parents[2] / "docs" / "one-shot.svg"
LABELS = {"structured": "units gone in %", "unstructured": "weights that are zero in %"}
STYLES = {
    "prunesolve, reconstruct": ("#D55E00", "-", "prunesolve, reconstruct (gradients, no labels)"),
    "prunesolve, refit": ("#E69F00", "-", "prunesolve, refit (no gradients, no labels)"),
    "prunesolve, mask alone": ("#E69F00", ":", "prunesolve, mask alone"),
    "torch-pruning Hessian, all samples, uniform + bn": ("#009E73", "--", "torch-pruning Hessian, uniform + bn"),
    "torch-pruning Taylor, uniform + bn": ("#0072B2", "--", "torch-pruning Taylor, uniform + bn"),
    "torch-pruning Taylor, global + bn": ("#0072B2", "-.", "torch-pruning Taylor, global + bn"),
    "torch-pruning magnitude, global + bn": ("#56B4E9", "-.", "torch-pruning magnitude, global + bn"),
    "torch magnitude, global + bn": ("#56B4E9", "-.", "torch.nn.utils.prune magnitude, global + bn"),
}


def told(rows: Iterable[Row], asked: Namespace) -> Iterator[str]:
    yield f"wrote {plot([r for r in rows if r['seed'] in asked.seeds and r['case'] in asked.cases])}"


def plot(rows: list[Row], path: Path = PLOT) -> Path:
    """Means over the seeds, bars from the least to the largest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    full = [r for r in rows if r["part"] in LABELS and "score" in r and r["images"] == CASES[r["case"]].images]
    parts = [part for part in LABELS if any(r["part"] == part for r in full)]
    cases = [case for case in CASES if any(r["case"] == case for r in full)]
    size = max(7.0, 3.6 * len(cases)), 3.2 * len(parts) + 0.9
    figure, axes = plt.subplots(len(parts), len(cases), figsize=size, squeeze=False, layout="constrained")
    for part, line in zip(parts, axes, strict=True):
        for case, axis in zip(cases, line, strict=True):
            _curves(axis, [r for r in full if (r["part"], r["case"]) == (part, case)])
            axis.set(title=case, xlabel=LABELS[part], ylabel=CASES[case].unit)
            axis.spines[["top", "right"]].set_visible(False)
    legends = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes.flat]
    handles = {label: handle for legend in legends for handle, label in legend}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)
    plt.close(figure)
    return path


def _curves(axis: object, rows: list[Row]) -> None:
    dense = [r["score"] for r in rows if r["method"] == "dense"]
    if dense:
        axis.axhline(dense[-1], color="#999999", linewidth=1, label="dense")
    for method, (colour, style, label) in STYLES.items():
        own = _latest([r for r in rows if r["method"] == method])
        shares = sorted({r["share"] for r in own})
        if not shares:
            continue
        scores = [[r["score"] for r in own if r["share"] == share] for share in shares]
        means = np.array([np.mean(s) for s in scores])
        spans = [means - [min(s) for s in scores], [max(s) for s in scores] - means]
        at = [100 * s for s in shares]
        axis.plot(at, means, linestyle=style, color=colour, marker=".", label=label)
        axis.errorbar(at, means, yerr=spans, color=colour, fmt="none", capsize=2)
