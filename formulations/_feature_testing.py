"""The battery of formulations that read features: every solution of a small instance is enumerated and decoded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations, permutations
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from prunesolve.problems import Clustering, InvalidProblem, PartialTransport, SubsetRegression
from prunesolve.problems._arrays import Floats, Indices

from ._base import FeatureFormulation

_CLOSE = 1e-9
_NEURONS = ((5, 5), (5, 4))  # of the first and of the second layer
_PLANS = 50  # random plans where masses split neurons


def check_features(formulation: FeatureFormulation) -> None:
    """Prove that the formulation keeps its word; `check_formulation` hands it on."""
    for sizes in _NEURONS[: formulation.layers]:
        tables = _tables(sizes[: formulation.layers])
        for check in (_check_purity, _check_value, _check_file, _check_refused):
            check(formulation, tables)


def _tables(sizes: tuple[int, ...]) -> list[Floats]:
    """Features of made-up neurons, two of the first layer alike."""
    rng = np.random.default_rng(0)
    tables = [rng.standard_normal((size, 3)) for size in sizes]
    tables[0][1] = tables[0][0]
    return tables


def _say(holds: Any, message: str) -> None:
    # no assert statement: these checks must also hold under python -O
    if not holds:
        raise AssertionError(message)


def _check_purity(formulation: FeatureFormulation, tables: list[Floats]) -> None:
    """Encode leaves the features alone, and the same input gives the same problem."""
    before = [table.copy() for table in tables]
    hashes = {formulation.encode(*tables).hash for _ in range(2)}
    same = all(np.array_equal(table, kept) for table, kept in zip(tables, before, strict=True))
    _say(same, f"{formulation!r}: encode changed the features; copy before you write")
    _say(len(hashes) == 1, f"{formulation!r}: encode twice gave two problems, {sorted(hashes)}; it must be pure")


def _check_value(formulation: FeatureFormulation, tables: list[Floats]) -> None:
    """What a solution is worth is what is meant by what it decodes to, for every solution."""
    problem = formulation.encode(*tables)
    count = 0
    for solution in _solutions(problem):
        _say(problem.is_feasible(solution), f"{formulation!r}: the problem does not admit {_written(solution)}")
        value = problem.value(solution)
        meant = formulation.meaning(formulation.decode(problem, solution), *tables)
        count += 1
        _say(
            abs(value - meant) <= _CLOSE * max(1.0, abs(meant)),
            f"{formulation!r}: value differs from meaning at {_written(solution)}: {value:.12g}, meaning {meant:.12g}",
        )
    _say(count > 1, f"{formulation!r}: the problem has {count} solutions; there is nothing to choose")


def _solutions(problem: Any) -> Iterator[Any]:
    """Every partition, every partial matching or every choice of inputs; random plans where neurons may split."""
    if isinstance(problem, Clustering):
        yield from (labels for labels in _partitions(problem.n, problem.n_clusters) if problem.is_feasible(labels))
    elif isinstance(problem, PartialTransport) and problem.pairs is not None:
        yield from _matchings(problem)
    elif isinstance(problem, PartialTransport):
        rng = np.random.default_rng(0)
        yield from (_filled(problem, rng.permutation(problem.n * problem.m)) for _ in range(_PLANS))
    elif isinstance(problem, SubsetRegression):
        kept = (np.isin(np.arange(problem.n), chosen) for chosen in combinations(range(problem.n), int(problem.k or 0)))
        yield from (x for x in kept if problem.is_feasible(x))
    else:
        raise AssertionError(
            f"expected a Clustering, a PartialTransport or a SubsetRegression, got {type(problem).__name__}"
        )


def _partitions(n: int, clusters: int) -> Iterator[Indices]:
    """Labels (n,) of every partition into that many clusters, each once."""

    def grown(head: list[int]) -> Iterator[list[int]]:
        if len(head) == n:
            yield head
            return
        for label in range(min(clusters, max(head, default=-1) + 2)):
            yield from grown([*head, label])

    yield from (np.array(labels) for labels in grown([]) if max(labels) == clusters - 1)


def _matchings(problem: PartialTransport) -> Iterator[Floats]:
    """Every choice of whole pairs."""
    k = int(problem.pairs or 0)
    for rows in combinations(range(problem.n), k):
        for columns in permutations(range(problem.m), k):
            plan = np.zeros((problem.n, problem.m))
            plan[rows, columns] = problem.mass / max(1, k)
            yield plan


def _filled(problem: PartialTransport, order: Indices) -> Floats:
    """Pairs filled in an order, each as far as both ends and the mass allow."""
    plan, left = np.zeros((problem.n, problem.m)), float(problem.mass)
    source, target = np.array(problem.source), np.array(problem.target)
    for i, j in zip(*np.unravel_index(order, plan.shape), strict=True):
        plan[i, j] = min(source[i], target[j], left)
        source[i] -= plan[i, j]
        target[j] -= plan[i, j]
        left -= plan[i, j]
    return plan


def _check_file(formulation: FeatureFormulation, tables: list[Floats]) -> None:
    """The instance and its facts survive a file."""
    problem = formulation.encode(*tables)
    try:
        told = json.loads(json.dumps(dict(problem.meta), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{formulation!r}: meta must be JSON-able ({error}): {problem.meta}") from error
    missing = {"formulation", "sense"} - set(told)
    _say(not missing, f"{formulation!r}: meta lacks {sorted(missing)}")
    with TemporaryDirectory() as folder:
        problem.save(f"{folder}/instance.npz")
        again = type(problem).load(f"{folder}/instance.npz")
    _say(again.hash == problem.hash, f"{formulation!r}: the instance read from a file has another hash")
    _say(dict(again.meta) == told, f"{formulation!r}: the instance read from a file has other meta")


def _check_refused(formulation: FeatureFormulation, tables: list[Floats]) -> None:
    """Features that make no sense, and solutions that are none, are refused in words."""
    broken = tables[0].copy()
    broken[2, 1] = np.nan
    flat, empty = tables[0][0], np.zeros((0, 3))
    for what, wrong in (("NaN", broken), ("a single row", flat), ("no rows", empty), ("text", "features")):
        _refused(formulation, f"features: {what}", partial(formulation.encode, wrong, *tables[1:]))
    if formulation.layers > 1:
        ill = [tables[0], *(table[:, :2] for table in tables[1:])]
        _refused(formulation, "rows of different lengths", lambda: formulation.encode(*ill))
    problem = formulation.encode(*tables)
    wrong_solution = np.zeros(problem.n + 1, dtype=np.int64)
    _refused(formulation, "decode(None)", lambda: formulation.decode(problem, None))
    _refused(formulation, "decode of another shape", lambda: formulation.decode(problem, wrong_solution))


def _refused(formulation: FeatureFormulation, what: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except InvalidProblem as error:
        _say(str(error), f"{formulation!r}: {what}: refused without a word")
        return
    except Exception as error:
        said = f"{formulation!r}: {what}: expected InvalidProblem, got {type(error).__name__}: {error}"
        raise AssertionError(said) from error
    raise AssertionError(f"{formulation!r}: {what}: expected InvalidProblem, got an answer")


def _written(solution: Any) -> str:
    return str(np.asarray(solution).tolist())
