r"""Several trained networks made one: similar neurons fused, the others kept side by side.

alpha = 0 fuses everything (one network's size), alpha = 1 nothing: the ensemble with averaged outputs, in one module.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prunesolve import solvers
from prunesolve.formulations.partial_fusion import Coupling
from prunesolve.problems import InvalidProblem, unknown
from prunesolve.solvers import Solver

from ._alignment import FEATURES, Alignment, Comparison, align, compare
from ._fusion_refit import refit_fused
from ._inputs import Renormalised, SideBySide, differ, normalisation
from .assembly import assemble
from .axes import Axes
from .batchnorm import recalibrate_batchnorm
from .data import Batches
from .evaluate import evaluate, placed

REPAIRS: dict[str, Callable[[nn.Module, Batches], nn.Module]] = {"bn": recalibrate_batchnorm}
# what has to be equal for two layers to be of one kind; widths need not be
_SHAPED = ("kernel_size", "stride", "padding", "dilation", "padding_mode", "affine", "track_running_stats")


class FusionReport(dict[str, Any]):
    """JSON-able: `parameters`, `layers` (of the last fold), `steps`, `objective`, `seconds`; printed as a table."""

    def __str__(self) -> str:
        size = self["parameters"]
        lines = [
            f"{size['fused']:,} parameters: {size['of_first']:.2f} of the first network, "
            f"{size['of_ensemble']:.2f} of the ensemble"
        ]
        for name, told in self["layers"].items():
            alone = " + ".join(map(str, told["alone"]))
            lines.append(f"  {name:<24} alpha {told['alpha']:<5g} {told['fused']:>5} fused, {alone} alone")
        for step in self["steps"]:
            figures = [("loss", step["loss"]), (step["metric_name"], step["metric"])]
            told = ", ".join(f"{name} {'-' if v is None else format(v, '.4g')}" for name, v in figures)
            lines.append(f"  {step['step']:<24} {told}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class FuseResult:
    """What `fuse` brought back.

    Parameters
    ----------
    model : Module
        The fused network, an ordinary module; reads data normalised for the first model.
    report : FusionReport
        Sizes, widths, values and gaps of the transports, loss and metric of every step where there are targets.
    couplings : tuple of {group: Coupling}
        Which units are one, for each model after the first.
    """

    model: nn.Module
    report: FusionReport
    couplings: tuple[dict[str, Coupling], ...]


class Ensemble(nn.Module):
    """The weighted mean of several networks' outputs; reads data normalised for the first."""

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float], inputs: Sequence[Any] | None) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.weights = tuple(weights)
        given = [None] * len(models) if inputs is None else inputs
        self.inputs = nn.ModuleList(
            SideBySide(given[0], of) if inputs is not None else nn.Identity() for of in given[1:]
        )

    def forward(self, x: Tensor) -> Tensor:
        """sum_i w_i model_i(x)."""
        read = [x, *(inputs.second(x) if isinstance(inputs, SideBySide) else x for inputs in self.inputs)]
        return torch.stack([w * m(r) for w, m, r in zip(self.weights, self.models, read, strict=True)]).sum(0)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two networks made ready to be fused at any alpha.

    Parameters
    ----------
    models : pair of Module
    batches : pair of Batches
        The same samples as each network reads them.
    lam : float
        Weight of the second.
    inputs : SideBySide, optional
        Where the second reads another normalisation.
    features, sweeps, solver, whole, seed
        As in `fuse`.
    """

    models: tuple[nn.Module, nn.Module]
    batches: tuple[Batches, Batches]
    lam: float
    inputs: SideBySide | None
    features: str
    sweeps: int
    solver: Solver
    whole: bool
    seed: int

    @cached_property
    def axes(self) -> tuple[Axes, Axes]:
        """Which channels are tied, in each network."""
        found = [Axes.of(m, b.example()) for m, b in zip(self.models, self.batches, strict=True)]
        return found[0], found[1]

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in the order the layers run."""
        return tuple(group.name for group in self.axes[0].groups)

    @cached_property
    def comparison(self) -> Comparison:
        """What the units are compared by."""
        return compare(self.models, self.axes, self.batches, self.features)

    def align(self, alphas: Mapping[str, float]) -> Alignment:
        """The couplings at these alphas."""
        return align(self.comparison, alphas, self.solver, sweeps=self.sweeps, whole=self.whole, seed=self.seed)

    def fused(self, couplings: Mapping[str, Coupling], *, refit: bool = False) -> nn.Module:
        """The network that these couplings make."""
        example = self.batches[0].example()
        made = assemble(*self.models, *self.axes, couplings, lam=self.lam, inputs=self.inputs, example=example)
        if refit:
            refit_fused(made.model, made.maps, self.models, self.batches)
        return made.model


