"""What a search may ask of a black box, what that costs, and what happens when the box fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import pytest

from prunesolve.problems import BinaryQuadratic, BlackBox, Cardinality, LevelTuples, Selections, SolverFailed
from prunesolve.solvers import Restarts, Result, Run, Solver, Status
from prunesolve.solvers._evaluations import Evaluations

SLOPES = np.array([3.0, -1.0, 2.0, 0.5, -4.0, 1.5])
PAIRS = np.array([[i in pair for i in range(6)] for pair in combinations(range(6), 2)])


@dataclass(frozen=True)
class Asks(Solver):
    """A search that does what the test says."""

    ask: Callable[[Evaluations], Any] = field(default=lambda evaluations: evaluations.values(PAIRS))

    name: ClassVar[str] = "asks"
    accepts: ClassVar[Any] = (BlackBox, BinaryQuadratic)

    def _search(self, problem: Any, run: Run) -> Status | None:
        self.ask(Evaluations(BlackBox.of(problem), run))
        return None


def box(evaluate: Callable[..., Any] = lambda x: x @ SLOPES, **options: Any) -> BlackBox:
    return BlackBox(Selections(6, [Cardinality(2)]), evaluate, **options)


def batched(x: Any, batch: int) -> Any:
    return x @ SLOPES + batch


def test_the_best_of_what_was_asked_is_the_answer():
    result = Asks().solve(box())
    assert result.objective == (PAIRS @ SLOPES).min()
    assert result.evaluations == len(PAIRS)
    assert result.status is Status.FINISHED


def test_a_point_asked_again_costs_nothing():
    result = Asks(lambda e: [e.values(PAIRS[[0, 1, 0]]), e.values(PAIRS[[1, 2]])]).solve(box())
    assert result.evaluations == 3


def test_what_another_run_found_out_is_counted_all_the_same():
    shared = box()
    first, second = Asks().solve(shared), Asks().solve(shared)
    assert first.evaluations == second.evaluations == len(PAIRS)


def test_a_look_at_some_batches_costs_its_share_and_survivors_pay_the_rest():
    seen = []

    def ask(e: Evaluations) -> None:
        seen.append(e.partial(PAIRS[:8], 1))
        seen.append(e.run.evaluations)
        seen.append(e.values(PAIRS[:2]))
        seen.append((e.run.evaluations, e.known(PAIRS[:3]).tolist()))

    Asks(ask).solve(box(batched, weights=[1.0, 3.0]))
    assert np.allclose(seen[0], PAIRS[:8] @ SLOPES)
    assert seen[1] == 2
    assert np.allclose(seen[2], PAIRS[:2] @ SLOPES + 0.75)
    assert seen[3] == (4, [True, True, False])


def test_a_partial_look_is_no_answer():
    result = Asks(lambda e: e.partial(PAIRS, 1)).solve(box(batched, weights=[1.0, 1.0]))
    assert result.solution is None
    assert result.status is Status.NO_FEASIBLE_FOUND


@pytest.mark.parametrize("limit", [1, 3, 14, 15, 40])
def test_the_limit_is_never_passed(limit):
    asked = []

    def evaluate(x: Any) -> Any:
        asked.extend(row.tobytes() for row in x)
        return x @ SLOPES

    result = Asks().solve(box(evaluate), evaluation_limit=limit)
    assert len(asked) == len(set(asked)) == result.evaluations == min(limit, len(PAIRS))


def test_shares_add_up_to_the_limit():
    asked = []

    def evaluate(x: Any, batch: int) -> Any:
        asked.extend(batch for _ in x)
        return x @ SLOPES

    weights = np.array([0.1, 0.2, 0.7])
    Asks(lambda e: [e.partial(PAIRS, first) for first in (1, 2, 3)]).solve(
        box(evaluate, weights=weights), evaluation_limit=3
    )
    assert weights[asked].sum() <= 3 + 1e-9
    assert weights[asked].sum() > 3 - weights.max()


def test_the_start_is_evaluated_and_counted():
    result = Asks(lambda e: None).solve(box(), start=PAIRS[4])
    assert result.evaluations == 1
    assert np.array_equal(result.solution, PAIRS[4])


def test_inner_runs_share_what_was_paid():
    result = Restarts(Asks(), times=3).solve(box())
    assert result.evaluations == len(PAIRS)


def test_an_infeasible_point_is_no_answer():
    result = Asks(lambda e: e.values(np.ones(6, dtype=bool))).solve(box())
    assert result.solution is None


def test_levels_are_answered_as_levels():
    levels = BlackBox(LevelTuples([[1, 2, 3], [1, 2, 3]], 4), lambda s: s @ [1.0, 3.0])
    result = Asks(lambda e: e.values([[0, 2], [1, 1], [2, 0]])).solve(levels)
    assert result.solution.tolist() == [2, 0]
    again = Result.from_json(result.to_json())
    assert again.solution.tolist() == [2, 0]
    assert again.to_json() == result.to_json()


def not_a_number(x: Any) -> Any:
    return np.where(x[:, 0], np.nan, x @ SLOPES)


def test_the_search_goes_on_past_nan_and_the_masks_are_told(caplog):
    result = Asks().solve(box(not_a_number))
    clean = PAIRS[~PAIRS[:, 0]] @ SLOPES
    assert result.objective == clean.min()
    assert {tuple(f["kept"]) for f in result.details["failures"]} == {(0, i) for i in range(1, 6)}
    assert "no value (NaN)" in result.details["failures"][0]["error"]
    assert "keeps 2 of 6 (0, 1)" in caplog.text


def test_a_point_without_a_value_is_known_though_it_was_not_asked_on_all_batches():
    seen = []
    holed = box(lambda x, _: not_a_number(x), weights=[1.0, 1.0])
    Asks(lambda e: seen.extend([e.partial(PAIRS[:6], 1), e.known(PAIRS[:6]).tolist()])).solve(holed)
    assert seen[1] == PAIRS[:6, 0].tolist()


def raises_on(*pairs: tuple[int, int]) -> Callable[[Any], Any]:
    def evaluate(x: Any) -> Any:
        if any(tuple(np.flatnonzero(row)) in pairs for row in x):
            raise RuntimeError("out of memory")
        return x @ SLOPES

    return evaluate


def test_one_exception_is_borne_and_pinned_to_its_mask():
    result = Asks(lambda e: [e.values(PAIRS), e.values(PAIRS)]).solve(box(raises_on((1, 4))))
    others = PAIRS[~(PAIRS[:, 1] & PAIRS[:, 4])]
    assert result.objective == (others @ SLOPES).min()
    assert result.details["failures"] == [{"kept": [1, 4], "error": "RuntimeError: out of memory"}]


def test_the_second_exception_ends_the_search_with_the_best_so_far():
    ask = Asks(lambda e: [e.values(PAIRS[:5]), e.values(PAIRS[5:])])
    with pytest.raises(SolverFailed, match=r"second time, for the selection that keeps 2 of 6 \(1, 4\)") as caught:
        ask.solve(box(raises_on((0, 1), (1, 4))))
    held = caught.value.result
    assert held.objective == (PAIRS[1:5] @ SLOPES).min()
    assert [f["kept"] for f in held.details["failures"]] == [[0, 1], [1, 4]]


def test_a_changed_shape_is_pinned_like_an_exception():
    def evaluate(x: Any) -> Any:
        values = x @ SLOPES
        return values[:, None] if any((row[:2]).all() for row in x) else values

    result = Asks().solve(box(evaluate))
    assert [f["kept"] for f in result.details["failures"]] == [[0, 1]]
    assert "one a row" in result.details["failures"][0]["error"]


def test_ctrl_c_keeps_the_best_so_far():
    def evaluate(x: Any) -> Any:
        if (x[:, 3] & x[:, 4]).any():
            raise KeyboardInterrupt
        return x @ SLOPES

    result = Asks(lambda e: [e.values(pair) for pair in PAIRS]).solve(box(evaluate))
    assert result.status is Status.STOPPED
    assert math.isclose(result.objective, (PAIRS[:12] @ SLOPES).min())


def test_a_cardinality_that_leaves_no_choice_is_evaluated_once():
    asked = []

    def evaluate(x: Any) -> Any:
        asked.extend(x)
        return x @ SLOPES

    result = Asks().solve(BlackBox(Selections(6, [Cardinality(6)]), evaluate))
    assert result.status is Status.OPTIMAL
    assert result.evaluations == len(asked) == 1
    nothing = Asks().solve(BlackBox(Selections(6, [Cardinality(0)]), lambda x: np.full(len(x), np.nan)))
    assert nothing.status is Status.NO_FEASIBLE_FOUND
