"""How units and layers are called."""

from __future__ import annotations

from typing import Any


def unit_of(label: Any) -> tuple[str | None, int | None]:
    """(layer, channel) of a label; a Unit read from a file is a plain pair."""
    if isinstance(label, tuple) and len(label) == 2 and isinstance(label[0], str) and isinstance(label[1], int):
        return label[0], label[1]
    return None, None


def name_of(problem: Any, i: int) -> str:
    """The label of unit i, `layer[channel]` for a Unit; its number where there are none."""
    if problem.labels is None:
        return str(i)
    layer, channel = unit_of(problem.labels[i])
    return str(problem.labels[i]) if layer is None else f"{layer}[{channel}]"


def labelled(problem: Any, i: int) -> dict[str, Any]:
    """How a row names unit i."""
    layer, channel = unit_of(None if problem.labels is None else problem.labels[i])
    return {"unit": i, "label": name_of(problem, i), "layer": layer, "channel": channel}
