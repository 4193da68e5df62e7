r"""How much of each layer stays apart when two networks are fused, within a number of parameters.

minimise    D(alpha_1, ..., alpha_L)        subject to  parameters(alpha_1, ..., alpha_L) <= budget

D is how far the fused network's outputs are from the ensemble's, on average over the calibration samples, or a loss of
the caller's. It is evaluated on fused networks by `level-switch`, which begins with the optimum of the additive model

    sum_l D(alpha_l, all others apart)

by dynamic programming. Parameters of neighbouring layers are a product of their widths, which the pair costs carry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from prunesolve import solvers
from prunesolve.problems import BlackBox, InvalidProblem, LevelChoice
from prunesolve.problems._arrays import Floats

from ._alignment import owners
from ._forward import evaluating
from .blocks import dense_weight
from .data import call, samples
from .evaluate import evaluate

if TYPE_CHECKING:
    from .fusion import Pair

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, eq=False)
class Widths:
    """What the search chose.

    Attributes
    ----------
    alphas : {group: float}
    report : dict
        budget, spent, the judged value of the answer and of the best even alpha, evaluations.
    """

    alphas: dict[str, float]
    report: dict[str, Any]


class _Width(NamedTuple):
    """Units fused, alone from A, alone from B."""

    fused: int
    a: int
    b: int

    @property
    def all(self) -> int:
        return self.fused + self.a + self.b


def search_widths(
    pair: Pair,
    params: float | int | None,
    *,
    evaluations: int = 40,
    refit: bool = False,
    loss: Callable[..., Any] | None = None,
    levels: Sequence[float] = LEVELS,
) -> Widths:
    """Alpha for each group of a pair of networks.

    Parameters
    ----------
    pair : Pair
        Two networks, ready to be fused.
    params : int or float
        The most parameters; a float counts in parameters of the first network.
    evaluations : int
        Fused networks that the search looks at, after those that the additive model needs.
    refit : bool
        Whether what is looked at is refitted first.
    loss : callable (outputs, targets), optional
        What is minimised, on the data's targets; default the mean squared distance to the ensemble's outputs.
    levels : sequence of float
        The alphas to choose from.

    Raises
    ------
    InvalidProblem
        If no budget is given or none of the choices meets it; says which can be met.
    """
    single = sum(p.numel() for p in pair.models[0].parameters())
    if isinstance(params, bool) or not isinstance(params, (int, float)):
        raise InvalidProblem("params: alpha='search' needs a budget, such as params=1.5 for 1.5 times the first model")
    budget = params if isinstance(params, int) else params * single
    judge = _Judge(pair, refit, loss)
    choice = _choice(pair, levels, float(budget), judge)
    even = [np.full(choice.n, s) for s in range(len(levels))]
    fitting = [s for s in even if choice.is_feasible(s)]
    box = BlackBox(choice, lambda rows: np.array([judge(_named(pair, levels, row)) for row in rows]), choice)
    result = solvers.get("level-switch").solve(
        box, seed=pair.seed, evaluation_limit=evaluations, start=fitting[-1] if fitting else None
    )
    report = {
        "budget": int(budget),
        "spent": int(choice.spent(result.solution)),
        "value": result.objective,
        "even": {"alpha": levels[int(fitting[-1][0])], "value": float(box.value(fitting[-1]))} if fitting else None,
        "additive": float(choice.value(result.solution)),
        "evaluations": judge.count,
    }
    return Widths(_named(pair, levels, result.solution), report)


def _named(pair: Pair, levels: Sequence[float], choice: Any) -> dict[str, float]:
    return {group: float(levels[int(s)]) for group, s in zip(pair.groups, choice, strict=True)}


class _Judge:
    """How far the network fused at some alphas is from the ensemble, or its loss."""

    def __init__(self, pair: Pair, refit: bool, loss: Callable[..., Any] | None) -> None:
        self.pair, self.refit, self.loss = pair, refit, loss
        self.count = 0
        self.wanted = [] if loss is not None else list(_ensemble(pair))

    def __call__(self, alphas: Mapping[str, float]) -> float:
        self.count += 1
        made = self.pair.fused(self.pair.align(alphas).couplings, refit=self.refit)
        if self.loss is not None:
            return float(evaluate(made, self.pair.batches[0], loss=self.loss, metric=self.loss)["loss"])
        total, count = 0.0, 0
        with evaluating(made):
            for (inputs, _), wanted in zip(self.pair.batches[0], self.wanted, strict=True):
                error = (call(made, inputs) - wanted).double().square()
                total += float(error.flatten(1).mean(1).sum())
                count += samples(inputs)
        return total / count


def _ensemble(pair: Pair) -> Any:
    """The weighted mean of the two networks' outputs, batch by batch."""
    with evaluating(pair.models[0]), evaluating(pair.models[1]):
        for (inputs_a, _), (inputs_b, _) in zip(*pair.batches, strict=True):
            outputs = [call(m, x) for m, x in zip(pair.models, (inputs_a, inputs_b), strict=True)]
            yield torch.lerp(outputs[0], outputs[1], pair.lam)


