r"""How many units each layer keeps, from what the network's answers lose when one layer is pruned.

    minimise    sum over layers l of e_l(k_l)    subject to the budget

e_l(k) is measured where layer l alone keeps k of its units, chosen by backward elimination and refitted (`Levels`), as
the distance of the network's answers from the dense ones: KL(dense || pruned) of the classes where the answers are one
row of scores a sample, the mean squared error elsewhere and where the targets are no classes; their values are not
looked at. Between the measured counts e_l is interpolated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunesolve import solvers
from prunesolve.problems import Group, InvalidProblem, LevelChoice, UnsupportedProblem
from prunesolve.problems._arrays import Bits, Floats

from ._forward import as_inputs, evaluating, where_not_finite
from .data import Batches, Inputs, call, samples, slice_of
from .levels import Levels

# samples from which the levels are made, and on which they are judged
_MADE, _JUDGED = 256, 128
_LEVELS = 6


class Counted(NamedTuple):
    """Counts for each group, and units that many of which stay by the same elimination, (n,) bool."""

    counts: dict[str, int]
    keep: Bits
    evaluations: int


def measured_counts(
    model: nn.Module, data: Any, groups: Sequence[Group], asked: Mapping[str, float], *, levels: int = _LEVELS
) -> Counted:
    """Share out one budget among the layers.

    Parameters
    ----------
    model : Module
        The dense network; untouched.
    data : see `Batches`
        Calibration samples; targets are not used. The levels are made on the first 256 and judged on the last 128.
    groups : sequence of Group
        The units.
    asked : {"keep": int} or {"params": float} or {"macs": float}
        How many units stay in all, exactly; or the most that the network may cost.
    levels : int
        Counts measured of each layer: one, equal steps, all.

    Returns
    -------
    Counted
        Within a budget of a resource there may be room for more units: its levels are coarse.

    Raises
    ------
    UnsupportedProblem
        If the layers' costs are coupled in a way that no dynamic program takes, or the network's answer is no tensor.
    InvalidProblem
        If nothing can meet the budget.

    References
    ----------
    Frantar and Alistarh, SPDY, ICML 2022 (one level a layer by dynamic programming on measured errors).

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> units = Group("0", 4, [("0", "out", [[0], [1], [2], [3]]), ("2", "in", [[0], [1], [2], [3]])])
    >>> measured_counts(net, torch.randn(64, 3), [units], {"keep": 2}).counts
    {'0': 2}
    """
    size = sum(group.size for group in groups)
    if "keep" in asked and not len(groups) <= asked["keep"] <= size:
        raise InvalidProblem(f"keep: expected {len(groups)} to {size} units, got {asked['keep']}")
    batches = Batches(data)
    made = batches.first(_MADE)
    found = Levels.build(model, made, groups, levels=levels if "keep" in asked else max(levels, 16), progress=False)
    judged = _with_answers(model, _last(batches, _JUDGED))
    targets = next(iter(batches))[1]
    scores = targets is None or not targets.is_floating_point()
    losses = [_monotone(e) for e in found.losses(judged, loss=distance if scores else _squares)]
    evaluations = sum(len(e) - 1 for e in losses)
    if "keep" in asked:
        counts = _shared_out(found, losses, int(asked["keep"]))
        return Counted(counts, _nested(found, counts), evaluations)
    (resource, limit), *others = asked.items()
    if others:
        raise InvalidProblem(f"expected one budget to share out, got {', '.join(asked)}")
    choice = found.choice(resource, limit, error=losses)
    best = solvers.get("dynamic-programming").solve(choice).solution
    keep = found.bits(best)
    return Counted({g.name: int(c[s]) for g, c, s in zip(groups, found.counts, best, strict=True)}, keep, evaluations)


def distance(outputs: Any, answers: Tensor) -> Tensor:
    """How far answers are from the dense network's, one value a sample.

    Examples
    --------
    >>> bool(distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 3.0]])).abs() < 1e-6)  # the same probabilities
    True
    """
    if answers.ndim == 2 and answers.shape[1] > 1:
        return F.kl_div(outputs.log_softmax(1), answers.log_softmax(1), log_target=True, reduction="none").sum(1)
    return _squares(outputs, answers)


def _squares(outputs: Any, answers: Tensor) -> Tensor:
    return (outputs - answers).square().reshape(len(answers), -1).mean(1)


def _monotone(error: Floats) -> Floats:
    """More units never cost more: what noise says otherwise is smoothed away."""
    return np.minimum.accumulate(np.maximum(error, 0.0))


def _between(every: Any, counts: Any, error: Floats) -> Floats:
    """Geometric interpolation: straight lines would have their optimum at measured counts alone."""
    floor = 1e-3 * max(float(error.max()), 1e-12)
    return np.exp(np.interp(every, counts, np.log(error + floor))) - floor


def _shared_out(found: Levels, losses: Sequence[Floats], total: int) -> dict[str, int]:
    """{group: count}, `total` in all."""
    every = [np.arange(1, c[-1] + 1) for c in found.counts]
    tables = [_between(k, c, e) for k, c, e in zip(every, found.counts, losses, strict=True)]
    choice = LevelChoice(tables, [k.astype(np.float64) for k in every], float(total), labels=found.labels)
    best = solvers.get("dynamic-programming").solve(choice).solution
    counts = np.array([k[s] for k, s in zip(every, best, strict=True)])
    sizes = np.array([k[-1] for k in every])
    # where nothing more is lost the program may leave room: fill the layer with the most of it
    while counts.sum() < total:
        counts[int(np.argmax((sizes - counts) / sizes))] += 1
    return {g.name: int(c) for g, c in zip(found.groups, counts, strict=True)}


def _nested(found: Levels, counts: Mapping[str, int]) -> Bits:
    """(n,) units by elimination: those of the largest level within each count, then those of the next larger one."""
    parts = []
    for group, keep in zip(found.groups, found.keep, strict=True):
        order = np.argsort(-keep.sum(0), kind="stable")
        stays = np.zeros(group.size, dtype=bool)
        stays[order[: counts[group.name]]] = True
        parts.append(stays)
    return np.concatenate(parts)


def _last(batches: Batches, most: int) -> list[Inputs]:
    """The last samples."""
    taken: list[Inputs] = []
    for inputs, _ in batches:
        taken.append(inputs)
        while len(taken) > 1 and sum(samples(x) for x in taken[1:]) >= most:
            taken.pop(0)
    surplus = sum(samples(x) for x in taken) - most
    return [slice_of(taken[0], slice(max(0, surplus), None)), *taken[1:]]


def _with_answers(model: nn.Module, inputs: Sequence[Inputs]) -> list[tuple[Inputs, Tensor]]:
    """Batches whose targets are the dense network's answers."""
    found = []
    with evaluating(model):
        for x in inputs:
            answers = call(model, x)
            if not isinstance(answers, Tensor):
                raise UnsupportedProblem(f"model: expected a tensor as its answer, got {type(answers).__name__}")
            if not bool(torch.isfinite(answers).all()):
                where = where_not_finite(model, as_inputs(model, x))
                raise InvalidProblem(f"data: expected finite activations, got NaN or infinity, first at {where}")
            found.append((x, answers.detach()))
    return found
