"""One network that becomes the smaller one of any selection, over and over.

Only layers whose kept channels changed since the last selection are cut anew, from the dense weights. Some units that
go stay in place, masked, so that every group has a multiple of sixteen: libraries compile a kernel for each new width,
which takes longer than to run it. So no layer is emptied either.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems import Group, InvalidProblem
from prunesolve.problems.units import offsets

from ._layers import _set_widths, constructor_numbers, cut, weight_mask, widths
from .unfold import CONVOLUTIONS

Bits = np.ndarray[Any, np.dtype[np.bool_]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
# (path, (in,) kept inputs) -> the layer's weight and bias for them in dense shape, None where they are the dense ones
Weights = Callable[[str, Tensor], "dict[str, Tensor] | None"]

# cut weights remembered a layer: those of a reference and of a few neighbours
_REMEMBERED = 8
_PLAIN = (nn.Linear, *CONVOLUTIONS)
_MULTIPLE = 16
_TENSORS = ("weight", "bias", "running_mean", "running_var")


class Reduced:
    """A network that takes selections in place.

    Parameters
    ----------
    model : Module
        Changed from now on: hand in a copy.
    groups : sequence of Group
        The units.
    weights : callable (path, (in,) bool), optional
        Other weights than the dense ones for a layer that keeps these inputs.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], weights: Weights | None = None) -> None:
        self.model = model
        self.groups = tuple(groups)
        self.starts = offsets(self.groups)
        self.removes, self.multiple = True, _MULTIPLE
        self.layers = [_Layer(model, path, sides, weights) for path, sides in _sides(self.groups, self.starts).items()]
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    def take(self, keep: Bits) -> bool:
        """Become the network that keeps `keep` (n,); False where it could not be removed as others are, only masked."""
        if self.removes:
            try:
                self._set(keep, self._present(keep))
                return True
            except InvalidProblem:  # the groups of a convolution would differ in width
                pass
        self._set(keep, np.ones_like(keep))
        return not self.removes

    def _present(self, keep: Bits) -> Bits:
        """`keep` (n,) and the first of the others, up to a multiple in each group."""
        present = keep.copy()
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            going = np.flatnonzero(~keep[start:end])
            kept = end - start - len(going)
            missing = -kept % self.multiple if kept else self.multiple
            present[start + going[:missing]] = True
        return present

    def _set(self, keep: Bits, present: Bits) -> None:
        for layer in self.layers:
            layer.take(keep, present)


def _sides(groups: Sequence[Group], starts: Indices) -> dict[str, dict[str, tuple[Indices, Indices]]]:
    """{path: {"in" | "out": (channels, the unit that owns each)}}."""
    found: dict[str, dict[str, list[tuple[Indices, Indices]]]] = {}
    for group, start in zip(groups, starts[:-1], strict=True):
        for member in group.members:
            units = np.repeat(start + np.arange(group.size), member.channels.shape[1])
            found.setdefault(member.path, {}).setdefault(member.axis, []).append((member.channels.ravel(), units))
    return {
        path: {
            axis: (np.concatenate([c for c, _ in pairs]), np.concatenate([u for _, u in pairs]))
            for axis, pairs in sides.items()
        }
        for path, sides in found.items()
    }


class _Layer:
    """One layer of the network: its dense tensors and what it is cut to at present."""

    def __init__(
        self, model: nn.Module, path: str, sides: dict[str, tuple[Indices, Indices]], weights: Weights | None
    ) -> None:
        self.module: Any = model.get_submodule(path)
        self.path, self.sides, self.weights = path, sides, weights
        self.numbers = constructor_numbers(self.module)
        self.widths = dict(zip(("in", "out"), widths(self.module), strict=True))
        self.dense: dict[str, Any] = {name: getattr(self.module, name, None) for name in _TENSORS}
        weight = self.dense["weight"]
        # the layout that the network has been given
        self.spread = weight is not None and weight.ndim == 4 and not weight.is_contiguous()
        self.cuts: OrderedDict[bytes, tuple[dict[str, Any], dict[str, int]]] = OrderedDict()
        self.now = b""

    def take(self, keep: Bits, present: Bits) -> None:
        kept, there = self._masks(keep), self._masks(present)
        key = b"".join(mask.tobytes() for mask in (*kept.values(), *there.values()))
        if key == self.now:
            return
        if key in self.cuts:
            self.cuts.move_to_end(key)
            self._put(*self.cuts[key])
        else:
            self._put(self.dense, self.numbers)
            self._write(_tensors(kept), _tensors(there))
            held = {name: getattr(self.module, name, None) for name in _TENSORS}
            self.cuts[key] = held, constructor_numbers(self.module)
            if len(self.cuts) > _REMEMBERED:
                self.cuts.popitem(last=False)
        self.now = key

    def _masks(self, bits: Bits) -> dict[str, Bits]:
        masks = {}
        for side, (channels, units) in self.sides.items():
            masks[side] = np.ones(self.widths[side], dtype=bool)
            masks[side][channels[~bits[units]]] = False
        return masks

    def _put(self, held: dict[str, Any], numbers: dict[str, int]) -> None:
        self.now = b""
        for name, value in held.items():
            if value is not None:
                setattr(self.module, name, value)
        for name, number in numbers.items():
            setattr(self.module, name, number)

    def _write(self, kept: dict[str, Tensor], there: dict[str, Tensor]) -> None:
        own = None if self.weights is None or "in" not in kept else self.weights(self.path, kept["in"])
        for name, value in (own or {}).items():
            self._set(name, value.to(self.dense[name].device, self.dense[name].dtype))
        if type(self.module) in _PLAIN and constructor_numbers(self.module).get("groups", 1) == 1:
            self._cut_plainly(kept, there)
        else:
            self._zero(kept)
            cut(self.module, self.path, there.get("in"), there.get("out"))
        if self.spread:
            self._set("weight", self.module.weight.contiguous(memory_format=torch.channels_last))

    def _cut_plainly(self, kept: dict[str, Tensor], there: dict[str, Tensor]) -> None:
        """Rows and columns at once, which is ten times faster than by masks of the whole weight."""
        weight, bias = self.module.weight, self.module.bias
        for axis, side in enumerate(("out", "in")):
            if side in there:
                chosen = there[side].nonzero().flatten().to(weight.device)
                zero = (~kept[side][there[side]]).nonzero().flatten().to(weight.device)
                weight = weight.index_select(axis, chosen).index_fill_(axis, zero, 0)
                if side == "out" and bias is not None:
                    bias = bias.index_select(0, chosen).index_fill_(0, zero, 0)
        self._set("weight", weight)
        if bias is not None:
            self._set("bias", bias)
        left = {side: int(there[side].sum()) if side in there else width for side, width in self.widths.items()}
        _set_widths(self.module, left["in"], left["out"], 1)

    def _zero(self, kept: dict[str, Tensor]) -> None:
        """What `apply_masks` zeroes, in tensors of our own."""
        if self.dense["weight"] is not None:
            mask = weight_mask(self.module, kept.get("in"), kept.get("out"))
            self._set("weight", self.module.weight.masked_fill(~mask.to(self.module.weight.device), 0))
        if self.dense["bias"] is not None and "out" in kept:
            self._set("bias", self.module.bias.masked_fill(~kept["out"].to(self.module.bias.device), 0))

    def _set(self, name: str, value: Tensor) -> None:
        setattr(self.module, name, nn.Parameter(value.detach(), requires_grad=False))


def _tensors(masks: dict[str, Bits]) -> dict[str, Tensor]:
    return {side: torch.from_numpy(mask) for side, mask in masks.items()}
