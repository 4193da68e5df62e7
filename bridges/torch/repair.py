r"""Repairs of a pruned network that need no labels, no gradients and no training: its channels' statistics set anew.

With the mean m and variance v of a channel in the dense network, m' and u in the pruned one and their correlation r,
every repair but the BatchNorm's makes the channel y into s y + t:

    layer-variance   s = f = sqrt(sum_c v_c / sum_c u_c), one for all channels of a layer
    asr              s = f + u / (u + median_c u_c) (sqrt(v / u) - f), within 1 / gmax .. gmax
    repair           s = sqrt(v / u)
    damped           s = sqrt(v / u) r^p                               all of them with t = m - s m'
    bias             s = 1                                             t = sum of pruned weights x mean activations

All of them go through the layers in execution order: each is measured with those before it repaired.

What BatchNorm makes of it: a layer's BatchNorm that is recalibrated afterwards divides by the new deviation and takes
off the new mean, so whatever s > 0 and t were written before it cancel, up to its eps. `asr`, `layer-variance` and
`damped` therefore write behind the BatchNorm by default, into its weight and bias. There they survive, but what they
made good while the running statistics were stale the recalibration then makes good once more: recalibrate first.
`bias`, which writes before the BatchNorm, is the other way round: recalibrate after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from prunesolve.problems import InvalidProblem, Selection, unknown

from ._forward import evaluating
from ._lockstep import Lockstep, Stop
from ._sites import Moments, Site, by_channel, copy_of, sites_of
from .batchnorm import recalibrate_batchnorm
from .compensation import bias
from .data import Batches
from .masks import apply_masks
from .refit import trace

Where = Literal["before", "after"]
_PLACES = ("before", "after")
Affine = tuple[Tensor, Tensor | None]


def layer_variance(
    dense: nn.Module,
    pruned: nn.Module,
    data: Any,
    selection: Selection | None = None,
    *,
    where: Where = "after",
    means: bool = True,
) -> nn.Module:
    """The pruned network with each layer's outputs scaled by one factor, to the dense ones' total variance.

    Parameters
    ----------
    dense : Module
        The network before anything went; untouched.
    pruned : Module
        The smaller network of `shrink`, a masked one, or one with single weights set to zero; untouched.
    data : see `Batches`
        Calibration samples; targets are not used.
    selection : Selection, optional
        What was kept; needed where layers are smaller. Without it every channel of a layer is taken as kept.
    where : "before" or "after"
        The BatchNorm that a layer alone feeds; layers without one are scaled themselves.
    means : bool
        Set each channel's mean to the dense one's too. Behind running statistics that are those of the dense network
        the means are what hurts most: a factor alone does next to nothing there.

    Returns
    -------
    Module
        A new network of the same parameters and state.

    Raises
    ------
    InvalidProblem
        If the networks do not belong together, a layer gives values that are not finite, or the data hold too few.

    References
    ----------
    Zhan, Hu, He, arXiv 2605.21972, 2026 (activation statistics repaired after pruning); the details are ours.

    Examples
    --------
    >>> dense = nn.Sequential(nn.Linear(3, 2))
    >>> pruned = nn.Sequential(nn.Linear(3, 2))
    >>> x = torch.randn(64, 3)
    >>> repaired = layer_variance(dense, pruned, x)
    >>> [float(f"{net(x).var(0).sum() / dense(x).var(0).sum():.4f}") for net in (repaired,)]
    [1.0]
    """
    _check_where(where)

    def decide(moments: Moments) -> Affine:
        wanted, given = moments.variance.sum(dim=1)
        scale = (wanted / given).sqrt() if bool(moments.alive.any()) else torch.ones_like(given)
        return _with_means(moments, scale.expand(len(moments.gain)), means)

    return _matched(dense, pruned, data, selection, where, decide)


def repair(dense: nn.Module, pruned: nn.Module, data: Any, selection: Selection | None = None) -> nn.Module:
    """The pruned network with the mean and the standard deviation of every channel as in the dense one (REPAIR).

    The layer's weights are scaled and its bias, or the running mean of the BatchNorm that it alone feeds, is set.
    Recalibrating that BatchNorm afterwards undoes it. The published code averages the statistics of each batch with all
    layers active; here those of one layer are of all batches, with the layers before it repaired: with one batch that
    is the same, with several it is what the averages stand for. A channel whose outputs do not vary is given its mean.

    Parameters
    ----------
    dense, pruned, data, selection
        As `layer_variance` takes them.

    References
    ----------
    Jordan, Sedghi, Saukh, Entezari, Neyshabur, REPAIR: REnormalizing Permuted Activations for Interpolation Repair,
    ICLR 2023; the dense network in the place of the end points.

    Examples
    --------
    >>> dense, pruned, x = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2)), torch.randn(64, 3)
    >>> torch.allclose(repair(dense, pruned, x)(x).std(0), dense(x).std(0))
    True
    """
    return _matched(dense, pruned, data, selection, "before", lambda moments: _with_means(moments, moments.gain, True))


def asr(
    dense: nn.Module,
    pruned: nn.Module,
    data: Any,
    selection: Selection | None = None,
    *,
    shrink: Literal["identity", "layer"] = "layer",
    gmax: float = 10.0,
    where: Where = "after",
    means: bool = True,
) -> nn.Module:
    r"""The pruned network with each channel's variance moved towards the dense one's, weak channels less so.

        s_c = f + r_c (sqrt(v_c / u_c) - f)        r_c = u_c / (u_c + median u)        1 / gmax <= s_c <= gmax

    A reconstruction: of the paper only the abstract was at hand, which names channel-wise variance matching with a
    data-driven shrinkage of the factors of channels with a weak signal after pruning.

    Parameters
    ----------
    dense, pruned, data, selection
        As `layer_variance` takes them.
    shrink : "identity" or "layer"
        What the factors of weak channels are drawn to: f = 1, or the layer's sqrt(sum v / sum u). On ResNet-20 the
        latter gives 4 to 8 points more (benchmarks/repairs.py).
    gmax : float
        Largest factor, and one over the smallest.
    where : "before" or "after"
        The BatchNorm that a layer alone feeds. Before it, a recalibration that follows cancels the factors.
    means : bool
        Set each channel's mean to the dense one's too, as in `layer_variance`.

    References
    ----------
    Zhan, Chen, Hu, ASR, May 2026 (abstract); reconstruction.

    Examples
    --------
    >>> dense, pruned, x = nn.Sequential(nn.Linear(3, 1)), nn.Sequential(nn.Linear(3, 1)), torch.randn(64, 3)
    >>> one = asr(dense, pruned, x, gmax=1.0, means=False)  # no factor may differ from 1
    >>> torch.equal(one(x), pruned(x))
    True
    """
    _check_where(where)
    if shrink not in ("identity", "layer"):
        raise unknown("shrink", str(shrink), ("identity", "layer"))
    if not gmax >= 1.0:
        raise InvalidProblem(f"gmax: expected a number >= 1, got {gmax}")

    def decide(moments: Moments) -> Affine:
        wanted, given = moments.variance
        alive = moments.alive
        if not bool(alive.any()):
            return _with_means(moments, moments.gain, means)
        goal = (wanted.sum() / given.sum()).sqrt() if shrink == "layer" else given.new_ones(())
        reliable = torch.where(alive, given / (given + given[alive].median()), 0.0)
        scale = (goal + reliable * (moments.gain - goal)).clamp(1.0 / gmax, gmax)
        return _with_means(moments, scale, means)

    return _matched(dense, pruned, data, selection, where, decide)


def damped(
    dense: nn.Module,
    pruned: nn.Module,
    data: Any,
    selection: Selection | None = None,
    *,
    power: float = 0.5,
    where: Where = "after",
) -> nn.Module:
    r"""The pruned network with each channel's mean matched and its variance as far as it goes with the dense one's.

        s = sqrt(v / u) max(r, 0)^power        t = m - s m'

    The error E (y_dense - s y - t)^2 of a channel is least at t = m - s m' and s = cov(y_dense, y) / u = sqrt(v / u) r:
    power 1 is the regression. Power 0 matches the variances, noise included. The regression's outputs have the variance
    r^2 v, which shrinks from layer to layer; one half, the default, lies between the two.

    Parameters
    ----------
    dense, pruned, data, selection
        As `layer_variance` takes them.
    power : float
        0 to 1 make sense; any number >= 0 is taken.
    where : "before" or "after"
        The BatchNorm that a layer alone feeds. In eval mode both compute the same.

    References
    ----------
    Ours; power 0 is REPAIR (Jordan et al., ICLR 2023).

    Examples
    --------
    >>> dense, x = nn.Sequential(nn.Linear(3, 1)), torch.randn(64, 3)
    >>> pruned = nn.Sequential(nn.Linear(3, 1))
    >>> errors = [(damped(dense, pruned, x, power=p)(x) - dense(x)).square().mean() for p in (0.0, 1.0)]
    >>> bool(errors[1] <= errors[0])
    True
    """
    _check_where(where)
    if not power >= 0.0:
        raise InvalidProblem(f"power: expected a number >= 0, got {power}")

    def decide(moments: Moments) -> Affine:
        return _with_means(moments, moments.gain * moments.correlation.clamp_min(0.0) ** power, True)

    return _matched(dense, pruned, data, selection, where, decide)


def recalibrated(dense: nn.Module, pruned: nn.Module, data: Any, selection: Selection | None = None) -> nn.Module:
    """A copy of the pruned network with the running statistics of every BatchNorm measured anew.

    Parameters
    ----------
    dense, selection
        Not used: what the BatchNorms are to give, their weights and biases say.
    pruned, data
        As `recalibrate_batchnorm` takes them.
    """
    return recalibrate_batchnorm(copy_of(pruned), data)


class Repair(NamedTuple):
    """One repair: (dense, pruned, data, selection) -> Module, whether it needs labels, its passes, what it does."""

    function: Callable[..., nn.Module]
    labels: bool
    passes: str
    sentence: str


_BOTH = "one through each network, of inputs that fit in memory; else one a layer"
REPAIRS: dict[str, Repair] = {
    "bn": Repair(recalibrated, False, "one", "the running statistics of every BatchNorm are measured anew"),
    "layer-variance": Repair(layer_variance, False, _BOTH, "one factor a layer restores its total variance"),
    "repair": Repair(repair, False, _BOTH, "every channel's mean and deviation are set to the dense ones"),
    "asr": Repair(asr, False, _BOTH, "channels' variances are restored, those of weak channels less so"),
    "bias": Repair(bias, False, "one through the dense network", "biases make good what was pruned gave on average"),
    "damped": Repair(damped, False, _BOTH, "means matched, variances as far as a channel correlates with the dense"),
}


def repaired(
    dense: nn.Module,
    pruned: nn.Module,
    data: Any,
    names: str | Sequence[str],
    selection: Selection | None = None,
    masks: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The pruned network after several repairs, one after the other in the order of their names.

    Parameters
    ----------
    dense, pruned, data, selection
        As `layer_variance` takes them.
    names : str or sequence of str
        Of `REPAIRS`.
    masks : {parameter name or module path: bool tensor}, optional
        What stays, in the shapes of `pruned`; what does not is zero afterwards, biases too if masks name them.

    Raises
    ------
    InvalidProblem
        If a name is unknown, or as the repairs say.

    Examples
    --------
    >>> dense, pruned, x = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2)), torch.randn(64, 3)
    >>> torch.allclose(repaired(dense, pruned, x, ["layer-variance", "repair"])(x).mean(0), dense(x).mean(0), atol=1e-6)
    True
    """
    chosen = checked_names(names)
    work, batches = copy_of(pruned), Batches(data)
    for name in chosen:
        work = REPAIRS[name].function(dense, work, batches, selection)
    return work if masks is None else apply_masks(work, masks)


