"""What a selection switches off, layer by layer, and switching it off in place.

A masked unit: every layer that reads it reads zero, and its own slices, BatchNorm's weight and bias among them, are
zero. Then the masked network computes what the smaller network computes, whatever the activations are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.nn.utils import prune

from prunesolve.problems import InvalidProblem, Selection, unknown
from prunesolve.problems._npz import FORMAT, whole_file

from ._layers import weight_mask, widths
from .attention import Heads, heads_of, layers_of, packed_masks


class Masks(dict[str, torch.Tensor]):
    """{module path: (out,) bool, True stays} for every layer whose outputs may go.

    A key `path.weight` (any parameter's name) holds a mask of that parameter's full shape instead. The projections of
    an `nn.MultiheadAttention` count as layers `path.q_proj`, `path.k_proj` and `path.v_proj`, whichever way it holds
    them: a head that goes is False at its features of these three and of the inputs of `path.out_proj`.

    Attributes
    ----------
    inputs : dict of str to tensor
        {module path: (in,) bool} for every layer that reads what may go.
    heads : dict of str to Heads
        {path of an attention module: which of its heads stay}; where it runs with fewer of them it must be told.
    """

    def __init__(
        self,
        outputs: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        heads: Mapping[str, Heads] | None = None,
    ) -> None:
        super().__init__({path: _bits(path, mask) for path, mask in (outputs or {}).items()})
        self.inputs = {path: _bits(path, mask) for path, mask in (inputs or {}).items()}
        self.heads = dict(heads or {})


def _bits(path: str, mask: Any) -> torch.Tensor:
    tensor = torch.as_tensor(mask)
    if tensor.dtype != torch.bool:
        if not bool(((tensor == 0) | (tensor == 1)).all()):
            raise InvalidProblem(f"mask of {path}: expected zeros and ones, got other values")
        tensor = tensor.bool()
    return tensor


def masks(selection: Selection, model: nn.Module) -> Masks:
    """The layers' masks that say what a selection says.

    Parameters
    ----------
    selection : Selection
        Over groups that `find_groups` found on this model.
    model : nn.Module
        Says how wide each layer is; nothing in it changes.

    Returns
    -------
    Masks

    Raises
    ------
    InvalidProblem
        If the selection was made for another network.

    Examples
    --------
    >>> from prunesolve.problems import Group, Selection
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> group = Group("0", 3, [("0", "out", [[0], [1], [2]]), ("2", "in", [[0], [1], [2]])])
    >>> found = masks(Selection([group], [True, False, True]), net)
    >>> found["0"], found.inputs["2"]
    (tensor([ True, False,  True]), tensor([ True, False,  True]))
    """
    modules = layers_of(model)
    kept: dict[str, dict[str, torch.Tensor]] = {"out": {}, "in": {}}
    heads: dict[str, Heads] = {}
    for group, keep in selection:
        heads.update([found] if (found := heads_of(group, modules, keep)) else [])
        for member in group.members:
            if member.path not in modules:
                raise unknown("layer", member.path, (p for p in modules if p))
            width = widths(modules[member.path])[member.axis == "out"]
            if member.channels.size and int(member.channels.max()) >= width:
                raise InvalidProblem(
                    f"group {group.name}: expected {member.path} to have more than {int(member.channels.max())} "
                    f"{member.axis} channels, got {width}; was the selection made for another network?"
                )
            mask = kept[member.axis].setdefault(member.path, torch.ones(width, dtype=torch.bool))
            mask[torch.from_numpy(np.array(member.channels[~keep].ravel()))] = False
    return Masks(kept["out"], kept["in"], heads)


def apply_masks(
    model: nn.Module, masks: Mapping[str, torch.Tensor], how: Literal["plain", "prune"] = "plain"
) -> nn.Module:
    """Zero what is masked, in place.

    Parameters
    ----------
    model : nn.Module
        Changed and returned.
    masks : Masks, or {module path or parameter name: bool tensor}
        What stays.
    how : "plain" or "prune"
        "plain" writes zeros into the parameters. "prune" hangs the masks on with `torch.nn.utils.prune`, which keeps
        the values underneath and keeps the zeros while the network is trained; `prune.remove` makes them permanent.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    InvalidProblem
        If a name or a shape does not fit the model; then nothing has changed.

    Examples
    --------
    >>> layer = nn.Sequential(nn.Linear(2, 3))
    >>> apply_masks(layer, {"0": [True, False, True]})[0].bias[1].item()
    0.0
    """
    if how not in ("plain", "prune"):
        raise unknown("way to apply masks", how, ("plain", "prune"))
    masks = masks if isinstance(masks, Masks) else Masks(masks, getattr(masks, "inputs", None))
    for (path, name), mask in packed_masks(model, _parameter_masks(model, masks)).items():
        module = model.get_submodule(path)
        parameter = getattr(module, name)
        mask = mask.to(parameter.device)
        if how == "prune":
            prune.custom_from_mask(module, name, mask.to(parameter.dtype))
        else:
            parameter.data.masked_fill_(~mask, 0)
    return model


def _parameter_masks(model: nn.Module, masks: Masks) -> dict[tuple[str, str], torch.Tensor]:
    """{(module path, parameter name): mask of its shape}."""
    modules = layers_of(model)
    found: dict[tuple[str, str], torch.Tensor] = {}

    def add(path: str, name: str, mask: torch.Tensor) -> None:
        held = getattr(modules[path], name)
        if tuple(mask.shape) != tuple(held.shape):
            raise InvalidProblem(f"mask of {path}.{name}: expected shape {tuple(held.shape)}, got {tuple(mask.shape)}")
        found[path, name] = mask & found.get((path, name), torch.ones_like(mask))

    for key, mask in masks.items():
        owner, _, name = key.rpartition(".")
        if key not in modules and owner in modules and isinstance(getattr(modules[owner], name, None), torch.Tensor):
            add(owner, name, mask)
    for path in dict.fromkeys([*masks, *masks.inputs]):
        if path not in modules:
            if (path.rpartition(".")[0], path.rpartition(".")[2]) in found:
                continue
            raise unknown("layer", path, (p for p in modules if p))
        kept_in, kept_out = masks.inputs.get(path), masks.get(path)
        _check_width(path, modules[path], kept_in, kept_out)
        if getattr(modules[path], "weight", None) is not None:
            add(path, "weight", weight_mask(modules[path], kept_in, kept_out))
        if kept_out is not None and getattr(modules[path], "bias", None) is not None:
            add(path, "bias", kept_out)
    return found


def _check_width(path: str, module: nn.Module, *kept: torch.Tensor | None) -> None:
    for side, mask, width in zip(("input", "output"), kept, widths(module), strict=True):
        if mask is not None and tuple(mask.shape) != (width,):
            raise InvalidProblem(f"mask of {path}: expected ({width},) {side} channels, got {tuple(mask.shape)}")


def save_masks(masks: Masks, path: str | Path) -> None:
    """Write `.safetensors`: one bool tensor per key; the readers' masks and the format key in the header."""
    inputs = {
        reader: {"width": len(m), "dropped": (~m).nonzero().flatten().tolist()} for reader, m in masks.inputs.items()
    }
    tensors = {key: mask.detach().cpu().contiguous().clone() for key, mask in masks.items()}
    with whole_file(path) as file:
        file.write(save(tensors, {"format": FORMAT, "kind": "masks", "inputs": json.dumps(inputs)}))


def load_masks(path: str | Path) -> Masks:
    """Read what `save_masks` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InvalidProblem
        If the file is truncated, foreign or holds something else.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            outputs = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InvalidProblem(f"{path}: expected a .safetensors file of masks, got a broken one ({error})") from None
    if header.get("format") != FORMAT or header.get("kind") != "masks":
        raise InvalidProblem(f"{path}: expected masks in format {FORMAT!r}, got {header.get('kind', 'something else')}")
    inputs = {}
    for reader, mask in json.loads(header["inputs"]).items():
        inputs[reader] = torch.ones(mask["width"], dtype=torch.bool)
        inputs[reader][mask["dropped"]] = False
    return Masks(outputs, inputs)
