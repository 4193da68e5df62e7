r"""Second moments of what a layer reads and of what it should give: all that refitting it on some inputs takes.

    C = E (x - m)(x - m)',    D = E (x - m)(y - l)',    E||y - l||^2        m, l the means, or zero without an intercept

over the columns x of a Linear, convolution or transposed convolution (`unfold`) and targets y of the same columns, in
one pass. Sums are taken about the first batch's means, so that a large mean costs no digits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.formulations import InputSelection
from prunesolve.formulations.budgets import Amount
from prunesolve.formulations.subset_regression import KeptInputs
from prunesolve.problems import GroupBounds, InvalidProblem, SubsetRegression, unknown
from prunesolve.problems._arrays import Floats, Indices, floats, integers

from ._forward import evaluating
from ._layers import widths
from .data import Batches, samples
from .evaluate import placed
from .refit import _inverse_slope, _matching, _Watch, _write, trace
from .unfold import LINEAR_LAYERS, columns, output_columns, taps, weight_matrix

# pull towards the present weights, relative to the mean variance, where there are fewer columns than inputs
DAMPED = 1e-2
# more inputs would need matrices of several GiB
_WIDE = 16384
_PRECISIONS = ("double", "compensated")

_log = logging.getLogger("prunesolve")


class Moments:
    """Streams pairs (inputs, targets) of one layer into its second moments.

    Parameters
    ----------
    module : Linear, Conv or ConvTranspose
        Any stride, dilation, padding and number of groups.
    path : str
        What messages call the layer; with the channel it labels the units.
    precision : "double" or "compensated"
        "double" multiplies and adds in float64. "compensated" multiplies in float32 and adds with what each addition
        loses carried along (Kahan), for devices that are slow in float64: as much memory, errors of a single product.
    intercept : bool, optional
        Whether the layer's outputs may be shifted, so that moments are about the means; default where it has a bias.

    Attributes
    ----------
    columns, samples : int
        How many columns (positions of all samples) and samples were added.

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> moments = Moments(layer, "fc")
    >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> moments.add(x, layer(x))
    >>> problem = moments.regression(keep=2)
    >>> problem.n, problem.k, moments.columns, bool(problem.least < 1e-9), problem.labels[0]
    (3, 2, 50, True, ('fc', 0))
    """

    def __init__(
        self,
        module: nn.Module,
        path: str = "",
        *,
        precision: Literal["double", "compensated"] = "double",
        intercept: bool | None = None,
    ) -> None:
        self.path, self.module, self.precision = path or type(module).__name__, module, precision
        if not isinstance(module, LINEAR_LAYERS):
            raise InvalidProblem(f"{self.path}: expected a Linear or convolution, got {type(module).__name__}")
        if precision not in _PRECISIONS:
            raise unknown("precision", str(precision), _PRECISIONS)
        self.groups, self.makes, self.reads = weight_matrix(module).shape
        if self.reads > _WIDE:
            raise InvalidProblem(
                f"{self.path}: reads {self.reads} inputs a column, more than the {_WIDE} whose moments fit in memory"
            )
        self.intercept = module.bias is not None if intercept is None else intercept
        self.columns = self.samples = 0
        self._origin: tuple[Tensor, Tensor] | None = None
        self._sums: dict[str, _Sum] = {}

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add what the layer read in one call and what it should give for that.

        Raises
        ------
        InvalidProblem
            If an activation is not finite; names the layer.
        """
        for what, tensor in (("inputs", inputs), ("targets", targets)):
            if not bool(torch.isfinite(tensor).all()):
                raise InvalidProblem(
                    f"{self.path}: its {what} are not finite in samples {self.samples} to "
                    f"{self.samples + samples(tensor) - 1}; the layers before it overflow or the data hold NaN"
                )
        self.samples += samples(inputs)
        for x, span in columns(self.module, inputs.detach()):
            self._add(x, output_columns(self.module, targets.detach(), span))

    def _add(self, x: Tensor, y: Tensor) -> None:
        """Columns X (groups, reads, columns) and Y (groups, makes, columns)."""
        wanted = torch.float64 if self.precision == "double" else torch.float32
        x, y = x.to(wanted), y.to(wanted)
        if self._origin is None:
            self._origin = x.mean(2, keepdim=True), y.mean(2, keepdim=True)
        x, y = x - self._origin[0], y - self._origin[1]
        self.columns += x.shape[2]
        turned = x.transpose(1, 2)
        for name, part in (
            ("xx", x @ turned),
            ("xy", x @ y.transpose(1, 2)),
            ("x", x.sum(2)),
            ("y", y.sum(2)),
            ("yy", y.square().sum(2)),
        ):
            self._sums.setdefault(name, _Sum(self.precision == "compensated")).add(part)

    def _mean(self, name: str) -> Floats:
        return self._sums[name].value / self.columns

    def _check_columns(self) -> None:
        if not self.columns:
            raise InvalidProblem(f"{self.path}: expected at least one column to take moments of, got none; add samples")

    @property
    def means(self) -> tuple[Floats, Floats]:
        """(groups, reads) and (groups, makes): of the inputs and of the targets."""
        self._check_columns()
        assert self._origin is not None  # noqa: S101  (for the type checker: there are columns)
        x, y = (origin.squeeze(2).double().cpu().numpy() for origin in self._origin)
        return x + self._mean("x"), y + self._mean("y")

    def central(self) -> tuple[Floats, Floats, Floats]:
        """C (groups, reads, reads), D (groups, reads, makes) and the variances (groups, makes), about the means."""
        self._check_columns()
        x, y = self._mean("x"), self._mean("y")
        gram = self._mean("xx") - x[:, :, None] * x[:, None, :]
        return gram, self._mean("xy") - x[:, :, None] * y[:, None, :], self._mean("yy") - y**2

    def about_zero(self) -> tuple[Floats, Floats, Floats]:
        """The same about zero: for a layer without an intercept."""
        (gram, cross, square), (x, y) = self.central(), self.means
        return gram + x[:, :, None] * x[:, None, :], cross + x[:, :, None] * y[:, None, :], square + y**2

    @property
    def missing(self) -> int:
        """Columns still needed for as many as there are inputs (one more with an intercept); 0 where there are."""
        return max(0, self.reads + self.intercept - self.columns)

    def regression(
        self,
        keep: Amount | None = 0.5,
        *,
        units: int | Sequence[int] | None = None,
        ridge: float = 1e-3,
        per_set: GroupBounds | None = None,
        start: Any = None,
    ) -> SubsetRegression:
        """The problem of choosing which units of the inputs stay, the layer refitted on them.

        Parameters
        ----------
        keep : float or int, optional
            Units that stay: a fraction or a count; None leaves that to `per_set`.
        units : int or (inputs,) int, optional
            The unit of each input channel, -1 for one that always stays; a number h means h equal runs, the heads of
            an attention. Each channel with its taps is a unit by default.
        ridge : float
            Pull towards `start`, relative to the mean variance of the inputs. Of fewer columns than inputs the fit is
            not determined: then it is at least `DAMPED`, with a warning on the logger "prunesolve", and 0 is refused.
        per_set : GroupBounds, optional
            Bounds on how many units of each set stay.
        start : (groups, makes, reads), optional
            Weights that the ridge pulls towards; the module's own by default.

        Returns
        -------
        SubsetRegression
            Inputs are the rows of `weight_matrix`, group after group; so are outputs.

        Raises
        ------
        InvalidProblem
            If nothing was added, the columns are too few or the units make no sense.
        """
        gram, cross, square = self.central() if self.intercept else self.about_zero()
        own = weight_matrix(self.module).double().cpu().numpy() if start is None else start
        block = _blocks(units, widths(self.module)[0], taps(self.module), self.path)
        return InputSelection(self._damped(ridge)).encode_moments(
            _diagonal(gram),
            _diagonal(cross),
            float(square.sum()),
            keep,
            block=block,
            weights=_diagonal(floats("start", own, (self.groups, self.makes, self.reads))),
            per_set=per_set,
            labels=[(self.path, unit) for unit in range(int(block.max(initial=-1)) + 1)],
        )

    def write(self, kept: KeptInputs, module: Any = None, norm: Any = None) -> None:
        """Put refitted weights, and the intercept that goes with them, into a module of this layer's shape, in place.

        Parameters
        ----------
        kept : KeptInputs
            What `InputSelection().decode(problem, solution)` made of this layer's regression.
        module : nn.Module, optional
            The layer the moments are of, by default.
        norm : BatchNorm, optional
            Takes the intercept where the layer has no bias: its running mean moves.

        Raises
        ------
        InvalidProblem
            If there is an intercept and nowhere to put it.
        """
        module = self.module if module is None else module
        if self.intercept and module.bias is None and norm is None:
            raise InvalidProblem(
                f"{self.path}: has no bias to put the intercept into; hand in the BatchNorm that it alone feeds, or "
                "take the moments with intercept=False"
            )
        weights = np.stack(
            [
                kept.weights[g * self.makes : (g + 1) * self.makes, g * self.reads : (g + 1) * self.reads]
                for g in range(self.groups)
            ]
        )
        x, y = self.means
        shift = (y - np.einsum("gor,gr->go", weights, x)).ravel() if self.intercept else None
        intercept = None if shift is None else torch.from_numpy(shift)
        outputs = torch.arange(self.groups * self.makes, device=module.weight.device)
        with torch.no_grad():
            _write(module, norm, torch.from_numpy(weights), intercept, outputs)

    def _damped(self, ridge: float) -> float:
        """The ridge, raised with a warning where the columns are too few."""
        if not self.missing:
            return ridge
        # a sample of a convolution gives as many columns as there are positions
        more = math.ceil(self.missing * self.samples / self.columns)
        said = (
            f"{self.path}: {self.columns} columns of {self.samples} samples for {self.reads} inputs; at least "
            f"{self.reads + self.intercept} columns, {more} samples more, are needed to determine the fit"
        )
        if ridge == 0.0:
            raise InvalidProblem(f"{said}. Add samples, or a ridge above 0")
        _log.warning("moments: %s; it is damped by a ridge of %g", said, max(ridge, DAMPED))
        return max(ridge, DAMPED)