def fuse(
    models: Sequence[nn.Module],
    data: Any,
    *,
    alpha: Any = 0.4,
    lam: Any = 0.5,
    features: str = "activations",
    sweeps: int = 0,
    solver: Any = "auto",
    repair: Any = None,
    refit: bool = False,
    inputs: Sequence[Any] | None = None,
    whole: bool = True,
    params: float | int | None = None,
    evaluations: int = 40,
    loss: Callable[..., Any] | None = None,
    metric: Callable[..., Any] | None = None,
    device: Any = None,
    seed: int = 0,
) -> FuseResult:
    r"""One network from several of one architecture: similar neurons fused, the rest kept side by side.

    minimise  sum_l <C_l, P_l>    over couplings P_l of the layers' neurons that carry 1 - alpha of each

    Parameters
    ----------
    models : sequence of two or more Modules
        Trained networks of one architecture, whose hidden widths may differ; untouched. More than two are folded: the
        third is fused with what the first two made.
    data : see `Batches`
        Calibration samples normalised for the first model. Targets, where there are any, are used for the report alone.
    alpha : float, sequence, {group: float} or "search"
        Share of each layer's neurons that stays apart: 0 is optimal-transport fusion, 1 the ensemble in one module. One
        number, one a group in the order the layers run, or by name. "search": chosen within `params`.
    lam : float or sequence
        Weight of the second of two models, or the weight of each; 0.5 gives all models the same.
    features : "activations", "weights" or "both"
        What makes neurons similar: pre-activations on the data, incoming (and with sweeps outgoing) weights, or both.
    sweeps : int
        0 goes once through the layers; more sweeps improve all couplings together, where weights compare them.
    solver : str or Solver
        Of partial transport, by name or with options set.
    repair : str or sequence of str, optional
        In order: "bn" re-estimates the BatchNorm statistics on `data`.
    refit : bool
        Fit the fused layers by least squares to what the models' own layers give (no labels, no gradients).
    inputs : sequence of (mean, std), optional
        Each model's normalisation where they differ; the fused network reads the first's.
    whole : bool
        Whether layers of different widths are joined by whole pairs; otherwise by uniform measures, which split neurons
        and make the fused layers wider, see `PartialFusion`.
    params : int or float, optional
        With alpha="search": the most parameters; a float counts in parameters of the first model.
    evaluations : int
        With alpha="search": fused networks looked at.
    loss, metric : callable, optional
        As in `evaluate`.
    device : optional
        Where to compute.
    seed : int

    Returns
    -------
    FuseResult
        model, report, couplings.

    Raises
    ------
    InvalidProblem
        If there are fewer than two models, they part in architecture, an option is out of range, the data are empty or
        an activation is not finite.

    References
    ----------
    Morelli and Eckstein, partial fusion by partial optimal transport, ICML 2026. The refit, the objective that couples
    the layers and the choice of alpha are ours.

    Examples
    --------
    >>> a, b = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
    >>> x = torch.randn(32, 4)
    >>> both = fuse([a, b], x, alpha=1.0)
    >>> torch.allclose(both.model(x), (a(x) + b(x)) / 2, atol=1e-5)
    True
    >>> fuse([a, b], x, alpha=0.0).report["parameters"]["of_first"]
    1.0
    """
    began = time.perf_counter()
    models = [placed(model, device) for model in _checked_models(models)]
    weights = _weights(lam, len(models))
    repairs = _repairs(repair)
    chosen = _checked_options(features, sweeps, solver)
    normalisations = _checked_inputs(inputs, len(models))
    batches = Batches(data)
    batches.example()
    judge = _Judge(batches, loss, metric)
    for k, model in enumerate(models):
        judge.note(f"model {k}", model, normalisations and (normalisations[0], normalisations[k]))
    judge.note("ensemble", Ensemble(models, weights, normalisations))
    made, folds = models[0], []
    for k in range(1, len(models)):
        side = _side_by_side(normalisations, k)
        read = batches if side is None else Batches(Renormalised(batches, side))
        share = weights[k] / sum(weights[: k + 1])
        pair = Pair((made, models[k]), (batches, read), share, side, features, sweeps, chosen, whole, seed)
        _check_groups(pair, k)
        alphas, notes = _chosen_alphas(pair, alpha, params, evaluations, refit, loss, len(models))
        alignment = pair.align(alphas)
        if refit and judge.judges and k == len(models) - 1:
            judge.note("fused", pair.fused(alignment.couplings))
        made = pair.fused(alignment.couplings, refit=refit)
        folds.append((alphas, alignment, notes))
    judge.note("refit" if refit else "fused", made)
    for name in repairs:
        REPAIRS[name](made, batches)
        judge.note(name, made)
    report = FusionReport(
        parameters=_sizes(made, models),
        layers=_layers(*folds[-1][:2]),
        objective=[list(alignment.objective) for _, alignment, _ in folds],
        steps=judge.steps,
        **folds[-1][2],
        seconds=time.perf_counter() - began,
    )
    return FuseResult(made, report, tuple(alignment.couplings for _, alignment, _ in folds))