def checked_names(names: str | Iterable[str]) -> list[str]:
    """The names as a list; those that do not exist are refused."""
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in REPAIRS:
            raise unknown("repair", str(name), REPAIRS)
    return chosen


def _check_where(where: str) -> None:
    if where not in _PLACES:
        raise unknown("where", str(where), _PLACES)


def _with_means(moments: Moments, scale: Tensor, means: bool) -> Affine:
    """The factors, and what moves the means to the dense ones if asked."""
    wanted, given = moments.mean
    return scale, wanted - scale * given if means else None


def _matched(
    dense: nn.Module,
    pruned: nn.Module,
    data: Any,
    selection: Selection | None,
    where: Where,
    decide: Callable[[Moments], Affine],
) -> nn.Module:
    """A copy of the pruned network with s and t of each layer's channels as `decide` makes them of their moments."""
    work, batches = copy_of(pruned), Batches(data)
    with torch.inference_mode(False), evaluating(dense), evaluating(work):
        layers = trace(work, batches.example())
        sites = sites_of(dense, work, layers, selection)
        with Lockstep(dense, work, batches, layers) as steps:
            for layer in layers:
                site, moments = _measured(sites[layer.path], steps.at(layer), where == "after")
                site.write(*decide(moments), after=where == "after")
    return work


def _measured(site: Site, stops: Iterable[Stop], after: bool) -> tuple[Site, Moments]:
    """The moments of a layer's channels, and the site without a norm that reads something else than channels."""
    moments = Moments(site.path, len(site.rows), site.module.weight.device)
    for stop in stops:
        wanted, given = stop.wanted, site.module.forward(stop.inputs)
        if isinstance(site.module, nn.Linear) and given.ndim != 2:
            site = site.without_norm()
        like = site.module
        if after and site.norm is not None:
            like, wanted, given = site.norm, site.dense_norm.forward(wanted), site.norm.forward(given)
        moments.add(by_channel(like, wanted, site.dense_rows).to(given.device), by_channel(like, given, site.rows))
    if moments.count < 2:
        raise InvalidProblem(
            f"data: expected more than one value for each channel of {site.path}, got {moments.count}; a variance "
            "needs two samples at least, hand in more"
        )
    return site, moments
