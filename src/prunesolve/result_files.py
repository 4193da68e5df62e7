"""What is told of a solver's result, as JSON: what `solve --json` prints and `solve --out` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunesolve.problems import Clustering, LevelChoice, PartialTransport
from prunesolve.problems._npz import whole_file
from prunesolve.solvers import Result


def told_of(instance: str, problem: Any, result: Result) -> dict[str, Any]:
    """What `solve --json` tells: the result without its trace, and the instance it belongs to."""
    from prunesolve import __version__
    from prunesolve.problems.readers import native_objective

    native = None if result.objective is None else native_objective(problem, result.objective)
    told: dict[str, Any] = json.loads(result.to_json(trace=False))
    if "front" in told:
        facts = {"names": "objectives", "hypervolume": "hypervolume", "reference": "reference", "knee": "knee"}
        told["front"] |= {name: told["details"].get(fact) for name, fact in facts.items()}
        told["units"] = [list(label) for label in problem.labels or () if isinstance(label, tuple)]
    return told | {
        "instance": instance,
        "instance_hash": problem.hash,
        "sense": problem.meta.get("sense", "minimise"),
        "native_objective": native,
        "n": problem.n,
        "kept_units": _kept_units(problem, result.solution),
        "instance_meta": dict(problem.meta),
        "version": __version__,
    }


def _kept_units(problem: Any, solution: Any) -> dict[str, list[int]] | None:
    """{module path: original indices kept}, where the instance's labels are units, or `meta` lists its levels'."""
    labels = problem.labels
    if solution is not None and isinstance(problem, LevelChoice) and "levels" in problem.meta:
        return units_of_levels(problem.meta["levels"], solution)
    if solution is None or isinstance(problem, (PartialTransport, Clustering)):
        return None
    if labels is None or not all(isinstance(x, tuple) and len(x) == 2 for x in labels):
        return None
    kept: dict[str, list[int]] = {str(layer): [] for layer, _ in labels}
    for (layer, channel), stays in zip(labels, solution, strict=True):
        if stays:
            kept[str(layer)].append(int(channel))
    return kept


def units_of_levels(ladders: Sequence[Mapping[str, Any]], levels: Any) -> dict[str, list[int]]:
    """{module path: original indices kept} at one level for each group, as `level-choice` lists them in `meta`."""
    kept: dict[str, list[int]] = {}
    for ladder, level in zip(ladders, levels, strict=True):
        kept.setdefault(ladder["layer"], []).extend(ladder["channels"][: ladder["counts"][int(level)]])
    return {layer: sorted(channels) for layer, channels in kept.items()}


def write_json(path: str | Path, told: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write a JSON object, whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(told, indent=indent, allow_nan=False).encode())
