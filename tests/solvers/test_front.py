"""Fronts: dominance, hypervolume and knee against their definitions, and what a run makes of evaluations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prunesolve.problems import BinaryQuadratic, LevelChoice, MultiObjective, Selections, SolverFailed
from prunesolve.solvers import Result, Status
from prunesolve.solvers._base import Run, Solver
from prunesolve.solvers._front import hypervolume, knee, nondominated

points = st.integers(2, 3).flatmap(
    lambda m: arrays(np.float64, st.tuples(st.integers(1, 12), st.just(m)), elements=st.integers(0, 4).map(float))
)


def dominates(a: Any, b: Any) -> bool:
    return bool((a <= b).all() and (a < b).any())


@given(points)
def test_nondominated_is_what_nothing_dominates(values: Any) -> None:
    keeps = nondominated(values)
    expected = [
        not any(dominates(b, a) for b in values) and not any((b == a).all() for b in values[:i])
        for i, a in enumerate(values)
    ]
    assert keeps.tolist() == expected


@given(points)
def test_hypervolume_counts_the_unit_boxes_that_are_dominated(values: Any) -> None:
    reference = np.full(values.shape[1], 3.0)
    corners = np.stack(np.meshgrid(*[np.arange(3)] * values.shape[1], indexing="ij"), -1).reshape(-1, values.shape[1])
    dominated = [(values <= corner).all(axis=1).any() for corner in corners]
    assert hypervolume(values, reference) == pytest.approx(sum(dominated))


def test_the_knee_is_the_point_nearest_to_the_ideal_in_scaled_sum() -> None:
    assert knee([[0.0, 10.0], [1.0, 2.0], [50.0, 1.0], [100.0, 0.0]]) == 1
    assert knee([[3.0, 5.0]]) == 0


@dataclass(frozen=True)
class Asks(Solver):
    """Evaluates the rows it was given."""

    name = "asks"
    accepts = MultiObjective
    rows: Any = field(default=())

    def _search(self, problem: Any, run: Run) -> Status | None:
        for rows in self.rows:
            run.evaluate(rows)
        return None


ERROR, SIZE = BinaryQuadratic([-3.0, -2.0, -1.0], offset=6.0), BinaryQuadratic([1.0, 1.0, 1.0])
PROBLEM = MultiObjective.over([ERROR, SIZE], ["error", "size"], reference=[7.0, 4.0])
ROWS = [[[1, 1, 1], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 0, 0]]]


def test_a_result_holds_the_front() -> None:
    result = Asks(ROWS).solve(PROBLEM)
    assert result.front is not None
    assert result.front.objectives.tolist() == [[0.0, 3.0], [3.0, 1.0], [6.0, 0.0]]
    assert np.array_equal(PROBLEM.values(result.front.solutions), result.front.objectives)
    assert result.evaluations == 4
    volume = hypervolume(result.front.objectives, [7.0, 4.0])
    assert result.objective == -volume
    assert result.details["hypervolume"] == volume
    assert np.array_equal(result.solution, result.front.solutions[result.details["knee"]])
    objectives = [row.objective for row in result.trace]
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[-1] == -volume


def test_a_front_comes_back_from_json() -> None:
    result = Asks(ROWS).solve(PROBLEM)
    found = Result.from_json(result.to_json())
    assert found.front is not None
    assert result.front is not None
    assert found.front.solutions.dtype == bool
    assert np.array_equal(found.front.solutions, result.front.solutions)
    assert np.array_equal(found.front.objectives, result.front.objectives)


def test_without_a_reference_the_first_points_give_one() -> None:
    result = Asks(ROWS).solve(PROBLEM.replace(reference=None))
    # the worst of the first two points and a tenth of their range
    assert result.details["reference"] == pytest.approx([5.0 + 0.5, 3.0 + 0.2])


def test_nothing_within_the_limits_tells_the_least_violated() -> None:
    result = Asks(ROWS).solve(PROBLEM.replace(limits=[2.0, 2.0]))
    assert result.status is Status.NO_FEASIBLE_FOUND
    assert result.solution is None
    least = result.details["least_violated"]
    assert least == {"violation": 1.0, "objectives": [0.0, 3.0], "point": [1, 1, 1]}


def test_points_past_the_limit_are_not_evaluated() -> None:
    result = Asks(ROWS).solve(PROBLEM, evaluation_limit=3)
    assert result.evaluations == 3
    assert result.status is Status.ITERATION_LIMIT
    assert result.front is not None
    assert [6.0, 0.0] not in result.front.objectives.tolist()


def test_the_start_is_evaluated() -> None:
    result = Asks().solve(PROBLEM, start=[True, True, True])
    assert result.front is not None
    assert result.front.objectives.tolist() == [[0.0, 3.0]]


def test_points_without_a_value_are_named_and_left_out() -> None:
    def evaluate(x: Any) -> Any:
        return np.where(x[:, :1] & x[:, 1:2], np.nan, PROBLEM.evaluate(x))

    result = Asks(ROWS).solve(PROBLEM.replace(evaluate=evaluate, parts=None))
    assert result.details["failures"] == [{"error": "no value (NaN)", "kept": [0, 1, 2]}]
    assert result.front is not None
    assert result.front.objectives.tolist() == [[3.0, 1.0], [6.0, 0.0]]


def test_the_second_exception_ends_the_run_with_its_front() -> None:
    def evaluate(x: Any) -> Any:
        if (x.sum(axis=1) == 1).any():
            raise RuntimeError("one unit is too few")
        return PROBLEM.evaluate(x)

    with pytest.raises(SolverFailed, match=r"failed a second time, for \[1, 0, 0\].*one unit is too few") as caught:
        Asks(ROWS).solve(PROBLEM.replace(evaluate=evaluate, parts=None))
    front = caught.value.result.front
    assert front.objectives.tolist() == [[0.0, 3.0]]
    assert caught.value.result.details["failures"][0]["kept"] == [2]


def test_a_restored_run_goes_on_where_the_other_was() -> None:
    @dataclass(frozen=True)
    class Halves(Asks):
        checkpoint: Any = field(default_factory=list)

        def _search(self, problem: Any, run: Run) -> Status | None:
            if self.checkpoint:
                run.restore(*self.checkpoint)
            run.evaluate(self.rows[bool(self.checkpoint)])
            assert run.archive is not None
            self.checkpoint[:] = [*run.evaluated, run.archive.reference]
            return None

    problem = PROBLEM.replace(reference=None)
    solver = Halves(ROWS)
    solver.solve(problem)
    whole, resumed = Asks(ROWS).solve(problem), solver.solve(problem)
    assert whole.front is not None
    assert resumed.front is not None
    assert np.array_equal(whole.front.solutions, resumed.front.solutions)
    assert (whole.objective, whole.evaluations) == (resumed.objective, resumed.evaluations)


def test_a_level_front_is_recomputed() -> None:
    @dataclass(frozen=True)
    class Fronts(Solver):
        name = "fronts"
        accepts = LevelChoice

        def _search(self, problem: Any, run: Run) -> Status | None:
            run.offer(problem.cheapest)
            run.offer_front([[0, 0], [1, 1]])
            return None

    choice = LevelChoice([[4.0, 1.0], [3.0, 0.0]], [[1, 2], [1, 3]], 5)
    result = Fronts().solve(choice)
    assert result.front is not None
    assert result.front.objectives.tolist() == [[7.0, 2.0], [1.0, 5.0]]


def test_an_evaluation_outlives_a_space_without_constraints() -> None:
    problem = MultiObjective(Selections(2), lambda x: np.stack([x[:, 0], x[:, 1]], 1), ["a", "b"])
    result = Asks([[[0, 0]]]).solve(problem)
    assert result.front is not None
    assert result.front.objectives.tolist() == [[0.0, 0.0]]
