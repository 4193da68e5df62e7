r"""Prune single weights of a whole network, layer by layer, and refit what stays: no labels, no gradients.

In execution order, for each layer with inputs x in the network pruned so far and the dense network's outputs y,

    minimise over W, b with W in the pattern    E||y - W x - b||^2 + r ||W - W_0||^2        (`SparseRegression`)

The pattern is k_l weights of the layer (`allocation` says how many of the network's) or n of every m consecutive input
channels. Where the outputs are added to a shortcut, y makes the pruned shortcut's error good as well, as in `refit`.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve import solvers
from prunesolve.problems import InvalidProblem, SolverFailed, unknown
from prunesolve.problems.sparse_regression import Keep, NofM, SparseRegression
from prunesolve.solvers import Result, Solver

from ._forward import evaluating
from ._lockstep import Lockstep, Stop
from ._weight_levels import level_errors
from ._weight_moments import Moments, keeps_mean, target_of, write_intercept
from .allocation import RULES, keep_counts, level_counts
from .data import Batches
from .evaluate import Loss, placed
from .masks import Masks
from .moonshot import mixed, taylor_factors
from .refit import _check_weights, _Layer, trace
from .unfold import LINEAR_LAYERS, set_weight, shaped, taps, weight_matrix

# more columns would need matrices of several GiB
_WIDE = 16384
# calibration columns a layer: more change its moments little and cost as much as all the rest
_COLUMNS = 2**17
# what "auto" stands for, by measurements on ResNet-20
SOLVER, ALLOCATION = "admm", "global"
LEVELS = "level-choice"
# columns of the loss's curvature for each row
_RANK = 16

_log = logging.getLogger("prunesolve")


@dataclass(frozen=True, eq=False)
class PrunedWeights:
    """What `prune_weights` brought back.

    Parameters
    ----------
    model : Module
        A new network of the same shapes with exact zeros.
    masks : Masks
        {"path.weight": bool of the weight's shape}, True stays.
    counts : {path: (kept, size)}
        Weights of each layer that was pruned.
    errors : {path: float}
        Squared error of each layer's output, as a share of the wanted output's variance.
    exempt : {path: str}
        Layers left dense, and why.
    results : {path: tuple of Result}
        The solver's answers, one for each group of a layer's channels.
    allocation : str or None
        The rule by which the counts were chosen.
    """

    model: nn.Module
    masks: Masks
    counts: Mapping[str, tuple[int, int]]
    errors: Mapping[str, float]
    exempt: Mapping[str, str]
    results: Mapping[str, tuple[Result, ...]] = field(default_factory=dict)
    allocation: str | None = None


def prune_weights(
    model: nn.Module,
    data: Any,
    *,
    keep: float | None = None,
    pattern: str | None = None,
    layers: Sequence[str] | None = None,
    solver: str | Solver | type[Solver] = "auto",
    allocation: str | Mapping[str, int] = "auto",
    refit: bool = True,
    lam: float | None = None,
    loss: Loss | None = None,
    ridge: float = 1e-3,
    columns: int = _COLUMNS,
    device: Any = None,
    time_limit: float | None = None,
    seed: int = 0,
) -> PrunedWeights:
    r"""The network with single weights set to zero and the others refitted, in one pass over the layers.

    Parameters
    ----------
    model : Module
        The dense network; untouched.
    data : see `Batches`
        Calibration samples; targets are not used.
    keep : int or float, optional
        Weights of the chosen layers that stay in all: a count, or with a point a fraction. Biases and norms are not
        counted and stay.
    pattern : str, optional
        "2:4" or any n:m instead of `keep`: of m input channels that follow one another n stay, for each output and
        kernel tap. Layers whose input channels m does not divide stay dense.
    layers : sequence of str, optional
        Layers that are pruned; default every Linear and convolution, the first and the last among them.
    solver : str, Solver or Solver class
        "magnitude", "wanda" (|w| times the input's root mean square), or a solver of `SparseRegression` by name or
        with its options set, which chooses each layer's weights on what the network pruned so far feeds it.
    allocation : str or {path: int}
        How `keep` is shared out: "uniform", "erk", "lamp" or "global", see `keep_counts`; "level-choice" by what the
        network's answer loses, measured layer by layer (`level_counts`); or the count of every layer.
    refit : bool
        Whether the weights that stay are refitted, and layers left dense with them; else they keep their values.
    lam : float in [0, 1], optional
        The solver minimises lam of each layer's reconstruction error and 1 - lam of the loss's second-order change,
        see `moonshot`, for which the data need targets and gradients are taken; the refit is the same.
    loss : callable (outputs, targets), optional
        For `lam`; see `evaluate`.
    ridge : float > 0
        Pull towards the present weights, relative to the mean variance of the inputs.
    columns : int
        Most columns (samples x output positions) from which a layer is fitted, drawn at random where there are more.
    device : torch device, optional
        Where to compute; default where the model lies.
    time_limit : float, optional
        Seconds for the solver, shared evenly among the layers.
    seed : int
        Draws the columns and goes to the solver.

    Returns
    -------
    PrunedWeights

    Raises
    ------
    InvalidProblem
        If the choices make no sense, a name is unknown, or a layer's activations are not finite.
    SolverFailed
        If the solver found no weights of the pattern.

    References
    ----------
    Sun et al., A simple and effective pruning approach for large language models, ICLR 2024 (Wanda); Frantar, Singh,
    Alistarh, Optimal brain compression, NeurIPS 2022 (layer after layer on the pruned network's inputs).

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> out = prune_weights(net, torch.linspace(-1, 1, 64).reshape(16, 4), keep=12, solver="magnitude")
    >>> sum(int(mask.sum()) for mask in out.masks.values()), int((out.model[0].weight[~out.masks["0.weight"]]).sum())
    (12, 0)
    """
    _check_weights(model)
    if not ridge > 0.0 or columns < 1:
        raise InvalidProblem(f"expected ridge > 0 and columns >= 1, got {ridge} and {columns}")
    choice = _solver(solver)
    if pattern is None and keep is None and not isinstance(allocation, Mapping):
        raise InvalidProblem("expected keep, such as 0.1 of the weights, or pattern, such as '2:4'; got neither")
    if pattern is not None and keep is not None:
        raise InvalidProblem(f"pattern {pattern!r} says how many weights stay; leave keep={keep} out")
    shape = None if pattern is None else n_of_m(pattern)
    chosen = _chosen(model, layers)
    # inference tensors keep no version, by which an in-place change is told
    with torch.inference_mode(False):
        dense, batches = placed(model, device), Batches(data)
        work = copy.deepcopy(dense)
        with evaluating(dense), evaluating(work):
            order = trace(work, batches.example())
            chosen, exempt = _without_exempt(work, chosen, {layer.path for layer in order}, shape)
            counts, rule = (None, None) if shape is not None else _counts(work, chosen, keep, allocation)
            gather = _Gather(batches, ridge, columns, seed)
            if counts is not None and rule == LEVELS:
                counts = _by_levels(dense, [layer for layer in order if layer.path in chosen], counts, gather)
            fit = _Fit(work, shape, counts, choice, refit, gather, time_limit, seed)
            if lam is not None:
                fit.blend = partial(_blended, dense, batches, loss, lam)
            fit.all(dense, [layer for layer in order if layer.path in chosen or refit], chosen)
    return PrunedWeights(work, Masks(fit.masks), fit.counts, fit.errors, exempt, fit.results, rule)


def n_of_m(pattern: str) -> tuple[int, int]:
    """(n, m) of a pattern such as "2:4".

    Examples
    --------
    >>> n_of_m("2:4")
    (2, 4)
    """
    found = re.fullmatch(r"(\d+):(\d+)", str(pattern))
    n, m = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < n < m:
        raise InvalidProblem(f"pattern: expected n:m with 0 < n < m, such as '2:4', got {pattern!r}")
    return n, m


def weights_to_keep(keep: Any, n: int) -> int:
    """The count that `keep` stands for: itself, or floor(f n + 0.5) for a fraction f of n weights."""
    wrong = isinstance(keep, (bool, np.bool_)) or not isinstance(keep, Real)
    if not wrong and isinstance(keep, Integral) and 0 < int(keep) <= n:
        return int(keep)
    if wrong or isinstance(keep, Integral) or not 0.0 < float(keep) <= 1.0:
        raise InvalidProblem(f"keep: expected a fraction in (0, 1] or a count of the {n} weights, got {keep!r}")
    return math.floor(float(keep) * n + 0.5)


def _solver(solver: Any) -> Solver:
    if solver == "wanda":
        return solvers.get("magnitude", score="wanda")
    if isinstance(solver, str):
        return solvers.get(SOLVER if solver == "auto" else solver)
    if isinstance(solver, type) and issubclass(solver, Solver):
        return solver()
    if not isinstance(solver, Solver):
        raise InvalidProblem(f"solver: expected a name, a Solver or its class, got {type(solver).__name__}")
    return solver


def _chosen(model: nn.Module, layers: Sequence[str] | None) -> list[str]:
    """Paths of the layers that are pruned."""
    linear = [path for path, module in model.named_modules() if isinstance(module, LINEAR_LAYERS)]
    if not linear:
        raise InvalidProblem("model: expected Linear or convolutional layers to prune, found none")
    for path in layers or ():
        if path not in linear:
            raise unknown("layer", path, linear)
    if layers is not None and not layers:
        raise InvalidProblem("layers: expected the names of layers to prune, got none; None takes all")
    return [path for path in linear if layers is None or path in layers]


def _without_exempt(
    model: nn.Module, chosen: Sequence[str], called: Collection[str], shape: tuple[int, int] | None
) -> tuple[list[str], dict[str, str]]:
    """The layers that can be pruned, and why the others are not."""
    exempt = {}
    for path in chosen:
        module: Any = model.get_submodule(path)
        reads = weight_matrix(module).shape[2] // taps(module)
        if path not in called:
            exempt[path] = "not called by the model's forward pass"
        elif shape is not None and reads % shape[1]:
            exempt[path] = f"{reads} input channels are no multiple of {shape[1]}"
    left = [path for path in chosen if path not in exempt]
    if not left:
        raise InvalidProblem(
            "expected a layer that can be pruned, got none: "
            + "; ".join(f"{path}: {reason}" for path, reason in exempt.items())
        )
    return left, exempt


def _counts(
    model: nn.Module, chosen: Sequence[str], keep: Any, allocation: str | Mapping[str, int]
) -> tuple[dict[str, int], str]:
    """Weights kept of each layer, and the rule that said so."""
    weights = {path: model.get_parameter(f"{path}.weight").detach() for path in chosen}
    if isinstance(allocation, Mapping):
        return _given_counts(weights, allocation), "given"
    if allocation not in (known := ("auto", *RULES, LEVELS)):
        raise unknown("allocation", str(allocation), known)
    rule = ALLOCATION if allocation == "auto" else allocation
    total = weights_to_keep(keep, sum(w.numel() for w in weights.values()))
    # levels are measured around the counts of one magnitude for all
    return keep_counts(weights, total, "global" if rule == LEVELS else rule), rule


def _by_levels(dense: nn.Module, layers: Sequence[_Layer], start: Mapping[str, int], gather: _Gather) -> dict[str, int]:
    """Counts by what the network's answer loses; layers too wide to measure keep those they start from."""
    measured = [layer for layer in layers if _reads(dense, layer.path) <= _WIDE]
    if not measured:
        return dict(start)
    errors, counts = level_errors(dense, gather.batches, measured, start, gather)
    return dict(start) | level_counts(errors, counts, sum(start[layer.path] for layer in measured))


def _reads(model: nn.Module, path: str) -> int:
    """Inputs x taps of one of a layer's groups."""
    return weight_matrix(model.get_submodule(path)).shape[2]


def _given_counts(weights: Mapping[str, Tensor], given: Mapping[str, int]) -> dict[str, int]:
    wrong = [path for path in given if path not in weights] + [path for path in weights if path not in given]
    if wrong:
        raise InvalidProblem(f"allocation: expected a count for each of {', '.join(weights)}, got other names: {wrong}")
    for path, count in given.items():
        if not 0 < int(count) <= weights[path].numel():
            raise InvalidProblem(f"allocation: expected 1 to {weights[path].numel()} weights of {path}, got {count}")
    return {path: int(given[path]) for path in weights}


def _blended(
    dense: nn.Module, batches: Batches, loss: Loss | None, lam: float, path: str, plain: list[SparseRegression]
) -> list[SparseRegression]:
    """The regressions of a layer's groups of channels with the loss's curvature in them."""
    factors = np.split(taylor_factors(dense, path, batches, loss=loss, rank=_RANK), len(plain))
    return [mixed(problem, u, lam) for problem, u in zip(plain, factors, strict=True)]


class _Gather:
    """Gathers and settles the moments of one layer of a network after another."""

    def __init__(self, batches: Batches, ridge: float, columns: int, seed: int) -> None:
        self.batches, self.ridge, self.columns = batches, ridge, columns
        self.generator = torch.Generator().manual_seed(seed)
        self.count = sum(1 for _ in batches)

    def __call__(self, layer: _Layer, network: nn.Module, stops: Iterable[Stop]) -> Moments:
        """The layer's moments on what its stops bring."""
        module: Any = network.get_submodule(layer.path)
        norm = None if layer.norm is None else network.get_submodule(layer.norm)
        share = max(1, self.columns // (self.count * layer.calls))
        moments = Moments(layer.path, module, share, module.bias is not None or keeps_mean(norm), self.generator)
        for stop in stops:
            moments.add(stop.inputs, target_of(stop, layer, norm))
        moments.settle(self.ridge)
        return moments


class _Fit:
    """Goes from layer to layer of the network under work."""

    def __init__(
        self,
        work: nn.Module,
        shape: tuple[int, int] | None,
        quota: Mapping[str, int] | None,
        solver: Solver,
        refit: bool,
        gather: _Gather,
        time_limit: float | None,
        seed: int,
    ) -> None:
        self.work, self.shape, self.quota, self.solver = work, shape, quota, solver
        self.refit, self.gather, self.time_limit, self.seed = refit, gather, time_limit, seed
        # what the solver judges by, where that is not the plain regression
        self.blend: Callable[[str, list[SparseRegression]], list[SparseRegression]] | None = None
        self.masks: dict[str, Tensor] = {}
        self.counts: dict[str, tuple[int, int]] = {}
        self.errors: dict[str, float] = {}
        self.results: dict[str, tuple[Result, ...]] = {}

    def all(self, dense: nn.Module, order: Sequence[_Layer], chosen: Collection[str]) -> None:
        """Every layer from the first that is pruned, in order."""
        first = next(i for i, layer in enumerate(order) if layer.path in chosen)
        if self.time_limit is not None:
            self.time_limit /= len(chosen)
        with Lockstep(dense, self.work, self.gather.batches, order[first:]) as steps:
            for layer in order[first:]:
                self.one(layer, layer.path in chosen, steps.at(layer))

    def one(self, layer: _Layer, pruned: bool, stops: Iterable[Stop]) -> None:
        """One layer on what its stops bring."""
        module: Any = self.work.get_submodule(layer.path)
        if _reads(self.work, layer.path) > _WIDE:
            self._too_wide(layer.path, module, pruned, stops)
            return
        moments = self.gather(layer, self.work, stops)
        if self.refit:
            moments.warn_if_few()
        weight, kept = self._chosen(layer.path, moments) if pruned else self._dense(moments)
        if pruned:
            self._note(layer.path, module, kept)
        if not self.refit:
            weight = moments.dense * kept
        self.errors[layer.path] = moments.error(weight)
        set_weight(module, weight.to(module.weight.device, module.weight.dtype))
        if self.refit:
            norm = None if layer.norm is None else self.work.get_submodule(layer.norm)
            write_intercept(module, norm, moments.intercept(weight))

    def _chosen(self, path: str, moments: Moments) -> tuple[Tensor, Tensor]:
        """Weights and mask (groups, o, d) that the solver chooses."""
        _, outs, reads = moments.dense.shape
        plain = [moments.problem(g, pattern) for g, pattern in enumerate(self._patterns(path, moments.dense))]
        judged = plain if self.blend is None else self.blend(path, plain)
        self.results[path] = tuple(self._solved(problem) for problem in judged)
        solutions = [np.array(result.solution) for result in self.results[path]]
        weight = np.stack([problem.weights(x) for problem, x in zip(plain, solutions, strict=True)])
        return torch.from_numpy(weight), torch.from_numpy(np.stack(solutions).reshape(-1, outs, reads))

    def _patterns(self, path: str, dense: Tensor) -> list[Any]:
        """The pattern of each group of channels; a count is parted among them by magnitude."""
        groups, _, reads = dense.shape
        if self.shape is not None:
            spread = taps(self.work.get_submodule(path))
            return [NofM(*self.shape, order=np.arange(reads).reshape(-1, spread).T.ravel())] * groups
        assert self.quota is not None
        top = np.argsort(-dense.abs().flatten().numpy(), kind="stable")[: self.quota[path]]
        return [Keep(int(k)) for k in np.bincount(top // dense[0].numel(), minlength=groups)]

    def _dense(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """All weights of a layer that is not pruned, refitted."""
        everything = torch.ones(moments.dense.shape, dtype=torch.bool)
        fitted = [moments.problem(g, Keep(m.numel())).dense_weights for g, m in enumerate(everything)]
        return torch.from_numpy(np.stack(fitted)), everything

    def _solved(self, problem: SparseRegression) -> Result:
        result = self.solver.solve(problem, seed=self.seed, time_limit=self.time_limit)
        if result.details.get("interrupted"):
            # the solver keeps its incumbent at Ctrl-C; who interrupts the whole way wants it to end
            raise KeyboardInterrupt
        if not result.feasible:
            raise SolverFailed(f"layer {problem.meta['layer']}: {result.solver}: {result.status.value}", result)
        return result

    def _too_wide(self, path: str, module: Any, pruned: bool, stops: Iterable[Stop]) -> None:
        """By magnitude and without a fit; the passes go on all the same."""
        for _ in stops:
            pass
        if not pruned:
            return
        _log.warning("weights: %s reads more than %d columns; pruned by magnitude, not refitted", path, _WIDE)
        dense = weight_matrix(module).cpu().double()
        kept = np.stack([p.best(np.abs(w)) for p, w in zip(self._patterns(path, dense), dense.numpy(), strict=True)])
        self._note(path, module, torch.from_numpy(kept))
        set_weight(module, (dense * torch.from_numpy(kept)).to(module.weight.device, module.weight.dtype))

    def _note(self, path: str, module: Any, kept: Tensor) -> None:
        self.masks[f"{path}.weight"] = shaped(module, kept).clone()
        self.counts[path] = int(kept.sum()), kept.numel()
