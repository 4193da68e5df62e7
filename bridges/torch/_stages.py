"""Where a network can be cut in two: points of a forward pass that one single tensor crosses.

One run is watched: every tensor that a torch function makes, when it is read last, and every module's end. A module's
output is a boundary if nothing else that was made before it is read behind it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from prunesolve.problems import InvalidProblem, unknown

from ._forward import evaluating, tensors
from .data import Inputs, call, slice_of


class Boundary(NamedTuple):
    """The end of a module whose output alone is read behind it; `order` counts the ends of modules in a run."""

    path: str
    order: int
    shape: tuple[int, ...]


class _End(NamedTuple):
    """The end of one call of a module: when, and with which output (None where that is no single tensor)."""

    path: str
    time: int
    output: Tensor | None


@dataclass
class _Life:
    """A tensor's life: who made it when, who read it last when."""

    tensor: Tensor
    maker: str
    made: int
    reader: str = ""
    read: float = -1


@dataclass
class Stages:
    """What one forward pass showed about a network's possible boundaries.

    Attributes
    ----------
    ends : list of _End
        The calls of modules in the order they end, containers behind their children.
    lives : {id of a tensor: _Life}
        The tensors that torch functions made, and the inputs.
    """

    ends: list[_End] = field(default_factory=list)
    lives: dict[int, _Life] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs) -> Stages:
        """Run the model once on a sample and watch."""
        stages, sample = cls(), slice_of(inputs, slice(1))
        watch = _Watch(stages)
        handles = [handle for path, module in model.named_modules() if path for handle in watch.hooks(path, module)]
        try:
            with evaluating(model), watch:
                # a pre-hook of the root sees the inputs where the model reads them
                handles.append(model.register_forward_pre_hook(lambda _m, args: watch.received(args)))
                answer = call(model, sample)
        finally:
            for handle in handles:
                handle.remove()
        for tensor in tensors(answer):
            if id(tensor) in stages.lives:
                stages.lives[id(tensor)].read, stages.lives[id(tensor)].reader = math.inf, "the network's output"
        return stages

    def found(self, axes: slice) -> list[Boundary]:
        """The last possible boundary before each change of these axes of the features (channels, *positions)."""
        calls = Counter(end.path for end in self.ends)
        cuts = [
            (order, end)
            for order, end in enumerate(self.ends)
            if end.output is not None and calls[end.path] == 1 and not self._crossing(end)
        ]
        shapes = [tuple(end.output.shape[1:]) for _, end in cuts if end.output is not None]
        return [
            Boundary(end.path, order, shape)
            for (order, end), shape, following in zip(cuts, shapes, shapes[1:], strict=False)
            if shape[axes] != following[axes]
        ]

    def given(self, paths: Sequence[str]) -> list[Boundary]:
        """The boundaries at the ends of these modules, in the order they run.

        Raises
        ------
        InvalidProblem
            If a module is unknown, runs not exactly once, gives no single tensor or cuts a residual.
        """
        chosen = [self._checked(path) for path in dict.fromkeys(paths)]
        return sorted(chosen, key=lambda boundary: boundary.order)

    def _checked(self, path: str) -> Boundary:
        orders = [order for order, end in enumerate(self.ends) if end.path == path]
        if not orders:
            raise unknown("module to split behind", path, {end.path for end in self.ends})
        end = self.ends[orders[0]]
        if len(orders) > 1 or end.output is None:
            why = f"it runs {len(orders)} times" if len(orders) > 1 else "its output is no single tensor"
            raise InvalidProblem(f"boundaries: expected modules that run once and give one tensor, got {path!r}: {why}")
        crossing = self._crossing(end)
        if crossing:
            life = crossing[0]
            raise InvalidProblem(
                f"boundaries: a split behind {path!r} cuts a residual: {life.reader} reads behind it what {life.maker} "
                f"made before it, beside the output of {path!r}; {self._advice(orders[0])}"
            )
        return Boundary(path, orders[0], tuple(end.output.shape[1:]))

    def _advice(self, order: int) -> str:
        """The next module behind which the network could be split."""
        calls = Counter(end.path for end in self.ends)
        for end in self.ends[order + 1 :]:
            if end.output is not None and calls[end.path] == 1 and not self._crossing(end):
                return f"split behind the whole block, such as {end.path!r}"
        return "leave it out"

    def _crossing(self, end: _End) -> list[_Life]:
        """What was made before the end of that call and is read behind it, its own output aside."""
        return [
            life for life in self.lives.values() if life.made <= end.time < life.read and life.tensor is not end.output
        ]


class _Watch(TorchFunctionMode):
    """Fills `Stages` during a run."""

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self.stages, self.time, self.inside = stages, 0, [""]

    def hooks(self, path: str, module: nn.Module) -> list[Any]:
        """Hooks on a module that tell when it begins and ends."""

        def begins(_module: nn.Module, _inputs: Any) -> None:
            self.inside.append(path)

        def ends(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.inside.pop()
            self.stages.ends.append(_End(path, self.time, output if isinstance(output, Tensor) else None))

        return [module.register_forward_pre_hook(begins), module.register_forward_hook(ends)]

    def received(self, inputs: Any) -> None:
        """Note the network's inputs as made before everything else."""
        for tensor in _tensors(inputs):
            self.stages.lives[id(tensor)] = _Life(tensor, "the network's input", self.time)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        made, name = _tensors(output), getattr(func, "__name__", str(func))
        # a shape that is asked for needs no tensor; what is written into another one does
        if made or name == "__setitem__":
            self.time += 1
            where = f"{name} in {self.inside[-1]!r}" if self.inside[-1] else f"{name} in the network's own forward"
            for tensor in _tensors((args, kwargs)):
                if id(tensor) in self.stages.lives:
                    life = self.stages.lives[id(tensor)]
                    life.read, life.reader = self.time, where
            for tensor in made:
                # what a function worked on in place is not new; `lives` holds it, so that no id is given twice
                self.stages.lives.setdefault(id(tensor), _Life(tensor, where, self.time))
        return output


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
