r"""How many weights each layer of a network keeps when so many stay in all.

uniform     k_l prop. to n_l
erk         k_l prop. to the sum of the weight's dimensions, none beyond n_l          (Erdos-Renyi kernel)
lamp        the k largest of   w^2 / sum_{v in the layer, v^2 >= w^2} v^2
global      the k largest of   |w|
by levels   minimise sum_l error[l][s_l]  subject to  sum_l count[l][s_l] <= k        (`LevelChoice`)

The counts add up to what was asked, exactly, and every layer keeps one weight at least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prunesolve.problems import InvalidProblem, LevelChoice, unknown
from prunesolve.problems._arrays import Floats, Indices
from prunesolve.solvers import DynamicProgramming, Solver


def keep_counts(weights: Mapping[str, Any], keep: int, how: str = "global") -> dict[str, int]:
    """Weights kept in each layer, by the weights alone.

    Parameters
    ----------
    weights : {path: array or tensor}
        The weights of each layer that is pruned, in their own shape.
    keep : int
        Weights kept in all.
    how : {"uniform", "erk", "lamp", "global"}
        The rule; "erk" and "lamp" follow the references, "global" cuts all layers at one magnitude.

    Returns
    -------
    dict
        {path: count}, 1 to the size of the layer, `keep` in all.

    Raises
    ------
    InvalidProblem
        If there are fewer weights than asked, or fewer asked than layers.

    References
    ----------
    Evci et al., Rigging the lottery, ICML 2020 (ERK); Lee et al., Layer-adaptive sparsity for the magnitude-based
    pruning, ICLR 2021 (LAMP).

    Examples
    --------
    >>> layers = {"a": np.array([[4.0, 1.0], [3.0, 2.0]]), "b": np.array([[0.5, 0.1]])}
    >>> keep_counts(layers, 3, "uniform"), keep_counts(layers, 3, "global"), keep_counts(layers, 3, "lamp")
    ({'a': 2, 'b': 1}, {'a': 2, 'b': 1}, {'a': 2, 'b': 1})
    """
    if how not in RULES:
        raise unknown("allocation", str(how), RULES)
    arrays = {path: _array(w) for path, w in weights.items()}
    sizes = np.array([a.size for a in arrays.values()], dtype=np.int64)
    check_total(keep, sizes)
    return dict(zip(arrays, RULES[how](list(arrays.values()), keep).tolist(), strict=True))


def level_counts(
    errors: Mapping[str, Any], counts: Mapping[str, Any], keep: int, solver: Solver | None = None
) -> dict[str, int]:
    """Weights kept in each layer, from what each layer loses at some numbers of them.

    Parameters
    ----------
    errors : {path: (S,) float}
        What is lost where the layer keeps so many.
    counts : {path: (S,) int}
        The numbers, ascending.
    keep : int
        Weights kept in all: the levels cost at most that together. What they leave is spent where the error falls
        fastest towards a layer's next level.
    solver : Solver, optional
        For `LevelChoice`; default dynamic programming, which proves its choice.

    Returns
    -------
    dict
        {path: count}, `keep` in all or all that the highest levels have.

    Examples
    --------
    >>> errors, counts = {"a": [4.0, 1.0, 0.0], "b": [3.0, 0.0]}, {"a": [1, 2, 4], "b": [1, 3]}
    >>> level_counts(errors, counts, 6)
    {'a': 3, 'b': 3}
    """
    paths = list(errors)
    levels = [np.asarray(counts[path], dtype=np.int64) for path in paths]
    losses = [np.asarray(errors[path], dtype=np.float64) for path in paths]
    choice = LevelChoice(losses, levels, keep, labels=paths)
    chosen = (DynamicProgramming() if solver is None else solver).solve(choice).solution
    found = np.array([ladder[s] for ladder, s in zip(levels, chosen, strict=True)], dtype=np.int64)
    return dict(zip(paths, _spend(found, levels, losses, keep).tolist(), strict=True))


def check_total(keep: int, sizes: Indices) -> None:
    """Refuse a number of weights that the layers cannot keep."""
    if not len(sizes) <= keep <= sizes.sum():
        raise InvalidProblem(
            f"keep: expected {len(sizes)} weights, one a layer, up to all {int(sizes.sum())}, got {keep}"
        )


def _spend(found: Indices, levels: Sequence[Indices], losses: Sequence[Floats], keep: int) -> Indices:
    """Add what is left of the budget where the straight line to a layer's next level falls most steeply."""
    while (left := keep - int(found.sum())) > 0:
        steps = [_slope(k, ladder, loss) for k, ladder, loss in zip(found, levels, losses, strict=True)]
        best = int(np.argmin([slope for slope, _ in steps]))
        if not steps[best][1]:
            break
        found[best] += min(left, steps[best][1])
    return found