def layer_moments(
    dense: nn.Module,
    pruned: nn.Module,
    path: str,
    data: Any,
    *,
    residual: bool = True,
    outputs: Any = None,
    precision: Literal["double", "compensated"] = "double",
    device: Any = None,
) -> Moments:
    """Moments of a layer whose inputs are the pruned network's and whose targets are the dense network's outputs.

    What went before the layer is made good with it (`fullseq`). One layer's matrices are held at a time; call it layer
    by layer, in execution order, on the network refitted up to there.

    Parameters
    ----------
    dense, pruned : Module
        Untouched; equal paths name equal layers.
    path : str
        The layer.
    data : see `Batches`
        Calibration samples; their targets are not used.
    residual : bool
        Where a shortcut is added to the layer's outputs, directly or through a BatchNorm, its error in the pruned
        network is added to the targets, so that errors do not pile up along a residual stream.
    outputs : (o,) int, optional
        The dense layer's output channels that the pruned layer still has; all by default.
    precision
        As for `Moments`.
    device : torch device, optional
        Where to compute; default where the models lie.

    Raises
    ------
    InvalidProblem
        If there is no such linear layer, its data yield nothing or an activation is not finite.

    References
    ----------
    Targets of the dense network on inputs of the pruned one: Meng et al., OSSCAR, 2024 (`fullseq`).

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> moments = layer_moments(net, net, "2", torch.randn(20, 4))
    >>> moments.samples, moments.regression(keep=2).k
    (20, 2)
    """
    with torch.inference_mode(False):
        full, work = placed(dense, device), placed(pruned, device)
        batches = Batches(data)
        with evaluating(full), evaluating(work):
            layer = next((found for found in trace(work, batches.example()) if found.path == path), None)
            if layer is None:
                raise InvalidProblem(f"{path}: expected a linear layer or convolution that the network runs, got none")
            module = work.get_submodule(path)
            norm = None if layer.norm is None else work.get_submodule(layer.norm)
            has_intercept = module.bias is not None or norm is not None
            moments = Moments(module, path, precision=precision, intercept=has_intercept)
            kept = _channels(outputs, full.get_submodule(path))
            for inputs, _ in batches:
                wanted, given = _Watch(full, layer).run(inputs), _Watch(work, layer).run(inputs)
                for x, y, z in zip(given.inputs, wanted.outputs, given.outputs, strict=True):
                    target = _matching(y, z, module, kept)
                    if residual and wanted.shortcut is not None and given.shortcut is not None:
                        error = _matching(wanted.shortcut, z, module, kept) - given.shortcut
                        target = target + error * _inverse_slope(norm, z)
                    moments.add(x, target)
    return moments


