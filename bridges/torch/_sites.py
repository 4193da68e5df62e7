r"""Where a pruned network's channels are set beside the dense one's, and set anew: y' = s y + t, channel by channel.

Before a BatchNorm, or where there is none, into the layer: W <- s W, b <- s b + t, without a bias b the t goes into the
running mean of the BatchNorm. After a BatchNorm into its weight and bias. Zero weights stay zero either way.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunesolve.problems import InvalidProblem, Selection

from ._layers import channel_axis, widths
from .masks import Masks, masks
from .refit import _Layer
from .unfold import LINEAR_LAYERS, set_weight, weight_matrix

# a variance so much below the squared mean, or the dense one, is rounding
_CONSTANT = 1e-12

_FOLD_IN = "fold the parametrisation in first (torch.nn.utils.prune.remove), or mask with how='plain'"

_log = logging.getLogger("prunesolve")


@dataclass(frozen=True, eq=False)
class Site:
    """One layer of the pruned network, the BatchNorm it alone feeds, and which channels of the dense one it has.

    Attributes
    ----------
    path : str
        Of the layer, in both networks.
    dense, module : Module
        The layer in the dense and in the pruned network.
    dense_norm, norm : Module or None
        The BatchNorm behind it.
    dense_rows, rows : (c,) int tensors
        Channels that stay, as the two networks number them.
    """

    path: str
    dense: Any
    module: Any
    dense_norm: Any
    norm: Any
    dense_rows: Tensor
    rows: Tensor

    def without_norm(self) -> Site:
        """The same with nothing behind the layer."""
        return replace(self, dense_norm=None, norm=None)

    def write(self, scale: Tensor | None, shift: Tensor | None, after: bool = False) -> None:
        """Make the channels s y + t, (c,) each; None leaves them out."""
        kind = self.module.weight
        scale = kind.new_ones(len(self.rows)) if scale is None else scale.to(kind)
        shift = None if shift is None else shift.to(kind)
        with torch.no_grad():
            if after and self.norm is not None:
                self._after(scale, shift)
            else:
                self._before(scale, shift)

    def _before(self, scale: Tensor, shift: Tensor | None) -> None:
        self._scale(scale)
        if shift is None:
            return
        if self.module.bias is not None:
            self.module.bias[self.rows] += shift
        elif self.norm is not None and self.norm.running_mean is not None:
            self.norm.running_mean[self.rows] -= shift
        else:
            _log.info("repair: %s has neither bias nor BatchNorm, its means stay as they are", self.path)

    def _after(self, scale: Tensor, shift: Tensor | None) -> None:
        if self.norm.weight is not None:
            self.norm.weight[self.rows] *= scale
            self.norm.bias[self.rows] *= scale
            if shift is not None:
                self.norm.bias[self.rows] += shift
            return
        # no numbers of its own but the running ones: s (z - m) / d + t = (s z - (s m - t d)) / d
        deviation = (self.norm.running_var[self.rows] + self.norm.eps).sqrt()
        moved = self.norm.running_mean[self.rows] * scale
        self.norm.running_mean[self.rows] = moved if shift is None else moved - shift * deviation
        self._scale(scale)

    def _scale(self, scale: Tensor) -> None:
        weight = weight_matrix(self.module).clone()
        weight.flatten(0, 1)[self.rows] *= scale[:, None]
        set_weight(self.module, weight)
        if self.module.bias is not None:
            self.module.bias[self.rows] *= scale


def copy_of(model: nn.Module) -> nn.Module:
    """A network of its own, to be changed."""
    try:
        # inference tensors keep no version, by which an in-place change is told
        with torch.inference_mode(False):
            return copy.deepcopy(model)
    except RuntimeError as error:
        raise InvalidProblem(f"model: it cannot be copied ({str(error).splitlines()[0]:.120}); {_FOLD_IN}") from error


def sites_of(
    dense: nn.Module, pruned: nn.Module, layers: Sequence[_Layer], selection: Selection | None
) -> dict[str, Site]:
    """{path: Site} of the layers that a forward pass of the pruned network comes to.

    Raises
    ------
    InvalidProblem
        If the networks do not belong together or a weight is computed anew at each call.
    """
    kept = Masks() if selection is None else masks(selection, dense)
    whole, parts = dict(dense.named_modules()), dict(pruned.named_modules())
    sites = {}
    for layer in layers:
        full, module = whole.get(layer.path), parts[layer.path]
        if not isinstance(full, LINEAR_LAYERS):
            raise InvalidProblem(
                f"repair: the dense network has no layer {layer.path!r}; hand in the network that was pruned"
            )
        _check_weight(layer.path, module)
        norm = None if layer.norm is None else _usable(parts[layer.norm])
        dense_norm = None if norm is None or layer.norm is None else whole.get(layer.norm)
        rows = _rows(layer.path, full, module, kept.get(layer.path))
        sites[layer.path] = Site(layer.path, full, module, dense_norm, norm, *rows)
    return sites


def _check_weight(path: str, module: Any) -> None:
    if not isinstance(module.weight, nn.Parameter):
        raise InvalidProblem(f"repair: {path} computes its weight anew at each call; {_FOLD_IN}")


def _usable(norm: Any) -> Any:
    """The norm, None where it holds nothing that could be set."""
    return norm if norm.weight is not None or norm.running_mean is not None else None


def _rows(path: str, full: Any, module: Any, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Channels that stay, as the dense and as the pruned layer number them."""
    device, (_, had), (_, has) = module.weight.device, widths(full), widths(module)
    stays = torch.arange(had, device=device) if kept is None else kept.nonzero().flatten().to(device)
    if has == had:
        return stays, stays
    if has != len(stays):
        raise InvalidProblem(
            f"repair: expected {path} with {len(stays)} of its {had} channels, got {has}; hand in the network that "
            "was pruned, with the selection that made it"
        )
    return stays, torch.arange(has, device=device)