def _slope(count: int, ladder: Indices, loss: Floats) -> tuple[float, int]:
    """How the error changes with a further weight, and how many there are up to the next level."""
    at = int(np.searchsorted(ladder, count, side="right"))
    if at == len(ladder):
        return np.inf, 0
    return (loss[at] - loss[at - 1]) / (ladder[at] - ladder[at - 1]), int(ladder[at] - count)


def _array(weight: Any) -> Floats:
    held = weight.detach().cpu().numpy() if hasattr(weight, "detach") else weight
    return np.asarray(held, dtype=np.float64)


def _uniform(weights: Sequence[Floats], keep: int) -> Indices:
    return _shared([float(w.size) for w in weights], weights, keep)


def _erk(weights: Sequence[Floats], keep: int) -> Indices:
    return _shared([float(sum(w.shape)) for w in weights], weights, keep)


def _shared(scores: Sequence[float], weights: Sequence[Floats], keep: int) -> Indices:
    """Counts in proportion to scores, at least 1 and at most all of a layer; what a bound takes or gives is shared."""
    score = np.array(scores)
    high = np.array([w.size for w in weights], dtype=np.float64)
    low = np.ones_like(high)

    def counts(factor: float) -> Floats:
        return np.clip(factor * score, low, high)

    under, over = 0.0, float((high / score).max())
    # the total grows with the factor: halved until neighbouring numbers are met
    while under < (middle := (under + over) / 2) < over:
        under, over = (middle, over) if counts(middle).sum() < keep else (under, middle)
    share = counts(over)
    found = np.floor(share + 1e-9)
    open_ = found + 1 <= high
    order = np.argsort(np.where(open_, found - share, np.inf), kind="stable")
    found[order[: int(keep - found.sum())]] += 1
    return found.astype(np.int64)


def _global(weights: Sequence[Floats], keep: int) -> Indices:
    return _largest([np.abs(w).ravel() for w in weights], keep)


def _lamp(weights: Sequence[Floats], keep: int) -> Indices:
    return _largest([lamp_scores(w).ravel() for w in weights], keep)


def lamp_scores(weight: Any) -> Floats:
    """w^2 / sum of v^2 over the layer's v with v^2 >= w^2, in the weight's shape; of equal ones the first counts more.

    Examples
    --------
    >>> lamp_scores([2.0, -1.0, 1.0]).tolist()
    [1.0, 0.2, 0.16666666666666666]
    """
    square = np.square(_array(weight))
    order = np.argsort(-square, axis=None, kind="stable")
    falling = square.ravel()[order]
    scores = np.empty_like(falling)
    total = np.cumsum(falling)
    scores[order] = np.divide(falling, total, out=np.zeros_like(falling), where=total > 0)
    return scores.reshape(square.shape)


def _largest(scores: Sequence[Floats], keep: int) -> Indices:
    """How many of the `keep` largest scores each layer has; the largest of every layer is in."""
    layer = np.repeat(np.arange(len(scores)), [len(s) for s in scores])
    merged = np.concatenate(list(scores)).astype(np.float64)
    starts = np.cumsum([0, *(len(s) for s in scores)])[:-1]
    merged[starts + [int(s.argmax()) for s in scores]] = np.inf
    chosen = np.argsort(-merged, kind="stable")[:keep]
    return np.bincount(layer[chosen], minlength=len(scores))


RULES: dict[str, Callable[[Sequence[Floats], int], Indices]] = {
    "uniform": _uniform,
    "erk": _erk,
    "lamp": _lamp,
    "global": _global,
}
