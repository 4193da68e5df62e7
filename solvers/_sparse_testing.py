"""Sparse regressions for the battery: few weights, all of whose selections are looked at."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from prunesolve.problems import Keep, NofM, PerRow, SparseRegression
from prunesolve.problems._arrays import Floats

from ._kind_testing import Kind

# share of the largest singular value below which a direction is rounding
_RANK = 1e-7


def regressions() -> dict[str, SparseRegression]:
    """Few weights under every pattern, alone and with a Hessian of each row's own."""
    rng = np.random.default_rng(11)
    inputs = rng.normal(size=(30, 4)) @ (np.eye(4) + 0.4)
    wide = rng.normal(size=(30, 6)) @ (np.eye(6) + 0.4)
    few = rng.normal(size=(3, 4))
    dead = inputs * [1.0, 0.0, 1.0, 1.0]
    w, w6 = rng.normal(size=(2, 4)), rng.normal(size=(2, 6))
    factors = rng.normal(size=(2, 4, 2))
    gram = inputs.T @ inputs / 30
    return {
        "keep": _measured(inputs, w, Keep(3)),
        "three rows": _measured(inputs, rng.normal(size=(3, 4)), Keep(5)),
        "per row": _measured(inputs, w, PerRow(2)),
        "2:4": _measured(inputs, w, NofM(2, 4)),
        "1:2": _measured(wide, w6, NofM(1, 2)),
        "1:3, order": _measured(wide, w6, NofM(1, 3, order=(0, 2, 4, 1, 3, 5))),
        "one row": _measured(wide, w6[:1], Keep(3)),
        "nearly all": _measured(inputs, w, Keep(7)),
        "one": _measured(inputs, w, Keep(1)),
        "row factors": _own(gram, factors, w, Keep(3)),
        "row factors, 2:4": _own(gram, factors, w, NofM(2, 4)),
        "row factors, alone": _own(np.zeros((4, 4)), rng.normal(size=(2, 4, 5)), w, PerRow(2)),
        "another target": _measured(inputs, w, Keep(4), targets=rng.normal(size=(30, 2))),
        "other weights to begin with": _measured(inputs, w, Keep(4)).replace(start_weights=w[:, ::-1]),
        "fewer samples than inputs": _measured(few, w, Keep(3)),
        "a dead input": _measured(dead, w, Keep(3)),
        "gradients": SparseRegression.from_gradients(w6.ravel()[:9], rng.normal(size=(5, 9)), Keep(4), 1e-3),
        "ties": SparseRegression(np.eye(4), np.ones((4, 2)), Keep(3), offset=8.0),
        "large": _measured(1e8 * inputs, w, Keep(3)),
        "small": _measured(1e-8 * inputs, w, PerRow(2)),
    }


def _measured(inputs: Floats, weights: Floats, pattern: Any, targets: Any = None) -> SparseRegression:
    """The mean squared error of a layer's output, or of other targets."""
    y = inputs @ weights.T if targets is None else targets
    gram, cross = inputs.T @ inputs / len(inputs), inputs.T @ y / len(inputs)
    return SparseRegression(gram, cross, pattern, offset=float(np.square(y).sum()) / len(inputs))


def _own(gram: Floats, factors: Floats, weights: Floats, pattern: Any) -> SparseRegression:
    """Rows with a Hessian of their own, nothing lost where all weights stay."""
    hessians = [gram + own @ own.T for own in factors]
    cross = np.stack([h @ w for h, w in zip(hessians, weights, strict=True)], axis=1)
    offset = sum(float(w @ h @ w) for h, w in zip(hessians, weights, strict=True))
    return SparseRegression(gram, cross, pattern, row_factors=factors, offset=offset)


def _trivial() -> dict[str, SparseRegression]:
    """Instances that leave no choice, or none that matters."""
    alike = SparseRegression(np.eye(4), np.ones((4, 2)), Keep(3))
    apart = SparseRegression(np.eye(4), np.array([[3.0, 1.0], [2.0, 5.0], [1.0, 4.0], [0.5, 0.0]]), Keep(3))
    return {
        "one weight": SparseRegression([[2.0]], [[1.0]], Keep(1)),
        "one weight, dropped": SparseRegression([[2.0]], [[1.0]], Keep(0), offset=3.0),
        "none stays": apart.replace(pattern=PerRow(0)),
        "all stay": apart.replace(pattern=NofM(2, 2)),
        "no rows": SparseRegression(np.eye(2), np.zeros((2, 0)), Keep(0), offset=1.0),
        "nothing to explain": SparseRegression(np.eye(4), np.zeros((4, 2)), PerRow(1)),
        "inputs that are all 0": SparseRegression(np.zeros((4, 4)), np.zeros((4, 2)), Keep(3), offset=1.0),
        "all alike": alike,
        "inputs apart": apart,
        "inputs apart, per row": apart.replace(pattern=PerRow(2)),
        "inputs apart, 1:2": apart.replace(pattern=NofM(1, 2)),
    }


