"""Quantiles, gaps and summaries: against numpy, and figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesolve.campaigns import comparison

from .runs import INF, row, values

# --- quantiles -----------------------------------------------------------------------------------------------------


@given(values, st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]))
def test_quantiles_are_numpys_where_all_is_finite(sample, q):
    assert comparison.quantile(sample, q) == pytest.approx(np.quantile(sample, q, method="averaged_inverted_cdf"))


@pytest.mark.parametrize(
    ("sample", "middle"), [([1, INF, 2], 2), ([1, INF], INF), ([INF, INF], INF), ([1, 2, INF, INF], INF)]
)
def test_half_without_a_value_is_no_median(sample, middle):
    assert comparison.quantile(sample, 0.5) == middle


def test_quantiles_go_along_the_first_axis():
    table = np.array([[1.0, INF], [3.0, 2.0], [2.0, INF]])
    assert comparison.quantile(table, 0.5).tolist() == [2.0, INF]


# --- best known and gaps -------------------------------------------------------------------------------------------


def test_best_known_is_the_least_of_the_feasible_and_of_what_was_given():
    rows = [
        row("both", "s", -3.0, best_known=-4.0),
        row("beaten", "s", -5.0, best_known=-4.0),
        row("equal", "s", -4.0, best_known=-4.0),
        row("own", "s", -1.0),
        row("own", "s", -9.0, feasible=False),
        row("given", "s", None, best_known=7.0),
        row("nothing", "s", None),
        row("nan", "s", math.nan, feasible=True, best_known=math.nan),
    ]
    assert comparison.best_known(rows) == {
        "both": (-4.0, True),
        "beaten": (-5.0, False),
        "equal": (-4.0, True),
        "own": (-1.0, False),
        "given": (7.0, True),
    }


@pytest.mark.parametrize(
    ("objective", "best", "gap"),
    [(-9.0, -10.0, 0.1), (11.0, 10.0, 0.1), (0.25, 0.0, 0.25), (0.25, 1e-13, 0.25), (2e-9, 1e-9, 1.0)],
)
def test_gaps_are_relative_unless_the_best_is_zero(objective, best, gap):
    assert comparison.gap(objective, best) == pytest.approx(gap)


def test_what_is_not_feasible_is_infinitely_far():
    rows = [row("a", "s", -8.0), row("a", "s", -12.0, feasible=False), row("a", "t", -10.0), row("a", "t", None)]
    assert comparison.gaps(rows).tolist() == pytest.approx([0.2, INF, 0.0, INF])


@given(values, values)
def test_the_median_gap_is_the_gap_of_the_median(first, second):
    rows = [row("a", "s", x) for x in first] + [row("a", "t", x) for x in second]
    best = min(first + second)
    found = comparison.median_gaps(rows)["a"]
    for solver, sample in (("s", first), ("t", second)):
        expected = (np.median(sample) - best) / (abs(best) if abs(best) > 1e-12 else 1)
        assert found[solver] == pytest.approx(expected, abs=1e-9, rel=1e-9)


# --- summary -------------------------------------------------------------------------------------------------------

CAMPAIGN = [
    row("x", "s", -10.0, status="OPTIMAL", gap=0.0, seconds=1.0, evaluations=10),
    row("x", "s", -8.0, gap=0.5, seconds=3.0, evaluations=30),
    row("x", "t", -10.0, seconds=9.0),
    row("x", "t", None, status="DIED"),
    row("y", "s", -90.0, seconds=5.0),
    row("y", "t", -100.0, seconds=7.0),
    row("z", "s", None, status="NO_FEASIBLE_FOUND", seconds=2.0),
    row("z", "t", None, status="FAILED"),
]


def test_a_summary_worked_out_by_hand():
    s, t = comparison.summaries(CAMPAIGN)
    assert (s.solver, s.instances, s.runs, s.proved, s.failed) == ("s", 3, 4, 1, 0)
    assert (t.solver, t.instances, t.runs, t.proved, t.failed) == ("t", 3, 4, 0, 2)
    # z is nobody's: two instances to be best on; gaps of the medians: s has 10 % on both, t none on x and 0 on y
    assert (s.best_found, t.best_found) == (0.5, 1.0)
    assert (s.mean_gap, s.median_gap) == pytest.approx((0.1, 0.1))
    assert (t.mean_gap, t.median_gap) == (0.0, 0.0)
    assert (s.bound_gap, t.bound_gap) == (0.25, None)
    assert (s.feasible, t.feasible) == (0.75, 0.5)
    assert (s.seconds, t.seconds) == (2.5, 8.0)
    assert (s.evaluations, t.evaluations) == (20.0, None)


def test_nobody_is_best_where_nobody_solved_anything():
    (only,) = comparison.summaries([row("x", "s", None)])
    assert (only.best_found, only.mean_gap, only.median_gap) == (None, None, None)
