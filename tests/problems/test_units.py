"""Groups, statistics and selections."""

import numpy as np
import pytest
from scipy import sparse

from prunesolve.problems import Group, InvalidProblem, Selection, Statistics, Unit


@pytest.fixture
def groups() -> list[Group]:
    return [
        Group("conv", 2, [("conv", "out", [[0], [1]]), ("bn", "out", [[0], [1]])]),
        Group("cat.1", 3, [("late", "out", [[4], [5], [6]]), ("fc", "in", [[8, 9], [10, 11], [12, 13]])], layer="cat"),
    ]


@pytest.fixture
def stats(groups) -> Statistics:
    pair = np.zeros((5, 5))
    pair[1, 2] = pair[2, 1] = 7.0
    return Statistics(
        groups,
        saliency={"l1": np.arange(5.0)},
        blocks={"activation": [np.eye(2), np.full((3, 3), 0.5)]},
        cross={"reconstruction": {(0, 1): np.arange(6.0).reshape(2, 3)}},
        factors={"fisher": np.ones((5, 2))},
        cost={"params": [1.0, 2.0, 3.0, 4.0, 5.0], "macs": np.ones(5)},
        pair_cost={"params": sparse.coo_array(pair)},
        constant={"params": 100.0},
        meta={"samples": np.int64(12), "excluded": {"stem": "read by everything"}},
    )


def test_units_carry_the_original_names(stats):
    assert stats.n == 5
    assert stats.units == (Unit("conv", 0), Unit("conv", 1), Unit("cat", 4), Unit("cat", 5), Unit("cat", 6))
    assert stats.group_of.tolist() == [0, 0, 1, 1, 1]
    assert stats.starts.tolist() == [0, 2, 5]


def test_spent_is_constant_linear_and_bilinear(stats):
    assert stats.spent("params", [1, 0, 1, 0, 0]) == 100 + 1 + 3
    assert stats.spent("params", [0, 1, 1, 0, 0]) == 100 + 2 + 3 + 7
    assert stats.spent("macs", [0, 1, 1, 0, 0]) == 2
    assert stats.total("params") == 100 + 15 + 7


def test_unknown_names_suggest_the_nearest(stats):
    with pytest.raises(InvalidProblem, match="did you mean 'params'"):
        stats.spent("param", np.ones(5))
    with pytest.raises(InvalidProblem, match="did you mean 'l1'"):
        stats.criterion("l11")
    with pytest.raises(InvalidProblem, match="did you mean 'activation'"):
        stats.matrices("activations")


def test_a_file_brings_everything_back(stats, tmp_path):
    stats.save(tmp_path / "stats.npz")
    back = Statistics.load(tmp_path / "stats.npz")
    assert back.units == stats.units
    assert [m[:2] for g in back.groups for m in g.members] == [m[:2] for g in stats.groups for m in g.members]
    for mine, theirs in zip(stats.groups, back.groups, strict=True):
        for a, b in zip(mine.members, theirs.members, strict=True):
            np.testing.assert_array_equal(a.channels, b.channels)
    for section in ("saliency", "factors", "cost"):
        mine, theirs = getattr(stats, section), getattr(back, section)
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])
    np.testing.assert_array_equal(back.cross["reconstruction"][0, 1], stats.cross["reconstruction"][0, 1])
    for a, b in zip(stats.matrices("activation"), back.matrices("activation"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert back.meta == {"samples": 12, "excluded": {"stem": "read by everything"}}
    keep = [False, True, True, False, True]
    assert back.spent("params", keep) == stats.spent("params", keep)


def test_no_groups_are_no_units(tmp_path):
    Statistics([]).save(tmp_path / "empty.npz")
    back = Statistics.load(tmp_path / "empty.npz")
    assert back.n == 0
    assert back.units == ()
    assert back.group_of.tolist() == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"saliency": {"l1": np.ones(4)}}, r"saliency\['l1'\]: expected shape \(5\)"),
        ({"saliency": {"l1": [1, 2, np.nan, 4, 5]}}, "finite"),
        ({"blocks": {"weights": [np.eye(2)]}}, "for each of 2 groups"),
        ({"blocks": {"weights": [np.eye(2), np.eye(2)]}}, "of cat.1"),
        ({"cost": {"params": np.ones((5, 1))}}, "cost"),
        ({"constant": {"params": "many"}}, "constant"),
        ({"pair_cost": {"params": sparse.csr_array(np.eye(5))}}, "diagonal"),
        ({"pair_cost": {"params": sparse.csr_array(np.eye(5, k=1))}}, "symmetric"),
        ({"pair_cost": {"params": sparse.csr_array((4, 4))}}, "shape"),
        ({"cross": {"reconstruction": {(0, 1): np.ones((3, 2))}}}, "cross"),
    ],
)
def test_statistics_of_another_shape_are_refused(groups, arguments, complaint):
    with pytest.raises(InvalidProblem, match=complaint):
        Statistics(groups, **arguments)


def test_group_names_are_distinct(groups):
    with pytest.raises(InvalidProblem, match="distinct"):
        Statistics([groups[0], groups[0]])


def test_a_group_needs_an_out_member_and_known_axes():
    with pytest.raises(InvalidProblem, match="'out' member"):
        Group("fc", 1, [("fc", "in", [[0]])])
    with pytest.raises(InvalidProblem, match="'out' or 'in'"):
        Group("fc", 1, [("fc", "sideways", [[0]])])
    with pytest.raises(InvalidProblem, match="shape"):
        Group("fc", 2, [("fc", "out", [[0]])])


def test_a_selection_tells_what_stays(groups):
    selection = Selection(groups, [False, True, True, False, True])
    assert selection.kept == {"conv": [1], "cat": [4, 6]}
    assert selection.counts == {"conv": (1, 2), "cat.1": (2, 3)}
    with pytest.raises(InvalidProblem, match=r"shape \(5,\)"):
        Selection(groups, [True])
