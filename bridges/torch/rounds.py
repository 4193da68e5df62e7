r"""Pruning in rounds: a step down, and an epoch of training only where the metric has fallen too far.

    units kept after step t of T: n - (n - k) t / T        trained where metric(dense) - metric > threshold

What the first training hardly changed is left alone by the next ones.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from torch import nn

from prunesolve.formulations.budgets import Amount, units_to_keep
from prunesolve.problems import InvalidProblem, Selection, unknown
from prunesolve.problems._arrays import number, whole

from ._fold import followers
from .costs import count
from .data import Batches
from .evaluate import Loss, evaluate, placed
from .finetune import finetune
from .groups import find_groups
from .masks import masks
from .unfold import LINEAR_LAYERS


class Pruned(Protocol):
    """What a round's pruner gives back: `ps.prune`'s result, or anything with these two."""

    model: Any
    selection: Selection


@dataclass(frozen=True)
class Rate:
    r"""The learning rate by the share x of the parameters that remain.

        lr(x) = base - delta / (1 + (x / (2 (1 - p) - x))^beta)        base above x = 1 - p, base - delta below

    Parameters
    ----------
    base, delta : float
        The rate of a network almost whole, and by how much it is less for a small one.
    p : float in (0, 1)
        Share of parameters gone at which it is half-way.
    beta : float
        How sudden that is.

    References
    ----------
    The schedule of ICE-Pruning's published code (gicLAB/ICE-Pruning); the defaults are among those it tunes over.

    Examples
    --------
    >>> [round(Rate(base=0.005, delta=0.001)(x), 6) for x in (1.0, 0.85, 0.5)]
    [0.005, 0.0045, 0.004]
    """

    base: float = 0.005
    delta: float = 7e-4
    p: float = 0.15
    beta: float = 50.0

    def __call__(self, remaining: float) -> float:
        """The rate for that share of parameters."""
        rest = 2.0 * (1.0 - self.p) - remaining
        if rest <= 0.0:
            return self.base
        if remaining <= 0.0:
            return self.base - self.delta
        steepness = min(self.beta * math.log(remaining / rest), 700.0)  # e^709 is the largest float
        return self.base - self.delta / (1.0 + math.exp(steepness))


@dataclass(frozen=True)
class Round:
    """One step of `prune_and_tune`.

    Attributes
    ----------
    units : units kept so far, of those at the start
    params : parameters that remain, as a share
    layers : {group: (kept, size)} of what this round was given
    before, pruned, after : the metric before the round, after pruning and at its end
    tuned : whether it was trained
    undone : whether the training was taken back, because the metric fell by it
    lr : at what rate; None where it was not
    frozen : layers that were left out of the training
    seconds : of all that
    """

    step: int
    units: int
    params: float
    layers: dict[str, tuple[int, int]]
    before: float
    pruned: float
    after: float
    tuned: bool
    undone: bool
    lr: float | None
    frozen: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class PruneAndTuneResult:
    """What `prune_and_tune` brought back.

    Attributes
    ----------
    model : Module
        Physically smaller and tuned; the original is untouched.
    selection : Selection
        The units that are left, of the original network's groups, composed over the rounds.
    masks : Masks
        The same on the original network.
    rounds : tuple of Round
    report : dict
        JSON-able: dense, metric_name, threshold, units [kept, of], params [after, before], macs, rounds, seconds.
    """

    model: nn.Module
    selection: Selection
    masks: Any
    rounds: tuple[Round, ...]
    report: dict[str, Any]

    def __str__(self) -> str:
        told = self.report
        lines = [f"dense        {told['metric_name']} {told['dense']:.4g}"]
        for r in self.rounds:
            how = f"tuned at {r.lr:.4g}, {len(r.frozen)} layers frozen" if r.tuned else "not tuned"
            how += ", which made it worse and is undone" if r.undone else ""
            lines.append(
                f"round {r.step:<6} {r.units:,} of {told['units'][1]:,} units, {100 * r.params:.1f} % of parameters: "
                f"{r.before:.4g}, pruned {r.pruned:.4g}, {how}, {r.after:.4g}"
            )
        return "\n".join(lines)


def prune_and_tune(
    model: nn.Module,
    data: Any,
    *,
    keep: Amount,
    prune: Callable[..., Pruned],
    steps: int = 4,
    threshold: float = 1.0,
    frozen: float = 0.3,
    lr: float | Callable[[float], float] | None = None,
    epochs: int = 1,
    teacher: bool = True,
    calibration: Any = None,
    judge: Any = None,
    layers: Sequence[str] | None = None,
    loss: Loss | None = None,
    metric: Loss | None = None,
    device: Any = None,
    seed: int = 0,
    **tuning: Any,
) -> PruneAndTuneResult:
    r"""Prune in steps; train an epoch where the metric has fallen more than `threshold` below the dense network's.

        units kept after step t of T: n - (n - k) t / T, rounded

    A training that makes the metric worse is taken back. The first one is given all layers; each layer's relative
    change | ||W'||_1 - ||W||_1 | / ||W||_1 by it says which are frozen from then on, with the BatchNorms they alone
    feed: those that it changed least.

    Parameters
    ----------
    model : Module
        The trained network; it stays as it is.
    data : see `Batches`
        Training samples.
    keep : float or int
        Units that stay at the end: a fraction, floor(f n + 0.5), or a count.
    prune : callable (network, calibration, *, keep, layers, seed) -> result with `model` and `selection`
        A round's pruner, `keep` a count of the units that the network has left; such as `ps.prune` with its other
        options bound.
    steps : int
    threshold : float >= 0
        In the metric's units: percentage points of accuracy, dB of PSNR. Of a metric of your own more is better;
        where there is none the loss counts, and less is better. Infinity trains never.
    frozen : float in [0, 1)
        Share of the convolutions and linear layers that are frozen after the first training.
    lr : float or callable (share of parameters that remain) -> float, optional
        Default `Rate()`.
    epochs : int
        Of each training.
    teacher : bool
        Whether the dense network's answers are learned too.
    calibration : see `Batches`, optional
        What `prune` sees; default `data`.
    judge : see `Batches`, optional
        What the metric is measured on; default `data`, on which a trained network looks better than it is.
    layers : sequence of str, optional
        Modules whose outputs may go; default all that can.
    loss, metric : callable (outputs, targets), optional
        See `evaluate`.
    device : torch device, optional
        Where to compute; default where the model lies.
    seed : int
        Same seed, same result, as far as `prune` repeats itself.
    **tuning
        Further options of `finetune`, such as share, augment or batchnorm.

    Returns
    -------
    PruneAndTuneResult

    Raises
    ------
    InvalidProblem
        If an option is not what is expected above, or `prune` keeps other units than the network has.

    References
    ----------
    ICE-Pruning (gicLAB/ICE-Pruning): threshold, freezing and learning rate. It prunes block by block and finds out
    what to freeze by a training of its own; steps over the whole network and the first training's changes are ours.
    """
    began = time.perf_counter()
    _checked_loop(threshold, frozen, steps, epochs)
    rate = _rate(lr)
    dense = placed(model, device)
    batches = Batches(data)
    _checked_tuning(dense, batches, tuning)
    seen = batches if calibration is None else Batches(calibration)
    judged = batches if judge is None else Batches(judge)
    example = batches.example()
    first = evaluate(dense, judged, loss=loss, metric=metric)
    sign = -1.0 if metric is None and first["metric_name"] == "loss" else 1.0
    groups = find_groups(dense, example, layers=layers).groups
    before = count(dense, example)
    kept = Selection(groups, np.ones(sum(g.size for g in groups), dtype=bool))
    network, metric_now, rounds, still = dense, float(first["metric"]), list[Round](), None
    for step, wanted in enumerate(_counts(keep, len(kept.keep), steps), 1):
        since = time.perf_counter()
        pruned = prune(network, seen, keep=wanted, layers=layers, seed=seed)
        kept = _composed(kept, pruned.selection)
        score = float(evaluate(pruned.model, judged, loss=loss, metric=metric)["metric"])
        remaining = count(pruned.model, example)["params"] / before["params"]
        # "not at most": a metric that is not a number has fallen too
        tuned = not sign * (first["metric"] - score) <= threshold
        speed = rate(remaining)
        one = Round(
            step=step,
            units=int(kept.keep.sum()),
            params=remaining,
            layers=pruned.selection.counts,
            before=metric_now,
            pruned=score,
            after=score,
            tuned=tuned,
            undone=False,
            lr=speed if tuned else None,
            frozen=tuple(still or ()) if tuned else (),
            seconds=0.0,
        )
        network = pruned.model
        if tuned:
            options = {"teacher": dense if teacher else None, "loss": loss, "seed": seed + step} | tuning
            trained = finetune(network, batches, epochs=epochs, lr=speed, frozen=one.frozen, **options)
            reached = float(evaluate(trained, judged, loss=loss, metric=metric)["metric"])
            if still is None:
                still = _least_changed(pruned.model, trained, example, frozen)
            # what is no number now is worse than any, and what was none before cannot have become worse
            if not math.isnan(score) and not sign * (score - reached) <= 0.0:
                one = replace(one, undone=True)
            else:
                network, one = trained, replace(one, after=reached)
        metric_now = one.after
        rounds.append(replace(one, seconds=time.perf_counter() - since))
    after = count(network, example)
    report = {
        "dense": float(first["metric"]),
        "metric_name": first["metric_name"],
        "threshold": float(threshold) if math.isfinite(threshold) else None,
        "units": [int(kept.keep.sum()), len(kept.keep)],
        **{name: [after[name], before[name]] for name in before},
        "rounds": [_told(r) for r in rounds],
        "seconds": time.perf_counter() - began,
    }
    return PruneAndTuneResult(network, kept, masks(kept, dense), tuple(rounds), report)


def _checked_loop(threshold: float, frozen: float, steps: int, epochs: int) -> None:
    if not (isinstance(threshold, (int, float)) and threshold >= 0.0):
        raise InvalidProblem(f"threshold: expected a number >= 0, got {threshold!r}")
    if not 0.0 <= number("frozen", frozen) < 1.0:
        raise InvalidProblem(f"frozen: expected a share of the layers from 0 to below 1, got {frozen!r}")
    for name, value in (("steps", steps), ("epochs", epochs)):
        if whole(name, value) < 1:
            raise InvalidProblem(f"{name}: expected at least 1, got {value!r}")


def _checked_tuning(dense: nn.Module, batches: Batches, tuning: Mapping[str, Any]) -> None:
    """Refuse now what the first training would refuse after hours of pruning."""
    for name in tuning:
        if name not in _TUNING:
            raise unknown("option of finetune", name, _TUNING)
    finetune(dense, batches, epochs=0, **tuning)


# the others are set round by round
_TUNING = tuple(
    name
    for name in inspect.signature(finetune).parameters
    if name not in {"network", "data", "teacher", "epochs", "lr", "masks", "frozen", "loss", "device", "seed"}
)


def _rate(lr: float | Callable[[float], float] | None) -> Callable[[float], float]:
    if lr is None:
        return Rate()
    if callable(lr):
        return lr
    fixed = number("lr", lr)
    return lambda _: fixed


def _counts(keep: Amount, n: int, steps: int) -> list[int]:
    """Units to keep after each step; steps that would remove nothing are left out."""
    last = units_to_keep(keep, n)
    counts = [n - math.floor((n - last) * step / steps + 0.5) for step in range(1, steps + 1)]
    return [c for c, had in zip(counts, [n, *counts], strict=False) if c < had]


def _composed(kept: Selection, round_: Selection) -> Selection:
    """What is left of the original units after a round; its groups say their original channels."""
    gone = {unit for group, keep in round_ for unit, stays in zip(group.units, keep, strict=True) if not stays}
    units = [unit for group in kept.groups for unit in group.units]
    had = {unit for unit, stays in zip(units, kept.keep, strict=True) if stays}
    if foreign := sorted(gone - had):
        raise InvalidProblem(
            f"prune: expected a selection of the {len(had)} units that are left, got {foreign[0]}, which is none of "
            "them; give the same layers to every round"
        )
    return Selection(kept.groups, np.array([unit in had and unit not in gone for unit in units], dtype=bool))


def _least_changed(before: nn.Module, after: nn.Module, example: Any, share: float) -> list[str]:
    """The layers whose weights' norm changed least, relatively, and the BatchNorms that they alone feed."""
    changes = {}
    for path, module in before.named_modules():
        if isinstance(module, LINEAR_LAYERS):
            norms = [float(layer.weight.detach().abs().sum()) for layer in (module, _at(after, path))]
            changes[path] = abs(norms[1] - norms[0]) / (norms[0] or 1.0)
    least = sorted(changes, key=lambda path: changes[path])[: int(share * len(changes))]
    norms_of = followers(after, example)
    return [p for path in least for p in (path, norms_of.get(path)) if p is not None]


def _at(network: nn.Module, path: str) -> Any:
    return network.get_submodule(path)


def _told(one: Round) -> dict[str, Any]:
    told = asdict(one)
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in told.items()}
    return finite | {"layers": {g: list(c) for g, c in one.layers.items()}, "frozen": list(one.frozen)}
