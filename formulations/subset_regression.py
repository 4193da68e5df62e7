r"""Which input groups of a layer stay when the layer is refitted on them.

minimise    E||y - W x||^2 + r ||W - W_0||^2    over W that read kept inputs alone,    r = ridge * mean(E x_i^2)

as    offset + tr(W H W') - 2 tr(W B),    H = E x x' + r I,  B = E x y' + r W_0',  offset = E||y||^2 + r ||W_0||^2
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from prunesolve.problems import Cardinality, GroupBounds, InvalidProblem, SubsetRegression
from prunesolve.problems._arrays import Bits, Floats, Indices, bits, floats, integers, number

from ._base import FeatureFormulation, number_in
from .budgets import Amount, units_to_keep

# inputs whose mean square is below this share of the largest say nothing and do not count in the mean
_SILENT = 1e-12


@dataclass(frozen=True)
class InputSelection(FeatureFormulation):
    r"""f(x) = min over W of E||y - W x||^2 + r ||W - W_0||^2, W zero on the inputs of dropped groups.

    The targets y are what the layer should give: its dense outputs on the pruned network's inputs make good what went
    before it. With W_0 the present weights, inputs that say nothing leave theirs alone.

    Parameters
    ----------
    ridge : float
        Pull towards W_0, relative to the mean square of the inputs.

    References
    ----------
    Meng, Behdin, Wang, Mazumder et al., OSSCAR, 2024; targets of the dense network: the same, `fullseq`.

    Examples
    --------
    >>> formulation = InputSelection(ridge=0.0)
    >>> problem = formulation.encode([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]], [[2.0, -2.0, 0.0]], keep=1)
    >>> kept = formulation.decode(problem, [True, False])
    >>> kept.inputs.tolist(), kept.weights.round(12).tolist(), round(problem.value(kept.keep), 12)
    ([0], [[2.0, 0.0]], 0.0)
    """

    ridge: float = 1e-3

    name: ClassVar[str] = "subset-regression"
    layers: ClassVar[int] = 2

    def __post_init__(self) -> None:
        number_in("ridge", self.ridge, 0.0, np.inf)

    def encode(
        self,
        inputs: Any,
        targets: Any,
        keep: Amount = 0.5,
        *,
        block: Any = None,
        weights: Any = None,
        per_set: Any = None,
        labels: Any = None,
    ) -> SubsetRegression:
        """The problem of choosing inputs by what samples say.

        Parameters
        ----------
        inputs, targets : (d, N), (o, N)
            One row an input, one row an output, one column a sample.
        keep, block, weights, per_set, labels
            As for `encode_moments`.

        Raises
        ------
        InvalidProblem
            If a number is not finite, the tables do not belong together, or no selection can be met.
        """
        x, y = floats("features: inputs", inputs, (None, None)), floats("features: targets", targets, (None, None))
        if x.shape[1] != y.shape[1]:
            raise InvalidProblem(
                f"features: expected inputs and targets of the same samples, got {x.shape[1]} and {y.shape[1]} columns"
            )
        if not x.size:
            raise InvalidProblem(f"features: expected at least one input and one sample, got shape {x.shape}")
        n = x.shape[1]
        options = {"block": block, "weights": weights, "per_set": per_set, "labels": labels}
        return self.encode_moments(x @ x.T / n, x @ y.T / n, float(np.square(y).sum()) / n, keep, **options)

    def encode_moments(
        self,
        gram: Any,
        cross: Any,
        energy: float = 0.0,
        keep: Amount | None = 0.5,
        *,
        block: Any = None,
        weights: Any = None,
        per_set: Any = None,
        labels: Any = None,
    ) -> SubsetRegression:
        """The same from second moments, which may be summed over any number of samples.

        Parameters
        ----------
        gram, cross, energy : (d, d), (d, o), float
            E x x', E x y' and E||y||^2, about the means or about zero.
        keep : float or int, optional
            Groups that stay: a fraction of the n, floor(f n + 0.5), or a count; None leaves that to `per_set`.
        block : (d,) int, optional
            Group of each input, -1 for one that always stays; each input is a group of its own by default.
        weights : (o, d), optional
            W_0; zero by default.
        per_set : GroupBounds, optional
            Bounds on how many groups of each set stay.
        labels : sequence of n, optional
            Names of the groups.
        """
        moments = floats("gram", gram, (None, None))
        d = len(moments)
        reads = floats("cross", cross, (d, None))
        start = np.zeros(reads.shape[::-1]) if weights is None else floats("weights", weights, reads.shape[::-1])
        pull = self.ridge * _mean_square(moments)
        groups = np.arange(d) if block is None else integers("block", block, (d,))
        kept = None if keep is None else units_to_keep(keep, int(groups.max(initial=-1)) + 1)
        bounds = () if per_set is None else (per_set,)
        if not all(isinstance(bound, GroupBounds) for bound in bounds):
            raise InvalidProblem(f"per_set: expected GroupBounds, got {type(per_set).__name__}")
        return SubsetRegression(
            moments + pull * np.eye(d),
            reads + pull * start.T,
            groups,
            constraints=(*bounds, *(() if kept is None else (Cardinality(kept),))),
            offset=number("energy", energy) + pull * float(np.square(start).sum()),
            labels=labels,
            meta={"formulation": repr(self), "sense": "minimise", "keep": kept, "pull": pull},
        )

    def decode(self, problem: SubsetRegression, solution: Any) -> KeptInputs:
        """What a selection (n,) of the encoded problem makes of the layer.

        Raises
        ------
        InvalidProblem
            If there is no selection, or it does not keep what was asked for.
        """
        if solution is None:
            raise InvalidProblem(f"{self.name}: there is no solution to decode; see the result's status for why")
        keep = problem.checked("solution", solution)
        if keep.ndim != 1 or not problem.is_feasible(keep):
            raise InvalidProblem(
                f"{self.name}: expected one selection of {problem.n} groups that meets the constraints, got one that "
                f"keeps {int(keep.sum())}"
            )
        return KeptInputs(keep, problem.block, problem.weights(keep))

    def meaning(self, decoded: KeptInputs, *features: Any, weights: Any = None) -> float:
        """How far the refitted layer is from its targets on the samples, and from W_0 in the pull's unit."""
        x, y = (np.asarray(table, dtype=np.float64) for table in features)
        missed = y - decoded.weights[:, decoded.inputs] @ x[decoded.inputs]
        moved = decoded.weights - (0.0 if weights is None else np.asarray(weights, dtype=np.float64))
        square = np.square(x).mean(axis=1)
        pull = self.ridge * float(square[square > _SILENT * square.max()].mean()) if square.any() else self.ridge
        return float(np.square(missed).sum() / x.shape[1] + pull * np.square(moved).sum())


@dataclass(frozen=True, eq=False)
class KeptInputs:
    """The input groups that stay and the layer's weights on them.

    Parameters
    ----------
    keep : (n,) bool
        True keeps a group.
    block : (d,) int
        Group of each input, -1 for one that always stays.
    weights : (o, d) float
        The refitted weights, zero where an input goes.
    """

    keep: Bits
    block: Indices
    weights: Floats

    def __post_init__(self) -> None:
        keep = bits("keep", self.keep, int(np.max(self.block, initial=-1)) + 1)
        weights = floats("weights", self.weights, (None, len(self.block)))
        keep.setflags(write=False)
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "weights", weights)

    @cached_property
    def inputs(self) -> Indices:
        """The inputs that stay."""
        # the last entry is what block -1 looks up
        return np.flatnonzero(np.append(self.keep, True)[self.block])


def _mean_square(gram: Floats) -> float:
    """Of the inputs that are anything but zero; 1 where none is."""
    square = gram.diagonal()
    heard = square[square > _SILENT * square.max(initial=0.0)]
    return float(heard.mean()) if len(heard) else 1.0
