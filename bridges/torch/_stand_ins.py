"""Plain torch modules in the place of a residual branch: of its geometry, without its work."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._dataflow import Dataflow, ModuleCall
from ._forward import as_inputs, run
from ._layers import channel_axis, role, widths
from ._residuals import Residual, below
from .refit import _Reached
from .unfold import CONVOLUTIONS, LINEAR_LAYERS
from .verify import REPLACED

# a module of torch.nn: its class and arguments, as JSON can hold them
Spec = tuple[str, tuple[Any, ...]]

_IDENTITY: Spec = ("Identity", ())
# everything is below infinity, so zero comes out
_ZERO: Spec = ("Threshold", ("inf", 0.0))


class Plan(NamedTuple):
    """How a branch is taken out.

    stand_ins: {path: what stands there} for all but the exit, which gets `before` and then a constant along `axis` of
    the `ndim`. The sum is the `steps`-th operation, from 0, that depends on the exit's output; `term` is the branch's
    side of it, `sign` that of the shortcut where the branch's is 1.
    """

    stand_ins: dict[str, Spec]
    exit: str
    before: tuple[Spec, ...]
    axis: int
    ndim: int
    channels: int
    steps: int
    term: int
    sign: int


class Refused(Exception):
    """Why a branch cannot be removed."""


def planned(model: nn.Module, flow: Dataflow, residual: Residual, example: Any) -> Plan:
    """How a branch of the network is taken out; raises Refused where no plain modules can stand in its place."""
    _refuse_what_others_need(model, flow, residual)
    pieces = [piece for path in residual.modules for piece in _pieces(model, flow, path)]
    exit = max(pieces, key=lambda path: flow.calls[path][-1].stop)
    steps = _steps(flow, residual, exit)
    made = flow.calls[exit][0].made
    if made is None:
        raise Refused(_no_stand_in(exit, model.get_submodule(exit)))
    stand_ins: dict[str, Spec] = {}
    for path in pieces:
        spec = None if path == exit else _stand_in(model, flow, path)
        if spec is not None:
            # zeros of its own at the entry: what follows may work in place, and the shortcut reads the same tensor
            stand_ins[path] = _ZERO if spec == _IDENTITY and _enters(flow, residual, path) else spec
    axis = _axis(model, exit, residual.layers[-1], made)
    before = _before(model, flow, stand_ins, exit, axis, example)
    signs = [term.sign for term in flow.operations[residual.addition].terms]
    return Plan(stand_ins, exit, before, axis, made.ndim, made.shape[axis], steps, residual.term, signs[0] * signs[1])


def put_stand_ins(model: nn.Module, plan: Plan) -> None:
    """Replace all of the branch but its exit, in place."""
    for path, spec in plan.stand_ins.items():
        _put(model, path, {"": spec})


def put_exit(model: nn.Module, plan: Plan, constant: Tensor | None) -> None:
    """Let the exit give the constant (channels,), zero for None, whatever comes in; in place."""
    # names that no module of the branch has
    parts = {f"resize{k}": spec for k, spec in enumerate(plan.before)} | {"zero": _ZERO}
    if constant is not None:
        # of an input of zeros a norm leaves its bias, in training too
        kind = f"BatchNorm{max(1, plan.ndim - 2)}d" if plan.axis == 1 else "LayerNorm"
        parts["mean"] = (kind, (plan.channels,))
    stands: Any = _put(model, plan.exit, parts if len(parts) > 1 else {"": _ZERO})
    if constant is not None:
        stands.mean.to(constant)
        with torch.no_grad():
            stands.mean.bias.copy_(constant)


def _put(model: nn.Module, path: str, parts: Mapping[str, Spec]) -> nn.Module:
    """Replace a module wherever it is registered, by one part named "" or by a row of named ones, and note it."""
    old = model.get_submodule(path)
    built = {name: _built(spec) for name, spec in parts.items()}
    new = built[""] if "" in built else nn.Sequential(OrderedDict(built))
    new.train(old.training)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
    noted = {place: held for place, held in getattr(model, REPLACED, {}).items() if not below(place, [path])}
    setattr(model, REPLACED, noted | {path: dict(parts)})
    return new


def _built(spec: Spec) -> nn.Module:
    kind, arguments = spec
    module: nn.Module = getattr(nn, kind)(*(float(a) if isinstance(a, str) else a for a in arguments))
    return module


def _refuse_what_others_need(model: nn.Module, flow: Dataflow, residual: Residual) -> None:
    modules = dict(model.named_modules())
    elsewhere = {w for i, op in enumerate(flow.operations) if i not in residual.operations for w in op.weights}
    if not any(id(p) in elsewhere for p in model.parameters() if p.ndim > 1):
        raise Refused("it holds every layer of the network, only the shortcut would be left")
    for path in residual.modules:
        if any(id(parameter) in elsewhere for parameter in modules[path].parameters()):
            raise Refused(f"weights of {path} are also used outside of it")
    for path in [path for path in flow.calls if isinstance(modules[path], LINEAR_LAYERS)]:
        if not flow.within(path).isdisjoint(residual.operations) and not below(path, residual.modules):
            raise Refused(f"{path} also runs outside of it")


def _pieces(model: nn.Module, flow: Dataflow, path: str) -> list[str]:
    """What is replaced: the module if it gives a tensor of its input's places, else what it is made of."""
    children = [f"{path}.{name}" for name, _ in model.get_submodule(path).named_children()]
    children = [child for child in children if flow.within(child) and flow.within(child) <= flow.within(path)]
    if not children or all(_keeps_places(call) for call in flow.calls[path]):
        return [path]
    return [piece for child in children for piece in _pieces(model, flow, child)]


