"""A physically smaller network that computes what the masked one computes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from prunesolve.problems import InvalidProblem, Selection
from prunesolve.problems._npz import FORMAT, whole_file

from ._forward import as_inputs, evaluating, run
from ._layers import constructor_numbers, cut, widths
from .attention import HeadAttention, SelfAttention, calls_of, layers_of, open_attention, settled
from .masks import Masks, apply_masks, masks
from .verify import KEPT, REPLACED, kept_channels, verify


def shrink(model: nn.Module, selection: Selection, example: Any) -> nn.Module:
    """Remove what a selection drops.

    Parameters
    ----------
    model : nn.Module
        The network the selection was made for; it stays as it is.
    selection : Selection
        Which units stay; at least one channel of every layer.
    example : tensor or tuple of tensors
        Inputs on which the removal is checked against the masks.

    Returns
    -------
    nn.Module
        A smaller network with the same module paths, flags and devices. Its `prunesolve_kept`
        {path: {"out" | "in": original indices}} says which channels each layer still has.

    Raises
    ------
    InvalidProblem
        If the masked and the removed network differ on the example; names the layer where they part.

    Examples
    --------
    >>> from prunesolve.problems import Group, Selection
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> group = Group("0", 3, [("0", "out", [[0], [1], [2]]), ("2", "in", [[0], [1], [2]])])
    >>> small = shrink(net, Selection([group], [True, False, True]), torch.ones(1, 2))
    >>> small[0].out_features, small[2].in_features, small.prunesolve_kept["0"]["out"]
    (2, 2, [0, 2])
    """
    chosen = masks(selection, model)
    removed = cut_out(model, chosen, example)
    check = verify(apply_masks(copy.deepcopy(model), chosen), removed, example)
    if not check.passed:
        raise InvalidProblem(
            f"removing the channels does not give what masking them gives; they part at {check.parted_at}: "
            f"{check.reason} (largest difference of the outputs {check.largest_difference:.3g}, allowed "
            f"{check.tolerance:.3g}). Leave that layer's group out, or find the groups anew with find_groups"
        )
    return removed


def cut_out(model: nn.Module, chosen: Masks, example: Any = None) -> nn.Module:
    """A copy of the model without the masked channels, unchecked.

    Hand-written attention that loses heads is tried on what the example feeds it; without one only its numbers of heads
    are set.
    """
    removed = open_attention(copy.deepcopy(model), [path for path, h in chosen.heads.items() if not h.kept.all()])
    whole = layers_of(removed).keys() - dict(removed.named_modules()).keys()
    kept = {path: dict(sides) for path, sides in getattr(model, KEPT, {}).items()}
    for path in dict.fromkeys([*chosen, *chosen.inputs]):
        if path in whole:
            # a projection of an nn.MultiheadAttention that loses no head and stays one
            continue
        module = removed.get_submodule(path)
        before = dict(zip(("in", "out"), widths(module), strict=True))
        for axis, mask in (("in", chosen.inputs.get(path)), ("out", chosen.get(path))):
            if mask is not None:
                had = kept_channels(model, path, axis, before[axis])
                kept.setdefault(path, {})[axis] = [had[c] for c in mask.nonzero().flatten().tolist()]
        cut(module, path, chosen.inputs.get(path), chosen.get(path))
    removed = _with_fewer_heads(model, removed, chosen, example)
    setattr(removed, KEPT, kept)
    return removed


def _with_fewer_heads(model: nn.Module, removed: nn.Module, chosen: Masks, example: Any) -> nn.Module:
    """The network with its attention modules told how many heads they have, in place."""
    heads = {path: h for path, h in chosen.heads.items() if not h.kept.all()}
    tried = [path for path in heads if not isinstance(removed.get_submodule(path), HeadAttention)]
    masked, calls = model, {}
    if tried and example is not None:
        masked = apply_masks(copy.deepcopy(model), chosen)
        with evaluating(masked):
            calls = calls_of(masked, tried, lambda: run(masked, as_inputs(masked, example)))
    for path, h in heads.items():
        old = removed.get_submodule(path)
        with evaluating(masked), evaluating(removed):
            new = settled(masked.get_submodule(path), old, h, calls.get(path, ()))
        removed = _placed(removed, path, new)
    return removed


def _placed(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """The model with another module at that path, which trains where the old one did."""
    for place, old in model.get_submodule(path).named_modules():
        if (new := dict(module.named_modules()).get(place)) is not None:
            new.training = old.training
    if not path:
        return module
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module
    return model


def save_model(model: nn.Module, folder: str | Path, example: Any) -> list[Path]:
    """Write the smaller model so that it loads again without prunesolve.

    `model.safetensors` holds the state dict and `widths.json` the layers' new constructor numbers; `model.pt2`, written
    when `torch.export` can trace the model, is the whole program. See docs/formats.md.

    Parameters
    ----------
    model : nn.Module
        What `shrink` returned.
    folder : path
        Made where it is missing.
    example : tensor or tuple of tensors
        Inputs to trace with, batch first.

    Returns
    -------
    list of Path
        The files written.
    """
    folder = Path(folder)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with whole_file(folder / "model.safetensors") as file:
        file.write(save(state, {"format": FORMAT, "kind": "model"}))
    kept = getattr(model, KEPT, {})
    described = {
        "format": FORMAT,
        "kind": "widths",
        "modules": {path: constructor_numbers(model.get_submodule(path)) for path in kept}
        | {
            path: {"num_heads": module.num_heads, "head_dim": module.head_dim}
            for path, module in model.named_modules()
            if isinstance(module, (HeadAttention, SelfAttention))
        },
        "kept": kept,
        "replaced": getattr(model, REPLACED, {}),
    }
    with whole_file(folder / "widths.json") as file:
        file.write(json.dumps(described, indent=1).encode())
    written = [folder / "model.safetensors", folder / "widths.json"]
    program = _exported(model, example)
    if program is not None:
        with whole_file(folder / "model.pt2") as file:
            torch.export.save(program, file)
        written.append(folder / "model.pt2")
    return written


def _exported(model: nn.Module, example: Any) -> Any:
    inputs = as_inputs(model, example)
    for shapes in (tuple({0: torch.export.Dim.AUTO} if x.ndim else None for x in inputs), None):
        try:
            with evaluating(model):
                return torch.export.export(model, inputs, dynamic_shapes=shapes)
        except Exception:  # many models do not export; the state dict and the widths are always there
            continue
    return None
