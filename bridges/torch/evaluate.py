"""Loss and metric of a network on data: exact means over samples, however uneven the batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunesolve.problems import InvalidProblem

from ._forward import evaluating
from .data import Batches, call, device_of, samples

Loss = Callable[[Any, Any], Any]
_MSE_FLOOR = 1e-10


def evaluate(
    model: nn.Module, data: Any, *, loss: Loss | None = None, metric: Loss | None = None, device: Any = None
) -> dict[str, Any]:
    """Mean loss and mean metric over the samples of `data`, in eval mode.

    Parameters
    ----------
    model : Module
        Left as it was, training flags included.
    data : see `Batches`
        Batches with targets.
    loss : callable (outputs, targets), optional
        Returns the batch mean or one value a sample. Default: cross-entropy for integer targets, mean squared error
        for float targets of the outputs' shape.
    metric : callable (outputs, targets), optional
        As `loss`. Default: accuracy in % for integer targets, mean PSNR in dB of the samples for float targets of the
        outputs' shape (peak value 1, no clipping, at most 100 dB); the loss itself where neither applies.
    device : torch device, optional
        Where to compute; default where the model lies.

    Returns
    -------
    dict
        {"loss": float, "metric": float, "metric_name": str}

    Raises
    ------
    InvalidProblem
        If there are no targets or no default loss fits them.

    Examples
    --------
    >>> inputs = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> evaluate(nn.Identity(), (inputs, torch.tensor([0, 0])))["metric"]
    50.0
    """
    model = placed(model, device)
    count, loss_sum, metric_sum, name = 0, 0.0, 0.0, "loss"
    with evaluating(model), torch.inference_mode():
        for inputs, targets in Batches(data):
            outputs, wanted = call(model, inputs), with_targets(targets, model)
            losses = per_sample(loss, outputs, wanted, samples(inputs))
            chosen, name = (metric, _name(metric)) if metric is not None else _default_metric(outputs, wanted)
            scores = losses if chosen is None else _each(chosen(outputs, wanted), samples(inputs), "metric")
            loss_sum += float(losses.double().sum())
            metric_sum += float(scores.double().sum())
            count += samples(inputs)
    return {"loss": loss_sum / count, "metric": metric_sum / count, "metric_name": name}


def per_sample(loss: Loss | None, outputs: Any, targets: Tensor, count: int) -> Tensor:
    """One loss value a sample, (count,).

    A `loss` that returns the mean over the batch gives that mean for each sample. The sum is then the same, and in
    eval mode, where samples do not meet, the gradient of the sum at a sample's activation is that sample's own.
    """
    if loss is not None:
        return _each(loss(outputs, targets), count, "loss")
    if not isinstance(outputs, Tensor):
        raise InvalidProblem(f"loss: the network returns a {type(outputs).__name__}, not a tensor; give loss=")
    if _is_classes(targets):
        return (
            F.cross_entropy(_classes_second(outputs, targets), targets.long(), reduction="none")
            .reshape(count, -1)
            .mean(1)
        )
    if targets.shape == outputs.shape and targets.is_floating_point():
        return F.mse_loss(outputs, targets, reduction="none").reshape(count, -1).mean(1)
    raise InvalidProblem(
        f"loss: no default for outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} of {targets.dtype}: "
        "integer targets take cross-entropy, float targets of the outputs' shape mean squared error; give loss="
    )


def with_targets(targets: Tensor | None, model: nn.Module) -> Tensor:
    """The targets on the model's device; refuses a batch without them."""
    if targets is None:
        raise InvalidProblem("data: expected (inputs, targets) batches, got inputs without targets")
    return targets.to(device_of(model))


def placed(model: nn.Module, device: Any) -> nn.Module:
    """The model where it lies on `device` or none is asked, else a copy there: the caller's stays where it is."""
    if device is None or _checked_device(device) == device_of(model):
        return model
    return copy.deepcopy(model).to(device)


def _checked_device(device: Any) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidProblem(
            f"device: expected a device that torch finds on this machine, such as cpu, got {device!r} ({reason})"
        ) from None


def _is_classes(targets: Tensor) -> bool:
    return not targets.is_floating_point() and not targets.is_complex() and targets.dtype != torch.bool


def _classes_second(outputs: Tensor, targets: Tensor) -> Tensor:
    """Scores (B, classes, ...) from (B, classes, ...) or (B, ..., classes)."""
    if outputs.ndim == targets.ndim + 1 and outputs.shape[2:] == targets.shape[1:]:
        scores = outputs
    elif outputs.ndim == targets.ndim + 1 and outputs.shape[:-1] == targets.shape:
        scores = outputs.movedim(-1, 1)
    else:
        raise InvalidProblem(
            f"loss: integer targets {tuple(targets.shape)} do not fit outputs {tuple(outputs.shape)}: expected "
            "(batch, classes, ...) for targets (batch, ...); give loss="
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= scores.shape[1]:
        raise InvalidProblem(f"targets: expected classes 0 to {scores.shape[1] - 1}, got {low} to {high}")
    return scores


def _each(value: Any, count: int, what: str) -> Tensor:
    """A mean or per-sample values as (count,)."""
    values = torch.as_tensor(value)
    if values.numel() == 1:
        return values.reshape(1).expand(count)
    if values.ndim == 0 or len(values) != count:
        raise InvalidProblem(
            f"{what}: expected a mean or {count} values, one a sample, got shape {tuple(values.shape)}"
        )
    return values.reshape(count, -1).mean(1)


def _name(metric: Any) -> str:
    return str(getattr(metric, "__name__", type(metric).__name__))


def _default_metric(outputs: Any, targets: Tensor) -> tuple[Loss | None, str]:
    if not isinstance(outputs, Tensor):
        return None, "loss"
    if _is_classes(targets) and outputs.ndim == targets.ndim + 1:
        return _accuracy, "accuracy"
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return _psnr, "psnr"
    return None, "loss"


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return 100.0 * (_classes_second(outputs, targets).argmax(1) == targets).double()


def _psnr(outputs: Tensor, targets: Tensor) -> Tensor:
    errors = (outputs - targets).double().square().reshape(len(outputs), -1).mean(1)
    return -10.0 * torch.log10(errors.clamp_min(_MSE_FLOOR))
