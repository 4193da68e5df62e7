"""Runs over time: a trace worked out by hand, and the grid they are reduced to."""

from __future__ import annotations

import numpy as np
import pytest

from prunesolve.campaigns import comparison

from .runs import INF, row

TRACE = [[0.1, 5, None, -20.0], [0.2, 10, -5.0, -20.0], [0.4, 20, -8.0, None], [0.4, 21, -9.0, None]]


def run(**columns):
    return row("x", "s", -9.5, seconds=2.0, evaluations=99, **columns)


def test_a_descent_holds_each_gap_until_the_next():
    taken = comparison.descent(run(), TRACE, -10.0)
    assert taken.at.tolist() == [0.2, 0.4, 0.4, 2.0]
    assert taken.gap.tolist() == pytest.approx([0.5, 0.2, 0.1, 0.05])
    at = comparison.held(taken, np.array([0.1, 0.2, 0.3, 0.4, 1.0, 5.0]))
    assert at.tolist() == pytest.approx([INF, 0.5, 0.5, 0.1, 0.1, 0.05])
    assert [comparison.reached(taken, gap) for gap in (0.6, 0.5, 0.15, 0.05, 0.01)] == [0.2, 0.2, 0.4, 2.0, INF]


def test_evaluations_take_the_place_of_seconds():
    assert comparison.descent(run(), TRACE, -10.0, "evaluations").at.tolist() == [10, 20, 21, 99]


@pytest.mark.parametrize("trace", [None, [], [[0.1, 5, None, -20.0]]])
def test_without_a_trace_a_run_counts_at_its_end(trace):
    taken = comparison.descent(run(), trace, -10.0)
    assert (taken.at.tolist(), taken.gap.tolist()) == ([2.0], pytest.approx([0.05]))


def test_a_run_without_a_result_never_gets_anywhere():
    taken = comparison.descent(row("x", "s", None), None, -10.0)
    assert comparison.reached(taken, 1e9) == INF
    assert comparison.held(taken, np.array([1.0, 2.0])).tolist() == [INF, INF]


def test_evaluations_are_the_axis_where_they_alone_are_limited():
    assert comparison.axis_of([run(evaluation_limit=100)]) == "evaluations"
    assert comparison.axis_of([run(evaluation_limit=100, time_limit=1.0)]) == "seconds"
    assert comparison.axis_of([run()]) == "seconds"


def test_traces_are_read_one_at_a_time_and_not_of_what_has_none():
    rows = [run(job="a"), row("x", "s", None, job="b"), run(job="c") | {"objective": -10.0}]
    read = []

    def trace_of(of):
        read.append(of["job"])
        return TRACE if of["job"] == "a" else None

    found = comparison.anytime(rows, trace_of, comparison.best_known(rows), [0.1, 0.0])
    assert read == ["a", "c"]
    assert found.without == 1
    assert found.grid[-1] == 2.0
    assert found.gap[:, -1].tolist() == pytest.approx([0.05, INF, 0.0])
    assert found.reached[0.1].tolist() == [0.4, INF, 2.0]
    assert found.reached[0.0].tolist() == [INF, INF, 2.0]
    # the grid holds the trace's own values, each from when it was found
    at = found.grid.searchsorted(0.4)
    assert found.gap[0, at - 1 : at + 1].tolist() == pytest.approx([0.5, 0.1])


def test_nothing_solved_leaves_nothing_to_draw():
    assert comparison.anytime([row("x", "s", None, seconds=1.0)], lambda of: None, {}, [0.1]) is None


@pytest.mark.parametrize("seconds", [1e-9, 1e-4, 1.5e-4, 3e-4, 7.3, 1e5])
def test_the_grid_rises_to_the_longest_run(seconds):
    rows = [row("x", "s", -1.0, seconds=seconds)]
    found = comparison.anytime(rows, lambda of: None, comparison.best_known(rows), [0.0])
    assert (np.diff(found.grid) > 0).all()
    assert found.grid[-1] >= seconds
    assert found.gap[0, -1] == 0.0
