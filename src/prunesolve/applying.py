"""What `solve --out` wrote, applied to the network that the instance was measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunesolve.problems import Group, InvalidProblem, Selection
from prunesolve.problems._npz import whole_folder

from .results import MODEL_FILES
from .torch_door import shrink


def apply_result(
    model: Any, told: Mapping[str, Any], folder: str | Path, index: int | None = None
) -> dict[str, list[int]]:
    """Apply what `solve --out` wrote to the model it was measured on: masks.safetensors and the smaller model.

    Parameters
    ----------
    model : torch.nn.Module
        The network whose units the instance labels.
    told : mapping
        The JSON object of a result, with `kept_units` and, in `instance_meta`, the `example` of its instance.
    folder : path
        Where masks and model go.
    index : int, optional
        A point of the front, where the result has one; default its knee.

    Returns
    -------
    dict
        {"params": [after, before], "macs": [after, before]}.

    Raises
    ------
    InvalidProblem
        If the result carries no units, or they are not this model's.
    """
    from prunesolve.bridges.torch.costs import count
    from prunesolve.bridges.torch.groups import find_groups
    from prunesolve.bridges.torch.masks import masks as masks_of
    from prunesolve.bridges.torch.masks import save_masks
    from prunesolve.bridges.torch.shrink import save_model

    told = told if index is None else _point_of(told, index)
    kept, meta = _checked_units(told)
    example = _example_like(meta["example"])
    found = find_groups(model, example, layers=meta.get("layers")).groups
    n = sum(len(ladder["channels"]) for ladder in meta["levels"]) if "levels" in meta else told.get("n")
    selection = _selection_of(kept, n, [g for g in found if g.layer in kept])
    removed = shrink(model, selection, example)
    with whole_folder(folder, replaces=MODEL_FILES) as place:
        save_masks(masks_of(selection, model), place / "masks.safetensors")
        save_model(removed, place, example)
    before, after = count(model, example), count(removed, example)
    return {name: [after[name], before[name]] for name in before}


def _point_of(told: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The result as if that point of its front were its solution."""
    front, units = told.get("front"), told.get("units")
    if not isinstance(front, dict) or not units:
        raise InvalidProblem("--index: expected a result with a front over units, got one without")
    points = [point["kept"] for point in told["points"]] if "points" in told else front["solutions"]
    if not -len(points) <= index < len(points):
        raise InvalidProblem(f"--index: expected a point of the front, 0 to {len(points) - 1}, got {index}")
    kept: dict[str, list[int]] = {layer: [] for layer, _ in units}
    for unit in points[index]:
        kept[units[unit][0]].append(units[unit][1])
    return {**told, "kept_units": kept, "n": len(units)}


def _checked_units(told: Mapping[str, Any]) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """{layer: channels kept} of a feasible result, and what its instance says about the measuring."""
    kept, meta = told.get("kept_units"), told.get("instance_meta")
    if not isinstance(kept, dict) or not isinstance(meta, dict) or "example" not in meta:
        raise InvalidProblem(
            "result: expected kept_units and the example's shape, as `solve --out` writes them for an instance that "
            "`encode` made, got none"
        )
    if not all(isinstance(channels, list) and all(type(c) is int for c in channels) for channels in kept.values()):
        raise InvalidProblem("result: expected kept_units as {layer: [channel, ...]}, got something else")
    if told.get("feasible") is not True:
        raise InvalidProblem("result: its selection breaks a constraint; solve again with more time or a looser budget")
    return kept, meta


def _selection_of(kept: Mapping[str, Sequence[int]], n: Any, groups: Sequence[Group]) -> Selection:
    """The units kept as a selection over the groups of the model; all of them must be there."""
    units = {(layer, channel) for layer, channels in kept.items() for channel in channels}
    foreign = sorted({layer for layer, _ in units.difference(*(g.units for g in groups))})
    size = sum(g.size for g in groups)
    if foreign or size != n:
        raise InvalidProblem(
            f"result: expected the {n} units it was made for, this model has {size} in those layers"
            + (f" and lacks some of {', '.join(foreign)}" if foreign else "")
            + "; give the model that was measured"
        )
    return Selection(groups, np.array([u in units for g in groups for u in g.units], dtype=bool))


def _example_like(described: Any) -> Any:
    """Tensors of the measured inputs' shapes: standard normal, zeros for whole numbers."""
    import torch

    generator = torch.Generator().manual_seed(0)
    made = []
    try:
        for tensor in described:
            dtype = getattr(torch, tensor["dtype"])
            values = torch.randn(tensor["shape"], generator=generator) if dtype.is_floating_point else None
            made.append(torch.zeros(tensor["shape"], dtype=dtype) if values is None else values.to(dtype))
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise InvalidProblem(f"result: expected shape and dtype of each input as its example ({error})") from None
    return made[0] if len(made) == 1 else tuple(made)
