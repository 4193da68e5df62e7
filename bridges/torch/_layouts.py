"""What the channels of every tensor inside a network are, step by step through its traced graph.

torch.fx gives the graph, `Axes` says what the layers write; what runs between them has to keep channels apart. Any step
that is not known to do so is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from prunesolve.problems import InvalidProblem
from prunesolve.problems._arrays import Indices

from ._forward import as_inputs, evaluating
from ._layers import role
from .axes import Axes
from .blocks import Blocks

# an fx.Node, whose arguments are typed as a union of all there is
Step = Any

# groups that are none: the network's own input and output, channels of zeros
INPUT, OUTPUT, ZERO = -1, -2, -3

_POINTWISE = {
    "relu", "relu_", "relu6", "gelu", "silu", "sigmoid", "tanh", "leaky_relu", "elu", "selu", "celu", "hardtanh",
    "hardswish", "hardsigmoid", "softplus", "mish", "logsigmoid", "softsign", "clamp", "clip", "clamp_", "abs", "neg",
    "square", "sqrt", "exp", "contiguous", "clone", "detach", "float", "to", "dropout", "dropout2d",
}  # fmt: skip
_SPATIAL = {
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "interpolate",
}  # fmt: skip
_PAIRED = {"add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "truediv", "div", "maximum", "minimum"}
_REDUCED = {"mean", "sum", "amax", "amin"}
_SHAPED = {"flatten", "view", "reshape", "squeeze", "unsqueeze"}
_SIZES = {"size", "dim", "getattr"}
# of the network's answer alone, which is fused as a whole
_ANSWERED = {"softmax", "log_softmax"}
_MODULES = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Hardtanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Mish, nn.LogSigmoid, nn.Softsign, nn.Identity, nn.Dropout,
    nn.Dropout1d, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)  # fmt: skip
_WHAT_TO_DO = "fuse networks whose channels run from layer to layer and are only added on the way, or rewrite that step"


class ChannelMap(nn.Module):
    """Channels put at given places among zeros.

    Parameters
    ----------
    places : sequence of int
        Where each input channel goes.
    width : int
        Channels of the output.
    """

    places: Tensor

    def __init__(self, places: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("places", torch.as_tensor(places, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, ...)."""
        return x.new_zeros(x.shape[0], self.width, *x.shape[2:]).index_copy(1, self.places, x)

    def extra_repr(self) -> str:
        """Both widths."""
        return f"{len(self.places)} of {self.width}"


class FrontInputs(nn.Module):
    """What both networks of a fused one read, side by side: the first network's inputs, then the second's.

    Parameters
    ----------
    given : Module, optional
        (N, c, ...) -> (N, 2 c, ...): the input as the first network reads it, and beside it as the second does.
    own : Module, optional
        The first network's own front, of the first c channels.
    """

    def __init__(self, given: nn.Module | None, own: nn.Module | None) -> None:
        super().__init__()
        self.given, self.own = given, own

    def forward(self, x: Tensor) -> Tensor:
        """The channels that the first layers read."""
        both = x if self.given is None else self.given(x)
        if self.own is None:
            return both
        if self.given is None:
            return self.own(both)
        first, second = both.chunk(2, dim=1)
        return torch.cat([self.own(first), second], 1)


@dataclass(frozen=True, eq=False)
class Layout:
    """The channels of one tensor: (c,) group and unit of each, and how many columns each has (after flattening)."""

    group: Indices
    unit: Indices
    taps: int = 1

    def equals(self, other: Layout) -> bool:
        """Whether both are the same units in the same order."""
        same = np.array_equal(self.group, other.group) and np.array_equal(self.unit, other.unit)
        return same and self.taps == other.taps

    def is_all(self, group: int) -> bool:
        """Whether every channel is of that group."""
        return bool((self.group == group).all())


def own_layout(group: int, channels: int) -> Layout:
    """The network's own channels."""
    return Layout(np.full(channels, group), np.arange(channels))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, (Blocks, ChannelMap, FrontInputs)) or super().is_leaf_module(module, path)


