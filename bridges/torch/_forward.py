"""Running a caller's network without leaving a trace on it, and saying where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from prunesolve.problems import InvalidProblem

_DENSE = "the model"


def as_inputs(model: nn.Module, example: Any) -> tuple[torch.Tensor, ...]:
    """The example as the model's positional arguments, on the model's device."""
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    wrong = [type(x).__name__ for x in inputs if not isinstance(x, torch.Tensor)]
    if wrong or not inputs:
        raise InvalidProblem(
            f"example: expected a tensor or a tuple of tensors to call the model with, got {', '.join(wrong) or 'none'}"
        )
    placed = next(iter(model.parameters()), inputs[0]).device
    return tuple(x.detach().to(placed) for x in inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, a seeded copy of the random state, full float precision; all restored."""
    training = [(module, module.training) for module in model.modules()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        # the fused encoder kernel reads its weights past the modules that own them
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), torch.random.fork_rng(devices=_cuda_devices(model)), _full_precision():
            reseed(model)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, flag in training:
            module.training = flag


def reseed(model: nn.Module) -> None:
    """Seed the generators that a forward of this model draws from, and no others."""
    torch.default_generator.manual_seed(0)
    for index in _cuda_devices(model):
        torch.cuda.default_generators[index].manual_seed(0)


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})


@contextmanager
def _full_precision() -> Iterator[None]:
    """TF32 rounds to 1e-3, which would drown what is compared here."""
    if not torch.cuda.is_available():
        yield
        return
    matmul = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul


def run(model: nn.Module, inputs: tuple[torch.Tensor, ...], what: str = _DENSE) -> Any:
    """The model's answer.

    Raises
    ------
    InvalidProblem
        If the forward pass raises; names the layer.
    """
    try:
        return model(*inputs)
    except Exception as error:
        where = _failing_layer(model, error)
        # a removed network that fails is our matter, not the caller's
        advice = "; give inputs as in its training, or mend that layer" if what == _DENSE else ""
        raise InvalidProblem(
            f"{what} fails at {where} on the example of shape {[tuple(x.shape) for x in inputs]}: "
            f"{type(error).__name__}: {_one_line(error)}{advice}"
        ) from error


def _failing_layer(model: nn.Module, error: Exception) -> str:
    """The innermost module of the model among the frames that the error passed through."""
    paths = {id(module): path for path, module in model.named_modules()}
    innermost: nn.Module = model
    frame = error.__traceback__
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        innermost = owner if isinstance(owner, nn.Module) and id(owner) in paths else innermost
        frame = frame.tb_next
    path, kind = paths[id(innermost)], type(innermost).__name__
    return f"layer {path!r} ({kind})" if path else f"the forward of {kind} itself"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def where_not_finite(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> str | None:
    """What is first to hold NaN or infinity in a forward pass: the inputs, a layer, or None where nothing does.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(1, 1), nn.LogSigmoid())
    >>> where_not_finite(net, (torch.tensor([[float("nan")]]),)), where_not_finite(net, (torch.ones(1, 1),))
    ('the inputs', None)
    """
    found = [] if all(bool(torch.isfinite(x).all()) for x in inputs) else ["the inputs"]

    def look(path: str, answer: Any) -> None:
        if not all(bool(torch.isfinite(t).all()) for t in tensors(answer)):
            found.append(f"layer {path}" if path else "the answer")

    # leaves first to last, then what holds them: an operation between layers is told by the module it stands in
    handles = [m.register_forward_hook(lambda _, __, y, p=path: look(p, y)) for path, m in model.named_modules()]
    try:
        run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def tensors(answer: Any) -> list[torch.Tensor]:
    """Every tensor inside a nested answer, in order."""
    leaves = _pytree.tree_leaves(answer)
    for leaf in leaves:
        # classes that pytree does not know (a dataclass of outputs, say) still hold their tensors as attributes
        if not isinstance(leaf, torch.Tensor) and hasattr(leaf, "__dict__"):
            leaves = leaves + _pytree.tree_leaves(dict(vars(leaf)))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