def _keeps_places(call: ModuleCall) -> bool:
    """Whether one tensor goes in and one comes out, of the same shape but for the width of one axis of channels."""
    given, made = call.given, call.made
    if given is None or made is None or given.ndim != made.ndim:
        return False
    differ = [k for k in range(given.ndim) if given.shape[k] != made.shape[k]]
    return not differ or (len(differ) == 1 and differ[0] in (1, given.ndim - 1))


def _enters(flow: Dataflow, residual: Residual, path: str) -> bool:
    """Whether the module reads what the branch starts from."""
    return any(not flow.operations[i].reads <= residual.operations for i in flow.within(path))


def _stand_in(model: nn.Module, flow: Dataflow, path: str) -> Spec | None:
    """What passes a tensor on as far as the module's geometry asks; None where the module itself may stay."""
    module = model.get_submodule(path)
    if isinstance(module, CONVOLUTIONS):
        return next(iter(_resizing(path, module)), _IDENTITY)
    if all(_keeps_places(call) for call in flow.calls[path]):
        return _IDENTITY
    if not any(True for _ in module.parameters()):
        return None
    raise Refused(_no_stand_in(path, module))


def _no_stand_in(path: str, module: nn.Module) -> str:
    return (
        f"{path} ({type(module).__name__}) does not make one tensor of one tensor of the same places, "
        "so no module without weights can stand for it"
    )


def _resizing(path: str, conv: Any) -> tuple[Spec, ...]:
    """A pooling of the convolution's geometry; none where it keeps the places it has."""
    padding = conv.padding
    if isinstance(padding, str):
        padding = (0,) * len(conv.kernel_size) if padding == "valid" else None
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    pool = f"MaxPool{len(conv.kernel_size)}d"
    if padding is None or all(2 * p == r for p, r in zip(padding, reach, strict=True)):
        return () if set(conv.stride) == {1} else ((pool, (1, conv.stride)),)
    if any(2 * p > r + 1 for p, r in zip(padding, reach, strict=True)):
        raise Refused(f"{path} pads by more than half its kernel, as no pooling does")
    return ((pool, (conv.kernel_size, conv.stride, padding, conv.dilation)),)


def _steps(flow: Dataflow, residual: Residual, exit: str) -> int:
    """How many operations follow the exit until the sum, all of them on its output alone."""
    if len(flow.calls[exit]) > 1:
        raise Refused(f"{exit}, which gives its result, runs {len(flow.calls[exit])} times")
    [last] = flow.calls[exit]
    known, steps = set(range(last.start, last.stop)), 0
    for i in sorted(residual.operations):
        reads = {r for r in flow.operations[i].reads if flow.operations[r].depends}
        if i >= last.stop and reads:
            if not reads <= known:
                raise Refused(f"what follows {exit} also reads what was made before it")
            known.add(i)
            steps += not flow.operations[i].part
    ours = flow.operations[residual.addition].terms[residual.term].reads
    if not {r for r in ours if flow.operations[r].depends} <= known:
        raise Refused(f"its result does not come from {exit} alone, which runs last")
    return steps


def _axis(model: nn.Module, exit: str, layer: str, made: Tensor) -> int:
    """The axis of the exit's output that runs over channels; `layer` is the branch's last one."""
    module, last = model.get_submodule(exit), model.get_submodule(layer)
    if role(module) in ("mixing", "depthwise", "channelwise"):
        return channel_axis(module) % made.ndim
    width, likely = widths(last)[1], channel_axis(last) % made.ndim
    for axis in (likely, 1, made.ndim - 1):
        if 0 < axis < made.ndim and made.shape[axis] == width:
            return axis
    raise Refused(f"{exit} gives a tensor of shape {tuple(made.shape)}, none of whose axes runs over {width} channels")


def _before(
    model: nn.Module, flow: Dataflow, stand_ins: Mapping[str, Spec], exit: str, axis: int, example: Any
) -> tuple[Spec, ...]:
    """What brings the tensor that arrives at the exit without the branch to the shape of the exit's output."""
    module, [last] = model.get_submodule(exit), flow.calls[exit]
    resized: tuple[Spec, ...] = ()
    if isinstance(module, CONVOLUTIONS):
        resized = _resizing(exit, module)
    elif last.made is None or not _keeps_places(last):
        raise Refused(_no_stand_in(exit, module))
    arrives = nn.Sequential(*map(_built, resized))(_arriving(model, stand_ins, exit, example))
    wanted, got = list(last.made.shape) if last.made is not None else [], list(arrives.shape)
    if len(got) != len(wanted) or any(g != w for k, (g, w) in enumerate(zip(got, wanted, strict=True)) if k != axis):
        raise Refused(f"a tensor of shape {got} would arrive at {exit}, which gives {wanted}")
    missing = wanted[axis] - got[axis]
    # pads from the last axis backwards
    spread = (*[0] * (2 * (len(got) - axis - 1)), 0, missing)
    return (*resized, (f"ConstantPad{min(3, len(spread) // 2)}d", (spread, 0.0))) if missing else resized


def _arriving(model: nn.Module, stand_ins: Mapping[str, Spec], exit: str, example: Any) -> Tensor:
    """What reaches the exit once the modules before it are replaced."""
    trial = copy.deepcopy(model)
    seen: list[Tensor] = []
    for path, spec in stand_ins.items():
        _put(trial, path, {"": spec})

    def catch(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.extend(args[:1])
        raise _Reached

    trial.get_submodule(exit).register_forward_pre_hook(catch)
    with suppress(_Reached):
        run(trial, as_inputs(trial, example), "the network without it")
    return seen[0]