@dataclass(frozen=True, eq=False)
class Traced:
    """A network's graph, the layout of every tensor in it, and what is put before it."""

    module: fx.GraphModule
    nodes: tuple[Step, ...]
    layouts: dict[Step, Layout]
    front: nn.Module | None

    @classmethod
    def of(cls, model: nn.Module, axes: Axes, example: Any) -> Traced:
        """Trace a network and follow its channels.

        Raises
        ------
        InvalidProblem
            If fx cannot trace it or a step does not keep channels apart; names the step.
        """
        module = _graph(model)
        with evaluating(module):
            try:
                ShapeProp(module).propagate(*as_inputs(module, example))
            except Exception as error:
                raise InvalidProblem(
                    f"{type(model).__name__}: its trace does not run on the example: {error}"
                ) from error
        front = _without_front(module)
        _tidied(module)
        walk = _Walk(module, axes)
        layouts = walk.layouts()
        return cls(module, tuple(module.graph.nodes), layouts, front)


def shape(node: Step) -> tuple[int, ...] | None:
    """The shape of a node's tensor on the example; None where it is none."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else None


def step(node: Step) -> str:
    """The bare name of what a node calls."""
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))


def _graph(model: nn.Module) -> fx.GraphModule:
    try:
        return fx.GraphModule(model, _Tracer().trace(model), type(model).__name__)
    except Exception as error:
        raise InvalidProblem(
            f"{type(model).__name__}: torch.fx cannot trace its forward ({type(error).__name__}: {error}); write it "
            "without branches on values, or fuse a part of it"
        ) from error


def _without_front(module: fx.GraphModule) -> nn.Module | None:
    """Take a fused network's own `FrontInputs` out of its graph."""
    for node in module.graph.nodes:
        if node.op == "call_module" and isinstance(front := module.get_submodule(node.target), FrontInputs):
            source = node.args[0]
            source.meta["tensor_meta"] = node.meta["tensor_meta"]
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
            return front
    return None


def _tidied(module: fx.GraphModule) -> None:
    """One form for what is written in several: flattening, and dropout as a module, which knows its mode."""
    for node in list(module.graph.nodes):
        if node.op == "call_method" and node.target == "view":
            # joined blocks lay channels out together, which a view cannot always follow
            node.target = "reshape"
        if step(node) == "reshape" and _flattens(node):
            with module.graph.inserting_before(node):
                flat = module.graph.call_function(torch.flatten, (node.args[0], 1))
            flat.meta = dict(node.meta)
            node.replace_all_uses_with(flat)
            module.graph.erase_node(node)
        elif node.op == "call_function" and node.target in (F.dropout, F.dropout2d):
            p = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
            kind = nn.Dropout if node.target is F.dropout else nn.Dropout2d
            module.add_submodule(node.name, kind(p).train(module.training))
            with module.graph.inserting_before(node):
                dropped = module.graph.call_module(node.name, (node.args[0] if node.args else node.kwargs["input"],))
            dropped.meta = dict(node.meta)
            node.replace_all_uses_with(dropped)
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()


def _flattens(node: Step) -> bool:
    before, after = shape(node.args[0]) if isinstance(node.args[0], fx.Node) else None, shape(node)
    return before is not None and after is not None and len(before) > 2 and after == _flat(before)


def _flat(size: tuple[int, ...]) -> tuple[int, int]:
    return size[0], int(np.prod(size[1:]))