class _Judge:
    """Loss and metric of every step, where there are targets."""

    def __init__(self, batches: Batches, loss: Any, metric: Any) -> None:
        self.batches, self.loss, self.metric = batches, loss, metric
        self.judges = next(iter(batches))[1] is not None
        self.steps: list[dict[str, Any]] = []

    def note(self, step: str, model: nn.Module, normalisations: Any = None) -> None:
        """Judge a network; of two normalisations it reads the second, the data have the first."""
        if not self.judges:
            return
        batches = self.batches
        if normalisations is not None and differ(*normalisations):
            batches = Batches(Renormalised(batches, SideBySide(*normalisations)))
        found = evaluate(model, batches, loss=self.loss, metric=self.metric)
        # no NaN in JSON
        finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in found.items()}
        self.steps.append({"step": step, **finite})


def _side_by_side(normalisations: Sequence[Any] | None, k: int) -> SideBySide | None:
    if normalisations is None or not differ(normalisations[0], normalisations[k]):
        return None
    return SideBySide(normalisations[0], normalisations[k])


def _sizes(made: nn.Module, models: Sequence[nn.Module]) -> dict[str, Any]:
    fused, *single = (sum(p.numel() for p in m.parameters()) for m in (made, *models))
    return {
        "fused": fused,
        "models": single,
        "of_first": fused / max(1, single[0]),
        "of_ensemble": fused / max(1, sum(single)),
    }


def _layers(alphas: Mapping[str, float], alignment: Alignment) -> dict[str, dict[str, Any]]:
    told = {}
    for name, coupling in alignment.couplings.items():
        result = alignment.results[name]
        told[name] = {
            "alpha": alphas[name],
            "widths": [coupling.n_a, coupling.n_b],
            "fused": len(coupling.fused_b),
            "alone": [len(coupling.alone_a), len(coupling.alone_b)],
            "solver": result.solver,
            "status": str(result.status),
            "value": result.objective,
            "gap": result.gap,
        }
    return told


# -- what is asked for, checked


def _checked_models(models: Any) -> list[nn.Module]:
    if isinstance(models, nn.Module) or not isinstance(models, Sequence) or len(models) < 2:
        got = f"{len(models)}" if isinstance(models, Sequence) else type(models).__name__
        raise InvalidProblem(f"models: expected a list of two networks or more, got {got}")
    for k, model in enumerate(models):
        if not isinstance(model, nn.Module):
            raise InvalidProblem(f"models: expected torch.nn.Modules, got {type(model).__name__} as model {k}")
        if k:
            _check_alike(models[0], model, k)
    return list(models)


def _check_alike(first: nn.Module, other: nn.Module, k: int) -> None:
    ours, theirs = dict(first.named_modules()), dict(other.named_modules())
    for path in [*ours, *(p for p in theirs if p not in ours)]:
        one, two = ours.get(path), theirs.get(path)
        told = [_told(m) for m in (one, two)]
        if type(one) is not type(two) or told[0] != told[1]:
            raise InvalidProblem(
                f"models: expected one architecture, but models 0 and {k} part at {path or 'the network itself'!r}: "
                f"{' '.join(told[0])} and {' '.join(told[1])}; only hidden widths may differ"
            )


def _told(module: nn.Module | None) -> list[str]:
    """Kind and shape of a module, its widths aside."""
    if module is None:
        return ["nothing"]
    shape = [f"{name}={getattr(module, name)}" for name in _SHAPED if hasattr(module, name)]
    return [type(module).__name__, *shape]


