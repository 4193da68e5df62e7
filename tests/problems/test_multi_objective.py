"""Several objectives: the problem, its spaces, its file."""

from __future__ import annotations

import pickle
from itertools import product
from typing import Any

import numpy as np
import pytest

from prunesolve.problems import (
    BinaryQuadratic,
    Budget,
    Cardinality,
    Composite,
    InvalidProblem,
    LevelChoice,
    LevelTuples,
    MultiObjective,
    Product,
    Selections,
)

ERROR = BinaryQuadratic([-3.0, -1.0, -2.0], [[0, 1, 0], [1, 0, 0], [0, 0, 0]], offset=6.0)
SIZE = BinaryQuadratic([1.0, 1.0, 2.0])
EVERY = np.array(list(product([False, True], repeat=3)))


def both(**more: Any) -> MultiObjective:
    return MultiObjective.over([ERROR, SIZE], ["error", "size"], **more)


def calls(problem: MultiObjective) -> tuple[MultiObjective, list[int]]:
    """The problem with a count of the rows of each call."""
    seen: list[int] = []

    def evaluate(x: Any) -> Any:
        seen.append(len(x))
        return problem.evaluate(x)

    return problem.replace(evaluate=evaluate, parts=None), seen


def test_the_objectives_are_the_quadratics() -> None:
    expected = np.stack([ERROR.value(EVERY), SIZE.value(EVERY)], axis=1)
    assert np.array_equal(both().values(EVERY), expected)
    assert np.array_equal(both().values(EVERY[5]), expected[5])


def test_a_point_is_evaluated_once() -> None:
    problem, seen = calls(both())
    problem.values(EVERY[[1, 2, 1]])
    problem.values(EVERY[[2, 3]])
    assert seen == [2, 1]


def test_points_come_back_from_their_keys() -> None:
    problem = both()
    assert np.array_equal(problem.points([problem.key(row) for row in EVERY]), EVERY)
    levels = MultiObjective(LevelTuples([[1, 2, 3]] * 2, 6, exact=False), lambda x: x, ["a", "b"])
    rows = np.array([[0, 2], [1, 1]])
    assert np.array_equal(levels.points([levels.key(row) for row in rows]), rows)


def test_the_constraints_of_all_parts_hold() -> None:
    problem = MultiObjective.over(
        [ERROR.replace(constraints=[Cardinality(2)]), SIZE.replace(constraints=[Budget([1.0, 1.0, 2.0], 2.0)])],
        ["error", "size"],
    )
    assert problem.k == 2
    feasible = (EVERY.sum(axis=1) == 2) & (SIZE.value(EVERY) <= 2)
    assert np.array_equal(problem.is_feasible(EVERY), feasible)


def test_limits_are_told_by_how_much_they_are_exceeded() -> None:
    problem = both(limits=[np.inf, 2.0])
    assert np.array_equal(problem.excess(problem.values(EVERY)), np.maximum(0.0, SIZE.value(EVERY) - 2.0))


def test_a_saved_problem_is_the_same(tmp_path: Any) -> None:
    problem = both(
        reference=[7.0, 5.0],
        limits=[np.inf, 4.0],
        starts=EVERY[[1, 7]],
        groups=[0, 0, 1],
        labels=["a", "b", ("c", 1)],
        meta={"of": "a test"},
    )
    problem.save(tmp_path / "problem.npz")
    found = MultiObjective.load(tmp_path / "problem.npz")
    assert found.hash == problem.hash
    assert found.labels == problem.labels
    assert found.meta == problem.meta
    assert np.array_equal(found.starts, problem.starts)
    assert np.array_equal(found.groups, problem.groups)
    assert np.array_equal(found.values(EVERY), problem.values(EVERY))


