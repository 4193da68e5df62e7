r"""Least-squares weights for a layer's kept inputs, from statistics of the dense network gathered once.

With C the covariance of a layer's dense inputs x, W its weights and k the kept inputs,

    W' = (W C_:k + r W_k) (C_kk + r I)^-1        b' = b + W mean(x) - W' mean(x_k)        r = ridge * mean(diag C_kk)

the mean over inputs that vary. `refit` fits the same where the pruned network gives the layer its dense inputs. Here no
selection needs a pass over data, and only layers whose kept inputs changed are fitted anew.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ._forward import evaluating
from ._layers import conv_groups, role
from .data import Inputs, call
from .unfold import LINEAR_LAYERS, columns, set_weight, taps, weight_matrix

# more columns would need matrices of several GiB
_WIDE = 16384
# fits remembered a layer
_REMEMBERED = 32


class DenseRefit:
    """The fits of one network.

    Parameters
    ----------
    model : Module
        The dense network, in the precision of the fits.
    batches : iterable of inputs
        Calibration samples.
    paths : collection of str
        Layers that may lose inputs.
    centred : collection of str
        Layers without a bias whose mean output does not matter, as a BatchNorm that is recalibrated takes it out.
    ridge : float
        Pull towards the dense weights, relative to the mean variance of the kept inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Inputs],
        paths: Collection[str],
        centred: Collection[str] = (),
        ridge: float = 1e-3,
    ) -> None:
        self.layers = {
            path: _Moments(module, module.bias is not None or path in centred, ridge)
            for path, module in model.named_modules()
            if path in paths
            and isinstance(module, LINEAR_LAYERS)
            and role(module) == "mixing"
            and weight_matrix(module).shape[2] <= _WIDE
        }
        handles = [model.get_submodule(path).register_forward_pre_hook(m.add) for path, m in self.layers.items()]
        try:
            with evaluating(model):
                for inputs in batches:
                    call(model, inputs)
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, path: str, kept: Tensor) -> dict[str, Tensor] | None:
        """Weight and, where the layer has one, bias for the kept inputs (in,), in dense shape."""
        return None if path not in self.layers or bool(kept.all()) else self.layers[path].fit(kept)


class _Moments:
    """Moments of one layer's inputs, (groups, d) and (groups, d, d), d = inputs a group x taps."""

    def __init__(self, module: Any, centred: bool, ridge: float) -> None:
        self.module, self.centred, self.ridge = copy.deepcopy(module), centred, ridge
        self.weight = weight_matrix(module).cpu().double()
        groups, _, reads = self.weight.shape
        self.count = 0
        self.x, self.xx = torch.zeros(groups, reads).double(), torch.zeros(groups, reads, reads).double()
        self.fits: OrderedDict[bytes, dict[str, Tensor]] = OrderedDict()

    def add(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        for x, _span in columns(self.module, inputs[0]):
            self.count += x.shape[2]
            self.xx += (x @ x.transpose(1, 2)).cpu().double()
            self.x += x.sum(2).cpu().double()

    def fit(self, kept: Tensor) -> dict[str, Tensor]:
        key = kept.numpy().tobytes()
        if key not in self.fits:
            self.fits[key] = self._fitted(kept)
            if len(self.fits) > _REMEMBERED:
                self.fits.popitem(last=False)
        self.fits.move_to_end(key)
        return self.fits[key]

    def lost(self, kept: Tensor) -> float:
        """E||y - y'||^2 of the fit for the kept inputs, y measured as it is fitted: from its mean, or from zero."""
        return self._energy(self.weight - self._matrix(kept))

    @cached_property
    def energy(self) -> float:
        """What is lost where no input is kept."""
        return self._energy(self.weight)

    def _energy(self, weight: Tensor) -> float:
        # clamping keeps a NaN, which `max` does not
        return float(((weight @ self.moments) * weight).sum().clamp_min(0.0))

    def _matrix(self, kept: Tensor) -> Tensor:
        """(groups, o, d), zero where an input goes."""
        stays = kept.reshape(conv_groups(self.module), -1).repeat_interleave(taps(self.module), dim=1)
        return torch.stack([self._solved(q, rows.nonzero().flatten()) for q, rows in enumerate(stays)])

    def _fitted(self, kept: Tensor) -> dict[str, Tensor]:
        weight = self._matrix(kept)
        set_weight(self.module, weight.to(self.module.weight))
        found = {"weight": self.module.weight.detach().clone()}
        if self.module.bias is not None:
            shift = ((self.weight - weight) @ self.mean[:, :, None]).flatten()
            found["bias"] = self.module.bias.detach() + shift.to(self.module.bias)
        return found

    @cached_property
    def mean(self) -> Tensor:
        """(groups, d)."""
        return self.x / max(1, self.count)

    @cached_property
    def moments(self) -> Tensor:
        """(groups, d, d) the covariance of the inputs, or their second moments where the fit has no intercept."""
        second = self.xx / max(1, self.count)
        return second - self.mean[:, :, None] * self.mean[:, None, :] if self.centred else second

    @cached_property
    def cross(self) -> Tensor:
        """W C (groups, o, d): the moments of dense outputs with dense inputs."""
        return self.weight @ self.moments

    def _solved(self, q: int, k: Tensor) -> Tensor:
        """(o, d) of one group that keeps the inputs k, zero elsewhere."""
        fitted = torch.zeros_like(self.weight[q])
        if len(k):
            gram = self.moments[q].index_select(0, k).index_select(1, k)
            diagonal = gram.diagonal()
            varies = diagonal > 1e-12 * diagonal.max()
            pull = self.ridge * float(diagonal[varies].mean()) if bool(varies.any()) else 1.0
            wanted = self.cross[q][:, k] + pull * self.weight[q][:, k]
            diagonal += pull
            # the variant that does not raise: statistics that are NaN give weights that are
            factor, _ = torch.linalg.cholesky_ex(gram)
            fitted[:, k] = torch.cholesky_solve(wanted.T, factor).T
        return fitted