class Moments:
    """Means, variances and correlations of channels in the dense and in the pruned network, streamed.

    Attributes
    ----------
    count : int
        Values a channel.
    mean, variance : (2, c) tensors
        Of the dense and of the pruned network.
    """

    def __init__(self, path: str, channels: int, device: Any) -> None:
        self.path, self.count = path, 0
        self.mean = torch.zeros(2, channels, dtype=torch.float64, device=device)
        self._squares, self._products = torch.zeros_like(self.mean), torch.zeros_like(self.mean[0])

    def add(self, dense: Tensor, pruned: Tensor) -> None:
        """Add values of both, channels on the first axis."""
        over = tuple(range(1, dense.ndim))
        shape = (-1, *[1] * len(over))
        # a batch in its own precision, with its mean taken off: copies in float64 cost several times a convolution
        pair = [values if values.element_size() > 2 else values.float() for values in (dense, pruned)]
        means = [values.mean(dim=over) for values in pair]
        mean = torch.stack(means).double()
        if not bool(mean.isfinite().all()):
            which = "dense" if not bool(mean[0].isfinite().all()) else "pruned"
            raise InvalidProblem(
                f"data: layer {self.path} of the {which} network gives NaN or infinite values; expected finite "
                "ones, look at the inputs and at what comes before it"
            )
        one, other = (values - part.reshape(shape) for values, part in zip(pair, means, strict=True))
        squares = torch.stack([values.square().sum(dim=over) for values in (one, other)]).double()
        products = (one * other).sum(dim=over).double()
        # two samples become one: their spreads add, and so does that of their means
        more = one[0].numel()
        apart, weight = mean - self.mean, self.count * more / (self.count + more)
        self._squares += squares + weight * apart.square()
        self._products += products + weight * apart[0] * apart[1]
        self.count += more
        self.mean += apart * (more / self.count)

    @property
    def variance(self) -> Tensor:
        """(2, c)."""
        return self._squares / max(1, self.count)

    @property
    def alive(self) -> Tensor:
        """(c,) channels of the pruned network that vary at all."""
        dense, pruned = self.variance
        return pruned > _CONSTANT * (self.mean[1].square() + dense)

    @property
    def gain(self) -> Tensor:
        """(c,) sqrt(dense / pruned variance), 1 where the pruned channel is constant."""
        dense, pruned = self.variance
        return torch.where(self.alive, (dense / torch.where(self.alive, pruned, 1.0)).sqrt(), 1.0)

    @property
    def correlation(self) -> Tensor:
        """(c,) of the dense with the pruned channel, 0 where one of them is constant."""
        size = self._squares.prod(dim=0).sqrt()
        defined = self.alive & (size > 0)
        return torch.where(defined, self._products / torch.where(defined, size, 1.0), 0.0).clamp(-1.0, 1.0)


def by_channel(module: nn.Module, outputs: Tensor, rows: Tensor) -> Tensor:
    """Some channels, on the first of at least two axes."""
    axis = channel_axis(module)
    if len(rows) < outputs.shape[axis]:
        outputs = outputs.index_select(axis, rows.to(outputs.device))
    return outputs.movedim(axis, 0) if outputs.ndim > 1 else outputs[:, None]