class _Sum:
    """A running sum, with what each addition lost subtracted from the next where it is compensated."""

    def __init__(self, compensated: bool) -> None:
        self.compensated = compensated
        self.total: Any = None
        self.lost: Any = 0.0

    @property
    def value(self) -> Floats:
        # what the last addition lost is not in the total, which has no digits for it
        lost = self.lost.double() if isinstance(self.lost, Tensor) else self.lost
        found: Floats = (self.total.double() - lost).cpu().numpy()
        return found

    def add(self, part: Tensor) -> None:
        if self.total is None:
            self.total = part.clone()
            return
        if not self.compensated:
            self.total += part
            return
        corrected = part - self.lost
        total = self.total + corrected
        self.lost = (total - self.total) - corrected
        self.total = total


def _channels(outputs: Any, module: Any) -> Tensor:
    chosen = np.arange(widths(module)[1]) if outputs is None else integers("outputs", outputs, (None,)).copy()
    return torch.from_numpy(chosen).to(module.weight.device)


def _blocks(units: Any, channels: int, positions: int, path: str) -> Indices:
    """(channels x positions,) the unit of each input."""
    if units is None:
        units = channels
    if isinstance(units, (int, np.integer)):
        if units < 1 or channels % units:
            raise InvalidProblem(f"{path}: units: {channels} input channels do not make {units} equal runs")
        unit = np.repeat(np.arange(units), channels // int(units))
    else:
        unit = integers(f"{path}: units", units, (channels,))
    return np.repeat(unit, positions)


def _diagonal(blocks: Floats) -> Floats:
    """One matrix with the blocks on its diagonal: the groups of a convolution read and make nothing in common."""
    groups, rows, wide = blocks.shape
    if groups == 1:
        return blocks[0]
    whole = np.zeros((groups, rows, groups, wide))
    whole[np.arange(groups), :, np.arange(groups), :] = blocks
    return whole.reshape(groups * rows, groups * wide)