class _Walk:
    """Follows the channels through one graph."""

    def __init__(self, module: fx.GraphModule, axes: Axes) -> None:
        self.module, self.axes = module, axes
        self.found: dict[Step, Layout] = {}
        self.steps: dict[str, Callable[[Step], Layout | None]] = {}
        for names, rule in (
            (_POINTWISE | _SPATIAL, self._kept),
            (_PAIRED, self._paired),
            (_REDUCED, self._reduced),
            (_SHAPED, self._shaped),
            (_SIZES, self._sized),
            (_ANSWERED, self._answered),
            ({"getitem"}, self._item),
            ({"pad"}, self._padded),
        ):
            self.steps |= dict.fromkeys(names, rule)

    def layouts(self) -> dict[Step, Layout]:
        """{node: layout} of all tensors; what a padded tensor is added to says what its zeros are."""
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder" and node.users]
        if len(inputs) != 1:
            raise InvalidProblem(f"{self.module._get_name()}: expected a network of one input, got {len(inputs)}")
        for node in self.module.graph.nodes:
            layout = self._layout(node)
            if layout is not None:
                self.found[node] = layout
        return self.found

    def _layout(self, node: Step) -> Layout | None:
        if node.op == "placeholder":
            size = shape(node)
            if not node.users or size is None or len(size) < 2:
                return None
            return own_layout(INPUT, size[1])
        if node.op == "get_attr":
            return None
        if node.op == "output":
            self._check_answer(node)
            return None
        if not any(n in self.found for n in node.all_input_nodes):
            return None
        if node.op == "call_module":
            return self._called(node)
        rule = self.steps.get(step(node))
        if rule is None:
            raise self._refused(node)
        return rule(node)

    def _refused(self, node: Step, why: str = "is not known to keep channels apart") -> InvalidProblem:
        where = _where(node)
        return InvalidProblem(f"{self.module._get_name()}: {step(node)}{where} {why}; {_WHAT_TO_DO}")

    def _given(self, node: Step) -> Layout:
        """The layout of the first argument, which has no zero channels."""
        source = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("x"))
        if not isinstance(source, fx.Node) or source not in self.found:
            raise self._refused(node, "reads no tensor that came from the network's input")
        layout = self.found[source]
        if (layout.group == ZERO).any():
            raise self._refused(node, "reads channels of zeros, which may only be added to others")
        return layout

    def _called(self, node: Step) -> Layout:
        path, layout = str(node.target), self._given(node)
        module: Any = self.module.get_submodule(path)
        kind = self.axes.roles.get(path)
        if isinstance(module, ChannelMap):
            return _spread(layout, module.places.cpu().numpy(), module.width)
        if isinstance(module, nn.Flatten):
            return self._shaped(node)
        if isinstance(module, nn.PReLU) and module.num_parameters == 1 and (layout.group >= 0).all():
            return layout
        if kind is None:
            answered = isinstance(module, (nn.Softmax, nn.LogSoftmax)) and layout.is_all(OUTPUT)
            if type(module) not in _MODULES and not answered:
                raise self._refused(node, f"({type(module).__name__}) is not known to keep channels apart")
            return layout
        if kind == "mixing":
            return self._mixed(node, path, module, layout)
        if (layout.group < 0).any() or layout.taps > 1 and role(module) == "depthwise":
            raise self._refused(node, f"({type(module).__name__}) acts on the network's own input or output")
        if kind == "depthwise" and module.in_channels != module.out_channels:
            raise self._refused(node, f"({type(module).__name__}) makes several channels of each")
        return layout

    def _mixed(self, node: Step, path: str, module: Any, layout: Layout) -> Layout:
        side, size = self.axes.side(path, "in"), shape(node.args[0])
        if isinstance(module, nn.Linear) and (size is None or len(size) != 2):
            raise self._refused(node, "(Linear) reads a sequence, where (batch, channels) is expected")
        if layout.is_all(OUTPUT):
            raise self._refused(node, "reads the network's own output")
        group, unit = np.repeat(layout.group, layout.taps), np.repeat(layout.unit, layout.taps)
        hidden = group >= 0
        if len(group) != len(side.group) or not (
            np.array_equal(group[hidden], side.group[hidden]) and np.array_equal(unit[hidden], side.unit[hidden])
        ):
            raise self._refused(node, "reads other channels than the probe saw arrive")
        made = self.axes.side(path, "out")
        outside = made.group < 0
        if outside.any() and not outside.all():
            raise self._refused(node, "writes hidden channels and the network's output")
        return Layout(np.where(outside, OUTPUT, made.group), made.unit)

    def _kept(self, node: Step) -> Layout:
        return self._given(node)

    def _answered(self, node: Step) -> Layout:
        layout = self._given(node)
        if not layout.is_all(OUTPUT):
            raise self._refused(node)
        return layout

    def _paired(self, node: Step) -> Layout:
        first, second = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
        known = [self.found[n] for n in (first, second) if isinstance(n, fx.Node) and n in self.found]
        if len(known) == 1:
            other = second if isinstance(first, fx.Node) and first in self.found else first
            if isinstance(other, fx.Node):
                size = shape(other)
                if size is not None and np.prod(size) > 1 and not (known[0].group < 0).all():
                    raise self._refused(node, f"combines hidden channels with a tensor of shape {size}")
            return known[0]
        joined = _joined(*known)
        adds = step(node) in ("add", "add_", "iadd", "sub", "sub_", "isub")
        if joined is None or not adds and not known[0].equals(known[1]):
            raise self._refused(node, "combines channels that are not the same units")
        for source, layout in ((first, known[0]), (second, known[1])):
            if (layout.group == ZERO).any():
                # what the zeros stand for is known only here
                source.meta["completed"] = joined
        return joined

    def _reduced(self, node: Step) -> Layout:
        layout, size = self._given(node), shape(node.args[0])
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        dims = (dims,) if isinstance(dims, int) else dims
        if size is None or dims is None or any(d % len(size) < 2 for d in dims):
            raise self._refused(node, "runs over the channels or the batch")
        return layout

    def _shaped(self, node: Step) -> Layout:
        layout, before, after = self._given(node), shape(node.args[0]), shape(node)
        if before is None or after is None or before[0] != after[0]:
            raise self._refused(node)
        if len(after) > 1 and after[1] == before[1]:
            return layout
        if after != _flat(before):
            raise self._refused(node)
        return Layout(layout.group, layout.unit, layout.taps * int(np.prod(before[2:])))

    def _sized(self, node: Step) -> Layout | None:
        if step(node) == "getattr" and node.args[1] not in ("shape", "device", "dtype", "ndim"):
            raise self._refused(node)
        return None

    def _item(self, node: Step) -> Layout:
        layout, index = self._given(node), node.args[1]
        whole = slice(None, None, None)
        if not isinstance(index, tuple) or len(index) < 2 or index[0] != whole or index[1] != whole:
            raise self._refused(node, "takes some of the channels or of the batch")
        return layout

    def _padded(self, node: Step) -> Layout:
        layout, size = self._given(node), shape(node.args[0])
        before, after = channel_padding(node, len(size or ()))
        if not before and not after:
            return layout
        if padding(node)[1:] != ("constant", 0) or layout.taps > 1:
            raise self._refused(node, "pads channels with something else than zeros")
        width = len(layout.group)
        return _spread(layout, np.arange(width) + before, before + width + after)

    def _check_answer(self, node: Step) -> None:
        for source in node.all_input_nodes:
            if source in self.found and not self.found[source].is_all(OUTPUT):
                raise self._refused(node, "gives channels that are hidden elsewhere")


