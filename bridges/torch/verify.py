"""Do the masked and the removed network compute the same?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunesolve.problems import InvalidProblem

from ._forward import as_inputs, evaluating, run, tensors
from ._layers import channel_axis, role

# relative to the largest value compared: what reordering sums leaves after tens of layers, with room
_RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

KEPT = "prunesolve_kept"
REPLACED = "prunesolve_replaced"

_Record = dict[str, list[torch.Tensor]]


@dataclass(frozen=True)
class Check:
    """How far the masked and the removed network are apart.

    Parameters
    ----------
    passed : bool
        Whether outputs and every layer agree to float tolerance.
    largest_difference : float
        Largest absolute difference of the outputs; infinite where they cannot be compared.
    tolerance : float
        What was allowed there.
    layers : {path: float}
        Largest absolute difference of each layer's output, on the channels that both have.
    parted_at : str or None
        First layer, in the order they run, that differs or fails.
    reason : str
        Empty, or what was seen there.
    """

    passed: bool
    largest_difference: float
    tolerance: float
    layers: dict[str, float] = field(default_factory=dict)
    parted_at: str | None = None
    reason: str = ""


def verify(masked: nn.Module, removed: nn.Module, example: Any) -> Check:
    """Compare the masked with the removed network on an example, in eval mode.

    Parameters
    ----------
    masked : nn.Module
        The network with its masks applied.
    removed : nn.Module
        What `shrink` made of it.
    example : tensor or tuple of tensors
        What the networks are called with, batch first.

    Returns
    -------
    Check

    Raises
    ------
    InvalidProblem
        If the masked network cannot run on the example.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> verify(net, net, torch.ones(1, 4)).passed
    True
    """
    inputs = as_inputs(masked, example)
    with evaluating(masked), _recorded(masked) as wanted:
        answer = tensors(run(masked, inputs, "the masked network"))
    with evaluating(removed), _recorded(removed) as got:
        try:
            other = tensors(run(removed, as_inputs(removed, example), "the removed network"))
        except InvalidProblem as error:
            return _failed(error, removed, masked, wanted, got)
    layers, parted = _compare_layers(masked, removed, wanted, got)
    apart, allowed, reason = _compare(answer, other)
    if parted is None and apart > allowed:
        parted = "the output"
    passed = parted is None
    return Check(passed, apart, allowed, layers, parted, "" if passed else reason or f"they differ at {parted}")


def _failed(error: InvalidProblem, removed: nn.Module, masked: nn.Module, wanted: _Record, got: _Record) -> Check:
    layers, parted = _compare_layers(masked, removed, wanted, got)
    unfinished = next((path for path in wanted if path not in got), "the output")
    return Check(False, float("inf"), 0.0, layers, parted or unfinished, str(error))


@contextmanager
def _recorded(model: nn.Module) -> Iterator[_Record]:
    """{path: outputs of each call} of every layer that has channels."""
    seen: _Record = {}
    hooks = []
    for path, module in model.named_modules():
        if role(module) in ("mixing", "depthwise", "channelwise"):
            hooks.append(
                # cloned, because an activation may follow in place
                module.register_forward_hook(lambda m, a, y, path=path: seen.setdefault(path, []).append(y.clone()))
            )
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def kept_channels(model: nn.Module, path: str, axis: str, width: int) -> list[int]:
    """Original indices of the channels a layer still has."""
    return getattr(model, KEPT, {}).get(path, {}).get(axis) or list(range(width))


def _compare_layers(
    masked: nn.Module, removed: nn.Module, wanted: _Record, got: _Record
) -> tuple[dict[str, float], str | None]:
    layers: dict[str, float] = {}
    parted = None
    for path in wanted:
        if path not in got:
            continue
        module = masked.get_submodule(path)
        ours = [_common(masked, removed, path, channel_axis(module), y) for y in wanted[path]]
        apart, allowed, _ = _compare(ours, got[path])
        layers[path] = apart
        if apart > allowed and parted is None:
            parted = path
    return layers, parted


def _common(masked: nn.Module, removed: nn.Module, path: str, axis: int, y: torch.Tensor) -> torch.Tensor:
    """The channels of the masked layer's output that the removed one still has."""
    had = kept_channels(masked, path, "out", y.shape[axis])
    has = getattr(removed, KEPT, {}).get(path, {}).get("out", had)
    place = {original: i for i, original in enumerate(had)}
    index = [place[original] for original in has if original in place]
    return y.index_select(axis, torch.tensor(index, dtype=torch.long, device=y.device))


def _compare(wanted: list[torch.Tensor], got: list[torch.Tensor]) -> tuple[float, float, str]:
    """Largest difference, what is allowed, and a word where they cannot be compared."""
    shapes = [tuple(t.shape) for t in wanted], [tuple(t.shape) for t in got]
    if shapes[0] != shapes[1]:
        return float("inf"), 0.0, f"expected shapes {shapes[0]}, got {shapes[1]}"
    apart = allowed = 0.0
    for a, b in zip(wanted, got, strict=True):
        if not a.numel():
            continue
        if not bool(a.isfinite().all()):
            return float("inf"), 0.0, "the masked network's values are not finite"
        relative = _RELATIVE.get(a.dtype, 0.0)
        difference = float((a - b.to(a)).abs().max()) if a.is_floating_point() else float((a != b.to(a)).any())
        bound = relative * float(a.abs().max())
        if not difference <= bound:
            return difference, bound, ""
        if difference >= apart:
            apart, allowed = difference, bound
    return apart, allowed, ""
