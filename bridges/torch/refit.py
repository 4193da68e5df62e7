r"""Least-squares refit of the layers that read a smaller network's units: closed form, no labels, no gradients.

In execution order, for each layer with inputs X in the pruned network (refitted up to there) and the dense network's
outputs Y of the same layer (before any norm that follows),

    minimise over W, b    ||Y - W X - b||^2 / columns + ridge * mean(diag C) * ||W - W_0||^2        C = cov(X)

    (W - W_0) (C + ridge * mean(diag C) I) = cov(Y, X) - W_0 C        b = mean(Y) - W mean(X)

W_0 are the weights the layer has, so inputs that say nothing leave theirs alone. Where the outputs, directly or through
a BatchNorm of slope a, are added to a shortcut, the pruned shortcut's error is made good as well:
Y + (dense shortcut - pruned shortcut) / a, so that errors do not pile up along a residual stream.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunesolve.problems import InvalidProblem, Selection

from ._forward import evaluating
from ._layers import channel_axis, widths
from .attention import opened, owners
from .batchnorm import BATCH_NORMS
from .data import Batches, Inputs, call
from .evaluate import placed
from .unfold import LINEAR_LAYERS, columns, output_columns, set_weight, weight_matrix

_ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__}
# a channel whose slope is so much below the largest passes next to nothing on
_FLAT = 1e-3
# more columns would need matrices of several GiB
_WIDE = 16384

_log = logging.getLogger("prunesolve")


def refit(
    dense: nn.Module,
    removed: nn.Module,
    data: Any,
    selection: Selection,
    *,
    ridge: float = 1e-3,
    device: Any = None,
) -> nn.Module:
    """The smaller (or masked) network with its layers fitted to what they gave in the dense one.

    Parameters
    ----------
    dense : Module
        The network before anything went; untouched.
    removed : Module
        The smaller network of `shrink`, or the masked one of `apply_masks`; untouched.
    data : see `Batches`
        Calibration samples; targets are not used.
    selection : Selection
        What was kept.
    ridge : float
        Pull towards the present weights, relative to the mean variance of the inputs.
    device : torch device, optional
        Where to compute; default where the models lie.

    Returns
    -------
    Module
        A new network. Every Linear and convolution behind the first loss is fitted. The intercept b goes into the
        layer's bias, else into the running mean of a BatchNorm that the layer alone feeds; without either the fit
        has none, so that parameters and state keep their shapes. A layer of more than 16,384 inputs x taps is left as
        it is, with a notice on the logger "prunesolve".

    Raises
    ------
    InvalidProblem
        If the networks do not belong together or `ridge` is negative.

    References
    ----------
    Luo, Wu, Lin, ThiNet, ICCV 2017; He, Zhang, Sun, Channel pruning for accelerating very deep neural networks, ICCV
    2017 (least squares on the kept channels); Meng et al., OSSCAR, 2024 (ridge towards the dense weights).

    Examples
    --------
    >>> from prunesolve.problems import Group
    >>> dense = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> units = Group("0", 2, [("0", "out", [[0], [1]]), ("1", "in", [[0], [1]])])
    >>> smaller = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    >>> fitted = refit(dense, smaller, torch.randn(16, 2), Selection([units], [True, False]))
    >>> torch.equal(fitted[0].weight, smaller[0].weight), torch.equal(fitted[1].weight, smaller[1].weight)
    (True, False)
    """
    if not ridge >= 0.0:
        raise InvalidProblem(f"ridge: expected a number >= 0, got {ridge}")
    _check_weights(removed)
    # inference tensors keep no version, by which an in-place change is told
    with torch.inference_mode(False):
        work = copy.deepcopy(removed) if device is None else copy.deepcopy(removed).to(device)
        _refit_all(placed(dense, device), work, Batches(data), selection, ridge)
    return work


class Rows(NamedTuple):
    """What a layer of the smaller network should give: (o', o) of the dense layer's outputs, and of a shortcut."""

    outputs: Any
    shortcut: Any


def refit_mapped(
    dense: nn.Module,
    smaller: nn.Module,
    data: Any,
    rows: Mapping[str, Rows],
    readers: Collection[str],
    *,
    ridge: float = 1e-3,
    device: Any = None,
) -> nn.Module:
    """The same where a smaller layer's outputs are mixtures of the dense layer's, as in merged networks.

    Parameters
    ----------
    dense, smaller : Module
        Untouched.
    data : see `Batches`
    rows : {path: Rows}
        Layers that are not named have the outputs they had.
    readers : collection of paths
        Layers that read something smaller; from the first of them on every layer is fitted.
    ridge : float
        Pull towards the present weights, relative to the mean variance of the inputs.
    device : torch device, optional
        Where to compute; default where the models lie.
    """
    if not ridge >= 0.0:
        raise InvalidProblem(f"ridge: expected a number >= 0, got {ridge}")
    _check_weights(smaller)
    with torch.inference_mode(False):
        work = copy.deepcopy(smaller) if device is None else copy.deepcopy(smaller).to(device)
        full = placed(dense, device)

        def wanted(path: str) -> Rows:
            if path in rows:
                return rows[path]
            whole = _kept(full, path, {})
            return Rows(whole, whole)

        _refit_layers(full, work, Batches(data), readers, wanted, ridge)
    return work


def trace(model: nn.Module, example: Inputs) -> list[_Layer]:
    """The linear layers in execution order: path, calls, the BatchNorm it alone feeds, whether it is added."""
    return _Trace().layers(model, example)


def _check_weights(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, LINEAR_LAYERS) and not isinstance(module.weight, nn.Parameter):
            raise InvalidProblem(
                f"refit: {path} computes its weight anew at each call; fold the parametrisation in first "
                "(torch.nn.utils.prune.remove), or mask with how='plain'"
            )


def _refit_all(full: nn.Module, work: nn.Module, batches: Batches, selection: Selection, ridge: float) -> None:
    """Fit every layer of `work` from the first that loses inputs, in place."""
    dropped = _dropped_outputs(selection)

    def wanted(path: str) -> Rows:
        kept = _kept(full, path, dropped)
        return Rows(kept, kept)

    with opened(owners(selection.groups), full, work):
        _refit_layers(full, work, batches, _losers(selection), wanted, ridge)


def _refit_layers(
    full: nn.Module,
    work: nn.Module,
    batches: Batches,
    losers: Collection[str],
    wanted: Callable[[str], Rows],
    ridge: float,
) -> None:
    with evaluating(full), evaluating(work):
        layers = trace(work, batches.example())
        first = next((i for i, layer in enumerate(layers) if layer.path in losers), len(layers))
        for layer in layers[first:]:
            _refit_layer(full, work, layer, batches, wanted(layer.path), ridge)


@dataclass(frozen=True)
class _Layer:
    """One linear layer as a forward pass meets it: how often, the BatchNorm it alone feeds, a shortcut added to it."""

    path: str
    calls: int = 1
    norm: str | None = None
    added: bool = False


class _Reached(BaseException):
    """Raised to end a forward pass at the point of interest; no Exception, which a network's own code may catch."""


class _Trace(TorchFunctionMode):
    """One forward pass: the linear layers met, the BatchNorm each feeds, the additions that follow."""

    def __init__(self) -> None:
        super().__init__()
        # tensors with the version they had: an in-place activation hands on the same tensor with another one
        self.outputs: dict[str, list[tuple[Tensor, int]]] = {}
        self.fed: dict[str, list[tuple[Tensor, int]]] = {}
        self.added: set[str] = set()
        self.last: tuple[str, Any] | None = None

    def layers(self, model: nn.Module, example: Inputs) -> list[_Layer]:
        """The linear layers in execution order."""
        modules = dict(model.named_modules())
        handles = [m.register_forward_hook(self._at(p)) for p, m in modules.items() if isinstance(m, LINEAR_LAYERS)]
        handles += [m.register_forward_hook(self._at_norm(p)) for p, m in modules.items() if isinstance(m, BATCH_NORMS)]
        try:
            with self:
                call(model, example)
        finally:
            for handle in handles:
                handle.remove()
        return [self._described(path, outputs) for path, outputs in self.outputs.items()]

    def _described(self, path: str, outputs: list[tuple[Tensor, int]]) -> _Layer:
        # tensors are told apart by identity: two may well be equal
        made = [(id(output), version) for output, version in outputs]
        norm = next((norm for norm, read in self.fed.items() if [(id(r), v) for r, v in read] == made), None)
        return _Layer(path, len(outputs), norm, len(outputs) == 1 and path in self.added)

    def _at(self, path: str) -> Any:
        def note(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self.outputs.setdefault(path, []).append((output, output._version))
            self.last = path, (output, output._version)

        return note

    def _at_norm(self, path: str) -> Any:
        def note(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self.fed.setdefault(path, []).append((inputs[0], inputs[0]._version))
            if self.last is not None and _is_as_made(inputs[0], self.last[1]):
                self.last = self.last[0], (output, output._version)

        return note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # only the last layer before an addition: what the others add is not refitted yet when their turn comes
        if func in _ADDITIONS and self.last is not None and _other_term(args, self.last[1]) is not None:
            self.added.add(self.last[0])
        return func(*args, **(kwargs or {}))


class _Watch(TorchFunctionMode):
    """Follows one layer's outputs through a BatchNorm to an addition.

    `inputs` and `outputs` hold what the layer read and gave, `shortcut` what was added to it.
    """

    def __init__(self, model: nn.Module, layer: _Layer) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.shortcut: Tensor | None = None
        self.tracked: tuple[Tensor, int] | None = None

    def run(self, inputs: Inputs) -> _Watch:
        """Run the network as far as needed."""
        handles = [self.model.get_submodule(self.layer.path).register_forward_hook(self._at_layer)]
        if self.layer.norm is not None:
            handles.append(self.model.get_submodule(self.layer.norm).register_forward_hook(self._at_norm))
        try:
            with self:
                call(self.model, inputs)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return self

    def _at_layer(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        # clones, because what follows may work in place
        self.inputs.append(inputs[0].clone())
        self.outputs.append(output.clone())
        self.tracked = output, output._version
        if len(self.inputs) == self.layer.calls and not self.layer.added:
            raise _Reached

    def _at_norm(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.tracked is not None and _is_as_made(inputs[0], self.tracked):
            self.tracked = output, output._version

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.layer.added and func in _ADDITIONS:
            other = _other_term(args, self.tracked)
            if other is not None:
                self.shortcut = other.clone()
                raise _Reached
        return func(*args, **(kwargs or {}))


def _other_term(terms: Any, tracked: Any) -> Tensor | None:
    """What is added to the tracked (tensor, version), None where this is no such addition."""
    if tracked is None or len(terms) < 2:
        return None
    for one, other in (terms[:2], terms[1::-1]):
        if _is_as_made(one, tracked) and isinstance(other, Tensor) and other.shape == one.shape:
            return other
    return None


def _is_as_made(tensor: Any, tracked: tuple[Tensor, int]) -> bool:
    """Whether this is the tracked (tensor, version) and nothing has worked on it in place."""
    return tensor is tracked[0] and tensor._version == tracked[1]


def _losers(selection: Selection) -> set[str]:
    """Layers that lose inputs."""
    return {m.path for group, keep in selection if not keep.all() for m in group.members if m.axis == "in"}


def _dropped_outputs(selection: Selection) -> dict[str, Any]:
    """{module path: output channels that go}."""
    dropped: dict[str, list[Any]] = {}
    for group, keep in selection:
        for member in group.members:
            if member.axis == "out":
                dropped.setdefault(member.path, []).append(member.channels[~keep].ravel())
    return {path: np.concatenate(channels) for path, channels in dropped.items()}


def _kept(dense: nn.Module, path: str, dropped: dict[str, Any]) -> Tensor:
    """Output channels of the dense layer that stay, as indices."""
    module = dict(dense.named_modules()).get(path)
    if not isinstance(module, LINEAR_LAYERS):
        raise InvalidProblem(f"refit: the dense network has no layer {path!r}; hand in the network that was shrunk")
    channels = np.setdiff1d(np.arange(widths(module)[1]), dropped.get(path, []))
    return torch.from_numpy(channels).to(module.weight.device)


def _refit_layer(dense: nn.Module, model: nn.Module, layer: _Layer, batches: Batches, rows: Rows, ridge: float) -> None:
    """Fit one layer of `model` in place."""
    module = model.get_submodule(layer.path)
    if weight_matrix(module).shape[2] > _WIDE:
        _log.warning("refit: %s reads more than %d columns and is left as it is", layer.path, _WIDE)
        return
    norm = None if layer.norm is None else model.get_submodule(layer.norm)
    equations = _Equations(module)
    for inputs, _ in batches:
        wanted, given = _Watch(dense, layer).run(inputs), _Watch(model, layer).run(inputs)
        for x, y, z in zip(given.inputs, wanted.outputs, given.outputs, strict=True):
            target = _matching(y, z, module, rows.outputs)
            if wanted.shortcut is not None and given.shortcut is not None:
                error = _matching(wanted.shortcut, z, module, rows.shortcut) - given.shortcut
                target = target + error * _inverse_slope(norm, z)
            equations.add(x, target)
    weight, intercept = equations.solve(ridge, centred=module.bias is not None or norm is not None)
    _write(module, norm, weight, intercept, rows.outputs)


def _matching(dense: Tensor, given: Tensor, module: nn.Module, kept: Tensor) -> Tensor:
    """The dense outputs of the channels that the layer still has; of a matrix `kept` (o', o) their mixtures."""
    axis = channel_axis(module)
    if kept.ndim == 2:
        matching = (dense.movedim(axis, -1) @ kept.to(dense).T).movedim(-1, axis)
    else:
        matching = dense if dense.shape == given.shape else dense.index_select(axis, kept)
    if matching.shape != given.shape:
        raise InvalidProblem(
            f"refit: expected outputs {tuple(matching.shape)} as the selection keeps them, got {tuple(given.shape)}; "
            "hand in the network that this selection made"
        )
    return matching


def _inverse_slope(norm: Any, outputs: Tensor) -> Tensor:
    """1 / (what the norm multiplies each channel with), 0 where next to nothing passes, shaped for `outputs`."""
    if norm is None:
        return outputs.new_ones(())
    slope = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        slope = slope * norm.weight
    passing = slope.abs() > _FLAT * slope.abs().max()
    inverse = torch.where(passing, 1.0 / torch.where(passing, slope, 1.0), 0.0)
    return inverse.reshape(-1, *[1] * (outputs.ndim - 2))


class _Equations:
    """Streams inputs X and targets Y of a layer into float64 moments and solves for its weights."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.weight = weight_matrix(module).cpu().double()
        groups, outs, reads = self.weight.shape
        self.count = 0
        self.x, self.y = torch.zeros(groups, reads, 1).double(), torch.zeros(groups, outs, 1).double()
        self.xx, self.yx = torch.zeros(groups, reads, reads).double(), torch.zeros(groups, outs, reads).double()

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add one call's inputs and what the layer should give for them."""
        for x, span in columns(self.module, inputs):
            y = output_columns(self.module, targets, span)
            self.count += x.shape[2]
            self.xx += (x @ x.transpose(1, 2)).cpu().double()
            self.yx += (y @ x.transpose(1, 2)).cpu().double()
            self.x += x.sum(2, keepdim=True).cpu().double()
            self.y += y.sum(2, keepdim=True).cpu().double()

    def solve(self, ridge: float, centred: bool) -> tuple[Tensor, Tensor | None]:
        """W (groups, o, d) and the intercept (o,), None where the fit has none."""
        xx, yx = self.xx / self.count, self.yx / self.count
        x, y = self.x / self.count, self.y / self.count
        if centred:
            xx, yx = xx - x @ x.transpose(1, 2), yx - y @ x.transpose(1, 2)
        residual = yx - self.weight @ xx
        weight = self.weight + residual @ _regularised_inverse(xx, ridge)
        return weight, (y - weight @ x).flatten() if centred else None


def _regularised_inverse(moments: Tensor, ridge: float) -> Tensor:
    """(C + ridge * mean(diag C) I)^-1 of each group, the mean over inputs that vary: masked ones do not count."""
    diagonal = moments.diagonal(dim1=1, dim2=2)
    varies = diagonal > 1e-12 * diagonal.amax(1, keepdim=True)
    mean = (diagonal * varies).sum(1) / varies.sum(1).clamp_min(1)
    if ridge == 0.0:
        return torch.linalg.pinv(moments, hermitian=True)
    pull = torch.where(mean > 0, ridge * mean, 1.0)
    return torch.linalg.inv(moments + pull[:, None, None] * torch.eye(moments.shape[1], dtype=moments.dtype))


def _write(module: Any, norm: Any, weight: Tensor, intercept: Tensor | None, kept: Tensor) -> None:
    """Put weights and intercept in place; in a masked layer the dropped outputs stay as they are."""
    device, dtype = module.weight.device, module.weight.dtype
    rows = slice(None) if len(kept) == widths(module)[1] else kept
    new = weight_matrix(module)
    new.flatten(0, 1)[rows] = weight.to(device, dtype).flatten(0, 1)[rows]
    set_weight(module, new)
    if intercept is None:
        return
    shift = intercept.to(device, dtype)
    if module.bias is not None:
        module.bias[rows] = shift[rows]
    else:
        norm.running_mean[rows] -= shift[rows]
