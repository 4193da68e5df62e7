"""Refine: the surrogate's answer first, then evaluations, over units or over group counts."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from prunesolve.problems import (
    BinaryQuadratic,
    BlackBox,
    Blocks,
    Cardinality,
    InvalidProblem,
    LevelTuples,
    Selections,
    SolverFailed,
    UnsupportedProblem,
)
from prunesolve.solvers import Refine, Status, get

N, K = 12, 6
ALL = np.array([x for x in product([False, True], repeat=N) if sum(x) == K])


def surrogate(seed: int = 0) -> BinaryQuadratic:
    rng = np.random.default_rng(seed)
    blocks = []
    for _ in range(3):
        upper = np.triu(rng.random((4, 4)), 1)
        blocks.append(upper + upper.T)
    return BinaryQuadratic(-2 * rng.random(N), Blocks(blocks), constraints=[Cardinality(K)])


def truth(seed: int = 0) -> Any:
    """The surrogate and three-body terms that it does not know."""
    model, rng = surrogate(seed), np.random.default_rng(100 + seed)
    triples = [rng.choice(N, 3, replace=False) for _ in range(30)]
    weights = rng.normal(0.0, 0.7, 30)

    def evaluate(x: Any) -> Any:
        return model.value(x) + np.stack([x[:, t].all(axis=1) for t in triples], axis=1) @ weights

    return evaluate


@pytest.mark.parametrize("refiner", ["swap-search", "tensor-train"])
@pytest.mark.parametrize("over", ["bits", "counts", "both"])
def test_the_answer_is_never_worse_than_the_surrogates(refiner, over):
    for seed in range(3):
        box = BlackBox.over(surrogate(seed), truth(seed))
        result = Refine("exact", refiner, over=over).solve(box, evaluation_limit=60, seed=seed)
        best = surrogate(seed)
        x = ALL[np.argmin(best.value(ALL))]
        assert result.details["unrefined"] == {"objective": box.value(x), "kept": np.flatnonzero(x).tolist()}
        assert result.feasible
        assert result.objective == box.value(result.solution) <= box.value(x)
        assert result.evaluations <= 60
        assert result.trace[0].objective == box.value(x)


@pytest.mark.parametrize("refiner", ["swap-search", "tensor-train"])
def test_refinement_finds_what_the_surrogate_cannot_know(refiner):
    gains = []
    # of seed 0 the surrogate's optimum is the true one
    for seed in range(1, 5):
        box = BlackBox.over(surrogate(seed), truth(seed))
        result = Refine("exact", refiner).solve(box, evaluation_limit=300, seed=seed)
        before = result.details["unrefined"]["objective"]
        least = box.value(ALL).min()
        gains.append((before - result.objective) / (before - least))
    assert np.mean(gains) > 0.8


def test_counts_move_units_between_groups_and_nothing_else():
    """Over counts the selections are nested: only groups' numbers differ from the surrogate's order."""
    model = surrogate(1)
    asked: list[Any] = []

    def evaluate(x: Any) -> Any:
        asked.extend(x.copy())
        return truth(1)(x)

    Refine("exact", over="counts").solve(BlackBox.over(model, evaluate), evaluation_limit=40)
    for g in range(3):
        part = np.array(asked)[:, 4 * g : 4 * g + 4]
        seen = {tuple(row) for row in part.tolist()}
        assert len({sum(row) for row in seen}) == len(seen)


def test_a_start_is_never_lost():
    box = BlackBox.over(surrogate(2), truth(2))
    best = ALL[np.argmin(box.value(ALL))]
    result = Refine("greedy").solve(box, start=best, evaluation_limit=5)
    assert np.array_equal(result.solution, best)


def test_the_same_seed_gives_the_same_answer_whatever_was_evaluated_before():
    box = BlackBox.over(surrogate(3), truth(3))
    for refiner in ("swap-search", "tensor-train"):
        solver = Refine("swap-annealing", refiner, over="both")
        first, second = (solver.solve(box, evaluation_limit=50, seed=4) for _ in range(2))
        assert np.array_equal(first.solution, second.solution)
        assert first.evaluations == second.evaluations


def test_the_option_undecided_reaches_the_refiner():
    assert Refine(refiner="tensor-train", undecided=8)._refiner == get("tensor-train", undecided=8)
    with pytest.raises(InvalidProblem, match="greedy has no such option"):
        _ = Refine(refiner="greedy", undecided=8)._refiner


def test_ctrl_c_in_the_surrogates_search_keeps_nothing_and_in_the_refinement_the_best():
    calls = []

    def evaluate(x: Any) -> Any:
        calls.append(len(x))
        if len(calls) > 5:
            raise KeyboardInterrupt
        return truth(0)(x)

    result = Refine("exact").solve(BlackBox.over(surrogate(), evaluate))
    assert result.status is Status.STOPPED
    assert result.feasible
    assert result.objective <= result.details["unrefined"]["objective"]


def test_two_failures_end_it_with_the_unrefined_answer_in_hand():
    x = ALL[np.argmin(surrogate().value(ALL))]

    def evaluate(rows: Any) -> Any:
        if not (rows == x).all():
            raise RuntimeError("device lost")
        return truth(0)(rows)

    with pytest.raises(SolverFailed, match="device lost") as caught:
        Refine("exact").solve(BlackBox.over(surrogate(), evaluate), evaluation_limit=50)
    assert np.array_equal(caught.value.result.solution, x)
    assert len(caught.value.result.details["failures"]) == 2


@pytest.mark.parametrize(
    ("solver", "problem", "words"),
    [
        (Refine(), BlackBox(Selections(4), np.sum), "surrogate is a BinaryQuadratic"),
        (Refine(), BlackBox(LevelTuples([[0, 1]], 1), np.sum), "surrogate is a BinaryQuadratic"),
        (Refine(over="counts"), BinaryQuadratic(np.zeros(4)), "cardinality"),
        (Refine("swap-search"), object(), "BlackBox"),
        (Refine(refiner="greedy"), BlackBox.over(surrogate(), truth()), "greedy takes BinaryQuadratic"),
    ],
)
def test_what_it_cannot_take_is_refused_in_words(solver, problem, words):
    with pytest.raises(UnsupportedProblem, match=words):
        solver.solve(problem)


@pytest.mark.parametrize(("option", "value"), [("over", "units"), ("undecided", -1), ("levels", 2), ("levels", 2.5)])
def test_options_are_checked(option, value):
    with pytest.raises(InvalidProblem, match=option):
        Refine(**{option: value})
