r"""What a layer's inputs and the outputs wanted of it add up to, and the sparse regression that follows.

With x the inputs of a layer (unfolded), y what it should give and W_0 its weights,

    C = cov(x),  r = ridge * mean(diag C)
    gram = C + r I,  cross = (cov(y, x) + r W_0)',  offset = tr cov(y) + r ||W_0||^2

so that the problem's value is the error per column plus the pull towards W_0. Without an intercept moments about zero
take the covariances' place.
"""

from __future__ import annotations

import logging
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems import Cardinality, InvalidProblem, SubsetRegression
from prunesolve.problems.sparse_regression import SparseRegression

from ._layers import conv_groups
from ._lockstep import Stop
from .moments import DAMPED
from .refit import _inverse_slope, _Layer
from .unfold import _windows, weight_matrix

_log = logging.getLogger("prunesolve")


class Moments:
    """Streams inputs and targets of one layer into float64 moments, a random share of the columns of each call.

    Parameters
    ----------
    path, module
        The layer.
    share : int
        Most columns taken of one call.
    centred : bool
        Whether the fit has an intercept.
    generator : torch.Generator
        Draws them.
    """

    def __init__(self, path: str, module: Any, share: int, centred: bool, generator: torch.Generator) -> None:
        self.path, self.module, self.share, self.centred = path, module, share, centred
        self.generator = generator
        # what is subtracted before anything is squared: variances of single precision far from zero would be noise
        self.origin: tuple[Tensor, Tensor] | None = None
        self.dense = weight_matrix(module).cpu().double()
        groups, outs, reads = self.dense.shape
        self.count = 0
        self.x, self.y = torch.zeros(groups, reads).double(), torch.zeros(groups, outs).double()
        self.xx, self.yx = torch.zeros(groups, reads, reads).double(), torch.zeros(groups, outs, reads).double()
        self.yy = torch.zeros(groups).double()

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """One call's inputs and what the layer should give for them."""
        self.add_columns(*sampled(self.module, inputs, targets, self.share, self.generator))

    def add_columns(self, x: Tensor, y: Tensor) -> None:
        """The same where they are columns already, (groups, d, columns) and (groups, o, columns)."""
        if self.origin is None:
            self.origin = (x.mean(2, keepdim=True), y.mean(2, keepdim=True))
        if self.centred:
            x, y = x - self.origin[0], y - self.origin[1]
        self.count += x.shape[2]
        self.xx += (x @ x.transpose(1, 2)).cpu().double()
        self.yx += (y @ x.transpose(1, 2)).cpu().double()
        self.x += x.sum(2).cpu().double()
        self.y += y.sum(2).cpu().double()
        self.yy += y.square().sum((1, 2)).cpu().double()

    def settle(self, ridge: float) -> None:
        """The sums become the moments of the regression."""
        if not all(bool(torch.isfinite(m).all()) for m in (self.xx, self.yx, self.yy)):
            raise InvalidProblem(
                f"layer {self.path}: expected finite inputs and outputs on the calibration data, got NaN or infinite "
                "ones; look for them in the data or for a weight of an earlier layer that is not finite"
            )
        self.x, self.y = self.x / self.count, self.y / self.count
        self.xx, self.yx, self.yy = self.xx / self.count, self.yx / self.count, self.yy / self.count
        if self.centred and self.origin is not None:
            self.xx -= self.x[:, :, None] * self.x[:, None]
            self.yx -= self.y[:, :, None] * self.x[:, None]
            self.yy -= self.y.square().sum(1)
            self.x += self.origin[0][:, :, 0].cpu().double()
            self.y += self.origin[1][:, :, 0].cpu().double()
        if self.missing:
            ridge = max(ridge, DAMPED)
        diagonal = self.xx.diagonal(dim1=1, dim2=2)
        # squares that rounding alone may leave of inputs that do not vary
        noise = 1e-12 * self.x.square().amax(1, keepdim=True) if self.centred else 0.0
        varies = diagonal > 1e-12 * diagonal.amax(1, keepdim=True) + noise
        mean = (diagonal * varies).sum(1) / varies.sum(1).clamp_min(1)
        # inputs that never vary say nothing: the pull alone decides
        self.pull = torch.where(mean > 0, ridge * mean, 1.0)

    @property
    def missing(self) -> int:
        """Columns that the data lack for the fit to be determined without a pull."""
        return max(0, self.dense.shape[2] + self.centred - self.count)

    def warn_if_few(self) -> None:
        """Say where the columns are too few, and that the pull towards the present weights is raised for it."""
        if self.missing:
            _log.warning(
                "%s: %d columns for %d inputs; %d more are needed to determine the fit, which a ridge of %g damps",
                *(self.path, self.count, self.dense.shape[2], self.missing, DAMPED),
            )

    def problem(self, group: int, pattern: Any, row_factors: Any = None) -> SparseRegression:
        """The regression of one of the layer's groups of channels."""
        pull, dense = float(self.pull[group]), self.dense[group]
        gram = self.xx[group] + pull * torch.eye(dense.shape[1], dtype=torch.float64)
        return SparseRegression(
            ((gram + gram.T) / 2).numpy(),
            (self.yx[group] + pull * dense).T.numpy(),
            pattern,
            row_factors=row_factors,
            offset=float(self.yy[group] + pull * dense.square().sum()),
            start_weights=dense.numpy(),
            meta={"layer": self.path, "group": group},
        )

    def units_problem(self, unit: Any, keep: int) -> SubsetRegression:
        """The choice of `keep` units in a layer of one group; `unit` (d,) names each input's, -1 where that stays."""
        dense, pull = self.dense[0], float(self.pull[0])
        return SubsetRegression(
            self.damped(0).numpy(),
            (self.yx[0] + pull * dense).T.numpy(),
            unit,
            constraints=(Cardinality(keep),),
            offset=float(self.yy[0] + pull * dense.square().sum()),
            meta={"layer": self.path},
        )

    def damped(self, group: int) -> Tensor:
        """H = C + r I (d, d) of one of the layer's groups of channels."""
        gram = self.xx[group] + self.pull[group] * torch.eye(self.xx.shape[1], dtype=torch.float64)
        return (gram + gram.T) / 2

    def fitted(self, stays: Tensor) -> Tensor:
        """(groups, o, d) the best weights on the inputs (groups, d) that stay, zero elsewhere."""
        weight = torch.zeros_like(self.dense)
        for q, rows in enumerate(stays):
            k = rows.nonzero().flatten()
            if len(k):
                wanted = self.yx[q][:, k] + self.pull[q] * self.dense[q][:, k]
                weight[q][:, k] = torch.linalg.solve(self.damped(q)[k][:, k], wanted.T).T
        return weight

    def retarget(self, x: Tensor, target: Tensor) -> None:
        """Other outputs (o, columns) wanted for the columns x (d, columns) of a layer of one group, once settled."""
        mean = target.mean(1, keepdim=True) if self.centred else torch.zeros_like(target[:, :1])
        products = (target - mean) @ x.T / x.shape[1]
        self.y[0] = mean[:, 0].double().cpu()
        self.yx[0] = products.double().cpu()

    def intercept(self, weight: Tensor) -> Tensor | None:
        """(o,) what W x needs beside it for the mean outputs to be right, None where the fit has none."""
        if not self.centred:
            return None
        return (self.y - (weight @ self.x[:, :, None])[:, :, 0]).flatten()

    def error(self, weight: Tensor) -> float:
        """The weights' squared error as a share of the wanted outputs' variance."""
        fitted = ((weight @ self.xx - 2 * self.yx) * weight).sum()
        return max(0.0, float((self.yy.sum() + fitted) / self.yy.sum().clamp_min(1e-30)))