def padding(node: Step) -> tuple[tuple[int, ...], str, float]:
    """(amounts, mode, value) of a call of F.pad."""
    names = ("input", "pad", "mode", "value")
    held = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return tuple(held["pad"]), held.get("mode", "constant"), held.get("value") or 0


def channel_padding(node: Step, dims: int) -> tuple[int, int]:
    """How many channels F.pad puts before and after."""
    amounts, at = padding(node)[0], 2 * (dims - 2)
    return (int(amounts[at]), int(amounts[at + 1])) if len(amounts) > at + 1 else (0, 0)


def _spread(layout: Layout, places: Indices, width: int) -> Layout:
    group, unit = np.full(width, ZERO), np.full(width, ZERO)
    group[places], unit[places] = layout.group, layout.unit
    return Layout(group, unit)


def _joined(a: Layout, b: Layout) -> Layout | None:
    """The units of a sum; None where different ones meet."""
    if len(a.group) != len(b.group) or a.taps != b.taps:
        return None
    if {OUTPUT, INPUT} == set(a.group.tolist()) | set(b.group.tolist()) and a.is_all(int(a.group[0])):
        return a if a.is_all(OUTPUT) else b
    same = (a.group == b.group) & (a.unit == b.unit)
    if not (same | (a.group == ZERO) | (b.group == ZERO)).all():
        return None
    return Layout(np.where(a.group == ZERO, b.group, a.group), np.where(a.group == ZERO, b.unit, a.unit), a.taps)


def _where(node: Step) -> str:
    stack = node.meta.get("nn_module_stack")
    path = str(node.target) if node.op == "call_module" else (list(stack)[-1] if stack else "")
    return f" of {path!r}" if path else ""
