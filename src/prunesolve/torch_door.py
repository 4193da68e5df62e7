"""The torch bridge by its public names; torch is imported where one of them is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from prunesolve.problems import Group, Selection, Statistics

from .choices import formulation_of

if TYPE_CHECKING:
    from prunesolve.bridges.torch.evaluate import Evaluator
    from prunesolve.bridges.torch.fusion import FuseResult
    from prunesolve.bridges.torch.groups import Found
    from prunesolve.bridges.torch.masks import Masks
    from prunesolve.bridges.torch.merging import MergeResult
    from prunesolve.bridges.torch.tune import Tuned
    from prunesolve.bridges.torch.verify import Check


def measure(model: Any, data: Any, **options: Any) -> Statistics:
    """What each unit of a torch model is worth and costs on calibration data; see `bridges.torch.measure`.

    Parameters
    ----------
    model : torch.nn.Module
        A trained model; it is not changed.
    data : iterable of (inputs, targets) batches
        Calibration data.
    **options
        `layers`, `loss`, `device`, ... of the bridge's `measure`.
    """
    from prunesolve.bridges.torch.measure import measure

    return measure(model, data, **options)


def find_groups(model: Any, example: Any, *, layers: Sequence[str] | None = None) -> Found:
    """The coupled channel groups of a torch model, and what was left out and why; see `bridges.torch.groups`."""
    from prunesolve.bridges.torch.groups import find_groups

    return find_groups(model, example, layers=layers)


def find_branches(model: Any, example: Any) -> tuple[Any, ...]:
    """The residual branches of a torch model that can be removed whole; see `bridges.torch.branches`."""
    from prunesolve.bridges.torch.branches import find_branches

    return find_branches(model, example)


def remove_branches(model: Any, branches: Any, example: Any, data: Any = None) -> Any:
    """A network without some of its residual branches; see `bridges.torch.branches`."""
    from prunesolve.bridges.torch.branches import remove_branches

    return remove_branches(model, branches, example, data)


def masks(selection: Selection, model: Any) -> Masks:
    """{module path: (out,) bool} of every module whose outputs go; see `bridges.torch.masks`."""
    from prunesolve.bridges.torch.masks import masks

    return masks(selection, model)


def apply_masks(model: Any, masks: Mapping[str, Any], how: Literal["plain", "prune"] = "plain") -> Any:
    """Zero what the masks drop, in place, plainly or through torch.nn.utils.prune; returns the model."""
    from prunesolve.bridges.torch.masks import apply_masks

    return apply_masks(model, masks, how=how)


def shrink(model: Any, selection: Selection, example: Any) -> Any:
    """A new, physically smaller model that computes what the masked one does; the original stays as it is."""
    from prunesolve.bridges.torch.shrink import shrink

    return shrink(model, selection, example)


def verify(masked: Any, removed: Any, example: Any) -> Check:
    """Whether the masked and the removed network agree on the example, layer by layer."""
    from prunesolve.bridges.torch.verify import verify

    return verify(masked, removed, example)


def evaluator(model: Any, data: Any, groups: Sequence[Group], **options: Any) -> Evaluator:
    """The model as a black box: selections in, true loss or metric out; see `bridges.torch.evaluate.Evaluator`."""
    from prunesolve.bridges.torch.evaluate import Evaluator

    return Evaluator(model, data, groups, **options)


def tune(formulation: Any, stats: Statistics, judge: Any, **options: Any) -> Tuned:
    """The formulation's weights whose selection an evaluator or black box likes best; see `bridges.torch.tune.tune`."""
    from prunesolve.bridges.torch.tune import tune

    return tune(formulation_of(formulation), stats, judge, **options)


def refit(dense: Any, removed: Any, data: Any, selection: Selection, **options: Any) -> Any:
    """A copy of the removed model with consumers fitted by least squares to the dense one's; no labels needed."""
    from prunesolve.bridges.torch.refit import refit

    return refit(dense, removed, data, selection, **options)


def fuse(
    models: Sequence[Any], data: Any, *, alpha: Any = 0.4, lam: Any = 0.5, repair: Any = None, **options: Any
) -> FuseResult:
    """One network from several: similar neurons fused, the rest side by side; see `bridges.torch.fusion.fuse`."""
    from prunesolve.bridges.torch.fusion import fuse

    return fuse(models, data, alpha=alpha, lam=lam, repair=repair, **options)


def merge(model: Any, data: Any, *, keep: Any, how: str = "cluster", **options: Any) -> MergeResult:
    """A smaller network whose neurons are clusters of neurons; see `bridges.torch.merging.merge`.

    Two networks in a list become one, see `merge_ensemble` there; `keep` is then of the neurons of both.
    """
    from prunesolve.bridges.torch.merging import merge, merge_ensemble

    merged = merge_ensemble if isinstance(model, (list, tuple)) else merge
    return merged(model, data, keep=keep, how=how, **options)


def recalibrate_batchnorm(model: Any, data: Any) -> Any:
    """The model, in place, with its BatchNorm statistics averaged anew over the data; returns it."""
    from prunesolve.bridges.torch.batchnorm import recalibrate_batchnorm

    return recalibrate_batchnorm(model, data)