def sampled(
    module: Any, inputs: Tensor, targets: Tensor, share: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """X (groups, d, columns) and Y (groups, o, columns) of at most `share` columns, drawn at random where more are."""
    groups = conv_groups(module)
    if isinstance(module, nn.Linear):
        x, y = inputs.reshape(-1, inputs.shape[-1]), targets.reshape(-1, targets.shape[-1])
        if len(x) > share:
            rows = torch.randperm(len(x), generator=generator)[:share].to(x.device)
            x, y = x[rows], y[rows]
        return x.T[None], y.T[None]
    dims = len(module.kernel_size)
    windows = _windows(module, inputs)
    outputs = targets if targets.ndim == 2 + dims else targets.unsqueeze(0)
    places = (len(windows), *windows.shape[2 : 2 + dims])
    total = prod(places)
    taken = torch.randperm(total, generator=generator)[:share] if total > share else torch.arange(total)
    batch, *at = (torch.from_numpy(i).to(inputs.device) for i in np.unravel_index(taken.numpy(), places))
    # indices on both sides of a slice come first: (columns, channels, *taps)
    index: Any = (batch, slice(None), *at)
    x, y = windows[index], outputs[index]
    return (
        x.reshape(len(x), groups, -1).permute(1, 2, 0).contiguous(),
        y.reshape(len(y), groups, -1).permute(1, 2, 0).contiguous(),
    )


def target_of(stop: Stop, layer: _Layer, norm: Any) -> Tensor:
    """What the layer should give: the dense outputs, and what makes the pruned shortcut's error good."""
    if stop.wanted_shortcut is None or stop.given_shortcut is None:
        return stop.wanted
    if layer.norm is not None and not keeps_mean(norm):
        # statistics of the batch: what the norm multiplies with is not known
        return stop.wanted
    return stop.wanted + (stop.wanted_shortcut - stop.given_shortcut) * _inverse_slope(norm, stop.wanted)


def keeps_mean(norm: Any) -> bool:
    return norm is not None and norm.running_mean is not None


def write_intercept(module: Any, norm: Any, intercept: Tensor | None) -> None:
    """Into the layer's bias, else into the running mean of the BatchNorm that it alone feeds."""
    if intercept is None:
        return
    shift = intercept.to(module.weight.device, module.weight.dtype)
    if module.bias is not None:
        module.bias.copy_(shift)
    else:
        norm.running_mean -= shift
