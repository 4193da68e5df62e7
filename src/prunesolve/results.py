"""What `prune` brings back: the report of what was asked and what came of it, and all that a folder of it holds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunesolve.problems import BinaryQuadratic, Selection, Statistics
from prunesolve.problems._npz import FORMAT, whole_folder
from prunesolve.solvers import Result

from .result_files import told_of, write_json


class Report(dict[str, Any]):
    """What was asked and what came of it; JSON-able, printed as a short table.

    Keys: asked, achieved, steps, layers, excluded, notes, removal, solver, seconds.
    """

    def __str__(self) -> str:
        parts = (self._achieved(), self._front(), self._refinement(), self._steps(), self._layers(), self._removal())
        return "\n".join(line for part in parts for line in part)

    def _achieved(self) -> Iterator[str]:
        asked = ", ".join(f"{name}={value}" for name, value in self["asked"].items())
        yield f"asked        {asked}"
        for name, (after, before) in self["achieved"].items():
            yield f"{name:<12} {after:,} of {before:,}  ({100 * after / max(before, 1):.2f} %)"

    def _steps(self) -> Iterator[str]:
        for step in self["steps"]:
            loss, metric = _figure(step["loss"], 5), _figure(step["metric"], 4)
            yield f"{step['step']:<12} loss {loss}, {step['metric_name']} {metric}"

    def _front(self) -> Iterator[str]:
        told = self["solver"].get("front")
        if told is None:
            return
        values = ", ".join(f"{name} {value:.5g}" for name, value in told["objectives"].items())
        yield f"front        point {told['point']} of {told['of']}, hypervolume {told['hypervolume']:.6g}"
        yield f"searched     {values}"
        if told["guard"] is not None:
            yield f"guard half   {next(iter(told['objectives']))} {told['guard']:.5g}"

    def _refinement(self) -> Iterator[str]:
        told = self["solver"].get("refinement")
        if told is None:
            return
        for half, (before, after) in told["halves"].items():
            name = before["metric_name"]
            yield (
                f"{half + ' half':<12} loss {_figure(before['loss'], 5)} to {_figure(after['loss'], 5)}, {name} "
                f"{_figure(before['metric'], 4)} to {_figure(after['metric'], 4)}"
            )
        yield f"refinement   {told['evaluations']} evaluations, {told['seconds']:.1f} s; {told['returned']} returned"

    def _layers(self) -> Iterator[str]:
        for group, (kept, size) in self["layers"].items():
            yield f"  {group}: {kept} of {size} kept"
        for group, reason in self["excluded"].items():
            yield f"  {group}: left out, {reason}"

    def _removal(self) -> Iterator[str]:
        check = self["removal"]
        # single weights go without a removal
        if check is None:
            return
        yield f"masked equals removed: largest difference {check['largest_difference']:.3g} of {check['tolerance']:.3g}"

    def save(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all."""
        write_json(path, {"format": FORMAT, "kind": "report", **self}, indent=1)


def _figure(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}g}"


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What `prune` brought back.

    Parameters
    ----------
    masks : dict
        {path of each module whose outputs go: bool (out,)}.
    model : torch.nn.Module
        Physically smaller; the original is untouched.
    result : Result
        The solver's answer: solution, status, objective, bound, trace. Where units were added back to spend the rest
        of a budget, `details["added_back"]` says how many and `details["searched_objective"]` what the search reached.
    report : Report
        Asked against achieved, loss and metric after each step, counts, exclusions and the removal check.
    selection : Selection
        The units kept.
    problem : BinaryQuadratic
        The instance that was solved.
    statistics : Statistics
        What was measured.
    example : tensor or tuple of tensors
        The inputs on which the removal was checked.
    """

    masks: Any
    model: Any
    result: Any
    report: Report
    selection: Selection
    problem: BinaryQuadratic
    statistics: Statistics
    example: Any

    def save(self, folder: str | Path) -> None:
        """Write masks, smaller model, instance.npz, result.json and report.json into a folder, all or nothing."""
        from prunesolve.bridges.torch.masks import save_masks
        from prunesolve.bridges.torch.shrink import save_model

        with whole_folder(folder, replaces=MODEL_FILES) as place:
            save_masks(self.masks, place / "masks.safetensors")
            save_model(self.model, place, self.example)
            self.problem.save(place / "instance.npz")
            result = _on(self.problem, self.result)
            told = told_of("instance.npz", self.problem, result)
            write_json(place / "result.json", told | {"trace": [list(row) for row in result.trace]}, indent=1)
            self.report.save(place / "report.json")


def _on(problem: BinaryQuadratic, result: Result) -> Result:
    """The result in the instance's own terms: a search by evaluations of the network minimised something else."""
    value = problem.value(result.solution)
    if math.isclose(value, result.objective or 0.0, rel_tol=1e-9, abs_tol=1e-9):
        return result
    details = {**result.details, "searched_objective": result.objective}
    return replace(result, objective=value, bound=None, trace=(), details=details)


# model.pt2 is not always written: an older one must not stay beside newer weights
MODEL_FILES = ("model.safetensors", "widths.json", "model.pt2")


def finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with None for what JSON cannot hold."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}


class Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def tick(self, stage: str) -> None:
        """The stage ends now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
