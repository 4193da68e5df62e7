"""`ps.prune` of single weights and of n:m patterns: masks of full shape, a network of the same shapes with zeros."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunesolve.problems import InvalidProblem, unknown
from prunesolve.problems._npz import whole_folder

from .choices import AnySolver
from .results import MODEL_FILES, Clock, Report, finite
from .torch_door import apply_masks

if TYPE_CHECKING:
    from prunesolve.bridges.torch.masks import Masks
    from prunesolve.bridges.torch.weights import PrunedWeights
    from prunesolve.solvers import Result

Step = tuple[str, Callable[[Any, Any], Any]]


@dataclass(frozen=True, eq=False)
class WeightsResult:
    """What `prune` of single weights brought back.

    Parameters
    ----------
    masks : dict
        {"path.weight": bool of the weight's shape}, True stays.
    model : torch.nn.Module
        Of the same shapes, with exact zeros; the original is untouched.
    result : {path: tuple of Result}
        The solver's answers, one for each group of a layer's channels.
    report : Report
        Asked against achieved, loss and metric after each step, counts and errors of the layers, what stayed dense.
    example : tensor or tuple of tensors
        Inputs to call the model with.
    """

    masks: Masks
    model: Any
    result: Mapping[str, tuple[Result, ...]]
    report: Report
    example: Any

    def save(self, folder: str | Path) -> None:
        """Write masks, model and report.json into a folder, all or nothing."""
        from prunesolve.bridges.torch.masks import save_masks
        from prunesolve.bridges.torch.shrink import save_model

        with whole_folder(folder, replaces=MODEL_FILES) as place:
            save_masks(self.masks, place / "masks.safetensors")
            save_model(self.model, place, self.example)
            self.report.save(place / "report.json")


def prune_single_weights(
    model: Any,
    data: Any,
    *,
    granularity: str,
    asked: Mapping[str, Any],
    formulation: Any,
    solver: AnySolver,
    allocation: str,
    layers: Sequence[str] | None,
    refit: bool | str,
    repair: str | Sequence[str] | None,
    loss: Callable[..., Any] | None,
    metric: Callable[..., Any] | None,
    device: Any,
    time_limit: float | None,
    seed: int,
) -> WeightsResult:
    """The way of `prune` where single weights go; `asked` holds keep, or nothing for a pattern.

    Examples
    --------
    >>> import torch
    >>> from prunesolve.pipeline import prune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    >>> inputs = torch.linspace(-1, 1, 64).reshape(16, 4)
    >>> out = prune(net, [(inputs, torch.arange(16) % 4)], granularity="2:4", solver="magnitude")
    >>> int(out.masks["0.weight"].sum()), int(out.masks["2.weight"].sum())
    (16, 16)
    """
    from prunesolve.bridges.torch.data import Batches
    from prunesolve.bridges.torch.evaluate import placed
    from prunesolve.bridges.torch.weights import prune_weights

    _check(granularity, asked, formulation)
    clock, dense, batches = Clock(), placed(model, device), Batches(data)
    steps = _steps(dense, batches, refit, repair)
    found = prune_weights(
        dense,
        batches,
        keep=asked.get("keep"),
        pattern=None if granularity == "weight" else granularity,
        layers=layers,
        solver=solver,
        allocation=allocation,
        refit=bool(refit),
        time_limit=time_limit,
        seed=seed,
    )
    clock.tick("prune")
    told = _judge(dense, batches, loss, metric, clock)
    rows = told("dense", dense) + told("masked", apply_masks(copy.deepcopy(dense), found.masks))
    work = found.model
    rows += told("refit", work) if refit else []
    for name, step in steps:
        work = apply_masks(step(work, found.masks), found.masks)
        clock.tick(name)
        rows += told(name, work)
    report = _report(dict(asked) or {"pattern": granularity}, dense, found, rows, clock)
    report["solver"] |= {"seed": seed}
    return WeightsResult(found.masks, work, found.results, report, batches.example())


def _check(granularity: str, asked: Mapping[str, Any], formulation: Any) -> None:
    if granularity != "weight" and ":" not in str(granularity):
        raise unknown("granularity", str(granularity), ["channel", "weight", "2:4"])
    if formulation != "reconstruction":
        raise InvalidProblem(
            f"formulation: single weights are chosen by each layer's reconstruction, got {formulation!r}; leave it out"
        )
    wrong = [name for name in asked if name != "keep"]
    if wrong:
        raise InvalidProblem(
            f"{wrong[0]}: expected keep, of the weights, with granularity {granularity!r}; leave it out"
        )
    if granularity == "weight" and not asked:
        raise InvalidProblem("expected keep with granularity 'weight', such as 0.1 of the weights; got nothing")
    if granularity != "weight" and asked:
        raise InvalidProblem(f"keep: granularity {granularity!r} says how many weights stay; leave it out")


def _steps(dense: Any, batches: Any, refit: bool | str, repair: str | Sequence[str] | None) -> list[Step]:
    """What follows the refit, by name; choices that do not exist are refused."""
    from prunesolve.bridges.torch.repair import checked_names, repaired

    if not isinstance(refit, bool) and refit != "reconstruct":
        raise InvalidProblem(f"refit: expected True, False or 'reconstruct', got {refit!r}")

    def rebuilt(work: Any, masks: Any) -> Any:
        from prunesolve.bridges.torch.reconstruct import reconstruct

        return reconstruct(dense, work, batches, masks=masks)

    def mended(name: str) -> Callable[..., Any]:
        return lambda work, masks: repaired(dense, work, batches, name)

    steps: list[Step] = [("reconstruct", rebuilt)] if refit == "reconstruct" else []
    return steps + [(name, mended(name)) for name in checked_names(repair or ())]


def _judge(
    dense: Any, batches: Any, loss: Any, metric: Any, clock: Clock
) -> Callable[[str, Any], list[dict[str, Any]]]:
    """Loss and metric of a network as rows of the report; none without targets."""
    from prunesolve.bridges.torch.evaluate import evaluate

    judged = next(iter(batches))[1] is not None

    def told(step: str, network: Any) -> list[dict[str, Any]]:
        if not judged:
            return []
        row = {"step": step, **finite(evaluate(network, batches, loss=loss, metric=metric))}
        clock.tick("evaluate")
        return [row]

    return told


def _report(asked: dict[str, Any], dense: Any, found: PrunedWeights, rows: list[Any], clock: Clock) -> Report:
    from prunesolve.bridges.torch.unfold import LINEAR_LAYERS

    kept, size = (sum(c[i] for c in found.counts.values()) for i in (0, 1))
    everything = sum(m.weight.numel() for m in dense.modules() if isinstance(m, LINEAR_LAYERS))
    params = sum(p.numel() for p in dense.parameters())
    solvers = {r.solver for results in found.results.values() for r in results}
    return Report(
        asked=asked,
        achieved={
            "weights": [kept, size],
            "all weights": [everything - size + kept, everything],
            "params": [params - size + kept, params],
        },
        steps=rows,
        layers={path: list(counts) for path, counts in found.counts.items()},
        errors=dict(found.errors),
        excluded=dict(found.exempt),
        notes={},
        removal=None,
        solver={"solver": ", ".join(sorted(solvers)), "allocation": found.allocation},
        seconds=clock.seconds,
    )
