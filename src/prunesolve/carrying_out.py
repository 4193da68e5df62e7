"""A selection carried out on its network: masked, removed, checked, then the steps after the removal, judged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prunesolve.problems import BinaryQuadratic, Selection, Statistics
from prunesolve.solvers import Result

from .results import Clock, PruneResult, Report, finite
from .torch_door import apply_masks, shrink, verify

_JUDGED = 512  # samples that steps are judged on


class Work(NamedTuple):
    """What a selection is carried out on: the caller's model, the same where it is computed, and data."""

    model: Any
    dense: Any
    batches: Any
    statistics: Statistics
    loss: Callable[..., Any] | None
    metric: Callable[..., Any] | None


def carried_out(
    work: Work,
    selection: Selection,
    problem: BinaryQuadratic,
    result: Result,
    *,
    asked: Mapping[str, Any],
    steps_after: Sequence[tuple[str, Callable[..., Any]]],
    clock: Clock,
) -> PruneResult:
    """Mask, remove, check that the two are the same, then the steps after the removal; judged after each."""
    from prunesolve.bridges.torch.masks import masks as masks_of

    model, dense, batches, stats, loss, metric = work
    example = batches.example()
    masked = apply_masks(copy.deepcopy(dense), masks_of(selection, dense))
    removed = shrink(dense, selection, example)
    check = verify(masked, removed, example)
    clock.tick("remove")

    def told(step: str, network: Any) -> dict[str, Any]:
        from prunesolve.bridges.torch.evaluate import evaluate

        return {"step": step, **finite(evaluate(network, judges, loss=loss, metric=metric))}

    judges = batches.first(_JUDGED)
    # without targets there is nothing to judge by; measuring and refitting need none
    judged = "taylor" in stats.saliency
    steps = [told("dense", dense), told("masked", masked)] if judged else []
    clock.tick("evaluate")
    for name, step in steps_after:
        removed = step(dense, removed, batches, selection)
        clock.tick(name)
        steps += [told(name, removed)] if judged else []
        clock.tick("evaluate")
    return PruneResult(
        masks=masks_of(selection, model),
        model=removed,
        result=result,
        report=Report(
            asked=dict(asked),
            achieved=_achieved(dense, removed, selection, example),
            steps=steps,
            layers={group: list(counts) for group, counts in selection.counts.items()},
            excluded=dict(stats.meta.get("excluded", {})),
            notes=dict(stats.meta.get("notes", {})),
            removal={
                "passed": check.passed,
                "largest_difference": check.largest_difference,
                "tolerance": check.tolerance,
            },
            solver={"solver": result.solver, "status": str(result.status), "objective": result.objective}
            | {"bound": result.bound, "gap": result.gap, "seed": result.seed}
            | {name: result.details[name] for name in _TOLD if name in result.details},
            seconds=clock.seconds,
        ),
        selection=selection,
        problem=problem,
        statistics=stats,
        example=example,
    )


# details of a result that the report repeats
_TOLD = ("picked", "added_back", "refinement", "front")


def _achieved(dense: Any, removed: Any, selection: Selection, example: Any) -> dict[str, list[int]]:
    from prunesolve.bridges.torch.costs import count

    before, after = count(dense, example), count(removed, example)
    units = [int(selection.keep.sum()), len(selection.keep)]
    return {"units": units} | {name: [after[name], before[name]] for name in before}