def _weights(lam: Any, count: int) -> list[float]:
    if isinstance(lam, Sequence) and not isinstance(lam, str):
        weights = [float(w) for w in lam]
        if len(weights) != count or min(weights) < 0.0 or abs(sum(weights) - 1.0) > 1e-6 or weights[0] == 0.0:
            raise InvalidProblem(
                f"lam: expected {count} weights that sum to 1, one a model, the first above 0, got {weights}"
            )
        return weights
    if not isinstance(lam, (int, float)) or isinstance(lam, bool) or not 0.0 <= lam <= 1.0:
        raise InvalidProblem(f"lam: expected a number from 0 to 1, or one weight for each model, got {lam!r}")
    if count == 2:
        return [1.0 - lam, float(lam)]
    if lam != 0.5:
        raise InvalidProblem(f"lam: one number weighs two models; give {count} weights that sum to 1, got {lam!r}")
    return [1.0 / count] * count


def _repairs(repair: Any) -> list[str]:
    names = [] if repair is None else [repair] if isinstance(repair, str) else list(repair)
    for name in names:
        if name not in REPAIRS:
            raise unknown("repair", str(name), REPAIRS)
    return names


def _checked_options(features: str, sweeps: int, solver: Any) -> Solver:
    """The solver."""
    if features not in FEATURES:
        raise unknown("features", str(features), FEATURES)
    if not isinstance(sweeps, int) or isinstance(sweeps, bool) or sweeps < 0:
        raise InvalidProblem(f"sweeps: expected a whole number >= 0, got {sweeps!r}")
    if isinstance(solver, str):
        return solvers.get(solver)
    if not isinstance(solver, Solver):
        raise InvalidProblem(f"solver: expected a name or a Solver, got {type(solver).__name__}")
    return solver


def _checked_inputs(inputs: Any, count: int) -> list[Any] | None:
    if inputs is None:
        return None
    if not isinstance(inputs, Sequence) or len(inputs) != count:
        got = len(inputs) if isinstance(inputs, Sequence) else type(inputs).__name__
        raise InvalidProblem(f"inputs: expected one (mean, std) for each of {count} models, got {got}")
    lengths = {len(part) for given in inputs for part in normalisation(given)} - {1}
    if len(lengths) > 1:
        raise InvalidProblem(f"inputs: expected as many numbers for every model, one a channel, got {sorted(lengths)}")
    return list(inputs)


def _check_groups(pair: Pair, k: int) -> None:
    theirs = {group.name for group in pair.axes[1].groups}
    parted = sorted(set(pair.groups) ^ theirs)
    if parted:
        raise InvalidProblem(
            f"models: the channels of models 0 and {k} are tied in different ways, first at {parted[0]}; fuse networks "
            "whose layers are joined alike"
        )


def _chosen_alphas(
    pair: Pair, alpha: Any, params: Any, evaluations: int, refit: bool, loss: Any, count: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """{group: alpha} and what the report says of the search."""
    if alpha != "search":
        if params is not None:
            raise InvalidProblem(
                "params: expected with alpha='search' only; alpha itself says how large the network is"
            )
        return _alphas(alpha, pair.groups), {}
    if count > 2:
        raise InvalidProblem(f"alpha: 'search' takes two models, got {count}; fuse two, then the next with what came")
    from .fusion_widths import search_widths

    found = search_widths(pair, params, evaluations=evaluations, refit=refit, loss=loss)
    return found.alphas, {"search": found.report}


def _alphas(alpha: Any, groups: Sequence[str]) -> dict[str, float]:
    """{group: alpha} of one number, one a group, or names."""
    if isinstance(alpha, str):
        raise InvalidProblem(f"alpha: expected numbers from 0 to 1 or 'search', got {alpha!r}")
    if isinstance(alpha, Mapping):
        for name in alpha:
            if name not in groups:
                raise unknown("group in alpha", str(name), groups)
        missing = [name for name in groups if name not in alpha]
        if missing:
            raise InvalidProblem(f"alpha: no value for {', '.join(missing)}")
        values = [alpha[name] for name in groups]
    elif isinstance(alpha, Sequence) or hasattr(alpha, "__len__"):
        values = list(alpha)
        if len(values) != len(groups):
            raise InvalidProblem(
                f"alpha: expected {len(groups)} numbers, one a group ({', '.join(groups)}), got {len(values)}"
            )
    else:
        values = [alpha] * len(groups)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
            raise InvalidProblem(f"alpha: expected numbers from 0 to 1, got {value!r}")
    return {name: float(value) for name, value in zip(groups, values, strict=True)}