def _choice(pair: Pair, levels: Sequence[float], budget: float, judge: _Judge) -> LevelChoice:
    """Levels with what each loses by itself and the exact parameters."""
    apart = dict.fromkeys(pair.groups, 1.0)
    error = [[judge(apart | {group: level}) for level in levels] for group in pair.groups]
    widths = [_widths(pair, level) for level in levels]
    cost, pair_cost = _parameters(pair, widths)
    return LevelChoice(error, cost, budget, pair_cost, labels=list(pair.groups))


def _widths(pair: Pair, level: float) -> dict[str, _Width]:
    found = pair.align(dict.fromkeys(pair.groups, level)).couplings
    return {name: _Width(len(c.fused_b), len(c.alone_a), len(c.alone_b)) for name, c in found.items()}


# -- parameters


class _Parameters:
    """Parameters by level: of one group, and of two that a layer joins."""

    def __init__(self, groups: Sequence[str], widths: Sequence[Mapping[str, _Width]]) -> None:
        self.groups, self.widths = list(groups), widths
        self.single = np.zeros((len(self.groups), len(widths)))
        self.double: dict[tuple[int, int], Floats] = {}

    def vector(self, group: str, each: int) -> None:
        """`each` parameters for every unit of a group."""
        self.single[self.groups.index(group)] += [each * w[group].all for w in self.widths]

    def matrix(self, writes: str | _Width, reads: str | _Width, each: int) -> None:
        """`each` parameters for every pair of units that a layer joins; a width stands for an axis of no group."""
        if isinstance(writes, _Width) and isinstance(reads, _Width):
            self.single[0] += each * _entries(writes, reads)
        elif isinstance(writes, _Width):
            self.single[self.groups.index(str(reads))] += [each * _entries(writes, w[str(reads)]) for w in self.widths]
        elif isinstance(reads, _Width):
            self.single[self.groups.index(writes)] += [each * _entries(w[writes], reads) for w in self.widths]
        elif writes == reads:
            self.single[self.groups.index(writes)] += [each * _entries(w[writes], w[reads]) for w in self.widths]
        else:
            ends = self.groups.index(writes), self.groups.index(reads)
            table = np.array([[each * _entries(w[writes], r[reads]) for r in self.widths] for w in self.widths])
            key, table = (ends, table) if ends[0] < ends[1] else (ends[::-1], table.T)
            self.double[key] = self.double.get(key, 0.0) + table


def _entries(writes: _Width, reads: _Width) -> int:
    """Weights of a layer in blocks: fused units read all, units of one network its own and the fused ones."""
    to_a, to_b = writes.a * (reads.fused + reads.a), writes.b * (reads.fused + reads.b)
    return writes.fused * reads.all + to_a + to_b


def _parameters(
    pair: Pair, widths: Sequence[Mapping[str, _Width]]
) -> tuple[list[Floats], dict[tuple[int, int], Floats]]:
    """What each group's levels cost, and what pairs cost; the first group's bear what is spent in any case."""
    model, axes = pair.models[0], pair.axes[0]
    found = _Parameters(pair.groups, widths)
    for path in axes.order:
        module: Any = model.get_submodule(path)
        writes = [(name, rows.shape) for name, rows in owners(axes, path, "out")]
        if axes.roles[path] != "mixing":
            own = sum(p.numel() for p in module.parameters())
        else:
            own = 0 if module.bias is None else module.bias.numel()
            reads = [(name, columns.shape) for name, columns in owners(axes, path, "in")]
            for name, (units, rows) in writes:
                for other, (columns, each) in reads:
                    joined = _Width(0, columns, columns) if pair.inputs is not None else _Width(columns, 0, 0)
                    per_pair = rows * each * dense_weight(module).shape[2]
                    found.matrix(name or _Width(units, 0, 0), other or joined, per_pair)
        channels = sum(units * rows for _, (units, rows) in writes)
        for name, (units, rows) in writes:
            if name:
                found.vector(name, rows * own // max(1, channels))
            else:
                found.single[0] += units * own // max(1, channels)
    return list(found.single), found.double