def _larger(n: int) -> dict[str, SparseRegression]:
    rng = np.random.default_rng(n)
    d = n // 4
    inputs = rng.normal(size=(2 * d, d)) @ (np.eye(d) + rng.normal(size=(d, d)) / np.sqrt(d))
    w = rng.normal(size=(4, d))
    keep = _measured(inputs, w, Keep(n // 3))
    return {"keep": keep, "1:2": keep.replace(pattern=NofM(1, 2)), "per row": keep.replace(pattern=PerRow(d // 3))}


@lru_cache(maxsize=64)
def _square_root(problem: Any, row: int) -> tuple[Floats, Floats]:
    """A (r, d) and y (r,) with A' A = H_i and A' y = c_i, directions that are rounding left out."""
    hessian = np.array(problem.gram)
    if problem.row_factors is not None:
        hessian += problem.row_factors[row] @ problem.row_factors[row].T
    values, vectors = np.linalg.eigh(hessian)
    spans = values > _RANK**2 * max(values[-1], 0.0)
    root = np.sqrt(values[spans])[:, None] * vectors[:, spans].T
    return root, vectors[:, spans].T @ problem.cross[:, row] / np.sqrt(values[spans])


def _row_value(problem: SparseRegression, row: int, kept: Any) -> float:
    """Min ||A w - y||^2 - ||y||^2 over the weights of one row that stay, by another route than the library's."""
    root, y = _square_root(problem, row)
    inputs = root[:, np.flatnonzero(kept)]
    if not inputs.size:
        return 0.0
    # inputs of any unit, so that the cut at small singular values is fair to each, but none made of rounding
    size = np.linalg.norm(inputs, axis=0)
    inputs = inputs / np.where(size > _RANK**2 * size.max(), size, np.inf)
    w = np.linalg.lstsq(inputs, y, rcond=_RANK)[0]
    return float(np.square(inputs @ w - y).sum() - y @ y)


def _value(problem: SparseRegression, x: Any) -> float:
    rows = np.asarray(x, dtype=bool).reshape(problem.shape)
    return problem.offset + sum(_row_value(problem, i, row) for i, row in enumerate(rows))


def _meets(problem: SparseRegression, x: Any) -> bool:
    """The pattern in its own words."""
    rows, pattern = np.asarray(x, dtype=bool).reshape(problem.shape), problem.pattern
    if isinstance(pattern, Keep):
        return int(rows.sum()) == pattern.k
    if isinstance(pattern, PerRow):
        return all(int(row.sum()) == pattern.k for row in rows)
    order = range(rows.shape[1]) if pattern.order is None else pattern.order
    starts = range(0, rows.shape[1], pattern.m)
    return all(sum(row[j] for j in list(order)[at : at + pattern.m]) == pattern.n for row in rows for at in starts)


_RANKED: dict[str, list[tuple[float, Any]]] = {}


def _ranked(problem: SparseRegression) -> list[tuple[float, Any]]:
    """Every selection of the pattern with its value, the best first; the same problem is enumerated once."""
    if problem.hash not in _RANKED:
        _RANKED[problem.hash] = _enumerated(problem)
    return _RANKED[problem.hash]


def _enumerated(problem: SparseRegression) -> list[tuple[float, Any]]:
    o, d = problem.shape
    every = [np.array(bits, dtype=bool) for bits in product((False, True), repeat=d)]
    values = [[_row_value(problem, i, row) for row in every] for i in range(o)]
    found = []
    for chosen in product(range(len(every)), repeat=o):
        x = np.concatenate([every[c] for c in chosen]) if o else np.zeros(0, dtype=bool)
        if _meets(problem, x):
            found.append((problem.offset + sum(values[i][c] for i, c in enumerate(chosen)), x))
    return sorted(found, key=lambda pair: pair[0])


def optimum(problem: SparseRegression) -> float:
    """The least value of all selections that are of the pattern."""
    return _ranked(problem)[0][0]


def _scale(problem: SparseRegression) -> float:
    explained = sum(_row_value(problem, i, np.ones(problem.shape[1])) for i in range(problem.shape[0]))
    return abs(problem.offset) + abs(explained)


def _starts(problem: SparseRegression) -> list[Any]:
    ranked = _ranked(problem)
    return [ranked[-1][1], ranked[0][1]]


def _fault(problem: SparseRegression, x: Any) -> str | None:
    if x.dtype != np.bool_ or x.shape != (problem.n,):
        return f"expected a selection ({problem.n},) bool, got {x.dtype} {x.shape}"
    return None


def _nonsense(problem: SparseRegression) -> list[Any]:
    return [np.full(problem.n, np.nan), np.full(problem.n, 0.5), np.ones(problem.n + 1, dtype=bool), "selection"]


def _written(x: Any) -> Any:
    return np.flatnonzero(x).tolist()


KIND = Kind(
    SparseRegression,
    regressions,
    _trivial,
    _larger,
    _value,
    _meets,
    optimum,
    _scale,
    _starts,
    _fault,
    _nonsense,
    _written,
)