def test_the_hash_tells_instances_apart() -> None:
    others = [both(limits=[1.0, 2.0]), both(reference=[1.0, 2.0])]
    # of a function only its name can tell
    others += [MultiObjective(Selections(3), len, ["error", "size"], meta={"of": name}) for name in ("one", "another")]
    others += [both().replace(space=Selections(3, [c])) for c in (Cardinality(1), Cardinality(2))]
    others.append(MultiObjective.over([ERROR, SIZE.replace(offset=1.0)], ["error", "size"]))
    assert len({problem.hash for problem in (both(), *others)}) == 8


def test_functions_are_not_saved(tmp_path: Any) -> None:
    with pytest.raises(InvalidProblem, match="closed form"):
        MultiObjective(Selections(3), both().evaluate, ["error", "size"]).save(tmp_path / "problem.npz")
    assert not list(tmp_path.iterdir())


def test_closed_forms_can_be_sent_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(both()))
    assert np.array_equal(again.values(EVERY), both().values(EVERY))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": 3}, "space: expected Selections"),
        ({"evaluate": 3}, "evaluate: expected a callable"),
        ({"objectives": ["error"]}, "two or more distinct names"),
        ({"objectives": ["error", "error"]}, "two or more distinct names"),
        ({"reference": [1.0]}, "reference: expected shape"),
        ({"reference": [1.0, np.nan]}, "must be finite"),
        ({"limits": [1.0, np.nan]}, "limits: expected 2 numbers"),
        ({"starts": [[True, False]]}, "starts: expected shape"),
        ({"groups": [0, 0]}, "groups: expected shape"),
        ({"activity": [[1.0, 2.0]]}, "activity: expected shape"),
        ({"labels": ["a"]}, "labels: expected one for each"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidProblem, match=said):
        both().replace(**change)


def test_starts_within_the_constraints_alone() -> None:
    with pytest.raises(InvalidProblem, match="row 1 breaks the constraints by 1.0"):
        both(starts=[[1, 1, 0], [1, 1, 1]]).replace(space=Selections(3, [Cardinality(2)]))


def test_objectives_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidProblem, match=r"expected 8 rows of 2 objectives \(error, size\), got shape \(8,\)"):
        both().replace(evaluate=ERROR.value).values(EVERY)


def test_a_product_is_feasible_where_its_parts_are() -> None:
    units, levels = Selections(2, [Cardinality(1)]), LevelChoice([[1.0, 0.0]] * 2, [[1.0, 3.0]] * 2, 4.0)
    space = Product([units, levels])
    rows = np.array(list(product([0, 1], repeat=4)))
    expected = (rows[:, :2].sum(axis=1) == 1) & (rows[:, 2:].sum(axis=1) <= 1)
    assert np.array_equal(space.is_feasible(rows), expected)
    assert np.array_equal(np.asarray(space.violation(rows)) == 0.0, expected)
    assert [space.is_feasible(row) for row in rows] == expected.tolist()
    chosen, kept = space.split(rows[6])
    assert chosen.tolist() == [False, True]
    assert kept.tolist() == [1, 0]
    with pytest.raises(InvalidProblem, match="zeros and ones"):
        space.checked("x", [2, 0, 0, 0])


def test_a_composite_places_a_part_in_the_dense_whole() -> None:
    part = MultiObjective.over([BinaryQuadratic([-1.0, -2.0]), BinaryQuadratic([1.0, 1.0])], ["error", "size"])
    whole = MultiObjective.over([BinaryQuadratic([-1.0] * 4), BinaryQuadratic([1.0] * 4)], ["error", "size"])
    found = Composite([part, part], whole, [True] * 4).placed(1, [[False, True], [False, False]])
    assert found.tolist() == [[True, True, False, True], [True, True, False, False]]


def test_parts_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(InvalidProblem, match="expected the parts' 6 coordinates, got 3"):
        Composite([both(), both()], both(), [True] * 3)
    with pytest.raises(InvalidProblem, match="expected MultiObjective"):
        Composite([ERROR], both(), [True] * 3)  # type: ignore[list-item]
